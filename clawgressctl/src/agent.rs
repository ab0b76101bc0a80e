//! `agent`: the registry.

use clap::{Args, Subcommand};
use clawgress_api::identity::{Agent, AgentId, AgentState, DEFAULT_TENANT, OWNER_LABEL, Source};
use clawgress_api::proto::{Empty, Name};
use clawgress_api::{
    AgentChange, AgentStateChange, ChangedAgent, CreatedAgent, Edit, GroupRef, KnownFingerprint,
    MissingGroups, NewAgent, NewQuarantine, Quarantine, Status,
};

use crate::client::{Client, request};
use crate::failure::Failure;
use crate::group::{LabelEdits, Labels, labels};
use crate::output::{self, Output, or_dash};
use crate::time;

#[derive(Subcommand)]
pub enum Verb {
    /// Registers an agent, and prints its API key this once.
    Create(Create),
    /// Lists the agents.
    List,
    /// Shows an agent.
    Show(Named),
    /// Moves an agent to another team, project or environment, or changes its labels or its owner.
    Set(Set),
    /// Removes an agent with its keys, and ends its runs.
    Delete(Named),
    /// Lets nothing of an agent pass until it is enabled again.
    Disable(Named),
    /// Lets policy decide again about an agent that was disabled.
    Enable(Named),
    /// Stops everything of an agent at once, what is under way too, until it is released.
    Quarantine(Isolate),
    /// Releases an agent from quarantine: policy decides about it again.
    Release(Release),
    /// Lists the fingerprints of an agent: of its TLS clients, its executables and its certificates.
    Fingerprints(Named),
    /// Lists who is quarantined, also agents that are no more, where a plane may still know them.
    Quarantines,
}

#[derive(Args)]
pub struct Release {
    /// The agent: `NAME` or `TENANT/NAME`; `NAME#NUMBER` for one that is no more, if there is another of its name.
    name: String,
}

#[derive(Args)]
pub struct Isolate {
    /// The agent: `NAME` or `TENANT/NAME`.
    name: AgentId,
    /// How long, such as `90s`, `15m`, `2h` or `1d`; without it, until it is released.
    #[arg(long = "for", value_name = "TIME", value_parser = time::seconds)]
    seconds: Option<u64>,
    /// Why; it goes into the audit log.
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Args)]
pub struct Named {
    /// The agent: `NAME` or `TENANT/NAME`.
    name: AgentId,
}

#[derive(Args)]
pub struct Create {
    /// Its id: `NAME` or `TENANT/NAME`.
    name: AgentId,
    /// Its team.
    #[arg(long)]
    team: Option<String>,
    /// Its project.
    #[arg(long)]
    project: Option<String>,
    /// Its environment, such as `prod`.
    #[arg(long)]
    environment: Option<String>,
    #[command(flatten)]
    labels: Labels,
    /// Where its traffic comes from, such as `eth1=10.64.0.2,02:00:00:00:00:02`; may be repeated.
    #[arg(long = "source", value_name = "INTERFACE=ADDRESS[/PREFIX],MAC|any-mac")]
    sources: Vec<Source>,
    /// Issue no API key: the agent is known by its sources alone.
    #[arg(long)]
    no_key: bool,
    /// Refuse a team, project, environment or tenant that does not exist, instead of registering it.
    #[arg(long)]
    existing: bool,
}

#[derive(Args)]
pub struct Set {
    /// The agent: `NAME` or `TENANT/NAME`.
    name: AgentId,
    /// Its team.
    #[arg(long)]
    team: Option<String>,
    /// Takes it out of its team.
    #[arg(long, conflicts_with = "team")]
    no_team: bool,
    /// Its project.
    #[arg(long)]
    project: Option<String>,
    /// Takes it out of its project.
    #[arg(long, conflicts_with = "project")]
    no_project: bool,
    /// Its environment, such as `prod`.
    #[arg(long)]
    environment: Option<String>,
    /// Takes it out of its environment.
    #[arg(long, conflicts_with = "environment")]
    no_environment: bool,
    #[command(flatten)]
    labels: LabelEdits,
    /// Register a team, project or environment that does not exist, instead of refusing it.
    #[arg(long)]
    create_missing: bool,
}

