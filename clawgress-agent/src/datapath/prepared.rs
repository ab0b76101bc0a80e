//! A generation that is ready to go live: its tables are in the kernel, where no program sees them. At most one is held.
//!
//! Must never be live by itself, nor hold up what is applied meanwhile.

use std::collections::BTreeMap;

use anyhow::Result;
use parking_lot::Mutex;

use super::late;
use super::names::Document;
use super::plane::KernelPlane;
use super::tables::{Plan, Written};

/// See the module.
#[derive(Debug)]
pub struct Prepared {
    name: Vec<u8>,
    generation: u64,
    document: Document,
    /// The interfaces it was made for.
    agents: BTreeMap<String, u32>,
    written: Written,
}

/// What is held, and what is being written.
#[derive(Debug, Default)]
pub struct Preparing {
    /// At most one.
    pub held: Mutex<Option<Prepared>>,
    /// One is written at a time: whoever asked for the former may have given up on it.
    writing: Mutex<()>,
}

// === impl Prepared ===

impl Prepared {
    /// Whether it is what goes by this name.
    #[must_use]
    pub fn is(&self, name: &[u8], generation: u64) -> bool {
        self.name == name && self.generation == generation
    }

    /// The generation; it is taken out.
    pub fn take_document(&mut self) -> Document {
        std::mem::replace(&mut self.document, late::nothing())
    }

    /// What is written, if it is what would be made now: for these interfaces, and in time.
    #[must_use]
    pub fn written_for(self, agents: &BTreeMap<String, u32>, is_over: bool) -> Option<Written> {
        (!is_over && self.agents == *agents).then_some(self.written)
    }
}

// === impl KernelPlane ===

impl KernelPlane {
    /// Writes the tables of `document` aside.
    ///
    /// # Errors
    /// If it is inconsistent or exceeds a bound, or the kernel refuses a map; nothing is held then.
    pub(super) fn prepare(&self, name: Vec<u8>, document: Document) -> Result<()> {
        tokio::task::block_in_place(|| {
            let _one = self.prepared.writing.lock();
            // Before there are two of them: each has 32 MiB.
            drop(self.prepared.held.lock().take());
            // Neither tables nor interfaces are held: what is applied meanwhile doesn't wait, and what changes is found then.
            let agents = self.interfaces.lock().agents.clone();
            let written = Plan::closing(&document, &agents, &self.closed)?.write()?;
            let generation = document.generation;
            *self.prepared.held.lock() = Some(Prepared { name, generation, document, agents, written });
            Ok(())
        })
    }
}
