//! The policies of a snapshot as they were parsed, and what decisions rest on besides. Must never take for the same what
//! somebody else wrote, or what was written otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest::{Digest, SHA256, digest};
use clawgress_api::{Revisions, Snapshot};
use clawgress_identity::PolicyOwner;
use clawgress_policy::head::Mentions;
use clawgress_policy::{Geo, Policies, PolicyInForce, PolicySet};
use serde_json::value::RawValue;

/// One policy, as it was parsed.
#[derive(Clone, Debug)]
pub struct Part {
    /// Of what was written: SHA-256.
    hash: Digest,
    set: PolicySet,
    /// Names the geo data it rests on, if it asks for any.
    geo: Option<String>,
}

/// What decisions rest on besides: by tenant, and for those without a policy.
#[derive(Debug)]
pub struct Bases {
    tenants: BTreeMap<String, Arc<Basis>>,
    none: Arc<Basis>,
}

/// What decisions rest on besides a request and the policy, as records tell it.
#[derive(Debug)]
pub struct Basis {
    /// Whether policy asks for attributes of agents.
    pub asks_agent: bool,
    /// Whether it asks for what seems to be at the other end.
    pub asks_fingerprints: bool,
    /// Which header fields and parameters of queries it names, if it asks what they say.
    pub mentions: Option<Mentions>,
    /// Name of the wall clock's zone, unless it is UTC.
    pub zone: Option<String>,
    /// Names the geo data in force, if policy asks for any.
    pub geo: Option<String>,
    /// The revisions that decide.
    pub revisions: Option<Revisions>,
}

/// What can't be read, in words.
pub fn unreadable(error: serde_json::Error) -> String {
    format!("the snapshot is not readable: {error}")
}

/// The policies of a snapshot, by whose they are; those that stay what they are in `former` are taken from there.
///
/// # Errors
/// If one can't be used, or somebody has two.
pub fn parts(
    snapshot: &Snapshot<Box<RawValue>>,
    former: Option<&BTreeMap<PolicyOwner, Part>>,
) -> Result<BTreeMap<PolicyOwner, Part>, String> {
    let own = snapshot.policy.iter().map(|written| (PolicyOwner::default(), written));
    let platform = snapshot.platform.iter().map(|written| (PolicyOwner::Platform, written));
    let tenants = snapshot.tenants.iter().map(|(name, written)| (PolicyOwner::Tenant(name.clone()), written));
    let mut parts = BTreeMap::new();
    for (owner, written) in own.chain(platform).chain(tenants) {
        let former = former.and_then(|parts| parts.get(&owner));
        let part = Part::new(&owner, written.get(), former)?;
        if parts.insert(owner.clone(), part).is_some() {
            return Err(format!("the snapshot has two policies of {}", owner.told()));
        }
    }
    Ok(parts)
}

/// The policies together; `None` if there are none.
///
/// # Errors
/// As [`Policies::new`].
pub fn together(parts: &BTreeMap<PolicyOwner, Part>) -> Result<Option<Policies>, String> {
    if parts.is_empty() {
        return Ok(None);
    }
    let platform = parts.get(&PolicyOwner::Platform).map(|part| part.set.clone());
    let tenants = parts.iter().filter_map(|(o, part)| Some((o.tenant()?.to_owned(), part.set.clone())));
    Policies::new(platform, tenants.collect()).map(Some).map_err(|error| error.to_string())
}

// === impl Part ===

impl Part {
    /// The part that `written` is, taken from `former` if that was written so. A key that is revoked must not wait for a
    /// large policy to be parsed that stays what it is, nor one tenant for another's.
    fn new(owner: &PolicyOwner, written: &str, former: Option<&Part>) -> Result<Part, String> {
        let hash = digest(&SHA256, written.as_bytes());
        if let Some(former) = former.filter(|former| former.hash.as_ref() == hash.as_ref()) {
            return Ok(former.clone());
        }
        let policy: PolicyInForce = serde_json::from_str(written).map_err(unreadable)?;
        let set = PolicySet::parse_for(owner, &policy.text, &policy.sets, &policy.surroundings);
        let set = set.map_err(|error| error.to_string())?;
        Ok(Part { hash, set, geo: policy.surroundings.geo.edition() })
    }
}

// === impl Bases ===

impl Bases {
    /// Of these policies, parsed from these parts, which are the ones of these revisions.
    #[must_use]
    pub fn new(
        policies: Option<&Policies>,
        parts: &BTreeMap<PolicyOwner, Part>,
        revisions: &BTreeMap<PolicyOwner, u64>,
    ) -> Bases {
        let basis = |tenant: Option<&str>| {
            let set = policies.map(|policies| policies.of(tenant.unwrap_or_default()));
            let zone = set.map(PolicySet::zone).filter(|zone| *zone != "UTC");
            let part = |owner: &PolicyOwner| parts.get(owner).and_then(|part| part.geo.clone());
            let own = tenant.and_then(|tenant| part(&PolicyOwner::Tenant(tenant.to_owned())));
            Arc::new(Basis {
                asks_agent: set.is_some_and(PolicySet::asks_agent),
                asks_fingerprints: set.is_some_and(PolicySet::asks_fingerprints),
                mentions: set.filter(|set| set.asks_head()).map(PolicySet::mentions),
                zone: zone.map(str::to_owned),
                geo: Geo::joint_edition(own, part(&PolicyOwner::Platform)),
                revisions: Revisions::of(revisions, tenant.unwrap_or_default()),
            })
        };
        let tenants = parts.keys().filter_map(PolicyOwner::tenant);
        let tenants = tenants.map(|tenant| (tenant.to_owned(), basis(Some(tenant)))).collect();
        Bases { tenants, none: basis(None) }
    }

    /// What decisions for the agents of a tenant rest on.
    #[must_use]
    pub fn of(&self, tenant: &str) -> &Arc<Basis> {
        self.tenants.get(tenant).unwrap_or(&self.none)
    }
}
