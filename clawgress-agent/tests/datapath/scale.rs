//! Ten thousand agents with a hundred thousand flows at once: each is recorded, one more agent is served as
//! before, and the role does not grow with what passes through the kernel.

use std::process::Command;
use std::time::{Duration, Instant};

use clawgress_ebpf_common::bound;
use clawgress_identity::Agent;

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
/// Requests of the served agent before and after.
const REQUESTS: usize = 20;

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

/// The served agent connects and talks; median and worst.
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
    (times[REQUESTS / 2], times[REQUESTS - 1])
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_agents_have_a_hundred_thousand_flows() {
    assert!(FLOWS < u64::from(bound::FLOWS_MAX), "the table is too small for what is promised");
    let mut lab = Lab::new();
    lab.start().await;
    let mut tables = tables();
    tables.agents.extend((1..=AGENTS).map(|n| (n + 1, 1)));
    let begun = Instant::now();
    let status = lab.apply(1, tables, crowd()).await;
    println!("{AGENTS} agents applied in {:?}", begun.elapsed());
    assert_eq!(status.generation, 1);

    let [f, _] = families();
    let _server = Server::start(&lab, f.direct);
    let (calm, before) = (served(&lab), resident_kib(&lab));
    let mac: Vec<u8> = AGENT_MAC.split(':').map(|b| u8::from_str_radix(b, 16).expect("MAC")).collect();
    let mac = mac.try_into().expect("six bytes");
    let frame = ip(mac, at("10.100.0.0"), at("198.51.100.77"), 6, &tcp(0, PORT, SYN));
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
    // A sweep of the table meanwhile is part of it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = resident_kib(&lab);
    println!("connection and word, median and worst: {calm:?} before, {busy:?} with the flows");
    println!("resident memory of the role: {before} KiB before, {after} KiB after");
    assert!(after < before + GROWTH_KIB_MAX, "the role grew from {before} to {after} KiB");
}
