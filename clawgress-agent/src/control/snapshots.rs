//! Snapshots to L7: each worker gets the live generation and every later one, and says which it runs.
//! A worker that is slow gets the newest only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clawgress_api::L7Status;
use clawgress_api::proto::snapshots_server::Snapshots;
use clawgress_api::proto::{Applied, Hello, Snapshot, WatchRequest, watch_request::Kind};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::govern::{Generation, Governor};
use super::providers::Providers;
use super::quarantine::{Quarantined, Quarantines};

/// Workers at once: one for each core of a large machine.
const WORKERS_MAX: usize = 64;
/// Longest wait for a worker's hello.
const HELLO_TIME_MAX: Duration = Duration::from_secs(10);
/// After what time a worker that refused a generation denies (`limit::STRAGGLE` of L7), and a beat.
const REFUSED_TIME_MAX: Duration = Duration::from_millis(5_500);
/// Longest name or message of a worker that is kept, bytes.
const TEXT_BYTES_MAX: usize = 512;

/// The L7 workers that are connected.
#[derive(Debug, Default)]
pub struct Workers {
    connected: watch::Sender<BTreeMap<u64, Worker>>,
    next: AtomicU64,
}

/// One of them.
#[derive(Debug)]
struct Worker {
    status: L7Status,
    /// Number of the quarantine it has.
    quarantine: Option<u64>,
    /// The generation that it refused last, and since when it has refused all: it decides by the former one for
    /// [`REFUSED_TIME_MAX`] more, and then denies.
    refused: Option<(u64, Instant)>,
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
}

#[tonic::async_trait]
impl Snapshots for Service {
    type WatchStream = ReceiverStream<Result<Snapshot, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut requests = request.into_inner();
        let hello = match tokio::time::timeout(HELLO_TIME_MAX, requests.message()).await {
            Ok(Ok(Some(WatchRequest { kind: Some(Kind::Hello(hello)) }))) => hello,
            Ok(Err(status)) => return Err(status),
            Ok(Ok(_)) => return Err(Status::invalid_argument("a worker says hello first")),
            Err(_) => return Err(Status::deadline_exceeded("a worker says hello first")),
        };
        let place = Workers::admit(&self.workers, hello)?;
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
        live.mark_changed();
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
                    tokio::select! {
                        changed = live.changed() => changed.ok()?,
                        changed = quarantined.changed() => changed.ok()?,
                        () = std::future::ready(()), if asked != confirmed => {}
                    }
                    Some(permit)
                } => {
                    let Some(permit) = permit else { return };
                    let generation = Arc::clone(&live.borrow_and_update());
                    let isolated = Arc::clone(&quarantined.borrow_and_update());
                    // By what is sent, not by what woke this: either may change in between.
                    let number = generation.model.generation;
                    let is_new = sent.replace(number) != Some(number);
                    confirmed = asked;
                    permit.send(Ok(Snapshot { confirms: asked, ..snapshot(&generation, &isolated, is_new) }));
                }
            }
        }
    }
}

/// What a worker is sent. Its generation's document goes along only if the worker was not sent it before.
fn snapshot(generation: &Generation, quarantined: &Quarantined, is_new: bool) -> Snapshot {
    Snapshot {
        generation: generation.model.generation,
        document: if is_new { generation.snapshot.clone() } else { Vec::new() },
        quarantined: quarantined.indices().collect(),
        quarantine: quarantined.serial,
        confirms: 0,
    }
}

// === impl Workers ===

impl Workers {
    /// The workers, in the order in which they came.
    #[must_use]
    pub fn list(&self) -> Vec<L7Status> {
        self.connected.borrow().values().map(|w| w.status.clone()).collect()
    }

    /// Waits until no worker decides by a generation before this one: each runs it, or refused it and denies by now.
    pub async fn settled(&self, generation: u64) {
        let runs = |w: &Worker| w.status.generation >= generation;
        let refused = |w: &Worker| w.refused.is_some_and(|(number, _)| number >= generation);
        let told = |workers: &BTreeMap<u64, Worker>| workers.values().all(|w| runs(w) || refused(w));
        let denies_at = match self.connected.subscribe().wait_for(told).await {
            Ok(workers) => {
                let refusing = workers.values().filter(|w| !runs(w)).filter_map(|w| w.refused);
                refusing.map(|(_, since)| since + REFUSED_TIME_MAX).max()
            }
            Err(_) => None,
        };
        if let Some(at) = denies_at {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// Waits until every worker has the quarantine of this number.
    pub async fn isolated(&self, serial: u64) {
        let isolated = |places: &BTreeMap<u64, Worker>| {
            places.values().all(|w| w.quarantine.is_some_and(|q| q >= serial))
        };
        let _ = self.connected.subscribe().wait_for(isolated).await;
    }

    fn admit(workers: &Arc<Workers>, hello: Hello) -> Result<Place, Status> {
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
        let worker = Worker { status, quarantine: None, refused: None };
        let admitted = workers.connected.send_if_modified(|connected| {
            let room = connected.len() < WORKERS_MAX;
            if room {
                connected.insert(number, worker);
            }
            room
        });
        if !admitted {
            return Err(Status::resource_exhausted(format!("at most {WORKERS_MAX} workers")));
        }
        Ok(Place { workers: Arc::clone(workers), number })
    }
}

// === impl Place ===

impl Place {
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
        self.workers.connected.send_modify(|connected| {
            let Some(worker) = connected.get_mut(&self.number) else { return };
            worker.quarantine = Some(quarantine);
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
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.workers.connected.send_modify(|connected| {
            if let Some(worker) = connected.remove(&self.number) {
                tracing::info!(instance = worker.status.instance, "an L7 worker went");
            }
        });
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
