//! In what two sets differ: their policies and named sets as written, and what the kernel's tables let registered agents
//! reach. What hosts, methods and paths come to can't be listed; cases and replay ask for that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cedar_policy::{Effect, Policy};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::places;
use crate::kernel::{self, KernelAction, KernelTables};
use crate::set::names_asked_by_name;
use crate::{NamedSets, Policies, PolicyBundle, PolicyErrors, PolicySet, Transport};

/// Most addresses at which tables may change that are compared: each is looked for in every prefix.
const EDGES_MAX: usize = 4_096;
/// Most cells compared: some seconds of one core.
const CELLS_MAX: usize = 1 << 22;
/// Most differences listed; a person reads no more.
pub const REACHES_MAX: usize = 500;

/// In what two bundles differ as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextDifference {
    /// Policies that only the second has: their text by id.
    pub added: BTreeMap<String, String>,
    /// Policies that only the first has: their text by id.
    pub removed: BTreeMap<String, String>,
    /// Policies that both have with other text: the first's and the second's by id.
    pub changed: BTreeMap<String, (String, String)>,
    /// Members of named sets that only the second has, by `hosts.NAME` or `networks.NAME`.
    pub members_added: BTreeMap<String, BTreeSet<String>>,
    /// Members of named sets that only the first has, likewise.
    pub members_removed: BTreeMap<String, BTreeSet<String>>,
}

/// What becomes otherwise for some agents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// The agents.
    pub agents: Vec<String>,
    /// Protocol.
    pub protocol: String,
    /// First address.
    pub first: IpAddr,
    /// Last address.
    pub last: IpAddr,
    /// First and last port; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<(u16, u16)>,
    /// What the first set does: `direct`, `steer`, or the name of a drop reason.
    pub before: String,
    /// What the second does.
    pub after: String,
}

/// What the kernel's tables let agents reach by one set and not by the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachDifference {
    /// The differences, at most [`REACHES_MAX`].
    pub reaches: Vec<Reach>,
    /// Why not all are listed, if they aren't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<String>,
}

// === impl TextDifference ===

impl TextDifference {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == TextDifference::default()
    }

    /// Whether what the second permits, the first surely permits too: it has forbids more, or permits less, and all else is
    /// as it was. For other changes nobody says; obligations and sets may go either way.
    #[must_use]
    pub fn only_takes_away(&self) -> bool {
        let is = |text: &String, effect: Effect| {
            Policy::parse(None, text).is_ok_and(|policy| {
                policy.effect() == effect
                    && policy.annotations().all(|(name, _)| matches!(name, "id" | "mode"))
            })
        };
        // Without the last guard that names such an action, nobody asks about it.
        let opens = |text: &String| {
            Policy::parse(None, text).is_ok_and(|policy| names_asked_by_name(policy.as_ref()))
        };
        let turns =
            |(before, after): &(String, String)| is(before, Effect::Permit) && is(after, Effect::Forbid);
        self.changed.values().all(turns)
            && self.members_added.is_empty()
            && self.members_removed.is_empty()
            && self.added.values().all(|text| is(text, Effect::Forbid))
            && self.removed.values().all(|text| is(text, Effect::Permit))
            && !self.changed.values().map(|(before, _)| before).chain(self.removed.values()).any(opens)
    }

    /// Compares what is written: order, and what stands between policies, do not count.
    #[must_use]
    pub fn between(a: &PolicyBundle, b: &PolicyBundle) -> TextDifference {
        let mut difference = TextDifference::default();
        let (first, mut second) = (places(&a.text), places(&b.text));
        for (id, place) in first {
            match second.remove(&id) {
                None => drop(difference.removed.insert(id, place.text)),
                Some(other) if other.text != place.text => {
                    difference.changed.insert(id, (place.text, other.text));
                }
                Some(_) => {}
            }
        }
        difference.added = second.into_iter().map(|(id, place)| (id, place.text)).collect();
        let (before, after) = (members(&a.sets), members(&b.sets));
        difference.members_added = only(&after, &before);
        difference.members_removed = only(&before, &after);
        difference
    }
}

