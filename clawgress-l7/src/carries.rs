//! What requests carry besides their bodies, and what an agent's carry together.
//!
//! Bounded: of as many agents as are remembered, those that carried something last. Must never keep what was carried, and tells
//! of it by names alone.

use std::collections::HashMap;

use clawgress_inspect::encoded::{Piece, Window, split};
use clawgress_inspect::http1;
use clawgress_inspect::payload::{Limits, head};
use clawgress_policy::{Host, Look};
use parking_lot::Mutex;
use pingora_proxy::Session;

use crate::decide;
use crate::gateway::Gateway;
use crate::identify::Who;
use crate::plain_http::{Admitted, Granted, bodyless};
use crate::snapshot::Plan;

/// What is found where many requests carry small pieces.
pub const SPLIT: &str = split::FOUND;
/// What is found of labels of a host.
pub const HOST: &str = head::HOST_DATA;
/// Agents that are remembered: each takes 40 KiB at most.
const AGENTS_MAX: usize = 1024;

/// What agents' requests carried within the last hour.
#[derive(Debug, Default)]
pub struct Windows {
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    /// By the agent's index, with when it was noted last, by the count.
    agents: HashMap<u32, (u64, Window)>,
    count: u64,
}

/// What the head of a request carries.
#[derive(Clone, Debug, Default)]
pub struct Carries {
    seen: head::Carries,
    destination: String,
}

// === impl Windows ===

impl Windows {
    /// Takes note of what a request of an agent carried; whether it is one of many small pieces.
    pub fn noted(&self, now_s: i64, agent: u32, destination: &str, pieces: &[Piece]) -> bool {
        if pieces.is_empty() {
            return false;
        }
        let mut all = self.all.lock();
        all.count += 1;
        let count = all.count;
        if all.agents.len() >= AGENTS_MAX && !all.agents.contains_key(&agent) {
            let oldest = all.agents.iter().min_by_key(|(_, (at, _))| *at).map(|(agent, _)| *agent);
            oldest.and_then(|oldest| all.agents.remove(&oldest));
        }
        let (at, window) = all.agents.entry(agent).or_default();
        *at = count;
        window.noted(now_s, destination, pieces)
    }
}

// === impl Carries ===

impl Carries {
    /// What was found, by its names.
    pub fn findings(&self) -> impl Iterator<Item = String> {
        self.seen.findings.iter().map(|name| (*name).to_owned())
    }

    /// Takes note of it, and of `more` that the body carries; whether it is one of many small pieces.
    #[must_use]
    pub fn are_split(&self, gateway: &Gateway, agent: u32, more: &[Piece]) -> bool {
        let pieces = [&self.seen.pieces[..], more].concat();
        gateway.windows.noted(gateway.now_s(), agent, &self.destination, &pieces)
    }
}

/// Looks at the head of a request.
#[must_use]
pub fn look(gateway: &Gateway, session: &Session, admitted: &Admitted) -> Carries {
    let (content, host) = (&gateway.memory.content, admitted.host.to_string());
    let limits = Limits {
        decoded_bytes_max: content.decoded_bytes_max.get(),
        ratio_max: content.ratio_max.get().into(),
    };
    let head = head::Head { host: &host, target: (&admitted.path, &admitted.query) };
    let fields = session.req_header().headers.iter();
    let seen = head.look(fields.map(|(name, value)| (name.as_str(), value.as_bytes())), limits);
    Carries { seen, destination: head.destination().to_owned() }
}

/// Takes note of what a message on a connection carries that a request opened; whether it is one of many small pieces.
#[must_use]
pub fn are_split(gateway: &Gateway, granted: &Granted, pieces: &[Piece]) -> bool {
    let (host, agent) = (granted.admitted().host.to_string(), granted.who().identity.agent.index);
    let head = head::Head { host: &host, target: ("", "") };
    gateway.windows.noted(gateway.now_s(), agent, head.destination(), pieces)
}

/// What is found in the head of a request that has no body, if policy asks for it: such a request sends what it carries.
#[must_use]
pub fn of_bodyless(
    gateway: &Gateway,
    session: &Session,
    (plan, who, admitted): (&Plan, &Who, &Admitted),
) -> Option<Vec<String>> {
    if !is_asked(plan, who, admitted) {
        return None;
    }
    let head = look(gateway, session, admitted);
    let mut findings: Vec<_> = head.findings().collect();
    if head.are_split(gateway, who.identity.agent.index, &[]) {
        findings.push(SPLIT.to_owned());
    }
    (!findings.is_empty()).then_some(findings)
}

/// Whether policy asks what the head of a request carries that has no body.
#[must_use]
pub fn is_asked(plan: &Plan, who: &Who, admitted: &Admitted) -> bool {
    let need = || decide::payload_need(plan, who, bodyless(admitted), true);
    admitted.body == http1::Body::Length(0) && decide::asks_send(plan, who) && need().look() == Look::Content
}

/// What is found in the labels of a host.
#[must_use]
pub fn of_host(host: &Host) -> Option<String> {
    let is_data = matches!(host, Host::Name(_)) && head::is_data(&host.to_string());
    is_data.then(|| HOST.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(n: u64) -> [Piece; 1] {
        [Piece { key: n, bytes: 1000, untold: 0 }]
    }

    #[test]
    fn agents_are_told_apart_and_the_oldest_is_forgotten() {
        let windows = Windows::default();
        let split = |agent, from: u64| (from..from + 7).any(|n| windows.noted(0, agent, "a.test", &piece(n)));
        assert!(!split(1, 0) && !split(2, 0));
        assert!(windows.noted(0, 1, "a.test", &piece(8)), "the eighth");
        for agent in 3..3 + u32::try_from(AGENTS_MAX).unwrap() - 1 {
            windows.noted(0, agent, "a.test", &piece(0));
        }
        assert_eq!(windows.all.lock().agents.len(), AGENTS_MAX);
        assert!(windows.noted(0, 1, "a.test", &piece(9)), "whoever came later is remembered");
        assert!(!windows.noted(0, 2, "a.test", &piece(9)), "it has begun anew");
    }
}
