//! `policy replay`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use clawgress_api::identity::{Agent, AgentId, AgentState};
use clawgress_api::{AgentRef, AuditQuery, AuditRecord, Plane, RecordKind, Verdict};
use clawgress_policy::study::replay::{Needs, Recorded, Replayed};
use clawgress_policy::{PolicySet, Surroundings};
use serde::Serialize;

use super::explain::parsed;
use super::{agents, named};
use crate::client::{Client, parse, request};
use crate::failure::Failure;
use crate::output::{self, Output};

/// Most kinds of change that are shown: those of the most records come first.
const CHANGES_SHOWN_MAX: usize = 200;

#[derive(Args)]
pub struct Arguments {
    /// Number of a revision, or a policy file or directory.
    policy: String,
    /// Named sets of the policy file.
    #[arg(long, value_name = "FILE")]
    sets: Option<PathBuf>,
    /// Only this agent.
    #[arg(long)]
    agent: Option<String>,
    /// Not before: a time such as `2026-11-22T14:00Z`, or an age such as `15m`.
    #[arg(long, value_parser = crate::time::past)]
    since: Option<jiff::Timestamp>,
    /// At most this many records, the newest.
    #[arg(long, short = 'n', default_value_t = 10_000)]
    limit: u64,
}

/// What came of it.
#[derive(Default, Serialize)]
struct Report {
    /// Decisions that were asked again.
    decisions: u64,
    /// Those that stay the same.
    same: u64,
    /// Those that were not policy's doing.
    apart: u64,
    /// How many can't be told, by what their records don't hold.
    unknown: BTreeMap<String, u64>,
    /// Those that would change.
    changed: Vec<Changed>,
}

/// Decisions that would change alike.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Changed {
    agent: String,
    action: String,
    destination: String,
    before: String,
    after: String,
    /// What determined it then.
    policies_before: Vec<String>,
    /// What would determine it.
    policies_after: Vec<String>,
    count: u64,
}

/// Replays.
pub async fn run(client: &Client, output: Output, arguments: Arguments) -> Result<(), Failure> {
    let written = named(client, &arguments.policy, arguments.sets.as_ref()).await?;
    let set = parsed(&written, &Surroundings::default())?;
    let needs = Needs::of(&written.bundle.text);
    let registered: BTreeMap<AgentId, Agent> =
        agents(client).await?.into_iter().map(|agent| (agent.id.clone(), agent)).collect();
    let query = AuditQuery {
        agent: arguments.agent,
        kind: Some(RecordKind::Decision),
        since: arguments.since,
        limit: Some(arguments.limit),
        ..AuditQuery::default()
    };
    let mut admin = client.connect().await?;
    let mut records = client.answer(admin.search_audit(request(&query)?).await)?;
    let (mut report, mut changes) = (Report::default(), BTreeMap::<Changed, u64>::new());
    loop {
        let next = records.message().await.map_err(|s| Failure::call(client.socket(), &s))?;
        let Some(document) = next else { break };
        let record: AuditRecord = parse(&document.json)?;
        report.add(&record, &set, needs, &registered, &mut changes);
    }
    report.changed = changes.into_iter().map(|(change, count)| Changed { count, ..change }).collect();
    report.changed.sort_by_key(|change| std::cmp::Reverse(change.count));
    match output {
        Output::Json => output::json(&report),
        Output::Table => print(&report),
    }
}

