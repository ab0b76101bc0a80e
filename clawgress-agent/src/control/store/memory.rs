//! The store in memory: for tests, and the reference that the durable one is compared with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    Commit, Entry, HISTORY_REVISIONS_MAX, Log, Read, Revision, StateStore, StoreError, Transaction, Write,
    follow, readable, watchable,
};

/// A store that ends with the process.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    latest: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct State {
    revision: Revision,
    compacted: Revision,
    /// Versions of each key by revision; `None` is a removal.
    versions: BTreeMap<String, BTreeMap<Revision, Option<Vec<u8>>>>,
    log: BTreeMap<Revision, BTreeSet<String>>,
}

#[async_trait]
impl StateStore for MemoryStore {
    async fn read(&self, key: &str, at: Option<Revision>) -> Result<Read, StoreError> {
        let state = self.shared.state.lock();
        let revision = readable(at, state.revision, state.compacted)?;
        Ok(Read { revision, entries: state.entry(key, revision).into_iter().collect() })
    }

    async fn scan(&self, prefix: &str, at: Option<Revision>) -> Result<Read, StoreError> {
        let state = self.shared.state.lock();
        let revision = readable(at, state.revision, state.compacted)?;
        let keys = state.versions.range(prefix.to_owned()..).map(|(key, _)| key);
        let entries = keys.take_while(|k| k.starts_with(prefix)).filter_map(|k| state.entry(k, revision));
        Ok(Read { revision, entries: entries.collect() })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        transaction.check()?;
        let mut state = self.shared.state.lock();
        let latest = state.revision;
        for condition in &transaction.conditions {
            let modified = state.entry(condition.key(), latest).map(|e| e.modified);
            if !condition.holds(modified) {
                return Err(StoreError::Conflict(condition.key().to_owned()));
            }
        }
        let revision = latest + 1;
        state.revision = revision;
        for write in transaction.writes {
            let (key, value) = match write {
                Write::Put(key, value) => (key, Some(value)),
                Write::Delete(key) => (key, None),
            };
            if value.is_none() && state.entry(&key, latest).is_none() {
                continue;
            }
            state.log.entry(revision).or_default().insert(key.clone());
            state.versions.entry(key).or_default().insert(revision, value);
        }
        state.compact();
        drop(state);
        self.shared.latest.send_if_modified(|latest| super::raise(latest, revision));
        Ok(revision)
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Commit, StoreError>>, StoreError> {
        watchable(from, self.shared.state.lock().compacted)?;
        let latest = self.shared.latest.subscribe();
        // The log holds a weak reference, so that a watch ends with its store.
        Ok(follow(WeakLog(Arc::downgrade(&self.shared)), latest, prefix.to_owned(), from))
    }
}

struct WeakLog(Weak<Shared>);

#[async_trait]
impl Log for WeakLog {
    async fn commits(&self, prefix: &str, from: Revision, to: Revision) -> Result<Vec<Commit>, StoreError> {
        let Some(shared) = self.0.upgrade() else { return Ok(Vec::new()) };
        let state = shared.state.lock();
        watchable(from, state.compacted)?;
        let commits = state.log.range(from..=to).map(|(revision, keys)| Commit {
            revision: *revision,
            writes: keys
                .range(prefix.to_owned()..)
                .take_while(|k| k.starts_with(prefix))
                .map(|k| match state.entry(k, *revision) {
                    Some(entry) => Write::Put(entry.key, entry.value),
                    None => Write::Delete(k.clone()),
                })
                .collect(),
        });
        Ok(commits.filter(|c| !c.writes.is_empty()).collect())
    }
}

// === impl State ===

impl State {
    fn entry(&self, key: &str, at: Revision) -> Option<Entry> {
        let (modified, value) = self.versions.get(key)?.range(..=at).next_back()?;
        Some(Entry { key: key.to_owned(), value: value.clone()?, modified: *modified })
    }

    /// Drops what no kept revision shows: one revision for each commit, so that no commit pays for many.
    fn compact(&mut self) {
        let target = self.revision.saturating_sub(HISTORY_REVISIONS_MAX);
        while self.compacted < target {
            self.compacted += 1;
            let Some(keys) = self.log.remove(&self.compacted) else { continue };
            for key in keys {
                let Some(versions) = self.versions.get_mut(&key) else { continue };
                let kept = versions.split_off(&self.compacted);
                *versions = kept;
                if versions.get(&self.compacted).is_some_and(Option::is_none) {
                    versions.remove(&self.compacted);
                }
                if versions.is_empty() {
                    self.versions.remove(&key);
                }
            }
        }
    }
}
