//! How a command fails: one message with a remedy, one exit code.

use std::error::Error as _;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use tonic::{Code, Status};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Refused or failed.
    #[error("{0}")]
    Refused(String),
    /// The policy that was asked denies; its answer is printed.
    #[error("{0}")]
    WouldDeny(String),
    /// The policy that was asked denies nothing of what it was asked, and more would have to be; its answer is printed.
    #[error("{0}")]
    NotKnown(String),
    /// Done, and not every plane runs it; its answer is printed.
    #[error("{0}")]
    Behind(String),
    /// The agent can't be reached.
    #[error("{0}")]
    Unreachable(String),
    /// This user may not.
    #[error("{0}")]
    Denied(String),
}

// === impl Failure ===

impl Failure {
    /// The documented exit code.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Refused(_) => 1,
            Failure::Unreachable(_) => 3,
            Failure::Denied(_) => 4,
            Failure::WouldDeny(_) => 5,
            Failure::NotKnown(_) => 6,
            Failure::Behind(_) => 7,
        })
    }

    /// The socket can't be connected to.
    pub fn connect(socket: &Path, error: &io::Error) -> Self {
        let path = socket.display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => Failure::denied(socket),
            io::ErrorKind::NotFound => Failure::Unreachable(format!(
                "there is no agent at `{path}`; start `clawgress-agent`, or name its socket with --socket"
            )),
            _ => Failure::Unreachable(format!(
                "the agent at `{path}` can't be reached ({error}); is `clawgress-agent control` running?"
            )),
        }
    }

    /// This user may not use the socket.
    pub fn denied(socket: &Path) -> Self {
        Failure::Denied(format!(
            "you may not administer the agent at `{}`; use sudo, or let an administrator add you to the group `clawgress-admin`",
            socket.display()
        ))
    }

    /// What a call came back with.
    pub fn call(socket: &Path, status: &Status) -> Self {
        match status.code() {
            Code::PermissionDenied => Failure::denied(socket),
            // A status made on this side has a source: the connection broke.
            _ if status.source().is_some() => Failure::Unreachable(format!(
                "the agent at `{}` broke off: {}; is `clawgress-agent control` still running?",
                socket.display(),
                status.message()
            )),
            _ => Failure::Refused(status.message().to_owned()),
        }
    }
}
