//! What a set says of one thing an agent may want, phase by phase, in the order in which traffic raises them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use clawgress_ebpf_common::DropReason;
use clawgress_identity::{Agent, AgentState};
use serde::{Deserialize, Serialize};

use super::moot::{Texts, moot};
use super::received::Supposed;
use super::sent::{self, Body};
use crate::effect::Obligation;
use crate::head::Head;
use crate::history::History;
use crate::kernel::{self, KernelAction, LimitAction};
use crate::{Decision, Host, Operation, PolicySet, Request, Scheme, Transport, UPSTREAM_ALPN, path};

mod hello;
pub(super) mod opening;
mod target;

pub use hello::Offered;

/// The port of DNS.
const DNS: u16 = 53;

/// What an agent may want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address.
    Address {
        /// Address.
        ip: IpAddr,
        /// Port; 0 where there are none.
        port: u16,
        /// Protocol.
        transport: Transport,
    },
    /// A request by URL.
    Url {
        /// Host.
        host: Host,
        /// Port.
        port: u16,
        /// Scheme.
        scheme: Scheme,
        /// Method.
        method: String,
        /// Path, without the query.
        path: String,
        /// What its header fields and its query say.
        head: Box<Head>,
        /// What the host resolves to, if that is to be judged as well.
        ip: Option<IpAddr>,
        /// The client's hello, for `https`.
        hello: Offered,
        /// Whether it is asked of an endpoint, so that the gateway itself starts TLS and the request is read.
        is_endpoint: bool,
        /// Whether it opens a WebSocket.
        opens: bool,
        /// What is sent, if that is to be judged as well.
        body: Option<Body>,
    },
    /// What a name resolves to.
    Name {
        /// Name.
        host: Host,
        /// Type of record.
        query_type: String,
    },
}

/// Whether TLS to a host is read where policy wants that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsReading {
    /// No TLS is.
    Off,
    /// This host's is not.
    Excluded,
    /// It is.
    On,
}

/// What one of two sets says of a phase, both of which must allow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Half {
    /// Whether it allows.
    pub allowed: bool,
    /// Why not, if it doesn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Ids of the policies of it that determine that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
}

/// One phase's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// The action.
    pub action: String,
    /// Whether it is allowed.
    pub allowed: bool,
    /// Name of the drop reason, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Ids of the determining policies.
    pub policies: Vec<String>,
    /// Evaluation errors; any denies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// Obligations that match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub effects: Vec<PhaseEffect>,
    /// What the platform's set says alone, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Half>,
    /// What the tenant's set says alone, if it stands under one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Half>,
}

/// An obligation that matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseEffect {
    /// Id of its policy.
    pub policy: String,
    /// What it obliges to.
    pub effect: String,
}

/// What a set says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Whether it passes, as far as the phases below can tell.
    pub allowed: bool,
    /// The phase that decided: the first that denies, else the last.
    pub decided: String,
    /// Why it does not pass, if it doesn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Each phase that is asked. Phases after one that denies are asked of no traffic; they are told all the same.
    pub phases: Vec<Phase>,
    /// The opaque permit (`tunnel` or `direct`) by which the content stays unread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opaque: Option<String>,
    /// Whether its TLS is read, so that `http` is asked of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_read: bool,
    /// What `tunnel` says of the same by a hello that may hide its name (`"tls_ech"`), where that is something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with_ech: Option<Box<Phase>>,
    /// Ids of content policies (`http`) whose scope has this agent and destination, and which count for nothing since
    /// the content stays unread.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moot: Vec<String>,
    /// Actions that are asked yet before anything passes, and of which nothing is known: what is allowed so far may be denied
    /// by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unasked: Vec<String>,
    /// What was not asked, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Explains `target` for `agent`, with what is supposed of it. `set` is `texts`, [at](PolicySet::at) a moment.
