//! Pure protocol analyzers: bytes from outside to facts.
//!
//! Every parser here is incremental or takes a bounded slice, allocates no more than a named bound,
//! and answers with a precise error instead of a guess. This crate must never do I/O, read a clock or
//! start a task. Bytes that it is shown it never changes; what they would be, changed, it may tell.
#![forbid(unsafe_code)]

pub mod client_hello;
pub mod dns;
pub mod encoded;
pub mod events;
pub mod hello_retry;
pub mod http1;
pub mod http2;
pub mod ja4;
mod letters;
pub mod llm;
pub mod payload;
pub mod price;
pub mod prompt;
pub mod proxy_authorization;
pub mod proxy_header;
pub mod proxy_request;
pub mod proxy_response;
pub mod sniff;
pub mod socks5;
pub mod splice;
#[cfg(test)]
mod steps;
pub mod tool;
pub mod web_socket;
