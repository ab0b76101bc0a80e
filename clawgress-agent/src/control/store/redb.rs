//! The store on disk of one machine. Every commit is made durable by fsync before it returns; the
//! blocking work happens on the runtime's blocking threads.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, Durability, ReadOnlyTable, ReadableDatabase as _, ReadableTable, Table,
    TableDefinition, WriteTransaction,
};
use tokio::sync::watch;

use super::{
    Commit, Entry, HISTORY_REVISIONS_MAX, Log, Read, Revision, StateStore, StoreError, Transaction, Write,
    follow, raise, readable, watchable,
};

/// Memory for cached pages, bytes: the whole state of ten thousand agents.
const CACHE_BYTES: usize = 32 << 20;
/// Version of the tables below.
const FORMAT_LEAST: u64 = 1;
/// The latest that this version knows: the same tables, with keys that no earlier version reads.
const FORMAT: u64 = 2;
/// Keys whose values restrict, and which a version that knows [`FORMAT_LEAST`] alone would pass over: the policies of the
/// platform and of tenants. The first of them makes a store one of [`FORMAT`] 2 for good, so that going back to such a
/// version is refused rather than lifts what they say; until then it is possible.
const KEYS_SINCE_2: [&str; 2] = ["policy/", "policy-live/"];

/// Key and revision of a version.
type VersionKey = (&'static str, u64);
/// Revision and key of a log row.
type LogKey = (u64, &'static str);
/// A version's value; `None` is a removal.
type VersionValue = Option<&'static [u8]>;

/// `revision`, `compacted`, `format`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Versions of each key.
const VERSIONS: TableDefinition<'_, VersionKey, VersionValue> = TableDefinition::new("versions");
/// Which keys each commit wrote.
const LOG: TableDefinition<'_, LogKey, ()> = TableDefinition::new("log");

/// A durable store in one file.
#[derive(Debug, Clone)]
pub struct RedbStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    database: Database,
    latest: watch::Sender<Revision>,
}

// === impl RedbStore ===

impl RedbStore {
    /// Opens the store at `path`, creating it (0600, its directory 0700) if there is none.
    ///
    /// # Errors
    /// If another process has it open, it is damaged, or of a later version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let refused = |error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::Locked(path.to_owned()),
            other => StoreError::storage(other),
        };
        let backend = FileBackend::new(file).map_err(refused)?;
        let mut builder = Database::builder();
        let database = builder.set_cache_size(CACHE_BYTES).create_with_backend(backend).map_err(refused)?;
        let transaction = begin(&database)?;
        let revision = {
            let mut meta = transaction.open_table(META).map_err(StoreError::storage)?;
            let format = number(&meta, "format")?;
            if format > FORMAT {
                let text = format!("`{}` was written by a later version; upgrade", path.display());
                return Err(StoreError::Invalid(text));
            }
            meta.insert("format", format.max(FORMAT_LEAST)).map_err(StoreError::storage)?;
            transaction.open_table(VERSIONS).map_err(StoreError::storage)?;
            transaction.open_table(LOG).map_err(StoreError::storage)?;
            number(&meta, "revision")?
        };
        transaction.commit().map_err(StoreError::storage)?;
        let latest = watch::Sender::new(revision);
        Ok(RedbStore { shared: Arc::new(Shared { database, latest }) })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || work(&shared)).await.map_err(StoreError::storage)?
    }
}

#[async_trait]
impl StateStore for RedbStore {
    async fn read(&self, key: &str, at: Option<Revision>) -> Result<Read, StoreError> {
        let key = key.to_owned();
        self.blocking(move |shared| {
            shared.view(at, |versions, revision| Ok(entry(versions, &key, revision)?.into_iter().collect()))
        })
        .await
    }

