//! Issuers of JSON Web Tokens: whom a token must be from and for, and which agent it then proves.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::claims::{self, SKEW_S_MAX, Window};
use crate::json::{Json, Object};
use crate::mapping::{Mapped, Values};
use crate::token::{UnverifiedToken, VerifiedToken};
use crate::{Algorithm, JwksError, KeySet, Mapping, MappingRuleError, RootId, TokenError};

/// Most issuers of a node: each tenant has a few.
pub const ISSUERS_MAX: usize = 1024;
/// Longest issuer or audience, bytes.
const URL_BYTES_MAX: usize = 512;
/// Most audiences and types of an issuer: a gateway has few names.
const NAMES_MAX: usize = 16;
/// Most revoked tokens of an issuer. More need [`IssuerRecord::issued_after_s`].
const REVOKED_MAX: usize = 10_000;
/// Longest id of a revoked token, bytes: no longer `jti` is read.
const REVOKED_BYTES_MAX: usize = 2048;
/// Longest path to a claim, members: no known provider nests deeper than four.
const PATH_MAX: usize = 8;
/// Skew that is allowed for where none is configured, seconds.
const SKEW_S: u32 = 30;

/// An issuer as the registry holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerRecord {
    /// Its id here.
    pub id: RootId,
    /// What `iss` must be, byte for byte.
    pub issuer: String,
    /// What one of `aud` must be, byte for byte.
    pub audiences: BTreeSet<String>,
    /// By which algorithms it may sign.
    pub algorithms: BTreeSet<Algorithm>,
    /// What `typ` may be where it is there (without regard to case, and without `application/`).
    #[serde(default = "default_types")]
    pub types: BTreeSet<String>,
    /// Whether `typ` must be there.
    #[serde(default)]
    pub type_required: bool,
    /// Difference between its clock and the gateway's that is allowed for, seconds, [`SKEW_S_MAX`] at most.
    #[serde(default = "default_skew_s")]
    pub skew_s: u32,
    /// Longest time from `iat` to `exp`, seconds; then `iat` must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_s_max: Option<u32>,
    /// Tokens that were issued before this Unix time are revoked; then `iat` must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_after_s: Option<i64>,
    /// Revoked tokens, by `jti` or, where a token has none, by the id that records show.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub revoked: BTreeSet<String>,
    /// Which agent a token proves.
    pub mapping: Mapping<ClaimPath>,
    /// Its public keys: a JWKS document.
    pub keys: String,
}

fn default_types() -> BTreeSet<String> {
    ["JWT", "at+jwt"].map(str::to_owned).into()
}

fn default_skew_s() -> u32 {
    SKEW_S
}

