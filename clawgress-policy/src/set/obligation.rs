//! Obligations: permits with an effect, which say how what guards allow goes on. They grant nothing, and each
//! one that matches applies. Must never take text for a limit that it could be read otherwise.

use cedar_policy_core::ast::Effect as Verdict;
use cedar_policy_core::parser::Loc;

use super::parse::applies;
use super::syntax::{ActionConstraint, Policy};
use super::text::Source;
use crate::PolicyProblem;
use crate::effect::{Effect, Limit, Obligation, Severity, Share};
use crate::host::quote;
use crate::kernel::limiter::{
    LIMIT_BURST_BYTES_DEFAULT_MIN, LIMIT_BURST_BYTES_MIN, LIMIT_BURST_S_MAX, LIMIT_BYTES_PER_HOUR_MAX,
    LIMIT_BYTES_PER_HOUR_MIN, LIMIT_COUNT_PER_HOUR_MAX, LimitAction, LimitSubject, LimitUnit, Limiter, Rate,
};
use crate::quota::Pace;
use crate::transform::body::{self, BodyChange};
use crate::transform::{self, Transform};
use crate::vocabulary::ActionKind;

/// Annotations of obligations.
pub(super) const ANNOTATIONS: [&str; 13] = [
    "effect",
    "limit",
    "per",
    "for",
    "severity",
    SET_HEADER,
    REMOVE_HEADER,
    INJECT,
    SET_PARAM,
    MAX_TOKENS,
    REMOVE_TOOL,
    RENAME_TOOL,
    SYSTEM_PROMPT,
];
/// Annotations of `transform`.
const SET_HEADER: &str = "set_header";
const REMOVE_HEADER: &str = "remove_header";
const INJECT: &str = "inject";
/// Those of calls of models.
const SET_PARAM: &str = "set_param";
const MAX_TOKENS: &str = "max_tokens";
const REMOVE_TOOL: &str = "remove_tool";
const RENAME_TOOL: &str = "rename_tool";
const SYSTEM_PROMPT: &str = "system_prompt";
const OF_CALLS: [&str; 5] = [SET_PARAM, MAX_TOKENS, REMOVE_TOOL, RENAME_TOOL, SYSTEM_PROMPT];

/// The annotation of a guard that is tried out, and what it says.
pub(super) const MODE: &str = "mode";
const MODE_LOG_ONLY: &str = "log-only";

/// Effects there are.
const EFFECTS: &str = "`rate-limit`, `throttle`, `quarantine`, `intercept`, `transform` and `alert`";
/// Effects that there will be.
const EFFECTS_FUTURE: [&str; 1] = ["allow"];
/// What a guard says.
const EFFECT_OF_GUARDS: &str = "deny";

/// Names of units, what each counts, and how many of it.
const UNITS: [(&str, Unit, u64); 10] = [
    ("packets", Unit::Kernel(LimitUnit::Packets), 1),
    ("connections", Unit::Kernel(LimitUnit::Connections), 1),
    ("bytes", Unit::Kernel(LimitUnit::Bytes), 1),
    ("kB", Unit::Kernel(LimitUnit::Bytes), 1_000),
    ("MB", Unit::Kernel(LimitUnit::Bytes), 1_000_000),
    ("GB", Unit::Kernel(LimitUnit::Bytes), 1_000_000_000),
    ("KiB", Unit::Kernel(LimitUnit::Bytes), 1 << 10),
    ("MiB", Unit::Kernel(LimitUnit::Bytes), 1 << 20),
    ("GiB", Unit::Kernel(LimitUnit::Bytes), 1 << 30),
    ("requests", Unit::Requests, 1),
];
/// Names of periods, seconds.
const PERIODS: [(&str, u32); 3] = [("second", 1), ("minute", 60), ("hour", 3_600)];
/// Names of units of time in `@for`, seconds.
const TIMES: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400)];
/// Longest `@for`, seconds: what is meant longer has no end.
const FOR_S_MAX: u64 = 366 * 86_400;

/// Who keeps an obligation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obliged {
    /// The kernel plane: a rate limit of `connect`.
    Kernel(Limiter),
    /// The proxy.
    L7(Obligation),
    /// Control, by what the planes tell of each `connect` and `direct`: an alert, or a quarantine.
    Told(Obligation),
    /// A guard that only logs: it is told what it would have said.
    Logged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Kernel(LimitUnit),
    Requests,
}

