//! Random policies, random tables and random frames of every shape, whole and damaged: the programs do what
//! the model says, XDP and TC alike. A failure prints its seed; set `CLAWGRESS_TEST_SEED` to run it again, and
//! `CLAWGRESS_FUZZ_MINUTES` to go on for that long (`cargo xtask fuzz-datapath` does both).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use clawgress_agent::datapath::bpf::Plain;
use clawgress_agent::datapath::object::program;
use clawgress_ebpf_common::{DropReason, Flow, FlowKey, action, bound, mark, user};
use clawgress_identity::Agent;
use clawgress_policy::kernel::{KernelAction, KernelTables, compile, expected};
use clawgress_policy::{PolicySet, Transport};
use ipnet::IpNet;

use crate::frames::{ACK, FIN, RST, SYN, arp, echo, icmp, ip, neighbour, tagged, tcp, udp, with_hops};
use crate::kernel::{Did, Kernel, LOOPBACK, PROXY_PORT, PROXY_TLS_PORT, agent};
use crate::model::{self, Bound, Tuple, World};
use crate::random::{self, AGENTS, CLASSLESS, Random, seed};
use crate::shared;

/// Generations, and packets through each: 200,000 packets, XDP and TC each.
const GENERATIONS: u64 = 40;
const PACKETS: u64 = 5_000;
/// One generation in this many is a policy, which takes longer to make than tables.
const POLICY_EACH: u64 = 2;
/// Packets of a run of [`GENERATIONS`] that ask something of a policy, and so are put to the evaluator itself too, at least.
const EVALUATED_LEAST: u64 = 10_000;
/// One packet in this many is answered; and as many more questions are asked that no packet asks.
const ANSWER_EACH: u64 = 8;
/// So many packets come while the tables are vouched for, or while they are not.
const VOUCH_EACH: u64 = 50;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Known by its address alone.
const ANY_MAC: u32 = 2;
const QUARANTINED: u32 = 3;
/// Who have prefixes besides: one, and another within it.
const WIDE: u32 = 4;
const NARROW: u32 = 5;
/// Whose address several agents share. The one between the agents' and this is bound to nobody.
const SHARED: u32 = AGENTS + 2;

/// Address of an agent: outside what [`Random::address`] makes.
fn source(agent: u32, v4: bool) -> IpAddr {
    let n = u8::try_from(agent).expect("agent");
    if v4 {
        IpAddr::from([172, 16, 0, n])
    } else {
        IpAddr::from([0xFD, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n])
    }
}

/// Prefixes of agents besides their addresses, one within the other.
fn prefixes(v4: bool) -> [(u32, IpNet); 2] {
    let nets =
        if v4 { ["172.16.64.0/20", "172.16.66.128/25"] } else { ["fdff:0:0:4::/64", "fdff:0:0:4:8000::/65"] };
    let [wide, narrow] = nets.map(|net| net.parse().expect("prefix"));
    [(WIDE, wide), (NARROW, narrow)]
}

/// Where an agent's packet comes from: its address, or any of its prefix.
fn address(r: &mut Random, agent: u32, v4: bool) -> IpAddr {
    if !matches!(agent, WIDE | NARROW) || r.once_in(3) {
        return source(agent, v4);
    }
    // Of the wider one, in which the other is.
    match prefixes(v4)[0].1.addr() {
        IpAddr::V4(net) => IpAddr::from(Ipv4Addr::from_bits(net.to_bits() | u32::from(r.u16() % 4_096))),
        IpAddr::V6(net) => {
            let low = u128::from(r.u16()) << 48 | u128::from(r.u8());
            IpAddr::from(Ipv6Addr::from_bits(net.to_bits() | low))
        }
    }
}

fn gateway(v4: bool) -> IpAddr {
    source(250, v4)
}

// === frames ===

