//! Who is quarantined: stored and recorded like every change, but outside generations, so that it waits
//! neither for a policy that is being compiled nor for tables that are being written. Both planes get
//! the whole set at every change. Must never release anybody on its own but when the time given is over.
//!
//! INVARIANT: a quarantine is of one agent, by id and number: of an agent that is no more it says nothing about
//! the next of its name, and nothing that happens to that one changes it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use clawgress_api::clock::Clock;
use clawgress_api::{NewQuarantine, Quarantine, RecordKind};
use clawgress_identity::{Agent, AgentId, AgentState};
use futures_util::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use self::released::{RELEASED, Releases};
use super::due::{Due, outlasts};
use super::govern::Governor;
use super::model::{Refusal, parse};
use super::store::{Revision, StateStore, StoreError, Transaction, Write};

mod released;

/// Keys of quarantines, by the agent's id and number.
const QUARANTINE: &str = "quarantine/";
/// Longest quarantine that ends by itself: what is meant longer has no end.
const SECONDS_MAX: u64 = 366 * 24 * 60 * 60;
/// Longest reason, bytes.
const REASON_BYTES_MAX: usize = 1024;
/// Longest sleep until an end is looked for again: the clock may have been set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Pause before a store that failed is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Everybody who is quarantined.
#[derive(Clone, Debug, Default)]
pub struct Quarantined {
    /// Number of the change that made it so; it only grows.
    pub serial: u64,
    /// The store's revision it was read at.
    revision: Revision,
    entries: BTreeMap<Whose, Kept>,
    /// When people released agents last.
    released: Releases,
}

/// What ends a quarantine.
#[derive(Clone, Copy, Debug)]
enum End<'a> {
    /// A person: this settles what policy wanted before, too.
    Release(&'a str),
    /// The end of its time. What policy wants beyond that still comes.
    Time,
    /// The agent is no more.
    Deletion(&'a str),
}

/// An agent's id and number.
type Whose = (AgentId, u32);

/// A quarantine as the store holds it.
#[derive(Clone, Debug)]
struct Kept {
    /// Its key there: by the id alone, if an earlier version wrote it.
    key: String,
    quarantine: Quarantine,
}

/// The list, and the way to change it.
#[derive(Debug)]
pub struct Quarantines {
    governor: Arc<Governor>,
    clock: Arc<dyn Clock>,
    live: watch::Sender<Arc<Quarantined>>,
    /// Held while a change is made.
    turn: Mutex<()>,
}

// === impl Quarantined ===

impl Quarantined {
    /// Numbers of the agents.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries().map(|q| q.index)
    }

    /// All of them.
    pub fn entries(&self) -> impl Iterator<Item = &Quarantine> {
        self.entries.values().map(|kept| &kept.quarantine)
    }

    /// The agent's, if it is quarantined. One of an agent of this name that is no more doesn't count.
    #[must_use]
    pub fn of(&self, agent: &Agent) -> Option<&Quarantine> {
        self.entries.get(&(agent.id.clone(), agent.index)).map(|kept| &kept.quarantine)
    }

    /// The agent as people see it.
    #[must_use]
    pub fn shown(&self, agent: &Agent) -> Agent {
        let state = if self.of(agent).is_some() { AgentState::Quarantined } else { agent.state };
        Agent { state, ..agent.clone() }
    }
}

// === impl Quarantines ===

impl Quarantines {
    /// Loads what the store holds.
    ///
    /// # Errors
    /// If the store fails or isn't understood.
    pub async fn open(governor: Arc<Governor>, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let live = watch::Sender::new(Arc::new(load(governor.store.as_ref(), 0).await?));
        Ok(Quarantines { governor, clock, live, turn: Mutex::new(()) })
    }

    /// Who is quarantined now.
    #[must_use]
    pub fn live(&self) -> Arc<Quarantined> {
        Arc::clone(&self.live.borrow())
    }

