//! Tests of the kernel plane on the running kernel: verdicts by test run, properties against a naive
//! evaluator, and real sockets between network namespaces. They need root, and fail without it.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "test code, in functions that the lint does not know for such"
)]

#[path = "datapath/crowded.rs"]
mod crowded;
#[path = "datapath/dial.rs"]
mod dial;
#[path = "datapath/dns.rs"]
mod dns;
#[path = "datapath/fail_open.rs"]
mod fail_open;
#[path = "datapath/flows.rs"]
mod flows;
#[path = "datapath/frames.rs"]
mod frames;
#[path = "datapath/groups.rs"]
mod groups;
#[path = "datapath/headers.rs"]
mod headers;
#[path = "datapath/interfaces.rs"]
mod interfaces;
#[path = "datapath/joined.rs"]
mod joined;
#[path = "datapath/kernel.rs"]
mod kernel;
#[path = "datapath/kinds.rs"]
mod kinds;
#[path = "datapath/lab.rs"]
mod lab;
#[path = "datapath/lease.rs"]
mod lease;
#[path = "datapath/limits.rs"]
mod limits;
#[path = "datapath/local.rs"]
mod local;
#[path = "datapath/machine.rs"]
mod machine;
#[path = "datapath/model.rs"]
mod model;
#[path = "datapath/neighbours.rs"]
mod neighbours;
#[path = "datapath/network.rs"]
mod network;
#[path = "datapath/older.rs"]
mod older;
#[path = "datapath/pacing.rs"]
mod pacing;
#[path = "datapath/path_mtu.rs"]
mod path_mtu;
#[path = "datapath/peer.rs"]
mod peer;
#[path = "datapath/prepared.rs"]
mod prepared;
#[path = "datapath/property.rs"]
mod property;
#[path = "datapath/puppet.rs"]
mod puppet;
#[path = "datapath/questions.rs"]
mod questions;
#[path = "datapath/random.rs"]
mod random;
#[path = "datapath/recent.rs"]
mod recent;
#[path = "datapath/refusals.rs"]
mod refusals;
#[path = "datapath/removal.rs"]
mod removal;
#[path = "datapath/reuse.rs"]
mod reuse;
#[path = "datapath/scale.rs"]
mod scale;
#[path = "datapath/shared.rs"]
mod shared;
#[path = "datapath/swap.rs"]
mod swap;
#[path = "datapath/time.rs"]
mod time;
#[path = "datapath/told.rs"]
mod told;
#[path = "datapath/tracking.rs"]
mod tracking;
#[path = "datapath/upgrade.rs"]
mod upgrade;
#[path = "datapath/verdicts.rs"]
mod verdicts;
#[path = "datapath/workers.rs"]
mod workers;
#[path = "datapath/workload.rs"]
mod workload;