/// What `@limit` says.
#[derive(Clone, Copy, Debug)]
struct Written {
    unit: Unit,
    count: u64,
    period_s: u32,
    burst: u64,
}

/// Which plane decides the actions of an obligation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Kernel,
    L7,
    /// Where records of `connect` and `direct` are gathered.
    Told,
}

/// An effect by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Limit(LimitAction),
    Quarantine,
    Intercept,
    Transform,
    Alert,
}

/// The text of an annotation, and where it is.
type Found<'a> = (&'a str, Option<usize>);

/// A problem and where it is.
type Trouble = (Option<usize>, String);

/// Reads the obligation that a policy is, if it has an effect: `id` is what its text calls it, `name` what decisions do.
/// `None` with problems: not one that holds.
pub(super) fn read(
    policy: &Policy,
    (id, name): (&str, &str),
    source: &Source<'_>,
    problems: &mut Vec<PolicyProblem>,
) -> Option<Obliged> {
    let start = policy.loc().map(Loc::start);
    let find = |wanted: &str| -> Option<Found<'_>> {
        let (_, found) = policy.annotations().find(|(key, _)| key.to_string() == wanted)?;
        Some((found.val.as_str(), found.loc.as_ref().map(Loc::start).or(start)))
    };
    let mut troubles = Vec::new();
    let obliged = match find("effect") {
        None if find(MODE).is_some() => {
            let mode = find(MODE).and_then(|mode| logged(policy, mode, &mut troubles));
            let more = ANNOTATIONS.into_iter().filter_map(|name| Some((name, find(name)?.1)));
            troubles.extend(more.map(|(name, at)| (at, alone_says_nothing(name))));
            mode
        }
        None => {
            let alone = ANNOTATIONS.into_iter().filter_map(|name| Some((name, find(name)?.1)));
            troubles.extend(alone.map(|(name, at)| (at, alone_says_nothing(name))));
            None
        }
        Some(effect) => {
            if let Some((_, at)) = find(MODE) {
                let message = "`@mode` is for guards, and a policy with an effect is none: remove it; to try a limit out, write `@effect(\"alert\")`";
                troubles.push((at, message.to_owned()));
            }
            obliged(policy, name, effect, &find, &mut troubles)
        }
    };
    let is_sound = troubles.is_empty();
    problems
        .extend(troubles.into_iter().map(|(at, message)| source.problem(Some(id), at.or(start), message)));
    obliged.filter(|_| is_sound)
}

/// A guard that only logs.
fn logged(policy: &Policy, (mode, at): Found<'_>, troubles: &mut Vec<Trouble>) -> Option<Obliged> {
    if mode != MODE_LOG_ONLY {
        let message = format!("`{}` is not a mode: the only one is `{MODE_LOG_ONLY}`", quote(mode));
        troubles.push((at, message));
        return None;
    }
    let actions = actions_of(policy);
    if actions == [ActionKind::Direct] && policy.effect() == Verdict::Permit {
        let message = "a `permit` of `direct` on trial would tell nothing: what goes direct is permitted already, and of what does not nobody tells whether it would; see what would change with `clawgressctl policy diff`";
        troubles.push((action_place(policy).or(at), message.to_owned()));
        return None;
    }
    let is_told = matches!(actions[..], [ActionKind::Connect] | [ActionKind::Direct]);
    if !is_told && actions.into_iter().any(ActionKind::is_of_addresses) {
        let message = "`@mode(\"log-only\")` is either for `connect` alone, for a `forbid` of `direct` alone, or for what the proxy decides: write `action == Action::\"connect\"`, or such actions as `Action::\"http\"`, `\"tls\"` or `\"tunnel\"` in the scope";
        troubles.push((action_place(policy).or(at), message.to_owned()));
        return None;
    }
    Some(Obliged::Logged)
}

fn alone_says_nothing(name: &str) -> String {
    format!(
        "`@{name}` says nothing without an effect: put `@effect(\"…\")` before it ({EFFECTS}), or remove it"
    )
}

