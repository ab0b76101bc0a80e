//! Flow records: found, created within the table's bound, re-judged when the generation moved on.

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST;
use clawgress_ebpf_common::{
    Address, CLASS_UNAUTHENTICATED, DropReason, Flow, FlowKey, Generation, action, bind_flag, bound,
    fail_open, flow_flag, protocol,
};

use crate::event::now;
use crate::image::image;
use crate::judge::{self, Judgement, Who};
use crate::learned;
use crate::map::{FLOWS, SHARES, fails_open, has_listener};
use crate::parse::{Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the agent.
    Out,
    /// To the agent.
    Back,
}

/// `-EEXIST`: another CPU created the same flow first.
pub const EEXIST: i32 = -17;

/// The live record of `key`.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<*mut Flow> {
    FLOWS.get_ptr_mut(key)
}

/// The record's agent and action.
#[inline(always)]
pub fn holder(flow: *mut Flow) -> (u32, u16) {
    // SAFETY: as in `touch`.
    unsafe { ((*flow).agent, (*flow).action) }
}

/// Whether the connection of a record has ended or is ending, so that a SYN begins another: one that is sent again
/// because nobody answered begins none.
#[inline(always)]
pub fn is_over(flow: *mut Flow) -> bool {
    // SAFETY: as in `touch`.
    unsafe { (*flow).flags & (flow_flag::RST | flow_flag::FIN_TX | flow_flag::FIN_RX) != 0 }
}

/// Whether `packet` may start a flow: any UDP or echo, but TCP only by SYN.
#[inline(always)]
pub fn is_start(packet: &Packet) -> bool {
    packet.key.protocol != protocol::TCP
        || packet.tcp_flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST) == TCP_SYN
}

/// Whether a permitted connection of this interface and family goes unread because nobody is there to
/// read it.
#[inline(always)]
pub fn goes_unread(key: &FlowKey, is_v6: bool) -> bool {
    // DNS by datagrams, which may be steered, too, is never forwarded for want of somebody to read it.
    key.protocol == protocol::TCP && fails_open(key.ifindex, fail_open::L7) && !has_listener(key, is_v6)
}

/// Records a permitted new flow.
#[inline(always)]
pub fn create(packet: &Packet, generation: u64, judged: &Judgement) -> Result<u64, Judgement> {
    create_with(packet, generation, judged, 0)
}

/// Records a new flow with these bits of [`flow_flag`].
#[inline(always)]
pub fn create_with(
    packet: &Packet,
    generation: u64,
    judged: &Judgement,
    flags: u16,
) -> Result<u64, Judgement> {
    match record(packet, generation, judged, flags) {
        full if full == DropReason::FlowTableFull.code() as u64 => {
            Err(Judgement::deny(DropReason::FlowTableFull, judged.agent))
        }
        full if full == DropReason::FlowShareFull.code() as u64 => {
            Err(Judgement::deny(DropReason::FlowShareFull, judged.agent))
        }
        at_ns => Ok(at_ns),
    }
}

/// When the record begins, or the code of the reason why there is none: no clock is that early.
// VERIFIER: a function of its own, so that the record is not on the caller's stack; such a function returns a
// number.
#[inline(never)]
fn record(packet: &Packet, generation: u64, judged: &Judgement, flags: u16) -> u64 {
    let at_ns = now();
    let flow = Flow {
        generation,
        created_ns: at_ns,
        last_ns: at_ns,
        tx_packets: 1,
        tx_bytes: packet.bytes as u64,
        rx_packets: 0,
        rx_bytes: 0,
        agent: judged.agent,
        policies: judged.policies,
        action: judged.action,
        flags: flags | if judged.action == action::DIRECT { flow_flag::REPORTED } else { 0 },
        limits: judged.limits as u16,
        pad: 0,
    };
    let Some(share) = SHARES.get_ptr_mut(share_index(judged.agent)) else {
        return DropReason::FlowShareFull.code() as u64;
    };
    // Signed: what user space took off too much for a moment is no full share.
    // SAFETY: array elements live as long as the map; others only change the number.
    if unsafe { share.read_volatile() } as i64 >= bound::FLOWS_PER_AGENT_MAX as i64 {
        return DropReason::FlowShareFull.code() as u64;
    }
    match FLOWS.insert(&packet.key, &flow, BPF_NOEXIST as u64) {
        Ok(()) => {
            // SAFETY: as above.
            unsafe { add(share, 1) };
            at_ns
        }
        Err(EEXIST) => at_ns,
        Err(_) => DropReason::FlowTableFull.code() as u64,
    }
}

/// Where an agent's numbers are in the arrays that have one for each.
#[inline(always)]
pub fn share_index(agent: u32) -> u32 {
    agent & (bound::SHARES - 1)
}

