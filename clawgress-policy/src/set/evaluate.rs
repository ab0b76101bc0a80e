//! A request put to Cedar's authorizer. Must never allow where any policy could not be evaluated: the
//! one that failed may have been a forbid.

use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy_core::ast::{Context, Entity, Request as CedarRequest, RequestSchemaAllPass, Value};
use cedar_policy_core::authorizer::{AuthorizationError, Authorizer, Decision as CedarDecision, Response};
use cedar_policy_core::entities::{Entities, NoEntitiesSchema, TCComputation};
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;
use clawgress_ebpf_common::DropReason;

use super::lowered::Group;
use super::{Given, Inner, Opening};
use crate::Host;
use crate::address::canonical;
use crate::content;
use crate::effect::{Effect, Obligation, Would};
use crate::fingerprint::Signal;
use crate::head::{self, Part};
use crate::history::{self, Fact, History};
use crate::kernel::Limiter;
use crate::kernel::plan::Plan;
use crate::members::Members;
use crate::request::{Decision, Operation, Request};
use crate::time::Zone;
use crate::vocabulary::ActionKind;

/// A request's resource and context in Cedar's terms.
struct Question {
    resource: Entity,
    context: Context,
    /// What the context leads to.
    values: Vec<Entity>,
}

impl Inner {
    /// The obligations of `connect`.
    #[cfg(test)]
    pub(crate) fn limiting(&self) -> &cedar_policy::PolicySet {
        self.obliging.of(ActionKind::Connect)
    }

    /// The same, as decisions ask them.
    pub(super) fn limiting_lowered(&self) -> &Group {
        self.obliging_lowered.of(ActionKind::Connect)
    }

    /// Whether any policy may oblige what stays unread (`tls`, `tunnel`) to something.
    pub(super) fn obliges_opaque(&self) -> bool {
        let obligation = |id: &cedar_policy::PolicyId| self.obligations.get(id.to_string().as_str());
        // An alert is told whatever comes of the rest, and changes nothing.
        let holds_back = |id| obligation(id).is_some_and(|o| o.effect != Effect::Alert);
        let obliging = [ActionKind::Tls, ActionKind::Tunnel].map(|action| self.obliging.of(action));
        obliging.iter().any(|set| set.policies().any(|policy| holds_back(policy.id())))
    }

    /// The obligations that L7 keeps of those that match.
    pub(super) fn kept(&self, obliged: Decision) -> Result<Vec<Arc<Obligation>>, Decision> {
        if obliged.verdict == Err(DropReason::PolicyError) {
            return Err(obliged);
        }
        Ok(obliged.policies.iter().filter_map(|id| self.obligations.get(id).cloned()).collect())
    }

    /// What guards that only log would have said, by Cedar's evaluator: policy by policy, since the authorizer tells of
    /// failures alone where there are any, and of forbids alone where any matches.
    pub(super) fn would_among(
        &self,
        (permits, forbids): &(cedar_policy::PolicySet, cedar_policy::PolicySet),
        request: &Request<'_>,
        given: Given<'_>,
    ) -> Vec<Arc<Obligation>> {
        if permits.is_empty() && forbids.is_empty() {
            return Vec::new();
        }
        let Ok((request, entities)) = self.whole(request, given) else { return Vec::new() };
        let evaluator = Evaluator::new(request, &entities, Extensions::all_available());
        let all = [(permits, Would::Permit), (forbids, Would::Forbid)].into_iter();
        let all = all.flat_map(|(policies, would)| policies.policies().map(move |policy| (policy, would)));
        all.filter_map(|(policy, would)| match evaluator.evaluate(policy.as_ref()) {
            Ok(holds) => holds.then(|| would.of(policy.id().as_ref())),
            Err(_) => Some(Would::Fail.of(policy.id().as_ref())),
        })
        .collect()
    }

    pub(crate) fn limiters(&self) -> &[Limiter] {
        &self.limiters
    }

    pub(crate) fn zone(&self) -> &Zone {
        &self.zone
    }

    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What the permits of these ids open, of those that are its own.
    pub(super) fn opened(&self, policies: &[String]) -> impl Iterator<Item = Opening> {
        policies.iter().filter_map(|id| self.openings.get(id)).flatten().copied()
    }

