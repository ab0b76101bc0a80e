//! Header shapes beyond the ordinary: tags, senders that cannot be, flags that cannot be, messages between
//! neighbours, ICMP from agents, transports that must be named, and quarantine; XDP and TC alike.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use clawgress_ebpf_common::{DropReason, action, mark, protocol};
use clawgress_identity::MacAddress;
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables, VerdictCell};

use crate::frames::{
    ACK, FIN, RST, SYN, arp, echo, ethernet, icmp, ip, neighbour, tagged, tcp, udp, with_hops,
};
use crate::kernel::{Did, Kernel, PROXY_PORT};
use crate::lab::{AGENT_MAC, Lab, Place};
use crate::network;
use crate::verdicts::{Family, MAC, agents, check, families, key, ready, tables};

const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88A8;
const PSH: u8 = 0x08;
const URG: u8 = 0x20;

fn at(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// A priority tag changes nothing; a VLAN's frame is another interface's.
#[tokio::test(flavor = "multi_thread")]
async fn tags() {
    let kernel = ready().await;
    let [v4, v6] = families();
    let mut untagged = vec![
        (arp(MAC, MAC, [10, 9, 0, 2], [10, 9, 0, 1]), Did::Marked(mark::LOCAL)),
        (arp(MAC, MAC, [10, 9, 0, 1], [10, 9, 0, 2]), Did::Dropped(DropReason::SourceSpoofed)),
        (neighbour(MAC, v6.agent, at("ff02::1"), 136, v6.agent, MAC), Did::Marked(mark::LOCAL)),
        (ethernet(MAC, 0x8847, &[0; 40]), Did::Dropped(DropReason::EthertypeUnsupported)),
    ];
    for (n, f) in (0..).zip([v4, v6]) {
        let to = |destination, protocol, payload: &[u8]| ip(MAC, f.agent, destination, protocol, payload);
        untagged.extend([
            (to(f.direct, 17, &udp(50_000 + n, 443, b"x")), Did::Marked(mark::DIRECT)),
            (to(f.direct, 6, &tcp(50_000, 443, SYN)), Did::Marked(mark::DIRECT)),
            (to(f.direct, f.icmp, &icmp(f.echo, 0, 9)), Did::Marked(mark::DIRECT)),
            (to(f.steered, 6, &tcp(50_000, 443, SYN)), Did::Dropped(DropReason::ListenerMissing)),
            (to(f.direct, 17, &udp(1, 444, b"")), Did::Dropped(DropReason::PolicyDenied)),
            (to(f.direct, 6, &tcp(1, 443, 0)), Did::Dropped(DropReason::TcpFlags)),
            (to(f.direct, 6, &tcp(1, 443, SYN)[..12]), Did::Dropped(DropReason::Malformed)),
        ]);
    }
    let options = [&[17, 0, 0, 0, 0, 0, 0, 0][..], &udp(50_000, 443, b"x")].concat();
    untagged.push((ip(MAC, v6.agent, v6.direct, 60, &options), Did::Marked(mark::DIRECT)));
    for (frame, want) in &untagged {
        check(&kernel, "untagged", frame, *want);
        // Priority 7, and "may be dropped": neither is the id.
        for tci in [0, 0xE000, 0x1000] {
            for tpid in [VLAN, QINQ] {
                let once = tagged(frame, tpid, tci);
                check(&kernel, "one tag", &once, *want);
                check(&kernel, "two tags", &tagged(&once, QINQ, 0), *want);
            }
        }
        let unsupported = Did::Dropped(DropReason::VlanUnsupported);
        check(&kernel, "a VLAN", &tagged(frame, VLAN, 1), unsupported);
        check(&kernel, "the last VLAN", &tagged(frame, QINQ, 0x0FFF), unsupported);
        check(&kernel, "a VLAN in a priority tag", &tagged(&tagged(frame, VLAN, 10), VLAN, 0), unsupported);
        check(&kernel, "a priority tag in a VLAN", &tagged(&tagged(frame, VLAN, 0), QINQ, 10), unsupported);
        let thrice = tagged(&tagged(&tagged(frame, VLAN, 0), VLAN, 0), QINQ, 0);
        check(&kernel, "three tags", &thrice, unsupported);
    }
    let cut = &tagged(&untagged[4].0, VLAN, 0)[..17];
    assert_eq!(kernel.xdp(cut), Did::Dropped(DropReason::Malformed), "half a tag");
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_that_cannot_be() {
    use DropReason as R;
    let kernel = ready().await;
    let drop = |what: &str, frame: &[u8], reason| check(&kernel, what, frame, Did::Dropped(reason));
    let datagram = udp(40_000, 443, b"x");
    let [v4, v6] = families();
    for (f, sources) in [
        (v4, &["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.255.255.255", "255.255.255.255"][..]),
        (v6, &["::", "::1", "ff02::1", "ff0e::1"]),
    ] {
        for source in sources {
            drop(source, &ip(MAC, at(source), f.direct, 17, &datagram), R::SourceMartian);
        }
        drop("land", &ip(MAC, f.agent, f.agent, 6, &tcp(443, 443, SYN)), R::Land);
        drop("land, of the gateway", &ip(MAC, f.gateway, f.gateway, 6, &tcp(1, PROXY_PORT, SYN)), R::Land);
        for mac in [[0x01, 0, 0x5E, 0, 0, 1], [0xFF; 6], [0x03, 0, 0, 0, 0, 1], [0; 6]] {
            drop("group mac", &ip(mac, f.agent, f.direct, 17, &datagram), R::SourceMacGroup);
        }
    }
    drop("arp of a group", &arp([1; 6], [1; 6], [10, 9, 0, 2], [10, 9, 0, 1]), R::SourceMacGroup);
    let reserved = ip(MAC, at("240.0.0.1"), v4.direct, 17, &datagram);
    drop("future use is unicast to Linux", &reserved, R::Anonymous);
}

/// All 256 combinations, against the rule written down as a table of what RFC 9293 has.
#[tokio::test(flavor = "multi_thread")]
async fn tcp_flags() {
    let kernel = ready().await;
    let [f, _] = families();
    for flags in 0..=u8::MAX {
        let core = flags & (SYN | FIN | RST | ACK);
        let is_known = [SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK].contains(&core);
        let want = if !is_known {
            Did::Dropped(DropReason::TcpFlags)
        } else if core == SYN {
            Did::Marked(mark::DIRECT)
        } else {
            Did::Dropped(DropReason::FlowUnknown)
        };
        let port = 20_000 + u16::from(flags);
        check(&kernel, &format!("{flags:#x}"), &ip(MAC, f.agent, f.direct, 6, &tcp(port, 443, flags)), want);
    }
    let tree = ip(MAC, f.agent, f.direct, 6, &tcp(1, 443, FIN | PSH | URG));
    check(&kernel, "a Christmas tree", &tree, Did::Dropped(DropReason::TcpFlags));
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours() {
    use DropReason as R;
    let kernel = ready().await;
    let [_, v6] = families();
    let pass = |what: &str, frame: &[u8]| check(&kernel, what, frame, Did::Marked(mark::LOCAL));
    let drop = |what: &str, frame: &[u8], reason| check(&kernel, what, frame, Did::Dropped(reason));
    let agent4 = [10, 9, 0, 2];
    pass("announcement", &arp(MAC, MAC, agent4, agent4));
    drop(
        "reply from nowhere",
        &{
            let mut frame = arp(MAC, MAC, [0; 4], agent4);
            frame[21] = 2;
            frame
        },
        R::SourceMartian,
    );
    drop("arp of a group address", &arp(MAC, MAC, [224, 0, 0, 1], agent4), R::SourceMartian);
    drop(
        "reverse arp",
        &{
            let mut frame = arp(MAC, MAC, agent4, agent4);
            frame[21] = 3;
            frame
        },
        R::NeighbourMalformed,
    );

    let all = at("ff02::1");
    let message = |source: IpAddr, kind: u8, body: &[u8], options: &[u8]| {
        let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(body);
        bytes.extend(options);
        with_hops(ip(MAC, source, all, 58, &bytes), 255)
    };
    let IpAddr::V6(target) = v6.agent else { panic!("IPv6") };
    let target = target.octets();
    let own = [1, 1, 2, 0, 0, 0, 0, 1];
    let other = [1, 1, 2, 0, 0, 0, 0, 2];
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let long = [[200, 3], [0; 2], [0; 2], [0; 2]].concat().into_iter().chain([0; 16]).collect::<Vec<u8>>();
    pass("is my address free", &message(at("::"), 135, &target, &[]));
    pass("is it free, with a nonce", &message(at("::"), 135, &target, &nonce));
    drop("free, and an option", &message(at("::"), 135, &target, &own), R::NeighbourMalformed);
    drop("a claim from nowhere", &message(at("::"), 136, &target, &[]), R::SourceMartian);
    pass("a long option nobody knows", &message(v6.agent, 135, &target, &[&long[..], &own].concat()));
    drop(
        "behind a long option",
        &message(v6.agent, 135, &target, &[&long[..], &other].concat()),
        R::SourceSpoofed,
    );
    drop("five options", &message(v6.agent, 135, &target, &nonce.repeat(5)), R::NeighbourMalformed);
    drop(
        "option without length",
        &message(v6.agent, 135, &target, &[14, 0, 0, 0, 0, 0, 0, 0]),
        R::NeighbourMalformed,
    );
    drop(
        "option beyond the end",
        &message(v6.agent, 135, &target, &[14, 2, 0, 0, 0, 0, 0, 0]),
        R::NeighbourMalformed,
    );
    drop(
        "long own address",
        &message(
            v6.agent,
            135,
            &target,
            &[[1, 2], [0; 2]].concat().into_iter().chain([0; 12]).collect::<Vec<_>>(),
        ),
        R::NeighbourMalformed,
    );
    drop("cut", &message(v6.agent, 135, &target[..12], &[]), R::NeighbourMalformed);
    drop("target is a group", &message(v6.agent, 135, &[0xFF; 16], &[]), R::NeighbourMalformed);
    pass("is there a router", &message(v6.agent, 133, &[], &own));
    pass("is there one, from nowhere", &message(at("::"), 133, &[], &[]));
    drop("redirect", &message(v6.agent, 137, &[0; 32], &[]), R::RouterMessage);
    drop("advertisement", &message(v6.agent, 134, &[0; 8], &[]), R::RouterMessage);
}

/// Hosts report it, to nobody here.
#[tokio::test(flavor = "multi_thread")]
async fn membership_of_multicast_groups() {
    use DropReason as R;
    let kernel = ready().await;
    let [_, v6] = families();
    let drop = |what: &str, frame: &[u8], reason| check(&kernel, what, frame, Did::Dropped(reason));
    let alert = |kind: u8, source| {
        let mut bytes = vec![58, 0, 5, 2, 0, 0, 1, 0, kind, 0, 0, 0, 0, 0, 0, 1];
        bytes.extend([0; 20]);
        ip(MAC, source, at("ff02::16"), 0, &bytes)
    };
    for kind in [130, 131, 132, 143] {
        drop("mld", &alert(kind, v6.agent), R::MulticastListener);
        drop("mld without an address", &alert(kind, at("::")), R::MulticastListener);
    }
    let mut igmp = ip(MAC, at("10.9.0.2"), at("224.0.0.22"), 2, &[0; 12]);
    drop("igmp", &igmp, R::MulticastListener);
    igmp[14] = 0x46;
    drop("igmp with router alert", &igmp, R::MulticastListener);
}

/// An ICMP error that quotes `frame`.
fn about(f: &Family, source: IpAddr, destination: IpAddr, kind: u8, frame: &[u8]) -> Vec<u8> {
    let mut message = icmp(kind, 0, 0)[..8].to_vec();
    message.extend(&frame[14..]);
    ip(MAC, source, destination, f.icmp, &message)
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_agents_report() {
    let kernel = ready().await;
    for f in families() {
        let unreachable = f.unreachable;
        let (too_big, exceeded) = if f.icmp == 1 { (3, 11) } else { (2, 3) };
        let dropped = |reason| Did::Dropped(reason);
        let answer = ip(MAC, f.direct, f.agent, 17, &udp(443, 40_100, b"late"));
        let early = about(&f, f.agent, f.direct, unreachable, &answer);
        check(&kernel, "about nothing", &early, dropped(DropReason::FlowUnknown));
        kernel.ingress(&ip(MAC, f.agent, f.direct, 17, &udp(40_100, 443, b"")));
        for kind in [unreachable, too_big, exceeded] {
            let error = about(&f, f.agent, f.direct, kind, &answer);
            check(&kernel, "about a live flow", &error, Did::Marked(mark::DIRECT));
        }
        // Of 576 bytes, or 1,280: what more it carried would be a tunnel's.
        let most = if f.icmp == 1 { 576 - 28 - 28 } else { 1280 - 48 - 48 };
        let quoting = |bytes| ip(MAC, f.direct, f.agent, 17, &udp(443, 40_100, &vec![7; bytes]));
        let long = about(&f, f.agent, f.direct, unreachable, &quoting(most));
        check(&kernel, "as long as errors may be", &long, Did::Marked(mark::DIRECT));
        let longer = about(&f, f.agent, f.direct, unreachable, &quoting(most + 1));
        check(&kernel, "longer", &longer, dropped(DropReason::IcmpPayload));
        let sent = |bytes| ip(MAC, f.agent, f.direct, 17, &udp(40_100, 443, &vec![7; bytes]));
        let back = |bytes| about(&f, f.direct, f.agent, unreachable, &sent(bytes));
        assert_eq!(kernel.egress(&back(most)), Did::Marked(0));
        assert_eq!(kernel.egress(&back(most + 1)), dropped(DropReason::IcmpPayload));
        let elsewhere = about(&f, f.agent, f.unnamed, unreachable, &answer);
        check(&kernel, "to another than its sender", &elsewhere, dropped(DropReason::IcmpUnsupported));
        let theirs = about(&f, f.stranger, f.direct, unreachable, &answer);
        check(&kernel, "from a stranger", &theirs, dropped(DropReason::IcmpUnsupported));
        let own = ip(MAC, f.agent, f.direct, 17, &udp(40_100, 443, b""));
        let reversed = about(&f, f.direct, f.agent, unreachable, &own);
        check(&kernel, "about what it sent itself", &reversed, dropped(DropReason::Anonymous));
        let other = ip(MAC, f.direct, f.stranger, 17, &udp(443, 40_100, b"late"));
        let foreign = about(&f, f.stranger, f.direct, unreachable, &other);
        check(&kernel, "of nobody", &foreign, dropped(DropReason::Anonymous));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn echoes_carry_what_ping_sends() {
    let kernel = ready().await;
    for f in families() {
        for (bytes, want) in [
            (0, Did::Marked(mark::DIRECT)),
            (56, Did::Marked(mark::DIRECT)),
            (64, Did::Marked(mark::DIRECT)),
            (65, Did::Dropped(DropReason::IcmpPayload)),
            (1400, Did::Dropped(DropReason::IcmpPayload)),
        ] {
            let ping = ip(MAC, f.agent, f.direct, f.icmp, &echo(f.echo, 3, bytes));
            check(&kernel, &format!("{bytes} bytes"), &ping, want);
        }
        let back = |bytes| ip(MAC, f.direct, f.agent, f.icmp, &echo(f.reply, 3, bytes));
        assert_eq!(kernel.egress(&back(56)), Did::Marked(0));
        assert_eq!(kernel.egress(&back(1400)), Did::Dropped(DropReason::IcmpPayload));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transports_that_must_be_named() {
    let mut kernel = ready().await;
    let all = Transport::ALL.into_iter().filter(|t| t.is_named_only());
    let payload = [0; 24];
    for f in families() {
        for transport in all.clone() {
            let frame = ip(MAC, f.agent, f.direct, transport.number(), &payload);
            check(&kernel, transport.name(), &frame, Did::Dropped(DropReason::ProtocolUnsupported));
            let cut = ip(MAC, f.agent, f.direct, transport.number(), &payload[..3]);
            check(&kernel, transport.name(), &cut, Did::Dropped(DropReason::Malformed));
            let stranger = ip(MAC, f.stranger, f.direct, transport.number(), &payload);
            check(&kernel, transport.name(), &stranger, Did::Dropped(DropReason::Anonymous));
        }
        let unknown = ip(MAC, f.agent, f.direct, 89, &payload);
        check(&kernel, "ospf", &unknown, Did::Dropped(DropReason::ProtocolUnsupported));
    }
    let cell = |transport| VerdictCell {
        agent_class: 1,
        destination_class: 1,
        transport,
        port_class: 0,
        action: KernelAction::Direct,
        policies: 0,
        limits: 0,
        never_direct: false,
    };
    let named = KernelTables { verdicts: all.clone().map(cell).collect(), ..tables() };
    kernel.apply(2, Some(named), agents()).await;
    for f in families() {
        for transport in all.clone() {
            let out = ip(MAC, f.agent, f.direct, transport.number(), &payload);
            let back = ip(MAC, f.direct, f.agent, transport.number(), &payload);
            assert_eq!(kernel.egress(&back), Did::Dropped(DropReason::FlowUnknown), "{transport:?}");
            check(&kernel, transport.name(), &out, Did::Marked(mark::DIRECT));
            assert_eq!(kernel.egress(&back), Did::Marked(0), "{transport:?}");
            let other = ip(MAC, f.agent, f.unnamed, transport.number(), &payload);
            check(&kernel, transport.name(), &other, Did::Dropped(DropReason::ProtocolUnsupported));
            // Path MTU needs it.
            let router = about(&f, f.unnamed, f.agent, f.unreachable, &out);
            assert_eq!(kernel.egress(&router), Did::Marked(0), "{transport:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quarantine_counts_for_the_next_packet() {
    let mut kernel = ready().await;
    let quarantined = Did::Dropped(DropReason::AgentQuarantined);
    for f in families() {
        let segment = |flags| ip(MAC, f.agent, f.direct, 6, &tcp(40_000, 443, flags));
        let back = ip(MAC, f.direct, f.agent, 6, &tcp(443, 40_000, ACK));
        let proxy = ip(MAC, f.agent, f.gateway, 6, &tcp(40_001, PROXY_PORT, SYN));
        let proxy_back = ip(MAC, f.gateway, f.agent, 6, &tcp(PROXY_PORT, 40_001, ACK));
        let error = about(&f, f.agent, f.direct, f.unreachable, &back);
        check(&kernel, "connection", &segment(SYN), Did::Marked(mark::DIRECT));
        check(&kernel, "proxy", &proxy, Did::Marked(mark::LOCAL));
        assert_eq!(kernel.egress(&back), Did::Marked(0));

        // Others' bits, in the same word and elsewhere, are others'.
        kernel.quarantine.set(&BTreeSet::from([2, 63, 64, 70_000])).expect("set");
        check(&kernel, "others", &segment(ACK), Did::Marked(mark::DIRECT));
        kernel.quarantine.set(&BTreeSet::from([1, 64])).expect("set");
        for (what, frame) in
            [("live", segment(ACK)), ("new", segment(SYN)), ("proxy", proxy), ("error", error)]
        {
            check(&kernel, what, &frame, quarantined);
        }
        assert_eq!(kernel.egress(&back), quarantined, "what the other side still sends");
        assert_eq!(kernel.egress(&proxy_back), quarantined, "what the proxy still sends");

        // A generation changes nothing of it.
        kernel.apply(2 + u64::from(f.icmp), Some(tables()), agents()).await;
        check(&kernel, "after a generation", &segment(ACK), quarantined);

        kernel.quarantine.set(&BTreeSet::new()).expect("set");
        check(&kernel, "released", &segment(ACK), Did::Marked(mark::DIRECT));
        let flow = kernel.flow(&key(&f, f.direct, 443, protocol::TCP)).expect("flow");
        assert_eq!((flow.agent, flow.action), (1, action::DIRECT));
    }
    let beyond = BTreeSet::from([clawgress_ebpf_common::bound::AGENT_INDICES_MAX]);
    kernel.quarantine.set(&beyond).expect_err("no agent has this index");
}

/// What is bound to an index that has no bit cannot pass.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_bit_is_quarantined() {
    let mut kernel = Kernel::load();
    let [f, _] = families();
    let mut agents = agents();
    agents[0].index = clawgress_ebpf_common::bound::AGENT_INDICES_MAX;
    kernel.apply(1, Some(tables()), agents).await;
    let frame = ip(MAC, f.agent, f.direct, 17, &udp(1, 443, b""));
    check(&kernel, "beyond", &frame, Did::Dropped(DropReason::AgentQuarantined));
}

/// Real frames: XDP finds the tag in the frame, TC finds it taken off.
#[tokio::test(flavor = "multi_thread")]
async fn tags_on_a_link() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, network::tables(), network::agents()).await;
    let shown = Command::new("ip").args(["-n", &lab.ns(Place::Gateway), "-o", "link", "show", "ga"]).output();
    let shown = String::from_utf8(shown.expect("ip").stdout).expect("text");
    let to: MacAddress = shown.split("link/ether ").nth(1).expect("mac")[..17].parse().expect("mac");
    let from: MacAddress = AGENT_MAC.parse().expect("mac");
    for f in network::families() {
        let mut plain = ip(from.0, f.known, f.direct, 6, &tcp(45_000, network::PORT, SYN));
        plain[..6].copy_from_slice(&to.0);
        let priority = tagged(&plain, VLAN, 0xE000);
        for (frame, counter) in [
            (plain.clone(), "tc_direct"),
            (priority.clone(), "tc_direct"),
            (tagged(&priority, QINQ, 0), "tc_direct"),
            (tagged(&plain, VLAN, 10), "vlan_unsupported"),
            (tagged(&tagged(&plain, VLAN, 10), QINQ, 0), "vlan_unsupported"),
        ] {
            let count = async |lab: &Lab| lab.status().await.counters.get(counter).copied().unwrap_or(0);
            let before = count(&lab).await;
            let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
            let send = format!(
                "import socket; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('a0', 0)); s.send(bytes.fromhex('{hex}'))"
            );
            let mut python = Command::new("ip");
            python.args(["netns", "exec", &lab.ns(Place::Agents), "python3", "-c", &send]);
            assert!(python.status().expect("python").success());
            let until = Instant::now() + network::WORKS;
            while count(&lab).await == before {
                assert!(Instant::now() < until, "no {counter} for {hex}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}
