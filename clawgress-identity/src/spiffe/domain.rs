//! Trust domains: which agent an SVID proves.
//!
//! INVARIANT: an SVID is verified by the bundle of the trust domain that its own ID names, and by no other; there is
//! no bundle for all.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use webpki::KeyUsage;

use super::{BundleError, BundleSource, SourceError, SpiffeBundle, SpiffeId, TrustDomainName};
use crate::certificate::{CRL_SIGN, CertificateError, DIGITAL_SIGNATURE, Details, KEY_CERT_SIGN};
use crate::claims::{self, SKEW_S_MAX, Window};
use crate::json::Object;
use crate::mapping::{Mapped, Values};
use crate::token::{UnverifiedToken, VerifiedToken};
use crate::{Algorithm, Mapping, MappingRuleError, RootId, TokenError};

/// Most trust domains of a node: its own, and those it is federated with.
pub(crate) const TRUST_DOMAINS_MAX: usize = 256;
/// Most audiences; a gateway has few names.
const AUDIENCES_MAX: usize = 16;

/// A trust domain as the registry holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustDomainRecord {
    /// Its id here.
    pub id: RootId,
    /// Its name.
    pub domain: TrustDomainName,
    /// What one of `aud` of a JWT-SVID must be, byte for byte; none: JWT-SVIDs are not accepted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub audiences: BTreeSet<String>,
    /// Difference between its clock and the gateway's that is allowed for in JWT-SVIDs, seconds.
    #[serde(default)]
    pub skew_s: u32,
    /// Which agent an SVID proves.
    pub mapping: Mapping<IdPart>,
    /// Its bundle: a JSON document. Where it has a `source`, what the first connection to that is verified by.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub bundle: String,
    /// Where its bundle comes from, in place of being given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<BundleSource>,
}

/// A part of a SPIFFE ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdPart {
    /// The whole path, from its first `/`.
    Path,
    /// A segment of the path, from 0.
    Segment(u8),
}

/// Why a trust domain was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustDomainError {
    /// Too many audiences.
    #[error("`audiences` has more than {AUDIENCES_MAX} texts, or an empty one")]
    Audiences,
    /// More skew than may be.
    #[error("`skew_s` is more than {SKEW_S_MAX}: set the clocks by NTP instead")]
    Skew,
    /// The mapping is not complete or not bounded.
    #[error(transparent)]
    Mapping(#[from] MappingRuleError),
    /// The bundle can't be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// There is neither a bundle nor where to get one.
    #[error(
        "it needs a bundle: give one (`--bundle`), or say where it comes from (`--workload-api`, `--bundle-endpoint`)"
    )]
    NoBundle,
    /// Where its bundle comes from is not complete or not bounded.
    #[error("its source: {0}")]
    Source(#[from] SourceError),
}

/// A trust domain, ready to judge SVIDs with.
#[derive(Clone, Debug)]
pub struct TrustDomain {
    record: TrustDomainRecord,
    fetched: Option<String>,
    bundle: SpiffeBundle,
}

/// Trust domains by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrustDomains {
    domains: BTreeMap<TrustDomainName, Arc<TrustDomain>>,
    /// Those whose records are of no use: their SVIDs are nobody's.
    unusable: BTreeSet<TrustDomainName>,
}

// === impl TrustDomain ===

impl TrustDomain {
    /// Checks a record and parses its bundle.
    ///
    /// # Errors
    /// If something is missing, beyond a bound, or not to be read.
    pub fn new(record: TrustDomainRecord) -> Result<TrustDomain, TrustDomainError> {
        TrustDomain::with_fetched(record, None)
    }

