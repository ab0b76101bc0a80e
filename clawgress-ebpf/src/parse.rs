//! Ethernet, VLAN tags, ARP, IPv4, IPv6 and the transport headers, as far as a verdict needs them. What
//! is not understood exactly is refused with its reason, never skipped.

use core::ffi::c_void;

use clawgress_ebpf_common::{Address, DropReason, FlowKey, Generation, protocol};

use crate::frame::{Frame, Raw, at, copy, read};
use crate::neighbour::{arp, discovery, is_discovery};

/// EtherType values (IEEE 802), network byte order.
const ETHERTYPE_IPV4_BE: u16 = 0x0800u16.to_be();
const ETHERTYPE_IPV6_BE: u16 = 0x86DDu16.to_be();
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
const L4_V4: usize = L3 + 20;
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

/// Most bytes an echo carries behind its header: `ping` sends 56 unasked on Linux, BSD and macOS, 32 on
/// Windows. More is a tunnel's, or a flood's.
const ECHO_BYTES_MAX: u32 = 64;
/// Least bytes of the transports of [`protocol::is_named_only`]: a GRE header without options.
const NAMED_ONLY_BYTES_MIN: u32 = 4;

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
    /// VLAN tags that the driver took off the frame.
    pub tags: u32,
    /// Whether it is an ICMP echo reply.
    pub is_reply: bool,
    /// Source address of the packet itself, which `key` does not hold for [`Kind::Error`].
    pub outer: Address,
}

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

/// First 8 bytes of TCP, UDP and ICMP.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Transport {
    a_be: u16,
    b_be: u16,
    c_be: u16,
    d_be: u16,
}

/// Where the transport header is and how long the packet says it is.
struct Layer4 {
    /// Bytes of tags and extension headers: it is that much behind where it would be without them.
    shift: u32,
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
            tags: 0,
            is_reply: false,
            outer: [0; 16],
        }
    }
}

/// Makes the verifier forget what it knows of the packet from the way it was parsed, `zero` being one it can't
/// tell is one.
// VERIFIER: else it would walk all that follows once for each protocol, family and refusal.
#[inline(always)]
fn conceal(packet: &mut Packet, zero: u64) {
    let words = core::ptr::from_mut(packet).cast::<u64>();
    for n in 0..CONCEALED_WORDS {
        // SAFETY: the words are within the packet, which is aligned and plain; they keep their value.
        unsafe { words.add(n).write_volatile(words.add(n).read_volatile() | zero) }
    }
}

/// Words of [`Packet`] up to its length, and none beyond.
const CONCEALED_WORDS: usize = 7;
const _: () = assert!(core::mem::offset_of!(Packet, bytes) + 4 == CONCEALED_WORDS * 8);

/// `address` as `::ffff:a.b.c.d`.
#[inline(always)]
pub fn mapped(address: [u8; 4]) -> Address {
    bytes([0, 0, 0xFFFFu32.to_be(), u32::from_ne_bytes(address)])
}

/// Whether `address` is `::ffff:a.b.c.d`.
#[inline(always)]
pub fn is_v4(address: &Address) -> bool {
    // SAFETY: 16 plain bytes either way.
    is_mapped(unsafe { core::mem::transmute::<Address, [u32; 4]>(*address) })
}

/// A MAC address from its bytes.
#[inline(always)]
pub fn mac(bytes: [u8; 6]) -> Mac {
    let [a, b, c, d, e, f] = bytes;
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])]
}

/// Reads a frame, whose length is in `packet.bytes`, into `packet`.
#[inline(always)]
pub fn parse(frame: Raw, generation: Generation, packet: &mut Packet) -> Result<Kind, u16> {
    let (ctx, start, end, is_xdp) = frame.parts();
    // No generation has a number that large.
    let zero = 0u64.wrapping_sub(generation.number >> 62);
    let code = frame_into(ctx, start, end, is_xdp, packet) | zero as u32;
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
    match ethernet(&Raw::from_parts(ctx, start, end, is_xdp), packet) {
        Ok(kind) => kind as u32,
        Err(reason) => REFUSED | reason.code() as u32,
    }
}

