//! Everybody who is trusted to say who agents are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::certificate::{AUTHORITIES_MAX, Authorities};
use crate::issuer::{ISSUERS_MAX, Issuers};
use crate::spiffe::{TRUST_DOMAINS_MAX, TrustDomains};
use crate::{
    Authority, AuthorityError, AuthorityRecord, Issuer, IssuerError, IssuerRecord, RootId, TrustDomain,
    TrustDomainError, TrustDomainName, TrustDomainRecord,
};

/// Everybody, as the registry holds them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootRecords {
    /// Issuers of tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub issuers: Vec<IssuerRecord>,
    /// Keys that were fetched of issuers' providers and count now: JWKS documents.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fetched: BTreeMap<RootId, String>,
    /// Certificate authorities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<AuthorityRecord>,
    /// Trust domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust_domains: Vec<TrustDomainRecord>,
    /// Bundles that came of trust domains' sources and count now: JSON documents.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bundles: BTreeMap<RootId, String>,
}

/// Everybody, ready to judge by.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    pub(crate) issuers: Issuers,
    pub(crate) authorities: Authorities,
    pub(crate) domains: TrustDomains,
}

/// Why somebody can't be trusted as a record says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// An issuer's record.
    #[error("issuer `{0}`: {1}")]
    Issuer(RootId, IssuerError),
    /// An authority's record.
    #[error("authority `{0}`: {1}")]
    Authority(RootId, AuthorityError),
    /// A trust domain's record.
    #[error("trust domain `{0}`: {1}")]
    TrustDomain(RootId, TrustDomainError),
    /// Two records have one id.
    #[error("`{0}` is there twice: choose another name")]
    Twice(RootId),
    /// A token could be of both.
    #[error(
        "issuers `{0}` and `{1}` have the same `issuer` and an audience in common: give each its own audience"
    )]
    SameAudience(RootId, RootId),
    /// Two records are of one trust domain.
    #[error("`{0}` is of trust domain `{1}`, which another record has: merge them")]
    SameDomain(RootId, TrustDomainName),
    /// More than are held.
    #[error("there are more than {1} {0}")]
    TooMany(&'static str, usize),
}

// === impl Roots ===

impl Roots {
    /// Parses and checks every record.
    ///
    /// # Errors
    /// At the first that can't be trusted as it says.
    pub fn new(records: RootRecords) -> Result<Roots, RootError> {
        let (roots, refused) = Roots::renew(records, &Roots::default());
        refused.into_iter().next().map_or(Ok(roots), Err)
    }

    /// As [`new`](Self::new), but each record by itself: who can't be trusted as a record says is trusted for nothing,
    /// and the rest counts. What `former` has of the same records is taken from it.
    ///
    /// INVARIANT: that somebody is left out never lets a credential prove more. Tokens of an issuer that is left out are
    /// still nobody else's, nor are a trust domain's SVIDs; and where an authority is left out no other speaks of
    /// certificates, because which of them are trusted by both, and so prove nobody, can't be known.
    #[must_use]
    pub fn renew(records: RootRecords, former: &Roots) -> (Roots, Vec<RootError>) {
        let RootRecords { issuers, fetched, authorities, trust_domains, bundles } = records;
        let mut refused = Vec::new();
        let issuers = renew_issuers(issuers, &fetched, &former.issuers, &mut refused);
        let authorities = renew_authorities(authorities, &former.authorities, &mut refused);
        let domains = renew_domains(trust_domains, &bundles, &former.domains, &mut refused);
        (Roots { issuers, authorities, domains }, refused)
    }

    /// The issuer with this id.
    #[must_use]
    pub fn issuer(&self, id: &RootId) -> Option<&Arc<Issuer>> {
        self.issuers.by_id(id)
    }
}

