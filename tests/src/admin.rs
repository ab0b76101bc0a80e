//! A gateway as an administrator sees it: everything goes through `clawgressctl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clawgress_api::{AuditQuery, AuditRecord, CreatedAgent, RecordKind, Status, Verdict};
use clawgress_identity::Agent;

use crate::lab::{Output, finish};

/// For a command: to take thousands of policies takes a debug build a while, on a machine that does other things besides.
const TIME_MAX: Duration = Duration::from_secs(120);

/// Records asked for at once: more than any test makes.
const RECORDS_MAX: u64 = 10_000;

/// Drives one gateway.
#[derive(Clone, Debug)]
pub struct Admin {
    /// `clawgressctl`.
    pub program: PathBuf,
    /// The control role's socket for administrators.
    pub socket: PathBuf,
    /// The gateway's configuration.
    pub config: PathBuf,
}

impl Admin {
    /// `clawgressctl` with these arguments.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--socket").arg(&self.socket).args(args);
        // It tells which user may answer there.
        command.env("CLAWGRESS_CONFIG", &self.config);
        command
    }

    /// Runs `clawgressctl`. Its own failure is in the output.
    ///
    /// # Errors
    /// If it can't be started or hangs.
    pub fn ctl(&self, args: &[&str]) -> anyhow::Result<Output> {
        finish(&mut self.command(args), TIME_MAX)
    }

    /// The node's state.
    ///
    /// # Errors
    /// If it can't be asked.
    pub fn status(&self) -> anyhow::Result<Status> {
        let output = self.ctl(&["status", "--output", "json"])?.check()?;
        serde_json::from_str(&output.stdout).with_context(|| format!("not a status: {output:?}"))
    }

    /// Succeeds when both planes run the latest generation.
    ///
    /// # Errors
    /// If they don't, yet.
    pub fn agreed(&self) -> anyhow::Result<Status> {
        let status = self.status()?;
        let kernel = status.datapath.as_ref().is_some_and(|d| d.generation == status.generation);
        let l7 = status.l7.iter().any(|w| w.generation == status.generation && w.error.is_none());
        ensure!(kernel && l7, "the planes don't agree yet: {status:?}");
        Ok(status)
    }

    /// The agents.
    ///
    /// # Errors
    /// If they can't be had.
    pub fn agents(&self) -> anyhow::Result<Vec<Agent>> {
        let output = self.ctl(&["agent", "list", "--output", "json"])?.check()?;
        serde_json::from_str(&output.stdout).context("not a list of agents")
    }

    /// Creates an agent with a key; gives the key.
    ///
    /// # Errors
    /// If it is refused.
    pub fn create_agent(&self, id: &str, team: &str, sources: &[String]) -> anyhow::Result<String> {
        let mut args = vec!["agent", "create", id, "--team", team, "--output", "json"];
        for source in sources {
            args.extend(["--source", source]);
        }
        let output = self.ctl(&args)?.check()?;
        let created: CreatedAgent = serde_json::from_str(&output.stdout)?;
        created.api_key.context("no key was issued")
    }

    /// Applies a policy file and a file of named sets.
    ///
    /// # Errors
    /// If it can't be run; a refusal is in the output.
    pub fn apply(&self, policy: &Path, sets: &Path, message: &str) -> anyhow::Result<Output> {
        let (policy, sets) = (policy.to_string_lossy(), sets.to_string_lossy());
        self.ctl(&["policy", "apply", &policy, "--sets", &sets, "--message", message])
    }

    /// As [`Admin::apply`], of texts, by way of files in `dir`.
    ///
    /// # Errors
    /// As [`Admin::apply`].
    pub fn apply_text(&self, dir: &Path, policy: &str, sets: &str) -> anyhow::Result<Output> {
        let (policy_file, sets_file) = (dir.join("policy.cedar"), dir.join("sets.toml"));
        fs::write(&policy_file, policy)?;
        fs::write(&sets_file, sets)?;
        self.apply(&policy_file, &sets_file, "by the lab")
    }

    /// Audit records that match, the oldest first.
    ///
    /// # Errors
    /// If they can't be had.
    pub fn audit(&self, query: &AuditQuery) -> anyhow::Result<Vec<AuditRecord>> {
        let limit = query.limit.unwrap_or(RECORDS_MAX).to_string();
        let mut args = vec!["audit".to_owned(), "search".to_owned(), "--output=json".to_owned()];
        let mut option = |name: &str, value: Option<String>| {
            args.extend(value.map(|value| format!("--{name}={value}")));
        };
        option("limit", Some(limit));
        option("agent", query.agent.clone());
        option("reason", query.reason.clone());
        option("destination", query.destination.clone());
        option("since", query.since.map(|t| t.to_string()));
        option("until", query.until.map(|t| t.to_string()));
        let verdict = |v| if v == Verdict::Allow { "allow" } else { "deny" };
        option("verdict", query.verdict.map(|v| verdict(v).to_owned()));
        let kind = |k| match k {
            RecordKind::Decision => "decision",
            RecordKind::Outcome => "outcome",
            RecordKind::Gap => "gap",
            RecordKind::Change => "change",
        };
        option("kind", query.kind.map(|k| kind(k).to_owned()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = self.ctl(&args)?.check()?;
        let lines = output.stdout.lines().filter(|l| !l.trim().is_empty());
        lines.map(|l| serde_json::from_str(l).with_context(|| format!("not a record: {l}"))).collect()
    }
}
