//! Cases of the lint: what it finds, how certain it is, and what it leaves alone.

use std::collections::{BTreeMap, BTreeSet};

use clawgress_identity::{Agent, AgentState};

use super::{Accepted, Certainty, Configuration, Enforced, FINDINGS_MAX, Finding, Lint, ReadTls};
use crate::{NamedSets, PolicySet, Surroundings};

fn sets() -> NamedSets {
    let hosts = |list: &[&str]| list.iter().map(|h| (*h).to_owned()).collect::<BTreeSet<_>>();
    NamedSets {
        hosts: BTreeMap::from([
            ("saas".to_owned(), hosts(&["api.example.com", "*.b.example.com"])),
            ("mirrors".to_owned(), hosts(&["packages.test"])),
        ]),
        networks: BTreeMap::from([
            ("offices".to_owned(), ["203.0.113.0/24".parse().unwrap()].into()),
            ("lab".to_owned(), ["198.51.100.0/24".parse().unwrap()].into()),
        ]),
    }
}

fn agent(id: &str, team: &str) -> Agent {
    Agent {
        id: id.parse().unwrap(),
        index: 1,
        team: Some(team.to_owned()),
        project: None,
        environment: None,
        labels: BTreeMap::new(),
        state: AgentState::Active,
        sources: Vec::new(),
    }
}

fn lint(text: &str, configuration: &Configuration<'_>) -> Vec<Finding> {
    let set = PolicySet::parse_in(text, &sets(), &Surroundings::default());
    set.unwrap_or_else(|e| panic!("{text}: {:?}", e.problems)).lint(text, configuration)
}

/// What is found in one policy of `http`, `connect` or as it is written.
fn found(scope: &str, condition: &str) -> Vec<(Certainty, Lint)> {
    let when = if condition.is_empty() { String::new() } else { format!(" when {{ {condition} }}") };
    let text = format!("@id(\"p\") permit ({scope}){when};");
    lint(&text, &Configuration { enforced: Enforced::all(), ..Configuration::default() })
        .into_iter()
        .map(|f| (f.severity, f.lint))
        .collect()
}

const HTTP: &str = "principal, action == Action::\"http\", resource";
const LLM: &str = "principal, action == Action::\"llm\", resource";
const CONNECT: &str = "principal, action == Action::\"connect\", resource";

