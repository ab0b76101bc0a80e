//! What follows on what planes tell of `connect` and `direct`: alerts, quarantines, and what guards on trial would have said. They
//! are put into the record before it is kept; a quarantine is imposed by a task of its own. The kernel decides by its tables, and
//! waits for nobody, so this must never decide anything. A record waits for no more than that what is due by it is stored, once an agent.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use clawgress_api::{AuditRecord, EffectRef, Plane, RecordKind, Verdict};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::{Agent, AgentId};
use clawgress_policy::effect::{Effect, Obligation};
use clawgress_policy::{PolicySet, Transport};
use tokio_util::sync::CancellationToken;

use super::audit::{AuditLog, Follows, Marker};
use super::due::{Due, Dues};
use super::govern::Governor;
use super::model::Refusal;
use super::quarantine::{Quarantines, until};

/// Effects that one record is given: what more match is in policy. Quarantines are imposed without this bound.
const EFFECTS_MAX: usize = 64;
/// What of a request's name is in the reason of a quarantine: whoever tells of it may call it anything, and is not to keep its agent
/// from being quarantined by that.
const REQUEST_CHARS_MAX: usize = 128;
/// Pause before a quarantine that could not be stored is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Asks policy what follows.
#[derive(Debug)]
struct Follower {
    governor: Weak<Governor>,
    quarantines: Weak<Quarantines>,
    dues: Arc<Dues>,
}

/// Has noted what follows in each record that the log is handed from now on; quarantines are put to those that are due.
pub(super) fn follow(
    audit: &AuditLog,
    governor: &Arc<Governor>,
    quarantines: &Arc<Quarantines>,
    dues: &Arc<Dues>,
) {
    let (governor, quarantines) = (Arc::downgrade(governor), Arc::downgrade(quarantines));
    audit.mark(Follower { governor, quarantines, dues: Arc::clone(dues) });
}

#[async_trait]
impl Marker for Follower {
    fn mark(&self, record: &mut AuditRecord) -> Follows {
        self.follow(record).unwrap_or_default()
    }

    async fn settle(&self) -> Result<(), String> {
        self.dues.store().await.map_err(|error| format!("a quarantine that is due: {error}"))
    }

    fn is_settled(&self) -> bool {
        self.dues.are_stored()
    }
}

// === impl Follower ===

impl Follower {
    /// Notes in a record what follows on it, if that can be asked.
    fn follow(&self, record: &mut AuditRecord) -> Option<Follows> {
        let (id, transport) = connected(record)?;
        let governor = self.governor.upgrade()?;
        let live = governor.live();
        let policies = live.in_force.policies()?;
        let policy = policies.of(id.tenant());
        if !policy.asks_told() {
            return None;
        }
        let agent = live.model.agents.get(&id)?;
        // What an agent did that is no more, the next of its name did not.
        if record.agent.as_ref()?.index.is_some_and(|index| index != agent.index) {
            return None;
        }
        let policy = policy.at(record.time.as_millisecond());
        let told = told(&policy, agent, record, transport);
        // All of them, also those that the record has no room for: one is due an agent.
        let mut is_due = false;
        for obligation in &told {
            is_due |= self.quarantine(&governor, agent, obligation, record);
        }
        for obligation in told.iter().take(EFFECTS_MAX) {
            record.effects.push(EffectRef {
                policy: obligation.policy.as_ref().to_owned(),
                effect: obligation.effect.name().to_owned(),
                severity: obligation.severity_told().map(str::to_owned),
            });
        }
        Some(if is_due {
            Follows::Due
        } else if told.is_empty() {
            Follows::Nothing
        } else {
            Follows::Told
        })
    }

    /// Has the agent quarantined from the time of the record on: one that comes again, or late, makes it no longer. Whether that
    /// is still to be done.
    fn quarantine(
        &self,
        governor: &Governor,
        agent: &Agent,
        obligation: &Obligation,
        record: &AuditRecord,
    ) -> bool {
        let Effect::Quarantine(seconds) = obligation.effect else { return false };
        let Some(quarantines) = self.quarantines.upgrade() else { return false };
        let asked = record.time.min(governor.clock.now());
        let request = record.request.chars().filter(|c| !c.is_control()).take(REQUEST_CHARS_MAX);
        let request: String = request.collect();
        let reason = format!("policy `{}` at request {request}", obligation.policy);
        match until(asked, seconds) {
            // By the record's own time: one that is yet to come was before the clock was set back.
            Ok(until) if quarantines.is_settled(agent, record.time, until) => false,
            Ok(until) => {
                let due = Due { agent: agent.index, asked, until, reason };
                self.dues.add(due, |other| quarantines.is_settled(agent, other.asked, other.until));
                true
            }
            Err(refusal) => {
                tracing::warn!(%refusal, agent = %agent.id, "a quarantine is not imposed");
                false
            }
        }
    }
}

/// What follows on the destination, and on the parent proxy that is dialled for it: each is asked for `connect`. Quarantines
/// come first, so that no record leaves one out for an alert.
fn told(
    policy: &PolicySet,
    agent: &Agent,
    record: &AuditRecord,
    transport: Transport,
) -> Vec<Arc<Obligation>> {
    let to = &record.destination;
    let port = to.port.or((!transport.has_ports()).then_some(0));
    let itself = to.ip.zip(port);
    let parent = to.via_address.map(|parent| (parent.ip(), parent.port()));
    let ask = |(ip, port): (IpAddr, u16)| policy.told(agent, ip, port, transport, went_direct(record));
    let mut told: Vec<Arc<Obligation>> = itself.into_iter().chain(parent).flat_map(ask).collect();
    let order = |o: &Obligation| !matches!(o.effect, Effect::Quarantine(_));
    told.sort_by(|a, b| (order(a), &a.policy).cmp(&(order(b), &b.policy)));
    told.dedup_by(|a, b| (&a.policy, a.effect.name()) == (&b.policy, b.effect.name()));
    told
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

/// Whether it is of a flow that the kernel forwards: it tells of nothing else that passes.
fn went_direct(record: &AuditRecord) -> bool {
    record.plane == Plane::Kernel && record.verdict == Some(Verdict::Allow)
}

/// Imposes what is due, until `stop`; what is left then, the next start does.
pub(super) async fn impose(dues: &Dues, quarantines: &Quarantines, stop: CancellationToken) {
    loop {
        let (mut done, mut failed) = (Vec::new(), false);
        for due in dues.all() {
            if stop.is_cancelled() {
                break;
            }
            match quarantines.impose_due(&due).await {
                Ok(()) => done.push(due),
                Err(refusal @ (Refusal::Missing(_) | Refusal::Invalid(_))) => {
                    tracing::warn!(%refusal, agent = due.agent, "a quarantine is not imposed");
                    done.push(due);
                }
                // It counts already, and is not in the log yet: whoever is governed records it.
                Err(Refusal::Audit(_)) => done.push(due),
                Err(refusal) => {
                    tracing::error!(%refusal, agent = due.agent, "a quarantine can't be stored, and is tried again");
                    failed = true;
                }
            }
        }
        dues.done(&done).await;
        let pause = async {
            if failed {
                tokio::time::sleep(RETRY).await;
            } else {
                dues.news().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = pause => {}
        }
    }
}
