//! Tunnels by DNS as they are made, iodine and dns2tcp: where policy doesn't permit their zone nothing of them goes out; where it
//! does they are told, and carry next to nothing.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clawgress_api::{AuditQuery, AuditRecord};
use clawgress_e2e::lab::{Daemon, GatewayOptions, Host, Output};
use clawgress_e2e::plan::{API, DELEGATED, DNS, DNS2TCP, IODINE};
use clawgress_e2e::scenario::{POLICY, SETS, Site};

use crate::support::{admin, denied, finish, record, site_with};

/// The agents' DNS is the gateway's.
const RESOLVE: &str = r#"
@id("names") permit (principal in Team::"research", action == Action::"resolve", resource == Host::"api.allowed.test");
"#;
/// And somebody permits all of what is below two names more.
const BROAD: &str = r#"
@id("broad") permit (principal in Team::"research", action == Action::"resolve", resource in HostSet::"broad");
"#;

/// Bounds by the minute in this test: enough for iodine to begin, which asks some sixty questions for that.
const CAPS: &str =
    "[dns]\nnames_per_minute_max = 200\nuncommon_per_minute_max = 150\nbytes_per_minute_max = 131072\n";
/// What a minute's bound is, and how many minutes a test may touch.
const BYTES_MAX: u64 = 131_072;
const MINUTES_MAX: u64 = 3;
/// What is asked for by a tunnel, several times what may pass.
const WANTED: u64 = 8_000_000;

/// Time for a tunnel to begin, or to give up.
const BEGIN_TIME: Duration = Duration::from_secs(60);

struct Zone {
    site: Site,
    servers: Vec<Daemon>,
}

fn zone(broad: bool) -> Zone {
    let mut site = site_with(GatewayOptions { more: CAPS.to_owned(), ..GatewayOptions::default() });
    let steered = POLICY.replace(
        "action in [Action::\"connect\", Action::\"direct\"], resource in NetworkSet::\"dns\"",
        "action == Action::\"connect\", resource in NetworkSet::\"dns\"",
    );
    assert_ne!(steered, POLICY);
    let sets = SETS.replace(
        "[hosts]\n",
        &format!("[hosts]\nbroad = [\"*.{IODINE}\", \"*.{DNS2TCP}\", \"{IODINE}\", \"{DNS2TCP}\"]\n"),
    );
    let more = if broad { BROAD } else { "" };
    site.gateway.apply_policy(&format!("{steered}{RESOLVE}{more}"), &sets).unwrap();
    let servers = vec![iodined(&site), dns2tcpd(&site)];
    Zone { site, servers }
}

/// The end of a tunnel outside. It gives it an address there, at which the outside's web server is.
fn iodined(site: &Site) -> Daemon {
    let port = DELEGATED[0].1.to_string();
    let argv = [
        "iodined",
        "-f",
        "-c",
        "-P",
        "lab",
        "-l",
        "127.0.0.1",
        "-p",
        &port,
        "-d",
        "dns0",
        "10.99.0.1/24",
        IODINE,
    ];
    site.gateway.lab.spawn(Host::World, "iodined", &argv).unwrap()
}

/// One that leads to the same server.
fn dns2tcpd(site: &Site) -> Daemon {
    let file = site.gateway.lab.dir().join("dns2tcpd.conf");
    let text = format!(
        "listen = 127.0.0.1\nport = {}\nuser = nobody\nchroot = /tmp\ndomain = {DNS2TCP}\nresources = web:203.0.113.10:80\n",
        DELEGATED[1].1
    );
    fs::write(&file, text).unwrap();
    let argv = ["dns2tcpd", "-F", "-f", file.to_str().unwrap()];
    site.gateway.lab.spawn(Host::World, "dns2tcpd", &argv).unwrap()
}

fn log(site: &Site, name: &str) -> (PathBuf, String) {
    let path = site.gateway.lab.dir().join("logs").join(format!("{name}.log"));
    let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (path, text.unwrap_or_default())
}

/// Begins a tunnel in `host`, by questions of type `kind`, and waits until it stands or has given up; whether it stands.
fn iodine(site: &Site, host: Host, name: &str, kind: &str) -> (Daemon, bool) {
    let server = DNS.0.to_string();
    let argv = ["iodine", "-f", "-r", "-P", "lab", "-T", kind, "-d", "dns1", &server, IODINE];
    let mut client = site.gateway.lab.spawn(host, name, &argv).unwrap();
    let mut stands = false;
    let waited = site.gateway.lab.wait("a tunnel", BEGIN_TIME, || {
        stands = log(site, name).1.contains("Connection setup complete");
        Ok(stands || client.running().is_err())
    });
    waited.unwrap();
    (client, stands)
}

