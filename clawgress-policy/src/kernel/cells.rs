//! The address space and the port space, cut at every boundary a policy names (and the address space at
//! those of reserved prefixes), with one representative for each kind of cell.
//!
//! A cell is a prefix less the prefixes nested in it. Must never give a representative that belongs to
//! another cell.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::plan::Atoms;
use crate::address::reserved;
use crate::prefix::{Prefix, PrefixIndex, address};

/// Stands among a cell's atoms for "reserved".
const RESERVED: u32 = u32::MAX;

/// A prefix less what is nested in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) prefix: Prefix,
    /// The cell that encloses it; `None` for the whole space.
    pub(crate) parent: Option<u32>,
    /// Its kind; `None` if nested prefixes leave no address.
    pub(crate) kind: Option<u32>,
}

/// Cells in which the same atoms are true, reserved or not.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    /// An address in the first of them.
    pub(crate) ip: IpAddr,
    pub(crate) is_reserved: bool,
    /// The atoms that are true there, ascending.
    pub(crate) atoms: Vec<u32>,
}

/// The address space in cells.
#[derive(Debug)]
pub(crate) struct Destinations {
    /// An enclosing cell comes before what is nested in it; the first is the whole space.
    pub(crate) cells: Vec<Cell>,
    /// By number, in order of the first cell of each.
    pub(crate) kinds: Vec<Kind>,
}

/// Every destination cell.
pub(crate) fn destinations(atoms: &Atoms) -> Destinations {
    let mut pairs: Vec<(Prefix, u32)> = reserved().map(|net| (Prefix::of(net), RESERVED)).collect();
    for (nets, atom) in atoms.destinations() {
        pairs.extend(nets.iter().map(|net| (Prefix::of(*net), atom)));
    }
    let index = PrefixIndex::new(pairs, &[Prefix::ALL, Prefix::IPV4]);
    let samples = samples(&index);
    let mut truths = Truths::default();
    let mut truth_of: Vec<u32> = Vec::with_capacity(index.nodes().len());
    let mut kind_of_truth: HashMap<u32, u32> = HashMap::new();
    let mut kinds: Vec<Kind> = Vec::new();
    let cells = index.nodes().zip(samples).map(|(node, sample)| {
        // What holds around IPv4's place among IPv6 addresses says nothing of IPv4.
        let enclosing = node.parent.filter(|_| node.prefix != Prefix::IPV4);
        let outer = enclosing.and_then(|p| truth_of.get(p as usize)).copied();
        let truth = truths.within(outer, node.list, &index);
        truth_of.push(truth);
        let kind = sample.map(|bits| {
            *kind_of_truth.entry(truth).or_insert_with(|| {
                let mut atoms = truths.atoms(truth).to_vec();
                let is_reserved = atoms.pop_if(|atom| *atom == RESERVED).is_some();
                kinds.push(Kind { ip: address(bits), is_reserved, atoms });
                u32::try_from(kinds.len() - 1).unwrap_or(u32::MAX)
            })
        });
        Cell { prefix: node.prefix, parent: node.parent, kind }
    });
    let cells = cells.collect();
    Destinations { cells, kinds }
}

/// For each prefix an address in it and in none that is nested in it, if there is one.
fn samples(index: &PrefixIndex) -> Vec<Option<u128>> {
    let mut samples: Vec<Option<u128>> = vec![None; index.nodes().len()];
    // First address of each open prefix that nothing nested has covered yet; `None` once it is full.
    let mut open: Vec<(usize, Prefix, Option<u128>)> = Vec::new();
    let mut close = |(number, prefix, cursor): (usize, Prefix, Option<u128>), before: Option<u128>| {
        let end = before.map_or(prefix.last(), |first| first.saturating_sub(1));
        if let (Some(at), Some(sample)) = (cursor, samples.get_mut(number))
            && at <= end
            && before != Some(0)
        {
            sample.get_or_insert(at);
        }
    };
    for (number, node) in index.nodes().enumerate() {
        let prefix = node.prefix;
        while let Some(top) = open.pop_if(|(_, top, _)| !top.contains(prefix.first())) {
            close(top, None);
        }
        if let Some(top) = open.last_mut() {
            // The gap before what is nested is the enclosing prefix's own.
            close(*top, Some(prefix.first()));
            top.2 = prefix.last().checked_add(1);
        }
        open.push((number, prefix, Some(prefix.first())));
    }
    while let Some(top) = open.pop() {
        close(top, None);
    }
    samples
}

/// Sets of atoms that are true somewhere, each once: a million cells share a few.
#[derive(Debug, Default)]
struct Truths {
    known: HashMap<(Option<u32>, u32), u32>,
    numbers: BTreeMap<Vec<u32>, u32>,
    all: Vec<Vec<u32>>,
}

impl Truths {
    /// What is true in a prefix with this list of its own, within one where `outer` is.
    fn within(&mut self, outer: Option<u32>, list: u32, index: &PrefixIndex) -> u32 {
        if let Some(number) = self.known.get(&(outer, list)) {
            return *number;
        }
        let mut atoms = outer.map(|o| self.atoms(o).to_vec()).unwrap_or_default();
        atoms.extend(index.list(list));
        atoms.sort_unstable();
        atoms.dedup();
        let next = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(atoms).or_insert_with_key(|atoms| {
            self.all.push(atoms.clone());
            next
        });
        self.known.insert((outer, list), number);
        number
    }

    fn atoms(&self, number: u32) -> &[u32] {
        self.all.get(number as usize).map_or(&[], Vec::as_slice)
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
