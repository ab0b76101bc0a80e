//! The trust snapshot, and the decision who presents a credential.

use std::collections::{BTreeMap, BTreeSet};
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
    /// The agent is disabled.
    #[error("the agent is disabled")]
    Disabled,
    /// The agent is quarantined.
    #[error("the agent is quarantined")]
    Quarantined,
    /// The source of the connection may not present this agent.
    #[error("this source may not present this agent")]
    Conflict,
}

/// Everything identity decisions need: a generation, and who is quarantined, which is outside generations.
#[derive(Clone, Debug, Default)]
pub struct TrustSnapshot {
    registry: Arc<Registry>,
    quarantined: Arc<BTreeSet<u32>>,
}

/// Agents and keys of one generation.
#[derive(Clone, Debug, Default)]
struct Registry {
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
        let mut registry = Registry::default();
        for agent in agents {
            let agent = Arc::new(agent);
            // Index 0 is "no agent" in the kernel's tables, so it must find nobody.
            if agent.index != 0 {
                registry.by_index.insert(agent.index, Arc::clone(&agent));
            }
            registry.by_id.insert(agent.id.clone(), agent);
        }
        registry.keys = keys.into_iter().map(|k| (k.id.clone(), k)).collect();
        TrustSnapshot { registry: Arc::new(registry), quarantined: Arc::default() }
    }

    /// The same generation with these agents quarantined, by their registry index. Cheap.
    #[must_use]
    pub fn with_quarantined(&self, quarantined: &Arc<BTreeSet<u32>>) -> Self {
        TrustSnapshot { registry: Arc::clone(&self.registry), quarantined: Arc::clone(quarantined) }
    }

    /// The agent with this id.
    #[must_use]
    pub fn agent(&self, id: &AgentId) -> Option<&Arc<Agent>> {
        self.registry.by_id.get(id)
    }

    /// The agent with this registry index, as the kernel plane reports it.
    ///
    /// # Errors
    /// [`IdentityError::UnknownAgent`], [`IdentityError::Quarantined`] or [`IdentityError::Disabled`].
    pub fn by_source(&self, index: u32, method: IdentityMethod) -> Result<Identity, IdentityError> {
        self.active(self.registry.by_index.get(&index), method)
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
        let record =
            self.registry.keys.get(key.id()).filter(|r| r.matches(mac)).ok_or(IdentityError::UnknownKey)?;
        if record.expires_at_s.is_some_and(|t| now_s >= t) {
            return Err(IdentityError::Expired);
        }
        if record.agent != *user {
            return Err(IdentityError::OtherAgent);
        }
        if bound.is_some_and(|b| *b != record.agent) {
            return Err(IdentityError::Conflict);
        }
        self.active(self.registry.by_id.get(&record.agent), IdentityMethod::ApiKey)
    }

    fn active(&self, agent: Option<&Arc<Agent>>, method: IdentityMethod) -> Result<Identity, IdentityError> {
        let agent = agent.ok_or(IdentityError::UnknownAgent)?;
        if self.quarantined.contains(&agent.index) {
            return Err(IdentityError::Quarantined);
        }
        match agent.state {
            AgentState::Active => Ok(Identity { agent: Arc::clone(agent), method }),
            AgentState::Quarantined => Err(IdentityError::Quarantined),
            AgentState::Disabled => Err(IdentityError::Disabled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; KEY_MAC_BYTES] = [5; KEY_MAC_BYTES];
    const EXPIRES_AT_S: i64 = 1_000;

    fn agent(id: &str, index: u32, state: AgentState) -> Agent {
        Agent {
            id: id.parse().unwrap(),
            index,
            team: None,
            project: None,
            environment: None,
            labels: BTreeMap::new(),
            state,
            sources: Vec::new(),
        }
    }

    fn key_text(number: u8) -> String {
        ApiKey::compose([number; 6], [number; 32])
    }

    fn record(number: u8, agent: &str) -> ApiKeyRecord {
        let text = key_text(number);
        let id = ApiKey::parse(&text).unwrap().id().to_owned();
        ApiKeyRecord { id, agent: agent.parse().unwrap(), mac: MAC, expires_at_s: Some(EXPIRES_AT_S) }
    }

    fn snapshot() -> TrustSnapshot {
        TrustSnapshot::new(
            [
                agent("web", 1, AgentState::Active),
                agent("other", 2, AgentState::Active),
                agent("held", 3, AgentState::Quarantined),
                agent("off", 4, AgentState::Disabled),
                agent("zero", 0, AgentState::Active),
            ],
            [record(1, "web"), record(3, "held"), record(4, "off"), record(6, "gone")],
        )
    }

    /// Presents key `number` as `user` from a source bound to `bound`.
    fn present(
        number: u8,
        mac: u8,
        user: &str,
        bound: Option<&str>,
        now_s: i64,
    ) -> Result<String, IdentityError> {
        let text = key_text(number);
        let bound: Option<AgentId> = bound.map(|b| b.parse().unwrap());
        snapshot()
            .by_api_key(
                ApiKey::parse(&text).unwrap(),
                &[mac; KEY_MAC_BYTES],
                &user.parse().unwrap(),
                bound.as_ref(),
                now_s,
            )
            .map(|identity| {
                assert_eq!(identity.method, IdentityMethod::ApiKey);
                identity.agent.id.to_string()
            })
    }

    #[test]
    fn every_way_a_key_succeeds_and_fails() {
        use IdentityError::*;
        for (number, mac, user, bound, now_s, expected) in [
            (1, 5, "web", None, 0, Ok("default/web")),
            (1, 5, "default/web", Some("web"), 0, Ok("default/web")),
            (1, 5, "web", None, EXPIRES_AT_S - 1, Ok("default/web")),
            (1, 5, "web", None, EXPIRES_AT_S, Err(Expired)),
            (1, 5, "web", None, i64::MAX, Err(Expired)),
            (1, 5, "web", None, i64::MIN, Ok("default/web")),
            (1, 6, "web", None, 0, Err(UnknownKey)),
            // A wrong secret says nothing of expiry or owner.
            (1, 6, "other", None, EXPIRES_AT_S, Err(UnknownKey)),
            (2, 5, "web", None, 0, Err(UnknownKey)),
            (1, 5, "other", None, 0, Err(OtherAgent)),
            (1, 5, "acme/web", None, 0, Err(OtherAgent)),
            (1, 5, "web", Some("other"), 0, Err(Conflict)),
            (1, 5, "web", Some("acme/web"), 0, Err(Conflict)),
            (3, 5, "held", None, 0, Err(Quarantined)),
            (4, 5, "off", None, 0, Err(Disabled)),
            (6, 5, "gone", None, 0, Err(UnknownAgent)),
        ] {
            let expected = expected.map(str::to_owned);
            assert_eq!(
                present(number, mac, user, bound, now_s),
                expected,
                "{number} {mac} {user} {bound:?} {now_s}"
            );
        }
    }

    #[test]
    fn a_key_without_expiry_never_expires() {
        let mut key = record(1, "web");
        key.expires_at_s = None;
        let trust = TrustSnapshot::new([agent("web", 1, AgentState::Active)], [key]);
        let text = key_text(1);
        let parsed = ApiKey::parse(&text).unwrap();
        assert!(trust.by_api_key(parsed, &MAC, &"web".parse().unwrap(), None, i64::MAX).is_ok());
    }

    #[test]
    fn the_quarantined_are_nobody_by_any_method() {
        let quarantined = Arc::new(BTreeSet::from([1, 4]));
        let trust = snapshot().with_quarantined(&quarantined);
        let by = |trust: &TrustSnapshot, index| trust.by_source(index, IdentityMethod::Source).map(drop);
        assert_eq!(by(&trust, 1), Err(IdentityError::Quarantined));
        assert_eq!(by(&trust, 4), Err(IdentityError::Quarantined));
        assert_eq!(by(&trust, 2), Ok(()));
        let text = key_text(1);
        let key = ApiKey::parse(&text).unwrap();
        let present =
            |trust: &TrustSnapshot| trust.by_api_key(key, &MAC, &"web".parse().unwrap(), None, 0).map(drop);
        assert_eq!(present(&trust), Err(IdentityError::Quarantined));
        let released = trust.with_quarantined(&Arc::default());
        assert_eq!((by(&released, 1), present(&released)), (Ok(()), Ok(())));
    }

    #[test]
    fn sources_by_index() {
        let trust = snapshot();
        let by = |index| trust.by_source(index, IdentityMethod::Source).map(|i| i.agent.id.to_string());
        assert_eq!(by(1), Ok("default/web".to_owned()));
        assert_eq!(by(3), Err(IdentityError::Quarantined));
        assert_eq!(by(4), Err(IdentityError::Disabled));
        assert_eq!(by(99), Err(IdentityError::UnknownAgent));
        assert_eq!(by(0), Err(IdentityError::UnknownAgent), "index 0 is nobody, whoever claims it");
        assert_eq!(
            TrustSnapshot::default().by_source(1, IdentityMethod::Cgroup),
            Err(IdentityError::UnknownAgent)
        );
    }
}
