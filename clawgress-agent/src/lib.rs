//! The agent daemon: the `datapath`, `control` and `keys` roles, each a process of its own, or all in
//! one for a laptop. The roles meet over Unix sockets alone, so that one process or three is the same
//! code; no role may reach into another's module.
#![deny(unsafe_code)]

pub mod cgroups;
pub mod control;
#[expect(unsafe_code, reason = "the kernel's ABI: every block has its safety comment")]
pub mod datapath;
pub mod keys;
pub mod peer;
pub mod serve;
pub mod shutdown;
