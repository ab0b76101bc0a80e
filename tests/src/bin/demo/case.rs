//! What the demo does, and what must come of it.

use std::time::Duration;

use clawgress_api::clock::{Clock as _, SystemClock};
use clawgress_api::{AuditQuery, AuditRecord, Plane, RecordKind, Verdict};
use clawgress_e2e::lab::{Host, Output};
use clawgress_e2e::plan::{API, addresses};
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER, Site};

use crate::client::{Client, Clients, Way};

/// Time for a decision and its outcome to be found.
const RECORD_TIME: Duration = Duration::from_secs(15);

/// One thing a client does.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// For people.
    pub title: &'static str,
    /// Which client.
    pub client: Client,
    host: Host,
    way: Way,
    url: &'static str,
    /// The name that is meant, in records.
    name: &'static str,
    expected: Expected,
}

/// What must come of it.
#[derive(Clone, Copy, Debug)]
struct Expected {
    plane: Plane,
    agent: Option<&'static str>,
    /// `None` if it is allowed.
    reason: Option<&'static str>,
    tokens: bool,
}

/// A decision, and its outcome where there is one.
pub type Pair = (AuditRecord, Option<AuditRecord>);

/// What came of it.
#[derive(Debug)]
pub struct CaseResult {
    /// Why it is not as expected.
    pub problem: Option<String>,
    /// What the audit log says.
    pub records: Vec<Pair>,
}

const fn allowed(agent: &'static str) -> Expected {
    Expected { plane: Plane::L7, agent: Some(agent), reason: None, tokens: false }
}

const fn metered(agent: &'static str) -> Expected {
    Expected { plane: Plane::L7, agent: Some(agent), reason: None, tokens: true }
}

const fn denied(plane: Plane, agent: Option<&'static str>, reason: &'static str) -> Expected {
    Expected { plane, agent, reason: Some(reason), tokens: false }
}

/// Everything the demo shows, in order.
pub fn all() -> Vec<Case> {
    [by_the_route(), by_the_proxy(), clients()].concat()
}

/// A case that is allowed, unless [`Case::denied`] or [`Case::nobody`] says otherwise.
fn case(title: &'static str, client: Client, way: Way, url: &'static str) -> Case {
    // The proxy is shown from the host nobody knows: there, only the key counts.
    let (host, agent) = match way {
        Way::Route => (Host::Known, CRAWLER),
        Way::Proxy | Way::ProxyWithoutKey => (Host::Anon, ASSISTANT),
    };
    let name = url.split('/').nth(2).unwrap_or_default();
    Case { title, client, host, way, url, name, expected: allowed(agent) }
}

fn by_the_route() -> Vec<Case> {
    let curl = |title, url| case(title, Client::Curl, Way::Route, url);
    let l7 = |reason| denied(Plane::L7, Some(CRAWLER), reason);
    vec![
        curl("allowed TLS, no setting but the route", "https://api.allowed.test/"),
        curl("allowed page in clear HTTP", "http://web.allowed.test/public/index"),
        curl("same host, a path not permitted", "http://web.allowed.test/private").but(l7("policy_denied")),
        curl("a domain denied, its address is not", "https://secret.denied.test/").but(l7("policy_denied")),
        curl("an address denied in the kernel", "https://blocked.denied.test/").but(denied(
            Plane::Kernel,
            Some(CRAWLER),
            "policy_denied",
        )),
        curl("TLS to be read, which can't be yet", "https://inspect.allowed.test/")
            .but(l7("inspection_required")),
        Case { host: Host::Anon, name: API, ..curl("a host nobody knows", "https://203.0.113.10/") }
            .but(denied(Plane::Kernel, None, "anonymous")),
    ]
}

fn by_the_proxy() -> Vec<Case> {
    let curl = |title, way| case(title, Client::Curl, way, "https://api.allowed.test/");
    vec![
        curl("the same host at the proxy, no key", Way::ProxyWithoutKey).but(denied(
            Plane::L7,
            None,
            "credential_missing",
        )),
        curl("the same host at the proxy, with a key", Way::Proxy),
        Case { host: Host::Known, ..curl("one agent's key from another's host", Way::Proxy) }.but(denied(
            Plane::L7,
            None,
            "identity_conflict",
        )),
    ]
}

