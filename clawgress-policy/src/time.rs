//! Time in policy: the minute that has begun, as an instant and on a wall clock, and when conditions on
//! it next change.
//!
//! The kernel can't ask for the time, so its tables are those of one moment and are made again when a
//! condition changes. That is why every condition on time, of every action, must compare with literals:
//! then the moment is known beforehand. Must never read a clock or a zone database: both are handed in.

use std::collections::BTreeSet;
use std::ops::Bound;

use cedar_policy_core::ast::{Expr, ExprKind, Literal, Name, RestrictedExpr, Value, ValueKind, Var};
use cedar_policy_core::evaluator::RestrictedEvaluator;
use cedar_policy_core::extensions::Extensions;
use serde::{Deserialize, Serialize};

use crate::PolicyProblem;
use crate::host::quote;
use crate::set::Source;
use crate::set::syntax::{self, BinaryOp, Policy};
use crate::vocabulary::Vocabulary;

/// Most changes of offset that a zone may bring: four years of two a year, and room.
pub const ZONE_OFFSETS_MAX: usize = 32;
/// How far ahead a change is looked for, minutes: more than a week, after which wall clocks repeat.
const AHEAD_MINUTES: i64 = 8 * 24 * 60;
/// Where Unix time begins.
const EPOCH: &str = "1970-01-01";
const MINUTE_MS: i64 = 60_000;
const MINUTE_S: i64 = 60;
const DAY_S: i64 = 86_400;

/// A time zone as its offsets from UTC around now: made by whoever may read a zone database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Zone {
    /// Its name, for people: `Europe/Berlin`.
    pub name: String,
    /// From which second (Unix) each offset holds, in seconds east of UTC; ascending. Before the first,
    /// the first; with none, UTC.
    #[serde(default)]
    pub offsets: Vec<(i64, i32)>,
}

impl Default for Zone {
    fn default() -> Self {
        Zone { name: "UTC".to_owned(), offsets: Vec::new() }
    }
}

/// What a wall clock shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wall {
    /// 0 to 23.
    pub(crate) hour: u8,
    /// Of the hour, 0 to 59.
    pub(crate) minute: u8,
    /// 1 is Monday, 7 Sunday (ISO 8601).
    pub(crate) weekday: u8,
}

/// What a condition may ask of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    Time,
    Hour,
    Minute,
    Weekday,
}

/// The conditions on time of a set: when they change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Schedule {
    /// Minutes (Unix) at which a comparison with `context.time` changes.
    turns: BTreeSet<i64>,
    /// The values for which each comparison holds, a bit each.
    wall: BTreeSet<(Field, u64)>,
}

impl Zone {
    /// What the wall clock shows in a minute (Unix).
    pub(crate) fn wall(&self, minute: i64) -> Wall {
        let utc_s = minute.saturating_mul(MINUTE_S);
        let later = self.offsets.partition_point(|(from, _)| *from <= utc_s);
        let offset = self.offsets.get(later.saturating_sub(1)).map_or(0, |(_, offset)| *offset);
        let local_s = utc_s.saturating_add(i64::from(offset));
        let small = |n: i64| u8::try_from(n).unwrap_or_default();
        Wall {
            hour: small(local_s.rem_euclid(DAY_S) / 3600),
            minute: small(local_s.rem_euclid(3600) / MINUTE_S),
            // The first day of 1970 was a Thursday.
            weekday: small((local_s.div_euclid(DAY_S) + 3).rem_euclid(7) + 1),
        }
    }
}

/// The minute (Unix) that has begun at `now_ms` (Unix, milliseconds).
pub(crate) fn minute_of(now_ms: i64) -> i64 {
    now_ms.div_euclid(MINUTE_MS)
}

/// The first millisecond of a minute.
pub(crate) fn start_ms(minute: i64) -> i64 {
    minute.saturating_mul(MINUTE_MS)
}

impl Field {
    const ALL: [Field; 4] = [Field::Time, Field::Hour, Field::Minute, Field::Weekday];

