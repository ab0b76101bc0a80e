//! Addresses that DNS gave for names, and what policy opens of them: judged here again, since a worker that reads hostile
//! bytes says them, and said to the datapath role; and said again to it at each generation, which knows of none.
//!
//! A worker can make a name resolve to what it likes; it can't open what policy doesn't open for that name.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clawgress_api::proto::{ResolvedAddress, ResolvedRequest};
use clawgress_api::{LearnedAddress, LearnedAddresses, LearnedProtocol};
use clawgress_identity::Agent;
use clawgress_policy::{Host, Operation, PolicySet, Request, Transport, is_reserved};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use self::known::{AGENT_OPENINGS_MAX, Address, Full, Known, Name, Tenancy};
use super::govern::{Generation, Governor};
use super::kernel::{Link, State};
use super::observe::Observations;
use clawgress_api::clock::Clock;

mod known;

/// Most addresses of one answer.
const ADDRESSES_MAX: usize = 16;
/// Longest name, bytes.
const NAME_BYTES_MAX: usize = 253;
/// Longest name of a type, bytes: `TYPE65535`.
const TYPE_BYTES_MAX: usize = 16;
/// Longest time an address is remembered: as long as the datapath role believes it.
const TTL_MAX: Duration = Duration::from_secs(3600);
/// Addresses in one message to the datapath role.
const BATCH_MAX: usize = 1024;
/// For the datapath role to run the generation by which addresses are learned.
const SETTLE: Duration = Duration::from_secs(1);

/// What was resolved, and is still believed.
#[derive(Debug)]
pub struct Resolved {
    governor: Arc<Governor>,
    observations: Arc<Observations>,
    link: Arc<Link>,
    clock: Arc<dyn Clock>,
    known: Mutex<Known>,
}

/// What the datapath role was told last: in which of its lives, at which generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    life: u64,
    generation: u64,
}

// === impl Resolved ===

impl Resolved {
    /// Nothing yet.
    #[must_use]
    pub fn new(
        governor: &Arc<Governor>,
        observations: &Arc<Observations>,
        link: &Arc<Link>,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let (governor, observations) = (Arc::clone(governor), Arc::clone(observations));
        let (link, clock) = (Arc::clone(link), Arc::clone(clock));
        Resolved { governor, observations, link, clock, known: Mutex::default() }
    }

    /// Opens what policy opens of an answer, and remembers it.
    ///
    /// # Errors
    /// If it is malformed, policy opens none of it, or the datapath role doesn't take it.
    pub async fn tell(&self, request: ResolvedRequest) -> Result<(), Status> {
        let (name, addresses) = read(request)?;
        let live = self.governor.live();
        let ips: Vec<(IpAddr, u64)> = addresses.iter().map(|(ip, ttl)| (*ip, ttl.as_secs())).collect();
        let opened = self.opened(&live, &name, &ips);
        if opened.is_empty() {
            return Err(Status::permission_denied("policy opens nothing of this name for this agent"));
        }
        self.remember(&live, &name, &addresses, &opened)?;
        let _ = tokio::time::timeout(SETTLE, self.link.settled(live.model.generation)).await;
        self.link.learn(&LearnedAddresses { generation: live.model.generation, addresses: opened }).await
    }

    /// Tells the datapath role at each generation what holds of what it was told before, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut states = self.link.states();
        let mut told = Told::default();
        loop {
            let changed = tokio::select! {
                () = stop.cancelled() => return,
                changed = states.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            let state = states.borrow_and_update().clone();
            if told.is_due(&state, self.governor.live().model.generation) {
                self.tell_again().await;
            }
        }
    }

    async fn tell_again(&self) {
        let live = self.governor.live();
        let now = Instant::now();
        let agents = self.known.lock().believed(now);
        let left = |until: &Instant| until.saturating_duration_since(now).as_secs();
        for names in agents {
            let opened = names.iter().flat_map(|(name, ips)| {
                let ips: Vec<(IpAddr, u64)> = ips.iter().map(|(ip, until)| (*ip, left(until))).collect();
                self.opened(&live, name, &ips)
            });
            let opened: Vec<LearnedAddress> = opened.collect();
            for addresses in opened.chunks(BATCH_MAX) {
                let generation = live.model.generation;
                let told = LearnedAddresses { generation, addresses: addresses.to_vec() };
                if let Err(error) = self.link.learn(&told).await {
                    // Those flows end; who resolves the name anew goes on.
                    tracing::warn!(%error, generation, "addresses of names are not open in a new generation");
                }
            }
        }
    }