/// What is behind an IP header, and its protocol number.
fn body(r: &mut Random, v4: bool, from: u16) -> (u8, Vec<u8>) {
    let icmp_number = if v4 { 1 } else { 58 };
    let port = if r.once_in(8) { r.pick(&[PROXY_PORT, PROXY_TLS_PORT]) } else { r.u16() % 64 };
    match r.below(12) {
        0..=3 => {
            let flags = match r.below(4) {
                0 | 1 => SYN,
                2 => r.pick(&[ACK, ACK | FIN, RST, SYN | ACK, SYN | 0xC0, SYN | FIN]),
                _ => r.u8(),
            };
            (6, tcp(from, port, flags))
        }
        4..=6 => (17, udp(from, port, &vec![0x5A; r.index(20)])),
        7 | 8 => {
            let kind = match (v4, r.once_in(6)) {
                (true, false) => 8,
                (true, true) => r.pick(&[0, 3, 5, 9, 13]),
                (false, false) => 128,
                (false, true) => r.pick(&[129, 1, 100, 139]),
            };
            let bytes = if r.once_in(8) { 60 + r.index(10) } else { r.index(60) };
            (icmp_number, echo(kind, from, bytes))
        }
        9 | 10 => (r.pick(&[4, 41, 47, 50, 51, 132]), vec![0x45; r.index(24)]),
        _ => (r.u8(), vec![0; r.index(24)]),
    }
}

/// An ICMP error about a packet that came to the agent, by a flow that lives or not.
fn error(r: &mut Random, world: &World, v4: bool, agent: IpAddr) -> Vec<u8> {
    let live: Vec<&Tuple> = if r.once_in(4) {
        Vec::new()
    } else {
        world.flows.keys().filter(|t| t.source == agent).take(50).collect()
    };
    let other = r.address(v4);
    let inner = if live.is_empty() {
        ip(MAC, other, agent, 17, &udp(1, 2, b""))
    } else {
        let t = **r.pick(&live.iter().collect::<Vec<_>>());
        let (number, payload) = match t.protocol {
            6 => (6, tcp(t.destination_port, t.source_port, ACK)),
            17 => (17, udp(t.destination_port, t.source_port, b"x")),
            1 if v4 => (1, icmp(0, 0, t.source_port)),
            1 => (58, icmp(129, 0, t.source_port)),
            number => (number, vec![0; 8]),
        };
        ip(MAC, t.destination, t.source, number, &payload)
    };
    let to = match &inner[14..] {
        packet if v4 => IpAddr::from(<[u8; 4]>::try_from(&packet[12..16]).expect("address")),
        packet => IpAddr::from(<[u8; 16]>::try_from(&packet[8..24]).expect("address")),
    };
    let to = if r.once_in(16) { other } else { to };
    let (kinds, number) = if v4 { ([3, 11, 12], 1) } else { ([1, 2, 3], 58) };
    let mut message = icmp(r.pick(&kinds), 0, 0)[..8].to_vec();
    message.extend(&inner[14..]);
    let from = if r.once_in(8) { source(1 + u32::from(r.u8() % 7), v4) } else { agent };
    ip(MAC, from, to, number, &message)
}

