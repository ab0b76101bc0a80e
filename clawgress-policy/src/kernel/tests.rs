//! Kernel tables equal the evaluator: on hand-made cases, and on random sets, agents and packets.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use super::*;
use crate::address::is_reserved;
use crate::{NamedSets, PolicyBundle};

mod fits;
mod oracle;
mod random;

use oracle::{assert_as_written, limits_alone, limits_of, never_direct, oracle, policies_of};
use random::{NamesOf, PORTS, PREFIXES, Random, address, agent, agents, moment, policies, sets, two};

/// Packets compared in one run, over all random sets.
const PACKETS: usize = 20_000;
const PACKETS_PER_SET: usize = 100;
/// Groups of tenants' sets under a platform's, in most runs and at most.
const TENANT_SETS: usize = 20;
const TENANT_SETS_MAX: usize = 10 * TENANT_SETS;
/// Most policy sets: ten times as many as meet everything in most runs.
const SETS_MAX: usize = 10 * PACKETS / PACKETS_PER_SET;

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
    let mut windows = 0;
    let (mut limited, mut forbidden) = (BTreeMap::new(), BTreeMap::new());
    for number in 0..SETS_MAX {
        // What is rare may take more sets than usual.
        if number >= PACKETS / PACKETS_PER_SET && outcomes().iter().all(|met| seen.contains_key(met)) {
            break;
        }
        let (text, names_of, set) = policies(&mut r);
        let now_ms = moment(&mut r);
        let set = set.at(now_ms);
        let tables =
            compile(&set, &agents).unwrap_or_else(|e| panic!("seed {seed}\n{text}\n{:#?}", e.problems));
        windows += usize::from(hold_until_they_turn(&set, now_ms, &tables, &mut r, &text));
        for _ in 0..PACKETS_PER_SET {
            let agent = r.pick(&agents);
            let ip = address(&mut r);
            let transport = r.pick(&Transport::ALL);
            let port = r.pick(&PORTS).wrapping_add([0, 1, u16::MAX][r.below(3)]);
            let (action, policies) = tables.lookup(agent.index, ip, transport, port);
            let wanted = oracle(&set, &names_of, &agent, ip, transport, port);
            assert_eq!(
                (action, policies.to_vec()),
                wanted,
                "seed {seed}: {} to {ip} {transport:?} {port}\n{text}\n{names_of:?}\n{tables:#?}",
                agent.id
            );
            let limits = limits_of(&tables, agent.index, ip, transport, port);
            let wanted_limits = match action {
                // What nobody reads may pass by what the kernel learns.
                KernelAction::Deny(code) if code != DropReason::InspectionRequired.code() => Vec::new(),
                _ => limits_alone(&set, &agent, ip, transport, port).unwrap(),
            };
            assert_as_written(&set, &agent, &limits, &format!("seed {seed}: {}\n{text}", agent.id));
            let limits = policies_of(&limits);
            assert_eq!(
                limits, wanted_limits,
                "seed {seed}: {} to {ip} {transport:?} {port}\n{text}",
                agent.id
            );
            *limited.entry(limits.len()).or_insert(0) += 1;
            let never = tables.lookup_never_direct(agent.index, ip, transport, port);
            let wanted_never = never_direct(&set, &agent, ip, transport, port, action);
            assert_eq!(never, wanted_never, "seed {seed}: {} to {ip} {transport:?} {port}\n{text}", agent.id);
            *forbidden.entry((never, action)).or_insert(0) += 1;
            // The public statement of the same; a sample of packets, since decisions are what takes time.
            if r.below(10) == 0 {
                assert_eq!(expected(&set, &agent, ip, transport, port), wanted, "seed {seed}: {ip}\n{text}");
                let stated = expected_limits(&set, &agent, ip, transport, port);
                assert_eq!(stated, limits, "seed {seed}: {ip}\n{text}");
                let stated = expected_never_direct(&set, &agent, ip, transport, port);
                assert_eq!(stated, never, "seed {seed}: {ip}\n{text}");
            }
            *seen.entry((is_reserved(ip), action)).or_insert(0) += 1;
        }
    }
    println!("{seen:?}, {windows} sets whose tables turn, packets by how many limits they met: {limited:?}");
    assert!(
        limited.contains_key(&1) && limited.contains_key(&2),
        "seed {seed}: limits were met: {limited:?}"
    );
    for action in [KernelAction::Steer, KernelAction::Deny(DropReason::PolicyDenied.code())] {
        assert!(
            forbidden.contains_key(&(true, action)) && forbidden.contains_key(&(false, action)),
            "seed {seed}: forbids of direct were met: {forbidden:?}"
        );
    }
    assert!(windows > 10, "seed {seed}: conditions on time were met");
    for met in outcomes() {
        assert!(seen.contains_key(&met), "seed {seed}: no packet met {met:?}: {seen:?}");
    }
    let reserved = KernelAction::Deny(DropReason::AddressReserved.code());
    assert!(!seen.contains_key(&(false, reserved)), "seed {seed}: {seen:?}");
}

