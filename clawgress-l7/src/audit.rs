//! Audit records on their way to control: a decision before the first byte goes on, an outcome at the
//! end.
//!
//! INVARIANT: nothing is allowed whose decision could not be queued together with room for its
//! outcome. What can't be queued is denied, counted, and reported as a gap.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{io, thread};

use clawgress_api::clock::Clock;
use clawgress_api::proto::audit_sink_client::AuditSinkClient;
use clawgress_api::proto::{AuditAck, AuditBatch};
use clawgress_api::{AgentRef, AuditRecord, MESSAGE_BYTES_MAX, Plane, RecordKind};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::sync::mpsc::OwnedPermit;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::limit;

/// Batches between this module and the stream's task: acknowledgement is what limits the flow.
const STREAM_MAX: usize = 4;
/// How often the end of the queue is looked at while the process waits to stop.
const FLUSH_POLL: Duration = Duration::from_millis(20);

/// Where records are put.
#[derive(Clone, Debug)]
pub struct Audit {
    queue: mpsc::Sender<AuditRecord>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    node: String,
    clock: Arc<dyn Clock>,
    /// Records that found no room since the last gap record.
    lost: AtomicU64,
    /// Records put and not yet acknowledged.
    pending: AtomicU64,
    /// Makes request ids unique over restarts.
    prefix: String,
    requests: AtomicU64,
}

/// Room for one more record.
#[derive(Debug)]
pub struct Room {
    permit: OwnedPermit<AuditRecord>,
    shared: Arc<Shared>,
}

/// Takes records to control.
#[derive(Debug)]
pub struct Carrier {
    queue: mpsc::Receiver<AuditRecord>,
    shared: Arc<Shared>,
    /// Taken from the queue for the next batch, and when that is made at last.
    gathered: Vec<AuditRecord>,
    due: Option<Instant>,
    /// With how many records of the queue each stands for.
    unacked: VecDeque<(AuditBatch, u64)>,
    sequence: u64,
}

/// The queue, for `connections_max` connections at once, and what empties it. A connection that is read has two records
/// open at a time: its own, and that of a request in it; and there are as many streams of HTTP/2 at most.
#[must_use]
pub fn queue(node: &str, clock: Arc<dyn Clock>, connections_max: usize, instance: &str) -> (Audit, Carrier) {
    let (sender, receiver) = mpsc::channel(limit::AUDIT_BACKLOG + 3 * connections_max);
    let shared = Arc::new(Shared {
        node: node.to_owned(),
        clock,
        lost: AtomicU64::new(0),
        pending: AtomicU64::new(0),
        prefix: instance.to_owned(),
        requests: AtomicU64::new(0),
    });
    let audit = Audit { queue: sender, shared: Arc::clone(&shared) };
    let (gathered, unacked) = (Vec::new(), VecDeque::new());
    (audit, Carrier { queue: receiver, shared, gathered, due: None, unacked, sequence: 0 })
}

// === impl Audit ===

impl Audit {
    /// A record with a fresh request id.
    #[must_use]
    pub fn record(&self, generation: u64) -> AuditRecord {
        let n = self.shared.requests.fetch_add(1, Ordering::Relaxed);
        let request = format!("{}-{n:x}", self.shared.prefix);
        let now = self.shared.clock.now();
        AuditRecord::new(now, &self.shared.node, RecordKind::Decision, Plane::L7, request, generation)
    }

    /// The clock's time.
    #[must_use]
    pub fn now(&self) -> jiff::Timestamp {
        self.shared.clock.now()
    }

    /// Puts `record`, and reserves room for one more. `None` if there isn't room for both.
    #[must_use]
    pub fn put_and_reserve(&self, record: AuditRecord) -> Option<Room> {
        let permit = self.queue.clone().try_reserve_owned().ok()?;
        self.try_put(record).then(|| Room { permit, shared: Arc::clone(&self.shared) })
    }

    fn try_put(&self, record: AuditRecord) -> bool {
        // Counted first, so that nobody sees it carried before it was counted.
        self.shared.pending.fetch_add(1, Ordering::AcqRel);
        let put = self.queue.try_send(record).is_ok();
        if !put {
            self.shared.pending.fetch_sub(1, Ordering::AcqRel);
        }
        put
    }

