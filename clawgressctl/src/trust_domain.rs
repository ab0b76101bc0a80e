//! `trust-domain`: whose SVIDs prove who agents are (SPIFFE).

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clawgress_api::identity::{
    BundleSource, EndpointProfile, JWKS_BYTES_MAX, ProviderError, RootId, SourceError, SpiffeBundle,
    SpiffeId, TrustDomain, TrustDomainError, TrustDomainRecord,
};
use clawgress_api::proto::{Empty, Name};
use clawgress_api::{BundleStatus, KeysState};

use crate::client::{Client, request};
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::{culprit, input, issuer};

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
    /// Settings: TOML with `domain`, `audiences` and `[mapping]`; and `[source]`, where its bundle is followed.
    #[arg(long, value_name = "FILE")]
    settings: PathBuf,
    /// Its bundle: a JSON document. Where it is followed, the first one of an endpoint that is of the trust domain itself.
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Has its bundle come by the node's SPIFFE Workload API.
    #[arg(long, conflicts_with_all = ["bundle", "bundle_endpoint"])]
    workload_api: bool,
    /// Has its bundle come by the bundle endpoint at this URL.
    #[arg(long, value_name = "URL")]
    bundle_endpoint: Option<String>,
    /// Knows that endpoint by its X.509-SVID with this ID (`https_spiffe`), and not by its host's certificate.
    #[arg(long, value_name = "SPIFFE ID", requires = "bundle_endpoint")]
    endpoint_id: Option<SpiffeId>,
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
            let statuses: Vec<BundleStatus> = client.documents(admin.bundle_status(Empty {}).await)?;
            list(output, &all, &statuses)
        }
        Verb::Show(Named { name }) => {
            let mut admin = client.connect().await?;
            show(output, &client.document(admin.show_trust_domain(Name { name: name.to_string() }).await)?)?;
            let statuses: Vec<BundleStatus> = client.documents(admin.bundle_status(Empty {}).await)?;
            match statuses.iter().find(|status| status.trust_domain == name) {
                Some(status) if output == Output::Table => followed(status),
                _ => Ok(()),
            }
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

/// The record that the files and the command line make, checked as the agent will.
fn read(set: &Set) -> Result<TrustDomainRecord, Failure> {
    let mut settings = issuer::table(&set.settings, &set.name, &["bundle"])?;
    if let Some(bundle) = &set.bundle {
        settings.insert("bundle".to_owned(), input::json_text(bundle, JWKS_BYTES_MAX)?.into());
    }
    read_source(set, &mut settings)?;
    let record: TrustDomainRecord = issuer::understood(&set.settings, settings)?;
    TrustDomain::new(record.clone()).map_err(|error| refused(set, &record, &error))?;
    Ok(record)
}

fn refused(set: &Set, record: &TrustDomainRecord, error: &TrustDomainError) -> Failure {
    let subject = format!("trust domain `{}`", set.name);
    let told = format!("{subject}: {error}");
    match (error, &set.bundle, &record.source) {
        (TrustDomainError::Bundle(_), Some(path), _) => {
            let text = input::json_text(path, JWKS_BYTES_MAX).unwrap_or_default();
            culprit::of_keys(path, &text, &told, |keys| SpiffeBundle::parse(keys).is_err())
        }
        (
            TrustDomainError::Source(SourceError::Bounds(ProviderError::Ca(error))),
            _,
            Some(BundleSource::Endpoint(endpoint)),
        ) => issuer::of_ca(&set.settings, *error, &told, &["source", "endpoint"], &endpoint.ca),
        _ => issuer::of_settings(&set.settings, &subject, &error.to_string()),
    }
}

/// Puts what the command line says of where the bundle comes from into the settings, and the certificates that `ca_file`
/// names in its place.
fn read_source(set: &Set, settings: &mut toml::Table) -> Result<(), Failure> {
    const SOURCE: &str = "source";
    const WORKLOAD_API: &str = "workload_api";
    const ENDPOINT: &str = "endpoint";
    let place = set.settings.display();
    let wanted = match (set.workload_api, &set.bundle_endpoint) {
        (true, _) => Some(WORKLOAD_API),
        (false, Some(_)) => Some(ENDPOINT),
        (false, None) => None,
    };
    if let Some(wanted) = wanted {
        let source = settings.entry(SOURCE).or_insert_with(|| toml::Table::new().into());
        let Some(source) = source.as_table_mut() else {
            return Err(Failure::Refused(format!("{place}: `{SOURCE}` is a table")));
        };
        source.entry(wanted).or_insert_with(|| toml::Table::new().into());
    }
    let source = settings.get_mut(SOURCE).and_then(toml::Value::as_table_mut);
    let Some(endpoint) =
        source.and_then(|source| source.get_mut(ENDPOINT)).and_then(toml::Value::as_table_mut)
    else {
        return Ok(());
    };
    let mut given = Vec::new();
    given.extend(set.bundle_endpoint.as_ref().map(|url| ("url", toml::Value::from(url.as_str()))));
    given.extend(set.endpoint_id.as_ref().map(|id| {
        let id = (EndpointProfile::HTTPS_SPIFFE.to_owned(), toml::Value::from(id.to_string()));
        ("profile", toml::Value::Table([id].into_iter().collect()))
    }));
    for (key, value) in given {
        if endpoint.insert(key.to_owned(), value).is_some() {
            return Err(Failure::Refused(format!(
                "{place}: `{key}` of the endpoint is given on the command line too; leave one out"
            )));
        }
    }
    issuer::read_ca_file(&set.settings, endpoint)
}

fn list(output: Output, all: &[TrustDomainRecord], statuses: &[BundleStatus]) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(&all);
    }
    if all.is_empty() {
        return output::line(
            "there are no trust domains; add one with `clawgressctl trust-domain set NAME --settings FILE` and `--bundle JSON`, `--workload-api` or `--bundle-endpoint URL`",
        );
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|record| {
            let status = statuses.iter().find(|status| status.trust_domain == record.id);
            let (certificates, keys) = match status {
                Some(status) => (status.certificates.len().to_string(), status.keys.len().to_string()),
                None => counts(record),
            };
            let state = status.map_or("given".to_owned(), state);
            vec![record.id.to_string(), record.domain.to_string(), certificates, keys, state]
        })
        .collect();
    output::table(&["ID", "TRUST DOMAIN", "CERTIFICATES", "KEYS", "BUNDLE"], &rows)
}