#[inline(always)]
fn ethernet(frame: &impl Frame, packet: &mut Packet) -> Result<Kind, DropReason> {
    let Some(ethernet) = at::<Ethernet>(frame, 0) else { return Err(DropReason::Malformed) };
    packet.mac = ethernet.source;
    let (ethertype_be, shift) = tags(frame, ethernet.ethertype_be, packet.tags)?;
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
    if fragment & 0x8000 != 0 || length < 20 || length > packet.bytes {
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
    if ip.version >> 4 != 6 || length.wrapping_add(40) > packet.bytes {
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

/// TCP, UDP, ICMP, and what passes only where policy names it.
#[inline(always)]
fn transport(frame: &impl Frame, packet: &mut Packet, layer: &Layer4) -> Result<Kind, DropReason> {
    let number = if layer.next == NEXT_ICMPV6 { protocol::ICMP } else { layer.next };
    packet.key.protocol = number;
    if protocol::is_named_only(number) {
        let is_whole = layer.length >= NAMED_ONLY_BYTES_MIN;
        return if is_whole { Ok(Kind::Flow) } else { Err(DropReason::Malformed) };
    }
    if number != protocol::TCP && number != protocol::UDP && number != protocol::ICMP {
        return Err(DropReason::ProtocolUnsupported);
    }
    if layer.length < 8 {
        return Err(DropReason::Malformed);
    }
    let Some(head) = layer.read::<Transport>(frame, packet, 0) else { return Err(DropReason::Malformed) };
    if number == protocol::ICMP {
        return icmp(frame, packet, &head, layer);
    }
    packet.key.source_port_be = head.a_be;
    packet.key.destination_port_be = head.b_be;
    if number == protocol::UDP {
        let length = u16::from_be(head.c_be) as u32;
        return if length < 8 || length > layer.length { Err(DropReason::Malformed) } else { Ok(Kind::Flow) };
    }
    let Some([offset, flags]) = layer.read::<[u8; 2]>(frame, packet, 12) else {
        return Err(DropReason::Malformed);
    };
    let header = (offset as u32 >> 4) * 4;
    if header < 20 || header > layer.length {
        return Err(DropReason::Malformed);
    }
    packet.tcp_flags = flags;
    if is_absurd(flags) { Err(DropReason::TcpFlags) } else { Ok(Kind::Flow) }
}

impl Layer4 {
    /// The `T` that is `offset` bytes into the transport header.
    #[inline(always)]
    fn read<T: Copy + Default>(&self, frame: &impl Frame, packet: &Packet, offset: usize) -> Option<T> {
        if self.shift != 0 {
            copy(frame, self.start(packet) + offset as u32)
        } else if packet.is_v6 {
            at(frame, L4_V6 + offset)
        } else {
            at(frame, L4_V4 + offset)
        }
    }

    /// Where the transport header begins in the frame.
    #[inline(always)]
    fn start(&self, packet: &Packet) -> u32 {
        self.shift + if packet.is_v6 { L4_V6 as u32 } else { L4_V4 as u32 }
    }
}

/// Flags no segment of RFC 9293 has: SYN, FIN and RST exclude each other, and everything but the first
/// SYN and a bare RST acknowledges something ("null" and "Christmas tree" segments do not).
#[inline(always)]
fn is_absurd(flags: u8) -> bool {
    let some = |bits: u8| flags & bits != 0;
    (some(TCP_SYN) && some(TCP_FIN | TCP_RST))
        || (some(TCP_FIN) && some(TCP_RST))
        || !some(TCP_SYN | TCP_RST | TCP_ACK)
}

/// Echo, and the errors that quote a flow.
#[inline(always)]
fn icmp(
    frame: &impl Frame,
    packet: &mut Packet,
    head: &Transport,
    layer: &Layer4,
) -> Result<Kind, DropReason> {
    let [kind, code] = head.a_be.to_ne_bytes();
    let (echo, reply) = if packet.is_v6 { (128, 129) } else { (8, 0) };
    if (kind == echo || kind == reply) && code == 0 {
        // The identifier stands on the side of whoever asked.
        if kind == echo {
            packet.key.source_port_be = head.c_be;
        } else {
            packet.is_reply = true;
            packet.key.destination_port_be = head.c_be;
        }
        let is_ordinary = layer.length <= 8 + ECHO_BYTES_MAX;
        return if is_ordinary { Ok(Kind::Flow) } else { Err(DropReason::IcmpPayload) };
    }
    let is_error = if packet.is_v6 { (1..=4).contains(&kind) } else { matches!(kind, 3 | 11 | 12) };
    if is_error { quoted(frame, packet, layer) } else { Err(DropReason::IcmpUnsupported) }
}

/// Bytes of an ICMP error's own header, and of the quoted transport header that is looked at.
const ERROR_BYTES: u32 = 8;
const QUOTED_BYTES: u32 = 8;

/// The flow quoted by an ICMP error (RFC 792, RFC 4443 3): IP header and 8 bytes. An error goes to
/// whoever sent what it quotes.
#[inline(always)]
fn quoted(frame: &impl Frame, packet: &mut Packet, layer: &Layer4) -> Result<Kind, DropReason> {
    packet.outer = packet.key.source;
    let told = packet.key.destination;
    let header = if packet.is_v6 { 40 } else { 20 };
    // What stands behind the packet's own end is no part of it.
    if layer.length < ERROR_BYTES + header + QUOTED_BYTES {
        return Err(DropReason::IcmpUnsupported);
    }
    let inner = layer.start(packet) + ERROR_BYTES;
    let (next, ports) = if packet.is_v6 {
        let Some(ip) = copy::<[u32; 10]>(frame, inner) else { return Err(DropReason::IcmpUnsupported) };
        let [first, second, a, b, c, d, e, f, g, h] = ip;
        let [version, ..] = first.to_ne_bytes();
        if version >> 4 != 6 {
            return Err(DropReason::IcmpUnsupported);
        }
        packet.key.source = bytes([a, b, c, d]);
        packet.key.destination = bytes([e, f, g, h]);
        let [_, _, next, _] = second.to_ne_bytes();
        (next, inner + header)
    } else {
        let Some([first, second, third, source, destination]) = copy::<[u32; 5]>(frame, inner) else {
            return Err(DropReason::IcmpUnsupported);
        };
        let [version_length, ..] = first.to_ne_bytes();
        let [_, _, high, low] = second.to_ne_bytes();
        // Behind an offset there are no ports.
        if version_length != 0x45 || u16::from_be_bytes([high, low]) & 0x1FFF != 0 {
            return Err(DropReason::IcmpUnsupported);
        }
        packet.key.source = mapped(source.to_ne_bytes());
        packet.key.destination = mapped(destination.to_ne_bytes());
        let [_, next, ..] = third.to_ne_bytes();
        (next, inner + header)
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
        other if protocol::is_named_only(other) => packet.key.protocol = other,
        _ => return Err(DropReason::IcmpUnsupported),
    }
    if packet.key.source == told { Ok(Kind::Error) } else { Err(DropReason::IcmpUnsupported) }
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
