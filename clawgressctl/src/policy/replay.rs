//! `policy replay`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use clawgress_api::identity::{Agent, AgentId, AgentState, PolicyOwner};
use clawgress_api::{
    AgentRef, Attributes, AuditQuery, AuditRecord, EffectRef, Plane, PolicySurroundings, RecordKind, Verdict,
};
use clawgress_policy::fingerprint::Fingerprints;
use clawgress_policy::history::History;
use clawgress_policy::study::replay::{Content, Known, Needs, Parent, Recorded, Replayed};
use clawgress_policy::{PolicySet, Surroundings};
use serde::Serialize;

use super::around::Around;
use super::{agents, named, node_surroundings};
use crate::client::{Client, parse, request};
use crate::failure::Failure;
use crate::output::{self, Output};

use held::Outcome;

mod held;

/// Most kinds of change that are shown: those of the most records come first.
const CHANGES_SHOWN_MAX: usize = 200;
/// Most records that control searches for at once (`SEARCH_RECORDS_MAX` of its log).
const SEARCH_RECORDS_MAX: u64 = 50_000;

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

/// How long tables of a moment that is over may count in the kernel plane, and as long again for what its records tell
/// later (`LATE_TIME_MAX` of the datapath role).
const KERNEL_LATE_MS_MAX: i64 = 2 * 60_000;

/// What the policy rests on at the node.
type Node = PolicySurroundings<Surroundings>;

/// What decides for the agents of one tenant.
struct Judge {
    set: PolicySet,
    needs: Needs,
    node: Node,
}

/// What came of it.
#[derive(Default, Serialize)]
struct Report {
    /// Decisions that were asked again.
    decisions: u64,
    /// Those that stay the same.
    same: u64,
    /// Those that stay the same, by other policies.
    otherwise: u64,
    /// Those that were not policy's doing.
    apart: u64,
    /// How many are undecidable, by what their records don't hold.
    #[serde(rename = "undecidable")]
    unknown: BTreeMap<String, u64>,
    /// Those that would change.
    changed: Vec<Changed>,
    /// Those that stay allowed, and would be obliged to something else.
    obliged: Vec<Obliged>,
    /// Records that were not asked, since they are older than so many as were to be.
    left_out: u64,
    /// Whether there may be more of those than could be counted.
    left_out_is_least: bool,
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

/// Decisions that would be obliged to something else alike.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Obliged {
    agent: String,
    action: String,
    destination: String,
    /// What they were obliged to alone: `EFFECT by POLICY`.
    before: Vec<String>,
    /// What they would be obliged to alone.
    after: Vec<String>,
    count: u64,
}

/// What would change, by how, and how often.
#[derive(Default)]
struct Changes {
    changed: BTreeMap<Changed, u64>,
    obliged: BTreeMap<Obliged, u64>,
}

/// Replays.
pub async fn run(
    client: &Client,
    output: Output,
    owner: &PolicyOwner,
    arguments: Arguments,
) -> Result<(), Failure> {
    let written = named(client, owner, &arguments.policy, arguments.sets.as_ref()).await?;
    let around = Around::new(client, written).await?;
    let mut judges = BTreeMap::new();
    let registered: BTreeMap<AgentId, Agent> =
        agents(client).await?.into_iter().map(|agent| (agent.id.clone(), agent)).collect();
    let query = AuditQuery {
        agent: arguments.agent,
        kind: Some(RecordKind::Decision),
        since: arguments.since,
        limit: Some(arguments.limit),
        ..AuditQuery::default()
    };
    let outcomes = outcomes(client, &query).await?;
    let mut admin = client.connect().await?;
    let mut records = client.answer(admin.search_audit(request(&query)?).await)?;
    let (mut report, mut changes) = (Report::default(), Changes::default());
    let mut asked = 0;
    loop {
        let next = records.message().await.map_err(|s| Failure::call(client.socket(), &s))?;
        let Some(document) = next else { break };
        asked += 1;
        let record: AuditRecord = parse(&document.json)?;
        let Some(who) = &record.agent else { continue };
        // A tenant's policy is asked about its own agents alone.
        if owner.tenant().is_some_and(|tenant| tenant != who.tenant) {
            continue;
        }
        if !judges.contains_key(&who.tenant) {
            judges.insert(who.tenant.clone(), Judge::new(client, &around, &who.tenant).await?);
        }
        let Some(judge) = judges.get(&who.tenant) else { continue };
        let outcome = outcomes.get(&held::key(&record));
        report.add((&record, outcome), judge, &registered, &mut changes);
    }
    if asked >= arguments.limit {
        // As many as may be counted at once.
        let all = count(client, &AuditQuery { limit: Some(SEARCH_RECORDS_MAX), ..query }).await?;
        (report.left_out, report.left_out_is_least) = (all.saturating_sub(asked), all >= SEARCH_RECORDS_MAX);
    }
    report.close(changes);
    match output {
        Output::Json => output::json(&report),
        Output::Table => print(&report),
    }
}

