//! The proxy over TLS: whom a client's certificate proves, each request, and what ends what it opened. Certificates
//! are `openssl`'s, and so are some of the clients.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clawgress_api::{AuditRecord, RecordKind, Verdict};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::{AuthorityRecord, IdentityMethod, Revocation, RootId, TrustDomainRecord};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::{Answer, Client};
use crate::harness::{Gateway, Options, PATIENCE, POLICY};
use crate::pki::{Authority, Pair, Wanted};
use crate::upstream::Upstream;

mod clients;
mod svids;

type Tls = Client<TlsStream<TcpStream>>;

/// A gateway with a certificate, which trusts an authority for agents.
struct Setting {
    gateway: Gateway,
    /// Whom clients trust.
    server_ca: Authority,
    server: Pair,
    agents_ca: Authority,
}

fn record(id: &str, ca: &Authority) -> AuthorityRecord {
    AuthorityRecord {
        id: id.parse().expect("id"),
        certificates: ca.pem(),
        revocation_lists: String::new(),
        revocation: Revocation::Off,
        mapping: serde_json::from_str(r#"{"agent":{"from":"dns","suffix":".agents.test"}}"#)
            .expect("mapping"),
    }
}

fn trust_domain(ca: &Authority, more: &str) -> TrustDomainRecord {
    let certificate = CertificateDer::from_pem_slice(ca.pem().as_bytes()).expect("PEM");
    let x5c = STANDARD.encode(&certificate);
    serde_json::from_value(serde_json::json!({
        "id": "spire", "domain": "d.test", "audiences": ["gateway"],
        "mapping": {"agent": {"from": "path", "prefix": "/agent/"}},
        "bundle": format!(r#"{{"keys":[{{"kty":"EC","use":"x509-svid","x5c":["{x5c}"]}}{more}]}}"#)
    }))
    .expect("record")
}

fn server_names() -> Wanted<'static> {
    Wanted { names: "IP:127.0.0.1", usage: "serverAuth", ..Wanted::default() }
}

impl Setting {
    async fn new() -> Setting {
        let server_ca = Authority::new("server authority");
        let server = server_ca.issue("proxy", &server_names());
        let gateway = Gateway::start(Options { tls: Some(server.clone()), ..Options::default() }).await;
        let agents_ca = Authority::new("agents' authority");
        let own = record("corporate", &agents_ca);
        assert_eq!(gateway.publish(|s| s.roots.authorities.push(own)).await, "");
        Setting { gateway, server_ca, server, agents_ca }
    }

    /// Changes what is known of the agents' authority.
    async fn set(&self, change: impl FnOnce(&mut AuthorityRecord)) {
        assert_eq!(self.gateway.publish(|s| change(&mut s.roots.authorities[0])).await, "");
    }

    fn config(&self) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.server_ca.pem().as_bytes()).expect("PEM"))
            .expect("root");
        ClientConfig::builder().with_root_certificates(roots)
    }

    async fn handshake(&self, config: impl Into<Arc<ClientConfig>>) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.gateway.proxy_tls).await.expect("connect");
        let name = ServerName::try_from("127.0.0.1").expect("name");
        TlsConnector::from(config.into()).connect(name, stream).await
    }

    /// A connection that shows a certificate.
    async fn client(&self, pair: &Pair) -> Tls {
        let config = self.config().with_client_auth_cert(chain(pair), key(pair)).expect("pair");
        Client::over(self.handshake(config).await.expect("handshake"))
    }

    /// A connection that shows none.
    async fn stranger(&self) -> Tls {
        Client::over(self.handshake(self.config().with_no_client_auth()).await.expect("handshake"))
    }

    async fn ask(&self, pair: &Pair, request: &str) -> Answer {
        let mut client = self.client(pair).await;
        client.send(request).await;
        client.answer().await
    }

    /// A tunnel to a server that speaks first.
    async fn open(&self, pair: &Pair, host: &str) -> Tls {
        let mut client = self.client(pair).await;
        client.send(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let answer = client.answer_head().await;
        assert_eq!((answer.status, answer.reason()), (200, "none"));
        client.until("220 hello\r\n").await;
        client.held.clear();
        client
    }
}

fn chain(pair: &Pair) -> Vec<CertificateDer<'static>> {
    let read = CertificateDer::pem_file_iter(&pair.certificate).expect("file");
    read.collect::<Result<_, _>>().expect("certificates")
}

