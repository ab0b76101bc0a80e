//! Policy text to a validated set, and decisions on it. Must never hold a set that was not validated
//! in full, and never allow what could not be evaluated.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use cedar_policy::{Authorizer, Context, Entities, Entity, EntityUid, RestrictedExpression};
use clawgress_ebpf_common::DropReason;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address::canonical;
use crate::kernel::plan::Plan;
use crate::members::{Members, PrefixIndex};
use crate::request::{Decision, Operation, Request, Scheme, Transport, TunnelProtocol};
use crate::vocabulary::{ActionKind, ByAction, Vocabulary};

mod parse;
mod review;
pub(crate) mod syntax;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use parse::applies;
pub use parse::{POLICIES_MAX, PROBLEMS_MAX};
pub(crate) use text::Source;
pub use text::{NESTING_MAX, OPERATORS_MAX, TEXT_BYTES_MAX};

/// Version of the Cedar schema; a set names the one it was written for.
pub const SCHEMA_VERSION: u32 = 1;

/// Named sets, edited without touching policy text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedSets {
    /// `HostSet`: names, or `*.suffix` for every name below (not the suffix itself).
    #[serde(default)]
    pub hosts: BTreeMap<String, BTreeSet<String>>,
    /// `NetworkSet`: prefixes.
    #[serde(default)]
    pub networks: BTreeMap<String, BTreeSet<IpNet>>,
}

/// What a revision holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyBundle {
    /// Cedar text.
    pub text: String,
    /// Named sets.
    #[serde(default)]
    pub sets: NamedSets,
}

/// One thing wrong with policy text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyProblem {
    /// The policy's id, if it has got that far.
    pub policy: Option<String>,
    /// Line, from 1.
    pub line: Option<u32>,
    /// Column, from 1, in characters.
    pub column: Option<u32>,
    /// What is wrong and what to do.
    pub message: String,
}

impl std::fmt::Display for PolicyProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}: ")?;
        }
        if let Some(policy) = &self.policy {
            write!(f, "policy `{policy}`: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Everything wrong with policy text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy has {} problem(s); nothing was changed", .problems.len())]
pub struct PolicyErrors {
    /// At least one.
    pub problems: Vec<PolicyProblem>,
}

impl PolicyErrors {
    /// One problem without a place.
    pub(crate) fn one(message: impl Into<String>) -> Self {
        PolicyErrors {
            problems: vec![PolicyProblem { policy: None, line: None, column: None, message: message.into() }],
        }
    }
}

/// A validated policy set. Cloning shares it.
#[derive(Clone, Debug)]
pub struct PolicySet {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    vocabulary: &'static Vocabulary,
    count: usize,
    /// The policies whose scope includes the action.
    by_action: ByAction<cedar_policy::PolicySet>,
    members: Members,
    /// Prefixes by which an allowing condition names addresses, longer than /0.
    named: PrefixIndex,
    plan: Plan,
}

impl PolicySet {
    /// Parses and validates.
    ///
    /// # Errors
    /// Everything that is wrong, each with its place; at most [`PROBLEMS_MAX`] of them.
    pub fn parse(bundle: &PolicyBundle) -> Result<PolicySet, PolicyErrors> {
        Ok(PolicySet { inner: Arc::new(parse::parse(bundle)?) })
    }

    /// Decides one request: default deny, forbid wins, any evaluation error denies.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        let action = ActionKind::of(&request.operation);
        self.inner.decide_among(self.inner.by_action.of(action), request)
    }

    /// Whether a condition that allows names this address: by a prefix or address in policy text, or
    /// in a named set that such a condition refers to. A prefix of length 0 names nothing, nor does a
    /// prefix that only takes away (in a `forbid`, or behind `unless` in a `permit`).
    ///
    /// An address that is reserved (see [`is_reserved`](crate::address::is_reserved)) must not be
    /// dialled unless it is named.
    #[must_use]
    pub fn names_address(&self, ip: IpAddr) -> bool {
        !self.inner.named.containing(canonical(ip)).is_empty()
    }

    /// How many policies there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.count
    }

    /// Whether there are none, which denies everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.count == 0
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }
}

// === impl Inner ===

/// A request in Cedar's terms.
struct Question {
    resource: Entity,
    context: Vec<(String, RestrictedExpression)>,
}

