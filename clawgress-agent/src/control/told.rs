//! What follows on what planes tell of `connect`: alerts, quarantines, and what guards on trial would have said. They are put into
//! the record before it is kept; a quarantine is imposed by a task of its own. The kernel decides by its tables, and waits for
//! nobody, so this must never decide anything, nor hold a record up.

use std::sync::{Arc, Weak};
use std::time::Duration;

use clawgress_api::{AuditRecord, EffectRef, Plane, RecordKind, Verdict};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::{Agent, AgentId};
use clawgress_policy::Transport;
use clawgress_policy::effect::{Effect, Obligation};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::audit::AuditLog;
use super::govern::Governor;
use super::model::Refusal;
use super::quarantine::Quarantines;

/// Quarantines that wait to be imposed. One agent's are one after some moments, so that more wait only while the store is slow.
const WAITING_MAX: usize = 1024;
/// Effects that one record is given: what more match is in policy.
const EFFECTS_MAX: usize = 64;
/// Pause before a quarantine that could not be stored is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A quarantine that policy wants.
#[derive(Debug)]
pub(super) struct Due {
    agent: u32,
    seconds: Option<u64>,
    reason: String,
}

/// Asks policy what follows.
#[derive(Debug)]
struct Follower {
    governor: Weak<Governor>,
    due: mpsc::Sender<Due>,
}

/// Has noted what follows in each record that the log is handed from now on. Returns the quarantines that are due.
pub(super) fn follow(audit: &AuditLog, governor: &Arc<Governor>) -> mpsc::Receiver<Due> {
    let (due, waiting) = mpsc::channel(WAITING_MAX);
    let follower = Follower { governor: Arc::downgrade(governor), due };
    audit.mark(move |record| follower.follow(record));
    waiting
}

// === impl Follower ===

impl Follower {
    /// Notes in a record what follows on it. Whether anything does.
    fn follow(&self, record: &mut AuditRecord) -> bool {
        let Some((id, transport)) = connected(record) else { return false };
        let (Some(ip), Some(port)) = (record.destination.ip, record.destination.port.or(portless(transport)))
        else {
            return false;
        };
        let Some(governor) = self.governor.upgrade() else { return false };
        let live = governor.live();
        let Some(policies) = live.in_force.policies() else { return false };
        let policy = policies.of(id.tenant());
        if !policy.asks_told() {
            return false;
        }
        let Some(agent) = live.model.agents.get(&id) else { return false };
        let told = policy.at(record.time.as_millisecond()).told(agent, ip, port, transport);
        for obligation in told.iter().take(EFFECTS_MAX) {
            self.quarantine(agent, obligation, &record.request);
            record.effects.push(EffectRef {
                policy: obligation.policy.as_ref().to_owned(),
                effect: obligation.effect.name().to_owned(),
                severity: obligation.severity_told().map(str::to_owned),
            });
        }
        !told.is_empty()
    }

    fn quarantine(&self, agent: &Agent, obligation: &Obligation, request: &str) {
        let Effect::Quarantine(seconds) = obligation.effect else { return };
        let reason = format!("policy `{}` at request {request}", obligation.policy);
        if self.due.try_send(Due { agent: agent.index, seconds, reason }).is_err() {
            tracing::error!(agent = %agent.id, "too many quarantines wait: this one comes with the next that is told");
        }
    }
}

/// Who asked for a `connect`, and by what, if the record tells of one that policy was asked about.
fn connected(record: &AuditRecord) -> Option<(AgentId, Transport)> {
    let who = record.agent.as_ref()?;
    let is_asked = match record.plane {
        Plane::Kernel => true,
        // The address was asked last, or it passed.
        Plane::L7 => match record.verdict {
            Some(Verdict::Allow) => record.action.as_deref() != Some("resolve"),
            _ => record.action.as_deref() == Some("connect"),
        },
        Plane::Control => false,
    };
    let is_new = record.kind == RecordKind::Decision && record.count.is_none();
    if !is_asked || !is_new || record.reason == Some(DropReason::AgentQuarantined) {
        return None;
    }
    let transport = match (record.plane, record.destination.protocol.as_deref()) {
        (Plane::L7, _) => Transport::Tcp,
        (_, name) => Transport::from_name(name?)?,
    };
    Some((AgentId::new(&who.tenant, &who.agent).ok()?, transport))
}

/// The port of what has none.
fn portless(transport: Transport) -> Option<u16> {
    (!transport.has_ports()).then_some(0)
}

/// Imposes what is due, until `stop`.
pub(super) async fn impose(
    mut waiting: mpsc::Receiver<Due>,
    quarantines: &Quarantines,
    stop: CancellationToken,
) {
    loop {
        let due = tokio::select! {
            () = stop.cancelled() => return,
            due = waiting.recv() => due,
        };
        let Some(Due { agent, seconds, reason }) = due else { return };
        loop {
            match quarantines.impose(agent, seconds, reason.clone()).await {
                Ok(()) => break,
                Err(refusal @ (Refusal::Missing(_) | Refusal::Invalid(_))) => {
                    tracing::warn!(%refusal, agent, "a quarantine is not imposed");
                    break;
                }
                // It counts already, and is not in the log yet: whoever is governed records it.
                Err(Refusal::Audit(_)) => break,
                Err(refusal) => {
                    tracing::error!(%refusal, agent, "a quarantine can't be stored, and is tried again");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}