fn key(pair: &Pair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(&pair.key).expect("key")
}

fn get(host: &str, credential: &str) -> String {
    format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n{credential}\r\n")
}

fn id(text: &str) -> RootId {
    text.parse().expect("id")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_proves_its_agent() {
    let s = Setting::new().await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let web = s.agents_ca.issue("web", &Wanted::default());
    let mut client = s.client(&web).await;
    assert_eq!(client.stream.get_ref().1.alpn_protocol(), None);
    for _ in 0..2 {
        client.send(get(&host, "")).await;
        assert_eq!(client.answer().await.status, 200);
    }
    let (decision, outcome) = s.gateway.exchange(0).await;
    let agent = decision.agent.expect("agent");
    assert_eq!((agent.agent.as_str(), agent.method), ("web", IdentityMethod::Mtls));
    let credential = agent.credential.expect("credential");
    assert_eq!(
        (credential.issuer, credential.subject.as_deref()),
        (Some(id("corporate")), Some("web.agents.test"))
    );
    assert!(credential.id.starts_with("sha256:") && agent.certificate.is_none());
    assert_eq!(outcome.reason, None);
    // Policy may hold it to this very one.
    let held_to = |hash: &str| {
        format!(
            "{POLICY}@id(\"held\") forbid (principal, action == Action::\"http\", resource)
            unless {{ context has certificate && context.certificate == \"{hash}\" }};"
        )
    };
    for (hash, status) in [("sha256:00", 403), (credential.id.as_str(), 200)] {
        assert_eq!(s.gateway.publish_policy(&held_to(hash)).await, "");
        client.send(get(&host, "")).await;
        assert_eq!(client.answer().await.status, status, "{hash}");
    }
    assert_eq!(s.gateway.publish_policy(POLICY).await, "");
    // By the registry and policy: who is not there is nobody, and who may nothing is denied.
    for (file, names, reason) in [
        ("other", "DNS:other.agents.test", "policy_denied"),
        ("gone", "DNS:gone.agents.test", "agent_unknown"),
    ] {
        let pair = s.agents_ca.issue(file, &Wanted { names, ..Wanted::default() });
        let answer = s.ask(&pair, &get(&host, "")).await;
        let status = if reason == "agent_unknown" { 407 } else { 403 };
        assert_eq!((answer.status, answer.reason()), (status, reason));
    }
    let records = s.gateway.records(6).await;
    let unknown = records.iter().find(|r| r.reason == Some(DropReason::AgentUnknown)).expect("recorded");
    let detail = unknown.detail.as_deref().expect("whose it is");
    assert!(
        detail.starts_with("agent `default/gone` by the credential `sha256:") && detail.contains("corporate"),
        "{detail}"
    );
    // Without a certificate a key or a token will do, as in clear.
    let mut stranger = s.stranger().await;
    stranger.send(get(&host, &s.gateway.web())).await;
    assert_eq!(stranger.answer().await.status, 200);
    stranger.send(get(&host, "")).await;
    let refused = stranger.answer().await;
    assert_eq!((refused.status, refused.reason()), (407, "credential_missing"));
}

/// Bytes of every size, both ways, and the end of each way on its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_carry_what_is_enciphered_twice() {
    let s = Setting::new().await;
    let upstream = Upstream::tls("127.1.0.1", "api.allowed.test").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let web = s.agents_ca.issue("web", &Wanted::default());
    let mut client = s.client(&web).await;
    client.send(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    assert_eq!(client.answer_head().await.status, 200);
    let mut roots = RootCertStore::empty();
    roots.add(upstream.certificate.clone().expect("certificate")).expect("root");
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("api.allowed.test").expect("name");
    let inner =
        TlsConnector::from(Arc::new(config)).connect(name, client.stream).await.expect("inner handshake");
    // It sends back what it gets, at once: who only writes would have both wait.
    let (mut reader, mut writer) = tokio::io::split(inner);
    let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let mut got = vec![0; sent.len()];
    let write = async {
        writer.write_all(&sent).await?;
        writer.flush().await
    };
    let (wrote, read) = tokio::join!(write, reader.read_exact(&mut got));
    wrote.expect("sent");
    read.expect("received");
    assert!(got == sent);
    drop((reader, writer));
    let (decision, outcome) = s.gateway.exchange(0).await;
    assert_eq!((decision.verdict, decision.action.as_deref()), (Some(Verdict::Allow), Some("tunnel")));
    assert!(outcome.bytes_sent > Some(300_000), "{outcome:?}");
}

/// All that can be wrong with a certificate: nothing passes, and the client is told what to do and never what was wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_prove_nobody() {
    let s = Setting::new().await;
    // What passes there would be answered, so that each case says itself that it failed.
    let (never, upstream) = (Upstream::http("127.1.0.1").await, Upstream::http("127.1.0.1").await);
    let host = format!("api.allowed.test:{}", never.address.port());
    let below = s.agents_ca.below("below");
    let spire = Authority::new("spire");
    let narrow = Authority::with("narrow", "nameConstraints = critical, permitted;DNS:elsewhere.test");
    let domain = trust_domain(&spire, "");
    let mut constrained = record("narrow", &narrow);
    constrained.mapping =
        serde_json::from_str(r#"{"agent":{"from":"dns","suffix":".agents.test"}}"#).expect("rule");
    let published = s.gateway.publish(|s| {
        s.roots.trust_domains.push(domain);
        s.roots.authorities.push(constrained);
    });
    assert_eq!(published.await, "");
    let web = Wanted::default;
    let revoked = s.agents_ca.issue("revoked", &web());
    s.agents_ca.revoke(&revoked);
    let good = s.agents_ca.issue("good", &web());
    let list = s.agents_ca.list(3600);
    s.set(|ca| (ca.revocation_lists, ca.revocation) = (list, Revocation::Leaf)).await;
    let alone = Authority::new("web.agents.test");
    let forger = Authority::new("agents' authority");
    let by = |ca: &Authority, file: &str, wanted: Wanted<'_>| ca.issue(file, &wanted);
    let names = |names: &'static str| Wanted { names, ..Wanted::default() };
    let cases = [
        ("expired", by(&s.agents_ca, "expired", Wanted { from_s: -7200, until_s: -1, ..web() })),
        ("not yet", by(&s.agents_ca, "later", Wanted { from_s: 3600, ..web() })),
        ("wrong usage", by(&s.agents_ca, "server", Wanted { usage: "serverAuth", ..web() })),
        (
            "an authority's own",
            by(&s.agents_ca, "as-ca", Wanted { more: "basicConstraints = CA:TRUE", ..web() }),
        ),
        ("intermediate missing", by(&below, "below", web())),
        ("signed by nobody", Pair { certificate: alone.file(), key: alone.file().with_extension("key") }),
        ("another's authority", by(&forger, "forged", web())),
        ("revoked", revoked),
        ("outside constraints", by(&narrow, "narrow", web())),
        ("no name", by(&s.agents_ca, "none", names("DNS:web.elsewhere.test"))),
        ("two names", by(&s.agents_ca, "two", names("DNS:web.agents.test,DNS:other.agents.test"))),
        (
            "two SPIFFE IDs",
            by(&spire, "ids", names("URI:spiffe://d.test/agent/web,URI:spiffe://d.test/agent/other")),
        ),
        ("an SVID of another's", by(&s.agents_ca, "svid", names("URI:spiffe://d.test/agent/web"))),
        ("a trust domain's own ID", by(&spire, "domain", names("URI:spiffe://d.test"))),
        ("an SVID of nobody's domain", by(&spire, "foreign", names("URI:spiffe://e.test/agent/web"))),
    ];
    let mut pages = Vec::new();
    for (what, pair) in &cases {
        for request in [get(&host, ""), format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n")] {
            let answer = s.ask(pair, &request).await;
            assert_eq!((answer.status, answer.reason()), (407, "credential_invalid"), "{what}");
            let own = answer.field("x-clawgress-request").expect("an id").to_owned();
            pages.push(answer.text().replace(&own, "ID"));
        }
    }
    assert!(pages.iter().all(|page| *page == pages[0]), "{pages:#?}");
    // A list that is too old clears nobody.
    let old = s.agents_ca.list(-1);
    s.set(|ca| ca.revocation_lists = old).await;
    assert_eq!(s.ask(&good, &get(&host, "")).await.reason(), "credential_invalid");
    let records = s.gateway.records(2 * cases.len() + 1).await;
    let denied =
        |r: &&AuditRecord| r.kind == RecordKind::Decision && r.reason == Some(DropReason::CredentialInvalid);
    assert_eq!(records.iter().filter(denied).count(), 2 * cases.len() + 1);
    assert_eq!((never.connections(), never.requests()), (0, vec![]));
    // And what is right still passes: with its intermediate, and as an SVID.
    s.set(|ca| (ca.revocation_lists, ca.revocation) = (String::new(), Revocation::Off)).await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let whole = by(&below, "whole", web()).with(&[below.pem()]);
    assert_eq!(s.ask(&whole, &get(&host, "")).await.status, 200);
    let svid = by(&spire, "right", names("URI:spiffe://d.test/agent/web"));
    assert_eq!(s.ask(&svid, &get(&host, "")).await.status, 200);
    let records = s.gateway.records(2 * cases.len() + 3).await;
    let is_svid = |r: &AuditRecord| r.agent.as_ref().is_some_and(|a| a.method == IdentityMethod::SpiffeX509);
    assert!(records.iter().any(is_svid), "{records:#?}");
}

/// Shows a certificate and signs by a key, whether they belong together or not.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What fails before anything is asked: a certificate whose key the client doesn't have, a chain without end, and
/// what is no TLS 1.3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_handshake_refuses() {
    let s = Setting::new().await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let (web, other) =
        (s.agents_ca.issue("web", &Wanted::default()), s.agents_ca.issue("other", &Wanted::default()));
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let sign = |pair: &Pair| provider.key_provider.load_private_key(key(pair)).expect("key");
    let shows = async |chain: Vec<CertificateDer<'static>>, signer: &Pair| {
        let shown = Shows(Arc::new(CertifiedKey::new(chain, sign(signer))));
        // In TLS 1.3 the client is done before the server has looked at its certificate.
        let Ok(stream) = s.handshake(s.config().with_client_cert_resolver(Arc::new(shown))).await else {
            return;
        };
        let mut client = Client::over(stream);
        client.send(get(&host, "")).await;
        assert!(client.is_closed(PATIENCE).await);
    };
    shows(chain(&web), &other).await;
    shows(chain(&web).into_iter().cycle().take(18).collect(), &web).await;
    let fat = Wanted { more: "nsComment = ASN1:FORMAT:HEX,OCT:", ..Wanted::default() };
    let fat_comment = format!("1.2.3.4 = ASN1:FORMAT:HEX,OCT:{}", "00".repeat(20_000));
    let fat = s.agents_ca.issue("fat", &Wanted { more: &fat_comment, ..fat });
    shows(chain(&fat), &fat).await;
    let garbage = vec![CertificateDer::from(vec![0x30, 3, 2, 1, 1])];
    shows(garbage, &web).await;
    let mut clear = Client::connect(s.gateway.proxy_tls).await;
    clear.send(get(&host, &s.gateway.web())).await;
    let said = clear.rest().await;
    assert!(!said.starts_with(b"HTTP"), "{said:?}");
    let records = s.gateway.records(5).await;
    let reasons: Vec<_> =
        records.iter().filter(|r| r.kind == RecordKind::Decision).map(|r| r.reason).collect();
    let (invalid, malformed) = (Some(DropReason::CredentialInvalid), Some(DropReason::TlsMalformed));
    assert_eq!(reasons, [invalid, invalid, invalid, invalid, malformed]);
    // Who doesn't trust the proxy has asked nothing. Nor who speaks TLS 1.2, or another protocol inside.
    let nobody = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    s.handshake(nobody).await.expect_err("not trusted");
    let mut other = s.config().with_no_client_auth();
    other.alpn_protocols = vec![b"h3".to_vec()];
    s.handshake(other).await.expect_err("no protocol in common");
    assert_eq!(upstream.connections(), 0);
    assert_eq!(s.ask(&web, &get(&host, "")).await.status, 200);
}

/// Nothing outlives a connection that could stand for a certificate: each handshake is a full one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_not_resumed() {
    let s = Setting::new().await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let web = s.agents_ca.issue("web", &Wanted::default());
    let mut config = s.config().with_client_auth_cert(chain(&web), key(&web)).expect("pair");
    config.enable_early_data = true;
    let config = Arc::new(config);
    for _ in 0..2 {
        let mut client = Client::over(s.handshake(Arc::clone(&config)).await.expect("handshake"));
        client.send(get(&host, "")).await;
        assert_eq!(client.answer().await.status, 200);
        let session = client.stream.get_ref().1;
        assert_eq!(
            (session.handshake_kind(), session.tls13_tickets_received()),
            (Some(HandshakeKind::Full), 0)
        );
    }
}

