//! The gRPC service over which control drives the kernel plane.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use clawgress_api::LiveQuery;
use clawgress_api::proto::datapath_server::Datapath;
use clawgress_api::proto::{
    AuditAck, Confirmed, DatapathStatus, Document, Documents, Empty, KernelBatch, KernelGeneration,
    OpenWorkloadRequest, Quarantined, Workload,
};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::live;
use super::names;
use super::plane::Plane;
use super::prepared::Prepared;
use super::spool::{Reader, Spool};

/// Batches on their way to control that are not in the connection's window yet.
const BATCHES_MAX: usize = 1;
/// How long a stop waits for control to acknowledge the last records; less than the server's own patience.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);

/// The service.
#[derive(Clone, Debug)]
pub struct Service {
    plane: Arc<Plane>,
    spool: Arc<Spool>,
    stop: CancellationToken,
}

impl Service {
    /// A service in front of `plane`, whose event streams end at `stop`, or as soon as they are dry.
    #[must_use]
    pub fn new(plane: Arc<Plane>, spool: Arc<Spool>, stop: CancellationToken) -> Self {
        Service { plane, spool, stop }
    }

    fn status(&self) -> Result<Response<DatapathStatus>, Status> {
        let status = self.plane.status().map_err(|e| internal(&e))?;
        let document = serde_json::to_vec(&status).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(DatapathStatus { document }))
    }
}

/// The document of a generation.
fn document(message: &KernelGeneration) -> Result<names::Document, Status> {
    let document: names::Document = serde_json::from_slice(&message.document)
        .map_err(|e| Status::invalid_argument(format!("the generation's document is malformed: {e}")))?;
    if document.generation != message.generation {
        return Err(Status::invalid_argument("the envelope and the document differ in their generation"));
    }
    Ok(document)
}

fn internal(error: &anyhow::Error) -> Status {
    Status::internal(format!("{error:#}"))
}

#[tonic::async_trait]
impl Datapath for Service {
    type EventsStream = Pin<Box<dyn Stream<Item = Result<KernelBatch, Status>> + Send>>;

    async fn prepare(&self, request: Request<KernelGeneration>) -> Result<Response<Empty>, Status> {
        let message = request.into_inner();
        let document = document(&message)?;
        let plane = Arc::clone(&self.plane);
        let prepared = tokio::spawn(async move { plane.prepare(message.name, document) }).await;
        match prepared {
            Ok(Ok(())) => Ok(Response::new(Empty {})),
            Ok(Err(error)) => Err(Status::failed_precondition(format!("{error:#}"))),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    async fn apply(&self, request: Request<KernelGeneration>) -> Result<Response<DatapathStatus>, Status> {
        let message = request.into_inner();
        // Taken whatever is applied: what was prepared for a change that was not made is not kept.
        let prepared = self.plane.take_prepared();
        let plane = Arc::clone(&self.plane);
        // In a task of its own: a caller that goes away must not leave an apply half done.
        let applied = if message.document.is_empty() {
            let is_it = |p: &Prepared| p.is(&message.name, message.generation);
            let gone = || Status::not_found("what was prepared is not held any more");
            let prepared = prepared.filter(is_it).ok_or_else(gone)?;
            tokio::spawn(async move { plane.commit(prepared).await }).await
        } else {
            drop(prepared);
            let document = document(&message)?;
            tokio::spawn(async move { plane.apply(document).await }).await
        };
        match applied {
            Ok(Ok(())) => self.status(),
            Ok(Err(error)) => Err(Status::failed_precondition(format!("{error:#}"))),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    async fn status(&self, _: Request<Empty>) -> Result<Response<DatapathStatus>, Status> {
        self.status()
    }

    async fn events(
        &self,
        request: Request<Streaming<AuditAck>>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let (sender, receiver) = mpsc::channel(BATCHES_MAX);
        let (reader, spool) = (self.spool.read(), Arc::clone(&self.spool));
        tokio::spawn(deliver(request.into_inner(), reader, spool, sender, self.stop.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn quarantine(&self, request: Request<Quarantined>) -> Result<Response<Empty>, Status> {
        let agents = request.into_inner().agents.into_iter().collect();
        self.plane.quarantine(&agents).map_err(|e| Status::failed_precondition(format!("{e:#}")))?;
        Ok(Response::new(Empty {}))
    }

    async fn confirm(&self, request: Request<Confirmed>) -> Result<Response<Empty>, Status> {
        self.plane.confirm(request.into_inner().generation).map_err(|e| internal(&e))?;
        Ok(Response::new(Empty {}))
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

    async fn flows(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        let flows = live::flows(&self.plane, &query(request)?)?;
        let json = serde_json::to_vec(&flows).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(Document { json }))
    }

    async fn learn(&self, request: Request<Document>) -> Result<Response<Empty>, Status> {
        let addresses = serde_json::from_slice(&request.into_inner().json)
            .map_err(|e| Status::invalid_argument(format!("the addresses are not understood: {e}")))?;
        let learned = self.plane.learn(&addresses).await;
        learned.map_err(|e| Status::failed_precondition(format!("{e:#}")))?;
        Ok(Response::new(Empty {}))
    }

    async fn drops(&self, request: Request<Document>) -> Result<Response<Documents>, Status> {
        documents(&live::drops(&self.plane, &query(request)?)?)
    }

    async fn limits(&self, request: Request<Document>) -> Result<Response<Documents>, Status> {
        documents(&live::limits(&self.plane, &query(request)?)?)
    }
}

fn documents(documents: &[impl Serialize]) -> Result<Response<Documents>, Status> {
    let json = documents.iter().map(serde_json::to_vec).collect::<Result<_, _>>();
    Ok(Response::new(Documents { json: json.map_err(|e| Status::internal(e.to_string()))? }))
}

fn query(request: Request<Document>) -> Result<LiveQuery, Status> {
    serde_json::from_slice(&request.into_inner().json)
        .map_err(|e| Status::invalid_argument(format!("the query is not understood: {e}")))
}

/// Sends batches and takes their acknowledgements, until either side goes, another stream begins, or all is
/// delivered after `stop`.
async fn deliver(
    mut acks: Streaming<AuditAck>,
    reader: Reader,
    spool: Arc<Spool>,
    sender: mpsc::Sender<Result<KernelBatch, Status>>,
    stop: CancellationToken,
) {
    let patience = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_TIME_MAX).await;
    };
    tokio::pin!(patience);
    while !(stop.is_cancelled() && spool.is_empty()) {
        let next = async {
            let place = sender.reserve().await.ok()?;
            Some((place, reader.next().await?))
        };
        tokio::select! {
            () = &mut patience => {
                tracing::warn!("control has not acknowledged the last records in time: they are lost");
                return;
            }
            () = stop.cancelled(), if !stop.is_cancelled() => {}
            () = sender.closed() => return,
            ack = acks.message() => match ack {
                Ok(Some(ack)) => reader.acknowledge(ack.sequence),
                Ok(None) | Err(_) => return,
            },
            next = next => match next {
                Some((place, batch)) => place.send(Ok(batch)),
                None => return,
            },
        }
    }
}

#[cfg(test)]
mod tests;