fn show(output: Output, record: &TrustDomainRecord) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(record);
    }
    let audiences = record.audiences.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    let mut lines =
        vec![("id", record.id.to_string()), ("trust domain", record.domain.to_string()), ("aud", audiences)];
    if record.source.is_none() {
        let (certificates, keys) = counts(record);
        lines.extend([("source", "given".to_owned()), ("certificates", certificates), ("keys", keys)]);
    }
    tell(lines)
}

/// What there is to say of a bundle that is followed.
fn followed(status: &BundleStatus) -> Result<(), Failure> {
    fn time(at: Option<impl ToString>) -> String {
        at.map_or("-".to_owned(), |at| at.to_string())
    }
    tell([
        ("source", status.source.clone()),
        ("bundle", state(status)),
        ("certificates", status.certificates.join(" ")),
        ("keys", status.keys.join(" ")),
        ("sequence", time(status.sequence)),
        ("confirmed", time(status.confirmed_at)),
        ("fresh until", time(status.fresh_until)),
        ("count until", time(status.counts_until)),
        ("next fetch", time(status.next_fetch_at)),
        ("error", status.error.clone().unwrap_or("-".to_owned())),
        ("not trusted", if status.ignored.is_empty() { "-".to_owned() } else { status.ignored.join(" ") }),
    ])
}

fn tell(lines: impl IntoIterator<Item = (&'static str, String)>) -> Result<(), Failure> {
    for (what, value) in lines {
        output::line(&format!("{what:<12} {}", output::clean(&value)))?;
    }
    Ok(())
}

/// In a word or two, whether a bundle that is followed counts, and whether its source answers.
fn state(status: &BundleStatus) -> String {
    let bundle = match status.state {
        KeysState::None => "none",
        KeysState::Fresh => "fresh",
        KeysState::Stale => "stale",
    };
    if status.failures > 0 { format!("{bundle}, failing") } else { bundle.to_owned() }
}

/// How many authorities for X.509-SVIDs and keys for JWT-SVIDs a given bundle has.
fn counts(record: &TrustDomainRecord) -> (String, String) {
    let domain = TrustDomain::new(record.clone());
    domain.map_or(("none".to_owned(), "none".to_owned()), |domain| {
        (domain.bundle().authorities().to_string(), domain.bundle().keys().len().to_string())
    })
}