/// A certificate and a key or token: both count, and both for the same agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_credentials_prove_one_agent() {
    let s = Setting::new().await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let web = s.agents_ca.issue("web", &Wanted::default());
    let forger = Authority::new("agents' authority");
    let forged = forger.issue("web", &Wanted::default());
    let own = s.gateway.web();
    let others = s.gateway.authorization("other", &s.gateway.other_key);
    let wrong = s.gateway.authorization("web", &s.gateway.other_key);
    for (pair, credential, expected) in [
        (&web, &own, (200, "none")),
        (&web, &others, (403, "identity_conflict")),
        (&web, &wrong, (407, "credential_invalid")),
        (&forged, &own, (407, "credential_invalid")),
    ] {
        let answer = s.ask(pair, &get(&host, credential)).await;
        assert_eq!((answer.status, answer.reason()), expected);
        let mut client = s.client(pair).await;
        client.send(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{credential}\r\n")).await;
        assert_eq!(client.answer_head().await.reason() == "none", expected.0 == 200);
    }
    let (decision, _) = s.gateway.exchange(0).await;
    let agent = decision.agent.expect("agent");
    assert_eq!(agent.method, IdentityMethod::ApiKey);
    let certificate = agent.certificate.expect("certificate");
    assert!(certificate.id.starts_with("sha256:") && certificate.issuer == Some(id("corporate")));
    assert!(agent.credential.expect("key").issuer.is_none());
    // What both opened ends with either.
    let greeting = Upstream::server_first("127.1.0.1").await;
    let raw = format!("raw.allowed.test:{}", greeting.address.port());
    let mut client = s.client(&web).await;
    client.send(format!("CONNECT {raw} HTTP/1.1\r\nHost: {raw}\r\n{own}\r\n")).await;
    client.until("220 hello\r\n").await;
    client.held.clear();
    s.gateway.publish(|s| s.keys.retain(|k| k.agent.name() != "web")).await;
    assert!(client.is_closed(PATIENCE).await);
}

