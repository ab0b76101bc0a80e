//! Questions to policy, in the order the traffic raises them.
//!
//! Pure but for logging and the plan's clock. Must never turn an error or a missing policy into an allow.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use clawgress_api::EffectRef;
use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;
use clawgress_policy::effect::{Effect, Obligation};
use clawgress_policy::head::{self, Head};
use clawgress_policy::path;
use clawgress_policy::transform::Changes;
use clawgress_policy::{
    ALPN_GUESSES, Decision, Host, Need, Operation, PolicySet, Request, Scheme, TunnelProtocol, UPSTREAM_ALPN,
};

use crate::identify::Who;
use crate::snapshot::Plan;
use crate::told::Told;

pub use self::reach::{Judged, Refused, connect};
pub use self::said::*;

mod reach;
mod said;

static FAILED_TOLD: LazyLock<Told> = LazyLock::new(Told::default);

/// What policy reads of a hello besides its server name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// ALPN names, in the client's order.
    pub alpn: &'a [String],
    /// Its fingerprint; empty of one that was not seen.
    pub ja4: &'a str,
    /// Whether it may hide another name than it shows.
    pub is_encrypted: bool,
}

/// An answer of policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The action that determined it.
    pub action: &'static str,
    /// Allow, or why not.
    pub verdict: Result<(), DropReason>,
    /// Determining policies.
    pub policies: Vec<String>,
    /// What the request is obliged to, until that is enforced.
    pub duties: Option<Box<Duties>>,
    /// What it was obliged to, once that is enforced.
    pub effects: Box<[EffectRef]>,
    /// What of the request is changed before it is sent on, once that is enforced.
    pub changes: Option<Arc<Changes>>,
    /// After what time a limit may let it pass.
    pub retry_after: Option<Duration>,
}

/// Obligations that match what an agent asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duties {
    /// Who asks.
    pub agent: Arc<Agent>,
    /// At least one, ascending by their policies' ids; each once.
    pub obligations: Vec<Arc<Obligation>>,
    /// Limits among them that match more than one message of a batch: each once more for each after the first.
    pub repeated: Vec<Arc<Obligation>>,
}

// === impl Ruling ===

impl Ruling {
    /// A denial that no policy made.
    #[must_use]
    pub fn deny(action: &'static str, reason: DropReason) -> Self {
        Ruling::new(action, Err(reason), Vec::new())
    }

    /// A permission that no policy made: nobody asks.
    #[must_use]
    pub fn allow(action: &'static str) -> Self {
        Ruling::new(action, Ok(()), Vec::new())
    }

    fn new(action: &'static str, verdict: Result<(), DropReason>, policies: Vec<String>) -> Self {
        Ruling {
            action,
            verdict,
            policies,
            duties: None,
            effects: Box::default(),
            changes: None,
            retry_after: None,
        }
    }

    /// Why it denies.
    #[must_use]
    pub fn reason(&self) -> DropReason {
        self.verdict.err().unwrap_or(DropReason::PolicyDenied)
    }

    /// This ruling with the policies of another that it rests on.
    #[must_use]
    pub fn with(mut self, policies: &[String]) -> Self {
        self.policies.extend_from_slice(policies);
        self.policies.sort();
        self.policies.dedup();
        self
    }

    /// What its duties come to change of the request.
    #[must_use]
    pub fn transforms(&self) -> Option<Arc<Changes>> {
        let obligations = self.duties.iter().flat_map(|duties| &duties.obligations);
        let changes = Changes::of(obligations.map(AsRef::as_ref));
        (!changes.is_empty()).then(|| Arc::new(changes))
    }

    /// Whether its duties have the agent quarantined.
    #[must_use]
    pub fn quarantines(&self) -> bool {
        let mut obligations = self.duties.iter().flat_map(|duties| &duties.obligations);
        obligations.any(|obligation| matches!(obligation.effect, Effect::Quarantine(_)))
    }

    /// Drops duties of some effects.
    fn forget(&mut self, is_dropped: impl Fn(&Effect) -> bool) {
        self.keep_duties(|obligation| !is_dropped(&obligation.effect));
    }

    /// Drops all other duties.
    pub fn keep_duties(&mut self, is_kept: impl Fn(&Obligation) -> bool) {
        if let Some(duties) = &mut self.duties {
            duties.obligations.retain(|obligation| is_kept(obligation));
            duties.repeated.retain(|obligation| is_kept(obligation));
        }
        self.duties = self.duties.take().filter(|duties| !duties.obligations.is_empty());
    }

