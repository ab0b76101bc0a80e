//! Content rules about what an opaque permit lets pass unread.

use std::collections::BTreeMap;

use cedar_policy_core::ast::Effect;

use super::facts::{HOST, Literal};
use super::formula::{Formula, Reading};
use super::search::Search;
use super::spans::Spans;
use super::{Certainty, Lint, Linter, Rule};
use crate::TunnelProtocol;
use crate::host::quote;
use crate::kernel::plan::{groups, in_scope};
use crate::set::syntax::scope_entity;
use crate::vocabulary::ActionKind;

/// Ports on which HTTP is expected where a rule names none.
const PORTS: [i64; 2] = [80, 443];

/// Hosts of a set that are tried for one that two rules are about.
const HOSTS_TRIED_MAX: usize = 16;

/// A permit of what goes unread.
struct Opaque<'a> {
    rule: &'a Rule<'a>,
    /// That it matches; and that it does, as far as agents and hosts go.
    matches: Formula<'a>,
    meets: Formula<'a>,
}

/// All of them.
struct Permits<'a, 'b> {
    /// Of TLS, of messages of WebSockets, and of what the kernel forwards.
    tunnels: Vec<Opaque<'a>>,
    sockets: Vec<Opaque<'a>>,
    directs: Vec<Opaque<'a>>,
    /// That nothing obliges to read what a tunnel permits.
    unread: Vec<Formula<'b>>,
    /// Hosts of sets.
    hosts: BTreeMap<&'b str, Vec<&'b str>>,
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
        let permits = Permits {
            tunnels: of(ActionKind::Tunnel).filter(|opaque| lets_pass(opaque, &OF_TLS, search)).collect(),
            sockets: of(ActionKind::Tunnel)
                .filter(|opaque| lets_pass(opaque, &[TunnelProtocol::WebSocket], search))
                .collect(),
            directs: of(ActionKind::Direct).filter(|opaque| lets_web_pass(opaque, search)).collect(),
            unread: self.unread(rules),
            hosts: members.exact_host_sets(),
        };
        let mut found = Vec::new();
        for content in rules.iter().filter(|rule| is_content(rule)) {
            let of_content = content.actions.iter().filter(|action| action.is_content());
            let here = of_content.map(|a| Reading::who_and_where(*a, members).policy(content.ast(), true));
            let by = self.hidden_by((content, &here.collect::<Vec<_>>()), &permits, search);
            found.extend(by.map(|(opaque, what)| (content, opaque, what)));
        }
        for (content, opaque, what) in found {
            let whose = match self.agent_of_both(content, opaque) {
                Some(agent) => format!("agent `{agent}`, for one"),
                None => "agents that both are about".to_owned(),
            };
            let message =
                format!("it counts for nothing in {what}, of {whose}: `{}` lets that pass unread", opaque.id);
            let remedy =
                format!("narrow `{}`, or bear in mind that this rule governs what is read alone", opaque.id);
            self.find(content.cedar, None, (Certainty::Warning, Lint::Moot), message, remedy);
        }
    }

    /// By which permit, and in what, what a rule is about goes unread.
    fn hidden_by<'a>(
        &self,
        (content, here): (&Rule<'_>, &[Formula<'_>]),
        permits: &Permits<'a, '_>,
        search: &Search<'_>,
    ) -> Option<(&'a Rule<'a>, String)> {
        let Permits { tunnels, sockets, directs, unread, hosts } = permits;
        let to = |opaque: &Opaque<'_>| Self::host_of_both((content, here), opaque, hosts, search);
        if let Some(tunnel) = tunnels.iter().find(|o| self.meet((content, here), o, unread, search)) {
            return Some((tunnel.rule, format!("TLS to {}", to(tunnel))));
        }
        if let Some(direct) = directs.iter().find(|o| self.meet_anywhere((content, here), o, search)) {
            return Some((direct.rule, "what the kernel forwards to any host".to_owned()));
        }
        // Messages are read where `send` or `receive` ask what they hold, whatever permits them unread; and never as calls.
        let is_of_calls = |action: &ActionKind| matches!(action, ActionKind::Llm | ActionKind::Tool);
        let is_met = |o: &&Opaque<'_>| self.meet((content, here), o, &[], search);
        let socket = sockets.iter().filter(|_| content.actions.iter().any(is_of_calls)).find(is_met)?;
        Some((socket.rule, format!("messages of WebSockets to {}", to(socket))))
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

    /// A host that both are about, in words: one that either names, if there is one.
    fn host_of_both(
        (content, here): (&Rule<'_>, &[Formula<'_>]),
        opaque: &Opaque<'_>,
        sets: &BTreeMap<&str, Vec<&str>>,
        search: &Search<'_>,
    ) -> String {
        let is_of_both = |host: &&str| {
            let there = Formula::Is(Literal::Text(HOST.to_owned(), (*host).into(), true));
            here.iter().any(|here| search.is_possible(&[here, &opaque.meets, &there]))
        };
        let mut shown = None;
        for rule in [content, opaque.rule] {
            let resource = rule.ast().resource_constraint();
            let Some(uid) = scope_entity(resource.as_inner()) else { continue };
            let (kind, id): (String, &str) = (uid.entity_type().to_string(), uid.eid().as_ref());
            let hosts = match kind.as_str() {
                "Host" => vec![id],
                "HostSet" => sets.get(id).cloned().unwrap_or_default(),
                _ => continue,
            };
            if let Some(host) = hosts.into_iter().take(HOSTS_TRIED_MAX).find(is_of_both) {
                return format!("`{}`", quote(host));
            }
            shown = shown.or((kind == "HostSet").then(|| format!("hosts of `{}`", quote(id))));
        }
        shown.unwrap_or_else(|| "any host".to_owned())
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

/// Whether a permit of `tunnel` is one of these: requests are hidden in TLS, and what they would say in a WebSocket.
fn lets_pass(tunnel: &Opaque<'_>, protocols: &[TunnelProtocol], search: &Search<'_>) -> bool {
    protocols.iter().any(|protocol| search.is_possible(&[&tunnel.matches, &is_of(*protocol)]))
}

fn is_of(protocol: TunnelProtocol) -> Formula<'static> {
    Formula::Is(Literal::Text("context.protocol".to_owned(), protocol.name().into(), true))
}

/// What `tunnel` carries where it carries TLS.
const OF_TLS: [TunnelProtocol; 2] = [TunnelProtocol::Tls, TunnelProtocol::TlsEch];

/// That it carries TLS, of each kind.
pub(super) fn of_tls() -> [Formula<'static>; 2] {
    OF_TLS.map(is_of)
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
