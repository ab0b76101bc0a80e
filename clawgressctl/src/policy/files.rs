//! What a policy is read from: a file and its sets, or a directory of both. Each problem names the file it is in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use clawgress_api::identity::PolicyOwner;
use clawgress_policy::lint::{Accepted, Certainty, FINDINGS_MAX, Finding};
use clawgress_policy::study::caret;
use clawgress_policy::{NamedSets, PolicyBundle, PolicyInForceRef, PolicyProblem, PolicySet, Surroundings};
use serde::Serialize;
use tonic::{Response, Status as CallStatus};

use crate::failure::Failure;
use crate::{input, output};

/// Most files and directories looked at in a directory: one a policy, with room.
const ENTRIES_MAX: usize = 8_192;
/// Deepest directory below the one that is named: links to above would have no end.
const DEPTH_MAX: usize = 8;

#[derive(Args)]
pub struct Files {
    /// Cedar text; `-` is standard input.
    #[arg(required_unless_present = "from", conflicts_with = "from")]
    file: Option<PathBuf>,
    /// Named sets: TOML with `[hosts]` and `[networks]`, each `name = ["member", ...]`.
    #[arg(long, value_name = "FILE", requires = "file")]
    sets: Option<PathBuf>,
    /// All `*.cedar` and all `*.toml` (sets) in a directory and those below it, as one policy.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
}

/// A policy with the files it was read from.
pub struct Written {
    /// Whose it is.
    pub owner: PolicyOwner,
    /// The policy.
    pub bundle: PolicyBundle,
    /// What to call it.
    pub title: String,
    /// Findings that it is applied with all the same.
    pub accepted: Vec<Accepted>,
    parts: Vec<Part>,
    /// Files of named sets.
    sets: Vec<(PathBuf, String)>,
}

/// A finding in the file it is in.
#[derive(Debug, Serialize)]
pub struct Placed {
    /// The file of its lines; absent where it is at no place of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    #[serde(flatten)]
    finding: Finding,
}

/// A file of Cedar text.
struct Part {
    path: PathBuf,
    text: String,
    /// The line of the whole text that its first line is, from 1.
    first_line: u32,
}

// === impl Files ===

impl Files {
    /// Reads what is named; refuses what can't be read as policy by itself.
    pub fn read(&self, owner: &PolicyOwner) -> Result<Written, Failure> {
        let written = self.read_parts(owner)?;
        written.check_parts()?;
        Ok(written)
    }

    /// Reads what is named, of which [`Written::check_parts`] has still to be asked.
    pub fn read_parts(&self, owner: &PolicyOwner) -> Result<Written, Failure> {
        match (&self.from, &self.file) {
            (Some(dir), _) => Written::from_directory(owner, dir),
            (None, Some(file)) => Written::from_files(owner, file, self.sets.as_deref()),
            (None, None) => Err(Failure::Refused("name a policy file, or a directory with --from".into())),
        }
    }
}

// === impl Written ===

impl Written {
    /// A file, and its sets.
    pub fn from_files(owner: &PolicyOwner, file: &Path, sets: Option<&Path>) -> Result<Written, Failure> {
        let text = input::read(file)?;
        let (mut all, mut read) = (NamedSets::default(), Vec::new());
        if let Some(path) = sets {
            let (sets, text) = self::sets(path)?;
            all = sets;
            read.push((path.to_owned(), text));
        }
        let part = Part { path: file.to_owned(), text: text.clone(), first_line: 1 };
        let title = file.display().to_string();
        let bundle = PolicyBundle { text, sets: all };
        let (owner, accepted, parts) = (owner.clone(), Vec::new(), vec![part]);
        Ok(Written { owner, bundle, title, accepted, parts, sets: read })
    }

    /// A bundle that was read from nowhere.
    pub fn from_bundle(owner: &PolicyOwner, title: String, bundle: PolicyBundle) -> Written {
        let part = Part { path: PathBuf::from(&title), text: bundle.text.clone(), first_line: 1 };
        let (owner, accepted, parts) = (owner.clone(), Vec::new(), vec![part]);
        Written { owner, bundle, title, accepted, parts, sets: Vec::new() }
    }

    /// The same with these findings accepted, besides those that are.
    pub fn accepting(mut self, accepted: Vec<Accepted>) -> Written {
        self.accepted.extend(accepted);
        self.accepted.sort();
        self.accepted.dedup();
        self
    }