    /// This ruling on another message of a batch, of which `limits` match those before: what it is limited by counts for each.
    #[must_use]
    pub fn of_batch(mut self, limits: &mut Vec<Arc<Obligation>>) -> Self {
        let Some(duties) = &mut self.duties else { return self };
        for obligation in duties.obligations.iter().filter(|o| matches!(o.effect, Effect::Limit(_))) {
            if limits.iter().any(|known| known.repeats(obligation)) {
                duties.repeated.push(Arc::clone(obligation));
            } else {
                limits.push(Arc::clone(obligation));
            }
        }
        self
    }

    /// Drops duties of what comes back that can't be done any more: it is not counted, and the request has gone as it was.
    #[must_use]
    pub fn of_answer(mut self) -> Self {
        self.forget(|effect| matches!(effect, Effect::Limit(_) | Effect::Intercept | Effect::Transform(_)));
        self
    }

    /// Ids of the policies by which TLS is read.
    fn reads(&self) -> impl Iterator<Item = String> {
        let all = self.duties.iter().flat_map(|duties| &duties.obligations);
        all.filter(|o| o.effect == Effect::Intercept).map(|o| o.policy.as_ref().to_owned())
    }

    /// This ruling on `tunnel`, unless what it permits unread is to be read, by these policies.
    fn unless_read(self, reads: Vec<String>) -> Self {
        if self.verdict.is_err() || reads.is_empty() {
            return self;
        }
        Ruling { verdict: Err(DropReason::InspectionRequired), policies: reads, ..self }
    }

    /// This ruling on `tunnel`, which was asked since `wanted` permits what would have to stay unread.
    fn after(self, wanted: &Ruling) -> Self {
        let verdict = self.verdict.map_err(|reason| match reason {
            // It is wanted, but read.
            DropReason::PolicyDenied | DropReason::PolicyForbidden => DropReason::InspectionRequired,
            other => other,
        });
        let policies = if verdict.is_ok() { &wanted.policies[..] } else { &[] };
        Ruling { verdict, ..self }.with(policies).obliged_by(wanted)
    }

    /// This ruling with those of its duties alone that another has too.
    fn obliged_as(mut self, other: &Ruling) -> Self {
        let has = |obligation: &Obligation| {
            other.duties.as_ref().is_some_and(|d| d.obligations.iter().any(|o| obligation.repeats(o)))
        };
        if let Some(duties) = &mut self.duties {
            duties.obligations.retain(|obligation| has(obligation));
            duties.repeated.retain(|obligation| has(obligation));
        }
        self
    }

    /// This ruling, asked after another on the same exchange; if it denies, alone with what that obliges to.
    ///
    /// # Errors
    /// The denial.
    pub fn after_all(self, before: Ruling) -> Result<Ruling, Ruling> {
        if self.verdict.is_err() {
            return Err(self.obliged_by(&before));
        }
        let policies = before.policies.clone();
        Ok(self.with(&policies).obliged_by(&before))
    }

    /// This ruling with the duties of another on the same exchange: each counts once.
    #[must_use]
    pub fn obliged_by(mut self, other: &Ruling) -> Self {
        match (&mut self.duties, &other.duties) {
            (Some(own), Some(other)) => {
                own.repeated.extend(other.repeated.iter().cloned());
                own.obligations.extend(other.obligations.iter().cloned());
                own.obligations.sort_by_key(|o| (Arc::clone(&o.policy), o.effect.name()));
                own.obligations.dedup_by(|a, b| a.repeats(b));
            }
            (own @ None, other) => own.clone_from(other),
            (Some(_), None) => {}
        }
        self
    }
}

/// The policy that decides for `who`, as it does now.
fn policy(plan: &Plan, who: &Who) -> Option<PolicySet> {
    let agent = &who.identity.agent;
    let policy = plan.policy(agent)?;
    let policy = match who.history() {
        Some(history) => policy.knowing(history),
        None => policy,
    };
    let is_seen = plan.basis(agent.id.tenant()).asks_fingerprints;
    Some(if is_seen { policy.seeing(Arc::clone(who.seen())) } else { policy })
}

