//! Frames, built byte by byte; every field can be made wrong.

use std::net::IpAddr;

pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;
pub const FIN: u8 = 0x01;
pub const RST: u8 = 0x04;

/// Ethernet around `payload`.
pub fn ethernet(source: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = GATEWAY_MAC.to_vec();
    frame.extend(source);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IP packet of either family in Ethernet.
pub fn ip(mac: [u8; 6], source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = u16::try_from(20 + payload.len()).expect("length");
            let mut packet = vec![0x45, 0];
            packet.extend(length.to_be_bytes());
            packet.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(payload);
            ethernet(mac, 0x0800, &packet)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(u16::try_from(payload.len()).expect("length").to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(payload);
            ethernet(mac, 0x86DD, &packet)
        }
        _ => panic!("one family a packet"),
    }
}

/// A TCP header without options.
pub fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut header = source.to_be_bytes().to_vec();
    header.extend(destination.to_be_bytes());
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xFF, 0xFF, 0, 0, 0, 0]);
    header
}

/// A UDP datagram.
pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = source.to_be_bytes().to_vec();
    datagram.extend(destination.to_be_bytes());
    datagram.extend(u16::try_from(8 + payload.len()).expect("length").to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// ICMP of `kind` and `code` with identifier `id`, of either family.
pub fn icmp(kind: u8, code: u8, id: u16) -> Vec<u8> {
    let [a, b] = id.to_be_bytes();
    vec![kind, code, 0, 0, a, b, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// An echo of either family that carries `bytes` bytes.
pub fn echo(kind: u8, id: u16, bytes: usize) -> Vec<u8> {
    let mut message = icmp(kind, 0, id)[..8].to_vec();
    message.resize(8 + bytes, 0);
    message
}

/// `frame` with a VLAN tag put in front of what it carries.
pub fn tagged(frame: &[u8], tpid: u16, tci: u16) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend(tpid.to_be_bytes());
    tagged.extend(tci.to_be_bytes());
    tagged.extend(&frame[12..]);
    tagged
}

/// An ARP request or reply.
pub fn arp(mac: [u8; 6], sender_mac: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend(sender_mac);
    body.extend(sender);
    body.extend([0; 6]);
    body.extend(target);
    ethernet(mac, 0x0806, &body)
}

/// A neighbour message (solicitation 135, advertisement 136) for `target`, with a link-layer address
/// option.
pub fn neighbour(
    mac: [u8; 6],
    source: IpAddr,
    destination: IpAddr,
    kind: u8,
    target: IpAddr,
    option: [u8; 6],
) -> Vec<u8> {
    let IpAddr::V6(target) = target else { panic!("IPv6 only") };
    let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    body.extend(target.octets());
    body.extend([if kind == 135 { 1 } else { 2 }, 1]);
    body.extend(option);
    with_hops(ip(mac, source, destination, 58, &body), 255)
}

/// The IPv6 frame with another hop limit.
pub fn with_hops(mut frame: Vec<u8>, hops: u8) -> Vec<u8> {
    frame[21] = hops;
    frame
}
