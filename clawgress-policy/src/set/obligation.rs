//! Obligations: permits with an effect, which say how what guards allow goes on. They grant nothing, and each
//! one that matches applies. Must never take text for a limit that it could be read otherwise.

use cedar_policy_core::ast::Effect;
use cedar_policy_core::parser::Loc;

use super::syntax::{ActionConstraint, Policy};
use super::text::Source;
use crate::PolicyProblem;
use crate::host::quote;
use crate::kernel::limiter::{
    LIMIT_BURST_BYTES_DEFAULT_MIN, LIMIT_BURST_BYTES_MIN, LIMIT_BURST_S_MAX, LIMIT_BYTES_PER_HOUR_MAX,
    LIMIT_BYTES_PER_HOUR_MIN, LIMIT_COUNT_PER_HOUR_MAX, LimitAction, LimitSubject, LimitUnit, Limiter, Rate,
};
use crate::vocabulary::ActionKind;

/// Annotations of obligations.
pub(super) const ANNOTATIONS: [&str; 3] = ["effect", "limit", "per"];

/// Effects that there will be.
const EFFECTS_FUTURE: [&str; 7] =
    ["quarantine", "deny", "intercept", "transform", "allow", "alert", "log-only"];

/// Names of units, what each counts, and how many of it.
const UNITS: [(&str, LimitUnit, u64); 9] = [
    ("packets", LimitUnit::Packets, 1),
    ("connections", LimitUnit::Connections, 1),
    ("bytes", LimitUnit::Bytes, 1),
    ("kB", LimitUnit::Bytes, 1_000),
    ("MB", LimitUnit::Bytes, 1_000_000),
    ("GB", LimitUnit::Bytes, 1_000_000_000),
    ("KiB", LimitUnit::Bytes, 1 << 10),
    ("MiB", LimitUnit::Bytes, 1 << 20),
    ("GiB", LimitUnit::Bytes, 1 << 30),
];
/// Names of periods, seconds.
const PERIODS: [(&str, u32); 3] = [("second", 1), ("minute", 60), ("hour", 3_600)];

/// Reads the obligation that a policy is, if it has an effect. `None` with problems: not one that holds.
pub(super) fn read(
    policy: &Policy,
    id: &str,
    source: &Source<'_>,
    problems: &mut Vec<PolicyProblem>,
) -> Option<Limiter> {
    let start = policy.loc().map(Loc::start);
    let annotation = |name: &str| {
        let (_, found) = policy.annotations().find(|(key, _)| key.to_string() == name)?;
        Some((found.val.as_str(), found.loc.as_ref().map(Loc::start).or(start)))
    };
    let mut report = |at: Option<usize>, message: String| {
        problems.push(source.problem(Some(id), at, message));
    };
    let (limit, per) = (annotation("limit"), annotation("per"));
    let Some((effect, at)) = annotation("effect") else {
        for (name, (_, at)) in [("limit", limit), ("per", per)].into_iter().filter_map(|(n, a)| Some((n, a?)))
        {
            report(
                at,
                format!(
                    "`@{name}` says nothing without an effect: put `@effect(\"rate-limit\")` before it, or remove it"
                ),
            );
        }
        return None;
    };
    let over = match over(effect) {
        Ok(over) => over,
        Err(message) => {
            report(at, message);
            return None;
        }
    };
    let mut is_sound = true;
    let mut report = |at, message| {
        is_sound = false;
        report(at, message);
    };
    if policy.effect() == Effect::Forbid {
        report(at, "an effect is for `permit` only: it says how what is allowed goes on, and allows nothing itself: write `permit`, or remove `@effect`".to_owned());
    }
    if let Some(at) = other_action(policy) {
        report(
            at.or(start),
            format!(
                "`@effect(\"{effect}\")` is for `connect` only: write `action == Action::\"connect\"`, which counts whatever the agent sends, to the proxy too"
            ),
        );
    }
    let subject = per.map_or(Ok(LimitSubject::Agent), |(text, at)| subject(text).map_err(|m| (at, m)));
    let rate = match limit {
        None => Err((
            at,
            format!("`@effect(\"{effect}\")` needs a limit: put `@limit(\"1000 packets/second\")` after it"),
        )),
        Some((text, at)) => rate(text, over).map_err(|m| (at, m)),
    };
    let mut taken = |(at, message)| report(at, message);
    let (subject, rate) = (subject.map_err(&mut taken).ok(), rate.map_err(&mut taken).ok());
    is_sound.then(|| Some(Limiter::new(id, Rate { subject: subject?, ..rate? })))?
}

fn over(effect: &str) -> Result<LimitAction, String> {
    match effect {
        "rate-limit" => Ok(LimitAction::Drop),
        "throttle" => Ok(LimitAction::Pace),
        future if EFFECTS_FUTURE.contains(&future) => Err(format!(
            "`@effect(\"{future}\")` is not available yet, and a rule must not silently do nothing: the effects are `rate-limit` and `throttle`"
        )),
        _ => Err(format!("`{}` is not an effect: write `rate-limit` or `throttle`", quote(effect))),
    }
}