    /// Counts records that were never put.
    pub fn lose(&self, n: u64) {
        self.shared.lost.fetch_add(n, Ordering::Relaxed);
    }

    /// Records that so many exchanges, of which each has two records, are not recorded one by one; with why, and whose they
    /// are if that is known.
    pub fn gap(&self, agent: Option<AgentRef>, exchanges: u64, why: &str) {
        let mut record = self.record(0);
        record.kind = RecordKind::Gap;
        let count = exchanges.saturating_mul(2);
        (record.agent, record.count, record.detail) = (agent, Some(count), Some(why.to_owned()));
        if !self.try_put(record) {
            self.lose(count);
        }
    }

    /// Waits until everything put so far is acknowledged, or `limit` has passed; says which.
    pub async fn flush(&self, limit: Duration) -> bool {
        let done = async {
            while self.shared.pending.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(FLUSH_POLL).await;
            }
        };
        tokio::time::timeout(limit, done).await.is_ok()
    }
}

// === impl Room ===

impl Room {
    /// Puts the record there is room for.
    pub fn put(self, record: AuditRecord) {
        self.shared.pending.fetch_add(1, Ordering::AcqRel);
        self.permit.send(record);
    }
}

// === impl Carrier ===

impl Carrier {
    /// Carries records on a thread of its own until every [`Audit`] is gone: those that serve are not woken for them. `channel` is
    /// called there.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn start(self, channel: impl FnOnce() -> Channel + Send + 'static) -> io::Result<()> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let carry = move || runtime.block_on(async { self.run(channel()).await });
        thread::Builder::new().name("audit".to_owned()).spawn(carry).map(drop)
    }

    async fn run(mut self, channel: Channel) {
        let client = AuditSinkClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut pause = limit::REDIAL_FIRST;
        loop {
            // A stream is opened for a first batch: a server may wait for one before it answers.
            if self.unacked.is_empty() && !self.gather().await {
                return;
            }
            let sequence = self.sequence;
            match self.stream(client.clone()).await {
                Ok(()) => return,
                Err(status) => {
                    tracing::warn!(%status, "control does not take audit records; they wait in a bounded queue")
                }
            }
            if self.sequence != sequence {
                pause = limit::REDIAL_FIRST;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(limit::REDIAL_MAX);
        }
    }

    /// What is queued now.
    #[cfg(test)]
    pub fn drain_for_test(&mut self) -> Vec<AuditRecord> {
        std::iter::from_fn(|| self.queue.try_recv().ok()).collect()
    }

    /// Carries over one stream; what was not acknowledged on the last one goes first.
    async fn stream(&mut self, mut client: AuditSinkClient<Channel>) -> Result<(), tonic::Status> {
        let (batches, receiver) = mpsc::channel(limit::AUDIT_UNACKED_MAX + STREAM_MAX);
        for (batch, _) in &self.unacked {
            let _ = batches.try_send(batch.clone());
        }
        let mut acks = client.append(ReceiverStream::new(receiver)).await?.into_inner();
        loop {
            if self.unacked.len() >= limit::AUDIT_UNACKED_MAX {
                self.ack(&mut acks).await?;
                continue;
            }
            let known = self.sequence;
            let open = tokio::select! {
                ack = acks.message() => { self.acked(ack?)?; true }
                open = self.gather() => open,
            };
            if self.sequence != known
                && let Some((batch, _)) = self.unacked.back()
            {
                let gone = |_| tonic::Status::unavailable("the stream ended");
                batches.try_send(batch.clone()).map_err(gone)?;
            }
            if !open {
                while !self.unacked.is_empty() {
                    self.ack(&mut acks).await?;
                }
                return Ok(());
            }
        }
    }

    async fn ack(&mut self, acks: &mut Streaming<AuditAck>) -> Result<(), tonic::Status> {
        let ack = acks.message().await?;
        self.acked(ack)
    }

    fn acked(&mut self, ack: Option<AuditAck>) -> Result<(), tonic::Status> {
        let ack = ack.ok_or_else(|| tonic::Status::unavailable("the stream ended"))?;
        while self.unacked.front().is_some_and(|(b, _)| b.sequence <= ack.sequence) {
            if let Some((_, records)) = self.unacked.pop_front() {
                self.shared.pending.fetch_sub(records, Ordering::AcqRel);
            }
        }
        Ok(())
    }

    /// Takes the next batch from the queue, with what comes a moment later: each batch costs both processes as much as dozens of
    /// records do. `false` if there will be none. Cancel-safe: what was taken is kept.
    async fn gather(&mut self) -> bool {
        if self.gathered.is_empty() && self.take().await == 0 {
            return false;
        }
        if self.gathered.len() + self.queue.len() < limit::AUDIT_BATCH {
            // Sleeps rather than receives: each record would wake this, and that costs more than what it does then.
            sleep_until(*self.due.get_or_insert_with(|| Instant::now() + limit::AUDIT_LINGER)).await;
        }
        if !self.queue.is_empty() && self.gathered.len() < limit::AUDIT_BATCH {
            self.take().await;
        }
        self.due = None;
        if self.gathered.is_empty() {
            return false;
        }
        let taken = self.gathered.len() as u64;
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.gathered.push(self.gap(lost));
        }
        let encode =
            |r: AuditRecord| r.encode().inspect_err(|e| tracing::error!(%e, "a record can't be encoded"));
        let records = self.gathered.drain(..).filter_map(|r| encode(r).ok()).collect();
        self.sequence += 1;
        self.unacked.push_back((AuditBatch { sequence: self.sequence, records }, taken));
        true
    }

    /// Takes as many records as there is room for in a batch, and waits for one.
    async fn take(&mut self) -> usize {
        let room = limit::AUDIT_BATCH.saturating_sub(self.gathered.len());
        self.queue.recv_many(&mut self.gathered, room).await
    }

    fn gap(&self, lost: u64) -> AuditRecord {
        let request = format!("{}-gap-{}", self.shared.prefix, self.sequence);
        let (now, node) = (self.shared.clock.now(), &self.shared.node);
        let mut record = AuditRecord::new(now, node, RecordKind::Gap, Plane::L7, request, 0);
        record.count = Some(lost);
        record
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future as _, poll_fn};
    use std::pin::pin;
    use std::task::Poll;

    use clawgress_api::clock::SystemClock;

    use super::*;

    fn put(audit: &Audit) {
        assert!(audit.try_put(audit.record(1)));
    }

    /// Whether the next batch is there at once; if it isn't, gathering it is given up.
    async fn is_there(carrier: &mut Carrier) -> bool {
        let mut gather = pin!(carrier.gather());
        poll_fn(|cx| Poll::Ready(gather.as_mut().poll(cx).is_ready())).await
    }

    #[tokio::test]
    async fn what_comes_within_a_moment_is_one_batch_and_nothing_taken_is_forgotten() {
        let (audit, mut carrier) = queue("node", Arc::new(SystemClock), 1, "test");
        put(&audit);
        // Given up in the middle, as for an acknowledgement.
        assert!(!is_there(&mut carrier).await);
        put(&audit);
        put(&audit);
        assert!(carrier.gather().await);
        put(&audit);
        assert!(carrier.gather().await);
        let sizes: Vec<usize> = carrier.unacked.iter().map(|(batch, _)| batch.records.len()).collect();
        assert_eq!(sizes, [3, 1]);
    }

    #[tokio::test]
    async fn what_was_put_before_the_end_is_carried() {
        let (audit, mut carrier) = queue("node", Arc::new(SystemClock), 1, "test");
        put(&audit);
        drop(audit);
        assert!(carrier.gather().await);
        assert!(!carrier.gather().await);
    }

    #[tokio::test]
    async fn a_full_batch_waits_for_nothing() {
        let (audit, mut carrier) = queue("node", Arc::new(SystemClock), 1, "test");
        (0..=limit::AUDIT_BATCH).for_each(|_| put(&audit));
        assert!(is_there(&mut carrier).await);
        assert_eq!(carrier.unacked.back().map(|(batch, _)| batch.records.len()), Some(limit::AUDIT_BATCH));
    }
}
