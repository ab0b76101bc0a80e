//! Certificate authorities for agents, and which agent the names of a certificate stand for.

use std::borrow::Cow;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use webpki::KeyUsage;

use crate::certificate::{Anchors, AnchorsError, CertificateError, Details, ListDetails, Revocation};
use crate::mapping::{Mapped, Values};
use crate::{Mapping, MappingRuleError, RootId};

/// Most authorities of a node.
pub(crate) const AUTHORITIES_MAX: usize = 256;

/// An authority as the registry holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorityRecord {
    /// Its id here.
    pub id: RootId,
    /// The certificates that are trusted, PEM.
    pub certificates: String,
    /// Revocation lists, PEM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revocation_lists: String,
    /// How the lists count.
    pub revocation: Revocation,
    /// Which agent a certificate proves.
    pub mapping: Mapping<NameKind>,
}

/// A kind of subject alternative name (RFC 5280 section 4.2.1.6). The subject itself is never looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameKind {
    /// `dNSName`, in lowercase.
    Dns,
    /// `uniformResourceIdentifier`.
    Uri,
    /// `rfc822Name`.
    Email,
}

/// Why an authority was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// Certificates or lists can't be used.
    #[error(transparent)]
    Anchors(#[from] AnchorsError),
    /// The mapping is not complete or not bounded.
    #[error(transparent)]
    Mapping(#[from] MappingRuleError),
}

/// An authority, ready to judge chains with.
#[derive(Clone, Debug)]
pub struct Authority {
    id: RootId,
    anchors: Anchors,
    mapping: Mapping<NameKind>,
    /// Hash of its record, whose lists may have megabytes.
    of: Vec<u8>,
}

/// Every authority.
#[derive(Clone, Debug, Default)]
pub(crate) struct Authorities(Vec<Arc<Authority>>);

// === impl Authority ===

impl Authority {
    /// Parses a record.
    ///
    /// # Errors
    /// If something is missing, beyond a bound, or not an authority's.
    pub fn new(record: AuthorityRecord) -> Result<Authority, AuthorityError> {
        record.mapping.check()?;
        let of = hash(&record);
        let anchors = Anchors::from_pem(&record.certificates, &record.revocation_lists, record.revocation)?;
        Ok(Authority { id: record.id, anchors, mapping: record.mapping, of })
    }

    /// Whether it is what this record makes.
    pub(crate) fn is_of(&self, record: &AuthorityRecord) -> bool {
        !self.of.is_empty() && self.of == hash(record)
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &RootId {
        &self.id
    }

    /// SHA-256 of each certificate that is trusted.
    #[must_use]
    pub fn thumbprints(&self) -> &[String] {
        self.anchors.thumbprints()
    }

    /// What each of its revocation lists says of itself.
    pub fn lists(&self) -> impl Iterator<Item = &ListDetails> {
        self.anchors.lists()
    }

    fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        details: &Details<'_>,
        now_s: i64,
    ) -> Result<(Mapped, i64), CertificateError> {
        let ends_s = self.anchors.verify(chain, now_s, KeyUsage::client_auth(), |_| true)?;
        Ok((self.mapping.apply(self.id.tenant(), |kind| kind.values(details))?, ends_s))
    }
}

/// The hash of a record; empty if it can't be written, which makes it the same as none.
fn hash(record: &AuthorityRecord) -> Vec<u8> {
    let json = serde_json::to_vec(record).unwrap_or_default();
    if json.is_empty() { json } else { digest::digest(&digest::SHA256, &json).as_ref().to_vec() }
}

// === impl NameKind ===

impl NameKind {
    fn values<'a>(self, details: &Details<'a>) -> Values<'a> {
        match self {
            NameKind::Dns => details.dns.iter().map(|n| Cow::Owned(n.to_ascii_lowercase())).collect(),
            NameKind::Uri => details.uris.iter().map(|n| Cow::Borrowed(*n)).collect(),
            NameKind::Email => details.emails.iter().map(|n| Cow::Borrowed(*n)).collect(),
        }
    }
}

// === impl Authorities ===

impl Authorities {
    pub(crate) fn new(authorities: Vec<Arc<Authority>>) -> Self {
        Authorities(authorities)
    }

    pub(crate) fn by_id(&self, id: &RootId) -> Option<&Arc<Authority>> {
        self.0.iter().find(|authority| authority.id == *id)
    }

    /// The agent that a chain stands for, by the one authority whose it is, and until when at most.
    pub(crate) fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        details: &Details<'_>,
        now_s: i64,
    ) -> Result<(&RootId, Mapped, i64), CertificateError> {
        let mut found = None;
        let mut cause = CertificateError::UnknownAuthority;
        for authority in &self.0 {
            match authority.judge(chain, details, now_s) {
                Ok((mapped, ends_s)) => {
                    if found.replace((&authority.id, mapped, ends_s)).is_some() {
                        return Err(CertificateError::AmbiguousAuthority);
                    }
                }
                Err(CertificateError::UnknownAuthority) => {}
                // The most that is known of why not.
                Err(error) => cause = error,
            }
        }
        found.ok_or(cause)
    }
}

#[cfg(test)]
mod tests;
