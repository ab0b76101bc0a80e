//! Whether this process may be behind the others: it stood still (it was stopped, or its machine was, or suspended), or a
//! generation that came is not applied, because that takes long or because it was refused.
//!
//! INVARIANT: once it stood still for longer than [`limit::STRAGGLE`], it is behind, for whoever asks first, until control
//! has confirmed what is live after that. What control had sent before confirms nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::{boottime, limit};

/// No time.
const NEVER: u64 = u64::MAX;

/// See the module.
#[derive(Debug)]
pub struct Straggle {
    /// When it last showed that it goes on, in milliseconds since boot; [`NEVER`] before anybody looks.
    beat_ms: AtomicU64,
    /// Since when a generation waits to be applied; [`NEVER`] for none.
    waits_ms: AtomicU64,
    /// How many times it stood still, for who asks control about it; the last of them that control has confirmed something
    /// after; and the same number for who decides, without a lock.
    stalls: watch::Sender<u64>,
    confirmed: AtomicU64,
    count: AtomicU64,
}

impl Default for Straggle {
    fn default() -> Self {
        Straggle {
            beat_ms: AtomicU64::new(NEVER),
            waits_ms: AtomicU64::new(NEVER),
            stalls: watch::channel(0).0,
            confirmed: AtomicU64::new(0),
            count: AtomicU64::new(0),
        }
    }
}

// === impl Straggle ===

impl Straggle {
    /// Whether it may be behind.
    pub fn is_behind(&self) -> bool {
        self.is_behind_at(boottime::now_ms())
    }

    pub(super) fn is_behind_at(&self, now_ms: u64) -> bool {
        self.look(now_ms)
            || self.count.load(Ordering::Acquire) > self.confirmed.load(Ordering::Acquire)
            || is_over(now_ms, self.waits_ms.load(Ordering::Acquire))
    }

    /// Notes that it stood still, if it did. Only one of those who find it counts it.
    fn look(&self, now_ms: u64) -> bool {
        let beat_ms = self.beat_ms.load(Ordering::Acquire);
        if !is_over(now_ms, beat_ms) {
            return false;
        }
        if self.beat_ms.compare_exchange(beat_ms, now_ms, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            let count = self.count.fetch_add(1, Ordering::AcqRel) + 1;
            self.stalls.send_modify(|stalls| *stalls = count.max(*stalls));
        }
        // Also for who lost the race, and may not see the count yet.
        true
    }

    /// Notes that a generation came, unless one waits already.
    pub fn begin(&self) {
        let _ =
            self.waits_ms.compare_exchange(NEVER, boottime::now_ms(), Ordering::AcqRel, Ordering::Acquire);
    }

    /// Notes that the generation that came last is applied.
    pub fn end(&self) {
        self.waits_ms.store(NEVER, Ordering::Release);
    }

    /// Shows that it goes on, for ever; `tell` is called when it turns out that it did not.
    pub async fn watch(&self, tell: impl Fn()) {
        let mut turns = tokio::time::interval(limit::BEAT);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = *self.stalls.borrow();
        let mut was_waiting = false;
        loop {
            turns.tick().await;
            let now_ms = boottime::now_ms();
            self.look(now_ms);
            let stalls = *self.stalls.borrow();
            let waits = is_over(now_ms, self.waits_ms.load(Ordering::Acquire));
            if stalls != known || waits && !was_waiting {
                tracing::error!(
                    stalls,
                    waits,
                    "this process may be behind: it denies until control confirms what is live"
                );
                tell();
            }
            (known, was_waiting) = (stalls, waits);
            self.beat_ms.store(boottime::now_ms(), Ordering::Release);
        }
    }

    /// The times it stood still, for [`unconfirmed`](Self::unconfirmed).
    pub fn stalls(&self) -> watch::Receiver<u64> {
        let mut stalls = self.stalls.subscribe();
        stalls.mark_changed();
        stalls
    }

    /// Waits for a time that control has confirmed nothing after, and gives its number.
    pub async fn unconfirmed(&self, stalls: &mut watch::Receiver<u64>) -> u64 {
        loop {
            // Its sender is here.
            if stalls.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let number = *stalls.borrow_and_update();
            if number > self.confirmed.load(Ordering::Acquire) {
                return number;
            }
        }
    }

    /// Takes note of what control has confirmed, after it was asked by this number; whether that is news.
    pub fn confirm(&self, number: u64) -> bool {
        self.confirmed.fetch_max(number, Ordering::AcqRel) < number
    }
}

/// Whether `since` is longer ago than it may.
fn is_over(now_ms: u64, since: u64) -> bool {
    since != NEVER && u128::from(now_ms.saturating_sub(since)) > limit::STRAGGLE.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVER: u64 = limit::STRAGGLE.as_millis() as u64 + 1;

    #[test]
    fn whoever_asks_first_finds_that_it_stood_still() {
        let straggle = Straggle::default();
        assert!(!straggle.is_behind_at(10 * OVER), "nobody looks yet");
        straggle.beat_ms.store(100, Ordering::Release);
        assert!(!straggle.is_behind_at(99 + OVER));
        assert!(straggle.is_behind_at(100 + OVER));
        assert_eq!(*straggle.stalls.borrow(), 1);
        // It goes on, and is behind all the same, until control was asked after that.
        straggle.beat_ms.store(101 + OVER, Ordering::Release);
        assert!(straggle.is_behind_at(102 + OVER));
        assert!(!straggle.confirm(0), "what was sent before");
        assert!(straggle.is_behind_at(102 + OVER));
        // It stood still again before the answer came.
        assert!(straggle.is_behind_at(200 + 2 * OVER));
        assert!(straggle.confirm(1));
        assert!(straggle.is_behind_at(200 + 2 * OVER));
        assert!(straggle.confirm(2));
        assert!(!straggle.is_behind_at(200 + 2 * OVER));
    }

    #[test]
    fn a_generation_that_waits_for_too_long_leaves_none() {
        let straggle = Straggle::default();
        straggle.begin();
        let since = straggle.waits_ms.load(Ordering::Acquire);
        straggle.begin();
        assert_eq!(straggle.waits_ms.load(Ordering::Acquire), since, "the next does not make it later");
        assert!(!straggle.is_behind_at(since + OVER - 1));
        assert!(straggle.is_behind_at(since + OVER));
        straggle.end();
        assert!(!straggle.is_behind_at(since + OVER));
    }

    #[tokio::test]
    async fn each_stream_asks_until_it_is_answered() {
        let straggle = Straggle::default();
        straggle.beat_ms.store(0, Ordering::Release);
        straggle.look(OVER);
        for _ in 0..2 {
            assert_eq!(straggle.unconfirmed(&mut straggle.stalls()).await, 1);
        }
        straggle.confirm(1);
        let mut stalls = straggle.stalls();
        let next = tokio::time::timeout(limit::BEAT, straggle.unconfirmed(&mut stalls)).await;
        assert!(next.is_err(), "there is nothing to ask for");
    }
}