    /// Who is quarantined now, and after every change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Quarantined>> {
        self.live.subscribe()
    }

    /// Quarantines an agent, or changes until when and why. It counts in the planes at once.
    ///
    /// # Errors
    /// If there is no such agent, the request is not acceptable, or the store fails; then nothing was
    /// altered. Only [`Refusal::Audit`] can come after the commit.
    pub async fn put(&self, new: NewQuarantine, by: &str) -> Result<Quarantine, Refusal> {
        check(new.seconds, new.reason.as_deref())?;
        let _turn = self.turn.lock().await;
        let since = self.clock.now();
        let until = until(since, new.seconds)?;
        self.put_in_turn(&new.id, (since, until), new.reason, by).await
    }

    /// Quarantines the agent of this number because a policy says so, and said so `age` ago. A quarantine that lasts longer stays
    /// as it is, and so does who was released since.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn impose(
        &self,
        number: u32,
        seconds: Option<u64>,
        reason: String,
        age: Duration,
    ) -> Result<(), Refusal> {
        check(seconds, Some(&reason))?;
        let now = self.clock.now();
        let asked =
            SignedDuration::try_from(age).ok().and_then(|age| now.checked_sub(age).ok()).unwrap_or(now);
        self.impose_until(number, (asked, until(asked, seconds)?), reason).await
    }

    /// Quarantines an agent as policy said so when something was decided.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub(super) async fn impose_due(&self, due: &Due) -> Result<(), Refusal> {
        check(None, Some(&due.reason))?;
        self.impose_until(due.agent, (due.asked, due.until), due.reason.clone()).await
    }

    async fn impose_until(
        &self,
        number: u32,
        (asked, until): (Timestamp, Option<Timestamp>),
        reason: String,
    ) -> Result<(), Refusal> {
        let _turn = self.turn.lock().await;
        let live = self.governor.live();
        // By its number: the next of its name is another.
        let agent = live.model.agents.values().find(|agent| agent.index == number);
        let agent =
            agent.ok_or_else(|| Refusal::Missing(format!("there is no agent of the number {number}")))?;
        if self.is_settled(agent, asked, until) {
            return Ok(());
        }
        self.put_in_turn(&agent.id, (asked, until), Some(reason), "policy").await.map(drop)
    }

    /// Whether nothing is left to do of a quarantine that policy wanted when it was `asked`: it is over, one lasts as long, or
    /// somebody released the agent since.
    pub(super) fn is_settled(&self, agent: &Agent, asked: Timestamp, until: Option<Timestamp>) -> bool {
        let (live, now) = (self.live(), self.clock.now());
        until.is_some_and(|until| until <= now)
            || live.released.settle(agent.index, asked, now)
            || live.of(agent).is_some_and(|kept| outlasts(kept.until, until))
    }

    async fn put_in_turn(
        &self,
        id: &AgentId,
        (since, until): (Timestamp, Option<Timestamp>),
        reason: Option<String>,
        by: &str,
    ) -> Result<Quarantine, Refusal> {
        let live = self.governor.live();
        let agent = live.model.agent(id)?;
        let entry = Quarantine {
            agent: agent.id.clone(),
            index: agent.index,
            since,
            until,
            reason,
            by: by.to_owned(),
        };
        let (quarantined, whose) = (self.live(), (agent.id.clone(), agent.index));
        let before = words(quarantined.of(agent));
        let detail = format!("agent `{}` set from {before} to {} by {by}", agent.id, words(Some(&entry)));
        let json = serde_json::to_vec(&entry).map_err(|e| Refusal::Invalid(e.to_string()))?;
        let kept = quarantined.entries.get(&whose).map(|kept| kept.key.clone());
        let key = key(&whose);
        let outdated = kept.filter(|kept| *kept != key).map(Write::Delete);
        self.commit(outdated.into_iter().chain([Write::Put(key, json)]), detail).await?;
        Ok(entry)
    }

    /// Releases an agent: policy decides about it again. The one of this `number`, if several of the name are kept;
    /// without it the one there is, or, if there is none, all of the name that are no more.
    ///
    /// # Errors
    /// If there is none, it is not quarantined, or the store or the audit log fails.
    pub async fn release(&self, id: &AgentId, number: Option<u32>, by: &str) -> Result<(), Refusal> {
        let (model, live) = (self.governor.live(), self.live());
        let number = number.or_else(|| model.model.agents.get(id).map(|agent| agent.index));
        let whose: Vec<Whose> = match number {
            Some(number) => vec![(id.clone(), number)],
            None => live.entries.keys().filter(|(agent, _)| agent == id).cloned().collect(),
        };
        if whose.is_empty() {
            model.model.agent(id)?;
        }
        for whose in whose {
            self.end_if(whose, End::Release(by), |_| true).await?;
        }
        Ok(())
    }

    /// Ends a quarantine if `is_due` says so of it as it is when its turn comes: it may have been changed since somebody looked.
    async fn end_if(
        &self,
        whose: Whose,
        end: End<'_>,
        is_due: impl Fn(&Quarantine) -> bool + Send,
    ) -> Result<(), Refusal> {
        // What can't be recorded isn't done; to quarantine is, because it takes away.
        if let Some(failure) = self.governor.audit.failure() {
            return Err(Refusal::Unavailable(format!("nobody can be released now: {failure}")));
        }
        let _turn = self.turn.lock().await;
        let (live, id) = (self.live(), &whose.0);
        let Some(kept) = live.entries.get(&whose).filter(|kept| is_due(&kept.quarantine)) else {
            return Err(Refusal::Missing(format!("agent `{id}` is not quarantined")));
        };
        let detail = format!("agent `{id}` released by {end}: was {}", words(Some(&kept.quarantine)));
        let mut writes = vec![Write::Delete(kept.key.clone())];
        match end {
            End::Release(_) => {
                // What is due from before is over with this: whoever looks at it next finds it settled.
                let (at, governed) = (self.clock.now(), self.governor.live());
                let released = live.released.writes(whose.1, at, &governed.model);
                writes.extend(released.map_err(|e| Refusal::Invalid(e.to_string()))?);
            }
            End::Deletion(_) => writes.push(Write::Delete(released::key(whose.1))),
            End::Time => {}
        }
        self.commit(writes, detail).await
    }

    /// Forgets the quarantine of an agent that is no more in either plane. Where a plane may still run a
    /// generation that knows the agent, it is kept instead, until somebody releases it: an agent's number never
    /// comes back, so it stops nobody else, and there are no more of them than numbers.
    ///
    /// # Errors
    /// If the store or the audit log fails.
    pub async fn forget(&self, agent: &Agent, by: &str) -> Result<(), Refusal> {
        let whose = (agent.id.clone(), agent.index);
        match self.end_if(whose, End::Deletion(by), |_| true).await {
            Err(Refusal::Missing(_)) => self.forget_release(agent.index).await,
            other => other,
        }
    }

    /// Forgets when an agent was released that is no more, and is not quarantined.
    async fn forget_release(&self, number: u32) -> Result<(), Refusal> {
        let _turn = self.turn.lock().await;
        if !self.live().released.has(number) {
            return Ok(());
        }
        let writes = vec![Write::Delete(released::key(number))];
        self.governor.store.commit(Transaction { conditions: vec![], writes }).await?;
        Ok(self.reload().await?)
    }

    /// Writes, publishes, records: in this order, so that the planes wait for the store alone.
    async fn commit(&self, writes: impl IntoIterator<Item = Write>, detail: String) -> Result<(), Refusal> {
        let mut record =
            self.governor.audit.record(RecordKind::Change, self.governor.live().model.generation);
        record.detail = Some(detail);
        let pending = serde_json::to_vec(&record).map_err(|e| Refusal::Invalid(e.to_string()))?;
        let mut writes: Vec<Write> = writes.into_iter().collect();
        writes.push(Write::Put(self.governor.pending(&record.request), pending));
        self.governor.store.commit(Transaction { conditions: vec![], writes }).await?;
        self.reload().await?;
        self.governor.record(record).await
    }

    async fn reload(&self) -> Result<(), StoreError> {
        let read = load(self.governor.store.as_ref(), self.live().serial + 1).await?;
        self.live.send_replace(Arc::new(read));
        Ok(())
    }

    /// Releases whoever's time is over, and follows what other nodes do to the same store, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.expire() => {}
            () = self.follow() => {}
        }
    }

    async fn expire(&self) {
        let mut changes = self.watch();
        // When it was noted that the clock was set back behind a release, while that can't be stored.
        let mut set_back = None;
        loop {
            let (now, live) = (self.clock.now(), Arc::clone(&changes.borrow_and_update()));
            if live.released.is_set_back(now) {
                let noted = set_back.map_or(now, |noted: Timestamp| noted.min(now));
                match self.set_back(noted).await {
                    Ok(()) => set_back = None,
                    Err(error) => {
                        tracing::error!(%error, "cannot note that the clock was set back behind a release");
                        set_back = Some(noted);
                        tokio::time::sleep(RETRY).await;
                    }
                }
                continue;
            }
            let is_over = |q: &Quarantine| q.until.is_some_and(|until| until <= now);
            if let Some(entry) = live.entries().find(|q| is_over(q)) {
                let whose = (entry.agent.clone(), entry.index);
                if let Err(error) = self.end_if(whose, End::Time, is_over).await
                    && !matches!(error, Refusal::Missing(_))
                {
                    tracing::error!(%error, agent = %entry.agent, "cannot release an agent whose time is over");
                    tokio::time::sleep(RETRY).await;
                }
                continue;
            }
            let next = live.entries().filter_map(|q| q.until).min();
            let is_idle = next.is_none() && live.released.is_empty();
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(next.map_or(LOOK_AGAIN, |until| left(now, until))), if !is_idle => {}
            }
        }
    }

    /// Notes that the clock was set back to `now`, behind releases.
    async fn set_back(&self, now: Timestamp) -> Result<(), Refusal> {
        let _turn = self.turn.lock().await;
        let all = self.live().released.set_back(now).map_err(|e| Refusal::Invalid(e.to_string()))?;
        tracing::warn!(%now, "the clock was set back behind releases from quarantine: they count as of now");
        for writes in all {
            self.governor.store.commit(Transaction { conditions: vec![], writes }).await?;
        }
        Ok(self.reload().await?)
    }

    async fn follow(&self) {
        loop {
            // What came since it was read last, too.
            let from = self.live().revision + 1;
            if let Ok(mut commits) = self.governor.store.watch(QUARANTINE, from).await {
                while let Some(Ok(commit)) = commits.next().await {
                    let _turn = self.turn.lock().await;
                    if commit.revision <= self.live().revision {
                        continue;
                    }
                    if let Err(error) = self.reload().await {
                        tracing::error!(%error, "cannot follow a change of who is quarantined");
                    }
                }
            }
            // The watch fell behind, or the store failed: whoever was missed is read now.
            tokio::time::sleep(RETRY).await;
            let _turn = self.turn.lock().await;
            let _ = self.reload().await;
        }
    }
}

