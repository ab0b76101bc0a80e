//! Ranges that hold nothing: `context.port >= 443 && context.port <= 80`. Such a rule would silently do
//! nothing, so it is refused here. Must never refuse a range that some request is in.

use cedar_policy_core::ast::{Expr, ExprKind, Var};

use super::syntax::{self, BinaryOp, Policy, UnaryOp};
use super::text::Source;
use crate::PolicyProblem;
use crate::time::Field;

/// What a range may be over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Port,
    Field(Field),
}

/// One end of a range; both are inclusive.
struct End<'a> {
    subject: Subject,
    is_first: bool,
    value: i64,
    at: &'a Expr,
}

/// Reports every reversed range of a policy.
pub(super) fn review(policy: &Policy, id: Option<&str>, source: &Source<'_>) -> Vec<PolicyProblem> {
    let mut problems = Vec::new();
    if let Some(condition) = policy.non_scope_constraints() {
        walk(condition, &mut |expr, message| {
            problems.push(source.problem(id, syntax::offset(expr), message));
        });
    }
    problems
}

fn walk(expr: &Expr, report: &mut impl FnMut(&Expr, String)) {
    let mut parts = Vec::new();
    conjuncts(expr, &mut parts);
    let ends: Vec<End<'_>> = parts.iter().filter_map(|part| end(part, true)).collect();
    for last in ends.iter().filter(|end| !end.is_first) {
        let same = |first: &&End<'_>| first.is_first && first.subject == last.subject;
        if let Some(first) = ends.iter().filter(same).find(|first| first.value > last.value) {
            let later = if syntax::offset(first.at) > syntax::offset(last.at) { first } else { last };
            report(later.at, message(first, last));
            break;
        }
    }
    for part in parts {
        for inner in syntax::parts(part) {
            walk(inner, report);
        }
    }
}

/// The parts of `a && b && c`.
fn conjuncts<'a>(expr: &'a Expr, parts: &mut Vec<&'a Expr>) {
    match expr.expr_kind() {
        ExprKind::And { left, right } => {
            conjuncts(left, parts);
            conjuncts(right, parts);
        }
        _ => parts.push(expr),
    }
}

/// The end of a range that a comparison is, or that its negation is unless it `holds`.
fn end(expr: &Expr, holds: bool) -> Option<End<'_>> {
    let (left, right, or_equal) = match expr.expr_kind() {
        ExprKind::UnaryApp { op: UnaryOp::Not, arg } => return end(arg, !holds),
        ExprKind::BinaryApp { op: BinaryOp::Less, arg1, arg2 } => (arg1, arg2, false),
        ExprKind::BinaryApp { op: BinaryOp::LessEq, arg1, arg2 } => (arg1, arg2, true),
        _ => return None,
    };
    let (subject, literal, is_first) = match (subject(left), subject(right)) {
        (Some(subject), None) => (subject, right, false),
        (None, Some(subject)) => (subject, left, true),
        _ => return None,
    };
    let value = match subject {
        Subject::Port => syntax::long(literal)?,
        Subject::Field(field) => field.literal(literal)?,
    };
    // `x < 5` ends at 4, `!(x < 5)` begins at 5, `!(x <= 5)` at 6; and the other way round.
    let step = if is_first { 1 } else { -1 };
    let value = match (holds, or_equal) {
        (true, true) | (false, false) => Some(value),
        (true, false) => value.checked_add(step),
        (false, true) => value.checked_sub(step),
    };
    Some(End { subject, is_first: is_first == holds, value: value?, at: expr })
}

fn subject(expr: &Expr) -> Option<Subject> {
    match syntax::attribute(expr) {
        Some((Var::Context, "port")) => Some(Subject::Port),
        Some((Var::Context, name)) => Field::named(name).map(Subject::Field),
        _ => None,
    }
}

fn message(first: &End<'_>, last: &End<'_>) -> String {
    let (from, to) = (first.value, last.value);
    match first.subject {
        Subject::Port if to >= 0 && from <= 65_535 => format!(
            "no port is at least {from} and at most {to}, so this never matches: write `context.port >= {to} && context.port <= {from}`"
        ),
        Subject::Port => format!("no port is at least {from} and at most {to}, so this never matches"),
        Subject::Field(Field::Time) => {
            "this time ends before it begins, so it never matches: exchange the two".to_owned()
        }
        Subject::Field(field) => {
            let name = field.name();
            format!(
                "no {name} is at least {from} and at most {to}, so this never matches: for what goes on past the last {name}, write `context.{name} >= {from} || context.{name} <= {to}`"
            )
        }
    }
}
