//! Certificate authorities and trust domains: who is trusted to say by certificates who agents are. Must never keep
//! one whose chains L7 couldn't judge.

use std::collections::BTreeMap;

use clawgress_api::config::Config;
use clawgress_identity::{
    Authority, AuthorityRecord, BundleSource, ListDetails, Revocation, RootId, Roots, SpiffeBundle,
    TrustDomainRecord,
};
use serde::Serialize;

use super::issuers::settings;
use super::model::{Draft, Model, Refusal};

/// Keys of authorities, and of trust domains.
pub(super) const AUTHORITY: &str = "authority/";
pub(super) const TRUST_DOMAIN: &str = "trust-domain/";

/// Who is trusted by certificates.
pub(super) trait Root: Clone + Serialize + PartialEq {
    /// What it is called, and the beginning of its key.
    const WHAT: &'static str;
    const KEY: &'static str;

    fn id(&self) -> &RootId;
    fn all(model: &Model) -> &BTreeMap<RootId, Self>;
    fn all_mut(model: &mut Model) -> &mut BTreeMap<RootId, Self>;

    /// Refuses what would make something count again that was revoked.
    fn follows(&self, before: &Self) -> Result<(), Refusal>;

    /// Refuses what this node is not set up for.
    fn fits(&self, _: &Config) -> Result<(), Refusal> {
        Ok(())
    }

    /// Lets go of what came of where it is no longer taken from.
    fn let_go(_: &mut Draft, _: &RootId) {}

    /// What audit says of it: its settings, and hashes of what is trusted and revoked. All that could make
    /// certificates count that did not before changes something of it.
    fn described(&self) -> String;
}

// === impl AuthorityRecord ===

impl Root for AuthorityRecord {
    const WHAT: &'static str = "authority";
    const KEY: &'static str = AUTHORITY;

    fn id(&self) -> &RootId {
        &self.id
    }

    fn all(model: &Model) -> &BTreeMap<RootId, Self> {
        &model.authorities
    }

    fn all_mut(model: &mut Model) -> &mut BTreeMap<RootId, Self> {
        &mut model.authorities
    }

    fn follows(&self, before: &Self) -> Result<(), Refusal> {
        let id = &self.id;
        if depth(self.revocation) < depth(before.revocation) {
            return Err(Refusal::Invalid(format!(
                "`revocation` of authority `{id}` can't be less than before: what its lists revoke would count again; \
                 to start anew, delete the authority first"
            )));
        }
        let (Ok(new), Ok(old)) = (Authority::new(self.clone()), Authority::new(before.clone())) else {
            return Ok(());
        };
        let (new, old) = (updates(&new), updates(&old));
        for (issuer, (first, last)) in old {
            // Without a list of its authority no certificate counts: nothing comes back by that.
            let is_older = new.get(&issuer).is_some_and(|(f, l)| *f < first || *l < last);
            if is_older {
                return Err(Refusal::Invalid(format!(
                    "a revocation list of authority `{id}` is older than that in force: fetch the latest one, or \
                     delete the authority first to start anew"
                )));
            }
        }
        Ok(())
    }

    fn described(&self) -> String {
        let bare =
            AuthorityRecord { certificates: String::new(), revocation_lists: String::new(), ..self.clone() };
        let settings = settings(&bare);
        let Ok(authority) = Authority::new(self.clone()) else { return settings };
        let list = |list: &ListDetails| format!("{} of {}", list.hash, list.this_update_s);
        let lists: Vec<String> = authority.lists().map(list).collect();
        let lists = if lists.is_empty() { "none".to_owned() } else { lists.join(" ") };
        let certificates = authority.thumbprints().join(" ");
        format!("{settings} with certificates {certificates} and revocation lists {lists}")
    }
}

/// What audit says of a bundle.
pub(super) fn trusted(bundle: &SpiffeBundle) -> String {
    let certificates = bundle.thumbprints().join(" ");
    let keys: Vec<String> = bundle.keys().thumbprints().collect();
    format!("certificates {certificates} and keys {}", keys.join(" "))
}

/// How much is revoked by lists.
fn depth(revocation: Revocation) -> u8 {
    match revocation {
        Revocation::Off => 0,
        Revocation::Leaf => 1,
        Revocation::Chain => 2,
    }
}

