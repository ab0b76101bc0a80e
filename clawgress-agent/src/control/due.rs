//! Quarantines that policy wants by what planes told, until they are imposed: one an agent, the one that lasts longest. Each
//! is in the store before the record that tells of it is in the log: whatever ends this process in between, the next start
//! imposes it. Must never lose one for the number of another's.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::model::parse;
use super::store::{StateStore, StoreError, Transaction, Write};

/// Keys of those that are due, by the agent's number.
const DUE: &str = "quarantine-due/";
/// Written at once.
const WRITES_MAX: usize = 1024;
/// What policy imposes within this time of what it imposed before is the same: many requests at once are one reason, and not
/// each lengthens it, and is a change of its own.
const AT_ONCE: SignedDuration = SignedDuration::from_secs(5);

/// A quarantine that policy wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Due {
    /// Number of the agent.
    pub agent: u32,
    /// When what it follows on was decided, at the latest.
    pub asked: Timestamp,
    /// Until when it lasts; without an end, until somebody ends it.
    pub until: Option<Timestamp>,
    /// Why.
    pub reason: String,
}

/// Those that wait: at most one for each agent there is.
#[derive(Debug)]
pub(super) struct Dues {
    store: Arc<dyn StateStore>,
    waiting: Mutex<BTreeMap<u32, Waiting>>,
    /// Held while the store is written, so that whoever finds one stored finds it durable.
    writing: tokio::sync::Mutex<()>,
    news: Notify,
}

#[derive(Debug)]
struct Waiting {
    due: Due,
    /// Whether the store has this very one: another, of before a release, would count for nothing.
    is_stored: bool,
}

/// Whether a quarantine that lasts until `kept` lasts as long as one until `until` is meant to.
pub(super) fn outlasts(kept: Option<Timestamp>, until: Option<Timestamp>) -> bool {
    match (kept, until) {
        (None, _) => true,
        (Some(kept), Some(until)) => kept >= until - AT_ONCE,
        (Some(_), None) => false,
    }
}

/// The key of what is due for the agent of this number.
fn key(agent: u32) -> String {
    format!("{DUE}{agent}")
}

// === impl Due ===

impl Due {
    /// Whether it is the same quarantine of the same agent.
    fn is(&self, other: &Due) -> bool {
        (self.agent, self.asked, self.until) == (other.agent, other.asked, other.until)
    }
}

// === impl Dues ===

impl Dues {
    /// Those that an earlier life of this process left.
    ///
    /// # Errors
    /// If the store fails or isn't understood.
    pub(super) async fn open(store: Arc<dyn StateStore>) -> Result<Self, StoreError> {
        let read = store.scan(DUE, None).await?;
        let dues = read.entries.iter().map(parse).collect::<Result<Vec<Due>, StoreError>>()?;
        let waiting = dues.into_iter().map(|due| (due.agent, Waiting { due, is_stored: true })).collect();
        Ok(Dues { waiting: Mutex::new(waiting), ..Dues::new(store) })
    }

    /// None.
    pub(super) fn new(store: Arc<dyn StateStore>) -> Self {
        let (waiting, writing, news) = (Mutex::default(), tokio::sync::Mutex::default(), Notify::new());
        Dues { store, waiting, writing, news }
    }

    /// Adds one, unless what waits for its agent lasts as long. What waits and `is_settled` by now, because somebody released the
    /// agent since, gives way: what the agent does then makes it not last.
    pub(super) fn add(&self, due: Due, is_settled: impl FnOnce(&Due) -> bool) {
        let mut waiting = self.waiting.lock();
        match waiting.get_mut(&due.agent) {
            Some(other) if outlasts(other.due.until, due.until) && !is_settled(&other.due) => {
                if due.asked > other.due.asked {
                    // Who was released since the first one was not since this one, and that may be so before it is known here.
                    (other.due.asked, other.is_stored) = (due.asked, false);
                }
            }
            _ => drop(waiting.insert(due.agent, Waiting { due, is_stored: false })),
        }
        drop(waiting);
        self.news.notify_one();
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Due> {
        self.waiting.lock().values().map(|waiting| waiting.due.clone()).collect()
    }

    /// Whether each that waits is stored.
    pub(super) fn are_stored(&self) -> bool {
        self.waiting.lock().values().all(|waiting| waiting.is_stored)
    }

    /// Waits until one was added.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Stores those that aren't. One that can't be is still imposed by this process, if that can.
    ///
    /// # Errors
    /// If some can't be: the records that tell of them must not be kept before.
    pub(super) async fn store(&self) -> Result<(), StoreError> {
        let unstored = || -> Vec<Due> {
            let waiting = self.waiting.lock();
            waiting.values().filter(|waiting| !waiting.is_stored).map(|waiting| waiting.due.clone()).collect()
        };
        if unstored().is_empty() {
            return Ok(());
        }
        let _turn = self.writing.lock().await;
        for dues in unstored().chunks(WRITES_MAX) {
            self.store_some(dues).await?;
        }
        Ok(())
    }

    async fn store_some(&self, dues: &[Due]) -> Result<(), StoreError> {
        let put = |due: &Due| {
            let json = serde_json::to_vec(due).map_err(|error| StoreError::Invalid(error.to_string()))?;
            Ok(Write::Put(key(due.agent), json))
        };
        let writes = dues.iter().map(put).collect::<Result<Vec<_>, StoreError>>()?;
        self.store.commit(Transaction { conditions: vec![], writes }).await?;
        let mut waiting = self.waiting.lock();
        for due in dues {
            // One that came meanwhile is not this one. None was forgotten: that has to wait for the store.
            if let Some(other) = waiting.get_mut(&due.agent) {
                other.is_stored |= other.due.is(due);
            }
        }
        Ok(())
    }

    /// Forgets those that were seen to.
    pub(super) async fn done(&self, dues: &[Due]) {
        let _turn = self.writing.lock().await;
        for dues in dues.chunks(WRITES_MAX) {
            let mut writes = Vec::new();
            {
                let mut waiting = self.waiting.lock();
                for due in dues {
                    // One that came meanwhile waits on.
                    if waiting.get(&due.agent).is_some_and(|other| other.due.is(due)) {
                        waiting.remove(&due.agent);
                        writes.push(Write::Delete(key(due.agent)));
                    }
                }
            }
            if writes.is_empty() {
                continue;
            }
            if let Err(error) = self.store.commit(Transaction { conditions: vec![], writes }).await {
                tracing::warn!(%error, "the next start looks again at quarantines that are imposed");
            }
        }
    }
}
