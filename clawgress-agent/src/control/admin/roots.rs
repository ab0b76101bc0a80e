//! Certificate authorities and trust domains: who is trusted by certificates.

use std::sync::Arc;

use clawgress_api::proto::{Document, Documents, Empty, Name};
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status};

use super::{Answer, caller, detached, document, documents, parsed, root_id, status};
use crate::control::Control;
use crate::control::authorities::Root;
use crate::control::prepare::Manner;

/// Adds who is trusted, or changes it.
pub(super) async fn set<R>(control: &Arc<Control>, request: Request<Document>) -> Answer
where
    R: Root + DeserializeOwned + Send + Sync + 'static,
{
    let by = caller(&request);
    let new: R = parsed(request)?;
    let control = Arc::clone(control);
    let set = detached(async move {
        new.fits(&control.governor.config)?;
        let detail = |before: &Option<R>| {
            let before = before.as_ref().map_or("nothing".to_owned(), R::described);
            format!("{} set by {by}: is {}, was {before}", R::WHAT, new.described())
        };
        let manner = Manner::of_setting(R::all(&control.governor.live().model).contains_key(new.id()));
        control.governor.change_by(manner, detail, |draft| draft.set_root(new.clone())).await?;
        control.settled().await;
        Ok(new)
    });
    document(&set.await?)
}

/// All of a kind.
pub(super) fn list<R: Root>(control: &Arc<Control>) -> Result<Response<Documents>, Status> {
    documents(R::all(&control.governor.live().model).values())
}

/// One of them.
pub(super) fn show<R: Root>(control: &Arc<Control>, request: Request<Name>) -> Answer {
    let id = root_id(&request.into_inner())?;
    document(control.governor.live().model.root::<R>(&id).map_err(status)?)
}

/// Deletes who is trusted.
pub(super) async fn delete<R>(
    control: &Arc<Control>,
    request: Request<Name>,
) -> Result<Response<Empty>, Status>
where
    R: Root + Send + Sync + 'static,
{
    let by = caller(&request);
    let id = root_id(&request.into_inner())?;
    let control = Arc::clone(control);
    detached(async move {
        let detail = |before: &R| format!("{} deleted by {by}: was {}", R::WHAT, before.described());
        control.governor.withdraw(detail, |draft| draft.delete_root::<R>(&id)).await?;
        control.settled().await;
        Ok(Response::new(Empty {}))
    })
    .await
}
