//! Clients that take their time, by slowhttptest: slow heads, slow bodies, slow readers, and heads of many ranges, in clear and within
//! TLS that is read. Each is cut, by the bounds that `clawgress-l7`'s `limit` names; another agent keeps its service, and the proxy
//! does not grow.

use std::time::{Duration, Instant};

use clawgress_api::{AuditQuery, AuditRecord, RecordKind};
use clawgress_e2e::lab::{Daemon, Host, Role};
use clawgress_e2e::plan::{API, GATEWAY, PROXY_PORT, TWO, addresses};
use clawgress_e2e::scenario::{ASSISTANT, Site};

use crate::balancers::haproxy;
use crate::clients::READ;
use crate::floods::resident;
use crate::interception::Reading;
use crate::support::{admin, codes, curl, finish, proxy, record, to_host};

/// Connections of each kind.
const CONNECTIONS: usize = 50;
/// Bytes of the answer that is read slowly: more than what buffers on the way take.
const ANSWER_BYTES: usize = 8 << 20;
/// What reads it, in clear and within TLS.
const READERS: [&str; 2] = ["slow-reader", "slow-reader-in-tls"];
/// Longest time of one; its connections have to be cut before.
const TIME_MAX: Duration = Duration::from_secs(150);
/// Most resident memory that the proxy may gain while they are there, KiB: a third of a MiB for each of the 400. Most of it is of those
/// that don't read an answer of HTTP/2, of which each has a window full, in more memory than that has bytes.
const PEAK_KIB_MAX: u64 = 128 * 1024;
/// The same once they are gone, and the allocator has given back what it had kept: within so long.
const GROWTH_KIB_MAX: u64 = 48 * 1024;
const GIVEN_BACK: Duration = Duration::from_secs(45);

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
        if !READERS.contains(&self.what) {
            return self.client.running().is_err();
        }
        let host = if self.what == READERS[0] { API } else { TWO };
        let query = AuditQuery {
            kind: Some(RecordKind::Outcome),
            reason: Some("timeout".to_owned()),
            ..AuditQuery::default()
        };
        let ended = admin(site).audit(&query).unwrap();
        let is_its = |r: &&AuditRecord| {
            to_host(r, host) && r.destination.path.as_deref().is_some_and(|path| path.starts_with("/bytes/"))
        };
        ended.iter().filter(is_its).count() >= CONNECTIONS
    }
}

fn begin(site: &Site, what: &'static str, url: &str, args: &[&str]) -> Slow {
    let (connections, length) = (CONNECTIONS.to_string(), TIME_MAX.as_secs().to_string());
    let common = ["slowhttptest", "-c", &connections, "-r", "100", "-l", &length, "-v", "1", "-u", url];
    let client = site.gateway.lab.spawn(Host::Known, what, &[&common[..], args].concat()).unwrap();
    Slow { what, client, ended: None }
}

/// Has HTTP in clear to [`TWO`] go within TLS: slowhttptest tells no server's name in its own, and who tells none is not read.
fn wrapped(site: &Site) -> Daemon {
    let lab = &site.gateway.lab;
    let [v4, v6] = addresses(TWO)[..] else { panic!("two addresses") };
    // What it holds itself would be taken for what the client took.
    let proxies = format!(
        "global\n tune.bufsize 4096\n tune.maxrewrite 1024\n tune.rcvbuf.server 4096\n tune.sndbuf.client 4096\n\
         listen tls\n bind :::9443 v4v6\n server two {v4}:443 ssl verify none sni str({TWO})\n"
    );
    let wrapper = haproxy(lab, Host::Known, &proxies, "127.0.0.1/9443");
    let rules = format!(
        "table inet within {{ chain out {{ type nat hook output priority -100; \
         ip daddr {v4} tcp dport 80 redirect to :9443; ip6 daddr {v6} tcp dport 80 redirect to :9443; }}\n}}"
    );
    lab.run(Host::Known, &["nft", &rules]).unwrap().check().unwrap();
    wrapper
}

