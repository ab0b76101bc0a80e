//! Sets under the platform's, and what a tenant's may say.

use super::*;
use crate::head::Head;
use crate::history::History;
use crate::{Need, PLATFORM_PREFIX, Policies, kernel};

fn owned(owner: &str, text: &str) -> Result<PolicySet, PolicyErrors> {
    let PolicyBundle { text, sets } = bundle(text);
    PolicySet::parse_for(&owner.parse().unwrap(), &text, &sets, &Surroundings::default())
}

fn platform(text: &str) -> PolicySet {
    owned("platform", text).unwrap_or_else(|e| panic!("{text}\n{:#?}", e.problems))
}

fn tenant(name: &str, text: &str) -> PolicySet {
    owned(&format!("tenant/{name}"), text).unwrap_or_else(|e| panic!("{text}\n{:#?}", e.problems))
}

const EVERYTHING: &str = r#"@id("all") permit (principal, action, resource);"#;

#[test]
fn both_must_allow_and_both_are_named() {
    let a = agent("web");
    let own = set(EVERYTHING);
    let denied = |reason| Err::<(), _>(reason);
    for (above, verdict, policies) in [
        ("", denied(DropReason::PolicyDenied), &[][..]),
        (EVERYTHING, Ok(()), &["all", "platform/all"]),
        (
            r#"@id("all") permit (principal, action, resource); @id("no") forbid (principal, action == Action::"http", resource);"#,
            denied(DropReason::PolicyForbidden),
            &["platform/no"],
        ),
        (
            r#"@id("all") permit (principal, action, resource);
               @id("bad") forbid (principal, action == Action::"http", resource) when { context.port + 9223372036854775807 < 0 };"#,
            denied(DropReason::PolicyError),
            &["platform/bad"],
        ),
    ] {
        let both = own.under(&platform(above));
        let d = http(&both, &a, "api.allowed.test", "GET", "/");
        let host = Host::parse("api.allowed.test").unwrap();
        let operation = Operation::Http {
            host: &host,
            port: 80,
            scheme: Scheme::Http,
            method: "GET",
            path: "/",
            head: Head::none(),
        };
        let by_oracle = both.decide_by_oracle(&Request { agent: &a, operation });
        assert_eq!(by_oracle.policies, d.policies, "{above}");
        assert_eq!(
            (d.verdict, d.policies.iter().map(String::as_str).collect::<Vec<_>>()),
            (verdict, policies.to_vec()),
            "{above}"
        );
        // What the platform permits, a tenant need not.
        let none = set("").under(&platform(above));
        assert!(!http(&none, &a, "api.allowed.test", "GET", "/").is_allow(), "{above}");
    }
}

