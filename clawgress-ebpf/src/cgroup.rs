//! Local workloads: every `connect` and unconnected `sendto` of a registered cgroup is judged by the
//! same tables as a packet. They reach the gateway's services and what policy says `direct`;
//! everything else has to go through the proxy.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use clawgress_ebpf_common::{
    Address, Bind, CgroupKey, DropReason, FlowKey, Generation, action, bind_flag, counter, hook, protocol,
};

use crate::event::{self, Place, is_news};
use crate::judge::{self, Judgement};
use crate::map::{CGROUPS, count, generation};
use crate::parse::mapped;

/// What the kernel takes as yes and as no (`EPERM`).
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

/// Deepest cgroup level looked at; ours lie one or two below the root, or below a container's.
const LEVELS_MAX: i32 = 16;

/// Socket types and protocols (Linux, IANA).
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

/// Reason code under which a repeated permitted datagram is thinned out; no drop reason has it.
const REASON_NONE: u16 = 0;

/// `connect` over IPv4.
#[cgroup_sock_addr(connect4)]
pub fn claw_connect4(ctx: SockAddrContext) -> i32 {
    judge4(&ctx)
}

/// `connect` over IPv6.
#[cgroup_sock_addr(connect6)]
pub fn claw_connect6(ctx: SockAddrContext) -> i32 {
    judge6(&ctx)
}

/// A datagram to an explicit address over IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn claw_sendmsg4(ctx: SockAddrContext) -> i32 {
    judge4(&ctx)
}

/// A datagram to an explicit address over IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn claw_sendmsg6(ctx: SockAddrContext) -> i32 {
    judge6(&ctx)
}

/// Only TCP and UDP sockets: raw, ping, SCTP, MPTCP and the like have no hook that judges where they
/// send.
#[cgroup_sock(sock_create)]
pub fn claw_sock(ctx: SockContext) -> i32 {
    // SAFETY: the context is the program's own.
    let (kind, protocol) = unsafe { ((*ctx.sock).type_, (*ctx.sock).protocol) };
    let is_known =
        (kind == SOCK_STREAM && protocol == IPPROTO_TCP) || (kind == SOCK_DGRAM && protocol == IPPROTO_UDP);
    if is_known {
        return ALLOW;
    }
    let generation = generation();
    let agent = workload(generation).map_or(0, |bind| bind.agent);
    let key = destination([0; 16], 0, protocol as u8);
    count(counter::CGROUP_DENIED);
    let place = Place { hook: hook::CGROUP, generation: generation.number };
    event::refusal(&place, &key, &Judgement::deny(DropReason::ProtocolUnsupported, agent), 0);
    REFUSE
}

#[inline(always)]
fn judge4(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the context is the program's own.
    let address = unsafe { (*ctx.sock_addr).user_ip4 };
    decide(ctx.sock_addr, &mapped(address.to_ne_bytes()))
}

#[inline(always)]
fn judge6(ctx: &SockAddrContext) -> i32 {
    // VERIFIER: context fields are read one by one; an array copy would be a pointer into the context.
    // SAFETY: the context is the program's own.
    let (a, b, c, d) = unsafe {
        let sock_addr = ctx.sock_addr;
        let base = (&raw const (*sock_addr).user_ip6).cast::<u32>();
        (
            base.read_volatile(),
            base.add(1).read_volatile(),
            base.add(2).read_volatile(),
            base.add(3).read_volatile(),
        )
    };
    let ([q, r, s, t], [e, f, g, h]) = (a.to_ne_bytes(), b.to_ne_bytes());
    let ([i, j, k, l], [m, n, o, p]) = (c.to_ne_bytes(), d.to_ne_bytes());
    decide(ctx.sock_addr, &[q, r, s, t, e, f, g, h, i, j, k, l, m, n, o, p])
}

