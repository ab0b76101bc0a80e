//! Which header fields of a request are the gateway's to set or take away: those of one hop, those by which servers are
//! told who the client is, and those that frame a message. Neither a client nor a policy writes one of them.

/// Fields of one hop (RFC 9110 section 7.6.1), and what only makes sense with them.
const HOP: [&str; 9] = [
    "connection",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "max-forwards",
];

/// Fields by which servers are told who the client is, where it comes from, or what it "really" asked
/// for. Compared with `_` taken for `-`, as CGI does.
const IDENTITY: [&str; 28] = [
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded",
    "remote-addr",
    "remote-user",
    "true-client-ip",
    "wl-proxy-client-ip",
    "x-client-cert",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-host",
    "x-http-method-override",
    "x-method-override",
    "x-original-forwarded-for",
    "x-original-host",
    "x-original-url",
    "x-originating-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-remote-user",
    "x-ssl-client-verify",
    "x-rewrite-url",
    "x-http-method",
];

/// Beginnings of such names.
const IDENTITY_PREFIXES: [&str; 4] = ["proxy-", "x-clawgress-", "x-forwarded-", "x-authenticated-"];

/// The same, as single servers in front of others name them: oauth2-proxy, Authelia, Grafana's, load balancers of Google, AWS and
/// Azure, App Engine, Tailscale. No client writes one; policy may set one that its server believes.
const ASSERTED: [&str; 3] = ["x-azure-clientip", "x-azure-socketip", "x-forwarded"];

/// Beginnings of such names.
const ASSERTED_PREFIXES: [&str; 7] = [
    "remote-",
    "tailscale-user-",
    "x-amzn-oidc-",
    "x-appengine-",
    "x-auth-request-",
    "x-goog-authenticated-user-",
    "x-webauth-",
];

/// Fields that say where a message ends, whose variants with `_` a CGI server would take for the real ones.
const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];

/// Fields that say how a body is read, by which it is judged.
const READING: [&str; 2] = ["content-encoding", "content-type"];

/// What names have in them that hold secrets, wherever it stands: `access_token`, `X-Amz-Signature`, `clientSecret`.
const SECRET_PARTS: [&str; 16] = [
    "accesskey",
    "apikey",
    "assertion",
    "authoriz",
    "cookie",
    "credential",
    "jwt",
    "masterkey",
    "passcode",
    "passphrase",
    "passw",
    "privatekey",
    "secret",
    "session",
    "signature",
    "token",
];

/// Words of such names: `X-Api-Key`, `key`, `sig`.
const SECRET_WORDS: [&str; 7] = ["auth", "key", "keys", "otp", "pwd", "sid", "sig"];

/// Whether two names, in lowercase, are one to servers that hand fields on as CGI does (RFC 3875 section 4.1.18).
#[must_use]
pub fn is_same(one: &str, other: &str) -> bool {
    let plain = |b: u8| if b == b'_' { b'-' } else { b };
    one.len() == other.len() && one.bytes().zip(other.bytes()).all(|(a, b)| plain(a) == plain(b))
}

/// Whether a client's field, by its name in lowercase, may go on.
#[must_use]
pub fn goes_on(name: &str) -> bool {
    let cgi = name.replace('_', "-");
    let posing = name != cgi && [&FRAMING[..], &READING, &HOP].iter().any(|known| known.contains(&&*cgi));
    !posing && !HOP.contains(&name) && !is_identity(&cgi) && !is_asserted(&cgi)
}

/// What keeps policy from writing a field, by its name in lowercase; `None` if it may.
#[must_use]
pub(crate) fn refusal(name: &str) -> Option<&'static str> {
    let cgi = name.replace('_', "-");
    if HOP.contains(&&*cgi) {
        return Some("it is of one hop, or says where the request goes, which has been judged already");
    }
    if FRAMING.contains(&&*cgi) {
        return Some("it says where the request ends");
    }
    if READING.contains(&&*cgi) {
        return Some("it says how the body is read, which has been judged already");
    }
    is_identity(&cgi).then_some(
        "servers are told by it who the client is, or what it asked for, and that is the gateway's to say",
    )
}

/// Whether policy may be asked about a field that goes on, by its name in lowercase and with `-` for `_`.
pub(crate) fn is_asked(name: &str) -> bool {
    !HOP.contains(&name) && !FRAMING.contains(&name) && !is_identity(name) && !is_asserted(name)
}

/// Whether what a header field or a parameter of a query says is a secret, as far as its name tells. In lowercase, and `_` taken
/// for `-`.
#[must_use]
pub fn holds_secret(name: &str) -> bool {
    let plain = name.to_ascii_lowercase().replace('_', "-");
    SECRET_PARTS.iter().any(|part| plain.contains(part))
        || plain.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| SECRET_WORDS.contains(&word))
}

fn is_asserted(cgi: &str) -> bool {
    ASSERTED.contains(&cgi) || ASSERTED_PREFIXES.iter().any(|prefix| cgi.starts_with(prefix))
}

fn is_identity(cgi: &str) -> bool {
    IDENTITY.contains(&cgi) || IDENTITY_PREFIXES.iter().any(|prefix| cgi.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_says_who_it_is() {
        for name in [
            "forwarded",
            "x-forwarded",
            "x_forwarded",
            "x-forwarded-user",
            "x-auth-request-email",
            "x_auth_request_user",
            "x-webauth-user",
            "x-goog-authenticated-user-email",
            "x-amzn-oidc-identity",
            "tailscale-user-login",
            "x-appengine-user-email",
            "remote-groups",
            "x-azure-clientip",
        ] {
            assert!(!goes_on(name), "{name}");
        }
        for name in [
            "authorization",
            "x-amzn-trace-id",
            "x-amz-date",
            "x-goog-api-client",
            "x-auth-token",
            "x-azure-ref",
            "remote",
            "openai-organization",
        ] {
            assert!(goes_on(name), "{name}");
        }
        // What servers in front of others say, policy may say to them.
        assert!(refusal("x-webauth-user").is_none() && refusal("x-forwarded-user").is_some());
    }
}