/// ARP, neighbour discovery, membership reports.
fn local_message(r: &mut Random, mac: [u8; 6], v4: bool, agent: IpAddr) -> Vec<u8> {
    let claimed =
        if r.once_in(3) { r.pick(&[gateway(v4), source(1, v4), source(ANY_MAC, v4)]) } else { agent };
    let inner = if r.once_in(8) { OTHER_MAC } else { mac };
    match (claimed, agent) {
        (IpAddr::V4(claimed), _) => {
            let sender = if r.once_in(8) { [0; 4] } else { claimed.octets() };
            let mut frame = arp(mac, inner, sender, [172, 16, 0, 250]);
            frame[21] = r.pick(&[1, 1, 2, 2, 3]);
            frame
        }
        (IpAddr::V6(_), _) if r.once_in(5) => {
            let mut bytes = vec![58, 0, 5, 2, 0, 0, 1, 0, r.pick(&[130, 131, 132, 143]), 0, 0, 0];
            bytes.extend([0; 20]);
            ip(mac, agent, "ff02::16".parse().expect("address"), 0, &bytes)
        }
        (IpAddr::V6(_), _) => {
            let all = "ff02::1".parse().expect("address");
            let from = if r.once_in(6) { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { agent };
            let mut frame =
                neighbour(mac, from, all, r.pick(&[133, 134, 135, 136, 136, 137]), claimed, inner);
            for _ in 0..r.below(3) {
                frame.extend([r.pick(&[1, 14, 200]), r.pick(&[1, 1, 1, 2, 0]), 2, 0, 0, 0, 0, 1]);
            }
            let length = u16::try_from(frame.len() - 54).expect("length");
            frame[18..20].copy_from_slice(&length.to_be_bytes());
            with_hops(frame, if r.once_in(16) { 64 } else { 255 })
        }
    }
}

/// IPv6 extension headers before `rest`.
fn extended(r: &mut Random, mut next: u8, mut rest: Vec<u8>) -> (u8, Vec<u8>) {
    for _ in 0..r.below(4) {
        let units = r.pick(&[0, 0, 0, 1, 7, 8]);
        let mut header = vec![next, units];
        header.resize(8 * (usize::from(units) + 1), 0);
        header.extend(rest);
        (next, rest) = (r.pick(&[60, 60, 60, 0, 43, 44, 51]), header);
    }
    (next, rest)
}

/// A segment of a flow that lives.
fn again(r: &mut Random, world: &World) -> Option<Vec<u8>> {
    let tuple = world.flows.keys().nth(r.index(world.flows.len().max(1)))?;
    let flags = r.pick(&[SYN, SYN, ACK, ACK, FIN | ACK, RST]);
    let body = tcp(tuple.source_port, tuple.destination_port, flags);
    (tuple.protocol == 6).then(|| ip(MAC, tuple.source, tuple.destination, 6, &body))
}

fn frame(r: &mut Random, world: &World) -> Vec<u8> {
    if r.once_in(16)
        && let Some(frame) = again(r, world)
    {
        return frame;
    }
    let v4 = r.below(2) == 0;
    let number = 1 + u32::try_from(r.below(u64::from(SHARED))).expect("agent");
    let agent = address(r, number, v4);
    let mac = if r.once_in(16) { r.pick(&[OTHER_MAC, [3, 0, 0, 0, 0, 1], [0; 6]]) } else { MAC };
    let mut frame = match r.below(10) {
        0 => local_message(r, mac, v4, agent),
        1 => error(r, world, v4, agent),
        _ => {
            let from = 1024 + r.u16() % 512;
            let (mut number, mut payload) = body(r, v4, from);
            if !v4 && r.once_in(6) {
                (number, payload) = extended(r, number, payload);
            }
            let to = match r.below(16) {
                0 => gateway(v4),
                1 => agent,
                _ => r.address(v4),
            };
            let from = match r.below(24) {
                0 if v4 => r
                    .pick(&["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"])
                    .parse()
                    .expect("address"),
                0 => r.pick(&["::", "::1", "ff02::1", "::ffff:10.0.0.1"]).parse().expect("address"),
                1 => gateway(v4),
                _ => agent,
            };
            ip(mac, from, to, number, &payload)
        }
    };
    if v4 && r.once_in(16) && frame.len() > 22 {
        // Options, fragments, reserved bits.
        match r.below(3) {
            0 => frame[14] = 0x40 | (r.u8() & 15),
            1 => frame[20] = r.u8(),
            _ => frame[21] = r.u8(),
        }
    }
    if r.once_in(6) {
        for _ in 0..1 + r.below(3) {
            let tci = if r.once_in(6) { r.u16() } else { r.pick(&[0, 0xE000, 0x1000]) };
            frame = tagged(&frame, r.pick(&[0x8100, 0x88A8]), tci);
        }
    }
    damage(r, &mut frame);
    frame
}

/// Half of the frames get changed bytes, some are cut or get bytes behind their end.
fn damage(r: &mut Random, frame: &mut Vec<u8>) {
    if r.once_in(2) {
        for _ in 0..1 + r.below(3) {
            let at = r.index(frame.len().min(110));
            // The destination MAC says nothing here.
            frame[at] = if r.once_in(2) { r.u8() } else { frame[at] ^ (1 << r.below(8)) };
        }
    }
    if r.once_in(12) {
        let left = 15 + r.index(frame.len() - 14);
        frame.truncate(left);
    }
    if r.once_in(4) {
        for _ in 0..r.below(40) {
            let byte = r.u8();
            frame.push(byte);
        }
    }
}

/// Whether the kernel makes a socket buffer of it.
fn is_long_enough(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.len() >= 14 + 20,
        Some([0x86, 0xDD]) => frame.len() >= 14 + 40,
        _ => frame.len() > 14,
    }
}

