//! Data in small pieces over many requests: what one agent's requests carried to each destination, within an hour.
//!
//! Counted by slots of time that the caller names: the same requests at the same seconds come to the same. Bounded: what
//! doesn't fit counts as one destination, which is the stricter count. Must never keep what was carried.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Length of a slot, seconds; and how many are counted.
pub const SLOT_S: i64 = 600;
const SLOTS: usize = 6;
/// Destinations told apart for one agent.
pub const DESTINATIONS_MAX: usize = 64;
/// Pieces that a request may carry without being many: below that, one request alone is no piece.
const PIECES_MIN: u32 = 8;
/// Bytes that they come to, where it is much: a key in PEM, in base64.
const BYTES_MAX: u64 = 2048;
/// A piece of more than this is found as what it is.
const PIECE_BYTES_MAX: usize = 1024;

/// What one agent's requests carried.
#[derive(Clone, Debug, Default)]
pub struct Window {
    destinations: BTreeMap<u64, Counted>,
}

/// What went to one destination, by slots.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    slots: [(i64, u32, u64); SLOTS],
}

impl Window {
    /// Takes note that a request to `destination` carried `bytes` at `now_s`; says whether many small ones came to much.
    pub fn noted(&mut self, now_s: i64, destination: &str, bytes: usize) -> bool {
        if bytes == 0 {
            return false;
        }
        let slot = now_s.div_euclid(SLOT_S);
        let mut hasher = DefaultHasher::new();
        destination.hash(&mut hasher);
        let mut key = hasher.finish();
        if !self.destinations.contains_key(&key) && self.destinations.len() >= DESTINATIONS_MAX {
            self.destinations.retain(|_, counted| counted.within(slot).0 > 0);
            if self.destinations.len() >= DESTINATIONS_MAX {
                key = 0;
            }
        }
        let counted = self.destinations.entry(key).or_default();
        counted.add(slot, bytes.min(PIECE_BYTES_MAX) as u64);
        let (pieces, bytes) = counted.within(slot);
        pieces >= PIECES_MIN && bytes > BYTES_MAX
    }
}

impl Counted {
    fn add(&mut self, slot: i64, bytes: u64) {
        let place = usize::try_from(slot.rem_euclid(SLOTS as i64)).unwrap_or_default();
        let Some(counted) = self.slots.get_mut(place) else { return };
        // A clock that was set back counts to what is there.
        if counted.0 < slot {
            *counted = (slot, 0, 0);
        }
        (counted.1, counted.2) = (counted.1.saturating_add(1), counted.2.saturating_add(bytes));
    }

    fn within(&self, slot: i64) -> (u32, u64) {
        let live = self.slots.iter().filter(|counted| counted.1 > 0 && counted.0 > slot - SLOTS as i64);
        live.fold((0, 0), |(n, sum), counted| (n.saturating_add(counted.1), sum.saturating_add(counted.2)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_pieces_come_to_much() {
        let mut window = Window::default();
        let found: Vec<bool> = (0..50).map(|n| window.noted(n * 60, "evil.test", 60)).collect();
        assert_eq!(found.iter().position(|f| *f), Some(34), "60 times 35 is over 2,048");
        assert!(!window.noted(0, "other.test", 60), "destinations are told apart");
        assert!(!window.noted(0, "evil.test", 0), "nothing is nothing");
        // An hour later all of it is forgotten.
        assert!(!window.noted(50 * 60 + 7200, "evil.test", 60));
        let mut slow = Window::default();
        assert!((0..500).all(|n| !slow.noted(n * 600, "evil.test", 60)), "below the bound for ever");
        let mut few = Window::default();
        assert!((0..7).all(|_| !few.noted(0, "evil.test", 100_000)), "few large ones are found otherwise");
    }

    #[test]
    fn destinations_that_do_not_fit_are_one() {
        let mut window = Window::default();
        for n in 0..DESTINATIONS_MAX {
            assert!(!window.noted(0, &format!("{n}.test"), 60));
        }
        let found = (0..100).map(|n| window.noted(1, &format!("more-{n}.test"), 60)).collect::<Vec<_>>();
        assert!(found.contains(&true) && window.destinations.len() <= DESTINATIONS_MAX + 1);
        // Once the others are forgotten, there is room again.
        assert!(!window.noted(7200, "late.test", 60));
        assert_eq!(window.destinations.len(), 1);
    }
}
