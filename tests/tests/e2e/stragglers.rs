//! A process that misses a tightening revision: the others enforce it at once, and it serves nothing by what it knew.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use clawgress_api::{AuditQuery, Plane, RecordKind};
use clawgress_e2e::lab::{Host, Role};
use clawgress_e2e::plan::{API, addresses};
use clawgress_e2e::scenario::{POLICY, SETS, Site};
use nix::sys::signal::Signal;

use crate::support::{admin, codes, curl, curl_within, denied, finish, record, site};

/// For what has to come sooner or later, on a busy machine.
const SOON: Duration = Duration::from_secs(40);
/// Longer than a process may stand still and go on by what it knew (`limit::STRAGGLE` of L7), shorter than the time after
/// which its part is taken from it (10 s).
const STOOD_STILL: Duration = Duration::from_secs(6);
/// Connections that are kept, so that each of two workers has some.
const KEPT: usize = 16;

/// A request on a connection that is kept; its answer's first line.
fn ask(stream: &mut TcpStream, path: &str) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nHost: {API}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    answer(stream)
}

/// The first line of the next answer, read to its end; nothing, or less, if the connection ends.
fn answer(stream: &mut TcpStream) -> String {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !is_whole(&text) {
        match stream.read(&mut buffer) {
            Ok(n @ 1..) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
            Ok(0) | Err(_) => break,
        }
    }
    text.lines().next().unwrap_or_default().to_owned()
}

/// Whether an answer with a length is there with its body: what is left of it would be taken for the next.
fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    body.len() >= length.unwrap_or(0)
}

/// Connections of the known host to the web server, each by the transparent path.
fn connect(site: &Site) -> Vec<TcpStream> {
    let connect = || {
        let one = || {
            let stream = TcpStream::connect_timeout(&(addresses(API)[0], 80).into(), SOON).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream
        };
        std::iter::repeat_with(one).take(KEPT).collect()
    };
    site.gateway.lab.within(Host::Known, connect).unwrap()
}

/// Of the kept connections those that this worker serves, by the records of their first requests.
fn of_worker(site: &Site, pid: u32) -> anyhow::Result<Vec<usize>> {
    let instance = admin(site).status()?.l7.iter().find(|w| w.pid == pid).map(|w| w.instance.clone());
    let Some(instance) = instance else { return Ok(Vec::new()) };
    let records = admin(site).audit(&AuditQuery::default())?;
    let served =
        records.iter().filter(|r| r.kind == RecordKind::Decision && r.request.starts_with(&instance));
    let paths = served.filter_map(|r| r.destination.path.as_deref()?.strip_prefix("/kept/")?.parse().ok());
    Ok(paths.collect())
}

#[test]
fn a_worker_that_stood_still_serves_nothing_by_what_it_knew() {
    let mut site = site();
    site.gateway.launch(Role::L7Beside).unwrap();
    let both = |site: &Site| {
        let status = admin(site).status()?;
        Ok(status.l7.iter().filter(|w| w.generation == status.generation).count() == 2)
    };
    site.gateway.lab.wait("both workers", SOON, || both(&site)).unwrap();
    let pid = site.gateway.pid(Role::L7Beside).unwrap();
    // The datapath role gives it a part when it has shown that it accepts.
    let mut kept = Vec::new();
    let mut its: Vec<usize> = Vec::new();
    site.gateway
        .lab
        .wait("connections that it serves", SOON, || {
            kept = connect(&site);
            for (n, stream) in kept.iter_mut().enumerate() {
                assert_eq!(ask(stream, &format!("/kept/{n}")), "HTTP/1.1 200 OK");
            }
            its = of_worker(&site, pid)?.into_iter().filter(|n| *n < KEPT).collect();
            Ok(!its.is_empty())
        })
        .unwrap();
    its.sort_unstable();
    its.dedup();

    site.gateway.signal(Role::L7Beside, Signal::SIGSTOP).unwrap();
    let tight = POLICY.replace("@id(\"dns\")\npermit", "@id(\"dns\")\nforbid");
    let tight = format!(
        "{tight}\n@id(\"no-more\") forbid (principal, action == Action::\"http\", resource)\nwhen {{ context.path like \"/late/*\" || context.path like \"/by-*\" }};\n"
    );
    site.gateway.apply_policy(&tight, SETS).unwrap();
    let generation = admin(&site).status().unwrap().generation;
    // The other worker and the kernel enforce it, whoever stands still.
    let datapath = || Ok(admin(&site).status()?.datapath.is_some_and(|d| d.generation == generation));
    site.gateway.lab.wait("the kernel plane", SOON, datapath).unwrap();
    let dns = site.gateway.lab.run(Host::Known, &["timeout", "3", "getent", "ahosts", API]).unwrap();
    assert!(!dns.stdout.contains("203.0.113.10"), "in the kernel at once: {dns:?}");
    record(&site, "in the kernel", |r| r.plane == Plane::Kernel && denied(r, "policy_forbidden"));
    let other = (0..KEPT).find(|n| !its.contains(n));
    if let Some(stream) = other.and_then(|n| kept.get_mut(n)) {
        let line = ask(stream, "/by-the-other");
        assert!(line.contains(" 403 "), "by the other worker at once: {line:?}, of {its:?} not {other:?}");
    }
    std::thread::sleep(STOOD_STILL);

    // What waits for it on its connections when it goes on is not answered by the old policy, nor is what comes later.
    for n in &its {
        let head = format!("GET /late/{n} HTTP/1.1\r\nHost: {API}\r\n\r\n");
        kept[*n].write_all(head.as_bytes()).unwrap();
    }
    site.gateway.signal(Role::L7Beside, Signal::SIGCONT).unwrap();
    for n in &its {
        let line = answer(&mut kept[*n]);
        assert!(!line.contains(" 200 "), "connection {n}: {line}");
    }
    let asked = site.gateway.lab.world().unwrap().requests;
    assert!(!asked.iter().any(|r| format!("{r:?}").contains("/late/")), "the server saw one: {asked:?}");

    // It catches up, and serves what the next policy permits.
    site.gateway.apply_policy(POLICY, SETS).unwrap();
    site.gateway.lab.wait("both workers", SOON, || both(&site)).unwrap();
    assert_eq!(codes(&curl(&site, Host::Known, &["http://api.allowed.test/again"])).0, 200);
    assert!(curl_within(&site, Host::Known, 8, &["https://api.allowed.test/again"]).ok());
    finish(site);
}
