//! End to end: real clients, the real processes, real packets. Every test has a lab of its own, and
//! ends with FORBIDDEN having received nothing.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test and its helpers fail by panicking"
)]

#[path = "../../../clawgress-agent/tests/datapath/frames.rs"]
#[expect(dead_code, clippy::expect_used, reason = "the kernel plane's tests build more kinds of frames")]
mod frames;
#[path = "../../../clawgress-l7/tests/proxy/pki.rs"]
#[expect(dead_code, clippy::expect_used, reason = "the proxy's tests make more kinds of certificates")]
mod pki;
mod support;
#[path = "../../../clawgress-agent/tests/support/workload_api.rs"]
#[expect(clippy::expect_used, reason = "shared with the tests of control")]
mod workload_api;

mod administration;
mod audit;
mod balancers;
mod certificates;
mod claims;
mod clients;
mod content;
mod dns;
mod dns_tunnels;
mod faults;
mod floods;
mod geo;
mod hostile;
mod interception;
mod interfaces;
mod kernel;
mod keys;
mod limits;
mod llm;
mod models;
mod offloads;
mod oidc;
mod packets;
mod parents;
mod provider_keys;
mod proxy;
mod quarantine;
mod registry;
mod replays;
mod scale;
mod segments;
mod shared;
mod signals;
mod slow;
mod spiffe;
mod stragglers;
mod tenants;
mod tokens;
mod tools;
mod transparent;
mod units;
mod up;
mod web_sockets;
mod workers;
