//! Explanations, cases, differences and replays, on small sets whose answers are known.

use std::collections::{BTreeMap, BTreeSet};

use clawgress_identity::{Agent, AgentState, PolicyOwner};

use super::call::{CaseCall, CaseTool};
use super::cases::{Cases, Verdict};
use super::difference::{ReachDifference, TextDifference};
use super::explain::{Explanation, Target, TlsReading, explain};
use super::{Supposed, Texts};
use crate::{PolicyBundle, PolicyInForceRef, PolicySet, Surroundings};

mod replays;

const TEXT: &str = r#"
@id("web") permit (principal in Team::"t", action == Action::"connect", resource in NetworkSet::"lan")
when { context.protocol == "tcp" && [80, 443].contains(context.port) };
@id("no-bad") forbid (principal, action == Action::"connect", resource)
when { context.ip.isInRange(ip("203.0.113.66/32")) };
@id("dns") permit (principal, action in [Action::"connect", Action::"direct"], resource in NetworkSet::"lan")
when { context.port == 53 && context.protocol == "udp" };
@id("saas") permit (principal, action in [Action::"tls", Action::"tunnel"], resource in HostSet::"saas");
@id("http") permit (principal in Team::"t", action == Action::"http", resource in HostSet::"saas");
@id("no-admin") forbid (principal, action == Action::"http", resource)
when { context.path like "/admin*" };
@id("other") forbid (principal in Team::"other", action == Action::"http", resource);
@id("pace") @effect("rate-limit") @limit("20 requests/minute")
permit (principal, action == Action::"http", resource);
"#;

fn bundle(text: &str) -> PolicyBundle {
    let sets = "[hosts]\nsaas = [\"api.test\"]\n[networks]\nlan = [\"203.0.113.0/24\"]\n";
    PolicyBundle { text: text.to_owned(), sets: toml::from_str(sets).unwrap() }
}

fn agent(name: &str, team: &str, index: u32) -> Agent {
    Agent {
        id: name.parse().unwrap(),
        index,
        team: Some(team.to_owned()),
        project: None,
        environment: None,
        labels: BTreeMap::new(),
        state: AgentState::Active,
        sources: Vec::new(),
    }
}

fn texts<'a>(bundle: &'a PolicyBundle, surroundings: &'a Surroundings) -> Texts<'a> {
    Texts { own: PolicyInForceRef { text: &bundle.text, sets: &bundle.sets, surroundings }, platform: None }
}

fn set(text: &str) -> PolicySet {
    PolicySet::parse(&bundle(text)).unwrap().at(0)
}

fn explained(to: &str, protocol: Option<&str>, address: Option<&str>) -> Explanation {
    let (bundle, surroundings) = (bundle(TEXT), Surroundings::default());
    let target = Target::parse(to, None, protocol, address).unwrap();
    explain(
        &set(TEXT),
        texts(&bundle, &surroundings),
        &agent("a", "t", 1),
        (&target, Supposed::default()),
        TlsReading::Off,
    )
}

fn check(explanation: &Explanation, decided: &str, reason: Option<&str>, policies: &[&str]) {
    assert_eq!(explanation.decided, decided, "{explanation:?}");
    assert_eq!(explanation.reason.as_deref(), reason, "{explanation:?}");
    assert_eq!(explanation.allowed, reason.is_none(), "{explanation:?}");
    let got = explanation.policies();
    assert_eq!(got.iter().map(String::as_str).collect::<Vec<_>>(), policies, "{explanation:?}");
}

