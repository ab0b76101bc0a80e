//! Tests of the kernel plane on the running kernel: verdicts by test run, properties against a naive
//! evaluator, and real sockets between network namespaces. They need root, and fail without it.

#[path = "datapath/frames.rs"]
mod frames;
#[path = "datapath/kernel.rs"]
mod kernel;
#[path = "datapath/lab.rs"]
mod lab;
#[path = "datapath/network.rs"]
mod network;
#[path = "datapath/property.rs"]
mod property;
#[path = "datapath/verdicts.rs"]
mod verdicts;
#[path = "datapath/workload.rs"]
mod workload;
