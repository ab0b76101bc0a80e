//! WebSockets: the request that opens one is read, and what follows is a tunnel.

use clawgress_api::Verdict;
use clawgress_ebpf_common::DropReason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::Client;
use crate::harness::{Gateway, Options, POLICY};
use crate::upstream::Upstream;

pub const MESSAGES: &str = r#"
@id("messages") permit (principal == Agent::"web", action == Action::"tunnel", resource == Host::"api.allowed.test")
when { context.protocol == "websocket" };
"#;

fn policy(more: &str) -> &'static str {
    Box::leak(format!("{POLICY}{more}").into_boxed_str())
}

fn switch(to: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: {to}\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )
}

/// Answers an opening by what its path says, and sends back what follows.
async fn echo(mut stream: TcpStream) {
    let mut held = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = held.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            let Ok(1..) = stream.read_buf(&mut held).await else { return };
        };
        let head = String::from_utf8_lossy(&held[..end]).into_owned();
        held.drain(..end);
        let answer = match head.split(' ').nth(1).unwrap_or_default() {
            "/foo" => switch("foo"),
            "/unasked" => switch("websocket"),
            "/ws" if head.to_lowercase().contains("\r\nupgrade: websocket\r\n") => switch("websocket"),
            "/ws" => "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n".to_owned(),
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        if answer.starts_with("HTTP/1.1 101") {
            let (mut reader, mut writer) = stream.split();
            if writer.write_all(&held).await.is_ok() {
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            }
            return;
        }
    }
}

pub async fn upstream() -> Upstream {
    Upstream::start("127.1.0.1", None, |stream, seen| async move {
        let _ = &seen;
        echo(stream).await;
    })
    .await
}

fn opening(gateway: &Gateway, host: &str, path: &str) -> String {
    format!(
        "GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        gateway.web()
    )
}

