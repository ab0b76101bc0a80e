//! Policy revisions: made, signed and stored, one after the other; read back with how they stand.

use std::sync::Arc;

use clawgress_api::{NewPolicy, PolicyRevision, PolicySurroundings, PolicyTexts, hex};
use clawgress_identity::PolicyOwner;
use clawgress_policy::lint::Acceptance;
use clawgress_policy::study::difference::TextDifference;
use clawgress_policy::{GeoNames, PolicyBundle, Surroundings};

use super::geo::GeoInForce;
use super::govern::{Generation, Governor, load, zone};
use super::model::{self, Draft, Model, Refusal};
use super::prepare::Manner;

/// Revisions adopted by one change: two writes of a transaction for each would be the most.
const ADOPTED_AT_ONCE: usize = 1024;
/// Times a revision is signed again because another node's came first.
const RACES_MAX: usize = 5;

/// Whose a revision is, behind its number; nothing of the tenant's of whom nothing needs saying.
pub(super) fn of(owner: &PolicyOwner) -> String {
    if owner.is_default() { String::new() } else { format!(" of {}", owner.told()) }
}

/// What is denied where an owner's policy does not count.
pub(super) fn denied(owner: &PolicyOwner, model: &Model) -> String {
    let is_all = owner.tenant().is_none() || model.policies.len() == 1;
    if is_all { "everything".to_owned() } else { format!("everything of {}", owner.told()) }
}

/// Refuses what is to follow another revision than the one that is live: whoever wrote it has not seen that one.
fn follows(parent: Option<u64>, owner: &PolicyOwner, live: u64) -> Result<(), Refusal> {
    let Some(parent) = parent.filter(|parent| *parent != live) else { return Ok(()) };
    let named = |number: u64| {
        if number == 0 { "no revision".to_owned() } else { format!("revision {number}") }
    };
    let of = of(owner);
    Err(Refusal::Parent(format!(
        "{}{of} is live, and this was to follow {}; nothing was changed: see what came in between (`clawgressctl policy history`, `policy diff {parent} {live}`), and apply it with `--parent {live}` if it still holds",
        named(live),
        named(parent)
    )))
}

/// Whether a policy of this owner's only takes away, by its text, from what the former one gives.
pub(super) fn takes_away(live: &Generation, owner: &PolicyOwner, next: &PolicyBundle) -> bool {
    match live.model.policies.get(owner) {
        // A platform without one restricts nothing.
        None => owner.tenant().is_none(),
        Some(former) => {
            let none = PolicyBundle::default();
            TextDifference::between(former.bundle.as_ref().unwrap_or(&none), next).only_takes_away()
        }
    }
}

// === impl Governor ===

