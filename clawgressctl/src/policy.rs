//! `policy`: check, apply, show, history.

use std::env;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use clawgress_api::proto::{Empty, RevisionNumber};
use clawgress_api::{NewPolicy, PolicyCheck, PolicyRevision, Status};
use clawgress_policy::{NamedSets, PolicyBundle, PolicyErrors, PolicyProblem, PolicySet};
use tonic::{Response, Status as CallStatus};

use crate::client::{Client, request};
use crate::failure::Failure;
use crate::output::{self, Output};

/// Largest policy or sets file, bytes: what the agent takes.
const FILE_BYTES_MAX: u64 = 64 << 20;

#[derive(Subcommand)]
pub enum Verb {
    /// Checks a policy, without an agent; changes nothing.
    Check {
        #[command(flatten)]
        files: Files,
        /// Let the running agent check it, against its agents and the kernel's tables.
        #[arg(long)]
        node: bool,
    },
    /// Makes a policy live in both planes.
    Apply {
        #[command(flatten)]
        files: Files,
        /// Why, for the history.
        #[arg(long, short)]
        message: String,
    },
    /// Prints the text of the live revision, or of another.
    Show {
        /// Number of the revision.
        revision: Option<u64>,
    },
    /// Lists the revisions, newest first.
    History,
}

#[derive(Args)]
pub struct Files {
    /// Cedar text; `-` is standard input.
    file: PathBuf,
    /// Named sets: TOML with `[hosts]` and `[networks]`, each `name = ["member", ...]`.
    #[arg(long, value_name = "FILE")]
    sets: Option<PathBuf>,
}

/// Does what was asked.
pub async fn run(client: &Client, output: Output, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Check { files, node } => {
            let bundle = files.read()?;
            let (check, left_out) = if node {
                (check_on_node(client, &files, bundle).await?, "")
            } else {
                files.check(&bundle)?
            };
            match output {
                Output::Json => output::json(&check),
                Output::Table => output::line(&format!(
                    "`{}` is valid: policies {}, kernel prefixes {}, kernel verdicts {}, rate limits {}{}",
                    files.file.display(),
                    check.policies,
                    check.prefixes,
                    check.cells,
                    check.limiters,
                    left_out
                )),
            }
        }
        Verb::Apply { files, message } => {
            let bundle = files.read()?;
            let mut admin = client.connect().await?;
            let new = NewPolicy { bundle, message, author: author() };
            let answer = admin.apply_policy(request(&new)?).await;
            let revision: PolicyRevision<PolicyBundle> = client.document(files.explained(answer)?)?;
            if output == Output::Json {
                return output::json(&revision);
            }
            let generation = output::or_dash(revision.generation);
            output::line(&format!("revision {} is live in generation {generation}", revision.number))?;
            // A plane that doesn't run it is news to whoever thinks it is in force.
            let status: Status = client.document(admin.status(Empty {}).await)?;
            for warning in status.warnings.iter().filter(|w| w.contains("generation")) {
                output::note(&format!("warning: {}", output::clean(warning)));
            }
            Ok(())
        }
        Verb::Show { revision } => show(client, output, revision.unwrap_or(0)).await,
        Verb::History => history(client, output).await,
    }
}

async fn check_on_node(client: &Client, files: &Files, bundle: PolicyBundle) -> Result<PolicyCheck, Failure> {
    let mut admin = client.connect().await?;
    let new = NewPolicy { bundle, message: String::new(), author: String::new() };
    client.document(files.explained(admin.check_policy(request(&new)?).await)?)
}

async fn show(client: &Client, output: Output, number: u64) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let answer = admin.show_policy(RevisionNumber { number }).await;
    let revision: PolicyRevision<PolicyBundle> = client.document(answer)?;
    if output == Output::Json {
        return output::json(&revision);
    }
    let bundle = revision.bundle.unwrap_or_default();
    // The text alone goes to standard output, so that it can be applied again.
    let live = revision.generation.map(|g| format!(", live in generation {g}")).unwrap_or_default();
    output::note(&output::clean(&format!(
        "revision {}{live}, by {} at {}: {}",
        revision.number, revision.author, revision.time, revision.message
    )));
    if bundle.sets != NamedSets::default() {
        output::note("it has named sets; see them with --output json");
    }
    output::line(bundle.text.trim_end())
}

async fn history(client: &Client, output: Output) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let answer = admin.policy_history(Empty {}).await;
    let revisions: Vec<PolicyRevision<PolicyBundle>> = client.documents(answer)?;
    if output == Output::Json {
        return output::json(&revisions);
    }
    if revisions.is_empty() {
        return output::line("no policy has been applied yet: everything is denied");
    }
    let rows: Vec<Vec<String>> = revisions
        .iter()
        .map(|r| {
            vec![
                r.number.to_string(),
                r.generation.map(|g| format!("generation {g}")).unwrap_or_default(),
                r.time.strftime("%F %T").to_string(),
                r.author.clone(),
                r.hash.chars().take(12).collect(),
                r.message.clone(),
            ]
        })
        .collect();
    output::table(&["REVISION", "LIVE", "TIME (UTC)", "AUTHOR", "HASH", "MESSAGE"], &rows)
}

/// Who types: behind sudo, who called it. The agent records the socket's user as well.
fn author() -> String {
    env::var("SUDO_USER").or_else(|_| env::var("USER")).unwrap_or_default()
}

// === impl Files ===

impl Files {
    fn read(&self) -> Result<PolicyBundle, Failure> {
        let text = read(&self.file)?;
        let sets = match &self.sets {
            None => NamedSets::default(),
            Some(path) => sets(path)?,
        };
        Ok(PolicyBundle { text, sets })
    }

    /// As the agent would check it, but for what depends on its agents and its geo data; and what that is, in
    /// words.
    fn check(&self, bundle: &PolicyBundle) -> Result<(PolicyCheck, &'static str), Failure> {
        let refused =
            |errors: PolicyErrors| Failure::Policy { file: self.file.clone(), problems: errors.problems };
        let outline = PolicySet::check(bundle).map_err(refused)?;
        let count = |n: usize| n as u64;
        let check = PolicyCheck {
            policies: count(outline.policies),
            prefixes: count(outline.prefixes),
            cells: count(outline.cells),
            limiters: count(outline.limiters),
        };
        let left_out = if outline.names_geo {
            " (without agents, and without geo data: whether they have the ASNs and countries, --node tells)"
        } else {
            " (without agents)"
        };
        Ok((check, left_out))
    }

    /// A status that carries problems of the policy becomes one line each.
    fn explained<T>(
        &self,
        answer: Result<Response<T>, CallStatus>,
    ) -> Result<Result<Response<T>, CallStatus>, Failure> {
        let problems =
            |status: &CallStatus| serde_json::from_slice::<Vec<PolicyProblem>>(status.details()).ok();
        match answer.as_ref().err().and_then(problems) {
            Some(problems) if !problems.is_empty() => {
                Err(Failure::Policy { file: self.file.clone(), problems })
            }
            _ => Ok(answer),
        }
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
    };
    read.map_err(|e| Failure::Refused(format!("cannot read `{}`: {e}", path.display())))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Failure::Refused(format!("`{}` is over {FILE_BYTES_MAX} bytes", path.display())));
    }
    Ok(text)
}

fn sets(path: &Path) -> Result<NamedSets, Failure> {
    let text = read(path)?;
    toml::from_str(&text).map_err(|e| {
        let before = e.span().and_then(|s| text.get(..s.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Failure::Refused(format!("{}:{line}:{column}: {}", path.display(), e.message()))
    })
}
