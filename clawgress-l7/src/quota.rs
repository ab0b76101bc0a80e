//! Limits of requests: units are leased from control in small lots, and spent here.
//!
//! INVARIANT: nothing is spent that control did not grant before; all workers together never spend more than a limit
//! lets pass over time, and at once no more than a lot each beyond its burst. Where control can't be asked, nothing is granted, and that denies.
//!
//! A lot is an eighth of the burst at most. What is left of one goes back when nobody spent of it for a while, so that
//! other workers find it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clawgress_api::proto::enforcement_client::EnforcementClient;
use clawgress_api::proto::{CommitRequest, ImposeRequest, QuotaScope, ReserveRequest};
use clawgress_ebpf_common::DropReason;
use clawgress_policy::effect::Limit;
use clawgress_policy::kernel::LimitAction;
use parking_lot::Mutex;
use tonic::transport::Channel;

use crate::limit;
use crate::snapshot::Snapshots;

/// Where units are leased.
#[derive(Debug)]
pub struct Quota {
    client: EnforcementClient<Channel>,
    leases: Mutex<HashMap<Name, Arc<Lease>>>,
    /// Quarantines that control could not be told of, by the agent's number: of each the one that ends last.
    owed: Mutex<BTreeMap<u32, Arc<Imposed>>>,
    /// Ids of reservations: this process's own, and a number.
    instance: u64,
    next: Mutex<u64>,
}

/// A quarantine because policy says so.
#[derive(Clone, Debug)]
pub struct Imposed {
    /// The agent's number.
    pub agent: u32,
    /// For how long, seconds; `None` until somebody ends it.
    pub seconds: Option<u64>,
    /// The policy.
    pub policy: String,
    /// The request it was asked about.
    pub request: String,
    /// When that was decided.
    pub at: Instant,
}

/// A quarantine that control is not told of yet, unless it is `None` by now.
struct Owing<'a> {
    quota: &'a Quota,
    imposed: Option<Arc<Imposed>>,
}

/// A limit, and whose bucket.
type Name = (u64, Arc<str>);

/// What this process holds of one bucket.
#[derive(Debug)]
struct Lease {
    held: Mutex<Held>,
    /// Whoever holds it asks control; the others wait for what comes of that.
    asking: tokio::sync::Mutex<()>,
    /// Requests that wait for units: bounded, since each holds a connection.
    waiting: tokio::sync::Semaphore,
}

#[derive(Debug)]
struct Held {
    id: u128,
    granted: u64,
    left: u64,
    ends: Instant,
    /// When something was spent or asked for last.
    touched: Instant,
    /// When there may be something, and until when control is not asked for it.
    short: Option<(Instant, Instant)>,
    /// Until then control is not asked again, since it could not be.
    away_until: Option<Instant>,
    /// What control was asked for and has not answered, and until when that would count: it may have granted it.
    unanswered: Option<(u128, Instant)>,
}

/// Why nothing was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The stable reason.
    pub reason: DropReason,
    /// Which of the limits, from 0.
    pub limit: usize,
    /// After what time it may be otherwise.
    pub retry_after: Option<Duration>,
}

// === impl Imposed ===

impl Imposed {
    /// Whether it ends no earlier than another. One whose end can't be told never ends, as far as anybody here can know.
    fn outlasts(&self, other: &Imposed) -> bool {
        let end = |imposed: &Imposed| imposed.at.checked_add(Duration::from_secs(imposed.seconds?));
        match (end(self), end(other)) {
            (None, _) => true,
            (Some(end), Some(other)) => end >= other,
            (Some(_), None) => false,
        }
    }
}

// === impl Held ===

impl Held {
    fn none(now: Instant) -> Held {
        Held {
            id: 0,
            granted: 0,
            left: 0,
            ends: now,
            touched: now,
            short: None,
            away_until: None,
            unanswered: None,
        }
    }

    /// Spends one unit, if there is one.
    fn spend(&mut self, now: Instant) -> bool {
        self.touched = now;
        if self.left == 0 || self.ends <= now {
            return false;
        }
        self.left -= 1;
        true
    }

