//! Runs of local commands: opened, held while their holder is there, closed.

use std::sync::Arc;
use std::time::Duration;

use clawgress_api::proto::{Empty, Name, NewRun};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Answer, HoldStream, agent_id, caller, detached, document};
use crate::control::Control;
use crate::control::model::Refusal;

/// SHA-256 in hexadecimal digits.
const HASH_DIGITS: usize = 64;

/// Longest wait for the planes to know a run before its command is started: one that begins earlier is nobody to them, and what it
/// tries first is denied.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(20);

/// Opens a run.
pub(super) async fn open(control: &Arc<Control>, request: Request<NewRun>) -> Answer {
    let by = caller(&request);
    let NewRun { name, executable } = request.into_inner();
    let id = agent_id(&Name { name })?;
    let is_hash = executable.len() == HASH_DIGITS && executable.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hash && !executable.is_empty() {
        return Err(Status::invalid_argument("the hash of the executable is no SHA-256"));
    }
    let executable = is_hash.then_some(executable);
    let control = Arc::clone(control);
    document(
        &detached(async move {
            let session = control.runs.open(&id, executable.as_deref(), &by).await?;
            control.settled_within(SETTLE_TIME_MAX).await;
            Ok(session)
        })
        .await?,
    )
}

/// Holds a run for as long as the stream lives; then it is closed.
pub(super) async fn hold(
    control: &Arc<Control>,
    request: Request<Name>,
) -> Result<Response<HoldStream>, Status> {
    let name = request.into_inner().name;
    let control = Arc::clone(control);
    if control.governor.live().model.runs.get(&name).is_none_or(|r| r.closed) {
        return Err(Status::not_found(format!("there is no run `{name}`")));
    }
    if !control.runs.held.lock().insert(name.clone()) {
        return Err(Status::already_exists(format!("run `{name}` is held by somebody else")));
    }
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            () = control.stop.cancelled() => {}
        }
        control.runs.held.lock().remove(&name);
        match control.runs.close(&name, "its holder is gone").await {
            // It was closed properly.
            Ok(()) | Err(Refusal::Missing(_)) => {}
            Err(error) => tracing::error!(%error, run = name, "cannot close a run"),
        }
    });
    Ok(Response::new(ReceiverStream::new(receiver)))
}

/// Closes a run.
pub(super) async fn close(control: &Arc<Control>, request: Request<Name>) -> Result<Response<Empty>, Status> {
    let by = caller(&request);
    let name = request.into_inner().name;
    let control = Arc::clone(control);
    detached(
        async move { control.runs.close(&name, &format!("by {by}")).await.map(|()| Response::new(Empty {})) },
    )
    .await
}
