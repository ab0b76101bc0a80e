//! Cost of the programs with 1 to a million prefixes of either family loaded, and with ten thousand agents: ns a packet
//! to one destination, where everything it needs is in the cache, and to random ones, where little is; time to
//! build and to put in place a generation, and its size.
//!
//! What is steered comes as far as to its listener: a test run gives no packet to a socket, so the program drops it
//! then, and counts that.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::AsFd as _;
use std::time::Instant;

use anyhow::{Context as _, Result};
use aya::maps::{MapData, SockMap};
use clawgress_ebpf_common::{listener, map};
use clawgress_identity::Source;
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables, VerdictCell};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Value, json};

use super::super::epoch::Turn;
use super::super::lease;
use super::super::object::{self, Objects, program};
use super::super::tables::{Plan, Tables};
use super::{AGENT, LOOPBACK, MAC, TCP, UDP, frame, generation, run};

/// Prefixes and agents of each case.
const SIZES: [(u32, u32); 5] = [(1, 1), (1_000, 1), (100_000, 1), (1_000_000, 1), (1_000_000, 10_000)];
/// The first agent's address over IPv6; the others follow.
const AGENT6: Ipv6Addr = Ipv6Addr::new(0xFD09, 0, 0, 0, 0, 0, 0, 2);
/// Runs to one destination, and packets in each.
const RUNS: usize = 7;
const PACKETS: u32 = 100_000;
/// Packets to random destinations, each measured by itself. A run of one packet has the test run's own cost in
/// it, for every size alike.
const RANDOM: usize = 2_000;
/// Classes of destinations: one is forwarded, one denied, one steered.
const DIRECT: u32 = 1;
const DENIED: u32 = 2;
const STEERED: u32 = 3;
const CLASSES: u32 = 3;
/// Bytes before the transport's header: of an Ethernet and an IPv4 or IPv6 header.
const L4_V4: usize = 14 + 20;
const L4_V6: usize = 14 + 40;
/// TCP: where its flags are, and those of a segment of data.
const FLAGS_V4: usize = L4_V4 + 13;
const FLAGS_V6: usize = L4_V6 + 13;
const ACK: u8 = 0x10;
/// Allocations of /32 that IPv6 networks lie in: about what the global routing table has.
const ALLOCATIONS: u64 = 40_000;
const SEED: u64 = 0x5eed_0003;

/// Measures all sizes. Needs root.
///
/// # Errors
/// If the programs can't be loaded or run.
pub fn measure() -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut sizes = Vec::new();
    for is_v6 in [false, true] {
        for (prefixes, agents) in SIZES {
            sizes.push(runtime.block_on(size(prefixes, agents, is_v6))?);
        }
    }
    Ok(json!({ "sizes": sizes }))
}

async fn size(prefixes: u32, agents: u32, is_v6: bool) -> Result<Value> {
    // At least one of each class.
    let networks = networks(prefixes.max(CLASSES), is_v6)?;
    let mut document = generation()?;
    document.tables = Some(tables(&networks, agents));
    let one = document.agents.pop().context("the bench has an agent")?;
    for n in 0..agents {
        let mut agent = one.clone();
        agent.index = 1 + n;
        agent.id = format!("bench{n}").parse()?;
        agent.sources = vec![source(n, is_v6)?];
        document.agents.push(agent);
    }
    let interfaces = BTreeMap::from([("lo".to_owned(), LOOPBACK)]);
    let mut objects = object::load(None)?;
    lease::hold(&objects, u64::MAX)?;
    let mut tables = Tables::take(&mut objects)?;
    let begun = Instant::now();
    let plan = Plan::new(&document, &interfaces)?;
    let built = begun.elapsed();
    let begun = Instant::now();
    tables.apply(&plan).await?;
    let swapped = begun.elapsed();
    // What is remembered costs the same whatever is loaded.
    Turn::of(&objects)?.forget()?;
    let listener = TcpListener::bind("[::1]:0")?;
    let mut slots: SockMap<MapData> = object::take(&mut objects, map::LISTENERS)?;
    for part in 0..listener::PARTS {
        slots.set(listener::slot(part, is_v6), &listener.as_fd(), 0)?;
    }
    let cases = tokio::task::block_in_place(|| cases(&objects, &networks))?;
    Ok(json!({
        "family": if is_v6 { "ipv6" } else { "ipv4" },
        "prefixes": networks.len(),
        "agents": agents,
        "mib": plan.pages() / 1024,
        "build_ms": u64::try_from(built.as_millis())?,
        "swap_ms": u64::try_from(swapped.as_millis())?,
        "ns": cases,
    }))
}

fn cases(objects: &Objects, networks: &[IpNet]) -> Result<Value> {
    let of = |class: u32| {
        let found = networks.iter().zip(1_u32..).find(|(_, n)| class_of(*n) == class);
        found.map(|(net, _)| net.addr()).context("a network of each class")
    };
    let steered = of(STEERED)?;
    // The flow's first packet, which the others come after.
    run(objects, program::TC_IN, &packet(steered, TCP), 1)?;
    let mut results = serde_json::Map::new();
    for (name, which, packet) in [
        ("xdp_drop", program::XDP, packet(of(DENIED)?, UDP)),
        ("xdp_pass", program::XDP, packet(of(DIRECT)?, UDP)),
        ("tc_direct", program::TC_IN, packet(of(DIRECT)?, UDP)),
        ("tc_steer", program::TC_IN, data(steered)),
    ] {
        let mut ns = Vec::with_capacity(RUNS);
        // The first warms caches, and uses up the refusals that are answered.
        for round in 0..=RUNS {
            let (_, each) = run(objects, which, &packet, PACKETS)?;
            if round > 0 {
                ns.push(each);
            }
        }
        results.insert(name.to_owned(), spread(ns));
    }
    let mut random = SEED;
    let mut ns = Vec::with_capacity(RANDOM);
    for _ in 0..RANDOM {
        let n = next(&mut random) % networks.len() as u64;
        let net = networks.get(usize::try_from(n)?).context("within the list")?;
        let host = next(&mut random);
        let destination = match net {
            IpNet::V4(net) => {
                let host = u32::try_from(host & u64::from(net.hostmask().to_bits()))?;
                Ipv4Addr::from_bits(net.addr().to_bits() | host).into()
            }
            IpNet::V6(net) => {
                Ipv6Addr::from_bits(net.addr().to_bits() | u128::from(host) & net.hostmask().to_bits()).into()
            }
        };
        ns.push(run(objects, program::XDP, &packet(destination, UDP), 1)?.1);
    }
    results.insert("xdp_random".to_owned(), spread(ns));
    Ok(Value::Object(results))
}

