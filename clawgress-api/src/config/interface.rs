//! Interfaces: what each is for, and what weakens it.

use serde::{Deserialize, Serialize};

/// An interface and its role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Role.
    pub role: Role,
    /// What a source may do that is bound to nobody, on an agents' interface.
    #[serde(default, skip_serializing_if = "UnboundSources::is_present")]
    pub unbound_sources: UnboundSources,
    /// What makes it less safe.
    #[serde(default, skip_serializing_if = "Danger::is_none")]
    pub danger: Danger,
}

/// What a source may do that is bound to nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnboundSources {
    /// Present a credential at the gateway's own services, and no more.
    #[default]
    Present,
    /// Nothing: all of it is dropped.
    Deny,
}

impl UnboundSources {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
    fn is_present(&self) -> bool {
        *self == UnboundSources::Present
    }
}

/// What weakens the safety of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Danger {
    /// What agents' traffic is let through for, rather than dropped, when it fails. Nothing, if empty.
    pub fail_open: Vec<FailOpen>,
}

impl Danger {
    fn is_none(&self) -> bool {
        self.fail_open.is_empty()
    }
}

/// What may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailOpen {
    /// Nobody vouches for the kernel's tables, since the daemon is gone or behind: what they permit `direct` is forwarded.
    Agent,
    /// No L7 accepts steered connections: what policy permits to `connect` is forwarded, unread.
    L7,
    /// The flow table is full: what policy permits `direct` is forwarded without a record.
    FlowTable,
    /// The kernel's connection tracking is full. Refused: see [`FailOpen::refusal`].
    Conntrack,
    /// No policy has been loaded: everything of a known source is forwarded.
    Revision,
}

impl FailOpen {
    /// As in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FailOpen::Agent => "agent",
            FailOpen::L7 => "l7",
            FailOpen::FlowTable => "flow_table",
            FailOpen::Conntrack => "conntrack",
            FailOpen::Revision => "revision",
        }
    }

    /// Why an interface can't fail open for it, if it can't.
    #[must_use]
    pub fn refusal(self) -> Option<&'static str> {
        match self {
            FailOpen::Conntrack => Some(
                "a packet that is not tracked leaves with the agent's own address, and its answer can't be told \
                 from a stranger's; raise `net.netfilter.nf_conntrack_max`",
            ),
            FailOpen::Agent | FailOpen::L7 | FailOpen::FlowTable | FailOpen::Revision => None,
        }
    }
}

/// What an interface is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Agents are behind it.
    Agents,
    /// The way out.
    Uplink,
    /// Administration.
    Management,
}

impl Role {
    /// As in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Agents => "agents",
            Role::Uplink => "uplink",
            Role::Management => "management",
        }
    }
}
