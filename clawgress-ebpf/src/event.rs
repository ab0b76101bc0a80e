//! What user space is told: counters always, events when they are news. A flood of drops costs a
//! counter each; events are thinned by flow and by a rate, and what is left out is counted.

use core::mem::transmute;

use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns};
use clawgress_ebpf_common::{
    Address, DropReason, Ended, Event, Flow, FlowKey, Seen, SeenKey, action, bound, counter, event_kind,
};

use crate::judge::Judgement;
use crate::map::{EVENTS, PACE, SEEN, add, count};

/// Where and under which generation a packet was judged.
#[derive(Clone, Copy)]
pub struct Place {
    /// `hook` code.
    pub hook: u16,
    /// Generation that decided.
    pub generation: u64,
}

/// `CLOCK_MONOTONIC_COARSE`, ns: some milliseconds behind `CLOCK_MONOTONIC` at most, and several times
/// cheaper to read. Nothing here is measured in less.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing and only reads a clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Counts a flow that was let through although something failed, and reports it; `begun_ns` is its beginning, or
/// 0 if it has no record: then the same may come again, and is reported now and then.
// VERIFIER: as `refusal`; five arguments are the most.
#[inline(never)]
pub fn opened(place: &Place, key: &FlowKey, judged: &Judgement, bytes: u32, begun_ns: u64) {
    count(counter::FAILED_OPEN);
    let at_ns = if begun_ns == 0 { now() } else { begun_ns };
    // Thinned out under no reason: what is counted of it is no drop.
    if begun_ns != 0 || is_news(place, key, judged, 0, at_ns) {
        write(place, key, judged, bytes, event_kind::FLOW, at_ns);
    }
}

/// Reports a permitted new flow.
#[inline(always)]
pub fn flow(place: &Place, key: &FlowKey, judged: &Judgement, bytes: u32, at_ns: u64) {
    write(place, key, judged, bytes, event_kind::FLOW, at_ns);
}

/// Reports the end of a flow whose record another one takes.
#[inline(always)]
pub fn ended(key: &FlowKey, flow: *const Flow) {
    let Some(mut entry) = EVENTS.reserve::<Ended>(0) else {
        count(counter::EVENTS_LOST);
        return;
    };
    let ended = entry.as_mut_ptr();
    // VERIFIER: part by part, since the whole would be made on the stack first.
    // SAFETY: `ended` is the reserved entry, `flow` a record, and both are words; every byte is written.
    unsafe {
        (&raw mut (*ended).flow).cast::<[u64; 9]>().write(flow.cast::<[u64; 9]>().read());
        (&raw mut (*ended).key).write(*key);
        (&raw mut (*ended).pad).write(0);
    }
    entry.submit(0);
}

/// Counts a drop, and reports it unless the same was reported a moment ago.
// VERIFIER: a function of its own, so that its keys are not on the caller's stack.
#[inline(never)]
pub fn refusal(place: &Place, key: &FlowKey, judged: &Judgement, bytes: u32) {
    count(judged.reason as u32);
    let at_ns = now();
    if is_worth_telling(judged) && is_news(place, key, judged, judged.reason, at_ns) {
        tell(place, key, judged, bytes, at_ns);
    }
}

/// As [`refusal`], without calls but for what is news: for floods. Whether it was none.
#[inline(always)]
pub fn refusal_laid_out(place: &Place, key: &FlowKey, judged: &Judgement, bytes: u32, at_ns: u64) -> bool {
    count(judged.reason as u32);
    if !is_worth_telling(judged) {
        return false;
    }
    let is_repeated = is_repeated(&seen_key(key, judged.agent, judged.reason), at_ns);
    if !is_repeated {
        news(place, key, judged, bytes, at_ns);
    }
    is_repeated
}

/// Counts a drop whose like were just counted in `slot`, if they still are.
#[inline(always)]
pub fn is_counted(words: [u64; 5], slot: u32, reason: u16) -> bool {
    let Some(seen) = SEEN.get_ptr_mut(slot) else { return false };
    // SAFETY: the element belongs to this CPU.
    unsafe {
        if !same(seen.cast(), &words) {
            return false;
        }
        (*seen).count += 1;
    }
    count(reason as u32);
    true
}

