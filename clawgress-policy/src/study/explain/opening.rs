//! What is said of a WebSocket when it is opened, as the proxy asks it: by `tunnel`, where nobody reads its messages, and by what
//! asks about them whatever is in them.

use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;

use super::{Explanation, Phase, ask, hello};
use crate::content::{Payload, Usage};
use crate::{Host, Look, Operation, PolicySet, Request, TunnelProtocol};

/// What is known of a message that was not read.
const UNREAD: Payload<'static> = Payload { bytes: 0, complete: false, media_type: "", findings: &[] };
/// Switching Protocols: what `receive` is told of what comes on a WebSocket.
const SWITCHING: u16 = 101;

/// `tunnel` of the messages that follow a `request`; nothing where each of them is read instead, which is noted.
pub(super) fn messages(
    set: &PolicySet,
    agent: &Agent,
    (host, port): (&Host, u16),
    request: &Phase,
) -> (Option<Phase>, Vec<String>) {
    let mut notes = Vec::new();
    if set.needs_tool().decided != Look::Nothing {
        notes.push(
            "where a `[[tool.server]]` is configured, no WebSocket is opened, since policy asks about tools"
                .to_owned(),
        );
    }
    let operation = Operation::Tunnel { host, port, protocol: TunnelProtocol::WebSocket };
    let mut tunnel = ask(set, agent, operation);
    let may_be_read = tunnel.allowed || tunnel.reason.as_deref() == Some(DropReason::PolicyDenied.name());
    if hello::reads(request, &mut tunnel, false) && may_be_read && set.asks_send() {
        notes.push("its messages are read, and `send` is asked of each instead of `tunnel`".to_owned());
        return (None, notes);
    }
    (Some(tunnel), notes)
}

/// `send`: asked when it is opened, unless it depends on what is in a message.
pub(in crate::study) fn sent(url: &mut Explanation, set: &PolicySet, agent: &Agent, http: Operation<'_>) {
    let Operation::Http { host, port, method, path, .. } = http else { return };
    if !set.names_send() {
        return;
    }
    let operation = Operation::Send { host, port, method, path, payload: UNREAD };
    if is_blind_to(set, agent, operation) {
        url.push(ask(set, agent, operation));
    } else if set.asks_send() {
        url.unasked.push("send".to_owned());
        let note = "`send` is asked of each message, and nothing is said of one: `--body-bytes` and `--finding` do, in cases `body`";
        url.notes.push(note.to_owned());
    }
}

/// `receive`, likewise.
pub(in crate::study) fn received(
    url: &mut Explanation,
    set: &PolicySet,
    agent: &Agent,
    (host, port): (&Host, u16),
) {
    if !set.asks_receive() {
        return;
    }
    let usage = Usage::default();
    let operation = Operation::Receive { host, port, status: SWITCHING, payload: UNREAD, usage };
    if is_blind_to(set, agent, operation) {
        url.push(ask(set, agent, operation));
    } else {
        url.unasked.push("receive".to_owned());
        let note = "`receive` is asked of each message of the server, with the status 101, and nothing is said of one: `--status`, `--answer-bytes` and `--answer-finding` do, in cases `answer`";
        url.notes.push(note.to_owned());
    }
}

/// Whether what decides depends on nothing that is in a message.
fn is_blind_to(set: &PolicySet, agent: &Agent, operation: Operation<'_>) -> bool {
    set.needs_payload(&Request { agent, operation }, false).decided == Look::Nothing
}

#[cfg(test)]
mod tests {
    use super::super::super::{Body, Supposed, Texts};
    use super::super::{Target, TlsReading, explain};
    use super::*;
    use crate::{PolicyBundle, PolicyInForceRef, Surroundings};

