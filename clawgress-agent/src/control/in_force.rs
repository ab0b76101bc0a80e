//! The policies of a generation, parsed and put together. Must never have a policy in force that is not whole: a tenant's
//! that can't be used leaves that tenant with nothing, the platform's leaves everybody with nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use clawgress_api::{MESSAGE_BYTES_MAX, PolicyRevision};
use clawgress_identity::{Agent, PolicyOwner};
use clawgress_policy::{
    Alone, Geo, GeoNames, Policies, PolicyBundle, PolicyErrors, PolicyInForceRef, PolicySet, Share,
    Surroundings, Zone, kernel,
};

use super::geo::GeoInForce;
use super::govern::zone;
use super::model::{Model, Refusal};

/// Largest document of a generation: what a plane accepts, less its envelope.
const DOCUMENT_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 1024;
/// What a policy that is applied may bring the documents of a generation to, bytes.
pub(super) const APPLIED_BYTES_MAX: usize = DOCUMENT_BYTES_MAX - DOCUMENT_ROOM_BYTES;
/// What is left of it where a policy is applied: a tenant whose texts fill a generation must not keep keys from being
/// revoked, and agents from being disabled, which takes some bytes for each of ten thousand.
const DOCUMENT_ROOM_BYTES: usize = 16 << 20;

type Revision = Arc<PolicyRevision<PolicyBundle>>;

/// All policies that count.
#[derive(Clone, Debug, Default)]
pub(super) struct InForce {
    parsed: BTreeMap<PolicyOwner, Parsed>,
    /// Those that don't count, and why.
    broken: BTreeMap<PolicyOwner, Broken>,
    /// Those that count, together; `None` denies everything.
    policies: Option<Policies>,
}