/// Where a claim stands: the names of the members that lead to it. One name may be written alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OneOrMany", into = "Vec<String>")]
pub struct ClaimPath(Vec<String>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Why an issuer was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssuerError {
    /// `issuer` is empty or too long.
    #[error("`issuer` needs 1 to {URL_BYTES_MAX} bytes: write what `iss` is in its tokens")]
    Issuer,
    /// No audience, too many, or one that is empty or too long.
    #[error("`audiences` needs 1 to {NAMES_MAX} texts: write what `aud` is in tokens for this gateway")]
    Audiences,
    /// No algorithm.
    #[error("`algorithms` names none: write those it signs by, of EdDSA, ES256, ES384, RS256 and PS256")]
    Algorithms,
    /// No type, too many, or an empty one.
    #[error("`types` needs 1 to {NAMES_MAX} texts, such as `JWT` and `at+jwt`")]
    Types,
    /// More skew than may be.
    #[error("`skew_s` is more than {SKEW_S_MAX}: set the clocks by NTP instead")]
    Skew,
    /// More revoked tokens than are kept.
    #[error("`revoked` has more than {REVOKED_MAX} tokens: set `issued_after_s` instead")]
    Revoked,
    /// An id of a revoked token that no token can have.
    #[error("`revoked` has an id of no or more than {REVOKED_BYTES_MAX} bytes: no token has such a one")]
    RevokedId,
    /// A path to a claim that is empty or too long.
    #[error("`from` needs 1 to {PATH_MAX} member names")]
    Path,
    /// The mapping is not complete or not bounded.
    #[error(transparent)]
    Mapping(#[from] MappingRuleError),
    /// Its keys can't be read.
    #[error(transparent)]
    Keys(#[from] JwksError),
}

/// An issuer, ready to judge tokens with.
#[derive(Clone, Debug)]
pub struct Issuer {
    record: IssuerRecord,
    keys: KeySet,
}

/// Issuers by `iss`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Issuers {
    by_name: BTreeMap<String, Vec<Issuer>>,
}

// === impl ClaimPath ===

impl From<OneOrMany> for ClaimPath {
    fn from(path: OneOrMany) -> ClaimPath {
        match path {
            OneOrMany::One(name) => ClaimPath(vec![name]),
            OneOrMany::Many(names) => ClaimPath(names),
        }
    }
}

impl From<ClaimPath> for Vec<String> {
    fn from(path: ClaimPath) -> Vec<String> {
        path.0
    }
}

impl ClaimPath {
    /// The path of these member names.
    #[must_use]
    pub fn new(names: &[&str]) -> Self {
        ClaimPath(names.iter().map(|n| (*n).to_owned()).collect())
    }

    fn is_bounded(&self) -> bool {
        (1..=PATH_MAX).contains(&self.0.len()) && self.0.iter().all(|name| name.len() <= URL_BYTES_MAX)
    }

    /// The texts there: of a list each, and numbers and truth values as JSON has them.
    fn values<'a>(&self, claims: &'a Object) -> Values<'a> {
        fn one(value: &Json) -> Option<Cow<'_, str>> {
            match value {
                Json::Text(text) => Some(Cow::Borrowed(text)),
                Json::Integer(number) => Some(Cow::Owned(number.to_string())),
                Json::Bool(truth) => Some(Cow::Borrowed(if *truth { "true" } else { "false" })),
                _ => None,
            }
        }
        match claims.at(&self.0) {
            Some(Json::List(values)) => values.iter().filter_map(one).collect(),
            Some(value) => one(value).into_iter().collect(),
            None => Vec::new(),
        }
    }
}

// === impl Issuer ===

impl Issuer {
    /// Checks a record and parses its keys.
    ///
    /// # Errors
    /// If something is missing, beyond a bound, or no key can be used.
    pub fn new(record: IssuerRecord) -> Result<Issuer, IssuerError> {
        let is_text = |text: &String| (1..=URL_BYTES_MAX).contains(&text.len());
        let are_names =
            |names: &BTreeSet<String>| (1..=NAMES_MAX).contains(&names.len()) && names.iter().all(is_text);
        if !is_text(&record.issuer) {
            return Err(IssuerError::Issuer);
        }
        if !are_names(&record.audiences) {
            return Err(IssuerError::Audiences);
        }
        if record.algorithms.is_empty() {
            return Err(IssuerError::Algorithms);
        }
        if !are_names(&record.types) {
            return Err(IssuerError::Types);
        }
        if record.skew_s > SKEW_S_MAX {
            return Err(IssuerError::Skew);
        }
        if record.revoked.len() > REVOKED_MAX {
            return Err(IssuerError::Revoked);
        }
        if record.revoked.iter().any(|id| id.is_empty() || id.len() > REVOKED_BYTES_MAX) {
            return Err(IssuerError::RevokedId);
        }
        record.mapping.check()?;
        if !record.mapping.places().all(ClaimPath::is_bounded) {
            return Err(IssuerError::Path);
        }
        let keys = KeySet::parse(record.keys.as_bytes())?;
        Ok(Issuer { record, keys })
    }

    /// The record.
    #[must_use]
    pub fn record(&self) -> &IssuerRecord {
        &self.record
    }

    /// Its keys.
    #[must_use]
    pub fn keys(&self) -> &KeySet {
        &self.keys
    }

