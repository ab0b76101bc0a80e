//! Rate limits in the kernel: what a limiter costs, the buckets of agents and workloads, and how much sources
//! without a binding may begin.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData, MapError};
use clawgress_ebpf_common::image::{Limiter, limiter};
use clawgress_ebpf_common::{Bucket, BucketKey, SUBJECT_SHARED, bound, map};
use clawgress_policy::kernel::{self, LimitAction, LimitSubject, LimitUnit};

use super::bpf::{Plain, Walk};
use super::object::{self, Objects};
use super::shares::{self, Shares};

const NS_PER_S: u64 = 1_000_000_000;
/// How long a bucket is kept that is full, ns: it is as one that isn't there, but for its counts.
const IDLE_NS: u64 = 60 * NS_PER_S;
/// How many seconds' worth of beginnings a source without a binding may have at once.
const UNBOUND_BURST_S: u64 = 2;

/// Limiters and agents whose counts are kept when their buckets are forgotten: as many as there are buckets. What is
/// beyond begins anew with its next bucket.
const KEPT_MAX: usize = bound::BUCKETS_MAX as usize;

/// What a limiter counted for an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Units that passed.
    pub passed: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// Counts by a limiter's key and the registry's index of an agent, 0 for all that share its bucket.
pub type Totals = BTreeMap<(u64, u32), Counts>;

/// The buckets.
pub struct Buckets {
    map: HashMap<MapData, Plain<BucketKey>, Plain<Bucket>>,
    /// The same map, for whole walks.
    walked: OwnedFd,
    /// How many each agent has.
    shares: Shares,
    /// Counts of buckets that were forgotten.
    kept: Totals,
    unbound: Array<MapData, Plain<Limiter>>,
    unbound_buckets: Array<MapData, Plain<Bucket>>,
}

/// Why a limiter can't be held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rate limit of policy `{policy}` is out of range: {what}")]
pub struct LimiterError {
    /// The policy's id.
    pub policy: String,
    /// In words.
    pub what: &'static str,
}

impl std::fmt::Debug for Buckets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buckets").finish_non_exhaustive()
    }
}

impl Buckets {
    /// Takes the maps out of the object.
    ///
    /// # Errors
    /// If one is missing or of another layout.
    pub fn take(objects: &mut Objects) -> Result<Buckets> {
        Ok(Buckets {
            walked: object::descriptor(objects, map::BUCKETS)?,
            shares: Shares::new(&object::descriptor(objects, map::BUCKET_SHARES)?)
                .context("cannot map the agents' shares of the token buckets")?,
            kept: Totals::new(),
            map: object::take(objects, map::BUCKETS)?,
            unbound: object::take(objects, map::UNBOUND)?,
            unbound_buckets: object::take(objects, map::UNBOUND_BUCKETS)?,
        })
    }

