//! The stream Pingora reads: strictly framed, one request at a time, each head judged by its form and
//! rewritten before Pingora sees it.
//!
//! A head that is refused is replaced by a harmless one, so that the application answers it in its one
//! place; nothing that follows is ever read as a request.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf as _, BytesMut};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::http1::{self, Framer, Step};
use parking_lot::Mutex;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep};
use zeroize::Zeroize as _;

use super::Place;
use super::admit::admit;
use super::front::Front;
use super::outgoing::Outgoing;
use crate::limit;
use crate::stream::Stream;

/// What stands for a head that was refused.
const SUBSTITUTE: &[u8] = b"GET / HTTP/1.1\r\nHost: refused.invalid\r\nConnection: close\r\n\r\n";
/// Bytes read at once.
pub(super) const READ_BYTES: usize = 16 * 1024;
/// Bytes held at most: a head, and what comes with its end.
const HELD_BYTES_MAX: usize = http1::HEAD_BYTES_MAX + READ_BYTES;

/// The stream.
pub struct Gate {
    digest: Option<Arc<SocketDigest>>,
    /// This is how a session finds its connection.
    found_by: Option<Arc<ProxyDigest>>,
    front: Arc<Front>,
    outgoing: Outgoing,
    /// The head of an answer that waits.
    withheld: BytesMut,
    /// Whether the client did not take what was last written.
    is_stalled: bool,
    /// Pingora has the stream to itself; whoever [holds](super::hold) a body reads it through a reference.
    reader: Mutex<Reader>,
}

/// What is read, and to where it was judged.
pub(super) struct Reader {
    /// The client; `None` once a tunnel has it.
    inner: Option<Stream>,
    pub(super) front: Arc<Front>,
    pub(super) framer: Framer,
    /// Read, not yet judged.
    pub(super) held: BytesMut,
    /// Judged bytes at the front of `held`, or a rewritten head, or a body that was held.
    pub(super) ready: Ready,
    deadline: Pin<Box<Sleep>>,
    /// Whether the deadline of a head that has begun runs.
    timed: bool,
    /// Whether no head was whole yet.
    first: bool,
    /// Until when what was written must have gone.
    flushing: Option<Pin<Box<Sleep>>>,
    pub(super) closed: bool,
    /// Whether the head that is next asks for a tunnel: nothing is read of it here.
    asks_for_tunnel: bool,
}

/// Bytes that may go on.
pub(super) enum Ready {
    /// This many of the bytes held.
    Held(usize),
    /// These, before them: a head, or what of a body was held. They are counted.
    Own(BytesMut),
}

