//! Principals that are named and not registered: a warning, since agents come and go after a policy is applied.

use std::collections::BTreeSet;

use cedar_policy_core::ast::{EntityUID, Expr};
use cedar_policy_core::parser::Loc;

use super::{Certainty, Lint, Linter, Rule};
use crate::host::quote;
use crate::kernel::plan::groups;
use crate::set::syntax::{self, Named};

impl Linter<'_> {
    /// Tells the principals that no registered agent is, or is in.
    pub(super) fn principals(&mut self, rules: &[Rule<'_>]) {
        let Some(agents) = self.configuration.agents else { return };
        let known: BTreeSet<Named> = agents.iter().flat_map(groups).collect();
        for rule in rules {
            let scope = rule.ast().principal_constraint();
            let scope = syntax::scope_entity(scope.as_inner());
            let mut mentioned: Vec<(&EntityUID, Option<usize>)> =
                scope.map(|uid| (&**uid, None)).into_iter().collect();
            if let Some(condition) = rule.ast().non_scope_constraints() {
                collect(condition, &mut mentioned);
            }
            let mut told = BTreeSet::new();
            for (uid, at) in mentioned {
                let named = Named::of(uid);
                let is_principal =
                    matches!(named.kind.as_str(), "Agent" | "Team" | "Project" | "Environment" | "Tenant");
                if !is_principal || known.contains(&named) || !told.insert(named.clone()) {
                    continue;
                }
                let message = format!("no registered agent is in `{}::\"{}\"`", named.kind, quote(&named.id));
                let message = if named.kind == "Agent" {
                    format!("there is no agent `{}`", quote(&named.id))
                } else {
                    message
                };
                let remedy = "correct the name, or register it (`clawgressctl agent create`)".to_owned();
                let at = uid.loc().map(Loc::start).or(at);
                self.find(rule.cedar, at, (Certainty::Warning, Lint::UnknownPrincipal), message, remedy);
            }
        }
    }
}

fn collect<'a>(expr: &'a Expr, mentioned: &mut Vec<(&'a EntityUID, Option<usize>)>) {
    if let Some(uid) = syntax::entity(expr) {
        mentioned.push((uid, syntax::offset(expr)));
    }
    for part in syntax::parts(expr) {
        collect(part, mentioned);
    }
}
