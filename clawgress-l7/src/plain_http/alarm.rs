//! When a conversation has to be looked at though neither side says anything.
//!
//! Pingora asks about a body only when some of it came. So the gate hands it a byte of its own then, which nobody sent, and says so
//! here. INVARIANT: that byte goes to nobody: an alarm is set by conversations alone, which ask for it before they look at what came.

use parking_lot::Mutex;
use tokio::time::Instant;

/// The alarm.
#[derive(Debug, Default)]
pub struct Alarm(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    at: Option<Instant>,
    has_rung: bool,
}

// === impl Alarm ===

impl Alarm {
    /// Has it ring then, or never.
    pub fn set(&self, at: Option<Instant>) {
        self.0.lock().at = at;
    }

    /// When it is to ring.
    #[must_use]
    pub fn at(&self) -> Option<Instant> {
        self.0.lock().at
    }

    /// Notes that it rings: what is read next is the gate's own.
    pub fn ring(&self) {
        *self.0.lock() = State { at: None, has_rung: true };
    }

    /// Whether what was read last is the gate's own; of what is read after that it is not.
    pub fn take(&self) -> bool {
        std::mem::take(&mut self.0.lock().has_rung)
    }
}
