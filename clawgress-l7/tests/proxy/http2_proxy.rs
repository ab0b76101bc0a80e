//! HTTP/2 to the proxy over TLS: what it fetches, its endpoints, and tunnels within streams.

use std::sync::Arc;

use clawgress_api::{AuditRecord, RecordKind};
use clawgress_ebpf_common::DropReason;
use h2::Reason;
use http::Request;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::Client;
use crate::harness::{Gateway, Options, PATIENCE};
use crate::intercept::trusting;
use crate::pki::{Authority, Wanted};
use crate::streams::{Connection, tunnel};
use crate::upstream::Upstream;

/// A gateway with a certificate, and with an endpoint.
pub struct Setting {
    pub gateway: Gateway,
    authority: Authority,
    pub upstream: Upstream,
}

impl Setting {
    pub async fn new() -> Setting {
        Setting::before(Upstream::http("127.1.0.1").await, "").await
    }

    /// One with `more` in its table `[l7]`.
    pub async fn before(upstream: Upstream, more: &str) -> Setting {
        Setting::with(upstream, more, "").await
    }

    /// One with `proxy` in its table `[proxy]` too.
    pub async fn with(upstream: Upstream, more: &str, proxy: &'static str) -> Setting {
        let authority = Authority::new("server authority");
        let names = Wanted { names: "IP:127.0.0.1", usage: "serverAuth", ..Wanted::default() };
        let tls = Some(authority.issue("proxy", &names));
        let more = format!(
            "{more}[[endpoint]]\nname = \"own\"\nupstream = \"http://api.allowed.test:{}/base\"\n",
            upstream.address.port()
        );
        let gateway = Gateway::start(Options { tls, proxy, more, ..Options::default() }).await;
        Setting { gateway, authority, upstream }
    }