/// Who needs to know what `who` did before, if it asks for all of this.
#[must_use]
pub fn needs_history(plan: &Plan, who: &Who, operations: &[Operation<'_>]) -> Need {
    let agent = &who.identity.agent;
    if !plan.asks_history(agent) {
        return Need::None;
    }
    let Some(policy) = policy(plan, who) else { return Need::None };
    let needs = operations.iter().map(|operation| {
        let request = Request { agent, operation: *operation };
        policy.needs_history(&request)
    });
    needs.max().unwrap_or(Need::None)
}

/// Whether the hello that follows a CONNECT decides by its fingerprint.
#[must_use]
pub fn needs_ja4(plan: &Plan, who: &Who, host: &Host, port: u16) -> bool {
    let (Some(policy), agent) = (policy(plan, who), &who.identity.agent) else { return false };
    guesses().iter().any(|alpn| {
        let operation = Operation::Tls { host, port, alpn, ja4: "" };
        policy.needs_ja4(&Request { agent, operation })
    })
}

// === impl Hello ===

impl Hello<'_> {
    /// What it opens, unread.
    #[must_use]
    pub fn protocol(&self) -> TunnelProtocol {
        TunnelProtocol::of_tls(self.is_encrypted)
    }
}

/// What hellos may offer that were not seen yet.
fn guesses() -> &'static [Vec<String>] {
    static GUESSES: LazyLock<[Vec<String>; ALPN_GUESSES.len()]> =
        LazyLock::new(|| ALPN_GUESSES.map(|guess| guess.iter().map(|name| (*name).to_owned()).collect()));
    &*GUESSES
}

/// The rulings, as [`tls`] has them, on hellos that were not seen yet: of each guess, those that hide no name first, which are the usual
/// ones. What is the same for several is asked once: of `tls`, whether a name is hidden, and of `tunnel`, what is offered.
fn unseen<'a>(
    plan: &'a Plan,
    who: &'a Who,
    to: (&'a Host, u16),
    excluded: bool,
) -> impl Iterator<Item = Ruling> + 'a {
    let hellos =
        |alpn: &'static Vec<String>| [false, true].map(|is_encrypted| Hello { alpn, ja4: "", is_encrypted });
    let (mut offered, mut shown, mut hidden) = (None, None, None);
    guesses().iter().flat_map(hellos).map(move |hello| {
        if !hello.is_encrypted {
            offered = None;
        }
        let tls = offered.get_or_insert_with(|| tls_offered(plan, who, to, hello)).clone();
        if tls.verdict.is_err() {
            return tls;
        }
        let tunnel = if hello.is_encrypted { &mut hidden } else { &mut shown };
        let tunnel = tunnel.get_or_insert_with(|| tunnelled(plan, who, to, hello)).clone();
        unread(tls, tunnel, excluded)
    })
}

/// A request that may follow a CONNECT, of which nothing else is known.
fn root(host: &Host, port: u16) -> Operation<'_> {
    let head = Head::unknown();
    Operation::Http { host, port, scheme: Scheme::Http, method: "GET", path: "/", head }
}

/// Whether plain HTTP may follow a CONNECT, by all that is known of it.
#[must_use]
pub fn root_possible(plan: &Plan, who: &Who, host: &Host, port: u16) -> bool {
    let agent = &who.identity.agent;
    let request = Request { agent, operation: root(host, port) };
    // What is not known is only what a head says.
    let may = |policy: &PolicySet| policy.needs_head(&request) != Need::None && policy.may_permit(&request);
    http(plan, who, request.operation).verdict.is_ok() || policy(plan, who).is_some_and(|policy| may(&policy))
}

/// Who needs to know what `who` did before, of a CONNECT: of all that may follow it.
#[must_use]
pub fn connect_needs_history(plan: &Plan, who: &Who, host: &Host, port: u16) -> Need {
    if !plan.asks_history(&who.identity.agent) {
        return Need::None;
    }
    let hellos = guesses().iter().map(|alpn| Operation::Tls { host, port, alpn, ja4: "" });
    let tunnel = |protocol| Operation::Tunnel { host, port, protocol };
    let others = [
        tunnel(TunnelProtocol::Tls),
        tunnel(TunnelProtocol::TlsEch),
        tunnel(TunnelProtocol::Unknown),
        root(host, port),
    ];
    let operations: Vec<_> = hellos.chain(others).collect();
    needs_history(plan, who, &operations)
}

/// Who needs to know what `who` did before, of a request that is [`read`].
#[must_use]
pub fn read_needs_history(plan: &Plan, who: &Who, operation: Operation<'_>) -> Need {
    let Operation::Http { host, port, scheme: Scheme::Https, .. } = operation else {
        return needs_history(plan, who, &[operation]);
    };
    let alpn = [UPSTREAM_ALPN.to_owned()];
    needs_history(plan, who, &[Operation::Tls { host, port, alpn: &alpn, ja4: "" }, operation])
}