    /// The attribute of the context.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Field::Time => "time",
            Field::Hour => "hour",
            Field::Minute => "minute",
            Field::Weekday => "weekday",
        }
    }

    /// The field of this name.
    pub(crate) fn named(name: &str) -> Option<Field> {
        Field::ALL.into_iter().find(|field| field.name() == name)
    }

    /// The field, if the expression is one.
    pub(crate) fn of(expr: &Expr) -> Option<Field> {
        match syntax::attribute(expr) {
            Some((Var::Context, attribute)) => Field::named(attribute),
            _ => None,
        }
    }

    /// The least and the greatest value.
    fn range(self) -> (i64, i64) {
        match self {
            Field::Time => (i64::MIN, i64::MAX),
            Field::Hour => (0, 23),
            Field::Minute => (0, 59),
            Field::Weekday => (1, 7),
        }
    }

    /// The value a literal stands for: the minute of a `datetime`, or a number.
    pub(crate) fn literal(self, expr: &Expr) -> Option<i64> {
        match self {
            Field::Time => datetime_ms(expr).map(minute_of),
            _ => syntax::long(expr),
        }
    }
}

/// Whether the expression is a comparison of a time field with literals, as [`Schedule`] takes them.
pub(crate) fn is_comparison(expr: &Expr) -> bool {
    comparison(expr).is_some()
}

/// A comparison of a field with literals.
struct Comparison<'a> {
    field: Field,
    literals: Vec<&'a Expr>,
    holds: fn(i64, i64) -> bool,
}

fn comparison(expr: &Expr) -> Option<Comparison<'_>> {
    let ExprKind::BinaryApp { op, arg1, arg2 } = expr.expr_kind() else { return None };
    let (subject, literals, holds): (_, _, fn(i64, i64) -> bool) = match (op, Field::of(arg1)) {
        (BinaryOp::Eq, Some(_)) => (arg1, vec![&**arg2], |value, literal| value == literal),
        (BinaryOp::Less, Some(_)) => (arg1, vec![&**arg2], |value, literal| value < literal),
        (BinaryOp::LessEq, Some(_)) => (arg1, vec![&**arg2], |value, literal| value <= literal),
        (BinaryOp::Eq, None) => (arg2, vec![&**arg1], |value, literal| value == literal),
        (BinaryOp::Less, None) => (arg2, vec![&**arg1], |value, literal| literal < value),
        (BinaryOp::LessEq, None) => (arg2, vec![&**arg1], |value, literal| literal <= value),
        (BinaryOp::Contains, None) => {
            (arg2, syntax::set(arg1)?.iter().collect(), |value, literal| value == literal)
        }
        _ => return None,
    };
    let field = Field::of(subject)?;
    let all = literals.iter().all(|literal| field.literal(literal).is_some());
    all.then_some(Comparison { field, literals, holds })
}

/// Milliseconds (Unix) of `datetime("…")`.
pub(crate) fn datetime_ms(expr: &Expr) -> Option<i64> {
    let ExprKind::ExtensionFunctionApp { fn_name, args } = expr.expr_kind() else { return None };
    let names = &Vocabulary::shared().ok()?.time;
    let (true, [text]) = (*fn_name == names.datetime, args.as_slice()) else { return None };
    let datetime =
        |text: &str| RestrictedExpr::call_extension_fn(names.datetime.clone(), [RestrictedExpr::val(text)]);
    let args = [datetime(syntax::string(text)?), datetime(EPOCH)];
    let since = RestrictedExpr::call_extension_fn(names.duration_since.clone(), args);
    let ms = RestrictedExpr::call_extension_fn(names.to_milliseconds.clone(), [since]);
    let evaluator = RestrictedEvaluator::new(Extensions::all_available());
    let ms: Value = evaluator.interpret(ms.as_borrowed()).ok()?;
    match ms.value {
        ValueKind::Lit(Literal::Long(ms)) => Some(ms),
        _ => None,
    }
}

/// The value of `context.time` in a minute.
///
/// # Errors
/// If the minute is beyond what Cedar can express; an error denies.
fn datetime(minute: i64) -> Result<Value, String> {
    let names = &Vocabulary::shared()?.time;
    let call = |name: &Name, args: Vec<RestrictedExpr>| RestrictedExpr::call_extension_fn(name.clone(), args);
    let epoch = call(&names.datetime, vec![RestrictedExpr::val(EPOCH)]);
    let since = call(&names.duration, vec![RestrictedExpr::val(format!("{}ms", start_ms(minute)))]);
    let evaluator = RestrictedEvaluator::new(Extensions::all_available());
    let time = call(&names.offset, vec![epoch, since]);
    evaluator.interpret(time.as_borrowed()).map_err(|e| e.to_string())
}

/// What the context tells of the time at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    minute: i64,
    ticks: Ticks,
}

/// A moment in numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    /// The minute's beginning, Unix milliseconds.
    pub(crate) start_ms: i64,
    pub(crate) hour: i64,
    pub(crate) minute: i64,
    pub(crate) weekday: i64,
}

