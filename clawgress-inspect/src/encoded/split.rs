//! Data in small pieces over many requests: what one agent's requests carried to each destination, within an hour.
//!
//! What was carried before is no news: keys, tokens and cookies come with each request. Counted by slots of time that the
//! caller names: the same requests at the same seconds come to the same. Bounded: what doesn't fit counts as one destination,
//! which is the stricter count, and what was forgotten counts again. Must never keep what was carried, but hashes of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hasher as _};

/// Its name in policy.
pub const FOUND: &str = "split_data";
/// Length of a slot, seconds; and how many are counted.
pub const SLOT_S: i64 = 600;
const SLOTS: usize = 6;
/// Destinations told apart for one agent.
pub const DESTINATIONS_MAX: usize = 64;
/// Pieces of one agent that are known again: several of each of as many destinations.
pub const KNOWN_MAX: usize = 512;
/// Requests that carry a piece, where they are many.
const PIECES_MIN: u32 = 8;
/// Bytes that they come to, where it is much: a key in PEM, in base64.
const BYTES_MAX: u64 = 2048;
/// A request that carries more than this is found as what it is.
const PIECE_BYTES_MAX: usize = 1024;
/// Bytes of what no finding tells of by itself (credentials, which have to be data), where they are much however few requests they
/// came in: keys, tokens and sessions are less, and stay the same for longer.
const UNTOLD_BYTES_MAX: u64 = 16 * 1024;

/// Something that a request carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What tells it from others.
    pub key: u64,
    /// Its bytes.
    pub bytes: usize,
    /// Of them, those that are no finding by themselves, however many they are.
    pub untold: usize,
}

/// What one agent's requests carried.
#[derive(Clone, Debug, Default)]
pub struct Window {
    destinations: BTreeMap<u64, Counted>,
    /// Hashes of what was carried, and where to; and the order in which they came.
    known: BTreeSet<u64>,
    order: VecDeque<u64>,
}

/// What went to one destination, by slots.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    slots: [(i64, u32, u64, u64); SLOTS],
}

// === impl Piece ===

impl Piece {
    /// A value, of which so many bytes are data.
    #[must_use]
    pub fn of(value: &[u8], bytes: usize) -> Piece {
        Piece { key: hash(&value), bytes, untold: 0 }
    }

    /// Both as one.
    #[must_use]
    pub fn and(self, other: Piece) -> Piece {
        Piece {
            key: hash(&(self.key, other.key)),
            bytes: self.bytes.saturating_add(other.bytes),
            untold: self.untold.saturating_add(other.untold),
        }
    }

    /// The same where it is no finding by itself.
    #[must_use]
    pub fn untold(self) -> Piece {
        Piece { untold: self.bytes, ..self }
    }
}

