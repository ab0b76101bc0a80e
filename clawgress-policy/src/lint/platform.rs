//! A tenant's permits that the platform's policy leaves nothing of: a warning, since that changes by itself.

use cedar_policy_core::ast::Effect;

use super::covered::Forbids;
use super::formula::Reading;
use super::search::Search;
use super::{Certainty, Lint, Linter, Rule, start};
use crate::set::applies;
use crate::set::syntax::Policy;
use crate::vocabulary::ActionKind;

/// What has members of its own in each set, so that one name means two things.
const SETS: [&str; 4] = ["HostSet", "NetworkSet", "Asn", "Country"];

/// Whether a policy names any.
fn names_sets(cedar: &cedar_policy::Policy) -> bool {
    cedar.entity_literals().iter().any(|uid| SETS.contains(&uid.type_name().to_string().as_str()))
}

impl Linter<'_> {
    /// Tells the permits that the platform's policy forbids, or permits nothing of.
    pub(super) fn under_platform(&mut self, rules: &[Rule<'_>], search: &Search<'_>) {
        let Some(text) = self.configuration.platform else { return };
        let Ok(cedar) = text.parse::<cedar_policy::PolicySet>() else { return };
        let mut policies: Vec<&cedar_policy::Policy> = cedar.policies().collect();
        policies.sort_by_key(|policy| start(policy.as_ref()));
        let above: Vec<Rule<'_>> = policies.into_iter().map(|cedar| self.platforms(cedar)).collect();
        let members = self.set.inner().members();
        let is = |rule: &Rule<'_>, effect| rule.is_guard && rule.ast().effect() == effect;
        let forbids = above.iter().filter(|rule| is(rule, Effect::Forbid) && !names_sets(rule.cedar));
        let forbids = Forbids::new(forbids, members);
        for rule in rules.iter().filter(|rule| is(rule, Effect::Permit)) {
            let (message, remedy) = if let Some(by) = forbids.covering(rule, members, search) {
                let by = by.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
                let message = format!("wherever it matches, {by} of the platform's policy forbids");
                (message, "narrow it to what the platform leaves, or remove it")
            } else if self.is_unpermitted(rule, &above, search) {
                let message = "the platform's policy permits nothing of what it permits".to_owned();
                (message, "ask who runs the platform to permit it, or remove it")
            } else {
                continue;
            };
            self.find(rule.cedar, None, (Certainty::Warning, Lint::PlatformDenies), message, remedy.into());
        }
    }

    /// A policy of the platform's, for the actions that are enforced.
    fn platforms<'a>(&self, cedar: &'a cedar_policy::Policy) -> Rule<'a> {
        let ast: &Policy = cedar.as_ref();
        let enforced = &self.configuration.enforced;
        let asked = |action: &ActionKind| applies(ast, *action) && enforced.has(*action);
        Rule::new(cedar, ActionKind::ALL.into_iter().filter(asked).collect())
    }

    /// Whether no permit of the platform's can match where this one does.
    fn is_unpermitted(&self, rule: &Rule<'_>, above: &[Rule<'_>], search: &Search<'_>) -> bool {
        let members = self.set.inner().members();
        let permits = || above.iter().filter(|r| r.is_guard && r.ast().effect() == Effect::Permit);
        rule.actions.iter().all(|action| {
            let own = Reading::whole(*action, members).policy(rule.ast(), true);
            let may_permit = |permit: &Rule<'_>| {
                names_sets(permit.cedar)
                    || search
                        .is_possible(&[&own, &Reading::whole(*action, members).policy(permit.ast(), true)])
            };
            !permits().filter(|permit| permit.actions.contains(action)).any(may_permit)
        })
    }
}
