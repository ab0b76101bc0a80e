//! Prefixes of the 128-bit address space, and which of many contain an address.
//!
//! IPv4 lies in `::ffff:0:0/96`, as the kernel's tables hold it. An IPv6 prefix that encloses that space
//! says nothing of IPv4. Must never hold a prefix with bits behind its length.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Bits before an IPv4 address in its mapped form.
const MAPPED_BITS: u8 = 96;
const MAPPED_BASE: u128 = 0xffff_0000_0000;
/// [`Node::parent`] of what nothing encloses.
const NONE: u32 = u32::MAX;

/// A prefix of the 128-bit space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Prefix {
    // Field order: sorting puts an enclosing prefix before what is nested in it.
    first: u128,
    length: u8,
}

impl Prefix {
    pub(crate) const ALL: Prefix = Prefix { first: 0, length: 0 };
    pub(crate) const IPV4: Prefix = Prefix { first: MAPPED_BASE, length: MAPPED_BITS };

    pub(crate) fn of(net: IpNet) -> Prefix {
        let net = net.trunc();
        match net {
            IpNet::V4(v4) => Prefix {
                first: MAPPED_BASE | u128::from(v4.addr().to_bits()),
                length: MAPPED_BITS + v4.prefix_len(),
            },
            IpNet::V6(v6) => Prefix { first: v6.addr().to_bits(), length: v6.prefix_len() },
        }
    }

    /// The prefix as it is written: IPv4 within the mapped space.
    pub(crate) fn net(self) -> IpNet {
        let v4 = u32::try_from(self.first & 0xffff_ffff).ok().zip(self.length.checked_sub(MAPPED_BITS));
        if self.first & !0xffff_ffff == MAPPED_BASE
            && let Some((bits, length)) = v4
            && let Ok(net) = Ipv4Net::new(Ipv4Addr::from_bits(bits), length)
        {
            return IpNet::V4(net);
        }
        IpNet::V6(Ipv6Net::new(Ipv6Addr::from_bits(self.first), self.length).unwrap_or_default())
    }

    pub(crate) fn first(self) -> u128 {
        self.first
    }

    pub(crate) fn last(self) -> u128 {
        self.first | u128::MAX.checked_shr(u32::from(self.length)).unwrap_or(0)
    }

    pub(crate) fn length(self) -> u8 {
        self.length
    }

    pub(crate) fn contains(self, bits: u128) -> bool {
        self.first <= bits && bits <= self.last()
    }
}

