//! How slowly a body may come: between two reads there may be a minute, so a byte of it every minute would hold a connection, and
//! its server's, for as long as its client likes.

use tokio::time::Instant;

use crate::limit;

/// The pace of a body whose length was told. One without may be one side of a conversation.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    since: Instant,
    bytes: usize,
}

// === impl Pace ===

impl Pace {
    /// Of a body that begins.
    #[must_use]
    pub fn new(now: Instant) -> Pace {
        Pace { since: now, bytes: 0 }
    }

    /// Notes that so many bytes more have come; whether that is fast enough. A server that takes nothing for a while does not
    /// make its client slow: by then more has come than a minute asks for.
    #[must_use]
    pub fn keeps(&mut self, now: Instant, bytes: usize) -> bool {
        self.bytes += bytes;
        if now.saturating_duration_since(self.since) < limit::BODY_LOOK {
            return true;
        }
        let is_kept = self.bytes >= limit::BODY_LOOK_BYTES_LEAST;
        *self = Pace::new(now);
        is_kept
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_body_has_a_least_pace() {
        let begun = Instant::now();
        let at = |s: u64| begun + Duration::from_secs(s);
        let mut pace = Pace::new(begun);
        assert!((0..12).all(|n| pace.keeps(at(5 * n), 8)), "a minute is given");
        assert!(!pace.keeps(at(60), 8));
        let mut pace = Pace::new(begun);
        assert!((0..1000).all(|n| pace.keeps(at(n), 256)), "a slow link");
        let mut pace = Pace::new(begun);
        assert!(
            pace.keeps(at(1), 16 * 1024) && pace.keeps(at(59 + 60), 16 * 1024),
            "a server that took nothing"
        );
    }
}
