//! Public keys of JSON Web Keys (RFC 7517, RFC 7518 section 6, RFC 8037), parsed and judged once.
//!
//! INVARIANT: a key verifies only by the algorithms its type fits; RSA keys have 2048 to 8192 bits, points are on
//! their curve, Ed25519 keys are canonical and not of small order.

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, RsaPublicKeyComponents,
};

use crate::json::{Json, Object};
use crate::{Algorithm, base64url};

/// Longest key id, bytes: thumbprints have 43, the longest of known providers about 100.
pub(crate) const KID_BYTES_MAX: usize = 256;
/// RSA moduli, bits: below is weak, above costs more than a signature may.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Longest RSA exponent, bytes: that of practice has 3, aws-lc takes 33 bits, and each bit costs at each signature.
const RSA_EXPONENT_BYTES_MAX: usize = 4;
/// Members that only private and symmetric keys have (RFC 7518 sections 6.2.2, 6.3.2 and 6.4, RFC 8037, AKP).
const PRIVATE_MEMBERS: [&str; 9] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"];

/// SHA-256 thumbprint (RFC 7638): a key's name that nobody chooses.
pub(crate) type Thumbprint = [u8; 32];

/// A public key, ready to verify with.
#[derive(Clone)]
pub(crate) struct VerifyingKey {
    pub(crate) kid: Option<Box<str>>,
    pub(crate) thumbprint: Thumbprint,
    /// One for each algorithm it fits: an RSA key without `alg` fits two.
    parsed: Vec<(Algorithm, ParsedPublicKey)>,
}

/// Why there is no key in a JSON Web Key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JwkError {
    /// It has private or secret members: the document must not be trusted.
    Private,
    /// A type, curve or algorithm that is not of the closed list.
    Unknown,
    /// Not for signatures.
    OtherUse,
    /// Malformed, weak or contradicting itself.
    Unfit,
}

// === impl VerifyingKey ===

impl VerifyingKey {
    /// The key of a JSON Web Key with one of these values of `use`; `None` among them lets it be absent.
    pub(crate) fn parse(jwk: Object<'_>, uses: &[Option<&str>]) -> Result<VerifyingKey, JwkError> {
        if PRIVATE_MEMBERS.iter().any(|m| jwk.find(m).is_some()) {
            return Err(JwkError::Private);
        }
        let text = |name: &str| jwk.text(name).map_err(|()| JwkError::Unfit);
        if !uses.contains(&text("use")?) || !may_verify(jwk)? {
            return Err(JwkError::OtherUse);
        }
        let only = text("alg")?.map(|n| Algorithm::from_name(n).ok_or(JwkError::Unknown)).transpose()?;
        let kid = text("kid")?;
        if kid.is_some_and(|kid| kid.len() > KID_BYTES_MAX) {
            return Err(JwkError::Unfit);
        }
        let (members, mut parsed) = match text("kty")? {
            Some("RSA") => rsa(jwk)?,
            Some("EC") => ec(jwk)?,
            Some("OKP") => ed25519(jwk)?,
            Some(_) => return Err(JwkError::Unknown),
            None => return Err(JwkError::Unfit),
        };
        parsed.retain(|(algorithm, _)| only.is_none_or(|only| only == *algorithm));
        if parsed.is_empty() {
            return Err(JwkError::Unfit);
        }
        Ok(VerifyingKey { kid: kid.map(Into::into), thumbprint: thumbprint(&members), parsed })
    }

    pub(crate) fn fits(&self, algorithm: Algorithm) -> bool {
        self.parsed.iter().any(|(own, _)| *own == algorithm)
    }

    /// Whether `signature` is this key's of `message`.
    pub(crate) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let parsed = self.parsed.iter().find(|(own, _)| *own == algorithm);
        parsed.is_some_and(|(_, key)| key.verify_sig(message, signature).is_ok())
    }
}

impl PartialEq for VerifyingKey {
    /// The same key by the same id for the same algorithms.
    fn eq(&self, other: &VerifyingKey) -> bool {
        let algorithms =
            |key: &VerifyingKey| key.parsed.iter().map(|(algorithm, _)| *algorithm).collect::<Vec<_>>();
        (&self.kid, self.thumbprint) == (&other.kid, other.thumbprint)
            && algorithms(self) == algorithms(other)
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithms: Vec<_> = self.parsed.iter().map(|(algorithm, _)| algorithm.name()).collect();
        f.debug_struct("VerifyingKey").field("kid", &self.kid).field("algorithms", &algorithms).finish()
    }
}

/// `key_ops`, where it is there, has to name what the key is for (RFC 7517 section 4.3).
fn may_verify(jwk: Object<'_>) -> Result<bool, JwkError> {
    match jwk.find("key_ops") {
        None => Ok(true),
        Some(Json::List(ops)) => Ok(ops.iter().any(|op| matches!(op, Json::Text("verify")))),
        Some(_) => Err(JwkError::Unfit),
    }
}

