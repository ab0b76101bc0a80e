//! What the kernel programs must do with a frame, written down a second time: byte by byte, without speed,
//! without the programs' structure. Policy's part is `KernelTables::lookup`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clawgress_ebpf_common::{DropReason, mark};
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables};
use ipnet::IpNet;

use crate::kernel::Did;

pub type Mac = [u8; 6];

/// A source that is bound.
#[derive(Clone, Copy)]
pub struct Bound {
    /// 0 where several agents share it.
    pub agent: u32,
    pub mac: Option<Mac>,
}

/// What a packet is judged by.
pub struct World {
    /// The longest prefix counts.
    pub bound: Vec<(IpNet, Bound)>,
    pub gateway: BTreeSet<IpAddr>,
    pub proxy_ports: [u16; 2],
    pub tables: KernelTables,
    pub quarantined: BTreeSet<u32>,
    /// Whether somebody vouches for the tables.
    pub vouched: bool,
    /// Flows that were begun, and what becomes of their packets.
    pub flows: BTreeMap<Tuple, u32>,
    /// Those of them whose agent sent more than SYNs.
    pub past: BTreeSet<Tuple>,
    /// What the last packet asked of the tables: who, where, and what they said.
    pub asked: Option<(u32, Tuple, KernelAction)>,
    /// The flow that the last packet ended by beginning another.
    pub again: Option<Tuple>,
}

impl World {
    /// Whose address that is.
    fn bound(&self, address: IpAddr) -> Option<Bound> {
        let all = self.bound.iter().filter(|(net, _)| net.contains(&address));
        all.max_by_key(|(net, _)| net.prefix_len()).map(|(_, bound)| *bound)
    }
}

/// A flow from the agent's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
}

/// What a frame is.
enum Shape {
    Neighbour { claimed: IpAddr },
    Packet { tuple: Tuple, flags: u8, is_reply: bool },
    Error { quoted: Tuple, outer: IpAddr },
}

type Parsed<T> = Result<T, DropReason>;

/// What XDP and TC must do; the model's flows are as after TC.
pub fn run(world: &mut World, frame: &[u8]) -> (Did, Did) {
    (world.asked, world.again) = (None, None);
    let (mac, shape) = match parse(frame) {
        Ok(parsed) => parsed,
        Err(reason) => return (Did::Dropped(reason), Did::Dropped(reason)),
    };
    let judged = match shape {
        Shape::Neighbour { claimed } => neighbour(world, mac, claimed),
        Shape::Packet { tuple, flags, is_reply } => packet(world, mac, tuple, flags, is_reply),
        Shape::Error { quoted, outer } => error(world, mac, quoted, outer),
    };
    match judged {
        Err(reason) => (Did::Dropped(reason), Did::Dropped(reason)),
        Ok(later) => (Did::Passed, later),
    }
}

fn neighbour(world: &World, mac: Mac, claimed: IpAddr) -> Parsed<Did> {
    let is_others = world.bound(claimed).is_some_and(|b| b.mac.is_some_and(|m| m != mac));
    if world.gateway.contains(&claimed) || is_others {
        return Err(DropReason::SourceSpoofed);
    }
    Ok(Did::Marked(mark::LOCAL))
}

/// Who sends from there: 0 for nobody known.
fn identify(world: &World, mac: Mac, source: IpAddr) -> Parsed<u32> {
    let Some(bound) = world.bound(source) else { return Ok(0) };
    if bound.mac.is_some_and(|m| m != mac) {
        return Err(DropReason::SourceSpoofed);
    }
    if world.quarantined.contains(&bound.agent) {
        return Err(DropReason::AgentQuarantined);
    }
    Ok(bound.agent)
}

