//! Obligations of what the proxy decides: what they say, what is refused, what matches, and that they grant nothing.

use super::*;
use crate::effect::{Effect, Severity, Share};
use crate::kernel::LimitAction;
use crate::quota::Pace;

/// Annotations before a permit of everything by `http`.
fn obligation(annotations: &str) -> String {
    format!("@id(\"duty\") {annotations} permit (principal, action == Action::\"http\", resource);")
}

fn get<'a>(agent: &'a clawgress_identity::Agent, host: &'a crate::Host, path: &'a str) -> Request<'a> {
    let operation = Operation::Http {
        host,
        port: 80,
        scheme: crate::Scheme::Http,
        method: "GET",
        path,
        head: crate::head::Head::none(),
    };
    Request { agent, operation }
}

fn duties(set: &PolicySet, request: &Request<'_>) -> Vec<(String, Effect, Severity)> {
    let duties = set.obligations(request).expect("evaluated");
    duties.iter().map(|o| (o.policy.to_string(), o.effect.clone(), o.severity)).collect()
}

#[test]
fn obligations_are_read_as_written() {
    let host = Host::parse("api.example.com").expect("host");
    let one = |annotations: &str| {
        let set = set(&obligation(annotations));
        assert!(set.limiters().next().is_none(), "the kernel keeps none of them");
        let duties = duties(&set, &get(&agent("web"), &host, "/"));
        assert_eq!(duties.len(), 1);
        (duties[0].1.clone(), duties[0].2)
    };
    for (limit, count, period_s, burst) in [
        ("60 requests/minute burst 10", 60, 60, 10),
        ("60 requests/minute", 60, 60, 1),
        ("5 requests/second", 5, 1, 5),
        ("1 requests/hour", 1, 3_600, 1),
    ] {
        let (effect, severity) = one(&format!("@effect(\"rate-limit\") @limit(\"{limit}\")"));
        let Effect::Limit(limit) = effect else { panic!("{effect:?}") };
        assert_eq!(limit.pace, Pace { count, period_s, burst });
        assert_eq!((limit.share, limit.over, severity), (Share::Agent, LimitAction::Drop, Severity::Medium));
        assert_ne!(limit.key, 0);
    }
    let mut keys = std::collections::BTreeSet::new();
    for share in Share::ALL {
        for effect in ["throttle", "rate-limit"] {
            let (effect, _) = one(&format!(
                "@effect(\"{effect}\") @limit(\"9 requests/second\") @per(\"{}\")",
                share.name()
            ));
            let Effect::Limit(limit) = effect else { panic!("{effect:?}") };
            assert_eq!(limit.share, share);
            keys.insert(limit.key);
        }
    }
    assert_eq!(keys.len(), 10, "each keeps its own count");
    assert_eq!(one("@effect(\"alert\")"), (Effect::Alert, Severity::Medium));
    for severity in Severity::ALL {
        let said = one(&format!("@severity(\"{}\") @effect(\"alert\")", severity.name()));
        assert_eq!(said, (Effect::Alert, severity));
    }
    for (text, seconds) in [("45s", 45), ("15m", 900), ("2h", 7_200), ("366d", 366 * 86_400)] {
        let (effect, _) = one(&format!("@effect(\"quarantine\") @for(\"{text}\")"));
        assert_eq!(effect, Effect::Quarantine(Some(seconds)));
    }
    assert_eq!(one("@effect(\"quarantine\")").0, Effect::Quarantine(None));
}

