//! Whether the wall clock was set: what has expired by the new time is to be found at once, not when a timer that counts
//! by the old one ends.

use clawgress_api::clock::Clock;
use tokio::time::MissedTickBehavior;

use crate::{boottime, limit};

/// How far two looks at the clocks may differ, milliseconds: slewing moves one by half a millisecond a second at most, and
/// reading them takes less.
const SLEWED_MS_MAX: i64 = 100;

/// The wall clock, as far ahead of the one that nobody sets as it was when they were looked at last.
#[derive(Debug)]
pub struct Wall {
    ahead_ms: i64,
}

// === impl Wall ===

impl Wall {
    /// At a Unix time and a time since boot, both in milliseconds.
    pub fn at(wall_ms: i64, boot_ms: u64) -> Wall {
        Wall { ahead_ms: ahead(wall_ms, boot_ms) }
    }

    /// Looks again; whether it was set.
    pub fn was_set(&mut self, wall_ms: i64, boot_ms: u64) -> bool {
        let before = std::mem::replace(&mut self.ahead_ms, ahead(wall_ms, boot_ms));
        self.ahead_ms.abs_diff(before) > SLEWED_MS_MAX.unsigned_abs()
    }
}

fn ahead(wall_ms: i64, boot_ms: u64) -> i64 {
    wall_ms.saturating_sub(i64::try_from(boot_ms).unwrap_or(i64::MAX))
}

/// Calls `tell` whenever the clock was set, for ever.
pub async fn watch(clock: &dyn Clock, tell: impl Fn()) {
    let mut turns = tokio::time::interval(limit::BEAT);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut wall = Wall::at(clock.now().as_millisecond(), boottime::now_ms());
    loop {
        turns.tick().await;
        if wall.was_set(clock.now().as_millisecond(), boottime::now_ms()) {
            tracing::warn!("the clock was set: what lives is judged again by the new time");
            tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_passes_is_no_clock_that_is_set() {
        let mut wall = Wall::at(1_000_000, 500);
        for (wall_ms, boot_ms, is_set) in [
            (1_000_500, 1_000, false),
            (1_001_050, 1_500, false),
            (1_001_100, 1_600, false),
            // Suspended: both go on.
            (2_001_100, 1_001_600, false),
            (2_001_700, 1_002_000, true),
            (2_002_200, 1_002_500, false),
            (1_002_700, 1_003_000, true),
            (1_003_200, 1_003_500, false),
        ] {
            assert_eq!(wall.was_set(wall_ms, boot_ms), is_set, "{wall_ms} {boot_ms}");
        }
    }
}
