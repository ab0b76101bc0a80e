//! Relays that do as little as can be done, without anything of ours: what benchmarks compare with, besides a bare Pingora. One
//! reads TLS blindly, asked by CONNECT or as if it were the server: a leaf of its own authority for whatever name a client asks for,
//! TLS to the upstream, and bytes are copied.
//! Two carry bytes unread, by splice(2) and by a buffer. `bare_relays BLIND_LISTEN CONNECT_LISTEN BLIND_UPSTREAM AUTHORITY
//! ROOTS SPLICE_LISTEN COPY_LISTEN UPSTREAM`; its certificate is written to `AUTHORITY`.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, pipe, splice};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{Acceptor, NoServerSessionStorage};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

/// Bytes that are moved at once.
const PIECE: usize = 1 << 20;
/// Bytes of the buffer where they are copied.
const BUFFER: usize = 256 * 1024;

/// Reads TLS, whatever is in it.
struct Blind {
    authority: CertifiedIssuer<'static, KeyPair>,
    known: Mutex<HashMap<String, Arc<ServerConfig>>>,
    upstream: String,
    connector: TlsConnector,
}

/// Carries one direction to its end.
type Carry = fn(&TcpStream, &TcpStream) -> io::Result<()>;

// === impl Blind ===

impl Blind {
    fn new(upstream: String, roots: &Path) -> anyhow::Result<Blind> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "blind");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let mut store = RootCertStore::empty();
        store.add(CertificateDer::from_pem_file(roots)?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        Ok(Blind { authority, known: Mutex::default(), upstream, connector })
    }

    /// How to speak TLS as `name`: a new leaf where nobody has asked for it.
    fn config(&self, name: &str) -> anyhow::Result<Arc<ServerConfig>> {
        if let Some(known) = self.known.lock().get(name) {
            return Ok(Arc::clone(known));
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        let leaf = params.signed_by(&key, &self.authority)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )?;
        // As the gateway has it: no session outlives a connection.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let config = Arc::new(config);
        self.known.lock().insert(name.to_owned(), Arc::clone(&config));
        Ok(config)
    }

    /// Serves who comes to `listener`.
    async fn listen(self: Arc<Self>, listener: tokio::net::TcpListener, is_proxy: bool) -> io::Result<()> {
        loop {
            let (stream, _) = listener.accept().await?;
            let blind = Arc::clone(&self);
            // A client that ends is no matter.
            tokio::spawn(async move { blind.serve(stream, is_proxy).await.ok() });
        }
    }

    async fn serve(&self, mut stream: tokio::net::TcpStream, is_proxy: bool) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        if is_proxy {
            connected(&mut stream).await?;
        }
        let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let name = begun.client_hello().server_name().context("a hello without a name")?.to_owned();
        let mut client = begun.into_stream(self.config(&name)?).await?;
        // As of the others: no server is asked before its client says something. One that goes away is no error, of which a trace would
        // be taken.
        let mut first = vec![0; 16 * 1024];
        let Ok(n @ 1..) = client.read(&mut first).await else { return Ok(()) };
        let stream = tokio::net::TcpStream::connect(&self.upstream).await?;
        stream.set_nodelay(true)?;
        let mut server = self.connector.connect(ServerName::try_from(name)?, stream).await?;
        server.write_all(first.get(..n).unwrap_or_default()).await?;
        server.flush().await?;
        tokio::io::copy_bidirectional(&mut client, &mut server).await?;
        Ok(())
    }
}

/// Answers a CONNECT, to wherever it is.
async fn connected(stream: &mut tokio::net::TcpStream) -> anyhow::Result<()> {
    let mut head = Vec::with_capacity(1024);
    while !head.ends_with(b"\r\n\r\n") {
        let more = stream.read_buf(&mut head).await?;
        anyhow::ensure!(more > 0 && head.len() <= PIECE, "a head without its end");
    }
    Ok(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?)
}

/// By splice(2), through a pipe.
fn spliced(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (reader, writer) = pipe()?;
    fcntl_setpipe_size(&writer, PIECE)?;
    loop {
        let mut left = splice(from, None, &writer, None, PIECE, SpliceFlags::MOVE)?;
        if left == 0 {
            return to.shutdown(Shutdown::Write);
        }
        while left > 0 {
            left -= splice(&reader, None, to, None, left, SpliceFlags::MOVE)?;
        }
    }
}

/// By a buffer: what the standard library copies between sockets it splices.
fn copied(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return to.shutdown(Shutdown::Write);
        }
        to.write_all(buffer.get(..n).unwrap_or_default())?;
    }
}

/// Accepts, with a thread for each direction.
fn relay(listener: &TcpListener, upstream: &str, carry: Carry) {
    for client in listener.incoming().filter_map(Result::ok) {
        let upstream = upstream.to_owned();
        std::thread::spawn(move || -> io::Result<()> {
            let server = TcpStream::connect(upstream)?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            std::thread::scope(|scope| {
                let sending = scope.spawn(|| carry(&client, &server));
                let _ = carry(&server, &client);
                let _ = sending.join();
            });
            Ok(())
        });
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [
        blind_listen,
        connect_listen,
        blind_upstream,
        authority,
        roots,
        splice_listen,
        copy_listen,
        upstream,
    ] = words.try_into().ok().context("usage: see the top of this file")?;
    let blind = Arc::new(Blind::new(blind_upstream, Path::new(&roots))?);
    std::fs::write(&authority, blind.authority.pem()).context("cannot write the authority")?;
    for (listen, carry) in [(splice_listen, spliced as Carry), (copy_listen, copied)] {
        let (listener, upstream) = (TcpListener::bind(&listen)?, upstream.clone());
        std::thread::spawn(move || relay(&listener, &upstream, carry));
    }
    let listener = tokio::net::TcpListener::bind(&blind_listen).await?;
    let proxied = tokio::net::TcpListener::bind(&connect_listen).await?;
    // Each a task of its own: what is accepted begins where it was, without another thread.
    let accepting = tokio::spawn(Arc::clone(&blind).listen(listener, false));
    tokio::spawn(blind.listen(proxied, true)).await??;
    Ok(accepting.await??)
}
