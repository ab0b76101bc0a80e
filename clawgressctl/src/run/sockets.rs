//! Which sockets a governed command may have: only those that the hooks of its cgroup see when it makes
//! them, and none by another process or a terminal that does its work. Never decides where a socket may lead; that is
//! the kernel plane's.

use nix::libc;
use rustix::fs::{FileType, fstat};
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::failure::Failure;

/// Families that a command may open: those that the kernel plane judges, and those that don't leave the
/// machine but programs need (name services, interface lists).
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// Requests that put characters into a terminal's input, and that paste a console's selection (`asm-generic/ioctls.h`).
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541C;
/// Marks a call of the x32 ABI, which has the numbers of the 64-bit one otherwise.
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;

/// Refuses a command whose standard streams are network sockets: they were made outside of its cgroup,
/// where nothing judged them.
pub fn refuse_inherited() -> Result<(), Failure> {
    let streams = [
        ("input", fstat(std::io::stdin()), socket_domain(std::io::stdin())),
        ("output", fstat(std::io::stdout()), socket_domain(std::io::stdout())),
        ("error", fstat(std::io::stderr()), socket_domain(std::io::stderr())),
    ];
    for (name, stat, domain) in streams {
        // A stream that is closed leads nowhere.
        let Ok(stat) = stat else { continue };
        let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
        if is_socket && domain != Ok(AddressFamily::UNIX) {
            return Err(Failure::Refused(format!(
                "standard {name} is a network socket, which nothing would govern; give the command a pipe or a file"
            )));
        }
    }
    Ok(())
}

/// Takes the other families away from this thread, the only one, and all that comes after it: for good.
/// The kernel ends a program of another architecture, whose calls have other numbers.
pub fn restrict() -> Result<(), String> {
    let program = filter().map_err(|e| e.to_string())?;
    seccompiler::apply_filter(&program).map_err(|e| e.to_string())
}

/// An `ioctl` of this number: the kernel looks at 32 bits of it.
fn request(number: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, number)?])
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let other = FAMILIES.iter().map(|family| {
        let family = u64::from(family.unsigned_abs());
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    });
    let other = SeccompRule::new(other.collect::<Result<_, _>>()?)?;
    let calls = [
        (libc::SYS_socket, vec![other.clone()]),
        (libc::SYS_socketpair, vec![other]),
        // Its requests open sockets without the call that this filter sees.
        (libc::SYS_io_uring_setup, vec![]),
        // A process of the same user outside of the cgroup has other sockets: they can't be taken from it, nor
        // can it be made to use them.
        (libc::SYS_pidfd_getfd, vec![]),
        (libc::SYS_ptrace, vec![]),
        (libc::SYS_process_vm_writev, vec![]),
        (libc::SYS_process_vm_readv, vec![]),
        // Nor may it type into the terminal that it shares with who started it, who may be root.
        (libc::SYS_ioctl, vec![request(TIOCSTI)?, request(TIOCLINUX)?]),
    ];
    let mut rules = std::collections::BTreeMap::new();
    for (number, conditions) in calls {
        #[cfg(target_arch = "x86_64")]
        rules.insert(number | X32, conditions.clone());
        rules.insert(number, conditions);
    }
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, std::env::consts::ARCH.try_into()?)?;
    filter.try_into()
}
