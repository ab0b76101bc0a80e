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
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// What answers [`CT_GET_STATS_CPU`].
const CT_STATS: u16 = CT_GET_STATS_CPU;
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
        let mut bytes = [0; 16 * 1024];
        // What is left of an answer that went wrong is none to this question.
        while (&self.socket).read(&mut bytes).is_ok() {}
        self.socket.send(&message(CT_GET_STATS_CPU, REQUEST | DUMP, libc::AF_UNSPEC, &[]))?;
        let mut dropped = 0;
        loop {
            let length = (&self.socket).read(&mut bytes)?;
            let (more, is_whole) = counted(bytes.get(..length).unwrap_or_default())?;
            dropped += more;
            if is_whole {
                return Ok(dropped);
            }
        }
    }
}

/// Drops that an answer counts, and whether it is the last of the dump.
fn counted(answer: &[u8]) -> io::Result<(u64, bool)> {
    let (mut dropped, mut left) = (0, answer);
    while let Some((kind, body, rest)) = split(left) {
        match kind {
            // Both end with a number: zero, or what went wrong.
            DONE | ERROR => match body.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes)
            {
                Some(code) if code < 0 => return Err(io::Error::from_raw_os_error(-code)),
                _ if kind == DONE => return Ok((dropped, true)),
                _ => return Err(io::Error::other("the dump was refused without a reason")),
            },
            CT_STATS => {
                let more = stat(body, STATS_DROP);
                dropped +=
                    u64::from(more.ok_or_else(|| io::Error::other("the dump lacks the count of drops"))?);
            }
            _ => {}
        }
        left = rest;
    }
    Ok((dropped, false))
}

/// The kernel's table, as it is watched.
#[derive(Debug)]
pub struct Tracked {
    // Of its own: answers to others' messages would be taken for counts.
    conntrack: Mutex<Conntrack>,
    /// As last looked at by [`Tracked::is_full`].
    dropped: AtomicU64,
    /// The last count that could be read, and why there is no later one.
    known: Mutex<(u64, Option<String>)>,
}

impl Tracked {
    /// Watches the table of this thread's network namespace.
    ///
    /// # Errors
    /// If there is no netlink.
    pub fn open() -> Result<Tracked> {
        let conntrack = Conntrack::open().context("cannot reach connection tracking")?;
        let tracked =
            Tracked { conntrack: Mutex::new(conntrack), dropped: AtomicU64::new(0), known: Mutex::default() };
        tracked.dropped.store(tracked.count(), Ordering::Relaxed);
        Ok(tracked)
    }

    /// How full it is, where the kernel tracks connections.
    #[must_use]
    pub fn status(&self) -> Option<TrackingStatus> {
        let read = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let (entries, entries_max) = read(COUNT).zip(read(MAX))?;
        Some(TrackingStatus { entries, entries_max, dropped: self.count() })
    }

    /// What was dropped, by the last count that could be read.
    fn count(&self) -> u64 {
        let read = self.conntrack.lock().dropped();
        let mut known = self.known.lock();
        match read {
            Ok(dropped) => *known = (dropped, None),
            Err(error) => known.1 = Some(error.to_string()),
        }
        known.0
    }

    /// That drops can't be counted, in words: what the kernel denies for want of room it denies all the same, and only
    /// how full its table is still tells of it.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let why = self.known.lock().1.clone()?;
        fs::exists(COUNT).unwrap_or(true).then(|| {
            format!("cannot count what connection tracking drops ({why}): that its table is full is told by its fill alone")
        })
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

    /// Another end of a dump than its own is no count of nothing.
    #[test]
    fn a_dump_that_fails_counts_nothing() {
        let stats = |drops: &[u8]| message(CT_STATS, DUMP, 0, &attribute(STATS_DROP, drops));
        let end = |kind: u16, code: i32| {
            let mut end = message(kind, DUMP, 0, &[]);
            end[HEADER_BYTES..].copy_from_slice(&code.to_ne_bytes());
            end
        };
        let seven = stats(&7_u32.to_be_bytes());
        let both = [seven.clone(), seven.clone()].concat();
        assert_eq!(counted(&both).expect("counts"), (14, false));
        assert_eq!(counted(&[both, end(DONE, 0)].concat()).expect("all"), (14, true));
        for (last, why) in [
            (end(ERROR, -libc::EPERM), Some(libc::EPERM)),
            (end(DONE, -libc::ENOBUFS), Some(libc::ENOBUFS)),
            (end(ERROR, 0), None),
            (message(CT_STATS, DUMP, 0, &attribute(1, &[0; 4])), None),
        ] {
            let error = counted(&[seven.clone(), last].concat()).expect_err("no count");
            assert_eq!(error.raw_os_error(), why, "{error}");
        }
    }

    /// What could be read last stands, and that nothing later can is told.
    #[test]
    fn what_can_not_be_counted_is_told() {
        let tracked = Tracked::open().expect("netlink");
        let before = tracked.count();
        assert!(tracked.trouble().is_none(), "{:?}", tracked.trouble());
        // A socket of another family answers nothing.
        let (other, _peer) = Socket::pair(Domain::UNIX, Type::DGRAM, None).expect("a pair");
        other.set_nonblocking(true).expect("a setting");
        let usual = std::mem::replace(&mut *tracked.conntrack.lock(), Conntrack { socket: other });
        assert_eq!(tracked.count(), before);
        assert!(!fs::exists(COUNT).expect("proc") || tracked.trouble().is_some());
        *tracked.conntrack.lock() = usual;
        assert!(tracked.count() >= before && tracked.trouble().is_none());
    }

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