// === impl End ===

impl fmt::Display for End<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Release(by) => f.write_str(by),
            End::Time => f.write_str("the end of its time"),
            End::Deletion(by) => write!(f, "its deletion by {by}"),
        }
    }
}

/// When a quarantine ends that begins at `since`; `None` if only somebody ends it.
pub(super) fn until(since: Timestamp, seconds: Option<u64>) -> Result<Option<Timestamp>, Refusal> {
    let duration = seconds.map(|s| SignedDuration::from_secs(i64::try_from(s).unwrap_or(i64::MAX)));
    let until = duration.map(|duration| since.checked_add(duration)).transpose();
    until.map_err(|e| Refusal::Invalid(e.to_string()))
}

fn check(seconds: Option<u64>, reason: Option<&str>) -> Result<(), Refusal> {
    if seconds.is_some_and(|s| s == 0 || s > SECONDS_MAX) {
        return Err(Refusal::Invalid(format!(
            "a quarantine that ends by itself lasts 1 to {SECONDS_MAX} seconds; leave the time out for one without an end"
        )));
    }
    let reason = reason.unwrap_or_default();
    if reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        return Err(Refusal::Invalid(format!(
            "a reason has at most {REASON_BYTES_MAX} bytes and no control characters"
        )));
    }
    Ok(())
}

