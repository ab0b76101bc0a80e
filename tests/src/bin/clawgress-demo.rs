//! The demo: real clients in the lab, governed by the real processes, and a table of what the audit
//! log says about them. Fails if any outcome is not the expected one.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the demo speaks to a person")]

#[path = "demo/case.rs"]
mod case;
#[path = "demo/client.rs"]
mod client;
#[path = "demo/table.rs"]
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Parser;
use clawgress_e2e::lab::{Forbidden, GatewayOptions, Host, Lab};
use clawgress_e2e::plan::{GATEWAY, PROXY_PORT};
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER, Site};

use crate::client::Clients;

/// Name of the lab that `--keep` leaves.
const NAME: &str = "demo";

#[derive(Parser)]
#[command(name = "cargo xtask demo", bin_name = "cargo xtask demo", version)]
struct Args {
    /// Leave everything running afterwards
    #[arg(long)]
    keep: bool,
    /// Where the Python clients are
    #[arg(long, env = "CLAWGRESS_CLIENTS_DIR", value_name = "DIR")]
    clients: PathBuf,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\ndemo: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    println!("\ndemo: two agents' hosts, a gateway as their default route, and an outside");
    let builder = Lab::builder();
    let builder = if args.keep { builder.name(NAME).keep() } else { builder };
    let mut site = Site::start(builder.start()?, GatewayOptions::default())?;
    let clients = Clients::prepare(&site, &args.clients)?;
    println!(
        "demo: agents `{CRAWLER}` (known by its address) and `{ASSISTANT}` (known by its key); running clients\n"
    );
    let mut failures = 0;
    let mut rows = Vec::new();
    for case in case::all() {
        let result = case.run(&site, &clients);
        let mark = if result.problem.is_some() { "FAILED" } else { "ok" };
        println!("  {mark:<7} {:<22} {}", case.client.name(), case.title);
        if let Some(problem) = &result.problem {
            failures += 1;
            println!("          {problem}");
        }
        rows.extend(result.records.into_iter().map(|pair| (case.client.name(), pair)));
    }
    println!("\nfrom the audit log, by `clawgressctl audit search`:\n\n{}\n", table::render(&rows));
    site.gateway.ready().context("the gateway is not well after the demo")?;
    let forbidden = site.gateway.lab.forbidden()?;
    let expected = case::all().len();
    println!(
        "{} of {expected} outcomes as expected; FORBIDDEN received {} bytes in {} packets",
        expected - failures,
        forbidden.bytes,
        forbidden.packets
    );
    if args.keep {
        explain(&site);
    }
    ensure!(forbidden == Forbidden::default(), "something reached FORBIDDEN: {forbidden:?}");
    ensure!(failures == 0, "{failures} outcomes are not as expected");
    println!("\ndemo: success");
    Ok(())
}

/// What to try in a lab that stays.
fn explain(site: &Site) {
    let lab = &site.gateway.lab;
    let shell = |host: Host, command: &str| {
        println!("  cargo xtask lab shell {} --name {NAME} -- {command}", host.name());
    };
    println!("\neverything is still running. Try:");
    shell(Host::Known, "curl -s https://api.allowed.test/");
    shell(Host::Known, "curl -s http://secret.denied.test/");
    shell(Host::Anon, "curl -s -m 3 https://api.allowed.test/");
    let proxy = format!("http://{ASSISTANT}:{}@{}:{PROXY_PORT}", site.assistant_key, GATEWAY.v4);
    shell(Host::Anon, &format!("curl -s -x {proxy} https://api.allowed.test/"));
    if let Ok(admin) = site.gateway.admin() {
        println!("\nadminister it:");
        println!("  export CLAWGRESS_SOCKET={}", admin.socket.display());
        println!("  export CLAWGRESS_CONFIG={}", admin.config.display());
        println!("  {0} status\n  {0} audit tail\n  {0} policy show", admin.program.display());
        println!("  # edit {0}/policy.cedar, then", lab.dir().display());
        println!(
            "  {} policy apply {1}/policy.cedar --sets {1}/sets.toml --message 'my change'",
            admin.program.display(),
            lab.dir().display()
        );
    }
    println!("\ntake it away with:\n  cargo xtask lab down {NAME}");
}
