//! Ways out: through a parent proxy that gets addresses or names, and from an address that was chosen.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clawgress_api::config::Config;
use clawgress_api::{AuditRecord, Verdict};
use clawgress_ebpf_common::DropReason;
use parking_lot::Mutex;
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::client::Answer;
use crate::endpoints::https;
use crate::harness::{Gateway, Options, PATIENCE, POLICY};
use crate::intercept::{HOST, trusting};
use crate::upstream::Upstream;

/// How often a pooled connection is asked for.
const POOLED_TRIES: usize = 20;

/// More interim answers than anybody has, before the one that counts.
const ENDLESS: &str = "HTTP/1.1 100 \r\n\r\nHTTP/1.1 100 \r\n\r\nHTTP/1.1 100 \r\n\r\nHTTP/1.1 100 \r\n\r\n\
                       HTTP/1.1 100 \r\n\r\nHTTP/1.1 100 \r\n\r\nHTTP/1.1 100 \r\n\r\nHTTP/1.1 100 \r\n\r\n\
                       HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 OK\r\n\r\n";

/// What all names lead to that the parent resolves.
const SITE: &str = "127.1.0.1";

/// A proxy for CONNECT that notes what it was asked, and resolves every name to [`SITE`].
struct Parent {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    /// What it answers instead of making a connection.
    refusal: Arc<Mutex<Option<&'static str>>>,
    /// What it wants for a credential, in base64.
    wants: Arc<Mutex<Option<&'static str>>>,
    task: AbortHandle,
}

impl Drop for Parent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Parent {
    async fn start(ip: &str) -> Parent {
        Parent::secured(ip, None).await
    }