/// Two tenants' sets under the platform's, and a tenant without one: tables say what each pair of sets says.
#[test]
fn tables_equal_decisions_of_tenants_under_the_platform() {
    let seed = match std::env::var("CLAWGRESS_SEED") {
        Ok(text) => text.parse().expect("CLAWGRESS_SEED is a number"),
        Err(_) => RandomState::new().build_hasher().finish(),
    };
    println!("CLAWGRESS_SEED={seed}");
    let mut r = Random(seed);
    let mut agents = agents();
    agents.push(agent(12, "nobodys/web", Some("payments"), Some("prod"), Some("crawler")));
    let mut seen = BTreeMap::new();
    let met = |seen: &BTreeMap<(String, bool, KernelAction), usize>| {
        tenants_outcomes().iter().all(|met| seen.contains_key(met))
    };
    for number in 0..TENANT_SETS_MAX {
        if number >= TENANT_SETS && met(&seen) {
            break;
        }
        let now_ms = moment(&mut r);
        let (text, names_of, set, platform) = two(&mut r);
        let (other_text, other_names, other) = policies(&mut r);
        let has_platform = r.below(8) > 0;
        let tenants = BTreeMap::from([("default".to_owned(), set), ("acme".to_owned(), other)]);
        let policies = Policies::new(has_platform.then_some(platform), tenants).unwrap().at(now_ms);
        // Limits of the other tenant and of the platform may be too many together.
        let Ok(tables) = compile_all(&policies, &agents) else { continue };
        let none = NamesOf::new();
        for _ in 0..PACKETS_PER_SET {
            let agent = r.pick(&agents);
            let set = policies.of(agent.id.tenant());
            let names_of = match agent.id.tenant() {
                "default" => &names_of,
                "acme" => &other_names,
                _ => &none,
            };
            let ip = address(&mut r);
            let transport = r.pick(&Transport::ALL);
            let port = r.pick(&PORTS).wrapping_add([0, 1, u16::MAX][r.below(3)]);
            let (action, ids) = tables.lookup(agent.index, ip, transport, port);
            let wanted = oracle(set, names_of, &agent, ip, transport, port);
            let told = || {
                format!(
                    "seed {seed}: {} to {ip} {transport:?} {port}\n{text}\n// acme\n{other_text}",
                    agent.id
                )
            };
            assert_eq!((action, ids.to_vec()), wanted, "{}", told());
            assert_eq!(expected(set, &agent, ip, transport, port), wanted, "{}", told());
            let limits = limits_of(&tables, agent.index, ip, transport, port);
            assert_as_written(set, &agent, &limits, &told());
            assert_eq!(expected_limits(set, &agent, ip, transport, port), policies_of(&limits), "{}", told());
            let never = tables.lookup_never_direct(agent.index, ip, transport, port);
            assert_eq!(never, never_direct(set, &agent, ip, transport, port, action), "{}", told());
            assert_eq!(never, expected_never_direct(set, &agent, ip, transport, port), "{}", told());
            let by_platform = ids.iter().any(|id| id.starts_with(crate::PLATFORM_PREFIX));
            *seen.entry((agent.id.tenant().to_owned(), by_platform, action)).or_insert(0) += 1;
        }
    }
    println!("{seen:?}");
    assert!(met(&seen), "seed {seed}: {seen:?}");
    let passes = |action: &KernelAction| matches!(action, KernelAction::Direct | KernelAction::Steer);
    assert!(!seen.keys().any(|(tenant, _, action)| tenant == "nobodys" && passes(action)), "{seen:?}");
}

