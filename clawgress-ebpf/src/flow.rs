//! Flow records: found, created within the table's bound, re-judged when the generation moved on.

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST;
use clawgress_ebpf_common::{
    Address, CLASS_UNAUTHENTICATED, DropReason, Flow, FlowKey, Generation, action, bind_flag, bound,
    fail_open, flow_flag, protocol,
};

use crate::event::{self, now};
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

/// Whether `packet` may start a flow: any UDP or echo, but TCP only by SYN.
#[inline(always)]
pub fn is_start(packet: &Packet) -> bool {
    packet.key.protocol != protocol::TCP
        || packet.tcp_flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST) == TCP_SYN
}

/// Whether a packet that may start a flow asks for a TCP connection.
#[inline(always)]
pub fn is_syn(packet: &Packet, is_start: bool) -> bool {
    is_start && packet.key.protocol == protocol::TCP
}

/// The bits of a record that a packet begins.
#[inline(always)]
fn opening(packet: &Packet) -> u16 {
    if is_syn(packet, is_start(packet)) { flow_flag::OPENING } else { 0 }
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
        flags: flags | reported(judged) | opening(packet),
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

/// Whether an event tells of a flow's beginning: what is steered is told by who reads it.
#[inline(always)]
fn reported(judged: &Judgement) -> u16 {
    if judged.action == action::DIRECT { flow_flag::REPORTED } else { 0 }
}

/// Begins another flow where the record of one is that had the same tuple, with these bits of [`flow_flag`]. The end
/// of that one is told, if its beginning was. Gives the beginning.
// VERIFIER: a function of its own, so that the programs share its instructions; most packets do without.
#[inline(never)]
pub fn anew(flow: *mut Flow, packet: &Packet, generation: u64, judged: &Judgement, flags: u16) -> u64 {
    let at_ns = now();
    // SAFETY: as in `touch`. As in `settle`, a reader who sees the generation sees the rest.
    unsafe {
        if (*flow).flags & flow_flag::REPORTED != 0 {
            event::ended(&packet.key, flow);
        }
        (&raw mut (*flow).generation).write_volatile(0);
        (*flow).created_ns = at_ns;
        (*flow).last_ns = at_ns;
        (*flow).tx_packets = 1;
        (*flow).tx_bytes = packet.bytes as u64;
        (*flow).rx_packets = 0;
        (*flow).rx_bytes = 0;
        (&raw mut (*flow).agent).write_volatile(judged.agent);
        (&raw mut (*flow).policies).write_volatile(judged.policies);
        (&raw mut (*flow).limits).write_volatile(judged.limits as u16);
        (&raw mut (*flow).flags).write_volatile(flags | reported(judged) | opening(packet));
        (&raw mut (*flow).action).write_volatile(judged.action);
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
        let is_again = way == Way::Out && is_start(packet);
        // An ICMP error about the flow has no flags.
        let is_past = way == Way::Out && !is_again && packet.tcp_flags != 0;
        let mut next = if is_past { flags & !flow_flag::OPENING } else { flags };
        if packet.tcp_flags & TCP_RST != 0 {
            next |= flow_flag::RST;
        } else if packet.tcp_flags & TCP_FIN != 0 {
            next |= if way == Way::Out { flow_flag::FIN_TX } else { flow_flag::FIN_RX };
        } else if is_again {
            // To the proxy the tuple may be used again; elsewhere nothing of it has ended.
            next &= flow_flag::REPORTED | flow_flag::OPEN | flow_flag::CHARGED | flow_flag::OPENING;
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
pub fn confirm(flow: *mut Flow, key: &FlowKey, generation: Generation) -> Result<Judgement, Judgement> {
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
    match renew(flow, key, generation.pack(), false, &mut judged) {
        Settled::Refused => Err(judged),
        _ => Ok(judged),
    }
}

/// What becomes of a packet whose record was judged again.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Settled {
    /// It may not go on.
    Refused,
    /// It goes on as the record says now.
    GoesOn,
    /// It begins another flow, which [`anew`] is to note.
    Anew,
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
) -> Settled {
    // SAFETY: as in `touch`.
    let (code, flags) = unsafe { ((*flow).action, (*flow).flags) };
    let is_unread = code == action::DIRECT && flags & flow_flag::OPEN_L7 != 0;
    let may_go_unread = judged.action == action::STEER && goes_unread(key, is_v6(key));
    if may_go_unread && is_unread {
        judged.action = action::DIRECT;
    }
    let settled = settle(flow, key.protocol, Generation::unpack(generation), judged, is_start);
    if settled == Settled::GoesOn && may_go_unread && !is_unread && is_start {
        // It was steered until now, and is to be read no more.
        return Settled::Anew;
    }
    if settled == Settled::Anew && may_go_unread {
        // Who begins it says why it goes unread.
        judged.action = action::STEER;
    }
    settled
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

/// Brings a record up to date with what `generation` says of it, `judged`, or with why its packet may not go on; or
/// says that it begins another flow, and leaves the record to [`anew`].
#[inline(always)]
pub fn settle(
    flow: *mut Flow,
    protocol: u8,
    generation: Generation,
    judged: &mut Judgement,
    is_start: bool,
) -> Settled {
    let (agent, code) = holder(flow);
    let is_same = judged.agent == agent && judged.action == code;
    let is_syn = is_start && protocol == protocol::TCP;
    if judged.action == action::DENY && is_syn {
        // One that arrives late ends nothing: what lives is judged by its own packets.
        return Settled::Refused;
    }
    if judged.action != action::DENY && is_start {
        if !is_same {
            return Settled::Anew;
        }
        if is_syn && !is_opening(flow) {
            return begins_again(flow, judged);
        }
    }
    // A connection cannot move between L7 and the kernel, or to another agent, in its midst.
    let is_allowed = judged.action != action::DENY && is_same;
    let next = if is_allowed { judged.action } else { action::DENY };
    // SAFETY: as in `touch`. Whoever judges at this generation writes the same values; the generation
    // is written last, so that a reader who sees it sees the rest.
    unsafe {
        (&raw mut (*flow).generation).write_volatile(0);
        if is_allowed {
            (&raw mut (*flow).policies).write_volatile(judged.policies);
            (&raw mut (*flow).limits).write_volatile(judged.limits as u16);
        }
        (&raw mut (*flow).action).write_volatile(next);
        (&raw mut (*flow).generation).write_volatile(generation.number);
    }
    if is_allowed {
        return Settled::GoesOn;
    }
    if judged.action != action::DENY {
        *judged = Judgement::deny(DropReason::FlowUnknown, agent);
    }
    Settled::Refused
}

/// Whether a SYN may be one that is sent again: nothing of the connection has followed it either way that ends
/// or opens it. Its sequence number would say no more: before the agent's acknowledgement nothing passes.
#[inline(always)]
fn is_opening(flow: *mut Flow) -> bool {
    let over = flow_flag::RST | flow_flag::FIN_TX | flow_flag::FIN_RX;
    // SAFETY: as in `touch`.
    let (flags, created_ns) = unsafe { ((*flow).flags, (*flow).created_ns) };
    flags & (flow_flag::OPENING | over) == flow_flag::OPENING
        && now().wrapping_sub(created_ns) < bound::HANDSHAKE_NS
}

/// A connection by the tuple of another that is judged as that one is: one in [`bound::REUSE_NS`], where it is told.
#[inline(always)]
fn begins_again(flow: *mut Flow, judged: &mut Judgement) -> Settled {
    // SAFETY: as in `touch`.
    let age_ns = now().wrapping_sub(unsafe { (*flow).created_ns });
    if judged.action == action::DIRECT && age_ns < bound::REUSE_NS {
        *judged = Judgement::deny(DropReason::RateLimited, judged.agent);
        return Settled::Refused;
    }
    Settled::Anew
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
