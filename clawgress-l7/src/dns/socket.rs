//! Steered datagrams: each with where it was sent to and by which interface it came; each answer leaves from there.
//!
//! The socket is transparent, so that it may send from an address that is not this machine's. Its port is another than
//! the agent asked; nftables rewrites that (`mark::HANDED`).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// One byte more than the largest question, so that a larger one is seen to be one.
const READ_BYTES: usize = clawgress_inspect::dns::QUESTION_BYTES_MAX + 1;

/// A socket that steered datagrams come to.
#[derive(Debug)]
pub struct Datagrams(UdpSocket);

/// A datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Its bytes, as far as they matter.
    pub bytes: Vec<u8>,
    /// Who sent it.
    pub peer: SocketAddr,
    /// Where to.
    pub asked: SocketAddr,
    /// The interface it came by.
    pub ifindex: u32,
}

// === impl Datagrams ===

impl Datagrams {
    /// Receives from a socket that was handed over, of this family.
    ///
    /// # Errors
    /// If it is none.
    pub fn new(socket: OwnedFd, is_v6: bool) -> io::Result<Self> {
        if is_v6 {
            setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(&socket, Ipv4PacketInfo, &true)?;
        }
        let socket = std::net::UdpSocket::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Datagrams(UdpSocket::from_std(socket)?))
    }

    /// The next datagram; `None` for one without what it takes to answer it. Cancel-safe.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn receive(&self) -> io::Result<Option<Datagram>> {
        self.0.async_io(Interest::READABLE, || receive(&self.0)).await
    }

    /// Answers a datagram, in the name of whom it was sent to.
    ///
    /// # Errors
    /// If the kernel doesn't take it: nobody waits for room.
    pub fn answer(&self, to: &Datagram, bytes: &[u8]) -> io::Result<()> {
        let parts = [IoSlice::new(bytes)];
        let peer = SockaddrStorage::from(to.peer);
        let send = |control: ControlMessage<'_>| {
            sendmsg(self.0.as_raw_fd(), &parts, &[control], MsgFlags::MSG_DONTWAIT, Some(&peer))
        };
        // Whatever way routes lead: the interface is left to them.
        let sent = match to.asked.ip() {
            IpAddr::V4(ip) => send(ControlMessage::Ipv4PacketInfo(&in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
                ipi_addr: in_addr { s_addr: 0 },
            })),
            IpAddr::V6(ip) => send(ControlMessage::Ipv6PacketInfo(&in6_pktinfo {
                ipi6_addr: in6_addr { s6_addr: ip.octets() },
                ipi6_ifindex: 0,
            })),
        };
        sent.map(drop).map_err(io::Error::from)
    }
}

fn receive(socket: &UdpSocket) -> io::Result<Option<Datagram>> {
    let mut bytes = vec![0; READ_BYTES];
    let mut space =
        nix::cmsg_space!(nix::libc::sockaddr_in6, nix::libc::in6_pktinfo, nix::libc::sockaddr_in6);
    let (n, peer, asked, ifindex) = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let (mut asked, mut ifindex) = (None, None);
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::Ipv4OrigDstAddr(a) => asked = Some(v4(a)),
                ControlMessageOwned::Ipv6OrigDstAddr(a) => asked = Some(v6(a)),
                ControlMessageOwned::Ipv4PacketInfo(i) => ifindex = u32::try_from(i.ipi_ifindex).ok(),
                ControlMessageOwned::Ipv6PacketInfo(i) => ifindex = Some(i.ipi6_ifindex),
                _ => {}
            }
        }
        let peer = message.address.and_then(|from| {
            let v4 = from.as_sockaddr_in().map(|a| SocketAddr::from(SocketAddrV4::from(*a)));
            v4.or_else(|| from.as_sockaddr_in6().map(|a| SocketAddr::from(SocketAddrV6::from(*a))))
        });
        (message.bytes, peer, asked, ifindex)
    };
    let (Some(peer), Some(asked), Some(ifindex)) = (peer, asked, ifindex) else { return Ok(None) };
    bytes.truncate(n);
    Ok(Some(Datagram { bytes, peer, asked, ifindex }))
}

fn v4(a: nix::libc::sockaddr_in) -> SocketAddr {
    let ip = std::net::Ipv4Addr::from(a.sin_addr.s_addr.to_ne_bytes());
    SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(a.sin_port)))
}

fn v6(a: nix::libc::sockaddr_in6) -> SocketAddr {
    SocketAddr::V6(SocketAddrV6::new(a.sin6_addr.s6_addr.into(), u16::from_be(a.sin6_port), 0, 0))
}
