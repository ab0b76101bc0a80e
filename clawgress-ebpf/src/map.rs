//! The maps, as `clawgress_ebpf_common::map` describes them, and the reads every program shares.
//! Names are repeated as literals because the attribute takes no constants; user space finds each
//! map by its constant at load, so a difference cannot go unnoticed.

use core::arch::asm;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_release};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf, SockMap};
use clawgress_ebpf_common::image::Limiter;
use clawgress_ebpf_common::{
    Address, AgentKey, Bind, Bucket, BucketKey, CgroupKey, Dial, Epoch, Flow, FlowKey, Generation, Learned,
    LearnedKey, Lease, Pace, Recent, ResolverKey, Seen, SelfAddress, bound, counter, listener, protocol,
};

#[map(name = "claw_gen_v1")]
pub static GENERATION: Array<u64> = Array::with_max_entries(1, 0);
// An array of maps in truth. The loader can only make one from type information that this object does
// not carry, so user space makes it, pins it, and this declaration takes up the pin.
#[map(name = "claw_img_v2")]
pub static IMAGES: Array<u32> = Array::with_max_entries(2, 0);
#[map(name = "claw_self_v2")]
pub static SELF: HashMap<Address, SelfAddress> =
    HashMap::with_max_entries(bound::SELF_MAX, BPF_F_NO_PREALLOC);
#[map(name = "claw_selff_v1")]
pub static SELF_FILTER: Array<[u64; bound::SELF_FILTER_WORDS]> = Array::with_max_entries(1, 0);
// Preallocated: a flood must not be able to make the kernel allocate.
#[map(name = "claw_flow_v2")]
pub static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(bound::FLOWS_MAX, 0);
#[map(name = "claw_shar_v1")]
pub static SHARES: Array<u64> = Array::with_max_entries(bound::SHARES, BPF_F_MMAPABLE);
#[map(name = "claw_rejt_v1")]
pub static REJECTS: Array<Pace> = Array::with_max_entries(2 * bound::SHARES, 0);
// Preallocated, as flows are; and so a deleted bucket is memory of a bucket still.
#[map(name = "claw_bckt_v1")]
pub static BUCKETS: HashMap<BucketKey, Bucket> = HashMap::with_max_entries(bound::BUCKETS_MAX, 0);
#[map(name = "claw_bshr_v1")]
pub static BUCKET_SHARES: Array<u64> = Array::with_max_entries(bound::SHARES, BPF_F_MMAPABLE);
#[map(name = "claw_unbd_v1")]
pub static UNBOUND: Array<Limiter> = Array::with_max_entries(2, 0);
#[map(name = "claw_unbb_v3")]
pub static UNBOUND_BUCKETS: Array<Bucket> = Array::with_max_entries(bound::UNBOUND_BUCKETS_ALL, 0);
// Not preallocated: few nodes learn many, and entries are written by user space only.
#[map(name = "claw_lern_v1")]
pub static LEARNED: HashMap<LearnedKey, Learned> =
    HashMap::with_max_entries(bound::LEARNED_MAX, BPF_F_NO_PREALLOC);
#[map(name = "claw_lnby_v1")]
pub static LEARNED_BY: Array<u64> = Array::with_max_entries(bound::SHARES, 0);
#[map(name = "claw_lstn_v2")]
pub static LISTENERS: SockMap = SockMap::with_max_entries(listener::SLOTS, 0);
#[map(name = "claw_evnt_v2")]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(bound::EVENTS_BYTES, 0);
#[map(name = "claw_cnt_v1")]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNTERS, 0);
#[map(name = "claw_seen_v3")]
pub static SEEN: PerCpuArray<Seen> = PerCpuArray::with_max_entries(bound::SEEN_SLOTS, 0);
#[map(name = "claw_epoc_v1")]
pub static EPOCH: Array<Epoch> = Array::with_max_entries(1, 0);
#[map(name = "claw_rcnt_v1")]
pub static RECENT: PerCpuArray<Recent> = PerCpuArray::with_max_entries(bound::RECENT_SLOTS, 0);
#[map(name = "claw_pace_v2")]
pub static PACE: PerCpuArray<Pace> = PerCpuArray::with_max_entries(1 + bound::DROP_SHARES, 0);
#[map(name = "claw_cgrp_v1")]
pub static CGROUPS: HashMap<CgroupKey, Bind> =
    HashMap::with_max_entries(bound::CGROUPS_MAX, BPF_F_NO_PREALLOC);