/// Each change ends what it takes the ground from, and nothing else; so does time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_certificate_opened_ends_with_it() {
    let s = Setting::new().await;
    let greeting = Upstream::server_first("127.1.0.1").await;
    let host = format!("raw.allowed.test:{}", greeting.address.port());
    let issue = |file: &str| s.agents_ca.issue(file, &Wanted::default());
    let (kept, lost) = (issue("kept"), issue("lost"));
    let list = s.agents_ca.list(3600);
    s.set(|ca| (ca.revocation_lists, ca.revocation) = (list, Revocation::Leaf)).await;
    let (mut kept_open, mut lost_open) = (s.open(&kept, &host).await, s.open(&lost, &host).await);
    s.agents_ca.revoke(&lost);
    let revoking = s.agents_ca.list(3600);
    s.set(|ca| ca.revocation_lists.clone_from(&revoking)).await;
    assert!(lost_open.is_closed(Duration::from_secs(5)).await);
    assert_eq!(s.ask(&lost, &get(&host, "")).await.reason(), "credential_invalid");
    assert!(!kept_open.is_closed(Duration::from_millis(300)).await, "only what is revoked ends");
    // A list that nobody renews in time clears nobody any more, and the certificate ends by itself.
    let now_s = || jiff::Timestamp::now().as_second();
    // First of all: what is made later ends later.
    let ends_s = now_s() + 3;
    let soon = s.agents_ca.list(4);
    s.set(|ca| ca.revocation_lists = soon).await;
    let short = s.agents_ca.issue("short", &Wanted { until_s: 3, ..Wanted::default() });
    let mut short_open = s.open(&short, &host).await;
    assert!(short_open.is_closed(Duration::from_secs(8)).await && now_s() >= ends_s, "not before its time");
    assert!(kept_open.is_closed(Duration::from_secs(8)).await && now_s() > ends_s, "not before its time");
    // With a new list it opens again, and ends with its authority.
    s.set(|ca| ca.revocation_lists = revoking).await;
    let mut kept_open = s.open(&kept, &host).await;
    let mut by_mapping = s.open(&kept, &host).await;
    let table = r#"{"agent":{"from":"dns","table":{"web.agents.test":"other"}}}"#;
    let former = record("x", &s.agents_ca).mapping;
    s.set(|ca| ca.mapping = serde_json::from_str(table).expect("mapping")).await;
    assert!(by_mapping.is_closed(PATIENCE).await, "it stands for another agent");
    assert!(kept_open.is_closed(PATIENCE).await);
    s.set(|ca| ca.mapping = former).await;
    let mut kept_open = s.open(&kept, &host).await;
    s.gateway.publish(|s| s.roots.authorities.clear()).await;
    assert!(kept_open.is_closed(PATIENCE).await);
    let records = s.gateway.records(7).await;
    let ended = |r: &&AuditRecord| r.kind == RecordKind::Outcome && r.bytes_received == Some(11);
    let reasons: Vec<_> = records.iter().filter(ended).map(|r| r.reason).collect();
    assert_eq!(reasons, [Some(DropReason::CredentialInvalid); 6], "{records:#?}");
}