/// The address of 128 bits.
pub(crate) fn address(bits: u128) -> IpAddr {
    crate::address::canonical(IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

/// The 128 bits of an address.
pub(crate) fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => MAPPED_BASE | u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Prefixes with the values of each, sorted so that an enclosing prefix comes before what is nested in
/// it: 32 bytes a prefix, whatever the number of values.
#[derive(Clone, Debug, Default)]
pub(crate) struct PrefixIndex {
    nodes: Vec<Node>,
    /// Every distinct list of values, each ascending.
    lists: Vec<Vec<u32>>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    // Not a `Prefix`: its padding would double the size.
    first: u128,
    parent: u32,
    list: u32,
    length: u8,
}

impl Node {
    fn prefix(self) -> Prefix {
        Prefix { first: self.first, length: self.length }
    }
}

/// One prefix of an index, as [`PrefixIndex::nodes`] gives it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) prefix: Prefix,
    /// The number of the longest prefix that encloses it.
    pub(crate) parent: Option<u32>,
    /// The number of its own list of values.
    pub(crate) list: u32,
}

impl PrefixIndex {
    /// Indexes prefixes with a value each, and `bare` prefixes without one.
    pub(crate) fn new(mut pairs: Vec<(Prefix, u32)>, bare: &[Prefix]) -> PrefixIndex {
        pairs.sort_unstable();
        pairs.dedup();
        let mut bare = bare.to_vec();
        bare.sort_unstable();
        bare.dedup();
        let mut bare = bare.into_iter().peekable();
        let mut lists = Lists::default();
        let mut this = PrefixIndex { nodes: Vec::with_capacity(pairs.len()), lists: Vec::new() };
        let mut open: Vec<u32> = Vec::new();
        for group in pairs.chunk_by(|a, b| a.0 == b.0) {
            let Some((prefix, _)) = group.first() else { continue };
            while let Some(before) = bare.next_if(|b| b < prefix) {
                this.push(before, lists.number(Vec::new()), &mut open);
            }
            bare.next_if_eq(prefix);
            this.push(*prefix, lists.number(group.iter().map(|(_, value)| *value).collect()), &mut open);
        }
        for rest in bare {
            this.push(rest, lists.number(Vec::new()), &mut open);
        }
        this.lists = lists.all;
        this
    }

    fn push(&mut self, prefix: Prefix, list: u32, open: &mut Vec<u32>) {
        while let Some(top) = open.last().and_then(|n| self.nodes.get(*n as usize)) {
            if top.prefix().contains(prefix.first) {
                break;
            }
            open.pop();
        }
        let number = u32::try_from(self.nodes.len()).unwrap_or(NONE);
        let parent = open.last().copied().unwrap_or(NONE);
        self.nodes.push(Node { first: prefix.first, parent, list, length: prefix.length });
        open.push(number);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Every prefix, an enclosing one before what is nested in it.
    pub(crate) fn nodes(&self) -> impl ExactSizeIterator<Item = Entry> {
        self.nodes.iter().map(|node| Entry {
            prefix: node.prefix(),
            parent: (node.parent != NONE).then_some(node.parent),
            list: node.list,
        })
    }

    /// The values of a list.
    pub(crate) fn list(&self, number: u32) -> &[u32] {
        self.lists.get(number as usize).map_or(&[], Vec::as_slice)
    }

    /// Values of every prefix of at least `shortest` bits that contains `ip` (canonical), each once,
    /// ascending.
    pub(crate) fn containing(&self, ip: IpAddr, shortest: u8) -> BTreeSet<u32> {
        let bits = bits(ip);
        let shortest = shortest + if ip.is_ipv4() { MAPPED_BITS } else { 0 };
        let mut values = BTreeSet::new();
        // Prefixes nest or are apart, so what contains the address is the last that begins at or before
        // it, or encloses that one.
        let mut at = self.nodes.partition_point(|node| node.first <= bits).checked_sub(1);
        while let Some(node) = at.and_then(|n| self.nodes.get(n)) {
            if node.length < shortest {
                break;
            }
            if node.prefix().contains(bits) {
                values.extend(self.list(node.list));
            }
            at = (node.parent != NONE).then_some(node.parent as usize);
        }
        values
    }
}

/// Lists to dense numbers, in order of first appearance.
#[derive(Debug, Default)]
struct Lists {
    numbers: HashMap<Vec<u32>, u32>,
    all: Vec<Vec<u32>>,
}

impl Lists {
    fn number(&mut self, list: Vec<u32>) -> u32 {
        if let Some(number) = self.numbers.get(&list) {
            return *number;
        }
        let number = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.all.push(list.clone());
        self.numbers.insert(list, number);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_round_trip() {
        for text in [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "192.0.2.1/32",
            "::/0",
            "2001:db8::/32",
            "::1/128",
            "::/96",
            "::fffe:0:0/95",
        ] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(Prefix::of(net).net(), net, "{text}");
        }
        assert_eq!(Prefix::of("10.1.2.3/8".parse().unwrap()).net().to_string(), "10.0.0.0/8");
        assert_eq!(Prefix::ALL.last(), u128::MAX);
    }

    /// The index finds what a scan over all prefixes finds.
    #[test]
    fn the_index_equals_a_scan() {
        let nets: Vec<IpNet> = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.2.0/24",
            "10.1.2.200/32",
            "10.255.255.255/32",
            "203.0.113.0/25",
            "203.0.113.128/25",
            "255.255.255.255/32",
            "::/0",
            "::/64",
            "::fffe:0:0/95",
            "2001:db8::/32",
            "2001:db8:1::/48",
            "2001:db8:1::7/128",
            "8000::/1",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
        ]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
        let pairs = nets.iter().zip(0_u32..).map(|(net, n)| (Prefix::of(*net), n % 5)).collect();
        let index = PrefixIndex::new(pairs, &[Prefix::ALL, Prefix::IPV4]);
        let addresses =
            nets.iter().flat_map(|net| [net.network(), net.broadcast()]).flat_map(|ip| match ip {
                IpAddr::V4(v4) => [0, 1, u32::MAX].map(|n| IpAddr::V4(v4.to_bits().wrapping_add(n).into())),
                IpAddr::V6(v6) => [0, 1, u128::MAX].map(|n| address(v6.to_bits().wrapping_add(n))),
            });
        for ip in addresses {
            for shortest in [0, 1, 9] {
                let scanned: BTreeSet<u32> = nets
                    .iter()
                    .zip(0_u32..)
                    .filter(|(net, _)| net.contains(&ip) && net.prefix_len() >= shortest)
                    .map(|(_, n)| n % 5)
                    .collect();
                assert_eq!(index.containing(ip, shortest), scanned, "{ip} {shortest}");
            }
        }
    }
}
