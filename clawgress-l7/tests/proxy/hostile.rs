//! Hostile bytes: nothing of them reaches an upstream, nothing is allowed, and a good request right
//! after succeeds.

use std::time::Duration;

use clawgress_api::{AuditRecord, RecordKind, Verdict};
use clawgress_ebpf_common::DropReason;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::AsyncWriteExt as _;

use crate::harness::{Gateway, Options};
use crate::http2::until;
use crate::tunnels::hello;
use crate::upstream::Upstream;

async fn both() -> (Gateway, Upstream, String) {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    (gateway, upstream, host)
}

async fn good(gateway: &Gateway, host: &str) {
    let answer =
        gateway.ask(&format!("GET http://{host}/good HTTP/1.1\r\nHost: {host}\r\nAUTH\r\n\r\n")).await;
    assert_eq!(answer.status, 200, "a good request right after");
}

/// Requests the upstream got, but for those of [`good`].
fn bad(upstream: &Upstream) -> Vec<String> {
    upstream.requests().into_iter().filter(|r| !r.contains("/good")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggled_requests_never_reach_the_upstream() {
    let (gateway, upstream, host) = both().await;
    let smuggled = format!("GET http://{host}/smuggled HTTP/1.1\r\nHost: {host}\r\nAUTH\r\n\r\n");
    let get = format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\nAUTH\r\n");
    let post = get.replace("GET", "POST");
    for raw in [
        format!("{post}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{post}Content-Length: 0\r\nContent-Length: 44\r\n\r\n{smuggled}"),
        format!("{post}Content-Length: 0, 44\r\n\r\n{smuggled}"),
        format!("{post}Content-Length: +0\r\n\r\n{smuggled}"),
        format!("{post}Content-Length: 0x0\r\n\r\n{smuggled}"),
        format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{post}Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{post} Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{post}X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{post}X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{post}X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{post}X: \0\r\n\r\n{smuggled}"),
        format!("{get}Host: denied.test\r\n\r\n{smuggled}"),
        format!("GET http://{host}/x HTTP/1.1\r\nAUTH\r\n\r\n{smuggled}"),
        format!("GET http://{host}/x HTTP/1.1\r\nHost: denied.test\r\nAUTH\r\n\r\n{smuggled}"),
        format!("GET http://{host}/x HTTP/1.1\nHost: {host}\nAUTH\r\n\n\n{smuggled}"),
        format!("GET http://{host}/x HTTP/1.1 \r\nHost: {host}\r\nAUTH\r\n\r\n{smuggled}"),
        format!(
            "GET http://api.allowed.test@denied.test/ HTTP/1.1\r\nHost: denied.test\r\nAUTH\r\n\r\n{smuggled}"
        ),
        format!("GET http://{host}\\@denied.test/ HTTP/1.1\r\nHost: {host}\r\nAUTH\r\n\r\n{smuggled}"),
        format!("GET https://{host}/ HTTP/1.1\r\nHost: {host}\r\nAUTH\r\n\r\n{smuggled}"),
        format!("{get}Expect: 200-ok\r\n\r\n{smuggled}"),
        format!("{get}Connection: host\r\n\r\n{smuggled}"),
        format!("\r\n{get}\r\n{smuggled}"),
        get.replace("/x ", "/./denied ") + "\r\n" + &smuggled,
        get.replace("/x ", "/x/../denied ") + "\r\n" + &smuggled,
        get.replace("/x ", "/%64enied ") + "\r\n" + &smuggled,
        get.replace("/x ", "//denied ") + "\r\n" + &smuggled,
        get.replace("/x ", "/`") + "\r\n" + &smuggled,
        get.replace("/x ", "/x` ") + "\r\n" + &smuggled,
    ] {
        let answer = gateway.ask(&raw).await;
        assert_eq!((answer.status, answer.reason()), (400, "http_malformed"), "{raw:?}");
        assert_eq!(bad(&upstream), Vec::<String>::new(), "{raw:?}");
    }
    // A request to the gateway itself asks for an endpoint, and there is none.
    let raw = format!("GET /x HTTP/1.1\r\nHost: {host}\r\nAUTH\r\n\r\n{smuggled}");
    let answer = gateway.ask(&raw).await;
    assert_eq!((answer.status, answer.reason()), (404, "endpoint_unknown"));
    assert_eq!(bad(&upstream), Vec::<String>::new(), "nothing after it is read");
    let raw = format!("{get}Upgrade: foo\r\nConnection: upgrade\r\n\r\n{smuggled}");
    assert_eq!(gateway.ask(&raw).await.reason(), "upgrade_unsupported");
    let raw = format!(
        "{get}Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nConnection: upgrade, http2-settings\r\n\r\n{smuggled}"
    );
    assert_eq!(gateway.ask(&raw).await.reason(), "upgrade_unsupported");
    good(&gateway, &host).await;
    assert_eq!(bad(&upstream), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_its_framing_is_cut_off() {
    let (gateway, upstream, host) = both().await;
    let head = format!(
        "POST http://{host}/echo HTTP/1.1\r\nHost: {host}\r\nAUTH\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let smuggled = format!("GET http://{host}/smuggled HTTP/1.1\r\nHost: {host}\r\nAUTH\r\n\r\n");
    for body in [
        "5;a=b\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "3\r\nabc\r\n5 \r\nhello\r\n0\r\n\r\n",
        "0\r\nbad trailer\r\n\r\n",
    ] {
        let n = gateway.outcomes();
        let answer = gateway.ask(&format!("{head}{body}{smuggled}")).await;
        assert_eq!((answer.status, answer.reason()), (400, "http_malformed"), "{body:?}");
        assert_eq!(gateway.exchange(n).await.1.reason, Some(DropReason::HttpMalformed));
    }
    assert!(!format!("{:?}", upstream.requests()).contains("smuggled"));
    good(&gateway, &host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_judged_one_by_one() {
    let (gateway, upstream, host) = both().await;
    let auth = gateway.web();
    let one = |path: &str| format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{auth}\r\n");
    let mut client = gateway.client().await;
    client.send(one("/a") + &one("/denied") + &one("/b")).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(client.answer().await.status, 403);
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(upstream.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_silent_clients_meet_a_deadline() {
    let (gateway, upstream, host) = both().await;
    let mut silent = gateway.client().await;
    let (mut after_connect, _) =
        gateway.connect(&format!("api.allowed.test:{}", upstream.address.port())).await;
    after_connect.send(b"\x16\x03\x01").await;
    let (mut quiet, _) = gateway.connect(&format!("api.allowed.test:{}", upstream.address.port())).await;
    // A hello that comes byte by byte is no more patient a matter.
    let (mut dripped, _) = gateway.connect(&format!("api.allowed.test:{}", upstream.address.port())).await;
    let dripped = tokio::spawn(async move {
        for byte in hello("api.allowed.test") {
            let sent = dripped.stream.write_all(&[byte]).await;
            if sent.is_err() || dripped.is_closed(Duration::from_millis(100)).await {
                return true;
            }
        }
        false
    });
    let mut drip = gateway.client().await;
    let mut kept = gateway.client().await;
    kept.send(format!("GET http://{host}/good HTTP/1.1\r\nHost: {host}\r\n{}\r\n", gateway.web())).await;
    assert_eq!(kept.answer().await.status, 200);
    kept.send("GET http://").await;
    let begun = std::time::Instant::now();
    let mut head = format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\nX: ").into_bytes();
    head.resize(400, b'a');
    for byte in head {
        drip.send([byte]).await;
        if drip.is_closed(Duration::from_millis(100)).await {
            break;
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(13), "a byte now and then does not help");
    let closed = Duration::from_secs(6);
    assert!(silent.is_closed(closed).await);
    assert!(kept.answer().await.reason() == "timeout");
    // What is left of an alert, then the end.
    after_connect.rest().await;
    assert!(quiet.is_closed(closed).await);
    assert!(dripped.await.expect("no panic"), "nor does one of a hello");
    good(&gateway, &host).await;
    // Whoever says nothing was let through to where it went; half a hello is denied, twice.
    for (verdict, policies, times) in [(Verdict::Allow, 3, 1), (Verdict::Deny, 0, 2)] {
        let is_one = |records: &[AuditRecord]| {
            let late = |r: &&AuditRecord| r.status == Some(200) && r.reason == Some(DropReason::Timeout);
            let of = |outcome: &AuditRecord| {
                let decision = |r: &&AuditRecord| {
                    r.kind == RecordKind::Decision
                        && r.request == outcome.request
                        && r.verdict == Some(verdict)
                };
                records.iter().find(decision).is_some_and(|r| r.policies.len() == policies)
            };
            records.iter().filter(late).filter(|r| of(r)).count() == times
        };
        until("the record", || is_one(&gateway.control.records())).await;
    }
    assert_eq!(bad(&upstream), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_heads_and_hellos_are_capped() {
    let (gateway, upstream, host) = both().await;
    let huge = "a".repeat(200_000);
    let answer = gateway
        .ask(&format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\nAUTH\r\nX: {huge}\r\n\r\n"))
        .await;
    assert_eq!(answer.reason(), "http_malformed");
    let answer = gateway.ask(&format!("CONNECT {host} HTTP/1.1\r\nX: {huge}\r\n\r\n")).await;
    assert_eq!(answer.reason(), "http_malformed");
    let (mut client, _) = gateway.connect(&host).await;
    // A hello that never ends, a byte a record.
    let record = [22, 3, 1, 0, 1, 1];
    client.send(record).await;
    for _ in 0..20_000 {
        client.send([22, 3, 1, 0, 1, 0]).await;
    }
    client.rest().await;
    good(&gateway, &host).await;
    assert_eq!(bad(&upstream), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_never_allowed() {
    let (gateway, upstream, host) = both().await;
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(40) });
    let strategy = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..600),
        "(GET|POST|CONNECT|PRI|OPTIONS|[A-Z]{1,9}) [ -~]{0,60}( HTTP/1\\.[01])?\r\n([ -~]{0,30}\r\n){0,4}\r\n".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(|b| [&[22, 3, 1][..], &b].concat()),
    ];
    for n in 0..40 {
        let bytes = strategy.new_tree(&mut runner).expect("value").current();
        let mut client = gateway.client().await;
        client.send(&bytes).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await;
        let rest = client.rest().await;
        let text = String::from_utf8_lossy(&rest);
        assert!(
            !text.starts_with("HTTP/1.1 2"),
            "case {n}: {:?} gave {text}",
            bytes.escape_ascii().to_string()
        );
    }
    good(&gateway, &host).await;
    assert_eq!(bad(&upstream), Vec::<String>::new());
}
