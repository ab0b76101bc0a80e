//! Kernel tables equal the evaluator: on hand-made cases, and on random sets, agents and packets.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use clawgress_identity::{AgentId, AgentState};

use super::*;
use crate::{NamedSets, PolicyBundle};

/// Packets compared in one run, over all random sets.
const PACKETS: usize = 20_000;
const PACKETS_PER_SET: usize = 100;

/// `SplitMix64`: small, seedable, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }
}

const PREFIXES: [&str; 24] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.128/25",
    "10.1.2.200/32",
    "10.255.255.255/32",
    "203.0.113.0/24",
    "203.0.113.0/25",
    "203.0.113.128/25",
    "127.0.0.0/8",
    "255.255.255.255/32",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "::/0",
    "::/1",
    "8000::/1",
    "::/64",
    "::fffe:0:0/95",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::7/128",
    "::1/128",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
];
const ADDRESSES: [&str; 6] = ["10.1.2.200", "10.1.2.3", "203.0.113.5", "2001:db8:1::7", "::1", "2001:db8::9"];
const PORTS: [u16; 9] = [0, 1, 22, 80, 443, 444, 8080, 65_534, 65_535];
const SETS: [&str; 4] = ["nested", "halves", "mixed", "none"];

fn sets() -> NamedSets {
    let set = |list: &[&str]| list.iter().map(|p| p.parse().unwrap()).collect::<BTreeSet<IpNet>>();
    NamedSets {
        networks: BTreeMap::from([
            ("nested".to_owned(), set(&["10.0.0.0/8", "10.1.2.0/24"])),
            ("halves".to_owned(), set(&["203.0.113.0/25", "203.0.113.128/25"])),
            ("mixed".to_owned(), set(&["10.1.0.0/16", "2001:db8::/32", "::/96"])),
            ("none".to_owned(), set(&[])),
        ]),
        ..NamedSets::default()
    }
}

fn agent(index: u32, id: &str, team: Option<&str>, environment: Option<&str>, role: Option<&str>) -> Agent {
    Agent {
        id: id.parse::<AgentId>().unwrap(),
        index,
        team: team.map(str::to_owned),
        project: None,
        environment: environment.map(str::to_owned),
        labels: role.map(|r| ("role".to_owned(), r.to_owned())).into_iter().collect(),
        state: AgentState::Active,
        sources: Vec::new(),
    }
}

fn agents() -> Vec<Agent> {
    vec![
        agent(1, "web", Some("payments"), Some("prod"), Some("crawler")),
        agent(2, "web-2", Some("payments"), None, None),
        agent(3, "batch", None, Some("prod"), Some("batch")),
        agent(4, "acme/web", Some("payments"), Some("prod"), Some("crawler")),
        agent(5, "acme/other", Some("search"), None, None),
        agent(9, "lone", None, None, None),
    ]
}

fn principal_atom(r: &mut Random) -> String {
    match r.below(9) {
        0 => "principal == Agent::\"web\"".to_owned(),
        1 => "principal in Team::\"payments\"".to_owned(),
        2 => "principal in [Team::\"acme/search\", Team::\"payments\"]".to_owned(),
        3 => "principal in Tenant::\"acme\"".to_owned(),
        4 => "(principal.hasTag(\"role\") && principal.getTag(\"role\") == \"crawler\")".to_owned(),
        5 => "(principal has team && principal.team == Team::\"payments\")".to_owned(),
        6 => "principal.name like \"web*\"".to_owned(),
        7 => "[Agent::\"lone\", Agent::\"acme/web\"].contains(principal)".to_owned(),
        _ => "(principal.name == \"batch\" && 9223372036854775807 + 1 > 0)".to_owned(),
    }
}

fn network_atom(r: &mut Random) -> String {
    let subject = r.pick(&["context.ip", "resource.ip"]);
    match r.below(12) {
        0..=4 => format!("{subject}.isInRange(ip(\"{}\"))", r.pick(&PREFIXES)),
        5 => format!("{subject} == ip(\"{}\")", r.pick(&ADDRESSES)),
        6 => format!("resource == Network::\"{}\"", r.pick(&ADDRESSES)),
        7 | 8 => format!("resource in NetworkSet::\"{}\"", r.pick(&SETS)),
        9 => format!("{subject}.{}()", r.pick(&["isIpv4", "isIpv6", "isLoopback", "isMulticast"])),
        10 => format!("[ip(\"{}\"), ip(\"{}\")].contains({subject})", r.pick(&ADDRESSES), r.pick(&ADDRESSES)),
        _ => format!("{subject} != ip(\"{}\")", r.pick(&ADDRESSES)),
    }
}

