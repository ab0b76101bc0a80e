//! What a decision costs, context included, beside Cedar's authorizer in the same run; and what it costs to take a set in.
//! Shared by this crate's benchmark and `cargo xtask bench`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark stops at what it does not expect"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::Instant;

use clawgress_identity::{Agent, AgentState, PolicyOwner};
use clawgress_policy::content::{AskedCall, ModelCall, Payload, ToolCall, Usage};
use clawgress_policy::head::Head;
use clawgress_policy::{
    Host, NamedSets, Operation, PolicySet, Request, Scheme, Surroundings, Transport, TunnelProtocol,
};

/// Policies in a set, and the median of a decision that is promised, nanoseconds.
pub const SIZES: [(usize, u64); 3] = [(100, 1_000), (1_000, 4_000), (5_000, 15_000)];
const TEAMS: usize = 50;
/// Kinds of policies, of which a set has as many each.
const KINDS: usize = 13;
const ROUNDS: usize = 201;
/// Lowered decisions in a round; of the authorizer's, one, in each fourth round.
const ROUND: u32 = 100;
/// How often a set is taken in.
const PARSES: usize = 5;

/// Policies of a platform: one that permits, and some that forbid what it must.
pub const PLATFORM: usize = 20;

/// What a set of policies costs.
pub struct Size {
    /// Parsing, validating and lowering the set, each time.
    pub taken_in_ms: Vec<u64>,
    /// A decision, by action.
    pub actions: Vec<Action>,
    /// A decision on HTTP under a platform's policy.
    pub under_platform_ns: Vec<u64>,
}

/// What a decision costs: the mean of each round.
pub struct Action {
    /// Its action.
    pub name: &'static str,
    /// On the lowered plan.
    pub lowered_ns: Vec<u64>,
    /// By Cedar's authorizer.
    pub authorizer_ns: Vec<u64>,
}

/// What is asked.
pub struct Asked {
    agent: Agent,
    host: Host,
    alpn: [String; 1],
    findings: [String; 2],
    names: [String; 3],
}

// === impl Asked ===

impl Asked {
    pub fn new() -> Asked {
        Asked {
            agent: agent(),
            host: Host::parse("api9.example.com").unwrap(),
            alpn: ["h2".to_owned()],
            findings: ["email", "phone_number"].map(str::to_owned),
            names: ["search", "read_file", "create_issue"].map(str::to_owned),
        }
    }

    /// A request of each action.
    pub fn requests(&self) -> [Request<'_>; 10] {
        let Asked { agent, host, alpn, findings, names } = self;
        let ip = "203.0.9.7".parse().unwrap();
        let (port, transport) = (443, Transport::Tcp);
        let payload = Payload { bytes: 4_096, complete: true, media_type: "application/json", findings };
        let arguments = r#"{"project":"OPS","summary":"the build is slow"}"#;
        let call = AskedCall { name: "create_issue", argument_names: names, values: findings, arguments };
        [
            Operation::Connect { ip, port, transport },
            Operation::Direct { ip, port, transport },
            Operation::Resolve { host, port: 53, query_type: "AAAA" },
            Operation::Tls { host, port, alpn, ja4: "t13d1516h2_8daaf6152771_e5627efa2ab1" },
            Operation::Tunnel { host, port, protocol: TunnelProtocol::Tls },
            http(host),
            Operation::Llm(ModelCall {
                host,
                port,
                provider: "openai",
                model: "gpt-5-mini-2025-08-07",
                family: "gpt-5-mini",
                surface: "chat_completions",
                tokens_estimated: 3_000,
                tokens_max: Some(4_096),
                attachments: 0,
                images: 0,
                attachment_bytes: 0,
                prompt_score: 0,
                unpriced: false,
                tool_choice: "",
                end_user: "",
                store: false,
                partial: false,
                stream: true,
                tools: names,
                findings,
            }),
            Operation::Tool(ToolCall {
                host,
                port,
                server: "server9",
                method: "tools/call",
                name: "create_issue",
                argument_names: names,
                values: names,
                arguments,
                findings,
            }),
            Operation::Send { host, port, method: "POST", path: "/v7/x", payload },
            Operation::Receive {
                host,
                port,
                status: 200,
                payload,
                usage: Usage { input_tokens: 3_000, output_tokens: 900, tools: names, call },
            },
        ]
        .map(|operation| Request { agent, operation })
    }

    /// That of HTTP.
    pub fn http(&self) -> Request<'_> {
        Request { agent: &self.agent, operation: http(&self.host) }
    }
}

fn http(host: &Host) -> Operation<'_> {
    Operation::Http { host, port: 80, scheme: Scheme::Http, method: "GET", path: "/v7/x", head: Head::none() }
}

/// A set of so many policies, as text.
pub fn text(policies: usize) -> String {
    (0..policies).map(|n| policy(n) + "\n").collect()
}

pub fn parse(text: &str) -> PolicySet {
    PolicySet::parse_in(text, &sets(), &Surroundings::default()).unwrap()
}

pub fn measure(policies: usize) -> Size {
    let (text, asked) = (text(policies), Asked::new());
    let taken_in = || nanoseconds(1, || drop(black_box(parse(black_box(&text))))) / 1_000_000;
    let taken_in_ms = (0..PARSES).map(|_| taken_in()).collect();
    let set = parse(&text);
    let action = |request: Request<'_>| {
        let (mut lowered_ns, mut authorizer_ns) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            lowered_ns.push(nanoseconds(ROUND, || drop(black_box(set.decide(black_box(&request))))));
            if round % 4 == 0 {
                authorizer_ns
                    .push(nanoseconds(1, || drop(black_box(set.decide_by_oracle(black_box(&request))))));
            }
        }
        Action { name: request.operation.action(), lowered_ns, authorizer_ns }
    };
    let actions = asked.requests().map(action).into();
    let (under, http) = (set.under(&platform()), asked.http());
    let both = || nanoseconds(ROUND, || drop(black_box(under.decide(black_box(&http)))));
    Size { taken_in_ms, actions, under_platform_ns: (0..ROUNDS).map(|_| both()).collect() }
}

