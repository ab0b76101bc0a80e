//! The examples of the policy guide are valid, do what the guide says, and are refused where it says so.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers outside `#[test]` functions fail the test too"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use clawgress_identity::{Agent, AgentState, PolicyOwner};
use clawgress_policy::content::{ModelCall, Payload, ToolCall, Usage};
use clawgress_policy::fingerprint::Fingerprints;
use clawgress_policy::head::Head;
use clawgress_policy::history::{Counts, History};
use clawgress_policy::{
    Geo, Host, NamedSets, Operation, PolicyBundle, PolicySet, Request, SCHEMA, Scheme, Surroundings,
    Transport, TunnelProtocol, kernel, lint, schema_json,
};

/// 2026-11-23T12:00:00Z.
const MONDAY_NOON_MS: i64 = 1_795_435_200_000;

const GUIDE: &str = include_str!("../../docs/policy.md");

/// Fenced blocks of this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let found: Vec<_> =
        GUIDE.split(fence.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!found.is_empty(), "no `{language}` block in the guide");
    found
}

fn sets() -> NamedSets {
    toml::from_str(blocks("toml")[0]).unwrap()
}

/// What the geo data would say of what the guide names.
fn surroundings() -> Surroundings {
    let prefixes = |text: &str| vec![text.parse().unwrap()];
    let asns = [(64_500, "192.0.2.0/24"), (64_501, "198.18.0.0/24"), (64_502, "198.18.1.0/24")];
    let geo = Geo {
        asns: Some(asns.into_iter().map(|(number, text)| (number, prefixes(text))).collect()),
        countries: Some(BTreeMap::from([("ZZ".to_owned(), prefixes("192.0.2.128/25"))])),
    };
    Surroundings { geo, ..Surroundings::default() }
}

fn guide() -> PolicySet {
    PolicySet::parse_in(&blocks("cedar").concat(), &sets(), &surroundings())
        .unwrap_or_else(|e| panic!("{:#?}", e.problems))
        .at(MONDAY_NOON_MS)
        .knowing(History::QUIET)
        .seeing(Arc::default())
}

fn agent() -> Agent {
    Agent {
        id: "web".parse().unwrap(),
        index: 7,
        team: Some("research".to_owned()),
        project: None,
        environment: Some("prod".to_owned()),
        labels: BTreeMap::new(),
        state: AgentState::Active,
        sources: Vec::new(),
    }
}

#[test]
fn every_example_is_valid_alone() {
    for text in blocks("cedar") {
        let parsed = PolicySet::parse_in(text, &sets(), &surroundings());
        assert!(parsed.as_ref().is_ok_and(|s| !s.is_empty()), "{text}");
        let enforced = lint::Enforced::all();
        let findings =
            parsed.unwrap().lint(text, &lint::Configuration { enforced, ..lint::Configuration::default() });
        assert!(findings.iter().all(|f| f.severity == lint::Certainty::Warning), "{findings:?}");
    }
}

/// The platform's example does what is said of it: it takes away, and opens nothing.
#[test]
fn the_platforms_example_takes_away() {
    let text = blocks("cedar-platform").concat();
    let platform = PolicySet::parse_for(&PolicyOwner::Platform, &text, &sets(), &surroundings()).unwrap();
    let findings = platform.lint(&text, &lint::Configuration::default());
    assert!(findings.iter().all(|f| f.severity == lint::Certainty::Warning), "{findings:?}");
    let everything = r#"@id("all") permit (principal, action, resource);"#;
    let parse = |text: &str| PolicySet::parse_in(text, &sets(), &surroundings()).unwrap().under(&platform);
    let (all, none, agent) = (parse(everything), parse(""), agent());
    let reach =
        |set: &PolicySet, ip: &str| set.reach(&agent, ip.parse().unwrap(), 443, Transport::Tcp).policies;
    assert_eq!(reach(&all, "203.0.113.200"), ["platform/never-there"]);
    assert_eq!(reach(&all, "203.0.113.1"), ["all", "platform/what-tenants-permit"]);
    assert_eq!(reach(&none, "203.0.113.1"), [""; 0]);
    let host = Host::parse("api.example.com").unwrap();
    let operation = Operation::Tunnel { host: &host, port: 443, protocol: TunnelProtocol::Tls };
    let acme = Agent { id: "acme/crawler".parse().unwrap(), ..agent.clone() };
    let tunnel = |agent| all.decide(&Request { agent, operation }).is_allow();
    assert!(tunnel(&agent) && !tunnel(&acme));
}

