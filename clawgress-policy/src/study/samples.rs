//! What policy texts and their sets name, and one thing of each kind that they don't: samples to ask two sets about. Must name no
//! more than is bounded.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy_core::ast::{Expr, ExprKind, Literal, PatternElem};

use crate::head::{self, Head, Part};
use crate::set::syntax::{self, Policy};
use crate::set::{applies, names_asked_by_name};
use crate::vocabulary::ActionKind;
use crate::{Host, PolicyInForceRef};

pub(super) use self::calls::Calls;

mod calls;

/// Most samples of each dimension: their product is what is asked.
const HOSTS_MAX: usize = 256;
const METHODS_MAX: usize = 12;
const PATHS_MAX: usize = 48;
const PORTS_MAX: usize = 10;
const BODIES_MAX: usize = 32;
const HEADS_MAX: usize = 16;
/// Most members of one host set that are tried: they differ in nothing but what names them elsewhere.
const MEMBERS_MAX: usize = 3;
/// What no policy names.
const OTHER_HOST: &str = "any-other.invalid";
const OTHER_PATH: &str = "/any-other";
const OTHER_VALUE: &str = "any-other";

/// A body to ask about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SampleBody {
    pub(super) told: String,
    pub(super) bytes: u64,
    pub(super) complete: bool,
    pub(super) media_type: String,
    pub(super) findings: Vec<String>,
}

/// Header fields, or a query, to ask about.
#[derive(Clone, Debug)]
pub(super) struct SampleHead {
    pub(super) told: String,
    pub(super) head: Head,
}

/// The samples.
#[derive(Debug)]
pub(super) struct Samples {
    pub(super) hosts: Vec<Host>,
    pub(super) methods: Vec<String>,
    pub(super) paths: Vec<String>,
    pub(super) ports: Vec<u16>,
    pub(super) query_types: Vec<String>,
    pub(super) bodies: Vec<SampleBody>,
    /// Calls of models.
    pub(super) models: Calls,
    /// Messages to tools.
    pub(super) tools: Calls,
    pub(super) heads: Vec<SampleHead>,
    /// Whether any policy names a single agent.
    pub(super) names_agents: bool,
    /// What was left out, if anything was.
    pub(super) incomplete: Option<String>,
}

/// What is named, by what it may be.
#[derive(Debug, Default)]
struct Named {
    hosts: BTreeSet<String>,
    host_sets: BTreeSet<String>,
    words: BTreeSet<String>,
    patterns: BTreeSet<Vec<String>>,
    numbers: BTreeSet<i64>,
    /// Providers and tool servers, and what they offer, by id.
    offering: BTreeSet<String>,
    offered: BTreeSet<String>,
    /// Names in header fields and queries, each with what it is to say.
    heads: BTreeMap<String, Head>,
    agents: bool,
}

// === impl Samples ===

impl Samples {
    pub(super) fn of(texts: &[PolicyInForceRef<'_>]) -> Samples {
        let mut named = Named::default();
        let (mut of_models, mut of_tools) = (Named::default(), Named::default());
        let mut hosts = BTreeSet::new();
        for text in texts {
            named.read(text.text, |_| true);
            let names = |ast: &Policy, action| applies(ast, action) && names_asked_by_name(ast);
            of_models.read(text.text, |ast| names(ast, ActionKind::Llm));
            of_tools.read(text.text, |ast| names(ast, ActionKind::Tool));
            for (name, members) in &text.sets.hosts {
                if named.host_sets.contains(name) {
                    hosts.extend(members.iter().take(MEMBERS_MAX).map(|member| below(member)));
                }
            }
        }
        hosts.extend(named.hosts.iter().map(|host| below(host)));
        hosts.extend(named.patterned(|text| !text.contains('/') && text.contains('.')));
        hosts.insert(OTHER_HOST.to_owned());
        let mut left = Vec::new();
        let mut bounded = |all: BTreeSet<String>, max: usize, what: &str| -> Vec<String> {
            if all.len() > max {
                left.push(format!("{max} of {} {what}", all.len()));
            }
            all.into_iter().take(max).collect()
        };
        let words = |is: fn(&str) -> bool| named.words.iter().filter(move |word| is(word)).cloned();
        let models = Calls::of_models(&of_models, &mut bounded);
        let tools = Calls::of_tools(&of_tools, &mut bounded);
        let hosts = bounded(hosts, HOSTS_MAX, "hosts");
        let methods = words(is_method).chain(["GET", "POST", "DELETE"].map(str::to_owned)).collect();
        let methods = bounded(methods, METHODS_MAX, "methods");
        let paths = words(|word| word.starts_with('/')).chain(named.patterned(|text| text.starts_with('/')));
        let paths = bounded(paths.chain(["/", OTHER_PATH].map(str::to_owned)).collect(), PATHS_MAX, "paths");
        let query_types = words(is_method).filter(|word| word.len() <= 6).chain(["A".to_owned()]).collect();
        let query_types = bounded(query_types, METHODS_MAX, "types of records");
        let ports: BTreeSet<u16> = named.numbers.iter().filter_map(|n| u16::try_from(*n).ok()).collect();
        let common = [80, 443];
        let ports: BTreeSet<u16> =
            ports.into_iter().filter(|port| *port > 0).take(PORTS_MAX - common.len()).chain(common).collect();
        Samples {
            hosts: hosts.iter().filter_map(|host| Host::parse(host).ok()).collect(),
            methods,
            paths,
            ports: ports.into_iter().collect(),
            query_types,
            bodies: named.bodies(),
            models,
            tools,
            heads: named.heads(),
            names_agents: named.agents,
            incomplete: (!left.is_empty()).then(|| format!("only {} were tried", left.join(", "))),
        }
    }

    /// A host as people are told of it.
    pub(super) fn shown(&self, host: &Host) -> String {
        let name = host.to_string();
        if name == OTHER_HOST { "(any other)".to_owned() } else { name }
    }
}

/// A name that a host set's entry has.
fn below(entry: &str) -> String {
    entry.strip_prefix("*.").map_or_else(|| entry.to_owned(), |suffix| format!("any.{suffix}"))
}

fn is_method(word: &str) -> bool {
    (1..=16).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_uppercase())
}

