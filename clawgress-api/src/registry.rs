//! JSON documents of the registry: what administrators say of agents, groups and API keys, and are told. No secret
//! is in any of them but in the one answer that hands out a new key.

use std::collections::{BTreeMap, BTreeSet};

use clawgress_identity::{Agent, AgentId, GroupId, GroupKind};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `key create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewApiKey {
    /// The agent it will stand for.
    pub agent: AgentId,
    /// From when it counts, to the second; at once if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// From when it counts no longer, to the second; never if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// `key rotate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyRotation {
    /// Public id of the key to replace.
    pub id: String,
    /// How long it goes on counting beside the new one, seconds.
    pub overlap_s: u64,
    /// When the new one expires; if absent, it lives as long as the old one was to, if that was to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// Answer to `key create` and `key rotate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedApiKey {
    /// What is known of the new key.
    pub key: ApiKeyInfo,
    /// Its text, shown this once.
    pub api_key: String,
    /// The key whose place it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<ApiKeyInfo>,
}

/// Whether an API key counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiKeyState {
    /// Not yet.
    Pending,
    /// It does.
    Active,
    /// It does, and another takes its place.
    Rotating,
    /// No longer: its time is over.
    Expired,
    /// No longer: somebody revoked it, or its rotation is over.
    Revoked,
}

/// What is known of an API key: never its secret, nor its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKeyInfo {
    /// Its public id, as audit records name it.
    pub id: String,
    /// The agent it stands for.
    pub agent: AgentId,
    /// Whether it counts now.
    pub state: ApiKeyState,
    /// When it was made, if that was written down.
    pub created: Option<Timestamp>,
    /// From when it counts.
    pub not_before: Option<Timestamp>,
    /// From when it counts no longer.
    pub expires: Option<Timestamp>,
    /// From when it is revoked, which lies ahead while it is rotated.
    pub revoked: Option<Timestamp>,
    /// The run of a local command that it lives with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
}

/// A change of something that may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edit<T> {
    /// It stays as it is.
    #[default]
    Keep,
    /// It is absent from now on.
    Clear,
    /// It is this from now on.
    Set(T),
}

/// A change of labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelChange {
    /// Labels that are taken off.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub removed: BTreeSet<String>,
    /// Labels that are put on, in the place of those with the same key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
}

/// What becomes of a group that an agent is to be in and that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingGroups {
    /// It is registered with the change.
    Create,
    /// The change is refused.
    Refuse,
}

/// `agent set`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentChange {
    /// The agent.
    pub id: AgentId,
    /// Its team.
    #[serde(default)]
    pub team: Edit<String>,
    /// Its project.
    #[serde(default)]
    pub project: Edit<String>,
    /// Its environment.
    #[serde(default)]
    pub environment: Edit<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: LabelChange,
    /// What becomes of groups that don't exist.
    pub missing: MissingGroups,
}

/// Answer to `agent set`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedAgent {
    /// The agent.
    pub agent: Agent,
    /// Groups that were registered with the change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registered: Vec<GroupRef>,
}

/// A group by its kind and name: `group delete`, and what a change registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRef {
    /// Its kind.
    pub kind: GroupKind,
    /// A tenant's name; of others `NAME` or `TENANT/NAME`.
    pub id: String,
}

/// `create` of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewGroup {
    /// Which.
    pub group: GroupRef,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// `set` of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupChange {
    /// Which.
    pub group: GroupRef,
    /// Its labels.
    pub labels: LabelChange,
}

/// What is known of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Its kind.
    pub kind: GroupKind,
    /// Its id: a tenant's name, or `tenant/name`.
    pub id: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it was registered.
    pub created: Option<Timestamp>,
    /// Agents in it.
    pub agents: u64,
}

// === impl GroupRef ===

impl From<&GroupId> for GroupRef {
    fn from(id: &GroupId) -> GroupRef {
        GroupRef { kind: id.kind(), id: id.to_string() }
    }
}

// === impl LabelChange ===

impl LabelChange {
    /// The labels after the change.
    #[must_use]
    pub fn applied_to(&self, labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let kept = labels.iter().filter(|(key, _)| !self.removed.contains(*key));
        let set = self.set.iter();
        kept.chain(set).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

// === impl Edit ===

impl<T: Clone> Edit<T> {
    /// What it is after the change.
    #[must_use]
    pub fn applied_to(&self, before: &Option<T>) -> Option<T> {
        match self {
            Edit::Keep => before.clone(),
            Edit::Clear => None,
            Edit::Set(value) => Some(value.clone()),
        }
    }
}
