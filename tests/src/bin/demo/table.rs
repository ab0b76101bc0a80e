//! The table of audit records, for people.

use clawgress_api::{AuditRecord, Ingress, Plane, Verdict};
use comfy_table::{Table, presets};

use crate::case::Pair;

/// Rows of (client, decision and outcome).
pub fn render(rows: &[(&'static str, Pair)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "agent",
        "client",
        "destination",
        "way",
        "plane",
        "decision",
        "policy or reason",
        "tokens",
        "bytes out/in",
        "latency",
    ]);
    for (client, (decision, outcome)) in rows {
        let outcome = outcome.as_ref();
        let tokens = outcome.and_then(|o| o.tokens.as_ref());
        let bytes = outcome.and_then(|o| Some(format!("{}/{}", o.bytes_sent?, o.bytes_received?)));
        let latency = outcome.and_then(|o| o.latency_us).or(decision.latency_us);
        table.add_row([
            decision.agent.as_ref().map_or_else(|| "(nobody)".to_owned(), |a| a.agent.clone()),
            (*client).to_owned(),
            destination(decision),
            way(decision).to_owned(),
            if decision.plane == Plane::Kernel { "kernel" } else { "l7" }.to_owned(),
            if decision.verdict == Some(Verdict::Allow) { "allow" } else { "deny" }.to_owned(),
            why(decision),
            tokens.map(|t| format!("{}+{}", t.input, t.output)).unwrap_or_default(),
            bytes.unwrap_or_default(),
            latency.map(time).unwrap_or_default(),
        ]);
    }
    table.to_string()
}

fn destination(record: &AuditRecord) -> String {
    let to = &record.destination;
    let port = to.port.map(|p| format!(":{p}")).unwrap_or_default();
    let address = to.ip.map(|ip| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() });
    let host = to.host.clone().or(address).unwrap_or_default();
    let method = to.method.as_ref().map(|m| format!("{m} ")).unwrap_or_default();
    format!("{method}{host}{port}{}", to.path.as_deref().unwrap_or_default())
}

fn way(record: &AuditRecord) -> &'static str {
    match record.ingress {
        Some(Ingress::Proxy) => "proxy",
        Some(Ingress::Local) => "local",
        Some(Ingress::Transparent) | None => "route",
    }
}

fn why(record: &AuditRecord) -> String {
    match record.reason {
        Some(reason) if record.policies.is_empty() => reason.name().to_owned(),
        Some(reason) => format!("{} ({})", reason.name(), record.policies.join(", ")),
        None => record.policies.join(", "),
    }
}

fn time(us: u64) -> String {
    if us < 10_000 { format!("{us} µs") } else { format!("{} ms", us / 1_000) }
}
