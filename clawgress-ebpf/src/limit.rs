//! Rate limits: token buckets, charged once for each packet that an agent sends and each flow it begins.
//!
//! XDP only looks, so that a flood costs little; TC and the packet hooks of local workloads charge. Must never
//! charge one bucket of a set when another refuses.

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use clawgress_ebpf_common::image::{LIMITERS_PER_SET, Limiter, limiter};
use clawgress_ebpf_common::{
    Address, Bucket, BucketKey, DropReason, Generation, SUBJECT_CGROUP, action, bound,
};

use crate::flow::add;
use crate::image::{hidden, image};
use crate::judge::Judgement;
use crate::map::{BUCKETS, UNBOUND, UNBOUND_BUCKETS};

/// What is charged for a packet.
#[derive(Clone, Copy)]
pub struct Load {
    /// Bytes from layer 3 on.
    pub bytes: u32,
    /// Packets it is on the wire.
    pub packets: u16,
    /// Whether it begins a flow.
    pub is_new: bool,
}

/// Packets a buffer is on the wire: by its segments, which who made it may not have counted (a guest's or
/// `PACKET_VNET_HDR` buffers say 0), and by the size of one, which is 0 where nothing was joined.
#[inline(always)]
pub fn wire_packets(segments: u32, size: u32, bytes: u32) -> u16 {
    if size == 0 {
        return 1;
    }
    let by_size = (bytes + size - 1) / size;
    let packets = if segments > by_size { segments } else { by_size };
    packets as u16
}

/// Beside a [`limiter::load`]: nothing is taken.
const LOOK: u64 = 1 << 63;

/// What [`spend`] says: it may pass; it may not, because of the policy whose index is in the low half; there is
/// no room for a bucket.
const PASSED: u64 = 0;
const REFUSED: u64 = 1 << 32;
const FULL: u64 = 1 << 33;

/// Charges what `judged` permits to its limiters; `cgroup` is the local workload's, or 0.
#[inline(always)]
pub fn charge(generation: Generation, judged: &Judgement, cgroup: u64, load: Load) -> Result<(), Judgement> {
    if judged.limits == 0 {
        return Ok(());
    }
    let workload = if cgroup == 0 { judged.agent as u64 } else { cgroup | SUBJECT_CGROUP };
    let load = limiter::load(load.bytes, load.packets, load.is_new);
    settle(judged, spend(generation.pack(), judged.limits, judged.agent, workload, load))
}

/// Whether it would be refused now, but for what depends on flows.
#[inline(always)]
pub fn look(generation: Generation, judged: &Judgement, bytes: u32) -> Result<(), Judgement> {
    if judged.limits == 0 {
        return Ok(());
    }
    let load = limiter::load(bytes, 1, false) | LOOK;
    settle(judged, spend(generation.pack(), judged.limits, judged.agent, judged.agent as u64, load))
}

#[inline(always)]
fn settle(judged: &Judgement, spent: u64) -> Result<(), Judgement> {
    if spent == PASSED {
        return Ok(());
    }
    let reason = if spent & FULL != 0 { DropReason::BucketTableFull } else { DropReason::RateLimited };
    Err(Judgement {
        action: action::DENY,
        reason: reason.code(),
        policies: spent as u32,
        agent: judged.agent,
        limits: 0,
    })
}

// VERIFIER: a function of its own, so that the programs share its instructions and its key is not on their
// stacks; such a function takes five arguments and returns a number.
#[inline(never)]
fn spend(generation: u64, limits: u32, agent: u32, workload: u64, load: u64) -> u64 {
    // None, if the slot has another generation by now: then nobody knows what applies.
    let Some(image) = image(Generation::unpack(generation)) else { return REFUSED };
    // SAFETY: the helper takes nothing and only reads a clock.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // VERIFIER: known bits would make it walk the loop once for each of them. It can't tell that no clock is that
    // late.
    let load = load | hidden(now_ns) >> 63;
    let is_look = load & LOOK != 0;
    // All are looked at before one is charged. One alone need not be, and who only looks stops there.
    let from = if is_look || image.limiter_of(limits, 1) != 0 { 0 } else { LIMITERS_PER_SET as u32 };
    let to = if is_look { LIMITERS_PER_SET as u32 } else { 2 * LIMITERS_PER_SET as u32 };
    for step in 0..2 * LIMITERS_PER_SET as u32 {
        if step < from || step >= to {
            continue;
        }
        let number = image.limiter_of(limits, step % LIMITERS_PER_SET as u32);
        if number == 0 {
            continue;
        }
        let Some(limiter) = image.limiter(number) else { return REFUSED };
        // VERIFIER: no branches for what differs: each would double the paths that are walked.
        let units = load >> (limiter.unit & 63) & !(u64::MAX << (limiter.unit_bits & 63));
        if units == 0 {
            continue;
        }
        let own = 0u64.wrapping_sub((limiter.flags & limiter::BY_WORKLOAD) as u64);
        let subject = agent as u64 ^ (agent as u64 ^ workload) & own;
        let key = BucketKey { limiter: limiter.key, subject };
        let bucket = match BUCKETS.get_ptr_mut(&key) {
            Some(bucket) => bucket,
            None if is_look => continue,
            None => match fresh(&key, agent) {
                Some(bucket) => bucket,
                None => return FULL,
            },
        };
        let is_charge = step >= LIMITERS_PER_SET as u32;
        // Where all were looked at, all are charged: another CPU may have taken the last token since.
        let is_sure = is_charge && from == 0;
        if !take(bucket, limiter, now_ns, units, is_charge, is_sure) {
            return REFUSED | limiter.policies as u64;
        }
    }
    PASSED
}