/// The members a thumbprint is of, in their order, and the key.
type Parsed = (Vec<(&'static str, String)>, Vec<(Algorithm, ParsedPublicKey)>);

/// The text of a member and the bytes it spells.
fn bytes(jwk: Object<'_>, name: &str) -> Result<(String, Vec<u8>), JwkError> {
    let text = jwk.text(name).ok().flatten().ok_or(JwkError::Unfit)?;
    let bytes = base64url::decode(text).ok_or(JwkError::Unfit)?;
    Ok((text.to_owned(), bytes))
}

fn rsa(jwk: Object<'_>) -> Result<Parsed, JwkError> {
    let ((e_text, e), (n_text, n)) = (bytes(jwk, "e")?, bytes(jwk, "n")?);
    // Big-endian without leading zeros (RFC 7518 section 6.3.1), so that the length in bits is that of the bytes.
    let (Some(first), Some(n_last), Some(e_last)) = (n.first(), n.last(), e.last()) else {
        return Err(JwkError::Unfit);
    };
    let bits = (n.len() * 8).saturating_sub(first.leading_zeros() as usize);
    let is_odd = |last: &u8| last % 2 == 1;
    if *first == 0 || !RSA_BITS.contains(&bits) || !is_odd(n_last) {
        return Err(JwkError::Unfit);
    }
    // An exponent of 1 makes every signature its own message.
    if e.len() > RSA_EXPONENT_BYTES_MAX || e.first() == Some(&0) || e == [1] || !is_odd(e_last) {
        return Err(JwkError::Unfit);
    }
    let components = RsaPublicKeyComponents { n, e };
    let key = |parameters| components.to_parsed_public_key(parameters).map_err(|_| JwkError::Unfit);
    let parsed = vec![
        (Algorithm::Rs256, key(&RSA_PKCS1_2048_8192_SHA256)?),
        (Algorithm::Ps256, key(&RSA_PSS_2048_8192_SHA256)?),
    ];
    Ok((vec![("e", e_text), ("kty", "RSA".to_owned()), ("n", n_text)], parsed))
}

fn ec(jwk: Object<'_>) -> Result<Parsed, JwkError> {
    let curve = jwk.text("crv").ok().flatten().ok_or(JwkError::Unfit)?;
    let (algorithm, coordinate_bytes) = match curve {
        "P-256" => (Algorithm::Es256, 32),
        "P-384" => (Algorithm::Es384, 48),
        _ => return Err(JwkError::Unknown),
    };
    let ((x_text, x), (y_text, y)) = (bytes(jwk, "x")?, bytes(jwk, "y")?);
    // Full size, never shortened (RFC 7518 section 6.2.1.2).
    if x.len() != coordinate_bytes || y.len() != coordinate_bytes {
        return Err(JwkError::Unfit);
    }
    // SEC 1 section 2.3.3, uncompressed; aws-lc refuses what is not on the curve.
    let point: Vec<u8> = [4].into_iter().chain(x).chain(y).collect();
    let key = ParsedPublicKey::new(algorithm.verification(), point).map_err(|_| JwkError::Unfit)?;
    let members = vec![("crv", curve.to_owned()), ("kty", "EC".to_owned()), ("x", x_text), ("y", y_text)];
    Ok((members, vec![(algorithm, key)]))
}

fn ed25519(jwk: Object<'_>) -> Result<Parsed, JwkError> {
    let curve = jwk.text("crv").ok().flatten().ok_or(JwkError::Unfit)?;
    if curve != "Ed25519" {
        return Err(JwkError::Unknown);
    }
    let (x_text, x) = bytes(jwk, "x")?;
    let point = <[u8; 32]>::try_from(x).map_err(|_| JwkError::Unfit)?;
    if !is_strong_point(point) {
        return Err(JwkError::Unfit);
    }
    let key = ParsedPublicKey::new(Algorithm::EdDsa.verification(), point).map_err(|_| JwkError::Unfit)?;
    let members = vec![("crv", curve.to_owned()), ("kty", "OKP".to_owned()), ("x", x_text)];
    Ok((members, vec![(Algorithm::EdDsa, key)]))
}

/// The y of the points of small order, little-endian: under such a key anybody signs anything (RFC 8032 leaves the
/// check to the verifier, and aws-lc does not make it).
const SMALL_ORDER_Y: [[u8; 32]; 5] = [
    [0; 32],
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5,
        0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a,
        0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
    [
        0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
];

/// Whether an encoded point is canonical (y below 2^255 - 19) and not of small order.
fn is_strong_point(mut point: [u8; 32]) -> bool {
    if let Some(last) = point.last_mut() {
        // The sign of x.
        *last &= 0x7f;
    }
    let [first, middle @ .., last] = point;
    let is_canonical = !(last == 0x7f && middle.iter().all(|b| *b == 0xff) && first >= 0xed);
    is_canonical && !SMALL_ORDER_Y.contains(&point)
}

/// RFC 7638 section 3. The values are base64url and names, which JSON never escapes.
fn thumbprint(members: &[(&'static str, String)]) -> Thumbprint {
    let members: Vec<String> =
        members.iter().map(|(name, value)| format!("\"{name}\":\"{value}\"")).collect();
    let hash = digest::digest(&digest::SHA256, format!("{{{}}}", members.join(",")).as_bytes());
    let mut thumbprint = [0; 32];
    for (to, from) in thumbprint.iter_mut().zip(hash.as_ref()) {
        *to = *from;
    }
    thumbprint
}

#[cfg(test)]
mod tests;