    /// What is to be settled: the reservation, and how much of it was used.
    fn settle(&mut self) -> Option<(u128, u64)> {
        let (granted, unspent) = (std::mem::take(&mut self.granted), std::mem::take(&mut self.left));
        (granted != 0).then_some((self.id, granted.saturating_sub(unspent)))
    }

    /// The reservation that is used up, if control may not know so.
    fn spent(&self) -> Option<u128> {
        (self.granted != 0 && self.left == 0).then_some(self.id)
    }
}

// === impl Owing ===

impl Drop for Owing<'_> {
    fn drop(&mut self) {
        if let Some(imposed) = self.imposed.take() {
            self.quota.owe(imposed);
        }
    }
}

/// Leases of which a unit was spent, which comes back to them unless all limits were kept: also where nobody waits for that
/// any more.
struct Spent(Vec<Arc<Lease>>);

impl Drop for Spent {
    fn drop(&mut self) {
        for lease in &self.0 {
            lease.held.lock().left += 1;
        }
    }
}

// === impl Quota ===

impl Quota {
    /// A client over `channel`.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn new(channel: Channel) -> Result<Self, getrandom::Error> {
        let mut instance = [0; 8];
        getrandom::fill(&mut instance)?;
        Ok(Quota {
            client: EnforcementClient::new(channel),
            leases: Mutex::default(),
            owed: Mutex::default(),
            instance: u64::from_be_bytes(instance),
            next: Mutex::new(0),
        })
    }

    /// Spends one unit of each limit, or of none of them; of one that is there more often, as many. Waits where a limit says so, within a bound.
    ///
    /// # Errors
    /// [`DropReason::RateLimited`] if a limit is reached, [`DropReason::LimitUnavailable`] if control can't be asked,
    /// or others ask it for so long that the wait is over, by then with no more than one question of its own under way.
    pub async fn spend(&self, limits: &[(&Limit, Arc<str>)]) -> Result<(), Denied> {
        let deadline = Instant::now() + limit::QUOTA_WAIT_MAX;
        let mut spent = Spent(Vec::with_capacity(limits.len()));
        for (at, (limit, subject)) in limits.iter().enumerate() {
            let lease = self.lease(limit, subject);
            let result = match &lease {
                Some(lease) => self.spend_one(limit, subject, lease, deadline).await,
                None => Err((DropReason::LimitUnavailable, None)),
            };
            match (result, lease) {
                (Ok(()), Some(lease)) => spent.0.push(lease),
                (Ok(()), None) => {}
                (Err((reason, retry_after)), _) => return Err(Denied { reason, limit: at, retry_after }),
            }
        }
        spent.0.clear();
        Ok(())
    }

    /// Has control quarantine an agent that is held here. What it can't be told now it is told later, also where nobody waits for
    /// that any more.
    pub async fn impose(&self, imposed: Imposed, snapshots: &Snapshots) {
        let imposed = Arc::new(imposed);
        let mut owing = Owing { quota: self, imposed: Some(Arc::clone(&imposed)) };
        match self.ask_to_impose(&imposed).await {
            Ok(()) => {
                owing.imposed = None;
                self.is_told(&imposed, snapshots);
            }
            Err(status) => {
                let Imposed { agent, policy, .. } = &*imposed;
                tracing::error!(%status, agent, policy, "control can't be told of a quarantine: it holds here alone");
            }
        }
    }

    /// Has control told of one later. One for each agent, as many as there are.
    fn owe(&self, imposed: Arc<Imposed>) {
        let mut owed = self.owed.lock();
        if owed.get(&imposed.agent).is_none_or(|other| imposed.outlasts(other)) {
            owed.insert(imposed.agent, imposed);
        }
    }

    /// Notes that control was told of this one. Another may be owed that it doesn't stand for, since that ends, or was decided,
    /// later: its agent is held here until control has that too.
    fn is_told(&self, imposed: &Imposed, snapshots: &Snapshots) {
        let mut owed = self.owed.lock();
        if owed.get(&imposed.agent).is_some_and(|other| !imposed.outlasts(other) || other.at > imposed.at) {
            return;
        }
        owed.remove(&imposed.agent);
        snapshots.taken_over(imposed.agent);
    }

    async fn ask_to_impose(&self, imposed: &Imposed) -> Result<(), tonic::Status> {
        let Imposed { agent, seconds, policy, request, at } = imposed.clone();
        let age_ms = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let question = ImposeRequest { agent, seconds: seconds.unwrap_or(0), policy, request, age_ms };
        let mut client = self.client.clone();
        match tokio::time::timeout(limit::QUOTA_CALL, client.impose(question)).await {
            // It is no more.
            Ok(Err(status)) if status.code() == tonic::Code::NotFound => Ok(()),
            Ok(answer) => answer.map(drop),
            Err(_) => Err(tonic::Status::deadline_exceeded("control does not answer in time")),
        }
    }

    /// Tells control of the quarantines that it could not be told of.
    async fn impose_owed(&self, snapshots: &Snapshots) {
        let owed: Vec<Arc<Imposed>> = self.owed.lock().values().cloned().collect();
        for imposed in owed {
            if let Err(status) = self.ask_to_impose(&imposed).await {
                tracing::debug!(%status, "control still can't be told of a quarantine");
                return;
            }
            self.is_told(&imposed, snapshots);
        }
    }

    /// Gives back what nobody spends, and tells control what it could not be told, for ever.
    pub async fn keep(&self, snapshots: &Snapshots) {
        let mut turns = tokio::time::interval(limit::QUOTA_IDLE);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            self.impose_owed(snapshots).await;
            snapshots.let_go();
            self.give_back(limit::QUOTA_IDLE).await;
        }
    }

    /// Gives back what nobody has spent of for as long as `idle`.
    pub async fn give_back(&self, idle: Duration) {
        let now = Instant::now();
        let (mut unspent, mut spent) = (Vec::new(), Vec::new());
        self.leases.lock().retain(|_, lease| {
            let mut held = lease.held.lock();
            // Before its time is over, too: what is not settled counts as used.
            let ends_soon = held.ends < now + limit::QUOTA_SETTLE;
            if !ends_soon && now.saturating_duration_since(held.touched) < idle {
                return true;
            }
            let is_spent = held.left == 0;
            let settled = held.settle().filter(|_| held.ends > now);
            if is_spent {
                spent.extend(settled)
            } else {
                unspent.extend(settled)
            }
            // Somebody may be about to spend of it, or wait for it.
            Arc::strong_count(lease) > 1
        });
        // What is used up only takes room until its end: of that no more is told than leaves time for what is owed.
        spent.truncate(limit::QUOTA_SPENT_MAX);
        for (id, used) in unspent.into_iter().chain(spent) {
            let question = CommitRequest { id: id.to_be_bytes().to_vec(), used: vec![used] };
            let mut client = self.client.clone();
            match tokio::time::timeout(limit::QUOTA_CALL, client.commit(question)).await {
                Ok(Ok(_)) => {}
                // It counts as used, then.
                Ok(Err(status)) => tracing::debug!(%status, "units that were not spent can't be given back"),
                Err(_) => return,
            }
        }
    }

    fn next_id(&self) -> u128 {
        let mut next = self.next.lock();
        *next += 1;
        u128::from(self.instance) << 64 | u128::from(*next)
    }

    fn lease(&self, limit: &Limit, subject: &Arc<str>) -> Option<Arc<Lease>> {
        let mut leases = self.leases.lock();
        let name = (limit.key, Arc::clone(subject));
        if let Some(lease) = leases.get(&name) {
            return Some(Arc::clone(lease));
        }
        if leases.len() >= limit::QUOTA_LEASES_MAX {
            return None;
        }
        let lease = Arc::new(Lease {
            held: Mutex::new(Held::none(Instant::now())),
            asking: tokio::sync::Mutex::default(),
            waiting: tokio::sync::Semaphore::new(limit::QUOTA_WAITING_MAX),
        });
        leases.insert(name, Arc::clone(&lease));
        Some(lease)
    }

    async fn spend_one(
        &self,
        limit: &Limit,
        subject: &Arc<str>,
        lease: &Lease,
        deadline: Instant,
    ) -> Result<(), (DropReason, Option<Duration>)> {
        if lease.held.lock().spend(Instant::now()) {
            return Ok(());
        }
        // Room to wait is taken first: it bounds who asks, too.
        let limited = |wait| (DropReason::RateLimited, Some(wait));
        let _room = lease.waiting.try_acquire().map_err(|_| limited(limit::QUOTA_WAIT_MAX))?;
        // Whoever asks before it may each wait for control. What is not to wait for units waits for one answer at most.
        let now = Instant::now();
        let until =
            if limit.over == LimitAction::Drop { deadline.min(now + limit::QUOTA_CALL) } else { deadline };
        loop {
            let wait = {
                let left = until.saturating_duration_since(Instant::now());
                let turn = tokio::time::timeout(left, lease.asking.lock()).await;
                let _turn = turn.map_err(|_| (DropReason::LimitUnavailable, None))?;
                match self.spend_or_ask(limit, subject, lease).await? {
                    None => return Ok(()),
                    Some(wait) => wait,
                }
            };
            if limit.over == LimitAction::Drop || Instant::now() + wait > deadline {
                return Err(limited(wait));
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Spends one unit, asking control for more if there is none. `Some` is how long there will be none.
    async fn spend_or_ask(
        &self,
        limit: &Limit,
        subject: &Arc<str>,
        lease: &Lease,
    ) -> Result<Option<Duration>, (DropReason, Option<Duration>)> {
        let ((id, ends), spent) = {
            let mut held = lease.held.lock();
            let now = Instant::now();
            if held.spend(now) {
                return Ok(None);
            }
            if held.away_until.is_some_and(|until| until > now) {
                return Err((DropReason::LimitUnavailable, None));
            }
            // Who is turned away again and again must not make us ask each time.
            if let Some((free_at, _)) = held.short.filter(|(_, ask_at)| *ask_at > now) {
                return Ok(Some(free_at.saturating_duration_since(now).max(limit::QUOTA_WAIT_LEAST)));
            }
            // By the same id, which takes nothing twice: also if whoever asked went away before the answer. Not for long
            // enough to be of use, it is a new question.
            let again = held.unanswered.filter(|(_, ends)| *ends > now + limit::QUOTA_SETTLE);
            // Our time for it begins before control's: we stop first.
            let asked = again.unwrap_or_else(|| (self.next_id(), now + limit::QUOTA_LIFE));
            held.unanswered = Some(asked);
            (asked, held.spent())
        };
        let question = ReserveRequest {
            id: id.to_be_bytes().to_vec(),
            scopes: vec![QuotaScope {
                limit: limit.key,
                subject: subject.as_ref().to_owned(),
                count: limit.pace.count,
                period_s: limit.pace.period_s,
                burst: limit.pace.burst,
                want: (limit.pace.burst / limit::QUOTA_LOT_PART).clamp(1, limit::QUOTA_LOT_MAX),
                least: 1,
            }],
            life_ms: u32::try_from(limit::QUOTA_LIFE.as_millis()).unwrap_or(u32::MAX),
            spent: spent.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
        };
        let mut client = self.client.clone();
        let answer = tokio::time::timeout(limit::QUOTA_CALL, client.reserve(question)).await;
        let answer = answer
            .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("control does not answer in time")));
        let mut held = lease.held.lock();
        let now = Instant::now();
        let answer = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                tracing::warn!(%status, "control grants no units of a limit; what it limits is denied");
                held.away_until = Some(now + limit::QUOTA_AWAY);
                return Err((DropReason::LimitUnavailable, None));
            }
        };
        match answer.granted.first() {
            Some(granted @ 1..) => {
                *held = Held { id, granted: *granted, left: granted - 1, ends, ..Held::none(now) };
                Ok(None)
            }
            _ => {
                let wait = Duration::from_millis(answer.wait_ms.max(1));
                held.unanswered = None;
                held.short = Some((now + wait, now + wait.min(limit::QUOTA_SHORT_MAX)));
                Ok(Some(wait))
            }
        }
    }
}

#[cfg(test)]
mod tests;
