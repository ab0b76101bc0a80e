//! The epoch of what XDP's verdicts rest on beside a generation: quarantine, learned addresses, the gateway's own,
//! what fails open. Whoever has changed one of them turns it, and no program goes by what it said before.
//!
//! To forget a turn is no hole: XDP permits nothing, and what it remembers counts for `RECENT_NS` at most.

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData};
use clawgress_ebpf_common::{Epoch, bound, map};
use nix::libc;

use super::bpf::Plain;
use super::names::monotonic_ns;
use super::object::{self, Objects};

/// The map, as one of those who turn it has it.
pub struct Turn {
    map: Array<MapData, Plain<Epoch>>,
    ticks: u64,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").field("ticks", &self.ticks).finish_non_exhaustive()
    }
}

impl Turn {
    /// Opens the map, and turns it.
    ///
    /// # Errors
    /// If it is missing or of another layout.
    pub fn of(objects: &Objects) -> Result<Turn> {
        let data = MapData::from_fd(object::descriptor(objects, map::EPOCH)?)?;
        let map =
            Array::try_from(Map::from_map_data(data)?).context("the map of the epoch has another layout")?;
        let mut turn = Turn { map, ticks: ticks() };
        turn.turn()?;
        Ok(turn)
    }

    /// From here on nothing is remembered, until somebody else turns it: to measure what is judged in full.
    ///
    /// # Errors
    /// As [`Turn::turn`].
    pub fn forget(&mut self) -> Result<()> {
        self.ticks = 0;
        self.turn()
    }

    /// Turns it, after a change and before anybody is told of that.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn turn(&mut self) -> Result<()> {
        // The clock is another one at each call, whoever calls.
        let epoch = Epoch { number: monotonic_ns(), ticks: self.ticks };
        self.map.set(0, Plain(epoch), 0).context("cannot turn the epoch of what was judged before")
    }
}

/// Ticks of the kernel's clock in `RECENT_NS`, 0 if nobody knows how long one is: the coarse clocks move by one.
fn ticks() -> u64 {
    let mut tick = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `tick` is a valid timespec to write to.
    let rc = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) };
    let tick_ns = u64::try_from(tick.tv_nsec).unwrap_or(0);
    if rc != 0 || tick.tv_sec != 0 { 0 } else { bound::RECENT_NS.checked_div(tick_ns).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_known_and_fits_several_times() {
        // From 100 to 1,000 a second.
        assert!((12..=125).contains(&ticks()), "{}", ticks());
    }
}
