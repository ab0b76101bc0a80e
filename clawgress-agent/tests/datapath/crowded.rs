//! Tables of many prefixes inside one another, of destinations and of sources: what the programs find in them is the
//! longest prefix, by test run, however deep the walk to it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clawgress_agent::datapath::bpf::Plain;
use clawgress_ebpf_common::{Bind, CgroupKey, DropReason, bound, mark};
use clawgress_identity::Agent;
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables, VerdictCell};
use ipnet::IpNet;

use crate::frames::{ip, udp};
use crate::kernel::{Did, Kernel, agent};
use crate::random::{Random, seed};
use crate::verdicts::{self, MAC};

/// Prefixes of destinations, and addresses of sources.
const DESTINATIONS: usize = 12_000;
const SOURCES: usize = 1_200;
/// Addresses tried.
const TRIED: usize = 2_500;
/// Classes of destinations: what goes direct; the others are denied, and 0 is what no prefix holds.
const DIRECT: u32 = 1;
const CLASSES: u64 = 3;
/// Agents that the sources belong to.
const AGENTS: u64 = 5;

/// An address of few distinct bytes at few places, so that prefixes share their beginnings for any number of bits.
fn address(random: &mut Random, is_v6: bool) -> u128 {
    let (top, last) = if is_v6 { (0x20, 16) } else { (100, 4) };
    let mut bytes = [0; 16];
    // How far it is like the others.
    let alike = random.index(last);
    for (n, byte) in bytes.iter_mut().enumerate().take(last) {
        *byte = match n {
            0 => top,
            n if n <= alike => 7,
            _ => u8::try_from(random.below(256)).expect("a byte"),
        };
    }
    u128::from_be_bytes(bytes)
}

fn network(bits: u128, length: u8, is_v6: bool) -> IpNet {
    IpNet::new(host(bits, is_v6), length).expect("length").trunc()
}

