//! `clawgress-l7`: reads the configuration, gives up the right to ever gain privileges, and serves.
#![forbid(unsafe_code)]

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use clawgress_api::config::{self, Config};
use rustix::thread::{CapabilitySet, CapabilitySets};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Many small, short-lived allocations from many tasks: the system's allocator fragments under it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The Clawgress L7 proxy.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Configuration file
    #[arg(long, env = "CLAWGRESS_CONFIG", default_value = config::PATH, value_name = "FILE")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    clawgress_l7::log::of_environment(std::io::stderr().is_terminal(), std::io::stderr).init();
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The last line is for whoever reads the journal; it must not depend on the log filter.
            let _ = writeln!(std::io::stderr(), "clawgress-l7: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    give_up_privileges()?;
    clawgress_api::notify::expect(1);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.l7.threads {
        runtime.worker_threads(threads.max(1));
    }
    let runtime = runtime.enable_all().build().context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        clawgress_l7::run(config, stop).await
    });
    runtime.shutdown_background();
    result
}

/// Gives up every capability, and the way to any: whoever started this, even root, what it reads from
/// strangers is read without privileges. Must come before any other thread exists: it holds for this
/// thread and those it starts.
fn give_up_privileges() -> anyhow::Result<()> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_no_new_privs(true).context("cannot set no_new_privs")?;
    let CapabilitySets { effective, permitted, inheritable } =
        rustix::thread::capabilities(None).context("cannot read capabilities")?;
    if (effective | permitted | inheritable).is_empty() {
        // Whoever started it had none to give; its sandbox need not let it ask.
        return Ok(());
    }
    rustix::thread::set_capabilities(None, none).context("cannot give up capabilities")
}
