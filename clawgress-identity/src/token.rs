//! Signed tokens (JWS compact serialization, RFC 7515 section 3.1; JWT, RFC 7519; RFC 8725's advice).
//!
//! What a token says of its own keys (`jku`, `jwk`, `x5u`, `x5c`) is never looked at, and `kid` finds keys in the
//! issuer's own set only. A [`VerifiedToken`] has no signature: whoever reads it from memory can't present it.

use std::fmt;

use aws_lc_rs::digest;

use crate::claims;
use crate::json::{Document, JsonError, Object};
use crate::jwk::{KID_BYTES_MAX, Thumbprint};
use crate::jwks::NoKey;
use crate::{Algorithm, KeySet, MappingError, base64url};

/// Longest token, bytes: the header fields of common servers end at 8 KiB.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Longest header, bytes decoded: some carry a certificate, which is not looked at.
const HEADER_BYTES_MAX: usize = 4 * 1024;
/// Members of a header that are looked at.
const HEADER_MEMBERS: [&str; 3] = ["alg", "kid", "typ"];

/// Why a token establishes no identity. Shows no part of it; the client is never told which it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Beyond [`TOKEN_BYTES_MAX`].
    #[error("the token has more than {TOKEN_BYTES_MAX} bytes")]
    Size,
    /// Not `header.claims.signature`, or encrypted.
    #[error("not a signed token of three parts")]
    Form,
    /// A part is not base64url in its one spelling.
    #[error("a part of the token is not base64url")]
    Encoding,
    /// The header is not to be read.
    #[error("the token's header is {0}")]
    Header(JsonError),
    /// The claims are not to be read.
    #[error("the token's claims are {0}")]
    Claims(JsonError),
    /// A header member is of another type or too long, or not one that may be there.
    #[error("the token's header has a malformed or forbidden member")]
    HeaderMember,
    /// `none`, an HMAC, or any other algorithm that is not of the closed list.
    #[error("the token's algorithm is never accepted")]
    Algorithm,
    /// The issuer may not use this algorithm.
    #[error("the token's algorithm is not one its issuer may use")]
    AlgorithmNotAllowed,
    /// `crit` or `b64`: extensions that change what the token means.
    #[error("the token needs an extension that is not known")]
    Critical,
    /// `typ` is not one the issuer's tokens may have.
    #[error("the token is of another type")]
    Type,
    /// `iss` is missing, or nobody's who is trusted.
    #[error("the token's issuer is not trusted")]
    UnknownIssuer,
    /// Several of the trusted are meant by `iss` and `aud`.
    #[error("the token is for audiences of several issuers")]
    AmbiguousIssuer,
    /// `aud` is missing, or not the gateway.
    #[error("the token is for another audience")]
    Audience,
    /// No key of the issuer has its id, or fits its algorithm.
    #[error("the token's key is not one of its issuer")]
    UnknownKey,
    /// Without a key id, too many keys may be meant.
    #[error("the token has no key id, and its issuer has many keys")]
    AmbiguousKey,
    /// The signature is not that of the key.
    #[error("the token's signature is wrong")]
    Signature,
    /// A claim is of another type or out of its range.
    #[error("the token's claim `{0}` is malformed")]
    Claim(&'static str),
    /// A claim that must be there is not.
    #[error("the token has no claim `{0}`")]
    Missing(&'static str),
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is to come.
    #[error("the token is not valid yet")]
    NotYet,
    /// `iat` is to come.
    #[error("the token was issued in the future")]
    IssuedInFuture,
    /// It lives longer than its issuer's tokens may.
    #[error("the token lives longer than its issuer's may")]
    Lifetime,
    /// It, or all that were issued when it was, are revoked.
    #[error("the token is revoked")]
    Revoked,
    /// It is bound to a key (`cnf`, RFC 7800), and nobody has checked that its presenter has that.
    #[error("the token counts only with proof of a key")]
    KeyBound,
    /// It is an ID token, and those are not accepted of its issuer.
    #[error("the token is an ID token: it says who logged in to a client, and is for nobody else")]
    IdToken,
    /// It is delegated, and its issuer's may not be.
    #[error("the token is delegated (`act`), which its issuer's may not be")]
    Delegated,
    /// One of its actors is named by another issuer, or is no agent of the registry.
    #[error("an actor of the token is no agent that is known")]
    UnknownActor,
    /// The chain of actors is malformed or too long.
    #[error("the token's chain of actors is malformed or too long")]
    Actors,
    /// `sub` is no SPIFFE ID of a workload.
    #[error("the token's subject is not the SPIFFE ID of a workload")]
    NotAnSvid,
    /// Its claims name no agent.
    #[error("the token names no agent: {0}")]
    Mapping(#[from] MappingError),
}

/// A token whose signature nobody has checked: good for nothing but to find out who has to check it.
pub(crate) struct UnverifiedToken<'a> {
    algorithm: Algorithm,
    header: Document,
    claims: Document,
    signed: &'a [u8],
    signature: Vec<u8>,
}

/// A token whose signature was right under a key of its issuer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VerifiedToken {
    algorithm: Algorithm,
    key: Thumbprint,
    pub(crate) typ: Option<Box<str>>,
    /// Whether its header has more than `alg`, `kid` and `typ`.
    pub(crate) has_other_members: bool,
    pub(crate) claims: Document,
    /// `jti`, or the hash of what was signed.
    pub(crate) id: Box<str>,
}

