//! Policy revisions: made, signed and stored, one after the other; read back with how they stand.

use std::sync::Arc;

use clawgress_api::{NewPolicy, PolicyRevision, PolicySurroundings, hex};
use clawgress_policy::{PolicyBundle, Surroundings};

use super::govern::{Generation, Governor, load, zone};
use super::model::{self, Draft, Refusal};

/// Revisions adopted by one change: two writes of a transaction for each would be the most.
const ADOPTED_AT_ONCE: usize = 1024;
/// Times a revision is signed again because another node's came first.
const RACES_MAX: usize = 5;

// === impl Governor ===

impl Governor {
    /// Makes a policy live as the next revision, signed.
    ///
    /// # Errors
    /// If it is refused; then nothing was altered.
    pub(super) async fn revise(
        &self,
        new: NewPolicy<PolicyBundle>,
        by: &str,
    ) -> Result<(PolicyRevision<PolicyBundle>, Arc<Generation>), Refusal> {
        // One after the other: each names the one before it, and is signed with that.
        let _revising = self.revising.lock().await;
        let bundle = serde_json::to_vec(&new.bundle).map_err(|e| Refusal::Invalid(e.to_string()))?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bundle);
        let author = if new.author.is_empty() { by.to_owned() } else { new.author };
        model::check_text("message", &new.message)?;
        model::check_text("author", &author)?;
        let geo = self.geo_of(&new.bundle.text).await?;
        let mut revision = PolicyRevision {
            number: 0,
            parent: 0,
            time: self.clock.now(),
            author,
            message: new.message,
            hash: hex(digest.as_ref()),
            signature: None,
            bundle: Some(new.bundle),
            generation: None,
            standing: None,
        };
        let detail = |after: &PolicyRevision<PolicyBundle>| {
            let PolicyRevision { number, parent, hash, message, .. } = after;
            format!("policy revision {number} ({hash}) applied by {by} after revision {parent}: {message}")
        };
        for _ in 0..RACES_MAX {
            revision.parent = self.live().model.policy.as_ref().map_or(0, |p| p.number);
            revision.number = revision.parent + 1;
            revision.signature = Some(self.signatures.sign(&revision).await?);
            match self.change(detail, |draft| draft.apply_policy(revision.clone(), &geo)).await {
                Err(Refusal::Overtaken) => {}
                other => return other,
            }
        }
        Err(Refusal::Overtaken)
    }

    /// What this role's start does about revisions: signs those of before signatures, and has both planes deny if the
    /// live one is not to be trusted.
    ///
    /// # Errors
    /// If the store or the keys role fails.
    pub(super) async fn settle_revisions(&self) -> Result<(), Refusal> {
        if self.live().model.policy.is_none() {
            return Ok(());
        }
        self.adopt().await?;
        if self.live().model.distrust.is_some() {
            let loaded = load(self.store.as_ref(), &self.signatures).await?;
            self.live.send_replace(Arc::new(loaded));
        }
        self.close_if_distrusted().await
    }

    /// Signs the stored revisions that nobody signed, if they are of the time before signatures.
    ///
    /// # Errors
    /// If the store or the keys role fails.
    async fn adopt(&self) -> Result<(), Refusal> {
        let all = model::history(self.store.as_ref()).await?;
        let unsigned: Vec<u64> = all.iter().filter(|r| r.signature.is_none()).map(|r| r.number).collect();
        for numbers in unsigned.chunks(ADOPTED_AT_ONCE) {
            let mut adopted = Vec::new();
            for number in numbers {
                let Some(stored) = model::revision(self.store.as_ref(), *number, None).await? else {
                    continue;
                };
                match self.signatures.adopt(&stored).await? {
                    Some(signature) => {
                        let signature = Some(signature);
                        adopted.push(PolicyRevision { signature, bundle: None, ..stored.revision });
                    }
                    None => tracing::error!(revision = number, "nobody signed a stored policy revision"),
                }
            }
            let Some(first) = adopted.iter().map(|r| r.number).min() else { continue };
            let last = adopted.iter().map(|r| r.number).max().unwrap_or(first);
            let count = adopted.len();
            let detail = format!(
                "{count} policy revisions of before revisions were signed, {first} to {last}, signed as they were found in the store"
            );
            let edit =
                |draft: &mut Draft| adopted.iter().try_for_each(|revision| draft.put_revision(revision));
            self.change(|()| detail.clone(), edit).await?;
        }
        Ok(())
    }

    /// Has both planes deny, if the stored revision is not one to trust: they may run what it was before.
    ///
    /// # Errors
    /// If the store fails.
    async fn close_if_distrusted(&self) -> Result<(), Refusal> {
        let live = self.live();
        let (Some(policy), Some(why)) = (&live.model.policy, &live.model.distrust) else { return Ok(()) };
        let detail =
            format!("policy revision {} is not in force, everything is denied: {why}", policy.number);
        self.change(|()| detail.clone(), Draft::close).await.map(drop)
    }

    /// What policy text would rest on if it were live now.
    ///
    /// # Errors
    /// If a file of geo data that it needs can't be used.
    pub(super) async fn surroundings(&self, text: &str) -> Result<PolicySurroundings<Surroundings>, Refusal> {
        let named = self.geo_of(text).await?.geo.clone();
        let (zone, live) = (zone(&self.window())?, self.live());
        let in_force = &live.model.geo.geo;
        let asns = named.asns.iter().flatten();
        let countries = named.countries.iter().flatten();
        let is_in_force =
            asns.clone().all(|(n, p)| in_force.asns.as_ref().and_then(|all| all.get(n)) == Some(p))
                && countries
                    .clone()
                    .all(|(c, p)| in_force.countries.as_ref().and_then(|all| all.get(c)) == Some(p));
        Ok(PolicySurroundings {
            generation: live.model.generation,
            geo: in_force.edition(),
            is_in_force,
            surroundings: Surroundings { geo: named, zone },
        })
    }

    /// One revision, and how it stands.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) async fn revision(
        &self,
        number: u64,
    ) -> Result<Option<PolicyRevision<PolicyBundle>>, Refusal> {
        let Some(stored) = model::revision(self.store.as_ref(), number, None).await? else { return Ok(None) };
        // Without the signer it stands as one of which nobody knows.
        let _ = self.signatures.signer().await;
        let standing = Some(self.signatures.standing(&stored));
        Ok(Some(PolicyRevision { standing, ..stored.revision }))
    }

    /// All revisions that can be read, without their bundles, newest first, and how they stand.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) async fn history(&self) -> Result<Vec<PolicyRevision<PolicyBundle>>, Refusal> {
        let mut history = model::history(self.store.as_ref()).await?;
        let _ = self.signatures.signer().await;
        for revision in &mut history {
            // One after the other: a bundle may have megabytes.
            let stored = model::revision(self.store.as_ref(), revision.number, None).await?;
            revision.standing = stored.map(|stored| self.signatures.standing(&stored));
        }
        Ok(history)
    }
}
