//! The tasks themselves: set up, then the right programs in the right order.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::cache;
use crate::setup::{self, Scope};
use crate::shell;

/// The packages whose programs make a gateway.
const PROGRAMS: &[&str] = &["clawgress-agent", "clawgress-l7", "clawgressctl"];
/// The package of the lab and what runs in it.
const LAB: &str = "clawgress-e2e";

/// Builds every program.
pub fn build(release: bool) -> anyhow::Result<()> {
    setup::run(Scope::Build)?;
    compile(release)?;
    println!("\nbuild: the programs are in {}", directory(release).display());
    Ok(())
}

/// Everything that must hold before a change is accepted. The closing line says that it does.
pub fn test() -> anyhow::Result<()> {
    let begun = Instant::now();
    setup::run(Scope::Lab)?;
    shell::run(shell::cargo().args(["fmt", "--all", "--check"])).context("run `cargo fmt --all`")?;
    // The kernel programs have no meaning on the host; the agent's build script builds them.
    let workspace = ["--workspace", "--exclude", "clawgress-ebpf"];
    let mut clippy = shell::cargo();
    clippy.arg("clippy").args(workspace).args(["--locked", "--all-targets", "--", "-D", "warnings"]);
    shell::run(&mut clippy)?;
    // The fuzz targets are a workspace of their own, with a lock file that nothing here is built by.
    let mut fuzz = shell::cargo();
    fuzz.current_dir(cache::repository().join("tests/fuzz")).args([
        "metadata",
        "--locked",
        "--format-version",
        "1",
    ]);
    shell::output(&mut fuzz)
        .context("run `cargo update --workspace` in tests/fuzz: its Cargo.lock is stale")?;
    // The end-to-end tests start these by path.
    compile(false)?;
    let mut tests = shell::cargo();
    tests.env("CLAWGRESS_CLIENTS_DIR", cache::clients()?);
    shell::run(tests.arg("test").args(workspace).arg("--locked"))?;
    let minutes = begun.elapsed().as_secs().div_ceil(60);
    println!("\nall checks passed: format, lints, unit, property and end-to-end tests ({minutes} min)");
    Ok(())
}

/// The demo.
pub fn demo(keep: bool) -> anyhow::Result<()> {
    setup::run(Scope::All)?;
    compile(false)?;
    let mut command = Command::new(directory(false).join("clawgress-demo"));
    command.env("CLAWGRESS_CLIENTS_DIR", cache::clients()?);
    if keep {
        command.arg("--keep");
    }
    shell::run_quietly(&mut command)
}

/// The gateway on this machine.
pub fn up(
    transparent: Option<String>,
    local: bool,
    dir: Option<PathBuf>,
    rest: Vec<String>,
) -> anyhow::Result<()> {
    setup::run(Scope::Build)?;
    compile(false)?;
    let mut command = Command::new(directory(false).join("clawgress-up"));
    command.env("CLAWGRESS_GEO_DIR", cache::geo()?);
    if let Some(interface) = transparent {
        command.arg("--transparent").arg(interface);
    }
    if local {
        command.arg("--local");
    }
    if let Some(dir) = dir {
        command.arg("--dir").arg(dir);
    }
    shell::run_quietly(command.args(rest))
}

/// The lab by hand.
pub fn lab(command: &[String]) -> anyhow::Result<()> {
    setup::run(Scope::Lab)?;
    compile(false)?;
    shell::run_quietly(Command::new(directory(false).join("clawgress-lab")).args(command))
}

/// The measurements.
pub fn bench(rest: &[String]) -> anyhow::Result<()> {
    setup::run(Scope::Lab)?;
    compile(true)?;
    let mut command = Command::new(directory(true).join("clawgress-bench"));
    shell::run_quietly(command.current_dir(cache::repository()).args(rest))
}

/// What instruments the targets with stable Rust: see `tests/fuzz/README.md`.
const FUZZ_FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1";
/// Longest input, bytes: what the parsers' own bounds leave interesting.
const FUZZ_BYTES_MAX: u32 = 4096;

