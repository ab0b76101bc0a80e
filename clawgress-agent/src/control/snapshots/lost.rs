//! Workers whose connections broke, and who may decide by what they had: also those that an earlier life of this role knew, which
//! are remembered in a file. Must never forget one that may decide.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clawgress_api::L7Status;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::time::{ClockId, clock_gettime};
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
    /// Why it is not known which one it is, nor whether there is one.
    pub(in crate::control) unknown: Option<String>,
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
    /// Of one that is lost; one that was connected is lost since this role ended.
    #[serde(default)]
    lost: Option<Span>,
    #[serde(default)]
    unknown: Option<String>,
}

/// Since when one is lost and until when it may decide, in milliseconds of the machine's clock that never jumps: of the
/// same start of the machine it means the same to each life of this role.
#[derive(Debug, Serialize, Deserialize)]
struct Span {
    since_ms: u64,
    until_ms: u64,
}

/// One moment, by both.
pub(super) struct Moment {
    here: Instant,
    machine: Duration,
}

// === impl Memory ===

impl Memory {
    pub(super) fn new(file: PathBuf) -> Self {
        Memory { file, writing: Mutex::default() }
    }

    /// The workers that an earlier life of this role knew, as lost. One that was connected then may decide for `stale_after`
    /// from now on, since nobody knows since when it hears nothing. None of an earlier start of the machine. Where it can't be
    /// known who there was, somebody unknown may decide for as long.
    pub(super) fn recall(&self, stale_after: Duration) -> Vec<Lost> {
        let since = Instant::now();
        let until = since + stale_after;
        let lost = self.recalled(since, until).unwrap_or_else(|error| {
            let file = self.file.display();
            tracing::error!(%error, %file, "nobody knows which L7 workers there were: for {} s it counts as if one did not come back", stale_after.as_secs());
            let instance = "unknown".to_owned();
            let status = L7Status { instance, pid: 0, generation: 0, draining: false, refused: None, error: None };
            let unknown = Some(format!("`{file}` can't be read: {error}"));
            vec![Lost { status, pid: None, quarantine: None, since, until, unknown }]
        });
        lost.into_iter().filter(Lost::may_decide).collect()
    }

    fn recalled(&self, since: Instant, until: Instant) -> io::Result<Vec<Lost>> {
        let Some(remembered) = self.read()? else { return Ok(Vec::new()) };
        if boot()? != remembered.boot {
            return Ok(Vec::new());
        }
        let moment = Moment::now()?;
        let lost = |Known { status, pid, lost, unknown }| {
            let (since, until) = match lost {
                None => (since, until),
                Some(Span { since_ms, until_ms }) => (moment.instant(since_ms)?, moment.instant(until_ms)?),
            };
            Ok(Lost { status, pid, quarantine: None, since, until, unknown })
        };
        remembered.workers.into_iter().map(lost).collect()
    }

    fn read(&self) -> io::Result<Option<Remembered>> {
        match fs::metadata(&self.file) {
            Ok(found) if found.len() > FILE_BYTES_MAX => {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is too large"));
            }
            Ok(found) if found.len() == 0 => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it could not be written when it was to be last",
                ));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(serde_json::from_slice(&fs::read(&self.file)?)?))
    }

    /// Writes who `workers` tells of then. It need not outlive the machine, so it waits for no disk. Where it can't be written,
    /// nothing is left that could be read: what was written before tells of others than there are. Whether the next life of this
    /// role knows who there is, or that nobody knows.
    #[must_use]
    pub(super) fn keep(&self, workers: impl FnOnce(&Moment) -> Vec<Known>) -> bool {
        let _writing = self.writing.lock();
        let Err(error) = self.write(workers) else { return true };
        let file = self.file.display();
        tracing::error!(%error, %file, "cannot remember the L7 workers: should this role start again, it counts as if one did not come back");
        // That takes no room, and is not to be taken for that there were none.
        let emptied = OpenOptions::new().write(true).create(true).truncate(true).open(&self.file);
        if let Err(error) = &emptied {
            tracing::error!(%error, %file, "nor is what was remembered before taken away: no other L7 worker is taken until one of both works");
        }
        emptied.is_ok()
    }

    fn write(&self, workers: impl FnOnce(&Moment) -> Vec<Known>) -> io::Result<()> {
        let remembered = Remembered { boot: boot()?, workers: workers(&Moment::now()?) };
        let new = self.file.with_extension("new");
        fs::write(&new, serde_json::to_vec(&remembered)?)?;
        fs::rename(&new, &self.file)
    }
}

