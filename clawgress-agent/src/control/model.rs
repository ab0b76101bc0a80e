//! What is governed: agents and their groups, keys, shared sources, runs and the live policy, as the store holds them. A [`Draft`] is a
//! change in the making; nothing here is visible to anybody before it is committed.

use std::collections::BTreeMap;
use std::sync::Arc;

use clawgress_api::{PolicyRevision, REVISION_TEXT_BYTES_MAX, RunRef};
use clawgress_identity::{
    Agent, AgentId, AgentState, ApiKeyRecord, AuthorityRecord, Group, GroupId, IssuerRecord, PolicyOwner,
    ProviderKeyId, ProviderKeyRecord, RootId, SharedSource, SourceId, TrustDomainRecord,
};
use clawgress_policy::{PolicyBundle, PolicyErrors};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::api_keys::{ENDED_KEY, KEY};
use super::audit::AuditError;
use super::authorities::{AUTHORITY, TRUST_DOMAIN};
use super::bundles::{FetchedBundle, TRUST_BUNDLE};
use super::geo::{GeoError, GeoInForce};
use super::groups::{GROUP, with_built_in};
use super::in_force::Unusable;
use super::issuers::ISSUER;
use super::provider_keys::PROVIDER_KEY;
use super::providers::{FETCHED, Fetched};
use super::signatures::Signatures;
use super::sources::SHARED;
use super::store::{Entry, Revision, StateStore, StoreError, Write};

mod stored;

use self::stored::{BUNDLE, REVISION, live_key, numbered};
pub use self::stored::{Stored, history, revision};

/// Live runs of local commands: each has a cgroup and a key.
pub const RUNS_MAX: usize = 256;
/// Longest label, message or author, bytes.
const TEXT_BYTES_MAX: usize = REVISION_TEXT_BYTES_MAX;
/// Policy revisions kept with their text, of each owner.
const REVISIONS_MAX: u64 = 10_000;
/// Owners of policies: the platform, and tenants. A generation has to hold all of their texts.
pub const OWNERS_MAX: usize = 1_024;

pub(super) const GENERATION: &str = "generation";
pub(super) const CANARY: &str = "canary";
pub(super) const NEXT_INDEX: &str = "next-index";
const GEO: &str = "geo";
const WINDOW: &str = "window";
pub(super) const AGENT: &str = "agent/";
const RUN: &str = "run/";

/// A run of a local command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Its name.
    pub name: String,
    /// Whose.
    pub agent: AgentId,
    /// The key that lives with it.
    pub key: String,
    /// SHA-256 of the executable that it began with, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    /// When it was opened.
    pub opened: Timestamp,
    /// Its cgroup, in `kernel` mode.
    pub workload: Option<RunWorkload>,
    /// Whether it has ended, and only its cgroup is still to be removed.
    pub closed: bool,
}

/// The cgroup of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunWorkload {
    /// Its id.
    pub cgroup: u64,
    /// Its directory.
    pub path: String,
}

/// The moment a generation was made for: conditions on time are answered for it, until one turns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The zone of the wall clock, by name.
    pub zone: String,
    /// When it was made.
    pub at: Timestamp,
}

impl Default for Window {
    fn default() -> Self {
        Window { zone: "UTC".to_owned(), at: Timestamp::UNIX_EPOCH }
    }
}

/// Everything that is governed, at one generation.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The generation, from 1; 0 before the first change.
    pub generation: u64,
    /// The store's revision that wrote the generation; `None` before the first change.
    pub stored: Option<Revision>,
    /// Groups that agents may be in, the built-in tenant among them.
    pub groups: BTreeMap<GroupId, Group>,
    /// Agents.
    pub agents: BTreeMap<AgentId, Agent>,
    /// API keys by id.
    pub keys: BTreeMap<String, ApiKeyRecord>,
    /// API keys that count no more, whatever the clock says, and are still listed.
    pub ended_keys: BTreeMap<String, ApiKeyRecord>,
    /// Shared sources by id.
    pub shared: BTreeMap<SourceId, SharedSource>,
    /// Issuers of tokens by id.
    pub issuers: BTreeMap<RootId, IssuerRecord>,
    /// Certificate authorities by id.
    pub authorities: BTreeMap<RootId, AuthorityRecord>,
    /// Trust domains by id.
    pub trust_domains: BTreeMap<RootId, TrustDomainRecord>,
    /// Keys that were fetched of their providers and count.
    pub fetched: BTreeMap<RootId, Fetched>,
    /// Bundles that came of trust domains' sources and count.
    pub bundles: BTreeMap<RootId, FetchedBundle>,
    /// Keys of providers by id, sealed.
    pub provider_keys: BTreeMap<ProviderKeyId, ProviderKeyRecord>,
    /// Runs by name.
    pub runs: BTreeMap<String, Run>,
    /// The live policies, with their bundles, by whose they are.
    pub policies: BTreeMap<PolicyOwner, Arc<PolicyRevision<PolicyBundle>>>,
    /// Why some are not to be trusted, and so not in force.
    pub distrust: BTreeMap<PolicyOwner, String>,
    /// The geo data in force: of what the live policies name.
    pub geo: Arc<GeoInForce>,
    /// The moment of this generation.
    pub window: Window,
    /// Number of the next agent; never one that was used before.
    pub next_index: u32,
}

