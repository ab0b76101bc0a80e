//! Runs a program as its systemd unit has it run, as far as that is a matter of the process itself: the file mode mask,
//! what it sees of `/proc`, and the system calls it may make. For tests of the shipped units without systemd in charge.
//!
//! `clawgress-sandbox mount UNIT COMMAND...` takes root and a mount namespace of its own;
//! `clawgress-sandbox enter UNIT COMMAND...` comes last, right before the program.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, umask};

/// Groups within groups of `systemd-analyze syscall-filter`: more than there are.
const GROUPS_MAX: usize = 256;

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let usage = "usage: clawgress-sandbox mount|enter UNIT COMMAND...";
    let (step, unit) = (words.next().context(usage)?, words.next().context(usage)?);
    let command: Vec<String> = words.collect();
    let (program, arguments) = command.split_first().context(usage)?;
    let unit = Unit::read(&unit)?;
    match step.as_str() {
        "mount" => unit.mount()?,
        "enter" => unit.enter()?,
        _ => bail!(usage),
    }
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("cannot start `{program}`"))
}

/// The settings of a unit file, in its order.
struct Unit(Vec<(String, String)>);

// === impl Unit ===

impl Unit {
    fn read(path: &str) -> anyhow::Result<Unit> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"))?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let settings = lines.filter_map(|line| line.split_once('='));
        Ok(Unit(settings.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()))
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    fn one(&self, key: &str) -> anyhow::Result<&str> {
        self.all(key).last().with_context(|| format!("the unit has no {key}="))
    }

    /// `ProtectProc=` and `ProcSubset=`.
    fn mount(&self) -> anyhow::Result<()> {
        let hidden = format!("hidepid={}", self.one("ProtectProc")?);
        let subset = self.all("ProcSubset").last().map(|subset| format!(",subset={subset}"));
        let options = hidden + &subset.unwrap_or_default();
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), Some(options.as_str()))
            .context("cannot mount /proc")
    }

    /// `UMask=` and `SystemCallFilter=`.
    fn enter(&self) -> anyhow::Result<()> {
        let mask = u32::from_str_radix(self.one("UMask")?, 8).context("UMask= is no mode")?;
        umask(Mode::from_bits_truncate(mask));
        ensure!(self.one("SystemCallErrorNumber")? == "EPERM", "another error number than this knows");
        let filter = filter(&self.calls()?)?;
        seccompiler::apply_filter(&filter).context("cannot restrict system calls")
    }

    /// System calls that may be made. The first setting lists some; each later one adds more, or with `~` takes some away.
    fn calls(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut allowed = members("@default")?;
        for (n, value) in self.all("SystemCallFilter").enumerate() {
            let (takes, value) = match value.strip_prefix('~') {
                Some(value) => (true, value),
                None => (false, value),
            };
            ensure!(!takes || n > 0, "the first SystemCallFilter= must list what is allowed");
            for name in value.split_whitespace() {
                let calls = members(name)?;
                if takes {
                    allowed.retain(|call| !calls.contains(call));
                } else {
                    allowed.extend(calls);
                }
            }
        }
        Ok(allowed)
    }
}

/// A system call, or those of a group, as systemd has them.
fn members(name: &str) -> anyhow::Result<BTreeSet<String>> {
    let (mut calls, mut waiting, mut seen) = (BTreeSet::new(), vec![name.to_owned()], BTreeSet::new());
    while let Some(name) = waiting.pop() {
        if !name.starts_with('@') {
            calls.insert(name);
            continue;
        }
        if !seen.insert(name.clone()) {
            continue;
        }
        ensure!(seen.len() <= GROUPS_MAX, "too many groups of system calls");
        let output = Command::new("systemd-analyze")
            .args(["syscall-filter", "--no-pager", &name])
            .env("SYSTEMD_COLORS", "0")
            .output()
            .context("cannot run `systemd-analyze`")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "there is no group `{name}`: {output:?}");
        let lines = text.lines().skip(1).map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        waiting.extend(lines.map(str::to_owned));
    }
    Ok(calls)
}

/// A filter that allows these. Names of other architectures are none here.
fn filter(calls: &BTreeSet<String>) -> anyhow::Result<seccompiler::BpfProgram> {
    let is_known = |call: &&String| compile([*call]).is_ok();
    compile(calls.iter().filter(is_known))
}

fn compile<'a>(calls: impl IntoIterator<Item = &'a String>) -> anyhow::Result<seccompiler::BpfProgram> {
    let rules: Vec<_> = calls.into_iter().map(|call| serde_json::json!({ "syscall": call })).collect();
    let document = serde_json::json!({ "unit": {
        "mismatch_action": { "errno": nix::libc::EPERM },
        "match_action": "allow",
        "filter": rules,
    } });
    let arch = std::env::consts::ARCH.try_into()?;
    let mut filters = seccompiler::compile_from_json(document.to_string().as_bytes(), arch)?;
    filters.remove("unit").context("no filter was made")
}
