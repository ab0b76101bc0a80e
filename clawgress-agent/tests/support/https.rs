//! A small HTTPS server at `localhost`, whose certificate and answers are a test's to change, and authorities.

#![allow(dead_code, clippy::allow_attributes, reason = "each test takes what it needs of it")]

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// An authority that signs itself.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
    der: CertificateDer<'static>,
}

/// A server's certificate and key.
pub struct Presented {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Ca {
    pub fn new() -> Ca {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new([]).expect("names");
        // Each its own: a path is looked for by name.
        params.distinguished_name.push(DnType::CommonName, STANDARD.encode(key.public_key_raw()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).expect("authority");
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Ca { issuer: Issuer::new(params, key), pem, der }
    }

    pub fn der(&self) -> Vec<u8> {
        self.der.to_vec()
    }

    /// As records and lists name it.
    pub fn thumbprint(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.der);
        digest.as_ref().iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
    }

    /// For a host of this name.
    pub fn host(&self, name: &str) -> Presented {
        self.present(SanType::DnsName(name.try_into().expect("name")))
    }

    /// For a workload with this ID.
    pub fn svid(&self, id: &str) -> Presented {
        self.present(SanType::URI(id.try_into().expect("id")))
    }

    fn present(&self, name: SanType) -> Presented {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new([]).expect("names");
        params.subject_alt_names = vec![name];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate").der().clone();
        Presented { certificate, key: key.serialize_der() }
    }
}

/// The server, which answers one request a connection.
pub struct Site {
    pub port: u16,
    tls: Arc<Mutex<TlsAcceptor>>,
    answers: Arc<Mutex<BTreeMap<String, String>>>,
    task: JoinHandle<()>,
}

fn acceptor(presented: &Presented) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(presented.key.clone()));
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![presented.certificate.clone()], key)
        .expect("TLS");
    TlsAcceptor::from(Arc::new(tls))
}

impl Site {
    pub async fn start(presented: &Presented) -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("address").port();
        let (tls, answers) =
            (Arc::new(Mutex::new(acceptor(presented))), Arc::<Mutex<BTreeMap<_, _>>>::default());
        let task = tokio::spawn(serve(listener, Arc::clone(&tls), Arc::clone(&answers)));
        Site { port, tls, answers, task }
    }

    /// Answers so from now on.
    pub fn serve(&self, path: &str, body: &str) {
        self.answers.lock().insert(path.to_owned(), body.to_owned());
    }

    /// Has another certificate from now on.
    pub fn present(&mut self, presented: &Presented) {
        *self.tls.lock() = acceptor(presented);
    }

    /// Goes away.
    pub fn stop(&self) {
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    tls: Arc<Mutex<TlsAcceptor>>,
    answers: Arc<Mutex<BTreeMap<String, String>>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let accepting = tls.lock().accept(stream);
        let Ok(mut stream) = accepting.await else { continue };
        let mut head = vec![0; 4096];
        let read = stream.read(&mut head).await.unwrap_or(0);
        let head = String::from_utf8_lossy(head.get(..read).unwrap_or_default()).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default();
        let body = answers.lock().get(path).cloned();
        let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
        let body = body.unwrap_or_default();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    }
}
