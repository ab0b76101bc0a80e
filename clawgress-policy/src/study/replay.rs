//! What a set says of what was decided before: records hold what was asked, as far as they hold it. Must never guess:
//! what a record does not hold is said not to be known.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cedar_policy_core::ast::{Expr, ExprKind};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;
use serde::{Deserialize, Serialize};

use crate::effect::Effect;
use crate::kernel::{self, KernelAction};
use crate::set::syntax::{self, Policy};
use crate::vocabulary::Reads;
use crate::{
    ALPN_GUESSES, Decision, GeoNames, Host, Operation, PolicySet, Request, Scheme, Transport, TunnelProtocol,
};

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
    /// Ids of the policies that determined it.
    pub policies: &'a [String],
    /// What a tunnel carries.
    pub content: Content,
    /// What the hello offered.
    pub alpn: Option<&'a [String]>,
    /// Its fingerprint.
    pub ja4: Option<&'a str>,
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
    /// Neither TLS nor HTTP.
    Unknown,
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
    /// The record doesn't hold what the answer depends on.
    Unknown {
        /// What it doesn't hold.
        why: String,
    },
    /// Not for policy to say: it was denied, or failed, for another reason.
    Apart,
}

/// What policies read that a record may not hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Attributes or labels of agents.
    pub labels: bool,
    /// What a TLS hello offers.
    pub alpn: bool,
    /// The fingerprint of a TLS hello.
    pub ja4: bool,
    /// What the agent did before.
    pub history: bool,
    /// The data of an autonomous system or a country.
    pub geo: bool,
    /// The time.
    pub time: bool,
}

// === impl Needs ===

impl Needs {
    /// Those of policy text that is valid.
    #[must_use]
    pub fn of(text: &str) -> Needs {
        let Ok(set) = text.parse::<cedar_policy::PolicySet>() else { return Needs::default() };
        let mut needs = Needs { geo: !GeoNames::of(text).is_empty(), ..Needs::default() };
        for cedar in set.policies() {
            let ast: &Policy = cedar.as_ref();
            let Some(condition) = ast.non_scope_constraints() else { continue };
            let mut reads = Reads::default();
            syntax::reads(condition, &mut reads);
            needs.labels |= reads.agent;
            needs.ja4 |= reads.ja4;
            needs.history |= reads.history;
            needs.time |= reads.time;
            needs.alpn |= condition.subexpressions().any(reads_alpn);
        }
        needs
    }
}

fn reads_alpn(expr: &Expr) -> bool {
    match expr.expr_kind() {
        ExprKind::GetAttr { attr, .. } | ExprKind::HasAttr { attr, .. } => attr == "alpn",
        _ => false,
    }
}

// === impl Recorded ===

