//! Addresses that DNS gave for names, and what policy opens of them: judged here again, since a worker that reads hostile
//! bytes says them, and said to the datapath role; and said again to it at each generation, which knows of none.
//!
//! A worker can make a name resolve to what it likes; it can't open what policy doesn't open for that name.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clawgress_api::proto::{ResolvedAddress, ResolvedRequest};
use clawgress_api::{LearnedAddress, LearnedAddresses, LearnedProtocol};
use clawgress_ebpf_common::bound;
use clawgress_identity::Agent;
use clawgress_policy::{Host, Operation, PolicySet, Request, Transport, is_reserved};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::govern::{Generation, Governor};
use super::kernel::Link;
use super::observe::Observations;
use clawgress_api::clock::Clock;

/// Most addresses of one answer.
const ADDRESSES_MAX: usize = 16;
/// Longest name, bytes.
const NAME_BYTES_MAX: usize = 253;
/// Longest name of a type, bytes: `TYPE65535`.
const TYPE_BYTES_MAX: usize = 16;
/// Longest time an address is remembered: as long as the datapath role believes it.
const TTL_MAX: Duration = Duration::from_secs(3600);
/// Addresses remembered: as many as the kernel's table holds.
const KNOWN_MAX: usize = bound::LEARNED_MAX as usize;
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
    known: Mutex<BTreeMap<Name, BTreeMap<IpAddr, Instant>>>,
}

/// Who asked for what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    agent: u32,
    host: Host,
    query_type: String,
    port: u16,
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
        self.remember(name, addresses)?;
        let _ = tokio::time::timeout(SETTLE, self.link.settled(live.model.generation)).await;
        self.link.learn(&LearnedAddresses { generation: live.model.generation, addresses: opened }).await
    }

    /// Tells the datapath role at each generation what holds of what it was told before, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut states = self.link.states();
        let mut told = 0;
        loop {
            let changed = tokio::select! {
                () = stop.cancelled() => return,
                changed = states.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            let applied = states.borrow_and_update().applied;
            if applied != told && applied == self.governor.live().model.generation {
                told = applied;
                self.tell_again().await;
            }
        }
    }

    async fn tell_again(&self) {
        let live = self.governor.live();
        let now = Instant::now();
        let names: Vec<(Name, Vec<(IpAddr, u64)>)> = {
            let mut known = self.known.lock();
            forget(&mut known, now);
            let left = |until: &Instant| until.saturating_duration_since(now).as_secs();
            let each = |(name, ips): (&Name, &BTreeMap<IpAddr, Instant>)| {
                (name.clone(), ips.iter().map(|(ip, until)| (*ip, left(until))).collect())
            };
            known.iter().map(each).collect()
        };
        let opened: Vec<LearnedAddress> =
            names.iter().flat_map(|(name, ips)| self.opened(&live, name, ips)).collect();
        for addresses in opened.chunks(BATCH_MAX) {
            let generation = live.model.generation;
            let told = self.link.learn(&LearnedAddresses { generation, addresses: addresses.to_vec() }).await;
            if let Err(error) = told {
                // Those flows end; who resolves the name anew goes on.
                tracing::warn!(%error, generation, "addresses of names are not open in a new generation");
                return;
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

    fn remember(&self, name: Name, addresses: Vec<(IpAddr, Duration)>) -> Result<(), Status> {
        let now = Instant::now();
        let mut known = self.known.lock();
        let count = |known: &BTreeMap<Name, BTreeMap<IpAddr, Instant>>| -> usize {
            known.values().map(BTreeMap::len).sum()
        };
        if count(&known) + addresses.len() > KNOWN_MAX {
            forget(&mut known, now);
            if count(&known) + addresses.len() > KNOWN_MAX {
                return Err(Status::resource_exhausted(
                    "more addresses of names are known than there is room for",
                ));
            }
        }
        known.entry(name).or_default().extend(addresses.into_iter().map(|(ip, ttl)| (ip, now + ttl)));
        Ok(())
    }
}

fn forget(known: &mut BTreeMap<Name, BTreeMap<IpAddr, Instant>>, now: Instant) {
    known.retain(|_, ips| {
        ips.retain(|_, until| *until > now);
        !ips.is_empty()
    });
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
