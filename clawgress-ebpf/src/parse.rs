//! Ethernet, ARP, IPv4, IPv6 and the transport headers, as far as a verdict needs them. What is not
//! understood exactly is refused with its reason, never skipped.

use clawgress_ebpf_common::{Address, DropReason, FlowKey, protocol};

use crate::frame::{Frame, at, copy};

/// EtherType values (IEEE 802), network byte order.
const ETHERTYPE_IPV4_BE: u16 = 0x0800u16.to_be();
const ETHERTYPE_IPV6_BE: u16 = 0x86DDu16.to_be();
const ETHERTYPE_ARP_BE: u16 = 0x0806u16.to_be();

/// Bytes of the Ethernet header: where layer 3 begins.
pub const L3: usize = 14;
const L4_V4: usize = L3 + 20;
const L4_V6: usize = L3 + 40;
/// Bytes that make everything up to the fields read here contiguous: Ethernet, IPv6, TCP.
pub const HEADERS_BYTES: u32 = 14 + 40 + 20;

/// IP protocol numbers (IANA).
const NEXT_HOP_BY_HOP: u8 = 0;
const NEXT_ICMP: u8 = 1;
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

/// TCP flags (RFC 9293 3.1).
pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// ARP or neighbour discovery: `key.source` is the address the sender claims.
    Neighbour,
    /// A packet of a flow.
    Flow,
    /// An ICMP error about a flow: `key` is the flow it quotes, source and destination as quoted.
    Error,
}

/// A MAC address as it is copied: bytes one by one would be a loop.
pub type Mac = [u16; 3];

/// A parsed frame. Fields keep what was read before a refusal, so that the report has it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Packet {
    /// Addresses and ports as they are in the packet.
    pub key: FlowKey,
    /// Source MAC address.
    pub mac: Mac,
    /// TCP flags, else 0.
    pub tcp_flags: u8,
    /// Whether it is IPv6.
    pub is_v6: bool,
    /// Bytes from layer 3 on.
    pub bytes: u32,
    /// Whether it is an ICMP echo reply.
    pub is_reply: bool,
    /// Source address of the packet itself, which `key` does not hold for [`Kind::Error`].
    pub outer: Address,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Ethernet {
    destination: Mac,
    source: Mac,
    ethertype_be: u16,
}

#[derive(Clone, Copy)]
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

#[derive(Clone, Copy)]
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

/// First 8 bytes of TCP, UDP and ICMP.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Transport {
    a_be: u16,
    b_be: u16,
    c_be: u16,
    d_be: u16,
}

#[derive(Clone, Copy)]
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

/// Where the transport header is and how long the packet says it is.
struct Layer4 {
    offset: u32,
    is_at_fixed_offset: bool,
    length: u32,
    next: u8,
}

impl Packet {
    /// Nothing read yet.
    #[inline(always)]
    pub fn new(ifindex: u32) -> Self {
        Packet {
            key: FlowKey {
                source: [0; 16],
                destination: [0; 16],
                source_port_be: 0,
                destination_port_be: 0,
                ifindex,
                protocol: 0,
                pad: [0; 3],
            },
            mac: [0; 3],
            tcp_flags: 0,
            is_v6: false,
            bytes: 0,
            is_reply: false,
            outer: [0; 16],
        }
    }
}

/// `address` as `::ffff:a.b.c.d`.
#[inline(always)]
pub fn mapped(address: [u8; 4]) -> Address {
    bytes([0, 0, 0xFFFFu32.to_be(), u32::from_ne_bytes(address)])
}

/// A MAC address from its bytes.
#[inline(always)]
pub fn mac(bytes: [u8; 6]) -> Mac {
    let [a, b, c, d, e, f] = bytes;
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])]
}

/// Reads a frame into `packet`.
#[inline(always)]
pub fn parse(frame: &impl Frame, packet: &mut Packet) -> Result<Kind, DropReason> {
    let Some(ethernet) = at::<Ethernet>(frame, 0) else { return Err(DropReason::Malformed) };
    packet.mac = ethernet.source;
    packet.bytes = frame.length().wrapping_sub(L3 as u32);
    match ethernet.ethertype_be {
        ETHERTYPE_IPV4_BE => ipv4(frame, packet),
        ETHERTYPE_IPV6_BE => ipv6(frame, packet),
        ETHERTYPE_ARP_BE => arp(frame, packet),
        _ => Err(DropReason::EthertypeUnsupported),
    }
}

