//! `tenant`, `team`, `project` and `environment`: the groups that agents are in.

use std::collections::BTreeMap;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Subcommand};
use clawgress_api::identity::{GroupId, GroupKind, OWNER_LABEL};
use clawgress_api::proto::Name;
use clawgress_api::{GroupChange, GroupInfo, GroupRef, LabelChange, NewGroup};

use crate::Cli;
use crate::client::{Client, request};
use crate::failure::Failure;
use crate::output::{self, Output, or_dash};

#[derive(Subcommand)]
pub enum Verb {
    /// Registers one.
    Create(Create),
    /// Lists them, and how many agents are in each.
    List,
    /// Changes its labels or its owner.
    Set(Set),
    /// Deletes one that nothing is in.
    Delete(Named),
}

#[derive(Args)]
pub struct Named {
    /// Its id: a tenant's is `NAME`, others' are `NAME` or `TENANT/NAME`.
    name: String,
}

#[derive(Args)]
pub struct Create {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    labels: Labels,
}

#[derive(Args)]
pub struct Set {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    labels: LabelEdits,
}

/// Labels of something new.
#[derive(Args)]
pub struct Labels {
    /// A label; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Who answers for it: the label `owner`.
    #[arg(long)]
    owner: Option<String>,
}

/// Changes of labels.
#[derive(Args)]
pub struct LabelEdits {
    #[command(flatten)]
    put_on: Labels,
    /// Takes a label off; may be repeated.
    #[arg(long = "no-label", value_name = "KEY")]
    no_labels: Vec<String>,
    /// Takes the owner off.
    #[arg(long, conflicts_with = "owner")]
    no_owner: bool,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("`{text}` is not a label: write KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

// === impl Labels ===

impl Labels {
    pub fn into_map(self) -> BTreeMap<String, String> {
        let owner = self.owner.map(|owner| (OWNER_LABEL.to_owned(), owner));
        self.labels.into_iter().chain(owner).collect()
    }
}

// === impl LabelEdits ===

impl LabelEdits {
    pub fn into_change(self) -> LabelChange {
        let owner = self.no_owner.then(|| OWNER_LABEL.to_owned());
        LabelChange {
            removed: self.no_labels.into_iter().chain(owner).collect(),
            set: self.put_on.into_map(),
        }
    }
}

/// Does what was asked of groups of one kind.
pub async fn run(client: &Client, output: Output, kind: GroupKind, verb: Verb) -> Result<(), Failure> {
    let group = |named: &Named| GroupRef { kind, id: id(kind, &named.name).to_string() };
    match verb {
        Verb::Create(Create { named, labels }) => {
            let new = NewGroup { group: group(&named), labels: labels.into_map() };
            let mut admin = client.connect().await?;
            show(output, &client.document(admin.create_group(request(&new)?).await)?)
        }
        Verb::List => {
            let mut admin = client.connect().await?;
            let name = kind.name().to_owned();
            list(output, kind, &client.documents(admin.list_groups(Name { name }).await)?)
        }
        Verb::Set(Set { named, labels }) => {
            let change = GroupChange { group: group(&named), labels: labels.into_change() };
            let mut admin = client.connect().await?;
            show(output, &client.document(admin.set_group(request(&change)?).await)?)
        }
        Verb::Delete(named) => {
            let group = group(&named);
            let mut admin = client.connect().await?;
            client.answer(admin.delete_group(request(&group)?).await)?;
            match output {
                Output::Table => output::line(&format!("{} `{}` is deleted", kind.name(), group.id)),
                Output::Json => output::json(&serde_json::json!({ "deleted": group })),
            }
        }
    }
}

/// The id, or the end of the command as for any other wrong argument.
fn id(kind: GroupKind, text: &str) -> GroupId {
    GroupId::parse(kind, text)
        .unwrap_or_else(|error| Cli::command().error(ErrorKind::ValueValidation, error).exit())
}

fn list(output: Output, kind: GroupKind, groups: &[GroupInfo]) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(&groups);
    }
    let kind = kind.name();
    if groups.is_empty() {
        return output::line(&format!(
            "there is no {kind}; register one with `clawgressctl {kind} create NAME`"
        ));
    }
    let row = |group: &GroupInfo| {
        vec![
            group.id.clone(),
            group.agents.to_string(),
            or_dash(group.labels.get(OWNER_LABEL)),
            labels(&group.labels),
            or_dash(group.created),
        ]
    };
    let header = [&kind.to_uppercase(), "AGENTS", "OWNER", "LABELS", "CREATED"];
    output::table(&header, &groups.iter().map(row).collect::<Vec<_>>())
}

fn show(output: Output, group: &GroupInfo) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(group);
    }
    for (what, value) in [
        (group.kind.name(), group.id.clone()),
        ("agents", group.agents.to_string()),
        ("owner", or_dash(group.labels.get(OWNER_LABEL))),
        ("labels", labels(&group.labels)),
        ("created", or_dash(group.created)),
    ] {
        output::line(&format!("{what:<12} {}", output::clean(&value)))?;
    }
    Ok(())
}

/// Labels but the owner, which has a place of its own.
pub fn labels(labels: &BTreeMap<String, String>) -> String {
    let others = labels.iter().filter(|(key, _)| *key != OWNER_LABEL);
    let others: Vec<String> = others.map(|(key, value)| format!("{key}={value}")).collect();
    if others.is_empty() { "-".to_owned() } else { others.join(", ") }
}
