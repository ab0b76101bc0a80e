//! `connect` and the guard of reserved addresses, as both planes apply them: a permit for everywhere
//! opens no reserved address; a permit that names the address does. Must never be written down a second
//! time: the kernel tables and L7 both ask here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;
use ipnet::IpNet;

use super::{Given, Inner, PolicySet};
use crate::address::{canonical, is_reserved};
use crate::members::{Class, Members};
use crate::prefix::{Prefix, PrefixIndex};
use crate::request::{Decision, Operation, Request, Transport};
use crate::vocabulary::ActionKind;

/// By what one permit names addresses, and which transports it names of those that must be. A prefix of
/// length 0 is everything, and names nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    prefixes: PrefixIndex,
    sets: BTreeSet<String>,
    pub(crate) transports: BTreeSet<Transport>,
}

/// One way to name addresses.
#[derive(Clone, Debug)]
pub(crate) enum Name {
    Prefix(IpNet),
    Set(String),
    Transport(Transport),
}

impl Names {
    pub(crate) fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.sets.is_empty() && self.transports.is_empty()
    }

    /// Whether the address (canonical) is named.
    fn has(&self, ip: IpAddr, members: &Members) -> bool {
        !self.prefixes.containing(ip, 1).is_empty()
            || (!self.sets.is_empty()
                && members
                    .classes_of(ip, 1)
                    .any(|class| matches!(class, Class::Set(set) if self.sets.contains(set))))
    }
}

impl FromIterator<Name> for Names {
    fn from_iter<I: IntoIterator<Item = Name>>(names: I) -> Names {
        let mut prefixes = Vec::new();
        let (mut sets, mut transports) = (BTreeSet::new(), BTreeSet::new());
        for name in names {
            match name {
                Name::Prefix(prefix) if prefix.prefix_len() == 0 => {}
                Name::Prefix(prefix) => prefixes.push((Prefix::of(prefix), 0)),
                Name::Set(set) => drop(sets.insert(set)),
                Name::Transport(transport) if transport.is_named_only() => {
                    transports.insert(transport);
                }
                Name::Transport(_) => {}
            }
        }
        Names { prefixes: PrefixIndex::new(prefixes, &[]), sets, transports }
    }
}

impl PolicySet {
    /// Whether an agent may reach an address: the `connect` decision, and the guard of reserved
    /// addresses. What both planes enforce.
    ///
    /// A [reserved](is_reserved) address that `connect` permits is denied with
    /// [`DropReason::AddressReserved`] unless one of the permits that determined this very decision
    /// names it: by an address or prefix in its scope or its condition, or by a network set there. A
    /// prefix of length 0 names nothing, nor does one that takes away (behind `unless` or `!`), nor an
    /// ASN or a country: what others wrote into a data set opens nothing. The policies of such a denial
    /// are the permits, none of which names it.
    ///
    /// A transport that [must be named](Transport::is_named_only) is denied with
    /// [`DropReason::ProtocolUnsupported`] unless one of those permits names it, likewise.
    ///
    /// Obligations allow and deny nothing; but one that can't be evaluated denies with
    /// [`DropReason::PolicyError`], as a guard does: who knows what it would have held back.
    ///
    /// Where the platform's set stands above this one, its `connect` has to allow it too. That names nothing and need
    /// not: it only takes away.
    #[must_use]
    pub fn reach(&self, agent: &Agent, ip: IpAddr, port: u16, transport: Transport) -> Decision {
        if !self.inner.plan.may_carry(transport) {
            return unnamed();
        }
        let request = Request { agent, operation: Operation::Connect { ip, port, transport } };
        let own = self.inner.reached(&request, self.given());
        let own = self.inner.named(ActionKind::Connect, own, transport);
        let own = if is_reserved(ip) { self.inner.guard(own, ip) } else { own };
        match self.above() {
            None => own,
            Some(platform) => own.under(platform.reached(&request, self.given())),
        }
    }

