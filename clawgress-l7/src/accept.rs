//! The accept loop: bounded in all, bounded for each source.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clawgress_api::handover::ListenerKind;
use clawgress_ebpf_common::user::ingress;
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::connection::{Connection, Flows};
use crate::limit;
use crate::serve::Serving;

/// Pause after an accept failed for want of descriptors or memory: some connection may end meanwhile.
const PAUSE: Duration = Duration::from_millis(50);
/// One log line for this many closed connections.
const OVERLOADED_LOG: u64 = 1000;

/// What accepting takes.
#[derive(Debug)]
pub struct Accepting {
    /// How connections are served.
    pub serving: Serving,
    /// All connections.
    pub connections: Arc<Semaphore>,
    /// Connections by source.
    pub sources: Arc<Sources>,
    /// Load balancers, whose connections are of many sources.
    pub balancers: Arc<[IpNet]>,
}

/// A connection that was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// By which listener.
    pub kind: ListenerKind,
    /// What is known of it.
    pub connection: Connection,
    /// The client, or the load balancer that passes it on.
    pub stream: TcpStream,
    /// Its source's share; `None`: it is a load balancer's, and begins by saying whose it is.
    pub share: Option<Share>,
    /// Where its client is counted then.
    pub sources: Arc<Sources>,
}

/// Shows that a loop comes round: set by the loop itself, and by nobody for it.
#[derive(Clone, Debug, Default)]
pub struct Beat(Arc<AtomicBool>);

/// How many connections each source has.
#[derive(Debug)]
pub struct Sources {
    /// As many entries as there are connections at most.
    counts: Mutex<HashMap<IpAddr, usize>>,
    each_max: usize,
    /// Of the loopback addresses, which are one source for all users and agents there.
    local_max: usize,
    /// What becomes of one too many.
    refuses: &'static str,
    refused: AtomicU64,
}

/// One connection of a source.
#[derive(Debug)]
pub struct Share {
    sources: Arc<Sources>,
    source: IpAddr,
}

