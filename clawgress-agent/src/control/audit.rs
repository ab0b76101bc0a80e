//! The audit log: every record of both planes, durable before it is acknowledged.
//!
//! Appends from all sides are gathered and written with one fsync (group commit). While the disk refuses,
//! nothing is acknowledged: L7's bounded queue then fills, and it denies. This module must never
//! acknowledge what could be lost, nor rewrite what it has acknowledged.

mod search;
mod segments;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
pub use clawgress_api::RECORD_BYTES_MAX;
use clawgress_api::clock::Clock;
use clawgress_api::{AuditRecord, Plane, RecordKind};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::time::Instant;

pub use self::search::{Filter, FilterError};
pub use self::segments::Bounds;
use self::segments::{Damage, Segments};

/// Longest time an append waits for company before it is written and synced.
const GROUP_COMMIT_TIME_MAX: Duration = Duration::from_millis(50);
/// Bytes at which a group is written without waiting longer.
const GROUP_COMMIT_BYTES_MAX: usize = 1 << 20;
/// Appends waiting to be written; the next one waits for its place, and its sender with it.
const QUEUE_MAX: usize = 256;
/// Most records in one append.
pub const APPEND_RECORDS_MAX: usize = 4096;
/// Records a follower may be behind before it gets a gap instead of them.
const FOLLOW_MAX: usize = 4096;
/// Longest wait until what follows on records is durable, before they are queued: many times what a disk takes. Whoever
/// handed them over has them still, and does so again.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(5);
/// Searches at once: each reads the disk as fast as it can.
const SEARCHES_MAX: usize = 2;

/// Why records were not kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuditError {
    /// The disk.
    #[error("the audit log can't be written: {0}")]
    Disk(String),
    /// Not records.
    #[error("not an audit record: {0}")]
    Record(String),
    /// Too many.
    #[error("an append has at most {APPEND_RECORDS_MAX} records of {RECORD_BYTES_MAX} bytes")]
    TooLarge,
    /// What follows on them is not durable.
    #[error("what follows on the records can't be stored: {0}")]
    Unsettled(String),
    /// The role is stopping.
    #[error("the audit log is closed")]
    Closed,
}

/// A record that has become durable, with its number in the log.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Number, from 0.
    pub sequence: u64,
    /// The record.
    pub record: Arc<AuditRecord>,
}

/// A handle on the log. The last one that is dropped ends it, after everything queued is written.
#[derive(Clone, Debug)]
pub struct AuditLog {
    queue: mpsc::Sender<Append>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    node: String,
    clock: Arc<dyn Clock>,
    started: Timestamp,
    /// Records this role has made itself.
    made: AtomicU64,
    /// Number of the next record: all before it are durable.
    next: AtomicU64,
    failure: Mutex<Option<String>>,
    unsettled: Mutex<Unsettled>,
    kept: broadcast::Sender<Kept>,
    observer: OnceLock<Observer>,
    marker: OnceLock<Box<dyn Marker>>,
    searches: Semaphore,
}

/// What followed on records and was not durable in time, so that they were not taken.
#[derive(Clone, Debug, Default)]
pub struct Unsettled {
    /// How often, since this process began.
    pub times: u64,
    /// Why, if that is so yet.
    pub why: Option<String>,
}

/// Takes note of every record that has become durable, and holds up none.
struct Observer(Box<dyn Fn(&AuditRecord) + Send + Sync>);

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

/// What follows on a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Follows {
    /// Nothing.
    #[default]
    Nothing,
    /// What is put into it, and no more.
    Told,
    /// Something that must be durable no later than it.
    Due,
}

/// Puts into records of other processes, before they are kept, what those can't know.
#[async_trait]
pub trait Marker: std::fmt::Debug + Send + Sync {
    /// Puts it into this one. What follows.
    fn mark(&self, record: &mut AuditRecord) -> Follows;
    /// Makes durable what must be so no later than the records that were marked.
    ///
    /// # Errors
    /// If it can't be, in words: the records are not taken then.
    async fn settle(&self) -> Result<(), String>;
    /// Whether all of that is durable, or nobody waits for it any more.
    fn is_settled(&self) -> bool;
}

/// Records of another process as they are kept.
#[derive(Clone, Debug)]
pub struct Marked {
    lines: Vec<Vec<u8>>,
    records: Vec<Arc<AuditRecord>>,
    /// What follows on them.
    follows: Follows,
}

