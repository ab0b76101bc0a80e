//! Who a source is, and what it may reach: the part of a verdict that needs no flow. XDP, TC and the
//! cgroup hooks share it, so that they cannot disagree.

use clawgress_ebpf_common::{
    Address, Bind, CLASS_UNAUTHENTICATED, DropReason, FlowKey, Generation, SelfAddress, action, bind_flag,
    bound, fail_open, protocol, quarantine_place, self_filter_bit,
};

use crate::image::{Image, image};
use crate::map::{QUARANTINE, SELF, SELF_FILTER, fails_open};
use crate::parse::{Packet, mac};

/// A verdict with all that a flow record or a report needs.
#[derive(Clone, Copy)]
pub struct Judgement {
    /// `action` code.
    pub action: u16,
    /// `DropReason` code if it is deny.
    pub reason: u16,
    /// Index of the determining policy ids.
    pub policies: u32,
    /// The registry's index of the agent.
    pub agent: u32,
    /// Number of the limit set that applies; beside it [`NEVER_DIRECT`](clawgress_ebpf_common::NEVER_DIRECT), until
    /// what was learned has been asked.
    pub limits: u32,
}

impl Judgement {
    /// Denied for `reason`.
    #[inline(always)]
    pub fn deny(reason: DropReason, agent: u32) -> Self {
        Judgement { action: action::DENY, reason: reason.code(), policies: 0, agent, limits: 0 }
    }

    /// What was permitted, and is denied after all.
    #[inline(always)]
    pub fn refused(self, reason: DropReason) -> Self {
        Judgement { action: action::DENY, reason: reason.code(), ..self }
    }

    /// The same, of which the verifier knows nothing.
    // VERIFIER: else it would walk all that follows once for each reason.
    #[inline(always)]
    pub fn concealed(self, generation: Generation) -> Self {
        let zero = unknown_zero(generation);
        Judgement {
            action: self.action | zero as u16,
            reason: self.reason | zero as u16,
            policies: self.policies | zero as u32,
            agent: self.agent | zero as u32,
            limits: self.limits | zero as u32,
        }
    }

    /// Not judged yet: denied for nothing.
    #[inline(always)]
    pub fn none() -> Self {
        Judgement { action: action::DENY, reason: 0, policies: 0, agent: 0, limits: 0 }
    }
}

/// Zero, of which the verifier does not know that it is: it can't tell that no generation has a number that large.
#[inline(always)]
pub fn unknown_zero(generation: Generation) -> u64 {
    0u64.wrapping_sub(generation.number >> 62)
}

/// Who a packet is from, as far as policy asks.
#[derive(Clone, Copy)]
pub struct Who {
    /// The registry's index of the agent; 0 for nobody.
    pub agent: u32,
    /// Agent class.
    pub class: u32,
}

impl Who {
    /// Whom a binding binds.
    #[inline(always)]
    pub fn of(bind: &Bind) -> Self {
        Who { agent: bind.agent, class: bind.class }
    }

    /// As one number, in whose top bits there is nothing: no agent has an index that large.
    #[inline(always)]
    pub fn pack(self) -> u64 {
        (self.agent as u64) << 32 | self.class as u64
    }

    /// From [`Who::pack`].
    #[inline(always)]
    pub fn unpack(packed: u64) -> Self {
        Who { agent: (packed >> 32) as u32 & (bound::AGENT_INDICES_MAX - 1), class: packed as u32 }
    }
}

/// The binding of `address`, if there is one.
#[inline(always)]
pub fn binding<const LAID_OUT: bool>(
    image: &Option<Image<LAID_OUT>>,
    ifindex: u32,
    address: &Address,
) -> Option<Bind> {
    match image {
        Some(image) => image.bind(ifindex, address),
        None => None,
    }
}

/// The class and agent of a source. Without a binding it is unauthenticated.
#[inline(always)]
pub fn source<const LAID_OUT: bool>(
    image: &Option<Image<LAID_OUT>>,
    packet: &Packet,
) -> Result<Bind, Judgement> {
    identified(image, packet, &packet.key.source)
}

#[inline(always)]
fn identified<const LAID_OUT: bool>(
    image: &Option<Image<LAID_OUT>>,
    packet: &Packet,
    address: &Address,
) -> Result<Bind, Judgement> {
    let Some(bind) = binding(image, packet.key.ifindex, address) else {
        return Ok(Bind { agent: 0, class: CLASS_UNAUTHENTICATED, mac: [0; 6], flags: 0 });
    };
    if bind.flags & bind_flag::MAC != 0 && mac(bind.mac) != packet.mac {
        // Not the agent: whoever it is, the record must not carry the agent's name.
        return Err(Judgement::deny(DropReason::SourceSpoofed, 0));
    }
    if bind.flags & bind_flag::DISABLED != 0 {
        return Err(disabled(&bind));
    }
    if is_quarantined(bind.agent) {
        return Err(Judgement::deny(DropReason::AgentQuarantined, bind.agent));
    }
    Ok(bind)
}