/// What waits for no plane must not give anything.
#[test]
fn it_is_known_of_some_changes_that_they_only_take_away() {
    let bundle = |text: &str| PolicyBundle { text: text.to_owned(), ..PolicyBundle::default() };
    let permit =
        |id: &str| format!("@id(\"{id}\") permit (principal, action == Action::\"tls\", resource);\n");
    let forbid = |id: &str| permit(id).replace("permit", "forbid");
    let takes_away = |a: &str, b: &str| TextDifference::between(&bundle(a), &bundle(b)).only_takes_away();
    let (a, b) = (permit("a"), permit("b"));
    assert!(takes_away(&a, &a));
    assert!(takes_away(&a, &format!("{a}{}", forbid("b"))), "a forbid more");
    assert!(takes_away(&format!("{a}{b}"), &b), "a permit less");
    assert!(takes_away(&a, &forbid("a")), "forbidden instead");
    assert!(!takes_away(&a, &format!("{a}{b}")), "a permit more");
    assert!(!takes_away(&format!("{a}{}", forbid("b")), &a), "a forbid less");
    assert!(!takes_away(&a, &a.replace("tls", "http")), "another permit");
    assert!(!takes_away(&forbid("a"), &forbid("a").replace("tls", "http")), "another forbid");
    let bodies = permit("bodies").replace("tls", "send");
    assert!(takes_away(&a, &format!("{a}{}", bodies.replace("permit", "forbid"))), "nobody asked before");
    assert!(!takes_away(&format!("{a}{bodies}"), &a), "without it nobody asks");
    assert!(!takes_away(&bodies, &bodies.replace("permit", "forbid").replace("send", "tls")), "nor here");
    let pace = format!("@effect(\"throttle\") @limit(\"1 requests/second\") {}", permit("pace"));
    assert!(!takes_away(&format!("{a}{pace}"), &a), "a limit less");
    let mut sets = bundle(&a);
    sets.sets.hosts.insert("some".to_owned(), ["a.test".to_owned()].into());
    assert!(
        !TextDifference::between(&bundle(&a), &sets).only_takes_away(),
        "members of a set, whoever asks for it"
    );
}

#[test]
fn the_earliest_phase_decides() {
    check(&explained("http://api.test/x", None, Some("203.0.113.5")), "connect", None, &["http", "web"]);
    let admin = explained("http://api.test/admin?token=1", None, None);
    check(&admin, "http", Some("policy_forbidden"), &["no-admin"]);
    assert!(admin.effects().contains("pace"), "{admin:?}");
    // What is wanted is asked before the address, which is forbidden too.
    let both = explained("http://api.test/admin", None, Some("203.0.113.66"));
    check(&both, "http", Some("policy_forbidden"), &["no-admin"]);
    assert_eq!(both.phases.len(), 2);
    let address = explained("http://api.test/x", None, Some("203.0.113.66"));
    check(&address, "connect", Some("policy_forbidden"), &["no-bad"]);
    // What is allowed as far as it was asked is not known to pass; what is denied is known.
    let open = explained("http://api.test/x", None, None);
    assert!(open.allowed && !open.is_known() && open.unasked == ["connect"], "{open:?}");
    assert!(admin.is_known() && address.is_known() && address.unasked.is_empty());
    let steered = explained("203.0.113.5:443", None, None);
    assert!(steered.allowed && !steered.is_known(), "{steered:?}");
    let direct = explained("203.0.113.53:53", Some("udp"), None);
    assert!(direct.allowed && direct.is_known(), "{direct:?}");
    let off = direct.in_state(AgentState::Disabled);
    assert_eq!((off.allowed, off.reason.as_deref(), off.is_known()), (false, Some("agent_disabled"), true));
    check(&explained("203.0.113.5:443", None, None), "connect", None, &["web"]);
    check(&explained("203.0.113.5:22", None, None), "connect", Some("policy_denied"), &[]);
    check(&explained("https://other.test/", None, None), "tls", Some("policy_denied"), &[]);
}

#[test]
fn opaque_permits_make_content_rules_moot() {
    let tunnel = explained("https://api.test/admin", None, None);
    check(&tunnel, "tunnel", None, &["saas"]);
    // Those whose scope has this agent and host, whatever their conditions; not those of others, nor of networks.
    assert_eq!(tunnel.moot, ["http", "no-admin", "pace"]);
    let direct = explained("203.0.113.53:53", Some("udp"), None);
    check(&direct, "direct", None, &["dns"]);
    assert_eq!(direct.opaque.as_deref(), Some("direct"));
    assert_eq!(direct.moot, ["http", "no-admin", "pace"]);
    assert!(explained("http://api.test/", None, None).moot.is_empty(), "it is read");
}

