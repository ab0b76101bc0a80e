//! Issuers of tokens: who is trusted to say who agents are. Must never keep one whose tokens L7 couldn't judge.

use clawgress_identity::{IssuerRecord, KeySet, RootId, RootRecords, Roots};

use super::model::{Draft, Model, Refusal};

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
        RootRecords { issuers: self.issuers.values().cloned().collect(), ..RootRecords::default() }
    }
}

/// What audit says of an issuer: all but its keys and revoked tokens, of which there may be many.
pub(super) fn described(issuer: &IssuerRecord) -> String {
    let mut short = issuer.clone();
    short.keys = String::new();
    short.revoked.clear();
    let settings = serde_json::to_string(&short).unwrap_or_default();
    let keys = KeySet::parse(issuer.keys.as_bytes()).map_or(0, |keys| keys.len());
    format!("{settings} with {keys} keys and {} revoked tokens", issuer.revoked.len())
}

// === impl Draft ===

impl Draft {
    /// Adds an issuer, or puts it in place of the one with its id. Returns that one.
    ///
    /// # Errors
    /// If its tokens couldn't be judged, or could be taken for another issuer's, or a bound is reached.
    pub fn set_issuer(&mut self, new: IssuerRecord) -> Result<Option<IssuerRecord>, Refusal> {
        if self.model.issuers.get(&new.id) == Some(&new) {
            return Ok(Some(new));
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
        self.governs = true;
        Ok(before)
    }
}
