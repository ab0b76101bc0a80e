//! Random tables and random packets: the kernel's stateless verdict is what the tables' own lookup says.
//! A failure prints its seed; set `CLAWGRESS_TEST_SEED` to run it again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clawgress_agent::datapath::bpf::Plain;
use clawgress_ebpf_common::{DropReason, FlowKey, mark};
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables, VerdictCell};
use ipnet::{IpNet, Ipv6Net};

use crate::frames::{SYN, icmp, ip, tcp, udp};
use crate::kernel::{Did, Kernel, agent};

/// Tables, and packets through each.
const TABLES: u64 = 40;
const PACKETS: u64 = 250;
const AGENTS: u32 = 6;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// SplitMix64: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn u16(&mut self) -> u16 {
        u16::try_from(self.below(1 << 16)).expect("16 bits")
    }

    /// Few distinct bytes, so that prefixes and packets meet.
    fn byte(&mut self) -> u8 {
        [0, 1, 2, 127, 128, 200, 254, 255][usize::try_from(self.below(8)).expect("index")]
    }

    fn address(&mut self, v4: bool) -> IpAddr {
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

    fn tables(&mut self) -> KernelTables {
        let mut destinations = BTreeMap::new();
        for _ in 0..self.below(30) {
            let class = 1 + u32::try_from(self.below(5)).expect("class");
            destinations.insert(self.net(), class);
        }
        let mut ports = BTreeMap::from([(0, 0)]);
        for _ in 0..self.below(6) {
            ports.insert(self.u16() % 64, u16::try_from(self.below(4)).expect("class"));
        }
        let mut verdicts = BTreeMap::new();
        for agent_class in 1..4 {
            for destination_class in 0..6 {
                for (transport, port_classes) in
                    [(Transport::Tcp, 4), (Transport::Udp, 4), (Transport::Icmp, 1)]
                {
                    for port_class in 0..port_classes {
                        let action = match self.below(5) {
                            0 => KernelAction::Deny(DropReason::PolicyForbidden.code()),
                            1 | 2 => KernelAction::Direct,
                            3 if transport == Transport::Tcp => KernelAction::Steer,
                            _ => continue,
                        };
                        let key = (agent_class, destination_class, transport, port_class);
                        verdicts.insert(key, action);
                    }
                }
            }
        }
        KernelTables {
            agents: (1..AGENTS).map(|a| (a, 1 + a % 3)).collect(),
            destinations: destinations.into_iter().collect(),
            ports: ports.into_iter().collect(),
            verdicts: verdicts
                .into_iter()
                .map(|((agent_class, destination_class, transport, port_class), action)| VerdictCell {
                    agent_class,
                    destination_class,
                    transport,
                    port_class,
                    action,
                    policies: 0,
                })
                .collect(),
            policies: vec![vec![]],
        }
    }
}

/// The prefix in the space of IPv6 and mapped IPv4 addresses, in which the tables are defined.
fn mapped(net: IpNet) -> Ipv6Net {
    match net {
        IpNet::V4(net) => Ipv6Net::new(net.addr().to_ipv6_mapped(), 96 + net.prefix_len()).expect("net"),
        IpNet::V6(net) => net,
    }
}

/// What the tables say, read naively.
fn expected(tables: &KernelTables, agent: u32, ip: IpAddr, transport: Transport, port: u16) -> KernelAction {
    let Some(&class) = tables.agents.get(&agent) else {
        return KernelAction::Deny(DropReason::Anonymous.code());
    };
    let destination = tables
        .destinations
        .iter()
        .map(|(net, class)| (mapped(*net), class))
        .filter(|(net, _)| net.contains(&mapped(IpNet::from(ip)).addr()))
        .max_by_key(|(net, _)| net.prefix_len())
        .map_or(0, |(_, class)| *class);
    let port = if transport == Transport::Icmp {
        0
    } else {
        tables.ports.iter().rfind(|(first, _)| *first <= port).map_or(0, |(_, class)| *class)
    };
    tables
        .verdicts
        .iter()
        .find(|c| {
            (c.agent_class, c.destination_class, c.transport, c.port_class)
                == (class, destination, transport, port)
        })
        .map_or(KernelAction::Deny(DropReason::PolicyDenied.code()), |c| c.action)
}

/// Address of an agent: `10.255.0.N` and `fdff::N`, outside what [`Random::address`] makes of 10/8.
fn source(agent: u32, v4: bool) -> IpAddr {
    let n = u8::try_from(agent).expect("agent");
    if v4 {
        IpAddr::from([172, 16, 0, n])
    } else {
        IpAddr::from([0xFD, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n])
    }
}