/// What counts as one source.
pub fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        local if local.is_loopback() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V6(ip) => IpAddr::from((u128::from(ip) & !u128::from(u64::MAX)).to_be_bytes()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

// === impl Sources ===

impl Sources {
    /// For `connections_max` connections in all.
    #[must_use]
    pub fn new(connections_max: usize) -> Arc<Self> {
        Sources::with(connections_max, "new connections are closed")
    }

    /// For as many streams of HTTP/2.
    #[must_use]
    pub fn of_streams(streams_max: usize) -> Arc<Self> {
        Sources::with(streams_max, "new streams of HTTP/2 are refused")
    }

    fn with(most: usize, refuses: &'static str) -> Arc<Self> {
        let each_max = (most / limit::SOURCE_SHARE).max(1);
        let local_max = (most - most / limit::SOURCE_SHARE).max(1);
        Arc::new(Sources {
            counts: Mutex::default(),
            each_max,
            local_max,
            refuses,
            refused: AtomicU64::new(0),
        })
    }

    /// One more connection of `peer`'s source, if it may have one.
    #[must_use]
    pub fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Share> {
        let source = source(peer);
        // The proxy of a laptop has one source for all its agents; others are left a share all the same.
        let most = if peer.to_canonical().is_loopback() { self.local_max } else { self.each_max };
        let mut counts = self.counts.lock();
        let count = counts.entry(source).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Share { sources: Arc::clone(self), source })
    }

    /// How many `peer`'s source has.
    #[must_use]
    pub fn count(&self, peer: IpAddr) -> usize {
        self.counts.lock().get(&source(peer)).copied().unwrap_or(0)
    }

    /// Counts a connection, or a stream, that is refused for `what`, and says so now and then.
    pub fn refuse(&self, what: &str) {
        let n = self.refused.fetch_add(1, Ordering::Relaxed);
        if n.is_multiple_of(OVERLOADED_LOG) {
            tracing::warn!(closed = n + 1, "overloaded: {what} has reached its bound; {}", self.refuses);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.sources.counts.lock();
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

// === impl Beat ===

impl Beat {
    /// Says that it comes round.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the loop has come round since this was asked last.
    #[must_use]
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

// === impl Accepting ===

impl Accepting {
    /// Accepts from `listener` until `stop`, and what waits there then. Each connection, and each look at an empty
    /// queue, is a beat; a failure is none.
    pub async fn accept(
        self: Arc<Self>,
        kind: ListenerKind,
        listener: TcpListener,
        flows: Arc<Flows>,
        stop: CancellationToken,
        beat: Beat,
    ) {
        let mut looks = tokio::time::interval(limit::ACCEPT_BEAT);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                // In this order: the clock counts only while nothing waits to be accepted.
                biased;
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
                _ = looks.tick() => {
                    beat.set();
                    continue;
                }
            };
            match accepted {
                Ok((stream, peer)) => {
                    self.admit(kind, stream, peer, &flows);
                    beat.set();
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        if let Err(error) = self.rest(kind, listener, &flows) {
            tracing::warn!(%error, "connections that wait can't be accepted any more");
        }
    }

    fn rest(&self, kind: ListenerKind, listener: TcpListener, flows: &Flows) -> io::Result<()> {
        // As the kernel has it: the runtime may not have heard of the last ones.
        let listener = listener.into_std()?;
        for _ in 0..limit::REST_MAX {
            let (stream, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // It ended while it waited.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            stream.set_nonblocking(true)?;
            self.admit(kind, TcpStream::from_std(stream)?, peer, flows);
        }
        Ok(())
    }

    fn admit(&self, kind: ListenerKind, stream: TcpStream, peer: std::net::SocketAddr, flows: &Flows) {
        let Ok(local) = stream.local_addr() else { return };
        let is_balanced = matches!(kind, ListenerKind::Proxy | ListenerKind::ProxyTls)
            && self.balancers.iter().any(|net| net.contains(&peer.ip().to_canonical()));
        let share = if is_balanced { None } else { self.sources.take(peer.ip()) };
        if share.is_none() && !is_balanced {
            return self.sources.refuse("a source");
        }
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            return self.sources.refuse("`connections_max`");
        };
        let connection = Connection::new(kind, peer, local, || ingress(&stream), flows);
        let serving = self.serving.clone();
        let sources = Arc::clone(&self.sources);
        tokio::spawn(async move {
            serving.accepted(Accepted { kind, connection, stream, share, sources }).await;
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_its_share_and_no_more() {
        let sources = Sources::new(8);
        let (a, b) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let first = sources.take(a).expect("one");
        let _second = sources.take(a).expect("two");
        assert!(sources.take(a).is_none());
        assert_eq!((sources.count(a), sources.count(b)), (2, 0));
        let other = sources.take(b).expect("others are not locked out");
        drop(first);
        let _third = sources.take(a).expect("freed");
        drop(other);
        assert_eq!(sources.counts.lock().len(), 1, "nothing is kept of sources without connections");
    }

    #[test]
    fn this_machine_leaves_others_their_share() {
        let sources = Sources::new(8);
        let ip = |s: &str| s.parse::<IpAddr>().expect("address");
        for (local, another) in [("127.0.0.1", "127.0.0.2"), ("::1", "::1")] {
            let all: Vec<_> = (0..9).map_while(|_| sources.take(ip(local))).collect();
            assert_eq!(all.len(), 6, "three quarters");
            if local == another {
                continue;
            }
            assert!(sources.take(ip(another)).is_none(), "all of 127.0.0.0/8 is one");
            assert!(sources.take(ip("192.0.2.1")).is_some());
        }
        assert!(sources.counts.lock().is_empty());
    }

    #[test]
    fn an_ipv6_source_is_its_network() {
        let sources = Sources::new(8);
        let ip = |s: &str| s.parse::<IpAddr>().expect("address");
        let _first = sources.take(ip("2001:db8::1")).expect("one");
        let _second = sources.take(ip("2001:db8::ffff:2")).expect("two");
        assert!(sources.take(ip("2001:db8::3")).is_none(), "another address of the same host");
        let _other = sources.take(ip("2001:db8:0:1::1")).expect("another network");
        let mapped: Vec<_> = ["::ffff:192.0.2.1", "::ffff:192.0.2.2", "192.0.2.1"].map(ip).to_vec();
        let shares: Vec<_> = mapped.iter().map(|ip| sources.take(*ip)).collect();
        assert!(shares.iter().all(Option::is_some), "mapped addresses are IPv4");
        assert!(sources.take(ip("::ffff:192.0.2.1")).is_none());
    }
}
