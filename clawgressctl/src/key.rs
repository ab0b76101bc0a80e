//! `key`: the API keys of agents.

use clap::{Args, Subcommand};
use clawgress_api::identity::{AgentId, ApiKey};
use clawgress_api::proto::Name;
use clawgress_api::{ApiKeyInfo, ApiKeyRotation, ApiKeyState, CreatedApiKey, NewApiKey};
use jiff::Timestamp;

use crate::client::{Client, request};
use crate::failure::Failure;
use crate::output::{self, Output, or_dash};
use crate::time;

#[derive(Subcommand)]
pub enum Verb {
    /// Makes a further API key of an agent, and prints it this once.
    Create(Create),
    /// Lists keys by their public ids: what counts, and what has ended lately.
    List(List),
    /// Makes a key that takes the place of another, and prints it this once; the old one counts for a while.
    Rotate(Rotate),
    /// Revokes a key at once, also for what is under way.
    Revoke(Revoke),
}

#[derive(Args)]
pub struct Create {
    /// The agent: `NAME` or `TENANT/NAME`.
    agent: AgentId,
    /// From when it counts: a time such as `2027-01-31T00:00Z`, or from now on, such as `2h`.
    #[arg(long, value_name = "TIME", value_parser = time::ahead)]
    not_before: Option<Timestamp>,
    /// From when it counts no longer: as --not-before. Without it, until it is revoked.
    #[arg(long, value_name = "TIME", value_parser = time::ahead)]
    expires: Option<Timestamp>,
}

#[derive(Args)]
pub struct List {
    /// Only this agent's.
    #[arg(long)]
    agent: Option<AgentId>,
}

#[derive(Args)]
pub struct Rotate {
    /// The key's public id, as `key list` shows it.
    #[arg(value_name = "ID", value_parser = id)]
    key: String,
    /// How long the old key goes on counting, such as `15m`, `24h` or `7d`; 30 days at most.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = time::seconds)]
    overlap: u64,
    /// When the new key expires: a time such as `2027-01-31T00:00Z`, or from now on, such as `90d`. Without it, it
    /// lives as long as the old one was to.
    #[arg(long, value_name = "TIME", value_parser = time::ahead)]
    expires: Option<Timestamp>,
}

#[derive(Args)]
pub struct Revoke {
    /// The key's public id, as `key list` shows it.
    #[arg(value_name = "ID", value_parser = id)]
    key: String,
}

/// The public id; of a whole key nothing else is sent on.
fn id(text: &str) -> Result<String, String> {
    // The text may be a secret, so the message doesn't repeat it.
    let id = ApiKey::id_of(text).map_err(|_| "not the id of a key: write its 12 hexadecimal digits")?;
    Ok(id.to_owned())
}

/// Does what was asked.
pub async fn run(client: &Client, output: Output, verb: Verb) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    match verb {
        Verb::Create(Create { agent, not_before, expires }) => {
            let new = NewApiKey { agent, not_before, expires };
            created(output, &client.document(admin.create_key(request(&new)?).await)?)
        }
        Verb::List(List { agent }) => {
            let name = agent.map(|agent| agent.to_string()).unwrap_or_default();
            let keys: Vec<ApiKeyInfo> = client.documents(admin.list_keys(Name { name }).await)?;
            list(output, &keys)
        }
        Verb::Rotate(Rotate { key, overlap, expires }) => {
            let rotation = ApiKeyRotation { id: key, overlap_s: overlap, expires };
            created(output, &client.document(admin.rotate_key(request(&rotation)?).await)?)
        }
        Verb::Revoke(Revoke { key }) => {
            let revoked: ApiKeyInfo = client.document(admin.revoke_key(Name { name: key }).await)?;
            match output {
                Output::Json => output::json(&revoked),
                Output::Table => {
                    let ApiKeyInfo { id, agent, .. } = &revoked;
                    output::line(&format!("key `{id}` of agent `{agent}` is revoked"))
                }
            }
        }
    }
}

fn created(output: Output, created: &CreatedApiKey) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(created);
    }
    let ApiKeyInfo { id, agent, not_before, expires, .. } = &created.key;
    let from = not_before.map(|at| format!(", counts from {at} on")).unwrap_or_default();
    let until = expires.map(|at| format!(", expires {at}")).unwrap_or_default();
    output::line(&format!("key `{id}` of agent `{agent}` is created{from}{until}"))?;
    if let Some(ApiKeyInfo { id, expires, revoked, .. }) = &created.replaces {
        let end = [*expires, *revoked].into_iter().flatten().min();
        output::line(&format!("key `{id}`, whose place it takes, ends {}", or_dash(end)))?;
    }
    output::line(&format!("\nAPI key, shown this once:\n  {}", created.api_key))
}

fn list(output: Output, keys: &[ApiKeyInfo]) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(&keys);
    }
    if keys.is_empty() {
        return output::line("there are no keys; make one with `clawgressctl key create AGENT`");
    }
    let row = |key: &ApiKeyInfo| {
        vec![
            key.id.clone(),
            key.agent.to_string(),
            state(key.state).to_owned(),
            or_dash(key.created),
            or_dash(key.not_before),
            or_dash(key.expires),
            or_dash(key.revoked),
            or_dash(key.run.as_ref()),
        ]
    };
    let header = ["KEY", "AGENT", "STATE", "CREATED", "NOT BEFORE", "EXPIRES", "REVOKED", "RUN"];
    output::table(&header, &keys.iter().map(row).collect::<Vec<_>>())
}

fn state(state: ApiKeyState) -> &'static str {
    match state {
        ApiKeyState::Pending => "pending",
        ApiKeyState::Active => "active",
        ApiKeyState::Rotating => "rotating",
        ApiKeyState::Expired => "expired",
        ApiKeyState::Revoked => "revoked",
    }
}
