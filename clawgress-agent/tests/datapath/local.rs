//! Packets of local workloads: what is open ends with its permission, what has to be read is led to L7, and
//! no way of making or using a socket leads around that.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clawgress_api::handover::ListenerKind;
use clawgress_api::{Ingress, RecordKind, Verdict};
use clawgress_ebpf_common::user::{FlowTable, address, ingress};
use clawgress_ebpf_common::{DropReason, FlowKey, IFINDEX_LOCAL, action, protocol};
use clawgress_identity::{AgentState, IdentityMethod};
use clawgress_policy::kernel::KernelTables;

use crate::kernel::agent;
use crate::lab::{Lab, PROXY_PORT, Place, at};
use crate::network::{REFUSED, Server, WORKS, accept_stream, records, take};
use crate::puppet::Puppet;
use crate::workload::{PORT, open_workload, tables};

pub fn nothing() -> KernelTables {
    KernelTables { verdicts: Vec::new(), ..tables() }
}

pub const DIRECT: [&str; 2] = ["198.51.100.5", "2001:db8:1::5"];
pub const STEERED: [&str; 2] = ["203.0.113.5", "2001:db8:2::5"];

/// By a generation, by the agent's state, and by closing the workload.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_connection_ends_with_its_permission() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[])]).await;
    let workload = open_workload(&lab, 1, "job").await;
    let _servers = DIRECT.map(|a| Server::start(&lab, at(a)));
    let mut puppet = Puppet::new(&lab, &workload.path);
    let mut number = 1;
    for to in DIRECT {
        // Still permitted by the next generation: it goes on.
        assert_eq!(puppet.tell(&format!("dial('a', '{to}', {PORT}, 10)")), "ok", "{to}");
        assert_eq!(puppet.tell("talk('a', wait=10)"), "hello");
        number += 1;
        lab.apply(number, tables(), vec![agent(1, &[])]).await;
        assert_eq!(puppet.tell("talk('a', wait=10)"), "hello", "{to}: judged again, and permitted");
        // Nor does it end while it says nothing: the sweep judges none of this machine's own.
        number += 1;
        lab.apply(number, tables(), vec![agent(1, &[])]).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(puppet.tell("talk('a', wait=10)"), "hello", "{to}: idle over a generation");
        number += 1;
        lab.apply(number, nothing(), vec![agent(1, &[])]).await;
        assert_eq!(puppet.tell("talk('a')"), "timeout", "{to}: permitted no longer");
        // What ended stays ended, and a new one is judged for itself.
        number += 1;
        lab.apply(number, tables(), vec![agent(1, &[])]).await;
        assert_eq!(puppet.tell("talk('a')"), "timeout", "{to}: cut in its midst");
        assert_eq!(puppet.tell(&format!("dial('b', '{to}', {PORT}, 10)")), "ok");
        assert_eq!(puppet.tell("talk('b', wait=10)"), "hello");
        number += 1;
        let disabled = clawgress_identity::Agent { state: AgentState::Disabled, ..agent(1, &[]) };
        lab.apply(number, tables(), vec![disabled]).await;
        assert_eq!(puppet.tell("talk('b')"), "timeout", "{to}: the agent is disabled");
        number += 1;
        lab.apply(number, tables(), vec![agent(1, &[])]).await;
    }
    let counters = lab.status().await.counters;
    assert!(counters.contains_key("agent_disabled") && counters["local_dropped"] > 0, "{counters:?}");

    // A socket that left with a process: closing the workload ends whoever is in there, and the socket
    // outside can't be used.
    assert_eq!(puppet.tell(&format!("dial('c', '{}', {PORT}, 10)", DIRECT[0])), "ok");
    let parent = PathBuf::from(&workload.path).parent().and_then(|p| p.parent()).expect("parent").to_owned();
    std::fs::write(parent.join("cgroup.procs"), puppet.child.id().to_string()).expect("move out");
    assert_eq!(puppet.tell("talk('c', wait=10)"), "hello", "the socket is the workload's still");
    lab.client().await.close_workload(workload).await.expect("close");
    assert_eq!(puppet.tell("talk('c')"), "timeout", "nobody's socket");
}

