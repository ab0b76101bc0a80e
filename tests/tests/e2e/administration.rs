//! Bad input changes nothing; local commands are governed; sockets know their users.

use std::process::Command;
use std::time::Duration;

use clawgress_api::{Ingress, Plane, RecordKind, Verdict};
use clawgress_e2e::lab::{GatewayOptions, Host, Output, Role, finish as run, program};
use clawgress_e2e::plan::{API, GATEWAY, PROXY_PORT};
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER, POLICY, SETS};

use crate::support::{admin, agent, codes, curl, denied, finish, record, site, to_host};

/// Time for both planes to run a new generation.
const AGREE_TIME: Duration = Duration::from_secs(15);

/// What is wanted of the usual policy.
const CASES: &str = r#"
[[case]]
agent = "crawler"
to = "http://web.allowed.test/public/x"
address = "203.0.113.10"
expect = "allow"
policies = ["public-pages", "reach-web"]

[[case]]
agent = "crawler"
to = "http://api.allowed.test/admin"
expect = "deny"
reason = "policy_forbidden"
policies = ["no-admin"]
"#;

/// Holds an agent to where its local commands run.
const ONLY_HERE: &str = r#"
@id("only-here") forbid (principal == Agent::"assistant", action == Action::"tls", resource)
unless { context has cgroup && context.cgroup like "*/run-assistant-*" };
"#;

#[test]
fn a_bad_policy_is_refused_with_its_place_and_changes_nothing() {
    let site = site();
    let before = admin(&site).status().unwrap();
    let bad = [
        (POLICY.replace("Action::\"http\"", "Action::\"htpt\""), "policy.cedar:"),
        (POLICY.replace("context.port == 53", "context.prot == 53"), "policy.cedar:"),
        (POLICY.replace("HostSet::\"saas\"", "HostSet::\"sass\""), "sass"),
        (format!("{POLICY}\npermit ("), "policy.cedar:"),
        (format!("{POLICY}\n@id(\"dns\")\nforbid (principal, action, resource);"), "dns"),
    ];
    for (text, said) in bad {
        let output = admin(&site).apply_text(site.gateway.lab.dir(), &text, SETS).unwrap();
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.stderr.contains(said), "it should name `{said}`: {output:?}");
    }
    let sets = SETS.replace("203.0.113.0/24", "203.0.113.0/240");
    let output = admin(&site).apply_text(site.gateway.lab.dir(), POLICY, &sets).unwrap();
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("sets.toml:"), "{output:?}");
    let after = admin(&site).status().unwrap();
    assert_eq!((after.revision, after.generation), (before.revision, before.generation));
    finish(site);
}

#[test]
fn a_policy_that_takes_a_permit_away_ends_it_in_both_planes() {
    let mut site = site();
    let get = |site: &_| codes(&curl(site, Host::Known, &["http://api.allowed.test/x"])).0;
    assert_eq!(get(&site), 200);
    site.gateway
        .apply_policy(
            &POLICY.replace("saas-http", "x").replace(
                "Action::\"http\", resource in HostSet::\"saas\"",
                "Action::\"http\", resource == Host::\"other.test\"",
            ),
            SETS,
        )
        .unwrap();
    assert_eq!(get(&site), 403);
    site.gateway.apply_policy("", "").unwrap();
    let output = curl(
        &site,
        Host::Known,
        &["--resolve", "api.allowed.test:80:203.0.113.10", "http://api.allowed.test/x"],
    );
    assert!(!output.ok(), "nothing is permitted now: {output:?}");
    record(&site, "in the kernel", |r| r.plane == Plane::Kernel && denied(r, "policy_denied"));
    site.gateway.apply_policy(POLICY, SETS).unwrap();
    assert_eq!(get(&site), 200);
    finish(site);
}

