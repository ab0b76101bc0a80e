//! Who a connection or request is from: the source's agent, or whoever a credential proves that its source may
//! present.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use clawgress_api::{AgentRef, CredentialRef};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::{AgentId, ApiKey, Identity, IdentityError, IdentityMethod, Origin, Proof, RootId};
use clawgress_inspect::proxy_authorization;
use clawgress_policy::fingerprint::Fingerprints;
use clawgress_policy::history::History;
use rustls::pki_types::CertificateDer;

use crate::connection::Connection;
use crate::gateway::Gateway;
use crate::snapshot::Plan;

/// An established identity, and what it rests on.
#[derive(Clone, Debug)]
pub struct Who {
    /// The identity.
    pub identity: Identity,
    /// What proved it, if something did.
    presented: Option<Arc<Presented>>,
    /// Interface and address that the kernel plane found bound to it, if that is what it came by: the binding may go to
    /// another while the connection lives.
    at: Option<Arc<(Option<String>, IpAddr)>>,
    /// What it did before, once that is known: shared by all that one request is judged by.
    history: Arc<OnceLock<History>>,
    /// What seemed to be at the other end when it came.
    seen: Arc<Fingerprints>,
}

/// What was presented: by the request, by the connection, or by both.
#[derive(Debug)]
struct Presented {
    /// At least one. Each proves the agent, and the first says how.
    by: Vec<By>,
    /// Interface and address it came from; `None` if the source is the agent's own, or its workload.
    from: Option<(Option<String>, IpAddr)>,
}

#[derive(Debug)]
enum By {
    /// Id of an API key.
    Key(String),
    /// A token, without its signature, or a chain.
    Proof(Arc<Held>),
}

/// A proof, as it was judged last.
#[derive(Debug, Default)]
struct Held(ArcSwapOption<Proof>);

/// A client's certificates, leaf first, whose key it has shown to have.
#[derive(Debug)]
pub struct Certificate {
    chain: Arc<[CertificateDer<'static>]>,
    /// What they were found to prove: for all requests of the connection.
    held: Arc<Held>,
}

/// Who is nobody here.
#[derive(Debug)]
pub struct Stranger {
    /// Why.
    pub reason: DropReason,
    /// Of a credential that is right and whose agent may not act: which, and whose. For the audit log alone.
    pub detail: Option<String>,
}

// === impl Stranger ===

impl Stranger {
    /// Of a credential; `named` tells which it is and whose, and is asked only where the credential is right.
    fn of(error: IdentityError, named: impl FnOnce() -> Option<String>) -> Box<Stranger> {
        let is_right = matches!(
            error,
            IdentityError::UnknownAgent | IdentityError::Disabled | IdentityError::Quarantined
        );
        Box::new(Stranger { reason: reason(error), detail: is_right.then(named).flatten() })
    }
}

impl From<DropReason> for Box<Stranger> {
    fn from(reason: DropReason) -> Box<Stranger> {
        Box::new(Stranger { reason, detail: None })
    }
}

/// An agent and the credential that proves it, in words.
fn named(agent: &AgentId, credential: &str, root: &RootId) -> String {
    format!("agent `{agent}` by the credential `{credential}` of `{root}`")
}

// === impl Certificate ===

impl Certificate {
    /// A chain, of which nothing is known yet.
    #[must_use]
    pub fn new(chain: Arc<[CertificateDer<'static>]>) -> Self {
        Certificate { chain, held: Arc::default() }
    }
}

// === impl Held ===

impl Held {
    fn new(proof: Arc<Proof>) -> Arc<Self> {
        Arc::new(Held(ArcSwapOption::from(Some(proof))))
    }

