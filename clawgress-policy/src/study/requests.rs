//! In what two sets differ for requests: which agents may do what at which hosts by one and not by the other.
//!
//! Hosts, methods and paths can't be listed, so both are asked about samples: what their texts and sets name, and one thing of
//! each kind that they don't. What is told is so; what no sample shows is not told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;
use serde::{Deserialize, Serialize};

use super::samples::{SampleBody, Samples};
use crate::content::{AskedCall, Payload, Usage};
use crate::history::History;
use crate::{
    Host, Operation, Policies, PolicyInForceRef, PolicySet, Request, Scheme, TunnelProtocol, UPSTREAM_ALPN,
};

mod calls;

/// Most requests that both are asked about: some seconds of one core.
const ASKED_MAX: usize = 400_000;
/// Most changes listed; a person reads no more.
pub const CHANGES_MAX: usize = 500;

/// Requests that are answered otherwise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestChange {
    /// The agents.
    pub agents: Vec<String>,
    /// The action.
    pub action: String,
    /// The hosts; of `llm` the models as `PROVIDER/MODEL`, of `tool` the tools as `SERVER/TOOL`.
    pub hosts: Vec<String>,
    /// What else a request has to be: `method`, `path`, `header or query`, `port`, `protocol`, `type`, `body`, `call`. What is absent may be any that was tried.
    pub about: BTreeMap<String, String>,
    /// What the first says: `allow` or the name of a drop reason, and effects, if those differ.
    pub before: String,
    /// What the second says.
    pub after: String,
}

/// What requests come to by one and not by the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestDifference {
    /// The changes, at most [`CHANGES_MAX`].
    pub changes: Vec<RequestChange>,
    /// How many requests both were asked about.
    pub asked: usize,
    /// Why not everything that they name was tried, or not all changes are listed, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<String>,
}

/// What both say of one request, where that differs.
type Turn = (String, String);

/// Asks about the sample at these indices.
type Asking<'a> = dyn Fn(&[usize], &mut dyn FnMut(Operation<'_>)) + 'a;

/// Indices of samples that are answered alike; none in a dimension that makes no difference.
type Place = Vec<Option<usize>>;

/// A kind of request: what its samples may be, by dimension, and how one of them is asked.
struct Kind<'a> {
    action: &'static str,
    dimensions: Vec<(&'static str, Vec<String>)>,
    ask: Box<Asking<'a>>,
}

