//! What a governed command does before it is that command: goes into a PID namespace and a cgroup of its own, gives up
//! every privilege and every descriptor it was not meant to have, then becomes the command. No step may be skipped when
//! it fails.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;
use nix::unistd::{Uid, User, close, getresuid, setgid, setgroups, setuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::{sockets, space};
use crate::failure::Failure;

/// Highest number the kernel may have for a capability: the sets are 64 bits wide.
const CAPABILITIES_MAX: u32 = 64;
/// First descriptor that is not standard input, output or error.
const FIRST_OTHER: i32 = 3;

#[derive(Args)]
pub struct Arguments {
    /// Directory of the cgroup.
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// User to become.
    #[arg(long)]
    user: Option<String>,
    /// Among its own processes already.
    #[arg(long)]
    inside: bool,
    /// The command and its arguments.
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command, or starts it among processes of its own and ends as it does.
pub fn start(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Some((program, rest)) = arguments.command.split_first() else {
        return Err(Failure::Refused("no command was given".into()));
    };
    let mut command = Command::new(program);
    command.args(rest);
    let Some(cgroup) = &arguments.cgroup else {
        confine(arguments)?;
        return Err(space::become_it(&mut command));
    };
    // Whoever may enter without being root may leave in the same way.
    let user = arguments.user.as_deref().filter(|_| Uid::effective().is_root());
    let user = user.ok_or_else(|| sudo_needed(cgroup))?;
    if arguments.inside {
        space::furnish(&find(user)?)?;
        confine(arguments)?;
        return space::attend(&mut command);
    }
    let own =
        std::env::current_exe().map_err(|e| Failure::Refused(format!("cannot find this program: {e}")))?;
    space::leave()?;
    let mut first = Command::new(own);
    first.args(["run-child", "--inside", "--user", user, "--cgroup"]).arg(cgroup).arg("--");
    space::attend(first.args(&arguments.command))
}

/// The user, never root, which owns its cgroup's files and could walk out.
fn find(name: &str) -> Result<User, Failure> {
    let failed = |e: String| Failure::Refused(format!("cannot become user `{name}`: {e}"));
    let user = User::from_name(name).map_err(|e| failed(e.to_string()))?;
    let user = user.ok_or_else(|| failed("it does not exist".into()))?;
    if user.uid.is_root() { Err(root_refused(name)) } else { Ok(user) }
}

fn confine(arguments: &Arguments) -> Result<(), Failure> {
    let failed = |what: &'static str| move |e: String| Failure::Refused(format!("cannot {what}: {e}"));
    if let Some(path) = &arguments.cgroup {
        sockets::refuse_inherited()?;
        let user = arguments.user.as_deref().ok_or_else(|| sudo_needed(path))?;
        enter(path)?;
        drop_bounding_set().map_err(|e| failed("give up capabilities")(e.to_string()))?;
        assume(user)?;
        // Gone with root's user id already, unless the kernel's securebits say otherwise.
        clear_ambient_capability_set().map_err(|e| failed("give up capabilities")(e.to_string()))?;
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none).map_err(|e| failed("give up capabilities")(e.to_string()))?;
    }
    set_no_new_privs(true).map_err(|e| failed("set no_new_privs")(e.to_string()))?;
    close_others().map_err(|e| failed("close descriptors")(e.to_string()))?;
    if arguments.cgroup.is_some() {
        sockets::restrict().map_err(|e| failed("restrict sockets")(e))?;
    }
    Ok(())
}

/// Moving into a cgroup takes root.
pub fn sudo_needed(cgroup: &Path) -> Failure {
    Failure::Denied(format!(
        "you may not move a command into `{}`; use sudo (the command itself runs as you)",
        cgroup.display()
    ))
}

/// Root owns the cgroup's files and the pinned programs: even without a capability it could walk out.
pub fn root_refused(name: &str) -> Failure {
    Failure::Refused(format!(
        "the command would run as `{name}`, which is root and could leave its cgroup; name another user with --user"
    ))
}

/// A process that writes 0 moves itself (cgroups(7)).
fn enter(cgroup: &Path) -> Result<(), Failure> {
    let file = cgroup.join("cgroup.procs");
    fs::write(&file, "0").map_err(|e| match e.kind() {
        std::io::ErrorKind::PermissionDenied => sudo_needed(cgroup),
        _ => Failure::Refused(format!("cannot enter `{}`: {e}", cgroup.display())),
    })
}

fn drop_bounding_set() -> rustix::io::Result<()> {
    for number in 0..CAPABILITIES_MAX {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        // The first number that the kernel doesn't know ends its list.
        match capability_is_in_bounding_set(capability) {
            Err(_) => break,
            Ok(false) => {}
            Ok(true) => remove_capability_from_bounding_set(capability)?,
        }
    }
    Ok(())
}

/// Becomes `name` with its primary group alone: a supplementary one could be the administrators'.
fn assume(name: &str) -> Result<(), Failure> {
    let failed = |e: String| Failure::Refused(format!("cannot become user `{name}`: {e}"));
    let user = find(name)?;
    setgroups(&[])
        .and_then(|()| setgid(user.gid))
        .and_then(|()| setuid(user.uid))
        .map_err(|e| failed(e.to_string()))?;
    let now = getresuid().map_err(|e| failed(e.to_string()))?;
    if [now.real, now.effective, now.saved].iter().any(|uid| uid.is_root()) {
        return Err(root_refused(name));
    }
    Ok(())
}

/// An open socket from outside the cgroup would be a way around its programs.
fn close_others() -> std::io::Result<()> {
    let mut others = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|n| n.parse::<i32>().ok());
        others.extend(number.filter(|n| *n >= FIRST_OTHER));
    }
    for descriptor in others {
        // The directory's own descriptor is in its listing, and closed by now.
        let _ = close(descriptor);
    }
    Ok(())
}
