//! What is carried to a parent over TLS, over real sockets: it ends with who has the other end.

use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, server};

use super::*;

/// More than sockets and TLS hold on the way.
const MUCH: usize = 32 << 20;

/// The end that a tunnel has, and the parent's.
async fn within() -> (UnixStream, server::TlsStream<TcpStream>) {
    let key = KeyPair::generate().expect("key");
    let signed = CertificateParams::new(["parent.test".to_owned()]).expect("names").self_signed(&key);
    let certificate = CertificateDer::from(signed.expect("signed"));
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("root.pem");
    let pem = x509_pem(&certificate);
    std::fs::write(&file, pem).expect("written");
    let secured = Secured::new("parent.test", &[file]).expect("secured");
    let config = ServerConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .expect("certificate");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let parent = async {
        let (stream, _) = listener.accept().await.expect("accepted");
        TlsAcceptor::from(Arc::new(config)).accept(stream).await.expect("handshake")
    };
    let dialled = async {
        let stream = TcpStream::connect(address).await.expect("connected");
        secured.begin(stream).await.expect("proven")
    };
    let (stream, parent) = tokio::join!(dialled, parent);
    match Leg::within(stream).expect("within") {
        Leg::Within(given) => (given, parent),
        Leg::Bare(_) => panic!("it is within TLS"),
    }
}

fn x509_pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// How much comes until the end, and whether that was one.
async fn read_all(mut parent: server::TlsStream<TcpStream>) -> (usize, io::Result<usize>) {
    let mut got = Vec::new();
    let ended = parent.read_to_end(&mut got).await;
    (got.len(), ended)
}

#[tokio::test]
async fn what_is_whole_arrives_whole_whoever_ends_first() {
    let (mut given, mut parent) = within().await;
    parent.write_all(b"answer").await.expect("sent");
    parent.shutdown().await.expect("ended");
    let mut got = Vec::new();
    given.read_to_end(&mut got).await.expect("read");
    assert_eq!(got, b"answer");
    // The last bytes are still on their way as it is let go.
    given.write_all(&[7; 32 * 1024]).await.expect("sent");
    given.shutdown().await.expect("ended");
    drop(given);
    let (came, ended) = read_all(parent).await;
    assert_eq!((came, ended.expect("an end")), (32 * 1024, 32 * 1024));
}

/// Nothing reads there, so all that can wait waits; the other end is cut then.
#[tokio::test]
async fn a_parent_that_takes_nothing_holds_nothing_after_a_cut() {
    let (mut given, parent) = within().await;
    let blocked = timeout(std::time::Duration::from_millis(500), given.write_all(&vec![7; MUCH])).await;
    assert!(blocked.is_err(), "it is stuck");
    drop(given);
    // Its connection is gone, and not whole, without a byte being read there.
    let (tcp, _) = parent.get_ref();
    let failed = async {
        while tcp.take_error().expect("asked").is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    timeout(std::time::Duration::from_secs(60), failed).await.expect("it is reset");
}

#[tokio::test]
async fn a_cut_is_no_end() {
    let (mut given, parent) = within().await;
    given.write_all(b"half a thing").await.expect("sent");
    drop(given);
    let (_, ended) = read_all(parent).await;
    assert!(ended.is_err(), "the parent must not take it for whole");
}

/// Also where something moved just before, as the end of what is carried is looked for no more often than that.
#[tokio::test]
async fn a_cut_in_the_middle_of_things_is_no_end() {
    for _ in 0..50 {
        let (mut given, parent) = within().await;
        let reading = tokio::spawn(read_all(parent));
        given.write_all(b"half a thing").await.expect("sent");
        tokio::time::sleep(limit::PARENT_LOOK / 3).await;
        given.write_all(b", and more").await.expect("sent");
        drop(given);
        let (_, ended) = reading.await.expect("read");
        assert!(ended.is_err(), "the parent must not take it for whole");
    }
}
