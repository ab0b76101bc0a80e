//! Running things in the lab's hosts: commands, daemons, and closures.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::record::{Process, Record};
use super::{Host, Lab, RUN_TIME_MAX};

/// Longest output of a command that is kept, bytes.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;
/// How much of each log is shown when a test fails, bytes.
const LOG_TAIL_BYTES: i64 = 6_000;

/// What a command said.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A process that runs until it is told not to.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
    /// Dropping it leaves the process alone.
    kept: bool,
}

impl Output {
    /// Whether it succeeded.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Itself, if it succeeded.
    ///
    /// # Errors
    /// If not, with all it said.
    pub fn check(self) -> anyhow::Result<Output> {
        ensure!(
            self.ok(),
            "`{}` ended with {:?}\nstdout: {}\nstderr: {}",
            self.command,
            self.code,
            self.stdout.trim(),
            self.stderr.trim()
        );
        Ok(self)
    }
}

impl Lab {
    /// A command in `host`: its network, and a private mount namespace with its `resolv.conf`.
    pub fn command<S: AsRef<OsStr>>(&self, host: Host, argv: &[S]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace(host)))
            .args(["unshare", "--mount", "--propagation", "private", "sh", "-c"])
            .arg("mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"")
            .arg(self.resolver_file())
            .args(argv)
            .env("NO_PROXY", "")
            .env_remove("NO_PROXY");
        // What the caller's shell says about proxies must not reach the clients.
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs a command in `host` to its end.
    ///
    /// # Errors
    /// If it can't be started, or doesn't end within [`RUN_TIME_MAX`].
    pub fn run<S: AsRef<OsStr>>(&self, host: Host, argv: &[S]) -> anyhow::Result<Output> {
        finish(&mut self.command(host, argv), RUN_TIME_MAX)
    }

    /// Starts a daemon in `host`; its output goes to `logs/NAME.log` in the lab's directory.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn spawn<S: AsRef<OsStr>>(&self, host: Host, name: &str, argv: &[S]) -> anyhow::Result<Daemon> {
        let mut command = Command::new("setpriv");
        if !self.record.kept {
            // Should this process be killed, nothing of the lab goes on running.
            command.args(["--pdeathsig", "KILL"]);
        }
        let inner = self.command(host, argv);
        command.arg(inner.get_program()).args(inner.get_args());
        for (variable, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(variable, value),
                None => command.env_remove(variable),
            };
        }
        let logs = self.dir().join("logs");
        fs::create_dir_all(&logs)?;
        let log = logs.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start `{name}`"))?;
        let daemon = Daemon { name: name.to_owned(), log, child, kept: self.record.kept };
        Record::add(self.name(), Some(Process::of(daemon.pid())?), None)?;
        Ok(daemon)
    }

    /// Runs `work` in a thread of its own inside `host`'s network. Sockets it makes stay there.
    ///
    /// # Errors
    /// If the namespace can't be entered, or `work` panics.
    pub fn within<T: Send + 'static>(
        &self,
        host: Host,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let path = format!("/run/netns/{}", self.namespace(host));
        let namespace = File::open(&path).with_context(|| format!("cannot open `{path}`"))?;
        let thread = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
            Ok(work())
        });
        thread.join().map_err(|_| anyhow::anyhow!("the work in `{}` panicked", host.name()))?
    }

    /// Has the kernel's record remember a directory to remove at the end.
    pub(super) fn remember_pin(&self, dir: PathBuf) -> anyhow::Result<()> {
        Record::add(self.name(), None, Some(dir))
    }
}

/// Runs a command to its end.
///
/// # Errors
/// If it can't be started, or doesn't end within `time`; then it is killed with all it started.
pub fn finish(command: &mut Command, time: Duration) -> anyhow::Result<Output> {
    let words: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    // What comes before is how it was brought into its host.
    let begin = words.iter().position(|w| w.ends_with("resolv.conf")).map_or(0, |n| n + 1);
    let line = words.get(begin..).unwrap_or_default().join(" ");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    let (stdout, stderr) = (drain(stdout), drain(stderr));
    let Some(status) = wait(&mut child, time)? else {
        let _ = killpg(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL);
        child.wait()?;
        bail!("`{line}` did not end within {time:?}");
    };
    let text = |thread: std::thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned()
    };
    Ok(Output { command: line, code: status.code(), stdout: text(stdout), stderr: text(stderr) })
}

fn drain(from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        bytes
    })
}

fn wait(child: &mut Child, time: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begun.elapsed() > time {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

// === impl Daemon ===

impl Daemon {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails if it has ended, with the end of its log.
    ///
    /// # Errors
    /// If it has ended.
    pub fn running(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("`{}` ended with {status}:\n{}", self.name, tail(&self.log));
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        nix::sys::signal::kill(Pid::from_raw(i32::try_from(self.pid())?), signal)
            .with_context(|| format!("cannot signal `{}`", self.name))
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().with_context(|| format!("cannot kill `{}`", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// If it does not end in `time`.
    pub fn stop(&mut self, time: Duration) -> anyhow::Result<ExitStatus> {
        self.stop_by(Signal::SIGTERM, time)
    }

    /// As [`Daemon::stop`], by another signal.
    ///
    /// # Errors
    /// If it does not end in `time`.
    pub fn stop_by(&mut self, signal: Signal, time: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(signal)?;
        let status = wait(&mut self.child, time)?;
        status.with_context(|| format!("`{}` does not end within {time:?}:\n{}", self.name, tail(&self.log)))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn tail(log: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(log) {
        let _ = file.seek(SeekFrom::End(-LOG_TAIL_BYTES)).or_else(|_| file.seek(SeekFrom::Start(0)));
        let _ = file.read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Where programs panicked, by their logs.
pub(super) fn panicked(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for log in fs::read_dir(dir.join("logs")).into_iter().flatten().filter_map(Result::ok) {
        let text = fs::read(log.path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().filter(|line| line.starts_with("thread '") && line.contains("panicked at"));
        found.extend(lines.map(|line| format!("{}: {line}", log.file_name().display())));
    }
    found
}

#[expect(clippy::print_stderr, reason = "a failed test shows what the processes said")]
pub(super) fn show_logs(dir: &Path) {
    for entry in fs::read_dir(dir.join("logs")).into_iter().flatten().filter_map(Result::ok) {
        eprintln!("--- {}\n{}", entry.path().display(), tail(&entry.path()));
    }
}
