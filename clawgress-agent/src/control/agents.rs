//! Agents in the registry. Whatever an agent names (its groups) or that names it (keys, runs, shared sources) is
//! there as long as it is.

use clawgress_api::config::Config;
use clawgress_api::{AgentChange, MissingGroups};
use clawgress_ebpf_common::bound;
use clawgress_identity::{Agent, AgentId, AgentState, GroupId, SourceId};

use super::groups::{check_labels, missing};
use super::model::{AGENT, Draft, Model, NEXT_INDEX, Refusal};

/// Agents on one node: the number the project promises, with the kernel tables sized for it.
pub const AGENTS_MAX: usize = 10_000;

// === impl Model ===

impl Model {
    /// The agent, or a refusal that says what to do.
    ///
    /// # Errors
    /// If there is none.
    pub fn agent(&self, id: &AgentId) -> Result<&Agent, Refusal> {
        self.agents.get(id).ok_or_else(|| {
            Refusal::Missing(format!("there is no agent `{id}`; see `clawgressctl agent list`"))
        })
    }
}

// === impl Draft ===

impl Draft {
    /// Registers an agent under a number that was never used before. Returns it, and the groups that were registered
    /// with it at a Unix time in seconds.
    ///
    /// # Errors
    /// If it exists, names a group that doesn't and shall not be registered, a source is taken or can't be enforced
    /// here, or a bound is reached.
    pub fn create_agent(
        &mut self,
        mut agent: Agent,
        config: &Config,
        (missing, now_s): (MissingGroups, i64),
    ) -> Result<(Agent, Vec<GroupId>), Refusal> {
        if self.model.agents.contains_key(&agent.id) {
            return Err(Refusal::Exists(format!("there is an agent `{}` already", agent.id)));
        }
        if self.model.agents.len() >= AGENTS_MAX {
            return Err(Refusal::Full(format!("a node has at most {AGENTS_MAX} agents")));
        }
        check_labels(&agent.labels)?;
        let registered = self.place(&agent, missing, now_s)?;
        self.model.check_sources(&agent.sources, config, "--source")?;
        agent.index = self.model.next_index;
        let next = agent.index.checked_add(1).filter(|next| *next <= bound::AGENT_INDICES_MAX);
        self.model.next_index = next.ok_or_else(|| Refusal::Full("all agent numbers are used".into()))?;
        let next_index = self.model.next_index;
        self.put(NEXT_INDEX, &next_index)?;
        self.put_agent(agent.clone())?;
        Ok((agent, registered))
    }

    /// Changes the groups an agent is in, or its labels. Returns it as it was and as it is, and the groups that were
    /// registered with that.
    ///
    /// # Errors
    /// If there is none, it would name a group that doesn't exist and shall not be registered, or a bound is reached.
    pub fn set_agent(
        &mut self,
        change: &AgentChange,
        now_s: i64,
    ) -> Result<(Agent, Agent, Vec<GroupId>), Refusal> {
        let before = self.model.agent(&change.id)?.clone();
        let after = Agent {
            team: change.team.applied_to(&before.team),
            project: change.project.applied_to(&before.project),
            environment: change.environment.applied_to(&before.environment),
            labels: change.labels.applied_to(&before.labels),
            ..before.clone()
        };
        check_labels(&after.labels)?;
        let registered = self.place(&after, change.missing, now_s)?;
        if after != before {
            self.put_agent(after.clone())?;
        }
        Ok((before, after, registered))
    }

    /// Changes an agent's state. Returns it as it was.
    ///
    /// # Errors
    /// If there is none.
    pub fn set_state(&mut self, id: &AgentId, state: AgentState) -> Result<Agent, Refusal> {
        let before = self.model.agent(id)?.clone();
        if before.state != state {
            self.put_agent(Agent { state, ..before.clone() })?;
        }
        Ok(before)
    }

    /// Removes an agent with its keys, ends its runs, and takes it out of the shared sources that name it.
    /// Returns it as it was, and those.
    ///
    /// # Errors
    /// If there is none.
    pub fn delete_agent(&mut self, id: &AgentId) -> Result<(Agent, Vec<SourceId>), Refusal> {
        let agent = self.model.agent(id)?.clone();
        self.model.agents.remove(id);
        self.delete(format!("{AGENT}{id}"));
        self.delete_keys_of(id);
        let runs: Vec<String> =
            self.model.runs.values().filter(|r| r.agent == *id).map(|r| r.name.clone()).collect();
        for run in runs {
            self.close_run(&run)?;
        }
        self.governs = true;
        Ok((agent, self.unlist(id)?))
    }

    /// Sees to it that every group of an agent exists. Returns those that were registered for that.
    fn place(
        &mut self,
        agent: &Agent,
        unregistered: MissingGroups,
        now_s: i64,
    ) -> Result<Vec<GroupId>, Refusal> {
        let groups = GroupId::all_of(agent).map_err(|e| Refusal::Invalid(e.to_string()))?;
        match groups.iter().find(|group| !self.model.groups.contains_key(group)) {
            Some(group) if unregistered == MissingGroups::Refuse => Err(missing(group)),
            _ => self.register(groups, now_s),
        }
    }

    fn put_agent(&mut self, agent: Agent) -> Result<(), Refusal> {
        self.put(&format!("{AGENT}{}", agent.id), &agent)?;
        self.model.agents.insert(agent.id.clone(), agent);
        self.governs = true;
        Ok(())
    }
}
