//! What a decision costs, context included, beside Cedar's authorizer in the same run; and what it costs to take a set in.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark stops at what it does not expect"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::{Duration, Instant};

use clawgress_identity::{Agent, AgentState, PolicyOwner};
use clawgress_policy::lint::Configuration;
use clawgress_policy::{
    Host, NamedSets, Operation, PolicySet, Request, Scheme, Surroundings, Transport, TunnelProtocol,
};
use criterion::{Criterion, criterion_group, criterion_main};

/// Policies in a set, and the median that is promised, nanoseconds.
const SIZES: [(usize, u64); 3] = [(100, 1_000), (1_000, 4_000), (5_000, 15_000)];
const TEAMS: usize = 50;
const ROUNDS: usize = 201;
/// Lowered decisions in a round; of the authorizer's, one.
const ROUND: u32 = 100;

/// As an organisation has them: rules for each team, on hosts and sets, methods, paths and ports; some for everybody.
fn policy(n: usize) -> String {
    let team = n / 7 % TEAMS;
    let set = n % 40;
    match n % 7 {
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

/// Policies of a platform: one that permits, and some that forbid what it must.
const PLATFORM: usize = 20;

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

fn median(mut samples: Vec<u64>) -> u64 {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn nanoseconds(times: u32, mut f: impl FnMut()) -> u64 {
    let began = Instant::now();
    for _ in 0..times {
        f();
    }
    u64::try_from(began.elapsed().as_nanos() / u128::from(times)).unwrap()
}

fn decisions(c: &mut Criterion) {
    let agent = agent();
    let (host, alpn) = (Host::parse("api9.example.com").unwrap(), ["h2".to_owned()]);
    let ip = "203.0.9.7".parse().unwrap();
    let (port, transport) = (443, Transport::Tcp);
    let operations = [
        Operation::Connect { ip, port, transport },
        Operation::Direct { ip, port, transport },
        Operation::Tls { host: &host, port, alpn: &alpn, ja4: "t13d1516h2_8daaf6152771_e5627efa2ab1" },
        Operation::Tunnel { host: &host, port, protocol: TunnelProtocol::Tls },
        Operation::Http { host: &host, port: 80, scheme: Scheme::Http, method: "GET", path: "/v7/x" },
    ];
    for (size, promised) in SIZES {
        let text: String = (0..size).map(|n| policy(n) + "\n").collect();
        let began = Instant::now();
        let set = PolicySet::parse_in(&text, &sets(), &Surroundings::default()).unwrap();
        println!("{size} policies: validated and lowered in {} ms", began.elapsed().as_millis());
        let began = Instant::now();
        let found = black_box(set.lint(&text, &Configuration::default())).len();
        println!("{size} policies: linted in {} ms ({found} findings)", began.elapsed().as_millis());
        for operation in operations {
            let request = Request { agent: &agent, operation };
            let (mut lowered, mut oracle) = (Vec::new(), Vec::new());
            for round in 0..ROUNDS {
                lowered.push(nanoseconds(ROUND, || drop(black_box(set.decide(black_box(&request))))));
                if round % 4 == 0 {
                    oracle
                        .push(nanoseconds(1, || drop(black_box(set.decide_by_oracle(black_box(&request))))));
                }
            }
            let (lowered, oracle) = (median(lowered), median(oracle));
            println!(
                "{size:>5} {:<8} {lowered:>6} ns (promised {promised}), authorizer {oracle} ns: 1/{}",
                operation.action(),
                oracle / lowered.max(1)
            );
        }
        let request = Request { agent: &agent, operation: operations[4] };
        let under = set.under(&platform());
        let mut both = Vec::new();
        for _ in 0..ROUNDS {
            both.push(nanoseconds(ROUND, || drop(black_box(under.decide(black_box(&request))))));
        }
        println!("{size:>5} http     {:>6} ns under a platform's policy of {PLATFORM}", median(both));
        c.bench_function(&format!("http, {size} policies"), |b| b.iter(|| set.decide(black_box(&request))));
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).sample_size(50);
    targets = decisions
}
criterion_main!(benches);
