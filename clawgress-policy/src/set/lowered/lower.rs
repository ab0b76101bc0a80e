//! Cedar's syntax tree to ours. What has no tree here is left to Cedar's evaluator: `None`, never a guess.

use std::net::IpAddr;

use cedar_policy_core::ast::{EntityUID, Expr, ExprKind, Literal, Var};

use super::like::Like;
use super::node::{Const, Elements, Entity, IpTest, Kind, Membership, Node};
use crate::content::Attribute;
use crate::fingerprint::Signal;
use crate::head::Part;
use crate::history;
use crate::members::{Class, Members};
use crate::set::syntax::{self, BinaryOp, EntityReference, Policy, Scope, UnaryOp};
use crate::time::{Field, datetime_ms};
use crate::vocabulary::ActionKind;

/// What a policy's scope is found by.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key {
    Any,
    Tenant(Box<str>),
    /// By tenant and name.
    Named(Kind, Box<str>, Box<str>),
    Set(u32),
    /// A host, model or tool.
    Text(Box<str>),
    /// The provider or server that it is of.
    Offering(Box<str>),
    Address(IpAddr),
}

/// Lowers the policies of one action.
pub(super) struct Lowering<'a> {
    pub(super) action: ActionKind,
    pub(super) members: &'a Members,
}