impl Moment {
    /// The moment of a minute (Unix).
    pub(crate) fn new(minute: i64, zone: &Zone) -> Moment {
        let wall = zone.wall(minute);
        let ticks = Ticks {
            start_ms: start_ms(minute),
            hour: wall.hour.into(),
            minute: wall.minute.into(),
            weekday: wall.weekday.into(),
        };
        Moment { minute, ticks }
    }

    pub(crate) fn ticks(&self) -> Ticks {
        self.ticks
    }

    /// The attributes of the context.
    ///
    /// # Errors
    /// As [`datetime`].
    pub(crate) fn pairs(&self) -> Result<[(&'static str, Value); 4], String> {
        let Ticks { hour, minute, weekday, .. } = self.ticks;
        Ok([
            (Field::Time.name(), datetime(self.minute)?),
            (Field::Hour.name(), Value::from(hour)),
            (Field::Minute.name(), Value::from(minute)),
            (Field::Weekday.name(), Value::from(weekday)),
        ])
    }
}

// === impl Schedule ===

impl Schedule {
    /// Reads the conditions of `policies`, each with its id.
    ///
    /// # Errors
    /// Every use of time whose changes can't be told beforehand, and every literal that is no such value.
    pub(crate) fn new<'a>(
        policies: impl Iterator<Item = (&'a Policy, Option<&'a str>)>,
        source: &Source<'_>,
    ) -> Result<Schedule, Vec<PolicyProblem>> {
        let mut schedule = Schedule::default();
        let mut problems = Vec::new();
        for (policy, id) in policies {
            let mut report = |expr: &Expr, message: String| {
                problems.push(source.problem(id, syntax::offset(expr), message));
            };
            if let Some(condition) = policy.non_scope_constraints() {
                schedule.read(condition, &mut report);
            }
        }
        if problems.is_empty() { Ok(schedule) } else { Err(problems) }
    }

    fn read(&mut self, expr: &Expr, report: &mut impl FnMut(&Expr, String)) {
        if let Some(comparison) = comparison(expr) {
            return self.take(&comparison, report);
        }
        if let Some(field) = Field::of(expr) {
            let name = field.name();
            let example = match field {
                Field::Time => "datetime(\"2030-01-31T18:00:00Z\")",
                Field::Hour => "18",
                Field::Minute => "30",
                Field::Weekday => "5",
            };
            report(
                expr,
                format!(
                    "`context.{name}` can only be compared with literals, so that it is known when the answer changes: write `context.{name} < {example}`, or `==`, `<=`, `>`, `>=`, or `[…].contains(context.{name})`"
                ),
            );
        }
        for part in syntax::parts(expr) {
            self.read(part, report);
        }
    }

    fn take(&mut self, comparison: &Comparison<'_>, report: &mut impl FnMut(&Expr, String)) {
        let field = comparison.field;
        let (least, greatest) = field.range();
        let mut values = Vec::new();
        for literal in &comparison.literals {
            let Some(value) = field.literal(literal) else { continue };
            if !(least..=greatest).contains(&value) {
                let what = match field {
                    Field::Weekday => "a weekday: 1 is Monday, 7 is Sunday".to_owned(),
                    _ => format!("{} {}: it is {least} to {greatest}", article(field), field.name()),
                };
                report(literal, format!("`{value}` is not {what}"));
            }
            if field == Field::Time && datetime_ms(literal) != Some(start_ms(value)) {
                let shown =
                    syntax::parts(literal).first().and_then(|t| syntax::string(t)).unwrap_or_default();
                report(
                    literal,
                    format!(
                        "`{}` is not a whole minute, which is how finely `context.time` is told: leave the seconds at `00`",
                        quote(shown)
                    ),
                );
            }
            values.push(value);
        }
        if field == Field::Time {
            // It may change when the literal's minute begins, and when it ends.
            let turns = values.iter().flat_map(|value| [*value, value.saturating_add(1)]);
            let holds = |minute: i64| values.iter().any(|value| (comparison.holds)(minute, *value));
            self.turns.extend(turns.filter(|turn| holds(*turn) != holds(turn.saturating_sub(1))));
        } else {
            let holds = |value: &i64| values.iter().any(|literal| (comparison.holds)(*value, *literal));
            let bits = (least..=greatest).filter(holds).fold(0, |bits, value| bits | 1_u64 << value);
            self.wall.insert((field, bits));
        }
    }

