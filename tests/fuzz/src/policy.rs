//! The fuzz target of policy text. A file of its own, because Cedar comes with it, and instrumenting that takes ten times
//! as long as all other targets.
#![allow(clippy::panic, clippy::expect_used, reason = "a panic is a finding")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use clawgress_identity::{Agent, AgentState};
use clawgress_policy::history::History;
use clawgress_policy::kernel;
use clawgress_policy::lint::Configuration;
use clawgress_policy::{
    Decision, Host, NamedSets, Operation, PROBLEMS_MAX, PolicyBundle, PolicyErrors, PolicySet, Request,
    Scheme, Transport, TunnelProtocol,
};

/// The fingerprint of a hello.
const JA4: &str = "t13d1516h2_8daaf6152771_e5627efa2ab1";
/// A moment at which the text is asked: a Wednesday, Unix milliseconds.
const NOW_MS: i64 = 1_795_632_300_000;
const ADDRESSES: [&str; 4] = ["203.0.113.7", "10.9.0.1", "2001:db8:5::1", "198.51.100.1"];
const HOSTS: [&str; 3] = ["api.allowed.test", "a.wild.test", "192.0.2.7"];

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

/// Whether text is accepted; for seeds that say whether they are.
#[must_use]
pub fn accepts(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(|text| PolicySet::parse(&bundle(text)).is_ok())
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
    let set = set.at(NOW_MS).knowing(History::QUIET).seeing(Arc::default());
    let agent = agent();
    let hosts = HOSTS.map(|host| Host::parse(host).expect("a host"));
    for host in &hosts {
        for operation in [
            Operation::Tls { host, port: 443, alpn: &["h2".to_owned()], ja4: JA4 },
            Operation::Tunnel { host, port: 443, protocol: TunnelProtocol::Tls },
            Operation::Http { host, port: 80, scheme: Scheme::Http, method: "GET", path: "/admin/x" },
        ] {
            answers(&set, &Request { agent: &agent, operation });
        }
    }
    both_planes(&set, &agent);
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
        assert!(!decision.policies.is_empty() && decision.errors.is_empty());
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
            let (action, policies) = tables.lookup(agent.index, ip, transport, port);
            assert_eq!(
                (action, policies.to_vec()),
                kernel::expected(set, agent, ip, transport, port),
                "{ip}"
            );
        }
    }
}