fn members(sets: &NamedSets) -> BTreeMap<String, BTreeSet<String>> {
    let hosts = sets.hosts.iter().map(|(name, members)| (format!("hosts.{name}"), members.clone()));
    let networks = sets.networks.iter().map(|(name, members)| {
        (format!("networks.{name}"), members.iter().map(ToString::to_string).collect::<BTreeSet<_>>())
    });
    hosts.chain(networks).collect()
}

/// What `these` have and `those` don't; a set that is there without members counts as one.
fn only(
    these: &BTreeMap<String, BTreeSet<String>>,
    those: &BTreeMap<String, BTreeSet<String>>,
) -> BTreeMap<String, BTreeSet<String>> {
    let rest = these.iter().filter_map(|(name, members)| match those.get(name) {
        None => Some((name.clone(), members.clone())),
        Some(others) => {
            let rest: BTreeSet<String> = members.difference(others).cloned().collect();
            (!rest.is_empty()).then(|| (name.clone(), rest))
        }
    });
    rest.collect()
}

// === impl ReachDifference ===

impl ReachDifference {
    /// Compares the kernel's tables of two sets, each [at](PolicySet::at) a moment, for `agents`.
    ///
    /// # Errors
    /// If one of them has no tables, since a bound is exceeded.
    pub fn between(a: &PolicySet, b: &PolicySet, agents: &[Agent]) -> Result<ReachDifference, PolicyErrors> {
        Ok(ReachDifference::of(&kernel::compile(a, agents)?, &kernel::compile(b, agents)?, agents))
    }

    /// Compares the same of all tenants' sets under the platform's.
    ///
    /// # Errors
    /// As [`between`](Self::between).
    pub fn between_all(
        a: &Policies,
        b: &Policies,
        agents: &[Agent],
    ) -> Result<ReachDifference, PolicyErrors> {
        Ok(ReachDifference::of(&kernel::compile_all(a, agents)?, &kernel::compile_all(b, agents)?, agents))
    }

    fn of(a: &KernelTables, b: &KernelTables, agents: &[Agent]) -> ReachDifference {
        let mut groups: BTreeMap<(u32, u32), Vec<&Agent>> = BTreeMap::new();
        for agent in agents {
            let class = |tables: &KernelTables| tables.agents.get(&agent.index).copied().unwrap_or(0);
            groups.entry((class(a), class(b))).or_default().push(agent);
        }
        let edges = edges(a.destinations.iter().chain(&b.destinations).map(|(net, _)| *net));
        let ports: BTreeSet<u16> =
            a.ports.iter().chain(&b.ports).map(|(first, _)| *first).chain([0]).collect();
        let cells = groups.len() * edges.len() * (2 * ports.len() + Transport::ALL.len());
        if edges.len() > EDGES_MAX || cells > CELLS_MAX {
            let incomplete = Some(format!(
                "too much to compare ({} address ranges, {} port ranges, {} kinds of agents): only the text is compared",
                edges.len(),
                ports.len(),
                groups.len()
            ));
            return ReachDifference { reaches: Vec::new(), incomplete };
        }
        let ports: Vec<u16> = ports.into_iter().collect();
        let mut difference = ReachDifference::default();
        for agents in groups.values() {
            compare(a, b, agents, &edges, &ports, &mut difference);
        }
        difference
    }
}

