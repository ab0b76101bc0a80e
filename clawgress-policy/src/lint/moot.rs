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

/// A permit of what goes unread.
struct Opaque<'a> {
    rule: &'a Rule<'a>,
    /// That it matches; and that it does, as far as agents and hosts go.
    matches: Formula<'a>,
    meets: Formula<'a>,
}

impl Linter<'_> {
    /// Tells each content rule that an opaque permit makes moot, once.
    pub(super) fn moot(&mut self, rules: &[Rule<'_>], search: &Search<'_>) {
        let is_permit = |rule: &&Rule<'_>| rule.ast().effect() == Effect::Permit && rule.is_guard;
        let members = self.set.inner().members();
        // Each is read once: what follows compares each with each.
        let of = |action| {
            let permits = rules.iter().filter(is_permit).filter(move |r| r.actions.contains(&action));
            permits.map(move |rule| Opaque {
                rule,
                matches: Reading::whole(action, members).policy(rule.ast(), true),
                meets: Reading::who_and_where(action, members).policy(rule.ast(), true),
            })
        };
        let tunnels: Vec<Opaque<'_>> =
            of(ActionKind::Tunnel).filter(|opaque| lets_tls_pass(opaque, search)).collect();
        let directs: Vec<Opaque<'_>> =
            of(ActionKind::Direct).filter(|opaque| lets_web_pass(opaque, search)).collect();
        let unread = self.unread(rules);
        let mut found = Vec::new();
        for content in rules.iter().filter(|rule| is_content(rule)) {
            let of_content = content.actions.iter().filter(|action| action.is_content());
            let here = of_content.map(|a| Reading::who_and_where(*a, members).policy(content.ast(), true));
            let here: Vec<Formula<'_>> = here.collect();
            let tunnel = tunnels.iter().find(|opaque| self.meet((content, &here), opaque, &unread, search));
            let by = tunnel.map(|opaque| (opaque.rule, "TLS")).or_else(|| {
                let direct =
                    directs.iter().find(|opaque| self.meet_anywhere((content, &here), opaque, search));
                direct.map(|opaque| (opaque.rule, "what the kernel forwards"))
            });
            found.extend(by.map(|(opaque, what)| (content, opaque, what)));
        }
        for (content, opaque, what) in found {
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

    /// Whether two rules are about the same agent and host, and what the one permits is not read all the same.
    fn meet(
        &self,
        (content, here): (&Rule<'_>, &[Formula<'_>]),
        opaque: &Opaque<'_>,
        unread: &[Formula<'_>],
        search: &Search<'_>,
    ) -> bool {
        let is_there = |here: &Formula<'_>| {
            search.is_possible(&[here, &opaque.meets])
                && !self.is_read_all_the_same(here, &opaque.matches, unread, search)
        };
        self.have_an_agent(content, opaque.rule) && here.iter().any(is_there)
    }

    /// Whether two rules are about the same agent, and the content rule about any host: which address a name has,
    /// nobody knows here.
    fn meet_anywhere(
        &self,
        (content, here): (&Rule<'_>, &[Formula<'_>]),
        direct: &Opaque<'_>,
        search: &Search<'_>,
    ) -> bool {
        use crate::set::syntax::Scope;
        let is_anywhere = matches!(content.ast().resource_constraint().as_inner(), Scope::Any | Scope::Is(_));
        is_anywhere
            && self.have_an_agent(content, direct.rule)
            && here.iter().any(|here| search.is_possible(&[here, &direct.meets]))
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

/// Whether a permit of `tunnel` is one of TLS, which is where requests are hidden.
fn lets_tls_pass(tunnel: &Opaque<'_>, search: &Search<'_>) -> bool {
    let tls = Formula::Is(Literal::Text("context.protocol".to_owned(), "tls".into(), true));
    search.is_possible(&[&tunnel.matches, &tls])
}

/// Whether a permit of `direct` lets pass what is likely to be HTTP.
fn lets_web_pass(direct: &Opaque<'_>, search: &Search<'_>) -> bool {
    let tcp = Formula::Is(Literal::Text("context.protocol".to_owned(), "tcp".into(), true));
    let ports = Spans::of_longs(PORTS.map(|port| (port, port)));
    let web = Formula::Is(Literal::Number("context.port".to_owned(), ports));
    search.is_possible(&[&direct.matches, &tcp, &web])
}

pub(super) fn is_content(rule: &Rule<'_>) -> bool {
    // One that is about everything is not about content.
    let is_of_all = ActionKind::ALL.into_iter().any(|a| !a.is_content() && rule.actions.contains(&a));
    !is_of_all && rule.actions.iter().any(|action| action.is_content())
}