/// RFC 826, for IPv4 over Ethernet only; the sender's MAC must be the frame's.
#[inline(always)]
fn arp(frame: &impl Frame, packet: &mut Packet) -> Result<Kind, DropReason> {
    let Some(arp) = at::<Arp>(frame, L3) else { return Err(DropReason::Malformed) };
    let operation = u16::from_be(arp.operation_be);
    let is_known = arp.hardware_be == 1u16.to_be()
        && arp.protocol_be == ETHERTYPE_IPV4_BE
        && arp.lengths_be == 0x0604u16.to_be()
        && (operation == 1 || operation == 2);
    if !is_known {
        return Err(DropReason::Malformed);
    }
    packet.key.source = mapped(arp.sender);
    packet.key.destination = mapped(arp.target);
    if arp.sender_mac != packet.mac {
        return Err(DropReason::SourceSpoofed);
    }
    Ok(Kind::Neighbour)
}

#[inline(always)]
fn ipv4(frame: &impl Frame, packet: &mut Packet) -> Result<Kind, DropReason> {
    let Some(ip) = at::<Ipv4>(frame, L3) else { return Err(DropReason::Malformed) };
    packet.key.source = mapped(ip.source.to_ne_bytes());
    packet.key.destination = mapped(ip.destination.to_ne_bytes());
    if ip.version_length != 0x45 {
        let has_options = ip.version_length > 0x45 && ip.version_length <= 0x4F;
        return Err(if has_options { DropReason::Ipv4Options } else { DropReason::Malformed });
    }
    // More-fragments or an offset (RFC 791 3.1); the reserved bit is not ours to judge, but no sane
    // stack sets it.
    let fragment = u16::from_be(ip.fragment_be);
    if fragment & 0x3FFF != 0 {
        return Err(DropReason::Fragment);
    }
    let length = u16::from_be(ip.length_be) as u32;
    if fragment & 0x8000 != 0 || length < 20 || length > packet.bytes {
        return Err(DropReason::Malformed);
    }
    packet.bytes = length;
    // ICMPv6 in IPv4 is nothing; give it a number that no protocol branch takes.
    let next = if ip.protocol == NEXT_ICMPV6 { u8::MAX } else { ip.protocol };
    let layer = Layer4 { offset: L4_V4 as u32, is_at_fixed_offset: true, length: length - 20, next };
    transport::<L4_V4>(frame, packet, &layer)
}

#[inline(always)]
fn ipv6(frame: &impl Frame, packet: &mut Packet) -> Result<Kind, DropReason> {
    let Some(ip) = at::<Ipv6>(frame, L3) else { return Err(DropReason::Malformed) };
    packet.is_v6 = true;
    packet.key.source = bytes(ip.source);
    packet.key.destination = bytes(ip.destination);
    let length = u16::from_be(ip.length_be) as u32;
    if ip.version >> 4 != 6 || length.wrapping_add(40) > packet.bytes {
        return Err(DropReason::Malformed);
    }
    // An IPv4-mapped address on the wire (RFC 4291 2.5.5.2) would be read as the IPv4 address.
    if is_mapped(ip.source) || is_mapped(ip.destination) {
        return Err(DropReason::Malformed);
    }
    packet.bytes = length + 40;
    let mut layer = Layer4 { offset: L4_V6 as u32, is_at_fixed_offset: true, length, next: ip.next };
    if ip.next == NEXT_ICMPV6
        && let Some(icmp) = at::<Transport>(frame, L4_V6)
    {
        let kind = u16::from_be(icmp.a_be) >> 8;
        // RFC 4861 7.1: hop limit 255 and code 0 make it valid.
        if (133..=136).contains(&kind) {
            if ip.hops != 255 || icmp.a_be & 0xFFu16.to_be() != 0 {
                return Err(DropReason::Malformed);
            }
            return discovery(frame, packet, kind, length);
        }
    }
    extensions(frame, &mut layer)?;
    // ICMP (for IPv4) in IPv6 is nothing.
    if layer.next == NEXT_ICMP {
        layer.next = u8::MAX;
    }
    transport::<L4_V6>(frame, packet, &layer)
}

