//! Connecting to judged addresses: alternating families, staggered, bounded (RFC 8305 without the DNS
//! part).

use std::net::{IpAddr, SocketAddr};

use clawgress_ebpf_common::DropReason;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::limit;

/// Addresses in the order they are dialled: families alternate, IPv6 first if `v6_first`.
#[must_use]
pub fn order(addresses: &[IpAddr], v6_first: bool) -> Vec<IpAddr> {
    let (first, second): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.iter().partition(|ip| ip.is_ipv6() == v6_first);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = Vec::with_capacity(addresses.len());
    while ordered.len() < addresses.len() {
        ordered.extend(first.next());
        ordered.extend(second.next());
    }
    ordered.truncate(limit::DIALS_MAX);
    ordered
}

/// Dials judged `addresses`. The first connection wins, and is returned with its address.
///
/// # Errors
/// [`DropReason::UpstreamFailed`] if none was made.
pub async fn dial(addresses: &[IpAddr], port: u16) -> Result<(TcpStream, IpAddr), DropReason> {
    let mut waiting = order(addresses, true).into_iter();
    let mut dialling = FuturesUnordered::new();
    loop {
        if let Some(ip) = waiting.next() {
            dialling.push(attempt(SocketAddr::new(ip, port)));
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

async fn attempt(address: SocketAddr) -> Option<(TcpStream, IpAddr)> {
    match timeout(limit::DIAL, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Some((stream, address.ip())),
        Ok(Err(error)) => {
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
        assert_eq!(order(&addresses, true), want);
        let want = ["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"].map(ip).to_vec();
        assert_eq!(order(&addresses, false), want);
        assert!(order(&[], true).is_empty());
    }

    #[tokio::test]
    async fn a_refused_address_gives_way_to_the_next() {
        let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let addresses = [IpAddr::from([127, 0, 0, 3]), IpAddr::from([127, 0, 0, 2])];
        let (stream, ip) = dial(&addresses, port).await.expect("connected");
        assert_eq!((stream.peer_addr().expect("peer").ip(), ip), (addresses[1], addresses[1]));
        drop(listener);
        assert_eq!(dial(&addresses, port).await.err(), Some(DropReason::UpstreamFailed));
    }
}
