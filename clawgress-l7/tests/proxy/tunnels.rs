//! CONNECT: what is let through, what is refused before and after the 200.

use std::sync::Arc;
use std::time::Duration;

use clawgress_api::{Ingress, RecordKind, Verdict};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::IdentityMethod;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use crate::client::Client;
use crate::harness::{Gateway, Options};
use crate::upstream::Upstream;

fn connector(upstream: &Upstream) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(upstream.certificate.clone().expect("certificate")).expect("root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// What an HTTP/2 client begins with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The bytes of a ClientHello for `name`.
pub fn hello(name: &str) -> Vec<u8> {
    hello_with(name, &[])
}

/// As [`hello`], with these ALPN names.
pub fn hello_with(name: &str, alpn: &[&str]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).expect("name");
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).expect("client");
    let mut bytes = vec![];
    connection.write_tls(&mut bytes).expect("hello");
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_tunnel_carries_tls_unread_and_is_recorded() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::tls("127.1.0.1", "api.allowed.test").await;
    let port = upstream.address.port();
    let (client, answer) = gateway.connect(&format!("API.Allowed.test.:{port}")).await;
    assert_eq!(answer.status, 200);
    let name = ServerName::try_from("api.allowed.test").expect("name");
    let mut tls =
        connector(&upstream).connect(name, client.stream).await.expect("handshake with the upstream");
    tls.write_all(b"through the tunnel").await.expect("write");
    let mut got = [0; 18];
    tls.read_exact(&mut got).await.expect("read");
    assert_eq!(&got, b"through the tunnel");
    gateway.decisions(1).await;
    assert_eq!(gateway.outcomes(), 0, "the decision is recorded while the tunnel is open");
    tls.shutdown().await.expect("shutdown");
    drop(tls);
    let (decision, outcome) = gateway.exchange(0).await;
    assert_eq!(decision.verdict, Some(Verdict::Allow));
    assert_eq!(decision.action.as_deref(), Some("tunnel"));
    assert_eq!(decision.policies, ["net", "tls", "tunnel"]);
    assert_eq!(decision.generation, 1);
    assert_eq!(decision.ingress, Some(Ingress::Proxy));
    let agent = decision.agent.expect("agent");
    assert_eq!((agent.agent.as_str(), agent.method), ("web", IdentityMethod::ApiKey));
    assert_eq!(decision.destination.host.as_deref(), Some("api.allowed.test"));
    assert_eq!(decision.destination.ip, Some(upstream.address.ip()));
    assert_eq!(decision.destination.port, Some(port));
    assert_eq!(outcome.kind, RecordKind::Outcome);
    assert!(outcome.bytes_sent > Some(200) && outcome.bytes_received > Some(500), "{outcome:?}");
    assert_eq!(outcome.reason, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_in_single_bytes_is_the_same_hello() {
    let gateway = Gateway::start(Options::default()).await;
    let sink = Upstream::sink("127.1.0.1").await;
    let (mut client, answer) = gateway.connect(&format!("api.allowed.test:{}", sink.address.port())).await;
    assert_eq!(answer.status, 200);
    let hello = hello("api.allowed.test");
    for byte in &hello {
        client.send([*byte]).await;
    }
    client.stream.shutdown().await.expect("shutdown");
    gateway.records(1).await;
    assert_eq!(*sink.seen.bytes.lock(), hello, "the hello arrives as it was sent");
}

/// A key share of a post-quantum exchange makes a hello longer than a segment is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_of_several_segments_is_read_and_passes() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::tls("127.1.0.1", "api.allowed.test").await;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(upstream.certificate.clone().expect("certificate")).expect("root");
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols =
        (0..8).map(|n| format!("some-protocol-that-nobody-speaks/{n}").into_bytes()).collect();
    let name = ServerName::try_from("api.allowed.test").expect("name");
    let mut session = rustls::ClientConnection::new(Arc::new(config.clone()), name.clone()).expect("client");
    let mut hello = vec![];
    session.write_tls(&mut hello).expect("hello");
    assert!(hello.len() > 1_460, "{} bytes", hello.len());

    let sink = Upstream::sink("127.1.0.1").await;
    let (mut client, answer) = gateway.connect(&format!("api.allowed.test:{}", sink.address.port())).await;
    assert_eq!(answer.status, 200);
    for segment in hello.chunks(536) {
        client.send(segment).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.stream.shutdown().await.expect("shutdown");
    gateway.records(1).await;
    assert_eq!(*sink.seen.bytes.lock(), hello, "the hello arrives as it was sent");

    let (client, answer) = gateway.connect(&format!("api.allowed.test:{}", upstream.address.port())).await;
    assert_eq!(answer.status, 200);
    config.alpn_protocols.clear();
    let connector = TlsConnector::from(Arc::new(config));
    let mut tls = connector.connect(name, client.stream).await.expect("handshake");
    let group = tls.get_ref().1.negotiated_key_exchange_group().expect("a group").name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    tls.write_all(b"post-quantum").await.expect("write");
    let mut got = [0; 12];
    tls.read_exact(&mut got).await.expect("read");
    assert_eq!(&got, b"post-quantum");
}

/// The address that was judged is dialled, and no other: a name that changes between the two leads nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_resolved_once_for_what_is_judged_and_dialled() {
    let gateway = Gateway::start(Options::default()).await;
    let sink = Upstream::sink("127.1.0.1").await;
    gateway
        .dns
        .takes_turns("api.allowed.test", &[&["127.1.0.1"], &["169.254.169.254"], &["100.100.100.200"]]);
    let target = format!("api.allowed.test:{}", sink.address.port());
    let hello = hello("api.allowed.test");
    let (mut client, answer) = gateway.connect(&target).await;
    assert_eq!(answer.status, 200);
    client.send(&hello).await;
    client.stream.shutdown().await.expect("shutdown");
    let (decision, _) = gateway.exchange(0).await;
    assert_eq!(decision.destination.ip, Some(sink.address.ip()), "{decision:?}");
    assert_eq!(*sink.seen.bytes.lock(), hello);
    // Once for each family, and anew for the next: a TTL of 0 is kept for nobody.
    assert!(gateway.dns.asked("api.allowed.test") <= 2);
    for _ in 0..2 {
        let (_, answer) = gateway.connect(&target).await;
        refused(403, "policy_denied", &answer);
    }
    assert_eq!(sink.connections(), 1);
}

