//! Servers that say nothing any more: before an answer, and in the middle of one.

use clawgress_api::Verdict;
use clawgress_ebpf_common::DropReason;
use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::PATIENCE;
use crate::http2_proxy::Setting;
use crate::upstream::Upstream;

/// How long they may.
const SILENCE: &str = "answer_silence_s_max = 1\n";

/// A server that begins to answer as far as the path says, and then neither goes on nor ends.
async fn stalling() -> Upstream {
    Upstream::start("127.1.0.1", None, |mut stream, _| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(1..) = stream.read_buf(&mut head).await else { return };
        }
        let head = String::from_utf8(head).expect("text");
        let said = match head.split(' ').nth(1) {
            Some("/head") => "HTTP/1.1 200 OK\r\nContent-Le",
            Some("/length") => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
            Some("/chunks") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            Some("/end") => "HTTP/1.1 200 OK\r\n\r\nhalf",
            _ => "",
        };
        let _ = stream.write_all(said.as_bytes()).await;
        // Until whoever asked has left.
        let _ = stream.read_buf(&mut Vec::new()).await;
    })
    .await
}

/// What it was recorded as.
async fn outcome(s: &Setting, n: usize) -> (Option<u16>, Option<DropReason>) {
    let (_, outcome) = s.gateway.exchange(n).await;
    (outcome.status, outcome.reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_does_not_begin_is_given_up() {
    let s = Setting::before(stalling().await, SILENCE).await;
    for (n, path) in ["/", "/head"].into_iter().enumerate() {
        let mut client = s.gateway.client().await;
        let (host, web) = (s.host(), s.gateway.web());
        client.send(format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{web}\r\n")).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.reason()), (502, "upstream_failed"), "{path}");
        assert_eq!(outcome(&s, n).await, (Some(502), Some(DropReason::UpstreamFailed)), "{path}");
    }
    let request = s.of_web(Request::get(format!("http://{}/head", s.host())));
    let answer = s.client().await.ask(request, b"").await.expect("answer");
    assert_eq!(answer.said(), (502, "upstream_failed"));
}

/// It ends short, so that nobody takes it for whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_stops_in_the_middle_ends_short() {
    let s = Setting::before(stalling().await, SILENCE).await;
    for (n, (path, rest)) in
        [("/length", "half"), ("/chunks", "4\r\nhalf\r\n"), ("/end", "4\r\nhalf\r\n")].into_iter().enumerate()
    {
        let mut client = s.gateway.client().await;
        let (host, web) = (s.host(), s.gateway.web());
        client.send(format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{web}\r\n")).await;
        let answer = client.answer_head().await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(String::from_utf8_lossy(&client.rest().await), rest, "{path}: {answer:?}");
        assert_eq!(outcome(&s, n).await, (Some(200), Some(DropReason::UpstreamFailed)), "{path}");
    }
    let client = s.client().await;
    for path in ["/length", "/chunks", "/end"] {
        let request = s.of_web(Request::get(format!("http://{}{path}", s.host())));
        let asked = tokio::time::timeout(PATIENCE, client.ask(request, b"")).await.expect("in time");
        let error = asked.expect_err("it is reset");
        assert!(error.is_reset(), "{path}: {error:?}");
    }
}

/// A client of HTTP/1 that ends its side is not told from one that has left: what it asked for is given up, and not waited for as long
/// as its server is. One that has its answer has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ends_its_side_is_not_waited_for() {
    let s = Setting::before(stalling().await, "").await;
    let (host, web) = (s.host(), s.gateway.web());
    let ask = async |path: &str| {
        let mut client = s.gateway.client().await;
        client.send(format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{web}\r\n")).await;
        client.stream.shutdown().await.expect("shutdown");
        client
    };
    let mut client = ask("/").await;
    assert_eq!(client.answer_head().await.status, 0, "it is not answered");
    let (decision, outcome) = s.gateway.exchange(0).await;
    assert_eq!((decision.verdict, outcome.status), (Some(Verdict::Allow), None));
    crate::http2::until("the end of what was asked", || {
        s.upstream.seen.ended.load(std::sync::atomic::Ordering::SeqCst) == s.upstream.connections()
    })
    .await;
    // What is not asked of anybody is answered.
    let denied = ask("/denied").await.answer().await;
    assert_eq!((denied.status, denied.reason()), (403, "policy_denied"));
}