    /// Lets a source without a binding begin so many connections and datagrams a second, and all of them
    /// together, at each interface, so many.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn limit_unbound(&mut self, each_per_s: u32, all_per_s: u32) -> Result<()> {
        for (index, per_s) in [each_per_s, all_per_s].into_iter().enumerate() {
            let limiter = costed(u64::from(per_s), 1, unbound_burst(per_s))
                .map(|(cost, cost_shift, burst_ns)| Limiter {
                    cost,
                    cost_shift,
                    burst_ns,
                    ..Limiter::default()
                })
                .context("the limit of sources without a binding is out of range")?;
            self.unbound.set(u32::try_from(index)?, Plain(limiter), 0)?;
        }
        Ok(())
    }

    /// Beginnings of sources without a binding that passed, and that were dropped at TC or XDP for being too many
    /// of all such sources at their interface; and when the fullest of those buckets is empty again.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn unbound(&self) -> Result<Bucket> {
        let mut all = Bucket::default();
        for n in 0..bound::UNBOUND_INTERFACES {
            let Plain(one) = self.unbound_buckets.get(&(2 * bound::UNBOUND_BUCKETS + n), 0)?;
            all.full_ns = all.full_ns.max(one.full_ns);
            all.passed += one.passed;
            all.dropped += one.dropped;
        }
        Ok(all)
    }

    /// Every bucket.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn all(&self) -> Result<Vec<(BucketKey, Bucket)>> {
        let mut walk = Walk::<BucketKey, Bucket>::new(self.walked.as_fd());
        let mut found = Vec::new();
        while let Some(buckets) = walk.advance()? {
            found.extend(buckets.map(|(key, bucket)| (*key, *bucket)));
        }
        Ok(found)
    }

    /// What limiters counted for agents, over all workloads and for as long as this process has looked.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn totals(&self) -> Result<Totals> {
        let mut totals = self.kept.clone();
        for (key, bucket) in self.all()? {
            totals.entry((key.limiter, counted_for(&key, &bucket))).or_default().add(&bucket);
        }
        Ok(totals)
    }

    /// Buckets of `agent`, with those of an agent that shares its place.
    #[must_use]
    pub fn share(&self, agent: u32) -> u64 {
        self.shares.live(agent)
    }

    /// Forgets what limiters counted that are not among these.
    pub fn retain(&mut self, is_live: impl Fn(u64) -> bool) {
        self.kept.retain(|(limiter, _), _| is_live(*limiter));
    }

    /// Forgets those that have been full for long: all of them that are used no more, in the end. What is charged
    /// at that moment is forgotten with them.
    ///
    /// # Errors
    /// If the map can't be read or written.
    pub fn sweep(&mut self, now_ns: u64) -> Result<usize> {
        let before = self.shares.snapshot();
        let all = self.all()?;
        let mut counted = vec![0; before.len()];
        for (_, bucket) in &all {
            if let Some(count) = counted.get_mut(shares::index(bucket.agent)) {
                *count += 1;
            }
        }
        self.shares.heal(&before, &counted);
        let is_over = |(_, bucket): &(BucketKey, Bucket)| bucket.full_ns.saturating_add(IDLE_NS) < now_ns;
        let over: Vec<_> = all.into_iter().filter(is_over).collect();
        for (key, bucket) in &over {
            match self.map.remove(&Plain(*key)) {
                Ok(()) => {
                    self.shares.take_off(bucket.agent);
                    self.keep(key, bucket);
                }
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(over.len())
    }

    fn keep(&mut self, key: &BucketKey, bucket: &Bucket) {
        let key = (key.limiter, counted_for(key, bucket));
        if self.kept.len() < KEPT_MAX || self.kept.contains_key(&key) {
            self.kept.entry(key).or_default().add(bucket);
        }
    }
}

/// Whom a bucket's counts are told of.
fn counted_for(key: &BucketKey, bucket: &Bucket) -> u32 {
    if key.subject == SUBJECT_SHARED { 0 } else { bucket.agent }
}

// === impl Counts ===

impl Counts {
    fn add(&mut self, bucket: &Bucket) {
        self.passed = self.passed.wrapping_add(bucket.passed);
        self.dropped = self.dropped.wrapping_add(bucket.dropped);
    }
}

/// Units that may pass now, of a bucket with this rate and burst.
#[must_use]
pub fn room(count: u64, period_s: u32, burst: u64, bucket: &Bucket, now_ns: u64) -> u64 {
    let debt_ns = u128::from(bucket.full_ns.saturating_sub(now_ns));
    let period_ns = u128::from(period_s.max(1)) * u128::from(NS_PER_S);
    let missing = (debt_ns * u128::from(count)).div_ceil(period_ns);
    burst.saturating_sub(u64::try_from(missing).unwrap_or(u64::MAX))
}

/// The burst of sources without a binding.
#[must_use]
pub fn unbound_burst(per_s: u32) -> u64 {
    u64::from(per_s) * UNBOUND_BURST_S
}

/// A policy's limiter, as the programs read it; `policies` is the index of its id.
///
/// # Errors
/// If it is out of range.
pub fn limiter(policy: &kernel::Limiter, policies: u32) -> Result<Limiter, LimiterError> {
    let refuse = |what| LimiterError { policy: policy.policy.clone(), what };
    let (cost, cost_shift, burst_ns) =
        costed(policy.count, policy.period_s, policy.burst).ok_or_else(|| {
            refuse("a unit costs too much or too little time, or the burst is of more than an hour")
        })?;
    if policy.key == 0 {
        return Err(refuse("it has no key"));
    }
    let unit = match policy.unit {
        LimitUnit::Bytes => limiter::BYTES,
        LimitUnit::Packets => limiter::PACKETS,
        LimitUnit::Connections => limiter::CONNECTIONS,
    };
    let by_workload = if policy.subject == LimitSubject::Workload { limiter::BY_WORKLOAD } else { 0 };
    let shared = if policy.group.is_some() { limiter::SHARED } else { 0 };
    let pace = if policy.over == LimitAction::Pace { limiter::PACE } else { 0 };
    Ok(Limiter {
        key: policy.key,
        cost,
        burst_ns,
        policies,
        unit,
        unit_bits: limiter::bits(unit),
        flags: by_workload | shared | pace,
        cost_shift,
    })
}

/// Cost of a unit, its shift, and the burst in ns.
fn costed(count: u64, period_s: u32, burst: u64) -> Option<(u64, u8, u64)> {
    if count == 0 || period_s == 0 || burst == 0 {
        return None;
    }
    let period_ns = u128::from(period_s) * u128::from(NS_PER_S);
    let costs = [limiter::FINE, 0].map(|shift| ((period_ns << shift).div_ceil(u128::from(count)), shift));
    let (cost, shift) = costs.into_iter().find(|(cost, _)| *cost <= u128::from(limiter::COST_MAX))?;
    let burst_ns = (u128::from(burst) * cost) >> shift;
    let burst_ns = u64::try_from(burst_ns).ok().filter(|ns| *ns <= limiter::BURST_NS_MAX)?;
    Some((u64::try_from(cost).ok()?, shift, burst_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_exact_where_they_are_small_and_fit_where_they_are_large() {
        // A byte at 100 GB/s: 0.01 ns.
        assert_eq!(costed(100_000_000_000, 1, 65_536), Some((656, 16, 656)));
        // A connection an hour.
        assert_eq!(costed(1, 3600, 1), Some((3_600_000_000_000, 0, 3_600_000_000_000)));
        assert_eq!(costed(1, 3600, 3), None, "a burst of three hours");
        assert!(costed(7, 3600, 7).is_some(), "an hour, rounded up");
        assert_eq!(costed(20, 60, 5), Some((3_000_000_000, 0, 15_000_000_000)));
        assert_eq!(costed(0, 1, 1), None);
        for count in [1, 7, 1000, 1_000_000, 1 << 40] {
            for period in [1, 60, 3600] {
                let Some((cost, shift, burst_ns)) = costed(count, period, 1) else { continue };
                let all = u128::from(limiter::UNITS_MAX) * u128::from(cost);
                assert!(all <= u128::from(u64::MAX), "{count}/{period}");
                // A burst of one lets one through.
                assert!(cost >> shift <= burst_ns);
            }
        }
    }
}
