//! TCP, UDP, ICMP, and the flows that ICMP errors quote.

use clawgress_ebpf_common::{DropReason, protocol};

use super::{Kind, L4_V4, L4_V6, NEXT_ICMP, NEXT_ICMPV6, NEXT_TCP, NEXT_UDP, Packet, bytes, mapped};
use crate::frame::{Frame, at, copy};

/// Most bytes an echo carries behind its header: `ping` sends 56 unasked on Linux, BSD and macOS, 32 on
/// Windows. More is a tunnel's, or a flood's.
const ECHO_BYTES_MAX: u32 = 64;
/// Most bytes of an ICMP error behind its IP header, what it quotes included: a packet of 576 bytes (RFC 1812 4.3.2.3,
/// within which RFC 4884 stays), or one that fits IPv6's least MTU (RFC 4443 2.4).
const ERROR_V4_BYTES_MAX: u32 = 576 - 20;
const ERROR_V6_BYTES_MAX: u32 = 1280 - 40;
/// Least bytes of the transports of [`protocol::is_named_only`]: a GRE header without options.
const NAMED_ONLY_BYTES_MIN: u32 = 4;

/// TCP flags (RFC 9293 3.1).
pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// First 8 bytes of TCP, UDP and ICMP.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Transport {
    pub a_be: u16,
    b_be: u16,
    c_be: u16,
    d_be: u16,
}

/// Where the transport header is and how long the packet says it is.
pub struct Layer4 {
    /// Bytes of tags and extension headers: it is that much behind where it would be without them.
    pub shift: u32,
    pub length: u32,
    pub next: u8,
}

/// TCP, UDP, ICMP, and what passes only where policy names it.
#[inline(always)]
pub fn transport(frame: &impl Frame, packet: &mut Packet, layer: &Layer4) -> Result<Kind, DropReason> {
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
    if !is_error {
        return Err(DropReason::IcmpUnsupported);
    }
    let most = if packet.is_v6 { ERROR_V6_BYTES_MAX } else { ERROR_V4_BYTES_MAX };
    if layer.length > most { Err(DropReason::IcmpPayload) } else { quoted(frame, packet, layer) }
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
