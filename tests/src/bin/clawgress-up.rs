//! `cargo xtask up`: the gateway on this machine, for real use. Without privileges it is an explicit
//! proxy in two processes; with `--local`, as root, it also governs commands of this machine, and with `--transparent IFACE` the subnet behind that
//! interface, each role a process of its own.
//!
//! Owns one directory, and takes nothing but what it started away again. Must never change a file the
//! user may have edited.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command line speaks to a person")]

#[path = "up/layout.rs"]
mod layout;
#[path = "up/process.rs"]
mod process;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use clawgress_api::Status;
use tokio::signal::unix::{SignalKind, signal};

use crate::layout::{Governs, Layout};
use crate::process::Processes;

/// Time for all processes to serve.
const READY_MAX: Duration = Duration::from_secs(60);
/// How often the processes are looked at.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Parser)]
#[command(name = "cargo xtask up", bin_name = "cargo xtask up", version)]
struct Args {
    /// Govern the agents behind this interface too (as root)
    #[arg(long, value_name = "IFACE")]
    transparent: Option<String>,
    /// Govern commands of this machine: what `clawgressctl run` starts (as root)
    #[arg(long, conflicts_with = "transparent")]
    local: bool,
    /// Where everything is kept [default: ~/.local/share/clawgress, or /var/lib/clawgress-up for root]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where the proxy listens, without --transparent
    #[arg(long, default_value = "127.0.0.1:3128", value_name = "ADDRESS")]
    listen: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("up: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let governs = match &args.transparent {
        Some(interface) => Governs::Behind(interface.clone()),
        None if args.local => Governs::Local,
        None => Governs::Nothing,
    };
    let layout = Layout::prepare(args.dir.clone(), governs, args.listen)?;
    let mut processes = Processes::start(&layout)?;
    let served = tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        ended = serve(&layout, &mut processes) => ended,
    };
    if served.is_ok() {
        println!("\nup: draining; Ctrl-C again ends it at once");
    }
    tokio::select! {
        drained = processes.stop() => drained.and(served),
        // Dropping the processes kills them.
        _ = interrupt.recv() => served,
    }
}

/// Ends only if something goes wrong.
async fn serve(layout: &Layout, processes: &mut Processes) -> anyhow::Result<()> {
    let admin = layout.admin();
    let mut trouble = None;
    let begun = tokio::time::Instant::now();
    loop {
        processes.running()?;
        match admin.status() {
            Ok(status) if status.datapath.is_some() && !status.l7.is_empty() => break,
            Ok(_) => {}
            Err(error) => trouble = Some(error),
        }
        if begun.elapsed() > READY_MAX {
            bail!(
                "the gateway is not ready within {READY_MAX:?}: {trouble:?}; see {}",
                layout.logs().display()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
    let key = first_agent(layout)?;
    // Control may reach a role some seconds after that has come.
    while let Err(error) = admin.agreed() {
        processes.running()?;
        ensure!(begun.elapsed() <= READY_MAX, "the planes are not ready within {READY_MAX:?}: {error:#}");
        tokio::time::sleep(LOOK).await;
    }
    if admin.status()?.revision == 0 {
        let applied = admin.apply(&layout.policy(), &layout.sets(), "starter policy")?;
        applied.check().context("the starter policy was refused")?;
    }
    explain(layout, &admin.agreed().or_else(|_| admin.status())?, key.as_deref());
    loop {
        processes.running()?;
        tokio::time::sleep(LOOK).await;
    }
}

/// The key of the first agent: made now, or kept from when it was.
fn first_agent(layout: &Layout) -> anyhow::Result<Option<String>> {
    let admin = layout.admin();
    if let Some(key) = layout.kept_key()? {
        return Ok(Some(key));
    }
    if !admin.agents()?.is_empty() {
        return Ok(None);
    }
    let key = admin.create_agent(layout::AGENT, layout::TEAM, &[])?;
    layout.keep_key(&key)?;
    Ok(Some(key))
}

fn explain(layout: &Layout, status: &Status, key: Option<&str>) {
    let admin = layout.admin();
    let (config, socket) = (admin.config.display(), admin.socket.display());
    let ctl = format!("CLAWGRESS_CONFIG={config} {} --socket {socket}", admin.program.display());
    println!("\nclawgress is up; generation {}, policy revision {}", status.generation, status.revision);
    for warning in &status.warnings {
        println!("  warning: {warning}");
    }
    let address =
        status.proxies.first().map_or_else(|| "the proxy's address".to_owned(), ToString::to_string);
    match key {
        Some(key) => {
            println!("\nin the shell of an agent (this is `{}`):", layout::AGENT);
            println!("  export HTTPS_PROXY=http://{}:{key}@{address}", layout::AGENT);
            println!("  export HTTP_PROXY=$HTTPS_PROXY https_proxy=$HTTPS_PROXY http_proxy=$HTTPS_PROXY");
            println!("  curl https://api.openai.com/v1/models");
        }
        None => println!("\nanother agent: {ctl} agent create NAME --team {}", layout::TEAM),
    }
    if layout.governs != Governs::Nothing {
        println!("\na command of this machine, governed whether it knows of proxies or not:");
        println!("  {ctl} run --agent {} -- COMMAND", layout::AGENT);
    }
    if let Governs::Behind(interface) = &layout.governs {
        println!("\nan agent behind {interface}, known by its address:");
        println!("  {ctl} agent create NAME --team {} --source {interface}=ADDRESS,MAC", layout::TEAM);
    }
    println!(
        "\nwho may reach what: {} (hosts, networks) and {}; after an edit:",
        layout.sets().display(),
        layout.policy().display()
    );
    println!(
        "  {ctl} policy apply {} --sets {} --message 'why'",
        layout.policy().display(),
        layout.sets().display()
    );
    println!("\nwhat happens:\n  {ctl} audit tail");
    println!("\nlogs are in {}; Ctrl-C drains and stops", layout.logs().display());
}
