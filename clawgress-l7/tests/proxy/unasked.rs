//! Connections that were let begin, and on which nothing was asked that could be judged: recorded all the same.

use std::time::Duration;

use clawgress_api::Verdict;
use clawgress_ebpf_common::DropReason;
use tokio::io::AsyncWriteExt as _;

use crate::harness::{Gateway, Options};
use crate::http2::{START, frame};

/// Permits requests in clear to one host, and what is neither these nor TLS to another.
const CLEAR: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal == Agent::"web", action == Action::"http", resource == Host::"api.allowed.test");
@id("raw") permit (principal == Agent::"web", action == Action::"tunnel", resource == Host::"raw.allowed.test");
"#;
const SETTINGS: u8 = 4;
const NOBODYS: u8 = 0x77;

/// Asks for a tunnel, says `bytes` and nothing more.
async fn says(gateway: &Gateway, target: &str, bytes: &[u8]) {
    let (mut client, answer) = gateway.connect(target).await;
    assert_eq!(answer.status, 200);
    client.send(bytes).await;
    let _ = client.stream.shutdown().await;
    let _ = tokio::time::timeout(Duration::from_secs(10), client.rest()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_that_requests_may_follow_and_makes_none_is_recorded() {
    let gateway = Gateway::start(Options { policy: Some(CLEAR), ..Options::default() }).await;
    let no_preface = b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n";
    // Settings are of six bytes each (RFC 9113 section 6.5).
    let malformed = [START, &frame(SETTINGS, 0, 0, &[0; 5])].concat();
    let flood = [START, &frame(NOBODYS, 0, 0, &[]).repeat(11_000)].concat();
    for (bytes, reason) in [
        (&no_preface[..], DropReason::HttpMalformed),
        (&malformed, DropReason::HttpMalformed),
        (&flood, DropReason::Overloaded),
    ] {
        let n = gateway.outcomes();
        says(&gateway, "api.allowed.test:80", bytes).await;
        let (decision, outcome) = gateway.exchange(n).await;
        assert_eq!((decision.verdict, decision.reason), (Some(Verdict::Deny), Some(reason)), "{decision:#?}");
        assert_eq!(decision.action.as_deref(), Some("http"));
        assert_eq!(decision.agent.as_ref().map(|agent| agent.agent.as_str()), Some("web"));
        assert_eq!(decision.destination.host.as_deref(), Some("api.allowed.test"));
        assert_eq!(outcome.status, None);
        assert_eq!(gateway.outcomes(), n + 1, "once");
    }
    assert_eq!(gateway.dns.asked("api.allowed.test"), 0, "nothing was dialled");
}

/// As browsers do that open connections in advance: nothing was denied it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_before_the_first_request_was_allowed_to_make_one() {
    let gateway = Gateway::start(Options { policy: Some(CLEAR), ..Options::default() }).await;
    for (bytes, status) in
        [(&b""[..], Some(200)), (START, None), (&[START, &frame(SETTINGS, 0, 0, &[])].concat(), None)]
    {
        let n = gateway.outcomes();
        says(&gateway, "api.allowed.test:80", bytes).await;
        let (decision, outcome) = gateway.exchange(n).await;
        assert_eq!((decision.verdict, decision.reason), (Some(Verdict::Allow), None), "{decision:#?}");
        assert_eq!(decision.action.as_deref(), Some("http"));
        assert_eq!(decision.agent.as_ref().map(|agent| agent.agent.as_str()), Some("web"));
        assert_eq!(decision.destination.host.as_deref(), Some("api.allowed.test"));
        assert_eq!((outcome.status, outcome.reason, outcome.bytes_sent), (status, None, Some(0)));
        assert_eq!(gateway.outcomes(), n + 1, "once");
    }
    assert_eq!(gateway.dns.asked("api.allowed.test"), 0, "nothing was dialled");
}

/// That is not the client's doing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_asked_for_nothing_when_the_gateway_stops_was_not_late() {
    let mut gateway = Gateway::start(Options { policy: Some(CLEAR), ..Options::default() }).await;
    let (mut client, _) = gateway.connect("api.allowed.test:80").await;
    client.send([START, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    assert!(client.more().await, "its settings");
    gateway.begin_stop();
    client.rest().await;
    let (decision, outcome) = gateway.exchange(0).await;
    assert_eq!((decision.verdict, outcome.reason), (Some(Verdict::Allow), Some(DropReason::Draining)));
    gateway.stop().await;
}

/// It was not dialled, and would have been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_have_a_tunnel_and_leaves_at_once_is_recorded() {
    let gateway = Gateway::start(Options { policy: Some(CLEAR), ..Options::default() }).await;
    let n = gateway.outcomes();
    says(&gateway, "raw.allowed.test:7", b"").await;
    let (decision, outcome) = gateway.exchange(n).await;
    assert_eq!(
        (decision.verdict, &decision.policies[..]),
        (Some(Verdict::Allow), &["net".into(), "raw".into()][..])
    );
    assert_eq!((outcome.status, outcome.reason, outcome.bytes_sent), (Some(200), None, Some(0)));
}