fn renew_issuers(
    records: Vec<IssuerRecord>,
    fetched: &BTreeMap<RootId, String>,
    former: &Issuers,
    refused: &mut Vec<RootError>,
) -> Issuers {
    let mut spoilt = twice(records.iter().map(|r| &r.id), refused);
    spoilt.extend(same_audience(&records, refused));
    if records.len() > ISSUERS_MAX {
        refused.push(RootError::TooMany("issuers", ISSUERS_MAX));
        spoilt.extend(records.iter().map(|r| r.id.clone()));
    }
    let (mut issuers, mut unusable) = (Vec::new(), Vec::new());
    for record in records {
        let id = record.id.clone();
        let name = (record.issuer.clone(), record.audiences.clone());
        if spoilt.contains(&id) {
            unusable.push(name);
            continue;
        }
        let fetched = fetched.get(&id);
        if let Some(same) = former.by_id(&id).filter(|former| former.is_of(&record, fetched)) {
            issuers.push(Arc::clone(same));
            continue;
        }
        match Issuer::with_fetched(record, fetched.cloned()) {
            Ok(issuer) => issuers.push(Arc::new(issuer)),
            Err(error) => {
                refused.push(RootError::Issuer(id, error));
                unusable.push(name);
            }
        }
    }
    Issuers::new(issuers, unusable)
}

fn renew_authorities(
    records: Vec<AuthorityRecord>,
    former: &Authorities,
    refused: &mut Vec<RootError>,
) -> Authorities {
    let mut is_whole = twice(records.iter().map(|r| &r.id), refused).is_empty();
    if records.len() > AUTHORITIES_MAX {
        refused.push(RootError::TooMany("authorities", AUTHORITIES_MAX));
        is_whole = false;
    }
    let mut authorities = Vec::new();
    for record in records {
        if let Some(same) = former.by_id(&record.id).filter(|former| former.is_of(&record)) {
            authorities.push(Arc::clone(same));
            continue;
        }
        let id = record.id.clone();
        match Authority::new(record) {
            Ok(authority) => authorities.push(Arc::new(authority)),
            Err(error) => {
                refused.push(RootError::Authority(id, error));
                is_whole = false;
            }
        }
    }
    Authorities::new(if is_whole { authorities } else { Vec::new() })
}

fn renew_domains(
    records: Vec<TrustDomainRecord>,
    bundles: &BTreeMap<RootId, String>,
    former: &TrustDomains,
    refused: &mut Vec<RootError>,
) -> TrustDomains {
    let mut spoilt = twice(records.iter().map(|r| &r.id), refused);
    let mut owners: BTreeMap<&TrustDomainName, &RootId> = BTreeMap::new();
    for record in &records {
        if let Some(other) = owners.insert(&record.domain, &record.id) {
            refused.push(RootError::SameDomain(record.id.clone(), record.domain.clone()));
            spoilt.extend([other.clone(), record.id.clone()]);
        }
    }
    if records.len() > TRUST_DOMAINS_MAX {
        refused.push(RootError::TooMany("trust domains", TRUST_DOMAINS_MAX));
        spoilt.extend(records.iter().map(|r| r.id.clone()));
    }
    let (mut domains, mut unusable) = (Vec::new(), Vec::new());
    for record in records {
        let (id, name) = (record.id.clone(), record.domain.clone());
        if spoilt.contains(&id) {
            unusable.push(name);
            continue;
        }
        let fetched = bundles.get(&id);
        if let Some(same) = former.by_name(&name).filter(|former| former.is_of(&record, fetched)) {
            domains.push(Arc::clone(same));
            continue;
        }
        match TrustDomain::with_fetched(record, fetched.cloned()) {
            Ok(domain) => domains.push(Arc::new(domain)),
            Err(error) => {
                refused.push(RootError::TrustDomain(id, error));
                unusable.push(name);
            }
        }
    }
    TrustDomains::new(domains, unusable)
}

/// Ids that are there twice.
fn twice<'a>(ids: impl Iterator<Item = &'a RootId>, refused: &mut Vec<RootError>) -> BTreeSet<RootId> {
    let (mut seen, mut twice) = (BTreeSet::new(), BTreeSet::new());
    for id in ids {
        if !seen.insert(id) && twice.insert(id.clone()) {
            refused.push(RootError::Twice(id.clone()));
        }
    }
    twice
}

/// Issuers that several tenants trust have to be told apart by audience: those that can't be.
fn same_audience(records: &[IssuerRecord], refused: &mut Vec<RootError>) -> BTreeSet<RootId> {
    let mut owners: BTreeMap<(&str, &str), &RootId> = BTreeMap::new();
    let mut same = BTreeSet::new();
    for record in records {
        for audience in &record.audiences {
            if let Some(other) = owners.insert((&record.issuer, audience), &record.id)
                && *other != record.id
            {
                refused.push(RootError::SameAudience(other.clone(), record.id.clone()));
                same.extend([other.clone(), record.id.clone()]);
            }
        }
    }
    same
}

#[cfg(test)]
mod tests;
