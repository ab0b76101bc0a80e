//! What may be spent: token buckets, and reservations on several of them at once. Pure: it is told the time.
//!
//! Who wants to spend *reserves*, all or nothing, and later *commits* what was used or *releases* the whole. A
//! reservation has an id of its owner's: asked again, it is answered again and takes nothing twice. One that is
//! neither committed nor released until its time is over counts as used.
//!
//! INVARIANT: what was granted and not given back never exceeds `burst + count × t / period` in any time `t`. A bucket
//! is a GCRA in the form of credits, exact in integers: a unit is worth a whole period in nanoseconds.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use self::owners::Owners;
use crate::effect::Share;

mod owners;
#[cfg(test)]
mod tests;

/// Most buckets that are not full: every agent of a node under ten limits, and [what others find](owners).
pub const BUCKETS_MAX: usize = 129_024;
/// Most reservations at once that are not settled: each worker has one for each of its buckets that are in use.
pub const RESERVATIONS_MAX: usize = 129_024;
/// Most reservations that are settled and remembered, so that a late repetition is known for what it is: the last ones.
const SETTLED_MAX: usize = 25_000;
/// Most buckets of one reservation: each limit that applies to a request.
pub const SCOPES_MAX: usize = 16;
/// Longest name of whose a bucket is, bytes: tenant, name and number.
pub const SUBJECT_BYTES_MAX: usize = 1_024;
/// Longest life of a reservation.
pub const LIFE_MAX: Duration = Duration::from_secs(3_600);
/// Greatest count and burst: with the longest period, credits stay far below 128 bits.
pub const UNITS_MAX: u64 = 1 << 56;
/// Longest period, seconds: 31 days.
pub const PERIOD_S_MAX: u32 = 31 * 24 * 3_600;

const NS_PER_S: u128 = 1_000_000_000;

/// Names a reservation: made up by who reserves.
pub type ReservationId = u128;

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Units in a period, from 1.
    pub count: u64,
    /// The period, seconds, from 1.
    pub period_s: u32,
    /// Units that may pass at once, from 1.
    pub burst: u64,
}

/// A part of a reservation: so much of one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Which limit: its key.
    pub limit: u64,
    /// Whose bucket.
    pub subject: Arc<str>,
    /// How fast it fills.
    pub pace: Pace,
    /// Units that are wanted: fewer are granted if there are fewer.
    pub want: u64,
    /// The least that is of use.
    pub least: u64,
}

/// What became of a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// So much of each scope, in their order.
    Granted(Vec<u64>),
    /// Nothing was taken: a bucket has too little.
    Short {
        /// Which scope, from 0.
        scope: usize,
        /// After what time the bucket could have enough, if nobody else takes it.
        wait: Duration,
    },
}

/// Why a request was refused. Nothing was altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// Numbers or names are out of bounds.
    #[error("a reservation needs 1 to {SCOPES_MAX} scopes within their bounds, each bucket once")]
    Malformed,
    /// The id was used for something else, or is settled.
    #[error("the id of this reservation was used already")]
    IdUsed,
    /// No such reservation: it never was, is settled, or its time is over.
    #[error("there is no such reservation any more")]
    Unknown,
    /// A bound is reached.
    #[error("there are as many buckets or reservations as there may be")]
    Full,
}

type BucketName = (u64, Arc<str>);

#[derive(Debug)]
struct Bucket {
    pace: Pace,
    /// Units times the period in nanoseconds.
    credit: u128,
    /// When that was so.
    at: Duration,
}

#[derive(Debug)]
struct Reservation {
    scopes: Vec<Scope>,
    granted: Vec<u64>,
    ends: Duration,
    is_settled: bool,
}

/// All buckets and reservations. Those that are not here are full.
#[derive(Debug, Default)]
pub struct Ledger {
    buckets: HashMap<BucketName, Bucket>,
    reservations: HashMap<ReservationId, Reservation>,
    /// By their end.
    ends: BTreeSet<(Duration, ReservationId)>,
    /// Those that are settled, the first settled first.
    settled: VecDeque<ReservationId>,
    /// Whose buckets there are, and whose reservations that are not settled.
    owners: Owners,
    /// When full buckets were looked for last.
    swept: Duration,
}

// === impl Pace ===

impl Pace {
    fn unit(self) -> u128 {
        u128::from(self.period_s) * NS_PER_S
    }

