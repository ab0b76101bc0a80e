//! `policy check`.

use clawgress_api::PolicyCheck;
use clawgress_policy::lint::{self, Certainty, Finding};
use serde::Serialize;

use super::files::{Placed, Written};
use super::new_policy;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Output};

/// What is printed as JSON of what is refused.
#[derive(Serialize)]
struct Refused {
    findings: Vec<Placed>,
}

/// Checks, here or on the node.
pub async fn run(client: &Client, output: Output, written: &Written, node: bool) -> Result<(), Failure> {
    if output == Output::Json {
        let wrong = written.wrong();
        if !wrong.is_empty() {
            output::json(&Refused { findings: wrong })?;
        }
    }
    written.check_parts()?;
    let (check, left_out) =
        if node { (on_node(client, output, written).await?, "") } else { here(output, written)? };
    match output {
        Output::Json => output::json(&check),
        Output::Table => {
            written.warn(&check.findings);
            output::line(&format!(
                "`{}` is valid: policies {}, kernel prefixes {}, kernel verdicts {}, rate limits {}{}",
                written.title, check.policies, check.prefixes, check.cells, check.limiters, left_out
            ))
        }
    }
}

/// Lets the running agent check it.
pub async fn on_node(
    client: &Client,
    output: Output,
    written: &Written,
) -> Result<PolicyCheck<Finding>, Failure> {
    let mut admin = client.connect().await?;
    let answer = admin.check_policy(new_policy(written, String::new(), None)?).await;
    if let (Output::Json, Some(problems)) = (output, Written::problems(&answer)) {
        let findings: Vec<Finding> = problems.into_iter().map(Finding::from).collect();
        output::json(&Refused { findings: written.placed(findings) })?;
    }
    client.document(written.explained(answer)?)
}

/// As the agent would check it, but for what depends on its agents and its geo data; and what that is, in
/// words.
fn here(output: Output, written: &Written) -> Result<(PolicyCheck<Finding>, &'static str), Failure> {
    let (outline, findings) = lint::examine(&written.owner, &written.bundle, &written.accepted);
    let Some(outline) = outline else {
        if output == Output::Json {
            output::json(&Refused { findings: written.placed(findings.clone()) })?;
        }
        let proven = findings.iter().filter(|finding| finding.severity == Certainty::Error);
        return Err(written.refused(&proven.map(Finding::problem).collect::<Vec<_>>()));
    };
    let count = |n: usize| n as u64;
    let check = PolicyCheck {
        policies: count(outline.policies),
        prefixes: count(outline.prefixes),
        cells: count(outline.cells),
        limiters: count(outline.limiters),
        findings,
    };
    let left_out = if outline.names_geo {
        " (without agents, and without geo data: whether they have the ASNs and countries, --node tells)"
    } else {
        " (without agents)"
    };
    Ok((check, left_out))
}
