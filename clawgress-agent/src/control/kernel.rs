//! The way to the datapath role: pushes each generation until it is applied, again when the role comes
//! back, and takes in the records of the kernel plane. Never decides anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::digest::{SHA256, digest};
use clawgress_api::proto::datapath_client::DatapathClient;
use clawgress_api::proto::{
    AuditAck, Confirmed, Document, Documents, Empty, KernelBatch, KernelGeneration, OpenWorkloadRequest,
    Quarantined as QuarantinedMessage, Workload,
};
use clawgress_api::{DatapathStatus, LearnedAddresses, MESSAGE_BYTES_MAX, RecordKind};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio::time::error::Elapsed;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use super::audit::{AuditError, AuditLog};
use super::govern::{Generation, Governor};
use super::model::{Refusal, RunWorkload};
use super::prepare::Candidate;
use super::quarantine::{Quarantined, Quarantines};

/// First and longest pause before the datapath is tried again: soon enough after a restart, and no spin.
const PAUSE_LEAST: Duration = Duration::from_millis(100);
/// See [`PAUSE_LEAST`].
const PAUSE_MOST: Duration = Duration::from_secs(5);
/// Longest wait for a generation to be applied: a full table of a quarter million entries takes under a second.
const APPLY_TIME_MAX: Duration = Duration::from_secs(30);
/// Longest wait for any other answer.
const CALL_TIME_MAX: Duration = Duration::from_secs(5);
/// Acknowledgements on their way to the datapath; the next batch waits for them.
const ACKS_MAX: usize = 8;
/// Pause before a batch that the audit log didn't take is tried again.
const AUDIT_PAUSE: Duration = Duration::from_secs(1);

/// How often the role is told what is live: a part of the shortest lease.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);
/// How long the kernel plane may stay behind the live generation before that is told as critical: as long as an L7 worker
/// may go on by what it has. Nothing more can be done about it from here: who writes the tables is that role alone.
const BEHIND_TIME_MAX: Duration = Duration::from_secs(5);

/// The way to the datapath role.
#[derive(Debug)]
pub struct Link {
    client: DatapathClient<Channel>,
    state: watch::Sender<State>,
    /// Since when the kernel plane is behind, once that was told.
    behind: Mutex<Option<Instant>>,
    /// Life of the datapath and number of the last batch that is durable here.
    taken: Mutex<(String, u64)>,
}

/// How it stands between control and datapath.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Which of the role's lives this is, as far as it shows from here: it may know nothing of what a former one was told.
    pub life: u64,
    /// The generation it last applied.
    pub applied: u64,
    /// Number of the quarantine it has; none if it is away.
    pub quarantine: Option<u64>,
    /// What it was given to hold: the number of the candidate, and its name there.
    pub(super) held: Option<(u64, Vec<u8>)>,
    /// Why it is away, or what it refused.
    pub trouble: Option<String>,
    /// The generation that it refused, if that is the trouble.
    pub refused: Option<u64>,
}

// === impl Link ===

