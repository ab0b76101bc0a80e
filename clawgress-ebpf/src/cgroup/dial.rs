//! The proxy's own sockets. Before it dials, L7 registers the socket's cookie with the agent it dials for;
//! the hooks judge the address for that agent by the same tables, and refuse a socket that is not
//! registered. So a bug in L7 reaches nothing that the kernel would refuse every agent.
//!
//! The registration counts for the call: the first packet leaves within it, and makes a flow record, by which
//! every later one is judged. Unregistered sockets may ask the configured DNS servers: that is the
//! gateway's own traffic.

use aya_ebpf::bindings::{__sk_buff, bpf_sock_addr};
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use clawgress_ebpf_common::{
    Address, AgentKey, Bind, Dial, DropReason, Flow, FlowKey, Generation, IFINDEX_DIAL, ResolverKey, action,
    bind_flag, counter, dial_flag, flow_flag, hook, protocol,
};

use super::connect::{address4, address6, port};
use super::packet::{charge, read};
use super::{ALLOW, REFUSE, destination, permit};
use crate::event::{self, Place, unidentified};
use crate::flow::{self, Settled, Way, reversed};
use crate::judge::{self, Judgement};
use crate::map::{AGENTS, DIALS, RESOLVERS, count, generation};
use crate::parse::Packet;

/// `connect` over IPv4.
#[cgroup_sock_addr(connect4)]
pub fn claw_dial4(ctx: SockAddrContext) -> i32 {
    decide(ctx.sock_addr, &address4(&ctx))
}

/// `connect` over IPv6.
#[cgroup_sock_addr(connect6)]
pub fn claw_dial6(ctx: SockAddrContext) -> i32 {
    decide(ctx.sock_addr, &address6(&ctx))
}

/// A datagram to an explicit address over IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn claw_ask4(ctx: SockAddrContext) -> i32 {
    decide(ctx.sock_addr, &address4(&ctx))
}

/// A datagram to an explicit address over IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn claw_ask6(ctx: SockAddrContext) -> i32 {
    decide(ctx.sock_addr, &address6(&ctx))
}

/// A packet that leaves one of the proxy's sockets.
#[cgroup_skb(egress)]
pub fn claw_dial_out(ctx: SkBuffContext) -> i32 {
    judge(ctx.skb.skb, outward)
}

/// A packet that arrives at one of the proxy's sockets. Those it accepted are not among them: they belong
/// to the listeners they came by, which the datapath role opened.
#[cgroup_skb(ingress)]
pub fn claw_dial_in(ctx: SkBuffContext) -> i32 {
    judge(ctx.skb.skb, inward)
}

// VERIFIER: a function of its own, so that the four programs share its instructions.
#[inline(never)]
fn decide(sock_addr: *mut bpf_sock_addr, address: &Address) -> i32 {
    let generation = generation();
    let (port_be, protocol) = port(sock_addr);
    let key = FlowKey { ifindex: IFINDEX_DIAL, ..destination(*address, port_be, protocol) };
    // SAFETY: the helper takes the program's own context, and the entry is copied at once; user space replaces
    // entries whole.
    let dial = unsafe { DIALS.get(&bpf_get_socket_cookie(sock_addr.cast())) }.copied();
    match permitted(generation, dial, &key) {
        Ok(_) => {
            count(counter::DIAL_ALLOWED);
            ALLOW
        }
        Err(judged) => {
            count(counter::DIAL_DENIED);
            let place = Place { hook: hook::DIAL, generation: generation.number };
            event::refusal(&place, &key, &judged, 0);
            REFUSE
        }
    }
}

#[inline(always)]
fn judge(
    skb: *mut __sk_buff,
    way: impl FnOnce(*mut __sk_buff, Generation, &mut Packet) -> Result<(), Judgement>,
) -> i32 {
    let generation = generation();
    let mut packet = Packet::new(IFINDEX_DIAL);
    match way(skb, generation, &mut packet) {
        Ok(()) => ALLOW,
        Err(judged) => {
            count(counter::DIAL_DROPPED);
            let place = Place { hook: hook::DIAL, generation: generation.number };
            event::refusal(&place, &packet.key, &judged, packet.bytes);
            REFUSE
        }
    }
}

#[inline(always)]
fn outward(skb: *mut __sk_buff, generation: Generation, packet: &mut Packet) -> Result<(), Judgement> {
    read(skb, packet).map_err(unidentified)?;
    let is_start = flow::is_start(packet);
    // SAFETY: the helper takes the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    // SAFETY: copied at once; user space replaces entries whole.
    let dial = unsafe { DIALS.get(&cookie) }.copied();
    if let Some(record) = flow::find(&packet.key) {
        // SAFETY: as in `flow::touch`.
        let is_unanswered = unsafe { (*record).rx_packets } == 0;
        // A SYN means that the tuple is used again, maybe for another agent: as if there were no record. But one
        // that nobody answered is sent again when the call it was registered for is over.
        if !is_start || (is_unanswered && dial.is_none()) {
            let judged = confirm(record, generation, &packet.key)?;
            // SAFETY: as above.
            if unsafe { (*record).flags } & flow_flag::CHARGED == 0 {
                charge(skb, generation, &judged, packet, 0, false)?;
            }
            flow::touch(record, packet, Way::Out);
            return Ok(());
        }
    }
    match permitted(generation, dial, &packet.key)? {
        None => Ok(()),
        Some(judged) => {
            let is_charged = dial.is_some_and(|dial| dial.flags & dial_flag::STEERED != 0);
            if !is_charged {
                charge(skb, generation, &judged, packet, 0, true)?;
            }
            begin(generation, packet, is_start, &judged, is_charged)
        }
    }
}