/// A laptop has no agents behind it: its own commands are governed all the same, and everything else of it is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_agents_behind_it_governs_its_own() {
    let mut lab = Lab::local();
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[])]).await;
    let workload = open_workload(&lab, 1, "job").await;
    let _servers = DIRECT.map(|a| Server::start(&lab, at(a)));
    let _denied = Server::start(&lab, at("192.0.2.5"));
    let mut puppet = Puppet::new(&lab, &workload.path);
    for to in DIRECT {
        assert_eq!(puppet.tell(&format!("dial('a', '{to}', {PORT}, 10)")), "ok", "{to}");
        assert_eq!(puppet.tell("talk('a', wait=10)"), "hello");
    }
    assert_eq!(puppet.tell(&format!("dial('b', '192.0.2.5', {PORT})")), "EPERM");
    // Whoever is in no workload is nobody's business.
    let word = lab.inside(Place::Gateway, || {
        let address = SocketAddr::from((IpAddr::from([192, 0, 2, 5]), PORT));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
        stream.write_all(b"hello")?;
        let mut word = [0; 5];
        stream.read_exact(&mut word).map(|()| word)
    });
    assert_eq!(&word.expect("an exchange"), b"hello");
    lab.apply(2, nothing(), vec![agent(1, &[])]).await;
    assert_eq!(puppet.tell("talk('a')"), "timeout", "permitted no longer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_flow_has_a_decision_and_an_outcome() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[])]).await;
    let workload = open_workload(&lab, 1, "job").await;
    let _server = Server::start(&lab, at(DIRECT[0]));
    let mut puppet = Puppet::new(&lab, &workload.path);
    assert_eq!(puppet.tell(&format!("dial('a', '{}', {PORT}, 10)", DIRECT[0])), "ok");
    assert_eq!(puppet.tell("talk('a', 'x' * 500, 10) == 'x' * 500"), "True");
    assert_eq!(puppet.tell("held.pop('a').close()"), "None");
    assert_eq!(puppet.tell(&format!("dial('b', '192.0.2.5', {PORT})")), "EPERM");
    let records = records(&lab, Duration::from_secs(40), |r| r.kind == RecordKind::Outcome).await;
    let of = |kind, verdict| records.iter().find(|r| r.kind == kind && r.verdict == verdict).expect("record");
    let decision = of(RecordKind::Decision, Some(Verdict::Allow));
    let outcome = of(RecordKind::Outcome, None);
    assert_eq!(outcome.request, decision.request, "they are joined");
    assert!(outcome.bytes_sent > Some(500) && outcome.bytes_received > Some(500), "{outcome:?}");
    let denied = records.iter().find(|r| r.destination.ip == Some(at("192.0.2.5"))).expect("a denial");
    assert_eq!(denied.verdict, Some(Verdict::Deny));
    for record in [decision, outcome, denied] {
        let who = record.agent.as_ref().expect("agent");
        assert_eq!((who.agent.as_str(), who.method), ("a1", IdentityMethod::Cgroup), "{record:?}");
        assert_eq!(record.ingress, Some(Ingress::Local), "{record:?}");
    }
    assert_eq!(decision.source.ip, Some(at("10.78.0.1")));
    assert_eq!(decision.destination.ip, Some(at(DIRECT[0])));
}

