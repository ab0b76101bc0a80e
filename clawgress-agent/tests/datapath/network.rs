//! Real sockets through the gateway: steering, forwarding, drops.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clawgress_api::handover::{self, Handover, ListenerKind};
use clawgress_api::proto::OpenWorkloadRequest;
use clawgress_api::{AuditRecord, RecordKind, Verdict};
use clawgress_ebpf_common::user::{FlowTable, address, ingress};
use clawgress_ebpf_common::{DropReason, FlowKey, action, protocol};
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables, VerdictCell};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};
use tokio_stream::StreamExt as _;

use crate::kernel::agent;
use crate::lab::{AGENT_MAC, Lab, PROXY_PORT, Place, at};
use crate::peer::Peer;

/// Port of the outside's servers.
pub const PORT: u16 = 7000;
/// How long a connection that must fail may try, and one that must work may take.
pub const REFUSED: Duration = Duration::from_millis(700);
pub const WORKS: Duration = Duration::from_secs(30);

/// Addresses of one family: the agent, an unbound neighbour, the gateway, and the three outside.
pub struct Family {
    pub known: IpAddr,
    pub unknown: IpAddr,
    pub gateway: IpAddr,
    pub uplink: IpAddr,
    pub steered: IpAddr,
    pub direct: IpAddr,
    pub forbidden: IpAddr,
}

pub fn families() -> [Family; 2] {
    [
        Family {
            known: at("10.77.0.2"),
            unknown: at("10.77.0.66"),
            gateway: at("10.77.0.1"),
            uplink: at("10.78.0.1"),
            steered: at("203.0.113.5"),
            direct: at("198.51.100.5"),
            forbidden: at("192.0.2.5"),
        },
        Family {
            known: at("fd77::2"),
            unknown: at("fd77::66"),
            gateway: at("fd77::1"),
            uplink: at("fd78::1"),
            steered: at("2001:db8:2::5"),
            direct: at("2001:db8:1::5"),
            forbidden: at("2001:db8:3::5"),
        },
    ]
}

pub fn tables() -> KernelTables {
    let cell = |destination_class, action, policies| VerdictCell {
        agent_class: 1,
        destination_class,
        transport: Transport::Tcp,
        port_class: 1,
        action,
        policies,
        limits: 0,
        never_direct: false,
    };
    let net = |text: &str| text.parse().expect("prefix");
    KernelTables {
        agents: BTreeMap::from([(1, 1)]),
        destinations: vec![
            (net("198.51.100.0/24"), 1),
            (net("2001:db8:1::/48"), 1),
            (net("203.0.113.0/24"), 2),
            (net("2001:db8:2::/48"), 2),
        ],
        ports: vec![(0, 0), (PORT, 1), (PORT + 1, 0)],
        verdicts: vec![cell(1, KernelAction::Direct, 1), cell(2, KernelAction::Steer, 0)],
        policies: vec![vec![], vec!["go-direct".to_owned()]],
        limiters: Vec::new(),
        limits: Vec::new(),
    }
}

pub fn agents() -> Vec<clawgress_identity::Agent> {
    vec![agent(1, &[&format!("ga=10.77.0.2,{AGENT_MAC}"), &format!("ga=fd77::2,{AGENT_MAC}")])]
}

