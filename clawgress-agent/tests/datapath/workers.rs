//! Several L7 processes at once: new connections are spread over those that take them, and none is lost when one
//! drains or dies. The test plays them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use clawgress_api::handover::{self, Handover, ListenerKind};
use clawgress_api::{AuditRecord, LiveQuery};
use clawgress_ebpf_common::DropReason;
use clawgress_ebpf_common::listener::{self, WORKERS_MAX};
use clawgress_ebpf_common::user::address;
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use crate::lab::{Lab, PROXY_PORT, Place};
use crate::network::{
    Family, PORT, REFUSED, WORKS, agents, decoy, dial, dial_from, families, records, refused, tables,
    time_waits,
};
use crate::peer::Peer;

/// Source ports of clients, one after the other as systems give them out.
const PORTS: std::ops::Range<u16> = 41_000..41_032;

/// An L7 process as far as listeners go.
struct Worker {
    stream: Peer,
    handover: Handover,
    descriptors: Vec<OwnedFd>,
}

// === impl Worker ===

impl Worker {
    async fn start(lab: &Lab) -> Worker {
        let (stream, handover, descriptors) = crate::network::take(lab).await;
        let worker = Worker { stream, handover, descriptors };
        worker.until_taken(lab).await;
        worker
    }

    /// Its part is its own a moment after it was handed its listeners: when one of many connections comes.
    async fn until_taken(&self, lab: &Lab) {
        let [f, _] = families();
        let until = Instant::now() + WORKS;
        while self.own(true).accept().is_err() {
            assert!(Instant::now() < until, "nothing is steered to it");
            // Where others take connections too, this one may be theirs.
            let _ = dial(lab, f.known, (f.steered, PORT), Duration::from_millis(100));
        }
        while self.own(true).accept().is_ok() {}
    }

    fn listener(&self, n: usize) -> TcpListener {
        TcpListener::from(self.descriptors[n].try_clone().expect("clone"))
    }

    /// Its own listener of the family: the first there is.
    fn own(&self, is_v4: bool) -> TcpListener {
        let fits =
            |l: &handover::Listener| l.kind == ListenerKind::Transparent && l.address.is_ipv4() == is_v4;
        self.listener(self.handover.listeners.iter().position(fits).expect("listener"))
    }

    /// Whatever waits at any of its listeners of this kind.
    fn accepted(&self, kind: ListenerKind) -> Vec<TcpStream> {
        let mut accepted = Vec::new();
        for (n, _) in self.handover.listeners.iter().enumerate().filter(|(_, l)| l.kind == kind) {
            let listener = self.listener(n);
            while let Ok((stream, _)) = listener.accept() {
                accepted.push(stream);
            }
        }
        accepted
    }

    /// Takes what the role says until `done`.
    async fn told(&mut self, what: &str, done: impl Fn(&Handover) -> bool) {
        while !done(&self.handover) {
            let told = tokio::time::timeout(WORKS, handover::receive(&self.stream)).await;
            (self.handover, self.descriptors) = told.expect(what).expect("handover");
        }
    }

    async fn drain(&mut self) {
        self.stream.write_all(&[handover::DRAINS]).await.expect("word");
        self.told("nothing to accept from", |h| h.listeners.is_empty()).await;
    }
}

/// Which of `workers` accepts the connection that `client` made, and its end there.
#[track_caller]
fn taker(workers: &[&Worker], client: &TcpStream) -> (usize, TcpStream) {
    let local = client.local_addr().expect("address");
    let until = Instant::now() + WORKS;
    loop {
        for (n, worker) in workers.iter().enumerate() {
            let mut accepted = worker.accepted(ListenerKind::Transparent).into_iter();
            if let Some(stream) = accepted.find(|s| s.peer_addr().ok() == Some(local)) {
                return (n, stream);
            }
        }
        assert!(Instant::now() < until, "nobody accepts {local}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The worker, by the order in which they came, that the kernel must choose among `n`.
fn expected(f: &Family, port: u16, n: u32) -> usize {
    let low = |ip: IpAddr| {
        let [.., a, b, c, d, e, g, h, i] = address(ip);
        [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, g, h, i])]
    };
    let part = listener::part(low(f.known), low(f.steered), [port.to_be(), PORT.to_be()]);
    (part % n) as usize
}

fn transparent(handover: &Handover) -> usize {
    handover.listeners.iter().filter(|l| l.kind == ListenerKind::Transparent).count()
}

async fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    lab
}

