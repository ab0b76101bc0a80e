//! A body read ahead of Pingora: held in the gate until it is judged, and then read by Pingora as if it just came.
//!
//! Pingora's filters see a body only after the upstream was dialled and sent the head. This reads it below Pingora, framed
//! as the gate frames all that goes on, in whatever framing it comes, or as a stream of HTTP/2 has it: no session has to be
//! built again, and no size is special. Must never hold more than it is told to.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::http1::Step;
use pingora_proxy::Session;
use tokio::time::Instant;

use super::content::{Body, LOOK_BYTES};
use super::front::Front;
use super::gate::{Gate, READ_BYTES, Reader, Ready};
use crate::http2::Incoming;

/// Least bytes that are taken for what is held.
const SPOOL_BYTES_LEAST: usize = READ_BYTES;

/// What came of holding a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// All of it is there.
    Whole,
    /// As much as is held at most.
    Part,
}

/// What becomes of a body that can't be held any longer: what is only told must not deny.
fn part(body: &Body, reason: DropReason) -> Result<Held, DropReason> {
    if body.decides() { Err(reason) } else { Ok(Held::Part) }
}

/// What a body comes by, below Pingora.
pub trait Source {
    /// Moves what there is of the body to `spool`, after one read at most; how much is held once that is decided.
    fn poll_body(
        &self,
        cx: &mut Context<'_>,
        bytes_max: usize,
        spool: &mut BytesMut,
        body: &mut Body,
    ) -> Poll<Result<Option<Held>, DropReason>>;

    /// Has Pingora read this first.
    fn keep(&self, spool: BytesMut);
}

/// What is below a session.
#[derive(Debug)]
pub enum Below<'a> {
    /// A connection of HTTP/1.
    Gate(&'a Gate),
    /// A stream of HTTP/2.
    Stream(Arc<Incoming>),
}

/// What is below `session`.
#[must_use]
pub fn below(session: &Session) -> Option<Below<'_>> {
    if let Some(http1) = session.as_downstream().as_http1() {
        return http1.stream().as_any().downcast_ref().map(Below::Gate);
    }
    Front::of(session)?.incoming().map(Below::Stream)
}

// === impl Below ===

impl Below<'_> {
    /// Holds the body of the request at hand until `deadline`, up to `bytes_max` bytes with its framing, as `body` looks at it. What is held
    /// goes on when Pingora reads it.
    ///
    /// # Errors
    /// What `body` says; [`DropReason::Timeout`]; [`DropReason::HttpMalformed`] if the body is not sound, or the client leaves in the middle.
    pub async fn hold(&self, bounds: (usize, Instant), body: &mut Body) -> Result<Held, DropReason> {
        match self {
            Below::Gate(gate) => hold(*gate, bounds, body).await,
            Below::Stream(incoming) => hold(&**incoming, bounds, body).await,
        }
    }
}

async fn hold(
    source: &impl Source,
    (bytes_max, deadline): (usize, Instant),
    body: &mut Body,
) -> Result<Held, DropReason> {
    let mut spool = BytesMut::new();
    let held = loop {
        if spool.capacity() - spool.len() < READ_BYTES && spool.len() < bytes_max {
            let wanted = (spool.capacity() * 2).clamp(SPOOL_BYTES_LEAST, bytes_max + READ_BYTES);
            if let Err(reason) = body.charge(wanted) {
                break part(body, reason);
            }
            spool.reserve(wanted - spool.len());
            // It may be more than was asked for.
            if let Err(reason) = body.charge(spool.capacity()) {
                break part(body, reason);
            }
        }
        let step = poll_fn(|cx| source.poll_body(cx, bytes_max, &mut spool, body));
        match tokio::time::timeout_at(deadline, step).await {
            // What is there already is as long as its client likes, and decoding it may take long: others run in between,
            // and a timer whose future is always ready never fires.
            Ok(Ok(None)) if Instant::now() >= deadline => break part(body, DropReason::Timeout),
            Ok(Ok(None)) => tokio::task::yield_now().await,
            Ok(Ok(Some(held))) => break Ok(held),
            Ok(Err(reason)) => break Err(reason),
            Err(_) => break part(body, DropReason::Timeout),
        }
    };
    // Also what is denied: Pingora reads it, and throws it away.
    source.keep(spool);
    held
}

impl Source for Gate {
    fn poll_body(
        &self,
        cx: &mut Context<'_>,
        bytes_max: usize,
        spool: &mut BytesMut,
        body: &mut Body,
    ) -> Poll<Result<Option<Held>, DropReason>> {
        self.reader().lock().poll_body(cx, bytes_max, spool, body)
    }

    fn keep(&self, spool: BytesMut) {
        self.reader().lock().ready = Ready::Own(spool);
    }
}

// === impl Reader ===

impl Reader {
    /// Moves what there is of the body to `spool`, after one read at most.
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        bytes_max: usize,
        spool: &mut BytesMut,
        body: &mut Body,
    ) -> Poll<Result<Option<Held>, DropReason>> {
        if self.framer.is_at_head() {
            return Poll::Ready(Ok(Some(Held::Whole)));
        }
        let room = bytes_max.saturating_sub(spool.len()).min(LOOK_BYTES);
        if room == 0 {
            return Poll::Ready(Ok(Some(Held::Part)));
        }
        // A field of a trailer takes no room: it goes nowhere, and the framer bounds it. What ends the section goes on, and has to fit.
        let room = if self.framer.is_in_trailer() && room >= b"\r\n".len() { self.held.len() } else { room };
        let is_data = self.framer.is_in_data();
        let input = self.held.get(..self.held.len().min(room)).unwrap_or_default();
        let (n, goes_on) = match self.framer.advance(input) {
            Ok(Step::Pass(n) | Step::End(n)) => (n, true),
            Ok(Step::Drop(n)) => (n, false),
            // A framing that does not fit into what is left: that part of the body is what streams.
            Ok(Step::More) if self.held.len() > room => return Poll::Ready(Ok(Some(Held::Part))),
            Ok(Step::More) => return self.poll_wire(cx),
            Ok(Step::Head(_)) => return Poll::Ready(Ok(Some(Held::Whole))),
            Err(error) => {
                tracing::debug!(%error, "refused body");
                return Poll::Ready(Err(self.spoil()));
            }
        };
        let taken = self.held.get(..n).unwrap_or_default();
        let looked = if is_data { body.look(taken) } else { Ok(()) };
        if goes_on {
            spool.extend_from_slice(taken);
        }
        self.held.advance(n);
        self.front.count_read(n);
        Poll::Ready(looked.map(|()| None))
    }

    fn poll_wire(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Held>, DropReason>> {
        let read: io::Result<bool> = ready!(self.poll_more(cx));
        Poll::Ready(if matches!(read, Ok(true)) { Ok(None) } else { Err(self.spoil()) })
    }

    /// Nothing more is read.
    fn spoil(&mut self) -> DropReason {
        self.closed = true;
        self.front.violate(DropReason::HttpMalformed);
        DropReason::HttpMalformed
    }
}
