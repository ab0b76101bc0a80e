//! DNS is steered to whoever serves it, and what its answers permit `direct` is let through: by test run, and
//! by real packets with a stub that answers from the lab's DNS.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clawgress_agent::datapath::learned::{self, LearnedMap};
use clawgress_agent::datapath::names::monotonic_ns;
use clawgress_api::handover::{ListenerKind, SERVES_DNS};
use clawgress_api::{LearnedAddress, LearnedAddresses, LearnedProtocol};
use clawgress_ebpf_common::{DropReason, bound, mark};
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables, VerdictCell};
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg};
use socket2::{Domain, Socket, Type};
use tokio::io::AsyncWriteExt as _;

use crate::frames::{ACK, SYN, ip, tcp, udp};
use crate::kernel::{Did, Kernel, agent};
use crate::lab::{self, Lab, Place, at};
use crate::network::{self, PORT, REFUSED, Server, WORKS, accept_stream, dial, take, talk};
use crate::puppet::Puppet;
use crate::verdicts::MAC;
use crate::workload::open_workload;

const DNS: u16 = 53;

/// The lab's tables, where DNS to one network is `direct` and to the other may be reached and is unread.
pub fn tables() -> KernelTables {
    let cell = |destination_class, transport, action| VerdictCell {
        agent_class: 1,
        destination_class,
        transport,
        port_class: 2,
        action,
        policies: 0,
        limits: 0,
        never_direct: false,
    };
    let mut tables = network::tables();
    tables.ports = vec![(0, 0), (DNS, 2), (DNS + 1, 0), (PORT, 1), (PORT + 1, 0)];
    tables.verdicts.extend([
        cell(1, Transport::Udp, KernelAction::Direct),
        cell(2, Transport::Udp, KernelAction::Deny(DropReason::InspectionRequired.code())),
        cell(2, Transport::Tcp, KernelAction::Steer),
    ]);
    tables
}

/// A thread that serves until it is dropped.
struct Serving {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Calls `turn` again and again; it waits for a while where there is nothing to do.
    fn start(lab: &Lab, place: Place, mut turn: impl FnMut() + Send + 'static) -> Serving {
        let stop = Arc::<AtomicBool>::default();
        let ended = Arc::clone(&stop);
        let thread = lab.inside(place, || {
            // A thread stays where it was made.
            std::thread::spawn(move || {
                while !ended.load(Ordering::SeqCst) {
                    turn();
                }
            })
        });
        Serving { stop, thread: Some(thread) }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A resolver outside: its answer is its name and the question.
fn resolver(lab: &Lab, address: IpAddr, name: &'static str) -> Serving {
    let socket = lab.inside(Place::Outside, || UdpSocket::bind((address, DNS)).expect("bind"));
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("time-out");
    Serving::start(lab, Place::Outside, move || {
        let mut question = [0; 64];
        if let Ok((n, peer)) = socket.recv_from(&mut question) {
            let answer = [name.as_bytes(), &question[..n]].concat();
            socket.send_to(&answer, peer).expect("answer");
        }
    })
}

/// The stub: takes a steered question, asks the lab's DNS, and answers in the name of whom the agent asked.
fn stub(lab: &Lab, socket: OwnedFd, upstream: IpAddr) -> Serving {
    Serving::start(lab, Place::Gateway, move || {
        let Ok((question, asked, agent)) = receive(&socket) else {
            std::thread::sleep(Duration::from_millis(5));
            return;
        };
        let up = UdpSocket::bind(SocketAddr::new(unspecified(upstream), 0)).expect("bind");
        up.set_read_timeout(Some(WORKS)).expect("time-out");
        up.send_to(&question, (upstream, DNS)).expect("ask");
        let mut answer = [0; 128];
        let n = up.recv(&mut answer).expect("the lab's DNS answers");
        let back = Socket::new(Domain::for_address(asked), Type::DGRAM, None).expect("socket");
        if asked.is_ipv4() { back.set_ip_transparent_v4(true) } else { back.set_ip_transparent_v6(true) }
            .expect("transparent");
        back.set_reuse_address(true).expect("reuse");
        back.bind(&asked.into()).expect("bind to whom was asked");
        back.send_to(&answer[..n], &agent.into()).expect("answer");
    })
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { at("0.0.0.0") } else { at("::") }
}

/// A datagram, where it was sent to and where it comes from.
pub fn receive(socket: &OwnedFd) -> io::Result<(Vec<u8>, SocketAddr, SocketAddr)> {
    let mut bytes = [0; 64];
    let mut space = nix::cmsg_space!(nix::libc::sockaddr_in6);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
    let asked = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4OrigDstAddr(a) => Some(SocketAddr::V4(SocketAddrV4::new(
            u32::from_be(a.sin_addr.s_addr).into(),
            u16::from_be(a.sin_port),
        ))),
        ControlMessageOwned::Ipv6OrigDstAddr(a) => Some(SocketAddr::V6(SocketAddrV6::new(
            a.sin6_addr.s6_addr.into(),
            u16::from_be(a.sin6_port),
            0,
            0,
        ))),
        _ => None,
    });
    let from = message.address.expect("a sender");
    let peer = from.as_sockaddr_in().map(|a| SocketAddr::from(SocketAddrV4::from(*a)));
    let peer = peer.or_else(|| from.as_sockaddr_in6().map(|a| SocketAddr::from(SocketAddrV6::from(*a))));
    let n = message.bytes;
    Ok((bytes[..n].to_vec(), asked.expect("where it was sent to"), peer.expect("a sender's address")))
}

