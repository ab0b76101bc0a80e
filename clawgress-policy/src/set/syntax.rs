//! Reading Cedar's syntax tree: the few shapes that the review and the kernel plan look for.

use std::sync::Arc;

use cedar_policy_core::ast::{EntityUID, Expr, ExprKind, Literal, Var};

pub(crate) use cedar_policy_core::ast::{
    ActionConstraint, BinaryOp, EntityReference, Policy, PrincipalOrResourceConstraint as Scope, UnaryOp,
};

use crate::address::canonical;
use crate::fingerprint::Signal;
use crate::head::Part;
use crate::history::Field;
use crate::vocabulary::{Reads, qualify};
use ipnet::IpNet;

/// An entity named in text, its tenant filled in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Named {
    pub(crate) kind: String,
    pub(crate) id: String,
}

impl Named {
    pub(crate) fn of(uid: &EntityUID) -> Named {
        let kind = uid.entity_type().to_string();
        let id = uid.eid().as_ref();
        let id = qualify(&kind, id).unwrap_or_else(|| id.to_owned());
        Named { kind, id }
    }
}

pub(crate) fn offset(expr: &Expr) -> Option<usize> {
    expr.source_loc().map(cedar_policy_core::parser::Loc::start)
}

/// The attribute that the fingerprint of a hello is.
pub(crate) const JA4: &str = "ja4";

/// The variable, if the expression is one.
pub(crate) fn variable(expr: &Expr) -> Option<Var> {
    match expr.expr_kind() {
        ExprKind::Var(v) => Some(*v),
        _ => None,
    }
}

/// `variable.attribute`.
pub(crate) fn attribute(expr: &Expr) -> Option<(Var, &str)> {
    match expr.expr_kind() {
        ExprKind::GetAttr { expr, attr } => Some((variable(expr)?, attr.as_str())),
        _ => None,
    }
}

pub(crate) fn string(expr: &Expr) -> Option<&str> {
    match expr.expr_kind() {
        ExprKind::Lit(Literal::String(s)) => Some(s.as_str()),
        _ => None,
    }
}

pub(crate) fn long(expr: &Expr) -> Option<i64> {
    match expr.expr_kind() {
        ExprKind::Lit(Literal::Long(n)) => Some(*n),
        // `-1` is a negation applied to a literal.
        ExprKind::UnaryApp { op: UnaryOp::Neg, arg } => long(arg).and_then(i64::checked_neg),
        _ => None,
    }
}

pub(crate) fn entity(expr: &Expr) -> Option<&Arc<EntityUID>> {
    match expr.expr_kind() {
        ExprKind::Lit(Literal::EntityUID(uid)) => Some(uid),
        _ => None,
    }
}

/// The elements of a set literal.
pub(crate) fn set(expr: &Expr) -> Option<&[Expr]> {
    match expr.expr_kind() {
        ExprKind::Set(elements) => Some(elements),
        _ => None,
    }
}

/// The entities of an entity literal or a set literal of them.
pub(crate) fn entities(expr: &Expr) -> Option<Vec<&Arc<EntityUID>>> {
    match set(expr) {
        Some(elements) => elements.iter().map(entity).collect(),
        None => entity(expr).map(|e| vec![e]),
    }
}

/// `ip("…")`: address or prefix, as written.
pub(crate) fn ip_literal(expr: &Expr) -> Option<IpNet> {
    match expr.expr_kind() {
        ExprKind::ExtensionFunctionApp { fn_name, args } if fn_name.to_string() == "ip" => {
            match args.as_slice() {
                [arg] => parse_ip(string(arg)?),
                _ => None,
            }
        }
        _ => None,
    }
}

/// An address (as a prefix of full length) or a prefix.
pub(crate) fn parse_ip(text: &str) -> Option<IpNet> {
    match text.parse::<std::net::IpAddr>() {
        Ok(ip) => Some(IpNet::from(ip)),
        Err(_) => text.parse().ok(),
    }
}

/// `context.ip` or `resource.ip`.
pub(crate) fn is_ip_subject(expr: &Expr) -> bool {
    matches!(attribute(expr), Some((Var::Context | Var::Resource, "ip")))
}

pub(crate) fn is_context(expr: &Expr, name: &str) -> bool {
    matches!(attribute(expr), Some((Var::Context, attr)) if attr == name)
}

