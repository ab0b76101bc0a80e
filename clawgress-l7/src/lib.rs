//! The L7 plane: one accept loop over listeners handed in, identity, decisions, tunnels and plain HTTP.
//!
//! It reads hostile bytes all day, so it holds no capability, no durable state, no CA key and no secret
//! that outlives the request it came with. It must never dial an address that was not judged, and never
//! forward a byte before its decision is on its way to the audit log.
#![forbid(unsafe_code)]

mod accept;
mod audit;
mod boottime;
mod carries;
mod connect;
mod connection;
mod counter;
mod decide;
mod dial;
mod dns;
mod endpoints;
mod enforce;
mod exchange;
mod followed;
mod gateway;
mod handover;
mod history;
mod http2;
mod identify;
mod intercept;
mod keys;
mod limit;
pub mod log;
mod memory;
mod opaque;
mod own;
mod page;
mod peek;
mod plain_http;
mod quota;
mod resolve;
mod rest;
mod roots;
mod route;
mod serve;
mod shared;
mod slots;
mod snapshot;
mod socks;
mod stream;
mod tls;
mod told;
mod tunnel;
mod vault;

pub use serve::run;
