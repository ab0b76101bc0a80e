//! Load balancers that say by the PROXY protocol whose connections they pass on, and others that would like to.

use std::net::SocketAddr;

use clawgress_api::{RecordKind, Verdict};
use clawgress_ebpf_common::DropReason;
use http::Request;
use tokio::net::TcpSocket;

use crate::client::Client;
use crate::harness::{Gateway, Options};
use crate::http2_proxy::Setting;
use crate::streams::{Connection, tunnel};
use crate::upstream::Upstream;
use crate::{socks, tunnels};

pub const BALANCERS: &str = "balancers = [\"127.1.9.0/24\"]";
/// The client, 203.0.113.9 at port 4660, and what it connected to.
pub const HEADER: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x09\xc6\x33\x64\x02\x12\x34\x0c\x38";
/// The client 2001:db8::9 at port 4660, and what it connected to.
const HEADER_6: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x24\
    \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x12\x34\x0c\x38";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

/// A connection to the proxy from that address.
pub async fn from(gateway: &Gateway, ip: &str) -> Client {
    at(gateway.proxy, ip).await
}

/// One to that listener.
async fn at(listener: SocketAddr, ip: &str) -> Client {
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind(format!("{ip}:0").parse().expect("address")).expect("bind");
    Client::over(socket.connect(listener).await.expect("connect"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_says_whose_its_connections_are() {
    let gateway = Gateway::start(Options { proxy: BALANCERS, ..Options::default() }).await;
    let sink = Upstream::sink("127.1.0.1").await;
    let target = format!("api.allowed.test:{}", sink.address.port());
    let connect = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{}\r\n", gateway.web());
    let whole = [HEADER, connect.as_bytes()].concat();
    for pieces in [vec![&whole[..]], whole.chunks(1).collect(), vec![&whole[..7], &whole[7..]]] {
        let n = gateway.outcomes();
        let mut client = from(&gateway, "127.1.9.1").await;
        for piece in pieces {
            client.send(piece).await;
        }
        assert_eq!(client.answer_head().await.status, 200);
        drop(client);
        let (decision, _) = gateway.exchange(n).await;
        let source = (decision.source.ip.map(|ip| ip.to_string()), decision.source.port);
        assert_eq!(source, (Some("203.0.113.9".to_owned()), Some(4660)));
        assert_eq!(decision.agent.map(|a| a.agent.to_string()).as_deref(), Some("web"));
    }
    // Who has no credential is nobody, whoever passes it on.
    let mut client = from(&gateway, "127.1.9.1").await;
    client
        .send(
            [HEADER, b"CONNECT api.allowed.test:443 HTTP/1.1\r\nHost: api.allowed.test:443\r\n\r\n"].concat(),
        )
        .await;
    assert_eq!(client.answer().await.reason(), "credential_missing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_is_believed_and_balancers_must_say_it() {
    let gateway = Gateway::start(Options { proxy: BALANCERS, ..Options::default() }).await;
    let get =
        format!("GET http://api.allowed.test/ HTTP/1.1\r\nHost: api.allowed.test\r\n{}\r\n", gateway.web());
    let mut loopback = HEADER.to_vec();
    loopback[16..20].copy_from_slice(&[127, 0, 0, 1]);
    for (ip, bytes, source, reason) in [
        ("127.0.0.1", HEADER.to_vec(), "127.0.0.1", DropReason::ProtocolUnknown),
        ("127.1.9.1", get.as_bytes().to_vec(), "127.1.9.1", DropReason::ProxyHeaderMalformed),
        ("127.1.9.1", HEADER[..20].to_vec(), "127.1.9.1", DropReason::ProxyHeaderMalformed),
        (
            "127.1.9.1",
            b"PROXY TCP4 203.0.113.9 198.51.100.2 1 2\r\n".to_vec(),
            "127.1.9.1",
            DropReason::ProxyHeaderMalformed,
        ),
        ("127.1.9.1", [HEADER, HEADER].concat(), "203.0.113.9", DropReason::ProtocolUnknown),
        ("127.1.9.1", loopback, "127.1.9.1", DropReason::ProxyHeaderMalformed),
    ] {
        let n = gateway.outcomes();
        let mut client = from(&gateway, ip).await;
        client.send(&bytes).await;
        tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.expect("shutdown");
        assert!(client.rest().await.is_empty());
        let (decision, _) = gateway.exchange(n).await;
        assert_eq!((decision.verdict, decision.reason), (Some(Verdict::Deny), Some(reason)), "{ip}");
        assert_eq!(decision.source.ip.map(|ip| ip.to_string()).as_deref(), Some(source));
    }
    // It asks whether anybody is there.
    let n = gateway.outcomes();
    for bytes in [LOCAL, b""] {
        let mut client = from(&gateway, "127.1.9.1").await;
        client.send(bytes).await;
        tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.expect("shutdown");
        assert!(client.rest().await.is_empty());
    }
    gateway.ask(&get.replace("/ ", "/denied ")).await;
    gateway.records(n + 1).await;
    assert_eq!(gateway.outcomes(), n + 1, "nothing was asked, so nothing is recorded");
}

/// The header is before everything else: TLS too, and whatever is spoken within.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_of_ipv6_comes_before_tls_and_what_is_within() {
    let s = Setting::with(Upstream::http("127.1.0.1").await, "", BALANCERS).await;
    let gateway = &s.gateway;
    let (target, sink) = (s.host(), Upstream::sink("127.1.0.1").await);
    let connect = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{}\r\n", gateway.web());
    let begun = async || {
        let mut client = at(gateway.proxy_tls, "127.1.9.1").await;
        client.send(HEADER_6).await;
        client.stream
    };
    // In clear.
    let mut client = from(gateway, "127.1.9.1").await;
    client.send([HEADER_6, connect.as_bytes()].concat()).await;
    assert_eq!(client.answer_head().await.status, 200);
    drop(client);
    gateway.records(1).await;
    // HTTP/1.1 within TLS.
    let mut client = Client::over(s.secured(begun().await, &["http/1.1"]).await);
    client.send(&connect).await;
    assert_eq!(client.answer_head().await.status, 200);
    drop(client);
    gateway.records(2).await;
    // HTTP/2: each of its streams, and a tunnel in one.
    let client = Connection::over(s.secured(begun().await, &["h2"]).await).await;
    for _ in 0..2 {
        let asked = s.of_web(Request::get(format!("http://{target}/x")));
        assert_eq!(client.ask(asked, b"").await.expect("answer").status, 200);
    }
    let inside = tunnel(&client, s.of_web(Request::connect(&target))).await.expect("open");
    drop((inside, client));
    gateway.records(5).await;
    // SOCKS 5, by clients that wrap it in TLS.
    let client = Client::over(s.secured(begun().await, &[]).await);
    let mut client = socks::introduce(client, gateway).await;
    assert_eq!(socks::ask(&mut client, "api.allowed.test", sink.address.port()).await, 0);
    let hello = tunnels::hello("api.allowed.test");
    client.send(&hello).await;
    crate::http2::until("the hello", || sink.seen.bytes.lock().len() == hello.len()).await;
    drop(client);
    for decision in gateway.records(6).await.iter().filter(|r| r.kind == RecordKind::Decision) {
        let source = (decision.source.ip.map(|ip| ip.to_string()), decision.source.port);
        assert_eq!(source, (Some("2001:db8::9".to_owned()), Some(4660)), "{decision:?}");
        assert_eq!(decision.agent.as_ref().map(|a| a.agent.as_str()), Some("web"));
        assert_eq!(decision.verdict, Some(Verdict::Allow));
    }

    // TLS without a header before it, one that is within, and one of somebody else.
    for (ip, before, within, source, reason) in [
        ("127.1.9.1", &b""[..], &b""[..], "127.1.9.1", DropReason::ProxyHeaderMalformed),
        ("127.1.9.1", HEADER_6, HEADER_6, "2001:db8::9", DropReason::ProtocolUnknown),
        ("127.0.0.1", HEADER_6, b"", "127.0.0.1", DropReason::TlsMalformed),
    ] {
        let n = gateway.outcomes();
        let mut client = at(gateway.proxy_tls, ip).await;
        client.send(before).await;
        if within.is_empty() {
            client.send(&hello).await;
            client.rest().await;
        } else {
            let mut client = Client::over(s.secured(client.stream, &[]).await);
            client.send(within).await;
            assert!(client.rest().await.is_empty());
        }
        let (decision, _) = gateway.exchange(n).await;
        assert_eq!((decision.verdict, decision.reason), (Some(Verdict::Deny), Some(reason)), "{ip}");
        assert_eq!(decision.source.ip.map(|ip| ip.to_string()).as_deref(), Some(source));
    }
}