fn obliged<'a>(
    policy: &Policy,
    id: &str,
    (effect, at): Found<'_>,
    find: &dyn Fn(&str) -> Option<Found<'a>>,
    troubles: &mut Vec<Trouble>,
) -> Option<Obliged> {
    let kind = kind(effect).map_err(|message| troubles.push((at, message))).ok()?;
    if policy.effect() == Verdict::Forbid {
        troubles.push((at, "an effect is for `permit` only: it says how what is allowed goes on, and allows nothing itself: write `permit`, or remove `@effect`".to_owned()));
    }
    let (is_limit, is_transform) = (matches!(kind, Kind::Limit(_)), kind == Kind::Transform);
    for (name, of, is_wanted) in [
        ("limit", "a limit", is_limit),
        ("per", "a limit", is_limit),
        ("for", "`quarantine`", kind == Kind::Quarantine),
        (SET_HEADER, "`transform`", is_transform),
        (REMOVE_HEADER, "`transform`", is_transform),
        (INJECT, "`transform`", is_transform),
        (SET_PARAM, "`transform`", is_transform),
        (MAX_TOKENS, "`transform`", is_transform),
        (REMOVE_TOOL, "`transform`", is_transform),
        (RENAME_TOOL, "`transform`", is_transform),
        (SYSTEM_PROMPT, "`transform`", is_transform),
    ] {
        if let Some((_, at)) = find(name).filter(|_| !is_wanted) {
            troubles.push((at, format!("`@{name}` is for {of}, and `{effect}` is none: remove it")));
        }
    }
    let place = place(policy, kind, effect)
        .map_err(|message| troubles.push((action_place(policy).or(at), message)))
        .ok()?;
    let severity =
        find("severity").map_or(Ok(Severity::Medium), |(text, at)| severity(text).map_err(|m| (at, m)));
    let severity = severity.map_err(|trouble| troubles.push(trouble)).ok();
    if let Some((_, at)) = find("severity").filter(|_| place == Place::Kernel) {
        troubles.push((
            at,
            "`@severity` is for what the proxy tells: a limit in the kernel has none: remove it".to_owned(),
        ));
    }
    if let Some((_, at)) = find("severity").filter(|_| matches!(kind, Kind::Intercept | Kind::Transform)) {
        troubles.push((at, format!("`@severity` is for what is told, and `{effect}` is done: remove it")));
    }
    let effect = match kind {
        Kind::Alert => Effect::Alert,
        Kind::Intercept => Effect::Intercept,
        Kind::Transform => {
            let is_of_calls = actions_of(policy) == [ActionKind::Llm];
            Effect::Transform(transform(at, is_of_calls, find, troubles)?)
        }
        Kind::Quarantine => {
            let seconds = find("for").map(|(text, at)| time(text).map_err(|message| (at, message)));
            Effect::Quarantine(seconds.transpose().map_err(|trouble| troubles.push(trouble)).ok()?)
        }
        Kind::Limit(over) => match limit(id, over, place, at, effect, find, troubles)? {
            Kept::Kernel(limiter) => return Some(Obliged::Kernel(limiter)),
            Kept::L7(limit) => Effect::Limit(limit),
        },
    };
    let obligation = Obligation { policy: id.into(), effect, severity: severity? };
    Some(if place == Place::Told { Obliged::Told(obligation) } else { Obliged::L7(obligation) })
}

enum Kept {
    Kernel(Limiter),
    L7(Limit),
}

fn limit<'a>(
    id: &str,
    over: LimitAction,
    place: Place,
    at: Option<usize>,
    effect: &str,
    find: &dyn Fn(&str) -> Option<Found<'a>>,
    troubles: &mut Vec<Trouble>,
) -> Option<Kept> {
    let example = match place {
        Place::Kernel => "1000 packets/second",
        Place::L7 | Place::Told => "60 requests/minute",
    };
    let written = match find("limit") {
        None => {
            Err((at, format!("`@effect(\"{effect}\")` needs a limit: put `@limit(\"{example}\")` after it")))
        }
        Some((text, at)) => rate(text, over, place).map_err(|message| (at, message)),
    };
    let per = find("per").unwrap_or(("agent", at));
    let (subject, share) = match place {
        Place::Kernel => (subject(per.0).map(Some), Ok(None)),
        Place::L7 | Place::Told => (Ok(None), share(per.0).map(Some)),
    };
    let mut taken = |message| troubles.push((per.1, message));
    let (subject, share) = (subject.map_err(&mut taken).ok()?, share.map_err(&mut taken).ok()?);
    let Written { unit, count, period_s, burst } = written.map_err(|trouble| troubles.push(trouble)).ok()?;
    match (unit, subject, share) {
        (Unit::Kernel(unit), Some(subject), _) => {
            Some(Kept::Kernel(Limiter::new(id, Rate { unit, count, period_s, burst, subject, over })))
        }
        (_, _, Some(share)) => Some(Kept::L7(Limit::new(id, Pace { count, period_s, burst }, share, over))),
        _ => None,
    }
}

