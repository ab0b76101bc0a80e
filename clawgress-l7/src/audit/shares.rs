//! How much of the queue one agent may take, and what it lost beyond that: its flood must not cost the others their records, nor what
//! is allowed only with one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use clawgress_api::{AgentRef, AuditRecord};
use parking_lot::Mutex;

use crate::limit;

/// The shares. Nothing is locked for a record that has room.
#[derive(Debug)]
pub(super) struct Shares {
    /// About how many bytes each agent has taken. Agents have small numbers, next to each other; two that are so many apart share
    /// one, as those do who are nobody.
    taken: Box<[AtomicUsize]>,
    bytes_max: usize,
    /// Records of agents that found no room since their last gap record.
    lost: Mutex<HashMap<u32, (AgentRef, u64)>>,
}

/// Whose share a record takes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place(usize);

// === impl Shares ===

impl Shares {
    /// Shares of so many bytes each.
    pub(super) fn new(bytes_max: usize) -> Shares {
        let taken = std::iter::repeat_with(AtomicUsize::default).take(limit::AUDIT_SHARES).collect();
        Shares { taken, bytes_max, lost: Mutex::default() }
    }

    /// Takes bytes from the share of `place`; `false` if there are not so many. They are to be given back in either case.
    pub(super) fn take(&self, place: Place, bytes: usize) -> bool {
        let before = self.taken.get(place.0).map(|taken| taken.fetch_add(bytes, Ordering::Relaxed));
        before.is_some_and(|before| before.saturating_add(bytes) <= self.bytes_max)
    }

    /// Whether there are so many bytes in the share of an agent.
    pub(super) fn has(&self, agent: u32, bytes: usize) -> bool {
        let taken = self.taken.get(agent as usize % limit::AUDIT_SHARES);
        taken.is_some_and(|taken| taken.load(Ordering::Relaxed).saturating_add(bytes) <= self.bytes_max)
    }

    /// Gives bytes back.
    pub(super) fn give(&self, place: Place, bytes: usize) {
        if let Some(taken) = self.taken.get(place.0) {
            taken.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Counts what an agent lost; `false` if there is no room for that, or nobody to name.
    pub(super) fn lose(&self, agent: Option<&AgentRef>, n: u64) -> bool {
        let Some((agent, index)) = agent.and_then(|agent| Some((agent, agent.index?))) else { return false };
        let mut lost = self.lost.lock();
        if let Some((_, count)) = lost.get_mut(&index) {
            *count += n;
            return true;
        }
        let has_room = lost.len() < limit::AUDIT_LOSERS_MAX;
        if has_room {
            lost.insert(index, (agent.clone(), n));
        }
        has_room
    }

    /// What agents lost since this was asked last.
    pub(super) fn lost(&self) -> impl Iterator<Item = (AgentRef, u64)> + use<> {
        std::mem::take(&mut *self.lost.lock()).into_values()
    }
}

// === impl Place ===

impl Place {
    /// Of the agent that `record` names.
    pub(super) fn of(record: &AuditRecord) -> Place {
        let index = record.agent.as_ref().and_then(|agent| agent.index).unwrap_or(0);
        Place(index as usize % limit::AUDIT_SHARES)
    }
}
