//! What Pingora is told of the server that a granted request goes to, and of the connections that it may share.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use pingora_core::upstreams::peer::{H1UpgradePolicy, HttpPeer, HttpUpstreamRequestPolicy};
use pingora_error::{Error, ErrorType, Result};

use super::Context;
use super::web_socket::Reading;
use crate::dial::{self, Opening};
use crate::gateway::Gateway;
use crate::limit;

/// The server of the request at hand, by the way that is taken. `keys` are of this process.
///
/// # Errors
/// If nobody granted one.
pub fn of(gateway: &Arc<Gateway>, keys: &RandomState, context: &mut Context) -> Result<Box<HttpPeer>> {
    let granted = context.granted.as_ref();
    let granted = granted.and_then(|g| Some((g, g.way()?.clone(), g.way()?.dialled(g.admitted().port)?)));
    let Some((granted, way, dialled)) = granted else {
        return Error::e_explain(ErrorType::InternalError, "no address was granted");
    };
    let (is_tls, name) = granted.tls();
    let mut peer = HttpPeer::new(dialled, is_tls, name);
    // Agents never share a connection: what one did to it must not reach another.
    let agent = granted.who().identity.agent.index;
    // Nor do those whose packets the kernel plane holds to rate limits here, and those it did where they came in.
    let steered_to = context.front.as_ref().and_then(|front| front.connection.steered_to());
    let is_charged = steered_to == Some(dialled);
    peer.group_key = granted.group(is_charged, keys);
    let alpn = granted.alpn();
    let options = &mut peer.options;
    options.alpn = alpn;
    options.max_h2_streams = limit::UPSTREAM_STREAMS_MAX;
    // With all that the agent has under way: as many connections at most.
    let count = gateway.slots.taken(agent);
    let (of_stream, of_all) = limit::windows((limit::UPSTREAM_STREAM_WINDOW, limit::UPSTREAM_WINDOW), count);
    options.h2_stream_window_size = Some(of_stream);
    options.h2_connection_window_size = Some(of_all);
    options.h2_ping_interval = Some(limit::UPSTREAM_PING);
    options.ca = granted.ca(gateway);
    // Each has a bound of its own, which says why it failed: these are for what has none.
    options.connection_timeout = Some(way.patience() + limit::DIAL_SLACK);
    options.total_connection_timeout = Some(way.patience() + limit::DIAL_TLS);
    options.read_timeout = Some(gateway.answer_silence);
    options.write_timeout = Some(limit::UPSTREAM_WRITE);
    let (taken, is_kept) = gateway.dials.kept.take(agent);
    options.idle_timeout = Some(if is_kept { limit::UPSTREAM_IDLE } else { Duration::ZERO });
    options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
    context.opening = None;
    if granted.opens_web_socket() {
        options.http_upstream_request_policy.h1_upgrade = H1UpgradePolicy::WebSocketOnly;
        options.read_timeout = Some(limit::TUNNEL_IDLE);
        // Its connection is for it alone, also where its server declines: what holds its server back is made with that.
        let opening = Arc::<Opening>::default();
        opening.hears(granted.reads().received != Reading::Unread);
        peer.group_key = keys.hash_one((peer.group_key, Arc::as_ptr(&opening)));
        options.idle_timeout = Some(Duration::ZERO);
        context.opening = Some(opening);
    }
    let (dials, behalf) = (Arc::clone(&gateway.dials), dial::Behalf { agent, steered_to });
    let (to, opening) = (granted.to(), context.opening.clone());
    context.taken = Some(Arc::clone(&taken));
    options.custom_l4 = Some(Arc::new(dial::Connector { dials, behalf, way, to, opening, taken }));
    Ok(Box::new(peer))
}