    /// As [`new`](Self::new), with the bundle of its source, if there is one that counts. Without it nothing of the
    /// trust domain is trusted.
    ///
    /// # Errors
    /// As there, and if the fetched bundle is not to be read.
    pub fn with_fetched(
        record: TrustDomainRecord,
        fetched: Option<String>,
    ) -> Result<TrustDomain, TrustDomainError> {
        if record.audiences.len() > AUDIENCES_MAX || record.audiences.iter().any(String::is_empty) {
            return Err(TrustDomainError::Audiences);
        }
        if record.skew_s > SKEW_S_MAX {
            return Err(TrustDomainError::Skew);
        }
        record.mapping.check()?;
        let parse = |document: &String| SpiffeBundle::parse(document.as_bytes());
        let given = Some(&record.bundle).filter(|document| !document.is_empty()).map(parse).transpose()?;
        let bundle = match &record.source {
            None => given.ok_or(TrustDomainError::NoBundle)?,
            // INVARIANT: what is given only begins a connection, and proves no agent.
            Some(source) => {
                source.check(&record.domain, given.is_some())?;
                fetched.as_ref().map(parse).transpose()?.unwrap_or_default()
            }
        };
        Ok(TrustDomain { record, fetched, bundle })
    }

    /// Whether it is what this record and the bundle of its source make.
    pub(crate) fn is_of(&self, record: &TrustDomainRecord, fetched: Option<&String>) -> bool {
        self.record == *record && self.fetched.as_ref() == fetched
    }

    /// The record.
    #[must_use]
    pub fn record(&self) -> &TrustDomainRecord {
        &self.record
    }

    /// The bundle.
    #[must_use]
    pub fn bundle(&self) -> &SpiffeBundle {
        &self.bundle
    }

    /// JWT-SVID section 2.1, as far as the algorithms are accepted at all: EdDSA is not among them.
    fn may_use(algorithm: Algorithm) -> bool {
        match algorithm {
            Algorithm::Es256 | Algorithm::Es384 | Algorithm::Rs256 | Algorithm::Ps256 => true,
            Algorithm::EdDsa => false,
        }
    }

    /// Checks the signature of a JWT-SVID of this trust domain.
    pub(crate) fn verify(&self, token: UnverifiedToken<'_>) -> Result<VerifiedToken, TokenError> {
        token.verify(&self.bundle.keys, Self::may_use)
    }

    /// Judges all of a JWT-SVID but the signature, whose key has to be one still. Returns the agent, and when the
    /// token ends.
    pub(crate) fn judge_token(&self, token: &VerifiedToken, now_s: i64) -> Result<(Mapped, i64), TokenError> {
        token.stands(&self.bundle.keys, Self::may_use)?;
        // Sections 2 and 2.3.
        if token.has_other_members {
            return Err(TokenError::HeaderMember);
        }
        if !matches!(token.typ.as_deref(), None | Some("JWT" | "JOSE")) {
            return Err(TokenError::Type);
        }
        let claims = token.claims.object();
        let id = subject(claims).ok_or(TokenError::NotAnSvid)?;
        if *id.domain() != self.record.domain {
            return Err(TokenError::NotAnSvid);
        }
        if !claims::is_for(claims, &self.record.audiences)? {
            return Err(TokenError::Audience);
        }
        let window = Window { skew_s: self.record.skew_s, lifetime_s_max: None, issued_after_s: None };
        let ends_s = window.check(claims, now_s)?;
        Ok((self.map(&id)?, ends_s))
    }