/// Begins a steered flow anew as one that goes unread; gives its beginning.
#[inline(always)]
pub fn open(flow: *mut Flow, generation: u64) -> u64 {
    let at_ns = now();
    // SAFETY: as in `touch`. The packet starts a connection, so what was counted is another's.
    unsafe {
        (*flow).created_ns = at_ns;
        (*flow).tx_packets = 0;
        (*flow).tx_bytes = 0;
        (*flow).rx_packets = 0;
        (*flow).rx_bytes = 0;
        (*flow).flags = flow_flag::REPORTED | flow_flag::OPEN_L7;
        (&raw mut (*flow).action).write_volatile(action::DIRECT);
        (&raw mut (*flow).generation).write_volatile(generation);
    }
    at_ns
}

/// Notes whether the connection is charged for elsewhere.
#[inline(always)]
pub fn charged(flow: *mut Flow, is_charged: bool) {
    // SAFETY: as in `touch`.
    unsafe {
        let rest = (*flow).flags & !flow_flag::CHARGED;
        (*flow).flags = rest | if is_charged { flow_flag::CHARGED } else { 0 };
    }
}

/// Counts `packet` and notes how TCP ends.
#[inline(always)]
pub fn touch(flow: *mut Flow, packet: &Packet, way: Way) {
    let bytes = packet.bytes as u64;
    // SAFETY: `flow` comes from a lookup in this program run. The table is preallocated, so the memory
    // stays a flow record; if it was deleted and reused meanwhile, counters of another flow are off by
    // one packet, and no verdict reads them.
    unsafe {
        (*flow).last_ns = now();
        let (packets, total) = match way {
            Way::Out => (&raw mut (*flow).tx_packets, &raw mut (*flow).tx_bytes),
            Way::Back => (&raw mut (*flow).rx_packets, &raw mut (*flow).rx_bytes),
        };
        add(packets, 1);
        add(total, bytes);
        if packet.key.protocol != protocol::TCP {
            return;
        }
        // Two CPUs may lose one of two flags set at once; user space then waits the longer time-out.
        let flags = (*flow).flags;
        let mut next = flags;
        if packet.tcp_flags & TCP_RST != 0 {
            next |= flow_flag::RST;
        } else if packet.tcp_flags & TCP_FIN != 0 {
            next |= if way == Way::Out { flow_flag::FIN_TX } else { flow_flag::FIN_RX };
        } else if way == Way::Out && is_start(packet) {
            // The tuple is used again.
            next &= flow_flag::REPORTED | flow_flag::OPEN | flow_flag::CHARGED;
        }
        if next != flags {
            (*flow).flags = next;
        }
    }
}

/// Adds atomically: packets of one flow may be on several CPUs.
///
/// # Safety
/// `to` points to a counter in a map value.
#[inline(always)]
pub unsafe fn add(to: *mut u64, value: u64) {
    // The target has no compare-and-swap in its oldest version, so `core` offers no atomic
    // arithmetic; the instruction for this one has always been there.
    // SAFETY: the caller's promise; the instruction reads and writes the 8 bytes at `to`.
    unsafe { asm!("lock *(u64 *)({to} + 0) += {value}", to = in(reg) to, value = in(reg) value) }
}

/// The action of a known flow. A record of another generation is judged again and brought up to date;
/// one that may not go on as it was stays, marked denied, until user space has told its end. One that goes
/// unread is judged again at every packet, and ends as soon as there is a listener.
#[inline(always)]
pub fn confirm(
    flow: *mut Flow,
    key: &FlowKey,
    generation: Generation,
    is_start: bool,
) -> Result<Judgement, Judgement> {
    // SAFETY: as in `touch`.
    let agent = unsafe { (*flow).agent };
    if judge::is_quarantined(agent) {
        return Err(Judgement::deny(DropReason::AgentQuarantined, agent));
    }
    if let Some(judged) = current(flow, generation) {
        return Ok(judged);
    }
    let mut judged = Judgement::none();
    again(generation.pack(), key, &mut judged);
    if renew(flow, key, generation.pack(), is_start, &mut judged) { Ok(judged) } else { Err(judged) }
}

/// [`settle`]s, but for what goes unread.
// VERIFIER: a function of its own, so that the programs share its instructions, which most packets do without.
#[inline(never)]
pub fn renew(
    flow: *mut Flow,
    key: &FlowKey,
    generation: u64,
    is_start: bool,
    judged: &mut Judgement,
) -> bool {
    // SAFETY: as in `touch`.
    let (code, flags) = unsafe { ((*flow).action, (*flow).flags) };
    let is_unread = code == action::DIRECT && flags & flow_flag::OPEN_L7 != 0;
    if is_unread && judged.action == action::STEER && goes_unread(key, is_v6(key)) {
        judged.action = action::DIRECT;
    }
    let settled = settle(flow, Generation::unpack(generation), judged, is_start);
    let may_go_on = settled.is_ok();
    *judged = match settled {
        Ok(settled) | Err(settled) => settled,
    };
    may_go_on
}

