//! What questions of DNS that carry data look like: many names below one parent, long labels of random letters, types
//! that nobody needs to reach a host, and bytes.
//!
//! Counted by minutes, for one agent; the same questions at the same seconds give the same findings. Bounded: what
//! doesn't fit counts as over the bound.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Length of what is counted at once, seconds.
pub const WINDOW_S: i64 = 60;
/// Parents told apart for one agent in a minute; those beyond it are counted as one, which is the stricter count.
const PARENTS_MAX: usize = 64;
/// Unique names remembered are at most this many times what one parent may have: an agent asks several.
const NAMES_PARENTS: usize = 4;
/// A label from this length on is looked at: names that people choose are shorter.
const LABEL_BYTES_LONG: usize = 24;
/// Letters of base 32 have 5 bits, of hexadecimal 4; words of English about 3 at such lengths.
const ENTROPY_HUNDREDTH_BITS: u32 = 350;
/// Findings are raised at this part of what is capped: they come before it.
const FINDING_PART: u32 = 8;
/// Types that clients ask for to reach hosts and services: A, NS, CNAME, SOA, PTR, MX, AAAA, SRV, SVCB, HTTPS, CAA.
const COMMON: [u16; 11] = [1, 2, 5, 6, 12, 15, 28, 33, 64, 65, 257];

/// A question for addresses.
const KIND_A: u16 = 1;

/// Most of each in a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Unique names below one parent.
    pub names_max: u32,
    /// Questions of types that are not common (`TXT`, `NULL`, ...).
    pub uncommon_max: u32,
    /// Bytes of questions and answers together.
    pub bytes_max: u64,
}

/// What is suspicious.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// Many names below one parent.
    Names,
    /// Many long labels of random letters.
    Labels,
    /// Many questions of uncommon types.
    Types,
    /// Many bytes.
    Bytes,
}

/// What one question came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    /// What became suspicious in this minute just now.
    pub found: Vec<Finding>,
    /// What there is too much of, if there is: the question must go no further.
    pub over: Option<Finding>,
}

/// What one agent asked within a minute.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// The minute.
    window: i64,
    names: BTreeSet<u64>,
    by_parent: BTreeMap<u64, u32>,
    random_labels: u32,
    uncommon: u32,
    bytes: u64,
    told: BTreeSet<Finding>,
    /// What was told of names that are resolved for others than those who ask by DNS.
    told_of_resolved: BTreeSet<Finding>,
}

// === impl Finding ===

impl Finding {
    /// All of them.
    pub const ALL: [Finding; 4] = [Finding::Names, Finding::Labels, Finding::Types, Finding::Bytes];

    /// The stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Finding::Names => "dns_tunnel_names",
            Finding::Labels => "dns_tunnel_labels",
            Finding::Types => "dns_tunnel_types",
            Finding::Bytes => "dns_tunnel_bytes",
        }
    }
}

// === impl Watch ===

impl Watch {
    /// Takes note of a question for `name` (in lower case, without the last dot) of `bytes` bytes at `now_s`.
    pub fn asked(&mut self, now_s: i64, name: &str, kind: u16, bytes: usize, limits: &Limits) -> Noted {
        self.turn(now_s);
        let mut told = std::mem::take(&mut self.told);
        let noted = self.count(name, kind, bytes, limits, &mut told);
        self.told = told;
        noted
    }

    /// Takes note that `name` is resolved for who names it elsewhere than in a question. It counts as one for its addresses, and what
    /// that looks like is found of the next question besides.
    pub fn resolved(&mut self, now_s: i64, name: &str, limits: &Limits) -> Noted {
        self.turn(now_s);
        let mut told = std::mem::take(&mut self.told_of_resolved);
        let noted = self.count(name, KIND_A, name.len(), limits, &mut told);
        self.told_of_resolved = told;
        noted
    }

    fn count(
        &mut self,
        name: &str,
        kind: u16,
        bytes: usize,
        limits: &Limits,
        told: &mut BTreeSet<Finding>,
    ) -> Noted {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        let of_parent = self.name(name, limits);
        if !COMMON.contains(&kind) {
            self.uncommon = self.uncommon.saturating_add(1);
        }
        if name.split('.').any(is_random) {
            self.random_labels = self.random_labels.saturating_add(1);
        }
        let counts = [
            (Finding::Names, u64::from(of_parent), Some(u64::from(limits.names_max))),
            (Finding::Types, u64::from(self.uncommon), Some(u64::from(limits.uncommon_max))),
            (Finding::Bytes, self.bytes, Some(limits.bytes_max)),
            // Content networks have such names: told, and capped by what they are together.
            (Finding::Labels, u64::from(self.random_labels), None),
        ];
        let mut noted = Noted::default();
        for (finding, count, cap) in counts {
            let suspicious = cap.unwrap_or(u64::from(limits.names_max)) / u64::from(FINDING_PART);
            if count > suspicious.max(1) && told.insert(finding) {
                noted.found.push(finding);
            }
            if cap.is_some_and(|cap| count > cap) {
                noted.over.get_or_insert(finding);
            }
        }
        noted
    }