/// What a transform changes.
fn transform<'a>(
    at: Option<usize>,
    is_of_calls: bool,
    find: &dyn Fn(&str) -> Option<Found<'a>>,
    troubles: &mut Vec<Trouble>,
) -> Option<Transform> {
    let known = [SET_HEADER, REMOVE_HEADER, INJECT].into_iter().chain(OF_CALLS);
    if !{ known }.any(|name| find(name).is_some()) {
        let message = "`@effect(\"transform\")` needs what it changes: put `@set_header(\"Name: value\")`, `@remove_header(\"Name\")` or `@inject(\"Name: {key}\")` after it, of calls of models (`Action::\"llm\"`) also `@set_param`, `@max_tokens`, `@remove_tool`, `@rename_tool` or `@system_prompt`, one of each at most";
        troubles.push((at, message.to_owned()));
        return None;
    }
    let before = troubles.len();
    for name in OF_CALLS {
        if let Some((_, at)) = find(name).filter(|_| !is_of_calls) {
            let message = format!("`@{name}` changes calls of models: write `action == Action::\"llm\"`");
            troubles.push((at, message));
        }
    }
    let change = Transform {
        remove: read_by(REMOVE_HEADER, transform::removed, find, troubles),
        set: read_by(SET_HEADER, transform::assigned, find, troubles),
        inject: read_by(INJECT, transform::injected, find, troubles),
        body: BodyChange {
            param: read_by(SET_PARAM, body::param, find, troubles),
            tokens_max: read_by(MAX_TOKENS, body::tokens_max, find, troubles),
            tool: read_by(REMOVE_TOOL, body::tool, find, troubles),
            rename: read_by(RENAME_TOOL, body::rename, find, troubles),
            prompt: read_by(SYSTEM_PROMPT, body::prompt, find, troubles),
        },
    };
    let set = change.set.iter().map(|(name, _)| name);
    let written: Vec<_> = set.chain(change.inject.iter().map(|(name, _)| name)).collect();
    if let Some(twice) = change.remove.as_ref().filter(|removed| written.contains(removed)) {
        let message = format!("`{twice}` is taken away and set: what is set replaces it by itself");
        troubles.push((find(REMOVE_HEADER).and_then(|(_, at)| at), message));
    }
    if let BodyChange { tool: Some(gone), rename: Some((own, _)), .. } = &change.body
        && gone == own
    {
        let message = format!("`{own}` is taken away and renamed: remove one of the two");
        troubles.push((find(RENAME_TOOL).and_then(|(_, at)| at), message));
    }
    if let [one, other] = &written[..]
        && one == other
    {
        troubles.push((find(INJECT).and_then(|(_, at)| at), format!("`{one}` is set twice")));
    }
    // What is wrong with one of them is told; the policy does not hold then.
    (troubles.len() == before).then_some(change)
}

/// What an annotation says, if it is there; what is wrong with it is told.
fn read_by<'a, T>(
    name: &str,
    read: impl Fn(&str) -> Result<T, String>,
    find: &dyn Fn(&str) -> Option<Found<'a>>,
    troubles: &mut Vec<Trouble>,
) -> Option<T> {
    let (text, at) = find(name)?;
    read(text).map_err(|message| troubles.push((at, message))).ok()
}

fn kind(effect: &str) -> Result<Kind, String> {
    match effect {
        "rate-limit" => Ok(Kind::Limit(LimitAction::Drop)),
        "throttle" => Ok(Kind::Limit(LimitAction::Pace)),
        "quarantine" => Ok(Kind::Quarantine),
        "intercept" => Ok(Kind::Intercept),
        "transform" => Ok(Kind::Transform),
        "alert" => Ok(Kind::Alert),
        MODE_LOG_ONLY => Err(format!(
            "to see what a guard would have said, write `@{MODE}(\"{MODE_LOG_ONLY}\")` on it, and no effect"
        )),
        EFFECT_OF_GUARDS => Err("what denies is a `forbid`: write that, without an effect".to_owned()),
        future if EFFECTS_FUTURE.contains(&future) => Err(format!(
            "`@effect(\"{future}\")` is not available yet, and a rule must not silently do nothing: the effects are {EFFECTS}"
        )),
        _ => Err(format!("`{}` is not an effect: the effects are {EFFECTS}", quote(effect))),
    }
}

