//! Packets a second of processor time that `claw_xdp` drops, beside nftables with the same prefixes: at `netdev` ingress, its
//! fastest place, and at `inet` prerouting, where rules usually are. One generator, three virtual cables in
//! a network namespace of this thread alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{Xdp, XdpMode};
use clawgress_ebpf_common::{DropReason, map};
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables, VerdictCell};
use ipnet::{IpNet, Ipv4Net};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use super::super::events::Counters;
use super::super::lease;
use super::super::object::{self, Objects, program};
use super::super::tables::{Plan, Tables};
use super::generator::{Generator, pass};
use super::{AGENT, MAC, frame, generation};

/// Sizes of the sets.
const PREFIXES: [u32; 3] = [1, 1_000, 100_000];
/// Alternating runs, how much processor time each has at least, and frames sent between two looks at it.
const ROUNDS: usize = 7;
const RUN: Duration = Duration::from_millis(80);
const FRAMES: u32 = 4_096;
/// Every second /24 from here on is in the set, so that neighbours can't be merged.
const FIRST: u32 = 0x1000_0000;
const STEP: u32 = 512;
/// MAC of the receiving ends.
const RECEIVER: &str = "02:00:00:00:00:09";

/// Who drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Clawgress,
    Netdev,
    Prerouting,
}

impl Way {
    const ALL: [Way; 3] = [Way::Clawgress, Way::Netdev, Way::Prerouting];

    fn name(self) -> &'static str {
        match self {
            Way::Clawgress => "clawgress",
            Way::Netdev => "netdev",
            Way::Prerouting => "prerouting",
        }
    }

    /// The sending end of its cable; the receiving one has an `r` in front.
    fn cable(self) -> &'static str {
        match self {
            Way::Clawgress => "claw",
            Way::Netdev => "nft0",
            Way::Prerouting => "nft1",
        }
    }

    fn index(self) -> Result<u32> {
        Ok(if_nametoindex(self.cable())?)
    }

    fn receiver(self) -> Result<u32> {
        Ok(if_nametoindex(format!("r{}", self.cable()).as_str())?)
    }
}

/// Measures all sizes. Needs root, `ip` and `nft`.
///
/// # Errors
/// If something can't be set up, or drops less than it is sent for other reasons than its speed.
pub fn bench_drops() -> Result<Value> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace (is this root?)")?;
    for way in Way::ALL {
        let cable = way.cable();
        let make = format!(
            "link add {cable} type veth peer name r{cable} address {RECEIVER}\n\
             link set {cable} up\nlink set r{cable} up\n"
        );
        feed(Command::new("ip").args(["-batch", "-"]), &make)?;
    }
    // Work in this thread, which is the one in the namespace.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut sizes = Vec::new();
    for count in PREFIXES {
        let bench = runtime.block_on(Bench::new(count))?;
        for spread in [false, true] {
            sizes.push(bench.measure(spread)?);
        }
    }
    Ok(json!({ "rounds": ROUNDS, "sizes": sizes }))
}

/// One size of the sets, loaded everywhere.
struct Bench {
    count: u32,
    counters: Counters,
    /// Holds the programs and their links.
    _ebpf: Objects,
    /// The links of the others' receiving ends.
    _passed: [OwnedFd; 2],
}

impl Bench {
    async fn new(count: u32) -> Result<Bench> {
        let networks = (0..count).map(|n| Ipv4Net::new(Ipv4Addr::from(FIRST + n * STEP), 24));
        let networks: Vec<Ipv4Net> = networks.collect::<Result<_, _>>()?;
        feed(Command::new("nft").args(["-f", "-"]), &rules(&networks)?)?;
        let mut objects = object::load(None)?;
        lease::hold(&objects, u64::MAX)?;
        let mut tables = Tables::take(&mut objects)?;
        let mut document = generation()?;
        document.tables = Some(blocked(&networks));
        let interfaces = BTreeMap::from([("lo".to_owned(), Way::Clawgress.receiver()?)]);
        tables.apply(&Plan::new(&document, &interfaces)?).await?;
        let counters = Counters::new(object::take(&mut objects, map::COUNTERS)?);
        let xdp: &mut Xdp = objects.program_mut(program::XDP).context("no XDP program")?.try_into()?;
        xdp.attach_to_if_index(Way::Clawgress.receiver()?, XdpMode::Driver)?;
        let passed = [pass(Way::Netdev.receiver()?)?, pass(Way::Prerouting.receiver()?)?];
        Ok(Bench { count, counters, _ebpf: objects, _passed: passed })
    }

