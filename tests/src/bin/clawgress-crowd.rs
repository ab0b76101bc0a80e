//! Many connections of one kind from one process, held open and idle until it is told that each has to carry something; and the
//! server that tunnels lead to. A process of its own, since each has so many descriptors and no more.
//!
//! Says `open N` once all are open and have carried a word, waits for a line, says `carried N` once each has carried another,
//! and ends with its input. Must never try again: a connection that fails is a failure.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "whoever started it reads what it says")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Parser};
use clawgress_e2e::plan::base64;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Connections that are opened, or used, at once.
const AT_ONCE: usize = 16;
/// For one connection to be opened, or to carry a word, on a busy machine.
const STEP_MAX: Duration = Duration::from_secs(60);
/// Most bytes of an answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// What the server sends back.
const WORD: &[u8; 16] = b"a word and back.";

#[derive(Parser)]
enum Command {
    /// TLS, and whatever comes is sent back
    Serve { address: SocketAddr, certificate: PathBuf, key: PathBuf },
    /// Connections to a server
    Hold(Hold),
}

#[derive(Args, Clone)]
struct Hold {
    /// How many
    count: usize,
    /// Where they lead
    address: SocketAddr,
    /// The server's name
    name: String,
    /// Within TLS, by these authorities
    #[arg(long)]
    roots: Option<PathBuf>,
    /// A request for this path is what each carries; a word that comes back otherwise
    #[arg(long)]
    path: Option<String>,
    /// By CONNECT to this proxy
    #[arg(long, requires = "credential")]
    proxy: Option<SocketAddr>,
    /// `AGENT:KEY` for it
    #[arg(long)]
    credential: Option<String>,
}

trait Stream: AsyncRead + AsyncWrite + Send {}
impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}
type Open = Pin<Box<dyn Stream>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Serve { address, certificate, key } => serve(address, &certificate, &key).await,
        Command::Hold(hold) => held(hold).await,
    }
}

async fn serve(address: SocketAddr, certificate: &Path, key: &Path) -> anyhow::Result<()> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let mut stream = acceptor.accept(stream).await?;
            let mut word = [0; WORD.len()];
            // A client that has ended is a client that has ended.
            while stream.read_exact(&mut word).await.is_ok() {
                stream.write_all(&word).await?;
                stream.flush().await?;
            }
            Ok::<_, std::io::Error>(())
        });
    }
}

/// Opens them, holds them, and has them carry.
async fn held(hold: Hold) -> anyhow::Result<()> {
    let tls = hold.roots.as_deref().map(trusting).transpose()?;
    let hold = Arc::new(hold);
    let mut all = JoinSet::new();
    for part in 0..AT_ONCE {
        let (hold, tls) = (Arc::clone(&hold), tls.clone());
        all.spawn(async move {
            let mut open = vec![];
            for n in (part..hold.count).step_by(AT_ONCE) {
                let one = async {
                    let mut stream = connect(&hold, tls.as_ref()).await?;
                    carry(&hold, &mut stream).await?;
                    anyhow::Ok(stream)
                };
                open.push(timed(one).await.with_context(|| format!("connection {n} is not opened"))?);
            }
            anyhow::Ok(open)
        });
    }
    let mut open = vec![];
    while let Some(part) = all.join_next().await {
        open.push(part??);
    }
    println!("open {}", open.iter().map(Vec::len).sum::<usize>());

    if told().await? == 0 {
        return Ok(());
    }
    let mut all = JoinSet::new();
    for mut part in open {
        let hold = Arc::clone(&hold);
        all.spawn(async move {
            for stream in &mut part {
                timed(carry(&hold, stream)).await.context("a connection that was open carries nothing")?;
            }
            anyhow::Ok(part)
        });
    }
    let mut carried = vec![];
    while let Some(part) = all.join_next().await {
        carried.push(part??);
    }
    println!("carried {}", carried.iter().map(Vec::len).sum::<usize>());
    while told().await? > 0 {}
    Ok(())
}

/// Waits for a line; how long it is, 0 at the end.
async fn told() -> anyhow::Result<usize> {
    let read = || std::io::stdin().read_line(&mut String::new());
    Ok(tokio::task::spawn_blocking(read).await??)
}

async fn timed<T>(step: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(STEP_MAX, step).await.with_context(|| format!("not within {STEP_MAX:?}"))?
}

fn trusting(roots: &Path) -> anyhow::Result<TlsConnector> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(roots)? {
        store.add(root?)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn connect(hold: &Hold, tls: Option<&TlsConnector>) -> anyhow::Result<Open> {
    let mut stream = TcpStream::connect(hold.proxy.unwrap_or(hold.address)).await?;
    stream.set_nodelay(true)?;
    if let Some(credential) = &hold.credential {
        let target = format!("{}:{}", hold.name, hold.address.port());
        let key = base64(credential.as_bytes());
        let head = format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic {key}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        answered(&mut stream).await?;
    }
    Ok(match tls {
        None => Box::pin(stream),
        Some(tls) => Box::pin(tls.connect(ServerName::try_from(hold.name.clone())?, stream).await?),
    })
}

/// Has one carry something, to the server and back.
async fn carry(hold: &Hold, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> anyhow::Result<()> {
    let Some(path) = &hold.path else {
        stream.write_all(WORD).await?;
        stream.flush().await?;
        let mut back = [0; WORD.len()];
        stream.read_exact(&mut back).await?;
        ensure!(back == *WORD, "something else came back");
        return Ok(());
    };
    let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", hold.name);
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    answered(stream).await
}

/// Reads an answer, which has to be a good one, to its end.
async fn answered(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<()> {
    let mut held = Vec::new();
    let end = loop {
        if let Some(at) = held.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        ensure!(held.len() < ANSWER_BYTES_MAX, "a head without an end");
        ensure!(stream.read_buf(&mut held).await? > 0, "it ends before its answer");
    };
    let (head, rest) = held.split_at_checked(end).context("a head")?;
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200 ") {
        bail!("it answers `{}`", head.trim());
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length = length.map_or(Ok(0), |length| length.trim().parse::<usize>())?;
    ensure!(rest.len() <= length && length < ANSWER_BYTES_MAX, "an answer of another length");
    let mut body = vec![0; length - rest.len()];
    stream.read_exact(&mut body).await?;
    Ok(())
}
