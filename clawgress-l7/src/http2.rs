//! HTTP/2 from clients: each stream is a request like any other, judged and served by itself.
//!
//! The `h2` crate frames; what it lets through is said again in HTTP/1.1 and judged by the one strict parser
//! ([`clawgress_inspect::http2`]). Must never let a stream outlive its connection, nor a connection have more of them served
//! than it may, whatever the client has reset.

mod asked;
mod incoming;
mod lingering;
mod overhead;
mod request;
mod session;
mod under_way;
mod within;

use std::future::{pending, poll_fn};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use clawgress_ebpf_common::DropReason;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use pingora_core::apps::HttpServerApp as _;
use pingora_core::protocols::http::ServerSession;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use self::asked::Asked;
pub use self::incoming::Incoming;
use self::lingering::Lingering;
use self::session::Session;
use self::under_way::{Place as Room, UnderWay};
pub use self::within::Within;
use crate::accept::Share;
use crate::intercept::{Meter, Wire};
use crate::plain_http::{Front, Place};
use crate::serve::Serving;
use crate::stream::Stream;
use crate::told::Told;
use crate::{connect, limit, rest, tunnel};

static FLOODS_TOLD: LazyLock<Told> = LazyLock::new(Told::default);

/// What is in a frame of a client's connection.
type Framed = Connection<Lingering, Bytes>;
/// A stream of all there may be at once.
type Shared = (Share, OwnedSemaphorePermit);

/// Serves the streams on `stream`, of which `held` was read, with the preface; returns why the connection was cut, if it was.
pub async fn serve(
    serving: &Serving,
    front: Front,
    stream: Stream,
    held: Vec<u8>,
    deadline: Instant,
) -> Option<DropReason> {
    let front = Arc::new(front);
    let streams = UnderWay::default();
    if let Some(tcp) = stream.tcp() {
        // A tunnel within may be idle for long: this finds clients that are gone without a word.
        tunnel::keep_alive(tcp);
    }
    // Whatever ends this ends them.
    let _gone = front.gone().clone().drop_guard();
    let meter = Arc::new(Meter::default());
    let wire = Wire::new(stream, held, Arc::clone(&meter));
    let client = Client { serving, front: &front, streams: &streams };
    // Boxed: every idle connection would hold as much twice.
    let mut driving = Box::pin(client.drive((wire, &meter), deadline));
    tokio::select! {
        () = async {
            // Each stream has records of its own.
            let unasked = (&mut driving).await;
            match unasked {
                Some(Unasked::Denied(reason)) => serving.record_unasked(&front, reason),
                Some(Unasked::Left(reason)) => serving.record_unused(&front, reason),
                None => {}
            }
            // The client is gone: what is still under way finds that out by itself, within bounds of its own.
            streams.none().await;
        } => {}
        reason = tokio::task::unconstrained(front.forbidden(&serving.gateway)) => {
            front.cut(reason);
            front.gone().cancel();
            // Before the connection: a stream must not take its end for the client's doing.
            streams.none().await;
        }
    }
    drop(driving);
    front.was_cut()
}

/// A client's connection.
#[derive(Clone, Copy)]
struct Client<'a> {
    serving: &'a Serving,
    front: &'a Arc<Front>,
    streams: &'a UnderWay,
}

/// What happened on it.
enum Event {
    Stream(Box<http::Request<RecvStream>>, SendResponse<Bytes>),
    /// There is nothing under way, and was not for long.
    Idle,
    /// It is to end once what is under way has.
    Ending,
    /// The client sends without end what carries nothing.
    Flooded,
    /// What came is no HTTP/2, or more of it than there may be.
    Malformed(DropReason),
    Gone,
}

/// How a connection has ended on which nothing was asked.
#[derive(Clone, Copy)]
enum Unasked {
    Denied(DropReason),
    /// Its client has left, or the gateway has for this reason.
    Left(Option<DropReason>),
}

// === impl Client ===