fn packet(world: &mut World, mac: Mac, tuple: Tuple, flags: u8, is_reply: bool) -> Parsed<Did> {
    if world.gateway.contains(&tuple.source) {
        return Err(DropReason::SourceSpoofed);
    }
    if is_reply {
        return Err(DropReason::IcmpUnsupported);
    }
    let agent = identify(world, mac, tuple.source)?;
    let is_start = tuple.protocol != 6 || flags & 0b1_0111 == 0b10;
    if world.gateway.contains(&tuple.destination) {
        if tuple.protocol != 6 || !world.proxy_ports.contains(&tuple.destination_port) {
            return Err(DropReason::GatewayAddress);
        }
        if world.bound(tuple.source).is_some() && is_start {
            world.flows.insert(tuple, mark::LOCAL);
        }
        // Nobody has connections here. Who is bound has them by a record; others, and who shares a source, by limits.
        let is_unknown = agent != 0 && !world.flows.contains_key(&tuple);
        return Ok(if is_unknown { Did::Dropped(DropReason::FlowUnknown) } else { Did::Marked(mark::LOCAL) });
    }
    if !world.tables.agents.contains_key(&agent) {
        return Err(DropReason::Anonymous);
    }
    let transport = Transport::ALL.into_iter().find(|t| t.number() == tuple.protocol);
    let transport = transport.expect("others are refused before");
    let (action, _) = world.tables.lookup(agent, tuple.destination, transport, tuple.destination_port);
    world.asked = Some((agent, tuple, action));
    let (mark, did) = match action {
        // TC would steer it to whoever serves DNS, and nobody does here.
        KernelAction::Deny(code) if is_unread_dns(code, &tuple) => {
            if let Some(mark) = world.flows.get_mut(&tuple) {
                *mark = mark::STEER;
            }
            return Ok(Did::Dropped(DropReason::InspectionRequired));
        }
        KernelAction::Deny(code) => return Err(DropReason::from_code(code).expect("a reason")),
        KernelAction::Direct if !world.vouched && (is_start || world.flows.contains_key(&tuple)) => {
            world.again = world.past.get(&tuple).copied().filter(|_| is_start);
            return Ok(Did::Dropped(DropReason::LeaseLapsed));
        }
        KernelAction::Direct => (mark::DIRECT, Did::Marked(mark::DIRECT)),
        // Nobody listens here.
        KernelAction::Steer => (mark::STEER, Did::Dropped(DropReason::ListenerMissing)),
    };
    if is_start {
        world.flows.insert(tuple, mark);
        world.again = world.past.take(&tuple);
    } else if world.flows.contains_key(&tuple) {
        world.past.insert(tuple);
    }
    Ok(if world.flows.contains_key(&tuple) { did } else { Did::Dropped(DropReason::FlowUnknown) })
}

fn is_unread_dns(code: u16, tuple: &Tuple) -> bool {
    code == DropReason::InspectionRequired.code() && tuple.protocol == 17 && tuple.destination_port == 53
}

