//! Whose buckets and reservations there are, so that no tenant takes all: each may have so many times as many as are still free
//! (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998). One alone gets eight ninths, and
//! whoever comes then still finds room, the less the more others have.

use std::collections::HashMap;

use super::{BUCKETS_MAX, RESERVATIONS_MAX};

/// How many times what is free an owner may have.
const TIMES_FREE: usize = 8;

/// What one owner has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owned {
    buckets: usize,
    reservations: usize,
}

/// What all of them have.
#[derive(Debug, Default)]
pub(super) struct Owners {
    by_name: HashMap<Box<str>, Owned>,
    all: Owned,
}

// === impl Owners ===

impl Owners {
    /// Whether an owner may have so many more buckets.
    pub(super) fn may_open(&self, owner: &str, more: usize) -> bool {
        more == 0 || may(self.of(owner).buckets + more, self.all.buckets + more, BUCKETS_MAX)
    }

    /// Whether an owner may have one more reservation.
    pub(super) fn may_reserve(&self, owner: &str) -> bool {
        may(self.of(owner).reservations + 1, self.all.reservations + 1, RESERVATIONS_MAX)
    }

    pub(super) fn opened(&mut self, owner: &str) {
        self.change(owner, |owned| owned.buckets += 1);
    }

    pub(super) fn closed(&mut self, owner: &str) {
        self.change(owner, |owned| owned.buckets = owned.buckets.saturating_sub(1));
    }

    pub(super) fn reserved(&mut self, owner: &str) {
        self.change(owner, |owned| owned.reservations += 1);
    }

    pub(super) fn settled(&mut self, owner: &str) {
        self.change(owner, |owned| owned.reservations = owned.reservations.saturating_sub(1));
    }

    fn of(&self, owner: &str) -> Owned {
        self.by_name.get(owner).copied().unwrap_or_default()
    }

    fn change(&mut self, owner: &str, change: impl Fn(&mut Owned)) {
        change(&mut self.all);
        if let Some(owned) = self.by_name.get_mut(owner) {
            change(owned);
            if *owned == Owned::default() {
                self.by_name.remove(owner);
            }
            return;
        }
        let mut owned = Owned::default();
        change(&mut owned);
        self.by_name.insert(owner.into(), owned);
    }
}

/// Whether one may have so many, when all together would have `all` of `most`.
fn may(owned: usize, all: usize, most: usize) -> bool {
    all <= most && owned <= TIMES_FREE.saturating_mul(most - all).max(1)
}