/// The seed of this run, printed for the next.
fn seed() -> u64 {
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

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_says_what_the_tables_say() {
    let seed = seed();
    let mut random = Random(seed);
    let mut kernel = Kernel::load();
    // One more than have a class.
    let agents: Vec<_> = (1..=AGENTS)
        .map(|a| {
            let sources = [true, false].map(|v4| format!("lo={},any-mac", source(a, v4)));
            agent(a, &[&sources[0], &sources[1]])
        })
        .collect();
    let (mut allowed, mut denied) = (0, 0);
    for generation in 1..=TABLES {
        let tables = random.tables();
        kernel.apply(generation, Some(tables.clone()), agents.clone()).await;
        for packet in 0..PACKETS {
            let v4 = random.below(2) == 0;
            let agent = 1 + u32::try_from(random.below(u64::from(AGENTS))).expect("agent");
            let destination = random.address(v4);
            let port = random.u16() % 64;
            // Another source port each time: no flow is met twice within a generation.
            let from = 1024 + u16::try_from(packet).expect("port");
            let (transport, protocol, payload) = match random.below(3) {
                0 => (Transport::Tcp, 6, tcp(from, port, SYN)),
                1 => (Transport::Udp, 17, udp(from, port, b"")),
                _ if v4 => (Transport::Icmp, 1, icmp(8, 0, from)),
                _ => (Transport::Icmp, 58, icmp(128, 0, from)),
            };
            let frame = ip(MAC, source(agent, v4), destination, protocol, &payload);
            let says = expected(&tables, agent, destination, transport, port);
            assert_eq!(tables.lookup(agent, destination, transport, port).0, says, "seed {seed}");
            let (early, want) = match says {
                KernelAction::Deny(code) => {
                    denied += 1;
                    let dropped = Did::Dropped(DropReason::from_code(code).expect("reason"));
                    (dropped, dropped)
                }
                KernelAction::Direct => {
                    allowed += 1;
                    (Did::Passed, Did::Marked(mark::DIRECT))
                }
                KernelAction::Steer => {
                    allowed += 1;
                    (Did::Passed, Did::Dropped(DropReason::ListenerMissing))
                }
            };
            let what = || {
                format!(
                    "seed {seed}, generation {generation}, packet {packet}: {agent} -> {destination} {transport:?} {port}"
                )
            };
            assert_eq!(kernel.xdp(&frame), early, "xdp, {}", what());
            assert_eq!(kernel.ingress(&frame), want, "tc, {}", what());
        }
        let keys: Vec<Plain<FlowKey>> = kernel.flows.keys().collect::<Result<_, _>>().expect("flows");
        for key in keys {
            kernel.flows.remove(&key).expect("remove");
        }
    }
    assert!(allowed > 500 && denied > 500, "the random tables say too little: {allowed} and {denied}");
}

/// Whatever bytes an agent sends: what TC lets through, XDP did not drop, and it is a frame of the agent
/// to where the tables let it go.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_frames_are_never_taken_for_others() {
    const FRAMES: usize = 10_000;
    let seed = seed();
    let mut random = Random(seed);
    let mut kernel = Kernel::load();
    let cell = VerdictCell {
        agent_class: 1,
        destination_class: 1,
        transport: Transport::Udp,
        port_class: 0,
        action: KernelAction::Direct,
        policies: 0,
    };
    let net = |text: &str| text.parse().expect("prefix");
    let tables = KernelTables {
        agents: BTreeMap::from([(1, 1)]),
        destinations: vec![(net("198.51.100.0/24"), 1), (net("2001:db8:1::/48"), 1)],
        ports: vec![(0, 0)],
        verdicts: vec![cell],
        policies: vec![vec![]],
    };
    let bound = agent(1, &["lo=10.9.0.2,02:00:00:00:00:01", "lo=fd00::2,02:00:00:00:00:01"]);
    kernel.apply(1, Some(tables), vec![bound]).await;
    let address = |text: &str| text.parse::<IpAddr>().expect("address");
    let payload = udp(40_000, 443, b"some payload");
    let good = [
        ip(MAC, address("10.9.0.2"), address("198.51.100.7"), 17, &payload),
        ip(MAC, address("fd00::2"), address("2001:db8:1::7"), 17, &payload),
    ];
    let mut passed = 0;
    for n in 0..FRAMES {
        let mut frame = good[n % 2].clone();
        for _ in 0..1 + random.below(3) {
            let at = usize::try_from(random.below(frame.len() as u64)).expect("index");
            frame[at] = u8::try_from(random.below(256)).expect("byte");
        }
        if random.below(8) == 0 {
            // Not below the IP header: of that the kernel makes no socket buffer.
            frame.truncate(frame.len() - usize::try_from(random.below(16)).expect("length"));
        }
        let (early, did) = (kernel.xdp(&frame), kernel.ingress(&frame));
        let what = || format!("seed {seed}, frame {n}: {frame:02x?}");
        match did {
            Did::Dropped(_) => {}
            Did::Marked(mark::DIRECT) => {
                passed += 1;
                assert_eq!(early, Did::Passed, "{}", what());
                assert_eq!(frame[6..12], MAC, "{}", what());
                let (source, destination) =
                    if frame[14] >> 4 == 4 { (26..30, 30..33) } else { (22..38, 38..44) };
                assert_eq!(frame[source.clone()], good[n % 2][source], "{}", what());
                assert_eq!(frame[destination.clone()], good[n % 2][destination], "{}", what());
            }
            other => panic!("{other:?}: {}", what()),
        }
    }
    assert!(passed > FRAMES / 10, "only {passed} of {FRAMES} passed: the damage is too thorough to tell");
}
