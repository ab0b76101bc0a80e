//! Which agent a credential's names stand for: declarative, bounded, and the same every time.
//!
//! INVARIANT: a credential only ever narrows. The agent has to be in the registry, and what is mapped of team,
//! project and environment has to be what the registry says. A root of trust speaks for agents of its own tenant,
//! and for other tenants only by a table that names them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Agent, AgentId, name_is_valid};

/// Most entries of a table.
const TABLE_MAX: usize = 1024;
/// Longest text of a rule, bytes.
const TEXT_BYTES_MAX: usize = 512;
/// Most requirements, and most values of one.
const REQUIREMENTS_MAX: usize = 32;
const VALUES_MAX: usize = 256;

/// How names become an agent. `S` says where a name stands: a claim, a name of a certificate, a part of a SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapping<S> {
    /// The agent's name.
    pub agent: Rule<S>,
    /// Its tenant, which needs a table; without a rule it is the tenant of whoever is trusted.
    #[serde(default = "no_rule", skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Rule<S>>,
    /// The team it must be of.
    #[serde(default = "no_rule", skip_serializing_if = "Option::is_none")]
    pub team: Option<Rule<S>>,
    /// The project it must be of.
    #[serde(default = "no_rule", skip_serializing_if = "Option::is_none")]
    pub project: Option<Rule<S>>,
    /// The environment it must be of.
    #[serde(default = "no_rule", skip_serializing_if = "Option::is_none")]
    pub environment: Option<Rule<S>>,
    /// What else must hold.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub require: Vec<Requirement<S>>,
}

fn no_rule<S>() -> Option<Rule<S>> {
    None
}

/// How one name is found: `from` a place, without `prefix` and `suffix`, which must be there, and through `table`,
/// if there is one; or `value`, the same for all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule<S> {
    /// Where it stands.
    #[serde(default = "nowhere", skip_serializing_if = "Option::is_none")]
    pub from: Option<S>,
    /// The same for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What it must begin with, and is taken off.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// What it must end with, and is taken off.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub suffix: String,
    /// What stands for what; anything else stands for nobody.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub table: BTreeMap<String, String>,
}

fn nowhere<S>() -> Option<S> {
    None
}

/// What must hold: one of the values `from` a place is one of `any_of`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement<S> {
    /// Where it stands.
    pub from: S,
    /// What may stand there.
    pub any_of: BTreeSet<String>,
}

/// A part of an agent's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its name.
    Agent,
    /// Its tenant.
    Tenant,
    /// Its team.
    Team,
    /// Its project.
    Project,
    /// Its environment.
    Environment,
    /// Another agent, that acts for it.
    Actor,
}

/// Why a credential's names stand for no agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// Nothing that is there stands for one.
    #[error("nothing in it stands for the {0}")]
    Nothing(Part),
    /// Several names would do.
    #[error("several names in it stand for the {0}")]
    Several(Part),
    /// The name is reserved.
    #[error("it stands for a reserved name")]
    Reserved,
    /// A requirement of the mapping does not hold.
    #[error("requirement {0} of the mapping does not hold")]
    Required(usize),
    /// The registry has the agent elsewhere.
    #[error("the agent is of another {0}")]
    Other(Part),
}

/// Why a mapping was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MappingRuleError {
    /// Both `from` and `value`, or neither, or a part of `from` without it.
    #[error("the rule for the {0} needs either `from` (with `prefix`, `suffix`, `table`) or `value` alone")]
    Form(Part),
    /// A constant that is no name.
    #[error("the rule for the {0} gives something that is no name: use 1 to 63 of a-z, 0-9, `-`, `_` or `.`")]
    Name(Part),
    /// A rule that lets any tenant be named.
    #[error("the rule for the tenant needs a `table` that names the tenants, or `value`")]
    TenantTable,
    /// The same for all agents.
    #[error("the rule for the agent needs `from`: a `value` would make everybody the same agent")]
    AgentValue,
    /// Too much of something.
    #[error(
        "the mapping is too large: {TABLE_MAX} entries of a table, {REQUIREMENTS_MAX} requirements with {VALUES_MAX} values, {TEXT_BYTES_MAX} bytes of text at most"
    )]
    Size,
    /// A requirement that nothing meets.
    #[error("requirement {0} has an empty `any_of`, which nothing meets")]
    Empty(usize),
}

/// What a credential's names stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) agent: AgentId,
    parts: Vec<(Part, String)>,
}

/// The values that stand at a place of a credential. Most often there is one.
#[derive(Clone, Debug)]
pub(crate) enum Values<'a> {
    One(Cow<'a, str>),
    Others(Vec<Cow<'a, str>>),
}

// === impl Values ===

impl<'a> Values<'a> {
    fn iter(&self) -> impl Iterator<Item = &Cow<'a, str>> {
        match self {
            Values::One(value) => std::slice::from_ref(value).iter(),
            Values::Others(values) => values.iter(),
        }
    }
}

impl<'a> FromIterator<Cow<'a, str>> for Values<'a> {
    fn from_iter<I: IntoIterator<Item = Cow<'a, str>>>(values: I) -> Self {
        let mut values = values.into_iter();
        match (values.next(), values.next()) {
            (Some(one), None) => Values::One(one),
            (first, second) => Values::Others(first.into_iter().chain(second).chain(values).collect()),
        }
    }
}

// === impl Mapping ===

