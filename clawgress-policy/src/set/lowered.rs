//! Policies as decisions run them: conditions as small trees over what a request has, found by their scopes.
//!
//! Cedar's authorizer asks every policy, and builds every entity first; this asks those that can match, and looks up
//! what they read. INVARIANT: what comes out is what the authorizer says, in verdict, policies and errors. Where a tree
//! is not certain (an error, a type that was not expected, a construct that has no tree) the authorizer's evaluator is
//! asked about that policy alone, and its word counts. So a tree must only ever be right where it answers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use cedar_policy_core::ast::Effect;
use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;

use self::anchor::{Anchor, Anchored};
use self::lower::{Key, Lowering};
use self::node::{Kind, Node};
use self::run::{Ask, Val};
use super::syntax::{self, Policy};
use super::{Given, Inner, Look};
use crate::effect::{Obligation, Would};
use crate::head;
use crate::request::{Decision, Request};
use crate::vocabulary::{ActionKind, Reads};

mod anchor;
mod course;
mod like;
mod lower;
pub(crate) mod node;
mod run;

/// What is said of a policy that depends on what nobody knows.
const HISTORY_UNKNOWN: &str = "what the agent did before is not known";

/// The policies of one action, ready to be asked.
#[derive(Debug, Default)]
pub(crate) struct Group {
    policies: Vec<Lowered>,
    /// What any of them reads.
    reads: Reads,
    /// Of those whose scope is any principal.
    any: Bucket,
    /// Of those for a tenant.
    tenants: HashMap<Box<str>, Bucket>,
    /// Of those for one agent or group: by tenant and name.
    agents: Named,
    teams: Named,
    projects: Named,
    environments: Named,
}

type Named = HashMap<Box<str>, HashMap<Box<str>, Bucket>>;

/// Policies of one principal scope, by their resource scope.
#[derive(Debug, Default)]
struct Bucket {
    any: Vec<u32>,
    /// For any resource, by what a text of the request must begin or end with.
    anchored: Anchored,
    /// By the number of a host set, or of a class of addresses.
    sets: HashMap<u32, Vec<u32>>,
    /// By the host, model or tool.
    texts: HashMap<Box<str>, Vec<u32>>,
    /// By the provider or server.
    offerings: HashMap<Box<str>, Vec<u32>>,
    addresses: HashMap<IpAddr, Vec<u32>>,
}

/// One policy.
#[derive(Debug)]
struct Lowered {
    id: Box<str>,
    effect: Effect,
    condition: Condition,
    reads: Reads,
    cedar: cedar_policy::Policy,
}

#[derive(Debug)]
enum Condition {
    /// True where the scope is.
    True,
    /// The tree, where the scope is true.
    Tree(Node),
    /// Cedar's evaluator knows.
    Oracle,
}

/// The bucket of a name, if there is one.
fn look<'a>(tenant: &str, named: &'a Named, name: Option<&str>) -> Option<&'a Bucket> {
    named.get(tenant)?.get(name?)
}

/// What asking came to.
#[derive(Default)]
struct Found {
    permits: Vec<u32>,
    forbids: Vec<u32>,
    failed: Vec<(u32, String)>,
}

// === impl Group ===

