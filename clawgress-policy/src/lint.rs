//! What a valid policy set comes to: rules that do nothing, and rules that seem to.
//!
//! Sound, not complete: what is called an error is proven to do nothing, whatever is asked; what can't be proven either
//! way is not told, or told as a warning. Errors depend on the text, its sets and the configuration alone, never on
//! which agents there are, since those come and go after a policy is applied. Must never decide anything.

use std::collections::BTreeSet;

use cedar_policy_core::ast::Effect;
use cedar_policy_core::parser::Loc;
use clawgress_identity::{Agent, PolicyOwner};
use serde::{Deserialize, Serialize};

use crate::set::syntax::{self, ActionConstraint, Named, Policy};
use crate::set::{Source, applies};
use crate::vocabulary::ActionKind;
use crate::{Outline, PolicyBundle, PolicyErrors, PolicyProblem, PolicySet};

mod accepted;
mod covered;
mod facts;
mod formula;
mod moot;
mod names;
mod platform;
mod reading;
mod search;
mod spans;
#[cfg(test)]
mod tests;

pub use accepted::{ACCEPTED_MAX, Acceptance, Accepted, AcceptedError};
use covered::Forbids;
use formula::Reading;
pub use names::FORMER_METHODS;
pub use reading::ReadTls;
use search::Search;

/// Most findings told at once; a person looks at the first ones first.
pub const FINDINGS_MAX: usize = 100;

/// How sure a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    /// Proven: the policy, or a part of it, does nothing. It is refused.
    Error,
    /// Proven, and accepted by whoever applies it.
    Accepted,
    /// Suspected, or true only as things are now.
    Warning,
}

/// What is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lint {
    /// The text is not a valid set.
    Invalid,
    /// Scope and conditions contradict each other.
    NeverMatches,
    /// Where it matches, a forbid always matches too.
    CoveredByForbid,
    /// It names an action that nothing asks about here.
    NotEnforced,
    /// It names a principal that is not registered.
    UnknownPrincipal,
    /// It names a method as nothing asks about it any more.
    FormerName,
    /// An opaque permit lets pass unread what it is about.
    Moot,
    /// What it is about is never read.
    NeverRead,
    /// The platform's policy leaves nothing of it.
    PlatformDenies,
    /// By naming an action it has that asked, and no policy permits it.
    NonePermits,
    /// There was too much to compare.
    Unfinished,
}

/// One thing to say about a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Whether it is refused for it.
    pub severity: Certainty,
    /// What it is.
    pub lint: Lint,
    /// Id of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Line it begins at, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column it begins at, from 1, in characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// Line it ends in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_line: Option<u32>,
    /// Column it ends before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_column: Option<u32>,
    /// What is so.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// What there is around a policy set.
#[derive(Clone, Debug)]
pub struct Configuration<'a> {
    /// The actions that some plane asks about.
    pub enforced: Enforced,
    /// The registered agents, if they are known.
    pub agents: Option<&'a [Agent]>,
    /// The text of the platform's policy, if the set stands under one.
    pub platform: Option<&'a str>,
    /// Which TLS is read, if that is known.
    pub reading: Option<&'a ReadTls>,
}

/// Actions that some plane asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enforced(BTreeSet<ActionKind>);

/// One policy to look at.
struct Rule<'a> {
    id: String,
    cedar: &'a cedar_policy::Policy,
    /// Its actions, of those that are enforced.
    actions: Vec<ActionKind>,
    /// What it obliges to, if that is all it does. Read once: Cedar parses the name at each look-up.
    effect: Option<&'a str>,
    /// Whether it decides.
    is_guard: bool,
    /// Whether evaluating it may end in an error, which determines a decision.
    may_fail: bool,
}

/// What is being looked at, and what was found.
struct Linter<'a> {
    set: &'a PolicySet,
    source: Source<'a>,
    configuration: &'a Configuration<'a>,
    findings: Vec<Finding>,
}

/// Checks a bundle where there are no geo data and no agents: what it comes to, unless a finding is an error that is not
/// `accepted`, and all there is to say.
#[must_use]
pub fn examine(
    owner: &PolicyOwner,
    bundle: &PolicyBundle,
    accepted: &[Accepted],
) -> (Option<Outline>, Vec<Finding>) {
    match PolicySet::outlined(owner, bundle) {
        Ok((outline, set)) => {
            let (findings, _) = set.weighed(&bundle.text, &Configuration::default(), accepted);
            let is_refused = findings.iter().any(|finding| finding.severity == Certainty::Error);
            ((!is_refused).then_some(outline), findings)
        }
        Err(errors) => (None, errors.problems.into_iter().map(Finding::from).collect()),
    }
}

// === impl Enforced ===

