//! What `connect` and `direct` policies depend on: the atoms of their conditions.
//!
//! A condition compiles exactly if each of its atoms depends on the agent alone, on the destination
//! address alone (a set of prefixes), on the port alone (a set of ranges) or on the protocol. Between
//! the boundaries of those sets nothing that a policy reads changes, so one decision speaks for a whole
//! cell. Anything else is refused here with its place. Must never approximate, and never evaluate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cedar_policy_core::ast::{Effect, Expr, ExprKind, Literal, Var};
use cedar_policy_core::parser::Loc;
use clawgress_identity::Agent;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::PolicyProblem;
use crate::host::quote;
use crate::members::{Class, Members, Prefixes};
use crate::request::Transport;
use crate::set::syntax::{self, BinaryOp, EntityReference, Named, Policy, Scope, UnaryOp};
use crate::set::{Name, Names, Sense, Source, applies};
use crate::time;
use crate::vocabulary::{ActionKind, qualified};

/// A set of ports: inclusive ranges.
pub(crate) type PortRanges = Vec<(u16, u16)>;

/// The atoms of all conditions, each once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Atoms {
    destination_ids: BTreeMap<Prefixes, u32>,
    /// The atoms of each network set, ASN and country, so that a large one is not compared for every
    /// policy that names it: all its prefixes, and those that name addresses.
    class_ids: BTreeMap<Class, [u32; 2]>,
    port_ids: BTreeMap<PortRanges, u32>,
}

impl Atoms {
    /// Prefixes of each destination atom, with its id.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = (&Prefixes, u32)> {
        self.destination_ids.iter().map(|(prefixes, id)| (prefixes, *id))
    }

    /// Ranges of each port atom, with its id.
    pub(crate) fn ports(&self) -> impl Iterator<Item = (&PortRanges, u32)> {
        self.port_ids.iter().map(|(ranges, id)| (ranges, *id))
    }
}

/// What of an agent conditions read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    entities: BTreeSet<Named>,
    labels: BTreeSet<String>,
    attributes: BTreeSet<String>,
    /// Something that the above does not describe.
    whole: bool,
}

/// Values of [`Facts`] for one agent: agents with equal keys are decided alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AgentKey {
    entities: Vec<bool>,
    labels: Vec<Option<String>>,
    attributes: Vec<Option<String>>,
    whole: Option<(String, BTreeMap<String, String>)>,
}

/// A policy of the set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) id: &'a str,
    pub(crate) is_obligation: bool,
}

/// A policy that applies to `connect` or `direct`, or an obligation.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// Position in the set's text.
    position: usize,
    /// A guard of `connect`.
    pub(crate) connect: bool,
    /// A guard of `direct`.
    pub(crate) direct: bool,
    pub(crate) is_obligation: bool,
    principal: Scope,
    pub(crate) destinations: BTreeSet<u32>,
    pub(crate) ports: BTreeSet<u32>,
    pub(crate) cedar: Option<cedar_policy::Policy>,
}

/// The kernel plane's view of a policy set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) atoms: Atoms,
    pub(crate) rules: Vec<Rule>,
    facts: Facts,
    /// By what each permit of `connect` names addresses and transports; only those that do.
    names: BTreeMap<String, Names>,
    /// The same of `direct`, where only transports count.
    direct_names: BTreeMap<String, Names>,
    /// What permits of `connect` name of the transports that must be named.
    transports: BTreeSet<Transport>,
}

