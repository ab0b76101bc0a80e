//! A parent proxy that is reached over TLS. What it is asked, credential and all, is said to who has proven its name alone.
//!
//! A destination's connection is then within that TLS. Who dialled it gets one end of a pair of sockets in place of a TCP
//! connection, so that tunnels and Pingora need not know; a task carries what passes between the other end and the TLS.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use pingora_core::protocols::l4::stream::Stream;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::{limit, roots, tls, tunnel};

/// Bytes that are carried at once.
const CARRY_BYTES: usize = 16 * 1024;

/// Whose certificate is taken.
#[derive(Clone)]
pub struct Secured {
    connector: TlsConnector,
    name: ServerName<'static>,
}

/// What leads to a destination.
#[derive(Debug)]
pub enum Leg {
    /// A connection.
    Bare(TcpStream),
    /// What is within the TLS of a parent proxy.
    Within(UnixStream),
}

// === impl Secured ===

impl std::fmt::Debug for Secured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Secured").field(&self.name).finish()
    }
}

impl Secured {
    /// Who proves `name` by the system's authorities, or those of `files`.
    ///
    /// # Errors
    /// If the name is none, or the authorities can't be read.
    pub fn new(name: &str, files: &[PathBuf]) -> Result<Secured> {
        let name = ServerName::try_from(name.to_owned()).context("`tls` is no name of a server")?;
        let roots = roots::store(files).context("`roots` can't be used")?;
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Secured { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// Begins TLS on a connection to it.
    ///
    /// # Errors
    /// If it does not prove its name.
    pub async fn begin(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        stream.set_nodelay(true)?;
        tunnel::keep_alive(&stream);
        self.connector.connect(self.name.clone(), stream).await
    }
}

// === impl Leg ===

impl Leg {
    /// What `stream` carries from now on.
    ///
    /// # Errors
    /// If there is no descriptor for it.
    pub fn within(stream: TlsStream<TcpStream>) -> io::Result<Leg> {
        let (own, given) = UnixStream::pair()?;
        tokio::spawn(carry(stream, own));
        Ok(Leg::Within(given))
    }

    /// As a socket that bytes are moved by.
    ///
    /// # Errors
    /// If the runtime does not take it.
    pub fn into_socket(self) -> io::Result<TcpStream> {
        match self {
            Leg::Bare(stream) => Ok(stream),
            // Of either kind nothing but reads, writes and ends is asked, which are the same calls.
            Leg::Within(stream) => {
                TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(stream.into_std()?)))
            }
        }
    }
}

impl From<Leg> for Stream {
    fn from(leg: Leg) -> Stream {
        match leg {
            Leg::Bare(stream) => stream.into(),
            Leg::Within(stream) => stream.into(),
        }
    }
}

/// Carries what passes until both sides have ended. Who has the other end bounds how long that takes; one that is gone
/// altogether looks as one that has ended its side, for which there is a bound here.
async fn carry(stream: TlsStream<TcpStream>, own: UnixStream) {
    let (mut from_parent, mut to_parent) = split(stream);
    let (mut from_here, mut to_here) = own.into_split();
    let ended = CancellationToken::new();
    let up = async {
        let _ = copy(&mut from_here, &mut to_parent, &CancellationToken::new()).await;
        let _ = timeout(limit::CLIENT_WRITE, to_parent.shutdown()).await;
        ended.cancel();
    };
    let down = async {
        let _ = copy(&mut from_parent, &mut to_here, &ended).await;
        let _ = to_here.shutdown().await;
    };
    tokio::join!(up, down);
}

/// Copies to the end of `from`. Once `ended`, silence ends it, too.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    ended: &CancellationToken,
) -> io::Result<()> {
    let mut buffer = vec![0; CARRY_BYTES];
    loop {
        let silent = async {
            ended.cancelled().await;
            tokio::time::sleep(limit::TUNNEL_HALF_CLOSED).await;
        };
        let n = tokio::select! {
            n = from.read(&mut buffer) => n?,
            () = silent => return Err(io::ErrorKind::TimedOut.into()),
        };
        if n == 0 {
            return Ok(());
        }
        to.write_all(buffer.get(..n).unwrap_or_default()).await?;
        to.flush().await?;
    }
}
