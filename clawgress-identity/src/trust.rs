//! The trust snapshot, and the decision who presents a credential.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Agent, AgentId, AgentState, ApiKey, ApiKeyRecord, CertificateError, Holder, Holders, KEY_MAC_BYTES,
    MappingError, Roots, SharedSource, TokenError,
};

mod proof;

pub use proof::{Proof, ProofFacts, Proven, RefusedCredential, RefusedToken};

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
    /// JSON Web Token of a trusted issuer.
    Jwt,
    /// Client certificate of a trusted authority.
    Mtls,
    /// X.509-SVID of a trust domain.
    SpiffeX509,
    /// JWT-SVID of a trust domain.
    SpiffeJwt,
}

/// Where a credential comes from, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    /// A source or a workload that the kernel plane found to be this agent.
    Agent(&'a AgentId),
    /// Any other client.
    Address {
        /// The interface it is behind, by the word of the kernel plane, which then has checked address and MAC.
        interface: Option<&'a str>,
        /// Its address.
        address: IpAddr,
    },
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
    /// The key does not count yet.
    #[error("the API key does not count yet")]
    NotYet,
    /// The key has expired.
    #[error("the API key has expired")]
    Expired,
    /// The key is revoked.
    #[error("the API key is revoked")]
    Revoked,
    /// The credential is not that of the agent it is presented for, or was.
    #[error("the credential belongs to another agent")]
    OtherAgent,
    /// The token fails.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The certificate fails.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The registry has the agent elsewhere than the credential has it.
    #[error(transparent)]
    Mapping(MappingError),
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
    roots: Arc<Roots>,
    quarantined: Arc<BTreeSet<u32>>,
}

/// Agents, keys and sources of one generation.
#[derive(Clone, Debug, Default)]
struct Registry {
    by_id: BTreeMap<AgentId, Arc<Agent>>,
    by_index: BTreeMap<u32, Arc<Agent>>,
    keys: BTreeMap<String, ApiKeyRecord>,
    holders: Holders,
}

impl TrustSnapshot {
    /// Builds the look-up tables.
    #[must_use]
    pub fn new(
        agents: impl IntoIterator<Item = Agent>,
        keys: impl IntoIterator<Item = ApiKeyRecord>,
        shared: impl IntoIterator<Item = SharedSource>,
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
        registry.holders = Holders::new(registry.by_id.values(), shared);
        TrustSnapshot { registry: Arc::new(registry), roots: Arc::default(), quarantined: Arc::default() }
    }

    /// The same generation with these trusted to say who agents are.
    #[must_use]
    pub fn with_roots(self, roots: Arc<Roots>) -> Self {
        TrustSnapshot { roots, ..self }
    }

    /// Who is trusted to say who agents are. What was judged by them is judged the same by a snapshot that shares
    /// them, so that who changes something else hands them on.
    #[must_use]
    pub fn roots(&self) -> &Arc<Roots> {
        &self.roots
    }