    /// Judges again, and keeps what is new of it.
    fn again(&self, plan: &Plan, origin: Origin<'_>, now_s: i64) -> Result<Identity, IdentityError> {
        // It has one since it was presented.
        let Some(proof) = self.0.load_full() else { return Err(IdentityError::UnknownAgent) };
        let proven = plan.trust.again(&proof, origin, now_s)?;
        if !Arc::ptr_eq(&proven.proof, &proof) {
            self.0.store(Some(proven.proof));
        }
        Ok(proven.identity)
    }
}

// === impl Who ===

impl Who {
    /// The same identity under another plan, at a Unix time in seconds.
    ///
    /// # Errors
    /// If the agent or one of its credentials is gone or has expired, the source may no longer present the agent, or
    /// the agent is disabled.
    pub fn under(&self, plan: &Plan, now_s: i64) -> Result<Who, DropReason> {
        let Identity { agent, method } = &self.identity;
        self.is_still_bound(plan)?;
        for (by, origin) in
            self.presented.iter().flat_map(|p| p.by.iter().map(|by| (by, p.origin(&agent.id))))
        {
            match by {
                By::Key(key) => {
                    let record = plan.trust.api_key(key).ok_or(DropReason::CredentialInvalid)?;
                    record.counts(now_s).map_err(reason)?;
                    if !plan.trust.may_present(origin, &agent.id) {
                        return Err(DropReason::IdentityConflict);
                    }
                }
                By::Proof(held) => {
                    let identity = held.again(plan, origin, now_s).map_err(reason)?;
                    if identity.agent.id != agent.id {
                        return Err(DropReason::CredentialInvalid);
                    }
                }
            }
        }
        let why = if self.has_presented() { reason } else { of_source };
        let identity = plan.trust.by_source(agent.index, *method).map_err(why)?;
        Ok(Who { identity, ..self.clone() })
    }

    /// Whether a credential proves it, and not its source alone.
    #[must_use]
    pub fn has_presented(&self) -> bool {
        self.presented.is_some()
    }

    fn is_still_bound(&self, plan: &Plan) -> Result<(), DropReason> {
        let Some((interface, address)) = self.at.as_deref() else { return Ok(()) };
        let is_bound = plan.trust.is_bound(interface.as_deref(), *address, &self.identity.agent.id);
        if is_bound { Ok(()) } else { Err(DropReason::IdentityConflict) }
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

    /// What seems to be at the other end, besides its hello.
    #[must_use]
    pub fn seen(&self) -> &Arc<Fingerprints> {
        &self.seen
    }

    /// With what is known of the other end of its connection.
    fn seen_by(self, plan: &Plan, connection: &Connection) -> Who {
        let by = || self.presented.iter().flat_map(|p| &p.by);
        let of_run = by().find_map(|by| match by {
            By::Key(id) => plan.runs.of_key(id),
            By::Proof(_) => None,
        });
        let bound = connection.bound.ok().flatten();
        let of_cgroup = bound.filter(|bound| bound.method == IdentityMethod::Cgroup);
        let of_agent = of_cgroup.and_then(|bound| plan.runs.of_agent(bound.index));
        let executable = [of_run, of_agent].into_iter().flatten().find_map(|run| run.executable.clone());
        // A run's key may come from elsewhere, and is in no cgroup there.
        let cgroup = of_cgroup.and_then(|_| of_run.or(of_agent)).and_then(|run| run.cgroup.clone());
        let of_source = bound.is_some_and(|bound| bound.method == IdentityMethod::Source);
        let mac = of_source.then(|| connection.mac_of(&self.identity.agent)).flatten();
        let seen = Fingerprints {
            executable,
            cgroup,
            certificate: by().find_map(By::certificate),
            mac: mac.map(|mac| mac.to_string()),
        };
        Who { seen: Arc::new(seen), ..self }
    }

    /// The same at a later request, whose history is another.
    #[must_use]
    pub fn later(self) -> Who {
        Who { history: Arc::default(), ..self }
    }

    /// When the first of what it rests on expires, in Unix seconds, as `plan` has it: what was judged under another
    /// is to be judged first.
    #[must_use]
    pub fn expires_at_s(&self, plan: &Plan) -> Option<i64> {
        let ends = self.presented.iter().flat_map(|p| &p.by).filter_map(|by| match by {
            By::Key(key) => plan.trust.api_key(key)?.ends_s(),
            By::Proof(held) => Some(held.0.load().as_ref()?.facts().expires_at_s),
        });
        ends.min()
    }

    /// How records name it.
    #[must_use]
    pub fn reference(&self) -> AgentRef {
        let mut by = self.presented.iter().flat_map(|p| &p.by).filter_map(By::reference);
        let (credential, certificate) = (by.next(), by.next());
        AgentRef { credential, certificate, ..AgentRef::new(&self.identity.agent, self.identity.method) }
    }
}

// === impl Presented ===

impl Presented {
    fn origin<'a>(&'a self, agent: &'a AgentId) -> Origin<'a> {
        match &self.from {
            Some((interface, address)) => {
                Origin::Address { interface: interface.as_deref(), address: *address }
            }
            None => Origin::Agent(agent),
        }
    }
}

// === impl By ===

impl By {
    /// The hash of the certificate or X.509-SVID that it is.
    fn certificate(&self) -> Option<String> {
        let By::Proof(held) = self else { return None };
        let proof = held.0.load();
        let facts = proof.as_ref()?.facts();
        let is_certificate = matches!(facts.method, IdentityMethod::Mtls | IdentityMethod::SpiffeX509);
        is_certificate.then(|| facts.credential.clone())
    }

