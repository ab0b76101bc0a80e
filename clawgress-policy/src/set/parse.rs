//! Policy text to a validated set: bounds, syntax, annotations, literals, schema, and what the kernel
//! plane can hold. Must never drop a policy or weaken one: everything is accepted, or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr as _;
use std::sync::Arc;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{
    EntityId, EntityTypeName, EntityUid, PolicyId, ValidationMode, ValidationWarning, Validator,
};
use cedar_policy_core::ast;
use cedar_policy_core::parser::Loc;
use clawgress_identity::PolicyOwner;

use super::lowered::Group;
use super::obligation::{self, Obliged};
use super::opening::{self, Opening};
use super::payload::Naming;
use super::review::review;
use super::syntax::{self, ActionConstraint, Policy};
use super::text::Source;
use super::{Inner, NamedSets, PolicyErrors, PolicyProblem, ranges};
use crate::Geo;
use crate::effect::Obligation;
use crate::head::{self, Mentions};
use crate::host::quote;
use crate::kernel::limiter::{self, LIMITERS_MAX, Limiter};
use crate::kernel::plan::{Plan, Written};
use crate::members::{Members, SET_NAME_BYTES_MAX, name_is_valid};
use crate::time::{Schedule, Zone};
use crate::transform;
use crate::vocabulary::{ActionKind, Actions, ByAction, Reads, Vocabulary, qualify};

/// Most policies in a set: twice what is measured to be decided within the times that are promised, and some seconds to
/// validate, compile and lint.
pub const POLICIES_MAX: usize = 8_192;
/// Most problems reported at once; a person fixes the first ones first.
pub const PROBLEMS_MAX: usize = 100;

/// What stands before an id of the platform's policies in decisions and records. No tenant's id begins so.
pub const PLATFORM_PREFIX: &str = "platform/";

/// Annotations that only inform people.
const ANNOTATIONS_INFORMATIVE: [&str; 3] = ["description", "owner", "reference"];
/// Annotations that will change what a policy does; until then a policy must not carry them.
const ANNOTATIONS_FUTURE: [&str; 1] = ["priority"];

/// One policy on its way into the set.
struct Draft {
    cedar: cedar_policy::Policy,
    start: usize,
    id: Option<String>,
    /// What decisions call it: the id, behind [`PLATFORM_PREFIX`] if it is the platform's.
    name: String,
    /// What it obliges to; `None` for a guard.
    obliged: Option<Obliged>,
}

impl Draft {
    fn ast(&self) -> &Policy {
        self.cedar.as_ref()
    }
}

/// Named sets and geo data, checked and indexed.
pub(super) fn members(sets: &NamedSets, geo: &Geo) -> Result<Members, PolicyErrors> {
    let problem = |message| PolicyProblem { policy: None, line: None, column: None, message };
    Members::new(sets, geo).map_err(|messages| errors(messages.into_iter().map(problem).collect()))
}