/// What packets must meet: whose agents, whether a policy of the platform's determined it, and what is done. What chance
/// brings in one set of ten is left to tests of its own.
fn tenants_outcomes() -> Vec<(String, bool, KernelAction)> {
    let deny = |reason: DropReason| KernelAction::Deny(reason.code());
    let outcomes = [
        ("default", true, KernelAction::Direct),
        ("default", true, KernelAction::Steer),
        ("default", true, deny(DropReason::PolicyForbidden)),
        ("default", false, deny(DropReason::PolicyForbidden)),
        ("acme", true, KernelAction::Steer),
        ("acme", true, deny(DropReason::PolicyForbidden)),
        ("nobodys", false, deny(DropReason::PolicyDenied)),
    ];
    outcomes.map(|(tenant, by_platform, action)| (tenant.to_owned(), by_platform, action)).into()
}

/// What packets must meet, reserved address or not, so that agreement means something.
fn outcomes() -> Vec<(bool, KernelAction)> {
    let deny = |reason: DropReason| KernelAction::Deny(reason.code());
    vec![
        (false, KernelAction::Steer),
        (false, KernelAction::Direct),
        (true, KernelAction::Steer),
        (true, KernelAction::Direct),
        (true, deny(DropReason::AddressReserved)),
        (false, deny(DropReason::PolicyDenied)),
        (false, deny(DropReason::PolicyForbidden)),
        (false, deny(DropReason::PolicyError)),
        (false, deny(DropReason::InspectionRequired)),
        (false, deny(DropReason::ProtocolUnsupported)),
    ]
}

