//! A stream that waits for its answer, which its session has, and whoever watches over it.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::Response;
use parking_lot::Mutex;

use crate::plain_http::Front;

/// The stream. INVARIANT: whoever polls it is in one task, which is woken by whatever happens to it.
#[derive(Clone)]
pub struct Asked(Arc<Mutex<SendResponse<Bytes>>>);

// === impl Asked ===

impl Asked {
    /// A stream that nobody has answered.
    #[must_use]
    pub fn new(response: SendResponse<Bytes>) -> Asked {
        Asked(Arc::new(Mutex::new(response)))
    }

    /// Ends when the client takes back its request while that is judged: what judges it waits for others, and not for the client.
    /// Once it is granted its session finds that out by itself, and lets go of its server.
    pub async fn is_taken_back(&self, front: &Front) {
        poll_fn(|cx| match self.0.lock().poll_reset(cx) {
            Poll::Ready(Ok(_)) if front.may_leave() => Poll::Ready(()),
            // It is granted, or was answered; or it stays.
            _ => Poll::Pending,
        })
        .await;
    }

    /// Why it was reset, once it is.
    pub fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<Result<Reason, h2::Error>> {
        self.0.lock().poll_reset(cx)
    }

    /// Begins an interim answer.
    ///
    /// # Errors
    /// If the client has left.
    pub fn inform(&self, head: Response<()>) -> Result<(), h2::Error> {
        self.0.lock().send_informational(head)
    }

    /// Begins its answer.
    ///
    /// # Errors
    /// If the client has left.
    pub fn answer(&self, head: Response<()>, end: bool) -> Result<SendStream<Bytes>, h2::Error> {
        self.0.lock().send_response(head, end)
    }

    /// Resets it.
    pub fn reset(&self, reason: Reason) {
        self.0.lock().send_reset(reason);
    }
}
