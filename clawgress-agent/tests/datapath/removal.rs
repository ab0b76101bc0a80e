//! What stays when the process dies, what stops when programs go, and what comes back when somebody takes
//! it away under a live role.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::time::Instant;

use clawgress_agent::datapath::attach::{self, TcMode};
use clawgress_agent::datapath::{bpf, object};
use clawgress_api::{AuditRecord, RecordKind};
use nix::sys::signal::Signal;

use crate::lab::{Lab, Place, at};
use crate::network::{PORT, REFUSED, Server, WORKS, agents, dial, families, records, refused, tables, talk};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_leaves_still_governs() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(7, tables(), agents()).await;
    let [f, _] = families();
    let (good, bad) = (Server::start(&lab, f.direct), Server::start(&lab, f.forbidden));
    let mut long = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
    talk(&mut long, b"before");

    lab.stop(Signal::SIGKILL);
    talk(&mut long, b"meanwhile");
    refused(&lab, "denied, without the process", f.known, f.forbidden);
    refused(&lab, "anonymous, without the process", f.unknown, f.direct);
    refused(&lab, "steered, without the process", f.known, f.steered);
    let mut new = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("permitted by the pinned tables");
    talk(&mut new, b"new");

    lab.start().await;
    talk(&mut long, b"after");
    let status = lab.status().await;
    assert_eq!(status.generation, 7, "the former generation stays live");
    let mut again = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
    talk(&mut again, b"again");
    refused(&lab, "denied, after the restart", f.known, f.forbidden);

    // An orderly end leaves as much.
    lab.stop(Signal::SIGTERM);
    talk(&mut long, b"after the end");
    refused(&lab, "denied, after the end", f.known, f.forbidden);

    lab.detach();
    refused(&lab, "without programs", f.known, f.direct);
    refused(&lab, "without programs", f.known, f.forbidden);
    long.write_all(b"lost").expect("the socket takes it");
    long.set_read_timeout(Some(REFUSED)).expect("time-out");
    assert!(long.read(&mut [0; 8]).is_err(), "a live connection stops too");
    assert!(!lab.config.datapath.bpffs.exists(), "no pin is left");
    lab.detach();
    assert_eq!((good.accepted(), bad.accepted()), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_programs_stop_traffic() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    let [f, _] = families();
    let _server = Server::start(&lab, f.direct);
    let mut client = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
    talk(&mut client, b"x");
    lab.stop(Signal::SIGKILL);
    // By hand, as somebody would who wants to get round them; rules and forwarding stay.
    std::fs::remove_dir_all(lab.config.datapath.bpffs.join("links")).expect("remove links");
    // The kernel frees links a moment after their last reference is gone.
    let until = Instant::now() + WORKS;
    while dial(&lab, f.known, (f.direct, PORT), REFUSED).is_ok() {
        assert!(Instant::now() < until, "programs without links still run");
    }
    refused(&lab, "without programs", f.known, f.direct);
    refused(&lab, "without programs", f.unknown, f.forbidden);
    client.write_all(b"lost").expect("the socket takes it");
    client.set_read_timeout(Some(REFUSED)).expect("time-out");
    assert!(client.read(&mut [0; 8]).is_err(), "a live connection stops too");
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_rules_come_back() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    let [f, _] = families();
    let (_good, bad) = (Server::start(&lab, f.direct), Server::start(&lab, f.forbidden));
    lab.inside(Place::Gateway, || {
        let flushed = Command::new("nft").args(["flush", "ruleset"]).status().expect("nft");
        let deleted = Command::new("ip").args(["rule", "del", "priority", "100"]).status().expect("ip");
        assert!(flushed.success() && deleted.success());
    });
    refused(&lab, "denied, without rules", f.known, f.forbidden);
    let told = |r: &AuditRecord, what: &str| r.detail.as_ref().is_some_and(|d| d.contains(what));
    // Each is put back when it is noticed, in whatever order.
    let (routes, table) = (Cell::new(false), Cell::new(false));
    let is_last = |r: &AuditRecord| {
        routes.set(routes.get() || told(r, "rules or routes"));
        table.set(table.get() || told(r, "nftables table") && r.kind == RecordKind::Change);
        routes.get() && table.get()
    };
    records(&lab, WORKS, is_last).await;
    let mut client = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
    talk(&mut client, b"repaired");
    assert_eq!(bad.accepted(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_settings_are_set_back() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    let [f, _] = families();
    let _server = Server::start(&lab, f.direct);
    talk(&mut dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct"), b"before");
    let path = |name: &str| format!("/proc/sys/net/{name}");
    // Forwarding last: it sets some of the others to its own defaults.
    let settings = [
        ("ipv4/conf/ga/send_redirects", "1", "0"),
        ("ipv6/conf/ga/accept_redirects", "1", "0"),
        ("ipv6/conf/ga/accept_ra", "1", "0"),
        ("ipv4/tcp_migrate_req", "0", "1"),
        ("ipv6/conf/all/forwarding", "0", "1"),
        ("ipv4/ip_forward", "0", "1"),
    ];
    lab.inside(Place::Gateway, || {
        for (name, changed, _) in settings {
            std::fs::write(path(name), changed).expect("setting");
        }
    });
    let told = |r: &AuditRecord, name: &str, value: &str| {
        let text = format!("a setting was changed, and was set back: {name}={value}");
        r.kind == RecordKind::Change && r.detail.as_ref().is_some_and(|d| d.contains(&text))
    };
    let left = RefCell::new(settings.map(|(name, _, value)| (name, value)).to_vec());
    let is_last = |r: &AuditRecord| {
        left.borrow_mut().retain(|(name, value)| !told(r, name, value));
        left.borrow().is_empty()
    };
    records(&lab, WORKS, is_last).await;
    lab.inside(Place::Gateway, || {
        for (name, _, value) in settings {
            assert_eq!(std::fs::read_to_string(path(name)).expect("setting").trim(), value, "{name}");
        }
    });
    talk(&mut dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct"), b"after");
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_programs_come_back() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    let [f, _] = families();
    let (_good, bad) = (Server::start(&lab, f.direct), Server::start(&lab, f.forbidden));
    let links = lab.config.datapath.bpffs.join("links");
    let pins = || {
        let mut names: Vec<_> =
            std::fs::read_dir(&links).expect("links").map(|e| e.expect("e").file_name()).collect();
        names.sort();
        names
    };
    let before = pins();
    std::fs::remove_dir_all(&links).expect("remove links");
    let told = |r: &AuditRecord, what: &str| {
        r.kind == RecordKind::Change && r.detail.as_ref().is_some_and(|d| d.contains(what))
    };
    let found = records(&lab, WORKS, |r| told(r, "claw_sock on local workloads")).await;
    for what in
        ["claw_tc_in on `ga`", "claw_tc_out on `ga`", "claw_xdp on `ga`", "claw_lookup", "claw_connect4"]
    {
        assert!(found.iter().any(|r| told(r, what)), "{what}: {found:#?}");
    }
    assert_eq!(pins(), before);
    let mut client = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
    talk(&mut client, b"repaired");
    refused(&lab, "denied, after the repair", f.known, f.forbidden);
    assert_eq!(bad.accepted(), 0);
}

#[test]
fn classifiers_hang_on_clsact_where_tcx_is_missing() {
    let lab = Lab::new();
    let directory = &lab.config.datapath.bpffs;
    lab.inside(Place::Gateway, || {
        bpf::open_directory(directory).expect("bpffs");
        let index = nix::net::if_::if_nametoindex("ga").expect("index");
        let interfaces = BTreeMap::from([("ga".to_owned(), index)]);
        for _ in 0..2 {
            // The second replaces the first's filter.
            let mut ebpf = object::load(Some(directory)).expect("load");
            let attached =
                attach::interfaces(&mut ebpf, directory, &interfaces, TcMode::Clsact).expect("attach");
            assert_eq!(attached["ga"].tc, "clsact");
        }
        let filters = || {
            let shown =
                Command::new("tc").args(["filter", "show", "dev", "ga", "ingress"]).output().expect("tc");
            String::from_utf8_lossy(&shown.stdout).matches("direct-action").count()
        };
        assert_eq!(filters(), 1, "one filter, and it outlives its process");
        let mut ebpf = object::load(Some(directory)).expect("load");
        let renewed = attach::renew_clsact(&mut ebpf, &interfaces).expect("renew");
        assert_eq!(renewed, Vec::<String>::new(), "nothing was missing");
        let deleted =
            Command::new("tc").args(["filter", "del", "dev", "ga", "ingress"]).status().expect("tc");
        assert!(deleted.success() && filters() == 0);
        let renewed = attach::renew_clsact(&mut ebpf, &interfaces).expect("renew");
        assert!(renewed.len() == 1 && renewed[0].contains("claw_tc_in on `ga`"), "{renewed:?}");
        assert_eq!(filters(), 1, "attached again");
        drop(ebpf);
        attach::detach_clsact(["ga"].into_iter());
        assert_eq!(filters(), 0);
        bpf::remove_directory(directory).expect("remove pins");
    });
}

/// As a router that has not heard of us.
pub fn forwarding_without_us(lab: &Lab) {
    lab.inside(Place::Gateway, || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding"));
    crate::lab::ip(&format!("-n {} route add 10.77.0.0/24 via 10.78.0.1", lab.ns(Place::Outside)));
}

/// At boot, before interfaces are there; and beside a role that runs, where it changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn closing_shuts_agents_out_and_leaves_a_live_table_alone() {
    let mut lab = Lab::new();
    forwarding_without_us(&lab);
    let (known, outside) = (at("10.77.0.2"), at("198.51.100.5"));
    let _server = Server::start(&lab, outside);
    let _own = lab.inside(Place::Gateway, || TcpListener::bind(("10.77.0.1", 22)).expect("bind"));
    dial(&lab, known, (at("10.77.0.1"), 22), WORKS).expect("an open gateway");
    lab.close();
    refused(&lab, "closed", known, outside);
    assert!(dial(&lab, known, (at("10.77.0.1"), 22), REFUSED).is_err(), "closed, the gateway itself");
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    let mut live = dial(&lab, known, (outside, PORT), WORKS).expect("direct");
    lab.close();
    talk(&mut live, b"still");
    talk(&mut dial(&lab, known, (outside, PORT), WORKS).expect("direct"), b"still");

    let refusal = lab.role(&["--detach"]).output().expect("nsenter");
    let error = String::from_utf8_lossy(&refusal.stderr);
    assert!(!refusal.status.success() && error.contains("stop it first"), "{error}");
    talk(&mut live, b"undisturbed");
    lab.stop(Signal::SIGTERM);
    lab.detach();
    refused(&lab, "detached", known, outside);
    assert!(dial(&lab, known, (at("10.77.0.1"), 22), REFUSED).is_err(), "detached, the gateway itself");
}
