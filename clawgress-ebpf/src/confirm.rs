//! Judges one live flow again without a packet: the datapath role test-runs this program for flows that
//! were idle while the generation changed, so that their end does not wait for their next packet.
//!
//! Must never be attached anywhere, and never decide otherwise than for a packet.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use clawgress_ebpf_common::{CONFIRM_KEY_OFFSET, FlowKey, IFINDEX_DIAL, IFINDEX_LOCAL, action};

use crate::flow;
use crate::map::generation;

/// Reads a [`FlowKey`] from the "frame". Returns 0 if the flow may go on or is gone, else the code of the
/// reason.
#[classifier]
pub fn claw_confirm(ctx: TcContext) -> i32 {
    let Ok(key) = ctx.load::<FlowKey>(CONFIRM_KEY_OFFSET) else { return 0 };
    if matches!(key.ifindex, IFINDEX_LOCAL | IFINDEX_DIAL) {
        return 0;
    }
    let Some(record) = flow::find(&key) else { return 0 };
    // L7 judges those: the record only says who connected.
    // SAFETY: as in `flow::touch`.
    if unsafe { (*record).action } == action::LOCAL {
        return 0;
    }
    match flow::confirm(record, &key, generation()) {
        Ok(_) => 0,
        Err(judged) => judged.reason as i32,
    }
}