    /// Packets to one destination, or `spread` over the whole set.
    fn measure(&self, spread: bool) -> Result<Value> {
        let mask = if spread { spread_mask(self.count) } else { 0 };
        let mut rates: BTreeMap<Way, Vec<f64>> = BTreeMap::new();
        let mut before = Vec::new();
        for way in Way::ALL {
            before.push((way, self.dropped(way)?, received(way)?));
        }
        // The first round warms caches, and is not counted.
        for round in 0..=ROUNDS {
            for way in Way::ALL {
                let rate = run(way, mask)?;
                if round > 0 {
                    rates.entry(way).or_default().push(rate);
                }
            }
        }
        for (way, dropped, came) in before {
            let (dropped, came) = (self.dropped(way)? - dropped, received(way)? - came);
            ensure!(dropped * 100 >= came * 99, "only {dropped} of {came} frames met {}'s rule", way.name());
        }
        let of = |way: Way| rates.get(&way).map_or(&[][..], Vec::as_slice);
        let mut result = serde_json::Map::new();
        result.insert("prefixes".to_owned(), json!(self.count));
        result.insert("spread".to_owned(), json!(spread));
        for way in Way::ALL {
            result.insert(way.name().to_owned(), json!(of(way)));
        }
        Ok(Value::Object(result))
    }

    /// Packets that were dropped for the set's sake, so far.
    fn dropped(&self, way: Way) -> Result<u64> {
        let family = match way {
            Way::Clawgress => return self.counters.sum(u32::from(DropReason::PolicyForbidden.code())),
            Way::Netdev => "netdev",
            Way::Prerouting => "inet",
        };
        let output =
            Command::new("nft").args(["-j", "list", "counter", family, "bench", "dropped"]).output()?;
        let parsed: Value = serde_json::from_slice(&output.stdout).context("`nft` printed something else")?;
        let objects = parsed.pointer("/nftables").and_then(Value::as_array);
        let counter = objects.into_iter().flatten().find_map(|o| o.pointer("/counter/packets"));
        counter.and_then(Value::as_u64).context("the counter is gone")
    }
}

/// Packets that the receiving end of `way` is done with, a second of this thread's processor time: the kernel
/// receives where it sent, and what else the machine does then counts for nobody.
fn run(way: Way, mask: u32) -> Result<f64> {
    let mut bytes = frame(MAC, AGENT, Ipv4Addr::from(FIRST), 17);
    bytes.splice(..6, [2, 0, 0, 0, 0, 9]);
    let generator = Generator::new(way.index()?, bytes, Ipv4Addr::from(FIRST | 7), mask)?;
    let (before, begun) = (received(way)?, processor_time()?);
    loop {
        generator.send(FRAMES)?;
        let time = processor_time()?.saturating_sub(begun);
        if time >= RUN {
            return Ok((received(way)? - before) as f64 / time.as_secs_f64());
        }
    }
}

/// How long this thread has run (`schedstat`, Documentation/scheduler/sched-stats.rst).
fn processor_time() -> Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let ns = text.split_whitespace().next().context("no time in `schedstat`")?.parse()?;
    Ok(Duration::from_nanos(ns))
}

/// Packets that came to the receiving end, as its driver counts them: dropped there by XDP, or handed on.
fn received(way: Way) -> Result<u64> {
    let interfaces = fs::read_to_string("/proc/thread-self/net/dev")?;
    let name = format!("r{}:", way.cable());
    let line = interfaces.lines().find_map(|l| l.trim_start().strip_prefix(&name));
    let packets = line.and_then(|l| l.split_whitespace().nth(1)).context("the interface is gone")?;
    Ok(packets.parse()?)
}

/// Bits of destinations that are all within the first 2^n of `count` prefixes.
fn spread_mask(count: u32) -> u32 {
    let prefixes = 1u32 << count.ilog2();
    ((prefixes - 1) * STEP) | 0xFF
}

/// The one agent is forbidden the networks, as by a `forbid` on a set.
fn blocked(networks: &[Ipv4Net]) -> KernelTables {
    KernelTables {
        agents: BTreeMap::from([(1, 1)]),
        destinations: networks.iter().map(|n| (IpNet::V4(*n), 1)).collect(),
        ports: vec![(0, 1)],
        verdicts: vec![VerdictCell {
            agent_class: 1,
            destination_class: 1,
            transport: Transport::Udp,
            port_class: 1,
            action: KernelAction::Deny(DropReason::PolicyForbidden.code()),
            policies: 0,
            limits: 0,
            never_direct: false,
        }],
        policies: vec![Vec::new()],
        limiters: Vec::new(),
        limits: Vec::new(),
    }
}

/// The same networks for nftables, in place of the former ones.
fn rules(networks: &[Ipv4Net]) -> Result<String> {
    let elements: Vec<String> = networks.iter().map(ToString::to_string).collect();
    let elements = elements.join(", ");
    let (netdev, inet) = (format!("r{}", Way::Netdev.cable()), format!("r{}", Way::Prerouting.cable()));
    let mut text = String::new();
    for (family, hook, filter) in [
        ("netdev", format!("ingress device \"{netdev}\" priority 0"), String::new()),
        ("inet", "prerouting priority raw".to_owned(), format!("iifname \"{inet}\" ")),
    ] {
        writeln!(
            text,
            "table {family} bench {{ }}\ndelete table {family} bench\ntable {family} bench {{\n\
             counter dropped {{ }}\nset blocked {{ type ipv4_addr; flags interval; elements = {{ {elements} }} }}\n\
             chain drops {{ type filter hook {hook}; policy accept;\n\
             {filter}ip daddr @blocked counter name dropped drop\n}}\n}}"
        )?;
    }
    Ok(text)
}

fn feed(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", error.trim().chars().take(500).collect::<String>());
    Ok(())
}
