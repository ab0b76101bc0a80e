//! What a denied client is told: the reason's name, the policies that decided, the request's id, and what to do.
//!
//! Must never echo anything the client sent: neither credentials nor host names end up in a page.

use std::time::Duration;

use clawgress_ebpf_common::DropReason;
use http::HeaderMap;

pub use self::form::Form;
use self::form::escaped;

mod form;

/// Challenges of a 407 (RFC 9110 section 11.7.1), each in a field of its own: some clients read one only.
pub const CHALLENGES: [&str; 2] =
    ["Basic realm=\"clawgress\", charset=\"UTF-8\"", "Bearer realm=\"clawgress\""];
/// The challenge of a 401: what comes in other fields has no scheme to be challenged for.
pub const ENDPOINT_CHALLENGE: &str = "Bearer realm=\"clawgress\"";
/// Response field with the reason's name.
pub const REASON_FIELD: &str = "x-clawgress-reason";
/// Response field with the request's id.
pub const REQUEST_FIELD: &str = "x-clawgress-request";
/// Response field with the ids of the policies that decided, where some did and their names fit into a field.
pub const POLICY_FIELD: &str = "x-clawgress-policy";
/// Fields that only the gateway may send.
pub const FIELDS: [&str; 3] = [REASON_FIELD, REQUEST_FIELD, POLICY_FIELD];
/// Policies that are named.
const POLICIES_MAX: usize = 8;
/// Bytes of a policy's id that are shown.
const POLICY_BYTES_MAX: usize = 128;

/// What a client takes the gateway for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guise {
    /// A proxy, or nothing that it knows of.
    Proxy,
    /// A server with an endpoint, whose key the agent's own is.
    Endpoint,
    /// The very server that it asks, whose TLS is read.
    Server,
}

/// Who is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// What it takes the gateway for.
    pub guise: Guise,
    /// Whether it presented a credential, and not its source alone says whose it is: then another one may help.
    pub has_presented: bool,
}

/// What is denied.
#[derive(Clone, Copy, Debug)]
pub struct Denial<'a> {
    /// Why.
    pub reason: DropReason,
    /// The request's id.
    pub request: &'a str,
    /// The policies that decided, if any did.
    pub policies: &'a [String],
}

// === impl Client ===

impl Client {
    /// One that takes the gateway for a proxy.
    #[must_use]
    pub fn of_proxy(has_presented: bool) -> Client {
        Client { guise: Guise::Proxy, has_presented }
    }
}

/// HTTP status for a reason.
#[must_use]
pub fn status(reason: DropReason) -> u16 {
    match reason {
        DropReason::CredentialMissing | DropReason::CredentialInvalid | DropReason::AgentUnknown => 407,
        DropReason::HttpMalformed | DropReason::SocksMalformed | DropReason::HostInvalid => 400,
        DropReason::EndpointUnknown => 404,
        DropReason::Timeout => 408,
        DropReason::ContentUnreadable => 415,
        DropReason::RateLimited => 429,
        DropReason::UpgradeUnsupported | DropReason::SocksUnsupported => 501,
        DropReason::SniMismatch => 421,
        DropReason::ResolveFailed
        | DropReason::UpstreamFailed
        | DropReason::UpstreamUntrusted
        | DropReason::ParentFailed => 502,
        DropReason::SnapshotMissing
        | DropReason::InterceptionUnavailable
        | DropReason::PolicyMissing
        | DropReason::AuditUnavailable
        | DropReason::IdentityUnavailable
        | DropReason::LimitUnavailable
        | DropReason::ProviderKeyUnavailable
        | DropReason::HistoryUnavailable
        | DropReason::ContentMemoryFull
        | DropReason::ContentShareFull
        | DropReason::Overloaded
        | DropReason::Draining => 503,
        _ => 403,
    }
}

/// As [`status`], for a client: who knows of no proxy can't be asked for its credential, and whose credential proves an
/// agent that may not act is asked for another.
#[must_use]
pub fn status_as(client: Client, reason: DropReason) -> u16 {
    let status = match reason {
        DropReason::AgentDisabled if client.has_presented => 407,
        other => status(other),
    };
    match (client.guise, status) {
        (Guise::Endpoint, 407) => 401,
        (Guise::Server, 407) => 403,
        (_, status) => status,
    }
}

