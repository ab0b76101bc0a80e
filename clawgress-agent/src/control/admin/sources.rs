//! Shared sources.

use std::sync::Arc;

use clawgress_api::SharedSourceChange;
use clawgress_api::proto::{Document, Documents, Empty, Name};
use clawgress_identity::{GroupId, SharedSource};
use tonic::{Request, Response, Status};

use super::{Answer, caller, detached, document, documents, json, parsed, source_id, status};
use crate::control::Control;
use crate::control::groups::besides;
use crate::control::model::Draft;
use crate::control::prepare::Manner;

/// Adds a shared source.
pub(super) async fn add(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let by = caller(&request);
    let new: SharedSource = parsed(request)?;
    let control = Arc::clone(control);
    let added = detached(async move {
        let now_s = control.clock.now().as_second();
        let detail = |(after, registered): &(SharedSource, Vec<GroupId>)| {
            format!("shared source added by {by}: is {}{}", json(after), besides(registered))
        };
        let edit = |draft: &mut Draft| {
            let registered = draft.register_tenant(new.id.tenant(), now_s)?;
            Ok((draft.add_source(new.clone(), &control.governor.config)?, registered))
        };
        let ((added, _), _) = control.governor.change(detail, edit).await?;
        control.settled().await;
        Ok(added)
    });
    document(&added.await?)
}

/// The shared sources.
pub(super) fn list(control: &Arc<Control>) -> Result<Response<Documents>, Status> {
    documents(control.governor.live().model.shared.values())
}

/// One shared source.
pub(super) fn show(control: &Arc<Control>, request: Request<Name>) -> Answer {
    let id = source_id(&request.into_inner())?;
    document(control.governor.live().model.shared_source(&id).map_err(status)?)
}

/// Changes where a shared source is, or whom it may present.
pub(super) async fn set(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let by = caller(&request);
    let change: SharedSourceChange = parsed(request)?;
    let control = Arc::clone(control);
    let set = detached(async move {
        let detail = |(before, after): &(SharedSource, SharedSource)| {
            let mut told = Vec::new();
            if before.may_present != after.may_present {
                let (from, to) = (json(&before.may_present), json(&after.may_present));
                told.push(format!("may present {to} instead of {from}"));
            }
            if before.at != after.at {
                told.push(format!("is at {} instead of {}", json(&after.at), json(&before.at)));
            }
            format!("shared source `{}` {}, by {by}", before.id, told.join(" and "))
        };
        let edit = |draft: &mut Draft| draft.set_source(&change, &control.governor.config);
        let manner = Manner::of_setting(control.governor.live().model.is_narrowed_by(&change));
        let ((_, after), _) = control.governor.change_by(manner, detail, edit).await?;
        control.settled().await;
        Ok(after)
    });
    document(&set.await?)
}

/// Removes a shared source.
pub(super) async fn remove(
    control: &Arc<Control>,
    request: Request<Name>,
) -> Result<Response<Empty>, Status> {
    let by = caller(&request);
    let id = source_id(&request.into_inner())?;
    let control = Arc::clone(control);
    detached(async move {
        let detail = |before: &SharedSource| format!("shared source removed by {by}: was {}", json(before));
        control.governor.withdraw(detail, |draft| draft.remove_source(&id)).await?;
        control.settled().await;
        Ok(Response::new(Empty {}))
    })
    .await
}
