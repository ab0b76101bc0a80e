//! Agents: the registry, and who of it is quarantined.

use std::sync::Arc;

use clawgress_api::proto::{Document, Documents, Empty, Name};
use clawgress_api::{
    AgentChange, AgentStateChange, ChangedAgent, CreatedAgent, GroupRef, NewAgent, NewQuarantine,
};
use clawgress_identity::{Agent, AgentState, GroupId, SourceId};
use tonic::{Request, Response, Status};

use super::{Answer, agent_id, caller, detached, document, documents, json, parsed, status};
use crate::control::Control;
use crate::control::api_keys::Terms;
use crate::control::groups::besides;
use crate::control::model::{Draft, Refusal};
use crate::control::prepare::Manner;

/// Registers an agent, with a key if one is asked for.
pub(super) async fn create(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let by = caller(&request);
    let new: NewAgent = parsed(request)?;
    let control = Arc::clone(control);
    document(&detached(async move { created(&control, new, &by).await }).await?)
}

/// The agents.
pub(super) fn list(control: &Arc<Control>) -> Result<Response<Documents>, Status> {
    let quarantined = control.quarantines.live();
    documents(control.governor.live().model.agents.values().map(|a| quarantined.shown(a)))
}

/// One agent.
pub(super) fn show(control: &Arc<Control>, request: Request<Name>) -> Answer {
    let id = agent_id(&request.into_inner())?;
    let live = control.governor.live();
    document(&control.quarantines.live().shown(live.model.agent(&id).map_err(status)?))
}

/// Removes an agent; once both planes know, its quarantine too.
pub(super) async fn delete(
    control: &Arc<Control>,
    request: Request<Name>,
) -> Result<Response<Empty>, Status> {
    let by = caller(&request);
    let id = agent_id(&request.into_inner())?;
    let control = Arc::clone(control);
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
            control.governor.withdraw(detail, |draft| draft.delete_agent(&id)).await?;
        control.runs.ended.notify_one();
        control.settled().await;
        if control.is_in_force(deleted.model.generation) {
            control.quarantines.forget(&before, &by).await?;
        }
        Ok(Response::new(Empty {}))
    })
    .await
}

/// The fingerprints that were seen of an agent.
pub(super) fn fingerprints(
    control: &Arc<Control>,
    request: Request<Name>,
) -> Result<Response<Documents>, Status> {
    let id = agent_id(&request.into_inner())?;
    let index = control.governor.live().model.agent(&id).map_err(status)?.index;
    documents(control.observations.fingerprints(index))
}

/// Changes the groups an agent is in, or its labels.
pub(super) async fn set(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let by = caller(&request);
    let change: AgentChange = parsed(request)?;
    let control = Arc::clone(control);
    let set = detached(async move {
        let detail = |(before, after, registered): &(Agent, Agent, Vec<GroupId>)| {
            format!("agent set by {by}: is {}, was {}{}", json(after), json(before), besides(registered))
        };
        let now_s = control.clock.now().as_second();
        // What policy says by groups and labels may be less by the new ones.
        let set = control.governor.change_by(Manner::Forced, detail, |draft| draft.set_agent(&change, now_s));
        let ((_, after, registered), _) = set.await?;
        control.settled().await;
        let registered = registered.iter().map(GroupRef::from).collect();
        Ok(ChangedAgent { agent: control.quarantines.live().shown(&after), registered })
    });
    document(&set.await?)
}

/// Enables or disables an agent.
pub(super) async fn set_state(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let by = caller(&request);
    let AgentStateChange { id, state } = parsed(request)?;
    if state == AgentState::Quarantined {
        return Err(Status::invalid_argument("quarantine an agent with `clawgressctl agent quarantine`"));
    }
    let control = Arc::clone(control);
    let agent = detached(async move {
        let detail = |before: &Agent| {
            let (from, to) = (json(&before.state), json(&state));
            format!("agent `{}` set from {from} to {to} by {by}", before.id)
        };
        let edit = |draft: &mut Draft| draft.set_state(&id, state);
        let (before, _) = match state {
            // What takes away is done also while nothing can be recorded.
            AgentState::Disabled => control.governor.withdraw(detail, edit).await?,
            _ => control.governor.change(detail, edit).await?,
        };
        control.settled().await;
        Ok(control.quarantines.live().shown(&Agent { state, ..before }))
    });
    document(&agent.await?)
}

/// Quarantines an agent.
pub(super) async fn quarantine(control: &Arc<Control>, request: Request<Document>) -> Answer {
    let by = caller(&request);
    let new: NewQuarantine = parsed(request)?;
    let control = Arc::clone(control);
    let put = detached(async move {
        let put = control.quarantines.put(new, &by).await;
        control.isolated().await;
        put
    });
    document(&put.await?)
}

/// Releases an agent from quarantine: the one there is, or one that is no more, by its number.
pub(super) async fn release(control: &Arc<Control>, request: Request<Name>) -> Answer {
    let by = caller(&request);
    let Name { name } = request.into_inner();
    let (name, number) = match name.split_once('#') {
        Some((name, number)) => (name.to_owned(), Some(number.parse().map_err(|_| not_a_number(number))?)),
        None => (name, None),
    };
    let id = agent_id(&Name { name })?;
    let control = Arc::clone(control);
    let released = detached(async move {
        control.quarantines.release(&id, number, &by).await?;
        control.isolated().await;
        Ok(control.governor.live().model.agents.get(&id).cloned())
    });
    document(&released.await?)
}

/// Who is quarantined.
pub(super) fn quarantines(control: &Arc<Control>) -> Result<Response<Documents>, Status> {
    documents(control.quarantines.live().entries())
}

async fn created(control: &Control, new: NewAgent, by: &str) -> Result<CreatedAgent, Refusal> {
    let key = if new.key { Some(control.make_key().await?) } else { None };
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
    let detail = |(after, registered): &(Agent, Vec<GroupId>)| {
        format!("agent created by {by}: is {}{}", json(after), besides(registered))
    };
    let now_s = control.clock.now().as_second();
    let ((agent, registered), _) = control
        .governor
        .change(detail, |draft| {
            let (agent, registered) =
                draft.create_agent(agent.clone(), &control.governor.config, (new.missing, now_s))?;
            if let Some((made, _)) = &key {
                draft.put_key(made, &agent.id, Terms::default())?;
            }
            Ok((agent, registered))
        })
        .await?;
    control.settled().await;
    let registered = registered.iter().map(GroupRef::from).collect();
    Ok(CreatedAgent { agent, api_key: key.map(|(_, text)| text), registered })
}

fn not_a_number(text: &str) -> Status {
    Status::invalid_argument(format!(
        "`{text}` is not the number of an agent; see `clawgressctl agent quarantines`"
    ))
}
