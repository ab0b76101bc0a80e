//! What policy says of a packet, with what was learned since the tables were written: addresses that DNS
//! answers gave for names permitted `direct`, and that DNS itself is read by the gateway.
//!
//! Must never overrule a forbid or an error, and never permit ports that the addresses of many names share.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use clawgress_ebpf_common::{DropReason, FlowKey, Generation, LearnedKey, NEVER_DIRECT, action, protocol};

use crate::flow::share_index;
use crate::image::{Image, image};
use crate::judge::{self, Judgement, Who};
use crate::map::{LEARNED, LEARNED_BY, is_dns};

/// Ports where addresses are shared by many names (HTTP and HTTPS), network byte order.
const HTTP_BE: u16 = 80u16.to_be();
const HTTPS_BE: u16 = 443u16.to_be();

/// The verdict. A flow that lives goes on after its address has expired.
#[inline(always)]
pub fn verdict<const LAID_OUT: bool>(
    generation: Generation,
    image: &Option<Image<LAID_OUT>>,
    who: Who,
    key: &FlowKey,
    is_live: bool,
) -> Judgement {
    let mut judged = judge::verdict(generation, image, who, key);
    let may_be_learned = is_undecided(&judged);
    judged.limits &= !NEVER_DIRECT;
    if may_be_learned {
        let learned = direct(generation, who.agent, key, is_live, judged);
        if learned.action == action::DIRECT {
            return learned;
        }
    }
    if is_question(&judged, key) {
        return Judgement { action: action::STEER, reason: 0, ..judged };
    }
    judged
}

/// Whether it is a datagram to DNS that is permitted, but that nobody could read: the gateway's DNS can.
#[inline(always)]
pub fn is_question(judged: &Judgement, key: &FlowKey) -> bool {
    let is_unread = judged.action == action::DENY && judged.reason == DropReason::InspectionRequired.code();
    is_unread && key.protocol == protocol::UDP && is_dns(key)
}

/// `judged`, made direct where the address was learned: for what the tables neither forbid nor let go direct.
#[inline(always)]
pub fn direct(
    generation: Generation,
    agent: u32,
    key: &FlowKey,
    is_live: bool,
    judged: Judgement,
) -> Judgement {
    match permit(generation, agent, key, is_live) {
        Some(policies) => Judgement { action: action::DIRECT, reason: 0, policies, ..judged },
        None => judged,
    }
}

/// Whether the tables leave it to what was learned: no permit, or one that wants it read, and no forbid of `direct`.
#[inline(always)]
pub fn is_undecided(judged: &Judgement) -> bool {
    let denied = |reason: DropReason| judged.action == action::DENY && judged.reason == reason.code();
    let is_left = judged.action == action::STEER
        || denied(DropReason::InspectionRequired)
        || denied(DropReason::PolicyDenied);
    is_left && judged.limits & NEVER_DIRECT == 0
}

/// As [`verdict`], into `judged`.
// VERIFIER: a function of its own, so that the programs share its instructions; most packets do without.
#[inline(never)]
pub fn judge(generation: u64, who: u64, key: &FlowKey, is_live: bool, judged: &mut Judgement) {
    let generation = Generation::unpack(generation);
    *judged = verdict(generation, &image(generation), Who::unpack(who), key, is_live);
}

/// The policies by which an address was learned, if it was.
#[inline(always)]
fn permit(generation: Generation, agent: u32, key: &FlowKey, is_live: bool) -> Option<u32> {
    let port_be = key.destination_port_be;
    let is_any = LEARNED_BY.get(share_index(agent)).copied().unwrap_or(0) != 0;
    if !is_any || port_be == HTTP_BE || port_be == HTTPS_BE || key.protocol == protocol::ICMP {
        return None;
    }
    let wanted = LearnedKey { agent, port_be, protocol: key.protocol, pad: 0, address: key.destination };
    // SAFETY: entries are replaced whole, and what was replaced stays readable until the program ends.
    let entry = unsafe { LEARNED.get(&wanted) }?;
    // By the fine clock: user space takes what has expired away by it.
    // SAFETY: the helper takes nothing and only reads a clock.
    let is_fresh = || unsafe { bpf_ktime_get_ns() } < entry.expires_ns;
    let is_valid = entry.generation == generation.number && (is_live || is_fresh());
    if is_valid { Some(entry.policies) } else { None }
}
