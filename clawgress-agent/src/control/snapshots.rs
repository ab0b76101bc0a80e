//! Snapshots to L7: each worker gets the live generation and every later one, and says which it runs.
//! A worker that is slow gets the newest only. One that is lost is a straggler as long as it may decide by what it had.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clawgress_api::L7Status;
use clawgress_api::config::Config;
use clawgress_api::proto::snapshots_server::Snapshots;
use clawgress_api::proto::{Applied, Hello, Prepared, Snapshot, WatchRequest, watch_request::Kind};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::govern::{Generation, Governor};
use super::prepare::Candidate;
use super::providers::Providers;
use super::quarantine::{Quarantined, Quarantines};
use crate::peer::Peer;

mod lost;

pub(super) use self::lost::Lost;
use self::lost::{Known, Memory};

/// Workers at once: one for each core of a large machine.
const WORKERS_MAX: usize = 64;
/// Longest wait for a worker's hello.
const HELLO_TIME_MAX: Duration = Duration::from_secs(10);
/// After what time a worker that refused a generation denies (`limit::STRAGGLE` of L7), and a beat.
const REFUSED_TIME_MAX: Duration = Duration::from_millis(5_500);
/// How often somebody who waits for lost workers looks whether they ended: their connections break a moment before.
const LOST_LOOK: Duration = Duration::from_millis(50);
/// Longest name or message of a worker that is kept, bytes.
const TEXT_BYTES_MAX: usize = 512;

/// The L7 workers that are connected, and those that were lost.
#[derive(Debug)]
pub struct Workers {
    pub(super) connected: watch::Sender<BTreeMap<u64, Worker>>,
    next: AtomicU64,
    pub(super) lost: Mutex<Vec<Lost>>,
    /// For how long a worker goes on by its last snapshot while control is away.
    stale_after: Duration,
    /// Where they are remembered for the next life of this role.
    memory: Memory,
    /// What they are to prepare now.
    candidate: watch::Sender<Option<Arc<Candidate>>>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) status: L7Status,
    /// The process at the other end, as the kernel names it here.
    pid: Option<i32>,
    /// Whether it can prepare, and how that went: the candidate's number, and why not, if it can't.
    prepares: bool,
    prepared: Option<(u64, Option<String>)>,
    /// Number of the quarantine it has.
    quarantine: Option<u64>,
    /// The generation that it refused last, and since when it has refused all: it decides by the former one for
    /// [`REFUSED_TIME_MAX`] more, and then denies.
    refused: Option<(u64, Instant)>,
}

/// How a worker stands to what is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stands {
    Settled,
    /// Settled by itself then.
    Until(Instant),
    Waits,
}

/// What a worker is sent next.
enum Next {
    /// What is live.
    Live,
    /// What it is to prepare, if that still is.
    Candidate(Option<Arc<Candidate>>),
}

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub governor: Arc<Governor>,
    pub quarantines: Arc<Quarantines>,
    pub providers: Arc<Providers>,
    pub workers: Arc<Workers>,
    pub stop: CancellationToken,
}

/// A worker's place in [`Workers`], given up when dropped.
struct Place {
    workers: Arc<Workers>,
    number: u64,
    prepares: bool,
}

