//! The registered claims of a token (RFC 7519 section 4.1, RFC 8693 section 4.1), and what of them must hold now.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::TokenError;
use crate::json::{Json, Object};

/// Longest chain of delegated agents: longer ones are loops, or hide who acts.
pub const ACTORS_MAX: usize = 8;
/// Longest text of a claim that is kept or shown, bytes: a SPIFFE ID has 2048 at most.
const TEXT_BYTES_MAX: usize = 2048;
/// Most audiences of a token; RFC 7519 has no bound.
const AUDIENCES_MAX: usize = 32;
/// Largest time, Unix seconds: what a JSON number holds exactly (RFC 8259 section 6).
const TIME_S_MAX: i64 = (1 << 53) - 1;

/// The claim that a chain of delegated agents begins with.
pub(crate) const ACT: &str = "act";

/// Most skew between the clocks of issuer and gateway that may be configured, seconds.
pub const SKEW_S_MAX: u32 = 300;

/// One of a chain of delegated agents (`act`, RFC 8693 section 4.1), as records show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actor {
    /// Its subject.
    pub subject: String,
    /// Who says so, if another than the token's issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
}

/// What must hold of a token's times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) skew_s: u32,
    /// Longest time between `iat` and `exp`.
    pub(crate) lifetime_s_max: Option<u32>,
    /// Tokens that were issued before this are revoked.
    pub(crate) issued_after_s: Option<i64>,
}

/// A claim's text, if it is there: bounded, not empty, and without control characters.
pub(crate) fn text<'a>(claims: Object<'a>, name: &'static str) -> Result<Option<&'a str>, TokenError> {
    let text = claims.text(name).map_err(|()| TokenError::Claim(name))?;
    match text {
        Some(text) if !is_shown(text) => Err(TokenError::Claim(name)),
        text => Ok(text),
    }
}

fn is_shown(text: &str) -> bool {
    !text.is_empty() && text.len() <= TEXT_BYTES_MAX && !has_control(text)
}

fn has_control(text: &str) -> bool {
    if text.is_ascii() {
        // Without an early end, so that several bytes are looked at at once.
        return text.bytes().fold(false, |has, byte| has | byte.is_ascii_control());
    }
    text.chars().any(char::is_control)
}

/// Whether a token is for one of `own`.
pub(crate) fn is_for(claims: Object<'_>, own: &BTreeSet<String>) -> Result<bool, TokenError> {
    const AUD: &str = "aud";
    match claims.find(AUD) {
        None => Err(TokenError::Audience),
        Some(Json::Text(audience)) => Ok(own.contains(audience)),
        Some(Json::List(audiences)) => {
            let mut is_any = false;
            for (n, audience) in audiences.iter().enumerate() {
                let Json::Text(audience) = audience else { return Err(TokenError::Claim(AUD)) };
                if n == AUDIENCES_MAX {
                    return Err(TokenError::Claim(AUD));
                }
                is_any |= own.contains(audience);
            }
            Ok(is_any)
        }
        Some(_) => Err(TokenError::Claim(AUD)),
    }
}

/// A time in Unix seconds, which may have a fraction. Whichever of two seconds it lies between is the stricter one
/// counts: the earlier for an end, the later for a beginning.
fn time_s(claims: Object<'_>, name: &'static str, is_end: bool) -> Result<Option<i64>, TokenError> {
    let time_s = match claims.find(name) {
        None => return Ok(None),
        Some(Json::Integer(time_s)) => time_s,
        Some(Json::Float(time_s)) => {
            let time_s = if is_end { time_s.floor() } else { time_s.ceil() };
            #[expect(clippy::cast_possible_truncation, reason = "out of range it saturates, and is refused")]
            let time_s = time_s as i64;
            time_s
        }
        Some(_) => return Err(TokenError::Claim(name)),
    };
    if (0..=TIME_S_MAX).contains(&time_s) { Ok(Some(time_s)) } else { Err(TokenError::Claim(name)) }
}

/// Claims that say that a token is an ID token (OpenID Connect Core sections 2, 3.1.3.6 and 3.3.2.11; FAPI 1.0 part 2
/// section 5.1.1): it tells a client who logged in, and was never meant for anybody else.
const ID_TOKEN_CLAIMS: [&str; 4] = ["nonce", "at_hash", "c_hash", "s_hash"];