fn port_atom(r: &mut Random) -> String {
    let port = r.pick(&PORTS);
    match r.below(8) {
        0..=4 => format!("context.port {} {port}", r.pick(&["==", "!=", "<", "<=", ">", ">="])),
        5 => format!("{port} {} context.port", r.pick(&["==", "<", "<=", ">", ">="])),
        _ => format!("[{port}, {}, {}].contains(context.port)", r.pick(&PORTS), r.pick(&PORTS)),
    }
}

fn condition(r: &mut Random, depth: usize) -> String {
    if depth > 0 {
        let sub = |r: &mut Random| condition(r, depth - 1);
        match r.below(8) {
            0 | 1 => return format!("({} && {})", sub(r), sub(r)),
            2 | 3 => return format!("({} || {})", sub(r), sub(r)),
            4 => return format!("!({})", sub(r)),
            5 => return format!("(if {} then {} else {})", sub(r), sub(r), sub(r)),
            _ => {}
        }
    }
    match r.below(12) {
        0..=4 => network_atom(r),
        5..=7 => port_atom(r),
        8 => format!("context.protocol {} \"{}\"", r.pick(&["==", "!="]), r.pick(&["tcp", "udp", "icmp"])),
        9 => "[\"tcp\", \"icmp\"].contains(context.protocol)".to_owned(),
        10 => r
            .pick(&["action == Action::\"connect\"", "action in Action::\"opaque\"", "context has ip"])
            .to_owned(),
        _ => principal_atom(r),
    }
}

fn policy(r: &mut Random, number: usize) -> String {
    let effect = if r.below(3) == 0 { "forbid" } else { "permit" };
    let principal = r.pick(&[
        "principal",
        "principal",
        "principal == Agent::\"web\"",
        "principal in Team::\"payments\"",
        "principal in Environment::\"prod\"",
        "principal in Tenant::\"default\"",
        "principal is Agent in Team::\"acme/payments\"",
        "principal is Agent",
    ]);
    let (action, guarded) = r.pick(&[
        ("action == Action::\"connect\"", false),
        ("action == Action::\"connect\"", false),
        ("action == Action::\"direct\"", false),
        ("action in [Action::\"connect\", Action::\"direct\"]", false),
        ("action in Action::\"reach\"", true),
        ("action in [Action::\"opaque\", Action::\"http\"]", true),
        ("action", true),
    ]);
    let resource = match r.below(8) {
        0 => format!("resource in NetworkSet::\"{}\"", r.pick(&SETS)),
        1 => format!("resource == Network::\"{}\"", r.pick(&ADDRESSES)),
        2 => "resource is Network".to_owned(),
        3 => format!("resource is Network in NetworkSet::\"{}\"", r.pick(&SETS)),
        _ => "resource".to_owned(),
    };
    let mut text = format!("@id(\"p{number}\") {effect} ({principal}, {action}, {resource})");
    for _ in 0..r.below(3) {
        let depth = r.below(4);
        let mut condition = condition(r, depth);
        if guarded {
            condition = match r.below(3) {
                0 => format!("resource is Network && ({condition})"),
                1 => format!("!(resource is Network) || ({condition})"),
                _ => format!("if resource is Network then ({condition}) else false"),
            };
        }
        text.push_str(&format!(" {} {{ {condition} }}", r.pick(&["when", "when", "unless"])));
    }
    text.push_str(";\n");
    text
}

/// A random set. Policies that can never apply are refused by validation, so they are left out.
fn policies(r: &mut Random) -> (String, PolicySet) {
    let mut text = String::new();
    for number in 0..=r.below(7) {
        let policy = policy(r, number);
        match PolicySet::parse(&PolicyBundle { text: policy.clone(), sets: sets() }) {
            Ok(_) => text.push_str(&policy),
            Err(e) => assert!(
                e.problems
                    .iter()
                    .all(|p| p.message.contains("impossible") || p.message.contains("applicable action")),
                "{policy}\n{:#?}",
                e.problems
            ),
        }
    }
    let set = PolicySet::parse(&PolicyBundle { text: text.clone(), sets: sets() }).unwrap();
    (text, set)
}