fn print(report: &Report) -> Result<(), Failure> {
    let cannot: u64 = report.unknown.values().sum();
    let changed: u64 = report.changed.iter().map(|change| change.count).sum();
    output::line(&format!(
        "{} decisions: {} the same, {changed} changed, {cannot} can't be told, {} not by policy",
        report.decisions, report.same, report.apart
    ))?;
    for (why, count) in &report.unknown {
        output::line(&format!("  {count} records don't hold {why}"))?;
    }
    if report.changed.is_empty() {
        return Ok(());
    }
    let row = |c: &Changed| {
        let by =
            |ids: &[String]| if ids.is_empty() { String::new() } else { format!(" ({})", ids.join(", ")) };
        vec![
            c.agent.clone(),
            c.action.clone(),
            c.destination.clone(),
            format!("{}{}", c.before, by(&c.policies_before)),
            format!("{}{}", c.after, by(&c.policies_after)),
            c.count.to_string(),
        ]
    };
    output::line("")?;
    let rows: Vec<Vec<String>> = report.changed.iter().take(CHANGES_SHOWN_MAX).map(row).collect();
    output::table(&["AGENT", "ACTION", "DESTINATION", "BEFORE", "AFTER", "COUNT"], &rows)?;
    if report.changed.len() > CHANGES_SHOWN_MAX {
        output::note(&format!("note: {} more; see --output json", report.changed.len() - CHANGES_SHOWN_MAX));
    }
    Ok(())
}

// === impl Report ===

impl Report {
    fn add(
        &mut self,
        record: &AuditRecord,
        set: &PolicySet,
        needs: Needs,
        registered: &BTreeMap<AgentId, Agent>,
        changes: &mut BTreeMap<Changed, u64>,
    ) {
        let (Some(who), Some(verdict)) = (&record.agent, record.verdict) else { return };
        // One record may stand for many packets of one decision.
        self.decisions += 1;
        let Some((agent, knows_labels)) = then(who, registered) else {
            self.unknown("an agent's valid name");
            return;
        };
        let to = &record.destination;
        let recorded = Recorded {
            agent: &agent,
            knows_labels,
            by_kernel: record.plane == Plane::Kernel,
            action: record.action.as_deref().unwrap_or_default(),
            verdict: match (verdict, record.reason) {
                (Verdict::Allow, _) => Ok(()),
                (Verdict::Deny, reason) => Err(reason.map_or("", |reason| reason.name())),
            },
            host: to.host.as_deref(),
            ip: to.ip,
            port: to.port,
            protocol: to.protocol.as_deref(),
            method: to.method.as_deref(),
            path: to.path.as_deref(),
            alpn: None,
            ja4: record.fingerprint.as_ref().and_then(|f| f.ja4.as_deref()),
        };
        match recorded.replay(&set.at(record.time.as_millisecond()), needs) {
            Replayed::Same => self.same += 1,
            Replayed::Apart => self.apart += 1,
            Replayed::Unknown { why } => self.unknown(&why),
            Replayed::Changed { before, after, policies } => {
                let change = Changed {
                    agent: agent.id.to_string(),
                    action: recorded.action.to_owned(),
                    destination: destination(record),
                    before,
                    after,
                    policies_before: record.policies.clone(),
                    policies_after: policies,
                    count: 0,
                };
                *changes.entry(change).or_default() += 1;
            }
        }
    }

    fn unknown(&mut self, why: &str) {
        *self.unknown.entry(why.to_owned()).or_default() += 1;
    }
}

fn destination(record: &AuditRecord) -> String {
    let to = &record.destination;
    let host = to.host.clone().or(to.ip.map(|ip| ip.to_string())).unwrap_or_default();
    let port = to.port.map(|port| format!(":{port}")).unwrap_or_default();
    let request = match (&to.method, &to.path) {
        (Some(method), Some(path)) => format!(" {method} {path}"),
        _ => String::new(),
    };
    format!("{host}{port}{request}")
}

/// The agent as it was when it was recorded, and whether its labels are known: a record doesn't hold them.
fn then(who: &AgentRef, registered: &BTreeMap<AgentId, Agent>) -> Option<(Agent, bool)> {
    let id = AgentId::new(&who.tenant, &who.agent).ok()?;
    let now = registered.get(&id);
    let agent = Agent {
        index: now.map_or(0, |agent| agent.index),
        id,
        team: who.team.clone(),
        project: who.project.clone(),
        environment: who.environment.clone(),
        labels: now.map(|agent| agent.labels.clone()).unwrap_or_default(),
        state: AgentState::Active,
        sources: Vec::new(),
    };
    Some((agent, false))
}
