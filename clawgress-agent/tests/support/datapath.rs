//! The datapath's side of its socket, without a kernel: it can refuse, vanish and lie about its
//! generation, which the real one can't be made to do.

#![allow(dead_code, clippy::allow_attributes, reason = "each test takes what it needs of it")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clawgress_agent::peer::{Access, Socket};
use clawgress_agent::serve::{SOCKET_MODE, grpc};
use clawgress_api::config::Config;
use clawgress_api::proto::datapath_server::{Datapath, DatapathServer};
use clawgress_api::proto::{
    AuditAck, Confirmed, DatapathStatus, Document, Documents, Empty, KernelBatch, KernelGeneration,
    OpenWorkloadRequest, Quarantined, Workload,
};
use clawgress_api::{
    AuditRecord, LiveFlow, LiveFlows, LiveLimit, LiveQuery, RecentDrop, TrackingStatus, socket,
};
use clawgress_policy::kernel::KernelTables;
use tokio::net::UnixListener;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::node::Role;

pub type Applied = clawgress_api::KernelGeneration<KernelTables>;

#[derive(Default)]
pub struct Script {
    pub applied: Mutex<Vec<Applied>>,
    pub refusal: Mutex<Option<String>>,
    /// Names and generations of what was to be prepared, and why the next is refused; and whether none is answered.
    pub prepared: Mutex<Vec<(Vec<u8>, Applied)>>,
    pub unprepared: Mutex<Option<String>>,
    pub is_stuck: AtomicBool,
    /// How many generations were applied by their names alone.
    pub by_name: AtomicU64,
    /// What was told, in order: who is quarantined, and how many generations had been applied then.
    pub quarantined: Mutex<Vec<(Vec<u32>, usize)>>,
    pub generation: AtomicU64,
    pub workloads: Mutex<BTreeMap<u64, OpenWorkloadRequest>>,
    /// Where workloads' cgroups are; made and removed by the test.
    pub cgroup: Mutex<PathBuf>,
    /// What is listed, and what was asked for.
    pub live_flows: Mutex<Vec<LiveFlow>>,
    pub recent_drops: Mutex<Vec<RecentDrop>>,
    pub limits: Mutex<Vec<LiveLimit>>,
    pub asked: Mutex<Vec<LiveQuery>>,
    /// What the status counts, and what it says is not enforced, besides the weather.
    pub counters: Mutex<BTreeMap<String, u64>>,
    pub absent: Mutex<Vec<String>>,
    /// The generation that control said last it runs by.
    pub confirmed: AtomicU64,
    /// Whether it is of a version that takes no such word, and how often it was given one.
    pub is_older: AtomicBool,
    pub confirms: AtomicU64,
    events: Mutex<Option<mpsc::Sender<Result<KernelBatch, Status>>>>,
    /// Numbers of the batches that control has acknowledged.
    pub acknowledged: Mutex<Vec<u64>>,
}

struct Service(Arc<Script>);

/// The role's socket. One that has just ended may still be letting go of it.
fn bound(config: &Config) -> UnixListener {
    let begun = std::time::Instant::now();
    loop {
        match socket::bind(&config.datapath_socket(), SOCKET_MODE) {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && begun.elapsed().as_secs() < 10 => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            bound => return bound.expect("bind"),
        }
    }
}

impl Script {
    pub fn serve(self: &Arc<Self>, config: &Config) -> Role {
        let listener = bound(config);
        let access = Access::new(config, Socket::Datapath).expect("access");
        let service = DatapathServer::new(Service(Arc::clone(self)));
        let script = Arc::clone(self);
        Role::start(|stop| async move {
            let end = grpc(listener, access, service, stop).await;
            script.events.lock().await.take();
            end
        })
    }

    pub async fn latest(&self) -> Option<Applied> {
        self.applied.lock().await.last().cloned()
    }

    /// Sends batch `sequence` of the first life.
    pub async fn tell(&self, sequence: u64, records: &[AuditRecord]) {
        let records = records.iter().map(|r| serde_json::to_vec(r).expect("json")).collect();
        let events = self.events.lock().await;
        let batch = KernelBatch { instance: "first".into(), sequence, records };
        events.as_ref().expect("somebody listens").send(Ok(batch)).await.expect("sent");
    }

    async fn status(&self) -> Result<Response<DatapathStatus>, Status> {
        let mut absent = vec!["the weather".to_owned()];
        absent.extend(self.absent.lock().await.iter().cloned());
        let status = clawgress_api::DatapathStatus {
            mode: "kernel".into(),
            generation: self.generation.load(Ordering::SeqCst),
            interfaces: vec![],
            flows: 0,
            flows_max: 10,
            counters: self.counters.lock().await.clone(),
            tracking: Some(TrackingStatus { entries: 3, entries_max: 9, dropped: 2 }),
            absent,
        };
        Ok(Response::new(DatapathStatus { document: serde_json::to_vec(&status).expect("json") }))
    }
}