/// Packets for which there was no listener.
async fn missing(lab: &Lab) -> u64 {
    lab.status().await.counters.get(DropReason::ListenerMissing.name()).copied().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_spread_over_those_that_take_them() {
    let lab = lab().await;
    let first = Worker::start(&lab).await;
    let mut second = Worker::start(&lab).await;
    let third = Worker::start(&lab).await;
    // Before the first was there, its own test found nobody.
    let before = missing(&lab).await;
    let held = [&first, &second, &third].map(|w| w.handover.listeners[0].address);
    assert!(held[0] != held[1] && held[1] != held[2], "each has its own: {held:?}");
    for f in families() {
        let mut takers = [0; 3];
        for port in PORTS {
            let client = dial_from(&lab, SocketAddr::from((f.known, port)), (f.steered, PORT), WORKS);
            let client = client.unwrap_or_else(|e| panic!("port {port}: {e}"));
            let (n, _) = taker(&[&first, &second, &third], &client);
            assert_eq!(n, expected(&f, port, 3), "port {port}: both sides know where it belongs");
            takers[n] += 1;
        }
        assert!(takers.iter().all(|&n| n >= PORTS.len() / 6), "{takers:?}");
    }

    // One drains: what is open goes on, and what is new goes to the others.
    let [f, _] = families();
    let (mut client, mut served) = loop {
        let client = dial(&lab, f.known, (f.steered, PORT), WORKS).expect("steered");
        if let (1, served) = taker(&[&first, &second, &third], &client) {
            break (client, served);
        }
    };
    second.drain().await;
    for f in families() {
        for _ in PORTS {
            let client = dial(&lab, f.known, (f.steered, PORT), WORKS).expect("steered");
            let (n, _) = taker(&[&first, &third], &client);
            assert_eq!(n, expected(&f, client.local_addr().expect("address").port(), 2));
        }
    }
    client.write_all(b"on").expect("write");
    served.set_nonblocking(false).expect("blocking");
    let mut word = [0; 2];
    served.read_exact(&mut word).expect("what is open goes on");
    assert_eq!(&word, b"on");

    assert_eq!(missing(&lab).await, before, "{:#?}", lab.drops(&LiveQuery::default()).await);

    // One dies: what is new goes to the last one, and nothing is refused meanwhile. (A packet that meets a socket
    // as it dies may be dropped; it comes again.)
    drop(third);
    let until = Instant::now() + WORKS;
    loop {
        let clients: Vec<_> =
            PORTS.map(|_| dial(&lab, f.known, (f.steered, PORT), WORKS).expect("never refused")).collect();
        let accepted = first.accepted(ListenerKind::Transparent);
        let is_mine = |c: &TcpStream| accepted.iter().any(|a| a.peer_addr().ok() == c.local_addr().ok());
        if clients.iter().all(is_mine) {
            break;
        }
        assert!(Instant::now() < until, "a part is still the dead one's");
    }

    // With none, nothing is steered.
    drop(first);
    let until = Instant::now() + WORKS;
    while dial(&lab, f.known, (f.steered, PORT), REFUSED).is_ok() {
        assert!(Instant::now() < until, "steered to nobody");
    }
    for f in families() {
        refused(&lab, "without any", f.known, f.steered);
    }
}

/// In the agents' namespace: the answer to a SYN is lost until it is told otherwise.
fn lose_answers(lab: &Lab, is_lost: bool) {
    let rule = "add table inet t; add chain inet t c { type filter hook prerouting priority -300; }; \
                add rule inet t c tcp flags & (syn|ack) == syn|ack drop";
    let argument = if is_lost { rule } else { "delete table inet t" };
    let status = lab.inside(Place::Agents, || Command::new("nft").arg(argument).status()).expect("nft");
    assert!(status.success(), "nft {argument}");
}

/// A connection that has begun: its SYN is sent, and the answer is not there yet.
fn begin(lab: &Lab, f: &Family) -> Socket {
    lab.inside(Place::Agents, || {
        let to = SocketAddr::from((f.steered, PORT));
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("socket");
        socket.bind(&SocketAddr::from((f.known, 0)).into()).expect("bind");
        socket.set_nonblocking(true).expect("non-blocking");
        let _ = socket.connect(&to.into());
        socket
    })
}

/// Half-open connections of the gateway.
fn half_open(lab: &Lab) -> usize {
    let shown =
        lab.inside(Place::Gateway, || Command::new("ss").args(["-Htan", "state", "syn-recv"]).output());
    String::from_utf8_lossy(&shown.expect("ss").stdout).lines().count()
}

/// Waits in the queues of one that leaves: a connection that is open, one to the proxy, and a handshake whose last
/// packet is still to come. Another accepts them all.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_one_that_leaves_is_accepted_by_another() {
    for is_killed in [false, true] {
        let lab = lab().await;
        let mut leaver = Worker::start(&lab).await;
        let open = families().map(|f| dial(&lab, f.known, (f.steered, PORT), WORKS).expect("steered"));
        let proxied = families().map(|f| dial(&lab, f.known, (f.gateway, PROXY_PORT), WORKS).expect("proxy"));
        lose_answers(&lab, true);
        let begun = families().map(|f| begin(&lab, &f));
        let until = Instant::now() + WORKS;
        while half_open(&lab) < begun.len() {
            assert!(Instant::now() < until, "no handshake begins");
            std::thread::sleep(Duration::from_millis(20));
        }

        let (stream, handover, descriptors) = crate::network::take(&lab).await;
        let mut stayer = Worker { stream, handover, descriptors };
        if is_killed {
            drop(leaver);
        } else {
            leaver.drain().await;
        }
        stayer.told("the listeners of the one that left", |h| transparent(h) == 4).await;
        lose_answers(&lab, false);
        let wanted = open.iter().map(|c| c.local_addr().expect("address"));
        let begun_at = begun.iter().map(|c| c.local_addr().expect("address").as_socket().expect("inet"));
        let mut wanted: Vec<SocketAddr> = wanted.chain(begun_at).collect();
        let until = Instant::now() + WORKS;
        while !wanted.is_empty() {
            assert!(Instant::now() < until, "killed {is_killed}: nobody accepts {wanted:?}");
            for stream in stayer.accepted(ListenerKind::Transparent) {
                let peer = stream.peer_addr().expect("address");
                let local = stream.local_addr().expect("address");
                assert!(families().iter().any(|f| local == SocketAddr::from((f.steered, PORT))), "{local}");
                wanted.retain(|w| *w != peer);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(stayer.accepted(ListenerKind::Proxy).len(), proxied.len(), "the proxy's are shared");
    }
}

/// The kernel looks for a listener by itself when the tuple is in TIME_WAIT: it must find one that takes
/// connections, though the former connection's process does no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_tuple_in_time_wait_leads_to_one_that_takes_connections() {
    const SOURCE_PORT: u16 = 40_321;
    let lab = lab().await;
    let decoys = ["0.0.0.0", "::"]
        .map(|any| lab.inside(Place::Gateway, || decoy(SocketAddr::from((crate::lab::at(any), PORT)))));
    let mut workers = vec![Worker::start(&lab).await, Worker::start(&lab).await];
    for f in families() {
        let from = SocketAddr::from((f.known, SOURCE_PORT));
        for turn in 0..3 {
            let mut client = dial_from(&lab, from, (f.steered, PORT), WORKS)
                .unwrap_or_else(|e| panic!("{from} {turn}: {e}"));
            let (n, mut served) = taker(&workers.iter().collect::<Vec<_>>(), &client);
            assert_eq!(n, expected(&f, SOURCE_PORT, 2), "{from} {turn}");
            served.write_all(b"mine").expect("write");
            // Whoever closes first keeps the tuple.
            drop(served);
            let mut word = Vec::new();
            client.read_to_end(&mut word).expect("read");
            assert_eq!(word, b"mine", "{from} {turn}");
            drop(client);
            let until = Instant::now() + WORKS;
            while time_waits(&lab, SOURCE_PORT) == 0 {
                assert!(Instant::now() < until, "{from}: no socket in TIME_WAIT, so nothing is tested");
                std::thread::sleep(Duration::from_millis(20));
            }
            // The one that had it drains, and another comes.
            workers.remove(n).drain().await;
            workers.push(Worker::start(&lab).await);
        }
    }
    for decoy in &decoys {
        decoy.set_nonblocking(true).expect("non-blocking");
        assert!(decoy.accept().is_err(), "{decoy:?} accepted what was steered");
    }
}

/// One that is stopped, without being ended, loses its part: the others accept what waits for it, and what is new. It
/// is counted, and told.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_hangs_has_no_part_any_more() {
    let lab = lab().await;
    let hung = Worker::start(&lab).await;
    let mut other = Worker::start(&lab).await;
    hung.stream.signal(Signal::SIGSTOP);
    let [f, _] = families();
    let waiting: Vec<_> =
        PORTS.map(|_| dial(&lab, f.known, (f.steered, PORT), WORKS).expect("steered")).collect();
    let is_waiting = |s: &TcpStream| waiting.iter().any(|w| w.local_addr().ok() == s.peer_addr().ok());
    other.told("the listeners of the one that hangs", |h| transparent(h) == 4).await;
    let mut accepted = Vec::new();
    let until = Instant::now() + WORKS;
    while accepted.len() < waiting.len() {
        assert!(Instant::now() < until, "{} of {} are accepted", accepted.len(), waiting.len());
        accepted.extend(other.accepted(ListenerKind::Transparent).into_iter().filter(is_waiting));
        std::thread::sleep(Duration::from_millis(20));
    }
    for f in families() {
        for _ in PORTS {
            let client = dial(&lab, f.known, (f.steered, PORT), WORKS).expect("steered");
            taker(&[&other], &client);
        }
    }
    assert_eq!(lab.status().await.counters.get("l7_hung"), Some(&1));
    let word = format!("l7 process {} accepts nothing", hung.stream.pid());
    let told = |r: &AuditRecord| r.detail.as_ref().is_some_and(|d| d.contains(&word));
    let records = records(&lab, WORKS, told).await;
    assert!(records.iter().any(told), "{records:?}");
}

