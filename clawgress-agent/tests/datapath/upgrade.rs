//! A new process in the place of the old one, under traffic that never pauses: nothing that is denied gets
//! through, and nothing that is permitted is lost.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use clawgress_agent::datapath::object;
use clawgress_api::handover::{self, ListenerKind};
use clawgress_ebpf_common::{ABI_VERSION, DropReason, map};
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables, VerdictCell};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio_util::sync::CancellationToken;

use crate::lab::{Lab, Place};
use crate::network::{Family, PORT, WORKS, agents, dial, families, tables, talk};
use crate::peer::Peer;

/// Between two datagrams of one sender.
pub const PACE: Duration = Duration::from_micros(500);
/// Buffer of a receiver: more than all that is sent while it may not run.
const BUFFER_BYTES: usize = 8 << 20;

/// As the usual tables, and UDP may go direct where TCP may, to the next port as well.
pub fn with_udp() -> KernelTables {
    let mut tables = tables();
    tables.ports = vec![(0, 0), (PORT, 1), (PORT + 2, 0)];
    tables.verdicts.push(VerdictCell {
        agent_class: 1,
        destination_class: 1,
        transport: Transport::Udp,
        port_class: 1,
        action: KernelAction::Direct,
        policies: 1,
        limits: 0,
        never_direct: false,
    });
    tables
}

/// Numbered datagrams, one way and back, until it is stopped.
pub struct Datagrams {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicBool>,
    arrived: Arc<Mutex<BTreeSet<u64>>>,
    sender: std::thread::JoinHandle<u64>,
    answers: std::thread::JoinHandle<BTreeSet<u64>>,
}

impl Datagrams {
    pub fn start(lab: &Lab, from: IpAddr, to: IpAddr, port: u16) -> Datagrams {
        let (stop, done, arrived) =
            <(Arc<AtomicBool>, Arc<AtomicBool>, Arc<Mutex<BTreeSet<u64>>>)>::default();
        let server = lab.inside(Place::Outside, || UdpSocket::bind((to, port)).expect("bind"));
        let client = lab.inside(Place::Agents, || UdpSocket::bind((from, 0)).expect("bind"));
        client.connect((to, port)).expect("connect");
        for socket in [&server, &client] {
            SockRef::from(socket).set_recv_buffer_size(BUFFER_BYTES).expect("buffer");
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("time-out");
        }
        let (end, seen) = (Arc::clone(&done), Arc::clone(&arrived));
        std::thread::spawn(move || {
            let mut bytes = [0; 8];
            while !end.load(Ordering::SeqCst) {
                if let Ok((8, peer)) = server.recv_from(&mut bytes) {
                    seen.lock().insert(u64::from_be_bytes(bytes));
                    let _ = server.send_to(&bytes, peer);
                }
            }
        });
        let (end, socket) = (Arc::clone(&done), client.try_clone().expect("clone"));
        let answers = std::thread::spawn(move || {
            let (mut bytes, mut answers) = ([0; 8], BTreeSet::new());
            while !end.load(Ordering::SeqCst) {
                if let Ok(8) = socket.recv(&mut bytes) {
                    answers.insert(u64::from_be_bytes(bytes));
                }
            }
            answers
        });
        let end = Arc::clone(&stop);
        let sender = std::thread::spawn(move || {
            let mut n = 0;
            while !end.load(Ordering::SeqCst) {
                // An error is one that the kernel was told earlier (ICMP): the datagram was not sent.
                if client.send(&u64::to_be_bytes(n)).is_ok() {
                    n += 1;
                }
                std::thread::sleep(PACE);
            }
            n
        });
        Datagrams { stop, done, arrived, sender, answers }
    }

    pub fn arrived(&self) -> usize {
        self.arrived.lock().len()
    }

    /// Sent, arrived, and answered.
    pub fn finish(self) -> (u64, BTreeSet<u64>, BTreeSet<u64>) {
        self.stop.store(true, Ordering::SeqCst);
        let sent = self.sender.join().expect("sender");
        // The receivers run on for as long as the last ones may be on their way.
        std::thread::sleep(Duration::from_secs(1));
        self.done.store(true, Ordering::SeqCst);
        let answers = self.answers.join().expect("answers");
        (sent, self.arrived.lock().clone(), answers)
    }
}

