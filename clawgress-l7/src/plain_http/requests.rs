//! The requests of a connection by HTTP/1, one after another.
//!
//! As Pingora's `ServerApp::process_new`, whose future has room for a connection by HTTP/2 besides, which every idle
//! connection would hold.

use std::sync::Arc;

use pingora_core::apps::{HttpServerApp as _, ReusedHttpStream};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use tokio::sync::watch;

use super::Proxy;
use crate::limit;

/// Serves requests on `stream` until it ends, or `stopping` says that what is at hand is the last.
pub async fn serve(proxy: &Arc<Proxy>, stream: Stream, stopping: &watch::Receiver<bool>) {
    let mut next = proxy.process_new_http(first(stream, stopping), stopping).await;
    while let Some(reused) = next {
        next = proxy.process_new_http(again(reused), stopping).await;
    }
}

fn first(stream: Stream, stopping: &watch::Receiver<bool>) -> ServerSession {
    let mut session = ServerSession::new_http1(stream);
    session.set_keepalive((!*stopping.borrow()).then_some(limit::KEEPALIVE_S));
    session
}

fn again(reused: ReusedHttpStream) -> ServerSession {
    let (stream, settings) = reused.consume();
    let mut session = ServerSession::new_http1(stream);
    if let Some(settings) = settings {
        settings.apply_to_session(&mut session);
    }
    session
}
