//! Cost of the programs with 1 to a million prefixes loaded, and with ten thousand agents: ns a packet to one
//! destination, where everything it needs is in the cache, and to random ones, where little is; time to
//! build and to put in place a generation, and its size.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clawgress_identity::Source;
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables, VerdictCell};
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Value, json};

use super::super::epoch::Turn;
use super::super::lease;
use super::super::object::{self, Objects, program};
use super::super::tables::{Plan, Tables};
use super::{AGENT, LOOPBACK, MAC, UDP, frame, generation, run};

/// Prefixes and agents of each case.
const SIZES: [(u32, u32); 5] = [(1, 1), (1_000, 1), (100_000, 1), (1_000_000, 1), (1_000_000, 10_000)];
/// Runs to one destination, and packets in each.
const RUNS: usize = 7;
const PACKETS: u32 = 100_000;
/// Packets to random destinations, each measured by itself. A run of one packet has the test run's own cost in
/// it, for every size alike.
const RANDOM: usize = 2_000;
/// Classes of destinations: one is forwarded, one denied.
const DIRECT: u32 = 1;
const DENIED: u32 = 2;
const SEED: u64 = 0x5eed_0003;

/// Measures all sizes. Needs root.
///
/// # Errors
/// If the programs can't be loaded or run.
pub fn measure() -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut sizes = Vec::new();
    for (prefixes, agents) in SIZES {
        sizes.push(runtime.block_on(size(prefixes, agents))?);
    }
    Ok(json!({ "sizes": sizes }))
}

async fn size(prefixes: u32, agents: u32) -> Result<Value> {
    let networks = networks(prefixes)?;
    let mut document = generation()?;
    document.tables = Some(tables(&networks, agents));
    let one = document.agents.pop().context("the bench has an agent")?;
    for n in 0..agents {
        let mut agent = one.clone();
        agent.index = 1 + n;
        agent.id = format!("bench{n}").parse()?;
        agent.sources = vec![source(n)?];
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
    let cases = tokio::task::block_in_place(|| cases(&objects, &networks))?;
    Ok(json!({
        "prefixes": prefixes,
        "agents": agents,
        "mib": plan.pages() / 1024,
        "build_ms": u64::try_from(built.as_millis())?,
        "swap_ms": u64::try_from(swapped.as_millis())?,
        "ns": cases,
    }))
}

fn cases(objects: &Objects, networks: &[Ipv4Net]) -> Result<Value> {
    let of =
        |class: u32| networks.iter().zip(1_u32..).find(|(_, n)| class_of(*n) == class).map(|(net, _)| *net);
    let direct = of(DIRECT).context("a network is direct")?.addr();
    // Outside every network if there is none in this class: no permit, so denied as well.
    let denied = of(DENIED).map_or(Ipv4Addr::new(9, 9, 9, 9), |net| net.addr());
    let mut results = serde_json::Map::new();
    for (name, which, destination) in [
        ("xdp_drop", program::XDP, denied),
        ("xdp_pass", program::XDP, direct),
        ("tc_direct", program::TC_IN, direct),
    ] {
        let frame = frame(MAC, AGENT, destination, UDP);
        let mut ns = Vec::with_capacity(RUNS);
        // The first warms caches, and uses up the refusals that are answered.
        for round in 0..=RUNS {
            let (_, each) = run(objects, which, &frame, PACKETS)?;
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
        let host = u32::try_from(next(&mut random) & u64::from(net.hostmask().to_bits()))?;
        let destination = Ipv4Addr::from_bits(net.addr().to_bits() | host);
        ns.push(run(objects, program::XDP, &frame(MAC, AGENT, destination, UDP), 1)?.1);
    }
    results.insert("xdp_random".to_owned(), spread(ns));
    Ok(Value::Object(results))
}

fn spread(mut ns: Vec<u64>) -> Value {
    ns.sort_unstable();
    let at = |n: usize| ns.get(n).copied().unwrap_or(0);
    json!({ "min": at(0), "median": at(ns.len() / 2), "max": at(ns.len().saturating_sub(1)) })
}

/// Random networks of /14 to /32, most of them /24, as routing tables have them; none twice.
fn networks(count: u32) -> Result<Vec<Ipv4Net>> {
    let mut random = SEED;
    let mut found = std::collections::BTreeSet::new();
    while found.len() < count as usize {
        let bits = u32::try_from(next(&mut random) >> 32)?;
        let length = match next(&mut random) % 10 {
            0 => 14 + u8::try_from(next(&mut random) % 10)?,
            1 => 25 + u8::try_from(next(&mut random) % 8)?,
            _ => 24,
        };
        // Not the agents' own.
        if bits >> 24 != 10 {
            found.insert(Ipv4Net::new(Ipv4Addr::from_bits(bits), length)?.trunc());
        }
    }
    Ok(found.into_iter().collect())
}

fn class_of(number: u32) -> u32 {
    if number % 2 == 1 { DIRECT } else { DENIED }
}

fn tables(networks: &[Ipv4Net], agents: u32) -> KernelTables {
    let cell = |agent_class| VerdictCell {
        agent_class,
        destination_class: DIRECT,
        transport: Transport::Udp,
        port_class: 1,
        action: KernelAction::Direct,
        policies: 0,
        limits: 0,
        never_direct: false,
    };
    // A hundred classes of agents, where there are so many.
    let classes = agents.min(100);
    KernelTables {
        agents: (1..=agents).map(|n| (n, 1 + n % classes)).collect(),
        destinations: networks.iter().zip(1..).map(|(net, n)| (IpNet::V4(*net), class_of(n))).collect(),
        ports: vec![(0, 0), (443, 1), (444, 0)],
        verdicts: (1..=classes).map(cell).collect(),
        policies: vec![Vec::new()],
        limiters: Vec::new(),
        limits: Vec::new(),
    }
}

/// The first agent is the one whose packets are measured; the others are its neighbours.
fn source(n: u32) -> Result<Source> {
    let address = Ipv4Addr::from_bits(AGENT.to_bits() + n);
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
