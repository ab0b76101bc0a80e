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
#[path = "bench/links.rs"]
mod links;
#[path = "bench/promises.rs"]
mod promises;
#[path = "bench/rates.rs"]
mod rates;
#[path = "bench/report.rs"]
mod report;
#[path = "bench/swaps.rs"]
mod swaps;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use clawgress_e2e::lab::{finish, program};

use crate::links::Links;
use crate::rates::Rate;
use crate::report::Report;

/// What is promised: added median latency without interception.
const ADDED_MAX: Duration = Duration::from_millis(5);
/// Time for either kernel measurement.
const KERNEL_MAX: Duration = Duration::from_secs(300);

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
    /// Requests, handshakes and bytes a second in the lab
    Throughput,
    /// Of these, handshakes
    Handshakes,
    /// Requests in the lab while revisions go live
    Swaps,
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
            Part::Latency => Links::start()?.latency(args.rounds, args.samples)?.markdown()?,
            Part::Throughput => Links::start()?.throughput(&Rate::ALL)?.markdown()?,
            Part::Handshakes => Links::start()?.throughput(&Rate::OF_HANDSHAKES)?.markdown()?,
            Part::Swaps => Links::start()?.swaps()?.markdown()?,
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

    let mut links = Links::start()?;
    let latency = links.latency(args.rounds, args.samples)?;
    let rates = links.throughput(&Rate::ALL)?;
    let swaps = links.swaps()?;
    let worst = latency.worst_added();
    let report = Report { kernel, drops, decisions, latency, rates, swaps };
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

/// What one of the agent's own measurements prints.
fn agent(command: &str) -> anyhow::Result<serde_json::Value> {
    let mut agent = Command::new(program("clawgress-agent")?);
    let output = finish(agent.args([command, "--output", "json"]), KERNEL_MAX)?.check()?;
    serde_json::from_str(&output.stdout).with_context(|| format!("`{command}` printed something else"))
}
