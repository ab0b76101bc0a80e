//! The keys, control and process tests of the node, in one binary: each binary links the whole agent, and a dozen of
//! them cost minutes and gigabytes. The kernel's are in `datapath`.
#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail")]

#[path = "../support/datapath.rs"]
mod datapath;
#[path = "../support/https.rs"]
mod https;
#[path = "../support/mmdb.rs"]
mod mmdb;
#[path = "../support/node.rs"]
mod node;
#[path = "../support/workload_api.rs"]
mod workload_api;

mod authorities;
mod bundles;
mod control;
mod geo;
mod issuers;
mod keys;
mod process;
mod providers;
mod quarantine;
mod registry;
mod revisions;
mod sources;
mod store;