    /// The same where it rests on these.
    pub fn in_force<'a>(&'a self, surroundings: &'a Surroundings) -> PolicyInForceRef<'a> {
        PolicyInForceRef { text: &self.bundle.text, sets: &self.bundle.sets, surroundings }
    }

    /// All there is in a directory, in the order of the paths: the same files are the same policy.
    pub fn from_directory(owner: &PolicyOwner, dir: &Path) -> Result<Written, Failure> {
        let mut paths = Vec::new();
        collect(dir, 0, &mut paths)?;
        paths.sort();
        let (mut bundle, mut parts, mut read) = (PolicyBundle::default(), Vec::new(), Vec::new());
        let mut line = 1_u32;
        for path in paths {
            if path.extension().is_some_and(|e| e == "toml") {
                let (sets, text) = sets(&path)?;
                merge(&mut bundle.sets, sets, &path)?;
                read.push((path, text));
                continue;
            }
            let mut text = input::read(&path)?;
            if !text.ends_with('\n') {
                text.push('\n');
            }
            bundle.text.push_str(&text);
            let lines = u32::try_from(text.lines().count()).unwrap_or(u32::MAX);
            parts.push(Part { path, text, first_line: line });
            line = line.saturating_add(lines);
        }
        if parts.is_empty() {
            return Err(Failure::Refused(format!(
                "there is no `*.cedar` in `{}`; to deny everything, apply an empty file",
                dir.display()
            )));
        }
        let title = dir.display().to_string();
        let (owner, accepted) = (owner.clone(), Vec::new());
        Ok(Written { owner, bundle, title, accepted, parts, sets: read })
    }

    /// Checks each file alone, where there are several: text that doesn't end would spoil the next one's places.
    pub fn check_parts(&self) -> Result<(), Failure> {
        let told: Vec<String> = self.wrong_parts().map(|(part, problem)| part.told(&problem)).collect();
        if told.is_empty() { Ok(()) } else { Err(failure(&told)) }
    }

    /// What [`Written::check_parts`] refuses.
    pub fn wrong(&self) -> Vec<Placed> {
        let place = |(part, problem): (&Part, PolicyProblem)| Placed {
            file: Some(part.path.clone()),
            finding: Finding::from(problem),
        };
        self.wrong_parts().map(place).collect()
    }

    fn wrong_parts(&self) -> impl Iterator<Item = (&Part, PolicyProblem)> {
        let several = if self.parts.len() < 2 { &[] } else { self.parts.as_slice() };
        several.iter().flat_map(|part| {
            let bundle = PolicyBundle { text: part.text.clone(), sets: self.bundle.sets.clone() };
            let wrong = PolicySet::check(&self.owner, &bundle).err();
            wrong.into_iter().flat_map(|errors| errors.problems).map(move |problem| (part, problem))
        })
    }

    /// The failure that tells problems of the whole text, each in its file.
    pub fn refused(&self, problems: &[PolicyProblem]) -> Failure {
        let told: Vec<String> = problems.iter().map(|problem| self.told(problem)).collect();
        failure(&told)
    }

    fn told(&self, problem: &PolicyProblem) -> String {
        let part = problem.line.and_then(|line| self.parts.iter().rev().find(|part| part.first_line <= line));
        match part {
            Some(part) => {
                let line = problem.line.map(|line| line - part.first_line + 1);
                part.told(&PolicyProblem { line, ..problem.clone() })
            }
            None => self.told_of_sets(problem),
        }
    }

    /// A problem that is at no place of the text: of a named set, as a rule, where it is written.
    fn told_of_sets(&self, problem: &PolicyProblem) -> String {
        let mut quoted = problem.message.split('`').skip(1).step_by(2);
        let (name, member) = (quoted.next(), quoted.next());
        let found = self.sets.iter().find_map(|(path, text)| {
            let set = text.find(&format!("{} =", name?)).or_else(|| text.find(name?))?;
            let at = member.and_then(|member| text.get(set..)?.find(&format!("\"{member}\"")));
            Some(input::told(path, text, Some(input::place(text, set + at.unwrap_or(0))), &problem.message))
        });
        found.unwrap_or_else(|| format!("{}: {}", self.title, output::clean(&problem.to_string())))
    }

    /// Findings of the whole text, each by the lines of its file.
    pub fn placed(&self, findings: Vec<Finding>) -> Vec<Placed> {
        let place = |mut finding: Finding| {
            let part = self.parts.iter().rev().find(|part| Some(part.first_line) <= finding.line);
            let before = part.map_or(0, |part| part.first_line - 1);
            for line in [&mut finding.line, &mut finding.end_line].into_iter().flatten() {
                *line = line.saturating_sub(before);
            }
            Placed { file: part.map(|part| part.path.clone()), finding }
        };
        findings.into_iter().map(place).collect()
    }