/// Waits for an append to become durable.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<(), AuditError>>);

#[derive(Debug)]
struct Append {
    lines: Vec<Vec<u8>>,
    records: Vec<Arc<AuditRecord>>,
    done: oneshot::Sender<Result<(), AuditError>>,
}

// === impl AuditLog ===

impl AuditLog {
    /// Opens the log in `directory`. A torn tail is set aside, and lines that this version can't read stay;
    /// both are told as gaps.
    ///
    /// # Errors
    /// If the directory or its segments can't be read or written.
    pub async fn open(
        directory: PathBuf,
        bounds: Bounds,
        node: String,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Self> {
        let place = directory.clone();
        let opened = tokio::task::spawn_blocking(move || Segments::open(&place, bounds)).await;
        let (segments, damage) = opened.map_err(std::io::Error::other)??;
        let (queue, appends) = mpsc::channel(QUEUE_MAX);
        let shared = Arc::new(Shared {
            directory,
            node,
            started: clock.now(),
            clock,
            made: AtomicU64::new(0),
            next: AtomicU64::new(segments.next()),
            failure: Mutex::new(None),
            unsettled: Mutex::default(),
            kept: broadcast::Sender::new(FOLLOW_MAX),
            observer: OnceLock::new(),
            marker: OnceLock::new(),
            searches: Semaphore::new(SEARCHES_MAX),
        });
        let log = AuditLog { queue, shared };
        // The writer holds the queue weakly: it ends when nobody else has it.
        tokio::spawn(write(segments, appends, log.queue.downgrade(), Arc::clone(&log.shared)));
        let gaps = log.gaps(&damage);
        if !gaps.is_empty() {
            log.append(gaps).await.map_err(std::io::Error::other)?;
        }
        Ok(log)
    }

    fn gaps(&self, damage: &Damage) -> Vec<AuditRecord> {
        let gap = |count, detail| {
            let mut gap = self.record(RecordKind::Gap, 0);
            gap.count = Some(count);
            gap.detail = Some(detail);
            gap
        };
        let torn = damage.torn.iter().map(|torn| {
            let (bytes, kept) = (torn.bytes, torn.kept.display());
            // Without its end it was never acknowledged; and it is one at most, each ends with a line break.
            gap(1, format!("the end of the log was torn: {bytes} bytes that were never acknowledged are in `{kept}` now"))
        });
        let unreadable = Some(damage.unreadable).filter(|n| *n > 0).map(|n| {
            gap(n, format!("{n} records could not be read: they are damaged or of a later version, and stay in the log"))
        });
        torn.chain(unreadable).collect()
    }

    /// A record of this role itself.
    #[must_use]
    pub fn record(&self, kind: RecordKind, generation: u64) -> AuditRecord {
        let shared = &self.shared;
        let time = shared.clock.now();
        // The start tells lives of this process apart, the number its records.
        let number = shared.made.fetch_add(1, Ordering::Relaxed);
        let request = format!("control-{}-{number}", shared.started.as_microsecond());
        AuditRecord::new(time, &shared.node, kind, Plane::Control, request, generation)
    }

    /// Appends; when it returns `Ok`, the records survive a power cut.
    ///
    /// # Errors
    /// If they could not be made durable.
    pub async fn append(&self, records: Vec<AuditRecord>) -> Result<(), AuditError> {
        let lines = records.iter().map(AuditRecord::encode).collect::<Result<Vec<_>, _>>();
        let lines = lines.map_err(|e| AuditError::Record(e.to_string()))?;
        let records = records.into_iter().map(Arc::new).collect();
        self.queue_marked(Marked { lines, records, follows: Follows::Nothing }).await?.durable().await
    }

    /// Queues records as other processes sent them (one JSON document each), in order; the order of
    /// calls is the order in the log.
    ///
    /// # Errors
    /// If they are too many, too large, or not records, or what follows on them can't be made durable; then none is kept.
    pub async fn queue_documents(&self, documents: Vec<Vec<u8>>) -> Result<Pending, AuditError> {
        let marked = self.mark_documents(documents)?;
        self.queue_marked(marked).await
    }

    /// Has records, as other processes sent them, marked. What follows on them follows once each time this is called,
    /// however often they are queued then.
    ///
    /// # Errors
    /// If they are too many, or not records; then nothing follows on any.
    pub fn mark_documents(&self, documents: Vec<Vec<u8>>) -> Result<Marked, AuditError> {
        if documents.len() > APPEND_RECORDS_MAX {
            return Err(AuditError::TooLarge);
        }
        let parse = |document: &Vec<u8>| serde_json::from_slice::<AuditRecord>(document);
        let records = documents.iter().map(parse).collect::<Result<Vec<_>, _>>();
        let records = records.map_err(|e| AuditError::Record(e.to_string()))?;
        let marker = self.shared.marker.get();
        let mut marked = Marked { lines: Vec::new(), records: Vec::new(), follows: Follows::Nothing };
        for (document, mut record) in documents.into_iter().zip(records) {
            let follows = marker.map_or(Follows::Nothing, |marker| marker.mark(&mut record));
            marked.follows = marked.follows.max(follows);
            // A line break is the one thing that is legal JSON and would break the segment.
            let line = if follows != Follows::Nothing {
                record.encode().map_err(|e| AuditError::Record(e.to_string()))?
            } else if document.contains(&b'\n') {
                serde_json::to_vec(&record).map_err(|e| AuditError::Record(e.to_string()))?
            } else {
                document
            };
            marked.lines.push(line);
            marked.records.push(Arc::new(record));
        }
        Ok(marked)
    }

    /// Queues records that were marked, once what follows on them is durable.
    ///
    /// # Errors
    /// As [`queue_documents`](Self::queue_documents).
    pub async fn queue_marked(&self, marked: Marked) -> Result<Pending, AuditError> {
        let Marked { lines, records, follows } = marked;
        if lines.len() > APPEND_RECORDS_MAX || lines.iter().any(|l| l.len() > RECORD_BYTES_MAX) {
            return Err(AuditError::TooLarge);
        }
        if follows == Follows::Due {
            self.settle(records.len()).await?;
        }
        let (done, pending) = oneshot::channel();
        self.queue.send(Append { lines, records, done }).await.map_err(|_| AuditError::Closed)?;
        Ok(Pending(pending))
    }

    /// Waits until what follows on `records` is durable, for so long.
    async fn settle(&self, records: usize) -> Result<(), AuditError> {
        if self.shared.marker.get().is_none() {
            return Ok(());
        }
        // A task of its own, which goes on behind the time-out: what it commits is committed in any case, one after the other
        // and each once, however often this is asked again.
        let shared = Arc::clone(&self.shared);
        let settling = tokio::spawn(async move {
            match shared.marker.get() {
                Some(marker) => marker.settle().await,
                None => Ok(()),
            }
        });
        let settled = match tokio::time::timeout(SETTLE_TIME_MAX, settling).await {
            Ok(Ok(settled)) => settled,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it took more than {} s", SETTLE_TIME_MAX.as_secs())),
        };
        let mut unsettled = self.shared.unsettled.lock();
        unsettled.why = settled.as_ref().err().cloned();
        if let Err(why) = &settled {
            unsettled.times += 1;
            let times = unsettled.times;
            tracing::error!(
                why,
                records,
                times,
                "records are not taken, since what follows on them can't be stored"
            );
        }
        settled.map_err(AuditError::Unsettled)
    }

    /// What followed on records and could not be made durable.
    #[must_use]
    pub fn unsettled(&self) -> Unsettled {
        let mut unsettled = self.shared.unsettled.lock();
        // Those who handed over the records may be gone, or what followed on them was done meanwhile.
        if self.shared.marker.get().is_none_or(|marker| marker.is_settled()) {
            unsettled.why = None;
        }
        unsettled.clone()
    }

    /// Has `observer` see every record that becomes durable from now on, in order; the first one stays.
    pub fn observe(&self, observer: impl Fn(&AuditRecord) + Send + Sync + 'static) {
        let _ = self.shared.observer.set(Observer(Box::new(observer)));
    }

    /// Has `marker` put into each record of other processes, before it is kept, what they can't know; the first one stays.
    pub fn mark(&self, marker: impl Marker + 'static) {
        let _ = self.shared.marker.set(Box::new(marker));
    }

    /// Records that are durable, ever.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.shared.next.load(Ordering::Acquire)
    }