/// Rules on bodies are about hosts, those on models and tools about whoever has them, wherever that is.
#[test]
fn opaque_permits_make_rules_on_bodies_models_and_tools_moot() {
    let text = format!(
        r#"{TEXT}
@id("keys") forbid (principal, action == Action::"send", resource == Host::"api.test") when {{ context.findings.contains("private_key") }};
@id("elsewhere") forbid (principal, action == Action::"send", resource == Host::"other.test");
@id("gpt") forbid (principal, action == Action::"llm", resource in Provider::"openai") when {{ context.llm.stream }};
@id("mini") forbid (principal, action == Action::"llm", resource == Model::"openai/gpt-5-mini");
@id("jira") forbid (principal in Team::"t", action == Action::"tool", resource in ToolServer::"jira");
@id("others") forbid (principal in Team::"other", action == Action::"tool", resource);
@id("back") forbid (principal, action == Action::"receive", resource in HostSet::"saas") when {{ context.status == 500 }};"#
    );
    let (bundle, surroundings) = (bundle(&text), Surroundings::default());
    let moot = |to: &str, protocol| {
        let target = Target::parse(to, None, protocol, None).unwrap();
        let texts = texts(&bundle, &surroundings);
        explain(&set(&text), texts, &agent("a", "t", 1), (&target, Supposed::default()), TlsReading::Off).moot
    };
    let there = ["back", "gpt", "http", "jira", "keys", "mini", "no-admin", "pace"];
    assert_eq!(moot("https://api.test/", None), there);
    let anywhere = ["back", "elsewhere", "gpt", "http", "jira", "keys", "mini", "no-admin", "pace"];
    assert_eq!(moot("203.0.113.53:53", Some("udp")), anywhere);
}

#[test]
fn what_follows_on_direct_is_told() {
    let text = r#"
@id("all") permit (principal, action, resource);
@id("met") @effect("alert") permit (principal, action == Action::"connect", resource);
@id("past") @effect("alert") permit (principal, action == Action::"direct", resource) when { context.port == 80 };
@id("trap") @effect("quarantine") @for("15m") permit (principal, action == Action::"direct", resource);
@id("try") @mode("log-only") forbid (principal, action == Action::"direct", resource) when { context.port == 80 };
"#;
    let (bundle, surroundings, agent) = (bundle(text), Surroundings::default(), agent("a", "t", 1));
    let explained = |to: &str, address| {
        let target = Target::parse(to, None, None, address).unwrap();
        let texts = texts(&bundle, &surroundings);
        explain(&set(text), texts, &agent, (&target, Supposed::default()), TlsReading::Off)
    };
    let told = |explanation: &Explanation| {
        let of = |phase: &super::explain::Phase| {
            let effects = phase.effects.iter().map(|e| format!("{} {}", e.policy, e.effect));
            (phase.action.clone(), effects.collect::<Vec<_>>().join(", "))
        };
        explanation.phases.iter().map(of).collect::<Vec<_>>()
    };
    let phases = |all: &[(&str, &str)]| -> Vec<(String, String)> {
        all.iter().map(|(action, effects)| ((*action).to_owned(), (*effects).to_owned())).collect()
    };
    let wanted = [("connect", "met alert"), ("direct", "past alert, trap quarantine, try would-forbid")];
    assert_eq!(told(&explained("203.0.113.5:80", None)), phases(&wanted));
    let wanted = [("connect", "met alert"), ("direct", "trap quarantine")];
    assert_eq!(told(&explained("203.0.113.5:443", None)), phases(&wanted));
    // By the explicit proxy it is read, and `direct` is asked of nothing.
    let url = explained("http://api.test/", Some("203.0.113.5"));
    assert_eq!(told(&url), phases(&[("http", ""), ("connect", "met alert")]));
    let note =
        "forwards it unread, and what follows is `past` (alert), `trap` (quarantine), `try` (would-forbid)";
    assert!(url.notes.iter().any(|told| told.ends_with(note)), "{:?}", url.notes);
}

#[test]
fn an_encoded_slash_is_told_to_be_asked_about_both_ways() {
    for (path, is_told) in [("@scope%2fname", true), ("@scope/name", false)] {
        let url = explained(&format!("http://api.test/{path}"), None, Some("203.0.113.5"));
        let told = url.notes.iter().any(|note| note.contains("`/@scope/name`"));
        assert!(url.allowed && told == is_told, "{url:?}");
    }
}

/// What the platform says of content has as little to say where content passes unread.
#[test]
fn opaque_permits_make_the_platforms_content_rules_moot() {
    let (own, surroundings) = (bundle(TEXT), Surroundings::default());
    let above = bundle(
        r#"@id("all-opaque") permit (principal, action in [Action::"reach", Action::"opaque"], resource);
        @id("no-admin") forbid (principal, action == Action::"http", resource) when { context.path like "/admin*" };
        @id("elsewhere") forbid (principal, action == Action::"http", resource == Host::"other.test");"#,
    );
    let platform =
        PolicySet::parse_for(&PolicyOwner::Platform, &above.text, &above.sets, &surroundings).unwrap();
    let own = texts(&own, &surroundings);
    let texts = Texts { platform: Some(texts(&above, &surroundings).own), ..own };
    let set = set(TEXT).under(&platform);
    let moot = |to, protocol| {
        let target = Target::parse(to, None, protocol, None).unwrap();
        explain(&set, texts, &agent("a", "t", 1), (&target, Supposed::default()), TlsReading::Off).moot
    };
    assert_eq!(moot("https://api.test/admin", None), ["http", "no-admin", "pace", "platform/no-admin"]);
    let all = ["http", "no-admin", "pace", "platform/elsewhere", "platform/no-admin"];
    assert_eq!(moot("203.0.113.53:53", Some("udp")), all);
}

