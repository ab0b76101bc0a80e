//! Keys of providers, as administrators give and see them. Must never show a value.

use std::fmt;

use clawgress_identity::{ProviderKeyId, ProviderKeyRecord};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Most bytes of a value: what fits into a header field.
pub const PROVIDER_KEY_BYTES_MAX: usize = 4096;

/// A key that is made, or gets another value.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewProviderKey {
    /// Its id.
    pub id: ProviderKeyId,
    /// Canonical hosts that it may be sent to; those it had if none are given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Whether it may be sent in clear.
    #[serde(default)]
    pub clear: bool,
    /// Whether it has to be there already, or must not be.
    pub is_rotation: bool,
    /// The value.
    pub value: SecretText,
}

/// A text that is never shown, and wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(pub Zeroizing<String>);

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderKeyInfo {
    /// Its id.
    pub id: ProviderKeyId,
    /// Counts its values, from 1.
    pub version: u64,
    /// Hosts that it may be sent to.
    pub hosts: Vec<String>,
    /// Whether it may be sent in clear.
    pub clear: bool,
    /// When it was made.
    pub created: Timestamp,
    /// When it got its value.
    pub rotated: Timestamp,
}

impl From<&ProviderKeyRecord> for ProviderKeyInfo {
    fn from(record: &ProviderKeyRecord) -> ProviderKeyInfo {
        let time = |s| Timestamp::from_second(s).unwrap_or(Timestamp::UNIX_EPOCH);
        ProviderKeyInfo {
            id: record.id.clone(),
            version: record.version,
            hosts: record.hosts.clone(),
            clear: record.clear,
            created: time(record.created_at_s),
            rotated: time(record.rotated_at_s),
        }
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(|text| SecretText(Zeroizing::new(text)))
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText")
    }
}

impl fmt::Debug for NewProviderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewProviderKey").field("id", &self.id).finish_non_exhaustive()
    }
}
