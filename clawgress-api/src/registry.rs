//! JSON documents of the registry: what administrators say of API keys, and are told. No secret is in any of
//! them but in the one answer that hands out a new key.

use clawgress_identity::AgentId;
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
