//! A stream as Pingora's session: its head is what was judged, its body comes by [`Incoming`], its answer goes to the stream.
//!
//! INVARIANT: what was not finished never ends as if it were: a session that is dropped before its end resets its stream. Of one
//! that is cut nothing passes any more, while Pingora lets go of its server.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderMap, StatusCode, header};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session as Custom;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_error::{Error, ErrorType, OrErr as _, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::time::{Instant, timeout};

use super::{Asked, Incoming};
use crate::limit;
use crate::plain_http::{Front, Taking, is_large};

/// Fields of a connection of HTTP/1 (RFC 9113 section 8.2.2).
const CONNECTION_FIELDS: [&str; 6] =
    ["connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "te"];

/// The session.
pub struct Session {
    head: RequestHeader,
    incoming: Arc<Incoming>,
    outgoing: Outgoing,
    front: Arc<Front>,
    digest: Digest,
    /// A head that waits until what follows was judged, and whether nothing follows.
    withheld: Option<(Box<ResponseHeader>, bool)>,
    /// Of what was written nothing more than the status is asked.
    written: Option<Box<ResponseHeader>>,
    /// Whether the client was told to go on, and how many other interim answers it had.
    is_continued: bool,
    interims: u32,
    is_ended: bool,
    /// What of the body has gone on, for another attempt.
    retry: Option<Retry>,
    read_bytes: usize,
    written_bytes: usize,
    taking: Taking,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    drain_timeout: Option<Duration>,
}

/// What answers.
enum Outgoing {
    Response(Asked),
    Body(SendStream<Bytes>),
}

#[derive(Default)]
struct Retry {
    bytes: BytesMut,
    is_truncated: bool,
}

// === impl Session ===

impl Session {
    /// The session of a stream with a judged head.
    #[must_use]
    pub fn new(
        head: RequestHeader,
        incoming: Arc<Incoming>,
        response: SendResponse<Bytes>,
        front: Arc<Front>,
    ) -> Session {
        let proxy_digest = ResponseHeader::build(200, Some(0)).ok().map(|response| {
            // This is how a session finds its connection.
            Arc::new(ProxyDigest::new(Box::new(response), Some(Box::new(Arc::clone(&front)))))
        });
        Session {
            head,
            incoming,
            outgoing: Outgoing::Response(Asked::new(response)),
            front,
            digest: Digest { proxy_digest, ..Digest::default() },
            withheld: None,
            written: None,
            is_continued: false,
            interims: 0,
            is_ended: false,
            retry: None,
            read_bytes: 0,
            written_bytes: 0,
            taking: Taking::default(),
            read_timeout: None,
            write_timeout: None,
            drain_timeout: None,
        }
    }

    /// The stream, as long as it has no answer.
    #[must_use]
    pub fn asked(&self) -> Option<Asked> {
        match &self.outgoing {
            Outgoing::Response(asked) => Some(asked.clone()),
            Outgoing::Body(_) => None,
        }
    }

    async fn read(&mut self) -> Result<Option<Bytes>> {
        let within = self.read_timeout.unwrap_or(limit::BODY_READ);
        let read = match timeout(within, self.incoming.next()).await {
            Ok(read) => read.or_err(ErrorType::ReadError, "a body ends in the middle"),
            Err(_) => Error::e_explain(ErrorType::ReadTimedout, "a body does not come"),
        };
        let bytes = read.map_err(Error::into_down)?;
        if let Some(bytes) = &bytes {
            self.read_bytes += bytes.len();
            if let Some(retry) = &mut self.retry {
                retry.keep(bytes);
            }
        }
        Ok(bytes)
    }

    /// Ends when the client resets the stream, or its connection ends, or nothing passes any more.
    async fn reset(&mut self) -> Box<Error> {
        let front = Arc::clone(&self.front);
        let why =
            poll_fn(
                |cx| {
                    if front.is_over() { Poll::Ready(()) } else { self.outgoing.poll_reset(cx).map(drop) }
                },
            );
        why.await;
        Error::explain(ErrorType::ConnectionClosed, "the client has left").into_down()
    }

    /// Nothing of an answer goes on where nothing passes any more.
    fn passes(&self) -> Result<()> {
        if self.front.is_over() {
            return Err(Error::explain(ErrorType::ConnectionClosed, "the stream was cut").into_down());
        }
        Ok(())
    }

    fn write_head(&mut self, response: &ResponseHeader, end: bool) -> Result<()> {
        self.passes()?;
        if self.front.withheld().is_waiting() && !response.status.is_informational() {
            self.withheld = Some((Box::new(response.clone()), end));
            return Ok(());
        }
        // Where one waited, this is in its place.
        self.withheld = None;
        self.send_head(response, end)
    }

    /// Lets a head go that waited, unless it still does.
    fn write_withheld(&mut self) -> Result<()> {
        if self.front.withheld().is_waiting() {
            return Ok(());
        }
        self.withheld.take().map_or(Ok(()), |(head, end)| self.send_head(&head, end))
    }

    fn send_head(&mut self, response: &ResponseHeader, end: bool) -> Result<()> {
        if self.is_ended || self.written.is_some() || !self.takes(response.status) {
            return Ok(());
        }
        let end = end || self.is_without_body(response.status);
        let mut head = http::Response::new(());
        *head.status_mut() = response.status;
        *head.headers_mut() = of_stream(&response.headers);
        let fields = head.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
        self.front.count_written(fields.sum());
        let Outgoing::Response(sender) = &mut self.outgoing else { return Ok(()) };
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            return Error::e_explain(ErrorType::InternalError, "a stream is never upgraded");
        }
        let failed = "an answer can't be begun";
        if response.status.is_informational() {
            return sender.inform(head).or_err(ErrorType::WriteError, failed).map_err(Error::into_down);
        }
        let body = sender.answer(head, end).or_err(ErrorType::WriteError, failed);
        self.outgoing = Outgoing::Body(body.map_err(Error::into_down)?);
        self.written = Some(Box::new(ResponseHeader::build(response.status, Some(0))?));
        self.is_ended = end;
        Ok(())
    }

    /// Whether an answer of this status goes on. Interim ones wait for the client outside of all windows.
    fn takes(&mut self, status: StatusCode) -> bool {
        if status == StatusCode::CONTINUE {
            return !std::mem::replace(&mut self.is_continued, true);
        }
        self.interims += u32::from(status.is_informational());
        let goes_on = self.interims <= limit::INTERIMS_MAX && !self.front.is_hushed();
        !status.is_informational() || goes_on
    }

    /// Whether the head of an answer is all of it (RFC 9110 section 6.4.1), whatever is written.
    fn is_without_body(&self, status: StatusCode) -> bool {
        let is_final = !status.is_informational();
        let is_bare = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        is_final && (is_bare || self.head.method == http::Method::HEAD)
    }

    async fn write(&mut self, mut bytes: Bytes, end: bool) -> Result<()> {
        self.passes()?;
        self.write_withheld()?;
        if self.is_ended {
            return Ok(());
        }
        let trailers = if end { self.front.take_trailers() } else { None };
        let end = end && trailers.is_none();
        let within = self.write_timeout.unwrap_or(limit::CLIENT_WRITE);
        let Outgoing::Body(body) = &mut self.outgoing else {
            return Error::e_explain(ErrorType::InternalError, "a body before its head");
        };
        while !bytes.is_empty() {
            body.reserve_capacity(bytes.len());
            let front = &self.front;
            let room =
                poll_fn(|cx| if front.is_over() { Poll::Ready(None) } else { super::poll_room(body, cx) });
            let asked = Instant::now();
            let room = match timeout(within, room).await {
                // A window that opens by a byte a minute is no client that reads.
                Ok(Some(room)) if !self.taking.keeps(asked.elapsed(), room.min(bytes.len())) => {
                    let late = Error::explain(ErrorType::WriteTimedout, "the client takes next to nothing");
                    return Err(late.into_down());
                }
                Ok(Some(room)) => room,
                Ok(None) => {
                    let gone = Error::explain(ErrorType::WriteError, "the client has left");
                    return Err(gone.into_down());
                }
                Err(_) => {
                    let late = Error::explain(ErrorType::WriteTimedout, "the client takes nothing");
                    return Err(late.into_down());
                }
            };
            let piece = bytes.split_to(room.min(bytes.len()));
            let n = piece.len();
            let sent = body.send_data(piece, end && bytes.is_empty());
            sent.or_err(ErrorType::WriteError, "a body can't go on").map_err(Error::into_down)?;
            self.written_bytes += n;
            self.front.count_written(n);
            self.is_ended = end && bytes.is_empty();
        }
        match trailers {
            Some(trailers) => self.trail(&trailers),
            None if end && !self.is_ended => self.end(),
            None => Ok(()),
        }
    }

    /// Ends an answer by its trailers.
    fn trail(&mut self, trailers: &HeaderMap) -> Result<()> {
        self.passes()?;
        self.write_withheld()?;
        if self.is_ended {
            return Ok(());
        }
        let Outgoing::Body(body) = &mut self.outgoing else {
            return Error::e_explain(ErrorType::InternalError, "trailers before a head");
        };
        if is_large(trailers) {
            return Error::e_explain(ErrorType::InvalidHTTPHeader, "trailers that are too large");
        }
        let sent = body.send_trailers(of_stream(trailers));
        sent.or_err(ErrorType::WriteError, "trailers can't go on").map_err(Error::into_down)?;
        self.is_ended = true;
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.passes()?;
        self.write_withheld()?;
        if self.is_ended || self.withheld.is_some() {
            return Ok(());
        }
        if let Outgoing::Body(body) = &mut self.outgoing {
            let ended = body.send_data(Bytes::new(), true);
            ended.or_err(ErrorType::WriteError, "an answer can't be ended").map_err(Error::into_down)?;
            self.is_ended = true;
        }
        Ok(())
    }

    /// Tells the client that nothing was done (RFC 9113 section 8.7).
    pub(super) fn refuse(mut self) {
        self.reset_with(Reason::REFUSED_STREAM);
    }

    fn reset_with(&mut self, reason: Reason) {
        if self.is_ended {
            return;
        }
        match &mut self.outgoing {
            Outgoing::Response(asked) => asked.reset(reason),
            Outgoing::Body(body) => body.send_reset(reason),
        }
        self.is_ended = true;
    }
}

