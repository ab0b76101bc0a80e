//! Who a connection or request is from: the source's agent, or whoever a credential proves that its source may
//! present.

use std::net::IpAddr;

use clawgress_ebpf_common::DropReason;
use clawgress_identity::{AgentId, ApiKey, Identity, IdentityError, Origin};
use clawgress_inspect::proxy_authorization;

use crate::connection::Connection;
use crate::gateway::Gateway;
use crate::snapshot::Plan;

/// An established identity, and what it rests on.
#[derive(Clone, Debug)]
pub struct Who {
    /// The identity.
    pub identity: Identity,
    /// The credential that proved it, if one did.
    proof: Option<Proof>,
}

/// A credential that was presented.
#[derive(Clone, Debug)]
struct Proof {
    /// Id of the key.
    key: String,
    /// Interface and address it came from; `None` if the source is the agent's own, or its workload.
    from: Option<(Option<String>, IpAddr)>,
}

// === impl Who ===

impl Who {
    /// The same identity under another plan, at a Unix time in seconds.
    ///
    /// # Errors
    /// If the agent or its key is gone, the key has expired, the source may no longer present the agent, or
    /// the agent is disabled.
    pub fn under(&self, plan: &Plan, now_s: i64) -> Result<Who, DropReason> {
        if let Some(Proof { key, from }) = &self.proof {
            let record = plan.trust.api_key(key).ok_or(DropReason::CredentialInvalid)?;
            record.counts(now_s).map_err(reason)?;
            if let Some((interface, address)) = from {
                let origin = Origin::Address { interface: interface.as_deref(), address: *address };
                if !plan.trust.may_present(origin, &self.identity.agent.id) {
                    return Err(DropReason::IdentityConflict);
                }
            }
        }
        let identity =
            plan.trust.by_source(self.identity.agent.index, self.identity.method).map_err(reason)?;
        Ok(Who { identity, proof: self.proof.clone() })
    }

    /// When what it rests on expires, in Unix seconds, as `plan` has it.
    #[must_use]
    pub fn expires_at_s(&self, plan: &Plan) -> Option<i64> {
        plan.trust.api_key(&self.proof.as_ref()?.key)?.ends_s()
    }
}

/// The agent the source is bound to, if it is bound.
///
/// # Errors
/// If that can't be known, or the agent is gone or disabled.
pub fn bound(plan: &Plan, connection: &Connection) -> Result<Option<Who>, DropReason> {
    let Some(bound) = connection.bound? else { return Ok(None) };
    let identity = plan.trust.by_source(bound.index, bound.method).map_err(reason)?;
    Ok(Some(Who { identity, proof: None }))
}

/// Who it is, given the values of `Proxy-Authorization` in an explicit proxy's request.
///
/// # Errors
/// The reason why it is nobody.
pub async fn identify(
    gateway: &Gateway,
    plan: &Plan,
    connection: &Connection,
    credential: Option<&[u8]>,
) -> Result<Who, DropReason> {
    let bound = bound(plan, connection)?;
    match (credential.filter(|_| connection.is_explicit()), bound) {
        (None, Some(who)) => Ok(who),
        (None, None) if connection.is_explicit() => Err(DropReason::CredentialMissing),
        (None, None) => Err(DropReason::Anonymous),
        (Some(value), bound) => by_key(gateway, plan, connection, value, bound.as_ref()).await,
    }
}

async fn by_key(
    gateway: &Gateway,
    plan: &Plan,
    connection: &Connection,
    value: &[u8],
    bound: Option<&Who>,
) -> Result<Who, DropReason> {
    let invalid = |_| DropReason::CredentialInvalid;
    let credential = proxy_authorization::parse(value).map_err(|_| DropReason::CredentialInvalid)?;
    let user: AgentId = credential.user.parse().map_err(|_| DropReason::CredentialInvalid)?;
    let key = ApiKey::parse(&credential.secret).map_err(invalid)?;
    // Others cost no question to the keys role.
    if plan.trust.api_key(key.id()).is_none() {
        return Err(DropReason::CredentialInvalid);
    }
    let mac = gateway.keys.mac(key).await?;
    let address = connection.peer.ip();
    let anyone = Origin::Address { interface: connection.interface.as_deref(), address };
    let origin = bound.map_or(anyone, |who| Origin::Agent(&who.identity.agent.id));
    let identity = plan.trust.by_api_key(key, &mac, &user, origin, gateway.now_s()).map_err(reason)?;
    gateway.keys.remember(key, mac);
    let from = bound.is_none().then(|| (connection.interface.clone(), address));
    Ok(Who { identity, proof: Some(Proof { key: key.id().to_owned(), from }) })
}

fn reason(error: IdentityError) -> DropReason {
    match error {
        IdentityError::UnknownKey
        | IdentityError::NotYet
        | IdentityError::Expired
        | IdentityError::Revoked
        | IdentityError::OtherAgent
        | IdentityError::Token(_)
        | IdentityError::Certificate(_)
        | IdentityError::Mapping(_) => DropReason::CredentialInvalid,
        IdentityError::UnknownAgent => DropReason::Anonymous,
        IdentityError::Disabled => DropReason::AgentDisabled,
        IdentityError::Quarantined => DropReason::AgentQuarantined,
        IdentityError::Conflict => DropReason::IdentityConflict,
    }
}
