//! A seeded generator, and what it makes: addresses, tables and policies.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clawgress_ebpf_common::DropReason;
use clawgress_policy::kernel::{KernelAction, KernelTables, LimitUnit, Limiter, VerdictCell};
use clawgress_policy::{NamedSets, PolicyBundle, Transport};
use ipnet::IpNet;

use crate::limits;

pub const AGENTS: u32 = 6;
/// Sets of networks that a policy may name.
const NETWORK_SETS: [&str; 2] = ["one", "two"];

/// The team of an agent.
pub fn team(agent: u32) -> String {
    format!("t{}", agent % 2)
}

/// One more than have a class.
pub const CLASSLESS: u32 = AGENTS;
const LIMITERS: u64 = 7;

/// The seed of this run, printed for the next.
pub fn seed() -> u64 {
    let seed = match std::env::var("CLAWGRESS_TEST_SEED") {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => {
            u64::from(std::process::id()) << 32
                | u64::from(std::time::UNIX_EPOCH.elapsed().expect("time").subsec_nanos())
        }
    };
    println!("CLAWGRESS_TEST_SEED={seed}");
    seed
}

/// SplitMix64: small, seeded, the same everywhere.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Whether, once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).expect("index")
    }

    pub fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.index(list.len())].clone()
    }

    pub fn u8(&mut self) -> u8 {
        u8::try_from(self.below(256)).expect("8 bits")
    }

    pub fn u16(&mut self) -> u16 {
        u16::try_from(self.below(1 << 16)).expect("16 bits")
    }

    /// Few distinct bytes, so that prefixes and packets meet.
    fn byte(&mut self) -> u8 {
        self.pick(&[0, 1, 2, 127, 128, 200, 254, 255])
    }

    pub fn address(&mut self, v4: bool) -> IpAddr {
        if v4 {
            IpAddr::from([10 + self.byte() % 3, self.byte(), self.byte(), self.byte()])
        } else {
            let mut bytes = [0; 16];
            bytes.fill_with(|| self.byte());
            bytes[0] = 0x20;
            IpAddr::from(bytes)
        }
    }

    fn net(&mut self) -> IpNet {
        let v4 = self.below(2) == 0;
        let max: u64 = if v4 { 32 } else { 128 };
        let length = if self.below(4) == 0 { max } else { self.below(max + 1) };
        let address = if length == 0 && v4 {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else if length == 0 {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            self.address(v4)
        };
        IpNet::new(address, u8::try_from(length).expect("length")).expect("net").trunc()
    }

    pub fn tables(&mut self) -> KernelTables {
        let mut destinations = BTreeMap::new();
        for _ in 0..self.below(30) {
            let class = 1 + u32::try_from(self.below(5)).expect("class");
            destinations.insert(self.net(), class);
        }
        let mut ports = BTreeMap::from([(0, 0)]);
        for _ in 0..self.below(6) {
            ports.insert(self.u16() % 64, u16::try_from(self.below(4)).expect("class"));
        }
        let limits = self.limits();
        let mut verdicts = Vec::new();
        for agent_class in 1..4 {
            for destination_class in 0..6 {
                for transport in Transport::ALL {
                    for port_class in 0..if transport.has_ports() { 4 } else { 1 } {
                        let action = match self.below(5) {
                            0 => KernelAction::Deny(DropReason::PolicyForbidden.code()),
                            1 | 2 => KernelAction::Direct,
                            3 if transport == Transport::Tcp => KernelAction::Steer,
                            _ => continue,
                        };
                        let is_denied = matches!(action, KernelAction::Deny(_));
                        let limits = if is_denied { 0 } else { self.index(limits.len()) };
                        verdicts.push(VerdictCell {
                            agent_class,
                            destination_class,
                            transport,
                            port_class,
                            action,
                            policies: 0,
                            limits: u32::try_from(limits).expect("few"),
                            never_direct: false,
                        });
                    }
                }
            }
        }
        KernelTables {
            agents: (1..CLASSLESS).map(|a| (a, 1 + a % 3)).collect(),
            destinations: destinations.into_iter().collect(),
            ports: ports.into_iter().collect(),
            verdicts,
            policies: vec![vec![]],
            limiters: (1..=LIMITERS).map(loose).collect(),
            limits,
        }
    }

    /// Sets of limiters, the first one empty.
    fn limits(&mut self) -> Vec<Vec<u32>> {
        let mut sets = vec![Vec::new()];
        for _ in 0..self.below(100) {
            let mut set = BTreeSet::new();
            for _ in 0..self.below(5) {
                set.insert(u32::try_from(self.below(LIMITERS)).expect("few"));
            }
            sets.push(set.into_iter().collect());
        }
        sets
    }

    /// A small policy set, about what packets are made of.
    pub fn policy(&mut self) -> PolicyBundle {
        let mut text = String::new();
        let sets =
            NETWORK_SETS.map(|name| (name.to_owned(), (0..1 + self.below(6)).map(|_| self.net()).collect()));
        for number in 0..2 + self.below(4) {
            let effect = if self.once_in(4) { "forbid" } else { "permit" };
            let who = 1 + self.below(u64::from(AGENTS));
            let principal = match self.below(4) {
                0 => format!("principal == Agent::\"a{who}\""),
                1 => format!("principal in Team::\"{}\"", team(u32::try_from(who).expect("few"))),
                _ => "principal".into(),
            };
            let resource = if self.once_in(3) {
                format!("resource in NetworkSet::\"{}\"", self.pick(&NETWORK_SETS))
            } else {
                "resource".into()
            };
            let action = self.pick(&[
                "action == Action::\"connect\"",
                "action == Action::\"direct\"",
                "action in [Action::\"connect\", Action::\"direct\"]",
                "action in [Action::\"connect\", Action::\"direct\"]",
            ]);
            let mut conditions = Vec::new();
            if self.once_in(2) {
                let net = self.net();
                conditions.push(format!("context.ip.isInRange(ip(\"{net}\"))"));
            }
            if self.once_in(2) {
                let port = self.below(64);
                conditions.push(format!("context.port {} {port}", self.pick(&["==", "!=", "<", ">="])));
            }
            if self.once_in(2) {
                let (one, two) = (self.pick(&Transport::ALL).name(), self.pick(&Transport::ALL).name());
                conditions.push(self.pick(&[
                    format!("context.protocol == \"{one}\""),
                    format!("context.protocol != \"{one}\""),
                    format!("[\"{one}\", \"{two}\"].contains(context.protocol)"),
                ]));
            }
            // Of what is forbidden unless it is everything, nothing is.
            let word = if conditions.is_empty() || !self.once_in(4) { "when" } else { "unless" };
            let told = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" && ") };
            writeln!(
                text,
                "@id(\"p{number}\") {effect} ({principal}, {action}, {resource}) {word} {{ {told} }};"
            )
            .expect("text");
        }
        let sets = NamedSets { networks: sets.into(), ..NamedSets::default() };
        PolicyBundle { text, sets }
    }
}

/// A limit that nothing here reaches.
fn loose(key: u64) -> Limiter {
    let unit = [LimitUnit::Packets, LimitUnit::Bytes, LimitUnit::Connections][(key % 3) as usize];
    limits::limiter(key, unit, 100_000_000, 1, 100_000_000)
}