/// `owner` is whose the text is; of nobody's it may name whomever it likes.
pub(super) fn parse(
    text: &str,
    members: Members,
    zone: Zone,
    owner: Option<&PolicyOwner>,
) -> Result<Inner, PolicyErrors> {
    let vocabulary = Vocabulary::shared().map_err(PolicyErrors::one)?;
    let source = Source::new(text);
    let report = |problems| errors(problems);
    source.check_bounds().map_err(report)?;
    let set = cedar_policy::PolicySet::from_str(text).map_err(|e| errors(syntax_problems(&e, &source)))?;

    let mut problems = template_problems(&set, &source);
    let mut drafts = drafts(&set, &source, owner, &mut problems);
    let (limiters, obligations) = obliged(&mut drafts, &source, &mut problems);
    let openings = openings(&drafts, &source, &mut problems);
    for draft in &drafts {
        problems.extend(review(draft.ast(), draft.id.as_deref(), &source, &members, owner));
        problems.extend(ranges::review(draft.ast(), draft.id.as_deref(), &source));
        problems.extend(head::review(draft.ast(), draft.id.as_deref(), &source));
    }
    validate(vocabulary, &drafts, &source, &mut problems);
    if !problems.is_empty() {
        // The kernel plan reads conditions as the schema types them, so it must not see others.
        return Err(errors(problems));
    }
    let schedule =
        Schedule::new(drafts.iter().map(|d| (d.ast(), d.id.as_deref())), &source).map_err(report)?;
    let written = drafts.iter().map(|draft| Written {
        policy: draft.ast(),
        id: draft.id.as_deref().unwrap_or_default(),
        is_obligation: matches!(draft.obliged, Some(Obliged::Kernel(_) | Obliged::L7(_))),
        is_apart: matches!(draft.obliged, Some(Obliged::Told(_) | Obliged::Logged)),
    });
    let plan = Plan::new(written, &source, &members).map_err(report)?;
    let policies = drafts.iter().map(finish).collect::<Result<Vec<_>, _>>().map_err(|m| errors(vec![m]))?;
    let together = |policies: Vec<&cedar_policy::Policy>| {
        cedar_policy::PolicySet::from_policies(policies.into_iter().cloned())
            .map_err(|e| PolicyErrors::one(e.to_string()))
    };
    let (obliging, guards): (Vec<_>, Vec<_>) =
        drafts.iter().zip(&policies).partition(|(draft, _)| draft.obliged.is_some());
    let (logged, obliging): (Vec<_>, Vec<_>) =
        obliging.into_iter().partition(|(draft, _)| draft.obliged == Some(Obliged::Logged));
    let (told, obliging): (Vec<_>, Vec<_>) =
        obliging.into_iter().partition(|(draft, _)| matches!(draft.obliged, Some(Obliged::Told(_))));
    let of = |among: &[(&Draft, &cedar_policy::Policy)], action| {
        together(among.iter().map(|(_, p)| *p).filter(|p| applies(p.as_ref(), action)).collect())
    };
    let by_action = ByAction::try_new(|action| of(&guards, action))?;
    let lower = |among: &[(&Draft, &cedar_policy::Policy)], action| {
        let applying = among.iter().map(|(_, p)| *p).filter(|p| applies(p.as_ref(), action));
        Ok::<_, PolicyErrors>(Group::new(action, applying, &members))
    };
    let guards_lowered = ByAction::try_new(|action| lower(&guards, action))?;
    let obliging_lowered = ByAction::try_new(|action| lower(&obliging, action))?;
    let obliging = ByAction::try_new(|action| of(&obliging, action))?;
    let logged_lowered = ByAction::try_new(|action| lower(&logged, action))?;
    let (forbidding, permitting): (Vec<_>, Vec<_>) =
        logged.iter().partition(|(draft, _)| draft.ast().effect() == ast::Effect::Forbid);
    let logged = ByAction::try_new(|action| Ok((of(&permitting, action)?, of(&forbidding, action)?)))?;
    let told_lowered = ByAction::try_new(|action| lower(&told, action))?;
    let told = ByAction::try_new(|action| of(&told, action))?;
    let plan = plan.with_policies(&policies);
    let (reads, count, mentions) = (reads(&drafts), drafts.len(), mentions(&drafts));
    let naming = Naming::of(drafts.iter().map(|draft| (draft.ast(), draft.obliged.is_none())));
    Ok(Inner {
        vocabulary,
        count,
        by_action,
        obliging,
        guards_lowered,
        obliging_lowered,
        logged,
        logged_lowered,
        told,
        told_lowered,
        obligations,
        openings,
        naming,
        limiters,
        members,
        reads,
        mentions,
        plan,
        schedule,
        zone,
    })
}

/// What conditions read.
fn reads(drafts: &[Draft]) -> Reads {
    let mut reads = Reads::default();
    for condition in drafts.iter().filter_map(|d| d.ast().non_scope_constraints()) {
        syntax::reads(condition, &mut reads);
    }
    reads
}

/// Which header fields and parameters they name.
fn mentions(drafts: &[Draft]) -> Mentions {
    let mut mentions = Mentions::default();
    drafts
        .iter()
        .filter_map(|d| d.ast().non_scope_constraints())
        .for_each(|condition| mentions.add(condition));
    mentions
}

/// Whether the policy's scope includes the action.
pub(crate) fn applies(policy: &Policy, action: ActionKind) -> bool {
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(uid) => uid.eid().as_ref() == action.name(),
        ActionConstraint::In(uids) => uids.iter().any(|uid| action.is_in(uid.eid().as_ref())),
    }
}

fn errors(mut problems: Vec<PolicyProblem>) -> PolicyErrors {
    problems.sort_by_key(|p| (p.line, p.column, p.message.clone()));
    problems.dedup();
    let more = problems.len().saturating_sub(PROBLEMS_MAX);
    problems.truncate(PROBLEMS_MAX);
    if more > 0 {
        problems.push(PolicyProblem {
            policy: None,
            line: None,
            column: None,
            message: format!("and {more} more"),
        });
    }
    PolicyErrors { problems }
}

