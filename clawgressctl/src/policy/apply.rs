//! `policy apply` and `policy rollback`.

use clawgress_api::identity::PolicyOwner;
use clawgress_api::proto::Empty;
use clawgress_api::{PolicyRevision, Status};
use clawgress_policy::PolicyBundle;
use clawgress_policy::lint::{Accepted, Finding};
use serde::Serialize;

use super::files::Written;
use super::{check, new_policy, of, revision, written};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Output};

/// What is printed as JSON.
#[derive(Serialize)]
struct Applied<'a> {
    #[serde(flatten)]
    revision: &'a PolicyRevision<PolicyBundle>,
    /// What lint suspects of it, and what was accepted.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    findings: &'a [Finding],
}

/// Makes it live.
pub async fn run(client: &Client, output: Output, written: Written, message: String) -> Result<(), Failure> {
    let findings = check::on_node(client, output, &written).await?.findings;
    let mut admin = client.connect().await?;
    let answer = admin.apply_policy(new_policy(&written, message)?).await;
    let revision: PolicyRevision<PolicyBundle> = client.document(written.explained(answer)?)?;
    if output == Output::Json {
        return output::json(&Applied { revision: &revision, findings: &findings });
    }
    written.warn(&findings);
    let generation = output::or_dash(revision.generation);
    let of = of(&written.owner);
    output::line(&format!("revision {}{of} is live in generation {generation}", revision.number))?;
    // A plane that doesn't run it is news to whoever thinks it is in force.
    let status: Status = client.document(admin.status(Empty {}).await)?;
    for warning in status.warnings.iter().filter(|w| w.contains("generation")) {
        output::note(&format!("warning: {}", output::clean(warning)));
    }
    Ok(())
}

/// Makes what an older revision says live again. History goes on: the new revision's parent is the live one.
pub async fn rollback(
    client: &Client,
    output: Output,
    owner: &PolicyOwner,
    (number, accepted): (Option<u64>, Vec<Accepted>),
    message: Option<String>,
) -> Result<(), Failure> {
    let live = revision(client, owner, 0).await?;
    let number = match number {
        Some(number) => number,
        None if live.parent == 0 => {
            return Err(Failure::Refused(format!(
                "revision {} is the first: there is none before it to go back to",
                live.number
            )));
        }
        None => live.parent,
    };
    if number == live.number {
        return Err(Failure::Refused(format!("revision {number} is live already")));
    }
    let old = written(client, owner, number).await?.accepting(accepted);
    let message = match message {
        Some(message) => format!("roll back to revision {number}: {message}"),
        None => format!("roll back to revision {number}"),
    };
    run(client, output, old, message).await
}
