//! Issuers of tokens, and how their providers are.

use std::sync::Arc;

use clawgress_api::proto::{Document, Documents, Empty, Name};
use clawgress_identity::{GroupId, IssuerRecord};
use tonic::{Request, Response, Status};

use super::{Answer, caller, detached, document, documents, parsed, root_id, status};
use crate::control::Control;
use crate::control::groups::besides;
use crate::control::issuers::described;
use crate::control::model::Draft;
use crate::control::prepare::Manner;

/// Adds an issuer, or changes it.
pub(super) async fn set(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let by = caller(&request);
    let new: IssuerRecord = parsed(request)?;
    let control = Arc::clone(control);
    let set = detached(async move {
        let now_s = control.clock.now().as_second();
        let detail = |(before, registered): &(Option<IssuerRecord>, Vec<GroupId>)| {
            let before = before.as_ref().map_or("nothing".to_owned(), described);
            let besides = besides(registered);
            format!("issuer set by {by}: is {}, was {before}{besides}", described(&new))
        };
        let edit = |draft: &mut Draft| {
            let registered = draft.register_tenant(new.id.tenant(), now_s)?;
            Ok((draft.set_issuer(new.clone())?, registered))
        };
        let is_there = control.governor.live().model.issuers.contains_key(&new.id);
        control.governor.change_by(Manner::of_setting(is_there), detail, edit).await?;
        control.settled().await;
        Ok(new)
    });
    document(&set.await?)
}

/// The issuers.
pub(super) fn list(control: &Arc<Control>) -> Result<Response<Documents>, Status> {
    documents(control.governor.live().model.issuers.values())
}

/// One issuer.
pub(super) fn show(control: &Arc<Control>, request: Request<Name>) -> Answer {
    let id = root_id(&request.into_inner())?;
    document(control.governor.live().model.issuer(&id).map_err(status)?)
}

/// How the providers of issuers are.
pub(super) fn providers(control: &Arc<Control>) -> Result<Response<Documents>, Status> {
    documents(control.providers.status())
}

/// Deletes an issuer.
pub(super) async fn delete(
    control: &Arc<Control>,
    request: Request<Name>,
) -> Result<Response<Empty>, Status> {
    let by = caller(&request);
    let id = root_id(&request.into_inner())?;
    let control = Arc::clone(control);
    detached(async move {
        let detail = |before: &IssuerRecord| format!("issuer deleted by {by}: was {}", described(before));
        control.governor.withdraw(detail, |draft| draft.delete_issuer(&id)).await?;
        control.settled().await;
        Ok(Response::new(Empty {}))
    })
    .await
}
