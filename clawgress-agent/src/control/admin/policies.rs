//! Policy and its revisions, and the geo data it rests on.

use std::sync::Arc;

use clawgress_api::proto::{Document, Documents, Empty, PolicyOwner as OwnerMessage, RevisionNumber};
use clawgress_api::{AppliedPolicy, NewPolicy, PolicyCheck, PolicyTexts, Standing};
use clawgress_identity::PolicyOwner;
use clawgress_policy::PolicyBundle;
use clawgress_policy::lint::{ACCEPTED_MAX, Accepted};
use tonic::{Request, Response, Status};

use super::{Answer, caller, detached, document, documents, parsed, status};
use crate::control::Control;
use crate::control::candidate::Size;
use crate::control::model::Refusal;
use crate::control::revisions::of;

/// Makes a policy live as the next revision.
pub(super) async fn apply(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let by = caller(&request);
    let new: NewPolicy<PolicyBundle> = parsed(request)?;
    let control = Arc::clone(control);
    document(&detached(async move { applied(&control, new, &by).await }).await?)
}

/// What a policy would come to.
pub(super) async fn check(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let new: NewPolicy<PolicyBundle> = parsed(request)?;
    let accepted = accepted(&new).map_err(status)?;
    let size = control.governor.check(new.owner, new.bundle, accepted).await.map_err(status)?;
    let Size { policies, prefixes, cells, limiters, findings } = size;
    document(&PolicyCheck { policies, prefixes, cells, limiters, findings })
}

/// One revision, and how it stands; number 0 is the live one.
pub(super) async fn show(control: &Arc<Control>, request: Request<RevisionNumber>) -> Answer {
    let RevisionNumber { number, owner } = request.into_inner();
    let (live, owner) = (control.governor.live(), owned(&owner)?);
    let live_number = live.model.revision_of(&owner);
    let number = if number == 0 { live_number } else { number };
    let found = control.governor.revision(&owner, number).await.map_err(status)?;
    let of = of(&owner);
    let missing = || match number {
        0 => Refusal::Missing(format!("no policy{of} has been applied yet; see `clawgressctl policy apply`")),
        _ => {
            Refusal::Missing(format!("there is no revision {number}{of}; see `clawgressctl policy history`"))
        }
    };
    let mut revision = found.ok_or_else(|| status(missing()))?;
    revision.generation = (number == live_number).then_some(live.model.generation);
    document(&revision)
}

/// The revisions without their bundles, and how they stand.
pub(super) async fn history(
    control: &Arc<Control>,
    request: Request<OwnerMessage>,
) -> Result<Response<Documents>, Status> {
    let (live, owner) = (control.governor.live(), owned(&request.into_inner().owner)?);
    let live_number = live.model.revision_of(&owner);
    let mut history = control.governor.history(&owner).await.map_err(status)?;
    for revision in &mut history {
        revision.generation = (revision.number == live_number).then_some(live.model.generation);
    }
    documents(&history)
}

/// What a policy would rest on here.
pub(super) async fn surroundings(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let of: PolicyTexts = parsed(request)?;
    document(&control.governor.surroundings(&of).await.map_err(status)?)
}

/// Who signs revisions.
pub(super) async fn signer(control: &Arc<Control>) -> Answer {
    document(&control.governor.signatures.signer().await.map_err(status)?)
}

/// The geo data in force.
pub(super) fn geo(control: &Arc<Control>) -> Answer {
    document(&control.geo_status())
}

/// Reads the geo data again.
pub(super) async fn reload_geo(control: &Arc<Control>, request: Request<Empty>) -> Answer {
    let by = caller(&request);
    let control = Arc::clone(control);
    document(
        &detached(async move {
            control.geo.reload(&control.governor, &by).await?;
            control.settled().await;
            Ok(control.geo_status())
        })
        .await?,
    )
}

/// Whose policy is asked for.
fn owned(owner: &str) -> Result<PolicyOwner, Status> {
    if owner.is_empty() {
        Ok(PolicyOwner::default())
    } else {
        owner.parse().map_err(Status::invalid_argument)
    }
}

/// What is accepted of a policy's findings.
fn accepted(new: &NewPolicy<PolicyBundle>) -> Result<Vec<Accepted>, Refusal> {
    if new.accepted.len() > ACCEPTED_MAX {
        return Err(Refusal::Invalid(format!(
            "at most {ACCEPTED_MAX} findings are accepted by name: name their kinds instead"
        )));
    }
    let named = new.accepted.iter().map(|name| name.parse::<Accepted>());
    named.collect::<Result<_, _>>().map_err(|e| Refusal::Invalid(e.to_string()))
}

async fn applied(
    control: &Control,
    new: NewPolicy<PolicyBundle>,
    by: &str,
) -> Result<AppliedPolicy<PolicyBundle>, Refusal> {
    let accepted = accepted(&new)?;
    let acceptance = control.governor.lint(new.owner.clone(), new.bundle.clone(), accepted).await?;
    let (mut revision, generation) = control.governor.revise(new, acceptance, by).await?;
    let (running, behind) = control.in_force(generation.model.generation).await;
    revision.generation = Some(generation.model.generation);
    revision.standing = Some(Standing::Signed);
    Ok(AppliedPolicy { revision, running, behind })
}