// === impl Outgoing ===

impl Outgoing {
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reason, h2::Error>> {
        match self {
            Outgoing::Response(asked) => asked.poll_reset(cx),
            Outgoing::Body(body) => body.poll_reset(cx),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What this side has reset has ended. Only whether it has happened is asked: nobody is woken.
        let mut is_reset = || self.outgoing.poll_reset(&mut Context::from_waker(Waker::noop()));
        if !self.is_ended && matches!(is_reset(), Poll::Ready(Ok(_))) {
            self.front.was_reset();
        }
    }
}

/// The fields of a response that a stream may have.
fn of_stream(fields: &HeaderMap) -> HeaderMap {
    let mut kept = fields.clone();
    let nominated = fields.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    for name in nominated.flat_map(|list| list.split(',')) {
        kept.remove(name.trim());
    }
    for name in CONNECTION_FIELDS {
        kept.remove(name);
    }
    kept
}

// === impl Retry ===

impl Retry {
    fn keep(&mut self, bytes: &Bytes) {
        self.is_truncated |= self.bytes.len() + bytes.len() > limit::RETRY_BYTES;
        if self.is_truncated {
            self.bytes = BytesMut::new();
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }
}

#[async_trait]
impl Custom for Session {
    fn req_header(&self) -> &RequestHeader {
        &self.head
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.head
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.read().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        if self.front.is_nobodys() {
            // A stream of nobody's takes no more room than its answer does.
            return Ok(());
        }
        let within = self.drain_timeout.unwrap_or(limit::DRAIN_BODY);
        let drained = timeout(within, async {
            while self.incoming.next().await?.is_some() {}
            Ok::<_, h2::Error>(())
        });
        // Of a client that goes on longer the stream is reset, with the answer whole (RFC 9113 section 8.1).
        let _ = drained.await;
        Ok(())
    }

