//! Addresses found before, by name: what most requests need, without the questions for both families and the lists that the
//! resolver makes anew each time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use parking_lot::RwLock;

/// Addresses of names, each until its answers end.
#[derive(Debug)]
pub(super) struct Known {
    names_max: usize,
    names: RwLock<HashMap<String, Addresses>>,
}

#[derive(Debug)]
struct Addresses {
    found: Vec<IpAddr>,
    until: Instant,
}

// === impl Known ===

impl Known {
    /// Room for so many names.
    pub(super) fn new(names_max: usize) -> Self {
        Known { names_max, names: RwLock::default() }
    }

    /// What was found for `name`, if that still holds at `now`.
    pub(super) fn get(&self, name: &str, now: Instant) -> Option<Vec<IpAddr>> {
        let names = self.names.read();
        names.get(name).filter(|addresses| now < addresses.until).map(|addresses| addresses.found.clone())
    }

    /// Keeps what was found at `now`; where there is no room, what has ended goes, and if nothing has, all.
    pub(super) fn keep(&self, name: &str, found: &[IpAddr], until: Instant, now: Instant) {
        if self.names_max == 0 || until <= now {
            return;
        }
        let mut names = self.names.write();
        if names.len() >= self.names_max && !names.contains_key(name) {
            names.retain(|_, addresses| now < addresses.until);
            if names.len() >= self.names_max {
                names.clear();
            }
        }
        names.insert(name.to_owned(), Addresses { found: found.to_vec(), until });
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    const FOUND: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10))];

    #[test]
    fn what_was_found_holds_until_it_ends() {
        let (known, now) = (Known::new(2), Instant::now());
        let until = now + Duration::from_secs(30);
        known.keep("a.test", &FOUND, until, now);
        assert_eq!(known.get("a.test", now), Some(FOUND.to_vec()));
        assert_eq!(known.get("a.test", until - Duration::from_nanos(1)), Some(FOUND.to_vec()));
        assert_eq!(known.get("a.test", until), None);
        assert_eq!(known.get("b.test", now), None);
        // An answer for this once is for nobody else.
        known.keep("b.test", &FOUND, now, now);
        assert_eq!(known.get("b.test", now - Duration::from_nanos(1)), None);
    }

    #[test]
    fn names_are_bounded_and_those_that_ended_go_first() {
        let (known, now) = (Known::new(2), Instant::now());
        let (soon, late) = (now + Duration::from_secs(1), now + Duration::from_secs(9));
        known.keep("soon.test", &FOUND, soon, now);
        known.keep("late.test", &FOUND, late, now);
        known.keep("next.test", &FOUND, late, soon);
        assert_eq!(known.get("late.test", soon), Some(FOUND.to_vec()));
        assert_eq!(known.get("next.test", soon), Some(FOUND.to_vec()));
        known.keep("more.test", &FOUND, late, soon);
        assert_eq!(known.get("more.test", soon), Some(FOUND.to_vec()));
        assert!(known.names.read().len() <= 2);
    }

    #[test]
    fn who_remembers_nothing_keeps_nothing() {
        let (known, now) = (Known::new(0), Instant::now());
        known.keep("a.test", &FOUND, now + Duration::from_secs(1), now);
        assert_eq!(known.get("a.test", now), None);
    }
}
