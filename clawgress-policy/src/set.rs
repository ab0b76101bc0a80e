//! Policy text to a validated set, and decisions on it. Must never hold a set that was not validated
//! in full, and never allow what could not be evaluated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::kernel::plan::Plan;
use crate::members::Members;
use crate::request::{Decision, Request, Scheme, Transport, TunnelProtocol};
use crate::vocabulary::{ActionKind, ByAction, Reads, Vocabulary};

mod evaluate;
mod parse;
mod reach;
mod review;
pub(crate) mod syntax;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use parse::applies;
pub use parse::{POLICIES_MAX, PROBLEMS_MAX};
pub(crate) use reach::{Name, Names};
pub(crate) use review::Sense;
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
    reads: Reads,
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
    ///
    /// A `connect` decision says nothing of reserved addresses: whether an address may be reached is
    /// for [`reach`](Self::reach) to say.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        let action = ActionKind::of(&request.operation);
        self.inner.decide_among(self.inner.by_action.of(action), request)
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
