//! What an agent did before, as policy may ask for it: how much in the last minute, hour and day, and whether
//! something is new. Pure: it is told what happened, and when.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// What policy may ask of an agent's past, as it was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// What was decided for the agent in L7.
    #[serde(default)]
    pub requests: Counts,
    /// What of that was denied.
    #[serde(default)]
    pub denied: Counts,
    /// Whether nothing was ever allowed to where it wants to go.
    #[serde(default)]
    pub first_seen: bool,
    /// Whether one of its fingerprints changed within the last hour.
    #[serde(default)]
    pub fingerprint_changed: bool,
}

/// How often something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// In the last minute, to the second.
    #[serde(default)]
    pub minute: u64,
    /// In the last hour, to the minute.
    #[serde(default)]
    pub hour: u64,
    /// In the last day, to the hour.
    #[serde(default)]
    pub day: u64,
}

/// An attribute of `context.history`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    RequestsLastMinute,
    RequestsLastHour,
    RequestsLastDay,
    DeniedLastMinute,
    DeniedLastHour,
    DeniedLastDay,
    FirstSeen,
    FingerprintChanged,
}

/// The value of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    Long(i64),
    Bool(bool),
}

/// How much one agent asked for, as it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Past {
    requests: Windows,
    denied: Windows,
}

/// Counts of one kind of thing over three windows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Windows {
    minute: Window,
    hour: Window,
    day: Window,
}

/// Counts in as many slots as the window is long: the last of them is the one that is not over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Window {
    /// Length of a slot, seconds.
    slot_s: i64,
    /// How many there are.
    slots: usize,
    /// Number of the newest, by Unix time.
    newest: i64,
    /// The newest last; those that are missing before are empty.
    counts: VecDeque<u64>,
}

// === impl History ===

impl History {
    /// Nothing happened before, and nothing is new: what is supposed where nobody says otherwise.
    pub const QUIET: History = {
        let none = Counts { minute: 0, hour: 0, day: 0 };
        History { requests: none, denied: none, first_seen: false, fingerprint_changed: false }
    };

    pub(crate) fn fact(&self, field: Field) -> Fact {
        let long = |count| Fact::Long(i64::try_from(count).unwrap_or(i64::MAX));
        match field {
            Field::RequestsLastMinute => long(self.requests.minute),
            Field::RequestsLastHour => long(self.requests.hour),
            Field::RequestsLastDay => long(self.requests.day),
            Field::DeniedLastMinute => long(self.denied.minute),
            Field::DeniedLastHour => long(self.denied.hour),
            Field::DeniedLastDay => long(self.denied.day),
            Field::FirstSeen => Fact::Bool(self.first_seen),
            Field::FingerprintChanged => Fact::Bool(self.fingerprint_changed),
        }
    }
}

// === impl Field ===

impl Field {
    /// The attribute of the context that holds them all.
    pub(crate) const RECORD: &str = "history";

    pub(crate) const ALL: [Field; 8] = [
        Field::RequestsLastMinute,
        Field::RequestsLastHour,
        Field::RequestsLastDay,
        Field::DeniedLastMinute,
        Field::DeniedLastHour,
        Field::DeniedLastDay,
        Field::FirstSeen,
        Field::FingerprintChanged,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Field::RequestsLastMinute => "requests_last_minute",
            Field::RequestsLastHour => "requests_last_hour",
            Field::RequestsLastDay => "requests_last_day",
            Field::DeniedLastMinute => "denied_last_minute",
            Field::DeniedLastHour => "denied_last_hour",
            Field::DeniedLastDay => "denied_last_day",
            Field::FirstSeen => "first_seen",
            Field::FingerprintChanged => "fingerprint_changed",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Field> {
        Field::ALL.into_iter().find(|field| field.name() == name)
    }
}

// === impl Past ===

impl Past {
    /// Counts what was decided at `now_s` (Unix, seconds).
    pub fn note(&mut self, is_denied: bool, now_s: i64) {
        self.requests.add(now_s);
        if is_denied {
            self.denied.add(now_s);
        }
    }

    /// What was decided, and what of that was denied, in the windows that end at `now_s` (Unix, seconds).
    #[must_use]
    pub fn counts(&self, now_s: i64) -> (Counts, Counts) {
        (self.requests.counts(now_s), self.denied.counts(now_s))
    }
}

// === impl Windows ===

impl Default for Windows {
    fn default() -> Self {
        Windows { minute: Window::new(60, 1), hour: Window::new(60, 60), day: Window::new(24, 3600) }
    }
}

impl Windows {
    fn add(&mut self, now_s: i64) {
        for window in [&mut self.minute, &mut self.hour, &mut self.day] {
            window.add(now_s);
        }
    }

    fn counts(&self, now_s: i64) -> Counts {
        Counts { minute: self.minute.sum(now_s), hour: self.hour.sum(now_s), day: self.day.sum(now_s) }
    }
}

// === impl Window ===

impl Window {
    fn new(slots: usize, slot_s: i64) -> Self {
        Window { slot_s, slots, newest: 0, counts: VecDeque::new() }
    }

    fn slot(&self, now_s: i64) -> i64 {
        now_s.div_euclid(self.slot_s)
    }

    fn add(&mut self, now_s: i64) {
        let slot = self.slot(now_s);
        let newer = usize::try_from(slot.saturating_sub(self.newest)).unwrap_or(0);
        let older = usize::try_from(self.newest.saturating_sub(slot)).unwrap_or(0);
        // A clock that was ahead by more than the window, and is set right, begins anew: nothing would age till then.
        if newer >= self.slots || older > self.slots || self.counts.is_empty() {
            self.counts.clear();
            self.counts.push_back(0);
            self.newest = slot;
        } else {
            for _ in 0..newer {
                self.counts.push_back(0);
            }
            self.newest += i64::try_from(newer).unwrap_or(0);
            while self.counts.len() > self.slots {
                self.counts.pop_front();
            }
        }
        // Where the clock went back, what happens counts as of the latest time that was seen.
        if let Some(count) = self.counts.back_mut() {
            *count = count.saturating_add(1);
        }
    }

    fn sum(&self, now_s: i64) -> u64 {
        let slot = self.slot(now_s);
        if self.newest.saturating_sub(slot) > i64::try_from(self.slots).unwrap_or(i64::MAX) {
            return 0;
        }
        let past = usize::try_from(slot.saturating_sub(self.newest)).unwrap_or(0);
        // The newest slot is `past` slots old.
        let keep = self.slots.saturating_sub(past);
        self.counts.iter().rev().take(keep).fold(0, |sum, count| sum.saturating_add(*count))
    }
}
