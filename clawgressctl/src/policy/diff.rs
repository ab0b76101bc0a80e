//! `policy diff`, and what `policy apply --dry-run` shows.

use std::path::PathBuf;

use clap::Args;
use clawgress_api::identity::{Agent, PolicyOwner};
use clawgress_policy::study::difference::{Reach, ReachDifference, TextDifference};
use clawgress_policy::study::requests::{RequestChange, RequestDifference};
use clawgress_policy::{PolicyBundle, Surroundings};
use jiff::Timestamp;
use serde::Serialize;

use super::around::{Around, live};
use super::files::Written;
use super::{agents, check, named, written};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Output};

#[derive(Args)]
pub struct Arguments {
    /// Number of a revision, or a policy file or directory.
    first: String,
    /// Likewise; the live revision if absent.
    second: Option<String>,
    /// Named sets of the first, if it is a file.
    #[arg(long, value_name = "FILE")]
    first_sets: Option<PathBuf>,
    /// Named sets of the second, if it is a file.
    #[arg(long, value_name = "FILE")]
    second_sets: Option<PathBuf>,
    /// Compare only what is written: needs no running agent where both are files.
    #[arg(long)]
    text: bool,
}

/// Most agents or hosts that a row names; `--output json` has all.
const NAMES_SHOWN_MAX: usize = 6;

/// What is shown.
#[derive(Serialize)]
struct Shown {
    written: TextDifference,
    #[serde(skip_serializing_if = "Option::is_none")]
    reach: Option<ReachDifference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<RequestDifference>,
}

/// Compares two.
pub async fn run(
    client: &Client,
    output: Output,
    owner: &PolicyOwner,
    arguments: Arguments,
) -> Result<(), Failure> {
    let Arguments { first, second, first_sets, second_sets, text } = arguments;
    let first = named(client, owner, &first, first_sets.as_ref()).await?;
    let second = named(client, owner, second.as_deref().unwrap_or("0"), second_sets.as_ref()).await?;
    let agents = if text { None } else { Some(agents(client).await?) };
    show(output, &compare(client, Some(first), second, agents.as_deref()).await?)
}

/// Lets the node check it, and compares it with what is live.
pub async fn dry_run(client: &Client, output: Output, new: Written) -> Result<(), Failure> {
    let check = check::on_node(client, output, &new).await?;
    new.warn(&check.findings);
    let live = match live(client).await?.get(&new.owner) {
        None => None,
        Some(number) => Some(written(client, &new.owner, *number).await?),
    };
    let agents = agents(client).await?;
    show(output, &compare(client, live, new, Some(&agents)).await?)?;
    output::note("nothing was changed");
    Ok(())
}

async fn compare(
    client: &Client,
    first: Option<Written>,
    second: Written,
    agents: Option<&[Agent]>,
) -> Result<Shown, Failure> {
    let (owner, none) = (second.owner.clone(), PolicyBundle::default());
    let former = first.as_ref().map_or(&none, |first| &first.bundle);
    let written = TextDifference::between(former, &second.bundle);
    let Some(agents) = agents else { return Ok(Shown { written, reach: None, requests: None }) };
    let is_asked = |agent: &&Agent| owner.tenant().is_none_or(|tenant| agent.id.tenant() == tenant);
    let agents: Vec<Agent> = agents.iter().filter(is_asked).cloned().collect();
    let now = Timestamp::now().as_millisecond();
    let first = Around::with(client, &owner, first).await?;
    let second = Around::new(client, second).await?;
    let (a, b) = (first.policies.at(now), second.policies.at(now));
    let reach = ReachDifference::between_all(&a, &b, &agents);
    let reach = reach.map_err(|errors| match second.written.values().next() {
        Some(written) => written.refused(&errors.problems),
        None => Failure::Refused(errors.to_string()),
    })?;
    let plain = Surroundings::default();
    let texts = first.written.values().chain(second.written.values());
    let texts: Vec<_> = texts.map(|written| written.in_force(&plain)).collect();
    let requests = RequestDifference::between(&a, &b, &texts, &agents);
    Ok(Shown { written, reach: Some(reach), requests: Some(requests) })
}

