//! SOCKS 5: what is let through, and the one byte by which the rest is refused.

use clawgress_api::{Ingress, Verdict};
use clawgress_ebpf_common::DropReason;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::client::Client;
use crate::harness::{Gateway, Options};
use crate::tunnels::hello;
use crate::upstream::Upstream;

/// Offers a password alone.
const GREETING: &[u8] = b"\x05\x01\x02";
const CHOICE: [u8; 2] = [5, 2];
/// Connects, to a name.
const TO_NAME: [u8; 4] = [5, 1, 0, 3];

fn login(user: &str, password: &str) -> Vec<u8> {
    let mut bytes = vec![1];
    for text in [user, password] {
        bytes.push(u8::try_from(text.len()).expect("short"));
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn to_name(name: &str, port: u16) -> Vec<u8> {
    let mut bytes = TO_NAME.to_vec();
    bytes.push(u8::try_from(name.len()).expect("short"));
    bytes.extend(name.as_bytes());
    bytes.extend(port.to_be_bytes());
    bytes
}

async fn take<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>, n: usize) -> Vec<u8> {
    while client.held.len() < n {
        if !client.more().await {
            break;
        }
    }
    let n = n.min(client.held.len());
    client.held.drain(..n).collect()
}

/// A client that has proven to be `web`.
pub async fn web(gateway: &Gateway) -> Client {
    introduce(gateway.client().await, gateway).await
}

/// A connection whose client proves to be `web`.
pub async fn introduce<S: AsyncRead + AsyncWrite + Unpin>(
    mut client: Client<S>,
    gateway: &Gateway,
) -> Client<S> {
    client.send(GREETING).await;
    assert_eq!(take(&mut client, 2).await, CHOICE);
    client.send(login("web", &gateway.key)).await;
    assert_eq!(take(&mut client, 2).await, [1, 0]);
    client
}

/// Asks for `name`; the byte of the reply.
pub async fn ask<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>, name: &str, port: u16) -> u8 {
    client.send(to_name(name, port)).await;
    let reply = take(client, 10).await;
    assert_eq!((reply[0], &reply[2..]), (5, &[0, 1, 0, 0, 0, 0, 0, 0][..]), "{reply:?}");
    reply[1]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_by_socks_is_judged_and_recorded_as_one_by_connect() {
    let gateway = Gateway::start(Options::default()).await;
    let sink = Upstream::sink("127.1.0.1").await;
    let port = sink.address.port();
    let mut client = gateway.client().await;
    let hello = hello("api.allowed.test");
    // Everything at once, as clients do that know what is coming, and in single bytes.
    let whole = [GREETING, &login("web", &gateway.key), &to_name("API.allowed.test.", port), &hello].concat();
    client.send(&whole).await;
    assert_eq!(take(&mut client, 14).await, [&CHOICE[..], &[1, 0], &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat());
    client.stream.set_nodelay(true).expect("nodelay");
    drop(client);
    let (decision, outcome) = gateway.exchange(0).await;
    assert_eq!((decision.verdict, decision.ingress), (Some(Verdict::Allow), Some(Ingress::Proxy)));
    assert_eq!(decision.policies, ["net", "tls", "tunnel"]);
    assert_eq!(decision.agent.as_ref().map(|a| a.agent.as_str()), Some("web"));
    assert_eq!(decision.destination.host.as_deref(), Some("api.allowed.test"));
    assert_eq!(decision.destination.ip, Some(sink.address.ip()));
    assert_eq!((outcome.status, outcome.reason), (None, None));
    assert_eq!(*sink.seen.bytes.lock(), hello, "the hello arrives as it was sent, and nothing else");

    let mut client = gateway.client().await;
    for byte in &whole {
        client.send([*byte]).await;
    }
    assert_eq!(take(&mut client, 14).await[11], 0, "it may begin");
    drop(client);
    gateway.exchange(1).await;
    assert_eq!(sink.seen.bytes.lock().len(), 2 * hello.len());
    assert!(!format!("{:?}", gateway.records(2).await).contains(&gateway.key), "no credential in a record");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_is_read_where_it_can_be() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let port = upstream.address.port();
    let mut client = web(&gateway).await;
    assert_eq!(ask(&mut client, "api.allowed.test", port).await, 0);
    let host = format!("api.allowed.test:{port}");
    client.send(format!("GET /ok HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    assert_eq!(client.answer().await.status, 200);
    client.send(format!("GET /denied HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    assert_eq!(client.answer().await.reason(), "policy_denied");
    client.send(format!("GET /ok HTTP/1.1\r\nHost: raw.allowed.test:{port}\r\n\r\n")).await;
    assert_eq!(client.answer().await.reason(), "http_malformed", "another host than the tunnel's");
    assert_eq!(upstream.requests().len(), 1);

    // A server that speaks first, where policy permits what nobody can read.
    let upstream = Upstream::server_first("127.1.0.1").await;
    let mut client = web(&gateway).await;
    assert_eq!(ask(&mut client, "raw.allowed.test", upstream.address.port()).await, 0);
    client.until("220 hello\r\n").await;

    // Another name in the hello than was asked for, after the tunnel, which is open, and what came before it.
    let mut client = web(&gateway).await;
    assert_eq!(ask(&mut client, "api.allowed.test", port).await, 0);
    client.send(hello("denied.test")).await;
    assert_eq!(client.rest().await, [21, 3, 3, 0, 2, 2, 112]);
    assert_eq!(gateway.exchange(5).await.0.reason, Some(DropReason::SniMismatch));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_proves_nothing_gets_no_further() {
    let gateway = Gateway::start(Options::default()).await;
    let none = DropReason::CredentialMissing;
    let wrong = DropReason::CredentialInvalid;
    let other = gateway.key.replace("02", "05");
    for (sent, said, reason) in [
        (b"\x05\x01\x00".to_vec(), &[5, 0xff][..], none),
        (b"\x05\x02\x00\x01".to_vec(), &[5, 0xff], none),
        ([GREETING, &login("web", "secret")].concat(), &[5, 2, 1, 1], wrong),
        ([GREETING, &login("web", &other)].concat(), &[5, 2, 1, 1], wrong),
        ([GREETING, &login("other", &gateway.key)].concat(), &[5, 2, 1, 1], wrong),
        ([GREETING, &login("web:x", &gateway.key)].concat(), &[5, 2, 1, 1], wrong),
        ([GREETING, b"\x01\x00"].concat(), &[5, 2, 1, 1], DropReason::SocksMalformed),
        (b"\x05\x00".to_vec(), &[], DropReason::SocksMalformed),
        // SOCKS 4, and 4a with a name behind it.
        (
            b"\x04\x01\x01\xbb\x7f\x01\x00\x01web\0".to_vec(),
            &[0, 0x5b, 0, 0, 0, 0, 0, 0],
            DropReason::SocksUnsupported,
        ),
    ] {
        let n = gateway.outcomes();
        let mut client = gateway.client().await;
        client.send(&sent).await;
        assert_eq!(client.rest().await, said, "{reason}");
        let (decision, _) = gateway.exchange(n).await;
        assert_eq!((decision.verdict, decision.reason), (Some(Verdict::Deny), Some(reason)));
    }
    assert!(!format!("{:?}", gateway.records(9).await).contains("claw_"), "no credential in a record");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_policy_denies_is_refused_before_it_begins() {
    let gateway = Gateway::start(Options::default()).await;
    let sink = Upstream::sink("127.1.0.1").await;
    let port = sink.address.port();
    for (name, port, byte, reason) in [
        ("denied.test", port, 2, DropReason::PolicyDenied),
        ("read.allowed.test", port, 2, DropReason::InspectionRequired),
        ("loop.allowed.test", port, 2, DropReason::PolicyDenied),
        ("127.1", port, 2, DropReason::PolicyDenied),
        ("[denied.test]", port, 8, DropReason::HostInvalid),
        ("nowhere.allowed.test", 443, 4, DropReason::ResolveFailed),
        ("api.allowed.test", 1, 5, DropReason::UpstreamFailed),
    ] {
        let n = gateway.outcomes();
        let mut client = web(&gateway).await;
        assert_eq!(ask(&mut client, name, port).await, byte, "{name}");
        assert!(client.rest().await.is_empty());
        let (decision, outcome) = gateway.exchange(n).await;
        assert_eq!(outcome.reason, Some(reason), "{name}");
        assert_eq!(decision.agent.map(|a| a.agent.to_string()).as_deref(), Some("web"));
    }
    let five = |command: u8, rest: &[u8]| [&[5, command, 0][..], rest].concat();
    for (request, byte, reason) in [
        (five(1, b"\x01\xa9\xfe\xa9\xfe\x01\xbb"), 2, DropReason::PolicyDenied),
        (five(2, b"\x01\x7f\x01\x00\x01\x00\x50"), 7, DropReason::SocksUnsupported),
        (five(3, b"\x01\x00\x00\x00\x00\x00\x35"), 7, DropReason::SocksUnsupported),
        (five(1, b"\x02"), 8, DropReason::HostInvalid),
        (five(1, b"\x01\x7f\x01\x00\x01\x00\x00"), 1, DropReason::SocksMalformed),
        (five(1, b"\x03\x00"), 1, DropReason::SocksMalformed),
    ] {
        let n = gateway.outcomes();
        let mut client = web(&gateway).await;
        client.send(&request).await;
        assert_eq!(client.rest().await.get(1), Some(&byte), "{reason}");
        assert_eq!(gateway.exchange(n).await.0.reason, Some(reason));
    }
    assert!(sink.seen.bytes.lock().is_empty() && sink.connections() == 0);
}
