//! Policy text and decisions: one table per concern, through `check`-like helpers.

use super::*;
use crate::{Host, Transport};
use clawgress_identity::{Agent, AgentId, AgentState};

fn agent(id: &str) -> Agent {
    Agent {
        id: id.parse::<AgentId>().unwrap(),
        index: 1,
        team: Some("payments".to_owned()),
        project: None,
        environment: Some("prod".to_owned()),
        labels: BTreeMap::from([("role".to_owned(), "crawler".to_owned())]),
        state: AgentState::Active,
        sources: Vec::new(),
    }
}

fn bundle(text: &str) -> PolicyBundle {
    let prefixes = |list: &[&str]| list.iter().map(|p| p.parse().unwrap()).collect();
    let hosts = |list: &[&str]| list.iter().map(|h| (*h).to_owned()).collect();
    PolicyBundle {
        text: text.to_owned(),
        sets: NamedSets {
            hosts: BTreeMap::from([
                ("saas".to_owned(), hosts(&["api.allowed.test", "*.wild.test", "192.0.2.7"])),
                ("empty".to_owned(), hosts(&[])),
            ]),
            networks: BTreeMap::from([
                ("lab".to_owned(), prefixes(&["203.0.113.0/24", "2001:db8:5::/48"])),
                ("inner".to_owned(), prefixes(&["10.9.0.0/16"])),
            ]),
        },
    }
}

fn set(text: &str) -> PolicySet {
    PolicySet::parse(&bundle(text)).unwrap_or_else(|e| panic!("{text}\n{:#?}", e.problems))
}

/// What the one problem of `text` is: `line:column: policy: message`.
fn problem(text: &str) -> String {
    let errors = PolicySet::parse(&bundle(text)).map(|_| ()).expect_err(text);
    assert_eq!(errors.problems.len(), 1, "{text}\n{:#?}", errors.problems);
    errors.problems[0].to_string()
}

fn connect(set: &PolicySet, agent: &Agent, ip: &str, port: u16) -> Decision {
    let operation = Operation::Connect { ip: ip.parse().unwrap(), port, transport: Transport::Tcp };
    set.decide(&Request { agent, operation })
}

fn http(set: &PolicySet, agent: &Agent, host: &str, method: &str, path: &str) -> Decision {
    let host = Host::parse(host).unwrap();
    let operation = Operation::Http { host: &host, port: 80, scheme: Scheme::Http, method, path };
    set.decide(&Request { agent, operation })
}

#[test]
fn default_deny_permit_and_forbid() {
    let empty = set("");
    let a = agent("web");
    assert_eq!(connect(&empty, &a, "203.0.113.1", 443).verdict, Err(DropReason::PolicyDenied));

    let s = set(r#"
        @id("z") permit (principal, action, resource);
        @id("a") permit (principal in Team::"payments", action == Action::"http", resource in HostSet::"saas");
        @id("no") forbid (principal, action == Action::"http", resource) when { context.path like "/admin*" };
    "#);
    let d = http(&s, &a, "API.allowed.test.", "GET", "/");
    assert!(d.is_allow());
    assert_eq!(d.policies, ["a", "z"]);
    let d = http(&s, &a, "api.allowed.test", "GET", "/admin/x");
    assert_eq!((d.verdict, d.policies), (Err(DropReason::PolicyForbidden), vec!["no".to_owned()]));
}
