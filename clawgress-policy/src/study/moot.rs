//! Which policies about content have no say where content passes unread.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clawgress_identity::Agent;

use crate::head::Head;
use crate::set::syntax::Policy;
use crate::set::{applies, names_asked_by_name};
use crate::vocabulary::ActionKind;
use crate::{Host, Operation, PLATFORM_PREFIX, PolicyInForceRef, PolicySet, Request, Scheme};

/// What a set was parsed from.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'a> {
    /// The set's own.
    pub own: PolicyInForceRef<'a>,
    /// Of the platform's that stands above it, if one does.
    pub platform: Option<PolicyInForceRef<'a>>,
}

/// Ids of the policies of both that are about what the agent sends to this host, or to any.
pub(super) fn moot(texts: Texts<'_>, agent: &Agent, to: Option<(&Host, u16)>) -> Vec<String> {
    let mut ids = content(texts.own, agent, to);
    let platforms = texts.platform.into_iter().flat_map(|text| content(text, agent, to));
    ids.extend(platforms.map(|id| format!("{PLATFORM_PREFIX}{id}")));
    ids.sort_unstable();
    ids
}

/// The policies of `http`, `send`, `receive`, `llm` and `tool` whose scope has the agent and, where it is known, the host: they are
/// asked without their conditions, all as permits, so that each that matches determines. Whose models or tools there are at a host
/// is not known here, so that a policy about some is about any host.
fn content(text: PolicyInForceRef<'_>, agent: &Agent, to: Option<(&Host, u16)>) -> Vec<String> {
    let PolicyInForceRef { text, sets, surroundings } = text;
    let Ok(set) = text.parse::<cedar_policy::PolicySet>() else { return Vec::new() };
    let mut scopes = BTreeMap::new();
    for cedar in set.policies() {
        let ast: &Policy = cedar.as_ref();
        if let Some(id) = cedar.annotation("id")
            && (applies(ast, ActionKind::Http) || names_asked_by_name(ast))
        {
            scopes.insert(id.to_owned(), scope(cedar, to.is_some()));
        }
    }
    let anywhere = Host::from_address(IpAddr::from([192, 0, 2, 1]));
    let (host, port) = to.unwrap_or((&anywhere, 80));
    let operation =
        Operation::Http { host, port, scheme: Scheme::Http, method: "GET", path: "/", head: Head::none() };
    // One whose scope can't be of `http` alone, such as a network's, has nothing to do with content: each round leaves
    // out those that are refused, so that there are at most as many rounds as policies.
    while !scopes.is_empty() {
        let text: String = scopes.iter().map(|(id, scope)| format!("@id(\"{id}\") {scope}\n")).collect();
        match PolicySet::parse_in(&text, sets, surroundings) {
            Ok(scoped) => {
                // Their conditions are gone, and with them all that has to be given.
                return scoped.decide(&Request { agent, operation }).policies;
            }
            Err(errors) => {
                let before = scopes.len();
                for id in errors.problems.iter().filter_map(|problem| problem.policy.as_ref()) {
                    scopes.remove(id);
                }
                if scopes.len() == before {
                    return Vec::new();
                }
            }
        }
    }
    Vec::new()
}

/// The policy as a permit of `http` with its principal and, if `with_resource`, its resource, and nothing else.
fn scope(cedar: &cedar_policy::Policy, with_resource: bool) -> String {
    use cedar_policy::{PrincipalConstraint, ResourceConstraint};
    let principal = match cedar.principal_constraint() {
        PrincipalConstraint::Any => "principal".to_owned(),
        PrincipalConstraint::In(uid) => format!("principal in {uid}"),
        PrincipalConstraint::Eq(uid) => format!("principal == {uid}"),
        PrincipalConstraint::Is(kind) => format!("principal is {kind}"),
        PrincipalConstraint::IsIn(kind, uid) => format!("principal is {kind} in {uid}"),
    };
    let resource = match cedar.resource_constraint() {
        _ if !with_resource => "resource".to_owned(),
        ResourceConstraint::In(uid) | ResourceConstraint::Eq(uid) | ResourceConstraint::IsIn(_, uid)
            if is_offered(uid.type_name()) =>
        {
            "resource".to_owned()
        }
        ResourceConstraint::Is(kind) if is_offered(&kind) => "resource".to_owned(),
        ResourceConstraint::Any => "resource".to_owned(),
        ResourceConstraint::In(uid) => format!("resource in {uid}"),
        ResourceConstraint::Eq(uid) => format!("resource == {uid}"),
        ResourceConstraint::Is(kind) => format!("resource is {kind}"),
        ResourceConstraint::IsIn(kind, uid) => format!("resource is {kind} in {uid}"),
    };
    format!("permit ({principal}, action == Action::\"http\", {resource});")
}

/// Whether it is the type of what a host offers, or of who offers it.
fn is_offered(kind: &cedar_policy::EntityTypeName) -> bool {
    ["Model", "Provider", "Tool", "ToolServer"].contains(&kind.to_string().as_str())
}
