//! The words policy is written in: the schema, its entity types and actions, and how an agent, an
//! address and a host become entities. Must never decide anything.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::OnceLock;

use cedar_policy::{Entities, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression, Schema};
use clawgress_identity::{Agent, DEFAULT_TENANT};

use crate::Operation;

/// The Cedar schema that policy text is validated against, for editors and people.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// An action, without its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ActionKind {
    Connect,
    Direct,
    Tls,
    Tunnel,
    Http,
}

impl ActionKind {
    #[cfg(test)]
    pub(crate) const ALL: [ActionKind; 5] =
        [ActionKind::Connect, ActionKind::Direct, ActionKind::Tls, ActionKind::Tunnel, ActionKind::Http];

    pub(crate) fn of(operation: &Operation<'_>) -> Self {
        match operation {
            Operation::Connect { .. } => ActionKind::Connect,
            Operation::Direct { .. } => ActionKind::Direct,
            Operation::Tls { .. } => ActionKind::Tls,
            Operation::Tunnel { .. } => ActionKind::Tunnel,
            Operation::Http { .. } => ActionKind::Http,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            ActionKind::Connect => "connect",
            ActionKind::Direct => "direct",
            ActionKind::Tls => "tls",
            ActionKind::Tunnel => "tunnel",
            ActionKind::Http => "http",
        }
    }

    /// The group of the schema that it is in.
    pub(crate) fn group(self) -> &'static str {
        match self {
            ActionKind::Connect | ActionKind::Tls => "reach",
            ActionKind::Direct | ActionKind::Tunnel => "opaque",
            ActionKind::Http => "use",
        }
    }

    /// Whether an action or group of this name includes it.
    pub(crate) fn is_in(self, name: &str) -> bool {
        name == self.name() || name == self.group()
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
}

impl<T> ByAction<T> {
    pub(crate) fn try_new<E>(mut make: impl FnMut(ActionKind) -> Result<T, E>) -> Result<Self, E> {
        Ok(ByAction {
            connect: make(ActionKind::Connect)?,
            direct: make(ActionKind::Direct)?,
            tls: make(ActionKind::Tls)?,
            tunnel: make(ActionKind::Tunnel)?,
            http: make(ActionKind::Http)?,
        })
    }

    pub(crate) fn of(&self, action: ActionKind) -> &T {
        match action {
            ActionKind::Connect => &self.connect,
            ActionKind::Direct => &self.direct,
            ActionKind::Tls => &self.tls,
            ActionKind::Tunnel => &self.tunnel,
            ActionKind::Http => &self.http,
        }
    }
}

/// Parsed once for the process.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    pub(crate) schema: Schema,
    tenant: EntityTypeName,
    team: EntityTypeName,
    project: EntityTypeName,
    environment: EntityTypeName,
    agent: EntityTypeName,
    network: EntityTypeName,
    network_set: EntityTypeName,
    host: EntityTypeName,
    host_set: EntityTypeName,
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

    fn load() -> Result<Vocabulary, String> {
        let broken = |what: &dyn std::fmt::Display| format!("the built-in schema is broken: {what}");
        let (schema, _warnings) = Schema::from_cedarschema_str(SCHEMA).map_err(|e| broken(&e))?;
        let name = |text: &str| text.parse::<EntityTypeName>().map_err(|e| broken(&e));
        let action_type = name("Action")?;
        let entities: Entities = schema.action_entities().map_err(|e| broken(&e))?;
        let actions = ByAction::try_new(|action| {
            let uid = EntityUid::from_type_name_and_id(action_type.clone(), EntityId::new(action.name()));
            entities.get(&uid).cloned().ok_or_else(|| broken(&action.name()))
        })?;
        Ok(Vocabulary {
            schema,
            tenant: name("Tenant")?,
            team: name("Team")?,
            project: name("Project")?,
            environment: name("Environment")?,
            agent: name("Agent")?,
            network: name("Network")?,
            network_set: name("NetworkSet")?,
            host: name("Host")?,
            host_set: name("HostSet")?,
            actions,
        })
    }

    pub(crate) fn action(&self, action: ActionKind) -> &Entity {
        self.actions.of(action)
    }

    pub(crate) fn agent_uid(&self, agent: &Agent) -> EntityUid {
        uid(&self.agent, &agent.id.to_string())
    }

    /// The agent and all it is in, to `entities`.
    pub(crate) fn push_agent(&self, agent: &Agent, entities: &mut Vec<Entity>) -> Result<(), String> {
        let tenant = uid(&self.tenant, agent.id.tenant());
        let mut parents = HashSet::from([tenant.clone()]);
        let mut attributes = vec![
            ("name".to_owned(), RestrictedExpression::new_string(agent.id.name().to_owned())),
            ("tenant".to_owned(), RestrictedExpression::new_entity_uid(tenant.clone())),
        ];
        for (attribute, kind, name) in [
            ("team", &self.team, &agent.team),
            ("project", &self.project, &agent.project),
            ("environment", &self.environment, &agent.environment),
        ] {
            let Some(name) = name else { continue };
            let group = uid(kind, &qualified(agent.id.tenant(), name));
            attributes.push((attribute.to_owned(), RestrictedExpression::new_entity_uid(group.clone())));
            entities.push(Entity::new_no_attrs(group.clone(), HashSet::from([tenant.clone()])));
            parents.insert(group);
        }
        let tags = agent.labels.iter().map(|(k, v)| (k.clone(), RestrictedExpression::new_string(v.clone())));
        entities.push(Entity::with_uid(tenant));
        entities.push(
            Entity::new_with_tags(self.agent_uid(agent), attributes, parents, tags)
                .map_err(|e| e.to_string())?,
        );
        Ok(())
    }

    /// The address as a resource, in these sets.
    pub(crate) fn network<'a>(
        &self,
        ip: IpAddr,
        sets: impl Iterator<Item = &'a str>,
    ) -> Result<Entity, String> {
        let text = ip.to_string();
        let attributes = [("ip".to_owned(), RestrictedExpression::new_ip(&text))];
        let parents = sets.map(|s| uid(&self.network_set, s)).collect();
        Entity::new(uid(&self.network, &text), attributes.into_iter().collect(), parents)
            .map_err(|e| e.to_string())
    }

    /// The host as a resource, in these sets.
    pub(crate) fn host<'a>(
        &self,
        name: String,
        sets: impl Iterator<Item = &'a str>,
    ) -> Result<Entity, String> {
        let uid_host = uid(&self.host, &name);
        let attributes = [("name".to_owned(), RestrictedExpression::new_string(name))];
        let parents = sets.map(|s| uid(&self.host_set, s)).collect();
        Entity::new(uid_host, attributes.into_iter().collect(), parents).map_err(|e| e.to_string())
    }
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
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
            let uid = vocabulary.action(action).uid();
            assert_eq!(uid.to_string(), format!("Action::\"{}\"", action.name()));
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
    }
}
