//! Shared sources: hosts of several agents, and addresses behind which several hide (a NAT). Such a source is
//! nobody by itself; it says whose credentials may come from there.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{AgentId, AgentIdError, Source};

/// `tenant/name` of a shared source, by the rules of an [`AgentId`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SourceId(AgentId);

impl SourceId {
    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> &str {
        self.0.tenant()
    }
}

impl FromStr for SourceId {
    type Err = AgentIdError;

    fn from_str(text: &str) -> Result<Self, AgentIdError> {
        text.parse().map(SourceId)
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A source binding of the kind `may_present`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedSource {
    /// Its id.
    pub id: SourceId,
    /// Where its traffic comes from.
    pub at: Vec<Source>,
    /// Whose credentials it may present; nobody's, if empty.
    pub may_present: BTreeSet<AgentId>,
}
