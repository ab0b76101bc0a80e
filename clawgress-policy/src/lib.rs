//! Policy: Cedar text to a validated set, decisions, and kernel tables.
//!
//! Pure: no I/O, no clock, no task. Decisions are deterministic: the same set and the same request
//! give the same verdict and the same policy ids.
#![forbid(unsafe_code)]

pub mod address;
pub mod content;
pub mod effect;
pub mod fields;
pub mod fingerprint;
mod geo;
pub mod head;
pub mod history;
pub mod host;
pub mod kernel;
pub mod lint;
mod members;
pub mod path;
mod policies;
mod prefix;
pub mod quota;
mod request;
mod set;
pub mod study;
mod time;
pub mod transform;
mod vocabulary;

pub use address::{embedded_ipv4, is_reserved};
pub use geo::{GEO_PREFIXES_MAX, Geo, GeoNames};
pub use host::{Host, HostError};
pub use members::{SET_MEMBERS_MAX, SET_NAME_BYTES_MAX, SETS_MAX};
pub use policies::{Alone, Policies, Share};
pub use request::{
    ALPN_GUESSES, Decision, Operation, Request, Scheme, Transport, TunnelProtocol, UPSTREAM_ALPN,
    may_have_body,
};
pub use set::{
    CallsLook, CallsNeed, Look, NESTING_MAX, NamedSets, Need, OPERATORS_MAX, Opening, Outline,
    PLATFORM_PREFIX, POLICIES_MAX, PROBLEMS_MAX, PayloadNeed, PolicyBundle, PolicyErrors, PolicyInForce,
    PolicyInForceRef, PolicyProblem, PolicySet, SCHEMA_VERSION, Surroundings, TEXT_BYTES_MAX,
};
pub use time::{ZONE_OFFSETS_MAX, Zone};
pub use vocabulary::{SCHEMA, schema_json};