/// What an agent hears when it asks `to`.
fn ask(lab: &Lab, source: IpAddr, to: IpAddr, patience: Duration) -> io::Result<String> {
    lab.inside(Place::Agents, || {
        let socket = UdpSocket::bind((source, 0))?;
        socket.connect((to, DNS))?;
        socket.set_read_timeout(Some(patience))?;
        socket.send(b"who")?;
        let mut answer = [0; 64];
        let n = socket.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn dns_is_steered_while_somebody_serves_it() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), network::agents()).await;
    let (mut loan, handover, mut descriptors) = take(&lab).await;
    descriptors.pop();
    let is_silence = |e: &io::Error| matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    for f in network::families() {
        let refused = ask(&lab, f.known, f.steered, WORKS).expect_err("nobody serves DNS");
        assert!(!is_silence(&refused), "it is told: {refused}");
        let client = dial(&lab, f.known, (f.steered, DNS), WORKS).expect("as any TCP");
        let server = accept_stream(&handover, &descriptors, ListenerKind::Transparent, f.known.is_ipv4());
        assert_eq!(server.peer_addr().expect("peer"), client.local_addr().expect("address"));
    }

    loan.write_all(&[SERVES_DNS]).await.expect("the word");
    for f in network::families() {
        let v4 = f.known.is_ipv4();
        let upstream = at(if v4 { "10.78.0.2" } else { "fd78::2" });
        let _labs = resolver(&lab, upstream, "lab: ");
        let _foreign = resolver(&lab, f.direct, "foreign: ");
        let _unreached = resolver(&lab, f.steered, "unread: ");
        let n = handover
            .listeners
            .iter()
            .position(|l| l.kind == ListenerKind::DnsDatagram && l.address.is_ipv4() == v4)
            .expect("a DNS socket");
        let _stub = stub(&lab, descriptors[n].try_clone().expect("clone"), upstream);
        let until = Instant::now() + WORKS;
        let answer = loop {
            match ask(&lab, f.known, f.steered, WORKS) {
                Ok(answer) => break answer,
                Err(error) => assert!(Instant::now() < until, "{}: {error}", f.steered),
            }
        };
        assert_eq!(answer, "lab: who", "{}", f.steered);
        assert_eq!(ask(&lab, f.known, f.direct, WORKS).expect("direct"), "foreign: who");
        ask(&lab, f.known, f.forbidden, REFUSED).expect_err("not permitted");
        ask(&lab, f.unknown, f.steered, REFUSED).expect_err("anonymous");

        let mut client = dial(&lab, f.known, (f.steered, DNS), WORKS).expect("tcp");
        let mut server = accept_stream(&handover, &descriptors, ListenerKind::DnsStream, v4);
        assert_eq!(server.local_addr().expect("address"), SocketAddr::from((f.steered, DNS)));
        server.write_all(b"hi").expect("write");
        let mut word = [0; 2];
        client.read_exact(&mut word).expect("read");
        assert_eq!(&word, b"hi");
        // Other ports are none of its business.
        let _client = dial(&lab, f.known, (f.steered, PORT), WORKS).expect("steered");
        accept_stream(&handover, &descriptors, ListenerKind::Transparent, v4);
    }

    drop((loan, descriptors));
    tokio::time::sleep(Duration::from_millis(300)).await;
    for f in network::families() {
        ask(&lab, f.known, f.steered, REFUSED).expect_err("nobody serves DNS any more");
    }
}

