//! Everybody who is trusted to say who agents are.

use std::collections::{BTreeMap, BTreeSet};

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
    /// Certificate authorities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<AuthorityRecord>,
    /// Trust domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust_domains: Vec<TrustDomainRecord>,
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
        for (what, count, max) in [
            ("issuers", records.issuers.len(), ISSUERS_MAX),
            ("authorities", records.authorities.len(), AUTHORITIES_MAX),
            ("trust domains", records.trust_domains.len(), TRUST_DOMAINS_MAX),
        ] {
            if count > max {
                return Err(RootError::TooMany(what, max));
            }
        }
        unique(records.issuers.iter().map(|r| &r.id))?;
        unique(records.authorities.iter().map(|r| &r.id))?;
        unique(records.trust_domains.iter().map(|r| &r.id))?;
        tell_apart(&records.issuers)?;
        let issuer = |record: IssuerRecord| {
            let id = record.id.clone();
            Issuer::new(record).map_err(|e| RootError::Issuer(id, e))
        };
        let authority = |record: AuthorityRecord| {
            let id = record.id.clone();
            Authority::new(record).map_err(|e| RootError::Authority(id, e))
        };
        let domain = |record: TrustDomainRecord| {
            let id = record.id.clone();
            TrustDomain::new(record).map_err(|e| RootError::TrustDomain(id, e))
        };
        let mut domains = BTreeSet::new();
        for record in &records.trust_domains {
            if !domains.insert(&record.domain) {
                return Err(RootError::SameDomain(record.id.clone(), record.domain.clone()));
            }
        }
        Ok(Roots {
            issuers: Issuers::new(records.issuers.into_iter().map(issuer).collect::<Result<Vec<_>, _>>()?),
            authorities: Authorities::new(
                records.authorities.into_iter().map(authority).collect::<Result<_, _>>()?,
            ),
            domains: TrustDomains::new(
                records.trust_domains.into_iter().map(domain).collect::<Result<Vec<_>, _>>()?,
            ),
        })
    }
}

fn unique<'a>(ids: impl Iterator<Item = &'a RootId>) -> Result<(), RootError> {
    let mut seen = BTreeSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(RootError::Twice(id.clone()));
        }
    }
    Ok(())
}

/// Issuers that several tenants trust have to be told apart by audience.
fn tell_apart(records: &[IssuerRecord]) -> Result<(), RootError> {
    let mut owners: BTreeMap<(&str, &str), &RootId> = BTreeMap::new();
    for record in records {
        for audience in &record.audiences {
            if let Some(other) = owners.insert((&record.issuer, audience), &record.id) {
                return Err(RootError::SameAudience(other.clone(), record.id.clone()));
            }
        }
    }
    Ok(())
}