fn hash(what: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

// === impl Window ===

impl Window {
    /// Takes note that a request to `destination` carried `pieces` at `now_s`; says whether many small ones came to much.
    pub fn noted(&mut self, now_s: i64, destination: &str, pieces: &[Piece]) -> bool {
        let mut key = hash(&destination);
        let mut news = BTreeMap::new();
        for piece in pieces {
            let place = hash(&(key, piece.key));
            if !self.known.contains(&place) {
                news.insert(place, (piece.bytes, piece.untold));
            }
        }
        let sum = |all: (usize, usize), one: &(usize, usize)| {
            (all.0.saturating_add(one.0), all.1.saturating_add(one.1))
        };
        let (bytes, untold) = news.values().fold((0, 0), sum);
        if bytes == 0 {
            return false;
        }
        let slot = now_s.div_euclid(SLOT_S);
        if !self.destinations.contains_key(&key) && self.destinations.len() >= DESTINATIONS_MAX {
            self.destinations.retain(|_, counted| counted.within(slot).0 > 0);
            if self.destinations.len() >= DESTINATIONS_MAX {
                key = 0;
            }
        }
        let counted = self.destinations.entry(key).or_default();
        let (bytes, untold) = (bytes.min(PIECE_BYTES_MAX) as u64, untold as u64);
        let (before, sum, sum_untold) = counted.within(slot);
        let is_much = before.saturating_add(1) >= PIECES_MIN && sum.saturating_add(bytes) > BYTES_MAX
            || untold > 0 && sum_untold.saturating_add(untold) > UNTOLD_BYTES_MAX;
        if !is_much {
            // What is found may be refused: it counts, and is news, whenever it is sent again.
            counted.add(slot, bytes, untold);
            news.into_keys().for_each(|place| self.learn(place));
        }
        is_much
    }

    /// Has it known as carried, as long as there is room.
    fn learn(&mut self, place: u64) {
        if self.known.insert(place) {
            self.order.push_back(place);
        }
        if self.order.len() > KNOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

// === impl Counted ===

impl Counted {
    fn add(&mut self, slot: i64, bytes: u64, untold: u64) {
        let place = usize::try_from(slot.rem_euclid(SLOTS as i64)).unwrap_or_default();
        let Some(counted) = self.slots.get_mut(place) else { return };
        // A clock that was set back counts to what is there.
        if counted.0 < slot {
            *counted = (slot, 0, 0, 0);
        }
        (counted.1, counted.2) = (counted.1.saturating_add(1), counted.2.saturating_add(bytes));
        counted.3 = counted.3.saturating_add(untold);
    }

    fn within(&self, slot: i64) -> (u32, u64, u64) {
        let live = self.slots.iter().filter(|counted| counted.1 > 0 && counted.0 > slot - SLOTS as i64);
        live.fold((0, 0, 0), |(n, sum, untold), counted| {
            let untold = untold.saturating_add(counted.3);
            (n.saturating_add(counted.1), sum.saturating_add(counted.2), untold)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many bytes that nothing else carried.
    fn piece(n: i64, bytes: usize) -> [Piece; 1] {
        [Piece::of(&n.to_be_bytes(), bytes)]
    }

    #[test]
    fn many_small_pieces_come_to_much() {
        let mut window = Window::default();
        let found: Vec<bool> = (0..50).map(|n| window.noted(n * 60, "evil.test", &piece(n, 60))).collect();
        assert_eq!(found.iter().position(|f| *f), Some(34), "60 times 35 is over 2,048");
        assert!(!window.noted(0, "other.test", &piece(0, 60)), "destinations are told apart");
        assert!(!window.noted(0, "evil.test", &[]), "nothing is nothing");
        // An hour later all of it is forgotten.
        assert!(!window.noted(50 * 60 + 7200, "evil.test", &piece(99, 60)));
        let mut slow = Window::default();
        let slowly = (0..500).all(|n| !slow.noted(n * 600, "evil.test", &piece(n, 60)));
        assert!(slowly, "below the bound for ever");
        let mut few = Window::default();
        let large = (0..7).all(|n| !few.noted(0, "evil.test", &piece(n, 100_000)));
        assert!(large, "few large ones are found otherwise");
    }

    /// What no finding tells of by itself is much by its bytes, however few requests carry it.
    #[test]
    fn large_credentials_come_to_much() {
        let mut window = Window::default();
        let cookie = |n: i64, bytes: usize| [Piece::of(&n.to_be_bytes(), bytes).untold()];
        assert!(!window.noted(0, "evil.test", &cookie(0, 8000)));
        assert!((0..9).all(|n| !window.noted(n, "evil.test", &cookie(0, 8000))), "the same is no news");
        assert!(!window.noted(1, "evil.test", &cookie(1, 8000)));
        assert!(window.noted(2, "evil.test", &cookie(2, 8000)), "24,000 bytes in three requests");
        assert!(window.noted(3, "evil.test", &cookie(2, 8000)), "sent again");
        assert!(!window.noted(3, "other.test", &cookie(3, 8000)), "destinations are told apart");
        assert!(!window.noted(7200, "evil.test", &cookie(4, 8000)), "an hour later all of it is forgotten");
    }

    #[test]
    fn what_comes_with_each_request_is_no_news() {
        let mut window = Window::default();
        let token = Piece::of(b"a session's", 900);
        assert!((0..1000).all(|n| !window.noted(n, "api.test", &[token])));
        // Beside it, what is new counts as if it were not there.
        let mut beside = |n| window.noted(1000 + n, "api.test", &[token, piece(n, 60)[0]]);
        assert_eq!((0..50).position(&mut beside), Some(19), "900 once, and 60 each");
    }

    #[test]
    fn what_was_found_is_found_again() {
        let mut window = Window::default();
        let first = (0..100).position(|n| window.noted(0, "evil.test", &piece(n, 300))).expect("found");
        let refused = i64::try_from(first).expect("few");
        assert!((0..5).all(|_| window.noted(1, "evil.test", &piece(refused, 300))), "sent again");
        assert!(!window.noted(1, "evil.test", &piece(0, 300)), "what went on before is no news");
    }

    #[test]
    fn what_does_not_fit_is_one_and_counts_again() {
        let mut window = Window::default();
        for n in 0..DESTINATIONS_MAX {
            assert!(!window.noted(0, &format!("{n}.test"), &piece(0, 60)));
        }
        let mut more = |n| window.noted(1, &format!("more-{n}.test"), &piece(0, 60));
        assert!((0..100).any(&mut more));
        assert!(window.destinations.len() <= DESTINATIONS_MAX + 1);
        // Once the others are forgotten, there is room again.
        assert!(!window.noted(7200, "late.test", &piece(0, 60)));
        assert_eq!(window.destinations.len(), 1);
        for n in 0..2 * KNOWN_MAX as i64 {
            window.noted(7200, "late.test", &piece(n, 1));
        }
        assert_eq!((window.known.len(), window.order.len()), (KNOWN_MAX, KNOWN_MAX));
    }
}