/// A bucket that is full.
#[inline(always)]
fn fresh(key: &BucketKey, agent: u32) -> Option<*mut Bucket> {
    let bucket = Bucket { full_ns: 0, passed: 0, dropped: 0, agent, pad: 0 };
    // Another CPU may have been first; then that one's is found.
    let _ = BUCKETS.insert(key, &bucket, BPF_NOEXIST as u64);
    BUCKETS.get_ptr_mut(key)
}

/// Whether `units` are there, or the bucket is full: what is larger than the burst leaves it in debt. Takes them
/// if it `is_charge`, and whatever is there if it `is_sure`.
#[inline(always)]
fn take(
    bucket: *mut Bucket,
    limiter: &Limiter,
    now_ns: u64,
    units: u64,
    is_charge: bool,
    is_sure: bool,
) -> bool {
    let cost_ns = units.wrapping_mul(limiter.cost) >> (limiter.cost_shift & 63);
    let least_ns = if cost_ns < limiter.burst_ns { cost_ns } else { limiter.burst_ns };
    // SAFETY: map values stay memory of a bucket while the program runs; other CPUs change it meanwhile as the
    // type says.
    unsafe {
        let full_ns = (&raw const (*bucket).full_ns).read_volatile();
        // As a difference: the clock never wraps, and a bucket is never an age away from full.
        let debt_ns = full_ns.wrapping_sub(now_ns) as i64;
        let debt_ns = if debt_ns < 0 { 0 } else { debt_ns as u64 };
        if !is_sure && debt_ns.wrapping_add(least_ns) > limiter.burst_ns {
            add(&raw mut (*bucket).dropped, 1);
            return false;
        }
        if is_charge {
            if debt_ns == 0 {
                // Another CPU that did so first, and charged, is not overwritten.
                replace(&raw mut (*bucket).full_ns, full_ns, now_ns);
            }
            add(&raw mut (*bucket).full_ns, cost_ns);
            add(&raw mut (*bucket).passed, units);
        }
    }
    true
}

/// Puts `next` where `expected` is, unless it is there no more.
///
/// # Safety
/// `at` points to a word in a map value.
#[inline(always)]
unsafe fn replace(at: *mut u64, expected: u64, next: u64) {
    // As in `flow::add`, the target's oldest version has no name for it: `r0 = cmpxchg_64(r1 + 0, r0, r2)`, as
    // the kernel knows it since 5.12 (`Documentation/bpf/standardization/instruction-set.rst`).
    // SAFETY: the caller's promise; the instruction reads and writes the 8 bytes at `at`.
    unsafe {
        asm!(
            ".byte 0xdb, 0x21, 0, 0, 0xf1, 0, 0, 0",
            inout("r0") expected => _,
            in("r1") at,
            in("r2") next,
        );
    }
}

/// Whether a source without a binding may begin one more connection, or send one more datagram, to the gateway:
/// by its own bucket, and by that of all such sources.
#[inline(always)]
pub fn unbound(source: &Address, ifindex: u32, is_charge: bool) -> Result<(), Judgement> {
    let is_there = spend_unbound(source, ifindex, is_charge);
    if is_there { Ok(()) } else { Err(Judgement::deny(DropReason::RateLimited, 0)) }
}

// VERIFIER: a function of its own, so that both hooks share its instructions.
#[inline(never)]
fn spend_unbound(source: &Address, ifindex: u32, is_charge: bool) -> bool {
    let all = bound::UNBOUND_BUCKETS;
    // SAFETY: the helper takes nothing and only reads a clock.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let place = place(source, ifindex);
    let (Some(own), Some(total)) = (UNBOUND_BUCKETS.get_ptr_mut(place), UNBOUND_BUCKETS.get_ptr_mut(all))
    else {
        return false;
    };
    let (Some(each), Some(every)) = (UNBOUND.get(0), UNBOUND.get(1)) else { return false };
    let is_there =
        take(own, each, now_ns, 1, false, false) && take(total, every, now_ns, 1, is_charge, false);
    if is_there && is_charge {
        take(own, each, now_ns, 1, true, true);
    }
    is_there
}

/// The bucket of a source.
#[inline(always)]
fn place(source: &Address, ifindex: u32) -> u32 {
    // SAFETY: 16 plain bytes either way.
    let [high, low] = unsafe { core::mem::transmute::<Address, [u64; 2]>(*source) };
    let folded = low ^ high.rotate_left(29) ^ (ifindex as u64) << 16;
    (folded.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 52) as u32 & (bound::UNBOUND_BUCKETS - 1)
}
