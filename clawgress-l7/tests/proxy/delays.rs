//! How late a model's stream is for being judged: each event is with its client before its server sends the next, but for those of a
//! call that wait until it is whole.
//!
//! No clock decides: a server that waits for what does not come ends the test.

use std::path::Path;
use std::sync::Arc;

use clawgress_inspect::llm::answer::{Following, Format, Reader};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Gateway, Options};
use crate::upstream::{Seen, Upstream};

/// Where each dialect's stream is asked for, and what it is, written from its specification.
const STREAMS: &[(&str, &str, &str)] = &[
    ("/v1/chat/completions", "azure_v1_chat_answer.sse", "text/event-stream"),
    ("/v1/responses", "openai_responses_answer.sse", "text/event-stream; charset=utf-8"),
    ("/v1/messages", "anthropic_answer.sse", "text/event-stream"),
    ("/v1beta/models/m:streamGenerateContent", "gemini_cloudcode_answer.sse", "text/event-stream"),
    ("/model/m/converse-stream", "bedrock_converse_answer.amazon", "application/vnd.amazon.eventstream"),
    (
        "/model/m/invoke-with-response-stream",
        "bedrock_invoke_answer.amazon",
        "application/vnd.amazon.eventstream",
    ),
    ("/v2/chat", "cohere_chat_answer.sse", "text/event-stream"),
    ("/v1/chat", "cohere_chat_v1_answer.ndjson", "application/stream+json"),
    ("/api/chat", "ollama_chat_answer.ndjson", "application/x-ndjson"),
];

const BASE: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal == Agent::"web", action == Action::"http", resource);
@id("llm") permit (principal == Agent::"web", action == Action::"llm", resource in Provider::"local");
"#;
/// What is found in answers decides, which none of these has.
const CONTENT: &str = r#"
@id("receive") permit (principal, action == Action::"receive", resource);
@id("no-keys") forbid (principal, action == Action::"receive", resource) when { context.findings.contains("private_key") };
@id("no-orders") forbid (principal, action == Action::"receive", resource) when { context.findings.contains("instruction_override") };
@id("no-shell") forbid (principal, action == Action::"receive", resource) when { context.usage.tools.contains("shell") };
@id("no-length") forbid (principal, action == Action::"receive", resource) when { context.usage.output_tokens > 4000 };
"#;
/// What a model asks tools for does.
const CALLS: &str = r#"
@id("no-rm") forbid (principal, action == Action::"receive", resource) when { context.call.arguments like "*rm -rf*" };
"#;

fn format(name: &str) -> Format {
    match name.rsplit('.').next() {
        Some("sse") => Format::EventStream,
        Some("ndjson") => Format::Lines,
        _ => Format::Amazon,
    }
}

/// A stream's events.
fn events(name: &str) -> Vec<Vec<u8>> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../clawgress-inspect/tests/golden").join(name);
    let body = std::fs::read(&golden).unwrap_or_else(|e| panic!("{}: {e}", golden.display()));
    let (mut all, mut rest) = (Vec::new(), &body[..]);
    while !rest.is_empty() {
        let ends = |mark: &[u8]| rest.windows(mark.len()).position(|at| at == mark).map(|at| at + mark.len());
        let end = match format(name) {
            Format::Amazon => rest.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes) as usize),
            Format::Lines => ends(b"\n"),
            _ => ends(b"\n\n").into_iter().chain(ends(b"\r\n\r\n")).min(),
        };
        let (event, behind) = rest.split_at(end.expect("an end"));
        all.push(event.to_vec());
        rest = behind;
    }
    all
}