pub fn learned(generation: u64, addresses: &[(u32, &str, u16, u64)]) -> LearnedAddresses {
    let address = |&(agent, ip, port, ttl_s): &(u32, &str, u16, u64)| LearnedAddress {
        agent,
        ip: at(ip),
        port,
        protocol: LearnedProtocol::Tcp,
        ttl_s,
        policies: 7,
    };
    LearnedAddresses { generation, addresses: addresses.iter().map(address).collect() }
}

pub const SSH: u16 = 22;

pub fn ssh_agents() -> Vec<clawgress_identity::Agent> {
    vec![agent(1, &["lo=10.9.0.2,any-mac", "lo=fd00::2,any-mac"]), agent(2, &["lo=10.9.0.3,any-mac"])]
}

/// SSH is forbidden to one network, steered to another, and not spoken of for the rest; but to go direct is
/// forbidden for two more, of which one is steered.
pub fn ssh() -> KernelTables {
    let cell = |destination_class, action, never_direct| VerdictCell {
        agent_class: 1,
        destination_class,
        transport: Transport::Tcp,
        port_class: 1,
        action,
        policies: 0,
        limits: 0,
        never_direct,
    };
    let net = |text: &str| text.parse().expect("prefix");
    KernelTables {
        agents: BTreeMap::from([(1, 1), (2, 1)]),
        destinations: vec![
            (net("9.9.8.0/24"), 1),
            (net("9.9.7.0/24"), 2),
            (net("9.9.6.0/24"), 3),
            (net("9.9.5.0/24"), 4),
        ],
        ports: vec![(0, 0), (SSH, 1), (SSH + 1, 0)],
        verdicts: vec![
            cell(1, KernelAction::Deny(DropReason::PolicyForbidden.code()), false),
            cell(2, KernelAction::Steer, false),
            cell(3, KernelAction::Steer, true),
            cell(4, KernelAction::Deny(DropReason::PolicyDenied.code()), true),
        ],
        policies: vec![Vec::new()],
        limiters: Vec::new(),
        limits: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learned_address_is_one_agents_and_one_ports() {
    let mut kernel = Kernel::load();
    kernel.apply(1, Some(ssh()), ssh_agents()).await;
    let mut map = LearnedMap::take(&mut kernel.objects).expect("maps");
    let to = |source: &str, destination: &str, port, source_port, flags| {
        ip(MAC, at(source), at(destination), 6, &tcp(source_port, port, flags))
    };
    let begin = |destination, port| to("10.9.0.2", destination, port, 40_000, SYN);
    let denied = Did::Dropped(DropReason::PolicyDenied);
    assert_eq!(kernel.ingress(&begin("9.9.9.5", SSH)), denied, "nothing is learned");

    let all = [
        (1, "9.9.9.5", SSH, 60),
        (1, "9.9.8.5", SSH, 60),
        (1, "9.9.7.5", SSH, 60),
        (1, "9.9.6.5", SSH, 60),
        (1, "9.9.5.5", SSH, 60),
        (1, "2a01:db8::5", SSH, 60),
    ];
    map.learn(1, &learned(1, &all)).expect("learned");
    for (what, frame, want) in [
        ("learned", begin("9.9.9.5", SSH), Did::Marked(mark::DIRECT)),
        ("in both families", to("fd00::2", "2a01:db8::5", SSH, 1, SYN), Did::Marked(mark::DIRECT)),
        ("in place of steering", begin("9.9.7.5", SSH), Did::Marked(mark::DIRECT)),
        ("a forbid wins", begin("9.9.8.5", SSH), Did::Dropped(DropReason::PolicyForbidden)),
        ("direct is forbidden", begin("9.9.5.5", SSH), denied),
        ("another port", begin("9.9.9.5", SSH + 1), denied),
        ("another address", begin("9.9.9.6", SSH), denied),
        ("another agent", to("10.9.0.3", "9.9.9.5", SSH, 1, SYN), denied),
        ("another protocol", ip(MAC, at("10.9.0.2"), at("9.9.9.5"), 17, &udp(1, SSH, b"")), denied),
    ] {
        let early = if let Did::Marked(_) = want { Did::Passed } else { want };
        assert_eq!(kernel.xdp(&frame), early, "xdp: {what}");
        assert_eq!(kernel.ingress(&frame), want, "tc: {what}");
    }
    // It is to be read all the same.
    let missing = Did::Dropped(DropReason::ListenerMissing);
    assert_eq!(kernel.ingress(&begin("9.9.6.5", SSH)), missing, "direct is forbidden where it is steered");
    for (generation, entry) in [
        (1, (1, "9.9.9.9", 443, 60)),
        (1, (1, "9.9.9.9", 80, 60)),
        (1, (0, "9.9.9.9", SSH, 60)),
        (1, (1, "10.0.0.9", SSH, 60)),
        (2, (1, "9.9.9.9", SSH, 60)),
    ] {
        let good = (1, "9.9.9.4", SSH, 60);
        map.learn(1, &learned(generation, &[good, entry])).expect_err("may not be learned");
        assert_eq!(kernel.ingress(&begin("9.9.9.4", SSH)), denied, "all or none: {entry:?}");
    }

    // Another answer of this generation doesn't shorten the time.
    let new = to("10.9.0.2", "9.9.9.5", SSH, 40_001, SYN);
    map.learn(1, &learned(1, &[(1, "9.9.9.5", SSH, 0)])).expect("learned");
    assert_eq!(kernel.ingress(&new), Did::Marked(mark::DIRECT));

    // Expired: what lives goes on, and nothing new begins. While it lives, the entry is kept.
    let again = to("10.9.0.2", "9.9.9.5", SSH, 40_000, ACK);
    let new = to("10.9.0.2", "9.9.9.5", SSH, 40_002, SYN);
    kernel.apply(2, Some(ssh()), ssh_agents()).await;
    map.learn(2, &learned(2, &[(1, "9.9.9.5", SSH, 0)])).expect("learned");
    assert_eq!(kernel.xdp(&again), Did::Passed, "only TC knows of the flow");
    assert_eq!(kernel.ingress(&again), Did::Marked(mark::DIRECT));
    assert_eq!(kernel.ingress(&new), denied);
    let in_use = |kernel: &Kernel| {
        let mut keys = HashSet::new();
        kernel.swept.each(|key, flow| keys.extend(learned::of_flow(key, flow))).expect("walk");
        keys
    };
    map.expire(monotonic_ns(), &in_use(&kernel)).expect("expire");

    // Another generation knows of nothing until it is told; then the flow goes on by the expired entry.
    kernel.apply(3, Some(ssh()), ssh_agents()).await;
    map.learn(3, &learned(3, &[(1, "9.9.9.5", SSH, 0)])).expect("learned");
    assert_eq!(kernel.ingress(&again), Did::Marked(mark::DIRECT));
    assert_eq!(kernel.ingress(&new), denied);
    // A forbid reaches what lives, whoever teaches the address again.
    let mut forbidden = ssh();
    forbidden.destinations.push(("9.9.9.0/24".parse().expect("prefix"), 4));
    kernel.apply(4, Some(forbidden), ssh_agents()).await;
    map.learn(4, &learned(4, &[(1, "9.9.9.5", SSH, 60)])).expect("learned");
    assert_eq!(kernel.ingress(&again), denied, "direct is forbidden now");
    assert_eq!(kernel.ingress(&new), denied);
    kernel.apply(5, Some(ssh()), ssh_agents()).await;
    assert_eq!(kernel.ingress(&again), denied, "nobody said that it may go on");
    map.expire(u64::MAX, &in_use(&kernel)).expect("expire");
    assert!(!map.has_expired(monotonic_ns()), "the flow ended, and the entry with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_agent_does_not_take_the_room_of_the_others() {
    let mut kernel = Kernel::load();
    kernel.apply(1, Some(ssh()), ssh_agents()).await;
    let mut map = LearnedMap::take(&mut kernel.objects).expect("maps");
    let addresses = |agent, from: u32, n: u32| {
        let address = |n| LearnedAddress {
            agent,
            ip: std::net::Ipv4Addr::from(0x0900_0000 + n).into(),
            port: SSH,
            protocol: LearnedProtocol::Tcp,
            ttl_s: 60,
            policies: 0,
        };
        LearnedAddresses { generation: 1, addresses: (from..from + n).map(address).collect() }
    };
    map.learn(1, &addresses(1, 0, bound::LEARNED_AGENT_MAX)).expect("as many as it may");
    map.learn(1, &addresses(1, bound::LEARNED_AGENT_MAX, 1)).expect_err("one more");
    map.learn(1, &addresses(1, 0, 1)).expect("what is known takes no room");
    map.learn(1, &addresses(2, 0, 1)).expect("another agent");
}

/// Sends by a socket that was handed over, from `source`, as L7 answers.
pub fn answer_by(socket: &OwnedFd, source: IpAddr, to: SocketAddr) -> io::Result<()> {
    let to = SockaddrStorage::from(to);
    let send = |control: ControlMessage<'_>| {
        sendmsg(
            socket.as_raw_fd(),
            &[io::IoSlice::new(b"answer")],
            &[control],
            MsgFlags::MSG_DONTWAIT,
            Some(&to),
        )
    };
    let sent = match source {
        IpAddr::V4(ip) => send(ControlMessage::Ipv4PacketInfo(&in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
            ipi_addr: in_addr { s_addr: 0 },
        })),
        IpAddr::V6(ip) => send(ControlMessage::Ipv6PacketInfo(&in6_pktinfo {
            ipi6_addr: in6_addr { s6_addr: ip.octets() },
            ipi6_ifindex: 0,
        })),
    };
    Ok(sent.map(drop)?)
}

/// Packets that the firewall took from the sockets that were handed over: of those that may go nowhere, and of those that
/// answer nothing.
pub fn kept_back(lab: &Lab) -> [u64; 2] {
    ["handed_sends", "handed_tracked"].map(|chain| {
        let listing = lab.inside(Place::Gateway, || {
            let output = std::process::Command::new("nft")
                .args(["list", "chain", "inet", "clawgress", chain])
                .output()
                .expect("nft");
            String::from_utf8(output.stdout).expect("text")
        });
        let counters = listing.split("counter packets ").skip(1);
        counters
            .map(|c| c.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).expect("a number"))
            .sum()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_socket_of_dns_answers_nothing_but_answers_leave() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), network::agents()).await;
    let (mut loan, handover, descriptors) = take(&lab).await;
    loan.write_all(&[SERVES_DNS]).await.expect("the word");
    for f in network::families() {
        let v4 = f.known.is_ipv4();
        let n = handover
            .listeners
            .iter()
            .position(|l| l.kind == ListenerKind::DnsDatagram && l.address.is_ipv4() == v4)
            .expect("a DNS socket");
        let socket = &descriptors[n];
        let agent = lab.inside(Place::Agents, || UdpSocket::bind((f.known, 0)).expect("bind"));
        agent.set_read_timeout(Some(WORKS)).expect("time-out");
        let until = Instant::now() + WORKS;
        let peer = loop {
            agent.send_to(b"who", (f.steered, DNS)).expect("asked");
            std::thread::sleep(Duration::from_millis(20));
            match receive(socket) {
                Ok((_, asked, peer)) => {
                    assert_eq!(asked, SocketAddr::from((f.steered, DNS)));
                    break peer;
                }
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        };
        // Whoever is not an agent, and this machine itself, first: the answer below comes after them.
        let outside = lab.inside(Place::Outside, || UdpSocket::bind((f.steered, 0)).expect("bind"));
        let own = lab.inside(Place::Gateway, || {
            UdpSocket::bind((if v4 { at("127.0.0.1") } else { at("::1") }, 0)).expect("bind")
        });
        let before = kept_back(&lab);
        for target in [&outside, &own] {
            target.set_read_timeout(Some(REFUSED)).expect("time-out");
            // Some kernels say so to who sends.
            let _ = answer_by(socket, f.steered, target.local_addr().expect("address"));
            target.recv(&mut [0; 8]).expect_err("it is no agent's");
        }
        // An agent that asked nothing, or another server.
        let silent = lab.inside(Place::Agents, || UdpSocket::bind((f.known, 0)).expect("bind"));
        silent.set_read_timeout(Some(REFUSED)).expect("time-out");
        let _ = answer_by(socket, f.steered, silent.local_addr().expect("address"));
        silent.recv(&mut [0; 8]).expect_err("it asked nothing");
        let _ = answer_by(socket, f.direct, peer);
        let after = kept_back(&lab);
        assert_eq!([after[0] - before[0], after[1] - before[1]], [1, 3], "{}", f.steered);
        answer_by(socket, f.steered, peer).expect("sent");
        let mut bytes = [0; 8];
        let (n, from) = agent.recv_from(&mut bytes).expect("the answer");
        assert_eq!((&bytes[..n], from), (&b"answer"[..], SocketAddr::from((f.steered, DNS))));
        assert_eq!(kept_back(&lab), after);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dns_permits_is_forwarded_and_nothing_else() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), network::agents()).await;
    for (f, address) in network::families().into_iter().zip(["9.9.9.5", "2a01:db8::5"]) {
        let (bits, nodad) = if f.known.is_ipv4() { (32, "") } else { (128, " nodad") };
        lab::ip(&format!("-n {} addr add {address}/{bits} dev lo{nodad}", lab.ns(Place::Outside)));
        let server = Server::start(&lab, at(address));
        network::refused(&lab, "not learned", f.known, at(address));
        lab.learn(&learned(1, &[(1, address, PORT, 2)])).await.expect("learned");
        // At once: the answer is only released now.
        let mut client = dial(&lab, f.known, (at(address), PORT), WORKS).expect("learned");
        talk(&mut client, b"learned");
        let until = Instant::now() + WORKS;
        while dial(&lab, f.known, (at(address), PORT), WORKS).is_ok() {
            assert!(Instant::now() < until, "it does not expire");
            std::thread::sleep(Duration::from_millis(200));
        }
        talk(&mut client, b"still");
        assert!(server.accepted() >= 1);
    }
    let error = lab.learn(&learned(1, &[(1, "9.9.9.5", 443, 60)])).await.expect_err("shared by many names");
    assert!(error.message().contains("port 443"), "{}", error.message());
}