fn clients() -> Vec<Case> {
    use Client::{Node, NodeConnect, OpenAi, Requests};
    use Way::{Proxy, Route};
    let l7 = |agent| denied(Plane::L7, Some(agent), "policy_denied");
    vec![
        case("allowed TLS", Requests, Route, "https://api.allowed.test/v1/things"),
        case("allowed TLS through the proxy", Requests, Proxy, "https://api.allowed.test/v1/things"),
        case("a domain denied by the proxy", Requests, Proxy, "https://secret.denied.test/")
            .but(l7(ASSISTANT)),
        case("an LLM call in clear HTTP", OpenAi, Route, "http://llm.allowed.test/v1").but(metered(CRAWLER)),
        case("an LLM call through the proxy", OpenAi, Proxy, "http://llm.allowed.test/v1")
            .but(metered(ASSISTANT)),
        case("an LLM call in TLS, unread", OpenAi, Route, "https://llm.allowed.test/v1"),
        case("allowed TLS", Node, Route, "https://api.allowed.test/node"),
        case("a domain denied", Node, Route, "https://secret.denied.test/node").but(l7(CRAWLER)),
        case("allowed TLS through the proxy", NodeConnect, Proxy, "https://api.allowed.test/node"),
        case("a domain denied by the proxy", NodeConnect, Proxy, "https://secret.denied.test/node")
            .but(l7(ASSISTANT)),
    ]
}

impl Case {
    /// The same, with another expectation.
    fn but(self, expected: Expected) -> Case {
        Case { expected, ..self }
    }

    /// Runs the client, then asks the audit log.
    pub fn run(&self, site: &Site, clients: &Clients) -> CaseResult {
        let since = SystemClock.now();
        let output = match clients.run(site, self.client, self.host, self.way, self.url) {
            Ok(output) => output,
            Err(error) => return CaseResult { problem: Some(format!("{error:#}")), records: Vec::new() },
        };
        let mut records = Vec::new();
        let waited = site.gateway.lab.wait("its records", RECORD_TIME, || {
            let query = AuditQuery { since: Some(since), ..AuditQuery::default() };
            records = self.pairs(site.gateway.admin()?.audit(&query)?);
            let complete = |(_, outcome): &Pair| outcome.is_some() || self.expected.plane == Plane::Kernel;
            Ok(!records.is_empty() && records.iter().all(complete))
        });
        let problem = match waited {
            Err(error) => Some(format!("{error:#}; {}", said(&output))),
            Ok(()) => self.problem(&output, &records),
        };
        CaseResult { problem, records }
    }

    /// Decisions about what this case asked for, with their outcomes.
    fn pairs(&self, records: Vec<AuditRecord>) -> Vec<Pair> {
        let here = addresses(self.name);
        let mine = |r: &&AuditRecord| {
            let by_name = r.destination.host.as_deref() == Some(self.name);
            let by_address = r.destination.ip.is_some_and(|ip| here.contains(&ip));
            // A SYN that is steered is a flow in the kernel too; the table shows who decided in the end.
            r.kind == RecordKind::Decision && r.plane == self.expected.plane && (by_name || by_address)
        };
        let mut decisions: Vec<AuditRecord> = records.iter().filter(mine).cloned().collect();
        // A client whose packets are dropped sends them again: one row says it.
        decisions.dedup_by(|a, b| a.plane == Plane::Kernel && a.verdict == b.verdict && a.reason == b.reason);
        let outcome = |decision: &AuditRecord| {
            let joined = |r: &&AuditRecord| r.kind == RecordKind::Outcome && r.request == decision.request;
            records.iter().find(joined).cloned()
        };
        decisions.into_iter().map(|d| (d.clone(), outcome(&d))).collect()
    }

    /// What is wrong, if anything is.
    fn problem(&self, output: &Output, records: &[Pair]) -> Option<String> {
        let expected = &self.expected;
        if output.ok() != expected.reason.is_none() {
            return Some(format!(
                "the client should {}; {}",
                if output.ok() { "fail" } else { "succeed" },
                said(output)
            ));
        }
        for (decision, outcome) in records {
            let verdict = if expected.reason.is_some() { Verdict::Deny } else { Verdict::Allow };
            let reason = decision.reason.map(|r| r.name());
            if decision.verdict != Some(verdict) || reason != expected.reason {
                return Some(format!("recorded as {:?} {reason:?}", decision.verdict));
            }
            let agent = decision.agent.as_ref().map(|a| a.agent.as_str());
            // A credential that was refused proves nobody, whoever the source is.
            if agent != expected.agent && expected.reason != Some("identity_conflict") {
                return Some(format!("recorded for {agent:?}"));
            }
            let tokens = outcome.as_ref().and_then(|o| o.tokens.as_ref());
            if expected.tokens && tokens.is_none_or(|t| t.input + t.output != 18) {
                return Some(format!("recorded tokens {tokens:?}"));
            }
        }
        None
    }
}

fn said(output: &Output) -> String {
    format!("it ended with {:?} and said: {} {}", output.code, output.stdout.trim(), output.stderr.trim())
}