/// Whether a token is evidently an ID token.
pub(crate) fn is_id_token(claims: Object<'_>) -> bool {
    ID_TOKEN_CLAIMS.iter().any(|name| claims.find(name).is_some())
}

/// The chain of delegated agents as claims have it, who acts first; at its end an error, if it is too long or broken.
pub(crate) fn act_chain(claims: Object<'_>) -> impl Iterator<Item = Result<Object<'_>, TokenError>> {
    let mut next = claims.find(ACT);
    (0..=ACTORS_MAX).map_while(move |n| match next.take()? {
        Json::Object(actor) if n < ACTORS_MAX => {
            next = actor.find(ACT);
            Some(Ok(actor))
        }
        _ => Some(Err(TokenError::Actors)),
    })
}

/// The chain of delegated agents, who acts first.
pub(crate) fn actors(claims: Object<'_>) -> Result<Vec<Actor>, TokenError> {
    let actor = |actor: Result<Object<'_>, TokenError>| {
        let actor = actor?;
        let text = |name| text(actor, name).map_err(|_| TokenError::Actors);
        let subject = text("sub")?.ok_or(TokenError::Actors)?.to_owned();
        Ok(Actor { subject, issuer: text("iss")?.map(str::to_owned) })
    };
    act_chain(claims).map(actor).collect()
}

// === impl Actor ===

/// Whom it names may be a person.
impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Actor").finish_non_exhaustive()
    }
}

// === impl Window ===

