//! `flows`, `drops` and `limits`: what is going on in the kernel plane right now.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use clap::Args;
use clawgress_api::identity::AgentId;
use clawgress_api::{Destination, LiveFlow, LiveFlows, LiveLimit, LiveQuery, RecentDrop, SourceRef};

use crate::client::{Client, request};
use crate::failure::Failure;
use crate::output::{self, Output};

/// How often `--follow` looks.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Arguments {
    /// Only this agent (`NAME` or `TENANT/NAME`), or `anonymous`.
    #[arg(long)]
    agent: Option<String>,
    /// At most this many, the latest.
    #[arg(long, short = 'n', default_value_t = 1000)]
    limit: u64,
    /// Prints what is new or has changed, line by line, until Ctrl-C.
    #[arg(long, short)]
    follow: bool,
}

/// Lists live flows.
pub async fn flows(client: &Client, output: Output, arguments: Arguments) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let query = request(&arguments.query())?;
    let mut seen = HashMap::new();
    loop {
        let listed: LiveFlows = client.document(admin.flows(query.clone()).await)?;
        if !arguments.follow {
            return print_flows(output, &listed);
        }
        let state = |f: &LiveFlow| (f.request.clone(), (f.packets_sent, f.packets_received));
        for flow in changed(&mut seen, &listed.flows, state) {
            match output {
                Output::Json => output::json_line(flow)?,
                Output::Table => output::line(&output::clean(&flow_row(flow).join("  ")))?,
            }
        }
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

/// Lists recent drops.
pub async fn drops(client: &Client, output: Output, arguments: Arguments) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let query = request(&arguments.query())?;
    let mut seen = HashMap::new();
    loop {
        let listed: Vec<RecentDrop> = client.documents(admin.drops(query.clone()).await)?;
        if !arguments.follow {
            return print_drops(output, &listed);
        }
        let state = |d: &RecentDrop| {
            let row = [who(d.agent.as_ref()), from(&d.source), to(&d.destination), d.reason.clone()];
            (row, d.count)
        };
        for drop in changed(&mut seen, &listed, state) {
            match output {
                Output::Json => output::json_line(drop)?,
                Output::Table => output::line(&output::clean(&drop_row(drop).join("  ")))?,
            }
        }
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

/// Lists rate limits as they are held to agents and local commands.
pub async fn limits(client: &Client, output: Output, arguments: Arguments) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let query = request(&arguments.query())?;
    let mut seen = HashMap::new();
    loop {
        let listed: Vec<LiveLimit> = client.documents(admin.limits(query.clone()).await)?;
        if !arguments.follow {
            return print_limits(output, &listed);
        }
        let state = |l: &LiveLimit| {
            ((l.agent.clone(), l.group.clone(), l.cgroup, l.policy.clone()), (l.passed, l.dropped))
        };
        for limit in changed(&mut seen, &listed, state) {
            match output {
                Output::Json => output::json_line(limit)?,
                Output::Table => output::line(&output::clean(&limit_row(limit).join("  ")))?,
            }
        }
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

/// What is not as it was seen last, oldest first; what is no longer listed is forgotten.
fn changed<'a, T, K: Hash + Eq, V: PartialEq>(
    seen: &mut HashMap<K, V>,
    listed: &'a [T],
    state: impl Fn(&T) -> (K, V),
) -> Vec<&'a T> {
    let mut now = HashMap::with_capacity(listed.len());
    let mut news = Vec::new();
    for row in listed.iter().rev() {
        let (key, value) = state(row);
        if seen.get(&key) != Some(&value) {
            news.push(row);
        }
        now.insert(key, value);
    }
    *seen = now;
    news
}

fn print_flows(output: Output, listed: &LiveFlows) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(listed);
    }
    if listed.flows.is_empty() {
        return output::line("no flow is live");
    }
    let rows: Vec<_> = listed.flows.iter().map(flow_row).collect();
    output::table(
        &["AGENT", "SOURCE", "DESTINATION", "PROTOCOL", "ACTION", "AGE", "PACKETS", "BYTES", "POLICIES"],
        &rows,
    )?;
    let more = listed.total.saturating_sub(listed.flows.len() as u64);
    if more > 0 {
        output::note(&format!("and {more} more, idle for longer; see --agent and --limit"));
    }
    Ok(())
}

