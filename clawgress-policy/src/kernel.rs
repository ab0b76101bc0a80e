//! `connect` and `direct` policies compiled to kernel tables:
//! agent class x destination class x protocol x port class.
//!
//! Meaning: at one generation and one moment, looking a packet up in the tables gives what [`PolicySet::reach`] and
//! [`PolicySet::forward`] give ([`expected`] says how they combine). Must never approximate: what has no exact
//! compilation was refused when the set was parsed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address::canonical;
use crate::request::Decision;
use crate::{Policies, PolicyErrors, PolicySet, Transport};

mod cells;
mod judge;
pub(crate) mod limiter;
pub(crate) mod plan;
mod tabulate;
#[cfg(test)]
mod tests;

/// The first port of each range that the set's policies of `connect` and `direct` tell apart, ascending.
pub(crate) fn first_ports(inner: &crate::set::Inner) -> Vec<u16> {
    cells::ports(&inner.plan().atoms).into_iter().map(|cell| cell.first).collect()
}

pub use limiter::{
    LIMIT_BURST_BYTES_MIN, LIMIT_BURST_S_MAX, LIMIT_BYTES_PER_HOUR_MAX, LIMIT_BYTES_PER_HOUR_MIN,
    LIMIT_COUNT_PER_HOUR_MAX, LIMIT_SETS_MAX, LIMITERS_MAX, LIMITS_PER_CELL_MAX, LimitAction, LimitSubject,
    LimitUnit, Limiter,
};

/// Most destination prefixes: a million, and room for what they nest in. The kernel's table of them is
/// bounded by its pages, and that many fit in all but contrived cases, which are refused there.
pub const PREFIXES_MAX: usize = 1_200_000;
/// Most verdicts that are not the default: what travels to the kernel plane in one message.
pub const VERDICTS_MAX: usize = 131_072;
/// Most combinations of distinct agents and distinct destinations held while compiling: 16 MiB.
pub const MATRIX_CELLS_MAX: usize = 1 << 22;
/// Most decisions made while compiling: some seconds of one core.
pub const EVALUATIONS_MAX: usize = 500_000;

/// What the kernel does with a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelAction {
    /// Drop, with this reason's code.
    Deny(u16),
    /// Steer to the L7 listener (TCP only).
    Steer,
    /// Mark for forwarding.
    Direct,
}

/// One cell that differs from the default: deny, for [`default_reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerdictCell {
    /// Agent class, from 1.
    pub agent_class: u32,
    /// Destination class; 0 is every address that neither policy nor the guard of reserved addresses
    /// tells apart.
    pub destination_class: u32,
    /// Protocol.
    pub transport: Transport,
    /// Port class; 0 where there are no ports.
    pub port_class: u16,
    /// What happens.
    pub action: KernelAction,
    /// Index into [`KernelTables::policies`].
    pub policies: u32,
    /// Index into [`KernelTables::limits`]; 0 where it denies and nothing that is learned makes it pass.
    #[serde(default)]
    pub limits: u32,
    /// Whether no address that DNS taught is `direct` here: see [`expected_never_direct`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_direct: bool,
}

/// The tables of one policy revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelTables {
    /// Agent index to agent class (1 and up). Agents of one class have equal rows.
    pub agents: BTreeMap<u32, u32>,
    /// Destination prefix to class; longest prefix wins; no match is class 0. IPv4 prefixes lie in
    /// `::ffff:0:0/96`, so that an IPv6 prefix that encloses it applies to IPv4 where no IPv4 prefix does.
    pub destinations: Vec<(IpNet, u32)>,
    /// First port of each range and its class, ascending, the first at port 0. Ranges reach to the next.
    pub ports: Vec<(u16, u16)>,
    /// Cells that are not the default.
    pub verdicts: Vec<VerdictCell>,
    /// Determining policy ids by index; index 0 is the empty list.
    pub policies: Vec<Vec<String>>,
    /// The rate limits of all sets, ascending by the policy's id; those of several tenants may have the same.
    #[serde(default)]
    pub limiters: Vec<Limiter>,
    /// Sets of indices into `limiters`, each ascending; index 0 is the empty set.
    #[serde(default)]
    pub limits: Vec<Vec<u32>>,
}

impl KernelTables {
    /// What the tables say of a packet, and the determining policy ids: the naive reading of what the
    /// kernel does, for tests and `explain`. `port` counts for TCP and UDP only.
    #[must_use]
    pub fn lookup(
        &self,
        agent_index: u32,
        ip: IpAddr,
        transport: Transport,
        port: u16,
    ) -> (KernelAction, &[String]) {
        if !self.agents.contains_key(&agent_index) {
            return (KernelAction::Deny(DropReason::Anonymous.code()), &[]);
        }
        match self.cell(agent_index, ip, transport, port) {
            Some(cell) => {
                let policies = self.policies.get(cell.policies as usize).map_or(&[][..], Vec::as_slice);
                (cell.action, policies)
            }
            None => (KernelAction::Deny(default_reason(transport).code()), &[]),
        }
    }

    /// The rate limits that a packet is subject to, likewise: indices into [`limiters`](Self::limiters).
    #[must_use]
    pub fn lookup_limits(&self, agent_index: u32, ip: IpAddr, transport: Transport, port: u16) -> &[u32] {
        let set = self.cell(agent_index, ip, transport, port).map_or(0, |cell| cell.limits);
        self.limits.get(set as usize).map_or(&[][..], Vec::as_slice)
    }

