//! Workers whose connections broke, and who may decide by what they had: also those that an earlier life of this role knew, which
//! are remembered in a file. Must never forget one that may decide.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clawgress_api::L7Status;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What tells one start of the machine from another: after that, no process of before lives.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Largest file that is read: what as many workers as there may be take, and as many that were lost.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A worker whose connection broke, and whose process may live: it decides by what it had, until that is stale.
#[derive(Debug)]
pub(in crate::control) struct Lost {
    pub(in crate::control) status: L7Status,
    /// The process, as the kernel names it here.
    pub(in crate::control) pid: Option<i32>,
    pub(in crate::control) quarantine: Option<u64>,
    pub(in crate::control) since: Instant,
    pub(in crate::control) until: Instant,
}

/// Where workers are remembered.
#[derive(Debug)]
pub(super) struct Memory {
    file: PathBuf,
    /// Held while it is written: what is written last is what was so last.
    writing: Mutex<()>,
}

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    boot: String,
    workers: Vec<Known>,
}

/// A worker in the file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) status: L7Status,
    pub(super) pid: Option<i32>,
}

// === impl Memory ===

impl Memory {
    pub(super) fn new(file: PathBuf) -> Self {
        Memory { file, writing: Mutex::default() }
    }

    /// The workers that an earlier life of this role knew, as lost now: one may decide for `stale_after` from now on, since
    /// nobody knows since when it hears nothing. None of an earlier start of the machine.
    pub(super) fn recall(&self, stale_after: Duration) -> Vec<Lost> {
        let remembered = match self.read() {
            Ok(Some(remembered)) => remembered,
            Ok(None) => return Vec::new(),
            Err(error) => {
                let file = self.file.display();
                tracing::warn!(%error, %file, "nobody knows which L7 workers there were: one that does not come back is not told of");
                return Vec::new();
            }
        };
        if boot().ok().as_ref() != Some(&remembered.boot) {
            return Vec::new();
        }
        let since = Instant::now();
        let until = since + stale_after;
        let lost = |Known { status, pid }| Lost { status, pid, quarantine: None, since, until };
        remembered.workers.into_iter().map(lost).filter(Lost::may_decide).collect()
    }

    fn read(&self) -> io::Result<Option<Remembered>> {
        match fs::metadata(&self.file) {
            Ok(found) if found.len() > FILE_BYTES_MAX => {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is too large"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(serde_json::from_slice(&fs::read(&self.file)?)?))
    }

    /// Writes who `workers` tells of then. It need not outlive the machine, so it waits for no disk.
    pub(super) fn keep(&self, workers: impl FnOnce() -> Vec<Known>) {
        let _writing = self.writing.lock();
        let written = (|| {
            let remembered = Remembered { boot: boot()?, workers: workers() };
            let new = self.file.with_extension("new");
            fs::write(&new, serde_json::to_vec(&remembered)?)?;
            fs::rename(&new, &self.file)
        })();
        if let Err(error) = written {
            tracing::error!(%error, file = %self.file.display(), "cannot remember the L7 workers");
        }
    }
}

fn boot() -> io::Result<String> {
    fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned())
}

// === impl Lost ===

impl Lost {
    /// Whether it may still decide by what it had: its time is not over, and its process not known to have ended. One
    /// that the kernel can't name here, or whose number another has by now, is taken for the one.
    pub(in crate::control) fn may_decide(&self) -> bool {
        let ended = || self.pid.is_some_and(has_ended);
        Instant::now() < self.until && !ended()
    }
}

/// Whether a process is known to have ended, be it that nobody has taken note of it yet: signals still reach those.
fn has_ended(pid: i32) -> bool {
    if kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) {
        return true;
    }
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state is behind the name, which may hold anything (proc_pid_stat(5)).
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};

    use super::*;

    #[test]
    fn a_lost_worker_may_decide_until_it_ended_or_is_stale() {
        let status = L7Status {
            instance: "w".to_owned(),
            pid: 1,
            generation: 1,
            draining: false,
            refused: None,
            error: None,
        };
        let now = Instant::now();
        let lost = |pid: Option<u32>, until| {
            let pid = pid.map(|pid| i32::try_from(pid).expect("pid"));
            Lost { status: status.clone(), pid, quarantine: None, since: now, until }
        };
        let later = now + Duration::from_secs(600);
        let mut ended = std::process::Command::new("true").spawn().expect("a process");
        let id = ended.id();
        let pid = Pid::from_raw(i32::try_from(id).expect("pid"));
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("it ends");
        assert!(!lost(Some(id), later).may_decide(), "nobody has waited for it");
        ended.wait().expect("ended");
        assert!(lost(Some(std::process::id()), later).may_decide());
        assert!(lost(None, later).may_decide(), "nobody knows");
        assert!(!lost(Some(id), later).may_decide());
        assert!(!lost(Some(std::process::id()), now).may_decide());
    }

    #[test]
    fn workers_are_remembered_over_a_restart() {
        let directory = tempfile::tempdir().expect("directory");
        let memory = Memory::new(directory.path().join("workers.json"));
        let stale_after = Duration::from_secs(600);
        assert!(memory.recall(stale_after).is_empty(), "there were none");
        let known = |instance: &str, pid: u32| Known {
            status: L7Status {
                instance: instance.to_owned(),
                pid,
                generation: 7,
                draining: false,
                refused: None,
                error: None,
            },
            pid: i32::try_from(pid).ok(),
        };
        let mut ended = std::process::Command::new("true").spawn().expect("a process");
        ended.wait().expect("ended");
        memory.keep(|| vec![known("lives", std::process::id()), known("ended", ended.id())]);
        let recalled = memory.recall(stale_after);
        let [one] = &recalled[..] else { panic!("{recalled:?}") };
        assert_eq!((one.status.instance.as_str(), one.status.generation), ("lives", 7));
        assert!(one.may_decide());
        assert!(memory.recall(Duration::ZERO).is_empty(), "its time is over");
        // Of an earlier start of the machine nobody is left, and of a damaged file nobody is known.
        let text = fs::read_to_string(&memory.file).expect("a file");
        fs::write(&memory.file, text.replace(&boot().expect("boot"), "another")).expect("written");
        assert!(memory.recall(stale_after).is_empty());
        fs::write(&memory.file, "{").expect("written");
        assert!(memory.recall(stale_after).is_empty());
    }
}