// === the comparison ===

fn agents() -> Vec<Agent> {
    (1..=AGENTS)
        .map(|a| {
            let mac = if a == ANY_MAC { "any-mac" } else { "02:00:00:00:00:01" };
            let own = [true, false].map(|v4| format!("lo={},{mac}", source(a, v4)));
            let nets = [true, false].into_iter().flat_map(prefixes).filter(|(of, _)| *of == a);
            let sources: Vec<_> =
                own.into_iter().chain(nets.map(|(_, net)| format!("lo={net},{mac}"))).collect();
            let team = Some(random::team(a).parse().expect("team"));
            Agent { team, ..agent(a, &sources.iter().map(String::as_str).collect::<Vec<_>>()) }
        })
        .collect()
}

fn world() -> World {
    let bound = (1..=AGENTS).flat_map(|a| {
        [true, false]
            .map(|v4| (IpNet::from(source(a, v4)), Bound { agent: a, mac: (a != ANY_MAC).then_some(MAC) }))
    });
    let nets = [true, false].into_iter().flat_map(prefixes);
    let nets = nets.map(|(agent, net)| (net, Bound { agent, mac: Some(MAC) }));
    let shared =
        [true, false].map(|v4| (IpNet::from(source(SHARED, v4)), Bound { agent: 0, mac: Some(MAC) }));
    World {
        bound: bound.chain(nets).chain(shared).collect(),
        gateway: [gateway(true), gateway(false)].into(),
        proxy_ports: [PROXY_PORT, PROXY_TLS_PORT],
        tables: KernelTables::default(),
        quarantined: BTreeSet::from([QUARANTINED]),
        vouched: true,
        flows: BTreeMap::new(),
        past: BTreeSet::new(),
        asked: None,
        again: None,
    }
}

/// Whether the run goes on: a number of generations, or a time.
fn goes_on(begun: Instant, generation: u64) -> bool {
    match std::env::var("CLAWGRESS_FUZZ_MINUTES") {
        Ok(minutes) => begun.elapsed() < Duration::from_secs(60 * minutes.parse::<u64>().expect("minutes")),
        Err(_) => generation <= GENERATIONS,
    }
}

fn load(world: &World) -> Kernel {
    let mut kernel = Kernel::load();
    for v4 in [true, false] {
        kernel.own(gateway(v4));
    }
    kernel.quarantine.set(&world.quarantined).expect("quarantine");
    let at = [true, false].map(|v4| format!("lo={},02:00:00:00:00:01", source(SHARED, v4)));
    kernel.shared = vec![shared::shared("nat", &[&at[0], &at[1]])];
    kernel
}

/// That the tables say what the evaluator says, at random.
fn check_meaning(r: &mut Random, set: &PolicySet, tables: &KernelTables, agents: &[Agent], what: &str) {
    for _ in 0..PACKETS / ANSWER_EACH {
        let asked = r.pick(&agents[..agents.len() - 1]);
        let v4 = r.below(2) == 0;
        let (ip, transport, port) = (r.address(v4), r.pick(&Transport::ALL), r.u16() % 64);
        let want = expected(set, &asked, ip, transport, port).0;
        let says = tables.lookup(asked.index, ip, transport, port).0;
        assert_eq!(says, want, "{what}: {} to {ip} {transport:?} {port}", asked.id);
    }
}

/// The tables of a generation: random ones, or a policy's.
fn next_tables(
    r: &mut Random,
    generation: u64,
    agents: &[Agent],
    what: &mut String,
) -> (KernelTables, Option<PolicySet>) {
    if !generation.is_multiple_of(POLICY_EACH) {
        return (r.tables(), None);
    }
    let bundle = r.policy();
    what.push_str(&format!("\n{}\n{:?}", bundle.text, bundle.sets.networks));
    let set = PolicySet::parse(&bundle);
    let set = set.unwrap_or_else(|e| panic!("{what}: {:#?}", e.problems));
    let mut tables = compile(&set, &agents[..agents.len() - 1]).expect("tables");
    tables.agents.remove(&CLASSLESS);
    check_meaning(r, &set, &tables, agents, what);
    (tables, Some(set))
}

