//! The gRPC service over which control drives the kernel plane.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clawgress_api::proto::datapath_server::Datapath;
use clawgress_api::proto::{
    AuditBatch, DatapathStatus, Empty, KernelGeneration, OpenWorkloadRequest, Workload,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::names::Document;
use super::plane::Plane;
use super::spool::Spool;

/// Batches on their way to control: one being sent, one being made.
const BATCHES_MAX: usize = 2;

/// The service.
#[derive(Clone, Debug)]
pub struct Service {
    plane: Arc<Plane>,
    spool: Arc<Spool>,
    sequence: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Service {
    /// A service in front of `plane`, whose event streams end at `stop`.
    #[must_use]
    pub fn new(plane: Arc<Plane>, spool: Arc<Spool>, stop: CancellationToken) -> Self {
        Service { plane, spool, sequence: Arc::default(), stop }
    }

    fn status(&self) -> Result<Response<DatapathStatus>, Status> {
        let status = self.plane.status().map_err(|e| internal(&e))?;
        let document = serde_json::to_vec(&status).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(DatapathStatus { document }))
    }
}

fn internal(error: &anyhow::Error) -> Status {
    Status::internal(format!("{error:#}"))
}

#[tonic::async_trait]
impl Datapath for Service {
    type EventsStream = Pin<Box<dyn Stream<Item = Result<AuditBatch, Status>> + Send>>;

    async fn apply(&self, request: Request<KernelGeneration>) -> Result<Response<DatapathStatus>, Status> {
        let message = request.into_inner();
        let document: Document = serde_json::from_slice(&message.document)
            .map_err(|e| Status::invalid_argument(format!("the generation's document is malformed: {e}")))?;
        if document.generation != message.generation {
            return Err(Status::invalid_argument("the envelope and the document differ in their generation"));
        }
        let plane = Arc::clone(&self.plane);
        // In a task of its own: a caller that goes away must not leave an apply half done.
        let applied = tokio::spawn(async move { plane.apply(document).await }).await;
        match applied {
            Ok(Ok(())) => self.status(),
            Ok(Err(error)) => Err(Status::failed_precondition(format!("{error:#}"))),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    async fn status(&self, _: Request<Empty>) -> Result<Response<DatapathStatus>, Status> {
        self.status()
    }

    async fn events(&self, _: Request<Empty>) -> Result<Response<Self::EventsStream>, Status> {
        let (sender, receiver) = mpsc::channel(BATCHES_MAX);
        let (spool, sequence, stop) =
            (Arc::clone(&self.spool), Arc::clone(&self.sequence), self.stop.clone());
        tokio::spawn(async move {
            loop {
                let batch = tokio::select! {
                    () = stop.cancelled() => return,
                    () = sender.closed() => return,
                    batch = spool.take() => batch,
                };
                let mut records = Vec::with_capacity(batch.len());
                for record in &batch {
                    match serde_json::to_vec(record) {
                        Ok(bytes) => records.push(bytes),
                        Err(_) => spool.lose(1),
                    }
                }
                let sequence = sequence.fetch_add(1, Ordering::Relaxed) + 1;
                if sender.send(Ok(AuditBatch { sequence, records })).await.is_err() {
                    spool.put_back(batch);
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn open_workload(
        &self,
        request: Request<OpenWorkloadRequest>,
    ) -> Result<Response<Workload>, Status> {
        let request = request.into_inner();
        let opened = self.plane.open_workload(request.agent, &request.name).await;
        let (path, cgroup) = opened.map_err(|e| Status::failed_precondition(format!("{e:#}")))?;
        Ok(Response::new(Workload { cgroup, path: path.to_string_lossy().into_owned() }))
    }

    async fn close_workload(&self, request: Request<Workload>) -> Result<Response<Empty>, Status> {
        let workload = request.into_inner();
        self.plane
            .close_workload(Path::new(&workload.path), workload.cgroup)
            .await
            .map_err(|e| Status::failed_precondition(format!("{e:#}")))?;
        Ok(Response::new(Empty {}))
    }
}
