//! What obligations oblige to, once an exchange is judged, in one order: quarantine, then the guards' verdict, then
//! limits, then what is changed of a request; alerts, and what guards that only log would have said, are told whatever comes of the rest.
//!
//! INVARIANT: an exchange that a quarantine matches is denied, also where control can't be told of it; one that a limit
//! matches is allowed only when a unit was spent.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use clawgress_api::EffectRef;
use clawgress_ebpf_common::DropReason;
use clawgress_policy::effect::{Effect, Obligation};
use clawgress_policy::transform::Changes;

use crate::decide::{Duties, Ruling};
use crate::gateway::Gateway;
use crate::limit;
use crate::quota::Imposed;
use crate::told::Told;

static LIMITS_TOLD: LazyLock<Told> = LazyLock::new(Told::default);

/// The ruling on the exchange `request` after what it is obliged to was done.
pub async fn enforce(gateway: &Gateway, mut ruling: Ruling, request: &str) -> Ruling {
    match ruling.duties.take() {
        // Most requests have none, and every connection's task would hold what this takes.
        None => ruling,
        Some(duties) => Box::pin(keep(gateway, ruling, *duties, request)).await,
    }
}

async fn keep(gateway: &Gateway, mut ruling: Ruling, duties: Duties, request: &str) -> Ruling {
    let Duties { agent, obligations, repeated } = duties;
    ruling.effects = obligations.iter().map(|obligation| reference(obligation)).collect();
    let quarantines = obligations.iter().filter_map(|obligation| match obligation.effect {
        Effect::Quarantine(seconds) => Some((obligation, seconds)),
        _ => None,
    });
    // The longest: without an end before any other.
    let longest = quarantines.max_by_key(|(_, seconds)| seconds.unwrap_or(u64::MAX));
    if let Some((obligation, seconds)) = longest {
        let policy = &obligation.policy;
        // Here at once; everywhere when control has it.
        gateway.snapshots.hold(agent.index);
        let imposed = Imposed {
            agent: agent.index,
            seconds,
            policy: policy.as_ref().to_owned(),
            request: request.to_owned(),
            at: Instant::now(),
        };
        gateway.quota.impose(imposed, &gateway.snapshots).await;
        return Ruling {
            verdict: Err(DropReason::AgentQuarantined),
            policies: vec![policy.as_ref().to_owned()],
            ..ruling
        };
    }
    if ruling.verdict.is_err() {
        return ruling;
    }
    let changes = Changes::of(obligations.iter().map(AsRef::as_ref));
    ruling.changes = (!changes.is_empty()).then(|| Arc::new(changes));
    let is_limit = |obligation: &&Arc<Obligation>| matches!(obligation.effect, Effect::Limit(_));
    if obligations.iter().filter(is_limit).count() > limit::QUOTA_LIMITS_MAX {
        if let Some(untold) = LIMITS_TOLD.turn(agent.index, Instant::now()) {
            let agent = &agent.id;
            tracing::error!(%agent, request, untold, "more limits hold one request than may; it is denied");
        }
        return Ruling { verdict: Err(DropReason::LimitUnavailable), ..ruling };
    }
    let limits = obligations.iter().chain(&repeated).filter_map(|obligation| match &obligation.effect {
        Effect::Limit(limit) => Some((obligation, limit, limit.share.of(&agent))),
        _ => None,
    });
    let limits: Vec<_> = limits.collect();
    let wanted: Vec<_> = limits.iter().map(|(_, limit, subject)| (*limit, Arc::clone(subject))).collect();
    match gateway.quota.spend(&wanted).await {
        Ok(()) => ruling,
        Err(denied) => {
            let policy =
                limits.get(denied.limit).map(|(obligation, ..)| obligation.policy.as_ref().to_owned());
            Ruling {
                verdict: Err(denied.reason),
                policies: policy.into_iter().collect(),
                retry_after: denied.retry_after,
                ..ruling
            }
        }
    }
}

/// How a record tells it.
pub fn reference(obligation: &Obligation) -> EffectRef {
    EffectRef {
        policy: obligation.policy.as_ref().to_owned(),
        effect: obligation.effect.name().to_owned(),
        severity: match obligation.effect {
            Effect::Limit(_) | Effect::Intercept | Effect::Transform(_) | Effect::Would(_) => None,
            Effect::Quarantine(_) | Effect::Alert => Some(obligation.severity.name().to_owned()),
        },
    }
}
