//! Groups in the registry: tenants, and their teams, projects and environments. Nothing in the registry is in a group
//! that is not there, and none goes while something is in it. They are not part of generations: an agent carries
//! what policy asks of it.

use std::collections::{BTreeMap, BTreeSet};

use clawgress_api::{GroupInfo, LabelChange};
use clawgress_identity::{DEFAULT_TENANT, Group, GroupId, GroupKind, PolicyOwner};
use clawgress_policy::PolicyBundle;
use jiff::Timestamp;

use super::agents::AGENTS_MAX;
use super::govern::Governor;
use super::model::{Draft, Model, Refusal, check_text};

/// Keys of groups, by kind and id.
pub(super) const GROUP: &str = "group/";

/// Groups of one kind on one node: no more than agents that could be in them.
const GROUPS_MAX: usize = AGENTS_MAX;
/// Labels of one agent or group.
const LABELS_MAX: usize = 64;
/// Groups registered by one change when a store of an earlier version is taken over: with room to spare in a
/// transaction.
const TAKEN_OVER_MAX: usize = 1024;
/// How many of those that are in a group are named where that keeps it from being deleted.
const SHOWN_MAX: usize = 3;

/// The groups of a store, with the one that needs no registering.
pub(super) fn with_built_in(mut groups: BTreeMap<GroupId, Group>) -> BTreeMap<GroupId, Group> {
    if let Ok(built_in) = GroupId::of_tenant(DEFAULT_TENANT) {
        groups.entry(built_in.clone()).or_insert_with(|| Group::new(built_in, None));
    }
    groups
}

/// The refusal of a group that doesn't exist, which says what to do.
pub(super) fn missing(group: &GroupId) -> Refusal {
    let kind = group.kind().name();
    Refusal::Missing(format!(
        "there is no {kind} `{group}`; see `clawgressctl {kind} list`, and `clawgressctl {kind} create {group}`"
    ))
}

/// Whether these may be labels of something.
pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if labels.len() > LABELS_MAX {
        return Err(Refusal::Full(format!("an agent or group has at most {LABELS_MAX} labels")));
    }
    for (key, value) in labels {
        if key.is_empty() {
            return Err(Refusal::Invalid("a label has a key: write KEY=VALUE".into()));
        }
        check_text("label", key)?;
        check_text("label", value)?;
    }
    Ok(())
}

// === impl Model ===

impl Model {
    /// The group, or a refusal that says what to do.
    ///
    /// # Errors
    /// If there is none.
    fn group(&self, id: &GroupId) -> Result<&Group, Refusal> {
        self.groups.get(id).ok_or_else(|| missing(id))
    }

    /// What administrators are told of a group.
    #[must_use]
    pub fn group_info(&self, group: &Group) -> GroupInfo {
        GroupInfo {
            kind: group.id.kind(),
            id: group.id.to_string(),
            labels: group.labels.clone(),
            created: group.created_at_s.and_then(|s| Timestamp::from_second(s).ok()),
            agents: self.agents.values().filter(|agent| group.id.has(agent)).count() as u64,
        }
    }

    /// What administrators are told of the groups of one kind.
    #[must_use]
    pub fn group_infos(&self, kind: GroupKind) -> Vec<GroupInfo> {
        self.groups
            .values()
            .filter(|group| group.id.kind() == kind)
            .map(|group| self.group_info(group))
            .collect()
    }

    /// What is in a group, in words.
    fn members(&self, group: &GroupId) -> Vec<String> {
        let agents = self.agents.values().filter(|agent| group.has(agent));
        let mut members: Vec<String> = agents.map(|agent| format!("agent `{}`", agent.id)).collect();
        if group.kind() == GroupKind::Tenant {
            let tenant = group.tenant();
            let groups = self.groups.keys().filter(|other| *other != group && other.tenant() == tenant);
            members.extend(groups.map(|other| format!("{} `{other}`", other.kind().name())));
            let sources = self.shared.keys().filter(|id| id.tenant() == tenant);
            members.extend(sources.map(|id| format!("shared source `{id}`")));
            let issuers = self.issuers.keys().filter(|id| id.tenant() == tenant);
            members.extend(issuers.map(|id| format!("issuer `{id}`")));
            let authorities = self.authorities.keys().filter(|id| id.tenant() == tenant);
            members.extend(authorities.map(|id| format!("authority `{id}`")));
            let domains = self.trust_domains.keys().filter(|id| id.tenant() == tenant);
            members.extend(domains.map(|id| format!("trust domain `{id}`")));
            let keys = self.provider_keys.keys().filter(|id| id.tenant() == tenant);
            members.extend(keys.map(|id| format!("provider key `{id}`")));
            // Whoever comes next by this name must not find it.
            let policy = self.policies.get(&PolicyOwner::Tenant(tenant.to_owned()));
            let is_empty = |bundle: &PolicyBundle| bundle.text.trim().is_empty();
            if policy.is_some_and(|policy| !policy.bundle.as_ref().is_some_and(is_empty)) {
                members.push("a policy (apply an empty one first)".to_owned());
            }
        }
        members
    }

    /// Groups that something is in and that are not registered: earlier versions had no registry of them. A tenant comes
    /// before what is in it.
    fn unregistered(&self) -> BTreeSet<GroupId> {
        let of_agents = self.agents.values().filter_map(|agent| GroupId::all_of(agent).ok()).flatten();
        let roots = self.issuers.keys().chain(self.authorities.keys()).chain(self.trust_domains.keys());
        let tenants = self.shared.keys().map(|id| id.tenant()).chain(roots.map(|id| id.tenant()));
        let tenants = tenants.filter_map(|tenant| GroupId::of_tenant(tenant).ok());
        of_agents.chain(tenants).filter(|group| !self.groups.contains_key(group)).collect()
    }
}

