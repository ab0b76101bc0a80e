//! The machine's own addresses, by whatever they are its own, which agents never reach through the gateway, and the gateway's own
//! listeners: that would be a loop. Loopback is open where a policy names it: a model's server on the
//! same machine is found there.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::LazyLock;
use std::time::Instant;

use arc_swap::ArcSwap;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use tokio::net::UnixDatagram;

use crate::limit;
use crate::told::Told;

mod routes;

use self::routes::Routes;

static UNKNOWN_TOLD: LazyLock<Told> = LazyLock::new(Told::default);

/// What is ours.
#[derive(Debug, Default)]
pub struct Own {
    addresses: ArcSwap<HashSet<IpAddr>>,
    routes: Routes,
    ports: ArcSwap<HashSet<u16>>,
}

// === impl Own ===

impl Own {
    /// Whether `ip` is an address of this machine, and no loopback address.
    #[must_use]
    pub fn is(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        !ip.is_loopback()
            && (ip.is_unspecified() || self.addresses.load().contains(&ip) || self.is_routed_here(ip))
    }

    /// Whether the kernel leads it back here. Where that can't be asked, addresses of interfaces are known all the same.
    fn is_routed_here(&self, ip: IpAddr) -> bool {
        self.routes.are_local(ip).unwrap_or_else(|error| {
            if let Some(untold) = UNKNOWN_TOLD.turn(0, Instant::now()) {
                tracing::error!(%error, untold, "the kernel can't be asked which addresses are the machine's");
            }
            false
        })
    }

    /// Whether a connection to `ip` and `port` would come back to one of the gateway's listeners.
    #[must_use]
    pub fn listens(&self, ip: IpAddr, port: u16) -> bool {
        (ip.to_canonical().is_loopback() || self.is(ip)) && self.ports.load().contains(&port)
    }

    /// Takes note of the gateway's listeners.
    pub fn set_listeners(&self, listeners: impl Iterator<Item = SocketAddr>) {
        self.ports.store(listeners.map(|a| a.port()).collect::<HashSet<_>>().into());
    }

    /// Reads the machine's addresses. On error the former ones stay.
    pub fn refresh(&self) {
        self.routes.forget();
        match getifaddrs() {
            Ok(interfaces) => {
                let ip = |a: nix::sys::socket::SockaddrStorage| {
                    let v4 = a.as_sockaddr_in().map(|s| IpAddr::from(s.ip()));
                    v4.or_else(|| a.as_sockaddr_in6().map(|s| IpAddr::from(s.ip()).to_canonical()))
                };
                let found: HashSet<IpAddr> = interfaces.filter_map(|i| i.address.and_then(ip)).collect();
                if **self.addresses.load() != found {
                    self.addresses.store(found.into());
                }
            }
            Err(error) => tracing::error!(%error, "the machine's addresses can't be read"),
        }
    }

    /// Keeps them fresh for ever: they are read again when the kernel announces a change, and now and then.
    pub async fn follow(&self) {
        // Before they are read: what changes from here on is announced.
        let announced = listen()
            .inspect_err(
                |error| tracing::warn!(%error, "new addresses are not announced, and are looked for"),
            )
            .ok();
        loop {
            self.refresh();
            tokio::time::sleep(limit::OWN_ADDRESSES_PAUSE).await;
            let _ = tokio::time::timeout(limit::OWN_ADDRESSES, change(announced.as_ref())).await;
        }
    }
}

/// A listener to what rtnetlink(7) announces of addresses, and of what else may lead here.
fn listen() -> io::Result<UnixDatagram> {
    let groups = [
        libc::RTNLGRP_IPV4_IFADDR,
        libc::RTNLGRP_IPV6_IFADDR,
        libc::RTNLGRP_IPV4_ROUTE,
        libc::RTNLGRP_IPV6_ROUTE,
        libc::RTNLGRP_IPV4_RULE,
        libc::RTNLGRP_IPV6_RULE,
    ];
    let groups = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    // It is no such socket, and only what recv(2) does of any is asked of it: what takes a descriptor by itself is unsafe.
    UnixDatagram::from_std(socket.into())
}

/// Waits for an announcement, and takes those behind it. What they say is not read, nor whether some were lost: a look finds
/// out what there is.
async fn change(announced: Option<&UnixDatagram>) {
    let Some(announced) = announced else { return std::future::pending().await };
    let mut start = [0; 16];
    let _ = announced.recv(&mut start).await;
    for _ in 0..limit::OWN_ADDRESSES_ANNOUNCED {
        if announced.try_recv(&mut start).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_and_listeners_are_known() {
        let own = Own::default();
        own.refresh();
        own.set_listeners([SocketAddr::from(([0, 0, 0, 0], 3128))].into_iter());
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert!(!own.is(loopback), "policy may name it");
        assert!(own.is(IpAddr::from([0, 0, 0, 0])), "connecting to 0.0.0.0 reaches this machine");
        assert!(own.listens(loopback, 3128));
        assert!(
            own.listens(IpAddr::from([127, 9, 9, 9]), 3128),
            "the whole loopback network is this machine"
        );
        assert!(!own.listens(loopback, 3129));
        assert!(!own.is(IpAddr::from([192, 0, 2, 1])));
        let addresses = [IpAddr::from([192, 0, 2, 1]), loopback];
        own.addresses.store(HashSet::from(addresses).into());
        assert!(own.is(IpAddr::from([192, 0, 2, 1])));
        assert!(own.is("::ffff:192.0.2.1".parse().expect("address")), "however it is written");
        assert!(own.listens(IpAddr::from([192, 0, 2, 1]), 3128));
        assert!(!own.is(loopback));
    }
}
