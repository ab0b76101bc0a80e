//! The early drop. It drops what the stateless tables deny, and lets go on to TC what they may
//! permit; it never creates a flow and never permits anything by itself.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use clawgress_ebpf_common::{Generation, action, counter, hook};

use crate::event::{self, Place, unidentified};
use crate::flow;
use crate::frame::{Raw, xdp_length};
use crate::image::live;
use crate::judge::{self, Judgement, Toward};
use crate::learned;
use crate::limit;
use crate::map::{count, written};
use crate::parse::{Kind, Packet, parse_laid_out};
use crate::recent::{self, Said};
use crate::reject;

/// XDP on an agents' interface.
#[xdp(frags)]
pub fn claw_xdp(ctx: XdpContext) -> u32 {
    let (Some(generation), Some(now)) = (written(), recent::now()) else { return drop() };
    let frame = Raw::xdp(&ctx);
    match recent::said(&frame, frame.ifindex(), generation, now) {
        Said::Nothing => {}
        Said::Pass => return pass(),
        Said::Drop => return drop(),
    }
    let frame = frame.anew();
    let mut packet = Packet::new(frame.ifindex());
    // Before it is judged.
    let Some(now) = recent::now() else { return drop() };
    packet.epoch = now.epoch;
    packet.bytes = xdp_length(&ctx);
    match admit(&frame, generation, &mut packet) {
        Ok(lasts) => {
            if lasts {
                recent::passed(frame.anew(), generation, &packet);
            }
            pass()
        }
        Err(judged) => {
            let judged = judged.concealed(generation);
            let at_ns = event::now();
            // TC has it answered: only there a packet can be marked.
            if reject::is_due(reject::EARLY, &judged, at_ns) {
                return pass();
            }
            let place = Place { hook: hook::XDP, generation: generation.number };
            if event::refusal_laid_out(&place, &packet.key, &judged, packet.bytes, at_ns) {
                recent::dropped(frame.anew(), generation, &packet, judged.reason);
            }
            drop()
        }
    }
}

#[inline(always)]
fn pass() -> u32 {
    count(counter::XDP_PASSED);
    xdp_action::XDP_PASS
}

#[inline(always)]
fn drop() -> u32 {
    count(counter::XDP_DROPPED);
    xdp_action::XDP_DROP
}

/// Whether what lets it go on lasts: see [`recent`].
#[inline(always)]
fn admit(frame: &Raw, generation: Generation, packet: &mut Packet) -> Result<bool, Judgement> {
    let kind = match parse_laid_out(frame, generation, packet) {
        Ok(kind) => kind,
        Err(reason) => return Err(unidentified(reason)),
    };
    if kind == Kind::Neighbour {
        return judge::neighbour(generation, packet).map(|_| false);
    }
    if kind == Kind::Error {
        return judge::error(generation, packet).map(|_| false);
    }
    judge::comes_from_outside(packet)?;
    let image = live::<true>(generation);
    let (who, toward) = judge::packet(generation, &image, packet)?;
    if let Toward::Gateway { is_bound } = toward {
        if !is_bound && flow::is_start(packet) {
            return limit::unbound(&packet.key.source, packet.key.ifindex, false).map(|()| false);
        }
        return Ok(is_bound);
    }
    // It may be of a flow that lives, which TC knows: what has expired is refused there.
    let judged = learned::verdict(generation, &image, who, &packet.key, true);
    if judged.action == action::DENY {
        return Err(judged);
    }
    limit::look(generation, &judged, packet.bytes)?;
    Ok(judged.limits == 0)
}