#[test]
fn contradictions_are_proven() {
    let never = [(Certainty::Error, Lint::NeverMatches)];
    for (scope, condition) in [
        (HTTP, r#"context.method == "GET" && context.method == "PUT""#),
        (HTTP, r#"context.method == "GET" && !["GET", "HEAD"].contains(context.method)"#),
        (HTTP, r#"context.path == "/a" && context.path like "/b*""#),
        (HTTP, r#"context.path like "/b*" && !(context.path like "/b*")"#),
        (HTTP, r#"context.port == 80 && context.port > 80"#),
        (HTTP, r#"[80, 81].contains(context.port) && context.port > 81"#),
        (HTTP, r#"context.hour == 5 && (context.hour > 6 || context.hour < 4)"#),
        (HTTP, r#"principal in Team::"a" && principal in Team::"b""#),
        (HTTP, r#"principal in Team::"a" && principal in Tenant::"acme""#),
        (HTTP, r#"principal == Agent::"x" && principal == Agent::"y""#),
        (HTTP, r#"principal in Team::"a" && !(principal has team)"#),
        (HTTP, r#"principal has team && principal.team == Team::"a" && principal in Team::"b""#),
        (HTTP, r#"principal.tenant == Tenant::"acme" && principal == Agent::"x""#),
        (HTTP, r#"principal.hasTag("r") && principal.getTag("r") == "a" && principal.getTag("r") == "b""#),
        (HTTP, r#"resource in HostSet::"mirrors" && resource.name like "*.example.com""#),
        (HTTP, r#"resource == Host::"packages.test" && resource in HostSet::"saas""#),
        (r#"principal in Team::"a", action == Action::"http", resource"#, r#"principal in Team::"b""#),
        (
            r#"principal, action == Action::"http", resource in HostSet::"mirrors""#,
            r#"resource == Host::"api.example.com""#,
        ),
        (CONNECT, r#"context.ip.isInRange(ip("10.0.0.0/8")) && context.ip.isIpv6()"#),
        (CONNECT, r#"resource in NetworkSet::"offices" && context.ip.isInRange(ip("10.0.0.0/8"))"#),
        (CONNECT, r#"resource in NetworkSet::"offices" && resource in NetworkSet::"lab""#),
        (
            r#"principal, action == Action::"connect", resource in NetworkSet::"offices""#,
            r#"resource == Network::"198.51.100.7""#,
        ),
        (LLM, r#"context.llm.model == "gpt-5" && context.llm.model like "o*""#),
        (LLM, r#"context.llm.tokens_estimated > 5 && context.llm.tokens_estimated < 6"#),
        (LLM, r#"context.llm.stream && !context.llm.stream"#),
        (LLM, r#"context.findings.contains("x") && !(context.findings.contains("x"))"#),
        (LLM, r#"resource in Provider::"openai" && resource == Model::"other/x""#),
        (
            r#"principal, action == Action::"tool", resource == Tool::"jira/create""#,
            r#"context.tool.server == "jira" && context.tool.name == "delete""#,
        ),
        (CONNECT, r#"if context.port == 80 then context.port == 81 else context.port == 80"#),
    ] {
        assert_eq!(found(scope, condition), never, "{condition}");
    }
}

#[test]
fn what_can_match_is_left_alone() {
    for (scope, condition) in [
        (HTTP, ""),
        (HTTP, r#"context.method == "GET" && (context.path == "/a" || context.path like "/a/*")"#),
        (HTTP, r#"context.method == "GET" || context.method == "PUT""#),
        (HTTP, r#"principal in Team::"a" && principal in Project::"b""#),
        (HTTP, r#"principal in Team::"acme/a" && principal in Tenant::"acme""#),
        (HTTP, r#"resource in HostSet::"saas" && resource.name like "*.b.example.com""#),
        (HTTP, r#"context.port + 1 == 81"#),
        (CONNECT, r#"resource in NetworkSet::"offices" && !(context.ip.isInRange(ip("203.0.113.128/25")))"#),
        ("principal, action, resource", r#"resource is Host && resource.name == "api.example.com""#),
    ] {
        assert_eq!(found(scope, condition), [], "{condition}");
    }
}

/// Data of another day may have an ASN's prefixes in another country, so nothing is proven by them.
#[test]
fn geo_data_prove_nothing() {
    let geo = crate::set::tests::geo(
        &[(1, &["203.0.113.0/24"]), (2, &["198.51.100.0/24"])],
        &[("FR", &["203.0.113.0/24"])],
    );
    let surroundings = Surroundings { geo, ..Surroundings::default() };
    let found = |text: &str| {
        let set = PolicySet::parse_in(text, &sets(), &surroundings).unwrap_or_else(|e| panic!("{e:?}"));
        let found = set.lint(text, &Configuration::default()).into_iter();
        found.map(|f| (f.severity, f.lint)).collect::<Vec<_>>()
    };
    let of = |condition: &str| {
        format!(
            "@id(\"p\") permit (principal, action == Action::\"connect\", resource) when {{ {condition} }};\n"
        )
    };
    for condition in [
        r#"resource in Asn::"AS1" && resource in Asn::"AS2""#,
        r#"resource in Asn::"AS2" && resource in Country::"FR""#,
        r#"resource in Asn::"AS1" && !(resource in Country::"FR")"#,
        r#"resource in Asn::"AS1" && resource in NetworkSet::"lab""#,
        r#"resource in Country::"FR" && resource == Network::"198.51.100.7""#,
    ] {
        assert_eq!(found(&of(condition)), [], "{condition}");
    }
    let forbid =
        "@id(\"no\") forbid (principal, action == Action::\"connect\", resource in Country::\"FR\");";
    assert_eq!(found(&format!("{}{forbid}", of(r#"resource in Asn::"AS1""#))), []);
    // Whatever the data say.
    let never = [(Certainty::Error, Lint::NeverMatches)];
    assert_eq!(found(&of(r#"resource in Asn::"AS1" && !(resource in Asn::"AS1")"#)), never);
    let covered = [(Certainty::Error, Lint::CoveredByForbid)];
    assert_eq!(found(&format!("{}{forbid}", of(r#"resource in Country::"FR""#))), covered);
}

#[test]
fn what_may_fail_is_only_suspected() {
    let suspected = [(Certainty::Warning, Lint::NeverMatches)];
    assert_eq!(
        found(HTTP, r#"9223372036854775807 + context.port > 0 && context.port == 1 && context.port == 2"#),
        suspected
    );
    let one_of_two = found(
        r#"principal, action in [Action::"http", Action::"tls"], resource"#,
        r#"action == Action::"http" && context.port == 80"#,
    );
    assert_eq!(one_of_two, suspected);
}

#[test]
fn a_permit_below_a_forbid_is_proven() {
    let by = |permit: &str, forbid: &str| {
        let text = format!("@id(\"no\") {forbid};\n@id(\"p\") {permit};");
        let found = lint(&text, &Configuration::default()).into_iter();
        found.filter(|f| f.lint != Lint::Moot).map(|f| (f.severity, f.line.unwrap())).collect::<Vec<_>>()
    };
    let a = r#"permit (principal in Team::"a", action == Action::"http", resource) when { context.path == "/admin/x" }"#;
    for forbid in [
        r#"forbid (principal, action, resource)"#,
        r#"forbid (principal, action in Action::"use", resource) when { context.path like "/admin/*" }"#,
        r#"forbid (principal in Tenant::"default", action == Action::"http", resource)"#,
        r#"forbid (principal, action == Action::"http", resource) unless { context.path == "/y" }"#,
        r#"forbid (principal, action == Action::"http", resource) when { principal in [Team::"a", Team::"b"] }"#,
    ] {
        assert_eq!(by(a, forbid), [(Certainty::Error, 2)], "{forbid}");
    }
    for forbid in [
        r#"forbid (principal in Team::"b", action == Action::"http", resource)"#,
        r#"forbid (principal, action == Action::"tls", resource)"#,
        r#"forbid (principal, action == Action::"http", resource) when { context.path like "/b*" }"#,
        r#"forbid (principal, action == Action::"http", resource) when { context.hour > 8 }"#,
    ] {
        assert_eq!(by(a, forbid), [], "{forbid}");
    }
    // A limit of what is forbidden limits nothing; an alert still tells.
    let all = r#"forbid (principal, action == Action::"http", resource)"#;
    let limit = r#"@effect("rate-limit") @limit("1 requests/second") permit (principal, action == Action::"http", resource)"#;
    assert_eq!(by(limit, all), [(Certainty::Warning, 2)]);
    assert_eq!(by(r#"@effect("alert") permit (principal, action == Action::"http", resource)"#, all), []);
}

#[test]
fn actions_that_nothing_asks_about_are_refused() {
    let configuration =
        Configuration { enforced: Enforced::of(&["connect", "tls"]).unwrap(), ..Configuration::default() };
    let of = |scope: &str| {
        let text = format!("@id(\"p\") permit (principal, {scope}, resource);");
        lint(&text, &configuration)
            .into_iter()
            .map(|f| (f.severity, f.lint, f.column.unwrap()))
            .collect::<Vec<_>>()
    };
    let refused = |column| (Certainty::Error, Lint::NotEnforced, column);
    assert_eq!(of(r#"action == Action::"http""#), [refused(39)]);
    assert_eq!(of(r#"action in [Action::"tls", Action::"http"]"#), [refused(55)]);
    assert_eq!(of(r#"action in Action::"use""#), [refused(39)]);
    assert_eq!(of(r#"action in Action::"reach""#), []);
    assert_eq!(of("action"), []);
    assert!(Enforced::of(&["htpt"]).is_err());
    // What is about a group needs to fit only what is asked about.
    let text =
        "@id(\"p\") permit (principal, action in Action::\"use\", resource) when { context.path == \"/\" };";
    assert_eq!(lint(text, &Configuration::default()), []);
    let text = "@id(\"p\") forbid (principal, action == Action::\"receive\", resource);";
    let found = lint(text, &Configuration::default());
    assert_eq!((found[0].lint, found.len()), (Lint::NonePermits, 1));
    assert!(found[0].message.contains("asked of each answer"), "{found:?}");
}

#[test]
fn unknown_principals_are_suspected_where_agents_are_known() {
    let agents = [agent("web", "research")];
    let text = "@id(\"p\")\npermit (principal in Team::\"reserch\", action == Action::\"http\", resource)\nwhen { principal != Agent::\"acme/x\" };\n@id(\"q\") permit (principal == Agent::\"web\", action == Action::\"tls\", resource);";
    assert_eq!(lint(text, &Configuration::default()), []);
    let found = lint(text, &Configuration { agents: Some(&agents), ..Configuration::default() });
    let told: Vec<_> =
        found.iter().map(|f| (f.severity, f.lint, f.line.unwrap(), f.column.unwrap())).collect();
    let warned = |line, column| (Certainty::Warning, Lint::UnknownPrincipal, line, column);
    assert_eq!(told, [warned(2, 22), warned(3, 21)]);
    assert!(found[0].message.contains("`Team::\"default/reserch\"`"), "{found:?}");
}

#[test]
fn former_names_of_methods_are_told() {
    let text = r#"@id("llm") permit (principal, action == Action::"llm", resource) when { context.llm.end_user == "message/send" };
@id("tool") permit (principal, action == Action::"tool", resource)
when { ["SendMessage", "message/stream"].contains(context.tool.method) || context.tool.method == "tasks/get" };
@id("no") forbid (principal, action == Action::"tool", resource) when { context.tool.method == "message/send" };"#;
    let found = lint(text, &Configuration::default());
    let told: Vec<_> = found.iter().map(|f| (f.lint, f.line.unwrap(), f.column.unwrap())).collect();
    assert_eq!(told, [(Lint::FormerName, 3, 24), (Lint::FormerName, 4, 96)], "{found:?}");
    assert!(found[0].severity == Certainty::Warning && found[0].remedy.contains("SendStreamingMessage"));
}

#[test]
fn content_that_passes_unread_is_told() {
    let rules = r#"
        @id("no-admin") forbid (principal, action == Action::"http", resource) when { context.path like "/admin*" };
        @id("other") forbid (principal in Team::"b", action == Action::"http", resource == Host::"packages.test");
    "#;
    let moot = |opaque: &str, agents: Option<&[Agent]>| {
        let text = format!("{rules}\n@id(\"opaque\") {opaque};");
        let found = lint(&text, &Configuration { agents, ..Configuration::default() }).into_iter();
        found.filter(|f| f.lint == Lint::Moot).filter_map(|f| f.policy).collect::<Vec<_>>()
    };
    let tunnel =
        r#"permit (principal in Team::"a", action == Action::"tunnel", resource in HostSet::"saas")"#;
    assert_eq!(moot(tunnel, None), ["no-admin"]);
    assert_eq!(
        moot(r#"permit (principal, action == Action::"tunnel", resource)"#, None),
        ["no-admin", "other"]
    );
    let unknown =
        r#"permit (principal, action == Action::"tunnel", resource) when { context.protocol == "unknown" }"#;
    assert_eq!(moot(unknown, None), [""; 0]);
    let hidden = unknown.replace("unknown", "tls_ech");
    assert_eq!(moot(&hidden, None), ["no-admin", "other"]);
    assert_eq!(moot(tunnel, Some(&[agent("x", "b")])), [""; 0], "no agent is in that team");
    assert_eq!(moot(tunnel, Some(&[agent("x", "a")])), ["no-admin"]);
    let direct = |condition: &str| {
        format!(r#"permit (principal, action == Action::"direct", resource) when {{ {condition} }}"#)
    };
    assert_eq!(moot(&direct("context.port == 443"), None), ["no-admin"]);
    assert_eq!(moot(&direct("context.port == 53"), None), [""; 0]);
    assert_eq!(moot(&direct(r#"context.protocol == "udp""#), None), [""; 0]);
}

/// Whatever a rule on content is about: bodies, models or tools.
#[test]
fn rules_on_bodies_models_and_tools_are_moot_where_these_are_hidden() {
    let rules = r#"
        @id("keys") forbid (principal, action == Action::"send", resource == Host::"packages.test") when { context.findings.contains("private_key") };
        @id("bodies") permit (principal, action == Action::"send", resource);
        @id("gpt") forbid (principal, action == Action::"llm", resource in Provider::"openai") when { context.llm.stream };
        @id("models") permit (principal, action == Action::"llm", resource);
        @id("jira") permit (principal, action == Action::"tool", resource in ToolServer::"jira");
    "#;
    let moot = |condition: &str| {
        let text = format!(
            "{rules}\n@id(\"opaque\") permit (principal, action == Action::\"tunnel\", resource in HostSet::\"mirrors\") when {{ {condition} }};"
        );
        let found = lint(&text, &Configuration::default()).into_iter().filter(|f| f.lint == Lint::Moot);
        found.map(|f| (f.policy.unwrap_or_default(), f.message)).collect::<Vec<_>>()
    };
    let ids = |found: &[(String, String)]| found.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    let tls = moot(r#"context.protocol == "tls""#);
    assert_eq!(ids(&tls), ["keys", "bodies", "gpt", "models", "jira"]);
    assert!(
        tls.iter().all(|(_, message)| message.contains("in TLS to `packages.test`, of agents")),
        "{tls:?}"
    );
    // What asks about messages has them read, and none is read as a call.
    let messages = moot(r#"context.protocol == "websocket""#);
    assert_eq!(ids(&messages), ["gpt", "models", "jira"]);
    assert!(
        messages.iter().all(|(_, message)| message.contains("in messages of WebSockets to `packages.test`")),
        "{messages:?}"
    );
    assert_eq!(ids(&moot(r#"context.protocol == "unknown""#)), [""; 0]);
}

#[test]
fn much_is_bounded() {
    let any: Vec<String> = (0..20)
        .map(|n| format!(r#"(context.path == "/{n}" || context.path like "/{n}/*" || context.port == {n})"#))
        .collect();
    let text = format!("@id(\"p\") permit ({HTTP}) when {{ {} }};", any.join(" && "));
    let found = lint(&text, &Configuration::default());
    assert!(found.iter().all(|f| f.severity == Certainty::Warning), "{found:?}");
    let many: String = (0..50)
        .map(|n| format!("@id(\"f{n}\") forbid ({HTTP}) when {{ context.path == \"/{n}\" }};\n@id(\"p{n}\") permit ({HTTP}) when {{ context.path == \"/x{n}\" }};\n"))
        .collect();
    assert_eq!(lint(&many, &Configuration::default()), []);
}

/// What the platform leaves nothing of is told as a warning, where that can be told: sets of one name are two.
#[test]
fn what_the_platform_denies_is_suspected() {
    let above = r#"@id("p") permit (principal, action in Action::"reach", resource);
        @id("web") permit (principal, action == Action::"http", resource) when { context.path like "/public/*" };
        @id("no") forbid (principal, action == Action::"http", resource) when { context.method == "DELETE" };
        @id("listed") forbid (principal, action == Action::"http", resource in HostSet::"saas");"#;
    let told = |scope: &str, condition: &str, platform| {
        let text = format!("@id(\"x\") permit ({scope}) when {{ {condition} }};");
        let found = lint(&text, &Configuration { platform, ..Configuration::default() }).into_iter();
        found.map(|f| (f.severity, f.lint, f.message)).collect::<Vec<_>>()
    };
    for (scope, condition, message) in [
        (
            HTTP,
            r#"context.method == "DELETE" && context.path == "/public/x""#,
            Some("`no` of the platform's policy forbids"),
        ),
        (HTTP, r#"context.path == "/private""#, Some("permits nothing of what it permits")),
        ("principal, action == Action::\"tunnel\", resource", "context.port == 443", Some("permits nothing")),
        (HTTP, r#"context.path == "/public/x""#, None),
        (HTTP, r#"context.path == "/public/x" && resource in HostSet::"saas""#, None),
        (CONNECT, "context.port == 443", None),
    ] {
        assert_eq!(told(scope, condition, None), [], "{condition}");
        let told = told(scope, condition, Some(above));
        match message {
            None => assert_eq!(told, [], "{condition}"),
            Some(message) => {
                let [(severity, lint, said)] = told.as_slice() else { panic!("{condition}: {told:?}") };
                assert_eq!((*severity, *lint), (Certainty::Warning, Lint::PlatformDenies));
                assert!(said.contains(message), "{said}");
            }
        }
    }
}

/// What is proven is refused unless it is accepted by its name, or its kind; what is accepted is told.
#[test]
fn what_is_accepted_is_applied_and_told() {
    let text = format!(
        "@id(\"no\") forbid ({HTTP});\n@id(\"a\") permit ({HTTP});\n@id(\"b\") permit ({HTTP}) when {{ context.path == \"/b\" }};\n@id(\"c\") permit ({HTTP}) when {{ context.path == \"/\" && context.path == \"/c\" }};"
    );
    let set = PolicySet::parse_in(&text, &sets(), &Surroundings::default()).unwrap();
    let apply = |accepted: &[&str]| {
        let accepted: Vec<Accepted> = accepted.iter().map(|name| name.parse().unwrap()).collect();
        set.lint_to_apply(&text, &Configuration::default(), &accepted)
    };
    let refused = |accepted: &[&str]| {
        let problems = apply(accepted).unwrap_err().problems;
        problems.into_iter().map(|p| p.policy.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(refused(&[]), ["a", "b", "c"]);
    let told = &apply(&[]).unwrap_err().problems[0].message;
    assert!(told.ends_with(", or accept it (`--accept-findings covered-by-forbid:a`)"), "{told}");
    assert_eq!(refused(&["covered-by-forbid:a"]), ["b", "c"]);
    assert_eq!(refused(&["covered-by-forbid"]), ["c"]);
    assert_eq!(refused(&["covered-by-forbid", "never-matches:a"]), ["c"], "of another policy");
    let (findings, acceptance) = apply(&["covered-by-forbid", "never-matches:c", "not-enforced"]).unwrap();
    assert_eq!(acceptance.by, ["covered-by-forbid", "never-matches:c"], "what accepted nothing is not kept");
    assert_eq!(acceptance.findings, ["never-matches:c", "covered-by-forbid:a", "covered-by-forbid:b"]);
    assert!(findings.iter().all(|f| f.severity == Certainty::Accepted), "{findings:?}");
    for (name, said) in [
        ("invalid", "correct it"),
        ("moot:a", "is only ever a warning"),
        ("covered", "is no finding"),
        ("", "is no finding"),
        ("never-matches:", "is no policy's id"),
        ("never-matches:a b", "is no policy's id"),
    ] {
        let refused = name.parse::<Accepted>().unwrap_err().to_string();
        assert!(refused.contains(said), "{name}: {refused}");
    }
    for lint in Lint::ALL {
        let json = serde_json::to_string(&lint).unwrap();
        assert_eq!(json.trim_matches('"'), lint.name());
    }
}

/// Too many to tell are too many to be overlooked: what is not accepted is refused, wherever it stands.
#[test]
fn among_many_that_are_accepted_none_slips_through() {
    let many: String = (0..150)
        .map(|n| format!("@id(\"p{n}\") permit ({HTTP}) when {{ context.path == \"/{n}\" }};\n"))
        .collect();
    let never =
        format!("@id(\"last\") permit ({CONNECT}) when {{ context.port == 1 && context.port == 2 }};");
    let text = format!("@id(\"no\") forbid ({HTTP});\n{many}{never}");
    let set = PolicySet::parse_in(&text, &sets(), &Surroundings::default()).unwrap();
    let all = ["covered-by-forbid".parse().unwrap()];
    let problems = set.lint_to_apply(&text, &Configuration::default(), &all).unwrap_err().problems;
    assert_eq!(problems.iter().map(|p| p.policy.as_deref()).collect::<Vec<_>>(), [Some("last")]);
    let all = ["covered-by-forbid".parse().unwrap(), "never-matches:last".parse().unwrap()];
    let (told, acceptance) = set.lint_to_apply(&text, &Configuration::default(), &all).unwrap();
    assert_eq!((told.len(), acceptance.findings.len()), (FINDINGS_MAX, 151));
}

/// What an effect reads all the same is not moot; where it can't count, it is.
#[test]
fn content_that_is_read_all_the_same_is_not_moot() {
    let rules = r#"
        @id("no-admin") forbid (principal, action == Action::"http", resource) when { context.path like "/admin*" };
        @id("opaque") permit (principal, action == Action::"tunnel", resource) when { context.protocol == "tls" };
    "#;
    let excludes = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let (none, some) = (excludes(&[]), excludes(&["*.bank.test", "pinned.test"]));
    let read = ReadTls::new(Some(&none), Vec::new());
    let excluding = ReadTls::new(Some(&some), Vec::new());
    let off = ReadTls::new(None, Vec::new());
    let is_moot = |reads: &str, reading: Option<&ReadTls>| {
        let text = format!("{rules}\n{reads}");
        let found = lint(&text, &Configuration { reading, ..Configuration::default() });
        found.iter().any(|f| f.lint == Lint::Moot && f.policy.as_deref() == Some("no-admin"))
    };
    let all = r#"@id("read") @effect("intercept") permit (principal, action == Action::"tunnel", resource);"#;
    let by_tls = all.replace("tunnel", "tls");
    for reading in [None, Some(&read)] {
        assert!(is_moot("", reading));
        assert!(!is_moot(all, reading) && !is_moot(&by_tls, reading));
    }
    // Where nobody can read it, it is denied rather than passed; of what is excluded the effect says nothing.
    assert!(!is_moot(all, Some(&off)));
    assert!(is_moot(all, Some(&excluding)));
    for some_only in [
        r#"@id("read") @effect("intercept") permit (principal in Team::"a", action == Action::"tunnel", resource);"#,
        r#"@id("read") @effect("intercept") permit (principal, action == Action::"tunnel", resource in HostSet::"saas");"#,
        r#"@id("read") @effect("intercept") permit (principal, action == Action::"tls", resource) when { context.alpn.contains("h2") };"#,
        r#"@id("read") @effect("intercept") permit (principal, action == Action::"tunnel", resource) when { context.port == 443 };"#,
    ] {
        assert!(is_moot(some_only, Some(&read)), "{some_only}");
    }
    // Two that are all of it together.
    let halves = r#"@id("r1") @effect("intercept") permit (principal, action == Action::"tunnel", resource) when { context.port == 443 };
        @id("r2") @effect("intercept") permit (principal, action == Action::"tunnel", resource) when { context.port != 443 };"#;
    assert!(!is_moot(halves, Some(&read)));
}

#[test]
fn rules_about_what_is_never_read_are_suspected() {
    let excludes = ["*.bank.test".to_owned(), "pinned.test".to_owned()];
    let excluding = ReadTls::new(Some(&excludes), vec!["llm.bank.test".to_owned()]);
    let off = ReadTls::new(None, vec!["llm.test".to_owned()]);
    let told = |condition: &str, reading: Option<&ReadTls>| {
        let text = format!("@id(\"p\") forbid ({HTTP}) when {{ {condition} }};");
        let found = lint(&text, &Configuration { reading, ..Configuration::default() });
        found.into_iter().map(|f| (f.severity, f.lint)).collect::<Vec<_>>()
    };
    let suspected = [(Certainty::Warning, Lint::NeverRead)];
    for condition in [
        r#"resource.name == "pinned.test""#,
        r#"resource.name like "*.bank.test" && resource.name != "llm.bank.test""#,
        r#"resource == Host::"pinned.test" && context.path like "/admin*""#,
        r#"context.scheme == "https" && resource == Host::"pinned.test""#,
    ] {
        assert_eq!(told(condition, None), [], "nothing is known of the configuration");
        assert_eq!(told(condition, Some(&excluding)), suspected, "{condition}");
    }
    for condition in [
        "true",
        r#"resource.name like "*.test""#,
        r#"resource.name like "*.bank.test""#,
        r#"context.scheme == "https" && resource == Host::"api.test""#,
    ] {
        assert_eq!(told(condition, Some(&excluding)), [], "{condition}");
    }
    for (condition, is_told) in [
        (r#"context.scheme == "https""#, false),
        (r#"context.scheme == "https" && resource == Host::"api.test""#, true),
        (r#"context.port == 443 && resource == Host::"api.test""#, true),
        (r#"context.scheme == "https" && resource == Host::"llm.test""#, false),
        (r#"resource == Host::"api.test""#, false),
    ] {
        assert_eq!(!told(condition, Some(&off)).is_empty(), is_told, "{condition}");
    }
}

/// Whoever forbids some bodies rarely means all of them.
#[test]
fn a_forbid_of_bodies_alone_denies_them_all() {
    let forbid = "@id(\"keys\") forbid (principal, action == Action::\"send\", resource) when { context.findings.contains(\"private_key\") };\n";
    let told = |text: &str| {
        let found = lint(text, &Configuration::default());
        let found = found.into_iter().filter(|f| f.lint == Lint::NonePermits);
        found.map(|f| (f.severity, f.lint, f.policy)).collect::<Vec<_>>()
    };
    let keys = [(Certainty::Warning, Lint::NonePermits, Some("keys".to_owned()))];
    assert_eq!(told(forbid), keys);
    let web = "@id(\"web\") permit (principal, action == Action::\"http\", resource);\n";
    assert_eq!(told(&format!("{web}{forbid}")), keys);
    for permit in ["action == Action::\"send\"", "action in Action::\"use\"", "action"] {
        assert_eq!(told(&format!("{forbid}@id(\"rest\") permit (principal, {permit}, resource);")), []);
    }
    let tried = forbid.replace("forbid", "@mode(\"log-only\") forbid");
    assert_eq!(told(&tried), [], "what only logs has nothing asked");
    let alert = "@id(\"told\") @effect(\"alert\") permit (principal, action == Action::\"send\", resource);";
    assert_eq!(told(&format!("{forbid}{alert}")), keys, "an obligation permits nothing");
}
