//! Audit records on their way to control: a bounded queue that keeps what control has not acknowledged as
//! durable. What does not fit is counted and told as a gap, never silently lost.
//!
//! A batch is delivered at least once: if control dies between writing it and saying so, it comes again,
//! the same in every byte. What is here when this process itself ends is lost, but for the time that
//! [`Spool::is_empty`] lets a stop wait.

use std::collections::VecDeque;
use std::sync::Arc;

use clawgress_api::clock::Clock;
use clawgress_api::proto::KernelBatch;
use clawgress_api::{AuditRecord, Plane, RecordKind};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Records kept while control is away: some minutes of ordinary traffic, about 8 MiB.
const RECORDS_MAX: usize = 16_384;
/// Records in one batch: a fraction of a gRPC message.
const BATCH_MAX: usize = 512;
/// Batches that are sent ahead of their acknowledgement: control gathers them into one sync of its disk.
const UNACKED_MAX: usize = 8;

/// The queue.
#[derive(Debug)]
pub struct Spool {
    node: String,
    clock: Arc<dyn Clock>,
    /// Tells this life of the process from others.
    instance: String,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// Not sent yet.
    records: VecDeque<AuditRecord>,
    lost: u64,
    /// Sent and not acknowledged, oldest first.
    unacked: VecDeque<KernelBatch>,
    /// How many of those the present reader has got.
    sent: usize,
    /// Number of the latest batch.
    sequence: u64,
    /// Number of the latest reader.
    reader: u64,
}

/// The one who takes batches to control. A later one takes its place.
#[derive(Debug)]
pub struct Reader {
    spool: Arc<Spool>,
    number: u64,
}

// === impl Spool ===

impl Spool {
    /// An empty queue of `node`.
    #[must_use]
    pub fn new(node: &str, clock: Arc<dyn Clock>) -> Self {
        let instance = format!("{:x}-{:x}", clock.now().as_nanosecond(), std::process::id());
        Spool { node: node.to_owned(), clock, instance, inner: Mutex::default(), changed: Notify::new() }
    }

    /// Appends a record, or counts it.
    pub fn push(&self, record: AuditRecord) {
        let mut inner = self.inner.lock();
        if inner.kept() < RECORDS_MAX {
            inner.records.push_back(record);
        } else {
            inner.lost += 1;
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Counts records that were lost before they got here.
    pub fn lose(&self, count: u64) {
        if count > 0 {
            self.inner.lock().lost += count;
            self.changed.notify_waiters();
        }
    }

    /// Appends a change the datapath made by itself.
    pub fn change(&self, detail: String) {
        let mut record = self.record(RecordKind::Change);
        record.detail = Some(detail);
        self.push(record);
    }

    /// Begins to deliver, with what is not acknowledged; the reader before it gets nothing more.
    #[must_use]
    pub fn read(self: &Arc<Self>) -> Reader {
        let mut inner = self.inner.lock();
        inner.reader += 1;
        inner.sent = 0;
        let number = inner.reader;
        drop(inner);
        self.changed.notify_waiters();
        Reader { spool: Arc::clone(self), number }
    }

    /// Whether control has acknowledged everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let inner = self.inner.lock();
        inner.kept() == 0 && inner.lost == 0
    }

    /// The next batch for `reader`, if there is one; `None` if it is not the latest reader.
    fn batch(&self, reader: u64) -> Option<Option<KernelBatch>> {
        let mut inner = self.inner.lock();
        if inner.reader != reader {
            return None;
        }
        if inner.sent == inner.unacked.len() {
            if inner.unacked.len() >= UNACKED_MAX {
                return Some(None);
            }
            let records = self.drain(&mut inner);
            if records.is_empty() {
                return Some(None);
            }
            inner.sequence += 1;
            let sequence = inner.sequence;
            inner.unacked.push_back(KernelBatch { instance: self.instance.clone(), sequence, records });
        }
        let batch = inner.unacked.get(inner.sent).cloned();
        inner.sent += 1;
        Some(batch)
    }

    /// Takes some records, in order; a gap comes after what was kept before it.
    fn drain(&self, inner: &mut Inner) -> Vec<Vec<u8>> {
        let n = inner.records.len().min(BATCH_MAX);
        let mut batch = Vec::with_capacity(n + 1);
        let records: Vec<_> = inner.records.drain(..n).collect();
        for record in &records {
            match serde_json::to_vec(record) {
                Ok(bytes) => batch.push(bytes),
                Err(_) => inner.lost += 1,
            }
        }
        if inner.records.is_empty() && inner.lost > 0 {
            let mut gap = self.record(RecordKind::Gap);
            gap.count = Some(inner.lost);
            // Else it stays counted.
            if let Ok(bytes) = serde_json::to_vec(&gap) {
                inner.lost = 0;
                batch.push(bytes);
            }
        }
        batch
    }

    fn record(&self, kind: RecordKind) -> AuditRecord {
        let now = self.clock.now();
        let request = format!("k{:x}", now.as_nanosecond());
        AuditRecord::new(now, &self.node, kind, Plane::Kernel, request, 0)
    }
}

impl Inner {
    /// Records that are here, sent or not.
    fn kept(&self) -> usize {
        self.records.len() + self.unacked.iter().map(|b| b.records.len()).sum::<usize>()
    }
}

// === impl Reader ===

impl Reader {
    /// Waits for the next batch; `None` once there is a later reader. Cancel-safe.
    pub async fn next(&self) -> Option<KernelBatch> {
        loop {
            // Made before the look, so that nothing that comes after it is missed.
            let changed = self.spool.changed.notified();
            if let Some(batch) = self.spool.batch(self.number)? {
                return Some(batch);
            }
            changed.await;
        }
    }