#[test]
fn tls_is_read_and_requests_are_changed_where_policy_says_so() {
    let host = Host::parse("api.example.com").expect("host");
    let text = obligation("@effect(\"transform\") @set_header(\"X-Team: pay\") @remove_header(\"X-Debug\")");
    let found = duties(&set(&text), &get(&agent("web"), &host, "/"));
    let transform = crate::transform::Transform {
        remove: Some("x-debug".into()),
        set: Some(("x-team".into(), "pay".into())),
        ..crate::transform::Transform::default()
    };
    assert_eq!(found, [("duty".to_owned(), Effect::Transform(transform), Severity::Medium)]);
    let read = |action: &str| {
        format!("@id(\"read\") @effect(\"intercept\") permit (principal, {action}, resource);")
    };
    for action in ["\"tls\"", "\"tunnel\""] {
        let set = set(&read(&format!("action == Action::{action}")));
        assert!(set.obliges_opaque());
        let agent = agent("web");
        let tls = Operation::Tls { host: &host, port: 443, alpn: &[], ja4: "" };
        let tunnel = Operation::Tunnel { host: &host, port: 443, protocol: crate::TunnelProtocol::Tls };
        for (operation, named) in [(tls, "\"tls\""), (tunnel, "\"tunnel\"")] {
            let found = duties(&set, &Request { agent: &agent, operation });
            assert_eq!(found.len(), usize::from(named == action), "{action} {named}");
        }
    }
    let both = read("action in [Action::\"tls\", Action::\"tunnel\"]");
    PolicySet::parse(&bundle(&both)).expect("both");
    for (annotations, actions, wanted) in [
        ("@effect(\"intercept\")", "action == Action::\"http\"", "`@effect(\"intercept\")` is for TLS"),
        ("@effect(\"intercept\")", "action", "`@effect(\"intercept\")` is for TLS"),
        ("@effect(\"intercept\")", "action == Action::\"connect\"", "`@effect(\"intercept\")` is for TLS"),
        ("@effect(\"transform\") @remove_header(\"x\")", "action == Action::\"tls\"", "is for requests"),
        ("@effect(\"transform\") @remove_header(\"x\")", "action", "is for requests"),
    ] {
        let text = format!("@id(\"duty\") {annotations} permit (principal, {actions}, resource);");
        let errors = PolicySet::parse(&bundle(&text)).map(|_| ()).expect_err(&text);
        assert!(errors.problems[0].message.contains(wanted), "{text}: {errors:?}");
    }
}

/// Refused for one thing alone, told so.
#[track_caller]
fn refused(annotations: &str, wanted: &str) {
    let errors = PolicySet::parse(&bundle(&obligation(annotations))).map(|_| ()).expect_err(annotations);
    let problems: Vec<String> = errors.problems.iter().map(ToString::to_string).collect();
    assert!(problems.len() == 1 && problems[0].starts_with(wanted), "{annotations}\n{wanted}\n{problems:#?}");
}

