//! What the log is told of each agent once in a while, however often it happens: nobody can fill the log.
//!
//! Must never be where something is recorded: each exchange has records of its own.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::time::Instant;

use parking_lot::Mutex;

use crate::{accept, limit};

/// When the log was told last, of each agent by its index, or of each source.
#[derive(Debug, Default)]
pub struct Told(Mutex<HashMap<u32, Last>>, RandomState);

#[derive(Debug)]
struct Last {
    at: Instant,
    /// What it was not told since.
    untold: u64,
}

// === impl Told ===

impl Told {
    /// As [`turn`](Self::turn), of a source, where it is not known whose it is. Two that can't be told apart take one turn.
    pub fn turn_of(&self, source: IpAddr, now: Instant) -> Option<u64> {
        let [a, b, c, d, ..] = self.1.hash_one(accept::source(source)).to_be_bytes();
        self.turn(u32::from_be_bytes([a, b, c, d]), now)
    }

    /// The same of one of several things that happen to `agent`, by its name: each of an agent's takes turns of its own.
    pub fn turn_by(&self, agent: u32, name: &str, now: Instant) -> Option<u64> {
        let [a, b, c, d, ..] = self.1.hash_one((agent, name)).to_be_bytes();
        self.turn(u32::from_be_bytes([a, b, c, d]), now)
    }

    /// Whether the log is told, at `now`, of what happens to `agent`: if so, of how much of that it was not told since it was told
    /// last. It is told within [`limit::TOLD`] once of each, and of [`limit::TOLD_MAX`] at most.
    pub fn turn(&self, agent: u32, now: Instant) -> Option<u64> {
        let mut all = self.0.lock();
        let is_over = |last: &Last| now.saturating_duration_since(last.at) >= limit::TOLD;
        if let Some(last) = all.get_mut(&agent) {
            if !is_over(last) {
                last.untold += 1;
                return None;
            }
            let untold = last.untold;
            *last = Last { at: now, untold: 0 };
            return Some(untold);
        }
        if all.len() >= limit::TOLD_MAX {
            all.retain(|_, last| !is_over(last));
        }
        if all.len() >= limit::TOLD_MAX {
            return None;
        }
        all.insert(agent, Last { at: now, untold: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_agent_is_told_of_once_in_a_while() {
        let (told, began) = (Told::default(), Instant::now());
        let mut lines = Vec::new();
        for s in 0..25 {
            for _ in 0..100 {
                lines.extend(told.turn(1, began + Duration::from_secs(s)));
            }
        }
        assert_eq!(lines, [0, 999, 999], "all of it is counted");
        assert_eq!(told.turn(2, began), Some(0), "another agent's is told at once");
    }

    #[test]
    fn each_thing_that_happens_to_an_agent_is_told_of_by_itself() {
        let (told, now) = (Told::default(), Instant::now());
        assert_eq!(told.turn_by(1, "one", now), Some(0));
        assert_eq!(told.turn_by(1, "one", now), None);
        assert_eq!(told.turn_by(1, "other", now), Some(0), "the first does not hide it");
        assert_eq!(told.turn_by(2, "one", now), Some(0));
        assert_eq!(told.turn_by(1, "one", now + limit::TOLD), Some(1));
    }

    #[test]
    fn a_source_is_told_of_once_in_a_while_by_whichever_of_its_addresses() {
        let (told, now) = (Told::default(), Instant::now());
        let ip = |text: &str| text.parse().expect("address");
        assert_eq!(told.turn_of(ip("2001:db8::1"), now), Some(0));
        assert_eq!(told.turn_of(ip("2001:db8::2"), now), None, "a host has all of its network");
        assert_eq!(told.turn_of(ip("192.0.2.1"), now), Some(0));
        assert_eq!(told.turn_of(ip("192.0.2.1"), now + limit::TOLD), Some(0));
        assert_eq!(told.turn_of(ip("2001:db8::1"), now + limit::TOLD), Some(1));
    }

    #[test]
    fn many_agents_are_told_of_no_more_than_a_few() {
        let (told, began) = (Told::default(), Instant::now());
        let lines = |at: Instant| (0..10_000).filter(|agent| told.turn(*agent, at).is_some()).count();
        assert_eq!((lines(began), lines(began)), (limit::TOLD_MAX, 0));
        assert_eq!(told.0.lock().len(), limit::TOLD_MAX);
        assert_eq!(lines(began + limit::TOLD), limit::TOLD_MAX, "later they are");
    }
}