/// Whether policy decides it.
#[must_use]
pub fn is_of_policy(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::PolicyDenied
            | DropReason::PolicyForbidden
            | DropReason::PolicyError
            | DropReason::InspectionRequired
            | DropReason::AgentQuarantined
            | DropReason::RateLimited
            | DropReason::LimitUnavailable
    )
}

/// What the reader of the page can do about it.
fn remedy(reason: DropReason, client: Client) -> &'static str {
    match reason {
        DropReason::CredentialMissing | DropReason::CredentialInvalid if client.guise == Guise::Endpoint => {
            "use the agent's API key as the key of your client, in Authorization: Bearer or x-api-key, or a token that is meant for this gateway, in Authorization: Bearer; either in x-clawgress-key where the server's own key goes along"
        }
        DropReason::CredentialMissing => {
            "send Proxy-Authorization: Basic with the agent's name and its API key, for instance by a proxy URL of the form http://AGENT:KEY@HOST:PORT, or Bearer with a token of an issuer that the gateway trusts"
        }
        DropReason::CredentialInvalid => {
            "check the agent's name and its API key, or get a new token that is meant for this gateway"
        }
        DropReason::AgentUnknown => {
            "ask whoever runs the gateway to register the agent that this credential is for, or use the credential of one that is registered; name the request id"
        }
        DropReason::AgentDisabled if client.has_presented => {
            "ask whoever runs the gateway to enable the agent that this credential is for, or use the credential of one that is enabled; name the request id"
        }
        DropReason::PolicyDenied | DropReason::PolicyForbidden => {
            "ask whoever keeps the policy; name the request id"
        }
        DropReason::InspectionRequired => {
            "the policy wants to read this traffic, and does not permit it as a tunnel; ask whoever keeps the policy"
        }
        DropReason::EndpointUnknown => {
            "this is a proxy: set it as such (HTTPS_PROXY), or begin the path with the name of one of its endpoints"
        }
        DropReason::HttpMalformed => {
            "send one well-formed request with one Host and one length, and nothing twice that policy asks for (a header field, a parameter of the query)"
        }
        DropReason::HostInvalid | DropReason::ResolveFailed => "check the destination's name",
        DropReason::AddressReserved => {
            "the destination is private or reserved; a policy must name its address"
        }
        DropReason::RateLimited => "ask less often: the response says after how many seconds (Retry-After)",
        DropReason::UpgradeUnsupported => "use HTTP/1.1 without Upgrade (but for WebSocket), or TLS",
        DropReason::UpstreamUntrusted => {
            "the destination's certificate has expired, is for another name, or leads to no authority that the gateway trusts; ask whoever runs the gateway to add its authority (`roots` in [intercept], `ca` of an endpoint)"
        }
        DropReason::ContentUnreadable => {
            "send the body in none of the content codings, or in one of gzip, deflate, br and zstd, and as what its Content-Type says; where it is the server's answer that can't be read, ask for one like that; name the request id to whoever runs the gateway"
        }
        DropReason::ContentMemoryFull | DropReason::ContentShareFull => {
            "send fewer or smaller bodies at once, and try again soon"
        }
        DropReason::SniMismatch => "send each request over a connection to its own host",
        DropReason::ParentFailed => {
            "the proxy that the gateway has to go through did not make the connection; try again later, and if that does not help, tell whoever runs the gateway, with the request id"
        }
        DropReason::UpstreamFailed => "the destination can't be reached now; try again later",
        DropReason::SnapshotMissing
        | DropReason::PolicyMissing
        | DropReason::AuditUnavailable
        | DropReason::IdentityUnavailable
        | DropReason::LimitUnavailable
        | DropReason::HistoryUnavailable
        | DropReason::Overloaded
        | DropReason::Draining => "try again soon; if it lasts, ask whoever runs the gateway",
        _ => "ask whoever runs the gateway; name the request id",
    }
}

/// What is said, in words.
#[must_use]
pub fn message(client: Client, reason: DropReason, request: &str) -> String {
    format!("clawgress: {} ({}): {} [request {request}]", said(reason), reason.name(), remedy(reason, client))
}

/// In which form who sent these fields is told.
#[must_use]
pub fn form(fields: &HeaderMap) -> Form {
    Form::of(fields.get_all(http::header::ACCEPT).iter().filter_map(|value| value.to_str().ok()))
}

