//! `policy show` and `policy history`.

use clawgress_api::PolicyRevision;
use clawgress_api::proto::Empty;
use clawgress_policy::{NamedSets, PolicyBundle};

use super::revision;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Output};

/// Prints a revision's text.
pub async fn show(client: &Client, output: Output, number: u64) -> Result<(), Failure> {
    let revision = revision(client, number).await?;
    if output == Output::Json {
        return output::json(&revision);
    }
    let bundle = revision.bundle.unwrap_or_default();
    // The text alone goes to standard output, so that it can be applied again.
    let live = revision.generation.map(|g| format!(", live in generation {g}")).unwrap_or_default();
    output::note(&output::clean(&format!(
        "revision {}{live}, by {} at {}: {}",
        revision.number, revision.author, revision.time, revision.message
    )));
    if bundle.sets != NamedSets::default() {
        output::note("it has named sets; see them with --output json");
    }
    output::line(bundle.text.trim_end())
}

/// Lists the revisions.
pub async fn list(client: &Client, output: Output) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let answer = admin.policy_history(Empty {}).await;
    let revisions: Vec<PolicyRevision<PolicyBundle>> = client.documents(answer)?;
    if output == Output::Json {
        return output::json(&revisions);
    }
    if revisions.is_empty() {
        return output::line("no policy has been applied yet: everything is denied");
    }
    let rows: Vec<Vec<String>> = revisions
        .iter()
        .map(|r| {
            vec![
                r.number.to_string(),
                r.generation.map(|g| format!("generation {g}")).unwrap_or_default(),
                if r.parent == 0 { "-".to_owned() } else { r.parent.to_string() },
                r.time.strftime("%F %T").to_string(),
                r.author.clone(),
                r.hash.chars().take(12).collect(),
                r.message.clone(),
            ]
        })
        .collect();
    output::table(&["REVISION", "LIVE", "PARENT", "TIME (UTC)", "AUTHOR", "HASH", "MESSAGE"], &rows)
}