impl Link {
    /// A way over `channel`.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        let client = DatapathClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let trouble = Some("it has not been reached yet".into());
        Link {
            client,
            state: watch::Sender::new(State { trouble, ..State::default() }),
            behind: Mutex::default(),
            taken: Mutex::default(),
        }
    }

    /// For how long the kernel plane has been behind the live generation, if for longer than it may.
    #[must_use]
    pub fn behind(&self) -> Option<Duration> {
        self.behind.lock().map(|since| since.elapsed())
    }

    /// Tells when the kernel plane stays behind the live generation for longer than it may, and when it is there again,
    /// until `stop`.
    pub async fn watch(&self, governor: &Governor, audit: &AuditLog, stop: CancellationToken) {
        let (mut live, mut state) = (governor.watch(), self.state.subscribe());
        let mut since = None::<Instant>;
        loop {
            let wanted = live.borrow_and_update().model.generation;
            let State { applied, trouble, .. } = state.borrow_and_update().clone();
            let is_told = self.behind.lock().is_some();
            let told = match since {
                _ if applied >= wanted => {
                    since = None;
                    self.behind.lock().take().map(|since| caught_up(wanted, since.elapsed()))
                }
                Some(at) if !is_told && at.elapsed() >= BEHIND_TIME_MAX => {
                    *self.behind.lock() = Some(at);
                    Some(left_behind(wanted, trouble.as_deref()))
                }
                Some(_) => None,
                None => {
                    since = Some(Instant::now());
                    None
                }
            };
            if let Some((detail, severity)) = told {
                let mut record = audit.record(RecordKind::Change, wanted);
                record.detail = Some(detail);
                record.severity = severity.map(str::to_owned);
                if let Err(error) = audit.append(vec![record]).await {
                    tracing::error!(%error, "how far the kernel plane is can't be recorded");
                }
            }
            let due = since.filter(|_| self.behind.lock().is_none()).map(|since| since + BEHIND_TIME_MAX);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = live.changed() => if changed.is_err() { return },
                changed = state.changed() => if changed.is_err() { return },
                () = async {
                    match due {
                        Some(due) => tokio::time::sleep_until(due.into()).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits until the role runs `generation`, unless it is away or has refused.
    pub async fn settled(&self, generation: u64) {
        // What it says of an earlier one says nothing of this.
        let answered = |state: &State| state.refused.map_or(state.trouble.is_some(), |n| n >= generation);
        let settled = |state: &State| state.applied >= generation || answered(state);
        let _ = self.state.subscribe().wait_for(settled).await;
    }

    /// Has the role prepare what may come, if it is there.
    ///
    /// # Errors
    /// If it can't, in words.
    pub(super) async fn prepare(&self, candidate: &Candidate) -> Result<(), String> {
        if self.state.borrow().quarantine.is_none() {
            return Ok(());
        }
        let document = candidate.kernel.to_vec();
        let name = digest(&SHA256, &document).as_ref().to_vec();
        let call = KernelGeneration { generation: candidate.generation, document, name: name.clone() };
        let mut client = self.client.clone();
        match client.prepare(call).await {
            Ok(_) => {
                let held = Some((candidate.number, name));
                self.state.send_modify(|state| state.held = held);
                Ok(())
            }
            Err(status) => match status.code() {
                // It has looked at it, and says so.
                Code::FailedPrecondition | Code::InvalidArgument | Code::ResourceExhausted => {
                    Err(format!("the kernel plane can't take it: {}", status.message()))
                }
                // Gone, or going, or of a version that can't: what is told of those is told of it.
                _ => Ok(()),
            },
        }
    }

    /// Waits until the role has the quarantine of this number, unless it is away.
    pub async fn isolated(&self, serial: u64) {
        let isolated = |state: &State| state.quarantine.map_or(state.trouble.is_some(), |q| q >= serial);
        let _ = self.state.subscribe().wait_for(isolated).await;
    }

    /// The role's own account.
    ///
    /// # Errors
    /// If it can't be reached.
    pub async fn status(&self) -> Result<DatapathStatus> {
        let mut client = self.client.clone();
        let answer =
            tokio::time::timeout(CALL_TIME_MAX, client.status(Empty {})).await.context("no answer")?;
        Ok(serde_json::from_slice(&answer.map_err(told)?.into_inner().document)?)
    }

    /// Makes and registers a cgroup.
    ///
    /// # Errors
    /// If the role is away or refuses.
    pub async fn open_workload(&self, agent: u32, name: &str) -> Result<RunWorkload, Refusal> {
        let mut client = self.client.clone();
        let call = client.open_workload(OpenWorkloadRequest { agent, name: name.to_owned() });
        match tokio::time::timeout(CALL_TIME_MAX, call).await {
            Ok(Ok(answer)) => {
                let Workload { cgroup, path } = answer.into_inner();
                Ok(RunWorkload { cgroup, path })
            }
            Ok(Err(status)) => Err(Refusal::Unavailable(format!(
                "the datapath role made no cgroup for the command: {}",
                status.message()
            ))),
            Err(_) => Err(Refusal::Unavailable("the datapath role doesn't answer".into())),
        }
    }

    /// Removes a cgroup; one that isn't there is removed.
    ///
    /// # Errors
    /// If the role is away or refuses.
    pub async fn close_workload(&self, workload: RunWorkload) -> Result<()> {
        let mut client = self.client.clone();
        let RunWorkload { cgroup, path } = workload;
        match tokio::time::timeout(CALL_TIME_MAX, client.close_workload(Workload { cgroup, path })).await? {
            Err(status) if status.code() != Code::NotFound => Err(told(status)),
            _ => Ok(()),
        }
    }

    /// Live flows, as the role knows them.
    ///
    /// # Errors
    /// If it can't be reached, or doesn't understand the query.
    pub async fn flows(&self, query: Document) -> Result<Document, Status> {
        let mut client = self.client.clone();
        answered(tokio::time::timeout(CALL_TIME_MAX, client.flows(query)).await)
    }

    /// What was dropped lately, as the role knows it.
    ///
    /// # Errors
    /// As [`Link::flows`].
    pub async fn drops(&self, query: Document) -> Result<Documents, Status> {
        let mut client = self.client.clone();
        answered(tokio::time::timeout(CALL_TIME_MAX, client.drops(query)).await)
    }

    /// Rate limits and how much of each is left, as the role knows it.
    ///
    /// # Errors
    /// As [`Link::flows`].
    pub async fn limits(&self, query: Document) -> Result<Documents, Status> {
        let mut client = self.client.clone();
        answered(tokio::time::timeout(CALL_TIME_MAX, client.limits(query)).await)
    }

    /// Lets agents go direct to addresses.
    ///
    /// # Errors
    /// If the role is away, or refuses them.
    pub async fn learn(&self, addresses: &LearnedAddresses) -> Result<(), Status> {
        let json = serde_json::to_vec(addresses).map_err(|error| Status::internal(error.to_string()))?;
        let mut client = self.client.clone();
        answered(tokio::time::timeout(CALL_TIME_MAX, client.learn(Document { json })).await).map(drop)
    }

    /// How it stands, as it changes.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Keeps the datapath at the live generation and takes in its records, until `stop`.
    pub async fn run(
        &self,
        (governor, quarantines): (Arc<Governor>, Arc<Quarantines>),
        audit: AuditLog,
        stop: CancellationToken,
    ) {
        let mut pause = PAUSE_LEAST;
        loop {
            let end = tokio::select! {
                () = stop.cancelled() => return,
                end = self.session(&governor, &quarantines, &audit) => end,
            };
            let trouble = match end {
                Ok(()) => "it has closed the stream of its records".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            let life = self.state.borrow().life + 1;
            let now = State { life, trouble: Some(trouble), ..State::default() };
            let before = self.state.send_replace(now.clone());
            // Said once, not at every attempt.
            if before.trouble != now.trouble {
                tracing::warn!(trouble = now.trouble, "the datapath role is away; trying again");
            }
            if before.applied != 0 {
                pause = PAUSE_LEAST;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE_MOST);
        }
    }

    /// From the first answer of the role until it is gone.
    async fn session(&self, governor: &Governor, quarantines: &Quarantines, audit: &AuditLog) -> Result<()> {
        let status = self.status().await?;
        if status.generation > governor.live().model.generation {
            governor.overtake(status.generation).await?;
        }
        let mut client = self.client.clone();
        let (acks, receiver) = mpsc::channel(ACKS_MAX);
        let events = client.events(ReceiverStream::new(receiver)).await.map_err(told)?.into_inner();
        // Before the generation: it must not let anybody out.
        let mut quarantined = quarantines.watch();
        self.quarantine(&mut quarantined).await?;
        // Any one's end is the session's.
        tokio::select! {
            end = self.take_in(events, acks, audit, governor) => end,
            end = self.push(governor.watch()) => end,
            end = self.isolate(quarantined) => end,
            end = self.confirm(governor) => end,
        }
    }

    /// Says each second which generation is live: without that word the role vouches for its tables no longer.
    async fn confirm(&self, governor: &Governor) -> Result<()> {
        let mut ticks = tokio::time::interval(CONFIRM_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut client = self.client.clone();
        loop {
            ticks.tick().await;
            let generation = governor.live().model.generation;
            let call = client.confirm(Confirmed { generation });
            match tokio::time::timeout(CALL_TIME_MAX, call).await.context("no answer")? {
                Err(status) if status.code() == Code::Unimplemented => {
                    // Of a version that needs no word: its session must not end for that.
                    tracing::warn!("the datapath role is of a version without leases: upgrade it");
                    return std::future::pending().await;
                }
                confirmed => drop(confirmed.map_err(told)?),
            }
        }
    }

    /// Pushes who is quarantined at every change, also while a generation is on its way.
    async fn isolate(&self, mut quarantined: watch::Receiver<Arc<Quarantined>>) -> Result<()> {
        loop {
            quarantined.changed().await?;
            self.quarantine(&mut quarantined).await?;
        }
    }

    async fn quarantine(&self, quarantined: &mut watch::Receiver<Arc<Quarantined>>) -> Result<()> {
        let now = Arc::clone(&quarantined.borrow_and_update());
        let mut client = self.client.clone();
        let call = client.quarantine(QuarantinedMessage { agents: now.indices().collect() });
        tokio::time::timeout(CALL_TIME_MAX, call).await.context("no answer")?.map_err(told)?;
        self.state.send_modify(|state| state.quarantine = Some(now.serial));
        Ok(())
    }

    /// Keeps the kernel plane's records, and acknowledges each batch when it is durable. One whose
    /// acknowledgement got lost comes again; within a life of this process it is known by its number.
    async fn take_in(
        &self,
        mut events: Streaming<KernelBatch>,
        acks: mpsc::Sender<AuditAck>,
        audit: &AuditLog,
        governor: &Governor,
    ) -> Result<()> {
        while let Some(batch) = events.message().await.map_err(told)? {
            let KernelBatch { instance, sequence, records } = batch;
            let is_known = {
                let taken = self.taken.lock();
                taken.0 == instance && sequence <= taken.1
            };
            if !is_known {
                keep(records, audit, governor).await?;
                *self.taken.lock() = (instance, sequence);
            }
            acks.send(AuditAck { sequence }).await.context("it takes no acknowledgements")?;
        }
        Ok(())
    }

    async fn push(&self, mut live: watch::Receiver<Arc<Generation>>) -> Result<()> {
        let mut pause = PAUSE_LEAST;
        loop {
            let generation = Arc::clone(&live.borrow_and_update());
            match self.apply(&generation).await {
                Ok(applied) => {
                    self.state.send_modify(|state| {
                        state.applied = applied;
                        state.trouble = None;
                        state.refused = None;
                    });
                    live.changed().await?;
                    pause = PAUSE_LEAST;
                }
                Err(status) if matches!(status.code(), Code::Unavailable | Code::PermissionDenied) => {
                    bail!(told(status));
                }
                Err(status) => {
                    let number = generation.model.generation;
                    let trouble = format!("it refused generation {number}: {}", status.message());
                    tracing::error!(trouble, "the kernel plane stays at the former generation");
                    self.state.send_modify(|state| {
                        state.trouble = Some(trouble);
                        state.refused = Some(number);
                    });
                    tokio::select! {
                        changed = live.changed() => changed?,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(PAUSE_MOST);
                }
            }
        }
    }

    async fn apply(&self, generation: &Generation) -> Result<u64, Status> {
        let number = generation.model.generation;
        // Nothing has ever been stored: the datapath denies without being told.
        if number == 0 {
            return Ok(0);
        }
        let held = self.state.borrow().held.clone();
        if let Some((_, name)) = held.filter(|(candidate, _)| *candidate == generation.candidate) {
            let committed =
                self.send(KernelGeneration { generation: number, document: Vec::new(), name }).await;
            match committed {
                // It holds nothing any more: it is another process, say.
                Err(status) if status.code() == Code::NotFound => {}
                other => return other.map(|()| number),
            }
        }
        let document = generation.kernel.to_vec();
        let whole = KernelGeneration { generation: number, document, name: Vec::new() };
        self.send(whole).await.map(|()| number)
    }

    async fn send(&self, generation: KernelGeneration) -> Result<(), Status> {
        let mut client = self.client.clone();
        match tokio::time::timeout(APPLY_TIME_MAX, client.apply(generation)).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(Status::deadline_exceeded("no answer")),
        }
    }
}

/// What is told of a kernel plane that stays behind, and how much that matters.
fn left_behind(wanted: u64, trouble: Option<&str>) -> (String, Option<&'static str>) {
    let limit = BEHIND_TIME_MAX.as_secs();
    let why = trouble.map(|why| format!(" ({why})")).unwrap_or_default();
    tracing::error!(generation = wanted, trouble, "the kernel plane stays behind");
    let detail = format!(
        "the kernel plane has not taken generation {wanted} within {limit} s{why}: what it forwards (`direct`) goes on by the former one until its lease is over (`lease_s`), and is denied then; what L7 carries is judged by {wanted}"
    );
    (detail, Some("critical"))
}

/// What is told of one that was behind for so long.
fn caught_up(generation: u64, time: Duration) -> (String, Option<&'static str>) {
    tracing::info!(generation, "the kernel plane has caught up");
    (format!("the kernel plane took generation {generation}, after {} s", time.as_secs()), None)
}

/// An answer that is passed on. That the role is away is not the caller's failure to reach control.
fn answered<T>(answer: Result<Result<Response<T>, Status>, Elapsed>) -> Result<T, Status> {
    match answer {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) if status.code() == Code::InvalidArgument => Err(status),
        Ok(Err(status)) => {
            Err(Status::failed_precondition(format!("the datapath role can't tell: {}", status.message())))
        }
        Err(_) => Err(Status::failed_precondition("the datapath role doesn't answer")),
    }
}

/// A status as an error for people.
#[expect(clippy::needless_pass_by_value, reason = "the shape `map_err` asks for")]
fn told(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

/// Makes records of the datapath durable, or a gap in their place if they are none.
async fn keep(records: Vec<Vec<u8>>, audit: &AuditLog, governor: &Governor) -> Result<()> {
    let count = records.len() as u64;
    // Once, however often they are handed to the disk.
    let marked = audit.mark_documents(records);
    loop {
        let queued = match &marked {
            Ok(marked) => audit.queue_marked(marked.clone()).await,
            Err(error) => Err(error.clone()),
        };
        let kept = match queued {
            Ok(pending) => pending.durable().await,
            Err(error) => Err(error),
        };
        match kept {
            Ok(()) => return Ok(()),
            // The datapath's bounded queue holds what comes meanwhile.
            Err(AuditError::Disk(_) | AuditError::Unsettled(_)) => tokio::time::sleep(AUDIT_PAUSE).await,
            Err(AuditError::Closed) => bail!(AuditError::Closed),
            Err(error) => {
                tracing::error!(%error, count, "records of the datapath are not understood");
                let mut gap = audit.record(RecordKind::Gap, governor.live().model.generation);
                gap.count = Some(count);
                gap.detail = Some(format!("records of the datapath were not kept: {error}"));
                return Ok(audit.append(vec![gap]).await?);
            }
        }
    }
}