    async fn scan(&self, prefix: &str, at: Option<Revision>) -> Result<Read, StoreError> {
        let prefix = prefix.to_owned();
        self.blocking(move |shared| {
            shared.view(at, |versions, revision| entries(versions, &prefix, revision))
        })
        .await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        transaction.check()?;
        self.blocking(move |shared| {
            let write = begin(&shared.database)?;
            let revision = apply(&write, &transaction)?;
            write.commit().map_err(StoreError::storage)?;
            shared.latest.send_if_modified(|latest| raise(latest, revision));
            Ok(revision)
        })
        .await
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Commit, StoreError>>, StoreError> {
        self.blocking(move |shared| watchable(from, shared.compacted()?)).await?;
        let latest = self.shared.latest.subscribe();
        // The log holds a weak reference, so that a watch doesn't keep the file open.
        Ok(follow(WeakLog(Arc::downgrade(&self.shared)), latest, prefix.to_owned(), from))
    }
}

struct WeakLog(Weak<Shared>);

#[async_trait]
impl Log for WeakLog {
    async fn commits(&self, prefix: &str, from: Revision, to: Revision) -> Result<Vec<Commit>, StoreError> {
        let Some(shared) = self.0.upgrade() else { return Ok(Vec::new()) };
        let prefix = prefix.to_owned();
        RedbStore { shared }.blocking(move |shared| shared.commits(&prefix, from, to)).await
    }
}

// === impl Shared ===

impl Shared {
    fn view(
        &self,
        at: Option<Revision>,
        read: impl FnOnce(&ReadOnlyTable<VersionKey, VersionValue>, Revision) -> Result<Vec<Entry>, StoreError>,
    ) -> Result<Read, StoreError> {
        let transaction = self.database.begin_read().map_err(StoreError::storage)?;
        let meta = transaction.open_table(META).map_err(StoreError::storage)?;
        let revision = readable(at, number(&meta, "revision")?, number(&meta, "compacted")?)?;
        let versions = transaction.open_table(VERSIONS).map_err(StoreError::storage)?;
        Ok(Read { revision, entries: read(&versions, revision)? })
    }

    fn compacted(&self) -> Result<Revision, StoreError> {
        let transaction = self.database.begin_read().map_err(StoreError::storage)?;
        number(&transaction.open_table(META).map_err(StoreError::storage)?, "compacted")
    }

