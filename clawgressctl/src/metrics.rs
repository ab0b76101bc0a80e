//! `metrics`: the node's counters as OpenMetrics text, for a collector that runs commands.

use std::fmt::Write as _;

use clawgress_api::proto::Empty;
use clawgress_api::{LiveLimit, LiveQuery, Status};

use crate::client::{Client, request};
use crate::failure::Failure;
use crate::output;

/// Most pairs of agent and rate limit that have series of their own, those with the most drops: what a collector
/// takes from one target without complaint. `clawgress_limiters_left_out` tells that there are more.
const LIMITERS_MAX: usize = 1_000;

/// Prints them.
pub async fn print(client: &Client) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let status: Status = client.document(admin.status(Empty {}).await)?;
    let has_limits = status.datapath.as_ref().is_some_and(|d| d.mode == "kernel");
    let limits: Vec<LiveLimit> = if has_limits {
        let query = LiveQuery { agent: None, limit: Some(LIMITERS_MAX as u64 + 1), totals: true };
        client.documents(admin.limits(request(&query)?).await)?
    } else {
        Vec::new()
    };
    output::line(&text(&status, &limits))
}

fn text(status: &Status, limits: &[LiveLimit]) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, value: u64| {
        let _ = write!(
            text,
            "# TYPE clawgress_{name} gauge\n# HELP clawgress_{name} {help}\nclawgress_{name} {value}\n"
        );
    };
    gauge("generation", "Latest policy generation.", status.generation);
    gauge("agents", "Registered agents.", status.agents);
    gauge("l7_workers", "Connected L7 workers.", status.l7.len() as u64);
    gauge("warnings", "Things that are wrong or not enforced; see status.", status.warnings.len() as u64);
    if let Some(datapath) = &status.datapath {
        gauge("flows", "Live flows.", datapath.flows);
        gauge("flows_max", "Most flows.", datapath.flows_max);
        if let Some(tracking) = &datapath.tracking {
            gauge("tracked", "Connections that the kernel tracks.", tracking.entries);
            gauge("tracked_max", "Most tracked connections.", tracking.entries_max);
        }
        let left_out = u64::from(limits.len() > LIMITERS_MAX);
        gauge("limiters_left_out", "Whether there are more limiters than have series.", left_out);
        text.push_str("# TYPE clawgress_kernel_packets counter\n");
        text.push_str("# HELP clawgress_kernel_packets Packets and socket calls by what became of them.\n");
        for (what, count) in &datapath.counters {
            // Names of counters and reasons are of letters and underscores.
            let _ = writeln!(text, "clawgress_kernel_packets_total{{what=\"{what}\"}} {count}");
        }
        if let Some(tracking) = &datapath.tracking {
            text.push_str("# TYPE clawgress_tracking_dropped counter\n");
            text.push_str("# HELP clawgress_tracking_dropped Packets that connection tracking dropped.\n");
            let _ = writeln!(text, "clawgress_tracking_dropped_total {}", tracking.dropped);
        }
    }
    limiters(&mut text, limits.get(..LIMITERS_MAX).unwrap_or(limits));
    text.push_str("# EOF");
    text
}

/// What rate limits let pass and dropped, by agent and policy.
fn limiters(text: &mut String, limits: &[LiveLimit]) {
    let mut counter = |name: &str, help: &str, value: fn(&LiveLimit) -> u64| {
        let _ = writeln!(text, "# TYPE clawgress_limiter_{name} counter");
        let _ = writeln!(text, "# HELP clawgress_limiter_{name} {help}");
        for limit in limits {
            let agent = limit.agent.as_ref().map(ToString::to_string).unwrap_or_default();
            let policy = limit.policy.as_deref().unwrap_or_default();
            let of = match &limit.group {
                Some(group) => ("group", group.as_str()),
                None => ("agent", agent.as_str()),
            };
            let labels = [of, ("policy", policy), ("unit", limit.unit.as_str())];
            let labels = labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).join(",");
            let _ = writeln!(text, "clawgress_limiter_{name}_total{{{labels}}} {}", value(limit));
        }
    };
    counter("passed", "Units that a rate limit let pass.", |limit| limit.passed);
    counter("dropped_packets", "Packets that a rate limit dropped.", |limit| limit.dropped);
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