/// Walks hop-by-hop and destination options headers (RFC 8200 4).
#[inline(always)]
fn extensions(frame: &impl Frame, layer: &mut Layer4) -> Result<(), DropReason> {
    for n in 0..EXTENSIONS_MAX {
        let is_known = (layer.next == NEXT_HOP_BY_HOP && n == 0) || layer.next == NEXT_DESTINATION;
        if !is_known {
            break;
        }
        let Some([next, length]) = copy::<[u8; 2]>(frame, layer.offset) else {
            return Err(DropReason::Malformed);
        };
        let bytes = (length as u32 + 1) * 8;
        if bytes > EXTENSION_BYTES_MAX || bytes > layer.length {
            return Err(DropReason::Ipv6Extension);
        }
        layer.is_at_fixed_offset = false;
        layer.next = next;
        layer.offset += bytes;
        layer.length -= bytes;
    }
    match layer.next {
        NEXT_HOP_BY_HOP | NEXT_DESTINATION | NEXT_ROUTING => Err(DropReason::Ipv6Extension),
        NEXT_FRAGMENT => Err(DropReason::Fragment),
        _ => Ok(()),
    }
}

/// Neighbour discovery: router solicitation, neighbour solicitation and advertisement. An agent has no
/// business advertising routes. Link-layer address options must name the frame's own source.
#[inline(always)]
fn discovery(frame: &impl Frame, packet: &mut Packet, kind: u16, length: u32) -> Result<Kind, DropReason> {
    /// Bytes before the options of a router solicitation, and of a neighbour message.
    const SOLICITATION: u32 = 8;
    const NEIGHBOUR: u32 = 24;
    /// Options of 8 bytes looked at: link-layer address, nonce (RFC 7527), one to spare.
    const OPTIONS_MAX: u32 = 3;
    if kind == 134 {
        return Err(DropReason::IcmpUnsupported);
    }
    let fixed = if kind == 133 { SOLICITATION } else { NEIGHBOUR };
    if length < fixed || length > fixed + OPTIONS_MAX * 8 || !(length - fixed).is_multiple_of(8) {
        return Err(DropReason::Malformed);
    }
    for n in 0..OPTIONS_MAX {
        let offset = fixed + n * 8;
        if offset >= length {
            break;
        }
        let Some(option) = copy::<[u8; 8]>(frame, L4_V6 as u32 + offset) else {
            return Err(DropReason::Malformed);
        };
        let [code, units, a, b, c, d, e, f] = option;
        if units != 1 {
            return Err(DropReason::Malformed);
        }
        if (code == 1 || code == 2) && mac([a, b, c, d, e, f]) != packet.mac {
            return Err(DropReason::SourceSpoofed);
        }
    }
    // An advertisement claims its target.
    if kind == 136 {
        let Some(target) = at::<[u32; 4]>(frame, L4_V6 + 8) else { return Err(DropReason::Malformed) };
        packet.key.source = bytes(target);
    }
    Ok(Kind::Neighbour)
}

/// TCP, UDP and ICMP echo. `FIXED` is the offset without extension headers.
#[inline(always)]
fn transport<const FIXED: usize>(
    frame: &impl Frame,
    packet: &mut Packet,
    layer: &Layer4,
) -> Result<Kind, DropReason> {
    let protocol = match layer.next {
        NEXT_TCP => protocol::TCP,
        NEXT_UDP => protocol::UDP,
        NEXT_ICMP | NEXT_ICMPV6 => protocol::ICMP,
        other => {
            packet.key.protocol = other;
            return Err(DropReason::ProtocolUnsupported);
        }
    };
    packet.key.protocol = protocol;
    if layer.length < 8 {
        return Err(DropReason::Malformed);
    }
    let head = if layer.is_at_fixed_offset { at(frame, FIXED) } else { copy(frame, layer.offset) };
    let Some(head) = head else { return Err(DropReason::Malformed) };
    let head: Transport = head;
    match protocol {
        protocol::TCP => {
            packet.key.source_port_be = head.a_be;
            packet.key.destination_port_be = head.b_be;
            let flags = if layer.is_at_fixed_offset {
                at::<[u8; 2]>(frame, FIXED + 12)
            } else {
                copy::<[u8; 2]>(frame, layer.offset + 12)
            };
            let Some([offset, flags]) = flags else { return Err(DropReason::Malformed) };
            let header = (offset as u32 >> 4) * 4;
            let is_absurd = flags & TCP_SYN != 0 && flags & (TCP_FIN | TCP_RST) != 0;
            if header < 20 || header > layer.length || is_absurd {
                return Err(DropReason::Malformed);
            }
            packet.tcp_flags = flags;
            Ok(Kind::Flow)
        }
        protocol::UDP => {
            packet.key.source_port_be = head.a_be;
            packet.key.destination_port_be = head.b_be;
            let length = u16::from_be(head.c_be) as u32;
            if length < 8 || length > layer.length { Err(DropReason::Malformed) } else { Ok(Kind::Flow) }
        }
        _ => {
            let [kind, code] = head.a_be.to_ne_bytes();
            icmp::<FIXED>(frame, packet, kind, code, head.c_be)
        }
    }
}

