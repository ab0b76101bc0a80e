//! `cargo xtask`: what a person or CI types. Owns the order of things (set up, build, run); what runs
//! in the lab lives in `clawgress-e2e`, so that this crate compiles in seconds on a fresh machine.
//! Must never be needed at run time by an installed Clawgress.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command line speaks to a person")]

mod cache;
mod fetched;
mod setup;
mod shell;
mod task;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::setup::Scope;

/// Set-up, build, demo, lab, test and bench of Clawgress.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing to build, test and demonstrate; says what it does; safe to repeat
    Setup,
    /// Build every program (calls `setup` for what that needs)
    Build {
        /// With optimisations
        #[arg(long)]
        release: bool,
    },
    /// Format, lints, unit, property, documentation and end-to-end tests
    Test,
    /// Bring a small internet up, govern real clients in it, and show the audit records
    Demo {
        /// Leave everything running afterwards
        #[arg(long)]
        keep: bool,
    },
    /// Run the gateway on this machine as an explicit proxy, or for an interface's subnet
    Up {
        /// Govern the agents behind this interface too (as root)
        #[arg(long, value_name = "IFACE")]
        transparent: Option<String>,
        /// Govern commands of this machine: what `clawgressctl run` starts (as root)
        #[arg(long, conflicts_with = "transparent")]
        local: bool,
        /// Where state is kept [default: ~/.local/share/clawgress]
        #[arg(long, value_name = "DIR")]
        dir: Option<std::path::PathBuf>,
        /// Further options of `clawgress-up`
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// The lab by hand: `up`, `down`, `shell HOST`
    Lab {
        /// What to do
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Measure both planes; writes docs/benchmarks.md
    Bench {
        /// Options of `clawgress-bench`
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Compare the kernel programs with policy on random packets (as root); a failure prints its seed
    FuzzDatapath {
        /// For how long
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// The seed of a run to repeat
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Compare decisions by lowered policies with Cedar's authorizer on random policies and requests; a failure prints its seed
    FuzzPolicy {
        /// How long
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// The seed of a run to repeat
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Measure detectors on public corpora of attacks and on ordinary texts; writes docs/detection.md
    Detection {
        /// List what is missed, or found by mistake, in this source of the tuning split instead
        #[arg(long)]
        source: Option<String>,
    },
    /// Make the table of models' prices anew, of the package that is pinned in xtask/prices
    Prices,
    /// Fuzz one parser
    Fuzz {
        /// The fuzz target
        target: String,
        /// For how long
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nxtask: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Setup => setup::run(Scope::All),
        Task::Build { release } => task::build(release),
        Task::Test => task::test(),
        Task::Demo { keep } => task::demo(keep),
        Task::Up { transparent, local, dir, rest } => task::up(transparent, local, dir, rest),
        Task::Lab { command } => task::lab(&command),
        Task::Bench { rest } => task::bench(&rest),
        Task::FuzzDatapath { minutes, seed } => task::fuzz_datapath(minutes, seed),
        Task::FuzzPolicy { minutes, seed } => task::fuzz_policy(minutes, seed),
        Task::Detection { source } => fetched::detection(source.as_deref()),
        Task::Prices => fetched::prices(),
        Task::Fuzz { target, seconds } => task::fuzz(&target, seconds),
    }
}