#[must_use]
pub fn explain(
    set: &PolicySet,
    texts: Texts<'_>,
    agent: &Agent,
    (target, supposed): (&Target, Supposed<'_>),
    reading: TlsReading,
) -> Explanation {
    let is_supposed = set.asks_history() && !set.knows_history();
    let is_blind = set.asks_fingerprints() && !set.knows_fingerprints();
    let set = &set.supposing(History::QUIET);
    let set = &if is_blind { set.seeing(Arc::default()) } else { set.clone() };
    let explanation = match target {
        Target::Address { ip, port, transport } => address(set, agent, *ip, *port, *transport),
        Target::Url { host, port, scheme, method, path, head, ip, hello, is_endpoint, opens, body } => {
            let http = Operation::Http { host, port: *port, scheme: *scheme, method, path, head };
            let by = By { ip: *ip, hello, is_endpoint: *is_endpoint, opens: *opens, reading };
            let url = url(set, agent, (host, *port, *scheme), http, by);
            sent::asked(url, set, agent, (http, *opens), body.as_ref())
        }
        Target::Name { host, query_type } => name(set, agent, host, query_type),
    };
    let mut explanation = explanation.with_calls(set, agent, target, (supposed.call, supposed.tool));
    explanation = explanation.with_answer(set, agent, target, supposed.answer);
    if is_blind && matches!(target, Target::Url { .. }) {
        let blind = "no executable, cgroup, certificate or MAC address is known";
        explanation.notes.push(blind.to_owned());
    }
    if let Target::Url { head, .. } = target
        && explanation.phases.iter().any(|phase| phase.action == "http")
        && set.asks_head()
    {
        explanation.notes.extend(head_note(head).map(str::to_owned));
    }
    if let Target::Url { path, .. } = target
        && explanation.phases.iter().any(|phase| matches!(phase.action.as_str(), "http" | "send"))
        && let Some(separated) = path::separated(path)
    {
        explanation.notes.push(format!("a server may take `%2F` for a slash: `{separated}` is asked about besides, and both have to be permitted"));
    }
    if is_supposed {
        let supposed =
            "`context.history` is told for an agent that did nothing before, and of which nothing is new";
        explanation.notes.push(supposed.to_owned());
    }
    if explanation.allowed && explanation.opaque.is_some() {
        explanation.moot = match target {
            Target::Address { .. } | Target::Name { .. } => moot(texts, agent, None),
            Target::Url { host, port, .. } => moot(texts, agent, Some((host, *port))),
        };
    }
    explanation
}

/// What is told of header fields and a query that policy asks about.
fn head_note(head: &Head) -> Option<&'static str> {
    if head.is_unclear() {
        return Some(
            "something in the header fields or the query comes twice or can't be read: where an answer depends on it, the request is refused (`http_malformed`)",
        );
    }
    (head == Head::none()).then_some(
        "policy asks what header fields or the query say, and is told of a request without any: `--header` and the query of the URL name them, in cases `headers`",
    )
}

fn address(set: &PolicySet, agent: &Agent, ip: IpAddr, port: u16, transport: Transport) -> Explanation {
    let connect = connect(set, agent, ip, port, transport);
    let request = Request { agent, operation: Operation::Direct { ip, port, transport } };
    let direct = Phase::of("direct", set.forward(agent, ip, port, transport), Vec::new());
    let mut direct =
        direct.halved(set, |own| own.forward(agent, ip, port, transport), |above| above.decide(&request));
    let (action, _) = kernel::expected(set, agent, ip, transport, port);
    if action == KernelAction::Direct {
        direct.effects = of_direct(set, agent, (ip, port, transport), &connect);
    }
    let (mut notes, mut unasked) = (Vec::new(), Vec::new());
    let (allowed, decided, reason, opaque) = match action {
        KernelAction::Direct => (true, "direct", None, Some("direct".to_owned())),
        KernelAction::Steer => {
            notes.push(
                "led to the proxy, which asks `tls` and `tunnel`, or `http`, by what the bytes are: name a URL to see them"
                    .to_owned(),
            );
            unasked = ["tls", "tunnel", "http"].map(str::to_owned).to_vec();
            (true, "connect", None, None)
        }
        KernelAction::Deny(code) => {
            let decided = if connect.allowed { "direct" } else { "connect" };
            let name = DropReason::from_code(code).map(|r| r.name().to_owned());
            (false, decided, name, None)
        }
    };
    let phases = vec![connect, direct];
    let (decided, moot, is_read) = (decided.to_owned(), Vec::new(), false);
    Explanation { allowed, decided, reason, phases, opaque, is_read, with_ech: None, moot, unasked, notes }
}

/// How a URL is asked for.
struct By<'a> {
    ip: Option<IpAddr>,
    hello: &'a Offered,
    is_endpoint: bool,
    opens: bool,
    reading: TlsReading,
}