/// Fuzzes one parser; fails at a crash, whose input is then under `tests/fuzz/artifacts`.
pub fn fuzz(target: &str, seconds: u64) -> anyhow::Result<()> {
    setup::run(Scope::Build)?;
    let dir = cache::repository().join("tests/fuzz");
    let known = fs::read_dir(dir.join("seeds")).context("there are no fuzz targets")?;
    let mut known: Vec<String> =
        known.filter_map(Result::ok).map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    known.sort();
    ensure!(
        known.iter().any(|k| k == target),
        "there is no target `{target}`; name one of {}",
        known.join(", ")
    );
    let version = shell::output(Command::new("rustc").current_dir(&dir).arg("-vV"))?;
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).context("rustc names no host")?;
    let mut build = shell::cargo();
    build.current_dir(&dir).args(["build", "--release", "--locked", "--target", host, "--bin", target]);
    if target.starts_with("policy_") {
        // These alone bring Cedar along, which takes long to instrument.
        build.args(["--features", "policy"]);
    }
    shell::run(build.env("RUSTFLAGS", FUZZ_FLAGS))?;
    let (corpus, artifacts) = (format!("corpus/{target}"), format!("artifacts/{target}/"));
    for made in [&corpus, &artifacts] {
        fs::create_dir_all(dir.join(made)).with_context(|| format!("cannot create `{made}`"))?;
    }
    let mut run = Command::new(dir.join("target").join(host).join("release").join(target));
    run.current_dir(&dir)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={FUZZ_BYTES_MAX}"))
        .arg(format!("-artifact_prefix={artifacts}"))
        .args([corpus, format!("seeds/{target}")]);
    shell::run(&mut run)
}

/// The differential test of the kernel programs, for a time instead of a number of packets.
pub fn fuzz_datapath(minutes: u64, seed: Option<u64>) -> anyhow::Result<()> {
    setup::run(Scope::Build)?;
    let mut command = shell::cargo();
    command.args(["test", "--locked", "--package", "clawgress-agent", "--test", "datapath", "--"]);
    command.args(["--exact", "property::the_kernel_says_what_policy_says", "--nocapture"]);
    command.env("CLAWGRESS_FUZZ_MINUTES", minutes.to_string());
    if let Some(seed) = seed {
        command.env("CLAWGRESS_TEST_SEED", seed.to_string());
    }
    shell::run(&mut command)
}

/// The differential tests of lowered policies, of one action each and of several under a platform's, for a time instead of a number
/// of cases. Each round has a seed of its own, the
/// next after the one before: a failure prints it.
pub fn fuzz_policy(minutes: u64, seed: Option<u64>) -> anyhow::Result<()> {
    setup::run(Scope::Build)?;
    let mut command = shell::cargo();
    command.args([
        "test",
        "--release",
        "--locked",
        "--package",
        "clawgress-policy",
        "--test",
        "lowered",
        "--",
    ]);
    command.args([
        "--exact",
        "cases::decisions_are_the_authorizers",
        "mixed::several_actions_under_a_platform_are_decided_as_each_half_says",
        "--nocapture",
    ]);
    command.env("CLAWGRESS_FUZZ_MINUTES", minutes.to_string());
    if let Some(seed) = seed {
        command.env("CLAWGRESS_SEED", seed.to_string());
    }
    shell::run(&mut command)
}

fn compile(release: bool) -> anyhow::Result<()> {
    let mut command = shell::cargo();
    command.args(["build", "--locked", "--bins"]);
    for package in PROGRAMS.iter().chain([&LAB]) {
        command.args(["--package", package]);
    }
    if release {
        // In one call: fewer packages would be other features of their dependencies, all built again.
        command.args(["--release", "--example", "bare_pingora", "--example", "bare_relays"]);
    }
    shell::run(&mut command)
}

/// Where cargo puts programs.
fn directory(release: bool) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    cache::repository().join(target).join(if release { "release" } else { "debug" })
}
