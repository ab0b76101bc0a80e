//! Where the processes meet: proto services, JSON documents, the audit record, the configuration
//! file and the Unix sockets. Must never hold behaviour of one process alone.
#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
mod document;
pub mod handover;
mod interception;
pub mod leaves;
pub mod notify;
mod provider_key;
mod record;
mod registry;
mod revision;
pub mod socket;

/// Generated messages, clients and servers.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("clawgress.v1");
}

/// The SPIFFE Workload API, whose package has no name: generated messages, client and server.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    clippy::doc_markdown,
    reason = "generated code"
)]
pub mod workload_api {
    tonic::include_proto!("_");
}

/// Ids, sources and agents, as the documents carry them.
pub use clawgress_identity as identity;
pub use document::*;
pub use interception::*;
pub use provider_key::{NewProviderKey, PROVIDER_KEY_BYTES_MAX, ProviderKeyInfo, SecretText};
pub use record::*;
pub use registry::*;
pub use revision::*;

/// Largest gRPC message, bytes: a snapshot of ten thousand agents and a million prefixes fits.
pub const MESSAGE_BYTES_MAX: usize = 128 << 20;
