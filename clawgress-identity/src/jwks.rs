//! JSON Web Key Sets (RFC 7517 section 5): the public keys of an issuer.
//!
//! Keys that can't be used are skipped and counted, so that an issuer may publish keys for others too. A document
//! with private or secret key material is refused whole: whoever publishes that has lost the key.

use crate::Algorithm;
use crate::json::{Document, Json, JsonError, Object};
use crate::jwk::{JwkError, Thumbprint, VerifyingKey};

/// Longest document, bytes: the largest of known providers have 20 KiB, with a certificate chain for each key.
pub const JWKS_BYTES_MAX: usize = 128 * 1024;
/// Most keys of a document: providers publish 2 to 10.
pub const JWKS_KEYS_MAX: usize = 64;
/// Most keys a signature is tried with: two of one id while a provider rolls over, or the few of a provider
/// without ids. Each costs a verification.
pub const KEYS_TRIED_MAX: usize = 4;

/// The keys of an issuer, parsed.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: Vec<VerifyingKey>,
    skipped: Skipped,
}

/// How many keys of a document are not used, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Of a type, curve or algorithm that is not accepted.
    pub unknown: usize,
    /// Not for signatures.
    pub other_use: usize,
    /// Malformed or weak.
    pub unfit: usize,
}

/// Why a document was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// Not a JSON object, or not within bounds.
    #[error("the key set is {0}")]
    Json(#[from] JsonError),
    /// `keys` is missing or not a list of objects.
    #[error("the key set has no list `keys` of objects")]
    Keys,
    /// More than [`JWKS_KEYS_MAX`].
    #[error("the key set has more than {JWKS_KEYS_MAX} keys")]
    TooMany,
    /// A private or symmetric key is among them.
    #[error("the key set has a private or symmetric key: revoke it, and publish public keys only")]
    Private,
    /// No key is left to verify with.
    #[error(
        "the key set has no key for EdDSA, ES256, ES384, RS256 or PS256 (RSA keys need 2048 to 8192 bits)"
    )]
    NoKeys,
}

/// Why no key verified a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoKey {
    /// No key has this id, or none this algorithm.
    Unknown,
    /// Without an id there are too many that may be meant.
    Ambiguous,
    /// It is no signature of the keys that may be meant.
    Signature,
}

// === impl KeySet ===

impl KeySet {
    /// Reads a document.
    ///
    /// # Errors
    /// If it is not a key set, is beyond a bound, has key material that is not public, or no key to verify with.
    pub fn parse(document: &[u8]) -> Result<KeySet, JwksError> {
        let set = KeySet::parse_for(document, &[None, Some("sig")])?;
        if set.keys.is_empty() { Err(JwksError::NoKeys) } else { Ok(set) }
    }

    /// Reads the keys with one of these values of `use`; there may be none.
    pub(crate) fn parse_for(document: &[u8], uses: &[Option<&str>]) -> Result<KeySet, JwksError> {
        let document = Document::parse(document.to_vec(), JWKS_BYTES_MAX)?;
        let mut set = KeySet::default();
        for jwk in jwks(document.object())? {
            set.push(jwk, uses)?;
        }
        Ok(set)
    }

    pub(crate) fn push(&mut self, jwk: Object<'_>, uses: &[Option<&str>]) -> Result<(), JwksError> {
        let skipped = match VerifyingKey::parse(jwk, uses) {
            Ok(key) => {
                self.keys.push(key);
                return Ok(());
            }
            Err(JwkError::Private) => return Err(JwksError::Private),
            Err(JwkError::Unknown) => &mut self.skipped.unknown,
            Err(JwkError::OtherUse) => &mut self.skipped.other_use,
            Err(JwkError::Unfit) => &mut self.skipped.unfit,
        };
        *skipped += 1;
        Ok(())
    }

    /// The keys of both, each once.
    pub(crate) fn with(mut self, others: &KeySet) -> KeySet {
        for key in &others.keys {
            if !self.keys.contains(key) {
                self.keys.push(key.clone());
            }
        }
        self
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Their thumbprints (RFC 7638, SHA-256, base64url), in the document's order.
    pub fn thumbprints(&self) -> impl Iterator<Item = String> {
        self.keys.iter().map(|key| crate::base64url::encode(&key.thumbprint))
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many keys of the document are not used.
    #[must_use]
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }

    /// Whether a token's key id is known. Tokens without one may be by any key.
    #[must_use]
    pub fn knows(&self, kid: Option<&str>) -> bool {
        kid.is_none_or(|kid| self.keys.iter().any(|key| key.kid.as_deref() == Some(kid)))
    }

    pub(crate) fn has(&self, thumbprint: &Thumbprint, algorithm: Algorithm) -> bool {
        self.keys.iter().any(|key| key.thumbprint == *thumbprint && key.fits(algorithm))
    }

    /// The key that signed. An id is an index into the set and nothing else: with one, only keys of that id are
    /// tried, and without one all that fit, [`KEYS_TRIED_MAX`] at most either way.
    pub(crate) fn verify(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<Thumbprint, NoKey> {
        let may = |key: &&VerifyingKey| {
            key.fits(algorithm) && kid.is_none_or(|kid| key.kid.as_deref() == Some(kid))
        };
        let candidates = self.keys.iter().filter(may);
        match candidates.clone().count() {
            0 => return Err(NoKey::Unknown),
            1..=KEYS_TRIED_MAX => {}
            _ => return Err(NoKey::Ambiguous),
        }
        let mut candidates = candidates.filter(|key| key.verifies(algorithm, message, signature));
        candidates.next().map(|key| key.thumbprint).ok_or(NoKey::Signature)
    }
}

/// The same keys by the same ids for the same algorithms, in whatever order; what is not used does not count.
impl PartialEq for KeySet {
    fn eq(&self, other: &KeySet) -> bool {
        let is_within =
            |these: &[VerifyingKey], those: &[VerifyingKey]| these.iter().all(|key| those.contains(key));
        self.keys.len() == other.keys.len()
            && is_within(&self.keys, &other.keys)
            && is_within(&other.keys, &self.keys)
    }
}

/// The keys of a document.
pub(crate) fn jwks(document: Object<'_>) -> Result<Vec<Object<'_>>, JwksError> {
    let Some(Json::List(keys)) = document.find("keys") else { return Err(JwksError::Keys) };
    if keys.iter().count() > JWKS_KEYS_MAX {
        return Err(JwksError::TooMany);
    }
    let object = |key| if let Json::Object(key) = key { Ok(key) } else { Err(JwksError::Keys) };
    keys.iter().map(object).collect()
}

#[cfg(test)]
mod tests;
