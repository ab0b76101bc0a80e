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
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use nix::errno::Errno;
use pingora_core::connectors::l4;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora_core::protocols::l4::stream::Stream;
use pingora_error::{Error, ErrorType};
use rustix::net::sockopt::socket_cookie;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::limit;

/// The table in which sockets are registered, as the datapath role handed it over last; none where it
/// wants none.
#[derive(Debug, Default)]
pub struct Dials(ArcSwapOption<DialTable>);

/// For whom something is dialled.
#[derive(Clone, Copy, Debug)]
pub struct Behalf {
    /// The registry's index of the agent.
    pub agent: u32,
    /// Where its steered connection was pointed: for that destination the kernel plane has held it to rate
    /// limits already.
    pub steered_to: Option<SocketAddr>,
}

/// Pingora's way to an upstream: a registered socket, for one agent.
#[derive(Debug)]
pub struct Connector {
    /// Where it is registered.
    pub dials: Arc<Dials>,
    /// For whom.
    pub behalf: Behalf,
}

// === impl Dials ===

impl Dials {
    /// Registers in `table` from now on.
    pub fn replace(&self, table: Option<DialTable>) {
        self.0.store(table.map(Arc::new));
    }

    /// Connects to a judged address for an agent.
    async fn connect(&self, behalf: Behalf, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::from_std(self.begin(behalf, address)?)?;
        stream.writable().await?;
        match stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(stream),
        }
    }

    /// A socket that is being connected. The kernel judges, and sends the first packet, within the call, so
    /// the registration is taken back right after it.
    fn begin(&self, behalf: Behalf, address: SocketAddr) -> io::Result<std::net::TcpStream> {
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        let table = self.0.load_full();
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
    async fn connect(&self, address: &PeerAddress) -> pingora_error::Result<Stream> {
        let PeerAddress::Inet(address) = address else {
            return Error::e_explain(ErrorType::InternalError, "not an internet address");
        };
        match timeout(limit::DIAL, self.dials.connect(self.behalf, *address)).await {
            Ok(Ok(stream)) => Ok(stream.into()),
            Ok(Err(error)) => Error::e_because(ErrorType::ConnectError, "not connected", error),
            Err(_) => Error::e_explain(ErrorType::ConnectTimedout, "not connected in time"),
        }
    }
}

/// Addresses in the order they are dialled: the `chosen` one if it is among them, then families alternate, IPv6
/// first if `v6_first`.
#[must_use]
pub fn order(addresses: &[IpAddr], chosen: Option<IpAddr>, v6_first: bool) -> Vec<IpAddr> {
    let (first, second): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.iter().partition(|ip| ip.is_ipv6() == v6_first);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = Vec::with_capacity(addresses.len());
    while ordered.len() < addresses.len() {
        ordered.extend(first.next());
        ordered.extend(second.next());
    }
    // Who dialled an address gets that one, where the name has it: rate limits have counted it.
    if let Some(at) = chosen.and_then(|chosen| ordered.iter().position(|ip| *ip == chosen))
        && let Some(before) = ordered.get_mut(..=at)
    {
        before.rotate_right(1);
    }
    ordered.truncate(limit::DIALS_MAX);
    ordered
}

/// Dials judged `addresses` on behalf of an agent. The first connection wins, and is returned with its address.
///
/// # Errors
/// [`DropReason::UpstreamFailed`] if none was made.
pub async fn dial(
    dials: &Dials,
    behalf: Behalf,
    addresses: &[IpAddr],
    port: u16,
) -> Result<(TcpStream, IpAddr), DropReason> {
    let chosen = behalf.steered_to.map(|to| to.ip());
    let mut waiting = order(addresses, chosen, true).into_iter();
    let mut dialling = FuturesUnordered::new();
    loop {
        if let Some(ip) = waiting.next() {
            dialling.push(attempt(dials, behalf, SocketAddr::new(ip, port)));
        } else if dialling.is_empty() {
            return Err(DropReason::UpstreamFailed);
        }
        let more = waiting.len() > 0;
        let finished = tokio::select! {
            finished = dialling.next() => finished.flatten(),
            () = tokio::time::sleep(limit::DIAL_STAGGER), if more => None,
        };
        if let Some(connected) = finished {
            return Ok(connected);
        }
    }
}

async fn attempt(dials: &Dials, behalf: Behalf, address: SocketAddr) -> Option<(TcpStream, IpAddr)> {
    match timeout(limit::DIAL, dials.connect(behalf, address)).await {
        Ok(Ok(stream)) => Some((stream, address.ip())),
        Ok(Err(error)) => {
            // Refused by the kernel plane: it has told why in a record of its own.
            tracing::debug!(%address, %error, "not connected");
            None
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_alternate_and_dials_are_bounded() {
        let ip = |s: &str| s.parse::<IpAddr>().expect("address");
        let addresses: Vec<IpAddr> =
            ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "192.0.2.4"].map(ip).to_vec();
        let want = ["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"].map(ip).to_vec();
        assert_eq!(order(&addresses, None, true), want);
        let want = ["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"].map(ip).to_vec();
        assert_eq!(order(&addresses, None, false), want);
        let want = ["192.0.2.4", "2001:db8::1", "192.0.2.1", "192.0.2.2"].map(ip).to_vec();
        assert_eq!(order(&addresses, Some(ip("192.0.2.4")), true), want, "what the client chose");
        let other = Some(ip("192.0.2.99"));
        assert_eq!(order(&addresses, other, true), order(&addresses, None, true), "it must be among them");
        assert!(order(&[], None, true).is_empty());
    }

    #[tokio::test]
    async fn a_refused_address_gives_way_to_the_next() {
        let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let addresses = [IpAddr::from([127, 0, 0, 3]), IpAddr::from([127, 0, 0, 2])];
        let dials = Dials::default();
        let (stream, ip) =
            dial(&dials, Behalf { agent: 1, steered_to: None }, &addresses, port).await.expect("connected");
        assert_eq!((stream.peer_addr().expect("peer").ip(), ip), (addresses[1], addresses[1]));
        drop(listener);
        assert_eq!(
            dial(&dials, Behalf { agent: 1, steered_to: None }, &addresses, port).await.err(),
            Some(DropReason::UpstreamFailed)
        );
    }
}
