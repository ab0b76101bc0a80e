//! `issuer`: who is trusted to say by tokens who agents are.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use clawgress_api::identity::{
    AnchorsError, Issuer, IssuerError, IssuerRecord, JWKS_BYTES_MAX, KeySet, ProviderError, RootId,
};
use clawgress_api::proto::{Empty, Name};
use clawgress_api::{KeysState, ProviderStatus};
use serde::de::DeserializeOwned;

use crate::client::{Client, request};
use crate::culprit::{self, CERTIFICATE, Pem};
use crate::failure::Failure;
use crate::input;
use crate::output::{self, Output};

/// Largest file of settings, bytes: a table of a thousand agents and ten thousand revoked tokens fit.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Names the file of certificates that a provider, or an endpoint, is verified by.
const CA_FILE: &str = "ca_file";

#[derive(Subcommand)]
pub enum Verb {
    /// Adds an issuer, or changes it; what its tokens proved is judged again.
    Set(Set),
    /// Lists the issuers.
    List,
    /// Shows an issuer.
    Show(Named),
    /// Deletes an issuer: what its tokens proved ends.
    Delete(Named),
}

#[derive(Args)]
pub struct Set {
    /// Its id: `NAME` or `TENANT/NAME`. It speaks for agents of that tenant.
    name: RootId,
    /// Settings: TOML with `issuer`, `audiences`, `algorithms`, `[mapping]` and more.
    #[arg(long, value_name = "FILE")]
    settings: PathBuf,
    /// Its public keys that count always: a JWKS document. Not needed where the settings have a `[provider]`.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
}

#[derive(Args)]
pub struct Named {
    /// The issuer: `NAME` or `TENANT/NAME`.
    name: RootId,
}

/// Does what was asked.
pub async fn run(client: &Client, output: Output, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Set(set) => {
            let record = read(&set)?;
            let mut admin = client.connect().await?;
            show(output, &client.document(admin.set_issuer(request(&record)?).await)?)
        }
        Verb::List => {
            let mut admin = client.connect().await?;
            let issuers: Vec<IssuerRecord> = client.documents(admin.list_issuers(Empty {}).await)?;
            let statuses: Vec<ProviderStatus> = client.documents(admin.provider_status(Empty {}).await)?;
            list(output, &issuers, &statuses)
        }
        Verb::Show(Named { name }) => {
            let mut admin = client.connect().await?;
            show(output, &client.document(admin.show_issuer(Name { name: name.to_string() }).await)?)?;
            let statuses: Vec<ProviderStatus> = client.documents(admin.provider_status(Empty {}).await)?;
            match statuses.iter().find(|status| status.issuer == name) {
                Some(status) if output == Output::Table => provider(status),
                _ => Ok(()),
            }
        }
        Verb::Delete(Named { name }) => {
            let mut admin = client.connect().await?;
            client.answer(admin.delete_issuer(Name { name: name.to_string() }).await)?;
            match output {
                Output::Table => {
                    output::line(&format!("issuer `{name}` is deleted; its tokens prove nobody any more"))
                }
                Output::Json => output::json(&serde_json::json!({ "deleted": name })),
            }
        }
    }
}

/// The record that the files make, checked as the agent will.
fn read(set: &Set) -> Result<IssuerRecord, Failure> {
    let mut settings = table(&set.settings, &set.name, &["keys"])?;
    if let Some(keys) = &set.keys {
        settings.insert("keys".to_owned(), input::json_text(keys, JWKS_BYTES_MAX)?.into());
    }
    read_ca(set, &mut settings)?;
    let record: IssuerRecord = understood(&set.settings, settings)?;
    Issuer::new(record.clone()).map_err(|error| refused(set, &record, &error))?;
    Ok(record)
}