/// A server outside: echoes, and counts whom it saw.
pub struct Server {
    accepted: Arc<AtomicUsize>,
    peers: Arc<parking_lot::Mutex<Vec<IpAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start(lab: &Lab, address: IpAddr) -> Server {
        let listener = lab.inside(Place::Outside, || TcpListener::bind((address, PORT)).expect("bind"));
        listener.set_nonblocking(true).expect("non-blocking");
        let (accepted, peers, stop) =
            <(Arc<AtomicUsize>, Arc<parking_lot::Mutex<Vec<IpAddr>>>, Arc<AtomicBool>)>::default();
        let (count, seen, end) = (Arc::clone(&accepted), Arc::clone(&peers), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        count.fetch_add(1, Ordering::SeqCst);
                        seen.lock().push(peer.ip());
                        std::thread::spawn(move || echo(stream));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Server { accepted, peers, stop, thread: Some(thread) }
    }

    pub fn peers(&self) -> Vec<IpAddr> {
        self.peers.lock().clone()
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// For a client that waits for a restart of the role meanwhile: on an emulated machine beside other work that takes minutes.
const SILENT_MAX: Duration = Duration::from_secs(600);

fn echo(mut stream: TcpStream) {
    stream.set_nonblocking(false).expect("blocking");
    stream.set_read_timeout(Some(SILENT_MAX)).expect("time-out");
    let mut bytes = [0; 1024];
    while let Ok(n @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..n]).is_err() {
            return;
        }
    }
}

/// Connects from the agents' side.
pub fn dial(lab: &Lab, source: IpAddr, to: (IpAddr, u16), patience: Duration) -> std::io::Result<TcpStream> {
    dial_from(lab, SocketAddr::from((source, 0)), to, patience)
}

pub fn dial_from(
    lab: &Lab,
    source: SocketAddr,
    to: (IpAddr, u16),
    patience: Duration,
) -> std::io::Result<TcpStream> {
    lab.inside(Place::Agents, || {
        let socket = Socket::new(Domain::for_address(SocketAddr::from(to)), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&source.into())?;
        socket.connect_timeout(&SocketAddr::from(to).into(), patience)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(WORKS))?;
        Ok(stream)
    })
}

#[track_caller]
pub fn talk(stream: &mut TcpStream, word: &[u8]) {
    stream.write_all(word).expect("write");
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back).expect("echo");
    assert_eq!(back, word);
}

#[track_caller]
pub fn refused(lab: &Lab, what: &str, source: IpAddr, to: IpAddr) {
    let result = dial(lab, source, (to, PORT), REFUSED);
    assert!(result.is_err(), "{what}: {source} reached {to}");
}

/// Takes the listeners, as L7 does. The stream is the loan.
pub async fn take(lab: &Lab) -> (Peer, Handover, Vec<OwnedFd>) {
    let stream = Peer::connect(&lab.config.handover_socket()).await.expect("handover socket");
    let (handover, descriptors) = handover::receive(&stream).await.expect("handover");
    (stream, handover, descriptors)
}

/// One accepted connection of the listener of this kind and family: original destination and peer.
fn accept(
    handover: &Handover,
    descriptors: &[OwnedFd],
    kind: ListenerKind,
    v4: bool,
) -> (SocketAddr, SocketAddr) {
    let stream = accept_stream(handover, descriptors, kind, v4);
    (stream.local_addr().expect("address"), stream.peer_addr().expect("address"))
}

pub fn accept_stream(
    handover: &Handover,
    descriptors: &[OwnedFd],
    kind: ListenerKind,
    v4: bool,
) -> TcpStream {
    let n = handover
        .listeners
        .iter()
        .position(|l| l.kind == kind && l.address.is_ipv4() == v4)
        .expect("listener");
    let listener = TcpListener::from(descriptors[n].try_clone().expect("clone"));
    let until = Instant::now() + WORKS;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return stream,
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("nothing to accept: {error}"),
        }
    }
}