fn compare(
    a: &KernelTables,
    b: &KernelTables,
    agents: &[&Agent],
    edges: &[(IpAddr, IpAddr)],
    ports: &[u16],
    difference: &mut ReachDifference,
) {
    let Some(one) = agents.first() else { return };
    let names: Vec<String> = agents.iter().map(|agent| agent.id.to_string()).collect();
    for transport in Transport::ALL {
        let ports = if transport.has_ports() { ports } else { &[0][..] };
        for (n, port) in ports.iter().enumerate() {
            let last_port = ports.get(n + 1).map_or(u16::MAX, |next| next - 1);
            for (first, last) in edges {
                let does =
                    |tables: &KernelTables| named(tables.lookup(one.index, *first, transport, *port).0);
                let (before, after) = (does(a), does(b));
                if before == after {
                    continue;
                }
                let reach = Reach {
                    agents: names.clone(),
                    protocol: transport.name().to_owned(),
                    first: *first,
                    last: *last,
                    ports: transport.has_ports().then_some((*port, last_port)),
                    before: before.to_owned(),
                    after: after.to_owned(),
                };
                if !joined(&mut difference.reaches, &reach) {
                    if difference.reaches.len() >= REACHES_MAX {
                        difference.incomplete = Some(format!("only the first {REACHES_MAX} are listed"));
                        return;
                    }
                    difference.reaches.push(reach);
                }
            }
        }
    }
}

/// Makes the last of `reaches` go on to the end of `next`, if that is all that tells them apart.
fn joined(reaches: &mut [Reach], next: &Reach) -> bool {
    let Some(last) = reaches.last_mut() else { return false };
    let goes_on = after(last.last) == Some(next.first);
    let widened = Reach { last: next.last, ..last.clone() };
    if goes_on && widened == (Reach { first: last.first, ..next.clone() }) {
        last.last = next.last;
        return true;
    }
    false
}

fn named(action: KernelAction) -> &'static str {
    match action {
        KernelAction::Direct => "direct",
        KernelAction::Steer => "steer",
        KernelAction::Deny(code) => DropReason::from_code(code).map_or("deny", DropReason::name),
    }
}

/// All addresses as ranges in each of which no table tells one address from another: tables change only where a prefix
/// of either, or the range of reserved addresses that is in both, begins or ends.
fn edges(prefixes: impl Iterator<Item = IpNet>) -> Vec<(IpAddr, IpAddr)> {
    let (mut starts4, mut starts6) = (BTreeSet::from([0_u32]), BTreeSet::from([0_u128]));
    // IPv4 lies here in IPv6, and is told by its own addresses.
    let mapped = u128::from(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped());
    starts6.extend([mapped, mapped + (1 << 32)]);
    for prefix in prefixes {
        match prefix {
            IpNet::V4(net) => {
                starts4.insert(u32::from(net.network()));
                starts4.extend(u32::from(net.broadcast()).checked_add(1));
            }
            IpNet::V6(net) => {
                let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
                starts6.insert(first);
                starts6.extend(last.checked_add(1));
                let of_v4 = |n: u128| n.checked_sub(mapped).and_then(|n| u32::try_from(n).ok());
                starts4.extend(of_v4(first));
                starts4.extend(last.checked_add(1).and_then(of_v4));
            }
        }
    }
    let v4 = ranges(&starts4, u32::MAX, |n| n - 1)
        .map(|(a, b)| (Ipv4Addr::from(a).into(), Ipv4Addr::from(b).into()));
    let v6 = ranges(&starts6, u128::MAX, |n| n - 1)
        .filter(|(a, _)| !(mapped..=mapped + u128::from(u32::MAX)).contains(a))
        .map(|(a, b)| (Ipv6Addr::from(a).into(), Ipv6Addr::from(b).into()));
    v4.chain(v6).collect()
}

fn ranges<N: Copy + Ord>(
    starts: &BTreeSet<N>,
    max: N,
    before: impl Fn(N) -> N,
) -> impl Iterator<Item = (N, N)> {
    let lasts = starts.iter().skip(1).map(move |next| before(*next)).chain([max]);
    starts.iter().copied().zip(lasts)
}

fn after(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|n| Ipv6Addr::from(n).into()),
    }
}
