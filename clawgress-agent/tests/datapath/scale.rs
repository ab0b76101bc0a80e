//! Ten thousand agents with a hundred thousand flows at once: each is recorded, one more agent is served as
//! before, also in floods, and the role does not grow with what passes through the kernel.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clawgress_agent::datapath::Generator;
use clawgress_ebpf_common::bound;
use clawgress_identity::Agent;
use nix::net::if_::if_nametoindex;

use crate::frames::{SYN, ip, tcp};
use crate::kernel::agent;
use crate::lab::{AGENT_MAC, Lab, Place, at};
use crate::network::{PORT, Server, WORKS, agents, dial, families, tables, talk};

/// What is promised of a node.
const AGENTS: u32 = 10_000;
const FLOWS: u64 = 100_000;
/// Most that the role's resident memory may gain, KiB: its spool of audit records full, and what the
/// allocator keeps of ten thousand agents' names. One record kept for each flow would be ten times that.
const GROWTH_KIB_MAX: u64 = 64 * 1024;
/// Times every flow's first packet is sent, at most.
const PASSES_MAX: u32 = 20;
/// Requests of the served agent before, and in each flood: enough for a hundredth.
const REQUESTS: usize = 100;
/// Frames of a flood that are sent at a time, and in all at least.
const FRAMES: u32 = 4_096;
const FRAMES_MIN: u64 = 50_000;

/// From each of `agents` addresses, SYNs from as many ports as make `flows`, until all are sent.
const SENDER: &str = r"
import socket, sys, time
frame, agents, flows = bytearray.fromhex(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('a0', 0))
for n in range(flows):
    frame[28:30] = (n % agents + 1).to_bytes(2, 'big')
    frame[34:36] = (20000 + n // agents).to_bytes(2, 'big')
    while True:
        try:
            s.send(frame)
            break
        except OSError:
            time.sleep(0.001)
";

/// The usual agent, and ten thousand more: agent n + 1 has `10.100.0.0` plus n.
fn crowd() -> Vec<Agent> {
    let mut all = agents();
    for n in 1..=AGENTS {
        let [high, low] = u16::try_from(n).expect("16 bits").to_be_bytes();
        all.push(agent(n + 1, &[&format!("ga=10.100.{high}.{low},any-mac")]));
    }
    all
}

fn resident_kib(lab: &Lab) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", lab.pid())).expect("the role runs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("resident memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The served agent connects and talks; the median, and what one in a hundred takes longer than.
fn served(lab: &Lab) -> (Duration, Duration) {
    let [f, _] = families();
    let mut times: Vec<Duration> = (0..REQUESTS)
        .map(|_| {
            let begun = Instant::now();
            talk(&mut dial(lab, f.known, (f.direct, PORT), WORKS).expect("served"), b"word");
            begun.elapsed()
        })
        .collect();
    times.sort();
    (times[REQUESTS / 2], times[REQUESTS * 99 / 100])
}

/// SYNs from `source` to random addresses of 20.0.0.0/8, as fast as the kernel makes them, while the served agent
/// works.
fn flooded(lab: &Lab, what: &str, source: &str, (p50, p99): (Duration, Duration)) {
    let stop = Arc::<AtomicBool>::default();
    let frame = ip(agents_mac(), at(source), at("20.0.0.0"), 6, &tcp(40_000, PORT, SYN));
    let ended = Arc::clone(&stop);
    let flood = lab.inside(Place::Agents, || {
        let index = if_nametoindex("a0").expect("the agents' cable");
        let generator =
            Generator::new(index, frame, Ipv4Addr::new(20, 0, 0, 0), 0x00FF_FFFF).expect("a generator");
        // A thread stays where it was made.
        std::thread::spawn(move || {
            let (begun, mut sent) = (Instant::now(), 0);
            while sent < FRAMES_MIN || !ended.load(Ordering::SeqCst) {
                generator.send(FRAMES).expect("sent");
                sent += u64::from(FRAMES);
            }
            (sent, begun.elapsed())
        })
    });
    let busy = served(lab);
    stop.store(true, Ordering::SeqCst);
    let (sent, took) = flood.join().expect("the flood ends");
    let ratio = |busy: Duration, calm: Duration| busy.as_secs_f64() / calm.as_secs_f64();
    println!(
        "{what}: {sent} frames in {took:?}; connection and word, median and p99: {busy:?}, {:.2} and {:.2} times what they were",
        ratio(busy.0, p50),
        ratio(busy.1, p99),
    );
}

pub fn agents_mac() -> [u8; 6] {
    let mac: Vec<u8> = AGENT_MAC.split(':').map(|b| u8::from_str_radix(b, 16).expect("MAC")).collect();
    mac.try_into().expect("six bytes")
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_agents_have_a_hundred_thousand_flows() {
    assert!(FLOWS < u64::from(bound::FLOWS_MAX), "the table is too small for what is promised");
    let mut lab = Lab::new();
    lab.start().await;
    let mut tables = tables();
    tables.agents.extend((1..=AGENTS).map(|n| (n + 1, 1)));
    tables.destinations.push(("20.0.0.0/8".parse().expect("prefix"), 1));
    let begun = Instant::now();
    let status = lab.apply(1, tables, crowd()).await;
    println!("{AGENTS} agents applied in {:?}", begun.elapsed());
    assert_eq!(status.generation, 1);

    let [f, _] = families();
    let _server = Server::start(&lab, f.direct);
    let (calm, before) = (served(&lab), resident_kib(&lab));
    let frame = ip(agents_mac(), at("10.100.0.0"), at("198.51.100.77"), 6, &tcp(0, PORT, SYN));
    let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
    let (begun, mut flows) = (Instant::now(), 0);
    // A cable loses what its other end is too slow for; another pass fills the gaps.
    for _ in 0..PASSES_MAX {
        let sent = lab.inside(Place::Agents, || {
            let words = [&hex, &AGENTS.to_string(), &FLOWS.to_string()];
            Command::new("python3").args(["-c", SENDER]).args(words).status()
        });
        assert!(sent.expect("python3").success(), "not everything was sent");
        flows = lab.status().await.flows;
        if flows >= FLOWS {
            break;
        }
    }
    println!("{flows} flows after {:?}", begun.elapsed());
    assert!(flows >= FLOWS, "only {flows} flows are recorded");

    let busy = served(&lab);
    println!("connection and word, median and p99: {calm:?} before, {busy:?} with the flows");
    flooded(&lab, "spoofed SYN flood", "10.99.0.1", busy);
    flooded(&lab, "a known agent's SYN flood", "10.100.0.1", busy);
    let status = lab.status().await;
    assert!(status.flows < u64::from(bound::FLOWS_MAX), "one agent filled the table: {}", status.flows);
    for denied in ["anonymous", "flow_share_full"] {
        println!("{denied}: {} packets", status.counters.get(denied).copied().unwrap_or(0));
    }
    assert!(status.counters.get("anonymous").is_some_and(|n| *n > 0), "{:?}", status.counters);
    // A sweep of the table meanwhile is part of it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = resident_kib(&lab);
    println!("resident memory of the role: {before} KiB before, {after} KiB after");
    assert!(after < before + GROWTH_KIB_MAX, "the role grew from {before} to {after} KiB");
}
