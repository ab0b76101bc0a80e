//! What is carried to a parent over TLS, over real sockets: it ends with who has the other end.

use clawgress_ebpf_common::DropReason;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, server};

use super::*;
use crate::stream::Stream as ClientStream;

/// More than sockets and TLS hold on the way.
const MUCH: usize = 32 << 20;
/// What is held on the way to the parent, about; and what fits in a pair of sockets, and not there.
const LITTLE: usize = 4096;
const TAIL: usize = 128 * 1024;

/// The end that who tells nothing has, and the parent's.
async fn within() -> (UnixStream, server::TlsStream<TcpStream>) {
    let (within, parent) = legs().await;
    (within.watched().expect("watched"), parent)
}

/// Both, of a connection of which little is held on its way.
async fn legs() -> (Box<Within>, server::TlsStream<TcpStream>) {
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
    SockRef::from(&listener).set_recv_buffer_size(LITTLE).expect("a size");
    let address = listener.local_addr().expect("address");
    let parent = async {
        let (stream, _) = listener.accept().await.expect("accepted");
        TlsAcceptor::from(Arc::new(config)).accept(stream).await.expect("handshake")
    };
    let dialled = async {
        let stream = TcpStream::connect(address).await.expect("connected");
        SockRef::from(&stream).set_send_buffer_size(LITTLE).expect("a size");
        secured.begin(stream).await.expect("proven")
    };
    let (stream, parent) = tokio::join!(dialled, parent);
    match Leg::within(stream).expect("within") {
        Leg::Within(within) => (within, parent),
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

/// What came of a tunnel.
type Carried = (u64, u64, Option<DropReason>);

/// A tunnel through the parent, which has answered and ended, to a client that has said [`TAIL`] bytes and ended: all of that is on
/// its way, and the parent takes nothing yet.
async fn tunnel_with_a_tail()
-> (JoinHandle<Carried>, oneshot::Sender<DropReason>, server::TlsStream<TcpStream>) {
    let (within, mut parent) = legs().await;
    let upstream = Leg::Within(within).into_upstream().expect("upstream");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (client, inner) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (mut client, inner) = (client.expect("connected"), inner.expect("accepted").0);
    let (cut, cutting) = oneshot::channel();
    let tunnel = tokio::spawn(async move {
        let first = async |reader| (reader, Ok(b"hi".to_vec()));
        let mut client = ClientStream::from(inner);
        let cut = async { cutting.await.expect("reason") };
        tunnel::run(&mut client, (&upstream, &tunnel::Meter::default()), first, (&Arc::default(), 1), cut)
            .await
    });
    let mut hi = [0; 2];
    parent.read_exact(&mut hi).await.expect("read");
    parent.write_all(b"answer").await.expect("sent");
    parent.shutdown().await.expect("ended");
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.expect("read");
    assert_eq!(got, b"answer");
    client.write_all(&[7; TAIL]).await.expect("sent");
    client.shutdown().await.expect("ended");
    // Longer than anything that was cut is waited for.
    tokio::time::sleep(3 * limit::CUT_GRACE).await;
    (tunnel, cut, parent)
}

#[tokio::test]
async fn a_whole_tunnel_arrives_whole_however_late_it_is_taken() {
    let (tunnel, _cut, parent) = tunnel_with_a_tail().await;
    assert!(!tunnel.is_finished(), "it goes on until all is taken");
    let (came, ended) = read_all(parent).await;
    assert_eq!((came, ended.expect("an end")), (TAIL, TAIL));
    assert_eq!(tunnel.await.expect("tunnel"), (TAIL as u64 + 2, 6, None));
}

#[tokio::test]
async fn a_tunnel_that_is_cut_before_all_is_taken_has_no_end() {
    let (tunnel, cut, parent) = tunnel_with_a_tail().await;
    cut.send(DropReason::PolicyDenied).expect("cut");
    assert_eq!(tunnel.await.expect("tunnel"), (TAIL as u64 + 2, 6, Some(DropReason::PolicyDenied)));
    let (_, ended) = read_all(parent).await;
    assert!(ended.is_err(), "the parent must not take it for whole");
}
