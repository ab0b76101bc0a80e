//! Whether the process at the other end of a socket is a command that this machine's gateway governs, by
//! the cgroup it is in. Such a command never gets further, whoever its user is: what it could ask the
//! roles for (a policy, a key, a listener) is what it is governed against.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use clawgress_api::config::Config;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;

use crate::cgroups::{self, WORKLOADS};

/// Cgroups that are looked through: some gateways with all the runs they may have; more is no answer.
const CGROUPS_MAX: usize = 4096;

/// Where governed commands are.
#[derive(Clone, Debug)]
pub(super) struct Workloads(Option<PathBuf>);

// === impl Workloads ===

impl Workloads {
    /// Where `config`, or else the machine, has its cgroups; nowhere without cgroup v2.
    pub(super) fn new(config: &Config) -> io::Result<Self> {
        Ok(Workloads(cgroups::root(config)?.map(|root| root.join(WORKLOADS))))
    }

    /// Whether process `pid`, which connected `stream`, is governed.
    ///
    /// # Errors
    /// If that can't be told: it has ended, or is of another process namespace.
    pub(super) fn hold(&self, stream: &UnixStream, pid: Option<i32>) -> io::Result<bool> {
        let pid = pid.and_then(Pid::from_raw).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "it is of a process namespace that is not seen from here")
        })?;
        let process = open(stream, pid)?;
        let governed = self.governs(pid);
        // Its number may be another's now. As long as it lives, it isn't.
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        if poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it has ended"));
        }
        governed
    }

    fn governs(&self, pid: Pid) -> io::Result<bool> {
        match fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.strip_prefix("0::")).any(is_workload)),
            // `/proc` shows this user no processes but its own (`hidepid`, `ProtectProc=`).
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) =>
            {
                self.list(pid)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether `pid` is listed in a cgroup of the workloads. Processes in there can't leave, so it is not
    /// missed on its way from one to another.
    fn list(&self, pid: Pid) -> io::Result<bool> {
        let mut waiting: Vec<PathBuf> = self.0.iter().cloned().collect();
        for _ in 0..CGROUPS_MAX {
            let Some(cgroup) = waiting.pop() else { return Ok(false) };
            // One that has just been removed holds nobody, and none at all if there were no runs yet.
            let Some(entries) = there(fs::read_dir(&cgroup))? else { continue };
            for entry in entries {
                let entry = entry?;
                if there(entry.file_type())?.is_some_and(|kind| kind.is_dir()) {
                    waiting.push(entry.path());
                }
            }
            let Some(processes) = there(fs::read_to_string(cgroup.join("cgroup.procs")))? else { continue };
            let number = pid.as_raw_nonzero().to_string();
            if processes.lines().any(|line| line == number) {
                return Ok(true);
            }
        }
        Err(io::Error::other("there are too many cgroups to look through"))
    }
}

fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(Errno::ENODEV as i32) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The process itself, not its number.
fn open(stream: &UnixStream, pid: Pid) -> io::Result<OwnedFd> {
    match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(process) => Ok(process),
        // Before Linux 6.5: from here on it is this process; that it connected is likely, not certain.
        Err(Errno::ENOPROTOOPT) => Ok(pidfd_open(pid, PidfdFlags::empty())?),
        Err(error) => Err(error.into()),
    }
}

/// Whether a path in the cgroup tree is below a directory of workloads, wherever this process sees its root.
fn is_workload(path: &str) -> bool {
    path.split('/').skip_while(|part| *part != WORKLOADS).nth(1).is_some_and(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    struct Workload(PathBuf, Child);

    impl Drop for Workload {
        fn drop(&mut self) {
            let _ = self.1.kill();
            let _ = self.1.wait();
            let _ = fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn a_process_below_the_workloads_is_found_whether_or_not_proc_shows_it() {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let workloads = cgroups::mounted(&mounts).expect("cgroup v2 is mounted").join(WORKLOADS);
        let cgroup = workloads.join(format!("peer-test-{}", std::process::id()));
        fs::create_dir_all(&cgroup).expect("this test needs root, to make a cgroup");
        let child = Workload(cgroup.clone(), Command::new("sleep").arg("60").spawn().expect("sleep"));
        let pid = Pid::from_raw(i32::try_from(child.1.id()).expect("pid")).expect("pid");
        let workloads = Workloads(Some(workloads));
        assert!(!workloads.governs(pid).expect("told") && !workloads.list(pid).expect("told"));
        fs::write(cgroup.join("cgroup.procs"), child.1.id().to_string()).expect("moved");
        assert!(workloads.governs(pid).expect("told"), "by /proc");
        assert!(workloads.list(pid).expect("told"), "by the cgroups");
        let nowhere = Workloads(Some("/nonexistent".into()));
        assert!(!nowhere.list(pid).expect("no run was ever opened"));
    }

    #[test]
    fn paths_are_told_apart() {
        for path in ["/clawgress/a/run-1", "/clawgress/a", "/../../clawgress/a (deleted)", "/x/clawgress/a/b"]
        {
            assert!(is_workload(path), "{path}");
        }
        for path in
            ["/", "/clawgress", "/clawgress/", "/system.slice/clawgress-control.service", "/a/clawgressx/b"]
        {
            assert!(!is_workload(path), "{path}");
        }
    }
}
