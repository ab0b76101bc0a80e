//! What is refused, and how the refusal reads: one table per concern.

use super::*;

/// What the one problem of `text` is: `line:column: policy: message`.
fn problem(text: &str) -> String {
    let errors = PolicySet::parse(&bundle(text)).map(|_| ()).expect_err(text);
    assert_eq!(errors.problems.len(), 1, "{text}\n{:#?}", errors.problems);
    errors.problems[0].to_string()
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
        r#"@id("a") @effect("quarantine") permit (principal, action, resource);"#,
        "1:10: policy `a`: `@effect(\"quarantine\")` is either for `connect` or `direct` alone",
    ),
    (
        r#"@id("a") @mode("log-only") permit (principal, action, resource);"#,
        "1:10: policy `a`: `@mode(\"log-only\")` is either for `connect` alone",
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
        r#"@id("a") permit (principal, action == Action::"connect", resource) when { context.executable == "x" };"#,
        "1:75: policy `a`: attribute `executable`",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"http", resource) when { context.executable == "x" };"#,
        "1:72: policy `a`: unable to guarantee safety of access to optional attribute",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"http", resource is Network);"#,
        "1:1: policy `a`: unable to find an applicable action given the policy scope constraints: `http` is asked of a `Host`, and by an `Agent`: write `==`",
    ),
    (
        r#"@id("a") permit (principal == Team::"x", action, resource);"#,
        "1:1: policy `a`: unable to find an applicable action given the policy scope constraints: try replacing `==` with `in`",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"http", resource == HostSet::"saas");"#,
        "1:1: policy `a`: ",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"http", resource) when { 1 == 2 };"#,
        "1:1: policy `a`: policy is impossible: the policy expression evaluates to false for all valid requests: no request can match: correct the scope",
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
        r#"@id("a") forbid (principal, action == Action::"tls", resource in HostSet::"empty");"#,
        "1:66: policy `a`: the host set `empty` has no members, so it never matches: add one, or remove",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"connect", resource in NetworkSet::"nothing");"#,
        "1:70: policy `a`: the network set `nothing` has no members, so it never matches: add one, or remove",
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
    (
        r#"@id("a") permit (principal, action == Action::"connect", resource in Asn::"AS64500");"#,
        "1:70: policy `a`: `AS64500` can't be looked up, because no ASN data are configured: set `[geo] asn = ",
    ),
    (
        r#"@id("a") forbid (principal, action == Action::"direct", resource in Country::"DE");"#,
        "1:69: policy `a`: `DE` can't be looked up, because no country data are configured: set `[geo] country = ",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"connect", resource in Asn::"16509");"#,
        "1:70: policy `a`: `Asn::\"16509\"` is not an autonomous system: write `Asn::\"AS16509\"`",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"connect", resource in Asn::"ASX");"#,
        "1:70: policy `a`: `Asn::\"ASX\"` is not an autonomous system: write it as",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"connect", resource in Asn::"AS4294967296");"#,
        "1:70: policy `a`: `Asn::\"AS4294967296\"` is not an autonomous system: write it as",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"connect", resource in Country::"fr");"#,
        "1:70: policy `a`: `Country::\"fr\"` is not a country's code: write `Country::\"FR\"`",
    ),
    (
        r#"@id("a") permit (principal, action == Action::"connect", resource in Country::"France");"#,
        "1:70: policy `a`: `Country::\"France\"` is not a country's code: write the two letters",
    ),
];

