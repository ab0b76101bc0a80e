//! What a policy asks, as a formula over what a request has. What is not understood is kept as it is written: it may be
//! true or false, but not both.

use cedar_policy_core::ast::{Expr, ExprKind, Literal as Written, Var};
use ipnet::IpNet;

use super::facts::{ADDRESS, HOST, Literal};
use super::spans::Spans;
use crate::members::{Class, Members};
use crate::prefix::Prefix;
use crate::set::syntax::{self, BinaryOp, EntityReference, Named, Policy, Scope, UnaryOp};
use crate::time::Field;
use crate::vocabulary::ActionKind;

/// Largest network set whose prefixes are compared; of larger ones, only the name is. Each policy that names it holds
/// them for a while.
const PREFIXES_COMPARED_MAX: usize = 256;

/// A formula without negation, but for that in its literals.
#[derive(Clone, Debug)]
pub(super) enum Formula<'a> {
    Known(bool),
    Is(Literal<'a>),
    All(Vec<Formula<'a>>),
    Any(Vec<Formula<'a>>),
}

/// Reads policies, for one action.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    action: ActionKind,
    members: &'a Members,
    /// Only what is about principals and hosts is read; everything else may be so.
    only_who_and_where: bool,
}

impl<'a> Reading<'a> {
    /// Reads all of a policy.
    pub(super) fn whole(action: ActionKind, members: &'a Members) -> Reading<'a> {
        Reading { action, members, only_who_and_where: false }
    }

    /// Reads who it is about, and which hosts.
    pub(super) fn who_and_where(action: ActionKind, members: &'a Members) -> Reading<'a> {
        Reading { action, members, only_who_and_where: true }
    }

    /// That the policy matches, or that it doesn't. The action in its scope is taken for given.
    pub(super) fn policy(&self, policy: &'a Policy, holds: bool) -> Formula<'a> {
        let principal = self.principal(policy.principal_constraint().as_inner(), holds);
        let resource = self.resource(policy.resource_constraint().as_inner(), holds);
        let condition = policy.non_scope_constraints().map(|condition| self.condition(condition, holds));
        let parts = [principal, resource].into_iter().chain(condition).collect();
        if holds { Formula::All(parts) } else { Formula::Any(parts) }
    }

    fn is(&self, literal: Literal<'a>) -> Formula<'a> {
        let is_read = match &literal {
            Literal::Principal(..) | Literal::HasGroup(..) | Literal::HostSet(..) => true,
            Literal::Text(slot, ..) | Literal::Like(slot, ..) => {
                slot == HOST || slot.starts_with("principal")
            }
            Literal::Number(..) | Literal::Written(..) => false,
        };
        if is_read || !self.only_who_and_where { Formula::Is(literal) } else { Formula::Known(true) }
    }

    fn written(&self, expr: &Expr, holds: bool) -> Formula<'a> {
        self.is(Literal::Written(expr.to_string(), holds))
    }

    fn principal(&self, scope: &Scope, holds: bool) -> Formula<'a> {
        let is_agent = |kind: &cedar_policy_core::ast::EntityType| kind.to_string() == "Agent";
        match scope {
            Scope::Any => Formula::Known(holds),
            Scope::Is(kind) => Formula::Known(is_agent(kind) == holds),
            Scope::IsIn(kind, _) if !is_agent(kind) => Formula::Known(!holds),
            Scope::Eq(EntityReference::EUID(uid))
            | Scope::In(EntityReference::EUID(uid))
            | Scope::IsIn(_, EntityReference::EUID(uid)) => {
                self.is(Literal::Principal(Named::of(uid), holds))
            }
            // Templates are refused.
            _ => Formula::Known(true),
        }
    }

    fn resource(&self, scope: &Scope, holds: bool) -> Formula<'a> {
        match scope {
            Scope::Any => Formula::Known(holds),
            Scope::Is(kind) => Formula::Known((kind.to_string() == self.action.resource()) == holds),
            Scope::IsIn(kind, _) if kind.to_string() != self.action.resource() => Formula::Known(!holds),
            Scope::Eq(EntityReference::EUID(uid))
            | Scope::In(EntityReference::EUID(uid))
            | Scope::IsIn(_, EntityReference::EUID(uid)) => self.resource_in(uid, holds),
            _ => Formula::Known(true),
        }
    }

    /// That the resource is an entity, or in it.
    fn resource_in(&self, uid: &cedar_policy_core::ast::EntityUID, holds: bool) -> Formula<'a> {
        let kind = uid.entity_type().to_string();
        let id: &str = uid.eid().as_ref();
        match (kind.as_str(), self.action.resource()) {
            ("Host", "Host") => self.is(Literal::Text(HOST.to_owned(), id.into(), holds)),
            ("HostSet", "Host") => self.is(Literal::HostSet(id.into(), holds)),
            ("Network", "Network") => match syntax::literal_address(id) {
                Some(net) => self.address(&[net], holds),
                None => Formula::Known(true),
            },
            // Which prefixes an ASN or a country has, tomorrow's data may say otherwise.
            ("Asn" | "Country", "Network") => self.is(Literal::Written(uid.to_string(), holds)),
            ("NetworkSet", "Network") => {
                let class = self.members.class(&Class::Set(id.to_owned()));
                match class.filter(|prefixes| prefixes.len() <= PREFIXES_COMPARED_MAX) {
                    Some(prefixes) => self.address(prefixes, holds),
                    None => self.is(Literal::Written(uid.to_string(), holds)),
                }
            }
            ("Model", "Model") => self.offered(("context.llm.provider", "context.llm.model"), id, holds),
            ("Tool", "Tool") => self.offered(("context.tool.server", "context.tool.name"), id, holds),
            ("Provider", "Model") => self.is(Literal::Text("context.llm.provider".into(), id.into(), holds)),
            ("ToolServer", "Tool") => self.is(Literal::Text("context.tool.server".into(), id.into(), holds)),
            // A host is in no network, and the other way round.
            (
                "Host" | "HostSet" | "Network" | "NetworkSet" | "Asn" | "Country" | "Model" | "Provider"
                | "Tool" | "ToolServer",
                _,
            ) => Formula::Known(!holds),
            _ => self.is(Literal::Written(format!("resource in {uid}"), holds)),
        }
    }

    /// That the resource is this model or tool.
    fn offered(&self, (by, name): (&str, &str), id: &str, holds: bool) -> Formula<'a> {
        // The first slash ends who offers it.
        let Some((whose, own)) = id.split_once('/') else { return Formula::Known(!holds) };
        let text = |slot: &str, word: &str| self.is(Literal::Text(slot.to_owned(), word.into(), holds));
        let both = vec![text(by, whose), text(name, own)];
        if holds { Formula::All(both) } else { Formula::Any(both) }
    }

    fn address(&self, nets: &[IpNet], holds: bool) -> Formula<'a> {
        self.is(Literal::Number(ADDRESS.to_owned(), unless(Spans::of_nets(nets), holds)))
    }

    /// That a condition is true, or false.
    fn condition(&self, expr: &'a Expr, holds: bool) -> Formula<'a> {
        let both = |a, b, holds| vec![self.condition(a, holds), self.condition(b, holds)];
        match expr.expr_kind() {
            ExprKind::Lit(Written::Bool(is)) => Formula::Known(*is == holds),
            ExprKind::UnaryApp { op: UnaryOp::Not, arg } => self.condition(arg, !holds),
            ExprKind::And { left, right } if holds => Formula::All(both(left, right, true)),
            ExprKind::And { left, right } => Formula::Any(both(left, right, false)),
            ExprKind::Or { left, right } if holds => Formula::Any(both(left, right, true)),
            ExprKind::Or { left, right } => Formula::All(both(left, right, false)),
            ExprKind::If { test_expr, then_expr, else_expr } => Formula::Any(vec![
                Formula::All(vec![self.condition(test_expr, true), self.condition(then_expr, holds)]),
                Formula::All(vec![self.condition(test_expr, false), self.condition(else_expr, holds)]),
            ]),
            ExprKind::BinaryApp { op, arg1, arg2 } => {
                self.comparison(*op, arg1, arg2, holds).unwrap_or_else(|| self.written(expr, holds))
            }
            ExprKind::Like { expr: subject, pattern } => match slot(subject) {
                Some(slot) => self.is(Literal::Like(slot, pattern, holds)),
                None => self.written(expr, holds),
            },
            ExprKind::Is { expr: subject, entity_type } => match syntax::variable(subject) {
                Some(Var::Principal) => Formula::Known((entity_type.to_string() == "Agent") == holds),
                Some(Var::Resource) => {
                    Formula::Known((entity_type.to_string() == self.action.resource()) == holds)
                }
                _ => self.written(expr, holds),
            },
            ExprKind::HasAttr { expr: subject, attr } => {
                let group = group(attr).filter(|_| syntax::variable(subject) == Some(Var::Principal));
                group
                    .map_or_else(|| self.written(expr, holds), |kind| self.is(Literal::HasGroup(kind, holds)))
            }
            ExprKind::ExtensionFunctionApp { fn_name, args } => self
                .of_address(&fn_name.to_string(), args, holds)
                .unwrap_or_else(|| self.written(expr, holds)),
            _ => self.written(expr, holds),
        }
    }

    /// A comparison that is understood.
    fn comparison(&self, op: BinaryOp, a: &'a Expr, b: &'a Expr, holds: bool) -> Option<Formula<'a>> {
        match op {
            BinaryOp::Eq => self.equal(a, b, holds).or_else(|| self.equal(b, a, holds)),
            BinaryOp::Less | BinaryOp::LessEq => {
                // `slot < literal` ends before it, `literal < slot` begins after it.
                let step = i64::from(op == BinaryOp::Less);
                let (slot, span) = if let Some((slot, value)) = number(a, b) {
                    (slot, (i64::MIN, value.checked_sub(step)?))
                } else {
                    let (slot, value) = number(b, a)?;
                    (slot, (value.checked_add(step)?, i64::MAX))
                };
                Some(self.is(Literal::Number(slot, unless(Spans::of_longs([span]), holds))))
            }
            BinaryOp::Contains => {
                let any: Vec<Formula<'a>> =
                    syntax::set(a)?.iter().map(|one| self.equal(b, one, true)).collect::<Option<_>>()?;
                if holds {
                    return Some(Formula::Any(any));
                }
                let none = syntax::set(a)?.iter().map(|one| self.equal(b, one, false));
                Some(Formula::All(none.collect::<Option<_>>()?))
            }
            BinaryOp::In => self.in_entities(a, b, holds),
            _ => None,
        }
    }

    fn in_entities(&self, a: &Expr, b: &Expr, holds: bool) -> Option<Formula<'a>> {
        let of = syntax::variable(a)?;
        let one = |uid: &std::sync::Arc<cedar_policy_core::ast::EntityUID>| match of {
            Var::Principal => Some(self.is(Literal::Principal(principal(uid)?, holds))),
            Var::Resource => Some(self.resource_in(uid, holds)),
            Var::Action => Some(Formula::Known(self.action.is_in(uid.eid().as_ref()) == holds)),
            Var::Context => None,
        };
        let all = syntax::entities(b)?.into_iter().map(one).collect::<Option<Vec<_>>>()?;
        Some(if holds { Formula::Any(all) } else { Formula::All(all) })
    }

    /// `subject == literal`.
    fn equal(&self, subject: &'a Expr, literal: &'a Expr, holds: bool) -> Option<Formula<'a>> {
        if let Some(uid) = syntax::entity(literal) {
            if let Some(of) = syntax::variable(subject) {
                return match of {
                    Var::Principal if uid.entity_type().to_string() == "Agent" => {
                        Some(self.is(Literal::Principal(Named::of(uid), holds)))
                    }
                    Var::Principal => Some(Formula::Known(!holds)),
                    Var::Action => {
                        let is_it = self.action.name() == uid.eid().as_ref() as &str;
                        Some(Formula::Known(is_it == holds))
                    }
                    Var::Resource if uid.entity_type().to_string() == self.action.resource() => {
                        Some(self.resource_in(uid, holds))
                    }
                    // One is equal to nothing that it is in.
                    Var::Resource => Some(Formula::Known(!holds)),
                    Var::Context => None,
                };
            }
            let (of, attribute) = syntax::attribute(subject)?;
            let named = Named::of(uid);
            let is_own = of == Var::Principal
                && (group(attribute) == Some(named.kind.as_str())
                    || (attribute == "tenant" && named.kind == "Tenant"));
            return is_own.then(|| self.is(Literal::Principal(named, holds)));
        }
        if let Some((slot, value)) = number(subject, literal) {
            return Some(self.is(Literal::Number(slot, unless(Spans::of_longs([(value, value)]), holds))));
        }
        if let Some(text) = syntax::string(literal) {
            return Some(self.is(Literal::Text(slot(subject)?, text.into(), holds)));
        }
        let net = syntax::ip_literal(literal)?;
        (syntax::is_ip_subject(subject) && syntax::is_single(net)).then(|| self.address(&[net], holds))
    }

    /// A question about the address.
    fn of_address(&self, function: &str, args: &[Expr], holds: bool) -> Option<Formula<'a>> {
        let (subject, rest) = args.split_first()?;
        if !syntax::is_ip_subject(subject) {
            return None;
        }
        let nets = |list: &[&str]| list.iter().map(|text| text.parse().ok()).collect::<Option<Vec<IpNet>>>();
        let v4 = Spans::new(vec![(Prefix::IPV4.first(), Prefix::IPV4.last())]);
        let spans = match (function, rest) {
            ("isInRange", [range]) => Spans::of_nets(&[syntax::ip_literal(range)?]),
            ("isIpv4", []) => v4,
            ("isIpv6", []) => v4.not(),
            ("isLoopback", []) => Spans::of_nets(&nets(&["127.0.0.0/8", "::1/128"])?),
            ("isMulticast", []) => Spans::of_nets(&nets(&["224.0.0.0/4", "ff00::/8"])?),
            _ => return None,
        };
        Some(self.is(Literal::Number(ADDRESS.to_owned(), unless(spans, holds))))
    }
}

