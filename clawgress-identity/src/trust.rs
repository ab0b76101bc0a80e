//! The trust snapshot, and the decision who presents a credential.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Agent, AgentId, AgentState, ApiKey, ApiKeyRecord, KEY_MAC_BYTES};

/// How an identity was established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityMethod {
    /// Interface, address and MAC, by the kernel plane.
    Source,
    /// Local workload's cgroup, by the kernel plane.
    Cgroup,
    /// API key.
    ApiKey,
}

/// An established identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The agent.
    pub agent: Arc<Agent>,
    /// How it was established.
    pub method: IdentityMethod,
}

/// Why a credential establishes no identity. The client is never told which of these it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The key's id is unknown or its hash differs.
    #[error("unknown API key")]
    UnknownKey,
    /// The key has expired.
    #[error("the API key has expired")]
    Expired,
    /// The user name is not the agent the key belongs to.
    #[error("the API key belongs to another agent")]
    OtherAgent,
    /// The agent is not in the registry.
    #[error("the agent does not exist")]
    UnknownAgent,
    /// The agent is disabled or quarantined.
    #[error("the agent is disabled")]
    Disabled,
    /// The source of the connection may not present this agent.
    #[error("this source may not present this agent")]
    Conflict,
}

/// Everything identity decisions need, at one generation.
#[derive(Clone, Debug, Default)]
pub struct TrustSnapshot {
    by_id: BTreeMap<AgentId, Arc<Agent>>,
    by_index: BTreeMap<u32, Arc<Agent>>,
    keys: BTreeMap<String, ApiKeyRecord>,
}

impl TrustSnapshot {
    /// Builds the look-up tables.
    #[must_use]
    pub fn new(
        agents: impl IntoIterator<Item = Agent>,
        keys: impl IntoIterator<Item = ApiKeyRecord>,
    ) -> Self {
        let mut snapshot = TrustSnapshot::default();
        for agent in agents {
            let agent = Arc::new(agent);
            snapshot.by_index.insert(agent.index, Arc::clone(&agent));
            snapshot.by_id.insert(agent.id.clone(), agent);
        }
        snapshot.keys = keys.into_iter().map(|k| (k.id.clone(), k)).collect();
        snapshot
    }

    /// The agent with this id.
    #[must_use]
    pub fn agent(&self, id: &AgentId) -> Option<&Arc<Agent>> {
        self.by_id.get(id)
    }

    /// The agent with this registry index, as the kernel plane reports it.
    ///
    /// # Errors
    /// [`IdentityError::UnknownAgent`] or [`IdentityError::Disabled`].
    pub fn by_source(&self, index: u32, method: IdentityMethod) -> Result<Identity, IdentityError> {
        active(self.by_index.get(&index), method)
    }

    /// The agent that `key` proves, given the keyed hash of the presented text, the user name it was
    /// presented with, the agent the source is bound to (if any), and the time (Unix seconds).
    ///
    /// # Errors
    /// Every way in which the credential fails.
    pub fn by_api_key(
        &self,
        key: ApiKey<'_>,
        mac: &[u8; KEY_MAC_BYTES],
        user: &AgentId,
        bound: Option<&AgentId>,
        now_s: i64,
    ) -> Result<Identity, IdentityError> {
        let record = self.keys.get(key.id()).filter(|r| r.matches(mac)).ok_or(IdentityError::UnknownKey)?;
        if record.expires_at_s.is_some_and(|t| now_s >= t) {
            return Err(IdentityError::Expired);
        }
        if record.agent != *user {
            return Err(IdentityError::OtherAgent);
        }
        if bound.is_some_and(|b| *b != record.agent) {
            return Err(IdentityError::Conflict);
        }
        active(self.by_id.get(&record.agent), IdentityMethod::ApiKey)
    }
}

fn active(agent: Option<&Arc<Agent>>, method: IdentityMethod) -> Result<Identity, IdentityError> {
    let agent = agent.ok_or(IdentityError::UnknownAgent)?;
    match agent.state {
        AgentState::Active => Ok(Identity { agent: Arc::clone(agent), method }),
        AgentState::Quarantined | AgentState::Disabled => Err(IdentityError::Disabled),
    }
}
