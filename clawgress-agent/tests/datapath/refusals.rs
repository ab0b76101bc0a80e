//! Refusals that are answered: to whom, for what, how many, and that nothing of the packet goes further.

use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use clawgress_ebpf_common::{DropReason, bound};
use clawgress_identity::AgentState;
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables, VerdictCell};

use crate::frames::{ACK, SYN, icmp, ip, tcp, udp};
use crate::kernel::Did;
use crate::lab::{Lab, Place, at};
use crate::network::{self, PORT, REFUSED, Server, WORKS, dial, talk};
use crate::verdicts::{MAC, families, ready};

const QUIC: u16 = 443;

#[tokio::test(flavor = "multi_thread")]
async fn policy_is_explained_to_agents_and_silence_kept_to_others() {
    let mut kernel = ready().await;
    for f in families() {
        kernel.answer(1, true);
        kernel.answer(2, true);
        let datagram = udp(40_000, QUIC, b"x");
        let to = |destination, payload: &[u8], protocol| ip(MAC, f.agent, destination, protocol, payload);
        for (what, frame, reason) in [
            ("unnamed address", to(f.unnamed, &datagram, 17), DropReason::PolicyDenied),
            ("tcp", to(f.unnamed, &tcp(1, QUIC, SYN), 6), DropReason::PolicyDenied),
            ("echo", to(f.unnamed, &icmp(f.echo, 0, 7), f.icmp), DropReason::PolicyDenied),
            ("forbidden", to(f.forbidden, &datagram, 17), DropReason::PolicyForbidden),
            ("error", to(f.broken, &datagram, 17), DropReason::PolicyError),
        ] {
            assert_eq!(kernel.xdp(&frame), Did::Passed, "xdp: {what}");
            assert_eq!(kernel.ingress(&frame), Did::Rejected(reason), "tc: {what}");
        }
        let unknown = to(f.direct, &tcp(41_000, QUIC, ACK), 6);
        assert_eq!(kernel.ingress(&unknown), Did::Rejected(DropReason::FlowUnknown));

        let other_mac = [2, 0, 0, 0, 0, 2];
        for (what, frame, reason) in [
            ("spoofed", ip(other_mac, f.agent, f.unnamed, 17, &datagram), DropReason::SourceSpoofed),
            ("anonymous", ip(MAC, f.stranger, f.unnamed, 17, &datagram), DropReason::Anonymous),
            ("quarantined", ip(MAC, f.disabled, f.unnamed, 17, &datagram), DropReason::AgentDisabled),
            ("not understood", to(f.unnamed, &[0; 16], 47), DropReason::ProtocolUnsupported),
            ("the gateway", to(f.gateway, &tcp(1, 22, SYN), 6), DropReason::GatewayAddress),
        ] {
            assert_eq!(kernel.xdp(&frame), Did::Dropped(reason), "xdp: {what}");
            assert_eq!(kernel.ingress(&frame), Did::Dropped(reason), "tc: {what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_dropped_early_and_in_silence() {
    let mut kernel = ready().await;
    let [f, _] = families();
    kernel.answer(1, true);
    let frame = ip(MAC, f.agent, f.unnamed, 17, &udp(40_000, QUIC, b"x"));
    for n in 0..bound::REJECTS_MAX {
        assert_eq!(kernel.xdp(&frame), Did::Passed, "{n}");
        assert_eq!(kernel.ingress(&frame), Did::Rejected(DropReason::PolicyDenied), "{n}");
    }
    assert_eq!(kernel.xdp(&frame), Did::Dropped(DropReason::PolicyDenied));
    assert_eq!(kernel.ingress(&frame), Did::Dropped(DropReason::PolicyDenied));
}

/// The lab's tables, with `connect` and no more for QUIC to one network, and a forbidden one.
fn tables() -> KernelTables {
    let mut tables = network::tables();
    tables.ports = vec![(0, 0), (QUIC, 2), (QUIC + 1, 0), (PORT, 1), (PORT + 1, 0)];
    tables.verdicts.push(VerdictCell {
        agent_class: 1,
        destination_class: 2,
        transport: Transport::Udp,
        port_class: 2,
        action: KernelAction::Deny(DropReason::InspectionRequired.code()),
        policies: 0,
        limits: 0,
        never_direct: false,
    });
    tables
}

/// What a client that speaks QUIC sees of its first datagram.
fn knock(lab: &Lab, source: IpAddr, to: IpAddr, patience: Duration) -> ErrorKind {
    lab.inside(Place::Agents, || {
        let socket = UdpSocket::bind(SocketAddr::from((source, 0))).expect("bind");
        socket.connect((to, QUIC)).expect("connect");
        socket.set_read_timeout(Some(patience)).expect("time-out");
        socket.send(&[0xC0; 1200]).expect("send");
        socket.recv(&mut [0; 16]).expect_err("nobody answers").kind()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_learn_of_a_refusal_at_once_and_nothing_gets_through() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), network::agents()).await;
    for f in network::families() {
        let sinks = [f.steered, f.forbidden].map(|sink| {
            let socket = lab.inside(Place::Outside, || UdpSocket::bind((sink, QUIC)).expect("bind"));
            socket.set_nonblocking(true).expect("non-blocking");
            socket
        });
        for to in [f.steered, f.forbidden] {
            let seen = knock(&lab, f.known, to, WORKS);
            assert!(!matches!(seen, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{to}: {seen:?}");
        }
        let server = Server::start(&lab, f.forbidden);
        let refused = dial(&lab, f.known, (f.forbidden, PORT), WORKS).expect_err("denied");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "a reset");
        assert_eq!(server.accepted(), 0);
        // Whoever is not known hears nothing.
        let seen = knock(&lab, f.unknown, f.forbidden, REFUSED);
        assert!(matches!(seen, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{seen:?}");
        let silent = dial(&lab, f.unknown, (f.forbidden, PORT), REFUSED).expect_err("anonymous");
        assert_ne!(silent.kind(), ErrorKind::ConnectionRefused);
        for sink in sinks {
            assert!(sink.recv(&mut [0; 16]).is_err(), "{sink:?} received what was refused");
        }
    }
    let counters = lab.status().await.counters;
    assert!(counters["tc_rejected"] >= 6, "{counters:?}");
    assert!(counters[DropReason::InspectionRequired.name()] >= 2, "{counters:?}");
}

/// TC lets a refused packet on so that nftables answers it. Without the table, and nobody there to install it
/// again, it still goes nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_rules_that_answer_nothing_refused_gets_through() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), network::agents()).await;
    lab.stop(nix::sys::signal::Signal::SIGKILL);
    lab.inside(Place::Gateway, || {
        let flushed = std::process::Command::new("nft").args(["flush", "ruleset"]).status().expect("nft");
        assert!(flushed.success());
    });
    for f in network::families() {
        let sink = lab.inside(Place::Outside, || UdpSocket::bind((f.forbidden, QUIC)).expect("bind"));
        let server = Server::start(&lab, f.forbidden);
        for _ in 0..3 {
            knock(&lab, f.known, f.forbidden, Duration::from_millis(200));
        }
        dial(&lab, f.known, (f.forbidden, PORT), REFUSED).expect_err("denied");
        sink.set_read_timeout(Some(REFUSED)).expect("time-out");
        assert!(sink.recv(&mut [0; 16]).is_err(), "{sink:?} received what was refused");
        assert_eq!(server.accepted(), 0);
    }
}

/// A connection whose permit is taken away in its midst ends at its next segment.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_may_not_go_on_is_reset() {
    let mut lab = Lab::new();
    lab.start().await;
    for (n, f) in (0..).zip(network::families()) {
        lab.apply(3 * n + 1, tables(), network::agents()).await;
        let _server = Server::start(&lab, f.direct);
        let mut client = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
        talk(&mut client, b"before");
        let nothing = KernelTables { verdicts: Vec::new(), ..tables() };
        lab.apply(3 * n + 2, nothing, network::agents()).await;
        client.write_all(b"after").expect("it is only queued");
        let seen = std::io::Read::read(&mut client, &mut [0; 16]).expect_err("no answer").kind();
        assert_eq!(seen, ErrorKind::ConnectionReset);
    }
    // Quarantine says nothing.
    let mut agents = network::agents();
    agents[0].state = AgentState::Quarantined;
    lab.apply(9, tables(), agents).await;
    let silent = dial(&lab, at("10.77.0.2"), (at("192.0.2.5"), PORT), REFUSED).expect_err("quarantined");
    assert_ne!(silent.kind(), ErrorKind::ConnectionRefused);
}
