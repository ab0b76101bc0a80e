//! Two L7 processes: both serve, one can be exchanged or killed under load, and audit is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clawgress_api::{AuditQuery, RecordKind};
use clawgress_e2e::lab::{Host, Role};
use clawgress_e2e::plan::{API, GATEWAY, PROXY_PORT, addresses};
use clawgress_e2e::scenario::{POLICY, SETS, Site};
use nix::sys::signal::Signal;

use crate::support::{admin, finish, record, site};

/// For what has to come sooner or later, on a busy machine.
const SOON: Duration = Duration::from_secs(40);
/// Requests that are enough to find out whether all goes well.
const MANY: usize = 60;

/// Requests one after the other, each by a connection of its own, over both families and by the explicit proxy in
/// turn, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<String>>,
    first: usize,
}

// === impl Load ===

impl Load {
    /// Begins with the request of this number.
    fn start(site: &Site, first: usize) -> Load {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (end, count) = (Arc::clone(&stop), Arc::clone(&done));
        // The thread stays in the namespace it was started in.
        let thread = site.gateway.lab.within(Host::Known, move || {
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                while !end.load(Ordering::SeqCst) {
                    let n = first + count.load(Ordering::SeqCst);
                    if let Err(error) = request(n) {
                        failures.push(format!("request {n}: {error}"));
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                }
                failures
            })
        });
        Load { stop, done, thread: thread.unwrap(), first }
    }

    /// Waits until so many more are done.
    fn go_on(&self, site: &Site, more: usize) {
        let from = self.done.load(Ordering::SeqCst);
        let passed = || Ok(self.done.load(Ordering::SeqCst) >= from + more);
        site.gateway.lab.wait("requests", SOON, passed).unwrap();
    }

    /// Number of the next request; none has failed.
    #[track_caller]
    fn finish(self, what: &str) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let failures = self.thread.join().unwrap();
        let done = self.done.load(Ordering::SeqCst);
        assert!(failures.is_empty(), "{what}: {} of {done} failed: {failures:#?}", failures.len());
        println!("{what}: {done} requests, none failed");
        self.first + done
    }
}

fn request(n: usize) -> Result<(), String> {
    match status(n)? {
        200 => Ok(()),
        other => Err(format!("answered with {other}")),
    }
}

/// Status that the request of this number is answered with.
fn status(n: usize) -> Result<u16, String> {
    let web = addresses(API);
    let to: (IpAddr, u16) = match n % 4 {
        0 | 1 => (web[n % 2], 80),
        2 => (GATEWAY.v4.into(), PROXY_PORT),
        _ => (GATEWAY.v6.into(), PROXY_PORT),
    };
    let target = if n % 4 < 2 { format!("/n/{n}") } else { format!("http://{API}/n/{n}") };
    let step = |what: &'static str| move |e: std::io::Error| format!("{what} {to:?}: {e}");
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(to), Duration::from_secs(15))
        .map_err(step("connect"))?;
    stream.set_read_timeout(Some(Duration::from_secs(15))).map_err(step("time-out"))?;
    let head = format!("GET {target} HTTP/1.1\r\nHost: {API}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).map_err(step("write"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(step("read"))?;
    let line = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    status.ok_or_else(|| format!("{to:?} answered `{line}`"))
}

/// Instances of the workers that are connected and do not drain.
fn takers(site: &Site) -> anyhow::Result<BTreeSet<String>> {
    let status = admin(site).status()?;
    let ready = status.l7.iter().filter(|w| !w.draining && w.generation == status.generation);
    Ok(ready.map(|w| w.instance.clone()).collect())
}

/// Which worker an audit record's request was served by, by its id.
fn served_by(site: &Site, since: usize) -> anyhow::Result<BTreeMap<usize, Vec<(RecordKind, String)>>> {
    let mut requests = BTreeMap::<usize, Vec<_>>::new();
    let mut numbers = BTreeMap::new();
    let records = admin(site).audit(&AuditQuery::default())?;
    for record in &records {
        let path = record.destination.path.as_deref().and_then(|p| p.strip_prefix("/n/"));
        if let Some(n) = path.and_then(|p| p.parse::<usize>().ok()).filter(|n| *n >= since) {
            numbers.insert(record.request.clone(), n);
        }
    }
    for record in records {
        if let Some(n) = numbers.get(&record.request) {
            requests.entry(*n).or_default().push((record.kind, record.request));
        }
    }
    Ok(requests)
}

