//! What a generation comes to before it is one: the planes prepare it, and hold it until it is committed. A plane that can't
//! is found out while nobody runs anything of it.
//!
//! INVARIANT: nothing that may take away waits here, neither for a plane nor for another change that does: see
//! [`Manner`]. What only gives waits, and is refused where a plane can't take it.

use std::sync::Arc;
use std::time::Duration;

use super::kernel::Link;
use super::model::Refusal;
use super::snapshots::Workers;

/// Longest wait for planes to prepare a generation: as long as an L7 worker that is behind goes on by what it has
/// (`limit::STRAGGLE`). Who has not answered by then is not waited for, and is a straggler as any other.
pub(super) const PREPARE_TIME_MAX: Duration = Duration::from_secs(5);

/// How a change comes into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// Planes prepare it first, and one that can't keeps it from being made: it only gives, or is a policy.
    Prepared,
    /// At once: it may take something away, and is not for planes to refuse.
    Forced,
    /// At once, since it only takes away: even while nothing can be recorded, and where a condition on time has turned and
    /// no tables can be made of what it says now, of the moment before.
    Withdrawn,
}

/// What is to be prepared.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Its number, of this process; from 1.
    pub number: u64,
    /// The generation that it would be.
    pub generation: u64,
    /// Its document for L7.
    pub snapshot: Arc<Vec<u8>>,
    /// Its document for the datapath.
    pub kernel: Arc<Vec<u8>>,
}

/// The planes, as far as they are asked.
#[derive(Debug)]
pub(super) struct Planes {
    pub link: Arc<Link>,
    pub workers: Arc<Workers>,
}

// === impl Manner ===

impl Manner {
    /// Of setting what there is already, which may make it less, or of adding it, which doesn't.
    pub(super) fn of_setting(is_there: bool) -> Self {
        if is_there { Manner::Forced } else { Manner::Prepared }
    }
}

// === impl Planes ===

impl Planes {
    /// Has those planes prepare it that are there; of L7, those that refused nothing: who did denies anyway.
    ///
    /// # Errors
    /// If one can't. Nobody runs anything of it then.
    pub(super) async fn prepare(&self, candidate: &Arc<Candidate>) -> Result<(), Refusal> {
        let both = async {
            tokio::try_join!(self.link.prepare(candidate), self.workers.prepare(candidate)).map(drop)
        };
        match tokio::time::timeout(PREPARE_TIME_MAX, both).await {
            Ok(prepared) => prepared.map_err(|why| Refusal::Plane(format!("{why}; nothing was changed"))),
            Err(_) => {
                let generation = candidate.generation;
                tracing::warn!(
                    generation,
                    "not all planes have prepared it in time: it is not waited for them"
                );
                Ok(())
            }
        }
    }
}
