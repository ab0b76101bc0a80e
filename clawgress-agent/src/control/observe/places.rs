//! Where an agent was let go, and in which order that was last. Must never say that a place is old which is not known.

use std::collections::HashMap;

use aws_lc_rs::digest::{SHA256, digest};

/// Seconds of a day.
const DAY_S: i64 = 86_400;
/// Bits of [`Places::seen`] that count within a day: a million sightings a second fit.
const TURN_BITS: u32 = 40;
/// What part of an agent's places is forgotten at once, so that looking for the oldest is rare.
const SHED_PART: usize = 64;

/// Names a place: a part of the hash of its host, so that what is kept has one size. As words, so that a million take as
/// little room as they can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name([u64; 2]);

/// The places of one agent.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    /// When each was seen last: the day, and in its lower bits which sighting of that day it was.
    seen: HashMap<Name, u64>,
    /// The last sighting.
    last: u64,
    /// What was not written yet: when it was seen, or that it is forgotten.
    unsaved: HashMap<Name, Option<u64>>,
}

// === impl Name ===

impl Name {
    pub(super) fn of(host: &str) -> Name {
        let hash = digest(&SHA256, host.as_bytes());
        let (words, _) = hash.as_ref().as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_be_bytes(*word));
        Name([words.next().unwrap_or_default(), words.next().unwrap_or_default()])
    }

    pub(super) fn from_be_bytes(bytes: [u8; 16]) -> Name {
        let all = u128::from_be_bytes(bytes);
        Name([(all >> 64) as u64, all as u64])
    }

    pub(super) fn to_be_bytes(self) -> [u8; 16] {
        let Name([high, low]) = self;
        (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
    }
}

// === impl Places ===

impl Places {
    pub(super) fn len(&self) -> usize {
        self.seen.len()
    }

    pub(super) fn knows(&self, name: Name) -> bool {
        self.seen.contains_key(&name)
    }

    /// Notes that it was there now (Unix, seconds). Written once a day: what is forgotten first need not be known better.
    pub(super) fn see(&mut self, name: Name, now_s: i64) {
        let day = u64::try_from(now_s.div_euclid(DAY_S)).unwrap_or(0) << TURN_BITS;
        // A clock that goes back doesn't make what is seen now older than what was.
        self.last = day.max(self.last.saturating_add(1));
        let before = self.seen.insert(name, self.last);
        if before.is_none_or(|before| before >> TURN_BITS != self.last >> TURN_BITS) {
            self.unsaved.insert(name, Some(self.last));
        }
    }

    /// Takes in what was written.
    pub(super) fn restore(&mut self, name: Name, seen: u64) {
        self.seen.insert(name, seen);
        self.last = self.last.max(seen);
    }

    /// Forgets some of those that were seen longest ago, one at least; how many.
    pub(super) fn shed(&mut self) -> usize {
        let count = (self.seen.len() / SHED_PART).max(1).min(self.seen.len());
        let mut all: Vec<(u64, Name)> = self.seen.iter().map(|(name, seen)| (*seen, *name)).collect();
        let Some(last) = count.checked_sub(1) else { return 0 };
        let (older, one, _) = all.select_nth_unstable_by_key(last, |(seen, _)| *seen);
        for (_, name) in older.iter().chain(std::iter::once(&*one)) {
            self.seen.remove(name);
            self.unsaved.insert(*name, None);
        }
        count
    }

    pub(super) fn is_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// What is to be written: when it was seen, or that it is forgotten.
    pub(super) fn take_unsaved(&mut self) -> Vec<(Name, Option<u64>)> {
        std::mem::take(&mut self.unsaved).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: i64 = 1_795_632_300;

    fn name(n: usize) -> Name {
        Name::of(&format!("h{n}.test"))
    }

    #[test]
    fn what_was_seen_longest_ago_is_forgotten_first() {
        let mut places = Places::default();
        for n in 0..100 {
            places.see(name(n), NOW_S);
        }
        // Seen again: no more the oldest. The clock went back in between.
        places.see(name(0), NOW_S - 5 * DAY_S);
        assert_eq!((places.shed(), places.len()), (1, 99));
        assert!(places.knows(name(0)) && !places.knows(name(1)) && places.knows(name(2)));
        let mut kept = Places::default();
        for (name, seen) in places.take_unsaved() {
            if let Some(seen) = seen {
                kept.restore(Name::from_be_bytes(name.to_be_bytes()), seen);
            }
        }
        assert_eq!(kept.len(), 99);
        // Who is read again goes on in the same order, the next day too.
        kept.see(name(2), NOW_S + DAY_S);
        assert_eq!(kept.take_unsaved().len(), 1, "once a day");
        kept.see(name(2), NOW_S + DAY_S + 1);
        assert!(!kept.is_unsaved());
        kept.shed();
        assert!(kept.knows(name(2)) && !kept.knows(name(0)), "within a day, by its first sighting");
        assert_eq!(Places::default().shed(), 0);
    }
}
