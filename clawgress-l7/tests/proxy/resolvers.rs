//! DNS servers over TCP and over TLS: asked over nothing else, and over TLS only if they prove their name.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::client::Answer;
use crate::dns::Dns;
use crate::harness::{Gateway, Options};
use crate::upstream::Upstream;

const HOST: &str = "api.allowed.test";
const NAME: &str = "dns.allowed.test";

/// Passes questions of streams on to a server over UDP.
struct Relay {
    address: SocketAddr,
    dns: Dns,
    questions: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    async fn start(tls: Option<TlsAcceptor>) -> Relay {
        let dns = Dns::start(&[(HOST, &["127.1.0.1"])]).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (questions, behind) = (Arc::<AtomicUsize>::default(), dns.address);
        let counted = Arc::clone(&questions);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, counted) = (tls.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    match tls {
                        None => pass(stream, behind, &counted).await,
                        // Who does not take the certificate asks nothing.
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => pass(stream, behind, &counted).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Relay { address, dns, questions, task: task.abort_handle() }
    }

    fn questions(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }
}

/// Until the other end has no more to ask.
async fn pass(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    behind: SocketAddr,
    questions: &AtomicUsize,
) -> Option<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    loop {
        let length = stream.read_u16().await.ok()?;
        let mut question = vec![0; usize::from(length)];
        stream.read_exact(&mut question).await.ok()?;
        questions.fetch_add(1, Ordering::SeqCst);
        socket.send_to(&question, behind).await.expect("sent");
        let mut answer = [0; 512];
        let n = socket.recv(&mut answer).await.expect("answered");
        stream.write_u16(u16::try_from(n).expect("short")).await.ok()?;
        stream.write_all(&answer[..n]).await.ok()?;
        stream.flush().await.ok()?;
    }
}

/// A server's side of TLS by the name of [`NAME`], and a file with its certificate.
fn proving(directory: &TempDir) -> (TlsAcceptor, PathBuf) {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("certificate");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("config");
    let file = directory.path().join("dns.pem");
    std::fs::write(&file, made.cert.pem()).expect("written");
    (TlsAcceptor::from(Arc::new(config)), file)
}

/// What a request is answered with by a gateway that is told of DNS servers so.
async fn ask(resolvers: String, upstream: &Upstream) -> Answer {
    let gateway = Gateway::start(Options { resolvers: Some(resolvers), ..Options::default() }).await;
    let port = upstream.address.port();
    let request = format!("GET http://{HOST}:{port}/ HTTP/1.1\r\nHost: {HOST}:{port}\r\nAUTH\r\n\r\n");
    let answer = gateway.ask(&request).await;
    assert_eq!(gateway.dns.asked(HOST), 0, "nobody else is asked");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_asked_over_tcp_alone() {
    let (relay, upstream) = (Relay::start(None).await, Upstream::http("127.1.0.1").await);
    let answer = ask(format!("resolvers = [\"tcp://{}\"]", relay.address), &upstream).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(relay.questions() > 0 && relay.dns.asked(HOST) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_over_tls_is_asked_if_it_proves_its_name() {
    let directory = tempfile::tempdir().expect("directory");
    let (tls, file) = proving(&directory);
    let (relay, upstream) = (Relay::start(Some(tls)).await, Upstream::http("127.1.0.1").await);
    let (address, roots) = (relay.address, format!("resolver_roots = [\"{}\"]", file.display()));
    for unproven in [
        // Nobody that this machine trusts says so.
        format!("resolvers = [\"tls://{address}#{NAME}\"]"),
        format!("resolvers = [\"tls://{address}#other.test\"]\n{roots}"),
    ] {
        let answer = ask(unproven, &upstream).await;
        assert_eq!((answer.status, answer.reason()), (502, "resolve_failed"));
        assert_eq!((relay.questions(), relay.dns.asked(HOST)), (0, 0), "nothing was asked");
    }
    let answer = ask(format!("resolvers = [\"tls://{address}#{NAME}\"]\n{roots}"), &upstream).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(relay.questions() > 0);
}

/// Names in requests and CONNECT tell a server of names what questions would: what they come to look like is in their records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_names_look_like_is_recorded_where_they_are_named() {
    let more = "[dns]\nnames_per_minute_max = 16\n".to_owned();
    let gateway = Gateway::start(Options { more, ..Options::default() }).await;
    // An eighth of them looks like something.
    for n in 0..3 {
        let (_client, answer) = gateway.connect(&format!("n{n}.allowed.test:443")).await;
        assert_eq!(answer.reason(), "resolve_failed");
    }
    for n in 3..16 {
        let raw = "GET http://NAME/ HTTP/1.1\r\nHost: NAME\r\nAUTH\r\n\r\n";
        assert_eq!(
            gateway.ask(&raw.replace("NAME", &format!("n{n}.allowed.test"))).await.reason(),
            "resolve_failed"
        );
    }
    let (_client, answer) = gateway.connect("n16.allowed.test:443").await;
    assert_eq!(answer.reason(), "dns_capped");
    let mut found = Vec::new();
    for n in 0..17 {
        let (decision, outcome) = gateway.exchange(n).await;
        assert_eq!(decision.findings, outcome.findings);
        found.extend(decision.findings.iter().map(|name| (n, name.clone())));
    }
    assert_eq!(found, [(2, "dns_tunnel_names".to_owned())], "once in a minute");
}