#[test]
fn what_is_refused_says_so() {
    for (text, shown) in blocks("cedar-refused").into_iter().zip(blocks("text")) {
        let (outline, findings) = lint::examine(
            &PolicyOwner::default(),
            &PolicyBundle { text: text.to_owned(), sets: sets() },
            &[],
        );
        assert_eq!(outline, None, "{text}");
        let (problem, shown) = (findings[0].problem(), shown.trim_end().trim_end_matches('…'));
        assert!(problem.to_string().starts_with(shown), "{problem}\n{shown}");
    }
}

#[test]
fn the_examples_do_what_the_guide_says() {
    let (set, agent) = (guide(), agent());
    let host = |name| Host::parse(name).unwrap();
    fn allows(set: &PolicySet, agent: &Agent, operation: Operation<'_>) -> bool {
        set.decide(&Request { agent, operation }).is_allow()
    }
    let tls =
        |name| allows(&set, &agent, Operation::Tls { host: &host(name), port: 443, alpn: &[], ja4: "" });
    assert!(tls("api.example.com") && tls("x.storage.example.com"));
    assert!(!tls("storage.example.com") && !tls("notapi.example.com"));
    let tunnel = |protocol| {
        allows(&set, &agent, Operation::Tunnel { host: &host("API.example.com."), port: 443, protocol })
    };
    assert!(tunnel(TunnelProtocol::Tls) && !tunnel(TunnelProtocol::Unknown));
    let http = |name, method, path| {
        allows(
            &set,
            &agent,
            Operation::Http {
                host: &host(name),
                port: 80,
                scheme: Scheme::Http,
                method,
                path,
                head: Head::none(),
            },
        )
    };
    assert!(http("packages.example.com", "GET", "/x") && http("0xc0.0.2.80", "HEAD", "/"));
    assert!(!http("packages.example.com", "POST", "/x") && !http("packages.example.com", "GET", "/admin/x"));
    let put = |path| http("packages.example.com", "PUT", path);
    assert!(put("/index") && put("/index/a") && !put("/indexes") && !put("/index;a"));

    let tables = kernel::compile(&set, std::slice::from_ref(&agent)).unwrap();
    let kernel = |ip: &str, transport, port| {
        let (action, policies) = tables.lookup(agent.index, ip.parse().unwrap(), transport, port);
        (action, policies.join(" "))
    };
    use clawgress_ebpf_common::DropReason;
    use kernel::KernelAction::{Deny, Direct, Steer};
    let deny = |reason: DropReason, ids: &str| (Deny(reason.code()), ids.to_owned());
    assert_eq!(kernel("8.8.8.8", Transport::Tcp, 443), (Steer, "research-web".to_owned()));
    assert_eq!(kernel("8.8.8.8", Transport::Tcp, 22), deny(DropReason::PolicyDenied, ""));
    assert_eq!(
        kernel("8.8.8.8", Transport::Tcp, 25),
        deny(DropReason::PolicyForbidden, "no-plain-text-mail")
    );
    assert_eq!(kernel("203.0.113.1", Transport::Tcp, 8080), (Steer, "offices".to_owned()));
    assert_eq!(kernel("203.0.113.1", Transport::Gre, 0), (Direct, "site-vpn".to_owned()));
    assert_eq!(kernel("8.8.8.8", Transport::Gre, 0), deny(DropReason::ProtocolUnsupported, ""));
    assert_eq!(kernel("203.0.113.1", Transport::Sit, 0), deny(DropReason::ProtocolUnsupported, ""));
    assert_eq!(
        kernel("203.0.113.200", Transport::Tcp, 8080),
        deny(DropReason::PolicyForbidden, "not-the-printers")
    );
    assert_eq!(kernel("198.51.100.53", Transport::Udp, 53), (Direct, "dns".to_owned()));
    assert_eq!(kernel("2001:db8:5::1", Transport::Tcp, 1024), (Steer, "offices".to_owned()));
    assert_eq!(kernel("198.51.100.53", Transport::Icmp, 0), deny(DropReason::PolicyDenied, ""));
    let reserved = |ids| deny(DropReason::AddressReserved, ids);
    assert_eq!(kernel("169.254.169.254", Transport::Tcp, 80), reserved("research-web"));
}

