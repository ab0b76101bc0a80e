//! The words policy is written in: the schema, its entity types and actions, and how an agent, an
//! address and a host become entities. Must never decide anything.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::OnceLock;

use cedar_policy::Schema;
use cedar_policy_core::ast::{Eid, Entity, EntityType, EntityUID, Name, PartialValue, RestrictedExpr, Value};
use cedar_policy_core::evaluator::RestrictedEvaluator;
use cedar_policy_core::extensions::Extensions;
use clawgress_identity::{Agent, DEFAULT_TENANT};

use crate::Operation;
use crate::head::{Named, Part};
use crate::members::Class;

/// The Cedar schema that policy text is validated against, for editors and people.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// Behind this line of the schema are the actions that are asked about where policy names one.
const NAMED: &str = "// === what is asked where policy names it ===\n";

/// What the lines before each of these begin with.
const SECTION: &str = "// --- ";

/// Behind this line of the schema are the actions that nothing asks about yet.
const UNASKED: &str = "// === what nothing asks about yet ===\n";

/// The schema as Cedar's JSON.
///
/// # Errors
/// Only if the built-in schema is broken, which a test rules out.
pub fn schema_json() -> Result<String, String> {
    let (fragment, _warnings) =
        cedar_policy::SchemaFragment::from_cedarschema_str(SCHEMA).map_err(|e| e.to_string())?;
    fragment.to_json_string().map_err(|e| e.to_string())
}

/// An action, without its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ActionKind {
    Connect,
    Direct,
    Tls,
    Tunnel,
    Http,
    Resolve,
    Llm,
    Tool,
    Send,
    Receive,
}

impl ActionKind {
    pub(crate) const ALL: [ActionKind; 10] = [
        ActionKind::Connect,
        ActionKind::Direct,
        ActionKind::Tls,
        ActionKind::Tunnel,
        ActionKind::Http,
        ActionKind::Resolve,
        ActionKind::Llm,
        ActionKind::Tool,
        ActionKind::Send,
        ActionKind::Receive,
    ];

    pub(crate) fn of(operation: &Operation<'_>) -> Self {
        match operation {
            Operation::Connect { .. } => ActionKind::Connect,
            Operation::Direct { .. } => ActionKind::Direct,
            Operation::Tls { .. } => ActionKind::Tls,
            Operation::Tunnel { .. } => ActionKind::Tunnel,
            Operation::Http { .. } => ActionKind::Http,
            Operation::Resolve { .. } => ActionKind::Resolve,
            Operation::Llm(_) => ActionKind::Llm,
            Operation::Tool(_) => ActionKind::Tool,
            Operation::Send { .. } => ActionKind::Send,
            Operation::Receive { .. } => ActionKind::Receive,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            ActionKind::Connect => "connect",
            ActionKind::Direct => "direct",
            ActionKind::Tls => "tls",
            ActionKind::Tunnel => "tunnel",
            ActionKind::Http => "http",
            ActionKind::Resolve => "resolve",
            ActionKind::Llm => "llm",
            ActionKind::Tool => "tool",
            ActionKind::Send => "send",
            ActionKind::Receive => "receive",
        }
    }

    /// The group of the schema that it is in.
    pub(crate) fn group(self) -> &'static str {
        match self {
            ActionKind::Connect | ActionKind::Tls | ActionKind::Resolve => "reach",
            ActionKind::Direct | ActionKind::Tunnel => "opaque",
            ActionKind::Http
            | ActionKind::Llm
            | ActionKind::Tool
            | ActionKind::Send
            | ActionKind::Receive => "use",
        }
    }

    /// The type of its resource.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            ActionKind::Connect | ActionKind::Direct => "Network",
            ActionKind::Llm => "Model",
            ActionKind::Tool => "Tool",
            _ => "Host",
        }
    }

    /// Whether the kernel decides it.
    pub(crate) fn is_of_addresses(self) -> bool {
        matches!(self, ActionKind::Connect | ActionKind::Direct)
    }

    /// Whether some plane asks about it.
    pub(crate) fn is_asked(self) -> bool {
        true
    }

    /// Whether it is asked only of who has a policy that names it: where none does, it is as if there were no such action.
    pub(crate) fn is_asked_by_name(self) -> bool {
        matches!(self, ActionKind::Send | ActionKind::Llm | ActionKind::Tool | ActionKind::Receive)
    }

    /// Whether it is about what is said, rather than to whom.
    pub(crate) fn is_content(self) -> bool {
        self.group() == "use"
    }

    /// Whether an action or group of this name includes it.
    pub(crate) fn is_in(self, name: &str) -> bool {
        name == self.name() || name == self.group()
    }
}

