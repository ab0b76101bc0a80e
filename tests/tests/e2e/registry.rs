//! What the registry says of an agent counts at once, in both planes and for what is under way.

use std::os::unix::fs::PermissionsExt as _;

use clawgress_api::Plane;
use clawgress_e2e::lab::{Host, Output};
use clawgress_e2e::plan::GATEWAY;
use clawgress_e2e::scenario::{CRAWLER, POLICY, SETS, Site, TEAM};

use crate::quarantine::{CLIENT, wait_for};
use crate::support::{admin, agent, codes, curl, curl_within, cut, denied, finish, record, site};

/// What becomes of the crawler's open connections, and of those of a local command of it, over a change by `args`; `meanwhile`
/// nothing is asked on them.
fn under_way(site: &Site, name: &str, args: &[&str], meanwhile: impl FnOnce()) -> (Output, Output) {
    let lab = &site.gateway.lab;
    let ca = lab.ca();
    let directory = lab.dir().join(name);
    std::fs::create_dir(&directory).unwrap();
    // The local command is another user's.
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    let (path, ca) = (directory.to_str().unwrap(), ca.to_str().unwrap());
    let gateway = GATEWAY.v4.to_string();
    let client = |mode| ["python3", "-c", CLIENT, path, ca, mode, &gateway].map(str::to_owned);
    std::thread::scope(|scope| {
        let host = scope.spawn(|| lab.run(Host::Known, &client("host")).unwrap());
        let workload = scope.spawn(|| {
            let command = client("workload");
            let run = ["run", "--agent", CRAWLER, "--"].into_iter();
            let args: Vec<&str> = run.chain(command.iter().map(String::as_str)).collect();
            site.gateway.ctl(&args).unwrap()
        });
        wait_for(site, &directory.join("ready-host"));
        wait_for(site, &directory.join("ready-workload"));
        // Answered when both planes have it.
        site.gateway.ctl(args).unwrap().check().unwrap();
        meanwhile();
        std::fs::write(directory.join("go"), "").unwrap();
        (host.join().unwrap(), workload.join().unwrap())
    })
}

fn get(site: &Site) -> u16 {
    codes(&curl_within(site, Host::Known, 3, &["http://api.allowed.test/x"])).0
}

#[test]
fn a_disabled_agent_is_cut_off_in_both_planes() {
    let site = site();
    // Of the proxy's: what was steered, the tunnel, and the local command's.
    let meanwhile = || {
        cut(&site, (CRAWLER, "agent_disabled", 3), |r| {
            r.detail.as_deref().is_some_and(|d| d.contains("to \"disabled\" by "))
        });
    };
    let (host, workload) = under_way(&site, "disable", &["agent", "disable", CRAWLER], meanwhile);
    assert!(host.ok() && workload.ok(), "{host:?}\n{workload:?}");
    assert_eq!(host.stdout.trim(), "direct is cut\nsteered is cut\ntunnel is cut", "{host:?}");
    assert_eq!(workload.stdout.trim(), "workload is cut\nsockets are refused", "{workload:?}");
    record(&site, "the kernel's word", |r| {
        r.plane == Plane::Kernel && denied(r, "agent_disabled") && agent(r) == Some(CRAWLER)
    });
    // Its key alone, from elsewhere.
    let keyed = crate::support::proxy(CRAWLER, &site.crawler_key);
    let output = curl(&site, Host::Anon, &["-v", "-x", &keyed, "http://api.allowed.test/"]);
    assert!(output.stderr.contains("x-clawgress-reason: agent_disabled"), "{output:?}");
    assert_eq!(get(&site), 0, "the kernel has it as nobody");
    site.gateway.ctl(&["agent", "enable", CRAWLER]).unwrap().check().unwrap();
    assert_eq!(get(&site), 200);
    finish(site);
}

#[test]
fn an_agent_that_moves_is_judged_by_where_it_is_and_by_its_labels() {
    let mut site = site();
    let ctl = |site: &Site, args: &[&str]| site.gateway.ctl(args).unwrap();
    assert_eq!(get(&site), 200);
    let refused = ctl(&site, &["agent", "set", CRAWLER, "--team", "reserach"]);
    assert!(refused.stderr.contains("there is no team `default/reserach`"), "{refused:?}");
    let (host, workload) = under_way(&site, "move", &["agent", "set", CRAWLER, "--team", "visitors"], || ());
    assert!(host.ok() && workload.ok(), "{host:?}\n{workload:?}");
    assert_eq!(host.stdout.trim(), "direct is cut\nsteered is cut\ntunnel is cut", "{host:?}");
    assert!(workload.stdout.starts_with("workload is cut\n"), "{workload:?}");
    assert_eq!(get(&site), 0, "no policy permits visitors anything");
    // Of the research team there is still the assistant.
    let used = ctl(&site, &["team", "delete", TEAM]);
    assert!(used.stderr.contains("in use by agent `default/assistant`"), "{used:?}");
    ctl(&site, &["agent", "set", CRAWLER, "--team", TEAM]).check().unwrap();
    assert_eq!(get(&site), 200);

    // The owner is a label, and labels are policy's to ask for: in the kernel's tables, and in the proxy.
    let owned = "unless { principal.hasTag(\"owner\") && principal.getTag(\"owner\") == \"ann\" };";
    for (action, code) in [("connect", 0), ("http", 403)] {
        let policy = format!(
            "{POLICY}\n@id(\"owned\")\nforbid (principal, action == Action::\"{action}\", resource)\n{owned}"
        );
        site.gateway.apply_policy(&policy, SETS).unwrap();
        assert_eq!(get(&site), code, "{action}");
        ctl(&site, &["agent", "set", CRAWLER, "--owner", "ann"]).check().unwrap();
        assert_eq!(get(&site), 200, "{action}");
        ctl(&site, &["agent", "set", CRAWLER, "--no-owner"]).check().unwrap();
    }
    site.gateway.apply_policy(POLICY, SETS).unwrap();
    let log = admin(&site).ctl(&["audit", "search", "-o", "json", "--kind", "change"]).unwrap().stdout;
    assert!(
        log.contains("agent set by root: is ") && log.contains(r#"\"labels\":{\"owner\":\"ann\"}"#),
        "{log}"
    );
    finish(site);
}
