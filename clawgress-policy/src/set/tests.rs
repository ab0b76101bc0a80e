//! Policy text and decisions: one table per concern, through `check`-like helpers.

use super::*;
use crate::{Host, Operation, Transport};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::{AgentId, AgentState};

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
        let d =
            s.decide(&Request { agent: &a, operation: Operation::Tls { host: &host, port: 443, alpn: &[] } });
        assert_eq!(d.verdict, Err(DropReason::PolicyError), "{host:?}");
    }
    let mapped = Host::Address("::ffff:10.0.0.1".parse().unwrap());
    let a = agent("web");
    let d =
        s.decide(&Request { agent: &a, operation: Operation::Tls { host: &mapped, port: 443, alpn: &[] } });
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
        let d =
            s.decide(&Request { agent: &a, operation: Operation::Tls { host: &host, port: 443, alpn: &h2 } });
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

#[test]
fn addresses_that_are_named() {
    let s = set(r#"
        @id("a") permit (principal, action == Action::"connect", resource)
        when { context.ip.isInRange(ip("10.1.0.0/16")) || context.ip == ip("fd00::1") || context.ip.isInRange(ip("0.0.0.0/0")) }
        unless { context.ip.isInRange(ip("10.2.0.0/16")) };
        @id("b") forbid (principal, action == Action::"connect", resource)
        when { context.ip.isInRange(ip("10.3.0.0/16")) }
        unless { context.ip.isInRange(ip("10.4.0.0/16")) || resource in NetworkSet::"inner" };
        @id("c") permit (principal, action == Action::"connect", resource == Network::"169.254.169.254");
        @id("d") permit (principal, action == Action::"tls", resource == Host::"10.5.0.1");
    "#);
    for (ip, named) in [
        ("10.1.2.3", true),
        ("::ffff:10.1.2.3", true),
        ("fd00::1", true),
        ("fd00::2", false),
        ("10.2.0.1", false),
        ("10.3.0.1", false),
        ("10.4.0.1", true),
        ("10.9.1.1", true),
        ("169.254.169.254", true),
        ("10.5.0.1", true),
        ("8.8.8.8", false),
    ] {
        assert_eq!(s.names_address(ip.parse().unwrap()), named, "{ip}");
    }
}

#[test]
fn an_address_is_named_for_the_agents_of_the_policy() {
    let s = set(r#"
        @id("all") permit (principal, action == Action::"connect", resource);
        @id("a") permit (principal in Team::"payments", action == Action::"connect", resource in NetworkSet::"inner");
        @id("b") permit (principal == Agent::"acme/web", action == Action::"connect", resource)
        when { context.ip.isInRange(ip("10.1.0.0/16")) };
    "#);
    for (id, ip, named) in [
        ("web", "10.9.0.1", true),
        ("web", "10.1.0.1", false),
        ("acme/web", "10.9.0.1", false),
        ("acme/web", "10.1.0.1", true),
        ("acme/other", "10.1.0.1", false),
    ] {
        assert_eq!(s.names_address_for(&agent(id), ip.parse().unwrap()), named, "{id} {ip}");
        assert!(s.names_address(ip.parse().unwrap()));
    }
    let sets = NamedSets {
        networks: BTreeMap::from([("any".to_owned(), BTreeSet::from(["0.0.0.0/0".parse().unwrap()]))]),
        ..NamedSets::default()
    };
    let text = r#"@id("a") permit (principal, action == Action::"connect", resource in NetworkSet::"any");"#
        .to_owned();
    let s = PolicySet::parse(&PolicyBundle { text, sets }).unwrap();
    assert!(connect(&s, &agent("web"), "10.0.0.1", 1).is_allow());
    assert!(!s.names_address("10.0.0.1".parse().unwrap()), "everything names nothing");
}

/// Each text and its one problem, as `line:column: policy: message` up to the given length.
const REFUSED: &[(&str, &str)] = &[
    (
        r#"permit (principal, action, resource);"#,
        "1:1: the policy has no id: put `@id(\"a-name\")` before it",
    ),
    (
        "@id(\"a\") permit (principal, action, resource);\n@id(\"a\") forbid (principal, action, resource);",
        "2:1: policy `a`: the id is already that of the policy at line 1",
    ),
    (r#"@id("a b") permit (principal, action, resource);"#, "1:1: `a b` cannot be an id"),
    (
        r#"@id("a") @effect("throttle") permit (principal, action, resource);"#,
        "1:10: policy `a`: `@effect` is not available yet",
    ),
    (
        r#"@id("a") @mode("log-only") permit (principal, action, resource);"#,
        "1:10: policy `a`: `@mode` is not available yet",
    ),
    (
        r#"@id("a") @foo("x") permit (principal, action, resource);"#,
        "1:10: policy `a`: `@foo` is not a known annotation",
    ),
    (r#"@id("a") permit (principal == ?principal, action, resource);"#, "1:1: policy `a`: templates"),
    (r#"@id("a") permit (principal, action, resource)"#, "1:46: unexpected end of input"),
    (
        r#"@id("a") permit (principal, action = Action::"http", resource);"#,
        "1:29: '=' is not a valid operator",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"htp", resource);"#,
        "1:39: policy `a`: unrecognized action",
    ),
    (
        r#"@id("a") permit (principal in Tem::"x", action, resource);"#,
        "1:31: policy `a`: unrecognized entity type `Tem`: did you mean",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"http", resource) when { context.pat == "/" };"#,
        "1:72: policy `a`: attribute",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"http", resource is Network);"#,
        "1:1: policy `a`: unable to find an applicable action",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"http", resource) when { 1 == 2 };"#,
        "1:1: policy `a`: policy is impossible",
    ),
    (
        r#"@id("a") permit (principal in Team::"A b", action, resource);"#,
        "1:31: policy `a`: `Team::\"A b\"` is not an id",
    ),
    (
        r#"@id("a") permit (principal in Tenant::"a/b", action, resource);"#,
        "1:31: policy `a`: `Tenant::\"a/b\"` is not a tenant",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"tls", resource in HostSet::"nope");"#,
        "1:66: policy `a`: there is no host set `nope`",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"connect", resource in NetworkSet::"nope");"#,
        "1:70: policy `a`: there is no network set `nope`",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"tls", resource == Host::"API.test.");"#,
        "1:66: policy `a`: Host `API.test.` is not in canonical form and never matches: write `api.test`",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"tls", resource == Host::"0x7f.1");"#,
        "1:66: policy `a`: Host `0x7f.1` is not in canonical form and never matches: write `127.0.0.1`",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"tls", resource == Host::"*.test");"#,
        "1:66: policy `a`: `Host::\"*.test\"` has a wildcard",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"connect", resource == Network::"10.0.0.0/8");"#,
        "1:70: policy `a`: `Network::\"10.0.0.0/8\"` is not an address",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"connect", resource == Network::"::ffff:10.0.0.1");"#,
        "1:70: policy `a`: Network `::ffff:10.0.0.1` is not in canonical form",
    ),
];

