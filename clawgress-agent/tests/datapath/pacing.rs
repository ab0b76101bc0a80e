//! `throttle`: what is over is sent later where the uplink's queue does that, and dropped where it doesn't. The kernels
//! in virtual machines have such a queue; the one that runs the other tests need not.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clawgress_api::{DatapathStatus, LiveLimit};
use clawgress_ebpf_common::bound;
use clawgress_policy::kernel::{LimitAction, LimitUnit, Limiter};

use crate::joined::Wire;
use crate::kernel::agent;
use crate::lab::{self, Lab, Place, at};
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

async fn limit(lab: &Lab, policy: &str) -> LiveLimit {
    let limits = lab.limits().await;
    limits.into_iter().find(|l| l.policy.as_deref() == Some(policy)).expect("the limit")
}

/// Sends `bytes` from a governed command to the outside.
fn send(lab: &Lab, cgroup: &str, bytes: usize) -> (Child, std::thread::JoinHandle<()>) {
    let script = format!("echo $$ > {cgroup}/cgroup.procs && exec busybox nc {} {PORT}", DIRECT[0]);
    let mut child = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", lab.ns(Place::Gateway)))
        .args(["busybox", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nsenter");
    let mut stdin = child.stdin.take().expect("stdin");
    let writer = std::thread::spawn(move || {
        // A command that is stopped takes no more.
        let _ = stdin.write_all(&vec![b'x'; bytes]);
    });
    (child, writer)
}

/// One transfer: packets and bytes of layer 3 that the receiver had when it had everything, and since when they
/// could come.
async fn transfer(lab: &Lab, wire: &Wire<'_>, cgroup: &str, bytes: usize) -> (u64, u64, Duration) {
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
    let (mut child, writer) = send(lab, cgroup, bytes);
    tokio::task::spawn_blocking(move || reader.join()).await.expect("task").expect("all data arrive");
    let after = wire.counted();
    let took = begun.elapsed();
    writer.join().expect("writer");
    assert!(child.wait().expect("nc").success());
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
    let (mut child, writer) = send(&lab, &job.path, 1 << 20);
    let until = Instant::now() + PATIENCE;
    loop {
        let found = lab.limits().await;
        if found.iter().any(|l| l.policy.as_deref() == Some("limit-1") && l.dropped > 0 && l.over == "drop") {
            break;
        }
        assert!(Instant::now() < until, "{found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!lab.status().await.counters.contains_key("paced"));
    child.kill().expect("kill");
    child.wait().expect("nc");
    writer.join().expect("writer");
}

/// A transfer of a local command arrives whole, with nothing dropped, and no faster than its limit says: with what a
/// slow machine adds it only takes longer. It takes longer than a packet may wait, so the time each packet is given is
/// the time it leaves.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the queue `fq`: `older` runs it in virtual machines, whose kernels have it"]
async fn where_the_queue_is_fq_what_is_over_is_sent_later() {
    let mut lab = Lab::new();
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

    let (rate, burst, sent) = (300_000, 65_535, 2_000_000);
    let limits = vec![throttle(1, LimitUnit::Bytes, rate, burst)];
    let status = lab.apply(1, held(tables(), limits), vec![agent(1, &[])]).await;
    assert!(!is_warned(&status), "{:?}", status.absent);
    let (_, bytes, took) = transfer(&lab, &wire, &job.path, sent).await;
    let row = limit(&lab, "limit-1").await;
    let least = Duration::from_millis((bytes - burst) * 1000 / rate);
    println!("{bytes} bytes in {took:?}, at least {least:?}: {row:?}");
    assert!(bytes >= sent as u64 && row.passed >= bytes, "all of it was charged");
    assert_eq!((row.dropped, row.over.as_str()), (0, "pace"), "nothing is dropped");
    assert!(took >= least && least > horizon, "{took:?}");
    let paced = lab.status().await.counters.get("paced").copied().unwrap_or(0);
    assert!(paced > 0, "nothing waited");

    let (rate, burst, sent) = (200, 50, 1_500_000);
    let limits = vec![throttle(2, LimitUnit::Packets, rate, burst)];
    lab.apply(2, held(tables(), limits), vec![agent(1, &[])]).await;
    let (packets, _, took) = transfer(&lab, &wire, &job.path, sent).await;
    let row = limit(&lab, "limit-2").await;
    let least = Duration::from_millis((packets - burst - 2) * 1000 / rate);
    println!("{packets} packets in {took:?}, at least {least:?}: {row:?}");
    assert!(packets > sent as u64 / 1500 && row.passed >= packets, "as they are on the wire");
    assert_eq!((row.dropped, row.over.as_str()), (0, "pace"), "nothing is dropped");
    assert!(took >= least && least > horizon, "{took:?}");

    // Another queue: noticed, told, and nothing is sent later that would leave at once.
    tc("qdisc del dev gu root");
    until(&lab, "drop").await;
    assert_eq!(limit(&lab, "limit-2").await.over, "drop");
    let told = |r: &clawgress_api::AuditRecord| {
        r.detail.as_ref().is_some_and(|d| d.contains("the queue of uplink `gu` is not `fq` any more"))
    };
    assert!(records(&lab, PATIENCE, told).await.iter().any(told));
    // Taken up again by the next process, as it is then.
    lab.stop(nix::sys::signal::Signal::SIGKILL);
    tc("qdisc replace dev gu root fq");
    lab.start().await;
    assert_eq!(action(&lab.status().await), Some("pace"));
    lab::ip(&format!("-n {gateway} link set gu down"));
}