/// Waits until each of the requests has its decision and its outcome; gives who served how many.
#[track_caller]
fn complete(site: &Site, range: std::ops::Range<usize>) -> BTreeMap<String, usize> {
    let mut by = BTreeMap::new();
    site.gateway
        .lab
        .wait("records of every request", SOON, || {
            let found = served_by(site, range.start)?;
            by.clear();
            for n in range.clone() {
                let records = found.get(&n).into_iter().flatten();
                let has = |kind| records.clone().any(|(k, _)| *k == kind);
                if !has(RecordKind::Decision) || !has(RecordKind::Outcome) {
                    return Ok(false);
                }
                let id = records.clone().map(|(_, id)| id.clone()).next().unwrap_or_default();
                let instance = id.split(['-', '.', ':']).next().unwrap_or_default().to_owned();
                *by.entry(instance).or_default() += 1;
            }
            Ok(true)
        })
        .unwrap();
    by
}

#[test]
fn two_workers_serve_and_either_can_be_exchanged_or_killed() {
    let mut site = site();
    let alone = takers(&site).unwrap();
    site.gateway.launch(Role::L7Beside).unwrap();
    site.gateway.lab.wait("both workers", SOON, || Ok(takers(&site)?.len() == 2)).unwrap();
    let both = takers(&site).unwrap();
    assert!(both.is_superset(&alone));

    // Each serves a part.
    let load = Load::start(&site, 0);
    load.go_on(&site, MANY);
    let next = load.finish("two workers");
    let by = complete(&site, 0..next);
    assert_eq!(by.keys().cloned().collect::<BTreeSet<_>>(), both, "both serve: {by:?}");

    // Exchanged one after the other, under load: nothing fails.
    let load = Load::start(&site, next);
    for role in [Role::L7Beside, Role::L7] {
        load.go_on(&site, MANY / 2);
        site.gateway.stop(role, SOON).unwrap();
        load.go_on(&site, MANY / 2);
        site.gateway.launch(role).unwrap();
        site.gateway.lab.wait("both workers", SOON, || Ok(takers(&site)?.len() == 2)).unwrap();
    }
    load.go_on(&site, MANY / 2);
    let begun = next;
    let next = load.finish("exchanged");
    complete(&site, begun..next);

    // One is killed: what comes after that is served by the other, at once.
    site.gateway.kill(Role::L7Beside).unwrap();
    let load = Load::start(&site, next);
    load.go_on(&site, MANY);
    let begun = next;
    let next = load.finish("one killed");
    let by = complete(&site, begun..next);
    assert_eq!(by.len(), 1, "{by:?}");
    finish(site);
}

/// Units of the limit below at once. The next comes after 225 seconds.
const BURST: usize = 16;
const UNIT_EVERY: Duration = Duration::from_secs(3600 / BURST as u64);
const SHARED_LIMIT: &str = r#"
@id("shared") @effect("rate-limit") @limit("16 requests/hour burst 16") @per("team")
permit (principal in Team::"research", action == Action::"http", resource);
"#;

/// Requests of two processes at once, by both ways in: together they pass what the limit says, to the unit.
#[test]
fn two_workers_race_for_one_limit_and_pass_it_together_once() {
    let mut site = site();
    site.gateway.launch(Role::L7Beside).unwrap();
    let begun = Instant::now();
    site.gateway.apply_policy(&format!("{POLICY}{SHARED_LIMIT}"), SETS).unwrap();
    site.gateway.lab.wait("both workers", SOON, || Ok(takers(&site)?.len() == 2)).unwrap();

    let raced = || -> Vec<u16> {
        let ask = |from: usize| (from..from + 8).map(|n| status(n).unwrap()).collect::<Vec<_>>();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..12).map(|n| scope.spawn(move || ask(8 * n))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        })
    };
    let answers = site.gateway.lab.within(Host::Known, raced).unwrap();
    assert!(answers.iter().all(|status| [200, 429].contains(status)), "{answers:?}");
    let mut passed = answers.iter().filter(|status| **status == 200).count();
    let said = |begun: Instant| BURST + (begun.elapsed().as_secs() / UNIT_EVERY.as_secs()) as usize;
    println!("{passed} of {} passed while they raced", answers.len());
    assert!(passed <= said(begun), "{passed} passed: {answers:?}");
    let by = complete(&site, 0..answers.len());
    assert_eq!(by.len(), 2, "both were asked: {by:?}");

    // What either leased and did not spend comes back, and nothing else.
    let mut next = answers.len();
    let all_passed = || {
        let n = next;
        next += 1;
        let answer = site.gateway.lab.within(Host::Known, move || status(n))?.map_err(anyhow::Error::msg)?;
        passed += usize::from(answer == 200);
        Ok(passed >= BURST)
    };
    site.gateway.lab.wait("the units that were leased", SOON, all_passed).unwrap();
    let more = site.gateway.lab.within(Host::Known, move || (next..next + 8).map(status).collect::<Vec<_>>());
    passed += more.unwrap().into_iter().filter(|answer| *answer == Ok(200)).count();
    assert!(passed <= said(begun), "{passed} passed in {:?}", begun.elapsed());
    site.gateway.apply_policy(POLICY, SETS).unwrap();
    finish(site);
}