/// The judgement of a source that may do nothing: its agent is disabled, or it has none, on an interface that
/// takes nothing from strangers.
#[inline(always)]
pub fn disabled(bind: &Bind) -> Judgement {
    let reason = if bind.agent == 0 { DropReason::Anonymous } else { DropReason::AgentDisabled };
    Judgement::deny(reason, bind.agent)
}

/// Whether nothing of this agent may pass, whatever its tables and flows say. An index nobody can have
/// is quarantined.
#[inline(always)]
pub fn is_quarantined(agent: u32) -> bool {
    let (word, bit) = quarantine_place(agent);
    match QUARANTINE.get_ptr(word) {
        // SAFETY: array elements live as long as the map; volatile makes it one 8-byte read.
        Some(bits) => unsafe { bits.read_volatile() & bit != 0 },
        None => true,
    }
}

/// Whether a neighbour message may speak for the address it claims: not for the gateway's, and not for one that is
/// bound to another MAC. Gives the agent that has the address, or 0.
// Who is nobody may claim one wherever it is: routers on the way to agents are bound to nobody.
#[inline(always)]
pub fn neighbour(generation: Generation, packet: &Packet) -> Result<u32, Judgement> {
    match claimant(generation.pack(), packet) {
        SPOOFED => Err(Judgement::deny(DropReason::SourceSpoofed, 0)),
        agent => Ok(agent),
    }
}

/// What [`claimant`] says of who is none: no agent has an index that large.
const SPOOFED: u32 = u32::MAX;

// VERIFIER: a function of its own, so that both hooks share its instructions; most packets do without.
#[inline(never)]
fn claimant(generation: u64, packet: &Packet) -> u32 {
    if services(&packet.key.source).is_some() {
        return SPOOFED;
    }
    match binding(&image(Generation::unpack(generation)), packet.key.ifindex, &packet.key.source) {
        Some(bind) if bind.flags & bind_flag::MAC != 0 && mac(bind.mac) != packet.mac => SPOOFED,
        Some(bind) => bind.agent,
        None => 0,
    }
}

/// The gateway's services at `address`, if that is its own.
#[inline(always)]
pub fn services(address: &Address) -> Option<SelfAddress> {
    // Not byte by byte.
    // SAFETY: 16 plain bytes either way.
    let [_, low] = unsafe { core::mem::transmute::<Address, [u64; 2]>(*address) };
    let (word, bit) = self_filter_bit(low);
    // SAFETY: the element has `SELF_FILTER_WORDS` words, and `word` is less.
    if unsafe { (*SELF_FILTER.get_ptr(0)?).as_ptr().add(word).read_volatile() } & bit == 0 {
        return None;
    }
    // SAFETY: entries are three ports and zeroes, written whole; a reader at the moment of an update
    // sees the old or the new ports, and either is the gateway's choice.
    unsafe { SELF.get(address) }.copied()
}

/// Whether the packet goes to a service there.
#[inline(always)]
pub fn is_service(services: &SelfAddress, key: &FlowKey) -> bool {
    let port = key.destination_port_be;
    if port == 0 {
        return false;
    }
    let is_proxy = key.protocol == protocol::TCP
        && (port == services.proxy_port_be || port == services.proxy_tls_port_be);
    let is_dns =
        (key.protocol == protocol::TCP || key.protocol == protocol::UDP) && port == services.dns_port_be;
    is_proxy || is_dns
}

/// Whether a known source may go anywhere because there is no policy: where its interface is set to it.
// INVARIANT: an anonymous source never may.
#[inline(always)]
pub fn goes_without_policy(generation: Generation, who: Who, ifindex: u32) -> bool {
    generation.number == 0 && who.agent != 0 && fails_open(ifindex, fail_open::REVISION)
}