/// L7 as far as listeners go: takes them, and takes the next ones when the role is another.
struct Proxy {
    stop: CancellationToken,
    accepted: Arc<AtomicUsize>,
}

impl Proxy {
    fn start(socket: PathBuf) -> Proxy {
        let (stop, accepted) = (CancellationToken::new(), Arc::<AtomicUsize>::default());
        let (end, count) = (stop.clone(), Arc::clone(&accepted));
        tokio::spawn(async move {
            let mut former: Option<CancellationToken> = None;
            while !end.is_cancelled() {
                let asked = async {
                    let stream = Peer::connect(&socket).await?;
                    let set = handover::receive(&stream).await?;
                    Ok::<_, std::io::Error>((stream, set))
                };
                if let Ok((stream, (set, descriptors))) = asked.await {
                    let current = end.child_token();
                    for (listener, fd) in set.listeners.iter().zip(descriptors) {
                        if listener.kind == ListenerKind::Transparent {
                            let listener = TcpListener::from(fd);
                            tokio::task::spawn_blocking({
                                let (stop, count) = (current.clone(), Arc::clone(&count));
                                move || serve(&listener, &stop, &count)
                            });
                        }
                    }
                    if let Some(former) = former.replace(current) {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        former.cancel();
                    }
                    while handover::receive(&stream).await.is_ok() {}
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Proxy { stop, accepted }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn serve(listener: &TcpListener, stop: &CancellationToken, count: &AtomicUsize) {
    listener.set_nonblocking(true).expect("non-blocking");
    while !stop.is_cancelled() {
        match listener.accept() {
            Ok((stream, _)) => {
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || echo(stream));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn echo(mut stream: TcpStream) {
    stream.set_nonblocking(false).expect("blocking");
    let mut bytes = [0; 64];
    while let Ok(n @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..n]).is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_process_takes_over_without_a_lost_or_unjudged_packet() {
    const UPGRADES: usize = 6;
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(3, with_udp(), agents()).await;
    let [f, _] = families();
    // Two: what belongs to which is another matter after each upgrade.
    let proxies = [(); 2].map(|()| Proxy::start(lab.config.handover_socket()));
    let until = Instant::now() + WORKS;
    while dial(&lab, f.known, (f.steered, PORT), Duration::from_millis(100)).is_err() {
        assert!(Instant::now() < until, "no l7");
    }
    let misses = DropReason::ListenerMissing.name();
    let missed =
        |counters: &std::collections::BTreeMap<String, u64>| counters.get(misses).copied().unwrap_or(0);
    let before = missed(&lab.status().await.counters);
    let _server = crate::network::Server::start(&lab, f.direct);
    let mut direct = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
    let mut long = dial(&lab, f.known, (f.steered, PORT), WORKS).expect("steered");

    let good = Datagrams::start(&lab, f.known, f.direct, PORT);
    let denied = Datagrams::start(&lab, f.known, f.forbidden, PORT);
    let anonymous = Datagrams::start(&lab, f.unknown, f.direct, PORT + 1);
    let stop = AtomicBool::new(false);
    let mut connections = 0;
    // The role is restarted here, and the connections are made beside it.
    let name = lab.ns(Place::Agents);
    std::thread::scope(|scope| {
        let (f, stop) = (&f, &stop);
        let dialler = scope.spawn(move || steered(&name, f, stop));
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                for n in 0..UPGRADES {
                    lab.stop(if n % 2 == 0 { Signal::SIGTERM } else { Signal::SIGKILL });
                    let alone = good.arrived();
                    while good.arrived() < alone + 20 {
                        tokio::time::sleep(PACE).await;
                    }
                    lab.start().await;
                    talk(&mut direct, b"long, direct");
                    talk(&mut long, b"long, steered");
                    // Time for l7 to take the new listeners, and let go of the old ones.
                    tokio::time::sleep(Duration::from_millis(1500)).await;
                }
            });
        });
        stop.store(true, Ordering::SeqCst);
        connections = dialler.join().expect("dialler");
    });
    let status = lab.status().await;
    assert_eq!(status.generation, 3);
    let (sent, arrived, answered) = good.finish();
    let lost: Vec<_> = (0..sent).filter(|n| !arrived.contains(n)).collect();
    assert!(sent > 1_000 && lost.is_empty(), "of {sent} lost: {lost:?}");
    let lost: Vec<_> = arrived.iter().filter(|n| !answered.contains(n)).collect();
    assert!(lost.is_empty(), "answers lost: {lost:?}");
    for (what, flow) in [("denied", denied), ("anonymous", anonymous)] {
        let (sent, arrived, _) = flow.finish();
        assert!(sent > 1_000 && arrived.is_empty(), "{what}: {} of {sent} got through", arrived.len());
    }
    assert_eq!(missed(&status.counters), before, "a permitted SYN was refused");
    let accepted = proxies.each_ref().map(|p| p.accepted.load(Ordering::SeqCst));
    assert!(connections > 100 && accepted.iter().sum::<usize>() >= connections, "{connections}");
    assert!(accepted.iter().all(|&n| n > connections / 20), "both serve: {accepted:?}");
    println!("{UPGRADES} upgrades: {sent} datagrams and {connections} connections, none lost, none unjudged");
}

/// Steered connections one after the other, each with a word and its echo, until `stop`; how many there were.
fn steered(namespace: &str, f: &Family, stop: &AtomicBool) -> usize {
    let ns = std::fs::File::open(format!("/run/netns/{namespace}")).expect("namespace");
    nix::sched::setns(&ns, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        let mut stream =
            TcpStream::connect_timeout(&SocketAddr::from((f.steered, PORT)), WORKS).expect("steered");
        stream.set_read_timeout(Some(WORKS)).expect("time-out");
        talk(&mut stream, b"short");
        n += 1;
        std::thread::sleep(Duration::from_millis(2));
    }
    n
}

/// Maps of another layout are of no use: all is replaced, and nothing passes until policy is there again.
#[tokio::test(flavor = "multi_thread")]
async fn another_abi_is_replaced_whole_and_closed_meanwhile() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(3, with_udp(), agents()).await;
    let [f, _] = families();
    let good = Datagrams::start(&lab, f.known, f.direct, PORT);
    let denied = Datagrams::start(&lab, f.known, f.forbidden, PORT);
    let anonymous = Datagrams::start(&lab, f.unknown, f.direct, PORT + 1);
    let until = Instant::now() + WORKS;
    while good.arrived() == 0 {
        assert!(Instant::now() < until, "nothing arrives");
        tokio::time::sleep(PACE).await;
    }
    for round in 0..2 {
        lab.stop(Signal::SIGKILL);
        let meta = object::pin(&lab.config.datapath.bpffs, map::META);
        let meta = Map::from_map_data(MapData::from_pin(meta).expect("pin")).expect("map");
        let mut meta = Array::<_, u32>::try_from(meta).expect("version");
        meta.set(0, ABI_VERSION + 1, 0).expect("set");
        drop(meta);
        lab.start().await;
        assert!(lab.log_text().contains("of another version"), "{}", lab.log_text());
        assert_eq!(lab.status().await.generation, 0, "nothing was taken over");
        let closed = good.arrived();
        let until = Instant::now() + WORKS;
        let judged = [DropReason::Anonymous, DropReason::PolicyMissing].map(DropReason::name);
        while !lab.status().await.counters.keys().any(|c| judged.contains(&c.as_str())) {
            assert!(Instant::now() < until, "the new programs judge nothing");
        }
        // One may have been on its way when it was counted.
        assert!(good.arrived() <= closed + 1, "round {round}: open without a policy");
        lab.apply(3, with_udp(), agents()).await;
        let until = Instant::now() + WORKS;
        while good.arrived() <= closed + 1 {
            assert!(Instant::now() < until, "round {round}: it does not recover");
            tokio::time::sleep(PACE).await;
        }
    }
    good.finish();
    for (what, flow) in [("denied", denied), ("anonymous", anonymous)] {
        let (sent, arrived, _) = flow.finish();
        assert!(sent > 100 && arrived.is_empty(), "{what}: {} of {sent} got through", arrived.len());
    }
}
