//! Memory for bodies that are held or read before they go on: bounded for all agents together, and for each.
//!
//! INVARIANT: what is taken is given back when its [`Charge`] is dropped, however its request ended.

use std::collections::HashMap;
use std::sync::Arc;

use clawgress_api::config::Content;
use clawgress_ebpf_common::DropReason;
use parking_lot::Mutex;

/// The memory, and what it is for.
#[derive(Debug)]
pub struct Memory {
    /// How bodies are read.
    pub content: Content,
    bytes_max: usize,
    agent_bytes_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// By the agent's index; none that has nothing.
    agents: HashMap<u32, usize>,
}

/// What one body takes of it.
#[derive(Debug)]
pub struct Charge {
    memory: Arc<Memory>,
    agent: u32,
    bytes: usize,
}

// === impl Memory ===

impl Memory {
    /// The memory that is configured.
    #[must_use]
    pub fn new(content: &Content) -> Memory {
        let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Memory {
            content: content.clone(),
            bytes_max: bytes(content.memory_bytes_max.get()),
            agent_bytes_max: bytes(content.agent_memory_bytes_max.get()),
            taken: Mutex::default(),
        }
    }

    /// A charge of nothing yet, for an agent.
    #[must_use]
    pub fn charge(self: &Arc<Self>, agent: u32) -> Charge {
        Charge { memory: Arc::clone(self), agent, bytes: 0 }
    }

    fn change(&self, agent: u32, from: usize, to: usize) -> Result<(), DropReason> {
        let mut taken = self.taken.lock();
        let all = taken.all.saturating_sub(from).saturating_add(to);
        let own = taken.agents.get(&agent).copied().unwrap_or(0).saturating_sub(from).saturating_add(to);
        if to > from && own > self.agent_bytes_max {
            return Err(DropReason::ContentShareFull);
        }
        if to > from && all > self.bytes_max {
            return Err(DropReason::ContentMemoryFull);
        }
        taken.all = all;
        match own {
            0 => drop(taken.agents.remove(&agent)),
            own => drop(taken.agents.insert(agent, own)),
        }
        Ok(())
    }
}

// === impl Charge ===

impl Charge {
    /// The agent's index.
    #[must_use]
    pub fn agent(&self) -> u32 {
        self.agent
    }

    /// Takes as much, or gives back what is more.
    ///
    /// # Errors
    /// [`DropReason::ContentShareFull`] or [`DropReason::ContentMemoryFull`] if there is not so much; nothing changes then.
    pub fn set(&mut self, bytes: usize) -> Result<(), DropReason> {
        if bytes != self.bytes {
            self.memory.change(self.agent, self.bytes, bytes)?;
            self.bytes = bytes;
        }
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        // Giving back always can be done.
        let _ = self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    #[test]
    fn no_agent_takes_more_than_its_share_nor_all_more_than_there_is() {
        let number = |n| NonZeroU64::new(n).expect("a number");
        let content = Content {
            memory_bytes_max: number(100),
            agent_memory_bytes_max: number(60),
            ..Content::default()
        };
        let memory = Arc::new(Memory::new(&content));
        let (mut first, mut second, mut other) = (memory.charge(1), memory.charge(1), memory.charge(2));
        assert_eq!((first.set(40), second.set(30)), (Ok(()), Err(DropReason::ContentShareFull)));
        assert_eq!((second.set(20), other.set(50)), (Ok(()), Err(DropReason::ContentMemoryFull)));
        assert_eq!(other.set(40), Ok(()));
        // What is less always can be.
        assert_eq!((first.set(10), other.set(60)), (Ok(()), Ok(())));
        drop(second);
        assert_eq!(first.set(40), Ok(()));
        drop((first, other));
        assert!(memory.taken.lock().agents.is_empty() && memory.taken.lock().all == 0);
    }
}
