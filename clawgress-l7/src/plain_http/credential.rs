//! Where a request's credential is. Of an endpoint's request it is where the client would have the server's key: what is
//! ours must not go on to the server, and what is the server's must.

use clawgress_ebpf_common::DropReason;
use clawgress_identity::ApiKey;
use clawgress_inspect::http1::{Field, Head};
use clawgress_inspect::proxy_authorization;
use zeroize::Zeroizing;

/// Holds an agent's key or token and nothing else, where the server's own credential goes along in its usual place.
const OWN_FIELD: &str = "x-clawgress-key";
/// Where clients have a server's key, without a scheme: of Anthropic, Azure and Google.
const KEY_FIELDS: [&str; 3] = ["x-api-key", "api-key", "x-goog-api-key"];
const AUTHORIZATION: &str = "authorization";
/// The scheme of a name and a key (RFC 7617).
const BASIC: &[u8] = b"basic";

/// `Proxy-Authorization` of a request to a proxy.
///
/// # Errors
/// [`DropReason::CredentialInvalid`] if there are several.
pub fn of_proxy(head: &Head<'_>) -> Result<Option<Zeroizing<Vec<u8>>>, DropReason> {
    let values = head.fields.iter().filter(|f| f.name.eq_ignore_ascii_case("proxy-authorization"));
    only(values.map(|f| Zeroizing::new(f.value.to_vec())))
}

/// The credential of a request to an endpoint, as `Proxy-Authorization` would have it: in a field of its own; else an
/// API key where the server's would be; else what `Authorization` has, unless the connection itself tells whose it is
/// (`is_known`), so that no more is needed. Where there are several, it is one that nobody accepts.
///
/// What would go on with a key of ours in it, wherever that is, has no credential that counts either: a client that is
/// set up wrongly must not hand its key to a server.
pub fn of_endpoint(head: &Head<'_>, target: &str, is_known: bool) -> Option<Zeroizing<Vec<u8>>> {
    let nobody = || Some(bearer(b""));
    let ours = Ours::of(head, is_known);
    let would_go = head.fields.iter().filter(|f| !f.name.eq_ignore_ascii_case(OWN_FIELD) && !ours.has(f));
    let in_target = || is_in(target.as_bytes()) || is_in(&unescaped(target.as_bytes()));
    if in_target() || would_go.into_iter().any(|f| holds_key(f.value)) {
        return nobody();
    }
    one_of_endpoint(head, is_known).unwrap_or_else(|_| nobody())
}

/// Whether a key of ours is anywhere in a field's value, as it is or in a `Basic` credential, of whatever length and form.
fn holds_key(value: &[u8]) -> bool {
    let basic = || {
        let (scheme, rest) = value.trim_ascii().split_at_checked(BASIC.len())?;
        scheme.eq_ignore_ascii_case(BASIC).then(|| decoded(rest))
    };
    is_in(value) || basic().is_some_and(|text| is_in(&text))
}

fn is_in(text: &[u8]) -> bool {
    (0..text.len()).any(|at| text.get(at..).is_some_and(ApiKey::is_like))
}

/// Base64 as the most lenient server reads it: with either alphabet, past what is in none, up to where it is padded.
fn decoded(text: &[u8]) -> Zeroizing<Vec<u8>> {
    let value = |b: &u8| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    };
    let mut out = Zeroizing::new(Vec::with_capacity(text.len()));
    let (mut bits, mut count) = (0_u32, 0_u32);
    for value in text.iter().take_while(|b| **b != b'=').filter_map(value) {
        (bits, count) = (bits << 6 | u32::from(value), count + 6);
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff).unwrap_or_default());
        }
    }
    out
}

