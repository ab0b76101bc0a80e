//! Administration: what `clawgressctl` calls. Each change is recorded with who made it, by the
//! credentials of the socket, and goes through even if the caller hangs up half-way.

use std::sync::Arc;
use std::time::Duration;

use clawgress_api::proto::admin_server::Admin;
use clawgress_api::proto::{Document, Documents, Empty, Name, RevisionNumber};
use clawgress_api::{
    AgentStateChange, AuditQuery, AuditRecord, CreatedAgent, NewAgent, NewPolicy, NewQuarantine, PolicyCheck,
    PolicyRevision, RecordKind, SharedSourceChange,
};
use clawgress_identity::{Agent, AgentId, AgentState, IssuerRecord, RootId, SharedSource, SourceId};
use clawgress_policy::PolicyBundle;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Control;
use super::audit::{AuditError, Filter, Kept};
use super::govern::Size;
use super::issuers::described;
use super::model::{self, Draft, Refusal};
use super::store::StoreError;
use crate::peer::Peer;

/// Longest wait of an answer for the planes to run what it reports: what comes after it then finds it in
/// force. The change itself waits for nobody.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(2);
/// Records on their way to one reader of the audit log.
const READER_RECORDS_MAX: usize = 256;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Service(pub Arc<Control>);

type Answer = Result<Response<Document>, Status>;

#[tonic::async_trait]
impl Admin for Service {
    type SearchAuditStream = ReceiverStream<Result<Document, Status>>;
    type HoldRunStream = ReceiverStream<Result<Empty, Status>>;

    async fn status(&self, _: Request<Empty>) -> Answer {
        document(&self.0.status().await)
    }

    async fn create_agent(&self, request: Request<Document>) -> Answer {
        let by = caller(&request);
        let new: NewAgent = parsed(request)?;
        let control = Arc::clone(&self.0);
        document(&detached(async move { control.create_agent(new, &by).await }).await?)
    }

    async fn list_agents(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        let quarantined = self.0.quarantines.live();
        documents(self.0.governor.live().model.agents.values().map(|a| quarantined.shown(a)))
    }

    async fn show_agent(&self, request: Request<Name>) -> Answer {
        let id = agent_id(&request.into_inner())?;
        let live = self.0.governor.live();
        document(&self.0.quarantines.live().shown(live.model.agent(&id).map_err(status)?))
    }

    async fn delete_agent(&self, request: Request<Name>) -> Result<Response<Empty>, Status> {
        let by = caller(&request);
        let id = agent_id(&request.into_inner())?;
        let control = Arc::clone(&self.0);
        detached(async move {
            let detail = |(before, named): &(Agent, Vec<SourceId>)| {
                let named: Vec<String> = named.iter().map(|id| format!("`{id}`")).collect();
                let named = if named.is_empty() {
                    String::new()
                } else {
                    format!("; no longer named by {}", named.join(", "))
                };
                format!("agent deleted by {by}: was {}{named}", json(before))
            };
            let ((before, _), deleted) =
                control.governor.change(detail, |draft| draft.delete_agent(&id)).await?;
            control.runs.ended.notify_one();
            control.settled().await;
            if control.is_in_force(deleted.model.generation) {
                control.quarantines.forget(&before, &by).await?;
            }
            Ok(Response::new(Empty {}))
        })
        .await
    }

    async fn set_agent_state(&self, request: Request<Document>) -> Answer {
        let by = caller(&request);
        let AgentStateChange { id, state } = parsed(request)?;
        if state == AgentState::Quarantined {
            return Err(Status::invalid_argument("quarantine an agent with `clawgressctl agent quarantine`"));
        }
        let control = Arc::clone(&self.0);
        let agent = detached(async move {
            let detail = |before: &Agent| {
                let (from, to) = (json(&before.state), json(&state));
                format!("agent `{}` set from {from} to {to} by {by}", before.id)
            };
            let (before, _) = control.governor.change(detail, |draft| draft.set_state(&id, state)).await?;
            control.settled().await;
            Ok(control.quarantines.live().shown(&Agent { state, ..before }))
        });
        document(&agent.await?)
    }

