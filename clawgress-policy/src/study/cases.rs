//! Cases: what a set is wanted to say of a request, so that a change of policy is tested before it is live.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use clawgress_identity::{Agent, AgentId, AgentState};
use serde::{Deserialize, Serialize};

use super::call::{CaseCall, CaseTool};
use super::explain::{Explanation, Target, TlsReading, explain};
use super::moot::Texts;
use super::received::{CaseAnswer, Supposed};
use super::sent::Body;
use crate::fingerprint::Fingerprints;
use crate::history::History;
use crate::{Geo, PolicySet};

/// Most cases in a file: some seconds of one core.
pub const CASES_MAX: usize = 10_000;

/// A file of cases.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cases {
    /// Agents that cases may name, besides those that are registered.
    #[serde(default, rename = "agent")]
    pub agents: Vec<CaseAgent>,
    /// Geo data to test with: of the ASNs and countries that the policy names.
    #[serde(default)]
    pub geo: Geo,
    /// The wall clock's zone, by its name in the IANA database; the node's if absent.
    pub zone: Option<String>,
    /// Where TLS is read, as the node's configuration has it; nowhere if absent.
    pub intercept: Option<CaseIntercept>,
    /// The cases.
    #[serde(default, rename = "case")]
    pub cases: Vec<Case>,
}

/// Where TLS is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseIntercept {
    /// Hosts that are never read: a name, or `*.` and a name for what is below it.
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// An agent that exists in cases.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseAgent {
    /// Its id: `NAME` or `TENANT/NAME`.
    pub id: AgentId,
    /// Its team.
    pub team: Option<String>,
    /// Its project.
    pub project: Option<String>,
    /// Its environment.
    pub environment: Option<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it is called; the request if absent.
    pub name: Option<String>,
    /// Who asks.
    pub agent: AgentId,
    /// A URL, or an address with its port, as `policy explain` takes it.
    pub to: String,
    /// Method, where it is a URL; `GET` if absent.
    pub method: Option<String>,
    /// Header fields, where it is a URL: each as `Name: value`. Its query is the URL's.
    #[serde(default)]
    pub headers: Vec<String>,
    /// Protocol, where it is an address; `tcp` if absent.
    pub protocol: Option<String>,
    /// What the URL's host resolves to, if `connect` is to be asked.
    pub address: Option<String>,
    /// When, such as `2026-11-22T14:00Z`; now if absent.
    pub at: Option<String>,
    /// What the agent did before, where policy asks; nothing, and nothing is new, if absent.
    pub history: Option<History>,
    /// What seems to be at the other end, where policy asks; nothing is known if absent.
    pub fingerprint: Option<CaseFingerprint>,
    /// The model that it calls, where it is a URL and policy asks.
    pub llm: Option<CaseCall>,
    /// The tool, likewise.
    pub tool: Option<CaseTool>,
    /// Whether the URL is asked of an endpoint, so that the gateway itself starts TLS and the request is read.
    #[serde(default)]
    pub endpoint: bool,
    /// Whether the client's hello, for `https`, may hide another name than it shows: it has ECH.
    #[serde(default)]
    pub ech: bool,
    /// Whether TLS to the URL's host is read where policy wants that; as `[intercept]` of the file says if absent.
    pub read: Option<bool>,
    /// What is sent, if policy is to be asked about it.
    pub body: Option<Body>,
    /// What comes back, if policy is to be asked about it.
    pub answer: Option<CaseAnswer>,
    /// What is wanted.
    pub expect: Verdict,
    /// Phase that is wanted to decide: the first that denies, else the last.
    pub phase: Option<String>,
    /// Reason that is wanted for a denial.
    pub reason: Option<String>,
    /// Ids of the policies that are wanted to determine it: of the phase that denies, or of all.
    pub policies: Option<BTreeSet<String>>,
    /// Ids of the obligations that are wanted to match.
    pub effects: Option<BTreeSet<String>>,
}

