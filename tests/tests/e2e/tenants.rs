//! Two tenants on one gateway, each with a policy of its own, and the platform's, which neither lifts, in both planes.

use clawgress_api::{Plane, Revisions};
use clawgress_e2e::lab::Host;
use clawgress_e2e::plan::{ANON, BLOCKED, SECRET};
use clawgress_e2e::scenario::{POLICY, SETS, Site};

use crate::support::{admin, codes, curl, denied, finish, record, site, to_host};

/// Everything, to FORBIDDEN too: what a tenant would have.
const WANTS_ALL: &str = r#"
@id("wants-all")
permit (principal, action in [Action::"connect", Action::"direct"], resource in NetworkSet::"everything")
when { ["tcp", "udp"].contains(context.protocol) && context.port != 80 && context.port != 443 };
@id("wants-web")
permit (principal, action == Action::"connect", resource in NetworkSet::"everything")
when { context.protocol == "tcp" && [80, 443].contains(context.port) };
@id("wants-names")
permit (principal, action in [Action::"tls", Action::"tunnel", Action::"http"], resource in HostSet::"denied");
"#;
/// Of `acme` only: public pages, and nothing of what `default` may.
const ACME: &str = r#"
@id("pages")
permit (principal, action == Action::"http", resource == Host::"web.allowed.test")
when { context.path like "/public/*" };
"#;
const MORE_SETS: &str = r#"
everything = ["203.0.113.0/24", "2001:db8:113::/64", "198.51.100.0/24", "2001:db8:51::/64"]
"#;
/// The operator's.
const PLATFORM: &str = r#"
@id("what-tenants-permit")
permit (principal, action, resource);
@id("no-forbidden-net")
forbid (principal, action == Action::"connect", resource in NetworkSet::"forbidden");
@id("no-denied-names")
forbid (principal, action in [Action::"tls", Action::"tunnel", Action::"http"], resource)
when { resource.name like "*.denied.test" };
"#;
const PLATFORM_SETS: &str = "[networks]\nforbidden = [\"198.51.100.128/25\", \"2001:db8:51:0:1::/80\"]\n";

fn apply(site: &Site, whose: &[&str], policy: &str, sets: &str) {
    let dir = site.gateway.lab.dir();
    let (policy_file, sets_file) = (dir.join("tenants.cedar"), dir.join("tenants.toml"));
    std::fs::write(&policy_file, policy).unwrap();
    std::fs::write(&sets_file, sets).unwrap();
    let (policy, sets) = (policy_file.to_str().unwrap(), sets_file.to_str().unwrap());
    let args = [&["policy", "apply", policy, "--sets", sets, "-m", "by the lab"][..], whose].concat();
    admin(site).ctl(&args).unwrap().check().unwrap();
    let agreed = || Ok(admin(site).agreed().is_ok());
    site.gateway.lab.wait("both planes", std::time::Duration::from_secs(30), agreed).unwrap();
}

#[test]
fn neither_tenant_lifts_what_the_platform_forbids() {
    let site = site();
    let source = format!("agents0={},{}", ANON.v4, ANON.mac);
    let created = admin(&site).ctl(&["agent", "create", "acme/bot", "--source", &source]).unwrap();
    created.check().unwrap();
    let status = |host, url| codes(&curl(&site, host, &["-4", url])).0;
    let public = "http://web.allowed.test/public/a";
    assert_ne!(status(Host::Anon, public), 200, "a tenant without a policy permits nothing");

    // The platform's first: there is no moment at which a tenant has what it forbids.
    apply(&site, &["--platform"], PLATFORM, PLATFORM_SETS);
    let sets = format!(
        "{}{MORE_SETS}",
        SETS.replace("[hosts]\n", "[hosts]\ndenied = [\"secret.denied.test\", \"blocked.denied.test\"]\n")
    );
    apply(&site, &[], &format!("{POLICY}{WANTS_ALL}"), &sets);
    apply(&site, &["--tenant", "acme"], &format!("{ACME}{WANTS_ALL}"), &sets);

    // Each has its own.
    assert_eq!(status(Host::Known, "https://api.allowed.test/"), 200);
    assert_eq!(status(Host::Anon, public), 200);
    assert_ne!(status(Host::Anon, "https://api.allowed.test/"), 200);
    assert_eq!(status(Host::Anon, "http://api.allowed.test/"), 403);
    // Neither has what the platform forbids: by name in the proxy, by address in the kernel.
    for host in [Host::Known, Host::Anon] {
        for url in ["https://secret.denied.test/", "https://blocked.denied.test/"] {
            assert!(!curl(&site, host, &["-4", url]).ok(), "{url}");
        }
        assert_eq!(status(host, "http://secret.denied.test/"), 403);
        let script = "
import socket
for port in (4444, 443):
    try:
        socket.create_connection(('198.51.100.130', port), 2)
        print('tcp is open')
    except OSError:
        pass
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(1)
try:
    udp.sendto(b'x', ('198.51.100.130', 4444))
    udp.recv(1)
    print('udp is open')
except OSError:
    pass
";
        let tried = site.gateway.lab.run(host, &["python3", "-c", script]).unwrap().check().unwrap();
        assert_eq!(tried.stdout, "", "{tried:?}");
    }
    for tenant in ["default", "acme"] {
        let is_of = |r: &clawgress_api::AuditRecord| {
            denied(r, "policy_forbidden") && r.agent.as_ref().is_some_and(|a| a.tenant == tenant)
        };
        let kernel = record(&site, "the kernel's word", |r| r.plane == Plane::Kernel && is_of(r));
        assert_eq!(kernel.policies, ["platform/no-forbidden-net"]);
        let l7 = record(&site, "L7's word", |r| r.plane == Plane::L7 && is_of(r) && to_host(r, SECRET));
        assert_eq!(l7.policies, ["platform/no-denied-names"]);
        let tenants = if tenant == "default" { 2 } else { 1 };
        for record in [&kernel, &l7] {
            let revisions = Revisions { platform: Some(1), tenant: Some(tenants) };
            assert_eq!(record.revisions, Some(revisions), "{record:?}");
        }
    }
    assert!(BLOCKED.ends_with(".denied.test"));
    // What was decided is decided so again, by tenants' and by the platform's.
    for whose in [&[][..], &["--tenant", "acme"], &["--platform"]] {
        let args = [&["policy", "replay", "0", "--since", "10m", "-o", "json"][..], whose].concat();
        let replayed = admin(&site).ctl(&args);
        let replayed = replayed.unwrap().check().unwrap();
        let report: serde_json::Value = serde_json::from_str(&replayed.stdout).unwrap();
        let denials = report["decisions"].as_u64().unwrap();
        assert!(denials > 3, "{replayed:?}");
    }
    finish(site);
}
