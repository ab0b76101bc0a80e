//! Rate limits: what they say, what is refused, and that they grant nothing.

use super::*;
use crate::kernel::{
    KernelAction, LIMITERS_MAX, LIMITS_PER_CELL_MAX, LimitAction, LimitSubject, LimitUnit, Limiter, compile,
};

/// `@effect("…") @limit("…") …` before a permit of everything by `connect`.
fn obligation(annotations: &str) -> String {
    format!("@id(\"slow\") {annotations} permit (principal, action == Action::\"connect\", resource);")
}

fn limiter(annotations: &str) -> Limiter {
    set(&obligation(annotations)).limiters().next().unwrap().clone()
}

#[test]
fn limits_are_read_as_written() {
    use LimitUnit::{Bytes, Connections, Packets};
    for (limit, wanted) in [
        ("1000 packets/second burst 2000", (Packets, 1_000, 1, 2_000)),
        ("1000 packets/second", (Packets, 1_000, 1, 1_000)),
        ("90 packets/minute", (Packets, 90, 60, 1)),
        ("1 packets/hour", (Packets, 1, 3_600, 1)),
        ("1 packets/hour burst 1", (Packets, 1, 3_600, 1)),
        ("120 connections/minute burst 120", (Connections, 120, 60, 120)),
        ("100000000 connections/second", (Connections, 100_000_000, 1, 100_000_000)),
        ("1024 bytes/second", (Bytes, 1_024, 1, 65_536)),
        ("1 KiB/second burst 64", (Bytes, 1_024, 1, 65_536)),
        ("61440 bytes/minute burst 65535", (Bytes, 61_440, 60, 65_535)),
        ("100 kB/second", (Bytes, 100_000, 1, 100_000)),
        ("3 MB/minute burst 4", (Bytes, 3_000_000, 60, 4_000_000)),
        ("100 GB/second burst 360000", (Bytes, 100_000_000_000, 1, 360_000_000_000_000)),
        (" 5  MiB/hour ", (Bytes, 5 << 20, 3_600, 65_536)),
        ("2 GiB/hour burst 2", (Bytes, 2 << 30, 3_600, 2 << 30)),
    ] {
        let l = limiter(&format!("@effect(\"rate-limit\") @limit(\"{limit}\")"));
        assert_eq!((l.unit, l.count, l.period_s, l.burst), wanted, "{limit}");
        assert_eq!((l.policy.as_str(), l.over, l.subject), ("slow", LimitAction::Drop, LimitSubject::Agent));
        assert_ne!(l.key, 0);
    }
    let paced = limiter("@effect(\"throttle\") @limit(\"1 MB/second\") @per(\"workload\")");
    assert_eq!((paced.over, paced.subject), (LimitAction::Pace, LimitSubject::Workload));
    let agent = limiter("@per(\"agent\") @limit(\"1 MB/second\") @effect(\"rate-limit\")");
    assert_eq!(agent.subject, LimitSubject::Agent);
}

