//! Whose a policy is: the platform's, which holds for everybody, or a tenant's, which holds for its own agents.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{AgentIdError, DEFAULT_TENANT, GroupId};

/// What the platform is called.
const PLATFORM: &str = "platform";
/// What stands before a tenant's name.
const TENANT: &str = "tenant/";

/// Whose a policy is. Prints as `platform` or `tenant/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PolicyOwner {
    /// The operator's: above every tenant's.
    Platform,
    /// A tenant's own.
    Tenant(String),
}

// === impl PolicyOwner ===

impl PolicyOwner {
    /// A tenant, by its name.
    ///
    /// # Errors
    /// If that can't name one.
    pub fn of_tenant(name: &str) -> Result<PolicyOwner, AgentIdError> {
        GroupId::of_tenant(name).map(|tenant| PolicyOwner::Tenant(tenant.tenant().to_owned()))
    }

    /// The tenant, if it is one's.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        match self {
            PolicyOwner::Platform => None,
            PolicyOwner::Tenant(name) => Some(name),
        }
    }

    /// Whether it is the tenant's of whom nothing is said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.tenant() == Some(DEFAULT_TENANT)
    }

    /// In words, for people: `the platform` or `tenant `NAME``.
    #[must_use]
    pub fn told(&self) -> String {
        match self {
            PolicyOwner::Platform => "the platform".to_owned(),
            PolicyOwner::Tenant(name) => format!("tenant `{name}`"),
        }
    }
}

impl Default for PolicyOwner {
    /// The one tenant of a box that has one.
    fn default() -> Self {
        PolicyOwner::Tenant(DEFAULT_TENANT.to_owned())
    }
}

impl fmt::Display for PolicyOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicyOwner::Platform => f.write_str(PLATFORM),
            PolicyOwner::Tenant(name) => write!(f, "{TENANT}{name}"),
        }
    }
}

impl FromStr for PolicyOwner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(TENANT) {
            Some(name) => PolicyOwner::of_tenant(name).map_err(|error| error.to_string()),
            None if text == PLATFORM => Ok(PolicyOwner::Platform),
            None => Err(format!("`{}` is neither `platform` nor `tenant/NAME`", crate::quote::quote(text))),
        }
    }
}

impl TryFrom<String> for PolicyOwner {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PolicyOwner> for String {
    fn from(owner: PolicyOwner) -> String {
        owner.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read() {
        for text in ["platform", "tenant/default", "tenant/acme"] {
            let owner: PolicyOwner = text.parse().expect(text);
            assert_eq!(owner.to_string(), text);
            let json = serde_json::to_string(&owner).expect("json");
            assert_eq!(serde_json::from_str::<PolicyOwner>(&json).expect("owner"), owner);
        }
        assert!(PolicyOwner::default().is_default());
        assert!(!PolicyOwner::Platform.is_default());
        for text in
            ["", "acme", "tenant/platform", "tenant/", "tenant/A", "tenant/a/b", "platform/", "Platform"]
        {
            assert!(text.parse::<PolicyOwner>().is_err(), "{text}");
        }
    }
}
