//! Keys of providers that no agent holds: sealed where they are stored, and bound to whose they are and where they may go.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{AgentId, AgentIdError};

/// What a binding begins with.
const DOMAIN: &[u8] = b"clawgress provider key v1\0";

/// `tenant/name` of a provider's key, by the rules of an [`AgentId`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProviderKeyId(AgentId);

impl ProviderKeyId {
    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> &str {
        self.0.tenant()
    }

    /// The name within the tenant.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }
}

impl FromStr for ProviderKeyId {
    type Err = AgentIdError;

    fn from_str(text: &str) -> Result<Self, AgentIdError> {
        text.parse().map(ProviderKeyId)
    }
}

impl fmt::Display for ProviderKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key, sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderKeyRecord {
    /// Its id.
    pub id: ProviderKeyId,
    /// Counts its values, from 1.
    pub version: u64,
    /// Canonical hosts that it may be sent to.
    pub hosts: Vec<String>,
    /// Whether it may be sent in clear.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clear: bool,
    /// When it was made, Unix time in seconds.
    pub created_at_s: i64,
    /// When it got its value.
    pub rotated_at_s: i64,
    /// The value, which the keys role alone opens, in base64.
    pub sealed: String,
}

impl ProviderKeyRecord {
    /// What its value is sealed with: whoever changes any of this in the store has a value that nobody opens.
    #[must_use]
    pub fn binding(&self) -> Vec<u8> {
        let mut bytes = DOMAIN.to_vec();
        let mut put = |part: &[u8]| {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        };
        put(self.id.to_string().as_bytes());
        put(&self.version.to_be_bytes());
        put(&[u8::from(self.clear)]);
        self.hosts.iter().for_each(|host| put(host.as_bytes()));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_is_of_all_that_says_where_a_key_goes() {
        let key = ProviderKeyRecord {
            id: "acme/openai".parse().expect("an id"),
            version: 1,
            hosts: vec!["a.test".to_owned(), "b.test".to_owned()],
            clear: false,
            created_at_s: 0,
            rotated_at_s: 0,
            sealed: String::new(),
        };
        let others = [
            ProviderKeyRecord { id: "other/openai".parse().expect("an id"), ..key.clone() },
            ProviderKeyRecord { version: 2, ..key.clone() },
            ProviderKeyRecord { hosts: vec!["a.testb.test".to_owned()], ..key.clone() },
            ProviderKeyRecord { clear: true, ..key.clone() },
        ];
        for other in others {
            assert_ne!(key.binding(), other.binding(), "{other:?}");
        }
        assert_eq!(key.binding(), ProviderKeyRecord { sealed: "x".to_owned(), ..key.clone() }.binding());
    }
}