/// What policy wants read is led to L7 whatever the program knows of proxies, with its destination, and
/// never leaves by itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_to_be_read_is_led_to_l7() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[])]).await;
    let workload = open_workload(&lab, 1, "job").await;
    let servers = STEERED.map(|a| Server::start(&lab, at(a)));
    let mut puppet = Puppet::new(&lab, &workload.path);
    assert_eq!(puppet.tell(&format!("dial('a', '{}', {PORT})", STEERED[0])), "timeout", "without l7");
    let (_loan, handover, mut descriptors) = take(&lab).await;
    let flows = FlowTable::from_fd(descriptors.pop().expect("flow table")).expect("layout");
    for to in [STEERED[0], STEERED[1], "::ffff:203.0.113.5"] {
        let original = at(to).to_canonical();
        assert_eq!(puppet.tell(&format!("dial('a', '{to}', {PORT}, 10)")), "ok", "{to}");
        assert_eq!(puppet.tell("held['a'].getpeername()[0]"), to, "as it was dialled");
        let mut accepted =
            accept_stream(&handover, &descriptors, ListenerKind::Transparent, original.is_ipv4());
        let (local, peer) = (accepted.local_addr().expect("local"), accepted.peer_addr().expect("peer"));
        assert_eq!(local, SocketAddr::from((original, PORT)), "the original destination");
        assert!(peer.ip().is_loopback(), "{peer}");
        let entered = ingress(&accepted).expect("interface");
        assert!(!handover.interfaces.contains(&entered), "{entered} is no agents' interface");
        let key = FlowKey {
            source: address(peer.ip()),
            destination: address(local.ip()),
            source_port_be: peer.port().to_be(),
            destination_port_be: local.port().to_be(),
            ifindex: IFINDEX_LOCAL,
            protocol: protocol::TCP,
            pad: [0; 3],
        };
        let flow = flows.lookup(&key).expect("lookup").expect("a flow record");
        assert_eq!((flow.agent, flow.action), (1, action::STEER));
        let echo = std::thread::spawn(move || {
            accepted.set_nonblocking(false).expect("blocking");
            let mut word = [0; 5];
            accepted.read_exact(&mut word).expect("read");
            accepted.write_all(&word).expect("write");
            accepted
        });
        assert_eq!(puppet.tell("talk('a', wait=10)"), "hello");
        drop(echo.join().expect("echo"));

        // Fast Open takes the same way, and so does a socket that was connected elsewhere before.
        let fast = format!(
            "[s := made('{to}', wait=None), s.sendto(b'x', socket.MSG_FASTOPEN, ('{to}', {PORT})), held.update(a=s)][1]"
        );
        assert_eq!(puppet.tell(&fast), "1", "{to}");
        let mut accepted =
            accept_stream(&handover, &descriptors, ListenerKind::Transparent, original.is_ipv4());
        accepted.set_nonblocking(false).expect("blocking");
        accepted.read_exact(&mut [0]).expect("the byte");
    }

    // The proxy: a record tells L7 whose connection it is.
    assert_eq!(puppet.tell(&format!("dial('p', '10.77.0.1', {PROXY_PORT}, 10)")), "ok");
    let accepted = accept_stream(&handover, &descriptors, ListenerKind::Proxy, true);
    let (local, peer) = (accepted.local_addr().expect("local"), accepted.peer_addr().expect("peer"));
    let key = FlowKey {
        source: address(peer.ip()),
        destination: address(local.ip()),
        source_port_be: peer.port().to_be(),
        destination_port_be: local.port().to_be(),
        ifindex: IFINDEX_LOCAL,
        protocol: protocol::TCP,
        pad: [0; 3],
    };
    let flow = flows.lookup(&key).expect("lookup").expect("a flow record");
    assert_eq!((flow.agent, flow.action), (1, action::LOCAL));

    // Quarantine cuts what is open at L7 too.
    let disabled = clawgress_identity::Agent { state: AgentState::Disabled, ..agent(1, &[]) };
    lab.apply(2, tables(), vec![disabled]).await;
    puppet.tell("held['p'].send(b'x')");
    accepted.set_nonblocking(false).expect("blocking");
    accepted.set_read_timeout(Some(REFUSED)).expect("time-out");
    assert!((&accepted).read(&mut [0]).is_err(), "what a disabled agent sends does not arrive");
    assert_eq!(servers.map(|s| s.accepted()), [0, 0], "never by itself");
}

