//! The lab's outside as a process: `clawgress-world DIR`. Started by the lab in its own namespace.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Context as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from).context("usage: clawgress-world DIR")?;
    clawgress_e2e::world::serve(&dir).await
}
