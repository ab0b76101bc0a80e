//! The fuzz targets, and the parsers they check.
//!
//! The canonical host parser is compiled from its source file, because the rest of its crate brings
//! Cedar along, and instrumenting that takes ten times as long as everything else here.

#[allow(dead_code, reason = "only the host parser is a target")]
#[path = "../../../clawgress-policy/src/address.rs"]
mod address;
#[allow(dead_code, reason = "only the host parser is a target")]
#[path = "../../../clawgress-policy/src/host.rs"]
mod host;
#[cfg(feature = "policy")]
mod policy;
#[cfg(feature = "policy")]
mod policy_head;
mod targets;

use host::Host;
#[cfg(feature = "policy")]
pub use policy::{policy_text, refusal};
#[cfg(feature = "policy")]
pub use policy_head::policy_head;
pub use targets::*;