/// What was learned counts for local commands too: at the socket's call, and for each of its packets.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_command_reaches_what_was_learned_for_its_agent() {
    let mut lab = Lab::new();
    lab.start().await;
    let mut tables = tables();
    for net in ["9.9.6.0/24", "2a01:db9::/32"] {
        tables.destinations.push((net.parse().expect("prefix"), 9));
    }
    tables.verdicts.push(VerdictCell {
        agent_class: 1,
        destination_class: 9,
        transport: Transport::Tcp,
        port_class: 1,
        action: KernelAction::Deny(DropReason::PolicyDenied.code()),
        policies: 0,
        limits: 0,
        never_direct: true,
    });
    lab.apply(1, tables.clone(), vec![agent(1, &[]), agent(2, &[])]).await;
    let (job, other) = (open_workload(&lab, 1, "job").await, open_workload(&lab, 2, "other").await);
    let (mut puppet, mut stranger) = (Puppet::new(&lab, &job.path), Puppet::new(&lab, &other.path));
    for (address, bits, nodad) in [("9.9.9.5", 32, ""), ("2a01:db8::5", 128, " nodad")] {
        lab::ip(&format!("-n {} addr add {address}/{bits} dev lo{nodad}", lab.ns(Place::Outside)));
        let _server = Server::start(&lab, at(address));
        let dial = |name: &str| format!("dial('{name}', '{address}', {PORT}, 10)");
        assert_eq!(puppet.tell(&dial("a")), "EPERM", "{address} is not learned");
        lab.learn(&learned(1, &[(1, address, PORT, 2)])).await.expect("learned");
        assert_eq!(puppet.tell(&dial("a")), "ok");
        assert_eq!(puppet.tell("talk('a', wait=10)"), "hello");
        assert_eq!(stranger.tell(&dial("b")), "EPERM", "it is one agent's");
        let until = Instant::now() + WORKS;
        while puppet.tell(&dial("c")) == "ok" {
            assert!(Instant::now() < until, "it does not expire");
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(puppet.tell("talk('a', wait=10)"), "hello", "what lives goes on");

        // A socket that never connects asks at each of its datagrams.
        let _answers = resolver(&lab, at(address), "pong: ");
        let tell = |name: &str| format!("tell('{name}', '{address}', {DNS})");
        assert_eq!(puppet.tell(&tell(&format!("{address} new"))), "EPERM");
        let mut datagrams = learned(1, &[(1, address, DNS, 2)]);
        datagrams.addresses.iter_mut().for_each(|taught| taught.protocol = LearnedProtocol::Udp);
        lab.learn(&datagrams).await.expect("learned");
        let lives = format!("{address} lives");
        assert_eq!(puppet.tell(&tell(&lives)), "pong: ping");
        let until = Instant::now() + WORKS;
        let mut n = 0;
        while puppet.tell(&tell(&format!("{address} {n}"))) != "EPERM" {
            assert!(Instant::now() < until, "it does not expire");
            n += 1;
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(puppet.tell(&tell(&lives)), "pong: ping", "what lives goes on");
    }
    for address in ["9.9.6.5", "2a01:db9::5"] {
        lab.learn(&learned(1, &[(1, address, PORT, 60)])).await.expect("learned");
        assert_eq!(
            puppet.tell(&format!("dial('e', '{address}', {PORT}, 10)")),
            "EPERM",
            "direct is forbidden"
        );
    }
    // Another generation: nobody said that it may go on.
    lab.apply(2, tables, vec![agent(1, &[]), agent(2, &[])]).await;
    assert_eq!(puppet.tell("talk('a')"), "timeout");
}