/// A state in a sentence of the audit log.
fn words(entry: Option<&Quarantine>) -> String {
    let Some(entry) = entry else { return "not quarantined".to_owned() };
    let until = entry.until.map_or("released".to_owned(), |until| until.to_string());
    let reason = entry.reason.as_deref().map(|r| format!(" ({r})")).unwrap_or_default();
    format!("quarantined since {} until {until}{reason}", entry.since)
}

fn left(now: Timestamp, until: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(now)).unwrap_or_default().min(LOOK_AGAIN)
}

fn key((id, index): &Whose) -> String {
    format!("{QUARANTINE}{id}/{index}")
}

async fn load(store: &dyn StateStore, serial: u64) -> Result<Quarantined, StoreError> {
    let read = store.scan(QUARANTINE, None).await?;
    let entries = read.entries.iter().map(|entry| {
        let quarantine: Quarantine = parse(entry)?;
        let whose = (quarantine.agent.clone(), quarantine.index);
        Ok((whose, Kept { key: entry.key.clone(), quarantine }))
    });
    let entries = entries.collect::<Result<_, StoreError>>()?;
    // Of the same state: who is no longer quarantined was released.
    let released = Releases::load(&store.scan(RELEASED, Some(read.revision)).await?.entries)?;
    Ok(Quarantined { serial, revision: read.revision, entries, released })
}

#[cfg(test)]
mod tests;
