//! Quarantine: one bit an agent, which every program reads for every packet. Outside generations, so that
//! a change is one write, counts for the next packet, and waits for nothing.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData};
use clawgress_ebpf_common::{bound, map, quarantine_place};

use super::epoch::Turn;
use super::object::{Objects, take};

/// The bits, and what they are now.
pub struct Quarantine {
    map: Array<MapData, u64>,
    /// Words that are not zero.
    words: BTreeMap<u32, u64>,
    turn: Turn,
}

// === impl Quarantine ===

impl std::fmt::Debug for Quarantine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quarantine").field("words", &self.words).finish_non_exhaustive()
    }
}

impl Quarantine {
    /// Takes the map out of the object; who is quarantined in it stays so.
    ///
    /// # Errors
    /// If the map is missing or can't be read.
    pub fn take(objects: &mut Objects) -> Result<Quarantine> {
        let map: Array<_, u64> = take(objects, map::QUARANTINE)?;
        let mut words = BTreeMap::new();
        for word in 0..bound::QUARANTINE_WORDS {
            let bits = map.get(&word, 0).context("cannot read who is quarantined")?;
            if bits != 0 {
                words.insert(word, bits);
            }
        }
        Ok(Quarantine { map, words, turn: Turn::of(objects)? })
    }

    /// Makes exactly these agents the quarantined ones: first whoever is new, then whoever is released.
    ///
    /// # Errors
    /// If an index can't be one, or the map can't be written; what was not written can be tried again.
    pub fn set(&mut self, agents: &BTreeSet<u32>) -> Result<()> {
        let mut wanted = BTreeMap::<u32, u64>::new();
        for &agent in agents {
            ensure!(agent < bound::AGENT_INDICES_MAX, "there is no agent {agent}");
            let (word, bit) = quarantine_place(agent);
            *wanted.entry(word).or_default() |= bit;
        }
        for (&word, &bits) in &wanted {
            let before = self.words.get(&word).copied().unwrap_or(0);
            self.write(word, before | bits)?;
        }
        let words: Vec<u32> = self.words.keys().copied().collect();
        for word in words {
            self.write(word, wanted.get(&word).copied().unwrap_or(0))?;
        }
        self.turn.turn()
    }

    /// One write, unless it is what is there.
    fn write(&mut self, word: u32, bits: u64) -> Result<()> {
        if self.words.get(&word).copied().unwrap_or(0) == bits {
            return Ok(());
        }
        self.map.set(word, bits, 0).context("cannot write who is quarantined")?;
        if bits == 0 {
            self.words.remove(&word);
        } else {
            self.words.insert(word, bits);
        }
        Ok(())
    }
}
