//! What the schema cannot check: literals that can never match, names that are ambiguous, sets that do
//! not exist. A rule that would silently do nothing is refused here. Must never accept a spelling that
//! decisions would not compare equal.

use std::collections::BTreeSet;

use cedar_policy_core::ast::{Effect, EntityUID, Expr, ExprKind, Pattern, PatternElem, Var};
use clawgress_identity::{AgentId, AgentIdError, DEFAULT_TENANT, PolicyOwner, name_is_valid};

use super::syntax::{self, BinaryOp, Policy, UnaryOp};
use super::text::Source;
use crate::geo::{asn, is_country};
use crate::host::quote;
use crate::members::{Class, Members, check_prefix};
use crate::set::applies;
use crate::vocabulary::ActionKind;
use crate::{Host, PolicyProblem, Transport, TunnelProtocol, path};

/// What people call a protocol, and its name here.
const PROTOCOL_ALIASES: [(&str, &str); 9] = [
    ("icmpv6", "icmp"),
    ("6in4", "sit"),
    ("6in6", "sit"),
    ("ipv6", "sit"),
    ("ipencap", "ipip"),
    ("4in6", "ipip"),
    ("ip-in-ip", "ipip"),
    ("ipsec", "esp"),
    ("ipsec-ah", "ah"),
];
/// The values of `context.scheme`: in clear, and over TLS that the gateway starts itself.
const SCHEMES: [&str; 2] = ["http", "https"];

/// What only `in` asks about: what principals, and what resources, are in, and are never themselves.
const GROUPS: [&str; 10] = [
    "Team",
    "Project",
    "Environment",
    "Tenant",
    "HostSet",
    "NetworkSet",
    "Asn",
    "Country",
    "Provider",
    "ToolServer",
];

/// Whether a part of a condition being true makes a request more allowed, less, or it depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sense {
    Allows,
    Denies,
    Either,
}

impl Sense {
    /// The sense of what policies of this effect ask.
    pub(crate) fn of(policy: &Policy) -> Sense {
        match policy.effect() {
            Effect::Permit => Sense::Allows,
            Effect::Forbid => Sense::Denies,
        }
    }

    pub(crate) fn flipped(self) -> Sense {
        match self {
            Sense::Allows => Sense::Denies,
            Sense::Denies => Sense::Allows,
            Sense::Either => Sense::Either,
        }
    }
}

/// Reviews one policy: its problems.
pub(crate) fn review(
    policy: &Policy,
    id: Option<&str>,
    source: &Source<'_>,
    members: &Members,
    owner: Option<&PolicyOwner>,
) -> Vec<PolicyProblem> {
    let sense = Sense::of(policy);
    let start = policy.loc().map(cedar_policy_core::parser::Loc::start);
    let protocols = protocols(policy);
    let resources = resources(policy);
    let tenant = owner.and_then(PolicyOwner::tenant);
    let mut reviewer =
        Reviewer { id, source, members, tenant, start, protocols, resources, problems: Vec::new() };
    let principal = policy.principal_constraint();
    let resource = policy.resource_constraint();
    for uid in [syntax::scope_entity(principal.as_inner()), syntax::scope_entity(resource.as_inner())]
        .into_iter()
        .flatten()
    {
        reviewer.entity(uid, None);
    }
    if let Some(condition) = policy.non_scope_constraints() {
        reviewer.walk(condition, sense);
    }
    reviewer.problems
}

struct Reviewer<'a> {
    id: Option<&'a str>,
    source: &'a Source<'a>,
    members: &'a Members,
    /// The tenant whose policy it is, which says nothing of others.
    tenant: Option<&'a str>,
    start: Option<usize>,
    /// Values of `context.protocol`, over all actions of the policy.
    protocols: Vec<&'static str>,
    /// Types of `resource`, over all actions of the policy.
    resources: BTreeSet<&'static str>,
    problems: Vec<PolicyProblem>,
}

/// Values of `context.protocol` in requests this policy is asked about.
fn protocols(policy: &Policy) -> Vec<&'static str> {
    let mut protocols = Vec::new();
    if applies(policy, ActionKind::Connect) || applies(policy, ActionKind::Direct) {
        protocols.extend(Transport::ALL.map(Transport::name));
    }
    if applies(policy, ActionKind::Tunnel) {
        protocols.extend(TunnelProtocol::ALL.map(TunnelProtocol::name));
    }
    protocols
}