/// What the data don't have is refused with its place.
#[test]
fn refused_asns_and_countries() {
    let text = r#"@id("a") permit (principal, action == Action::"connect", resource)
        when { resource in Asn::"AS1" || resource in [Country::"FR", Country::"DE"] || resource in Asn::"AS2" };"#;
    let geo = super::geo(&[(1, &["203.0.113.0/24"]), (2, &[])], &[("FR", &["203.0.113.0/24"])]);
    let surroundings = Surroundings { geo, ..Surroundings::default() };
    let errors = PolicySet::parse_in(text, &NamedSets::default(), &surroundings).unwrap_err();
    let problems: Vec<String> = errors.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    let wanted = "2:70: policy `a`: the country data in force have no `DE`, so it never matches: correct it, or bring newer data (`[geo] country` of the configuration)";
    assert_eq!(problems[0], wanted);
    assert!(
        problems[1].starts_with("2:100: policy `a`: the ASN data in force have no `AS2`"),
        "{problems:#?}"
    );

    let wrong = super::geo(&[(1, &["10.0.0.1/8", "::ffff:a00:0/104"])], &[]);
    let surroundings = Surroundings { geo: wrong, ..Surroundings::default() };
    let errors = PolicySet::parse_in("", &NamedSets::default(), &surroundings).unwrap_err();
    assert!(errors.problems.iter().all(|p| p.message.starts_with("the geo data: `")), "{errors:?}");
}

#[test]
fn refused_text() {
    for (text, expected) in REFUSED {
        let problem = problem(text);
        assert!(problem.starts_with(expected), "{text}\n  says   {problem}\n  wanted {expected}");
    }
}

