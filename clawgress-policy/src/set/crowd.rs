//! More limits at one request than the proxy can ask for: found before a policy counts, rather than by the requests that
//! would be denied. Must never call too many what no request can meet.

use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy::{PrincipalConstraint, ResourceConstraint};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;

use super::{Inner, PolicyErrors, PolicySet};
use crate::content::{ModelCall, Payload, ToolCall};
use crate::effect::{Effect, Obligation};
use crate::head::Head;
use crate::history::History;
use crate::quota::SCOPES_MAX;
use crate::request::{Operation, Request, Scheme, TunnelProtocol};
use crate::vocabulary::ActionKind;
use crate::{Host, Policies};

/// Exchanges that are tried at most, of one tenant: a tenth of a second.
const TRIED_MAX: usize = 50_000;
/// What is told of one request's limits at most: who repairs these sees that there are more.
const TOLD_MAX: usize = 20;
/// A host that no policy names.
const ANYWHERE: &str = "host.invalid";
/// A model that no policy names, of a provider that none does; a tool and a server likewise.
const ANY_OFFERED: &str = "other/other";
/// Models that are tried at most, and tools.
const OFFERED_MAX: usize = 64;

/// Actions that are asked for each request, its body, or a connection.
const ACTIONS: [ActionKind; 6] = [
    ActionKind::Tls,
    ActionKind::Tunnel,
    ActionKind::Http,
    ActionKind::Llm,
    ActionKind::Tool,
    ActionKind::Send,
];

// === impl Policies ===

impl Policies {
    /// Refuses limits of a tenant's and the platform's of which more hold one request than may. One request of each kind
    /// is tried, of each agent to each host that a limit names, and of calls one of each model and tool to any host, since nobody here knows at which
    /// host who offers what. What is forbidden is held to no limits. What conditions, a host with a model or other
    /// agents bring together is left to who denies it.
    ///
    /// # Errors
    /// The limits, if they are too many.
    pub fn check_limits(&self, agents: &[Agent]) -> Result<(), PolicyErrors> {
        for (tenant, set) in self.tenants() {
            let own = agents.iter().filter(|agent| agent.id.tenant() == tenant);
            set.check_limits(own)?;
        }
        Ok(())
    }
}

// === impl PolicySet ===

