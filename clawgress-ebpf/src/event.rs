//! What user space is told: counters always, events when they are news. A flood of drops costs a
//! counter each; events are thinned by flow and by a rate, and what is left out is counted.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use clawgress_ebpf_common::{DropReason, Event, FlowKey, SeenKey, action, bound, counter, event_kind};

use crate::judge::Judgement;
use crate::map::{EVENTS, PACE, SEEN, count};

/// Where and under which generation a packet was judged.
#[derive(Clone, Copy)]
pub struct Place {
    /// `hook` code.
    pub hook: u16,
    /// Generation that decided.
    pub generation: u64,
}

/// `CLOCK_MONOTONIC`, ns.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing and only reads a clock.
    unsafe { bpf_ktime_get_ns() }
}

/// Counts a flow that was let through although something failed, and reports it; `begun_ns` is its beginning, or
/// 0 if it has no record: then the same may come again, and is reported now and then.
// VERIFIER: as `refusal`; five arguments are the most.
#[inline(never)]
pub fn opened(place: &Place, key: &FlowKey, judged: &Judgement, bytes: u32, begun_ns: u64) {
    count(counter::FAILED_OPEN);
    let at_ns = if begun_ns == 0 { now() } else { begun_ns };
    if begun_ns != 0 || is_news(key, judged.reason, at_ns) {
        write(place, key, judged, bytes, event_kind::FLOW, at_ns);
    }
}

/// Reports a permitted new flow.
#[inline(always)]
pub fn flow(place: &Place, key: &FlowKey, judged: &Judgement, bytes: u32, at_ns: u64) {
    write(place, key, judged, bytes, event_kind::FLOW, at_ns);
}

/// Counts a drop, and reports it unless the same was reported a moment ago.
// VERIFIER: a function of its own, so that its keys are not on the caller's stack.
#[inline(never)]
pub fn refusal(place: &Place, key: &FlowKey, judged: &Judgement, bytes: u32) {
    count(judged.reason as u32);
    // Every host says it every few minutes.
    if judged.reason == DropReason::MulticastListener.code() {
        return;
    }
    let at_ns = now();
    if is_news(key, judged.reason, at_ns) {
        if is_within_pace(at_ns) {
            write(place, key, judged, bytes, event_kind::DROP, at_ns);
        } else {
            count(counter::EVENTS_LOST);
        }
    }
}

/// Whether (source, destination, port, reason) was not reported within `SEEN_INTERVAL_NS`.
#[inline(always)]
pub fn is_news(key: &FlowKey, reason: u16, at_ns: u64) -> bool {
    let seen = SeenKey {
        source: key.source,
        destination: key.destination,
        destination_port_be: key.destination_port_be,
        reason,
        ifindex: key.ifindex,
    };
    if let Some(last) = SEEN.get_ptr_mut(&seen) {
        // SAFETY: LRU entries may be reused for another key meanwhile; the worst is one event more
        // or less.
        unsafe {
            if at_ns.wrapping_sub(*last) < bound::SEEN_INTERVAL_NS {
                return false;
            }
            *last = at_ns;
        }
        return true;
    }
    // A full LRU evicts; an error means contention, and then the event is sent all the same.
    let _ = SEEN.insert(&seen, &at_ns, 0);
    true
}

/// At most `DROP_EVENTS_MAX` a second and CPU.
#[inline(always)]
fn is_within_pace(at_ns: u64) -> bool {
    let Some(pace) = PACE.get_ptr_mut(0) else { return false };
    // SAFETY: the element belongs to this CPU.
    unsafe {
        if at_ns.wrapping_sub((*pace).since_ns) >= bound::DROP_EVENTS_INTERVAL_NS {
            (*pace).since_ns = at_ns;
            (*pace).events = 0;
        }
        (*pace).events += 1;
        (*pace).events <= bound::DROP_EVENTS_MAX
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
    });
    entry.submit(0);
}

/// A refusal before anybody was identified.
#[inline(always)]
pub fn unidentified(reason: u16) -> Judgement {
    Judgement { action: action::DENY, reason, policies: 0, agent: 0 }
}
