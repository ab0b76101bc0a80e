//! Addresses found before, by name: what most requests need, without the questions for both families and the lists that the
//! resolver makes anew each time.

use std::net::IpAddr;
use std::time::Instant;

use parking_lot::RwLock;

use crate::shared::Shared;

/// Addresses of names, each until its answers end.
#[derive(Debug)]
pub(super) struct Known {
    names: RwLock<Shared<String, Addresses>>,
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
        Known { names: RwLock::new(Shared::new(names_max)) }
    }

    /// What was found for `name`, if that still holds at `now`.
    pub(super) fn get(&self, name: &str, now: Instant) -> Option<Vec<IpAddr>> {
        let names = self.names.read();
        names.find(name).filter(|addresses| now < addresses.until).map(|addresses| addresses.found.clone())
    }

    /// Keeps what was found at `now` for an agent, by its index, in its share.
    pub(super) fn keep(&self, agent: u32, name: &str, found: &[IpAddr], until: Instant, now: Instant) {
        if until > now {
            self.names.write().keep(agent, name.to_owned(), Addresses { found: found.to_vec(), until });
        }
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
        known.keep(1, "a.test", &FOUND, until, now);
        assert_eq!(known.get("a.test", now), Some(FOUND.to_vec()));
        assert_eq!(known.get("a.test", until - Duration::from_nanos(1)), Some(FOUND.to_vec()));
        assert_eq!(known.get("a.test", until), None);
        assert_eq!(known.get("b.test", now), None);
        // An answer for this once is for nobody else.
        known.keep(1, "b.test", &FOUND, now, now);
        assert_eq!(known.get("b.test", now - Duration::from_nanos(1)), None);
    }

    #[test]
    fn an_agents_flood_of_names_leaves_those_of_others() {
        let (known, now) = (Known::new(64), Instant::now());
        let until = now + Duration::from_secs(9);
        known.keep(1, "mine.test", &FOUND, until, now);
        for n in 0..1000 {
            known.keep(2, &format!("{n}.flood.test"), &FOUND, until, now);
        }
        assert_eq!(known.get("mine.test", now), Some(FOUND.to_vec()));
        assert_eq!(known.get("999.flood.test", now), Some(FOUND.to_vec()));
        assert_eq!(known.names.read().len(), 9, "its share");
    }

    #[test]
    fn who_remembers_nothing_keeps_nothing() {
        let (known, now) = (Known::new(0), Instant::now());
        known.keep(1, "a.test", &FOUND, now + Duration::from_secs(1), now);
        assert_eq!(known.get("a.test", now), None);
    }
}
