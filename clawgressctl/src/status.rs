//! `status`: the node's state.

use clawgress_api::identity::PolicyOwner;
use clawgress_api::proto::Empty;
use clawgress_api::{Status, TrackingStatus};

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Output};

/// Most tenants whose policies are listed: a line that people read. `--output json` has all.
const TENANTS_MAX: usize = 10;

/// Shows it.
pub async fn show(client: &Client, output: Output) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let status: Status = client.document(admin.status(Empty {}).await)?;
    if output == Output::Json {
        return output::json(&status);
    }
    let list = |items: Vec<String>| if items.is_empty() { "-".to_owned() } else { items.join(", ") };
    let datapath = status.datapath.as_ref().map_or_else(
        || "not reached".to_owned(),
        |d| format!("{}, generation {}, {} of {} flows", d.mode, d.generation, d.flows, d.flows_max),
    );
    let l7 = status.l7.iter().map(|w| {
        let draining = if w.draining { ", draining" } else { "" };
        let refused = if w.refused.is_some() { ", refused" } else { "" };
        format!("{} (pid {}, generation {}{draining}{refused})", w.instance, w.pid, w.generation)
    });
    let mut rows = vec![
        ("node", format!("{} (clawgress {})", status.node, status.version)),
        ("policy", revision(status.revision)),
        ("generation", status.generation.to_string()),
        ("agents", status.agents.to_string()),
        ("kernel plane", datapath),
        ("L7 workers", list(l7.collect())),
        ("proxy", list(status.proxies.iter().map(ToString::to_string).collect())),
        ("audit records", status.audit_records.to_string()),
    ];
    // Nothing is said of what a box of one tenant does not have.
    let above = status.policies.get(&PolicyOwner::Platform);
    let mut policies: Vec<_> = above.map(|n| ("platform's policy", revision(*n))).into_iter().collect();
    policies.extend(tenants(&status).map(|told| ("tenants' policies", told)));
    rows.splice(2..2, policies);
    if !status.proxies_tls.is_empty() {
        let addresses = status.proxies_tls.iter().map(ToString::to_string).collect();
        rows.push(("proxy over TLS", list(addresses)));
    }
    rows.extend(status.parents.iter().map(|(name, address)| ("parent proxy", format!("{name}: {address}"))));
    rows.extend(status.routes.iter().map(|route| ("route", route.told())));
    if let Some(tracking) = status.datapath.as_ref().and_then(|d| d.tracking) {
        let TrackingStatus { entries, entries_max, dropped } = tracking;
        rows.push(("tracked", format!("{entries} of {entries_max} connections, {dropped} packets dropped")));
    }
    if !status.addresses.is_empty() {
        rows.push(("gateway addresses", list(status.addresses.iter().map(ToString::to_string).collect())));
    }
    for interface in status.datapath.iter().flat_map(|d| &d.interfaces) {
        let mut text =
            format!("{}: {}, xdp {}, tc {}", interface.name, interface.role, interface.xdp, interface.tc);
        if let Some(throttle) = &interface.throttle {
            text += &format!(", throttle: {throttle}");
        }
        if !interface.fail_open.is_empty() {
            let now = list(interface.failed_open.clone());
            text += &format!(", DANGER: fails open for {} (now: {now})", interface.fail_open.join(", "));
        }
        rows.push(("interface", text));
    }
    for (what, value) in rows {
        output::line(&format!("{what:<18} {}", output::clean(&value)))?;
    }
    if status.warnings.is_empty() {
        return output::line("\nall is well");
    }
    output::line("")?;
    for warning in &status.warnings {
        output::line(&format!("warning: {}", output::clean(warning)))?;
    }
    Ok(())
}

fn revision(number: u64) -> String {
    if number == 0 { "none".to_owned() } else { format!("revision {number}") }
}

/// The revisions of tenants other than `default`, if any has one.
fn tenants(status: &Status) -> Option<String> {
    let others = status.policies.iter().filter(|(owner, _)| !owner.is_default());
    let others: Vec<_> =
        others.filter_map(|(owner, n)| Some(format!("{} {}", owner.tenant()?, revision(*n)))).collect();
    let more = others.len().saturating_sub(TENANTS_MAX);
    let told = others.get(..TENANTS_MAX.min(others.len())).unwrap_or_default().join(", ");
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    (!told.is_empty()).then(|| told + &more)
}
