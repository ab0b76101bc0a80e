//! Interfaces that come, go and change their names under a live role, and what the kernel announces of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clawgress_agent::datapath::network::{Changes, Watch};
use clawgress_api::handover::{self, ListenerKind};
use clawgress_api::{AuditRecord, RecordKind};
use clawgress_ebpf_common::DropReason;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;

use crate::kernel::agent;
use crate::lab::{Lab, PROXY_PORT, Place, at, ip};
use crate::network::{
    PORT, REFUSED, Server, WORKS, accept_stream, agents, dial, families, records, refused, tables, take, talk,
};
use crate::removal::forwarding_without_us;

const MAC: &str = "02:00:00:00:00:02";

/// The second agents' interface, and the host behind it.
fn plug(lab: &Lab) {
    let (a, g) = (lab.ns(Place::Agents), lab.ns(Place::Gateway));
    ip(&format!("link add b0 netns {a} type veth peer name gb netns {g}"));
    ip(&format!("-n {a} link set b0 address {MAC}"));
    ip(&format!("-n {a} addr add 10.79.0.2/24 dev b0"));
    ip(&format!("-n {a} addr add 10.79.0.66/24 dev b0"));
    ip(&format!("-n {g} addr add 10.79.0.1/24 dev gb"));
    ip(&format!("-n {g} link set gb up"));
    ip(&format!("-n {a} link set b0 up"));
    // By source: the other agent is in the same namespace.
    ip(&format!("-n {a} route add default via 10.79.0.1 table 79"));
}

fn unplug(lab: &Lab) {
    ip(&format!("-n {} link del gb", lab.ns(Place::Gateway)));
}

