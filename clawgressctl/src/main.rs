//! The command line: parses, calls the agent over its admin socket, prints. One module a verb; it holds no
//! behaviour of the gateway itself.
#![forbid(unsafe_code)]

mod agent;
mod audit;
mod authority;
mod ca;
mod client;
mod completion;
mod culprit;
mod failure;
mod geo;
mod group;
mod input;
mod issuer;
mod key;
mod live;
mod metrics;
mod output;
mod policy;
mod provider_key;
mod run;
mod source;
mod status;
mod time;
mod trust_domain;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use clawgress_api::identity::GroupKind;

use self::client::Client;
use self::failure::Failure;
use self::output::Output;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused or failed; the message says why and what to do
  2  wrong usage
  3  the agent can't be reached
  4  this user may not administer
  5  `policy explain`: it would be denied
  6  `policy explain`: not known; nothing that was asked denies it, and more is asked before it passes
  7  `policy apply`, `policy rollback`: it is live, and a plane doesn't run it yet
  `run` passes on the command's own code, or 128 and the signal's number.";

/// Administers the Clawgress agent on this machine.
#[derive(Parser)]
#[command(name = "clawgressctl", version, about, after_help = EXIT_CODES)]
struct Cli {
    /// Socket of the agent's control role.
    #[arg(
        long,
        global = true,
        env = "CLAWGRESS_SOCKET",
        default_value = "/run/clawgress/admin.sock",
        value_name = "PATH"
    )]
    socket: PathBuf,
    /// How to print.
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Shows the node's state, and what is wrong or not enforced.
    Status,
    /// Agents: who may use the gateway.
    #[command(subcommand)]
    Agent(agent::Verb),
    /// Tenants: what carries their name belongs to them.
    #[command(subcommand)]
    Tenant(group::Verb),
    /// Teams of tenants, for policy to name.
    #[command(subcommand)]
    Team(group::Verb),
    /// Projects of tenants, for policy to name.
    #[command(subcommand)]
    Project(group::Verb),
    /// Environments of tenants, such as `prod`, for policy to name.
    #[command(subcommand)]
    Environment(group::Verb),
    /// API keys: what agents prove themselves by.
    #[command(subcommand)]
    Key(key::Verb),
    /// Shared sources: hosts of several agents, and NATs.
    #[command(subcommand)]
    Source(source::Verb),
    /// Keys of providers, which the gateway adds on the way out.
    #[command(subcommand)]
    ProviderKey(provider_key::Verb),
    /// Issuers of tokens: who is trusted to say who agents are.
    #[command(subcommand)]
    Issuer(issuer::Verb),
    /// Certificate authorities: whose client certificates prove who agents are.
    #[command(subcommand)]
    Authority(authority::Verb),
    /// The authority by which TLS is read, for clients to trust.
    #[command(subcommand)]
    Ca(ca::Verb),
    /// Trust domains: whose SVIDs prove who agents are.
    #[command(subcommand)]
    TrustDomain(trust_domain::Verb),
    /// Policy: what they may do.
    Policy(policy::Arguments),
    /// Geo data: which addresses an autonomous system or a country has.
    #[command(subcommand)]
    Geo(geo::Verb),
    /// The audit log: what they did.
    #[command(subcommand)]
    Audit(audit::Verb),
    /// Live flows: who talks to whom, by which policy, and how much.
    Flows(live::Arguments),
    /// What the kernel plane dropped lately, and why.
    Drops(live::Arguments),
    /// Shows rate limits and how much of each is left.
    Limits(live::Arguments),
    /// Prints counters as OpenMetrics text, or as JSON.
    Metrics,
    /// Runs a command as an agent, governed by its cgroup and the local proxy.
    Run(run::Arguments),
    /// Prints the completion script of a shell.
    Completion(completion::Arguments),
    /// Goes into a cgroup, gives up privileges and becomes the command.
    #[command(hide = true)]
    RunChild(run::child::Arguments),
}

// === impl Verb ===

impl Verb {
    /// The name of a verb whose output has a form of its own: a script's, or what a command prints.
    fn prints_its_own(&self) -> Option<&'static str> {
        match self {
            Verb::Run(_) => Some("run"),
            Verb::Completion(_) => Some("completion"),
            _ => None,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let (Output::Json, Some(own)) = (cli.output, cli.verb.prints_its_own()) {
        let told = format!(
            "`--output json` has no meaning with `{own}`: what is printed is not clawgressctl's to form"
        );
        Cli::command().error(clap::error::ErrorKind::ArgumentConflict, told).exit();
    }
    match start(cli) {
        Ok(code) => code,
        Err(failure) => {
            output::complain(&failure.to_string());
            failure.code()
        }
    }
}

fn start(cli: Cli) -> Result<ExitCode, Failure> {
    let Cli { socket, output, verb } = cli;
    // These two need no agent, and the second no runtime: its threads would not survive.
    match verb {
        Verb::Completion(arguments) => return completion::print(&arguments).map(|()| ExitCode::SUCCESS),
        Verb::RunChild(arguments) => return run::child::start(&arguments),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::Refused(format!("cannot start: {e}")))?;
    runtime.block_on(async {
        let client = Client::new(socket);
        match verb {
            Verb::Status => status::show(&client, output).await?,
            Verb::Agent(verb) => agent::run(&client, output, verb).await?,
            Verb::Tenant(verb) => group::run(&client, output, GroupKind::Tenant, verb).await?,
            Verb::Team(verb) => group::run(&client, output, GroupKind::Team, verb).await?,
            Verb::Project(verb) => group::run(&client, output, GroupKind::Project, verb).await?,
            Verb::Environment(verb) => group::run(&client, output, GroupKind::Environment, verb).await?,
            Verb::Key(verb) => key::run(&client, output, verb).await?,
            Verb::Source(verb) => source::run(&client, output, verb).await?,
            Verb::ProviderKey(verb) => provider_key::run(&client, output, verb).await?,
            Verb::Issuer(verb) => issuer::run(&client, output, verb).await?,
            Verb::Authority(verb) => authority::run(&client, output, verb).await?,
            Verb::Ca(verb) => ca::run(&client, output, verb).await?,
            Verb::TrustDomain(verb) => trust_domain::run(&client, output, verb).await?,
            Verb::Policy(arguments) => policy::run(&client, output, arguments).await?,
            Verb::Geo(verb) => geo::run(&client, output, verb).await?,
            Verb::Audit(verb) => audit::run(&client, output, verb).await?,
            Verb::Flows(arguments) => live::flows(&client, output, arguments).await?,
            Verb::Drops(arguments) => live::drops(&client, output, arguments).await?,
            Verb::Limits(arguments) => live::limits(&client, output, arguments).await?,
            Verb::Metrics => metrics::print(&client, output).await?,
            Verb::Run(arguments) => return run::run(&client, arguments).await,
            Verb::Completion(_) | Verb::RunChild(_) => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}
