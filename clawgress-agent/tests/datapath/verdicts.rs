//! Every reason for which the kernel drops, in both families, by test run of XDP and TC alike.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clawgress_agent::datapath::bpf::Plain;
use clawgress_ebpf_common::image::Limiter;
use clawgress_ebpf_common::{
    Bind, Bucket, CgroupKey, DropReason, Epoch, Flow, FlowKey, Learned, LearnedKey, Lease, Pace, Recent,
    Seen, SelfAddress, action, bound, counter, listener, map, mark, protocol, user,
};
use clawgress_identity::AgentState;
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables, VerdictCell};

use crate::frames::{ACK, FIN, RST, SYN, arp, ethernet, icmp, ip, neighbour, tcp, udp, with_hops};
use crate::kernel::{Did, Kernel, LOOPBACK, PROXY_PORT, PROXY_TLS_PORT, agent};

pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Addresses of one family.
#[derive(Clone, Copy)]
pub struct Family {
    pub agent: IpAddr,
    pub disabled: IpAddr,
    pub stranger: IpAddr,
    pub gateway: IpAddr,
    pub direct: IpAddr,
    pub steered: IpAddr,
    pub forbidden: IpAddr,
    pub broken: IpAddr,
    pub unnamed: IpAddr,
    pub icmp: u8,
    pub echo: u8,
    pub reply: u8,
    pub unreachable: u8,
}

pub fn families() -> [Family; 2] {
    let a = |text: &str| text.parse::<IpAddr>().expect("address");
    [
        Family {
            agent: a("10.9.0.2"),
            disabled: a("10.9.0.3"),
            stranger: a("10.9.0.99"),
            gateway: a("10.9.0.1"),
            direct: a("198.51.100.1"),
            steered: a("203.0.113.1"),
            forbidden: a("192.0.2.1"),
            broken: a("192.0.2.129"),
            unnamed: a("100.64.0.1"),
            icmp: 1,
            echo: 8,
            reply: 0,
            unreachable: 3,
        },
        Family {
            agent: a("fd00::2"),
            disabled: a("fd00::3"),
            stranger: a("fd00::99"),
            gateway: a("fd00::1"),
            direct: a("2001:db8:1::1"),
            steered: a("2001:db8:2::1"),
            forbidden: a("2001:db8:3::1"),
            broken: a("2001:db8:4::1"),
            unnamed: a("2001:db8:5::1"),
            icmp: 58,
            echo: 128,
            reply: 129,
            unreachable: 1,
        },
    ]
}

/// Port 443 of any protocol and all ICMP to `direct` goes direct, TCP 443 to `steered` to L7;
/// `forbidden` and `broken` have cells that deny.
pub fn tables() -> KernelTables {
    let cell = |destination_class, transport, port_class, action| VerdictCell {
        agent_class: 1,
        destination_class,
        transport,
        port_class,
        action,
        policies: 0,
        limits: 0,
        never_direct: false,
    };
    let net = |text: &str| text.parse().expect("prefix");
    KernelTables {
        agents: BTreeMap::from([(1, 1), (2, 1)]),
        destinations: vec![
            (net("198.51.100.0/24"), 1),
            (net("2001:db8:1::/48"), 1),
            (net("203.0.113.0/24"), 2),
            (net("2001:db8:2::/48"), 2),
            (net("192.0.2.0/25"), 3),
            (net("2001:db8:3::/48"), 3),
            (net("192.0.2.128/25"), 4),
            (net("2001:db8:4::/48"), 4),
        ],
        ports: vec![(0, 0), (443, 1), (444, 0)],
        verdicts: vec![
            cell(1, Transport::Tcp, 1, KernelAction::Direct),
            cell(1, Transport::Udp, 1, KernelAction::Direct),
            cell(1, Transport::Icmp, 0, KernelAction::Direct),
            cell(2, Transport::Tcp, 1, KernelAction::Steer),
            cell(3, Transport::Udp, 1, KernelAction::Deny(DropReason::PolicyForbidden.code())),
            cell(4, Transport::Udp, 1, KernelAction::Deny(DropReason::PolicyError.code())),
        ],
        policies: vec![Vec::new()],
        limiters: Vec::new(),
        limits: Vec::new(),
    }
}

