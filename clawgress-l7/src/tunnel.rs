//! Bytes in both directions, unread: splice(2) through pipes that are held only while data moves, and
//! a copy where that is not possible, as with a client that speaks TLS to the proxy.
//!
//! Each direction ends on its own (half-close); an error in one ends both. Must never lose a byte that
//! was read: a pipe that still holds data is never put back.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clawgress_ebpf_common::DropReason;
use rustix::pipe::{SpliceFlags, splice};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::SetOnce;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::limit;
use crate::stream::Stream;

mod halves;
mod hello;
mod pipes;

pub use halves::Reader;
use halves::Writer;
use hello::Begun;
pub use pipes::Pipes;

/// Buffer of the copy that replaces splice(2).
const COPY_BYTES: usize = 16 * 1024;

/// What a tunnel leads to.
#[derive(Debug)]
pub struct Upstream {
    /// Before the connection: who sees that end knows what it is.
    _dropped: Option<DropGuard>,
    taken: Option<CancellationToken>,
    stream: TcpStream,
}

/// What whoever carries on what comes by a connection has of its tunnel.
#[derive(Debug)]
pub struct Tail {
    dropped: CancellationToken,
    /// To be dropped once all that has come is with the next connection, or never will be.
    _taken: DropGuard,
}

// === impl Upstream ===

impl Upstream {
    /// A connection from which somebody carries on. A tunnel that ends in order waits until all was taken: it is cut where it is
    /// dropped before.
    #[must_use]
    pub fn carried_on(stream: TcpStream) -> (Upstream, Tail) {
        let (dropped, taken) = (CancellationToken::new(), CancellationToken::new());
        let tail = Tail { dropped: dropped.clone(), _taken: taken.clone().drop_guard() };
        (Upstream { _dropped: Some(dropped.drop_guard()), taken: Some(taken), stream }, tail)
    }

    /// The connection.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Ends once the system, or the next connection, has all that was written.
    async fn taken(&self) {
        if let Some(taken) = &self.taken {
            taken.cancelled().await;
        }
    }
}

impl From<TcpStream> for Upstream {
    fn from(stream: TcpStream) -> Upstream {
        Upstream { _dropped: None, taken: None, stream }
    }
}

// === impl Tail ===

impl Tail {
    /// Whether the tunnel has ended, which is a cut as long as not all was taken.
    #[must_use]
    pub fn is_dropped(&self) -> bool {
        self.dropped.is_cancelled()
    }

    /// Ends when that is so.
    pub async fn dropped(&self) {
        self.dropped.cancelled().await;
    }
}

/// Bytes so far, and when the last ones moved.
#[derive(Debug)]
pub struct Meter {
    began: Instant,
    /// From the client.
    sent: AtomicU64,
    /// To the client.
    received: AtomicU64,
    last_ms: AtomicU64,
    half_closed: AtomicBool,
}

// === impl Meter ===

impl Default for Meter {
    fn default() -> Self {
        Meter {
            began: Instant::now(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            last_ms: AtomicU64::new(0),
            half_closed: AtomicBool::new(false),
        }
    }
}

impl Meter {
    /// Bytes from the client, bytes to the client.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }

