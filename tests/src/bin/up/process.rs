//! The gateway's processes: started apart and without what they don't need, stopped in order.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clawgress_e2e::lab::{Role, enter, mount_bpffs, privileges};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::layout::{Governs, Layout};

/// Longer than L7 gives the connections it drains.
const STOP_MAX: Duration = Duration::from_secs(40);

/// What runs, in the order it was started.
#[derive(Debug)]
pub struct Processes(Vec<(&'static str, Child)>);

impl Processes {
    /// Starts them. Should this process be killed, they end with it.
    ///
    /// # Errors
    /// If one can't be started.
    pub fn start(layout: &Layout) -> anyhow::Result<Processes> {
        let mut processes = Processes(Vec::new());
        if layout.governs != Governs::Nothing {
            mount_bpffs()?;
        }
        if layout.apart {
            for role in Role::ALL {
                let mut words = match (role, layout.proxy_cgroup()) {
                    (Role::L7, Some(cgroup)) => enter(&cgroup)?,
                    _ => Vec::new(),
                };
                words.extend(privileges(role, false));
                processes.launch(layout, role.name(), &words)?;
            }
        } else {
            let words = ["setpriv", "--no-new-privs", "--pdeathsig", "KILL"].map(str::to_owned);
            processes.launch(layout, "all", &words)?;
            processes.launch(layout, Role::L7.name(), &words)?;
        }
        Ok(processes)
    }

    fn launch(&mut self, layout: &Layout, name: &'static str, words: &[String]) -> anyhow::Result<()> {
        let (first, rest) = words.split_first().context("no command")?;
        let log = File::create(layout.logs().join(format!("{name}.log")))?;
        let mut command = Command::new(first);
        command.args(rest);
        if name == Role::L7.name() {
            command.arg(layout.program("clawgress-l7"));
        } else {
            command.arg(layout.program("clawgress-agent")).arg(name);
        }
        command.arg("--config").arg(layout.config());
        // Ctrl-C is for this process, which stops the others in order.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start `{name}`"))?;
        self.0.push((name, child));
        Ok(())
    }

    /// Fails if one of them has ended.
    ///
    /// # Errors
    /// If one of them has ended.
    pub fn running(&mut self) -> anyhow::Result<()> {
        for (name, child) in &mut self.0 {
            if let Some(status) = child.try_wait()? {
                bail!("`{name}` ended with {status}; its log says why");
            }
        }
        Ok(())
    }

    /// L7 first, which drains; then the roles it asks.
    ///
    /// # Errors
    /// If one of them does not end in time; it is killed then.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let mut late = Vec::new();
        for (name, child) in self.0.iter_mut().rev() {
            if child.try_wait()?.is_none() {
                kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
            }
            let begun = tokio::time::Instant::now();
            while child.try_wait()?.is_none() && begun.elapsed() < STOP_MAX {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if child.try_wait()?.is_none() {
                late.push(*name);
            }
        }
        if late.is_empty() { Ok(()) } else { bail!("killed, because they did not end: {}", late.join(", ")) }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for (_, child) in self.0.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
