//! Command line of the agent daemon: parses, starts the role, reports its failure. Holds no behaviour
//! of a role.
#![forbid(unsafe_code)]

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clawgress_agent::{control, datapath, keys, shutdown};
use clawgress_api::config::{self, Config};
use clawgress_api::notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Control reads each record into many small pieces, and lets them go on another thread.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The Clawgress agent daemon.
#[derive(Parser)]
#[command(name = "clawgress-agent", version, about)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Args)]
struct ConfigFile {
    /// Configuration file.
    #[arg(long, env = "CLAWGRESS_CONFIG", default_value = config::PATH, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Role {
    /// Loads the kernel programs, opens the listeners; needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON in `kernel` mode.
    Datapath {
        #[command(flatten)]
        file: ConfigFile,
        /// Remove programs, pinned maps and firewall rules, then exit. Traffic through this node stops.
        #[arg(long)]
        detach: bool,
        /// Shut agents' interfaces by a firewall table, unless there is one already, then exit. For the boot, before the network is up.
        #[arg(long, conflicts_with = "detach")]
        close: bool,
        /// Compare the configuration with the interfaces of this machine, then exit.
        #[arg(long, conflicts_with_all = ["detach", "close"])]
        check: bool,
        /// Load every kernel program without attaching it, tell what the kernel's verifier made of each, then exit. Changes nothing; needs no configuration.
        #[arg(long, conflicts_with_all = ["detach", "close", "check"])]
        check_programs: bool,
    },
    /// State, policy, audit and administration; needs no capability.
    Control {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Holds the secret under which API keys are hashed.
    Keys {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// The three roles in one process, for a laptop or a test.
    All {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Measures the kernel programs by test run.
    #[command(hide = true)]
    BenchKernel {
        /// Output format.
        #[arg(long, value_enum, default_value_t = Output::Json)]
        output: Output,
    },
    /// Measures how fast packets are dropped, beside nftables, in a network namespace of its own.
    #[command(hide = true)]
    BenchDrops {
        /// Output format.
        #[arg(long, value_enum, default_value_t = Output::Json)]
        output: Output,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Json,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("CLAWGRESS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let stderr = std::io::stderr();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr.is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match start(Cli::parse().role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The last line is for whoever reads the journal; it must not depend on the log filter.
            let _ = writeln!(std::io::stderr(), "clawgress-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(role: Role) -> Result<()> {
    match role {
        Role::Datapath { file, detach: true, .. } => datapath::detach(&Config::load(&file.config)?),
        Role::Datapath { file, close: true, .. } => datapath::close(&Config::load(&file.config)?),
        Role::Datapath { file, check: true, .. } => datapath::check(&Config::load(&file.config)?),
        Role::Datapath { check_programs: true, .. } => say(&datapath::check_programs()?),
        Role::Datapath { file, .. } => run(&file, &["datapath"]),
        Role::Control { file } => run(&file, &["control"]),
        Role::Keys { file } => run(&file, &["keys"]),
        Role::All { file } => run(&file, &["keys", "datapath", "control"]),
        Role::BenchKernel { output: Output::Json } => {
            say(&serde_json::to_string(&datapath::bench_kernel()?)?)
        }
        Role::BenchDrops { output: Output::Json } => say(&serde_json::to_string(&datapath::bench_drops()?)?),
    }
}

fn say(report: &impl std::fmt::Display) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{report}").context("cannot write the report")
}

/// Runs roles until a signal comes or one of them ends; the end of one is the end of all.
fn run(file: &ConfigFile, roles: &[&'static str]) -> Result<()> {
    let config = Arc::new(Config::load(&file.config)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    notify::expect(roles.len());
    runtime.block_on(async {
        let stop = CancellationToken::new();
        shutdown::on_signal(stop.clone())?;
        let mut tasks = JoinSet::new();
        for role in roles.iter().copied() {
            let (config, stop) = (Arc::clone(&config), stop.clone());
            tasks.spawn(async move {
                let end = match role {
                    "datapath" => datapath::run(config, stop.clone()).await,
                    "control" => control::run(config, stop.clone()).await,
                    _ => keys::run(config, stop.clone()).await,
                };
                if end.is_ok() && !stop.is_cancelled() {
                    bail!("the {role} role ended by itself");
                }
                end.with_context(|| format!("the {role} role failed"))
            });
        }
        let mut first_failure = Ok(());
        while let Some(end) = tasks.join_next().await {
            let end = end.unwrap_or_else(|e| Err(anyhow::anyhow!("a role panicked: {e}")));
            stop.cancel();
            first_failure = first_failure.and(end);
        }
        notify::stopping();
        first_failure
    })
}