/// Some of the actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Actions(u16);

impl Actions {
    pub(crate) fn with(self, action: ActionKind) -> Actions {
        Actions(self.0 | 1 << (action as u8))
    }

    pub(crate) fn has(self, action: ActionKind) -> bool {
        self.0 & 1 << (action as u8) != 0
    }
}

/// One value for each action.
#[derive(Clone, Debug)]
pub(crate) struct ByAction<T> {
    connect: T,
    direct: T,
    tls: T,
    tunnel: T,
    http: T,
    resolve: T,
    llm: T,
    tool: T,
    send: T,
    receive: T,
}

impl<T> ByAction<T> {
    pub(crate) fn try_new<E>(mut make: impl FnMut(ActionKind) -> Result<T, E>) -> Result<Self, E> {
        Ok(ByAction {
            connect: make(ActionKind::Connect)?,
            direct: make(ActionKind::Direct)?,
            tls: make(ActionKind::Tls)?,
            tunnel: make(ActionKind::Tunnel)?,
            http: make(ActionKind::Http)?,
            resolve: make(ActionKind::Resolve)?,
            llm: make(ActionKind::Llm)?,
            tool: make(ActionKind::Tool)?,
            send: make(ActionKind::Send)?,
            receive: make(ActionKind::Receive)?,
        })
    }

    pub(crate) fn of(&self, action: ActionKind) -> &T {
        match action {
            ActionKind::Connect => &self.connect,
            ActionKind::Direct => &self.direct,
            ActionKind::Tls => &self.tls,
            ActionKind::Tunnel => &self.tunnel,
            ActionKind::Http => &self.http,
            ActionKind::Resolve => &self.resolve,
            ActionKind::Llm => &self.llm,
            ActionKind::Tool => &self.tool,
            ActionKind::Send => &self.send,
            ActionKind::Receive => &self.receive,
        }
    }
}

/// What of the entities any policy of a set reads; the rest need not be built for a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reads {
    /// Attributes or labels of the agent, or of what its attributes lead to.
    pub(crate) agent: bool,
    /// Attributes of the resource.
    pub(crate) resource: bool,
    /// The time, on either clock.
    pub(crate) time: bool,
    /// The fingerprint of a TLS hello.
    pub(crate) ja4: bool,
    /// What the agent did before.
    pub(crate) history: bool,
    /// What seems to be at the other end, but for the hello.
    pub(crate) fingerprints: bool,
    /// Anything of a body but what is said of it.
    pub(crate) payload: bool,
    /// What was found in it, or what a model's answer came to.
    pub(crate) findings: bool,
    /// What it is said to be.
    pub(crate) media_type: bool,
    /// What a model's answer came to; and the calls of tools that it asks for.
    pub(crate) usage: bool,
    pub(crate) calls: bool,
    /// What header fields or the query say.
    pub(crate) head: bool,
}

/// Cedar's functions on time.
#[derive(Debug)]
pub(crate) struct TimeNames {
    pub(crate) datetime: Name,
    pub(crate) duration: Name,
    pub(crate) offset: Name,
    pub(crate) duration_since: Name,
    pub(crate) to_milliseconds: Name,
}

