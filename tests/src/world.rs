//! The outside: real servers in one process, `clawgress-world`, inside the lab's outermost
//! namespace. Owns what agents may want to reach and what they must not; reports what arrived over a
//! Unix socket. Must never judge: verdicts are the gateway's.

pub mod control;
mod dns;
mod files;
mod git;
mod http;
mod llm;
mod pki;
mod sink;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

use control::State;

/// Name of the control socket in the world's directory.
pub const SOCKET: &str = "world.sock";
/// Name of the test CA's certificate in the world's directory.
pub const CA: &str = "ca.pem";
/// Directory of the servers' certificates and keys in the world's directory, `NAME.pem` and `NAME.key`: for a server that a test
/// starts outside.
pub const CERTIFICATES: &str = "certificates";
/// Directory of what is served below `/files/`, in the world's directory.
pub const FILES: &str = "files";
/// Directory of the repositories that are served below `/git/`, in the world's directory.
pub const REPOSITORIES: &str = "git";
/// Port of the sink; every other port of FORBIDDEN is redirected to it.
pub const SINK_PORT: u16 = 9;

/// Backlog of each listener: more than any test opens at once.
const BACKLOG: u32 = 1024;

/// Serves until the process is killed. `dir` gets the CA's certificate and the control socket; the
/// socket answers when everything else does.
///
/// # Errors
/// If a server can't be started.
pub async fn serve(dir: &Path) -> anyhow::Result<()> {
    let tls = pki::servers(dir)?;
    let state = Arc::new(State::new(dir));
    for ip in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
        let at = |port| SocketAddr::new(ip, port);
        tokio::spawn(http::serve(listen(at(80))?, None, Arc::clone(&state)));
        tokio::spawn(http::serve(listen(at(443))?, Some(tls.clone()), Arc::clone(&state)));
        tokio::spawn(http::serve(listen(at(crate::plan::DATABASE_PORT))?, None, Arc::clone(&state)));
        tokio::spawn(sink::serve_tcp(listen(at(SINK_PORT))?, Arc::clone(&state)));
        tokio::spawn(sink::serve_udp(udp(at(SINK_PORT))?, Arc::clone(&state)));
    }
    // Of its own address, so that answers come from the address that was asked.
    let (v4, v6) = crate::plan::DNS;
    for ip in [v4.into(), v6.into()] {
        let at = SocketAddr::new(ip, 53);
        tokio::spawn(dns::serve_udp(udp(at)?, Arc::clone(&state)));
        tokio::spawn(dns::serve_tcp(listen(at)?, Arc::clone(&state)));
    }
    control::serve(&dir.join(SOCKET), state).await
}

fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bind = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            let socket = TcpSocket::new_v6()?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            socket
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().with_context(|| format!("cannot listen on {address}"))
}

fn udp(address: SocketAddr) -> anyhow::Result<tokio::net::UdpSocket> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
    use std::os::fd::AsRawFd as _;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let open = || -> std::io::Result<_> {
        let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        if address.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        }
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        let socket = std::net::UdpSocket::from(socket);
        socket.set_nonblocking(true)?;
        tokio::net::UdpSocket::from_std(socket)
    };
    open().with_context(|| format!("cannot open UDP {address}"))
}