/// What `curl` got by a tunnel in so many seconds, bytes.
fn carried(site: &Site, host: Host, at: &str, seconds: u32) -> u64 {
    let (seconds, url) = (seconds.to_string(), format!("http://{at}/bytes/{WANTED}"));
    let argv = [
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "--max-time",
        &seconds,
        "--noproxy",
        "",
        "-w",
        "%{size_download}",
        &url,
    ];
    site.gateway.lab.run(host, &argv).unwrap().stdout.trim().parse().unwrap()
}

/// A client of dns2tcp's that listens in `host`; and what came of asking it for a page.
fn dns2tcp(site: &Site, host: Host, seconds: u32) -> (Output, u64) {
    let script = format!(
        "dns2tcpc -z {DNS2TCP} -r web -l 8888 {} >&2 & client=$!
         for n in $(seq 50); do (exec 3<>/dev/tcp/127.0.0.1/8888) 2>/dev/null && break; kill -0 $client 2>/dev/null || break; sleep 0.1; done
         curl -s -o /dev/null --noproxy '' --max-time {seconds} -w '%{{size_download}}' http://127.0.0.1:8888/bytes/{WANTED}
         kill $client 2>/dev/null; wait $client; true",
        DNS.0
    );
    let output = site.gateway.lab.run(host, &["bash", "-c", &script]).unwrap();
    let got = output.stdout.trim().parse().unwrap_or(0);
    (output, got)
}

fn finds(r: &AuditRecord) -> bool {
    r.findings.iter().any(|found| found.starts_with("dns_tunnel_"))
}

fn end(mut zone: Zone) {
    for server in &mut zone.servers {
        server.running().unwrap();
        server.kill().unwrap();
    }
    finish(zone.site);
}

#[test]
fn where_its_zone_is_not_permitted_nothing_of_a_tunnel_goes_out() {
    let zone = zone(false);
    let site = &zone.site;
    for kind in ["TXT", "NULL", "A"] {
        let (mut client, stands) = iodine(site, Host::Known, &format!("iodine-{kind}"), kind);
        assert!(!stands, "{}", log(site, &format!("iodine-{kind}")).1);
        client.kill().unwrap();
    }
    let (output, got) = dns2tcp(site, Host::Known, 8);
    assert_eq!(got, 0, "{output:?}");
    record(site, IODINE, |r| {
        denied(r, "policy_denied") && r.destination.host.as_deref().is_some_and(|host| host.ends_with(IODINE))
    });
    record(site, "names that are none", |r| denied(r, "host_invalid"));
    assert_eq!(site.gateway.lab.world().unwrap().delegated_queries, 0, "nobody was asked");
    end(zone);
}

#[test]
fn where_it_is_permitted_iodine_is_told_and_carries_next_to_nothing() {
    let zone = zone(true);
    let site = &zone.site;
    let (mut client, stands) = iodine(site, Host::Known, "iodine", "TXT");
    let (path, said) = log(site, "iodine");
    assert!(stands, "{}: {said}", path.display());
    let got = carried(site, Host::Known, "10.99.0.1", 25);
    client.kill().unwrap();
    println!(
        "iodine: {got} bytes of {WANTED} in 25 s, {} questions outside",
        site.gateway.lab.world().unwrap().delegated_queries
    );
    assert!(got < MINUTES_MAX * BYTES_MAX, "{got} bytes");
    record(site, "what it looks like", finds);
    record(site, "what was too much", |r| denied(r, "dns_capped"));
    let all = admin(site).audit(&AuditQuery::default()).unwrap();
    let kinds: Vec<&String> = all.iter().flat_map(|r| &r.findings).collect();
    println!("findings: {kinds:?}");
    // Names that are no tunnel are answered again in the next minute, and others' at once.
    let getent =
        ["bash", "-c", "for n in $(seq 70); do getent ahosts \"$0\" && exit 0; sleep 1; done; exit 1", API];
    let mut command = site.gateway.lab.command(Host::Known, &getent);
    clawgress_e2e::lab::finish(&mut command, Duration::from_secs(90)).unwrap().check().unwrap();
    end(zone);
}

#[test]
fn where_it_is_permitted_dns2tcp_carries_nothing() {
    let zone = zone(true);
    let site = &zone.site;
    // Beside the gateway it works.
    let (output, got) = dns2tcp(site, Host::World, 5);
    assert!(got > 0, "{output:?}");
    let before = site.gateway.lab.world().unwrap().delegated_queries;
    let (output, got) = dns2tcp(site, Host::Known, 15);
    let asked = site.gateway.lab.world().unwrap().delegated_queries - before;
    println!("dns2tcp: {got} bytes of {WANTED} in 15 s, {asked} questions outside\n{}", output.stderr);
    // It says in its names what no name of a host has.
    assert_eq!((got, asked), (0, 0), "{output:?}");
    record(site, "its questions", |r| denied(r, "host_invalid"));
    end(zone);
}