    /// The same generation with these agents quarantined, by their registry index. Cheap.
    #[must_use]
    pub fn with_quarantined(&self, quarantined: &Arc<BTreeSet<u32>>) -> Self {
        TrustSnapshot {
            registry: Arc::clone(&self.registry),
            roots: Arc::clone(&self.roots),
            quarantined: Arc::clone(quarantined),
        }
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

    /// Whether whoever is at `origin` may present a credential of `agent`. Where no source is bound, anybody's.
    #[must_use]
    pub fn may_present(&self, origin: Origin<'_>, agent: &AgentId) -> bool {
        let holders = &self.registry.holders;
        let (interface, address) = match origin {
            Origin::Agent(own) => return own == agent,
            Origin::Address { interface, address } => (interface, address),
        };
        let may = |shared: &SharedSource| shared.may_present.contains(agent);
        match interface.and_then(|interface| holders.on(interface, address)) {
            // It is that agent since this generation; the kernel plane has it by another.
            Some(Holder::Agent(own)) => own.id == *agent,
            Some(Holder::Shared(shared)) => may(shared),
            // No agents' interface brings a packet from there.
            None if address.to_canonical().is_loopback() => true,
            // INVARIANT: not to be found never permits more than to be found. Any interface may be the one, by
            // another name or unknown to the kernel plane, so whoever holds the address on each of them counts: a
            // source may also have been bound after the connection began.
            None => holders.anywhere(address).all(|holder| match holder {
                Holder::Agent(own) => own.id == *agent,
                Holder::Shared(shared) => may(shared),
            }),
        }
    }

    /// Whether the source at `address` of `interface` is bound to `agent`. The kernel plane may have found that under
    /// another generation.
    #[must_use]
    pub fn is_bound(&self, interface: Option<&str>, address: IpAddr, agent: &AgentId) -> bool {
        let holders = &self.registry.holders;
        let is_own = |holder: &Holder| matches!(holder, Holder::Agent(own) if own.id == *agent);
        match interface {
            Some(interface) => holders.on(interface, address).is_some_and(is_own),
            // INVARIANT: as in `may_present`, not to be found never permits more than to be found.
            None => {
                let mut all = holders.anywhere(address).peekable();
                all.peek().is_some() && all.all(is_own)
            }
        }
    }

    /// The record of the API key with this public id.
    #[must_use]
    pub fn api_key(&self, id: &str) -> Option<&ApiKeyRecord> {
        self.registry.keys.get(id)
    }

    /// The agent that `key` proves, given the keyed hash of the presented text, the user name it was
    /// presented with, where it comes from, and the time (Unix seconds).
    ///
    /// # Errors
    /// Every way in which the credential fails.
    pub fn by_api_key(
        &self,
        key: ApiKey<'_>,
        mac: &[u8; KEY_MAC_BYTES],
        user: &AgentId,
        origin: Origin<'_>,
        now_s: i64,
    ) -> Result<Identity, IdentityError> {
        let record =
            self.registry.keys.get(key.id()).filter(|r| r.matches(mac)).ok_or(IdentityError::UnknownKey)?;
        record.counts(now_s)?;
        if record.agent != *user {
            return Err(IdentityError::OtherAgent);
        }
        if !self.may_present(origin, &record.agent) {
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
    const ANYWHERE: Origin<'static> =
        Origin::Address { interface: None, address: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)) };

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
        ApiKeyRecord {
            id,
            agent: agent.parse().unwrap(),
            mac: MAC,
            created_at_s: None,
            not_before_s: None,
            expires_at_s: Some(EXPIRES_AT_S),
            revoked_at_s: None,
        }
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
            [],
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
        let origin = bound.as_ref().map_or(ANYWHERE, Origin::Agent);
        snapshot()
            .by_api_key(
                ApiKey::parse(&text).unwrap(),
                &[mac; KEY_MAC_BYTES],
                &user.parse().unwrap(),
                origin,
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
        let trust = TrustSnapshot::new([agent("web", 1, AgentState::Active)], [key], []);
        let text = key_text(1);
        let parsed = ApiKey::parse(&text).unwrap();
        assert!(trust.by_api_key(parsed, &MAC, &"web".parse().unwrap(), ANYWHERE, i64::MAX).is_ok());
    }

    /// An agent has several keys while they are rotated, each with a time of its own.
    #[test]
    fn keys_overlap_while_they_are_rotated() {
        let key = |number, not_before_s, expires_at_s, revoked_at_s| ApiKeyRecord {
            not_before_s,
            expires_at_s,
            revoked_at_s,
            ..record(number, "web")
        };
        let keys = [
            key(1, None, None, Some(200)),
            key(2, Some(100), Some(300), None),
            key(3, Some(100), Some(300), Some(100)),
        ];
        assert_eq!(keys.each_ref().map(ApiKeyRecord::ends_s), [Some(200), Some(300), Some(100)]);
        let trust = TrustSnapshot::new([agent("web", 1, AgentState::Active)], keys, []);
        let present = |number, now_s| {
            let text = key_text(number);
            let key = ApiKey::parse(&text).unwrap();
            trust.by_api_key(key, &MAC, &"web".parse().unwrap(), ANYWHERE, now_s).map(drop)
        };
        use IdentityError::*;
        for (now_s, first, second, third) in [
            (99, Ok(()), Err(NotYet), Err(NotYet)),
            (100, Ok(()), Ok(()), Err(Revoked)),
            (199, Ok(()), Ok(()), Err(Revoked)),
            (200, Err(Revoked), Ok(()), Err(Revoked)),
            (300, Err(Revoked), Err(Expired), Err(Revoked)),
        ] {
            assert_eq!([1, 2, 3].map(|n| present(n, now_s)), [first, second, third], "{now_s}");
        }
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
        let present = |trust: &TrustSnapshot| {
            trust.by_api_key(key, &MAC, &"web".parse().unwrap(), ANYWHERE, 0).map(drop)
        };
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
    #[test]
    fn a_shared_source_presents_whom_it_names_and_nobody_else() {
        let shared = |name: &str, at: &[&str], may_present: &[&str]| SharedSource {
            id: name.parse().unwrap(),
            at: at.iter().map(|s| s.parse().unwrap()).collect(),
            may_present: may_present.iter().map(|a| a.parse().unwrap()).collect(),
        };
        let mut own = agent("own", 3, AgentState::Active);
        own.sources = ["e=10.0.0.5,any-mac", "e=10.3.0.1,any-mac"].map(|s| s.parse().unwrap()).to_vec();
        let trust = TrustSnapshot::new(
            [agent("web", 1, AgentState::Active), agent("acme/web", 2, AgentState::Active), own],
            [record(1, "web")],
            [
                shared("nat", &["e=10.0.0.0/28,any-mac"], &["web", "acme/bot"]),
                shared("other", &["f=10.0.0.0/29,any-mac"], &["acme/bot", "own"]),
                shared("left", &["e=10.9.0.0/16,any-mac"], &[]),
            ],
        );
        let may = |interface, address: &str, agent: &str| {
            let origin = Origin::Address { interface, address: address.parse().unwrap() };
            trust.may_present(origin, &agent.parse().unwrap())
        };
        let (e, f) = (Some("e"), Some("f"));
        for (interface, address, agent, want) in [
            (e, "10.0.0.1", "web", true),
            (e, "10.0.0.1", "acme/bot", true),
            (e, "10.0.0.1", "own", false),
            (e, "10.0.0.1", "acme/web", false),
            (e, "::ffff:10.0.0.1", "own", false),
            // A longer prefix is an agent's own.
            (e, "10.0.0.5", "own", true),
            (e, "10.0.0.5", "web", false),
            // It names nobody any more.
            (e, "10.9.0.1", "web", false),
            (e, "10.0.0.16", "own", true),
            (f, "10.0.0.1", "own", true),
            (f, "10.0.0.1", "web", false),
            (f, "10.0.0.8", "web", true),
            // An interface of another name may be either.
            (Some("g"), "10.0.0.1", "own", false),
            (Some("g"), "10.0.0.1", "acme/bot", true),
            (Some("g"), "10.0.1.1", "own", true),
            // Whoever is not told by the kernel plane may be on either, and gains by neither.
            (None, "10.0.0.1", "web", false),
            (None, "10.0.0.1", "own", false),
            (None, "10.0.0.1", "acme/bot", true),
            (None, "10.0.0.8", "web", true),
            (None, "10.0.0.8", "own", false),
            (None, "10.9.0.1", "web", false),
            // An agent's own, which was bound after the connection began, or has no record.
            (None, "10.3.0.1", "web", false),
            (None, "10.3.0.1", "own", true),
            (None, "192.0.2.1", "web", true),
        ] {
            assert_eq!(may(interface, address, agent), want, "{interface:?} {address} {agent}");
        }
        let text = key_text(1);
        let key = ApiKey::parse(&text).unwrap();
        let present = |interface, address: &str| {
            let origin = Origin::Address { interface, address: address.parse().unwrap() };
            trust.by_api_key(key, &MAC, &"web".parse().unwrap(), origin, 0).map(drop)
        };
        assert_eq!(present(e, "10.0.0.1"), Ok(()));
        assert_eq!(present(f, "10.0.0.1"), Err(IdentityError::Conflict));
        let everywhere = shared("all", &["e=0.0.0.0/0,any-mac"], &[]);
        let trust = TrustSnapshot::new([], [], [everywhere]);
        let local = Origin::Address { interface: None, address: "127.0.0.1".parse().unwrap() };
        assert!(trust.may_present(local, &"web".parse().unwrap()), "no agents' interface brings it");
    }
}
