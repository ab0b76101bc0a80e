//! Obligations: limits of requests, quarantine and alerts, as policy text says them, on real traffic.

use std::time::Duration;

use clawgress_api::{AuditRecord, EffectRef, RecordKind};
use clawgress_ebpf_common::DropReason;
use clawgress_policy::effect::{Limit, Share};
use clawgress_policy::kernel::LimitAction;
use clawgress_policy::quota::{Pace, Scope};

use crate::client::Client;
use crate::harness::{Gateway, Options, PATIENCE, POLICY};
use crate::upstream::Upstream;

/// A gateway with this policy on top of the usual one, and an upstream with its host.
async fn with(policy: &str) -> (Gateway, Upstream, String) {
    let gateway = Gateway::start(Options::default()).await;
    assert_eq!(gateway.publish_policy(&format!("{POLICY}{policy}")).await, "");
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    (gateway, upstream, host)
}

fn get(host: &str, path: &str, auth: &str) -> String {
    format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{auth}\r\n")
}

/// The decision on the last request of this path, once it is recorded.
async fn decision(gateway: &Gateway, path: &str) -> AuditRecord {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let records = gateway.control.records();
        let mut decisions = records.into_iter().filter(|r| r.kind == RecordKind::Decision);
        let last = decisions.rfind(|r| r.destination.path.as_deref() == Some(path));
        if let Some(record) = last {
            return record;
        }
        assert!(tokio::time::Instant::now() < deadline, "no decision on {path}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn effect(policy: &str, effect: &str, severity: Option<&str>) -> EffectRef {
    EffectRef { policy: policy.to_owned(), effect: effect.to_owned(), severity: severity.map(str::to_owned) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_over_a_limit_is_told_when_to_come_back() {
    let (gateway, upstream, host) = with(
        r#"@id("few") @effect("rate-limit") @limit("2 requests/hour burst 2")
        permit (principal == Agent::"web", action == Action::"http", resource);
        @id("others") permit (principal == Agent::"other", action == Action::"http", resource);"#,
    )
    .await;
    let mut client = gateway.client().await;
    // What is denied spends nothing.
    for _ in 0..5 {
        client.send(get(&host, "/denied", &gateway.web())).await;
        assert_eq!(client.answer().await.reason(), "policy_denied");
    }
    for _ in 0..2 {
        client.send(get(&host, "/in", &gateway.web())).await;
        assert_eq!(client.answer().await.status, 200);
    }
    for _ in 0..5 {
        client.send(get(&host, "/over", &gateway.web())).await;
        let over = client.answer().await;
        assert_eq!((over.status, over.reason()), (429, "rate_limited"));
        let wait: u64 = over.field("retry-after").expect("a time").parse().expect("seconds");
        assert!((1_700..=1_800).contains(&wait), "half an hour for each: {wait}");
    }
    assert_eq!(upstream.requests().len(), 2);
    let over = decision(&gateway, "/over").await;
    assert_eq!(
        (over.reason, over.policies.as_slice()),
        (Some(DropReason::RateLimited), &["few".to_owned()][..])
    );
    assert_eq!(over.effects, [effect("few", "rate-limit", None)]);
    let within = decision(&gateway, "/in").await;
    assert_eq!((within.policies, within.effects), (vec!["http".into(), "net".into()], over.effects));
    let other = gateway.authorization("other", &gateway.other_key);
    assert_eq!(gateway.ask(&get(&host, "/", &other)).await.status, 200, "another agent has its own");
    // A limit that stays keeps its count; one that is changed begins anew.
    assert_eq!(gateway.publish(|s| s.agents[1].team = Some("x".into())).await, "");
    assert_eq!(gateway.ask(&get(&host, "/over", &gateway.web())).await.status, 429);
    let more = |s: &mut clawgress_api::Snapshot<clawgress_policy::PolicyBundle>| {
        let policy = s.policy.as_mut().expect("policy");
        policy.text = policy.text.replace("2 requests/hour burst 2", "3 requests/hour burst 2");
    };
    assert_eq!(gateway.publish(more).await, "");
    assert_eq!(gateway.ask(&get(&host, "/over", &gateway.web())).await.status, 200);
}

/// What control granted and could not say is asked for again by its name, and takes nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_costs_no_units() {
    let (gateway, _upstream, host) = with(
        r#"@id("few") @effect("rate-limit") @limit("2 requests/hour burst 2")
        permit (principal == Agent::"web", action == Action::"http", resource);"#,
    )
    .await;
    *gateway.control.lost.lock() = 1;
    let ask = async || gateway.ask(&get(&host, "/", &gateway.web())).await;
    assert_eq!(ask().await.reason(), "limit_unavailable");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while ask().await.status != 200 {
        assert!(tokio::time::Instant::now() < deadline, "control is asked again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ask().await.status, 200, "both units are there");
    assert_eq!(ask().await.status, 429);
}

/// Whose requests share a bucket, by each of the groups that a limit may be for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_shares_its_limit() {
    type Of = fn(&mut clawgress_identity::Agent, &str);
    let groups: [(&str, Option<Of>); 5] = [
        ("team", Some(|agent, name| agent.team = Some(name.into()))),
        ("project", Some(|agent, name| agent.project = Some(name.into()))),
        ("environment", Some(|agent, name| agent.environment = Some(name.into()))),
        // Both are in one tenant, whatever else they are in.
        ("tenant", None),
        ("agent", None),
    ];
    let (gateway, _upstream, host) =
        with(r#"@id("others") permit (principal == Agent::"other", action == Action::"http", resource);"#)
            .await;
    let other = gateway.authorization("other", &gateway.other_key);
    // How two requests of each are answered, in turn.
    let asked = async |path: &str| {
        let mut statuses = Vec::new();
        for auth in [gateway.web(), other.clone(), gateway.web(), other.clone()] {
            statuses.push(gateway.ask(&get(&host, path, &auth)).await.status);
        }
        statuses
    };
    for (share, of) in groups {
        // Each has a limit of its own, which counts from where it begins.
        let limited = |name: &str| {
            format!(
                "@id(\"{name}-{share}\") @effect(\"rate-limit\") @limit(\"2 requests/hour burst 2\") @per(\"{share}\")
                permit (principal, action == Action::\"http\", resource) when {{ context.path == \"/{name}\" }};
                @id(\"others\") permit (principal == Agent::\"other\", action == Action::\"http\", resource);"
            )
        };
        let put = async |name: &str, groups: [Option<&str>; 2]| {
            let text = format!("{POLICY}{}", limited(name));
            let change = |s: &mut clawgress_api::Snapshot<clawgress_policy::PolicyBundle>| {
                for (agent, group) in s.agents.iter_mut().zip(groups) {
                    (agent.team, agent.project, agent.environment) = (None, None, None);
                    if let (Some(of), Some(group)) = (of, group) {
                        of(agent, group);
                    }
                }
                s.policy.as_mut().expect("policy").text = text;
            };
            assert_eq!(gateway.publish(change).await, "");
        };
        put("one", [Some("crawlers"); 2]).await;
        let shared = if share == "agent" { [200; 4] } else { [200, 200, 429, 429] };
        assert_eq!(asked("/one").await, shared, "of one {share}");
        let apart = if share == "tenant" { [200, 200, 429, 429] } else { [200; 4] };
        put("two", [Some("crawlers"), Some("writers")]).await;
        assert_eq!(asked("/two").await, apart, "of two: {share}");
        put("none", [None; 2]).await;
        assert_eq!(asked("/none").await, apart, "of none: {share}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_throttled_waits_and_not_for_ever() {
    let (gateway, upstream, host) = with(
        r#"@id("pace") @effect("throttle") @limit("20 requests/second burst 1")
        permit (principal == Agent::"web", action == Action::"http", resource) when { context.path == "/slow" };
        @id("stop") @effect("throttle") @limit("1 requests/hour burst 1")
        permit (principal == Agent::"web", action == Action::"http", resource) when { context.path == "/once" };"#,
    )
    .await;
    let ask = async |path: &str| gateway.ask(&get(&host, path, &gateway.web())).await.status;
    let all = futures_util::future::join_all((0..12).map(|_| ask("/slow"))).await;
    assert_eq!(all, [200; 12], "more at once than the burst, and all are served");
    assert_eq!(upstream.requests().len(), 12);
    assert_eq!((ask("/once").await, ask("/once").await), (200, 429), "nobody waits for an hour");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_is_told_and_changes_nothing() {
    let (gateway, _upstream, host) = with(
        r#"@id("look") @effect("alert") @severity("high")
        permit (principal, action == Action::"http", resource) when { context.path like "*seen" };"#,
    )
    .await;
    for (path, status, effects) in [
        ("/seen", 200, vec![effect("look", "alert", Some("high"))]),
        ("/denied/seen", 403, vec![effect("look", "alert", Some("high"))]),
        ("/other", 200, vec![]),
    ] {
        assert_eq!(gateway.ask(&get(&host, path, &gateway.web())).await.status, status);
        assert_eq!(decision(&gateway, path).await.effects, effects, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarantine_of_policy_takes_everything_away() {
    let (gateway, upstream, host) = with(
        r#"@id("short") @effect("quarantine") @for("15m")
        permit (principal, action == Action::"http", resource) when { context.path like "/trap*" };
        @id("long") @effect("quarantine") @for("2h") @severity("critical")
        permit (principal, action == Action::"http", resource) when { context.path == "/trap/deep" };"#,
    )
    .await;
    let greeting = Upstream::server_first("127.1.0.1").await;
    let raw = format!("raw.allowed.test:{}", greeting.address.port());
    let (mut tunnel, head) = gateway.connect(&raw).await;
    assert_eq!(head.status, 200);
    tunnel.until("220 hello\r\n").await;
    let trapped = gateway.ask(&get(&host, "/trap/deep", &gateway.web())).await;
    assert_eq!((trapped.status, trapped.reason()), (403, "agent_quarantined"));
    assert!(upstream.requests().is_empty(), "it was permitted, and yet not sent");
    let imposed = gateway.control.imposed.lock().clone();
    assert_eq!(imposed.len(), 1, "once, for the longest");
    assert_eq!((imposed[0].agent, imposed[0].seconds, imposed[0].policy.as_str()), (1, 7_200, "long"));
    let record = decision(&gateway, "/trap/deep").await;
    assert_eq!((record.reason, &record.request), (Some(DropReason::AgentQuarantined), &imposed[0].request));
    assert_eq!(record.policies, ["long"]);
    assert_eq!(
        record.effects,
        [effect("long", "quarantine", Some("critical")), effect("short", "quarantine", Some("medium"))]
    );
    tunnel.held.clear();
    assert!(tunnel.is_closed(PATIENCE).await, "what was open ends too");
    assert_eq!(gateway.ask(&get(&host, "/", &gateway.web())).await.reason(), "agent_quarantined");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_control_only_what_is_limited_is_denied() {
    let (gateway, _upstream, host) = with(
        r#"@id("many") @effect("rate-limit") @limit("160 requests/hour burst 160")
        permit (principal, action == Action::"http", resource) when { context.path == "/limited" };
        @id("trap") @effect("quarantine")
        permit (principal, action == Action::"http", resource) when { context.path == "/trap" };"#,
    )
    .await;
    let ask = async |path: &str| gateway.ask(&get(&host, path, &gateway.web())).await;
    assert_eq!(ask("/limited").await.status, 200);
    gateway.kill_control();
    let mut last = ask("/limited").await;
    // What was leased is spent first: an eighth of the burst, unless it went back already.
    for _ in 0..20 {
        if last.status != 200 {
            break;
        }
        last = ask("/limited").await;
    }
    assert_eq!((last.status, last.reason()), (503, "limit_unavailable"));
    assert_eq!(ask("/free").await.status, 200);
    let trapped = ask("/trap").await;
    assert_eq!(
        (trapped.status, trapped.reason()),
        (403, "agent_quarantined"),
        "whether control hears it or not"
    );
    let decided = std::time::Instant::now();
    assert_eq!(ask("/free").await.reason(), "agent_quarantined", "it holds here");
    let age = decided.elapsed();
    gateway.start_control();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while gateway.control.imposed.lock().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "control is told once it is back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let told = gateway.control.imposed.lock()[0].age_ms;
    assert!(u128::from(told) >= age.as_millis(), "of when it was decided, not of when it is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_count_once_and_units_go_back() {
    let (gateway, _upstream, _) = with(
        r#"@id("tunnels") @effect("rate-limit") @limit("2 requests/hour burst 2")
        permit (principal, action in [Action::"tls", Action::"tunnel"], resource);
        @id("lots") @effect("rate-limit") @limit("64 requests/hour burst 64")
        permit (principal, action == Action::"http", resource);"#,
    )
    .await;
    let tls = Upstream::tls("127.1.0.1", "api.allowed.test").await;
    let host = format!("api.allowed.test:{}", tls.address.port());
    let open = async || -> (Client, Vec<u8>) {
        let (mut client, head) = gateway.connect(&host).await;
        assert_eq!(head.status, 200, "the hello decides");
        client.send(crate::tunnels::hello("api.allowed.test")).await;
        client.more().await;
        let first = client.held.clone();
        (client, first)
    };
    let (_one, first) = open().await;
    assert_eq!(first[0], 22, "a handshake of the server's");
    let (_two, first) = open().await;
    assert_eq!(first[0], 22);
    let (_three, first) = open().await;
    assert_eq!(first, [21, 3, 3, 0, 2, 2, 49], "an alert of the gateway's");
    let upstream = Upstream::http("127.1.0.1").await;
    let plain = format!("api.allowed.test:{}", upstream.address.port());
    assert_eq!(gateway.ask(&get(&plain, "/", &gateway.web())).await.status, 200);
    // One was spent; the rest of the lot is back when nobody wants it.
    let pace = Pace { count: 64, period_s: 3_600, burst: 64 };
    let limit = Limit::new("lots", pace, Share::Agent, LimitAction::Drop);
    let subject = "agent default/web#1".into();
    let scope = Scope { limit: limit.key, subject, pace, want: 64, least: 1 };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while gateway.control.units(&scope) != 63 {
        assert!(tokio::time::Instant::now() < deadline, "{} units", gateway.control.units(&scope));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_is_away_is_asked_for_all_the_same() {
    let (gateway, _upstream, _) = with(
        r#"@id("trap") @effect("quarantine")
        permit (principal, action == Action::"tls", resource == Host::"api.allowed.test");"#,
    )
    .await;
    // Nobody listens there.
    let closed = tokio::net::TcpListener::bind("127.1.0.1:0").await.expect("bind");
    let port = closed.local_addr().expect("address").port();
    drop(closed);
    let (mut client, answer) = gateway.connect(&format!("api.allowed.test:{port}")).await;
    assert_eq!(answer.status, 200, "what it is obliged to its hello tells");
    client.send(crate::tunnels::hello("api.allowed.test")).await;
    let (decision, _) = gateway.exchange(0).await;
    assert_eq!(gateway.control.imposed.lock().len(), 1);
    assert_eq!(
        (decision.policies, decision.reason),
        (vec!["trap".into()], Some(DropReason::AgentQuarantined))
    );
}

/// Who was told to begin before anybody was dialled is told that nobody is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_reached_behind_a_200_is_told_as_tls_has_it() {
    let (gateway, _upstream, _) = with(
        r#"@id("t") permit (principal, action == Action::"tls", resource == Host::"api.allowed.test");
        @id("u") permit (principal, action == Action::"tunnel", resource == Host::"api.allowed.test");
        @id("pace") @effect("throttle") @limit("20 requests/second burst 1")
        permit (principal, action == Action::"tls", resource == Host::"api.allowed.test");"#,
    )
    .await;
    let closed = std::net::TcpListener::bind("127.1.0.1:0").expect("bind").local_addr().expect("address");
    let (mut client, answer) = gateway.connect(&format!("api.allowed.test:{}", closed.port())).await;
    assert_eq!(answer.status, 200, "what it is obliged to its hello tells");
    client.send(crate::tunnels::hello("api.allowed.test")).await;
    let alert = client.rest().await;
    assert_eq!((alert.first(), alert.len()), (Some(&21), 7), "{alert:?}");
    let (decision, outcome) = gateway.exchange(0).await;
    assert_eq!((decision.reason, outcome.reason), (None, Some(DropReason::UpstreamFailed)));
    assert_eq!(outcome.status, Some(200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_that_only_logs_is_told_and_decides_nothing() {
    let (gateway, upstream, host) = with(
        r#"@id("no-try") @mode("log-only") forbid (principal, action == Action::"http", resource) when { context.path == "/try" };
        @id("denied-too") @mode("log-only") permit (principal, action == Action::"http", resource);"#,
    )
    .await;
    assert_eq!(gateway.ask(&get(&host, "/try", &gateway.web())).await.status, 200);
    assert_eq!(upstream.requests().len(), 1);
    let tried = decision(&gateway, "/try").await;
    assert_eq!((tried.reason, tried.policies), (None, vec!["http".into(), "net".into()]));
    let would = [effect("denied-too", "would-permit", None), effect("no-try", "would-forbid", None)];
    assert_eq!(tried.effects, would);
    let denied = gateway.ask(&get(&host, "/denied", &gateway.web())).await;
    assert_eq!(denied.reason(), "policy_denied");
    let denied = decision(&gateway, "/denied").await;
    assert_eq!(denied.effects, [effect("denied-too", "would-permit", None)]);
}

/// What one guard that only logs says of both parts of a tunnel is told once; what it says otherwise of one, and what another of
/// its name in the platform's policy says, is told as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_guards_that_only_log_say_is_merged_by_policy_and_word() {
    let gateway = Gateway::start(Options::default()).await;
    let watched = r#"
        @id("watch") @mode("log-only") forbid (principal, action in [Action::"tls", Action::"tunnel"], resource);
        @id("torn") @mode("log-only") forbid (principal, action in [Action::"tls", Action::"tunnel"], resource)
        when { action == Action::"tls" || context.port + 9223372036854775807 < 0 };"#;
    let above = r#"@id("all") permit (principal, action, resource);
        @id("watch") @mode("log-only") permit (principal, action in [Action::"tls", Action::"tunnel"], resource);"#;
    let bundle = |text: &str| clawgress_policy::PolicyBundle { text: text.to_owned(), ..Default::default() };
    let published = gateway.publish(|s| {
        s.policy = Some(bundle(&format!("{POLICY}{watched}")));
        s.platform = Some(bundle(above));
    });
    assert_eq!(published.await, "");
    let upstream = Upstream::tls("127.1.0.1", "api.allowed.test").await;
    let (mut client, answer) =
        gateway.connect(&format!("api.allowed.test:{}", upstream.address.port())).await;
    assert_eq!(answer.status, 200);
    client.send(crate::tunnels::hello("api.allowed.test")).await;
    gateway.decisions(1).await;
    let records = gateway.control.records();
    let decision = records.iter().find(|r| r.kind == RecordKind::Decision).expect("a decision");
    let told = [
        effect("platform/watch", "would-permit", None),
        effect("torn", "would-fail", None),
        effect("torn", "would-forbid", None),
        effect("watch", "would-forbid", None),
    ];
    assert_eq!(decision.effects, told);
    assert_eq!(decision.reason, None, "none of them decides");
}

/// What is free of a limit of requests for `web`, with this burst; all that may be had of it.
fn limit_of(policy: &str, burst: u64) -> Scope {
    let pace = Pace { count: burst, period_s: 3_600, burst };
    let limit = Limit::new(policy, pace, Share::Agent, LimitAction::Drop);
    Scope { limit: limit.key, subject: "agent default/web#1".into(), pace, want: burst, least: 1 }
}

/// The order in which what matches applies: quarantine, guards, limits, changes; alerts are told whatever comes of the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_matches_applies_in_one_order() {
    let (gateway, upstream, host) = with(
        r#"@id("e-trap") @effect("quarantine") @for("15m") @severity("critical")
        permit (principal, action == Action::"http", resource) when { context.path == "/all" };
        @id("d-no") forbid (principal, action == Action::"http", resource)
        when { ["/all", "/forbidden"].contains(context.path) };
        @id("c-few") @effect("rate-limit") @limit("64 requests/hour burst 64")
        permit (principal, action == Action::"http", resource);
        @id("b-tag") @effect("transform") @set_header("X-Tag: gateway")
        permit (principal, action == Action::"http", resource);
        @id("a-look") @effect("alert") @severity("low")
        permit (principal, action == Action::"http", resource);"#,
    )
    .await;
    let matching = [
        effect("a-look", "alert", Some("low")),
        effect("b-tag", "transform", None),
        effect("c-few", "rate-limit", None),
        effect("e-trap", "quarantine", Some("critical")),
    ];
    let scope = limit_of("c-few", 64);
    let ask = async |path: &str| {
        let answer = gateway.ask(&get(&host, path, &gateway.web())).await;
        (answer.status, answer.reason().to_owned())
    };
    // Without the quarantine a guard decides: nothing is sent, and nothing counts.
    assert_eq!(ask("/forbidden").await, (403, "policy_forbidden".to_owned()));
    let forbidden = decision(&gateway, "/forbidden").await;
    assert_eq!(
        (forbidden.reason, forbidden.policies.as_slice()),
        (Some(DropReason::PolicyForbidden), &["d-no".to_owned()][..])
    );
    assert_eq!(forbidden.effects, matching[..3], "the alert is told all the same");
    assert!(forbidden.changes.is_empty() && upstream.requests().is_empty());
    assert_eq!(gateway.control.units(&scope), 64);
    // Without the guard it counts, is changed and is sent.
    assert_eq!(ask("/passes").await.0, 200);
    let sent = upstream.requests().pop().expect("a request").to_lowercase();
    assert!(sent.contains("x-tag: gateway"), "{sent}");
    assert_eq!(decision(&gateway, "/passes").await.effects, matching[..3]);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while gateway.control.units(&scope) != 63 {
        assert!(tokio::time::Instant::now() < deadline, "{} units", gateway.control.units(&scope));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // With all of it the quarantine comes first.
    assert_eq!(ask("/all").await, (403, "agent_quarantined".to_owned()));
    let all = decision(&gateway, "/all").await;
    assert_eq!(
        (all.reason, all.policies.as_slice()),
        (Some(DropReason::AgentQuarantined), &["e-trap".to_owned()][..])
    );
    assert_eq!(all.effects, matching);
    assert!(all.changes.is_empty() && upstream.requests().len() == 1, "it is not sent");
    assert_eq!(gateway.control.units(&scope), 63, "nor counted");
    let imposed = gateway.control.imposed.lock().clone();
    assert_eq!(imposed.len(), 1);
    assert_eq!((imposed[0].agent, imposed[0].seconds, imposed[0].policy.as_str()), (1, 900, "e-trap"));
}
