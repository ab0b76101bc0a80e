//! Tools that the model knows by other names than the agent: in the call, in the answer, and to policy.

use std::sync::Arc;
use std::time::Duration;

use clawgress_api::{AuditRecord, RecordKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::Answer;
use crate::harness::{Gateway, Options, PATIENCE};
use crate::upstream::{Seen, Upstream};

const POLICY: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal == Agent::"web", action == Action::"http", resource);
@id("llm") permit (principal == Agent::"web", action == Action::"llm", resource);
@id("receive") permit (principal == Agent::"web", action == Action::"receive", resource);
@id("no-rm") forbid (principal, action == Action::"receive", resource) when { context.usage.tools.contains("rm") };
@id("quiet") @effect("transform") @rename_tool("shell: run_command")
permit (principal == Agent::"web", action == Action::"llm", resource in Provider::"local");
@id("tidy") @effect("transform") @rename_tool("rm: tidy")
permit (principal == Agent::"web", action == Action::"llm", resource in Provider::"local");
"#;

/// A model that asks for the first tool that it is offered.
async fn model(mut stream: TcpStream, seen: Arc<Seen>) {
    let mut held = Vec::new();
    loop {
        while !held.windows(4).any(|w| w == b"\r\n\r\n") {
            let Ok(1..) = stream.read_buf(&mut held).await else { return };
        }
        let at = held.windows(4).position(|w| w == b"\r\n\r\n").expect("found") + 4;
        let head = String::from_utf8(held.drain(..at).collect()).expect("text");
        let lower = head.to_ascii_lowercase();
        let length =
            lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let length = length.expect("a length");
        while held.len() < length {
            let Ok(1..) = stream.read_buf(&mut held).await else { return };
        }
        let body: Vec<u8> = held.drain(..length).collect();
        let text = String::from_utf8(body).expect("text");
        let asked: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        seen.requests.lock().push(text);
        seen.bytes.lock().extend_from_slice(lower.as_bytes());
        let name = asked["tools"][0]["function"]["name"].as_str().unwrap_or("none");
        if stream.write_all(answer(&asked, name).as_bytes()).await.is_err() {
            return;
        }
    }
}

