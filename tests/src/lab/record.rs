//! What a lab consists of, on disk, so that whoever comes later can take it away: `lab down`, and the
//! sweep after a process that was killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::Host;

/// One file a lab, while it exists.
const RECORDS: &str = "/run/clawgress-lab";
/// Times a removal is tried: a namespace's last process needs a moment to be gone.
const TRIES_MAX: u32 = 100;

/// A process, by id and start time: ids are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pid: i32,
    started: u64,
}

/// A lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    /// The process that dropped it if it ended.
    owner: Process,
    /// Outlives its owner.
    pub(super) kept: bool,
    processes: Vec<Process>,
    /// Directories below the BPF file system and the cgroup tree.
    #[serde(default)]
    pins: Vec<PathBuf>,
}

/// Held while a lab is made: `ip netns add` is not made for company.
pub(super) fn lock() -> anyhow::Result<Flock<fs::File>> {
    fs::create_dir_all(RECORDS).with_context(|| format!("cannot create `{RECORDS}`"))?;
    let file = fs::File::create(Path::new(RECORDS).join("lock"))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e).context("cannot take the lab's lock")
}

/// Takes away what belongs to processes that are gone.
pub(super) fn sweep() {
    for record in all() {
        if !record.kept && !record.owner.alive() {
            record.destroy();
        }
    }
}

/// Names of the kept labs.
#[must_use]
pub fn kept() -> Vec<String> {
    all().into_iter().filter(|r| r.kept).map(|r| r.name).collect()
}

fn all() -> Vec<Record> {
    let files = fs::read_dir(RECORDS).into_iter().flatten().filter_map(Result::ok).map(|e| e.path());
    files
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .filter_map(|p| fs::read(p).ok())
        .filter_map(|bytes| serde_json::from_slice(&bytes).ok())
        .collect()
}

// === impl Process ===

impl Process {
    /// The process that has this id now.
    pub(super) fn of(pid: u32) -> anyhow::Result<Process> {
        let pid = i32::try_from(pid)?;
        let started = start_time(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Process { pid, started })
    }

    fn alive(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    fn kill(self) {
        if !self.alive() || kill(Pid::from_raw(self.pid), Signal::SIGKILL).is_err() {
            return;
        }
        for _ in 0..TRIES_MAX {
            if !self.alive() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Field 22 of `/proc/PID/stat` (proc(5)), counted from behind the name, which may hold anything.
/// A process that has ended and only waits to be collected is gone.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

// === impl Record ===

impl Record {
    pub(super) fn create(name: &str, kept: bool) -> anyhow::Result<Record> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 32 || !name.chars().all(fits) {
            bail!("`{name}` is not a lab's name: 1 to 32 of a-z, 0-9 and `-`");
        }
        let path = Path::new(RECORDS).join(format!("{name}.json"));
        if path.exists() {
            bail!("there is a lab `{name}`; take it away with `cargo xtask lab down {name}`");
        }
        let dir = Path::new(RECORDS).join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
        let owner = Process::of(std::process::id())?;
        let record =
            Record { name: name.to_owned(), dir, owner, kept, processes: Vec::new(), pins: Vec::new() };
        record.write()?;
        Ok(record)
    }

    pub(super) fn read(name: &str) -> anyhow::Result<Record> {
        all().into_iter().find(|r| r.name == name).with_context(|| {
            format!("there is no lab `{name}`; make one with `cargo xtask lab up`, or see `lab list`")
        })
    }

    pub(super) fn path(name: &str) -> PathBuf {
        Path::new(RECORDS).join(format!("{name}.json"))
    }

    fn write(&self) -> anyhow::Result<()> {
        let path = Record::path(&self.name);
        fs::write(&path, serde_json::to_vec(self)?)
            .with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// Adds to the record on disk, whoever else adds to it.
    pub(super) fn add(name: &str, process: Option<Process>, pin: Option<PathBuf>) -> anyhow::Result<()> {
        let mut record = Record::read(name)?;
        record.processes.retain(|p| p.alive());
        record.processes.extend(process);
        record.pins.extend(pin);
        record.write()
    }

    /// Takes everything away, in order: processes, kernel programs, namespaces, files. What is gone
    /// already is no error.
    pub(super) fn destroy(&self) {
        let last = Record::read(&self.name).unwrap_or_else(|_| self.clone());
        for process in &last.processes {
            process.kill();
        }
        for pin in &last.pins {
            remove_tree(pin);
        }
        for host in Host::ALL {
            remove_namespace(&format!("{}-{}", self.name, host.name()));
        }
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_file(Record::path(&self.name));
    }
}

fn remove_namespace(name: &str) {
    let path = Path::new("/run/netns").join(name);
    for _ in 0..TRIES_MAX {
        if !path.exists() {
            return;
        }
        let mut command = Command::new("ip");
        let _ = command.args(["netns", "delete", name]).stderr(Stdio::null()).status();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes a directory of the BPF file system or of the cgroup tree, where `remove_dir_all` meets
/// files it may not delete: directories go, and what is in them with them.
fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        } else {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}
