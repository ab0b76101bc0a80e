//! `trust-domain`: whose SVIDs prove who agents are (SPIFFE).

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clawgress_api::identity::{JWKS_BYTES_MAX, RootId, TrustDomain, TrustDomainRecord};
use clawgress_api::proto::{Empty, Name};

use crate::client::{Client, request};
use crate::failure::Failure;
use crate::issuer::{self, file};
use crate::output::{self, Output};

#[derive(Subcommand)]
pub enum Verb {
    /// Adds a trust domain, or changes it; what was proved by it is judged again.
    Set(Set),
    /// Lists the trust domains.
    List,
    /// Shows a trust domain.
    Show(Named),
    /// Deletes a trust domain: what was proved by it ends.
    Delete(Named),
}

#[derive(Args)]
pub struct Set {
    /// Its id: `NAME` or `TENANT/NAME`. It speaks for agents of that tenant.
    name: RootId,
    /// Settings: TOML with `domain`, `audiences` and `[mapping]`.
    #[arg(long, value_name = "FILE")]
    settings: PathBuf,
    /// Its bundle: a JSON document.
    #[arg(long, value_name = "FILE")]
    bundle: PathBuf,
}

#[derive(Args)]
pub struct Named {
    /// The trust domain: `NAME` or `TENANT/NAME`.
    name: RootId,
}

/// Does what was asked.
pub async fn run(client: &Client, output: Output, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Set(set) => {
            let record = read(&set)?;
            let mut admin = client.connect().await?;
            show(output, &client.document(admin.set_trust_domain(request(&record)?).await)?)
        }
        Verb::List => {
            let mut admin = client.connect().await?;
            let all: Vec<TrustDomainRecord> = client.documents(admin.list_trust_domains(Empty {}).await)?;
            list(output, &all)
        }
        Verb::Show(Named { name }) => {
            let mut admin = client.connect().await?;
            show(output, &client.document(admin.show_trust_domain(Name { name: name.to_string() }).await)?)
        }
        Verb::Delete(Named { name }) => {
            let mut admin = client.connect().await?;
            client.answer(admin.delete_trust_domain(Name { name: name.to_string() }).await)?;
            match output {
                Output::Table => output::line(&format!(
                    "trust domain `{name}` is deleted; its SVIDs prove nobody any more"
                )),
                Output::Json => output::json(&serde_json::json!({ "deleted": name })),
            }
        }
    }
}

/// The record that the files make, checked as the agent will.
fn read(set: &Set) -> Result<TrustDomainRecord, Failure> {
    let given = vec![("bundle", file(&set.bundle, JWKS_BYTES_MAX)?)];
    let record: TrustDomainRecord = issuer::record(&set.settings, &set.name, &["bundle"], given)?;
    TrustDomain::new(record.clone())
        .map_err(|e| Failure::Refused(format!("trust domain `{}`: {e}", set.name)))?;
    Ok(record)
}

fn list(output: Output, all: &[TrustDomainRecord]) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(&all);
    }
    if all.is_empty() {
        return output::line(
            "there are no trust domains; add one with `clawgressctl trust-domain set NAME --settings FILE --bundle JSON`",
        );
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|record| {
            let (certificates, keys) = counts(record);
            vec![record.id.to_string(), record.domain.to_string(), certificates, keys]
        })
        .collect();
    output::table(&["ID", "TRUST DOMAIN", "CERTIFICATES", "KEYS"], &rows)
}

fn show(output: Output, record: &TrustDomainRecord) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(record);
    }
    let audiences = record.audiences.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    let (certificates, keys) = counts(record);
    for (what, value) in [
        ("id", record.id.to_string()),
        ("trust domain", record.domain.to_string()),
        ("aud", audiences),
        ("certificates", certificates),
        ("keys", keys),
    ] {
        output::line(&format!("{what:<12} {}", output::clean(&value)))?;
    }
    Ok(())
}

/// How many authorities for X.509-SVIDs and keys for JWT-SVIDs there are.
fn counts(record: &TrustDomainRecord) -> (String, String) {
    let domain = TrustDomain::new(record.clone());
    domain.map_or(("none".to_owned(), "none".to_owned()), |domain| {
        (domain.bundle().authorities().to_string(), domain.bundle().keys().len().to_string())
    })
}