    fn reference(&self) -> Option<CredentialRef> {
        match self {
            By::Key(id) => {
                Some(CredentialRef { issuer: None, id: id.clone(), subject: None, actors: Vec::new() })
            }
            By::Proof(held) => {
                let proof = held.0.load_full()?;
                let facts = proof.facts();
                Some(CredentialRef {
                    issuer: Some(facts.root.clone()),
                    id: facts.credential.clone(),
                    subject: facts.subject.clone(),
                    actors: facts.actors.clone(),
                })
            }
        }
    }
}

/// The agent the source is bound to, if it is bound.
///
/// # Errors
/// If that can't be known, the agent is gone or disabled, or the source is bound to another by now.
pub fn bound(plan: &Plan, connection: &Connection) -> Result<Option<Who>, DropReason> {
    let Some(bound) = connection.bound? else { return Ok(None) };
    let identity = plan.trust.by_source(bound.index, bound.method).map_err(of_source)?;
    let is_of_source = bound.method == IdentityMethod::Source;
    let at = is_of_source.then(|| Arc::new((connection.interface.clone(), connection.peer.ip())));
    let who = Who { identity, presented: None, at, history: Arc::default(), seen: Arc::default() };
    who.is_still_bound(plan)?;
    Ok(Some(who.seen_by(plan, connection)))
}

/// Who it is, given whom its source is [bound] to, and the value of `Proxy-Authorization` in an explicit proxy's request. Whatever is
/// presented has to prove an agent, and all of it the same.
///
/// # Errors
/// The reason why it is nobody.
pub async fn identify(
    gateway: &Gateway,
    plan: &Plan,
    connection: &Connection,
    bound: Option<Who>,
    credential: Option<&[u8]>,
) -> Result<Who, Box<Stranger>> {
    let credential = credential.filter(|_| connection.is_explicit());
    let certificate = connection.certificate.as_ref();
    match (bound, credential, certificate) {
        (Some(who), None, None) => Ok(who),
        (None, None, None) if connection.is_explicit() => Err(DropReason::CredentialMissing.into()),
        (None, None, None) => Err(DropReason::Anonymous.into()),
        (bound, credential, certificate) => {
            let address = connection.peer.ip();
            let anyone = Origin::Address { interface: connection.interface.as_deref(), address };
            let origin = bound.as_ref().map_or(anyone, |who| Origin::Agent(&who.identity.agent.id));
            let mut proven = Vec::with_capacity(2);
            if let Some(value) = credential {
                proven.push(match proxy_authorization::bearer(value) {
                    Some(key) if ApiKey::is_like(key.as_bytes()) => {
                        by_key_alone(gateway, plan, origin, key).await?
                    }
                    Some(token) => by_token(gateway, plan, origin, token)?,
                    None => by_key(gateway, plan, origin, value).await?,
                });
            }
            if let Some(certificate) = certificate {
                proven.push(by_certificate(gateway, plan, origin, certificate)?);
            }
            let from = bound.is_none().then(|| (connection.interface.clone(), address));
            let at = bound.and_then(|who| who.at);
            Ok(Who { at, ..agreed(proven, from)? }.seen_by(plan, connection))
        }
    }
}

/// The agent that all of it proves.
fn agreed(proven: Vec<(Identity, By)>, from: Option<(Option<String>, IpAddr)>) -> Result<Who, DropReason> {
    let (identities, by): (Vec<Identity>, Vec<By>) = proven.into_iter().unzip();
    let mut identities = identities.into_iter();
    let identity = identities.next().ok_or(DropReason::CredentialMissing)?;
    if identities.any(|other| other.agent.id != identity.agent.id) {
        return Err(DropReason::IdentityConflict);
    }
    let presented = Some(Arc::new(Presented { by, from }));
    Ok(Who { identity, presented, at: None, history: Arc::default(), seen: Arc::default() })
}

fn by_token(
    gateway: &Gateway,
    plan: &Plan,
    origin: Origin<'_>,
    token: &str,
) -> Result<(Identity, By), Box<Stranger>> {
    let proven = plan.trust.by_token(token, origin, gateway.now_s()).map_err(|refused| {
        // Why, for whoever runs the gateway; the client is told what to do.
        tracing::debug!(%refused, "a token was refused");
        if let Some(issuer) = &refused.unknown_key_of {
            gateway.snapshots.unknown_key(issuer);
        }
        let credential = refused.credential.as_ref();
        Stranger::of(refused.why, || {
            credential.and_then(|of| Some(named(of.agent.as_ref()?, &of.id, &of.root)))
        })
    })?;
    Ok((proven.identity, By::Proof(Held::new(proven.proof))))
}

fn by_certificate(
    gateway: &Gateway,
    plan: &Plan,
    origin: Origin<'_>,
    certificate: &Certificate,
) -> Result<(Identity, By), Box<Stranger>> {
    let Certificate { chain, held } = certificate;
    let now_s = gateway.now_s();
    let judged = match held.again(plan, origin, now_s) {
        // What stands for somebody else now than before is judged as if it came now.
        Err(_) => plan.trust.by_certificate(Arc::clone(chain), origin, now_s).map(|proven| {
            held.0.store(Some(proven.proof));
            proven.identity
        }),
        judged => judged,
    };
    let identity = judged.map_err(|error| {
        tracing::debug!(%error, "a certificate was refused");
        Stranger::of(error, || {
            let (agent, facts) = plan.trust.named_by_certificate(chain, now_s)?;
            Some(named(&agent, &facts.credential, &facts.root))
        })
    })?;
    Ok((identity, By::Proof(Arc::clone(held))))
}

async fn by_key(
    gateway: &Gateway,
    plan: &Plan,
    origin: Origin<'_>,
    value: &[u8],
) -> Result<(Identity, By), Box<Stranger>> {
    let invalid = |_| DropReason::CredentialInvalid;
    let credential = proxy_authorization::parse(value).map_err(|_| DropReason::CredentialInvalid)?;
    let user: AgentId = credential.user.parse().map_err(|_| DropReason::CredentialInvalid)?;
    let key = ApiKey::parse(&credential.secret).map_err(invalid)?;
    // Others cost no question to the keys role.
    if plan.trust.api_key(key.id()).is_none() {
        return Err(DropReason::CredentialInvalid.into());
    }
    by_key_of(gateway, plan, origin, key, &user).await
}

/// By a key that comes without its agent's name, as clients have it that know of one secret alone.
async fn by_key_alone(
    gateway: &Gateway,
    plan: &Plan,
    origin: Origin<'_>,
    text: &str,
) -> Result<(Identity, By), Box<Stranger>> {
    let key = ApiKey::parse(text).map_err(|_| DropReason::CredentialInvalid)?;
    let record = plan.trust.api_key(key.id()).ok_or(DropReason::CredentialInvalid)?;
    by_key_of(gateway, plan, origin, key, &record.agent).await
}

async fn by_key_of(
    gateway: &Gateway,
    plan: &Plan,
    origin: Origin<'_>,
    key: ApiKey<'_>,
    user: &AgentId,
) -> Result<(Identity, By), Box<Stranger>> {
    let hashed = gateway.keys.mac(key, origin).await?;
    let judged = plan.trust.by_api_key(key, &hashed.mac, user, origin, gateway.now_s());
    let named = || Some(format!("agent `{user}` by the API key `{}`", key.id()));
    let identity = judged.map_err(|error| {
        gateway.keys.doubt(key, hashed);
        Stranger::of(error, named)
    })?;
    gateway.keys.remember(hashed);
    Ok((identity, By::Key(key.id().to_owned())))
}

/// Why a source that is bound proves nobody.
fn of_source(error: IdentityError) -> DropReason {
    match error {
        // Whom it was bound to is gone.
        IdentityError::UnknownAgent => DropReason::Anonymous,
        other => reason(other),
    }
}

/// Why a credential proves nobody.
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
        IdentityError::UnknownAgent => DropReason::AgentUnknown,
        IdentityError::Disabled => DropReason::AgentDisabled,
        IdentityError::Quarantined => DropReason::AgentQuarantined,
        IdentityError::Conflict => DropReason::IdentityConflict,
    }
}
