//! What questions to DNS share: how many of an agent are under way, what each asked in this minute, and the way to have
//! addresses learned.
//!
//! Bounded: what has no room is refused.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use clawgress_api::config::Dns;
use clawgress_api::proto::enforcement_client::EnforcementClient;
use clawgress_api::proto::{ResolvedAddress, ResolvedRequest};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::dns::watch::{Limits, Noted, Watch};
use clawgress_policy::Host;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tonic::transport::Channel;

use crate::limit;

/// The desk.
#[derive(Debug)]
pub struct Desk {
    limits: Limits,
    agents: Arc<Mutex<HashMap<u32, Asking>>>,
    client: EnforcementClient<Channel>,
    /// Datagrams under way.
    pub datagrams: Arc<Semaphore>,
}

/// What one agent asks.
#[derive(Debug, Default)]
struct Asking {
    running: usize,
    watch: Watch,
}

/// A question under way.
#[derive(Debug)]
pub struct Running {
    agents: Arc<Mutex<HashMap<u32, Asking>>>,
    agent: u32,
}

/// Whom an answer is for, and to what.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The agent's number.
    pub agent: u32,
    /// The name.
    pub host: &'a Host,
    /// The type.
    pub query_type: &'a str,
    /// The port that was asked.
    pub port: u16,
}

// === impl Desk ===

impl Desk {
    /// With these limits, over a channel to control.
    #[must_use]
    pub fn new(limits: &Dns, channel: Channel) -> Self {
        Desk {
            limits: Limits {
                names_max: limits.names_per_minute_max.get(),
                uncommon_max: limits.uncommon_per_minute_max.get(),
                bytes_max: limits.bytes_per_minute_max.get(),
            },
            agents: Arc::default(),
            client: EnforcementClient::new(channel),
            datagrams: Arc::new(Semaphore::new(limit::DNS_DATAGRAMS_MAX)),
        }
    }

    /// One more question of an agent.
    ///
    /// # Errors
    /// [`DropReason::Overloaded`] if it has as many under way as it may, or more agents ask than there is room for.
    pub fn begin(&self, agent: u32, now_s: i64) -> Result<Running, DropReason> {
        let mut agents = self.agents.lock();
        if agents.len() >= limit::DNS_AGENTS_MAX && !agents.contains_key(&agent) {
            agents.retain(|_, asking| asking.running > 0 || !asking.watch.is_over(now_s));
            if agents.len() >= limit::DNS_AGENTS_MAX {
                return Err(DropReason::Overloaded);
            }
        }
        let asking = agents.entry(agent).or_default();
        if asking.running >= limit::DNS_AGENT_MAX {
            return Err(DropReason::Overloaded);
        }
        asking.running += 1;
        drop(agents);
        Ok(Running { agents: Arc::clone(&self.agents), agent })
    }

    /// Has what policy opens of these addresses for the agent opened before its answer is released.
    ///
    /// # Errors
    /// [`DropReason::ResolveFailed`] if that can't be done.
    pub async fn learn(&self, told: Told<'_>, addresses: &[(IpAddr, u32)]) -> Result<(), DropReason> {
        let address =
            |(ip, ttl): &(IpAddr, u32)| ResolvedAddress { ip: ip.to_string(), ttl_s: u64::from(*ttl) };
        let request = ResolvedRequest {
            agent: told.agent,
            host: told.host.to_string(),
            query_type: told.query_type.to_owned(),
            port: u32::from(told.port),
            addresses: addresses.iter().take(limit::ADDRESSES_MAX).map(address).collect(),
        };
        let mut client = self.client.clone();
        match tokio::time::timeout(limit::DNS_LEARN, client.resolved(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(%error, host = %told.host, "addresses are not learned, so they are not told");
                Err(DropReason::ResolveFailed)
            }
            Err(_) => Err(DropReason::ResolveFailed),
        }
    }
}

// === impl Running ===

impl Running {
    /// Takes note of what is asked, and says what that looks like.
    #[must_use]
    pub fn asked(&self, desk: &Desk, now_s: i64, name: &str, kind: u16, bytes: usize) -> Noted {
        let mut agents = self.agents.lock();
        let asking = agents.entry(self.agent).or_default();
        asking.watch.asked(now_s, name, kind, bytes, &desk.limits)
    }

    /// Takes note of what is answered.
    pub fn answered(&self, now_s: i64, bytes: usize) {
        if let Some(asking) = self.agents.lock().get_mut(&self.agent) {
            asking.watch.answered(now_s, bytes);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(asking) = self.agents.lock().get_mut(&self.agent) {
            asking.running = asking.running.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_has_its_share_and_all_together_have_room() {
        let nowhere = std::path::Path::new("/nonexistent/clawgress.sock");
        let channel = clawgress_api::socket::channel(nowhere).expect("channel");
        let desk = Desk::new(&Dns::default(), channel);
        let mut held: Vec<_> =
            (0..limit::DNS_AGENT_MAX).map(|_| desk.begin(1, 0).expect("a share")).collect();
        assert_eq!(desk.begin(1, 0).err(), Some(DropReason::Overloaded));
        held.pop();
        assert!(desk.begin(1, 0).is_ok());
        for agent in 2..=u32::try_from(limit::DNS_AGENTS_MAX).expect("number") {
            let running = desk.begin(agent, 0).expect("room");
            let _ = running.asked(&desk, 0, "a.test", 1, 30);
        }
        assert_eq!(desk.begin(0, 0).err(), Some(DropReason::Overloaded), "all of them asked in this minute");
        assert!(desk.begin(0, 60).is_ok(), "those that asked nothing since are forgotten");
        assert_eq!(desk.agents.lock().len(), 2, "but for whose questions are under way");
    }
}