impl Lowering<'_> {
    /// By what principal and resource the policy is found, if being found means that its scope is true.
    pub(super) fn scope(&self, policy: &Policy) -> Option<(Key, Key)> {
        Some((
            self.principal(policy.principal_constraint().as_inner())?,
            self.resource(policy.resource_constraint().as_inner())?,
        ))
    }

    fn principal(&self, scope: &Scope) -> Option<Key> {
        let (kind, uid) = match scope {
            Scope::Any => return Some(Key::Any),
            Scope::Is(kind) => return (kind.to_string() == "Agent").then_some(Key::Any),
            Scope::Eq(reference) => (None, reference),
            Scope::In(reference) => (None, reference),
            Scope::IsIn(kind, reference) => (Some(kind), reference),
        };
        if kind.is_some_and(|kind| kind.to_string() != "Agent") {
            return None;
        }
        let EntityReference::EUID(uid) = uid else { return None };
        let entity = self.entity(uid)?;
        let is_eq = matches!(scope, Scope::Eq(_));
        match entity.kind {
            Kind::Tenant if !is_eq => Some(Key::Tenant(entity.id)),
            Kind::Agent => named(&entity),
            Kind::Team | Kind::Project | Kind::Environment if !is_eq => named(&entity),
            _ => None,
        }
    }

    fn resource(&self, scope: &Scope) -> Option<Key> {
        match scope {
            Scope::Any => Some(Key::Any),
            Scope::Is(kind) => (Kind::named(&kind.to_string())? == self.resource_kind()).then_some(Key::Any),
            Scope::Eq(EntityReference::EUID(uid)) => {
                let entity = self.entity(uid)?;
                match entity.kind {
                    Kind::Host | Kind::Model | Kind::Tool if self.resource_kind() == entity.kind => {
                        Some(Key::Text(entity.id))
                    }
                    Kind::Network if self.resource_kind() == Kind::Network => {
                        address(&entity).map(Key::Address)
                    }
                    _ => None,
                }
            }
            Scope::In(EntityReference::EUID(uid)) => self.set_key(uid),
            Scope::IsIn(kind, EntityReference::EUID(uid)) => {
                let is_ours = Kind::named(&kind.to_string())? == self.resource_kind();
                is_ours.then(|| self.set_key(uid))?
            }
            _ => None,
        }
    }

    fn set_key(&self, uid: &EntityUID) -> Option<Key> {
        let entity = self.entity(uid)?;
        match (entity.kind, self.resource_kind()) {
            (Kind::Provider, Kind::Model) | (Kind::ToolServer, Kind::Tool) => {
                return Some(Key::Offering(entity.id));
            }
            (_, Kind::Model | Kind::Tool) => return None,
            _ => {}
        }
        // The numbers of host sets and of classes are each their own: only those of this resource may be taken.
        let is_of_hosts = entity.kind == Kind::HostSet;
        (is_of_hosts == (self.resource_kind() == Kind::Host)).then_some(Key::Set(entity.set?))
    }

    fn resource_kind(&self) -> Kind {
        match self.action {
            ActionKind::Connect | ActionKind::Direct => Kind::Network,
            ActionKind::Llm => Kind::Model,
            ActionKind::Tool => Kind::Tool,
            _ => Kind::Host,
        }
    }

    fn entity(&self, uid: &EntityUID) -> Option<Entity> {
        let name = uid.entity_type().to_string();
        let kind = Kind::named(&name)?;
        let id: &str = uid.eid().as_ref();
        let set = match kind {
            Kind::HostSet => self.members.host_set_number(id),
            _ => Class::of(&name, id).and_then(|class| self.members.class_number(&class)),
        };
        Some(Entity { kind, id: id.into(), set })
    }

    /// The tree of a condition.
    pub(super) fn node(&self, expr: &Expr) -> Option<Node> {
        let pair = |a: &Expr, b: &Expr| Some(Box::new((self.node(a)?, self.node(b)?)));
        match expr.expr_kind() {
            ExprKind::Lit(literal) => self.literal(literal),
            ExprKind::Var(Var::Principal) => Some(Node::Principal),
            ExprKind::Var(Var::Resource) => Some(Node::Resource),
            ExprKind::And { left, right } => Some(Node::And(pair(left, right)?)),
            ExprKind::Or { left, right } => Some(Node::Or(pair(left, right)?)),
            ExprKind::If { test_expr, then_expr, else_expr } => Some(Node::If(Box::new((
                self.node(test_expr)?,
                self.node(then_expr)?,
                self.node(else_expr)?,
            )))),
            ExprKind::UnaryApp { op, arg } => {
                let arg = Box::new(self.node(arg)?);
                Some(match op {
                    UnaryOp::Not => Node::Not(arg),
                    UnaryOp::Neg => Node::Neg(arg),
                    UnaryOp::IsEmpty => Node::IsEmpty(arg),
                })
            }
            ExprKind::BinaryApp { op, arg1, arg2 } => self.binary(*op, arg1, arg2),
            ExprKind::GetAttr { expr, attr } => match syntax::variable(expr) {
                Some(variable) => self.attribute(variable, attr),
                None => self.of_history(expr, attr).or_else(|| self.of_record(expr, attr)),
            },
            ExprKind::HasAttr { expr, attr } => self.has(syntax::variable(expr)?, attr),
            ExprKind::Like { expr, pattern } => {
                Some(Node::Like(Box::new(self.node(expr)?), Like::of(pattern)))
            }
            ExprKind::Is { expr, entity_type } => {
                Some(Node::Is(Box::new(self.node(expr)?), Kind::named(&entity_type.to_string())?))
            }
            ExprKind::Set(elements) => self.set(elements).map(Node::Set),
            ExprKind::ExtensionFunctionApp { fn_name, args } => {
                self.function(expr, &fn_name.to_string(), args)
            }
            _ => None,
        }
    }

    fn literal(&self, literal: &Literal) -> Option<Node> {
        Some(Node::Const(match literal {
            Literal::Bool(b) => Const::Bool(*b),
            Literal::Long(n) => Const::Long(*n),
            Literal::String(s) => Const::Str(s.as_str().into()),
            Literal::EntityUID(uid) => Const::Entity(self.entity(uid)?),
        }))
    }

    fn set(&self, elements: &[Expr]) -> Option<Elements> {
        let constant = |e: &Expr| match self.node(e)? {
            Node::Const(constant) => Some(constant),
            _ => None,
        };
        Some(Elements::new(elements.iter().map(constant).collect::<Option<_>>()?))
    }

    fn binary(&self, op: BinaryOp, a: &Expr, b: &Expr) -> Option<Node> {
        if let Some(known) = self.of_action(op, a, b) {
            return Some(Node::Const(Const::Bool(known)));
        }
        if op == BinaryOp::In {
            let of = self.node(a)?;
            // A written entity may be one of the request's own.
            if matches!(of, Node::Const(_)) {
                return None;
            }
            let entities = syntax::entities(b)?.into_iter().map(|uid| self.entity(uid));
            return Some(Node::In(Box::new(of), entities.collect::<Option<_>>()?));
        }
        if matches!(op, BinaryOp::GetTag | BinaryOp::HasTag) {
            if syntax::variable(a) != Some(Var::Principal) {
                return self.of_head(op, a, b);
            }
            let key = Box::new(self.node(b)?);
            return Some(if op == BinaryOp::GetTag { Node::GetTag(key) } else { Node::HasTag(key) });
        }
        let pair = Box::new((self.node(a)?, self.node(b)?));
        Some(match op {
            BinaryOp::Eq => Node::Eq(pair),
            BinaryOp::Less => Node::Less(pair),
            BinaryOp::LessEq => Node::LessEq(pair),
            BinaryOp::Add => Node::Add(pair),
            BinaryOp::Sub => Node::Sub(pair),
            BinaryOp::Mul => Node::Mul(pair),
            BinaryOp::Contains => Node::Contains(pair),
            BinaryOp::ContainsAll => Node::ContainsAll(pair),
            BinaryOp::ContainsAny => Node::ContainsAny(pair),
            BinaryOp::In | BinaryOp::GetTag | BinaryOp::HasTag => return None,
        })
    }

    /// `context.headers.hasTag("name")`, and what else is asked of a part of the head.
    fn of_head(&self, op: BinaryOp, part: &Expr, name: &Expr) -> Option<Node> {
        let (Var::Context, part) = syntax::attribute(part)? else { return None };
        let part = Part::named(part).filter(|_| self.action == ActionKind::Http)?;
        let name = syntax::string(name)?.into();
        Some(if op == BinaryOp::HasTag { Node::HasNamed(part, name) } else { Node::Named(part, name) })
    }

    /// What is asked of the action itself is known here.
    fn of_action(&self, op: BinaryOp, a: &Expr, b: &Expr) -> Option<bool> {
        if syntax::variable(a) != Some(Var::Action) {
            return None;
        }
        let is_one = |uid: &EntityUID| uid.entity_type().to_string() == "Action";
        match op {
            BinaryOp::Eq => {
                let uid = syntax::entity(b)?;
                Some(is_one(uid) && uid.eid().as_ref() as &str == self.action.name())
            }
            BinaryOp::In => {
                let uids = syntax::entities(b)?;
                Some(uids.iter().any(|uid| is_one(uid) && self.action.is_in(uid.eid().as_ref())))
            }
            _ => None,
        }
    }

    fn attribute(&self, of: Var, name: &str) -> Option<Node> {
        match (of, name) {
            (Var::Principal, "name") => Some(Node::AgentName),
            (Var::Principal, "tenant") => Some(Node::AgentTenant),
            (Var::Principal, _) => Membership::named(name).map(Node::AgentGroup),
            (Var::Resource, "name") if self.resource_kind() == Kind::Host => Some(Node::HostName),
            (Var::Resource, "ip") if self.resource_kind() == Kind::Network => Some(Node::Ip),
            (Var::Context, _) => self.context(name),
            _ => None,
        }
    }

    /// The signal of this name, if the action's context may have one.
    fn signal(&self, name: &str) -> Option<Signal> {
        Signal::named(name).filter(|_| !self.action.is_of_addresses())
    }

    /// An attribute of the action's context. All but the fingerprints are always there.
    fn context(&self, name: &str) -> Option<Node> {
        use ActionKind::{Connect, Direct, Http, Tls, Tunnel};
        if let Some(attribute) = Attribute::named(self.action, None, name) {
            return Some(Node::Content(attribute));
        }
        if let Some(signal) = self.signal(name) {
            return Some(Node::Fingerprint(signal));
        }
        if let (Http, Some(part)) = (self.action, Part::of_names(name)) {
            return Some(Node::Names(part));
        }
        Some(match (self.action, name) {
            (Connect | Direct, "ip") => Node::Ip,
            (Connect | Direct | Tls | Tunnel | Http, "port") => Node::Port,
            (Connect | Direct | Tunnel, "protocol") => Node::Protocol,
            (Tls, "alpn") => Node::Alpn,
            (Tls, syntax::JA4) => Node::Ja4,
            (Http, "scheme") => Node::Scheme,
            (Http, "method") => Node::Method,
            (Http, "path") => Node::Path,
            _ => match Field::named(name)? {
                Field::Time => Node::Time,
                Field::Hour => Node::Hour,
                Field::Minute => Node::Minute,
                Field::Weekday => Node::Weekday,
            },
        })
    }

    /// `context.history.name`.
    fn of_history(&self, record: &Expr, name: &str) -> Option<Node> {
        let is_there = !self.action.is_of_addresses();
        let is_record = is_there && syntax::is_context(record, history::Field::RECORD);
        is_record.then(|| history::Field::named(name).map(Node::History))?
    }

    /// `context.record.name`.
    fn of_record(&self, record: &Expr, name: &str) -> Option<Node> {
        let (Var::Context, record) = syntax::attribute(record)? else { return None };
        Attribute::named(self.action, Some(record), name).map(Node::Content)
    }

    /// Whether the context has a record of this name, or what is asked by tags.
    fn is_record(&self, name: &str) -> bool {
        Attribute::is_record(self.action, name)
            || (self.action == ActionKind::Http && Part::named(name).is_some())
            || (name == history::Field::RECORD && !self.action.is_of_addresses())
    }

    fn has(&self, of: Var, name: &str) -> Option<Node> {
        let known = |is: bool| Some(Node::Const(Const::Bool(is)));
        let signal = self.signal(name).filter(|_| of == Var::Context);
        if let Some(signal) = signal {
            return Some(Node::HasFingerprint(signal));
        }
        match of {
            Var::Principal => match Membership::named(name) {
                Some(group) => Some(Node::HasGroup(group)),
                None => known(matches!(name, "name" | "tenant")),
            },
            Var::Context if self.is_record(name) => known(true),
            Var::Resource | Var::Context => known(self.attribute(of, name).is_some()),
            Var::Action => None,
        }
    }

    fn function(&self, expr: &Expr, name: &str, args: &[Expr]) -> Option<Node> {
        let test = match name {
            "ip" => return syntax::ip_literal(expr).map(|net| Node::Const(Const::Ip(net))),
            "datetime" => return datetime_ms(expr).map(|ms| Node::Const(Const::Time(ms))),
            "isInRange" => {
                let [address, range] = args else { return None };
                return Some(Node::InRange(Box::new((self.node(address)?, self.node(range)?))));
            }
            "isIpv4" => IpTest::Ipv4,
            "isIpv6" => IpTest::Ipv6,
            "isLoopback" => IpTest::Loopback,
            "isMulticast" => IpTest::Multicast,
            _ => return None,
        };
        let [address] = args else { return None };
        Some(Node::IpIs(test, Box::new(self.node(address)?)))
    }
}

fn named(entity: &Entity) -> Option<Key> {
    let (tenant, name) = entity.parts()?;
    Some(Key::Named(entity.kind, tenant.into(), name.into()))
}

/// The address that a `Network` is, if its id is the one spelling that requests have.
fn address(entity: &Entity) -> Option<IpAddr> {
    entity.id.parse::<IpAddr>().ok().filter(|ip| ip.to_string() == *entity.id)
}