    pub async fn client(&self) -> Connection {
        let stream = TcpStream::connect(self.gateway.proxy_tls).await.expect("connect");
        let stream = self.secured(stream, &["h2", "http/1.1"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        Connection::over(stream).await
    }

    /// TLS with the gateway, over `stream`.
    pub async fn secured(&self, stream: TcpStream, alpn: &[&str]) -> TlsStream<TcpStream> {
        let root = CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).expect("PEM");
        let connector = TlsConnector::from(Arc::clone(&trusting(&[root], alpn)));
        let name = ServerName::try_from("127.0.0.1").expect("name");
        connector.connect(name, stream).await.expect("handshake")
    }

    pub fn host(&self) -> String {
        format!("api.allowed.test:{}", self.upstream.address.port())
    }

    /// A request of `web`.
    pub fn of_web(&self, builder: http::request::Builder) -> Request<()> {
        let credential = clawgress_inspect::proxy_authorization::encode("web", &self.gateway.key);
        builder.header("proxy-authorization", credential).body(()).expect("request")
    }
}

fn is_tunnel(record: &AuditRecord) -> bool {
    record.action.as_deref() == Some("tunnel")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_fetched_and_what_is_its_own_are_told_apart_by_the_scheme() {
    let s = Setting::new().await;
    let client = s.client().await;
    let host = s.host();
    let fetched = client.ask(s.of_web(Request::post(format!("http://{host}/echo"))), b"body").await;
    assert_eq!(&fetched.expect("answer").body[..], b"body");
    let denied = client.ask(s.of_web(Request::get(format!("http://{host}/denied"))), b"").await;
    assert_eq!(denied.expect("answer").said(), (403, "policy_denied"));
    let own = format!("https://{}/own/v1", s.gateway.proxy_tls);
    let key = format!("Bearer {}", s.gateway.key);
    let asked = Request::get(&own).header("authorization", key).body(()).expect("request");
    assert_eq!(client.ask(asked, b"").await.expect("answer").status, 200);
    let seen = s.upstream.requests();
    assert!(
        seen[0].starts_with("POST /echo HTTP/1.1\r\n") && seen[1].starts_with("GET /base/v1 HTTP/1.1\r\n")
    );
    assert!(!seen.concat().to_lowercase().contains("authorization"), "{seen:?}");
    // Each of another agent's streams is its own.
    let other = clawgress_inspect::proxy_authorization::encode("other", &s.gateway.other_key);
    let of_other = Request::get(format!("http://{host}/")).header("proxy-authorization", other).body(());
    let denied = client.ask(of_other.expect("request"), b"").await.expect("answer");
    assert_eq!(denied.said(), (403, "policy_denied"));
    let records = s.gateway.records(4).await;
    let agents: Vec<_> = records
        .iter()
        .filter(|r| r.kind == RecordKind::Decision)
        .map(|r| r.agent.as_ref().expect("agent").agent.as_str())
        .collect();
    assert_eq!(agents, ["web", "web", "web", "other"]);
    let unknown = format!("https://{}/nowhere", s.gateway.proxy_tls);
    let unknown = client.get(&unknown).await.expect("answer");
    assert_eq!(unknown.said(), (404, "endpoint_unknown"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_asks_often() {
    let s = Setting::new().await;
    let client = s.client().await;
    let url = format!("http://{}/", s.host());
    for _ in 0..2 {
        let answer = client.get(&url).await.expect("answer");
        assert_eq!(answer.said(), (407, "credential_missing"));
        assert_eq!(answer.fields.get_all("proxy-authenticate").iter().count(), 2);
        let refused = tunnel(&client, Request::connect(s.host()).body(()).expect("request")).await;
        let refused = refused.expect_err("refused");
        assert_eq!(refused.said(), (407, "credential_missing"));
        assert!(String::from_utf8_lossy(&refused.body).contains("clawgress_denied"));
    }
    assert!(client.is_closed().await);
    assert_eq!(s.upstream.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_are_within_streams() {
    let s = Setting::new().await;
    let (client, raw) = (s.client().await, Upstream::server_first("127.1.0.1").await);
    let raw = format!("raw.allowed.test:{}", raw.address.port());
    let connect = |target: &str| s.of_web(Request::connect(target));
    let refused = tunnel(&client, connect("denied.test:443")).await.expect_err("refused");
    assert_eq!(refused.said(), (403, "policy_denied"));
    let mut first = Client::over(tunnel(&client, connect(&raw)).await.expect("open"));
    let mut second = Client::over(tunnel(&client, connect(&raw)).await.expect("open"));
    for client in [&mut first, &mut second] {
        client.until("220 hello\r\n").await;
        client.held.clear();
    }
    let many = b"EHLO mail.test\r\n".repeat(40_000);
    let (mut reader, mut writer) = tokio::io::split(first.stream);
    let writing = async {
        writer.write_all(&many).await.expect("written");
        writer.shutdown().await.expect("ended");
    };
    let mut got = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut got);
    let ((), read) = tokio::join!(writing, reading);
    read.expect("read");
    assert!(got == many, "{}", got.len());
    // What follows is read where that is HTTP.
    let target = s.host();
    let mut inside = Client::over(tunnel(&client, connect(&target)).await.expect("open"));
    inside.send(format!("GET /x HTTP/1.1\r\nHost: {target}\r\n\r\n")).await;
    assert_eq!(inside.answer().await.text(), "ok");
    inside.send(format!("GET /denied HTTP/1.1\r\nHost: {target}\r\n\r\n")).await;
    assert_eq!(inside.answer().await.reason(), "policy_denied");
    drop(inside);
    // Its own end, not the connection's.
    s.gateway.isolate(&[1]).await;
    assert!(second.rest().await.is_empty());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let (cut, carried) = loop {
        let records = s.gateway.control.records();
        let outcomes = || records.iter().filter(|r| r.kind == RecordKind::Outcome && is_tunnel(r));
        let cut = outcomes().find(|r| r.reason == Some(DropReason::AgentQuarantined));
        if let (Some(cut), Some(carried)) = (cut, outcomes().find(|r| r.reason.is_none())) {
            break (cut.clone(), carried.clone());
        }
        assert!(tokio::time::Instant::now() < deadline, "not cut: {records:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!((cut.bytes_received, cut.status), (Some(11), Some(200)));
    assert_eq!(carried.bytes_sent, Some(640_000));
    let of_other = clawgress_inspect::proxy_authorization::encode("other", &s.gateway.other_key);
    let asked = Request::get(format!("http://{target}/")).header("proxy-authorization", of_other).body(());
    let answer = client.ask(asked.expect("request"), b"").await.expect("its connection lives on");
    assert_eq!(answer.said(), (403, "policy_denied"));
}

/// A tunnel that is taken back has cost a decision, a question to DNS and a connection to its server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_back_tunnels_without_end_begins_no_more() {
    let s = Setting::new().await;
    let client = s.client().await;
    let mut reset = 0;
    let ended = loop {
        match client.begin(s.of_web(Request::connect(s.host())), false).await {
            Ok((mut response, mut stream)) => {
                match (&mut response).await {
                    Ok(answer) => assert_eq!(answer.status(), 200),
                    Err(error) => break error,
                }
                stream.send_reset(Reason::CANCEL);
                reset += 1;
                assert!(reset < 2_000, "nobody minds");
            }
            Err(error) => break error,
        }
    };
    assert!(reset >= 400, "{reset}");
    let is_refused = ended.is_go_away() || ended.is_io() || ended.reason() == Some(Reason::REFUSED_STREAM);
    assert!(is_refused, "{ended:?}");
    assert!(
        tunnel(&s.client().await, s.of_web(Request::connect(s.host()))).await.is_ok(),
        "it may come again"
    );
}
