//! `policy apply` and `policy rollback`.

use clawgress_api::identity::PolicyOwner;
use clawgress_api::{AppliedPolicy, Plane, PlaneState};
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
struct Shown<'a> {
    #[serde(flatten)]
    applied: &'a AppliedPolicy<PolicyBundle>,
    /// What lint suspects of it, and what was accepted.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    findings: &'a [Finding],
}

/// Makes it live, after this revision alone, if one is said.
pub async fn run(
    client: &Client,
    output: Output,
    written: Written,
    (message, parent): (String, Option<u64>),
) -> Result<(), Failure> {
    let findings = check::on_node(client, output, &written).await?.findings;
    let mut admin = client.connect().await?;
    let answer = admin.apply_policy(new_policy(&written, message, parent)?).await;
    let applied: AppliedPolicy<PolicyBundle> = client.document(written.explained(answer)?)?;
    if output == Output::Json {
        output::json(&Shown { applied: &applied, findings: &findings })?;
    } else {
        written.warn(&findings);
        show(&written.owner, &applied)?;
    }
    // A plane that doesn't run it is news to whoever thinks it is in force.
    if applied.behind.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = applied.behind.iter().map(PlaneState::told).collect();
    Err(Failure::Behind(output::clean(&format!(
        "revision {}{} is live, and not everywhere yet: {}; see `clawgressctl status`",
        applied.revision.number,
        of(&written.owner),
        names.join(", ")
    ))))
}

fn show(owner: &PolicyOwner, applied: &AppliedPolicy<PolicyBundle>) -> Result<(), Failure> {
    let generation = output::or_dash(applied.revision.generation);
    output::line(&format!(
        "revision {}{} is live in generation {generation}",
        applied.revision.number,
        of(owner)
    ))?;
    for plane in &applied.running {
        output::line(&output::clean(&format!("  runs it: {}", plane.told())))?;
    }
    for plane in &applied.behind {
        let (told, why) = (plane.told(), plane.why.as_deref().unwrap_or("it has not said why"));
        // One that can't be reached may run any: none is said of it.
        let at = match plane.generation {
            0 if plane.plane == Plane::Kernel => "away".to_owned(),
            generation => format!("at generation {generation}"),
        };
        output::line(&output::clean(&format!("  behind, {at}: {told}: {why}")))?;
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
    // What was gone back from is what is live still.
    run(client, output, old, (message, Some(live.number))).await
}
