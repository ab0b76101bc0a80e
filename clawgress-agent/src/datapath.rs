//! The datapath role: entry points.

use std::sync::Arc;

use anyhow::{Result, bail};
use clawgress_api::config::Config;
use tokio_util::sync::CancellationToken;

/// Runs the role until `stop`.
///
/// # Errors
/// Always: this build has no kernel plane.
pub async fn run(_config: Arc<Config>, _stop: CancellationToken) -> Result<()> {
    bail!("this build has no kernel plane")
}

/// Removes programs, maps and rules.
///
/// # Errors
/// Always: this build has no kernel plane.
pub fn detach(_config: &Config) -> Result<()> {
    bail!("this build has no kernel plane")
}

/// Measures the kernel programs.
///
/// # Errors
/// Always: this build has no kernel plane.
pub fn bench_kernel() -> Result<serde_json::Value> {
    bail!("this build has no kernel plane")
}
