//! ARP and neighbour discovery: who claims which address. Whether the claim is the sender's to make is
//! `judge::neighbour`'s to say.

use clawgress_ebpf_common::DropReason;

use crate::frame::{Frame, copy, read};
use crate::parse::{Kind, L3, L4_V6, Mac, Packet, bytes, is_martian_v4, is_martian_v6, mac, mapped};

/// Message types (RFC 4861 4).
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Bytes before the options of a router solicitation, and of a neighbour message.
const SOLICITATION_BYTES: u32 = 8;
const NEIGHBOUR_BYTES: u32 = 24;
/// Options looked at: link-layer address, nonce (RFC 7527), and two that nobody here knows.
const OPTIONS_MAX: u32 = 4;
/// Options that carry the link-layer address of the sender, of the target.
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Arp {
    hardware_be: u16,
    protocol_be: u16,
    lengths_be: u16,
    operation_be: u16,
    sender_mac: Mac,
    sender: [u8; 4],
    target_mac: Mac,
    target: [u8; 4],
}

/// RFC 826, for IPv4 over Ethernet only; the sender's MAC must be the frame's. Announcements (RFC 5227 3)
/// are claims as any other, probes claim nothing.
#[inline(always)]
pub fn arp(frame: &impl Frame, packet: &mut Packet, shift: u32) -> Result<Kind, DropReason> {
    let Some(arp) = read::<Arp>(frame, L3, shift) else { return Err(DropReason::NeighbourMalformed) };
    let operation = u16::from_be(arp.operation_be);
    let is_known = arp.hardware_be == 1u16.to_be()
        && arp.protocol_be == 0x0800u16.to_be()
        && arp.lengths_be == 0x0604u16.to_be()
        && (operation == 1 || operation == 2);
    if !is_known {
        return Err(DropReason::NeighbourMalformed);
    }
    packet.key.source = mapped(arp.sender);
    packet.key.destination = mapped(arp.target);
    if arp.sender_mac != packet.mac {
        return Err(DropReason::SourceSpoofed);
    }
    let is_probe = arp.sender == [0; 4] && operation == 1;
    if is_martian_v4(arp.sender) && !is_probe {
        return Err(DropReason::SourceMartian);
    }
    Ok(Kind::Neighbour)
}

/// Whether an ICMPv6 type is of neighbour discovery.
#[inline(always)]
pub fn is_discovery(kind: u8) -> bool {
    kind >= ROUTER_SOLICITATION && kind <= REDIRECT
}

/// Router solicitation, neighbour solicitation and advertisement (RFC 4861 4): an agent has no business
/// advertising routes or redirecting. `length` is the bytes of the message.
#[inline(always)]
pub fn discovery(
    frame: &impl Frame,
    packet: &mut Packet,
    kind: u8,
    shift: u32,
    length: u32,
    is_unspecified: bool,
) -> Result<Kind, DropReason> {
    if kind == ROUTER_ADVERTISEMENT || kind == REDIRECT {
        return Err(DropReason::RouterMessage);
    }
    let fixed = if kind == ROUTER_SOLICITATION { SOLICITATION_BYTES } else { NEIGHBOUR_BYTES };
    if length < fixed {
        return Err(DropReason::NeighbourMalformed);
    }
    let Some(source) = read::<[u32; 4]>(frame, L3 + 8, shift) else {
        return Err(DropReason::NeighbourMalformed);
    };
    // Who asks whether an address is free has none yet (RFC 4862 5.4.2); who claims one has.
    if is_martian_v6(source) && (!is_unspecified || kind == NEIGHBOUR_ADVERTISEMENT) {
        return Err(DropReason::SourceMartian);
    }
    options(frame, packet, shift + fixed, shift + length, is_unspecified)?;
    if kind != ROUTER_SOLICITATION {
        let Some(target) = read::<[u32; 4]>(frame, L4_V6 + 8, shift) else {
            return Err(DropReason::NeighbourMalformed);
        };
        if is_martian_v6(target) {
            return Err(DropReason::NeighbourMalformed);
        }
        // An advertisement claims its target.
        if kind == NEIGHBOUR_ADVERTISEMENT {
            packet.key.source = bytes(target);
        }
    }
    Ok(Kind::Neighbour)
}

/// Link-layer address options must name the frame's own source, and have no place in what comes from no
/// address; others are nobody's here (RFC 4861 4.6), and are passed over.
#[inline(always)]
fn options(
    frame: &impl Frame,
    packet: &Packet,
    from: u32,
    to: u32,
    is_unspecified: bool,
) -> Result<(), DropReason> {
    let mut offset = from;
    for _ in 0..OPTIONS_MAX {
        if offset >= to {
            break;
        }
        let Some(option) = copy::<[u8; 8]>(frame, L4_V6 as u32 + offset) else {
            return Err(DropReason::NeighbourMalformed);
        };
        let [code, units, a, b, c, d, e, f] = option;
        if code == OPTION_SOURCE || code == OPTION_TARGET {
            if units != 1 || is_unspecified {
                return Err(DropReason::NeighbourMalformed);
            }
            if mac([a, b, c, d, e, f]) != packet.mac {
                return Err(DropReason::SourceSpoofed);
            }
        }
        if units == 0 {
            return Err(DropReason::NeighbourMalformed);
        }
        offset += units as u32 * 8;
    }
    if offset == to { Ok(()) } else { Err(DropReason::NeighbourMalformed) }
}