#[test]
fn refused_text() {
    for (text, expected) in REFUSED {
        let problem = problem(text);
        assert!(problem.starts_with(expected), "{text}\n  says   {problem}\n  wanted {expected}");
    }
}

/// Conditions of a `tls` or `http` or `connect` policy that could silently do nothing.
#[test]
fn refused_conditions() {
    for (action, condition, expected) in [
        (
            "connect",
            r#"context.ip.isInRange(ip("10.0.0.1/8"))"#,
            "`10.0.0.1/8` has bits set behind its length: write `10.0.0.0/8`",
        ),
        (
            "connect",
            r#"context.ip == ip("10.0.0.0/8")"#,
            "an address never equals the prefix `10.0.0.0/8`: use `isInRange`",
        ),
        (
            "connect",
            r#"context.ip.isInRange(ip("::ffff:a00:0/104"))"#,
            "`::ffff:10.0.0.0/104` is IPv4-mapped",
        ),
        ("connect", r#"context.ip == ip("x")"#, "error during extension function argument validation"),
        ("connect", r#"context.port == 70000"#, "`70000` is not a port"),
        ("connect", r#"context.port > -1"#, "`-1` is not a port"),
        ("connect", r#"[80, 99999].contains(context.port)"#, "`99999` is not a port"),
        ("connect", r#"context.protocol == "TCP""#, "`context.protocol` is never `TCP`"),
        ("http", r#"context.method == "get""#, "methods are compared as sent, in upper case: write `GET`"),
        ("http", r#"context.scheme == "HTTPS""#, "`context.scheme` is never `HTTPS`"),
        ("http", r#"context.path == "v1""#, "a path starts with `/`"),
        ("http", r#"resource.name == "API.test""#, "resource.name `API.test` is not in canonical form"),
        ("http", r#"resource.name like "*allowed.test""#, "this pattern can match names in other domains"),
        ("http", r#"resource.name like "allowed.*""#, "this pattern can match names in other domains"),
        ("http", r#"resource.name like "*.a*b.test""#, "this pattern can match names in other domains"),
        ("http", r#"resource.name like "*.Allowed.test""#, "host names are compared in lower case"),
        ("http", r#"!(resource.name like "*.x") || resource.name like "x*""#, "this pattern can match"),
        (
            "connect",
            r#"context.port + 1 == 444"#,
            "`context.port + 1 == 444` cannot be compiled for the kernel exactly",
        ),
        ("connect", r#"context.protocol like "t*""#, "`context.protocol like \"t*\"` cannot be compiled"),
        ("connect", r#"context.ip == resource.ip"#, "`context.ip == resource.ip` cannot be compiled"),
        (
            "direct",
            r#"principal.name == context.protocol"#,
            "`principal.name == context.protocol` cannot be compiled",
        ),
    ] {
        let text = format!(
            "@id(\"a\")\npermit (principal, action == Action::\"{action}\", resource)\nwhen {{ {condition} }};"
        );
        let problem = problem(&text);
        assert!(
            problem.starts_with("3:") && problem.contains(expected),
            "{text}\n  says   {problem}\n  wanted {expected}"
        );
    }
    // What a forbid matches may be as wide as it likes.
    set(
        r#"@id("a") forbid (principal, action == Action::"http", resource) when { resource.name like "*track*" };"#,
    );
    set(
        r#"@id("a") permit (principal, action == Action::"http", resource) unless { resource.name like "*track*" };"#,
    );
    // Behind a guard that is false for `connect`, other contexts may be used.
    set(
        r#"@id("a") forbid (principal, action, resource) when { context has path && context.path like "*.exe" };"#,
    );
    set(
        r#"@id("a") forbid (principal, action, resource) when { resource is Host && resource.name == "x.test" };"#,
    );
}

#[test]
fn refused_sets() {
    let refused = |sets: NamedSets| {
        let errors = PolicySet::parse(&PolicyBundle { text: String::new(), sets }).map(|_| ()).unwrap_err();
        errors.problems[0].to_string()
    };
    let hosts = |member: &str| NamedSets {
        hosts: BTreeMap::from([("s".to_owned(), BTreeSet::from([member.to_owned()]))]),
        ..NamedSets::default()
    };
    let networks = |member: &str| NamedSets {
        networks: BTreeMap::from([("s".to_owned(), BTreeSet::from([member.parse().unwrap()]))]),
        ..NamedSets::default()
    };
    for (member, expected) in [
        ("API.test", "host set `s`: `API.test` is not in canonical form: write `api.test`"),
        ("*.API.test", "host set `s`: `*.API.test` is not in canonical form: write `*.api.test`"),
        ("*api.test", "host set `s`: `*api.test` has a `*` inside"),
        ("a.*.test", "host set `s`: `a.*.test` has a `*` inside"),
        ("*.*.test", "host set `s`: `*.test` has a `*` inside"),
        ("*", "host set `s`: `*` has a `*` inside"),
        ("*.", "host set `s`: ``"),
        ("*.10.0.0.1", "host set `s`: `*.10.0.0.1` is an address"),
        ("127.1", "host set `s`: `127.1` is not in canonical form: write `127.0.0.1`"),
        ("[::1]", "host set `s`: `[::1]` is not in canonical form: write `::1`"),
        ("api.test:443", "host set `s`: `api.test:443` is not a host name or address"),
        ("", "host set `s`: ``"),
    ] {
        let problem = refused(hosts(member));
        assert!(problem.starts_with(expected), "{member}: {problem}");
    }
    assert!(refused(networks("10.0.0.1/8")).contains("write `10.0.0.0/8`"));
    assert!(refused(networks("::ffff:10.0.0.0/104")).contains("write `10.0.0.0/8`"));
    let named =
        NamedSets { hosts: BTreeMap::from([("a b".to_owned(), BTreeSet::new())]), ..NamedSets::default() };
    assert!(refused(named).contains("`a b` cannot name a set"));
}

#[test]
fn bounds_hold_before_the_parser_sees_the_text() {
    let policy = |condition: &str| {
        format!("@id(\"a\") permit (principal, action == Action::\"http\", resource) when {{ {condition} }};")
    };
    let deep = |open: &str, close: &str, n: usize| {
        policy(&format!("{}context.port == 80{}", open.repeat(n), close.repeat(n)))
    };
    let operators = |n: usize| policy(&format!("context.port == 80{}", " || context.port == 81".repeat(n)));
    // What is within the bounds fits the stack of a worker thread (2 MiB, as in this test), whole.
    let a = agent("web");
    for text in [
        deep("(", ")", NESTING_MAX - 2),
        deep("!(", ")", NESTING_MAX - 2),
        deep("true && (false || ", ")", NESTING_MAX - 2),
        operators(82),
        policy(&format!(
            "{}context.port == 80{}",
            "if context.port == 3 then ".repeat(60),
            " else false".repeat(60)
        )),
        policy(&format!(
            "{}(1{} == 3){}",
            "(".repeat(NESTING_MAX - 3),
            " - 1".repeat(200),
            ")".repeat(NESTING_MAX - 3)
        )),
        policy(&format!("[{}1{}] == [[[[1]]]]", "[".repeat(3), "]".repeat(3))),
    ] {
        let _ = http(&set(&text), &a, "a.test", "GET", "/");
    }
    for text in [
        deep("(", ")", 200_000),
        operators(45_000),
        policy(&format!("{}context.port == 80", "!".repeat(500_000))),
        policy(&format!(
            "{}context.port == 80{}",
            "if true then ".repeat(30_000),
            " else false".repeat(30_000)
        )),
        policy(&format!("context{}", ".a".repeat(400_000))),
        policy(&format!("context{}", "[\"a\"]".repeat(200_000))),
        policy(&format!("1{}", " - 1".repeat(200_000))),
        policy(&format!("{}1", "-".repeat(200_000))),
    ] {
        let problem = problem(&text);
        assert!(problem.contains("nest deeper") || problem.contains("more than 256 operators"), "{problem}");
    }
    assert!(problem(&" ".repeat(TEXT_BYTES_MAX + 1)).contains("bytes and may have"));
    // Quotes and comments are not operators.
    set(&policy(&format!("context.path == \"/{}\" // {}\n", "((((\\\"&&".repeat(300), "&&((".repeat(300))));
    let many: String = (0..200)
        .map(|n| format!("@id(\"p{n}\") permit (principal, action, resource) when {{ x }};"))
        .collect();
    let errors = PolicySet::parse(&bundle(&many)).map(|_| ()).unwrap_err();
    assert_eq!(errors.problems.len(), PROBLEMS_MAX + 1);
    assert_eq!(errors.problems[PROBLEMS_MAX].message, "and 100 more");
}

#[test]
fn every_problem_is_reported_with_its_place() {
    let text = "// a comment with ünïcode\n@id(\"one\") permit (principal, action, resource in HostSet::\"x\");\n\n@id(\"two\") @effect(\"deny\")\n/* ü */ permit (principal, action == Action::\"connect\", resource) when { context.port + 1 == 2 };".replace("/* ü */ ", "");
    let errors = PolicySet::parse(&bundle(&text)).map(|_| ()).unwrap_err();
    let places: Vec<_> = errors.problems.iter().map(|p| (p.policy.as_deref(), p.line, p.column)).collect();
    assert_eq!(places, [(Some("one"), Some(2), Some(51)), (Some("two"), Some(4), Some(12))]);
    assert_eq!(errors.to_string(), "the policy has 2 problem(s); nothing was changed");
}

#[test]
fn messages_speak_of_policies_not_of_internals() {
    for text in [
        "permit (principal, action, resource) when { context.ip.isInRange(\"x\") };",
        "@id(\"a\") permit (principal, action == Action::\"http\", resource) when { context.port };",
        "@id(\"a\") permit (principal, action == Action::\"http\", resource) when { context.port == \"x\" };",
        "@id(\"a\") permit (principal, action == Action::\"http\", resource) when { principal.team == 3 };",
        "@id(\"a\") permit (principal, action == Action::\"http\", resource) when { foo(1) };",
        "@id(\"a\") permit (principal, action == Action::\"http\", resource) when { [].contains(1) };",
        "\u{0}\u{1b}[31m",
        "@id(\"a\") permit (((",
        "permit",
    ] {
        let errors = PolicySet::parse(&bundle(text)).map(|_| ()).unwrap_err();
        for problem in &errors.problems {
            for word in ["policy0", "policy1", "::Err", "Option", "EntityUID", "ExprKind", "unwrap"] {
                assert!(!problem.message.contains(word), "{text}: {}", problem.message);
            }
            assert!(problem.line.is_some(), "{text}: {problem}");
        }
    }
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
    let prefixes: BTreeSet<IpNet> = (0..20_000_u32)
        .map(|n| IpNet::new(std::net::Ipv4Addr::from_bits(0x0b00_0000 + n * 512).into(), 24).unwrap())
        .collect();
    let text: String = (0..1_000)
        .map(|n| format!("@id(\"p{n}\") permit (principal, action == Action::\"connect\", resource in NetworkSet::\"big\") when {{ context.port == {} }};\n", n % 16))
        .collect();
    let sets = NamedSets { networks: BTreeMap::from([("big".to_owned(), prefixes)]), ..NamedSets::default() };
    let s = PolicySet::parse(&PolicyBundle { text, sets }).unwrap();
    assert!(s.names_address("11.0.0.1".parse().unwrap()) && !s.names_address("11.0.1.1".parse().unwrap()));
    let tables = crate::kernel::compile(&s, &[agent("web")]).unwrap();
    assert_eq!(tables.destinations.len(), 20_000);
}
