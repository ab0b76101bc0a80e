//! Certificates that are trusted, and what is revoked by them.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime,
};
use serde::{Deserialize, Serialize};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath, aws_lc_rs,
};

use crate::MappingError;
use crate::certificate::details::{Details, KEY_CERT_SIGN, ListDetails};

/// Most certificates of a chain: a path has six intermediates at most.
pub const CHAIN_MAX: usize = 10;
/// Most bytes of a chain: what a TLS handshake message may have.
pub const CHAIN_BYTES_MAX: usize = 64 * 1024;
/// Most authorities of a root of trust, and most revocation lists.
const ANCHORS_MAX: usize = 64;
/// Most bytes of them; a list of 100,000 revoked certificates has about 4 MiB.
pub const PEM_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Signature algorithms of certificates and revocation lists: no SHA-1, RSA of 2048 bits and more, and one library.
static SIGNATURES: &[&dyn SignatureVerificationAlgorithm] = &[
    aws_lc_rs::ECDSA_P256_SHA256,
    aws_lc_rs::ECDSA_P256_SHA384,
    aws_lc_rs::ECDSA_P384_SHA256,
    aws_lc_rs::ECDSA_P384_SHA384,
    aws_lc_rs::ECDSA_P521_SHA512,
    aws_lc_rs::ED25519,
    aws_lc_rs::RSA_PKCS1_2048_8192_SHA256,
    aws_lc_rs::RSA_PKCS1_2048_8192_SHA384,
    aws_lc_rs::RSA_PKCS1_2048_8192_SHA512,
    aws_lc_rs::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    aws_lc_rs::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    aws_lc_rs::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// How revocation lists count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Revocation {
    /// There are none: certificates count until they expire.
    #[default]
    Off,
    /// A list of its authority must clear the client's certificate.
    Leaf,
    /// A list must clear each certificate up to the authority.
    Chain,
}

/// Why a chain establishes no identity. Shows no part of it; the client is never told which it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No certificate.
    #[error("no client certificate")]
    Missing,
    /// Beyond [`CHAIN_MAX`] or [`CHAIN_BYTES_MAX`].
    #[error("the chain has more than {CHAIN_MAX} certificates or {CHAIN_BYTES_MAX} bytes")]
    Size,
    /// Not a certificate, or with what must not be in one.
    #[error("a certificate of the chain is malformed")]
    Malformed,
    /// Nobody who is trusted is at its end.
    #[error("the chain leads to no trusted authority")]
    UnknownAuthority,
    /// It has expired.
    #[error("a certificate of the chain has expired")]
    Expired,
    /// It is valid later.
    #[error("a certificate of the chain is not valid yet")]
    NotYet,
    /// It is revoked.
    #[error("a certificate of the chain is revoked")]
    Revoked,
    /// No current list says whether it is revoked.
    #[error("no current revocation list covers a certificate of the chain")]
    RevocationUnknown,
    /// It is not for clients, or is an authority's own, or an issuer is no authority.
    #[error("a certificate of the chain is not for what it is used for")]
    Usage,
    /// A signature is wrong, or of an algorithm that is not accepted.
    #[error("a signature in the chain is wrong or of an algorithm that is not accepted")]
    Signature,
    /// Names or path lengths are outside what an authority of the chain may give.
    #[error("the chain is outside what its authorities may give")]
    Constraints,
    /// It is an SVID against the standard: not exactly one URI, or no SPIFFE ID of a workload.
    #[error("the certificate is no SVID of a workload: it needs exactly one URI, a SPIFFE ID with a path")]
    NotAnSvid,
    /// Several authorities' rules give it to agents.
    #[error("the certificate is trusted by several authorities")]
    AmbiguousAuthority,
    /// Its names stand for no agent.
    #[error("the certificate names no agent: {0}")]
    Mapping(#[from] MappingError),
}

