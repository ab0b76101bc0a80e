//! Issuers of JSON Web Tokens: whom a token must be from and for, and which agent it then proves.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::claims::{self, SKEW_S_MAX, Window};
use crate::json::{Json, Object};
use crate::mapping::{Mapped, Values};
use crate::token::{UnverifiedToken, VerifiedToken};
use crate::{
    AgentId, Algorithm, JwksError, KeySet, Mapping, MappingError, MappingRuleError, Part, ProviderError,
    ProviderRecord, RootId, Rule, TokenError,
};

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
    /// Whether ID tokens are accepted too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub id_tokens: bool,
    /// What becomes of delegated tokens.
    #[serde(default, skip_serializing_if = "Delegation::is_recorded")]
    pub act: Delegation,
    /// Which agent an actor is, by the claims of `act` itself; exactly where [`Delegation::Known`] is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Rule<ClaimPath>>,
    /// Which agent a token proves.
    pub mapping: Mapping<ClaimPath>,
    /// How its keys are fetched; `None`: they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ProviderRecord>,
    /// Its public keys that count always: a JWKS document. Empty: there are only those that are fetched.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub keys: String,
}

/// What becomes of tokens with a chain of delegated agents (`act`, RFC 8693 section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delegation {
    /// The chain is recorded; whoever is mapped is judged, and nobody else.
    #[default]
    Record,
    /// Every actor has to be an agent of the registry that is active, too.
    Known,
    /// They are refused.
    None,
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
    /// Neither keys nor a provider.
    #[error("there are neither keys (`--keys`) nor a `[provider]` to fetch them of: give one of them")]
    NoKeys,
    /// Its keys can't be read.
    #[error(transparent)]
    Keys(#[from] JwksError),
    /// Its provider can't be asked.
    #[error("`provider`: {0}")]
    Provider(#[from] ProviderError),
    /// A rule for actors that nobody asks, or none where one is needed.
    #[error(
        "`act = \"known\"` needs `actor`, such as `actor = {{ from = \"sub\" }}`, and nothing else may have it"
    )]
    Actor,
    /// Who acts is mapped, and may not act.
    #[error(
        "the mapping asks `act`, and `act = \"none\"` refuses every token that has it: leave one of them out"
    )]
    ActUnused,
}

/// An issuer, ready to judge tokens with.
#[derive(Clone, Debug)]
pub struct Issuer {
    record: IssuerRecord,
    /// What was fetched of its provider: a JWKS document.
    fetched: Option<String>,
    /// All its keys.
    keys: KeySet,
}

/// Issuers by `iss`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Issuers {
    by_name: BTreeMap<String, Vec<Arc<Issuer>>>,
    /// Audiences of those that can't be used, by the same.
    unusable: BTreeMap<String, Vec<BTreeSet<String>>>,
}

/// Whom a token stands for.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) mapped: Mapped,
    /// Agents that have to be active besides, for it is by them.
    pub(crate) actors: Vec<AgentId>,
    /// When the token ends, Unix seconds.
    pub(crate) ends_s: i64,
}

// === impl Delegation ===

impl Delegation {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape serde asks for")]
    fn is_recorded(&self) -> bool {
        *self == Delegation::Record
    }
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
    fn begins_with(&self, name: &str) -> bool {
        self.0.first().is_some_and(|first| first == name)
    }

    /// The path of these member names.
    #[must_use]
    pub fn new(names: &[&str]) -> Self {
        ClaimPath(names.iter().map(|n| (*n).to_owned()).collect())
    }

    fn is_bounded(&self) -> bool {
        (1..=PATH_MAX).contains(&self.0.len()) && self.0.iter().all(|name| name.len() <= URL_BYTES_MAX)
    }

    /// The texts there: of a list each, and numbers and truth values as JSON has them.
    fn values<'a>(&self, claims: Object<'a>) -> Values<'a> {
        fn one(value: Json<'_>) -> Option<Cow<'_, str>> {
            match value {
                Json::Text(text) => Some(Cow::Borrowed(text)),
                Json::Integer(number) => Some(Cow::Owned(number.to_string())),
                Json::Bool(truth) => Some(Cow::Borrowed(if truth { "true" } else { "false" })),
                _ => None,
            }
        }
        match claims.at(&self.0) {
            Some(Json::List(values)) => values.iter().filter_map(one).collect(),
            Some(value) => one(value).into_iter().collect(),
            None => Values::from_iter([]),
        }
    }
}