// === impl Denial ===

impl Denial<'_> {
    /// Policies that are shown.
    fn named(&self) -> impl Iterator<Item = &str> {
        let fits = |id: &&str| id.len() <= POLICY_BYTES_MAX;
        self.policies.iter().map(String::as_str).filter(fits).take(POLICIES_MAX)
    }

    /// The fields of the response that tell of it.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, String)> {
        // What separates them, and what no field may hold, is in no name that is told there.
        let is_token = |id: &&str| id.bytes().all(|b| b.is_ascii_graphic() && b != b',');
        let policies = self.named().filter(is_token).collect::<Vec<_>>().join(", ");
        [
            (REASON_FIELD, self.reason.name().to_owned()),
            (REQUEST_FIELD, self.request.to_owned()),
            (POLICY_FIELD, policies),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
    }

    /// The body.
    #[must_use]
    pub fn body(&self, client: Client, form: Form) -> String {
        let Denial { reason, request, .. } = *self;
        match form {
            Form::Json => {
                serde_json::json!({ "error": {
                    "type": "clawgress_denied",
                    "code": reason.name(),
                    "message": message(client, reason, request),
                    "policies": self.named().collect::<Vec<_>>(),
                    "request": request,
                }})
                .to_string()
                    + "\n"
            }
            Form::Text => {
                let policies: String = self.named().map(|id| format!("policy:  {id}\n")).collect();
                format!(
                    "{}\n\nreason:  {}\n{policies}request: {request}\nto do:   {}\n",
                    said(reason),
                    reason.name(),
                    remedy(reason, client)
                )
            }
            Form::Html => self.html(client),
        }
    }

    fn html(&self, client: Client) -> String {
        let Denial { reason, request, .. } = *self;
        let row =
            |name: &str, value: &str| format!("<dt>{name}</dt><dd><code>{}</code></dd>\n", escaped(value));
        let policies: String = self.named().map(|id| row("Policy", id)).collect();
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
             <title>Clawgress: {name}</title>\n<style>{STYLE}</style>\n<main>\n<h1>{what}</h1>\n<p>{todo}.</p>\n\
             <dl>\n{reason}{policies}{request}</dl>\n<footer>Clawgress</footer>\n</main>\n",
            name = escaped(reason.name()),
            what = escaped(&said(reason)),
            todo = escaped(&capital(remedy(reason, client))),
            reason = row("Reason", reason.name()),
            request = row("Request", request),
        )
    }
}

const STYLE: &str = ":root{color-scheme:light dark}body{margin:0;font:16px/1.5 system-ui,sans-serif}\
    main{max-width:38rem;margin:12vh auto;padding:0 1.5rem}h1{font-size:1.4rem;line-height:1.3}\
    dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.2rem;margin:2rem 0}dt{opacity:.65}dd{margin:0;overflow-wrap:anywhere}\
    footer{opacity:.5;font-size:.85rem}";