#[test]
fn the_slow_are_cut_and_others_are_served() {
    let Reading { mut site, authority, .. } = Reading::of(READ);
    let own = proxy(ASSISTANT, &site.assistant_key);
    let before = resident(&mut site, Role::L7);
    let begun = Instant::now();
    let (origin, explicit) = ("http://api.allowed.test", format!("http://{}:{PROXY_PORT}/", GATEWAY.v4));
    let (_wrapper, read) = (wrapped(&site), format!("http://{TWO}"));
    let (large, large_read) =
        (format!("{origin}/bytes/{ANSWER_BYTES}"), format!("{read}/bytes/{ANSWER_BYTES}"));
    // A byte of the answer every 5 s.
    let slowly = ["-X", "-w", "8", "-y", "16", "-n", "5", "-z", "1", "-k", "1"];
    let mut all = [
        // A line of the head every 3 s, to a server by the route, and to the proxy.
        begin(&site, "slow-head", origin, &["-H", "-i", "3"]),
        begin(&site, "slow-head-at-proxy", &explicit, &["-H", "-i", "3"]),
        // A few bytes of the body every 5 s, of a length that would take an hour.
        begin(&site, "slow-body", origin, &["-B", "-i", "5", "-s", "8192", "-x", "8"]),
        begin(&site, READERS[0], &large, &slowly),
        // Thousands of ranges of one page in a head.
        begin(&site, "ranges", origin, &["-R", "-a", "5", "-b", "3000"]),
        begin(&site, "slow-head-in-tls", &read, &["-H", "-i", "3"]),
        begin(&site, "slow-body-in-tls", &read, &["-B", "-i", "5", "-s", "8192", "-x", "8"]),
        begin(&site, READERS[1], &large_read, &slowly),
    ];
    let (mut worst, mut answered, mut most) = (Duration::ZERO, 0, before);
    while all.iter().any(|slow| slow.ended.is_none()) {
        let asked = Instant::now();
        let output = curl(&site, Host::Anon, &["-x", &own, "https://api.allowed.test/neighbour"]);
        assert_eq!(codes(&output), (200, 200), "the neighbour lost its service: {output:?}");
        let within = ["--cacert", &authority, "-x", &own, "https://two.allowed.test/neighbour"];
        let output = curl(&site, Host::Anon, &within);
        assert_eq!(codes(&output), (200, 200), "the neighbour lost its service: {output:?}");
        answered += 2;
        worst = worst.max(asked.elapsed());
        most = most.max(resident(&mut site, Role::L7));
        for slow in &mut all {
            if slow.ended.is_none() && slow.is_over(&site) {
                slow.ended = Some(begun.elapsed());
            }
        }
        let left =
            || all.iter().filter(|slow| slow.ended.is_none()).map(|slow| slow.what).collect::<Vec<_>>();
        assert!(begun.elapsed() < 2 * TIME_MAX, "they do not end: {:?}", left());
    }
    for slow in &mut all {
        println!("{}: ended after {:?}", slow.what, slow.ended.unwrap());
        if READERS.contains(&slow.what) {
            slow.client.kill().unwrap();
            continue;
        }
        let log = site.gateway.lab.dir().join("logs").join(format!("{}.log", slow.what));
        let said = std::fs::read_to_string(log).unwrap();
        // Otherwise its own time has ended it.
        assert!(said.contains("No open connections left"), "{}: {said}", slow.what);
    }
    println!(
        "the neighbour waited {worst:?} at most of {answered} times; the proxy has {before} KiB, at most {most}"
    );
    assert!(most < before + PEAK_KIB_MAX, "the proxy grew from {before} to {most} KiB");
    let (begun, mut after) = (Instant::now(), most);
    while after >= before + GROWTH_KIB_MAX {
        assert!(begun.elapsed() < GIVEN_BACK, "the proxy grew from {before} to {after} KiB");
        std::thread::sleep(Duration::from_secs(1));
        after = resident(&mut site, Role::L7);
    }
    // All that it asked, and nothing of it failed.
    let (agent, kind) = (Some(ASSISTANT.to_owned()), Some(RecordKind::Outcome));
    let own = AuditQuery { agent, kind, limit: Some(10_000), ..AuditQuery::default() };
    // What is read has a record of its connection besides.
    let served =
        |r: &AuditRecord| r.reason.is_none() && (r.status == Some(200) || r.action.as_deref() == Some("tls"));
    let all = || admin(&site).audit(&own);
    let is_asked = |r: &&AuditRecord| served(r) && r.action.as_deref() != Some("tls");
    let told = || Ok(all()?.iter().filter(is_asked).count() == answered);
    site.gateway.lab.wait("its records", Duration::from_secs(15), told).unwrap();
    assert_eq!(all().unwrap().iter().find(|r| !served(r)), None);
    record(&site, "one that was cut", |r| r.reason.is_some_and(|reason| reason.name() == "timeout"));
    finish(site);
}