fn url(
    set: &PolicySet,
    agent: &Agent,
    (host, port, scheme): (&Host, u16, Scheme),
    http: Operation<'_>,
    By { ip, hello, is_endpoint, opens, reading }: By<'_>,
) -> Explanation {
    let (mut phases, mut notes, mut is_read, mut with_ech) = (Vec::new(), Vec::new(), false, None);
    let mut unasked = Vec::new();
    match scheme {
        Scheme::Http => phases.push(ask(set, agent, http)),
        Scheme::Https if is_endpoint => {
            // The hello is the gateway's, so that it tells nothing of the client.
            let alpn = [UPSTREAM_ALPN.to_owned()];
            phases.push(ask(set, agent, Operation::Tls { host, port, alpn: &alpn, ja4: "" }));
            phases.push(ask(set, agent, http));
        }
        Scheme::Https => {
            let began = hello::began(set, agent, (host, port), hello, reading);
            (is_read, with_ech) = (began.is_read, began.with_ech);
            phases.push(began.tls);
            phases.push(if is_read { ask(set, agent, http) } else { began.tunnel });
            notes.extend(began.notes);
        }
    }
    if let Some(request) = phases.last().filter(|phase| opens && phase.action == http.action()) {
        let (messages, note) = opening::messages(set, agent, (host, port), request);
        phases.extend(messages);
        notes.extend(note);
    }
    // Last, as the proxy asks it: of each address, once it is known that the rest is allowed.
    let mut is_forwarded = false;
    match ip.or(host.address()) {
        Some(ip) => {
            let connect = connect(set, agent, ip, port, Transport::Tcp);
            is_forwarded = kernel::expected(set, agent, ip, Transport::Tcp, port).0 == KernelAction::Direct;
            if is_forwarded && !is_endpoint {
                let effects = of_direct(set, agent, (ip, port, Transport::Tcp), &connect);
                notes.push(forwarded(&effects));
            }
            phases.push(connect);
        }
        None => {
            unasked.push("connect".to_owned());
            notes.push(format!(
                "`connect` is asked of each address that `{host}` resolves to: name one with --address"
            ));
        }
    }
    let decided = phases.iter().find(|phase| !phase.allowed).or(phases.last());
    let (decided, reason) =
        decided.map(|phase| (phase.action.clone(), phase.reason.clone())).unwrap_or_default();
    let allowed = phases.iter().all(|phase| phase.allowed);
    let opaque = match scheme {
        Scheme::Https if is_endpoint => None,
        Scheme::Https if allowed && !is_read => Some("tunnel".to_owned()),
        Scheme::Http | Scheme::Https => is_forwarded.then(|| "direct".to_owned()),
    };
    Explanation {
        allowed,
        decided,
        reason,
        phases,
        opaque,
        is_read,
        with_ech,
        moot: Vec::new(),
        unasked,
        notes,
    }
}

fn name(set: &PolicySet, agent: &Agent, host: &Host, query_type: &str) -> Explanation {
    let phase = ask(set, agent, Operation::Resolve { host, port: DNS, query_type });
    let mut notes = vec![format!(
        "`connect` at port {DNS}, UDP or TCP, is asked of the address of the resolver that the agent asks, which must not be `direct`"
    )];
    // No address is forbidden in advance: what is opened is asked of each that the answer has.
    for (transport, port) in set.opens(&phase.policies, agent, IpAddr::from([192, 0, 2, 1])) {
        if phase.allowed {
            notes.push(format!(
                "`@direct` opens {} port {port} of its addresses, unless a policy forbids `direct` there",
                transport.name()
            ));
        }
    }
    let (allowed, reason) = (phase.allowed, phase.reason.clone());
    let decided = phase.action.clone();
    Explanation {
        allowed,
        decided,
        reason,
        phases: vec![phase],
        is_read: false,
        with_ech: None,
        opaque: None,
        moot: Vec::new(),
        unasked: Vec::new(),
        notes,
    }
}

fn connect(set: &PolicySet, agent: &Agent, ip: IpAddr, port: u16, transport: Transport) -> Phase {
    let limits = set.limits(agent, ip, port, transport).into_iter();
    let effects = limits.map(|policy| {
        let effect = set.limiters().find(|l| l.policy == policy).map(|l| l.over);
        let effect = if effect == Some(LimitAction::Pace) { "throttle" } else { "rate-limit" };
        PhaseEffect { effect: effect.to_owned(), policy }
    });
    let effects = effects.chain(followed(set.told(agent, ip, port, transport, false))).collect();
    let phase = Phase::of("connect", set.reach(agent, ip, port, transport), effects);
    phase.halved(
        set,
        |own| own.reach(agent, ip, port, transport),
        |above| above.reach_unguarded(agent, ip, port, transport),
    )
}

/// What follows on a flow that the kernel forwards, besides what `connect` brings.
fn of_direct(
    set: &PolicySet,
    agent: &Agent,
    (ip, port, transport): (IpAddr, u16, Transport),
    connect: &Phase,
) -> Vec<PhaseEffect> {
    let told = followed(set.told(agent, ip, port, transport, true));
    told.filter(|effect| !connect.effects.contains(effect)).collect()
}