/// What happened, as a sentence without its end.
fn said(reason: DropReason) -> String {
    reason.describe().trim().trim_end_matches('.').to_owned()
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// A time to wait as `Retry-After` has it (RFC 9110 section 10.2.3): whole seconds; rounded up, so that who keeps to it is served.
#[must_use]
pub fn seconds(wait: Duration) -> String {
    wait.as_millis().div_ceil(1000).max(1).to_string()
}

/// A whole HTTP/1.1 response, to who takes the gateway for a proxy, after which the connection closes.
#[must_use]
pub fn response(denial: &Denial<'_>, has_presented: bool, retry_after: Option<Duration>) -> String {
    let (client, form) = (Client::of_proxy(has_presented), Form::Json);
    let (status, body) = (status_as(client, denial.reason), denial.body(client, form));
    let phrase =
        http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or_default();
    let challenge = match status {
        407 => CHALLENGES.map(|c| format!("Proxy-Authenticate: {c}\r\n")).concat(),
        _ => String::new(),
    };
    let fields: String = denial.fields().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let retry = retry_after.map(|wait| format!("Retry-After: {}\r\n", seconds(wait))).unwrap_or_default();
    format!(
        "HTTP/1.1 {status} {phrase}\r\n{challenge}{retry}Content-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n{fields}Connection: close\r\n\r\n{body}",
        form.media_type(),
        body.len(),
    )
}

/// A fatal TLS alert in clear (RFC 8446 section 6), so that the client reports more than a lost
/// connection.
#[must_use]
pub fn alert(reason: DropReason) -> [u8; 7] {
    let description = match reason {
        DropReason::SniMissing | DropReason::SniMismatch => 112,
        DropReason::TlsMalformed => 50,
        DropReason::UpstreamFailed
        | DropReason::ParentFailed
        | DropReason::ResolveFailed
        | DropReason::InterceptionUnavailable => 80,
        DropReason::UpgradeUnsupported => 120,
        _ => 49,
    };
    [21, 3, 3, 0, 2, 2, description]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_page_and_a_denying_status() {
        for reason in DropReason::ALL {
            assert!(status(*reason) >= 400, "{reason}");
            for has_presented in [false, true] {
                let policies = ["own-1".to_owned()];
                let denial = Denial { reason: *reason, request: "r-1", policies: &policies };
                let page = response(&denial, has_presented, None);
                let (head, body) = page.split_once("\r\n\r\n").expect("head");
                assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
                let status = status_as(Client::of_proxy(has_presented), *reason);
                assert_eq!(head.contains("Proxy-Authenticate"), status == 407);
                let json: serde_json::Value = serde_json::from_str(body).expect("json");
                assert_eq!(json["error"]["code"], reason.name());
                assert_eq!(json["error"]["policies"], serde_json::json!(["own-1"]));
                assert!(head.contains("\r\nx-clawgress-policy: own-1\r\n"), "{head}");
                for form in [Form::Text, Form::Html] {
                    let body = denial.body(Client::of_proxy(has_presented), form);
                    let parts = [reason.name(), "own-1", "r-1"];
                    assert!(parts.iter().all(|part| body.contains(part)), "{body}");
                }
            }
        }
    }

    #[test]
    fn a_wait_is_told_in_whole_seconds() {
        let denial = Denial { reason: DropReason::RateLimited, request: "r-1", policies: &[] };
        for (ms, told) in [(0, "1"), (1_000, "1"), (1_001, "2"), (90_500, "91")] {
            let page = response(&denial, true, Some(Duration::from_millis(ms)));
            assert!(page.contains(&format!("\r\nRetry-After: {told}\r\n")), "{page}");
        }
        assert!(!response(&denial, true, None).contains("Retry-After:"));
    }

    #[test]
    fn names_of_policies_are_told_as_far_as_they_fit() {
        let policies = ["a,b", "<i>", "two words", "ü", "ok"].map(str::to_owned).to_vec();
        let reason = DropReason::PolicyForbidden;
        let denial = Denial { reason, request: "r-1", policies: &policies };
        let fields: Vec<_> = denial.fields().collect();
        assert_eq!(fields[2], (POLICY_FIELD, "<i>, ok".to_owned()));
        let html = denial.body(Client::of_proxy(false), Form::Html);
        assert!(html.contains("&#60;i&#62;") && !html.contains("<i>"), "{html}");
        let many: Vec<_> = (0..100).map(|n| format!("p{n}")).chain(["x".repeat(1_000)]).collect();
        let denial = Denial { policies: &many, ..denial };
        assert_eq!(denial.fields().last(), Some((POLICY_FIELD, "p0, p1, p2, p3, p4, p5, p6, p7".to_owned())));
        let none = Denial { policies: &[], ..denial };
        assert_eq!(none.fields().count(), 2);
    }

    /// Who proves an agent that may not act is asked for another credential, where it can be; whose source says who it is,
    /// has none to present.
    #[test]
    fn an_agent_that_may_not_act_is_asked_for_another_credential() {
        use DropReason::{AgentDisabled, AgentQuarantined, AgentUnknown, CredentialInvalid};
        let of = |guise, has_presented, reason| status_as(Client { guise, has_presented }, reason);
        for (reason, statuses) in [
            (CredentialInvalid, [407, 401, 403]),
            (AgentUnknown, [407, 401, 403]),
            (AgentDisabled, [407, 401, 403]),
            (AgentQuarantined, [403, 403, 403]),
        ] {
            let told = [Guise::Proxy, Guise::Endpoint, Guise::Server].map(|guise| of(guise, true, reason));
            assert_eq!(told, statuses, "{reason}");
        }
        assert_eq!(of(Guise::Proxy, false, AgentDisabled), 403);
    }
}