/// Each request is by the certificate as it counts then, over one connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_judged_for_each_request() {
    let s = Setting::new().await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let web = s.agents_ca.issue("web", &Wanted::default());
    let mut client = s.client(&web).await;
    let ask = async |client: &mut Tls| {
        client.send(get(&host, "")).await;
        let answer = client.answer().await;
        (answer.status, answer.reason().to_owned())
    };
    assert_eq!(ask(&mut client).await.0, 200);
    let table = r#"{"agent":{"from":"dns","table":{"web.agents.test":"other"}}}"#;
    s.set(|ca| ca.mapping = serde_json::from_str(table).expect("mapping")).await;
    assert_eq!(ask(&mut client).await.1, "policy_denied", "it is another agent's now");
    let former = record("x", &s.agents_ca).mapping;
    s.set(|ca| ca.mapping = former).await;
    assert_eq!(ask(&mut client).await.0, 200);
    s.gateway.publish(|s| s.agents[0].state = clawgress_identity::AgentState::Disabled).await;
    assert_eq!(ask(&mut client).await.1, "agent_disabled");
    s.gateway.publish(|s| s.agents[0].state = clawgress_identity::AgentState::Active).await;
    s.agents_ca.revoke(&web);
    let list = s.agents_ca.list(3600);
    s.set(|ca| (ca.revocation_lists, ca.revocation) = (list, Revocation::Leaf)).await;
    assert_eq!(ask(&mut client).await, (407, "credential_invalid".to_owned()));
}