fn print_drops(output: Output, listed: &[RecentDrop]) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(&listed);
    }
    if listed.is_empty() {
        return output::line("nothing was dropped lately");
    }
    let rows: Vec<_> = listed.iter().map(drop_row).collect();
    output::table(
        &["LAST SEEN (UTC)", "AGENT", "SOURCE", "DESTINATION", "PROTOCOL", "REASON", "COUNT", "HOOK"],
        &rows,
    )
}

fn print_limits(output: Output, listed: &[LiveLimit]) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(&listed);
    }
    if listed.is_empty() {
        return output::line("no rate limit is held to anybody now");
    }
    let rows: Vec<_> = listed.iter().map(limit_row).collect();
    output::table(&["WHO", "POLICY", "LIMIT", "OVER", "ROOM", "PASSED", "DROPPED"], &rows)
}

fn limit_row(limit: &LiveLimit) -> Vec<String> {
    let period = match limit.period_s {
        1 => "second".to_owned(),
        60 => "minute".to_owned(),
        3600 => "hour".to_owned(),
        s => format!("{s} s"),
    };
    let LiveLimit { count, unit, burst, .. } = limit;
    vec![
        match (&limit.policy, limit.cgroup) {
            (None, _) => "sources without a binding".to_owned(),
            (_, Some(cgroup)) => format!("{} (cgroup {cgroup})", who(limit.agent.as_ref())),
            _ => limit.group.clone().unwrap_or_else(|| who(limit.agent.as_ref())),
        },
        limit.policy.clone().unwrap_or_else(|| "-".to_owned()),
        format!("{count} {unit}/{period} burst {burst}"),
        limit.over.clone(),
        limit.room.to_string(),
        limit.passed.to_string(),
        limit.dropped.to_string(),
    ]
}

fn flow_row(flow: &LiveFlow) -> Vec<String> {
    vec![
        who(flow.agent.as_ref()),
        from(&flow.source),
        to(&flow.destination),
        flow.destination.protocol.clone().unwrap_or_default(),
        flow.action.clone(),
        age(flow.age_ms),
        format!("{}/{}", flow.packets_sent, flow.packets_received),
        format!("{}/{}", flow.bytes_sent, flow.bytes_received),
        flow.policies.join(", "),
    ]
}

fn drop_row(drop: &RecentDrop) -> Vec<String> {
    vec![
        drop.last.strftime("%F %T").to_string(),
        who(drop.agent.as_ref()),
        from(&drop.source),
        to(&drop.destination),
        drop.destination.protocol.clone().unwrap_or_default(),
        drop.reason.clone(),
        drop.count.to_string(),
        drop.hook.clone(),
    ]
}

fn who(agent: Option<&AgentId>) -> String {
    match agent {
        Some(id) if id.tenant() == clawgress_api::identity::DEFAULT_TENANT => id.name().to_owned(),
        Some(id) => id.to_string(),
        None => "-".to_owned(),
    }
}

fn from(source: &SourceRef) -> String {
    let end = end(source.ip, source.port);
    match &source.interface {
        Some(interface) => format!("{end} ({interface})"),
        None => end,
    }
}

fn to(destination: &Destination) -> String {
    end(destination.ip, destination.port)
}

fn end(ip: Option<std::net::IpAddr>, port: Option<u16>) -> String {
    match (ip, port) {
        (Some(ip), Some(port)) => std::net::SocketAddr::new(ip, port).to_string(),
        (Some(ip), None) => ip.to_string(),
        (None, _) => "-".to_owned(),
    }
}

fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}.{} s", ms % 1000 / 100),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

// === impl Arguments ===

impl Arguments {
    fn query(&self) -> LiveQuery {
        LiveQuery { agent: self.agent.clone(), limit: Some(self.limit), totals: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn following_shows_what_is_new_or_changed() {
        let mut seen = HashMap::new();
        let mut look = |listed: &[(char, u32)]| -> Vec<(char, u32)> {
            changed(&mut seen, listed, |row| *row).into_iter().copied().collect()
        };
        assert_eq!(look(&[('b', 1), ('a', 1)]), [('a', 1), ('b', 1)]);
        assert_eq!(look(&[('b', 2), ('a', 1)]), [('b', 2)]);
        assert_eq!(look(&[('a', 1)]), []);
        assert_eq!(look(&[('a', 1), ('b', 2)]), [('b', 2)], "gone and back");
    }

    #[test]
    fn ages_have_one_unit_or_two() {
        for (ms, want) in [(0, "0.0 s"), (59_999, "59.9 s"), (61_000, "1 min 1 s"), (7_260_000, "2 h 1 min")]
        {
            assert_eq!(age(ms), want);
        }
    }
}