pub fn agents() -> Vec<clawgress_identity::Agent> {
    let mut disabled = agent(2, &["lo=10.9.0.3,02:00:00:00:00:01", "lo=fd00::3,02:00:00:00:00:01"]);
    disabled.state = AgentState::Quarantined;
    vec![agent(1, &["lo=10.9.0.2,02:00:00:00:00:01", "lo=fd00::2,02:00:00:00:00:01"]), disabled]
}

pub async fn ready() -> Kernel {
    let mut kernel = Kernel::load();
    for family in families() {
        kernel.own(family.gateway);
    }
    kernel.apply(1, Some(tables()), agents()).await;
    kernel
}

/// Whether a reason needs a flow or a socket, which XDP does not look at.
fn is_stateful(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::FlowUnknown
            | DropReason::FlowTableFull
            | DropReason::FlowShareFull
            | DropReason::ListenerMissing
            | DropReason::LeaseLapsed
    )
}

/// Runs `frame` through XDP and TC: both must do what `want` says, XDP as far as it can know.
#[track_caller]
pub fn check(kernel: &Kernel, what: &str, frame: &[u8], want: Did) {
    let early = match want {
        Did::Dropped(reason) if !is_stateful(reason) => want,
        _ => Did::Passed,
    };
    assert_eq!(kernel.xdp(frame), early, "xdp: {what}");
    assert_eq!(kernel.ingress(frame), want, "tc: {what}");
}

/// Two compilers laid these out; here they meet.
#[test]
fn maps_have_the_layout_of_the_abi() {
    let kernel = Kernel::load();
    let size = |n: usize| u32::try_from(n).expect("size");
    for (name, key, value, entries) in [
        (map::GENERATION, 4, 8, 1),
        (map::IMAGES, 4, 4, 2),
        (map::SELF, 16, size(size_of::<SelfAddress>()), bound::SELF_MAX),
        (map::SELF_FILTER, 4, size(bound::SELF_FILTER_WORDS * 8), 1),
        (map::FLOWS, size(size_of::<FlowKey>()), size(size_of::<Flow>()), bound::FLOWS_MAX),
        (map::SHARES, 4, 8, bound::SHARES),
        (map::REJECTS, 4, size(size_of::<Pace>()), 2 * bound::SHARES),
        (map::BUCKETS, 16, size(size_of::<Bucket>()), bound::BUCKETS_MAX),
        (map::BUCKET_SHARES, 4, 8, bound::SHARES),
        (map::PACED, 4, 4, bound::INTERFACES_MAX),
        (map::UNBOUND, 4, size(size_of::<Limiter>()), 2),
        (map::UNBOUND_BUCKETS, 4, size(size_of::<Bucket>()), bound::UNBOUND_BUCKETS_ALL),
        (map::LEARNED, size(size_of::<LearnedKey>()), size(size_of::<Learned>()), bound::LEARNED_MAX),
        (map::LEARNED_BY, 4, 8, bound::SHARES),
        (map::LISTENERS, 4, 4, listener::SLOTS),
        (map::EVENTS, 0, 0, bound::EVENTS_BYTES),
        (map::COUNTERS, 4, 8, counter::COUNTERS),
        (map::SEEN, 4, size(size_of::<Seen>()), bound::SEEN_SLOTS),
        (map::EPOCH, 4, size(size_of::<Epoch>()), 1),
        (map::RECENT, 4, size(size_of::<Recent>()), bound::RECENT_SLOTS),
        (map::PACE, 4, size(size_of::<Pace>()), 1 + bound::DROP_SHARES),
        (map::CGROUPS, size(size_of::<CgroupKey>()), size(size_of::<Bind>()), bound::CGROUPS_MAX),
        (map::QUARANTINE, 4, 8, bound::QUARANTINE_WORDS),
        (map::LEASE, 4, size(size_of::<Lease>()), 1),
        (map::INTERFACES, 4, 4, bound::INTERFACES_MAX),
        (map::META, 4, 4, 1),
    ] {
        let info = kernel.info(name);
        assert_eq!((info.key_size(), info.value_size(), info.max_entries()), (key, value, entries), "{name}");
    }
}

