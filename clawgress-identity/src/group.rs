//! Groups that agents are in: tenants, and within each its teams, projects and environments.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Agent, AgentId, AgentIdError, DEFAULT_TENANT};

/// The label that says who answers for an agent or a group. A label like others, so that policy can ask for it.
pub const OWNER_LABEL: &str = "owner";

/// What kind of group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupKind {
    /// All that carries its name in its id.
    Tenant,
    /// A team of a tenant.
    Team,
    /// A project of a tenant.
    Project,
    /// An environment of a tenant, such as `prod`.
    Environment,
}

/// A group, by its kind and name. Prints as `tenant` or `tenant/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId {
    kind: GroupKind,
    tenant: String,
    /// Empty for a tenant.
    name: String,
}

/// A group as the registry holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawGroup", into = "RawGroup")]
pub struct Group {
    /// Which.
    pub id: GroupId,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Unix seconds at which it was registered; `None` for what needs no registering.
    pub created_at_s: Option<i64>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    kind: GroupKind,
    id: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_at_s: Option<i64>,
}

// === impl GroupKind ===

impl GroupKind {
    /// Every kind, tenants first: what is in one comes after it.
    pub const ALL: [GroupKind; 4] =
        [GroupKind::Tenant, GroupKind::Team, GroupKind::Project, GroupKind::Environment];

    /// Its name, also the verb of the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            GroupKind::Tenant => "tenant",
            GroupKind::Team => "team",
            GroupKind::Project => "project",
            GroupKind::Environment => "environment",
        }
    }
}

// === impl GroupId ===

impl GroupId {
    /// The tenant of this name.
    ///
    /// # Errors
    /// If it is none, by the rules of an [`AgentId`].
    pub fn of_tenant(tenant: &str) -> Result<Self, AgentIdError> {
        // Whatever is a name in it will do to have the tenant judged.
        AgentId::new(tenant, DEFAULT_TENANT)?;
        Ok(GroupId { kind: GroupKind::Tenant, tenant: tenant.to_owned(), name: String::new() })
    }

    /// The group of this kind and name in a tenant; of a tenant the name counts for nothing.
    ///
    /// # Errors
    /// As [`of_tenant`](Self::of_tenant), for both.
    pub fn new(kind: GroupKind, tenant: &str, name: &str) -> Result<Self, AgentIdError> {
        if kind == GroupKind::Tenant {
            return GroupId::of_tenant(tenant);
        }
        AgentId::new(tenant, name)?;
        Ok(GroupId { kind, tenant: tenant.to_owned(), name: name.to_owned() })
    }

    /// The group that `text` names: a tenant by its name, others by `NAME` or `TENANT/NAME`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn parse(kind: GroupKind, text: &str) -> Result<Self, AgentIdError> {
        if kind == GroupKind::Tenant {
            return GroupId::of_tenant(text);
        }
        let id: AgentId = text.parse()?;
        Ok(GroupId { kind, tenant: id.tenant().to_owned(), name: id.name().to_owned() })
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> GroupKind {
        self.kind
    }

    /// The tenant that it is, or is in.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Whether it is the tenant that needs no registering.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        self.kind == GroupKind::Tenant && self.tenant == DEFAULT_TENANT
    }

    /// Whether an agent is in it.
    #[must_use]
    pub fn has(&self, agent: &Agent) -> bool {
        let is_named = |name: &Option<String>| name.as_ref() == Some(&self.name);
        agent.id.tenant() == self.tenant
            && match self.kind {
                GroupKind::Tenant => true,
                GroupKind::Team => is_named(&agent.team),
                GroupKind::Project => is_named(&agent.project),
                GroupKind::Environment => is_named(&agent.environment),
            }
    }

    /// Every group that an agent is in, its tenant first.
    ///
    /// # Errors
    /// If one of its names is none.
    pub fn all_of(agent: &Agent) -> Result<Vec<GroupId>, AgentIdError> {
        let names = [
            (GroupKind::Team, &agent.team),
            (GroupKind::Project, &agent.project),
            (GroupKind::Environment, &agent.environment),
        ];
        let named = names.into_iter().filter_map(|(kind, name)| Some((kind, name.as_ref()?)));
        let groups = named.map(|(kind, name)| GroupId::new(kind, agent.id.tenant(), name));
        std::iter::once(GroupId::of_tenant(agent.id.tenant())).chain(groups).collect()
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            GroupKind::Tenant => f.write_str(&self.tenant),
            _ => write!(f, "{}/{}", self.tenant, self.name),
        }
    }
}