    fn moved(&self, count: &AtomicU64, n: usize) {
        count.fetch_add(n as u64, Ordering::Relaxed);
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    fn end(&self) {
        self.half_closed.store(true, Ordering::Relaxed);
    }

    /// Ends when nothing has moved for too long.
    async fn idle(&self) {
        loop {
            let half = self.half_closed.load(Ordering::Relaxed);
            let allowed = if half { limit::TUNNEL_HALF_CLOSED } else { limit::TUNNEL_IDLE };
            let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            let left = (last + allowed).saturating_sub(self.began.elapsed());
            if left.is_zero() {
                return;
            }
            // A half-close shortens the time while this sleeps, so look again at least that often.
            tokio::time::sleep(left.min(limit::TUNNEL_HALF_CLOSED)).await;
        }
    }
}

/// Carries what `first` ends with (bytes of the client that were read already, or that it reads) and then everything,
/// until both sides have ended, one fails, nothing moves for too long, or `first` or `cut` says why to
/// stop. Until `first` has ended, nothing goes on from the client but what that [passes](pass), and behind a hello of TLS nothing before the server has answered; what the upstream says goes on at
/// once. It has not ended before all of it was taken. What is stopped ends by a reset at the upstream, and is to end so at the client ([`Stream::abandon`]). The `pipes` are taken for this agent, by its index. Returns the bytes sent and received, and why it was stopped, if it was.
pub async fn run<'a, F>(
    client: &'a mut Stream,
    (upstream, meter): (&Upstream, &Meter),
    first: impl FnOnce(Reader<'a>) -> F,
    pipes: (&Arc<Pipes>, u32),
    cut: impl Future<Output = DropReason>,
) -> (u64, u64, Option<DropReason>)
where
    F: Future<Output = (Reader<'a>, Result<Vec<u8>, Stop>)>,
{
    let far = upstream;
    let upstream = upstream.stream();
    for stream in client.tcp().into_iter().chain([upstream]) {
        let _ = stream.set_nodelay(true);
        keep_alive(stream);
    }
    let (reader, mut writer) = halves::split(client);
    let is_retry = SetOnce::new();
    let sending = async {
        let (mut reader, first) = first(reader).await;
        let Begun { bytes, behind } = Begun::of(first?);
        write(upstream, &bytes, meter, &meter.sent).await?;
        // It is small, but tunnels are many and long.
        drop(bytes);
        if let Some(behind) = behind {
            let behind = Box::pin(hello::behind(&mut reader, behind, &is_retry)).await.map_err(Stop::For)?;
            write(upstream, &behind, meter, &meter.sent).await?;
        }
        match reader {
            Reader::Clear(client) => pump(client.as_ref(), upstream, meter, &meter.sent, pipes).await?,
            Reader::Tls(client) => halves::read(client, upstream, meter).await?,
        }
        Ok::<(), Stop>(())
    };
    let receiving = async {
        hello::reply(upstream, &mut writer, meter, &is_retry).await?;
        match writer {
            Writer::Clear(client) => pump(upstream, client.as_ref(), meter, &meter.received, pipes).await?,
            Writer::Tls(client) => halves::write(upstream, client, meter).await?,
        }
        Ok(())
    };
    let carried = async {
        tokio::try_join!(sending, receiving)?;
        far.taken().await;
        Ok(())
    };
    let stopped = tokio::select! {
        // Before anything is carried on.
        biased;
        reason = cut => Some(reason),
        carried = carried => match carried {
            Err(Stop::For(reason)) => Some(reason),
            // An error is how many protocols end: the bytes tell what came across.
            Ok(()) | Err(Stop::Io) => None,
        },
        () = meter.idle() => Some(DropReason::Timeout),
    };
    let (sent, received) = meter.bytes();
    if stopped.is_some() {
        // What was sent and not taken yet doesn't go on, and the server doesn't take what it has got for all there is.
        reset_on_drop(upstream);
    }
    (sent, received, stopped)
}

/// Has a connection end by a reset once it is dropped, with all that its peer has not taken. A Unix socket knows none: where the
/// upstream is within the TLS of a parent, who carries it there sees that it was dropped, and resets the parent's connection.
pub fn reset_on_drop(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Finds peers that are gone without a word; a socket that can't do it still has the idle time.
pub fn keep_alive(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(limit::TCP_KEEPALIVE).with_interval(limit::TCP_KEEPALIVE);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// Passes on what comes from the client before it is known what that is.
///
/// # Errors
/// [`Stop::Io`].
pub async fn pass((upstream, meter): (&Upstream, &Meter), bytes: &[u8]) -> Result<(), Stop> {
    Ok(write(upstream.stream(), bytes, meter, &meter.sent).await?)
}

/// Why carrying ended early.
#[derive(Debug)]
pub enum Stop {
    /// The client's first bytes must not go on.
    For(DropReason),
    /// A side failed.
    Io,
}

impl From<DropReason> for Stop {
    fn from(reason: DropReason) -> Self {
        Stop::For(reason)
    }
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Stop::Io
    }
}

/// Carries one direction to its end and passes the end on.
async fn pump(
    from: &TcpStream,
    to: &TcpStream,
    meter: &Meter,
    count: &AtomicU64,
    (pipes, agent): (&Arc<Pipes>, u32),
) -> io::Result<()> {
    // Whether as much came at once as an ordinary pipe holds: larger pieces cost fewer calls and wake-ups.
    let mut is_much = false;
    loop {
        if is_much {
            // More comes while others run: fewer and larger pieces for as many calls.
            tokio::task::yield_now().await;
        }
        from.readable().await?;
        let pipe = if is_much { pipes.take_wide(agent) } else { pipes.take(agent) };
        let moved = match pipe {
            Some(mut pipe) => {
                let read = from.try_io(Interest::READABLE, || {
                    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
                    Ok(splice(from, None, pipe.writer(), None, pipe.bytes(), flags)?)
                });
                match read {
                    Ok(n) => {
                        pipe.holds(n);
                        empty(&mut pipe, to, meter, count).await?;
                        Ok(n)
                    }
                    Err(error) => Err(error),
                }
            }
            None => copy(from, to, meter, count).await,
        };
        match moved {
            Ok(0) => break,
            Ok(n) => is_much = n >= pipes::PIPE_BYTES,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    end(to, meter)
}

/// Passes on that a direction has ended.
fn end(to: &TcpStream, meter: &Meter) -> io::Result<()> {
    meter.end();
    rustix::net::shutdown(to, rustix::net::Shutdown::Write)?;
    Ok(())
}

/// Writes out everything a pipe holds.
async fn empty(pipe: &mut pipes::Pipe, to: &TcpStream, meter: &Meter, count: &AtomicU64) -> io::Result<()> {
    while pipe.held() > 0 {
        let held = pipe.held();
        let written = to
            .async_io(Interest::WRITABLE, || {
                Ok(splice(pipe.reader(), None, to, None, held, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
            })
            .await?;
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        pipe.gave(written);
        meter.moved(count, written);
    }
    Ok(())
}

/// One read and its writes, through memory.
async fn copy(from: &TcpStream, to: &TcpStream, meter: &Meter, count: &AtomicU64) -> io::Result<usize> {
    let mut buffer = vec![0; COPY_BYTES];
    let n = from.try_read(&mut buffer)?;
    write(to, buffer.get(..n).unwrap_or_default(), meter, count).await?;
    Ok(n)
}

/// Writes all of `bytes`.
async fn write(to: &TcpStream, bytes: &[u8], meter: &Meter, count: &AtomicU64) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        to.writable().await?;
        match to.try_write(rest) {
            Ok(written) => {
                rest = rest.get(written..).unwrap_or_default();
                meter.moved(count, written);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