fn subject(text: &str) -> Result<LimitSubject, String> {
    match text {
        "agent" => Ok(LimitSubject::Agent),
        "workload" => Ok(LimitSubject::Workload),
        _ => Err(format!(
            "`{}` is nothing a limit can be for: write `@per(\"agent\")`, or `@per(\"workload\")`",
            quote(text)
        )),
    }
}

/// Where the scope is for other actions than `connect`, if it is.
fn other_action(policy: &Policy) -> Option<Option<usize>> {
    let uid = match policy.action_constraint() {
        ActionConstraint::Any => None,
        ActionConstraint::Eq(uid) if uid.eid().as_ref() == ActionKind::Connect.name() => return None,
        ActionConstraint::Eq(uid) => Some(uid),
        ActionConstraint::In(uids) => uids.first(),
    };
    Some(uid.and_then(|uid| uid.loc()).map(Loc::start))
}

/// `<count> <unit>/<period> [burst <count>]`.
fn rate(text: &str, over: LimitAction) -> Result<Rate, String> {
    let malformed = || {
        format!(
            "`{}` is not a limit: write `<count> <unit>/<period>` and, if you like, `burst <count>`, as in `1000 packets/second burst 2000` or `10 MB/minute`",
            quote(text)
        )
    };
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (count, what, burst) = match words.as_slice() {
        [count, what] => (*count, *what, None),
        [count, what, "burst", burst] => (*count, *what, Some(*burst)),
        _ => return Err(malformed()),
    };
    let (unit_name, period_name) = what.split_once('/').ok_or_else(malformed)?;
    let (_, unit, scale) = UNITS.into_iter().find(|(name, ..)| *name == unit_name).ok_or_else(|| {
        let known = UNITS.map(|(name, ..)| format!("`{name}`")).join(", ");
        format!("`{}` is not a unit of limits: write one of {known}", quote(unit_name))
    })?;
    let (_, period_s) = PERIODS.into_iter().find(|(name, _)| *name == period_name).ok_or_else(|| {
        format!("`{}` is not a period: write `second`, `minute` or `hour`", quote(period_name))
    })?;
    if unit == LimitUnit::Connections && over == LimitAction::Pace {
        return Err(
            "connections can't be sent later: write `@effect(\"rate-limit\")`, or limit `packets` or `bytes`"
                .to_owned(),
        );
    }
    let number = |word: &str| whole(word)?.checked_mul(scale);
    let count = number(count).ok_or_else(malformed)?;
    check_rate(unit, count, period_s)?;
    // What was just checked is far from the end of 64 bits, also in seconds and hours.
    let hour = per_hour(count, period_s);
    let burst = match burst {
        None => default_burst(unit, count, period_s),
        Some(word) => check_burst(unit, number(word).ok_or_else(malformed)?, hour)?,
    };
    Ok(Rate { unit, count, period_s, burst, subject: LimitSubject::Agent, over })
}

/// Digits only: no sign, no separator.
fn whole(word: &str) -> Option<u64> {
    word.bytes().all(|b| b.is_ascii_digit()).then(|| word.parse().ok())?
}

fn per_hour(count: u64, period_s: u32) -> u64 {
    count.saturating_mul(u64::from(LIMIT_BURST_S_MAX / period_s.max(1)))
}

fn check_rate(unit: LimitUnit, count: u64, period_s: u32) -> Result<(), String> {
    let hour = per_hour(count, period_s);
    let (range, bounds) = match unit {
        LimitUnit::Bytes => {
            (LIMIT_BYTES_PER_HOUR_MIN..=LIMIT_BYTES_PER_HOUR_MAX, "bytes pass at 1 KiB to 100 GB a second")
        }
        LimitUnit::Packets => {
            (1..=LIMIT_COUNT_PER_HOUR_MAX, "packets pass at 1 an hour to 100000000 a second")
        }
        LimitUnit::Connections => {
            (1..=LIMIT_COUNT_PER_HOUR_MAX, "connections begin at 1 an hour to 100000000 a second")
        }
    };
    if range.contains(&hour) {
        return Ok(());
    }
    let more =
        if hour < *range.start() { "a greater rate, or `forbid` to let none pass" } else { "a lower rate" };
    Err(format!("a limit can't be kept at this rate: {bounds}: write {more}"))
}

fn check_burst(unit: LimitUnit, burst: u64, hour: u64) -> Result<u64, String> {
    if unit == LimitUnit::Bytes && burst < LIMIT_BURST_BYTES_MIN {
        return Err(format!(
            "a burst of {burst} bytes would never let the largest packet pass: write at least {LIMIT_BURST_BYTES_MIN} bytes (a burst is in the unit of its rate), or none"
        ));
    }
    if burst == 0 {
        return Err("a burst of 0 lets nothing pass: write at least 1, or none".to_owned());
    }
    if burst > hour {
        return Err(format!(
            "the burst is more than passes in an hour, which is the most there may be: write at most {hour} {}",
            if unit == LimitUnit::Bytes { "bytes" } else { "(an hour's worth)" }
        ));
    }
    Ok(burst)
}

/// One second's worth, and at least what lets anything pass.
fn default_burst(unit: LimitUnit, count: u64, period_s: u32) -> u64 {
    let second = count / u64::from(period_s.max(1));
    second.max(if unit == LimitUnit::Bytes { LIMIT_BURST_BYTES_DEFAULT_MIN } else { 1 })
}