/// The tables of one moment are those of every moment until a condition on time turns. Whether one does.
fn hold_until_they_turn(
    set: &PolicySet,
    now_ms: i64,
    tables: &KernelTables,
    r: &mut Random,
    text: &str,
) -> bool {
    let turn = set.next_turn_ms(now_ms);
    let end = turn.unwrap_or(now_ms + 8 * 86_400_000);
    assert!(end > now_ms, "{text}");
    // A sample of sets: compiling is what takes time.
    if r.below(4) > 0 {
        return turn.is_some();
    }
    let later = now_ms + i64::try_from(r.next() % u64::try_from(end - now_ms).unwrap()).unwrap();
    let moment = r.pick(&[later, end - 1]);
    let then = compile(&set.at(moment), &agents()).unwrap();
    assert_eq!(then, *tables, "at {now_ms} and {moment}\n{text}");
    turn.is_some()
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
    // Both roots decided alike need no prefix but the reserved ones, which share a class.
    let tables = compiled(r#"@id("a") permit (principal, action == Action::"connect", resource);"#);
    let wanted: Vec<(IpNet, u32)> = {
        let mut prefixes: Vec<IpNet> = crate::address::reserved().collect();
        // IPv4 lies in a prefix of its own within `::/32`, which is reserved.
        prefixes.push("0.0.0.0/0".parse().unwrap());
        prefixes.sort_by_key(|p| crate::prefix::Prefix::of(*p));
        prefixes.into_iter().map(|p| (p, u32::from(p.prefix_len() > 0))).collect()
    };
    assert_eq!(tables.destinations, wanted);
}

#[test]
fn compiling_is_deterministic_and_survives_json() {
    let mut r = Random(7);
    for _ in 0..10 {
        let (_, _, set) = policies(&mut r);
        let set = set.at(moment(&mut r));
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
                    let wanted = oracle(&set, &NamesOf::new(), &agents[0], ip, transport, port);
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

/// There always is a time, for both planes, also where nothing but that is asked.
#[test]
fn that_there_is_a_time_is_true_for_both_planes() {
    let (agents, ip) = (agents(), "192.0.2.1".parse().unwrap());
    let base = r#"@id("base") permit (principal, action, resource) when { resource is Network };"#;
    for field in ["time", "hour", "minute", "weekday"] {
        for (policy, allowed) in [
            (
                format!(
                    "{base} @id(\"a\") forbid (principal, action, resource) when {{ context has {field} }};"
                ),
                &[][..],
            ),
            (
                format!(
                    r#"@id("a") permit (principal, action in [Action::"connect", Action::"direct"], resource)
                       when {{ if context has {field} then context.port == 443 else context.port < 100 }};"#
                ),
                &[443],
            ),
        ] {
            let set = set(&policy).at(1_764_000_000_000);
            assert!(set.asks_time(), "{policy}");
            let tables = compile(&set, &agents).unwrap();
            for port in [0, 80, 99, 442, 443, 444] {
                let (action, policies) = tables.lookup(1, ip, Transport::Tcp, port);
                let wanted = oracle(&set, &NamesOf::new(), &agents[0], ip, Transport::Tcp, port);
                assert_eq!((action, policies.to_vec()), wanted, "{policy}: {port}");
                assert_eq!(
                    matches!(action, KernelAction::Deny(_)),
                    !allowed.contains(&port),
                    "{policy}: {port}"
                );
            }
        }
    }
}

/// A permit that asks for no protocol opens no tunnel; nor does one that only excludes others.
#[test]
fn what_must_be_named_is_opened_by_what_names_it() {
    let deny = |reason: DropReason| KernelAction::Deny(reason.code());
    let unsupported = deny(DropReason::ProtocolUnsupported);
    let broad =
        r#"@id("broad") permit (principal, action in [Action::"connect", Action::"direct"], resource);"#;
    let named = |action: &str, condition: &str| {
        format!(
            r#"{broad} @id("named") permit (principal, action in [{action}], resource) when {{ {condition} }};"#
        )
    };
    let both = r#"Action::"connect", Action::"direct""#;
    let gre = r#"context.protocol == "gre""#;
    let some = r#"context.ip.isInRange(ip("203.0.113.0/24"))"#;
    for (text, to, transport, wanted) in [
        (broad.to_owned(), "192.0.2.1", Transport::Gre, unsupported),
        (broad.to_owned(), "192.0.2.1", Transport::Udp, KernelAction::Direct),
        (named(both, gre), "192.0.2.1", Transport::Gre, KernelAction::Direct),
        (named(both, gre), "2001:db8::1", Transport::Gre, KernelAction::Direct),
        (named(both, gre), "192.0.2.1", Transport::Sit, unsupported),
        (named(both, gre), "10.0.0.1", Transport::Gre, deny(DropReason::AddressReserved)),
        (named(both, &format!("{gre} && {some}")), "192.0.2.1", Transport::Gre, unsupported),
        (named(both, &format!("{gre} && {some}")), "203.0.113.9", Transport::Gre, KernelAction::Direct),
        (named(both, &format!("{gre} && context.port == 443")), "192.0.2.1", Transport::Gre, unsupported),
        (
            named(both, &format!("{gre} && context.port == 0")),
            "192.0.2.1",
            Transport::Gre,
            KernelAction::Direct,
        ),
        (named(both, r#"context.protocol != "tcp""#), "192.0.2.1", Transport::Gre, unsupported),
        (named(both, r#"!(context.protocol == "gre")"#), "192.0.2.1", Transport::Gre, unsupported),
        (
            named(r#"Action::"connect""#, gre),
            "192.0.2.1",
            Transport::Gre,
            deny(DropReason::InspectionRequired),
        ),
        (named(r#"Action::"direct""#, gre), "192.0.2.1", Transport::Gre, unsupported),
        (
            named(both, gre)
                + r#"@id("no") forbid (principal, action == Action::"connect", resource) when { context.protocol == "gre" };"#,
            "192.0.2.1",
            Transport::Gre,
            deny(DropReason::PolicyForbidden),
        ),
        (
            broad.to_owned()
                + r#"@id("no") forbid (principal, action == Action::"connect", resource) when { context.protocol == "gre" };"#,
            "192.0.2.1",
            Transport::Gre,
            unsupported,
        ),
    ] {
        let (set, ip) = (set(&text), to.parse().unwrap());
        let agent = &agents()[0];
        assert_eq!(expected(&set, agent, ip, transport, 443).0, wanted, "{transport:?} to {to}: {text}");
        let tables = compile(&set, &agents()).unwrap();
        assert_eq!(
            tables.lookup(1, ip, transport, 443).0,
            wanted,
            "{transport:?} to {to}: {text}\n{tables:#?}"
        );
    }
}

/// What the guard of reserved addresses opens, and what it does not.
#[test]
fn reserved_addresses_must_be_named_by_what_permits_them() {
    let sets =
        NamedSets { hosts: BTreeMap::from([("boxes".to_owned(), ["10.8.0.1".to_owned()].into())]), ..sets() };
    let text = r#"
        @id("all") permit (principal, action in [Action::"connect", Action::"direct"], resource);
        @id("https") permit (principal, action == Action::"connect", resource)
        when { context.ip.isInRange(ip("10.1.0.0/16")) && context.port == 443 };
        @id("dns") permit (principal, action == Action::"direct", resource)
        when { context.ip.isInRange(ip("10.2.0.0/16")) && context.port == 53 };
        @id("team") permit (principal in Team::"payments", action == Action::"connect", resource == Network::"10.3.0.1");
        @id("not") permit (principal, action == Action::"connect", resource)
        unless { context.ip.isInRange(ip("10.4.0.0/16")) && context.port == 25 };
        @id("no") forbid (principal, action == Action::"connect", resource)
        when { context.ip.isInRange(ip("10.5.0.0/16")) && context.port == 25 };
        @id("if") permit (principal, action == Action::"connect", resource)
        when { (if context.ip.isInRange(ip("10.6.0.0/16")) then false else true) || context.port == 443 };
        @id("guarded") permit (principal, action, resource)
        when { (action == Action::"direct" && context.ip.isInRange(ip("10.7.0.0/16"))) || resource is Network };
        @id("host") permit (principal, action in [Action::"connect", Action::"tls"], resource)
        when { resource is Network || resource in HostSet::"boxes" || resource == Host::"10.8.0.2" };
        @id("never") permit (principal, action == Action::"connect", resource)
        when { (context.ip.isInRange(ip("10.9.0.0/16")) && false) || context.port == 443 };
        @id("wide") permit (principal, action == Action::"connect", resource in NetworkSet::"wide")
        when { context.port == 80 };
        @id("loopback") permit (principal, action == Action::"connect", resource)
        when { context.ip.isLoopback() && context.port == 80 };
    "#;
    let set = PolicySet::parse(&PolicyBundle { text: text.to_owned(), sets }).unwrap();
    let agents = agents();
    let tables = compile(&set, &agents).unwrap();
    let reserved = KernelAction::Deny(DropReason::AddressReserved.code());
    for (index, to, port, wanted) in [
        (1, "8.8.8.8", 80, KernelAction::Direct),
        (1, "2001:db8::1", 80, KernelAction::Direct),
        (1, "169.254.169.254", 80, reserved),
        (1, "::ffff:169.254.169.254", 80, reserved),
        (1, "127.0.0.1", 443, reserved),
        (1, "127.0.0.1", 80, KernelAction::Direct),
        (1, "::1", 80, KernelAction::Direct),
        (1, "fd00:ec2::254", 80, reserved),
        (1, "64:ff9b::a9fe:a9fe", 81, reserved),
        (1, "64:ff9b::a9fe:a9fe", 80, KernelAction::Direct),
        (1, "2002:7f00:1::", 80, reserved),
        (1, "10.1.0.1", 443, KernelAction::Direct),
        (1, "10.1.0.1", 444, reserved),
        (1, "10.2.0.1", 53, reserved),
        (1, "10.3.0.1", 22, KernelAction::Direct),
        (9, "10.3.0.1", 22, reserved),
        (1, "10.4.0.1", 22, reserved),
        (1, "10.5.0.1", 22, reserved),
        (1, "10.5.0.1", 25, KernelAction::Deny(DropReason::PolicyForbidden.code())),
        (1, "10.6.0.1", 443, reserved),
        (1, "10.7.0.1", 53, reserved),
        (1, "10.8.0.1", 443, reserved),
        (1, "10.8.0.2", 443, reserved),
        (1, "10.9.0.1", 443, reserved),
        (1, "10.1.2.3", 80, KernelAction::Direct),
        (1, "10.1.3.3", 80, reserved),
    ] {
        let ip = to.parse().unwrap();
        let agent = agents.iter().find(|a| a.index == index).unwrap();
        let (action, ids) = tables.lookup(index, ip, Transport::Tcp, port);
        assert_eq!(action, wanted, "{index} to {to} {port}: {ids:?}");
        let reach = set.reach(agent, ip, port, Transport::Tcp);
        assert_eq!(reach.is_allow(), wanted == KernelAction::Direct, "{index} to {to} {port}: {reach:?}");
        assert!(ids.contains(&"all".to_owned()) || reach.verdict == Err(DropReason::PolicyForbidden));
    }
}