#[test]
fn forbids_and_errors_of_both_are_told() {
    let a = agent("web");
    let text = r#"@id("no") forbid (principal, action == Action::"http", resource);"#;
    let d = http(&set(text).under(&platform(text)), &a, "api.allowed.test", "GET", "/");
    assert_eq!(
        (d.verdict, d.policies),
        (Err(DropReason::PolicyForbidden), vec!["no".into(), "platform/no".into()])
    );
    let text = r#"@id("bad") permit (principal, action == Action::"http", resource) when { context.port + 9223372036854775807 < 0 };"#;
    let d = http(&set(text).under(&platform(text)), &a, "api.allowed.test", "GET", "/");
    assert_eq!(d.policies, ["bad", "platform/bad"]);
    assert!(d.errors[0].starts_with("bad: ") && d.errors[1].starts_with("platform/bad: "), "{:?}", d.errors);
    // An error hides no forbid, and the other way round: it denies.
    let forbids = platform(r#"@id("no") forbid (principal, action, resource);"#);
    let d = http(&set(text).under(&forbids), &a, "api.allowed.test", "GET", "/");
    assert_eq!((d.verdict, d.policies), (Err(DropReason::PolicyError), vec!["bad".into()]));
}

#[test]
fn obligations_of_both_apply() {
    let a = agent("web");
    let host = Host::parse("api.allowed.test").unwrap();
    let operation = Operation::Http {
        host: &host,
        port: 80,
        scheme: Scheme::Http,
        method: "GET",
        path: "/",
        head: Head::none(),
    };
    let request = Request { agent: &a, operation };
    let own = set(
        r#"@id("pace") @effect("rate-limit") @limit("5 requests/minute") permit (principal, action == Action::"http", resource);
           @id("try") @mode("log-only") forbid (principal, action == Action::"http", resource);"#,
    );
    let above = platform(
        r#"@id("pace") @effect("rate-limit") @limit("5 requests/minute") permit (principal, action == Action::"http", resource);
           @id("tell") @effect("alert") permit (principal, action == Action::"http", resource);
           @id("try") @mode("log-only") permit (principal, action == Action::"http", resource);"#,
    );
    let obligations = own.under(&above).obligations(&request).unwrap();
    let told: Vec<(&str, &str)> = obligations.iter().map(|o| (&*o.policy, o.effect.name())).collect();
    assert_eq!(
        told,
        [
            ("pace", "rate-limit"),
            ("platform/pace", "rate-limit"),
            ("platform/tell", "alert"),
            ("platform/try", "would-permit"),
            ("try", "would-forbid")
        ]
    );
    let keys: BTreeSet<u64> = obligations
        .iter()
        .filter_map(|o| match &o.effect {
            crate::effect::Effect::Limit(limit) => Some(limit.key),
            _ => None,
        })
        .collect();
    assert_eq!(keys.len(), 2, "the platform's buckets are its own");
    let bad = r#"@id("bad") @effect("alert") permit (principal, action == Action::"http", resource) when { context.port + 9223372036854775807 < 0 };"#;
    for (own, above) in [(bad, ""), ("", bad), (bad, bad)] {
        let failed = set(own).under(&platform(above)).obligations(&request).unwrap_err();
        assert_eq!(failed.verdict, Err(DropReason::PolicyError), "{own} {above}");
        assert_eq!(failed.policies.len(), usize::from(!own.is_empty()) + usize::from(!above.is_empty()));
    }
}

/// What the policies of either need to know is needed, whosesoever they are.
#[test]
fn a_need_of_either_counts() {
    let a = agent("web");
    let host = Host::parse("api.allowed.test").unwrap();
    let request =
        Request { agent: &a, operation: Operation::Tls { host: &host, port: 443, alpn: &[], ja4: "" } };
    let asking = |head: &str, what: &str| {
        format!(
            r#"{EVERYTHING} @id("ask") {head} (principal, action == Action::"tls", resource) when {{ {what} }};"#
        )
    };
    let history = "context.history.denied_last_hour > 5";
    let (decided, logged) = (asking("forbid", history), asking(r#"@mode("log-only") forbid"#, history));
    let elsewhere = decided.replace("\"tls\"", "\"http\"");
    for (one, other, need) in [
        (&*decided, EVERYTHING, Need::Decided),
        (&*logged, EVERYTHING, Need::Logged),
        (&*logged, &*decided, Need::Decided),
        (&*elsewhere, EVERYTHING, Need::None),
    ] {
        for (own, above) in [(one, other), (other, one)] {
            let set = set(own).under(&platform(above));
            assert!(set.asks_history());
            assert_eq!(set.needs_history(&request), need, "{own}\n{above}");
            let fails = set.decide(&request).verdict == Err(DropReason::PolicyError);
            assert_eq!(fails, need == Need::Decided, "{own}\n{above}");
            assert!(set.knowing(History::QUIET).decide(&request).is_allow());
        }
    }
    let ja4 = asking("forbid", r#"context.ja4 == "t13d1516h2_8daaf6152771_e5627efa2ab1""#);
    let executable = "ab".repeat(32);
    let seen =
        asking("forbid", &format!(r#"context has executable && context.executable == "{executable}""#));
    for (own, above) in [(&*ja4, EVERYTHING), (EVERYTHING, &*ja4)] {
        assert!(set(own).under(&platform(above)).needs_ja4(&request));
    }
    for (own, above) in [(&*seen, EVERYTHING), (EVERYTHING, &*seen)] {
        let set = set(own).under(&platform(above));
        assert!(set.asks_fingerprints() && !set.needs_ja4(&request));
        assert_eq!(set.decide(&request).verdict, Err(DropReason::PolicyError), "nobody said what is known");
        assert!(set.seeing(std::sync::Arc::default()).decide(&request).is_allow());
    }
    assert!(!set(EVERYTHING).under(&platform(EVERYTHING)).needs_ja4(&request));
}

/// A platform that permits everything opens nothing that must be named, and one that names it doesn't either.
#[test]
fn what_must_be_named_the_tenant_names() {
    let a = agent("web");
    let broad = r#"@id("all") permit (principal, action, resource) when { true };"#;
    let naming = r#"@id("named") permit (principal, action, resource) when { resource is Network && resource.ip.isInRange(ip("10.0.0.0/8")) };"#;
    let ip = "10.1.2.3".parse().unwrap();
    let reach =
        |own: &str, above: &str| set(own).under(&platform(above)).reach(&a, ip, 443, Transport::Tcp).verdict;
    assert_eq!(reach(broad, naming), Err(DropReason::AddressReserved));
    assert_eq!(reach(naming, broad), Ok(()));
    let gre = r#"@id("gre") permit (principal, action in [Action::"connect", Action::"direct"], resource) when { context.protocol == "gre" };"#;
    let ip = "203.0.113.7".parse().unwrap();
    let does = |own: &str, above: &str| {
        kernel::expected(&set(own).under(&platform(above)), &a, ip, Transport::Gre, 0).0
    };
    assert_eq!(does(gre, EVERYTHING), kernel::KernelAction::Direct);
    assert_eq!(does(EVERYTHING, gre), kernel::KernelAction::Deny(DropReason::ProtocolUnsupported.code()));
}

#[test]
fn a_tenant_names_its_own_alone() {
    for (owner, principal, wanted) in [
        (
            "tenant/default",
            "principal == Agent::\"acme/web\"",
            Some(
                "1:31: policy `a`: `Agent::\"acme/web\"` is of tenant `acme`, and a policy of tenant `default` is asked of its own agents alone: name its own, or leave the principal out",
            ),
        ),
        (
            "tenant/acme",
            "principal in Team::\"ops\"",
            Some(
                "1:31: policy `a`: `Team::\"ops\"` is of tenant `default`, and a policy of tenant `acme` is asked of its own agents alone: write `Team::\"acme/ops\"`",
            ),
        ),
        (
            "tenant/acme",
            "principal in Tenant::\"default\"",
            Some("1:31: policy `a`: `Tenant::\"default\"` is of tenant `default`"),
        ),
        ("tenant/acme", "principal in Team::\"acme/ops\"", None),
        ("tenant/acme", "principal in Tenant::\"acme\"", None),
        ("tenant/acme", "principal", None),
        ("tenant/default", "principal in Team::\"ops\"", None),
        ("tenant/default", "principal in Tenant::\"default\"", None),
        ("platform", "principal in Team::\"acme/ops\"", None),
    ] {
        let parsed = owned(owner, &format!("@id(\"a\") permit ({principal}, action, resource);"));
        match (parsed, wanted) {
            (Ok(_), None) => {}
            (Err(errors), Some(wanted)) => {
                assert_eq!(errors.problems.len(), 1, "{errors:?}");
                let told = errors.problems[0].to_string();
                // The column of the entity, wherever the principal's words end.
                let tail = |text: &str| text.split_once(": ").unwrap().1.to_owned();
                assert!(tail(&told).starts_with(&tail(wanted)), "{told}");
                assert!(errors.problems[0].column.is_some());
            }
            (parsed, _) => panic!("{owner} {principal}: {parsed:?}"),
        }
    }
    let in_condition = r#"@id("a") permit (principal, action, resource)
        when { principal has team && [Team::"ops", Team::"acme/ops"].contains(principal.team) };"#;
    let errors = owned("tenant/default", in_condition).unwrap_err();
    assert_eq!((errors.problems[0].line, errors.problems[0].column), (Some(2), Some(52)));
    let compared =
        r#"@id("a") forbid (principal, action, resource) unless { principal.tenant == Tenant::"acme" };"#;
    assert!(owned("tenant/default", compared).is_err());
}

#[test]
fn no_tenants_id_looks_like_the_platforms() {
    let text = r#"@id("platform/a") permit (principal, action, resource);"#;
    let errors = owned("tenant/default", text).unwrap_err();
    assert!(errors.problems[0].message.starts_with("`platform/` is what ids"), "{errors:?}");
    assert_eq!(PLATFORM_PREFIX, "platform/");
    let d = http(&set(EVERYTHING).under(&platform(text)), &agent("web"), "api.allowed.test", "GET", "/");
    assert_eq!(d.policies, ["all", "platform/platform/a"]);
}

#[test]
fn tenants_are_apart() {
    let sets = || {
        BTreeMap::from([
            (
                "default".to_owned(),
                tenant("default", r#"@id("a") permit (principal, action == Action::"http", resource);"#),
            ),
            (
                "acme".to_owned(),
                tenant("acme", r#"@id("b") permit (principal, action == Action::"connect", resource);"#),
            ),
        ])
    };
    let asked = |policies: &Policies, id: &str| {
        let a = agent(id);
        let set = policies.of(a.id.tenant());
        (
            http(set, &a, "api.allowed.test", "GET", "/").is_allow(),
            connect(set, &a, "203.0.113.1", 443).is_allow(),
        )
    };
    let free = Policies::new(None, sets()).unwrap();
    assert_eq!(asked(&free, "web"), (true, false));
    assert_eq!(asked(&free, "acme/web"), (false, true));
    assert_eq!(asked(&free, "other/web"), (false, false), "a tenant without a policy permits nothing");
    let above = platform(
        r#"@id("all") permit (principal, action, resource); @id("no") forbid (principal in Tenant::"acme", action, resource);"#,
    );
    let governed = Policies::new(Some(above), sets()).unwrap();
    assert_eq!(asked(&governed, "web"), (true, false));
    assert_eq!(asked(&governed, "acme/web"), (false, false));
    assert_eq!(asked(&governed, "other/web"), (false, false));
    let alone = Policies::new(Some(platform(EVERYTHING)), BTreeMap::new()).unwrap();
    assert_eq!(asked(&alone, "web"), (false, false), "what the platform permits, no tenant has yet");
}

/// Limits of two tenants may have one name; each counts for its own agents, and the platform's for all.
#[test]
fn limits_of_tenants_are_apart() {
    let limited = |name: &str, rate: &str| {
        tenant(
            name,
            &format!(
                r#"@id("all") permit (principal, action, resource); @id("pace") @effect("rate-limit") @limit("{rate} packets/second") permit (principal, action == Action::"connect", resource);"#
            ),
        )
    };
    let above = platform(
        r#"@id("all") permit (principal, action, resource); @id("pace") @effect("rate-limit") @limit("9 packets/second") permit (principal, action == Action::"connect", resource);"#,
    );
    let tenants = [("default", "5"), ("acme", "7"), ("same", "5")];
    let sets = tenants.map(|(name, rate)| (name.to_owned(), limited(name, rate)));
    let policies = Policies::new(Some(above), BTreeMap::from(sets)).unwrap().at(0);
    let agents: Vec<Agent> =
        (1..).zip(["web", "acme/web", "same/web"]).map(|(index, id)| Agent { index, ..agent(id) }).collect();
    let tables = kernel::compile_all(&policies, &agents).unwrap();
    assert_eq!(tables.limiters.len(), 3, "those that are the same are one: {:?}", tables.limiters);
    let ip = "203.0.113.1".parse().unwrap();
    for (index, rate) in [(1, 5), (2, 7), (3, 5)] {
        let held: Vec<u64> = tables
            .lookup_limits(index, ip, Transport::Tcp, 443)
            .iter()
            .map(|n| tables.limiters[*n as usize].count)
            .collect();
        assert_eq!(held, [rate, 9], "{index}");
    }
}

/// `count` limits of requests, with this in their scopes and conditions.
fn pacing(name: &str, count: usize, action: &str, resource: &str, condition: &str) -> String {
    let one = |n| {
        format!(
            "@id(\"{name}{n}\") @effect(\"rate-limit\") @limit(\"{} requests/minute\") permit (principal, action == Action::\"{action}\", {resource}){condition};\n",
            n + 1
        )
    };
    (0..count).map(one).collect()
}

/// What is said of the limits of a tenant's and a platform's policy, both of which permit everything.
fn check(own: &str, above: &str) -> Result<(), String> {
    check_under("@id(\"all\") permit (principal, action, resource);\n", own, above)
}

/// The same, where this is all that the tenant's permits.
fn check_under(own_permits: &str, own: &str, above: &str) -> Result<(), String> {
    let agents = [agent("web"), Agent { index: 2, ..agent("bot") }, agent("acme/bot")];
    let permit = "@id(\"all\") permit (principal, action, resource);\n";
    let tenants = BTreeMap::from([
        ("default".to_owned(), set(&format!("{own_permits}{own}"))),
        ("acme".to_owned(), tenant("acme", "")),
    ]);
    let above = platform(&format!("{permit}{above}"));
    let told = Policies::new(Some(above), tenants).unwrap().at(0).check_limits(&agents);
    told.map_err(|errors| errors.problems[0].message.clone())
}

#[test]
fn more_limits_than_a_request_may_have_are_refused_where_that_is_certain() {
    let pacing = |name: &str, count| pacing(name, count, "http", "resource", "");
    assert_eq!(check(&pacing("own", 8), &pacing("above", 8)), Ok(()));
    let told = check(&pacing("own", 8), &pacing("above", 9)).unwrap_err();
    for wanted in [
        "17 limits apply at once to `http` of `default/web` to any host, and 16 may",
        "`own7`",
        "`platform/above8`",
    ] {
        assert!(told.contains(wanted), "{told}");
    }
    assert!(check(&pacing("own", 17), "").is_err(), "nor alone");
    assert!(check("", &pacing("above", 17)).is_err(), "nor the platform's");
    let many =
        |resource: &str, condition: &str| super::platform::pacing("own", 17, "tunnel", resource, condition);
    for (text, sure) in [
        (many("resource == Host::\"api.allowed.test\"", ""), true),
        (many("resource in HostSet::\"saas\"", ""), true),
        (many("resource", " when { context.protocol == \"tls\" }"), true),
        // What a request has to be for it, nobody knows here: it is denied.
        (many("resource", " when { context.port == 8443 }"), false),
        (
            (0..17)
                .map(|n| {
                    super::platform::pacing(
                        &format!("h{n}-"),
                        1,
                        "http",
                        &format!("resource == Host::\"h{n}.test\""),
                        "",
                    )
                })
                .collect(),
            false,
        ),
        (many("resource", "").replace("principal,", "principal in Team::\"nobodys\","), false),
        (many("resource", "").replace("principal,", "principal == Agent::\"web\","), true),
        (super::platform::pacing("own", 17, "send", "resource", ""), true),
        // A call of a model is held to what it is as a request, too.
        (super::platform::pacing("own", 17, "llm", "resource", ""), true),
        (super::platform::pacing("own", 17, "llm", "resource in Provider::\"openai\"", ""), true),
        (super::platform::pacing("own", 17, "llm", "resource == Model::\"openai/gpt-5\"", ""), true),
        (super::platform::pacing("own", 17, "llm", "resource", " when { context.llm.stream }"), false),
        (
            super::platform::pacing("a", 9, "llm", "resource", "")
                + &super::platform::pacing("b", 8, "http", "resource", ""),
            true,
        ),
        (
            super::platform::pacing("a", 9, "llm", "resource == Model::\"openai/gpt-5\"", "")
                + &super::platform::pacing("b", 8, "llm", "resource == Model::\"openai/gpt-4o\"", ""),
            false,
        ),
    ] {
        assert_eq!(check(&text, "").is_err(), sure, "{text}");
    }
}

#[test]
fn limits_of_what_few_permits_are_about_are_counted_too() {
    let of = |action: &str, whom: &str, what: &str| {
        format!("@id(\"{action}\") permit ({whom}, action == Action::\"{action}\", {what});\n")
    };
    let some = |action: &str| of(action, "principal", "resource == Host::\"api.test\"");
    let models = some("http") + &some("send") + &of("llm", "principal", "resource in Provider::\"openai\"");
    let forbids =
        |whom: &str| format!("@id(\"no\") forbid ({whom}, action == Action::\"http\", resource);\n");
    for (permits, action, resource, sure) in [
        (models, "llm", "resource in Provider::\"openai\"", true),
        (some("http"), "http", "resource", true),
        (of("http", "principal == Agent::\"bot\"", "resource"), "http", "resource", true),
        // The first of two alike may be the one that is forbidden.
        (some("http") + &forbids("principal == Agent::\"web\""), "http", "resource", true),
        (some("http") + &forbids("principal"), "http", "resource", false),
        // Permits of it may come.
        (some("tls"), "http", "resource", true),
    ] {
        let text = pacing("own", 17, action, resource, "");
        assert_eq!(check_under(&permits, &text, "").is_err(), sure, "{permits}{text}");
    }
}

#[test]
fn limits_that_no_request_meets_together_are_not_too_many() {
    let pacing = super::platform::pacing;
    let read = |action: &str, condition: &str| {
        format!(
            "@id(\"read\") @effect(\"intercept\") permit (principal, action == Action::\"{action}\", resource){condition};"
        )
    };
    for (text, sure) in [
        // Nobody here knows that this host is not the provider's.
        (
            pacing("a", 9, "llm", "resource in Provider::\"openai\"", "")
                + &pacing("b", 8, "http", "resource == Host::\"files.test\"", ""),
            false,
        ),
        (pacing("own", 17, "tool", "resource", ""), true),
        (pacing("own", 17, "tool", "resource in ToolServer::\"github\"", ""), true),
        (pacing("own", 17, "tool", "resource == Tool::\"github/get_me\"", ""), true),
        (
            pacing("a", 9, "tool", "resource == Tool::\"github/get_me\"", "")
                + &pacing("b", 8, "http", "resource", ""),
            true,
        ),
        (
            pacing("a", 9, "tool", "resource == Tool::\"github/get_me\"", "")
                + &pacing("b", 8, "llm", "resource", ""),
            false,
        ),
        // What is read is no tunnel.
        (pacing("a", 9, "tls", "resource", "") + &pacing("b", 8, "tunnel", "resource", ""), true),
        (
            pacing("a", 9, "tls", "resource", "")
                + &pacing("b", 8, "tunnel", "resource", "")
                + &read("tunnel", ""),
            false,
        ),
        (pacing("own", 17, "tunnel", "resource", "") + &read("tls", ""), false),
        (pacing("own", 17, "tls", "resource", "") + &read("tunnel", ""), true),
        (
            pacing("own", 17, "tunnel", "resource", "") + &read("tunnel", " when { context.port == 8443 }"),
            true,
        ),
        // What is denied is held to none.
        (
            pacing("own", 17, "tunnel", "resource", "")
                + "@id(\"no\") forbid (principal, action == Action::\"tunnel\", resource);",
            false,
        ),
        (
            pacing("own", 17, "http", "resource == Host::\"a.test\"", "")
                + "@id(\"no\") forbid (principal, action == Action::\"http\", resource == Host::\"a.test\");",
            false,
        ),
    ] {
        assert_eq!(check(&text, "").is_err(), sure, "{text}");
    }
}
