//! What a denied client is told: the reason's name, the request's id, and what to do.
//!
//! Must never echo anything the client sent: neither credentials nor host names end up in a page.

use clawgress_ebpf_common::DropReason;

/// Challenges of a 407 (RFC 9110 section 11.7.1), each in a field of its own: some clients read one only.
pub const CHALLENGES: [&str; 2] =
    ["Basic realm=\"clawgress\", charset=\"UTF-8\"", "Bearer realm=\"clawgress\""];
/// The challenge of a 401: what comes in other fields has no scheme to be challenged for.
pub const ENDPOINT_CHALLENGE: &str = "Bearer realm=\"clawgress\"";
/// Response field with the reason's name.
pub const REASON_FIELD: &str = "x-clawgress-reason";
/// Response field with the request's id.
pub const REQUEST_FIELD: &str = "x-clawgress-request";

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
        DropReason::HttpMalformed => "send one well-formed request with one Host and one length",
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
    format!(
        "clawgress: {} ({}): {} [request {request}]",
        reason.describe().trim().trim_end_matches('.'),
        reason.name(),
        remedy(reason, client)
    )
}

/// The body: JSON in the shape that model providers' clients show as an error.
#[must_use]
pub fn body_as(client: Client, reason: DropReason, request: &str) -> String {
    serde_json::json!({ "error": {
        "type": "clawgress_denied",
        "code": reason.name(),
        "message": message(client, reason, request),
        "request": request,
    }})
    .to_string()
        + "\n"
}

/// A whole HTTP/1.1 response, to who takes the gateway for a proxy, after which the connection closes.
#[must_use]
pub fn response(reason: DropReason, request: &str, has_presented: bool) -> String {
    let client = Client::of_proxy(has_presented);
    let (status, body) = (status_as(client, reason), body_as(client, reason, request));
    let phrase =
        http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or_default();
    let challenge = match status {
        407 => CHALLENGES.map(|c| format!("Proxy-Authenticate: {c}\r\n")).concat(),
        _ => String::new(),
    };
    format!(
        "HTTP/1.1 {status} {phrase}\r\n{challenge}Content-Type: application/json\r\nContent-Length: {}\r\nCache-Control: no-store\r\n{REASON_FIELD}: {}\r\n{REQUEST_FIELD}: {request}\r\nConnection: close\r\n\r\n{body}",
        body.len(),
        reason.name(),
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
                let page = response(*reason, "r-1", has_presented);
                let (head, body) = page.split_once("\r\n\r\n").expect("head");
                assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
                let status = status_as(Client::of_proxy(has_presented), *reason);
                assert_eq!(head.contains("Proxy-Authenticate"), status == 407);
                let json: serde_json::Value = serde_json::from_str(body).expect("json");
                assert_eq!(json["error"]["code"], reason.name());
            }
        }
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
