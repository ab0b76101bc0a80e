//! Content rules about what an opaque permit lets pass unread.

use cedar_policy_core::ast::Effect;

use super::facts::Literal;
use super::formula::{Formula, Reading};
use super::search::Search;
use super::spans::Spans;
use super::{Certainty, Lint, Linter, Rule};
use crate::kernel::plan::{groups, in_scope};
use crate::vocabulary::ActionKind;

/// Ports on which HTTP is expected where a rule names none.
const PORTS: [i64; 2] = [80, 443];

impl Linter<'_> {
    /// Tells each content rule that an opaque permit makes moot, once.
    pub(super) fn moot(&mut self, rules: &[Rule<'_>], search: &Search<'_>) {
        let is_permit = |rule: &&Rule<'_>| rule.ast().effect() == Effect::Permit && rule.is_guard;
        let of = |action| rules.iter().filter(is_permit).filter(move |r| r.actions.contains(&action));
        let tunnels: Vec<&Rule<'_>> =
            of(ActionKind::Tunnel).filter(|rule| self.lets_tls_pass(rule, search)).collect();
        let directs: Vec<&Rule<'_>> =
            of(ActionKind::Direct).filter(|rule| self.lets_web_pass(rule, search)).collect();
        for content in rules.iter().filter(|rule| is_content(rule)) {
            let tunnel = tunnels.iter().find(|opaque| self.meet(content, opaque, rules, search));
            let found = tunnel.map(|opaque| (*opaque, "TLS")).or_else(|| {
                let direct = directs.iter().find(|opaque| self.meet_anywhere(content, opaque, search));
                direct.map(|opaque| (*opaque, "what the kernel forwards"))
            });
            let Some((opaque, what)) = found else { continue };
            let whose = match self.agent_of_both(content, opaque) {
                Some(agent) => format!("agent `{agent}`, for one"),
                None => "agents that both are about".to_owned(),
            };
            let message =
                format!("it counts for nothing in {what} of {whose}: `{}` lets that pass unread", opaque.id);
            let remedy =
                format!("narrow `{}`, or bear in mind that this rule governs clear text alone", opaque.id);
            self.find(content.cedar, None, (Certainty::Warning, Lint::Moot), message, remedy);
        }
    }

    /// Whether a permit of `tunnel` is one of TLS, which is where requests are hidden.
    fn lets_tls_pass(&self, rule: &Rule<'_>, search: &Search<'_>) -> bool {
        let matches = Reading::whole(ActionKind::Tunnel, self.set.inner().members()).policy(rule.ast(), true);
        let tls = Formula::Is(Literal::Text("context.protocol".to_owned(), "tls".into(), true));
        search.is_possible(&[&matches, &tls])
    }

    /// Whether a permit of `direct` lets pass what is likely to be HTTP.
    fn lets_web_pass(&self, rule: &Rule<'_>, search: &Search<'_>) -> bool {
        let matches = Reading::whole(ActionKind::Direct, self.set.inner().members()).policy(rule.ast(), true);
        let tcp = Formula::Is(Literal::Text("context.protocol".to_owned(), "tcp".into(), true));
        let ports = Spans::of_longs(PORTS.map(|port| (port, port)));
        let web = Formula::Is(Literal::Number("context.port".to_owned(), ports));
        search.is_possible(&[&matches, &tcp, &web])
    }

    /// Whether two rules are about the same agent and host, and what the one permits is not read all the same.
    fn meet(&self, content: &Rule<'_>, opaque: &Rule<'_>, rules: &[Rule<'_>], search: &Search<'_>) -> bool {
        let members = self.set.inner().members();
        let there = Reading::who_and_where(ActionKind::Tunnel, members).policy(opaque.ast(), true);
        let is_there = |action: &ActionKind| {
            let here = Reading::who_and_where(*action, members).policy(content.ast(), true);
            search.is_possible(&[&here, &there]) && !self.is_read_all_the_same(&here, opaque, rules, search)
        };
        self.have_an_agent(content, opaque)
            && content.actions.iter().filter(|action| action.is_content()).any(is_there)
    }

    /// Whether two rules are about the same agent, and the content rule about any host: which address a name has,
    /// nobody knows here.
    fn meet_anywhere(&self, content: &Rule<'_>, direct: &Rule<'_>, search: &Search<'_>) -> bool {
        use crate::set::syntax::Scope;
        let is_anywhere = matches!(content.ast().resource_constraint().as_inner(), Scope::Any | Scope::Is(_));
        let members = self.set.inner().members();
        let there = Reading::who_and_where(ActionKind::Direct, members).policy(direct.ast(), true);
        let here = |action: &ActionKind| Reading::who_and_where(*action, members).policy(content.ast(), true);
        is_anywhere
            && self.have_an_agent(content, direct)
            && content
                .actions
                .iter()
                .filter(|action| action.is_content())
                .any(|action| search.is_possible(&[&here(action), &there]))
    }

    /// Whether there may be an agent that both are about: known only where agents are.
    fn have_an_agent(&self, a: &Rule<'_>, b: &Rule<'_>) -> bool {
        self.configuration.agents.is_none() || self.agent_of_both(a, b).is_some()
    }

    /// A registered agent in both scopes.
    fn agent_of_both(&self, a: &Rule<'_>, b: &Rule<'_>) -> Option<&clawgress_identity::AgentId> {
        let is_in = |rule: &Rule<'_>, agent| {
            in_scope(rule.ast().principal_constraint().as_inner(), agent, &groups(agent))
        };
        let agents = self.configuration.agents?;
        agents.iter().find(|agent| is_in(a, agent) && is_in(b, agent)).map(|agent| &agent.id)
    }
}

pub(super) fn is_content(rule: &Rule<'_>) -> bool {
    // One that is about everything is not about content.
    let is_of_all = ActionKind::ALL.into_iter().any(|a| !a.is_content() && rule.actions.contains(&a));
    !is_of_all && rule.actions.iter().any(|action| action.is_content())
}
