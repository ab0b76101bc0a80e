//! The policies of a generation, parsed and put together. Must never have a policy in force that is not whole: a tenant's
//! that can't be used leaves that tenant with nothing, the platform's leaves everybody with nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use clawgress_api::PolicyRevision;
use clawgress_identity::PolicyOwner;
use clawgress_policy::{
    Geo, GeoNames, Policies, PolicyBundle, PolicyErrors, PolicyInForceRef, PolicySet, Surroundings, Zone,
};

use super::geo::GeoInForce;
use super::govern::zone;
use super::model::{Model, Refusal};

type Revision = Arc<PolicyRevision<PolicyBundle>>;

/// All policies that count.
#[derive(Clone, Debug, Default)]
pub(super) struct InForce {
    parsed: BTreeMap<PolicyOwner, Parsed>,
    /// Those that don't count, and why.
    broken: BTreeMap<PolicyOwner, (Revision, String)>,
    /// Those that count, together; `None` denies everything.
    policies: Option<Policies>,
}

/// A policy as it was parsed, and what from.
#[derive(Clone, Debug)]
struct Parsed {
    policy: Revision,
    geo: Arc<GeoInForce>,
    names: GeoNames,
    surroundings: Arc<Surroundings>,
    set: PolicySet,
}

/// What becomes of a policy that can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Nothing is changed.
    Refuse,
    /// It doesn't count: it was stored by another version.
    Suspend,
}

// === impl InForce ===

impl InForce {
    /// The model's policies. What `former` has parsed is taken from it where nothing of it changed: a million prefixes
    /// take a second. So is what it could not use: who changes something else is not held up by it.
    pub(super) fn of(model: &Model, former: &InForce, unusable: Unusable) -> Result<InForce, Refusal> {
        let zone = zone(&model.window)?;
        let mut this = InForce::default();
        for (owner, policy) in &model.policies {
            if let Some(why) = model.distrust.get(owner) {
                this.broken.insert(owner.clone(), (Arc::clone(policy), why.clone()));
                continue;
            }
            if let Some(known) = former.broken.get(owner).filter(|known| Arc::ptr_eq(&known.0, policy)) {
                this.broken.insert(owner.clone(), known.clone());
                continue;
            }
            match Parsed::of(policy, model, &zone, former.parsed.get(owner)) {
                Ok(parsed) => drop(this.parsed.insert(owner.clone(), parsed)),
                Err(refusal) if unusable == Unusable::Suspend => {
                    let why = suspended(&refusal);
                    tracing::error!(%owner, why, "a stored policy is refused");
                    this.broken.insert(owner.clone(), (Arc::clone(policy), why));
                }
                Err(refusal) => return Err(refusal),
            }
        }
        this.together()?;
        Ok(this)
    }

    /// None of the model's policies, for this reason.
    pub(super) fn suspended(model: &Model, why: &str) -> InForce {
        let broken = model.policies.iter();
        let broken = broken.map(|(owner, policy)| (owner.clone(), (Arc::clone(policy), why.to_owned())));
        InForce { broken: broken.collect(), ..InForce::default() }
    }

    fn together(&mut self) -> Result<(), PolicyErrors> {
        // What the platform's would have taken away, nobody knows.
        if self.broken.contains_key(&PolicyOwner::Platform) || self.parsed.is_empty() {
            self.policies = None;
            return Ok(());
        }
        let (mut platform, mut tenants) = (None, BTreeMap::new());
        for (owner, parsed) in &self.parsed {
            match owner.tenant() {
                None => platform = Some(parsed.set.clone()),
                Some(tenant) => drop(tenants.insert(tenant.to_owned(), parsed.set.clone())),
            }
        }
        self.policies = Some(Policies::new(platform, tenants)?);
        Ok(())
    }

    /// The same with another policy of this owner's, that is not stored.
    pub(super) fn with(&self, owner: &PolicyOwner, set: &PolicySet) -> Result<Policies, PolicyErrors> {
        let of = |owner: &PolicyOwner| self.parsed.get(owner).map(|parsed| parsed.set.clone());
        let mut platform = of(&PolicyOwner::Platform);
        let mut tenants: BTreeMap<String, PolicySet> =
            self.parsed.iter().filter_map(|(o, p)| Some((o.tenant()?.to_owned(), p.set.clone()))).collect();
        match owner.tenant() {
            None => platform = Some(set.clone()),
            Some(tenant) => drop(tenants.insert(tenant.to_owned(), set.clone())),
        }
        Policies::new(platform, tenants)
    }