#[test]
fn targets_are_what_people_write() {
    for (text, method, protocol, said) in [
        ("ftp://a.test/", None, None, "none of `http://"),
        ("http://u:p@a.test/", None, None, "has a user"),
        ("http://a.test:99999/", None, None, "is not a port"),
        ("http://a b/", None, None, "a b"),
        ("a.test", None, None, "neither a URL nor an address"),
        ("192.0.2.1", None, None, "neither a URL nor an address"),
        ("192.0.2.1:1", Some("GET"), None, "go with a URL"),
        ("192.0.2.1:1", None, Some("tpc"), "is not a protocol"),
        ("http://a.test/", None, Some("udp"), "goes with an address"),
    ] {
        let error = Target::parse(text, method, protocol, None).unwrap_err();
        assert!(error.contains(said), "{text}: {error}");
    }
    let Target::Url { host, port, path, .. } =
        Target::parse("HTTPS://[2001:db8::1]:8443?q=/secret", None, None, None).unwrap()
    else {
        panic!("a URL");
    };
    assert_eq!((host.to_string().as_str(), port, path.as_str()), ("2001:db8::1", 8443, "/"));
    assert!(Target::parse("192.0.2.1", None, Some("icmp"), None).is_ok());
}

#[test]
fn cases_tell_what_is_not_as_wanted() {
    let cases: Cases = toml::from_str(
        r#"
        [[agent]]
        id = "a"
        team = "t"
        [[case]]
        agent = "a"
        to = "http://api.test/x"
        expect = "allow"
        policies = ["http"]
        effects = ["pace"]
        [[case]]
        name = "admin"
        agent = "a"
        to = "http://api.test/admin"
        expect = "allow"
        policies = ["http"]
        "#,
    )
    .unwrap();
    let (bundle, surroundings) = (bundle(TEXT), Surroundings::default());
    let agent = cases.agents[0].agent();
    let results = cases.cases.iter().map(|case| {
        let texts = texts(&bundle, &surroundings);
        case.check(&set(TEXT), texts, &agent, &case.target().unwrap(), TlsReading::Off)
    });
    let results: Vec<_> = results.collect();
    assert!(results[0].differences.is_empty(), "{results:?}");
    assert_eq!(cases.cases[1].expect, Verdict::Allow);
    let told: Vec<_> =
        results[1].differences.iter().map(|d| (d.what.as_str(), d.wanted.as_str(), d.got.as_str())).collect();
    assert_eq!(told, [("verdict", "allow", "deny"), ("policies", "http", "no-admin")]);
    assert!(toml::from_str::<Cases>("[[case]]\nagent = \"a\"\nto = \"x\"\nexpects = \"deny\"").is_err());
}

/// What is read is asked for its requests, and what isn't passes as a tunnel or not at all.
#[test]
fn cases_say_whether_tls_is_read() {
    let text = TEXT.replace("Action::\"tls\", Action::\"tunnel\"", "Action::\"tls\"");
    let cases: Cases = toml::from_str(
        "[intercept]\nexclude = [\"*.bank.test\"]\n[[case]]\nagent = \"a\"\nto = \"https://api.test/admin\"\nexpect = \"deny\"\nread = true\n",
    )
    .unwrap();
    assert_eq!(cases.intercept.as_ref().unwrap().exclude, ["*.bank.test"]);
    assert_eq!(cases.cases[0].read, Some(true));
    let (bundle, surroundings, agent) = (bundle(&text), Surroundings::default(), agent("a", "t", 1));
    let of = |to: &str, reading| {
        let target = Target::parse(to, None, None, None).unwrap();
        explain(&set(&text), texts(&bundle, &surroundings), &agent, (&target, Supposed::default()), reading)
    };
    check(&of("https://api.test/admin", TlsReading::On), "http", Some("policy_forbidden"), &["no-admin"]);
    check(&of("https://api.test/x", TlsReading::On), "http", None, &["http", "saas"]);
    for reading in [TlsReading::Off, TlsReading::Excluded] {
        check(&of("https://api.test/x", reading), "tunnel", Some("inspection_required"), &[]);
    }
}

