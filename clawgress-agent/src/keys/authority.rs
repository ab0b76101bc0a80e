//! The authority by which TLS is read: made at the first start, or the operator's own, and the leaves it signs.
//!
//! Its key never leaves this process. Must never sign for a host that is excluded, that is not in canonical form, or
//! that the authority's own constraints leave out: each leaf is verified as a client would before it is given away.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsBigEndian as _, EcPrivateKeyBin};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, ParsedPublicKey,
};
use clawgress_api::clock::Clock;
use clawgress_api::config::Intercept;
use clawgress_policy::Host;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, date_time_ymd,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, PrivateKeyDer, ServerName,
    SignatureVerificationAlgorithm, TrustAnchor, UnixTime,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

use super::secret::{self, INTERCEPTION, SECRET_BYTES, SecretError};
use super::secrets::Secrets;

/// How far back a certificate begins: clients' clocks are late, at times.
const SKEW_S: i64 = 3600;
/// How long the authority made here is valid: as long as the machines that are set up to trust it.
const OWN_LIFE_S: i64 = 10 * 366 * 86_400;
/// From how long before the end of the authority's certificate on it is told at start.
const ENDS_SOON_S: i64 = 90 * 86_400;
/// Most bytes of a certificate's or key's file.
const FILE_BYTES_MAX: usize = 64 * 1024;
/// Most certificates of a chain: a path has six intermediates at most, and some files hold the root too.
const CHAIN_MAX: usize = 8;
/// Bits of a mode by which others than the owner and its group may read or write, and the group may write.
const OPEN_BITS: u32 = 0o037;
/// Bytes of a point of P-256, uncompressed, and what it begins with (SEC 1, section 2.3.3).
const POINT_BYTES: usize = 65;
const POINT_UNCOMPRESSED: u8 = 4;
/// Bytes of a serial number: more than can be guessed (RFC 5280 section 4.1.2.2 has 20 at most).
const SERIAL_BYTES: usize = 16;
/// A host to try the authority with, which nobody has (RFC 6761 section 6.4).
const NOBODY: &str = "clawgress.invalid";
/// What an `ECPrivateKey` of P-256 is around its scalar (RFC 5915 section 3).
const SEC1_BEFORE: [u8; 7] = [0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20];
const SEC1_AFTER: [u8; 12] = [0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// Ways to verify signatures.
type Algorithms<'a> = &'a [&'a dyn SignatureVerificationAlgorithm];

/// The authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
    /// The last of the chain, as clients have it.
    anchor: TrustAnchor<'static>,
    /// What of the chain is sent with a leaf.
    sent: Vec<CertificateDer<'static>>,
    is_own: bool,
    not_before_s: i64,
    not_after_s: i64,
    intercept: Intercept,
    clock: Arc<dyn Clock>,
}

/// Certificates that are shown to clients, and how long the first is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The leaf, then what leads to an authority that clients know.
    pub chain: Vec<CertificateDer<'static>>,
    /// The last second of its validity, Unix time.
    pub not_after_s: i64,
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The key that was made here.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A file.
    #[error("cannot use `{path}` for [intercept]: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// The library.
    #[error("cannot make the authority for [intercept]: {0}")]
    Made(String),
}

/// Why a leaf was not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// Not what a leaf can be for.
    #[error("a certificate is signed for a host in canonical form, without `_`")]
    Host,
    /// Not a key.
    #[error("the public key is not an uncompressed point of P-256")]
    Key,
    /// The configuration says no.
    #[error("the host is excluded by `exclude` in [intercept]")]
    Excluded,
    /// The authority's certificate says no.
    #[error("the name constraints of the authority leave the host out")]
    Constrained,
    /// The authority has ended.
    #[error("the authority's certificate is not valid now")]
    Ended,
    /// What was made does not verify.
    #[error("the certificate does not verify: {0}")]
    Unsound(String),
}

/// A way to verify signatures, taken for granted: what is looked at was signed here a moment ago, and everything above it verified
/// when the authority was opened. All else that a client looks at is looked at (names, constraints, usage, times).
#[derive(Debug)]
struct Granted(&'static dyn SignatureVerificationAlgorithm);

static GRANTED: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> = LazyLock::new(|| {
    static ALL: LazyLock<Vec<Granted>> =
        LazyLock::new(|| webpki::ALL_VERIFICATION_ALGS.iter().copied().map(Granted).collect());
    ALL.iter().map(|granted| granted as _).collect()
});

/// A public key as `rcgen` takes it.
struct Point<'a>(&'a [u8]);

