//! Rate limits: what policy says of how fast, real clients feel, whichever way they take; and only those it is about.

use clawgress_api::{LiveLimit, Plane};
use clawgress_e2e::lab::Host;
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER, POLICY, SETS, Site};

use crate::support::{admin, agent, curl, curl_within, denied, finish, proxy, record, site};

const LIMIT: &str = r#"
@id("few-new-ones") @effect("rate-limit") @limit("4 connections/hour burst 4")
permit (principal in Team::"research", action == Action::"connect", resource in NetworkSet::"web")
when { context.port == 443 };
"#;
const PAGE: &str = "https://api.allowed.test/";

fn limits(site: &Site) -> Vec<LiveLimit> {
    let output = admin(site).ctl(&["--output", "json", "limits"]).unwrap().check().unwrap();
    serde_json::from_str(&output.stdout).unwrap()
}

#[test]
fn connections_count_once_by_either_way_out_and_for_their_agent_alone() {
    let mut site = site();
    let text = format!("{POLICY}{LIMIT}");
    site.gateway.apply_policy(&text, SETS).unwrap();
    let output = curl(&site, Host::Known, &["-4", PAGE]);
    assert!(output.ok(), "{output:?}");
    let first = limits(&site);
    let mine = |rows: &[LiveLimit]| {
        let row = rows.iter().find(|l| {
            l.policy.as_deref() == Some("few-new-ones")
                && l.agent.as_ref().is_some_and(|a| a.name() == CRAWLER)
        });
        row.cloned().unwrap()
    };
    let row = mine(&first);
    assert_eq!((row.count, row.period_s, row.burst, row.passed, row.room), (4, 3600, 4, 1, 3), "{row:?}");

    // By the explicit proxy it is the proxy that connects.
    let explicit = |key: &str, user: &str| ["-x".to_owned(), proxy(user, key)];
    let key = site.crawler_key.clone();
    let by_proxy = explicit(&key, CRAWLER);
    for n in 2..=3 {
        let output = curl(&site, Host::Known, &[&by_proxy[0], &by_proxy[1], PAGE]);
        assert!(output.ok(), "{n}: {output:?}");
    }
    let output = curl(&site, Host::Known, &["-4", PAGE]);
    assert!(output.ok(), "{output:?}");
    assert!(!curl_within(&site, Host::Known, 3, &["-4", PAGE]).ok(), "the fifth");
    assert!(
        !curl_within(&site, Host::Known, 6, &[&by_proxy[0], &by_proxy[1], PAGE]).ok(),
        "the fifth by proxy"
    );
    let drop = record(&site, "the drop", |r| r.plane == Plane::Kernel && denied(r, "rate_limited"));
    assert_eq!(agent(&drop), Some(CRAWLER));
    assert_eq!(drop.policies, ["few-new-ones"]);
    let row = mine(&limits(&site));
    assert_eq!((row.passed, row.room), (4, 0), "{row:?}");
    assert!(row.dropped > 0);

    // Not what the limit doesn't name, and nobody else.
    let output = curl(&site, Host::Known, &["-4", "http://api.allowed.test/"]);
    assert!(output.ok(), "{output:?}");
    let other = explicit(&site.assistant_key, ASSISTANT);
    let output = curl(&site, Host::Anon, &[&other[0], &other[1], PAGE]);
    assert!(output.ok(), "{output:?}");
    // The same text again is no way to a full bucket.
    site.gateway.apply_policy(&format!("// again\n{text}"), SETS).unwrap();
    assert!(!curl_within(&site, Host::Known, 3, &["-4", PAGE]).ok(), "the sixth");
    site.gateway.apply_policy(POLICY, SETS).unwrap();
    finish(site);
}

const OBLIGATIONS: &str = r#"
@id("few-requests") @effect("rate-limit") @limit("2 requests/hour burst 2") @per("team")
permit (principal in Team::"research", action == Action::"http", resource);
@id("trap") @effect("quarantine") @for("1h") @severity("high")
permit (principal in Team::"research", action == Action::"http", resource) when { context.path == "/trap" };
"#;