/// Asks for `target` in the policy's terms; the answer must deny for `reason`, before any 200.
#[track_caller]
fn refused(status: u16, reason: &str, answer: &crate::client::Answer) {
    assert_eq!((answer.status, answer.reason()), (status, reason), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_policy_denies_is_refused_before_the_200() {
    let gateway = Gateway::start(Options::default()).await;
    let sink = Upstream::sink("127.1.0.1").await;
    let port = sink.address.port();
    for (target, status, reason) in [
        (format!("denied.test:{port}"), 403, "policy_denied"),
        (format!("read.allowed.test:{port}"), 403, "inspection_required"),
        (format!("allowed.test.evil:{port}"), 403, "policy_denied"),
        (format!("notallowed.test:{port}"), 403, "policy_denied"),
        (format!("127.1.0.1:{port}"), 403, "policy_denied"),
        (format!("[denied.test]:{port}"), 400, "host_invalid"),
        ("nowhere.allowed.test:443".to_owned(), 502, "resolve_failed"),
        ("api.allowed.test:1".to_owned(), 502, "upstream_failed"),
        ("allowed@evil:443".to_owned(), 400, "http_malformed"),
        ("api.allowed.test".to_owned(), 400, "http_malformed"),
        ("api.allowed.test:0".to_owned(), 400, "http_malformed"),
    ] {
        let (mut client, answer) = gateway.connect(&target).await;
        refused(status, reason, &answer);
        let body = String::from_utf8(client.rest().await).expect("text");
        assert!(body.contains(reason) && !body.contains(&target), "{body}");
    }
    let records = gateway.records(11).await;
    let denials =
        records.iter().filter(|r| r.kind == RecordKind::Decision && r.verdict == Some(Verdict::Deny));
    assert_eq!(denials.count(), 10, "each is recorded; only the unreachable one was allowed");
    assert!(sink.seen.bytes.lock().is_empty() && sink.connections() == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reserved_addresses_are_refused_however_they_are_written() {
    // Every host is permitted here, and every address: only naming one opens a reserved one.
    let everything = r#"
        @id("net") permit (principal, action == Action::"connect", resource);
        @id("named") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
        @id("rest") permit (principal, action in [Action::"tls", Action::"tunnel", Action::"http"], resource);
    "#;
    let options =
        Options { policy: Some(Box::leak(everything.to_owned().into_boxed_str())), ..Options::default() };
    let gateway = Gateway::start(options).await;
    for host in [
        "169.254.169.254",
        "169.254.170.2",
        "127.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "172.16.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0xa9fea9fe",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "[64:ff9b::a00:1]",
        "[2002:a00:1::]",
        "[2001:0:a00:1::]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "224.0.0.1",
        "255.255.255.255",
        "meta.allowed.test",
        "ten.allowed.test",
        "loop.allowed.test",
        "mapped.allowed.test",
        "nat64.allowed.test",
        "task.allowed.test",
        "cgnat.allowed.test",
        "alibaba.allowed.test",
        "sixtofour.allowed.test",
        "teredo.allowed.test",
        "nitro.allowed.test",
    ] {
        let (_, answer) = gateway.connect(&format!("{host}:443")).await;
        assert_eq!((answer.status, answer.reason()), (403, "address_reserved"), "{host}");
        let raw = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nAUTH\r\n\r\n");
        assert_eq!(gateway.ask(&raw).await.reason(), "address_reserved", "{host} by HTTP");
    }
    // The gateway's own listener and machine, whatever policy says.
    let own = gateway.proxy;
    gateway.publish_policy(&everything.replace("127.1.0.0/16", "0.0.0.0/1")).await;
    for host in ["0.0.0.0", "0"] {
        let (_, answer) = gateway.connect(&format!("{host}:443")).await;
        refused(403, "gateway_address", &answer);
    }
    let (_, answer) = gateway.connect(&own.to_string()).await;
    refused(403, "gateway_address", &answer);
    // One good address among bad ones is dialled, and nothing else.
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("mixed.allowed.test:{}", upstream.address.port());
    let answer = gateway.ask(&format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nAUTH\r\n\r\n")).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_decide_who_asks() {
    let mut gateway = Gateway::start(Options::default()).await;
    let connect = "CONNECT api.allowed.test:1 HTTP/1.1\r\nHost: api.allowed.test:1\r\n";
    let wrong = gateway.key.replace("02", "05");
    let unknown = gateway.key.replacen("01", "09", 1);
    for (header, status, reason) in [
        (String::new(), 407, "credential_missing"),
        ("Proxy-Authorization: Bearer x\r\n".to_owned(), 407, "credential_invalid"),
        ("Proxy-Authorization: Basic !!\r\n".to_owned(), 407, "credential_invalid"),
        (gateway.authorization("web", "secret"), 407, "credential_invalid"),
        (gateway.authorization("web", &wrong), 407, "credential_invalid"),
        (gateway.authorization("web", &unknown), 407, "credential_invalid"),
        (gateway.authorization("other", &gateway.key), 407, "credential_invalid"),
        (gateway.authorization("acme/web", &gateway.key), 407, "credential_invalid"),
        (gateway.authorization("web", &gateway.other_key), 407, "credential_invalid"),
        (gateway.authorization("default/other", &gateway.other_key), 403, "policy_denied"),
        (gateway.web() + &gateway.web(), 407, "credential_invalid"),
        // Allowed, and nobody listens there.
        (gateway.web(), 502, "upstream_failed"),
    ] {
        let answer = gateway.ask(&format!("{connect}{header}\r\n")).await;
        assert_eq!((answer.status, answer.reason()), (status, reason), "{header}");
        assert_eq!(answer.field("proxy-authenticate").is_some(), status == 407);
        assert!(!answer.text().contains("claw_"), "no credential in a page");
    }
    let records = gateway.records(12).await;
    let text = format!("{records:?}");
    assert!(!text.contains(&gateway.key) && !text.contains("Basic"), "no credential in a record");
    // Keys that were checked before are known; others need the keys role.
    gateway.kill_keys();
    assert_eq!(gateway.ask(&format!("{connect}{}\r\n", gateway.web())).await.reason(), "upstream_failed");
    assert_eq!(
        gateway.ask(&format!("{connect}{}\r\n", gateway.authorization("web", &wrong))).await.reason(),
        "credential_invalid"
    );
    let late = gateway.authorization("web", &gateway.key.replace("02", "06"));
    assert_eq!(gateway.ask(&format!("{connect}{late}\r\n")).await.reason(), "identity_unavailable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_the_200_must_be_what_was_judged() {
    let gateway = Gateway::start(Options::default()).await;
    let sink = Upstream::sink("127.1.0.1").await;
    let target = format!("api.allowed.test:{}", sink.address.port());
    let no_name = hello("127.1.0.1");
    for (bytes, reason, alert) in [
        (hello("denied.test"), DropReason::SniMismatch, 112),
        (hello("xapi.allowed.test"), DropReason::SniMismatch, 112),
        (no_name, DropReason::SniMissing, 112),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00".to_vec(), DropReason::TlsMalformed, 50),
    ] {
        let n = gateway.outcomes();
        let (mut client, answer) = gateway.connect(&target).await;
        assert_eq!(answer.status, 200);
        client.send(&bytes).await;
        assert_eq!(client.rest().await, [21, 3, 3, 0, 2, 2, alert], "{reason}: an alert, then the end");
        let (decision, outcome) = gateway.exchange(n).await;
        assert_eq!((decision.verdict, decision.reason), (Some(Verdict::Deny), Some(reason)));
        assert_eq!(decision.destination.ip, Some(sink.address.ip()), "it was dialled, and that is recorded");
        assert_eq!(outcome.bytes_sent, Some(0));
    }
    for (bytes, reason) in [
        (&b"SSH-2.0-OpenSSH_9.9\r\n"[..], DropReason::ProtocolUnknown),
        (b"\0\0\0\0", DropReason::ProtocolUnknown),
    ] {
        let n = gateway.outcomes();
        let (mut client, _) = gateway.connect(&target).await;
        client.send(bytes).await;
        assert!(client.rest().await.is_empty());
        assert_eq!(gateway.exchange(n).await.0.reason, Some(reason));
    }
    // To the proxy itself TLS is none, in clear: who takes it for one that reads TLS is told.
    let n = gateway.outcomes();
    let mut client = gateway.client().await;
    client.send(hello("api.allowed.test")).await;
    assert_eq!(client.rest().await, [21, 3, 3, 0, 2, 2, 49]);
    assert_eq!(gateway.exchange(n).await.0.reason, Some(DropReason::ProtocolUnknown));
    // Whoever leaves without a byte had an upstream dialled, too.
    let n = gateway.outcomes();
    drop(gateway.connect(&target).await);
    let (decision, outcome) = gateway.exchange(n).await;
    assert_eq!((decision.verdict, outcome.bytes_sent), (Some(Verdict::Allow), Some(0)));
    assert_eq!(decision.destination.ip, Some(sink.address.ip()));
    assert!(sink.seen.bytes.lock().is_empty(), "nothing was forwarded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_protocol_passes_where_policy_says_so() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::server_first("127.1.0.1").await;
    let (mut client, answer) =
        gateway.connect(&format!("raw.allowed.test:{}", upstream.address.port())).await;
    assert_eq!(answer.status, 200);
    // The server speaks first.
    client.until("220 hello\r\n").await;
    client.send(b"EHLO x\r\n").await;
    client.until("EHLO x\r\n").await;
    drop(client);
    let (decision, _) = gateway.exchange(0).await;
    assert_eq!(decision.policies, ["net", "raw"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_inside_a_tunnel_is_read() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let (mut client, answer) = gateway.connect(&host).await;
    assert_eq!(answer.status, 200);
    client.send(format!("GET /ok HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    assert_eq!(client.answer().await.status, 200);
    client.send(format!("GET /denied HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    assert_eq!(client.answer().await.reason(), "policy_denied");
    client
        .send(format!("GET /ok HTTP/1.1\r\nHost: raw.allowed.test:{}\r\n\r\n", upstream.address.port()))
        .await;
    assert_eq!(client.answer().await.reason(), "http_malformed", "another host than the tunnel's");
    assert_eq!(upstream.requests().len(), 1);
    let (decision, outcome) = gateway.exchange(0).await;
    assert_eq!(decision.action.as_deref(), Some("tunnel"), "the upstream was dialled for TLS");
    assert_eq!((decision.destination.ip, outcome.bytes_sent), (Some(upstream.address.ip()), Some(0)));
    let (decision, _) = gateway.exchange(1).await;
    assert_eq!(decision.action.as_deref(), Some("http"));
}

/// Permits what is in clear and unread, where policy says nothing of protocols.
const ANY_PROTOCOL: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("any") permit (principal == Agent::"web", action in [Action::"tls", Action::"tunnel"], resource == Host::"api.allowed.test");
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_does_not_turn_the_checks_off() {
    let gateway = Gateway::start(Options { policy: Some(ANY_PROTOCOL), ..Options::default() }).await;
    let sink = Upstream::sink("127.1.0.1").await;
    let target = format!("api.allowed.test:{}", sink.address.port());
    let get = format!("GET / HTTP/1.1\r\nHost: {target}\r\n\r\n");
    for (bytes, reason) in [
        (hello("denied.test"), DropReason::SniMismatch),
        (hello("127.1.0.1"), DropReason::SniMissing),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00".to_vec(), DropReason::TlsMalformed),
        (get.clone().into_bytes(), DropReason::ProtocolUnknown),
        (format!("\r\n{get}").into_bytes(), DropReason::ProtocolUnknown),
        (PREFACE.to_vec(), DropReason::UpgradeUnsupported),
    ] {
        let n = gateway.outcomes();
        let (mut client, answer) = gateway.connect(&target).await;
        assert_eq!(answer.status, 200);
        tokio::time::sleep(Duration::from_millis(600)).await;
        // In pieces, too: what is not classified yet is held.
        for piece in bytes.chunks(7) {
            client.send(piece).await;
        }
        assert!(client.rest().await.is_empty());
        let (decision, outcome) = gateway.exchange(n).await;
        assert_eq!(decision.verdict, Some(Verdict::Allow), "as an unknown protocol, while it was silent");
        assert_eq!((outcome.reason, outcome.bytes_sent), (Some(reason), Some(0)));
    }
    assert!(sink.seen.bytes.lock().is_empty(), "nothing was forwarded");
    // What policy permits still passes, however late.
    for bytes in [hello("api.allowed.test"), b"EHLO mail.test\r\n".to_vec()] {
        let n = gateway.outcomes();
        let (mut client, _) = gateway.connect(&target).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        client.send(&bytes).await;
        client.stream.shutdown().await.expect("shutdown");
        let (_, outcome) = gateway.exchange(n).await;
        assert_eq!((outcome.reason, outcome.bytes_sent), (None, Some(bytes.len() as u64)));
        assert_eq!(std::mem::take(&mut *sink.seen.bytes.lock()), bytes);
    }
}

/// A HelloRetryRequest, as far as it tells: of any suite, without extensions.
fn retry() -> Vec<u8> {
    const RANDOM: [u8; 32] = [
        0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
        0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
    ];
    [&[22, 3, 3, 0, 44, 2, 0, 0, 40, 3, 3][..], &RANDOM, &[0, 0x13, 1, 0, 0, 0]].concat()
}

/// What a server that asks for a second hello is told by that is what the first was judged by, also where a client doesn't wait to
/// be asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_hello_is_for_the_server_of_the_first() {
    let gateway = Gateway::start(Options::default()).await;
    let server = Upstream::start("127.1.0.1", None, |mut stream, seen| async move {
        let mut buffer = [0; 4096];
        let mut is_asked = false;
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            seen.bytes.lock().extend(&buffer[..n]);
            if !is_asked {
                is_asked = true;
                let _ = stream.write_all(&retry()).await;
            }
        }
    })
    .await;
    let target = format!("api.allowed.test:{}", server.address.port());
    let first = hello("api.allowed.test");
    let ccs = [20, 3, 3, 0, 1, 1];
    for (second, waits, reason) in [
        (hello("api.allowed.test"), true, None),
        (hello("api.allowed.test"), false, None),
        (hello("denied.test"), true, Some(DropReason::SniMismatch)),
        (hello("denied.test"), false, Some(DropReason::SniMismatch)),
        (hello("127.1.0.1"), true, Some(DropReason::SniMismatch)),
        (hello_with("api.allowed.test", &["h2"]), false, Some(DropReason::SniMismatch)),
        (b"GET / HTTP/1.1\r\n".to_vec(), true, Some(DropReason::TlsMalformed)),
    ] {
        let n = gateway.outcomes();
        server.seen.bytes.lock().clear();
        let (mut client, answer) = gateway.connect(&target).await;
        assert_eq!(answer.status, 200);
        if waits {
            client.send(&first).await;
            let mut asked = vec![0; retry().len()];
            client.stream.read_exact(&mut asked).await.expect("asked again");
            client.send([&ccs[..], &second].concat()).await;
        } else {
            client.send([&first[..], &ccs, &second].concat()).await;
        }
        let whole = [&first[..], &ccs, &second].concat();
        if reason.is_none() {
            let begun = std::time::Instant::now();
            while server.seen.bytes.lock().len() < whole.len() {
                assert!(begun.elapsed() < Duration::from_secs(10), "it goes on");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            client.stream.shutdown().await.expect("shutdown");
        }
        client.rest().await;
        let (_, outcome) = gateway.exchange(n).await;
        assert_eq!(outcome.reason, reason);
        let seen = server.seen.bytes.lock().clone();
        assert_eq!(seen, if reason.is_none() { whole } else { first.clone() }, "{reason:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_tls_is_judged_as_tls_while_it_is_carried() {
    let gateway = Gateway::start(Options { policy: Some(ANY_PROTOCOL), ..Options::default() }).await;
    let sink = Upstream::sink("127.1.0.1").await;
    let (mut client, _) = gateway.connect(&format!("api.allowed.test:{}", sink.address.port())).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let hello = hello("api.allowed.test");
    client.send(&hello).await;
    let begun = std::time::Instant::now();
    while sink.seen.bytes.lock().len() < hello.len() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it is carried");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Unknown protocols are still permitted; TLS is not.
    gateway.publish_policy(&ANY_PROTOCOL.replace(r#"Action::"tls", "#, "")).await;
    assert!(client.is_closed(Duration::from_secs(5)).await);
    assert_eq!(gateway.exchange(0).await.1.reason, Some(DropReason::PolicyDenied));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_policy_does_not_permit_is_never_resolved() {
    let gateway = Gateway::start(Options::default()).await;
    let name = "secret.exfiltrated.test";
    for port in [80, 443, 8080] {
        let (mut client, answer) = gateway.connect(&format!("{name}:{port}")).await;
        if answer.status == 200 {
            client.send(format!("GET / HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n")).await;
            assert_eq!(client.answer().await.reason(), "policy_denied", "its requests are judged");
            // And TLS instead of requests.
            let (mut client, _) = gateway.connect(&format!("{name}:{port}")).await;
            client.send(hello(name)).await;
            client.rest().await;
        }
        let raw = format!("GET http://{name}:{port}/ HTTP/1.1\r\nHost: {name}:{port}\r\nAUTH\r\n\r\n");
        assert_eq!(gateway.ask(&raw).await.reason(), "policy_denied");
    }
    assert_eq!(gateway.dns.asked(name), 0, "the name is a message");
    let (mut client, answer) = gateway.connect("api.allowed.test:80").await;
    assert_eq!(answer.status, 502, "permitted, resolved, and nobody listens there");
    client.rest().await;
    assert!(gateway.dns.asked("api.allowed.test") > 0, "the test can see questions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_named_for_one_agent_is_not_named_for_another() {
    let policy = r#"
        @id("everywhere") permit (principal, action == Action::"connect", resource);
        @id("named") permit (principal == Agent::"other", action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
        @id("rest") permit (principal, action in [Action::"tls", Action::"tunnel", Action::"http"], resource);
    "#;
    let gateway = Gateway::start(Options { policy: Some(policy), ..Options::default() }).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let raw = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nAUTH\r\n\r\n");
    assert_eq!(gateway.ask(&raw).await.reason(), "address_reserved");
    refused(403, "address_reserved", &gateway.connect(&host).await.1);
    let other = gateway.authorization("other", &gateway.other_key);
    assert_eq!(gateway.ask(&raw.replace("AUTH\r\n", &other)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_tunnel_ends_when_policy_no_longer_permits_it() {
    let gateway = Gateway::start(Options::default()).await;
    let sink = Upstream::sink("127.1.0.1").await;
    let target = format!("api.allowed.test:{}", sink.address.port());
    let mut open = vec![];
    for _ in 0..3 {
        let (mut client, _) = gateway.connect(&target).await;
        client.send(hello("api.allowed.test")).await;
        open.push(client);
    }
    gateway.decisions(3).await;
    // A generation that changes nothing for them leaves them alone.
    gateway.publish(|_| {}).await;
    assert!(!open[0].is_closed(Duration::from_millis(200)).await);
    gateway.quarantine(&[1]);
    for client in &mut open {
        assert!(client.is_closed(Duration::from_secs(5)).await, "quarantine cuts a live tunnel");
    }
    let (_, outcome) = gateway.exchange(2).await;
    assert_eq!(outcome.reason, Some(DropReason::AgentQuarantined));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_clients_connect_without_host() {
    let gateway = Gateway::start(Options::default()).await;
    let sink = Upstream::sink("127.1.0.1").await;
    let mut client: Client = gateway.client().await;
    let port = sink.address.port();
    client.send(format!("CONNECT api.allowed.test:{port} HTTP/1.0\r\n{}\r\n", gateway.web())).await;
    assert_eq!(client.answer_head().await.status, 200);
}
