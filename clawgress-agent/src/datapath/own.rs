//! The gateway's own addresses in the kernel: a map, and before it a filter that spares most packets the
//! look. A bit of the filter is set before its address is in the map, and cleared after the last one that
//! needs it has left, so that no packet to the gateway is ever taken for one that goes on.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use aya::maps::{Array, HashMap, MapData};
use clawgress_ebpf_common::{Address, SelfAddress, bound, map, self_filter_bit};

use super::bpf::Plain;
use super::epoch::Turn;
use super::object::{Objects, take};

type Filter = [u64; bound::SELF_FILTER_WORDS];

/// The map and its filter.
pub struct Own {
    addresses: HashMap<MapData, Address, Plain<SelfAddress>>,
    filter: Array<MapData, Filter>,
    turn: Turn,
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Own").finish_non_exhaustive()
    }
}

impl Own {
    /// Takes the maps out of the object.
    ///
    /// # Errors
    /// If one is missing or of another layout.
    pub fn take(objects: &mut Objects) -> Result<Own> {
        let (addresses, filter) = (take(objects, map::SELF)?, take(objects, map::SELF_FILTER)?);
        Ok(Own { addresses, filter, turn: Turn::of(objects)? })
    }

    /// Makes `wanted`, and nothing else, the gateway's own.
    ///
    /// # Errors
    /// If there are more than the map holds, or one can't be written.
    pub fn write(&mut self, wanted: &BTreeMap<Address, SelfAddress>) -> Result<()> {
        ensure!(
            wanted.len() <= bound::SELF_MAX as usize,
            "this machine has {} addresses, and the kernel plane holds {}: remove some, or run the gateway in a network \
             namespace of its own",
            wanted.len(),
            bound::SELF_MAX
        );
        let exact = filter(wanted.keys());
        let both = self.filter.get(&0, 0)?;
        let mut union = exact;
        union.iter_mut().zip(both).for_each(|(word, before)| *word |= before);
        self.filter.set(0, union, 0)?;
        let present: Vec<_> = self.addresses.keys().collect::<Result<_, _>>()?;
        for address in present.iter().filter(|a| !wanted.contains_key(*a)) {
            self.addresses.remove(address)?;
        }
        for (address, services) in wanted {
            self.addresses.insert(address, Plain(*services), 0)?;
        }
        self.filter.set(0, exact, 0)?;
        self.turn.turn()
    }
}

fn filter<'a>(addresses: impl Iterator<Item = &'a Address>) -> Filter {
    let mut filter = [0; bound::SELF_FILTER_WORDS];
    for address in addresses {
        let [.., a, b, c, d, e, f, g, h] = *address;
        let (word, bit) = self_filter_bit(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
        if let Some(word) = filter.get_mut(word) {
            *word |= bit;
        }
    }
    filter
}
