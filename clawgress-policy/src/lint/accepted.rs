//! Proven findings that whoever applies a policy takes responsibility for, by their names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Certainty, Finding, Lint};
use crate::members::name_is_valid;

/// Most that one policy is applied with: whoever would name more names a kind. What is signed of a revision stays small.
pub const ACCEPTED_MAX: usize = 16;

/// What is accepted: findings of a kind, at one policy or wherever they are. Written as `KIND` or `KIND:POLICY`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Accepted {
    lint: Lint,
    policy: Option<String>,
}

/// Why something can't be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptedError {
    /// No such kind.
    #[error(
        "`{0}` is no finding: write `KIND` or `KIND:POLICY`, where the kind is `never-matches`, `covered-by-forbid` or `not-enforced`"
    )]
    Unknown(String),
    /// A text that is no policy says nothing that anybody could accept.
    #[error("what is invalid can't be accepted: correct it")]
    Invalid,
    /// Warnings stop nothing.
    #[error("`{0}` is only ever a warning, which is applied without being accepted: leave it out")]
    Warning(&'static str),
    /// No policy has such an id.
    #[error("`{0}` is no policy's id: write `KIND:POLICY`, as the finding has them")]
    Policy(String),
}

/// What of a policy's findings was accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    /// What of that which was named accepted anything.
    pub by: Vec<String>,
    /// What it accepted, as `KIND:POLICY`, by place.
    pub findings: Vec<String>,
}

// === impl Accepted ===

impl Accepted {
    fn takes(&self, finding: &Finding) -> bool {
        self.lint == finding.lint && self.policy.as_ref().is_none_or(|id| finding.policy.as_ref() == Some(id))
    }

    /// Whether it is by this that a finding was accepted.
    #[must_use]
    pub fn took(&self, finding: &Finding) -> bool {
        finding.severity == Certainty::Accepted && self.takes(finding)
    }

    /// Marks the findings that are accepted; returns what did, and which.
    pub(super) fn mark(accepted: &[Accepted], findings: &mut [Finding]) -> Acceptance {
        let mut acceptance = Acceptance::default();
        for finding in findings.iter_mut().filter(|finding| finding.severity == Certainty::Error) {
            if accepted.iter().any(|accepted| accepted.takes(finding)) {
                finding.severity = Certainty::Accepted;
                acceptance.findings.extend(finding.name());
            }
        }
        let did = |by: &&Accepted| findings.iter().any(|finding| by.took(finding));
        acceptance.by = accepted.iter().filter(did).map(ToString::to_string).collect();
        acceptance.by.sort();
        acceptance.by.dedup();
        acceptance
    }
}

impl FromStr for Accepted {
    type Err = AcceptedError;

    fn from_str(text: &str) -> Result<Accepted, AcceptedError> {
        let (kind, policy) = match text.split_once(':') {
            Some((kind, policy)) => (kind, Some(policy)),
            None => (text, None),
        };
        let shown = |text: &str| crate::host::quote(text);
        let lint = Lint::ALL.into_iter().find(|lint| lint.name() == kind);
        let lint = lint.ok_or_else(|| AcceptedError::Unknown(shown(kind)))?;
        match lint {
            Lint::Invalid => return Err(AcceptedError::Invalid),
            _ if lint.is_acceptable() => {}
            _ => return Err(AcceptedError::Warning(lint.name())),
        }
        if let Some(id) = policy.filter(|id| !name_is_valid(id)) {
            return Err(AcceptedError::Policy(shown(id)));
        }
        Ok(Accepted { lint, policy: policy.map(str::to_owned) })
    }
}

impl fmt::Display for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.lint.name())?;
        self.policy.iter().try_for_each(|policy| write!(f, ":{policy}"))
    }
}

// === impl Lint ===

impl Lint {
    /// Every one.
    pub const ALL: [Lint; 11] = [
        Lint::Invalid,
        Lint::NeverMatches,
        Lint::CoveredByForbid,
        Lint::NotEnforced,
        Lint::UnknownPrincipal,
        Lint::FormerName,
        Lint::Moot,
        Lint::NeverRead,
        Lint::PlatformDenies,
        Lint::NonePermits,
        Lint::Unfinished,
    ];

    /// The name, as findings and documents have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Lint::Invalid => "invalid",
            Lint::NeverMatches => "never-matches",
            Lint::CoveredByForbid => "covered-by-forbid",
            Lint::NotEnforced => "not-enforced",
            Lint::UnknownPrincipal => "unknown-principal",
            Lint::FormerName => "former-name",
            Lint::Moot => "moot",
            Lint::NeverRead => "never-read",
            Lint::PlatformDenies => "platform-denies",
            Lint::NonePermits => "none-permits",
            Lint::Unfinished => "unfinished",
        }
    }

    /// Whether it can be proven, and accepted all the same: what the policy says is then known, and does nothing.
    #[must_use]
    pub fn is_acceptable(self) -> bool {
        matches!(self, Lint::NeverMatches | Lint::CoveredByForbid | Lint::NotEnforced)
    }
}