fn address(r: &mut Random) -> IpAddr {
    let near = |ip: IpAddr, r: &mut Random| match ip {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits().wrapping_add([0, 1, u32::MAX][r.below(3)])).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits().wrapping_add([0, 1, u128::MAX][r.below(3)])).into()),
    };
    match r.below(8) {
        0 => IpAddr::V4(u32::try_from(r.next() >> 32).unwrap().into()),
        1 => IpAddr::V6((u128::from(r.next()) << 64 | u128::from(r.next())).into()),
        2 => IpAddr::V6("10.1.2.7".parse::<std::net::Ipv4Addr>().unwrap().to_ipv6_mapped()),
        3 => r.pick(&ADDRESSES).parse().unwrap(),
        4 => near(r.pick(&PREFIXES).parse::<IpNet>().unwrap().broadcast(), r),
        _ => near(r.pick(&PREFIXES).parse::<IpNet>().unwrap().network(), r),
    }
}

/// The meaning of the two decisions, written down a second time.
fn oracle(
    set: &PolicySet,
    agent: &Agent,
    ip: IpAddr,
    transport: Transport,
    port: u16,
) -> (KernelAction, Vec<String>) {
    let connect = set.decide(&Request { agent, operation: Operation::Connect { ip, port, transport } });
    let direct = set.decide(&Request { agent, operation: Operation::Direct { ip, port, transport } });
    let mut both: Vec<String> = connect.policies.iter().chain(&direct.policies).cloned().collect();
    both.sort();
    both.dedup();
    if let Err(reason) = connect.verdict {
        (KernelAction::Deny(reason.code()), connect.policies)
    } else if direct.is_allow() {
        (KernelAction::Direct, both)
    } else if direct.verdict == Err(DropReason::PolicyError) {
        (KernelAction::Deny(DropReason::PolicyError.code()), direct.policies)
    } else if transport == Transport::Tcp {
        (KernelAction::Steer, connect.policies)
    } else {
        (KernelAction::Deny(DropReason::InspectionRequired.code()), both)
    }
}

#[test]
fn tables_equal_decisions_on_random_sets() {
    let seed = match std::env::var("CLAWGRESS_SEED") {
        Ok(text) => text.parse().expect("CLAWGRESS_SEED is a number"),
        Err(_) => RandomState::new().build_hasher().finish(),
    };
    println!("CLAWGRESS_SEED={seed}");
    let mut r = Random(seed);
    let agents = agents();
    let mut seen = BTreeMap::new();
    for _ in 0..PACKETS / PACKETS_PER_SET {
        let (text, set) = policies(&mut r);
        let tables =
            compile(&set, &agents).unwrap_or_else(|e| panic!("seed {seed}\n{text}\n{:#?}", e.problems));
        for _ in 0..PACKETS_PER_SET {
            let agent = r.pick(&agents);
            let ip = address(&mut r);
            let transport = r.pick(&[Transport::Tcp, Transport::Udp, Transport::Icmp]);
            let port = r.pick(&PORTS).wrapping_add([0, 1, u16::MAX][r.below(3)]);
            let (action, policies) = tables.lookup(agent.index, ip, transport, port);
            let wanted = oracle(&set, &agent, ip, transport, port);
            assert_eq!(
                (action, policies.to_vec()),
                wanted,
                "seed {seed}: {} to {ip} {transport:?} {port}\n{text}\n{tables:#?}",
                agent.id
            );
            *seen.entry(action).or_insert(0) += 1;
        }
    }
    println!("{seen:?}");
    for action in [
        KernelAction::Steer,
        KernelAction::Direct,
        KernelAction::Deny(DropReason::PolicyDenied.code()),
        KernelAction::Deny(DropReason::PolicyForbidden.code()),
        KernelAction::Deny(DropReason::PolicyError.code()),
        KernelAction::Deny(DropReason::InspectionRequired.code()),
    ] {
        assert!(seen.contains_key(&action), "seed {seed}: no packet met {action:?}: {seen:?}");
    }
}

fn set(text: &str) -> PolicySet {
    PolicySet::parse(&PolicyBundle { text: text.to_owned(), sets: sets() })
        .unwrap_or_else(|e| panic!("{text}\n{:#?}", e.problems))
}

fn compiled(text: &str) -> KernelTables {
    compile(&set(text), &agents()).unwrap()
}

#[test]
fn nothing_is_stored_for_nothing() {
    let tables = compiled("");
    assert_eq!(tables.destinations, []);
    assert_eq!(tables.ports, [(0, 0)]);
    assert_eq!(tables.verdicts, []);
    assert_eq!(tables.policies, [Vec::<String>::new()]);
    assert!(
        tables.agents.values().all(|class| *class == 1),
        "agents decided alike share a class: {:?}",
        tables.agents
    );
    let deny = KernelAction::Deny(DropReason::PolicyDenied.code());
    assert_eq!(tables.lookup(1, "192.0.2.1".parse().unwrap(), Transport::Tcp, 443), (deny, &[][..]));
    let anonymous = KernelAction::Deny(DropReason::Anonymous.code());
    for index in [0, 77] {
        assert_eq!(
            tables.lookup(index, "192.0.2.1".parse().unwrap(), Transport::Tcp, 443),
            (anonymous, &[][..])
        );
    }
}