/// Does what was asked.
pub async fn run(client: &Client, output: Output, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Create(create) => self::create(client, output, create).await,
        Verb::List => list(client, output).await,
        Verb::Show(Named { name }) => {
            let mut admin = client.connect().await?;
            let agent: Agent = client.document(admin.show_agent(Name { name: name.to_string() }).await)?;
            show(output, &agent)?;
            if agent.state == AgentState::Quarantined && output == Output::Table {
                let all: Vec<Quarantine> = client.documents(admin.list_quarantines(Empty {}).await)?;
                for its in all.iter().filter(|q| q.index == agent.index) {
                    output::line(&format!("{:<12} {}", "quarantined", terms(its)))?;
                    output::line(&format!("{:<12} {} by {}", "since", its.since, output::clean(&its.by)))?;
                }
            }
            Ok(())
        }
        Verb::Delete(Named { name }) => {
            let mut admin = client.connect().await?;
            client.answer(admin.delete_agent(Name { name: name.to_string() }).await)?;
            match output {
                Output::Table => output::line(&format!("agent `{name}` is deleted; its keys count no more")),
                Output::Json => output::json(&serde_json::json!({ "deleted": name })),
            }
        }
        Verb::Set(set) => self::set(client, output, set).await,
        Verb::Disable(Named { name }) => set_state(client, output, name, AgentState::Disabled).await,
        Verb::Enable(Named { name }) => set_state(client, output, name, AgentState::Active).await,
        Verb::Quarantine(Isolate { name, seconds, reason }) => {
            let mut admin = client.connect().await?;
            let new = request(&NewQuarantine { id: name, seconds, reason })?;
            let quarantine: Quarantine = client.document(admin.quarantine_agent(new).await)?;
            if output == Output::Json {
                return output::json(&quarantine);
            }
            output::line(&format!("agent `{}` is quarantined {}", quarantine.agent, terms(&quarantine)))
        }
        Verb::Release(Release { name }) => {
            let mut admin = client.connect().await?;
            let agent: Option<Agent> =
                client.document(admin.release_agent(Name { name: name.clone() }).await)?;
            match (agent, output) {
                (Some(agent), _) => show(output, &agent),
                (None, Output::Table) => {
                    let name = output::clean(&name);
                    output::line(&format!("`{name}` is released; there is no such agent any more"))
                }
                (None, Output::Json) => output::json(&None::<Agent>),
            }
        }
        Verb::Fingerprints(Named { name }) => {
            let mut admin = client.connect().await?;
            let name = Name { name: name.to_string() };
            let all: Vec<KnownFingerprint> = client.documents(admin.list_fingerprints(name).await)?;
            fingerprints(output, &all)
        }
        Verb::Quarantines => {
            let mut admin = client.connect().await?;
            let all: Vec<Quarantine> = client.documents(admin.list_quarantines(Empty {}).await)?;
            let agents: Vec<Agent> = client.documents(admin.list_agents(Empty {}).await)?;
            quarantines(output, &all, &agents)
        }
    }
}

fn fingerprints(output: Output, all: &[KnownFingerprint]) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(&all);
    }
    if all.is_empty() {
        return output::line("no fingerprint of this agent was seen yet");
    }
    let row = |its: &KnownFingerprint| {
        vec![
            output::clean(&its.kind),
            output::clean(&its.value),
            its.first_seen.to_string(),
            its.last_seen.to_string(),
        ]
    };
    output::table(
        &["KIND", "FINGERPRINT", "FIRST SEEN", "LAST SEEN"],
        &all.iter().map(row).collect::<Vec<_>>(),
    )
}

fn quarantines(output: Output, all: &[Quarantine], agents: &[Agent]) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(&all);
    }
    if all.is_empty() {
        return output::line("nobody is quarantined");
    }
    let row = |its: &Quarantine| {
        let is_there = agents.iter().any(|agent| agent.index == its.index);
        let name = if is_there { its.agent.to_string() } else { format!("{}#{}", its.agent, its.index) };
        let note = if is_there { "" } else { " (deleted)" };
        vec![format!("{name}{note}"), its.since.to_string(), output::clean(&its.by), terms(its)]
    };
    output::table(&["AGENT", "SINCE", "BY", "TERMS"], &all.iter().map(row).collect::<Vec<_>>())
}

/// Until when, and why.
fn terms(quarantine: &Quarantine) -> String {
    let until = quarantine.until.map_or("until it is released".to_owned(), |until| format!("until {until}"));
    match &quarantine.reason {
        Some(reason) => format!("{until}: {}", output::clean(reason)),
        None => until,
    }
}

async fn set_state(client: &Client, output: Output, id: AgentId, state: AgentState) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let change = request(&AgentStateChange { id, state })?;
    let agent: Agent = client.document(admin.set_agent_state(change).await)?;
    show(output, &agent)
}

