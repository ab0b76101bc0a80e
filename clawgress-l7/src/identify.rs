//! Who a connection or request is from: the source's agent, or whoever a credential proves that its source may
//! present.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use clawgress_api::{AgentRef, CredentialRef};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::{AgentId, ApiKey, Identity, IdentityError, Origin, Proof};
use clawgress_inspect::proxy_authorization;
use clawgress_policy::history::History;

use crate::connection::Connection;
use crate::gateway::Gateway;
use crate::snapshot::Plan;

/// An established identity, and what it rests on.
#[derive(Clone, Debug)]
pub struct Who {
    /// The identity.
    pub identity: Identity,
    /// The credential that proved it, if one did.
    presented: Option<Presented>,
    /// What it did before, once that is known: shared by all that one request is judged by.
    history: Arc<OnceLock<History>>,
}

/// A credential that was presented.
#[derive(Clone, Debug)]
struct Presented {
    by: By,
    /// Interface and address it came from; `None` if the source is the agent's own, or its workload.
    from: Option<(Option<String>, IpAddr)>,
}

#[derive(Clone, Debug)]
enum By {
    /// Id of an API key.
    Key(String),
    /// A token, without its signature.
    Token(Arc<Proof>),
}

// === impl Who ===

impl Who {
    /// The same identity under another plan, at a Unix time in seconds.
    ///
    /// # Errors
    /// If the agent or its credential is gone or has expired, the source may no longer present the agent, or the
    /// agent is disabled.
    pub fn under(&self, plan: &Plan, now_s: i64) -> Result<Who, DropReason> {
        let Identity { agent, method } = &self.identity;
        if let Some(Presented { by, from }) = &self.presented {
            let origin = match from {
                Some((interface, address)) => {
                    Origin::Address { interface: interface.as_deref(), address: *address }
                }
                None => Origin::Agent(&agent.id),
            };
            match by {
                By::Key(key) => {
                    let record = plan.trust.api_key(key).ok_or(DropReason::CredentialInvalid)?;
                    record.counts(now_s).map_err(reason)?;
                    if !plan.trust.may_present(origin, &agent.id) {
                        return Err(DropReason::IdentityConflict);
                    }
                }
                By::Token(proof) => drop(plan.trust.again(proof, origin, now_s).map_err(reason)?),
            }
        }
        let identity = plan.trust.by_source(agent.index, *method).map_err(reason)?;
        Ok(Who { identity, ..self.clone() })
    }

    /// What it did before, if that is known.
    #[must_use]
    pub fn history(&self) -> Option<History> {
        self.history.get().copied()
    }

    /// Notes what it did before, unless that is known.
    pub fn learn(&self, history: History) {
        let _ = self.history.set(history);
    }

    /// The same at a later request, whose history is another.
    #[must_use]
    pub fn later(self) -> Who {
        Who { history: Arc::default(), ..self }
    }

    /// When what it rests on expires, in Unix seconds, as `plan` has it.
    #[must_use]
    pub fn expires_at_s(&self, plan: &Plan) -> Option<i64> {
        match &self.presented.as_ref()?.by {
            By::Key(key) => plan.trust.api_key(key)?.ends_s(),
            By::Token(proof) => proof.facts().expires_at_s,
        }
    }

    /// How records name it.
    #[must_use]
    pub fn reference(&self) -> AgentRef {
        let credential = self.presented.as_ref().map(|presented| match &presented.by {
            By::Key(id) => CredentialRef { issuer: None, id: id.clone(), subject: None, actors: Vec::new() },
            By::Token(proof) => {
                let facts = proof.facts();
                CredentialRef {
                    issuer: Some(facts.root.clone()),
                    id: facts.credential.clone(),
                    subject: facts.subject.clone(),
                    actors: facts.actors.clone(),
                }
            }
        });
        AgentRef { credential, ..AgentRef::new(&self.identity.agent, self.identity.method) }
    }
}

/// The agent the source is bound to, if it is bound.
///
/// # Errors
/// If that can't be known, or the agent is gone or disabled.
pub fn bound(plan: &Plan, connection: &Connection) -> Result<Option<Who>, DropReason> {
    let Some(bound) = connection.bound? else { return Ok(None) };
    let identity = plan.trust.by_source(bound.index, bound.method).map_err(reason)?;
    Ok(Some(Who { identity, presented: None, history: Arc::default() }))
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
        (Some(value), bound) => {
            let address = connection.peer.ip();
            let anyone = Origin::Address { interface: connection.interface.as_deref(), address };
            let origin = bound.as_ref().map_or(anyone, |who| Origin::Agent(&who.identity.agent.id));
            let (identity, by) = match proxy_authorization::bearer(value) {
                Some(token) => by_token(gateway, plan, origin, token)?,
                None => by_key(gateway, plan, origin, value).await?,
            };
            let from = bound.is_none().then(|| (connection.interface.clone(), address));
            Ok(Who { identity, presented: Some(Presented { by, from }), history: Arc::default() })
        }
    }
}

fn by_token(
    gateway: &Gateway,
    plan: &Plan,
    origin: Origin<'_>,
    token: &str,
) -> Result<(Identity, By), DropReason> {
    let proven = plan.trust.by_token(token, origin, gateway.now_s()).map_err(|refused| {
        // Why, for whoever runs the gateway; the client is told what to do.
        tracing::debug!(%refused, "a token was refused");
        if let Some(issuer) = &refused.unknown_key_of {
            gateway.snapshots.unknown_key(issuer);
        }
        reason(refused.why)
    })?;
    Ok((proven.identity, By::Token(proven.proof)))
}

async fn by_key(
    gateway: &Gateway,
    plan: &Plan,
    origin: Origin<'_>,
    value: &[u8],
) -> Result<(Identity, By), DropReason> {
    let invalid = |_| DropReason::CredentialInvalid;
    let credential = proxy_authorization::parse(value).map_err(|_| DropReason::CredentialInvalid)?;
    let user: AgentId = credential.user.parse().map_err(|_| DropReason::CredentialInvalid)?;
    let key = ApiKey::parse(&credential.secret).map_err(invalid)?;
    // Others cost no question to the keys role.
    if plan.trust.api_key(key.id()).is_none() {
        return Err(DropReason::CredentialInvalid);
    }
    let mac = gateway.keys.mac(key).await?;
    let identity = plan.trust.by_api_key(key, &mac, &user, origin, gateway.now_s()).map_err(reason)?;
    gateway.keys.remember(key, mac);
    Ok((identity, By::Key(key.id().to_owned())))
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
