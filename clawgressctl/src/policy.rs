//! `policy`: what may be done, before and after it is live. One module for what a verb needs.

use std::env;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use clawgress_api::identity::{Agent, AgentId, PolicyOwner};
use clawgress_api::proto::{Empty, RevisionNumber};
use clawgress_api::{NewPolicy, PolicyRevision, PolicySurroundings, PolicyTexts, Standing};
use clawgress_policy::lint::Accepted;
use clawgress_policy::study::replay::Needs;
use clawgress_policy::{PolicyBundle, SCHEMA, Surroundings, schema_json};

use self::files::{Files, Written};
use crate::client::{Client, request};
use crate::failure::Failure;
use crate::output::{self, Output};

mod apply;
mod around;
mod check;
mod diff;
mod explain;
mod files;
mod history;
mod replay;
mod test;
mod zone;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    whose: Whose,
    #[command(subcommand)]
    verb: Verb,
}

/// Whose policy is meant; the tenant `default`'s if nothing is said.
#[derive(Args)]
struct Whose {
    /// The policy of this tenant; of `default` if absent.
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "platform")]
    tenant: Option<String>,
    /// The platform's policy, which stands above every tenant's.
    #[arg(long, global = true)]
    platform: bool,
}

/// What whoever applies a policy takes responsibility for.
#[derive(Args)]
pub struct Accept {
    /// Apply it although it is proven to do nothing there: `KIND:POLICY` as the finding has it, or `KIND` for all of that
    /// kind (`never-matches`, `covered-by-forbid`, `not-enforced`). The revision and the audit log say so for ever.
    #[arg(long = "accept-findings", value_name = "KIND[:POLICY]", value_delimiter = ',')]
    findings: Vec<Accepted>,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Checks a policy, without an agent; changes nothing.
    Check {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        accept: Accept,
        /// Let the running agent check it, against its agents and the kernel's tables.
        #[arg(long)]
        node: bool,
    },
    /// Asks a policy what cases want of it; fails if it says otherwise.
    Test(test::Arguments),
    /// Shows in what two policies differ: as written, and in what agents may reach.
    Diff(diff::Arguments),
    /// Asks a policy again what was decided before, from the audit log, and shows what would change.
    Replay(replay::Arguments),
    /// Makes a policy live in both planes.
    Apply {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        accept: Accept,
        /// Why, for the history.
        #[arg(long, short, required_unless_present = "dry_run")]
        message: Option<String>,
        /// Refuse it if another revision than this one is live, 0 for none: what two pipelines apply at once is then never
        /// undone by the slower one.
        #[arg(long, value_name = "REVISION", conflicts_with = "dry_run")]
        parent: Option<u64>,
        /// Only let the running agent check it, and show what would change.
        #[arg(long)]
        dry_run: bool,
    },
    /// Prints the text of the live revision, or of another.
    Show {
        /// Number of the revision.
        revision: Option<u64>,
    },
    /// Lists the revisions, newest first, and whether their signatures hold.
    History,
    /// Prints the public key that revisions are signed with, as PEM.
    Signer,
    /// Prints the schema that policy is written in, for editors: as Cedar, or with `--output json` as its JSON.
    Schema,
    /// Makes an older revision's policy live again, as a new revision.
    Rollback {
        /// Number of the revision; the one before the live one, if absent.
        revision: Option<u64>,
        /// What is accepted besides what the older revision was applied with.
        #[command(flatten)]
        accept: Accept,
        /// Why, for the history.
        #[arg(long, short)]
        message: Option<String>,
    },
    /// Shows what policy says of an agent's URL or address, phase by phase, and why. Exits with 0 if it passes, 5 if it would be
    /// denied, and 6 if that is not known, since not everything could be asked (a URL without --address, say).
    Explain(Box<explain::Arguments>),
}

/// Does what was asked.
pub async fn run(client: &Client, output: Output, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { whose, verb } = arguments;
    let owner = &whose.owner()?;
    match verb {
        Verb::Check { files, accept, node } => {
            check::run(client, output, &files.read_parts(owner)?.accepting(accept.findings), node).await
        }
        Verb::Test(arguments) => test::run(client, output, owner, arguments).await,
        Verb::Diff(arguments) => diff::run(client, output, owner, arguments).await,
        Verb::Replay(arguments) => replay::run(client, output, owner, arguments).await,
        Verb::Apply { files, accept, dry_run: true, .. } => {
            diff::dry_run(client, output, files.read(owner)?.accepting(accept.findings)).await
        }
        Verb::Apply { files, accept, message, parent, .. } => {
            let written = files.read(owner)?.accepting(accept.findings);
            apply::run(client, output, written, (message.unwrap_or_default(), parent)).await
        }
        Verb::Show { revision } => history::show(client, output, owner, revision.unwrap_or(0)).await,
        Verb::History => history::list(client, output, owner).await,
        Verb::Schema | Verb::Signer if whose.is_said() => Err(Failure::Refused(
            "there is one schema and one signer for all: leave `--tenant` and `--platform` out".into(),
        )),
        Verb::Schema => match output {
            Output::Table => output::line(SCHEMA.trim_end()),
            Output::Json => output::line(&schema_json().map_err(Failure::Refused)?),
        },
        Verb::Signer => history::signer(client, output).await,
        Verb::Rollback { revision, accept, message } => {
            apply::rollback(client, output, owner, (revision, accept.findings), message).await
        }
        Verb::Explain(arguments) => explain::run(client, output, whose, *arguments).await,
    }
}

