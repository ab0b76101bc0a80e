//! Answers that were found for agents, as long as they live: bounded by bytes, since agents choose what is asked, and apart
//! from what the gateway resolves for itself, which they must not push out.

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
    /// Keys in the order in which they came; the first leave first.
    order: BTreeMap<u64, Key>,
    serial: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Answer {
    found: Arc<Found>,
    since: Instant,
    until: Instant,
    bytes: usize,
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

    /// Keeps what was found, unless it lives for no time or is large.
    pub fn keep(&self, name: &str, kind: RecordType, found: &Found, now: Instant) {
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
        let answer = Answer { found: Arc::new(found.clone()), since: now, until: now + life, bytes, serial };
        kept.bytes += bytes;
        kept.order.insert(serial, key.clone());
        kept.answers.insert(key, answer);
        while kept.bytes > limit::DNS_CACHE_BYTES_MAX
            && let Some(first) = kept.order.first_key_value().map(|(_, key)| key.clone())
        {
            kept.remove(&first);
        }
    }
}

// === impl Kept ===

impl Kept {
    fn remove(&mut self, key: &Key) {
        if let Some(answer) = self.answers.remove(key) {
            self.order.remove(&answer.serial);
            self.bytes = self.bytes.saturating_sub(answer.bytes);
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
        cache.keep("a.test", RecordType::A, &found("a.test.", vec![a(60), a(20)]), now);
        let left = cache.find("a.test", RecordType::A, at(15)).expect("kept");
        assert_eq!(left.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [45, 5]);
        assert!(cache.find("a.test", RecordType::AAAA, at(15)).is_none(), "another type");
        assert!(cache.find("a.test", RecordType::A, at(20)).is_none(), "the first of them has ended");
        assert!(cache.0.lock().order.is_empty() && cache.0.lock().bytes == 0);
        cache.keep("b.test", RecordType::A, &found("b.test.", vec![a(0)]), now);
        assert!(cache.find("b.test", RecordType::A, now).is_none(), "it may be used once");
        cache.keep("c.test", RecordType::A, &found("c.test.", vec![a(u32::MAX)]), now);
        assert!(cache.find("c.test", RecordType::A, now + limit::DNS_CACHED).is_none());
        let mut none = found("d.test.", vec![]);
        cache.keep("d.test", RecordType::A, &none, now);
        assert!(cache.find("d.test", RecordType::A, now).is_none(), "nobody says for how long");
        let root = || Name::root();
        let soa = RData::SOA(SOA::new(root(), root(), 1, 1, 1, 1, 30));
        none.soa = Some(Record::from_rdata(root(), 60, soa));
        cache.keep("d.test", RecordType::A, &none, now);
        assert!(cache.find("d.test", RecordType::A, at(29)).is_some());
        assert!(cache.find("d.test", RecordType::A, at(30)).is_none());
    }

    #[test]
    fn its_bytes_are_bounded_whatever_is_asked() {
        let (cache, now) = (Cache::default(), Instant::now());
        let text = |n: usize| (60, RData::TXT(TXT::new(vec!["x".repeat(200); n])));
        let large = found("large.test.", vec![text(limit::DNS_CACHED_BYTES_MAX / 200)]);
        cache.keep("large.test", RecordType::TXT, &large, now);
        assert!(cache.find("large.test", RecordType::TXT, now).is_none());
        let each = found("x.test.", vec![text(16)]);
        let count = 2 * limit::DNS_CACHE_BYTES_MAX / 3200;
        for n in 0..count {
            cache.keep(&format!("n{n}.test"), RecordType::TXT, &each, now);
            cache.keep("again.test", RecordType::TXT, &each, now);
        }
        let kept = cache.0.lock();
        assert!(kept.bytes <= limit::DNS_CACHE_BYTES_MAX && kept.answers.len() > 1000, "{}", kept.bytes);
        assert_eq!(kept.order.len(), kept.answers.len());
        assert_eq!(kept.bytes, kept.answers.values().map(|answer| answer.bytes).sum::<usize>());
        drop(kept);
        assert!(cache.find("n0.test", RecordType::TXT, now).is_none(), "the first leaves first");
        assert!(cache.find(&format!("n{}.test", count - 1), RecordType::TXT, now).is_some());
    }
}