fn host(bits: u128, is_v6: bool) -> IpAddr {
    let high = u32::try_from(bits >> 96).expect("32 bits");
    if is_v6 { Ipv6Addr::from_bits(bits).into() } else { Ipv4Addr::from_bits(high).into() }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The value of the longest prefix that holds the address.
fn longest(all: &BTreeMap<IpNet, u32>, address: IpAddr) -> Option<u32> {
    let max: u8 = if address.is_ipv4() { 32 } else { 128 };
    (0..=max).rev().find_map(|length| all.get(&IpNet::new(address, length).expect("length").trunc()).copied())
}

/// Addresses at the ends of prefixes, next to these, and anywhere.
fn tried(random: &mut Random, networks: &[IpNet], is_v6: bool) -> Vec<IpAddr> {
    let one = if is_v6 { 1 } else { 1 << 96 };
    let at = |random: &mut Random, n: usize| {
        let net = networks[random.index(networks.len())];
        match n % 5 {
            0 => bits(net.addr()),
            1 => bits(net.broadcast()),
            2 => bits(net.addr()).wrapping_sub(one),
            3 => bits(net.broadcast()).wrapping_add(one),
            _ => address(random, is_v6),
        }
    };
    (0..TRIED).map(|n| host(at(random, n), is_v6)).collect()
}

fn tables(destinations: &BTreeMap<IpNet, u32>) -> KernelTables {
    KernelTables {
        agents: (1..=AGENTS).map(|n| (u32::try_from(n).expect("few"), 1)).collect(),
        destinations: destinations.iter().map(|(net, class)| (*net, *class)).collect(),
        ports: vec![(0, 0), (443, 1), (444, 0)],
        verdicts: vec![VerdictCell {
            agent_class: 1,
            destination_class: DIRECT,
            transport: Transport::Udp,
            port_class: 1,
            action: KernelAction::Direct,
            policies: 0,
            limits: 0,
            never_direct: false,
        }],
        policies: vec![Vec::new()],
        limiters: Vec::new(),
        limits: Vec::new(),
    }
}

/// Sources of addresses and prefixes inside one another, by agent.
fn sources(random: &mut Random, is_v6: bool) -> BTreeMap<IpNet, u32> {
    let max: u8 = if is_v6 { 128 } else { 32 };
    let mut all = BTreeMap::new();
    while all.len() < SOURCES {
        let length = if random.once_in(4) { 9 + u8::try_from(random.below(24)).expect("few") } else { max };
        // Not where destinations are: a source is nobody's destination here.
        let own = if is_v6 { 0xFD << 120 } else { 10 << 120 };
        let bits = address(random, is_v6) & u128::MAX >> 8 | own;
        all.insert(network(bits, length, is_v6), 1 + u32::try_from(random.below(AGENTS)).expect("few"));
    }
    all
}

fn agents(sources: &BTreeMap<IpNet, u32>) -> Vec<Agent> {
    (1..=AGENTS)
        .map(|n| {
            let n = u32::try_from(n).expect("few");
            let own: Vec<String> = sources
                .iter()
                .filter(|(_, owner)| **owner == n)
                .map(|(net, _)| format!("lo={net},02:00:00:00:00:01"))
                .collect();
            agent(n, &own.iter().map(String::as_str).collect::<Vec<_>>())
        })
        .collect()
}

#[track_caller]
fn check(kernel: &Kernel, source: IpAddr, destination: IpAddr, want: Did, what: &str) {
    let frame = ip(MAC, source, destination, 17, &udp(40_000, 443, b"x"));
    let passed = matches!(want, Did::Marked(_));
    let xdp = kernel.xdp(&frame);
    assert_eq!(xdp, if passed { Did::Passed } else { want }, "XDP, {what}: {source} to {destination}");
    if passed {
        assert_eq!(kernel.ingress(&frame), want, "TC, {what}: {source} to {destination}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_prefix_is_found_however_many_there_are() {
    let mut random = Random(seed());
    let mut kernel = Kernel::load();
    for (number, is_v6) in [(1, false), (2, true)] {
        let max: u64 = if is_v6 { 128 } else { 32 };
        let mut destinations = BTreeMap::new();
        while destinations.len() < DESTINATIONS {
            let length = u8::try_from(9 + random.below(max - 8)).expect("a length");
            let class = 1 + u32::try_from(random.below(CLASSES)).expect("few");
            destinations.insert(network(address(&mut random, is_v6), length, is_v6), class);
        }
        let sources = sources(&mut random, is_v6);
        kernel.apply(number, Some(tables(&destinations)), agents(&sources)).await;

        let source = sources.keys().next_back().expect("sources").addr();
        let networks: Vec<IpNet> = destinations.keys().copied().collect();
        let mut direct = 0;
        for destination in tried(&mut random, &networks, is_v6) {
            let is_direct = longest(&destinations, destination) == Some(DIRECT);
            direct += usize::from(is_direct);
            let want =
                if is_direct { Did::Marked(mark::DIRECT) } else { Did::Dropped(DropReason::PolicyDenied) };
            check(&kernel, source, destination, want, "destinations");
        }
        assert!(direct > TRIED / 10 && direct < TRIED, "{direct} of {TRIED} are direct");

        let destination = networks
            .iter()
            .find(|net| longest(&destinations, net.addr()) == Some(DIRECT) && net.addr() != source);
        let destination = destination.expect("one that is direct").addr();
        let networks: Vec<IpNet> = sources.keys().copied().collect();
        let mut bound = 0;
        for source in tried(&mut random, &networks, is_v6) {
            let is_bound = longest(&sources, source).is_some();
            bound += usize::from(is_bound);
            let want = if is_bound { Did::Marked(mark::DIRECT) } else { Did::Dropped(DropReason::Anonymous) };
            check(&kernel, source, destination, want, "sources");
        }
        assert!(bound > TRIED / 10 && bound < TRIED, "{bound} of {TRIED} are bound");
    }
}

/// More workloads and own addresses than there is room for are refused, and what is there goes on.
#[tokio::test(flavor = "multi_thread")]
async fn full_tables_refuse_and_go_on() {
    let mut kernel = verdicts::ready().await;
    let [f, _] = verdicts::families();
    let direct = ip(MAC, f.agent, f.direct, 17, &udp(40_000, 443, b"x"));
    assert_eq!(kernel.ingress(&direct), Did::Marked(mark::DIRECT));

    kernel.tables.register(1, 1).expect("there is room");
    let bind = Plain(Bind { agent: 1, class: 1, mac: [0; 6], flags: 0 });
    let most = bound::CGROUPS_MAX / 2;
    for cgroup in 1..=most {
        for slot in 0..2 {
            let key = CgroupKey { cgroup: u64::from(cgroup), slot, pad: 0 };
            kernel.cgroups.insert(Plain(key), bind, 0).expect("the map has room for both slots");
        }
    }
    let refused = kernel.tables.register(u64::from(most) + 1, 1).expect_err("one too many").to_string();
    assert_eq!(refused, format!("{most} workloads are open already; close some"));
    kernel.tables.forget(1).expect("closed");
    kernel.tables.register(u64::from(most) + 1, 1).expect("one was closed");

    let addresses = |n: u32| (0..n).map(|n| IpAddr::from(Ipv4Addr::from_bits(0x0B00_0000 + n)));
    // Both families' addresses of the gateway are there already.
    let refused = kernel.own_all(addresses(bound::SELF_MAX - 1)).expect_err("one too many").to_string();
    let wanted =
        format!("has {} addresses, and the kernel plane holds {}", bound::SELF_MAX + 1, bound::SELF_MAX);
    assert!(refused.contains(&wanted), "{refused}");
    let own = ip(MAC, f.agent, f.gateway, 17, &udp(40_000, 443, b"x"));
    assert_eq!(kernel.ingress(&own), Did::Dropped(DropReason::GatewayAddress), "as before");
    kernel.own_all(addresses(bound::SELF_MAX - 2)).expect("as many as it holds");
    let last = ip(
        MAC,
        f.agent,
        addresses(bound::SELF_MAX - 2).next_back().expect("one"),
        17,
        &udp(40_000, 443, b"x"),
    );
    assert_eq!(kernel.ingress(&last), Did::Dropped(DropReason::GatewayAddress), "the last");
    assert_eq!(kernel.ingress(&direct), Did::Marked(mark::DIRECT), "all the same");
}
