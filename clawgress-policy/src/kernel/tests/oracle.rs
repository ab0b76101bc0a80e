//! What tables must say, from single decisions and without the compiler's structure.

use super::random::{NamesOf, Thing};
use super::*;
use crate::request::{Operation, Request};

/// The meaning of the two decisions and of the guard, written down a second time.
pub(super) fn oracle(
    set: &PolicySet,
    names_of: &NamesOf,
    agent: &Agent,
    ip: IpAddr,
    transport: Transport,
    port: u16,
) -> (KernelAction, Vec<String>) {
    let has = |id: &String, n: usize, thing: &dyn Fn(&Thing) -> bool| {
        names_of.get(id).is_some_and(|names| names[n].iter().any(thing))
    };
    let is_asked_for = |thing: &Thing| *thing == Thing::Transport(transport);
    let unsupported = (KernelAction::Deny(DropReason::ProtocolUnsupported.code()), Vec::new());
    if transport.is_named_only() && !names_of.keys().any(|id| has(id, 0, &is_asked_for)) {
        return unsupported;
    }
    let connect = set.decide(&Request { agent, operation: Operation::Connect { ip, port, transport } });
    let alone = limits_alone(set, agent, ip, transport, port);
    if let Err(failed) = alone {
        let mut failed = failed;
        if connect.verdict == Err(DropReason::PolicyError) {
            failed.extend(connect.policies);
        }
        failed.sort();
        return (KernelAction::Deny(DropReason::PolicyError.code()), failed);
    }
    let mut direct = set.decide(&Request { agent, operation: Operation::Direct { ip, port, transport } });
    let mut both: Vec<String> = connect.policies.iter().chain(&direct.policies).cloned().collect();
    both.sort();
    both.dedup();
    let names = |id: &String| {
        has(id, 0, &|thing| matches!(thing, Thing::Net(net) if net.contains(&ip.to_canonical())))
    };
    if transport.is_named_only() {
        if connect.verdict == Err(DropReason::PolicyDenied)
            || (connect.is_allow() && !connect.policies.iter().any(|id| has(id, 0, &is_asked_for)))
        {
            return unsupported;
        }
        if direct.verdict == Err(DropReason::PolicyDenied)
            || (direct.is_allow() && !direct.policies.iter().any(|id| has(id, 1, &is_asked_for)))
        {
            both.clone_from(&connect.policies);
            direct.verdict = Err(DropReason::ProtocolUnsupported);
        }
    }
    if let Err(reason) = connect.verdict {
        (KernelAction::Deny(reason.code()), connect.policies)
    } else if is_reserved(ip) && !connect.policies.iter().any(names) {
        (KernelAction::Deny(DropReason::AddressReserved.code()), connect.policies)
    } else if direct.is_allow() {
        (KernelAction::Direct, both)
    } else if direct.verdict == Err(DropReason::PolicyError) {
        (KernelAction::Deny(DropReason::PolicyError.code()), direct.policies)
    } else if transport == Transport::Tcp {
        (KernelAction::Steer, connect.policies)
    } else {
        (KernelAction::Deny(DropReason::InspectionRequired.code()), both)
    }
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
    for obligation in set.inner().limiting().policies() {
        let id = obligation.id().to_string();
        let one = cedar_policy::PolicySet::from_policies([obligation.clone()]).unwrap();
        match set.inner().decide_among(&one, &request, set.given()).verdict {
            Ok(()) => matching.push(id),
            Err(DropReason::PolicyError) => failed.push(id),
            Err(_) => {}
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

/// The ids of the rate limits that tables hold a packet to.
pub(super) fn limits_of(
    tables: &KernelTables,
    index: u32,
    ip: IpAddr,
    transport: Transport,
    port: u16,
) -> Vec<String> {
    let limits = tables.lookup_limits(index, ip, transport, port);
    limits.iter().map(|n| tables.limiters[*n as usize].policy.clone()).collect()
}
