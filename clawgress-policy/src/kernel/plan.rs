//! What `connect` and `direct` policies depend on: the atoms of their conditions.
//!
//! A condition compiles exactly if each of its atoms depends on the agent alone, on the destination
//! address alone (a set of prefixes), on the port alone (a set of ranges) or on the protocol. Between
//! the boundaries of those sets nothing that a policy reads changes, so one decision speaks for a whole
//! cell. Anything else is refused here with its place. Must never approximate, and never evaluate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cedar_policy_core::ast::Effect;
use clawgress_identity::Agent;

use crate::PolicyProblem;
use crate::members::{Class, Members, Prefixes};
use crate::request::Transport;
use crate::set::syntax::{EntityReference, Named, Policy, Scope};
use crate::set::{Names, Sense, Source, applies};
use crate::vocabulary::{ActionKind, qualified};

mod read;

use read::Reader;

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

    /// Takes in the atoms of another plan. Those that are equal are one.
    pub(crate) fn take_in(&mut self, others: &Atoms) -> Renumbering {
        let mut renumbering = Renumbering::default();
        for (prefixes, atom) in others.destinations() {
            let next = u32::try_from(self.destination_ids.len()).unwrap_or(u32::MAX);
            let here = *self.destination_ids.entry(Arc::clone(prefixes)).or_insert(next);
            renumbering.destinations.insert(atom, here);
        }
        for (ranges, atom) in others.ports() {
            let next = u32::try_from(self.port_ids.len()).unwrap_or(u32::MAX);
            let here = *self.port_ids.entry(ranges.clone()).or_insert(next);
            renumbering.ports.insert(atom, here);
        }
        renumbering
    }

    /// Ranges of each port atom, with its id.
    pub(crate) fn ports(&self) -> impl Iterator<Item = (&PortRanges, u32)> {
        self.port_ids.iter().map(|(ranges, id)| (ranges, *id))
    }
}

/// What the atoms of one plan are among those of several.
#[derive(Clone, Debug, Default)]
pub(crate) struct Renumbering {
    destinations: BTreeMap<u32, u32>,
    ports: BTreeMap<u32, u32>,
}

impl Renumbering {
    /// These of a plan's destination atoms.
    pub(crate) fn destinations<'a>(
        &'a self,
        atoms: impl Iterator<Item = &'a u32> + 'a,
    ) -> impl Iterator<Item = u32> + 'a {
        atoms.filter_map(|atom| self.destinations.get(atom)).copied()
    }

    /// These of its port atoms.
    pub(crate) fn ports<'a>(
        &'a self,
        atoms: impl Iterator<Item = &'a u32> + 'a,
    ) -> impl Iterator<Item = u32> + 'a {
        atoms.filter_map(|atom| self.ports.get(atom)).copied()
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
    /// It decides nothing, and no table is made of it.
    pub(crate) is_apart: bool,
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
        for (position, Written { policy, id, is_obligation, is_apart }) in policies.enumerate() {
            if is_apart {
                continue;
            }
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
