//! A key that is revoked: all that it opened ends, in whatever way it came in.

use std::time::Instant;

use clawgress_api::RecordKind;
use clawgress_ebpf_common::DropReason;
use http::Request;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use crate::client::Client;
use crate::harness::{Gateway, Options, PATIENCE, POLICY};
use crate::http2_proxy::Setting;
use crate::streams::tunnel;
use crate::tunnels::hello;
use crate::upstream::Upstream;
use crate::{socks, web_sockets};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_a_key_opened_ends_with_it() {
    let s = Setting::new().await;
    let gateway = &s.gateway;
    assert_eq!(gateway.publish_policy(&format!("{POLICY}{}", web_sockets::MESSAGES)).await, "");
    let (greeting, sink) = (Upstream::server_first("127.1.0.1").await, Upstream::sink("127.1.0.1").await);
    let sockets = web_sockets::upstream().await;
    let port = greeting.address.port();
    let (raw, silent) =
        (format!("raw.allowed.test:{port}"), format!("api.allowed.test:{}", sink.address.port()));

    // Tunnels by CONNECT, by SOCKS and within a stream; a WebSocket; a request that waits, by HTTP/1.1 and by HTTP/2; and a
    // connection that is kept for the next one.
    let (mut connected, _) = gateway.connect(&raw).await;
    let mut by_socks = socks::web(gateway).await;
    assert_eq!(socks::ask(&mut by_socks, "raw.allowed.test", port).await, 0);
    let streams = s.client().await;
    let mut within = Client::over(tunnel(&streams, s.of_web(Request::connect(&raw))).await.expect("open"));
    for tunnel in [&mut connected, &mut by_socks] {
        tunnel.until("220 hello\r\n").await;
        tunnel.held.clear();
    }
    within.until("220 hello\r\n").await;
    within.held.clear();
    let host = format!("api.allowed.test:{}", sockets.address.port());
    let mut messages = web_sockets::opened(gateway, &host).await;
    let get = |host: &str| format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n{}\r\n", gateway.web());
    let mut waiting = gateway.client().await;
    waiting.send(get(&silent)).await;
    let request = s.of_web(Request::get(format!("http://{silent}/y")));
    let (stream, _held) = streams.begin(request, true).await.expect("begun");
    let mut kept = gateway.client().await;
    kept.send(get(&s.host())).await;
    assert_eq!(kept.answer().await.status, 200);
    gateway.decisions(7).await;
    gateway.records(1).await;
    let before = gateway.outcomes();

    let begun = Instant::now();
    assert_eq!(gateway.publish(|s| s.keys.clear()).await, "");
    for client in [&mut connected, &mut by_socks, &mut messages, &mut waiting] {
        assert!(client.is_closed(PATIENCE).await);
    }
    assert!(within.is_closed(PATIENCE).await);
    timeout(PATIENCE, stream).await.expect("in time").expect_err("cut");
    println!("all that the key opened ended {:?} after it was revoked", begun.elapsed());
    kept.send(get(&s.host())).await;
    assert_eq!(kept.answer().await.reason(), "credential_invalid");
    let refused = streams.ask(s.of_web(Request::get(format!("http://{}/x", s.host()))), b"").await;
    assert_eq!(refused.expect("answer").said(), (407, "credential_invalid"));

    let deadline = tokio::time::Instant::now() + PATIENCE;
    let cut = loop {
        let records = gateway.control.records();
        let is_cut = |r: &&clawgress_api::AuditRecord| {
            r.kind == RecordKind::Outcome && r.reason == Some(DropReason::CredentialInvalid)
        };
        let cut = records.iter().filter(is_cut).count();
        if cut >= 8 || tokio::time::Instant::now() > deadline {
            break cut;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!(
        (before, cut),
        (1, 8),
        "each of the six has an end that says why, and so have the two that were refused"
    );
}

/// What is obliged to wait, and what sends for long.
const WAITS: &str = r#"
@id("paced") @effect("throttle") @limit("7 requests/minute burst 1")
permit (principal == Agent::"web", action == Action::"http", resource) when { context.method == "GET" };
@id("opened") @effect("throttle") @limit("7 requests/minute burst 1")
permit (principal == Agent::"web", action == Action::"tunnel", resource);
@id("bodies") permit (principal == Agent::"web", action == Action::"send", resource) when { !context.findings.contains("private_key") };
"#;

/// While a request waits for a limit, or for the end of its body, or a tunnel for its limit, the key that it came with goes: no server
/// is dialled for any of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_dialled_for_what_waited_when_its_key_went() {
    let gateway = Gateway::start(Options::default()).await;
    assert_eq!(gateway.publish_policy(&format!("{POLICY}{WAITS}")).await, "");
    let first = Upstream::http("127.1.0.1").await;
    // One for each of those that wait.
    let later = [(); 3].map(|()| Upstream::sink("127.1.0.1"));
    let later = futures_util::future::join_all(later).await;
    let port = |upstream: &Upstream| upstream.address.port();
    let host = |upstream: &Upstream| format!("api.allowed.test:{}", port(upstream));
    let get = |host: &str| format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n{}\r\n", gateway.web());
    assert_eq!(gateway.ask(&get(&host(&first))).await.status, 200);
    let (mut opened, _) = gateway.connect(&host(&first)).await;
    opened.send(hello("api.allowed.test")).await;
    crate::http2::until("the first tunnel", || first.connections() == 2).await;

    let mut paced = gateway.client().await;
    paced.send(get(&host(&later[0]))).await;
    let (mut tunnel, _) = gateway.connect(&host(&later[1])).await;
    tunnel.send(hello("api.allowed.test")).await;
    let mut body = gateway.client().await;
    let to = host(&later[2]);
    body.send(format!(
        "POST http://{to}/x HTTP/1.1\r\nHost: {to}\r\nContent-Length: 8\r\n{}\r\nhalf",
        gateway.web()
    ))
    .await;
    // All that was sent was read, and nothing comes of it yet.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(gateway.publish(|s| s.keys.clear()).await, "");
    body.send("half").await;
    // Told so, or cut.
    for client in [&mut body, &mut paced] {
        let answer = client.answer().await;
        assert!(answer.status == 0 || answer.reason() == "credential_invalid", "{answer:?}");
    }
    // An alert at most.
    assert!(timeout(PATIENCE, tunnel.rest()).await.expect("in time").len() < 16);
    let dialled: Vec<_> = later.iter().map(Upstream::connections).collect();
    assert_eq!(dialled, [0; 3], "nobody was dialled");
    let is_denied = |r: &clawgress_api::AuditRecord| {
        r.kind == RecordKind::Decision && r.reason == Some(DropReason::CredentialInvalid)
    };
    let denied = || gateway.control.records().into_iter().filter(is_denied).count();
    crate::http2::until("denials of all three", || denied() == 3).await;
}

/// A server of two addresses. While the way to the first is tried, which is through a parent proxy, policy takes the second away:
/// who was judged by the first is not sent to the second when that fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_way_is_judged_when_it_is_taken() {
    let second = Upstream::http("127.1.0.2").await;
    // It refuses when it is let to.
    let parent = Upstream::start("127.1.0.9", None, |mut stream, seen| async move {
        let events = seen.events.as_ref().expect("events");
        events.acquire().await.expect("open").forget();
        let _ = stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
    })
    .await;
    let more = format!(
        "[[parent]]\nname = \"corp\"\naddress = \"{}\"\n[[route]]\nparent = \"corp\"\nnetworks = [\"127.1.0.1/32\"]\n",
        parent.address
    );
    let gateway = Gateway::start(Options { more, ..Options::default() }).await;
    let host = format!("two.allowed.test:{}", second.address.port());
    let request = format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n{}\r\n", gateway.web());
    let ask = async |policy: &str| {
        assert_eq!(gateway.publish_policy(POLICY).await, "");
        let (mut client, before) = (gateway.client().await, parent.connections());
        client.send(&request).await;
        crate::http2::until("the first way", || parent.connections() == before + 1).await;
        assert_eq!(gateway.publish_policy(policy).await, "");
        // For what waits to be judged under it, by the way that it takes.
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        parent.next_event();
        client.answer().await
    };
    let gone = r#"@id("gone") forbid (principal, action == Action::"connect", resource) when { context.ip == ip("127.1.0.2") };"#;
    let answer = ask(&format!("{POLICY}{gone}")).await;
    // Told so, or cut.
    assert!(answer.status == 0 || answer.reason() == "policy_forbidden", "{answer:?}");
    assert_eq!(second.connections(), 0);
    // One that the change says nothing of goes on.
    assert_eq!(ask(&format!("{POLICY}// Of another time.\n")).await.status, 200);
    assert_eq!(second.connections(), 1);
}