/// Annotations and their one problem, from its place on.
const REFUSED: &[(&str, &str)] = &[
    (r#"@effect("rate-limit")"#, "1:13: policy `slow`: `@effect(\"rate-limit\")` needs a limit"),
    (
        r#"@effect("throttel") @limit("1 MB/second")"#,
        "1:13: policy `slow`: `throttel` is not an effect: the effects are",
    ),
    (
        r#"@effect @limit("1 MB/second")"#,
        "1:13: policy `slow`: `` is not an effect: the effects are `rate-limit`",
    ),
    (
        r#"@effect("quarantine") @for("15m") @limit("1 MB/second")"#,
        "1:47: policy `slow`: `@limit` is for a limit, and `quarantine` is none",
    ),
    (r#"@limit("1 MB/second")"#, "1:13: policy `slow`: `@limit` says nothing without an effect"),
    (r#"@per("agent")"#, "1:13: policy `slow`: `@per` says nothing without an effect"),
    (
        r#"@effect("rate-limit") @limit("1 MB/second") @per("label")"#,
        "1:57: policy `slow`: `label` is nothing a limit of `connect` can be for: write one of `agent`, `workload`, `team`",
    ),
    (
        r#"@effect("throttle") @limit("9 connections/second")"#,
        "1:33: policy `slow`: connections can't be sent later",
    ),
];

/// Limits and what is wrong with them.
const REFUSED_LIMITS: &[(&str, &str)] = &[
    ("", "`` is not a limit: write `<count> <unit>/<period>`"),
    ("1000", "`1000` is not a limit: write"),
    ("1000 packets", "`1000 packets` is not a limit: write"),
    ("-1 packets/second", "`-1 packets/second` is not a limit: write"),
    ("+1 packets/second", "`+1 packets/second` is not a limit: write"),
    ("1_000 packets/second", "`1_000 packets/second` is not a limit: write"),
    ("1.5 MB/second", "`1.5 MB/second` is not a limit: write"),
    ("99999999999999999999 bytes/second", "`99999999999999999999 bytes/second` is not a limit: write"),
    ("18446744073709551615 GB/hour", "`18446744073709551615 GB/hour` is not a limit: write"),
    ("9 packets/second burst", "`9 packets/second burst` is not a limit: write"),
    ("9 packets/second burst x", "`9 packets/second burst x` is not a limit: write"),
    ("9 packets/second bursts 9", "`9 packets/second bursts 9` is not a limit: write"),
    ("9 packets/second burst 9 9", "`9 packets/second burst 9 9` is not a limit: write"),
    (
        "9 packet/second",
        "`packet` is not a unit of such limits: write one of `packets`, `connections`, `bytes`",
    ),
    ("9 mb/second", "`mb` is not a unit of such limits: write one of"),
    ("20 requests/minute burst 5", "`requests` are what the proxy sees, so they are limited for `http`"),
    ("9 packets/day", "`day` is not a period: write `second`, `minute` or `hour`"),
    ("0 packets/second", "a limit can't be kept at this rate: packets pass at 1 an hour"),
    (
        "100000001 packets/second",
        "a limit can't be kept at this rate: packets pass at 1 an hour to 100000000",
    ),
    ("0 connections/hour", "a limit can't be kept at this rate: connections begin at 1 an hour"),
    (
        "1023 bytes/second",
        "a limit can't be kept at this rate: bytes pass at 1 KiB to 100 GB a second: write a gr",
    ),
    (
        "101 GB/second",
        "a limit can't be kept at this rate: bytes pass at 1 KiB to 100 GB a second: write a lower",
    ),
    (
        "1 MB/second burst 0",
        "a burst of 0 bytes would never let the largest packet pass: write at least 65535",
    ),
    ("100000 bytes/second burst 65534", "a burst of 65534 bytes would never let the largest packet pass"),
    ("9 packets/second burst 0", "a burst of 0 lets nothing pass: write at least 1"),
    (
        "9 packets/second burst 32401",
        "the burst is more than passes in an hour, which is the most there may be: wri",
    ),
    ("1 KiB/second burst 3601", "the burst is more than passes in an hour, which is the most there may be"),
];

#[test]
fn what_is_no_limit_is_refused_with_what_to_write() {
    let problem = |text: &str| {
        let errors = PolicySet::parse(&bundle(text)).map(|_| ()).expect_err(text);
        errors.problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    for (annotations, wanted) in REFUSED {
        let problems = problem(&obligation(annotations));
        assert!(problems[0].starts_with(wanted), "{annotations}: {problems:#?}");
    }
    for (limit, wanted) in REFUSED_LIMITS {
        let problems = problem(&obligation(&format!("@effect(\"rate-limit\") @limit(\"{limit}\")")));
        let wanted = format!("1:35: policy `slow`: {wanted}");
        assert!(problems.len() == 1 && problems[0].starts_with(&wanted), "{limit}: {problems:#?}");
    }
    let annotated = r#"@id("slow") @effect("rate-limit") @limit("9 packets/second") "#;
    let only = "`@effect(\"rate-limit\")` is either for `connect` alone";
    for (policy, place, wanted) in [
        (
            r#"forbid (principal, action == Action::"connect", resource);"#,
            "1:13",
            "an effect is for `permit` only",
        ),
        (r#"permit (principal, action, resource);"#, "1:13", only),
        (r#"permit (principal, action == Action::"direct", resource);"#, "1:91", only),
        (
            r#"permit (principal, action == Action::"tls", resource);"#,
            "1:35",
            "`packets` are limited for `connect`",
        ),
        (r#"permit (principal, action in [Action::"tls", Action::"connect"], resource);"#, "1:92", only),
        (r#"permit (principal, action in Action::"reach", resource);"#, "1:91", only),
        // The reviews of guards.
        (
            r#"permit (principal, action == Action::"connect", resource in NetworkSet::"nope");"#,
            "1:122",
            "there is no network set `nope`",
        ),
        (
            r#"permit (principal, action == Action::"connect", resource) when { context.port + 1 == 2 };"#,
            "1:127",
            "`context.port + 1 == 2` cannot be compiled for the kernel exactly",
        ),
        (
            r#"permit (principal, action == Action::"connect", resource) when { context.hour == 24 };"#,
            "1:143",
            "`24` is not an hour",
        ),
        (
            r#"permit (principal, action == Action::"connect", resource) when { 1 == 2 };"#,
            "1:1",
            "policy is imp",
        ),
    ] {
        let problems = problem(&format!("{annotated}{policy}"));
        let wanted = format!("{place}: policy `slow`: {wanted}");
        assert!(problems.len() == 1 && problems[0].starts_with(&wanted), "{policy}\n{wanted}\n{problems:#?}");
    }
    let many: String = (0..=LIMITERS_MAX)
        .map(|n| {
            obligation("@effect(\"rate-limit\") @limit(\"9 packets/second\")")
                .replace("slow", &format!("p{n}"))
        })
        .collect();
    assert!(problem(&many)[0].starts_with("1025 rate limits, and there may be 1024"));
}

/// The agents of a group are held to one limiter of the group's, those in none each to their own.
#[test]
fn groups_share_a_limiter() {
    let all = |more: &str| {
        format!(
            r#"@id("all") permit (principal, action, resource); @id("pace") @effect("rate-limit") @limit("9 packets/second") {more} permit (principal, action == Action::"connect", resource);"#
        )
    };
    let in_team = |index: u32, name: &str, team: Option<&str>| Agent {
        index,
        team: team.map(str::to_owned),
        project: None,
        environment: None,
        ..agent(name)
    };
    let agents = [
        in_team(1, "a", Some("payments")),
        in_team(2, "b", Some("payments")),
        in_team(3, "c", Some("search")),
        in_team(4, "d", None),
        in_team(5, "e", None),
    ];
    let held = |policy: &str| -> Vec<Vec<(Option<String>, u64)>> {
        let tables = compile(&set(policy), &agents).unwrap();
        let ordered = tables.limiters.is_sorted_by_key(|l| (l.policy.clone(), l.group.clone()));
        assert!(ordered, "{:?}", tables.limiters);
        let limits = |index: u32| {
            let limits = tables.lookup_limits(index, "8.8.8.8".parse().unwrap(), Transport::Tcp, 443);
            assert!(limits.is_sorted(), "{limits:?}");
            limits.iter().map(|n| &tables.limiters[*n as usize]).map(|l| (l.group.clone(), l.key)).collect()
        };
        agents.iter().map(|agent| limits(agent.index)).collect()
    };
    let groups = |held: &[Vec<(Option<String>, u64)>]| -> Vec<Option<String>> {
        held.iter().map(|limits| limits[0].0.clone()).collect()
    };
    let named = |name: &str| Some(name.to_owned());
    let team = held(&all(r#"@per("team")"#));
    let [payments, search] = ["team default/payments", "team default/search"].map(named);
    assert_eq!(groups(&team), [payments.clone(), payments.clone(), search, None, None]);
    assert!(team[0] == team[1] && team[0] != team[2] && team[3] == team[4] && team[3] != team[0]);
    assert_eq!(groups(&held(&all(r#"@per("project")"#))), vec![None; 5], "nobody is in a project");
    assert_eq!(groups(&held(&all(r#"@per("environment")"#))), vec![None; 5], "nor in an environment");
    assert_eq!(groups(&held(&all(r#"@per("tenant")"#))), vec![named("tenant default/"); 5]);
    assert_eq!(groups(&held(&all(r#"@per("agent")"#))), vec![None; 5]);
    // Two limits, one of them the team's: the two agents of one team are of one class all the same.
    let both = format!(
        r#"{} @id("own") @effect("rate-limit") @limit("5 packets/second") permit (principal, action == Action::"connect", resource);"#,
        all(r#"@per("team")"#)
    );
    let both = held(&both);
    assert!(both.iter().all(|limits| limits.len() == 2) && both[0] == both[1], "{both:?}");
    // Only for whom it holds.
    let some = all(r#"@per("team")"#)
        .replace("permit (principal, action ==", r#"permit (principal == Agent::"c", action =="#);
    let some = held(&some);
    assert!(some[0].is_empty() && some[2].len() == 1 && some[3].is_empty(), "{some:?}");
}

/// So do those of one project, and those of one environment, whatever else they are in.
#[test]
fn projects_and_environments_share_a_limiter() {
    let grouped = |index: u32, project: Option<&str>, environment: Option<&str>| Agent {
        index,
        team: Some(format!("t{index}")),
        project: project.map(str::to_owned),
        environment: environment.map(str::to_owned),
        ..agent(&format!("a{index}"))
    };
    let agents = [
        grouped(1, Some("atlas"), Some("prod")),
        grouped(2, Some("atlas"), Some("dev")),
        grouped(3, Some("other"), Some("prod")),
        grouped(4, None, None),
    ];
    let ip = "8.8.8.8".parse().unwrap();
    for (share, wanted) in [
        ("project", ["project default/atlas", "project default/atlas", "project default/other", ""]),
        (
            "environment",
            ["environment default/prod", "environment default/dev", "environment default/prod", ""],
        ),
        ("team", ["team default/t1", "team default/t2", "team default/t3", "team default/t4"]),
        ("agent", [""; 4]),
    ] {
        let guard = r#"@id("all") permit (principal, action, resource);"#;
        let pace = format!(r#"@effect("rate-limit") @limit("9 packets/second") @per("{share}")"#);
        let tables = compile(&set(&format!("{guard}\n{}", obligation(&pace))), &agents).unwrap();
        let held = agents.each_ref().map(|agent| {
            let limits = tables.lookup_limits(agent.index, ip, Transport::Tcp, 443);
            let limits: Vec<&Limiter> = limits.iter().map(|n| &tables.limiters[*n as usize]).collect();
            assert_eq!(limits.len(), 1, "{share}: {limits:?}");
            (limits[0].group.clone().unwrap_or_default(), limits[0].key)
        });
        assert_eq!(held.each_ref().map(|(group, _)| group.as_str()), wanted, "{share}");
        // One limiter for those of one group, and for nobody else.
        for (n, (group, key)) in held.iter().enumerate() {
            for (other, other_key) in &held[..n] {
                assert_eq!(group == other, key == other_key, "{share}: {held:?}");
            }
        }
    }
}

/// A group for each agent takes a limiter for each: more than there may be are refused.
#[test]
fn too_many_groups_are_refused() {
    let policy = r#"@id("all") permit (principal, action, resource); @id("pace") @effect("rate-limit") @limit("9 packets/second") @per("team") permit (principal, action == Action::"connect", resource);"#;
    let agents = |count: u32| -> Vec<Agent> {
        (1..=count)
            .map(|index| Agent { index, team: Some(format!("t{index}")), ..agent(&format!("a{index}")) })
            .collect()
    };
    let most = u32::try_from(LIMITERS_MAX).unwrap() - 1;
    assert_eq!(compile(&set(policy), &agents(most)).unwrap().limiters.len(), LIMITERS_MAX);
    let refused = compile(&set(policy), &agents(most + 1)).unwrap_err();
    let refused = format!("{refused:?}");
    assert!(refused.contains("1025 rate limits, one for each group that shares one"), "{refused}");
    // Groups that may go nowhere need none.
    let few =
        policy.replacen("(principal, action, resource)", "(principal in Team::\"t7\", action, resource)", 1);
    assert_ne!(few, policy);
    let tables = compile(&set(&few), &agents(most + 1)).unwrap();
    let groups: Vec<_> = tables.limiters.iter().map(|limiter| limiter.group.as_deref()).collect();
    assert_eq!(groups, [None, Some("team default/t7")]);
}

/// An obligation grants nothing, names nothing, and holds for what guards allow.
#[test]
fn obligations_grant_nothing() {
    let slow = obligation("@effect(\"rate-limit\") @limit(\"9 packets/second\")");
    let named = r#"@id("named") @effect("throttle") @limit("9 kB/second")
        permit (principal in Team::"payments", action == Action::"connect", resource)
        when { context.ip.isInRange(ip("10.0.0.0/8")) || context.protocol == "gre" };"#;
    let guard = r#"@id("web") permit (principal, action == Action::"connect", resource) when { context.protocol != "udp" };"#;
    let a = agent("web");
    let ask = |set: &PolicySet, ip: &str, transport| {
        let ip = ip.parse().unwrap();
        let tables = compile(set, std::slice::from_ref(&a)).unwrap();
        let limits: Vec<String> = tables
            .lookup_limits(a.index, ip, transport, 443)
            .iter()
            .map(|n| tables.limiters[*n as usize].policy.clone())
            .collect();
        let (action, policies) = tables.lookup(a.index, ip, transport, 443);
        assert_eq!(limits, crate::kernel::expected_limits(set, &a, ip, transport, 443));
        let allowed = set.reach(&a, ip, 443, transport);
        let is_error = allowed.verdict == Err(DropReason::PolicyError);
        assert!(
            is_error || !policies.iter().any(|id| ["slow", "named"].contains(&id.as_str())),
            "{policies:?}"
        );
        (action, allowed.verdict, limits)
    };
    let deny = |reason: DropReason| (KernelAction::Deny(reason.code()), Err(reason), Vec::<String>::new());
    let alone = set(&format!("{slow}{named}"));
    assert_eq!(alone.len(), 2);
    assert_eq!(ask(&alone, "8.8.8.8", Transport::Tcp), deny(DropReason::PolicyDenied));
    assert_eq!(ask(&alone, "8.8.8.8", Transport::Gre), deny(DropReason::ProtocolUnsupported));
    let guarded = set(&format!("{slow}{named}{guard}"));
    let steer = |limits: &[&str]| {
        (KernelAction::Steer, Ok(()), limits.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(ask(&guarded, "8.8.8.8", Transport::Tcp), steer(&["slow"]));
    assert_eq!(ask(&guarded, "8.8.8.8", Transport::Udp), deny(DropReason::PolicyDenied));
    assert_eq!(ask(&guarded, "10.0.0.1", Transport::Tcp), deny(DropReason::AddressReserved));
    assert_eq!(ask(&guarded, "8.8.8.8", Transport::Gre), deny(DropReason::ProtocolUnsupported));
    let inside = r#"@id("in") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("10.0.0.0/8")) };"#;
    assert_eq!(
        ask(&set(&format!("{slow}{named}{inside}")), "10.0.0.1", Transport::Tcp),
        steer(&["named", "slow"])
    );
    let failing = obligation("@effect(\"rate-limit\") @limit(\"9 packets/second\")")
        .replace(");", ") when { principal.name == \"web\" && 9223372036854775807 + 1 > 0 };");
    let failing = set(&format!("{failing}{guard}"));
    assert_eq!(ask(&failing, "8.8.8.8", Transport::Tcp).1, Err(DropReason::PolicyError));
    let denied = failing.reach(&a, "8.8.8.8".parse().unwrap(), 443, Transport::Tcp);
    assert_eq!(denied.policies, ["slow"]);
    assert!(failing.reach(&agent("other"), "8.8.8.8".parse().unwrap(), 443, Transport::Tcp).is_allow());
}

#[test]
fn more_limits_at_once_than_may_are_refused_with_their_names() {
    let text = |count: usize| -> String {
        let slow = obligation("@effect(\"rate-limit\") @limit(\"9 packets/second\")");
        let limits: String = (0..count).map(|n| slow.replace("slow", &format!("p{n}"))).collect();
        limits
            + r#"@id("web") permit (principal, action == Action::"connect", resource) when { context.port == 443 };"#
    };
    let agents = [agent("web")];
    assert_eq!(
        compile(&set(&text(LIMITS_PER_CELL_MAX)), &agents).unwrap().limits,
        [vec![], vec![0, 1, 2, 3]]
    );
    let errors = compile(&set(&text(LIMITS_PER_CELL_MAX + 1)), &agents).unwrap_err();
    let message = &errors.problems[0].message;
    assert!(
        message.starts_with("5 rate limits apply at once to ")
            && message.contains("`p0`, `p1`, `p2`, `p3`, `p4`"),
        "{message}"
    );
}