/// Each verifier walks another number of states for the same program (Linux 6.1 up to twice as many), and a few
/// instructions more or less move where it remembers one, which is a tenth of them: well below what it may walk,
/// which is a million instructions.
pub const INSTRUCTIONS_MAX: u32 = 600_000;

#[test]
fn programs_verify_with_headroom() {
    let kernel = Kernel::load();
    let mut worst = 0;
    for (name, program) in kernel.objects.programs() {
        let info = program.info().expect("program info");
        let verified = info.verified_instruction_count().expect("the kernel counts them since 5.16");
        println!("{name}: {verified} instructions verified");
        worst = worst.max(verified);
    }
    assert!(worst < INSTRUCTIONS_MAX, "{worst}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reason_in_both_families() {
    use DropReason as R;
    let kernel = ready().await;
    let drop = |what: &str, frame: &[u8], reason| check(&kernel, what, frame, Did::Dropped(reason));
    for f in families() {
        let to = |destination, payload: &[u8], protocol| ip(MAC, f.agent, destination, protocol, payload);
        let datagram = udp(40_000, 443, b"x");
        let pass = |what: &str, frame: &[u8], mark| check(&kernel, what, frame, Did::Marked(mark));

        pass("udp direct", &to(f.direct, &datagram, 17), mark::DIRECT);
        pass("tcp direct", &to(f.direct, &tcp(40_000, 443, SYN), 6), mark::DIRECT);
        pass("its next segment", &to(f.direct, &tcp(40_000, 443, ACK), 6), mark::DIRECT);
        pass("echo direct", &to(f.direct, &icmp(f.echo, 0, 7), f.icmp), mark::DIRECT);
        pass("proxy, known", &to(f.gateway, &tcp(40_001, PROXY_PORT, SYN), 6), mark::LOCAL);
        let stranger = ip(MAC, f.stranger, f.gateway, 6, &tcp(40_001, PROXY_PORT, SYN));
        pass("proxy, anonymous", &stranger, mark::LOCAL);
        pass("proxy over TLS", &to(f.gateway, &tcp(40_001, PROXY_TLS_PORT, SYN), 6), mark::LOCAL);

        // The kernel itself refuses to make a socket buffer of this one.
        let cut = &to(f.direct, &datagram, 17)[..20];
        assert_eq!(kernel.xdp(cut), Did::Dropped(R::Malformed), "truncated ip");
        drop("truncated tcp", &to(f.direct, &tcp(1, 443, SYN)[..12], 6), R::Malformed);
        drop("syn and fin", &to(f.direct, &tcp(1, 443, SYN | FIN), 6), R::TcpFlags);
        drop("syn and rst", &to(f.direct, &tcp(1, 443, SYN | RST), 6), R::TcpFlags);
        drop("gre", &to(f.direct, &[0; 16], 47), R::ProtocolUnsupported);
        drop("sctp", &to(f.direct, &[0; 16], 132), R::ProtocolUnsupported);
        drop("ip in ip", &to(f.direct, &[0x45; 24], 4), R::ProtocolUnsupported);
        drop("echo reply", &to(f.direct, &icmp(f.reply, 0, 7), f.icmp), R::IcmpUnsupported);
        drop("timestamp", &to(f.direct, &icmp(13, 0, 7), f.icmp), R::IcmpUnsupported);
        drop("error from an agent", &to(f.direct, &icmp(f.unreachable, 0, 7), f.icmp), R::IcmpUnsupported);
        let spoofed = ip(OTHER_MAC, f.agent, f.direct, 17, &datagram);
        drop("another mac", &spoofed, R::SourceSpoofed);
        let spoofed = ip(OTHER_MAC, f.agent, f.gateway, 6, &tcp(1, PROXY_PORT, SYN));
        drop("another mac, to the proxy", &spoofed, R::SourceSpoofed);
        let own = ip(MAC, f.gateway, f.direct, 17, &datagram);
        drop("the gateway's own address", &own, R::SourceSpoofed);
        drop("anonymous", &ip(MAC, f.stranger, f.direct, 17, &datagram), R::Anonymous);
        drop("quarantined", &ip(MAC, f.disabled, f.direct, 17, &datagram), R::AgentDisabled);
        let local = ip(MAC, f.disabled, f.gateway, 6, &tcp(1, PROXY_PORT, SYN));
        drop("quarantined, to the proxy", &local, R::AgentDisabled);
        drop("unnamed address", &to(f.unnamed, &datagram, 17), R::PolicyDenied);
        drop("unnamed port", &to(f.direct, &udp(1, 444, b""), 17), R::PolicyDenied);
        drop("forbidden", &to(f.forbidden, &datagram, 17), R::PolicyForbidden);
        drop("error", &to(f.broken, &datagram, 17), R::PolicyError);
        drop("gateway, other port", &to(f.gateway, &tcp(1, 22, SYN), 6), R::GatewayAddress);
        for port in [PROXY_PORT, PROXY_TLS_PORT] {
            drop("gateway, udp", &to(f.gateway, &udp(1, port, b""), 17), R::GatewayAddress);
        }
        drop("gateway, echo", &to(f.gateway, &icmp(f.echo, 0, 7), f.icmp), R::GatewayAddress);
        drop("no syn", &to(f.direct, &tcp(41_000, 443, ACK), 6), R::FlowUnknown);
        drop("rst", &to(f.direct, &tcp(41_000, 443, RST), 6), R::FlowUnknown);
        drop("syn and ack", &to(f.direct, &tcp(41_000, 443, SYN | ACK), 6), R::FlowUnknown);
        drop("steered", &to(f.steered, &tcp(40_000, 443, SYN), 6), R::ListenerMissing);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_not_understood() {
    use DropReason as R;
    let kernel = ready().await;
    let drop = |what: &str, frame: &[u8], reason| check(&kernel, what, frame, Did::Dropped(reason));
    let [v4, v6] = families();
    let datagram = udp(40_000, 443, b"x");
    let good = ip(MAC, v4.agent, v4.direct, 17, &datagram);
    let edit = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    drop("options", &edit(14, &[0x46]), R::Ipv4Options);
    drop("short header", &edit(14, &[0x44]), R::Malformed);
    drop("version 6 in 0800", &edit(14, &[0x65]), R::Malformed);
    drop("more fragments", &edit(20, &[0x20, 0]), R::Fragment);
    drop("an offset", &edit(20, &[0, 1]), R::Fragment);
    drop("longer than the frame", &edit(16, &[0x40, 0]), R::Malformed);
    drop("shorter than its header", &edit(16, &[0, 19]), R::Malformed);
    drop("udp length", &edit(38, &[0, 7]), R::Malformed);
    drop("vlan", &ethernet(MAC, 0x8100, &good[10..]), R::VlanUnsupported);
    drop("qinq", &ethernet(MAC, 0x88A8, &good[10..]), R::VlanUnsupported);
    drop("mpls", &ethernet(MAC, 0x8847, &good[14..]), R::EthertypeUnsupported);
    drop("icmpv6 in ipv4", &ip(MAC, v4.agent, v4.direct, 58, &icmp(128, 0, 1)), R::ProtocolUnsupported);

    let to = |protocol, payload: &[u8]| ip(MAC, v6.agent, v6.direct, protocol, payload);
    let chained = |next: u8, units: u8, rest: &[u8]| {
        let mut bytes = vec![next, units];
        bytes.resize(8 * (usize::from(units) + 1), 0);
        bytes.extend(rest);
        bytes
    };
    check(&kernel, "destination options", &to(60, &chained(17, 0, &datagram)), Did::Marked(mark::DIRECT));
    let both = chained(60, 0, &chained(17, 1, &datagram));
    check(&kernel, "hop-by-hop and destination", &to(0, &both), Did::Marked(mark::DIRECT));
    drop(
        "three headers",
        &to(0, &chained(60, 0, &chained(60, 0, &chained(17, 0, &datagram)))),
        R::Ipv6Extension,
    );
    drop("hop-by-hop not first", &to(60, &chained(0, 0, &chained(17, 0, &datagram))), R::Ipv6Extension);
    drop("a long header", &to(60, &chained(17, 8, &datagram)), R::Ipv6Extension);
    drop("routing", &to(43, &chained(17, 0, &datagram)), R::Ipv6Routing);
    drop("fragment", &to(44, &chained(17, 0, &datagram)), R::Fragment);
    drop("fragment after options", &to(60, &chained(44, 0, &chained(17, 0, &datagram))), R::Fragment);
    drop("esp", &to(50, &[0; 16]), R::ProtocolUnsupported);
    drop("icmp in ipv6", &to(1, &icmp(8, 0, 1)), R::ProtocolUnsupported);
    let mapped: IpAddr = "::ffff:198.51.100.1".parse().expect("address");
    drop("mapped address", &ip(MAC, v6.agent, mapped, 17, &datagram), R::Malformed);
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_speak_for_themselves_alone() {
    use DropReason as R;
    let kernel = ready().await;
    let [_, v6] = families();
    let all: IpAddr = "ff02::1".parse().expect("address");
    let pass = |what: &str, frame: &[u8]| check(&kernel, what, frame, Did::Marked(mark::LOCAL));
    let drop = |what: &str, frame: &[u8], reason| check(&kernel, what, frame, Did::Dropped(reason));
    let (agent4, gateway4) = ([10, 9, 0, 2], [10, 9, 0, 1]);
    pass("arp", &arp(MAC, MAC, agent4, gateway4));
    pass("arp probe", &arp(MAC, MAC, [0; 4], agent4));
    pass("arp of a stranger", &arp(OTHER_MAC, OTHER_MAC, [10, 9, 0, 77], gateway4));
    drop("arp, inner mac", &arp(MAC, OTHER_MAC, agent4, gateway4), R::SourceSpoofed);
    drop("arp for another", &arp(OTHER_MAC, OTHER_MAC, agent4, gateway4), R::SourceSpoofed);
    drop("arp for the gateway", &arp(MAC, MAC, gateway4, agent4), R::SourceSpoofed);
    drop("arp, short", &arp(MAC, MAC, agent4, gateway4)[..30], R::NeighbourMalformed);
    pass("solicitation", &neighbour(MAC, v6.agent, all, 135, v6.gateway, MAC));
    pass("advertisement", &neighbour(MAC, v6.agent, all, 136, v6.agent, MAC));
    let option = neighbour(MAC, v6.agent, all, 136, v6.agent, OTHER_MAC);
    drop("advertised mac", &option, R::SourceSpoofed);
    let other = neighbour(OTHER_MAC, v6.stranger, all, 136, v6.agent, OTHER_MAC);
    drop("advertisement for another", &other, R::SourceSpoofed);
    let gateway = neighbour(MAC, v6.agent, all, 136, v6.gateway, MAC);
    drop("advertisement for the gateway", &gateway, R::SourceSpoofed);
    let far = with_hops(neighbour(MAC, v6.agent, all, 135, v6.gateway, MAC), 64);
    drop("from afar", &far, R::NeighbourMalformed);
    let router =
        with_hops(ip(MAC, v6.agent, all, 58, &[134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 255);
    drop("router advertisement", &router, R::RouterMessage);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_policy_only_the_proxy_is_reached() {
    let mut kernel = Kernel::load();
    for round in 0..2 {
        for f in families() {
            kernel.own(f.gateway);
            let datagram = ip(MAC, f.agent, f.direct, 17, &udp(1, 443, b""));
            check(&kernel, "direct", &datagram, Did::Dropped(DropReason::PolicyMissing));
            let proxy = ip(MAC, f.agent, f.gateway, 6, &tcp(1, PROXY_PORT, SYN));
            check(&kernel, "proxy", &proxy, Did::Marked(mark::LOCAL));
        }
        if round == 0 {
            // Agents without a policy are known, and reach as little.
            kernel.apply(1, None, agents()).await;
        }
    }
}

pub fn key(family: &Family, destination: IpAddr, port: u16, number: u8) -> FlowKey {
    FlowKey {
        source: user::address(family.agent),
        destination: user::address(destination),
        source_port_be: 40_000u16.to_be(),
        destination_port_be: port.to_be(),
        ifindex: LOOPBACK,
        protocol: number,
        pad: [0; 3],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_count_both_ways_and_answers_need_one() {
    let kernel = ready().await;
    for f in families() {
        let out = ip(MAC, f.agent, f.direct, 17, &udp(40_000, 443, b"four"));
        let back = ip(MAC, f.direct, f.agent, 17, &udp(443, 40_000, b"four"));
        assert_eq!(kernel.egress(&back), Did::Dropped(DropReason::FlowUnknown), "an answer to nothing");
        kernel.ingress(&out);
        kernel.ingress(&out);
        assert_eq!(kernel.egress(&back), Did::Marked(0));
        let flow = kernel.flow(&key(&f, f.direct, 443, protocol::UDP)).expect("flow");
        let bytes = (out.len() - 14) as u64;
        assert_eq!((flow.tx_packets, flow.tx_bytes), (2, 2 * bytes));
        assert_eq!((flow.rx_packets, flow.rx_bytes), (1, bytes));
        assert_eq!((flow.agent, flow.action, flow.generation), (1, action::DIRECT, 1));
        let other = ip(MAC, f.direct, f.agent, 17, &udp(444, 40_000, b""));
        assert_eq!(kernel.egress(&other), Did::Dropped(DropReason::FlowUnknown), "another port");
        let own = ip(MAC, f.gateway, f.agent, f.icmp, &icmp(f.reply, 0, 1));
        assert_eq!(kernel.egress(&own), Did::Marked(0), "the gateway's own");

        // An error of a router on the way quotes the flow.
        let mut quoted = icmp(f.unreachable, 0, 0)[..8].to_vec();
        quoted.extend(&out[14..]);
        let error = ip(MAC, f.unnamed, f.agent, f.icmp, &quoted);
        assert_eq!(kernel.egress(&error), Did::Marked(0), "an error about the flow");
        let mut quoted = icmp(f.unreachable, 0, 0)[..8].to_vec();
        quoted.extend(&ip(MAC, f.agent, f.unnamed, 17, &udp(1, 2, b""))[14..]);
        let error = ip(MAC, f.unnamed, f.agent, f.icmp, &quoted);
        assert_eq!(kernel.egress(&error), Did::Dropped(DropReason::FlowUnknown), "an error about nothing");

        kernel.ingress(&ip(MAC, f.agent, f.gateway, 6, &tcp(40_000, PROXY_PORT, SYN)));
        let local = kernel.flow(&key(&f, f.gateway, PROXY_PORT, protocol::TCP)).expect("local flow");
        assert_eq!((local.agent, local.action), (1, action::LOCAL));
        kernel.ingress(&ip(MAC, f.agent, f.steered, 6, &tcp(40_000, 443, SYN)));
        let steered = kernel.flow(&key(&f, f.steered, 443, protocol::TCP)).expect("steered flow");
        assert_eq!((steered.agent, steered.action), (1, action::STEER));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_generation_judges_live_flows_again() {
    let mut kernel = ready().await;
    let [f, _] = families();
    let out = ip(MAC, f.agent, f.direct, 17, &udp(40_000, 443, b""));
    let back = ip(MAC, f.direct, f.agent, 17, &udp(443, 40_000, b""));
    let segment = |flags| ip(MAC, f.agent, f.direct, 6, &tcp(40_000, 443, flags));
    check(&kernel, "first", &out, Did::Marked(mark::DIRECT));
    check(&kernel, "first", &segment(SYN), Did::Marked(mark::DIRECT));

    // The same policy under another number, in the other slot: flows go on.
    kernel.apply(2, Some(tables()), agents()).await;
    check(&kernel, "same policy", &out, Did::Marked(mark::DIRECT));
    assert_eq!(kernel.flow(&key(&f, f.direct, 443, protocol::UDP)).expect("flow").generation, 2);

    // Nothing permitted: both directions stop, whoever speaks first.
    let nothing = KernelTables { verdicts: Vec::new(), ..tables() };
    kernel.apply(3, Some(nothing), agents()).await;
    assert_eq!(kernel.egress(&back), Did::Dropped(DropReason::PolicyDenied), "an answer, after the change");
    check(&kernel, "denied now", &out, Did::Dropped(DropReason::PolicyDenied));
    check(&kernel, "denied now", &segment(ACK), Did::Dropped(DropReason::PolicyDenied));

    // Permitted again: datagrams flow, a connection needs a new start.
    kernel.apply(4, Some(tables()), agents()).await;
    check(&kernel, "again", &out, Did::Marked(mark::DIRECT));
    assert_eq!(kernel.egress(&back), Did::Marked(0));
    check(&kernel, "mid-connection", &segment(ACK), Did::Dropped(DropReason::FlowUnknown));
    check(&kernel, "new connection", &segment(SYN), Did::Marked(mark::DIRECT));

    // A connection cannot move from the kernel to L7 in its midst.
    let mut steer = tables();
    for cell in
        steer.verdicts.iter_mut().filter(|c| c.destination_class == 1 && c.transport == Transport::Tcp)
    {
        cell.action = KernelAction::Steer;
    }
    kernel.apply(5, Some(steer), agents()).await;
    check(&kernel, "moved", &segment(ACK), Did::Dropped(DropReason::FlowUnknown));

    // The agent is gone, or its source is another's.
    kernel.apply(6, Some(tables()), Vec::new()).await;
    check(&kernel, "unbound", &out, Did::Dropped(DropReason::Anonymous));
    assert_eq!(kernel.egress(&back), Did::Dropped(DropReason::Anonymous));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_flow_table_denies() {
    let mut kernel = ready().await;
    let [f, _] = families();
    let mut filler = key(&f, f.direct, 443, protocol::UDP);
    filler.ifindex = 77;
    for n in 0..bound::FLOWS_MAX {
        filler.destination[..4].copy_from_slice(&n.to_ne_bytes());
        if kernel.flows.insert(Plain(filler), Plain(Flow::default()), 0).is_err() {
            break;
        }
    }
    let out = ip(MAC, f.agent, f.direct, 17, &udp(40_000, 443, b""));
    check(&kernel, "full", &out, Did::Dropped(DropReason::FlowTableFull));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_ipv6_source_does_not_take_in_ipv4() {
    let mut kernel = Kernel::load();
    let [v4, v6] = families();
    let mut tables = tables();
    // Destinations are of the mapped space, by the tables' own definition: this one is every address.
    tables.destinations = vec![("::/0".parse().expect("prefix"), 1)];
    kernel.apply(1, Some(tables), vec![agent(1, &["lo=::/0,any-mac", "lo=10.9.0.2,any-mac"])]).await;
    let to = |f: &Family, source| ip(MAC, source, f.direct, 17, &udp(1, 443, b""));
    check(&kernel, "ipv6", &to(&v6, v6.stranger), Did::Marked(mark::DIRECT));
    check(&kernel, "ipv4 destination", &to(&v4, v4.agent), Did::Marked(mark::DIRECT));
    check(&kernel, "ipv4 source", &to(&v4, v4.stranger), Did::Dropped(DropReason::Anonymous));
}
