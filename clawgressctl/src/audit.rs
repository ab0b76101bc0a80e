//! `audit`: search and tail.

use clap::{Args, Subcommand, ValueEnum};
use clawgress_api::{AgentRef, AuditQuery, AuditRecord, CallCost, CountedTokens, Plane, RecordKind, Verdict};
use jiff::Timestamp;

use crate::client::{Client, parse, request};
use crate::failure::Failure;
use crate::output::{self, Output, or_dash};
use crate::time;

#[derive(Subcommand)]
pub enum Verb {
    /// Prints the newest records that match, oldest first.
    Search {
        #[command(flatten)]
        filter: Filter,
        /// At most this many.
        #[arg(long, short = 'n', default_value_t = 100)]
        limit: u64,
    },
    /// Prints the last records that match, then new ones as they come, until Ctrl-C.
    Tail {
        #[command(flatten)]
        filter: Filter,
        /// How many to begin with.
        #[arg(long, short = 'n', default_value_t = 10)]
        limit: u64,
    },
}

#[derive(Args)]
pub struct Filter {
    /// Only this agent (`NAME` or `TENANT/NAME`), or `anonymous`.
    #[arg(long)]
    agent: Option<String>,
    /// Only this verdict.
    #[arg(long, value_enum)]
    verdict: Option<VerdictName>,
    /// Only this kind of record.
    #[arg(long, value_enum)]
    kind: Option<KindName>,
    /// Only this drop reason, such as `policy_denied`.
    #[arg(long)]
    reason: Option<String>,
    /// Only destinations whose host or address contains this.
    #[arg(long)]
    destination: Option<String>,
    /// Not before: a time such as `2026-11-22T14:00Z`, or an age such as `15m`.
    #[arg(long, value_parser = time::past)]
    since: Option<Timestamp>,
    /// Before: as --since.
    #[arg(long, value_parser = time::past)]
    until: Option<Timestamp>,
}

#[derive(Clone, Copy, ValueEnum)]
enum VerdictName {
    Allow,
    Deny,
}

#[derive(Clone, Copy, ValueEnum)]
enum KindName {
    Decision,
    Outcome,
    Gap,
    Change,
}

/// Does what was asked.
pub async fn run(client: &Client, output: Output, verb: Verb) -> Result<(), Failure> {
    let (filter, limit, follow) = match verb {
        Verb::Search { filter, limit } => (filter, limit, false),
        Verb::Tail { filter, limit } => (filter, limit, true),
    };
    let query = filter.query(limit, follow);
    let mut admin = client.connect().await?;
    let mut records = client.answer(admin.search_audit(request(&query)?).await)?;
    let mut rows = Vec::new();
    loop {
        let next = records.message().await.map_err(|s| Failure::call(client.socket(), &s))?;
        let Some(document) = next else { break };
        let record: AuditRecord = parse(&document.json)?;
        match output {
            Output::Json => output::json_line(&record)?,
            Output::Table if follow => output::line(&output::clean(&sentence(&record)))?,
            Output::Table => rows.push(row(&record)),
        }
    }
    if follow {
        return Err(Failure::Unreachable("the agent has stopped".into()));
    }
    match output {
        Output::Json => Ok(()),
        Output::Table if rows.is_empty() => output::line("no record matches"),
        Output::Table => output::table(
            &["TIME (UTC)", "PLANE", "AGENT", "DESTINATION", "WHAT", "VERDICT", "WHY", "BYTES", "LATENCY"],
            &rows,
        ),
    }
}

// === impl Filter ===

impl Filter {
    fn query(self, limit: u64, follow: bool) -> AuditQuery {
        AuditQuery {
            agent: self.agent,
            verdict: self.verdict.map(|v| match v {
                VerdictName::Allow => Verdict::Allow,
                VerdictName::Deny => Verdict::Deny,
            }),
            kind: self.kind.map(|k| match k {
                KindName::Decision => RecordKind::Decision,
                KindName::Outcome => RecordKind::Outcome,
                KindName::Gap => RecordKind::Gap,
                KindName::Change => RecordKind::Change,
            }),
            reason: self.reason,
            destination: self.destination,
            since: self.since,
            until: self.until,
            limit: Some(limit),
            follow,
        }
    }
}