// === impl Draft ===

impl Draft {
    /// Registers a group.
    ///
    /// # Errors
    /// If it exists, its tenant doesn't, or a bound is reached.
    pub fn create_group(&mut self, new: Group) -> Result<Group, Refusal> {
        if self.model.groups.contains_key(&new.id) {
            let kind = new.id.kind().name();
            return Err(Refusal::Exists(format!("there is a {kind} `{}` already", new.id)));
        }
        let tenant = GroupId::of_tenant(new.id.tenant()).map_err(|e| Refusal::Invalid(e.to_string()))?;
        if new.id != tenant {
            self.model.group(&tenant)?;
        }
        check_labels(&new.labels)?;
        self.put_group(new.clone())?;
        Ok(new)
    }

    /// Changes the labels of a group. Returns it as it was, and as it is.
    ///
    /// # Errors
    /// If there is none, or a bound is reached.
    pub fn set_group(&mut self, id: &GroupId, labels: &LabelChange) -> Result<(Group, Group), Refusal> {
        let before = self.model.group(id)?.clone();
        let after = Group { labels: labels.applied_to(&before.labels), ..before.clone() };
        check_labels(&after.labels)?;
        if after != before {
            self.put_group(after.clone())?;
        }
        Ok((before, after))
    }

    /// Removes a group that nothing is in. Returns it as it was.
    ///
    /// # Errors
    /// If there is none, something is in it, or it is the built-in one.
    pub fn delete_group(&mut self, id: &GroupId) -> Result<Group, Refusal> {
        let before = self.model.group(id)?.clone();
        let kind = id.kind().name();
        if id.is_built_in() {
            return Err(Refusal::InUse(format!(
                "{kind} `{id}` is there always: ids without a tenant are in it"
            )));
        }
        let members = self.model.members(id);
        if !members.is_empty() {
            let shown: Vec<&str> = members.iter().take(SHOWN_MAX).map(String::as_str).collect();
            let more = match members.len().saturating_sub(SHOWN_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            return Err(Refusal::InUse(format!(
                "{kind} `{id}` is in use by {}{more}; move or delete them first",
                shown.join(", ")
            )));
        }
        self.model.groups.remove(id);
        self.delete(key(id));
        Ok(before)
    }

    /// Registers those of these groups that don't exist, at a Unix time in seconds. A tenant comes before what is in it.
    /// Returns them.
    ///
    /// # Errors
    /// If a bound is reached.
    pub(super) fn register(
        &mut self,
        groups: impl IntoIterator<Item = GroupId>,
        now_s: i64,
    ) -> Result<Vec<GroupId>, Refusal> {
        let mut registered = Vec::new();
        for group in groups {
            if !self.model.groups.contains_key(&group) {
                self.put_group(Group::new(group.clone(), Some(now_s)))?;
                registered.push(group);
            }
        }
        Ok(registered)
    }

    /// Registers a tenant that something is named after, if it does not exist. Returns it then.
    ///
    /// # Errors
    /// If a bound is reached.
    pub(super) fn register_tenant(&mut self, tenant: &str, now_s: i64) -> Result<Vec<GroupId>, Refusal> {
        let tenant = GroupId::of_tenant(tenant).map_err(|e| Refusal::Invalid(e.to_string()))?;
        self.register([tenant], now_s)
    }

    fn put_group(&mut self, group: Group) -> Result<(), Refusal> {
        let kind = group.id.kind();
        let is_new = !self.model.groups.contains_key(&group.id);
        if is_new && self.model.groups.keys().filter(|id| id.kind() == kind).count() >= GROUPS_MAX {
            return Err(Refusal::Full(format!("a node has at most {GROUPS_MAX} of each kind of group")));
        }
        self.put(&key(&group.id), &group)?;
        self.model.groups.insert(group.id.clone(), group);
        Ok(())
    }
}

fn key(id: &GroupId) -> String {
    format!("{GROUP}{}/{id}", id.kind().name())
}

// === impl Governor ===

impl Governor {
    /// Registers the groups that a store of an earlier version has agents in.
    ///
    /// # Errors
    /// If they can't be stored or recorded; then the rest is registered at the next start.
    pub(super) async fn take_over_groups(&self) -> Result<(), Refusal> {
        while !self.live().model.unregistered().is_empty() {
            let now_s = self.clock.now().as_second();
            let detail =
                |groups: &Vec<GroupId>| format!("groups that agents are in registered: {}", in_words(groups));
            let edit = |draft: &mut Draft| {
                let groups = draft.model.unregistered();
                draft.register(groups.into_iter().take(TAKEN_OVER_MAX), now_s)
            };
            self.change(detail, edit).await?;
        }
        Ok(())
    }
}

/// Groups in a sentence.
pub(super) fn in_words(groups: &[GroupId]) -> String {
    let groups: Vec<String> = groups.iter().map(|id| format!("{} `{id}`", id.kind().name())).collect();
    groups.join(", ")
}

/// Groups that a change registered besides, in a sentence of the audit log.
pub(super) fn besides(groups: &[GroupId]) -> String {
    if groups.is_empty() { String::new() } else { format!("; registered with that: {}", in_words(groups)) }
}
