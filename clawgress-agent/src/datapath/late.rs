//! A generation whose conditions on time have turned is of a time that is over. Control makes the next one at that
//! moment; if it doesn't, for whatever reason, this closes the kernel plane after a stated time. Programs know no
//! clock of the wall, so it is this role that must run for it.
//!
//! Must never open anything: what was closed opens with a generation of a later time.

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

use super::names::Document;
use super::plane::KernelPlane;

/// How long a generation counts after its conditions on time have turned: for control to be restarted, or to try again
/// several times, and to write the tables of the next one.
pub const LATE_TIME_MAX: SignedDuration = SignedDuration::from_secs(60);

/// Since when it must not count, if it must not any more at `now`.
#[must_use]
pub fn over_since(document: &Document, now: Timestamp) -> Option<Timestamp> {
    let turned = document.turns_at.filter(|_| document.tables.is_some())?;
    (now.duration_since(turned) >= LATE_TIME_MAX).then_some(turned)
}

/// The same generation without its policy: everything is denied.
#[must_use]
pub fn without_policy(document: &Document) -> Document {
    Document {
        generation: document.generation,
        tables: None,
        agents: document.agents.clone(),
        shared: document.shared.clone(),
        revisions: BTreeMap::new(),
        turns_at: document.turns_at,
    }
}

/// What counts before the first generation: nobody is known.
#[must_use]
pub fn nothing() -> Document {
    // A generation has a number; without a policy, programs see none.
    Document {
        generation: 1,
        tables: None,
        agents: Vec::new(),
        shared: Vec::new(),
        revisions: BTreeMap::new(),
        turns_at: None,
    }
}

// === impl KernelPlane ===

impl KernelPlane {
    /// Closes the kernel plane if the live generation is of a time that is over for too long. Asked again and again.
    ///
    /// # Errors
    /// If the maps can't be written.
    pub async fn enforce_time(&self) -> Result<()> {
        let is_over = || {
            let live = self.live.lock();
            let document = live.as_ref()?;
            over_since(document, self.names.now()).map(|turned| (document.generation, turned))
        };
        if self.late.lock().is_some() || is_over().is_none() {
            return Ok(());
        }
        // Behind a generation that is being applied: it may be the one that is waited for.
        let mut tables = self.tables.lock().await;
        let Some((generation, turned)) = is_over() else { return Ok(()) };
        // That there is no policy any more is no failure to be open for.
        self.modes.close().context("a condition on time has turned, and no interface could be closed")?;
        tables.close().context("a condition on time has turned, and the tables could not be closed")?;
        self.note_late(Some((generation, turned)));
        Ok(())
    }

    /// Notes whether the live generation is closed because its time is over, and tells when that changes.
    pub(super) fn note_late(&self, late: Option<(u64, Timestamp)>) {
        let late = late.map(|(generation, turned)| {
            format!(
                "generation {generation} is of a time that ended at {turned}, and no later one has come within {} s: \
                 everything is denied until one does; see whether the control role runs, and its log",
                LATE_TIME_MAX.as_secs()
            )
        });
        let before = std::mem::replace(&mut *self.late.lock(), late.clone());
        match (&before, &late) {
            (None, Some(late)) => self.modes.tell(late),
            (Some(_), None) => self.modes.tell("a generation of this time is live again"),
            _ => {}
        }
    }
}
