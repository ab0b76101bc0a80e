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
use crate::map::{count, generation};
use crate::parse::{Kind, Packet, parse_laid_out};
use crate::reject;

/// XDP on an agents' interface.
#[xdp(frags)]
pub fn claw_xdp(ctx: XdpContext) -> u32 {
    let generation = generation();
    let mut packet = Packet::new(ctx.ingress_ifindex() as u32);
    match admit(&ctx, generation, &mut packet) {
        Ok(()) => {
            count(counter::XDP_PASSED);
            xdp_action::XDP_PASS
        }
        Err(judged) => {
            let at_ns = event::now();
            // TC has it answered: only there a packet can be marked.
            if reject::is_due(reject::EARLY, &judged, at_ns) {
                count(counter::XDP_PASSED);
                return xdp_action::XDP_PASS;
            }
            count(counter::XDP_DROPPED);
            let place = Place { hook: hook::XDP, generation: generation.number };
            event::refusal_laid_out(&place, &packet.key, &judged, packet.bytes, at_ns);
            xdp_action::XDP_DROP
        }
    }
}

#[inline(always)]
fn admit(ctx: &XdpContext, generation: Generation, packet: &mut Packet) -> Result<(), Judgement> {
    packet.bytes = xdp_length(ctx);
    let kind = match parse_laid_out(&Raw::xdp(ctx), generation, packet) {
        Ok(kind) => kind,
        Err(reason) => return Err(unidentified(reason)),
    };
    if kind == Kind::Neighbour {
        return judge::neighbour(generation, packet);
    }
    if kind == Kind::Error {
        return judge::error(generation, packet).map(|_| ());
    }
    let image = live::<true>(generation);
    let (who, toward) = judge::packet(generation, &image, packet)?;
    if let Toward::Gateway { is_bound } = toward {
        if !is_bound && flow::is_start(packet) {
            return limit::unbound(&packet.key.source, packet.key.ifindex, false);
        }
        return Ok(());
    }
    let judged = learned::verdict(generation, &image, who, &packet.key, false);
    if judged.action == action::DENY {
        return Err(judged);
    }
    limit::look(generation, &judged, packet.bytes)
}
