//! One number selects all tables: a packet is judged by one generation, whole, also while the next takes its place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use clawgress_ebpf_common::DropReason;
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables, VerdictCell};

use crate::frames::{ip, udp};
use crate::kernel::{passes, plan};
use crate::lab::Lab;
use crate::network::{self, PORT, WORKS};
use crate::upgrade::{Datagrams, PACE, with_udp};
use crate::verdicts::{MAC, agents, families, ready, tables};

/// Generations that follow each other under test runs, and under packets of a lab.
const SWAPS: u64 = 60;
const LAB_SWAPS: u64 = 30;
/// Packets that differ, of each kind: some have a flow, and most are remembered by nothing.
const PORTS: u16 = 2_000;

/// One of two generations: by each the agent reaches one destination and is refused at the other. Their classes are
/// exchanged between the two, so that any mixture of agents, destinations and verdicts says something else.
fn side(is_odd: bool) -> KernelTables {
    let (agent, reached, refused) = if is_odd { (1, 1, 2) } else { (2, 2, 1) };
    let cell = |agent_class, destination_class| VerdictCell {
        agent_class,
        destination_class,
        transport: Transport::Udp,
        port_class: 1,
        action: if (agent_class, destination_class) == (agent, reached) {
            KernelAction::Direct
        } else {
            KernelAction::Deny(DropReason::PolicyForbidden.code())
        },
        policies: 0,
        limits: 0,
        never_direct: false,
    };
    let net = |text: &str| text.parse().expect("prefix");
    KernelTables {
        agents: BTreeMap::from([(1, agent)]),
        destinations: vec![
            (net("198.51.100.0/24"), reached),
            (net("2001:db8:1::/48"), reached),
            (net("192.0.2.0/24"), refused),
            (net("2001:db8:3::/48"), refused),
        ],
        verdicts: [(1, 1), (1, 2), (2, 1), (2, 2)].map(|(a, d)| cell(a, d)).to_vec(),
        ..tables()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_packet_is_judged_by_two_generations() {
    let mut kernel = ready().await;
    kernel.apply(2, Some(side(false)), agents()).await;
    let (mut tables, objects) = kernel.apart();
    let frames: Vec<_> = families()
        .into_iter()
        .flat_map(|f| [(f, f.direct, true), (f, f.forbidden, false)])
        .flat_map(|(f, to, is_reached)| {
            let frame = move |n| ip(MAC, f.agent, to, 17, &udp(1_024 + n, 443, b"x"));
            (0..PORTS).map(move |n| (frame(n), is_reached))
        })
        .collect();
    let (stop, runs) = (AtomicBool::new(false), AtomicUsize::new(0));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from).max(2);
    std::thread::scope(|scope| {
        for first in 0..cpus {
            let (frames, objects, stop, runs) = (&frames, &objects, &stop, &runs);
            scope.spawn(move || {
                // Each begins elsewhere, and takes a packet of each kind in turn.
                let places = (0..frames.len()).map(|n| (n * 2_003 + first * 997) % frames.len()).cycle();
                for place in places.take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let (frame, is_reached) = &frames[place];
                    assert_eq!(passes(objects, frame), [*is_reached; 2], "XDP and TC: {frame:02x?}");
                    runs.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                for number in 3..3 + SWAPS {
                    let next = plan(number, Some(side(number % 2 == 1)), agents(), &[], &BTreeSet::new());
                    tables.apply(&next).await.expect("apply");
                }
            });
        });
        stop.store(true, Ordering::Relaxed);
    });
    let runs = runs.into_inner();
    println!("{runs} packets, XDP and TC each, on {cpus} threads during {SWAPS} swaps");
    assert!(runs > 10_000, "{runs} packets in {SWAPS} swaps");
}

/// As the usual tables with UDP, or the same by other classes.
fn renamed(is_odd: bool) -> KernelTables {
    let mut tables = with_udp();
    if is_odd {
        tables.agents = BTreeMap::from([(1, 2)]);
        tables.destinations.iter_mut().for_each(|(_, class)| *class = 3 - *class);
        for cell in &mut tables.verdicts {
            (cell.agent_class, cell.destination_class) = (2, 3 - cell.destination_class);
        }
    }
    tables
}

#[tokio::test(flavor = "multi_thread")]
async fn swaps_lose_and_open_nothing_under_traffic() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, renamed(true), network::agents()).await;
    let [f, _] = network::families();
    let good = Datagrams::start(&lab, f.known, f.direct, PORT);
    let denied = Datagrams::start(&lab, f.known, f.forbidden, PORT);
    let anonymous = Datagrams::start(&lab, f.unknown, f.direct, PORT + 1);
    for number in 2..2 + LAB_SWAPS {
        let status = lab.apply(number, renamed(number % 2 == 1), network::agents()).await;
        assert_eq!(status.generation, number);
        let (arrived, until) = (good.arrived(), Instant::now() + WORKS);
        while good.arrived() < arrived + 10 {
            assert!(Instant::now() < until, "generation {number}: nothing arrives");
            tokio::time::sleep(PACE).await;
        }
    }
    let (sent, arrived, answered) = good.finish();
    let lost: Vec<_> = (0..sent).filter(|n| !arrived.contains(n)).collect();
    assert!(sent > 10 * LAB_SWAPS && lost.is_empty(), "of {sent} lost: {lost:?}");
    let lost: Vec<_> = arrived.iter().filter(|n| !answered.contains(n)).collect();
    assert!(lost.is_empty(), "answers lost: {lost:?}");
    for (what, flow) in [("denied", denied), ("anonymous", anonymous)] {
        let (sent, arrived, _) = flow.finish();
        assert!(sent > 100 && arrived.is_empty(), "{what}: {} of {sent} got through", arrived.len());
    }
}
