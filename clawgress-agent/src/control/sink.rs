//! Audit records from L7: acknowledged when durable, in order, never before.

use clawgress_api::proto::audit_sink_server::AuditSink;
use clawgress_api::proto::{AuditAck, AuditBatch};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::audit::{AuditError, AuditLog, Pending};

/// Batches of one worker on their way to the disk; the next one waits, and fills the worker's own queue.
const BATCHES_MAX: usize = 64;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub audit: AuditLog,
    pub stop: CancellationToken,
}

#[tonic::async_trait]
impl AuditSink for Service {
    type AppendStream = ReceiverStream<Result<AuditAck, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<AuditBatch>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (queued, waiting) = mpsc::channel(BATCHES_MAX);
        let (sender, receiver) = mpsc::channel(BATCHES_MAX);
        tokio::spawn(queue(request.into_inner(), self.audit.clone(), queued, self.stop.clone()));
        tokio::spawn(acknowledge(waiting, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

type Waiting = (u64, Result<Pending, AuditError>);

async fn queue(
    mut batches: Streaming<AuditBatch>,
    audit: AuditLog,
    queued: mpsc::Sender<Waiting>,
    stop: CancellationToken,
) {
    loop {
        let batch = tokio::select! {
            () = stop.cancelled() => return,
            // Something was not kept, or the worker is gone: no later batch may be acknowledged.
            () = queued.closed() => return,
            batch = batches.message() => batch,
        };
        let Ok(Some(AuditBatch { sequence, records })) = batch else { return };
        let pending = audit.queue_documents(records).await;
        let failed = pending.is_err();
        if queued.send((sequence, pending)).await.is_err() || failed {
            return;
        }
    }
}

async fn acknowledge(mut waiting: mpsc::Receiver<Waiting>, sender: mpsc::Sender<Result<AuditAck, Status>>) {
    while let Some((sequence, pending)) = waiting.recv().await {
        let durable = match pending {
            Ok(pending) => pending.durable().await,
            Err(error) => Err(error),
        };
        let answer = match durable {
            Ok(()) => Ok(AuditAck { sequence }),
            Err(error @ (AuditError::Record(_) | AuditError::TooLarge)) => {
                Err(Status::invalid_argument(format!("batch {sequence}: {error}")))
            }
            Err(error) => Err(Status::unavailable(error.to_string())),
        };
        let failed = answer.is_err();
        if sender.send(answer).await.is_err() || failed {
            return;
        }
    }
}