// === impl Granted ===

impl SignatureVerificationAlgorithm for Granted {
    fn verify_signature(
        &self,
        _key: &[u8],
        _message: &[u8],
        _signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.0.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.0.signature_alg_id()
    }
}

// === impl Point ===

impl PublicKeyData for Point<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

// === impl Authority ===

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("is_own", &self.is_own).finish_non_exhaustive()
    }
}

impl Authority {
    /// The operator's authority, or one of this node's own, made at first start.
    ///
    /// # Errors
    /// If it can't be read, made or used, with the remedy.
    pub fn open(
        secrets: &Secrets,
        node: &str,
        intercept: &Intercept,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthorityError> {
        let now_s = clock.now().as_second();
        let (place, chain, key) = match (&intercept.certificate, &intercept.key) {
            (Some(certificate), Some(key)) => (certificate.clone(), chain(certificate)?, given_key(key)?),
            _ => own(secrets, node, intercept, now_s)?,
        };
        let refused = |why: String| AuthorityError::File { path: place.clone(), why };
        let first = chain.first().ok_or_else(|| refused("it holds no certificate".to_owned()))?;
        let (_, parsed) = parse_x509_certificate(first)
            .map_err(|_| refused("its first certificate is malformed".to_owned()))?;
        check(&parsed, &key, now_s).map_err(refused)?;
        let (not_before_s, not_after_s) =
            (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let issuer = Issuer::from_ca_cert_der(first, key)
            .map_err(|e| refused(format!("its first certificate can't be signed by: {e}")))?;
        let top = chain.last().unwrap_or(first);
        if !is_root(top) {
            tracing::warn!(
                "the last certificate of the authority for [intercept] is no root, and most clients trust nothing below one: \
                 put the root last, so that `clawgressctl ca` hands it to them"
            );
        }
        let anchor = anchor_from_trusted_cert(top)
            .map_err(|e| refused(format!("its last certificate can't be trusted: {e}")))?
            .to_owned();
        // The root is the client's to have (RFC 8446 section 4.4.2).
        let sent = chain.iter().filter(|certificate| !is_root(certificate)).cloned().collect();
        let is_own = intercept.certificate.is_none();
        let intercept = intercept.clone();
        let authority =
            Authority { issuer, chain, anchor, sent, is_own, not_before_s, not_after_s, intercept, clock };
        authority.try_out().map_err(|why| AuthorityError::File { path: place.clone(), why })?;
        if not_after_s - now_s < ENDS_SOON_S {
            let days = (not_after_s - now_s) / 86_400;
            tracing::warn!(
                days,
                "the certificate of the authority for [intercept] ends soon: replace it before"
            );
        }
        Ok(authority)
    }

    /// Its certificate and those above it, and whether it was made here.
    #[must_use]
    pub fn describe(&self) -> (&[CertificateDer<'static>], bool) {
        (&self.chain, self.is_own)
    }

    /// Signs a certificate for `host`, whose key `point` is the public half of.
    ///
    /// # Errors
    /// Why not.
    pub fn mint(&self, host: &str, point: &[u8]) -> Result<Leaf, MintError> {
        let parsed = Host::parse(host).map_err(|_| MintError::Host)?;
        // Clients take `_` for a character of no host name, and so do those who verify servers' certificates.
        if parsed.to_string() != host || host.contains('_') {
            return Err(MintError::Host);
        }
        if self.intercept.excludes(host) {
            return Err(MintError::Excluded);
        }
        self.sign(&parsed, point, &GRANTED)
    }

    fn sign(&self, host: &Host, point: &[u8], algorithms: Algorithms<'_>) -> Result<Leaf, MintError> {
        let is_point = point.len() == POINT_BYTES && point.first() == Some(&POINT_UNCOMPRESSED);
        if !is_point || ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).is_err() {
            return Err(MintError::Key);
        }
        let now_s = self.clock.now().as_second();
        if !(self.not_before_s..=self.not_after_s).contains(&now_s) {
            return Err(MintError::Ended);
        }
        let from_s = (now_s - SKEW_S).max(self.not_before_s);
        let until_s = (now_s + i64::from(self.intercept.leaf_hours) * 3600).min(self.not_after_s);
        let unsound = |e: rcgen::Error| MintError::Unsound(e.to_string());
        let mut params = CertificateParams::default();
        params.distinguished_name = named("intercepted by Clawgress");
        params.subject_alt_names = vec![match host {
            Host::Address(ip) => SanType::IpAddress(*ip),
            Host::Name(_) => SanType::DnsName(host.to_string().try_into().map_err(unsound)?),
        }];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial().map_err(|e| MintError::Unsound(e.to_string()))?);
        valid(&mut params, from_s, until_s);
        let leaf = CertificateDer::from(params.signed_by(&Point(point), &self.issuer).map_err(unsound)?);
        self.verify(&leaf, host, now_s, algorithms)?;
        let chain = [leaf].into_iter().chain(self.sent.iter().cloned()).collect();
        Ok(Leaf { chain, not_after_s: until_s })
    }

    /// Verifies a leaf as a client does that trusts the last certificate of the chain and verifies signatures so.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        host: &Host,
        now_s: i64,
        algorithms: Algorithms<'_>,
    ) -> Result<(), MintError> {
        let unsound = |e: webpki::Error| match e {
            webpki::Error::NameConstraintViolation => MintError::Constrained,
            other => MintError::Unsound(other.to_string()),
        };
        let (_, between) = self.chain.split_last().ok_or(MintError::Ended)?;
        let end = EndEntityCert::try_from(leaf).map_err(unsound)?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now_s).unwrap_or(0)));
        let anchors = std::slice::from_ref(&self.anchor);
        end.verify_for_usage(algorithms, anchors, between, time, KeyUsage::server_auth(), None, None)
            .map_err(unsound)?;
        let name = host.to_string();
        let name = ServerName::try_from(name.as_str()).map_err(|_| MintError::Host)?;
        end.verify_is_valid_for_subject_name(&name).map_err(unsound)
    }

    /// Signs for nobody, so that a chain that leads nowhere is told at start, not to every client.
    fn try_out(&self) -> Result<(), String> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| e.to_string())?;
        let nobody = Host::parse(NOBODY).map_err(|e| e.to_string())?;
        match self.sign(&nobody, key.der_bytes(), webpki::ALL_VERIFICATION_ALGS) {
            Ok(_) | Err(MintError::Constrained) => Ok(()),
            Err(why) => Err(format!(
                "what it signs does not lead to its last certificate ({why}): put the authority's own certificate first, and each after the one that it signed"
            )),
        }
    }
}