    /// Forgets the batch of this number and all before it: they are durable.
    pub fn acknowledge(&self, sequence: u64) {
        let mut inner = self.spool.inner.lock();
        while inner.unacked.pop_front_if(|b| b.sequence <= sequence).is_some() {
            inner.sent = inner.sent.saturating_sub(1);
        }
        drop(inner);
        self.spool.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use clawgress_api::clock::SystemClock;

    use super::*;

    fn spool() -> Arc<Spool> {
        Arc::new(Spool::new("n", Arc::new(SystemClock)))
    }

    fn records(batch: &KernelBatch) -> Vec<AuditRecord> {
        batch.records.iter().map(|bytes| serde_json::from_slice(bytes).expect("record")).collect()
    }

    #[tokio::test]
    async fn what_does_not_fit_becomes_one_gap_with_its_count() {
        let spool = spool();
        for n in 0..RECORDS_MAX + 3 {
            spool.change(n.to_string());
        }
        spool.lose(2);
        let reader = spool.read();
        let mut kept = 0;
        loop {
            let batch = reader.next().await.expect("the only reader");
            kept += records(&batch).iter().filter(|r| r.kind == RecordKind::Change).count();
            if let Some(gap) = records(&batch).iter().find(|r| r.kind == RecordKind::Gap) {
                assert_eq!(gap.count, Some(5));
                break;
            }
            reader.acknowledge(batch.sequence);
        }
        assert_eq!(kept, RECORDS_MAX);
    }

    #[tokio::test]
    async fn what_is_not_acknowledged_is_kept_within_the_bound_and_comes_again() {
        let spool = spool();
        for n in 0..RECORDS_MAX {
            spool.change(n.to_string());
        }
        let first = spool.read();
        let mut sent = Vec::new();
        for _ in 0..UNACKED_MAX {
            sent.push(first.next().await.expect("the only reader"));
        }
        let wait = std::time::Duration::from_millis(20);
        tokio::time::timeout(wait, first.next()).await.expect_err("not more than the window");
        spool.change("too many".into());
        assert_eq!(spool.inner.lock().lost, 1, "what is sent still counts");
        first.acknowledge(2);

        let second = spool.read();
        assert_eq!(first.next().await, None);
        for batch in sent.drain(2..) {
            assert_eq!(second.next().await, Some(batch));
        }
        // A late word of the first one is as true as the second's.
        first.acknowledge(u64::MAX);
        let next = second.next().await.expect("the latest reader");
        assert_eq!(next.sequence, UNACKED_MAX as u64 + 1);
        let mut last = next;
        while !spool.is_empty() {
            second.acknowledge(last.sequence);
            if !spool.is_empty() {
                last = second.next().await.expect("the latest reader");
            }
        }
        assert_eq!(records(&last).last().expect("gap").count, Some(1));
    }
}
