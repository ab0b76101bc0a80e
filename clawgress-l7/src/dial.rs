//! Connecting to judged addresses: alternating families, staggered, bounded (RFC 8305 without the DNS
//! part).
//!
//! Every socket is made here, and registered with the kernel plane for the agent it is dialled for, where the
//! datapath role asks for that: the kernel refuses any other. Must never dial but for an agent.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use clawgress_ebpf_common::user::DialTable;
use clawgress_ebpf_common::{Dial, DropReason, dial_flag};
use clawgress_policy::Host;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use nix::errno::Errno;
use nix::sys::socket::sockopt;
use pingora_core::connectors::l4;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora_core::protocols::l4::stream::Stream;
use pingora_error::{Error, ErrorType, OrErr as _};
use rustix::net::sockopt::socket_cookie;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::limit;
use crate::route::{Leg, Way};
use crate::tunnel::Upstream;

mod kept;
mod opening;

pub use kept::{Kept, Taken};
pub use opening::Opening;

/// What is dialled by.
#[derive(Debug, Default)]
pub struct Dials {
    /// The table in which sockets are registered, as the datapath role handed it over last; none where it wants none.
    table: ArcSwapOption<DialTable>,
    /// Of Pingora's connections.
    pub kept: Kept,
}

/// For whom something is dialled.
#[derive(Clone, Copy, Debug)]
pub struct Behalf {
    /// The registry's index of the agent.
    pub agent: u32,
    /// Where its steered connection was pointed: for that destination the kernel plane has held it to rate
    /// limits already.
    pub steered_to: Option<SocketAddr>,
}

/// That no connection was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// [`DropReason::UpstreamFailed`] or [`DropReason::ParentFailed`].
    pub reason: DropReason,
    /// The way that failed last.
    pub way: Option<Way>,
}

/// Pingora's way to an upstream: a registered socket, for one agent.
#[derive(Debug)]
pub struct Connector {
    /// Where it is registered.
    pub dials: Arc<Dials>,
    /// For whom.
    pub behalf: Behalf,
    /// Which way.
    pub way: Way,
    /// To where.
    pub to: (Host, u16),
    /// The request that it is for alone, where that opens a WebSocket.
    pub opening: Option<Arc<Opening>>,
    /// Its place among its agent's.
    pub taken: Arc<Taken>,
}

// === impl Dials ===

impl Dials {
    /// Registers in `table` from now on.
    pub fn replace(&self, table: Option<DialTable>) {
        self.table.store(table.map(Arc::new));
    }

    /// Connects a judged way for an agent, to its end.
    async fn connect(&self, behalf: Behalf, way: &Way, (host, port): (&Host, u16)) -> io::Result<Leg> {
        let address = way.dialled(port).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let source = way.source(address)?;
        let stream = TcpStream::from_std(self.begin(behalf, address, source)?)?;
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        way.lead_on(stream, host, port).await
    }

    /// A socket that is being connected. The kernel judges, and sends the first packet, within the call, so
    /// the registration is taken back right after it.
    fn begin(
        &self,
        behalf: Behalf,
        address: SocketAddr,
        source: Option<SocketAddr>,
    ) -> io::Result<std::net::TcpStream> {
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if let Some(source) = source {
            // The port is chosen with the destination: one may be used for several.
            nix::sys::socket::setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(&source.into())?;
        }
        let table = self.table.load_full();
        let registered = match &table {
            Some(table) => {
                let cookie = socket_cookie(&socket)?;
                let is_charged = behalf.steered_to == Some(address);
                let flags = if is_charged { dial_flag::STEERED } else { 0 };
                table.insert(&cookie, &Dial { agent: behalf.agent, flags })?;
                Some((table, cookie))
            }
            None => None,
        };
        let begun = socket.connect(&address.into());
        if let Some((table, cookie)) = registered
            && let Err(error) = table.remove(&cookie)
        {
            // It counts for this socket alone, but takes a place.
            tracing::error!(%error, "a dialled socket stays registered");
        }
        match begun {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
            _ => Ok(socket.into()),
        }
    }
}

// === impl Connector ===

#[async_trait]
impl l4::Connect for Connector {
    /// The address is what Pingora tells connections apart by; the way says what is dialled.
    async fn connect(&self, _address: &PeerAddress) -> pingora_error::Result<Stream> {
        let (host, port) = (&self.to.0, self.to.1);
        let connected = attempt(&self.dials, self.behalf, self.way.clone(), (host, port)).await;
        let mut stream = match (connected, &self.opening) {
            (Ok((leg, _)), None) => leg.into_stream().or_err(ErrorType::ConnectError, "no descriptors"),
            (Ok((leg, _)), Some(opening)) => opening.over(leg).or_err(ErrorType::ConnectError, "not there"),
            (Err(way), _) => Error::e_explain(ErrorType::Custom(way.failure().name()), "not connected"),
        }?;
        self.taken.hold(&mut stream);
        Ok(stream)
    }
}

