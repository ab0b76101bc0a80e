//! `ca`: the authority by which TLS is read, as administrators see it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The authority. Nothing of it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterceptionStatus {
    /// Its certificate, then those above it: PEM.
    pub chain: Vec<String>,
    /// Its name.
    pub subject: String,
    /// SHA-256 of its certificate, in hexadecimal digits.
    pub sha256: String,
    /// The last second of its validity.
    pub not_after: Timestamp,
    /// Whether it was made here.
    pub is_own: bool,
    /// Hosts that are never read, as in the configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
}