/// What a certificate must say of itself to be an authority's.
fn check(certificate: &X509Certificate<'_>, key: &KeyPair, now_s: i64) -> Result<(), String> {
    let twice = |_| "its first certificate has an extension twice".to_owned();
    let constraints = certificate.basic_constraints().map_err(twice)?;
    if !constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(
            "its first certificate is not an authority's: it needs basicConstraints CA:TRUE".to_owned()
        );
    }
    let usage = certificate.key_usage().map_err(twice)?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("its first certificate may not sign others: it needs keyUsage keyCertSign".to_owned());
    }
    let purposes = certificate.extended_key_usage().map_err(twice)?;
    if purposes.is_some_and(|purposes| !purposes.value.server_auth && !purposes.value.any) {
        return Err(
            "its first certificate is not for servers: its extendedKeyUsage needs serverAuth".to_owned()
        );
    }
    let (from, until) = (certificate.validity().not_before, certificate.validity().not_after);
    if until.timestamp() < now_s {
        return Err(format!("its first certificate has expired ({until}): bring a new one"));
    }
    if from.timestamp() > now_s {
        return Err(format!(
            "its first certificate is not valid before {from}: look at this machine's clock"
        ));
    }
    if certificate.public_key().raw != key.subject_public_key_info() {
        return Err(
            "its first certificate is not of the private key in `key`: bring the two that belong together"
                .to_owned(),
        );
    }
    Ok(())
}

/// The certificates in a file.
fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let refused = |why: String| AuthorityError::File { path: path.to_owned(), why };
    let bytes = read(path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|e| refused(format!("it is not PEM: {e}")))?;
    if chain.len() > CHAIN_MAX {
        return Err(refused(format!("it holds more than {CHAIN_MAX} certificates")));
    }
    Ok(chain)
}