    async fn quarantine_agent(&self, request: Request<Document>) -> Answer {
        let by = caller(&request);
        let new: NewQuarantine = parsed(request)?;
        let control = Arc::clone(&self.0);
        let put = detached(async move {
            let put = control.quarantines.put(new, &by).await;
            control.isolated().await;
            put
        });
        document(&put.await?)
    }

    async fn release_agent(&self, request: Request<Name>) -> Answer {
        let by = caller(&request);
        let Name { name } = request.into_inner();
        let (name, number) = match name.split_once('#') {
            Some((name, number)) => {
                (name.to_owned(), Some(number.parse().map_err(|_| not_a_number(number))?))
            }
            None => (name, None),
        };
        let id = agent_id(&Name { name })?;
        let control = Arc::clone(&self.0);
        let released = detached(async move {
            control.quarantines.release(&id, number, &by).await?;
            control.isolated().await;
            Ok(control.governor.live().model.agents.get(&id).cloned())
        });
        document(&released.await?)
    }

    async fn list_quarantines(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        documents(self.0.quarantines.live().entries())
    }

    async fn add_source(&self, request: Request<Document>) -> Answer {
        let by = caller(&request);
        let new: SharedSource = parsed(request)?;
        let control = Arc::clone(&self.0);
        let added = detached(async move {
            let detail = |after: &SharedSource| format!("shared source added by {by}: is {}", json(after));
            let edit = |draft: &mut Draft| draft.add_source(new.clone(), &control.governor.config);
            let (added, _) = control.governor.change(detail, edit).await?;
            control.settled().await;
            Ok(added)
        });
        document(&added.await?)
    }

    async fn list_sources(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        documents(self.0.governor.live().model.shared.values())
    }

    async fn show_source(&self, request: Request<Name>) -> Answer {
        let id = source_id(&request.into_inner())?;
        document(self.0.governor.live().model.shared_source(&id).map_err(status)?)
    }

