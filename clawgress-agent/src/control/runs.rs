//! Runs of local commands: a key and, in `kernel` mode, a cgroup that live as long as somebody holds the
//! run. What nobody holds is ended: after a crash of the command line, at a restart of this role, by age.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use clawgress_api::RunSession;
use clawgress_api::clock::Clock;
use clawgress_api::config::DatapathMode;
use clawgress_identity::AgentId;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::api_keys::{Made, Terms};
use super::govern::Governor;
use super::kernel::Link;
use super::keyring::Keyring;
use super::model::{Refusal, Run};
use super::observe::Observations;
use super::prepare::Manner;
use super::quarantine::Quarantines;

/// Longest life of a run; its key has this expiry, whatever else fails.
const RUN_TIME_MAX: SignedDuration = SignedDuration::from_hours(24);
/// Longest time between opening a run and holding it.
const HOLD_TIME_MAX: SignedDuration = SignedDuration::from_secs(30);
/// How often ended and forgotten runs are looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(5);

/// The runs.
#[derive(Debug)]
pub(super) struct Runs {
    pub governor: Arc<Governor>,
    pub quarantines: Arc<Quarantines>,
    pub link: Arc<Link>,
    pub keyring: Keyring,
    pub observations: Arc<Observations>,
    pub clock: Arc<dyn Clock>,
    pub held: Mutex<BTreeSet<String>>,
    pub ended: Notify,
}

// === impl Runs ===

impl Runs {
    /// Opens a run that begins with an executable of this hash, as far as that is known; it must be held soon.
    pub(super) async fn open(
        &self,
        agent: &AgentId,
        executable: Option<&str>,
        by: &str,
    ) -> Result<RunSession, Refusal> {
        let config = &self.governor.config;
        let proxy = config.proxy.listen.iter().find(|a| a.ip().is_loopback()).or(config.proxy.listen.first());
        let mut proxy = *proxy.ok_or_else(|| {
            Refusal::Unsupported("this node has no explicit proxy; set `listen` in [proxy]".into())
        })?;
        if proxy.ip().is_unspecified() {
            proxy.set_ip(match proxy.ip() {
                std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        let live = self.governor.live();
        live.model.may_run(agent)?;
        if self.quarantines.live().of(live.model.agent(agent)?).is_some() {
            return Err(Refusal::Unsupported(format!("agent `{agent}` is quarantined; release it first")));
        }
        let index = live.model.agent(agent)?.index;
        let key = self.keyring.make().await?;
        let name = format!("run-{}-{}", agent.name(), key.id);
        let workload = match config.datapath.mode {
            DatapathMode::Kernel => Some(self.link.open_workload(index, &name).await?),
            DatapathMode::None => None,
        };
        let opened = self.clock.now();
        let run = Run {
            name: name.clone(),
            agent: agent.clone(),
            key: key.id.clone(),
            executable: executable.map(str::to_owned),
            opened,
            workload: workload.clone(),
            closed: false,
        };
        let made = Made { id: key.id.clone(), mac: key.mac, at_s: opened.as_second() };
        let expires_at_s = Some(made.at_s + RUN_TIME_MAX.as_secs());
        let terms = Terms { not_before_s: None, expires_at_s };
        let runs = executable.map(|hash| format!(", with executable `{hash}`")).unwrap_or_default();
        let place = workload.as_ref().map(|w| format!(", in cgroup `{}`", w.path)).unwrap_or_default();
        let detail = format!("run `{name}` of agent `{agent}` opened by {by}{runs}{place}");
        let change = self.governor.change(
            |()| detail.clone(),
            |draft| {
                draft.put_key(&made, agent, terms)?;
                draft.open_run(run.clone())
            },
        );
        if let Err(refusal) = change.await {
            if let Some(workload) = workload
                && let Err(error) = self.link.close_workload(workload).await
            {
                tracing::error!(%error, run = name, "cannot remove the cgroup of a run that was not opened");
            }
            return Err(refusal);
        }
        if let (Some(hash), Ok(agent)) = (executable, live.model.agent(agent)) {
            self.observations.runs(agent, hash);
        }
        let absent = match config.datapath.mode {
            DatapathMode::Kernel => Vec::new(),
            DatapathMode::None => vec![
                "the datapath is `none`: a command that ignores the proxy variables reaches the network ungoverned".into(),
            ],
        };
        let cgroup_path = workload.map(|w| w.path);
        Ok(RunSession { name, agent: agent.clone(), cgroup_path, api_key: key.text, proxy, absent })
    }

    /// Ends a run.
    pub(super) async fn close(&self, name: &str, why: &str) -> Result<(), Refusal> {
        let detail = format!("run `{name}` closed: {why}");
        // Taken away also while nothing can be recorded: its key would count on.
        self.governor.withdraw(|()| detail.clone(), |draft| draft.close_run(name)).await?;
        self.ended.notify_one();
        Ok(())
    }

    /// Ends whatever an earlier life of this role left open.
    pub(super) async fn close_orphans(&self) -> Result<(), Refusal> {
        let open = |r: &Run| !r.closed;
        if !self.governor.live().model.runs.values().any(open) {
            return Ok(());
        }
        let edit = |draft: &mut super::model::Draft| {
            let names: Vec<String> =
                draft.model().runs.values().filter(|r| open(r)).map(|r| r.name.clone()).collect();
            for name in &names {
                draft.close_run(name)?;
            }
            Ok(names)
        };
        let detail =
            |names: &Vec<String>| format!("runs closed at the start of control: {}", names.join(", "));
        self.governor.withdraw(detail, edit).await.map(drop)
    }

    /// Ends forgotten runs and removes what is left of ended ones, until `stop`.
    pub(super) async fn sweep(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.ended.notified() => {}
                () = tokio::time::sleep(SWEEP_PERIOD) => {}
            }
            let live = self.governor.live();
            for run in live.model.runs.values() {
                if let Err(error) = self.tend(run, self.clock.now()).await {
                    tracing::warn!(%error, run = run.name, "cannot clean up after a run; trying again");
                }
            }
        }
    }

    async fn tend(&self, run: &Run, now: Timestamp) -> anyhow::Result<()> {
        let age = now.duration_since(run.opened);
        if !run.closed {
            if age > RUN_TIME_MAX {
                self.close(&run.name, "it is too old").await?;
            } else if age > HOLD_TIME_MAX && !self.held.lock().contains(&run.name) {
                self.close(&run.name, "nobody holds it").await?;
            }
            return Ok(());
        }
        if let Some(workload) = &run.workload
            && self.governor.config.datapath.mode == DatapathMode::Kernel
        {
            self.link.close_workload(workload.clone()).await?;
        }
        let detail = format!("cgroup of run `{}` removed", run.name);
        self.governor
            .change_by(Manner::Forced, |()| detail.clone(), |draft| draft.forget_run(&run.name))
            .await?;
        Ok(())
    }
}
