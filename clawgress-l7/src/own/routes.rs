//! Whether the kernel takes an address for this machine's: by an address of an interface, by a prefix that is local on `lo`, by a
//! route of the type `local`.
//!
//! It is asked what it would do, by rtnetlink(7), and what it says is remembered until an address, a route or a rule changes. Must
//! never be asked about a destination that no policy permits: whoever is asked learns nothing, but each question costs some µs.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use parking_lot::{Mutex, RwLock};

use crate::limit;

/// Bytes of a message's head, of a route's, and of an attribute's (`nlmsghdr`, `rtmsg`, `rtattr`).
const MESSAGE_HEAD: usize = 16;
const ROUTE_HEAD: usize = 12;
const ATTRIBUTE_HEAD: usize = 4;
/// Where a route's head has its type.
const ROUTE_TYPE: usize = MESSAGE_HEAD + 7;
/// Answers that are looked at for one question: those to questions that were given up come before.
const ANSWERS_MAX: usize = 16;
/// For the kernel, which answers at once.
const ANSWER_S: i64 = 1;

/// What is remembered of what the kernel says.
#[derive(Debug, Default)]
pub struct Routes {
    socket: Mutex<Option<OwnedFd>>,
    sequence: AtomicU32,
    known: RwLock<HashMap<IpAddr, bool>>,
    /// How often all was forgotten: what was asked before is not remembered behind that.
    forgotten: AtomicU64,
}

// === impl Routes ===

impl Routes {
    /// Whether the kernel takes `ip` for this machine's.
    ///
    /// # Errors
    /// If it can't be asked.
    pub fn are_local(&self, ip: IpAddr) -> io::Result<bool> {
        if let Some(is_local) = self.known.read().get(&ip) {
            return Ok(*is_local);
        }
        let forgotten = self.forgotten.load(Ordering::Acquire);
        let is_local = self.ask(ip)?;
        let mut known = self.known.write();
        if self.forgotten.load(Ordering::Acquire) == forgotten {
            if known.len() >= limit::OWN_KNOWN_MAX {
                known.clear();
            }
            known.insert(ip, is_local);
        }
        Ok(is_local)
    }

    /// Has the kernel be asked anew.
    pub fn forget(&self) {
        let mut known = self.known.write();
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        known.clear();
    }

    fn ask(&self, ip: IpAddr) -> io::Result<bool> {
        let mut held = self.socket.lock();
        let socket = match held.take() {
            Some(socket) => socket,
            None => open()?,
        };
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        // One that failed is not asked by again.
        let answer = exchange(&socket, &question(ip, sequence), sequence)?;
        *held = Some(socket);
        Ok(answer)
    }
}

fn open() -> io::Result<OwnedFd> {
    let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkRoute);
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_S, 0))?;
    Ok(socket)
}

/// The question by which way a packet to `ip` would go, as of this machine's own.
fn question(ip: IpAddr, sequence: u32) -> Vec<u8> {
    let (family, address) = match ip {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    let byte = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
    let attribute = ATTRIBUTE_HEAD + address.len();
    let length = u32::from(byte(MESSAGE_HEAD + ROUTE_HEAD + attribute));
    let flags = u16::try_from(libc::NLM_F_REQUEST).unwrap_or_default();
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(libc::RTM_GETROUTE.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    let family = u8::try_from(family).unwrap_or_default();
    message.extend([family, byte(8 * address.len()), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    message.extend(u16::from(byte(attribute)).to_ne_bytes());
    message.extend(libc::RTA_DST.to_ne_bytes());
    message.extend(address);
    message
}

fn exchange(socket: &OwnedFd, question: &[u8], sequence: u32) -> io::Result<bool> {
    let socket = socket.as_raw_fd();
    send(socket, question, MsgFlags::empty())?;
    let mut answer = [0; 512];
    for _ in 0..ANSWERS_MAX {
        let n = recv(socket, &mut answer, MsgFlags::empty())?;
        if let Some(is_local) = read(answer.get(..n).unwrap_or_default(), sequence) {
            return Ok(is_local);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Whether the way in an answer ends here, if it is the answer with this number. Where there is no way, none does.
fn read(answer: &[u8], sequence: u32) -> Option<bool> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let number = u32::from_ne_bytes(answer.get(8..12)?.try_into().ok()?);
    if number != sequence {
        return None;
    }
    let way = answer.get(ROUTE_TYPE).filter(|_| kind == libc::RTM_NEWROUTE);
    // An anycast address is delivered here, too.
    Some(way.is_some_and(|way| matches!(*way, libc::RTN_LOCAL | libc::RTN_ANYCAST)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loopback network is such a prefix in every namespace that has `lo` up.
    #[test]
    fn a_prefix_is_local_where_an_address_of_it_is_on_lo() {
        let routes = Routes::default();
        for (ip, want) in
            [("127.0.0.1", true), ("127.198.18.7", true), ("192.0.2.1", false), ("2001:db8::1", false)]
        {
            let ip = ip.parse().expect("address");
            assert_eq!(routes.are_local(ip).expect("asked"), want, "{ip}");
            assert_eq!(routes.known.read().get(&ip), Some(&want), "remembered");
        }
        routes.forget();
        assert!(routes.known.read().is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let routes = Routes::default();
        for n in 0..limit::OWN_KNOWN_MAX + 10 {
            let n = u32::try_from(n).expect("few");
            let _ = routes.are_local(IpAddr::V4((0x7F00_0000 + n).into())).expect("asked");
            assert!(routes.known.read().len() <= limit::OWN_KNOWN_MAX);
        }
    }

    #[test]
    fn answers_to_others_and_what_is_none_are_no_answers() {
        let mut answer = vec![0; 28];
        answer[4..6].copy_from_slice(&libc::RTM_NEWROUTE.to_ne_bytes());
        answer[8..12].copy_from_slice(&7u32.to_ne_bytes());
        answer[ROUTE_TYPE] = libc::RTN_LOCAL;
        assert_eq!((read(&answer, 7), read(&answer, 8)), (Some(true), None));
        answer[ROUTE_TYPE] = libc::RTN_UNICAST;
        assert_eq!(read(&answer, 7), Some(false));
        assert_eq!((read(&answer[..11], 7), read(&answer[..20], 7)), (None, Some(false)));
        answer[4..6].copy_from_slice(&2u16.to_ne_bytes());
        assert_eq!(read(&answer, 7), Some(false), "an error");
    }
}