    /// Where a line of the whole text is, as `file:line`.
    pub fn place(&self, line: u32) -> String {
        match self.parts.iter().rev().find(|part| part.first_line <= line) {
            Some(part) => format!("{}:{}", part.path.display(), line - part.first_line + 1),
            None => format!("{}:{line}", self.title),
        }
    }

    /// Tells what lint suspects and what was accepted, beside the output, and of what is to be accepted that there is none.
    pub fn warn(&self, findings: &[Finding]) {
        for finding in findings {
            let word = if finding.severity == Certainty::Accepted { "accepted" } else { "warning" };
            output::note(&format!("{word}: {}", self.told(&finding.problem())));
        }
        // Of too many nobody is told of all.
        let is_whole = findings.len() < FINDINGS_MAX;
        let took_none = |accepted: &&Accepted| is_whole && !findings.iter().any(|f| accepted.took(f));
        for accepted in self.accepted.iter().filter(took_none) {
            output::note(&format!("note: there is no finding `{accepted}`: nothing is accepted by it"));
        }
    }

    /// The problems of the policy that a status carries, if it does.
    pub fn problems<T>(answer: &Result<Response<T>, CallStatus>) -> Option<Vec<PolicyProblem>> {
        let details = answer.as_ref().err()?.details();
        serde_json::from_slice(details).ok().filter(|problems: &Vec<_>| !problems.is_empty())
    }

    /// A status that carries problems of the policy becomes one line each.
    pub fn explained<T>(
        &self,
        answer: Result<Response<T>, CallStatus>,
    ) -> Result<Result<Response<T>, CallStatus>, Failure> {
        match Written::problems(&answer) {
            Some(problems) => Err(self.refused(&problems)),
            None => Ok(answer),
        }
    }
}

// === impl Part ===

impl Part {
    /// A problem of this file, with its line shown.
    fn told(&self, problem: &PolicyProblem) -> String {
        let PolicyProblem { policy, line, column, message } = problem;
        let mut told = self.path.display().to_string();
        for place in [line, column].into_iter().flatten() {
            told.push_str(&format!(":{place}"));
        }
        told.push_str(": ");
        if let Some(policy) = policy {
            told.push_str(&format!("policy `{policy}`: "));
        }
        told.push_str(&output::clean(message));
        if let (Some(line), Some(column)) = (line, column)
            && let Some(caret) = caret(&self.text, *line, *column)
        {
            for shown in caret.lines() {
                told.push_str(&format!("\n  {shown}"));
            }
        }
        told
    }
}

fn failure(told: &[String]) -> Failure {
    let count = told.len();
    let plural = if count == 1 { "" } else { "s" };
    Failure::Refused(format!("{}\n{count} problem{plural}; nothing was changed", told.join("\n")))
}

fn collect(dir: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let unreadable = |e: io::Error| Failure::Refused(format!("cannot read `{}`: {e}", dir.display()));
    if depth > DEPTH_MAX {
        return Err(Failure::Refused(format!("`{}` is deeper than {DEPTH_MAX} directories", dir.display())));
    }
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        if path.is_dir() {
            collect(&path, depth + 1, paths)?;
        } else if path.extension().is_some_and(|e| e == "cedar" || e == "toml") {
            paths.push(path);
        }
        if paths.len() > ENTRIES_MAX {
            return Err(Failure::Refused(format!("`{}` has more than {ENTRIES_MAX} files", dir.display())));
        }
    }
    Ok(())
}

/// Adds sets; the same name in two files would be a rule that two people edit and none sees whole.
fn merge(into: &mut NamedSets, more: NamedSets, path: &Path) -> Result<(), Failure> {
    let twice = |kind: &str, name: &str| {
        Failure::Refused(format!("{}: the set `{kind}.{name}` is in another file already", path.display()))
    };
    for (name, members) in more.hosts {
        if into.hosts.contains_key(&name) {
            return Err(twice("hosts", &name));
        }
        into.hosts.insert(name, members);
    }
    for (name, members) in more.networks {
        if into.networks.contains_key(&name) {
            return Err(twice("networks", &name));
        }
        into.networks.insert(name, members);
    }
    Ok(())
}

/// Named sets, and the text that they are of.
fn sets(path: &Path) -> Result<(NamedSets, String), Failure> {
    let text = input::read(path)?;
    Ok((input::toml_of(path, &text)?, text))
}
