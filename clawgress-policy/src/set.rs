//! Policy text to a validated set, and decisions on it. Must never hold a set that was not validated
//! in full, and never allow what could not be evaluated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use clawgress_identity::PolicyOwner;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::content::Attributes;
use crate::effect::Obligation;
use crate::fingerprint::Fingerprints;
use crate::head::Mentions;
use crate::history::History;
use crate::kernel::Limiter;
use crate::kernel::plan::Plan;
use crate::members::Members;
use crate::request::{Request, Scheme, Transport, TunnelProtocol};
use crate::time::{Moment, Schedule, Zone};
use crate::vocabulary::{ByAction, Reads, Vocabulary};
use crate::{Geo, time};

mod conjunction;
mod crowd;
mod evaluate;
mod heads;
mod lowered;
mod obligation;
mod opening;
mod parse;
mod payload;
mod ranges;
mod reach;
mod readings;
mod review;
pub(crate) mod syntax;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod told;
mod written;

use lowered::Group;
pub use opening::Opening;
pub use parse::{PLATFORM_PREFIX, POLICIES_MAX, PROBLEMS_MAX};
pub(crate) use parse::{applies, names_asked_by_name};
use payload::Naming;
pub use payload::{CallsLook, CallsNeed, Look, PayloadNeed};
pub(crate) use reach::{Name, Names, obliged_to};
pub(crate) use review::Sense;
pub(crate) use text::Source;
pub use text::{NESTING_MAX, OPERATORS_MAX, TEXT_BYTES_MAX};

/// Version of the Cedar schema; a set names the one it was written for.
pub const SCHEMA_VERSION: u32 = 16;

/// Named sets, edited without touching policy text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedSets {
    /// `HostSet`: names, or `*.suffix` for every name below (not the suffix itself).
    #[serde(default)]
    pub hosts: BTreeMap<String, BTreeSet<String>>,
    /// `NetworkSet`: prefixes.
    #[serde(default, deserialize_with = "written::networks")]
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

/// What decisions rest on besides a bundle: with it, and the time, they are determined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Surroundings {
    /// The geo data in force.
    #[serde(default)]
    pub geo: Geo,
    /// The zone of the wall clock.
    #[serde(default)]
    pub zone: Zone,
}

/// A bundle with its surroundings: what is handed to who decides by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyInForce {
    /// See [`PolicyBundle`].
    pub text: String,
    /// See [`PolicyBundle`].
    #[serde(default)]
    pub sets: NamedSets,
    /// See [`Surroundings`].
    #[serde(default)]
    pub surroundings: Surroundings,
}

/// A [`PolicyInForce`] to be written: a million prefixes are not copied for it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PolicyInForceRef<'a> {
    /// See [`PolicyBundle`].
    pub text: &'a str,
    /// See [`PolicyBundle`].
    pub sets: &'a NamedSets,
    /// See [`Surroundings`].
    #[serde(skip_serializing_if = "is_plain")]
    pub surroundings: &'a Surroundings,
}

/// No geo data and UTC: what [`Surroundings`] are if nothing is said.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape serde asks for")]
fn is_plain(surroundings: &&Surroundings) -> bool {
    **surroundings == Surroundings::default()
}

/// What text alone comes to: see [`PolicySet::check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Policies.
    pub policies: usize,
    /// Destination prefixes in the kernel, for no agents and no geo data.
    pub prefixes: usize,
    /// Verdict cells in the kernel, for no agents and no geo data.
    pub cells: usize,
    /// Rate limits.
    pub limiters: usize,
    /// Whether an ASN or a country is named, of which nothing was checked but the form.
    pub names_geo: bool,
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
    /// The same, with a word more behind the last problem.
    #[must_use]
    pub fn and_told(mut self, more: &str) -> Self {
        if let Some(last) = self.problems.last_mut() {
            last.message = format!("{}; {more}", last.message);
        }
        self
    }

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
    /// The platform's, if one stands above it: see [`under`](PolicySet::under).
    platform: Option<Arc<Inner>>,
    /// What it decides for, if it asks for the time; without one, conditions on time are errors, and deny.
    moment: Option<Moment>,
    /// What it decides for, if it asks for what the agent did before: without it, each policy whose answer depends on it
    /// is an error.
    history: Option<History>,
    /// What it decides for, if it asks for what seems to be at the other end; as with the time.
    fingerprints: Option<Arc<Fingerprints>>,
}

/// Who needs to know something of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Nobody.
    None,
    /// Guards that only log: what is decided does not depend on it.
    Logged,
    /// What is decided depends on it.
    Decided,
}

