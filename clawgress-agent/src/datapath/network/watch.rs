//! What the kernel announces of the network: links, addresses, routes, rules, filters and settings over
//! rtnetlink, and the nftables table. An announcement says only that something is to be looked at again;
//! what it is, the look itself finds out. So a lost one costs nothing but a look at everything.
//!
//! Must never decide anything by what an announcement says.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::firewall::NAME;
use super::routes::TABLE;

/// Announcements come in bursts: a look waits for this much silence,
const QUIET: Duration = Duration::from_millis(10);
/// but no longer than this after the first, however many come.
const GATHER_MAX: Duration = Duration::from_millis(100);
/// The kernel's own bound for one message to a listener (`NLMSG_GOODSIZE` is at most 8 KiB; batches of
/// nftables come in pages).
const MESSAGE_BYTES_MAX: usize = 32 * 1024;
/// Messages read in one go before other tasks have a turn.
const MESSAGES_PER_TURN: usize = 256;

/// Groups of rtnetlink (linux/rtnetlink.h) that tell of what is kept here.
const ROUTE_GROUPS: [libc::c_uint; 10] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_TC,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_IPV4_NETCONF,
    libc::RTNLGRP_IPV6_NETCONF,
];

/// `NFNLGRP_NFTABLES` and `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nfnetlink.h).
const FIREWALL_GROUP: libc::c_uint = 7;
const FIREWALL_SUBSYSTEM: u16 = 10;
/// `struct nfgenmsg`, before the attributes; the first attribute that names a table is of type 1 in every
/// kind of nftables message (linux/netfilter/nf_tables.h).
const FIREWALL_HEADER_BYTES: usize = 4;
const ATTRIBUTE_TABLE: u16 = 1;
/// Bits of an attribute's type that are its number (`NLA_TYPE_MASK`).
const ATTRIBUTE_MASK: u16 = 0x3FFF;

/// `struct nlmsghdr` and `struct nlattr` (linux/netlink.h), and what they are aligned to.
const HEADER_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;
const ALIGNMENT: usize = 4;
/// Where `struct rtmsg` holds its table.
const ROUTE_TABLE_AT: usize = 4;

/// What is to be looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces, addresses, routes, rules, filters or settings.
    pub network: bool,
    /// The nftables table.
    pub firewall: bool,
}

/// Announcements of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Watch {
    route: AsyncFd<OwnedFd>,
    /// `None` where the kernel refuses to tell.
    firewall: Option<AsyncFd<OwnedFd>>,
    /// Gathered and not yet given.
    pending: Changes,
}

// === impl Changes ===

impl Changes {
    /// Everything.
    pub const ALL: Changes = Changes { network: true, firewall: true };

    fn add(&mut self, other: Changes) {
        self.network |= other.network;
        self.firewall |= other.firewall;
    }
}

// === impl Watch ===

impl Watch {
    /// Begins to listen. What changes from now on is announced.
    ///
    /// # Errors
    /// If rtnetlink can't be listened to.
    pub fn open() -> Result<Watch> {
        let groups = ROUTE_GROUPS.iter().fold(0, |mask, group| mask | group_bit(*group));
        let route = listen(SockProtocol::NetlinkRoute, groups).context("cannot listen to rtnetlink")?;
        let firewall = listen(SockProtocol::NetlinkNetFilter, group_bit(FIREWALL_GROUP))
            .inspect_err(|error| {
                tracing::info!(%error, "changes of nftables are not announced, and are looked for");
            })
            .ok();
        Ok(Watch { route, firewall, pending: Changes::default() })
    }

    /// Whether changes of nftables are announced.
    #[must_use]
    pub fn hears_firewall(&self) -> bool {
        self.firewall.is_some()
    }

    /// Waits for a burst of announcements and gives what they are about. Cancel-safe.
    ///
    /// # Errors
    /// If a socket fails.
    pub async fn changed(&mut self) -> io::Result<Changes> {
        while self.pending == Changes::default() {
            self.hear().await?;
        }
        let end = Instant::now() + GATHER_MAX;
        loop {
            let quiet = (Instant::now() + QUIET).min(end);
            match tokio::time::timeout_at(quiet, self.hear()).await {
                Ok(heard) => heard?,
                Err(_) => return Ok(std::mem::take(&mut self.pending)),
            }
        }
    }

    /// Reads what has come, at least one message.
    async fn hear(&mut self) -> io::Result<()> {
        let firewall = async {
            match &self.firewall {
                Some(socket) => read(socket, firewall).await,
                None => std::future::pending().await,
            }
        };
        let changes = tokio::select! {
            read = read(&self.route, route) => read?,
            read = firewall => read?,
        };
        self.pending.add(changes);
        Ok(())
    }
}

fn group_bit(group: libc::c_uint) -> u32 {
    1 << (group - 1)
}

