//! What follows on what planes tell of `connect` and `direct`: alerts and quarantines that match, and what guards that only log
//! would have said. The kernel decides by tables, and waits for nobody; so these are asked of its records, and of the proxy's.
//! Must never be asked to decide anything.

use std::net::IpAddr;
use std::sync::Arc;

use clawgress_identity::Agent;

use super::{Given, Inner, PolicySet};
use crate::effect::{Effect, Obligation, Would};
use crate::request::{Operation, Request, Transport};
use crate::vocabulary::ActionKind;

/// The actions that planes tell of.
const TOLD: [ActionKind; 2] = [ActionKind::Connect, ActionKind::Direct];

impl PolicySet {
    /// Whether anything follows on what planes tell of `connect` and `direct`.
    #[must_use]
    pub fn asks_told(&self) -> bool {
        let is_any = |half: &Inner, action| {
            let (permits, forbids) = half.logged.of(action);
            !(half.told.of(action).is_empty() && permits.is_empty() && forbids.is_empty())
        };
        self.halves().any(|half| TOLD.into_iter().any(|action| is_any(half, action)))
    }

    /// What follows on a `connect` that a plane tells of, whatever became of it, and on its `direct` if it went so: each alert
    /// and quarantine that matches, and what guards that only log would have said, ascending by the policy's id. One that
    /// can't be evaluated is told as that: it was decided without it.
    #[must_use]
    pub fn told(
        &self,
        agent: &Agent,
        ip: IpAddr,
        port: u16,
        transport: Transport,
        went_direct: bool,
    ) -> Vec<Arc<Obligation>> {
        let asked = asked(agent, ip, port, transport, went_direct);
        let told = |half: &Inner| -> Vec<_> {
            asked.iter().flat_map(|r| half.told_lowered(r, self.given())).collect()
        };
        self.told_by(told)
    }

    /// What [`told`](Self::told) says, by Cedar's evaluator.
    #[must_use]
    pub fn told_by_oracle(
        &self,
        agent: &Agent,
        ip: IpAddr,
        port: u16,
        transport: Transport,
        went_direct: bool,
    ) -> Vec<Arc<Obligation>> {
        let asked = asked(agent, ip, port, transport, went_direct);
        let told = |half: &Inner| -> Vec<_> {
            asked.iter().flat_map(|r| half.told_oracle(r, self.given())).collect()
        };
        self.told_by(told)
    }

    fn told_by(&self, told: impl FnMut(&Inner) -> Vec<Arc<Obligation>>) -> Vec<Arc<Obligation>> {
        let mut all: Vec<Arc<Obligation>> = self.halves().flat_map(told).collect();
        all.sort_by(|a, b| a.policy.cmp(&b.policy));
        all
    }
}

/// The requests that a flow comes to.
fn asked(agent: &Agent, ip: IpAddr, port: u16, transport: Transport, went_direct: bool) -> Vec<Request<'_>> {
    let connect = Request { agent, operation: Operation::Connect { ip, port, transport } };
    let direct = Request { agent, operation: Operation::Direct { ip, port, transport } };
    if went_direct { vec![connect, direct] } else { vec![connect] }
}

impl Inner {
    fn told_lowered(&self, request: &Request<'_>, given: Given<'_>) -> Vec<Arc<Obligation>> {
        let action = ActionKind::of(&request.operation);
        let logged = self.would(self.logged_lowered.of(action), request, given);
        self.obliged(self.would(self.told_lowered.of(action), request, given)).chain(logged).collect()
    }

    fn told_oracle(&self, request: &Request<'_>, given: Given<'_>) -> Vec<Arc<Obligation>> {
        let action = ActionKind::of(&request.operation);
        let logged = self.would_among(self.logged.of(action), request, given);
        let told = (self.told.of(action).clone(), cedar_policy::PolicySet::new());
        self.obliged(self.would_among(&told, request, given)).chain(logged).collect()
    }

    /// What permits that match oblige to; those that fail as they are.
    fn obliged(&self, matching: Vec<Arc<Obligation>>) -> impl Iterator<Item = Arc<Obligation>> {
        matching.into_iter().filter_map(|would| match would.effect {
            Effect::Would(Would::Permit) => self.obligations.get(would.policy.as_ref()).cloned(),
            _ => Some(would),
        })
    }
}