impl Group {
    /// The group of `policies`, whose scopes all include `action`.
    pub(super) fn new<'a>(
        action: ActionKind,
        policies: impl Iterator<Item = &'a cedar_policy::Policy>,
        members: &crate::members::Members,
    ) -> Group {
        let mut group = Group::default();
        let lowering = Lowering { action, members };
        for cedar in policies {
            let policy: &Policy = cedar.as_ref();
            let scope = lowering.scope(policy);
            let condition = match (&scope, policy.non_scope_constraints()) {
                (None, _) => Condition::Oracle,
                (Some(_), None) => Condition::True,
                (Some(_), Some(condition)) => {
                    lowering.node(condition).map_or(Condition::Oracle, Condition::Tree)
                }
            };
            let number = u32::try_from(group.policies.len()).unwrap_or(u32::MAX);
            let mut reads = Reads::default();
            if let Some(condition) = policy.non_scope_constraints() {
                syntax::reads(condition, &mut reads);
                syntax::reads(condition, &mut group.reads);
            }
            let (principal, resource) = scope.unwrap_or((Key::Any, Key::Any));
            let bucket = group.bucket(principal);
            match (&condition, &resource) {
                (Condition::Tree(node), Key::Any) => match Anchor::of(node) {
                    Some(anchor) => bucket.anchored.push(anchor, number),
                    None => bucket.any.push(number),
                },
                _ => bucket.list(resource).push(number),
            }
            let (id, effect) = (cedar.id().to_string().into(), policy.effect());
            group.policies.push(Lowered { id, effect, condition, reads, cedar: cedar.clone() });
        }
        group.close();
        group
    }

    /// Makes it ready to be asked, once all its policies are there.
    fn close(&mut self) {
        let named = [&mut self.agents, &mut self.teams, &mut self.projects, &mut self.environments];
        let named = named.into_iter().flat_map(HashMap::values_mut).flat_map(HashMap::values_mut);
        let all = named.chain(self.tenants.values_mut()).chain([&mut self.any]);
        all.for_each(|bucket| bucket.anchored.close());
    }

    fn bucket(&mut self, key: Key) -> &mut Bucket {
        let (named, tenant, name) = match key {
            Key::Tenant(tenant) => return self.tenants.entry(tenant).or_default(),
            Key::Named(Kind::Agent, tenant, name) => (&mut self.agents, tenant, name),
            Key::Named(Kind::Team, tenant, name) => (&mut self.teams, tenant, name),
            Key::Named(Kind::Project, tenant, name) => (&mut self.projects, tenant, name),
            Key::Named(Kind::Environment, tenant, name) => (&mut self.environments, tenant, name),
            _ => return &mut self.any,
        };
        named.entry(tenant).or_default().entry(name).or_default()
    }

    /// The buckets that an agent's policies are in.
    fn buckets(&self, agent: &Agent) -> impl Iterator<Item = &Bucket> {
        let tenant = agent.id.tenant();
        [
            Some(&self.any),
            self.tenants.get(tenant),
            look(tenant, &self.agents, Some(agent.id.name())),
            look(tenant, &self.teams, agent.team.as_deref()),
            look(tenant, &self.projects, agent.project.as_deref()),
            look(tenant, &self.environments, agent.environment.as_deref()),
        ]
        .into_iter()
        .flatten()
    }
}

impl Bucket {
    fn list(&mut self, key: Key) -> &mut Vec<u32> {
        match key {
            Key::Set(number) => self.sets.entry(number).or_default(),
            Key::Text(text) => self.texts.entry(text).or_default(),
            Key::Offering(by) => self.offerings.entry(by).or_default(),
            Key::Address(ip) => self.addresses.entry(ip).or_default(),
            _ => &mut self.any,
        }
    }

    /// The policies of all texts that begin so.
    fn of_texts(&self, begin: &str) -> impl Iterator<Item = u32> {
        let of = self.texts.iter().filter(move |(text, _)| text.starts_with(begin));
        of.flat_map(|(_, policies)| policies).copied()
    }

    /// The policies that can match what is asked.
    fn candidates<'a>(&'a self, ask: &'a Ask<'_>) -> impl Iterator<Item = u32> + 'a {
        let sets = if self.sets.is_empty() { &[][..] } else { ask.sets() };
        let of_sets = sets.iter().filter_map(|number| self.sets.get(number));
        let text = (!self.texts.is_empty()).then(|| self.texts.get(ask.text()?)).flatten();
        let offering = (!self.offerings.is_empty()).then(|| self.offerings.get(ask.offering()?)).flatten();
        let address = (!self.addresses.is_empty()).then(|| self.addresses.get(&ask.ip()?)).flatten();
        std::iter::once(&self.any)
            .chain(of_sets)
            .chain(text)
            .chain(offering)
            .chain(address)
            .flatten()
            .copied()
            .chain(self.anchored.candidates(move |subject| ask.subject(subject)))
    }
}

impl Inner {
    /// Decides on the policies of a group: what [`decide_among`](Inner::decide_among) says of them.
    pub(crate) fn decide_by(&self, group: &Group, request: &Request<'_>, given: Given<'_>) -> Decision {
        let denied = |reason, policies, errors| Decision { verdict: Err(reason), policies, errors };
        if group.policies.is_empty() {
            return denied(DropReason::PolicyDenied, Vec::new(), Vec::new());
        }
        let failed = |message: String| {
            denied(DropReason::PolicyError, Vec::new(), vec![format!("request: {message}")])
        };
        match self.found(group, request, given) {
            Ok(found) => found.decision(group),
            Err(message) => failed(message),
        }
    }

