//! `authority`: whose client certificates prove who agents are.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clawgress_api::identity::{
    Authority, AuthorityError, AuthorityRecord, PEM_BYTES_MAX, Revocation, RootId,
};
use clawgress_api::proto::{Empty, Name};

use crate::client::{Client, request};
use crate::culprit::{self, CERTIFICATE, Pem, REVOCATION_LIST};
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::{input, issuer};

#[derive(Subcommand)]
pub enum Verb {
    /// Adds an authority, or changes it; what was proved by it is judged again.
    Set(Set),
    /// Lists the authorities.
    List,
    /// Shows an authority.
    Show(Named),
    /// Deletes an authority: what was proved by it ends.
    Delete(Named),
}

#[derive(Args)]
pub struct Set {
    /// Its id: `NAME` or `TENANT/NAME`. It speaks for agents of that tenant.
    name: RootId,
    /// Settings: TOML with `revocation` and `[mapping]`.
    #[arg(long, value_name = "FILE")]
    settings: PathBuf,
    /// Certificates of the authority: PEM.
    #[arg(long, value_name = "FILE")]
    certificates: PathBuf,
    /// Its revocation lists: PEM.
    #[arg(long, value_name = "FILE")]
    revocation_lists: Option<PathBuf>,
}

#[derive(Args)]
pub struct Named {
    /// The authority: `NAME` or `TENANT/NAME`.
    name: RootId,
}

/// Does what was asked.
pub async fn run(client: &Client, output: Output, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Set(set) => {
            let record = read(&set)?;
            let mut admin = client.connect().await?;
            show(output, &client.document(admin.set_authority(request(&record)?).await)?)
        }
        Verb::List => {
            let mut admin = client.connect().await?;
            let all: Vec<AuthorityRecord> = client.documents(admin.list_authorities(Empty {}).await)?;
            list(output, &all)
        }
        Verb::Show(Named { name }) => {
            let mut admin = client.connect().await?;
            show(output, &client.document(admin.show_authority(Name { name: name.to_string() }).await)?)
        }
        Verb::Delete(Named { name }) => {
            let mut admin = client.connect().await?;
            client.answer(admin.delete_authority(Name { name: name.to_string() }).await)?;
            match output {
                Output::Table => output::line(&format!(
                    "authority `{name}` is deleted; its certificates prove nobody any more"
                )),
                Output::Json => output::json(&serde_json::json!({ "deleted": name })),
            }
        }
    }
}

/// The record that the files make, checked as the agent will.
fn read(set: &Set) -> Result<AuthorityRecord, Failure> {
    let mut given = vec![("certificates", input::read_within(&set.certificates, PEM_BYTES_MAX)?)];
    if let Some(lists) = &set.revocation_lists {
        given.push(("revocation_lists", input::read_within(lists, PEM_BYTES_MAX)?));
    }
    let record: AuthorityRecord =
        issuer::record(&set.settings, &set.name, &["certificates", "revocation_lists"], given)?;
    Authority::new(record.clone()).map_err(|error| refused(set, &record, &error))?;
    Ok(record)
}

fn refused(set: &Set, record: &AuthorityRecord, error: &AuthorityError) -> Failure {
    let subject = format!("authority `{}`", set.name);
    let told = format!("{subject}: {error}");
    let AuthorityError::Anchors(error) = error else {
        return issuer::of_settings(&set.settings, &subject, &error.to_string());
    };
    let certificates =
        Pem { path: &set.certificates, text: &record.certificates, label: CERTIFICATE, within: None };
    let lists = set.revocation_lists.as_deref();
    let lists =
        lists.map(|path| Pem { path, text: &record.revocation_lists, label: REVOCATION_LIST, within: None });
    culprit::of_anchors(*error, &told, certificates, lists).unwrap_or(Failure::Refused(told))
}

fn list(output: Output, all: &[AuthorityRecord]) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(&all);
    }
    if all.is_empty() {
        return output::line(
            "there are no authorities; add one with `clawgressctl authority set NAME --settings FILE --certificates PEM`",
        );
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|record| {
            let (certificates, lists) = counts(record);
            vec![record.id.to_string(), certificates, revocation(record).to_owned(), lists]
        })
        .collect();
    output::table(&["AUTHORITY", "CERTIFICATES", "REVOCATION", "LISTS"], &rows)
}

fn show(output: Output, record: &AuthorityRecord) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(record);
    }
    output::line(&format!("{:<16} {}", "authority", record.id))?;
    output::line(&format!("{:<16} {}", "revocation", revocation(record)))?;
    // It was taken as it is.
    let Ok(authority) = Authority::new(record.clone()) else { return Ok(()) };
    for thumbprint in authority.thumbprints() {
        output::line(&format!("{:<16} {}", "certificate", output::clean(thumbprint)))?;
    }
    for list in authority.lists() {
        let at = |at_s: i64| jiff::Timestamp::from_second(at_s).map_or("never".to_owned(), |t| t.to_string());
        let (from, until) = (at(list.this_update_s), at(list.next_update_s));
        output::line(&format!("{:<16} of {from}, counts until {until}", "revocation list"))?;
    }
    Ok(())
}

/// How many certificates and lists there are.
fn counts(record: &AuthorityRecord) -> (String, String) {
    let authority = Authority::new(record.clone());
    authority.map_or(("none".to_owned(), "none".to_owned()), |authority| {
        (authority.thumbprints().len().to_string(), authority.lists().count().to_string())
    })
}

fn revocation(record: &AuthorityRecord) -> &'static str {
    match record.revocation {
        Revocation::Off => "off",
        Revocation::Leaf => "leaf",
        Revocation::Chain => "chain",
    }
}
