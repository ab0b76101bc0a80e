//! Delivering steered packets locally: `fwmark STEER lookup 100`, and in that table everything is local.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use clawgress_ebpf_common::mark;
use futures_util::TryStreamExt as _;
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::route::{RouteMessage, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, route::RouteProtocol};
use nix::errno::Errno;
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use super::Netlink;

/// Routing table of steered packets, and the place of its rule: before the main table, after `local`.
pub(super) const TABLE: u8 = 100;
const PRIORITY: u32 = 100;
/// Place of the rule of refused packets.
const REFUSE_PRIORITY: u32 = 99;

/// The rules and routes of both families.
#[derive(Clone, Debug)]
pub struct Routes {
    netlink: Netlink,
    loopback: u32,
    /// Whether routes that were there already have been made as these are.
    is_renewed: Arc<AtomicBool>,
}

impl Routes {
    /// Finds the loopback interface and sets it up.
    ///
    /// # Errors
    /// If rtnetlink fails.
    pub async fn open(netlink: Netlink) -> Result<Routes> {
        let mut links = netlink.handle.link().get().match_name("lo").execute();
        let link = links.try_next().await?.context("there is no loopback interface")?;
        let loopback = link.header.index;
        debug_assert!(link.attributes.iter().any(|a| matches!(a, LinkAttribute::IfName(n) if n == "lo")));
        if !link.header.flags.contains(LinkFlags::Up) {
            let up = LinkUnspec::new_with_index(loopback).up().build();
            netlink.handle.link().set(up).execute().await.context("cannot set `lo` up")?;
        }
        Ok(Routes { netlink, loopback, is_renewed: Arc::default() })
    }

    /// Adds what is missing, and tells how much that was.
    ///
    /// # Errors
    /// If rtnetlink refuses.
    pub async fn install(&self) -> Result<usize> {
        let mut added = 0;
        let is_renewed = self.is_renewed.swap(true, Ordering::Relaxed);
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for wanted in [refuse(family), steer(family)] {
                let mut rule = self.netlink.handle.rule().add();
                *rule.message_mut() = wanted;
                match is_new(rule.execute().await) {
                    Ok(is_new) => added += usize::from(is_new),
                    Err(error) if family == AddressFamily::Inet6 && is_no_ipv6(&error) => {}
                    Err(error) => {
                        return Err(error).context("cannot add the rule of steered or refused packets");
                    }
                }
            }
            let add = || self.netlink.handle.route().add(self.local(family));
            let route = is_new(add().execute().await);
            match route {
                // An earlier version's has another source.
                Ok(false) if !is_renewed => {
                    add().replace().execute().await.context("cannot replace the route of steered packets")?;
                }
                Ok(is_new) => added += usize::from(is_new),
                Err(error) if family == AddressFamily::Inet6 && is_no_ipv6(&error) => {}
                Err(error) => return Err(error).context("cannot add the route of steered packets"),
            }
        }
        Ok(added)
    }

    /// Removes rules and routes.
    pub async fn remove(&self) {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            // What is not there needs no removing.
            let _ = self.netlink.handle.rule().del(steer(family)).execute().await;
            let _ = self.netlink.handle.rule().del(refuse(family)).execute().await;
            let _ = self.netlink.handle.route().del(self.local(family)).execute().await;
        }
    }

    fn local(&self, family: AddressFamily) -> RouteMessage {
        // A local command's datagram, whose socket is bound to no address, speaks from loopback: it would from the address
        // that it asks.
        macro_rules! everything {
            ($address:ty) => {
                RouteMessageBuilder::<$address>::new()
                    .destination_prefix(<$address>::UNSPECIFIED, 0)
                    .output_interface(self.loopback)
                    .table_id(u32::from(TABLE))
                    .pref_source(<$address>::LOCALHOST)
                    .kind(RouteType::Local)
                    .scope(RouteScope::Host)
                    .protocol(RouteProtocol::Static)
                    .build()
            };
        }
        if family == AddressFamily::Inet { everything!(Ipv4Addr) } else { everything!(Ipv6Addr) }
    }
}

fn steer(family: AddressFamily) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.table = TABLE;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::FwMark(mark::STEER),
        RuleAttribute::FwMask(mark::MASK),
    ];
    rule
}

/// What TC refused, and lets on only to be answered, is routed nowhere, even if the rules that answer it are
/// gone.
fn refuse(family: AddressFamily) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::Prohibit;
    rule.attributes = vec![
        RuleAttribute::Priority(REFUSE_PRIORITY),
        RuleAttribute::FwMark(mark::REJECT),
        RuleAttribute::FwMask(mark::MASK),
    ];
    rule
}

/// Whether it was added just now; that it exists already is no error.
fn is_new(result: Result<(), rtnetlink::Error>) -> Result<bool, rtnetlink::Error> {
    match result {
        Ok(()) => Ok(true),
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -(Errno::EEXIST as i32) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn is_no_ipv6(error: &rtnetlink::Error) -> bool {
    let codes = [Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::EPFNOSUPPORT].map(|e| -(e as i32));
    matches!(error, rtnetlink::Error::NetlinkError(m) if codes.contains(&m.raw_code()))
}