impl Recorded<'_> {
    /// What `set`, [at](PolicySet::at) the record's time, says.
    #[must_use]
    pub fn replay(&self, set: &PolicySet, needs: Needs) -> Replayed {
        if let Err(reason) = self.verdict
            && !is_policys(reason)
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
        if needs.history && !self.by_kernel && !set.knows_history() {
            return unknown("what the agent did before");
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
        self.changed(before, after, policies)
    }

    /// The outcome of asking again.
    fn changed(&self, before: &str, after: &str, mut policies: Vec<String>) -> Replayed {
        policies.sort();
        policies.dedup();
        if before != after {
            return Replayed::Changed { before: before.to_owned(), after: after.to_owned(), policies };
        }
        let recorded: BTreeSet<&String> = self.policies.iter().collect();
        if recorded == policies.iter().collect() { Replayed::Same } else { Replayed::Otherwise { policies } }
    }

    fn proxied(&self, set: &PolicySet, needs: Needs) -> Replayed {
        let before = self.verdict.err().unwrap_or("allow");
        let Some(port) = self.port else { return unknown("the port") };
        let mut reached = Vec::new();
        if let Some(ip) = self.ip {
            let reach = set.reach(self.agent, ip, port, Transport::Tcp);
            if let Err(reason) = reach.verdict {
                return self.changed(before, reason.name(), reach.policies);
            }
            reached = reach.policies;
        } else if self.action == "connect" {
            return unknown("the address");
        }
        let host = self.host.map_or_else(|| self.ip.map(Host::from_address), |host| Host::parse(host).ok());
        let Some(host) = host else { return unknown("the host") };
        let answer = match self.action {
            "http" => self.http(set, &host, port),
            "tls" | "tunnel" => self.opaque(set, &host, port, needs),
            // It was denied by its address, after this was asked.
            _ if self.method.is_some() => self.http(set, &host, port),
            _ if matches!(self.content, Content::Tls | Content::Unknown) => {
                self.opaque(set, &host, port, needs)
            }
            // What would have been asked next was never seen.
            _ => return unknown("what would have come after `connect`"),
        };
        match answer {
            // It was denied before an address was known: what `connect` would have said, nobody knows.
            Ok((None, _)) if self.ip.is_none() => unknown("the address"),
            Ok((None, mut policies)) => {
                policies.extend(reached);
                self.changed(before, "allow", policies)
            }
            Ok((Some(reason), policies)) => self.changed(before, reason.name(), policies),
            Err(why) => unknown(why),
        }
    }

    fn http(&self, set: &PolicySet, host: &Host, port: u16) -> Result<Answer, &'static str> {
        if self.scheme.is_some_and(|scheme| scheme != Scheme::Http.name()) {
            return Err("what was asked of the TLS by which it was sent on");
        }
        let method = self.method.ok_or("the method")?;
        let path = self.path.ok_or("the path")?;
        let operation = Operation::Http { host, port, scheme: Scheme::Http, method, path };
        Ok(answer(ask(set, self.agent, operation)))
    }

    /// `tls` and `tunnel`, or `tunnel` alone for what was no TLS. Where a record doesn't tell which, both must say the same.
    fn opaque(&self, set: &PolicySet, host: &Host, port: u16, needs: Needs) -> Result<Answer, &'static str> {
        let alpn = match self.alpn {
            Some(alpn) => alpn,
            None if needs.alpn => return Err("the ALPN list of the hello"),
            None => &[],
        };
        let ja4 = match self.ja4 {
            Some(ja4) => ja4,
            None if needs.ja4 => return Err("the fingerprint of the hello"),
            None => "",
        };
        let hello = Operation::Tls { host, port, alpn, ja4 };
        let is_unknown = self.verdict == Err(DropReason::ProtocolUnknown.name());
        let is_tls = self.action == "tls"
            || self.alpn.is_some()
            || self.ja4.is_some()
            || self.verdict == Err(DropReason::InspectionRequired.name());
        match self.content {
            Content::Tls => Ok(self.tls(set, hello)),
            Content::Unknown => Ok(self.other(set, host, port)),
            Content::Unseen => self.unseen(set, host, port),
            Content::Untold if is_unknown => Ok(self.other(set, host, port)),
            Content::Untold => {
                let tls = self.tls(set, hello);
                if !is_tls && tls.0.is_none() != self.other(set, host, port).0.is_none() {
                    return Err("whether it was TLS");
                }
                Ok(tls)
            }
        }
    }

    /// A protocol nobody can read.
    fn other(&self, set: &PolicySet, host: &Host, port: u16) -> Answer {
        let operation = Operation::Tunnel { host, port, protocol: TunnelProtocol::Unknown };
        let (reason, policies) = answer(ask(set, self.agent, operation));
        let denied =
            reason.map(|r| if r == DropReason::PolicyDenied { DropReason::ProtocolUnknown } else { r });
        (denied, policies)
    }

    /// A `CONNECT` of which nothing that may follow was permitted: by the first guess, if that is so now.
    fn unseen(&self, set: &PolicySet, host: &Host, port: u16) -> Result<Answer, &'static str> {
        let guesses = ALPN_GUESSES.iter().map(|guess| {
            let alpn: Vec<String> = guess.iter().map(|name| (*name).to_owned()).collect();
            self.tls(set, Operation::Tls { host, port, alpn: &alpn, ja4: "" })
        });
        let guesses: Vec<Answer> = guesses.collect();
        let root = Operation::Http { host, port, scheme: Scheme::Http, method: "GET", path: "/" };
        let denies = |(reason, _): &Answer| reason.is_some();
        let nothing = guesses.iter().all(denies)
            && denies(&self.other(set, host, port))
            && denies(&answer(ask(set, self.agent, root)));
        guesses.into_iter().next().filter(|_| nothing).ok_or("what would have followed the `CONNECT`")
    }

    fn tls(&self, set: &PolicySet, hello: Operation<'_>) -> Answer {
        let (reason, mut policies) = answer(ask(set, self.agent, hello));
        let (None, Operation::Tls { host, port, .. }) = (reason, hello) else { return (reason, policies) };
        let operation = Operation::Tunnel { host, port, protocol: TunnelProtocol::Tls };
        let (reason, of_tunnel) = answer(ask(set, self.agent, operation));
        match reason {
            Some(DropReason::PolicyDenied | DropReason::PolicyForbidden) => {
                (Some(DropReason::InspectionRequired), of_tunnel)
            }
            Some(other) => (Some(other), of_tunnel),
            None => {
                policies.extend(of_tunnel);
                (None, policies)
            }
        }
    }
}

/// Why it is denied, if it is, and by which policies.
type Answer = (Option<DropReason>, Vec<String>);

fn answer(decision: Decision) -> Answer {
    (decision.verdict.err(), decision.policies)
}

fn ask(set: &PolicySet, agent: &Agent, operation: Operation<'_>) -> Decision {
    let request = Request { agent, operation };
    match set.obligations(&request) {
        // What quarantines lets nothing pass, whatever the guards say. Limits depend on what came before, and are not
        // replayed.
        Ok(obligations) => match obligations.iter().find(|o| matches!(o.effect, Effect::Quarantine(_))) {
            Some(quarantine) => Decision {
                verdict: Err(DropReason::AgentQuarantined),
                policies: vec![quarantine.policy.to_string()],
                errors: Vec::new(),
            },
            None => set.decide(&request),
        },
        Err(failed) => failed,
    }
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