// === impl Known ===

impl Known {
    /// One that is connected.
    pub(super) fn there(status: L7Status, pid: Option<i32>) -> Known {
        Known { status, pid, lost: None, unknown: None }
    }

    /// One that was lost.
    pub(super) fn lost(lost: &Lost, moment: &Moment) -> Known {
        let span = Span { since_ms: moment.machine_ms(lost.since), until_ms: moment.machine_ms(lost.until) };
        Known { status: lost.status.clone(), pid: lost.pid, lost: Some(span), unknown: lost.unknown.clone() }
    }
}

// === impl Moment ===

impl Moment {
    fn now() -> io::Result<Moment> {
        // What [`Instant`] goes by too: neither goes on while the machine is suspended, as for the worker.
        Ok(Moment { here: Instant::now(), machine: clock_gettime(ClockId::CLOCK_MONOTONIC)?.into() })
    }

    fn machine_ms(&self, at: Instant) -> u64 {
        let (later, earlier) =
            (at.saturating_duration_since(self.here), self.here.saturating_duration_since(at));
        let time = (self.machine + later).saturating_sub(earlier);
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    }

    fn instant(&self, machine_ms: u64) -> io::Result<Instant> {
        let at = Duration::from_millis(machine_ms);
        let instant = match at.checked_sub(self.machine) {
            Some(later) => self.here.checked_add(later),
            None => self.here.checked_sub(self.machine.saturating_sub(at)),
        };
        instant.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a time in it can't be"))
    }
}

fn boot() -> io::Result<String> {
    fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned())
}

// === impl Lost ===

impl Lost {
    /// Adds one. Where there are `most` already, the two that were lost first become one, of which no more is known than that it
    /// has what either has at least, and may decide for as long as either.
    pub(super) fn add(self, lost: &mut Vec<Lost>, most: usize) {
        lost.retain(Lost::may_decide);
        if lost.len() >= most
            && let [first, second, ..] = &mut lost[..]
        {
            second.status.generation = second.status.generation.min(first.status.generation);
            // Of one that has none, or of which that is not known, it is the least.
            second.quarantine = second.quarantine.min(first.quarantine);
            (second.since, second.until) = (second.since.min(first.since), second.until.max(first.until));
            (second.status.instance, second.status.pid, second.pid) = ("several".to_owned(), 0, None);
            second.unknown = Some("more were lost than can be told apart".to_owned());
            lost.remove(0);
        }
        lost.push(self);
    }

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
            Lost { status: status.clone(), pid, quarantine: None, since: now, until, unknown: None }
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
    fn of_more_that_are_lost_than_there_is_room_for_none_is_forgotten() {
        let (mut all, now) = (Vec::new(), Instant::now());
        for (generation, quarantine, s) in
            [(7, Some(3), 900), (5, Some(4), 600), (9, Some(2), 600), (9, None, 600)]
        {
            let instance = format!("w{generation}");
            let status =
                L7Status { instance, pid: 1, generation, draining: false, refused: None, error: None };
            let (since, until) = (now, now + Duration::from_secs(s));
            Lost { status, pid: None, quarantine, since, until, unknown: None }.add(&mut all, 2);
        }
        let [several, last] = &all[..] else { panic!("{all:?}") };
        assert_eq!((several.status.generation, several.quarantine), (5, Some(2)));
        assert_eq!((several.until, several.unknown.is_some()), (now + Duration::from_secs(900), true));
        assert!(several.may_decide());
        assert_eq!((last.status.instance.as_str(), last.quarantine), ("w9", None));
        let (generation, until) = (1, now + Duration::from_secs(600));
        let status = L7Status { generation, ..last.status.clone() };
        Lost { status, pid: None, quarantine: None, since: now, until, unknown: None }.add(&mut all, 2);
        assert_eq!(all[0].quarantine, None, "nobody knows what the former last one had");
    }