/// A forbid of every action is in the kernel's tables already, and in every later phase: nothing that is permitted otherwise
/// opens anything to who is suspended.
#[test]
fn what_is_forbidden_altogether_is_dropped_at_connect() {
    use clawgress_ebpf_common::DropReason::PolicyForbidden;
    use kernel::KernelAction::{Deny, Direct, Steer};
    let everything = r#"@id("all") permit (principal, action, resource);
        @id("inside") permit (principal, action in [Action::"connect", Action::"direct"], resource)
        when { context.ip.isInRange(ip("10.0.0.0/8")) };
        @id("vpn") permit (principal, action in [Action::"connect", Action::"direct"], resource)
        when { context.protocol == "gre" };"#;
    let forbid = blocks("cedar").into_iter().find(|text| text.contains("\"suspended\"")).unwrap();
    let in_place =
        |text: &str| PolicySet::parse_in(text, &sets(), &surroundings()).unwrap().at(MONDAY_NOON_MS);
    let (open, own) = (in_place(everything), in_place(&format!("{everything}{forbid}")));
    let platform = PolicySet::parse_for(
        &PolicyOwner::Platform,
        &format!("@id(\"all\") permit (principal, action, resource);{forbid}"),
        &sets(),
        &surroundings(),
    );
    let under = open.under(&platform.unwrap().at(MONDAY_NOON_MS));
    let suspended = Agent { index: 8, team: Some("suspended".to_owned()), ..agent() };
    let agents = [agent(), suspended];
    for (set, by) in [(&own, "suspended"), (&under, "platform/suspended")] {
        let tables = kernel::compile(set, &agents).unwrap();
        for ip in ["8.8.8.8", "10.1.0.7", "2a00:1450::1"] {
            for (transport, port) in
                [(Transport::Tcp, 443), (Transport::Udp, 53), (Transport::Icmp, 0), (Transport::Gre, 0)]
            {
                let ip = ip.parse().unwrap();
                let [one, other] =
                    agents.each_ref().map(|agent| tables.lookup(agent.index, ip, transport, port));
                assert!(matches!(one.0, Direct | Steer), "{ip} {transport:?}: {one:?}");
                assert_eq!(
                    (other.0, other.1.join(" ")),
                    (Deny(PolicyForbidden.code()), by.to_owned()),
                    "{ip}"
                );
                // The proxy says the same of what it is to dial.
                let reach = set.reach(&agents[1], ip, port, transport);
                assert_eq!((reach.verdict, reach.policies.join(" ")), (Err(PolicyForbidden), by.to_owned()));
            }
        }
        let (host, alpn) = (Host::parse("api.example.com").unwrap(), ["h2".to_owned()]);
        let (host, port) = (&host, 443);
        for operation in [
            Operation::Resolve { host, port: 53, query_type: "A" },
            Operation::Tls { host, port, alpn: &alpn, ja4: "" },
            Operation::Tunnel { host, port, protocol: TunnelProtocol::Tls },
            Operation::Http {
                host,
                port,
                scheme: Scheme::Https,
                method: "GET",
                path: "/",
                head: Head::none(),
            },
        ] {
            let decide = |agent| set.decide(&Request { agent, operation });
            assert!(decide(&agents[0]).is_allow());
            let denied = decide(&agents[1]);
            assert_eq!((denied.verdict, denied.policies.join(" ")), (Err(PolicyForbidden), by.to_owned()));
        }
    }
    // What only a later phase can know is left to it.
    let later = r#"@id("later") forbid (principal, action, resource) when { resource is Host && resource.name == "api.example.com" };"#;
    let later = in_place(&format!("{everything}{later}"));
    let tables = kernel::compile(&later, &agents).unwrap();
    let first = tables.lookup(agents[0].index, "8.8.8.8".parse().unwrap(), Transport::Tcp, 443);
    assert!(matches!(first.0, Direct), "{first:?}");
    let host = Host::parse("api.example.com").unwrap();
    let operation = Operation::Tls { host: &host, port: 443, alpn: &[], ja4: "" };
    assert_eq!(later.decide(&Request { agent: &agents[0], operation }).policies, ["later"]);
}

#[test]
fn reserved_addresses_are_named_as_the_guide_says() {
    let (set, ops) = (guide(), Agent { team: Some("ops".to_owned()), ..agent() });
    let reach = |ip: &str, port| set.reach(&ops, ip.parse().unwrap(), port, Transport::Tcp);
    assert!(reach("8.8.8.8", 80).is_allow() && reach("10.1.0.7", 443).is_allow());
    let denied = reach("10.1.0.7", 80);
    assert_eq!(denied.verdict, Err(clawgress_ebpf_common::DropReason::AddressReserved));
    assert_eq!(denied.policies, ["web-anywhere"]);
    assert!(!reach("10.2.0.7", 443).is_allow());
}