impl Default for Enforced {
    /// What this version's planes ask about.
    fn default() -> Self {
        Enforced(ActionKind::ALL.into_iter().filter(|action| action.is_asked()).collect())
    }
}

impl Enforced {
    /// Every action: to look at what is written for planes that there will be.
    #[must_use]
    pub fn all() -> Enforced {
        Enforced(ActionKind::ALL.into())
    }

    /// These actions, by their names.
    ///
    /// # Errors
    /// The first name that is no action's.
    pub fn of(names: &[&str]) -> Result<Enforced, String> {
        let kind = |name: &&str| {
            let found = ActionKind::ALL.into_iter().find(|action| action.name() == *name);
            found.ok_or_else(|| format!("`{name}` is not an action"))
        };
        names.iter().map(kind).collect::<Result<_, _>>().map(Enforced)
    }

    fn has(&self, action: ActionKind) -> bool {
        self.0.contains(&action)
    }
}

// === impl Configuration ===

impl Default for Configuration<'_> {
    /// This version's planes, and nothing known of agents.
    fn default() -> Self {
        Configuration { enforced: Enforced::default(), agents: None, platform: None, reading: None }
    }
}

// === impl Finding ===

impl From<PolicyProblem> for Finding {
    fn from(problem: PolicyProblem) -> Finding {
        let PolicyProblem { policy, line, column, message } = problem;
        Finding {
            severity: Certainty::Error,
            lint: Lint::Invalid,
            policy,
            line,
            column,
            end_line: None,
            end_column: None,
            message,
            // In the message already.
            remedy: String::new(),
        }
    }
}

impl Finding {
    /// The finding as a problem, its remedy in the message; of one that is refused and can be accepted, how.
    #[must_use]
    pub fn problem(&self) -> PolicyProblem {
        let Finding { policy, line, column, message, remedy, .. } = self;
        let mut message = if remedy.is_empty() { message.clone() } else { format!("{message}: {remedy}") };
        if self.severity == Certainty::Error
            && let Some(name) = self.name()
        {
            message.push_str(&format!(", or accept it (`--accept-findings {name}`)"));
        }
        PolicyProblem { policy: policy.clone(), line: *line, column: *column, message }
    }
}

impl Finding {
    /// What it is accepted by, if it can be: `KIND:POLICY`.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let policy = self.policy.as_ref().filter(|_| self.lint.is_acceptable())?;
        Some(format!("{}:{policy}", self.lint.name()))
    }
}

// === impl PolicySet ===

impl PolicySet {
    /// Looks at the set as it is written in `text`, which it was parsed from: errors first, then by place.
    #[must_use]
    pub fn lint(&self, text: &str, configuration: &Configuration<'_>) -> Vec<Finding> {
        self.weighed(text, configuration, &[]).0
    }

    /// The same with what is accepted marked, and what that was: of all findings, also those that are too many to tell.
    fn weighed(
        &self,
        text: &str,
        configuration: &Configuration<'_>,
        accepted: &[Accepted],
    ) -> (Vec<Finding>, Acceptance) {
        let mut findings = self.found(text, configuration);
        let acceptance = Accepted::mark(accepted, &mut findings);
        findings.sort_by(|a, b| {
            (a.severity, a.line, a.column, a.lint).cmp(&(b.severity, b.line, b.column, b.lint))
        });
        findings.truncate(FINDINGS_MAX);
        (findings, acceptance)
    }

    /// All findings, in no order that counts.
    fn found(&self, text: &str, configuration: &Configuration<'_>) -> Vec<Finding> {
        let Ok(cedar) = text.parse::<cedar_policy::PolicySet>() else { return Vec::new() };
        let mut policies: Vec<&cedar_policy::Policy> = cedar.policies().collect();
        policies.sort_by_key(|policy| start(policy.as_ref()));
        let mut linter = Linter { set: self, source: Source::new(text), configuration, findings: Vec::new() };
        linter.look(&policies);
        linter.findings
    }

    /// [Lints](Self::lint), and refuses what is proven to do nothing, unless that is `accepted`. Returns what there is to
    /// say, and what was accepted.
    ///
    /// # Errors
    /// The findings that are errors, as problems.
    pub fn lint_to_apply(
        &self,
        text: &str,
        configuration: &Configuration<'_>,
        accepted: &[Accepted],
    ) -> Result<(Vec<Finding>, Acceptance), PolicyErrors> {
        let (findings, acceptance) = self.weighed(text, configuration, accepted);
        // They come first, so that none of them is among those that are too many to tell.
        let proven = findings.iter().filter(|finding| finding.severity == Certainty::Error);
        let problems: Vec<PolicyProblem> = proven.map(Finding::problem).collect();
        if problems.is_empty() { Ok((findings, acceptance)) } else { Err(PolicyErrors { problems }) }
    }
}