    #[test]
    fn workers_are_remembered_over_a_restart() {
        let directory = tempfile::tempdir().expect("directory");
        let memory = Memory::new(directory.path().join("workers.json"));
        let stale_after = Duration::from_secs(600);
        assert!(memory.recall(stale_after).is_empty(), "there were none");
        let known = |instance: &str, pid: u32| {
            let status = L7Status {
                instance: instance.to_owned(),
                pid,
                generation: 7,
                draining: false,
                refused: None,
                error: None,
            };
            Known::there(status, i32::try_from(pid).ok())
        };
        let mut ended = std::process::Command::new("true").spawn().expect("a process");
        ended.wait().expect("ended");
        assert!(memory.keep(|_| vec![known("lives", std::process::id()), known("ended", ended.id())]));
        let recalled = memory.recall(stale_after);
        let [one] = &recalled[..] else { panic!("{recalled:?}") };
        assert_eq!((one.status.instance.as_str(), one.status.generation), ("lives", 7));
        assert!(one.may_decide());
        assert!(memory.recall(Duration::ZERO).is_empty(), "its time is over");
        // Its time goes on over any number of restarts, whatever was configured since.
        assert!(memory.keep(|moment| recalled.iter().map(|lost| Known::lost(lost, moment)).collect()));
        for stale_after in [stale_after * 2, Duration::ZERO] {
            let again = memory.recall(stale_after);
            let [again] = &again[..] else { panic!("{again:?}") };
            // What is written is in milliseconds.
            assert!(again.until <= one.until && again.until + Duration::from_millis(2) >= one.until);
            assert!(again.since <= one.since && again.since + Duration::from_millis(2) >= one.since);
        }
        // Of an earlier start of the machine nobody is left.
        let text = fs::read_to_string(&memory.file).expect("a file");
        fs::write(&memory.file, text.replace(&boot().expect("boot"), "another")).expect("written");
        assert!(memory.recall(stale_after).is_empty());
        // Of a damaged file nobody is known, so that there may be one.
        let far = text.replace("until_ms\":", "until_ms\":999999999999999");
        for damaged in ["{", &far] {
            fs::write(&memory.file, damaged).expect("written");
            let recalled = memory.recall(stale_after);
            let [unknown] = &recalled[..] else { panic!("{damaged}: {recalled:?}") };
            assert_eq!(unknown.status.generation, 0, "it may decide by anything");
            let why = unknown.unknown.as_deref().expect("unknown");
            assert!(unknown.may_decide() && why.contains("workers.json` can't be read"), "{why}");
        }
    }

    /// What was written before knows nothing of a worker that came since.
    #[test]
    fn who_could_not_be_remembered_is_unknown_after_a_restart() {
        let directory = tempfile::tempdir().expect("directory");
        let memory = Memory::new(directory.path().join("workers.json"));
        let stale_after = Duration::from_secs(600);
        let nobody = || memory.keep(|_| Vec::new());
        // In the way of what is written aside, for root as for anybody.
        let aside = memory.file.with_extension("new");
        for is_there in [false, true] {
            if is_there {
                assert!(nobody());
                assert!(memory.recall(stale_after).is_empty());
            }
            fs::create_dir(&aside).expect("created");
            assert!(nobody(), "it is known that nobody knows");
            let recalled = memory.recall(stale_after);
            let [unknown] = &recalled[..] else { panic!("{is_there}: {recalled:?}") };
            let why = unknown.unknown.as_deref().expect("unknown");
            assert!(unknown.may_decide() && why.contains("could not be written"), "{why}");
            fs::remove_dir(&aside).expect("removed");
        }
        assert!(nobody(), "it can be written again");
        assert!(memory.recall(stale_after).is_empty());
        let gone = Memory::new(directory.path().join("gone").join("workers.json"));
        assert!(!gone.keep(|_| Vec::new()), "what can't even be emptied might be read");
    }
}