#[inline(never)]
fn news(place: &Place, key: &FlowKey, judged: &Judgement, bytes: u32, at_ns: u64) {
    if is_news(place, key, judged, judged.reason, at_ns) {
        tell(place, key, judged, bytes, at_ns);
    }
}

/// Every host reports its groups every few minutes.
#[inline(always)]
fn is_worth_telling(judged: &Judgement) -> bool {
    judged.reason != DropReason::MulticastListener.code()
}

#[inline(always)]
fn tell(place: &Place, key: &FlowKey, judged: &Judgement, bytes: u32, at_ns: u64) {
    if is_within_pace(judged.agent, at_ns) {
        write(place, key, judged, bytes, event_kind::DROP, at_ns);
    } else {
        count(counter::EVENTS_LOST);
    }
}

/// What repeats are told apart by.
#[inline(always)]
fn seen_key(key: &FlowKey, agent: u32, reason: u16) -> [u64; 5] {
    // SAFETY: 40 plain bytes either way.
    unsafe {
        transmute::<SeenKey, [u64; 5]>(SeenKey {
            source: key.source,
            destination: key.destination,
            destination_port_be: key.destination_port_be,
            reason: reason as u8,
            protocol: key.protocol,
            scope: SeenKey::scope(key.ifindex, agent),
        })
    }
}

/// Whether the same was reported within `SEEN_INTERVAL_NS`; then it is counted for later.
#[inline(always)]
fn is_repeated(words: &[u64; 5], at_ns: u64) -> bool {
    let Some(seen) = SEEN.get_ptr_mut(slot(words)) else { return false };
    // SAFETY: the element belongs to this CPU.
    unsafe {
        let is_same =
            same(seen.cast(), words) && at_ns.wrapping_sub((*seen).since_ns) < bound::SEEN_INTERVAL_NS;
        if is_same {
            (*seen).count += 1;
        }
        is_same
    }
}

/// Whether the like of it was not reported within `SEEN_INTERVAL_NS`; if it was, it is counted for later. What had its place, and was counted, is told now.
// A program of this CPU may be interrupted by another between these reads and writes: a count is then off
// by one, or an event is sent twice.
// VERIFIER: a function of its own, for both that report.
#[inline(never)]
fn is_news(place: &Place, key: &FlowKey, judged: &Judgement, reason: u16, at_ns: u64) -> bool {
    let words = seen_key(key, judged.agent, reason);
    if is_repeated(&words, at_ns) {
        return false;
    }
    let Some(seen) = SEEN.get_ptr_mut(slot(&words)) else { return true };
    // SAFETY: the element belongs to this CPU.
    unsafe {
        if (*seen).count != 0 {
            rest(seen, at_ns);
        }
        seen.cast::<[u64; 5]>().write(words);
        (*seen).since_ns = at_ns;
        (*seen).count = 0;
        (*seen).generation = place.generation;
        (*seen).agent = judged.agent;
        (*seen).policies = judged.policies;
        (*seen).hook = place.hook;
    }
    true
}

/// Where drops of these words are counted.
#[inline(always)]
pub fn slot(words: &[u64; 5]) -> u32 {
    let [a, b, c, d, e] = *words;
    let folded = a ^ b.rotate_left(13) ^ c.rotate_left(26) ^ d.rotate_left(39) ^ e.rotate_left(52);
    (folded.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54) as u32 & (bound::SEEN_SLOTS - 1)
}

/// # Safety
/// `at` points to an element of `SEEN`.
#[inline(always)]
unsafe fn same(at: *const u64, words: &[u64; 5]) -> bool {
    let [a, b, c, d, e] = *words;
    // SAFETY: the caller's promise: the key is the element's first 40 bytes, and elements are aligned.
    unsafe { *at == a && *at.add(1) == b && *at.add(2) == c && *at.add(3) == d && *at.add(4) == e }
}

