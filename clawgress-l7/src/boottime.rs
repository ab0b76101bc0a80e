//! The time since the machine began, the time that it was suspended for included: `Instant` stands still meanwhile, and
//! what others did without this machine would be taken for done in no time.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_BOOTTIME`. Where it can't be read, a time by which everything is over: what depends on it then denies.
#[must_use]
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}

/// The same in milliseconds, always less than [`u64::MAX`].
#[must_use]
pub fn now_ms() -> u64 {
    u64::try_from(now().as_millis()).unwrap_or(u64::MAX).min(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_as_the_other_clock_does() {
        let (before, began) = (now(), std::time::Instant::now());
        std::thread::sleep(Duration::from_millis(20));
        let passed = began.elapsed();
        assert!(now() - before >= passed.saturating_sub(Duration::from_millis(1)), "{before:?} {passed:?}");
        assert!(now_ms() >= u64::try_from(before.as_millis()).expect("milliseconds"));
    }
}