/// A policy that doesn't count.
#[derive(Clone, Debug)]
struct Broken {
    policy: Revision,
    why: String,
    /// As it was parsed, if all it lacks is room in the kernel's tables: then it counts again when there is some.
    parsed: Option<Parsed>,
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
                let broken = Broken { policy: Arc::clone(policy), why: why.clone(), parsed: None };
                this.broken.insert(owner.clone(), broken);
                continue;
            }
            let known = former.broken.get(owner).filter(|known| Arc::ptr_eq(&known.policy, policy));
            let lacks_room = known.and_then(|known| known.parsed.as_ref());
            // What lacked room is tried again where it can be taken from force again.
            if let Some(known) = known
                && (lacks_room.is_none() || unusable == Unusable::Refuse)
            {
                this.broken.insert(owner.clone(), known.clone());
                continue;
            }
            match Parsed::of(policy, model, &zone, lacks_room.or_else(|| former.parsed.get(owner))) {
                Ok(parsed) => drop(this.parsed.insert(owner.clone(), parsed)),
                Err(refusal) if unusable == Unusable::Suspend => {
                    let why = suspended(&refusal);
                    tracing::error!(%owner, why, "a stored policy is refused");
                    let broken = Broken { policy: Arc::clone(policy), why, parsed: None };
                    this.broken.insert(owner.clone(), broken);
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
        let broken = broken.map(|(owner, policy)| {
            let (policy, why) = (Arc::clone(policy), why.to_owned());
            (owner.clone(), Broken { policy, why, parsed: None })
        });
        InForce { broken: broken.collect(), ..InForce::default() }
    }

    /// Takes the tenants' policies from force that have no kernel tables of their own at this moment, so that they take from
    /// nobody else; and where there are still none, with `is_enough` asked, as few as it takes of those that take most of what
    /// all share. Whether there are any.
    pub(super) fn suspend(
        &mut self,
        agents: &[Agent],
        now_ms: i64,
        is_enough: impl Fn(&InForce) -> bool,
    ) -> Result<bool, PolicyErrors> {
        let Some(policies) = &self.policies else { return Ok(false) };
        let Alone { failing, shares } = policies.at(now_ms).alone(agents);
        let failing =
            failing.into_iter().map(|(tenant, errors)| (tenant, suspended(&Refusal::Policy(errors))));
        let is_any = self.take_from_force(failing.collect())?;
        if is_any && is_enough(self) {
            return Ok(true);
        }
        Ok(self.suspend_largest(agents, now_ms, &shares)? || is_any)
    }

    fn suspend_largest(
        &mut self,
        agents: &[Agent],
        now_ms: i64,
        shares: &[Share],
    ) -> Result<bool, PolicyErrors> {
        let Some(policies) = &self.policies else { return Ok(false) };
        let policies = policies.at(now_ms);
        let fits = |count: usize| {
            let without: Vec<&str> = shares.iter().take(count).map(|share| share.tenant.as_str()).collect();
            kernel::compile_all(&policies.without(&without), agents).is_ok()
        };
        // The least number that is enough: between one that isn't, and one that is. The last is nobody's burden.
        let (mut fails, mut enough) = (0, shares.len().saturating_sub(1));
        if enough == 0 || !fits(enough) {
            return Ok(false);
        }
        while enough - fails > 1 {
            let middle = usize::midpoint(fails, enough);
            if fits(middle) { enough = middle } else { fails = middle }
        }
        let told = |share: &Share| {
            let why = format!(
                "the kernel's tables can't hold all tenants' policies at this moment, and {}, the most; it counts again when there is room: narrow it, or that of others",
                share.told()
            );
            (share.tenant.clone(), why)
        };
        self.take_from_force(shares.iter().take(enough).map(told).collect())
    }

    fn take_from_force(&mut self, tenants: Vec<(String, String)>) -> Result<bool, PolicyErrors> {
        let is_any = !tenants.is_empty();
        for (tenant, why) in tenants {
            let owner = PolicyOwner::Tenant(tenant);
            let Some(parsed) = self.parsed.remove(&owner) else { continue };
            tracing::error!(%owner, why, "a policy has no kernel tables at this moment, and leaves force");
            let broken = Broken { policy: Arc::clone(&parsed.policy), why, parsed: Some(parsed) };
            self.broken.insert(owner, broken);
        }
        self.together()?;
        Ok(is_any)
    }

    /// Whether there are policies that don't count for want of room alone.
    pub(super) fn lacks_room(&self) -> bool {
        self.broken.values().any(|broken| broken.parsed.is_some())
    }

    /// When a condition on time of any of these turns next.
    pub(super) fn lacking_until_ms(&self, now_ms: i64) -> Option<i64> {
        let lacking = self.broken.values().filter_map(|broken| broken.parsed.as_ref());
        lacking.filter_map(|parsed| parsed.set.next_turn_ms(now_ms)).min()
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

    /// Refuses a generation whose documents have too many bytes: more than a message, or, where a policy is another than
    /// in `former`, more than leaves room for what must never be refused. What is stored counts as it is.
    pub(super) fn fits(&self, former: &InForce, bytes: usize, unusable: Unusable) -> Result<(), Refusal> {
        let is_former = |(owner, parsed): (&PolicyOwner, &Parsed)| {
            former.parsed.get(owner).is_some_and(|former| Arc::ptr_eq(&former.policy, &parsed.policy))
        };
        let is_applied = unusable == Unusable::Refuse && !self.parsed.iter().all(is_former);
        let room = if is_applied { DOCUMENT_ROOM_BYTES } else { 0 };
        let max = DOCUMENT_BYTES_MAX - room;
        if bytes <= max {
            return Ok(());
        }
        Err(Refusal::Full(format!("a generation has at most {max} bytes, and would have {bytes}")))
    }

    /// Whether it decides as `other` does, as far as that is known without asking: by the very same policies, over the same
    /// data.
    pub(super) fn is_as(&self, other: &InForce) -> bool {
        let is_same = |(a, b): ((&PolicyOwner, &Parsed), (&PolicyOwner, &Parsed))| {
            a.0 == b.0
                && Arc::ptr_eq(&a.1.policy, &b.1.policy)
                && Arc::ptr_eq(&a.1.surroundings, &b.1.surroundings)
        };
        self.parsed.len() == other.parsed.len()
            && self.broken.keys().eq(other.broken.keys())
            && self.parsed.iter().zip(&other.parsed).all(is_same)
    }

    /// What decides; `None` denies everything.
    pub(super) fn policies(&self) -> Option<&Policies> {
        self.policies.as_ref()
    }

    /// Policies that don't count, and why.
    pub(super) fn broken(&self) -> BTreeMap<PolicyOwner, String> {
        self.broken.iter().map(|(owner, broken)| (owner.clone(), broken.why.clone())).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn in_force() -> InForce {
        let bundle = PolicyBundle::default();
        let set = PolicySet::parse(&bundle).expect("policy");
        let revision = PolicyRevision {
            owner: PolicyOwner::default(),
            number: 1,
            parent: 0,
            time: jiff::Timestamp::UNIX_EPOCH,
            author: String::new(),
            message: String::new(),
            hash: String::new(),
            accepted: Vec::new(),
            signature: None,
            bundle: Some(bundle),
            generation: None,
            standing: None,
        };
        let (geo, names, surroundings) = (Arc::default(), GeoNames::default(), Arc::default());
        let parsed = Parsed { policy: Arc::new(revision), geo, names, surroundings, set };
        InForce { parsed: BTreeMap::from([(PolicyOwner::default(), parsed)]), ..InForce::default() }
    }

    #[test]
    fn policies_leave_room_for_what_must_never_be_refused() {
        let (former, next, none) = (in_force(), in_force(), InForce::default());
        let fits = |next: &InForce, former, bytes, unusable| next.fits(former, bytes, unusable).is_ok();
        let (full, less) = (DOCUMENT_BYTES_MAX, DOCUMENT_BYTES_MAX - DOCUMENT_ROOM_BYTES);
        assert!(fits(&next, &former, less, Unusable::Refuse) && fits(&next, &none, less, Unusable::Refuse));
        assert!(!fits(&next, &former, less + 1, Unusable::Refuse), "another policy");
        assert!(!fits(&next, &none, less + 1, Unusable::Refuse), "a first policy");
        assert!(fits(&former, &former, full, Unusable::Refuse), "a change of something else");
        assert!(fits(&next, &none, full, Unusable::Suspend), "what is stored");
        assert!(!fits(&former, &former, full + 1, Unusable::Refuse));
        assert!(!fits(&next, &none, full + 1, Unusable::Suspend));
    }
}