fn answer(asked: &serde_json::Value, name: &str) -> String {
    let call = |name: &str, arguments: &str| {
        format!(
            r#"[{{"index":0,"id":"c","type":"function","function":{{"name":"{name}","arguments":"{arguments}"}}}}]"#
        )
    };
    if asked["user"] == "typeless" {
        return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_owned();
    }
    if asked["stream"] != true {
        let body = format!(
            r#"{{"model":"m", "choices":[{{"message":{{"content":"{name}","tool_calls":{}}}}}],"usage":{{"prompt_tokens":3,"completion_tokens":1.0e0}}}}"#,
            call(name, r#"{\"name\":\"run_command\"}"#)
        );
        return format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
    }
    let names = if asked["user"] == "parts" { ["run_", "command"] } else { [name, ""] };
    let event = |calls: String| {
        format!(
            "data: {{\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"tool_calls\":{calls}}}}}]}}\n\n"
        )
    };
    let all = names.map(|name| event(call(name, "run_command"))).concat() + "data: [DONE]\n\n";
    // In pieces that end anywhere.
    let chunks = all
        .as_bytes()
        .chunks(7)
        .map(|piece| format!("{:x}\r\n{}\r\n", piece.len(), std::str::from_utf8(piece).expect("ASCII")));
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    format!("{head}{}0\r\n\r\n", chunks.collect::<String>())
}

struct Site {
    gateway: Gateway,
    upstream: Upstream,
    host: String,
}

impl Site {
    async fn start() -> Site {
        let upstream = Upstream::start("127.1.0.1", None, model).await;
        let host = format!("api.allowed.test:{}", upstream.address.port());
        let more = format!("[[llm.server]]\nname = \"local\"\nurl = \"http://{host}\"\n");
        let options = Options { policy: Some(POLICY), more, ..Options::default() };
        Site { gateway: Gateway::start(options).await, upstream, host }
    }

    async fn ask(&self, fields: &str, body: &str) -> Answer {
        let mut client = self.gateway.client().await;
        let (host, auth) = (&self.host, self.gateway.web());
        let head = format!(
            "POST http://{host}/v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n{auth}Content-Type: application/json\r\n{fields}Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        client.send([head.as_bytes(), body.as_bytes()].concat()).await;
        let mut answer = client.answer_head().await;
        answer.body = client.rest().await;
        answer
    }

    async fn record(&self, kind: RecordKind, n: usize) -> AuditRecord {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let records = self.gateway.control.records();
            if let Some(found) = records.iter().filter(|r| r.kind == kind).nth(n) {
                return found.clone();
            }
            assert!(tokio::time::Instant::now() < deadline, "none in {records:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn call(name: &str, more: &str) -> String {
    format!(
        r#"{{"model":"m", "messages":[{{"role":"user","content":"{name}"}}],"tools":[{{"type":"function","function":{{"name":"{name}","parameters":{{"n":1.50}}}}}}]{more}}}"#
    )
}

/// What is in the chunks of a body.
fn joined(body: &[u8]) -> String {
    let mut text = String::from_utf8(body.to_vec()).expect("text");
    let mut out = String::new();
    while let Some((length, rest)) = text.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).expect("a length");
        let (piece, rest) = rest.split_at(length);
        out.push_str(piece);
        text = rest.strip_prefix("\r\n").expect("an end").to_owned();
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_and_the_agent_each_have_their_names() {
    let site = Site::start().await;
    let answer = site.ask("Accept-Encoding: gzip\r\n", &call("shell", "")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let sent = site.upstream.requests().last().expect("one").clone();
    assert_eq!(sent, call("shell", "").replace(r#""name":"shell""#, r#""name":"run_command""#));
    let head = String::from_utf8(site.upstream.seen.bytes.lock().clone()).expect("text");
    assert!(head.contains("accept-encoding: identity"), "{head}");
    assert_eq!(
        joined(&answer.body),
        r#"{"model":"m", "choices":[{"message":{"content":"run_command","tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"shell","arguments":"{\"name\":\"run_command\"}"}}]}}],"usage":{"prompt_tokens":3,"completion_tokens":1.0e0}}"#,
        "and all else is as it was"
    );
    assert!(answer.field("content-length").is_none(), "{answer:?}");
    let decided = site.record(RecordKind::Decision, 0).await;
    assert_eq!(decided.changes, ["llm: the tool `shell` is called `run_command`"]);
    let ended = site.record(RecordKind::Outcome, 0).await;
    let told = ended.changes.last().map(String::as_str);
    assert_eq!((ended.changes.len(), told), (2, Some("answer: tools are called as their client calls them")));
    // A stream, event by event.
    let answer = site.ask("", &call("shell", r#","stream":true"#)).await;
    let text = joined(&answer.body);
    assert!(
        text.contains(r#""name":"shell","arguments":"run_command""#) && text.ends_with("data: [DONE]\n\n"),
        "{text}"
    );
    assert!(!text.contains(r#""name":"run_command""#), "{text}");
    // What is named otherwise stays so.
    let answer = site.ask("", &call("look", "")).await;
    assert!(joined_or_plain(&answer).contains(r#""name":"look""#), "{answer:?}");
    assert!(site.record(RecordKind::Outcome, 2).await.changes.is_empty());
}

fn joined_or_plain(answer: &Answer) -> String {
    if answer.field("transfer-encoding").is_some() { joined(&answer.body) } else { answer.text() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_is_asked_of_answers_by_the_agents_names() {
    let site = Site::start().await;
    let answer = site.ask("", &call("rm", "")).await;
    assert_eq!((answer.status, answer.reason()), (403, "policy_forbidden"));
    let sent = site.upstream.requests().last().expect("one").clone();
    assert!(sent.contains(r#""name":"tidy""#), "{sent}");
    let answer = site.ask("", &call("rm", r#","stream":true"#)).await;
    assert!(!answer.text().contains("tidy") && !answer.text().contains("[DONE]"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_renamed_does_not_go_on() {
    let site = Site::start().await;
    let two = r#","functions":[{"name":"run_command"}]"#;
    let answer = site.ask("", &call("shell", two)).await;
    assert_eq!((answer.status, answer.reason()), (415, "content_unreadable"));
    let denied = site.record(RecordKind::Decision, 0).await;
    assert!(denied.detail.as_deref().is_some_and(|d| d.contains("a name of its own")), "{denied:#?}");
    assert!(site.upstream.requests().is_empty());
    let answer = site.ask("", &call("shell", r#","user":"typeless""#)).await;
    assert_ne!(answer.status, 200, "{answer:?}");
    let ended = site.record(RecordKind::Outcome, 1).await;
    assert!(ended.detail.as_deref().is_some_and(|d| d.contains("can't be changed back")), "{ended:#?}");
    // A name in parts may be that of another tool.
    let answer = site.ask("", &call("shell", r#","user":"parts","stream":true"#)).await;
    assert!(!answer.text().contains("run_") && !answer.text().contains("[DONE]"), "{answer:?}");
    let ended = site.record(RecordKind::Outcome, 2).await;
    assert!(ended.detail.as_deref().is_some_and(|d| d.contains("in parts")), "{ended:#?}");
}