/// However often a process comes, it has one part: that of its latest connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_has_one_place() {
    let lab = lab().await;
    let other = Worker::start(&lab).await;
    let mut mine = Vec::new();
    for _ in 0..2 * WORKERS_MAX {
        let stream = UnixStream::connect(lab.config.handover_socket()).await.expect("handover socket");
        let (handover, _) = handover::receive(&stream).await.expect("a place");
        mine.push((stream, handover));
    }
    let (last, former) = mine.split_last().expect("some");
    for (stream, _) in former {
        while handover::receive(stream).await.is_ok() {}
    }
    assert!(last.0.try_read(&mut [0; 1]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock));
    // There is room for all the others.
    let mut others = Vec::new();
    for _ in 2..WORKERS_MAX {
        others.push(crate::network::take(&lab).await);
    }
    drop(other);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_too_many_is_told_so_and_comes_when_there_is_a_place() {
    let lab = lab().await;
    let mut workers = Vec::new();
    for _ in 0..WORKERS_MAX {
        workers.push(crate::network::take(&lab).await);
    }
    let ask = async || {
        let stream = UnixStream::connect(lab.config.handover_socket()).await.expect("handover socket");
        handover::receive(&stream).await.map(|(handover, _)| (stream, handover))
    };
    let refusal = ask().await.map(drop).expect_err("refused").to_string();
    assert!(refusal.starts_with("6 l7 processes take connections already"), "{refusal}");
    assert!(refusal.contains("stop one of them"), "{refusal}");
    // One that drains has no place any more, though it is there.
    let (mut drained, ..) = workers.pop().expect("one");
    drained.write_all(&[handover::DRAINS]).await.expect("word");
    let until = Instant::now() + WORKS;
    let (_stream, handover) = loop {
        match ask().await {
            Ok(lent) => break lent,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    };
    assert!(transparent(&handover) >= 2, "{handover:?}");
}
