//! Audit records on their way to control: a decision before the first byte goes on, an outcome at the
//! end.
//!
//! INVARIANT: nothing is allowed whose decision could not be queued together with room for its
//! outcome. What can't be queued is denied, counted, and reported as a gap. The queue is bounded by records and by bytes, and so is each
//! agent's share of it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use std::{io, thread};

use clawgress_api::clock::Clock;
use clawgress_api::proto::audit_sink_client::AuditSinkClient;
use clawgress_api::proto::{AuditAck, AuditBatch};
use clawgress_api::{AgentRef, AuditRecord, MESSAGE_BYTES_MAX, Plane, RecordKind};
use tokio::runtime;
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::limit;

use self::shares::{Place, Shares};

mod shares;

/// Batches between this module and the stream's task: acknowledgement is what limits the flow.
const STREAM_MAX: usize = 4;
/// How often the end of the queue is looked at while the process waits to stop.
const FLUSH_POLL: Duration = Duration::from_millis(20);

/// Where records are put.
#[derive(Clone, Debug)]
pub struct Audit {
    queue: mpsc::Sender<Queued>,
    shared: Arc<Shared>,
}

/// A record that waits, as it is carried: whoever serves has encoded it, and needs no copy of it for the record of its outcome.
#[derive(Debug)]
struct Queued {
    json: Box<[u8]>,
    /// How many records are missing where this one is.
    stands_for: u64,
    held: Held,
}

/// Bytes that count as taken, until this is dropped.
#[derive(Debug)]
struct Held {
    bytes: usize,
    /// Whose share they are of.
    place: Place,
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
    /// About how many bytes they take, with what is reserved for outcomes, and how many that may be.
    bytes: AtomicUsize,
    bytes_max: usize,
    shares: Shares,
    /// Makes request ids unique over restarts.
    prefix: String,
    requests: AtomicU64,
    /// Whether somebody waited for the log in vain since it took anything.
    stands: AtomicBool,
    /// Batches that it took.
    acked: AtomicU64,
    /// Whose turn it is to look whether there is room, by the agent's number.
    turns: Box<[tokio::sync::Mutex<()>]>,
}

/// Room for one more record.
#[derive(Debug)]
pub struct Room {
    permit: OwnedPermit<Queued>,
    held: Held,
}

/// Takes records to control.
#[derive(Debug)]
pub struct Carrier {
    queue: mpsc::Receiver<Queued>,
    shared: Arc<Shared>,
    /// Taken from the queue for the next batches, and when the next is made at last.
    gathered: Vec<Queued>,
    due: Option<Instant>,
    unacked: VecDeque<Sent>,
    sequence: u64,
}

/// A batch that is not acknowledged.
#[derive(Debug)]
struct Sent {
    batch: AuditBatch,
    /// How many records of the queue it was made of.
    taken: u64,
    /// How many records are missing if it is: those in it, and those that its gaps count.
    stands_for: u64,
    /// What counts as taken until then.
    _held: Vec<Held>,
}