/// As an organisation has them: rules for each team, on hosts and sets, methods, paths and ports, models, tools and bodies; some
/// for everybody.
fn policy(n: usize) -> String {
    let team = n / KINDS % TEAMS;
    let set = n % 40;
    match n % KINDS {
        0 => format!(
            "@id(\"p{n}\") permit (principal in Team::\"team{team}\", action == Action::\"http\", resource in HostSet::\"set{set}\") when {{ [\"GET\", \"HEAD\"].contains(context.method) && context.path like \"/v{n}/*\" }};"
        ),
        1 => format!(
            "@id(\"p{n}\") permit (principal in Team::\"team{team}\", action in [Action::\"tls\", Action::\"tunnel\"], resource in HostSet::\"set{set}\") when {{ context.port == 443 }};"
        ),
        2 => format!(
            "@id(\"p{n}\") permit (principal in Team::\"team{team}\", action == Action::\"connect\", resource in NetworkSet::\"net{set}\") when {{ context.protocol == \"tcp\" && [80, 443].contains(context.port) }};"
        ),
        3 => format!(
            "@id(\"p{n}\") forbid (principal, action == Action::\"http\", resource == Host::\"host{n}.example.com\") when {{ context.path like \"/admin*\" }};"
        ),
        4 => format!(
            "@id(\"p{n}\") permit (principal == Agent::\"agent{team}\", action == Action::\"http\", resource) when {{ resource.name like \"*.team{team}.example.com\" && context.method != \"DELETE\" }};"
        ),
        5 => format!(
            "@id(\"p{n}\") permit (principal in Team::\"team{team}\", action in [Action::\"connect\", Action::\"direct\"], resource == Network::\"198.51.{}.{}\") when {{ context.protocol == \"udp\" && context.port == 53 }};",
            n / 250 % 250,
            n % 250
        ),
        6 => format!(
            "@id(\"p{n}\") permit (principal in Team::\"team{team}\", action == Action::\"resolve\", resource in HostSet::\"set{set}\") when {{ [\"A\", \"AAAA\"].contains(context.query_type) }};"
        ),
        7 => format!(
            "@id(\"p{n}\") permit (principal in Team::\"team{team}\", action == Action::\"llm\", resource in Provider::\"openai\") when {{ context.llm.model like \"gpt-5*\" && context.llm.tokens_estimated <= {n} }};"
        ),
        8 => format!(
            "@id(\"p{n}\") permit (principal in Team::\"team{team}\", action == Action::\"tool\", resource in ToolServer::\"server{set}\") when {{ context.tool.method != \"tools/call\" || !context.tool.values.contains(\"/project=P{n}\") }};"
        ),
        9 => format!(
            "@id(\"p{n}\") forbid (principal in Team::\"team{team}\", action == Action::\"send\", resource) when {{ context.findings.contains(\"private_key\") && context.path like \"/v{n}/*\" }};"
        ),
        10 => format!(
            "@id(\"p{n}\") permit (principal in Team::\"team{team}\", action in [Action::\"send\", Action::\"receive\"], resource in HostSet::\"set{set}\") when {{ context.bytes <= {n}000 && context.complete }};"
        ),
        11 => format!(
            "@id(\"p{n}\") forbid (principal, action == Action::\"receive\", resource == Host::\"host{n}.example.com\") when {{ context.usage.tools.contains(\"shell\") || context.usage.output_tokens > 100000 }};"
        ),
        _ => format!(
            "@id(\"p{n}\") forbid (principal in Team::\"team{team}\", action == Action::\"tls\", resource in HostSet::\"set{set}\") when {{ principal.hasTag(\"tier\") && principal.getTag(\"tier\") == \"low{n}\" }};"
        ),
    }
}

fn sets() -> NamedSets {
    let hosts = (0..40).map(|n| {
        (format!("set{n}"), BTreeSet::from([format!("api{n}.example.com"), format!("*.svc{n}.example.com")]))
    });
    let nets =
        (0..40).map(|n| (format!("net{n}"), BTreeSet::from([format!("203.0.{n}.0/24").parse().unwrap()])));
    NamedSets { hosts: hosts.collect(), networks: nets.collect() }
}

fn agent() -> Agent {
    Agent {
        id: "agent7".parse().unwrap(),
        index: 7,
        team: Some("team7".to_owned()),
        project: Some("atlas".to_owned()),
        environment: Some("prod".to_owned()),
        labels: BTreeMap::from([("tier".to_owned(), "high".to_owned())]),
        state: AgentState::Active,
        sources: Vec::new(),
    }
}

fn platform() -> PolicySet {
    let forbid = |n: usize| {
        format!(
            "@id(\"f{n}\") forbid (principal, action == Action::\"http\", resource) when {{ resource.name like \"*.denied{n}.example.com\" }};\n"
        )
    };
    let text: String = (1..PLATFORM).map(forbid).collect();
    let text = format!("{text}@id(\"all\") permit (principal, action, resource);");
    PolicySet::parse_for(&PolicyOwner::Platform, &text, &sets(), &Surroundings::default()).unwrap()
}

fn nanoseconds(times: u32, mut f: impl FnMut()) -> u64 {
    let began = Instant::now();
    for _ in 0..times {
        f();
    }
    u64::try_from(began.elapsed().as_nanos() / u128::from(times)).unwrap()
}