    /// Judges an X.509-SVID of this trust domain. Returns the agent, and until when that stands at most.
    pub(crate) fn judge_chain(
        &self,
        chain: &[CertificateDer<'_>],
        details: &Details<'_>,
        now_s: i64,
    ) -> Result<(Mapped, i64), CertificateError> {
        let id = svid(details)?;
        if id.domain() != &self.record.domain {
            return Err(CertificateError::NotAnSvid);
        }
        let ends_s = self.bundle.anchors.verify(chain, now_s, KeyUsage::client_auth(), is_signing)?;
        Ok((self.map(&id)?, ends_s))
    }

    fn map(&self, id: &SpiffeId) -> Result<Mapped, crate::MappingError> {
        self.record.mapping.apply(self.record.id.tenant(), |part| part.values(id))
    }
}

/// The workload whose X.509-SVID a certificate is, if it is one.
pub(crate) fn svid(details: &Details<'_>) -> Result<SpiffeId, CertificateError> {
    let id = workload(details).ok_or(CertificateError::NotAnSvid)?;
    // X.509-SVID sections 4.1 and 4.3.
    let usage = details.key_usage.unwrap_or_default();
    let is_leaf = usage & DIGITAL_SIGNATURE != 0 && usage & (KEY_CERT_SIGN | CRL_SIGN) == 0;
    if details.is_authority || !is_leaf { Err(CertificateError::Usage) } else { Ok(id) }
}

/// X.509-SVID section 3.2: a signing certificate signs certificates, and the ID it may have is a trust domain's.
pub(crate) fn is_signing(details: &Details<'_>) -> bool {
    let may_sign = details.key_usage.is_some_and(|usage| usage & KEY_CERT_SIGN != 0);
    let mut ids = details.uris.iter().filter(|uri| is_spiffe(uri));
    may_sign && ids.all(|uri| uri.parse::<SpiffeId>().is_ok_and(|id| id.path().is_empty()))
}

/// Whether a URI is meant to be a SPIFFE ID, well-formed or not.
fn is_spiffe(uri: &str) -> bool {
    uri.split_once(':').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("spiffe"))
}

/// The one URI, if it is the ID of a workload (X.509-SVID sections 2 and 5.2).
fn workload(details: &Details<'_>) -> Option<SpiffeId> {
    let [uri] = details.uris.as_slice() else { return None };
    uri.parse().ok().filter(|id: &SpiffeId| !id.path().is_empty())
}

/// The workload a token says it is of.
fn subject(claims: Object<'_>) -> Option<SpiffeId> {
    let id: SpiffeId = claims.text("sub").ok()??.parse().ok()?;
    (!id.path().is_empty()).then_some(id)
}

// === impl IdPart ===

impl IdPart {
    fn values<'a>(self, id: &SpiffeId) -> Values<'a> {
        let text = match self {
            IdPart::Path => Some(id.path()),
            IdPart::Segment(n) => id.segment(usize::from(n)),
        };
        text.map(|text| Cow::Owned(text.to_owned())).into_iter().collect()
    }
}

// === impl TrustDomains ===

impl TrustDomains {
    pub(crate) fn new(
        domains: impl IntoIterator<Item = Arc<TrustDomain>>,
        unusable: impl IntoIterator<Item = TrustDomainName>,
    ) -> Self {
        let domains = domains.into_iter().map(|d| (d.record.domain.clone(), d)).collect();
        TrustDomains { domains, unusable: unusable.into_iter().collect() }
    }

    pub(crate) fn by_name(&self, name: &TrustDomainName) -> Option<&Arc<TrustDomain>> {
        self.domains.get(name)
    }

    /// The trust domain of the workload that a token says it is of.
    pub(crate) fn of_token(&self, claims: Object<'_>) -> Option<&Arc<TrustDomain>> {
        self.domains.get(subject(claims)?.domain())
    }

    /// The trust domain whose SVID a certificate says it is; none if it says nothing of SPIFFE.
    ///
    /// # Errors
    /// If it has a SPIFFE ID, but not as an SVID has it.
    pub(crate) fn of_certificate(
        &self,
        details: &Details<'_>,
    ) -> Result<Option<&Arc<TrustDomain>>, CertificateError> {
        if !details.uris.iter().any(|uri| is_spiffe(uri)) {
            return Ok(None);
        }
        let id = workload(details).ok_or(CertificateError::NotAnSvid)?;
        if self.unusable.contains(id.domain()) {
            return Err(CertificateError::UnknownAuthority);
        }
        Ok(self.domains.get(id.domain()))
    }
}

#[cfg(test)]
mod tests;
