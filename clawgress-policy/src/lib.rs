//! Policy: Cedar text to a validated set, decisions, and kernel tables.
//!
//! Pure: no I/O, no clock, no task. Decisions are deterministic: the same set and the same request
//! give the same verdict and the same policy ids.
#![forbid(unsafe_code)]

pub mod host;
pub mod kernel;
mod request;
mod set;

pub use host::{Host, HostError};
pub use request::{Decision, Operation, Request, Scheme, Transport, TunnelProtocol};
pub use set::{NamedSets, PolicyBundle, PolicyErrors, PolicyProblem, PolicySet, SCHEMA_VERSION};
