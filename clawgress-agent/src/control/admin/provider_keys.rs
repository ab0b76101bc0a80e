//! Keys of providers. A value comes in one request, goes to the keys role to be sealed, and is in no answer and no record.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clawgress_api::proto::{Document, Documents, Empty, Name};
use clawgress_api::{NewProviderKey, PROVIDER_KEY_BYTES_MAX, ProviderKeyInfo};
use clawgress_identity::{GroupId, ProviderKeyId, ProviderKeyRecord};
use tonic::{Request, Response, Status};

use super::{Answer, caller, detached, document, documents, parsed};
use crate::control::Control;
use crate::control::groups::besides;
use crate::control::model::{Draft, Refusal};
use crate::control::prepare::Manner;
use crate::control::provider_keys::{check, described};

/// Makes a key, or gives one another value.
pub(super) async fn set(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let by = caller(&request);
    let new: NewProviderKey = parsed(request)?;
    let control = Arc::clone(control);
    document(&detached(async move { made(&control, new, &by).await }).await?)
}

/// The keys, without their values.
pub(super) fn list(control: &Arc<Control>) -> Result<Response<Documents>, Status> {
    documents(control.governor.live().model.provider_keys.values().map(ProviderKeyInfo::from))
}

/// Deletes a key.
pub(super) async fn delete(
    control: &Arc<Control>,
    request: Request<Name>,
) -> Result<Response<Empty>, Status> {
    let by = caller(&request);
    let name = request.into_inner().name;
    let id: ProviderKeyId = name.parse().map_err(|e| Status::invalid_argument(format!("`{name}`: {e}")))?;
    let control = Arc::clone(control);
    detached(async move {
        let detail =
            |before: &ProviderKeyRecord| format!("provider key deleted by {by}: was {}", described(before));
        control.governor.withdraw(detail, |draft| draft.delete_provider_key(&id)).await?;
        control.settled().await;
        Ok(Response::new(Empty {}))
    })
    .await
}

async fn made(control: &Control, new: NewProviderKey, by: &str) -> Result<ProviderKeyInfo, Refusal> {
    let now_s = control.clock.now().as_second();
    let before = control.governor.live().model.provider_keys.get(&new.id).cloned();
    let NewProviderKey { id, hosts, clear, is_rotation, value } = new;
    let record = match (before, is_rotation) {
        (None, false) => ProviderKeyRecord {
            id,
            version: 1,
            hosts,
            clear,
            created_at_s: now_s,
            rotated_at_s: now_s,
            sealed: String::new(),
        },
        (Some(before), true) => ProviderKeyRecord {
            version: before.version + 1,
            hosts: if hosts.is_empty() { before.hosts.clone() } else { hosts },
            clear: before.clear || clear,
            rotated_at_s: now_s,
            ..before
        },
        (Some(_), false) => {
            return Err(Refusal::Exists(format!(
                "there is a provider key `{id}` already: give it another value with `clawgressctl provider-key rotate`"
            )));
        }
        (None, true) => {
            return Err(Refusal::Missing(format!(
                "there is no provider key `{id}`: make it with `clawgressctl provider-key create`"
            )));
        }
    };
    check(&record.id, &record.hosts)?;
    // RFC 9110 section 5.5: it becomes a part of a field.
    let text = value.0.as_bytes();
    let is_plain = text.iter().all(|b| matches!(b, b'!'..=b'~'));
    if text.is_empty() || text.len() > PROVIDER_KEY_BYTES_MAX || !is_plain {
        return Err(Refusal::Invalid(format!(
            "a key is 1 to {PROVIDER_KEY_BYTES_MAX} printable ASCII characters without blanks"
        )));
    }
    let sealed = control.runs.keyring.seal(record.binding(), text).await?;
    let record = ProviderKeyRecord { sealed: BASE64.encode(sealed), ..record };
    let detail = |(before, registered): &(Option<ProviderKeyRecord>, Vec<GroupId>)| {
        let before = before.as_ref().map_or("nothing".to_owned(), described);
        format!("provider key set by {by}: is {}, was {before}{}", described(&record), besides(registered))
    };
    let edit = |draft: &mut Draft| {
        let registered = draft.register_tenant(record.id.tenant(), now_s)?;
        Ok((draft.set_provider_key(record.clone())?, registered))
    };
    control.governor.change_by(Manner::of_setting(is_rotation), detail, edit).await?;
    control.settled().await;
    Ok(ProviderKeyInfo::from(&record))
}