/// A socket may be pointed and bound in many ways; none leads out.
#[tokio::test(flavor = "multi_thread")]
async fn no_socket_option_leads_around() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[])]).await;
    let workload = open_workload(&lab, 1, "job").await;
    let (_loan, _handover, _descriptors) = take(&lab).await;
    let denied: [IpAddr; 2] = [at("192.0.2.5"), at("2001:db8:3::5")];
    let servers: Vec<_> = denied
        .into_iter()
        .chain(STEERED.map(at))
        .chain(DIRECT.map(at))
        .map(|a| Server::start(&lab, a))
        .collect();
    let mut puppet = Puppet::new(&lab, &workload.path);
    for to in denied {
        let fast = format!("made('{to}').sendto(b'x', socket.MSG_FASTOPEN, ('{to}', {PORT}))");
        assert_eq!(puppet.tell(&fast), "EPERM", "{to}: fast open");
        let later =
            format!("dial('a', '{to}', {PORT}, before=lambda s: s.setsockopt(socket.IPPROTO_TCP, 30, 1))");
        assert_eq!(puppet.tell(&later), "EPERM", "{to}: TCP_FASTOPEN_CONNECT");
        assert_eq!(puppet.tell(&format!("dial('a', '{to}', {PORT})")), "EPERM", "{to}");
        assert_eq!(puppet.tell(&format!("send('{to}', {PORT})")), "EPERM", "{to}");
    }
    // Out by the uplink in place of loopback; a process of an ordinary user may ask for that.
    let bound = "lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'gu')";
    for to in STEERED {
        let answer = puppet.tell(&format!("dial('a', '{to}', {PORT}, before={bound})"));
        assert_ne!(answer, "ok", "{to}");
    }
    // From an address that is not this machine's: IP_FREEBIND, which anybody may set, and IP_TRANSPARENT, which
    // takes a capability, so that the kernel itself has nothing against it.
    for (to, option) in DIRECT[..1].iter().chain(&STEERED[..1]).flat_map(|to| [(to, 15), (to, 19)]) {
        let source = "198.51.100.77";
        let free = format!("lambda s: [s.setsockopt(0, {option}, 1), s.bind(('{source}', 0))]");
        let answer = puppet.tell(&format!("dial('a', '{to}', {PORT}, before={free})"));
        assert_ne!(answer, "ok", "{to} from {source}");
    }
    // With a source route (RFC 791 3.1), where the kernel lets a process have one.
    let route = "lambda s: s.setsockopt(0, 4, bytes([131, 7, 4, 192, 0, 2, 5, 0]))";
    let answer = puppet.tell(&format!("dial('a', '{}', {PORT}, before={route})", DIRECT[0]));
    assert_ne!(answer, "ok", "source route");
    // A mark of its own needs a capability, which a workload of an ordinary user has not; here, as root, it
    // has, and the hook sets it anew.
    let marked = "lambda s: s.setsockopt(socket.SOL_SOCKET, 36, struct.pack('I', 0xC1A20000))";
    assert_eq!(puppet.tell(&format!("dial('m', '{}', {PORT}, 10, {marked})", STEERED[0])), "ok", "to l7");

    // Connected UDP is judged by packet: what was permitted at the call is not for ever.
    let datagrams = lab.inside(Place::Outside, || UdpSocket::bind((at(DIRECT[0]), PORT)).expect("bind"));
    datagrams.set_read_timeout(Some(WORKS)).expect("time-out");
    let udp = format!(
        "[s := made('{0}', socket.SOCK_DGRAM), s.connect(('{0}', {PORT})), held.update(u=s)] and 'ok'",
        DIRECT[0]
    );
    assert_eq!(puppet.tell(&udp), "ok");
    assert_eq!(puppet.tell("held['u'].send(b'x')"), "1");
    let (_, peer) = datagrams.recv_from(&mut [0; 8]).expect("the datagram");
    lab.inside(Place::Outside, || datagrams.send_to(b"answer", peer).expect("answer"));
    assert_eq!(puppet.tell("held['u'].recv(64)"), "b'answer'");
    lab.apply(2, nothing(), vec![agent(1, &[])]).await;
    puppet.tell("held['u'].send(b'y')");
    datagrams.set_read_timeout(Some(REFUSED)).expect("time-out");
    assert!(datagrams.recv_from(&mut [0; 8]).is_err(), "a datagram that is permitted no longer");
    datagrams.send_to(b"late", peer).expect("send");
    assert_eq!(puppet.tell("held['u'].recv(64)"), "timeout", "nor an answer");

    // Without the rule that leads to L7, and nobody there to put it back, what is steered would leave as it is.
    lab.apply(3, tables(), vec![agent(1, &[])]).await;
    lab.stop(nix::sys::signal::Signal::SIGKILL);
    lab.inside(Place::Gateway, || {
        for family in ["-4", "-6"] {
            let gone = Command::new("ip").args([family, "rule", "del", "priority", "100"]).status();
            assert!(gone.expect("ip").success());
        }
    });
    for to in STEERED {
        let answer = puppet.tell(&format!("dial('a', '{to}', {PORT})"));
        assert_ne!(answer, "ok", "{to}");
    }
    lab.start().await;

    let reached: Vec<_> = servers.iter().map(Server::accepted).collect();
    assert_eq!(reached, [0; 6], "nothing left the machine unjudged");
    let counters = lab.status().await.counters;
    for reason in [DropReason::SourceSpoofed, DropReason::InspectionRequired] {
        assert!(counters.contains_key(reason.name()), "{reason}: {counters:?}");
    }
}

/// A workload that listens is reached by nobody, not even from this machine.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_in() {
    const INBOUND: u16 = 7100;
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[])]).await;
    let workload = open_workload(&lab, 1, "job").await;
    let mut puppet = Puppet::new(&lab, &workload.path);
    for any in ["0.0.0.0", "::"] {
        let listen = format!(
            "[s := made('{any}'), s.bind(('{any}', {INBOUND})), s.listen(), held.update(l=s)] and 'ok'"
        );
        assert_eq!(puppet.tell(&listen), "ok");
        let udp = format!(
            "[s := made('{any}', socket.SOCK_DGRAM), s.bind(('{any}', {INBOUND})), held.update(u=s)] and 'ok'"
        );
        assert_eq!(puppet.tell(&udp), "ok");
        let own = if any == "::" { ["::1", "fd77::1"] } else { ["127.0.0.1", "10.77.0.1"] };
        for to in own {
            let to = SocketAddr::from((at(to), INBOUND));
            let dialled = lab.inside(Place::Gateway, || TcpStream::connect_timeout(&to, REFUSED));
            assert!(dialled.is_err(), "{to} answered");
            lab.inside(Place::Gateway, || {
                let socket = UdpSocket::bind((any, 0)).expect("bind");
                socket.send_to(b"x", to).expect("send");
            });
        }
        assert_eq!(puppet.tell("held['l'].accept()"), "timeout");
        assert_eq!(puppet.tell("held['u'].recv(64)"), "timeout");
        puppet.tell("[s.close() for s in held.values()]");
    }
    assert!(lab.status().await.counters.contains_key(DropReason::FlowUnknown.name()));
}
