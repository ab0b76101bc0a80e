//! Connection tracking follows the flow table: where a flow ended, the kernel's own entry ends, too. It would
//! stay for days, and its table would fill with what nobody can use. How full that is, is told here too.
//!
//! Must never send a message that names no flow: the kernel takes that for all of them.

use std::fs;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use clawgress_api::TrackingStatus;
use clawgress_ebpf_common::user::ip;
use clawgress_ebpf_common::{FlowKey, protocol};
use nix::libc;
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};

/// ctnetlink (linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h).
const NETLINK_NETFILTER: i32 = 12;
const CT_DELETE: u16 = 1 << 8 | 2;
const CT_GET_STATS_CPU: u16 = 1 << 8 | 4;
const STATS_DROP: u16 = 10;
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const DONE: u16 = 3;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER_BYTES: usize = 16;
const FAMILY_BYTES: usize = 4;
/// Where the kernel tells how many connections it tracks in this namespace, and how many it may.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const NESTED: u16 = 1 << 15;
const TUPLE_ORIG: u16 = NESTED | 1;
const TUPLE_IP: u16 = NESTED | 1;
const TUPLE_PROTO: u16 = NESTED | 2;
const IP_V4: [u16; 2] = [1, 2];
const IP_V6: [u16; 2] = [3, 4];
const PROTO_NUMBER: u16 = 1;
const PROTO_PORTS: [u16; 2] = [2, 3];
/// Identifier, type and code of an echo, by family.
const PROTO_ICMP: [u16; 3] = [4, 5, 6];
const PROTO_ICMPV6: [u16; 3] = [7, 8, 9];
const ECHO: u8 = 8;
const ECHO_V6: u8 = 128;
const NEXT_ICMPV6: u8 = 58;

/// Flows in one message to the kernel: some tens of kilobytes, less than any socket's send buffer.
const BATCH_MAX: usize = 256;

/// The way to the kernel's table in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens it.
    ///
    /// # Errors
    /// If there is no netlink.
    pub fn open() -> io::Result<Conntrack> {
        let socket =
            Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_NETFILTER)))?;
        socket.set_nonblocking(true)?;
        Ok(Conntrack { socket })
    }

    /// Ends the entries of these flows; those without one are as wanted.
    ///
    /// # Errors
    /// If the kernel takes no messages.
    pub fn end<'a>(&self, flows: impl Iterator<Item = &'a FlowKey>) -> io::Result<()> {
        let mut flows = flows.peekable();
        while flows.peek().is_some() {
            let message: Vec<u8> = flows.by_ref().take(BATCH_MAX).flat_map(delete).collect();
            let sent = self.socket.send(&message);
            // Answers are errors of entries that are not there; unread ones would only fill the buffer.
            let mut answers = [0; 16 * 1024];
            let mut socket = &self.socket;
            while socket.read(&mut answers).is_ok() {}
            sent?;
        }
        Ok(())
    }

    /// Packets dropped since the namespace is there, over all CPUs; the kernel's own counts have 32 bits.
    fn dropped(&self) -> io::Result<u64> {
        self.socket.send(&message(CT_GET_STATS_CPU, REQUEST | DUMP, libc::AF_UNSPEC, &[]))?;
        let mut bytes = [0; 16 * 1024];
        let mut dropped = 0;
        loop {
            let length = (&self.socket).read(&mut bytes)?;
            let mut left = bytes.get(..length).unwrap_or_default();
            while let Some((kind, body, rest)) = split(left) {
                if kind == DONE {
                    return Ok(dropped);
                }
                dropped += u64::from(stat(body, STATS_DROP).unwrap_or(0));
                left = rest;
            }
        }
    }
}

/// The kernel's table, as it is watched.
#[derive(Debug)]
pub struct Tracked {
    // Of its own: answers to others' messages would be taken for counts.
    conntrack: Mutex<Conntrack>,
    /// As last looked at.
    dropped: AtomicU64,
}

impl Tracked {
    /// Watches the table of this thread's network namespace.
    ///
    /// # Errors
    /// If there is no netlink.
    pub fn open() -> Result<Tracked> {
        let conntrack = Conntrack::open().context("cannot reach connection tracking")?;
        let dropped = AtomicU64::new(conntrack.dropped().unwrap_or(0));
        Ok(Tracked { conntrack: Mutex::new(conntrack), dropped })
    }

