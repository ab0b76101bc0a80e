//! Base-URL endpoints, as clients use them that know no proxy: requests to the gateway itself, with the agent's key where
//! the server's would be.

use std::sync::Arc;

use clawgress_api::AuditRecord;
use clawgress_ebpf_common::DropReason;
use clawgress_identity::IdentityMethod;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Gateway, Options, POLICY};
use crate::tokens::{Idp, in_s, unsigned};
use crate::upstream::{Seen, Upstream};

/// Two endpoints of one server over TLS: by the authority that made its certificate, and by the system's.
pub struct Site {
    pub gateway: Gateway,
    pub upstream: Upstream,
    _directory: TempDir,
}

/// An HTTP server over TLS that answers each request with `ok`.
pub async fn https(ip: &str, name: &str) -> (Upstream, String) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("certificate");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    (https_by(ip, made.cert.der().clone(), key).await, made.cert.pem())
}

/// The same with this certificate and key.
pub async fn https_by(
    ip: &str,
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
) -> Upstream {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .expect("config");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let serve = move |stream: tokio::net::TcpStream, seen: Arc<Seen>| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let (mut held, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                held.extend_from_slice(&buffer[..n]);
                while let Some(at) = held.windows(4).position(|w| w == b"\r\n\r\n") {
                    let head: Vec<u8> = held.drain(..at + 4).collect();
                    seen.requests.lock().push(String::from_utf8_lossy(&head).into_owned());
                    let peer = stream.get_ref().0.peer_addr().expect("address");
                    seen.ports.lock().push(peer.port());
                    if head.to_ascii_lowercase().windows(7).any(|w| w == b"chunked") {
                        while !held.ends_with(b"0\r\n\r\n") {
                            let Ok(n @ 1..) = stream.read(&mut buffer).await else { return };
                            held.extend_from_slice(&buffer[..n]);
                            seen.bytes.lock().extend_from_slice(&buffer[..n]);
                        }
                        held.clear();
                    }
                    let answer = &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..];
                    let answer = if head.starts_with(b"HEAD") { &answer[..answer.len() - 2] } else { answer };
                    if stream.write_all(answer).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    Upstream::start(ip, None, serve).await
}

impl Site {
    async fn start() -> Site {
        Site::by(POLICY).await
    }

    /// With this policy.
    pub async fn by(policy: &'static str) -> Site {
        let directory = tempfile::tempdir().expect("directory");
        let (upstream, pem) = https("127.1.0.1", "api.allowed.test").await;
        let ca = directory.path().join("ca.pem");
        std::fs::write(&ca, pem).expect("written");
        let port = upstream.address.port();
        let more = format!(
            "[[endpoint]]\nname = \"llm\"\nupstream = \"https://api.allowed.test:{port}/base\"\nca = \"{}\"\n\
             [[endpoint]]\nname = \"unverified\"\nupstream = \"https://api.allowed.test:{port}\"\n\
             [[endpoint]]\nname = \"denied\"\nupstream = \"https://denied.test:{port}\"\n",
            ca.display()
        );
        let gateway = Gateway::start(Options { policy: Some(policy), more, ..Options::default() }).await;
        Site { gateway, upstream, _directory: directory }
    }

    /// Asks the gateway for `path` with these fields.
    async fn ask(&self, path: &str, fields: &str) -> crate::client::Answer {
        let proxy = self.gateway.proxy;
        self.gateway.ask(&format!("GET {path} HTTP/1.1\r\nHost: {proxy}\r\n{fields}\r\n")).await
    }

    /// A token in each of the fields that may hold one, and what its answers are.
    async fn present(&self, token: &str) -> Vec<crate::client::Answer> {
        let mut answers = Vec::new();
        for field in ["Authorization: Bearer", "x-clawgress-key:"] {
            answers.push(self.ask("/llm/v1/models", &format!("{field} {token}\r\n")).await);
        }
        answers
    }

    /// What the server got last, in lowercase.
    fn last(&self) -> String {
        self.upstream.requests().last().expect("a request").to_lowercase()
    }
}

fn agent(record: &AuditRecord) -> (&str, IdentityMethod) {
    let agent = record.agent.as_ref().expect("an agent");
    (agent.agent.as_str(), agent.method)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_key_stays_here_and_the_servers_goes_on() {
    let site = Site::start().await;
    let key = site.gateway.key.clone();
    for (number, (fields, kept)) in [
        (format!("Authorization: Bearer {key}\r\n"), None),
        (format!("X-Api-Key: {key}\r\n"), None),
        (format!("api-key: {key}\r\n"), None),
        (format!("x-goog-api-key: {key}\r\n"), None),
        (
            format!("x-clawgress-key: {key}\r\nAuthorization: Bearer sk-server\r\n"),
            Some("authorization: bearer sk-server"),
        ),
        (format!("Authorization: Bearer {key}\r\nx-api-key: sk-server\r\n"), Some("x-api-key: sk-server")),
        (
            format!("x-api-key: {key}\r\nAuthorization: Bearer sk-server\r\n"),
            Some("authorization: bearer sk-server"),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = site.ask("/llm/v1/models?a=b", &fields).await;
        assert_eq!(answer.status, 200, "{fields}: {answer:?}");
        let sent = site.last();
        assert!(sent.starts_with("get /base/v1/models?a=b http/1.1\r\n"), "{sent}");
        let host = format!("host: api.allowed.test:{}\r\n", site.upstream.address.port());
        assert!(sent.contains(&host), "{sent}");
        assert!(!sent.contains("claw_"), "no key of ours goes on: {sent}");
        assert_eq!(sent.contains("sk-server"), kept.is_some(), "{sent}");
        assert!(kept.is_none_or(|kept| sent.contains(kept)), "{sent}");
        let (decision, outcome) = site.gateway.exchange(number).await;
        assert_eq!(agent(&decision), ("web", IdentityMethod::ApiKey));
        assert_eq!((decision.action.as_deref(), outcome.status), (Some("http"), Some(200)));
        assert_eq!(
            decision.policies,
            ["http", "net", "tls"],
            "TLS is the gateway's, and asked for all the same"
        );
        assert_eq!(decision.destination.host.as_deref(), Some("api.allowed.test"));
        assert_eq!(decision.destination.path.as_deref(), Some("/base/v1/models"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_proves_nothing_gets_a_401_and_the_server_hears_nothing() {
    let site = Site::start().await;
    let (key, other) = (site.gateway.key.clone(), site.gateway.other_key.clone());
    let basic = clawgress_inspect::proxy_authorization::encode("web", &key);
    let spoilt = format!("{}0", &key[..key.len() - 1]);
    for (fields, reason) in [
        (String::new(), "credential_missing"),
        ("x-api-key: sk-server\r\n".into(), "credential_missing"),
        ("Authorization: Bearer sk-server\r\n".into(), "credential_invalid"),
        ("Authorization: Basic eDp5\r\n".into(), "credential_invalid"),
        (format!("Authorization: Bearer {spoilt}x\r\n"), "credential_invalid"),
        (format!("x-api-key: {}\r\n", &key[..20]), "credential_invalid"),
        (format!("x-api-key: {key}\r\nAuthorization: Bearer {other}\r\n"), "credential_invalid"),
        (format!("x-clawgress-key: {key}\r\nx-clawgress-key: {key}\r\n"), "credential_invalid"),
        // What would take a key along to the server counts for nothing.
        (format!("x-clawgress-key: {key}\r\nX-Other: a {key}\r\n"), "credential_invalid"),
        (format!("x-clawgress-key: {key}\r\nAuthorization: Token {key}\r\n"), "credential_invalid"),
        (format!("x-clawgress-key: {key}\r\nAuthorization: {basic}\r\n"), "credential_invalid"),
    ] {
        let answer = site.ask("/llm/v1/models", &fields).await;
        assert_eq!((answer.status, answer.reason()), (401, reason), "{fields}: {answer:?}");
        assert_eq!(answer.field("www-authenticate"), Some("Bearer realm=\"clawgress\""));
        assert_eq!(answer.field("proxy-authenticate"), None);
        let body = String::from_utf8(answer.body).expect("text");
        assert!(body.contains("x-api-key") && !body.contains("claw_"), "{body}");
    }
    // Nor who proves an agent that may not act.
    let fields = format!("x-api-key: {other}\r\n");
    let set = |state| {
        move |s: &mut clawgress_api::Snapshot<clawgress_policy::PolicyBundle>| s.agents[1].state = state
    };
    site.gateway.publish(set(clawgress_identity::AgentState::Disabled)).await;
    let answer = site.ask("/llm/v1/models", &fields).await;
    assert_eq!((answer.status, answer.reason()), (401, "agent_disabled"));
    assert!(answer.text().contains("enable the agent"), "{}", answer.text());
    site.gateway.publish(set(clawgress_identity::AgentState::Active)).await;
    // What is proved is not yet permitted.
    let fields = format!("Authorization: Bearer {other}\r\n");
    let answer = site.ask("/llm/v1/models", &fields).await;
    assert_eq!((answer.status, answer.reason()), (403, "policy_denied"));
    let fields = format!("Authorization: Bearer {key}\r\n");
    for (path, status, reason) in [
        ("/denied/v1", 403, "policy_denied"),
        ("/v1/models", 404, "endpoint_unknown"),
        ("/", 404, "endpoint_unknown"),
        (&format!("/llm/v1?key={key}"), 401, "credential_invalid"),
        ("/llm/../denied/x", 400, "http_malformed"),
        ("/llm/%2e%2e/x", 400, "http_malformed"),
        ("/llm//x", 400, "http_malformed"),
    ] {
        let answer = site.ask(path, &fields).await;
        assert_eq!((answer.status, answer.reason()), (status, reason), "{path}");
    }
    assert_eq!(site.upstream.requests().len(), 0);
    // Nor does a server that proves nothing get a request.
    let answer = site.ask("/unverified/v1", &fields).await;
    assert_eq!((answer.status, answer.reason()), (502, DropReason::UpstreamUntrusted.name()));
    assert_eq!(site.upstream.requests().len(), 0);
    let answer = site.ask("/llm/denied/x", &fields).await;
    assert_eq!(answer.status, 200, "policy is asked about the path that is sent: /base/denied/x");
}

/// A token where the server's key would be, or in the field that is the gateway's own: it proves its agent, and nothing of it
/// goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_token_stays_here_and_the_servers_key_goes_on() {
    let (site, idp) = (Site::start().await, Idp::new());
    let record = idp.record();
    assert_eq!(site.gateway.publish(|s| s.roots.issuers.push(record)).await, "");
    let token = idp.token("web", "t1", in_s(600));
    for (number, (fields, kept)) in [
        (format!("Authorization: Bearer {token}\r\n"), None),
        (format!("authorization: bearer {token}\r\n"), None),
        (format!("x-clawgress-key: {token}\r\n"), None),
        (
            format!("x-clawgress-key: {token}\r\nAuthorization: Bearer sk-server\r\n"),
            Some("authorization: bearer sk-server"),
        ),
        (format!("x-clawgress-key: {token}\r\nx-api-key: sk-server\r\n"), Some("x-api-key: sk-server")),
        (format!("Authorization: Bearer {token}\r\nx-api-key: sk-server\r\n"), Some("x-api-key: sk-server")),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = site.ask("/llm/v1/models", &fields).await;
        assert_eq!(answer.status, 200, "{fields}: {answer:?}");
        let sent = site.last();
        for part in token.to_lowercase().split('.') {
            assert!(!sent.contains(part), "nothing of the token goes on: {sent}");
        }
        assert!(!sent.contains("x-clawgress"), "{sent}");
        assert_eq!(sent.contains("sk-server"), kept.is_some(), "{sent}");
        assert!(kept.is_none_or(|kept| sent.contains(kept)), "{sent}");
        let (decision, outcome) = site.gateway.exchange(number).await;
        assert_eq!(agent(&decision), ("web", IdentityMethod::Jwt));
        let by = decision.agent.as_ref().and_then(|agent| agent.credential.as_ref()).expect("a credential");
        assert_eq!((by.id.as_str(), by.subject.as_deref()), ("t1", Some("agent:web")));
        assert_eq!((decision.action.as_deref(), outcome.status), (Some("http"), Some(200)));
        let recorded = serde_json::to_string(&decision).expect("json");
        assert!(token.split('.').all(|part| !recorded.contains(part)), "nor into the log: {recorded}");
    }
    // Each request is by its own token: policy permits the other agent nothing.
    for answer in site.present(&idp.token("other", "t2", in_s(600))).await {
        assert_eq!((answer.status, answer.reason()), (403, "policy_denied"));
    }
}

/// Whatever is wrong with a token, the client learns what to do and never what was wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_prove_nobody_get_one_page() {
    let (site, idp, stranger) = (Site::start().await, Idp::new(), Idp::new());
    let record = idp.record();
    assert_eq!(site.gateway.publish(|s| s.roots.issuers.push(record)).await, "");
    let right = idp.token("web", "t", in_s(600));
    let (signed, signature) = right.rsplit_once('.').expect("a signature");
    let none = unsigned(r#"{"alg":"none"}"#, "gateway", "web", "t", in_s(600));
    let mut pages = Vec::new();
    for (what, token) in [
        ("expired", idp.token("web", "t", in_s(-1))),
        ("another's key", stranger.token("web", "t", in_s(600))),
        ("no signature", format!("{signed}.")),
        ("`none`", format!("{none}.")),
        ("`none`, signed", format!("{none}.{signature}")),
        ("for another audience", idp.token_for("another-gateway", "web", "t", in_s(600))),
        ("two parts", signed.to_owned()),
        ("no token", "x.y.z".to_owned()),
    ] {
        for answer in site.present(&token).await {
            assert_eq!((answer.status, answer.reason()), (401, "credential_invalid"), "{what}: {answer:?}");
            assert_eq!(answer.field("www-authenticate"), Some("Bearer realm=\"clawgress\""), "{what}");
            let page = answer.text();
            assert!(page.contains("a token that is meant for this gateway"), "{page}");
            let id = answer.field("x-clawgress-request").expect("an id").to_owned();
            pages.push(page.replace(&id, "ID"));
        }
    }
    assert!(pages.iter().all(|page| *page == pages[0]), "but for the request's id: {pages:#?}");
    // A token counts in no field that holds keys, and then the page says in which it does.
    let answer = site.ask("/llm/v1/models", &format!("x-api-key: {right}\r\n")).await;
    assert_eq!((answer.status, answer.reason()), (401, "credential_missing"));
    assert!(answer.text().contains("token that is meant for this gateway, in Authorization: Bearer"));
    assert!(site.upstream.requests().is_empty());
    assert!(site.present(&right).await.iter().all(|answer| answer.status == 200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bare_key_proves_its_agent_to_the_proxy_too() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let key = gateway.key.clone();
    let request = format!(
        "GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Bearer {key}\r\nAuthorization: Bearer sk-server\r\n\r\n"
    );
    assert_eq!(gateway.ask(&request).await.status, 200);
    let sent = upstream.requests().pop().expect("a request").to_lowercase();
    assert!(sent.contains("authorization: bearer sk-server") && !sent.contains("claw_"), "{sent}");
    let (decision, _) = gateway.exchange(0).await;
    assert_eq!(agent(&decision), ("web", IdentityMethod::ApiKey));
}
