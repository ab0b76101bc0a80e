//! Rate limits: token buckets, charged once for each packet that an agent sends and each flow it begins.
//!
//! XDP only looks, so that a flood costs little; TC and the packet hooks of local workloads charge. Must never
//! charge one bucket of a set when another refuses.

use core::arch::asm;

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes_relative};
use clawgress_ebpf_common::image::{LIMITERS_PER_SET, Limiter, limiter};
use clawgress_ebpf_common::{
    Address, Bucket, BucketKey, DropReason, Generation, SUBJECT_CGROUP, SUBJECT_SHARED, action, bound,
    protocol,
};

use crate::flow::{EEXIST, add, share_index};
use crate::image::{hidden, image};
use crate::judge::Judgement;
use crate::map::{BUCKET_SHARES, BUCKETS, UNBOUND, UNBOUND_BUCKETS};
use crate::parse::Packet;

/// Beside a [`limiter::load`]: nothing is taken.
const LOOK: u64 = 1 << 63;
/// Beside a [`limiter::load`]: a limiter that paces has it sent later.
const WAIT: u64 = 1 << 62;

/// Set in what [`spend`] says if it may not pass: no clock is that late. The reason's code is in the high half then,
/// and in the low half the index of the policy that refuses, if one does.
const REFUSED: u64 = 1 << 63;
const REASON_SHIFT: u32 = 32;

const fn refused(reason: DropReason) -> u64 {
    REFUSED | (reason.code() as u64) << REASON_SHIFT
}

/// A packet that is to be charged.
#[derive(Clone, Copy)]
pub struct Charge<'a> {
    /// Its buffer.
    pub skb: *mut __sk_buff,
    /// What it says.
    pub packet: &'a Packet,
    /// Whether it begins a flow.
    pub is_new: bool,
    /// The local workload's cgroup, or 0.
    pub cgroup: u64,
    /// Whether it may be sent later.
    pub may_wait: bool,
}

/// Charges what `judged` permits to its limiters. Gives when it may leave, `CLOCK_MONOTONIC` ns: 0 is now.
#[inline(always)]
pub fn charge(generation: Generation, judged: &Judgement, charge: Charge<'_>) -> Result<u64, Judgement> {
    if judged.limits == 0 {
        return Ok(0);
    }
    let Charge { skb, packet, is_new, cgroup, may_wait } = charge;
    let workload = if cgroup == 0 { judged.agent as u64 } else { cgroup | SUBJECT_CGROUP };
    let flags = limiter::load(0, 0, is_new) | if may_wait { WAIT } else { 0 };
    let load = unknown(wire(skb, packet) | flags, packet.bytes);
    settle(judged, spend(generation.pack(), judged.limits, judged.agent, workload, load))
}

/// The most bytes of headers that are understood: IPv6, two extension headers, TCP with options.
const HEADERS_BYTES_MAX: u64 = 40 + 2 * 64 + 60;
/// Most packets behind the first that a buffer counts for, so that their headers count for no more bytes than
/// [`limiter::UNITS_MAX`] allows. No kernel makes such a buffer.
const MORE_MAX: u64 = (limiter::UNITS_MAX - (1 << 20)) / HEADERS_BYTES_MAX;
/// Where the headers name the next one (in IPv6, so much before where it is in IPv4), and where TCP has its length.
const NEXT_V4: u64 = 9;
const NEXT_V6_BEFORE: u64 = 3;
const TCP_LENGTH: u64 = 12;
/// Bytes of the headers without options; those of IPv6 are twice those of IPv4.
const IPV4: u64 = 20;
const UDP: u64 = 8;
/// `BPF_HDR_START_NET`.
const START_NET: u32 = 1;

