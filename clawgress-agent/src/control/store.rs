//! Durable state: a small multi-version store of keys and values, with transactions that compare before
//! they write. One machine has it on disk; a cluster would have it elsewhere, and the code above must
//! not see the difference. It knows nothing of what the values mean.

mod memory;
mod redb;

use std::io;
use std::path::PathBuf;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;

pub use self::memory::MemoryStore;
pub use self::redb::RedbStore;

/// Number of a commit, from 1; 0 is the empty store.
pub type Revision = u64;

/// Longest key, bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Largest value, bytes: a policy with its named sets, or geo data; 1.2 million prefixes of either.
pub const VALUE_BYTES_MAX: usize = 64 << 20;
/// Most conditions and writes of one transaction.
pub const OPERATIONS_MAX: usize = 4096;
/// Revisions that can still be read and watched from; older history is dropped as new commits come.
pub const HISTORY_REVISIONS_MAX: u64 = 1024;
/// Revisions read from the log at once by a watch, so that one that is far behind stays within memory.
const WATCH_REVISIONS_MAX: u64 = 64;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Commit that wrote it.
    pub modified: Revision,
}

/// What was read, and at which revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The revision that was read: pass it on to read more of the same state.
    pub revision: Revision,
    /// Entries in order of their keys.
    pub entries: Vec<Entry>,
}

/// What must hold for a transaction to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key has no value.
    Absent(String),
    /// The key's value was written by this commit.
    ModifiedAt(String, Revision),
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Set.
    Put(String, Vec<u8>),
    /// Remove; nothing happens if it isn't there.
    Delete(String),
}

/// Writes that happen all together if all conditions hold, else not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// Writes; no key twice.
    pub writes: Vec<Write>,
}

/// One commit, as a watch sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its number.
    pub revision: Revision,
    /// Its writes under the watched prefix, in order of their keys.
    pub writes: Vec<Write>,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A condition does not hold; nothing was written. Read again and decide again.
    #[error("`{0}` was changed by somebody else")]
    Conflict(String),
    /// That far back is no longer kept.
    #[error("revision {asked} is no longer kept; the oldest is {oldest}")]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// The oldest that can be read.
        oldest: Revision,
    },
    /// There is no such revision yet.
    #[error("revision {asked} does not exist yet; the latest is {latest}")]
    Future {
        /// What was asked for.
        asked: Revision,
        /// The latest.
        latest: Revision,
    },
    /// A bound of the store.
    #[error("{0}")]
    Invalid(String),
    /// Another process has the store open.
    #[error("another process has `{0}` open; stop it first")]
    Locked(PathBuf),
    /// The disk, or what is on it. Whether a commit took place is unknown.
    #[error("the state store failed: {0}")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Durable state.
#[async_trait]
pub trait StateStore: Send + Sync + std::fmt::Debug {
    /// Reads one key, at a revision or now.
    ///
    /// # Errors
    /// [`StoreError::Compacted`], [`StoreError::Future`], [`StoreError::Storage`].
    async fn read(&self, key: &str, at: Option<Revision>) -> Result<Read, StoreError>;

    /// Reads every key that starts with `prefix`, at a revision or now.
    ///
    /// # Errors
    /// [`StoreError::Compacted`], [`StoreError::Future`], [`StoreError::Storage`].
    async fn scan(&self, prefix: &str, at: Option<Revision>) -> Result<Read, StoreError>;

    /// Commits; when it returns, the writes survive a power cut. Returns the commit's revision.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] (nothing was written), [`StoreError::Invalid`], [`StoreError::Storage`].
    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError>;

    /// Every commit from revision `from` on that wrote under `prefix`, each once, in order, without an end.
    ///
    /// # Errors
    /// [`StoreError::Compacted`], at once or as the last item for a watch that fell too far behind.
    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Commit, StoreError>>, StoreError>;
}

/// The log behind a watch, by revisions.
#[async_trait]
trait Log: Send + Sync + 'static {
    /// Commits with revisions in `from..=to` that wrote under `prefix`.
    async fn commits(&self, prefix: &str, from: Revision, to: Revision) -> Result<Vec<Commit>, StoreError>;
}

