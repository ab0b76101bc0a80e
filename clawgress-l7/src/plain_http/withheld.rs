//! The head of an answer that waits until what is in it was judged: Pingora has written it, and its client gets it then, or
//! another answer in its place. Must never let both go.

use std::sync::atomic::{AtomicU8, Ordering};

/// Whether one waits.
#[derive(Debug, Default)]
pub struct Withheld(AtomicU8);

/// What is written goes on.
const PASSING: u8 = 0;
/// It waits.
const WAITING: u8 = 1;
/// What waited does not go on any more.
const DISCARDED: u8 = 2;

// === impl Withheld ===

impl Withheld {
    /// Has what is written from now on wait.
    pub fn begin(&self) {
        self.0.store(WAITING, Ordering::Release);
    }

    /// Lets it go.
    pub fn release(&self) {
        let _ = self.0.compare_exchange(WAITING, PASSING, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Has it thrown away.
    pub fn discard(&self) {
        self.0.store(DISCARDED, Ordering::Release);
    }

    /// Whether it waits.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.0.load(Ordering::Acquire) == WAITING
    }

    /// Whether what waited is to be thrown away: once.
    #[must_use]
    pub fn is_discarded(&self) -> bool {
        self.0.compare_exchange(DISCARDED, PASSING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}
