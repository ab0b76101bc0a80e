//! The fuzz target of what requests say in their header fields and queries. A file of its own beside that of policy text: it brings
//! Cedar along, too.
#![allow(clippy::panic, clippy::expect_used, reason = "a panic is a finding")]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use clawgress_identity::{Agent, AgentState};
use clawgress_policy::head::{Head, HeadFacts};
use clawgress_policy::{Decision, Host, NamedSets, Operation, PolicyBundle, PolicySet, Request, Scheme};

/// It asks for names and values of both parts, and for sets of names.
const TEXT: &str = r#"
@id("all") permit (principal, action, resource);
@id("team") forbid (principal, action == Action::"http", resource)
unless { context.headers.hasTag("x-team") && context.headers.getTag("x-team") like "pay*" };
@id("listed") forbid (principal, action == Action::"http", resource)
unless { ["alt", "tag", "", "key"].containsAll(context.query_names) };
@id("events") forbid (principal, action == Action::"http", resource)
when { context.query.hasTag("alt") && context.query.getTag("alt") != "sse" };
@id("named") forbid (principal, action == Action::"http", resource)
when { context.header_names.contains("x-debug") };
@id("told") @effect("alert") permit (principal, action == Action::"http", resource)
when { context.query.hasTag("tag") && context.query.getTag("tag") == "on" };
"#;

static SET: LazyLock<PolicySet> = LazyLock::new(|| {
    let bundle = PolicyBundle { text: TEXT.to_owned(), sets: NamedSets::default() };
    PolicySet::parse(&bundle).expect("a policy")
});

fn agent() -> Agent {
    Agent {
        id: "web".parse().expect("an id"),
        index: 1,
        team: None,
        project: None,
        environment: None,
        labels: BTreeMap::new(),
        state: AgentState::Active,
        sources: Vec::new(),
    }
}

/// Header fields, a line each, and the query in the last line.
fn head(data: &[u8]) -> Head {
    let (fields, query) = match data.iter().rposition(|b| *b == b'\n') {
        Some(end) => data.split_at(end),
        None => (&data[..0], data),
    };
    let query = String::from_utf8_lossy(query.strip_prefix(b"\n").unwrap_or(query));
    let fields = fields.split(|b| *b == b'\n').filter_map(|line| {
        let (name, value) = line.split_at(line.iter().position(|b| *b == b':')?);
        Some((std::str::from_utf8(name).ok()?, &value[1..]))
    });
    Head::of(fields, &query)
}

/// Whatever they say, policy answers it the same each time, as Cedar's authorizer does; and what a record holds of it, and nothing
/// that policy does not name, is enough to answer the same.
pub fn policy_head(data: &[u8]) {
    let (said, agent) = (head(data), agent());
    let host = Host::parse("api.allowed.test").expect("a host");
    let answer = |head: &Head| -> (Decision, Option<usize>) {
        let (method, path, port) = ("GET", "/", 80);
        let operation = Operation::Http { host: &host, port, scheme: Scheme::Http, method, path, head };
        let request = Request { agent: &agent, operation };
        let decision = SET.decide(&request);
        // Cedar's authorizer knows nothing of what has no one value.
        if !head.is_unclear() {
            assert_eq!(decision, SET.decide_by_oracle(&request));
        }
        (decision, SET.obligations(&request).ok().map(|obligations| obligations.len()))
    };
    let mentions = SET.mentions();
    let facts = HeadFacts::of(&said, &mentions);
    let json = serde_json::to_string(&facts).expect("JSON");
    assert!(json.len() < 64 * 1024, "{} bytes", json.len());
    let recorded: HeadFacts = serde_json::from_str(&json).expect("its own JSON");
    assert_eq!(recorded, facts);
    let again = recorded.head(&mentions);
    // What is too long for a record is unknown to it, and then nothing is answered by it; what could not be read is known to be so.
    let is_cut = |name: &str| json.contains(&format!("\"{name}\":\"present\""));
    let is_unread = json.contains("\"unread\":true");
    if (is_unread || !json.contains("\"unclear\":true")) && !["x-team", "alt", "tag"].into_iter().any(is_cut)
    {
        assert_eq!(answer(&again), answer(&said), "{json}");
    }
}