fn ask(plan: &Plan, who: &Who, operation: Operation<'_>) -> Ruling {
    let action = operation.action();
    let Some(policy) = policy(plan, who) else { return Ruling::deny(action, DropReason::PolicyMissing) };
    let agent = &who.identity.agent;
    let request = Request { agent, operation };
    let ruled = ruling(action, agent, policy.decide(&request));
    match policy.obligations(&request) {
        Ok(obligations) if obligations.is_empty() => ruled,
        Ok(obligations) => {
            let (agent, repeated) = (Arc::clone(agent), Vec::new());
            Ruling { duties: Some(Box::new(Duties { agent, obligations, repeated })), ..ruled }
        }
        // What it would have obliged to, nobody knows.
        Err(failed) => ruling(action, agent, failed),
    }
}

fn ruling(action: &'static str, agent: &Agent, decision: Decision) -> Ruling {
    for error in &decision.errors {
        if error.ends_with(head::UNCLEAR) || error.ends_with(path::APART) {
            // Whoever sends a header field twice brings that about: its record tells of it, and no policy is at fault.
            tracing::debug!(%error, action, agent = %agent.id, "what a policy asks has no one value, and that denies");
            continue;
        }
        // What else it says may have values of the request.
        let policy = error.split_once(": ").map_or(error.as_str(), |(policy, _)| policy);
        if let Some(untold) = FAILED_TOLD.turn_by(agent.index, policy, Instant::now()) {
            let agent = &agent.id;
            tracing::warn!(%error, action, %agent, untold, "a policy could not be evaluated, and that denies");
        }
    }
    Ruling::new(action, decision.verdict, decision.policies)
}

/// `http`.
#[must_use]
pub fn http(plan: &Plan, who: &Who, operation: Operation<'_>) -> Ruling {
    ask(plan, who, operation)
}

/// Whether what is decided of this request depends on what its head has no one value of.
#[must_use]
pub fn needs_head(plan: &Plan, who: &Who, operation: Operation<'_>) -> bool {
    let agent = &who.identity.agent;
    policy(plan, who).is_some_and(|policy| policy.needs_head(&Request { agent, operation }) == Need::Decided)
}

/// `http`; where the gateway itself starts TLS for it, `tls` before that.
#[must_use]
pub fn read(plan: &Plan, who: &Who, operation: Operation<'_>) -> Ruling {
    let Operation::Http { host, port, scheme: Scheme::Https, .. } = operation else {
        return http(plan, who, operation);
    };
    // The hello is the gateway's, so that it tells nothing of the client.
    let alpn = [UPSTREAM_ALPN.to_owned()];
    let tls = ask(plan, who, Operation::Tls { host, port, alpn: &alpn, ja4: "" });
    if tls.verdict.is_err() {
        return tls;
    }
    let http = http(plan, who, operation);
    let policies = if http.verdict.is_ok() { &tls.policies[..] } else { &[] };
    http.with(policies).obliged_by(&tls)
}

/// `tls` alone.
#[must_use]
pub fn tls_offered(plan: &Plan, who: &Who, (host, port): (&Host, u16), hello: Hello<'_>) -> Ruling {
    let Hello { alpn, ja4, .. } = hello;
    ask(plan, who, Operation::Tls { host, port, alpn, ja4 })
}

/// `tunnel` of what follows a hello. One that may hide a name is held to what is said of `"tls"`
/// ([`TunnelProtocol::is_refused_as_tls`]).
fn tunnelled(plan: &Plan, who: &Who, (host, port): (&Host, u16), hello: Hello<'_>) -> Ruling {
    let tunnel = |protocol| ask(plan, who, Operation::Tunnel { host, port, protocol });
    let own = tunnel(hello.protocol());
    if !hello.is_encrypted {
        return own;
    }
    let shown = tunnel(TunnelProtocol::Tls);
    if TunnelProtocol::is_refused_as_tls(own.verdict.err(), shown.verdict.err()) {
        shown.obliged_by(&own)
    } else {
        own.obliged_by(&shown)
    }
}

/// `tls` of what is read, with what `tunnel` obliges to: that must be asked to know whether it is read. Its limits
/// don't count, since nothing is tunnelled.
#[must_use]
pub fn tls_read(plan: &Plan, who: &Who, to: (&Host, u16), hello: Hello<'_>) -> Ruling {
    let tls = tls_offered(plan, who, to, hello);
    if tls.verdict.is_err() {
        return tls;
    }
    let mut tunnel = tunnelled(plan, who, to, hello);
    match tunnel.verdict {
        Ok(()) | Err(DropReason::PolicyDenied | DropReason::PolicyForbidden) => {}
        Err(_) => return tunnel.obliged_by(&tls),
    }
    tunnel.forget(|effect| matches!(effect, Effect::Limit(_)));
    tls.obliged_by(&tunnel)
}

