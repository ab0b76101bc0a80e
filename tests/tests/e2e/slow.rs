//! Clients that take their time, by slowhttptest: slow heads, slow bodies, slow readers, and heads of many ranges. Each is cut, by the
//! bounds that `clawgress-l7`'s `limit` names; another agent keeps its service, and the proxy does not grow.

use std::time::{Duration, Instant};

use clawgress_api::{AuditQuery, AuditRecord, RecordKind};
use clawgress_e2e::lab::{Daemon, Host, Role};
use clawgress_e2e::plan::{GATEWAY, PROXY_PORT};
use clawgress_e2e::scenario::{ASSISTANT, Site};

use crate::floods::resident;
use crate::support::{admin, codes, curl, finish, proxy, record, site};

/// Connections of each kind.
const CONNECTIONS: usize = 50;
/// Bytes of the answer that is read slowly: more than what buffers on the way take.
const ANSWER_BYTES: usize = 8 << 20;
/// What reads it.
const READER: &str = "slow-reader";
/// Longest time of one; its connections have to be cut before.
const TIME_MAX: Duration = Duration::from_secs(150);
/// Most resident memory that the proxy may gain, KiB: some ten for each of the slow, and what an allocator keeps.
const GROWTH_KIB_MAX: u64 = 48 * 1024;

struct Slow {
    what: &'static str,
    client: Daemon,
    /// When its last connection was cut.
    ended: Option<Duration>,
}

// === impl Slow ===

impl Slow {
    /// Whether all of its connections have been cut. A reader has the bytes of an answer that are in its own buffer before it sees
    /// how that ended: what counts is what the gateway says.
    fn is_over(&mut self, site: &Site) -> bool {
        if self.what != READER {
            return self.client.running().is_err();
        }
        let query = AuditQuery {
            kind: Some(RecordKind::Outcome),
            reason: Some("timeout".to_owned()),
            ..AuditQuery::default()
        };
        let ended = admin(site).audit(&query).unwrap();
        let is_its =
            |r: &&AuditRecord| r.destination.path.as_deref().is_some_and(|path| path.starts_with("/bytes/"));
        ended.iter().filter(is_its).count() >= CONNECTIONS
    }
}

fn begin(site: &Site, what: &'static str, url: &str, args: &[&str]) -> Slow {
    let (connections, length) = (CONNECTIONS.to_string(), TIME_MAX.as_secs().to_string());
    let common = ["slowhttptest", "-c", &connections, "-r", "100", "-l", &length, "-v", "1", "-u", url];
    let client = site.gateway.lab.spawn(Host::Known, what, &[&common[..], args].concat()).unwrap();
    Slow { what, client, ended: None }
}

#[test]
fn the_slow_are_cut_and_others_are_served() {
    let mut site = site();
    let own = proxy(ASSISTANT, &site.assistant_key);
    let before = resident(&mut site, Role::L7);
    let begun = Instant::now();
    let (origin, explicit) = ("http://api.allowed.test", format!("http://{}:{PROXY_PORT}/", GATEWAY.v4));
    let large = format!("{origin}/bytes/{ANSWER_BYTES}");
    let mut all = [
        // A line of the head every 3 s, to a server by the route, and to the proxy.
        begin(&site, "slow-head", origin, &["-H", "-i", "3"]),
        begin(&site, "slow-head-at-proxy", &explicit, &["-H", "-i", "3"]),
        // A few bytes of the body every 5 s, of a length that would take an hour.
        begin(&site, "slow-body", origin, &["-B", "-i", "5", "-s", "8192", "-x", "8"]),
        // A byte of the answer every 5 s.
        begin(&site, READER, &large, &["-X", "-w", "8", "-y", "16", "-n", "5", "-z", "1", "-k", "1"]),
        // Thousands of ranges of one page in a head.
        begin(&site, "ranges", origin, &["-R", "-a", "5", "-b", "3000"]),
    ];
    let (mut worst, mut answered) = (Duration::ZERO, 0);
    while all.iter().any(|slow| slow.ended.is_none()) {
        let asked = Instant::now();
        let output = curl(&site, Host::Anon, &["-x", &own, "https://api.allowed.test/neighbour"]);
        assert_eq!(codes(&output), (200, 200), "the neighbour lost its service: {output:?}");
        answered += 1;
        worst = worst.max(asked.elapsed());
        for slow in &mut all {
            if slow.ended.is_none() && slow.is_over(&site) {
                slow.ended = Some(begun.elapsed());
            }
        }
        assert!(begun.elapsed() < 2 * TIME_MAX, "they do not end");
    }
    for slow in &mut all {
        println!("{}: ended after {:?}", slow.what, slow.ended.unwrap());
        if slow.what == READER {
            slow.client.kill().unwrap();
            continue;
        }
        let log = site.gateway.lab.dir().join("logs").join(format!("{}.log", slow.what));
        let said = std::fs::read_to_string(log).unwrap();
        // Otherwise its own time has ended it.
        assert!(said.contains("No open connections left"), "{}: {said}", slow.what);
    }
    let after = resident(&mut site, Role::L7);
    println!(
        "the neighbour waited {worst:?} at most of {answered} times; the proxy has {before} KiB before, {after} after"
    );
    assert!(after < before + GROWTH_KIB_MAX, "the proxy grew from {before} to {after} KiB");
    // All that it asked, and nothing of it failed.
    let (agent, kind) = (Some(ASSISTANT.to_owned()), Some(RecordKind::Outcome));
    let own = AuditQuery { agent, kind, limit: Some(10_000), ..AuditQuery::default() };
    let served = |r: &AuditRecord| r.reason.is_none() && r.status == Some(200);
    let all = || admin(&site).audit(&own);
    let told = || Ok(all()?.iter().filter(|r| served(r)).count() == answered);
    site.gateway.lab.wait("its records", Duration::from_secs(15), told).unwrap();
    assert_eq!(all().unwrap().iter().find(|r| !served(r)), None);
    record(&site, "one that was cut", |r| r.reason.is_some_and(|reason| reason.name() == "timeout"));
    finish(site);
}
