//! What turns out to be due while something streams: each obligation is enforced once. Must never wait for control where it is
//! told of an answer.

use std::sync::Arc;

use clawgress_ebpf_common::DropReason;
use clawgress_policy::effect::{Effect, Obligation};

use crate::decide::Ruling;
use crate::enforce::{enforce, reference};
use crate::exchange::Exchange;
use crate::gateway::Gateway;

/// Takes what was `kept` out of a ruling's duties, and notes the rest in the record.
fn news(exchange: &mut Exchange, kept: &mut Vec<Arc<Obligation>>, ruling: &mut Ruling) {
    ruling.keep_duties(|obligation| !kept.iter().any(|kept| kept.repeats(obligation)));
    kept.extend(ruling.duties.iter().flat_map(|duties| duties.obligations.iter().cloned()));
    if let Some(duties) = &ruling.duties {
        let effects: Vec<_> = duties.obligations.iter().map(|o| reference(o)).collect();
        exchange.effects(&effects);
    }
}

/// Does what a ruling on what is sent obliges to, and waits for that.
pub async fn perform(
    gateway: &Arc<Gateway>,
    exchange: &mut Exchange,
    kept: &mut Vec<Arc<Obligation>>,
    mut ruling: Ruling,
) -> Ruling {
    news(exchange, kept, &mut ruling);
    if ruling.duties.is_none() {
        return ruling;
    }
    // A quarantine cuts this very connection, which must not keep control from being told of it.
    let (gateway, id) = (Arc::clone(gateway), exchange.id().to_owned());
    let denied = Ruling::deny(ruling.action, DropReason::Draining);
    tokio::spawn(async move { enforce(&gateway, ruling, &id).await }).await.unwrap_or(denied)
}

/// Does what a ruling on what comes back obliges to: what is told is told, and a quarantine begins here at once.
pub fn begin(
    gateway: &Arc<Gateway>,
    exchange: &mut Exchange,
    kept: &mut Vec<Arc<Obligation>>,
    mut ruling: Ruling,
) -> Ruling {
    news(exchange, kept, &mut ruling);
    let Some(duties) = &ruling.duties else { return ruling };
    let quarantine = duties.obligations.iter().find(|o| matches!(o.effect, Effect::Quarantine(_)));
    let Some(by) = quarantine.map(|obligation| obligation.policy.as_ref().to_owned()) else {
        return ruling;
    };
    gateway.snapshots.hold(duties.agent.index);
    let denied = Ruling { policies: vec![by], ..Ruling::deny(ruling.action, DropReason::AgentQuarantined) };
    // Control is told of it by a task of its own: this connection is cut meanwhile.
    let (gateway, id) = (Arc::clone(gateway), exchange.id().to_owned());
    tokio::spawn(async move { enforce(&gateway, ruling, &id).await });
    denied
}
