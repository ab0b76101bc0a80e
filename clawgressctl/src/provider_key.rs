//! `provider-key`: keys of providers, which the gateway adds on the way out, so that no agent holds them.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clawgress_api::identity::ProviderKeyId;
use clawgress_api::proto::{Empty, Name};
use clawgress_api::{NewProviderKey, PROVIDER_KEY_BYTES_MAX, ProviderKeyInfo, SecretText};
use zeroize::Zeroizing;

use crate::client::{Client, request};
use crate::failure::Failure;
use crate::input;
use crate::output::{self, Output};

#[derive(Subcommand)]
pub enum Verb {
    /// Takes a provider's key, and seals it. Policy names it in `@inject`.
    Create(Create),
    /// Gives a key another value, at once for all that is sent from then on.
    Rotate(Rotate),
    /// Lists keys: names, versions, and where they may go. Values are never shown.
    List,
    /// Deletes a key: what policy sends with it is denied.
    Delete(Named),
}

#[derive(Args)]
pub struct Create {
    /// Its id: `NAME` or `TENANT/NAME`.
    name: ProviderKeyId,
    /// Host that it may be sent to; may be repeated.
    #[arg(long = "host", value_name = "HOST", required = true)]
    hosts: Vec<String>,
    /// Lets it be sent in clear (`http://`), for servers on this machine or behind a network of one's own.
    #[arg(long)]
    allow_clear: bool,
    /// File with the value, `-` for standard input; a line break at its end is not part of it.
    #[arg(long, value_name = "FILE", default_value = "-")]
    value: PathBuf,
}

#[derive(Args)]
pub struct Rotate {
    /// The key: `NAME` or `TENANT/NAME`.
    name: ProviderKeyId,
    /// Host that it may be sent to from now on, instead of those it had; may be repeated.
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// File with the value, `-` for standard input; a line break at its end is not part of it.
    #[arg(long, value_name = "FILE", default_value = "-")]
    value: PathBuf,
}

#[derive(Args)]
pub struct Named {
    /// The key: `NAME` or `TENANT/NAME`.
    name: ProviderKeyId,
}

/// Does what was asked.
pub async fn run(client: &Client, output: Output, verb: Verb) -> Result<(), Failure> {
    let new = match verb {
        Verb::Create(Create { name, hosts, allow_clear, value }) => {
            NewProviderKey { id: name, hosts, clear: allow_clear, is_rotation: false, value: secret(&value)? }
        }
        Verb::Rotate(Rotate { name, hosts, value }) => {
            NewProviderKey { id: name, hosts, clear: false, is_rotation: true, value: secret(&value)? }
        }
        Verb::List => {
            let mut admin = client.connect().await?;
            let keys: Vec<ProviderKeyInfo> = client.documents(admin.list_provider_keys(Empty {}).await)?;
            return list(output, &keys);
        }
        Verb::Delete(Named { name }) => {
            let mut admin = client.connect().await?;
            client.answer(admin.delete_provider_key(Name { name: name.to_string() }).await)?;
            return match output {
                Output::Table => output::line(&format!(
                    "provider key `{name}` is deleted; what policy sends with it is denied"
                )),
                Output::Json => output::json(&serde_json::json!({ "deleted": name })),
            };
        }
    };
    let mut admin = client.connect().await?;
    let set: ProviderKeyInfo = client.document(admin.set_provider_key(request(&new)?).await)?;
    match output {
        Output::Json => output::json(&set),
        Output::Table => {
            let ProviderKeyInfo { id, version, hosts, .. } = &set;
            output::line(&format!("provider key `{id}`, version {version}, goes to {}", hosts.join(", ")))
        }
    }
}

/// The value, without the line break that editors and `echo` put behind it.
fn secret(path: &std::path::Path) -> Result<SecretText, Failure> {
    let text = Zeroizing::new(input::read_within(path, PROVIDER_KEY_BYTES_MAX + 2)?);
    let value = text.strip_suffix('\n').unwrap_or(&text);
    let value = value.strip_suffix('\r').unwrap_or(value);
    Ok(SecretText(Zeroizing::new(value.to_owned())))
}

fn list(output: Output, keys: &[ProviderKeyInfo]) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(&keys);
    }
    if keys.is_empty() {
        return output::line(
            "there are no provider keys; make one with `clawgressctl provider-key create NAME --host HOST < FILE`",
        );
    }
    let row = |key: &ProviderKeyInfo| {
        vec![
            key.id.to_string(),
            key.version.to_string(),
            key.hosts.join(" "),
            if key.clear { "yes" } else { "no" }.to_owned(),
            key.created.to_string(),
            key.rotated.to_string(),
        ]
    };
    let header = ["KEY", "VERSION", "HOSTS", "IN CLEAR", "CREATED", "ROTATED"];
    output::table(&header, &keys.iter().map(row).collect::<Vec<_>>())
}