/// Action, condition, and a part of its one problem: what could silently do nothing.
const REFUSED_CONDITIONS: &[(&str, &str, &str)] = &[
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
    ("connect", r#"context.ip.isInRange(ip("::ffff:a00:0/104"))"#, "`::ffff:10.0.0.0/104` is IPv4-mapped"),
    ("connect", r#"context.ip == ip("x")"#, "error during extension function argument validation"),
    ("connect", r#"context.port == 70000"#, "`70000` is not a port"),
    ("connect", r#"context.port > -1"#, "`-1` is not a port"),
    (
        "connect",
        r#"context.port >= 443 && context.port <= 80"#,
        "no port is at least 443 and at most 80, so this never matches: write `context.port >= 80 && context.port <= 443`",
    ),
    (
        "direct",
        r#"context.protocol == "tcp" && 90 < context.port && !(context.port > 80)"#,
        "no port is at least 91",
    ),
    (
        "http",
        r#"context.port > 80 && (context.port < 70 || context.port < 60 && context.port > 61)"#,
        "no port is at",
    ),
    ("tls", r#"!(context.port >= 443 && context.port < 443)"#, "no port is at least 443 and at most 442"),
    (
        "connect",
        r#"context.hour >= 22 && context.hour < 6"#,
        "no hour is at least 22 and at most 5, so this never matches: for what goes on past the last hour, write `context.hour >= 22 || context.hour <= 5`",
    ),
    (
        "http",
        r#"context.time > datetime("2027-01-01") && context.time < datetime("2026-01-01")"#,
        "this time ends before it begins",
    ),
    ("connect", r#"context.hour == 24"#, "`24` is not an hour: it is 0 to 23"),
    ("http", r#"context.minute < 60"#, "`60` is not a minute: it is 0 to 59"),
    ("tls", r#"[0, 6].contains(context.weekday)"#, "`0` is not a weekday: 1 is Monday"),
    (
        "connect",
        r#"context.time < datetime("2026-11-26T00:00:30Z")"#,
        "`2026-11-26T00:00:30Z` is not a whole minute",
    ),
    (
        "connect",
        r#"context.time < datetime("2026-13-26")"#,
        "error during extension function argument validation",
    ),
    ("connect", r#"context.hour + 1 < 9"#, "`context.hour` can only be compared with literals"),
    ("http", r#"context.hour == context.port"#, "`context.hour` can only be compared with literals"),
    (
        "tls",
        r#"context.time.toTime() < duration("9h")"#,
        "`context.time` can only be compared with literals, so that it is known when the answer changes: write `context.time < datetime(\"2030-01-31T18:00:00Z\")`",
    ),
    ("connect", r#"[80, 99999].contains(context.port)"#, "`99999` is not a port"),
    ("connect", r#"context.protocol == "TCP""#, "`context.protocol` is never `TCP`: write `tcp`"),
    ("connect", r#"context.protocol == "6in4""#, "`context.protocol` is never `6in4`: write `sit`"),
    (
        "direct",
        r#"["gre", "IPsec"].contains(context.protocol)"#,
        "`context.protocol` is never `IPsec`: write `esp`",
    ),
    (
        "direct",
        r#"context.protocol == "47""#,
        "`context.protocol` is never `47`: it is one of `tcp`, `udp`, `icmp`, `ipip`,",
    ),
    ("connect", r#"context.protocol == "tls""#, "`context.protocol` is never `tls`: it is one of `tcp`,"),
    (
        "tunnel",
        r#"context.protocol == "gre""#,
        "`context.protocol` is never `gre`: it is one of `tls`, `tls_ech`, `unknown`",
    ),
    ("http", r#"context.method == "get""#, "methods are compared as sent, in upper case: write `GET`"),
    ("http", r#"context.scheme == "HTTPS""#, "`context.scheme` is never `HTTPS`: it is `http` or `https`"),
    ("http", r#"context.scheme like "ftp*""#, "`context.scheme` is never like this: it is `http` or `https`"),
    ("tls", r#"resource in HostSet::"empty""#, "the host set `empty` has no members"),
    ("connect", r#"!(resource in NetworkSet::"nothing")"#, "the network set `nothing` has no members"),
    ("http", r#"context.path == "v1""#, "a path starts with `/`"),
    (
        "http",
        r#"context.path == "/v1/x%3Aread""#,
        "the path `/v1/x%3Aread` is not in canonical form and never matches: write `/v1/x:read`",
    ),
    ("http", r#"context.path == "/%c3%bc""#, "never matches: write `/%C3%BC`"),
    ("http", r#"context.path like "/v1/*%3adelete*""#, "the path `%3adelete` is not in canonical form"),
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
        "http",
        r#"principal != Team::"x""#,
        "`principal` is never a `Team` here, so it never equals `Team::\"x\"`: use `in`, as in `principal in Team::\"x\"`",
    ),
    ("connect", r#"principal != Tenant::"x""#, "use `in`, as in `principal in Tenant::\"x\"`"),
    ("http", r#"principal == Team::"x" || context.port == 80"#, "use `in`, as in `principal in Team::\"x\"`"),
    ("http", r#"!(Project::"x" == principal)"#, "use `in`, as in `principal in Project::\"x\"`"),
    ("tls", r#"resource != HostSet::"saas""#, "use `in`, as in `resource in HostSet::\"saas\"`"),
    ("connect", r#"resource != NetworkSet::"lab""#, "use `in`, as in `resource in NetworkSet::\"lab\"`"),
    (
        "connect",
        r#"resource != Host::"x.test""#,
        "`resource` is never a `Host` here, so it never equals `Host::\"x.test\"`: compare it with one of its own type (`Network`)",
    ),
    (
        "direct",
        r#"principal.name == context.protocol"#,
        "`principal.name == context.protocol` cannot be compiled",
    ),
];

#[test]
fn refused_conditions() {
    for (action, condition, expected) in REFUSED_CONDITIONS {
        let text = format!(
            "@id(\"a\")\npermit (principal, action == Action::\"{action}\", resource)\nwhen {{ {condition} }};"
        );
        let problem = problem(&text);
        assert!(
            problem.starts_with("3:") && problem.contains(expected),
            "{text}\n  says   {problem}\n  wanted {expected}"
        );
    }
    set(
        r#"@id("a") permit (principal, action == Action::"http", resource) when { context.scheme == "http" };"#,
    );
    set(
        r#"@id("a") permit (principal, action == Action::"http", resource) when { context.scheme like "http*" };"#,
    );
    set(
        r#"@id("a") permit (principal, action == Action::"http", resource) when { ["http", "https"].contains(context.scheme) && context.scheme like "*s" };"#,
    );
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
    let many = "@id(\"a\") permit (principal, action, resource);".repeat(crate::POLICIES_MAX + 1);
    assert!(problem(&many).starts_with("8193 policies, and there may be 8192"));
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
