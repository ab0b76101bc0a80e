//! When to try again what failed: pauses that double up to a longest one. Times are Unix seconds.

/// How often something failed in a row, and when it may be tried again.
#[derive(Clone, Debug)]
pub struct Retry {
    first_s: i64,
    max_s: i64,
    /// Spreads the tries of many gateways: below a tenth of each pause, from 0 to 255.
    spread: u8,
    failures: u32,
    since_s: Option<i64>,
    until_s: i64,
}

// === impl Retry ===

impl Retry {
    /// Nothing failed yet. The first pause is `first_s` long, the longest `max_s`, both seconds; `spread` is drawn at
    /// random, once.
    #[must_use]
    pub fn new(first_s: u32, max_s: u32, spread: u8) -> Retry {
        let (first_s, max_s) = (i64::from(first_s), i64::from(max_s));
        Retry { first_s, max_s, spread, failures: 0, since_s: None, until_s: i64::MIN }
    }

    /// Takes note of a failure.
    pub fn failed(&mut self, now_s: i64) {
        // Doubling ends at the longest pause; what is beyond it need not be counted.
        let doublings = self.failures.min(16);
        let pause_s = self.first_s.saturating_mul(1 << doublings).min(self.max_s);
        let pause_s = self.spread(pause_s).max(1);
        self.failures = self.failures.saturating_add(1);
        self.since_s.get_or_insert(now_s);
        self.until_s = now_s.saturating_add(pause_s);
    }

    /// Takes note that it went well.
    pub fn succeeded(&mut self) {
        (self.failures, self.since_s) = (0, None);
    }

    /// Ends the pause.
    pub fn at_once(&mut self) {
        self.until_s = i64::MIN;
    }

    /// Until when there is a pause, if there is one at `now_s`.
    #[must_use]
    pub fn pause(&self, now_s: i64) -> Option<i64> {
        // A pause that is longer than any is left from before the clock stepped back.
        let left_s = self.until_s.saturating_sub(now_s);
        (1..=self.max_s).contains(&left_s).then_some(self.until_s)
    }

    /// How often it failed in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Since when it fails, if it does.
    #[must_use]
    pub fn since_s(&self) -> Option<i64> {
        self.since_s
    }

    /// When it may be tried again after a failure.
    #[must_use]
    pub fn until_s(&self) -> i64 {
        self.until_s
    }

    /// Earlier by up to a tenth, so that gateways that started together don't ask together for ever.
    pub(crate) fn spread(&self, time_s: i64) -> i64 {
        time_s.saturating_sub(time_s.saturating_mul(i64::from(self.spread)) / 2560)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end() {
        let mut retry = Retry::new(1, 30, 0);
        assert_eq!((retry.pause(100), retry.since_s()), (None, None));
        for pause_s in [1, 2, 4, 8, 16, 30, 30, 30] {
            retry.failed(100);
            assert_eq!(retry.pause(100), Some(100 + pause_s));
        }
        assert_eq!((retry.failures(), retry.since_s()), (8, Some(100)));
        assert_eq!(retry.pause(130), None);
        // A clock that steps back ends it too.
        assert_eq!(retry.pause(50), None);
        retry.failed(100);
        retry.at_once();
        assert_eq!(retry.pause(100), None);
        retry.succeeded();
        assert_eq!((retry.failures(), retry.since_s()), (0, None));
        let mut early = Retry::new(100, 100, 255);
        early.failed(0);
        assert_eq!(early.pause(0), Some(91));
    }
}