    /// Decides on `policies` alone: all that apply to the action, or those of them that can match the
    /// request's principal.
    ///
    /// What it asks for and is not given denies.
    pub(crate) fn decide_among(
        &self,
        policies: &cedar_policy::PolicySet,
        request: &Request<'_>,
        given: Given<'_>,
    ) -> Decision {
        if policies.is_empty() {
            return Decision {
                verdict: Err(DropReason::PolicyDenied),
                policies: Vec::new(),
                errors: Vec::new(),
            };
        }
        match self.evaluate(policies, request, given) {
            Ok(decision) => decision,
            Err(message) => Decision {
                verdict: Err(DropReason::PolicyError),
                policies: Vec::new(),
                errors: vec![format!("request: {message}")],
            },
        }
    }

    fn evaluate(
        &self,
        policies: &cedar_policy::PolicySet,
        request: &Request<'_>,
        given: Given<'_>,
    ) -> Result<Decision, String> {
        let (request, entities) = self.whole(request, given)?;
        Ok(verdict(Authorizer::new().is_authorized(request, policies.as_ref(), &entities)))
    }

    /// Whether a request can be asked at all.
    ///
    /// # Errors
    /// If its host or the name of its provider is not in canonical form, or the set asks for the time or for fingerprints, and is not given
    /// them. What the agent did before is missed only by policies whose answer depends on it.
    pub(super) fn check(&self, operation: &Operation<'_>, given: Given<'_>) -> Result<(), String> {
        let named = match operation {
            Operation::Llm(call) => Some(call.host),
            Operation::Tool(call) => Some(call.host),
            _ => operation.host(),
        };
        if named.is_some_and(|host| !host.is_canonical()) {
            // A forbid on the canonical spelling would be missed.
            return Err("the host is not in canonical form".to_owned());
        }
        if operation.offered().is_some_and(|(by, _)| by.contains('/')) {
            // What is of `a/b` could be taken for what is of `a`.
            return Err("the name of a provider or tool server has a `/`".to_owned());
        }
        if self.reads.time && given.moment.is_none() {
            return Err("policy asks for the time, and none was given".to_owned());
        }
        let is_of_addresses = ActionKind::of(operation).is_of_addresses();
        if self.reads.fingerprints && !is_of_addresses && given.fingerprints.is_none() {
            return Err("policy asks for fingerprints, and what is known of them was not given".to_owned());
        }
        Ok(())
    }

    /// A request as Cedar takes it, with all that any policy reads.
    fn whole(&self, request: &Request<'_>, given: Given<'_>) -> Result<(CedarRequest, Entities), String> {
        let is_of_addresses = ActionKind::of(&request.operation).is_of_addresses();
        if self.reads.history && !is_of_addresses && given.history.is_none() {
            return Err("policy asks for the agent's history, and none was given".to_owned());
        }
        if matches!(request.operation, Operation::Http { head, .. } if head.lacks(&self.mentions)) {
            return Err(head::UNCLEAR.to_owned());
        }
        self.in_cedars_terms(request, given)
    }

    /// A request as Cedar takes it, with the entities that policies read.
    pub(super) fn in_cedars_terms(
        &self,
        request: &Request<'_>,
        given: Given<'_>,
    ) -> Result<(CedarRequest, Entities), String> {
        let extensions = Extensions::all_available();
        self.check(&request.operation, given)?;
        let Question { resource, context, values } = self.question(&request.operation, given)?;
        let action = self.vocabulary.action(ActionKind::of(&request.operation));
        let cedar_request = CedarRequest::new(
            (self.vocabulary.agent_uid(request.agent), None),
            (action.uid().clone(), None),
            (resource.uid().clone(), None),
            context,
            None::<&RequestSchemaAllPass>,
            extensions,
        )
        .map_err(|e| e.to_string())?;
        let mut entities = vec![action.clone(), resource];
        entities.extend(values);
        self.vocabulary.push_agent(request.agent, self.reads, &mut entities);
        // The vocabulary gives every entity all its ancestors.
        let entities = Entities::from_entities(
            entities,
            None::<&NoEntitiesSchema>,
            TCComputation::AssumeAlreadyComputed,
            extensions,
        )
        .map_err(|e| e.to_string())?;
        Ok((cedar_request, entities))
    }