fn subject(text: &str) -> Result<LimitSubject, String> {
    LimitSubject::ALL.into_iter().find(|subject| subject.name() == text).ok_or_else(|| {
        let known = LimitSubject::ALL.map(|subject| format!("`{}`", subject.name())).join(", ");
        format!("`{}` is nothing a limit of `connect` can be for: write one of {known}", quote(text))
    })
}

fn share(text: &str) -> Result<Share, String> {
    Share::ALL.into_iter().find(|share| share.name() == text).ok_or_else(|| {
        let known = Share::ALL.map(|share| format!("`{}`", share.name())).join(", ");
        format!("`{}` is nothing a limit of requests can be for: write one of {known}", quote(text))
    })
}

fn severity(text: &str) -> Result<Severity, String> {
    Severity::ALL.into_iter().find(|severity| severity.name() == text).ok_or_else(|| {
        let known = Severity::ALL.map(|severity| format!("`{}`", severity.name())).join(", ");
        format!("`{}` is not a severity: write one of {known}", quote(text))
    })
}

/// `15m`: a whole number and one of `s`, `m`, `h`, `d`.
fn time(text: &str) -> Result<u64, String> {
    let malformed = || {
        format!("`{}` is not a time: write a whole number and `s`, `m`, `h` or `d`, as in `15m`", quote(text))
    };
    let (unit, digits) =
        text.chars().last().zip(text.get(..text.len().saturating_sub(1))).ok_or_else(malformed)?;
    let (_, scale) = TIMES.into_iter().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
    let seconds = whole(digits).and_then(|n| n.checked_mul(scale)).ok_or_else(malformed)?;
    if (1..=FOR_S_MAX).contains(&seconds) {
        return Ok(seconds);
    }
    Err("a quarantine that ends by itself lasts 1 second to 366 days: leave `@for` out for one that somebody ends".to_owned())
}

/// Which plane keeps it: by the actions in its scope.
fn place(policy: &Policy, kind: Kind, effect: &str) -> Result<Place, String> {
    let actions = actions_of(policy);
    let is_kernels = |action: &ActionKind| matches!(action, ActionKind::Connect | ActionKind::Direct);
    let is_of = |own: &[ActionKind]| !actions.is_empty() && actions.iter().all(|action| own.contains(action));
    if kind == Kind::Intercept && !is_of(&[ActionKind::Tls, ActionKind::Tunnel]) {
        return Err("`@effect(\"intercept\")` is for TLS: write `action == Action::\"tls\"`, `\"tunnel\"`, or a list of the two".to_owned());
    }
    if kind == Kind::Transform && !is_of(&[ActionKind::Http, ActionKind::Llm]) {
        return Err("`@effect(\"transform\")` is for requests and calls of models: write `action == Action::\"http\"` or `\"llm\"`".to_owned());
    }
    if matches!(kind, Kind::Limit(_)) && is_of(&[ActionKind::Receive]) {
        return Err(format!(
            "`@effect(\"{effect}\")` counts requests, and `receive` is about what comes back of one: write `action == Action::\"http\"`, `\"send\"` or `\"llm\"`"
        ));
    }
    if !actions.iter().any(is_kernels) {
        return Ok(Place::L7);
    }
    if !matches!(kind, Kind::Limit(_)) {
        if matches!(actions[..], [ActionKind::Connect] | [ActionKind::Direct])
            && matches!(kind, Kind::Quarantine | Kind::Alert)
        {
            return Ok(Place::Told);
        }
        return Err(format!(
            "`@effect(\"{effect}\")` is either for `connect` or `direct` alone, of which planes tell (`action == Action::\"connect\"`), or for what the proxy decides: `action == Action::\"http\"`, `\"tls\"` or `\"tunnel\"`, or a list of them"
        ));
    }
    if actions == [ActionKind::Connect] {
        return Ok(Place::Kernel);
    }
    Err(format!(
        "`@effect(\"{effect}\")` is either for `connect` alone, which counts whatever the agent sends, to the proxy too (`action == Action::\"connect\"`), or for requests: `action == Action::\"http\"`, `\"tls\"` or `\"tunnel\"`, or a list of them"
    ))
}

/// The actions of a scope.
fn actions_of(policy: &Policy) -> Vec<ActionKind> {
    ActionKind::ALL.into_iter().filter(|action| applies(policy, *action)).collect()
}

/// Where the scope's action is written, if it is.
fn action_place(policy: &Policy) -> Option<usize> {
    let uid = match policy.action_constraint() {
        ActionConstraint::Any => None,
        ActionConstraint::Eq(uid) => Some(uid),
        ActionConstraint::In(uids) => uids.first(),
    };
    uid.and_then(|uid| uid.loc()).map(Loc::start)
}