// === impl Issuer ===

impl Issuer {
    /// Checks a record and parses its keys. Of its provider nothing was fetched yet.
    ///
    /// # Errors
    /// If something is missing, beyond a bound, contradicts itself, or no key can be used.
    pub fn new(record: IssuerRecord) -> Result<Issuer, IssuerError> {
        Issuer::with_fetched(record, None)
    }

    /// As [`new`](Self::new), with the keys that were fetched of its provider: a JWKS document.
    ///
    /// # Errors
    /// As there, and if it is no key set.
    pub fn with_fetched(record: IssuerRecord, fetched: Option<String>) -> Result<Issuer, IssuerError> {
        check(&record)?;
        let mut keys = KeySet::default();
        if record.keys.is_empty() && record.provider.is_none() {
            return Err(IssuerError::NoKeys);
        }
        if !record.keys.is_empty() {
            keys = KeySet::parse(record.keys.as_bytes())?;
        }
        // Of an issuer that has no provider any more they count for nothing.
        let fetched = fetched.filter(|_| record.provider.is_some());
        if let Some(fetched) = &fetched {
            keys = keys.with(&KeySet::parse(fetched.as_bytes())?);
        }
        Ok(Issuer { record, fetched, keys })
    }

    /// Whether it is what these make.
    pub(crate) fn is_of(&self, record: &IssuerRecord, fetched: Option<&String>) -> bool {
        self.record == *record && self.fetched.as_ref() == fetched.filter(|_| record.provider.is_some())
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
    pub(crate) fn judge(&self, token: &VerifiedToken, now_s: i64) -> Result<Judged, TokenError> {
        let claims = token.claims.object();
        token.stands(&self.keys, |algorithm| self.may_use(algorithm))?;
        if !self.is_type(token.typ.as_deref()) {
            return Err(TokenError::Type);
        }
        // RFC 9068 section 2.1: what is typed as an access token is none, whatever it carries.
        let is_access_token =
            token.typ.as_deref().is_some_and(|typ| short(typ).eq_ignore_ascii_case("at+jwt"));
        if !self.record.id_tokens && !is_access_token && claims::is_id_token(claims) {
            return Err(TokenError::IdToken);
        }
        if claims::text(claims, "iss")? != Some(&*self.record.issuer) {
            return Err(TokenError::UnknownIssuer);
        }
        if !claims::is_for(claims, &self.record.audiences)? {
            return Err(TokenError::Audience);
        }
        // RFC 9449 section 7.2, RFC 8705 section 3: to take it as a plain bearer token would undo the binding.
        if claims.find("cnf").is_some() {
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
        let ends_s = window.check(claims, now_s)?;
        let tenant = self.record.id.tenant();
        let mapped = self.record.mapping.apply(tenant, |path| path.values(claims))?;
        Ok(Judged { mapped, actors: self.actors(claims)?, ends_s })
    }

    /// The agents that act in a token, as far as they have to be known.
    fn actors(&self, claims: Object<'_>) -> Result<Vec<AgentId>, TokenError> {
        let length = claims::act_chain(claims).try_fold(0_usize, |n, actor| actor.map(|_| n + 1))?;
        let rule = match (self.record.act, &self.record.actor) {
            (Delegation::Record, _) => return Ok(Vec::new()),
            (Delegation::None, _) if length == 0 => return Ok(Vec::new()),
            (Delegation::None, _) => return Err(TokenError::Delegated),
            (Delegation::Known, rule) => rule.as_ref().ok_or(TokenError::UnknownActor)?,
        };
        let agent = |actor: Result<Object<'_>, TokenError>| {
            let actor = actor?;
            // Another issuer's names say nothing of ours.
            if claims::text(actor, "iss")?.is_some_and(|issuer| issuer != self.record.issuer) {
                return Err(TokenError::UnknownActor);
            }
            let name = rule.apply(Part::Actor, |path| path.values(actor))?;
            AgentId::new(self.record.id.tenant(), &name).map_err(|_| MappingError::Reserved.into())
        };
        claims::act_chain(claims).map(agent).collect()
    }

    /// RFC 7515 section 4.1.9: a media type, whose `application/` may be left out.
    fn is_type(&self, typ: Option<&str>) -> bool {
        let Some(typ) = typ else { return !self.record.type_required };
        self.record.types.iter().any(|own| short(own).eq_ignore_ascii_case(short(typ)))
    }
}

/// A media type without `application/`.
fn short(typ: &str) -> &str {
    const PREFIX: &str = "application/";
    match typ.split_at_checked(PREFIX.len()) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case(PREFIX) && !rest.contains('/') => rest,
        _ => typ,
    }
}

