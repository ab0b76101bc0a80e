//! The connection of a request that opens a WebSocket: what its server says waits until Pingora has noted that the request has no
//! body; and where its messages are read, it comes in small pieces, since whoever judges them there waits for nothing.
//!
//! Pingora 0.9.1 notes that behind the head, while it reads already, and takes it for the end of the WebSocket where it has read
//! the 101 before. Which comes first, of what is both there, is chance. Must never keep anything back during a handshake of TLS, nor
//! once the request has ended.

use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, Waker, ready};

use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::route::Leg;

/// How far the request is: nothing of it was sent; what comes of it waits; its end is known, and Pingora notes it with the next
/// flush.
const DIALLED: u8 = 0;
const SENT: u8 = 1;
const ENDED: u8 = 2;

/// Most bytes that come at once of what is read: some hundred messages that say next to nothing, each of which is judged before
/// others run; within TLS, what a record has (16 KiB). Large messages cost a few calls more.
const HEARD_BYTES_MAX: usize = 2048;

/// The request, as its connection knows it.
#[derive(Debug, Default)]
pub struct Opening {
    stage: AtomicU8,
    /// Whether what its server says is read.
    is_heard: AtomicBool,
}

/// A connection whose server waits.
#[derive(Debug)]
struct Waiting<S> {
    inner: S,
    opening: Arc<Opening>,
    /// Whether Pingora has noted the end.
    is_over: bool,
    /// Who waits for what comes.
    reader: Option<Waker>,
}

// === impl Opening ===

impl Opening {
    /// Notes that it is sent from now on.
    pub fn begin(&self) {
        self.stage.store(SENT, Ordering::Release);
    }

    /// Notes whether what its server says is read.
    pub fn hears(&self, is_heard: bool) {
        self.is_heard.store(is_heard, Ordering::Release);
    }

    /// Notes its end, which the next flush tells.
    pub fn end(&self) {
        self.stage.store(ENDED, Ordering::Release);
    }

    /// `leg` as its connection.
    ///
    /// # Errors
    /// If there is no such connection any more.
    pub fn over(self: &Arc<Self>, leg: Leg) -> io::Result<Stream> {
        let socket: Box<dyn VirtualSocket> = match leg {
            Leg::Bare(stream) => {
                stream.set_nodelay(true)?;
                Box::new(self.before(stream))
            }
            Leg::Within(within) => Box::new(self.before(within.watched()?)),
        };
        Ok(VirtualSocketStream::new(socket).into())
    }

    fn before<S>(self: &Arc<Self>, inner: S) -> Waiting<S> {
        Waiting { inner, opening: Arc::clone(self), is_over: false, reader: None }
    }
}

// === impl Waiting ===

impl<S: AsyncRead + Unpin> AsyncRead for Waiting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_over && self.opening.stage.load(Ordering::Acquire) != DIALLED {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if !self.is_over || !self.opening.is_heard.load(Ordering::Acquire) {
            return Pin::new(&mut self.inner).poll_read(cx, out);
        }
        let mut piece = ReadBuf::new(out.initialize_unfilled_to(out.remaining().min(HEARD_BYTES_MAX)));
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut piece))?;
        let came = piece.filled().len();
        out.advance(came);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Waiting<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        if !self.is_over && self.opening.stage.load(Ordering::Acquire) == ENDED {
            self.is_over = true;
            self.reader.take().into_iter().for_each(Waker::wake);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync + Debug> VirtualSocket for Waiting<S> {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            // It is, before anything passes.
            VirtualSockOpt::NoDelay => Ok(()),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn what_is_said_early_waits_for_the_end_of_the_request() {
        let (near, mut far) = duplex(1024);
        let opening = Arc::new(Opening::default());
        let mut connection = opening.before(near);
        far.write_all(b"handshake").await.expect("written");
        let mut bytes = [0; 9];
        connection.read_exact(&mut bytes).await.expect("before anything is asked, all passes");
        opening.begin();
        far.write_all(b"101").await.expect("written");
        connection.write_all(b"GET").await.expect("written");
        connection.flush().await.expect("flushed");
        let mut bytes = [0; 3];
        assert!(connection.read_exact(&mut bytes).now_or_never().is_none());
        opening.end();
        assert!(connection.read_exact(&mut bytes).now_or_never().is_none(), "nobody was told of it");
        // Who reads is woken by whoever flushes.
        let mut is_flushed = false;
        let came = poll_fn(|cx| {
            let mut out = ReadBuf::new(&mut bytes);
            let read = Pin::new(&mut connection).poll_read(cx, &mut out);
            if !is_flushed {
                assert!(read.is_pending());
                is_flushed = true;
                let mut noop = Context::from_waker(Waker::noop());
                assert!(Pin::new(&mut connection).poll_flush(&mut noop).is_ready());
            }
            read.map_ok(|()| out.filled().len())
        });
        assert_eq!(came.await.expect("read"), 3);
        assert_eq!(&bytes, b"101");
    }

    #[tokio::test]
    async fn what_is_read_comes_in_small_pieces() {
        const SAID: usize = 8 * HEARD_BYTES_MAX;
        for is_heard in [false, true] {
            let (near, mut far) = duplex(2 * SAID);
            let opening = Arc::new(Opening::default());
            opening.hears(is_heard);
            let mut connection = opening.before(near);
            let mut buffer = [0; SAID];
            far.write_all(&[7; SAID]).await.expect("written");
            let early = connection.read(&mut buffer).await.expect("read");
            assert_eq!(early, SAID, "of a handshake all passes");
            opening.begin();
            opening.end();
            connection.flush().await.expect("flushed");
            far.write_all(&[7; SAID]).await.expect("written");
            let most = if is_heard { HEARD_BYTES_MAX } else { SAID };
            for _ in 0..SAID / most {
                assert_eq!(connection.read(&mut buffer).await.expect("read"), most);
            }
        }
    }
}