#[test]
fn text_differs_by_policies_and_members() {
    let (a, mut b) =
        (bundle(TEXT), bundle(&TEXT.replace("/admin*", "/adm*").replace("\"other\")", "\"new\")")));
    b.sets.hosts.get_mut("saas").unwrap().insert("more.test".into());
    let difference = TextDifference::between(&a, &b);
    let keys = |of: Vec<&String>| of.into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(keys(difference.changed.keys().collect()), ["no-admin"]);
    assert_eq!(keys(difference.removed.keys().collect()), ["other"]);
    assert_eq!(keys(difference.added.keys().collect()), ["new"]);
    assert_eq!(difference.members_added["hosts.saas"].len(), 1);
    assert!(difference.members_removed.is_empty());
    assert!(TextDifference::between(&a, &a).is_empty());
}

/// What is listed is exactly where the sets differ: each address and port is asked of both.
#[test]
fn reach_differs_where_the_sets_do() {
    let agents = [agent("a", "t", 1), agent("b", "t", 2), agent("c", "u", 3)];
    let (a, b) =
        (set(TEXT), set(&TEXT.replace("203.0.113.66/32", "203.0.113.64/30").replace("443]", "444]")));
    let difference = ReachDifference::between(&a, &b, &agents).unwrap();
    assert!(difference.incomplete.is_none() && !difference.reaches.is_empty());
    let transports = [crate::Transport::Tcp, crate::Transport::Udp, crate::Transport::Icmp];
    for agent in &agents {
        let addresses = [0_u8, 1, 5, 63, 64, 65, 66, 67, 68, 255];
        for (n, transport) in addresses.into_iter().flat_map(|n| transports.map(|t| (n, t))) {
            let ip = std::net::IpAddr::from([203, 0, 113, n]);
            for port in [0, 53, 79, 80, 81, 443, 444, 445, u16::MAX] {
                let asked = |set| crate::kernel::expected(set, agent, ip, transport, port).0;
                let listed = difference.reaches.iter().filter(|reach| {
                    let has_port = reach.ports.is_none_or(|(first, last)| (first..=last).contains(&port));
                    let is_protocol = reach.protocol == transport.name();
                    let is_agent = reach.agents.contains(&agent.id.to_string());
                    is_agent && is_protocol && has_port && (reach.first..=reach.last).contains(&ip)
                });
                assert_eq!(listed.count() == 1, asked(&a) != asked(&b), "{} {ip} {port}", agent.id);
            }
        }
    }
    assert!(ReachDifference::between(&a, &a, &agents).unwrap().reaches.is_empty());
}

/// What model a request calls, no URL tells.
#[test]
fn cases_say_what_model_is_called() {
    let text = format!(
        "{TEXT} @id(\"minis\") permit (principal, action == Action::\"llm\", resource in Provider::\"openai\") when {{ context.llm.family like \"*-mini\" && context.llm.tools.isEmpty() }};"
    );
    let (bundle, surroundings, agent) = (bundle(&text), Surroundings::default(), agent("a", "t", 1));
    let target = |method: &str| Target::parse("https://api.test/x", Some(method), None, None).unwrap();
    let of = |call: &str, method: &str| {
        let call: Option<CaseCall> = (!call.is_empty()).then(|| toml::from_str(call).unwrap());
        let texts = texts(&bundle, &surroundings);
        let by_endpoint = target(method).by_endpoint().unwrap();
        explain(
            &set(&text),
            texts,
            &agent,
            (&by_endpoint, Supposed { call: call.as_ref(), ..Supposed::default() }),
            TlsReading::Off,
        )
    };
    let mini = "provider = \"openai\"\nmodel = \"gpt-5-mini\"\n";
    check(&of(mini, "POST"), "llm", None, &["http", "minis", "saas"]);
    check(&of("provider = \"openai\"\nmodel = \"gpt-5\"\n", "POST"), "llm", Some("policy_denied"), &[]);
    check(&of(&format!("{mini}tools = [\"x\"]\n"), "POST"), "llm", Some("policy_denied"), &[]);
    assert_eq!(of("", "POST").unasked, ["connect", "llm"]);
    assert_eq!(of("", "GET").unasked, ["connect"], "nothing is sent");
    assert!(toml::from_str::<CaseCall>("provider = \"openai\"\nmodle = \"x\"\n").is_err());
}