/// How exchanges of L7 ended, by [`key`](held::key), as far as there is a record of it: what was sent later and what came back is
/// told there. Twice as many as decisions, since of those that are too old some end late, and the kernel plane's end too.
async fn outcomes(
    client: &Client,
    query: &AuditQuery,
) -> Result<BTreeMap<(String, String), Outcome>, Failure> {
    let limit = query.limit.map(|limit| limit.saturating_mul(2).min(SEARCH_RECORDS_MAX));
    let query = AuditQuery { kind: Some(RecordKind::Outcome), limit, ..query.clone() };
    let mut admin = client.connect().await?;
    let mut records = client.answer(admin.search_audit(request(&query)?).await)?;
    let mut outcomes = BTreeMap::new();
    while let Some(document) = records.message().await.map_err(|s| Failure::call(client.socket(), &s))? {
        let record: AuditRecord = parse(&document.json)?;
        // Of what was denied, nothing more is told.
        if record.plane == Plane::L7 && record.verdict == Some(Verdict::Allow) {
            outcomes.insert(held::key(&record), Outcome::of(record));
        }
    }
    Ok(outcomes)
}

/// How many records match.
async fn count(client: &Client, query: &AuditQuery) -> Result<u64, Failure> {
    let mut admin = client.connect().await?;
    let mut records = client.answer(admin.search_audit(request(query)?).await)?;
    let mut count = 0;
    while records.message().await.map_err(|s| Failure::call(client.socket(), &s))?.is_some() {
        count += 1;
    }
    Ok(count)
}

fn print(report: &Report) -> Result<(), Failure> {
    if report.left_out > 0 || report.left_out_is_least {
        let least = if report.left_out_is_least { "at least " } else { "" };
        output::note(&format!(
            "note: {least}{} older records were left out: raise --limit, or ask for less with --since or --agent",
            report.left_out
        ));
    }
    let cannot: u64 = report.unknown.values().sum();
    let changed: u64 = report.changed.iter().map(|change| change.count).sum();
    let obliged: u64 = report.obliged.iter().map(|change| change.count).sum();
    output::line(&format!(
        "{} decisions: {} the same, {} the same by other policies, {obliged} with other effects, {changed} changed, {cannot} undecidable, {} not by policy",
        report.decisions, report.same, report.otherwise, report.apart
    ))?;
    for (why, count) in &report.unknown {
        output::line(&format!("  {count} undecidable: the records don't hold {why}"))?;
    }
    print_changed(report)?;
    print_obliged(report)
}

