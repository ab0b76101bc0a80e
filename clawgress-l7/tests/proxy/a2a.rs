//! Agents asked by A2A's HTTP binding: operations by their paths, judged as the same in JSON-RPC.

use std::time::Duration;

use clawgress_api::{AuditRecord, RecordKind};

use crate::client::Answer;
use crate::harness::{Gateway, Options, PATIENCE};
use crate::upstream::Upstream;

const POLICY: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal == Agent::"web", action == Action::"http", resource);
@id("talk") permit (principal == Agent::"web", action == Action::"tool", resource in ToolServer::"planner")
when { ["SendMessage", "GetTask", "GetAgentCard"].contains(context.tool.method) };
@id("no-keys") forbid (principal, action == Action::"tool", resource)
when { context.findings.contains("private_key") };
@id("no-secrets") forbid (principal, action == Action::"tool", resource)
when { context.tool.values.contains("/message/parts/0/text=a secret") };
"#;

struct Site {
    gateway: Gateway,
    upstream: Upstream,
    host: String,
}

impl Site {
    async fn start() -> Site {
        let upstream = Upstream::http("127.1.0.1").await;
        let host = format!("api.allowed.test:{}", upstream.address.port());
        let more = format!("[[tool.server]]\nname = \"planner\"\nurl = \"http://{host}/a2a\"\n");
        let options = Options { policy: Some(POLICY), more, ..Options::default() };
        Site { gateway: Gateway::start(options).await, upstream, host }
    }

    async fn ask(&self, method: &str, path: &str, fields: &str, body: &str) -> Answer {
        let (host, auth) = (&self.host, self.gateway.web());
        let length = match (method, body.len()) {
            ("GET", _) => String::new(),
            (_, n) => format!("Content-Type: application/json\r\nContent-Length: {n}\r\n"),
        };
        let head =
            format!("{method} http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{auth}{fields}{length}\r\n");
        let mut client = self.gateway.client().await;
        client.send([head, body.to_owned()].concat()).await;
        client.answer().await
    }

    /// The `n`th decision on a request of the agent.
    async fn decided(&self, n: usize) -> AuditRecord {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let records = self.gateway.control.records();
            let decided = records.iter().filter(|r| r.kind == RecordKind::Decision);
            if let Some(found) = decided.filter(|r| r.destination.path.is_some()).nth(n) {
                return found.clone();
            }
            assert!(tokio::time::Instant::now() < deadline, "none in {records:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_are_judged_by_their_paths() {
    let site = Site::start().await;
    let hello = r#"{"message":{"role":"ROLE_USER","messageId":"m","parts":[{"text":"hello"}]}}"#;
    let key = hello.replace("hello", "-----BEGIN PRIVATE KEY-----");
    let secret = hello.replace("hello", "a secret");
    let called = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{secret}}}"#);
    let rpc = r#"{"jsonrpc":"2.0","id":1,"method":"CancelTask","params":{"id":"t"}}"#;
    let versioned = "A2A-Version: 1.0\r\n";
    for (n, (method, path, fields, body, told, reason)) in [
        ("POST", "/a2a/v1/message:send", versioned, hello, Some(("planner", "SendMessage")), None),
        ("POST", "/a2a/message%3Asend", "", hello, Some(("planner", "SendMessage")), None),
        ("GET", "/a2a/v1/tasks/t-1", "", "", Some(("planner", "GetTask")), None),
        ("GET", "/.well-known/agent-card.json", "", "", Some(("planner", "GetAgentCard")), None),
        (
            "POST",
            "/a2a/message:stream",
            "",
            hello,
            Some(("planner", "SendStreamingMessage")),
            Some("policy_denied"),
        ),
        ("POST", "/a2a/tasks/t-1:cancel", "", "{}", Some(("planner", "CancelTask")), Some("policy_denied")),
        ("POST", "/a2a/tasks/t-1:cancel", "", "", Some(("planner", "CancelTask")), Some("policy_denied")),
        ("GET", "/a2a/v1/card", "", "", Some(("planner", "GetExtendedAgentCard")), Some("policy_denied")),
        ("POST", "/a2a/message:send", "", &key, Some(("planner", "SendMessage")), Some("policy_forbidden")),
        // What it says, by its path or as JSON-RPC.
        (
            "POST",
            "/a2a/message:send",
            "",
            &secret,
            Some(("planner", "SendMessage")),
            Some("policy_forbidden"),
        ),
        ("POST", "/a2a", "", &called, Some(("planner", "SendMessage")), Some("policy_forbidden")),
        // A message of JSON-RPC besides is one.
        ("POST", "/a2a/message:send", "", rpc, Some(("planner", "CancelTask")), Some("policy_denied")),
        // To nobody who is listed.
        ("POST", "/else/message:send", "", hello, Some(("unlisted", "SendMessage")), Some("policy_denied")),
        ("GET", "/else/tasks/t-1", versioned, "", Some(("unlisted", "GetTask")), Some("policy_denied")),
        ("GET", "/else/tasks/t-1", "", "", None, None),
        ("GET", "/a2a/pages", "", "", None, None),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = site.ask(method, path, fields, body).await;
        let record = site.decided(n).await;
        let tools = record.attributes.as_ref().map(|read| &read.tools[..]).unwrap_or_default();
        assert_eq!(tools.first().map(|tool| (&*tool.server, &*tool.method)), told, "{method} {path}");
        let Some(reason) = reason else {
            assert_eq!(answer.status, 200, "{method} {path} {answer:?}");
            continue;
        };
        let status = if body == rpc || body == called { 200 } else { 403 };
        assert_eq!((answer.status, answer.reason()), (status, reason), "{method} {path}");
        assert_eq!(record.action.as_deref(), Some("tool"));
    }
    assert_eq!(site.upstream.requests().len(), 6, "what was denied did not go on");
}