async fn set(client: &Client, output: Output, set: Set) -> Result<(), Failure> {
    fn edit(to: Option<String>, is_cleared: bool) -> Edit<String> {
        match to {
            Some(to) => Edit::Set(to),
            None if is_cleared => Edit::Clear,
            None => Edit::Keep,
        }
    }
    let change = AgentChange {
        id: set.name,
        team: edit(set.team, set.no_team),
        project: edit(set.project, set.no_project),
        environment: edit(set.environment, set.no_environment),
        labels: set.labels.into_change(),
        missing: if set.create_missing { MissingGroups::Create } else { MissingGroups::Refuse },
    };
    let mut admin = client.connect().await?;
    let changed: ChangedAgent = client.document(admin.set_agent(request(&change)?).await)?;
    if output == Output::Json {
        return output::json(&changed);
    }
    show(output, &changed.agent)?;
    tell(&changed.registered)
}

/// Says which groups are new: a slip in a name shows there.
fn tell(registered: &[GroupRef]) -> Result<(), Failure> {
    registered.iter().try_for_each(|group| {
        output::line(&format!("{} `{}` is new, and registered with it", group.kind.name(), group.id))
    })
}

async fn create(client: &Client, output: Output, create: Create) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let new = NewAgent {
        id: create.name,
        team: create.team,
        project: create.project,
        environment: create.environment,
        labels: create.labels.into_map(),
        sources: create.sources,
        key: !create.no_key,
        missing: if create.existing { MissingGroups::Refuse } else { MissingGroups::Create },
    };
    let created: CreatedAgent = client.document(admin.create_agent(request(&new)?).await)?;
    if output == Output::Json {
        return output::json(&created);
    }
    let agent = &created.agent;
    output::line(&format!("agent `{}` is created", agent.id))?;
    tell(&created.registered)?;
    let Some(key) = &created.api_key else { return Ok(()) };
    output::line(&format!("\nAPI key, shown this once:\n  {key}"))?;
    // The proxy's addresses come from the status; without them the key is still good.
    let status: Option<Status> = client.document(admin.status(Empty {}).await).ok();
    let proxies = status.map(|s| s.proxies).unwrap_or_default();
    for (n, proxy) in proxies.iter().enumerate() {
        if n == 0 {
            output::line("\nproxy:")?;
        }
        let url = proxy_url(&agent.id, key, &proxy.to_string());
        let remark = if proxy.ip().is_unspecified() { "    (put the gateway's address in)" } else { "" };
        output::line(&format!("  export HTTPS_PROXY={url} HTTP_PROXY={url}{remark}"))?;
    }
    Ok(())
}

/// The URL of the explicit proxy with the agent's credential. The tenant `default` needn't be written.
pub fn proxy_url(id: &AgentId, key: &str, address: &str) -> String {
    if id.tenant() == DEFAULT_TENANT {
        format!("http://{}:{key}@{address}", id.name())
    } else {
        // A slash in the user part is written as %2F (RFC 3986, section 3.2.1).
        format!("http://{}%2F{}:{key}@{address}", id.tenant(), id.name())
    }
}

async fn list(client: &Client, output: Output) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let agents: Vec<Agent> = client.documents(admin.list_agents(Empty {}).await)?;
    if output == Output::Json {
        return output::json(&agents);
    }
    if agents.is_empty() {
        return output::line("there are no agents; create one with `clawgressctl agent create NAME`");
    }
    let rows: Vec<Vec<String>> = agents
        .iter()
        .map(|a| {
            vec![
                a.id.to_string(),
                state(a.state).to_owned(),
                or_dash(a.team.as_ref()),
                or_dash(a.project.as_ref()),
                or_dash(a.environment.as_ref()),
                sources(a),
            ]
        })
        .collect();
    output::table(&["AGENT", "STATE", "TEAM", "PROJECT", "ENVIRONMENT", "SOURCES"], &rows)
}

fn show(output: Output, agent: &Agent) -> Result<(), Failure> {
    if output == Output::Json {
        return output::json(agent);
    }
    for (what, value) in [
        ("agent", agent.id.to_string()),
        ("number", agent.index.to_string()),
        ("state", state(agent.state).to_owned()),
        ("team", or_dash(agent.team.as_ref())),
        ("project", or_dash(agent.project.as_ref())),
        ("environment", or_dash(agent.environment.as_ref())),
        ("owner", or_dash(agent.labels.get(OWNER_LABEL))),
        ("labels", labels(&agent.labels)),
        ("sources", sources(agent)),
    ] {
        output::line(&format!("{what:<12} {}", output::clean(&value)))?;
    }
    Ok(())
}

fn state(state: AgentState) -> &'static str {
    match state {
        AgentState::Active => "active",
        AgentState::Quarantined => "quarantined",
        AgentState::Disabled => "disabled",
    }
}

fn sources(agent: &Agent) -> String {
    let sources: Vec<String> = agent.sources.iter().map(ToString::to_string).collect();
    if sources.is_empty() { "-".to_owned() } else { sources.join(" ") }
}