/// Types of the resources that this policy is asked about.
fn resources(policy: &Policy) -> BTreeSet<&'static str> {
    let asked = ActionKind::ALL.into_iter().filter(|action| applies(policy, *action));
    asked.map(ActionKind::resource).collect()
}

impl Reviewer<'_> {
    fn problem(&mut self, at: Option<usize>, message: String) {
        self.problems.push(self.source.problem(self.id, at.or(self.start), message));
    }

    fn walk(&mut self, expr: &Expr, sense: Sense) {
        let at = syntax::offset(expr);
        let inner = match expr.expr_kind() {
            ExprKind::UnaryApp { op: UnaryOp::Not, .. } => sense.flipped(),
            ExprKind::BinaryApp { op: BinaryOp::Eq, arg1, arg2 }
                if is_condition(arg1) || is_condition(arg2) =>
            {
                Sense::Either
            }
            _ => sense,
        };
        match expr.expr_kind() {
            ExprKind::If { test_expr, then_expr, else_expr } => {
                self.walk(test_expr, Sense::Either);
                self.walk(then_expr, sense);
                self.walk(else_expr, sense);
                return;
            }
            ExprKind::BinaryApp { op, arg1, arg2 } => self.comparison(*op, arg1, arg2),
            ExprKind::Like { expr, pattern } => self.pattern(expr, pattern, sense, at),
            ExprKind::ExtensionFunctionApp { fn_name, args } if fn_name.to_string() == "ip" => {
                self.ip(args, at);
            }
            _ => {}
        }
        if let Some(uid) = syntax::entity(expr) {
            self.entity(uid, at);
        }
        for part in syntax::parts(expr) {
            self.walk(part, inner);
        }
    }

    /// An entity literal: known and canonical.
    fn entity(&mut self, uid: &EntityUID, at: Option<usize>) {
        let at = uid.loc().map(cedar_policy_core::parser::Loc::start).or(at);
        let kind = uid.entity_type().to_string();
        let id = uid.eid().as_ref();
        match kind.as_str() {
            "Agent" if matches!(id.parse::<AgentId>(), Err(AgentIdError::Reserved(_))) => {
                self.problem(at, format!("`Agent::\"{id}\"` is reserved: no agent has this name"));
            }
            "Agent" | "Team" | "Project" | "Environment" if !is_qualified_name(id) => self.problem(
                at,
                format!(
                    "`{kind}::\"{}\"` is not an id: use 1 to 63 of a-z, 0-9, `-`, `_` or `.`, starting with a letter or digit, optionally after `TENANT/`",
                    quote(id)
                ),
            ),
            "Tenant" if !name_is_valid(id) => self.problem(
                at,
                format!("`Tenant::\"{}\"` is not a tenant: use 1 to 63 of a-z, 0-9, `-`, `_` or `.`", quote(id)),
            ),
            "Agent" | "Team" | "Project" | "Environment" | "Tenant" => self.tenant(&kind, id, at),
            "Network" => self.network(id, at),
            "Host" => self.host(id, at),
            "NetworkSet" | "HostSet" => self.set(&kind, id, at),
            "Provider" | "ToolServer" if !name_is_valid(id) => self.problem(
                at,
                format!(
                    "`{kind}::\"{}\"` is not a name: use 1 to 63 of a-z, 0-9, `-`, `_` or `.`, starting with a letter or digit",
                    quote(id)
                ),
            ),
            "Model" | "Tool" if !is_offered(id) => self.problem(
                at,
                format!(
                    "`{kind}::\"{}\"` is not an id: write the {} before it, as in `{}`",
                    quote(id),
                    if kind == "Model" { "provider" } else { "server" },
                    if kind == "Model" { "Model::\"openai/gpt-5\"" } else { "Tool::\"jira/create_issue\"" }
                ),
            ),
            "Asn" => self.asn(id, at),
            "Country" => self.country(id, at),
            _ => {}
        }
    }

    /// A principal of another tenant than the one whose policy it is: it is asked of its own agents alone.
    fn tenant(&mut self, kind: &str, id: &str, at: Option<usize>) {
        let Some(own) = self.tenant else { return };
        let (tenant, name) = match id.split_once('/') {
            _ if kind == "Tenant" => (id, None),
            Some((tenant, name)) => (tenant, Some(name)),
            None => (DEFAULT_TENANT, Some(id)),
        };
        if tenant == own {
            return;
        }
        let remedy = match name {
            Some(name) if !id.contains('/') => format!("write `{kind}::\"{own}/{name}\"`"),
            _ => "name its own, or leave the principal out, which is all of its agents".to_owned(),
        };
        let message = format!(
            "`{kind}::\"{id}\"` is of tenant `{tenant}`, and a policy of tenant `{own}` is asked of its own agents alone: {remedy}"
        );
        self.problem(at, message);
    }

    /// A set that does not exist or is empty matches nothing.
    fn set(&mut self, kind: &str, id: &str, at: Option<usize>) {
        let (what, size) = match kind {
            "NetworkSet" => {
                ("network", self.members.class(&Class::Set(id.to_owned())).map(|prefixes| prefixes.len()))
            }
            _ => ("host", self.members.host_set_size(id)),
        };
        let shown = quote(id);
        let message = match size {
            None => {
                format!("there is no {what} set `{shown}`: add it to the bundle's sets, or correct the name")
            }
            Some(0) => format!(
                "the {what} set `{shown}` has no members, so it never matches: add one, or remove what names it from the policy"
            ),
            Some(_) => return,
        };
        self.problem(at, message);
    }

    fn asn(&mut self, id: &str, at: Option<usize>) {
        if asn(id).is_none() {
            let digits = id.trim_start_matches(|c: char| !c.is_ascii_digit()).trim_start_matches('0');
            let corrected = format!("AS{digits}");
            let hint = match asn(&corrected) {
                Some(_) => format!("write `Asn::\"{corrected}\"`"),
                None => "write it as `Asn::\"AS16509\"`, from AS1 to AS4294967295".to_owned(),
            };
            return self.problem(at, format!("`Asn::\"{}\"` is not an autonomous system: {hint}", quote(id)));
        }
        let is_there = self.members.geo.asns;
        self.geo_name(Class::Asn(id.to_owned()), ("ASN", "asn"), is_there, at);
    }

    fn country(&mut self, id: &str, at: Option<usize>) {
        if !is_country(id) {
            let upper = id.to_ascii_uppercase();
            let hint = if is_country(&upper) {
                format!("write `Country::\"{upper}\"`")
            } else {
                "write the two letters of ISO 3166-1, as in `Country::\"DE\"`".to_owned()
            };
            return self.problem(at, format!("`Country::\"{}\"` is not a country's code: {hint}", quote(id)));
        }
        let is_there = self.members.geo.countries;
        self.geo_name(Class::Country(id.to_owned()), ("country", "country"), is_there, at);
    }

    /// An ASN or a country that the data don't have matches nothing.
    fn geo_name(&mut self, class: Class, (what, key): (&str, &str), is_there: bool, at: Option<usize>) {
        let (Class::Asn(id) | Class::Country(id) | Class::Set(id)) = &class;
        if self.members.geo.is_assumed || self.members.class(&class).is_some() {
            return;
        }
        let message = if is_there {
            format!(
                "the {what} data in force have no `{id}`, so it never matches: correct it, or bring newer data (`[geo] {key}` of the configuration)"
            )
        } else {
            format!(
                "`{id}` can't be looked up, because no {what} data are configured: set `[geo] {key} = \"/path/to/file.mmdb\"` in the configuration, or use a `NetworkSet`"
            )
        };
        self.problem(at, message);
    }

    fn network(&mut self, id: &str, at: Option<usize>) {
        let Ok(ip) = id.parse::<std::net::IpAddr>() else {
            let id = quote(id);
            return self.problem(
                at,
                format!(
                    "`Network::\"{id}\"` is not an address: for a prefix write `resource.ip.isInRange(ip(\"{id}\"))` or use a `NetworkSet`"
                ),
            );
        };
        let canonical = crate::address::canonical(ip).to_string();
        if canonical != id {
            self.problem(at, not_canonical("Network", id, &canonical));
        }
    }

    fn host(&mut self, id: &str, at: Option<usize>) {
        if id.contains('*') {
            let id = quote(id);
            return self.problem(
                at,
                format!(
                    "`Host::\"{id}\"` has a wildcard, and a host is one name: use a `HostSet` with `*.suffix`, or `resource.name like \"*.suffix\"`"
                ),
            );
        }
        match Host::parse(id) {
            Err(e) => self.problem(at, e.to_string()),
            Ok(host) if host.to_string() != id => {
                self.problem(at, not_canonical("Host", id, &host.to_string()));
            }
            Ok(_) => {}
        }
    }

    /// An `ip("…")` literal. Text that is no address at all is the validator's to report.
    fn ip(&mut self, args: &[Expr], at: Option<usize>) {
        let Some(prefix) = args.first().and_then(syntax::string).and_then(syntax::parse_ip) else { return };
        if let Err(why) = check_prefix(prefix) {
            self.problem(at, why);
        }
    }

    /// Comparisons with a literal that can never be equal.
    fn comparison(&mut self, op: BinaryOp, left: &Expr, right: &Expr) {
        match op {
            BinaryOp::Eq => {
                self.equal(left, right);
                self.equal(right, left);
            }
            BinaryOp::Contains => {
                for element in syntax::set(left).unwrap_or_default() {
                    self.equal(right, element);
                }
            }
            BinaryOp::Less | BinaryOp::LessEq => {
                for (subject, literal) in [(left, right), (right, left)] {
                    self.port(subject, literal);
                }
            }
            _ => {}
        }
    }

    fn equal(&mut self, subject: &Expr, literal: &Expr) {
        let at = syntax::offset(literal);
        self.port(subject, literal);
        self.own_type(subject, literal);
        if syntax::is_ip_subject(subject)
            && let Some(prefix) = syntax::ip_literal(literal)
            && !syntax::is_single(prefix)
        {
            self.problem(at, format!("an address never equals the prefix `{prefix}`: use `isInRange`"));
        }
        let (Some((variable, attribute)), Some(text)) = (syntax::attribute(subject), syntax::string(literal))
        else {
            return;
        };
        match (variable, attribute) {
            (Var::Context, "protocol") => self.protocol(text, at),
            (Var::Context, "scheme") if !SCHEMES.contains(&text) => self
                .problem(at, format!("`context.scheme` is never `{}`: it is `http` or `https`", quote(text))),
            (Var::Context, "method") if text.bytes().any(|b| b.is_ascii_lowercase()) => self.problem(
                at,
                format!(
                    "methods are compared as sent, in upper case: write `{}`",
                    quote(&text.to_ascii_uppercase())
                ),
            ),
            (Var::Context, "query_type") if text.bytes().any(|b| b.is_ascii_lowercase()) => self.problem(
                at,
                format!(
                    "types of records are compared in upper case: write `{}`",
                    quote(&text.to_ascii_uppercase())
                ),
            ),
            (Var::Context, "path") if !text.starts_with('/') && text != "*" => {
                self.problem(at, format!("a path starts with `/`: `{}` never matches", quote(text)));
            }
            (Var::Context, "path") if path::normal(text) != text => {
                self.problem(at, not_canonical("the path", text, &path::normal(text)));
            }
            (Var::Resource, "name") => match Host::parse(text) {
                Err(e) => self.problem(at, e.to_string()),
                Ok(host) if host.to_string() != text => {
                    self.problem(at, not_canonical("resource.name", text, &host.to_string()));
                }
                Ok(_) => {}
            },
            _ => {}
        }
    }

    /// A principal or a resource that is compared with an entity of a type that it never is: never equal, always
    /// different, and almost always meant to be `in`.
    fn own_type(&mut self, subject: &Expr, literal: &Expr) {
        let (Some(variable), Some(uid)) = (syntax::variable(subject), syntax::entity(literal)) else {
            return;
        };
        let types = match variable {
            Var::Principal => BTreeSet::from(["Agent"]),
            Var::Resource => self.resources.clone(),
            Var::Action | Var::Context => return,
        };
        let kind = uid.entity_type().to_string();
        // A policy that no action is of is the validator's to report.
        if types.is_empty() || types.contains(kind.as_str()) {
            return;
        }
        let named = format!("{kind}::\"{}\"", quote(uid.eid().as_ref()));
        let remedy = if GROUPS.contains(&kind.as_str()) {
            format!("use `in`, as in `{variable} in {named}`")
        } else {
            let types = types.iter().map(|own| format!("`{own}`")).collect::<Vec<_>>().join(", ");
            format!("compare it with one of its own type ({types})")
        };
        let message =
            format!("`{variable}` is never a `{kind}` here, so it never equals `{named}`: {remedy}");
        self.problem(syntax::offset(literal), message);
    }

    fn protocol(&mut self, text: &str, at: Option<usize>) {
        if self.protocols.is_empty() || self.protocols.contains(&text) {
            return;
        }
        let lower = text.to_ascii_lowercase();
        let meant =
            PROTOCOL_ALIASES.iter().find(|(alias, _)| *alias == lower).map_or(lower.as_str(), |(_, n)| n);
        let remedy = if self.protocols.contains(&meant) {
            format!("write `{meant}`")
        } else {
            let known = self.protocols.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
            format!("it is one of {known}")
        };
        self.problem(at, format!("`context.protocol` is never `{}`: {remedy}", quote(text)));
    }

    fn port(&mut self, subject: &Expr, literal: &Expr) {
        if syntax::is_context(subject, "port")
            && let Some(number) = syntax::long(literal)
            && u16::try_from(number).is_err()
        {
            let at = syntax::offset(literal);
            self.problem(at, format!("`{number}` is not a port: ports are 0 to 65535"));
        }
    }

    /// `context.path like "…"`: what stands between wildcards is in the form that paths are asked in.
    fn path_pattern(&mut self, pattern: &Pattern, at: Option<usize>) {
        for piece in pattern.get_elems().split(|e| matches!(e, PatternElem::Wildcard)) {
            let plain = |e: &PatternElem| match e {
                PatternElem::Char(c) => Some(*c),
                PatternElem::Wildcard => None,
            };
            let text: String = piece.iter().filter_map(plain).collect();
            if path::normal(&text) != text {
                self.problem(at, not_canonical("the path", &text, &path::normal(&text)));
            }
        }
    }

    /// `resource.name like "…"`: a glob must not let `*allowed.test` allow `notallowed.test`.
    fn pattern(&mut self, subject: &Expr, pattern: &Pattern, sense: Sense, at: Option<usize>) {
        match syntax::attribute(subject) {
            Some((Var::Resource, "name")) => {}
            Some((Var::Context, "scheme")) if SCHEMES.iter().any(|s| pattern.wildcard_match(s)) => return,
            Some((Var::Context, "scheme")) => {
                let never = "`context.scheme` is never like this: it is `http` or `https`";
                return self.problem(at, never.to_owned());
            }
            Some((Var::Context, "path")) => return self.path_pattern(pattern, at),
            _ => return,
        }
        let elements = pattern.get_elems();
        if elements.iter().any(|e| matches!(e, PatternElem::Char(c) if c.is_uppercase() || !c.is_ascii())) {
            return self.problem(
                at,
                "host names are compared in lower case and as A-labels (`xn--…`): this pattern never matches"
                    .to_owned(),
            );
        }
        let is_suffix = match elements {
            [PatternElem::Wildcard, PatternElem::Char('.'), rest @ ..] => {
                !rest.is_empty() && rest.iter().all(|e| matches!(e, PatternElem::Char(_)))
            }
            _ => elements.iter().all(|e| matches!(e, PatternElem::Char(_))),
        };
        if sense != Sense::Denies && !is_suffix {
            self.problem(
                at,
                "this pattern can match names in other domains (`*allowed.test` matches `notallowed.test`, `allowed.*` matches `allowed.evil`): where it allows, write `\"*.suffix\"`, or use a `HostSet`".to_owned(),
            );
        }
    }
}

