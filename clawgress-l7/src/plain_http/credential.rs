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
    if holds_key(target.as_bytes()) || would_go.into_iter().any(|f| holds_key(f.value)) {
        return nobody();
    }
    one_of_endpoint(head, is_known).unwrap_or_else(|_| nobody())
}

/// Whether a key of ours is anywhere in `text`, as it is or in a `Basic` credential.
fn holds_key(text: &[u8]) -> bool {
    let is_in = |text: &[u8]| (0..text.len()).any(|at| text.get(at..).is_some_and(ApiKey::is_like));
    let basic = proxy_authorization::parse(text);
    is_in(text) || basic.is_ok_and(|c| is_in(c.user.as_bytes()) || is_in(c.secret.as_bytes()))
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
