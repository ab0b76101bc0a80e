//! `connect`: by which ways an agent may reach what it asked for.
//!
//! Pure. What is judged is what is dialled: each address by itself, and that of a parent proxy besides.

use std::net::SocketAddr;

use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;
use clawgress_policy::Transport;

use crate::own::Own;
use crate::route::Way;
use crate::snapshot::Plan;

use super::{Ruling, ruling};

/// Ways that may be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// At least one, in the resolver's order.
    pub ways: Vec<Way>,
    /// Determining policies.
    pub policies: Vec<String>,
    /// Those of each way.
    pub by_way: Vec<(Way, Vec<String>)>,
}

/// Why none of the ways may be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The ruling on the first of them.
    pub ruling: Ruling,
    /// That way, as far as it was judged.
    pub way: Option<Way>,
    /// What its record says besides.
    pub detail: Option<String>,
}

/// `connect`, on every address: those that are permitted. A client that was steered dialled `steered_to`.
///
/// # Errors
/// The ruling on the first way, if none is.
pub fn connect(
    plan: &Plan,
    agent: &Agent,
    own: &Own,
    (ways, port): (&[Way], u16),
    steered_to: Option<SocketAddr>,
) -> Result<Judged, Box<Refused>> {
    let mut judged = Judged { ways: Vec::new(), policies: Vec::new(), by_way: Vec::new() };
    let mut first = None;
    for way in ways {
        match connect_way(plan, agent, own, (way, port), steered_to) {
            Ok(policies) => {
                judged.ways.push(way.clone());
                judged.policies.extend_from_slice(&policies);
                judged.by_way.push((way.clone(), policies));
            }
            Err(refused) => {
                first.get_or_insert(refused);
            }
        }
    }
    if judged.ways.is_empty() {
        let none = || Refused::by(Ruling::deny("connect", DropReason::ResolveFailed), None, None);
        return Err(first.unwrap_or_else(none));
    }
    judged.policies.sort();
    judged.policies.dedup();
    Ok(judged)
}

/// `connect` on the destination, unless a parent proxy resolves its name, and on what is dialled for it: the kernel plane
/// judges that of the proxy's own sockets, too. Which policies permit it.
fn connect_way(
    plan: &Plan,
    agent: &Agent,
    own: &Own,
    (way, port): (&Way, u16),
    steered_to: Option<SocketAddr>,
) -> Result<Vec<String>, Box<Refused>> {
    let mut policies = Vec::new();
    if let Some(ip) = way.ip {
        let ruling = connect_one(plan, agent, own, SocketAddr::new(ip, port));
        if ruling.verdict.is_err() {
            // The parent was not asked about.
            return Err(Refused::by(ruling, Some(Way::direct(ip)), None));
        }
        policies = ruling.policies;
    }
    let Some(parent) = way.parent() else {
        let none = || Refused::by(Ruling::deny("connect", DropReason::ResolveFailed), None, None);
        return if way.ip.is_some() { Ok(policies) } else { Err(none()) };
    };
    let ruling = connect_one(plan, agent, own, parent.address);
    if ruling.verdict.is_err() {
        let detail =
            format!("`connect` to the parent proxy `{}` at {} is refused", parent.name, parent.address);
        return Err(Refused::by(ruling, Some(way.clone()), Some(detail)));
    }
    let to = way.ip.map(|ip| SocketAddr::new(ip, port));
    let lost = to.filter(|to| steered_to != Some(*to)).map(|to| limits_lost(plan, agent, to, parent.address));
    if let Some(lost) = lost.filter(|lost| !lost.is_empty()) {
        let detail = format!(
            "limits of `connect` on this address can't be kept through the parent proxy `{}`: have them hold for its \
             address too, or reach this one by another route",
            parent.name
        );
        let ruling = Ruling::new("connect", Err(DropReason::LimitUnavailable), lost);
        return Err(Refused::by(ruling, Some(way.clone()), Some(detail)));
    }
    policies.extend(ruling.policies);
    policies.sort();
    policies.dedup();
    Ok(policies)
}

/// Limits on a destination that nobody keeps where a parent proxy is dialled in its place: the kernel plane holds what is
/// dialled to those on the parent.
fn limits_lost(plan: &Plan, agent: &Agent, to: SocketAddr, parent: SocketAddr) -> Vec<String> {
    let limits = |at: SocketAddr| {
        plan.policy(agent).map(|policy| policy.limits(agent, at.ip(), at.port(), Transport::Tcp))
    };
    let mut lost = limits(to).unwrap_or_default();
    if !lost.is_empty() {
        let kept = limits(parent).unwrap_or_default();
        lost.retain(|limit| !kept.contains(limit));
    }
    lost
}

fn connect_one(plan: &Plan, agent: &Agent, own: &Own, at: SocketAddr) -> Ruling {
    let (ip, port) = (at.ip(), at.port());
    // What is named for its network is not named for this machine, whose services trust their own host.
    if own.is(ip) || own.listens(ip, port) {
        return Ruling::deny("connect", DropReason::GatewayAddress);
    }
    let Some(policy) = plan.policy(agent) else { return Ruling::deny("connect", DropReason::PolicyMissing) };
    ruling("connect", agent, policy.reach(agent, ip, port, Transport::Tcp))
}

// === impl Refused ===

impl Refused {
    fn by(ruling: Ruling, way: Option<Way>, detail: Option<String>) -> Box<Self> {
        Box::new(Refused { ruling, way, detail })
    }
}