impl<S> Mapping<S> {
    /// Whether it is complete and bounded.
    pub(crate) fn check(&self) -> Result<(), MappingRuleError> {
        self.agent.check(Part::Agent)?;
        if self.agent.value.is_some() {
            return Err(MappingRuleError::AgentValue);
        }
        for (part, rule) in self.parts() {
            rule.check(part)?;
        }
        if let Some(tenant) = &self.tenant {
            tenant.check(Part::Tenant)?;
            if tenant.value.is_none() && tenant.table.is_empty() {
                return Err(MappingRuleError::TenantTable);
            }
        }
        if self.require.len() > REQUIREMENTS_MAX {
            return Err(MappingRuleError::Size);
        }
        for (n, requirement) in self.require.iter().enumerate() {
            let any_of = &requirement.any_of;
            if any_of.is_empty() {
                return Err(MappingRuleError::Empty(n + 1));
            }
            if any_of.len() > VALUES_MAX || any_of.iter().any(|v| v.len() > TEXT_BYTES_MAX) {
                return Err(MappingRuleError::Size);
            }
        }
        Ok(())
    }

    /// Every place that is looked at.
    pub(crate) fn places(&self) -> impl Iterator<Item = &S> {
        let rules = [&self.tenant, &self.team, &self.project, &self.environment].into_iter().flatten();
        let rules = rules.chain([&self.agent]).filter_map(|rule| rule.from.as_ref());
        rules.chain(self.require.iter().map(|requirement| &requirement.from))
    }

    fn parts(&self) -> impl Iterator<Item = (Part, &Rule<S>)> {
        let parts = [
            (Part::Team, &self.team),
            (Part::Project, &self.project),
            (Part::Environment, &self.environment),
        ];
        parts.into_iter().filter_map(|(part, rule)| Some((part, rule.as_ref()?)))
    }

    /// Maps the values that stand `at` each place. `tenant` is that of whoever is trusted.
    pub(crate) fn apply<'a>(
        &self,
        tenant: &str,
        at: impl Fn(&S) -> Values<'a>,
    ) -> Result<Mapped, MappingError> {
        for (n, requirement) in self.require.iter().enumerate() {
            if !at(&requirement.from).iter().any(|value| requirement.any_of.contains(&**value)) {
                return Err(MappingError::Required(n + 1));
            }
        }
        let tenant = match &self.tenant {
            Some(rule) => Cow::Owned(rule.apply(Part::Tenant, &at)?),
            None => Cow::Borrowed(tenant),
        };
        let name = self.agent.apply(Part::Agent, &at)?;
        let agent = AgentId::new(&tenant, &name).map_err(|_| MappingError::Reserved)?;
        let parts = self.parts().map(|(part, rule)| Ok((part, rule.apply(part, &at)?)));
        Ok(Mapped { agent, parts: parts.collect::<Result<_, MappingError>>()? })
    }
}

// === impl Rule ===

impl<S> Rule<S> {
    pub(crate) fn check(&self, part: Part) -> Result<(), MappingRuleError> {
        let is_plain = self.prefix.is_empty() && self.suffix.is_empty() && self.table.is_empty();
        match (&self.from, &self.value) {
            (Some(_), None) => {}
            (None, Some(value)) if is_plain => {
                return if name_is_valid(value) { Ok(()) } else { Err(MappingRuleError::Name(part)) };
            }
            _ => return Err(MappingRuleError::Form(part)),
        }
        let texts = [&self.prefix, &self.suffix].into_iter().chain(self.table.keys());
        if self.table.len() > TABLE_MAX || texts.into_iter().any(|t| t.len() > TEXT_BYTES_MAX) {
            return Err(MappingRuleError::Size);
        }
        if self.table.values().all(|name| name_is_valid(name)) {
            Ok(())
        } else {
            Err(MappingRuleError::Name(part))
        }
    }

    /// The one name that the values stand for. Two values may stand for the same.
    pub(crate) fn apply<'a>(
        &self,
        part: Part,
        at: impl Fn(&S) -> Values<'a>,
    ) -> Result<String, MappingError> {
        let Some(from) = &self.from else { return self.value.clone().ok_or(MappingError::Nothing(part)) };
        let mut found: Option<String> = None;
        for value in at(from).iter() {
            let Some(name) = self.name(value) else { continue };
            match &found {
                Some(other) if other != name => return Err(MappingError::Several(part)),
                Some(_) => {}
                None => found = Some(name.to_owned()),
            }
        }
        found.ok_or(MappingError::Nothing(part))
    }

    fn name<'a>(&'a self, value: &'a str) -> Option<&'a str> {
        let core = value.strip_prefix(&*self.prefix)?.strip_suffix(&*self.suffix)?;
        let name = if self.table.is_empty() { core } else { self.table.get(core)? };
        name_is_valid(name).then_some(name)
    }
}

// === impl Mapped ===

impl Mapped {
    /// Whether the registry has the agent where the credential has it.
    pub(crate) fn agrees(&self, agent: &Agent) -> Result<(), MappingError> {
        for (part, name) in &self.parts {
            let own = match part {
                Part::Team => &agent.team,
                Part::Project => &agent.project,
                Part::Environment => &agent.environment,
                Part::Agent | Part::Tenant | Part::Actor => continue,
            };
            if own.as_ref() != Some(name) {
                return Err(MappingError::Other(*part));
            }
        }
        Ok(())
    }
}

// === impl Part ===

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Agent => "agent",
            Part::Tenant => "tenant",
            Part::Team => "team",
            Part::Project => "project",
            Part::Environment => "environment",
            Part::Actor => "actor",
        })
    }
}

#[cfg(test)]
mod tests;
