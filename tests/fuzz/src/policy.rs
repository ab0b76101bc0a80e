//! The fuzz target of policy text. A file of its own, because Cedar comes with it, and instrumenting that takes ten times
//! as long as all other targets.
#![allow(clippy::panic, clippy::expect_used, reason = "a panic is a finding")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use clawgress_identity::{Agent, AgentState, PolicyOwner};
use clawgress_policy::content::{AskedCall, ModelCall, Payload, ToolCall, Usage};
use clawgress_policy::head::Head;
use clawgress_policy::history::History;
use clawgress_policy::kernel;
use clawgress_policy::lint::Configuration;
use clawgress_policy::{
    Decision, Host, NamedSets, Operation, PROBLEMS_MAX, PolicyBundle, PolicyErrors, PolicySet, Request,
    Scheme, Surroundings, Transport, TunnelProtocol,
};

/// The fingerprint of a hello.
const JA4: &str = "t13d1516h2_8daaf6152771_e5627efa2ab1";
/// A moment at which the text is asked: a Wednesday, Unix milliseconds.
const NOW_MS: i64 = 1_795_632_300_000;
const ADDRESSES: [&str; 4] = ["203.0.113.7", "10.9.0.1", "2001:db8:5::1", "198.51.100.1"];
const HOSTS: [&str; 3] = ["api.allowed.test", "a.wild.test", "192.0.2.7"];
/// What stands above the text: it names every kind of action, permits most, and obliges to something.
const ABOVE: &str = r#"
@id("all") permit (principal, action, resource);
@id("no-admin") forbid (principal, action == Action::"http", resource) when { context.path like "/admin*" };
@id("no-keys") forbid (principal, action == Action::"send", resource) when { context.findings.contains("private_key") };
@id("told") @effect("alert") permit (principal, action in [Action::"tls", Action::"llm"], resource);
"#;

static PLATFORM: LazyLock<PolicySet> = LazyLock::new(|| {
    let parsed =
        PolicySet::parse_for(&PolicyOwner::Platform, ABOVE, &bundle("").sets, &Surroundings::default());
    parsed.expect("a platform's policy")
});

fn bundle(text: &str) -> PolicyBundle {
    let hosts = ["api.allowed.test", "*.wild.test"].map(str::to_owned);
    let prefixes = ["203.0.113.0/24", "2001:db8:5::/48"].map(|prefix| prefix.parse().expect("a prefix"));
    let sets = NamedSets {
        hosts: BTreeMap::from([("saas".to_owned(), BTreeSet::from(hosts))]),
        networks: BTreeMap::from([("lab".to_owned(), BTreeSet::from(prefixes))]),
    };
    PolicyBundle { text: text.to_owned(), sets }
}

fn agent() -> Agent {
    Agent {
        id: "web".parse().expect("an id"),
        index: 1,
        team: Some("payments".to_owned()),
        project: None,
        environment: Some("prod".to_owned()),
        labels: BTreeMap::from([("role".to_owned(), "crawler".to_owned())]),
        state: AgentState::Active,
        sources: Vec::new(),
    }
}

/// Why text is refused, nothing if it is not; for seeds that say whether they are.
#[must_use]
pub fn refusal(data: &[u8]) -> Vec<String> {
    let Ok(text) = std::str::from_utf8(data) else { return vec!["it is no UTF-8".to_owned()] };
    let refused = PolicySet::parse(&bundle(text)).err();
    refused.iter().flat_map(|errors| &errors.problems).map(ToString::to_string).collect()
}

/// Text is refused with problems that have places in it, or is a set that answers every question, alike each time,
/// and the same in both planes.
pub fn policy_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let bundle = bundle(text);
    let set = match PolicySet::parse(&bundle) {
        Ok(set) => set,
        Err(errors) => return refused(text, &errors),
    };
    // The next moment at which anything changes lies ahead.
    assert!(set.next_turn_ms(NOW_MS).is_none_or(|next| next > NOW_MS));
    let findings = set.lint(text, &Configuration::default());
    assert!(
        findings
            .iter()
            .all(|finding| !finding.message.is_empty() && finding.line.is_some() == finding.policy.is_some())
    );
    let (under, above) = (asked(&set.under(&PLATFORM)), asked(&PLATFORM));
    let set = asked(&set);
    let (agent, said) = (agent(), Said::new());
    let hosts = HOSTS.map(|host| Host::parse(host).expect("a host"));
    for operation in hosts.iter().flat_map(|host| said.operations(host)) {
        let request = Request { agent: &agent, operation };
        let own = answers(&set, &request);
        let above = answers(&above, &request);
        let both = answers(&under, &request);
        assert_eq!(both.is_allow(), own.is_allow() && above.is_allow(), "{request:?}");
        obliges(&set, &request);
        obliges(&under, &request);
    }
    both_planes(&set, &agent);
}

/// At the moment and with what is known when it is asked.
fn asked(set: &PolicySet) -> PolicySet {
    set.at(NOW_MS).knowing(History::QUIET).seeing(Arc::default())
}

/// What requests say.
struct Said {
    alpn: [String; 1],
    names: [String; 2],
    findings: [String; 2],
    head: Head,
}