/// The action of a flow that `generation` has judged already, and permitted.
#[inline(always)]
pub fn current(flow: *mut Flow, generation: Generation) -> Option<Judgement> {
    // SAFETY: as in `touch`; the fields are read once, into a copy.
    let (number, agent, policies, code, flags, limits) = unsafe {
        let number = (&raw const (*flow).generation).read_volatile();
        (number, (*flow).agent, (*flow).policies, (*flow).action, (*flow).flags, (*flow).limits)
    };
    // SAFETY: as above. Who settles it meanwhile first takes the number away.
    let is_whole = unsafe { (&raw const (*flow).generation).read_volatile() } == number;
    // One that goes unread is judged again at every packet.
    let is_settled = code != action::DENY && flags & flow_flag::OPEN_L7 == 0;
    let is_live = number == generation.number && number != 0 && is_settled && is_whole;
    let judged = Judgement { action: code, reason: 0, policies, agent, limits: limits as u32 };
    if is_live { Some(judged) } else { None }
}

/// Brings a record up to date with what `generation` says of it, `judged`.
#[inline(always)]
pub fn settle(
    flow: *mut Flow,
    generation: Generation,
    judged: &Judgement,
    is_start: bool,
) -> Result<Judgement, Judgement> {
    // SAFETY: as in `touch`.
    let (agent, code, flags) = unsafe { ((*flow).agent, (*flow).action, (*flow).flags) };
    let is_unread = flags & flow_flag::OPEN_L7 != 0;
    let is_same = judged.agent == agent && judged.action == code;
    // A connection cannot move between L7 and the kernel, or to another agent, in its midst.
    let is_allowed = judged.action != action::DENY && (is_same || is_start);
    let next = if is_allowed { judged.action } else { action::DENY };
    // SAFETY: as in `touch`. Whoever judges at this generation writes the same values; the generation
    // is written last, so that a reader who sees it sees the rest.
    unsafe {
        (&raw mut (*flow).generation).write_volatile(0);
        if is_allowed {
            (&raw mut (*flow).agent).write_volatile(judged.agent);
            (&raw mut (*flow).policies).write_volatile(judged.policies);
            (&raw mut (*flow).limits).write_volatile(judged.limits as u16);
        }
        if is_unread && next == action::STEER {
            (&raw mut (*flow).flags).write_volatile(0);
        }
        (&raw mut (*flow).action).write_volatile(next);
        (&raw mut (*flow).generation).write_volatile(generation.number);
    }
    if is_allowed {
        Ok(*judged)
    } else if judged.action == action::DENY {
        Err(*judged)
    } else {
        Err(Judgement::deny(DropReason::FlowUnknown, agent))
    }
}

/// The same flow seen from the other end.
#[inline(always)]
pub fn reversed(key: &FlowKey) -> FlowKey {
    FlowKey {
        source: key.destination,
        destination: key.source,
        source_port_be: key.destination_port_be,
        destination_port_be: key.source_port_be,
        ifindex: key.ifindex,
        protocol: key.protocol,
        pad: [0; 3],
    }
}

/// Whether the key's addresses are IPv6.
#[inline(always)]
fn is_v6(key: &FlowKey) -> bool {
    // SAFETY: 16 plain bytes either way.
    let [a, b, c, _] = unsafe { core::mem::transmute::<Address, [u32; 4]>(key.source) };
    a != 0 || b != 0 || c != u32::from_be(0xFFFF)
}

/// The stateless judgement by the flow's own key, for either direction.
// VERIFIER: a function of its own, so that both TC programs share its instructions.
#[inline(never)]
pub fn again(generation: u64, key: &FlowKey, judged: &mut Judgement) {
    let unpacked = Generation::unpack(generation);
    let is_missing = unpacked.number == 0;
    if is_missing && !fails_open(key.ifindex, fail_open::REVISION) {
        *judged = Judgement::deny(DropReason::PolicyMissing, 0);
        return;
    }
    let image = image(unpacked);
    let Some(bind) = judge::binding(&image, key.ifindex, &key.source) else {
        *judged = Judgement::deny(DropReason::Anonymous, 0);
        return;
    };
    let refusal = if bind.flags & bind_flag::DISABLED != 0 {
        *judged = judge::disabled(&bind);
        return;
    } else if is_missing && bind.agent == 0 {
        DropReason::PolicyMissing
    } else if bind.class == CLASS_UNAUTHENTICATED && !is_missing {
        DropReason::Anonymous
    } else {
        // VERIFIER: not by a function of its own here, where the stack is deep.
        *judged = learned::verdict(unpacked, &image, Who::of(&bind), key, true);
        return;
    };
    *judged = Judgement::deny(refusal, bind.agent);
}
