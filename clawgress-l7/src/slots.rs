//! How much of this process one agent may take at once: tunnels, connections that are read, and requests under way.
//!
//! What is idle between two requests is nobody's until the next comes, and counted by its source ([`crate::accept`]).

use std::collections::HashMap;
use std::sync::Arc;

use clawgress_ebpf_common::DropReason;
use parking_lot::Mutex;

/// Parts that are locked apart, so that agents don't wait for one another.
const PARTS: usize = 64;

/// The slots of all agents.
#[derive(Debug)]
pub struct Slots {
    /// By the agent's index. An agent that has none has no entry.
    taken: [Mutex<HashMap<u32, usize>>; PARTS],
    each_max: usize,
}

/// One slot, free again when it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    agent: u32,
}

// === impl Slots ===

impl Slots {
    /// `each_max` for each agent.
    #[must_use]
    pub fn new(each_max: usize) -> Arc<Self> {
        Arc::new(Slots { taken: std::array::from_fn(|_| Mutex::default()), each_max })
    }

    /// One of `agent`'s.
    ///
    /// # Errors
    /// [`DropReason::Overloaded`] if it has as many as one may have.
    pub fn take(self: &Arc<Self>, agent: u32) -> Result<Slot, DropReason> {
        let part = self.part(agent).ok_or(DropReason::Overloaded)?;
        let mut taken = part.lock();
        let count = taken.entry(agent).or_default();
        if *count >= self.each_max {
            return Err(DropReason::Overloaded);
        }
        *count += 1;
        Ok(Slot { slots: Arc::clone(self), agent })
    }

    /// How many `agent` has.
    #[must_use]
    pub fn taken(&self, agent: u32) -> usize {
        self.part(agent).and_then(|part| part.lock().get(&agent).copied()).unwrap_or(0)
    }

    fn part(&self, agent: u32) -> Option<&Mutex<HashMap<u32, usize>>> {
        self.taken.get(agent as usize % PARTS)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(part) = self.slots.part(self.agent) else { return };
        let mut taken = part.lock();
        if let Some(count) = taken.get_mut(&self.agent) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.agent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_has_its_slots_and_others_have_theirs() {
        let slots = Slots::new(2);
        let first = slots.take(1).expect("one");
        let _second = slots.take(1).expect("two");
        assert_eq!(slots.take(1).err(), Some(DropReason::Overloaded));
        // Of the same part.
        assert_eq!((slots.taken(1), slots.taken(1 + PARTS as u32)), (2, 0));
        let other = slots.take(1 + PARTS as u32).expect("another agent");
        drop(first);
        let _third = slots.take(1).expect("free again");
        drop(other);
        assert_eq!(slots.part(1).expect("part").lock().len(), 1, "nothing is kept of agents that have none");
    }
}
