//! What tables must say, from single decisions and without the compiler's structure.

use std::collections::BTreeSet;

use super::random::{NamesOf, Thing};
use super::*;
use crate::request::{Operation, Request};

/// What is said, and by which policies.
type Said = (Result<(), DropReason>, Vec<String>);

/// The meaning of the two decisions and of the guards, written down a second time: a tenant's set, and what stands above
/// it, each asked alone.
pub(super) fn oracle(
    set: &PolicySet,
    names_of: &NamesOf,
    agent: &Agent,
    ip: IpAddr,
    transport: Transport,
    port: u16,
) -> (KernelAction, Vec<String>) {
    let names = Named { names_of, ip, transport };
    let unsupported = DropReason::ProtocolUnsupported;
    if transport.is_named_only() && !names_of.keys().any(|id| names.asks(id, 0)) {
        return (KernelAction::Deny(unsupported.code()), Vec::new());
    }
    let (own, platform) = (set.alone(), set.platform());
    let mut reach = reach_alone(&own, agent, ip, transport, port);
    if transport.is_named_only() {
        reach = names.asked(reach, 0);
    }
    if reach.0.is_ok() && is_reserved(ip) && !reach.1.iter().any(|id| names.address(id)) {
        reach.0 = Err(DropReason::AddressReserved);
    }
    let request = Request { agent, operation: Operation::Direct { ip, port, transport } };
    let said = |decision: crate::Decision| (decision.verdict, decision.policies);
    let mut direct = said(own.decide(&request));
    if transport.is_named_only() {
        direct = names.asked(direct, 1);
    }
    if let Some(platform) = platform {
        reach = both(reach, reach_alone(&platform, agent, ip, transport, port));
        direct = both(direct, said(platform.decide(&request)));
    }
    if let Err(reason) = reach.0 {
        return (KernelAction::Deny(reason.code()), reach.1);
    }
    let mut all: Vec<String> = reach.1.iter().chain(&direct.1).cloned().collect();
    all.sort();
    all.dedup();
    if direct.0.is_ok() {
        (KernelAction::Direct, all)
    } else if direct.0 == Err(DropReason::PolicyError) {
        (KernelAction::Deny(DropReason::PolicyError.code()), direct.1)
    } else if transport == Transport::Tcp {
        (KernelAction::Steer, reach.1)
    } else {
        (KernelAction::Deny(DropReason::InspectionRequired.code()), all)
    }
}

/// What policies name, for one packet.
struct Named<'a> {
    names_of: &'a NamesOf,
    ip: IpAddr,
    transport: Transport,
}

impl Named<'_> {
    fn has(&self, id: &String, n: usize, thing: impl Fn(&Thing) -> bool) -> bool {
        self.names_of.get(id).is_some_and(|names| names[n].iter().any(thing))
    }

    fn asks(&self, id: &String, n: usize) -> bool {
        self.has(id, n, |thing| *thing == Thing::Transport(self.transport))
    }

    fn address(&self, id: &String) -> bool {
        self.has(id, 0, |thing| matches!(thing, Thing::Net(net) if net.contains(&self.ip.to_canonical())))
    }

    /// What becomes of what is said of a transport that must be named.
    fn asked(&self, said: Said, n: usize) -> Said {
        let is_named = said.1.iter().any(|id| self.asks(id, n));
        if said.0 == Err(DropReason::PolicyDenied) || (said.0.is_ok() && !is_named) {
            return (Err(DropReason::ProtocolUnsupported), Vec::new());
        }
        said
    }
}

fn reach_alone(set: &PolicySet, agent: &Agent, ip: IpAddr, transport: Transport, port: u16) -> Said {
    let connect = set.decide(&Request { agent, operation: Operation::Connect { ip, port, transport } });
    match limits_alone(set, agent, ip, transport, port) {
        Ok(_) => (connect.verdict, connect.policies),
        Err(mut failed) => {
            if connect.verdict == Err(DropReason::PolicyError) {
                failed.extend(connect.policies);
            }
            failed.sort();
            (Err(DropReason::PolicyError), failed)
        }
    }
}

/// Both must allow. Errors go before forbids, and these before anything else.
fn both(own: Said, platform: Said) -> Said {
    let worst = [Err(DropReason::PolicyError), Err(DropReason::PolicyForbidden)]
        .into_iter()
        .find(|reason| own.0 == *reason || platform.0 == *reason);
    let verdict = worst.unwrap_or(if own.0.is_err() { own.0 } else { platform.0 });
    let by = |said: Said| if said.0 == verdict { said.1 } else { Vec::new() };
    // The platform's denial by default has no policies.
    let mut policies = [by(own), by(platform)].concat();
    policies.sort();
    (verdict, policies)
}

