//! A client's connection: TCP in clear, TLS over it, or what is read of TLS that was meant for a server. Whoever carries bytes takes either for the same, but for
//! tunnels, which splice what is in clear.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::http2::Within;
use crate::intercept::Wire;
use crate::tunnel;

/// The connection.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Clear(TcpStream),
    /// TLS, after its handshake.
    Tls(Box<TlsStream<TcpStream>>),
    /// What a client sends to a server, as whom the gateway has shown itself.
    Read(Box<TlsStream<Wire>>),
    /// A tunnel within a stream of HTTP/2.
    Within(Box<Within>),
}

// === impl Stream ===

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Stream::Clear(stream)
    }
}

impl Stream {
    /// What carries it, and nothing else.
    #[must_use]
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Stream::Clear(stream) => Some(stream),
            Stream::Tls(stream) => Some(stream.get_ref().0),
            Stream::Read(stream) => stream.get_ref().0.tcp(),
            Stream::Within(_) => None,
        }
    }

    /// The descriptor of that.
    #[must_use]
    pub fn descriptor(&self) -> Option<RawFd> {
        self.tcp().map(AsRawFd::as_raw_fd)
    }

    /// Has the connection end by a reset once it is dropped, with all that its client has not taken: the kernel would offer that
    /// for as long as the client takes a byte of it now and then, and nothing counts such connections.
    pub fn abandon(&self) {
        if let Some(tcp) = self.tcp() {
            tunnel::reset_on_drop(tcp);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Clear(stream) => Pin::new(stream).poll_read(cx, out),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, out),
            Stream::Read(stream) => Pin::new(stream).poll_read(cx, out),
            Stream::Within(stream) => Pin::new(stream).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Clear(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Read(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Within(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Clear(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Read(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Within(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Read(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Within(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Clear(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Read(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Within(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Clear(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
            Stream::Read(stream) => stream.is_write_vectored(),
            Stream::Within(stream) => stream.is_write_vectored(),
        }
    }
}
