//! The roles as the shipped units have them run: each with the system calls, the mask and the sight of `/proc` that its
//! unit gives it.

use std::time::Duration;

use clawgress_e2e::lab::{GatewayOptions, Host, Role};
use clawgress_e2e::scenario::ASSISTANT;

use crate::support::{admin, codes, curl, finish, proxy, site_with};

/// For what has to come sooner or later, on a busy machine.
const SOON: Duration = Duration::from_secs(40);

#[test]
fn every_role_works_as_its_unit_has_it_run() {
    let mut site = site_with(GatewayOptions { units: true, ..GatewayOptions::default() });
    for role in Role::ALL {
        let pid = site.gateway.pid(role).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned()
        };
        assert_eq!((field("Seccomp:"), field("Umask:")), ("2".to_owned(), "0077".to_owned()), "{role:?}");
    }
    // The proxy serves what is steered, and whoever has a key.
    for family in ["-4", "-6"] {
        let output = curl(&site, Host::Known, &[family, "https://api.allowed.test/unit"]);
        assert_eq!(codes(&output).0, 200, "{output:?}");
    }
    let url = proxy("assistant", &site.assistant_key);
    let output = curl(&site, Host::Anon, &["-x", &url, "https://api.allowed.test/unit"]);
    assert_eq!(codes(&output), (200, 200), "{output:?}");
    // A command in a cgroup of its own, which the control role must be able to tell from a role: it is refused the
    // administration, and nothing else is.
    let ca = site.gateway.lab.ca();
    let ca = ca.to_str().unwrap();
    let line = [
        "run",
        "--agent",
        ASSISTANT,
        "--",
        "curl",
        "-sS",
        "--cacert",
        ca,
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
    ];
    let words: Vec<&str> = line.into_iter().chain(["https://api.allowed.test/run"]).collect();
    let output = site.gateway.ctl(&words).unwrap().check().unwrap();
    assert!(output.stdout.ends_with("200"), "{output:?}");
    // Another process beside the first, and one in place of another.
    site.gateway.launch(Role::L7Beside).unwrap();
    let both = || Ok(admin(&site).status()?.l7.len() == 2);
    site.gateway.lab.wait("both workers", SOON, both).unwrap();
    site.gateway.stop(Role::L7, SOON).unwrap();
    site.gateway.launch(Role::L7).unwrap();
    // Control, back, knows which workers there were: it can see what it tells this machine's boots apart by.
    site.gateway.kill(Role::Control).unwrap();
    site.gateway.launch(Role::Control).unwrap();
    site.gateway.ready().unwrap();
    let warnings = admin(&site).status().unwrap().warnings;
    assert!(!warnings.iter().any(|w| w.contains("workers.json")), "{warnings:?}");
    finish(site);
}
