//! Permanent entries in the kernel's neighbour tables for agents that are bound to a MAC and an address. They are not
//! asked for, do not expire, and do not count towards the tables' bound (`gc_thresh3`), which all interfaces share:
//! who fills the tables keeps such an agent from nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use clawgress_identity::Source;
use futures_util::TryStreamExt as _;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteProtocol;

use super::Netlink;

/// Marks our entries (`NDA_PROTOCOL`): a number that `rt_protos` of iproute2 gives nobody.
const OURS: RouteProtocol = RouteProtocol::Other(0xC1);

type Mac = [u8; 6];

/// Entries: MAC by interface and address.
pub type Neighbours = BTreeMap<(u32, IpAddr), Mac>;

/// The entries that `sources` are to have, at the interfaces there are (name to index).
pub fn bound<'a>(
    sources: impl Iterator<Item = &'a Source>,
    interfaces: &BTreeMap<String, u32>,
) -> Neighbours {
    let single = |source: &Source| source.prefix.prefix_len() == source.prefix.max_prefix_len();
    let entry = |source: &Source| {
        let index = *interfaces.get(&source.interface)?;
        Some(((index, source.prefix.addr()), source.mac?.0))
    };
    sources.filter(|source| single(source)).filter_map(entry).collect()
}

impl Netlink {
    /// Makes our entries exactly `wanted`, and tells how many were not as they must be.
    ///
    /// # Errors
    /// If rtnetlink refuses.
    pub async fn bind(&self, wanted: &Neighbours) -> Result<usize> {
        let mut missing = wanted.clone();
        let mut stream = self.handle.neighbours().get().execute();
        let mut over = Vec::new();
        while let Some(message) = stream.try_next().await.context("cannot list the neighbours")? {
            let Some((place, mac)) = read(&message) else { continue };
            let is_ours = message.attributes.contains(&NeighbourAttribute::Protocol(OURS));
            let is_permanent = message.header.state == NeighbourState::Permanent;
            if is_permanent && wanted.get(&place) == mac.as_ref() {
                missing.remove(&place);
            } else if is_ours && !wanted.contains_key(&place) {
                over.push(message);
            }
        }
        let changed = missing.len() + over.len();
        for ((index, address), mac) in missing {
            let mut entry = self.handle.neighbours().add(index, address).link_layer_address(&mac).replace();
            entry.message_mut().attributes.push(NeighbourAttribute::Protocol(OURS));
            entry.execute().await.with_context(|| format!("cannot note {address} as a neighbour"))?;
        }
        for message in over {
            // It may have gone with its interface.
            let _ = self.handle.neighbours().del(message).execute().await;
        }
        Ok(changed)
    }
}

/// Where an entry is, and which MAC it gives.
fn read(message: &NeighbourMessage) -> Option<((u32, IpAddr), Option<Mac>)> {
    let address = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => Mac::try_from(mac.as_slice()).ok(),
        _ => None,
    });
    Some(((message.header.ifindex, address), mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_and_a_mac_make_an_entry() {
        let sources: Vec<Source> = [
            "a=10.0.0.2,02:00:00:00:00:01",
            "b=fd00::2,02:00:00:00:00:02",
            "a=10.0.0.3,any-mac",
            "a=10.0.1.0/24,02:00:00:00:00:03",
            "gone=10.0.0.4,02:00:00:00:00:04",
        ]
        .map(|text| text.parse().expect("source"))
        .into();
        let interfaces = BTreeMap::from([("a".to_owned(), 7), ("b".to_owned(), 8)]);
        let at = |text: &str| text.parse::<IpAddr>().expect("address");
        let entries = [((7, at("10.0.0.2")), [2, 0, 0, 0, 0, 1]), ((8, at("fd00::2")), [2, 0, 0, 0, 0, 2])];
        assert_eq!(bound(sources.iter(), &interfaces), Neighbours::from(entries));
    }
}