// === impl Gate ===

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("front", &self.front).finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate before `stream`, of which `held` was read; the first head must be whole by `deadline`.
    #[must_use]
    pub fn new(front: Arc<Front>, stream: Stream, held: &[u8], deadline: Instant) -> Self {
        let digest = stream.descriptor().map(|fd| Arc::new(SocketDigest::from_raw_fd(fd)));
        let found_by = pingora_http::ResponseHeader::build(200, Some(0)).ok().map(|response| {
            Arc::new(ProxyDigest::new(Box::new(response), Some(Box::new(Arc::clone(&front)))))
        });
        let reader = Reader {
            inner: Some(stream),
            front: Arc::clone(&front),
            framer: Framer::default(),
            held: BytesMut::from(held),
            ready: Ready::Held(0),
            deadline: Box::pin(tokio::time::sleep_until(deadline)),
            timed: true,
            first: true,
            flushing: None,
            closed: false,
            asks_for_tunnel: false,
        };
        let (outgoing, withheld) = (Outgoing::default(), BytesMut::new());
        let (is_stalled, reader) = (false, Mutex::new(reader));
        Gate { digest, found_by, front, outgoing, withheld, is_stalled, reader }
    }

    /// Answers in place of what waits, below Pingora, which has written that.
    ///
    /// # Errors
    /// If the client does not take it.
    pub(super) async fn answer(&self, page: &[u8]) -> io::Result<()> {
        self.front.withheld().discard();
        let mut rest = page;
        while !rest.is_empty() {
            let n = poll_fn(|cx| Pin::new(self.reader.lock().inner()?).poll_write(cx, rest)).await?;
            if n == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            self.front.count_written(n);
            rest = rest.get(n..).unwrap_or_default();
        }
        poll_fn(|cx| Pin::new(self.reader.lock().inner()?).poll_flush(cx)).await
    }

    /// Writes what waited and waits no longer.
    fn poll_withheld(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.withheld.is_empty() || self.front.withheld().is_waiting() {
            return Poll::Ready(Ok(()));
        }
        if self.front.withheld().is_discarded() {
            self.withheld = BytesMut::new();
        }
        let inner = self.reader.get_mut().inner()?;
        while !self.withheld.is_empty() {
            let n = ready!(self.outgoing.poll_write(inner, cx, &[io::IoSlice::new(&self.withheld)]))?;
            if n == 0 {
                return Poll::Ready(Err(ErrorKind::WriteZero.into()));
            }
            self.withheld.advance(n);
            self.front.count_written(n);
        }
        // An idle connection has no room for it.
        self.withheld = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    fn poll_write_pieces(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_withheld(cx))?;
        let n = ready!(self.outgoing.poll_write(self.reader.get_mut().inner()?, cx, pieces))?;
        self.front.count_written(n);
        Poll::Ready(Ok(n))
    }

    fn poll_flush_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_withheld(cx))?;
        let inner = self.reader.get_mut().inner()?;
        ready!(self.outgoing.poll_write_held(inner, cx))?;
        Pin::new(inner).poll_flush(cx)
    }

    /// What is read.
    pub(super) fn reader(&self) -> &Mutex<Reader> {
        &self.reader
    }

    /// Writes what is left of the last answer, if anything may pass yet: of one that was only a head, nothing more is written.
    fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.withheld.is_empty() {
            ready!(self.poll_withheld(cx))?;
            ready!(Pin::new(&mut *self).poll_flush(cx))?;
        }
        if self.front.is_over() {
            return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until the next request is there; `false` if there will be none: the client has left, asks for nothing for
    /// [`limit::KEEPALIVE`], or asks for a [tunnel](Gate::tunnel).
    pub(super) async fn arrives(&mut self) -> bool {
        let since = Instant::now();
        let next = |gate: &mut Gate, cx: &mut Context<'_>| {
            ready!(gate.poll_last(cx))?;
            gate.reader.get_mut().poll_next(cx)
        };
        poll_fn(|cx| match next(self, cx) {
            Poll::Ready(Ok(())) => Poll::Ready(self.reader.get_mut().is_ready()),
            Poll::Ready(Err(_)) => Poll::Ready(false),
            Poll::Pending => {
                if self.reader.get_mut().poll_idle(cx, since) {
                    Poll::Ready(false)
                } else {
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The client, and what was read of it, if it asks for a tunnel: its CONNECT is whole. Requests before it were answered.
    #[must_use]
    pub(super) fn tunnel(mut self: Box<Self>) -> Option<(Stream, Vec<u8>)> {
        let reader = self.reader.get_mut();
        let inner = reader.inner.take_if(|_| reader.asks_for_tunnel)?;
        // It holds a credential.
        let held = reader.held.to_vec();
        reader.held.zeroize();
        Some((inner, held))
    }
}

// === impl Reader ===

impl Reader {
    /// The client.
    fn inner(&mut self) -> io::Result<&mut Stream> {
        self.inner.as_mut().ok_or_else(|| ErrorKind::NotConnected.into())
    }

    /// Gives out what is ready. `false` if nothing is.
    fn give(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let (source, left) = match &mut self.ready {
            Ready::Held(0) => return false,
            Ready::Held(n) => (&mut self.held, Some(n)),
            Ready::Own(head) => (head, None),
        };
        let n = left.as_deref().copied().unwrap_or(source.len()).min(out.remaining());
        out.put_slice(source.get(..n).unwrap_or_default());
        source.advance(n);
        match left {
            Some(left) => {
                *left -= n;
                self.front.count_read(n);
            }
            None if source.is_empty() => self.ready = Ready::Held(0),
            None => {}
        }
        n > 0
    }

    /// Whether something is ready to be given out.
    fn is_ready(&self) -> bool {
        match &self.ready {
            Ready::Held(n) => *n > 0,
            Ready::Own(bytes) => !bytes.is_empty(),
        }
    }

    /// Reads and judges until something is ready, or nothing will be any more.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.is_ready() {
                return Poll::Ready(Ok(()));
            }
            if self.step()? {
                continue;
            }
            if self.closed || self.asks_for_tunnel {
                return Poll::Ready(Ok(()));
            }
            if self.poll_deadline(cx) {
                if self.held.is_empty() {
                    // Nothing was asked.
                    self.closed = true;
                    return Poll::Ready(Ok(()));
                }
                self.refuse(DropReason::Timeout, self.held.len());
                continue;
            }
            if self.held.len() >= HELD_BYTES_MAX {
                // Requests that wait for their turn. Whoever has answered the one at hand asks again.
                return Poll::Pending;
            }
            if !ready!(self.poll_more(cx))? {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Judges bytes held. `Ok(false)` if more are needed.
    fn step(&mut self) -> io::Result<bool> {
        if self.front.is_upgraded() && !self.held.is_empty() {
            self.ready = Ready::Held(self.held.len());
            return Ok(true);
        }
        if self.closed
            || self.asks_for_tunnel
            || self.framer.is_at_head() && (self.front.is_busy() || self.held.is_empty())
        {
            return Ok(false);
        }
        match self.framer.advance(&self.held) {
            Ok(Step::More) => return Ok(false),
            Ok(Step::Head(_)) if self.is_for_tunnel() => {
                self.asks_for_tunnel = true;
                return Ok(false);
            }
            Ok(Step::Head(n)) => self.head(n),
            Ok(Step::Pass(n) | Step::End(n)) => self.ready = Ready::Held(n),
            Ok(Step::Drop(n)) => {
                self.held.advance(n);
                self.front.count_read(n);
            }
            Err(error) if self.framer.is_at_head() => {
                tracing::debug!(%error, "refused head");
                self.refuse(DropReason::HttpMalformed, self.held.len());
            }
            Err(error) => {
                tracing::debug!(%error, "refused body");
                self.closed = true;
                self.front.violate(DropReason::HttpMalformed);
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
        Ok(true)
    }

    /// Whether the head that is whole asks for a tunnel, where one can be had.
    fn is_for_tunnel(&self) -> bool {
        matches!(self.front.place, Place::Explicit { .. }) && self.held.starts_with(b"CONNECT ")
    }

    fn head(&mut self, n: usize) {
        (self.timed, self.first) = (false, false);
        let mut head = self.held.split_to(n);
        let judged = http1::parse(&head).map_err(|error| {
            tracing::debug!(%error, "refused head");
            DropReason::HttpMalformed
        });
        match judged.and_then(|parsed| Ok((parsed.body, admit(&parsed, &self.front.place)?))) {
            Ok((body, (mut admitted, rewritten))) => {
                self.framer.body(body);
                self.ready = Ready::Own(BytesMut::from(&*rewritten));
                admitted.keep(rewritten);
                self.front.begin(Ok(admitted), n);
            }
            Err(reason) => self.refuse(reason, n),
        }
        // It may hold a credential; what goes on does not.
        head.zeroize();
    }

    /// Has the application answer that the head is refused. Nothing is read as a request after that.
    fn refuse(&mut self, reason: DropReason, head_bytes: usize) {
        self.closed = true;
        self.timed = false;
        self.held.clear();
        self.ready = Ready::Own(BytesMut::from(SUBSTITUTE));
        self.front.begin(Err(reason), head_bytes);
    }

    /// Reads more, if there is room for it. `false` at the end.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.held.is_empty() && self.framer.is_at_head() {
            // The client may be idle from here on: what its requests took is not kept.
            self.held = BytesMut::new();
        }
        let mut buffer = [const { MaybeUninit::<u8>::uninit() }; READ_BYTES];
        let mut read = ReadBuf::uninit(&mut buffer);
        ready!(Pin::new(self.inner()?).poll_read(cx, &mut read))?;
        self.closed = read.filled().is_empty();
        self.held.extend_from_slice(read.filled());
        Poll::Ready(Ok(!self.closed))
    }

    /// Whether a conversation has to be looked at now.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(at) = self.front.alarm().at().filter(|_| self.front.is_upgraded()) else { return false };
        // There are no heads any more.
        if self.deadline.deadline() != at {
            self.deadline.as_mut().reset(at);
        }
        let rings = self.deadline.as_mut().poll(cx).is_ready();
        if rings {
            self.front.alarm().ring();
        }
        rings
    }

    /// Whether nothing was asked for too long since `since`. The timer runs on over many requests: to set it for each would cost
    /// each of them.
    fn poll_idle(&mut self, cx: &mut Context<'_>, since: Instant) -> bool {
        if self.timed {
            // A head has begun, or the first one is waited for: that has a deadline of its own.
            return false;
        }
        while self.deadline.as_mut().poll(cx).is_ready() {
            let end = since + limit::KEEPALIVE;
            if Instant::now() >= end {
                return true;
            }
            self.deadline.as_mut().reset(end);
        }
        false
    }

    /// Whether the head that has begun took too long.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> bool {
        let is_waited_for = !self.held.is_empty() || self.first;
        let begun = self.framer.is_at_head() && is_waited_for && !self.front.is_busy();
        if !begun {
            return false;
        }
        if !std::mem::replace(&mut self.timed, true) {
            self.deadline.as_mut().reset(Instant::now() + limit::HEAD);
        }
        self.deadline.as_mut().poll(cx).is_ready()
    }
}

impl AsyncRead for Gate {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_last(cx))?;
        let this = self.reader.get_mut();
        if out.remaining() > 0 && this.poll_alarm(cx) {
            // Before anything that came, and alone.
            out.put_slice(&[0]);
            return Poll::Ready(Ok(()));
        }
        if out.remaining() > 0 && !this.give(out) {
            ready!(this.poll_next(cx))?;
            this.give(out);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gate {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.front.is_over() {
            return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
        }
        if self.front.withheld().is_waiting() {
            return Poll::Ready(Ok(()));
        }
        let done = self.poll_flush_all(cx);
        self.is_stalled = done.is_pending();
        let reader = self.reader.get_mut();
        if done.is_ready() {
            reader.flushing = None;
            return done;
        }
        // Nobody else counts the time.
        let late = reader.flushing.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit::CLIENT_WRITE)));
        ready!(late.as_mut().poll(cx));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.front.is_over() {
            // An end in order would say that what was cut is whole.
            return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
        }
        ready!(self.poll_withheld(cx))?;
        let Gate { outgoing, reader, .. } = &mut *self;
        let inner = reader.get_mut().inner()?;
        ready!(outgoing.poll_write_held(inner, cx))?;
        Pin::new(inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.front.is_over() {
            return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
        }
        if self.front.withheld().is_waiting() {
            slices.iter().for_each(|piece| self.withheld.extend_from_slice(piece));
            return Poll::Ready(Ok(slices.iter().map(|piece| piece.len()).sum()));
        }
        let written = self.poll_write_pieces(cx, slices);
        self.is_stalled = written.is_pending();
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // The rest of an answer is lost already.
        if let Some(inner) = self.reader.get_mut().inner.as_ref().filter(|_| self.is_stalled) {
            inner.abandon();
        }
    }
}