/// Echo, and the errors that quote a flow.
#[inline(always)]
fn icmp<const FIXED: usize>(
    frame: &impl Frame,
    packet: &mut Packet,
    kind: u8,
    code: u8,
    id_be: u16,
) -> Result<Kind, DropReason> {
    let (echo, reply) = if packet.is_v6 { (128, 129) } else { (8, 0) };
    if (kind == echo || kind == reply) && code == 0 {
        // The identifier stands on the side of whoever asked.
        if kind == echo {
            packet.key.source_port_be = id_be;
        } else {
            packet.is_reply = true;
            packet.key.destination_port_be = id_be;
        }
        return Ok(Kind::Flow);
    }
    let is_error = if packet.is_v6 { (1..=4).contains(&kind) } else { matches!(kind, 3 | 11 | 12) };
    if is_error { quoted::<FIXED>(frame, packet) } else { Err(DropReason::IcmpUnsupported) }
}

/// The flow quoted by an ICMP error (RFC 792, RFC 4443 3): IP header and 8 bytes.
#[inline(always)]
fn quoted<const FIXED: usize>(frame: &impl Frame, packet: &mut Packet) -> Result<Kind, DropReason> {
    packet.outer = packet.key.source;
    let inner = FIXED as u32 + 8;
    let (next, ports) = if packet.is_v6 {
        let Some(ip) = copy::<[u32; 10]>(frame, inner) else { return Err(DropReason::IcmpUnsupported) };
        let [_, second, a, b, c, d, e, f, g, h] = ip;
        packet.key.source = bytes([a, b, c, d]);
        packet.key.destination = bytes([e, f, g, h]);
        let [_, _, next, _] = second.to_ne_bytes();
        (next, inner + 40)
    } else {
        let Some([head, _, third, source, destination]) = copy::<[u32; 5]>(frame, inner) else {
            return Err(DropReason::IcmpUnsupported);
        };
        let [version_length, ..] = head.to_ne_bytes();
        if version_length != 0x45 {
            return Err(DropReason::IcmpUnsupported);
        }
        packet.key.source = mapped(source.to_ne_bytes());
        packet.key.destination = mapped(destination.to_ne_bytes());
        let [_, next, ..] = third.to_ne_bytes();
        (next, inner + 20)
    };
    let Some(head) = copy::<Transport>(frame, ports) else { return Err(DropReason::IcmpUnsupported) };
    match next {
        NEXT_TCP | NEXT_UDP => {
            packet.key.protocol = next;
            packet.key.source_port_be = head.a_be;
            packet.key.destination_port_be = head.b_be;
        }
        NEXT_ICMP | NEXT_ICMPV6 => {
            packet.key.protocol = protocol::ICMP;
            packet.key.source_port_be = head.c_be;
        }
        _ => return Err(DropReason::IcmpUnsupported),
    }
    Ok(Kind::Error)
}

/// An address read as words.
#[inline(always)]
pub fn bytes(words: [u32; 4]) -> Address {
    // SAFETY: 16 plain bytes either way.
    unsafe { core::mem::transmute::<[u32; 4], Address>(words) }
}

/// Whether it is an IPv4-mapped address.
#[inline(always)]
fn is_mapped(words: [u32; 4]) -> bool {
    let [a, b, c, _] = words;
    a == 0 && b == 0 && c == 0xFFFFu32.to_be()
}
