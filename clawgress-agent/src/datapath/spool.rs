//! Audit records on their way to control: a bounded queue. What does not fit is counted and told as a
//! gap, never silently lost.

use std::collections::VecDeque;
use std::sync::Arc;

use clawgress_api::clock::Clock;
use clawgress_api::{AuditRecord, Plane, RecordKind};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Records kept while control is away: some minutes of ordinary traffic, about 8 MiB.
const RECORDS_MAX: usize = 16_384;
/// Records in one batch: a fraction of a gRPC message.
const BATCH_MAX: usize = 512;

/// The queue.
#[derive(Debug)]
pub struct Spool {
    node: String,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    records: VecDeque<AuditRecord>,
    lost: u64,
}

impl Spool {
    /// An empty queue of `node`.
    #[must_use]
    pub fn new(node: &str, clock: Arc<dyn Clock>) -> Self {
        Spool { node: node.to_owned(), clock, inner: Mutex::default(), arrived: Notify::new() }
    }

    /// Appends a record, or counts it.
    pub fn push(&self, record: AuditRecord) {
        let mut inner = self.inner.lock();
        if inner.records.len() < RECORDS_MAX {
            inner.records.push_back(record);
        } else {
            inner.lost += 1;
        }
        drop(inner);
        self.arrived.notify_one();
    }

    /// Counts records that were lost before they got here.
    pub fn lose(&self, count: u64) {
        if count > 0 {
            self.inner.lock().lost += count;
            self.arrived.notify_one();
        }
    }

    /// Appends a change the datapath made by itself.
    pub fn change(&self, detail: String) {
        let mut record = self.record(RecordKind::Change);
        record.detail = Some(detail);
        self.push(record);
    }

    /// Waits for records and takes some, in order; a gap comes after what was kept before it.
    pub async fn take(&self) -> Vec<AuditRecord> {
        loop {
            let batch = self.drain();
            if !batch.is_empty() {
                return batch;
            }
            self.arrived.notified().await;
        }
    }

    /// Puts back what could not be sent, oldest first.
    pub fn put_back(&self, batch: Vec<AuditRecord>) {
        let mut inner = self.inner.lock();
        for record in batch.into_iter().rev() {
            inner.records.push_front(record);
        }
    }

    fn drain(&self) -> Vec<AuditRecord> {
        let mut inner = self.inner.lock();
        let n = inner.records.len().min(BATCH_MAX);
        let mut batch: Vec<_> = inner.records.drain(..n).collect();
        if inner.records.is_empty() && inner.lost > 0 {
            let mut gap = self.record(RecordKind::Gap);
            gap.count = Some(std::mem::take(&mut inner.lost));
            batch.push(gap);
        }
        batch
    }

    fn record(&self, kind: RecordKind) -> AuditRecord {
        let now = self.clock.now();
        let request = format!("k{:x}", now.as_nanosecond());
        AuditRecord::new(now, &self.node, kind, Plane::Kernel, request, 0)
    }
}

#[cfg(test)]
mod tests {
    use clawgress_api::clock::SystemClock;

    use super::*;

    #[tokio::test]
    async fn what_does_not_fit_becomes_one_gap_with_its_count() {
        let spool = Spool::new("n", Arc::new(SystemClock));
        for n in 0..RECORDS_MAX + 3 {
            spool.change(n.to_string());
        }
        spool.lose(2);
        let mut kept = 0;
        loop {
            let batch = spool.take().await;
            kept += batch.iter().filter(|r| r.kind == RecordKind::Change).count();
            if let Some(gap) = batch.iter().find(|r| r.kind == RecordKind::Gap) {
                assert_eq!(gap.count, Some(5));
                break;
            }
        }
        assert_eq!(kept, RECORDS_MAX);
    }
}
