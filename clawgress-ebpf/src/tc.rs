//! The authoritative verdict on agents' interfaces: ingress judges, records and steers; egress lets
//! only answers through. What leaves here without a mark, nftables drops.

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_CURRENT_NETNS, TC_ACT_OK, TC_ACT_SHOT, bpf_sock, bpf_sock_tuple,
    bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::generated::{bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use clawgress_ebpf_common::{
    Address, DropReason, FlowKey, Generation, action, counter, fail_open, flow_flag, hook, mark, protocol,
};

use crate::event::{self, Place, unidentified};
use crate::flow::{self, Settled, Way, confirm, goes_unread, reversed};
use crate::frame::Raw;
use crate::image::image;
use crate::judge::{self, Judgement, Toward};
use crate::learned;
use crate::lease;
use crate::limit::{self, Charge};
use crate::map::{count, fails_open, generation, listener};
use crate::parse::{HEADERS_BYTES, Kind, Packet, TCP_RST, names_vlan, parse};
use crate::reject;

/// Socket states (`BPF_TCP_TIME_WAIT`, `BPF_TCP_LISTEN`).
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;
/// Bytes of a tuple, by family.
const TUPLE_V4_BYTES: u32 = 12;
const TUPLE_V6_BYTES: u32 = 36;

/// TC ingress of an agents' interface.
#[classifier]
pub fn claw_tc_in(ctx: TcContext) -> i32 {
    let generation = generation();
    // SAFETY: the context is the program's own.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let mut packet = Packet::new(ifindex);
    match ingress(&ctx, generation, &mut packet) {
        Ok(mark) => {
            let index = match mark {
                mark::STEER => counter::STEERED,
                mark::DIRECT => counter::DIRECT,
                _ => counter::LOCAL,
            };
            count(index);
            // SAFETY: the context is the program's own, and `mark` may be written at TC.
            unsafe { (*ctx.skb.skb).mark = mark };
            TC_ACT_OK
        }
        Err(judged) if reject::is_due(reject::LATE, &judged, event::now()) => {
            count(counter::REJECTED);
            let place = Place { hook: hook::TC_INGRESS, generation: generation.number };
            event::refusal(&place, &packet.key, &judged, packet.bytes);
            // SAFETY: as above.
            unsafe { (*ctx.skb.skb).mark = mark::REJECT };
            TC_ACT_OK
        }
        Err(judged) => refuse(hook::TC_INGRESS, generation, &packet, &judged),
    }
}

/// TC egress of an agents' interface.
#[classifier]
pub fn claw_tc_out(ctx: TcContext) -> i32 {
    let generation = generation();
    // SAFETY: the context is the program's own.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let mut packet = Packet::new(ifindex);
    match egress(&ctx, generation, &mut packet) {
        Ok(()) => {
            count(counter::RETURNED);
            TC_ACT_OK
        }
        Err(judged) => refuse(hook::TC_EGRESS, generation, &packet, &judged),
    }
}

#[inline(always)]
fn refuse(hook: u16, generation: Generation, packet: &Packet, judged: &Judgement) -> i32 {
    count(counter::TC_DROPPED);
    let place = Place { hook, generation: generation.number };
    event::refusal(&place, &packet.key, judged, packet.bytes);
    TC_ACT_SHOT
}

/// Parses the frame.
#[inline(always)]
fn read(ctx: &TcContext, generation: Generation, packet: &mut Packet) -> Result<Kind, u16> {
    if let Err(reason) = prepare(ctx, packet) {
        return Err(reason.code());
    }
    packet.bytes = ctx.len();
    parse(Raw::tc(ctx), generation, packet)
}

/// Makes the headers contiguous, and looks at a VLAN tag that was taken off the frame (by the driver, or
/// by the kernel on the way here): what the tag says counts, not where it is kept.
#[inline(always)]
fn prepare(ctx: &TcContext, packet: &mut Packet) -> Result<(), DropReason> {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + HEADERS_BYTES as usize > end {
        let length = ctx.len();
        let wanted = if length < HEADERS_BYTES { length } else { HEADERS_BYTES };
        // A failure leaves the headers out of reach, and parsing then refuses them.
        let _ = ctx.pull_data(wanted);
    }
    // SAFETY: the context is the program's own.
    let (is_tagged, tci) = unsafe { ((*ctx.skb.skb).vlan_present != 0, (*ctx.skb.skb).vlan_tci as u16) };
    if is_tagged {
        if names_vlan(tci) {
            return Err(DropReason::VlanUnsupported);
        }
        packet.tags = 1;
    }
    Ok(())
}

#[inline(always)]
fn ingress(ctx: &TcContext, generation: Generation, packet: &mut Packet) -> Result<u32, Judgement> {
    let kind = match read(ctx, generation, packet) {
        Ok(kind) => kind,
        Err(reason) => return Err(unidentified(reason)),
    };
    if kind == Kind::Neighbour {
        let agent = judge::neighbour(generation, packet)?;
        limit::neighbour(agent, packet)?;
        return Ok(mark::LOCAL);
    }
    let is_error = kind == Kind::Error;
    let is_start = !is_error && flow::is_start(packet);
    let who = if is_error {
        let who = judge::error(generation, packet)?;
        // What it quotes came to the agent.
        packet.key = reversed(&packet.key);
        who
    } else {
        judge::comes_from_outside(packet)?;
        let (who, toward) = judge::packet(generation, &image(generation), packet)?;
        if let Toward::Gateway { is_bound } = toward {
            let noted = if is_bound { note(packet, generation.pack(), who.agent) } else { Noted::Unknown };
            return local(ctx.skb.skb, packet, noted, who.agent, is_bound);
        }
        who
    };
    let record = flow::find(&packet.key);
    if let Some(record) = record
        && is_error
    {
        let (agent, code) = flow::holder(record);
        if agent != who.agent {
            return Err(Judgement::deny(DropReason::FlowUnknown, who.agent));
        }
        if code == action::LOCAL {
            flow::touch(record, packet, Way::Out);
            return Ok(mark::LOCAL);
        }
    }
    // A SYN is judged anew, so that no connection begins by what another one was permitted.
    let is_syn = flow::is_syn(packet, is_start);
    let mut judged = match record {
        Some(record) if !is_syn => flow::current(record, generation).unwrap_or(Judgement::none()),
        _ => Judgement::none(),
    };
    let mut begins = record.is_none();
    // Whose it is, and whether that one is quarantined, was asked for this packet. A record that is current was
    // judged by the same binding.
    if judged.action == action::DENY {
        let is_live = record.is_some() && !is_syn;
        learned::judge(generation.pack(), who.pack(), &packet.key, is_live, &mut judged);
        match record {
            Some(record) => {
                match flow::renew(record, &packet.key, generation.pack(), is_start, &mut judged) {
                    Settled::Refused => return Err(judged),
                    settled => begins = settled == Settled::Anew,
                }
            }
            None if is_error => return Err(Judgement::deny(DropReason::FlowUnknown, who.agent)),
            None => may_begin(packet, &judged, is_start)?,
        }
    }
    if judged.agent != who.agent {
        return Err(Judgement::deny(DropReason::FlowUnknown, who.agent));
    }
    if judged.action == action::DIRECT && !lease::permits(packet.key.ifindex) {
        return Err(Judgement::deny(DropReason::LeaseLapsed, who.agent));
    }
    let charge = Charge { skb: ctx.skb.skb, packet, is_new: is_start && begins, cgroup: 0, may_wait: false };
    limit::charge(generation, &judged, charge)?;
    match record {
        Some(record) if !begins => flow::touch(record, packet, Way::Out),
        _ => {
            if !begin(packet, generation.pack(), record.is_some(), &mut judged) {
                return Err(judged);
            }
        }
    }
    match judged.action {
        action::DIRECT => Ok(mark::DIRECT),
        // An ICMP error about what came to the agent goes where the flow goes.
        action::STEER if is_error => Ok(mark::STEER),
        action::STEER if packet.key.protocol == protocol::UDP => {
            // Nobody reads it any more, so it is what it was before somebody did.
            if assign(ctx.skb.skb, listener(&packet.key, packet.is_v6)) {
                Ok(mark::STEER)
            } else {
                Err(judged.refused(DropReason::InspectionRequired))
            }
        }
        action::STEER if steer(ctx.skb.skb, packet, is_start) => Ok(mark::STEER),
        action::STEER => Err(judged.refused(DropReason::ListenerMissing)),
        _ => Err(Judgement::deny(DropReason::PolicyDenied, who.agent)),
    }
}

/// A packet to a service of the gateway. Sources without a binding begin only so many.
#[inline(always)]
fn local(
    skb: *mut __sk_buff,
    packet: &Packet,
    noted: Noted,
    agent: u32,
    is_bound: bool,
) -> Result<u32, Judgement> {
    match noted {
        Noted::Known => return Ok(mark::LOCAL),
        Noted::TableFull => return Err(Judgement::deny(DropReason::FlowTableFull, agent)),
        Noted::ShareFull => return Err(Judgement::deny(DropReason::FlowShareFull, agent)),
        Noted::Unknown => {}
    }
    let begins = flow::is_start(packet);
    if is_bound && begins {
        return Ok(mark::LOCAL);
    }
    // Of a connection that nobody has, each packet is answered by a reset, and whoever it says it is from asked for.
    // The first after a SYN cookie (RFC 4987 3.6) is of one, too, and its source begins something by it.
    if begins || !is_connected(skb, packet) {
        if agent != 0 {
            return Err(Judgement::deny(DropReason::FlowUnknown, agent));
        }
        limit::unbound(&packet.key.source, packet.key.ifindex, true)?;
    }
    Ok(mark::LOCAL)
}

/// Whether there is a socket of the packet's connection.
// VERIFIER: as `steer`.
#[inline(never)]
fn is_connected(skb: *mut __sk_buff, packet: &Packet) -> bool {
    let mut tuple = tuple(packet);
    let bytes = if packet.is_v6 { TUPLE_V6_BYTES } else { TUPLE_V4_BYTES };
    // SAFETY: the tuple holds `bytes` of the family; the reference is released below.
    let socket = unsafe { bpf_skc_lookup_tcp(skb.cast(), &mut tuple, bytes, BPF_F_CURRENT_NETNS as u64, 0) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: a referenced socket, whose state is read before it is released, once.
    unsafe {
        let is_listener = (*socket).state == TCP_LISTEN;
        bpf_sk_release(socket.cast());
        !is_listener
    }
}

/// Whether a packet of no known flow may begin one, or go on without.
#[inline(always)]
fn may_begin(packet: &Packet, judged: &Judgement, is_start: bool) -> Result<(), Judgement> {
    if judged.action == action::DENY {
        return Err(*judged);
    }
    if judged.action == action::STEER && packet.key.protocol == protocol::UDP && !is_served(packet) {
        // Nobody reads it, so it stays what it was.
        return Err(Judgement::deny(DropReason::InspectionRequired, judged.agent));
    }
    if !is_start && !is_loose(packet, judged) {
        return Err(Judgement::deny(DropReason::FlowUnknown, judged.agent));
    }
    Ok(())
}

/// Where the table may be full, a flow that policy forwards needs no beginning: it may have had it then.
#[inline(always)]
fn is_loose(packet: &Packet, judged: &Judgement) -> bool {
    judged.action == action::DIRECT && fails_open(packet.key.ifindex, fail_open::FLOW_TABLE)
}

/// Records the flow that a packet begins; `is_anew`: in place of the one that has its record.
// VERIFIER: this and the next are functions of their own, since most packets do without; such a function
// returns a number.
#[inline(never)]
fn begin(packet: &Packet, generation: u64, is_anew: bool, judged: &mut Judgement) -> bool {
    match begun(packet, Generation::unpack(generation), is_anew, judged) {
        Ok(()) => true,
        Err(full) => {
            *judged = full;
            false
        }
    }
}

#[inline(always)]
fn begun(
    packet: &Packet,
    generation: Generation,
    is_anew: bool,
    judged: &mut Judgement,
) -> Result<(), Judgement> {
    let is_start = flow::is_start(packet);
    let opened = opened(packet, generation, is_start, judged)?;
    let (flag, reason) = (opened.flag, opened.reason);
    let former = if is_anew { flow::find(&packet.key) } else { None };
    let at_ns = match former {
        Some(record) => Ok(flow::anew(record, packet, generation.number, judged, flag)),
        None => flow::create_with(packet, generation.number, judged, flag),
    };
    match at_ns {
        Ok(at_ns) => {
            if flag != 0 {
                report_opened(generation, packet, *judged, reason, at_ns);
            } else if judged.action == action::DIRECT {
                let place = Place { hook: hook::TC_INGRESS, generation: generation.number };
                event::flow(&place, &packet.key, judged, packet.bytes, at_ns);
            }
        }
        Err(full) if full.reason == DropReason::FlowTableFull.code() && is_loose(packet, judged) => {
            report_opened(generation, packet, *judged, DropReason::FlowTableFull.code(), 0);
        }
        Err(full) => return Err(full),
    }
    Ok(())
}

/// Why a flow begins although something failed: its bit of [`flow_flag`], and the reason it would be denied for. Zeroes
/// if nothing has.
struct Opened {
    flag: u16,
    reason: u16,
}

#[inline(always)]
fn opened(
    packet: &Packet,
    generation: Generation,
    is_start: bool,
    judged: &mut Judgement,
) -> Result<Opened, Judgement> {
    let (flag, reason) = if judged.action == action::STEER && goes_unread(&packet.key, packet.is_v6) {
        if !lease::permits(packet.key.ifindex) {
            return Err(Judgement::deny(DropReason::LeaseLapsed, judged.agent));
        }
        judged.action = action::DIRECT;
        (flow_flag::OPEN_L7, DropReason::ListenerMissing.code())
    } else if generation.number == 0 {
        (flow_flag::OPEN_REVISION, DropReason::PolicyMissing.code())
    } else if judged.action == action::DIRECT && !lease::is_live() {
        (flow_flag::OPEN_AGENT, DropReason::LeaseLapsed.code())
    } else if !is_start {
        (flow_flag::OPEN_FLOW_TABLE, DropReason::FlowUnknown.code())
    } else {
        (0, 0)
    };
    // VERIFIER: it would walk all that follows once for each.
    let zero = judge::unknown_zero(generation) as u16;
    Ok(Opened { flag, reason: reason | zero })
}

/// Tells of a flow that goes on only because its interface fails open.
#[inline(always)]
fn report_opened(generation: Generation, packet: &Packet, judged: Judgement, reason: u16, begun_ns: u64) {
    let place = Place { hook: hook::TC_INGRESS, generation: generation.number };
    let judged = Judgement { reason, ..judged };
    event::opened(&place, &packet.key, &judged, packet.bytes, begun_ns);
}

/// What is known of a connection to the proxy.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Noted {
    /// It has a record, or may do without.
    Known,
    /// It has none, and this packet begins none.
    Unknown,
    /// There is no room for its record.
    TableFull,
    /// Nor in its agent's share.
    ShareFull,
}

/// The record by which L7 learns which agent a connection to the proxy comes from, or by which interface, where
/// several agents share the source (agent 0).
#[inline(never)]
fn note(packet: &Packet, generation: u64, agent: u32) -> Noted {
    if packet.key.protocol != protocol::TCP {
        return Noted::Unknown;
    }
    let generation = Generation::unpack(generation);
    if let Some(record) = flow::find(&packet.key) {
        // SAFETY: as in `flow::touch`. The binding was read for this packet, so it is the truth
        // about the source; the record follows it.
        unsafe {
            (&raw mut (*record).agent).write_volatile(agent);
            (&raw mut (*record).action).write_volatile(action::LOCAL);
            (&raw mut (*record).generation).write_volatile(generation.number);
        }
        flow::touch(record, packet, Way::Out);
        return Noted::Known;
    }
    if !flow::is_start(packet) {
        return Noted::Unknown;
    }
    let judged = Judgement { action: action::LOCAL, agent, ..Judgement::none() };
    let full = match flow::create(packet, generation.number, &judged) {
        Ok(_) => return Noted::Known,
        Err(full) => full.reason,
    };
    // Without a record L7 asks for a credential: it is trusted less, not more. All shared sources
    // have one share of the table, and none may shut the others out by filling it.
    if full != DropReason::FlowTableFull.code() {
        return if agent == 0 { Noted::Known } else { Noted::ShareFull };
    }
    if agent == 0 || fails_open(packet.key.ifindex, fail_open::FLOW_TABLE) {
        Noted::Known
    } else {
        Noted::TableFull
    }
}

/// Gives the packet to the socket of its connection, or to the listener in the family's slot; whether there
/// was one.
// VERIFIER: a function of its own, so that the tuple is not on the caller's stack.
#[inline(never)]
fn steer(skb: *mut __sk_buff, packet: &Packet, is_start: bool) -> bool {
    let mut tuple = tuple(packet);
    let bytes = if packet.is_v6 { TUPLE_V6_BYTES } else { TUPLE_V4_BYTES };
    // SAFETY: the tuple holds `bytes` of the family; the reference is released on every path below.
    let mut socket =
        unsafe { bpf_skc_lookup_tcp(skb.cast(), &mut tuple, bytes, BPF_F_CURRENT_NETNS as u64, 0) };
    // SAFETY: a socket that is not null has a state to read.
    let state = if socket.is_null() { 0 } else { unsafe { (*socket).state } };
    if state == TCP_LISTEN {
        // Found by its port alone, it is somebody listening there: never that one.
        // SAFETY: the state is one of a socket, so there is one; its reference is given back once.
        unsafe { bpf_sk_release(socket.cast()) };
        socket = core::ptr::null_mut();
    }
    if state == TCP_TIME_WAIT && is_start {
        // Only this socket can make way for its successor: beside it, the listener's half-open one would
        // be a duplicate. The kernel then looks the successor's listener up, and is told by `claw_lookup`
        // that it is the slot's. Without one the packet ends here, as any other.
        let listener = listener(&packet.key, packet.is_v6);
        if listener.is_null() {
            // SAFETY: as above.
            unsafe { bpf_sk_release(socket.cast()) };
            return false;
        }
        // SAFETY: a referenced socket, released once.
        unsafe { bpf_sk_release(listener.cast()) };
    }
    if socket.is_null() {
        socket = listener(&packet.key, packet.is_v6).cast();
    }
    assign(skb, socket.cast())
}

/// Whether somebody serves what the packet would be steered to.
#[inline(always)]
fn is_served(packet: &Packet) -> bool {
    let socket = listener(&packet.key, packet.is_v6);
    if socket.is_null() {
        return false;
    }
    // SAFETY: a referenced socket, released once.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}

/// Gives the packet to a referenced socket, and releases that; whether it could.
#[inline(always)]
fn assign(skb: *mut __sk_buff, socket: *mut bpf_sock) -> bool {
    if socket.is_null() {
        return false;
    }
    // SAFETY: `socket` is a referenced socket, released exactly once.
    let assigned = unsafe {
        let assigned = bpf_sk_assign(skb.cast(), socket.cast(), 0);
        bpf_sk_release(socket.cast());
        assigned
    };
    assigned == 0
}

#[inline(always)]
fn tuple(packet: &Packet) -> bpf_sock_tuple {
    let key = &packet.key;
    if packet.is_v6 {
        let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: words(&key.source),
            daddr: words(&key.destination),
            sport: key.source_port_be,
            dport: key.destination_port_be,
        };
        bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6 } }
    } else {
        let [_, _, _, saddr] = words(&key.source);
        let [_, _, _, daddr] = words(&key.destination);
        let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr,
            daddr,
            sport: key.source_port_be,
            dport: key.destination_port_be,
        };
        bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 } }
    }
}

