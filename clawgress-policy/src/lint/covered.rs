//! Permits that never count, since a forbid matches wherever they do.

use std::collections::BTreeMap;

use super::Rule;
use super::formula::{Formula, Reading};
use super::search::Search;
use crate::members::Members;
use crate::set::syntax::Named;
use crate::vocabulary::ActionKind;

/// The forbids of a set, with what it means that each doesn't match.
pub(super) struct Forbids<'a> {
    by_action: BTreeMap<ActionKind, ByPrincipal<'a>>,
}

/// By the agent or group of the scope; those of one can't cover what is of another.
type ByPrincipal<'a> = BTreeMap<Option<Named>, Vec<(&'a str, Formula<'a>)>>;

impl<'a> Forbids<'a> {
    pub(super) fn new(rules: impl Iterator<Item = &'a Rule<'a>>, members: &'a Members) -> Forbids<'a> {
        let mut by_action: BTreeMap<ActionKind, ByPrincipal<'a>> = BTreeMap::new();
        for rule in rules {
            for action in &rule.actions {
                let not = Reading::whole(*action, members).policy(rule.ast(), false);
                let of = by_action.entry(*action).or_default().entry(rule.principal()).or_default();
                of.push((&rule.id, not));
            }
        }
        Forbids { by_action }
    }

    /// The forbids that match wherever the rule does, one for each of its actions; `None` if one action has none.
    pub(super) fn covering(
        &self,
        rule: &Rule<'_>,
        members: &Members,
        search: &Search<'_>,
    ) -> Option<Vec<&'a str>> {
        let mut all = Vec::new();
        for action in &rule.actions {
            let by_principal = self.by_action.get(action)?;
            let matches = Reading::whole(*action, members).policy(rule.ast(), true);
            let own = rule.principal();
            let tenant = own.as_ref().and_then(|named| named.id.split_once('/'));
            let tenant = tenant.map(|(id, _)| Named { kind: "Tenant".to_owned(), id: id.to_owned() });
            let keys = [Some(None), own.map(Some), tenant.map(Some)];
            let mut candidates = keys.iter().flatten().filter_map(|key| by_principal.get(key)).flatten();
            let (id, _) = candidates.find(|(_, not)| !search.is_possible(&[&matches, not]))?;
            all.push(*id);
        }
        all.sort_unstable();
        all.dedup();
        Some(all)
    }
}
