//! Policy revisions as the store holds them: under whose keys, and what becomes of those that are not what the control role
//! wrote. Must never take one that is there, or was, for one that never was: without the platform's, more is allowed.

use std::collections::BTreeMap;
use std::sync::Arc;

use clawgress_api::{PolicyRevision, hex};
use clawgress_identity::PolicyOwner;
use clawgress_policy::PolicyBundle;
use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::{Refusal, parse};
use crate::control::signatures::{Signatures, distrust};
use crate::control::store::{Entry, Revision, StateStore, StoreError};

const LIVE_POLICY: &str = "policy-live";
pub(super) const REVISION: &str = "revision/";
pub(super) const BUNDLE: &str = "bundle/";
/// Before the keys of everybody's but the tenant `default`, whose policy was the only one once. The store on disk knows
/// these, and `policy-live/`: no version of before opens one that has any.
const OWNED: &str = "policy/";
/// Why a policy doesn't count of which something is left in the store, and not what is live.
const GONE: &str = "what is live of it is gone from the state store, which the control role never does: restore the store from a backup, or apply a policy anew";

/// Policies, by whose they are; and why some are not to be trusted.
type Live = (BTreeMap<PolicyOwner, Arc<PolicyRevision<PolicyBundle>>>, BTreeMap<PolicyOwner, String>);

/// A revision with its bundle, as the store holds it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The revision.
    pub revision: PolicyRevision<PolicyBundle>,
    /// SHA-256 of the stored bundle, hex.
    digest: Option<String>,
    /// Whether it has the owner and number under which it is stored.
    is_asked_for: bool,
    /// Whether what is stored of it is no revision at all, and `revision` says no more than its number.
    is_torn: bool,
}

// === impl Stored ===

impl Stored {
    /// Whether it is in its place, and its bundle the one that its hash is of.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !self.is_torn && self.is_asked_for && self.digest.as_ref() == Some(&self.revision.hash)
    }

    /// Whether what is stored of it is no revision at all.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.is_torn
    }
}

/// What there is to say of a revision that can't be read.
fn torn(owner: &PolicyOwner, number: u64) -> PolicyRevision<PolicyBundle> {
    PolicyRevision {
        owner: owner.clone(),
        number,
        parent: 0,
        time: Timestamp::UNIX_EPOCH,
        author: String::new(),
        message: String::new(),
        hash: String::new(),
        accepted: Vec::new(),
        signature: None,
        bundle: None,
        generation: None,
        standing: None,
    }
}

/// What an entry of a revision says; `None`, and an error in the log, if it was changed to what nobody can read: that
/// keeps it from force, and no more.
fn readable<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    parse(entry).inspect_err(|error| tracing::error!(%error, "a stored policy revision can't be read")).ok()
}

/// The live policies, with their bundles.
///
/// # Errors
/// If the store fails, or holds what this version doesn't understand, or the keys role can't say whose signatures count.
pub(super) async fn live(
    store: &dyn StateStore,
    signatures: &Signatures,
    at: Option<Revision>,
) -> Result<Live, Refusal> {
    let (mut policies, mut distrust) = (BTreeMap::new(), BTreeMap::new());
    for entry in store.scan(LIVE_POLICY, at).await?.entries {
        let (owner, number) = (owner_of_live(&entry.key)?, parse(&entry)?);
        let (revision, why) = match revision(store, &owner, number, at).await? {
            Some(stored) => {
                let why = distrusted(store, signatures, &stored, at).await?;
                (stored.revision, why)
            }
            // Without its revision, a policy of the platform's is not one that never was: that would let pass.
            None => (torn(&owner, number), Some(GONE.to_owned())),
        };
        distrust.extend(why.map(|why| (owner.clone(), why)));
        policies.insert(owner, Arc::new(revision));
    }
    if !policies.contains_key(&PolicyOwner::Platform)
        && let Some(last) = last(store, &PolicyOwner::Platform, at).await?
    {
        policies.insert(PolicyOwner::Platform, Arc::new(torn(&PolicyOwner::Platform, last)));
        distrust.insert(PolicyOwner::Platform, GONE.to_owned());
    }
    Ok((policies, distrust))
}