#[inline(always)]
fn words(address: &Address) -> [u32; 4] {
    // SAFETY: 16 plain bytes either way.
    unsafe { core::mem::transmute::<Address, [u32; 4]>(*address) }
}

/// Answers only: of a live flow, of the gateway itself, or neighbour messages.
#[inline(always)]
fn egress(ctx: &TcContext, generation: Generation, packet: &mut Packet) -> Result<(), Judgement> {
    let parsed = read(ctx, generation, packet);
    if let Ok(Kind::Neighbour) = parsed {
        return Ok(());
    }
    if let Ok(kind) = parsed {
        let key = if kind == Kind::Error { packet.key } else { reversed(&packet.key) };
        if let Some(record) = flow::find(&key) {
            // SAFETY: as in `flow::touch`.
            let (agent, code) = unsafe { ((*record).agent, (*record).action) };
            let goes_on = if code == action::DIRECT && !lease::permits(key.ifindex) {
                Err(Judgement::deny(DropReason::LeaseLapsed, agent))
            } else if code != action::LOCAL {
                confirm(record, &key, generation).map(drop)
            } else if judge::is_quarantined(agent) {
                Err(Judgement::deny(DropReason::AgentQuarantined, agent))
            } else {
                Ok(())
            };
            match goes_on {
                Ok(()) => flow::touch(record, packet, Way::Back),
                // A flow that ended in its midst: its agent is told.
                Err(_) if is_answer(ctx, kind, packet) => {}
                Err(judged) => return Err(judged),
            }
            return Ok(());
        }
        if is_answer(ctx, kind, packet) {
            return Ok(());
        }
        if is_unrecorded(ctx, generation, &key) {
            return Ok(());
        }
    }
    // The gateway's own: answers of its services, and errors it reports.
    if is_own(&parsed, packet) {
        return Ok(());
    }
    Err(unidentified(parsed.err().unwrap_or(DropReason::FlowUnknown.code())))
}