#[tonic::async_trait]
impl Snapshots for Service {
    type WatchStream = ReceiverStream<Result<Snapshot, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let pid = request.extensions().get::<Peer>().and_then(|peer| peer.pid);
        let mut requests = request.into_inner();
        let hello = match tokio::time::timeout(HELLO_TIME_MAX, requests.message()).await {
            Ok(Ok(Some(WatchRequest { kind: Some(Kind::Hello(hello)) }))) => hello,
            Ok(Err(status)) => return Err(status),
            Ok(Ok(_)) => return Err(Status::invalid_argument("a worker says hello first")),
            Err(_) => return Err(Status::deadline_exceeded("a worker says hello first")),
        };
        let place = Workers::admit(&self.workers, hello, pid)?;
        // One waits in the channel, one is being sent: a slow worker never has a backlog.
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(self.clone().serve(place, requests, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

// === impl Service ===

impl Service {
    async fn serve(
        self,
        place: Place,
        mut requests: Streaming<WatchRequest>,
        sender: mpsc::Sender<Result<Snapshot, Status>>,
    ) {
        let (mut live, mut quarantined) = (self.governor.watch(), self.quarantines.watch());
        let mut candidates = self.workers.candidate.subscribe();
        live.mark_changed();
        if candidates.borrow().is_some() {
            candidates.mark_changed();
        }
        // What it said that it holds.
        let mut held = None;
        // The generation whose document was sent last.
        let mut sent = None;
        // What the worker wants confirmed, and what was.
        let (mut asked, mut confirmed) = (0, 0);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = sender.closed() => return,
                request = requests.message() => match request {
                    Ok(Some(WatchRequest { kind: Some(Kind::Applied(applied)) })) => place.acknowledge(applied),
                    Ok(Some(WatchRequest { kind: Some(Kind::Draining(_)) })) => place.drain(),
                    Ok(Some(WatchRequest { kind: Some(Kind::Refused(refused)) })) => place.refuse(refused.why),
                    Ok(Some(WatchRequest { kind: Some(Kind::Confirm(confirm)) })) => asked = confirm.number,
                    Ok(Some(WatchRequest { kind: Some(Kind::Prepared(prepared)) })) => {
                        held = prepared.error.is_empty().then_some(prepared.number);
                        place.prepared(prepared);
                    }
                    Ok(Some(WatchRequest { kind: Some(Kind::UnknownKey(key)) })) => {
                        self.providers.unknown_key(&key.issuer);
                    }
                    Ok(Some(_)) => {
                        let _ = sender.try_send(Err(Status::invalid_argument("only acknowledgements now")));
                        return;
                    }
                    Ok(None) | Err(_) => return,
                },
                // First a place in the channel, then the newest generation: what is skipped was never sent,
                // and a change is marked as seen only when it is.
                permit = async {
                    let permit = sender.reserve().await.ok()?;
                    // What is live before what may come: a worker holds one candidate, and may have to commit it first.
                    tokio::select! {
                        biased;
                        changed = live.changed() => changed.ok()?,
                        changed = quarantined.changed() => changed.ok()?,
                        () = std::future::ready(()), if asked != confirmed => {}
                        changed = candidates.changed(), if place.prepares => {
                            changed.ok()?;
                            let candidate = candidates.borrow().clone();
                            // It may have become live while this was looked at.
                            if sent == Some(live.borrow().model.generation) {
                                return Some((permit, Next::Candidate(candidate)));
                            }
                            candidates.mark_changed();
                        }
                    }
                    Some((permit, Next::Live))
                } => {
                    let Some((permit, next)) = permit else { return };
                    if let Next::Candidate(candidate) = next {
                        if let Some(candidate) = candidate {
                            permit.send(Ok(to_prepare(&candidate)));
                        }
                        continue;
                    }
                    let generation = Arc::clone(&live.borrow_and_update());
                    let isolated = Arc::clone(&quarantined.borrow_and_update());
                    // By what is sent, not by what woke this: either may change in between.
                    let number = generation.model.generation;
                    let is_new = sent.replace(number) != Some(number);
                    confirmed = asked;
                    let held = if is_new { held.take() } else { None };
                    let snapshot = snapshot(&generation, &isolated, is_new, held);
                    permit.send(Ok(Snapshot { confirms: asked, ..snapshot }));
                }
            }
        }
    }
}

/// What a worker is sent. Its generation's document goes along only if the worker was not sent it before, be it to prepare
/// it and `held` since.
fn snapshot(generation: &Generation, quarantined: &Quarantined, is_new: bool, held: Option<u64>) -> Snapshot {
    let commit = held.filter(|candidate| *candidate == generation.candidate).unwrap_or(0);
    let is_sent = is_new && commit == 0;
    Snapshot {
        generation: generation.model.generation,
        document: if is_sent { generation.snapshot.to_vec() } else { Vec::new() },
        quarantined: quarantined.indices().collect(),
        quarantine: quarantined.serial,
        confirms: 0,
        prepare: 0,
        commit,
    }
}

fn to_prepare(candidate: &Candidate) -> Snapshot {
    let Candidate { number, generation, .. } = *candidate;
    Snapshot { generation, document: candidate.snapshot.to_vec(), prepare: number, ..Snapshot::default() }
}

// === impl Workers ===

impl Workers {
    /// With no worker yet but those that are remembered, as lost; each goes on by its last snapshot for so long when
    /// control is away.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let memory = Memory::new(config.node.state_dir.join("control").join("workers.json"));
        let stale_after = Duration::from_secs(config.l7.snapshot_stale_s_max);
        // It may take a moment to notice.
        let lost = memory.recall(stale_after + REFUSED_TIME_MAX);
        let is_any_lost = !lost.is_empty();
        let workers = Workers {
            connected: watch::Sender::default(),
            next: AtomicU64::new(0),
            lost: Mutex::new(lost),
            stale_after,
            memory,
            candidate: watch::Sender::new(None),
        };
        if is_any_lost {
            // Until when they may decide: it does not begin anew with each life of this role.
            let _ = workers.remember();
        }
        workers
    }

    /// The workers, in the order in which they came.
    #[must_use]
    pub fn list(&self) -> Vec<L7Status> {
        self.connected.borrow().values().map(|w| w.status.clone()).collect()
    }