impl RequestDifference {
    /// Asks both, [at](Policies::at) a moment, about what `texts` name, which they were parsed from.
    #[must_use]
    pub fn between(
        a: &Policies,
        b: &Policies,
        texts: &[PolicyInForceRef<'_>],
        agents: &[Agent],
    ) -> RequestDifference {
        let samples = Samples::of(texts);
        let mut difference =
            RequestDifference { incomplete: samples.incomplete.clone(), ..RequestDifference::default() };
        let mut found: BTreeMap<Vec<RequestChange>, Vec<String>> = BTreeMap::new();
        for agents in kinds_of(agents, samples.names_agents) {
            let Some(one) = agents.first() else { continue };
            let tenant = one.id.tenant();
            let settled =
                |policies: &Policies| policies.of(tenant).supposing(History::QUIET).seeing(Arc::default());
            let changes = difference.of_agent(&settled(a), &settled(b), one, &samples);
            let names = agents.iter().map(|agent| agent.id.to_string());
            found.entry(changes).or_default().extend(names);
        }
        for (changes, agents) in found {
            let named = |change| RequestChange { agents: agents.clone(), ..change };
            difference.changes.extend(changes.into_iter().map(named));
        }
        difference.changes.sort();
        if difference.changes.len() > CHANGES_MAX {
            difference.changes.truncate(CHANGES_MAX);
            difference.incomplete = Some(format!("only the first {CHANGES_MAX} changes are listed"));
        }
        difference
    }

    /// All changes of one agent, without its name.
    fn of_agent(
        &mut self,
        a: &PolicySet,
        b: &PolicySet,
        agent: &Agent,
        samples: &Samples,
    ) -> Vec<RequestChange> {
        let mut by_host: BTreeMap<RequestChange, BTreeSet<String>> = BTreeMap::new();
        let anywhere = Host::from_address([192, 0, 2, 1].into());
        let mut asked = Vec::new();
        for host in &samples.hosts {
            let named = |kind| (samples.shown(host), kind);
            asked.extend(kinds(host, samples, Asked::of(&[a, b])).into_iter().map(named));
        }
        asked.extend(calls::kinds(&anywhere, samples, [a, b]));
        for (of, kind) in asked {
            let Some(turns) = self.of_kind(a, b, agent, &kind) else { continue };
            for (about, (before, after)) in collapsed(&kind.dimensions, turns) {
                let change = RequestChange {
                    agents: Vec::new(),
                    action: kind.action.to_owned(),
                    hosts: Vec::new(),
                    about,
                    before,
                    after,
                };
                by_host.entry(change).or_default().insert(of.clone());
            }
        }
        let with_hosts = |(change, hosts): (RequestChange, BTreeSet<String>)| RequestChange {
            hosts: hosts.into_iter().collect(),
            ..change
        };
        by_host.into_iter().map(with_hosts).collect()
    }

    /// The samples of a kind that both answer otherwise; `None` where there is no time for more.
    fn of_kind(
        &mut self,
        a: &PolicySet,
        b: &PolicySet,
        agent: &Agent,
        kind: &Kind<'_>,
    ) -> Option<BTreeMap<Vec<usize>, Turn>> {
        let sizes: Vec<usize> = kind.dimensions.iter().map(|(_, values)| values.len()).collect();
        let count = sizes.iter().product::<usize>();
        if self.asked + count > ASKED_MAX {
            self.incomplete = Some(format!(
                "there is more to try than {ASKED_MAX} requests: not all agents and hosts were tried; name fewer, or ask by cases"
            ));
            return None;
        }
        self.asked += count;
        let mut turns = BTreeMap::new();
        for number in 0..count {
            let at = place(number, &sizes);
            (kind.ask)(&at, &mut |operation| {
                let request = Request { agent, operation };
                let (before, after) = (said(a, &request), said(b, &request));
                if before != after {
                    turns.insert(at.clone(), (told(&before, &after), told(&after, &before)));
                }
            });
        }
        Some(turns)
    }
}

/// Agents of which policy can't tell one from another, together.
fn kinds_of(agents: &[Agent], by_name: bool) -> Vec<Vec<&Agent>> {
    let mut kinds: BTreeMap<_, Vec<&Agent>> = BTreeMap::new();
    for agent in agents {
        let group = (agent.id.tenant(), &agent.team, &agent.project, &agent.environment, &agent.labels);
        kinds.entry((group, by_name.then_some(&agent.id))).or_default().push(agent);
    }
    kinds.into_values().collect()
}

/// What a set says, and obliges to.
type Said = (String, BTreeSet<String>);

fn said(set: &PolicySet, request: &Request<'_>) -> Said {
    let (mut denied, mut effects) = said_alone(set, request);
    if let Operation::Tunnel { host, port, protocol: TunnelProtocol::TlsEch } = request.operation {
        let operation = Operation::Tunnel { host, port, protocol: TunnelProtocol::Tls };
        let (shown, more) = said_alone(set, &Request { operation, ..*request });
        if TunnelProtocol::is_refused_as_tls(denied, shown) {
            denied = shown;
        }
        effects.extend(more);
    }
    (denied.map_or("allow", |reason| reason.name()).to_owned(), effects)
}

fn said_alone(set: &PolicySet, request: &Request<'_>) -> (Option<DropReason>, BTreeSet<String>) {
    match set.obligations(request) {
        Err(failed) => (failed.verdict.err(), BTreeSet::new()),
        Ok(obligations) => {
            let effects = obligations.iter().map(|o| format!("{} by {}", o.effect.name(), o.policy));
            (set.decide(request).verdict.err(), effects.collect())
        }
    }
}

/// In words, with those effects that the other does not have.
fn told((verdict, effects): &Said, (_, others): &Said) -> String {
    let only: Vec<&str> = effects.difference(others).map(String::as_str).collect();
    if only.is_empty() { verdict.clone() } else { format!("{verdict}, {}", only.join(", ")) }
}

/// The index in each dimension of one sample of all.
fn place(mut number: usize, sizes: &[usize]) -> Vec<usize> {
    let digit = |size: &usize| {
        let digit = number % (*size).max(1);
        number /= (*size).max(1);
        digit
    };
    sizes.iter().map(digit).collect()
}

/// The samples with each dimension left out that makes no difference, as far as others are the same.
fn collapsed(
    dimensions: &[(&'static str, Vec<String>)],
    turns: BTreeMap<Vec<usize>, Turn>,
) -> Vec<(BTreeMap<String, String>, Turn)> {
    let mut left: BTreeMap<Place, Turn> =
        turns.into_iter().map(|(at, turn)| (at.into_iter().map(Some).collect(), turn)).collect();
    for (dimension, (_, values)) in dimensions.iter().enumerate() {
        let mut groups: BTreeMap<(Place, Turn), Vec<Place>> = BTreeMap::new();
        for (at, turn) in &left {
            let mut rest = at.clone();
            if let Some(own) = rest.get_mut(dimension) {
                *own = None;
            }
            groups.entry((rest, turn.clone())).or_default().push(at.clone());
        }
        for ((rest, turn), members) in groups {
            if members.len() == values.len() {
                members.iter().for_each(|at| drop(left.remove(at)));
                left.insert(rest, turn);
            }
        }
    }
    let about = |at: Place| {
        let named = dimensions.iter().zip(at);
        named
            .filter_map(|((name, values), at)| Some(((*name).to_owned(), values.get(at?)?.clone())))
            .collect()
    };
    left.into_iter().map(|(at, turn)| (about(at), turn)).collect()
}

/// What either set asks about, of what is asked by name.
#[derive(Clone, Copy, Debug)]
struct Asked {
    bodies: bool,
    answers: bool,
}

impl Asked {
    fn of(sets: &[&PolicySet]) -> Asked {
        Asked {
            bodies: sets.iter().any(|set| set.names_send()),
            answers: sets.iter().any(|set| set.names_receive()),
        }
    }
}

/// Every kind of request to a host.
fn kinds<'a>(host: &'a Host, samples: &'a Samples, asked: Asked) -> Vec<Kind<'a>> {
    let ports = || samples.ports.iter().map(u16::to_string).collect::<Vec<_>>();
    let at = |ports: &[u16], index: Option<&usize>| index.and_then(|n| ports.get(*n)).copied().unwrap_or(0);
    let mut kinds = vec![
        Kind {
            action: "tls",
            dimensions: vec![("port", ports())],
            ask: Box::new(move |index, ask| {
                let alpn = [UPSTREAM_ALPN.to_owned()];
                ask(Operation::Tls { host, port: at(&samples.ports, index.first()), alpn: &alpn, ja4: "" });
            }),
        },
        Kind {
            action: "tunnel",
            dimensions: vec![
                ("protocol", TunnelProtocol::ALL.map(|protocol| protocol.name().to_owned()).to_vec()),
                ("port", ports()),
            ],
            ask: Box::new(move |index, ask| {
                let Some(protocol) = index.first().and_then(|n| TunnelProtocol::ALL.get(*n)) else { return };
                ask(Operation::Tunnel { host, port: at(&samples.ports, index.get(1)), protocol: *protocol });
            }),
        },
        Kind {
            action: "http",
            dimensions: vec![
                ("port", ports()),
                ("scheme", SCHEMES.map(|scheme| scheme.name().to_owned()).to_vec()),
                ("method", samples.methods.clone()),
                ("path", samples.paths.clone()),
                ("header or query", samples.heads.iter().map(|head| head.told.clone()).collect()),
            ],
            ask: Box::new(move |index, ask| {
                let Some(scheme) = index.get(1).and_then(|n| SCHEMES.get(*n)) else { return };
                let text = |all: &'a [String], n: Option<&usize>| n.and_then(|n| all.get(*n));
                let (method, path) =
                    (text(&samples.methods, index.get(2)), text(&samples.paths, index.get(3)));
                let head = index.get(4).and_then(|n| samples.heads.get(*n));
                let (Some(method), Some(path), Some(head)) = (method, path, head) else { return };
                let (port, head) = (at(&samples.ports, index.first()), &head.head);
                ask(Operation::Http { host, port, scheme: *scheme, method, path, head });
            }),
        },
    ];
    if host.address().is_none() {
        kinds.push(Kind {
            action: "resolve",
            dimensions: vec![("type", samples.query_types.clone())],
            ask: Box::new(move |index, ask| {
                let Some(query_type) = index.first().and_then(|n| samples.query_types.get(*n)) else {
                    return;
                };
                ask(Operation::Resolve { host, port: 53, query_type });
            }),
        });
    }
    if asked.bodies {
        kinds.push(Kind {
            action: "send",
            dimensions: vec![
                ("path", samples.paths.clone()),
                ("body", samples.bodies.iter().map(|body| body.told.clone()).collect()),
            ],
            ask: Box::new(move |index, ask| {
                let path = index.first().and_then(|n| samples.paths.get(*n));
                let body = index.get(1).and_then(|n| samples.bodies.get(*n));
                let (Some(path), Some(body)) = (path, body) else { return };
                let payload = Payload {
                    bytes: body.bytes,
                    complete: body.complete,
                    media_type: &body.media_type,
                    findings: &body.findings,
                };
                ask(Operation::Send { host, port: 443, method: "POST", path, payload });
            }),
        });
    }
    if asked.answers {
        kinds.push(answers(host, samples));
    }
    kinds
}

/// What may come back of a host: bodies as they are sent, which ask for the tools that either names or for none.
fn answers<'a>(host: &'a Host, samples: &'a Samples) -> Kind<'a> {
    let statuses = STATUSES.map(|status| status.to_string()).to_vec();
    Kind {
        action: "receive",
        dimensions: vec![
            ("status", statuses),
            ("answer", samples.bodies.iter().map(|body| body.told.clone()).collect()),
        ],
        ask: Box::new(move |index, ask| {
            let status = index.first().and_then(|n| STATUSES.get(*n));
            let body = index.get(1).and_then(|n| samples.bodies.get(*n));
            let (Some(status), Some(body)) = (status, body) else { return };
            let SampleBody { bytes, complete, media_type, findings, .. } = body;
            let payload = Payload { bytes: *bytes, complete: *complete, media_type, findings };
            // A word that either names may be a finding or a tool.
            let name = findings.first().map_or("", String::as_str);
            let call = AskedCall { name, argument_names: findings, values: findings, arguments: name };
            let usage = Usage { input_tokens: *bytes, output_tokens: *bytes, tools: findings, call };
            ask(Operation::Receive { host, port: 443, status: *status, payload, usage });
        }),
    }
}

/// Statuses of answers that are tried.
const STATUSES: [u16; 3] = [200, 404, 500];

/// Schemes there are.
const SCHEMES: [Scheme; 2] = [Scheme::Http, Scheme::Https];