    /// The `connect` decision without the guards of what must be named: what a set that stands above others says.
    pub(crate) fn reach_unguarded(
        &self,
        agent: &Agent,
        ip: IpAddr,
        port: u16,
        transport: Transport,
    ) -> Decision {
        let request = Request { agent, operation: Operation::Connect { ip, port, transport } };
        self.inner.reached(&request, self.given())
    }

    /// Ids of the rate limits that what [`reach`](Self::reach) allows is subject to, ascending: each
    /// obligation that matches. None where one can't be evaluated, since then nothing is allowed.
    #[must_use]
    pub fn limits(&self, agent: &Agent, ip: IpAddr, port: u16, transport: Transport) -> Vec<String> {
        let request = Request { agent, operation: Operation::Connect { ip, port, transport } };
        let limiting = |half: &Inner| half.decide_by(half.limiting_lowered(), &request, self.given());
        let mut limits = Vec::new();
        for obliged in self.halves().map(limiting) {
            match obliged.verdict {
                Ok(()) => limits.extend(obliged.policies),
                Err(DropReason::PolicyError) => return Vec::new(),
                // None matches.
                Err(_) => {}
            }
        }
        limits.sort_unstable();
        limits
    }

    /// Whether what is in reach is forwarded by the kernel: the `direct` decision, with the same guard of
    /// transports that must be named.
    #[must_use]
    pub fn forward(&self, agent: &Agent, ip: IpAddr, port: u16, transport: Transport) -> Decision {
        let request = Request { agent, operation: Operation::Direct { ip, port, transport } };
        let own = self.inner.decide_lowered(&request, self.given());
        let own = self.inner.named(ActionKind::Direct, own, transport);
        match self.above() {
            None => own,
            Some(platform) => own.under(platform.decide_lowered(&request, self.given())),
        }
    }
}

/// The decision of the guards where obligations came to `obliged`, and the obligations to keep.
pub(crate) fn obliged_to(guarded: Decision, obliged: Decision) -> (Decision, Vec<String>) {
    match obliged.verdict {
        Ok(()) => (guarded, obliged.policies),
        Err(DropReason::PolicyError) => {
            let had_failed = guarded.verdict == Err(DropReason::PolicyError);
            let mut failed = obliged;
            if had_failed {
                failed.policies.extend(guarded.policies);
                failed.errors.extend(guarded.errors);
            }
            failed.policies.sort();
            failed.errors.sort();
            failed.errors.dedup();
            (failed, Vec::new())
        }
        // None matches.
        Err(_) => (guarded, Vec::new()),
    }
}

/// The denial of a transport that no permit names.
fn unnamed() -> Decision {
    Decision { verdict: Err(DropReason::ProtocolUnsupported), policies: Vec::new(), errors: Vec::new() }
}

impl Inner {
    /// The `connect` decision of one set, denied where one of its limits can't be evaluated.
    pub(super) fn reached(&self, request: &Request<'_>, given: Given<'_>) -> Decision {
        let obliged = self.decide_by(self.limiting_lowered(), request, given);
        obliged_to(self.decide_lowered(request, given), obliged).0
    }

    /// What becomes of a decision on a transport, which perhaps must be named.
    pub(crate) fn named(&self, action: ActionKind, decision: Decision, transport: Transport) -> Decision {
        if !transport.is_named_only() {
            return decision;
        }
        let names = |policy: &String| self.plan.names_transport(action, policy, transport);
        match decision.verdict {
            Ok(()) if decision.policies.iter().any(names) => decision,
            Ok(()) | Err(DropReason::PolicyDenied) => unnamed(),
            Err(_) => decision,
        }
    }

    /// What becomes of a `connect` decision on an address that must be named.
    pub(crate) fn guard(&self, decision: Decision, ip: IpAddr) -> Decision {
        let ip = canonical(ip);
        let names = |policy: &String| {
            self.plan.names_of(policy).is_some_and(|names: &Names| names.has(ip, &self.members))
        };
        if !decision.is_allow() || decision.policies.iter().any(names) {
            return decision;
        }
        Decision { verdict: Err(DropReason::AddressReserved), ..decision }
    }
}
