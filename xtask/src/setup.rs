//! `cargo xtask setup`: finds out what is missing and installs it, one line a finding. Repeating it
//! changes nothing. Must never touch what it did not make, nor name a registry: packages come from
//! where this machine already takes its packages from.

mod apt;
mod clients;
mod geo;
mod kernels;
mod linker;
mod mmdb;
mod packages;
mod rust_src;

use std::fs;

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};

use crate::cache;
use crate::shell::{self, TOOLCHAIN};

/// How much is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// What compiling needs.
    Build,
    /// And what lab and tests need, clients included.
    Lab,
    /// And geo data.
    All,
}

/// Sets up. Two at once wait for each other.
///
/// # Errors
/// With what to do by hand, if something is missing that can't be installed from here.
pub fn run(scope: Scope) -> anyhow::Result<()> {
    let root = cache::root()?;
    fs::create_dir_all(&root).with_context(|| format!("cannot create `{}`", root.display()))?;
    let lock = fs::File::create(root.join("setup.lock")).context("cannot create the set-up lock")?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context("cannot take the set-up lock")?;
    println!("setup: toolchain in {}", cache::toolchain()?.display());
    packages::install(scope)?;
    rust_components()?;
    let library = rust_src::install()?;
    say("rust-src", &format!("present ({})", library.display()));
    linker::install()?;
    if scope >= Scope::Lab {
        kernels::install()?;
        clients::install_packages()?;
        clients::install()?;
    }
    if scope == Scope::All {
        geo::install()?;
    }
    println!("setup: complete");
    Ok(())
}

/// One finding.
fn say(what: &str, finding: &str) {
    println!("setup: {what:<16} {finding}");
}

fn rust_components() -> anyhow::Result<()> {
    let mut missing = Vec::new();
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if shell::succeeds(shell::cargo().args([subcommand, "--version"])) {
            say(component, "present");
        } else {
            missing.push(component);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let mut command = std::process::Command::new("rustup");
    command.args(["component", "add", "--toolchain", TOOLCHAIN]).args(&missing);
    shell::run(&mut command).context("install these components with rustup, then try again")
}