    /// Why the log doesn't take records at the moment, if so.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.lock().clone()
    }

    /// The newest records that match, oldest first, among those with numbers below `before`.
    ///
    /// # Errors
    /// If the segments can't be read.
    pub async fn search(&self, filter: Filter, before: u64) -> Result<Vec<Kept>, AuditError> {
        let shared = Arc::clone(&self.shared);
        let Ok(_place) = self.shared.searches.acquire().await else { return Err(AuditError::Closed) };
        let found = tokio::task::spawn_blocking(move || search::newest(&shared.directory, &filter, before));
        let found = found.await.map_err(|e| AuditError::Disk(e.to_string()))?;
        found.map_err(|e| AuditError::Disk(e.to_string()))
    }

    /// Records as they become durable, and the number of the first one that this receiver will see: what
    /// is before it can be searched.
    #[must_use]
    pub fn follow(&self) -> (broadcast::Receiver<Kept>, u64) {
        let receiver = self.shared.kept.subscribe();
        // Records that become durable between these two lines are on both sides: their numbers tell.
        (receiver, self.records())
    }
}

impl Pending {
    /// Waits until the records survive a power cut.
    ///
    /// # Errors
    /// If they could not be made durable.
    pub async fn durable(self) -> Result<(), AuditError> {
        self.0.await.unwrap_or(Err(AuditError::Closed))
    }
}

