//! SPIFFE bundles (SPIFFE Trust Domain and Bundle, section 4): what a trust domain's SVIDs are verified by.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use webpki::KeyUsage;

use super::SpiffeId;
use super::domain::{is_signing, svid};
use crate::certificate::{Anchors, CertificateError, Details};
use crate::json::{Document, Json, Object};
use crate::jwks::{JWKS_BYTES_MAX, jwks};
use crate::{AnchorsError, JwksError, KeySet};

/// Most certificates of a bundle; a trust domain that rotates has two or three.
pub const BUNDLE_CERTIFICATES_MAX: usize = 64;
/// Shortest time a bundle may ask to be kept for, seconds, so that a hint can't cause a flood of requests.
const REFRESH_S_MIN: u64 = 60;
/// Longest, seconds: a key that was withdrawn has to go within a day.
const REFRESH_S_MAX: u64 = 24 * 60 * 60;

/// A bundle, parsed.
#[derive(Clone, Debug, Default)]
pub struct SpiffeBundle {
    /// `spiffe_sequence`, which grows with each change.
    pub sequence: Option<u64>,
    /// `spiffe_refresh_hint`, seconds, held to what is reasonable.
    pub refresh_hint_s: Option<u64>,
    pub(crate) anchors: Anchors,
    pub(crate) keys: KeySet,
    ignored: usize,
}

/// Why a bundle was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not a key set.
    #[error(transparent)]
    Keys(#[from] JwksError),
    /// `spiffe_sequence` or `spiffe_refresh_hint` is no whole number.
    #[error("`{0}` of the bundle is not a whole number")]
    Number(&'static str),
    /// An `x509-svid` key has not exactly one certificate in `x5c`.
    #[error("an `x509-svid` key of the bundle has not exactly one certificate in `x5c`")]
    Certificate,
    /// A certificate is not an authority's.
    #[error(transparent)]
    Authority(#[from] AnchorsError),
    /// A `jwt-svid` key has no id.
    #[error("a `jwt-svid` key of the bundle has no `kid`")]
    KeyId,
    /// Not DER, one certificate behind the other.
    #[error("the certificates of the bundle are not DER, one behind the other")]
    Der,
    /// Its sequence number is below that of the bundle which counts.
    #[error("the bundle is older than that in force: its `spiffe_sequence` is {is}, and was {was}")]
    Older {
        /// Its own.
        is: u64,
        /// That of the one which counts.
        was: u64,
    },
    /// Too many certificates.
    #[error("the bundle has more than {BUNDLE_CERTIFICATES_MAX} certificates")]
    TooMany,
}

// === impl SpiffeBundle ===

impl SpiffeBundle {
    /// Reads a bundle document. It may be empty: then nothing of the trust domain is trusted.
    ///
    /// # Errors
    /// If it is no bundle, is beyond a bound, or has a key that is not public, or a certificate that is no
    /// authority's.
    pub fn parse(document: &[u8]) -> Result<SpiffeBundle, BundleError> {
        let document = Document::parse(document.to_vec(), JWKS_BYTES_MAX).map_err(JwksError::from)?;
        let document = document.object();
        let sequence = number(document, "spiffe_sequence")?;
        let refresh_hint_s = number(document, "spiffe_refresh_hint")?;
        let (mut keys, mut certificates, mut ignored) = (KeySet::default(), Vec::new(), 0);
        for jwk in jwks(document)? {
            match jwk.text("use") {
                Ok(Some("jwt-svid")) => {
                    if !matches!(jwk.text("kid"), Ok(Some(kid)) if !kid.is_empty()) {
                        return Err(BundleError::KeyId);
                    }
                    keys.push(jwk, &[Some("jwt-svid")])?;
                }
                Ok(Some("x509-svid")) => {
                    // It has a key too, which is only looked at for what must not be there.
                    KeySet::default().push(jwk, &[Some("x509-svid")])?;
                    certificates.push(certificate(jwk)?);
                }
                // Section 4.2.2: without a use, or with one that is not known, ignored.
                _ => {
                    KeySet::default().push(jwk, &[])?;
                    ignored += 1;
                }
            }
        }
        if certificates.len() > BUNDLE_CERTIFICATES_MAX {
            return Err(BundleError::TooMany);
        }
        Ok(SpiffeBundle {
            sequence,
            refresh_hint_s: refresh_hint_s.map(|s| s.clamp(REFRESH_S_MIN, REFRESH_S_MAX)),
            anchors: Anchors::from_certificates(&certificates)?,
            keys,
            ignored,
        })
    }

    /// How many authorities for X.509-SVIDs there are.
    #[must_use]
    pub fn authorities(&self) -> usize {
        self.anchors.len()
    }

    /// SHA-256 of the certificate of each authority for X.509-SVIDs.
    #[must_use]
    pub fn thumbprints(&self) -> &[String] {
        self.anchors.thumbprints()
    }

    /// The keys for JWT-SVIDs.
    #[must_use]
    pub fn keys(&self) -> &KeySet {
        &self.keys
    }

    /// Whether another bundle trusts the same authorities and keys, whatever else it says.
    #[must_use]
    pub fn trusts_same(&self, other: &SpiffeBundle) -> bool {
        let certificates =
            |bundle: &SpiffeBundle| bundle.thumbprints().iter().cloned().collect::<BTreeSet<String>>();
        certificates(self) == certificates(other) && self.keys == other.keys
    }

    /// Verifies the certificates of a TLS server that is to be `id`, a workload of this bundle's trust domain.
    ///
    /// # Errors
    /// If they are no X.509-SVID of that ID by this bundle at `now_s`.
    pub fn verify_server(
        &self,
        chain: &[CertificateDer<'_>],
        id: &SpiffeId,
        now_s: i64,
    ) -> Result<(), CertificateError> {
        let leaf = chain.first().ok_or(CertificateError::Missing)?;
        if svid(&Details::read(leaf)?)? != *id {
            return Err(CertificateError::NotAnSvid);
        }
        self.anchors.verify(chain, now_s, KeyUsage::server_auth(), is_signing).map(drop)
    }

    /// How many elements are of no known use.
    #[must_use]
    pub fn ignored(&self) -> usize {
        self.ignored
    }
}

fn number(document: Object<'_>, name: &'static str) -> Result<Option<u64>, BundleError> {
    match document.find(name) {
        None => Ok(None),
        Some(Json::Integer(number)) => u64::try_from(number).map(Some).map_err(|_| BundleError::Number(name)),
        Some(_) => Err(BundleError::Number(name)),
    }
}

/// X.509-SVID section 6: `x5c` has the one certificate, in base64 and not base64url (RFC 7517 section 4.7).
fn certificate(jwk: Object<'_>) -> Result<CertificateDer<'static>, BundleError> {
    match jwk.find("x5c") {
        Some(Json::List(certificates)) => match (certificates.iter().next(), certificates.iter().nth(1)) {
            (Some(Json::Text(certificate)), None) => {
                STANDARD.decode(certificate).map(CertificateDer::from).map_err(|_| BundleError::Certificate)
            }
            _ => Err(BundleError::Certificate),
        },
        _ => Err(BundleError::Certificate),
    }
}
