//! A tunnel within a stream (RFC 9113 section 8.5): what a client sends after CONNECT is the stream's body, and what comes back
//! is its answer's.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Incoming;
use crate::page::{self, Client, Denial, Form};
use crate::plain_http::{Front, is_stranger};

/// Most bytes that are copied for one write.
const WRITE_BYTES: usize = 16 * 1024;

/// The tunnel, from its client's side.
pub struct Within {
    incoming: Arc<Incoming>,
    /// Read, and not given out.
    left: Bytes,
    outgoing: Outgoing,
    front: Arc<Front>,
}

enum Outgoing {
    /// The client waits for an answer.
    Response(SendResponse<Bytes>),
    Body(SendStream<Bytes>),
    Ended,
}

// === impl Within ===

impl std::fmt::Debug for Within {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Within").field("front", &self.front).finish_non_exhaustive()
    }
}

impl Within {
    /// A stream whose client waits for an answer.
    #[must_use]
    pub fn new(incoming: Arc<Incoming>, response: SendResponse<Bytes>, front: Arc<Front>) -> Within {
        Within { incoming, left: Bytes::new(), outgoing: Outgoing::Response(response), front }
    }

    /// Tells the client to begin.
    ///
    /// # Errors
    /// If it has left.
    pub fn establish(&mut self) -> io::Result<()> {
        self.front.identified();
        self.answer(Response::new(()), false)
    }

    /// Tells the client why it can't begin, and after what time it may try again where that is known.
    ///
    /// # Errors
    /// If it has left.
    pub fn refuse(
        &mut self,
        client: Client,
        denied: Denial<'_>,
        retry_after: Option<Duration>,
    ) -> io::Result<()> {
        if is_stranger(denied.reason) && !self.front.stranger() {
            self.front.ending().cancel();
        }
        let status =
            StatusCode::from_u16(page::status_as(client, denied.reason)).map_err(io::Error::other)?;
        let (form, body) = (Form::Json, denied.body(client, Form::Json));
        let mut response = Response::builder()
            .status(status)
            .header("content-type", form.media_type())
            .header("content-length", body.len())
            .header("cache-control", "no-store");
        for (name, value) in denied.fields() {
            response = response.header(name, value);
        }
        if let Some(wait) = retry_after {
            response = response.header("retry-after", page::seconds(wait));
        }
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            for challenge in page::CHALLENGES {
                response = response.header("proxy-authenticate", challenge);
            }
        }
        self.answer(response.body(()).map_err(io::Error::other)?, false)?;
        if let Outgoing::Body(stream) = &mut self.outgoing {
            stream.send_data(Bytes::from(body), true).map_err(io::Error::other)?;
            self.outgoing = Outgoing::Ended;
        }
        Ok(())
    }

    /// Tells the client that nothing was done (RFC 9113 section 8.7).
    pub(super) fn turn_away(mut self) {
        if let Outgoing::Response(sender) = &mut self.outgoing {
            sender.send_reset(Reason::REFUSED_STREAM);
            self.outgoing = Outgoing::Ended;
        }
    }

    fn answer(&mut self, response: Response<()>, end: bool) -> io::Result<()> {
        let Outgoing::Response(sender) = &mut self.outgoing else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let body = sender.send_response(response, end).map_err(io::Error::other)?;
        self.outgoing = Outgoing::Body(body);
        Ok(())
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        // Only whether it has happened is asked: nobody is woken.
        let mut cx = Context::from_waker(Waker::noop());
        let reset = match &mut self.outgoing {
            Outgoing::Response(sender) => sender.poll_reset(&mut cx),
            Outgoing::Body(stream) => stream.poll_reset(&mut cx),
            Outgoing::Ended => return,
        };
        if matches!(reset, Poll::Ready(Ok(_))) {
            self.front.was_reset();
        }
    }
}

impl AsyncRead for Within {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.left.is_empty() {
            match ready!(this.incoming.poll_next(cx)) {
                Ok(Some(bytes)) => this.left = bytes,
                Ok(None) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let n = this.left.len().min(out.remaining());
        out.put_slice(this.left.get(..n).unwrap_or_default());
        this.left.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Within {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Outgoing::Body(stream) = &mut self.outgoing else {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        };
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        stream.reserve_capacity(bytes.len().min(WRITE_BYTES));
        let Some(room) = ready!(super::poll_room(stream, cx)) else {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        };
        let room = room.min(bytes.len()).min(WRITE_BYTES);
        let piece = Bytes::copy_from_slice(bytes.get(..room).unwrap_or_default());
        Poll::Ready(stream.send_data(piece, false).map(|()| room).map_err(io::Error::other))
    }

    /// What was written is the connection's to send, which bounds it.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match std::mem::replace(&mut self.outgoing, Outgoing::Ended) {
            Outgoing::Body(mut stream) => {
                Poll::Ready(stream.send_data(Bytes::new(), true).map_err(io::Error::other))
            }
            // Nothing was said: that is no end of anything.
            Outgoing::Response(mut sender) => {
                sender.send_reset(Reason::CONNECT_ERROR);
                Poll::Ready(Ok(()))
            }
            Outgoing::Ended => Poll::Ready(Ok(())),
        }
    }
}
