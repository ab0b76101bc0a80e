//! Administration: what `clawgressctl` calls. Each change is recorded with who made it, by the
//! credentials of the socket, and goes through even if the caller hangs up half-way.

mod agents;
mod groups;
mod issuers;
mod keys;
mod policies;
mod provider_keys;
mod records;
mod roots;
mod runs;
mod sources;

use std::sync::Arc;
use std::time::Duration;

use clawgress_api::proto::admin_server::Admin;
use clawgress_api::proto::{Document, Documents, Empty, Name, NewRun, PolicyOwner, RevisionNumber};
use clawgress_identity::{AgentId, AuthorityRecord, RootId, SourceId, TrustDomainRecord};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Control;
use super::api_keys::Made;
use super::audit::AuditError;
use super::keyring::NewKey;
use super::model::Refusal;
use super::store::StoreError;
use crate::peer::Peer;

/// Longest wait of an answer for the planes to run what it reports: what comes after it then finds it in
/// force. The change itself waits for nobody.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(2);

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Service(pub Arc<Control>);

type Answer = Result<Response<Document>, Status>;
/// Records for a reader, as they are found.
type SearchStream = ReceiverStream<Result<Document, Status>>;
/// Nothing, for as long as a run is held.
type HoldStream = ReceiverStream<Result<Empty, Status>>;

#[tonic::async_trait]
impl Admin for Service {
    type SearchAuditStream = SearchStream;
    type HoldRunStream = HoldStream;

    async fn status(&self, _: Request<Empty>) -> Answer {
        document(&self.0.status().await)
    }

    async fn create_agent(&self, request: Request<Document>) -> Answer {
        agents::create(&self.0, request).await
    }

    async fn list_agents(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        agents::list(&self.0)
    }

    async fn show_agent(&self, request: Request<Name>) -> Answer {
        agents::show(&self.0, request)
    }

    async fn delete_agent(&self, request: Request<Name>) -> Result<Response<Empty>, Status> {
        agents::delete(&self.0, request).await
    }

    async fn set_agent(&self, request: Request<Document>) -> Answer {
        agents::set(&self.0, request).await
    }

    async fn set_agent_state(&self, request: Request<Document>) -> Answer {
        agents::set_state(&self.0, request).await
    }

    async fn set_provider_key(&self, request: Request<Document>) -> Answer {
        provider_keys::set(&self.0, request).await
    }

    async fn list_provider_keys(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        provider_keys::list(&self.0)
    }

    async fn delete_provider_key(&self, request: Request<Name>) -> Result<Response<Empty>, Status> {
        provider_keys::delete(&self.0, request).await
    }

    async fn create_key(&self, request: Request<Document>) -> Answer {
        keys::create(&self.0, request).await
    }

    async fn list_keys(&self, request: Request<Name>) -> Result<Response<Documents>, Status> {
        keys::list(&self.0, request)
    }

    async fn rotate_key(&self, request: Request<Document>) -> Answer {
        keys::rotate(&self.0, request).await
    }

    async fn revoke_key(&self, request: Request<Name>) -> Answer {
        keys::revoke(&self.0, request).await
    }

    async fn quarantine_agent(&self, request: Request<Document>) -> Answer {
        agents::quarantine(&self.0, request).await
    }

    async fn release_agent(&self, request: Request<Name>) -> Answer {
        agents::release(&self.0, request).await
    }

    async fn list_quarantines(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        agents::quarantines(&self.0)
    }

    async fn list_fingerprints(&self, request: Request<Name>) -> Result<Response<Documents>, Status> {
        agents::fingerprints(&self.0, request)
    }

    async fn create_group(&self, request: Request<Document>) -> Answer {
        groups::create(&self.0, request).await
    }

    async fn list_groups(&self, request: Request<Name>) -> Result<Response<Documents>, Status> {
        groups::list(&self.0, request)
    }

    async fn set_group(&self, request: Request<Document>) -> Answer {
        groups::set(&self.0, request).await
    }

    async fn delete_group(&self, request: Request<Document>) -> Result<Response<Empty>, Status> {
        groups::delete(&self.0, request).await
    }

    async fn add_source(&self, request: Request<Document>) -> Answer {
        sources::add(&self.0, request).await
    }

    async fn list_sources(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        sources::list(&self.0)
    }

    async fn show_source(&self, request: Request<Name>) -> Answer {
        sources::show(&self.0, request)
    }

