//! What all connections share.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::audit::Audit;
use crate::keys::Keys;
use crate::own::Own;
use crate::resolve::Resolver;
use crate::snapshot::Snapshots;
use crate::tunnel::Pipes;

/// The proxy's shared parts.
#[derive(Debug)]
pub struct Gateway {
    /// What to decide by.
    pub snapshots: Arc<Snapshots>,
    /// The keys role.
    pub keys: Keys,
    /// DNS.
    pub resolver: Resolver,
    /// What is ours.
    pub own: Arc<Own>,
    /// Where records go.
    pub audit: Audit,
    /// Pipes for tunnels.
    pub pipes: Arc<Pipes>,
    /// Cancelled when the time to drain is over: whatever still runs ends.
    pub cut: CancellationToken,
}
