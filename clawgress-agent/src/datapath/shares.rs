//! How many flows, or token buckets, each agent has: an array that the kernel programs add to and this process
//! takes off, mapped into its memory so that neither overwrites the other. A crash between a removal and its count is healed by
//! the next sweep.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use clawgress_ebpf_common::bound;
use nix::libc;

const SHARES: usize = bound::SHARES as usize;
const BYTES: usize = SHARES * size_of::<AtomicU64>();

/// The array.
#[derive(Debug)]
pub struct Shares {
    words: NonNull<AtomicU64>,
}

// SAFETY: atomics may be used from any thread, and the mapping is this value's alone to unmap.
unsafe impl Send for Shares {}
// SAFETY: as above.
unsafe impl Sync for Shares {}

impl Shares {
    /// Maps the array.
    ///
    /// # Errors
    /// If it isn't mappable.
    pub fn new(map: &impl AsFd) -> io::Result<Shares> {
        // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
        let words = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if words == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(words.cast()).map(|words| Shares { words }).ok_or_else(|| io::Error::other("no memory"))
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `BYTES` bytes are mapped at a page's beginning until drop, and every bit pattern is a number.
        // The kernel programs change them by atomic instructions on the same memory.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), SHARES) }
    }

    /// Those of `agent`, with those of agents that share its place.
    #[must_use]
    pub fn live(&self, agent: u32) -> u64 {
        self.words().get(index(agent)).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// All numbers as they are now.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u64> {
        self.words().iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }

    /// One of `agent`'s is gone.
    pub fn take_off(&self, agent: u32) {
        self.adjust(index(agent), u64::MAX);
    }

    /// Puts right what `counted` says differs from `before`. What was just being made is put right
    /// next time.
    pub fn heal(&self, before: &[u64], counted: &[u64]) {
        for (index, (before, counted)) in before.iter().zip(counted).enumerate() {
            if before != counted {
                self.adjust(index, counted.wrapping_sub(*before));
            }
        }
    }

    fn adjust(&self, index: usize, by: u64) {
        if let Some(word) = self.words().get(index) {
            word.fetch_add(by, Ordering::Relaxed);
        }
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nothing borrows it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), BYTES) };
    }
}

/// Where the number of `agent` is, as the kernel programs reckon it.
#[must_use]
pub fn index(agent: u32) -> usize {
    (agent & (bound::SHARES - 1)) as usize
}