fn syntax_problems(parse_errors: &cedar_policy::ParseErrors, source: &Source<'_>) -> Vec<PolicyProblem> {
    parse_errors
        .iter()
        .map(|error| {
            let detail = DetailedError::from(error);
            let label = detail.source_locations.first();
            let mut message = detail.message.clone();
            for more in [label.and_then(|l| l.label.clone()), detail.help.clone()].into_iter().flatten() {
                message.push_str(": ");
                message.push_str(&more);
            }
            source.problem(None, label.map(|l| l.loc.start), message)
        })
        .collect()
}

fn template_problems(set: &cedar_policy::PolicySet, source: &Source<'_>) -> Vec<PolicyProblem> {
    set.templates()
        .map(|template| {
            let ast: &ast::Template = template.as_ref();
            source.problem(
                template.annotation("id"),
                ast.loc().map(Loc::start),
                "templates (`?principal`, `?resource`) are not supported: write the entity, or use a group such as `Team` or a named set",
            )
        })
        .collect()
}

/// The policies in the order of the text, their annotations checked.
fn drafts(
    set: &cedar_policy::PolicySet,
    source: &Source<'_>,
    owner: Option<&PolicyOwner>,
    problems: &mut Vec<PolicyProblem>,
) -> Vec<Draft> {
    let mut drafts: Vec<Draft> = set
        .policies()
        .map(|cedar| {
            let ast: &Policy = cedar.as_ref();
            let start = ast.loc().map_or(0, Loc::start);
            Draft { cedar: cedar.clone(), start, id: None, name: String::new(), obliged: None }
        })
        .collect();
    drafts.sort_by_key(|d| d.start);
    let mut seen = BTreeMap::new();
    for draft in &mut drafts {
        draft.id = annotations(&draft.cedar, draft.start, source, owner, problems);
        let prefix = if owner == Some(&PolicyOwner::Platform) { PLATFORM_PREFIX } else { "" };
        draft.name = format!("{prefix}{}", draft.id.as_deref().unwrap_or_default());
        let Some(id) = &draft.id else { continue };
        if let Some(first) = seen.insert(id.clone(), draft.start) {
            let (first, _) = source.place(first);
            let message =
                format!("the id is already that of the policy at line {first}: give each policy its own");
            problems.push(source.problem(Some(id), Some(draft.start), message));
        }
    }
    drafts
}

/// Reads what the policies oblige to: limits of the kernel, ascending by their policies' ids, and what the proxy keeps.
fn obliged(
    drafts: &mut [Draft],
    source: &Source<'_>,
    problems: &mut Vec<PolicyProblem>,
) -> (Vec<Limiter>, BTreeMap<String, Arc<Obligation>>) {
    let (mut limiters, mut obligations) = (Vec::new(), BTreeMap::new());
    for draft in &mut *drafts {
        let id = draft.id.clone().unwrap_or_default();
        draft.obliged = obligation::read(draft.ast(), (&id, &draft.name), source, problems);
        match &draft.obliged {
            Some(Obliged::Kernel(limiter)) => limiters.push(limiter.clone()),
            Some(Obliged::L7(obligation) | Obliged::Told(obligation)) => {
                obligations.insert(draft.name.clone(), Arc::new(obligation.clone()));
            }
            Some(Obliged::Logged) | None => {}
        }
    }
    limiters.sort_by(|a, b| a.policy.cmp(&b.policy));
    if limiters.len() > LIMITERS_MAX {
        let message = format!(
            "{} rate limits, and there may be {LIMITERS_MAX}: write them for teams rather than single agents, since each agent has its own bucket",
            limiters.len()
        );
        problems.push(source.problem(None, None, message));
    }
    if obligations.len() > LIMITERS_MAX {
        let message = format!(
            "{} obligations of what the proxy decides, and there may be {LIMITERS_MAX}: write them for teams rather than single agents",
            obligations.len()
        );
        problems.push(source.problem(None, None, message));
    }
    let renamed = transform::renamed_to_one(obligations.values().map(|obligation| &**obligation));
    if let Some(([first, second], name)) = renamed {
        let message = format!(
            "renames a tool to `{name}`, as the policy `{first}` does another: give one of them another name"
        );
        let second = drafts.iter().find(|draft| draft.name == second);
        let id = second.and_then(|draft| draft.id.as_deref());
        problems.push(source.problem(id, second.map(|draft| draft.start), message));
    }
    if let Some([first, second]) = limiter::collision(&limiters) {
        let message = format!(
            "would share its buckets with the policy `{first}`: give one of them another id or burst"
        );
        problems.push(source.problem(Some(second), None, message));
    }
    (limiters, obligations)
}