/// What is said of an address that `direct` permits, where something else was asked about.
fn forwarded(effects: &[PhaseEffect]) -> String {
    let names = effects.iter().map(|effect| format!("`{}` ({})", effect.policy, effect.effect));
    let names = names.collect::<Vec<_>>().join(", ");
    let follows = if effects.is_empty() { String::new() } else { format!(", and what follows is {names}") };
    format!("`direct` permits the address: past the explicit proxy, the kernel forwards it unread{follows}")
}

/// What follows on what planes tell.
fn followed(told: Vec<Arc<Obligation>>) -> impl Iterator<Item = PhaseEffect> {
    told.into_iter().map(|o| PhaseEffect { policy: o.policy.to_string(), effect: o.effect.name().to_owned() })
}

pub(super) fn ask(set: &PolicySet, agent: &Agent, operation: Operation<'_>) -> Phase {
    let request = Request { agent, operation };
    // One that can't say what it obliges to denies, as where both are asked.
    let alone =
        |half: &PolicySet| half.obligations(&request).map_or_else(|failed| failed, |_| half.decide(&request));
    let phase = match set.obligations(&request) {
        Ok(obligations) => {
            let effect = |o: &Arc<Obligation>| PhaseEffect {
                policy: o.policy.to_string(),
                effect: o.effect.name().to_owned(),
            };
            let effects: Vec<PhaseEffect> = obligations.iter().map(effect).collect();
            let mut phase = Phase::of(operation.action(), set.decide(&request), effects);
            // What quarantines lets nothing pass, whatever the guards say.
            if phase.effects.iter().any(|e| e.effect == "quarantine") {
                phase.allowed = false;
                phase.reason = Some(DropReason::AgentQuarantined.name().to_owned());
            }
            phase
        }
        Err(failed) => Phase::of(operation.action(), failed, Vec::new()),
    };
    phase.halved(set, alone, alone)
}

// === impl Explanation ===

impl Explanation {
    /// The same of an agent in this state: one that is not active is denied before anything is asked of policy.
    #[must_use]
    pub fn in_state(self, state: AgentState) -> Explanation {
        let reason = match state {
            AgentState::Active => return self,
            AgentState::Quarantined => DropReason::AgentQuarantined,
            AgentState::Disabled => DropReason::AgentDisabled,
        };
        let note = "phases are told as if the agent were active".to_owned();
        let notes = self.notes.into_iter().chain([note]).collect();
        let (decided, reason) = ("identity".to_owned(), Some(reason.name().to_owned()));
        Explanation { allowed: false, decided, reason, opaque: None, moot: Vec::new(), notes, ..self }
    }

    /// Adds a phase that is asked after all others.
    pub(super) fn push(&mut self, phase: Phase) {
        if self.allowed {
            (self.allowed, self.reason) = (phase.allowed, phase.reason.clone());
            self.decided.clone_from(&phase.action);
        }
        self.phases.push(phase);
    }

    /// Whether it is known whether it passes: it is denied, or everything that is asked was.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !self.allowed || self.unasked.is_empty()
    }

    /// Ids of the policies that determine it: of the phase that denies, or of all.
    #[must_use]
    pub fn policies(&self) -> BTreeSet<String> {
        let counts = |phase: &&Phase| {
            let is_decisive = phase.action == self.decided;
            if self.allowed { phase.allowed || is_decisive } else { is_decisive }
        };
        self.phases.iter().filter(counts).flat_map(|phase| phase.policies.iter().cloned()).collect()
    }

    /// Ids of the obligations that match.
    #[must_use]
    pub fn effects(&self) -> BTreeSet<String> {
        self.phases.iter().flat_map(|phase| &phase.effects).map(|effect| effect.policy.clone()).collect()
    }
}

// === impl Phase ===

impl Half {
    fn of(decision: Decision) -> Half {
        let reason = decision.verdict.err().map(|reason| reason.name().to_owned());
        Half { allowed: decision.is_allow(), reason, policies: decision.policies }
    }
}

impl Phase {
    /// The phase with what each set says alone, where one stands above the other.
    fn halved(
        self,
        set: &PolicySet,
        own: impl Fn(&PolicySet) -> Decision,
        above: impl Fn(&PolicySet) -> Decision,
    ) -> Phase {
        let Some(platform) = set.platform() else { return self };
        let (platform, tenant) = (Some(Half::of(above(&platform))), Some(Half::of(own(&set.alone()))));
        Phase { platform, tenant, ..self }
    }

    fn of(action: &str, decision: Decision, effects: Vec<PhaseEffect>) -> Phase {
        Phase {
            action: action.to_owned(),
            allowed: decision.is_allow(),
            reason: decision.verdict.err().map(|reason| reason.name().to_owned()),
            policies: decision.policies,
            errors: decision.errors,
            effects,
            platform: None,
            tenant: None,
        }
    }
}