pub async fn opened(gateway: &Gateway, host: &str) -> Client {
    let mut client = gateway.client().await;
    client.send(opening(gateway, host, "/ws")).await;
    let answer = client.answer_head().await;
    assert_eq!((answer.status, answer.field("upgrade")), (101, Some("websocket")), "{answer:?}");
    assert_eq!(answer.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    client
}

/// What a client could send that is no message, and would be denied as a request.
const SMUGGLED: &[u8] = b"DELETE /denied HTTP/1.1\r\nHost: denied.test\r\n\r\n\0\xff\x81";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_pass_unread_both_ways_and_are_recorded() {
    let gateway = Gateway::start(Options { policy: Some(policy(MESSAGES)), ..Options::default() }).await;
    let upstream = upstream().await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let mut client = opened(&gateway, &host).await;
    gateway.decisions(1).await;
    let mut sent = 0;
    for size in [1, SMUGGLED.len(), 100_000] {
        let bytes: Vec<u8> = SMUGGLED.iter().copied().cycle().take(size).collect();
        client.send(&bytes).await;
        while client.held.len() < size {
            assert!(client.more().await, "it ended early");
        }
        assert_eq!(client.held, bytes);
        client.held.clear();
        sent += size as u64;
    }
    assert_eq!(gateway.outcomes(), 0);
    client.stream.shutdown().await.expect("shutdown");
    client.rest().await;
    let (decision, outcome) = gateway.exchange(0).await;
    assert_eq!((decision.verdict, outcome.status), (Some(Verdict::Allow), Some(101)));
    assert_eq!(decision.action.as_deref(), Some("tunnel"));
    assert_eq!(decision.policies, ["http", "messages", "net"]);
    let path = decision.destination.path.as_deref();
    assert_eq!((decision.destination.method.as_deref(), path), (Some("GET"), Some("/ws")));
    let attributes = decision.attributes.expect("attributes");
    assert_eq!(attributes.protocol.as_deref(), Some("websocket"));
    assert!(outcome.bytes_sent > Some(sent) && outcome.bytes_received > Some(sent), "{outcome:?}");
    assert_eq!(gateway.records(1).await.len(), 2, "nothing of what followed was taken for a request");
}

/// Says its 101 before it is asked, which is sooner than any network has it there; and sends back what follows the opening.
async fn hasty(mut stream: TcpStream) {
    let mut held = Vec::new();
    if stream.write_all(switch("websocket").as_bytes()).await.is_err() {
        return;
    }
    let end = loop {
        if let Some(at) = held.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let Ok(1..) = stream.read_buf(&mut held).await else { return };
    };
    let (mut reader, mut writer) = stream.split();
    if writer.write_all(&held[end..]).await.is_ok() {
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    }
}

/// Pingora notes that an opening has no body while it reads already: the 101 may be there before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_may_answer_at_once() {
    let gateway = Gateway::start(Options { policy: Some(policy(MESSAGES)), ..Options::default() }).await;
    let (upstream, early) = (upstream().await, Upstream::start("127.1.0.1", None, |s, _| hasty(s)).await);
    let host = |of: &Upstream| format!("api.allowed.test:{}", of.address.port());
    let one = async |host: &str, times: u8| {
        for n in 0..times {
            let mut client = opened(&gateway, host).await;
            client.send([n]).await;
            assert!(client.more().await, "it ended at once: number {n}");
            assert_eq!(client.held, [n]);
        }
    };
    one(&host(&early), 40).await;
    let host = host(&upstream);
    futures_util::future::join_all((0..8).map(|_| one(&host, 10))).await;
    // What its server declines is no WebSocket's connection afterwards, either.
    for _ in 0..3 {
        let mut client = gateway.client().await;
        client.send(opening(&gateway, &host, "/no")).await;
        assert_eq!(client.answer().await.status, 200);
        one(&host, 1).await;
    }
    assert_eq!((early.connections(), upstream.connections()), (40, 8 * 10 + 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_takes_it_away_ends_it() {
    let gateway = Gateway::start(Options { policy: Some(policy(MESSAGES)), ..Options::default() }).await;
    let upstream = upstream().await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let mut client = opened(&gateway, &host).await;
    gateway.decisions(1).await;
    gateway.publish_policy(POLICY).await;
    assert!(client.rest().await.is_empty());
    let (_, outcome) = gateway.exchange(0).await;
    assert_eq!(outcome.reason, Some(DropReason::InspectionRequired));
    // Quarantine too, in the middle.
    gateway.publish_policy(policy(MESSAGES)).await;
    let mut client = opened(&gateway, &host).await;
    gateway.isolate(&[1]).await;
    assert!(client.rest().await.is_empty());
    assert_eq!(gateway.exchange(1).await.1.reason, Some(DropReason::AgentQuarantined));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_tunnel_none_is_opened() {
    let gateway = Gateway::start(Options { policy: Some(policy(MESSAGES)), ..Options::default() }).await;
    let upstream = upstream().await;
    let port = upstream.address.port();
    let ask = async |host: &str, path: &str| {
        let mut client = gateway.client().await;
        client.send(opening(&gateway, &format!("{host}:{port}"), path)).await;
        let answer = client.answer().await;
        (answer.status, answer.reason().to_owned())
    };
    let inspection = (403, "inspection_required".to_owned());
    assert_eq!(ask("read.allowed.test", "/ws").await, inspection);
    assert_eq!(ask("api.allowed.test", "/denied").await, (403, "policy_denied".to_owned()));
    let read =
        r#"@id("read") @effect("intercept") permit (principal, action == Action::"tunnel", resource);"#;
    gateway.publish_policy(policy(&format!("{MESSAGES}{read}"))).await;
    assert_eq!(ask("api.allowed.test", "/ws").await, inspection, "it can't be read yet");
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_what_nobody_reads_decides_none_is_opened() {
    const BODIES: &str = r#"@id("bodies") permit (principal, action == Action::"send", resource);"#;
    const ANSWERS: &str = r#"@id("answers") permit (principal, action == Action::"receive", resource);"#;
    const TOOLS: &str = r#"@id("tools") permit (principal, action == Action::"tool", resource);"#;
    let upstream = upstream().await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let more = format!("[[tool.server]]\nname = \"files\"\nurl = \"http://{host}/ws\"\n");
    let gateway =
        Gateway::start(Options { policy: Some(policy(MESSAGES)), more, ..Options::default() }).await;
    let denied = async |more: &str| {
        gateway.publish_policy(policy(&format!("{MESSAGES}{more}"))).await;
        let mut client = gateway.client().await;
        client.send(opening(&gateway, &host, "/ws")).await;
        let answer = client.answer().await;
        (answer.status, answer.reason().to_owned())
    };
    let inspection = (403, "inspection_required".to_owned());
    let calls = r#"@id("n") forbid (principal, action == Action::"receive", resource) when { context.call.name == "bash" };"#;
    assert_eq!(denied(&format!("{ANSWERS}{calls}")).await, inspection);
    assert_eq!(denied(TOOLS).await, inspection);
    let elsewhere =
        r#"@id("n") permit (principal, action == Action::"receive", resource == Host::"read.allowed.test");"#;
    assert_eq!(denied(elsewhere).await, (403, "policy_denied".to_owned()));
    let never =
        r#"@id("n") forbid (principal, action == Action::"send", resource) when { context.path == "/ws" };"#;
    assert_eq!(denied(&format!("{BODIES}{never}")).await, (403, "policy_forbidden".to_owned()));
    assert_eq!(upstream.connections(), 0);

    // Where nothing depends on them, or only what is told does, they pass as they are.
    let keys = r#"forbid (principal, action == Action::"send", resource) when { context.findings.contains("private_key") };"#;
    gateway.publish_policy(policy(&format!("{MESSAGES}{BODIES}@id(\"n\") @mode(\"log-only\") {keys}"))).await;
    let mut client = opened(&gateway, &host).await;
    client.send(SMUGGLED).await;
    while client.held.len() < SMUGGLED.len() {
        assert!(client.more().await, "it ended early");
    }
    assert_eq!(client.held, SMUGGLED);
    client.held.clear();
    // One that is open and is not read ends when policy begins to ask.
    gateway.publish_policy(policy(&format!("{MESSAGES}{BODIES}@id(\"n\") {keys}"))).await;
    assert!(client.rest().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_does_not_begin_stays_http() {
    let gateway = Gateway::start(Options { policy: Some(policy(MESSAGES)), ..Options::default() }).await;
    let upstream = upstream().await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    // It declines, and what came behind the opening is a request like any other.
    let mut client = gateway.client().await;
    let next = |method: &str| {
        format!("{method} http://{host}/next HTTP/1.1\r\nHost: {host}\r\n{}\r\n", gateway.web())
    };
    client.send(opening(&gateway, &host, "/no") + &next("DELETE") + &next("GET")).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(client.answer().await.reason(), "policy_denied");
    assert_eq!(client.answer().await.text(), "ok");
    // It begins what nobody asked for.
    for raw in [opening(&gateway, &host, "/foo"), next("GET").replace("/next", "/unasked")] {
        let mut client = gateway.client().await;
        client.send(raw + "x").await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.reason()), (502, "upstream_failed"));
        assert!(client.rest().await.is_empty());
    }
}