impl Client<'_> {
    /// Serves it to its end; returns how, if it has ended for what is no stream's fault, or before there was any in what was asked
    /// for to have them.
    async fn drive(self, (wire, meter): (Wire, &Meter), deadline: Instant) -> Option<Unasked> {
        let flooded = CancellationToken::new();
        let wire = Lingering::new(wire, flooded.clone());
        let count = self.serving.gateway.sources.count(self.front.connection.peer.ip());
        let mut connection = match timeout_at(deadline, settings(count).handshake(wire)).await {
            Ok(Ok(connection)) => connection,
            // Nothing was asked, so nothing is decided.
            Ok(Err(_)) if meter.bytes().0 == 0 => return None,
            Ok(Err(_)) => return Some(Unasked::Denied(DropReason::HttpMalformed)),
            Err(_) => return Some(Unasked::Denied(DropReason::Timeout)),
        };
        let (mut is_ending, mut first) = (false, Some(deadline));
        // Who was told to begin, by a 200, was told something.
        let is_told = matches!(self.front.place, Place::Tunnel { .. });
        // Until when the client may take what is queued for it, once it is to end and nothing is under way.
        let mut last = None;
        let mut ended = Unasked::Left(None);
        let (reason, unasked) = loop {
            match self.event(&mut connection, &flooded, is_ending, first).await {
                Event::Stream(request, response) => {
                    self.accept(*request, response, is_ending);
                    (first, last) = (None, None);
                }
                event @ (Event::Ending | Event::Idle) if !is_ending => {
                    ended = match event {
                        Event::Ending => Unasked::Left(Some(DropReason::Draining)),
                        _ => Unasked::Denied(DropReason::Timeout),
                    };
                    // It says that no more streams are taken, and goes on with those that are there.
                    connection.graceful_shutdown();
                    is_ending = true;
                }
                // The end of a stream's task is not that of its answer, which waits for the client to take it.
                Event::Ending | Event::Idle
                    if connection.has_streams()
                        && Instant::now() < *last.get_or_insert(Instant::now() + limit::CLIENT_WRITE) => {}
                Event::Ending | Event::Idle => {
                    break (Reason::NO_ERROR, (is_told && first.is_some()).then_some(ended));
                }
                Event::Flooded => {
                    let peer = self.front.connection.peer;
                    if let Some(untold) = FLOODS_TOLD.turn_of(peer.ip(), Instant::now().into_std()) {
                        tracing::warn!(%peer, untold, "a client sends frames without end that carry nothing; its connection is ended");
                    }
                    break (Reason::ENHANCE_YOUR_CALM, Some(Unasked::Denied(DropReason::Overloaded)));
                }
                Event::Malformed(reason) => return Some(Unasked::Denied(reason)),
                Event::Gone => return (is_told && first.is_some()).then_some(ended),
            }
        };
        // Not every client says that it has heard that this ends.
        connection.abrupt_shutdown(reason);
        let _ = timeout(2 * limit::LINGER, poll_fn(|cx| connection.poll_closed(cx))).await;
        unasked
    }

    /// What comes next. Polling for streams drives the connection. `first` is for its first stream to be there.
    async fn event(
        self,
        connection: &mut Framed,
        flooded: &CancellationToken,
        is_ending: bool,
        first: Option<Instant>,
    ) -> Event {
        let mut stopping = self.serving.stopping();
        let ending = async {
            tokio::select! {
                () = self.front.ending().cancelled() => {}
                _ = stopping.wait_for(|stops| *stops) => {}
            }
        };
        let idle = async {
            self.streams.none().await;
            // Time counts from when nothing is under way.
            match first {
                Some(deadline) if !is_ending => sleep_until(deadline).await,
                _ => sleep(if is_ending { limit::LINGER } else { limit::KEEPALIVE }).await,
            }
        };
        tokio::select! {
            // Before streams: what is to end takes no more of them.
            biased;
            () = flooded.cancelled() => Event::Flooded,
            () = ending, if !is_ending => Event::Ending,
            accepted = connection.accept() => match accepted {
                Some(Ok((request, response))) => Event::Stream(Box::new(request), response),
                Some(Err(error)) => {
                    tracing::debug!(%error, "a client's connection of HTTP/2 ended");
                    match error.reason() {
                        Some(Reason::ENHANCE_YOUR_CALM) if error.is_library() => {
                            Event::Malformed(DropReason::Overloaded)
                        }
                        _ if error.is_library() => Event::Malformed(DropReason::HttpMalformed),
                        _ => Event::Gone,
                    }
                }
                None => Event::Gone,
            },
            () = idle => Event::Idle,
        }
    }

    /// A stream of all that there may be, and of those of the client's source.
    fn shared(self) -> Option<Shared> {
        let gateway = &self.serving.gateway;
        let Some(share) = gateway.stream_sources.take(self.front.connection.peer.ip()) else {
            gateway.stream_sources.refuse("a source");
            return None;
        };
        let Ok(permit) = Arc::clone(&gateway.streams).try_acquire_owned() else {
            gateway.stream_sources.refuse("`connections_max`");
            return None;
        };
        Some((share, permit))
    }

    /// Begins to serve a stream, if there is room for it.
    fn accept(self, request: http::Request<RecvStream>, mut response: SendResponse<Bytes>, is_ending: bool) {
        // Streams that were reset have a place as long as they are served: who resets what it asks for gains nothing.
        let place = self.streams.take(limit::STREAMS_SERVED_MAX);
        let shared = if is_ending { None } else { self.shared() };
        let (Some(place), Some(shared)) = (place, shared) else {
            // Nothing was asked, and the client knows that it may ask again (RFC 9113 section 8.7).
            return response.send_reset(Reason::REFUSED_STREAM);
        };
        let (parts, body) = request.into_parts();
        let is_whole = body.is_end_stream();
        let incoming = Arc::new(Incoming::new(body));
        let front = Arc::new(Front::of_stream(self.front, Arc::clone(&incoming)));
        incoming.counts_for(&front);
        let serving = self.serving.clone();
        if request::is_tunnel(&parts, &front.place) {
            let within = Within::new(incoming, response, Arc::clone(&front));
            let (stream, head) = (Stream::Within(Box::new(within)), request::tunnel(&parts));
            tokio::spawn(carry(serving, front, stream, head, (place, shared)));
            return;
        }
        let asked = request::ask(&parts, is_whole, &front.place);
        let head = asked.head;
        front.begin(asked.admitted, asked.head_bytes);
        let session = Session::new(head, incoming, response, Arc::clone(&front));
        tokio::spawn(run(serving, front, session, (place, shared)));
    }
}