/// Parsed once for the process.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    pub(crate) schema: Schema,
    /// The same without the actions that nothing asks about, and with some of those that are asked where policy names them:
    /// for policies that name no others, so that one about a group, or about everything, stays valid when the language gets
    /// an action that its condition doesn't fit.
    named: Vec<(Actions, Schema)>,
    tenant: EntityType,
    team: EntityType,
    project: EntityType,
    environment: EntityType,
    agent: EntityType,
    network: EntityType,
    network_set: EntityType,
    asn: EntityType,
    country: EntityType,
    host: EntityType,
    host_set: EntityType,
    model: EntityType,
    provider: EntityType,
    tool: EntityType,
    tool_server: EntityType,
    values: EntityType,
    ip: Name,
    pub(crate) time: TimeNames,
    actions: ByAction<Entity>,
}

impl Vocabulary {
    /// The vocabulary of [`SCHEMA`].
    ///
    /// # Errors
    /// Only if the built-in schema is broken, which a test rules out.
    pub(crate) fn shared() -> Result<&'static Vocabulary, &'static str> {
        static SHARED: OnceLock<Result<Vocabulary, String>> = OnceLock::new();
        SHARED.get_or_init(Vocabulary::load).as_ref().map_err(String::as_str)
    }

    /// The schema of a set that names these of the actions that are asked where policy names them.
    pub(crate) fn named(&self, actions: Actions) -> &Schema {
        self.named.iter().find(|(known, _)| *known == actions).map_or(&self.schema, |(_, schema)| schema)
    }

    fn load() -> Result<Vocabulary, String> {
        let broken = |what: &dyn std::fmt::Display| format!("the built-in schema is broken: {what}");
        let (schema, _warnings) = Schema::from_cedarschema_str(SCHEMA).map_err(|e| broken(&e))?;
        let before = |line| SCHEMA.split_once(line).ok_or_else(|| broken(&"a line is missing"));
        let read = |text: &str| Schema::from_cedarschema_str(text).map_err(|e| broken(&e));
        let (always, rest) = before(NAMED)?;
        let (asked, _) = read(always)?;
        let (sections, _) = rest.split_once(UNASKED).ok_or_else(|| broken(&"a line is missing"))?;
        let sections = sections.split(SECTION).skip(1).map(|section| section.split_once(" ---\n"));
        let sections: Vec<(&str, &str)> =
            sections.collect::<Option<_>>().ok_or_else(|| broken(&"a section has no name"))?;
        let by_name = ActionKind::ALL.into_iter().filter(|action| action.is_asked_by_name());
        let mut named = vec![(Actions::default(), asked.clone())];
        for action in by_name {
            for (actions, _) in named.clone() {
                let actions = actions.with(action);
                let has = |name: &str| ActionKind::ALL.iter().any(|a| actions.has(*a) && a.name() == name);
                let more = sections.iter().filter(|(name, _)| has(name)).map(|(_, text)| *text);
                let text: String = std::iter::once(always).chain(more).collect();
                named.push((actions, read(&text)?.0));
            }
        }
        let kind = |text: &str| text.parse::<EntityType>().map_err(|e| broken(&e));
        let name = |text: &str| text.parse::<Name>().map_err(|e| broken(&e));
        let action_type = kind("Action")?;
        let entities = schema.action_entities().map_err(|e| broken(&e))?;
        let actions = ByAction::try_new(|action| {
            let uid = uid(&action_type, action.name());
            let entity = entities.iter().map(AsRef::<Entity>::as_ref).find(|e| *e.uid() == uid);
            entity.cloned().ok_or_else(|| broken(&action.name()))
        })?;
        Ok(Vocabulary {
            schema,
            named,
            tenant: kind("Tenant")?,
            team: kind("Team")?,
            project: kind("Project")?,
            environment: kind("Environment")?,
            agent: kind("Agent")?,
            network: kind("Network")?,
            network_set: kind("NetworkSet")?,
            asn: kind("Asn")?,
            country: kind("Country")?,
            host: kind("Host")?,
            host_set: kind("HostSet")?,
            model: kind("Model")?,
            provider: kind("Provider")?,
            tool: kind("Tool")?,
            tool_server: kind("ToolServer")?,
            values: kind("Values")?,
            ip: name("ip")?,
            time: TimeNames {
                datetime: name("datetime")?,
                duration: name("duration")?,
                offset: name("offset")?,
                duration_since: name("durationSince")?,
                to_milliseconds: name("toMilliseconds")?,
            },
            actions,
        })
    }