#[test]
fn what_is_decided_alike_shares_a_class() {
    let tables = compiled(
        r#"@id("a") permit (principal in Team::"payments", action == Action::"connect", resource in NetworkSet::"nested")
           when { [80, 443, 8080].contains(context.port) && context.protocol == "tcp" };
           @id("b") permit (principal in Team::"payments", action == Action::"connect", resource)
           when { context.ip.isInRange(ip("203.0.113.0/24")) && context.port == 80 && context.port == 81 };"#,
    );
    // 10.1.2.0/24 lies in 10.0.0.0/8 of the same set, and 203.0.113.0/24 never matches.
    assert_eq!(tables.destinations, [("10.0.0.0/8".parse().unwrap(), 1)]);
    assert_eq!(tables.ports, [(0, 0), (80, 1), (81, 0), (443, 1), (444, 0), (8080, 1), (8081, 0)]);
    assert_eq!(tables.verdicts.len(), 1);
    let class = |index: u32| tables.agents[&index];
    assert_eq!(class(1), class(2));
    assert_eq!([class(3), class(4), class(5)], [class(9); 3]);
    assert_ne!(class(1), class(9));
    assert!(tables.agents.values().all(|c| *c > 0), "class 0 is the unauthenticated source's");
}

#[test]
fn an_ipv6_prefix_around_the_mapped_space_does_not_take_ipv4() {
    let v6_only = r#"@id("a") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("PREFIX")) };"#;
    let steer = |tables: &KernelTables, ip: &str| {
        tables.lookup(1, ip.parse().unwrap(), Transport::Tcp, 1).0 == KernelAction::Steer
    };
    for (prefix, v6_named, v6_other) in [
        ("::/0", "2001:db8::1", None),
        ("::/80", "::9:1", Some("2001::1")),
        ("::fffe:0:0/95", "::fffe:1:1", Some("::fffd:0:0")),
    ] {
        let tables = compiled(&v6_only.replace("PREFIX", prefix));
        assert!(steer(&tables, v6_named), "{prefix}\n{tables:#?}");
        assert!(!steer(&tables, "192.0.2.1") && !steer(&tables, "::ffff:192.0.2.1"), "{prefix}\n{tables:#?}");
        assert!(v6_other.is_none_or(|ip| !steer(&tables, ip)), "{prefix}");
    }
    let tables = compiled(&v6_only.replace("PREFIX", "0.0.0.0/0"));
    assert!(steer(&tables, "192.0.2.1") && steer(&tables, "::ffff:192.0.2.1") && !steer(&tables, "::1"));
    // Both roots decided alike need no prefix at all.
    let tables = compiled(r#"@id("a") permit (principal, action == Action::"connect", resource);"#);
    assert_eq!(tables.destinations, []);
}

#[test]
fn compiling_is_deterministic_and_survives_json() {
    let mut r = Random(7);
    for _ in 0..10 {
        let (_, set) = policies(&mut r);
        let tables = compile(&set, &agents()).unwrap();
        let mut reversed = agents();
        reversed.reverse();
        assert_eq!(compile(&set, &agents()).unwrap(), tables);
        let again = compile(&set, &reversed).unwrap();
        for agent in agents() {
            for prefix in PREFIXES {
                let ip = prefix.parse::<IpNet>().unwrap().network();
                let look = |t: &KernelTables| {
                    let (action, ids) = t.lookup(agent.index, ip, Transport::Udp, 443);
                    (action, ids.to_vec())
                };
                assert_eq!(look(&again), look(&tables));
            }
        }
        let json = serde_json::to_string(&tables).unwrap();
        assert_eq!(serde_json::from_str::<KernelTables>(&json).unwrap(), tables);
    }
}

#[test]
fn an_error_in_either_guard_denies() {
    let tables = compiled(
        r#"@id("ok") permit (principal, action in [Action::"connect", Action::"direct"], resource);
           @id("bad") forbid (principal == Agent::"web", action == Action::"direct", resource)
           when { 9223372036854775807 + 1 > 0 };"#,
    );
    let ip = "192.0.2.1".parse().unwrap();
    let error = KernelAction::Deny(DropReason::PolicyError.code());
    assert_eq!(tables.lookup(1, ip, Transport::Tcp, 1), (error, &["bad".to_owned()][..]));
    assert_eq!(tables.lookup(2, ip, Transport::Tcp, 1).0, KernelAction::Direct);
}

/// A policy for each of many agents: work grows with what a policy can tell apart, not with the product.
#[test]
fn many_agents_with_a_destination_each() {
    const AGENTS: u32 = 300;
    const PORTS: u32 = 16;
    let mut text = String::from(
        "@id(\"base\") permit (principal, action == Action::\"connect\", resource in NetworkSet::\"nested\");\n",
    );
    for n in 0..AGENTS {
        text.push_str(&format!(
            "@id(\"p{n}\") permit (principal == Agent::\"a{n}\", action == Action::\"connect\", resource == Network::\"192.0.2.{}\") when {{ context.port == {} }};\n",
            n % 256,
            n % PORTS
        ));
    }
    let set = set(&text);
    let agents: Vec<Agent> = (0..AGENTS).map(|n| agent(n + 1, &format!("a{n}"), None, None, None)).collect();
    let tables = compile(&set, &agents).unwrap();
    for n in 0..AGENTS {
        let look = |address: u32, port: u32| {
            let ip = format!("192.0.2.{}", address % 256).parse().unwrap();
            tables.lookup(n + 1, ip, Transport::Tcp, u16::try_from(port % PORTS).unwrap()).0
        };
        assert_eq!(look(n, n), KernelAction::Steer, "{n}");
        assert_ne!(look(n, n + 1), KernelAction::Steer, "{n}");
        assert_ne!(look(n + 1, n), KernelAction::Steer, "{n}");
    }
}

#[test]
fn what_would_not_fit_is_refused_with_its_number() {
    // Every agent and every destination differ from every other.
    let mut text = String::new();
    for n in 0..600 {
        text.push_str(&format!(
            "@id(\"p{n}\") permit (principal, action == Action::\"connect\", resource == Network::\"10.9.{}.{}\") when {{ context.port == {n} && principal.name like \"*{n}\" }};\n",
            n / 256,
            n % 256
        ));
    }
    let set = set(&text);
    let agents: Vec<Agent> = (1..=9_000).map(|n| agent(n, &format!("a{n}"), None, None, None)).collect();
    let errors = compile(&set, &agents).unwrap_err();
    assert_eq!(errors.problems.len(), 1);
    let message = &errors.problems[0].message;
    assert!(
        message.starts_with("the kernel tables would need 54") && message.contains("combinations"),
        "{message}"
    );
}

/// What is known when compiling is skipped as the evaluator skips it, and hides nothing else.
#[test]
fn parts_that_are_known_hide_no_others() {
    let agents = agents();
    for condition in [
        r#"(action == Action::"direct" && context.port == 1) || context.port == 443"#,
        r#"(action == Action::"connect" && context.port == 1) || context.port == 443"#,
        r#"!(action == Action::"direct" && context.port == 1) && context.port == 443"#,
        r#"(context.port == 1 && resource is Host) || context.port == 443"#,
        r#"if context has path then context.port == 1 else context.port == 443"#,
        r#"if !(context has path) || context.port == 80 then context.port == 443 else context.port == 1"#,
        r#"(action in [Action::"opaque"] || context.port == 1) && (context has ip && context.port < 81)"#,
        r#"!(resource is Network) || (resource has ip && !(resource has name) && context.port == 80)"#,
        r#"(if resource is Host then context.port == 1 else action == Action::"direct") || context.port == 443"#,
        r#"((false && context.port == 1) || context.port == 80) && (true || context.port == 2)"#,
        r#"(context.port == 80 || true) && (context.port == 443 || !(context.port == 80 && true))"#,
    ] {
        for effect in ["permit", "forbid"] {
            let set = set(&format!(
                r#"@id("base") permit (principal, action, resource) when {{ resource is Network }};
                   @id("a") {effect} (principal, action in [Action::"connect", Action::"direct"], resource) when {{ {condition} }};"#
            ));
            let tables = compile(&set, &agents).unwrap();
            for port in [0, 1, 2, 3, 79, 80, 81, 442, 443, 444, 65_535] {
                for transport in [Transport::Tcp, Transport::Udp, Transport::Icmp] {
                    let ip = "192.0.2.1".parse().unwrap();
                    let (action, policies) = tables.lookup(1, ip, transport, port);
                    let wanted = oracle(&set, &agents[0], ip, transport, port);
                    assert_eq!(
                        (action, policies.to_vec()),
                        wanted,
                        "{effect} {condition}: {transport:?} {port}"
                    );
                }
            }
        }
    }
}