// === impl UnverifiedToken ===

/// Without what could be presented.
impl fmt::Debug for UnverifiedToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnverifiedToken").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl<'a> UnverifiedToken<'a> {
    pub(crate) fn parse(token: &'a str) -> Result<UnverifiedToken<'a>, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Size);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Form)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Form)?;
        if header.is_empty() || claims.is_empty() {
            return Err(TokenError::Form);
        }
        // A dot is no base64url either, so that it need only be looked for where something is wrong.
        let why = || if claims.contains('.') { TokenError::Form } else { TokenError::Encoding };
        let decode = |part| base64url::decode(part).ok_or_else(why);
        let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
        let header = Document::parse(header, HEADER_BYTES_MAX).map_err(TokenError::Header)?;
        let members = header.object();
        // Before anything else: extensions that a verifier does not know may change what all else means.
        if members.find("crit").is_some() || members.find("b64").is_some() {
            return Err(TokenError::Critical);
        }
        let text = |name| members.text(name).map_err(|()| TokenError::HeaderMember);
        let algorithm = text("alg")?.and_then(Algorithm::from_name).ok_or(TokenError::Algorithm)?;
        let (kid, _typ) = (text("kid")?, text("typ")?);
        if kid.is_some_and(|kid| kid.len() > KID_BYTES_MAX) {
            return Err(TokenError::HeaderMember);
        }
        let claims = Document::parse(claims, TOKEN_BYTES_MAX).map_err(TokenError::Claims)?;
        Ok(UnverifiedToken { algorithm, header, claims, signed: signed.as_bytes(), signature })
    }

    /// The claims, to find the issuer by; not to be believed.
    pub(crate) fn claims(&self) -> Object<'_> {
        self.claims.object()
    }

    /// Checks the signature.
    pub(crate) fn verify(
        self,
        keys: &KeySet,
        may_use: impl Fn(Algorithm) -> bool,
    ) -> Result<VerifiedToken, TokenError> {
        if !may_use(self.algorithm) {
            return Err(TokenError::AlgorithmNotAllowed);
        }
        let header = self.header.object();
        // Of another type they are refused where they are read first.
        let text = |name| header.text(name).map_err(|()| TokenError::HeaderMember);
        let (kid, typ) = (text("kid")?, text("typ")?);
        let key =
            keys.verify(kid, self.algorithm, self.signed, &self.signature).map_err(|none| match none {
                NoKey::Unknown => TokenError::UnknownKey,
                NoKey::Ambiguous => TokenError::AmbiguousKey,
                NoKey::Signature => TokenError::Signature,
            })?;
        let id =
            claims::text(self.claims.object(), "jti")?.map_or_else(|| hash(self.signed).into(), Into::into);
        Ok(VerifiedToken {
            algorithm: self.algorithm,
            key,
            typ: typ.map(Into::into),
            has_other_members: header.names().any(|name| !HEADER_MEMBERS.contains(&name)),
            claims: self.claims,
            id,
        })
    }
}

// === impl VerifiedToken ===

impl VerifiedToken {
    /// Whether its signature would be right under these keys too: its key is among them.
    pub(crate) fn stands(
        &self,
        keys: &KeySet,
        may_use: impl Fn(Algorithm) -> bool,
    ) -> Result<(), TokenError> {
        if !may_use(self.algorithm) {
            return Err(TokenError::AlgorithmNotAllowed);
        }
        if keys.has(&self.key, self.algorithm) { Ok(()) } else { Err(TokenError::UnknownKey) }
    }
}

/// `sha256:` and the hash of a credential without an id. Of a token it is the hash of what was signed: an ECDSA
/// signature has a second, equally right spelling.
pub(crate) fn hash(bytes: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    let mut name = String::with_capacity("sha256:".len() + 2 * digest.as_ref().len());
    name.push_str("sha256:");
    // Not by the formatter, which would be called for each byte of each token.
    for byte in digest.as_ref() {
        for digit in [byte >> 4, byte & 15] {
            name.extend(char::from_digit(digit.into(), 16));
        }
    }
    name
}

#[cfg(test)]
mod tests;