#[test]
fn a_change_that_can_not_be_made_is_refused() {
    for (annotations, wanted) in [
        (r#"@effect("transform")"#, "1:13: policy `duty`: `@effect(\"transform\")` needs what it changes"),
        (r#"@effect("transform") @set_header("Host: x")"#, "1:34: policy `duty`: policy can't change `host`"),
        (
            r#"@effect("transform") @set_header("X-A: x") @remove_header("x-a")"#,
            "1:56: policy `duty`: `x-a` is taken away and set",
        ),
        (
            r#"@effect("transform") @severity("low") @remove_header("x-a")"#,
            "1:34: policy `duty`: `@severity` is for what is told",
        ),
        (
            r#"@effect("alert") @remove_header("x-a")"#,
            "1:30: policy `duty`: `@remove_header` is for `transform`, and `alert` is none",
        ),
        (r#"@remove_header("x-a")"#, "1:13: policy `duty`: `@remove_header` says nothing without an effect"),
        (
            r#"@effect("transform") @for("9s") @remove_header("x-a")"#,
            "1:34: policy `duty`: `@for` is for `quarantine`, and `transform` is none",
        ),
    ] {
        refused(annotations, wanted);
    }
}

#[test]
fn tools_are_renamed_each_to_a_name_of_its_own() {
    let policy = |id: &str, more: &str| {
        format!(
            "@id(\"{id}\") @effect(\"transform\") {more} permit (principal, action == Action::\"llm\", resource);\n"
        )
    };
    let parse = |all: &[String]| PolicySet::parse(&bundle(&all.concat())).map(|_| ());
    let rename = |id: &str, names: &str| policy(id, &format!("@rename_tool(\"{names}\")"));
    parse(&[rename("a", "shell: run"), rename("b", "shell: run"), rename("c", "shell: do")])
        .expect("one tool, whose last name counts");
    parse(&[rename("a", "shell: run"), rename("b", "run: shell")]).expect("two, and two names");
    for (all, wanted) in [
        (
            vec![rename("b", "shell: run"), rename("a", "exec: run")],
            "1:1: policy `b`: renames a tool to `run`, as the policy `a` does another",
        ),
        (
            vec![policy("a", "@remove_tool(\"shell\") @rename_tool(\"shell: run\")")],
            "1:53: policy `a`: `shell` is taken away and renamed",
        ),
        (vec![rename("a", "shell")], "1:31: policy `a`: `shell` renames no tool"),
    ] {
        let errors = parse(&all).expect_err(wanted);
        let problems: Vec<String> = errors.problems.iter().map(ToString::to_string).collect();
        assert!(problems.len() == 1 && problems[0].starts_with(wanted), "{wanted}\n{problems:#?}");
    }
    refused(
        r#"@effect("transform") @rename_tool("shell: run")"#,
        "1:34: policy `duty`: `@rename_tool` changes calls of models",
    );
}

#[test]
fn what_is_no_obligation_is_refused_with_what_to_write() {
    for (annotations, wanted) in [
        (
            r#"@effect("rate-limit")"#,
            "1:13: policy `duty`: `@effect(\"rate-limit\")` needs a limit: put `@limit(\"60 requests/minute\")`",
        ),
        (
            r#"@effect("rate-limit") @limit("9 packets/second")"#,
            "1:35: policy `duty`: `packets` are limited for `connect`",
        ),
        (
            r#"@effect("rate-limit") @limit("0 requests/second")"#,
            "1:35: policy `duty`: a limit can't be kept at this rate: requests pass",
        ),
        (
            r#"@effect("rate-limit") @limit("9 things/second")"#,
            "1:35: policy `duty`: `things` is not a unit of such limits: write one of `requests`",
        ),
        (
            r#"@effect("rate-limit") @limit("9 requests/second") @per("workload")"#,
            "1:63: policy `duty`: `workload` is nothing a limit of requests can be for: write one of `agent`, `team`",
        ),
        (
            r#"@effect("rate-limit") @limit("9 requests/second") @for("9s")"#,
            "1:63: policy `duty`: `@for` is for `quarantine`, and `rate-limit` is none",
        ),
        (
            r#"@effect("quarantine") @limit("9 requests/second")"#,
            "1:35: policy `duty`: `@limit` is for a limit, and `quarantine` is none",
        ),
        (r#"@effect("quarantine") @for("")"#, "1:35: policy `duty`: `` is not a time"),
        (r#"@effect("quarantine") @for("15")"#, "1:35: policy `duty`: `15` is not a time"),
        (r#"@effect("quarantine") @for("m")"#, "1:35: policy `duty`: `m` is not a time"),
        (r#"@effect("quarantine") @for("15µ")"#, "1:35: policy `duty`: `15µ` is not a time"),
        (
            r#"@effect("quarantine") @for("99999999999999999999d")"#,
            "1:35: policy `duty`: `99999999999999999999d` is not a time",
        ),
        (
            r#"@effect("quarantine") @for("0s")"#,
            "1:35: policy `duty`: a quarantine that ends by itself lasts",
        ),
        (
            r#"@effect("quarantine") @for("367d")"#,
            "1:35: policy `duty`: a quarantine that ends by itself lasts",
        ),
        (
            r#"@effect("alert") @for("9s")"#,
            "1:30: policy `duty`: `@for` is for `quarantine`, and `alert` is none",
        ),
        (r#"@effect("alert") @severity("huge")"#, "1:30: policy `duty`: `huge` is not a severity"),
        (r#"@effect("deny")"#, "1:13: policy `duty`: what denies is a `forbid`"),
        (r#"@effect("allow")"#, "1:13: policy `duty`: `@effect(\"allow\")` is not available yet"),
        (r#"@severity("low")"#, "1:13: policy `duty`: `@severity` says nothing without an effect"),
        (r#"@for("9s")"#, "1:13: policy `duty`: `@for` says nothing without an effect"),
    ] {
        refused(annotations, wanted);
    }
    let forbid = obligation("@effect(\"alert\")").replace("permit", "forbid");
    let errors = PolicySet::parse(&bundle(&forbid)).map(|_| ()).expect_err("no forbid");
    assert!(errors.problems[0].message.starts_with("an effect is for `permit` only"));
}

#[test]
fn they_match_as_guards_do_and_grant_nothing() {
    let set = set(r#"
        @id("b-alert") @effect("alert") permit (principal, action in [Action::"http", Action::"tunnel"], resource) when { resource.name like "*.example.com" };
        @id("a-pace") @effect("throttle") @limit("9 requests/second") permit (principal == Agent::"web", action in [Action::"http", Action::"tls"], resource);
        @id("c-out") @effect("quarantine") permit (principal, action == Action::"http", resource) when { context.path like "/secret*" };
        @id("guard") permit (principal, action == Action::"http", resource) when { context.path == "/ok" };
    "#);
    let (host, other) =
        (Host::parse("api.example.com").expect("host"), Host::parse("example.org").expect("host"));
    let (web, bot) = (agent("web"), agent("bot"));
    let ids =
        |request: &Request<'_>| duties(&set, request).into_iter().map(|(id, ..)| id).collect::<Vec<_>>();
    assert_eq!(ids(&get(&web, &host, "/ok")), ["a-pace", "b-alert"]);
    assert_eq!(ids(&get(&web, &host, "/secret")), ["a-pace", "b-alert", "c-out"], "also where it is denied");
    assert_eq!(ids(&get(&bot, &host, "/ok")), ["b-alert"]);
    assert!(ids(&get(&bot, &other, "/ok")).is_empty());
    let tls =
        Request { agent: &web, operation: Operation::Tls { host: &other, port: 443, alpn: &[], ja4: "" } };
    assert_eq!(ids(&tls), ["a-pace"]);
    let tunnel = Operation::Tunnel { host: &host, port: 443, protocol: crate::TunnelProtocol::Tls };
    assert_eq!(ids(&Request { agent: &web, operation: tunnel }), ["b-alert"]);
    assert!(set.decide(&get(&web, &host, "/ok")).is_allow());
    let denied = set.decide(&get(&web, &host, "/secret"));
    assert_eq!((denied.verdict, denied.policies.len()), (Err(DropReason::PolicyDenied), 0));
}

#[test]
fn one_that_cannot_be_evaluated_denies() {
    let set = set(r#"
        @id("ok") @effect("alert") permit (principal, action == Action::"http", resource);
        @id("team") @effect("alert") permit (principal, action == Action::"http", resource)
        when { 9223372036854775807 + context.port > 0 };
    "#);
    let host = Host::parse("api.example.com").expect("host");
    let agent = agent("web");
    let error = set.obligations(&get(&agent, &host, "/")).expect_err("an overflow");
    assert_eq!(
        (error.verdict, error.policies.as_slice()),
        (Err(DropReason::PolicyError), &["team".to_owned()][..])
    );
}

#[test]
fn a_guard_that_only_logs_decides_nothing() {
    use crate::effect::Would;
    let text = |mode: &str| {
        format!(
            r#"@id("base") permit (principal in Team::"research", action == Action::"http", resource);
            @id("no-x") {mode} forbid (principal, action == Action::"http", resource) when {{ context.path == "/x" }};
            @id("all") {mode} permit (principal, action == Action::"http", resource);
            @id("odd") {mode} forbid (principal, action == Action::"http", resource)
            when {{ context.path == "/odd" && 9223372036854775807 + context.port > 0 }};
            @id("tell") @effect("alert") permit (principal, action == Action::"http", resource) when {{ context.path == "/x" }};"#
        )
    };
    let (tried, without) = (set(&text("@mode(\"log-only\")")), set(&text("")));
    let host = Host::parse("api.example.com").expect("host");
    let stranger = clawgress_identity::Agent { team: None, ..agent("other") };
    let member = clawgress_identity::Agent { team: Some("research".to_owned()), ..agent("web") };
    let would = |agent: &clawgress_identity::Agent, path: &str| -> Vec<(String, Effect)> {
        let request = get(agent, &host, path);
        assert_eq!(tried.obligations(&request), tried.obligations_by_oracle(&request));
        duties(&tried, &request).into_iter().map(|(policy, effect, _)| (policy, effect)).collect()
    };
    let says = |policy: &str, would| (policy.to_owned(), Effect::Would(would));
    assert_eq!(would(&member, "/"), [says("all", Would::Permit)]);
    let told = [says("all", Would::Permit), says("no-x", Would::Forbid), ("tell".to_owned(), Effect::Alert)];
    assert_eq!(would(&member, "/x"), told);
    assert_eq!(would(&stranger, "/odd"), [says("all", Would::Permit), says("odd", Would::Fail)]);
    for path in ["/", "/x", "/odd"] {
        assert_eq!(tried.decide(&get(&member, &host, path)).policies, ["base"], "{path}");
        assert!(!tried.decide(&get(&stranger, &host, path)).is_allow(), "{path}");
        // Without the mode they decide.
        assert_eq!(without.decide(&get(&member, &host, path)).is_allow(), path == "/");
        assert_eq!(without.decide(&get(&stranger, &host, path)).is_allow(), path == "/");
    }
    assert!(
        !set(r#"@id("a") @mode("log-only") permit (principal, action == Action::"http", resource);"#)
            .decide(&get(&member, &host, "/"))
            .is_allow()
    );
}

#[test]
fn modes_that_say_nothing_are_refused() {
    for (annotations, scope, wanted) in [
        ("@mode(\"audit\")", "action == Action::\"http\"", "1:10: policy `a`: `audit` is not a mode"),
        (
            "@mode(\"log-only\")",
            "action in [Action::\"connect\", Action::\"http\"]",
            "1:58: policy `a`: `@mode(\"log-only\")` is either for `connect` alone, for a `forbid` of `direct` alone, or for what the proxy decides",
        ),
        (
            "@mode(\"log-only\")",
            "action in [Action::\"tls\", Action::\"direct\"]",
            "`@mode(\"log-only\")` is either for `connect` alone",
        ),
        (
            "@mode(\"log-only\") @effect(\"alert\")",
            "action == Action::\"http\"",
            "1:10: policy `a`: `@mode` is for guards",
        ),
        (
            "@mode(\"log-only\") @severity(\"high\")",
            "action == Action::\"http\"",
            "1:28: policy `a`: `@severity` says nothing without an effect",
        ),
        ("@effect(\"log-only\")", "action == Action::\"http\"", "write `@mode(\"log-only\")` on it"),
    ] {
        let text = format!("@id(\"a\") {annotations} permit (principal, {scope}, resource);");
        let bundle = PolicyBundle { text, ..PolicyBundle::default() };
        let errors = PolicySet::parse(&bundle).expect_err(annotations);
        let told = errors.problems[0].to_string();
        assert!(told.contains(wanted), "{told}");
    }
}

/// The kernel waits for nobody: what planes tell is what alerts, quarantines and guards on trial are asked of.
#[test]
fn what_planes_tell_of_connect_has_what_follows() {
    let text = r#"
@id("net") permit (principal, action == Action::"connect", resource);
@id("odd") @effect("alert") @severity("high") permit (principal, action == Action::"connect", resource) when { context.port - 8000 > 0 };
@id("trap") @effect("quarantine") @for("15m") permit (principal in Team::"t", action == Action::"connect", resource)
when { context.ip.isInRange(ip("198.51.100.0/24")) && context.protocol == "udp" };
@id("try") @mode("log-only") forbid (principal, action == Action::"connect", resource) when { context.port == 22 };
@id("lost") @mode("log-only") permit (principal, action == Action::"connect", resource) when { 9223372036854775800 + context.port > 0 };
"#;
    let (tried, without) = (set(text), set(text.lines().nth(1).unwrap()));
    let mut member = agent("web");
    member.team = Some("t".to_owned());
    assert!(tried.asks_told() && !without.asks_told());
    let address = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    let told = |ip: &str, port, transport| {
        let told = tried.told(&member, address(ip), port, transport, false);
        assert_eq!(told, tried.told_by_oracle(&member, address(ip), port, transport, false));
        told.iter().map(|o| format!("{} {}", o.policy, o.effect.name())).collect::<Vec<_>>()
    };
    assert_eq!(told("203.0.113.1", 8001, Transport::Tcp), ["lost would-fail", "odd alert"]);
    assert_eq!(told("203.0.113.1", 7, Transport::Tcp), ["lost would-permit"]);
    assert_eq!(told("203.0.113.1", 22, Transport::Tcp), ["lost would-fail", "try would-forbid"]);
    assert_eq!(told("198.51.100.7", 443, Transport::Udp), ["lost would-fail", "trap quarantine"]);
    let tables = crate::kernel::compile(&tried, std::slice::from_ref(&member)).unwrap();
    assert_eq!(
        tables,
        crate::kernel::compile(&without, std::slice::from_ref(&member)).unwrap(),
        "no table knows of it"
    );
    for port in [22, 443, 8001] {
        let reach = |set: &PolicySet| set.reach(&member, address("198.51.100.7"), port, Transport::Udp);
        assert_eq!(reach(&tried), reach(&without), "it decides nothing");
        assert!(tried.limits(&member, address("198.51.100.7"), port, Transport::Udp).is_empty());
    }
    // The platform's count as well, under their names.
    let platform = PolicySet::parse_for(
        &clawgress_identity::PolicyOwner::Platform,
        text,
        &crate::NamedSets::default(),
        &crate::Surroundings::default(),
    );
    let both =
        tried.under(&platform.unwrap()).told(&member, address("203.0.113.1"), 8001, Transport::Tcp, false);
    let both: Vec<&str> = both.iter().map(|o| o.policy.as_ref()).collect();
    assert_eq!(both, ["lost", "odd", "platform/lost", "platform/odd"]);
}

/// What goes direct has what follows on that, and on its `connect`; what does not has the latter alone.
#[test]
fn what_goes_direct_has_what_follows() {
    let text = r#"
@id("net") permit (principal, action in [Action::"connect", Action::"direct"], resource);
@id("met") @effect("alert") permit (principal, action == Action::"connect", resource);
@id("past") @effect("alert") @severity("high") permit (principal, action == Action::"direct", resource) when { context.port - 8000 > 0 };
@id("trap") @effect("quarantine") @for("15m") permit (principal, action == Action::"direct", resource) when { context.protocol == "udp" };
@id("try") @mode("log-only") forbid (principal, action == Action::"direct", resource) when { context.port == 22 };
"#;
    let (tried, without) = (set(text), set(text.lines().nth(1).unwrap()));
    let (member, ip) = (agent("web"), "203.0.113.1".parse::<std::net::IpAddr>().unwrap());
    let told = |port, transport, went_direct| {
        let told = tried.told(&member, ip, port, transport, went_direct);
        assert_eq!(told, tried.told_by_oracle(&member, ip, port, transport, went_direct));
        told.iter().map(|o| format!("{} {}", o.policy, o.effect.name())).collect::<Vec<_>>()
    };
    assert!(tried.asks_told());
    assert_eq!(told(8001, Transport::Tcp, false), ["met alert"]);
    assert_eq!(told(8001, Transport::Tcp, true), ["met alert", "past alert"]);
    assert_eq!(told(22, Transport::Udp, true), ["met alert", "trap quarantine", "try would-forbid"]);
    let compile = |set: &PolicySet| crate::kernel::compile(set, std::slice::from_ref(&member)).unwrap();
    assert_eq!(compile(&tried), compile(&without), "no table knows of it");
    let refused = r#"@id("a") @mode("log-only") permit (principal, action == Action::"direct", resource);"#;
    let bundle = PolicyBundle { text: refused.to_owned(), ..PolicyBundle::default() };
    let told = PolicySet::parse(&bundle).unwrap_err().problems[0].to_string();
    assert!(told.contains("a `permit` of `direct` on trial would tell nothing"), "{told}");
}