/// Waits until status shows TC programs on `interface` as `tc`.
async fn until_tc(lab: &Lab, interface: &str, tc: &str) {
    let until = Instant::now() + WORKS;
    loop {
        let status = lab.status().await;
        let found = status.interfaces.iter().find(|i| i.name == interface).expect("configured");
        if found.tc == tc {
            return;
        }
        assert!(Instant::now() < until, "`{interface}` does not become {tc}: {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Strangers are shut out of a closed interface from the beginning, and not from the first policy on.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_interface_is_closed_before_the_first_policy() {
    let closed = "unbound_sources = \"deny\"\n";
    let more = format!("[[interface]]\nname = \"gb\"\nrole = \"agents\"\n{closed}");
    let mut lab = Lab::with(closed, &more);
    ip(&format!("-n {} rule add from 10.79.0.0/24 lookup 79", lab.ns(Place::Agents)));
    lab.start().await;
    let [v4, _] = families();
    let late = at("10.79.0.66");
    for round in 0..2 {
        for f in families() {
            for source in [f.known, f.unknown] {
                let reached = dial(&lab, source, (f.gateway, PROXY_PORT), REFUSED);
                assert!(reached.is_err(), "{source} is nobody yet, round {round}");
            }
        }
        if round == 0 {
            plug(&lab);
            until_tc(&lab, "gb", "tcx").await;
        }
        let reached = dial(&lab, late, (v4.gateway, PROXY_PORT), REFUSED);
        assert!(reached.is_err(), "an interface that came later, round {round}");
        lab.stop(Signal::SIGTERM);
        lab.start().await;
    }
    let dropped = lab.status().await.counters;
    assert!(dropped.contains_key(DropReason::Anonymous.name()), "{dropped:?}");
    lab.apply(1, tables(), agents()).await;
    for f in families() {
        dial(&lab, f.known, (f.gateway, PROXY_PORT), WORKS).expect("an agent");
        assert!(dial(&lab, f.unknown, (f.gateway, PROXY_PORT), REFUSED).is_err(), "a stranger");
    }
    assert!(dial(&lab, late, (v4.gateway, PROXY_PORT), REFUSED).is_err(), "a stranger");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_that_comes_late_is_governed_when_it_comes() {
    let mut lab = Lab::with("", "[[interface]]\nname = \"gb\"\nrole = \"agents\"\n");
    forwarding_without_us(&lab);
    let o = lab.ns(Place::Outside);
    ip(&format!("-n {o} route add 10.79.0.0/24 via 10.78.0.1"));
    ip(&format!("-n {} rule add from 10.79.0.0/24 lookup 79", lab.ns(Place::Agents)));
    lab.start().await;
    let missing = "interface `gb` does not exist (there are: ga, gu, lo)";
    let status = lab.status().await;
    assert!(status.absent.iter().any(|a| a.contains(missing)), "{:?}", status.absent);
    assert!(lab.log_text().contains(missing), "{}", lab.log_text());
    until_tc(&lab, "gb", "off").await;
    let mut both = agents();
    both.push(agent(2, &[&format!("gb=10.79.0.2,{MAC}")]));
    let mut two = tables();
    two.agents = BTreeMap::from([(1, 1), (2, 1)]);
    lab.apply(1, two, both).await;

    let [f, _] = families();
    let (late, stranger) = (at("10.79.0.2"), at("10.79.0.66"));
    let (good, bad) = (Server::start(&lab, f.direct), Server::start(&lab, f.forbidden));
    let (loan, first, descriptors) = take(&lab).await;
    assert_eq!(first.interfaces.len(), 1);
    let sink = lab.inside(Place::Outside, || UdpSocket::bind((f.direct, PORT)).expect("bind"));
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lab.inside(Place::Agents, || {
                // From before the interface is there: nothing may slip through while it is taken up.
                while !stop.load(Ordering::SeqCst) {
                    if let Ok(socket) = UdpSocket::bind((late, 0))
                        && socket.send_to(b"early", (f.direct, PORT)).is_ok()
                    {
                        sent.fetch_add(1, Ordering::SeqCst);
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let mut indices = Vec::new();
                for round in 0..2 {
                    plug(&lab);
                    until_tc(&lab, "gb", "tcx").await;
                    let (now, _) = handover::receive(&loan).await.expect("l7 is told");
                    assert_eq!(now.interfaces.len(), 2, "round {round}");
                    indices.push(now.interfaces);
                    let mut client = dial(&lab, late, (f.direct, PORT), WORKS).expect("direct");
                    talk(&mut client, b"late");
                    let _steered = dial(&lab, late, (f.steered, PORT), WORKS).expect("steered");
                    accept_stream(&first, &descriptors, ListenerKind::Transparent, true);
                    refused(&lab, "denied", late, f.forbidden);
                    refused(&lab, "anonymous", stranger, f.direct);
                    unplug(&lab);
                    until_tc(&lab, "gb", "off").await;
                    let (now, _) = handover::receive(&loan).await.expect("l7 is told");
                    assert_eq!(now.interfaces, first.interfaces, "round {round}");
                    let status = lab.status().await;
                    assert!(status.absent.iter().any(|a| a.contains(missing)), "{:?}", status.absent);
                }
                assert_ne!(indices[0], indices[1], "another index, so its bindings were written anew");
            });
        });
        stop.store(true, Ordering::SeqCst);
    });
    assert!(sent.load(Ordering::SeqCst) > 100, "nothing was tried: {sent:?}");
    sink.set_nonblocking(true).expect("non-blocking");
    assert!(sink.recv(&mut [0; 8]).is_err(), "an unjudged packet got out");
    assert_eq!((good.accepted(), bad.accepted()), (2, 0));
    talk(&mut dial(&lab, f.known, (f.direct, PORT), WORKS).expect("the other interface"), b"undisturbed");
    let told = |r: &AuditRecord, what: &str| {
        r.kind == RecordKind::Change && r.detail.as_ref().is_some_and(|d| d.contains(what))
    };
    let found = records(&lab, WORKS, |r| told(r, "vanished")).await;
    assert!(
        found.iter().any(|r| told(r, "agents interface `gb` (index ") && told(r, "appeared")),
        "{found:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_interface_is_let_go_and_taken_up_again() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    let [f, _] = families();
    let (good, bad) = (Server::start(&lab, f.direct), Server::start(&lab, f.forbidden));
    talk(&mut dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct"), b"before");
    let g = lab.ns(Place::Gateway);
    let rename = |from: &str, to: &str| {
        ip(&format!("-n {g} link set {from} down"));
        ip(&format!("-n {g} link set {from} name {to}"));
        ip(&format!("-n {g} link set {to} up"));
        ip(&format!("-n {g} addr replace fd77::1/64 dev {to} nodad"));
    };
    let pins = || std::fs::read_dir(lab.config.datapath.bpffs.join("links")).expect("links").count();
    let before = pins();
    rename("ga", "gx");
    until_tc(&lab, "ga", "off").await;
    let status = lab.status().await;
    let missing = "interface `ga` does not exist (there are: gu, gx, lo)";
    assert!(status.absent.iter().any(|a| a.contains(missing)), "{:?}", status.absent);
    let until = Instant::now() + WORKS;
    while before - pins() != 3 {
        assert!(Instant::now() < until, "programs of ours are left on it");
    }
    refused(&lab, "an interface without a role", f.known, f.direct);
    refused(&lab, "an interface without a role", f.known, f.forbidden);
    rename("gx", "ga");
    until_tc(&lab, "ga", "tcx").await;
    for f in families() {
        let _server = f.known.is_ipv6().then(|| Server::start(&lab, f.direct));
        talk(&mut dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct"), b"after");
        refused(&lab, "denied", f.known, f.forbidden);
    }
    assert_eq!((good.accepted(), bad.accepted()), (2, 0));
}

/// A name that no interface has is no reason to stay away, and never one to be open.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_interface_is_named_and_opens_nothing() {
    let mut lab = Lab::new();
    forwarding_without_us(&lab);
    let _server = Server::start(&lab, at("198.51.100.5"));
    let (known, outside) = (at("10.77.0.2"), at("198.51.100.5"));
    talk(&mut dial(&lab, known, (outside, PORT), WORKS).expect("an open router"), b"open");
    // An uplink of another name: traffic still has a way out.
    let renamed = std::fs::read_to_string(lab.file()).expect("config").replace("\"gu\"", "\"gone\"");
    std::fs::write(lab.file(), renamed).expect("config");
    let missing = "interface `gone` does not exist (there are: ga, gu, lo)";
    let output = lab.role(&["--check"]).output().expect("nsenter");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.lines().last().is_some_and(|l| l.contains(missing)), "{error}");
    assert!(!lab.config.datapath.bpffs.exists(), "a check leaves nothing behind");
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    let status = lab.status().await;
    assert!(status.absent.iter().any(|a| a.contains(missing)), "{:?}", status.absent);
    refused(&lab, "a node whose uplink is another", known, outside);
    assert!(dial(&lab, known, (at("10.77.0.1"), 22), REFUSED).is_err(), "the gateway itself");
    // It comes, by being renamed, and is used.
    let g = lab.ns(Place::Gateway);
    for line in
        ["link set gu down", "link set gu name gone", "link set gone up", "route add default via 10.78.0.2"]
    {
        ip(&format!("-n {g} {line}"));
    }
    talk(&mut dial(&lab, known, (outside, PORT), WORKS).expect("direct"), b"at last");
    assert!(lab.role(&["--check"]).status().expect("nsenter").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_added_is_the_gateway_s_own_at_once() {
    let mut lab = Lab::new();
    lab.start().await;
    let mut all = tables();
    // Permitted, were it not the gateway's.
    all.destinations.push(("10.77.0.9/32".parse().expect("prefix"), 1));
    lab.apply(1, all, agents()).await;
    let [f, _] = families();
    ip(&format!("-n {} addr add 10.77.0.9/24 dev ga", lab.ns(Place::Gateway)));
    let _own = lab.inside(Place::Gateway, || TcpListener::bind(("10.77.0.9", PORT)).expect("bind"));
    let until = Instant::now() + WORKS;
    while !lab.status().await.counters.contains_key(DropReason::GatewayAddress.name()) {
        assert!(dial(&lab, f.known, (at("10.77.0.9"), PORT), REFUSED).is_err(), "reached the gateway");
        assert!(Instant::now() < until, "the address is not known as the gateway's");
    }
}

/// What the kernel announces, and what it is taken for.
#[test]
fn changes_are_announced() {
    let lab = Lab::new();
    let (requests, inbox) = mpsc::sync_channel::<()>(0);
    let (outbox, answers) = mpsc::sync_channel::<Changes>(0);
    let ns = File::open(format!("/run/netns/{}", lab.ns(Place::Gateway))).expect("namespace");
    let watcher = std::thread::spawn(move || {
        setns(&ns, CloneFlags::CLONE_NEWNET).expect("setns");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let mut watch = Watch::open().expect("watch");
            assert!(watch.hears_firewall());
            outbox.send(Changes::default()).expect("ready");
            while inbox.recv().is_ok() {
                let heard =
                    tokio::time::timeout(WORKS, watch.changed()).await.expect("in time").expect("heard");
                outbox.send(heard).expect("answer");
            }
        });
    });
    answers.recv().expect("ready");
    let run = |program: &str, line: &str| {
        let done = lab.inside(Place::Gateway, || {
            Command::new(program).args(line.split_whitespace()).status().expect("command")
        });
        assert!(done.success(), "{program} {line}");
    };
    let heard = || {
        requests.send(()).expect("request");
        answers.recv().expect("answer")
    };
    let network = Changes { network: true, firewall: false };
    for line in [
        "link add d0 type veth peer name d9",
        "link set d0 up",
        "link set d0 name d1",
        "addr add 10.9.9.9/32 dev d1",
        "route add local 0.0.0.0/0 dev lo table 100",
        "rule add fwmark 1 lookup 100",
        "rule del fwmark 1",
        "link del d1",
    ] {
        run("ip", line);
        assert_eq!(heard(), network, "{line}");
    }
    lab.inside(Place::Gateway, || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("setting"));
    assert_eq!(heard(), network, "forwarding");
    // Of others: no word, so the next one is about our own.
    run("ip", "route add 10.99.0.0/16 dev lo");
    run("nft", "add table inet other");
    run("nft", "add table inet clawgress");
    // The kernel may still be telling of what went before.
    assert!(heard().firewall);
    run("nft", "add chain inet clawgress x");
    assert!(heard().firewall);

    // More than the socket holds: what was lost may have been anything.
    let batch = lab.file().with_extension("batch");
    let lines: Vec<_> =
        (0..3_000).map(|n| format!("route add 10.{}.{}.0/24 dev lo table 100\n", n / 250, n % 250)).collect();
    std::fs::write(&batch, lines.concat()).expect("batch");
    run("ip", &format!("-batch {}", batch.display()));
    assert_eq!(heard(), Changes::ALL);
    drop(requests);
    watcher.join().expect("watcher");
}