/// The queue, for `connections_max` connections at once, and what empties it. A connection that is read has two records
/// open at a time: its own, and that of a request in it; and there are as many streams of HTTP/2 at most. One agent has what its
/// `agent_connections_max` connections take, and a part of the rest.
#[must_use]
pub fn queue(
    node: &str,
    clock: Arc<dyn Clock>,
    (connections_max, agent_connections_max): (usize, usize),
    instance: &str,
) -> (Audit, Carrier) {
    let records_max = limit::AUDIT_BACKLOG + 3 * connections_max;
    let agent_max = (limit::AUDIT_BACKLOG / limit::AUDIT_BACKLOG_PART)
        .saturating_add(agent_connections_max.saturating_mul(3))
        .min(records_max);
    let (sender, receiver) = mpsc::channel(records_max);
    let shared = Arc::new(Shared {
        node: node.to_owned(),
        clock,
        lost: AtomicU64::new(0),
        pending: AtomicU64::new(0),
        bytes: AtomicUsize::new(0),
        bytes_max: records_max.saturating_mul(limit::AUDIT_RECORD_BYTES),
        shares: Shares::new(agent_max.saturating_mul(limit::AUDIT_RECORD_BYTES)),
        prefix: instance.to_owned(),
        requests: AtomicU64::new(0),
        stands: AtomicBool::new(false),
        acked: AtomicU64::new(0),
        turns: std::iter::repeat_with(tokio::sync::Mutex::default).take(limit::AUDIT_TURNS).collect(),
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

    /// Puts `record`, and reserves room for one more of its kind. `None` if there isn't room for both.
    #[must_use]
    pub fn put_and_reserve(&self, record: &AuditRecord) -> Option<Room> {
        let permit = self.queue.clone().try_reserve_owned().ok()?;
        let (place, json) = (Place::of(record), self.shared.fit(record)?);
        let (own, held) = (self.shared.take(place, json.len())?, self.shared.take(place, json.len())?);
        let queued = Queued { json, stands_for: stands_for(record), held: own };
        self.try_send(queued).then_some(Room { permit, held })
    }

    /// Waits while an agent is so far ahead of the log that its records, or everybody's, are about to find no room: what is only
    /// slow is not denied. Not for long, and not at all once somebody waited in vain for a log that took nothing, until it moves again.
    pub async fn keep_pace(&self, agent: u32) {
        if self.shared.is_ahead(agent) {
            // Boxed: hardly anybody waits, and all would hold what that takes.
            Box::pin(self.shared.wait(agent)).await;
        }
    }

    fn try_put(&self, record: &AuditRecord) -> bool {
        let Some(json) = self.shared.fit(record) else { return false };
        let Some(held) = self.shared.take(Place::of(record), json.len()) else { return false };
        self.try_send(Queued { json, stands_for: stands_for(record), held })
    }

    fn try_send(&self, queued: Queued) -> bool {
        // Counted first, so that nobody sees it carried before it was counted.
        self.shared.pending.fetch_add(1, Ordering::AcqRel);
        let put = self.queue.try_send(queued).is_ok();
        if !put {
            self.shared.pending.fetch_sub(1, Ordering::AcqRel);
        }
        put
    }

    /// Counts records that were never put, and whose they would have been.
    pub fn lose(&self, agent: Option<&AgentRef>, n: u64) {
        if !self.shared.shares.lose(agent, n) {
            self.shared.lose(n);
        }
    }

    /// Records that so many exchanges, of which each has two records, are not recorded one by one; with why, and whose they
    /// are if that is known.
    pub fn gap(&self, agent: Option<AgentRef>, exchanges: u64, why: &str) {
        let mut record = self.record(0);
        record.kind = RecordKind::Gap;
        let count = exchanges.saturating_mul(2);
        (record.count, record.detail) = (Some(count), Some(why.to_owned()));
        record.agent.clone_from(&agent);
        if !self.try_put(&record) {
            self.lose(agent.as_ref(), count);
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

// === impl Shared ===

impl Shared {
    fn is_ahead(&self, agent: u32) -> bool {
        let margin = limit::AUDIT_MARGIN * limit::AUDIT_RECORD_BYTES;
        let is_full = || self.bytes.load(Ordering::Relaxed).saturating_add(margin) > self.bytes_max;
        (!self.shares.has(agent, margin) || is_full()) && !self.stands.load(Ordering::Relaxed)
    }

    async fn wait(&self, agent: u32) {
        let (until, acked) = (Instant::now() + limit::AUDIT_PACE_MAX, self.acked.load(Ordering::Relaxed));
        let Some(turns) = self.turns.get(agent as usize % self.turns.len().max(1)) else { return };
        // One looks for all of an agent: they go on one by one, as there is room, and don't keep the processor from who makes it.
        if let Ok(_turn) = tokio::time::timeout_at(until, turns.lock()).await {
            while self.is_ahead(agent) && Instant::now() < until {
                tokio::time::sleep(limit::AUDIT_PACE).await;
            }
        }
        if self.is_ahead(agent) && self.acked.load(Ordering::Relaxed) == acked {
            self.stands.store(true, Ordering::Relaxed);
        }
    }

    /// A record as it is carried. Once half of all bytes are taken, large ones are cut, so that few agents with long paths leave
    /// room for the others. `None` for what can't be encoded.
    fn fit(&self, record: &AuditRecord) -> Option<Box<[u8]>> {
        let is_half_full = self.bytes.load(Ordering::Relaxed) >= self.bytes_max / 2;
        if is_half_full { encoded_within(record, limit::AUDIT_RECORD_BYTES) } else { encoded(record) }
    }

    fn lose(&self, n: u64) {
        self.lost.fetch_add(n, Ordering::Relaxed);
    }

    fn take(self: &Arc<Self>, place: Place, bytes: usize) -> Option<Held> {
        let is_within = self.shares.take(place, of_share(bytes));
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        // Given back where it is too much.
        let held = Held { bytes, place, shared: Arc::clone(self) };
        (is_within && before.saturating_add(bytes) <= self.bytes_max).then_some(held)
    }
}

// === impl Held ===

impl Held {
    /// Has at least so many bytes, whether there is room for them or not.
    fn grow(&mut self, bytes: usize) {
        let more = bytes.saturating_sub(self.bytes);
        let of_share = of_share(self.bytes + more) - of_share(self.bytes);
        self.shared.bytes.fetch_add(more, Ordering::Relaxed);
        let _ = self.shared.shares.take(self.place, of_share);
        self.bytes += more;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.shared.shares.give(self.place, of_share(self.bytes));
    }
}

/// What a record of so many bytes takes of a share: there is room for as many small ones as for those of this size.
fn of_share(bytes: usize) -> usize {
    bytes.max(limit::AUDIT_RECORD_BYTES)
}

// === impl Room ===

impl Room {
    /// Puts the record there is room for. It is cut if it takes more than the one before it.
    pub fn put(self, record: &AuditRecord) {
        let Room { permit, mut held } = self;
        let Some(json) = encoded_within(record, held.bytes.max(limit::AUDIT_RECORD_BYTES)) else {
            return held.shared.lose(stands_for(record));
        };
        held.grow(json.len());
        held.shared.pending.fetch_add(1, Ordering::AcqRel);
        permit.send(Queued { json, stands_for: stands_for(record), held });
    }
}

// === impl Carrier ===

impl Carrier {
    /// Carries records on a thread of its own until every [`Audit`] is gone: those that serve are not woken for them. `channel` is
    /// called there. What is returned is an error once that thread has ended, whatever it ended of.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn start(
        self,
        channel: impl FnOnce() -> Channel + Send + 'static,
    ) -> io::Result<oneshot::Receiver<()>> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (ends, ended) = oneshot::channel();
        let carry = move || {
            // Dropped last, also where this panics.
            let _ends = ends;
            runtime.block_on(async { self.run(channel()).await });
        };
        thread::Builder::new().name("audit".to_owned()).spawn(carry)?;
        Ok(ended)
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
                // Sent again, it would be refused for ever, and all that come after it would wait.
                Err(status) if matches!(status.code(), Code::InvalidArgument | Code::OutOfRange) => {
                    tracing::error!(%status, "control refuses audit records");
                    self.give_up_first();
                }
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
        let parse = |queued: Queued| serde_json::from_slice(&queued.json).expect("a record");
        std::iter::from_fn(|| self.queue.try_recv().ok().map(parse)).collect()
    }

    /// Carries over one stream; what was not acknowledged on the last one goes first.
    async fn stream(&mut self, mut client: AuditSinkClient<Channel>) -> Result<(), tonic::Status> {
        let (batches, receiver) = mpsc::channel(limit::AUDIT_UNACKED_MAX + STREAM_MAX);
        for Sent { batch, .. } in &self.unacked {
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
                && let Some(Sent { batch, .. }) = self.unacked.back()
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
        while self.unacked.front().is_some_and(|sent| sent.batch.sequence <= ack.sequence) {
            if let Some(sent) = self.unacked.pop_front() {
                self.shared.pending.fetch_sub(sent.taken, Ordering::AcqRel);
                self.shared.acked.fetch_add(1, Ordering::Relaxed);
                self.shared.stands.store(false, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Has a gap take the place of the batch that is acknowledged next, which control refuses.
    fn give_up_first(&mut self) {
        let Some((sequence, lost)) = self.unacked.front().map(|s| (s.batch.sequence, s.stands_for)) else {
            return;
        };
        let mut gap = self.gap(format!("{}-refused-{sequence}", self.shared.prefix), lost);
        gap.detail = Some("control refused these records".to_owned());
        let (Ok(gap), Some(first)) = (gap.encode(), self.unacked.front_mut()) else { return };
        tracing::error!(sequence, lost, "audit records are lost, and counted in a gap");
        first.batch.records = vec![gap];
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
        self.close();
        true
    }

    /// Makes a batch of what is gathered, as far as there is room for it in one.
    fn close(&mut self) {
        let mut lost = self.shared.lost.swap(0, Ordering::Relaxed);
        let (mut records, mut bytes, mut taken, mut told) = (Vec::new(), 0, 0, 0);
        for Queued { json, stands_for, .. } in &self.gathered {
            if taken > 0 && bytes + json.len() > limit::AUDIT_BATCH_BYTES {
                break;
            }
            bytes += json.len();
            told += *stands_for;
            taken += 1;
        }
        let mut held = Vec::with_capacity(taken);
        for queued in self.gathered.drain(..taken) {
            records.push(queued.json.into_vec());
            held.push(queued.held);
        }
        if lost > 0 {
            let request = format!("{}-gap-{}", self.shared.prefix, self.sequence);
            match self.gap(request, lost).encode() {
                Ok(json) => records.push(json),
                // Told with the next batch.
                Err(_) => self.shared.lose(std::mem::take(&mut lost)),
            }
        }
        lost += self.tell_lost(&mut records);
        self.sequence += 1;
        let batch = AuditBatch { sequence: self.sequence, records };
        self.unacked.push_back(Sent { batch, taken: taken as u64, stands_for: told + lost, _held: held });
    }

    /// Adds a gap for each agent that lost records; how many they count.
    fn tell_lost(&self, records: &mut Vec<Vec<u8>>) -> u64 {
        let mut told = 0;
        for (n, (agent, lost)) in self.shared.shares.lost().enumerate() {
            let mut gap = self.gap(format!("{}-gap-{}-{n}", self.shared.prefix, self.sequence), lost);
            gap.agent = Some(agent);
            gap.detail = Some("records of this agent beyond its share of the queue".to_owned());
            match gap.encode() {
                Ok(json) => {
                    records.push(json);
                    told += lost;
                }
                // Told with the next batch.
                Err(_) => self.shared.lose(lost),
            }
        }
        told
    }

    /// Takes as many records as there is room for in a batch, and waits for one.
    async fn take(&mut self) -> usize {
        let room = limit::AUDIT_BATCH.saturating_sub(self.gathered.len());
        self.queue.recv_many(&mut self.gathered, room).await
    }

    fn gap(&self, request: String, lost: u64) -> AuditRecord {
        let (now, node) = (self.shared.clock.now(), &self.shared.node);
        let mut record = AuditRecord::new(now, node, RecordKind::Gap, Plane::L7, request, 0);
        record.count = Some(lost);
        record
    }
}

/// A record as it is carried; `None` for what can't be encoded, which nothing is.
fn encoded(record: &AuditRecord) -> Option<Box<[u8]>> {
    thread_local! {
        /// Of the size of the largest record so far, so that each is copied once, to a place of its own size.
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let encoded = SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        record.encode_to(scratch).map(|()| Box::from(&scratch[..]))
    });
    encoded.inspect_err(|error| tracing::error!(%error, "an audit record can't be encoded")).ok()
}

/// The same of a record that is cut if it takes more than `bytes_max`.
fn encoded_within(record: &AuditRecord, bytes_max: usize) -> Option<Box<[u8]>> {
    // Mostly it is the path, which need not be encoded to know that.
    let is_long = record.destination.path.as_ref().is_some_and(|path| path.len() > bytes_max);
    if !is_long {
        let json = encoded(record)?;
        if json.len() <= bytes_max {
            return Some(json);
        }
    }
    let mut record = record.clone();
    record.cut();
    encoded(&record)
}

/// How many records are missing where this one is.
fn stands_for(record: &AuditRecord) -> u64 {
    match record.kind {
        RecordKind::Gap => record.count.unwrap_or(1),
        _ => 1,
    }
}

#[cfg(test)]
mod tests;