/// What a client may do at most whose source has so many connections. What it may reset, ping and split is bounded by the crate: see the tests.
fn settings(count: usize) -> Builder {
    let (of_stream, of_all) = limit::windows((limit::STREAM_WINDOW, limit::STREAMS_WINDOW), count);
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limit::STREAMS_MAX)
        .max_header_list_size(limit::STREAM_HEAD_BYTES)
        .header_table_size(limit::STREAM_TABLE_BYTES)
        .initial_window_size(of_stream)
        .initial_connection_window_size(of_all)
        .max_send_buffer_size(limit::STREAM_SEND_BYTES)
        .max_local_error_reset_streams(Some(limit::STREAM_ERRORS_MAX))
        .max_pending_accept_reset_streams(limit::STREAM_RESETS_MAX);
    builder
}

/// Serves a tunnel to its end.
async fn carry(
    serving: Serving,
    front: Arc<Front>,
    stream: Stream,
    head: Result<Zeroizing<Vec<u8>>, DropReason>,
    permits: (Room, Shared),
) {
    let Some(turn) = front.turn().await else {
        if let Stream::Within(within) = stream {
            within.turn_away();
        }
        return;
    };
    let serve = connect::serve_stream(&serving, front.connection.clone(), stream, head);
    tokio::select! {
        () = rest::whole(serve) => {}
        () = front.gone().cancelled() => {}
    }
    drop((permits, turn));
}

/// Serves a stream to its end.
async fn run(serving: Serving, front: Arc<Front>, session: Session, permits: (Room, Shared)) {
    let Some(turn) = front.turn().await else {
        // Nobody has looked at it.
        drop(front.untaken());
        return session.refuse();
    };
    let asked = session.asked();
    let taken_back = async {
        match &asked {
            Some(asked) => asked.is_taken_back(&front).await,
            None => pending().await,
        }
    };
    let session = ServerSession::new_custom(Box::new(session));
    let stopping = serving.stopping();
    let mut serve = Box::pin(serving.proxy().process_new_http(session, &stopping));
    let is_cut = tokio::select! {
        // First what has ended by itself, and knows how.
        biased;
        _ = &mut serve => false,
        reason = tokio::task::unconstrained(front.forbidden(&serving.gateway)) => {
            front.cut(reason);
            true
        }
        () = front.gone().cancelled() => true,
        () = taken_back => {
            // It has no server yet that would have to be let go of, and nobody waits for what becomes of it.
            front.leave();
            false
        }
    };
    if is_cut {
        front.shut();
        // Dropped in the middle, it would leave its server's connection among those that are in use, where none ends it.
        let _ = timeout(limit::CUT_GRACE, &mut serve).await;
    }
    // What it was at records why it ends.
    drop(serve);
    serving.record_untaken(&front);
    drop((permits, turn));
}

/// How many bytes may be sent on a stream of those that were asked for; `None` if it has ended.
fn poll_room(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Option<usize>> {
    if stream.poll_reset(cx).is_ready() {
        return Poll::Ready(None);
    }
    // What is there already is never told again.
    match stream.capacity() {
        0 => Poll::Ready(ready!(stream.poll_capacity(cx)).and_then(Result::ok)),
        room => Poll::Ready(Some(room)),
    }
}
