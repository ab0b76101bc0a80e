//! Ethernet, VLAN tags, ARP, IPv4, IPv6 and the transport headers, as far as a verdict needs them. What
//! is not understood exactly is refused with its reason, never skipped.

use core::ffi::c_void;

use clawgress_ebpf_common::{DropReason, Generation};

use crate::frame::{Frame, Raw, at, copy, read};
use crate::neighbour::{arp, discovery, is_discovery};

mod packet;
mod transport;

pub use self::packet::{Kind, Mac, Packet, bytes, is_v4, mac, mapped};
use self::packet::{conceal, is_mapped};
use self::transport::{Layer4, Transport, transport};
pub use self::transport::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// EtherType values (IEEE 802), network byte order.
pub const ETHERTYPE_IPV4_BE: u16 = 0x0800u16.to_be();
pub const ETHERTYPE_IPV6_BE: u16 = 0x86DDu16.to_be();
const ETHERTYPE_ARP_BE: u16 = 0x0806u16.to_be();
const ETHERTYPE_VLAN_BE: u16 = 0x8100u16.to_be();
const ETHERTYPE_QINQ_BE: u16 = 0x88A8u16.to_be();

/// Most VLAN tags of a frame, those included that the driver took off: 802.1Q in 802.1ad.
const TAGS_MAX: u32 = 2;
/// Bytes of a tag, and the bits of its VLAN id (IEEE 802.1Q 9.6). Id 0 is a priority tag: the frame
/// belongs to the port, as one without a tag.
const TAG_BYTES: u32 = 4;
const VID_MASK: u16 = 0x0FFF;

/// Bytes of the Ethernet header: where layer 3 begins.
pub const L3: usize = 14;
/// Where the header behind IPv4's begins, without options.
pub const L4_V4: usize = L3 + 20;
/// Where the header behind IPv6's begins.
pub const L4_V6: usize = L3 + 40;
/// Bytes that make everything up to the fields read here contiguous: Ethernet, IPv6, TCP.
pub const HEADERS_BYTES: u32 = 14 + 40 + 20;

/// IP protocol numbers (IANA).
const NEXT_HOP_BY_HOP: u8 = 0;
const NEXT_ICMP: u8 = 1;
const NEXT_IGMP: u8 = 2;
const NEXT_TCP: u8 = 6;
const NEXT_UDP: u8 = 17;
const NEXT_ROUTING: u8 = 43;
const NEXT_FRAGMENT: u8 = 44;
const NEXT_ICMPV6: u8 = 58;
const NEXT_DESTINATION: u8 = 60;