/// One revision with its bundle, which is absent if it can't be read.
///
/// # Errors
/// If the store fails.
pub async fn revision(
    store: &dyn StateStore,
    owner: &PolicyOwner,
    number: u64,
    at: Option<Revision>,
) -> Result<Option<Stored>, StoreError> {
    let read = store.read(&numbered(owner, REVISION, number), at).await?;
    let Some(entry) = read.entries.first() else { return Ok(None) };
    let stored: Option<PolicyRevision<PolicyBundle>> = readable(entry);
    let is_torn = stored.is_none();
    let mut revision = stored.unwrap_or_else(|| torn(owner, number));
    let bundle = store.read(&numbered(owner, BUNDLE, number), Some(read.revision)).await?;
    revision.bundle = bundle.entries.first().and_then(readable);
    let digest = |entry: &Entry| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &entry.value);
    let digest = bundle.entries.first().map(|entry| hex(digest(entry).as_ref()));
    let is_asked_for = (&revision.owner, revision.number) == (owner, number);
    Ok(Some(Stored { revision, digest, is_asked_for, is_torn }))
}

/// The number of an owner's last revision, if there are any.
async fn last(
    store: &dyn StateStore,
    owner: &PolicyOwner,
    at: Option<Revision>,
) -> Result<Option<u64>, StoreError> {
    let prefix = prefixed(owner, REVISION);
    let entries = store.scan(&prefix, at).await?.entries;
    let number = |entry: &Entry| entry.key.strip_prefix(&prefix).and_then(|number| number.parse().ok());
    // What nobody can have written is there all the same.
    Ok(entries.last().map(|entry| number(entry).unwrap_or(0)))
}

/// Why the live revision is not to be trusted, if it isn't. The one that is live is always the last: one that others
/// follow is an old one that somebody put in the place of the live one.
async fn distrusted(
    store: &dyn StateStore,
    signatures: &Signatures,
    stored: &Stored,
    at: Option<Revision>,
) -> Result<Option<String>, Refusal> {
    let (owner, number) = (&stored.revision.owner, stored.revision.number);
    let later = store.read(&numbered(owner, REVISION, number.saturating_add(1)), at).await?;
    if !later.entries.is_empty() {
        return Ok(Some(format!(
            "it is not the last one, revision {} is: restore the state store from a backup, or apply a policy anew",
            number.saturating_add(1)
        )));
    }
    signatures.ready().await?;
    Ok(distrust(&stored.revision, signatures.standing(stored)))
}

/// All revisions of an owner that can be read, without their bundles, newest first.
///
/// # Errors
/// If the store fails.
pub async fn history(
    store: &dyn StateStore,
    owner: &PolicyOwner,
) -> Result<Vec<PolicyRevision<PolicyBundle>>, StoreError> {
    let entries = store.scan(&prefixed(owner, REVISION), None).await?.entries;
    Ok(entries.iter().rev().filter_map(readable).collect())
}

/// The prefix of an owner's keys of this kind.
fn prefixed(owner: &PolicyOwner, kind: &str) -> String {
    if owner.is_default() { kind.to_owned() } else { format!("{OWNED}{owner}/{kind}") }
}

pub(super) fn numbered(owner: &PolicyOwner, kind: &str, number: u64) -> String {
    format!("{}{number:020}", prefixed(owner, kind))
}

/// The key of an owner's live revision's number.
pub(super) fn live_key(owner: &PolicyOwner) -> String {
    if owner.is_default() { LIVE_POLICY.to_owned() } else { format!("{LIVE_POLICY}/{owner}") }
}

/// Whose live revision a key is of.
fn owner_of_live(key: &str) -> Result<PolicyOwner, StoreError> {
    let named = key.strip_prefix(LIVE_POLICY).unwrap_or_default();
    let owner = match named.strip_prefix('/') {
        None if named.is_empty() => Ok(PolicyOwner::default()),
        None => Err(format!("`{key}` is nobody's")),
        Some(owner) => owner.parse(),
    };
    let owner: PolicyOwner =
        owner.map_err(|e| StoreError::Invalid(format!("the stored `{key}` is not understood: {e}")))?;
    if live_key(&owner) == key {
        return Ok(owner);
    }
    Err(StoreError::Invalid(format!("the stored `{key}` is not understood: that tenant has another key")))
}