fn refused(set: &Set, record: &IssuerRecord, error: &IssuerError) -> Failure {
    let subject = format!("issuer `{}`", set.name);
    let told = format!("{subject}: {error}");
    match (error, &set.keys, &record.provider) {
        (IssuerError::Keys(_), Some(path), _) => {
            let text = input::json_text(path, JWKS_BYTES_MAX).unwrap_or_default();
            culprit::of_keys(path, &text, &told, |set| KeySet::parse(set).is_err())
        }
        (IssuerError::Provider(ProviderError::Ca(error)), _, Some(provider)) => {
            of_ca(&set.settings, *error, &told, &["provider"], &provider.ca)
        }
        _ => of_settings(&set.settings, &subject, &error.to_string()),
    }
}

/// What is wrong with settings, with its place as far as it is known.
pub fn of_settings(settings: &Path, subject: &str, error: &str) -> Failure {
    let text = input::read_within(settings, FILE_BYTES_MAX).unwrap_or_default();
    culprit::of_settings(settings, &text, (subject, error))
}

/// What is wrong with the certificates that `ca_file` of the table under these keys names, or that its `ca` holds, where it
/// stands.
pub fn of_ca(settings: &Path, error: AnchorsError, told: &str, keys: &[&str], text: &str) -> Failure {
    let whole = input::read_within(settings, FILE_BYTES_MAX).unwrap_or_default();
    let table: Option<toml::Value> = whole.parse().ok().map(toml::Value::Table);
    let own = keys.iter().try_fold(table.as_ref(), |table, key| Some(table?.get(key)));
    let named = own.flatten().and_then(|own| own.get(CA_FILE)?.as_str());
    let found = match named.map(|named| settings.parent().unwrap_or(Path::new("")).join(named)) {
        Some(path) => {
            let pem = Pem { path: &path, text, label: CERTIFICATE, within: None };
            culprit::of_anchors(error, told, pem, None)
        }
        None => culprit::of_inline(error, told, (settings, &whole), &[keys, &["ca"]].concat()),
    };
    found.unwrap_or_else(|| Failure::Refused(told.to_owned()))
}

/// Puts the certificates that `ca_file` of the provider names, from the settings' directory on, in its place.
fn read_ca(set: &Set, settings: &mut toml::Table) -> Result<(), Failure> {
    match settings.get_mut("provider") {
        Some(toml::Value::Table(provider)) => read_ca_file(&set.settings, provider),
        _ => Ok(()),
    }
}

/// Puts the certificates that `ca_file` of a table names, from the directory of its file on, in its place.
pub fn read_ca_file(settings: &Path, table: &mut toml::Table) -> Result<(), Failure> {
    let Some(path) = table.remove(CA_FILE) else { return Ok(()) };
    let place = settings.display();
    let Some(path) = path.as_str().filter(|_| !table.contains_key("ca")) else {
        return Err(Failure::Refused(format!(
            "{place}: `{CA_FILE}` is the path of a PEM file, and `ca` is not given besides it"
        )));
    };
    let path = settings.parent().unwrap_or(Path::new("")).join(path);
    table.insert("ca".to_owned(), input::read_within(&path, FILE_BYTES_MAX)?.into());
    Ok(())
}

/// A file of settings of `name`, in which what is given `elsewhere` has no place.
pub fn table(settings: &Path, name: &RootId, elsewhere: &[&str]) -> Result<toml::Table, Failure> {
    let place = settings.display();
    let text = input::read_within(settings, FILE_BYTES_MAX)?;
    let mut table: toml::Table = input::toml_of(settings, &text)?;
    if let Some(given) = ["id"].iter().chain(elsewhere).find(|key| table.contains_key(**key)) {
        return Err(Failure::Refused(format!(
            "{place}: `{given}` is given on the command line; leave it out"
        )));
    }
    table.insert("id".to_owned(), name.to_string().into());
    Ok(table)
}

