//! Decisions: one table per concern.

use super::*;
use crate::head::Head;
use crate::{Decision, Host, Operation, Transport};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::{Agent, AgentId, AgentState, PolicyOwner};

mod limits;
mod obligations;
mod payload;
mod platform;
mod readings;
mod refused;

pub(crate) fn agent(id: &str) -> Agent {
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
                ("nothing".to_owned(), prefixes(&[])),
            ]),
        },
    }
}

fn set(text: &str) -> PolicySet {
    PolicySet::parse(&bundle(text)).unwrap_or_else(|e| panic!("{text}\n{:#?}", e.problems))
}

/// Geo data as control would hand them in.
pub(crate) fn geo(asns: &[(u32, &[&str])], countries: &[(&str, &[&str])]) -> Geo {
    let prefixes = |list: &[&str]| list.iter().map(|p| p.parse().unwrap()).collect::<Vec<_>>();
    Geo {
        asns: Some(asns.iter().map(|(number, list)| (*number, prefixes(list))).collect()),
        countries: Some(countries.iter().map(|(code, list)| ((*code).to_owned(), prefixes(list))).collect()),
    }
}

fn connect(set: &PolicySet, agent: &Agent, ip: &str, port: u16) -> Decision {
    let operation = Operation::Connect { ip: ip.parse().unwrap(), port, transport: Transport::Tcp };
    set.decide(&Request { agent, operation })
}