/// Whether all but the keys is complete and bounded, and nothing contradicts anything.
fn check(record: &IssuerRecord) -> Result<(), IssuerError> {
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
    if let Some(provider) = &record.provider {
        provider.check(&record.issuer)?;
    }
    check_mapping(record)
}

fn check_mapping(record: &IssuerRecord) -> Result<(), IssuerError> {
    record.mapping.check()?;
    if record.actor.is_some() != (record.act == Delegation::Known) {
        return Err(IssuerError::Actor);
    }
    if let Some(actor) = &record.actor {
        actor.check(Part::Actor)?;
        if actor.value.is_some() {
            return Err(IssuerError::Actor);
        }
    }
    let mut places = record.mapping.places().chain(record.actor.iter().filter_map(|rule| rule.from.as_ref()));
    if !places.all(ClaimPath::is_bounded) {
        return Err(IssuerError::Path);
    }
    if record.act == Delegation::None && record.mapping.places().any(|path| path.begins_with(claims::ACT)) {
        return Err(IssuerError::ActUnused);
    }
    Ok(())
}

// === impl Issuers ===

impl Issuers {
    /// `unusable` are what others would be known by, had their records been of use: nobody else is known by it.
    pub(crate) fn new(
        issuers: impl IntoIterator<Item = Arc<Issuer>>,
        unusable: impl IntoIterator<Item = (String, BTreeSet<String>)>,
    ) -> Issuers {
        let mut by_name: BTreeMap<String, Vec<Arc<Issuer>>> = BTreeMap::new();
        for issuer in issuers {
            by_name.entry(issuer.record.issuer.clone()).or_default().push(issuer);
        }
        let mut others: BTreeMap<String, Vec<BTreeSet<String>>> = BTreeMap::new();
        for (name, audiences) in unusable {
            by_name.entry(name.clone()).or_default();
            others.entry(name).or_default().push(audiences);
        }
        Issuers { by_name, unusable: others }
    }

    pub(crate) fn by_id(&self, id: &RootId) -> Option<&Arc<Issuer>> {
        self.by_name.values().flatten().find(|issuer| issuer.record.id == *id)
    }

    /// Whether any goes by this `iss`.
    pub(crate) fn knows(&self, claims: Object<'_>) -> bool {
        matches!(claims.text("iss"), Ok(Some(name)) if self.by_name.contains_key(name))
    }

    /// The one issuer a token names by `iss`, and by `aud` where several tenants trust the same.
    pub(crate) fn of(&self, claims: Object<'_>) -> Result<&Arc<Issuer>, TokenError> {
        let name = claims::text(claims, "iss")?.ok_or(TokenError::UnknownIssuer)?;
        let issuers = self.by_name.get(name).ok_or(TokenError::UnknownIssuer)?;
        let mut found = None;
        for issuer in issuers {
            if claims::is_for(claims, &issuer.record.audiences)? && found.replace(issuer).is_some() {
                return Err(TokenError::AmbiguousIssuer);
            }
        }
        // A token that two would have been asked about is not the other's because one can't be.
        for audiences in self.unusable.get(name).into_iter().flatten() {
            if found.is_some() && claims::is_for(claims, audiences)? {
                return Err(TokenError::AmbiguousIssuer);
            }
        }
        found.ok_or(TokenError::Audience)
    }
}

#[cfg(test)]
mod tests;
