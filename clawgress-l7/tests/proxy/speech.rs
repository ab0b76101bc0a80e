//! Answers of models that are no text: nobody counts what is in them. And those that have to come as they are, to be read.

use std::sync::Arc;

use clawgress_api::CallCost;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Gateway, Options};
use crate::upstream::{Seen, Upstream};

/// Answers a request with its body by sound.
async fn speak(mut stream: TcpStream, seen: Arc<Seen>) {
    let mut held = Vec::new();
    while !held.ends_with(b"}") {
        let Ok(1..) = stream.read_buf(&mut held).await else { return };
    }
    seen.requests.lock().push(String::from_utf8_lossy(&held).to_lowercase());
    let answer = "HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 3\r\n\r\nID3";
    let _ = stream.write_all(answer.as_bytes()).await;
}

struct Site {
    gateway: Gateway,
    upstream: Upstream,
    host: String,
}

impl Site {
    async fn start(policy: &'static str, more: &str) -> Site {
        let upstream = Upstream::start("127.1.0.1", None, speak).await;
        let host = format!("api.allowed.test:{}", upstream.address.port());
        let server = format!("[[llm.server]]\nname = \"local\"\nurl = \"http://{host}\"\n");
        let options = Options { policy: Some(policy), more: format!("{more}{server}"), ..Options::default() };
        Site { gateway: Gateway::start(options).await, upstream, host }
    }

    async fn ask(&self, path: &str, fields: &str, body: &str) -> u16 {
        let (host, auth, length) = (&self.host, self.gateway.web(), body.len());
        let head = format!(
            "POST http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{auth}{fields}Content-Length: {length}\r\n\r\n"
        );
        self.gateway.ask(&format!("{head}{body}")).await.status
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_reads_has_no_price() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("prices.tsv");
    std::fs::write(&path, "local\t^gpt-5\t-\t0\t3000000\t-\t-\t12000000\t-\t-\town\n").expect("written");
    let policy = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("all") permit (principal == Agent::"web", action in [Action::"http", Action::"llm"], resource);
"#;
    let site = Site::start(policy, &format!("[llm]\nprices = \"{}\"\n", path.display())).await;
    let body = r#"{"model":"gpt-5-mini-tts","input":"Read this to me","voice":"alloy"}"#;
    assert_eq!(site.ask("/v1/audio/speech", "", body).await, 200);
    let (_, outcome) = site.gateway.exchange(0).await;
    assert_eq!(outcome.cost, Some(CallCost::Unpriced));
    assert!(outcome.tokens.is_some_and(|tokens| tokens.estimated && tokens.input > 0));
}

/// Its client says nothing of a stream, and no rule on calls reads whether it asks for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_models_answer_comes_without_a_coding_where_it_is_read() {
    const READ: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("all") permit (principal == Agent::"web", action in [Action::"http", Action::"receive"], resource);
@id("no-keys") forbid (principal, action == Action::"receive", resource) when { context.findings.contains("private_key") };
"#;
    let site = Site::start(READ, "").await;
    let body = r#"{"model":"gpt-5-mini","stream":true,"messages":[]}"#;
    let fields = "Accept: application/json\r\nAccept-Encoding: gzip, deflate\r\n";
    assert_eq!(site.ask("/v1/chat/completions", fields, body).await, 200);
    // Of answers, nobody asks.
    let open = READ.replace(", Action::\"receive\"]", "]");
    let open = open.split("@id(\"no-keys\")").next().expect("the first");
    assert_eq!(site.gateway.publish_policy(open).await, "");
    assert_eq!(site.ask("/v1/chat/completions", fields, body).await, 200);
    let seen = site.upstream.requests();
    assert!(seen[0].contains("accept-encoding: identity\r\n"), "{seen:?}");
    assert!(seen[1].contains("accept-encoding: gzip, deflate\r\n"), "{seen:?}");
}
