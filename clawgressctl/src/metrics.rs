//! `metrics`: the node's counters as OpenMetrics text, for a collector that runs commands.

use std::fmt::Write as _;

use clawgress_api::Status;
use clawgress_api::proto::Empty;

use crate::client::Client;
use crate::failure::Failure;
use crate::output;

/// Prints them.
pub async fn print(client: &Client) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let status: Status = client.document(admin.status(Empty {}).await)?;
    output::line(&text(&status))
}

fn text(status: &Status) -> String {
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
        text.push_str("# TYPE clawgress_kernel_packets counter\n");
        text.push_str("# HELP clawgress_kernel_packets Packets and socket calls by what became of them.\n");
        for (what, count) in &datapath.counters {
            // Names of counters and reasons are of letters and underscores.
            let _ = writeln!(text, "clawgress_kernel_packets_total{{what=\"{what}\"}} {count}");
        }
    }
    text.push_str("# EOF");
    text
}