/// A client that says nothing of it has its responses kept, and Ollama's answers streamed.
#[test]
fn cases_that_say_nothing_are_as_their_surface_has_it() {
    let text = format!(
        "{TEXT} @id(\"any\") permit (principal, action == Action::\"llm\", resource) when {{ !context.llm.store && !context.llm.stream }};"
    );
    let (bundle, surroundings, agent) = (bundle(&text), Surroundings::default(), agent("a", "t", 1));
    let is_allowed = |more: &str| {
        let call: CaseCall = toml::from_str(&format!("provider = \"openai\"\n{more}")).unwrap();
        let texts = texts(&bundle, &surroundings);
        let target = Target::parse("https://api.test/x", Some("POST"), None, None).unwrap();
        let supposed = Supposed { call: Some(&call), ..Supposed::default() };
        let asked = (&target.by_endpoint().unwrap(), supposed);
        explain(&set(&text), texts, &agent, asked, TlsReading::Off).allowed
    };
    assert!(is_allowed(""));
    assert!(!is_allowed("store = true\n"));
    assert!(!is_allowed("surface = \"responses\"\n"));
    assert!(is_allowed("surface = \"responses\"\nstore = false\n"));
    assert!(!is_allowed("surface = \"ollama_chat\"\n"));
    assert!(is_allowed("surface = \"ollama_chat\"\nstream = false\n"));
}

/// What is kept, and who it is for, make a difference as what is named does.
#[test]
fn calls_differ_by_what_is_said_of_them() {
    let before = format!(
        "{TEXT}@id(\"any\") permit (principal, action == Action::\"llm\", resource in Provider::\"openai\");"
    );
    let turns = |forbid: &str| {
        let after = format!(
            "{before}@id(\"no\") forbid (principal, action == Action::\"llm\", resource) when {{ {forbid} }};"
        );
        let changes = requests(&before, &after, &[agent("a", "t", 1)]).changes;
        let calls = changes.into_iter().filter(|change| change.action == "llm");
        calls
            .filter_map(|change| change.about.get("call").cloned())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    };
    assert_eq!(turns("context.llm.store"), ["kept", "of responses"]);
    assert_eq!(turns("context.llm.partial"), ["partial"]);
    assert_eq!(turns("context.llm.images >= 7"), ["7 tokens", "8 tokens"]);
    assert_eq!(turns("context.llm.stream"), ["of ollama_chat", "streams"]);
    assert_eq!(turns("context.llm.end_user == \"bob\""), ["choice of tools or user bob"]);
    assert_eq!(turns("context.llm.surface == \"embeddings\""), ["of embeddings"]);
}

#[test]
fn cases_say_what_tool_is_called() {
    let text = format!(
        "{TEXT} @id(\"tickets\") permit (principal, action == Action::\"tool\", resource in ToolServer::\"jira\") when {{ context.tool.method != \"tools/call\" || context.tool.values.contains(\"/project=OPS\") }};"
    );
    let (bundle, surroundings, agent) = (bundle(&text), Surroundings::default(), agent("a", "t", 1));
    let of = |tool: &str| {
        let tool: Option<CaseTool> = (!tool.is_empty()).then(|| toml::from_str(tool).unwrap());
        let texts = texts(&bundle, &surroundings);
        let target = Target::parse("https://api.test/x", Some("POST"), None, None).unwrap();
        let calls = Supposed { tool: tool.as_ref(), ..Supposed::default() };
        explain(&set(&text), texts, &agent, (&target.by_endpoint().unwrap(), calls), TlsReading::Off)
    };
    let call = "server = \"jira\"\nname = \"create\"\n";
    check(&of(&format!("{call}values = [\"/project=OPS\"]\n")), "tool", None, &["http", "saas", "tickets"]);
    check(&of(call), "tool", Some("policy_denied"), &[]);
    check(&of("server = \"jira\"\nmethod = \"tools/list\"\n"), "tool", None, &["http", "saas", "tickets"]);
    assert_eq!(of("").unasked, ["connect", "tool"]);
}

const BODIES: &str = r#"
@id("http") permit (principal, action == Action::"http", resource);
@id("connect") permit (principal, action == Action::"connect", resource);
@id("small") permit (principal, action == Action::"send", resource) when { context.bytes <= 1000 };
@id("keys") forbid (principal, action == Action::"send", resource) when { context.findings.contains("private_key") };
@id("whole") forbid (principal, action == Action::"send", resource) when { !context.complete && context.path == "/whole" };
@id("told") @effect("alert") permit (principal, action == Action::"send", resource) when { context.media_type == "text/plain" };
"#;