fn error(world: &World, mac: Mac, quoted: Tuple, outer: IpAddr) -> Parsed<Did> {
    let agent = identify(world, mac, quoted.destination)?;
    if agent == 0 {
        return Err(DropReason::Anonymous);
    }
    let is_own = outer == quoted.destination || world.bound(outer).is_some_and(|b| b.agent == agent);
    if !is_own {
        return Err(DropReason::IcmpUnsupported);
    }
    let tuple = Tuple {
        source: quoted.destination,
        destination: quoted.source,
        source_port: quoted.destination_port,
        destination_port: quoted.source_port,
        protocol: quoted.protocol,
    };
    Ok(match world.flows.get(&tuple) {
        None => Did::Dropped(DropReason::FlowUnknown),
        Some(&mark::DIRECT) if !world.vouched => Did::Dropped(DropReason::LeaseLapsed),
        Some(mark) => Did::Marked(*mark),
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize, reason: DropReason) -> Parsed<[u8; N]> {
    bytes.get(at..at + N).and_then(|b| b.try_into().ok()).ok_or(reason)
}

fn be16(bytes: &[u8], at: usize, reason: DropReason) -> Parsed<u16> {
    array(bytes, at, reason).map(u16::from_be_bytes)
}

fn parse(frame: &[u8]) -> Parsed<(Mac, Shape)> {
    use DropReason::{EthertypeUnsupported, Malformed, SourceMacGroup, VlanUnsupported};
    let mac: Mac = array(frame, 6, Malformed)?;
    let mut at = 12;
    let mut kind = be16(frame, at, Malformed)?;
    let is_tag = |kind: u16| kind == 0x8100 || kind == 0x88A8;
    let mut tags = 0;
    while is_tag(kind) {
        if tags == 2 {
            return Err(VlanUnsupported);
        }
        let [tci, next]: [u16; 2] = [be16(frame, at + 2, Malformed)?, be16(frame, at + 4, Malformed)?];
        if tci & 0x0FFF != 0 {
            return Err(VlanUnsupported);
        }
        (tags, kind, at) = (tags + 1, next, at + 4);
    }
    if mac[0] & 1 == 1 || mac == [0; 6] {
        return Err(SourceMacGroup);
    }
    let body = &frame[at + 2..];
    let shape = match kind {
        0x0800 => ipv4(body),
        0x86DD => ipv6(body, mac),
        0x0806 => arp(body, mac),
        _ => Err(EthertypeUnsupported),
    }?;
    Ok((mac, shape))
}

fn is_martian(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            v4.octets()[0] == 0 || v4.is_loopback() || v4.is_multicast() || v4 == Ipv4Addr::BROADCAST
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_loopback() || v6.is_multicast(),
    }
}

fn arp(body: &[u8], mac: Mac) -> Parsed<Shape> {
    use DropReason::{NeighbourMalformed, SourceMartian, SourceSpoofed};
    let message: [u8; 28] = array(body, 0, NeighbourMalformed)?;
    let operation = message[7];
    if message[..7] != [0, 1, 8, 0, 6, 4, 0] || !matches!(operation, 1 | 2) {
        return Err(NeighbourMalformed);
    }
    if message[8..14] != mac {
        return Err(SourceSpoofed);
    }
    let sender: [u8; 4] = array(&message, 14, NeighbourMalformed)?;
    let claimed = IpAddr::from(sender);
    if is_martian(claimed) && (operation != 1 || sender != [0; 4]) {
        return Err(SourceMartian);
    }
    Ok(Shape::Neighbour { claimed })
}

fn ipv4(body: &[u8]) -> Parsed<Shape> {
    use DropReason::{Fragment, Ipv4Options, Land, Malformed, MulticastListener, SourceMartian};
    let header: [u8; 20] = array(body, 0, Malformed)?;
    if header[0] >> 4 != 4 || header[0] & 15 < 5 {
        return Err(Malformed);
    }
    if header[9] == 2 {
        return Err(MulticastListener);
    }
    if header[0] & 15 > 5 {
        return Err(Ipv4Options);
    }
    let fragment = be16(&header, 6, Malformed)?;
    if fragment & 0x2000 != 0 || fragment & 0x1FFF != 0 {
        return Err(Fragment);
    }
    let length = usize::from(be16(&header, 2, Malformed)?);
    if fragment & 0x8000 != 0 || length < 20 || length > body.len() {
        return Err(Malformed);
    }
    let source = IpAddr::from(array::<4>(&header, 12, Malformed)?);
    let destination = IpAddr::from(array::<4>(&header, 16, Malformed)?);
    if is_martian(source) {
        return Err(SourceMartian);
    }
    if source == destination {
        return Err(Land);
    }
    transport(&body[20..length], header[9], source, destination)
}

fn v6(bytes: &[u8], at: usize) -> Parsed<Ipv6Addr> {
    array::<16>(bytes, at, DropReason::Malformed).map(Ipv6Addr::from)
}

fn ipv6(body: &[u8], mac: Mac) -> Parsed<Shape> {
    use DropReason::{Ipv6Extension, Land, Malformed, MulticastListener, NeighbourMalformed, SourceMartian};
    if body.len() < 40 {
        return Err(Malformed);
    }
    let length = usize::from(be16(body, 4, Malformed)?);
    let (source, destination) = (v6(body, 8)?, v6(body, 24)?);
    if body[0] >> 4 != 6 || 40 + length > body.len() {
        return Err(Malformed);
    }
    if source.to_ipv4_mapped().is_some() || destination.to_ipv4_mapped().is_some() {
        return Err(Malformed);
    }
    let rest = &body[40..];
    if body[6] == 58 && rest.len() >= 8 && (133..=137).contains(&rest[0]) {
        if body[7] != 255 || rest[1] != 0 {
            return Err(NeighbourMalformed);
        }
        return discovery(rest, length, source, mac);
    }
    let (mut next, mut at) = (body[6], 0);
    for n in 0..2 {
        if !(next == 60 || (next == 0 && n == 0)) {
            break;
        }
        let [following, units]: [u8; 2] = array(rest, at, Malformed)?;
        let bytes = 8 * (usize::from(units) + 1);
        if bytes > 64 || at + bytes > length {
            return Err(Ipv6Extension);
        }
        (next, at) = (following, at + bytes);
    }
    match next {
        0 | 60 => return Err(Ipv6Extension),
        43 => return Err(DropReason::Ipv6Routing),
        44 => return Err(DropReason::Fragment),
        58 if rest.len() >= at + 2 && matches!(rest[at], 130..=132 | 143) => return Err(MulticastListener),
        _ => {}
    }
    if is_martian(source.into()) {
        return Err(SourceMartian);
    }
    if source == destination {
        return Err(Land);
    }
    transport(&rest[at..length], next, source.into(), destination.into())
}

fn discovery(rest: &[u8], length: usize, source: Ipv6Addr, mac: Mac) -> Parsed<Shape> {
    use DropReason::{NeighbourMalformed, RouterMessage, SourceMartian, SourceSpoofed};
    let kind = rest[0];
    if kind == 134 || kind == 137 {
        return Err(RouterMessage);
    }
    let fixed = if kind == 133 { 8 } else { 24 };
    if length < fixed {
        return Err(NeighbourMalformed);
    }
    if is_martian(source.into()) && (!source.is_unspecified() || kind == 136) {
        return Err(SourceMartian);
    }
    let mut at = fixed;
    for _ in 0..4 {
        if at >= length {
            break;
        }
        let option: [u8; 8] = array(rest, at, NeighbourMalformed)?;
        if matches!(option[0], 1 | 2) {
            if option[1] != 1 || source.is_unspecified() {
                return Err(NeighbourMalformed);
            }
            if option[2..] != mac {
                return Err(SourceSpoofed);
            }
        }
        if option[1] == 0 {
            return Err(NeighbourMalformed);
        }
        at += 8 * usize::from(option[1]);
    }
    if at != length {
        return Err(NeighbourMalformed);
    }
    let mut claimed = source;
    if kind != 133 {
        let target = v6(rest, 8)?;
        if is_martian(target.into()) {
            return Err(NeighbourMalformed);
        }
        if kind == 136 {
            claimed = target;
        }
    }
    // A mapped address on the wire is none; the tables would read it as IPv4's.
    Ok(Shape::Neighbour { claimed: IpAddr::from(claimed).to_canonical() })
}

fn transport(rest: &[u8], next: u8, source: IpAddr, destination: IpAddr) -> Parsed<Shape> {
    use DropReason::{IcmpPayload, IcmpUnsupported, Malformed, ProtocolUnsupported, TcpFlags};
    let is_v4 = source.is_ipv4();
    let protocol = match (next, is_v4) {
        (1, true) | (58, false) => 1,
        (1 | 58, _) => return Err(ProtocolUnsupported),
        (other, _) => other,
    };
    let mut tuple = Tuple { source, destination, source_port: 0, destination_port: 0, protocol };
    let flow = |tuple, flags| Ok(Shape::Packet { tuple, flags, is_reply: false });
    match protocol {
        4 | 41 | 47 | 50 | 51 | 132 => return if rest.len() < 4 { Err(Malformed) } else { flow(tuple, 0) },
        1 | 6 | 17 => {}
        _ => return Err(ProtocolUnsupported),
    }
    if rest.len() < 8 {
        return Err(Malformed);
    }
    if protocol != 1 {
        tuple.source_port = be16(rest, 0, Malformed)?;
        tuple.destination_port = be16(rest, 2, Malformed)?;
    }
    match protocol {
        6 => {
            let [offset, flags]: [u8; 2] = array(rest, 12, Malformed)?;
            let header = usize::from(offset >> 4) * 4;
            if header < 20 || header > rest.len() {
                return Err(Malformed);
            }
            // FIN, SYN, RST, ACK.
            if !matches!(flags & 0b1_0111, 0b10 | 0b1_0010 | 0b1_0000 | 0b1_0001 | 0b100 | 0b1_0100) {
                return Err(TcpFlags);
            }
            flow(tuple, flags)
        }
        17 => {
            let length = usize::from(be16(rest, 4, Malformed)?);
            if length < 8 || length > rest.len() { Err(Malformed) } else { flow(tuple, 0) }
        }
        _ => {
            let (echo, reply, errors) =
                if is_v4 { (8, 0, &[3, 11, 12][..]) } else { (128, 129, &[1, 2, 3, 4][..]) };
            let id = be16(rest, 4, Malformed)?;
            if rest[1] == 0 && (rest[0] == echo || rest[0] == reply) {
                if rest.len() > 72 {
                    return Err(IcmpPayload);
                }
                tuple.source_port = id;
                return Ok(Shape::Packet { tuple, flags: 0, is_reply: rest[0] == reply });
            }
            if !errors.contains(&rest[0]) {
                return Err(IcmpUnsupported);
            }
            if rest.len() > if is_v4 { 556 } else { 1240 } {
                return Err(IcmpPayload);
            }
            quoted(&rest[8..], is_v4, destination)
                .map(|quoted| Shape::Error { quoted, outer: source })
                .ok_or(IcmpUnsupported)
        }
    }
}

fn quoted(inner: &[u8], is_v4: bool, told: IpAddr) -> Option<Tuple> {
    let (source, destination, next, rest): (IpAddr, IpAddr, u8, &[u8]) = if is_v4 {
        let header: [u8; 20] = inner.get(..20)?.try_into().ok()?;
        if header[0] != 0x45 || (header[6] & 0x1F, header[7]) != (0, 0) {
            return None;
        }
        let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(header.get(at..at + 4)?).ok()?));
        (address(12)?, address(16)?, header[9], &inner[20..])
    } else {
        let header: [u8; 40] = inner.get(..40)?.try_into().ok()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?));
        (address(8)?.to_canonical(), address(24)?.to_canonical(), header[6], &inner[40..])
    };
    let head: [u8; 8] = rest.get(..8)?.try_into().ok()?;
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let (protocol, source_port, destination_port) = match next {
        6 | 17 => (next, word(0), word(2)),
        1 | 58 => (1, word(4), 0),
        4 | 41 | 47 | 50 | 51 | 132 => (next, 0, 0),
        _ => return None,
    };
    (source == told).then_some(Tuple { source, destination, source_port, destination_port, protocol })
}