/// Whether it may be the name of a finding.
fn is_finding(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
}

// === impl Named ===

impl Named {
    /// Reads those policies of a text that count.
    fn read(&mut self, text: &str, counts: impl Fn(&Policy) -> bool) {
        let Ok(set) = text.parse::<cedar_policy::PolicySet>() else { return };
        for cedar in set.policies() {
            let ast: &Policy = cedar.as_ref();
            if !counts(ast) {
                continue;
            }
            let (principal, resource) = (ast.principal_constraint(), ast.resource_constraint());
            let scopes = [principal.as_inner(), resource.as_inner()];
            for uid in scopes.into_iter().filter_map(syntax::scope_entity) {
                self.entity(&syntax::Named::of(uid));
            }
            ast.non_scope_constraints().into_iter().flat_map(Expr::subexpressions).for_each(|e| self.part(e));
            for (part, name, value) in ast.non_scope_constraints().into_iter().flat_map(head::questions) {
                let value = value.unwrap_or_else(|| OTHER_VALUE.to_owned());
                let told = match part {
                    Part::Headers => format!("{name}: {value}"),
                    Part::Query => format!("?{name}={value}"),
                };
                self.heads.insert(told, Head::saying(part, &name, &value));
            }
        }
    }

    fn part(&mut self, expr: &Expr) {
        match expr.expr_kind() {
            ExprKind::Lit(Literal::String(word)) => drop(self.words.insert(word.to_string())),
            ExprKind::Lit(Literal::Long(n)) => drop(self.numbers.insert(*n)),
            ExprKind::Lit(Literal::EntityUID(uid)) => self.entity(&syntax::Named::of(uid)),
            ExprKind::Like { pattern, .. } => {
                let mut parts = vec![String::new()];
                for element in pattern.get_elems() {
                    match (element, parts.last_mut()) {
                        (PatternElem::Char(c), Some(last)) => last.push(*c),
                        _ => parts.push(String::new()),
                    }
                }
                self.patterns.insert(parts);
            }
            _ => {}
        }
    }

    fn entity(&mut self, named: &syntax::Named) {
        match named.kind.as_str() {
            "Host" => drop(self.hosts.insert(named.id.clone())),
            "HostSet" => drop(self.host_sets.insert(named.id.clone())),
            "Provider" | "ToolServer" => drop(self.offering.insert(named.id.clone())),
            "Model" | "Tool" => drop(self.offered.insert(named.id.clone())),
            "Agent" => self.agents = true,
            _ => {}
        }
    }

    /// Texts that patterns match: with nothing and with something for what may be anything.
    fn patterned(&self, is: fn(&str) -> bool) -> impl Iterator<Item = String> {
        let filled = self.patterns.iter().flat_map(|parts| [parts.join(""), parts.join("any")]);
        // A host's `*.example.com` would begin with a dot.
        filled.filter(move |text| is(text) && !text.starts_with('.'))
    }

    fn heads(&self) -> Vec<SampleHead> {
        let nothing = SampleHead { told: "none of these".to_owned(), head: Head::none().clone() };
        let named =
            self.heads.iter().map(|(told, head)| SampleHead { told: told.clone(), head: head.clone() });
        std::iter::once(nothing).chain(named).take(HEADS_MAX).collect()
    }

    fn bodies(&self) -> Vec<SampleBody> {
        let empty = SampleBody {
            told: "nothing found".to_owned(),
            bytes: 1,
            complete: true,
            media_type: String::new(),
            findings: Vec::new(),
        };
        let streams = SampleBody { told: "streams".to_owned(), complete: false, ..empty.clone() };
        let found = self.words.iter().filter(|word| is_finding(word)).map(|name| SampleBody {
            told: format!("finding {name}"),
            findings: vec![name.clone()],
            ..empty.clone()
        });
        let types = self.words.iter().filter(|word| !word.starts_with('/') && word.contains('/'));
        let typed = types.map(|media_type| SampleBody {
            told: format!("media type {media_type}"),
            media_type: media_type.clone(),
            ..empty.clone()
        });
        let sizes = self.numbers.iter().filter_map(|n| u64::try_from(*n).ok());
        let sizes: BTreeSet<u64> = sizes.flat_map(|n| [n, n.saturating_add(1)]).collect();
        let sized = sizes.into_iter().map(|bytes| SampleBody {
            told: format!("{bytes} bytes"),
            bytes,
            ..empty.clone()
        });
        let all = [empty.clone(), streams].into_iter().chain(found).chain(typed).chain(sized);
        all.take(BODIES_MAX).collect()
    }
}
