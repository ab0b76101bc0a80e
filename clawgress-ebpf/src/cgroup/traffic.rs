//! Each packet of a local workload's sockets, out and in. Out: a flow record is made by the first one, if
//! policy permits it now, and tied to the packet's real addresses. In: only answers of live flows, so a
//! workload that listens is reached by nobody.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_ancestor_cgroup_id;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use clawgress_ebpf_common::{
    Bind, DropReason, Flow, Generation, IFINDEX_LOCAL, IFINDEX_LOOPBACK, action, bind_flag, counter, hook,
};

use super::packet::{charge, read};
use super::{ALLOW, REFUSE, nearest, weigh_workload};
use crate::event::{self, Place, unidentified};
use crate::flow::{self, Settled, Way, reversed};
use crate::judge::{self, Judgement};
use crate::lease;
use crate::map::{count, generation};
use crate::parse::Packet;

/// A packet that leaves one of a workload's sockets.
#[cgroup_skb(egress)]
pub fn claw_skb_out(ctx: SkBuffContext) -> i32 {
    judge(ctx.skb.skb, outward)
}

/// A packet that arrives at one of a workload's sockets.
#[cgroup_skb(ingress)]
pub fn claw_skb_in(ctx: SkBuffContext) -> i32 {
    judge(ctx.skb.skb, inward)
}

#[inline(always)]
fn judge(
    skb: *mut __sk_buff,
    way: impl FnOnce(*mut __sk_buff, Generation, &mut Packet) -> Result<(), Judgement>,
) -> i32 {
    let generation = generation();
    let mut packet = Packet::new(IFINDEX_LOCAL);
    match way(skb, generation, &mut packet) {
        Ok(()) => ALLOW,
        Err(judged) => {
            count(counter::LOCAL_DROPPED);
            let place = Place { hook: hook::CGROUP, generation: generation.number };
            event::refusal(&place, &packet.key, &judged, packet.bytes);
            REFUSE
        }
    }
}

#[inline(always)]
fn outward(skb: *mut __sk_buff, generation: Generation, packet: &mut Packet) -> Result<(), Judgement> {
    let (cgroup, bind) = identify(skb, generation, packet)?;
    let is_start = flow::is_start(packet);
    let record = flow::find(&packet.key);
    let mut judged = Judgement::none();
    let settled = confirm(record, generation, &bind, packet, is_start, &mut judged);
    if settled == Settled::Refused {
        return Err(judged);
    }
    leased(&judged)?;
    charge(skb, generation, &judged, packet, cgroup, settled == Settled::Anew)?;
    match record {
        Some(record) if settled == Settled::GoesOn => flow::touch(record, packet, Way::Out),
        _ => begin(generation, packet, record, &judged)?,
    }
    // SAFETY: the context is the program's own.
    let ifindex = unsafe { (*skb).ifindex };
    // L7 is reached by loopback. Bound to another interface, or without our routing rule, the packet would
    // be on its way to where it was dialled, unread.
    if judged.action == action::STEER && ifindex != IFINDEX_LOOPBACK {
        return Err(Judgement {
            action: action::DENY,
            reason: DropReason::InspectionRequired.code(),
            ..judged
        });
    }
    Ok(())
}

#[inline(always)]
fn inward(skb: *mut __sk_buff, generation: Generation, packet: &mut Packet) -> Result<(), Judgement> {
    let identified = identify(skb, generation, packet);
    // Records, and reports, are from the workload's point of view.
    packet.key = reversed(&packet.key);
    let (_, bind) = identified?;
    let Some(record) = flow::find(&packet.key) else {
        return Err(Judgement::deny(DropReason::FlowUnknown, bind.agent));
    };
    let mut judged = Judgement::none();
    if confirm(Some(record), generation, &bind, packet, false, &mut judged) == Settled::Refused {
        return Err(judged);
    }
    leased(&judged)?;
    flow::touch(record, packet, Way::Back);
    Ok(())
}

/// Nothing goes direct by tables that nobody vouches for: see [`lease`].
#[inline(always)]
fn leased(judged: &Judgement) -> Result<(), Judgement> {
    if judged.action == action::DIRECT && !lease::is_live() {
        return Err(Judgement::deny(DropReason::LeaseLapsed, judged.agent));
    }
    Ok(())
}

/// Whose socket it is. A workload that is closed, or an agent that is disabled, is cut off here: the
/// binding is read for each packet.
#[inline(always)]
fn identify(
    skb: *mut __sk_buff,
    generation: Generation,
    packet: &mut Packet,
) -> Result<(u64, Bind), Judgement> {
    let parsed = read(skb, packet);
    // SAFETY: the helper takes the program's own context and a level, and gives an id, or 0 below the level
    // of the socket's own cgroup.
    let nearest = nearest(generation, |level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) });
    let Some((cgroup, bind)) = nearest else { return Err(Judgement::deny(DropReason::Anonymous, 0)) };
    if bind.flags & bind_flag::DISABLED != 0 {
        return Err(Judgement::deny(DropReason::AgentDisabled, bind.agent));
    }
    if judge::is_quarantined(bind.agent) {
        return Err(Judgement::deny(DropReason::AgentQuarantined, bind.agent));
    }
    match parsed {
        Ok(()) => Ok((cgroup, bind)),
        Err(reason) => Err(Judgement { agent: bind.agent, ..unidentified(reason) }),
    }
}

/// The record of a new flow, in place of the one that had the tuple.
#[inline(always)]
fn begin(
    generation: Generation,
    packet: &Packet,
    former: Option<*mut Flow>,
    judged: &Judgement,
) -> Result<(), Judgement> {
    let at_ns = match former {
        Some(record) => flow::anew(record, packet, generation.number, judged, 0),
        None => flow::create(packet, generation.number, judged)?,
    };
    if judged.action == action::DIRECT {
        let place = Place { hook: hook::CGROUP, generation: generation.number };
        event::flow(&place, &packet.key, judged, packet.bytes, at_ns);
    }
    Ok(())
}

/// As for agents behind an interface: judged anew by another generation, for another workload, and for a SYN.
/// Without a record, whether a flow may begin.
#[inline(always)]
fn confirm(
    record: Option<*mut Flow>,
    generation: Generation,
    bind: &Bind,
    packet: &Packet,
    is_start: bool,
    judged: &mut Judgement,
) -> Settled {
    let is_syn = flow::is_syn(packet, is_start);
    if let Some(record) = record
        && !is_syn
        && let Some(current) = flow::current(record, generation)
        && current.agent == bind.agent
    {
        *judged = current;
        return Settled::GoesOn;
    }
    weigh_workload(generation.pack(), bind, &packet.key, record.is_some() && !is_syn, judged);
    if let Some(record) = record {
        return flow::settle(record, packet.key.protocol, generation, judged, is_start);
    }
    if judged.action == action::DENY {
        return Settled::Refused;
    }
    if !is_start {
        *judged = Judgement::deny(DropReason::FlowUnknown, bind.agent);
        return Settled::Refused;
    }
    // A socket may be bound to an address nobody has (`IP_FREEBIND`).
    if judge::services(&packet.key.source).is_none() {
        *judged = Judgement::deny(DropReason::SourceSpoofed, bind.agent);
        return Settled::Refused;
    }
    Settled::Anew
}
