//! What is remembered for all agents, of which each has a share: one that asks for much pushes out what was remembered for itself.
//!
//! Must never grow beyond its bound, nor let one agent take what others need.

use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Part of all that one may have: eight have to work together to take everything.
const SHARE: usize = 8;

/// A bounded memory, first in first out for each owner.
#[derive(Debug)]
pub struct Shared<K, V> {
    entries: HashMap<K, V>,
    /// What each owner had remembered, oldest first. One that has nothing has no entry.
    owned: HashMap<u32, VecDeque<K>>,
    most: usize,
    each: usize,
}

/// Turns at what only so many may do at once, of which each owner has a share.
#[derive(Debug)]
pub struct Turns {
    all: Arc<Semaphore>,
    /// Of those that have, or wait for, a turn.
    each: Mutex<HashMap<u32, Arc<Semaphore>>>,
    each_max: usize,
}

/// One turn, over when it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    _all: OwnedSemaphorePermit,
    /// Dropped before the place in it is looked at.
    _own: OwnedSemaphorePermit,
    _place: Place<'a>,
}

/// That an owner has or waits for a turn.
#[derive(Debug)]
struct Place<'a> {
    turns: &'a Turns,
    owner: u32,
    /// There until this is dropped.
    own: Option<Arc<Semaphore>>,
}

// === impl Shared ===

impl<K: Clone + Eq + Hash, V> Shared<K, V> {
    /// Room for `most` in all.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let each = (most / SHARE).max(1);
        Shared { entries: HashMap::new(), owned: HashMap::new(), most, each }
    }

    /// What is remembered for `key`, for whomever.
    #[must_use]
    pub fn find<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key)
    }

    /// Remembers for `owner`. Where its share is full, its oldest goes; where all is full, the oldest of who has most.
    pub fn keep(&mut self, owner: u32, key: K, value: V) {
        if self.most == 0 {
            return;
        }
        if let Some(known) = self.entries.get_mut(&key) {
            *known = value;
            return;
        }
        let own = self.owned.get(&owner).map_or(0, VecDeque::len);
        if own >= self.each {
            self.forget_of(owner);
        } else if self.entries.len() >= self.most {
            // As many owners as entries at most, and only of a full memory.
            let greatest = self.owned.iter().max_by_key(|(_, keys)| keys.len()).map(|(owner, _)| *owner);
            greatest.into_iter().for_each(|owner| self.forget_of(owner));
        }
        self.entries.insert(key.clone(), value);
        self.owned.entry(owner).or_default().push_back(key);
    }

    /// Forgets what does not count any more.
    pub fn retain(&mut self, counts: impl Fn(&V) -> bool) {
        let before = self.entries.len();
        self.entries.retain(|_, value| counts(value));
        if self.entries.len() < before {
            self.owned.retain(|_, keys| {
                keys.retain(|key| self.entries.contains_key(key));
                !keys.is_empty()
            });
        }
    }

    /// How much is remembered.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    fn forget_of(&mut self, owner: u32) {
        let Some(keys) = self.owned.get_mut(&owner) else { return };
        if let Some(oldest) = keys.pop_front() {
            self.entries.remove(&oldest);
        }
        if keys.is_empty() {
            self.owned.remove(&owner);
        }
    }
}

// === impl Turns ===

impl Turns {
    /// `most` at once in all.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let each_max = (most / SHARE).max(1);
        Turns { all: Arc::new(Semaphore::new(most)), each: Mutex::default(), each_max }
    }

    /// The next turn of `owner`: it waits for its own first, so that others wait for it no longer than for those it may have.
    ///
    /// # Errors
    /// None: nobody closes it.
    pub async fn take(&self, owner: u32) -> Result<Turn<'_>, AcquireError> {
        let (place, own) = self.place(owner);
        let own = own.acquire_owned().await?;
        let all = Arc::clone(&self.all).acquire_owned().await?;
        Ok(Turn { _all: all, _own: own, _place: place })
    }

    fn place(&self, owner: u32) -> (Place<'_>, Arc<Semaphore>) {
        let mut each = self.each.lock();
        let own = each.entry(owner).or_insert_with(|| Arc::new(Semaphore::new(self.each_max)));
        (Place { turns: self, owner, own: Some(Arc::clone(own)) }, Arc::clone(own))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut each = self.turns.each.lock();
        drop(self.own.take());
        // Permits, and who waits for one, have their own, and let go of it before.
        if each.get(&self.owner).is_some_and(|own| Arc::strong_count(own) == 1) {
            each.remove(&self.owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn one_owner_pushes_out_its_own_and_no_more() {
        let mut shared = Shared::new(80);
        shared.keep(1, "mine".to_owned(), 0);
        for n in 0..1000 {
            shared.keep(2, format!("two-{n}"), n);
        }
        assert_eq!(shared.find("mine"), Some(&0));
        assert_eq!(
            (shared.len(), shared.find("two-999")),
            (11, Some(&999)),
            "its share, and the newest of it"
        );
        assert_eq!(shared.find("two-989"), None);
        shared.keep(3, "mine".to_owned(), 7);
        assert_eq!((shared.find("mine"), shared.len()), (Some(&7), 11));
    }

    #[test]
    fn what_does_not_count_any_more_takes_no_room() {
        let mut shared = Shared::new(80);
        (0..7).for_each(|n| shared.keep(1, n, n));
        shared.keep(2, 100, 1);
        shared.retain(|n| *n > 3);
        assert_eq!((shared.len(), shared.owned.len(), shared.owned[&1].len()), (3, 1, 3));
        (10..17).for_each(|n| shared.keep(1, n, n));
        assert!(
            shared.find(&4).is_some(),
            "its share has room for what is left, and as much as was forgotten"
        );
    }

    #[test]
    fn all_is_bounded_and_who_has_most_gives_way() {
        let mut shared = Shared::new(80);
        for owner in 0..8 {
            for n in 0..11 {
                shared.keep(owner, (owner, n), ());
                assert!(shared.len() <= 80);
            }
        }
        shared.keep(1000, (1000, 0), ());
        for owner in 2000..2070 {
            shared.keep(owner, (owner, 0), ());
        }
        assert_eq!(shared.len(), 80);
        assert!(shared.find(&(1000, 0)).is_some(), "of who has one, it stays while others have more");
        assert_eq!(shared.owned.values().map(VecDeque::len).sum::<usize>(), 80);
        let mut nothing = Shared::new(0);
        nothing.keep(1, 1, 1);
        assert_eq!(nothing.len(), 0);
    }

    #[test]
    fn who_takes_many_turns_waits_for_its_own() {
        let turns = Turns::new(16);
        let now = |owner| turns.take(owner).now_or_never().and_then(Result::ok);
        let mine: Vec<_> = (0..16).filter_map(|_| now(1)).collect();
        assert_eq!(mine.len(), 2);
        let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(turns.take(1))).collect();
        waiting.iter_mut().for_each(|turn| assert!(turn.as_mut().now_or_never().is_none()));
        let others: Vec<_> = (2..20).map(now).collect();
        assert_eq!(others.iter().flatten().count(), 14, "none of those that wait is before them");
        drop((mine, waiting, others));
        assert!(turns.each.lock().is_empty(), "nothing is kept of who has none");
        assert_eq!(turns.all.available_permits(), 16);
    }
}
