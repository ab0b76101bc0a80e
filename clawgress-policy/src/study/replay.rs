//! What a set says of what was decided before: records hold what was asked, as far as they hold it. Must never guess:
//! what a record does not hold is said not to be known.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;
use serde::{Deserialize, Serialize};

use self::answer::{Answer, Effects, ask};
use self::facts::{Contents, Stopped};
use crate::effect::Effect;
use crate::head::{Head, HeadFacts};
use crate::kernel::{self, KernelAction};
use crate::{
    ALPN_GUESSES, Decision, Host, Need, Operation, PolicySet, Request, Scheme, Transport, TunnelProtocol,
    UPSTREAM_ALPN,
};

mod answer;
mod contents;
pub mod facts;
mod needs;
mod opening;

/// What a record holds of a decision.
#[derive(Clone, Debug)]
pub struct Recorded<'a> {
    /// Who asked, as it was then.
    pub agent: &'a Agent,
    /// What else is known of then.
    pub known: Known,
    /// Whether the kernel decided.
    pub by_kernel: bool,
    /// The action that determined it.
    pub action: &'a str,
    /// Whether it was allowed, else the name of the reason.
    pub verdict: Result<(), &'a str>,
    /// Host.
    pub host: Option<&'a str>,
    /// Address.
    pub ip: Option<IpAddr>,
    /// Through which parent proxy it went, if through one.
    pub parent: Option<Parent>,
    /// Port.
    pub port: Option<u16>,
    /// Protocol.
    pub protocol: Option<&'a str>,
    /// Scheme, where that is recorded.
    pub scheme: Option<&'a str>,
    /// Method.
    pub method: Option<&'a str>,
    /// Path.
    pub path: Option<&'a str>,
    /// What its header fields and its query said, as far as that is recorded.
    pub head: Option<HeadFacts>,
    /// Ids of the policies that determined it.
    pub policies: &'a [String],
    /// What it was obliged to: ids of policies, each with the name of its effect; `None` if the record doesn't tell all.
    pub effects: Option<BTreeSet<(&'a str, &'a str)>>,
    /// What a tunnel carries.
    pub content: Content,
    /// Whether its TLS was read.
    pub intercepted: bool,
    /// What the hello offered.
    pub alpn: Option<&'a [String]>,
    /// Its fingerprint.
    pub ja4: Option<&'a str>,
    /// What it holds of what was sent, and of what came back.
    pub contents: Contents<'a>,
}

/// A parent proxy, by a record: it is asked for `connect` too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// It listens there.
    At(SocketAddr),
    /// The record is older than that it says where.
    Untold,
}

/// What is known of the time of a decision, besides its record's own parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Whether the agent's labels are those of then.
    pub labels: bool,
    /// Whether the geo data are those of then.
    pub geo: bool,
    /// Whether the zone of the wall clock is that of then.
    pub zone: bool,
    /// Whether conditions on time answered the same from its first question to its record.
    pub time: bool,
}

/// What a tunnel carries, by its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// TLS.
    Tls,
    /// The same, where the hello may have hidden for whom it was.
    TlsEch,
    /// Neither TLS nor HTTP.
    Unknown,
    /// The messages of a WebSocket, which a request that is read opens.
    WebSocket,
    /// It was decided before that was seen: of a `CONNECT`, whatever may follow was denied.
    Unseen,
    /// The record is older than that it says so.
    Untold,
}

/// What the set says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "replay")]
pub enum Replayed {
    /// The same.
    Same,
    /// The same, and other policies determine it.
    Otherwise {
        /// Ids of those that determine it now.
        policies: Vec<String>,
    },
    /// Something else.
    Changed {
        /// `allow`, `direct`, `steer`, or the reason of a denial.
        before: String,
        /// Likewise.
        after: String,
        /// Ids of the policies that determine it now.
        policies: Vec<String>,
    },
    /// The same, and it is obliged to something else.
    Obliged {
        /// What it was obliged to alone: `EFFECT by POLICY`.
        before: Vec<String>,
        /// What it would be obliged to alone, likewise.
        after: Vec<String>,
    },
    /// The record doesn't hold what the answer depends on.
    Unknown {
        /// What it doesn't hold.
        why: String,
    },
    /// Not for policy to say: it was denied, or failed, for another reason.
    Apart,
}