#[test]
fn a_worker_that_drains_is_shown_as_such_and_works_on() {
    let mut site = site();
    site.gateway.launch(Role::L7Beside).unwrap();
    site.gateway.lab.wait("both workers", SOON, || Ok(takers(&site)?.len() == 2)).unwrap();
    let pid = site.gateway.pid(Role::L7).unwrap();
    let llm = addresses(clawgress_e2e::plan::LLM)[0];
    // Streams until both hold one: each answer stays open until it is released.
    let streams: Vec<_> = (0..16).map(|_| stream(&site, llm)).collect();
    site.gateway.signal(Role::L7, Signal::SIGTERM).unwrap();
    let draining = |site: &Site| -> anyhow::Result<bool> {
        let status = admin(site).status()?;
        Ok(status.l7.len() == 2 && status.l7.iter().filter(|w| w.draining).count() == 1)
    };
    site.gateway.lab.wait("a worker that drains", SOON, || draining(&site)).unwrap();
    let shown = admin(&site).ctl(&["status"]).unwrap().check().unwrap();
    assert!(shown.stdout.contains(", draining)"), "{shown:?}");
    let load = Load::start(&site, 0);
    load.go_on(&site, MANY / 2);
    load.finish("one drains");
    assert!(draining(&site).unwrap(), "process {pid} has open streams");
    site.gateway.lab.release("workers").unwrap();
    for stream in streams {
        let text = stream.join().unwrap();
        assert!(text.contains("[DONE]"), "a stream was cut: {text}");
    }
    site.gateway.stop(Role::L7, SOON).unwrap();
    site.gateway.launch(Role::L7).unwrap();
    finish(site);
}

/// A process that is stopped, as one is that hangs, is left without new connections until it goes on.
#[test]
fn a_worker_that_hangs_has_no_part_until_it_goes_on() {
    let mut site = site();
    site.gateway.launch(Role::L7Beside).unwrap();
    site.gateway.lab.wait("both workers", SOON, || Ok(takers(&site)?.len() == 2)).unwrap();
    let pid = site.gateway.pid(Role::L7Beside).unwrap();
    site.gateway.signal(Role::L7Beside, Signal::SIGSTOP).unwrap();
    record(&site, "that one hangs", |r| {
        r.detail.as_ref().is_some_and(|d| d.contains(&format!("l7 process {pid} accepts nothing")))
    });
    let counted = admin(&site).status().unwrap().datapath.unwrap().counters;
    assert_eq!(counted.get("l7_hung"), Some(&1), "{counted:?}");
    let served = |n: usize| {
        let request = move || request(4 * n).is_ok();
        site.gateway.lab.within(Host::Known, request).unwrap()
    };
    assert!((0..MANY).all(served), "all that is steered is served by the other");
    site.gateway.signal(Role::L7Beside, Signal::SIGCONT).unwrap();
    site.gateway.lab.wait("both workers", SOON, || Ok(takers(&site)?.len() == 2)).unwrap();
    let until = || {
        let load = Load::start(&site, MANY);
        load.go_on(&site, MANY);
        let next = load.finish("it goes on");
        Ok(complete(&site, MANY..next).len() == 2)
    };
    site.gateway.lab.wait("both to serve", SOON, until).unwrap();
    finish(site);
}

