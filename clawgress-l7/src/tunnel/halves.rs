//! The two directions of a client's connection.

use std::fmt::Debug;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, tcp};

use super::{COPY_BYTES, Meter};
use crate::stream::Stream;

/// A stream over TLS, or within one of HTTP/2.
pub trait Duplex: AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin> Duplex for T {}

/// What comes from the client.
#[derive(Debug)]
pub enum Reader<'a> {
    /// In clear.
    Clear(tcp::ReadHalf<'a>),
    /// Deciphered, or taken out of frames.
    Tls(ReadHalf<&'a mut dyn Duplex>),
}

/// What goes to it.
#[derive(Debug)]
pub enum Writer<'a> {
    /// In clear.
    Clear(tcp::WriteHalf<'a>),
    /// To be enciphered, or framed.
    Tls(WriteHalf<&'a mut dyn Duplex>),
}

/// Both directions.
pub fn split(stream: &mut Stream) -> (Reader<'_>, Writer<'_>) {
    match stream {
        Stream::Clear(stream) => {
            let (reader, writer) = stream.split();
            (Reader::Clear(reader), Writer::Clear(writer))
        }
        Stream::Tls(stream) => {
            let (reader, writer) = tokio::io::split(&mut **stream as &mut dyn Duplex);
            (Reader::Tls(reader), Writer::Tls(writer))
        }
        Stream::Read(stream) => {
            let (reader, writer) = tokio::io::split(&mut **stream as &mut dyn Duplex);
            (Reader::Tls(reader), Writer::Tls(writer))
        }
        Stream::Within(stream) => {
            let (reader, writer) = tokio::io::split(&mut **stream as &mut dyn Duplex);
            (Reader::Tls(reader), Writer::Tls(writer))
        }
    }
}

impl Writer<'_> {
    /// Says all of `bytes`.
    pub async fn say(&mut self, bytes: &[u8], meter: &Meter) -> io::Result<()> {
        match self {
            Writer::Clear(client) => super::write(client.as_ref(), bytes, meter, &meter.received).await,
            Writer::Tls(client) => {
                client.write_all(bytes).await?;
                client.flush().await?;
                meter.moved(&meter.received, bytes.len());
                Ok(())
            }
        }
    }
}

impl AsyncRead for Reader<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Reader::Clear(half) => Pin::new(half).poll_read(cx, out),
            Reader::Tls(half) => Pin::new(half).poll_read(cx, out),
        }
    }
}

/// Carries what a client sends over TLS to its end, and passes the end on. One that is cut short is an error.
pub async fn read(
    mut client: ReadHalf<&mut dyn Duplex>,
    upstream: &TcpStream,
    meter: &Meter,
) -> io::Result<()> {
    loop {
        // No memory while there is nothing: tunnels are many, and mostly idle.
        let bytes = poll_fn(|cx| {
            let mut space = [const { MaybeUninit::<u8>::uninit() }; COPY_BYTES];
            let mut buffer = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut client).poll_read(cx, &mut buffer))?;
            Poll::Ready(io::Result::Ok(buffer.filled().to_vec()))
        });
        let bytes = bytes.await?;
        if bytes.is_empty() {
            break;
        }
        super::write(upstream, &bytes, meter, &meter.sent).await?;
    }
    super::end(upstream, meter)
}

/// Carries what comes back to its end, and passes the end on.
pub async fn write(
    upstream: &TcpStream,
    mut client: WriteHalf<&mut dyn Duplex>,
    meter: &Meter,
) -> io::Result<()> {
    loop {
        upstream.readable().await?;
        let mut buffer = vec![0; COPY_BYTES];
        let n = match upstream.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        client.write_all(buffer.get(..n).unwrap_or_default()).await?;
        client.flush().await?;
        meter.moved(&meter.received, n);
    }
    meter.end();
    client.shutdown().await
}