// === impl Whose ===

impl Whose {
    fn owner(&self) -> Result<PolicyOwner, Failure> {
        match &self.tenant {
            _ if self.platform => Ok(PolicyOwner::Platform),
            Some(name) => PolicyOwner::of_tenant(name).map_err(|e| Failure::Refused(e.to_string())),
            None => Ok(PolicyOwner::default()),
        }
    }

    fn is_said(&self) -> bool {
        self.platform || self.tenant.is_some()
    }
}

/// How long ago what is asked about may be: more than records are kept.
const YEARS_BACK: jiff::SignedDuration = jiff::SignedDuration::from_hours(4 * 366 * 24);

/// Whose something is, behind its name; nothing of the tenant's of whom nothing needs saying.
fn of(owner: &PolicyOwner) -> String {
    if owner.is_default() { String::new() } else { format!(" of {}", owner.told()) }
}

/// A revision of an owner with its bundle; 0 is the live one.
async fn revision(
    client: &Client,
    owner: &PolicyOwner,
    number: u64,
) -> Result<PolicyRevision<PolicyBundle>, Failure> {
    let mut admin = client.connect().await?;
    let owner = owner.to_string();
    client.document(admin.show_policy(RevisionNumber { number, owner }).await)
}

/// The live policy, or a revision of it, as something to ask, or to make live again: what is in the store counts as a
/// policy only if its signature holds.
async fn written(client: &Client, owner: &PolicyOwner, number: u64) -> Result<Written, Failure> {
    let revision = revision(client, owner, number).await?;
    let wrong = match revision.standing {
        None | Some(Standing::Signed) => None,
        Some(Standing::Unknown) => {
            output::note(
                "warning: the keys role can't be reached, so nobody knows whether the signature holds",
            );
            None
        }
        Some(Standing::Unsigned) => Some("nobody signed it"),
        Some(Standing::OtherKey) => Some("it was signed by another key than the keys role's"),
        Some(Standing::Altered) => {
            Some("its signature does not hold, so that somebody changed it in the state store")
        }
    };
    if let Some(wrong) = wrong {
        let number = revision.number;
        return Err(Failure::Refused(format!(
            "revision {number}{} is not used: {wrong}; look its text over (`clawgressctl policy show {number}`), and apply it as a file if it is what you want",
            of(owner)
        )));
    }
    let title = format!("revision {}{}", revision.number, of(owner));
    // Of a kind that this version doesn't know, nothing is accepted.
    let accepted = revision.accepted.iter().filter_map(|name| name.parse().ok()).collect();
    Ok(Written::from_bundle(owner, title, revision.bundle.unwrap_or_default()).accepting(accepted))
}

/// A revision's number, or a file's path.
async fn named(
    client: &Client,
    owner: &PolicyOwner,
    name: &str,
    sets: Option<&PathBuf>,
) -> Result<Written, Failure> {
    if let Ok(number) = name.parse() {
        return written(client, owner, number).await;
    }
    let path = PathBuf::from(name);
    if path.is_dir() {
        let written = Written::from_directory(owner, &path)?;
        written.check_parts()?;
        Ok(written)
    } else {
        Written::from_files(owner, &path, sets.map(PathBuf::as_path))
    }
}

/// What a policy rests on at the node: its geo data and its time zone. Asked for only where the policy asks for either, so
/// that nothing else needs the node.
async fn surroundings(client: &Client, written: &Written) -> Result<Surroundings, Failure> {
    let text = &written.bundle.text;
    let needs = Needs::of(text);
    if !needs.geo && !needs.time {
        return Ok(Surroundings::default());
    }
    let surroundings = node_surroundings(client, &written.owner, &[text]).await?.surroundings;
    let zone = zone::widened(surroundings.zone, years_ago());
    Ok(Surroundings { zone, ..surroundings })
}

/// Before what records tell of, and what is asked about.
fn years_ago() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    now.checked_sub(YEARS_BACK).unwrap_or(now)
}

/// The same of several texts, for the decisions of an owner's agents.
async fn node_surroundings(
    client: &Client,
    owner: &PolicyOwner,
    texts: &[&str],
) -> Result<PolicySurroundings<Surroundings>, Failure> {
    let mut admin = client.connect().await?;
    let texts = texts.iter().map(|text| (*text).to_owned()).collect();
    let of = PolicyTexts { owner: owner.clone(), texts };
    client.document(admin.policy_surroundings(request(&of)?).await)
}

async fn agents(client: &Client) -> Result<Vec<Agent>, Failure> {
    let mut admin = client.connect().await?;
    client.documents(admin.list_agents(Empty {}).await)
}

fn no_agent(id: &AgentId) -> Failure {
    Failure::Refused(format!("there is no agent `{id}`; see `clawgressctl agent list`"))
}

/// Who types: behind sudo, who called it. The agent records the socket's user as well.
fn author() -> String {
    env::var("SUDO_USER").or_else(|_| env::var("USER")).unwrap_or_default()
}

fn new_policy(
    written: &Written,
    message: String,
    parent: Option<u64>,
) -> Result<clawgress_api::proto::Document, Failure> {
    let (owner, bundle) = (written.owner.clone(), written.bundle.clone());
    let accepted = written.accepted.iter().map(ToString::to_string).collect();
    request(&NewPolicy { owner, bundle, message, author: author(), accepted, parent })
}
