//! `throttle`: what is over is sent later where the uplink's queue does that, and dropped where it doesn't. The kernels
//! in virtual machines have such a queue; the one that runs the other tests need not.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use clawgress_agent::datapath::bpf::Plain;
use clawgress_api::{DatapathStatus, LiveLimit, handover};
use clawgress_ebpf_common::{Dial, bound};
use clawgress_policy::kernel::{LimitAction, LimitUnit, Limiter};
use socket2::{Domain, Socket, Type};

use crate::dial::Cgroup;
use crate::joined::Wire;
use crate::kernel::agent;
use crate::lab::{Lab, Place, at};
use crate::limits::{held, limiter};
use crate::local::DIRECT;
use crate::network::{PORT, records};
use crate::workload::{open_workload, tables};

/// In an emulated machine, beside other tests.
const PATIENCE: Duration = Duration::from_secs(120);

fn throttle(key: u64, unit: LimitUnit, count: u64, burst: u64) -> Limiter {
    Limiter { over: LimitAction::Pace, ..limiter(key, unit, count, 1, burst) }
}

/// What status says `throttle` does by the uplink.
fn action(status: &DatapathStatus) -> Option<&str> {
    status.interfaces.iter().find(|i| i.name == "gu").and_then(|i| i.throttle.as_deref())
}

fn is_warned(status: &DatapathStatus) -> bool {
    status
        .absent
        .iter()
        .any(|a| a.contains("`throttle` (policy `limit-1`) drops what is over and goes by `gu`"))
}

async fn until(lab: &Lab, wanted: &str) -> DatapathStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = lab.status().await;
        if action(&status) == Some(wanted) {
            return status;
        }
        assert!(Instant::now() < until, "not `{wanted}`: {status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until that limit has dropped something, and is said to do `over`.
async fn until_dropped(lab: &Lab, policy: &str, over: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        let found = lab.limits().await;
        if found.iter().any(|l| l.policy.as_deref() == Some(policy) && l.dropped > 0 && l.over == over) {
            return;
        }
        assert!(Instant::now() < until, "{found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn limit(lab: &Lab, policy: &str) -> LiveLimit {
    let limits = lab.limits().await;
    limits.into_iter().find(|l| l.policy.as_deref() == Some(policy)).expect("the limit")
}

/// Runs `command` in the gateway's namespace and that cgroup.
fn run(lab: &Lab, cgroup: &str, command: &str) -> Command {
    // The shell enters the cgroup first, so that every socket is made in there.
    let script = format!("echo $$ > {cgroup}/cgroup.procs && exec {command}");
    let mut run = Command::new("nsenter");
    run.arg(format!("--net=/run/netns/{}", lab.ns(Place::Gateway))).args(["busybox", "sh", "-c", &script]);
    run
}

/// Sends `bytes` from a governed command to the outside.
fn send(lab: &Lab, cgroup: &str, bytes: usize) -> Child {
    let nc = format!("busybox nc {} {PORT}", DIRECT[0]);
    let mut child = run(lab, cgroup, &nc).stdin(Stdio::piped()).spawn().expect("nsenter");
    let mut stdin = child.stdin.take().expect("stdin");
    std::thread::spawn(move || {
        // A command that is stopped takes no more.
        let _ = stdin.write_all(&vec![b'x'; bytes]);
    });
    child
}

/// Where the datapath role hands listeners over, for a process of this program that is the proxy.
const PROXY: &str = "CLAWGRESS_TEST_PROXY";

/// Sends so much as the proxy would that dials for agent 1.
async fn proxy(socket: &str, bytes: usize) {
    let stream = tokio::net::UnixStream::connect(socket).await.expect("handover socket");
    let (_, mut descriptors) = handover::receive(&stream).await.expect("handover");
    let dials = MapData::from_fd(descriptors.pop().expect("the table of dials")).expect("map");
    let mut dials = HashMap::<_, u64, Plain<Dial>>::try_from(Map::HashMap(dials)).expect("layout");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    let dial = Dial { agent: 1, flags: 0 };
    dials.insert(socket.cookie().expect("cookie"), Plain(dial), 0).expect("registered");
    socket.connect(&SocketAddr::new(at(DIRECT[0]), PORT).into()).expect("permitted");
    TcpStream::from(socket).write_all(&vec![b'x'; bytes]).expect("sent");
}

/// Has [`proxy`] run in the proxy's cgroup.
fn dial_for_agent(lab: &Lab, cgroup: &str) -> Child {
    let own = std::env::current_exe().expect("the running program");
    let again = format!("{} --exact --include-ignored {TEST}", own.display());
    let socket = lab.config.handover_socket();
    run(lab, cgroup, &again).env(PROXY, socket).stdout(Stdio::null()).spawn().expect("nsenter")
}

/// One transfer: packets and bytes of layer 3 that the receiver had when it had everything, and since when they
/// could come.
async fn transfer(
    lab: &Lab,
    wire: &Wire<'_>,
    bytes: usize,
    sender: impl FnOnce() -> Child,
) -> (u64, u64, Duration) {
    let listener = lab.inside(Place::Outside, || TcpListener::bind((at(DIRECT[0]), PORT)).expect("bind"));
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
        let mut all = vec![0; bytes];
        stream.read_exact(&mut all).expect("all that was sent");
        assert!(all.iter().all(|b| *b == b'x'));
        assert_eq!(stream.read(&mut [0]).expect("its end"), 0);
    });
    let before = wire.counted();
    let begun = Instant::now();
    let mut child = sender();
    tokio::task::spawn_blocking(move || reader.join()).await.expect("task").expect("all data arrive");
    let after = wire.counted();
    let took = begun.elapsed();
    assert!(child.wait().expect("the sender").success());
    (after.0 - before.0, after.1 - before.1, took)
}

