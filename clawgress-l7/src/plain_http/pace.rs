//! How slowly a body may come, and an answer be taken: between two pieces there may be a minute, so a byte of it every minute would
//! hold a connection, and its server's, for as long as its client likes.

use std::time::Duration;

use tokio::time::Instant;

use crate::limit;

/// How long more of a request's body is waited for. One of no told length may be one side of a conversation in which the server has the
/// word, as with gRPC; but not while what it holds decides whether it goes on, and takes memory.
#[must_use]
pub const fn patience(is_web_socket: bool, is_told: bool, is_judged: bool) -> Duration {
    match (is_web_socket, is_told || is_judged) {
        (true, _) => limit::TUNNEL_IDLE,
        (false, true) => limit::BODY_READ,
        (false, false) => limit::CONVERSATION,
    }
}

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

/// The pace at which a client takes an answer. Only the time counts for which something waits for it: an answer that comes slowly,
/// or says nothing for an hour, makes nobody slow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taking {
    waited: Duration,
    bytes: usize,
}

// === impl Taking ===

impl Taking {
    /// Notes that the client took so many bytes after they had waited for it; whether that is fast enough.
    #[must_use]
    pub fn keeps(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < limit::BODY_LOOK {
            return true;
        }
        let is_kept = self.bytes >= limit::BODY_LOOK_BYTES_LEAST;
        *self = Taking::default();
        is_kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_be_quiet_is_waited_for() {
        assert_eq!(patience(false, true, false), limit::BODY_READ, "an upload");
        assert_eq!(patience(false, false, true), limit::BODY_READ, "one that is judged");
        assert_eq!(patience(false, false, false), limit::CONVERSATION);
        assert_eq!(patience(true, false, false), limit::TUNNEL_IDLE);
    }

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

    #[test]
    fn an_answer_is_taken_at_a_least_pace() {
        let seconds = Duration::from_secs;
        let mut slow = Taking::default();
        assert!((0..11).all(|_| slow.keeps(seconds(5), 8)), "a minute is given");
        assert!(!slow.keeps(seconds(5), 8));
        let mut link = Taking::default();
        assert!((0..1000).all(|_| link.keeps(seconds(1), 256)), "a slow link");
        let mut quiet = Taking::default();
        assert!(
            (0..1000).all(|_| quiet.keeps(Duration::ZERO, 1)),
            "a byte now and then, which is taken at once"
        );
    }
}
