//! The address space and the port space, cut at every boundary a policy names (and the address space at
//! those of reserved prefixes), with one representative for each cell.
//!
//! Addresses are 128 bits, IPv4 mapped into `::ffff:0:0/96`, as the kernel's longest-prefix table holds
//! them: a cell is a prefix less the prefixes nested in it. Must never give a representative that
//! belongs to another cell.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::plan::Atoms;
use crate::address::{canonical, reserved};
use crate::members::PrefixIndex;

/// Bits before an IPv4 address in its mapped form.
const MAPPED_BITS: u8 = 96;
const MAPPED_BASE: u128 = 0xffff_0000_0000;

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
fn address(bits: u128) -> IpAddr {
    canonical(IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

/// The 128 bits of an address.
pub(crate) fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => MAPPED_BASE | u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// A prefix less what is nested in it.
#[derive(Clone, Debug)]
pub(crate) struct DestinationCell {
    pub(crate) prefix: Prefix,
    /// The cell that encloses it; `None` for the whole space.
    pub(crate) parent: Option<usize>,
    /// An address in it, and the atoms that are true there; `None` if nested prefixes leave none.
    pub(crate) sample: Option<(IpAddr, Vec<u32>)>,
}

/// Every destination cell, an enclosing one before what is nested in it; the first is the whole space.
pub(crate) fn destinations(atoms: &Atoms) -> Vec<DestinationCell> {
    let mut prefixes = vec![Prefix::ALL, Prefix::IPV4];
    prefixes.extend(reserved().map(Prefix::of));
    let mut index = PrefixIndex::default();
    for (nets, atom) in atoms.destinations() {
        for net in nets {
            prefixes.push(Prefix::of(*net));
            index.insert(*net, atom);
        }
    }
    prefixes.sort_unstable();
    prefixes.dedup();

    let mut cells: Vec<DestinationCell> = Vec::with_capacity(prefixes.len());
    // First address of each open prefix that nothing nested has covered yet; `None` once it is full.
    let mut open: Vec<(usize, Option<u128>)> = Vec::new();
    let mut samples: BTreeMap<usize, u128> = BTreeMap::new();
    for prefix in prefixes {
        while let Some(&(top, cursor)) = open.last()
            && !cells.get(top).is_some_and(|c| c.prefix.contains(prefix.first))
        {
            close(&cells, top, cursor, &mut samples);
            open.pop();
        }
        if let Some((top, cursor)) = open.last_mut() {
            if let Some(at) = *cursor
                && at < prefix.first
            {
                samples.entry(*top).or_insert(at);
            }
            *cursor = prefix.last().checked_add(1);
        }
        let parent = open.last().map(|(top, _)| *top);
        open.push((cells.len(), Some(prefix.first)));
        cells.push(DestinationCell { prefix, parent, sample: None });
    }
    while let Some((top, cursor)) = open.pop() {
        close(&cells, top, cursor, &mut samples);
    }
    for (number, sample) in samples {
        let ip = address(sample);
        if let Some(cell) = cells.get_mut(number) {
            cell.sample = Some((ip, index.containing(ip, 0).into_iter().collect()));
        }
    }
    cells
}

/// Takes the rest behind the last nested prefix as the sample, if there is one and none was found.
fn close(
    cells: &[DestinationCell],
    number: usize,
    cursor: Option<u128>,
    samples: &mut BTreeMap<usize, u128>,
) {
    if let (Some(cell), Some(at)) = (cells.get(number), cursor)
        && at <= cell.prefix.last()
    {
        samples.entry(number).or_insert(at);
    }
}

/// A range of ports between boundaries: its first port, and the atoms that are true there.
#[derive(Clone, Debug)]
pub(crate) struct PortCell {
    pub(crate) first: u16,
    pub(crate) atoms: Vec<u32>,
}

/// Every port cell, ascending from port 0.
pub(crate) fn ports(atoms: &Atoms) -> Vec<PortCell> {
    let mut firsts = vec![0_u16];
    for (ranges, _) in atoms.ports() {
        for (first, last) in ranges {
            firsts.push(*first);
            firsts.extend(last.checked_add(1));
        }
    }
    firsts.sort_unstable();
    firsts.dedup();
    let is_true = |ranges: &[(u16, u16)], port: u16| ranges.iter().any(|(a, b)| (*a..=*b).contains(&port));
    firsts
        .into_iter()
        .map(|first| {
            let mut atoms: Vec<u32> =
                atoms.ports().filter(|(ranges, _)| is_true(ranges, first)).map(|(_, id)| id).collect();
            atoms.sort_unstable();
            PortCell { first, atoms }
        })
        .collect()
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
}
