//! Clients that begin with a word without an end, and wait for their server's; and who would begin so to have read by nobody what
//! is read otherwise.

use std::sync::Arc;
use std::time::Duration;

use clawgress_ebpf_common::DropReason;
use futures_util::future::join_all;
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Gateway, Options};
use crate::tunnels::hello;
use crate::upstream::Upstream;

/// Permits what is neither TLS nor HTTP, and nothing else.
const UNKNOWN: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("raw") permit (principal == Agent::"web", action == Action::"tunnel", resource == Host::"raw.allowed.test");
"#;
/// Permits requests, too.
const BOTH: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("raw") permit (principal == Agent::"web", action in [Action::"http", Action::"tunnel"], resource == Host::"raw.allowed.test");
"#;
/// What says who is behind somebody, in both versions.
const HEADERS: [&str; 2] = ["PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"];
/// Cuttings that are tried, at once.
const CUTTINGS: usize = 32;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_word_without_an_end_is_answered_where_what_is_unknown_may_pass() {
    let gateway = Gateway::start(Options::default()).await;
    let server = Upstream::teller("127.1.0.1").await;
    let target = format!("raw.allowed.test:{}", server.address.port());
    for words in [
        // Git; a bind of LDAP; a debugger; who asks whether somebody is there; a projector.
        &["003egit-upload-pack /p\0host=h\0", "0032want\n"][..],
        &["0\x0c\x02\x01\x01`\x07\x02\x01\x03\x04\0\x30\0", "0\x05\x02\x01\x02B\0"],
        &["JDWP-Handshake", "\0\0\0\x0b\0\0\0\x01\0\x01\x07"],
        &["PING", "PING", "PING"],
        &["%1POWR ?\r", "%1POWR 1\r"],
        &["\r\n", "GETS", "\r\n"],
    ] {
        let n = gateway.outcomes();
        let (mut client, answer) = gateway.connect(&target).await;
        assert_eq!(answer.status, 200);
        for (n, word) in words.iter().enumerate() {
            client.send(word).await;
            client.until(&"said".repeat(n + 1)).await;
        }
        drop(client);
        let (decision, outcome) = gateway.exchange(n).await;
        assert_eq!(decision.policies, ["net", "raw"], "{words:?}");
        assert_eq!((outcome.reason, outcome.bytes_sent), (None, Some(words.concat().len() as u64)));
        assert_eq!(std::mem::take(&mut *server.seen.bytes.lock()), words.concat().into_bytes());
    }
}

/// Where it is not, nothing of it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_word_comes_to_be_is_judged_as_that() {
    let gateway = Gateway::start(Options::default()).await;
    let server = Upstream::sink("127.1.0.1").await;
    let target = format!("raw.allowed.test:{}", server.address.port());
    for (first, then, reason) in [
        ("GET", " /secret HTTP/1.1\r\nHost: raw.allowed.test\r\n\r\n", DropReason::ProtocolUnknown),
        ("POST", "\t/secret HTTP/1.1\r\nHost: raw.allowed.test\r\n\r\n", DropReason::ProtocolUnknown),
        ("POST /\x01", " HTTP/1.1\r\nHost: raw.allowed.test\r\n\r\n", DropReason::ProtocolUnknown),
        ("PROXY", " TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n\r\n", DropReason::ProtocolUnknown),
        ("\r\n\r\n", "\0\r\nQUIT\n\x20\0\0\0GET / HTTP/1.1\r\n\r\n", DropReason::ProtocolUnknown),
        ("PRI", " * HTTP/2.0\r\n\r\nSM\r\n\r\n", DropReason::UpgradeUnsupported),
    ] {
        let n = gateway.outcomes();
        let (mut client, _) = gateway.connect(&target).await;
        client.send(first).await;
        while server.seen.bytes.lock().len() < first.len() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        client.send(then).await;
        assert!(client.rest().await.is_empty());
        let (_, outcome) = gateway.exchange(n).await;
        assert_eq!((outcome.reason, outcome.bytes_sent), (Some(reason), Some(first.len() as u64)));
        assert_eq!(std::mem::take(&mut *server.seen.bytes.lock()), first.as_bytes());
    }
}

/// What is said of somebody else, at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_header_of_the_proxy_protocol_goes_on_for_what_is_unknown() {
    let gateway = Gateway::start(Options::default()).await;
    let server = Upstream::sink("127.1.0.1").await;
    let target = format!("raw.allowed.test:{}", server.address.port());
    for header in HEADERS {
        let n = gateway.outcomes();
        let (mut client, _) = gateway.connect(&target).await;
        client.send(format!("{header}GET / HTTP/1.1\r\nHost: raw.allowed.test\r\n\r\n")).await;
        assert!(client.rest().await.is_empty());
        let (_, outcome) = gateway.exchange(n).await;
        assert_eq!(outcome.reason, Some(DropReason::ProtocolUnknown));
    }
    assert!(server.seen.bytes.lock().is_empty());
}

