//! The body of a stream's request: read by Pingora's session, or ahead of it by whoever [holds](crate::plain_http) a body.
//!
//! What was read is taken off the client's windows at once, so a client never waits for what nobody reads; whoever reads is
//! bounded. Trailers are dropped, as those of HTTP/1 are.

use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use clawgress_ebpf_common::DropReason;
use h2::{Reason, RecvStream};
use parking_lot::Mutex;

use crate::plain_http::{Body, Front, Held, LOOK_BYTES, Source};

/// Most bytes that are handed on at once of what was held.
const PIECE_BYTES: usize = 64 * 1024;

/// The body.
#[derive(Debug)]
pub struct Incoming(Mutex<State>);

#[derive(Debug)]
struct State {
    stream: RecvStream,
    /// What was held, and goes on first.
    held: BytesMut,
    /// What has come and was not looked at.
    pending: Bytes,
    is_done: bool,
    front: Weak<Front>,
}

// === impl Incoming ===

impl Incoming {
    /// The body of a stream.
    #[must_use]
    pub fn new(stream: RecvStream) -> Incoming {
        let (is_done, held, pending) = (stream.is_end_stream(), BytesMut::new(), Bytes::new());
        Incoming(Mutex::new(State { stream, held, pending, is_done, front: Weak::new() }))
    }

    /// Has its bytes counted.
    pub fn counts_for(&self, front: &Arc<Front>) {
        self.0.lock().front = Arc::downgrade(front);
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// If the client has reset the stream, or its connection has ended.
    pub async fn next(&self) -> Result<Option<Bytes>, h2::Error> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// See [`Incoming::next`].
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, h2::Error>> {
        let mut state = self.0.lock();
        if state.front.upgrade().is_some_and(|front| front.is_over()) {
            return Poll::Ready(Err(Reason::CANCEL.into()));
        }
        state.poll_next(cx)
    }

    /// Whether all of it was read.
    pub fn is_done(&self) -> bool {
        let state = self.0.lock();
        state.held.is_empty() && state.pending.is_empty() && (state.is_done || state.stream.is_end_stream())
    }
}

impl Source for Incoming {
    fn poll_body(
        &self,
        cx: &mut Context<'_>,
        bytes_max: usize,
        spool: &mut BytesMut,
        body: &mut Body,
    ) -> Poll<Result<Option<Held>, DropReason>> {
        let mut state = self.0.lock();
        let room = bytes_max.saturating_sub(spool.len()).min(LOOK_BYTES);
        if state.pending.is_empty() {
            // Also at the bound: a body of exactly that size is whole.
            let next = ready!(state.poll_stream(cx));
            return Poll::Ready(match next {
                Ok(Some(bytes)) => {
                    state.pending = bytes;
                    Ok(None)
                }
                Ok(None) => Ok(Some(Held::Whole)),
                // A stream that is taken back, as clients do, is no fault of its connection.
                Err(error) if error.is_reset() && error.is_remote() => {
                    state.front.upgrade().iter().for_each(|front| front.leave());
                    Err(DropReason::Timeout)
                }
                Err(_) => {
                    state.front.upgrade().iter().for_each(|front| front.violate(DropReason::HttpMalformed));
                    Err(DropReason::HttpMalformed)
                }
            });
        }
        if room == 0 {
            return Poll::Ready(Ok(Some(Held::Part)));
        }
        let n = room.min(state.pending.len());
        let looked = body.look(state.pending.get(..n).unwrap_or_default());
        spool.extend_from_slice(state.pending.get(..n).unwrap_or_default());
        state.pending.advance(n);
        Poll::Ready(looked.map(|()| None))
    }

    fn keep(&self, spool: BytesMut) {
        self.0.lock().held = spool;
    }
}

// === impl State ===

impl State {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, h2::Error>> {
        if !self.held.is_empty() {
            let n = self.held.len().min(PIECE_BYTES);
            let piece = self.held.split_to(n).freeze();
            if self.held.is_empty() {
                self.held = BytesMut::new();
            }
            return Poll::Ready(Ok(Some(piece)));
        }
        if !self.pending.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.pending))));
        }
        self.poll_stream(cx)
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, h2::Error>> {
        loop {
            if self.is_done {
                return Poll::Ready(Ok(None));
            }
            match ready!(self.stream.poll_data(cx)) {
                None => self.is_done = true,
                Some(Err(error)) => return Poll::Ready(Err(error)),
                Some(Ok(bytes)) => {
                    // Of a stream that was reset meanwhile there is nothing to give back.
                    let _ = self.stream.flow_control().release_capacity(bytes.len());
                    self.front.upgrade().iter().for_each(|front| front.count_read(bytes.len()));
                    if !bytes.is_empty() {
                        return Poll::Ready(Ok(Some(bytes)));
                    }
                }
            }
        }
    }
}
