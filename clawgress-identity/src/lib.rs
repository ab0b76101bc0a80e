//! Who an agent is: ids that carry their tenant, source bindings, API keys, and the pure decision
//! "credential + trust snapshot + now -> identity or a precise reason".
//!
//! This crate does no I/O, holds no clock and starts no task; time is an argument.
#![forbid(unsafe_code)]

mod agent;
mod api_key;
mod binding;
mod holders;
mod quote;
mod shared;
mod trust;

pub use agent::{Agent, AgentId, AgentIdError, AgentState, DEFAULT_TENANT, name_is_valid};
pub use api_key::{ApiKey, ApiKeyError, ApiKeyRecord, KEY_MAC_BYTES};
pub use binding::{BindingError, MacAddress, Source};
pub use holders::{Holder, Holders};
pub use shared::{SharedSource, SourceId};
pub use trust::{Identity, IdentityError, IdentityMethod, Origin, TrustSnapshot};