/// The spans, or what is outside of them.
fn unless(spans: Spans, holds: bool) -> Spans {
    if holds { spans } else { spans.not() }
}

/// What an agent may be in, or be.
fn principal(uid: &cedar_policy_core::ast::EntityUID) -> Option<Named> {
    let named = Named::of(uid);
    let is_known = matches!(named.kind.as_str(), "Agent" | "Team" | "Project" | "Environment" | "Tenant");
    is_known.then_some(named)
}

/// The type of the group that an attribute of an agent is.
fn group(attribute: &str) -> Option<&'static str> {
    match attribute {
        "team" => Some("Team"),
        "project" => Some("Project"),
        "environment" => Some("Environment"),
        _ => None,
    }
}

/// The slot of an attribute that is always there, or of a label.
fn slot(expr: &Expr) -> Option<String> {
    match expr.expr_kind() {
        ExprKind::GetAttr { expr: of, attr } => match syntax::variable(of) {
            Some(Var::Context) => Some(format!("context.{attr}")),
            Some(Var::Resource) if attr.as_str() == "ip" => Some(ADDRESS.to_owned()),
            Some(Var::Resource) => Some(format!("resource.{attr}")),
            Some(Var::Principal) => Some(format!("principal.{attr}")),
            Some(Var::Action) => None,
            // A record within the context.
            None => slot(of).filter(|slot| slot.starts_with("context.")).map(|slot| format!("{slot}.{attr}")),
        },
        ExprKind::BinaryApp { op: BinaryOp::GetTag, arg1, arg2 } => {
            let name = syntax::string(arg2)?;
            match syntax::variable(arg1) {
                Some(Var::Principal) => Some(format!("principal tag {name}")),
                Some(_) => None,
                // Of what the context leads to.
                None => Some(format!("{} tag {name}", slot(arg1)?)),
            }
        }
        _ => None,
    }
}

