//! `run`: one command as an agent. Its cgroup is governed by the kernel plane, and the proxy variables
//! lead it to the local proxy; the key in them counts only while this process lives.

pub mod child;
mod executable;
mod sockets;
mod space;

use std::env;
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};

use clap::Args;
use clawgress_api::RunSession;
use clawgress_api::identity::AgentId;
use clawgress_api::proto::{Empty, Name, NewRun};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tonic::Streaming;

use crate::agent::proxy_url;
use crate::ca;
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

/// Variables that lead to the proxy; programs differ in which spelling they read.
const PROXY_VARIABLES: [&str; 6] =
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
/// Who a command is when root runs it, did not get there by sudo, and names no user.
const NOBODY: &str = "nobody";

#[derive(Args)]
#[command(after_help = "\
The command is shown the system's certificates by the variables that curl, Python, Node, Go and git
read, and where TLS is read, the gateway's authority with them. Variables that are set already stay
as they are.")]
pub struct Arguments {
    /// The agent: `NAME` or `TENANT/NAME`.
    #[arg(long)]
    agent: AgentId,
    /// Where the node has no kernel plane, run the command all the same, led to the proxy by variables alone.
    #[arg(long)]
    proxy_only: bool,
    /// User the command runs as, never root; else who called sudo, else `nobody`. It gets that user's
    /// primary group and no other.
    #[arg(long)]
    user: Option<String>,
    /// Gives Java a store of certificates with the one by which TLS is read, which takes a second.
    #[arg(long)]
    java: bool,
    /// The command and its arguments.
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Files of certificates for the command, which end with it.
struct Trust {
    variables: Vec<(&'static str, String)>,
    _directory: Option<TempDir>,
}

// === impl Trust ===

impl Trust {
    async fn new(client: &Client, java: bool) -> Result<Self, Failure> {
        let Some(status) = ca::authority(client).await? else {
            return Ok(Trust { variables: ca::system_variables(), _directory: None });
        };
        let directory = tempfile::Builder::new().prefix("clawgress-ca-").tempdir();
        let directory = directory
            .map_err(|e| Failure::Refused(format!("cannot make a directory for certificates: {e}")))?;
        let mut variables = ca::variables(directory.path(), ca::trusted(&status))?;
        if java {
            variables.extend(ca::java_variable(directory.path())?);
        }
        Ok(Trust { variables, _directory: Some(directory) })
    }
}

/// Runs the command; its exit code is this one's.
pub async fn run(client: &Client, arguments: Arguments) -> Result<ExitCode, Failure> {
    let mut admin = client.connect().await?;
    let executable = arguments.command.first().and_then(|program| executable::hash(program));
    let new = NewRun { name: arguments.agent.to_string(), executable: executable.unwrap_or_default() };
    let answer = admin.open_run(new).await;
    let session: RunSession = client.document(answer)?;
    let name = Name { name: session.name.clone() };
    // Of the command until it ends.
    let trust = Trust::new(client, arguments.java).await?;
    // Held until it is closed: the agent closes by itself what nobody holds.
    let mut hold = client.answer(admin.hold_run(name.clone()).await)?;
    let ended = governed(&mut hold, &arguments, &session, &trust).await;
    let closed = client.answer(admin.close_run(name).await);
    drop(hold);
    let status = ended?;
    if let Err(failure) = closed {
        // The command is over and its key dies with our hold on the run: nothing is left open.
        output::complain(&format!("the run was not closed properly: {failure}"));
    }
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

async fn governed(
    hold: &mut Streaming<Empty>,
    arguments: &Arguments,
    session: &RunSession,
    trust: &Trust,
) -> Result<ExitStatus, Failure> {
    if session.cgroup_path.is_none() {
        if !arguments.proxy_only {
            return Err(Failure::Refused(format!(
                "nothing would hold the command: {}; give --proxy-only to run it all the same",
                session.absent.join("; ")
            )));
        }
        for absent in &session.absent {
            output::note(&format!("not enforced: {}", output::clean(absent)));
        }
    }
    let mut child = spawn(arguments, session, trust)?;
    let mut held = true;
    let signals = |kind| signal(kind).map_err(|e| Failure::Refused(format!("cannot handle signals: {e}")));
    let mut interrupt = signals(SignalKind::interrupt())?;
    let mut terminate = signals(SignalKind::terminate())?;
    let mut hangup = signals(SignalKind::hangup())?;
    // From a terminal, Ctrl-C reaches the command by itself: sent on as well, it would count twice.
    let from_terminal = std::io::stdin().is_terminal();
    loop {
        tokio::select! {
            status = child.wait() => {
                return status.map_err(|e| Failure::Refused(format!("cannot wait for the command: {e}")));
            }
            _ = interrupt.recv() => if !from_terminal { pass_on(&child, Signal::SIGINT) },
            _ = terminate.recv() => pass_on(&child, Signal::SIGTERM),
            _ = hangup.recv() => pass_on(&child, Signal::SIGHUP),
            _ = hold.message(), if held => {
                held = false;
                output::complain("the agent has ended this run: the command's key counts no more");
            }
        }
    }
}

fn pass_on(child: &Child, signal: Signal) {
    // The child was not waited for yet, so its id is still its own.
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        let _ = kill(Pid::from_raw(id), signal);
    }
}

fn spawn(arguments: &Arguments, session: &RunSession, trust: &Trust) -> Result<Child, Failure> {
    let own = env::current_exe().map_err(|e| Failure::Refused(format!("cannot find this program: {e}")))?;
    let mut command = Command::new(own);
    command.arg("run-child");
    if let Some(path) = &session.cgroup_path {
        command.arg("--cgroup").arg(path);
        if !Uid::effective().is_root() {
            return Err(child::sudo_needed(Path::new(path)));
        }
        let user = user(arguments.user.as_deref())?;
        output::note(&format!("the command runs as `{}`; choose with --user", user.name));
        command.arg("--user").arg(&user.name);
        command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
    }
    command.arg("--").args(&arguments.command);
    let proxy = proxy_url(&session.agent, &session.api_key, &session.proxy.to_string());
    for variable in PROXY_VARIABLES {
        command.env(variable, &proxy);
    }
    for variable in ["NO_PROXY", "no_proxy"] {
        command.env(variable, "");
    }
    for (variable, file) in &trust.variables {
        if env::var_os(variable).is_none() {
            command.env(variable, file);
        }
    }
    command.spawn().map_err(|e| Failure::Refused(format!("cannot start the command: {e}")))
}

/// The user a command of root's runs as: never root, which owns its cgroup's files and could walk out.
fn user(named: Option<&str>) -> Result<User, Failure> {
    if let Some(name) = named {
        let user = find(name)?;
        return if user.uid.is_root() { Err(child::root_refused(name)) } else { Ok(user) };
    }
    if let Ok(name) = env::var("SUDO_USER") {
        let caller = find(&name)?;
        if !caller.uid.is_root() {
            return Ok(caller);
        }
    }
    find(NOBODY)
}

fn find(name: &str) -> Result<User, Failure> {
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(Failure::Refused(format!("there is no user `{name}`; choose one with --user"))),
        Err(error) => Err(Failure::Refused(format!("cannot look up user `{name}`: {error}"))),
    }
}