#[tonic::async_trait]
impl Datapath for Service {
    type EventsStream = ReceiverStream<Result<KernelBatch, Status>>;

    async fn prepare(&self, request: Request<KernelGeneration>) -> Result<Response<Empty>, Status> {
        let KernelGeneration { document, name, .. } = request.into_inner();
        let document = serde_json::from_slice(&document).expect("document");
        self.0.prepared.lock().await.push((name, document));
        if self.0.is_stuck.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        match self.0.unprepared.lock().await.as_ref() {
            Some(why) => Err(Status::failed_precondition(why)),
            None => Ok(Response::new(Empty {})),
        }
    }

    async fn apply(&self, request: Request<KernelGeneration>) -> Result<Response<DatapathStatus>, Status> {
        if let Some(refusal) = self.0.refusal.lock().await.as_ref() {
            return Err(Status::invalid_argument(refusal));
        }
        let KernelGeneration { generation, document, name } = request.into_inner();
        let prepared = self.0.prepared.lock().await.pop();
        let applied: Applied = if document.is_empty() {
            self.0.by_name.fetch_add(1, Ordering::SeqCst);
            let held = prepared.filter(|(held, _)| *held == name);
            held.ok_or_else(|| Status::not_found("not held"))?.1
        } else {
            serde_json::from_slice(&document).expect("document")
        };
        assert_eq!(applied.generation, generation);
        self.0.generation.store(generation, Ordering::SeqCst);
        self.0.applied.lock().await.push(applied);
        self.0.status().await
    }

    async fn status(&self, _: Request<Empty>) -> Result<Response<DatapathStatus>, Status> {
        self.0.status().await
    }

    async fn events(
        &self,
        request: Request<Streaming<AuditAck>>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let (sender, receiver) = mpsc::channel(4);
        *self.0.events.lock().await = Some(sender);
        let (script, mut acks) = (Arc::clone(&self.0), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(ack)) = acks.message().await {
                script.acknowledged.lock().await.push(ack.sequence);
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn quarantine(&self, request: Request<Quarantined>) -> Result<Response<Empty>, Status> {
        let applied = self.0.applied.lock().await.len();
        self.0.quarantined.lock().await.push((request.into_inner().agents, applied));
        Ok(Response::new(Empty {}))
    }

    async fn confirm(&self, request: Request<Confirmed>) -> Result<Response<Empty>, Status> {
        self.0.confirms.fetch_add(1, Ordering::SeqCst);
        if self.0.is_older.load(Ordering::SeqCst) {
            return Err(Status::unimplemented("of an older version"));
        }
        self.0.confirmed.store(request.into_inner().generation, Ordering::SeqCst);
        Ok(Response::new(Empty {}))
    }

    async fn open_workload(
        &self,
        request: Request<OpenWorkloadRequest>,
    ) -> Result<Response<Workload>, Status> {
        let mut workloads = self.0.workloads.lock().await;
        let cgroup = workloads.len() as u64 + 1;
        workloads.insert(cgroup, request.into_inner());
        let path = self.0.cgroup.lock().await.display().to_string();
        Ok(Response::new(Workload { cgroup, path }))
    }

    async fn close_workload(&self, request: Request<Workload>) -> Result<Response<Empty>, Status> {
        match self.0.workloads.lock().await.remove(&request.into_inner().cgroup) {
            Some(_) => Ok(Response::new(Empty {})),
            None => Err(Status::not_found("no such workload")),
        }
    }

    async fn flows(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        self.0.asked.lock().await.push(query(request));
        let listed = self.0.live_flows.lock().await.clone();
        let total = listed.len() as u64;
        let flows = LiveFlows { total, flows: listed };
        Ok(Response::new(Document { json: serde_json::to_vec(&flows).expect("json") }))
    }

    async fn learn(&self, _: Request<Document>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("control does not ask for it"))
    }

    async fn limits(&self, request: Request<Document>) -> Result<Response<Documents>, Status> {
        self.0.asked.lock().await.push(query(request));
        let limits = self.0.limits.lock().await;
        let json = limits.iter().map(|l| serde_json::to_vec(l).expect("json")).collect();
        Ok(Response::new(Documents { json }))
    }

    async fn drops(&self, request: Request<Document>) -> Result<Response<Documents>, Status> {
        self.0.asked.lock().await.push(query(request));
        let drops = self.0.recent_drops.lock().await;
        let json = drops.iter().map(|d| serde_json::to_vec(d).expect("json")).collect();
        Ok(Response::new(Documents { json }))
    }
}

fn query(request: Request<Document>) -> LiveQuery {
    serde_json::from_slice(&request.into_inner().json).expect("query")
}
