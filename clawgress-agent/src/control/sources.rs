//! Shared sources: which host of several agents, or NAT before them, may present whose credentials. Whoever is
//! bound to what, an interface and prefix has one holder, be it an agent or a shared source.

use std::collections::BTreeSet;

use clawgress_api::SharedSourceChange;
use clawgress_api::config::{Config, DatapathMode, Role};
use clawgress_identity::{AgentId, SharedSource, Source, SourceId};

use super::model::{Draft, Model, Refusal};

/// Source bindings of one agent, and of one shared source.
pub(super) const SOURCES_MAX: usize = 64;
/// Shared sources of one node: more hosts than hold its agents by some dozens each.
const SHARED_MAX: usize = 1024;
/// Agents that one shared source may present: more than one host runs. What is behind a larger NAT has shorter
/// prefixes of its own, or sources of its own.
const PRESENTED_MAX: usize = 256;

/// Keys of shared sources.
pub(super) const SHARED: &str = "source/";

// === impl Model ===

impl Model {
    /// The shared source, or a refusal that says what to do.
    ///
    /// # Errors
    /// If there is none.
    pub fn shared_source(&self, id: &SourceId) -> Result<&SharedSource, Refusal> {
        self.shared.get(id).ok_or_else(|| {
            Refusal::Missing(format!("there is no shared source `{id}`; see `clawgressctl source list`"))
        })
    }

    /// Who holds exactly this source, in words.
    fn holder(&self, source: &Source) -> Option<String> {
        let same = |other: &Source| other.interface == source.interface && other.prefix == source.prefix;
        let agent = self.agents.values().find(|a| a.sources.iter().any(same));
        let agent = agent.map(|a| format!("agent `{}`", a.id));
        let shared = || self.shared.values().find(|s| s.at.iter().any(same));
        agent.or_else(|| shared().map(|s| format!("shared source `{}`", s.id)))
    }

    /// Whether somebody new may have these sources, which `option` of the command line names.
    ///
    /// # Errors
    /// If there are too many, one is taken or given twice, or can't be enforced here.
    pub(super) fn check_sources(
        &self,
        sources: &[Source],
        config: &Config,
        option: &str,
    ) -> Result<(), Refusal> {
        if sources.len() > SOURCES_MAX {
            return Err(Refusal::Full(format!("one binding has at most {SOURCES_MAX} sources")));
        }
        if config.datapath.mode == DatapathMode::None && !sources.is_empty() {
            return Err(Refusal::Unsupported(format!(
                "this node's datapath is `none`: nothing would enforce a source; leave {option} out, or set `mode = \"kernel\"`"
            )));
        }
        for (n, source) in sources.iter().enumerate() {
            if !config.interfaces.iter().any(|i| i.name == source.interface && i.role == Role::Agents) {
                let name = &source.interface;
                return Err(Refusal::Invalid(format!(
                    "`{name}` is not an agents' interface; add it to the configuration as [[interface]] with `role = \"agents\"`"
                )));
            }
            if let Some(other) = self.holder(source) {
                return Err(Refusal::Exists(format!("source `{source}` is bound to {other}")));
            }
            let same = |other: &Source| other.interface == source.interface && other.prefix == source.prefix;
            if sources.iter().take(n).any(same) {
                return Err(Refusal::Invalid(format!("source `{source}` is given twice")));
            }
        }
        Ok(())
    }

    /// Whether somebody may present less, or from fewer places, once this is changed.
    pub(super) fn is_narrowed_by(&self, change: &SharedSourceChange) -> bool {
        let Some(before) = self.shared.get(&change.id) else { return false };
        let agents = change.may_present.as_ref();
        agents.is_some_and(|after| !before.may_present.is_subset(after))
            || change.at.as_ref().is_some_and(|after| before.at.iter().any(|at| !after.contains(at)))
    }

    fn check_presented(&self, agents: &BTreeSet<AgentId>) -> Result<(), Refusal> {
        if agents.is_empty() {
            return Err(Refusal::Invalid("a shared source may present at least one agent".into()));
        }
        if agents.len() > PRESENTED_MAX {
            return Err(Refusal::Full(format!("a shared source may present at most {PRESENTED_MAX} agents")));
        }
        agents.iter().try_for_each(|agent| self.agent(agent).map(drop))
    }
}

fn check_at(at: &[Source]) -> Result<(), Refusal> {
    if at.is_empty() {
        return Err(Refusal::Invalid("a shared source has at least one place; give --at".into()));
    }
    Ok(())
}

// === impl Draft ===

impl Draft {
    /// Adds a shared source.
    ///
    /// # Errors
    /// If it exists, has no place or nobody to present, names an agent that doesn't exist or a source that is
    /// taken or can't be enforced here, or a bound is reached.
    pub fn add_source(&mut self, new: SharedSource, config: &Config) -> Result<SharedSource, Refusal> {
        if self.model.shared.contains_key(&new.id) {
            return Err(Refusal::Exists(format!("there is a shared source `{}` already", new.id)));
        }
        if self.model.shared.len() >= SHARED_MAX {
            return Err(Refusal::Full(format!("a node has at most {SHARED_MAX} shared sources")));
        }
        check_at(&new.at)?;
        self.model.check_presented(&new.may_present)?;
        self.model.check_sources(&new.at, config, "it")?;
        self.put_source(new.clone())?;
        Ok(new)
    }

    /// Changes where a shared source is, or whom it may present. Returns it as it was, and as it is.
    ///
    /// # Errors
    /// If there is none, or its places or agents are not acceptable; then the draft is none.
    pub fn set_source(
        &mut self,
        change: &SharedSourceChange,
        config: &Config,
    ) -> Result<(SharedSource, SharedSource), Refusal> {
        let before = self.model.shared_source(&change.id)?.clone();
        let mut after = before.clone();
        if let Some(agents) = &change.may_present {
            self.model.check_presented(agents)?;
            after.may_present.clone_from(agents);
        }
        if let Some(at) = &change.at {
            check_at(at)?;
            // What it gives up, or has already, may be its own again.
            self.model.shared.remove(&change.id);
            self.model.check_sources(at, config, "it")?;
            self.model.shared.insert(change.id.clone(), before.clone());
            after.at.clone_from(at);
        }
        if after != before {
            self.put_source(after.clone())?;
        }
        Ok((before, after))
    }

    /// Removes a shared source: its addresses are bound no more. Returns it as it was.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove_source(&mut self, id: &SourceId) -> Result<SharedSource, Refusal> {
        let before = self.model.shared_source(id)?.clone();
        self.model.shared.remove(id);
        self.delete(format!("{SHARED}{id}"));
        self.governs = true;
        Ok(before)
    }

    /// Takes an agent that is no more out of every shared source, so that another of its name isn't presented
    /// unasked. One that is left with nobody stays, and may present nobody: its addresses don't become
    /// anybody's. Gives those that named it.
    pub(super) fn unlist(&mut self, agent: &AgentId) -> Result<Vec<SourceId>, Refusal> {
        let named = self.model.shared.values().filter(|s| s.may_present.contains(agent));
        let named: Vec<SharedSource> = named.cloned().collect();
        for shared in &named {
            let mut shared = shared.clone();
            shared.may_present.remove(agent);
            self.put_source(shared)?;
        }
        Ok(named.into_iter().map(|shared| shared.id).collect())
    }

    fn put_source(&mut self, source: SharedSource) -> Result<(), Refusal> {
        self.put(&format!("{SHARED}{}", source.id), &source)?;
        self.model.shared.insert(source.id.clone(), source);
        self.governs = true;
        Ok(())
    }
}
