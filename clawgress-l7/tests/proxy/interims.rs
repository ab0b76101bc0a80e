//! What comes before an answer, and behind one that has no body: interim answers are none, and nothing passes that nobody looks at.

use clawgress_ebpf_common::DropReason;

use crate::client::Client;
use crate::harness::{Gateway, Options, POLICY};
use crate::http2;
use crate::intercept::{HOST, Site};
use crate::streams::server;
use crate::upstream::Upstream;

const SMALL: &str = "[content]\nhold_bytes_max = 65536\nagent_memory_bytes_max = 20000000\n";
const KEY: &str = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n";

async fn waiting(gateway: &Gateway, host: &str, path: &str, bytes: usize) -> Client {
    let (mut client, auth) = (gateway.client().await, gateway.web());
    let fields = format!("Expect: 100-continue\r\nContent-Length: {bytes}\r\n");
    client.send(format!("POST http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{auth}{fields}\r\n")).await;
    assert_eq!(client.answer_head().await.status, 100);
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_told_to_go_on_is_answered_all_the_same() {
    let gateway = Gateway::start(Options::default()).await;
    // Nobody listens there.
    let closed = tokio::net::TcpListener::bind("127.1.0.1:0").await.expect("bind");
    let host = format!("api.allowed.test:{}", closed.local_addr().expect("address").port());
    drop(closed);
    let mut client = waiting(&gateway, &host, "/", 5).await;
    client.send("hello").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.reason()), (502, "upstream_failed"));
    let (_, outcome) = gateway.exchange(0).await;
    assert_eq!((outcome.status, outcome.reason), (Some(502), Some(DropReason::UpstreamFailed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_cut_behind_a_100_has_its_answer() {
    let options = Options { policy: Some(crate::body::POLICY), more: SMALL.to_owned(), ..Options::default() };
    let gateway = Gateway::start(options).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let body = format!("{}{KEY}", "harmless words. ".repeat(20_000));
    let mut client = waiting(&gateway, &host, "/echo", body.len()).await;
    client.send(&body).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.reason()), (403, "policy_forbidden"));
    let (_, outcome) = gateway.exchange(0).await;
    assert_eq!((outcome.status, outcome.reason), (Some(403), Some(DropReason::PolicyForbidden)));
}

/// The statuses of what comes, up to the last.
async fn statuses(gateway: &Gateway, host: &str, version: &str) -> Vec<u16> {
    let (mut client, auth) = (gateway.client().await, gateway.web());
    client.send(format!("GET http://{host}/hints {version}\r\nHost: {host}\r\n{auth}\r\n")).await;
    let mut all = Vec::new();
    while all.last().is_none_or(|status| *status < 200) {
        all.push(client.answer_head().await.status);
        assert_ne!(all.last(), Some(&0), "an answer: {all:?}");
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_interim_answers_go_on_and_none_where_answers_are_asked_about() {
    const ASKED: &str = "@id(\"receive\") permit (principal, action == Action::\"receive\", resource);";
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let all = statuses(&gateway, &host, "HTTP/1.1").await;
    assert!(all.len() == 9 && all.starts_with(&[103; 8]) && all.ends_with(&[200]), "{all:?}");
    assert_eq!(statuses(&gateway, &host, "HTTP/1.0").await, [200]);
    assert_eq!(gateway.publish_policy(&format!("{POLICY}{ASKED}")).await, "");
    assert_eq!(statuses(&gateway, &host, "HTTP/1.1").await, [200]);
    let (_, outcome) = gateway.exchange(2).await;
    assert_eq!((outcome.status, outcome.reason), (Some(200), None));
}

/// Clients of HTTP/1.0 know no chunks (RFC 9112 section 6.1): what has no length ends with its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_length_is_no_chunks_to_clients_of_http_1_0() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::http("127.1.0.1").await;
    upstream.seen.events.as_ref().expect("events").add_permits(2);
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let (mut client, auth) = (gateway.client().await, gateway.web());
    client.send(format!("GET http://{host}/sse HTTP/1.0\r\nHost: {host}\r\n{auth}\r\n")).await;
    let head = client.answer_head().await;
    let coded = (head.field("transfer-encoding"), head.field("content-length"), head.field("connection"));
    assert_eq!((head.status, coded), (200, (None, None, Some("close"))));
    let body = String::from_utf8(client.rest().await).expect("text");
    assert!(body.starts_with("data: {") && body.ends_with("data: [DONE]\n\n"), "{body}");
    // Likewise of a server that would speak HTTP/2.
    let (upstream, pem) = server("127.1.0.1", HOST).await;
    let site = Site::before(upstream, &pem, POLICY, "").await;
    let mut client = site.inside().await;
    let host = site.host();
    client.send(format!("POST /echo HTTP/1.0\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello")).await;
    let head = client.answer_head().await;
    assert_eq!((head.status, head.field("transfer-encoding")), (200, None));
    assert_eq!(client.rest().await, b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_behind_no_body_say_no_more_than_others() {
    let policy = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("all") permit (principal == Agent::"web", action in [Action::"tls", Action::"http", Action::"receive"], resource);
@id("no-keys") forbid (principal, action == Action::"receive", resource) when { context.findings.contains("private_key") };
"#;
    let site = http2::site(policy, "").await;
    let client = http2::inside(&site).await;
    let request = http2::post(&site, "/bare-trailers").header("te", "trailers").body(()).expect("request");
    let answer = client.ask(request, b"x").await.expect("answered");
    let told: Vec<_> = answer.trailers.keys().map(http::HeaderName::as_str).collect();
    assert_eq!((answer.status, &told[..]), (200, &["grpc-status"][..]));
}