fn listen(protocol: SockProtocol, groups: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    // SAFETY: the descriptor is open for as long as its owner lives, and the owner lives in there.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// What the messages that wait are about, by `judge`, which is given each one's type and payload.
async fn read(socket: &AsyncFd<OwnedFd>, judge: fn(u16, &[u8]) -> Changes) -> io::Result<Changes> {
    let mut changes = Changes::default();
    let mut ready = socket.readable().await?;
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    for _ in 0..MESSAGES_PER_TURN {
        match recv(socket.get_ref().as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(n) => changes.add(messages(bytes.get(..n).unwrap_or_default(), judge)),
            Err(Errno::EAGAIN) => {
                ready.clear_ready();
                return Ok(changes);
            }
            // Some were lost.
            Err(Errno::ENOBUFS) => changes = Changes::ALL,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(changes)
}

/// What the messages in `bytes` are about; everything, if they can't be read.
fn messages(mut bytes: &[u8], judge: fn(u16, &[u8]) -> Changes) -> Changes {
    let mut changes = Changes::default();
    while !bytes.is_empty() {
        let length = u32_at(bytes, 0).and_then(|n| usize::try_from(n).ok());
        let Some((length, kind)) = length.zip(u16_at(bytes, 4)) else { return Changes::ALL };
        let Some(payload) = bytes.get(HEADER_BYTES..length) else { return Changes::ALL };
        changes.add(judge(kind, payload));
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    changes
}

/// Every message of the groups listened to is about something kept here, but for routes of other tables:
/// a router may have a million of those.
fn route(kind: u16, payload: &[u8]) -> Changes {
    let is_route = kind == libc::RTM_NEWROUTE || kind == libc::RTM_DELROUTE;
    let network = !is_route || payload.get(ROUTE_TABLE_AT).is_none_or(|table| *table == TABLE);
    Changes { network, firewall: false }
}

/// Whether the message is about a table of our name.
fn firewall(kind: u16, payload: &[u8]) -> Changes {
    let mut attributes = payload.get(FIREWALL_HEADER_BYTES..).unwrap_or_default();
    let mut firewall = false;
    while let Some((length, number)) = u16_at(attributes, 0).zip(u16_at(attributes, 2)) {
        let length = usize::from(length);
        let Some(value) = attributes.get(ATTRIBUTE_BYTES..length) else { break };
        if number & ATTRIBUTE_MASK == ATTRIBUTE_TABLE {
            firewall = value.strip_suffix(b"\0") == Some(NAME.as_bytes());
            break;
        }
        attributes = attributes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    Changes { network: false, firewall: firewall && kind >> 8 == FIREWALL_SUBSYSTEM }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + payload.len()).expect("short");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn table(name: &[u8]) -> Vec<u8> {
        let mut payload = vec![1, 0, 0, 0];
        // An attribute before it, of odd length.
        payload.extend([5, 0, 9, 0, 7, 0, 0, 0]);
        payload.extend(u16::try_from(ATTRIBUTE_BYTES + name.len()).expect("short").to_ne_bytes());
        payload.extend([1, 0]);
        payload.extend(name);
        message(FIREWALL_SUBSYSTEM << 8 | 6, &payload)
    }

    #[test]
    fn announcements_of_what_is_not_ours_are_passed_over() {
        let ours = Changes { network: true, firewall: false };
        let routes = |table| message(libc::RTM_DELROUTE, &[2, 0, 0, 0, table, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(messages(&routes(TABLE), route), ours);
        assert_eq!(messages(&routes(254), route), Changes::default());
        let both = [routes(254), message(libc::RTM_NEWLINK, &[0; 17])].concat();
        assert_eq!(messages(&both, route), ours, "the second one counts too");

        let changed = Changes { network: false, firewall: true };
        assert_eq!(messages(&table(b"clawgress\0"), firewall), changed);
        assert_eq!(messages(&table(b"clawgress2\0"), firewall), Changes::default());
        assert_eq!(messages(&[table(b"x\0"), table(b"clawgress\0")].concat(), firewall), changed);
    }

    #[test]
    fn what_cannot_be_read_means_everything() {
        let good = message(libc::RTM_NEWLINK, &[0; 16]);
        for bytes in [&good[..3], &good[..good.len() - 1], &[0; 64], &[0xFF; 64]] {
            assert_eq!(messages(bytes, route), Changes::ALL, "{bytes:?}");
        }
        for n in 0..table(b"clawgress\0").len() - HEADER_BYTES {
            let whole = table(b"clawgress\0");
            // Cut attributes are no panic and no endless loop.
            let _ = firewall(FIREWALL_SUBSYSTEM << 8, &whole[HEADER_BYTES..HEADER_BYTES + n]);
        }
        let _ = firewall(0, &[0; 32]);
    }
}
