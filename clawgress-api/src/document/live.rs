//! What is going on: live flows, recent drops, limits, and addresses that DNS taught.

use std::net::IpAddr;

use clawgress_identity::AgentId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Destination, SourceRef};

/// `flows`, `drops` and `limits`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveQuery {
    /// Only this agent (`tenant/name` or `name`), or `anonymous`.
    #[serde(default)]
    pub agent: Option<String>,
    /// At most this many, the latest.
    #[serde(default)]
    pub limit: Option<u64>,
    /// For `limits`: a row for each agent and policy, its workloads' buckets and those of the past put together, and
    /// those with the most drops first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub totals: bool,
}

/// Answer to `flows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveFlows {
    /// Live flows that match, whether listed or not.
    pub total: u64,
    /// Those with the latest packets first.
    pub flows: Vec<LiveFlow>,
}

/// A flow that the kernel plane keeps a record of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveFlow {
    /// Names it; the `request` of its audit records, if it has any.
    pub request: String,
    /// Whose it is; absent if nobody's that is known any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// From where.
    pub source: SourceRef,
    /// To where, as dialled.
    pub destination: Destination,
    /// `direct`, `steer`, `local`, or `deny` for one that may not go on.
    pub action: String,
    /// Ids of the determining policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// Generation that judged it last.
    pub generation: u64,
    /// Since its first packet, ms.
    pub age_ms: u64,
    /// Since its last packet, ms.
    pub idle_ms: u64,
    /// Packets from the agent.
    pub packets_sent: u64,
    /// Bytes from the agent.
    pub bytes_sent: u64,
    /// Packets to the agent.
    pub packets_received: u64,
    /// Bytes to the agent.
    pub bytes_received: u64,
}

/// What the kernel plane dropped lately, for one agent, destination and reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentDrop {
    /// Who; absent means nobody known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// From where, as the packet said.
    pub source: SourceRef,
    /// To where.
    pub destination: Destination,
    /// Name of the drop reason.
    pub reason: String,
    /// `xdp`, `tc_ingress`, `tc_egress` or `cgroup`.
    pub hook: String,
    /// Packets or socket calls that were reported; what was dropped unreported only counts by reason.
    pub count: u64,
    /// The first.
    pub first: Timestamp,
    /// The latest.
    pub last: Timestamp,
}

/// A rate limit as it is held to somebody: a token bucket of the kernel plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveLimit {
    /// Who; absent for a group, for sources without a binding, or an agent that is known no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// The group whose agents share the bucket, such as `team acme/payments`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The cgroup of the local command that has the bucket to itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<u64>,
    /// The policy's id; absent for the limit of sources without a binding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What is counted: `packets`, `bytes` or `connections`.
    pub unit: String,
    /// Units in a period.
    pub count: u64,
    /// The period, seconds.
    pub period_s: u32,
    /// Units that may pass at once.
    pub burst: u64,
    /// What becomes of what is over: `drop`, or `pace` for TCP of this machine's own sockets where the uplink's queue
    /// sends it later (anything else is dropped).
    #[serde(default)]
    pub over: String,
    /// Units that may pass now; 0 in totals.
    pub room: u64,
    /// Units that passed.
    pub passed: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// Addresses that a DNS answer gave for a name that policy permits `direct`, to be let through before the
/// answer is released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedAddresses {
    /// The generation whose policy said so. Another one that is live by now refuses them.
    pub generation: u64,
    /// All of them are learned, or none.
    pub addresses: Vec<LearnedAddress>,
}

/// One address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedAddress {
    /// The registry's index of the agent that asked.
    pub agent: u32,
    /// The address in the answer.
    pub ip: IpAddr,
    /// Port that policy permits for the name; never 80 or 443.
    pub port: u16,
    /// Protocol that policy permits for the name.
    pub protocol: LearnedProtocol,
    /// How long new flows may begin, s. Those that live go on.
    pub ttl_s: u64,
    /// Index of the determining policies in the generation's table.
    pub policies: u32,
}

/// What has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearnedProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}
