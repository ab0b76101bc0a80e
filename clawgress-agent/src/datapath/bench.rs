//! Cost of the programs by test run: ns a packet, without any network. Maps are not pinned and the
//! machine's own traffic is not touched.

mod drops;
pub mod generator;
mod prefixes;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use aya::programs::{Program, SchedClassifier, Xdp};
use aya::{TestRun as _, TestRunOptions};
use clawgress_api::KernelGeneration;
use clawgress_identity::{Agent, AgentState, Source};
use clawgress_policy::Transport;
use clawgress_policy::kernel::{
    KernelAction, KernelTables, LimitAction, LimitSubject, LimitUnit, Limiter, VerdictCell,
};
use serde_json::{Value, json};

use super::bpf;
use super::epoch::Turn;
use super::lease;
use super::object::{self, Objects, program};
use super::tables::{Plan, Tables};

pub use self::drops::bench_drops;

/// Runs, and packets in each: 20 ms or so a run, so that one interruption stands out as a maximum.
const RUNS: usize = 11;
const PACKETS: u32 = 200_000;
/// Packets in a run that sends events: the ring holds several thousand.
const PACKETS_WITH_EVENTS: u32 = 2_000;
/// Limiters that a packet is held to, of those measured: one, and the most there can be.
const LIMITERS: [(&str, u64); 2] = [("tc_direct_limit_1", 1), ("tc_direct_limit_4", 4)];
/// Packets a second that each lets pass, and at once: more than a run sends, so that all of them pass.
const LIMIT: u64 = 100_000_000;

/// `lo`: what a test run gives as the interface a packet came in by.
const LOOPBACK: u32 = 1;
const AGENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const DIRECT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const STEERED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const DENIED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Measures the programs on this machine. Needs root.
///
/// # Errors
/// If the programs can't be loaded or run.
pub fn bench_kernel() -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut figures = runtime.block_on(async {
        let mut objects = object::load(None)?;
        lease::hold(&objects, u64::MAX)?;
        let mut tables = Tables::take(&mut objects)?;
        let interfaces = BTreeMap::from([("lo".to_owned(), LOOPBACK)]);
        tables.apply(&Plan::new(&generation()?, &interfaces)?).await?;
        let mut figures = tokio::task::block_in_place(|| measure(&objects))?;
        for (number, (name, limiters)) in (2..).zip(LIMITERS) {
            tables.apply(&Plan::new(&limited(number, limiters)?, &interfaces)?).await?;
            let figure = tokio::task::block_in_place(|| {
                case(&objects, program::TC_IN, &frame(MAC, AGENT, DIRECT, UDP), PACKETS)
            })?;
            figures.insert(name.to_owned(), figure);
        }
        Ok::<_, anyhow::Error>(json!({ "runs": RUNS, "packets_per_run": PACKETS, "ns_per_packet": figures }))
    })?;
    drop(runtime);
    if let Value::Object(figures) = &mut figures {
        figures.insert("prefixes".to_owned(), prefixes::measure()?);
    }
    Ok(figures)
}

fn measure(objects: &Objects) -> Result<serde_json::Map<String, Value>> {
    let frame = |destination, protocol| frame(MAC, AGENT, destination, protocol);
    let cases = [
        ("xdp_pass", program::XDP, frame(DIRECT, UDP), PACKETS),
        ("xdp_drop", program::XDP, frame(DENIED, UDP), PACKETS),
        ("tc_direct", program::TC_IN, frame(DIRECT, UDP), PACKETS),
        ("tc_drop", program::TC_IN, frame(DENIED, UDP), PACKETS),
        // Without a listener the packet is dropped after flow, verdict and both socket lookups.
        ("tc_steer", program::TC_IN, frame(STEERED, TCP), PACKETS_WITH_EVENTS),
    ];
    let mut results = serde_json::Map::new();
    for (name, is_xdp) in [("xdp_nothing", true), ("tc_nothing", false)] {
        let (program, frame) = (generator::nothing(is_xdp)?, frame(DIRECT, UDP));
        let figures = repeated(|| Ok(bpf::test_run_times(&program, &frame, PACKETS)?))?;
        results.insert(name.to_owned(), figures);
    }
    // Each judged in full first, and then as what comes again is.
    Turn::of(objects)?.forget()?;
    for (name, frame) in [("xdp_pass_anew", frame(DIRECT, UDP)), ("xdp_drop_anew", frame(DENIED, UDP))] {
        results.insert(name.to_owned(), case(objects, program::XDP, &frame, PACKETS)?);
    }
    Turn::of(objects)?;
    for (name, program, frame, packets) in cases {
        results.insert(name.to_owned(), case(objects, program, &frame, packets)?);
    }
    Ok(results)
}

