//! Agents and their ids.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Source;

/// The tenant of a single-tenant box; users needn't write it.
pub const DEFAULT_TENANT: &str = "default";

/// Longest tenant or name part, bytes: a DNS label's, so that ids fit anywhere a label does.
const PART_BYTES_MAX: usize = 63;

/// `tenant/name`. Every id carries its tenant; text without one belongs to [`DEFAULT_TENANT`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentId {
    tenant: String,
    name: String,
}

/// Why an id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentIdError {
    /// A part is empty, too long, or has other characters.
    #[error(
        "`{0}` is not an id: use 1 to 63 of a-z, 0-9, `-`, `_` or `.`, starting with a letter or digit, optionally after `TENANT/`"
    )]
    Syntax(String),
}

impl AgentId {
    /// The id `tenant/name`.
    ///
    /// # Errors
    /// If either part is not 1 to 63 of `a-z 0-9 - _ .`, starting with a letter or digit.
    pub fn new(tenant: &str, name: &str) -> Result<Self, AgentIdError> {
        if part_is_valid(tenant) && part_is_valid(name) {
            Ok(AgentId { tenant: tenant.to_owned(), name: name.to_owned() })
        } else {
            Err(AgentIdError::Syntax(format!("{tenant}/{name}")))
        }
    }

    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The name within the tenant.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Whether `part` may be a tenant, team, project, environment or agent name.
pub(crate) fn part_is_valid(part: &str) -> bool {
    let mut bytes = part.bytes();
    part.len() <= PART_BYTES_MAX
        && bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
}

impl FromStr for AgentId {
    type Err = AgentIdError;

    fn from_str(text: &str) -> Result<Self, AgentIdError> {
        match text.split_once('/') {
            Some((tenant, name)) => AgentId::new(tenant, name),
            None => AgentId::new(DEFAULT_TENANT, text).map_err(|_| AgentIdError::Syntax(text.to_owned())),
        }
    }
}

impl TryFrom<String> for AgentId {
    type Error = AgentIdError;

    fn try_from(text: String) -> Result<Self, AgentIdError> {
        text.parse()
    }
}

impl From<AgentId> for String {
    fn from(id: AgentId) -> String {
        id.to_string()
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.name)
    }
}

/// Whether an agent may do anything at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// Policy decides.
    Active,
    /// Nothing passes until it is released.
    Quarantined,
    /// Nothing passes.
    Disabled,
}

/// An agent as the registry holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// Stable number, never reused; what the kernel tables and events carry. Not 0.
    pub index: u32,
    /// Team within the tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// Project within the tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Environment within the tenant, such as `prod`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether it may do anything.
    pub state: AgentState,
    /// Where its traffic comes from (source bindings of the kind `is`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
}
