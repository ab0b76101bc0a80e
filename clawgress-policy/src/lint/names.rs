//! Names that nothing has: principals that are not registered, a warning, since agents come and go after a policy is applied; and
//! methods by names of a former version, which are asked about by their names of now.

use std::collections::BTreeSet;

use cedar_policy_core::ast::{EntityUID, Expr};
use cedar_policy_core::parser::Loc;

use super::{Certainty, Lint, Linter, Rule};
use crate::host::quote;
use crate::kernel::plan::groups;
use crate::set::syntax::{self, Named};
use crate::vocabulary::ActionKind;

/// Methods of A2A 0.3, and what they are asked about as: their names of version 1.0. Those of tasks that MCP has as well are not
/// among them.
pub const FORMER_METHODS: [(&str, &str); 9] = [
    ("message/send", "SendMessage"),
    ("message/stream", "SendStreamingMessage"),
    ("tasks/resubscribe", "SubscribeToTask"),
    ("tasks/pushNotificationConfig/set", "CreateTaskPushNotificationConfig"),
    ("tasks/pushNotificationConfig/get", "GetTaskPushNotificationConfig"),
    ("tasks/pushNotificationConfig/list", "ListTaskPushNotificationConfigs"),
    ("tasks/pushNotificationConfig/delete", "DeleteTaskPushNotificationConfig"),
    ("agent/getAuthenticatedExtendedCard", "GetExtendedAgentCard"),
    ("agent/authenticatedExtendedCard", "GetExtendedAgentCard"),
];

impl Linter<'_> {
    /// Tells where policy on tools compares with a method's former name: what it says of it never holds.
    pub(super) fn former_names(&mut self, rules: &[Rule<'_>]) {
        for rule in rules.iter().filter(|rule| rule.actions.contains(&ActionKind::Tool)) {
            let mut texts = Vec::new();
            rule.ast()
                .non_scope_constraints()
                .into_iter()
                .for_each(|condition| texts_of(condition, &mut texts));
            for (text, at) in texts {
                let Some((former, now)) = FORMER_METHODS.iter().find(|(former, _)| *former == text) else {
                    continue;
                };
                let message = format!("`{former}` is a name of A2A 0.3, and is asked about as `{now}`");
                let remedy = format!("write `\"{now}\"`, which holds for both versions");
                self.find(rule.cedar, at, (Certainty::Warning, Lint::FormerName), message, remedy);
            }
        }
    }

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

/// The texts that a condition compares with, and where they stand.
fn texts_of<'a>(expr: &'a Expr, texts: &mut Vec<(&'a str, Option<usize>)>) {
    texts.extend(syntax::string(expr).map(|text| (text, syntax::offset(expr))));
    syntax::parts(expr).into_iter().for_each(|part| texts_of(part, texts));
}

fn collect<'a>(expr: &'a Expr, mentioned: &mut Vec<(&'a EntityUID, Option<usize>)>) {
    if let Some(uid) = syntax::entity(expr) {
        mentioned.push((uid, syntax::offset(expr)));
    }
    for part in syntax::parts(expr) {
        collect(part, mentioned);
    }
}