/// The operator's key.
fn given_key(path: &Path) -> Result<KeyPair, AuthorityError> {
    let refused = |why: String| AuthorityError::File { path: path.to_owned(), why };
    let mode = fs::metadata(path).map_err(|e| refused(e.to_string()))?.mode();
    if mode & OPEN_BITS != 0 {
        return Err(refused(
            "it is open to others: give it to the keys role's user, with mode 0400".to_owned(),
        ));
    }
    let bytes = read(path)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|e| refused(format!("it holds no private key that can be read: {e}")))?;
    KeyPair::try_from(&key).map_err(|e| refused(format!("its key can't be used: {e}")))
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, AuthorityError> {
    let refused = |why: String| AuthorityError::File { path: path.to_owned(), why };
    let file = File::open(path)
        .map_err(|e| refused(format!("{e}; the keys role's user must be able to read it")))?;
    // Whole at once: a buffer that grows would leave parts of a key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX + 1));
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|e| refused(e.to_string()))?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(refused(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

type Own = (PathBuf, Vec<CertificateDer<'static>>, KeyPair);

/// This node's own: its key is a secret like the others, its certificate lies beside it. Other constraints are another
/// certificate of the same key.
fn own(secrets: &Secrets, node: &str, intercept: &Intercept, now_s: i64) -> Result<Own, AuthorityError> {
    let made = |e: &dyn std::fmt::Display| AuthorityError::Made(e.to_string());
    let (scalar, directory) = (secrets.made(INTERCEPTION, scalar)?, secrets.directory());
    let key = key_of(&scalar).ok_or_else(|| AuthorityError::Made("its key is damaged".to_owned()))?;
    let hash = digest(&SHA256, intercept.names.join("\n").as_bytes());
    let mark: String = hash.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let name = format!("interception-ca-v1-{mark}.pem");
    let path = directory.join(&name);
    if !path.exists() {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("Clawgress {node}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.name_constraints = constraints(&intercept.names);
        params.serial_number = Some(serial().map_err(|e| made(&e))?);
        valid(&mut params, now_s - SKEW_S, now_s + OWN_LIFE_S);
        let certificate = params.self_signed(&key).map_err(|e| made(&e))?;
        secret::create(directory, &name, certificate.pem().as_bytes())?;
        tracing::info!(path = %path.display(), "made the authority by which TLS is read; clients have to be given it (`clawgressctl ca export`)");
    }
    let chain = chain(&path)?;
    Ok((path, chain, key))
}

fn scalar() -> Result<Zeroizing<[u8; SECRET_BYTES]>, SecretError> {
    let made = || {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).ok()?;
        let bytes: EcPrivateKeyBin<'_> = key.private_key().as_be_bytes().ok()?;
        Some(Zeroizing::new(bytes.as_ref().try_into().ok()?))
    };
    made().ok_or(SecretError::Make("the authority by which TLS is read"))
}

fn key_of(scalar: &[u8; SECRET_BYTES]) -> Option<KeyPair> {
    let der = Zeroizing::new([&SEC1_BEFORE[..], scalar, &SEC1_AFTER].concat());
    let key = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, &der).ok()?;
    KeyPair::try_from(key.to_pkcs8v1().ok()?.as_ref()).ok()
}

/// Names, each with all below it; and then no addresses, of which the names say nothing (RFC 5280 section 4.2.1.10).
fn constraints(names: &[String]) -> Option<NameConstraints> {
    if names.is_empty() {
        return None;
    }
    let everywhere = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
    Some(NameConstraints {
        permitted_subtrees: names.iter().cloned().map(GeneralSubtree::DnsName).collect(),
        excluded_subtrees: everywhere
            .into_iter()
            .map(|ip| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(ip, 0)))
            .collect(),
    })
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, "Clawgress");
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn serial() -> Result<SerialNumber, getrandom::Error> {
    let mut bytes = [0; SERIAL_BYTES];
    getrandom::fill(&mut bytes)?;
    // Positive, and of a fixed length.
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x3f | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

/// Sets both ends of the validity, in seconds since 1970; none is before that here.
fn valid(params: &mut CertificateParams, from_s: i64, until_s: i64) {
    let since_1970 = |unix_s: i64| Duration::from_secs(u64::try_from(unix_s).unwrap_or(0));
    params.not_before = date_time_ymd(1970, 1, 1) + since_1970(from_s);
    params.not_after = date_time_ymd(1970, 1, 1) + since_1970(until_s);
}

fn is_root(certificate: &CertificateDer<'_>) -> bool {
    parse_x509_certificate(certificate).is_ok_and(|(_, c)| c.subject().as_raw() == c.issuer().as_raw())
}

#[cfg(test)]
mod tests;