/// Why a change was refused; nothing was altered.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such thing.
    #[error("{0}")]
    Missing(String),
    /// There is one already.
    #[error("{0}")]
    Exists(String),
    /// Not acceptable.
    #[error("{0}")]
    Invalid(String),
    /// Not possible as the node is set up.
    #[error("{0}")]
    Unsupported(String),
    /// Others depend on it.
    #[error("{0}")]
    InUse(String),
    /// A bound is reached.
    #[error("{0}")]
    Full(String),
    /// A plane can't take it.
    #[error("{0}")]
    Plane(String),
    /// The policy has problems.
    #[error(transparent)]
    Policy(#[from] PolicyErrors),
    /// The geo data that the policy needs can't be used.
    #[error(transparent)]
    Geo(#[from] GeoError),
    /// Another revision is live than the one that it was to follow.
    #[error("{0}")]
    Parent(String),
    /// Another revision was applied meanwhile.
    #[error("another policy was applied meanwhile; try again")]
    Overtaken,
    /// Another role is away.
    #[error("{0}")]
    Unavailable(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

// === impl Refusal ===

impl Refusal {
    /// Whether it is about what policies come to.
    pub(super) fn is_of_policies(&self) -> bool {
        matches!(self, Refusal::Policy(_) | Refusal::Geo(_) | Refusal::Full(_))
    }
}

/// A change in the making: the model as it would be, and the writes that make it so.
#[derive(Debug)]
pub struct Draft {
    pub(super) model: Model,
    pub(super) writes: BTreeMap<String, Option<Vec<u8>>>,
    /// Whether a plane would decide anything differently: then it needs a new generation.
    pub(super) governs: bool,
    /// What becomes of policies that can't be used any more.
    pub(super) unusable: Unusable,
}

// === impl Run ===

impl Run {
    /// As L7 knows it.
    pub(super) fn reference(&self) -> RunRef {
        let Run { agent, key, executable, workload, .. } = self.clone();
        RunRef { agent, key, executable, cgroup: workload.map(|workload| workload.path) }
    }
}

// === impl Model ===

impl Model {
    /// Reads the model at one revision of the store.
    ///
    /// # Errors
    /// If the store fails, or holds what this version doesn't understand, or the keys role can't say whose signature of
    /// the live policy counts.
    pub async fn load(store: &dyn StateStore, signatures: &Signatures) -> Result<Model, Refusal> {
        let generation = store.read(GENERATION, None).await?;
        let at = Some(generation.revision);
        let next_index = store.read(NEXT_INDEX, at).await?.entries.first().map(parse).transpose()?;
        let (policies, distrust) = stored::live(store, signatures, at).await?;
        let geo: Option<GeoInForce> = store.read(GEO, at).await?.entries.first().map(parse).transpose()?;
        let window: Option<Window> = store.read(WINDOW, at).await?.entries.first().map(parse).transpose()?;
        Ok(Model {
            generation: generation.entries.first().map(parse).transpose()?.unwrap_or(0),
            stored: generation.entries.first().map(|e| e.modified),
            groups: with_built_in(all(store, GROUP, at, |g: &Group| g.id.clone()).await?),
            agents: all(store, AGENT, at, |a: &Agent| a.id.clone()).await?,
            keys: all(store, KEY, at, |k: &ApiKeyRecord| k.id.clone()).await?,
            ended_keys: all(store, ENDED_KEY, at, |k: &ApiKeyRecord| k.id.clone()).await?,
            shared: all(store, SHARED, at, |s: &SharedSource| s.id.clone()).await?,
            issuers: all(store, ISSUER, at, |i: &IssuerRecord| i.id.clone()).await?,
            authorities: all(store, AUTHORITY, at, |a: &AuthorityRecord| a.id.clone()).await?,
            trust_domains: all(store, TRUST_DOMAIN, at, |d: &TrustDomainRecord| d.id.clone()).await?,
            fetched: all(store, FETCHED, at, |f: &Fetched| f.id.clone()).await?,
            bundles: all(store, TRUST_BUNDLE, at, |b: &FetchedBundle| b.id.clone()).await?,
            provider_keys: all(store, PROVIDER_KEY, at, |k: &ProviderKeyRecord| k.id.clone()).await?,
            runs: all(store, RUN, at, |r: &Run| r.name.clone()).await?,
            policies,
            distrust,
            geo: Arc::new(geo.unwrap_or_default()),
            window: window.unwrap_or_default(),
            next_index: next_index.unwrap_or(1),
        })
    }

    /// The number of an owner's live revision, 0 for none.
    #[must_use]
    pub fn revision_of(&self, owner: &PolicyOwner) -> u64 {
        self.policies.get(owner).map_or(0, |policy| policy.number)
    }

    /// The numbers of all live revisions.
    #[must_use]
    pub fn revisions(&self) -> BTreeMap<PolicyOwner, u64> {
        self.policies.iter().map(|(owner, policy)| (owner.clone(), policy.number)).collect()
    }

    /// Whether one more run of this agent may be opened.
    ///
    /// # Errors
    /// If there are too many, or the agent may not run anything.
    pub fn may_run(&self, agent: &AgentId) -> Result<(), Refusal> {
        if self.runs.len() >= RUNS_MAX {
            return Err(Refusal::Full(format!("a node has at most {RUNS_MAX} runs at once")));
        }
        match self.agent(agent)?.state {
            AgentState::Active => Ok(()),
            // Stored states are active and disabled; quarantine is a list of its own.
            AgentState::Quarantined | AgentState::Disabled => {
                Err(Refusal::Unsupported(format!("agent `{agent}` is disabled; enable it first")))
            }
        }
    }
}

async fn all<K: Ord, T: DeserializeOwned>(
    store: &dyn StateStore,
    prefix: &str,
    at: Option<Revision>,
    key: impl Fn(&T) -> K,
) -> Result<BTreeMap<K, T>, StoreError> {
    let entries = store.scan(prefix, at).await?.entries;
    entries.iter().map(|e| parse(e).map(|value| (key(&value), value))).collect()
}

pub(super) fn parse<T: DeserializeOwned>(entry: &Entry) -> Result<T, StoreError> {
    serde_json::from_slice(&entry.value)
        .map_err(|e| StoreError::Invalid(format!("the stored `{}` is not understood: {e}", entry.key)))
}

// === impl Draft ===

impl Draft {
    pub(super) fn new(model: Model) -> Self {
        Draft { model, writes: BTreeMap::new(), governs: false, unusable: Unusable::Refuse }
    }

    /// The model as it would be.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Opens a run of an agent that is active; its key must be there.
    ///
    /// # Errors
    /// If there are too many, or the agent may not run anything.
    pub fn open_run(&mut self, run: Run) -> Result<(), Refusal> {
        self.model.may_run(&run.agent)?;
        self.put_run(run)
    }

    /// Ends a run: its key counts no more. What is left of it is its cgroup, if it has one. One that has
    /// ended stays as it is.
    ///
    /// # Errors
    /// If there is none.
    pub fn close_run(&mut self, name: &str) -> Result<(), Refusal> {
        let run = self.model.runs.get(name).cloned();
        let run = run.ok_or_else(|| Refusal::Missing(format!("there is no run `{name}`")))?;
        if run.closed {
            return Ok(());
        }
        if self.model.keys.contains_key(&run.key) {
            self.delete_key(&run.key);
        }
        if run.workload.is_some() { self.put_run(Run { closed: true, ..run }) } else { self.forget_run(name) }
    }

    /// Removes what is left of a run whose cgroup is gone.
    ///
    /// # Errors
    /// Never; the signature of its kind.
    pub fn forget_run(&mut self, name: &str) -> Result<(), Refusal> {
        let gone = self.model.runs.remove(name);
        // What its agent's other processes are known for may depend on that there is one less.
        let is_of = |run: &Run| gone.as_ref().is_some_and(|gone| gone.agent == run.agent);
        self.governs |= self.model.runs.values().any(is_of);
        self.delete(format!("{RUN}{name}"));
        Ok(())
    }

    /// Makes a policy live as its owner's next revision, with the geo data that all policies name then; `seen` are the
    /// live revisions that they were read for.
    ///
    /// # Errors
    /// If it does not come after the live one, other policies are live than were seen, or there is no such tenant.
    pub fn apply_policy(
        &mut self,
        mut revision: PolicyRevision<PolicyBundle>,
        (geo, seen): (&Arc<GeoInForce>, &BTreeMap<PolicyOwner, u64>),
    ) -> Result<PolicyRevision<PolicyBundle>, Refusal> {
        let owner = revision.owner.clone();
        let parent = self.model.revision_of(&owner);
        // The geo data are those of everybody's texts: another one's may name others.
        if (revision.parent, revision.number) != (parent, parent + 1) || self.model.revisions() != *seen {
            return Err(Refusal::Overtaken);
        }
        if parent == 0 && self.model.policies.len() >= OWNERS_MAX {
            return Err(Refusal::Full(format!("at most {OWNERS_MAX} tenants have policies")));
        }
        if let Some(tenant) = owner.tenant()
            && !GroupId::of_tenant(tenant).is_ok_and(|id| self.model.groups.contains_key(&id))
        {
            return Err(Refusal::Missing(format!(
                "there is no tenant `{tenant}`: register it first (`clawgressctl tenant create`)"
            )));
        }
        let bundle = revision.bundle.take();
        self.put_revision(&revision)?;
        self.put(&numbered(&owner, BUNDLE, revision.number), &bundle)?;
        self.put(&live_key(&owner), &revision.number)?;
        if let Some(old) = revision.number.checked_sub(REVISIONS_MAX) {
            self.delete(numbered(&owner, REVISION, old));
            self.delete(numbered(&owner, BUNDLE, old));
        }
        let told = revision.clone();
        revision.bundle = bundle;
        self.model.distrust.remove(&owner);
        self.model.policies.insert(owner, Arc::new(revision));
        self.put_geo(geo)?;
        self.governs = true;
        Ok(told)
    }

    /// Writes a revision without its bundle.
    ///
    /// # Errors
    /// If it can't be written as JSON.
    pub(super) fn put_revision(&mut self, revision: &PolicyRevision<PolicyBundle>) -> Result<(), Refusal> {
        self.put(&numbered(&revision.owner, REVISION, revision.number), revision)
    }

    /// Makes a generation of what there is.
    ///
    /// # Errors
    /// If it can't be written as JSON.
    pub(super) fn close(&mut self) -> Result<(), Refusal> {
        self.governs = true;
        let number = self.model.generation;
        self.put(GENERATION, &number)
    }

    /// Puts geo data in force, for the live policies of these revisions. Whether a plane would decide anything
    /// differently.
    ///
    /// # Errors
    /// If other policies are live meanwhile, which may name others.
    pub fn set_geo(
        &mut self,
        geo: &Arc<GeoInForce>,
        revisions: &BTreeMap<PolicyOwner, u64>,
    ) -> Result<bool, Refusal> {
        if self.model.revisions() != *revisions {
            return Err(Refusal::Unavailable("another policy was applied meanwhile; try again".into()));
        }
        let differs = geo.geo != self.model.geo.geo;
        self.put_geo(geo)?;
        self.governs |= differs;
        Ok(differs)
    }

    fn put_geo(&mut self, geo: &Arc<GeoInForce>) -> Result<(), Refusal> {
        if *geo != self.model.geo {
            self.put(GEO, geo.as_ref())?;
            self.model.geo = Arc::clone(geo);
        }
        Ok(())
    }

    /// Makes the generation one of this moment.
    ///
    /// # Errors
    /// Never; the signature of its kind.
    pub fn enter(&mut self, window: Window) -> Result<(), Refusal> {
        if window != self.model.window {
            self.put(WINDOW, &window)?;
            self.model.window = window;
        }
        self.governs = true;
        Ok(())
    }

    /// The change as writes, for a transaction.
    pub(super) fn into_writes(self) -> (Model, Vec<Write>) {
        let writes = self.writes.into_iter().map(|(key, value)| match value {
            Some(value) => Write::Put(key, value),
            None => Write::Delete(key),
        });
        let writes = writes.collect();
        (self.model, writes)
    }

    pub(super) fn put(&mut self, key: &str, value: &impl Serialize) -> Result<(), Refusal> {
        let value = serde_json::to_vec(value).map_err(|e| Refusal::Invalid(e.to_string()))?;
        self.writes.insert(key.to_owned(), Some(value));
        Ok(())
    }

    pub(super) fn delete(&mut self, key: String) {
        self.writes.insert(key, None);
    }

    fn put_run(&mut self, run: Run) -> Result<(), Refusal> {
        self.put(&format!("{RUN}{}", run.name), &run)?;
        self.model.runs.insert(run.name.clone(), run);
        Ok(())
    }
}

pub(super) fn check_text(what: &str, text: &str) -> Result<(), Refusal> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Refusal::Invalid(format!("a {what} has at most {TEXT_BYTES_MAX} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(Refusal::Invalid(format!("a {what} has no control characters")));
    }
    Ok(())
}