// === impl Group ===

impl Group {
    /// A group of this name, without labels.
    #[must_use]
    pub fn new(id: GroupId, created_at_s: Option<i64>) -> Self {
        Group { id, labels: BTreeMap::new(), created_at_s }
    }
}

impl TryFrom<RawGroup> for Group {
    type Error = AgentIdError;

    fn try_from(raw: RawGroup) -> Result<Self, AgentIdError> {
        let RawGroup { kind, id, labels, created_at_s } = raw;
        Ok(Group { id: GroupId::parse(kind, &id)?, labels, created_at_s })
    }
}

impl From<Group> for RawGroup {
    fn from(group: Group) -> RawGroup {
        let Group { id, labels, created_at_s } = group;
        RawGroup { kind: id.kind, id: id.to_string(), labels, created_at_s }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AgentState;

    #[test]
    fn names() {
        use GroupKind::{Environment, Project, Team, Tenant};
        for (kind, text, wanted) in [
            (Tenant, "acme", Ok("acme")),
            (Tenant, "default", Ok("default")),
            (Team, "payments", Ok("default/payments")),
            (Project, "acme/payments", Ok("acme/payments")),
            (Environment, "acme/default", Ok("acme/default")),
            (Tenant, "acme/x", Err("is not an id")),
            (Tenant, "Acme", Err("is not an id")),
            (Tenant, "platform", Err("is reserved")),
            (Team, "platform/x", Err("is reserved")),
            (Team, "gateway", Err("is reserved")),
            (Team, "a/b/c", Err("is not an id")),
            (Team, "", Err("is not an id")),
        ] {
            match (GroupId::parse(kind, text), wanted) {
                (Ok(id), Ok(wanted)) => {
                    assert_eq!((id.kind(), id.to_string().as_str()), (kind, wanted));
                    assert_eq!(GroupId::parse(kind, &id.to_string()), Ok(id.clone()));
                    let group = Group::new(id, Some(7));
                    let json = serde_json::to_string(&group).unwrap();
                    assert_eq!(serde_json::from_str::<Group>(&json).unwrap(), group, "{json}");
                }
                (Err(error), Err(wanted)) => assert!(error.to_string().contains(wanted), "{error}"),
                (got, wanted) => panic!("{kind:?} `{text}`: {got:?}, wanted {wanted:?}"),
            }
        }
        assert!(serde_json::from_str::<Group>(r#"{"kind":"tenant","id":"a/b"}"#).is_err());
        assert!(serde_json::from_str::<Group>(r#"{"kind":"team","id":"a","more":1}"#).is_err());
    }

    #[test]
    fn an_agent_is_in_the_groups_it_names() {
        let agent = Agent {
            id: "acme/web".parse().unwrap(),
            index: 1,
            team: Some("payments".to_owned()),
            project: None,
            environment: Some("prod".to_owned()),
            labels: BTreeMap::new(),
            state: AgentState::Active,
            sources: Vec::new(),
        };
        let all = GroupId::all_of(&agent).unwrap();
        let shown: Vec<String> = all.iter().map(|id| format!("{} {id}", id.kind().name())).collect();
        assert_eq!(shown, ["tenant acme", "team acme/payments", "environment acme/prod"]);
        assert!(all.iter().all(|id| id.has(&agent)));
        for (kind, text) in [
            (GroupKind::Tenant, "default"),
            (GroupKind::Team, "payments"),
            (GroupKind::Team, "acme/prod"),
            (GroupKind::Project, "acme/payments"),
        ] {
            assert!(!GroupId::parse(kind, text).unwrap().has(&agent), "{kind:?} {text}");
        }
        assert!(GroupId::parse(GroupKind::Tenant, "default").unwrap().is_built_in());
        assert!(!GroupId::parse(GroupKind::Team, "default/default").unwrap().is_built_in());
    }
}