    /// Whether the packet is never `direct`, likewise.
    #[must_use]
    pub fn lookup_never_direct(&self, agent_index: u32, ip: IpAddr, transport: Transport, port: u16) -> bool {
        self.cell(agent_index, ip, transport, port).is_some_and(|cell| cell.never_direct)
    }

    /// The cell of a packet, if it is not the default.
    fn cell(&self, agent_index: u32, ip: IpAddr, transport: Transport, port: u16) -> Option<&VerdictCell> {
        let agent_class = self.agents.get(&agent_index).copied()?;
        let destination_class = tabulate::destination_class(&self.destinations, canonical(ip));
        let port_class = if transport.has_ports() {
            self.ports.iter().rev().find(|(first, _)| *first <= port).map_or(0, |(_, class)| *class)
        } else {
            0
        };
        self.verdicts.iter().find(|cell| {
            cell.agent_class == agent_class
                && cell.destination_class == destination_class
                && cell.transport == transport
                && cell.port_class == port_class
        })
    }
}

/// Why a packet that no cell speaks of is denied.
#[must_use]
pub fn default_reason(transport: Transport) -> DropReason {
    if transport.is_named_only() { DropReason::ProtocolUnsupported } else { DropReason::PolicyDenied }
}

/// Compiles for the moment the set is [at](PolicySet::at); what can't be compiled exactly is refused with
/// its place, never approximated.
///
/// # Errors
/// If the tables, or the work to make them, would exceed a bound. (Policies that have no exact
/// compilation are refused by [`PolicySet::parse`] already.)
pub fn compile(set: &PolicySet, agents: &[Agent]) -> Result<KernelTables, PolicyErrors> {
    tabulate::tabulate(&[set], |_| 0, agents)
}

/// [Compiles](compile) for all tenants: each agent by what decides for its own.
///
/// # Errors
/// As there; bounds are those of all together.
pub fn compile_all(policies: &Policies, agents: &[Agent]) -> Result<KernelTables, PolicyErrors> {
    let sets: Vec<&PolicySet> = policies.sets().collect();
    tabulate::tabulate(&sets, |agent| policies.place(agent.id.tenant()), agents)
}

/// What the kernel must do with a packet, by [`PolicySet::reach`] and [`PolicySet::forward`]: the meaning
/// of the tables.
#[must_use]
pub fn expected(
    set: &PolicySet,
    agent: &Agent,
    ip: IpAddr,
    transport: Transport,
    port: u16,
) -> (KernelAction, Vec<String>) {
    combine(transport, set.reach(agent, ip, port, transport), || set.forward(agent, ip, port, transport))
}

/// The rate limits, by their policies' ids, that the kernel must hold a packet to: those of
/// [`PolicySet::limits`] where it passes, or may pass by what the kernel learns, and none where it is denied.
#[must_use]
pub fn expected_limits(
    set: &PolicySet,
    agent: &Agent,
    ip: IpAddr,
    transport: Transport,
    port: u16,
) -> Vec<String> {
    if tabulate::may_pass(transport, expected(set, agent, ip, transport, port).0, set.opens_by_name()) {
        set.limits(agent, ip, port, transport)
    } else {
        Vec::new()
    }
}

/// Whether a guard forbids `direct` (or fails) where the tables leave it to what DNS taught: then no learned address
/// is.
#[must_use]
pub fn expected_never_direct(
    set: &PolicySet,
    agent: &Agent,
    ip: IpAddr,
    transport: Transport,
    port: u16,
) -> bool {
    let (action, _) = expected(set, agent, ip, transport, port);
    may_be_learned(transport, action) && forbids(&set.forward(agent, ip, port, transport))
}

/// Whether what DNS taught can make it `direct`.
fn may_be_learned(transport: Transport, action: KernelAction) -> bool {
    let is_left = match action {
        KernelAction::Deny(code) => {
            code == DropReason::PolicyDenied.code() || code == DropReason::InspectionRequired.code()
        }
        KernelAction::Steer => true,
        KernelAction::Direct => false,
    };
    is_left && transport.has_ports()
}

/// Whether a guard says no, and not only none says yes.
fn forbids(direct: &Decision) -> bool {
    matches!(direct.verdict, Err(DropReason::PolicyForbidden | DropReason::PolicyError))
}

/// The address must be in reach; then `direct` decides between forwarding and L7, which takes TCP only.
fn combine(
    transport: Transport,
    reach: Decision,
    direct: impl FnOnce() -> Decision,
) -> (KernelAction, Vec<String>) {
    if let Err(reason) = reach.verdict {
        return (KernelAction::Deny(reason.code()), reach.policies);
    }
    let direct = direct();
    let both = |direct: Decision| {
        let mut policies = reach.policies.clone();
        policies.extend(direct.policies);
        policies.sort();
        policies.dedup();
        policies
    };
    match (direct.verdict, transport) {
        (Ok(()), _) => (KernelAction::Direct, both(direct)),
        // A guard of `direct` that fails might have been a forbid; steering does not depend on it, but
        // it denies all the same, so that an error is never passed over.
        (Err(DropReason::PolicyError), _) => {
            (KernelAction::Deny(DropReason::PolicyError.code()), direct.policies)
        }
        (Err(_), Transport::Tcp) => (KernelAction::Steer, reach.policies),
        (Err(_), _) => (KernelAction::Deny(DropReason::InspectionRequired.code()), both(direct)),
    }
}