/// What permits of `resolve` open besides, by the policy's id.
fn openings(
    drafts: &[Draft],
    source: &Source<'_>,
    problems: &mut Vec<PolicyProblem>,
) -> BTreeMap<String, Vec<Opening>> {
    let mut openings = BTreeMap::new();
    for draft in drafts {
        let id = draft.id.as_deref().unwrap_or_default();
        let opened = opening::read(draft.ast(), id, draft.obliged.is_none(), source, problems);
        if !opened.is_empty() {
            openings.insert(draft.name.clone(), opened);
        }
    }
    openings
}

/// Checks a policy's annotations; gives its id.
fn annotations(
    cedar: &cedar_policy::Policy,
    start: usize,
    source: &Source<'_>,
    owner: Option<&PolicyOwner>,
    problems: &mut Vec<PolicyProblem>,
) -> Option<String> {
    let ast: &Policy = cedar.as_ref();
    let id = cedar.annotation("id").filter(|id| name_is_valid(id)).map(str::to_owned);
    for (key, annotation) in ast.annotations() {
        let key = key.to_string();
        let at = annotation.loc.as_ref().map_or(start, Loc::start);
        let message = match key.as_str() {
            "id" if id.is_none() => format!(
                "`{}` cannot be an id: use 1 to {SET_NAME_BYTES_MAX} letters, digits, `-`, `_`, `.`, `/` or `:`",
                quote(&annotation.val)
            ),
            "id" if owner.is_some_and(|owner| owner.tenant().is_some())
                && annotation.val.starts_with(PLATFORM_PREFIX) =>
            {
                format!(
                    "`{PLATFORM_PREFIX}` is what ids of the platform's policies begin with in records: use another id"
                )
            }
            "id" => continue,
            known if ANNOTATIONS_INFORMATIVE.contains(&known) => continue,
            // Read when all ids are known to be there.
            known if obligation::ANNOTATIONS.contains(&known) || known == obligation::MODE => continue,
            opening::DIRECT => continue,
            future if ANNOTATIONS_FUTURE.contains(&future) => format!(
                "`@{future}` is not available yet, and a rule must not silently do nothing: remove it"
            ),
            _ => format!(
                "`@{}` is not a known annotation: the known ones are `@id`, `@description`, `@owner`, `@reference`, `@effect`, `@limit`, `@per`, `@for`, `@severity`, `@set_header`, `@remove_header`, `@inject`, `@set_param`, `@max_tokens`, `@remove_tool`, `@rename_tool`, `@system_prompt`, `@mode` and `@direct`",
                quote(&key)
            ),
        };
        problems.push(source.problem(id.as_deref(), Some(at), message));
    }
    if cedar.annotation("id").is_none() {
        let message = "the policy has no id: put `@id(\"a-name\")` before it";
        problems.push(source.problem(None, Some(start), message));
    }
    id
}

/// Strict validation against the schema. Warnings count too: a policy that can never apply does nothing.
fn validate(
    vocabulary: &Vocabulary,
    drafts: &[Draft],
    source: &Source<'_>,
    problems: &mut Vec<PolicyProblem>,
) {
    let (future, asked): (Vec<&Draft>, Vec<&Draft>) = drafts.iter().partition(|d| names_unasked(d.ast()));
    let is_named =
        |action: &ActionKind| action.is_asked_by_name() && drafts.iter().any(|d| names(d.ast(), *action));
    // What no policy names, a policy about a group need not fit.
    let known = ActionKind::ALL.into_iter().filter(is_named).fold(Actions::default(), Actions::with);
    let known = vocabulary.named(known);
    for (schema, drafts) in [(known, asked), (&vocabulary.schema, future)] {
        validate_by(schema, &drafts, source, problems);
    }
}

/// Whether the scope names an action that nothing asks about yet.
fn names_unasked(policy: &Policy) -> bool {
    ActionKind::ALL.into_iter().any(|action| !action.is_asked() && names(policy, action))
}

/// Whether the scope names an action that is asked only where it is named.
pub(crate) fn names_asked_by_name(policy: &Policy) -> bool {
    ActionKind::ALL.into_iter().any(|action| action.is_asked_by_name() && names(policy, action))
}