/// The datapath role refuses whoever runs outside of the cgroup where the kernel judges what is dialled. If it comes
/// to do so later, what it handed over before counts no more.
#[test]
fn a_worker_that_is_refused_takes_nothing_and_says_so() {
    let mut site = site();
    let config = site.gateway.config();
    let good = std::fs::read_to_string(&config).unwrap();
    let line =
        good.lines().find(|l| l.starts_with("cgroup = ")).expect("these tests need cgroup v2").to_owned();
    let served = |site: &Site, n: usize| site.gateway.lab.within(Host::Known, move || quickly(n)).unwrap();
    assert!((0..4).all(|n| served(&site, n)), "before");

    let elsewhere = line.replacen("clawgress-l7/", "clawgress-l7/elsewhere-", 1);
    std::fs::write(&config, good.replacen(&line, &elsewhere, 1)).unwrap();
    let other = std::path::PathBuf::from(elsewhere.trim_start_matches("cgroup = ").trim_matches('"'));
    std::fs::create_dir_all(&other).unwrap();
    site.gateway.stop(Role::Datapath, SOON).unwrap();
    site.gateway.launch(Role::Datapath).unwrap();
    let refused = |site: &Site| Ok(admin(site).status()?.l7.iter().any(|w| w.refused.is_some()));
    site.gateway.lab.wait("a worker that is refused", SOON, || refused(&site)).unwrap();
    let shown = admin(&site).ctl(&["status"]).unwrap();
    assert!(shown.stdout.contains(", refused)"), "{shown:?}");
    assert!(shown.stdout.contains("takes no connections"), "{shown:?}");
    assert!(shown.stdout.contains("does not run in"), "{shown:?}");
    assert!((0..8).all(|n| !served(&site, n)), "it takes nothing");

    std::fs::write(&config, &good).unwrap();
    site.gateway.stop(Role::Datapath, SOON).unwrap();
    site.gateway.launch(Role::Datapath).unwrap();
    site.gateway.lab.wait("it to be taken again", SOON, || Ok(!refused(&site)?)).unwrap();
    std::fs::remove_dir(&other).unwrap();
    assert!((0..4).all(|n| served(&site, n)), "it serves again");
    finish(site);
}

/// Whether the request is answered soon: what nobody accepts is not answered at all.
fn quickly(n: usize) -> bool {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    // Ends by itself, with its time-outs.
    std::thread::spawn(move || sender.send(request(n)));
    receiver.recv_timeout(Duration::from_secs(2)).is_ok_and(|answer| answer.is_ok())
}

/// A client that has heard that its connection is made, of which its own last word was lost: it is accepted by the
/// process that holds the listener where that began, though the datapath role is another by then.
#[test]
fn a_handshake_outlives_the_datapath_role() {
    let mut site = site();
    let web = addresses(API);
    let lose = "add table inet t; add chain inet t c { type filter hook output priority 300; }; \
                add rule inet t c tcp dport 80 tcp flags & (syn|rst) == 0 drop";
    let nft = |site: &Site, words: &str| {
        site.gateway.lab.run(Host::Known, &["nft", words]).unwrap().check().unwrap();
    };
    nft(&site, lose);
    let connect = move || {
        let connect = |to: IpAddr| TcpStream::connect_timeout(&(to, 80).into(), SOON).unwrap();
        web.into_iter().map(connect).collect::<Vec<_>>()
    };
    let streams = site.gateway.lab.within(Host::Known, connect).unwrap();
    site.gateway.kill(Role::Datapath).unwrap();
    site.gateway.launch(Role::Datapath).unwrap();
    site.gateway.ready().unwrap();
    let log = || {
        let log = std::fs::read_to_string(site.gateway.lab.dir().join("logs/l7.log"))?;
        Ok(log.lines().filter(|l| l.contains("accepting") && l.contains("Transparent")).count() >= 4)
    };
    site.gateway.lab.wait("the next listeners", SOON, log).unwrap();
    // Longer than what is on its way takes.
    std::thread::sleep(Duration::from_secs(3));
    nft(&site, "delete table inet t");
    for mut stream in streams {
        let to = stream.peer_addr().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let head = format!("GET /late HTTP/1.1\r\nHost: {API}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{to}: {answer}");
    }
    finish(site);
}

/// A streamed answer that has begun; its text when it ends.
fn stream(site: &Site, llm: IpAddr) -> JoinHandle<String> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let thread = site.gateway.lab.within(Host::Known, move || {
        std::thread::spawn(move || {
            let mut stream = TcpStream::connect((llm, 80)).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            let body = r#"{"stream":true}"#;
            let request = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: llm.allowed.test\r\nX-Lab-Hold: workers\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(request.as_bytes()).unwrap();
            let (mut text, mut buffer) = (String::new(), [0; 4096]);
            loop {
                let n = stream.read(&mut buffer).unwrap();
                if n == 0 {
                    return text;
                }
                text.push_str(&String::from_utf8_lossy(&buffer[..n]));
                if text.contains("Egress") {
                    let _ = sender.try_send(());
                }
            }
        })
    });
    receiver.recv_timeout(SOON).unwrap();
    thread.unwrap()
}