#[test]
fn classes_and_hours_are_as_the_guide_says() {
    let reach = |set: &PolicySet, team: &str, ip: &str, port| {
        let agent = Agent { team: Some(team.to_owned()), ..agent() };
        set.reach(&agent, ip.parse().unwrap(), port, Transport::Tcp).is_allow()
    };
    let noon = guide();
    assert!(reach(&noon, "research", "192.0.2.1", 8443) && !reach(&noon, "research", "192.0.2.129", 8443));
    assert!(reach(&noon, "accounting", "203.0.113.1", 22) && !reach(&noon, "backup", "203.0.113.1", 22));
    let night = guide().at(MONDAY_NOON_MS + 11 * 3_600_000);
    assert!(!reach(&night, "accounting", "203.0.113.1", 22) && reach(&night, "backup", "203.0.113.1", 22));
    let saturday = guide().at(MONDAY_NOON_MS + 5 * 86_400_000);
    assert!(!reach(&saturday, "accounting", "203.0.113.1", 22));
    assert!(reach(&noon, "contractors", "203.0.113.1", 22));
    let later = guide().at(1_900_000_000_000);
    assert!(!reach(&later, "contractors", "203.0.113.1", 22), "2030-03-17");
}

#[test]
fn limits_are_as_the_guide_says() {
    let (set, agent) = (guide(), agent());
    assert_eq!(set.limiters().count(), 3);
    let limits = |ip: &str, port, transport| {
        let ip = ip.parse().unwrap();
        let wanted = kernel::expected_limits(&set, &agent, ip, transport, port);
        let tables = kernel::compile(&set, std::slice::from_ref(&agent)).unwrap();
        let limits = tables.lookup_limits(agent.index, ip, transport, port);
        let ids: Vec<_> = limits.iter().map(|n| tables.limiters[*n as usize].policy.clone()).collect();
        assert_eq!(ids, wanted);
        ids
    };
    assert_eq!(limits("8.8.8.8", 443, Transport::Tcp), ["few-new-flows", "research-pace", "uploads"]);
    assert_eq!(limits("8.8.8.8", 80, Transport::Tcp), ["few-new-flows", "research-pace"]);
    assert_eq!(limits("198.51.100.53", 53, Transport::Udp), ["research-pace"]);
    assert!(limits("8.8.8.8", 22, Transport::Tcp).is_empty(), "what is denied is not counted");
}

#[test]
fn what_is_said_is_judged_as_the_guide_says() {
    let (set, agent) = (guide(), agent());
    let host = Host::parse("packages.example.com").unwrap();
    let says = |operation| set.decide(&Request { agent: &agent, operation });
    let denied = |operation, by: &str| {
        let decision = says(operation);
        assert!(!decision.is_allow());
        assert_eq!(decision.policies, [by]);
    };
    let (shell, keys) = (["shell".to_owned()], ["private_key".to_owned()]);
    denied(Operation::Resolve { host: &host, port: 53, query_type: "TXT" }, "no-text-records");
    let call = ModelCall {
        host: &host,
        port: 443,
        provider: "openai",
        model: "gpt-5-mini",
        family: "gpt-5-mini",
        surface: "chat_completions",
        tokens_max: Some(1_000),
        attachments: 0,
        images: 0,
        attachment_bytes: 0,
        prompt_score: 0,
        unpriced: false,
        tool_choice: "",
        end_user: "",
        store: false,
        partial: false,
        tokens_estimated: 16_000,
        stream: true,
        tools: &[],
        findings: &[],
    };
    let payments = Agent { team: Some("payments".to_owned()), ..agent.clone() };
    let model = |call| set.decide(&Request { agent: &payments, operation: Operation::Llm(call) });
    assert_eq!(model(call).policies, ["payments-llm"]);
    assert!(!model(ModelCall { model: "gpt-4", ..call }).is_allow());
    assert!(!model(ModelCall { provider: "other", ..call }).is_allow());
    assert!(!model(ModelCall { tokens_estimated: 16_001, ..call }).is_allow());
    assert_eq!(model(ModelCall { tools: &shell, ..call }).policies, ["no-shell-for-models"]);
    assert_eq!(model(ModelCall { provider: "a/b", ..call }).errors.len(), 1, "no provider's name");
    let tool = |name| {
        Operation::Tool(ToolCall {
            host: &host,
            port: 443,
            server: "jira",
            method: "tools/call",
            name,
            argument_names: &[],
            values: &[],
            arguments: "{}",
            findings: &[],
        })
    };
    assert!(says(tool("create_issue")).is_allow());
    denied(tool("delete_issue"), "no-deleting");
    let payload = Payload { bytes: 1_000, complete: true, media_type: "application/json", findings: &[] };
    let send = |payload| Operation::Send { host: &host, port: 80, method: "PUT", path: "/index", payload };
    assert!(says(send(payload)).is_allow());
    denied(send(Payload { findings: &keys, ..payload }), "no-keys-out");
    let receive = |tools| {
        let usage = Usage { input_tokens: 1, output_tokens: 2, tools, ..Usage::default() };
        Operation::Receive { host: &host, port: 80, status: 200, payload, usage }
    };
    assert!(says(receive(&[])).is_allow());
    denied(receive(&shell), "no-surprises");
}