/// A watch over `log`, woken by `latest`.
fn follow(
    log: impl Log,
    latest: watch::Receiver<Revision>,
    prefix: String,
    from: Revision,
) -> BoxStream<'static, Result<Commit, StoreError>> {
    let batches = stream::unfold(Some((log, latest, from.max(1))), move |state| {
        let prefix = prefix.clone();
        async move {
            let (log, mut latest, from) = state?;
            // An error here means that the store is gone, and with it the watch.
            let newest = *latest.wait_for(|newest| *newest >= from).await.ok()?;
            let to = newest.min(from.saturating_add(WATCH_REVISIONS_MAX - 1));
            match log.commits(&prefix, from, to).await {
                Ok(commits) => {
                    let items: Vec<_> = commits.into_iter().map(Ok).collect();
                    Some((items, Some((log, latest, to + 1))))
                }
                Err(error) => Some((vec![Err(error)], None)),
            }
        }
    });
    batches.flat_map(stream::iter).boxed()
}

// === impl Transaction ===

impl Transaction {
    /// Checks the bounds that hold for every store.
    fn check(&self) -> Result<(), StoreError> {
        if self.conditions.len() + self.writes.len() > OPERATIONS_MAX {
            return Err(StoreError::Invalid(format!(
                "a transaction has at most {OPERATIONS_MAX} operations"
            )));
        }
        let mut keys: Vec<&str> = self.writes.iter().map(Write::key).collect();
        keys.sort_unstable();
        if let Some(twice) = keys.windows(2).find_map(|w| w.first().filter(|k| w.last() == Some(k))) {
            return Err(StoreError::Invalid(format!("`{twice}` is written twice in one transaction")));
        }
        for write in &self.writes {
            if write.key().is_empty() || write.key().len() > KEY_BYTES_MAX {
                return Err(StoreError::Invalid(format!("a key has 1 to {KEY_BYTES_MAX} bytes")));
            }
            if matches!(write, Write::Put(_, value) if value.len() > VALUE_BYTES_MAX) {
                let key = write.key();
                return Err(StoreError::Invalid(format!(
                    "the value of `{key}` is over {VALUE_BYTES_MAX} bytes"
                )));
            }
        }
        Ok(())
    }
}

impl Write {
    /// The key it changes.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Write::Put(key, _) | Write::Delete(key) => key,
        }
    }
}

impl Condition {
    /// Whether it holds for a key whose value was last written at `modified`.
    fn holds(&self, modified: Option<Revision>) -> bool {
        match self {
            Condition::Absent(_) => modified.is_none(),
            Condition::ModifiedAt(_, revision) => modified == Some(*revision),
        }
    }

    fn key(&self) -> &str {
        match self {
            Condition::Absent(key) | Condition::ModifiedAt(key, _) => key,
        }
    }
}

impl StoreError {
    fn storage(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        StoreError::Storage(Box::new(error))
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        StoreError::storage(error)
    }
}

/// Whether `asked` can be read, given what is kept.
fn readable(asked: Option<Revision>, latest: Revision, compacted: Revision) -> Result<Revision, StoreError> {
    match asked {
        None => Ok(latest),
        Some(asked) if asked > latest => Err(StoreError::Future { asked, latest }),
        Some(asked) if asked < compacted => Err(StoreError::Compacted { asked, oldest: compacted }),
        Some(asked) => Ok(asked),
    }
}

/// Whether a watch may begin at `from`, given what is kept.
fn watchable(from: Revision, compacted: Revision) -> Result<(), StoreError> {
    let oldest = compacted + 1;
    if from.max(1) < oldest { Err(StoreError::Compacted { asked: from, oldest }) } else { Ok(()) }
}

/// Raises `latest` to `revision`: two commits may report in either order, the number only rises.
fn raise(latest: &mut Revision, revision: Revision) -> bool {
    let rises = revision > *latest;
    *latest = revision.max(*latest);
    rises
}
