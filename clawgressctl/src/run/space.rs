//! The part of the machine that a governed command sees: its own processes alone, in a PID namespace with a `/proc` of
//! its own, and none of the usual doors to its user's other ones. Memory and descriptors of what it does not see, it
//! can't take, nor make work for it.
//!
//! The first process of such a namespace is not as others: signals that it does not await do nothing, and orphans are
//! its to bury. So it is this program, which starts the command, passes signals on to it, and ends as it does.

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, User, getpid};

use crate::failure::Failure;

/// What is sent to this program, and meant for the command.
const PASSED: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Processes that this one starts from now on are in a namespace of their own; the first must [`furnish`] it.
pub fn leave() -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)
        .map_err(|e| Failure::Refused(format!("cannot give the command processes of its own: {e}")))
}

/// Mounts what the command sees in place of what there is: as the namespace's first process.
pub fn furnish(user: &User) -> Result<(), Failure> {
    if getpid().as_raw() != 1 {
        return Err(Failure::Refused("this is not the first process of a namespace; use `run`".into()));
    }
    let failed = |what: String| move |e: Errno| Failure::Refused(format!("cannot mount {what}: {e}"));
    // What is mounted here stays here; what others mount, arrives.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(failed("the command's own view".into()))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("proc"), "/proc", Some("proc"), flags | MsFlags::MS_NOEXEC, None::<&str>)
        .map_err(failed("`/proc`".into()))?;
    for door in doors(user).into_iter().filter(|door| door.is_dir()) {
        let options = format!("mode=0700,uid={},gid={},size=16m", user.uid, user.gid);
        mount(Some("tmpfs"), &door, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(failed(format!("over `{}`", door.display())))?;
    }
    Ok(())
}

/// Where processes of the user take orders: the bus of its own service manager, and terminals it left.
fn doors(user: &User) -> [PathBuf; 3] {
    [
        format!("/run/user/{}", user.uid),
        format!("/tmp/tmux-{}", user.uid),
        format!("/run/screen/S-{}", user.name),
    ]
    .map(PathBuf::from)
}

/// Starts `command`, and waits for its end: its code, or that of the signal it died of.
pub fn attend(command: &mut Command) -> Result<ExitCode, Failure> {
    let failed = |e: Errno| Failure::Refused(format!("cannot await the command: {e}"));
    let mut awaited = SigSet::from_iter(PASSED);
    awaited.add(Signal::SIGCHLD);
    // Before there is a child, so that no end is missed. A child begins with no signal blocked.
    awaited.thread_block().map_err(failed)?;
    let program = command.get_program().to_owned();
    let child =
        command.spawn().map_err(|e| Failure::Refused(format!("cannot run `{}`: {e}", program.display())))?;
    let child = i32::try_from(child.id()).map(Pid::from_raw);
    let child = child.map_err(|e| Failure::Refused(format!("cannot await the command: {e}")))?;
    // From a terminal, Ctrl-C reaches the command by itself.
    let from_terminal = std::io::stdin().is_terminal();
    loop {
        match awaited.wait().map_err(failed)? {
            Signal::SIGCHLD => {
                if let Some(code) = ended(child) {
                    return Ok(ExitCode::from(code));
                }
            }
            Signal::SIGINT if from_terminal => {}
            // Not waited for yet, so the number is still the child's.
            signal => drop(kill(child, signal)),
        }
    }
}

/// Waits for all that have ended, and gives the code of `child` if it is among them.
fn ended(child: Pid) -> Option<u8> {
    loop {
        let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            Ok(_) | Err(_) => continue,
        };
        if pid == child {
            return Some(u8::try_from(code).unwrap_or(1));
        }
    }
}

/// Becomes `command`; returns only if it can't.
pub fn become_it(command: &mut Command) -> Failure {
    let error = command.exec();
    Failure::Refused(format!("cannot run `{}`: {error}", command.get_program().display()))
}