/// How often each outcome was met.
type Seen = BTreeMap<String, u64>;

/// That what the last packet asked of the tables is what the evaluator says.
fn evaluate(set: &PolicySet, agents: &[Agent], world: &World, what: &str) -> bool {
    let Some((index, tuple, says)) = world.asked else { return false };
    let asked = agents.iter().find(|agent| agent.index == index).expect("an agent");
    let transport = Transport::ALL.into_iter().find(|t| t.number() == tuple.protocol).expect("named");
    let want = expected(set, asked, tuple.destination, transport, tuple.destination_port).0;
    assert_eq!(says, want, "{what}");
    true
}

/// The record of a flow.
fn record(tuple: &Tuple) -> FlowKey {
    FlowKey {
        source: user::address(tuple.source),
        destination: user::address(tuple.destination),
        source_port_be: tuple.source_port.to_be(),
        destination_port_be: tuple.destination_port.to_be(),
        ifindex: LOOPBACK,
        protocol: tuple.protocol,
        pad: [0; 3],
    }
}

/// That an answer passes, and what answers nothing does not.
fn answer(kernel: &Kernel, world: &World, what: &str) -> u64 {
    let Some((_, tuple, KernelAction::Direct)) = world.asked else { return 0 };
    let (from, to) = (tuple.destination_port, tuple.source_port);
    // Damaged frames go anywhere, where nobody answers from.
    let is_usual = match tuple.destination {
        IpAddr::V4(v4) => matches!(v4.octets(), [10..=12, ..]),
        IpAddr::V6(v6) => v6.octets()[0] == 0x20,
    };
    if !is_usual || from >= 64 {
        return 0;
    }
    let body = |from| match tuple.protocol {
        6 => Some(tcp(from, to, ACK)),
        17 => Some(udp(from, to, b"answer")),
        _ => None,
    };
    let unknown = Did::Dropped(DropReason::FlowUnknown);
    let is_known = world.flows.contains_key(&tuple);
    let want = match (is_known, world.vouched) {
        (true, true) => Did::Marked(0),
        (true, false) => Did::Dropped(DropReason::LeaseLapsed),
        (false, _) => unknown,
    };
    let wanted = [(from, want), (from + 1_000, unknown)];
    let mut answers = 0;
    for (from, want) in wanted {
        let Some(body) = body(from) else { return 0 };
        let frame = ip(MAC, tuple.destination, tuple.source, tuple.protocol, &body);
        assert_eq!(kernel.did(program::TC_OUT, &frame, want), want, "egress, {what}: {frame:02x?}");
        answers += 1;
    }
    answers
}

/// Packets of one generation through model and programs; through the evaluator some, if there is a policy. How many
/// those were, and the answers to some.
fn compare(
    r: &mut Random,
    world: &mut World,
    kernel: &mut Kernel,
    (seen, what): (&mut Seen, &str),
    policy: Option<(&PolicySet, &[Agent])>,
) -> (u64, u64) {
    let (mut evaluated, mut answered) = (0, 0);
    for n in 0..PACKETS {
        if n.is_multiple_of(VOUCH_EACH) {
            world.vouched = r.below(5) != 0;
            kernel.vouch(world.vouched);
        }
        let frame = frame(r, world);
        let (early, late) = model::run(world, &frame);
        let what = || format!("{what}, packet {n}: {frame:02x?}");
        if let Some(tuple) = &world.again {
            // As if it were sent when a tuple may begin another flow.
            kernel.age(&record(tuple), bound::REUSE_NS);
        }
        if let Some((set, agents)) = policy {
            evaluated += u64::from(evaluate(set, agents, world, &what()));
        }
        assert_eq!(kernel.did(program::XDP, &frame, early), early, "xdp, {}", what());
        *seen.entry(format!("{early:?}")).or_default() += 1;
        if is_long_enough(&frame) {
            assert_eq!(kernel.did(program::TC_IN, &frame, late), late, "tc, {}", what());
            *seen.entry(format!("{late:?}")).or_default() += 1;
        } else {
            assert!(matches!(late, Did::Dropped(_)), "{}", what());
        }
        if n.is_multiple_of(ANSWER_EACH) {
            answered += answer(kernel, world, &what());
        }
    }
    (evaluated, answered)
}