/// Ways in the order they are taken: the `chosen` one if it is among them, then families alternate, IPv6
/// first if `v6_first`.
#[must_use]
pub fn order(ways: &[Way], chosen: Option<IpAddr>, v6_first: bool) -> Vec<Way> {
    let is_v6 = |way: &Way| way.ip.is_some_and(|ip| ip.is_ipv6());
    let (first, second): (Vec<Way>, Vec<Way>) = ways.iter().cloned().partition(|way| is_v6(way) == v6_first);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = Vec::with_capacity(ways.len());
    while ordered.len() < ways.len() {
        ordered.extend(first.next());
        ordered.extend(second.next());
    }
    // Who dialled an address gets that one, where the name has it: rate limits have counted it.
    if let Some(at) = chosen.and_then(|chosen| ordered.iter().position(|way| way.ip == Some(chosen)))
        && let Some(before) = ordered.get_mut(..=at)
    {
        before.rotate_right(1);
    }
    ordered.truncate(limit::DIALS_MAX);
    ordered
}

/// Takes judged `ways` to a port of `host` on behalf of an agent. The first connection wins, and is returned with its way.
///
/// # Errors
/// Which one failed last, if none was made.
pub async fn dial(
    dials: &Dials,
    behalf: Behalf,
    ways: &[Way],
    to: (&Host, u16),
) -> Result<(Upstream, Way), Failed> {
    let chosen = behalf.steered_to.map(|to| to.ip());
    let mut waiting = order(ways, chosen, true).into_iter();
    let mut dialling = FuturesUnordered::new();
    let (mut failed, mut head_start) = (None::<Way>, limit::DIAL_STAGGER);
    loop {
        if let Some(way) = waiting.next() {
            head_start = way.parent().map_or(limit::DIAL_STAGGER, |_| limit::DIAL_PARENT_STAGGER);
            dialling.push(attempt(dials, behalf, way, to));
        } else if dialling.is_empty() {
            let reason = failed.as_ref().map_or(DropReason::UpstreamFailed, Way::failure);
            return Err(Failed { reason, way: failed });
        }
        let more = waiting.len() > 0;
        let finished = tokio::select! {
            finished = dialling.next() => finished,
            () = tokio::time::sleep(head_start), if more => None,
        };
        match finished {
            Some(Ok((leg, way))) => match leg.into_upstream() {
                Ok(upstream) => return Ok((upstream, way)),
                Err(_) => failed = Some(way),
            },
            Some(Err(way)) => failed = Some(way),
            None => {}
        }
    }
}

/// A connection by `way`, which is returned in any case.
async fn attempt(dials: &Dials, behalf: Behalf, way: Way, to: (&Host, u16)) -> Result<(Leg, Way), Way> {
    match timeout(way.patience(), dials.connect(behalf, &way, to)).await {
        Ok(Ok(leg)) => Ok((leg, way)),
        Ok(Err(error)) => {
            // Refused by the kernel plane, perhaps: it has told why in a record of its own.
            way.tell(&error);
            Err(way)
        }
        Err(_) => {
            way.tell(&"it took too long");
            Err(way)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_alternate_and_dials_are_bounded() {
        let ip = |s: &str| s.parse::<IpAddr>().expect("address");
        let way = |s: &str| Way::direct(ip(s));
        let ways: Vec<Way> =
            ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "192.0.2.4"].map(way).to_vec();
        let want = ["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"].map(way).to_vec();
        assert_eq!(order(&ways, None, true), want);
        let want = ["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"].map(way).to_vec();
        assert_eq!(order(&ways, None, false), want);
        let want = ["192.0.2.4", "2001:db8::1", "192.0.2.1", "192.0.2.2"].map(way).to_vec();
        assert_eq!(order(&ways, Some(ip("192.0.2.4")), true), want, "what the client chose");
        let other = Some(ip("192.0.2.99"));
        assert_eq!(order(&ways, other, true), order(&ways, None, true), "it must be among them");
        assert!(order(&[], None, true).is_empty());
    }

    #[tokio::test]
    async fn a_refused_address_gives_way_to_the_next() {
        let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let addresses = [IpAddr::from([127, 0, 0, 3]), IpAddr::from([127, 0, 0, 2])];
        let (ways, host) = (addresses.map(Way::direct), Host::parse("a.test").expect("host"));
        let dials = Dials::default();
        let (upstream, way) = dial(&dials, Behalf { agent: 1, steered_to: None }, &ways, (&host, port))
            .await
            .expect("connected");
        assert_eq!(
            (upstream.stream().peer_addr().expect("peer").ip(), way),
            (addresses[1], Way::direct(addresses[1]))
        );
        drop(listener);
        assert_eq!(
            dial(&dials, Behalf { agent: 1, steered_to: None }, &ways, (&host, port)).await.err(),
            Some(Failed { reason: DropReason::UpstreamFailed, way: Some(Way::direct(addresses[1])) })
        );
    }
}