/// The proxy asks control for what holds over all of it, and control quarantines in both planes.
#[test]
fn requests_are_limited_and_a_trap_quarantines_in_both_planes() {
    let mut site = site();
    site.gateway.apply_policy(&format!("{POLICY}{OBLIGATIONS}"), SETS).unwrap();
    let status = |site: &Site, path: &str| {
        let url = format!("http://api.allowed.test{path}");
        let output = curl(site, Host::Known, &["-4", "-o", "/dev/null", "-w", "%{http_code}", &url]);
        output.stdout.trim().to_owned()
    };
    assert_eq!((status(&site, "/"), status(&site, "/")), ("200".to_owned(), "200".to_owned()));
    assert_eq!(status(&site, "/"), "429");
    let over = record(&site, "the request too many", |r| r.plane == Plane::L7 && denied(r, "rate_limited"));
    assert_eq!((agent(&over), over.policies.as_slice()), (Some(CRAWLER), &["few-requests".to_owned()][..]));
    // The other agent of the team, by the explicit proxy: one limit for all of it, and TLS is none of that.
    let other = ["-x".to_owned(), proxy(ASSISTANT, &site.assistant_key)];
    let url = "http://api.allowed.test/";
    let output =
        curl(&site, Host::Anon, &[&other[0], &other[1], "-o", "/dev/null", "-w", "%{http_code}", url]);
    assert_eq!(output.stdout.trim(), "429");
    assert!(curl(&site, Host::Known, &["-4", PAGE]).ok());

    // The kernel may already have taken away what the answer would come by.
    let trap = curl_within(&site, Host::Known, 3, &["-4", "--fail", "http://api.allowed.test/trap"]);
    assert!(!trap.ok(), "{trap:?}");
    let trapped = record(&site, "the trap", |r| r.plane == Plane::L7 && denied(r, "agent_quarantined"));
    assert_eq!(trapped.policies, ["trap"]);
    let change = record(&site, "the change", |r| {
        r.detail.as_deref().is_some_and(|d| d.contains("policy `trap` at request") && d.contains(CRAWLER))
    });
    assert!(change.detail.as_deref().is_some_and(|d| d.contains(&trapped.request)), "{change:?}");
    assert!(!curl_within(&site, Host::Known, 3, &["-4", PAGE]).ok(), "the kernel plane holds it too");
    let shown = admin(&site).ctl(&["--output", "json", "agent", "show", CRAWLER]).unwrap().check().unwrap();
    assert!(shown.stdout.contains("quarantined"), "{}", shown.stdout);
    admin(&site).ctl(&["agent", "release", CRAWLER]).unwrap().check().unwrap();
    assert!(curl(&site, Host::Known, &["-4", PAGE]).ok(), "released");
    site.gateway.apply_policy(POLICY, SETS).unwrap();
    finish(site);
}

/// A stranger may knock at the proxy, but not hammer.
#[test]
fn strangers_begin_few_connections_and_others_are_served() {
    let site = site();
    let script = r"
import select, socket, sys, time
sockets = [socket.socket() for _ in range(600)]
for s in sockets:
    s.setblocking(False)
    s.connect_ex((sys.argv[1], 3128))
# What was dropped is sent again after a second.
time.sleep(0.5)
poll = select.poll()
for s in sockets:
    poll.register(s, select.POLLOUT)
print(len(poll.poll(0)))
";
    let gateway = clawgress_e2e::plan::GATEWAY.v4.to_string();
    let output = site.gateway.lab.run(Host::Anon, &["python3", "-c", script, &gateway]).unwrap();
    let passed: u32 = output.stdout.trim().parse().unwrap();
    assert!((100..600).contains(&passed), "{passed} of 600");
    let drop = record(&site, "the drop", |r| r.plane == Plane::Kernel && denied(r, "rate_limited"));
    assert!(drop.agent.is_none() && drop.policies.is_empty(), "{drop:?}");
    assert!(limits(&site).iter().any(|l| l.policy.is_none() && l.dropped == 0 && l.passed > 0));
    finish(site);
}