fn sent(text: &str, to: &str, method: &str, body: Option<super::Body>) -> Explanation {
    let (bundle, surroundings) = (bundle(text), Surroundings::default());
    let target = Target::parse(to, Some(method), None, Some("203.0.113.5")).unwrap();
    let target = match body {
        Some(body) => target.with_body(body).unwrap(),
        None => target,
    };
    explain(
        &set(text),
        texts(&bundle, &surroundings),
        &agent("a", "t", 1),
        (&target, Supposed::default()),
        TlsReading::Off,
    )
}

#[test]
fn what_is_sent_is_asked_last() {
    let body = |bytes, findings: &[&str]| {
        let findings = findings.iter().map(|name| (*name).to_owned()).collect();
        Some(super::Body { bytes, findings, media_type: "text/plain".to_owned(), streams: false })
    };
    let small = sent(BODIES, "http://api.test/", "POST", body(10, &[]));
    check(&small, "send", None, &["connect", "http", "small"]);
    assert!(small.is_known() && small.effects().contains("told"), "{small:?}");
    check(&sent(BODIES, "http://api.test/", "POST", body(9_999, &[])), "send", Some("policy_denied"), &[]);
    let keys = sent(BODIES, "http://api.test/", "POST", body(10, &["private_key"]));
    check(&keys, "send", Some("policy_forbidden"), &["keys"]);
    // Of a GET nobody expects one; of others it is not known.
    assert!(sent(BODIES, "http://api.test/", "GET", None).is_known());
    let unsaid = sent(BODIES, "http://api.test/", "POST", None);
    assert!(unsaid.allowed && unsaid.unasked == ["send"], "{unsaid:?}");
    // Where nothing is asked, or nothing read, that is said.
    for (text, to) in [(TEXT, "http://api.test/"), (BODIES, "https://api.test/")] {
        let unasked = sent(text, to, "POST", body(10, &["private_key"]));
        assert!(unasked.phases.iter().all(|phase| phase.action != "send"), "{unasked:?}");
        assert!(unasked.notes.iter().any(|note| note.contains("`send`")), "{unasked:?}");
    }
}

/// As the proxy does it: a forbid counts as it is, and a permit as if what was seen were all.
#[test]
fn what_streams_is_judged_by_what_was_seen() {
    let streams = |to, bytes, findings: &[&str]| {
        let findings = findings.iter().map(|name| (*name).to_owned()).collect();
        sent(
            BODIES,
            to,
            "POST",
            Some(super::Body { bytes, findings, streams: true, ..super::Body::default() }),
        )
    };
    check(&streams("http://api.test/", 10, &[]), "send", None, &["connect", "http", "small"]);
    check(&streams("http://api.test/", 9_999, &[]), "send", Some("policy_denied"), &[]);
    check(&streams("http://api.test/", 10, &["private_key"]), "send", Some("policy_forbidden"), &["keys"]);
    check(&streams("http://api.test/whole", 10, &[]), "send", Some("policy_forbidden"), &["whole"]);
}

fn requests(a: &str, b: &str, agents: &[Agent]) -> super::requests::RequestDifference {
    let of = |text: &str| {
        let tenants = BTreeMap::from([("default".to_owned(), set(text))]);
        crate::Policies::new(None, tenants).unwrap().at(0)
    };
    let (first, second, surroundings) = (bundle(a), bundle(b), Surroundings::default());
    let texts = [&first, &second].map(|bundle| texts(bundle, &surroundings).own);
    super::requests::RequestDifference::between(&of(a), &of(b), &texts, agents)
}