#[test]
fn the_schema_is_exported() {
    // As an editor would take it, which knows Cedar and nothing of this crate.
    let json = cedar_policy::Schema::from_json_str(&schema_json().unwrap()).unwrap();
    let (cedar, warnings) = cedar_policy::Schema::from_cedarschema_str(SCHEMA).unwrap();
    assert_eq!(warnings.map(|w| w.to_string()).collect::<Vec<_>>(), [""; 0]);
    for schema in [cedar, json] {
        let validator = cedar_policy::Validator::new(schema);
        for text in blocks("cedar") {
            let set: cedar_policy::PolicySet = text.parse().unwrap();
            let result = validator.validate(&set, cedar_policy::ValidationMode::Strict);
            assert!(result.validation_passed_without_warnings(), "{text}\n{result}");
        }
        assert!(
            validator
                .validate(
                    &"permit (principal, action == Action::\"fly\", resource);".parse().unwrap(),
                    cedar_policy::ValidationMode::Strict
                )
                .validation_errors()
                .next()
                .is_some()
        );
    }
}

#[test]
fn what_happened_before_counts_as_the_guide_says() {
    let (set, agent) = (guide(), agent());
    let host = Host::parse("packages.example.com").unwrap();
    let operation = Operation::Http {
        host: &host,
        port: 80,
        scheme: Scheme::Http,
        method: "GET",
        path: "/",
        head: Head::none(),
    };
    let request = Request { agent: &agent, operation };
    assert!(set.decide(&request).is_allow());
    let denied = |minute| History { denied: Counts { minute, hour: minute, day: minute }, ..History::QUIET };
    assert!(set.knowing(denied(29)).decide(&request).is_allow());
    assert_eq!(set.knowing(denied(30)).decide(&request).policies, ["slow-down-when-denied"]);
    let tls = Operation::Tls { host: &host, port: 443, alpn: &[], ja4: "" };
    let tls = Request { agent: &agent, operation: tls };
    let obliged = |set: &PolicySet| -> Vec<String> {
        set.obligations(&tls).unwrap().iter().map(|o| o.policy.to_string()).collect()
    };
    let told = "tell-of-new-places".to_owned();
    assert!(!obliged(&set).contains(&told));
    assert!(obliged(&set.knowing(History { first_seen: true, ..History::QUIET })).contains(&told));
}

#[test]
fn what_is_at_the_other_end_counts_as_the_guide_says() {
    let (set, mut agent) = (guide(), agent());
    let host = Host::parse("packages.example.com").unwrap();
    let operation = Operation::Http {
        host: &host,
        port: 80,
        scheme: Scheme::Http,
        method: "GET",
        path: "/",
        head: Head::none(),
    };
    let seen = |set: &PolicySet, agent: &Agent, executable: Option<&str>| {
        let seen = Fingerprints { executable: executable.map(str::to_owned), ..Fingerprints::default() };
        set.seeing(Arc::new(seen)).decide(&Request { agent, operation }).policies
    };
    assert_eq!(seen(&set, &agent, None), ["mirrors-read"]);
    agent.team = Some("payments".into());
    let known = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
    assert_eq!(seen(&set, &agent, Some(known)), ["mirrors-read"]);
    for other in [None, Some("00")] {
        assert_eq!(seen(&set, &agent, other), ["known-build"]);
    }
}

/// What pages about one action show, is what can be applied.
#[test]
fn examples_of_other_pages_are_valid() {
    let pages = [
        include_str!("../../docs/llm.md"),
        include_str!("../../docs/tools.md"),
        include_str!("../../docs/provider-keys.md"),
    ];
    for page in pages {
        let shown: Vec<&str> =
            page.split("```cedar\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
        assert!(!shown.is_empty(), "no example in a page");
        PolicySet::parse_in(&shown.concat(), &NamedSets::default(), &Surroundings::default()).unwrap();
    }
}