    async fn write_response_header(&mut self, response: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.write_head(&response, end)
    }

    async fn write_response_header_ref(&mut self, response: &ResponseHeader, end: bool) -> Result<()> {
        self.write_head(response, end)
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.write(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.trail(&trailers)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut is_end = false;
        for task in tasks {
            is_end |= match task {
                HttpTask::Header(head, end) => {
                    self.write_head(&head, end)?;
                    end
                }
                HttpTask::Body(data, end) => {
                    if let Some(data) = data.filter(|data| !data.is_empty()) {
                        self.write(data, end).await?;
                    }
                    end
                }
                HttpTask::UpgradedBody(..) => {
                    return Error::e_explain(ErrorType::InternalError, "a stream is never upgraded");
                }
                HttpTask::Trailer(Some(trailers)) => {
                    self.write_trailers(*trailers).await?;
                    true
                }
                HttpTask::Trailer(None) | HttpTask::Done => true,
                HttpTask::Failed(error) => return Err(error),
            };
        }
        if is_end {
            self.end()?;
        }
        Ok(is_end)
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.read_timeout = timeout;
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.read_timeout
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.drain_timeout = timeout;
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.drain_timeout
    }

    fn request_summary(&self) -> String {
        format!("{} {}", self.head.method, self.head.uri.path())
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.written.as_deref()
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        let is_cut = self.front.is_over();
        self.reset_with(if is_cut { Reason::CANCEL } else { Reason::INTERNAL_ERROR });
    }

    fn is_body_done(&mut self) -> bool {
        self.incoming.is_done()
    }

    /// Ends an answer that is whole, and lets the client finish what it is sending.
    async fn finish(&mut self) -> Result<()> {
        self.end()?;
        if self.is_ended && !self.incoming.is_done() {
            self.drain_request_body().await?;
        }
        Ok(())
    }

    fn is_body_empty(&mut self) -> bool {
        self.read_bytes == 0 && self.incoming.is_done()
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if no_body_expected || self.incoming.is_done() {
            return Err(self.reset().await);
        }
        self.read().await
    }

    fn body_bytes_sent(&self) -> usize {
        self.written_bytes
    }

    fn body_bytes_read(&self) -> usize {
        self.read_bytes
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Some(&mut self.digest)
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        None
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        None
    }

    /// For subrequests, of which there are none.
    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    fn enable_retry_buffering(&mut self) {
        self.retry.get_or_insert_default();
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.retry.as_ref().is_some_and(|retry| retry.is_truncated)
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        let retry = self.retry.as_ref().filter(|retry| !retry.is_truncated && !retry.bytes.is_empty())?;
        Some(Bytes::copy_from_slice(&retry.bytes))
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