/// By its own queue a virtual link sends at once.
#[tokio::test(flavor = "multi_thread")]
async fn where_the_queue_sends_at_once_throttle_drops_and_says_so() {
    let mut lab = Lab::new();
    lab.start().await;
    assert_eq!(action(&lab.status().await), Some("drop"));
    lab.apply(1, tables(), vec![agent(1, &[])]).await;
    assert!(!is_warned(&lab.status().await), "nobody asked for it");
    let limits = vec![throttle(1, LimitUnit::Bytes, 20_000, 65_535)];
    let status = lab.apply(2, held(tables(), limits), vec![agent(1, &[])]).await;
    assert!(is_warned(&status), "{:?}", status.absent);
    let _listener = lab.inside(Place::Outside, || TcpListener::bind((at(DIRECT[0]), PORT)).expect("bind"));
    let job = open_workload(&lab, 1, "job").await;
    let mut child = send(&lab, &job.path, 1 << 20);
    until_dropped(&lab, "limit-1", "drop").await;
    assert!(!lab.status().await.counters.contains_key("paced"));
    child.kill().expect("kill");
    child.wait().expect("nc");
}

/// The next one's name.
const TEST: &str = "pacing::where_the_queue_is_fq_what_is_over_is_sent_later";
/// Bytes of the transfers that bytes and packets are counted of.
const SENT: usize = 2_000_000;
const SENT_IN_PACKETS: usize = 1_500_000;
/// The last acknowledgement, without data, may be the kernel's own: the socket is nobody's by then.
const LAST_BYTES: u64 = 60;