// VERIFIER: a function of its own, so that the four programs share its instructions.
#[inline(never)]
fn decide(sock_addr: *mut bpf_sock_addr, address: &Address) -> i32 {
    let generation = generation();
    // SAFETY: the context is the program's own. The port is 16 bits in network byte order.
    let (port_be, protocol) = unsafe { ((*sock_addr).user_port as u16, (*sock_addr).protocol) };
    let protocol = match protocol {
        IPPROTO_TCP => protocol::TCP,
        IPPROTO_UDP => protocol::UDP,
        _ => 0,
    };
    let key = destination(*address, port_be, protocol);
    let place = Place { hook: hook::CGROUP, generation: generation.number };
    match permit(generation, &key) {
        Ok(judged) => {
            count(counter::CGROUP_ALLOWED);
            let at_ns = event::now();
            if judged.action == action::DIRECT && is_news(&key, REASON_NONE, at_ns) {
                event::flow(&place, &key, &judged, 0, at_ns);
            }
            ALLOW
        }
        Err(judged) => {
            count(counter::CGROUP_DENIED);
            event::refusal(&place, &key, &judged, 0);
            REFUSE
        }
    }
}

#[inline(always)]
fn permit(generation: Generation, key: &FlowKey) -> Result<Judgement, Judgement> {
    let Some(bind) = workload(generation) else {
        return Err(Judgement::deny(DropReason::Anonymous, 0));
    };
    if bind.flags & bind_flag::DISABLED != 0 {
        return Err(Judgement::deny(DropReason::AgentDisabled, bind.agent));
    }
    if judge::is_quarantined(bind.agent) {
        return Err(Judgement::deny(DropReason::AgentQuarantined, bind.agent));
    }
    if key.protocol == 0 {
        return Err(Judgement::deny(DropReason::ProtocolUnsupported, bind.agent));
    }
    if let Some(services) = judge::services(&key.destination) {
        return if judge::is_service(&services, key) {
            Ok(Judgement { action: action::LOCAL, reason: 0, policies: 0, agent: bind.agent })
        } else {
            Err(Judgement::deny(DropReason::GatewayAddress, bind.agent))
        };
    }
    // The map lists addresses one by one; these lead to this machine all the same.
    if is_this_host(&key.destination) {
        return Err(Judgement::deny(DropReason::GatewayAddress, bind.agent));
    }
    if generation.number == 0 {
        return Err(Judgement::deny(DropReason::PolicyMissing, bind.agent));
    }
    let judged = judge::verdict(generation, &bind, key);
    match judged.action {
        action::DIRECT => Ok(judged),
        // Permitted, but only where L7 reads it: through the proxy.
        action::STEER => {
            Err(Judgement { action: action::DENY, reason: DropReason::InspectionRequired.code(), ..judged })
        }
        _ => Err(judged),
    }
}

/// Loopback (127.0.0.0/8, `::1`: RFC 6890) and "this host" (0.0.0.0/8, `::`), which Linux takes for it.
#[inline(always)]
fn is_this_host(address: &Address) -> bool {
    match *address {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last] => last <= 1,
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, first, _, _, _] => first == 0 || first == 127,
        _ => false,
    }
}

/// The nearest registered ancestor of the caller's cgroup.
#[inline(always)]
fn workload(generation: Generation) -> Option<Bind> {
    for depth in 0..LEVELS_MAX {
        // SAFETY: the helper takes a level and gives an id, or 0 below the caller's own level.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(LEVELS_MAX - depth) };
        if cgroup != 0 {
            let key = CgroupKey { cgroup, slot: generation.slot, pad: 0 };
            // SAFETY: copied at once; user space replaces entries whole.
            if let Some(bind) = unsafe { CGROUPS.get(&key) } {
                return Some(*bind);
            }
        }
    }
    None
}

#[inline(always)]
fn destination(address: Address, port_be: u16, protocol: u8) -> FlowKey {
    FlowKey {
        source: [0; 16],
        destination: address,
        source_port_be: 0,
        destination_port_be: port_be,
        ifindex: 0,
        protocol,
        pad: [0; 3],
    }
}