/// Which agents, hosts, methods and paths, whatever the text looks like.
#[test]
fn requests_differ_where_the_sets_do() {
    let agents = [agent("a", "t", 1), agent("b", "t", 2), agent("c", "u", 3)];
    let told = |a: &str, b: &str| {
        let difference = requests(a, b, &agents);
        assert_eq!(difference.incomplete, None);
        let row = |c: super::requests::RequestChange| {
            let about: Vec<String> = c.about.iter().map(|(name, value)| format!("{name} {value}")).collect();
            let (agents, hosts) = (c.agents.join(" "), c.hosts.join(" "));
            format!("{agents}: {} {hosts} [{}] {} -> {}", c.action, about.join(", "), c.before, c.after)
        };
        difference.changes.into_iter().map(row).collect::<Vec<_>>()
    };
    assert_eq!(told(TEXT, TEXT), [""; 0]);
    // Another text for the same.
    let other = TEXT.replace(
        "context.path like \"/admin*\"",
        "context.path like \"/admin*\" || context.path == \"/admin/x\"",
    );
    assert_eq!(told(TEXT, &other), [""; 0]);
    let narrower = TEXT.replace("\"/admin*\"", "\"/admin/*\"");
    assert_eq!(
        told(TEXT, &narrower),
        [
            "default/a default/b: http (any other) [path /admin] policy_forbidden -> policy_denied",
            "default/a default/b: http (any other) [path /adminany] policy_forbidden -> policy_denied",
            "default/a default/b: http api.test [path /admin] policy_forbidden -> allow",
            "default/a default/b: http api.test [path /adminany] policy_forbidden -> allow",
            "default/c: http (any other) api.test [path /admin] policy_forbidden -> policy_denied",
            "default/c: http (any other) api.test [path /adminany] policy_forbidden -> policy_denied",
        ]
    );
    let posted = TEXT.replace(
        "@id(\"http\") permit (principal in Team::\"t\", action == Action::\"http\", resource in HostSet::\"saas\");",
        "@id(\"http\") permit (principal in Team::\"t\", action == Action::\"http\", resource in HostSet::\"saas\") unless { context.method == \"DELETE\" };",
    );
    let changes = told(TEXT, &posted);
    assert!(
        !changes.is_empty()
            && changes.iter().all(|row| row.contains("http api.test [method DELETE, path ")
                && row.ends_with("] allow -> policy_denied")),
        "{changes:?}"
    );
    // Effects count as much as verdicts.
    let slower = TEXT.replace("@id(\"pace\") @effect(\"rate-limit\")", "@id(\"pace\") @effect(\"throttle\")");
    assert!(
        told(TEXT, &slower)
            .iter()
            .any(|row| row.ends_with("allow, rate-limit by pace -> allow, throttle by pace"))
    );
    // One agent by its name, and bodies.
    let one = format!(
        "{TEXT}@id(\"one\") permit (principal == Agent::\"c\", action == Action::\"tls\", resource == Host::\"new.test\");"
    );
    assert_eq!(told(TEXT, &one), ["default/c: tls new.test [] policy_denied -> allow"]);
    let keys = BODIES.replace("\"private_key\"", "\"archive_unread\"");
    let changes = told(BODIES, &keys);
    assert!(
        changes
            .iter()
            .any(|row| row.contains("[body finding private_key]")
                && row.ends_with("policy_forbidden -> allow")),
        "{changes:?}"
    );
    assert!(
        changes
            .iter()
            .any(|row| row.contains("[body finding archive_unread]")
                && row.ends_with("allow -> policy_forbidden")),
        "{changes:?}"
    );
}

/// Calls of models and messages to tools, by whose they are.
#[test]
fn calls_differ_where_the_sets_do() {
    let before = format!(
        "{TEXT}@id(\"gpt\") permit (principal, action == Action::\"llm\", resource in Provider::\"openai\") when {{ context.llm.model like \"gpt-5*\" && context.llm.tokens_estimated <= 100 }};
@id(\"jira\") permit (principal, action == Action::\"tool\", resource in ToolServer::\"jira\") unless {{ context.tool.values.contains(\"/project=X\") }};"
    );
    let after = before.replace("<= 100", "<= 200").replace("/project=X", "/project=OPS");
    let changes = requests(&before, &after, &[agent("a", "t", 1)]).changes;
    let found = |action: &str, of: &str, call: &str| {
        let fits = |change: &&super::requests::RequestChange| {
            let about = change.about.get("call").map(String::as_str);
            change.action == action && change.hosts.iter().any(|host| host == of) && about == Some(call)
        };
        changes.iter().find(fits).map(|change| (change.before.as_str(), change.after.as_str()))
    };
    let more = Some(("policy_denied", "allow"));
    assert_eq!(found("llm", "openai/gpt-5", "200 tokens"), more, "{changes:?}");
    assert_eq!(found("llm", "openai/gpt-5any", "101 tokens"), more);
    assert_eq!(found("llm", "openai/gpt-5", "201 tokens"), None);
    assert_eq!(found("llm", "any-other/gpt-5", "200 tokens"), None);
    let less = Some(("allow", "policy_denied"));
    assert_eq!(found("tool", "jira/any-other", "argument /project=OPS"), less, "{changes:?}");
    assert_eq!(found("tool", "jira/any-other", "argument /project=X"), more);
}
