//! Reading one policy's conditions: which atoms they have, what they name, and what of them can't be compiled.
//! Must never approximate, and never evaluate.

use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy_core::ast::{Expr, ExprKind, Literal, Var};
use cedar_policy_core::parser::Loc;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Atoms, Facts, PortRanges, Rule};
use crate::host::quote;
use crate::members::{Class, Members, Prefixes};
use crate::request::Transport;
use crate::set::syntax::{self, BinaryOp, Named, Policy, Scope, UnaryOp};
use crate::set::{Name, Sense};
use crate::time;
use crate::vocabulary::ActionKind;

/// Part of a condition that cannot be compiled.
pub(super) struct Refusal {
    pub(super) at: Option<usize>,
    pub(super) message: String,
}

/// What is known of a condition before any request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Truth {
    Known(bool),
    Open,
}

/// Reads one policy for one action.
pub(super) struct Reader<'a> {
    pub(super) action: ActionKind,
    pub(super) rule: &'a mut Rule,
    pub(super) atoms: &'a mut Atoms,
    pub(super) facts: &'a mut Facts,
    pub(super) members: &'a Members,
    /// Of the part that is being read.
    pub(super) sense: Sense,
    /// By what the parts read so far name addresses and transports, where they allow.
    pub(super) names: Vec<Name>,
}

