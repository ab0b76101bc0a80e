//! `source`: hosts of several agents, and NATs, with the agents that may present themselves there.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use clawgress_api::SharedSourceChange;
use clawgress_api::identity::{AgentId, SharedSource, Source, SourceId};
use clawgress_api::proto::{Empty, Name};

use crate::client::{Client, request};
use crate::failure::Failure;
use crate::output::{self, Output};

#[derive(Subcommand)]
pub enum Verb {
    /// Adds a source that several agents share: each of them is known by its credential there.
    Add(Add),
    /// Lists the shared sources.
    List,
    /// Shows a shared source.
    Show(Named),
    /// Changes who may present a credential from a shared source, or where it is, also for what is under way.
    Set(Set),
    /// Removes a shared source: its addresses are bound no more.
    Remove(Named),
}

#[derive(Args)]
pub struct Add {
    /// Its id: `NAME` or `TENANT/NAME`.
    name: SourceId,
    /// Where its traffic comes from, such as `eth1=10.64.0.0/28,02:00:00:00:00:02`; may be repeated.
    #[arg(long = "at", value_name = "INTERFACE=ADDRESS[/PREFIX],MAC|any-mac", required = true)]
    at: Vec<Source>,
    /// The agents whose credentials may come from there.
    #[arg(long, value_name = "AGENT,...", value_delimiter = ',', required = true)]
    may_present: Vec<AgentId>,
}

#[derive(Args)]
pub struct Set {
    /// The shared source: `NAME` or `TENANT/NAME`.
    name: SourceId,
    /// The agents whose credentials may come from there; nobody else's may any more.
    #[arg(long, value_name = "AGENT,...", value_delimiter = ',', required_unless_present = "at")]
    may_present: Vec<AgentId>,
    /// Where its traffic comes from, and from nowhere else any more; may be repeated.
    #[arg(long = "at", value_name = "INTERFACE=ADDRESS[/PREFIX],MAC|any-mac")]
    at: Vec<Source>,
}

#[derive(Args)]
pub struct Named {
    /// The shared source: `NAME` or `TENANT/NAME`.
    name: SourceId,
}

/// Does what was asked.
pub async fn run(client: &Client, output: Output, verb: Verb) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    match verb {
        Verb::Add(Add { name, at, may_present }) => {
            let new = SharedSource { id: name, at, may_present: may_present.into_iter().collect() };
            show(output, &client.document(admin.add_source(request(&new)?).await)?)
        }
        Verb::List => {
            let sources: Vec<SharedSource> = client.documents(admin.list_sources(Empty {}).await)?;
            list(output, &sources)
        }
        Verb::Show(Named { name }) => {
            show(output, &client.document(admin.show_source(Name { name: name.to_string() }).await)?)
        }
        Verb::Set(Set { name, may_present, at }) => {
            // Neither can be given as nothing.
            let may_present = (!may_present.is_empty()).then(|| may_present.into_iter().collect());
            let change = SharedSourceChange { id: name, may_present, at: (!at.is_empty()).then_some(at) };
            show(output, &client.document(admin.set_source(request(&change)?).await)?)
        }
        Verb::Remove(Named { name }) => {
            client.answer(admin.remove_source(Name { name: name.to_string() }).await)?;
            match output {
                Output::Table => output::line(&format!(
                    "shared source `{name}` is removed; its addresses are bound no more"
                )),
                Output::Json => output::json(&serde_json::json!({ "removed": name })),
            }
        }
    }
}

fn list(output: Output, sources: &[SharedSource]) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(&sources);
    }
    if sources.is_empty() {
        return output::line(
            "there are no shared sources; add one with `clawgressctl source add NAME --at SOURCE --may-present AGENT,...`",
        );
    }
    let rows: Vec<Vec<String>> = sources
        .iter()
        .map(|source| vec![source.id.to_string(), places(source), agents(&source.may_present)])
        .collect();
    output::table(&["SOURCE", "AT", "MAY PRESENT"], &rows)
}

fn show(output: Output, source: &SharedSource) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(source);
    }
    for (what, value) in [
        ("source", source.id.to_string()),
        ("at", places(source)),
        ("may present", agents(&source.may_present)),
    ] {
        output::line(&format!("{what:<12} {}", output::clean(&value)))?;
    }
    Ok(())
}

fn places(source: &SharedSource) -> String {
    source.at.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn agents(agents: &BTreeSet<AgentId>) -> String {
    if agents.is_empty() {
        return "nobody".to_owned();
    }
    agents.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