    async fn set_source(&self, request: Request<Document>) -> Answer {
        let by = caller(&request);
        let change: SharedSourceChange = parsed(request)?;
        let control = Arc::clone(&self.0);
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
            let ((_, after), _) = control.governor.change(detail, edit).await?;
            control.settled().await;
            Ok(after)
        });
        document(&set.await?)
    }

    async fn remove_source(&self, request: Request<Name>) -> Result<Response<Empty>, Status> {
        let by = caller(&request);
        let id = source_id(&request.into_inner())?;
        let control = Arc::clone(&self.0);
        detached(async move {
            let detail =
                |before: &SharedSource| format!("shared source removed by {by}: was {}", json(before));
            control.governor.change(detail, |draft| draft.remove_source(&id)).await?;
            control.settled().await;
            Ok(Response::new(Empty {}))
        })
        .await
    }

    async fn set_issuer(&self, request: Request<Document>) -> Answer {
        let by = caller(&request);
        let new: IssuerRecord = parsed(request)?;
        let control = Arc::clone(&self.0);
        let set = detached(async move {
            let detail = |before: &Option<IssuerRecord>| {
                let before = before.as_ref().map_or("nothing".to_owned(), described);
                format!("issuer set by {by}: is {}, was {before}", described(&new))
            };
            control.governor.change(detail, |draft| draft.set_issuer(new.clone())).await?;
            control.settled().await;
            Ok(new)
        });
        document(&set.await?)
    }

    async fn list_issuers(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        documents(self.0.governor.live().model.issuers.values())
    }

    async fn show_issuer(&self, request: Request<Name>) -> Answer {
        let id = issuer_id(&request.into_inner())?;
        document(self.0.governor.live().model.issuer(&id).map_err(status)?)
    }

    async fn provider_status(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        documents(self.0.providers.status())
    }

    async fn delete_issuer(&self, request: Request<Name>) -> Result<Response<Empty>, Status> {
        let by = caller(&request);
        let id = issuer_id(&request.into_inner())?;
        let control = Arc::clone(&self.0);
        detached(async move {
            let detail = |before: &IssuerRecord| format!("issuer deleted by {by}: was {}", described(before));
            control.governor.change(detail, |draft| draft.delete_issuer(&id)).await?;
            control.settled().await;
            Ok(Response::new(Empty {}))
        })
        .await
    }

    async fn apply_policy(&self, request: Request<Document>) -> Answer {
        let by = caller(&request);
        let new: NewPolicy<PolicyBundle> = parsed(request)?;
        let control = Arc::clone(&self.0);
        document(&detached(async move { control.apply_policy(new, &by).await }).await?)
    }

    async fn check_policy(&self, request: Request<Document>) -> Answer {
        let new: NewPolicy<PolicyBundle> = parsed(request)?;
        let size = self.0.governor.check(new.bundle).await.map_err(status)?;
        let Size { policies, prefixes, cells, limiters } = size;
        document(&PolicyCheck { policies, prefixes, cells, limiters })
    }

    async fn show_policy(&self, request: Request<RevisionNumber>) -> Answer {
        let control = &self.0;
        let live = control.governor.live();
        let live_number = live.model.policy.as_ref().map_or(0, |p| p.number);
        let number = match request.into_inner().number {
            0 => live_number,
            number => number,
        };
        let found = model::revision(control.governor.store.as_ref(), number, None).await;
        let missing = || match number {
            0 => Refusal::Missing("no policy has been applied yet; see `clawgressctl policy apply`".into()),
            _ => {
                Refusal::Missing(format!("there is no revision {number}; see `clawgressctl policy history`"))
            }
        };
        let mut revision = found.map_err(|e| status(e.into()))?.ok_or_else(|| status(missing()))?;
        revision.generation = (number == live_number).then_some(live.model.generation);
        document(&revision)
    }

    async fn policy_history(&self, _: Request<Empty>) -> Result<Response<Documents>, Status> {
        let live = self.0.governor.live();
        let live_number = live.model.policy.as_ref().map_or(0, |p| p.number);
        let mut history =
            model::history(self.0.governor.store.as_ref()).await.map_err(|e| status(e.into()))?;
        for revision in &mut history {
            revision.generation = (revision.number == live_number).then_some(live.model.generation);
        }
        documents(&history)
    }

    async fn geo_status(&self, _: Request<Empty>) -> Answer {
        document(&self.0.geo_status())
    }

    async fn reload_geo(&self, request: Request<Empty>) -> Answer {
        let by = caller(&request);
        let control = Arc::clone(&self.0);
        document(
            &detached(async move {
                control.geo.reload(&control.governor, &by).await?;
                control.settled().await;
                Ok(control.geo_status())
            })
            .await?,
        )
    }

    async fn search_audit(
        &self,
        request: Request<Document>,
    ) -> Result<Response<Self::SearchAuditStream>, Status> {
        let query: AuditQuery = parsed(request)?;
        let filter = Filter::new(&query).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let (sender, receiver) = mpsc::channel(READER_RECORDS_MAX);
        tokio::spawn(read_audit(Arc::clone(&self.0), filter, query.follow, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
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

    async fn open_run(&self, request: Request<Name>) -> Answer {
        let by = caller(&request);
        let id = agent_id(&request.into_inner())?;
        let control = Arc::clone(&self.0);
        document(
            &detached(async move {
                let session = control.runs.open(&id, &by).await?;
                control.settled().await;
                Ok(session)
            })
            .await?,
        )
    }

    async fn hold_run(&self, request: Request<Name>) -> Result<Response<Self::HoldRunStream>, Status> {
        let name = request.into_inner().name;
        let control = Arc::clone(&self.0);
        if control.governor.live().model.runs.get(&name).is_none_or(|r| r.closed) {
            return Err(Status::not_found(format!("there is no run `{name}`")));
        }
        if !control.runs.held.lock().insert(name.clone()) {
            return Err(Status::already_exists(format!("run `{name}` is held by somebody else")));
        }
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            tokio::select! {
                () = sender.closed() => {}
                () = control.stop.cancelled() => {}
            }
            control.runs.held.lock().remove(&name);
            match control.runs.close(&name, "its holder is gone").await {
                // It was closed properly.
                Ok(()) | Err(Refusal::Missing(_)) => {}
                Err(error) => tracing::error!(%error, run = name, "cannot close a run"),
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn close_run(&self, request: Request<Name>) -> Result<Response<Empty>, Status> {
        let by = caller(&request);
        let name = request.into_inner().name;
        let control = Arc::clone(&self.0);
        detached(async move {
            control.runs.close(&name, &format!("by {by}")).await.map(|()| Response::new(Empty {}))
        })
        .await
    }
}

// === impl Control ===

impl Control {
    /// Waits until the planes that are there run the live generation, or have refused, or are too slow.
    async fn settled(&self) {
        let generation = self.governor.live().model.generation;
        let planes =
            async { tokio::join!(self.runs.link.settled(generation), self.workers.settled(generation)) };
        let _ = tokio::time::timeout(SETTLE_TIME_MAX, planes).await;
    }

    /// Whether both planes run `generation` or a later one.
    fn is_in_force(&self, generation: u64) -> bool {
        self.runs.link.state().applied >= generation
            && self.workers.list().iter().all(|worker| worker.generation >= generation)
    }

    /// Waits until the planes that are there know who is quarantined, or are too slow.
    async fn isolated(&self) {
        let serial = self.quarantines.live().serial;
        let planes = async { tokio::join!(self.runs.link.isolated(serial), self.workers.isolated(serial)) };
        let _ = tokio::time::timeout(SETTLE_TIME_MAX, planes).await;
    }

    async fn create_agent(&self, new: NewAgent, by: &str) -> Result<CreatedAgent, Refusal> {
        let key = if new.key { Some(self.runs.keyring.make().await?) } else { None };
        let agent = Agent {
            id: new.id,
            index: 0,
            team: new.team,
            project: new.project,
            environment: new.environment,
            labels: new.labels,
            state: AgentState::Active,
            sources: new.sources,
        };
        let detail = |after: &Agent| format!("agent created by {by}: is {}", json(after));
        let (agent, _) = self
            .governor
            .change(detail, |draft| {
                let agent = draft.create_agent(agent.clone(), &self.governor.config)?;
                if let Some(key) = &key {
                    draft.put_key(&key.id, &agent.id, key.mac, None)?;
                }
                Ok(agent)
            })
            .await?;
        self.settled().await;
        Ok(CreatedAgent { agent, api_key: key.map(|k| k.text) })
    }

    async fn apply_policy(
        &self,
        new: NewPolicy<PolicyBundle>,
        by: &str,
    ) -> Result<PolicyRevision<PolicyBundle>, Refusal> {
        let bundle = serde_json::to_vec(&new.bundle).map_err(|e| Refusal::Invalid(e.to_string()))?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bundle);
        let hash: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let revision = PolicyRevision {
            number: 0,
            parent: 0,
            time: self.clock.now(),
            author: if new.author.is_empty() { by.to_owned() } else { new.author },
            message: new.message,
            hash,
            bundle: Some(new.bundle),
            generation: None,
        };
        let detail = |after: &PolicyRevision<PolicyBundle>| {
            let PolicyRevision { number, parent, hash, message, .. } = after;
            format!("policy revision {number} ({hash}) applied by {by} after revision {parent}: {message}")
        };
        let text = revision.bundle.as_ref().map_or("", |bundle| bundle.text.as_str());
        let geo = self.governor.geo_of(text).await?;
        let (mut revision, generation) =
            self.governor.change(detail, |draft| draft.apply_policy(revision.clone(), &geo)).await?;
        self.settled().await;
        revision.generation = Some(generation.model.generation);
        Ok(revision)
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

async fn read_audit(
    control: Arc<Control>,
    filter: Filter,
    follow: bool,
    sender: mpsc::Sender<Result<Document, Status>>,
) {
    let (news, start) = control.audit.follow();
    let found = match control.audit.search(filter.clone(), start).await {
        Ok(found) => found,
        Err(error) => {
            let _ = sender.send(Err(Status::unavailable(error.to_string()))).await;
            return;
        }
    };
    for kept in found {
        if sender.send(line(&kept.record)).await.is_err() {
            return;
        }
    }
    if follow {
        follow_audit(&control, &filter, (news, start), &sender).await;
    }
}

/// Sends records as they become durable, from number `start` on; what the reader was too slow for is counted.
async fn follow_audit(
    control: &Control,
    filter: &Filter,
    (mut news, start): (broadcast::Receiver<Kept>, u64),
    sender: &mpsc::Sender<Result<Document, Status>>,
) {
    loop {
        let next = tokio::select! {
            () = control.stop.cancelled() => return,
            () = sender.closed() => return,
            next = news.recv() => next,
        };
        let sent = match next {
            Ok(kept) if kept.sequence < start || !filter.matches(&kept.record) => continue,
            Ok(kept) => sender.send(line(&kept.record)).await,
            Err(RecvError::Lagged(missed)) => {
                let mut gap = control.audit.record(RecordKind::Gap, control.governor.live().model.generation);
                gap.count = Some(missed);
                gap.detail = Some("this reader was too slow; the records are in the log".into());
                sender.send(line(&gap)).await
            }
            Err(RecvError::Closed) => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

fn line(record: &AuditRecord) -> Result<Document, Status> {
    let json = serde_json::to_vec(record).map_err(|e| Status::internal(e.to_string()))?;
    Ok(Document { json })
}

/// Who calls, by the credentials of the socket.
fn caller<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map_or_else(|| "unknown".into(), Peer::user)
}

fn parsed<T: DeserializeOwned>(request: Request<Document>) -> Result<T, Status> {
    serde_json::from_slice(&request.into_inner().json)
        .map_err(|e| Status::invalid_argument(format!("the request is not understood: {e}")))
}

fn not_a_number(text: &str) -> Status {
    Status::invalid_argument(format!(
        "`{text}` is not the number of an agent; see `clawgressctl agent quarantines`"
    ))
}

fn agent_id(name: &Name) -> Result<AgentId, Status> {
    name.name.parse().map_err(|e: clawgress_identity::AgentIdError| Status::invalid_argument(e.to_string()))
}

fn source_id(name: &Name) -> Result<SourceId, Status> {
    name.name.parse().map_err(|e: clawgress_identity::AgentIdError| Status::invalid_argument(e.to_string()))
}

fn issuer_id(name: &Name) -> Result<RootId, Status> {
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
        Refusal::Unsupported(_) => Status::failed_precondition(text),
        Refusal::Full(_) => Status::resource_exhausted(text),
        Refusal::Policy(errors) => {
            let problems = serde_json::to_vec(&errors.problems).unwrap_or_default();
            Status::with_details(tonic::Code::InvalidArgument, text, problems.into())
        }
        Refusal::Unavailable(_) => Status::unavailable(text),
        Refusal::Store(_) => Status::internal(text),
        Refusal::Audit(AuditError::Closed) => {
            Status::unavailable("the change was made, but control is stopping; the next start will record it")
        }
        Refusal::Audit(_) => Status::internal(format!(
            "the change was made, but will be recorded only at the next start: {text}"
        )),
    }
}