    /// Whether every worker runs this generation or a later one, also those that were lost and may decide.
    pub(super) fn all_run(&self, generation: u64) -> bool {
        // Both at once: one that comes or goes in between is in neither, or in the other.
        let connected = self.connected.borrow();
        let lost = self.lost.lock();
        connected.values().all(|w| w.status.generation >= generation)
            && lost.iter().all(|l| l.status.generation >= generation || !l.may_decide())
    }

    /// Waits until no worker decides by a generation before this one: each runs it, or refused it and denies by now, or
    /// is lost and ended.
    pub async fn settled(&self, generation: u64) {
        let stands = |w: &Worker| match w.refused {
            _ if w.status.generation >= generation => Stands::Settled,
            Some((number, since)) if number >= generation => Stands::Until(since + REFUSED_TIME_MAX),
            _ => Stands::Waits,
        };
        self.stand(stands, |lost| lost.status.generation >= generation).await;
    }

    /// Waits until every worker has the quarantine of this number.
    pub async fn isolated(&self, serial: u64) {
        let has = |quarantine: Option<u64>| quarantine.is_some_and(|q| q >= serial);
        let stands = |w: &Worker| if has(w.quarantine) { Stands::Settled } else { Stands::Waits };
        self.stand(stands, |lost| has(lost.quarantine)).await;
    }

    /// Waits until every worker stands settled, and all of the lost ended or are so far. Both are looked at together: one
    /// that is lost, or comes back, in between is not missed.
    async fn stand(&self, stands: impl Fn(&Worker) -> Stands, is_so_far: impl Fn(&Lost) -> bool) {
        let mut workers = self.connected.subscribe();
        loop {
            let next = {
                let connected = workers.borrow_and_update();
                let lost = self.lost.lock();
                let now = Instant::now();
                let is_waited_for = |stands: &Stands| match stands {
                    Stands::Settled => false,
                    Stands::Waits => true,
                    Stands::Until(at) => *at > now,
                };
                let all: Vec<Stands> = connected.values().map(&stands).filter(is_waited_for).collect();
                let look = || lost.iter().any(|lost| lost.may_decide() && !is_so_far(lost));
                let until =
                    all.iter().filter_map(|s| if let Stands::Until(at) = s { Some(*at) } else { None });
                match until.min() {
                    _ if all.contains(&Stands::Waits) => None,
                    None if look() => Some(now + LOST_LOOK),
                    None => return,
                    Some(at) => Some(at),
                }
            };
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = workers.changed() => if changed.is_err() { return },
                () = due => {}
            }
        }
    }

    /// Has the next life of this role know who is there, or that it does not. Whether that is so.
    fn remember(&self) -> bool {
        self.memory.keep(|moment| {
            let connected = self.connected.borrow();
            let lost = self.lost.lock();
            let lost = lost.iter().map(|lost| Known::lost(lost, moment));
            let there = connected.values().map(|w| Known::there(w.status.clone(), w.pid));
            there.chain(lost).collect()
        })
    }

    /// Has the workers prepare what may come, but those that refused what is live. One that has not said yet that it runs it
    /// is asked, too: it may be a moment behind.
    ///
    /// # Errors
    /// If one can't, in words.
    pub(super) async fn prepare(&self, candidate: &Arc<Candidate>) -> Result<(), String> {
        let mut workers = self.connected.subscribe();
        let is_asked = |w: &Worker| w.prepares && w.refused.is_none();
        let asked: Vec<u64> =
            workers.borrow().iter().filter(|(_, w)| is_asked(w)).map(|(number, _)| *number).collect();
        if asked.is_empty() {
            return Ok(());
        }
        self.candidate.send_replace(Some(Arc::clone(candidate)));
        // Also where nobody waits any more.
        let _over = Over(&self.candidate);
        let answers = |workers: &BTreeMap<u64, Worker>| -> Vec<Option<Option<String>>> {
            let of =
                |w: &Worker| w.prepared.clone().filter(|(n, _)| *n == candidate.number).map(|(_, why)| why);
            let asked = asked.iter().filter_map(|number| workers.get(number));
            asked.map(|w| of(w).map(|why| why.map(|why| told_of(&w.status, &why)))).collect()
        };
        let is_known = |workers: &BTreeMap<u64, Worker>| {
            let answers = answers(workers);
            answers.iter().flatten().any(Option::is_some) || answers.iter().all(Option::is_some)
        };
        match workers.wait_for(is_known).await {
            Ok(workers) => answers(&workers).into_iter().flatten().flatten().next().map_or(Ok(()), Err),
            Err(_) => Ok(()),
        }
    }

    fn admit(workers: &Arc<Workers>, hello: Hello, pid: Option<i32>) -> Result<Place, Status> {
        let number = workers.next.fetch_add(1, Ordering::Relaxed);
        tracing::info!(
            instance = hello.instance,
            pid = hello.pid,
            version = hello.version,
            "an L7 worker came"
        );
        let instance = bounded(hello.instance);
        let status =
            L7Status { instance, pid: hello.pid, generation: 0, draining: false, refused: None, error: None };
        let prepares = hello.prepares;
        let instance = status.instance.clone();
        let worker = Worker { status, pid, prepares, prepared: None, quarantine: None, refused: None };
        let admitted = workers.connected.send_if_modified(|connected| {
            let room = connected.len() < WORKERS_MAX;
            if room {
                connected.insert(number, worker);
                // Whoever says the same name from the same process is the one that was lost: it is never in neither.
                let is_other = |l: &Lost| (l.pid, &l.status.instance) != (pid, &instance);
                workers.lost.lock().retain(|l| l.may_decide() && is_other(l));
            }
            room
        });
        if !admitted {
            return Err(Status::resource_exhausted(format!("at most {WORKERS_MAX} workers")));
        }
        let place = Place { workers: Arc::clone(workers), number, prepares };
        if !workers.remember() {
            // As if it had gone again: of one that may decide, the next life of this role would know nothing.
            return Err(Status::unavailable(
                "control can't remember who it has: look at its log and at its `state_dir`",
            ));
        }
        Ok(place)
    }
}