    /// What policy opens of the addresses, by the live generation.
    fn opened(&self, live: &Generation, name: &Name, ips: &[(IpAddr, u64)]) -> Vec<LearnedAddress> {
        let Some(agent) = live.model.agents.values().find(|agent| agent.index == name.agent) else {
            return Vec::new();
        };
        let Some(set) = live.policy_at(agent, self.clock.now()) else { return Vec::new() };
        let set = if set.asks_history() {
            set.knowing(self.observations.history(name.agent, &name.host.to_string()))
        } else {
            set
        };
        let Some(policies) = permits(&set, agent, name) else { return Vec::new() };
        let mut opened = Vec::new();
        for (ip, ttl_s) in ips.iter().filter(|(ip, _)| !is_reserved(*ip)) {
            for (transport, port) in set.opens(&policies, agent, *ip) {
                let protocol = match transport {
                    Transport::Udp => LearnedProtocol::Udp,
                    _ => LearnedProtocol::Tcp,
                };
                // The tables name no policy of `resolve`: the record of the question does.
                let policies = 0;
                opened.push(LearnedAddress {
                    agent: name.agent,
                    ip: *ip,
                    port,
                    protocol,
                    ttl_s: *ttl_s,
                    policies,
                });
            }
        }
        opened
    }

    fn remember(
        &self,
        live: &Generation,
        name: &Name,
        addresses: &[(IpAddr, Duration)],
        opened: &[LearnedAddress],
    ) -> Result<(), Status> {
        let now = Instant::now();
        let openings = |ip: IpAddr| opened.iter().filter(|opening| opening.ip == ip).count();
        let address =
            |(ip, ttl): &(IpAddr, Duration)| Address { ip: *ip, until: now + *ttl, openings: openings(*ip) };
        let addresses: Vec<Address> = addresses.iter().map(address).collect();
        let agents = &live.model.agents;
        let tenant = agents.values().find(|agent| agent.index == name.agent).map(|agent| agent.id.tenant());
        let tenant = tenant.ok_or_else(|| Status::permission_denied("there is no such agent any more"))?;
        let is_one_of_several = agents.keys().any(|id| id.tenant() != tenant);
        let percent = self.governor.config.tenants.share_percent_max;
        let tenancy = Tenancy::new(tenant, is_one_of_several, percent);
        self.known.lock().remember(name, tenancy, &addresses, now).map_err(|full| {
            Status::resource_exhausted(match full {
                Full::Tenant => format!(
                    "{} ports of addresses are open for agents of tenant `{tenant}`, which is as many as one of several tenants may have",
                    tenancy.openings_max
                ),
                Full::Agent => format!(
                    "{AGENT_OPENINGS_MAX} ports of addresses are open for this agent, which is as many as one may have"
                ),
                Full::All => "more addresses of names are known than there is room for".to_owned(),
            })
        })
    }
}

// === impl Told ===

impl Told {
    /// Whether there is something to be told in this state, at the live generation; then it is told.
    fn is_due(&mut self, state: &State, live: u64) -> bool {
        let now = Told { life: state.life, generation: state.applied };
        let is_due = *self != now && state.applied != 0 && state.applied == live;
        if is_due {
            *self = now;
        }
        is_due
    }
}

/// The policies by which the agent may resolve the name, if it may.
fn permits(set: &PolicySet, agent: &Agent, name: &Name) -> Option<Vec<String>> {
    let operation = Operation::Resolve { host: &name.host, port: name.port, query_type: &name.query_type };
    let decision = set.decide(&Request { agent, operation });
    decision.is_allow().then_some(decision.policies)
}

fn read(request: ResolvedRequest) -> Result<(Name, Vec<(IpAddr, Duration)>), Status> {
    let ResolvedRequest { agent, host, query_type, port, addresses } = request;
    let invalid = |what: &str| Status::invalid_argument(format!("{what} is malformed"));
    if host.len() > NAME_BYTES_MAX || query_type.len() > TYPE_BYTES_MAX || addresses.len() > ADDRESSES_MAX {
        return Err(invalid("what was resolved"));
    }
    let host = match Host::parse(&host) {
        Ok(parsed @ Host::Name(_)) if parsed.to_string() == host => parsed,
        _ => return Err(invalid("the name")),
    };
    let port = u16::try_from(port).map_err(|_| invalid("the port"))?;
    let address = |ResolvedAddress { ip, ttl_s }| {
        let ip: IpAddr = ip.parse().map_err(|_| invalid("an address"))?;
        Ok::<_, Status>((ip.to_canonical(), Duration::from_secs(ttl_s).min(TTL_MAX)))
    };
    let addresses = addresses.into_iter().map(address).collect::<Result<_, _>>()?;
    Ok((Name { agent, host, query_type, port }, addresses))
}

// === impl Generation ===

impl Generation {
    /// What decides for an agent at a moment, if anything does.
    #[must_use]
    pub fn policy_at(&self, agent: &Agent, now: Timestamp) -> Option<PolicySet> {
        self.in_force.policies().map(|policies| policies.of(agent.id.tenant()).at(now.as_millisecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_life_of_the_datapath_role_is_told_at_each_generation() {
        let mut told = Told::default();
        let state = |life, applied| State { life, applied, ..State::default() };
        for (state, live, is_due) in [
            (state(1, 0), 3, false),
            (state(1, 2), 3, false),
            (state(1, 3), 3, true),
            (state(1, 3), 3, false),
            // It is away, and back.
            (state(2, 0), 3, false),
            (state(2, 3), 3, true),
            // Again, and nobody looked in between.
            (state(3, 3), 3, true),
            (state(3, 4), 4, true),
            (state(3, 4), 4, false),
        ] {
            assert_eq!(told.is_due(&state, live), is_due, "{state:?} at {live}");
        }
    }
}