/// A transfer of a local command, and one of the proxy for an agent, arrive whole, with nothing dropped, and no faster
/// than the limit says: with what a slow machine adds they only take longer. They take longer than a packet may wait,
/// so the time each packet is given is the time it leaves.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the queue `fq`: `older` runs it in virtual machines, whose kernels have it"]
async fn where_the_queue_is_fq_what_is_over_is_sent_later() {
    if let Ok(socket) = std::env::var(PROXY) {
        return proxy(&socket, SENT_IN_PACKETS).await;
    }
    let cgroup = Cgroup::new("pacing");
    let mut lab = Lab::with_l7(&format!("cgroup = \"{}\"", cgroup.path()));
    lab.start().await;
    let gateway = lab.ns(Place::Gateway);
    let tc = |words: &str| {
        let status = Command::new("tc").args(["-n", &gateway]).args(words.split_whitespace()).status();
        assert!(status.expect("tc").success(), "tc {words}");
    };
    tc("qdisc replace dev gu root fq");
    until(&lab, "pace").await;
    let job = open_workload(&lab, 1, "job").await;
    let wire = Wire::tap(&lab);
    let horizon = Duration::from_nanos(bound::PACE_HORIZON_NS);

    let (rate, burst) = (300_000, 65_535);
    let limits = vec![throttle(1, LimitUnit::Bytes, rate, burst)];
    let status = lab.apply(1, held(tables(), limits), vec![agent(1, &[])]).await;
    assert!(!is_warned(&status), "{:?}", status.absent);
    let (_, bytes, took) = transfer(&lab, &wire, SENT, || send(&lab, &job.path, SENT)).await;
    let row = limit(&lab, "limit-1").await;
    let least = Duration::from_millis((bytes - burst) * 1000 / rate);
    println!("{bytes} bytes in {took:?}, at least {least:?}: {row:?}");
    assert!(bytes >= SENT as u64 && row.passed + LAST_BYTES >= bytes, "all of it was charged");
    assert_eq!((row.dropped, row.over.as_str()), (0, "pace"), "nothing is dropped");
    assert!(took >= least && least > horizon, "{took:?}");
    let paced = lab.status().await.counters.get("paced").copied().unwrap_or(0);
    assert!(paced > 0, "nothing waited");

    // What the proxy dials for an agent by the explicit proxy.
    let (rate, burst) = (200, 50);
    let limits = vec![throttle(2, LimitUnit::Packets, rate, burst)];
    lab.apply(2, held(tables(), limits), vec![agent(1, &[])]).await;
    let (packets, _, took) =
        transfer(&lab, &wire, SENT_IN_PACKETS, || dial_for_agent(&lab, cgroup.path())).await;
    let row = limit(&lab, "limit-2").await;
    let least = Duration::from_millis((packets - burst - 2) * 1000 / rate);
    println!("{packets} packets in {took:?}, at least {least:?}: {row:?}");
    assert!(packets > SENT_IN_PACKETS as u64 / 1500 && row.passed + 1 >= packets, "as they are on the wire");
    assert_eq!((row.dropped, row.over.as_str()), (0, "pace"), "nothing is dropped");
    assert!(took >= least && least > horizon, "{took:?}");

    // What would have to wait for longer than it may is dropped.
    let limits = vec![Limiter { over: LimitAction::Pace, ..limiter(3, LimitUnit::Packets, 1, 60, 3) }];
    lab.apply(3, held(tables(), limits), vec![agent(1, &[])]).await;
    let listener = lab.inside(Place::Outside, || TcpListener::bind((at(DIRECT[0]), PORT)).expect("bind"));
    let mut child = send(&lab, &job.path, SENT);
    until_dropped(&lab, "limit-3", "pace").await;
    child.kill().expect("kill");
    child.wait().expect("nc");
    drop(listener);

    // Another queue: noticed, told, and nothing is sent later that would leave at once.
    tc("qdisc del dev gu root");
    until(&lab, "drop").await;
    assert_eq!(limit(&lab, "limit-3").await.over, "drop");
    let told = |r: &clawgress_api::AuditRecord| {
        r.detail.as_ref().is_some_and(|d| d.contains("the queue of uplink `gu` is not `fq` any more"))
    };
    assert!(records(&lab, PATIENCE, told).await.iter().any(told));
}