    async fn set_source(&self, request: Request<Document>) -> Answer {
        sources::set(&self.0, request).await
    }

    async fn remove_source(&self, request: Request<Name>) -> Result<Response<Empty>, Status> {
        sources::remove(&self.0, request).await
    }

    async fn set_issuer(&self, request: Request<Document>) -> Answer {
        issuers::set(&self.0, request).await
    }

    async fn list_issuers(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        issuers::list(&self.0)
    }

    async fn show_issuer(&self, request: Request<Name>) -> Answer {
        issuers::show(&self.0, request)
    }

    async fn provider_status(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        issuers::providers(&self.0)
    }

    async fn delete_issuer(&self, request: Request<Name>) -> Result<Response<Empty>, Status> {
        issuers::delete(&self.0, request).await
    }

    async fn set_authority(&self, request: Request<Document>) -> Answer {
        roots::set::<AuthorityRecord>(&self.0, request).await
    }

    async fn list_authorities(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        roots::list::<AuthorityRecord>(&self.0)
    }

    async fn show_authority(&self, request: Request<Name>) -> Answer {
        roots::show::<AuthorityRecord>(&self.0, request)
    }

    async fn delete_authority(&self, request: Request<Name>) -> Result<Response<Empty>, Status> {
        roots::delete::<AuthorityRecord>(&self.0, request).await
    }

    async fn set_trust_domain(&self, request: Request<Document>) -> Answer {
        roots::set::<TrustDomainRecord>(&self.0, request).await
    }

    async fn list_trust_domains(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        roots::list::<TrustDomainRecord>(&self.0)
    }

    async fn show_trust_domain(&self, request: Request<Name>) -> Answer {
        roots::show::<TrustDomainRecord>(&self.0, request)
    }

    async fn delete_trust_domain(&self, request: Request<Name>) -> Result<Response<Empty>, Status> {
        roots::delete::<TrustDomainRecord>(&self.0, request).await
    }

    async fn bundle_status(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        documents(self.0.bundles.status())
    }

    async fn apply_policy(&self, request: Request<Document>) -> Answer {
        policies::apply(&self.0, request).await
    }

    async fn check_policy(&self, request: Request<Document>) -> Answer {
        policies::check(&self.0, request).await
    }

    async fn show_policy(&self, request: Request<RevisionNumber>) -> Answer {
        policies::show(&self.0, request).await
    }

    async fn policy_history(&self, request: Request<PolicyOwner>) -> Result<Response<Documents>, Status> {
        policies::history(&self.0, request).await
    }

    async fn policy_surroundings(&self, request: Request<Document>) -> Answer {
        policies::surroundings(&self.0, request).await
    }

    async fn policy_signer(&self, _: Request<Empty>) -> Answer {
        policies::signer(&self.0).await
    }

    async fn interception(&self, _: Request<Empty>) -> Answer {
        document(&self.0.interception().await.map_err(status)?)
    }

    async fn geo_status(&self, _: Request<Empty>) -> Answer {
        policies::geo(&self.0)
    }

    async fn reload_geo(&self, request: Request<Empty>) -> Answer {
        policies::reload_geo(&self.0, request).await
    }

    async fn search_audit(
        &self,
        request: Request<Document>,
    ) -> Result<Response<Self::SearchAuditStream>, Status> {
        records::search(&self.0, request)
    }

    async fn flows(&self, request: Request<Document>) -> Answer {
        self.0.runs.link.flows(request.into_inner()).await.map(Response::new)
    }

    async fn drops(&self, request: Request<Document>) -> Result<Response<Documents>, Status> {
        self.0.runs.link.drops(request.into_inner()).await.map(Response::new)
    }

    async fn limits(&self, request: Request<Document>) -> Result<Response<Documents>, Status> {
        self.0.runs.link.limits(request.into_inner()).await.map(Response::new)
    }

    async fn open_run(&self, request: Request<NewRun>) -> Answer {
        runs::open(&self.0, request).await
    }

    async fn hold_run(&self, request: Request<Name>) -> Result<Response<Self::HoldRunStream>, Status> {
        runs::hold(&self.0, request).await
    }

    async fn close_run(&self, request: Request<Name>) -> Result<Response<Empty>, Status> {
        runs::close(&self.0, request).await
    }
}

// === impl Control ===