/// The [`limiter::load`] of a buffer: where the kernel joined packets, as they are on the wire, each with its headers.
/// Their number is reckoned: who made the buffer may not have counted them (a guest's say 0).
// VERIFIER: a function of its own, for its place on the stack; such a function returns a number. There is no branch
// where a mask does: each would double the paths that are walked.
#[inline(never)]
fn wire(skb: *mut __sk_buff, packet: &Packet) -> u64 {
    // SAFETY: the context is the program's own.
    let size = unsafe { (*skb).gso_size } as u64;
    if size == 0 {
        return limiter::load(packet.bytes, 1, false);
    }
    let (bytes, is_v6) = (packet.bytes as u64, hidden(packet.is_v6 as u64));
    let transport = IPV4 + is_v6 * IPV4;
    let next = byte(skb, NEXT_V4 - is_v6 * NEXT_V6_BEFORE);
    let (is_tcp, is_udp) = (same(next, protocol::TCP), same(next, protocol::UDP));
    let known = transport + ((byte(skb, transport + TCP_LENGTH) >> 4) * 4 & is_tcp | UDP & is_udp);
    // Behind extension headers, and in tunnels, the most that there can be.
    let each = HEADERS_BYTES_MAX ^ (HEADERS_BYTES_MAX ^ known) & (is_tcp | is_udp);
    let more = if bytes <= known { 0 } else { (bytes - known - 1) / size };
    let more = if more < MORE_MAX { more } else { MORE_MAX };
    limiter::load((bytes + more * each) as u32, more as u16 + 1, false)
}

/// All ones where the numbers are the same, else 0.
#[inline(always)]
fn same(a: u64, b: u8) -> u64 {
    (hidden(a ^ b as u64).wrapping_sub(1) as i64 >> 63) as u64
}

/// The byte at an offset from layer 3; 0 beyond the packet.
#[inline(always)]
fn byte(skb: *mut __sk_buff, offset: u64) -> u64 {
    let mut value = 0u8;
    // SAFETY: the helper fills the one byte, or leaves it.
    unsafe { bpf_skb_load_bytes_relative(skb.cast(), offset as u32, (&raw mut value).cast(), 1, START_NET) };
    value as u64
}

/// Whether it would be refused now, but for what depends on flows.
#[inline(always)]
pub fn look(generation: Generation, judged: &Judgement, bytes: u32) -> Result<(), Judgement> {
    if judged.limits == 0 {
        return Ok(());
    }
    let load = unknown(limiter::load(bytes, 1, false) | LOOK, bytes);
    settle(judged, spend(generation.pack(), judged.limits, judged.agent, judged.agent as u64, load)).map(drop)
}

/// A load of which the verifier knows nothing but what its top bit says.
// VERIFIER: known bits would make it walk the limiters once for each of them, and what follows. It can't tell that no
// packet has so many bytes.
#[inline(always)]
fn unknown(load: u64, bytes: u32) -> u64 {
    load ^ 0u64.wrapping_sub(hidden(bytes as u64) >> 31) >> 1
}

