//! The sockets agents' connections arrive at. They are opened here, where the capability is, and used
//! by L7, which has none. This process never accepts from them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context as _, Result};
use clawgress_api::config::{Config, DatapathMode};
use clawgress_api::handover::{self, ListenerKind};
use clawgress_ebpf_common::mark;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv4OrigDstAddr, Ipv6OrigDstAddr};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel completes before L7 accepts them: a burst of a tenth of the promised 10,000
/// connections, four times over. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// One open listener.
#[derive(Debug)]
pub struct Listener {
    kind: ListenerKind,
    address: SocketAddr,
    socket: Socket,
}

impl Listener {
    /// What arrives here.
    #[must_use]
    pub fn kind(&self) -> ListenerKind {
        self.kind
    }

    /// The address it is bound to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// As L7 is told.
    #[must_use]
    pub fn document(&self) -> handover::Listener {
        handover::Listener { kind: self.kind, address: self.address }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Opens the transparent listeners of one L7 process, one a family, on ports of the kernel's choice: nobody dials them,
/// packets are assigned.
///
/// # Errors
/// If IPv4's can't be opened. Without IPv6 on this machine there is none to steer.
pub fn transparent() -> Result<Vec<Listener>> {
    let v4 = open(ListenerKind::Transparent, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), true)?;
    let mut listeners = vec![v4];
    match open(ListenerKind::Transparent, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), true) {
        Ok(v6) => listeners.push(v6),
        Err(error) => tracing::warn!("no transparent listener for IPv6: {error:#}"),
    }
    Ok(listeners)
}

/// Opens the sockets that DNS is steered to, for both protocols and each family this machine has.
///
/// # Errors
/// If IPv4's can't be opened.
pub fn dns() -> Result<Vec<Listener>> {
    let mut sockets = Vec::new();
    for kind in [ListenerKind::DnsStream, ListenerKind::DnsDatagram] {
        sockets.push(open(kind, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), true)?);
        match open(kind, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), true) {
            Ok(v6) => sockets.push(v6),
            Err(error) => tracing::warn!("no DNS socket for IPv6: {error:#}"),
        }
    }
    Ok(sockets)
}

/// Opens the explicit proxy's listeners.
///
/// # Errors
/// If one can't be opened.
pub fn proxies(config: &Config) -> Result<Vec<Listener>> {
    let clear = config.proxy.listen.iter().map(|address| (ListenerKind::Proxy, *address));
    let tls = config.proxy.tls.iter().flat_map(|tls| &tls.listen);
    let tls = tls.map(|address| (ListenerKind::ProxyTls, *address));
    let is_kernel = config.datapath.mode == DatapathMode::Kernel;
    clear.chain(tls).map(|(kind, address)| open(kind, address, is_kernel)).collect()
}

/// `is_kernel` is whether the kernel plane holds what leaves by it.
fn open(kind: ListenerKind, address: SocketAddr, is_kernel: bool) -> Result<Listener> {
    let domain = Domain::for_address(address);
    let is_datagram = kind == ListenerKind::DnsDatagram;
    let (form, protocol) =
        if is_datagram { (Type::DGRAM, Protocol::UDP) } else { (Type::STREAM, Protocol::TCP) };
    let socket = Socket::new(domain, form.nonblocking(), Some(protocol))?;
    if address.is_ipv6() {
        // IPv4 has a listener of its own.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    if is_kernel {
        // No program of L7's cgroup judges what it sends by a socket that was made here, nor by what is accepted from it:
        // nftables does. It gives answers to DNS their port, too: their address L7 gives itself, from a transparent socket;
        // another port than its own it can't.
        socket.set_mark(mark::HANDED).context("cannot mark a listener; that needs CAP_NET_ADMIN")?;
    }
    match kind {
        // L7 may still hold the listener of a datapath role that is gone.
        ListenerKind::Proxy | ListenerKind::ProxyTls => socket.set_reuse_port(true),
        _ if address.is_ipv6() => socket.set_ip_transparent_v6(true),
        _ => socket.set_ip_transparent_v4(true),
    }
    .context("cannot open a listener; the transparent ones need CAP_NET_ADMIN")?;
    socket.bind(&address.into()).with_context(|| {
        format!("cannot listen on `{address}`; correct `listen` in [proxy] or [proxy.tls], or stop what listens there")
    })?;
    match (kind, address.is_ipv6()) {
        (ListenerKind::DnsDatagram, true) => setsockopt(&socket, Ipv6OrigDstAddr, &true)?,
        (ListenerKind::DnsDatagram, false) => setsockopt(&socket, Ipv4OrigDstAddr, &true)?,
        _ => socket.listen(BACKLOG)?,
    }
    let address = socket.local_addr()?.as_socket().context("a listener without an address")?;
    Ok(Listener { kind, address, socket })
}
