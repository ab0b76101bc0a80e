//! Whether somebody vouches for the tables still. The datapath role does, once a second, as long as control says that
//! they are the ones to run. Without that nobody knows what policy is now, and nothing goes by what it was.
//!
//! Asked where a packet is to go `direct`, and nowhere else: what L7 reads is judged there, by a policy that grows
//! stale by itself.

use clawgress_ebpf_common::fail_open;

use crate::event::now;
use crate::map::{LEASE, fails_open};

/// Whether what the tables permit `direct` may go: somebody vouches for them, or the interface fails open without.
#[inline(always)]
pub fn permits(ifindex: u32) -> bool {
    is_live() || fails_open(ifindex, fail_open::AGENT)
}

/// Whether somebody vouches for the tables.
#[inline(always)]
pub fn is_live() -> bool {
    match LEASE.get_ptr(0) {
        // SAFETY: array elements live as long as the map; volatile makes it one 8-byte read.
        Some(lease) => unsafe { (&raw const (*lease).until_ns).read_volatile() > now() },
        None => false,
    }
}
