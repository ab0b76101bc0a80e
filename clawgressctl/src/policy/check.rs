//! `policy check`.

use clawgress_api::PolicyCheck;
use clawgress_policy::PolicySet;

use super::files::{Files, Written};
use super::new_policy;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Output};

/// Checks, here or on the node.
pub async fn run(client: &Client, output: Output, files: &Files, node: bool) -> Result<(), Failure> {
    let written = files.read()?;
    let (check, left_out) = if node { (on_node(client, &written).await?, "") } else { here(&written)? };
    match output {
        Output::Json => output::json(&check),
        Output::Table => output::line(&format!(
            "`{}` is valid: policies {}, kernel prefixes {}, kernel verdicts {}, rate limits {}{}",
            written.title, check.policies, check.prefixes, check.cells, check.limiters, left_out
        )),
    }
}

/// Lets the running agent check it.
pub async fn on_node(client: &Client, written: &Written) -> Result<PolicyCheck, Failure> {
    let mut admin = client.connect().await?;
    let answer = admin.check_policy(new_policy(written, String::new())?).await;
    client.document(written.explained(answer)?)
}

/// As the agent would check it, but for what depends on its agents and its geo data; and what that is, in
/// words.
fn here(written: &Written) -> Result<(PolicyCheck, &'static str), Failure> {
    let outline = PolicySet::check(&written.bundle).map_err(|errors| written.refused(&errors.problems))?;
    let count = |n: usize| n as u64;
    let check = PolicyCheck {
        policies: count(outline.policies),
        prefixes: count(outline.prefixes),
        cells: count(outline.cells),
        limiters: count(outline.limiters),
    };
    let left_out = if outline.names_geo {
        " (without agents, and without geo data: whether they have the ASNs and countries, --node tells)"
    } else {
        " (without agents)"
    };
    Ok((check, left_out))
}
