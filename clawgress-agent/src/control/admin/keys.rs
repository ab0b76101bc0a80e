//! API keys: made, rotated, revoked. The text of one is in the answer that hands it out, and nowhere else.

use std::sync::Arc;

use clawgress_api::proto::{Document, Documents, Name};
use clawgress_api::{ApiKeyRotation, CreatedApiKey, NewApiKey};
use clawgress_identity::{AgentId, ApiKeyRecord};
use tonic::{Request, Response, Status};

use super::{Answer, agent_id, caller, detached, document, documents, json, parsed, status};
use crate::control::Control;
use crate::control::api_keys::Terms;
use crate::control::model::Refusal;
use crate::control::prepare::Manner;

/// Makes a key of an agent.
pub(super) async fn create(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let by = caller(&request);
    let new: NewApiKey = parsed(request)?;
    let control = Arc::clone(control);
    document(&detached(async move { created(&control, &new, &by).await }).await?)
}

/// The keys, of one agent or of all.
pub(super) fn list(control: &Arc<Control>, request: Request<Name>) -> Result<Response<Documents>, Status> {
    let name = request.into_inner();
    let live = control.governor.live();
    let agent: Option<AgentId> = if name.name.is_empty() {
        None
    } else {
        let id = agent_id(&name)?;
        live.model.agent(&id).map_err(status)?;
        Some(id)
    };
    documents(live.model.key_infos(agent.as_ref(), control.clock.now().as_second()))
}

/// Makes a key that takes the place of one, which counts on for a while.
pub(super) async fn rotate(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let by = caller(&request);
    let rotation: ApiKeyRotation = parsed(request)?;
    let control = Arc::clone(control);
    document(&detached(async move { rotated(&control, &rotation, &by).await }).await?)
}

/// Revokes a key.
pub(super) async fn revoke(control: &Arc<Control>, request: Request<Name>) -> Answer {
    let by = caller(&request);
    let id = request.into_inner().name;
    let control = Arc::clone(control);
    let revoked = detached(async move {
        let now_s = control.clock.now().as_second();
        let detail = |(before, after): &(ApiKeyRecord, ApiKeyRecord)| {
            format!("API key revoked by {by}: is {}, was {}", described(after), described(before))
        };
        // It only takes away.
        let revoke = control.governor.withdraw(detail, |draft| draft.revoke_key(&id, now_s));
        let ((_, after), generation) = revoke.await?;
        control.settled().await;
        Ok(generation.model.key_info(&after, now_s))
    });
    document(&revoked.await?)
}

async fn created(control: &Control, new: &NewApiKey, by: &str) -> Result<CreatedApiKey, Refusal> {
    // Nobody is asked for a hash in vain.
    control.governor.live().model.agent(&new.agent)?;
    let (made, api_key) = control.make_key().await?;
    let terms = Terms {
        not_before_s: new.not_before.map(|at| at.as_second()),
        expires_at_s: new.expires.map(|at| at.as_second()),
    };
    let detail = |key: &ApiKeyRecord| format!("API key created by {by}: is {}", described(key));
    let create = control.governor.change(detail, |draft| draft.create_key(&made, &new.agent, terms));
    let (key, generation) = create.await?;
    control.settled().await;
    Ok(CreatedApiKey { key: generation.model.key_info(&key, made.at_s), api_key, replaces: None })
}

async fn rotated(control: &Control, rotation: &ApiKeyRotation, by: &str) -> Result<CreatedApiKey, Refusal> {
    let (made, api_key) = control.make_key().await?;
    let expires_at_s = rotation.expires.map(|at| at.as_second());
    let detail = |[before, after, new]: &[ApiKeyRecord; 3]| {
        let (before, after, new) = (described(before), described(after), described(new));
        format!("API key rotated by {by}: the new one is {new}, the old one is {after}, was {before}")
    };
    let ApiKeyRotation { id, overlap_s, .. } = rotation;
    // The former one ends, be it later.
    let rotate = control
        .governor
        .change_by(Manner::Forced, detail, |draft| draft.rotate_key(id, *overlap_s, &made, expires_at_s));
    let ([_, old, new], generation) = rotate.await?;
    control.settled().await;
    let info = |key| generation.model.key_info(key, made.at_s);
    Ok(CreatedApiKey { key: info(&new), api_key, replaces: Some(info(&old)) })
}

/// A key in a sentence of the audit log: all of it but its hash.
fn described(key: &ApiKeyRecord) -> String {
    let ApiKeyRecord { id, agent, mac: _, created_at_s, not_before_s, expires_at_s, revoked_at_s } = key;
    json(&serde_json::json!({
        "id": id, "agent": agent, "created_at_s": created_at_s, "not_before_s": not_before_s,
        "expires_at_s": expires_at_s, "revoked_at_s": revoked_at_s
    }))
}