/// What the image says for the agent's class and the destination in `key`. Stateless.
#[inline(always)]
pub fn verdict<const LAID_OUT: bool>(
    generation: Generation,
    image: &Option<Image<LAID_OUT>>,
    who: Who,
    key: &FlowKey,
) -> Judgement {
    if goes_without_policy(generation, who, key.ifindex) {
        // What only a policy that names it opens stays shut.
        if protocol::is_named_only(key.protocol) {
            return Judgement::deny(DropReason::ProtocolUnsupported, who.agent);
        }
        return Judgement { action: action::DIRECT, agent: who.agent, ..Judgement::none() };
    }
    let Some(image) = image else { return Judgement::deny(DropReason::PolicyMissing, who.agent) };
    let verdict = image.verdict(who.class, key);
    let judged = Judgement {
        action: verdict.action,
        reason: verdict.reason,
        policies: verdict.policies,
        agent: who.agent,
        limits: verdict.limits,
    };
    match judged.action {
        action::STEER if key.protocol == protocol::TCP => judged,
        action::DIRECT => judged,
        // Deny, and codes this program does not know.
        action::DENY if judged.reason != 0 => judged,
        _ => Judgement { action: action::DENY, reason: DropReason::PolicyDenied.code(), ..judged },
    }
}

/// Where a packet goes.
#[derive(Clone, Copy)]
pub enum Toward {
    /// On, through this machine.
    Outside,
    /// To a service of the gateway; `is_bound`: from a source that has a binding.
    Gateway {
        /// See above.
        is_bound: bool,
    },
}

/// Refuses a packet from an agents' interface whose source is the gateway's own address, whatever a prefix around that
/// is bound to: layer 7 takes connections from there for those of local commands.
// VERIFIER: before the image is looked up, or the early drop would store a register that was never written.
#[inline(always)]
pub fn comes_from_outside(packet: &Packet) -> Result<(), Judgement> {
    match services(&packet.key.source) {
        Some(_) => Err(Judgement::deny(DropReason::SourceSpoofed, 0)),
        None => Ok(()),
    }
}

/// The stateless judgement of a packet from an agents' interface.
#[inline(always)]
pub fn packet<const LAID_OUT: bool>(
    generation: Generation,
    image: &Option<Image<LAID_OUT>>,
    packet: &Packet,
) -> Result<(Who, Toward), Judgement> {
    if packet.is_reply {
        return Err(Judgement::deny(DropReason::IcmpUnsupported, 0));
    }
    let bind = source(image, packet)?;
    let who = Who::of(&bind);
    if let Some(services) = services(&packet.key.destination) {
        return if is_service(&services, &packet.key) {
            let is_bound = bind.agent != 0 || bind.flags & bind_flag::SHARED != 0;
            Ok((who, Toward::Gateway { is_bound }))
        } else {
            Err(Judgement::deny(DropReason::GatewayAddress, bind.agent))
        };
    }
    if goes_without_policy(generation, who, packet.key.ifindex) {
        return Ok((who, Toward::Outside));
    }
    if generation.number == 0 {
        return Err(Judgement::deny(DropReason::PolicyMissing, bind.agent));
    }
    if bind.class == CLASS_UNAUTHENTICATED {
        return Err(Judgement::deny(DropReason::Anonymous, bind.agent));
    }
    Ok((who, Toward::Outside))
}

/// The part of an ICMP error's judgement that needs no flow: what it quotes went to an agent, and it is
/// that host that answers, or a router of the same agent.
#[inline(always)]
pub fn error(generation: Generation, packet: &Packet) -> Result<Who, Judgement> {
    let said = quoted(generation.pack(), packet);
    let who = Who::unpack(said);
    if said & REFUSED == 0 {
        return Ok(who);
    }
    Err(Judgement { reason: who.class as u16, agent: who.agent, ..Judgement::none() })
}

/// In what [`quoted`] says: refused, for the reason whose code is in the class's place.
const REFUSED: u64 = 1 << 63;

// VERIFIER: as above; a packed [`Who`] needs no place on the stack.
#[inline(never)]
fn quoted(generation: u64, packet: &Packet) -> u64 {
    let refused = |reason: u16, agent| REFUSED | Who { agent, class: reason as u32 }.pack();
    let generation = Generation::unpack(generation);
    if generation.number == 0 && !fails_open(packet.key.ifindex, fail_open::REVISION) {
        return refused(DropReason::PolicyMissing.code(), 0);
    }
    let image = image(generation);
    let bind = match identified(&image, packet, &packet.key.destination) {
        Ok(bind) if bind.agent == 0 => return refused(DropReason::Anonymous.code(), 0),
        Ok(bind) => bind,
        Err(judged) => return refused(judged.reason, judged.agent),
    };
    let is_own = packet.outer == packet.key.destination
        || binding(&image, packet.key.ifindex, &packet.outer).is_some_and(|b| b.agent == bind.agent);
    if is_own { Who::of(&bind).pack() } else { refused(DropReason::IcmpUnsupported.code(), bind.agent) }
}