/// Whether this is how a refusal is answered: an ICMP error in the gateway's name, or a reset in the name of
/// whom the agent dialled. This machine itself made it, or it would have come in by some interface.
#[inline(always)]
fn is_answer(ctx: &TcContext, kind: Kind, packet: &Packet) -> bool {
    // SAFETY: the context is the program's own.
    let is_ours = unsafe { (*ctx.skb.skb).ingress_ifindex } == 0;
    let is_reset =
        kind == Kind::Flow && packet.key.protocol == protocol::TCP && packet.tcp_flags & TCP_RST != 0;
    let is_error = kind == Kind::Error && judge::services(&packet.outer).is_some();
    is_ours && (is_reset || is_error)
}

/// Whether the packet answers a permitted flow that has no record because the table was full: nftables gives
/// answers of a forwarded connection its mark, and policy still permits it.
#[inline(always)]
fn is_unrecorded(ctx: &TcContext, generation: Generation, key: &FlowKey) -> bool {
    // SAFETY: the context is the program's own.
    let mark = unsafe { (*ctx.skb.skb).mark };
    if mark & mark::MASK != mark::DIRECT
        || !fails_open(key.ifindex, fail_open::FLOW_TABLE)
        || !lease::permits(key.ifindex)
    {
        return false;
    }
    let mut judged = Judgement::none();
    flow::again(generation.pack(), key, &mut judged);
    judged.action == action::DIRECT && !judge::is_quarantined(judged.agent)
}

/// Whether the packet's source is the gateway.
#[inline(always)]
fn is_own(parsed: &Result<Kind, u16>, packet: &Packet) -> bool {
    let source = if let Ok(Kind::Error) = parsed { &packet.outer } else { &packet.key.source };
    judge::services(source).is_some()
}