/// What seems to be at the other end.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseFingerprint {
    /// Fingerprint of the hello, for `https`.
    pub ja4: Option<String>,
    /// Hash of the executable of a local run.
    pub executable: Option<String>,
    /// Directory of its cgroup.
    pub cgroup: Option<String>,
    /// Hash of the certificate or SVID.
    pub certificate: Option<String>,
    /// MAC address.
    pub mac: Option<String>,
}

/// Allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It doesn't.
    Deny,
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaseResult {
    /// Its name.
    pub name: String,
    /// What is not as wanted; nothing if it passed.
    pub differences: Vec<Difference>,
    /// What the set said.
    pub explanation: Explanation,
}

/// What is not as wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What: `verdict`, `phase`, `reason`, `policies` or `effects`.
    pub what: String,
    /// As the case has it.
    pub wanted: String,
    /// As the set has it.
    pub got: String,
}

// === impl CaseAgent ===

impl CaseAgent {
    /// As the registry would hold it.
    #[must_use]
    pub fn agent(&self) -> Agent {
        Agent {
            id: self.id.clone(),
            index: 0,
            team: self.team.clone(),
            project: self.project.clone(),
            environment: self.environment.clone(),
            labels: self.labels.clone(),
            state: AgentState::Active,
            sources: Vec::new(),
        }
    }
}

// === impl Case ===

impl Case {
    /// What it is called.
    #[must_use]
    pub fn title(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("{} to {}", self.agent, self.to))
    }

    /// What it asks for.
    ///
    /// # Errors
    /// What is not understood, and what to write.
    pub fn target(&self) -> Result<Target, String> {
        let (method, protocol) = (self.method.as_deref(), self.protocol.as_deref());
        let target = Target::parse(&self.to, method, protocol, self.address.as_deref())?;
        let target = match self.fingerprint.as_ref().and_then(|known| known.ja4.clone()) {
            Some(ja4) => target.with_hello(ja4)?,
            None => target,
        };
        let target = if self.headers.is_empty() { target } else { target.with_headers(&self.headers)? };
        let target = match &self.body {
            Some(body) => target.with_body(body.clone())?,
            None => target,
        };
        let target = if self.ech { target.with_ech()? } else { target };
        if self.endpoint { target.by_endpoint() } else { Ok(target) }
    }

    fn seen(&self) -> Fingerprints {
        let Some(CaseFingerprint { executable, cgroup, certificate, mac, .. }) = self.fingerprint.clone()
        else {
            return Fingerprints::default();
        };
        Fingerprints { executable, cgroup, certificate, mac }
    }

    /// Asks `set`, which is `texts` [at](PolicySet::at) the case's moment, for `agent`, where TLS to the target is or isn't read.
    #[must_use]
    pub fn check(
        &self,
        set: &PolicySet,
        texts: Texts<'_>,
        agent: &Agent,
        target: &Target,
        reading: TlsReading,
    ) -> CaseResult {
        let set = &set.knowing(self.history.unwrap_or(History::QUIET)).seeing(Arc::new(self.seen()));
        let supposed =
            Supposed { call: self.llm.as_ref(), tool: self.tool.as_ref(), answer: self.answer.as_ref() };
        let explanation = explain(set, texts, agent, (target, supposed), reading);
        let mut differences = Vec::new();
        let mut compare = |what: &str, wanted: Option<String>, got: String| {
            if let Some(wanted) = wanted.filter(|wanted| *wanted != got) {
                differences.push(Difference { what: what.to_owned(), wanted, got });
            }
        };
        let verdict = |allowed| if allowed { "allow" } else { "deny" }.to_owned();
        compare("verdict", Some(verdict(self.expect == Verdict::Allow)), verdict(explanation.allowed));
        compare("phase", self.phase.clone(), explanation.decided.clone());
        compare("reason", self.reason.clone(), explanation.reason.clone().unwrap_or_else(|| "none".into()));
        compare("policies", self.policies.as_ref().map(listed), listed(&explanation.policies()));
        compare("effects", self.effects.as_ref().map(listed), listed(&explanation.effects()));
        CaseResult { name: self.title(), differences, explanation }
    }
}

fn listed(ids: &BTreeSet<String>) -> String {
    if ids.is_empty() { "none".to_owned() } else { ids.iter().cloned().collect::<Vec<_>>().join(", ") }
}