/// A minimal frame of the first agent's to port 443; TCP is a SYN.
fn packet(destination: IpAddr, protocol: u8) -> Vec<u8> {
    let destination = match destination {
        IpAddr::V4(destination) => return frame(MAC, AGENT, destination, protocol),
        IpAddr::V6(destination) => destination,
    };
    let v4 = frame(MAC, AGENT, Ipv4Addr::UNSPECIFIED, protocol);
    let length: u8 = if protocol == TCP { 20 } else { 8 };
    let mut frame: Vec<u8> = v4.iter().take(12).copied().collect();
    frame.extend([0x86, 0xDD, 0x60, 0, 0, 0, 0, length, protocol, 64]);
    frame.extend(AGENT6.octets());
    frame.extend(destination.octets());
    // The transport's header is the same over either.
    frame.extend(v4.iter().skip(L4_V4).take(length.into()));
    frame
}

/// A segment of the connection whose SYN [`packet`] gives.
fn data(destination: IpAddr) -> Vec<u8> {
    let mut frame = packet(destination, TCP);
    let at = if destination.is_ipv4() { FLAGS_V4 } else { FLAGS_V6 };
    if let Some(flags) = frame.get_mut(at) {
        *flags = ACK;
    }
    frame
}

fn spread(mut ns: Vec<u64>) -> Value {
    ns.sort_unstable();
    let at = |n: usize| ns.get(n).copied().unwrap_or(0);
    json!({ "min": at(0), "median": at(ns.len() / 2), "max": at(ns.len().saturating_sub(1)) })
}

/// Random networks, none twice: of /14 to /32, most of them /24, as routing tables have them; over IPv6 of /32 to /64,
/// most of them /48, in so many allocations as are announced.
fn networks(count: u32, is_v6: bool) -> Result<Vec<IpNet>> {
    let mut random = SEED;
    let mut found = std::collections::BTreeSet::new();
    while found.len() < count as usize {
        let bits = next(&mut random);
        let (kind, more) = (next(&mut random) % 10, u8::try_from(next(&mut random) % 16)?);
        if is_v6 {
            let length = match kind {
                0 => 32 + more,
                1 => 49 + more,
                _ => 48,
            };
            // Of so many registries' allocations, in global unicast space (RFC 4291 2.4: 2000::/3).
            let mut allocation = bits % ALLOCATIONS;
            let high = next(&mut allocation) >> 3 & !0xFFFF_FFFF | 1 << 61;
            let bits = u128::from(high | bits >> 32) << 64;
            found.insert(IpNet::V6(Ipv6Net::new(Ipv6Addr::from_bits(bits), length)?.trunc()));
            continue;
        }
        let length = match kind {
            0 => 14 + more % 10,
            1 => 25 + more % 8,
            _ => 24,
        };
        let bits = u32::try_from(bits >> 32)?;
        // Not the agents' own.
        if bits >> 24 != 10 {
            found.insert(IpNet::V4(Ipv4Net::new(Ipv4Addr::from_bits(bits), length)?.trunc()));
        }
    }
    Ok(found.into_iter().collect())
}

/// In turn, so that each has a third.
fn class_of(number: u32) -> u32 {
    1 + (number - 1) % CLASSES
}

fn tables(networks: &[IpNet], agents: u32) -> KernelTables {
    let cell = |agent_class, destination_class, transport, action| VerdictCell {
        agent_class,
        destination_class,
        transport,
        port_class: 1,
        action,
        policies: 0,
        limits: 0,
        never_direct: false,
    };
    // A hundred classes of agents, where there are so many.
    let classes = agents.min(100);
    KernelTables {
        agents: (1..=agents).map(|n| (n, 1 + n % classes)).collect(),
        destinations: networks.iter().zip(1..).map(|(net, n)| (*net, class_of(n))).collect(),
        ports: vec![(0, 0), (443, 1), (444, 0)],
        verdicts: (1..=classes)
            .flat_map(|agents| {
                [
                    cell(agents, DIRECT, Transport::Udp, KernelAction::Direct),
                    cell(agents, STEERED, Transport::Tcp, KernelAction::Steer),
                ]
            })
            .collect(),
        policies: vec![Vec::new()],
        limiters: Vec::new(),
        limits: Vec::new(),
    }
}

/// The first agent is the one whose packets are measured; the others are its neighbours.
fn source(n: u32, is_v6: bool) -> Result<Source> {
    let address: IpAddr = if is_v6 {
        Ipv6Addr::from_bits(AGENT6.to_bits() + u128::from(n)).into()
    } else {
        Ipv4Addr::from_bits(AGENT.to_bits() + n).into()
    };
    Ok(format!("lo={address},02:00:00:00:00:01").parse()?)
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