    /// What decides; `None` denies everything.
    pub(super) fn policies(&self) -> Option<&Policies> {
        self.policies.as_ref()
    }

    /// Policies that don't count, and why.
    pub(super) fn broken(&self) -> BTreeMap<PolicyOwner, String> {
        self.broken.iter().map(|(owner, (_, why))| (owner.clone(), why.clone())).collect()
    }

    /// What L7 is to decide by, of one owner.
    pub(super) fn told(&self, owner: &PolicyOwner) -> Option<PolicyInForceRef<'_>> {
        self.policies.as_ref()?;
        let parsed = self.parsed.get(owner)?;
        let bundle = parsed.policy.bundle.as_ref()?;
        let surroundings = parsed.surroundings.as_ref();
        Some(PolicyInForceRef { text: &bundle.text, sets: &bundle.sets, surroundings })
    }

    /// The same of the tenants other than `default`, by their names.
    pub(super) fn told_of_tenants(&self) -> BTreeMap<String, PolicyInForceRef<'_>> {
        let others = self.parsed.keys().filter(|owner| !owner.is_default());
        others.filter_map(|owner| Some((owner.tenant()?.to_owned(), self.told(owner)?))).collect()
    }

    /// Numbers of the revisions that count.
    pub(super) fn revisions(&self) -> BTreeMap<PolicyOwner, u64> {
        if self.policies.is_none() {
            return BTreeMap::new();
        }
        self.parsed.iter().map(|(owner, parsed)| (owner.clone(), parsed.policy.number)).collect()
    }

    /// Names the geo data that the decisions for an owner's agents rest on, as records do.
    pub(super) fn geo_edition(&self, owner: &PolicyOwner) -> Option<String> {
        let edition = |owner| self.parsed.get(owner).and_then(|parsed| parsed.surroundings.geo.edition());
        let own = owner.tenant().and_then(|_| edition(owner));
        Geo::joint_edition(own, edition(&PolicyOwner::Platform))
    }

    /// ASNs and countries that the decisions for an owner's agents may ask for: its own, and the platform's.
    pub(super) fn names_for(&self, owner: &PolicyOwner) -> GeoNames {
        let owners = [Some(&PolicyOwner::Platform), Some(owner).filter(|o| o.tenant().is_some())];
        let parsed = owners.into_iter().flatten().filter_map(|owner| self.parsed.get(owner));
        parsed.fold(GeoNames::default(), |names, parsed| names.and(parsed.names.clone()))
    }
}

// === impl Parsed ===

impl Parsed {
    fn of(policy: &Revision, model: &Model, zone: &Zone, former: Option<&Parsed>) -> Result<Parsed, Refusal> {
        let former = former.filter(|f| Arc::ptr_eq(&f.policy, policy) && f.surroundings.zone == *zone);
        if let Some(former) = former.filter(|f| Arc::ptr_eq(&f.geo, &model.geo)) {
            return Ok(former.clone());
        }
        let unread = || Refusal::Invalid("its text can't be read".into());
        let bundle = policy.bundle.as_ref().ok_or_else(unread)?;
        let names = former.map_or_else(|| GeoNames::of(&bundle.text), |former| former.names.clone());
        let surroundings = Surroundings { geo: model.geo.geo.only(&names), zone: zone.clone() };
        let geo = Arc::clone(&model.geo);
        // Other data, and the same of what this one names.
        if let Some(former) = former.filter(|f| *f.surroundings == surroundings) {
            return Ok(Parsed { geo, ..former.clone() });
        }
        let set = PolicySet::parse_for(&policy.owner, &bundle.text, &bundle.sets, &surroundings)?;
        let (policy, surroundings) = (Arc::clone(policy), Arc::new(surroundings));
        Ok(Parsed { policy, geo, names, surroundings, set })
    }
}

/// Why a stored policy doesn't count, and what to do.
pub(super) fn suspended(refusal: &Refusal) -> String {
    let first = match refusal {
        Refusal::Policy(errors) => errors.problems.first(),
        _ => None,
    };
    let first = first.map(|problem| format!("; the first: {}", problem.message)).unwrap_or_default();
    format!("{refusal}{first}; apply a policy that this version accepts")
}
