//! The keys role: entry point.

use std::sync::Arc;

use anyhow::Result;
use clawgress_api::config::Config;
use tokio_util::sync::CancellationToken;

/// Runs the role until `stop`.
///
/// # Errors
/// If it can't serve.
pub async fn run(_config: Arc<Config>, stop: CancellationToken) -> Result<()> {
    stop.cancelled().await;
    Ok(())
}