/// What the planes do is what `explain` says, `replay` finds in their records, and `rollback` brings back.
#[test]
fn what_policy_verbs_say_is_what_the_planes_do() {
    let site = site();
    let dir = site.gateway.lab.dir();
    let (policy, sets, cases) = (dir.join("next.cedar"), dir.join("next.toml"), dir.join("cases.toml"));
    std::fs::write(&policy, POLICY.replace("/public/*", "/private/*")).unwrap();
    std::fs::write(&sets, SETS).unwrap();
    std::fs::write(&cases, CASES).unwrap();
    let [policy, sets, cases] = [&policy, &sets, &cases].map(|path| path.to_str().unwrap());
    let ctl = |args: &[&str]| site.gateway.ctl(args).unwrap();
    let get = |url| codes(&curl(&site, Host::Known, &[url])).0;
    let said = |output: &Output, code, said: &str| {
        assert!(output.code == Some(code) && output.stdout.contains(said), "`{said}`: {output:?}");
    };
    let page = "http://web.allowed.test/public/x";
    let admin_page = "http://api.allowed.test/admin/x";
    assert_eq!((get(page), get(admin_page)), (200, 403));
    let explain = ["policy", "explain", CRAWLER, page];
    said(&ctl(&explain), 6, "by `public-pages` at revision 1:");
    said(&ctl(&[&explain[..], &["--address", "203.0.113.11"]].concat()), 0, "connect: allow");
    said(
        &ctl(&["policy", "explain", CRAWLER, admin_page]),
        5,
        "denied: policy_forbidden (decided by `http`)",
    );
    said(&ctl(&["policy", "explain", CRAWLER, "https://inspect.allowed.test/"]), 5, "inspection_required");
    let next = ["policy", "explain", CRAWLER, page, "--policy", policy, "--sets", sets];
    said(&ctl(&next), 5, "denied: policy_denied (decided by `http`)");

    record(&site, "the page", |r| r.destination.path.as_deref() == Some("/public/x"));
    let replayed = ctl(&["policy", "replay", policy, "--sets", sets]);
    said(&replayed, 0, "web.allowed.test:80 GET /public/x");
    assert!(!replayed.stdout.contains("/admin/x"), "that stays as it is: {replayed:?}");
    said(&ctl(&["policy", "test", cases]), 0, "2 passed, 0 failed");
    said(&ctl(&["policy", "test", cases, "--policy", policy, "--sets", sets]), 1, "1 passed, 1 failed");
    said(&ctl(&["policy", "diff", "1", policy, "--second-sets", sets]), 0, "~ policy `public-pages`");

    said(&ctl(&["policy", "apply", policy, "--sets", sets, "-m", "next"]), 0, "revision 2 is live");
    site.gateway
        .lab
        .wait("the new policy in both planes", AGREE_TIME, || admin(&site).agreed().map(|_| true))
        .unwrap();
    assert_eq!(get(page), 403);
    said(&ctl(&["policy", "rollback", "-m", "the pages are missed"]), 0, "revision 3 is live");
    site.gateway
        .lab
        .wait("the old policy in both planes", AGREE_TIME, || admin(&site).agreed().map(|_| true))
        .unwrap();
    assert_eq!(get(page), 200);
    record(&site, "the rollback", |r| {
        r.detail.as_deref().is_some_and(|d| {
            d.contains("policy revision 3") && d.contains("after revision 2: roll back to revision 1")
        })
    });
    finish(site);
}

#[test]
fn a_bad_configuration_is_refused_with_its_place() {
    let site = site();
    let text = std::fs::read_to_string(site.gateway.config()).unwrap();
    let path = site.gateway.lab.dir().join("bad.toml");
    let cases = [
        (text.replace("mode = \"kernel\"", "mode = \"kernal\""), "bad.toml:"),
        (text.replace("[l7]", "[l7]\nthraeds = 2"), "bad.toml:"),
        (text.replace("[[interface]]", "[[interfaces]]"), "bad.toml:"),
        (String::from("["), "bad.toml:1"),
    ];
    for (text, said) in cases {
        std::fs::write(&path, text).unwrap();
        for (name, role) in [
            ("clawgress-agent", Some("datapath")),
            ("clawgress-agent", Some("control")),
            ("clawgress-l7", None),
        ] {
            let mut command = Command::new(program(name).unwrap());
            command.args(role).arg("--config").arg(&path);
            let output = run(&mut command, Duration::from_secs(10)).unwrap();
            assert_ne!(output.code, Some(0), "{output:?}");
            assert!(output.stderr.contains(said), "it should name `{said}`: {output:?}");
        }
    }
    finish(site);
}