/// The obligations that match, each asked alone; or those that fail.
pub(super) fn limits_alone(
    set: &PolicySet,
    agent: &Agent,
    ip: IpAddr,
    transport: Transport,
    port: u16,
) -> Result<Vec<String>, Vec<String>> {
    let request = Request { agent, operation: Operation::Connect { ip, port, transport } };
    let (mut matching, mut failed) = (Vec::new(), Vec::new());
    for half in [Some(set.inner()), set.above()].into_iter().flatten() {
        for obligation in half.limiting().policies() {
            let id = obligation.id().to_string();
            let one = cedar_policy::PolicySet::from_policies([obligation.clone()]).unwrap();
            match half.decide_among(&one, &request, set.given()).verdict {
                Ok(()) => matching.push(id),
                Err(DropReason::PolicyError) => failed.push(id),
                Err(_) => {}
            }
        }
    }
    matching.sort();
    if failed.is_empty() { Ok(matching) } else { Err(failed) }
}

/// Whether no address that DNS taught may be direct, where the tables say `action`.
pub(super) fn never_direct(
    set: &PolicySet,
    agent: &Agent,
    ip: IpAddr,
    transport: Transport,
    port: u16,
    action: KernelAction,
) -> bool {
    let direct = set.decide(&Request { agent, operation: Operation::Direct { ip, port, transport } });
    let is_left = action == KernelAction::Steer
        || [DropReason::PolicyDenied, DropReason::InspectionRequired]
            .map(|reason| KernelAction::Deny(reason.code()))
            .contains(&action);
    let says_no = [DropReason::PolicyForbidden, DropReason::PolicyError].map(Err).contains(&direct.verdict);
    is_left && says_no && transport.has_ports()
}

/// The rate limits that tables hold a packet to, by their policies' ids.
pub(super) fn limits_of(
    tables: &KernelTables,
    index: u32,
    ip: IpAddr,
    transport: Transport,
    port: u16,
) -> Vec<Limiter> {
    let limits = tables.lookup_limits(index, ip, transport, port);
    limits.iter().map(|n| tables.limiters[*n as usize].clone()).collect()
}

/// Their policies' ids.
pub(super) fn policies_of(limits: &[Limiter]) -> Vec<String> {
    limits.iter().map(|limiter| limiter.policy.clone()).collect()
}

/// Fails unless each of the limits says what its policy's annotations do, read a second time, of this agent; and no bucket is
/// two limiters'.
pub(super) fn assert_as_written(set: &PolicySet, agent: &Agent, limits: &[Limiter], told: &str) {
    let halves = [Some(set.inner()), set.above()].into_iter().flatten();
    let policies: Vec<_> = halves.flat_map(|half| half.limiting().policies()).collect();
    for limiter in limits {
        let policy = policies.iter().find(|policy| policy.id().to_string() == limiter.policy);
        let policy = policy.unwrap_or_else(|| panic!("{}: {told}", limiter.policy));
        let wanted = Limiter { key: limiter.key, ..as_written(policy, agent) };
        assert_eq!((limiter, limiter.key == 0), (&wanted, false), "{told}");
    }
    let keys: BTreeSet<u64> = limits.iter().map(|limiter| limiter.key).collect();
    assert_eq!(keys.len(), limits.len(), "{told}");
}

fn as_written(policy: &cedar_policy::Policy, agent: &Agent) -> Limiter {
    let limit = policy.annotation("limit").unwrap();
    let words: Vec<&str> = limit.split([' ', '/']).collect();
    let (count, name, period) = (words[0].parse::<u64>().unwrap(), words[1], words[2]);
    let (unit, size) = match name {
        "packets" => (LimitUnit::Packets, 1),
        "connections" => (LimitUnit::Connections, 1),
        "KiB" => (LimitUnit::Bytes, 1_024),
        "MB" => (LimitUnit::Bytes, 1_000_000),
        other => panic!("{other}"),
    };
    let period_s = match period {
        "second" => 1,
        "minute" => 60,
        "hour" => 3_600,
        other => panic!("{other}"),
    };
    let count = count * size;
    let least = if unit == LimitUnit::Bytes { 65_536 } else { 1 };
    let burst = match words.get(4) {
        Some(burst) => burst.parse::<u64>().unwrap() * size,
        None => (count / u64::from(period_s)).max(least),
    };
    let subject = match policy.annotation("per") {
        None | Some("agent") => LimitSubject::Agent,
        Some("workload") => LimitSubject::Workload,
        Some("team") => LimitSubject::Team,
        Some("project") => LimitSubject::Project,
        Some("environment") => LimitSubject::Environment,
        Some("tenant") => LimitSubject::Tenant,
        Some(other) => panic!("{other}"),
    };
    let group = match subject {
        LimitSubject::Agent | LimitSubject::Workload => None,
        LimitSubject::Team => agent.team.as_ref().map(|name| format!("team {}/{name}", agent.id.tenant())),
        LimitSubject::Project => {
            agent.project.as_ref().map(|name| format!("project {}/{name}", agent.id.tenant()))
        }
        LimitSubject::Environment => {
            agent.environment.as_ref().map(|name| format!("environment {}/{name}", agent.id.tenant()))
        }
        LimitSubject::Tenant => Some(format!("tenant {}/", agent.id.tenant())),
    };
    let over = match policy.annotation("effect") {
        Some("rate-limit") => LimitAction::Drop,
        Some("throttle") => LimitAction::Pace,
        other => panic!("{other:?}"),
    };
    let policy = policy.id().to_string();
    Limiter { policy, key: 0, group, unit, count, period_s, burst, subject, over }
}