#[async_trait]
impl Shutdown for Gate {
    async fn shutdown(&mut self) {
        if self.front.is_over() {
            return;
        }
        // What is held, and what TLS has yet to send, waits for a client that reads.
        let _ = tokio::time::timeout(limit::LINGER, AsyncWriteExt::shutdown(self)).await;
        let Ok(inner) = self.reader.get_mut().inner() else { return };
        // What the client still sends would become a reset, and the answer could be lost to it.
        let linger = async {
            let (mut sink, mut thrown) = (vec![0; READ_BYTES], 0);
            while thrown < limit::LINGER_BYTES {
                match inner.read(&mut sink).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => thrown += n,
                }
            }
        };
        let _ = tokio::time::timeout(limit::LINGER, linger).await;
    }
}

impl UniqueID for Gate {
    fn id(&self) -> UniqueIDType {
        // Only connections to upstreams are told apart by it.
        self.reader.lock().inner.as_ref().and_then(Stream::descriptor).unwrap_or(-1)
    }
}

impl Ssl for Gate {}

impl Peek for Gate {}

impl GetTimingDigest for Gate {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![None]
    }
}

impl GetProxyDigest for Gate {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.found_by.clone()
    }

    fn set_proxy_digest(&mut self, _digest: ProxyDigest) {}
}

impl GetSocketDigest for Gate {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.digest.clone()
    }

    fn set_socket_digest(&mut self, _digest: SocketDigest) {}
}

#[cfg(test)]
mod tests;