/// That a flow is held to the limits of its verdict.
fn check_limits(tables: &KernelTables, key: &FlowKey, flow: &Flow, what: &str) {
    let want = if flow.action == action::LOCAL {
        &[]
    } else {
        let transport = Transport::ALL.into_iter().find(|t| t.number() == key.protocol).expect("named");
        let port = if transport.has_ports() { u16::from_be(key.destination_port_be) } else { 0 };
        tables.lookup_limits(flow.agent, user::ip(key.destination), transport, port)
    };
    let held = tables.limits.get(usize::from(flow.limits)).map_or(&[][..], Vec::as_slice);
    assert_eq!(held, want, "{what}: {key:?} {flow:?}");
}

/// That frames were of every shape and policies of every kind, so that agreement means something.
fn check_coverage(seed: u64, seen: &Seen) {
    let dropped = [
        DropReason::Malformed,
        DropReason::EthertypeUnsupported,
        DropReason::Ipv4Options,
        DropReason::Fragment,
        DropReason::Ipv6Extension,
        DropReason::Ipv6Routing,
        DropReason::ProtocolUnsupported,
        DropReason::SourceSpoofed,
        DropReason::Anonymous,
        DropReason::PolicyDenied,
        DropReason::PolicyForbidden,
        DropReason::GatewayAddress,
        DropReason::FlowUnknown,
        DropReason::ListenerMissing,
        DropReason::IcmpUnsupported,
        DropReason::AgentQuarantined,
        DropReason::VlanUnsupported,
        DropReason::SourceMartian,
        DropReason::Land,
        DropReason::SourceMacGroup,
        DropReason::TcpFlags,
        DropReason::NeighbourMalformed,
        DropReason::RouterMessage,
        DropReason::MulticastListener,
        DropReason::IcmpPayload,
        DropReason::LeaseLapsed,
    ]
    .map(Did::Dropped);
    for did in [Did::Marked(mark::DIRECT), Did::Marked(mark::LOCAL)].into_iter().chain(dropped) {
        let times = seen.get(&format!("{did:?}")).copied().unwrap_or(0);
        assert!(times >= 20, "seed {seed}: {did:?} was met {times} times only");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_says_what_policy_says() {
    let seed = seed();
    let begun = Instant::now();
    let mut r = Random(seed);
    let (agents, mut world) = (agents(), world());
    let mut kernel = load(&world);
    let (mut seen, mut generation, mut held) = (Seen::new(), 0, 0);
    let (mut evaluated, mut answered) = (0, 0);
    while goes_on(begun, generation + 1) {
        generation += 1;
        // Flows that a test takes away still count in their agents' shares.
        if generation.is_multiple_of(GENERATIONS) {
            kernel.check_counts();
            kernel = load(&world);
        }
        let mut what = format!("seed {seed}, generation {generation}");
        let (tables, set) = next_tables(&mut r, generation, &agents, &mut what);
        world.tables = tables;
        world.flows.clear();
        world.past.clear();
        kernel.apply(generation, Some(world.tables.clone()), agents.clone()).await;
        let policy = set.as_ref().map(|set| (set, agents.as_slice()));
        let (by_policy, answers) = compare(&mut r, &mut world, &mut kernel, (&mut seen, &what), policy);
        evaluated += by_policy;
        answered += answers;
        let keys: Vec<Plain<FlowKey>> = kernel.flows.keys().collect::<Result<_, _>>().expect("flows");
        assert_eq!(keys.len(), world.flows.len(), "{what}: flows");
        for key in keys {
            let flow = kernel.flow(&key.0).expect("flow");
            check_limits(&world.tables, &key.0, &flow, &what);
            held += u64::from(flow.limits != 0);
            kernel.flows.remove(&key).expect("remove");
        }
    }
    kernel.check_counts();
    println!("{} packets in {:?}: {seen:#?}", generation * PACKETS, begun.elapsed());
    println!("{evaluated} of them through the evaluator, {answered} answers");
    check_coverage(seed, &seen);
    assert!(evaluated >= EVALUATED_LEAST && answered >= 500, "seed {seed}: {evaluated}, {answered}");
    assert!(held >= 100, "seed {seed}: {held} flows were held to limits");
}
