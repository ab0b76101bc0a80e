//! Agents and their ids.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Source;
use crate::quote::quote;

/// The tenant of a single-tenant box; users needn't write it.
pub const DEFAULT_TENANT: &str = "default";

/// Longest tenant or name part, bytes: a DNS label's, so that ids fit anywhere a label does.
const PART_BYTES_MAX: usize = 63;

/// Names no agent may have: in records and queries they stand for traffic that has no agent, or for
/// the gateway itself.
const NAMES_RESERVED: [&str; 4] = ["anonymous", "unauthenticated", "gateway", "clawgress"];
/// Tenants that belong to the gateway: the set every tenant is under, and its own principals.
const TENANTS_RESERVED: [&str; 2] = ["platform", "clawgress"];

/// `tenant/name`. Every id carries its tenant; text without one belongs to [`DEFAULT_TENANT`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentId {
    tenant: String,
    name: String,
}

/// Why an id was refused. The quoted text is escaped and shortened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentIdError {
    /// A part is empty, too long, or has other characters.
    #[error(
        "`{0}` is not an id: use 1 to 63 of a-z, 0-9, `-`, `_` or `.`, starting with a letter or digit, optionally after `TENANT/`"
    )]
    Syntax(String),
    /// The name or the tenant stands for something else.
    #[error("`{0}` is reserved: choose another name")]
    Reserved(String),
}

impl AgentId {
    /// The id `tenant/name`.
    ///
    /// # Errors
    /// If either part is not 1 to 63 of `a-z 0-9 - _ .`, starting with a letter or digit, or is reserved.
    pub fn new(tenant: &str, name: &str) -> Result<Self, AgentIdError> {
        if !name_is_valid(tenant) || !name_is_valid(name) {
            return Err(AgentIdError::Syntax(quote(&format!("{tenant}/{name}"))));
        }
        if TENANTS_RESERVED.contains(&tenant) {
            return Err(AgentIdError::Reserved(tenant.to_owned()));
        }
        if NAMES_RESERVED.contains(&name) {
            return Err(AgentIdError::Reserved(name.to_owned()));
        }
        Ok(AgentId { tenant: tenant.to_owned(), name: name.to_owned() })
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

/// Whether `name` may be a tenant, team, project, environment or agent name: 1 to 63 of
/// `a-z 0-9 - _ .`, starting with a letter or digit.
#[must_use]
pub fn name_is_valid(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= PART_BYTES_MAX
        && bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
}

impl FromStr for AgentId {
    type Err = AgentIdError;

    fn from_str(text: &str) -> Result<Self, AgentIdError> {
        match text.split_once('/') {
            Some((tenant, name)) => AgentId::new(tenant, name),
            None if !name_is_valid(text) => Err(AgentIdError::Syntax(quote(text))),
            None => AgentId::new(DEFAULT_TENANT, text),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, &str>) {
        let parsed = text.parse::<AgentId>().map(|id| id.to_string()).map_err(|e| e.to_string());
        match (&parsed, expected) {
            (Ok(id), Ok(wanted)) => assert_eq!(id, wanted, "`{text}`"),
            (Err(e), Err(wanted)) => assert!(e.starts_with(wanted), "`{text}`: {e}"),
            _ => panic!("`{text}`: {parsed:?}, wanted {expected:?}"),
        }
    }

    #[test]
    fn ids() {
        let long = "a".repeat(63);
        check("web", Ok("default/web"));
        check("default/web", Ok("default/web"));
        check("acme/web-1_x.y", Ok("acme/web-1_x.y"));
        check("0", Ok("default/0"));
        check(&long, Ok(&format!("default/{long}")));
        for text in [
            "", "/", "a/", "/a", "a/b/c", "A", "wéb", "-a", ".a", "_a", "a b", "a\n", " a", "a:b", "a\"b",
            "a/-b", "..", "a/..",
        ] {
            check(text, Err("`"));
            assert!(matches!(text.parse::<AgentId>(), Err(AgentIdError::Syntax(_))), "`{text}`");
        }
        check(&"a".repeat(64), Err("`aaaa"));
        check("a\u{1b}[31m", Err("`a\\u{1b}[31m` is not an id"));
        check("A", Err("`A` is not an id"));
        for name in [
            "anonymous",
            "default/gateway",
            "acme/clawgress",
            "unauthenticated",
            "platform/web",
            "clawgress/x",
        ] {
            assert!(matches!(name.parse::<AgentId>(), Err(AgentIdError::Reserved(_))), "{name}");
        }
        check("anonymous", Err("`anonymous` is reserved: choose another name"));
        check("anonymous-2", Ok("default/anonymous-2"));
    }

    #[test]
    fn a_message_is_bounded() {
        let error = "x y".repeat(10_000).parse::<AgentId>().unwrap_err().to_string();
        assert!(error.len() < 400, "{}", error.len());
    }

    proptest::proptest! {
        #[test]
        fn print_then_parse_is_identity(text in "([a-z0-9][a-z0-9._-]{0,62}/)?[a-z0-9][a-z0-9._-]{0,62}") {
            if let Ok(id) = text.parse::<AgentId>() {
                assert_eq!(id.to_string().parse(), Ok(id.clone()));
                assert!(text == id.to_string() || format!("{DEFAULT_TENANT}/{text}") == id.to_string());
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC*") {
            if let Ok(id) = text.parse::<AgentId>() {
                assert!(id.to_string().is_ascii());
            }
        }
    }
}
