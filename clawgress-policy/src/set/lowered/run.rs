//! One request put to trees. Looks up only what is read, and that once.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::IpAddr;

use cedar_policy_core::ast::Request as CedarRequest;
use cedar_policy_core::entities::Entities;
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;
use clawgress_identity::Agent;
use ipnet::IpNet;

use super::anchor::Subject;
use super::node::{Const, Elements, Entity, IpTest, Kind, Membership, Node};
use crate::Host;
use crate::address::canonical;
use crate::content::{Attribute, Told};
use crate::head::Value;
use crate::history::Fact;
use crate::request::{Operation, Request};
use crate::set::syntax::Policy;
use crate::set::{Given, Inner};
use crate::time::{Moment, Ticks};
use crate::vocabulary::{ActionKind, offered};

/// A tree came to no answer: Cedar's evaluator has to be asked.
pub(super) struct Unsure;

/// A value.
#[derive(Clone, Copy)]
pub(super) enum Val<'a> {
    Bool(bool),
    Long(i64),
    Str(&'a str),
    Entity(Own<'a>),
    Ip(IpNet),
    Time(i64),
    Set(&'a Elements),
    /// A set of strings: each may be there more than once.
    Strings(&'a [String]),
}

/// An entity, of the request or written.
#[derive(Clone, Copy)]
pub(super) enum Own<'a> {
    Principal,
    Resource,
    Tenant,
    Group(Membership, &'a str),
    Written(&'a Entity),
}

/// One request.
pub(super) struct Ask<'a> {
    inner: &'a Inner,
    request: &'a Request<'a>,
    given: Given<'a>,
    text: OnceCell<Cow<'a, str>>,
    named: OnceCell<Cow<'a, str>>,
    sets: OnceCell<Vec<u32>>,
    cedar: OnceCell<Result<(CedarRequest, Entities), String>>,
}

// === impl Ask ===

impl<'a> Ask<'a> {
    /// The request, if it can be asked at all.
    ///
    /// # Errors
    /// What can't be asked, as Cedar would be told.
    pub(super) fn new(
        inner: &'a Inner,
        request: &'a Request<'a>,
        given: Given<'a>,
    ) -> Result<Ask<'a>, String> {
        inner.check(&request.operation, given)?;
        let (text, named) = (OnceCell::new(), OnceCell::new());
        let (sets, cedar) = (OnceCell::new(), OnceCell::new());
        Ok(Ask { inner, request, given, text, named, sets, cedar })
    }

    /// Whether nobody knows what the agent did before, of a request that policy may ask it of.
    pub(super) fn lacks_history(&self) -> bool {
        let is_of_addresses = ActionKind::of(&self.request.operation).is_of_addresses();
        !is_of_addresses && self.given.history.is_none()
    }

    /// Whether anything that policy may ask of the request's head has no one value.
    pub(super) fn is_head_unclear(&self) -> bool {
        matches!(self.request.operation, Operation::Http { head, .. } if head.lacks(&self.inner.mentions))
    }

    fn agent(&self) -> &'a Agent {
        self.request.agent
    }

    fn host(&self) -> Option<&'a Host> {
        self.request.operation.host()
    }

    /// The provider or server that the resource is of.
    pub(super) fn offering(&self) -> Option<&str> {
        self.request.operation.offered().map(|(by, _)| by)
    }

    /// The address asked for, in its one form.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        match self.request.operation {
            Operation::Connect { ip, .. } | Operation::Direct { ip, .. } => Some(canonical(ip)),
            _ => None,
        }
    }

    /// The host, model or tool asked for, as its id.
    pub(super) fn text(&self) -> Option<&str> {
        if let Some((by, name)) = self.request.operation.offered() {
            return Some(self.text.get_or_init(|| Cow::Owned(offered(by, name))));
        }
        let host = self.host()?;
        Some(self.text.get_or_init(|| text_of(host)))
    }

    /// What the texts of all resources begin with that it may be, where nobody knows which model is asked for.
    pub(super) fn begin_unseen(&self) -> Option<String> {
        let is_unseen = || self.given.unseen.has(Attribute::LlmModel);
        self.offering().filter(|_| is_unseen()).map(|by| offered(by, ""))
    }

    /// Whether the resource, a model that nobody knows, is one of these, or in it: `None` where it may be.
    fn is_unseen_in(&self, begin: &str, entities: &[&Entity]) -> Option<bool> {
        let is_of = |entity: &Entity| entity.kind == Kind::Provider && self.is_in(Own::Resource, entity);
        let may_be = |entity: &Entity| entity.kind == Kind::Model && entity.id.starts_with(begin);
        if entities.iter().any(|entity| is_of(entity)) {
            return Some(true);
        }
        (!entities.iter().any(|entity| may_be(entity))).then_some(false)
    }

    /// What a tree about such a resource comes to, if it is one that asks about it itself; of what else does, nothing is certain.
    fn about_unseen(&self, node: &Node) -> Option<Result<Val<'_>, Unsure>> {
        let known = match node {
            Node::Resource => None,
            Node::Is(of, kind) if matches!(**of, Node::Resource) => Some(self.kind(Own::Resource) == *kind),
            Node::In(of, entities) if matches!(**of, Node::Resource) => {
                self.is_unseen_in(&self.begin_unseen()?, &entities.iter().collect::<Vec<_>>())
            }
            Node::Eq(pair) => match (&pair.0, &pair.1) {
                (Node::Resource, Node::Const(Const::Entity(entity)))
                | (Node::Const(Const::Entity(entity)), Node::Resource)
                    if entity.kind == Kind::Model =>
                {
                    self.is_unseen_in(&self.begin_unseen()?, &[entity])
                }
                _ => return None,
            },
            _ => return None,
        };
        self.begin_unseen().map(|_| known.map(Val::Bool).ok_or(Unsure))
    }

    /// A text by which policies are found, if the request has it.
    pub(super) fn subject(&self, subject: Subject) -> Option<&str> {
        match (subject, &self.request.operation) {
            (Subject::Host, operation) => operation.host().and_then(|_| self.text()),
            (Subject::Method, Operation::Http { method, .. }) => Some(method),
            (Subject::Path, Operation::Http { path, .. }) => Some(path),
            _ => None,
        }
    }

    /// The host that a context names, as text.
    fn named(&self, host: &'a Host) -> &str {
        self.named.get_or_init(|| text_of(host))
    }

    /// Numbers of the host sets, or of the classes, that the resource is in.
    pub(super) fn sets(&self) -> &[u32] {
        self.sets.get_or_init(|| match (self.ip(), self.host(), self.text()) {
            (Some(ip), ..) => self.inner.members.numbers_of_address(ip),
            (None, Some(host), Some(text)) => self.inner.members.numbers_of_host(host, text),
            _ => Vec::new(),
        })
    }

    /// What Cedar's evaluator says of one policy: whether it holds, or how it fails.
    ///
    /// # Errors
    /// If the request can't be put in Cedar's terms.
    pub(super) fn oracle(&self, policy: &Policy) -> Result<Result<bool, String>, String> {
        let asked = self.cedar.get_or_init(|| self.inner.in_cedars_terms(self.request, self.given));
        let (request, entities) = asked.as_ref().map_err(Clone::clone)?;
        let evaluator = Evaluator::new(request.clone(), entities, Extensions::all_available());
        Ok(evaluator.evaluate(policy).map_err(|error| error.to_string()))
    }

    fn port(&self) -> Result<i64, Unsure> {
        Ok(i64::from(match self.request.operation {
            Operation::Connect { port, transport, .. } | Operation::Direct { port, transport, .. } => {
                if transport.has_ports() {
                    port
                } else {
                    0
                }
            }
            Operation::Tls { port, .. } | Operation::Tunnel { port, .. } | Operation::Http { port, .. } => {
                port
            }
            // Told with what is said.
            _ => return Err(Unsure),
        }))
    }

    fn ticks(&self) -> Result<Ticks, Unsure> {
        self.given.moment.map(Moment::ticks).ok_or(Unsure)
    }

    fn group(&self, group: Membership) -> Option<&'a str> {
        let agent = self.agent();
        match group {
            Membership::Team => agent.team.as_deref(),
            Membership::Project => agent.project.as_deref(),
            Membership::Environment => agent.environment.as_deref(),
        }
    }

    fn bool(&self, node: &Node) -> Result<bool, Unsure> {
        match self.run(node)? {
            Val::Bool(b) => Ok(b),
            _ => Err(Unsure),
        }
    }

    fn long(&self, node: &Node) -> Result<i64, Unsure> {
        match self.run(node)? {
            Val::Long(n) => Ok(n),
            _ => Err(Unsure),
        }
    }

    fn ip_of(&self, node: &Node) -> Result<IpNet, Unsure> {
        match self.run(node)? {
            Val::Ip(net) => Ok(net),
            _ => Err(Unsure),
        }
    }

    /// The value of a tree, if it is certain.
    pub(super) fn run<'b>(&'b self, node: &'b Node) -> Result<Val<'b>, Unsure> {
        if self.given.unseen.has(Attribute::LlmModel)
            && let Some(known) = self.about_unseen(node)
        {
            return known;
        }
        Ok(match node {
            Node::Const(constant) => Val::of(constant),
            Node::Set(elements) => Val::Set(elements),
            Node::Not(a) => Val::Bool(!self.bool(a)?),
            Node::And(pair) => Val::Bool(self.bool(&pair.0)? && self.bool(&pair.1)?),
            Node::Or(pair) => Val::Bool(self.bool(&pair.0)? || self.bool(&pair.1)?),
            Node::If(three) => {
                return self.run(if self.bool(&three.0)? { &three.1 } else { &three.2 });
            }
            Node::Eq(pair) => Val::Bool(self.equal(self.run(&pair.0)?, self.run(&pair.1)?)),
            Node::Less(pair) => Val::Bool(self.order(pair)?.is_lt()),
            Node::LessEq(pair) => Val::Bool(self.order(pair)?.is_le()),
            Node::Neg(a) => Val::Long(self.long(a)?.checked_neg().ok_or(Unsure)?),
            Node::Add(pair) => self.arithmetic(pair, i64::checked_add)?,
            Node::Sub(pair) => self.arithmetic(pair, i64::checked_sub)?,
            Node::Mul(pair) => self.arithmetic(pair, i64::checked_mul)?,
            Node::Contains(_) | Node::ContainsAll(_) | Node::ContainsAny(_) | Node::IsEmpty(_) => {
                return self.about_sets(node);
            }
            Node::In(of, entities) => match self.run(of)? {
                Val::Entity(own) => {
                    let is_in = entities.iter().any(|entity| self.is_in(own, entity));
                    // A written entity may be one of the request's own, which is in more than itself.
                    if !is_in && matches!(own, Own::Written(_)) {
                        return Err(Unsure);
                    }
                    Val::Bool(is_in)
                }
                _ => return Err(Unsure),
            },
            Node::Is(of, kind) => match self.run(of)? {
                Val::Entity(own) => Val::Bool(self.kind(own) == *kind),
                _ => return Err(Unsure),
            },
            Node::Like(of, like) => match self.run(of)? {
                Val::Str(text) => Val::Bool(like.matches(text)),
                _ => return Err(Unsure),
            },
            Node::HasTag(key) => Val::Bool(self.label(key)?.is_some()),
            Node::GetTag(key) => Val::Str(self.label(key)?.ok_or(Unsure)?),
            Node::IpIs(test, of) => Val::Bool(is_so(*test, self.ip_of(of)?)),
            Node::InRange(pair) => Val::Bool(self.ip_of(&pair.1)?.contains(&self.ip_of(&pair.0)?)),
            slot => return self.slot(slot),
        })
    }

    /// What the request has.
    fn slot(&self, node: &Node) -> Result<Val<'_>, Unsure> {
        Ok(match (node, &self.request.operation) {
            (Node::Principal, _) => Val::Entity(Own::Principal),
            (Node::Resource, _) => Val::Entity(Own::Resource),
            (Node::AgentName, _) => Val::Str(self.agent().id.name()),
            (Node::AgentTenant, _) => Val::Entity(Own::Tenant),
            (Node::AgentGroup(group), _) => {
                Val::Entity(Own::Group(*group, self.group(*group).ok_or(Unsure)?))
            }
            (Node::HasGroup(group), _) => Val::Bool(self.group(*group).is_some()),
            (Node::HostName, _) => Val::Str(self.text().ok_or(Unsure)?),
            (Node::Ip, _) => Val::Ip(IpNet::from(self.ip().ok_or(Unsure)?)),
            (Node::Port, _) => Val::Long(self.port()?),
            (Node::Protocol, Operation::Connect { transport, .. } | Operation::Direct { transport, .. }) => {
                Val::Str(transport.name())
            }
            (Node::Protocol, Operation::Tunnel { protocol, .. }) => Val::Str(protocol.name()),
            (Node::Scheme, Operation::Http { scheme, .. }) => Val::Str(scheme.name()),
            (Node::Method, Operation::Http { method, .. }) => Val::Str(method),
            (Node::Path, Operation::Http { path, .. }) => Val::Str(path),
            (Node::Names(part), Operation::Http { head, .. }) => {
                Val::Strings(head.part(*part).names().ok_or(Unsure)?)
            }
            (Node::HasNamed(part, name), Operation::Http { head, .. }) => {
                let said = head.part(*part).value(name).ok_or(Unsure)?;
                Val::Bool(matches!(said, Some(Value::One(_) | Value::Unclear)))
            }
            (Node::Named(part, name), Operation::Http { head, .. }) => {
                match head.part(*part).value(name).flatten() {
                    Some(Value::One(said)) => Val::Str(said),
                    _ => return Err(Unsure),
                }
            }
            (Node::Alpn, Operation::Tls { alpn, .. }) => Val::Strings(alpn),
            (Node::Ja4, Operation::Tls { ja4, .. }) if !self.given.is_hello_unseen => Val::Str(ja4),
            (Node::History(field), _) => Val::of_fact(self.given.history.ok_or(Unsure)?.fact(*field)),
            (Node::Fingerprint(signal), _) => {
                Val::Str(self.given.fingerprints.and_then(|known| known.of(*signal)).ok_or(Unsure)?)
            }
            (Node::HasFingerprint(signal), _) => {
                Val::Bool(self.given.fingerprints.ok_or(Unsure)?.of(*signal).is_some())
            }
            (Node::Content(attribute), operation) => self.told(*attribute, operation)?,
            (Node::Time, _) => Val::Time(self.ticks()?.start_ms),
            (Node::Hour, _) => Val::Long(self.ticks()?.hour),
            (Node::Minute, _) => Val::Long(self.ticks()?.minute),
            (Node::Weekday, _) => Val::Long(self.ticks()?.weekday),
            _ => return Err(Unsure),
        })
    }

    fn told(&self, attribute: Attribute, operation: &Operation<'a>) -> Result<Val<'_>, Unsure> {
        let is_unseen = match attribute {
            Attribute::Findings
            | Attribute::Complete
            | Attribute::UsageInput
            | Attribute::UsageOutput
            | Attribute::UsageTools
            | Attribute::CallName
            | Attribute::CallArgumentNames
            | Attribute::CallValues
            | Attribute::CallArguments => self.given.is_payload_unseen,
            Attribute::Bytes => self.given.is_size_unseen,
            Attribute::MediaType => self.given.is_media_type_unseen,
            Attribute::ToolArgumentNames | Attribute::ToolValues | Attribute::ToolArguments => {
                self.given.are_arguments_unseen
            }
            _ => false,
        };
        if is_unseen || self.given.unseen.has(attribute) {
            return Err(Unsure);
        }
        Ok(match attribute.told(operation).ok_or(Unsure)? {
            Told::Bool(b) => Val::Bool(b),
            Told::Long(n) => Val::Long(n),
            Told::Str(s) => Val::Str(s),
            Told::Strings(all) => Val::Strings(all),
            Told::Host(host) => Val::Str(self.named(host)),
        })
    }

    fn arithmetic(
        &self,
        pair: &(Node, Node),
        operation: impl Fn(i64, i64) -> Option<i64>,
    ) -> Result<Val<'_>, Unsure> {
        let (a, b) = (self.long(&pair.0)?, self.long(&pair.1)?);
        operation(a, b).map(Val::Long).ok_or(Unsure)
    }

    fn order(&self, pair: &(Node, Node)) -> Result<std::cmp::Ordering, Unsure> {
        match (self.run(&pair.0)?, self.run(&pair.1)?) {
            (Val::Long(a), Val::Long(b)) | (Val::Time(a), Val::Time(b)) => Ok(a.cmp(&b)),
            _ => Err(Unsure),
        }
    }

    /// Cedar's equality: values of different types are not equal.
    fn equal(&self, a: Val<'_>, b: Val<'_>) -> bool {
        match (a, b) {
            (Val::Bool(a), Val::Bool(b)) => a == b,
            (Val::Long(a), Val::Long(b)) | (Val::Time(a), Val::Time(b)) => a == b,
            (Val::Str(a), Val::Str(b)) => a == b,
            (Val::Ip(a), Val::Ip(b)) => a == b,
            (Val::Entity(a), Val::Entity(b)) => self.same(a, b),
            (a @ (Val::Set(_) | Val::Strings(_)), b @ (Val::Set(_) | Val::Strings(_))) => {
                self.has_all(a, b) && self.has_all(b, a)
            }
            _ => false,
        }
    }

    fn same(&self, a: Own<'_>, b: Own<'_>) -> bool {
        match (a, b) {
            (Own::Principal, Own::Principal)
            | (Own::Resource, Own::Resource)
            | (Own::Tenant, Own::Tenant) => true,
            (Own::Group(a, name), Own::Group(b, other)) => a == b && name == other,
            (Own::Written(a), Own::Written(b)) => a == b,
            (own, Own::Written(written)) | (Own::Written(written), own) => self.is_written(own, written),
            _ => false,
        }
    }

    fn is_written(&self, own: Own<'_>, written: &Entity) -> bool {
        let id = &self.agent().id;
        if self.kind(own) != written.kind {
            return false;
        }
        match own {
            Own::Principal => written.parts() == Some((id.tenant(), id.name())),
            Own::Group(_, name) => written.parts() == Some((id.tenant(), name)),
            Own::Tenant => *written.id == *id.tenant(),
            Own::Resource => match self.ip() {
                Some(ip) => ip.to_string() == *written.id,
                None => self.text() == Some(&*written.id),
            },
            Own::Written(own) => own == written,
        }
    }

    /// Whether an entity of the request is `written`, or below it.
    fn is_in(&self, own: Own<'_>, written: &Entity) -> bool {
        if self.is_written(own, written) {
            return true;
        }
        let groups = [Membership::Team, Membership::Project, Membership::Environment];
        match own {
            Own::Principal => {
                self.is_written(Own::Tenant, written)
                    || groups.into_iter().any(|group| {
                        self.group(group)
                            .is_some_and(|name| self.is_written(Own::Group(group, name), written))
                    })
            }
            Own::Group(..) => self.is_written(Own::Tenant, written),
            Own::Resource if matches!(written.kind, Kind::Provider | Kind::ToolServer) => {
                let is_of_models = written.kind == Kind::Provider;
                is_of_models == (self.kind(own) == Kind::Model) && self.offering() == Some(&*written.id)
            }
            Own::Resource => {
                let is_of_hosts = written.kind == Kind::HostSet;
                is_of_hosts == self.host().is_some()
                    && written.set.is_some_and(|number| self.sets().contains(&number))
            }
            Own::Tenant | Own::Written(_) => false,
        }
    }

    fn kind(&self, own: Own<'_>) -> Kind {
        match own {
            Own::Principal => Kind::Agent,
            Own::Tenant => Kind::Tenant,
            Own::Group(group, _) => group.kind(),
            Own::Resource => match self.request.operation {
                Operation::Connect { .. } | Operation::Direct { .. } => Kind::Network,
                Operation::Llm(_) => Kind::Model,
                Operation::Tool(_) => Kind::Tool,
                _ => Kind::Host,
            },
            Own::Written(entity) => entity.kind,
        }
    }

    fn label(&self, key: &Node) -> Result<Option<&'a str>, Unsure> {
        match self.run(key)? {
            Val::Str(key) => Ok(self.agent().labels.get(key).map(String::as_str)),
            _ => Err(Unsure),
        }
    }

    fn about_sets<'b>(&'b self, node: &'b Node) -> Result<Val<'b>, Unsure> {
        let set = |node: &'b Node| match self.run(node)? {
            set @ (Val::Set(_) | Val::Strings(_)) => Ok(set),
            _ => Err(Unsure),
        };
        Ok(Val::Bool(match node {
            Node::Contains(pair) => {
                let (all, one) = (set(&pair.0)?, self.run(&pair.1)?);
                self.has(all, one)
            }
            Node::ContainsAll(pair) => {
                let (all, some) = (set(&pair.0)?, set(&pair.1)?);
                self.has_all(all, some)
            }
            Node::ContainsAny(pair) => {
                let (all, some) = (set(&pair.0)?, set(&pair.1)?);
                elements(some).any(|element| self.has(all, element))
            }
            Node::IsEmpty(of) => match set(of)? {
                Val::Set(elements) => elements.len() == 0,
                Val::Strings(strings) => strings.is_empty(),
                _ => return Err(Unsure),
            },
            _ => return Err(Unsure),
        }))
    }

    fn has(&self, set: Val<'_>, element: Val<'_>) -> bool {
        match (set, element) {
            (Val::Set(Elements::Longs(all)), Val::Long(n)) => all.binary_search(&n).is_ok(),
            (Val::Set(Elements::Strings(all)), Val::Str(s)) => all.binary_search_by(|e| (**e).cmp(s)).is_ok(),
            (Val::Set(Elements::Mixed(all)), element) => all.iter().any(|e| self.equal(Val::of(e), element)),
            (Val::Strings(all), Val::Str(s)) => all.iter().any(|e| e == s),
            _ => false,
        }
    }

    fn has_all(&self, set: Val<'_>, some: Val<'_>) -> bool {
        elements(some).all(|element| self.has(set, element))
    }
}

