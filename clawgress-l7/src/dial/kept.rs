//! Connections to servers that are kept for an agent's next requests: of those there may be, each agent has a share.
//!
//! Pingora keeps them all together, and lets the oldest of all go where there are too many. Must never keep more of one agent than
//! its share, so that what goes is its own.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pingora_core::protocols::GetProxyDigest as _;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_http::ResponseHeader;

use crate::limit;

/// How many connections each agent has, used or kept, by its index. One that has none has no entry.
#[derive(Debug, Default)]
pub struct Kept(Arc<Mutex<HashMap<u32, usize>>>);

/// One of an agent's connections, from before it is made until it is gone.
#[derive(Debug)]
pub struct Place {
    all: Arc<Mutex<HashMap<u32, usize>>>,
    agent: u32,
}

/// The place of a connection that is about to be made. That of a request that takes one which was kept is given back.
#[derive(Debug, Default)]
pub struct Taken(Mutex<Option<Place>>);

// === impl Kept ===

impl Kept {
    /// A place for one more connection of an agent, and whether it may be kept once it is not used.
    #[must_use]
    pub fn take(&self, agent: u32) -> (Arc<Taken>, bool) {
        let mut all = self.0.lock();
        let count = all.entry(agent).or_default();
        *count += 1;
        let is_kept = *count <= limit::UPSTREAM_SHARE;
        let place = Place { all: Arc::clone(&self.0), agent };
        (Arc::new(Taken(Mutex::new(Some(place)))), is_kept)
    }

    /// How many an agent has.
    #[cfg(test)]
    fn count(&self, agent: u32) -> usize {
        self.0.lock().get(&agent).copied().unwrap_or(0)
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(count) = all.get_mut(&self.agent) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.agent);
            }
        }
    }
}

// === impl Taken ===

impl Taken {
    /// Gives the place back: no connection is made.
    pub fn give_back(&self) {
        drop(self.0.lock().take());
    }

    /// Has the place taken for as long as there is the connection `stream`.
    pub fn hold(&self, stream: &mut Stream) {
        let Some(place) = self.0.lock().take() else { return };
        if let Ok(response) = ResponseHeader::build(200, Some(0)) {
            stream.set_proxy_digest(ProxyDigest::new(Box::new(response), Some(Box::new(place))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_agent_keeps_its_share_and_no_more() {
        let kept = Kept::default();
        let mut held: Vec<_> = (0..limit::UPSTREAM_SHARE).map(|_| kept.take(1)).collect();
        assert!(held.iter().all(|(_, is_kept)| *is_kept));
        assert!(!kept.take(1).1, "it is not kept");
        assert!(kept.take(2).1, "others have theirs");
        held.pop().into_iter().for_each(|(place, _)| place.give_back());
        assert!(kept.take(1).1);
        drop(held);
        assert_eq!((kept.count(1), kept.count(2), kept.0.lock().len()), (0, 0, 0), "nothing is left");
    }

    #[tokio::test]
    async fn a_place_is_taken_as_long_as_its_connection_is_there() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        let (kept, mut stream) = (Kept::default(), Stream::from(stream));
        let (place, _) = kept.take(1);
        place.hold(&mut stream);
        drop(place);
        assert_eq!(kept.count(1), 1);
        drop(stream);
        assert_eq!(kept.count(1), 0);
    }
}
