//! The client's side of TLS that is read: what was peeked at comes first, and all bytes count, as they are on the wire.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::stream::Stream;

/// Bytes so far.
#[derive(Debug, Default)]
pub struct Meter {
    sent: AtomicU64,
    received: AtomicU64,
}

/// The stream under TLS.
#[derive(Debug)]
pub struct Wire {
    inner: Stream,
    /// Read before; let go once it was read again.
    held: Vec<u8>,
    at: usize,
    meter: Arc<Meter>,
}

// === impl Meter ===

impl Meter {
    /// Bytes from the client, bytes to the client.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }
}

// === impl Wire ===

impl Wire {
    /// `inner`, of which `held` was read.
    #[must_use]
    pub fn new(inner: Stream, held: Vec<u8>, meter: Arc<Meter>) -> Self {
        Wire { inner, held, at: 0, meter }
    }

    /// What carries it.
    #[must_use]
    pub fn tcp(&self) -> Option<&TcpStream> {
        self.inner.tcp()
    }

    /// See [`Stream::abandon`].
    pub fn abandon(&self) {
        self.inner.abandon();
    }

    fn read(&self, n: usize) {
        self.meter.sent.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn written(&self, n: usize) {
        self.meter.received.fetch_add(n as u64, Ordering::Relaxed);
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.held.get(self.at..).unwrap_or_default();
        if !left.is_empty() {
            let n = left.len().min(out.remaining());
            out.put_slice(left.get(..n).unwrap_or_default());
            self.at += n;
            if self.at >= self.held.len() {
                (self.held, self.at) = (Vec::new(), 0);
            }
            self.read(n);
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, out))?;
        self.read(out.filled().len().saturating_sub(before));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.written(n);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, slices))?;
        self.written(n);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
