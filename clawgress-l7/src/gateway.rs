//! What all connections share.

use std::sync::Arc;
use std::time::Duration;

use clawgress_ebpf_common::DropReason;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::accept::Sources;
use crate::audit::Audit;
use crate::carries::Windows;
use crate::dial::Dials;
use crate::dns::Desk;
use crate::endpoints::Endpoints;
use crate::history::Histories;
use crate::intercept::Interception;
use crate::keys::Keys;
use crate::limit;
use crate::memory::Memory;
use crate::own::Own;
use crate::plain_http::{Calls, Tools};
use crate::quota::Quota;
use crate::resolve::Resolver;
use crate::route::Routes;
use crate::slots::Slots;
use crate::snapshot::Snapshots;
use crate::tls::Terminal;
use crate::tunnel::Pipes;
use crate::vault::Vault;

/// The proxy's shared parts.
#[derive(Debug)]
pub struct Gateway {
    /// What to decide by.
    pub snapshots: Arc<Snapshots>,
    /// The keys role.
    pub keys: Keys,
    /// Keys of providers.
    pub vault: Vault,
    /// Units of limits, and control's hand for the rest that policy obliges to.
    pub quota: Quota,
    /// What agents did before.
    pub histories: Histories,
    /// Connections of each source.
    pub sources: Arc<Sources>,
    /// Streams of HTTP/2 under way.
    pub streams: Arc<Semaphore>,
    /// Those of each source.
    pub stream_sources: Arc<Sources>,
    /// DNS, for the gateway itself.
    pub resolver: Resolver,
    /// DNS, for agents.
    pub dns: Desk,
    /// Where sockets are registered before they are dialled.
    pub dials: Arc<Dials>,
    /// Upstreams for clients that take a base URL.
    pub endpoints: Arc<Endpoints>,
    /// By which way destinations are reached.
    pub routes: Arc<Routes>,
    /// What each agent takes of it at once.
    pub slots: Arc<Slots>,
    /// For a server to say something more, before its answer or in the middle of it.
    pub answer_silence: Duration,
    /// What is ours.
    pub own: Arc<Own>,
    /// Where records go.
    pub audit: Audit,
    /// TLS of the explicit proxy, where it has it.
    pub tls: Option<Terminal>,
    /// What reads TLS, where it is read.
    pub interception: Option<Interception>,
    /// Memory for bodies that policy asks about, and how they are read.
    pub memory: Arc<Memory>,
    /// What agents' requests carried.
    pub windows: Windows,
    /// How calls of models are known.
    pub calls: Calls,
    /// Tool servers, and what is known of their tools.
    pub tools: Tools,
    /// Pipes for tunnels.
    pub pipes: Arc<Pipes>,
    /// Cancelled when the time to drain is over: whatever still runs ends.
    pub cut: CancellationToken,
}

/// How soon to look whether what ends at a Unix time in seconds has ended, at one in milliseconds: at its very end, and
/// before that now and then.
fn look_in(end_s: i64, now_ms: i64) -> Duration {
    let left_ms = end_s.saturating_mul(1000).saturating_sub(now_ms);
    // Not at once again where it should have ended by what it was first judged by, and did not by what counts now.
    let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or(0));
    left.clamp(limit::EXPIRY_LOOK_LEAST, limit::EXPIRY_LOOK)
}

// === impl Gateway ===

impl Gateway {
    /// Unix time, seconds.
    #[must_use]
    pub fn now_s(&self) -> i64 {
        self.audit.now().as_second()
    }

    /// Waits until what is allowed must be judged again: the plan changed (told by `changes`, which is
    /// subscribed before the last judgement), it may be stale, or what expires at `expires_at_s` (Unix
    /// seconds) may have expired.
    ///
    /// # Errors
    /// [`DropReason::Draining`] or [`DropReason::SnapshotMissing`] if it must end, whatever is judged.
    pub async fn until_judged_again(
        &self,
        changes: &mut watch::Receiver<u64>,
        expires_at_s: Option<i64>,
    ) -> Result<(), DropReason> {
        // The plan counts up to its last instant; look right after it.
        let stale_in = self.snapshots.stale_in().map(|left| left + Duration::from_millis(1));
        let expires_in = expires_at_s.map(|end_s| look_in(end_s, self.audit.now().as_millisecond()));
        let aged = async {
            match stale_in.into_iter().chain(expires_in).min() {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => changed.map_err(|_| DropReason::SnapshotMissing),
            () = aged => Ok(()),
            () = self.cut.cancelled() => Err(DropReason::Draining),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the second that has begun nothing is waited for: what ends is cut as it ends.
    #[test]
    fn an_end_is_looked_for_when_it_comes() {
        let ms = Duration::from_millis;
        for (end_s, now_ms, left) in [
            (14, 10_000, ms(4_000)),
            (14, 10_900, ms(3_100)),
            (14, 13_600, ms(400)),
            (14, 13_999, limit::EXPIRY_LOOK_LEAST),
            (14, 14_000, limit::EXPIRY_LOOK_LEAST),
            (14, 99_000, limit::EXPIRY_LOOK_LEAST),
            (14_000, 0, limit::EXPIRY_LOOK),
            (i64::MAX, 0, limit::EXPIRY_LOOK),
            (i64::MIN, i64::MAX, limit::EXPIRY_LOOK_LEAST),
        ] {
            assert_eq!(look_in(end_s, now_ms), left, "{end_s} {now_ms}");
        }
    }
}