/// The only writer: gathers, writes, syncs, then tells.
async fn write(
    segments: Segments,
    mut appends: mpsc::Receiver<Append>,
    queue: mpsc::WeakSender<Append>,
    shared: Arc<Shared>,
) {
    let mut segments = Some(segments);
    while let Some(first) = appends.recv().await {
        let mut group = gather(first, &mut appends).await;
        let lines: Vec<Vec<u8>> = group.iter_mut().flat_map(|a| std::mem::take(&mut a.lines)).collect();
        let Some(mut writer) = segments.take() else { return };
        let written = tokio::task::spawn_blocking(move || {
            let result = writer.append(&lines);
            (writer, result)
        });
        // A panic in there would leave the segment in an unknown state: the log stays closed.
        let Ok((mut writer, result)) = written.await else { return };
        let next = writer.next();
        let removed = writer.take_removed();
        segments = Some(writer);
        let result = result.map_err(|e| AuditError::Disk(e.to_string()));
        if let Err(error) = &result {
            tracing::error!(%error, "nothing is acknowledged until the disk takes records again");
        }
        *shared.failure.lock() = result.as_ref().err().map(ToString::to_string);
        if result.is_ok() {
            let records: u64 = group.iter().map(|a| a.records.len() as u64).sum();
            // First the number, then the news: whoever subscribes in between finds them by search.
            shared.next.store(next, Ordering::Release);
            tell(&group, next - records, &shared);
        }
        for append in group {
            let _ = append.done.send(result.clone());
        }
        if let (Some(queue), Some(removed)) = (queue.upgrade(), removed) {
            report_removal(AuditLog { queue, shared: Arc::clone(&shared) }, removed);
        }
    }
}

/// What retention has removed is told by the log itself.
fn report_removal(log: AuditLog, removed: Range<u64>) {
    let mut change = log.record(RecordKind::Change, 0);
    change.count = Some(removed.end - removed.start);
    change.detail = Some(format!(
        "audit records {} to {} removed: the log has reached its retention bound",
        removed.start,
        removed.end - 1
    ));
    // Not here: the writer must not wait for itself.
    tokio::spawn(async move {
        if let Err(error) = log.append(vec![change]).await {
            tracing::error!(%error, "the removal of old records is not in the log");
        }
    });
}

async fn gather(first: Append, appends: &mut mpsc::Receiver<Append>) -> Vec<Append> {
    let until = Instant::now() + GROUP_COMMIT_TIME_MAX;
    let size = |append: &Append| append.lines.iter().map(Vec::len).sum::<usize>();
    let mut bytes = size(&first);
    let mut group = vec![first];
    while bytes < GROUP_COMMIT_BYTES_MAX {
        match tokio::time::timeout_at(until, appends.recv()).await {
            Ok(Some(append)) => {
                bytes += size(&append);
                group.push(append);
            }
            Ok(None) | Err(_) => break,
        }
    }
    group
}

fn tell(group: &[Append], first: u64, shared: &Shared) {
    let records = group.iter().flat_map(|a| &a.records);
    if let Some(Observer(observer)) = shared.observer.get() {
        records.clone().for_each(|record| observer(record));
    }
    if shared.kept.receiver_count() == 0 {
        return;
    }
    for (sequence, record) in (first..).zip(records) {
        let _ = shared.kept.send(Kept { sequence, record: Arc::clone(record) });
    }
}

#[cfg(test)]
mod tests;