impl Inner {
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Decides on `policies` alone: all that apply to the action, or those of them that can match the
    /// request's principal.
    pub(crate) fn decide_among(&self, policies: &cedar_policy::PolicySet, request: &Request<'_>) -> Decision {
        match self.evaluate(policies, request) {
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
    ) -> Result<Decision, String> {
        if policies.is_empty() {
            return Ok(Decision {
                verdict: Err(DropReason::PolicyDenied),
                policies: Vec::new(),
                errors: Vec::new(),
            });
        }
        let Question { resource, context } = self.question(&request.operation)?;
        let principal: EntityUid = self.vocabulary.agent_uid(request.agent);
        let action = self.vocabulary.action(ActionKind::of(&request.operation));
        let cedar_request = cedar_policy::Request::new(
            principal,
            action.uid(),
            resource.uid(),
            Context::from_pairs(context).map_err(|e| e.to_string())?,
            None,
        )
        .map_err(|e| e.to_string())?;
        let mut entities = vec![action.clone(), resource];
        self.vocabulary.push_agent(request.agent, &mut entities)?;
        let entities = Entities::from_entities(entities, None).map_err(|e| e.to_string())?;
        Ok(verdict(&Authorizer::new().is_authorized(&cedar_request, policies, &entities)))
    }

    fn question(&self, operation: &Operation<'_>) -> Result<Question, String> {
        let string = |s: &str| RestrictedExpression::new_string(s.to_owned());
        let long = |n: u16| RestrictedExpression::new_long(i64::from(n));
        match operation {
            Operation::Connect { ip, port, transport } | Operation::Direct { ip, port, transport } => {
                let ip = canonical(*ip);
                // ICMP has no ports; one value, so that both planes see the same.
                let port = if *transport == Transport::Icmp { 0 } else { *port };
                Ok(Question {
                    resource: self.vocabulary.network(ip, self.members.sets_of_ip(ip).into_iter())?,
                    context: vec![
                        ("ip".to_owned(), RestrictedExpression::new_ip(ip.to_string())),
                        ("port".to_owned(), long(port)),
                        ("protocol".to_owned(), string(transport.name())),
                    ],
                })
            }
            Operation::Tls { host, port, alpn } => Ok(Question {
                resource: self.host(host)?,
                context: vec![
                    ("port".to_owned(), long(*port)),
                    ("alpn".to_owned(), RestrictedExpression::new_set(alpn.iter().map(|a| string(a)))),
                ],
            }),
            Operation::Tunnel { host, port, protocol } => Ok(Question {
                resource: self.host(host)?,
                context: vec![
                    ("port".to_owned(), long(*port)),
                    ("protocol".to_owned(), string(protocol.name())),
                ],
            }),
            Operation::Http { host, port, scheme, method, path } => Ok(Question {
                resource: self.host(host)?,
                context: vec![
                    ("port".to_owned(), long(*port)),
                    ("scheme".to_owned(), string(scheme.name())),
                    ("method".to_owned(), string(method)),
                    ("path".to_owned(), string(path)),
                ],
            }),
        }
    }

    fn host(&self, host: &crate::Host) -> Result<Entity, String> {
        if !host.is_canonical() {
            // A forbid on the canonical spelling would be missed.
            return Err("the host is not in canonical form".to_owned());
        }
        let text = host.to_string();
        let sets = self.members.sets_of_host(host, &text);
        self.vocabulary.host(text, sets.into_iter())
    }
}

/// Cedar's answer in ours: an evaluation error denies even where Cedar would allow, because the policy
/// that failed may have been a forbid.
fn verdict(response: &cedar_policy::Response) -> Decision {
    let diagnostics = response.diagnostics();
    let mut errors = Vec::new();
    let mut failed = BTreeSet::new();
    for error in diagnostics.errors() {
        let cedar_policy::AuthorizationError::PolicyEvaluationError(error) = error;
        errors.push(format!("{}: {}", error.policy_id(), error.inner()));
        failed.insert(error.policy_id().to_string());
    }
    errors.sort();
    let reasons: BTreeSet<String> = diagnostics.reason().map(ToString::to_string).collect();
    let (verdict, policies) = if !errors.is_empty() {
        (Err(DropReason::PolicyError), failed)
    } else if response.decision() == cedar_policy::Decision::Allow {
        (Ok(()), reasons)
    } else if reasons.is_empty() {
        (Err(DropReason::PolicyDenied), reasons)
    } else {
        (Err(DropReason::PolicyForbidden), reasons)
    };
    Decision { verdict, policies: policies.into_iter().collect(), errors }
}

impl Transport {
    /// The name in policy text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Icmp => "icmp",
        }
    }
}

impl TunnelProtocol {
    /// The name in policy text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            TunnelProtocol::Tls => "tls",
            TunnelProtocol::Unknown => "unknown",
        }
    }
}

impl Scheme {
    /// The name in policy text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}