impl<'a> Val<'a> {
    fn of(constant: &'a Const) -> Val<'a> {
        match constant {
            Const::Bool(b) => Val::Bool(*b),
            Const::Long(n) => Val::Long(*n),
            Const::Str(s) => Val::Str(s),
            Const::Entity(entity) => Val::Entity(Own::Written(entity)),
            Const::Ip(net) => Val::Ip(*net),
            Const::Time(ms) => Val::Time(*ms),
        }
    }

    fn of_fact(fact: Fact) -> Val<'a> {
        match fact {
            Fact::Long(n) => Val::Long(n),
            Fact::Bool(b) => Val::Bool(b),
        }
    }
}

fn text_of(host: &Host) -> Cow<'_, str> {
    match host {
        Host::Name(name) => Cow::Borrowed(name.as_str()),
        Host::Address(_) => Cow::Owned(host.to_string()),
    }
}

/// The elements of a set.
fn elements<'a>(set: Val<'a>) -> Box<dyn Iterator<Item = Val<'a>> + 'a> {
    match set {
        Val::Set(Elements::Longs(all)) => Box::new(all.iter().map(|n| Val::Long(*n))),
        Val::Set(Elements::Strings(all)) => Box::new(all.iter().map(|s| Val::Str(s))),
        Val::Set(Elements::Mixed(all)) => Box::new(all.iter().map(Val::of)),
        Val::Strings(all) => Box::new(all.iter().map(|s| Val::Str(s))),
        _ => Box::new(std::iter::empty()),
    }
}

/// As Cedar has it: of a prefix, whether all of it is so.
fn is_so(test: IpTest, net: IpNet) -> bool {
    let is_v4 = matches!(net, IpNet::V4(_));
    let (address, length) = (net.addr(), net.prefix_len());
    match test {
        IpTest::Ipv4 => is_v4,
        IpTest::Ipv6 => !is_v4,
        IpTest::Loopback => address.is_loopback() && length >= if is_v4 { 8 } else { 128 },
        IpTest::Multicast => address.is_multicast() && length >= if is_v4 { 4 } else { 8 },
    }
}