impl Window {
    /// Judges `exp`, `nbf` and `iat` at `now_s`; returns when the token ends, the skew included.
    pub(crate) fn check(&self, claims: Object<'_>, now_s: i64) -> Result<i64, TokenError> {
        let skew_s = i64::from(self.skew_s);
        let ends_s = time_s(claims, "exp", true)?.ok_or(TokenError::Missing("exp"))?;
        let (begins_s, issued_s) = (time_s(claims, "nbf", false)?, time_s(claims, "iat", false)?);
        let gone_s = ends_s.saturating_add(skew_s);
        if now_s >= gone_s {
            return Err(TokenError::Expired);
        }
        let latest_s = now_s.saturating_add(skew_s);
        if begins_s.is_some_and(|t| t > latest_s) {
            return Err(TokenError::NotYet);
        }
        if issued_s.is_some_and(|t| t > latest_s) {
            return Err(TokenError::IssuedInFuture);
        }
        if let Some(lifetime_s_max) = self.lifetime_s_max {
            let issued_s = issued_s.ok_or(TokenError::Missing("iat"))?;
            if ends_s.saturating_sub(issued_s) > i64::from(lifetime_s_max) {
                return Err(TokenError::Lifetime);
            }
        }
        if let Some(issued_after_s) = self.issued_after_s
            && issued_s.ok_or(TokenError::Missing("iat"))? < issued_after_s
        {
            return Err(TokenError::Revoked);
        }
        Ok(gone_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Document;

    fn claims(text: &str) -> Document {
        Document::parse(text.into(), 1 << 16).unwrap()
    }

    #[test]
    fn times() {
        use TokenError::*;
        let plain = Window { skew_s: 10, lifetime_s_max: None, issued_after_s: None };
        let bounded = Window { lifetime_s_max: Some(100), issued_after_s: Some(900), ..plain };
        for (window, text, expected) in [
            (plain, r#"{"exp":1001}"#, Ok(1011)),
            (plain, r#"{"exp":991}"#, Ok(1001)),
            (plain, r#"{"exp":990}"#, Err(Expired)),
            (plain, r#"{"exp":990.9}"#, Err(Expired)),
            (plain, r#"{"exp":1e3}"#, Ok(1010)),
            (plain, "{}", Err(Missing("exp"))),
            (plain, r#"{"exp":"1001"}"#, Err(Claim("exp"))),
            (plain, r#"{"exp":null}"#, Err(Claim("exp"))),
            (plain, r#"{"exp":-1}"#, Err(Claim("exp"))),
            (plain, r#"{"exp":1e300}"#, Err(Claim("exp"))),
            (plain, r#"{"exp":18446744073709551615}"#, Err(Claim("exp"))),
            (plain, r#"{"exp":9223372036854775807}"#, Err(Claim("exp"))),
            (plain, r#"{"exp":9007199254740991}"#, Ok(9_007_199_254_741_001)),
            (plain, r#"{"exp":2000,"nbf":1010}"#, Ok(2010)),
            (plain, r#"{"exp":2000,"nbf":1010.1}"#, Err(NotYet)),
            (plain, r#"{"exp":2000,"nbf":1011}"#, Err(NotYet)),
            (plain, r#"{"exp":2000,"nbf":true}"#, Err(Claim("nbf"))),
            (plain, r#"{"exp":2000,"iat":1010}"#, Ok(2010)),
            (plain, r#"{"exp":2000,"iat":1011}"#, Err(IssuedInFuture)),
            (bounded, r#"{"exp":1001}"#, Err(Missing("iat"))),
            (bounded, r#"{"exp":1001,"iat":901}"#, Ok(1011)),
            (bounded, r#"{"exp":1002,"iat":901}"#, Err(Lifetime)),
            (bounded, r#"{"exp":995,"iat":900}"#, Ok(1005)),
            (bounded, r#"{"exp":995,"iat":899}"#, Err(Revoked)),
        ] {
            assert_eq!(window.check(claims(text).object(), 1000), expected, "{text}");
        }
        assert_eq!(plain.check(claims(r#"{"exp":1001}"#).object(), i64::MAX), Err(Expired));
        assert_eq!(plain.check(claims(r#"{"exp":1001,"nbf":5}"#).object(), i64::MIN), Err(NotYet));
    }

    #[test]
    fn audiences() {
        let own = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        for (text, expected) in [
            (r#"{"aud":"a"}"#, Ok(true)),
            (r#"{"aud":["x","b"]}"#, Ok(true)),
            (r#"{"aud":["b",7]}"#, Err(TokenError::Claim("aud"))),
            (r#"{"aud":"A"}"#, Ok(false)),
            (r#"{"aud":"a "}"#, Ok(false)),
            (r#"{"aud":"a,b"}"#, Ok(false)),
            (r#"{"aud":"a\u0000"}"#, Ok(false)),
            (r#"{"aud":[]}"#, Ok(false)),
            (r#"{"aud":{"a":1}}"#, Err(TokenError::Claim("aud"))),
            (r#"{"aud":null}"#, Err(TokenError::Claim("aud"))),
            ("{}", Err(TokenError::Audience)),
        ] {
            assert_eq!(is_for(claims(text).object(), &own), expected, "{text}");
        }
        let many = format!(r#"{{"aud":["a"{}]}}"#, r#","x""#.repeat(AUDIENCES_MAX));
        assert_eq!(is_for(claims(&many).object(), &own), Err(TokenError::Claim("aud")));
    }

    #[test]
    fn chains() {
        let chain = |n: usize| {
            let mut text = r#"{"sub":"last"}"#.to_owned();
            for n in 1..n {
                text = format!(r#"{{"sub":"a{n}","iss":"i","act":{text}}}"#);
            }
            actors(claims(&format!(r#"{{"act":{text}}}"#)).object())
        };
        let two = chain(2).unwrap();
        let actor = |subject: &str, issuer: Option<&str>| Actor {
            subject: subject.to_owned(),
            issuer: issuer.map(str::to_owned),
        };
        assert_eq!(two, [actor("a1", Some("i")), actor("last", None)]);
        assert_eq!(chain(ACTORS_MAX).map(|c| c.len()), Ok(ACTORS_MAX));
        assert_eq!(chain(ACTORS_MAX + 1), Err(TokenError::Actors));
        assert_eq!(actors(claims("{}").object()), Ok(vec![]));
        for wrong in [
            r#"{"act":"web"}"#,
            r#"{"act":null}"#,
            r#"{"act":{}}"#,
            r#"{"act":{"sub":7}}"#,
            r#"{"act":{"sub":"a\u0000"}}"#,
            r#"{"act":{"sub":"a","act":[]}}"#,
        ] {
            assert_eq!(actors(claims(wrong).object()), Err(TokenError::Actors), "{wrong}");
        }
    }
}
