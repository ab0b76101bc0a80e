//! The audit log, for readers.

use std::sync::Arc;

use clawgress_api::proto::Document;
use clawgress_api::{AuditQuery, AuditRecord, RecordKind};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{SearchStream, parsed};
use crate::control::Control;
use crate::control::audit::{Filter, Kept};

/// Records on their way to one reader of the audit log.
const READER_RECORDS_MAX: usize = 256;

/// Records that match, and those that come if the reader stays.
pub(super) fn search(
    control: &Arc<Control>,
    request: Request<Document>,
) -> Result<Response<SearchStream>, Status> {
    let query: AuditQuery = parsed(request)?;
    let filter = Filter::new(&query).map_err(|e| Status::invalid_argument(e.to_string()))?;
    let (sender, receiver) = mpsc::channel(READER_RECORDS_MAX);
    tokio::spawn(read_audit(Arc::clone(control), filter, query.follow, sender));
    Ok(Response::new(ReceiverStream::new(receiver)))
}

async fn read_audit(
    control: Arc<Control>,
    filter: Filter,
    follow: bool,
    sender: mpsc::Sender<Result<Document, Status>>,
) {
    let (news, start) = control.audit.follow();
    let found = match control.audit.search(filter.clone(), start).await {
        Ok(found) => found,
        Err(error) => {
            let _ = sender.send(Err(Status::unavailable(error.to_string()))).await;
            return;
        }
    };
    for kept in found {
        if sender.send(line(&kept.record)).await.is_err() {
            return;
        }
    }
    if follow {
        follow_audit(&control, &filter, (news, start), &sender).await;
    }
}

/// Sends records as they become durable, from number `start` on; what the reader was too slow for is counted.
async fn follow_audit(
    control: &Control,
    filter: &Filter,
    (mut news, start): (broadcast::Receiver<Kept>, u64),
    sender: &mpsc::Sender<Result<Document, Status>>,
) {
    loop {
        let next = tokio::select! {
            () = control.stop.cancelled() => return,
            () = sender.closed() => return,
            next = news.recv() => next,
        };
        let sent = match next {
            Ok(kept) if kept.sequence < start || !filter.matches(&kept.record) => continue,
            Ok(kept) => sender.send(line(&kept.record)).await,
            Err(RecvError::Lagged(missed)) => {
                let mut gap = control.audit.record(RecordKind::Gap, control.governor.live().model.generation);
                gap.count = Some(missed);
                gap.detail = Some("this reader was too slow; the records are in the log".into());
                sender.send(line(&gap)).await
            }
            Err(RecvError::Closed) => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

fn line(record: &AuditRecord) -> Result<Document, Status> {
    let json = serde_json::to_vec(record).map_err(|e| Status::internal(e.to_string()))?;
    Ok(Document { json })
}
