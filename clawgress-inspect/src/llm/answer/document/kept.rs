//! The bytes of a document that are kept for whoever puts calls together. Must never keep more than it may.

use crate::llm::answer::plain::{PLAIN_BYTES_MAX, Plain};

/// The bytes of a document, and whether nobody has to look at them.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) bytes: Vec<u8>,
    bytes_max: usize,
    pub(super) is_cut: bool,
    pub(super) plain: Plain,
}

/// Room that is kept for the bytes of the next document: as much as most have.
const KEPT_BYTES: usize = 1024;

// === impl Kept ===

impl Kept {
    /// Up to so many.
    pub(super) fn up_to(bytes_max: usize) -> Kept {
        Kept { bytes: Vec::new(), bytes_max, is_cut: false, plain: Plain::default() }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.is_cut |= self.bytes.len() + bytes.len() > self.bytes_max;
        if !self.is_cut {
            self.bytes.extend_from_slice(bytes);
        }
        if self.is_cut || self.bytes.len() > PLAIN_BYTES_MAX {
            self.plain.refuse();
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.plain.memory_bytes()
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.is_cut = false;
        self.plain.again();
    }
}