/// A slot, and the number it is compared with.
fn number(subject: &Expr, literal: &Expr) -> Option<(String, i64)> {
    let slot = slot(subject)?;
    let value = match Field::of(subject) {
        Some(field) => field.literal(literal)?,
        None => syntax::long(literal)?,
    };
    Some((slot, value))
}

/// Functions that end in a value for every argument of their types.
const FUNCTIONS_SAFE: [&str; 14] = [
    "ip",
    "decimal",
    "datetime",
    "duration",
    "isInRange",
    "isIpv4",
    "isIpv6",
    "isLoopback",
    "isMulticast",
    "lessThan",
    "lessThanOrEqual",
    "greaterThan",
    "greaterThanOrEqual",
    "toMilliseconds",
];

/// Whether evaluating a valid condition may end in an error: where it computes, or looks into an entity that the
/// request may not have.
pub(super) fn may_fail(expr: &Expr) -> bool {
    let may = match expr.expr_kind() {
        ExprKind::BinaryApp { op, .. } => matches!(op, BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul),
        ExprKind::UnaryApp { op: UnaryOp::Neg, .. } => syntax::long(expr).is_none(),
        ExprKind::ExtensionFunctionApp { fn_name, .. } => {
            !FUNCTIONS_SAFE.contains(&fn_name.to_string().as_str())
        }
        // Of what the request has, the validator knows that it is there.
        ExprKind::GetAttr { expr: of, .. } => !is_own(of),
        _ => false,
    };
    may || syntax::parts(expr).into_iter().any(may_fail)
}

/// A variable, or a record.
fn is_own(expr: &Expr) -> bool {
    match expr.expr_kind() {
        ExprKind::Var(_) | ExprKind::Record(_) => true,
        ExprKind::GetAttr { expr, .. } => is_own(expr),
        _ => false,
    }
}