    fn may_use(&self, algorithm: Algorithm) -> bool {
        self.record.algorithms.contains(&algorithm)
    }

    /// Checks the signature of a token that names this issuer.
    pub(crate) fn verify(&self, token: UnverifiedToken<'_>) -> Result<VerifiedToken, TokenError> {
        token.verify(&self.keys, |algorithm| self.may_use(algorithm))
    }

    /// Judges all but the signature, whose key has to be one still: now, and again whenever something changed.
    /// Returns the agent, and when the token ends.
    pub(crate) fn judge(&self, token: &VerifiedToken, now_s: i64) -> Result<(Mapped, i64), TokenError> {
        token.stands(&self.keys, |algorithm| self.may_use(algorithm))?;
        if !self.is_type(token.typ.as_deref()) {
            return Err(TokenError::Type);
        }
        if claims::text(&token.claims, "iss")? != Some(&*self.record.issuer) {
            return Err(TokenError::UnknownIssuer);
        }
        if !claims::is_for(&token.claims, &self.record.audiences)? {
            return Err(TokenError::Audience);
        }
        // RFC 9449 section 7.2, RFC 8705 section 3: to take it as a plain bearer token would undo the binding.
        if token.claims.find("cnf").is_some() {
            return Err(TokenError::KeyBound);
        }
        if self.record.revoked.contains(&*token.id) {
            return Err(TokenError::Revoked);
        }
        let window = Window {
            skew_s: self.record.skew_s,
            lifetime_s_max: self.record.lifetime_s_max,
            issued_after_s: self.record.issued_after_s,
        };
        let ends_s = window.check(&token.claims, now_s)?;
        let tenant = self.record.id.tenant();
        let mapped = self.record.mapping.apply(tenant, |path| path.values(&token.claims))?;
        Ok((mapped, ends_s))
    }

    /// RFC 7515 section 4.1.9: a media type, whose `application/` may be left out.
    fn is_type(&self, typ: Option<&str>) -> bool {
        const PREFIX: &str = "application/";
        fn short(typ: &str) -> &str {
            match typ.split_at_checked(PREFIX.len()) {
                Some((prefix, rest)) if prefix.eq_ignore_ascii_case(PREFIX) && !rest.contains('/') => rest,
                _ => typ,
            }
        }
        let Some(typ) = typ else { return !self.record.type_required };
        self.record.types.iter().any(|own| short(own).eq_ignore_ascii_case(short(typ)))
    }
}

// === impl Issuers ===

impl Issuers {
    pub(crate) fn new(issuers: impl IntoIterator<Item = Issuer>) -> Issuers {
        let mut by_name: BTreeMap<String, Vec<Issuer>> = BTreeMap::new();
        for issuer in issuers {
            by_name.entry(issuer.record.issuer.clone()).or_default().push(issuer);
        }
        Issuers { by_name }
    }

    pub(crate) fn by_id(&self, id: &RootId) -> Option<&Issuer> {
        self.by_name.values().flatten().find(|issuer| issuer.record.id == *id)
    }

    /// Whether any goes by this `iss`.
    pub(crate) fn knows(&self, claims: &Object) -> bool {
        matches!(claims.text("iss"), Ok(Some(name)) if self.by_name.contains_key(name))
    }

    /// The one issuer a token names by `iss`, and by `aud` where several tenants trust the same.
    pub(crate) fn of(&self, claims: &Object) -> Result<&Issuer, TokenError> {
        let name = claims::text(claims, "iss")?.ok_or(TokenError::UnknownIssuer)?;
        let issuers = self.by_name.get(name).ok_or(TokenError::UnknownIssuer)?;
        let mut found = None;
        for issuer in issuers {
            if claims::is_for(claims, &issuer.record.audiences)? && found.replace(issuer).is_some() {
                return Err(TokenError::AmbiguousIssuer);
            }
        }
        found.ok_or(TokenError::Audience)
    }
}

#[cfg(test)]
mod tests;