impl Said {
    fn new() -> Said {
        Said {
            alpn: ["h2".to_owned()],
            names: ["shell", "search"].map(str::to_owned),
            findings: ["email", "private_key"].map(str::to_owned),
            head: Head::of([("x-team", b"payments".as_slice()), ("accept", b"*/*")], "alt=sse&tag=1"),
        }
    }

    /// A request of each action that is about a host.
    fn operations<'a>(&'a self, host: &'a Host) -> [Operation<'a>; 10] {
        let Said { alpn, names, findings, head } = self;
        let (method, path, port) = ("POST", "/admin/x", 443);
        let payload = Payload { bytes: 700, complete: false, media_type: "application/json", findings };
        let arguments = r#"{"path":"/etc/passwd"}"#;
        let call = AskedCall { name: "shell", argument_names: names, values: findings, arguments };
        [
            Operation::Tls { host, port, alpn, ja4: JA4 },
            Operation::Tunnel { host, port, protocol: TunnelProtocol::Tls },
            Operation::Tunnel { host, port, protocol: TunnelProtocol::WebSocket },
            Operation::Http { host, port: 80, scheme: Scheme::Http, method: "GET", path, head },
            Operation::Resolve { host, port: 53, query_type: "TXT" },
            Operation::Llm(ModelCall {
                host,
                port,
                provider: "openai",
                model: "gpt-5-mini",
                family: "gpt-5",
                surface: "chat_completions",
                tokens_estimated: 16_001,
                tokens_max: Some(4_096),
                attachments: 1,
                images: 1,
                attachment_bytes: 2_000,
                prompt_score: 70,
                unpriced: false,
                tool_choice: "auto",
                end_user: "u-1",
                store: true,
                partial: true,
                stream: true,
                tools: names,
                findings,
            }),
            Operation::Tool(ToolCall {
                host,
                port,
                server: "jira",
                method: "tools/call",
                name: "delete_issue",
                argument_names: names,
                values: findings,
                arguments,
                findings,
            }),
            Operation::Send { host, port, method, path, payload },
            Operation::Send {
                host,
                port,
                method,
                path,
                payload: Payload { complete: true, findings: &[], ..payload },
            },
            Operation::Receive {
                host,
                port,
                status: 200,
                payload,
                usage: Usage { input_tokens: 900, output_tokens: 90, tools: names, call },
            },
        ]
    }
}

/// What a request is obliged to: the same each time, by Cedar's authorizer, and in the order of policies.
fn obliges(set: &PolicySet, request: &Request<'_>) {
    let obliged = set.obligations(request);
    assert_eq!(obliged, set.obligations(request));
    assert_eq!(obliged, set.obligations_by_oracle(request));
    assert!(obliged.is_err() || obliged.is_ok_and(|all| all.is_sorted_by_key(|o| Arc::clone(&o.policy))));
}

fn refused(text: &str, errors: &PolicyErrors) {
    assert!(!errors.problems.is_empty() && errors.problems.len() <= PROBLEMS_MAX + 1);
    let lines: Vec<&str> = text.split('\n').collect();
    for problem in &errors.problems {
        assert!(!problem.message.is_empty());
        assert_eq!(problem.line.is_some(), problem.column.is_some());
        if let (Some(line), Some(column)) = (problem.line, problem.column) {
            let line = lines.get(line as usize - 1).expect("a line of the text");
            assert!((1..=line.chars().count() + 1).contains(&(column as usize)), "{problem}");
        }
    }
}

/// A decision, the same each time and by Cedar's authorizer, with what determined it.
fn answers(set: &PolicySet, request: &Request<'_>) -> Decision {
    let decision = set.decide(request);
    assert_eq!(decision, set.decide(request));
    assert_eq!(decision, set.decide_by_oracle(request));
    assert!(decision.policies.is_sorted() && decision.errors.is_sorted());
    if decision.is_allow() {
        // Of bodies, models and tools nothing is asked of a set that doesn't name them.
        let may_be_unasked = matches!(request.operation.action(), "send" | "receive" | "llm" | "tool");
        assert!(decision.errors.is_empty() && (may_be_unasked || !decision.policies.is_empty()));
    }
    decision
}

/// The kernel's tables say what decisions say.
fn both_planes(set: &PolicySet, agent: &Agent) {
    // Refused where the tables would be too large.
    let Ok(tables) = kernel::compile(set, std::slice::from_ref(agent)) else { return };
    for ip in ADDRESSES {
        let ip: IpAddr = ip.parse().expect("an address");
        for (transport, port) in
            [(Transport::Tcp, 443), (Transport::Udp, 53), (Transport::Icmp, 0), (Transport::Gre, 0)]
        {
            answers(set, &Request { agent, operation: Operation::Connect { ip, port, transport } });
            answers(set, &Request { agent, operation: Operation::Direct { ip, port, transport } });
            for went_direct in [false, true] {
                assert_eq!(
                    set.told(agent, ip, port, transport, went_direct),
                    set.told_by_oracle(agent, ip, port, transport, went_direct)
                );
            }
            let (action, policies) = tables.lookup(agent.index, ip, transport, port);
            assert_eq!(
                (action, policies.to_vec()),
                kernel::expected(set, agent, ip, transport, port),
                "{ip}"
            );
        }
    }
}