fn row(record: &AuditRecord) -> Vec<String> {
    vec![
        record.time.strftime("%F %T").to_string(),
        plane(record.plane).to_owned(),
        who(record),
        destination(record),
        what(record),
        verdict(record).to_owned(),
        why(record),
        bytes(record),
        record.latency_us.map(latency).unwrap_or_default(),
    ]
}

/// A record on one line, for a stream in which no column can be as wide as what is still to come.
fn sentence(record: &AuditRecord) -> String {
    let cells = [
        record.time.strftime("%T").to_string(),
        format!("{:<7}", plane(record.plane)),
        format!("{:<5}", verdict(record)),
        who(record),
        destination(record),
        what(record),
        why(record),
        bytes(record),
        record.latency_us.map(latency).unwrap_or_default(),
    ];
    cells.into_iter().filter(|c| !c.is_empty()).collect::<Vec<_>>().join("  ")
}

fn plane(plane: Plane) -> &'static str {
    match plane {
        Plane::Kernel => "kernel",
        Plane::L7 => "l7",
        Plane::Control => "control",
    }
}

fn who(record: &AuditRecord) -> String {
    match (&record.agent, record.kind) {
        (Some(AgentRef { tenant, agent, .. }), _) if tenant == "default" => agent.clone(),
        (Some(AgentRef { tenant, agent, .. }), _) => format!("{tenant}/{agent}"),
        (None, RecordKind::Gap | RecordKind::Change) => String::new(),
        (None, RecordKind::Decision | RecordKind::Outcome) => {
            record.source.ip.map_or_else(|| "anonymous".into(), |ip| format!("anonymous {ip}"))
        }
    }
}

fn destination(record: &AuditRecord) -> String {
    let to = &record.destination;
    let host = to
        .host
        .clone()
        .or_else(|| to.ip.map(|ip| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }));
    match (host, to.port) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host,
        (None, _) => String::new(),
    }
}

fn what(record: &AuditRecord) -> String {
    let kind = match record.kind {
        RecordKind::Decision => "decision",
        RecordKind::Outcome => "outcome",
        RecordKind::Gap => "gap",
        RecordKind::Change => "change",
    };
    let to = &record.destination;
    let parts = [Some(kind.to_owned()), record.action.clone(), to.method.clone(), to.path.clone()];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn verdict(record: &AuditRecord) -> &'static str {
    match record.verdict {
        Some(Verdict::Allow) => "allow",
        Some(Verdict::Deny) => "deny",
        None => "",
    }
}

fn why(record: &AuditRecord) -> String {
    let mut parts: Vec<String> = record.reason.iter().map(|r| r.name().to_owned()).collect();
    if !record.policies.is_empty() {
        parts.push(format!("[{}]", record.policies.join(", ")));
    }
    parts.extend(record.status.map(|s| format!("status {s}")));
    if let Some(tokens) = &record.tokens {
        parts.push(format!("{}+{} tokens", tokens.input, tokens.output));
    }
    if let Some(CountedTokens::Input(input)) = record.tokens_counted {
        parts.push(format!("{input} counted"));
    }
    parts.extend(record.cost.as_ref().map(cost));
    match record.kind {
        RecordKind::Gap => parts.push(format!("{} records missing", or_dash(record.count))),
        _ => parts.extend(record.count.filter(|n| *n > 1).map(|n| format!("{n} packets"))),
    }
    parts.extend(record.detail.clone());
    parts.join(" ")
}

/// `0.000123 USD`, to the millionth, rounded up: what is not nothing never looks like it.
fn cost(cost: &CallCost) -> String {
    match cost {
        CallCost::Unpriced => "unpriced".to_owned(),
        CallCost::Unknown => "not known yet".to_owned(),
        CallCost::Priced { nano_usd, estimated, .. } => {
            let micros = nano_usd.div_ceil(1000);
            let about = if *estimated { "about " } else { "" };
            format!("{about}{}.{:06} USD", micros / 1_000_000, micros % 1_000_000)
        }
    }
}

fn bytes(record: &AuditRecord) -> String {
    match (record.bytes_sent, record.bytes_received) {
        (None, None) => String::new(),
        (sent, received) => format!("{}/{}", sent.unwrap_or(0), received.unwrap_or(0)),
    }
}

fn latency(us: u64) -> String {
    if us < 1000 { format!("{us} us") } else { format!("{}.{} ms", us / 1000, us % 1000 / 100) }
}