impl PolicySet {
    fn check_limits<'a>(&self, agents: impl Iterator<Item = &'a Agent>) -> Result<(), PolicyErrors> {
        let limits = || self.halves().flat_map(Inner::limits_of_requests);
        if limits().count() <= SCOPES_MAX {
            return Ok(());
        }
        let hosts: BTreeSet<String> = self.halves().flat_map(Inner::hosts_of_limits).collect();
        let hosts = hosts.iter().map(String::as_str).chain([ANYWHERE]);
        let hosts: Vec<Host> = hosts.filter_map(|host| Host::parse(host).ok()).collect();
        let offered = |action, (kind, of)| -> BTreeSet<String> {
            self.halves()
                .flat_map(|half| half.offered_of_limits(action, kind, of))
                .take(OFFERED_MAX)
                .collect()
        };
        let models = offered(ActionKind::Llm, ("Model", "Provider"));
        let tools = offered(ActionKind::Tool, ("Tool", "ToolServer"));
        let names_agents = limits().any(names_agent) || self.halves().any(Inner::guards_name_agents);
        let set = self.supposing(History::QUIET).seeing(Arc::default());
        let (mut tried, mut kinds) = (0, BTreeSet::new());
        for agent in agents {
            let kind = (&agent.team, &agent.project, &agent.environment, &agent.labels);
            if !kinds.insert((kind, names_agents.then_some(&agent.id))) {
                continue;
            }
            for host in &hosts {
                let is_any = host.to_string() == ANYWHERE;
                let models = and_any(&models, is_any).flat_map(|model| calls(host, model));
                let tools = and_any(&tools, is_any).flat_map(|tool| messages(host, tool));
                for exchange in exchanges(host).into_iter().chain(models).chain(tools) {
                    tried += 1;
                    if tried > TRIED_MAX {
                        return Ok(());
                    }
                    set.check_exchange(agent, &exchange, host)?;
                }
            }
        }
        Ok(())
    }

    /// Checks what one exchange asks: its limits are kept together, each once. What is read is no tunnel, and held to none of
    /// its limits, as far as can be known here: the configuration may exclude the host from being read.
    fn check_exchange(
        &self,
        agent: &Agent,
        operations: &[Operation<'_>],
        host: &Host,
    ) -> Result<(), PolicyErrors> {
        let mut asked = Vec::with_capacity(operations.len());
        for operation in operations {
            let Ok(obligations) = self.obligations(&Request { agent, operation: *operation }) else {
                return Ok(());
            };
            asked.push((operation, obligations));
        }
        let is_read = asked.iter().flat_map(|(_, all)| all).any(|o| o.effect == Effect::Intercept);
        asked.retain(|(operation, _)| !is_read || !matches!(operation, Operation::Tunnel { .. }));
        let is_limit = |o: &&Arc<Obligation>| matches!(o.effect, Effect::Limit(_));
        let limits = asked.iter().flat_map(|(_, all)| all).filter(is_limit);
        let limits: BTreeSet<&str> = limits.map(|obligation| obligation.policy.as_ref()).collect();
        if limits.len() <= SCOPES_MAX || !operations.iter().all(|operation| self.may_pass(agent, operation)) {
            return Ok(());
        }
        let asked = asked.iter().map(|(operation, _)| format!("`{}`", operation.action()));
        let asked = asked.collect::<Vec<_>>().join(" and ");
        let shown = limits.iter().take(TOLD_MAX).map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
        let more = if limits.len() > TOLD_MAX { ", …" } else { "" };
        let to = if host.to_string() == ANYWHERE { "any host".to_owned() } else { format!("`{host}`") };
        Err(PolicyErrors::one(format!(
            "{} limits apply at once to {asked} of `{}` to {to}, and {SCOPES_MAX} may: {shown}{more}: narrow some, or put them together",
            limits.len(),
            agent.id
        )))
    }
}

impl PolicySet {
    /// Whether nothing denies this to the agent but that no permit is for it: permits may be of hosts, paths and models that
    /// are not tried, and a tenant's come after a limit of the platform's.
    fn may_pass(&self, agent: &Agent, operation: &Operation<'_>) -> bool {
        let verdict = self.decide(&Request { agent, operation: *operation }).verdict;
        matches!(verdict, Ok(()) | Err(DropReason::PolicyDenied))
    }
}

// === impl Inner ===

impl Inner {
    /// Whether a guard of what is tried is one agent's: then each agent is tried.
    fn guards_name_agents(&self) -> bool {
        ACTIONS.into_iter().any(|action| self.by_action.of(action).policies().any(names_agent))
    }

    /// The policies that limit requests, once for each action.
    fn limits_of_requests(&self) -> impl Iterator<Item = &cedar_policy::Policy> {
        ACTIONS.into_iter().flat_map(|action| self.limits_of(action))
    }

    /// The policies that limit what this action asks.
    fn limits_of(&self, action: ActionKind) -> impl Iterator<Item = &cedar_policy::Policy> {
        let obligation = |policy: &&cedar_policy::Policy| self.obligations.get(&policy.id().to_string());
        let is_limit = move |policy: &&cedar_policy::Policy| {
            obligation(policy).is_some_and(|o| matches!(o.effect, Effect::Limit(_)))
        };
        self.obliging.of(action).policies().filter(is_limit)
    }

    /// What scopes of limits of this action name of a `kind`, and one of each that offers such.
    fn offered_of_limits(&self, action: ActionKind, kind: &str, of: &str) -> Vec<String> {
        let name = |policy: &cedar_policy::Policy| match policy.resource_constraint() {
            ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid) => {
                let (id, type_name) = (uid.id().unescaped(), uid.type_name().to_string());
                (type_name == kind)
                    .then(|| id.to_owned())
                    .or_else(|| (type_name == of).then(|| format!("{id}/other")))
            }
            ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
        };
        self.limits_of(action).filter_map(name).collect()
    }

    /// Hosts that scopes of limits name, and one of each set that they name.
    fn hosts_of_limits(&self) -> impl Iterator<Item = String> {
        let limits = self.limits_of_requests();
        limits.filter_map(|policy| match policy.resource_constraint() {
            ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid) => {
                let id = uid.id().unescaped();
                match uid.type_name().to_string().as_str() {
                    "Host" => Some(id.to_owned()),
                    "HostSet" => self.members().a_host_in(id),
                    _ => None,
                }
            }
            ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
        })
    }
}