impl Plan {
    /// Reads the conditions of `policies` (in the order of the text).
    ///
    /// # Errors
    /// Each part of a condition that has no exact compilation.
    pub(crate) fn new<'a>(
        policies: impl Iterator<Item = Written<'a>>,
        source: &Source<'_>,
        members: &Members,
    ) -> Result<Plan, Vec<PolicyProblem>> {
        let mut plan = Plan::default();
        let mut problems = Vec::new();
        for (position, Written { policy, id, is_obligation }) in policies.enumerate() {
            let mut rule = Rule {
                position,
                connect: applies(policy, ActionKind::Connect) && !is_obligation,
                direct: applies(policy, ActionKind::Direct) && !is_obligation,
                is_obligation,
                principal: policy.principal_constraint().as_inner().clone(),
                destinations: BTreeSet::new(),
                ports: BTreeSet::new(),
                cedar: None,
            };
            for action in [ActionKind::Connect, ActionKind::Direct] {
                if applies(policy, action) {
                    let mut reader = Reader {
                        action,
                        rule: &mut rule,
                        atoms: &mut plan.atoms,
                        facts: &mut plan.facts,
                        members,
                        sense: Sense::of(policy),
                        names: Vec::new(),
                    };
                    let refusals = reader.policy(policy);
                    let names: Names = reader.names.into_iter().collect();
                    // An obligation opens nothing, so it names nothing.
                    if policy.effect() == Effect::Permit && !is_obligation && !names.is_empty() {
                        plan.note(action, id, names);
                    }
                    problems.extend(refusals.into_iter().map(|r| source.problem(Some(id), r.at, r.message)));
                }
            }
            if rule.connect || rule.direct || is_obligation {
                plan.rules.push(rule);
            }
        }
        if problems.is_empty() { Ok(plan) } else { Err(problems) }
    }

    /// The same plan with the policies as decisions run them, in the order of the text.
    pub(crate) fn with_policies(mut self, policies: &[cedar_policy::Policy]) -> Plan {
        for rule in &mut self.rules {
            rule.cedar = policies.get(rule.position).cloned();
        }
        self
    }

    fn note(&mut self, action: ActionKind, id: &str, names: Names) {
        if action == ActionKind::Connect {
            self.transports.extend(&names.transports);
            self.names.insert(id.to_owned(), names);
        } else {
            self.direct_names.insert(id.to_owned(), names);
        }
    }

    /// The transports that must be named, and are by some permit.
    pub(crate) fn transports(&self) -> impl Iterator<Item = Transport> + '_ {
        self.transports.iter().copied()
    }

    /// Whether any policy can permit this transport.
    pub(crate) fn may_carry(&self, transport: Transport) -> bool {
        !transport.is_named_only() || self.transports.contains(&transport)
    }

    /// Whether a permit of this action names the transport.
    pub(crate) fn names_transport(&self, action: ActionKind, policy: &str, transport: Transport) -> bool {
        let names = if action == ActionKind::Connect { &self.names } else { &self.direct_names };
        names.get(policy).is_some_and(|n| n.transports.contains(&transport))
    }

    /// By what a permit of `connect` names addresses, if it does.
    pub(crate) fn names_of(&self, policy: &str) -> Option<&Names> {
        self.names.get(policy)
    }

    /// What decisions may read of this agent.
    pub(crate) fn key(&self, agent: &Agent) -> AgentKey {
        let groups = groups(agent);
        let attribute = |name: &String| match name.as_str() {
            "name" => Some(agent.id.name().to_owned()),
            "tenant" => Some(agent.id.tenant().to_owned()),
            "team" => agent.team.clone(),
            "project" => agent.project.clone(),
            "environment" => agent.environment.clone(),
            _ => None,
        };
        AgentKey {
            entities: self.facts.entities.iter().map(|e| groups.contains(e)).collect(),
            labels: self.facts.labels.iter().map(|l| agent.labels.get(l).cloned()).collect(),
            attributes: self.facts.attributes.iter().map(attribute).collect(),
            whole: self.facts.whole.then(|| (agent.id.to_string(), agent.labels.clone())),
        }
    }

    /// The rules whose principal scope this agent matches.
    pub(crate) fn rules_for(&self, agent: &Agent) -> Vec<&Rule> {
        let groups = groups(agent);
        self.rules.iter().filter(|rule| in_scope(&rule.principal, agent, &groups)).collect()
    }
}

/// The agent itself and all it is in.
pub(crate) fn groups(agent: &Agent) -> BTreeSet<Named> {
    let named = |kind: &str, id: String| Named { kind: kind.to_owned(), id };
    let tenant = agent.id.tenant();
    let mut groups =
        BTreeSet::from([named("Agent", agent.id.to_string()), named("Tenant", tenant.to_owned())]);
    for (kind, name) in
        [("Team", &agent.team), ("Project", &agent.project), ("Environment", &agent.environment)]
    {
        groups.extend(name.iter().map(|name| named(kind, qualified(tenant, name))));
    }
    groups
}

/// Whether a principal scope includes an agent with these groups.
pub(crate) fn in_scope(scope: &Scope, agent: &Agent, groups: &BTreeSet<Named>) -> bool {
    let is_agent = |kind: &cedar_policy_core::ast::EntityType| kind.to_string() == "Agent";
    match scope {
        Scope::Any => true,
        Scope::Is(kind) => is_agent(kind),
        Scope::Eq(EntityReference::EUID(uid)) => {
            Named::of(uid) == Named { kind: "Agent".to_owned(), id: agent.id.to_string() }
        }
        Scope::In(EntityReference::EUID(uid)) => groups.contains(&Named::of(uid)),
        Scope::IsIn(kind, EntityReference::EUID(uid)) => is_agent(kind) && groups.contains(&Named::of(uid)),
        // Templates are refused before; to count a rule that cannot match is exact, only slower.
        _ => true,
    }
}

/// Part of a condition that cannot be compiled.
struct Refusal {
    at: Option<usize>,
    message: String,
}

/// What is known of a condition before any request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Truth {
    Known(bool),
    Open,
}

/// Reads one policy for one action.
struct Reader<'a> {
    action: ActionKind,
    rule: &'a mut Rule,
    atoms: &'a mut Atoms,
    facts: &'a mut Facts,
    members: &'a Members,
    /// Of the part that is being read.
    sense: Sense,
    /// By what the parts read so far name addresses and transports, where they allow.
    names: Vec<Name>,
}

impl Reader<'_> {
    fn policy(&mut self, policy: &Policy) -> Vec<Refusal> {
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
