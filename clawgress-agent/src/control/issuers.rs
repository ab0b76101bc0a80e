//! Issuers of tokens: who is trusted to say who agents are. Must never keep one whose tokens L7 couldn't judge.

use clawgress_identity::{IssuerRecord, KeySet, RootId, RootRecords, Roots};
use serde::Serialize;

use super::model::{Draft, Model, Refusal};
use super::providers::{FETCHED, Fetched};

/// Keys of issuers.
pub(super) const ISSUER: &str = "issuer/";

// === impl Model ===

impl Model {
    /// The issuer, or a refusal that says what to do.
    ///
    /// # Errors
    /// If there is none.
    pub fn issuer(&self, id: &RootId) -> Result<&IssuerRecord, Refusal> {
        self.issuers.get(id).ok_or_else(|| {
            Refusal::Missing(format!("there is no issuer `{id}`; see `clawgressctl issuer list`"))
        })
    }

    /// Everybody who is trusted, as L7 gets them.
    pub(super) fn roots(&self) -> RootRecords {
        let fetched = self.fetched.values().filter(|fetched| fetched.counts_in(self));
        RootRecords {
            issuers: self.issuers.values().cloned().collect(),
            fetched: fetched.map(|fetched| (fetched.id.clone(), fetched.document.clone())).collect(),
            authorities: self.authorities.values().cloned().collect(),
            trust_domains: self.trust_domains.values().cloned().collect(),
            bundles: self
                .bundles
                .values()
                .filter(|bundle| bundle.counts_in(self))
                .map(|bundle| (bundle.id.clone(), bundle.document.clone()))
                .collect(),
        }
    }
}

/// Most settings, bytes, and most ids of revoked tokens that audit says of an issuer; a hash stands for the rest.
const SETTINGS_BYTES_MAX: usize = 4096;
const REVOKED_SHOWN_MAX: usize = 16;

/// What audit says of an issuer: its settings, its keys by their thumbprints, and what is revoked. All that could
/// make tokens count that did not before changes something of it.
pub(super) fn described(issuer: &IssuerRecord) -> String {
    let mut short = issuer.clone();
    short.keys = String::new();
    short.revoked.clear();
    let settings = settings(&short);
    let keys = KeySet::parse(issuer.keys.as_bytes());
    let keys: Vec<String> = keys.map(|keys| keys.thumbprints().collect()).unwrap_or_default();
    format!("{settings} with keys {} and {}", keys.join(" "), revoked(issuer))
}

/// What audit says of settings.
pub(super) fn settings(settings: &impl Serialize) -> String {
    let settings = serde_json::to_string(settings).unwrap_or_default();
    let end = settings.floor_char_boundary(SETTINGS_BYTES_MAX);
    let shown = settings.get(..end).unwrap_or_default();
    let rest =
        if end < settings.len() { format!("… ({})", digest(settings.as_bytes())) } else { String::new() };
    format!("{shown}{rest}")
}

fn revoked(issuer: &IssuerRecord) -> String {
    let IssuerRecord { revoked, .. } = issuer;
    if revoked.is_empty() {
        return "no revoked tokens".to_owned();
    }
    let shown: Vec<String> =
        revoked.iter().take(REVOKED_SHOWN_MAX).map(|id| id.chars().take(64).collect()).collect();
    let all = revoked.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    format!("{} revoked tokens ({}): {}", revoked.len(), digest(all.as_bytes()), shown.join(" "))
}

/// The SHA-256 of `bytes`, in hexadecimal.
fn digest(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

// === impl Draft ===

impl Draft {
    /// Adds an issuer, or puts it in place of the one with its id. Returns that one.
    ///
    /// # Errors
    /// If its tokens couldn't be judged, or could be taken for another issuer's, tokens would count again that were
    /// revoked, or a bound is reached.
    pub fn set_issuer(&mut self, new: IssuerRecord) -> Result<Option<IssuerRecord>, Refusal> {
        if self.model.issuers.get(&new.id) == Some(&new) {
            return Ok(Some(new));
        }
        if let Some(before) = self.model.issuers.get(&new.id) {
            keeps_revoked(before, &new)?;
        }
        if self.model.fetched.get(&new.id).is_some_and(|fetched| !fetched.is_of(&new)) {
            self.withdraw_fetched(&new.id)?;
        }
        self.put(&format!("{ISSUER}{}", new.id), &new)?;
        let before = self.model.issuers.insert(new.id.clone(), new);
        self.governs = true;
        // All together, by what L7 builds of them.
        Roots::new(self.model.roots()).map_err(|error| Refusal::Invalid(error.to_string()))?;
        Ok(before)
    }

    /// Deletes an issuer: what its tokens proved ends. Returns it as it was.
    ///
    /// # Errors
    /// If there is none.
    pub fn delete_issuer(&mut self, id: &RootId) -> Result<IssuerRecord, Refusal> {
        let before = self.model.issuer(id)?.clone();
        self.model.issuers.remove(id);
        self.delete(format!("{ISSUER}{id}"));
        self.withdraw_fetched(id)?;
        self.governs = true;
        Ok(before)
    }
}

impl Draft {
    /// Puts fetched keys in force, if their issuer is still asked as it was for them.
    ///
    /// # Errors
    /// If they can't be stored.
    pub(super) fn put_fetched(&mut self, fetched: &Fetched) -> Result<(), Refusal> {
        if !fetched.counts_in(&self.model) {
            return Ok(());
        }
        self.put(&format!("{FETCHED}{}", fetched.id), fetched)?;
        self.model.fetched.insert(fetched.id.clone(), fetched.clone());
        self.governs = true;
        Ok(())
    }

    /// Takes an issuer's fetched keys out of force, if it has any.
    ///
    /// # Errors
    /// Never; the signature of its kind.
    pub(super) fn withdraw_fetched(&mut self, id: &RootId) -> Result<(), Refusal> {
        if self.model.fetched.remove(id).is_some() {
            self.delete(format!("{FETCHED}{id}"));
            self.governs = true;
        }
        Ok(())
    }
}

/// Refuses what would make revoked tokens count again: who renews the keys may not have that in mind.
fn keeps_revoked(before: &IssuerRecord, new: &IssuerRecord) -> Result<(), Refusal> {
    let id = &new.id;
    if new.issued_after_s < before.issued_after_s {
        return Err(Refusal::Invalid(format!(
            "`issued_after_s` of issuer `{id}` can't go back: tokens from before then would count again; \
             to start anew, delete the issuer first"
        )));
    }
    // Who draws that line anew answers for what was revoked one by one.
    let is_drawn_anew = new.issued_after_s > before.issued_after_s;
    let lost = before.revoked.difference(&new.revoked).count();
    if lost > 0 && !is_drawn_anew {
        return Err(Refusal::Invalid(format!(
            "{lost} revoked tokens of issuer `{id}` would count again: keep them in `revoked` (see \
             `clawgressctl issuer show {id} --output json`), or raise `issued_after_s` above when they were issued"
        )));
    }
    Ok(())
}