/// What a decision is given besides the request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Given<'a> {
    pub(crate) moment: Option<&'a Moment>,
    pub(crate) history: Option<&'a History>,
    pub(crate) fingerprints: Option<&'a Fingerprints>,
    /// Whether the fingerprint of the hello is not known yet: trees that read it are not certain.
    pub(crate) is_hello_unseen: bool,
    /// Whether the body is not known yet, and its size neither: likewise.
    pub(crate) is_payload_unseen: bool,
    pub(crate) is_size_unseen: bool,
    /// Whether what it is said to be is not known: likewise.
    pub(crate) is_media_type_unseen: bool,
    /// Whether it is not known yet what a tool is called with.
    pub(crate) are_arguments_unseen: bool,
    /// What else of what is said is not known.
    pub(crate) unseen: Attributes,
}

#[derive(Debug)]
pub(crate) struct Inner {
    vocabulary: &'static Vocabulary,
    count: usize,
    /// The guards whose scope includes the action.
    by_action: ByAction<cedar_policy::PolicySet>,
    /// The obligations whose scope includes the action.
    obliging: ByAction<cedar_policy::PolicySet>,
    /// The same, as decisions ask them.
    guards_lowered: ByAction<Group>,
    obliging_lowered: ByAction<Group>,
    /// The guards that only log: permits and forbids.
    logged: ByAction<(cedar_policy::PolicySet, cedar_policy::PolicySet)>,
    /// The same, as they are asked.
    logged_lowered: ByAction<Group>,
    /// The alerts and quarantines of `connect` and `direct`, which are asked of what planes tell.
    told: ByAction<cedar_policy::PolicySet>,
    /// The same, as they are asked.
    told_lowered: ByAction<Group>,
    /// What those of `connect` oblige to, ascending by the policy's id.
    limiters: Vec<Limiter>,
    /// What the others oblige to, by the policy's id.
    obligations: BTreeMap<String, Arc<Obligation>>,
    /// What permits of `resolve` open besides, by the policy's id.
    openings: BTreeMap<String, Vec<Opening>>,
    /// Where policies name the actions that are asked by name.
    naming: Naming,
    members: Members,
    reads: Reads,
    /// Which header fields and parameters policies name.
    mentions: Mentions,
    plan: Plan,
    schedule: Schedule,
    zone: Zone,
}

impl PolicySet {
    /// Parses and validates.
    ///
    /// # Errors
    /// Everything that is wrong, each with its place; at most [`PROBLEMS_MAX`] of them.
    pub fn parse(bundle: &PolicyBundle) -> Result<PolicySet, PolicyErrors> {
        PolicySet::parse_in(&bundle.text, &bundle.sets, &Surroundings::default())
    }

    /// Parses and validates with the geo data and the zone in force.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); and each ASN and country that the geo data don't have.
    pub fn parse_in(
        text: &str,
        sets: &NamedSets,
        surroundings: &Surroundings,
    ) -> Result<PolicySet, PolicyErrors> {
        PolicySet::parse_as(None, text, sets, surroundings)
    }

    /// Parses and validates what is somebody's: a tenant's names nobody of another tenant, and the platform's ids stand
    /// behind [`PLATFORM_PREFIX`] in decisions.
    ///
    /// # Errors
    /// As [`parse_in`](Self::parse_in); and each principal of another tenant.
    pub fn parse_for(
        owner: &PolicyOwner,
        text: &str,
        sets: &NamedSets,
        surroundings: &Surroundings,
    ) -> Result<PolicySet, PolicyErrors> {
        PolicySet::parse_as(Some(owner), text, sets, surroundings)
    }

    fn parse_as(
        owner: Option<&PolicyOwner>,
        text: &str,
        sets: &NamedSets,
        surroundings: &Surroundings,
    ) -> Result<PolicySet, PolicyErrors> {
        let members = parse::members(sets, &surroundings.geo)?;
        let inner = parse::parse(text, members, surroundings.zone.clone(), owner)?;
        Ok(PolicySet::of(inner))
    }

    /// Checks text and sets where there are no geo data and no agents.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); ASNs and countries are taken for known.
    pub fn check(owner: &PolicyOwner, bundle: &PolicyBundle) -> Result<Outline, PolicyErrors> {
        PolicySet::outlined(owner, bundle).map(|(outline, _)| outline)
    }

    /// The set, as it is [checked](Self::check), and what it comes to.
    pub(crate) fn outlined(
        owner: &PolicyOwner,
        bundle: &PolicyBundle,
    ) -> Result<(Outline, PolicySet), PolicyErrors> {
        let mut members = parse::members(&bundle.sets, &Geo::default())?;
        members.assume_geo();
        let set = PolicySet::of(parse::parse(&bundle.text, members, Zone::default(), Some(owner))?).at(0);
        let tables = crate::kernel::compile(&set, &[])?;
        let outline = Outline {
            policies: set.len(),
            prefixes: tables.destinations.len(),
            cells: tables.verdicts.len(),
            limiters: tables.limiters.len(),
            names_geo: !crate::GeoNames::of(&bundle.text).is_empty(),
        };
        Ok((outline, set))
    }