    fn is_sound(self) -> bool {
        (1..=UNITS_MAX).contains(&self.count)
            && (1..=UNITS_MAX).contains(&self.burst)
            && (1..=PERIOD_S_MAX).contains(&self.period_s)
    }
}

// === impl Scope ===

impl Scope {
    fn is_sound(&self) -> bool {
        self.pace.is_sound()
            && self.subject.len() <= SUBJECT_BYTES_MAX
            && (1..=self.want).contains(&self.least)
            && self.least <= self.pace.burst
    }

    fn name(&self) -> BucketName {
        (self.limit, Arc::clone(&self.subject))
    }

    fn owner(&self) -> &str {
        Share::owner(&self.subject)
    }
}

// === impl Bucket ===

impl Bucket {
    fn full(pace: Pace, now: Duration) -> Bucket {
        Bucket { pace, credit: u128::from(pace.burst) * pace.unit(), at: now }
    }

    /// Brings the credit to `now`. A clock that stepped back adds nothing.
    fn fill(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.at).as_nanos();
        self.at = self.at.max(now);
        self.add(elapsed.saturating_mul(u128::from(self.pace.count)));
    }

    fn add(&mut self, credit: u128) {
        let most = u128::from(self.pace.burst) * self.pace.unit();
        self.credit = self.credit.saturating_add(credit).min(most);
    }

    fn is_full(&self) -> bool {
        self.credit == u128::from(self.pace.burst) * self.pace.unit()
    }

    /// Whole units there are.
    fn units(&self) -> u64 {
        u64::try_from(self.credit / self.pace.unit()).unwrap_or(u64::MAX)
    }

    /// How long until there are `units`.
    fn wait(&self, units: u64) -> Duration {
        let missing = (u128::from(units) * self.pace.unit()).saturating_sub(self.credit);
        let ns = missing.div_ceil(u128::from(self.pace.count));
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

// === impl Ledger ===

impl Ledger {
    /// Reserves, at `now` and for `life` at most, something of each scope or nothing at all.
    ///
    /// A limit whose pace is another than its bucket has begins anew: a key stands for one pace.
    ///
    /// # Errors
    /// [`QuotaError::Malformed`], [`QuotaError::IdUsed`] or [`QuotaError::Full`]: nothing may be spent.
    pub fn reserve(
        &mut self,
        id: ReservationId,
        scopes: &[Scope],
        life: Duration,
        now: Duration,
    ) -> Result<Answer, QuotaError> {
        let names: BTreeSet<(u64, &str)> = scopes.iter().map(|s| (s.limit, &*s.subject)).collect();
        let is_sound = (1..=SCOPES_MAX).contains(&scopes.len())
            && names.len() == scopes.len()
            && scopes.iter().all(Scope::is_sound);
        if !is_sound {
            return Err(QuotaError::Malformed);
        }
        self.expire(now);
        if let Some(known) = self.reservations.get(&id) {
            let is_same = !known.is_settled && known.scopes == scopes;
            return if is_same {
                Ok(Answer::Granted(known.granted.clone()))
            } else {
                Err(QuotaError::IdUsed)
            };
        }
        self.make_room(scopes, now)?;
        let mut granted = Vec::with_capacity(scopes.len());
        for (at, scope) in scopes.iter().enumerate() {
            let bucket = self.bucket(scope, now);
            let units = bucket.units();
            if units < scope.least {
                return Ok(Answer::Short { scope: at, wait: bucket.wait(scope.least) });
            }
            granted.push(units.min(scope.want));
        }
        for (scope, units) in scopes.iter().zip(&granted) {
            let bucket = self.bucket(scope, now);
            bucket.credit = bucket.credit.saturating_sub(u128::from(*units) * bucket.pace.unit());
        }
        let ends = now.saturating_add(life.min(LIFE_MAX));
        self.ends.insert((ends, id));
        scopes.iter().take(1).for_each(|scope| self.owners.reserved(scope.owner()));
        let (scopes, is_settled) = (scopes.to_vec(), false);
        self.reservations.insert(id, Reservation { scopes, granted: granted.clone(), ends, is_settled });
        Ok(Answer::Granted(granted))
    }

    /// Settles a reservation of which so much was `used`, in the order of its scopes: the rest goes back. More than was
    /// granted is used up all the same, as far as there is anything left.
    ///
    /// # Errors
    /// [`QuotaError::Unknown`], and [`QuotaError::Malformed`] if `used` is of another length.
    pub fn commit(&mut self, id: ReservationId, used: &[u64], now: Duration) -> Result<(), QuotaError> {
        self.expire(now);
        let reservation = self.reservations.get_mut(&id).filter(|r| !r.is_settled);
        let reservation = reservation.ok_or(QuotaError::Unknown)?;
        if used.len() != reservation.granted.len() {
            return Err(QuotaError::Malformed);
        }
        // Its id stays known for a while: the question may come twice.
        reservation.is_settled = true;
        let scopes = std::mem::take(&mut reservation.scopes);
        let granted = std::mem::take(&mut reservation.granted);
        scopes.iter().take(1).for_each(|scope| self.owners.settled(scope.owner()));
        self.remember(id);
        for ((scope, granted), used) in scopes.iter().zip(granted).zip(used) {
            let Some(bucket) = self.buckets.get_mut(&scope.name()) else { continue };
            bucket.fill(now);
            let unit = bucket.pace.unit();
            bucket.add(u128::from(granted.saturating_sub(*used)) * unit);
            bucket.credit = bucket.credit.saturating_sub(u128::from(used.saturating_sub(granted)) * unit);
        }
        Ok(())
    }

    /// Gives a reservation back whole.
    ///
    /// # Errors
    /// [`QuotaError::Unknown`].
    pub fn release(&mut self, id: ReservationId, now: Duration) -> Result<(), QuotaError> {
        let scopes = self.reservations.get(&id).map_or(0, |r| r.granted.len());
        self.commit(id, &vec![0; scopes], now)
    }

    /// Settles a reservation that was used up, if there still is one.
    pub fn spent(&mut self, id: ReservationId, now: Duration) {
        let Some(used) = self.reservations.get(&id).filter(|r| !r.is_settled).map(|r| r.granted.clone())
        else {
            return;
        };
        // It is there, and of this length.
        let _ = self.commit(id, &used, now);
    }

    /// How many buckets are not full, as far as is known, and how many reservations are remembered.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.buckets.len(), self.reservations.len())
    }

    fn bucket(&mut self, scope: &Scope, now: Duration) -> &mut Bucket {
        let owners = &mut self.owners;
        let bucket = self.buckets.entry(scope.name()).or_insert_with(|| {
            owners.opened(scope.owner());
            Bucket::full(scope.pace, now)
        });
        if bucket.pace != scope.pace {
            *bucket = Bucket::full(scope.pace, now);
        }
        bucket.fill(now);
        bucket
    }

    /// Forgets reservations whose time is over: what they were granted is used.
    fn expire(&mut self, now: Duration) {
        while let Some((ends, id)) = self.ends.first().copied().filter(|(ends, _)| *ends <= now) {
            self.ends.remove(&(ends, id));
            let over = self.reservations.remove(&id).filter(|reservation| !reservation.is_settled);
            over.iter().flat_map(|r| r.scopes.first()).for_each(|scope| self.owners.settled(scope.owner()));
        }
    }

    /// Keeps the id of one that is settled now, and of no more than so many.
    fn remember(&mut self, id: ReservationId) {
        self.settled.push_back(id);
        while self.settled.len() > SETTLED_MAX {
            let Some(first) = self.settled.pop_front() else { return };
            // Its time may be over, and the id, by chance, another's.
            if let Some(known) = self.reservations.get(&first).filter(|known| known.is_settled) {
                self.ends.remove(&(known.ends, first));
                self.reservations.remove(&first);
            }
        }
    }

    /// Room for these, and for one reservation.
    fn make_room(&mut self, scopes: &[Scope], now: Duration) -> Result<(), QuotaError> {
        let owner = scopes.first().map(Scope::owner).unwrap_or_default();
        if !self.owners.may_reserve(owner) {
            return Err(QuotaError::Full);
        }
        let new = scopes.iter().filter(|scope| !self.buckets.contains_key(&scope.name())).count();
        if self.owners.may_open(owner, new) {
            return Ok(());
        }
        // At most once a second: who asks without end must not make everybody look through all of them.
        if now >= self.swept.saturating_add(Duration::from_secs(1)) || self.swept == Duration::ZERO {
            self.swept = now;
            let owners = &mut self.owners;
            self.buckets.retain(|(_, subject), bucket| {
                bucket.fill(now);
                let is_full = bucket.is_full();
                if is_full {
                    owners.closed(Share::owner(subject));
                }
                !is_full
            });
        }
        if self.owners.may_open(owner, new) { Ok(()) } else { Err(QuotaError::Full) }
    }
}