    pub(crate) fn action(&self, action: ActionKind) -> &Entity {
        self.actions.of(action)
    }

    pub(crate) fn agent_uid(&self, agent: &Agent) -> EntityUID {
        uid(&self.agent, &agent.id.to_string())
    }

    /// The agent and, if anything reads them, its attributes, labels and the groups it is in. Ancestors
    /// are complete: each group's only ancestor is the tenant, which is the agent's too.
    pub(crate) fn push_agent(&self, agent: &Agent, reads: Reads, entities: &mut Vec<Entity>) {
        let tenant = uid(&self.tenant, agent.id.tenant());
        let mut parents = HashSet::from([tenant.clone()]);
        let mut attributes = Vec::new();
        for (attribute, kind, name) in [
            ("team", &self.team, &agent.team),
            ("project", &self.project, &agent.project),
            ("environment", &self.environment, &agent.environment),
        ] {
            let Some(name) = name else { continue };
            let group = uid(kind, &qualified(agent.id.tenant(), name));
            if reads.agent {
                attributes.push((attribute, value(group.clone())));
                entities.push(entity(group.clone(), Vec::new(), HashSet::from([tenant.clone()])));
            }
            parents.insert(group);
        }
        if !reads.agent {
            return entities.push(entity(self.agent_uid(agent), attributes, parents));
        }
        attributes.push(("name", value(agent.id.name())));
        attributes.push(("tenant", value(tenant.clone())));
        let tags = agent.labels.iter().map(|(k, v)| (k.as_str().into(), value(v.as_str())));
        entities.push(Entity::with_uid(tenant));
        entities.push(Entity::new_with_attr_partial_value(
            self.agent_uid(agent),
            attributes.into_iter().map(|(k, v)| (k.into(), v)),
            HashSet::new(),
            parents,
            tags,
        ));
    }

    /// The address as a value.
    ///
    /// # Errors
    /// Never for what the standard library prints; an error denies.
    pub(crate) fn ip(&self, ip: IpAddr) -> Result<Value, String> {
        let literal = RestrictedExpr::val(ip.to_string());
        let call = RestrictedExpr::call_extension_fn(self.ip.clone(), [literal]);
        let evaluator = RestrictedEvaluator::new(Extensions::all_available());
        evaluator.interpret(call.as_borrowed()).map_err(|e| e.to_string())
    }

    /// The address as a resource, in these classes.
    pub(crate) fn network<'a>(
        &self,
        ip: IpAddr,
        ip_value: &Value,
        classes: impl Iterator<Item = &'a Class>,
        reads: Reads,
    ) -> Entity {
        let attributes = reads.resource.then(|| ("ip", PartialValue::Value(ip_value.clone())));
        let parents = classes.map(|class| match class {
            Class::Set(name) => uid(&self.network_set, name),
            Class::Asn(id) => uid(&self.asn, id),
            Class::Country(code) => uid(&self.country, code),
        });
        let parents = parents.collect();
        entity(uid(&self.network, &ip.to_string()), attributes.into_iter().collect(), parents)
    }

    /// A model of a provider, or a tool of a server, as a resource.
    pub(crate) fn offered(&self, action: ActionKind, by: &str, name: &str) -> Entity {
        let (kind, of) = match action {
            ActionKind::Llm => (&self.model, &self.provider),
            _ => (&self.tool, &self.tool_server),
        };
        entity(uid(kind, &offered(by, name)), Vec::new(), HashSet::from([uid(of, by)]))
    }

    /// What a part of a head says, as the entity that the context has.
    pub(crate) fn values(&self, part: Part, named: &Named) -> Entity {
        let tags = named.tags().map(|(name, said)| (name.into(), value(said)));
        Entity::new_with_attr_partial_value(
            uid(&self.values, part.name()),
            [],
            HashSet::new(),
            HashSet::new(),
            tags,
        )
    }

    /// The host as a resource, in these sets.
    pub(crate) fn host<'a>(&self, name: &str, sets: impl Iterator<Item = &'a str>, reads: Reads) -> Entity {
        let attributes = reads.resource.then(|| ("name", value(name)));
        let parents = sets.map(|s| uid(&self.host_set, s)).collect();
        entity(uid(&self.host, name), attributes.into_iter().collect(), parents)
    }
}