/// Audit records until `is_last`, at most for `patience`.
pub async fn records(
    lab: &Lab,
    patience: Duration,
    is_last: impl Fn(&AuditRecord) -> bool,
) -> Vec<AuditRecord> {
    let (acks, receiver) = tokio::sync::mpsc::channel(8);
    let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut stream = lab.client().await.events(receiver).await.expect("events").into_inner();
    let mut records = Vec::new();
    let until = tokio::time::Instant::now() + patience;
    while let Ok(Some(batch)) = tokio::time::timeout_at(until, stream.next()).await {
        let batch = batch.expect("batch");
        let _ = acks.send(clawgress_api::proto::AuditAck { sequence: batch.sequence }).await;
        for bytes in batch.records {
            records.push(serde_json::from_slice::<AuditRecord>(&bytes).expect("record"));
        }
        if records.iter().any(&is_last) {
            return records;
        }
    }
    panic!("the awaited record did not come; there were {records:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn steered_forwarded_and_dropped() {
    let mut lab = Lab::new();
    lab.start().await;
    let [v4, _] = families();
    refused(&lab, "before the first policy", v4.known, v4.direct);
    let status = lab.apply(1, tables(), agents()).await;
    assert_eq!((status.mode.as_str(), status.generation), ("kernel", 1));
    refused(&lab, "steered, without l7", v4.known, v4.steered);

    let (loan, handover, mut descriptors) = take(&lab).await;
    assert_eq!(handover.interfaces.len(), 1);
    let flows = descriptors.pop().expect("flow table");
    let mode = nix::fcntl::fcntl(&flows, nix::fcntl::FcntlArg::F_GETFL).expect("flags");
    assert_eq!(mode & nix::libc::O_ACCMODE, nix::libc::O_RDONLY, "L7 may look flows up and change none");
    let flows = FlowTable::from_fd(flows).expect("layout");
    for f in families() {
        let servers: Vec<_> =
            [f.direct, f.forbidden, f.steered].map(|a| Server::start(&lab, a)).into_iter().collect();
        let is_v4 = f.known.is_ipv4();

        let client = dial(&lab, f.known, (f.steered, PORT), WORKS).expect("steered");
        let steered = accept_stream(&handover, &descriptors, ListenerKind::Transparent, is_v4);
        let original = steered.local_addr().expect("address");
        let peer = steered.peer_addr().expect("address");
        assert_eq!(original, SocketAddr::from((f.steered, PORT)));
        assert_eq!(ingress(&steered).expect("interface"), handover.interfaces[0]);
        assert_eq!(peer, client.local_addr().expect("address"));
        let key = FlowKey {
            source: address(peer.ip()),
            destination: address(original.ip()),
            source_port_be: peer.port().to_be(),
            destination_port_be: original.port().to_be(),
            ifindex: handover.interfaces[0],
            protocol: protocol::TCP,
            pad: [0; 3],
        };
        let flow = flows.lookup(&key).expect("lookup").expect("flow");
        assert_eq!((flow.agent, flow.action), (1, action::STEER));

        let mut client = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
        talk(&mut client, b"forwarded");
        assert_eq!(*servers[0].peers.lock(), [f.uplink], "masqueraded");

        refused(&lab, "denied", f.known, f.forbidden);
        refused(&lab, "anonymous", f.unknown, f.direct);
        refused(&lab, "anonymous", f.unknown, f.steered);
        assert!(dial(&lab, f.known, (f.gateway, 22), REFUSED).is_err(), "the gateway itself");
        assert!(dial(&lab, f.known, (f.uplink, 22), REFUSED).is_err(), "the gateway's other address");
        dial(&lab, f.unknown, (f.gateway, PROXY_PORT), WORKS).expect("anyone may reach the proxy");
        let proxied = accept_stream(&handover, &descriptors, ListenerKind::Proxy, is_v4);
        assert_eq!(ingress(&proxied).expect("interface"), handover.interfaces[0]);
        assert_eq!((servers[0].accepted(), servers[1].accepted(), servers[2].accepted()), (1, 0, 0));
    }

    // The last l7 gone: steered connections are dropped, not queued for nobody.
    drop((loan, descriptors));
    tokio::time::sleep(Duration::from_millis(300)).await;
    refused(&lab, "without l7 again", v4.known, v4.steered);
    assert!(lab.status().await.counters.contains_key(DropReason::ListenerMissing.name()));
}

/// A connection from a port whose last one is still in TIME_WAIT here: the kernel then looks for a listener
/// by the destination's port, and must not find whoever listens there on the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn a_tuple_in_time_wait_never_leads_to_somebody_elses_listener() {
    const SOURCE_PORT: u16 = 40_123;
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    let decoys: Vec<_> = ["0.0.0.0", "::"]
        .map(|any| lab.inside(Place::Gateway, || decoy(SocketAddr::from((at(any), PORT)))))
        .into_iter()
        .collect();
    let (loan, handover, descriptors) = take(&lab).await;
    for f in families() {
        let is_v4 = f.known.is_ipv4();
        let from = SocketAddr::from((f.known, SOURCE_PORT));
        for n in 0..3 {
            let mut client =
                dial_from(&lab, from, (f.steered, PORT), WORKS).unwrap_or_else(|e| panic!("{from} {n}: {e}"));
            let mut server = accept_stream(&handover, &descriptors, ListenerKind::Transparent, is_v4);
            assert_eq!(server.local_addr().expect("address"), SocketAddr::from((f.steered, PORT)));
            assert_eq!(server.peer_addr().expect("address"), from);
            server.write_all(b"mine").expect("write");
            // Whoever closes first keeps the tuple.
            drop(server);
            let mut word = Vec::new();
            client.read_to_end(&mut word).expect("read");
            assert_eq!(word, b"mine", "{from} {n}");
            drop(client);
            let until = Instant::now() + WORKS;
            while time_waits(&lab, SOURCE_PORT) == 0 {
                assert!(Instant::now() < until, "{from}: no socket in TIME_WAIT, so nothing is tested");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    // Nor without l7, when there is no listener to make way for.
    drop((loan, descriptors));
    tokio::time::sleep(Duration::from_millis(300)).await;
    for f in families() {
        let from = SocketAddr::from((f.known, SOURCE_PORT));
        assert!(dial_from(&lab, from, (f.steered, PORT), REFUSED).is_err(), "{from}, without l7");
    }
    for decoy in &decoys {
        decoy.set_nonblocking(true).expect("non-blocking");
        assert!(decoy.accept().is_err(), "{decoy:?} accepted what was steered");
    }
    // They would have accepted: the gateway itself reaches them.
    lab.inside(Place::Gateway, || TcpStream::connect(("127.0.0.1", PORT)).expect("the decoy"));
    decoys[0].accept().expect("the decoy listens");
}

pub fn decoy(address: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("socket");
    if address.is_ipv6() {
        socket.set_only_v6(true).expect("only v6");
    }
    socket.bind(&address.into()).expect("bind");
    socket.listen(8).expect("listen");
    socket.into()
}

/// Sockets of the gateway in TIME_WAIT whose peer has this port.
pub fn time_waits(lab: &Lab, port: u16) -> usize {
    let shown = lab.inside(Place::Gateway, || {
        Command::new("ss").args(["-Htan", "state", "time-wait", "dport", "=", &format!(":{port}")]).output()
    });
    String::from_utf8_lossy(&shown.expect("ss").stdout).lines().count()
}

/// Segments larger than any frame (TSO, GRO) must be read like others.
#[tokio::test(flavor = "multi_thread")]
async fn large_transfers_pass() {
    const BYTES: usize = 16 << 20;
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    for f in families() {
        let _server = Server::start(&lab, f.direct);
        let mut reader = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
        let mut writer = reader.try_clone().expect("clone");
        let sender = std::thread::spawn(move || {
            for n in 0..BYTES >> 16 {
                writer.write_all(&[u8::try_from(n % 251).expect("byte"); 1 << 16]).expect("write");
            }
        });
        let mut block = vec![0; 1 << 16];
        for n in 0..BYTES >> 16 {
            reader.read_exact(&mut block).expect("read");
            assert!(block.iter().all(|b| usize::from(*b) == n % 251), "block {n} is damaged");
        }
        sender.join().expect("sender");
    }
    let counters = lab.status().await.counters;
    for reason in [DropReason::Malformed, DropReason::Fragment, DropReason::FlowUnknown] {
        assert_eq!(counters.get(reason.name()), None, "{counters:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_flow_has_a_decision_and_an_outcome() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, crate::upgrade::with_udp(), agents()).await;
    let [f, _] = families();
    let _server = Server::start(&lab, f.direct);
    // Nobody says that a flow of datagrams ends which nobody answers: its time does.
    let silent = lab.inside(Place::Outside, || UdpSocket::bind((f.direct, PORT)).expect("bind"));
    let datagrams = lab.inside(Place::Agents, || UdpSocket::bind((f.known, 0)).expect("bind"));
    for _ in 0..2 {
        datagrams.send_to(&[7; 100], (f.direct, PORT)).expect("sent");
    }
    silent.set_read_timeout(Some(WORKS)).expect("time-out");
    silent.recv(&mut [0; 8]).expect("it arrives");
    let mut client = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
    talk(&mut client, &[7; 500]);
    drop(client);
    refused(&lab, "denied", f.known, f.forbidden);

    let is_udp = |r: &AuditRecord| r.destination.protocol.as_deref() == Some("udp");
    let expired = |r: &AuditRecord| r.kind == RecordKind::Outcome && is_udp(r);
    let records = records(&lab, Duration::from_secs(120), expired).await;
    let expired = records.iter().find(|r| expired(r)).expect("the last");
    let decision = records.iter().find(|r| r.kind == RecordKind::Decision && r.request == expired.request);
    assert_eq!(decision.expect("its decision").verdict, Some(Verdict::Allow));
    assert_eq!((expired.packets_sent, expired.packets_received), (Some(2), Some(0)), "{expired:?}");
    // 100 bytes, 8 of UDP, 20 of IPv4, and what is before that.
    let each = expired.bytes_sent.expect("bytes") / 2;
    assert!((128..=142).contains(&each) && expired.bytes_received == Some(0), "{expired:?}");

    let of = |kind, verdict| {
        let all = || records.iter().filter(|r| !is_udp(r));
        all().find(|r| r.kind == kind && r.verdict == verdict).expect("record")
    };
    let decision = of(RecordKind::Decision, Some(Verdict::Allow));
    assert_eq!(decision.agent.as_ref().expect("agent").agent, "a1");
    assert_eq!(decision.policies, ["go-direct"]);
    assert_eq!(decision.destination.ip, Some(f.direct));
    assert_eq!(decision.source.interface.as_deref(), Some("ga"));
    let outcome = of(RecordKind::Outcome, None);
    assert_eq!(outcome.request, decision.request, "they are joined");
    assert!(outcome.bytes_sent > Some(500) && outcome.bytes_received > Some(500), "{outcome:?}");
    // SYN, acknowledgement, word, echo's, FIN at least; the other side has as many but the one.
    assert!(outcome.packets_sent >= Some(4) && outcome.packets_received >= Some(3), "{outcome:?}");
    let denied = records
        .iter()
        .find(|r| r.destination.ip == Some(f.forbidden) && r.verdict == Some(Verdict::Deny))
        .expect("a denial");
    assert_eq!(denied.reason, Some(DropReason::PolicyDenied));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_generations_change_nothing() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(5, tables(), agents()).await;
    let mut client = lab.client().await;
    let mut two = agents();
    two.push(agent(2, &["ga=10.77.0.2,any-mac"]));
    let document = clawgress_api::KernelGeneration {
        generation: 6,
        tables: Some(tables()),
        agents: two,
        shared: Vec::new(),
        revisions: BTreeMap::new(),
        turns_at: None,
    };
    for (generation, document, want) in [
        (6, serde_json::to_vec(&document).expect("document"), "same source"),
        (6, b"{".to_vec(), "malformed"),
        (7, serde_json::to_vec(&document).expect("document"), "differ in their generation"),
    ] {
        let envelope = clawgress_api::proto::KernelGeneration { generation, document, name: Vec::new() };
        let error = client.apply(envelope).await.expect_err("must be refused");
        assert!(error.message().contains(want), "`{}` should contain `{want}`", error.message());
        assert_eq!(lab.status().await.generation, 5);
    }
    let [f, _] = families();
    let _server = Server::start(&lab, f.direct);
    talk(&mut dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct"), b"still");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_kernel_plane_the_proxy_alone_is_handed_over() {
    let free = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let mut lab = Lab::without_kernel(free);
    lab.start().await;
    let status = lab.status().await;
    assert_eq!((status.mode.as_str(), status.interfaces.len()), ("none", 0));
    assert!(status.absent.iter().any(|a| a.contains("no kernel plane")), "{:?}", status.absent);
    let (_loan, handover, descriptors) = take(&lab).await;
    assert_eq!((handover.listeners.len(), handover.flow_table, descriptors.len()), (1, false, 1));
    let _client = TcpStream::connect(free).expect("connect");
    accept(&handover, &descriptors, ListenerKind::Proxy, true);
    let request = OpenWorkloadRequest { agent: 1, name: "x".to_owned() };
    let error = lab.client().await.open_workload(request).await.expect_err("no workloads here");
    assert!(error.message().contains("mode = \"kernel\""), "{}", error.message());

    // The next process binds beside the listener that l7 still holds.
    lab.stop(Signal::SIGKILL);
    lab.start().await;
    take(&lab).await;
}