impl Governor {
    /// Makes a policy live as the next revision, signed, with what of its findings was accepted.
    ///
    /// # Errors
    /// If it is refused; then nothing was altered.
    pub(super) async fn revise(
        &self,
        new: NewPolicy<PolicyBundle>,
        acceptance: Acceptance,
        by: &str,
    ) -> Result<(PolicyRevision<PolicyBundle>, Arc<Generation>), Refusal> {
        // One after the other: each names the one before it, and is signed with that.
        let _revising = self.revising.lock().await;
        let bundle = serde_json::to_vec(&new.bundle).map_err(|e| Refusal::Invalid(e.to_string()))?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bundle);
        let author = if new.author.is_empty() { by.to_owned() } else { new.author };
        model::check_text("message", &new.message)?;
        model::check_text("author", &author)?;
        let mut revision = PolicyRevision {
            owner: new.owner,
            number: 0,
            parent: 0,
            time: self.clock.now(),
            author,
            message: new.message,
            hash: hex(digest.as_ref()),
            accepted: acceptance.by,
            signature: None,
            bundle: Some(new.bundle),
            generation: None,
            standing: None,
        };
        let detail = |after: &PolicyRevision<PolicyBundle>| {
            let PolicyRevision { owner, number, parent, hash, message, .. } = after;
            let of = of(owner);
            let accepted = match acceptance.findings.as_slice() {
                [] => String::new(),
                findings => format!("; accepted that it does nothing: {}", findings.join(", ")),
            };
            format!(
                "policy revision {number}{of} ({hash}) applied by {by} after revision {parent}: {message}{accepted}"
            )
        };
        for _ in 0..RACES_MAX {
            let seen = self.live().model.revisions();
            follows(new.parent, &revision.owner, seen.get(&revision.owner).copied().unwrap_or(0))?;
            let text = revision.bundle.as_ref().map_or("", |bundle| bundle.text.as_str());
            let geo = self.geo_with(&revision.owner, text).await?;
            revision.parent = seen.get(&revision.owner).copied().unwrap_or(0);
            revision.number = revision.parent + 1;
            revision.signature = Some(self.signatures.sign(&revision).await?);
            let manner = self.manner(&revision, &geo);
            let edit = |draft: &mut Draft| draft.apply_policy(revision.clone(), (&geo, &seen));
            match self.change_by(manner, detail, edit).await {
                Err(Refusal::Overtaken) => {}
                other => return other,
            }
        }
        Err(Refusal::Overtaken)
    }

    /// How a revision comes into force: one that only takes away waits for no plane.
    fn manner(&self, revision: &PolicyRevision<PolicyBundle>, geo: &Arc<GeoInForce>) -> Manner {
        let (live, none) = (self.live(), PolicyBundle::default());
        let takes_away = takes_away(&live, &revision.owner, revision.bundle.as_ref().unwrap_or(&none));
        // Other data may mean more to what stays as it is written.
        if takes_away && **geo == *live.model.geo { Manner::Forced } else { Manner::Prepared }
    }

    /// What this role's start does about revisions: signs those of before signatures, and has both planes deny if the
    /// live one is not to be trusted.
    ///
    /// # Errors
    /// If the store or the keys role fails.
    pub(super) async fn settle_revisions(&self) -> Result<(), Refusal> {
        if self.live().model.policies.is_empty() {
            return Ok(());
        }
        self.adopt().await?;
        if !self.live().model.distrust.is_empty() {
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
        // Of the time before signatures, when there was one policy.
        let owner = PolicyOwner::default();
        let all = model::history(self.store.as_ref(), &owner).await?;
        let unsigned: Vec<u64> = all.iter().filter(|r| r.signature.is_none()).map(|r| r.number).collect();
        for numbers in unsigned.chunks(ADOPTED_AT_ONCE) {
            let mut adopted = Vec::new();
            for number in numbers {
                let Some(stored) = model::revision(self.store.as_ref(), &owner, *number, None).await? else {
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

    /// Has both planes deny, if a stored revision is not one to trust: they may run what it was before.
    ///
    /// # Errors
    /// If the store fails.
    async fn close_if_distrusted(&self) -> Result<(), Refusal> {
        let live = self.live();
        if live.model.distrust.is_empty() {
            return Ok(());
        }
        let told = live.model.distrust.iter().map(|(owner, why)| {
            let (number, what) = (live.model.revision_of(owner), denied(owner, &live.model));
            format!("policy revision {number}{} is not in force, {what} is denied: {why}", of(owner))
        });
        let detail = told.collect::<Vec<_>>().join("; ");
        self.change_by(Manner::Forced, |()| detail.clone(), Draft::close).await.map(drop)
    }

    /// What policy texts would rest on if they were live now.
    ///
    /// # Errors
    /// If a file of geo data that they need can't be used.
    pub(super) async fn surroundings(
        &self,
        of: &PolicyTexts,
    ) -> Result<PolicySurroundings<Surroundings>, Refusal> {
        let named = of.texts.iter().fold(GeoNames::default(), |names, text| names.and(GeoNames::of(text)));
        let named = self.geo_named(named).await?.geo.clone();
        let (zone, live) = (zone(&self.window())?, self.live());
        let in_force = &live.model.geo.geo.only(&live.in_force.names_for(&of.owner));
        let asns = named.asns.iter().flatten();
        let countries = named.countries.iter().flatten();
        let is_in_force =
            asns.clone().all(|(n, p)| in_force.asns.as_ref().and_then(|all| all.get(n)) == Some(p))
                && countries
                    .clone()
                    .all(|(c, p)| in_force.countries.as_ref().and_then(|all| all.get(c)) == Some(p));
        Ok(PolicySurroundings {
            generation: live.model.generation,
            geo: live.in_force.geo_edition(&of.owner),
            is_in_force,
            surroundings: Surroundings { geo: named, zone },
        })
    }

    /// One revision of an owner, and how it stands.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) async fn revision(
        &self,
        owner: &PolicyOwner,
        number: u64,
    ) -> Result<Option<PolicyRevision<PolicyBundle>>, Refusal> {
        let Some(stored) = model::revision(self.store.as_ref(), owner, number, None).await? else {
            return Ok(None);
        };
        // Without the signer it stands as one of which nobody knows.
        let _ = self.signatures.signer().await;
        let standing = Some(self.signatures.standing(&stored));
        Ok(Some(PolicyRevision { standing, ..stored.revision }))
    }

    /// All revisions of an owner that can be read, without their bundles, newest first, and how they stand.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) async fn history(
        &self,
        owner: &PolicyOwner,
    ) -> Result<Vec<PolicyRevision<PolicyBundle>>, Refusal> {
        let mut history = model::history(self.store.as_ref(), owner).await?;
        let _ = self.signatures.signer().await;
        for revision in &mut history {
            // One after the other: a bundle may have megabytes.
            let stored = model::revision(self.store.as_ref(), owner, revision.number, None).await?;
            revision.standing = stored.map(|stored| self.signatures.standing(&stored));
        }
        Ok(history)
    }
}