/// Tells what was counted and not told, before its place is taken.
///
/// # Safety
/// `seen` points to an element of `SEEN`.
#[inline(always)]
unsafe fn rest(seen: *const Seen, at_ns: u64) {
    // SAFETY: the caller's promise.
    let seen = unsafe { &*seen };
    // Permitted datagrams are thinned out here too, and no drop.
    if seen.key.reason == 0 {
        return;
    }
    if !is_within_pace(seen.agent, at_ns) {
        add(counter::EVENTS_LOST, seen.count);
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        add(counter::EVENTS_LOST, seen.count);
        return;
    };
    let event = entry.as_mut_ptr();
    // VERIFIER: field by field, since a whole event would be made on the stack first.
    // SAFETY: `event` is the reserved entry, aligned to 8 as its addresses in it are, and every byte is written.
    unsafe {
        (&raw mut (*event).at_ns).write(seen.since_ns);
        (&raw mut (*event).generation).write(seen.generation);
        let flow = &raw mut (*event).flow;
        (&raw mut (*flow).source).cast::<[u64; 2]>().write(halves(&raw const seen.key.source));
        (&raw mut (*flow).destination)
            .cast::<[u64; 2]>()
            .write_unaligned(halves(&raw const seen.key.destination));
        (&raw mut (*flow).source_port_be).write(0);
        (&raw mut (*flow).destination_port_be).write(seen.key.destination_port_be);
        (&raw mut (*flow).ifindex).write(seen.key.ifindex());
        (&raw mut (*flow).protocol).cast::<u32>().write(seen.key.protocol as u32);
        (&raw mut (*event).agent).write(seen.agent);
        (&raw mut (*event).policies).write(seen.policies);
        (&raw mut (*event).bytes).write(bpf_get_smp_processor_id());
        (&raw mut (*event).kind).write(event_kind::REST);
        (&raw mut (*event).reason).write(seen.key.reason as u16);
        (&raw mut (*event).action).write(action::DENY);
        (&raw mut (*event).hook).write(seen.hook);
        (&raw mut (*event).count).write(seen.count);
    }
    entry.submit(0);
}

/// # Safety
/// `address` is in an element of `SEEN`, aligned to 8 as these are.
#[inline(always)]
unsafe fn halves(address: *const Address) -> [u64; 2] {
    // SAFETY: the caller's promise; 16 plain bytes either way.
    unsafe { address.cast::<[u64; 2]>().read() }
}

/// At most `DROP_EVENTS_MAX` a second and CPU, and where others have used them up, `DROP_EVENTS_SHARE` of an agent.
#[inline(always)]
fn is_within_pace(agent: u32, at_ns: u64) -> bool {
    is_within(0, bound::DROP_EVENTS_MAX, at_ns)
        // Strangers have none of their own: each packet may come from another.
        || agent != 0 && is_within(1 + (agent & (bound::DROP_SHARES - 1)), bound::DROP_EVENTS_SHARE, at_ns)
}

// VERIFIER: a function of its own, for both that ask.
#[inline(never)]
fn is_within(index: u32, events_max: u64, at_ns: u64) -> bool {
    let Some(pace) = PACE.get_ptr_mut(index) else { return false };
    // SAFETY: the element belongs to this CPU.
    unsafe {
        if at_ns.wrapping_sub((*pace).since_ns) >= bound::DROP_EVENTS_INTERVAL_NS {
            (*pace).since_ns = at_ns;
            (*pace).events = 0;
        }
        (*pace).events += 1;
        (*pace).events <= events_max
    }
}

#[inline(always)]
fn write(place: &Place, key: &FlowKey, judged: &Judgement, bytes: u32, kind: u16, at_ns: u64) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        count(counter::EVENTS_LOST);
        return;
    };
    entry.write(Event {
        at_ns,
        generation: place.generation,
        flow: *key,
        agent: judged.agent,
        policies: judged.policies,
        bytes,
        kind,
        reason: judged.reason,
        action: judged.action,
        hook: place.hook,
        count: 1,
    });
    entry.submit(0);
}

/// A refusal before anybody was identified.
#[inline(always)]
pub fn unidentified(reason: u16) -> Judgement {
    Judgement { reason, ..Judgement::none() }
}