/// Where both are permitted, it is read: what is unknown begins by no method with a target.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_slowly_is_read_and_what_ends_is_carried() {
    let gateway = Gateway::start(Options { policy: Some(BOTH), ..Options::default() }).await;
    let server = Upstream::http("127.1.0.1").await;
    let target = format!("raw.allowed.test:{}", server.address.port());
    for first in ["POST /slow", "POST /slow HT", "OPTIONS http://raw.allowed.test"] {
        let n = gateway.outcomes();
        let (mut client, _) = gateway.connect(&target).await;
        client.send(first).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        let rest = "POST /slow HTTP/1.1".strip_prefix(first).unwrap_or("/ HTTP/1.1");
        client.send(format!("{rest}\r\nHost: {target}\r\nContent-Length: 0\r\n\r\n")).await;
        client.answer().await;
        drop(client);
        let (decision, _) = gateway.exchange(n).await;
        assert_eq!(decision.action.as_deref(), Some("http"), "{first}: {decision:#?}");
    }
    // What waits when its client ends is nothing more.
    let server = Upstream::sink("127.1.0.1").await;
    let target = format!("raw.allowed.test:{}", server.address.port());
    let (mut client, _) = gateway.connect(&target).await;
    client.send("say h").await;
    client.stream.shutdown().await.expect("its end");
    client.rest().await;
    assert_eq!(*server.seen.bytes.lock(), b"say h");
}

/// What each connection has brought.
async fn noting() -> (Upstream, Arc<Mutex<Vec<Vec<u8>>>>) {
    let noted = Arc::new(Mutex::new(vec![]));
    let shared = Arc::clone(&noted);
    let server = Upstream::start("127.1.0.1", None, move |mut stream, _| {
        let shared = Arc::clone(&shared);
        async move {
            let mut got = vec![];
            let _ = stream.read_to_end(&mut got).await;
            shared.lock().push(got);
        }
    });
    (server.await, noted)
}

/// A request or a hello, and pieces of it with what passes before each, milliseconds.
fn cutting() -> impl Strategy<Value = (Vec<u8>, Vec<(usize, u64)>)> {
    let request =
        ("(\r\n)?", "(GET|POST|PRI|REPORT)", "( |\t|\r)/[a-z\0\x01\x7f]{1,4} ", "HTTP/(1\\.1|2\\.0)");
    let request = request.prop_map(|(leading, method, target, version)| {
        format!("{leading}{method}{target}{version}\r\nHost: raw.allowed.test\r\n\r\n").into_bytes()
    });
    let introduced = prop::sample::select(&HEADERS[..])
        .prop_map(|header| format!("{header}POST / HTTP/1.1\r\nHost: raw.allowed.test\r\n\r\n").into_bytes());
    let bytes = prop_oneof![4 => request, 1 => introduced, 1 => Just(hello("raw.allowed.test"))];
    let pause = prop::sample::select(&[0, 20, 400][..]);
    (bytes, prop::collection::vec((1usize..9, pause), 1..6))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_it_is_cut_no_request_or_hello_reaches_a_server_of_what_is_unknown() {
    let gateway = Gateway::start(Options { policy: Some(UNKNOWN), ..Options::default() }).await;
    let (server, noted) = noting().await;
    let target = format!("raw.allowed.test:{}", server.address.port());
    let (mut runner, strategy) = (TestRunner::default(), cutting());
    let cuttings = (0..CUTTINGS).map(|_| strategy.new_tree(&mut runner).expect("a cutting").current());
    let cuttings: Vec<_> = cuttings.collect();
    let tried = join_all(cuttings.iter().map(async |(bytes, pieces)| {
        let (mut client, answer) = gateway.connect(&target).await;
        assert_eq!(answer.status, 200);
        let mut rest = &bytes[..];
        for (n, pause_ms) in pieces {
            tokio::time::sleep(Duration::from_millis(*pause_ms)).await;
            let (piece, behind) = rest.split_at((*n).min(rest.len()));
            client.send(piece).await;
            rest = behind;
        }
        tokio::time::sleep(Duration::from_millis(400)).await;
        client.send(rest).await;
        let _ = client.stream.shutdown().await;
        client.rest().await
    }));
    tried.await;
    let dialled = server.connections();
    while noted.lock().len() < dialled {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let noted = std::mem::take(&mut *noted.lock());
    assert!(noted.iter().any(|got| !got.is_empty()), "some were waited for: {cuttings:?}");
    for got in noted {
        let text = String::from_utf8_lossy(&got).into_owned();
        assert!(cuttings.iter().any(|(bytes, _)| bytes.starts_with(&got)), "{text:?}");
        assert!(got.first() != Some(&0x16), "of a hello nothing goes on");
        assert!(!text.trim_start().contains('\n') && !text.contains("HTTP"), "{text:?}");
        assert!(!text.trim_start().starts_with("GET ") && !text.starts_with("PRI "), "{text:?}");
    }
}