    /// Takes note of an answer.
    pub fn answered(&mut self, now_s: i64, bytes: usize) {
        self.turn(now_s);
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// Whether nothing of it counts any more.
    #[must_use]
    pub fn is_over(&self, now_s: i64) -> bool {
        self.window != now_s.div_euclid(WINDOW_S)
    }

    fn turn(&mut self, now_s: i64) {
        if self.is_over(now_s) {
            *self = Watch { window: now_s.div_euclid(WINDOW_S), ..Watch::default() };
        }
    }

    /// How many names there are below the name's parent, with this one.
    fn name(&mut self, name: &str, limits: &Limits) -> u32 {
        let mut parent = hash(parent(name));
        if !self.by_parent.contains_key(&parent) && self.by_parent.len() >= PARENTS_MAX {
            parent = 0;
        }
        let count = self.by_parent.entry(parent).or_default();
        let room = (limits.names_max as usize).saturating_mul(NAMES_PARENTS);
        let name = hash(name);
        if self.names.contains(&name) {
            return *count;
        }
        // What is over is not remembered: to ask for it again is over, too.
        if self.names.len() >= room || *count >= limits.names_max {
            return u32::MAX;
        }
        self.names.insert(name);
        *count = count.saturating_add(1);
        *count
    }
}

/// The name that somebody registered, as far as its form tells: its last two labels, or three below a country's `co`,
/// `com`, `net` and the like.
#[must_use]
pub fn parent(name: &str) -> &str {
    let mut labels = name.rsplit('.');
    let (last, second) = (labels.next().unwrap_or_default(), labels.next().unwrap_or_default());
    let is_countrys = last.len() == 2 && second.len() <= 3;
    let wanted = if is_countrys { 3 } else { 2 };
    let dots = name.rmatch_indices('.').map(|(at, _)| at);
    dots.take(wanted).nth(wanted - 1).and_then(|at| name.get(at + 1..)).unwrap_or(name)
}

/// Whether a label is long and its letters are spread as those of encoded bytes.
fn is_random(label: &str) -> bool {
    label.len() >= LABEL_BYTES_LONG && entropy(label) >= ENTROPY_HUNDREDTH_BITS
}

/// Entropy of the label's letters, hundredths of a bit each.
fn entropy(label: &str) -> u32 {
    let mut counts = BTreeMap::<u8, f64>::new();
    for byte in label.bytes() {
        *counts.entry(byte).or_default() += 1.0;
    }
    let all: f64 = counts.values().sum();
    let bits: f64 = counts.values().map(|n| n / all).map(|p| -p * p.log2()).sum();
    // At most 8 bits, so 800.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 800, rounded")]
    let hundredths = (bits * 100.0).round() as u32;
    hundredths
}

/// The same for the same text in every process.
fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { names_max: 40, uncommon_max: 16, bytes_max: 100_000 };

    #[test]
    fn parents_are_what_somebody_registered() {
        for (name, want) in [
            ("a.b.example.com", "example.com"),
            ("example.com", "example.com"),
            ("com", "com"),
            ("x.y.example.co.uk", "example.co.uk"),
            ("a.github.io", "github.io"),
            ("x.example.de", "example.de"),
            ("", ""),
        ] {
            assert_eq!(parent(name), want, "{name}");
        }
    }

    #[test]
    fn names_below_one_parent_are_told_and_then_capped() {
        let mut watch = Watch::default();
        let mut ask = |n: u32, now_s| watch.asked(now_s, &format!("h{n}.tunnel.test"), 1, 40, &LIMITS);
        for n in 0..5 {
            assert_eq!(ask(n, 60), Noted::default());
        }
        assert_eq!(ask(5, 61), Noted { found: vec![Finding::Names], over: None });
        for n in 0..40 {
            assert_eq!(ask(n, 62).over, None, "{n}: the same names count once");
        }
        assert_eq!(ask(40, 119).over, Some(Finding::Names));
        assert_eq!(ask(0, 119).over, None, "what was asked before may be asked again");
        assert_eq!(ask(41, 120), Noted::default(), "another minute");
        for n in 0..40 {
            watch.asked(180, &format!("h{n}.tunnel{n}.test"), 1, 40, &LIMITS);
        }
        assert_eq!(watch.asked(180, "h.other.test", 1, 40, &LIMITS), Noted::default(), "as many parents");
    }

    #[test]
    fn memory_is_bounded_and_what_has_no_room_is_over() {
        let mut watch = Watch::default();
        let mut over = 0;
        for n in 0..10_000 {
            let noted = watch.asked(0, &format!("h{n}.t{}.test", n % 200), 1, 0, &LIMITS);
            over += u32::from(noted.over == Some(Finding::Names));
        }
        assert!(watch.names.len() <= 160 && watch.by_parent.len() <= PARENTS_MAX + 1);
        assert!(over > 9_000, "{over}");
        assert!(watch.is_over(60) && !watch.is_over(59));
    }

    #[test]
    fn types_labels_and_bytes_are_told() {
        let mut watch = Watch::default();
        let random = "mfzwizltoq5gk3tdn5xgk4tjnzt6q2dj.tunnel.test";
        let mut found = Vec::new();
        let mut last = Noted::default();
        for n in 0..17 {
            last = watch.asked(0, random, 16, 100 + n, &LIMITS);
            found.extend(last.found.clone());
        }
        assert_eq!(found, [Finding::Types, Finding::Labels]);
        assert_eq!(last.over, Some(Finding::Types));
        let mut watch = Watch::default();
        watch.answered(0, 100_000);
        let noted = watch.asked(0, "a.test", 1, 1, &LIMITS);
        assert_eq!(noted, Noted { found: vec![Finding::Bytes], over: Some(Finding::Bytes) });
        for label in
            ["www", "this-is-the-name-of-a-service-here-here-here", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
        {
            assert!(!is_random(label) || entropy(label) < 400, "{label}: {}", entropy(label));
        }
        assert!(is_random("0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c"));
    }
}
