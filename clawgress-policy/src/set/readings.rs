//! What is decided of a request by each way in which its path may be taken. Must never let one answer for the other.
//!
//! A server may take an encoded slash for a part of a name, or for a slash ([`path::separated`]). Policy does not know which, and so is
//! asked about both: what either way is refused is refused, and what either way is obliged to counts, once. What would be changed by one
//! way alone is refused: a provider's key would go where policy does not send it, or a parameter stay that it takes away.

use std::sync::Arc;

use clawgress_ebpf_common::DropReason;

use super::conjunction::{Kept, kept_under};
use super::{Need, PolicySet};
use crate::effect::{Effect, Obligation};
use crate::path;
use crate::request::{Decision, Operation, Request};
use crate::vocabulary::ActionKind;

/// What `ask` says of each way to take a request's path, made one by `both`.
pub(super) fn each<T>(
    request: &Request<'_>,
    ask: impl Fn(&Request<'_>) -> T,
    both: impl FnOnce(T, T) -> T,
) -> T {
    let first = ask(request);
    let (Operation::Http { path, .. } | Operation::Send { path, .. }) = request.operation else {
        return first;
    };
    let Some(separated) = path::separated(path) else { return first };
    let operation = match request.operation {
        Operation::Http { host, port, scheme, method, head, .. } => {
            Operation::Http { host, port, scheme, method, path: &separated, head }
        }
        Operation::Send { host, port, method, payload, .. } => {
            Operation::Send { host, port, method, path: &separated, payload }
        }
        other => other,
    };
    both(first, ask(&Request { agent: request.agent, operation }))
}

// === impl PolicySet ===

impl PolicySet {
    /// Decides one request: default deny, forbid wins, any evaluation error denies. Obligations do not count. A path with an
    /// encoded slash has to be allowed both as it is and with a slash.
    ///
    /// A `connect` decision says nothing of reserved addresses: whether an address may be reached is
    /// for [`reach`](Self::reach) to say.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        let decide = |request: &Request<'_>| {
            let own = self.inner.decide_lowered(request, self.given());
            match &self.platform {
                None => own,
                Some(platform) => own.under(platform.decide_lowered(request, self.given())),
            }
        };
        each(request, decide, Decision::and_read)
    }

    /// What [`decide`](Self::decide) says, by Cedar's authorizer: slower by orders of magnitude, and what it is held to.
    #[must_use]
    pub fn decide_by_oracle(&self, request: &Request<'_>) -> Decision {
        let decide = |request: &Request<'_>| {
            let own = self.inner.decide_oracle(request, self.given());
            match &self.platform {
                None => own,
                Some(platform) => own.under(platform.decide_oracle(request, self.given())),
            }
        };
        each(request, decide, Decision::and_read)
    }

    /// What a request that L7 decides is obliged to, whatever guards say of it: what all the obligations say that match,
    /// ascending by the policy's id, and what guards that only log would have said, which never denies. None for
    /// `connect` and `direct`, whose limits [`limits`](Self::limits) tells.
    ///
    /// # Errors
    /// The decision, if one can't be evaluated: that denies, as with a guard. Who knows what it would have held back?
    pub fn obligations(&self, request: &Request<'_>) -> Result<Vec<Arc<Obligation>>, Decision> {
        if ActionKind::of(&request.operation).is_of_addresses() {
            return Ok(Vec::new());
        }
        let oblige = |request: &Request<'_>| {
            let own = self.inner.obligations_lowered(request, self.given());
            match &self.platform {
                None => own,
                Some(platform) => kept_under(own, platform.obligations_lowered(request, self.given())),
            }
        };
        each(request, oblige, kept_of_both)
    }

    /// What [`obligations`](Self::obligations) says, by Cedar's authorizer.
    ///
    /// # Errors
    /// As there.
    pub fn obligations_by_oracle(&self, request: &Request<'_>) -> Result<Vec<Arc<Obligation>>, Decision> {
        let oblige = |request: &Request<'_>| {
            let own = self.inner.obligations_oracle(request, self.given());
            match &self.platform {
                None => own,
                Some(platform) => kept_under(own, platform.obligations_oracle(request, self.given())),
            }
        };
        each(request, oblige, kept_of_both)
    }

    /// Who needs to know what the agent did before, for this request: the policies whose scopes fit it, and whose answer
    /// depends on it.
    #[must_use]
    pub fn needs_history(&self, request: &Request<'_>) -> Need {
        let needs = |request: &Request<'_>| {
            let needs = self.halves().map(|half| half.needs_history(request, self.given()));
            needs.max().unwrap_or(Need::None)
        };
        each(request, needs, Need::max)
    }
}

// === impl Decision ===

impl Decision {
    /// What it comes to where the path is taken in another way besides.
    fn and_read(self, other: Decision) -> Decision {
        let mut both = self.under(other);
        both.policies.dedup();
        both
    }
}

/// What both ways oblige to.
fn kept_of_both(first: Kept, other: Kept) -> Kept {
    let apart = match (&first, &other) {
        (Ok(first), Ok(other)) => changed_apart(first, other),
        _ => Vec::new(),
    };
    if !apart.is_empty() {
        let errors = apart.iter().map(|policy| format!("{policy}: {}", path::APART)).collect();
        return Err(Decision { verdict: Err(DropReason::PolicyError), policies: apart, errors });
    }
    let mut kept = kept_under(first, other);
    match &mut kept {
        Ok(obligations) => obligations.dedup_by(|a, b| a.repeats(b)),
        Err(failed) => failed.policies.dedup(),
    }
    kept
}

/// Ids of the policies that change a request by one way to take its path, and not by the other; ascending.
fn changed_apart(first: &[Arc<Obligation>], other: &[Arc<Obligation>]) -> Vec<String> {
    let lacks = |all: &[Arc<Obligation>], one: &Obligation| !all.iter().any(|each| each.repeats(one));
    let in_first = first.iter().filter(|one| lacks(other, one));
    let apart = in_first.chain(other.iter().filter(|one| lacks(first, one)));
    let changing = apart.filter(|one| matches!(one.effect, Effect::Transform(_)));
    let mut ids: Vec<String> = changing.map(|one| one.policy.to_string()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
