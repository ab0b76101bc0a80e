//! Base-URL endpoints: upstreams that clients reach below a URL of the gateway's own.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Most endpoints: model providers and servers of one's own, by name.
pub(super) const ENDPOINTS_MAX: usize = 256;
/// Longest name: it is a segment of a path that people type.
const NAME_BYTES_MAX: usize = 63;

/// An upstream for clients that take a base URL: `http://GATEWAY:3128/NAME/v1/models` asks it for `/v1/models`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The first segment of the paths that lead there.
    pub name: String,
    /// Where the rest of a path goes: `https://HOST[:PORT][/PATH]`, or `http://`.
    pub upstream: String,
    /// Certificates that the upstream's must lead to, PEM, instead of the system's: for servers of one's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// Checks names and what can be said of an upstream without parsing its host.
pub(super) fn check(endpoints: &[Endpoint]) -> Result<(), super::check::Refused> {
    let refused = |why: String| Err(("[[endpoint]]", why));
    if endpoints.len() > ENDPOINTS_MAX {
        return refused(format!("at most {ENDPOINTS_MAX} endpoints"));
    }
    for (n, Endpoint { name, upstream, ca }) in endpoints.iter().enumerate() {
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_name) {
            return refused(format!(
                "`{}` is no name of an endpoint: 1 to {NAME_BYTES_MAX} of a-z, 0-9, `-` and `_`",
                name.escape_debug()
            ));
        }
        if endpoints.iter().take(n).any(|other| other.name == *name) {
            return refused(format!("endpoint `{name}` is named twice"));
        }
        let is_tls = upstream.starts_with("https://");
        if !is_tls && !upstream.starts_with("http://") {
            return refused(format!(
                "the `upstream` of endpoint `{name}` begins with `https://` or `http://`"
            ));
        }
        if ca.is_some() && !is_tls {
            return refused(format!(
                "endpoint `{name}` has a `ca`, and no `https://` upstream to verify by it"
            ));
        }
    }
    Ok(())
}
