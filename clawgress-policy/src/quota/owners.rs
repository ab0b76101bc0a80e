//! Whose buckets and reservations there are, so that no tenant takes all: each may have so many times as many as are still free
//! (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998). One alone gets most, and
//! whoever comes then still finds room, the less the more others have.
//!
//! Several that take all they can in turn leave next to nothing so: each leaves a ninth. So a part is kept back for those who
//! have little. INVARIANT: where no more than [`OWNERS_SURE`] have any, each has [`floor`] whenever it wants them, whatever the
//! others took, and in whatever order.

use std::collections::HashMap;

use super::{BUCKETS_MAX, RESERVATIONS_MAX};

/// How many times what is free an owner may have.
const TIMES_FREE: usize = 8;
/// Owners that are sure of a part, whatever others have: more tenants than share a node at their limits.
const OWNERS_SURE: usize = 64;
/// This part of all is kept back for them.
const KEPT_BACK: usize = 8;

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

/// What each of [`OWNERS_SURE`] owners may have, of `most`, whatever the others have.
const fn floor(most: usize) -> usize {
    most / KEPT_BACK / OWNERS_SURE
}

/// Whether one may have so many, when all together would have `all` of `most`.
fn may(owned: usize, all: usize, most: usize) -> bool {
    let is_little = owned <= floor(most).max(1);
    let free = (most - most / KEPT_BACK).saturating_sub(all);
    all <= most && (is_little || owned <= TIMES_FREE.saturating_mul(free))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(n: usize) -> String {
        format!("tenant {n}")
    }

    /// Takes as many as there are, of either kind.
    fn takes_all(owners: &mut Owners, who: &str) -> Owned {
        while owners.may_open(who, 1) {
            owners.opened(who);
        }
        while owners.may_reserve(who) {
            owners.reserved(who);
        }
        owners.of(who)
    }

    #[test]
    fn one_alone_has_most_and_the_last_of_many_has_its_part() {
        let mut owners = Owners::default();
        let first = takes_all(&mut owners, &name(0));
        // Seven eighths of all, and of those eight ninths.
        assert!(first.buckets >= BUCKETS_MAX * 7 / 9 && first.reservations >= RESERVATIONS_MAX * 7 / 9);
        for n in 1..OWNERS_SURE {
            let Owned { buckets, reservations } = takes_all(&mut owners, &name(n));
            assert!(
                buckets >= floor(BUCKETS_MAX) && reservations >= floor(RESERVATIONS_MAX),
                "number {n} has {buckets} and {reservations}"
            );
        }
        assert!(owners.all.buckets <= BUCKETS_MAX && owners.all.reservations <= RESERVATIONS_MAX);
    }

    /// What one of many does.
    #[derive(Clone, Debug)]
    enum Step {
        /// Takes as many at once, as often as it may.
        Take { owner: usize, at_once: usize },
        /// Lets go of a part of what it has, in hundredths.
        Leave { owner: usize, hundredths: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        let owner = || 0..OWNERS_SURE;
        prop_oneof![
            3 => (owner(), 1..17usize).prop_map(|(owner, at_once)| Step::Take { owner, at_once }),
            2 => (owner(), 0..101usize).prop_map(|(owner, hundredths)| Step::Leave { owner, hundredths }),
        ]
    }

    proptest! {
        /// However they take and leave: there are never more than there may be, and whoever has little may have more.
        #[test]
        fn whoever_has_little_may_have_more(
            most in KEPT_BACK * OWNERS_SURE..20_000,
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let mut all = [0; OWNERS_SURE];
            for step in steps {
                match step {
                    Step::Take { owner, at_once } => {
                        while may(all[owner] + at_once, all.iter().sum::<usize>() + at_once, most) {
                            all[owner] += at_once;
                        }
                    }
                    Step::Leave { owner, hundredths } => all[owner] -= all[owner] * hundredths / 100,
                }
                let sum = all.iter().sum::<usize>();
                prop_assert!(sum <= most);
                for owned in all {
                    let lacks = floor(most).saturating_sub(owned);
                    prop_assert!(lacks == 0 || may(owned + lacks, sum + lacks, most), "{all:?} of {most}");
                }
            }
        }
    }
}