fn http(set: &PolicySet, agent: &Agent, host: &str, method: &str, path: &str) -> Decision {
    let host = Host::parse(host).unwrap();
    let operation =
        Operation::Http { host: &host, port: 80, scheme: Scheme::Http, method, path, head: Head::none() };
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

#[test]
fn evaluation_errors_deny() {
    let s = set(r#"
        @id("ok") permit (principal, action == Action::"http", resource);
        @id("broken") forbid (principal, action == Action::"http", resource)
        when { context.port + 9223372036854775807 < 0 };
        @id("also") permit (principal, action == Action::"http", resource)
        when { context.path == "/never" && context.port * 9223372036854775807 < 0 };
    "#);
    let d = http(&s, &agent("web"), "api.allowed.test", "GET", "/");
    assert_eq!(d.verdict, Err(DropReason::PolicyError));
    assert_eq!(d.policies, ["broken"]);
    assert!(d.errors[0].starts_with("broken: integer overflow"), "{:?}", d.errors);
    let d = http(&s, &agent("web"), "api.allowed.test", "GET", "/never");
    assert_eq!(d.policies, ["also", "broken"]);
    assert_eq!(d.errors.len(), 2);
}

#[test]
fn a_host_that_is_not_canonical_denies() {
    let s = set(r#"@id("all") permit (principal, action == Action::"tls", resource);"#);
    for host in ["API.test", "api.test.", "127.1", "a b", "", "::1"] {
        let host = Host::Name(host.to_owned());
        let a = agent("web");
        let d = s.decide(&Request {
            agent: &a,
            operation: Operation::Tls { host: &host, port: 443, alpn: &[], ja4: "" },
        });
        assert_eq!(d.verdict, Err(DropReason::PolicyError), "{host:?}");
    }
    let mapped = Host::Address("::ffff:10.0.0.1".parse().unwrap());
    let a = agent("web");
    let d = s.decide(&Request {
        agent: &a,
        operation: Operation::Tls { host: &mapped, port: 443, alpn: &[], ja4: "" },
    });
    assert_eq!(d.verdict, Err(DropReason::PolicyError));
}

#[test]
fn principals_carry_their_tenant() {
    let s = set(r#"
        @id("agent") permit (principal == Agent::"web", action == Action::"connect", resource);
        @id("team") permit (principal in Team::"acme/payments", action == Action::"connect", resource);
        @id("env") permit (principal in Environment::"default/prod", action == Action::"connect", resource);
        @id("tenant") permit (principal in Tenant::"acme", action == Action::"connect", resource);
        @id("attr") permit (principal, action == Action::"connect", resource)
        when { principal has team && principal.team == Team::"payments" && principal.name == "web" };
        @id("nested") permit (principal, action == Action::"connect", resource)
        when { principal has team && principal.team in Tenant::"acme" };
    "#);
    assert_eq!(connect(&s, &agent("web"), "203.0.113.1", 1).policies, ["agent", "attr", "env"]);
    assert_eq!(connect(&s, &agent("other"), "203.0.113.1", 1).policies, ["env"]);
    assert_eq!(connect(&s, &agent("acme/web"), "203.0.113.1", 1).policies, ["nested", "team", "tenant"]);
}

#[test]
fn labels_sets_and_contexts() {
    let s = set(r#"
        @id("label") permit (principal, action == Action::"connect", resource in NetworkSet::"lab")
        when { principal.hasTag("role") && principal.getTag("role") == "crawler" && context.port == 443 };
        @id("host") permit (principal, action == Action::"tls", resource in HostSet::"saas")
        when { context.alpn.contains("h2") };
        @id("below") permit (principal, action == Action::"tunnel", resource)
        when { resource.name like "*.allowed.test" && context.protocol == "tls" };
    "#);
    let a = agent("web");
    assert!(connect(&s, &a, "203.0.113.200", 443).is_allow());
    assert!(connect(&s, &a, "::ffff:203.0.113.200", 443).is_allow());
    assert!(connect(&s, &a, "2001:db8:5::1", 443).is_allow());
    assert!(!connect(&s, &a, "203.0.114.1", 443).is_allow());
    assert!(!connect(&s, &a, "203.0.113.200", 80).is_allow());
    let h2 = ["h2".to_owned()];
    for (name, allowed) in [
        ("api.allowed.test", true),
        ("API.ALLOWED.TEST.", true),
        ("notapi.allowed.test", false),
        ("a.wild.test", true),
        ("a.b.wild.test", true),
        ("wild.test", false),
        ("notwild.test", false),
        ("a.wild.test.evil", false),
        ("192.0.2.7", true),
        ("3221225991", true),
        ("192.0.2.8", false),
    ] {
        let host = Host::parse(name).unwrap();
        let d = s.decide(&Request {
            agent: &a,
            operation: Operation::Tls { host: &host, port: 443, alpn: &h2, ja4: "" },
        });
        assert_eq!(d.is_allow(), allowed, "{name}");
    }
    for (name, protocol, allowed) in [
        ("x.allowed.test", TunnelProtocol::Tls, true),
        ("x.allowed.test", TunnelProtocol::Unknown, false),
        ("allowed.test", TunnelProtocol::Tls, false),
        ("notallowed.test", TunnelProtocol::Tls, false),
    ] {
        let host = Host::parse(name).unwrap();
        let d =
            s.decide(&Request { agent: &a, operation: Operation::Tunnel { host: &host, port: 1, protocol } });
        assert_eq!(d.is_allow(), allowed, "{name}");
    }
}

/// ASNs and countries are classes of addresses in scopes and conditions; and they open nothing reserved.
#[test]
fn asns_and_countries() {
    let text = r#"
        @id("asn") permit (principal, action == Action::"connect", resource in Asn::"AS64500")
        when { context.port == 443 };
        @id("land") permit (principal, action == Action::"connect", resource)
        when { resource in [Country::"DE", Country::"FR"] && context.port == 80 };
        @id("not") forbid (principal, action == Action::"connect", resource in Country::"FR")
        when { resource in Asn::"AS64500" };
        @id("set") permit (principal, action == Action::"connect", resource in NetworkSet::"inner")
        when { context.port == 22 };
    "#;
    let surroundings = Surroundings {
        geo: geo(
            &[(64_500, &["203.0.113.0/24", "2001:db8::/32", "10.9.0.0/16"])],
            &[("DE", &["198.51.100.0/24", "10.0.0.0/8"]), ("FR", &["203.0.113.128/25"])],
        ),
        ..Surroundings::default()
    };
    let bundle = bundle(text);
    let set = PolicySet::parse_in(&bundle.text, &bundle.sets, &surroundings).unwrap();
    let a = agent("web");
    let reach = |ip: &str, port| set.reach(&a, ip.parse().unwrap(), port, Transport::Tcp);
    assert!(reach("203.0.113.1", 443).is_allow() && reach("2001:db8::1", 443).is_allow());
    assert!(!reach("203.0.113.1", 80).is_allow() && !reach("198.51.100.1", 443).is_allow());
    assert_eq!(reach("203.0.113.129", 443).verdict, Err(DropReason::PolicyForbidden));
    assert!(reach("198.51.100.1", 80).is_allow());
    for port in [80, 443] {
        let denied = reach("10.9.0.1", port);
        assert_eq!(
            denied.verdict,
            Err(DropReason::AddressReserved),
            "data open no inner address: {denied:?}"
        );
    }
    assert!(reach("10.9.0.1", 22).is_allow(), "a set names what it holds");
}

/// The document that is handed to who decides reads back as what was written.
#[test]
fn what_is_in_force_survives_json() {
    let surroundings = Surroundings { geo: geo(&[(1, &["203.0.113.0/24"])], &[]), ..Surroundings::default() };
    let bundle = bundle("");
    for surroundings in [&surroundings, &Surroundings::default()] {
        let written = PolicyInForceRef { text: &bundle.text, sets: &bundle.sets, surroundings };
        let json = serde_json::to_string(&written).unwrap();
        assert_eq!(json.contains("surroundings"), *surroundings != Surroundings::default());
        let read: PolicyInForce = serde_json::from_str(&json).unwrap();
        let PolicyBundle { text, sets } = bundle.clone();
        assert_eq!(read, PolicyInForce { text, sets, surroundings: surroundings.clone() });
    }
}

/// Text alone can be checked without data, and nothing can be decided so.
#[test]
fn an_outline_needs_no_data() {
    let outline = |text: &str| PolicySet::check(&PolicyOwner::default(), &bundle(text));
    let named =
        outline(r#"@id("a") permit (principal, action == Action::"connect", resource in Country::"DE");"#);
    let wanted = Outline { policies: 1, prefixes: 0, cells: 0, limiters: 0, names_geo: true };
    assert_eq!(named.unwrap(), wanted);
    let plain = outline(r#"@id("a") permit (principal, action == Action::"tls", resource);"#).unwrap();
    assert!(!plain.names_geo);
    let wrong = r#"@id("a") permit (principal, action == Action::"connect", resource in Country::"de");"#;
    assert!(outline(wrong).unwrap_err().problems[0].message.contains("write `Country::\"DE\"`"));
}

/// What is not built for a decision must not be missed by it: sets that read nothing of the agent or
/// the resource decide as the same set with a policy that reads everything.
#[test]
fn entities_are_complete_where_they_are_read() {
    let reader = r#"@id("r") forbid (principal, action, resource) when {
        principal.name == "nobody" || (resource has ip && resource.ip.isInRange(ip("192.0.2.255/32"))) };"#;
    for policy in [
        r#"@id("a") permit (principal in Team::"payments", action, resource);"#,
        r#"@id("a") permit (principal, action, resource) when { Team::"payments" in Tenant::"default" };"#,
        r#"@id("a") permit (principal, action, resource) when { principal in Environment::"prod" && resource in HostSet::"saas" };"#,
        r#"@id("a") permit (principal, action, resource) when { resource is Host && resource.name like "*.allowed.test" };"#,
        r#"@id("a") permit (principal, action, resource) when { (if principal in Team::"payments" then principal else principal).hasTag("role") };"#,
    ] {
        let (lean, full) = (set(policy), set(&format!("{policy}{reader}")));
        for id in ["web", "acme/web"] {
            let a = agent(id);
            assert_eq!(
                connect(&lean, &a, "203.0.113.1", 80),
                connect(&full, &a, "203.0.113.1", 80),
                "{policy}"
            );
            let call = |s| http(s, &a, "api.allowed.test", "GET", "/");
            assert_eq!(call(&lean), call(&full), "{policy}");
        }
    }
}

/// Not a test of speed: prints what one decision costs, for people who change this crate.
#[test]
#[ignore = "a measurement; run with --ignored --nocapture"]
fn decision_cost() {
    for count in [1_usize, 10, 100] {
        let text: String = (0..count)
            .map(|n| {
                format!("@id(\"p{n}\") permit (principal in Team::\"payments\", action == Action::\"http\", resource in HostSet::\"saas\") when {{ context.path like \"/{n}/*\" }};\n")
            })
            .collect();
        let s = set(&text);
        let a = agent("web");
        let started = std::time::Instant::now();
        for _ in 0..2_000 {
            assert!(http(&s, &a, "api.allowed.test", "GET", "/0/x").is_allow());
        }
        println!("{count} policies: {:?} a decision", started.elapsed() / 2_000);
    }
}

/// The largest bundle there may be is taken in seconds, not hours, and looked up fast.
#[test]
fn the_bounds_are_usable() {
    let prefixes: BTreeSet<IpNet> = (0..100_000_u32)
        .map(|n| IpNet::new(std::net::Ipv4Addr::from_bits(0x0b00_0000 + n * 512).into(), 24).unwrap())
        .collect();
    let text: String = (0..1_000)
        .map(|n| format!("@id(\"p{n}\") permit (principal, action == Action::\"connect\", resource in NetworkSet::\"big\") when {{ context.port == {} }};\n", n % 16))
        .collect();
    let sets = NamedSets { networks: BTreeMap::from([("big".to_owned(), prefixes)]), ..NamedSets::default() };
    let s = PolicySet::parse(&PolicyBundle { text, sets }).unwrap();
    assert!(connect(&s, &agent("web"), "11.0.0.1", 1).is_allow());
    assert!(!connect(&s, &agent("web"), "11.0.1.1", 1).is_allow());
    let tables = crate::kernel::compile(&s, &[agent("web")]).unwrap();
    assert_eq!(tables.destinations.len(), 100_000);
}