/// When the oldest and the newest list of each issuer was made: an issuer may have several, each for a part.
fn updates(authority: &Authority) -> BTreeMap<String, (i64, i64)> {
    let mut found = BTreeMap::new();
    for ListDetails { issuer, this_update_s: at, .. } in authority.lists() {
        let (first, last) = found.entry(issuer.clone()).or_insert((*at, *at));
        *first = (*first).min(*at);
        *last = (*last).max(*at);
    }
    found
}

// === impl TrustDomainRecord ===

impl Root for TrustDomainRecord {
    const WHAT: &'static str = "trust domain";
    const KEY: &'static str = TRUST_DOMAIN;

    fn id(&self) -> &RootId {
        &self.id
    }

    fn all(model: &Model) -> &BTreeMap<RootId, Self> {
        &model.trust_domains
    }

    fn all_mut(model: &mut Model) -> &mut BTreeMap<RootId, Self> {
        &mut model.trust_domains
    }

    fn follows(&self, _: &Self) -> Result<(), Refusal> {
        // Nothing is revoked one by one: what is trusted is what the bundle has now.
        Ok(())
    }

    fn fits(&self, config: &Config) -> Result<(), Refusal> {
        if matches!(self.source, Some(BundleSource::WorkloadApi(_))) && config.spiffe.workload_api.is_none() {
            return Err(Refusal::Unsupported(format!(
                "the bundle of trust domain `{}` is to come by the Workload API, and this node knows of none: say where it \
                 is by `workload_api` of [spiffe] in its configuration, and restart control",
                self.id
            )));
        }
        Ok(())
    }

    fn let_go(draft: &mut Draft, id: &RootId) {
        draft.let_go_of_bundle(id);
    }

    fn described(&self) -> String {
        let bare = TrustDomainRecord { bundle: String::new(), ..self.clone() };
        let settings = settings(&bare);
        let trusted =
            SpiffeBundle::parse(self.bundle.as_bytes()).map_or("nothing".to_owned(), |b| trusted(&b));
        let of = if self.source.is_some() { "the first bundle of its endpoint" } else { "with" };
        if self.source.is_some() && self.bundle.is_empty() {
            settings
        } else {
            format!("{settings} {of} {trusted}")
        }
    }
}

// === impl Model ===

impl Model {
    /// Who is trusted by that id, or a refusal that says what to do.
    ///
    /// # Errors
    /// If there is nobody.
    pub(super) fn root<R: Root>(&self, id: &RootId) -> Result<&R, Refusal> {
        R::all(self).get(id).ok_or_else(|| {
            let (what, verb) = (R::WHAT, R::WHAT.replace(' ', "-"));
            Refusal::Missing(format!("there is no {what} `{id}`; see `clawgressctl {verb} list`"))
        })
    }
}

// === impl Draft ===

impl Draft {
    /// Adds who is trusted, or puts it in place of who has its id. Returns that one.
    ///
    /// # Errors
    /// If its certificates couldn't be judged, some would count again that were revoked, or a bound is reached.
    pub(super) fn set_root<R: Root>(&mut self, new: R) -> Result<Option<R>, Refusal> {
        let before = R::all(&self.model).get(new.id()).cloned();
        if before.as_ref() == Some(&new) {
            return Ok(before);
        }
        if let Some(before) = &before {
            new.follows(before)?;
        }
        self.put(&format!("{}{}", R::KEY, new.id()), &new)?;
        let id = new.id().clone();
        R::all_mut(&mut self.model).insert(id.clone(), new);
        R::let_go(self, &id);
        self.governs = true;
        // All together, by what L7 builds of them.
        Roots::new(self.model.roots()).map_err(|error| Refusal::Invalid(error.to_string()))?;
        Ok(before)
    }

    /// Deletes who is trusted: what was proved by it ends. Returns it as it was.
    ///
    /// # Errors
    /// If there is nobody.
    pub(super) fn delete_root<R: Root>(&mut self, id: &RootId) -> Result<R, Refusal> {
        let before: R = self.model.root::<R>(id)?.clone();
        R::all_mut(&mut self.model).remove(id);
        R::let_go(self, id);
        self.delete(format!("{}{id}", R::KEY));
        self.governs = true;
        Ok(before)
    }
}
