//! Refusals that help: what policy denies to an agent is answered (ICMP error, TCP reset), so that a client
//! gives up or falls back at once instead of waiting. Only a bounded number a second and agent; what is beyond
//! that is dropped in silence, and early.
//!
//! Must never answer a source that is not known: the answer would go to whoever was named as source.

use clawgress_ebpf_common::{DropReason, bound};

use crate::flow::{add, share_index};
use crate::judge::Judgement;
use crate::map::REJECTS;

/// XDP asks whether to let a packet on to TC.
pub const EARLY: u32 = 0;
/// TC asks whether to have it answered.
pub const LATE: u32 = 1;

/// What is answered, by code: what policy says, and a connection nobody knows any more. Quarantine is silent.
const ANSWERED: u64 = 1 << DropReason::PolicyDenied.code()
    | 1 << DropReason::PolicyForbidden.code()
    | 1 << DropReason::PolicyError.code()
    | 1 << DropReason::InspectionRequired.code()
    | 1 << DropReason::FlowUnknown.code()
    | 1 << DropReason::AddressReserved.code();

/// Whether this refusal is to be answered, and counts it; `at_ns` is [`now`](crate::event::now).
#[inline(always)]
pub fn is_due(side: u32, judged: &Judgement, at_ns: u64) -> bool {
    let code = judged.reason as u64;
    if judged.agent == 0 || code >= u64::BITS as u64 || ANSWERED >> code & 1 == 0 {
        return false;
    }
    let Some(pace) = REJECTS.get_ptr_mut(side * bound::SHARES + share_index(judged.agent)) else {
        return false;
    };
    // SAFETY: array elements live as long as the map. CPUs that begin an interval at once may each answer one
    // more; nothing else depends on the numbers.
    unsafe {
        let age_ns = at_ns.wrapping_sub((&raw const (*pace).since_ns).read_volatile()) as i64;
        if age_ns >= bound::REJECTS_INTERVAL_NS as i64 {
            (&raw mut (*pace).since_ns).write_volatile(at_ns);
            (&raw mut (*pace).events).write_volatile(1);
            return true;
        }
        if (&raw const (*pace).events).read_volatile() >= bound::REJECTS_MAX {
            return false;
        }
        add(&raw mut (*pace).events, 1);
    }
    true
}
