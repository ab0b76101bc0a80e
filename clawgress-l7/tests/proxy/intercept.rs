//! TLS that is read: what is judged inside, by whose certificates, and when it ends.

use std::collections::BTreeSet;
use std::sync::Arc;

use clawgress_api::{AuditRecord, RecordKind, Verdict};
use clawgress_ebpf_common::DropReason;
use rustls::client::{EchGreaseConfig, EchMode};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::Client;
use crate::endpoints::{https, https_by};
use crate::harness::{Gateway, Options, PATIENCE, POLICY};
use crate::upstream::Upstream;

pub const HOST: &str = "read.allowed.test";

/// A gateway that reads, and a server behind it.
pub struct Site {
    pub gateway: Gateway,
    pub upstream: Upstream,
    _directory: TempDir,
}

pub type Inside = Client<TlsStream<TcpStream>>;

pub fn trusting(roots: &[CertificateDer<'static>], alpn: &[&str]) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    roots.iter().for_each(|root| store.add(root.clone()).expect("root"));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// As [`trusting`], of a client whose hello has ECH, as browsers' have to any server.
fn greasing(roots: &[CertificateDer<'static>]) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    roots.iter().for_each(|root| store.add(root.clone()).expect("root"));
    let suite = rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_128;
    let (public, _) = rustls::crypto::hpke::Hpke::generate_key_pair(suite).expect("key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_ech(EchMode::Grease(EchGreaseConfig::new(suite, public)))
        .expect("ECH")
        .with_root_certificates(store)
        .with_no_client_auth();
    Arc::new(config)
}

/// A configuration that reads TLS to servers whose authority is in `pem`, and `more`; and where that is kept.
fn reading(pem: &str, more: &str) -> (String, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("directory");
    let roots = directory.path().join("roots.pem");
    std::fs::write(&roots, pem).expect("written");
    (format!("[intercept]\nroots = [\"{}\"]\n{more}", roots.display()), directory)
}

impl Site {
    pub async fn start(policy: &'static str, more: &str) -> Site {
        let (upstream, pem) = https("127.1.0.1", HOST).await;
        Site::before(upstream, &pem, policy, more).await
    }

    /// Before this server, whose authority is in `pem`.
    pub async fn before(upstream: Upstream, pem: &str, policy: &'static str, more: &str) -> Site {
        let (more, directory) = reading(pem, more);
        Site::with(Options { policy: Some(policy), more, ..Options::default() }, upstream, directory).await
    }

    /// The same, whose gateway is a process of its own.
    pub async fn apart(upstream: Upstream, pem: &str, policy: &'static str) -> Site {
        let (more, directory) = reading(pem, "");
        let options = Options { policy: Some(policy), more, apart: true, ..Options::default() };
        Site::with(options, upstream, directory).await
    }

    async fn with(options: Options, upstream: Upstream, directory: tempfile::TempDir) -> Site {
        let gateway = Gateway::start(options).await;
        Site { gateway, upstream, _directory: directory }
    }

    pub fn port(&self) -> u16 {
        self.upstream.address.port()
    }

    /// A client that trusts the gateway's authority, or says why it doesn't.
    pub async fn shake(&self, host: &'static str, config: Arc<ClientConfig>) -> std::io::Result<Inside> {
        let (client, answer) = self.gateway.connect(&format!("{host}:{}", self.port())).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let name = ServerName::try_from(host).expect("name");
        let stream = TlsConnector::from(config).connect(name, client.stream).await?;
        Ok(Client::over(stream))
    }

    pub async fn inside(&self) -> Inside {
        let config = trusting(&[self.gateway.authority.certificate()], &["http/1.1"]);
        self.shake(HOST, config).await.expect("handshake")
    }

    pub fn host(&self) -> String {
        format!("{HOST}:{}", self.port())
    }

    fn get(&self, path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host())
    }

    /// The one record of `kind` that fits.
    pub async fn record(&self, kind: RecordKind, fits: impl Fn(&AuditRecord) -> bool) -> AuditRecord {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let records = self.gateway.control.records();
            if let Some(found) = records.iter().find(|r| r.kind == kind && fits(r)) {
                return found.clone();
            }
            assert!(tokio::time::Instant::now() < deadline, "none in {records:#?}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

fn is_tls(record: &AuditRecord) -> bool {
    record.action.as_deref() == Some("tls")
}

/// As a target in absolute form has it, which every server has to take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_inside_is_of_the_host_that_was_shown_and_of_its_scheme() {
    let site = Site::start(POLICY, "").await;
    for (target, host, want) in [
        ("https://api.allowed.test:PORT/", "api.allowed.test:PORT", (421, "sni_mismatch")),
        ("https://read.allowed.test/", "read.allowed.test", (421, "sni_mismatch")),
        ("https://read.allowed.test:PORT/", "api.allowed.test:PORT", (400, "http_malformed")),
        ("http://read.allowed.test:PORT/", "read.allowed.test:PORT", (400, "http_malformed")),
    ] {
        let mut client = site.inside().await;
        let raw = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        client.send(raw.replace("PORT", &site.port().to_string())).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.reason()), want, "{target}");
    }
    assert!(site.upstream.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_inside_is_judged_and_recorded() {
    let site = Site::start(POLICY, "").await;
    let mut client = site.inside().await;
    assert_eq!(client.stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    for path in ["/ok", "/again"] {
        client.send(site.get(path)).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    }
    client.send(site.get("/denied")).await;
    let denied = client.answer().await;
    assert_eq!((denied.status, denied.reason()), (403, "policy_denied"));
    assert_eq!(denied.field("proxy-authenticate"), None);
    client.send(format!("GET / HTTP/1.1\r\nHost: {}\r\nX-Forwarded-For: 1.1.1.1\r\nProxy-Authorization: Basic eDp5\r\n\r\n", site.host())).await;
    assert_eq!(client.answer().await.status, 200, "the connection lives on");
    // As to a proxy, which every server has to take (RFC 9112 section 3.2.2).
    client.send(format!("GET https://{0}/whole?q HTTP/1.1\r\nHost: {0}\r\n\r\n", site.host())).await;
    assert_eq!(client.answer().await.status, 200);
    assert!(
        site.upstream.requests().last().is_some_and(|head| head.starts_with("GET /whole?q HTTP/1.1\r\n"))
    );
    client.send(format!("GET https://{0}/denied HTTP/1.1\r\nHost: {0}\r\n\r\n", site.host())).await;
    assert_eq!(client.answer().await.reason(), "policy_denied");
    // What it was shown a certificate for is all it may ask for.
    client.send(format!("GET / HTTP/1.1\r\nHost: api.allowed.test:{}\r\n\r\n", site.port())).await;
    let other = client.answer().await;
    assert_eq!((other.status, other.reason()), (421, "sni_mismatch"));
    drop(client);

    let seen = site.upstream.requests();
    assert_eq!(seen.len(), 4, "{seen:?}");
    assert!(seen.iter().all(|head| head.to_lowercase().contains(&format!("host: {}\r\n", site.host()))));
    assert!(!seen.concat().to_lowercase().contains("x-forwarded-for"));
    assert!(!seen.concat().to_lowercase().contains("proxy-authorization"));
    let opened = site.record(RecordKind::Decision, is_tls).await;
    assert!(opened.intercepted && opened.verdict == Some(Verdict::Allow), "{opened:?}");
    assert_eq!(opened.policies, ["tls"]);
    assert_eq!(opened.destination.host.as_deref(), Some(HOST));
    let ended = site.record(RecordKind::Outcome, is_tls).await;
    assert_eq!((ended.request.clone(), ended.reason, ended.status), (opened.request, None, Some(200)));
    assert!(ended.bytes_sent > Some(500) && ended.bytes_received > Some(500), "{ended:?}");
    let at = |path: &'static str| move |r: &AuditRecord| r.destination.path.as_deref() == Some(path);
    let first = site.record(RecordKind::Decision, at("/ok")).await;
    assert_eq!((first.action.as_deref(), first.intercepted), (Some("http"), true));
    assert_eq!(first.policies, ["http", "net", "tls"]);
    assert_eq!(first.attributes.expect("attributes").scheme.as_deref(), Some("https"));
    assert_eq!(first.agent.expect("agent").agent, "web");
    let outcome = site.record(RecordKind::Outcome, at("/ok")).await;
    assert_eq!(outcome.status, Some(200));
    assert!(outcome.bytes_received > Some(0) && outcome.intercepted);
    let denied = site.record(RecordKind::Decision, at("/denied")).await;
    assert!(denied.intercepted && denied.verdict == Some(Verdict::Deny));
    let misdirected = |r: &AuditRecord| r.reason.is_some_and(|r| r.name() == "sni_mismatch");
    let misdirected = site.record(RecordKind::Outcome, misdirected).await;
    assert_eq!((misdirected.destination.host.as_deref(), misdirected.status), (Some(HOST), Some(421)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_remembered_and_sessions_are_not() {
    let site = Site::start(POLICY, "").await;
    let config = trusting(&[site.gateway.authority.certificate()], &[]);
    let mut shown = Vec::new();
    for _ in 0..3 {
        let mut client = site.shake(HOST, Arc::clone(&config)).await.expect("handshake");
        client.send(site.get("/")).await;
        assert_eq!(client.answer().await.status, 200);
        let connection = client.stream.get_ref().1;
        assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full), "no session is resumed");
        shown.push(connection.peer_certificates().expect("certificates").to_vec());
    }
    assert!(shown.iter().all(|chain| *chain == shown[0]));
    let asked = site.gateway.authority.asked.lock().clone();
    assert_eq!(asked.len(), 1, "one certificate for all");
    assert_eq!((asked[0].host.as_str(), asked[0].public_key.len()), (HOST, 65));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_effect_beats_a_tunnel_and_an_exclusion_beats_the_effect() {
    const READ: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal, action == Action::"http", resource);
@id("tls") permit (principal, action == Action::"tls", resource);
@id("tunnel") permit (principal, action == Action::"tunnel", resource) when { context.protocol == "tls" };
@id("read") @effect("intercept") permit (principal, action == Action::"tunnel", resource);
"#;
    let site = Site::start(READ, "exclude = [\"api.allowed.test\"]\n").await;
    let mut client = site.inside().await;
    client.send(site.get("/")).await;
    assert_eq!(client.answer().await.status, 200);
    drop(client);
    let read = site.record(RecordKind::Decision, is_tls).await;
    let effects: Vec<_> = read.effects.iter().map(|e| (e.policy.as_str(), e.effect.as_str())).collect();
    assert_eq!((effects, read.intercepted), (vec![("read", "intercept")], true));
    // The server's own certificate is what an excluded host's client sees: unread.
    let config = trusting(&[site.gateway.authority.certificate()], &[]);
    let error = site.shake("api.allowed.test", config).await.expect_err("not the gateway's").to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
    let tunnelled = |r: &AuditRecord| r.action.as_deref() == Some("tunnel");
    let tunnelled = site.record(RecordKind::Decision, tunnelled).await;
    assert_eq!((tunnelled.verdict, tunnelled.intercepted), (Some(Verdict::Allow), false));
    assert!(tunnelled.effects.is_empty());
    assert_eq!(site.gateway.authority.asked.lock().len(), 1);

    // Without the table nothing is read, and the effect denies.
    let gateway = Gateway::start(Options { policy: Some(READ), ..Options::default() }).await;
    let (_, answer) = gateway.connect(&format!("{HOST}:{}", site.port())).await;
    assert_eq!((answer.status, answer.reason()), (403, "inspection_required"));
    let (decision, _) = gateway.exchange(0).await;
    assert_eq!(decision.policies, ["read"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_may_hide_a_name_is_read_or_refused_as_policy_says() {
    const SHOWN: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal, action == Action::"http", resource);
@id("tls") permit (principal, action == Action::"tls", resource);
@id("tunnel") permit (principal, action == Action::"tunnel", resource) when { context.protocol == "tls" };
"#;
    const ANY: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("tls") permit (principal, action == Action::"tls", resource);
@id("tunnel") permit (principal, action == Action::"tunnel", resource) when { ["tls", "tls_ech"].contains(context.protocol) };
"#;
    const HELD: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("tls") permit (principal, action == Action::"tls", resource);
@id("tunnel") permit (principal, action == Action::"tunnel", resource);
@id("no-tls") forbid (principal, action == Action::"tunnel", resource) when { context.protocol == "tls" };
"#;
    // Read, by the name that it shows; a hello that shows all passes.
    let site = Site::start(SHOWN, "").await;
    let authority = [site.gateway.authority.certificate()];
    let mut client = site.shake(HOST, greasing(&authority)).await.expect("the gateway's certificate");
    client.send(site.get("/")).await;
    assert_eq!(client.answer().await.status, 200);
    drop(client);
    let read = site.record(RecordKind::Decision, is_tls).await;
    assert!(read.intercepted && read.verdict == Some(Verdict::Allow), "{read:?}");
    let error = site.shake(HOST, trusting(&authority, &[])).await.expect_err("the server's own").to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");

    // Where nothing is read: refused, or let through by who says so.
    for (policy, verdict, reason) in [
        (SHOWN, Verdict::Deny, Some(DropReason::InspectionRequired)),
        (ANY, Verdict::Allow, None),
        // No forbid is got round by what a hello seems to hide.
        (HELD, Verdict::Deny, Some(DropReason::InspectionRequired)),
    ] {
        let gateway = Gateway::start(Options { policy: Some(policy), ..Options::default() }).await;
        let (client, answer) = gateway.connect(&site.host()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let name = ServerName::try_from(HOST).expect("name");
        let shaken = TlsConnector::from(greasing(&authority)).connect(name, client.stream).await;
        let error = shaken.expect_err("no certificate of the gateway's").to_string();
        assert_eq!(error.contains("invalid peer certificate"), verdict == Verdict::Allow, "{error}");
        let (decision, _) = gateway.exchange(0).await;
        assert_eq!((decision.verdict, decision.reason), (Some(verdict), reason), "{decision:?}");
        let attributes = decision.attributes.expect("attributes");
        assert_eq!(attributes.protocol.as_deref(), Some("tls_ech"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_policy_wants_read_passes_no_tunnel_as_something_else() {
    const READ: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("tls") permit (principal, action == Action::"tls", resource);
@id("tunnel") permit (principal, action == Action::"tunnel", resource);
@id("read") @effect("intercept") permit (principal, action == Action::"tunnel", resource);
"#;
    let site = Site::start(READ, "").await;
    let (mut client, answer) = site.gateway.connect(&site.host()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    client.send("\0neither TLS nor HTTP").await;
    let refused = site.record(RecordKind::Decision, |r| r.verdict == Some(Verdict::Deny)).await;
    assert_eq!(refused.reason, Some(DropReason::InspectionRequired), "{refused:?}");
    assert_eq!((refused.policies, refused.intercepted), (vec!["read".to_owned()], false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_read_is_denied_and_says_why() {
    let site = Site::start(POLICY, "exclude = [\"api.allowed.test\"]\n").await;
    let outcome = |reason: &'static str| {
        let site = &site;
        async move { site.record(RecordKind::Outcome, |r| r.reason.is_some_and(|r| r.name() == reason)).await }
    };
    // A client that doesn't know the authority.
    let stranger = rcgen::generate_simple_self_signed(["x.test".to_owned()]).expect("certificate");
    let config = trusting(&[stranger.cert.der().clone()], &[]);
    site.shake(HOST, config).await.expect_err("not trusted");
    let distrusted = outcome("authority_distrusted").await;
    assert!(distrusted.intercepted && distrusted.verdict == Some(Verdict::Allow));
    assert!(distrusted.bytes_received > Some(0));
    // One that speaks only what is not read.
    let config = trusting(&[site.gateway.authority.certificate()], &["h3"]);
    let error = site.shake(HOST, config).await.expect_err("no protocol").to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    outcome("upgrade_unsupported").await;
    assert_eq!(site.upstream.connections(), 0, "nobody was reached");
    // A host that nothing is signed for.
    let refused = Site::start(POLICY, "").await;
    *refused.gateway.authority.refuses.lock() = true;
    let config = trusting(&[refused.gateway.authority.certificate()], &[]);
    refused.shake(HOST, config).await.expect_err("no certificate");
    let unavailable = |r: &AuditRecord| r.reason.is_some_and(|r| r.name() == "interception_unavailable");
    let denied = refused.record(RecordKind::Outcome, unavailable).await;
    assert_eq!((denied.verdict, denied.intercepted), (Some(Verdict::Deny), false));
    // Whoever tries again does not have it asked again.
    for _ in 0..3 {
        let config = trusting(&[refused.gateway.authority.certificate()], &[]);
        refused.shake(HOST, config).await.expect_err("no certificate");
    }
    assert_eq!(refused.gateway.authority.asked.lock().len(), 1);
    // A keys role that is away: hosts that are known go on.
    let mut site = site;
    let mut client = site.inside().await;
    client.send(site.get("/")).await;
    assert_eq!(client.answer().await.status, 200);
    site.gateway.kill_keys();
    client.send(site.get("/")).await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_proves_nothing_is_a_502_with_an_explanation() {
    let (other, _) = https("127.1.0.1", "other.allowed.test").await;
    let expired = {
        let mut params = rcgen::CertificateParams::new([HOST.to_owned()]).expect("name");
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let key = rcgen::KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("certificate");
        (certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()), certificate.pem())
    };
    let (ca, unknown) = (expired.2.clone(), https("127.1.0.1", HOST).await.0);
    let expired = https_by("127.1.0.1", expired.0, expired.1).await;
    for upstream in [other, unknown, expired] {
        let site = Site::before(upstream, &ca, POLICY, "").await;
        let mut client = site.inside().await;
        client.send(site.get("/")).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.reason()), (502, "upstream_untrusted"));
        assert!(answer.text().contains("certificate has expired, is for another name"), "{}", answer.text());
        assert_eq!(site.upstream.requests().len(), 0);
        let outcome = |r: &AuditRecord| r.action.as_deref() == Some("http");
        let outcome = site.record(RecordKind::Outcome, outcome).await;
        assert_eq!((outcome.verdict, outcome.status), (Some(Verdict::Allow), Some(502)));
        assert_eq!(outcome.reason.map(clawgress_ebpf_common::DropReason::name), Some("upstream_untrusted"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_ends_with_the_permission_and_with_quarantine() {
    for quarantined in [false, true] {
        let site = Site::start(POLICY, "").await;
        let mut client = site.inside().await;
        client.send(site.get("/")).await;
        assert_eq!(client.answer().await.status, 200);
        let reason = if quarantined {
            site.gateway.isolate(&[1]).await;
            "agent_quarantined"
        } else {
            let forbids =
                format!("{POLICY}@id(\"no\") forbid (principal, action == Action::\"tls\", resource);");
            assert_eq!(site.gateway.publish_policy(&forbids).await, "");
            "policy_forbidden"
        };
        assert!(client.is_closed(PATIENCE).await, "{reason}");
        let ended = site.record(RecordKind::Outcome, is_tls).await;
        assert_eq!(ended.reason.map(clawgress_ebpf_common::DropReason::name), Some(reason));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_changed_as_policy_says_after_they_were_judged() {
    const CHANGE: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal, action == Action::"http", resource);
@id("tls") permit (principal, action == Action::"tls", resource);
@id("a") @effect("transform") @set_header("X-Team: first") @remove_header("X-Debug") permit (principal, action == Action::"http", resource);
@id("b") @effect("transform") @set_header("X-Team: second") permit (principal, action == Action::"http", resource);
@id("c") @effect("transform") @remove_header("x-team") permit (principal, action == Action::"http", resource) when { context.path == "/c" };
@id("d") @effect("transform") @set_header("X-Never: 1") permit (principal, action == Action::"http", resource) when { context.path == "/d" };
"#;
    let site = Site::start(CHANGE, "").await;
    let sent = |heads: Vec<String>| heads.last().expect("a request").to_lowercase();
    // Servers that take `_` for `-` would see another team; and a client takes out its own alone.
    let fields = "X-Team: mine\r\nX-Team: more\r\nX_Team: admin\r\nx-debug: 1\r\nX_Debug: 1\r\nX-Kept: 1\r\nConnection: x-team\r\n";
    let check = |head: &str| {
        let head = head.replace('_', "-");
        let teams: Vec<&str> = head.lines().filter(|line| line.starts_with("x-team")).collect();
        assert_eq!(teams, ["x-team: second"], "{head}");
        assert!(
            !head.contains("x-debug") && !head.contains("x-never") && head.contains("x-kept: 1"),
            "{head}"
        );
    };
    let mut client = site.inside().await;
    client.send(format!("GET /c HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", site.host())).await;
    assert_eq!(client.answer().await.status, 200);
    check(&sent(site.upstream.requests()));
    let record = site.record(RecordKind::Decision, |r| r.destination.path.as_deref() == Some("/c")).await;
    let effects: Vec<_> = record.effects.iter().map(|e| (e.policy.as_str(), e.effect.as_str())).collect();
    assert_eq!(effects, [("a", "transform"), ("b", "transform"), ("c", "transform")]);

    let clear = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", clear.address.port());
    let request =
        format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n{}{fields}\r\n", site.gateway.web());
    assert_eq!(site.gateway.ask(&request).await.status, 200);
    check(&sent(clear.requests()));
}

/// One name, however its client writes it: in what it asks the proxy, in its hello, and inside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_odd_spelling_is_the_same_host_in_every_place() {
    let site = Site::start(POLICY, "").await;
    let (port, roots) = (site.port(), [site.gateway.authority.certificate()]);
    for (asked, shown, inside) in [
        ("READ.Allowed.TEST", "read.allowed.test", "Read.ALLOWED.test."),
        ("read.allowed.test.", "READ.allowed.test", "read.allowed.test"),
    ] {
        let (client, answer) = site.gateway.connect(&format!("{asked}:{port}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let name = ServerName::try_from(shown).expect("name");
        let connector = TlsConnector::from(trusting(&roots, &["http/1.1"]));
        let mut client = Client::over(connector.connect(name, client.stream).await.expect("handshake"));
        client.send(format!("GET /odd HTTP/1.1\r\nHost: {inside}:{port}\r\n\r\n")).await;
        assert_eq!(client.answer().await.status, 200, "{asked} {shown} {inside}");
        client.send(format!("GET /other HTTP/1.1\r\nHost: READ.allowed.tes:{port}\r\n\r\n")).await;
        assert_eq!(client.answer().await.reason(), "sni_mismatch");
    }
    assert_eq!(site.upstream.requests().len(), 2);
    assert!(site.upstream.requests().iter().all(|head| head.contains(&format!("Host: {HOST}:{port}\r\n"))));
    let record = site.record(RecordKind::Decision, |r| r.destination.path.as_deref() == Some("/odd")).await;
    assert_eq!(record.destination.host.as_deref(), Some(HOST));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_share_no_connection_to_a_server() {
    const REQUESTS: usize = 8;
    let site = Site::start(
        r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal, action == Action::"http", resource);
@id("tls") permit (principal, action == Action::"tls", resource);
"#,
        "",
    )
    .await;
    let config = trusting(&[site.gateway.authority.certificate()], &[]);
    let ask = async |user: &str, key: &str| {
        let (mut client, target) = (site.gateway.client().await, site.host());
        let credential = site.gateway.authorization(user, key);
        client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{credential}\r\n")).await;
        assert_eq!(client.answer_head().await.status, 200);
        let name = ServerName::try_from(HOST).expect("name");
        let stream =
            TlsConnector::from(Arc::clone(&config)).connect(name, client.stream).await.expect("handshake");
        let mut client = Client::over(stream);
        for _ in 0..REQUESTS {
            client.send(site.get("/")).await;
            assert_eq!(client.answer().await.status, 200);
        }
    };
    let (web, other) = (site.gateway.key.clone(), site.gateway.other_key.clone());
    ask("web", &web).await;
    ask("other", &other).await;
    let ports = site.upstream.seen.ports.lock().clone();
    let (of_web, of_other) = ports.split_at(REQUESTS);
    let [of_web, of_other] = [of_web, of_other].map(|ports| ports.iter().copied().collect::<BTreeSet<_>>());
    assert!(of_web.is_disjoint(&of_other), "{ports:?}");
    // A client that asks again at once may be before the connection is back in the pool.
    assert!(of_web.len() + of_other.len() < 2 * REQUESTS, "an agent's own are used again: {ports:?}");
}