    /// What guards that only log would have said. Of a request that can't be asked, nothing: that denies already.
    pub(super) fn would(
        &self,
        group: &Group,
        request: &Request<'_>,
        given: Given<'_>,
    ) -> Vec<Arc<Obligation>> {
        if group.policies.is_empty() {
            return Vec::new();
        }
        self.found(group, request, given).map(|found| found.would(group)).unwrap_or_default()
    }

    /// Whether the answer of any policy of the group that can match depends on what the agent did before.
    pub(super) fn depends_on_history(&self, group: &Group, request: &Request<'_>, given: Given<'_>) -> bool {
        let given = Given { history: None, ..given };
        group.reads.history && self.depends(group, request, given, |policy| policy.reads.history)
    }

    /// Whether the answer of any policy of the group that can match depends on what the request's head has no one value of.
    pub(super) fn depends_on_head(&self, group: &Group, request: &Request<'_>, given: Given<'_>) -> bool {
        group.reads.head && self.depends(group, request, given, |policy| policy.reads.head)
    }

    /// Whether any policy on an action reads what the agent did before.
    pub(super) fn reads_history_of(&self, action: ActionKind) -> bool {
        let groups = [&self.guards_lowered, &self.obliging_lowered, &self.logged_lowered];
        groups.iter().any(|groups| groups.of(action).reads.history)
    }

    /// Whether the answer of any policy of the group that can match depends on the fingerprint of a hello.
    pub(super) fn depends_on_ja4(&self, group: &Group, request: &Request<'_>, given: Given<'_>) -> bool {
        let given = Given { is_hello_unseen: true, ..given };
        group.reads.ja4 && self.depends(group, request, given, |policy| policy.reads.ja4)
    }

    /// How much of a body that was not seen the answer of any policy of the group that can match, and whose id `counts`,
    /// depends on.
    pub(super) fn depends_on_payload(
        &self,
        group: &Group,
        (request, given): (&Request<'_>, Given<'_>),
        counts: impl Fn(&str) -> bool,
    ) -> Look {
        let given = Given { is_payload_unseen: true, ..given };
        let depends = |reads: fn(&Reads) -> bool| {
            self.depends(group, request, given, |policy| reads(&policy.reads) && counts(&policy.id))
        };
        if !group.reads.payload {
            Look::Nothing
        } else if group.reads.findings && depends(|reads| reads.findings) {
            Look::Content
        } else if depends(|reads| reads.payload) {
            Look::Size
        } else {
            Look::Nothing
        }
    }

    /// Whether the answer of any policy of the group that can match, that `reads` this and whose id `counts`, depends on a body
    /// that was not seen.
    pub(super) fn depends_on_read(
        &self,
        group: &Group,
        (request, given): (&Request<'_>, Given<'_>),
        reads: fn(&Reads) -> bool,
        counts: impl Fn(&str) -> bool,
    ) -> bool {
        let given = Given { is_payload_unseen: true, ..given };
        reads(&group.reads)
            && self.depends(group, request, given, |policy| reads(&policy.reads) && counts(&policy.id))
    }

    /// Whether the answer of any policy of the group that can match, and whose id `counts`, is not certain of what is given.
    pub(super) fn depends_on_any(
        &self,
        group: &Group,
        (request, given): (&Request<'_>, Given<'_>),
        counts: impl Fn(&str) -> bool,
    ) -> bool {
        self.depends(group, request, given, |policy| counts(&policy.id))
    }

    /// Whether any policy that can match, and that this `concerns`, has no certain answer without it. What can't be asked at all
    /// is denied with it or without.
    fn depends(
        &self,
        group: &Group,
        request: &Request<'_>,
        given: Given<'_>,
        concerns: impl Fn(&Lowered) -> bool,
    ) -> bool {
        let Ok(ask) = Ask::new(self, request, given) else { return false };
        let depends = |number: u32| {
            let policy = group.policies.get(number as usize);
            policy.is_some_and(|policy| concerns(policy) && policy.certain(&ask).is_none())
        };
        if group.buckets(request.agent).any(|bucket| bucket.candidates(&ask).any(depends)) {
            return true;
        }
        // Of a model that nobody knows, each that is written may be it: where its policies' conditions may hold, that decides.
        let Some(begin) = ask.begin_unseen() else { return false };
        let may_hold = |number: u32| {
            let policy = group.policies.get(number as usize);
            policy.is_some_and(|policy| concerns(policy) && policy.certain(&ask) != Some(false))
        };
        group.buckets(request.agent).any(|bucket| bucket.of_texts(&begin).any(may_hold))
    }