#[inline(always)]
fn inward(skb: *mut __sk_buff, generation: Generation, packet: &mut Packet) -> Result<(), Judgement> {
    let parsed = read(skb, packet);
    packet.key = reversed(&packet.key);
    parsed.map_err(unidentified)?;
    match flow::find(&packet.key) {
        Some(record) => {
            confirm(record, generation, &packet.key)?;
            flow::touch(record, packet, Way::Back);
            Ok(())
        }
        None if is_resolver(&packet.key) => Ok(()),
        None => Err(unidentified(DropReason::FlowUnknown.code())),
    }
}

/// The judgement of a registered socket; none for the gateway's own questions.
#[inline(always)]
fn permitted(
    generation: Generation,
    dial: Option<Dial>,
    key: &FlowKey,
) -> Result<Option<Judgement>, Judgement> {
    match dial {
        Some(dial) => reach(generation, dial.agent, key).map(Some),
        None if is_resolver(key) => Ok(None),
        None => Err(Judgement::deny(DropReason::DialUnregistered, 0)),
    }
}

/// What L7 may reach for an agent: whatever is permitted `connect`, be it steered or forwarded when the agent
/// itself sends it. Never the gateway: what a workload reaches there is L7.
#[inline(always)]
fn reach(generation: Generation, agent: u32, key: &FlowKey) -> Result<Judgement, Judgement> {
    let Some(bind) = registered(generation, agent) else {
        return Err(Judgement::deny(DropReason::Anonymous, agent));
    };
    if key.protocol != protocol::TCP {
        return Err(Judgement::deny(DropReason::ProtocolUnsupported, agent));
    }
    let judged = permit(generation, &bind, key)?;
    if judged.action == action::LOCAL {
        return Err(Judgement::deny(DropReason::GatewayAddress, agent));
    }
    Ok(Judgement { action: action::STEER, ..judged })
}

#[inline(always)]
fn registered(generation: Generation, agent: u32) -> Option<Bind> {
    // SAFETY: copied at once; a slot's agents do not change while packets read it.
    unsafe { AGENTS.get(&AgentKey { agent, slot: generation.slot }) }.copied()
}

#[inline(always)]
fn is_resolver(key: &FlowKey) -> bool {
    let resolver = ResolverKey { address: key.destination, port_be: key.destination_port_be, pad: [0; 2] };
    // SAFETY: only presence is looked at.
    let is_known = unsafe { RESOLVERS.get(&resolver) }.is_some();
    is_known && (key.protocol == protocol::UDP || key.protocol == protocol::TCP)
}

#[inline(always)]
fn begin(
    generation: Generation,
    packet: &Packet,
    is_start: bool,
    judged: &Judgement,
    is_charged: bool,
) -> Result<(), Judgement> {
    if !is_start {
        return Err(Judgement::deny(DropReason::FlowUnknown, judged.agent));
    }
    if judge::services(&packet.key.source).is_none() {
        return Err(Judgement::deny(DropReason::SourceSpoofed, judged.agent));
    }
    let flags = if is_charged { flow_flag::CHARGED } else { 0 };
    match flow::find(&packet.key) {
        Some(record) => {
            let mut judged = *judged;
            match flow::settle(record, packet.key.protocol, generation, &mut judged, true) {
                Settled::Refused => return Err(judged),
                Settled::GoesOn => {
                    flow::charged(record, is_charged);
                    flow::touch(record, packet, Way::Out);
                }
                Settled::Anew => {
                    flow::anew(record, packet, generation.number, &judged, flags);
                }
            }
            Ok(())
        }
        None => flow::create_with(packet, generation.number, judged, flags).map(drop),
    }
}

/// The record's agent must be enabled now; where it leads is judged anew by another generation.
#[inline(always)]
fn confirm(record: *mut Flow, generation: Generation, key: &FlowKey) -> Result<Judgement, Judgement> {
    // SAFETY: as in `flow::touch`.
    let agent = unsafe { (*record).agent };
    let is_enabled = registered(generation, agent).is_some_and(|bind| bind.flags & bind_flag::DISABLED == 0);
    if judge::is_quarantined(agent) {
        // Not settled: when it is released, what was open may go on, as for agents behind an interface.
        return Err(Judgement::deny(DropReason::AgentQuarantined, agent));
    }
    if is_enabled && let Some(judged) = flow::current(record, generation) {
        return Ok(judged);
    }
    let mut judged = match reach(generation, agent, key) {
        Ok(judged) | Err(judged) => judged,
    };
    match flow::settle(record, key.protocol, generation, &mut judged, false) {
        Settled::Refused => Err(judged),
        _ => Ok(judged),
    }
}
