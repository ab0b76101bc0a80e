//! What agents did before, asked of control where policy asks for it. Where control can't be asked, what depends on
//! it is denied.

use std::time::{Duration, Instant};

use clawgress_api::proto::HistoryRequest;
use clawgress_api::proto::enforcement_client::EnforcementClient;
use clawgress_ebpf_common::DropReason;
use clawgress_policy::history::History;
use clawgress_policy::{Host, Need};
use parking_lot::Mutex;
use tonic::transport::Channel;

use crate::identify::Who;
use crate::limit;

/// How long control is not asked after it could not be.
const AWAY: Duration = Duration::from_millis(500);

/// Where it is asked.
#[derive(Debug)]
pub struct Histories {
    client: EnforcementClient<Channel>,
    /// Until then control is not asked again, since it could not be: every request would wait for it.
    away_until: Mutex<Option<Instant>>,
}

// === impl Histories ===

impl Histories {
    /// A client over `channel`.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Histories { client: EnforcementClient::new(channel), away_until: Mutex::default() }
    }

    /// Lets `who`, on its way to `host`, know its history, if somebody needs it and it doesn't know it yet: what a request
    /// is judged by stays the same, however often it is judged. What only logs goes without where control is away.
    ///
    /// # Errors
    /// [`DropReason::HistoryUnavailable`] if control can't be asked in time for what is decided by it.
    pub async fn inform(&self, need: Need, who: &Who, host: &Host) -> Result<(), DropReason> {
        if need == Need::None || who.history().is_some() {
            return Ok(());
        }
        match self.learn(who, host).await {
            Err(_) if need == Need::Logged => Ok(()),
            learnt => learnt,
        }
    }

    async fn learn(&self, who: &Who, host: &Host) -> Result<(), DropReason> {
        if self.away_until.lock().is_some_and(|until| Instant::now() < until) {
            return Err(DropReason::HistoryUnavailable);
        }
        let agent = &who.identity.agent;
        let history = Box::pin(self.ask(agent.index, host)).await.map_err(|error| {
            *self.away_until.lock() = Some(Instant::now() + AWAY);
            tracing::warn!(%error, agent = %agent.id, "control can't be asked for what an agent did before");
            DropReason::HistoryUnavailable
        })?;
        who.learn(history);
        Ok(())
    }

    async fn ask(&self, agent: u32, host: &Host) -> anyhow::Result<History> {
        let question = HistoryRequest { agent, host: host.to_string() };
        let mut client = self.client.clone();
        let answer = tokio::time::timeout(limit::QUOTA_CALL, client.history(question)).await??;
        Ok(serde_json::from_slice(&answer.into_inner().json)?)
    }
}