    fn question(&self, operation: &Operation<'_>, given: Given<'_>) -> Result<Question, String> {
        let string = |s: &str| Value::from(s);
        let port = |n: &u16| ("port", Value::from(i64::from(*n)));
        let mut values = Vec::new();
        let (resource, mut pairs) = match operation {
            Operation::Connect { ip, port: number, transport }
            | Operation::Direct { ip, port: number, transport } => {
                let ip = canonical(*ip);
                // Where there are no ports, or none that count: one value, so that both planes see the same.
                let number = if transport.has_ports() { number } else { &0 };
                let value = self.vocabulary.ip(ip)?;
                let classes = self.members.classes_of(ip, 0);
                let resource = self.vocabulary.network(ip, &value, classes, self.reads);
                (resource, vec![("ip", value), port(number), ("protocol", string(transport.name()))])
            }
            Operation::Tls { host, port: number, alpn, ja4 } => {
                let alpn = Value::set(alpn.iter().map(|a| string(a)), None);
                (self.host(host), vec![port(number), ("alpn", alpn), ("ja4", string(ja4))])
            }
            Operation::Tunnel { host, port: number, protocol } => {
                (self.host(host), vec![port(number), ("protocol", string(protocol.name()))])
            }
            Operation::Http { host, port: number, scheme, method, path, head } => {
                let mut pairs = vec![
                    port(number),
                    ("scheme", string(scheme.name())),
                    ("method", string(method)),
                    ("path", string(path)),
                ];
                for part in Part::ALL.into_iter().filter(|_| self.reads.head) {
                    let named = head.part(part);
                    let names = named.names().unwrap_or_default().iter().map(|name| string(name));
                    let entity = self.vocabulary.values(part, named);
                    pairs.push((part.names(), Value::set(names, None)));
                    pairs.push((part.name(), Value::from(entity.uid().clone())));
                    values.push(entity);
                }
                (self.host(host), pairs)
            }
            Operation::Resolve { host, .. }
            | Operation::Send { host, .. }
            | Operation::Receive { host, .. } => {
                (self.host(host), content::pairs(ActionKind::of(operation), operation))
            }
            Operation::Llm(_) | Operation::Tool(_) => {
                let action = ActionKind::of(operation);
                let (by, name) = operation.offered().unwrap_or_default();
                (self.vocabulary.offered(action, by, name), content::pairs(action, operation))
            }
        };
        if let Some(moment) = given.moment.filter(|_| self.reads.time) {
            pairs.extend(moment.pairs()?);
        }
        // What the kernel decides has neither, whoever asks.
        let is_of_addresses = ActionKind::of(operation).is_of_addresses();
        if let Some(history) = given.history.filter(|_| self.reads.history && !is_of_addresses) {
            pairs.push((history::Field::RECORD, record(history)));
        }
        if let Some(known) = given.fingerprints.filter(|_| self.reads.fingerprints && !is_of_addresses) {
            let told = Signal::ALL.into_iter().filter_map(|s| Some((s.name(), string(known.of(s)?))));
            pairs.extend(told);
        }
        let context = Context::Value(Arc::new(pairs.into_iter().map(|(k, v)| (k.into(), v)).collect()));
        Ok(Question { resource, context, values })
    }

    fn host(&self, host: &Host) -> Entity {
        let text = host.to_string();
        let sets = self.members.sets_of_host(host, &text);
        self.vocabulary.host(&text, sets.into_iter(), self.reads)
    }
}

fn record(history: &History) -> Value {
    let value = |field: history::Field| match history.fact(field) {
        Fact::Long(n) => Value::from(n),
        Fact::Bool(b) => Value::from(b),
    };
    Value::record(history::Field::ALL.map(|field| (field.name(), value(field))), None)
}

/// Cedar's answer in ours.
fn verdict(response: Response) -> Decision {
    let mut errors = Vec::new();
    let mut failed = BTreeSet::new();
    for AuthorizationError::PolicyEvaluationError { id, error } in &response.diagnostics.errors {
        errors.push(format!("{id}: {error}"));
        failed.insert(id.to_string());
    }
    errors.sort();
    let reasons: BTreeSet<String> = response.diagnostics.reason.iter().map(ToString::to_string).collect();
    let (verdict, policies) = if !errors.is_empty() {
        (Err(DropReason::PolicyError), failed)
    } else if response.decision == CedarDecision::Allow {
        (Ok(()), reasons)
    } else if reasons.is_empty() {
        (Err(DropReason::PolicyDenied), reasons)
    } else {
        (Err(DropReason::PolicyForbidden), reasons)
    };
    Decision { verdict, policies: policies.into_iter().collect(), errors }
}