    const HTTP: &str = "@id(\"tls\") permit (principal, action == Action::\"tls\", resource);
        @id(\"http\") permit (principal, action == Action::\"http\", resource);
        @id(\"any\") permit (principal, action == Action::\"connect\", resource);";

    fn rule(id: &str, action: &str, condition: &str) -> String {
        let word = if id.starts_with("no-") { "forbid" } else { "permit" };
        let condition = if condition.is_empty() { String::new() } else { format!(" when {{ {condition} }}") };
        format!("@id(\"{id}\") {word} (principal, action == Action::\"{action}\", resource){condition};")
    }

    fn of(text: &str, url: &str, body: Option<Body>) -> Explanation {
        let bundle = PolicyBundle { text: format!("{HTTP}{text}"), sets: crate::NamedSets::default() };
        let (set, surroundings) = (PolicySet::parse(&bundle).unwrap(), Surroundings::default());
        let target = Target::parse(url, None, None, Some("192.0.2.1")).unwrap();
        let target = body.map_or(Ok(target.clone()), |body| target.with_body(body)).unwrap();
        let own = PolicyInForceRef { text: &bundle.text, sets: &bundle.sets, surroundings: &surroundings };
        let texts = Texts { own, platform: None };
        let agent = crate::set::tests::agent("a");
        explain(&set, texts, &agent, (&target, Supposed::default()), TlsReading::On)
    }

    #[track_caller]
    fn said(text: &str, decided: &str, reason: Option<&str>, unasked: &[&str]) {
        let explanation = of(text, "ws://a.test/chat", None);
        let got = (explanation.decided.as_str(), explanation.reason.as_deref());
        assert_eq!(got, (decided, reason), "{explanation:?}");
        assert_eq!(explanation.unasked, unasked, "{explanation:?}");
    }

    /// As the proxy has it: unread by a permit of `tunnel`, or read where each message is judged, and not at all where that is
    /// forbidden.
    #[test]
    fn messages_pass_unread_or_are_each_judged() {
        let web_socket = r#"context.protocol == "websocket""#;
        let (unread, never) = (rule("ws", "tunnel", web_socket), rule("no-ws", "tunnel", web_socket));
        let send = rule("send", "send", "");
        said("", "tunnel", Some("inspection_required"), &[]);
        said(&unread, "connect", None, &[]);
        said(&never, "tunnel", Some("inspection_required"), &[]);
        // Each message is asked about, and any may be said.
        said(&send, "send", None, &[]);
        said(&format!("{send}{never}"), "tunnel", Some("inspection_required"), &[]);
        // Where none has to be seen, it is asked when it is opened.
        said(&format!("{unread}{send}"), "send", None, &[]);
        let other = rule("send", "send", r#"context.path == "/other""#);
        said(&format!("{unread}{other}"), "send", Some("policy_denied"), &[]);
        let small = rule("send", "send", "context.bytes < 100");
        said(&format!("{unread}{small}"), "connect", None, &["send"]);
        let body = |bytes| Some(Body { bytes, ..Body::default() });
        assert!(of(&format!("{unread}{small}"), "ws://a.test/chat", body(99)).is_known());
        assert!(!of(&format!("{unread}{small}"), "ws://a.test/chat", body(100)).allowed);
        // What comes back, likewise.
        said(&format!("{unread}{}", rule("back", "receive", "context.status == 101")), "receive", None, &[]);
        let back = rule("back", "receive", "context.bytes < 100");
        said(&format!("{unread}{back}"), "connect", None, &["receive"]);
    }

    #[test]
    fn what_opens_one_is_read_like_any_other_request() {
        let unread = rule("ws", "tunnel", r#"context.protocol == "websocket""#);
        let read = of(&unread, "wss://a.test/chat", None);
        let phases: Vec<_> = read.phases.iter().map(|phase| phase.action.as_str()).collect();
        assert_eq!((read.is_read, phases), (true, vec!["tls", "http", "tunnel", "connect"]));
        assert!(Target::parse("ws://a.test/", Some("POST"), None, None).unwrap_err().contains("GET"));
    }
}
