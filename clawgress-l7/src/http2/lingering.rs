//! A client's connection that is closed as one of HTTP/1 is: what the client still sends is read for a moment, since it would
//! become a reset, and the last of what it was answered could be lost to it. Of one that sends without end what carries nothing, no
//! more is read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use super::overhead::Overhead;
use crate::intercept::Wire;
use crate::limit;

/// Most bytes that are thrown away at once.
const SINK_BYTES: usize = 4096;

/// The connection.
#[derive(Debug)]
pub struct Lingering {
    inner: Wire,
    /// For how long, once our side is closed.
    until: Option<Pin<Box<Sleep>>>,
    thrown: usize,
    /// Since when the client has taken nothing of what is written.
    stalled: Option<Instant>,
    overhead: Overhead,
    flooded: CancellationToken,
}

// === impl Lingering ===

impl Lingering {
    /// Over `inner`; `flooded` is cancelled once the client has sent more than it may of what carries nothing.
    #[must_use]
    pub fn new(inner: Wire, flooded: CancellationToken) -> Lingering {
        let overhead = Overhead::new(Instant::now());
        Lingering { inner, until: None, thrown: 0, stalled: None, overhead, flooded }
    }

    /// Notes whether the client took what was written.
    fn note<T>(&mut self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
        } else {
            self.stalled.get_or_insert_with(Instant::now);
        }
        written
    }

    /// As [`note`](Self::note), of bytes.
    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &written {
            self.overhead.sent(*n);
        }
        self.note(written)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        // Whoever is only slow may still take what was written.
        if self.stalled.is_some_and(|since| since.elapsed() >= limit::CLIENT_WRITE) {
            self.inner.abandon();
        }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.flooded.is_cancelled() {
            // Whoever drives this knows, and ends it.
            return Poll::Pending;
        }
        let before = out.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, out))?;
        let read = out.filled().get(before..).unwrap_or_default();
        if !this.overhead.keeps(read, Instant::now()) {
            this.flooded.cancel();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.note(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.until.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        let until = this.until.get_or_insert_with(|| Box::pin(sleep(limit::LINGER)));
        while this.thrown < limit::LINGER_BYTES && until.as_mut().poll(cx).is_pending() {
            let mut sink = [0; SINK_BYTES];
            let mut sink = ReadBuf::new(&mut sink);
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut sink)) {
                Ok(()) if !sink.filled().is_empty() => this.thrown += sink.filled().len(),
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