impl Reader<'_> {
    pub(super) fn policy(&mut self, policy: &Policy) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        if let Some(uid) = syntax::scope_entity(policy.principal_constraint().as_inner()) {
            self.facts.entities.insert(Named::of(uid));
        }
        if self.resource_scope(policy.resource_constraint().as_inner()) == Truth::Known(false) {
            return refusals;
        }
        if let Some(condition) = policy.non_scope_constraints() {
            self.truth(condition, &mut refusals);
        }
        refusals
    }

    fn resource_scope(&mut self, scope: &Scope) -> Truth {
        if let Scope::Is(kind) | Scope::IsIn(kind, _) = scope
            && kind.to_string() != "Network"
        {
            return Truth::Known(false);
        }
        match syntax::scope_entity(scope) {
            Some(uid) => self.resource(&Named::of(uid)),
            None => Truth::Open,
        }
    }

    fn truth(&mut self, expr: &Expr, refusals: &mut Vec<Refusal>) -> Truth {
        let before = self.names.len();
        let truth = self.read(expr, refusals);
        if truth != Truth::Open {
            // `X && false` permits nothing, so it names nothing.
            self.names.truncate(before);
        }
        truth
    }

    fn read(&mut self, expr: &Expr, refusals: &mut Vec<Refusal>) -> Truth {
        match expr.expr_kind() {
            ExprKind::Lit(Literal::Bool(value)) => Truth::Known(*value),
            ExprKind::And { left, right } => match self.truth(left, refusals) {
                Truth::Known(false) => Truth::Known(false),
                Truth::Known(true) => self.truth(right, refusals),
                // Behind an open left side only "false" is known: it may also be an error.
                Truth::Open => match self.truth(right, refusals) {
                    Truth::Known(false) => Truth::Known(false),
                    _ => Truth::Open,
                },
            },
            ExprKind::Or { left, right } => match self.truth(left, refusals) {
                Truth::Known(true) => Truth::Known(true),
                Truth::Known(false) => self.truth(right, refusals),
                Truth::Open => {
                    self.truth(right, refusals);
                    Truth::Open
                }
            },
            ExprKind::UnaryApp { op: UnaryOp::Not, arg } => {
                match self.within(self.sense.flipped(), |this| this.truth(arg, refusals)) {
                    Truth::Known(value) => Truth::Known(!value),
                    Truth::Open => Truth::Open,
                }
            }
            ExprKind::If { test_expr, then_expr, else_expr } => {
                self.choice([test_expr, then_expr, else_expr], refusals)
            }
            _ if !syntax::reaches_beyond_principal(expr) => {
                self.principal(expr);
                Truth::Open
            }
            // The tables are those of one moment, so the time tells no cells apart.
            _ if time::is_comparison(expr) => Truth::Open,
            _ => self.atom(expr).unwrap_or_else(|| {
                refusals.push(self.refusal(expr));
                Truth::Open
            }),
        }
    }

    /// Reads a part in a sense of its own.
    fn within<T>(&mut self, sense: Sense, read: impl FnOnce(&mut Self) -> T) -> T {
        let outer = std::mem::replace(&mut self.sense, sense);
        let result = read(self);
        self.sense = outer;
        result
    }

    fn choice(&mut self, [test, then, other]: [&Expr; 3], refusals: &mut Vec<Refusal>) -> Truth {
        let before = self.names.len();
        match self.within(Sense::Either, |this| this.truth(test, refusals)) {
            Truth::Known(true) => self.truth(then, refusals),
            Truth::Known(false) => self.truth(other, refusals),
            Truth::Open => {
                let tested = self.names.len();
                let then = self.truth(then, refusals);
                // `if X then false else …` is `!X && …`: X takes away, and must not count as named.
                let takes_away = match self.sense {
                    Sense::Allows => then == Truth::Known(false),
                    Sense::Denies => then == Truth::Known(true),
                    Sense::Either => false,
                };
                if takes_away {
                    self.names.drain(before..tested);
                }
                self.truth(other, refusals);
                Truth::Open
            }
        }
    }

    fn refusal(&self, expr: &Expr) -> Refusal {
        let shown = expr.source_loc().and_then(Loc::snippet).map_or_else(|| expr.to_string(), str::to_owned);
        Refusal {
            at: syntax::offset(expr),
            message: format!(
                "`{}` cannot be compiled for the kernel exactly, which `{}` must be: there a condition may compare `resource`, `resource.ip` or `context.ip` with addresses, prefixes and network sets, `context.port`, `context.protocol` and the time with literals, and use what depends on `principal` alone; rewrite it, or name other actions in the policy's scope",
                quote(&shown.split_whitespace().collect::<Vec<_>>().join(" ")),
                self.action.name()
            ),
        }
    }

    /// An atom that depends on the action, the resource or the context. `None`: not one that compiles.
    fn atom(&mut self, expr: &Expr) -> Option<Truth> {
        match expr.expr_kind() {
            ExprKind::HasAttr { expr, attr } => match syntax::variable(expr)? {
                Var::Context => {
                    let is_there = matches!(attr.as_str(), "ip" | "port" | "protocol");
                    Some(Truth::Known(is_there || time::Field::named(attr).is_some()))
                }
                Var::Resource => Some(Truth::Known(attr == "ip")),
                Var::Principal | Var::Action => None,
            },
            ExprKind::Is { expr, entity_type } if syntax::variable(expr) == Some(Var::Resource) => {
                Some(Truth::Known(entity_type.to_string() == "Network"))
            }
            ExprKind::BinaryApp { op, arg1, arg2 } => match op {
                BinaryOp::Eq => self.equal(arg1, arg2).or_else(|| self.equal(arg2, arg1)),
                BinaryOp::In => self.member(arg1, arg2),
                BinaryOp::Less => self.less(arg1, arg2, false),
                BinaryOp::LessEq => self.less(arg1, arg2, true),
                BinaryOp::Contains => self.contains(syntax::set(arg1)?, arg2),
                _ => None,
            },
            ExprKind::ExtensionFunctionApp { fn_name, args } => {
                let (subject, rest) = args.split_first()?;
                if !syntax::is_ip_subject(subject) {
                    return None;
                }
                let prefixes = match (fn_name.to_string().as_str(), rest) {
                    ("isInRange", [range]) => vec![syntax::ip_literal(range)?],
                    ("isIpv4", []) => vec![IpNet::V4(Ipv4Net::default())],
                    ("isIpv6", []) => vec![IpNet::V6(Ipv6Net::default())],
                    ("isLoopback", []) => prefixes(&["127.0.0.0/8", "::1/128"]),
                    ("isMulticast", []) => prefixes(&["224.0.0.0/4", "ff00::/8"]),
                    _ => return None,
                };
                Some(self.destination(prefixes))
            }
            _ => None,
        }
    }

    fn equal(&mut self, subject: &Expr, literal: &Expr) -> Option<Truth> {
        match syntax::variable(subject) {
            Some(Var::Action) => {
                let uid = syntax::entity(literal)?;
                return Some(Truth::Known(uid.eid().as_ref() == self.action.name()));
            }
            Some(Var::Resource) => {
                let named = Named::of(syntax::entity(literal)?);
                return Some(if named.kind == "Network" {
                    self.resource(&named)
                } else {
                    Truth::Known(false)
                });
            }
            _ => {}
        }
        self.contains(std::slice::from_ref(literal), subject)
    }

    fn member(&mut self, subject: &Expr, group: &Expr) -> Option<Truth> {
        let groups = syntax::entities(group)?;
        match syntax::variable(subject)? {
            Var::Action => Some(Truth::Known(groups.iter().any(|uid| self.action.is_in(uid.eid().as_ref())))),
            Var::Resource => {
                let mut truth = Truth::Known(false);
                for uid in groups {
                    if self.resource(&Named::of(uid)) == Truth::Open {
                        truth = Truth::Open;
                    }
                }
                Some(truth)
            }
            Var::Principal | Var::Context => None,
        }
    }

    /// `[literals].contains(subject)`; equality is a set of one.
    fn contains(&mut self, literals: &[Expr], subject: &Expr) -> Option<Truth> {
        if syntax::is_context(subject, "protocol") {
            // Protocols are decided one by one, so any comparison with literals is exact.
            let names = literals.iter().map(syntax::string).collect::<Option<Vec<_>>>()?;
            for transport in names.into_iter().filter_map(Transport::from_name) {
                self.name(Name::Transport(transport));
            }
            return Some(Truth::Open);
        }
        if syntax::is_context(subject, "port") {
            let ports = literals.iter().map(syntax::long).collect::<Option<BTreeSet<i64>>>()?;
            let ranges = ports.into_iter().filter_map(|n| u16::try_from(n).ok()).map(|n| (n, n));
            return Some(self.port(ranges.collect()));
        }
        if syntax::is_ip_subject(subject) {
            let prefixes = literals.iter().map(syntax::ip_literal).collect::<Option<Vec<_>>>()?;
            return Some(self.destination(prefixes.into_iter().filter(|p| syntax::is_single(*p)).collect()));
        }
        if syntax::variable(subject) == Some(Var::Resource) {
            let uids = literals.iter().map(syntax::entity).collect::<Option<Vec<_>>>()?;
            let addresses = uids.into_iter().map(|u| Named::of(u)).filter(|n| n.kind == "Network");
            let prefixes = addresses.filter_map(|n| syntax::literal_address(&n.id)).collect();
            return Some(self.destination(prefixes));
        }
        None
    }

    fn less(&mut self, left: &Expr, right: &Expr, or_equal: bool) -> Option<Truth> {
        let port = |n: i64| u16::try_from(n.clamp(0, 65_535)).ok();
        let range = if syntax::is_context(left, "port") {
            let bound = syntax::long(right)?;
            let last = if or_equal { Some(bound) } else { bound.checked_sub(1) };
            last.filter(|n| *n >= 0).and_then(port).map(|last| (0, last))
        } else if syntax::is_context(right, "port") {
            let bound = syntax::long(left)?;
            let first = if or_equal { Some(bound) } else { bound.checked_add(1) };
            first.filter(|n| *n <= 65_535).and_then(port).map(|first| (first, u16::MAX))
        } else {
            return None;
        };
        Some(self.port(range.into_iter().collect()))
    }

    /// `resource == E` or `resource in E`.
    fn resource(&mut self, named: &Named) -> Truth {
        match named.kind.as_str() {
            "Network" => self.destination(syntax::literal_address(&named.id).into_iter().collect()),
            kind => match Class::of(kind, &named.id) {
                Some(class) => {
                    self.class(class);
                    Truth::Open
                }
                None => Truth::Known(false),
            },
        }
    }

    fn class(&mut self, class: Class) {
        // ASNs and countries name nothing: see `PolicySet::reach`.
        if let Class::Set(name) = &class {
            self.name(Name::Set(name.clone()));
        }
        if let Some(atoms) = self.atoms.class_ids.get(&class) {
            return self.rule.destinations.extend(atoms);
        }
        let all = self.members.class(&class).cloned().unwrap_or_default();
        let naming: Prefixes = if all.iter().all(|p| p.prefix_len() > 0) {
            Arc::clone(&all)
        } else {
            all.iter().filter(|p| p.prefix_len() > 0).copied().collect()
        };
        let atoms = [self.destination_atom(all), self.destination_atom(naming)];
        self.atoms.class_ids.insert(class, atoms);
    }

    /// Notes what a part names, if it allows.
    fn name(&mut self, name: Name) {
        if self.sense != Sense::Denies {
            self.names.push(name);
        }
    }

    fn destination(&mut self, mut prefixes: Vec<IpNet>) -> Truth {
        for prefix in &prefixes {
            self.name(Name::Prefix(*prefix));
        }
        prefixes.iter_mut().for_each(|p| *p = p.trunc());
        prefixes.sort_unstable();
        prefixes.dedup();
        self.destination_atom(prefixes.into());
        Truth::Open
    }

    fn destination_atom(&mut self, prefixes: Prefixes) -> u32 {
        let next = u32::try_from(self.atoms.destination_ids.len()).unwrap_or(u32::MAX);
        let atom = *self.atoms.destination_ids.entry(prefixes).or_insert(next);
        self.rule.destinations.insert(atom);
        atom
    }

    fn port(&mut self, ranges: PortRanges) -> Truth {
        let next = u32::try_from(self.atoms.port_ids.len()).unwrap_or(u32::MAX);
        self.rule.ports.insert(*self.atoms.port_ids.entry(ranges).or_insert(next));
        Truth::Open
    }

    /// Notes what an expression over `principal` alone reads.
    fn principal(&mut self, expr: &Expr) {
        let is_principal = |e: &Expr| syntax::variable(e) == Some(Var::Principal);
        match expr.expr_kind() {
            ExprKind::BinaryApp { op: BinaryOp::Eq | BinaryOp::In, arg1, arg2 } if is_principal(arg1) => {
                if let Some(uids) = syntax::entities(arg2) {
                    return self.facts.entities.extend(uids.into_iter().map(|u| Named::of(u)));
                }
            }
            ExprKind::BinaryApp { op: BinaryOp::Eq, arg1, arg2 } if is_principal(arg2) => {
                if let Some(uid) = syntax::entity(arg1) {
                    self.facts.entities.insert(Named::of(uid));
                    return;
                }
            }
            ExprKind::BinaryApp { op: BinaryOp::HasTag | BinaryOp::GetTag, arg1, arg2 }
                if is_principal(arg1) =>
            {
                if let Some(label) = syntax::string(arg2) {
                    self.facts.labels.insert(label.to_owned());
                    return;
                }
            }
            ExprKind::GetAttr { expr, attr } | ExprKind::HasAttr { expr, attr } => {
                self.facts.attributes.insert(attr.to_string());
                if is_principal(expr) {
                    return;
                }
            }
            ExprKind::Is { expr, .. } if is_principal(expr) => return,
            ExprKind::Var(Var::Principal) | ExprKind::ExtHasAttr { .. } => self.facts.whole = true,
            ExprKind::Lit(Literal::EntityUID(uid)) => {
                self.facts.entities.insert(Named::of(uid));
            }
            _ => {}
        }
        for part in syntax::parts(expr) {
            self.principal(part);
        }
    }
}

fn prefixes(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().filter_map(|t| t.parse().ok()).collect()
}
