//! Answers that were found for agents, as long as they live: bounded by bytes, of which each agent has a share, since agents choose
//! what is asked, and apart from what the gateway resolves for itself, which they must not push out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::rr::{RData, Record, RecordType};
use hickory_resolver::proto::serialize::binary::BinEncodable as _;
use parking_lot::Mutex;

use crate::limit;
use crate::resolve::Found;

type Key = (String, RecordType);

/// The answers.
#[derive(Debug, Default)]
pub struct Cache(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    answers: HashMap<Key, Answer>,
    /// What each agent had found, by its index. One that has nothing has no entry.
    owned: HashMap<u32, Owned>,
    serial: u64,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Owned {
    /// Keys in the order in which they came; the first leave first.
    order: BTreeMap<u64, Key>,
    bytes: usize,
}

#[derive(Debug)]
struct Answer {
    found: Arc<Found>,
    since: Instant,
    until: Instant,
    bytes: usize,
    owner: u32,
    serial: u64,
}

// === impl Cache ===

impl Cache {
    /// What was found for a name and a type, with the time that is left of it.
    #[must_use]
    pub fn find(&self, name: &str, kind: RecordType, now: Instant) -> Option<Found> {
        let key = (name.to_owned(), kind);
        let (found, age) = {
            let mut kept = self.0.lock();
            let answer = kept.answers.get(&key)?;
            if now >= answer.until {
                kept.remove(&key);
                return None;
            }
            (Arc::clone(&answer.found), now.saturating_duration_since(answer.since))
        };
        let age_s = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let mut found = Found::clone(&found);
        for record in found.answers.iter_mut().chain(&mut found.soa) {
            record.ttl = record.ttl.saturating_sub(age_s);
        }
        Some(found)
    }

    /// Keeps what was found for the agent of this index, unless it lives for no time or is large. Where its share is full, its oldest
    /// goes; where all is full, the oldest of who has most.
    pub fn keep(&self, owner: u32, name: &str, kind: RecordType, found: &Found, now: Instant) {
        let life_s = life_s(found);
        let bytes = name.len() + found.answers.iter().chain(&found.soa).map(weight).sum::<usize>();
        if life_s == 0 || bytes > limit::DNS_CACHED_BYTES_MAX {
            return;
        }
        let life = Duration::from_secs(u64::from(life_s)).min(limit::DNS_CACHED);
        let key = (name.to_owned(), kind);
        let mut kept = self.0.lock();
        kept.remove(&key);
        kept.serial += 1;
        let serial = kept.serial;
        let found = Arc::new(found.clone());
        let answer = Answer { found, since: now, until: now + life, bytes, owner, serial };
        kept.bytes += bytes;
        let own = kept.owned.entry(owner).or_default();
        own.bytes += bytes;
        own.order.insert(serial, key.clone());
        kept.answers.insert(key, answer);
        while let Some(first) = kept.leaves_first(owner) {
            kept.remove(&first);
        }
    }
}

// === impl Kept ===

impl Kept {
    /// What has to go for what was kept for `owner`.
    fn leaves_first(&self, owner: u32) -> Option<Key> {
        let own = self.owned.get(&owner).filter(|own| own.bytes > limit::DNS_CACHE_BYTES_SHARE);
        let is_full = self.bytes > limit::DNS_CACHE_BYTES_MAX;
        // As many owners as answers at most, and only of a full memory.
        let greatest = || self.owned.values().filter(|_| is_full).max_by_key(|own| own.bytes);
        own.or_else(greatest)?.order.first_key_value().map(|(_, key)| key.clone())
    }

    fn remove(&mut self, key: &Key) {
        let Some(answer) = self.answers.remove(key) else { return };
        self.bytes = self.bytes.saturating_sub(answer.bytes);
        let Some(own) = self.owned.get_mut(&answer.owner) else { return };
        own.order.remove(&answer.serial);
        own.bytes = own.bytes.saturating_sub(answer.bytes);
        if own.order.is_empty() {
            self.owned.remove(&answer.owner);
        }
    }
}

/// How long an answer lives, seconds: of one that there is none, what its zone says (RFC 2308 5).
fn life_s(found: &Found) -> u32 {
    let negative = found.soa.iter().filter(|_| found.answers.is_empty()).map(|soa| match &soa.data {
        RData::SOA(data) => soa.ttl.min(data.minimum),
        _ => 0,
    });
    found.answers.iter().map(|record| record.ttl).chain(negative).min().unwrap_or(0)
}

/// Memory that a record takes, about, bytes: itself, and what is on the wire once more for what it points to.
fn weight(record: &Record) -> usize {
    size_of::<Record>() + record.to_bytes().map_or(limit::DNS_CACHED_BYTES_MAX, |bytes| bytes.len())
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::ResponseCode;
    use hickory_resolver::proto::rr::Name;
    use hickory_resolver::proto::rr::rdata::{A, SOA, TXT};

    use super::*;

    fn found(name: &str, answers: Vec<(u32, RData)>) -> Found {
        let name = Name::from_ascii(name).expect("name");
        let record = |(ttl, data)| Record::from_rdata(name.clone(), ttl, data);
        let answers = answers.into_iter().map(record).collect();
        Found { name: name.clone(), code: ResponseCode::NoError, answers, soa: None }
    }

    fn a(ttl: u32) -> (u32, RData) {
        (ttl, RData::A(A::new(192, 0, 2, 1)))
    }

    #[test]
    fn answers_live_as_long_as_they_say_and_tell_what_is_left() {
        let (cache, now) = (Cache::default(), Instant::now());
        let at = |s| now + Duration::from_secs(s);
        cache.keep(1, "a.test", RecordType::A, &found("a.test.", vec![a(60), a(20)]), now);
        let left = cache.find("a.test", RecordType::A, at(15)).expect("kept");
        assert_eq!(left.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [45, 5]);
        assert!(cache.find("a.test", RecordType::AAAA, at(15)).is_none(), "another type");
        assert!(cache.find("a.test", RecordType::A, at(20)).is_none(), "the first of them has ended");
        assert!(cache.0.lock().owned.is_empty() && cache.0.lock().bytes == 0);
        cache.keep(1, "b.test", RecordType::A, &found("b.test.", vec![a(0)]), now);
        assert!(cache.find("b.test", RecordType::A, now).is_none(), "it may be used once");
        cache.keep(1, "c.test", RecordType::A, &found("c.test.", vec![a(u32::MAX)]), now);
        assert!(cache.find("c.test", RecordType::A, now + limit::DNS_CACHED).is_none());
        let mut none = found("d.test.", vec![]);
        cache.keep(1, "d.test", RecordType::A, &none, now);
        assert!(cache.find("d.test", RecordType::A, now).is_none(), "nobody says for how long");
        let root = || Name::root();
        let soa = RData::SOA(SOA::new(root(), root(), 1, 1, 1, 1, 30));
        none.soa = Some(Record::from_rdata(root(), 60, soa));
        cache.keep(1, "d.test", RecordType::A, &none, now);
        assert!(cache.find("d.test", RecordType::A, at(29)).is_some());
        assert!(cache.find("d.test", RecordType::A, at(30)).is_none());
    }

    #[test]
    fn its_bytes_are_bounded_whatever_is_asked() {
        let (cache, now) = (Cache::default(), Instant::now());
        let text = |n: usize| (60, RData::TXT(TXT::new(vec!["x".repeat(200); n])));
        let large = found("large.test.", vec![text(limit::DNS_CACHED_BYTES_MAX / 200)]);
        cache.keep(1, "large.test", RecordType::TXT, &large, now);
        assert!(cache.find("large.test", RecordType::TXT, now).is_none());
        let each = found("x.test.", vec![text(16)]);
        let count = 2 * limit::DNS_CACHE_BYTES_MAX / 3200;
        cache.keep(0, "mine.test", RecordType::TXT, &each, now);
        for owner in 1..12 {
            for n in 0..count {
                cache.keep(owner, &format!("n{n}.of{owner}.test"), RecordType::TXT, &each, now);
                cache.keep(owner, "again.test", RecordType::TXT, &each, now);
            }
            let kept = cache.0.lock();
            assert!(kept.bytes <= limit::DNS_CACHE_BYTES_MAX && kept.answers.len() > 500, "{}", kept.bytes);
            let own = &kept.owned[&owner];
            assert!(own.bytes <= limit::DNS_CACHE_BYTES_SHARE && own.order.len() > 300, "{}", own.bytes);
        }
        let kept = cache.0.lock();
        assert_eq!(kept.owned.values().map(|own| own.order.len()).sum::<usize>(), kept.answers.len());
        assert_eq!(kept.owned.values().map(|own| own.bytes).sum::<usize>(), kept.bytes);
        assert_eq!(kept.bytes, kept.answers.values().map(|answer| answer.bytes).sum::<usize>());
        drop(kept);
        assert!(cache.find("n0.of11.test", RecordType::TXT, now).is_none(), "the first leaves first");
        assert!(cache.find(&format!("n{}.of11.test", count - 1), RecordType::TXT, now).is_some());
        assert!(cache.find("mine.test", RecordType::TXT, now).is_some(), "who has one keeps it");
    }
}