impl Control {
    /// Waits until the planes that are there run the live generation, or have refused, or are too slow.
    pub(super) async fn settled(&self) {
        self.settled_within(SETTLE_TIME_MAX).await;
    }

    /// The same, where they are too slow only after so long.
    pub(super) async fn settled_within(&self, time: Duration) {
        let generation = self.governor.live().model.generation;
        let planes =
            async { tokio::join!(self.runs.link.settled(generation), self.workers.settled(generation)) };
        let _ = tokio::time::timeout(time, planes).await;
    }

    /// Whether both planes run `generation` or a later one.
    fn is_in_force(&self, generation: u64) -> bool {
        self.runs.link.state().applied >= generation && self.workers.all_run(generation)
    }

    /// A new API key: what the registry keeps of it, and its text for the one answer.
    async fn make_key(&self) -> Result<(Made, String), Refusal> {
        let NewKey { text, id, mac } = self.runs.keyring.make().await?;
        Ok((Made { id, mac, at_s: self.clock.now().as_second() }, text))
    }

    /// Waits until the planes that are there know who is quarantined, or are too slow.
    async fn isolated(&self) {
        let serial = self.quarantines.live().serial;
        let planes = async { tokio::join!(self.runs.link.isolated(serial), self.workers.isolated(serial)) };
        let _ = tokio::time::timeout(SETTLE_TIME_MAX, planes).await;
    }
}

/// Runs to its end even if the caller is gone: a change is never left between its commit and its record.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(done) => done.map_err(status),
        Err(error) => Err(Status::internal(format!("the change broke off: {error}"))),
    }
}

/// Who calls, by the credentials of the socket.
fn caller<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map_or_else(|| "unknown".into(), Peer::user)
}

fn parsed<T: DeserializeOwned>(request: Request<Document>) -> Result<T, Status> {
    serde_json::from_slice(&request.into_inner().json)
        .map_err(|e| Status::invalid_argument(format!("the request is not understood: {e}")))
}

fn agent_id(name: &Name) -> Result<AgentId, Status> {
    name.name.parse().map_err(|e: clawgress_identity::AgentIdError| Status::invalid_argument(e.to_string()))
}

fn source_id(name: &Name) -> Result<SourceId, Status> {
    name.name.parse().map_err(|e: clawgress_identity::AgentIdError| Status::invalid_argument(e.to_string()))
}

fn root_id(name: &Name) -> Result<RootId, Status> {
    name.name.parse().map_err(|e: clawgress_identity::AgentIdError| Status::invalid_argument(e.to_string()))
}

fn document(value: &impl Serialize) -> Answer {
    let json = serde_json::to_vec(value).map_err(|e| Status::internal(e.to_string()))?;
    Ok(Response::new(Document { json }))
}

fn documents<T: Serialize>(values: impl IntoIterator<Item = T>) -> Result<Response<Documents>, Status> {
    let json = values.into_iter().map(|v| serde_json::to_vec(&v)).collect::<Result<_, _>>();
    Ok(Response::new(Documents { json: json.map_err(|e| Status::internal(e.to_string()))? }))
}

/// A value in a sentence of the audit log.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// A refusal as the status that says the same; the problems of a policy go with it as JSON.
fn status(refusal: Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Missing(_) => Status::not_found(text),
        Refusal::Exists(_) => Status::already_exists(text),
        Refusal::Invalid(_) | Refusal::Geo(_) | Refusal::Store(StoreError::Invalid(_)) => {
            Status::invalid_argument(text)
        }
        Refusal::Unsupported(_) | Refusal::InUse(_) | Refusal::Plane(_) => Status::failed_precondition(text),
        Refusal::Parent(_) => Status::aborted(text),
        Refusal::Full(_) => Status::resource_exhausted(text),
        Refusal::Policy(errors) => {
            let problems = serde_json::to_vec(&errors.problems).unwrap_or_default();
            Status::with_details(tonic::Code::InvalidArgument, text, problems.into())
        }
        Refusal::Unavailable(_) | Refusal::Overtaken => Status::unavailable(text),
        Refusal::Store(_) => Status::internal(text),
        Refusal::Audit(AuditError::Closed) => {
            Status::unavailable("the change was made, but control is stopping; the next start will record it")
        }
        Refusal::Audit(_) => Status::internal(format!(
            "the change was made, but will be recorded only at the next start: {text}"
        )),
    }
}
