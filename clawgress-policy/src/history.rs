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
    /// Whether it asks for much more than is usual for it: see [`Past::anomalies`].
    #[serde(default)]
    pub request_surge: bool,
    /// Whether it is denied at every turn: see [`Past::anomalies`].
    #[serde(default)]
    pub denial_burst: bool,
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
    RequestSurge,
    DenialBurst,
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
    #[serde(default)]
    usual: Usual,
}

/// A surge is more than this many decisions in the last hour,
const SURGE_LEAST: u64 = 100;
/// and more than so many times what is usual.
const SURGE_TIMES: u64 = 4;
/// What is usual at an hour of the day is known once it was seen on so many days.
const USUAL_DAYS_LEAST: u32 = 3;
/// After so many hours without any decision, nothing is usual any more: two weeks.
const USUAL_HOURS_MAX: i64 = 14 * HOURS as i64;
/// A burst is at least so many denials in the last minute, and at least half of what was decided in it.
const BURST_LEAST: u64 = 20;
/// Hours of a day, and seconds of an hour.
const HOURS: usize = 24;
const HOUR_S: i64 = 3_600;
/// Averages are kept in parts of one, so that each step is the same everywhere.
const PARTS: u64 = 1_024;

/// What is decided for an agent in an hour as a rule, by the hour of the day (UTC): an average over its days, in which the
/// last one counts a quarter (exponentially weighted).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Usual {
    /// The hour that is not over, by Unix time, and what was decided in it; `None` before the first.
    current: Option<(i64, u64)>,
    /// By hour of the day.
    averages: [Average; HOURS],
    /// That of the hour before the current one, without what was decided in that hour.
    before: Average,
}

/// An average, and of how many days.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Average {
    parts: u64,
    days: u32,
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
        History {
            requests: none,
            denied: none,
            first_seen: false,
            fingerprint_changed: false,
            request_surge: false,
            denial_burst: false,
        }
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
            Field::RequestSurge => Fact::Bool(self.request_surge),
            Field::DenialBurst => Fact::Bool(self.denial_burst),
        }
    }
}

// === impl Field ===

impl Field {
    /// The attribute of the context that holds them all.
    pub(crate) const RECORD: &str = "history";

    pub(crate) const ALL: [Field; 10] = [
        Field::RequestsLastMinute,
        Field::RequestsLastHour,
        Field::RequestsLastDay,
        Field::DeniedLastMinute,
        Field::DeniedLastHour,
        Field::DeniedLastDay,
        Field::FirstSeen,
        Field::FingerprintChanged,
        Field::RequestSurge,
        Field::DenialBurst,
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
            Field::RequestSurge => "request_surge",
            Field::DenialBurst => "denial_burst",
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
        self.usual.add(now_s);
        if is_denied {
            self.denied.add(now_s);
        }
    }

    /// Whether there is a surge at `now_s` (Unix, seconds): in the last hour (to the minute) more than [`SURGE_LEAST`]
    /// decisions, and more than [`SURGE_TIMES`] times what is usual at this hour of the day and at the one before, whichever
    /// is more. And whether there is a burst of denials: in the last minute [`BURST_LEAST`] at least, and half of all.
    #[must_use]
    pub fn anomalies(&self, now_s: i64) -> (bool, bool) {
        let (requests, denied) = self.counts(now_s);
        let usual = self.usual.parts_at(now_s);
        let limit = usual.map(|parts| parts.saturating_mul(SURGE_TIMES));
        let is_surge = requests.hour > SURGE_LEAST
            && limit.is_some_and(|limit| requests.hour.saturating_mul(PARTS) > limit);
        let is_burst = denied.minute >= BURST_LEAST && denied.minute.saturating_mul(2) >= requests.minute;
        (is_surge, is_burst)
    }

    /// What was decided, and what of that was denied, in the windows that end at `now_s` (Unix, seconds).
    #[must_use]
    pub fn counts(&self, now_s: i64) -> (Counts, Counts) {
        (self.requests.counts(now_s), self.denied.counts(now_s))
    }
}

// === impl Usual ===

impl Usual {
    fn add(&mut self, now_s: i64) {
        self.advance(now_s);
        if let Some((_, count)) = &mut self.current {
            *count = count.saturating_add(1);
        }
    }

    /// Takes in the hours that are over. Where the clock went back, what happens counts as of the latest hour; by more than
    /// a day, it was wrong, and all is begun anew.
    fn advance(&mut self, now_s: i64) {
        let now = now_s.div_euclid(HOUR_S);
        let Some((mut hour, mut count)) = self.current else {
            self.current = Some((now, 0));
            return;
        };
        if now.saturating_sub(hour) > USUAL_HOURS_MAX || hour.saturating_sub(now) > HOURS as i64 {
            *self = Usual { current: Some((now, 0)), ..Usual::default() };
            return;
        }
        while hour < now {
            self.end(hour, count);
            (hour, count) = (hour + 1, 0);
        }
        self.current = Some((hour, count));
    }

    fn end(&mut self, hour: i64, count: u64) {
        let Some(average) = self.averages.get_mut(of_day(hour)) else { return };
        self.before = *average;
        let parts = count.saturating_mul(PARTS);
        average.parts = if average.days == 0 { parts } else { average.parts - average.parts / 4 + parts / 4 };
        average.days = average.days.saturating_add(1);
    }

    /// What is usual at this hour or at the one before, if both are known.
    fn parts_at(&self, now_s: i64) -> Option<u64> {
        let mut then = self.clone();
        then.advance(now_s);
        let (hour, _) = then.current?;
        let both = [then.averages.get(of_day(hour))?, &then.before];
        both.iter().all(|a| a.days >= USUAL_DAYS_LEAST).then(|| both.map(|a| a.parts).into_iter().max())?
    }
}

/// The hour of the day that an hour by Unix time is.
fn of_day(hour: i64) -> usize {
    usize::try_from(hour.rem_euclid(HOURS as i64)).unwrap_or(0)
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
