//! `metrics`: the node's counters as OpenMetrics text, for a collector that runs commands, or as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clawgress_api::proto::Empty;
use clawgress_api::{LiveLimit, LiveQuery, Status};
use serde::Serialize;

use crate::client::{Client, request};
use crate::failure::Failure;
use crate::output::{self, Output};

/// Most pairs of agent and rate limit that have series of their own, those with the most drops: what a collector
/// takes from one target without complaint. `clawgress_limiters_left_out` tells that there are more.
const LIMITERS_MAX: usize = 1_000;

/// Counters and gauges of one name.
#[derive(Debug, Serialize)]
struct Family {
    name: String,
    #[serde(rename = "type")]
    kind: Kind,
    help: &'static str,
    samples: Vec<Sample>,
}

/// What values of a family do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// It goes up and down.
    Gauge,
    /// It goes up, until what counts begins anew. Its samples are called `NAME_total`.
    Counter,
}

/// One value.
#[derive(Debug, Serialize)]
struct Sample {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<&'static str, String>,
    value: u64,
}

/// Prints them.
pub async fn print(client: &Client, output: Output) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let status: Status = client.document(admin.status(Empty {}).await)?;
    let has_limits = status.datapath.as_ref().is_some_and(|d| d.mode == "kernel");
    let limits: Vec<LiveLimit> = if has_limits {
        let query = LiveQuery { agent: None, limit: Some(LIMITERS_MAX as u64 + 1), totals: true };
        client.documents(admin.limits(request(&query)?).await)?
    } else {
        Vec::new()
    };
    let families = families(&status, &limits);
    match output {
        Output::Json => output::json(&families),
        Output::Table => output::line(&text(&families)),
    }
}

fn families(status: &Status, limits: &[LiveLimit]) -> Vec<Family> {
    let mut all = vec![
        gauge("generation", "Latest policy generation.", status.generation),
        gauge("agents", "Registered agents.", status.agents),
        gauge("l7_workers", "Connected L7 workers.", status.l7.len() as u64),
        gauge("warnings", "Things that are wrong or not enforced; see status.", status.warnings.len() as u64),
    ];
    if let Some(datapath) = &status.datapath {
        all.push(gauge("flows", "Live flows.", datapath.flows));
        all.push(gauge("flows_max", "Most flows.", datapath.flows_max));
        if let Some(tracking) = &datapath.tracking {
            all.push(gauge("tracked", "Connections that the kernel tracks.", tracking.entries));
            all.push(gauge("tracked_max", "Most tracked connections.", tracking.entries_max));
        }
        let left_out = u64::from(limits.len() > LIMITERS_MAX);
        all.push(gauge("limiters_left_out", "Whether there are more limiters than have series.", left_out));
        let packets = datapath.counters.iter();
        let packets = packets.map(|(what, count)| ([("what", what.clone())].into(), *count)).collect();
        all.push(counter("kernel_packets", "Packets and socket calls by what became of them.", packets));
        if let Some(tracking) = &datapath.tracking {
            let dropped = vec![(BTreeMap::new(), tracking.dropped)];
            all.push(counter("tracking_dropped", "Packets that connection tracking dropped.", dropped));
        }
    }
    let limits = limits.get(..LIMITERS_MAX).unwrap_or(limits);
    let of = |value: fn(&LiveLimit) -> u64| limits.iter().map(|l| (labels(l), value(l))).collect();
    all.push(counter("limiter_passed", "Units that a rate limit let pass.", of(|limit| limit.passed)));
    all.push(counter(
        "limiter_dropped_packets",
        "Packets that a rate limit dropped.",
        of(|limit| limit.dropped),
    ));
    all
}

fn gauge(name: &str, help: &'static str, value: u64) -> Family {
    let samples = vec![Sample { labels: BTreeMap::new(), value }];
    Family { name: format!("clawgress_{name}"), kind: Kind::Gauge, help, samples }
}

fn counter(name: &str, help: &'static str, samples: Vec<(BTreeMap<&'static str, String>, u64)>) -> Family {
    let samples = samples.into_iter().map(|(labels, value)| Sample { labels, value }).collect();
    Family { name: format!("clawgress_{name}"), kind: Kind::Counter, help, samples }
}

/// Whose limit it is, of which policy, and of what.
fn labels(limit: &LiveLimit) -> BTreeMap<&'static str, String> {
    let agent = limit.agent.as_ref().map(ToString::to_string).unwrap_or_default();
    let of = match &limit.group {
        Some(group) => ("group", group.clone()),
        None => ("agent", agent),
    };
    let policy = limit.policy.clone().unwrap_or_default();
    [of, ("policy", policy), ("unit", limit.unit.as_str().to_owned())].into()
}

/// As OpenMetrics 1.0 writes them.
fn text(families: &[Family]) -> String {
    let mut text = String::new();
    for Family { name, kind, help, samples } in families {
        let (word, suffix) = match kind {
            Kind::Gauge => ("gauge", ""),
            Kind::Counter => ("counter", "_total"),
        };
        let _ = writeln!(text, "# TYPE {name} {word}\n# HELP {name} {help}");
        for Sample { labels, value } in samples {
            let labels: Vec<String> =
                labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(text, "{name}{suffix}{labels} {value}");
        }
    }
    text.push_str("# EOF");
    text
}

/// A label's value (OpenMetrics 1.0, escaping).
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_hold_whatever_a_policy_is_called() {
        assert_eq!(escaped("a\"b\\c\nd"), r#"a\"b\\c\nd"#);
    }
}