#[map(name = "claw_quar_v1")]
pub static QUARANTINE: Array<u64> = Array::with_max_entries(bound::QUARANTINE_WORDS, 0);
#[map(name = "claw_agnt_v1")]
pub static AGENTS: HashMap<AgentKey, Bind> = HashMap::with_max_entries(bound::AGENTS_MAX, BPF_F_NO_PREALLOC);
// Preallocated: registering must not wait for memory.
#[map(name = "claw_dial_v1")]
pub static DIALS: HashMap<u64, Dial> = HashMap::with_max_entries(bound::DIALS_MAX, 0);
#[map(name = "claw_dns_v1")]
pub static RESOLVERS: HashMap<ResolverKey, u32> = HashMap::with_max_entries(bound::RESOLVERS_MAX, 0);
#[map(name = "claw_leas_v1")]
pub static LEASE: Array<Lease> = Array::with_max_entries(1, 0);
#[map(name = "claw_if_v1")]
pub static INTERFACES: HashMap<u32, u32> =
    HashMap::with_max_entries(bound::INTERFACES_MAX, BPF_F_NO_PREALLOC);
#[map(name = "claw_meta_v1")]
pub static META: Array<u32> = Array::with_max_entries(1, 0);

/// The live generation, read once a packet. Without one, number 0, which denies.
#[inline(always)]
pub fn generation() -> Generation {
    match written() {
        Some(generation) => generation,
        None => Generation { number: 0, slot: 0 },
    }
}

/// The same; none only where the verifier thinks there may be none.
// VERIFIER: whoever ends at that has nothing walked once more for a generation of which everything is known.
#[inline(always)]
pub fn written() -> Option<Generation> {
    let value = GENERATION.get_ptr(0)?;
    // SAFETY: array elements live as long as the map; volatile makes it one 8-byte read.
    Some(Generation::unpack(unsafe { value.read_volatile() }))
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(index: u32) {
    add(index, 1);
}

/// Adds `n` to a counter of this CPU.
#[inline(always)]
pub fn add(index: u32, n: u64) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the element belongs to this CPU, and programs are not preempted by themselves.
        unsafe { *value += n }
    }
}

/// Whether the interface is set to fail open for this cause. Asked only when something has failed.
#[inline(always)]
pub fn fails_open(ifindex: u32, cause: u32) -> bool {
    // SAFETY: a value is one word, which user space replaces whole.
    unsafe { INTERFACES.get(&ifindex) }.is_some_and(|causes| *causes & cause != 0)
}

/// Whether there is a listener for a steered connection over TCP.
#[inline(always)]
pub fn has_listener(key: &FlowKey, is_v6: bool) -> bool {
    let socket = worker(key, is_v6);
    if socket.is_null() {
        return false;
    }
    // SAFETY: a referenced socket, released once.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}

/// The listener of a steered flow: a referenced socket, which the caller has to release, or null. DNS has its
/// own where one serves it; without, TCP goes where all TCP goes.
#[inline(always)]
pub fn listener(key: &FlowKey, is_v6: bool) -> *mut bpf_sock {
    if is_dns(key) {
        let base = if key.protocol == protocol::UDP { listener::DNS_UDP } else { listener::DNS_TCP };
        let dns = socket(base + is_v6 as u32);
        if !dns.is_null() || key.protocol == protocol::UDP {
            return dns;
        }
    }
    worker(key, is_v6)
}

/// The listener of the process that takes the connection's part; if that process is gone, and nobody is there to
/// share its parts out, of one that takes a part after it. Asked for the first packet of a connection only.
// VERIFIER: a function of its own, so that all who ask share its instructions.
#[inline(never)]
fn worker(key: &FlowKey, is_v6: bool) -> *mut bpf_sock {
    let mut part = listener::part(
        low(&key.source),
        low(&key.destination),
        [key.source_port_be, key.destination_port_be],
    ) as u64;
    // Consecutive parts belong to different processes, as long as there are others.
    let mut left = listener::WORKERS_MAX as u64;
    loop {
        let socket = socket(listener::slot(part as u32, is_v6));
        left -= 1;
        // VERIFIER: no code at all, but the compiler can't count the turns and write each of them out.
        // SAFETY: as above.
        unsafe { asm!("/* {0} */", inout(reg) left, options(pure, nomem, nostack)) };
        if !socket.is_null() || left == 0 {
            return socket;
        }
        part = if part + 1 == listener::PARTS as u64 { 0 } else { part + 1 };
    }
}

#[inline(always)]
fn low(address: &Address) -> [u32; 2] {
    // SAFETY: 16 plain bytes either way.
    let [_, _, a, b] = unsafe { core::mem::transmute::<Address, [u32; 4]>(*address) };
    [a, b]
}

/// Whether it goes to the port of DNS (RFC 1035 4.2), wherever that is.
#[inline(always)]
pub fn is_dns(key: &FlowKey) -> bool {
    key.destination_port_be == 53u16.to_be()
        && (key.protocol == protocol::UDP || key.protocol == protocol::TCP)
}

#[inline(always)]
fn socket(slot: u32) -> *mut bpf_sock {
    // SAFETY: a lookup in a socket map gives null or a referenced socket.
    unsafe {
        bpf_map_lookup_elem(
            core::ptr::from_ref(&LISTENERS).cast_mut().cast(),
            core::ptr::from_ref(&slot).cast(),
        )
        .cast()
    }
}