/// The id of what a provider or a server offers.
pub(crate) fn offered(by: &str, name: &str) -> String {
    format!("{by}/{name}")
}

fn uid(kind: &EntityType, id: &str) -> EntityUID {
    EntityUID::from_components(kind.clone(), Eid::new(id), None)
}

fn value(literal: impl Into<Value>) -> PartialValue {
    PartialValue::Value(literal.into())
}

/// An entity without tags.
fn entity(
    uid: EntityUID,
    attributes: Vec<(&'static str, PartialValue)>,
    parents: HashSet<EntityUID>,
) -> Entity {
    let attributes = attributes.into_iter().map(|(k, v)| (k.into(), v));
    Entity::new_with_attr_partial_value(uid, attributes, HashSet::new(), parents, [])
}

/// `tenant/name`.
pub(crate) fn qualified(tenant: &str, name: &str) -> String {
    format!("{tenant}/{name}")
}

/// The id with its tenant, if entities of this type carry one and the text had none.
pub(crate) fn qualify(kind: &str, id: &str) -> Option<String> {
    let carries_tenant = matches!(kind, "Agent" | "Team" | "Project" | "Environment");
    (carries_tenant && !id.contains('/')).then(|| qualified(DEFAULT_TENANT, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_valid_and_agrees_with_the_actions() {
        let vocabulary = Vocabulary::shared().unwrap();
        for action in ActionKind::ALL {
            let uid: cedar_policy::EntityUid = format!("Action::\"{}\"", action.name()).parse().unwrap();
            assert_eq!(vocabulary.action(action).uid().to_string(), uid.to_string());
            assert_eq!(vocabulary.action(action).ancestors().count(), 1);
            let ancestors: Vec<String> = vocabulary
                .schema
                .ancestors(&"Agent".parse().unwrap())
                .unwrap()
                .map(ToString::to_string)
                .collect();
            assert_eq!(ancestors.len(), 4, "{ancestors:?}");
            let entities = vocabulary.schema.action_entities().unwrap();
            let group: Vec<String> =
                entities.ancestors(&uid).unwrap().map(|u| u.id().unescaped().to_owned()).collect();
            assert_eq!(group, [action.group()]);
        }
        assert_eq!(vocabulary.schema.actions().count(), ActionKind::ALL.len() + 3);
        let asked = || ActionKind::ALL.into_iter().filter(|action| action.is_asked());
        let all = ActionKind::ALL
            .into_iter()
            .filter(|a| a.is_asked_by_name())
            .fold(Actions::default(), Actions::with);
        assert_eq!(vocabulary.named(all).actions().count(), asked().count() + 3);
        let send = Actions::default().with(ActionKind::Send);
        assert_eq!(
            vocabulary.named(send).actions().count(),
            asked().filter(|a| !a.is_asked_by_name()).count() + 4
        );
        let always = asked().filter(|action| !action.is_asked_by_name()).count();
        assert_eq!(vocabulary.named(Actions::default()).actions().count(), always + 3);
    }
}