/// The proxy's own certificate is renewed under way; what can't be used changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_s_certificate_is_renewed() {
    let s = Setting::new().await;
    let shown = async || {
        let stranger = s.stranger().await;
        stranger.stream.get_ref().1.peer_certificates().expect("a certificate")[0].clone()
    };
    let first = shown().await;
    let next = s.server_ca.issue("next", &server_names());
    let (certificate, key) = (fs::read(&next.certificate).expect("read"), fs::read(&next.key).expect("read"));
    // Of another key, until that is there too.
    fs::write(&s.server.certificate, &certificate).expect("write");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(shown().await, first);
    fs::write(&s.server.key, &key).expect("write");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while shown().await == first {
        assert!(tokio::time::Instant::now() < deadline, "never read again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(shown().await, chain(&next)[0]);
}

/// What the client says is cut off without an end is not taken for whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_ends_as_its_sides_do() {
    let s = Setting::new().await;
    let greeting = Upstream::server_first("127.1.0.1").await;
    let host = format!("raw.allowed.test:{}", greeting.address.port());
    let web = s.agents_ca.issue("web", &Wanted::default());
    let mut client = s.open(&web, &host).await;
    client.send("QUIT\r\n").await;
    tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.expect("close_notify");
    let mut rest = Vec::new();
    // The server's end comes as an end of TLS too: a connection that is only lost would be an error.
    tokio::time::timeout(PATIENCE, client.stream.read_to_end(&mut rest))
        .await
        .expect("in time")
        .expect("whole");
    let (_, outcome) = s.gateway.exchange(0).await;
    assert_eq!((outcome.reason, outcome.bytes_sent), (None, Some(6)), "{outcome:?}");
}