    fn of(inner: Inner) -> PolicySet {
        PolicySet { inner: Arc::new(inner), platform: None, moment: None, history: None, fingerprints: None }
    }

    /// The set as it decides at `now_ms` (Unix, milliseconds).
    #[must_use]
    pub fn at(&self, now_ms: i64) -> PolicySet {
        let moment = || Moment::new(time::minute_of(now_ms), &self.inner.zone);
        PolicySet { moment: self.asks_time().then(moment), ..self.clone() }
    }

    /// The set as it decides for an agent with this history.
    #[must_use]
    pub fn knowing(&self, history: History) -> PolicySet {
        PolicySet { history: Some(history), ..self.clone() }
    }

    /// The set as it decides for a request with these fingerprints.
    #[must_use]
    pub fn seeing(&self, fingerprints: Arc<Fingerprints>) -> PolicySet {
        PolicySet { fingerprints: Some(fingerprints), ..self.clone() }
    }

    /// Whether it is known what seems to be at the other end.
    #[must_use]
    pub fn knows_fingerprints(&self) -> bool {
        self.fingerprints.is_some()
    }

    /// Whether any policy asks for what seems to be at the other end, besides the fingerprint of a hello.
    #[must_use]
    pub fn asks_fingerprints(&self) -> bool {
        self.halves().any(|half| half.reads.fingerprints)
    }

    /// Whether what is decided of this request, of which no hello was seen, depends on the fingerprint of one.
    #[must_use]
    pub fn needs_ja4(&self, request: &Request<'_>) -> bool {
        self.halves().any(|half| half.needs_ja4(request, self.given()))
    }

    /// The same, unless a history is known.
    #[must_use]
    pub fn supposing(&self, history: History) -> PolicySet {
        self.knowing(self.history.unwrap_or(history))
    }

    /// Whether a history is known.
    #[must_use]
    pub fn knows_history(&self) -> bool {
        self.history.is_some()
    }

    /// Whether any policy asks for what the agent did before.
    #[must_use]
    pub fn asks_history(&self) -> bool {
        self.halves().any(|half| half.reads.history)
    }

    /// Whether any policy may oblige what stays unread (`tls`, `tunnel`) to something.
    #[must_use]
    pub fn obliges_opaque(&self) -> bool {
        self.halves().any(Inner::obliges_opaque)
    }

    /// Whether any policy asks for attributes or labels of the agent.
    #[must_use]
    pub fn asks_agent(&self) -> bool {
        self.halves().any(|half| half.reads.agent)
    }

    /// Name of the wall clock's zone.
    #[must_use]
    pub fn zone(&self) -> &str {
        &self.inner.zone.name
    }

    /// Whether any policy asks for the time.
    #[must_use]
    pub fn asks_time(&self) -> bool {
        self.halves().any(|half| half.reads.time)
    }

    /// When, after `now_ms`, a condition on time first answers otherwise than at `now_ms` (Unix,
    /// milliseconds; always a whole minute). `None` if none does, as far as can be told.
    #[must_use]
    pub fn next_turn_ms(&self, now_ms: i64) -> Option<i64> {
        let next = |half: &Inner| half.schedule.next(time::minute_of(now_ms), &half.zone);
        self.halves().filter_map(next).min().map(time::start_ms)
    }

    /// How many policies there are, of its own.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.count
    }

    /// Whether there are none, which denies everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.count == 0
    }

    /// The rate limits of the set, and of the platform's above it, each ascending by the policy's id.
    pub fn limiters(&self) -> impl Iterator<Item = &Limiter> {
        self.halves().flat_map(Inner::limiters)
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// The platform's half, if there is one.
    pub(crate) fn above(&self) -> Option<&Inner> {
        self.platform.as_deref()
    }

    pub(crate) fn given(&self) -> Given<'_> {
        Given {
            moment: self.moment.as_ref(),
            history: self.history.as_ref(),
            fingerprints: self.fingerprints.as_deref(),
            is_hello_unseen: false,
            is_payload_unseen: false,
            is_size_unseen: false,
            is_media_type_unseen: false,
            are_arguments_unseen: false,
            unseen: Attributes::default(),
        }
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
            Transport::Ipip => "ipip",
            Transport::Sit => "sit",
            Transport::Gre => "gre",
            Transport::Esp => "esp",
            Transport::Ah => "ah",
            Transport::Sctp => "sctp",
        }
    }
}

impl TunnelProtocol {
    /// The name in policy text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            TunnelProtocol::Tls => "tls",
            TunnelProtocol::TlsEch => "tls_ech",
            TunnelProtocol::Unknown => "unknown",
            TunnelProtocol::WebSocket => "websocket",
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