/// Whether the scope names the action itself, and not a group that it is in.
pub(super) fn names(policy: &Policy, action: ActionKind) -> bool {
    let is_it = |uid: &ast::EntityUID| {
        let name: &str = uid.eid().as_ref();
        name == action.name()
    };
    match policy.action_constraint() {
        ActionConstraint::Any => false,
        ActionConstraint::Eq(uid) => is_it(uid),
        ActionConstraint::In(uids) => uids.iter().any(|uid| is_it(uid)),
    }
}

fn validate_by(
    schema: &cedar_policy::Schema,
    drafts: &[&Draft],
    source: &Source<'_>,
    problems: &mut Vec<PolicyProblem>,
) {
    let by_internal: BTreeMap<String, &Draft> =
        drafts.iter().map(|d| (d.cedar.id().to_string(), *d)).collect();
    let Ok(set) = cedar_policy::PolicySet::from_policies(drafts.iter().map(|d| d.cedar.clone())) else {
        problems.push(source.problem(None, None, "the policies could not be put together"));
        return;
    };
    let result = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
    let mut report = |internal: &PolicyId, detail: &DetailedError| {
        let draft = by_internal.get(&internal.to_string());
        let label = detail.source_locations.first().map(|l| l.loc.start);
        let remedy = || remedy(&detail.message, draft?.cedar.as_ref());
        let message = match detail.help.clone().or_else(remedy) {
            Some(help) => format!("{}: {help}", detail.message),
            None => detail.message.clone(),
        };
        let id = draft.and_then(|d| d.id.as_deref());
        let at = label.or(draft.map(|d| d.start));
        problems.push(source.problem(id, at, without_policy(&message, internal)));
    };
    let mut reported = BTreeSet::new();
    for error in result.validation_errors() {
        reported.insert(error.policy_id().to_string());
        report(error.policy_id(), &DetailedError::from(error));
    }
    // Two passes: that a policy is impossible follows from any of the other warnings, and says less.
    let is_impossible = |w: &ValidationWarning| matches!(w, ValidationWarning::ImpossiblePolicy(_));
    for impossible in [false, true] {
        for warning in result.validation_warnings().filter(|w| is_impossible(w) == impossible) {
            if reported.insert(warning.policy_id().to_string()) {
                report(warning.policy_id(), &DetailedError::from(warning));
            }
        }
    }
}

/// What to do about what the validator says, where it says nothing of that itself.
fn remedy(message: &str, policy: &Policy) -> Option<String> {
    if message.contains("unable to find an applicable action") {
        let named = ActionKind::ALL.into_iter().filter(|action| names(policy, *action));
        let asked: Vec<String> = named
            .map(|action| format!("`{}` is asked of a `{}`", action.name(), action.resource()))
            .collect();
        let asked = if asked.is_empty() {
            "actions are asked of a `Network`, a `Host`, a `Model` or a `Tool`".to_owned()
        } else {
            asked.join(", ")
        };
        return Some(format!(
            "{asked}, and by an `Agent`: write `==` or `is` for these, and `in` for teams, sets and other groups"
        ));
    }
    message
        .contains("policy is impossible")
        .then(|| "no request can match: correct the scope or the condition, or remove the policy".to_owned())
}

/// The message less "for policy `policy0`, ": the problem says it elsewhere, with the real id.
fn without_policy(message: &str, internal: &PolicyId) -> String {
    [", ", ": ", " "]
        .iter()
        .fold(message.to_owned(), |m, after| m.replace(&format!("for policy `{internal}`{after}"), ""))
}

/// The policy as decisions run it: named by its own id, principals with their tenant.
fn finish(draft: &Draft) -> Result<cedar_policy::Policy, PolicyProblem> {
    let failed = |e: &dyn std::fmt::Display| PolicyProblem {
        policy: draft.id.clone(),
        line: None,
        column: None,
        message: format!("could not be prepared: {e}"),
    };
    let mut renamed = BTreeMap::new();
    for uid in draft.cedar.entity_literals().into_iter().collect::<BTreeSet<EntityUid>>() {
        if let Some(id) = qualify(&uid.type_name().to_string(), uid.id().unescaped()) {
            let kind: EntityTypeName = uid.type_name().clone();
            renamed.insert(uid, EntityUid::from_type_name_and_id(kind, EntityId::new(id)));
        }
    }
    let policy = if renamed.is_empty() {
        draft.cedar.clone()
    } else {
        draft.cedar.sub_entity_literals(renamed).map_err(|e| failed(&e))?
    };
    Ok(policy.new_id(PolicyId::new(&draft.name)))
}