// === impl Linter ===

impl Linter<'_> {
    fn look(&mut self, policies: &[&cedar_policy::Policy]) {
        let rules: Vec<Rule<'_>> = policies.iter().filter_map(|cedar| self.rule(cedar)).collect();
        let members = self.set.inner().members();
        let search = Search::new(members);
        let mut alive = Vec::with_capacity(rules.len());
        for rule in rules {
            if self.matches(&rule, &search) {
                alive.push(rule);
            }
        }
        self.covered(&alive, &search);
        self.under_platform(&alive, &search);
        self.moot(&alive, &search);
        self.never_read(&alive, &search);
        self.none_permits(&alive);
        self.principals(&alive);
        self.former_names(&alive);
        if search.gave_up() {
            self.findings.push(Finding {
                severity: Certainty::Warning,
                lint: Lint::Unfinished,
                policy: None,
                line: None,
                column: None,
                end_line: None,
                end_column: None,
                message:
                    "the set is too large, or conditions in it too long, for all policies to be compared"
                        .to_owned(),
                remedy: "split long conditions, and use groups and named sets".to_owned(),
            });
        }
    }

    /// The policy, if anything asks about it.
    fn rule<'a>(&mut self, cedar: &'a cedar_policy::Policy) -> Option<Rule<'a>> {
        let ast: &Policy = cedar.as_ref();
        let enforced = &self.configuration.enforced;
        let in_scope = |action: &ActionKind| applies(ast, *action);
        let all: Vec<ActionKind> = ActionKind::ALL.into_iter().filter(in_scope).collect();
        // What is asked by name, nobody asks where it has none.
        let is_asked = |action: &ActionKind| enforced.has(*action) && self.set.inner().names(*action);
        let actions: Vec<ActionKind> = all.iter().copied().filter(is_asked).collect();
        let idle: Vec<(&'static str, Option<usize>)> = named(ast)
            .into_iter()
            .filter(|(action, _)| !enforced.has(*action))
            .map(|(action, at)| (action.name(), at))
            .collect();
        for (name, at) in &idle {
            let remedy = format!("remove it until something asks about `{name}`");
            let message = format!("the action `{name}` is enforced nowhere in this configuration");
            self.find(cedar, *at, (Certainty::Error, Lint::NotEnforced), message, remedy);
        }
        if actions.is_empty() {
            if idle.is_empty() {
                let message = "no action of its group is enforced in this configuration".to_owned();
                let at = action_place(ast);
                self.find(
                    cedar,
                    at,
                    (Certainty::Error, Lint::NotEnforced),
                    message,
                    "remove the policy".into(),
                );
            }
            return None;
        }
        Some(Rule::new(cedar, actions))
    }

    /// Whether anything can match a policy at all; tells if not.
    fn matches(&mut self, rule: &Rule<'_>, search: &Search<'_>) -> bool {
        let possible = |action: &ActionKind| {
            let reading = Reading::whole(*action, self.set.inner().members());
            search.is_possible(&[&reading.policy(rule.ast(), true)])
        };
        let (some, none): (Vec<ActionKind>, Vec<ActionKind>) =
            rule.actions.iter().copied().partition(|action| possible(action));
        if some.is_empty() {
            let message = "no request can match: what it asks for contradicts itself";
            let remedy = "correct the scope or the condition, or remove the policy";
            let (severity, message) = if rule.may_fail {
                (Certainty::Warning, format!("{message} (it can still fail, which denies)"))
            } else {
                (Certainty::Error, message.to_owned())
            };
            self.find(rule.cedar, None, (severity, Lint::NeverMatches), message, remedy.into());
            return false;
        }
        for (action, at) in named(rule.ast()).into_iter().filter(|(action, _)| none.contains(action)) {
            let message = format!("no request of `{}` can match, which the scope names", action.name());
            let remedy = format!("take `{}` out of the scope, or correct the condition", action.name());
            self.find(rule.cedar, at, (Certainty::Warning, Lint::NeverMatches), message, remedy);
        }
        true
    }

    /// Permits that forbids always stand before.
    fn covered(&mut self, rules: &[Rule<'_>], search: &Search<'_>) {
        let members = self.set.inner().members();
        let forbids = rules.iter().filter(|rule| rule.is_guard && rule.ast().effect() == Effect::Forbid);
        let forbids = Forbids::new(forbids, members);
        for rule in rules.iter().filter(|rule| rule.ast().effect() == Effect::Permit) {
            if !rule.is_guard && !rule.is_limit() {
                // Alerts and quarantine don't depend on what guards say.
                continue;
            }
            let Some(by) = forbids.covering(rule, members, search) else { continue };
            let by = by.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
            let message = format!("wherever it matches, so does {by}, which forbids");
            // That a limit is of no use follows from the verdict, which is another evaluation's.
            let is_proven = rule.is_guard && !rule.may_fail;
            let severity = if is_proven { Certainty::Error } else { Certainty::Warning };
            let remedy = format!("narrow {by}, or remove this policy");
            self.find(rule.cedar, None, (severity, Lint::CoveredByForbid), message, remedy);
        }
    }

    /// The first forbid of an action that is asked only where it is named, where no policy permits that action.
    fn none_permits(&mut self, rules: &[Rule<'_>]) {
        let guards = || rules.iter().filter(|rule| rule.is_guard);
        for action in ActionKind::ALL.into_iter().filter(|action| action.is_asked_by_name()) {
            let is =
                |rule: &&Rule<'_>, effect| rule.ast().effect() == effect && rule.actions.contains(&action);
            if guards().any(|rule| is(&rule, Effect::Permit)) {
                continue;
            }
            let Some(rule) = guards().find(|rule| is(rule, Effect::Forbid)) else { continue };
            let name = action.name();
            let whom = match action {
                ActionKind::Llm => "call of a model",
                ActionKind::Receive => "answer",
                ActionKind::Tool => "message to a tool server",
                _ => "request with a body",
            };
            let message = format!(
                "a guard that names `{name}` has it asked of each {whom}, and no policy permits it: all of them are denied, whatever this one forbids"
            );
            let remedy = format!(
                "permit what it leaves, as by `permit (principal, action == Action::\"{name}\", resource);`, or only try it out (`@mode(\"log-only\")`)"
            );
            self.find(rule.cedar, None, (Certainty::Warning, Lint::NonePermits), message, remedy);
        }
    }

    /// A finding about a policy, at an offset or where it begins.
    fn find(
        &mut self,
        cedar: &cedar_policy::Policy,
        at: Option<usize>,
        (severity, lint): (Certainty, Lint),
        message: String,
        remedy: String,
    ) {
        let ast: &Policy = cedar.as_ref();
        let (line, column) = self.source.place(at.unwrap_or_else(|| start(ast)));
        let end = ast.loc().map(|loc| self.source.place(loc.end()));
        self.findings.push(Finding {
            severity,
            lint,
            policy: cedar.annotation("id").map(str::to_owned),
            line: Some(line),
            column: Some(column),
            end_line: end.map(|(line, _)| line),
            end_column: end.map(|(_, column)| column),
            message,
            remedy,
        });
    }
}

// === impl Rule ===

impl<'a> Rule<'a> {
    fn new(cedar: &'a cedar_policy::Policy, actions: Vec<ActionKind>) -> Rule<'a> {
        let ast: &Policy = cedar.as_ref();
        let effect = cedar.annotation("effect");
        Rule {
            id: cedar.annotation("id").unwrap_or_default().to_owned(),
            cedar,
            actions,
            effect,
            is_guard: effect.is_none() && cedar.annotation("mode").is_none(),
            may_fail: ast.non_scope_constraints().is_some_and(formula::may_fail),
        }
    }

    fn ast(&self) -> &'a Policy {
        self.cedar.as_ref()
    }

    fn is_limit(&self) -> bool {
        matches!(self.effect, Some("rate-limit" | "throttle"))
    }

    /// The group or agent of its principal scope.
    fn principal(&self) -> Option<Named> {
        syntax::scope_entity(self.ast().principal_constraint().as_inner()).map(|uid| Named::of(uid))
    }
}

fn start(policy: &Policy) -> usize {
    policy.loc().map_or(0, Loc::start)
}

/// The actions that a scope names, not by their groups, and where.
fn named(policy: &Policy) -> Vec<(ActionKind, Option<usize>)> {
    let uids = match policy.action_constraint() {
        ActionConstraint::Any => return Vec::new(),
        ActionConstraint::Eq(uid) => std::slice::from_ref(uid),
        ActionConstraint::In(uids) => uids.as_slice(),
    };
    let kind = |name: &str| ActionKind::ALL.into_iter().find(|action| action.name() == name);
    uids.iter().filter_map(|uid| Some((kind(uid.eid().as_ref())?, uid.loc().map(Loc::start)))).collect()
}

/// Where the first action or group of a scope stands.
fn action_place(policy: &Policy) -> Option<usize> {
    let uid = match policy.action_constraint() {
        ActionConstraint::Any => None,
        ActionConstraint::Eq(uid) => Some(uid),
        ActionConstraint::In(uids) => uids.first(),
    };
    uid.and_then(|uid| uid.loc()).map(Loc::start)
}
