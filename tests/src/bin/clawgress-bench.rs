//! `cargo xtask bench`: what Clawgress adds. Identity and policy by themselves; kernel programs by test run; connections and requests in
//! the lab, against the same path without a gateway and against a bare Pingora, in interleaved rounds of
//! one run. Writes `docs/benchmarks.md`; fails if more latency is added than promised.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command line speaks to a person")]

#[path = "bench/client.rs"]
mod client;
#[path = "bench/decisions.rs"]
mod decisions;
#[path = "bench/latency.rs"]
mod latency;
#[path = "bench/report.rs"]
mod report;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use clawgress_e2e::lab::{Daemon, Forbidden, GatewayOptions, Host, Lab, finish, program};
use clawgress_e2e::plan::{API, GATEWAY, PROXY_PORT, addresses};
use clawgress_e2e::scenario::{ASSISTANT, Site};

use crate::client::{Probe, Target, Way};
use crate::latency::{Latency, Measured};
use crate::report::Report;

/// What the README promises: added median latency without interception.
const ADDED_MAX: Duration = Duration::from_millis(5);
/// Time for either kernel measurement.
const KERNEL_MAX: Duration = Duration::from_secs(300);
/// Where the bare Pingora listens: HTTP, then TCP.
const BARE: (u16, u16) = (8081, 8444);

#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench --", version)]
struct Args {
    /// Interleaved rounds
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Samples of each kind in a round
    #[arg(long, default_value_t = 100)]
    samples: usize,
    /// Only this part: it is printed, and no file is written
    #[arg(long, value_name = "PART")]
    part: Option<Part>,
    /// The file to write
    #[arg(long, default_value = "docs/benchmarks.md", value_name = "FILE")]
    report: PathBuf,
}

/// What can be measured by itself.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Part {
    /// Identity and policy
    Decisions,
    /// Connections and requests in the lab
    Latency,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nbench: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.rounds >= 3 && args.samples >= 10, "fewer than 3 rounds of 10 samples tell nothing");
    if cfg!(debug_assertions) {
        println!("bench: this is a debug build; `cargo xtask bench` makes the right one");
    }
    if let Some(part) = args.part {
        let text = match part {
            Part::Decisions => decisions::measure().markdown().join("\n"),
            Part::Latency => latency(args)?.markdown()?,
        };
        println!("{}\n\n{text}", report::machine()?);
        return Ok(());
    }
    println!("bench: identity and policy");
    let decisions = decisions::measure();
    println!("bench: kernel programs by test run");
    let kernel = agent("bench-kernel")?;
    println!("bench: packets dropped a second, beside nftables");
    let drops = agent("bench-drops")?;

    let latency = latency(args)?;
    let worst = latency.worst_added();
    let report = Report { kernel, drops, decisions, latency };
    let text = report.markdown()?;
    std::fs::write(&args.report, &text)
        .with_context(|| format!("cannot write `{}`", args.report.display()))?;
    println!("\n{text}\nbench: written to {}", args.report.display());
    if worst > ADDED_MAX {
        bail!("added median latency is {worst:?}, more than the promised {ADDED_MAX:?}");
    }
    println!("bench: added median latency is {worst:?} at most; promised are {ADDED_MAX:?}");
    Ok(())
}

/// Over the lab's links.
fn latency(args: &Args) -> anyhow::Result<Latency> {
    println!("bench: two labs, one with a gateway, one that routes and has a bare Pingora");
    let site = Site::start(Lab::builder().start()?, GatewayOptions::default())?;
    let plain = Lab::builder().routed().start()?;
    let upstream = *addresses(API).first().context("no address")?;
    let _bare = bare_pingora(&plain, upstream)?;
    let mut measured = Vec::new();
    for probe in Probe::ALL {
        measured.push(measure(args, probe, &site, &plain, upstream)?);
    }
    let forbidden = site.gateway.lab.forbidden()?;
    ensure!(forbidden == Forbidden::default(), "something reached FORBIDDEN: {forbidden:?}");
    Ok(Latency { rounds: args.rounds, samples: args.samples, measured })
}

/// What one of the agent's own measurements prints.
fn agent(command: &str) -> anyhow::Result<serde_json::Value> {
    let mut agent = Command::new(program("clawgress-agent")?);
    let output = finish(agent.args([command, "--output", "json"]), KERNEL_MAX)?.check()?;
    serde_json::from_str(&output.stdout).with_context(|| format!("`{command}` printed something else"))
}

/// Interleaves the ways, each round in another order, so that whatever the machine does meanwhile
/// happens to all of them.
fn measure(
    args: &Args,
    probe: Probe,
    site: &Site,
    plain: &Lab,
    upstream: IpAddr,
) -> anyhow::Result<Measured> {
    println!("bench: {}, {} rounds", probe.name(), args.rounds);
    let credential = client::basic(ASSISTANT, &site.assistant_key);
    let port = if probe == Probe::Handshake { 443 } else { 80 };
    let bare_port = if probe == Probe::Handshake { BARE.1 } else { BARE.0 };
    let proxy = SocketAddr::new(GATEWAY.v4.into(), PROXY_PORT);
    let ways = [
        (Way::Direct, plain, Host::Known, Target::plain(SocketAddr::new(upstream, port))),
        (Way::Bare, plain, Host::Known, Target::plain(SocketAddr::new(GATEWAY.v4.into(), bare_port))),
        (Way::Transparent, &site.gateway.lab, Host::Known, Target::plain(SocketAddr::new(upstream, port))),
        (Way::Explicit, &site.gateway.lab, Host::Anon, Target::through(proxy, credential)),
    ];
    let mut measured = Measured::new(probe);
    // The first round warms caches and pools, and is not counted.
    for round in 0..=args.rounds {
        for n in 0..ways.len() {
            let Some((way, lab, host, target)) = ways.get((n + round) % ways.len()) else { continue };
            let (target, ca, samples) = (target.clone(), lab.ca(), args.samples);
            let times = lab.within(*host, move || client::run(probe, &target, &ca, samples))?;
            let times = times.with_context(|| format!("{}, {}", probe.name(), way.name()))?;
            if round > 0 {
                measured.add(*way, times)?;
            }
        }
    }
    Ok(measured)
}

fn bare_pingora(lab: &Lab, upstream: IpAddr) -> anyhow::Result<Daemon> {
    let own = program("clawgress-agent")?;
    let example = own.parent().context("no directory")?.join("examples/bare_pingora");
    ensure!(example.is_file(), "`bare_pingora` has not been built; run `cargo xtask bench`");
    let gateway = GATEWAY.v4;
    let words = [
        example.to_string_lossy().into_owned(),
        format!("{gateway}:{}", BARE.0),
        format!("{upstream}:80"),
        format!("{gateway}:{}", BARE.1),
        format!("{upstream}:443"),
    ];
    let mut daemon = lab.spawn(Host::Gateway, "bare-pingora", &words)?;
    lab.wait("the bare Pingora", Duration::from_secs(10), || {
        daemon.running()?;
        let connect = move || {
            let to = SocketAddr::new(gateway.into(), BARE.1);
            std::net::TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok()
        };
        lab.within(Host::Known, connect)
    })?;
    Ok(daemon)
}