#[inline(always)]
fn settle(judged: &Judgement, spent: u64) -> Result<u64, Judgement> {
    if spent & REFUSED == 0 {
        return Ok(spent);
    }
    Err(Judgement {
        action: action::DENY,
        reason: (spent >> REASON_SHIFT) as u16,
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
    let Some(image) = image(Generation::unpack(generation)) else {
        return refused(DropReason::RateLimited);
    };
    // SAFETY: the helper takes nothing and only reads a clock.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let is_look = load & LOOK != 0;
    // All are looked at before one is charged. One alone need not be, and who only looks stops there.
    let from = if is_look || image.limiter_of(limits, 1) != 0 { 0 } else { LIMITERS_PER_SET as u32 };
    let to = if is_look { LIMITERS_PER_SET as u32 } else { 2 * LIMITERS_PER_SET as u32 };
    let mut wait_ns = 0;
    for step in 0..2 * LIMITERS_PER_SET as u32 {
        if step < from || step >= to {
            continue;
        }
        let number = image.limiter_of(limits, step % LIMITERS_PER_SET as u32);
        if number == 0 {
            continue;
        }
        let Some(limiter) = image.limiter(number) else { return refused(DropReason::RateLimited) };
        // VERIFIER: no branches for what differs: each would double the paths that are walked.
        let units = load >> (limiter.unit & 63) & !(u64::MAX << (limiter.unit_bits & 63));
        if units == 0 {
            continue;
        }
        let own = 0u64.wrapping_sub((limiter.flags & limiter::BY_WORKLOAD) as u64);
        let of_one =
            ((limiter.flags & limiter::SHARED) as u64 >> limiter::SHARED.trailing_zeros()).wrapping_sub(1);
        let subject = (agent as u64 ^ (agent as u64 ^ workload) & own) & of_one | SUBJECT_SHARED & !of_one;
        let key = BucketKey { limiter: limiter.key, subject };
        let bucket = match BUCKETS.get_ptr_mut(&key) {
            Some(bucket) => bucket,
            None if is_look => continue,
            None => {
                let full = fresh(&key, agent);
                if full != 0 {
                    return full;
                }
                match BUCKETS.get_ptr_mut(&key) {
                    Some(bucket) => bucket,
                    None => return refused(DropReason::BucketTableFull),
                }
            }
        };
        let is_charge = step >= LIMITERS_PER_SET as u32;
        // Where all were looked at, all are charged: another CPU may have taken the last token since.
        let taking = if !is_charge {
            Taking::Look
        } else if from == 0 {
            Taking::Sure
        } else {
            Taking::Charge
        };
        let horizon_ns = if crate::PACES { horizon_ns(limiter, load) } else { 0 };
        let Some(missing_ns) = take(bucket, limiter, now_ns, units, horizon_ns, taking) else {
            return refused(DropReason::RateLimited) | limiter.policies as u64;
        };
        if crate::PACES {
            // What does not pace has nothing to wait for, though another CPU may just have emptied it.
            wait_ns = larger(wait_ns, if horizon_ns == 0 { 0 } else { missing_ns });
        }
    }
    if crate::PACES && wait_ns > 0 { now_ns + wait_ns as u64 } else { 0 }
}

/// The larger one.
// VERIFIER: no branch, as above; times are far from overflowing.
#[inline(always)]
fn larger(a: i64, b: i64) -> i64 {
    let less = hidden((a - b) as u64) as i64;
    a - (less & less >> 63)
}

/// How long a packet may be kept for want of units.
// VERIFIER: no branch, as above.
#[inline(always)]
fn horizon_ns(limiter: &Limiter, load: u64) -> u64 {
    let paces = (limiter.flags & limiter::PACE) as u64 >> limiter::PACE.trailing_zeros();
    bound::PACE_HORIZON_NS & 0u64.wrapping_sub(paces & load >> WAIT.trailing_zeros())
}

/// Makes a bucket that is full, or says why there is none.
// VERIFIER: a function of its own, so that the bucket is not on the caller's stack.
#[inline(never)]
fn fresh(key: &BucketKey, agent: u32) -> u64 {
    let Some(share) = BUCKET_SHARES.get_ptr_mut(share_index(agent)) else {
        return refused(DropReason::BucketShareFull);
    };
    // Signed: what user space took off too much for a moment is no full share.
    // SAFETY: array elements live as long as the map; others only change the number.
    if unsafe { share.read_volatile() } as i64 >= bound::BUCKETS_PER_AGENT_MAX as i64 {
        return refused(DropReason::BucketShareFull);
    }
    let bucket = Bucket { full_ns: 0, passed: 0, dropped: 0, agent, pad: 0 };
    match BUCKETS.insert(key, &bucket, BPF_NOEXIST as u64) {
        // SAFETY: as above.
        Ok(()) => unsafe { add(share, 1) },
        // Another CPU was first: that one's will be found.
        Err(EEXIST) => {}
        Err(_) => return refused(DropReason::BucketTableFull),
    }
    0
}

/// What [`take`] may do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taking {
    /// Nothing.
    Look,
    /// Take them, if they are there.
    Charge,
    /// Take them anyhow.
    Sure,
}

/// How long it takes until `units` are there, or the bucket is full: what is larger than the burst leaves it in
/// debt. At most 0 is now; none if it is longer than `horizon_ns`.
#[inline(always)]
fn take(
    bucket: *mut Bucket,
    limiter: &Limiter,
    now_ns: u64,
    units: u64,
    horizon_ns: u64,
    taking: Taking,
) -> Option<i64> {
    let cost_ns = units.wrapping_mul(limiter.cost) >> (limiter.cost_shift & 63);
    let least_ns = if cost_ns < limiter.burst_ns { cost_ns } else { limiter.burst_ns };
    // SAFETY: map values stay memory of a bucket while the program runs; other CPUs change it meanwhile as the
    // type says.
    unsafe {
        let full_ns = (&raw const (*bucket).full_ns).read_volatile();
        // As a difference: the clock never wraps, and a bucket is never an age away from full.
        let debt_ns = full_ns.wrapping_sub(now_ns) as i64;
        let debt_ns = if debt_ns < 0 { 0 } else { debt_ns as u64 };
        let wanted_ns = debt_ns.wrapping_add(least_ns);
        if taking != Taking::Sure && wanted_ns > limiter.burst_ns + horizon_ns {
            add(&raw mut (*bucket).dropped, 1);
            return None;
        }
        if taking != Taking::Look {
            if debt_ns == 0 {
                // Another CPU that did so first, and charged, is not overwritten.
                replace(&raw mut (*bucket).full_ns, full_ns, now_ns);
            }
            add(&raw mut (*bucket).full_ns, cost_ns);
            add(&raw mut (*bucket).passed, units);
        }
        Some(wanted_ns.wrapping_sub(limiter.burst_ns) as i64)
    }
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
    // SAFETY: 16 plain bytes either way.
    let [high, low] = unsafe { core::mem::transmute::<Address, [u64; 2]>(*source) };
    let own = place(low ^ high.rotate_left(29), ifindex);
    let is_there = spend_unbound(own, of_all(ALL_BEGINNINGS, ifindex), is_charge);
    if is_there { Ok(()) } else { Err(Judgement::deny(DropReason::RateLimited, 0)) }
}

/// Whether one more neighbour message may be heard, each of which may cost a place in the kernel's table: of `agent`,
/// wherever it says that it is, by a bucket of its own; of nobody known by that of its MAC, and that of all such.
#[inline(always)]
pub fn neighbour(agent: u32, packet: &Packet) -> Result<(), Judgement> {
    let is_there = if agent == 0 {
        let [a, b, c] = packet.mac;
        let mac = a as u64 | (b as u64) << 16 | (c as u64) << 32;
        let ifindex = packet.key.ifindex;
        spend_unbound(NEIGHBOURS + place(mac, ifindex), of_all(ALL_NEIGHBOURS, ifindex), true)
    } else {
        let own = AGENTS_NEIGHBOURS + share_index(agent);
        spend_unbound(own, own, true)
    };
    if is_there { Ok(()) } else { Err(Judgement::deny(DropReason::RateLimited, agent)) }
}

/// Where the buckets are, behind those of each source's beginnings: those of each MAC's messages, of all beginnings and
/// all messages at an interface, and of agents' messages.
const NEIGHBOURS: u32 = bound::UNBOUND_BUCKETS;
const ALL_BEGINNINGS: u32 = 2 * bound::UNBOUND_BUCKETS;
const ALL_NEIGHBOURS: u32 = ALL_BEGINNINGS + bound::UNBOUND_INTERFACES;
const AGENTS_NEIGHBOURS: u32 = ALL_NEIGHBOURS + bound::UNBOUND_INTERFACES;

/// The bucket of all at an interface, of those that begin at `base`.
#[inline(always)]
fn of_all(base: u32, ifindex: u32) -> u32 {
    base + (ifindex & (bound::UNBOUND_INTERFACES - 1))
}

/// Takes one from the buckets `own` and `all`, which may be the same.
// VERIFIER: a function of its own, so that both hooks share its instructions.
#[inline(never)]
fn spend_unbound(own: u32, all: u32, is_charge: bool) -> bool {
    // SAFETY: the helper takes nothing and only reads a clock.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let is_alone = own == all;
    let (Some(own), Some(total)) = (UNBOUND_BUCKETS.get_ptr_mut(own), UNBOUND_BUCKETS.get_ptr_mut(all))
    else {
        return false;
    };
    let (Some(each), Some(every)) = (UNBOUND.get(0), UNBOUND.get(1)) else { return false };
    let how = if is_charge { Taking::Charge } else { Taking::Look };
    let is_there = take(own, each, now_ns, 1, 0, Taking::Look).is_some()
        && (is_alone || take(total, every, now_ns, 1, 0, how).is_some());
    if is_there && is_charge {
        take(own, each, now_ns, 1, 0, Taking::Sure);
    }
    is_there
}

/// The bucket of somebody at an interface.
#[inline(always)]
fn place(who: u64, ifindex: u32) -> u32 {
    let folded = who ^ (ifindex as u64) << 16;
    (folded.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 52) as u32 & (bound::UNBOUND_BUCKETS - 1)
}