    /// One that takes no word but over TLS, if there is how to speak it.
    async fn secured(ip: &str, tls: Option<TlsAcceptor>) -> Parent {
        let listener = TcpListener::bind((ip, 0)).await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (heads, connections) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
        let (refusal, wants) =
            (Arc::<Mutex<Option<&'static str>>>::default(), Arc::<Mutex<Option<&'static str>>>::default());
        let shared = (Arc::clone(&heads), Arc::clone(&refusal), Arc::clone(&wants));
        let counted = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let (heads, refusal, wants) = shared.clone();
                let tls = tls.clone();
                tokio::spawn(async move {
                    let refusal = *refusal.lock();
                    let wants = *wants.lock();
                    match tls {
                        None => serve(stream, &heads, refusal, wants).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &heads, refusal, wants).await,
                            Err(error) => heads.lock().push(format!("no TLS: {error}")),
                        },
                    }
                });
            }
        });
        Parent { address, heads, connections, refusal, wants, task: task.abort_handle() }
    }

    fn targets(&self) -> Vec<String> {
        let heads = self.heads.lock();
        heads.iter().map(|head| head.split(' ').nth(1).expect("target").to_owned()).collect()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Its table of the configuration, with more of it, and a route through it with more of that.
    fn tables(&self, more: &str, route: &str) -> String {
        let address = self.address;
        format!(
            "[[parent]]\nname = \"corp\"\naddress = \"{address}\"\n{more}\n[[route]]\nparent = \"corp\"\n{route}\n"
        )
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    heads: &Mutex<Vec<String>>,
    refusal: Option<&str>,
    wants: Option<&str>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).expect("text");
    heads.lock().push(head.clone());
    let refusal = refusal.or_else(|| {
        let is_proven =
            wants.is_none_or(|wants| head.contains(&format!("Proxy-Authorization: Basic {wants}\r\n")));
        (!is_proven).then_some("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
    });
    if let Some(refusal) = refusal {
        let _ = stream.write_all(refusal.as_bytes()).await;
        return;
    }
    let target = head.split(' ').nth(1).expect("target");
    let port: u16 = target.rsplit(':').next().expect("port").parse().expect("port");
    let mut onward = TcpStream::connect((SITE, port)).await.expect("the site");
    // In pieces, with an interim answer: what follows must be the tunnel's.
    for piece in
        ["HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2", "00 Connection established\r\nVia: corp\r\n\r", "\n"]
    {
        stream.write_all(piece.as_bytes()).await.expect("written");
        stream.flush().await.expect("flushed");
        tokio::task::yield_now().await;
    }
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
}

async fn gateway(more: String) -> Gateway {
    Gateway::start(Options { more, ..Options::default() }).await
}

fn get(gateway: &Gateway, host: &str, port: u16, path: &str) -> String {
    format!("GET http://{host}:{port}{path} HTTP/1.1\r\nHost: {host}:{port}\r\n{}\r\n", gateway.web())
}

async fn ask(gateway: &Gateway, host: &str, port: u16) -> Answer {
    gateway.ask(&get(gateway, host, port, "/")).await
}

fn via(record: &AuditRecord) -> Option<&str> {
    record.destination.via.as_deref()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_gets_the_address_that_was_judged() {
    let (parent, upstream) =
        (Parent::start("127.1.0.9").await, Upstream::tls(SITE, "api.allowed.test").await);
    let gateway = gateway(parent.tables("", "")).await;
    let port = upstream.address.port();
    let (client, answer) = gateway.connect(&format!("api.allowed.test:{port}")).await;
    assert_eq!(answer.status, 200);
    let config = trusting(&[upstream.certificate.clone().expect("certificate")], &[]);
    let name = ServerName::try_from("api.allowed.test").expect("name");
    let mut tls = TlsConnector::from(config).connect(name, client.stream).await.expect("handshake");
    tls.write_all(b"through two proxies").await.expect("write");
    let mut got = [0; 19];
    tls.read_exact(&mut got).await.expect("read");
    assert_eq!(&got, b"through two proxies");
    tls.shutdown().await.expect("shutdown");
    drop(tls);
    assert_eq!(parent.targets(), [format!("{SITE}:{port}")]);
    assert!(!parent.heads.lock().iter().any(|head| head.contains("Authorization")), "nothing of the agent's");
    assert!(gateway.dns.asked("api.allowed.test") > 0);
    let (decision, outcome) = gateway.exchange(0).await;
    assert_eq!(
        (via(&decision), decision.destination.ip),
        (Some("corp"), Some(SITE.parse().expect("address")))
    );
    assert_eq!((decision.verdict, outcome.reason), (Some(Verdict::Allow), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_judged_good_never_comes_to_a_parent() {
    let parent = Parent::start("127.1.0.9").await;
    let gateway = gateway(
        parent
            .tables("", "hosts = [\"raw.allowed.test\"]\nresolve = \"parent\"\n[[route]]\nparent = \"corp\""),
    )
    .await;
    for (host, status, reason) in [
        ("ten.allowed.test", 403, "policy_denied"),
        ("meta.allowed.test", 403, "policy_denied"),
        ("nowhere.allowed.test", 502, "resolve_failed"),
        ("denied.test", 403, "policy_denied"),
    ] {
        let (_, answer) = gateway.connect(&format!("{host}:443")).await;
        assert_eq!((answer.status, answer.reason()), (status, reason), "{host}");
        let answer = ask(&gateway, host, 80).await;
        assert_eq!((answer.status, answer.reason()), (status, reason), "{host}");
    }
    assert_eq!(parent.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_that_resolves_gets_names_and_never_one_name_for_another() {
    let (parent, upstream) = (Parent::start("127.1.0.9").await, Upstream::http(SITE).await);
    let gateway = gateway(parent.tables("", "resolve = \"parent\"")).await;
    let port = upstream.address.port();
    let mut client = gateway.client().await;
    for host in ["api.allowed.test", "inside.allowed.test", "api.allowed.test"] {
        client.send(get(&gateway, host, port, "/")).await;
        assert_eq!(client.answer().await.text(), "ok", "{host}");
    }
    assert_eq!(gateway.dns.asked("api.allowed.test"), 0, "it is not resolved here");
    let targets = parent.targets();
    assert_eq!(targets, [format!("api.allowed.test:{port}"), format!("inside.allowed.test:{port}")]);
    let (decision, _) = gateway.exchange(1).await;
    assert_eq!((via(&decision), decision.destination.ip), (Some("corp"), None));
    assert_eq!(decision.destination.via_address, Some(parent.address));
    assert_eq!(decision.policies, ["http", "net"], "`connect` was asked of the parent's address");
    // An address is one that nobody resolves: it is judged.
    let (_, answer) = gateway.connect(&format!("127.3.0.1:{port}")).await;
    assert_eq!(answer.status, 403);
    assert_eq!(parent.connections(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_that_fails_is_told_and_nobody_is_dialled_instead() {
    let (parent, upstream) = (Parent::start("127.1.0.9").await, Upstream::http(SITE).await);
    let gateway = gateway(parent.tables("", "")).await;
    let port = upstream.address.port();
    let mut outcomes = 0;
    for refusal in [
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        "SSH-2.0-nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\n",
        ENDLESS,
    ] {
        *parent.refusal.lock() = Some(refusal);
        let (_, answer) = gateway.connect(&format!("api.allowed.test:{port}")).await;
        assert_eq!((answer.status, answer.reason()), (502, "parent_failed"), "{refusal}");
        let answer = ask(&gateway, "api.allowed.test", port).await;
        assert_eq!((answer.status, answer.reason()), (502, "parent_failed"), "{refusal}");
        assert!(answer.text().contains("the proxy that the gateway has to go through"), "{}", answer.text());
        outcomes += 2;
    }
    drop(parent);
    let (_, answer) = gateway.connect(&format!("api.allowed.test:{port}")).await;
    assert_eq!((answer.status, answer.reason()), (502, "parent_failed"), "nobody is there");
    for n in 0..=outcomes {
        let (decision, outcome) = gateway.exchange(n).await;
        assert_eq!(outcome.reason, Some(DropReason::ParentFailed));
        let tried = (via(&decision), decision.destination.ip);
        assert_eq!(tried, (Some("corp"), Some(SITE.parse().expect("address"))), "what was tried is told");
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_parents_own_address_is_judged_for_the_agent() {
    let (parent, upstream) = (Parent::start("127.2.0.9").await, Upstream::http(SITE).await);
    for resolve in ["", "resolve = \"parent\""] {
        let gateway = gateway(parent.tables("", resolve)).await;
        let answer = ask(&gateway, "api.allowed.test", upstream.address.port()).await;
        assert_eq!((answer.status, answer.reason()), (403, "policy_denied"), "{resolve}");
        let (decision, _) = gateway.exchange(0).await;
        // Not as if it were the destination, at the destination's port: nobody asked for that.
        let ip = resolve.is_empty().then(|| SITE.parse().expect("address"));
        assert_eq!(decision.destination.ip, ip, "{resolve}");
        assert_eq!(decision.destination.via_address, Some(parent.address), "which address it was");
        assert!(decision.detail.expect("why").contains("parent proxy `corp`"));
    }
    assert_eq!((parent.connections(), upstream.connections()), (0, 0));
}

/// The kernel plane holds what the proxy dials to the limits on that, which is the parent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_on_a_destination_is_not_lost_on_the_way_through_a_parent() {
    let (parent, upstream) = (Parent::start("127.1.0.9").await, Upstream::http(SITE).await);
    let gateway = gateway(parent.tables("", "hosts = [\"api.allowed.test\"]")).await;
    let port = upstream.address.port();
    let limited = |range: &str| {
        format!(
            "{POLICY}@id(\"pace\") @effect(\"rate-limit\") @limit(\"10 connections/minute\") permit (principal, \
             action == Action::\"connect\", resource) when {{ context.ip.isInRange(ip(\"{range}\")) }};"
        )
    };
    assert_eq!(gateway.publish_policy(&limited("127.1.0.0/29")).await, "");
    for n in 0..2 {
        let answer = match n {
            0 => ask(&gateway, "api.allowed.test", port).await,
            _ => gateway.connect(&format!("api.allowed.test:{port}")).await.1,
        };
        assert_eq!((answer.status, answer.reason()), (503, "limit_unavailable"));
        let (decision, _) = gateway.exchange(n).await;
        assert_eq!(
            (decision.policies, decision.action.as_deref()),
            (vec!["pace".to_owned()], Some("connect"))
        );
        assert!(decision.detail.expect("why").contains("parent proxy `corp`"));
    }
    assert_eq!(parent.connections(), 0);
    assert_eq!(ask(&gateway, "read.allowed.test", port).await.status, 200, "direct, it is kept");
    // One that holds for the parent, too, is kept there.
    assert_eq!(gateway.publish_policy(&limited("127.1.0.0/24")).await, "");
    assert_eq!(ask(&gateway, "api.allowed.test", port).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_attempt_that_failed_last_says_why() {
    let parent = Parent::start("127.1.0.9").await;
    *parent.refusal.lock() = Some("HTTP/1.1 503 Service Unavailable\r\n\r\n");
    // Nobody listens there any more.
    let port = Upstream::http("127.1.0.2").await.address.port();
    let gateway = gateway(parent.tables("", "networks = [\"127.1.0.1/32\"]")).await;
    let answer = ask(&gateway, "two.allowed.test", port).await;
    assert_eq!((answer.status, answer.reason()), (502, "upstream_failed"));
    assert_eq!(parent.connections(), 1, "it was tried first");
    let (decision, outcome) = gateway.exchange(0).await;
    assert_eq!(outcome.reason, Some(DropReason::UpstreamFailed));
    let last = Some("127.1.0.2".parse().expect("address"));
    assert_eq!((via(&decision), decision.destination.ip), (None, last));
}

fn credential(directory: &TempDir, text: &str, mode: u32) -> String {
    let path = directory.path().join("corp.credential");
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("mode");
    format!("credential = \"{}\"", path.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_gets_its_credential_and_a_new_one_when_the_file_changes() {
    let (parent, upstream) = (Parent::start("127.1.0.9").await, Upstream::http(SITE).await);
    let directory = tempfile::tempdir().expect("directory");
    let gateway = gateway(parent.tables(&credential(&directory, "gw:secret\n", 0o400), "")).await;
    let port = upstream.address.port();
    *parent.wants.lock() = Some("Z3c6c2VjcmV0");
    assert_eq!(ask(&gateway, "api.allowed.test", port).await.status, 200);
    assert!(!upstream.requests().iter().any(|head| head.contains("Z3c6c2VjcmV0")), "nobody else gets it");
    // Whoever is at the other end sees it; who can read the log doesn't.
    assert!(!format!("{:?}", gateway.records(1).await).contains("Z3c6c2VjcmV0"));
    *parent.wants.lock() = Some("Z3c6b3RoZXI=");
    std::fs::remove_file(directory.path().join("corp.credential")).expect("removed");
    credential(&directory, "gw:other", 0o400);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // Over a tunnel each, since what is pooled needs none.
    while gateway.connect(&format!("api.allowed.test:{port}")).await.1.status != 200 {
        assert!(tokio::time::Instant::now() < deadline, "the new credential is not taken");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_credential_that_others_read_or_nobody_can_use_is_refused_at_the_start() {
    let parent = Parent::start("127.1.0.9").await;
    let directory = tempfile::tempdir().expect("directory");
    for (text, mode, say) in [
        ("gw:secret", 0o444, "is open to others"),
        ("gw:secret", 0o660, "is open to others"),
        ("secret", 0o400, "does not hold one line `USER:PASSWORD`"),
        ("gw:secret\nmore", 0o400, "does not hold one line"),
        (":secret", 0o400, "does not hold one line"),
    ] {
        let more = parent.tables(&credential(&directory, text, mode), "");
        std::fs::remove_file(directory.path().join("clawgress.toml")).ok();
        let text = format!(
            "[node]\nname = \"gw\"\nrun_dir = \"{}\"\n[datapath]\nmode = \"none\"\n[proxy]\nlisten = [\"127.0.0.1:3128\"]\n[l7]\nresolvers = [\"127.0.0.1:53\"]\n{more}",
            directory.path().display()
        );
        let config = Config::parse(&text, Path::new("test.toml")).expect("config");
        let error = clawgress_l7::run(config, std::future::pending()).await.expect_err("refused");
        let error = format!("{error:#}");
        assert!(error.contains("parent `corp`") && error.contains(say), "{error}");
        assert!(!error.contains("gw:"), "{error}");
        std::fs::remove_file(directory.path().join("corp.credential")).expect("removed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_that_is_read_goes_through_a_parent_too() {
    let parent = Parent::start("127.1.0.9").await;
    let (upstream, pem) = https(SITE, HOST).await;
    let directory = tempfile::tempdir().expect("directory");
    let roots = directory.path().join("roots.pem");
    std::fs::write(&roots, pem).expect("written");
    for resolve in ["", "resolve = \"parent\""] {
        let more = format!("[intercept]\nroots = [\"{}\"]\n{}", roots.display(), parent.tables("", resolve));
        let gateway = Gateway::start(Options { policy: Some(POLICY), more, ..Options::default() }).await;
        let port = upstream.address.port();
        let request = format!("GET / HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n");
        let open = async || {
            let (client, answer) = gateway.connect(&format!("{HOST}:{port}")).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let config = trusting(&[gateway.authority.certificate()], &["http/1.1"]);
            let name = ServerName::try_from(HOST).expect("name");
            let stream = TlsConnector::from(config).connect(name, client.stream).await.expect("handshake");
            let mut inside = crate::client::Client::over(stream);
            inside.send(&request).await;
            assert_eq!(inside.answer().await.status, 200, "{resolve}");
            inside
        };
        // What is pooled for the host needs no other connection. Now and then Pingora's pool lets one go that it is asked for;
        // the client's ends with the refusal then.
        let mut is_reused = false;
        for _ in 0..POOLED_TRIES {
            let mut inside = open().await;
            *parent.refusal.lock() = Some("HTTP/1.1 503 Service Unavailable\r\n\r\n");
            inside.send(&request).await;
            is_reused = inside.answer().await.status == 200;
            *parent.refusal.lock() = None;
            if is_reused {
                break;
            }
        }
        assert!(is_reused, "{resolve}");
    }
    let port = upstream.address.port();
    assert!(parent.targets().contains(&format!("{SITE}:{port}")));
    assert!(parent.targets().contains(&format!("{HOST}:{port}")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_first_is_heard_through_a_parent() {
    let (parent, upstream) = (Parent::start("127.1.0.9").await, Upstream::server_first(SITE).await);
    let gateway = gateway(parent.tables("", "")).await;
    let (mut client, answer) =
        gateway.connect(&format!("raw.allowed.test:{}", upstream.address.port())).await;
    assert_eq!(answer.status, 200);
    client.until("220 hello\r\n").await;
    client.send("EHLO x\r\n").await;
    client.until("EHLO x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_chooses_the_address_to_dial_from() {
    let upstream = Upstream::start(SITE, None, |mut stream, seen| async move {
        seen.requests.lock().push(stream.peer_addr().expect("peer").ip().to_string());
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(1..) = stream.read_buf(&mut head).await else { return };
        }
        let _ = stream.write_all(answer).await;
    })
    .await;
    let more = "[[route]]\nhosts = [\"api.allowed.test\"]\nsource = [\"127.0.0.77\"]\n\
                [[route]]\nhosts = [\"read.allowed.test\"]\nsource = [\"::1\"]\n\
                [[route]]\nnetworks = [\"127.1.0.0/24\"]\nsource = [\"127.0.0.78\"]\n";
    let gateway = gateway(more.to_owned()).await;
    let port = upstream.address.port();
    assert_eq!(ask(&gateway, "api.allowed.test", port).await.status, 200);
    assert_eq!(ask(&gateway, "raw.allowed.test", port).await.status, 200);
    assert_eq!(upstream.requests(), ["127.0.0.77", "127.0.0.78"]);
    let answer = ask(&gateway, "read.allowed.test", port).await;
    assert_eq!((answer.status, answer.reason()), (502, "upstream_failed"), "there is none of its family");
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_by_two_routes_never_share_a_connection() {
    let upstream = Upstream::start(SITE, None, |mut stream, seen| async move {
        let from = stream.peer_addr().expect("peer").ip().to_string();
        let mut held = Vec::new();
        while let Ok(1..) = stream.read_buf(&mut held).await {
            while let Some(at) = held.windows(4).position(|w| w == b"\r\n\r\n") {
                held.drain(..at + 4);
                seen.requests.lock().push(from.clone());
                if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let more = "[[route]]\nhosts = [\"api.allowed.test\"]\nsource = [\"127.0.0.77\"]\n\
                [[route]]\nhosts = [\"raw.allowed.test\"]\nsource = [\"127.0.0.78\"]\n";
    let gateway = gateway(more.to_owned()).await;
    let port = upstream.address.port();
    let mut client = gateway.client().await;
    let mut wanted = Vec::new();
    // Both names are at one address.
    for n in 0..POOLED_TRIES {
        let (host, from) =
            if n % 2 == 0 { ("api.allowed.test", "127.0.0.77") } else { ("raw.allowed.test", "127.0.0.78") };
        client.send(get(&gateway, host, port, "/")).await;
        assert_eq!(client.answer().await.status, 200);
        wanted.push(from.to_owned());
    }
    assert_eq!(upstream.requests(), wanted);
    assert!(upstream.connections() < POOLED_TRIES, "each has its own, used again");
}

/// How a parent of this name speaks TLS, and the certificate that proves it.
fn speaking(name: &str) -> (TlsAcceptor, String) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("certificate");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    (crate::upstream::acceptor(made.cert.der().clone(), key), made.cert.pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_over_tls_is_told_nothing_before_it_has_proven_its_name() {
    let directory = tempfile::tempdir().expect("directory");
    let roots = directory.path().join("corp.pem");
    let (acceptor, pem) = speaking("proxy.corp.test");
    std::fs::write(&roots, pem).expect("written");
    let parent = Parent::secured("127.1.0.9", Some(acceptor)).await;
    *parent.wants.lock() = Some("Z3c6c2VjcmV0");
    let tables = |name: &str, roots: &str| {
        let credential = credential(&directory, "gw:secret\n", 0o600);
        parent.tables(&format!("{credential}\ntls = \"{name}\"\n{roots}"), "")
    };
    let roots = format!("roots = [\"{}\"]", roots.display());
    let (tls, plain) = (Upstream::tls(SITE, "api.allowed.test").await, Upstream::http(SITE).await);
    {
        let gateway = gateway(tables("proxy.corp.test", &roots)).await;
        // A tunnel, of more bytes than go at once, which ends when its client does.
        let (client, answer) = gateway.connect(&format!("api.allowed.test:{}", tls.address.port())).await;
        assert_eq!(answer.status, 200);
        let config = trusting(&[tls.certificate.clone().expect("certificate")], &[]);
        let name = ServerName::try_from("api.allowed.test").expect("name");
        let mut inside = TlsConnector::from(config).connect(name, client.stream).await.expect("handshake");
        let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let (mut from, mut to) = tokio::io::split(&mut inside);
        let mut got = vec![0; sent.len()];
        let write = async {
            to.write_all(&sent).await.expect("written");
            to.flush().await.expect("flushed");
        };
        let read = async { from.read_exact(&mut got).await.expect("read") };
        tokio::time::timeout(PATIENCE, async { tokio::join!(write, read) }).await.expect("in time");
        assert_eq!(got, sent);
        inside.shutdown().await.expect("shutdown");
        drop(inside);
        let (decision, outcome) = gateway.exchange(0).await;
        assert_eq!((via(&decision), outcome.reason), (Some("corp"), None));
        assert!(outcome.bytes_sent > Some(300_000) && outcome.bytes_received > Some(300_000), "{outcome:?}");
        // And requests, of which the second needs no connection.
        for _ in 0..2 {
            assert_eq!(ask(&gateway, "api.allowed.test", plain.address.port()).await.status, 200);
        }
        let head = parent.heads.lock().first().cloned().expect("a head");
        assert!(head.contains("Proxy-Authorization: Basic Z3c6c2VjcmV0"), "{head}");
    }
    parent.heads.lock().clear();
    // Another name, and no authority for it: it hears no word.
    for tables in [tables("other.corp.test", &roots), tables("proxy.corp.test", "")] {
        let gateway = gateway(tables).await;
        let (_, answer) = gateway.connect(&format!("api.allowed.test:{}", tls.address.port())).await;
        assert_eq!((answer.status, answer.reason()), (502, "parent_failed"));
        let answer = ask(&gateway, "api.allowed.test", plain.address.port()).await;
        assert_eq!((answer.status, answer.reason()), (502, "parent_failed"));
    }
    let heads = parent.heads.lock().clone();
    assert!(heads.iter().all(|head| head.starts_with("no TLS")), "{heads:?}");
}
