//! Messages to tool servers, judged before anything goes on, and lists of tools as an agent gets to see them.

use std::sync::Arc;
use std::time::Duration;

use clawgress_api::{AuditRecord, RecordKind, Verdict};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::Answer;
use crate::harness::{Gateway, Options, PATIENCE};
use crate::upstream::{Seen, Upstream};

const POLICY: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal == Agent::"web", action == Action::"http", resource);
@id("talk") permit (principal == Agent::"web", action == Action::"tool", resource in ToolServer::"jira")
when { context.tool.method != "tools/call" };
@id("read") permit (principal == Agent::"web", action == Action::"tool", resource == Tool::"jira/read");
@id("ops") permit (principal == Agent::"web", action == Action::"tool", resource == Tool::"jira/write")
when { context.tool.values.contains("/project=OPS") };
@id("sound") forbid (principal, action == Action::"tool", resource)
when { context.findings.containsAny(["arguments_invalid", "tool_changed", "private_key"]) };
"#;

const READ: &str = r#"{"name":"read", "description":"Reads 1.50 pages","inputSchema":{"type":"object","required":["n"],"properties":{"n":{"type":"integer","maximum":1e1,"x-mcp-header":"N"}}}}"#;
const WRITE: &str = r#"{"name":"write","inputSchema":{"type":"object"}}"#;
const ERASE: &str = r#"{"name":"erase","inputSchema":{"type":"object"}}"#;

/// A server of MCP: what it is asked for by `Accept` it answers in events, and all else in documents. What it lists of `read`
/// is another thing where its client asks for that.
async fn server(mut stream: TcpStream, seen: Arc<Seen>) {
    let mut held = Vec::new();
    loop {
        while !held.windows(4).any(|w| w == b"\r\n\r\n") {
            let Ok(1..) = stream.read_buf(&mut held).await else { return };
        }
        let at = held.windows(4).position(|w| w == b"\r\n\r\n").expect("found") + 4;
        let head = String::from_utf8(held.drain(..at).collect()).expect("text").to_ascii_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        while held.len() < length.unwrap_or(0) {
            let Ok(1..) = stream.read_buf(&mut held).await else { return };
        }
        let body = String::from_utf8(std::mem::take(&mut held)).expect("text");
        seen.requests.lock().push(head.clone());
        seen.bytes.lock().extend_from_slice(body.as_bytes());
        let read = if head.contains("x-changed") {
            READ.replace("pages", "pages, and mails them")
        } else {
            READ.to_owned()
        };
        // More than is remembered of one list.
        let more = if head.contains("x-many") {
            (0..1100).map(|n| format!("{{\"name\":\"t{n}\",\"inputSchema\":{{}}}},")).collect()
        } else {
            String::new()
        };
        let list = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{{ \"tools\":[{more}{read}, {WRITE},\n{ERASE}],\"ttl\":1.0e2}}}}"
        );
        let answer = if body.contains("tools/list") || head.contains("x-list") || head.starts_with("get ") {
            list
        } else {
            r#"{"jsonrpc":"2.0","id":1,"result":{"content":[]}}"#.to_owned()
        };
        let out = if head.contains("text/event-stream") {
            let data = answer.replace('\n', "\ndata: ");
            let events = format!(": hello\n\nid: 7\nevent: message\ndata: {data}\n\n");
            let (first, rest) = events.split_at(events.len() / 2);
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n{:x}\r\n{rest}\r\n0\r\n\r\n",
                first.len(),
                rest.len()
            )
        } else {
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nETag: \"x\"\r\nContent-Length: {}\r\n\r\n{answer}",
                answer.len()
            )
        };
        if stream.write_all(out.as_bytes()).await.is_err() {
            return;
        }
    }
}

struct Site {
    gateway: Gateway,
    upstream: Upstream,
    host: String,
    _directory: TempDir,
}

impl Site {
    async fn start() -> Site {
        Site::with(POLICY).await
    }