/// Whether a prefix is one whole address.
pub(crate) fn is_single(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// The address that `Network::"…"` or `Host::"…"` names.
pub(crate) fn literal_address(id: &str) -> Option<IpNet> {
    id.parse().ok().map(|ip| IpNet::from(canonical(ip)))
}

/// Direct parts of an expression.
pub(crate) fn parts(expr: &Expr) -> Vec<&Expr> {
    match expr.expr_kind() {
        ExprKind::If { test_expr, then_expr, else_expr } => vec![&**test_expr, &**then_expr, &**else_expr],
        ExprKind::And { left, right } | ExprKind::Or { left, right } => vec![&**left, &**right],
        ExprKind::UnaryApp { arg, .. } => vec![&**arg],
        ExprKind::BinaryApp { arg1, arg2, .. } => vec![&**arg1, &**arg2],
        ExprKind::ExtensionFunctionApp { args, .. } => args.iter().collect(),
        ExprKind::GetAttr { expr, .. }
        | ExprKind::HasAttr { expr, .. }
        | ExprKind::ExtHasAttr { expr, .. }
        | ExprKind::Like { expr, .. }
        | ExprKind::Is { expr, .. } => vec![&**expr],
        ExprKind::Set(elements) => elements.iter().collect(),
        ExprKind::Record(fields) => fields.values().collect(),
        ExprKind::Lit(_) | ExprKind::Var(_) | ExprKind::Slot(_) | ExprKind::Unknown(_) => Vec::new(),
    }
}

/// Whether the expression uses a variable other than `principal`.
pub(crate) fn reaches_beyond_principal(expr: &Expr) -> bool {
    variable(expr).is_some_and(|v| v != Var::Principal)
        || parts(expr).into_iter().any(reaches_beyond_principal)
}

/// The entity a scope constraint compares with.
pub(crate) fn scope_entity(scope: &Scope) -> Option<&Arc<EntityUID>> {
    match scope {
        Scope::Eq(EntityReference::EUID(uid))
        | Scope::In(EntityReference::EUID(uid))
        | Scope::IsIn(_, EntityReference::EUID(uid)) => Some(uid),
        _ => None,
    }
}

/// What of the entities a condition reads: attributes and labels, and the ancestors of anything but the
/// request's own entities.
pub(crate) fn reads(expr: &Expr, reads: &mut Reads) {
    let base = match expr.expr_kind() {
        ExprKind::GetAttr { expr, .. }
        | ExprKind::HasAttr { expr, .. }
        | ExprKind::ExtHasAttr { expr, .. } => Some(expr),
        ExprKind::BinaryApp { op: BinaryOp::GetTag | BinaryOp::HasTag, arg1, .. } => Some(arg1),
        ExprKind::BinaryApp { op: BinaryOp::In, arg1, .. } if variable(arg1).is_none() => Some(arg1),
        _ => None,
    };
    if reads_time(expr) {
        reads.time = true;
    }
    if let Some(attribute) = of_context(expr) {
        reads.ja4 |= attribute == JA4;
        reads.history |= attribute == Field::RECORD;
        reads.fingerprints |= Signal::named(attribute).is_some();
        let is_content = matches!(attribute, "findings" | "usage" | "call");
        reads.usage |= attribute == "usage";
        reads.calls |= attribute == "call";
        reads.findings |= is_content;
        reads.media_type |= attribute == "media_type";
        reads.head |= Part::named(attribute).or(Part::of_names(attribute)).is_some();
        reads.payload |= is_content || matches!(attribute, "bytes" | "complete");
    }
    match base.map(|base| variable(base)) {
        Some(Some(Var::Context)) | None => {}
        // A record of the context, which holds no entity.
        Some(None) if base.is_some_and(|base| is_in_context(base)) => {}
        Some(Some(Var::Resource)) => reads.resource = true,
        // An expression of unknown kind may be either.
        Some(Some(Var::Principal | Var::Action)) => reads.agent = true,
        Some(None) => (reads.agent, reads.resource) = (true, true),
    }
    for part in parts(expr) {
        self::reads(part, reads);
    }
}

/// Whether it is the context, or something that is in it.
fn is_in_context(expr: &Expr) -> bool {
    match expr.expr_kind() {
        ExprKind::GetAttr { expr, .. } => is_in_context(expr),
        _ => variable(expr) == Some(Var::Context),
    }
}

/// The attribute of the context that the expression itself reads, or asks whether it is there.
fn of_context(expr: &Expr) -> Option<&str> {
    let (base, attr) = match expr.expr_kind() {
        ExprKind::GetAttr { expr, attr } | ExprKind::HasAttr { expr, attr } => (expr, attr),
        ExprKind::ExtHasAttr { expr, attrs } => (expr, attrs.first()),
        _ => return None,
    };
    (variable(base) == Some(Var::Context)).then_some(attr.as_str())
}

/// Whether the expression itself reads the time, or asks whether there is one: the kernel's tables are made
/// as if there always were.
fn reads_time(expr: &Expr) -> bool {
    let (base, attr) = match expr.expr_kind() {
        ExprKind::HasAttr { expr, attr } => (expr, attr),
        ExprKind::ExtHasAttr { expr, attrs } => (expr, attrs.first()),
        _ => return crate::time::Field::of(expr).is_some(),
    };
    variable(base) == Some(Var::Context) && crate::time::Field::named(attr).is_some()
}