/// What policies read that a record may not hold, besides what is asked of each request: what the agent did before, and
/// the fingerprint of its hello.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Attributes or labels of agents.
    pub labels: bool,
    /// What a TLS hello offers.
    pub alpn: bool,
    /// What seems to be at the other end, besides the hello.
    pub fingerprints: bool,
    /// The data of an autonomous system or a country.
    pub geo: bool,
    /// The time.
    pub time: bool,
    /// What a wall clock shows, in some zone.
    pub wall_clock: bool,
}

// === impl Recorded ===

impl Recorded<'_> {
    /// What `set`, [at](PolicySet::at) the record's time, says.
    #[must_use]
    pub fn replay(&self, set: &PolicySet, needs: Needs) -> Replayed {
        if let Err(reason) = self.verdict
            && !is_policys(reason)
            && !self.is_by_policy(reason)
        {
            return Replayed::Apart;
        }
        let lacks = [
            (needs.labels && !self.known.labels, "the labels that the agent had then"),
            (needs.geo && !self.known.geo, "the geo data of then"),
            (needs.time && !self.known.zone, "the time zone of then"),
            (needs.time && !self.known.time, "on which side of a turn of time it was decided"),
        ];
        if let Some((_, why)) = lacks.into_iter().find(|(lacks, _)| *lacks) {
            return unknown(why);
        }
        if needs.fingerprints && !self.by_kernel && !set.knows_fingerprints() {
            return unknown("the executable, the cgroup, the certificate or the MAC address");
        }
        if self.by_kernel { self.kernel(set) } else { self.proxied(set, needs) }
    }

    fn kernel(&self, set: &PolicySet) -> Replayed {
        let transport = self.protocol.and_then(Transport::from_name);
        let (Some(ip), Some(transport)) = (self.ip, transport) else {
            return unknown("the address or the protocol");
        };
        let port = self.port.unwrap_or(0);
        let before = match self.verdict {
            Ok(()) if self.action == "direct" => "direct",
            Ok(()) => "steer",
            Err(reason) => reason,
        };
        let (action, policies) = kernel::expected(set, self.agent, ip, transport, port);
        let after = match action {
            KernelAction::Direct => "direct",
            KernelAction::Steer => "steer",
            KernelAction::Deny(code) => DropReason::from_code(code).map_or("deny", DropReason::name),
        };
        match self.changed(before, after, policies) {
            replayed @ Replayed::Changed { .. } => replayed,
            replayed => {
                self.obliged(replayed, &self.told(set, ip, port, transport, action == KernelAction::Direct))
            }
        }
    }

    /// What follows on a `connect` that is told, and on a `direct`.
    fn told(
        &self,
        set: &PolicySet,
        ip: IpAddr,
        port: u16,
        transport: Transport,
        went_direct: bool,
    ) -> Effects {
        let told = set.told(self.agent, ip, port, transport, went_direct);
        told.iter().map(|o| (o.policy.to_string(), o.effect.name().to_owned())).collect()
    }

    /// What the proxy asks `connect` for: the address, unless a parent proxy resolves the name, and that parent.
    fn dialled(&self, port: u16) -> Result<Vec<(IpAddr, u16)>, &'static str> {
        let itself = self.ip.map(|ip| (ip, port));
        match self.parent {
            Some(Parent::Untold) => Err("the parent proxy's address"),
            Some(Parent::At(at)) => Ok(itself.into_iter().chain([(at.ip(), at.port())]).collect()),
            // It was denied before an address was known: what `connect` would have said, nobody knows.
            None => itself.map(|itself| vec![itself]).ok_or("the address"),
        }
    }

    /// `connect` to each in turn: the first that is denied, or all.
    fn reached(&self, set: &PolicySet, dialled: &[(IpAddr, u16)]) -> Decision {
        let mut reached = Decision { verdict: Ok(()), policies: Vec::new(), errors: Vec::new() };
        for (ip, port) in dialled {
            let reach = set.reach(self.agent, *ip, *port, Transport::Tcp);
            if reach.verdict.is_err() {
                return reach;
            }
            reached.policies.extend(reach.policies);
        }
        reached
    }

    /// The outcome of asking again.
    fn changed(&self, before: &str, after: &str, policies: Vec<String>) -> Replayed {
        changed(self.policies, before, after, policies)
    }

    /// The outcome of asking again what is allowed, as before, by this answer: what it obliges to counts then too.
    fn still_allowed(&self, policies: Vec<String>, effects: Option<&Effects>) -> Replayed {
        let replayed = self.changed("allow", "allow", policies);
        effects.map_or(replayed.clone(), |effects| self.obliged(replayed, effects))
    }

    /// What came of asking again, unless it obliges to something else.
    fn obliged(&self, replayed: Replayed, effects: &Effects) -> Replayed {
        let Some(recorded) = &self.effects else { return replayed };
        // Whether TLS was read is told by other parts of the record.
        let counts = |effect: &str| effect != Effect::Intercept.name();
        let recorded: Effects = recorded
            .iter()
            .filter(|(_, effect)| counts(effect))
            .map(|(policy, effect)| ((*policy).to_owned(), (*effect).to_owned()))
            .collect();
        let effects: Effects = effects.iter().filter(|(_, effect)| counts(effect)).cloned().collect();
        if recorded == effects {
            return replayed;
        }
        let only = |these: &Effects, those: &Effects| {
            these.difference(those).map(|(policy, effect)| format!("{effect} by {policy}")).collect()
        };
        Replayed::Obliged { before: only(&recorded, &effects), after: only(&effects, &recorded) }
    }

    /// In the order in which the proxy asks: what is wanted, then each address; and what quarantines comes before both, as
    /// soon as it was asked.
    fn proxied(&self, set: &PolicySet, needs: Needs) -> Replayed {
        let before = self.verdict.err().unwrap_or("allow");
        let Some(port) = self.port else { return unknown("the port") };
        if self.action == "resolve" {
            return self.resolved(set, port, before);
        }
        let host = self.host.map_or_else(|| self.ip.map(Host::from_address), |host| Host::parse(host).ok());
        let Some(host) = host else { return unknown("the host") };
        let wanted = match self.action {
            "http" => self.http(set, &host, port, needs),
            // What is read is asked no `tunnel`; and each request for its addresses, none for the connection.
            "tls" if self.intercepted && self.method.is_none() => {
                return match self.opened(set, &host, port, needs) {
                    Ok(answer) => {
                        let after = answer.denied.map_or("allow", DropReason::name);
                        self.changed(before, after, answer.policies)
                    }
                    Err(why) => unknown(why),
                };
            }
            "tls" | "tunnel" if self.method.is_some() => self.http(set, &host, port, needs),
            "tls" | "tunnel" => self.opaque(set, &host, port, needs),
            // It was denied by its address, after this was asked.
            _ if self.method.is_some() => self.http(set, &host, port, needs),
            _ if matches!(self.content, Content::Tls | Content::TlsEch | Content::Unknown) => {
                self.opaque(set, &host, port, needs)
            }
            // What would have been asked next was never seen.
            _ => Err("what would have come after `connect`"),
        };
        let dialled = self.dialled(port);
        let reach = dialled.as_deref().map(|dialled| self.reached(set, dialled));
        match (wanted, reach) {
            (Ok(Answer { denied: Some(reason), policies, .. }), _) => {
                self.changed(before, reason.name(), policies)
            }
            // Whatever would have been asked before, this denies at the latest.
            (Err(why), Ok(reach)) if self.action == "connect" => match reach.verdict {
                Err(reason) => self.changed(before, reason.name(), reach.policies),
                Ok(()) => unknown(why),
            },
            (Err(why), _) => unknown(why),
            (Ok(_), Err(why)) => unknown(why),
            (Ok(answer), Ok(reach)) => match reach.verdict {
                Err(reason) => self.changed(before, reason.name(), reach.policies),
                Ok(()) => {
                    // What follows on its `connect` is in the same record.
                    let told = dialled.iter().flatten();
                    let told = told.flat_map(|(ip, port)| self.told(set, *ip, *port, Transport::Tcp, false));
                    let reach = Answer {
                        policies: reach.policies,
                        effects: Some(told.collect()),
                        ..Answer::nothing()
                    };
                    self.followed(set, (&host, port), answer.then(reach), needs)
                }
            },
        }
    }

    /// What comes of what is allowed so far, by what was sent and what came back.
    fn followed(&self, set: &PolicySet, to: (&Host, u16), before: Answer, needs: Needs) -> Replayed {
        let was = self.verdict.err().unwrap_or("allow");
        let answer = match self.said(set, to, &self.contents.said) {
            Ok(said) => before.then(said),
            Err(why) => return unknown(why),
        };
        if let Some(reason) = answer.denied {
            return self.changed(was, reason.name(), answer.policies);
        }
        if self.verdict.is_err() {
            return if self.may_be_answered(set) {
                unknown("what would have come back")
            } else {
                self.changed(was, "allow", answer.policies)
            };
        }
        let after = match self.after(set, to, needs) {
            Ok(after) => after,
            Err(why) => return unknown(why),
        };
        match (self.contents.stopped(), after.denied) {
            (None, None) => {
                let effects = answer.effects.zip(after.effects);
                let effects = effects.map(|(a, b)| a.into_iter().chain(b).collect());
                self.still_allowed(answer.policies, effects.as_ref())
            }
            (Some(Stopped { reason, .. }), _) if !is_policys(reason) => Replayed::Apart,
            (Some(Stopped { reason, policies, .. }), denied) => {
                let after_all = denied.map_or("allow", DropReason::name);
                changed(policies, reason, after_all, after.policies)
            }
            (None, Some(reason)) => changed(self.policies, "allow", reason.name(), after.policies),
        }
    }

    /// A question to DNS: its type is recorded as a method, and its address is the resolver's.
    fn resolved(&self, set: &PolicySet, port: u16, before: &str) -> Replayed {
        let Some(host) = self.host.and_then(|host| Host::parse(host).ok()) else {
            return unknown("the host");
        };
        let Some(query_type) = self.method else { return unknown("the type that was asked for") };
        let operation = Operation::Resolve { host: &host, port, query_type };
        match ask(set, self.agent, operation) {
            Ok(answer) if answer.denied.is_none() && self.verdict.is_ok() => {
                self.still_allowed(answer.policies, answer.effects.as_ref())
            }
            Ok(answer) => {
                self.changed(before, answer.denied.map_or("allow", DropReason::name), answer.policies)
            }
            Err(why) => unknown(why),
        }
    }

    /// `tls` as the client offered it, of what is read: what it obliges to was kept once.
    fn opened(&self, set: &PolicySet, host: &Host, port: u16, needs: Needs) -> Result<Answer, &'static str> {
        let alpn = match self.alpn {
            Some(alpn) => alpn,
            None if needs.alpn => return Err("the ALPN list of the hello"),
            None => &[],
        };
        let operation = Operation::Tls { host, port, alpn, ja4: self.ja4.unwrap_or_default() };
        let request = Request { agent: self.agent, operation };
        if self.ja4.is_none() && set.needs_ja4(&request) {
            return Err("the fingerprint of the hello");
        }
        if !set.knows_history() && set.needs_history(&request) == Need::Decided {
            return Err("what the agent did before");
        }
        let Decision { verdict, policies, .. } = set.decide(&request);
        let (denied, effects) = (verdict.err(), Some(Effects::new()));
        Ok(Answer { denied, policies, quarantine: None, effects, reads: Vec::new() })
    }

    fn http(&self, set: &PolicySet, host: &Host, port: u16, needs: Needs) -> Result<Answer, &'static str> {
        let method = self.method.ok_or("the method")?;
        let path = self.path.ok_or("the path")?;
        let is_read_over_tls = self.scheme.is_some_and(|scheme| scheme != Scheme::Http.name());
        let scheme = if is_read_over_tls { Scheme::Https } else { Scheme::Http };
        let head = self.head.as_ref().filter(|_| set.asks_head()).map(|facts| facts.head(&set.mentions()));
        let head = head.as_ref().unwrap_or(Head::unknown());
        let http = Operation::Http { host, port, scheme, method, path, head };
        let asked = || match self.content {
            Content::WebSocket => self.web_socket(set, (host, port), ask(set, self.agent, http)?),
            _ => ask(set, self.agent, http),
        };
        if !is_read_over_tls {
            return asked();
        }
        let tls = if self.intercepted {
            self.opened(set, host, port, needs)?
        } else {
            // The hello was the gateway's own.
            let alpn = [UPSTREAM_ALPN.to_owned()];
            ask(set, self.agent, Operation::Tls { host, port, alpn: &alpn, ja4: "" })?
        };
        if tls.denied.is_some() { Ok(tls) } else { Ok(tls.then(asked()?)) }
    }

    /// `tls` and `tunnel`, or `tunnel` alone for what was no TLS. Where a record doesn't tell which, both must say the same.
    fn opaque(&self, set: &PolicySet, host: &Host, port: u16, needs: Needs) -> Result<Answer, &'static str> {
        let alpn = match self.alpn {
            Some(alpn) => alpn,
            None if needs.alpn => return Err("the ALPN list of the hello"),
            None => &[],
        };
        let hello = Operation::Tls { host, port, alpn, ja4: self.ja4.unwrap_or_default() };
        let lacks_ja4 = self.ja4.is_none() && set.needs_ja4(&Request { agent: self.agent, operation: hello });
        if lacks_ja4 && !matches!(self.content, Content::Unknown | Content::Unseen) {
            return Err("the fingerprint of the hello");
        }
        let is_unknown = self.verdict == Err(DropReason::ProtocolUnknown.name());
        let is_tls = self.action == "tls"
            || self.alpn.is_some()
            || self.ja4.is_some()
            || self.verdict == Err(DropReason::InspectionRequired.name());
        match self.content {
            Content::Tls => self.tls(set, hello, TunnelProtocol::Tls),
            Content::TlsEch => self.tls(set, hello, TunnelProtocol::TlsEch),
            Content::Unknown => self.other(set, host, port),
            Content::WebSocket => Err("the request that opened it"),
            Content::Unseen => self.unseen(set, host, port),
            Content::Untold if is_unknown => self.other(set, host, port),
            Content::Untold => {
                let tls = self.tls(set, hello, TunnelProtocol::Tls)?;
                if !is_tls && tls.denied.is_none() != self.other(set, host, port)?.denied.is_none() {
                    return Err("whether it was TLS");
                }
                Ok(tls)
            }
        }
    }

    /// A protocol nobody can read.
    fn other(&self, set: &PolicySet, host: &Host, port: u16) -> Result<Answer, &'static str> {
        let operation = Operation::Tunnel { host, port, protocol: TunnelProtocol::Unknown };
        let answer = ask(set, self.agent, operation)?;
        let denied = answer
            .denied
            .map(|r| if r == DropReason::PolicyDenied { DropReason::ProtocolUnknown } else { r });
        Ok(Answer { denied, ..answer })
    }

    /// A `CONNECT` of which nothing that may follow was permitted: by the first guess, if that is so now.
    fn unseen(&self, set: &PolicySet, host: &Host, port: u16) -> Result<Answer, &'static str> {
        let mut guesses = Vec::with_capacity(2 * ALPN_GUESSES.len());
        for guess in ALPN_GUESSES {
            let alpn: Vec<String> = guess.iter().map(|name| (*name).to_owned()).collect();
            let hello = Operation::Tls { host, port, alpn: &alpn, ja4: "" };
            if set.needs_ja4(&Request { agent: self.agent, operation: hello }) {
                return Err("what would have followed the `CONNECT`");
            }
            for protocol in [TunnelProtocol::Tls, TunnelProtocol::TlsEch] {
                guesses.push(self.tls(set, hello, protocol)?);
            }
        }
        let (scheme, head) = (Scheme::Http, Head::unknown());
        let root = Operation::Http { host, port, scheme, method: "GET", path: "/", head };
        let denies = |answer: &Answer| answer.denied.is_some();
        let nothing = guesses.iter().all(denies)
            && denies(&self.other(set, host, port)?)
            && denies(&ask(set, self.agent, root)?);
        guesses.into_iter().next().filter(|_| nothing).ok_or("what would have followed the `CONNECT`")
    }

    fn tls(
        &self,
        set: &PolicySet,
        hello: Operation<'_>,
        protocol: TunnelProtocol,
    ) -> Result<Answer, &'static str> {
        let tls = ask(set, self.agent, hello)?;
        let Operation::Tls { host, port, .. } = hello else { return Ok(tls) };
        // What quarantines denies at the end alone: until then `tls` is as its guards say.
        if tls.denied.is_some() && tls.quarantine.is_none() {
            return Ok(tls);
        }
        let tunnel = |protocol| ask(set, self.agent, Operation::Tunnel { host, port, protocol });
        let mut tunnel = match protocol {
            TunnelProtocol::TlsEch => tunnel(protocol)?.held_to(tunnel(TunnelProtocol::Tls)?),
            _ => tunnel(protocol)?,
        };
        if matches!(tunnel.denied, Some(DropReason::PolicyDenied | DropReason::PolicyForbidden)) {
            tunnel.denied = Some(DropReason::InspectionRequired);
        }
        Ok(tls.then(tunnel))
    }

    /// Whether a policy quarantined the agent at this very request, rather than that it was quarantined before; or asked for what
    /// the head had no one value of, rather than that nobody could have read it.
    fn is_by_policy(&self, reason: &str) -> bool {
        let may = [DropReason::AgentQuarantined, DropReason::HttpMalformed];
        may.iter().any(|may| may.name() == reason) && !self.policies.is_empty()
    }
}

/// What these policies determined, asked again.
fn changed(recorded: &[String], before: &str, after: &str, mut policies: Vec<String>) -> Replayed {
    policies.sort();
    policies.dedup();
    if before != after {
        return Replayed::Changed { before: before.to_owned(), after: after.to_owned(), policies };
    }
    let recorded: BTreeSet<&String> = recorded.iter().collect();
    if recorded == policies.iter().collect() { Replayed::Same } else { Replayed::Otherwise { policies } }
}

fn unknown(why: &str) -> Replayed {
    Replayed::Unknown { why: why.to_owned() }
}

/// Whether a reason is one that policy gives.
fn is_policys(reason: &str) -> bool {
    [
        DropReason::PolicyDenied,
        DropReason::PolicyForbidden,
        DropReason::PolicyError,
        DropReason::PolicyMissing,
        DropReason::AddressReserved,
        DropReason::InspectionRequired,
        DropReason::ProtocolUnknown,
        DropReason::ProtocolUnsupported,
    ]
    .iter()
    .any(|r| r.name() == reason)
}