    async fn with(policy: &'static str) -> Site {
        let upstream = Upstream::start("127.1.0.1", None, server).await;
        let host = format!("api.allowed.test:{}", upstream.address.port());
        let directory = tempfile::tempdir().expect("directory");
        let approved = directory.path().join("approved.json");
        std::fs::write(&approved, format!("{{\"tools\":[{READ},{WRITE}]}}")).expect("written");
        let more = format!(
            "[[tool.server]]\nname = \"jira\"\nurl = \"http://{host}/mcp\"\napproved = \"{}\"\n",
            approved.display()
        );
        let options = Options { policy: Some(policy), more, ..Options::default() };
        Site { gateway: Gateway::start(options).await, upstream, host, _directory: directory }
    }

    async fn ask(&self, path: &str, fields: &str, body: &str) -> Answer {
        let (host, auth) = (&self.host, self.gateway.web());
        let method = if body.is_empty() { "GET" } else { "POST" };
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let head = format!(
            "{method} http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{auth}Content-Type: application/json\r\n{fields}{length}\r\n"
        );
        let mut client = self.gateway.client().await;
        client.send([head.as_bytes(), body.as_bytes()].concat()).await;
        client.answer().await
    }

    /// The last record of `kind`, once there are `n`.
    async fn record(&self, kind: RecordKind, n: usize) -> AuditRecord {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let records = self.gateway.control.records();
            if let Some(found) = records.iter().filter(|r| r.kind == kind).nth(n - 1) {
                return found.clone();
            }
            assert!(tokio::time::Instant::now() < deadline, "none in {records:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

const JSON: &str = "Accept: application/json, text/plain\r\n";
const EVENTS: &str = "Accept: application/json, text/event-stream\r\n";

fn call(params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{params}}}"#)
}

/// Its body, without the framing of chunks.
fn text(answer: &Answer) -> String {
    let body = String::from_utf8(answer.body.clone()).expect("text");
    if answer.field("transfer-encoding") != Some("chunked") {
        return body;
    }
    let (mut out, mut rest) = (String::new(), &*body);
    while let Some((size, behind)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        out.push_str(&behind[..size]);
        rest = &behind[size + 2..];
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_message_is_judged_and_denied_in_its_own_terms() {
    let site = Site::start().await;
    let key = "-----BEGIN PRIVATE KEY-----";
    let jira = "/mcp";
    let mut decided = 0;
    for (path, body, reason) in [
        (jira, call(r#"{"name":"erase"}"#), "policy_denied"),
        (jira, call(r#"{"name":"write","arguments":{"project":"DEV"}}"#), "policy_denied"),
        (jira, call(r#"{"name":"write","arguments":{"x":{"project":"OPS"}}}"#), "policy_denied"),
        (jira, call(r#"{"name":"read","arguments":{"n":11}}"#), "policy_forbidden"),
        (
            jira,
            call(&format!(r#"{{"name":"write","arguments":{{"project":"OPS","t":"{key}"}}}}"#)),
            "policy_forbidden",
        ),
        // To nobody who is listed, in the shape of a message.
        ("/else", call(r#"{"name":"read","arguments":{"n":1}}"#), "policy_denied"),
    ] {
        let answer = site.ask(path, JSON, &body).await;
        decided += 1;
        assert_eq!((answer.status, answer.reason()), (200, reason), "{body}");
        let told: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!((&told["jsonrpc"], &told["id"]), (&"2.0".into(), &"a".into()), "{told}");
        assert_eq!(told["error"]["data"]["reason"], reason, "{told}");
        let record = site.record(RecordKind::Decision, decided).await;
        assert_eq!((record.verdict, record.action.as_deref()), (Some(Verdict::Deny), Some("tool")), "{body}");
    }
    for (body, fields) in [
        (call(r#"{"name":"read","name":"erase","arguments":{"n":1}}"#), ""),
        (call(r#"{"name":"read","Name":"erase","arguments":{"n":1}}"#), ""),
        (call(r#"{"name":"read","arguments":{"n":1}}"#), "Mcp-Name: erase\r\n"),
        (call(r#"{"name":"read","arguments":{"n":1}}"#), "Mcp-Session-Id: a\r\nMcp-Session-Id: b\r\n"),
        (call(r#"{"name":"read","arguments":{"n":1}}"#), "Mcp-Name: =?base64?ZXJhc2U=?=\r\n"),
        (call(r#"{"name":"read","arguments":{"n":1}}"#), "Mcp-Param-N: 2\r\n"),
        (call(r#"{"name":"read","arguments":{"n":1}}"#), "mcp-param-n: 1\r\nMcp-Param-N: 1\r\n"),
        (call(r#"{"name":"read","arguments":{"n":1}}"#), "Mcp-Param-M: 1\r\n"),
        (format!("[{}]", call(r#"{"name":"read"}"#)), "MCP-Protocol-Version: 2025-06-18\r\n"),
        ("{\"jsonrpc\":\"2.0\"".to_owned(), ""),
        ("name=read".to_owned(), ""),
    ] {
        let answer = site.ask(jira, &format!("{JSON}{fields}"), &body).await;
        decided += 1;
        assert_eq!((answer.status, answer.reason()), (415, "content_unreadable"), "{body} {fields}");
    }
    // Who waits for an answer elsewhere, is told by its status; as who waits for none.
    let answer = site.ask(jira, "Accept: */*\r\n", &call(r#"{"name":"erase"}"#)).await;
    assert_eq!((answer.status, answer.reason()), (403, "policy_denied"));
    let note = r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"erase"}}"#;
    assert_eq!(site.ask(jira, JSON, note).await.status, 403);
    let batch =
        format!("[{},{}]", call(r#"{"name":"read","arguments":{"n":1}}"#), call(r#"{"name":"erase"}"#));
    let answer = site.ask(jira, JSON, &batch).await;
    let told: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!((answer.status, told.as_array().map(Vec::len)), (200, Some(2)), "{told}");
    assert_eq!(site.upstream.connections(), 0, "nothing was dialled");
    decided += 3;

    let answer = site.ask(jira, JSON, &call(r#"{"name":"write","arguments":{"project":"OPS"}}"#)).await;
    assert!(answer.status == 200 && text(&answer).contains("\"result\""), "{answer:?}");
    let record = site.record(RecordKind::Decision, decided + 1).await;
    assert_eq!(record.policies, ["http", "net", "ops"]);
    let told = &record.attributes.as_ref().expect("told").tools;
    assert_eq!((&*told[0].server, &*told[0].method, &*told[0].name), ("jira", "tools/call", "write"));
    assert_eq!(told[0].arguments, ["project"]);
    // What the head says besides is what the body does, however it is written.
    let read = call(r#"{"name":"write","arguments":{"project":"OPS"}}"#);
    let fields = format!("{JSON}Mcp-Name: =?base64?d3JpdGU=?=\r\n");
    assert!(text(&site.ask(jira, &fields, &read).await).contains("\"result\""));
    // What servers take off a path makes it no other server's.
    let answer = site.ask("/mcp;x=1", JSON, &call(r#"{"name":"write","arguments":{"project":"OPS"}}"#)).await;
    assert!(answer.status == 200 && text(&answer).contains("\"result\""), "{answer:?}");
    // JSON of another kind, to nobody who is listed.
    let eth = r#"{"jsonrpc":"2.0","id":1,"method":"eth_call","params":[]}"#;
    for other in [r#"{"a":1}"#, r#"{"a":1,"a":2}"#, eth, "text"] {
        assert_eq!(site.ask("/else", "", other).await.status, 200, "{other}");
    }
    // What can't be read of it might be messages: to servers that read more than JSON, or deeper.
    let deep = format!("{{\"a\":{}{},\"jsonrpc\":\"2.0\"}}", "[".repeat(70), "]".repeat(70));
    for other in ["{'jsonrpc':'2.0'", "{\"a\":NaN,\"jsonrpc\":\"2.0\"}", &deep] {
        assert_eq!(site.ask("/else", "", other).await.reason(), "content_unreadable", "{other}");
    }
    assert_eq!(site.ask("/else", "Content-Encoding: compress\r\n", "x").await.reason(), "content_unreadable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_what_an_agent_may_use() {
    let site = Site::start().await;
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let want =
        format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{{ \"tools\":[{READ},{WRITE}],\"ttl\":1.0e2}}}}");
    let answer = site.ask("/mcp", JSON, list).await;
    assert_eq!((answer.status, text(&answer)), (200, want.clone()));
    assert!(!answer.head.to_ascii_lowercase().contains("etag"), "{}", answer.head);
    assert!(site.upstream.requests().last().expect("one").contains("accept-encoding: identity"));
    let record = site.record(RecordKind::Outcome, 1).await;
    assert_eq!(record.changes, ["tools/list: without `erase`"]);
    assert_eq!(record.findings, ["tool_unapproved"]);
    let events = site.ask("/mcp", EVENTS, list).await;
    let data = format!("data: {want}\n\n");
    assert_eq!(text(&events), format!(": hello\n\nid: 7\nevent: message\n{data}"));
    // By a stream that nobody has asked anything on.
    let events = site.ask("/mcp", EVENTS, "").await;
    assert_eq!(text(&events), format!(": hello\n\nid: 7\nevent: message\n{data}"));

    // A definition that is another than was approved is not shown, and is not called.
    let changed = site.ask("/mcp", &format!("{JSON}X-Changed: 1\r\n"), list).await;
    assert!(
        !text(&changed).contains("\"read\"") && text(&changed).contains("\"write\""),
        "{}",
        text(&changed)
    );
    let record = site.record(RecordKind::Outcome, 4).await;
    assert_eq!(record.changes, ["tools/list: without `read`, `erase`"]);
    assert_eq!(record.findings, ["tool_changed", "tool_unapproved"]);
    let read = call(r#"{"name":"read","arguments":{"n":1}}"#);
    assert_eq!(site.ask("/mcp", JSON, &read).await.reason(), "policy_forbidden");
    let denied = site.record(RecordKind::Decision, 5).await;
    assert!(denied.findings.contains(&"tool_changed".to_owned()), "{denied:?}");
    // Once it is what it was, it is called again.
    site.ask("/mcp", JSON, list).await;
    assert!(text(&site.ask("/mcp", JSON, &read).await).contains("\"result\""));
    // One that comes as the answer to something else: who waits for a list may take it for that.
    let other = site.ask("/mcp", &format!("{JSON}X-List: 1\r\n"), &read).await;
    assert_eq!((other.status, text(&other)), (200, want));
}

/// In the newer era by an error of its own; before, there was none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_says_something_else_is_told_as_its_version_has_it() {
    let site = Site::start().await;
    let read = call(r#"{"name":"read","arguments":{"n":1}}"#);
    let newer = "MCP-Protocol-Version: 2026-07-28\r\n";
    let named = "Mcp-Method: tools/call\r\nMcp-Name: read\r\n";
    for (n, (fields, status)) in [
        (newer.to_owned(), 400),
        (format!("{newer}Mcp-Method: tools/call\r\nMcp-Name: erase\r\n"), 400),
        (format!("{newer}{named}Mcp-Param-N: 2\r\n"), 400),
        (format!("{newer}{named}Mcp-Name: read\r\n"), 400),
        ("MCP-Protocol-Version: 2025-11-25\r\nMcp-Name: erase\r\n".to_owned(), 415),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = site.ask("/mcp", &format!("{JSON}{fields}"), &read).await;
        assert_eq!((answer.status, answer.reason()), (status, "content_unreadable"), "{fields}");
        let told: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if status == 400 {
            assert_eq!((&told["id"], &told["error"]["code"]), (&"a".into(), &(-32020).into()), "{told}");
        } else {
            assert!(told["jsonrpc"].is_null(), "{told}");
        }
        let record = site.record(RecordKind::Decision, n + 1).await;
        assert!(record.detail.is_some_and(|detail| detail.contains("head")), "{fields}");
    }
    assert_eq!(site.upstream.connections(), 0, "nothing was dialled");
    assert_eq!(site.ask("/mcp", &format!("{JSON}{newer}{named}"), &read).await.status, 200);
}

/// What a server listed is remembered within bounds: what was forgotten may be what policy waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_what_was_forgotten_are_refused_where_policy_asks() {
    const NOT_ASKED: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal == Agent::"web", action == Action::"http", resource);
@id("all") permit (principal == Agent::"web", action == Action::"tool", resource);
"#;
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let read = call(r#"{"name":"read","arguments":{"n":1}}"#);
    for (policy, is_asked) in [(POLICY, true), (NOT_ASKED, false)] {
        let site = Site::with(policy).await;
        assert!(text(&site.ask("/mcp", JSON, &read).await).contains("\"result\""), "nothing was listed");
        let listed = site.ask("/mcp", &format!("{JSON}X-Many: 1\r\n"), list).await;
        assert!(text(&listed).contains("\"read\""));
        let before = site.upstream.requests().len();
        let answer = site.ask("/mcp", JSON, &read).await;
        let record = site.record(RecordKind::Decision, 3).await;
        if is_asked {
            assert_eq!(answer.reason(), "content_unreadable");
            assert!(record.detail.expect("told").contains("`read` was forgotten"));
            assert_eq!(site.upstream.requests().len(), before, "nothing went on");
        } else {
            assert!(text(&answer).contains("\"result\""), "{answer:?}");
            assert_eq!(record.findings, [""; 0], "it is what was approved");
        }
    }
}

/// A batch is as many calls as it holds, to a limit too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_of_a_batch_spends_a_unit() {
    const LIMITED: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal == Agent::"web", action == Action::"http", resource);
@id("all") permit (principal == Agent::"web", action == Action::"tool", resource);
@id("few") @effect("rate-limit") @limit("4 requests/hour burst 4")
permit (principal, action in [Action::"http", Action::"tool"], resource);
@id("reads") @effect("rate-limit") @limit("16 requests/hour burst 16")
permit (principal, action == Action::"tool", resource) when { context.tool.name == "read" };
"#;
    let site = Site::with(LIMITED).await;
    let read = call(r#"{"name":"read","arguments":{"n":1}}"#);
    let write = call(r#"{"name":"write"}"#);
    let batch =
        |all: &[&String]| format!("[{}]", all.iter().map(|call| &***call).collect::<Vec<_>>().join(","));
    // More than there are: it spends nothing.
    let answer = site.ask("/mcp", JSON, &batch(&[&read, &read, &read, &read, &read])).await;
    let record = site.record(RecordKind::Decision, 1).await;
    assert_eq!((answer.reason(), &record.policies[..]), ("rate_limited", &["few".to_owned()][..]));
    let answer = site.ask("/mcp", JSON, &batch(&[&read, &read, &write])).await;
    assert!(answer.status == 200 && text(&answer).contains("result"), "{answer:?}");
    let record = site.record(RecordKind::Decision, 2).await;
    assert_eq!(record.effects.len(), 2, "each is told once: {record:?}");
    let answer = site.ask("/mcp", JSON, &batch(&[&read, &read])).await;
    assert_eq!(answer.reason(), "rate_limited", "one is left");
    let answer = site.ask("/mcp", JSON, &read).await;
    assert!(text(&answer).contains("result"), "{answer:?}");
    assert_eq!(site.ask("/mcp", JSON, &write).await.reason(), "rate_limited");
}

/// Agent2Agent, as JSON-RPC 2.0 (A2A section 9): methods are what policy has, by the names of its version 1.0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_to_other_agents_are_judged_by_their_methods() {
    const POLICY: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal == Agent::"web", action == Action::"http", resource);
@id("talk") permit (principal == Agent::"web", action == Action::"tool", resource in ToolServer::"jira")
when { ["SendMessage", "GetTask"].contains(context.tool.method) };
@id("no-keys") forbid (principal, action == Action::"tool", resource)
when { context.findings.contains("private_key") };
"#;
    let site = Site::with(POLICY).await;
    let message = |method: &str, text: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","id":"a","method":"{method}","params":{{"message":{{"role":"ROLE_USER","messageId":"m","parts":[{{"text":"{text}"}}]}}}}}}"#
        )
    };
    let fields = format!("{JSON}A2A-Version: 1.0\r\n");
    for (n, (method, name, text, reason)) in [
        ("SendMessage", "", "hello", None),
        ("message/send", "SendMessage", "hello", None),
        ("CancelTask", "", "hello", Some("policy_denied")),
        ("message/stream", "SendStreamingMessage", "hello", Some("policy_denied")),
        ("tasks/cancel", "CancelTask", "hello", Some("policy_denied")),
        ("SendMessage", "", "-----BEGIN PRIVATE KEY-----", Some("policy_forbidden")),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = site.ask("/mcp", &fields, &message(method, text)).await;
        let record = site.record(RecordKind::Decision, n + 1).await;
        let told = record.attributes.expect("told").tools;
        assert_eq!(
            told.first().map(|tool| (&*tool.server, &*tool.method, &*tool.sent_as)),
            Some(if name.is_empty() { ("jira", method, "") } else { ("jira", name, method) }),
            "{told:?}"
        );
        let Some(reason) = reason else {
            assert_eq!(answer.status, 200, "{method}");
            continue;
        };
        // Denied in its own terms: an error of JSON-RPC, to the id that asked.
        let error: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(
            (&error["id"], &error["error"]["data"]["reason"]),
            (&"a".into(), &reason.into()),
            "{error}"
        );
    }
    let sent = String::from_utf8(site.upstream.seen.bytes.lock().clone()).expect("text");
    assert!(!sent.contains("CancelTask") && !sent.contains("PRIVATE"), "{sent}");
}

/// Of the newer era in a request that is made again, before it in an answer of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_tells_a_server_that_asks_is_judged() {
    const POLICY: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal == Agent::"web", action == Action::"http", resource);
@id("all") permit (principal == Agent::"web", action == Action::"tool", resource);
@id("not-red") forbid (principal, action == Action::"tool", resource)
when { context.tool.values.contains("/inputResponses/who/content/team=red") };
@id("no-files") forbid (principal, action == Action::"tool", resource)
when { context.findings.contains("answers_server") && context.tool.method == "" };
"#;
    let site = Site::with(POLICY).await;
    let again = |team: &str| {
        call(&format!(
            r#"{{"name":"read","arguments":{{"n":1}},"inputResponses":{{"who":{{"action":"accept","content":{{"team":"{team}"}}}}}},"requestState":"s"}}"#
        ))
    };
    let files = r#"{"jsonrpc":"2.0","id":7,"result":{"roots":[{"uri":"file:///home"}]}}"#.to_owned();
    for (n, (body, policy)) in
        [(again("red"), Some("not-red")), (files, Some("no-files")), (again("blue"), None)]
            .into_iter()
            .enumerate()
    {
        let answer = site.ask("/mcp", JSON, &body).await;
        assert_eq!(answer.reason() == "policy_forbidden", policy.is_some(), "{body}: {answer:?}");
        let record = site.record(RecordKind::Decision, n + 1).await;
        assert_eq!(record.findings, ["answers_server"], "{body}");
        assert!(policy.is_none_or(|policy| record.policies == [policy]), "{record:?}");
        assert!(
            !serde_json::to_string(&record).expect("JSON").contains("team"),
            "what it says may be secret"
        );
    }
}
