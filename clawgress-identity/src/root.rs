//! Ids of those who are trusted to say who agents are: issuers of tokens, certificate authorities, trust domains.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{AgentId, AgentIdError};

/// `tenant/name`, by the rules of an [`AgentId`]. It speaks for agents of its tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RootId(AgentId);

impl RootId {
    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> &str {
        self.0.tenant()
    }
}

impl FromStr for RootId {
    type Err = AgentIdError;

    fn from_str(text: &str) -> Result<Self, AgentIdError> {
        text.parse().map(RootId)
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