/// Why trusted certificates or revocation lists were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnchorsError {
    /// Not PEM.
    #[error("the {0} are not PEM: write `-----BEGIN …-----` sections")]
    Pem(&'static str),
    /// None, or too many.
    #[error("there must be 1 to {ANCHORS_MAX} {0}")]
    Count(&'static str),
    /// Larger than what is read.
    #[error("the {0} have more than {PEM_BYTES_MAX} bytes")]
    Size(&'static str),
    /// One can't be read or is no authority.
    #[error("trusted certificate {0} is not the certificate of an authority (X.509 version 3, CA:TRUE)")]
    NotAnAuthority(usize),
    /// One can't be read or is of a kind that is not supported.
    #[error("revocation list {0} can't be used: it must be a complete version 2 list with a next update")]
    List(usize),
    /// Lists are there, but don't count, or count and aren't there.
    #[error("`revocation` is `off` exactly when there are no revocation lists")]
    Revocation,
}

/// Certificates that are trusted, parsed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Anchors {
    anchors: Vec<TrustAnchor<'static>>,
    /// SHA-256 of each certificate.
    thumbprints: Vec<String>,
    lists: Arc<[(CertRevocationList<'static>, ListDetails)]>,
    revocation: Revocation,
}

// === impl Anchors ===

impl Anchors {
    pub(crate) fn from_pem(
        certificates: &str,
        lists_pem: &str,
        revocation: Revocation,
    ) -> Result<Anchors, AnchorsError> {
        const CERTIFICATES: &str = "certificates";
        const LISTS: &str = "revocation lists";
        for (what, text) in [(CERTIFICATES, certificates), (LISTS, lists_pem)] {
            if text.len() > PEM_BYTES_MAX {
                return Err(AnchorsError::Size(what));
            }
        }
        let certificates = CertificateDer::pem_slice_iter(certificates.as_bytes());
        let certificates: Vec<_> =
            certificates.collect::<Result<_, _>>().map_err(|_| AnchorsError::Pem(CERTIFICATES))?;
        let lists = CertificateRevocationListDer::pem_slice_iter(lists_pem.as_bytes());
        let lists: Vec<_> = lists.collect::<Result<_, _>>().map_err(|_| AnchorsError::Pem(LISTS))?;
        // What is given and not understood must not pass for nothing.
        if lists.is_empty() && !lists_pem.trim().is_empty() {
            return Err(AnchorsError::Pem(LISTS));
        }
        if !(1..=ANCHORS_MAX).contains(&certificates.len()) {
            return Err(AnchorsError::Count(CERTIFICATES));
        }
        if lists.len() > ANCHORS_MAX {
            return Err(AnchorsError::Count(LISTS));
        }
        if lists.is_empty() != (revocation == Revocation::Off) {
            return Err(AnchorsError::Revocation);
        }
        let mut anchors = Anchors::from_certificates(&certificates)?;
        let list = |(n, list): (usize, &CertificateRevocationListDer<'_>)| {
            let parsed = OwnedCertRevocationList::from_der(list).map_err(|_| AnchorsError::List(n + 1))?;
            let details = ListDetails::read(list).ok_or(AnchorsError::List(n + 1))?;
            Ok((parsed.into(), details))
        };
        anchors.lists = lists.iter().enumerate().map(list).collect::<Result<_, _>>()?;
        anchors.revocation = revocation;
        Ok(anchors)
    }

    /// Anchors without revocation lists.
    pub(crate) fn from_certificates(certificates: &[CertificateDer<'_>]) -> Result<Anchors, AnchorsError> {
        let mut anchors = Vec::with_capacity(certificates.len());
        for (n, certificate) in certificates.iter().enumerate() {
            anchors.push(anchor(certificate).ok_or(AnchorsError::NotAnAuthority(n + 1))?);
        }
        let thumbprints = certificates.iter().map(|certificate| crate::token::hash(certificate)).collect();
        Ok(Anchors { anchors, thumbprints, lists: Arc::default(), revocation: Revocation::Off })
    }

    /// SHA-256 of each certificate that is trusted.
    pub(crate) fn thumbprints(&self) -> &[String] {
        &self.thumbprints
    }

    /// What each revocation list says of itself.
    pub(crate) fn lists(&self) -> impl Iterator<Item = &ListDetails> {
        self.lists.iter().map(|(_, details)| details)
    }

    pub(crate) fn len(&self) -> usize {
        self.anchors.len()
    }

    /// Verifies the path from the first certificate of a chain to an anchor, at a Unix time, for a TLS client or
    /// server. What
    /// each issuer on the path says of itself has to satisfy `is_issuer`. Returns until when that stands at most, if
    /// nothing changes but the time: the first second in which a certificate of the path has expired, or a list that
    /// counts now is too old.
    pub(crate) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now_s: i64,
        usage: KeyUsage,
        is_issuer: impl Fn(&Details<'_>) -> bool,
    ) -> Result<i64, CertificateError> {
        let (leaf, intermediates) = chain.split_first().ok_or(CertificateError::Missing)?;
        if chain.len() > CHAIN_MAX || chain.iter().map(|c| c.len()).sum::<usize>() > CHAIN_BYTES_MAX {
            return Err(CertificateError::Size);
        }
        let leaf = EndEntityCert::try_from(leaf).map_err(|_| CertificateError::Malformed)?;
        let time_s = u64::try_from(now_s).map_err(|_| CertificateError::NotYet)?;
        let lists: Vec<&CertRevocationList<'_>> = self.lists.iter().map(|(list, _)| list).collect();
        let depth = match self.revocation {
            Revocation::Off | Revocation::Leaf => RevocationCheckDepth::EndEntity,
            Revocation::Chain => RevocationCheckDepth::Chain,
        };
        // INVARIANT: where lists count, what none of them clears is refused, and an old list clears nothing.
        let revocation = match self.revocation {
            Revocation::Off => None,
            Revocation::Leaf | Revocation::Chain => Some(
                RevocationOptionsBuilder::new(&lists)
                    .map_err(|_| CertificateError::RevocationUnknown)?
                    .with_depth(depth)
                    .with_status_policy(UnknownStatusPolicy::Deny)
                    .with_expiration_policy(ExpirationPolicy::Enforce)
                    .build(),
            ),
        };
        let are_issuers = |path: &VerifiedPath<'_>| {
            let is_issuer = |certificate: &webpki::Cert<'_>| {
                let der = certificate.der();
                // RFC 5280 section 6.1.4 (n), which `rustls-webpki` leaves to basic constraints.
                Details::read(&der).is_ok_and(|details| {
                    details.key_usage.is_none_or(|usage| usage & KEY_CERT_SIGN != 0) && is_issuer(&details)
                })
            };
            if path.intermediate_certificates().all(is_issuer) {
                Ok(())
            } else {
                Err(webpki::Error::EndEntityUsedAsCa)
            }
        };
        let verified = leaf.verify_for_usage(
            SIGNATURES,
            &self.anchors,
            intermediates,
            UnixTime::since_unix_epoch(Duration::from_secs(time_s)),
            usage,
            revocation,
            Some(&are_issuers),
        );
        let path = verified.map_err(|error| cause(&error))?;
        let mut ends_s = Vec::with_capacity(CHAIN_MAX + self.lists.len());
        for der in
            std::iter::once(path.end_entity().der()).chain(path.intermediate_certificates().map(|c| c.der()))
        {
            ends_s.push(Details::read(&der)?.not_after_s.saturating_add(1));
        }
        if self.revocation != Revocation::Off {
            ends_s.extend(self.lists().map(|list| list.next_update_s).filter(|ends_s| *ends_s > now_s));
        }
        ends_s.into_iter().min().ok_or(CertificateError::Missing)
    }
}

/// The anchor that a certificate is, if an authority's.
fn anchor(certificate: &CertificateDer<'_>) -> Option<TrustAnchor<'static>> {
    let anchor = webpki::anchor_from_trusted_cert(certificate).ok()?;
    let details = Details::read(certificate).ok()?;
    let may_sign = details.key_usage.is_none_or(|usage| usage & KEY_CERT_SIGN != 0);
    (details.is_authority && may_sign).then(|| anchor.to_owned())
}

fn cause(error: &webpki::Error) -> CertificateError {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } => CertificateError::Expired,
        Error::CertNotValidYet { .. } => CertificateError::NotYet,
        Error::CertRevoked => CertificateError::Revoked,
        Error::UnknownRevocationStatus
        | Error::CrlExpired { .. }
        | Error::InvalidCrlSignatureForPublicKey
        | Error::IssuerNotCrlSigner => CertificateError::RevocationUnknown,
        Error::UnknownIssuer => CertificateError::UnknownAuthority,
        Error::CaUsedAsEndEntity
        | Error::EndEntityUsedAsCa
        | Error::EmptyEkuExtension
        | Error::RequiredEkuNotFoundContext(_) => CertificateError::Usage,
        Error::InvalidSignatureForPublicKey
        | Error::SignatureAlgorithmMismatch
        | Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => CertificateError::Signature,
        Error::NameConstraintViolation
        | Error::PathLenConstraintViolated
        | Error::MaximumPathDepthExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumSignatureChecksExceeded
        | Error::MaximumNameConstraintComparisonsExceeded => CertificateError::Constraints,
        // INVARIANT: whatever else it is, it is no identity.
        _ => CertificateError::Malformed,
    }
}