/// `tls`, then `tunnel`, because the bytes stay unread; and not where policy says that they are read, unless the
/// configuration has `excluded` that.
#[must_use]
pub fn tls(plan: &Plan, who: &Who, to: (&Host, u16), hello: Hello<'_>, excluded: bool) -> Ruling {
    let tls = tls_offered(plan, who, to, hello);
    if tls.verdict.is_err() {
        return tls;
    }
    unread(tls, tunnelled(plan, who, to, hello), excluded)
}

/// What the ruling `tls`, which permits, and the one on `tunnel` come to, if it stays unread.
fn unread(mut tls: Ruling, mut tunnel: Ruling, excluded: bool) -> Ruling {
    if excluded {
        for ruling in [&mut tls, &mut tunnel] {
            ruling.forget(|effect| *effect == Effect::Intercept);
        }
    }
    let reads = [&tls, &tunnel].into_iter().flat_map(Ruling::reads).collect();
    tunnel.unless_read(reads).after(&tls)
}

/// `http` of a request that opens a WebSocket, given what it says, then `tunnel`, because the messages stay unread; and
/// not where policy says that they are read. With it, the ruling where they are read, unless `tunnel` is forbidden: its limits
/// don't count then.
#[must_use]
pub fn web_socket(
    plan: &Plan,
    who: &Who,
    (host, port): (&Host, u16),
    http: Ruling,
) -> (Ruling, Option<Ruling>) {
    if http.verdict.is_err() {
        return (http, None);
    }
    let tunnel = ask(plan, who, Operation::Tunnel { host, port, protocol: TunnelProtocol::WebSocket });
    let read = matches!(tunnel.verdict, Ok(()) | Err(DropReason::PolicyDenied)).then(|| {
        let mut tunnel = tunnel.clone();
        tunnel.forget(|effect| matches!(effect, Effect::Limit(_)));
        http.clone().obliged_by(&tunnel)
    });
    let reads = tunnel.reads().collect();
    (tunnel.unless_read(reads).after(&http), read)
}

/// Whether a hello to `host` could be permitted; the ruling for none otherwise.
#[must_use]
pub fn tls_possible(plan: &Plan, who: &Who, (host, port): (&Host, u16), excluded: bool) -> Ruling {
    let mut chosen: Option<Ruling> = None;
    let needs_ja4 = needs_ja4(plan, who, host, port);
    for mut ruling in unseen(plan, who, (host, port), excluded) {
        // Of a fingerprint that nobody has nothing follows.
        ruling.duties = ruling.duties.filter(|_| !needs_ja4 || ruling.verdict.is_err());
        // Of a hello that was never sent, only that counts which counts for any.
        let ruling = match chosen {
            Some(first) if first.verdict.is_ok() || ruling.verdict.is_err() => first.obliged_as(&ruling),
            Some(first) => ruling.obliged_as(&first),
            None => ruling,
        };
        if ruling.verdict.is_ok() && ruling.duties.is_none() {
            return ruling;
        }
        chosen = Some(ruling);
    }
    chosen.unwrap_or_else(|| Ruling::deny("tls", DropReason::PolicyDenied))
}

/// Whether a hello to `host` could be one that is to be read.
#[must_use]
pub fn read_possible(plan: &Plan, who: &Who, to: (&Host, u16), excluded: bool) -> bool {
    unseen(plan, who, to, excluded).any(|ruling| ruling.verdict == Err(DropReason::InspectionRequired))
}

/// `resolve`.
#[must_use]
pub fn resolve(plan: &Plan, who: &Who, host: &Host, port: u16, query_type: &str) -> Ruling {
    ask(plan, who, Operation::Resolve { host, port, query_type })
}

/// `tunnel` for bytes that are neither TLS nor HTTP, and so can't be read: not where policy says that they are, unless
/// the configuration has `excluded` that.
#[must_use]
pub fn unknown(plan: &Plan, who: &Who, host: &Host, port: u16, excluded: bool) -> Ruling {
    let mut ruling = ask(plan, who, Operation::Tunnel { host, port, protocol: TunnelProtocol::Unknown });
    if excluded {
        ruling.forget(|effect| *effect == Effect::Intercept);
    }
    let reads = ruling.reads().collect();
    let ruling = ruling.unless_read(reads);
    let verdict = ruling.verdict.map_err(|reason| match reason {
        DropReason::PolicyDenied => DropReason::ProtocolUnknown,
        other => other,
    });
    Ruling { verdict, ..ruling }
}

#[cfg(test)]
mod tests;