/// Ends what workers are to prepare when dropped.
struct Over<'a>(&'a watch::Sender<Option<Arc<Candidate>>>);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

/// Why a worker can't take a generation, for people.
fn told_of(worker: &L7Status, why: &str) -> String {
    let L7Status { instance, pid, .. } = worker;
    format!("L7 worker `{instance}` (pid {pid}) can't take it: {why}")
}

// === impl Place ===

impl Place {
    fn prepared(&self, prepared: Prepared) {
        let Prepared { number, error } = prepared;
        let error = bounded(error);
        self.workers.connected.send_modify(|connected| {
            if let Some(worker) = connected.get_mut(&self.number) {
                worker.prepared = Some((number, (!error.is_empty()).then_some(error)));
            }
        });
    }

    fn drain(&self) {
        self.workers.connected.send_modify(|connected| {
            if let Some(worker) = connected.get_mut(&self.number) {
                tracing::info!(instance = worker.status.instance, "an L7 worker drains");
                worker.status.draining = true;
            }
        });
    }

    /// Notes why the worker gets no listeners; nothing if it does.
    fn refuse(&self, why: String) {
        let why = bounded(why);
        self.workers.connected.send_modify(|connected| {
            if let Some(worker) = connected.get_mut(&self.number) {
                tracing::warn!(
                    instance = worker.status.instance,
                    why,
                    "what an L7 worker says of its listeners"
                );
                worker.status.refused = (!why.is_empty()).then_some(why);
            }
        });
    }

    fn acknowledge(&self, applied: Applied) {
        let Applied { generation, error, quarantine } = applied;
        let error = bounded(error);
        if !error.is_empty() {
            tracing::error!(generation, error, "an L7 worker refused a generation");
        }
        let mut is_other = false;
        self.workers.connected.send_modify(|connected| {
            let Some(worker) = connected.get_mut(&self.number) else { return };
            worker.quarantine = Some(quarantine);
            is_other = error.is_empty() && worker.status.generation != generation;
            if error.is_empty() {
                worker.status.generation = generation;
                worker.status.error = None;
                worker.refused = None;
            } else {
                let since = worker.refused.map_or_else(Instant::now, |(_, since)| since);
                worker.refused = Some((generation, since));
                worker.status.error = Some(format!("generation {generation}: {error}"));
            }
        });
        if is_other {
            let _ = self.workers.remember();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.workers.connected.send_modify(|connected| {
            let Some(Worker { status, pid, quarantine, .. }) = connected.remove(&self.number) else { return };
            tracing::info!(instance = status.instance, "an L7 worker went");
            let since = Instant::now();
            // It may take a moment to notice.
            let until = since + self.workers.stale_after + REFUSED_TIME_MAX;
            // Noted before it is missing, for who looks at both.
            let lost = Lost { status, pid, quarantine, since, until, unknown: None };
            lost.add(&mut self.workers.lost.lock(), WORKERS_MAX);
        });
        // What was remembered before tells of it as connected: then it may decide for longer.
        let _ = self.workers.remember();
    }
}

/// Text of another process, for people: of bounded length, without control characters.
fn bounded(text: String) -> String {
    let mut end = TEXT_BYTES_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().chars().filter(|c| !c.is_control()).collect()
}