#[test]
fn a_local_command_is_governed_by_its_cgroup() {
    let mut site = site();
    let ca = site.gateway.lab.ca();
    let ca = ca.to_str().unwrap();
    let governed = |args: &[&str]| {
        let all: Vec<&str> = ["run", "--agent", ASSISTANT, "--"].iter().chain(args).copied().collect();
        site.gateway.ctl(&all).unwrap()
    };
    let own = ["curl", "-sS", "--max-time", "5", "--cacert", ca];
    let with =
        |more: &[&'static str]| -> Vec<&str> { own.iter().copied().chain(more.iter().copied()).collect() };
    let output = governed(&with(&["https://api.allowed.test/run"]));
    assert!(output.ok() && output.stdout.contains("clawgress lab"), "{output:?}");
    let output = governed(&with(&["https://secret.denied.test/"]));
    assert!(!output.ok(), "{output:?}");
    // Past the proxy, whatever the variables say: what has to be read is led to L7 all the same, and the rest is
    // refused by the socket hooks.
    let past = |more: &[&'static str]| {
        governed(&with(&[&["-g", "--noproxy", "*", "-w", "\n%{http_code} %{http_connect}"], more].concat()))
    };
    let output = past(&["--resolve", "api.allowed.test:443:203.0.113.10", "https://api.allowed.test/past"]);
    assert!(output.ok() && output.stdout.contains("clawgress lab"), "{output:?}");
    for url in ["https://203.0.113.10/", "http://198.51.100.66/", "http://[2001:db8:113::10]/"] {
        let output = past(&["-k", url]);
        assert!(!output.ok() || codes(&output).0 == 403, "{url}: {output:?}");
    }
    let script = "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('198.51.100.66', 53))";
    assert!(!governed(&["python3", "-c", script]).ok());
    let code = governed(&["sh", "-c", "exit 7"]).code;
    assert_eq!(code, Some(7), "the command's exit code is passed on");
    record(&site, "the proxied call", |r| to_host(r, API) && agent(r) == Some(ASSISTANT));
    record(&site, "the steered call", |r| {
        r.plane == Plane::L7
            && r.ingress == Some(Ingress::Local)
            && to_host(r, API)
            && agent(r) == Some(ASSISTANT)
    });
    record(&site, "the refused socket", |r| {
        r.plane == Plane::Kernel && r.ingress == Some(Ingress::Local) && agent(r) == Some(ASSISTANT)
    });
    site.gateway.apply_policy(&format!("{POLICY}{ONLY_HERE}"), SETS).unwrap();
    let governed = |args: &[&str]| {
        let all: Vec<&str> = ["run", "--agent", ASSISTANT, "--"].iter().chain(args).copied().collect();
        site.gateway.ctl(&all).unwrap()
    };
    let output = governed(&with(&["https://api.allowed.test/here"]));
    assert!(output.ok() && output.stdout.contains("clawgress lab"), "{output:?}");
    // And at the gateway's IPv6 address.
    let to_v6 = format!(
        "exec curl -sS --max-time 5 --cacert {ca} -x \"${{HTTPS_PROXY%@*}}@[{}]:{PROXY_PORT}\" https://api.allowed.test/here6",
        GATEWAY.v6
    );
    let output = governed(&["sh", "-c", &to_v6]);
    assert!(output.ok() && output.stdout.contains("clawgress lab"), "{output:?}");
    // By its key alone, from another place, it is the same agent in no cgroup.
    let proxy = format!("http://{ASSISTANT}:{}@{}:{PROXY_PORT}", site.assistant_key, GATEWAY.v4);
    assert!(!curl(&site, Host::Anon, &["-x", &proxy, "https://api.allowed.test/elsewhere"]).ok());
    let here = record(&site, "the cgroup", |r| {
        r.fingerprint.as_ref().is_some_and(|f| f.cgroup.is_some()) && r.verdict == Some(Verdict::Allow)
    });
    let cgroup = here.fingerprint.and_then(|f| f.cgroup).unwrap();
    assert!(cgroup.starts_with('/') && cgroup.contains("/run-assistant-"), "{cgroup}");
    let elsewhere = record(&site, "the refusal", |r| r.policies == ["only-here"]);
    assert_eq!(elsewhere.fingerprint.and_then(|f| f.cgroup), None);
    record(&site, "the run's opening", |r| {
        r.kind == RecordKind::Change
            && r.detail.as_deref().is_some_and(|d| d.contains(&format!("in cgroup `{cgroup}`")))
    });
    site.gateway.apply_policy(POLICY, SETS).unwrap();
    finish(site);
}

#[test]
fn l7_may_use_neither_the_admin_nor_the_datapath_socket() {
    let site = site();
    let run_dir = site.gateway.lab.dir().join("run");
    let ctl = program("clawgressctl").unwrap();
    // It tells who answers at the socket, so that it is the agent that refuses, not the client.
    let config = format!("CLAWGRESS_CONFIG={}", site.gateway.config().display());
    for name in ["admin.sock", "datapath.sock"] {
        let socket = run_dir.join(name);
        let argv = [
            "setpriv",
            "--reuid",
            "nobody",
            "--regid",
            "65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--",
            "env",
            &config,
            ctl.to_str().unwrap(),
            "--socket",
            socket.to_str().unwrap(),
            "agent",
            "list",
        ];
        let output = site.gateway.lab.run(Host::Gateway, &argv).unwrap();
        assert!(!output.ok(), "{name}: {output:?}");
        assert_eq!(output.code, Some(4), "{name}: this user may not: {output:?}");
    }
    finish(site);
}

#[test]
fn l7_holds_no_capability_and_another_user() {
    let mut site = site();
    let pid = site.gateway.pid(Role::L7).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert!(!field("Uid:").split_whitespace().any(|uid| uid == "0"));
    assert_eq!(field("NoNewPrivs:"), "1");
    finish(site);
}

#[test]
fn more_connections_than_configured_are_closed_and_the_rest_lives() {
    let site =
        crate::support::site_with(GatewayOptions { connections_max: Some(40), ..GatewayOptions::default() });
    let flood = site.gateway.lab.within(Host::Anon, || {
        let to = std::net::SocketAddr::from(([10, 70, 0, 1], 3128));
        let open = |_| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(1)).ok();
        (0..200).filter_map(open).collect::<Vec<_>>()
    });
    // The anonymous host's share is full; the known host's is not.
    let output = curl(&site, Host::Known, &["https://api.allowed.test/"]);
    assert_eq!(codes(&output).0, 200, "{output:?}");
    drop(flood);
    finish(site);
}