/// `<count> <unit>/<period> [burst <count>]`.
fn rate(text: &str, over: LimitAction, place: Place) -> Result<Written, String> {
    let example = match place {
        Place::Kernel => "`1000 packets/second burst 2000` or `10 MB/minute`",
        Place::L7 | Place::Told => "`60 requests/minute burst 10`",
    };
    let malformed = || {
        format!(
            "`{}` is not a limit: write `<count> <unit>/<period>` and, if you like, `burst <count>`, as in {example}",
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
    let (unit, scale) = unit(unit_name, place)?;
    let (_, period_s) = PERIODS.into_iter().find(|(name, _)| *name == period_name).ok_or_else(|| {
        format!("`{}` is not a period: write `second`, `minute` or `hour`", quote(period_name))
    })?;
    if unit == Unit::Kernel(LimitUnit::Connections) && over == LimitAction::Pace {
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
    Ok(Written { unit, count, period_s, burst })
}

fn unit(name: &str, place: Place) -> Result<(Unit, u64), String> {
    let is_of = |unit: Unit| (unit == Unit::Requests) == (place != Place::Kernel);
    match UNITS.into_iter().find(|(known, ..)| *known == name) {
        Some((_, unit, scale)) if is_of(unit) => Ok((unit, scale)),
        Some((_, Unit::Requests, _)) => Err(
            "`requests` are what the proxy sees, so they are limited for `http`, `tls` or `tunnel`: write one of these as the action, or limit `connections`".to_owned(),
        ),
        Some(_) => Err(format!(
            "`{}` are limited for `connect`: write that as the action, or limit `requests`",
            quote(name)
        )),
        None => {
            let known: Vec<String> =
                UNITS.into_iter().filter(|(_, unit, _)| is_of(*unit)).map(|(name, ..)| format!("`{name}`")).collect();
            Err(format!("`{}` is not a unit of such limits: write one of {}", quote(name), known.join(", ")))
        }
    }
}

/// Digits only: no sign, no separator.
fn whole(word: &str) -> Option<u64> {
    word.bytes().all(|b| b.is_ascii_digit()).then(|| word.parse().ok())?
}

fn per_hour(count: u64, period_s: u32) -> u64 {
    count.saturating_mul(u64::from(LIMIT_BURST_S_MAX / period_s.max(1)))
}

fn check_rate(unit: Unit, count: u64, period_s: u32) -> Result<(), String> {
    let hour = per_hour(count, period_s);
    let (range, bounds) = match unit {
        Unit::Kernel(LimitUnit::Bytes) => {
            (LIMIT_BYTES_PER_HOUR_MIN..=LIMIT_BYTES_PER_HOUR_MAX, "bytes pass at 1 KiB to 100 GB a second")
        }
        Unit::Kernel(LimitUnit::Packets) => {
            (1..=LIMIT_COUNT_PER_HOUR_MAX, "packets pass at 1 an hour to 100000000 a second")
        }
        Unit::Kernel(LimitUnit::Connections) => {
            (1..=LIMIT_COUNT_PER_HOUR_MAX, "connections begin at 1 an hour to 100000000 a second")
        }
        Unit::Requests => (1..=LIMIT_COUNT_PER_HOUR_MAX, "requests pass at 1 an hour to 100000000 a second"),
    };
    if range.contains(&hour) {
        return Ok(());
    }
    let more =
        if hour < *range.start() { "a greater rate, or `forbid` to let none pass" } else { "a lower rate" };
    Err(format!("a limit can't be kept at this rate: {bounds}: write {more}"))
}

fn check_burst(unit: Unit, burst: u64, hour: u64) -> Result<u64, String> {
    if unit == Unit::Kernel(LimitUnit::Bytes) && burst < LIMIT_BURST_BYTES_MIN {
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
            if unit == Unit::Kernel(LimitUnit::Bytes) { "bytes" } else { "(an hour's worth)" }
        ));
    }
    Ok(burst)
}

/// One second's worth, and at least what lets anything pass.
fn default_burst(unit: Unit, count: u64, period_s: u32) -> u64 {
    let second = count / u64::from(period_s.max(1));
    second.max(if unit == Unit::Kernel(LimitUnit::Bytes) { LIMIT_BURST_BYTES_DEFAULT_MIN } else { 1 })
}
