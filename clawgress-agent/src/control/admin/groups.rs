//! Groups: tenants, teams, projects and environments.

use std::sync::Arc;

use clawgress_api::proto::{Document, Documents, Empty, Name};
use clawgress_api::{GroupChange, GroupRef, NewGroup};
use clawgress_identity::{Group, GroupId, GroupKind};
use tonic::{Request, Response, Status};

use super::{Answer, caller, detached, document, documents, json, parsed};
use crate::control::Control;
use crate::control::prepare::Manner;

/// Registers a group.
pub(super) async fn create(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let by = caller(&request);
    let NewGroup { group, labels } = parsed(request)?;
    let id = group_id(&group)?;
    let control = Arc::clone(control);
    let created = detached(async move {
        let new = Group { id, labels, created_at_s: Some(control.clock.now().as_second()) };
        let detail =
            |after: &Group| format!("{} created by {by}: is {}", after.id.kind().name(), json(after));
        let create = control.governor.change(detail, |draft| draft.create_group(new.clone()));
        let (created, generation) = create.await?;
        Ok(generation.model.group_info(&created))
    });
    document(&created.await?)
}

/// The groups of one kind.
pub(super) fn list(control: &Arc<Control>, request: Request<Name>) -> Result<Response<Documents>, Status> {
    let name = request.into_inner().name;
    let kind = GroupKind::ALL.into_iter().find(|kind| kind.name() == name);
    let kind = kind.ok_or_else(|| Status::invalid_argument(format!("`{name}` is not a kind of group")))?;
    documents(control.governor.live().model.group_infos(kind))
}

/// Changes a group.
pub(super) async fn set(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let by = caller(&request);
    let GroupChange { group, labels } = parsed(request)?;
    let id = group_id(&group)?;
    let control = Arc::clone(control);
    let set = detached(async move {
        let detail = |(before, after): &(Group, Group)| {
            format!("{} set by {by}: is {}, was {}", id.kind().name(), json(after), json(before))
        };
        // What policy says by labels may be less by the new ones.
        let set = control.governor.change_by(Manner::Forced, detail, |draft| draft.set_group(&id, &labels));
        let ((_, after), generation) = set.await?;
        Ok(generation.model.group_info(&after))
    });
    document(&set.await?)
}

/// Removes a group that nothing is in.
pub(super) async fn delete(
    control: &Arc<Control>,
    request: Request<Document>,
) -> Result<Response<Empty>, Status> {
    let by = caller(&request);
    let id = group_id(&parsed(request)?)?;
    let control = Arc::clone(control);
    detached(async move {
        let detail =
            |before: &Group| format!("{} deleted by {by}: was {}", before.id.kind().name(), json(before));
        control.governor.change(detail, |draft| draft.delete_group(&id)).await?;
        Ok(Response::new(Empty {}))
    })
    .await
}

fn group_id(group: &GroupRef) -> Result<GroupId, Status> {
    GroupId::parse(group.kind, &group.id).map_err(|e| Status::invalid_argument(e.to_string()))
}