/// Text as servers read what is encoded in a target (RFC 3986 section 2.1).
fn unescaped(text: &[u8]) -> Zeroizing<Vec<u8>> {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (mut out, mut rest) = (Zeroizing::new(Vec::with_capacity(text.len())), text);
    while let Some((first, tail)) = rest.split_first() {
        let escaped = match tail {
            [high, low, ..] if *first == b'%' => digit(high).zip(digit(low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                out.push(high << 4 | low);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn one_of_endpoint(head: &Head<'_>, is_known: bool) -> Result<Option<Zeroizing<Vec<u8>>>, DropReason> {
    let named = |name: &'static str| head.fields.iter().filter(move |f| f.name.eq_ignore_ascii_case(name));
    if let Some(own) = only(named(OWN_FIELD).map(|f| bearer(f.value)))? {
        return Ok(Some(own));
    }
    let keys = KEY_FIELDS.into_iter().flat_map(named).filter(|f| is_key(f)).map(|f| bearer(f.value));
    let authorization = named(AUTHORIZATION).filter(|f| is_key(f));
    if let Some(key) = only(keys.chain(authorization.map(|f| Zeroizing::new(f.value.to_vec()))))? {
        return Ok(Some(key));
    }
    if is_known {
        return Ok(None);
    }
    only(named(AUTHORIZATION).map(|f| Zeroizing::new(f.value.to_vec())))
}

/// Which fields of a request to an endpoint are for the gateway alone.
pub struct Ours {
    /// Whether `Authorization` is one of them.
    authorization: bool,
}

// === impl Ours ===

impl Ours {
    /// Those of `head`.
    pub fn of(head: &Head<'_>, is_known: bool) -> Self {
        let is_elsewhere = |f: &Field<'_>| {
            f.name.eq_ignore_ascii_case(OWN_FIELD) || !f.name.eq_ignore_ascii_case(AUTHORIZATION) && is_key(f)
        };
        Ours { authorization: !is_known && !head.fields.iter().any(is_elsewhere) }
    }

    /// Whether `field` is one.
    pub fn has(&self, field: &Field<'_>) -> bool {
        is_key(field) || self.authorization && field.name.eq_ignore_ascii_case(AUTHORIZATION)
    }
}

fn only<T>(mut values: impl Iterator<Item = T>) -> Result<Option<T>, DropReason> {
    let first = values.next();
    if values.next().is_some() { Err(DropReason::CredentialInvalid) } else { Ok(first) }
}

fn bearer(value: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([b"Bearer ", value.trim_ascii()].concat())
}

/// Whether a field that could hold a server's key holds one of the gateway's, well-formed or not.
fn is_key(field: &Field<'_>) -> bool {
    let named = |name: &str| field.name.eq_ignore_ascii_case(name);
    if KEY_FIELDS.into_iter().any(named) {
        return ApiKey::is_like(field.value.trim_ascii());
    }
    named(AUTHORIZATION)
        && proxy_authorization::bearer(field.value).is_some_and(|token| ApiKey::is_like(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_whatever_a_server_would_read_it() {
        // `agent:claw_1`, `claw_1` with no name, padded, cut by blanks, and in the other alphabet.
        for value in [
            "Bearer claw_1",
            "x claw_1",
            "Basic YWdlbnQ6Y2xhd18x",
            "basic  Y2xhd18x",
            "Basic Y2xh d18x",
            "Basic Pz8/Y2xhd18x",
            "Basic Pz8_Y2xhd18x==",
        ] {
            assert!(holds_key(value.as_bytes()), "{value}");
        }
        let long = [b"a".repeat(1_500), b"claw_1".to_vec()].concat();
        let long = proxy_authorization::encode("agent", std::str::from_utf8(&long).expect("text"));
        assert!(long.len() > proxy_authorization::VALUE_BYTES_MAX && holds_key(long.as_bytes()));
        for value in ["Basic YWdlbnQ6a2V5", "Bearer Y2xhd18x", "claw", ""] {
            assert!(!holds_key(value.as_bytes()), "{value}");
        }
        for (target, found) in
            [("/a?k=claw%5F1", true), ("/a?k=%63law_1", true), ("/a?k=claw%255f1", false), ("/%", false)]
        {
            assert_eq!(is_in(&unescaped(target.as_bytes())), found, "{target}");
        }
    }
}
