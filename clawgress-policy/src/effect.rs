//! What obligations oblige to where the proxy enforces: limits of requests, quarantine, alerts, reading of TLS, changes of
//! headers; and what guards that only log would have said.
//!
//! All that match apply, merged in one order: quarantine, then the verdict of the guards, then whether TLS is read, then
//! limits, then changes of headers; alerts never block.

use std::sync::Arc;

use clawgress_identity::{Agent, DEFAULT_TENANT};

use crate::kernel::LimitAction;
use crate::kernel::limiter::bucket_key;
use crate::quota::Pace;
use crate::transform::Transform;

/// What the keys of limits are hashes of begins with this.
const KEY_DOMAIN: &[u8] = b"clawgress limit 1\0";

/// An obligation: what follows where its policy matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obligation {
    /// Id of its policy.
    pub policy: Arc<str>,
    /// What follows.
    pub effect: Effect,
    /// How much it matters to people.
    pub severity: Severity,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The agent is quarantined, for so many seconds, or until somebody releases it; the request is denied.
    Quarantine(Option<u64>),
    /// What is allowed counts, and what is over waits or is denied.
    Limit(Limit),
    /// TLS is read, also where `tunnel` is permitted; where it can't be read, it is denied.
    Intercept,
    /// Header fields of the request are changed before it is sent on.
    Transform(Transform),
    /// It is told, and nothing else.
    Alert,
    /// It is told what a guard that only logs would have said, and nothing else.
    Would(Would),
}

/// What a guard that only logs would have said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Would {
    /// It permits, where no other forbids.
    Permit,
    /// It forbids.
    Forbid,
    /// It can't be evaluated, which would deny.
    Fail,
}

/// How much a match matters to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// To be seen when somebody looks.
    Low,
    /// To be looked at.
    Medium,
    /// To be looked at today.
    High,
    /// To be looked at now.
    Critical,
}

/// Whose requests share a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Each agent has its own.
    Agent,
    /// All agents of a team; an agent without one has its own.
    Team,
    /// All agents of a project; an agent without one has its own.
    Project,
    /// All agents of an environment; an agent without one has its own.
    Environment,
    /// All agents of a tenant.
    Tenant,
}

/// A limit of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Names its buckets, never 0: a hash of all else here and the policy's id.
    pub key: u64,
    /// How many, and how fast.
    pub pace: Pace,
    /// Whose share a bucket.
    pub share: Share,
    /// Whether what is over is denied, or waits first.
    pub over: LimitAction,
}

// === impl Effect ===

impl Effect {
    /// The name in policy text and records.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Effect::Quarantine(_) => "quarantine",
            Effect::Limit(Limit { over: LimitAction::Drop, .. }) => "rate-limit",
            Effect::Limit(Limit { over: LimitAction::Pace, .. }) => "throttle",
            Effect::Intercept => "intercept",
            Effect::Transform(_) => "transform",
            Effect::Alert => "alert",
            Effect::Would(Would::Permit) => "would-permit",
            Effect::Would(Would::Forbid) => "would-forbid",
            Effect::Would(Would::Fail) => "would-fail",
        }
    }
}

// === impl Obligation ===

impl Obligation {
    /// Whether it is what another already says of the same exchange: that counts, and is told, once. Of the parts of one
    /// exchange a guard that only logs may say different things, and a policy of the platform's is never a tenant's,
    /// whatever both are called: its id says whose it is.
    #[must_use]
    pub fn repeats(&self, other: &Obligation) -> bool {
        self.policy == other.policy && self.effect == other.effect
    }
}

impl Obligation {
    /// How much it matters, of what is told to people.
    #[must_use]
    pub fn severity_told(&self) -> Option<&'static str> {
        matches!(self.effect, Effect::Quarantine(_) | Effect::Alert).then(|| self.severity.name())
    }
}

// === impl Would ===

impl Would {
    /// As what is told of a policy.
    pub(crate) fn of(self, policy: &str) -> Arc<Obligation> {
        Arc::new(Obligation {
            policy: policy.into(),
            effect: Effect::Would(self),
            severity: Severity::Medium,
        })
    }
}

// === impl Severity ===

impl Severity {
    /// Every one, the least first.
    pub const ALL: [Severity; 4] = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical];

    /// The name in policy text and records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}

// === impl Share ===

impl Share {
    /// Every one.
    pub const ALL: [Share; 5] =
        [Share::Agent, Share::Team, Share::Project, Share::Environment, Share::Tenant];

    /// The name in policy text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Share::Agent => "agent",
            Share::Team => "team",
            Share::Project => "project",
            Share::Environment => "environment",
            Share::Tenant => "tenant",
        }
    }

    /// Names the bucket that a request of `agent` counts in, among those of one limit. An agent's number goes with it:
    /// the next of its name begins anew.
    #[must_use]
    pub fn of(self, agent: &Agent) -> Arc<str> {
        self.group(agent).unwrap_or_else(|| format!("agent {}#{}", agent.id, agent.index).into())
    }

    /// The tenant whose bucket it is that [`Share::of`] names so.
    pub(crate) fn owner(subject: &str) -> &str {
        let whose = subject.split_once(' ').map_or(subject, |(_, whose)| whose);
        // An agent of the tenant that is meant without a word is named without it.
        whose.split_once('/').map_or(DEFAULT_TENANT, |(tenant, _)| tenant)
    }

    /// The group of `agent` whose members share a bucket, if it is in one.
    pub(crate) fn group(self, agent: &Agent) -> Option<Arc<str>> {
        let group = match self {
            Share::Agent => None,
            Share::Team => agent.team.as_deref(),
            Share::Project => agent.project.as_deref(),
            Share::Environment => agent.environment.as_deref(),
            Share::Tenant => Some(""),
        };
        let tenant = agent.id.tenant();
        group.map(|name| format!("{} {tenant}/{name}", self.name()).into())
    }
}

// === impl Limit ===

impl Limit {
    /// A limit of the policy `policy`.
    #[must_use]
    pub fn new(policy: &str, pace: Pace, share: Share, over: LimitAction) -> Limit {
        let key = bucket_key(KEY_DOMAIN, policy, &[share as u8, over as u8], pace);
        Limit { key, pace, share, over }
    }
}
