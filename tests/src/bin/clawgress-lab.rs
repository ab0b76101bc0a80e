//! The lab by hand: the same small internet the tests use, for a person.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command line speaks to a person")]

use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use clawgress_e2e::lab::{self, Host, Lab};

/// Name of a lab that is not told another.
const NAME: &str = "lab";

#[derive(Parser)]
#[command(name = "cargo xtask lab", bin_name = "cargo xtask lab", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

/// The lab by hand: namespaces `known` and `anon` (agents), `gw`, and `world` (outside).
#[derive(Subcommand)]
enum Command {
    /// Make a lab
    Up {
        /// Its name
        #[arg(default_value = NAME)]
        name: String,
        /// Forward everything, without a gateway
        #[arg(long)]
        routed: bool,
    },
    /// Take a lab away, with everything that runs in it
    Down {
        /// Its name
        #[arg(default_value = NAME)]
        name: String,
    },
    /// Open a shell, or run a command, in `known`, `anon`, `gw`, `lan` or `world`
    Shell {
        /// The host
        host: String,
        /// The lab's name
        #[arg(long, default_value = NAME)]
        name: String,
        /// A command in place of a shell
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Names of the labs that are up
    List,
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("lab: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up { name, routed } => up(&name, routed),
        Command::Down { name } => {
            Lab::attach(&name)?.destroy()?;
            println!("lab: `{name}` is gone");
            Ok(())
        }
        Command::Shell { host, name, command } => shell(&host, &name, &command),
        Command::List => {
            for name in lab::kept() {
                println!("{name}");
            }
            Ok(())
        }
    }
}

fn up(name: &str, routed: bool) -> anyhow::Result<()> {
    let builder = Lab::builder().name(name).keep();
    let lab = if routed { builder.routed() } else { builder }.start()?;
    println!("lab: `{name}` is up; logs and the test CA are in {}", lab.dir().display());
    for host in Host::ALL {
        println!("  {:<6} cargo xtask lab shell {} --name {name}", host.name(), host.name());
    }
    if !routed {
        println!(
            "no gateway runs in it: nothing is forwarded; `cargo xtask demo --keep` makes one with a gateway"
        );
    }
    println!("take it away with: cargo xtask lab down {name}");
    Ok(())
}

fn shell(host: &str, name: &str, command: &[String]) -> anyhow::Result<()> {
    let lab = Lab::attach(name)?;
    let host = Host::from_name(host)
        .with_context(|| format!("there is no host `{host}`: name known, anon, gw, lan or world"))?;
    let shell = [std::env::var("SHELL").unwrap_or_else(|_| "sh".to_owned())];
    let argv = if command.is_empty() { &shell[..] } else { command };
    let mut command = lab.command(host, argv);
    command.env("PS1", format!("{}# ", host.name())).env("SSL_CERT_FILE", lab.ca());
    command.env("CURL_CA_BUNDLE", lab.ca());
    // The lab is another process's: it stays when this one becomes the shell.
    Err(command.exec()).context("cannot start the shell")
}