/// What a table of settings says, which a file and the command line made.
pub fn understood<T: DeserializeOwned>(settings: &Path, table: toml::Table) -> Result<T, Failure> {
    table.clone().try_into().map_err(|e: toml::de::Error| {
        // A table has no places: the text is asked again, with what did not come from it before it.
        let text = input::read_within(settings, FILE_BYTES_MAX).unwrap_or_default();
        let own: toml::Table = text.parse().unwrap_or_default();
        let given = table.iter().filter(|(key, value)| value.is_str() && !own.contains_key(*key));
        let given: String = given.map(|(key, value)| format!("{key} = {value}\n")).collect();
        let again = toml::from_str::<T>(&format!("{given}{text}")).err();
        let at = again.filter(|again| again.message() == e.message()).and_then(|again| again.span());
        let place = at.and_then(|at| Some(input::place(&text, at.start.checked_sub(given.len())?)));
        input::misread(settings, &text, place, e.message())
    })
}

/// The record of `name` that a file of settings makes with what else is `given`, or may be.
pub fn record<T: DeserializeOwned>(
    settings: &Path,
    name: &RootId,
    elsewhere: &[&str],
    given: Vec<(&str, String)>,
) -> Result<T, Failure> {
    let mut table = table(settings, name, elsewhere)?;
    table.extend(given.into_iter().map(|(key, text)| (key.to_owned(), text.into())));
    understood(settings, table)
}

fn list(output: Output, issuers: &[IssuerRecord], statuses: &[ProviderStatus]) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(&issuers);
    }
    let status = |id: &RootId| statuses.iter().find(|status| status.issuer == *id);
    if issuers.is_empty() {
        return output::line(
            "there are no issuers; add one with `clawgressctl issuer set NAME --settings FILE` and `--keys JWKS` or a `[provider]`",
        );
    }
    let rows: Vec<Vec<String>> = issuers
        .iter()
        .map(|issuer| {
            vec![
                issuer.id.to_string(),
                issuer.issuer.clone(),
                audiences(issuer),
                keys(issuer),
                status(&issuer.id).map_or("-".to_owned(), state),
            ]
        })
        .collect();
    output::table(&["ISSUER", "ISS", "AUD", "KEYS", "PROVIDER"], &rows)
}

fn show(output: Output, issuer: &IssuerRecord) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(issuer);
    }
    let algorithms: Vec<&str> = issuer.algorithms.iter().map(|a| a.name()).collect();
    for (what, value) in [
        ("issuer", issuer.id.to_string()),
        ("iss", issuer.issuer.clone()),
        ("aud", audiences(issuer)),
        ("algorithms", algorithms.join(" ")),
        ("keys", keys(issuer)),
        ("revoked", format!("{} tokens", issuer.revoked.len())),
    ] {
        output::line(&format!("{what:<12} {}", output::clean(&value)))?;
    }
    Ok(())
}

/// In a word or two, whether a provider's keys count, and whether it answers.
fn state(status: &ProviderStatus) -> String {
    let keys = match status.state {
        KeysState::None => "no keys",
        KeysState::Fresh => "fresh",
        KeysState::Stale => "stale",
    };
    if status.failures > 0 { format!("{keys}, failing") } else { keys.to_owned() }
}

fn provider(status: &ProviderStatus) -> Result<(), Failure> {
    fn time(at: Option<impl ToString>) -> String {
        at.map_or("-".to_owned(), |at| at.to_string())
    }
    for (what, value) in [
        ("provider", state(status)),
        ("fetched", status.keys.join(" ")),
        ("confirmed", time(status.confirmed_at)),
        ("fresh until", time(status.fresh_until)),
        ("count until", time(status.counts_until)),
        ("next fetch", time(status.next_fetch_at)),
        ("error", status.error.clone().unwrap_or("-".to_owned())),
    ] {
        output::line(&format!("{what:<12} {}", output::clean(&value)))?;
    }
    Ok(())
}

fn audiences(issuer: &IssuerRecord) -> String {
    issuer.audiences.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// How many keys count, and how many of the document don't.
fn keys(issuer: &IssuerRecord) -> String {
    let Ok(issuer) = Issuer::new(issuer.clone()) else { return "none".to_owned() };
    let skipped = issuer.keys().skipped();
    match skipped.unknown + skipped.other_use + skipped.unfit {
        0 => issuer.keys().len().to_string(),
        skipped => format!("{} ({skipped} not used)", issuer.keys().len()),
    }
}
