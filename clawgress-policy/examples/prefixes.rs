//! Measures what a policy over many prefixes takes: reading the documents, parsing, compiling.
//!
//! `cargo run --release -p clawgress-policy --example prefixes -- 1000000`
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement for people")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use clawgress_identity::{Agent, AgentState};
use clawgress_policy::{
    Geo, NamedSets, PolicyBundle, PolicyInForce, PolicyInForceRef, PolicySet, Surroundings, Transport, kernel,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const TEXT: &str = r#"
    @id("feed") forbid (principal, action in [Action::"connect", Action::"direct"], resource in NetworkSet::"feed");
    @id("web") permit (principal, action == Action::"connect", resource) when { [80, 443].contains(context.port) };
    @id("land") permit (principal in Team::"ops", action == Action::"connect", resource in Country::"DE")
    when { context.hour >= 9 && context.hour < 17 };
"#;

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    println!("{what:<34} {:>8.0} ms", begun.elapsed().as_secs_f64() * 1_000.0);
    done
}

/// Scattered prefixes, one in five of IPv6, none next to another of its own kind.
fn scattered(count: u32, salt: u32) -> Vec<IpNet> {
    let spread = |n: u32| n.wrapping_mul(0x9e37_79b1) ^ salt;
    (0..count)
        .map(|n| match n % 5 {
            0 => {
                let bits = 0x2a << 120 | u128::from(spread(n)) << 88 | u128::from(salt) << 80;
                Ipv6Net::new(Ipv6Addr::from_bits(bits), 48).unwrap().trunc().into()
            }
            _ => Ipv4Net::new(Ipv4Addr::from_bits(spread(n)), 32 - (n % 9 % 8) as u8).unwrap().trunc().into(),
        })
        .collect()
}

fn main() {
    let count: u32 = std::env::args().nth(1).map_or(1_000_000, |n| n.parse().unwrap());
    let agents: Vec<Agent> = (1..=1_000)
        .map(|index| Agent {
            id: format!("a{index}").parse().unwrap(),
            index,
            team: Some(if index % 2 == 0 { "ops" } else { "dev" }.to_owned()),
            project: None,
            environment: None,
            labels: BTreeMap::new(),
            state: AgentState::Active,
            sources: Vec::new(),
        })
        .collect();
    let located = count / 10;
    let networks = BTreeMap::from([("feed".to_owned(), scattered(count - located, 0).into_iter().collect())]);
    let countries = BTreeMap::from([("DE".to_owned(), scattered(located, 0x5a5a))]);
    let geo = Geo { asns: None, countries: Some(countries) };
    let surroundings = Surroundings { geo, ..Surroundings::default() };
    let bundle = PolicyBundle { text: TEXT.to_owned(), sets: NamedSets { networks, ..NamedSets::default() } };

    let written = PolicyInForceRef { text: TEXT, sets: &bundle.sets, surroundings: &surroundings };
    let json = timed("write the snapshot", || serde_json::to_vec(&written).unwrap());
    println!("{:<34} {:>8} KiB", "  its size", json.len() >> 10);
    let read: PolicyInForce = timed("read the snapshot", || serde_json::from_slice(&json).unwrap());
    let set = timed("parse", || PolicySet::parse_in(&read.text, &read.sets, &read.surroundings).unwrap());
    let set = set.at(0);
    let tables = timed("compile for 1,000 agents", || kernel::compile(&set, &agents).unwrap());
    println!("{:<34} {:>8}", "  prefixes in the tables", tables.destinations.len());
    let json = timed("write the tables", || serde_json::to_vec(&tables).unwrap());
    println!("{:<34} {:>8} KiB", "  their size", json.len() >> 10);
    let agent = agents.first().unwrap();
    let reach = |n: u32| {
        set.reach(agent, Ipv4Addr::from_bits(n.wrapping_mul(0x9e37_79b1)).into(), 443, Transport::Tcp)
    };
    let begun = Instant::now();
    let allowed = (0..10_000).filter(|n| reach(*n).is_allow()).count();
    let ns = begun.elapsed().as_nanos() / 10_000;
    println!("{:<34} {ns:>8} ns ({allowed} of 10000 allowed)", "decide on an address");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default().trim();
    println!("{:<34} {peak:>11}", "peak of memory, all of the above");
}