/// Answers by the path, event by event: each behind the first once the test says so.
async fn serve(mut stream: TcpStream, seen: Arc<Seen>) {
    let mut held = Vec::new();
    // Each request has `{}` or more behind its head, and nothing behind that.
    while !held.ends_with(b"}") {
        let Ok(1..) = stream.read_buf(&mut held).await else { return };
    }
    let head = String::from_utf8_lossy(&held).into_owned();
    let path = head.split(' ').nth(1).expect("a path").to_owned();
    let (_, name, kind) = STREAMS.iter().find(|(at, ..)| *at == path).expect("known");
    let begin =
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    let mut next = begin;
    for (n, event) in events(name).iter().enumerate() {
        if n > 0 {
            seen.events.as_ref().expect("events").acquire().await.expect("open").forget();
        }
        next.extend(format!("{:x}\r\n", event.len()).into_bytes());
        next.extend(event);
        next.extend(b"\r\n");
        if stream.write_all(&next).await.is_err() {
            return;
        }
        next.clear();
    }
    let _ = stream.write_all(b"0\r\n\r\n").await;
}

/// What came of a body in chunks, and whether all of it did.
fn dechunked(mut held: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(at) = held.windows(2).position(|at| at == b"\r\n") {
        let line = std::str::from_utf8(&held[..at]).expect("text");
        let size = usize::from_str_radix(line, 16).expect("a size");
        let chunk = at + 2..at + 2 + size;
        body.extend(held.get(chunk.clone()).unwrap_or(&held[chunk.start.min(held.len())..]));
        if size == 0 {
            return (body, true);
        }
        held = held.get(chunk.end + 2..).unwrap_or_default();
    }
    (body, false)
}

/// How each stream is to come: how many of its events are there behind each that was sent.
fn gone(name: &str, follows: bool) -> Vec<usize> {
    let reader = Reader::new(format(name));
    let mut reader = if follows { reader.following_calls(1 << 20, Following::Held, true) } else { reader };
    let mut out = 0;
    let each = events(name).into_iter().enumerate().map(|(n, event)| {
        if reader.push(&event) > 0 {
            out = n + 1;
        }
        out
    });
    each.collect()
}

/// Every stream under this policy, in lockstep with its server.
async fn are_in_step(policy: String, follows: bool) {
    let upstream = Upstream::start("127.1.0.1", None, serve).await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let more = format!("[[llm.server]]\nname = \"local\"\nurl = \"http://{host}\"\n");
    let policy: &'static str = Box::leak(policy.into_boxed_str());
    let gateway = Gateway::start(Options { policy: Some(policy), more, ..Options::default() }).await;
    let auth = gateway.web();
    for (path, name, _) in STREAMS {
        let mut events = events(name);
        let body = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
        let is_asked = path.ends_with("/chat/completions");
        // The gateway has asked for usage, and takes it out.
        let told = events.iter().position(|event| {
            String::from_utf8_lossy(event).contains("\"choices\": []")
                && event.windows(7).any(|at| at == b"\"usage\"")
        });
        if let Some(told) = told.filter(|_| is_asked) {
            events[told].clear();
        }
        let mut client = gateway.client().await;
        let length = body.len();
        client
            .send(format!(
                "POST http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{auth}Content-Length: {length}\r\n\r\n{body}"
            ))
            .await;
        assert_eq!(client.answer_head().await.status, 200, "{path}");
        let gone = gone(name, follows);
        for (n, out) in gone.iter().copied().enumerate() {
            let want = events[..out].concat();
            loop {
                let (came, _) = dechunked(&client.held);
                assert!(want.starts_with(&came), "{path}: more than {out} behind event {n}");
                if came.len() == want.len() {
                    break;
                }
                assert!(client.more().await, "{path}: it ends behind event {n}");
            }
            if n + 1 < gone.len() {
                upstream.next_event();
            }
        }
        while !dechunked(&client.held).1 {
            assert!(client.more().await, "{path}: it has no end");
        }
        assert_eq!(dechunked(&client.held).0, events.concat(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_counted_is_in_step_with_its_server() {
    are_in_step(BASE.to_owned(), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_content_decides_is_in_step_with_its_server() {
    are_in_step(format!("{BASE}{CONTENT}"), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_events_of_a_call_wait_where_calls_decide() {
    are_in_step(format!("{BASE}{CONTENT}{CALLS}"), true).await;
}
