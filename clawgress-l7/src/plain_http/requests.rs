//! The requests of a connection by HTTP/1, one after another.
//!
//! As Pingora's `ServerApp::process_new`, whose future has room for a connection by HTTP/2 besides, and which waits for each request in
//! what serves it. An idle connection holds none of that: the gate waits.

use std::pin::pin;
use std::sync::Arc;

use pingora_core::apps::{HttpPersistentSettings, HttpServerApp as _};
use pingora_core::protocols::http::ServerSession;
use tokio::sync::watch;

use super::{Gate, Proxy};
use crate::limit;
use crate::stream::Stream;

/// Serves requests on what comes through `gate` until it ends, or `stopping` says that what is at hand is the last. Returns the
/// client, and what was read of it, if it asks a proxy for a tunnel instead of for more.
pub async fn serve(
    proxy: &Arc<Proxy>,
    mut gate: Box<Gate>,
    stopping: &watch::Receiver<bool>,
) -> Option<(Stream, Vec<u8>)> {
    let (mut settings, mut stop) = (None, stopping.clone());
    // One for all requests.
    let mut stopped = pin!(async { drop(stop.wait_for(|stops| *stops).await) });
    loop {
        let is_there = tokio::select! {
            // A request that is there is answered, also where this stops.
            biased;
            is_there = gate.arrives() => is_there,
            () = &mut stopped => false,
        };
        if !is_there {
            return gate.tunnel();
        }
        let session = session(gate, settings, stopping);
        let reused = proxy.process_new_http(session, stopping).await?;
        let (stream, kept) = reused.consume();
        // It was one before.
        let Ok(same) = stream.into_any().downcast::<Gate>() else { return None };
        (gate, settings) = (same, kept);
    }
}

fn session(
    gate: Box<Gate>,
    settings: Option<HttpPersistentSettings>,
    stopping: &watch::Receiver<bool>,
) -> ServerSession {
    let mut session = ServerSession::new_http1(gate);
    match settings {
        Some(settings) => settings.apply_to_session(&mut session),
        None => session.set_keepalive((!*stopping.borrow()).then_some(limit::KEEPALIVE_S)),
    }
    session
}