    /// The first minute after `minute` in which a condition answers otherwise than in `minute`; `None` if
    /// none does within a week, and no comparison with `context.time` ever after.
    pub(crate) fn next(&self, minute: i64, zone: &Zone) -> Option<i64> {
        let turn = self.turns.range((Bound::Excluded(minute), Bound::Unbounded)).next().copied();
        if self.wall.is_empty() {
            return turn;
        }
        let now = zone.wall(minute);
        let end = turn.unwrap_or(i64::MAX).min(minute.saturating_add(AHEAD_MINUTES));
        let wall = (minute.saturating_add(1)..=end).find(|m| {
            let then = zone.wall(*m);
            self.wall.iter().any(|(field, bits)| bit(*field, *bits, now) != bit(*field, *bits, then))
        });
        wall.or(turn)
    }
}

fn article(field: Field) -> &'static str {
    if field == Field::Hour { "an" } else { "a" }
}

/// Whether a comparison holds at what the wall shows.
fn bit(field: Field, bits: u64, wall: Wall) -> bool {
    let value = match field {
        Field::Time => return false,
        Field::Hour => wall.hour,
        Field::Minute => wall.minute,
        Field::Weekday => wall.weekday,
    };
    bits >> value & 1 == 1
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{PolicyBundle, PolicySet, Surroundings};

    /// Minute (Unix) of a time in UTC.
    fn minute(text: &str) -> i64 {
        let literal: Expr = format!("datetime(\"{text}\")").parse().unwrap();
        minute_of(datetime_ms(&literal).unwrap())
    }

    /// Central Europe around the changes of 2026.
    pub(crate) fn berlin() -> Zone {
        let offsets = vec![(1_774_746_000, 7200), (1_792_890_000, 3600), (1_806_195_600, 7200)];
        Zone { name: "Europe/Berlin".to_owned(), offsets: [vec![(0, 3600)], offsets].concat() }
    }

    #[test]
    fn wall_clocks() {
        let (utc, berlin) = (Zone::default(), berlin());
        let east = Zone { name: "Asia/Kathmandu".to_owned(), offsets: vec![(0, 20_700)] };
        for (zone, at, hour, minutes, weekday) in [
            (&utc, "1970-01-01", 0, 0, 4),
            (&utc, "1969-12-31T23:59:00Z", 23, 59, 3),
            (&utc, "2026-11-25T18:45:00Z", 18, 45, 3),
            (&berlin, "2026-11-25T23:30:00Z", 0, 30, 4),
            (&berlin, "2026-10-25T00:59:00Z", 2, 59, 7),
            (&berlin, "2026-10-25T01:00:00Z", 2, 0, 7),
            (&berlin, "2026-07-05T22:00:00Z", 0, 0, 1),
            (&berlin, "2026-03-29T00:59:00Z", 1, 59, 7),
            (&berlin, "2026-03-29T01:00:00Z", 3, 0, 7),
            (&berlin, "1960-01-01", 1, 0, 5),
            (&east, "2026-11-25T18:15:00Z", 0, 0, 4),
        ] {
            let shown = zone.wall(minute(at));
            assert_eq!(shown, Wall { hour, minute: minutes, weekday }, "{at} in {}", zone.name);
        }
    }

    #[test]
    fn values_round_trip() {
        for at in ["1970-01-01", "1969-12-31T23:59:00Z", "2026-11-25T18:45:00Z", "9999-12-31T23:59:00Z"] {
            let literal = RestrictedExpr::val(at);
            let literal = RestrictedExpr::call_extension_fn("datetime".parse().unwrap(), [literal]);
            let evaluator = RestrictedEvaluator::new(Extensions::all_available());
            assert_eq!(datetime(minute(at)).unwrap(), evaluator.interpret(literal.as_borrowed()).unwrap());
        }
    }

    fn set(condition: &str) -> PolicySet {
        let text = format!(
            "@id(\"a\") permit (principal, action == Action::\"connect\", resource) when {{ {condition} }};"
        );
        let surroundings = Surroundings { zone: berlin(), ..Surroundings::default() };
        let bundle = PolicyBundle { text, ..PolicyBundle::default() };
        PolicySet::parse_in(&bundle.text, &bundle.sets, &surroundings)
            .unwrap_or_else(|e| panic!("{condition}\n{:#?}", e.problems))
    }

    #[test]
    fn turns_are_where_an_answer_changes() {
        let wednesday = "2026-11-25T18:45:00Z";
        for (condition, from, turns) in [
            (r#"context.port == 1"#, wednesday, &[][..]),
            (r#"context.time < datetime("2026-11-26")"#, wednesday, &["2026-11-26"]),
            (r#"context.time <= datetime("2026-11-26")"#, wednesday, &["2026-11-26T00:01:00Z"]),
            (r#"context.time > datetime("2026-11-26")"#, wednesday, &["2026-11-26T00:01:00Z"]),
            (r#"datetime("2026-11-26") <= context.time"#, wednesday, &["2026-11-26"]),
            (
                r#"context.time == datetime("2026-11-26T01:00:00+0100")"#,
                wednesday,
                &["2026-11-26", "2026-11-26T00:01:00Z"],
            ),
            (r#"context.time >= datetime("2020-01-01")"#, wednesday, &[]),
            (
                r#"context.hour >= 9 && context.hour < 17"#,
                wednesday,
                // Past midnight one of the two holds again, if not both.
                &["2026-11-25T23:00:00Z", "2026-11-26T08:00:00Z", "2026-11-26T16:00:00Z"],
            ),
            (r#"context.weekday <= 5"#, wednesday, &["2026-11-27T23:00:00Z", "2026-11-29T23:00:00Z"]),
            (r#"[6, 7].contains(context.weekday)"#, wednesday, &["2026-11-27T23:00:00Z"]),
            (r#"context.minute < 30"#, wednesday, &["2026-11-25T19:00:00Z", "2026-11-25T19:30:00Z"]),
            (r#"context.hour <= 23"#, wednesday, &[]),
            // The hour from two to three comes twice, and once not at all.
            (
                r#"context.hour == 2"#,
                "2026-10-24T12:00:00Z",
                &["2026-10-25T00:00:00Z", "2026-10-25T02:00:00Z", "2026-10-26T01:00:00Z"],
            ),
            (r#"context.hour == 2"#, "2026-03-28T12:00:00Z", &["2026-03-30T00:00:00Z"]),
            (
                r#"context.hour == 12 && context.time < datetime("2026-11-25T19:10:00Z")"#,
                wednesday,
                &["2026-11-25T19:10:00Z", "2026-11-26T11:00:00Z"],
            ),
        ] {
            let set = set(condition);
            let mut at = start_ms(minute(from)) + 59_999;
            for turn in turns {
                let next =
                    set.next_turn_ms(at).unwrap_or_else(|| panic!("{condition}: no turn before {turn}"));
                assert_eq!(next, start_ms(minute(turn)), "{condition}: {turn}");
                at = next;
            }
            if turns.is_empty() {
                assert_eq!(set.next_turn_ms(at), None, "{condition}");
            }
        }
    }

    /// Both planes, and every action, go by the moment that is handed in; without one they deny.
    #[test]
    fn decisions_are_of_their_moment() {
        use crate::request::{Operation, Request, Transport};
        use clawgress_ebpf_common::DropReason;
        let text = r#"@id("day") permit (principal, action, resource) when { context.hour >= 9 && context.hour < 17 };"#;
        let surroundings = Surroundings { zone: berlin(), ..Surroundings::default() };
        let set = PolicySet::parse_in(text, &crate::NamedSets::default(), &surroundings).unwrap();
        let agent = crate::set::tests::agent("web");
        let host = crate::Host::parse("api.test").unwrap();
        let ip = "203.0.113.1".parse().unwrap();
        let operations = [
            Operation::Connect { ip, port: 443, transport: Transport::Tcp },
            Operation::Direct { ip, port: 443, transport: Transport::Tcp },
            Operation::Tls { host: &host, port: 443, alpn: &[], ja4: "" },
        ];
        for operation in operations {
            let request = Request { agent: &agent, operation };
            assert_eq!(set.decide(&request).verdict, Err(DropReason::PolicyError), "no moment");
            let at = |text: &str| set.at(start_ms(minute(text))).decide(&request).is_allow();
            assert!(!at("2026-11-25T07:59:00Z") && at("2026-11-25T08:00:00Z"));
            assert!(at("2026-11-25T15:59:00Z") && !at("2026-11-25T16:00:00Z"));
        }
        let tables = |set: &PolicySet| crate::kernel::compile(set, std::slice::from_ref(&agent)).unwrap();
        let action = |set: &PolicySet| tables(set).lookup(agent.index, ip, Transport::Tcp, 443).0;
        use crate::kernel::KernelAction::{Deny, Direct};
        assert_eq!(action(&set), Deny(DropReason::PolicyError.code()));
        assert_eq!(action(&set.at(start_ms(minute("2026-11-25T08:00:00Z")))), Direct);
        let evening = set.at(start_ms(minute("2026-11-25T16:00:00Z")));
        assert_eq!(action(&evening), Deny(DropReason::PolicyDenied.code()));
    }
}
