//! Sockets of this machine that are governed: local workloads', and the proxy's own. Socket hooks judge
//! where a socket is pointed, before a packet exists; packet programs judge each packet that leaves or
//! arrives, so that nothing goes on that is permitted no longer, however its socket was made.
//!
//! Must never take a socket hook's yes for a permission: only a live flow record is one.

mod connect;
mod dial;
mod packet;
mod traffic;

use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use clawgress_ebpf_common::{
    Address, Bind, CgroupKey, DropReason, FlowKey, Generation, IFINDEX_LOCAL, NEVER_DIRECT, action, bind_flag,
};

use crate::image::image;
use crate::judge::{self, Judgement, Who};
use crate::learned;
use crate::map::CGROUPS;

/// What the kernel takes as yes and as no (`EPERM`).
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

/// Deepest cgroup level looked at; ours lie one or two below the root, or below a container's.
const LEVELS_MAX: i32 = 16;

/// What may be done at `key`, by the tables alone.
#[inline(always)]
fn permit(generation: Generation, bind: &Bind, key: &FlowKey) -> Result<Judgement, Judgement> {
    let mut judged = Judgement::none();
    let weighed = weigh(generation.pack(), bind, key, &mut judged);
    judged.limits &= !NEVER_DIRECT;
    if weighed == action::DENY { Err(judged) } else { Ok(judged) }
}

/// Puts what a workload may do at `key` into `judged`, by what was learned for its agent too.
// VERIFIER: in place, since a copy would take room on a stack that has none to spare.
#[inline(always)]
fn weigh_workload(generation: u64, bind: &Bind, key: &FlowKey, is_live: bool, judged: &mut Judgement) {
    weigh(generation, bind, key, judged);
    if learned::is_undecided(judged) {
        learn(generation, bind.agent, key, is_live, judged);
    }
    if learned::is_question(judged, key) {
        judged.action = action::STEER;
        judged.reason = 0;
    }
    judged.limits &= !NEVER_DIRECT;
}

/// Puts what may be done into `judged`; the action of that.
// VERIFIER: a function of its own, so that the programs share its instructions. It returns a number, or a pointer to
// its stack could be what is left where a result would be.
#[inline(never)]
fn weigh(generation: u64, bind: &Bind, key: &FlowKey, judged: &mut Judgement) -> u16 {
    *judged = match consider(Generation::unpack(generation), bind, key) {
        Ok(judged) | Err(judged) => judged,
    };
    judged.action
}

/// Makes `judged` direct, if the address was learned; the action of that.
// VERIFIER: beside `weigh` and not within it, where Linux 6.1 has no room on the stack for both.
#[inline(never)]
fn learn(generation: u64, agent: u32, key: &FlowKey, is_live: bool, judged: &mut Judgement) -> u16 {
    *judged = learned::direct(Generation::unpack(generation), agent, key, is_live, *judged);
    judged.action
}

#[inline(always)]
fn consider(generation: Generation, bind: &Bind, key: &FlowKey) -> Result<Judgement, Judgement> {
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
            Ok(Judgement { action: action::LOCAL, agent: bind.agent, ..Judgement::none() })
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
    let judged = judge::verdict(generation, &image(generation), Who::of(bind), key);
    match judged.action {
        action::DIRECT | action::STEER => Ok(judged),
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

/// The workload the caller is: its nearest registered ancestor cgroup.
#[inline(always)]
fn caller(generation: Generation) -> Option<Bind> {
    // SAFETY: the helper takes a level and gives an id, or 0 below the caller's own level.
    let nearest = nearest(generation, |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) });
    nearest.map(|(_, bind)| bind)
}

/// The nearest registered cgroup of those that `ancestor` gives by level: its id and binding.
#[inline(always)]
fn nearest(generation: Generation, ancestor: impl Fn(i32) -> u64) -> Option<(u64, Bind)> {
    for depth in 0..LEVELS_MAX {
        let cgroup = ancestor(LEVELS_MAX - depth);
        if cgroup != 0 {
            let key = CgroupKey { cgroup, slot: generation.slot, pad: 0 };
            // SAFETY: copied at once; user space replaces entries whole.
            if let Some(bind) = unsafe { CGROUPS.get(&key) } {
                return Some((cgroup, *bind));
            }
        }
    }
    None
}

/// What a socket hook knows of a flow: where it would lead.
#[inline(always)]
fn destination(address: Address, port_be: u16, protocol: u8) -> FlowKey {
    FlowKey {
        source: [0; 16],
        destination: address,
        source_port_be: 0,
        destination_port_be: port_be,
        ifindex: IFINDEX_LOCAL,
        protocol,
        pad: [0; 3],
    }
}
