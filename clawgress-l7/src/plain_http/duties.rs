//! What turns out to be due while something streams: each obligation is enforced once. Must never wait for control where it is
//! told of an answer.

use std::sync::Arc;

use clawgress_ebpf_common::DropReason;
use clawgress_policy::effect::{Effect, Obligation};
use tokio::task::JoinHandle;

use crate::decide::Ruling;
use crate::enforce::{enforce, reference};
use crate::exchange::Exchange;
use crate::gateway::Gateway;

/// What is due.
struct Due {
    gateway: Arc<Gateway>,
    ruling: Ruling,
    request: String,
}

// === impl Due ===

impl Due {
    /// What of a ruling's duties was not `kept` before, which the record has from now on.
    ///
    /// # Errors
    /// The ruling, if there is nothing.
    fn of(
        gateway: &Arc<Gateway>,
        exchange: &mut Exchange,
        kept: &mut Vec<Arc<Obligation>>,
        mut ruling: Ruling,
    ) -> Result<Due, Ruling> {
        ruling.keep_duties(|obligation| !kept.iter().any(|kept| kept.repeats(obligation)));
        let Some(duties) = &ruling.duties else { return Err(ruling) };
        kept.extend(duties.obligations.iter().cloned());
        let effects: Vec<_> = duties.obligations.iter().map(|o| reference(o)).collect();
        exchange.effects(&effects);
        Ok(Due { gateway: Arc::clone(gateway), ruling, request: exchange.id().to_owned() })
    }

    /// Enforces it by a task of its own: a quarantine cuts this very connection, which must not keep control from being told of it.
    fn enforce(self) -> JoinHandle<Ruling> {
        tokio::spawn(async move { enforce(&self.gateway, self.ruling, &self.request).await })
    }
}

/// Does what a ruling on what is sent obliges to, and waits for that.
pub async fn perform(
    gateway: &Arc<Gateway>,
    exchange: &mut Exchange,
    kept: &mut Vec<Arc<Obligation>>,
    ruling: Ruling,
) -> Ruling {
    match Due::of(gateway, exchange, kept, ruling) {
        Ok(due) => {
            let denied = Ruling::deny(due.ruling.action, DropReason::Draining);
            due.enforce().await.unwrap_or(denied)
        }
        Err(ruling) => ruling,
    }
}

/// Does what a ruling on what comes back obliges to: what is told is told, and a quarantine begins here at once.
pub fn begin(
    gateway: &Arc<Gateway>,
    exchange: &mut Exchange,
    kept: &mut Vec<Arc<Obligation>>,
    ruling: Ruling,
) -> Ruling {
    let due = match Due::of(gateway, exchange, kept, ruling) {
        Ok(due) => due,
        Err(ruling) => return ruling,
    };
    let quarantine = due.ruling.duties.as_ref().and_then(|duties| {
        let by = duties.obligations.iter().find(|o| matches!(o.effect, Effect::Quarantine(_)))?;
        Some((duties.agent.index, by.policy.as_ref().to_owned()))
    });
    let Some((agent, by)) = quarantine else { return due.ruling };
    gateway.snapshots.hold(agent);
    let denied = Ruling::deny(due.ruling.action, DropReason::AgentQuarantined);
    due.enforce();
    Ruling { policies: vec![by], ..denied }
}