    /// How full it is, where the kernel tracks connections.
    #[must_use]
    pub fn status(&self) -> Option<TrackingStatus> {
        let read = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let (entries, entries_max) = read(COUNT).zip(read(MAX))?;
        let dropped = self.conntrack.lock().dropped().unwrap_or(0);
        Some(TrackingStatus { entries, entries_max, dropped })
    }

    /// Whether it has no room, or was so full since the last time that something was dropped. Where the kernel
    /// tracks nothing, it can't be full.
    pub fn is_full(&self) -> bool {
        let Some(TrackingStatus { entries, entries_max, dropped }) = self.status() else { return false };
        let before = self.dropped.swap(dropped, Ordering::Relaxed);
        let is_nearly = entries >= entries_max / 16 * 15;
        entries_max > 0 && (entries >= entries_max || (is_nearly && dropped > before))
    }
}

/// The first message's type and body, and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, bytes.get(HEADER_BYTES..length)?, rest))
}

/// The 32-bit attribute `wanted` of a message.
fn stat(body: &[u8], wanted: u16) -> Option<u32> {
    let mut left = body.get(FAMILY_BYTES..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(left.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(left.get(2..4)?.try_into().ok()?);
        let value = left.get(4..length)?;
        if kind == wanted {
            return Some(u32::from_be_bytes(value.try_into().ok()?));
        }
        left = left.get(length.next_multiple_of(4)..)?;
    }
}

/// One message, which always names the flow.
fn delete(key: &FlowKey) -> Vec<u8> {
    let (source, destination) = (ip(key.source), ip(key.destination));
    let is_v6 = source.is_ipv6();
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let [from, to] = if is_v6 { IP_V6 } else { IP_V4 };
    let addresses = [attribute(from, &octets(source)), attribute(to, &octets(destination))].concat();
    let (id, target) = (key.source_port_be.to_ne_bytes(), key.destination_port_be.to_ne_bytes());
    let transport = if key.protocol == protocol::ICMP {
        let (number, [identifier, kind, code], echo) =
            if is_v6 { (NEXT_ICMPV6, PROTO_ICMPV6, ECHO_V6) } else { (protocol::ICMP, PROTO_ICMP, ECHO) };
        [
            attribute(PROTO_NUMBER, &[number]),
            attribute(identifier, &id),
            attribute(kind, &[echo]),
            attribute(code, &[0]),
        ]
        .concat()
    } else {
        let [from, to] = PROTO_PORTS;
        [attribute(PROTO_NUMBER, &[key.protocol]), attribute(from, &id), attribute(to, &target)].concat()
    };
    let tuple = [attribute(TUPLE_IP, &addresses), attribute(TUPLE_PROTO, &transport)].concat();
    let family = if is_v6 { libc::AF_INET6 } else { libc::AF_INET };
    message(CT_DELETE, REQUEST, family, &attribute(TUPLE_ORIG, &tuple))
}

/// A message of connection tracking.
fn message(kind: u16, flags: u16, family: i32, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + FAMILY_BYTES + attributes.len()).unwrap_or(0);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    // nfgenmsg: family, version 0, resource 0.
    message.extend([u8::try_from(family).unwrap_or(0), 0, 0, 0]);
    message.extend(attributes);
    message
}

/// A netlink attribute, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(4 + value.len()).unwrap_or(0).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_whole_messages_alone() {
        let stats = [attribute(1, &[9; 4]), attribute(STATS_DROP, &7_u32.to_be_bytes())].concat();
        let first = message(CT_GET_STATS_CPU, DUMP, libc::AF_INET, &stats);
        let both = [first.clone(), message(DONE, DUMP, 0, &[])].concat();
        let (kind, body, rest) = split(&both).expect("a message");
        assert_eq!((kind, stat(body, STATS_DROP), stat(body, 11)), (CT_GET_STATS_CPU, Some(7), None));
        assert_eq!(split(rest).map(|(kind, _, rest)| (kind, rest)), Some((DONE, &[][..])));
        // What is cut off or lies about its length is no message, and no endless loop.
        for n in 0..first.len() {
            assert!(split(&first[..n]).is_none(), "{n}");
            let _ = stat(&first[..n], STATS_DROP);
        }
        for length in [0_u32, 15, u32::MAX] {
            let mut lie = first.clone();
            lie[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(split(&lie).is_none(), "{length}");
        }
        assert_eq!(stat(&[0; 8], STATS_DROP), None);
    }
}