    fn commits(&self, prefix: &str, from: Revision, to: Revision) -> Result<Vec<Commit>, StoreError> {
        let transaction = self.database.begin_read().map_err(StoreError::storage)?;
        let meta = transaction.open_table(META).map_err(StoreError::storage)?;
        watchable(from, number(&meta, "compacted")?)?;
        let versions = transaction.open_table(VERSIONS).map_err(StoreError::storage)?;
        let log = transaction.open_table(LOG).map_err(StoreError::storage)?;
        let mut commits: Vec<Commit> = Vec::new();
        for row in log.range((from, "")..(to + 1, "")).map_err(StoreError::storage)? {
            let (at, _) = row.map_err(StoreError::storage)?;
            let (revision, key) = at.value();
            if !key.starts_with(prefix) {
                continue;
            }
            let write = match entry(&versions, key, revision)? {
                Some(entry) => Write::Put(entry.key, entry.value),
                None => Write::Delete(key.to_owned()),
            };
            match commits.last_mut().filter(|c| c.revision == revision) {
                Some(commit) => commit.writes.push(write),
                None => commits.push(Commit { revision, writes: vec![write] }),
            }
        }
        Ok(commits)
    }
}

fn begin(database: &Database) -> Result<WriteTransaction, StoreError> {
    let mut transaction = database.begin_write().map_err(StoreError::storage)?;
    transaction.set_durability(Durability::Immediate).map_err(StoreError::storage)?;
    Ok(transaction)
}

fn number(meta: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64, StoreError> {
    Ok(meta.get(name).map_err(StoreError::storage)?.map_or(0, |v| v.value()))
}

fn entry(
    versions: &impl ReadableTable<VersionKey, VersionValue>,
    key: &str,
    at: Revision,
) -> Result<Option<Entry>, StoreError> {
    let mut rows = versions.range((key, 0)..=(key, at)).map_err(StoreError::storage)?;
    let Some(row) = rows.next_back() else { return Ok(None) };
    let (place, value) = row.map_err(StoreError::storage)?;
    let modified = place.value().1;
    Ok(value.value().map(|value| Entry { key: key.to_owned(), value: value.to_owned(), modified }))
}

fn entries(
    versions: &impl ReadableTable<VersionKey, VersionValue>,
    prefix: &str,
    at: Revision,
) -> Result<Vec<Entry>, StoreError> {
    let mut entries: Vec<Entry> = Vec::new();
    for row in versions.range((prefix, 0)..).map_err(StoreError::storage)? {
        let (place, value) = row.map_err(StoreError::storage)?;
        let (key, modified) = place.value();
        if !key.starts_with(prefix) {
            break;
        }
        if modified > at {
            continue;
        }
        // Versions of a key come in order: a later one takes the place of the one before.
        entries.pop_if(|e| e.key == key);
        if let Some(value) = value.value() {
            entries.push(Entry { key: key.to_owned(), value: value.to_owned(), modified });
        }
    }
    Ok(entries)
}

/// Checks the conditions and makes the writes within `write`; an error means that it must not be committed.
fn apply(write: &WriteTransaction, transaction: &Transaction) -> Result<Revision, StoreError> {
    let mut meta = write.open_table(META).map_err(StoreError::storage)?;
    let mut versions = write.open_table(VERSIONS).map_err(StoreError::storage)?;
    let mut log = write.open_table(LOG).map_err(StoreError::storage)?;
    let latest = number(&meta, "revision")?;
    for condition in &transaction.conditions {
        let modified = entry(&versions, condition.key(), latest)?.map(|e| e.modified);
        if !condition.holds(modified) {
            return Err(StoreError::Conflict(condition.key().to_owned()));
        }
    }
    let revision = latest + 1;
    let is_later = |write: &Write| KEYS_SINCE_2.iter().any(|prefix| write.key().starts_with(prefix));
    if transaction.writes.iter().any(is_later) && number(&meta, "format")? < FORMAT {
        meta.insert("format", FORMAT).map_err(StoreError::storage)?;
    }
    for change in &transaction.writes {
        let (key, value) = match change {
            Write::Put(key, value) => (key.as_str(), Some(value.as_slice())),
            Write::Delete(key) => (key.as_str(), None),
        };
        if value.is_none() && entry(&versions, key, latest)?.is_none() {
            continue;
        }
        versions.insert((key, revision), value).map_err(StoreError::storage)?;
        log.insert((revision, key), ()).map_err(StoreError::storage)?;
    }
    meta.insert("revision", revision).map_err(StoreError::storage)?;
    let compacted = number(&meta, "compacted")?;
    // One revision for each commit, so that no commit pays for many.
    for old in compacted + 1..=revision.saturating_sub(HISTORY_REVISIONS_MAX) {
        compact(&mut versions, &mut log, old)?;
        meta.insert("compacted", old).map_err(StoreError::storage)?;
    }
    Ok(revision)
}

/// Drops what only revisions before `revision` show.
fn compact(
    versions: &mut Table<'_, VersionKey, VersionValue>,
    log: &mut Table<'_, LogKey, ()>,
    revision: Revision,
) -> Result<(), StoreError> {
    let mut keys = Vec::new();
    for row in log.range((revision, "")..(revision + 1, "")).map_err(StoreError::storage)? {
        keys.push(row.map_err(StoreError::storage)?.0.value().1.to_owned());
    }
    for key in keys.iter().map(String::as_str) {
        versions.retain_in((key, 0)..(key, revision), |_, _| false).map_err(StoreError::storage)?;
        let removed =
            versions.get((key, revision)).map_err(StoreError::storage)?.is_some_and(|v| v.value().is_none());
        if removed {
            versions.remove((key, revision)).map_err(StoreError::storage)?;
        }
        log.remove((revision, key)).map_err(StoreError::storage)?;
    }
    Ok(())
}
