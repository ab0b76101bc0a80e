//! Agent2Agent over HTTP and JSON: the operation that a request is, by its path. Must never take one for another: the names are
//! those of JSON-RPC, of version 1.0, so that a rule holds for both bindings.

use crate::proxy_request::separated;

/// An operation of A2A's HTTP binding (versions 0.3 and 1.0, section 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// What the same is called in JSON-RPC: `SendMessage`.
    pub method: &'static str,
    /// Whether no other protocol is known to have such a path.
    pub is_distinct: bool,
}

/// Where an agent says what it is.
const WELL_KNOWN: &str = ".well-known";
const CARDS: [&str; 2] = ["agent-card.json", "agent.json"];
/// What asks for that.
pub const CARD: &str = "GetAgentCard";

/// The operation that a request of this method to this path asks for; what stands before it in the path may be anything: where the
/// agent is, a version, a tenant. Where an encoded slash is taken for a part of a name, and where nothing is found so, for a slash.
#[must_use]
pub fn rest(method: &str, path: &str) -> Option<Rest> {
    rest_as_written(method, path).or_else(|| rest_as_written(method, &separated(path)?))
}

/// Whether it is one operation or another by how its server takes an encoded slash in its path.
#[must_use]
pub fn is_ambiguous(method: &str, path: &str) -> bool {
    let other = separated(path).and_then(|path| rest_as_written(method, &path));
    other.is_some() && rest_as_written(method, path).is_some_and(|written| Some(written) != other)
}

fn rest_as_written(method: &str, path: &str) -> Option<Rest> {
    // Some servers' routes are the same in any letters.
    let plain = |segment: &str| decoded(segment).to_ascii_lowercase();
    let segments: Vec<String> = path.split('/').filter(|segment| !segment.is_empty()).map(plain).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let is_read = matches!(method, "GET" | "HEAD");
    let distinct = |method| Some(Rest { method, is_distinct: true });
    let common = |method| Some(Rest { method, is_distinct: false });
    match segments[..] {
        [.., WELL_KNOWN, card] if CARDS.contains(&card) => distinct(CARD),
        [.., "message:send"] => distinct("SendMessage"),
        [.., "message:stream"] => distinct("SendStreamingMessage"),
        [.., "tasks", _, "pushnotificationconfigs"] if is_read => distinct("ListTaskPushNotificationConfigs"),
        [.., "tasks", _, "pushnotificationconfigs"] => distinct("CreateTaskPushNotificationConfig"),
        [.., "tasks", _, "pushnotificationconfigs", _] => distinct(match method {
            "DELETE" => "DeleteTaskPushNotificationConfig",
            "GET" | "HEAD" => "GetTaskPushNotificationConfig",
            _ => "CreateTaskPushNotificationConfig",
        }),
        [.., "tasks", task] if task.ends_with(":cancel") => common("CancelTask"),
        [.., "tasks", task] if task.ends_with(":subscribe") => common("SubscribeToTask"),
        [.., "tasks"] if is_read => common("ListTasks"),
        [.., "tasks", _] if is_read => common("GetTask"),
        [.., "extendedagentcard"] | [.., "v1", "card"] if is_read => common("GetExtendedAgentCard"),
        _ => None,
    }
}

/// A segment as servers take it: without its parameters (RFC 3986 section 3.3), and with what is escaped.
fn decoded(segment: &str) -> String {
    let bare = segment.split(';').next().unwrap_or(segment);
    let mut out = Vec::with_capacity(bare.len());
    let mut rest = bare.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        let hex = |at: usize| behind.get(at).and_then(|b| char::from(*b).to_digit(16));
        if let (b'%', Some(high), Some(low)) = (byte, hex(0), hex(1)) {
            out.push(u8::try_from(high * 16 + low).unwrap_or_default());
            rest = behind.get(2..).unwrap_or_default();
        } else {
            out.push(*byte);
            rest = behind;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_known_by_their_paths() {
        for (method, path, wanted, is_distinct) in [
            ("POST", "/message:send", "SendMessage", true),
            ("POST", "/a2a/v1/message:send/", "SendMessage", true),
            ("POST", "/acme/message:stream", "SendStreamingMessage", true),
            ("POST", "/v1/Message:Send", "SendMessage", true),
            ("GET", "/Tasks/T-1", "GetTask", false),
            ("GET", "/.Well-Known/Agent-Card.json", CARD, true),
            ("POST", "/v1/m%65ssage%3Asend", "SendMessage", true),
            ("POST", "/v1/message:send;x=1", "SendMessage", true),
            ("GET", "/v1/tasks", "ListTasks", false),
            ("GET", "/tasks/t-1", "GetTask", false),
            ("POST", "/v1/tasks/t-1:cancel", "CancelTask", false),
            ("GET", "/tasks/t-1:subscribe", "SubscribeToTask", false),
            ("POST", "/v1/tasks/t-1:subscribe", "SubscribeToTask", false),
            ("POST", "/tasks/t/pushNotificationConfigs", "CreateTaskPushNotificationConfig", true),
            ("GET", "/tasks/t/pushNotificationConfigs", "ListTaskPushNotificationConfigs", true),
            ("GET", "/tasks/t/pushNotificationConfigs/c", "GetTaskPushNotificationConfig", true),
            ("DELETE", "/tasks/t/pushNotificationConfigs/c", "DeleteTaskPushNotificationConfig", true),
            ("GET", "/extendedAgentCard", "GetExtendedAgentCard", false),
            ("GET", "/v1/card", "GetExtendedAgentCard", false),
            ("GET", "/.well-known/agent-card.json", CARD, true),
            ("GET", "/.well-known/agent.json", CARD, true),
        ] {
            assert_eq!(rest(method, path), Some(Rest { method: wanted, is_distinct }), "{method} {path}");
        }
        for (method, path) in [
            ("POST", "/"),
            ("POST", "/tasks"),
            ("PUT", "/tasks/1"),
            ("GET", "/card"),
            ("POST", "/messages"),
            ("POST", "/message%253Asend"),
            ("GET", "/agent-card.json"),
        ] {
            assert_eq!(rest(method, path), None, "{method} {path}");
        }
    }

    #[test]
    fn an_encoded_slash_may_be_one() {
        for (method, path, wanted, is_either) in [
            ("POST", "/v1%2Fmessage:send", Some("SendMessage"), false),
            ("GET", "/.well-known%2fagent-card.json", Some(CARD), false),
            ("GET", "/tasks%2F7", Some("GetTask"), false),
            ("GET", "/tasks/a%2Fb", Some("GetTask"), false),
            ("GET", "/tasks/a%2Ftasks", Some("GetTask"), true),
            ("POST", "/a%2Fb", None, false),
        ] {
            assert_eq!(rest(method, path).map(|rest| rest.method), wanted, "{method} {path}");
            assert_eq!(is_ambiguous(method, path), is_either, "{method} {path}");
        }
    }
}
