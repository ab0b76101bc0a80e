//! What the kernel tells of drops: each kind once with a count of the rest, and nobody's in place of another's.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use clawgress_agent::datapath::events::Told;
use clawgress_api::{AuditRecord, RecordKind};
use clawgress_ebpf_common::{DropReason, Event, bound, counter, event_kind, protocol};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::frames::{SYN, ip, tcp, udp};
use crate::kernel::{Did, Kernel, agent};
use crate::lab::{Lab, Place, at};
use crate::network::records;
use crate::puppet::Puppet;
use crate::verdicts::{MAC, OTHER_MAC, families, ready, tables};
use crate::workload::open_workload;

/// A program, run with a frame.
type Hook = fn(&Kernel, &[u8]) -> Did;

const DENIED: Did = Did::Dropped(DropReason::PolicyDenied);

/// Has all of a test's packets come on one CPU: each tells by itself.
fn stay_on_one_cpu() {
    let mut one = CpuSet::new();
    one.set(0);
    sched_setaffinity(None, &one).expect("a CPU");
}

/// Drops that were told since, and counts of more like them.
fn drops(kernel: &mut Kernel) -> Vec<Event> {
    let is_drop = |told| match told {
        Told::Event(event) if matches!(event.kind, event_kind::DROP | event_kind::REST) => Some(event),
        Told::Event(_) | Told::Ended(_) => None,
    };
    kernel.told().into_iter().filter_map(is_drop).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_hide_no_connection() {
    let mut kernel = ready().await;
    stay_on_one_cpu();
    for f in families() {
        for (hook, port) in [(Kernel::xdp as Hook, 8_001), (Kernel::ingress as Hook, 8_002)] {
            assert_eq!(hook(&kernel, &ip(MAC, f.agent, f.unnamed, 17, &udp(40_000, port, b"x"))), DENIED);
            assert_eq!(hook(&kernel, &ip(MAC, f.agent, f.unnamed, 6, &tcp(40_000, port, SYN))), DENIED);
        }
        let told: Vec<_> = drops(&mut kernel).iter().map(|e| (e.kind, e.agent, e.flow.protocol)).collect();
        let each = [protocol::UDP, protocol::TCP].map(|number| (event_kind::DROP, 1, number));
        assert_eq!(told, [each, each].concat());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_connection_found_no_listener_is_told() {
    let mut kernel = ready().await;
    for f in families() {
        let frame = ip(MAC, f.agent, f.steered, 6, &tcp(40_000, 443, SYN));
        assert_eq!(kernel.ingress(&frame), Did::Dropped(DropReason::ListenerMissing));
        let told: Vec<_> = drops(&mut kernel).iter().map(|e| (e.agent, e.reason)).collect();
        assert_eq!(told, [(1, DropReason::ListenerMissing.code())]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_again_is_counted_and_told_later() {
    let mut kernel = ready().await;
    stay_on_one_cpu();
    for (f, port) in families().into_iter().zip([8_003, 8_004]) {
        let frame = ip(MAC, f.agent, f.unnamed, 6, &tcp(40_000, port, SYN));
        for _ in 0..5 {
            assert_eq!(kernel.ingress(&frame), DENIED);
        }
        let told: Vec<_> = drops(&mut kernel).iter().map(|e| (e.kind, e.count)).collect();
        assert_eq!(told, [(event_kind::DROP, 1)]);
        // Its interval has to end.
        tokio::time::sleep(Duration::from_nanos(bound::SEEN_INTERVAL_NS + bound::RECENT_NS)).await;
        assert_eq!(kernel.ingress(&frame), DENIED);
        let told = drops(&mut kernel);
        let kinds: Vec<_> = told.iter().map(|e| (e.kind, e.count)).collect();
        assert_eq!(kinds, [(event_kind::REST, 4), (event_kind::DROP, 1)]);
        for event in &told {
            assert_eq!((event.agent, event.reason), (1, DropReason::PolicyDenied.code()), "{event:?}");
            let flow = (event.flow.protocol, u16::from_be(event.flow.destination_port_be));
            assert_eq!(flow, (protocol::TCP, port), "{event:?}");
            assert_eq!(event.flow.ifindex, told[1].flow.ifindex);
            assert_eq!(
                (event.flow.source, event.flow.destination),
                (told[1].flow.source, told[1].flow.destination)
            );
        }
    }
}

/// As many strangers at an agents' interface, each once.
fn strangers(n: u32) -> impl Iterator<Item = Vec<u8>> {
    let f = families()[0];
    (0..n).map(move |n| {
        let [_, _, c, d] = n.to_be_bytes();
        ip(OTHER_MAC, IpAddr::from([10, 10, c, d]), f.unnamed, 6, &tcp(40_000, 443, SYN))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_strangers_hides_no_agent() {
    let mut kernel = ready().await;
    stay_on_one_cpu();
    let f = families()[0];
    let flood = u32::try_from(bound::DROP_EVENTS_MAX).expect("a number") * 2;
    kernel.flood(strangers(flood));
    let told = drops(&mut kernel);
    assert!(told.len() >= bound::DROP_EVENTS_MAX as usize, "{} told", told.len());
    assert!(kernel.count(counter::EVENTS_LOST) > 0, "there is an end to what strangers have told");
    let mut of_agent = Vec::new();
    for port in 0..8 {
        kernel.flood(strangers(flood));
        assert_eq!(kernel.ingress(&ip(MAC, f.agent, f.unnamed, 6, &tcp(40_000, 9_000 + port, SYN))), DENIED);
        of_agent.extend(drops(&mut kernel).into_iter().filter(|e| e.agent == 1));
    }
    // Its share of an interval, whatever of the rest it came to.
    assert!(of_agent.len() >= bound::DROP_EVENTS_SHARE as usize, "{} told", of_agent.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_in_the_ring_is_counted() {
    const FLOWS: u32 = 20_000;
    let mut kernel = ready().await;
    let f = families()[0];
    let port = |n: u32| u16::try_from(1 + n).expect("a port");
    kernel.flood((0..FLOWS).map(|n| ip(MAC, f.agent, f.direct, 17, &udp(port(n), 443, b"x"))));
    let told = kernel.told().len() as u64;
    let lost = kernel.count(counter::EVENTS_LOST);
    assert!(told > 0 && lost > 0, "{told} told, {lost} lost");
    assert_eq!(told + lost, u64::from(FLOWS), "each flow is told or counted");
}

/// While the role stands still, the ring fills; what it lost is in the log once it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_ring_lost_is_a_gap_in_the_log() {
    const PORTS: std::ops::Range<u16> = 10_000..50_000;
    let mut lab = Lab::new();
    lab.start().await;
    let mut wide = crate::upgrade::with_udp();
    wide.ports = vec![(0, 0), (PORTS.start, 1), (PORTS.end, 0)];
    lab.apply(1, wide, crate::network::agents()).await;
    let [f, _] = crate::network::families();
    let role = Pid::from_raw(i32::try_from(lab.pid()).expect("pid"));
    kill(role, Signal::SIGSTOP).expect("stopped");
    lab.inside(Place::Agents, || {
        let client = UdpSocket::bind((f.known, 0)).expect("bind");
        for port in PORTS {
            client.send_to(b"x", (f.direct, port)).expect("sent");
        }
    });
    kill(role, Signal::SIGCONT).expect("goes on");
    let found = records(&lab, Duration::from_secs(60), |r| r.kind == RecordKind::Gap).await;
    let gap =
        found.iter().filter(|r| r.kind == RecordKind::Gap).map(|r| r.count.expect("a count")).sum::<u64>();
    let lost = lab.status().await.counters["events_lost"];
    assert!(lost > 0, "the ring took them all");
    assert_eq!(gap, lost, "what is told and what was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_one_machine_hide_nothing_of_each_other() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[]), agent(2, &[])]).await;
    let workloads = [open_workload(&lab, 1, "one").await, open_workload(&lab, 2, "two").await];
    let mut puppets: Vec<_> = workloads.iter().map(|w| Puppet::new(&lab, &w.path)).collect();
    for puppet in &mut puppets {
        assert_eq!(puppet.tell("__import__('os').sched_setaffinity(0, {0})"), "None");
    }
    for puppet in &mut puppets {
        assert_eq!(puppet.tell("dial('a', '192.0.2.5', 8005)"), "EPERM");
    }
    let is_of = |record: &AuditRecord, name: &str| {
        record.destination.ip == Some(at("192.0.2.5"))
            && record.agent.as_ref().is_some_and(|a| a.agent.as_str() == name)
    };
    let told = records(&lab, Duration::from_secs(20), |r| is_of(r, "a2")).await;
    assert!(told.iter().any(|r| is_of(r, "a1")), "{told:#?}");
    drop(workloads);
}