/// `name` or `tenant/name`.
fn is_qualified_name(id: &str) -> bool {
    match id.split_once('/') {
        Some((tenant, name)) => name_is_valid(tenant) && name_is_valid(name),
        None => name_is_valid(id),
    }
}

/// `provider/model` or `server/tool`.
fn is_offered(id: &str) -> bool {
    id.split_once('/').is_some_and(|(by, name)| name_is_valid(by) && !name.is_empty())
}

fn not_canonical(what: &str, text: &str, canonical: &str) -> String {
    format!("{what} `{}` is not in canonical form and never matches: write `{canonical}`", quote(text))
}

/// Whether an expression is a condition in its own right, so that comparing it may invert it.
fn is_condition(expr: &Expr) -> bool {
    use cedar_policy_core::ast::Literal;
    match expr.expr_kind() {
        ExprKind::Lit(Literal::Bool(_))
        | ExprKind::If { .. }
        | ExprKind::And { .. }
        | ExprKind::Or { .. }
        | ExprKind::UnaryApp { op: UnaryOp::Not, .. }
        | ExprKind::HasAttr { .. }
        | ExprKind::ExtHasAttr { .. }
        | ExprKind::Like { .. }
        | ExprKind::Is { .. } => true,
        ExprKind::BinaryApp { op, .. } => {
            !matches!(op, BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::GetTag)
        }
        ExprKind::ExtensionFunctionApp { fn_name, .. } => fn_name.to_string() != "ip",
        _ => false,
    }
}