fn case(objects: &Objects, program: &str, frame: &[u8], packets: u32) -> Result<Value> {
    repeated(|| run(objects, program, frame, packets))
}

/// The figures of several runs, each of which gives its last verdict and the ns of a packet.
fn repeated(mut run: impl FnMut() -> Result<(u32, u64)>) -> Result<Value> {
    let mut ns = Vec::with_capacity(RUNS);
    let mut verdict = 0;
    for _ in 0..RUNS {
        let (code, each_ns) = run()?;
        verdict = code;
        ns.push(each_ns);
    }
    ns.sort_unstable();
    let at = |n: usize| ns.get(n).copied().unwrap_or(0);
    Ok(json!({ "verdict": verdict, "ns_min": at(0), "ns_median": at(RUNS / 2), "ns_max": at(RUNS - 1) }))
}

fn run(objects: &Objects, name: &str, frame: &[u8], packets: u32) -> Result<(u32, u64)> {
    let mut out = vec![0; 256];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        repeat: packets,
        ..TestRunOptions::default()
    };
    let result = match objects.program(name).context("the object lacks a program")? {
        Program::Xdp(p) => Xdp::test_run(p, options)?,
        Program::SchedClassifier(p) => SchedClassifier::test_run(p, options)?,
        _ => anyhow::bail!("program `{name}` cannot be test-run"),
    };
    Ok((result.return_value, u64::try_from(result.duration.as_nanos()).unwrap_or(u64::MAX)))
}

/// One agent; `direct` to one network, steered to another.
fn generation() -> Result<KernelGeneration<KernelTables>> {
    let source: Source = format!("lo={AGENT},02:00:00:00:00:01").parse()?;
    let agent = Agent {
        id: "bench".parse()?,
        index: 1,
        team: None,
        project: None,
        environment: None,
        labels: BTreeMap::new(),
        state: AgentState::Active,
        sources: vec![source],
    };
    let cell = |destination_class, transport, action| VerdictCell {
        agent_class: 1,
        destination_class,
        transport,
        port_class: 1,
        action,
        policies: 0,
        limits: 0,
        never_direct: false,
    };
    let tables = KernelTables {
        agents: BTreeMap::from([(1, 1)]),
        destinations: vec![("198.51.100.0/24".parse()?, 1), ("203.0.113.0/24".parse()?, 2)],
        ports: vec![(0, 0), (443, 1), (444, 0)],
        verdicts: vec![
            cell(1, Transport::Udp, KernelAction::Direct),
            cell(2, Transport::Tcp, KernelAction::Steer),
        ],
        policies: vec![Vec::new()],
        limiters: Vec::new(),
        limits: Vec::new(),
    };
    Ok(KernelGeneration {
        generation: 1,
        tables: Some(tables),
        agents: vec![agent],
        shared: Vec::new(),
        revisions: BTreeMap::new(),
        turns_at: None,
    })
}

/// The same, but what is permitted is held to so many limiters of packets.
fn limited(number: u64, limiters: u64) -> Result<KernelGeneration<KernelTables>> {
    let mut document = KernelGeneration { generation: number, ..generation()? };
    let tables = document.tables.as_mut().context("the bench has tables")?;
    let limiter = |key: u64| Limiter {
        policy: format!("bench-{key}"),
        // Full buckets for each number of limiters.
        key: number << 32 | key,
        unit: LimitUnit::Packets,
        count: LIMIT,
        period_s: 1,
        burst: LIMIT,
        group: None,
        subject: LimitSubject::Agent,
        over: LimitAction::Drop,
    };
    tables.limiters = (0..limiters).map(limiter).collect();
    tables.limits = vec![Vec::new(), (0..u32::try_from(limiters)?).collect()];
    tables.verdicts.iter_mut().for_each(|cell| cell.limits = 1);
    Ok(document)
}

/// A minimal frame to port 443; TCP is a SYN.
fn frame(mac: [u8; 6], source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) -> Vec<u8> {
    let length: u16 = if protocol == TCP { 40 } else { 28 };
    let mut frame = vec![2, 0, 0, 0, 0, 9];
    frame.extend(mac);
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(40_000u16.to_be_bytes());
    frame.extend(443u16.to_be_bytes());
    if protocol == TCP {
        frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xFF, 0xFF, 0, 0, 0, 0]);
    } else {
        frame.extend([0, 8, 0, 0]);
    }
    frame.resize(64, 0);
    frame
}
