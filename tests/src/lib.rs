//! The lab: a small internet out of network namespaces, with a real gateway in the middle, for
//! end-to-end tests, the demo and benchmarks.
//!
//! Owns namespaces, the servers outside, and the processes of the gateway under test; everything is
//! undone when it is dropped. Must never reach beyond the namespaces it made, stand in for a part of
//! the product, or depend on a crate of the gateway's processes: it starts them as a user would.
#![forbid(unsafe_code)]

pub mod admin;
pub mod clients;
pub mod lab;
pub mod plan;
pub mod scenario;
pub mod world;