/// What is tried at a host: the named where it may be any, and one of no name.
fn and_any(named: &BTreeSet<String>, is_any: bool) -> impl Iterator<Item = (&str, &str)> {
    let named = named.iter().filter(move |_| is_any).map(String::as_str);
    named.chain([ANY_OFFERED]).filter_map(|name| name.split_once('/'))
}

/// A call of a model, in clear and in TLS that is read.
fn calls<'a>(host: &'a Host, (provider, model): (&'a str, &'a str)) -> [Vec<Operation<'a>>; 2] {
    [(443, Scheme::Https), (80, Scheme::Http)].map(|(port, scheme)| {
        let payload = Payload { bytes: 0, complete: true, media_type: "application/json", findings: &[] };
        let call = ModelCall {
            host,
            port,
            provider,
            model,
            family: model,
            surface: "chat_completions",
            tokens_estimated: 0,
            tokens_max: None,
            stream: false,
            tools: &[],
            attachments: 0,
            images: 0,
            attachment_bytes: 0,
            prompt_score: 0,
            unpriced: false,
            tool_choice: "",
            end_user: "",
            store: false,
            partial: false,
            findings: &[],
        };
        vec![
            Operation::Http { host, port, scheme, method: "POST", path: "/", head: Head::none() },
            Operation::Send { host, port, method: "POST", path: "/", payload },
            Operation::Llm(call),
        ]
    })
}

/// A message to a tool, likewise.
fn messages<'a>(host: &'a Host, (server, name): (&'a str, &'a str)) -> [Vec<Operation<'a>>; 2] {
    [(443, Scheme::Https), (80, Scheme::Http)].map(|(port, scheme)| {
        let payload = Payload { bytes: 0, complete: true, media_type: "application/json", findings: &[] };
        let call = ToolCall {
            host,
            port,
            server,
            method: "tools/call",
            name,
            argument_names: &[],
            values: &[],
            arguments: "{}",
            findings: &[],
        };
        vec![
            Operation::Http { host, port, scheme, method: "POST", path: "/", head: Head::none() },
            Operation::Send { host, port, method: "POST", path: "/", payload },
            Operation::Tool(call),
        ]
    })
}

fn names_agent(policy: &cedar_policy::Policy) -> bool {
    match policy.principal_constraint() {
        PrincipalConstraint::Eq(uid) | PrincipalConstraint::In(uid) | PrincipalConstraint::IsIn(_, uid) => {
            uid.type_name().to_string() == "Agent"
        }
        PrincipalConstraint::Any | PrincipalConstraint::Is(_) => false,
    }
}

/// One of each kind: what is asked for it.
fn exchanges(host: &Host) -> [Vec<Operation<'_>>; 6] {
    let payload = Payload { bytes: 0, complete: true, media_type: "", findings: &[] };
    let http = |(port, scheme), method| Operation::Http {
        host,
        port,
        scheme,
        method,
        path: "/",
        head: Head::none(),
    };
    let send = |port| Operation::Send { host, port, method: "POST", path: "/", payload };
    let (clear, read) = ((80, Scheme::Http), (443, Scheme::Https));
    let tls = |protocol| {
        let hello = Operation::Tls { host, port: 443, alpn: &[], ja4: "" };
        vec![hello, Operation::Tunnel { host, port: 443, protocol }]
    };
    [
        vec![http(read, "GET")],
        vec![http(clear, "GET")],
        vec![http(read, "POST"), send(443)],
        vec![http(clear, "POST"), send(80)],
        tls(TunnelProtocol::Tls),
        tls(TunnelProtocol::TlsEch),
    ]
}
