//! Requests that two parsers take for different ones, through the proxy to a server that counts them: each is refused, or is the
//! one request that was judged.

use clawgress_api::{AuditRecord, RecordKind, Verdict};
use clawgress_inspect::http1::{self, Body, HEAD_BYTES_MAX};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use crate::client::Client;
use crate::desync_cases::cases;
use crate::harness::{Gateway, Options, POLICY};
use crate::intercept::{HOST, Site};
use crate::upstream::Upstream;

/// What may be taken for a request behind the first; by itself it is denied.
const BEHIND: &str = "0\r\n\r\nGET /denied/behind HTTP/1.1\r\nHost: ";

fn line(request: &str) -> String {
    request.lines().next().unwrap_or_default().to_owned()
}

/// Sends each case, and what may be one behind it, on a connection of its own, as `written` has it.
async fn hold<S: AsyncRead + AsyncWrite + Unpin>(
    (gateway, upstream, host): (&Gateway, &Upstream, &str),
    open: impl AsyncFn() -> Client<S>,
    written: impl Fn(&[u8]) -> Vec<u8>,
) {
    let cases = cases(host);
    assert!(cases.len() > 100, "{}", cases.len());
    let (mut passed, mut refused) = (0, 0);
    for case in &cases {
        let before = upstream.requests().len();
        let (mut client, head) = (open().await, written(&case.head));
        // Enough for any body; and no head, whose end never comes.
        let behind = format!("{BEHIND}{host}\r\n\r\n{}", "x".repeat(2 * HEAD_BYTES_MAX));
        client.send([&head, behind.as_bytes()].concat()).await;
        let parsed = http1::parse(&head);
        if parsed.is_ok_and(|head| matches!(head.body, Body::Length(n) if n > behind.len() as u64)) {
            // It waits for a body that nobody has; what there is goes on meanwhile.
            crate::http2::until("the request", || upstream.requests().len() > before).await;
            client.stream.shutdown().await.expect("shutdown");
        }
        let said = String::from_utf8_lossy(&client.rest().await).into_owned();
        let seen = upstream.requests().split_off(before);
        let name = (&case.name, String::from_utf8_lossy(&case.head));
        assert!(seen.len() <= 1, "{name:?}: {seen:?}");
        match seen.first() {
            Some(request) => {
                passed += 1;
                assert_ne!(case.tier, "Severe", "{name:?}");
                assert_eq!(line(request), line(&name.1), "{name:?}");
            }
            None => {
                refused += 1;
                // What is no HTTP at all gets no answer.
                assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{name:?}: {said}");
            }
        }
    }
    println!("{passed} passed, {refused} refused");
    assert!(passed >= 15 && refused > 50, "{passed} {refused}");
    // Each that the server got was judged, and nothing else was allowed.
    let allowed = |r: &AuditRecord| {
        let is_request = r.kind == RecordKind::Decision && r.destination.path.is_some();
        is_request && r.verdict == Some(Verdict::Allow)
    };
    let judged = || gateway.control.records().iter().filter(|r| allowed(r)).count();
    crate::http2::until("the decisions", || judged() >= passed).await;
    assert_eq!((judged(), upstream.requests().len()), (passed, passed));
    assert!(!upstream.requests().iter().any(|request| request.contains("/denied")));
}

async fn both() -> (Gateway, Upstream, String) {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    (gateway, upstream, host)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_two_requests_is_one_or_none() {
    let (gateway, upstream, host) = both().await;
    let open = async || {
        let (client, answer) = gateway.connect(&host).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        client
    };
    hold((&gateway, &upstream, &host), open, <[u8]>::to_vec).await;
}

/// By the explicit proxy: the same requests, of a target that names the host, by an agent that proves itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_two_requests_to_a_proxy_is_one_or_none() {
    let (gateway, upstream, host) = both().await;
    let (absolute, web) = (format!(" http://{host}/"), gateway.web());
    let written = |head: &[u8]| {
        let end = head.windows(2).position(|w| w == b"\r\n").expect("a line") + 2;
        let (line, fields) = head.split_at(end);
        let at = line.windows(2).position(|w| w == b" /");
        let line =
            at.map_or(line.to_vec(), |at| [&line[..at], absolute.as_bytes(), &line[at + 2..]].concat());
        [&line, web.as_bytes(), fields].concat()
    };
    hold((&gateway, &upstream, &host), async || gateway.client().await, written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_two_requests_within_tls_that_is_read_is_one_or_none() {
    let (upstream, pem) = Upstream::http_within("127.1.0.1", HOST).await;
    let site = Site::before(upstream, &pem, POLICY, "").await;
    hold((&site.gateway, &site.upstream, &site.host()), async || site.inside().await, <[u8]>::to_vec).await;
}