fn show(output: Output, shown: &Shown) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(shown);
    }
    let TextDifference { added, removed, changed, members_added, members_removed } = &shown.written;
    if shown.written.is_empty() {
        output::line("the same policies and sets")?;
    }
    for (id, text) in removed {
        output::line(&format!("- policy `{id}`"))?;
        lines('-', text)?;
    }
    for (id, text) in added {
        output::line(&format!("+ policy `{id}`"))?;
        lines('+', text)?;
    }
    for (id, (before, after)) in changed {
        output::line(&format!("~ policy `{id}`"))?;
        lines('-', before)?;
        lines('+', after)?;
    }
    for (sign, sets) in [('-', members_removed), ('+', members_added)] {
        for (name, members) in sets {
            let members: Vec<&str> = members.iter().map(String::as_str).collect();
            output::line(&format!("{sign} set `{name}`: {}", output::clean(&members.join(", "))))?;
        }
    }
    shown.reach.as_ref().map_or(Ok(()), show_reach)?;
    shown.requests.as_ref().map_or(Ok(()), show_requests)
}

fn show_reach(reach: &ReachDifference) -> Result<(), Failure> {
    if reach.reaches.is_empty() && reach.incomplete.is_none() {
        return output::line("\nregistered agents reach the same addresses");
    }
    if !reach.reaches.is_empty() {
        output::line("")?;
        let rows: Vec<Vec<String>> = reach.reaches.iter().map(row).collect();
        output::table(&["AGENTS", "PROTOCOL", "ADDRESSES", "PORTS", "BEFORE", "AFTER"], &rows)?;
    }
    if let Some(why) = &reach.incomplete {
        output::note(&format!("note: {why}"));
    }
    Ok(())
}

fn show_requests(requests: &RequestDifference) -> Result<(), Failure> {
    if requests.changes.is_empty() {
        output::line(&format!("of {} requests that were tried, all get the same answer", requests.asked))?;
    } else {
        output::line("")?;
        let rows: Vec<Vec<String>> = requests.changes.iter().map(request_row).collect();
        output::table(&["AGENTS", "ACTION", "HOSTS", "REQUESTS", "BEFORE", "AFTER"], &rows)?;
    }
    if let Some(why) = &requests.incomplete {
        output::note(&format!("note: {why}"));
    }
    Ok(())
}

fn request_row(change: &RequestChange) -> Vec<String> {
    let about: Vec<String> =
        change.about.iter().map(|(name, value)| format!("{name} {}", output::clean(value))).collect();
    let about = if about.is_empty() { "all".to_owned() } else { about.join(", ") };
    let (before, after) = (change.before.clone(), change.after.clone());
    vec![first_of(&change.agents), change.action.clone(), first_of(&change.hosts), about, before, after]
}

/// Names, as many as a row holds.
fn first_of(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_SHOWN_MAX).map(String::as_str).collect::<Vec<_>>().join(" ");
    match names.len().checked_sub(NAMES_SHOWN_MAX) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

fn lines(sign: char, text: &str) -> Result<(), Failure> {
    text.lines().try_for_each(|line| output::line(&format!("    {sign} {}", output::clean(line))))
}

fn row(reach: &Reach) -> Vec<String> {
    let ports = match reach.ports {
        None => "-".to_owned(),
        Some((0, u16::MAX)) => "all".to_owned(),
        Some((first, last)) if first == last => first.to_string(),
        Some((first, last)) => format!("{first}-{last}"),
    };
    let addresses = if reach.first == reach.last {
        reach.first.to_string()
    } else {
        format!("{} - {}", reach.first, reach.last)
    };
    let (before, after) = (reach.before.clone(), reach.after.clone());
    vec![reach.agents.join(" "), reach.protocol.clone(), addresses, ports, before, after]
}