/// Most IPv6 extension headers, and most bytes of each: one hop-by-hop and one destination options
/// header of ordinary size. Real agents send none.
const EXTENSIONS_MAX: usize = 2;
const EXTENSION_BYTES_MAX: u32 = 64;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Ethernet {
    destination: Mac,
    source: Mac,
    ethertype_be: u16,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Ipv4 {
    version_length: u8,
    service: u8,
    length_be: u16,
    id_be: u16,
    fragment_be: u16,
    ttl: u8,
    protocol: u8,
    checksum_be: u16,
    source: u32,
    destination: u32,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Ipv6 {
    version: u8,
    class_label: [u8; 3],
    length_be: u16,
    next: u8,
    hops: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// Reads a frame, whose length is in `packet.bytes`, into `packet`.
#[inline(always)]
pub fn parse(frame: Raw, generation: Generation, packet: &mut Packet) -> Result<Kind, u16> {
    let (ctx, start, end, is_xdp) = frame.parts();
    understood(frame_into(ctx, start, end, is_xdp, packet), generation, packet)
}

/// As [`parse`], without calls: see [`Image`](crate::image::Image).
#[inline(always)]
pub fn parse_laid_out(frame: &Raw, generation: Generation, packet: &mut Packet) -> Result<Kind, u16> {
    understood(code(ethernet(frame, packet)), generation, packet)
}

#[inline(always)]
fn understood(code: u32, generation: Generation, packet: &mut Packet) -> Result<Kind, u16> {
    // No generation has a number that large.
    let zero = 0u64.wrapping_sub(generation.number >> 62);
    let code = code | zero as u32;
    conceal(packet, zero);
    if code & REFUSED != 0 {
        return Err(code as u16);
    }
    if code == Kind::Neighbour as u32 {
        Ok(Kind::Neighbour)
    } else if code == Kind::Flow as u32 {
        Ok(Kind::Flow)
    } else {
        Ok(Kind::Error)
    }
}

/// Set in what [`frame_into`] returns for a refusal.
const REFUSED: u32 = 1 << 16;

/// A `Kind` code, or a reason's code above [`REFUSED`].
// VERIFIER: a function of its own, so that all programs share its instructions; such a function returns a
// number, so the result is packed into one.
#[inline(never)]
fn frame_into(ctx: *mut c_void, start: usize, end: usize, is_xdp: bool, packet: &mut Packet) -> u32 {
    code(ethernet(&Raw::from_parts(ctx, start, end, is_xdp), packet))
}

#[inline(always)]
fn code(read: Result<Kind, DropReason>) -> u32 {
    match read {
        Ok(kind) => kind as u32,
        Err(reason) => REFUSED | reason.code() as u32,
    }
}

#[inline(always)]
fn ethernet(frame: &impl Frame, packet: &mut Packet) -> Result<Kind, DropReason> {
    let Some(ethernet) = at::<Ethernet>(frame, 0) else { return Err(DropReason::Malformed) };
    packet.mac = ethernet.source;
    let (ethertype_be, shift) = tags(frame, ethernet.ethertype_be, packet.tags as u32)?;
    packet.bytes = packet.bytes.wrapping_sub(L3 as u32 + shift);
    if is_group(packet.mac) {
        return Err(DropReason::SourceMacGroup);
    }
    let layer = match ethertype_be {
        ETHERTYPE_IPV4_BE => ipv4(frame, packet, shift)?,
        ETHERTYPE_IPV6_BE => match ipv6(frame, packet, shift)? {
            Some(layer) => layer,
            None => return Ok(Kind::Neighbour),
        },
        ETHERTYPE_ARP_BE => return arp(frame, packet, shift),
        _ => return Err(DropReason::EthertypeUnsupported),
    };
    transport(frame, packet, &layer)
}

/// Whether no single host has it: a group address (IEEE 802 8.2), or zero.
#[inline(always)]
fn is_group(mac: Mac) -> bool {
    let [a, b, c] = mac;
    a & 0x01u16.to_le() != 0 || (a == 0 && b == 0 && c == 0)
}

#[inline(always)]
fn is_tag(ethertype_be: u16) -> bool {
    ethertype_be == ETHERTYPE_VLAN_BE || ethertype_be == ETHERTYPE_QINQ_BE
}

/// Whether a tag names a VLAN. `tci` is in host byte order.
#[inline(always)]
pub fn names_vlan(tci: u16) -> bool {
    tci & VID_MASK != 0
}

/// The EtherType behind the tags that are in the frame, and their bytes.
#[inline(always)]
fn tags(frame: &impl Frame, ethertype_be: u16, taken: u32) -> Result<(u16, u32), DropReason> {
    if !is_tag(ethertype_be) {
        return Ok((ethertype_be, 0));
    }
    for n in 0..TAGS_MAX {
        if n + taken >= TAGS_MAX {
            break;
        }
        let Some([tci_be, next_be]) = copy::<[u16; 2]>(frame, L3 as u32 + n * TAG_BYTES) else {
            return Err(DropReason::Malformed);
        };
        if names_vlan(u16::from_be(tci_be)) {
            break;
        }
        if !is_tag(next_be) {
            return Ok((next_be, (n + 1) * TAG_BYTES));
        }
    }
    Err(DropReason::VlanUnsupported)
}

#[inline(always)]
fn ipv4(frame: &impl Frame, packet: &mut Packet, shift: u32) -> Result<Layer4, DropReason> {
    let Some(ip) = read::<Ipv4>(frame, L3, shift) else { return Err(DropReason::Malformed) };
    packet.key.source = mapped(ip.source.to_ne_bytes());
    packet.key.destination = mapped(ip.destination.to_ne_bytes());
    if ip.version_length < 0x45 || ip.version_length > 0x4F {
        return Err(DropReason::Malformed);
    }
    // Reports carry the router alert option (RFC 3376 4), and are news of nothing.
    if ip.protocol == NEXT_IGMP {
        return Err(DropReason::MulticastListener);
    }
    if ip.version_length != 0x45 {
        return Err(DropReason::Ipv4Options);
    }
    // More-fragments or an offset (RFC 791 3.1); the reserved bit is not ours to judge, but no sane
    // stack sets it.
    let fragment = u16::from_be(ip.fragment_be);
    if fragment & 0x3FFF != 0 {
        return Err(DropReason::Fragment);
    }
    let length = u16::from_be(ip.length_be) as u32;
    if fragment & 0x8000 != 0 || length < 20 || !is_there(frame, packet, shift, length) {
        return Err(DropReason::Malformed);
    }
    if is_martian_v4(ip.source.to_ne_bytes()) {
        return Err(DropReason::SourceMartian);
    }
    if ip.source == ip.destination {
        return Err(DropReason::Land);
    }
    packet.bytes = length;
    // ICMPv6 in IPv4 is nothing; give it a number that no protocol branch takes.
    let next = if ip.protocol == NEXT_ICMPV6 { u8::MAX } else { ip.protocol };
    Ok(Layer4 { shift, length: length - 20, next })
}

/// Whether the frame has all `length` bytes from layer 3 on. How many are not in place is asked only if there are
/// some: that is a call.
#[inline(always)]
fn is_there(frame: &impl Frame, packet: &Packet, shift: u32, length: u32) -> bool {
    length <= packet.bytes || length.wrapping_add(L3 as u32 + shift) <= frame.whole()
}

/// "This network", loopback, multicast and limited broadcast (RFC 6890, RFC 1122 3.2.1.3).
#[inline(always)]
pub fn is_martian_v4(source: [u8; 4]) -> bool {
    let [first, ..] = source;
    first == 0 || first == 127 || (first >= 224 && first < 240) || source == [255; 4]
}

/// The transport header, or none where it was neighbour discovery.
#[inline(always)]
fn ipv6(frame: &impl Frame, packet: &mut Packet, shift: u32) -> Result<Option<Layer4>, DropReason> {
    let Some(ip) = read::<Ipv6>(frame, L3, shift) else { return Err(DropReason::Malformed) };
    packet.is_v6 = true;
    packet.key.source = bytes(ip.source);
    packet.key.destination = bytes(ip.destination);
    let length = u16::from_be(ip.length_be) as u32;
    if ip.version >> 4 != 6 || !is_there(frame, packet, shift, length.wrapping_add(40)) {
        return Err(DropReason::Malformed);
    }
    // An IPv4-mapped address on the wire (RFC 4291 2.5.5.2) would be read as the IPv4 address.
    if is_mapped(ip.source) || is_mapped(ip.destination) {
        return Err(DropReason::Malformed);
    }
    packet.bytes = length + 40;
    if ip.next == NEXT_ICMPV6
        && let Some(icmp) = read::<Transport>(frame, L4_V6, shift)
    {
        let [kind, code] = icmp.a_be.to_ne_bytes();
        if is_discovery(kind) {
            // RFC 4861 6.1, 7.1, 8.1: hop limit 255 and code 0 make it valid.
            if ip.hops != 255 || code != 0 {
                return Err(DropReason::NeighbourMalformed);
            }
            discovery(frame, packet, kind, shift, length, is_unspecified(ip.source))?;
            return Ok(None);
        }
    }
    let mut layer = Layer4 { shift, length, next: ip.next };
    extensions(frame, &mut layer)?;
    if layer.next == NEXT_ICMPV6 {
        // Before the source: hosts report without an address too (RFC 3810 5.2.13).
        let kind = read::<[u8; 2]>(frame, L4_V6, layer.shift);
        if let Some([kind, _]) = kind
            && is_listener(kind)
        {
            return Err(DropReason::MulticastListener);
        }
    }
    if is_martian_v6(ip.source) {
        return Err(DropReason::SourceMartian);
    }
    if ip.source == ip.destination {
        return Err(DropReason::Land);
    }
    // ICMP (for IPv4) in IPv6 is nothing.
    if layer.next == NEXT_ICMP {
        layer.next = u8::MAX;
    }
    Ok(Some(layer))
}

/// Multicast listener queries, reports and the end of one (RFC 2710 3, RFC 3810 5.2).
#[inline(always)]
fn is_listener(kind: u8) -> bool {
    (kind >= 130 && kind <= 132) || kind == 143
}

#[inline(always)]
fn is_unspecified(words: [u32; 4]) -> bool {
    words == [0; 4]
}

/// Unspecified, loopback and multicast (RFC 4291 2.5.2, 2.5.3, 2.7).
#[inline(always)]
pub fn is_martian_v6(words: [u32; 4]) -> bool {
    let [a, b, c, d] = words;
    let [first, ..] = a.to_ne_bytes();
    first == 0xFF || (a == 0 && b == 0 && c == 0 && (d == 0 || d == 1u32.to_be()))
}

/// Walks hop-by-hop and destination options headers (RFC 8200 4).
#[inline(always)]
fn extensions(frame: &impl Frame, layer: &mut Layer4) -> Result<(), DropReason> {
    for n in 0..EXTENSIONS_MAX {
        let is_known = (layer.next == NEXT_HOP_BY_HOP && n == 0) || layer.next == NEXT_DESTINATION;
        if !is_known {
            break;
        }
        let Some([next, length]) = copy::<[u8; 2]>(frame, L4_V6 as u32 + layer.shift) else {
            return Err(DropReason::Malformed);
        };
        let bytes = (length as u32 + 1) * 8;
        if bytes > EXTENSION_BYTES_MAX || bytes > layer.length {
            return Err(DropReason::Ipv6Extension);
        }
        layer.next = next;
        layer.shift += bytes;
        layer.length -= bytes;
    }
    match layer.next {
        NEXT_HOP_BY_HOP | NEXT_DESTINATION => Err(DropReason::Ipv6Extension),
        NEXT_ROUTING => Err(DropReason::Ipv6Routing),
        NEXT_FRAGMENT => Err(DropReason::Fragment),
        _ => Ok(()),
    }
}
