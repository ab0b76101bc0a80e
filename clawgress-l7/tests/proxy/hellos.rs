//! Handshakes of TLS that come in pieces as small as there are: whoever cuts them, they are the same handshakes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use clawgress_api::Verdict;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::harness::{Gateway, Options, PATIENCE};
use crate::intercept::{HOST, Site, trusting};
use crate::upstream::Upstream;

/// How long a byte is on its way alone.
const PAUSE: Duration = Duration::from_micros(200);
/// Bytes of a handshake, about: what follows goes whole.
const SINGLE_BYTES: usize = 1200;

/// A connection that writes its first bytes one by one, each in a segment of its own.
struct Trickle {
    inner: TcpStream,
    pause: Option<Pin<Box<Sleep>>>,
    written: usize,
}

impl Trickle {
    fn over(inner: TcpStream) -> Trickle {
        inner.set_nodelay(true).expect("no delay");
        Trickle { inner, pause: None, written: 0 }
    }
}

impl AsyncRead for Trickle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, out)
    }
}

impl AsyncWrite for Trickle {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let most = if self.written < SINGLE_BYTES { 1 } else { bytes.len() };
        let n = std::task::ready!(Pin::new(&mut self.inner).poll_write(cx, &bytes[..most.min(bytes.len())]))?;
        self.written += n;
        if self.written < SINGLE_BYTES {
            self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A server that trickles too, asks for a second hello, and sends back what it gets.
async fn asking_again(name: &str) -> Upstream {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("certificate");
    let certificate = made.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::SECP384R1];
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .expect("config");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Upstream::start("127.1.0.1", Some(certificate), move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(Trickle::over(stream)).await else { return };
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..n]).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// A client whose first hello has no share that [`asking_again`] takes.
fn first_of_two(root: CertificateDer<'static>) -> TlsConnector {
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::X25519, kx_group::SECP384R1];
    let mut roots = RootCertStore::empty();
    roots.add(root).expect("root");
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_hellos_of_a_handshake_may_come_in_single_bytes() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = asking_again("api.allowed.test").await;
    let (client, answer) = gateway.connect(&format!("api.allowed.test:{}", upstream.address.port())).await;
    assert_eq!(answer.status, 200);
    let connector = first_of_two(upstream.certificate.clone().expect("certificate"));
    let name = ServerName::try_from("api.allowed.test").expect("name");
    let mut tls = connector.connect(name, Trickle::over(client.stream)).await.expect("handshake");
    let asked_again = tls.get_ref().1.handshake_kind();
    assert_eq!(asked_again, Some(rustls::HandshakeKind::FullWithHelloRetryRequest));
    tls.write_all(b"there and back").await.expect("sent");
    tls.flush().await.expect("flushed");
    let mut got = [0; 14];
    tokio::time::timeout(PATIENCE, tls.read_exact(&mut got)).await.expect("in time").expect("read");
    assert_eq!(&got, b"there and back");
    tls.shutdown().await.expect("ended");
    drop(tls);
    let (decision, outcome) = gateway.exchange(0).await;
    assert_eq!((decision.verdict, outcome.reason), (Some(Verdict::Allow), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_may_come_in_single_bytes() {
    let site = Site::start(crate::harness::POLICY, "").await;
    let (client, answer) = site.gateway.connect(&site.host()).await;
    assert_eq!(answer.status, 200);
    let connector = TlsConnector::from(trusting(&[site.gateway.authority.certificate()], &["http/1.1"]));
    let name = ServerName::try_from(HOST).expect("name");
    let tls = connector.connect(name, Trickle::over(client.stream)).await.expect("handshake");
    let mut client = crate::client::Client::over(tls);
    client.send(format!("GET /ok HTTP/1.1\r\nHost: {}\r\n\r\n", site.host())).await;
    assert_eq!(client.answer().await.status, 200);
}