    /// Whether the policies of a group may permit a request of which not all is known: one may match that permits, and none is
    /// sure to that forbids.
    pub(super) fn may_permit(&self, group: &Group, request: &Request<'_>, given: Given<'_>) -> bool {
        let Ok(ask) = Ask::new(self, request, given) else { return false };
        let mut permits = false;
        for bucket in group.buckets(request.agent) {
            for number in bucket.candidates(&ask) {
                let Some(policy) = group.policies.get(number as usize) else { return false };
                match (policy.effect, policy.certain(&ask)) {
                    (Effect::Forbid, Some(true)) => return false,
                    (Effect::Permit, Some(true) | None) => permits = true,
                    _ => {}
                }
            }
        }
        permits
    }

    fn found(&self, group: &Group, request: &Request<'_>, given: Given<'_>) -> Result<Found, String> {
        let ask = Ask::new(self, request, given)?;
        let mut found = Found::default();
        for bucket in group.buckets(request.agent) {
            for number in bucket.candidates(&ask) {
                found.ask(group, number, &ask)?;
            }
        }
        Ok(found)
    }
}

// === impl Lowered ===

impl Lowered {
    /// Whether its condition holds, if its tree is certain of it.
    fn certain(&self, ask: &Ask<'_>) -> Option<bool> {
        match &self.condition {
            Condition::True => Some(true),
            Condition::Tree(node) => match ask.run(node) {
                Ok(Val::Bool(holds)) => Some(holds),
                _ => None,
            },
            Condition::Oracle => None,
        }
    }
}

// === impl Found ===

impl Found {
    fn ask(&mut self, group: &Group, number: u32, ask: &Ask<'_>) -> Result<(), String> {
        let Some(policy) = group.policies.get(number as usize) else { return Ok(()) };
        let holds = match policy.certain(ask) {
            Some(holds) => Ok(holds),
            None if policy.reads.history && ask.lacks_history() => Err(HISTORY_UNKNOWN.to_owned()),
            None if policy.reads.head && ask.is_head_unclear() => Err(head::UNCLEAR.to_owned()),
            None => ask.oracle(policy.cedar.as_ref())?,
        };
        match holds {
            Ok(false) => {}
            Ok(true) if policy.effect == Effect::Permit => self.permits.push(number),
            Ok(true) => self.forbids.push(number),
            Err(error) => self.failed.push((number, error)),
        }
        Ok(())
    }

    fn would(&self, group: &Group) -> Vec<Arc<Obligation>> {
        let of = |number: &u32, would: Would| Some(would.of(&group.policies.get(*number as usize)?.id));
        let permits = self.permits.iter().filter_map(|number| of(number, Would::Permit));
        let forbids = self.forbids.iter().filter_map(|number| of(number, Would::Forbid));
        let failed = self.failed.iter().filter_map(|(number, _)| of(number, Would::Fail));
        permits.chain(forbids).chain(failed).collect()
    }

    fn decision(self, group: &Group) -> Decision {
        let id = |number: &u32| group.policies.get(*number as usize).map(|policy| policy.id.to_string());
        let ids = |numbers: &[u32]| {
            let mut ids: Vec<String> = numbers.iter().filter_map(id).collect();
            ids.sort_unstable();
            ids
        };
        if !self.failed.is_empty() {
            let numbers: Vec<u32> = self.failed.iter().map(|(number, _)| *number).collect();
            let named = |(number, error): &(u32, String)| Some(format!("{}: {error}", id(number)?));
            let mut errors: Vec<String> = self.failed.iter().filter_map(named).collect();
            errors.sort();
            return Decision { verdict: Err(DropReason::PolicyError), policies: ids(&numbers), errors };
        }
        let (verdict, numbers) = if !self.forbids.is_empty() {
            (Err(DropReason::PolicyForbidden), &self.forbids)
        } else if self.permits.is_empty() {
            (Err(DropReason::PolicyDenied), &self.permits)
        } else {
            (Ok(()), &self.permits)
        };
        Decision { verdict, policies: ids(numbers), errors: Vec::new() }
    }
}