fn print_changed(report: &Report) -> Result<(), Failure> {
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

fn print_obliged(report: &Report) -> Result<(), Failure> {
    if report.obliged.is_empty() {
        return Ok(());
    }
    let effects = |all: &[String]| if all.is_empty() { "-".to_owned() } else { all.join(", ") };
    let row = |o: &Obliged| {
        let (before, after) = (effects(&o.before), effects(&o.after));
        vec![o.agent.clone(), o.action.clone(), o.destination.clone(), before, after, o.count.to_string()]
    };
    output::line("")?;
    let rows: Vec<Vec<String>> = report.obliged.iter().take(CHANGES_SHOWN_MAX).map(row).collect();
    output::table(&["AGENT", "ACTION", "DESTINATION", "EFFECTS NO MORE", "EFFECTS NEW", "COUNT"], &rows)?;
    if report.obliged.len() > CHANGES_SHOWN_MAX {
        output::note(&format!("note: {} more; see --output json", report.obliged.len() - CHANGES_SHOWN_MAX));
    }
    Ok(())
}

// === impl Judge ===

impl Judge {
    async fn new(client: &Client, around: &Around, tenant: &str) -> Result<Judge, Failure> {
        let owner = PolicyOwner::Tenant(tenant.to_owned());
        let texts = around.texts(&owner);
        let node = node_surroundings(client, &owner, &texts).await?;
        let needs = texts.iter().map(|text| Needs::of(text)).fold(Needs::default(), Needs::and);
        Ok(Judge { set: around.policies.of(tenant).clone(), needs, node })
    }
}

// === impl Report ===

impl Report {
    fn add(
        &mut self,
        (record, outcome): (&AuditRecord, Option<&Outcome>),
        Judge { set, needs, node }: &Judge,
        registered: &BTreeMap<AgentId, Agent>,
        changes: &mut Changes,
    ) {
        let (Some(who), Some(verdict)) = (&record.agent, record.verdict) else { return };
        // One record may stand for many packets of one decision.
        self.decisions += 1;
        let Some((agent, labels)) = then(who, record, node, registered) else {
            self.unknown("an agent's valid name");
            return;
        };
        let (to, attributes) = (&record.destination, record.attributes.as_deref());
        let recorded = Recorded {
            agent: &agent,
            known: known(record, set, node, labels),
            by_kernel: record.plane == Plane::Kernel,
            action: record.action.as_deref().unwrap_or_default(),
            verdict: match (verdict, record.reason) {
                (Verdict::Allow, _) => Ok(()),
                (Verdict::Deny, reason) => Err(reason.map_or("", |reason| reason.name())),
            },
            host: to.host.as_deref(),
            ip: to.ip,
            parent: to.via.as_ref().map(|_| to.via_address.map_or(Parent::Untold, Parent::At)),
            port: to.port,
            protocol: to.protocol.as_deref(),
            scheme: attributes.and_then(|a| a.scheme.as_deref()),
            method: to.method.as_deref(),
            path: to.path.as_deref().filter(|_| !record.truncated),
            head: attributes.and_then(|a| serde_json::from_value(a.head.clone()?).ok()),
            policies: &record.policies,
            // Of what was sent later and what came back, too.
            effects: match outcome {
                Some(outcome) => effects(&outcome.effects, outcome.is_whole),
                None => effects(&record.effects, record.count.is_none() && !record.truncated),
            },
            content: content(attributes),
            intercepted: record.intercepted,
            alpn: attributes.and_then(|a| a.alpn.as_deref()),
            ja4: record.fingerprint.as_ref().and_then(|f| f.ja4.as_deref()),
            contents: held::contents(record, outcome, set),
        };
        let mut set = set.at(record.time.as_millisecond());
        let history = attributes.and_then(|a| a.history.clone());
        if let Some(history) = history.and_then(|history| serde_json::from_value::<History>(history).ok()) {
            set = set.knowing(history);
        }
        let seen = attributes.and_then(|a| a.fingerprints.clone());
        if let Some(seen) = seen.and_then(|seen| serde_json::from_value::<Fingerprints>(seen).ok()) {
            set = set.seeing(Arc::new(seen));
        }
        match recorded.replay(&set, *needs) {
            Replayed::Same => self.same += 1,
            Replayed::Otherwise { .. } => self.otherwise += 1,
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
                *changes.changed.entry(change).or_default() += 1;
            }
            Replayed::Obliged { before, after } => {
                let obliged = Obliged {
                    agent: agent.id.to_string(),
                    action: recorded.action.to_owned(),
                    destination: destination(record),
                    before,
                    after,
                    count: 0,
                };
                *changes.obliged.entry(obliged).or_default() += 1;
            }
        }
    }

    /// Takes in what would change, the most often first.
    fn close(&mut self, Changes { changed, obliged }: Changes) {
        self.changed = changed.into_iter().map(|(change, count)| Changed { count, ..change }).collect();
        self.changed.sort_by_key(|change| std::cmp::Reverse(change.count));
        self.obliged = obliged.into_iter().map(|(change, count)| Obliged { count, ..change }).collect();
        self.obliged.sort_by_key(|change| std::cmp::Reverse(change.count));
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

/// What it was obliged to, if the record tells all of that: one that was cut, or stands for others that came again, doesn't.
fn effects(effects: &[EffectRef], is_whole: bool) -> Option<BTreeSet<(&str, &str)>> {
    is_whole.then(|| effects.iter().map(|e| (e.policy.as_str(), e.effect.as_str())).collect())
}

/// The agent as it was when it was recorded, and whether its labels are known.
fn then(
    who: &AgentRef,
    record: &AuditRecord,
    node: &Node,
    registered: &BTreeMap<AgentId, Agent>,
) -> Option<(Agent, bool)> {
    let id = AgentId::new(&who.tenant, &who.agent).ok()?;
    let now = registered.get(&id);
    let recorded = record.attributes.as_ref().and_then(|attributes| attributes.labels.clone());
    let is_known = recorded.is_some() || record.generation == node.generation && now.is_some();
    let agent = Agent {
        index: now.map_or(0, |agent| agent.index),
        id,
        team: who.team.clone(),
        project: who.project.clone(),
        environment: who.environment.clone(),
        // Another agent, or other labels, would be another generation.
        labels: recorded.or_else(|| now.map(|agent| agent.labels.clone())).unwrap_or_default(),
        state: AgentState::Active,
        sources: Vec::new(),
    };
    Some((agent, is_known))
}

/// What is known of the time of a decision: by what its record holds, or because it was made in the live generation, which
/// all of this is the same in.
fn known(record: &AuditRecord, set: &PolicySet, node: &Node, labels: bool) -> Known {
    let attributes = record.attributes.as_ref();
    let is_live = record.generation == node.generation;
    let geo = attributes.and_then(|a| a.geo.as_ref());
    let zone = attributes.map(|a| a.zone.as_deref().unwrap_or("UTC"));
    Known {
        labels,
        geo: node.is_in_force && (is_live || geo.is_some() && geo == node.geo.as_ref()),
        zone: zone.map_or(is_live, |zone| zone == node.surroundings.zone.name),
        time: !has_turned(record, set),
    }
}

/// Whether a condition on time turned between a decision's first question and its record. The kernel plane's tables may be
/// of a moment before.
fn has_turned(record: &AuditRecord, set: &PolicySet) -> bool {
    let at = record.time.as_millisecond();
    let took = match record.plane {
        Plane::Kernel => KERNEL_LATE_MS_MAX,
        Plane::L7 | Plane::Control => {
            i64::try_from(record.latency_us.unwrap_or(0).div_ceil(1000)).unwrap_or(i64::MAX)
        }
    };
    set.next_turn_ms(at.saturating_sub(took)).is_some_and(|turn| turn <= at)
}

fn content(attributes: Option<&Attributes>) -> Content {
    match attributes {
        None => Content::Untold,
        Some(attributes) => match attributes.protocol.as_deref() {
            Some("tls") => Content::Tls,
            Some("tls_ech") => Content::TlsEch,
            Some("websocket") => Content::WebSocket,
            Some(_) => Content::Unknown,
            None => Content::Unseen,
        },
    }
}
