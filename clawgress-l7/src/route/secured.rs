//! A parent proxy that is reached over TLS. What it is asked, credential and all, is said to who has proven its name alone.
//!
//! A destination's connection is then within that TLS. Who dialled it gets one end of a pair of sockets in place of a TCP
//! connection, so that tunnels and Pingora need not know; a task carries what passes between the other end and the TLS.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::pin::pin;
use std::slice::from_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use pingora_core::protocols::l4::stream::Stream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest, split};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::tunnel::{Tail, Upstream};
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
    Within(Box<Within>),
}

/// What is within TLS, and the pair of sockets by which it is carried from there.
#[derive(Debug)]
pub struct Within {
    stream: TlsStream<TcpStream>,
    own: UnixStream,
    given: UnixStream,
}

/// How it is known that who has the other end is gone.
#[derive(Debug)]
enum Far {
    /// By a look, since it tells nothing.
    Watched(Gone),
    /// It tells.
    Tunnel(Tail),
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

/// Tells when nobody has the other end of a pair any more, whatever waits in it.
#[derive(Debug)]
struct Gone(UnixStream);

// === impl Gone ===

impl Gone {
    fn of(own: &UnixStream) -> io::Result<Gone> {
        // What is ready is noted apart for this one, and cleared here without keeping who carries from it.
        let other = std::os::unix::net::UnixStream::from(own.as_fd().try_clone_to_owned()?);
        UnixStream::from_std(other).map(Gone)
    }

    /// Whether it is so now. So it is, too, where both directions were shut.
    fn is_so(&self) -> bool {
        let mut asked = PollFd::new(&self.0, PollFlags::empty());
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // What can't be asked is taken for a cut: nothing must pass for whole that is not.
        poll(from_mut(&mut asked), Some(&at_once)).is_err() || asked.revents().contains(PollFlags::HUP)
    }

    async fn wait(&self) {
        while let Ok(ready) = self.0.ready(Interest::WRITABLE).await {
            if ready.is_write_closed() {
                return;
            }
            let wait = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = self.0.try_io(Interest::WRITABLE, wait);
            // Whatever comes by the pair is told, too.
            tokio::time::sleep(limit::PARENT_LOOK).await;
        }
    }
}

// === impl Far ===

impl Far {
    /// Whether it was cut, given whether the parent `has_ended`.
    fn is_cut(&self, has_ended: bool) -> bool {
        match self {
            Far::Watched(gone) => !has_ended && gone.is_so(),
            Far::Tunnel(tail) => tail.is_dropped(),
        }
    }

    async fn gone(&self) {
        match self {
            Far::Watched(gone) => gone.wait().await,
            Far::Tunnel(tail) => tail.dropped().await,
        }
    }

    /// What is left may take so long once it is gone where the parent had ended, as that may be how it ends in order: the last bytes
    /// have a moment to be taken from here, and the end that follows them what any write has. Who tells has waited for that already.
    async fn grace(&self, is_sent: &CancellationToken) {
        if matches!(self, Far::Tunnel(_)) {
            return;
        }
        let _ = timeout(limit::CUT_GRACE, is_sent.cancelled()).await;
        if is_sent.is_cancelled() {
            tokio::time::sleep(limit::CLIENT_WRITE).await;
        }
    }
}

// === impl Within ===

impl Within {
    /// The end for who tells nothing when it is done.
    ///
    /// # Errors
    /// If there is no descriptor for it.
    pub fn watched(self) -> io::Result<UnixStream> {
        let gone = Gone::of(&self.own)?;
        tokio::spawn(carry(self.stream, self.own, Far::Watched(gone)));
        Ok(self.given)
    }

    /// The end for a tunnel.
    ///
    /// # Errors
    /// If the runtime does not take it.
    fn awaited(self) -> io::Result<Upstream> {
        // Of either kind nothing but reads, writes and ends is asked, which are the same calls.
        let given = std::net::TcpStream::from(OwnedFd::from(self.given.into_std()?));
        let (upstream, tail) = Upstream::carried_on(TcpStream::from_std(given)?);
        tokio::spawn(carry(self.stream, self.own, Far::Tunnel(tail)));
        Ok(upstream)
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
        Ok(Leg::Within(Box::new(Within { stream, own, given })))
    }

    /// As what a tunnel leads to.
    ///
    /// # Errors
    /// If the runtime does not take it.
    pub fn into_upstream(self) -> io::Result<Upstream> {
        match self {
            Leg::Bare(stream) => Ok(stream.into()),
            Leg::Within(within) => within.awaited(),
        }
    }

    /// As a connection of Pingora's.
    ///
    /// # Errors
    /// If there is no descriptor for it.
    pub fn into_stream(self) -> io::Result<Stream> {
        match self {
            Leg::Bare(stream) => Ok(stream.into()),
            Leg::Within(within) => Ok(within.watched()?.into()),
        }
    }
}

/// Carries what passes until both sides have ended, or until nobody has the other end any more: whoever had it bounds how long this
/// takes, also while the parent takes nothing. Then it was cut, or failed: what is under way is dropped, and the parent sees a reset.
async fn carry(stream: TlsStream<TcpStream>, own: UnixStream, far: Far) {
    let (mut from_parent, mut to_parent) = split(stream);
    let (mut from_here, mut to_here) = own.into_split();
    let (ended, has_ended) = (CancellationToken::new(), AtomicBool::new(false));
    let is_sent = CancellationToken::new();
    let up = async {
        let _ = copy(&mut from_here, &mut to_parent, &CancellationToken::new()).await;
        if far.is_cut(has_ended.load(Ordering::Relaxed)) {
            // Who waits for that may not have seen it yet. No end must be told before.
            return std::future::pending().await;
        }
        is_sent.cancel();
        let _ = timeout(limit::CLIENT_WRITE, to_parent.shutdown()).await;
        ended.cancel();
    };
    let down = async {
        let is_whole = copy(&mut from_parent, &mut to_here, &ended).await.is_ok();
        has_ended.store(is_whole, Ordering::Relaxed);
        let _ = to_here.shutdown().await;
    };
    let is_carried = {
        let mut both = pin!(async { tokio::join!(up, down) });
        tokio::select! {
            biased;
            () = far.gone() => has_ended.load(Ordering::Relaxed) && tokio::select! {
                _ = &mut both => true,
                () = far.grace(&is_sent) => false,
            },
            _ = &mut both => true,
        }
    };
    if !is_carried {
        tunnel::reset_on_drop(from_parent.unsplit(to_parent).get_ref().0);
    }
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

#[cfg(test)]
mod tests;
