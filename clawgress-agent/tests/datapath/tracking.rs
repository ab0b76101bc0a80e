//! Full connection tracking: what it has no room for goes nowhere, what it knows goes on, and it is told.

use std::io::Read as _;
use std::net::IpAddr;
use std::process::Command;
use std::time::Instant;

use clawgress_agent::datapath::network::Conntrack;
use clawgress_api::{AuditRecord, DatapathStatus, RecordKind, TrackingStatus};
use clawgress_ebpf_common::{FlowKey, protocol, user};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Lab, PROXY_PORT, Place};
use crate::network::{PORT, REFUSED, Server, WORKS, agents, dial, families, records, refused, tables, talk};

/// ctnetlink (linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h).
const NETLINK_NETFILTER: i32 = 12;
const CT_NEW: u16 = 1 << 8;
/// `NLM_F_REQUEST`, `NLM_F_CREATE`, `NLM_F_EXCL`.
const FLAGS: u16 = 1 | 0x400 | 0x200;
const NESTED: u16 = 1 << 15;
/// `IPS_SEEN_REPLY`, `IPS_ASSURED`, `IPS_CONFIRMED`: nobody makes room by taking it away.
const STATUS: u32 = 2 | 4 | 8;
const BATCH: u32 = 256;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(4 + value.len()).expect("short").to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn tuple(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let addresses = [attribute(1, &source), attribute(2, &destination)].concat();
    let port = 9_u16.to_be_bytes();
    let transport = [attribute(1, &[17]), attribute(2, &port), attribute(3, &port)].concat();
    [attribute(NESTED | 1, &addresses), attribute(NESTED | 2, &transport)].concat()
}

const HOST: [u8; 4] = [10, 77, 0, 3];

fn peer(n: u32) -> [u8; 4] {
    (11 << 24 | n).to_be_bytes()
}

/// An entry as if a flow had been tracked.
fn entry(n: u32) -> Vec<u8> {
    let body = [
        vec![u8::try_from(libc::AF_INET).expect("family"), 0, 0, 0],
        attribute(NESTED | 1, &tuple(HOST, peer(n))),
        attribute(NESTED | 2, &tuple(peer(n), HOST)),
        attribute(3, &STATUS.to_be_bytes()),
        attribute(7, &3600_u32.to_be_bytes()),
    ]
    .concat();
    let mut message = u32::try_from(16 + body.len()).expect("short").to_ne_bytes().to_vec();
    message.extend(CT_NEW.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

async fn tracked(lab: &Lab) -> (TrackingStatus, DatapathStatus) {
    let status = lab.status().await;
    (status.tracking.expect("the gateway tracks connections"), status)
}

/// Fills the gateway's table with flows that nobody ends. The kernel's bound is the same for every namespace, but each
/// is held to it by itself.
async fn fill(lab: &Lab) {
    let (TrackingStatus { entries_max, .. }, _) = tracked(lab).await;
    let socket = lab.inside(Place::Gateway, || {
        let protocol = Some(Protocol::from(NETLINK_NETFILTER));
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, protocol).expect("netlink")
    });
    socket.set_nonblocking(true).expect("non-blocking");
    let until = Instant::now() + WORKS;
    let mut next = 0;
    loop {
        let (TrackingStatus { entries, .. }, _) = tracked(lab).await;
        if entries >= entries_max {
            return;
        }
        assert!(Instant::now() < until, "{entries} of {entries_max}");
        let missing = u32::try_from(entries_max - entries).expect("a table of this size") + BATCH;
        for _ in 0..missing / BATCH {
            let batch: Vec<u8> = (next..next + BATCH).flat_map(entry).collect();
            socket.send(&batch).expect("send");
            next += BATCH;
            // What it says of each that it has no room for.
            let mut answers = [0; 16 * 1024];
            while (&socket).read(&mut answers).is_ok() {}
        }
    }
}

/// Ends some of them.
fn make_room(lab: &Lab) {
    let key = |n: u32| FlowKey {
        source: user::address(IpAddr::from(HOST)),
        destination: user::address(IpAddr::from(peer(n))),
        source_port_be: 9_u16.to_be(),
        destination_port_be: 9_u16.to_be(),
        ifindex: 1,
        protocol: protocol::UDP,
        pad: [0; 3],
    };
    let keys: Vec<_> = (0..4096).map(key).collect();
    lab.inside(Place::Gateway, || Conntrack::open().expect("conntrack").end(keys.iter()).expect("end"));
}

fn told(r: &AuditRecord, what: &str) -> bool {
    r.kind == RecordKind::Change && r.detail.as_ref().is_some_and(|d| d.contains(what))
}

/// Waits until status says that tracking is full, or is not.
async fn until_full(lab: &Lab, is_full: bool) {
    let until = Instant::now() + WORKS;
    loop {
        let (_, status) = tracked(lab).await;
        let says =
            status.absent.iter().any(|a| a.contains("connection tracking is full: new flows are dropped"));
        if says == is_full {
            return;
        }
        assert!(Instant::now() < until, "not {is_full}: {status:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Packets that came out with an agent's own address, of either family.
fn escaped(lab: &Lab) -> [u64; 2] {
    let output = outside(lab, &["list table inet escaped"]);
    let mut counts = output.split("counter packets ").skip(1);
    let mut count = || {
        let text = counts.next().and_then(|rest| rest.split_whitespace().next()).expect("a counter");
        text.parse().expect("a count")
    };
    [count(), count()]
}

fn outside(lab: &Lab, words: &[&str]) -> String {
    let ns = lab.ns(Place::Outside);
    let output = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{ns}"))
        .arg("nft")
        .args(words)
        .output()
        .expect("nft");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_tracked_is_denied_and_what_is_tracked_goes_on() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    outside(
        &lab,
        &[
            "add table inet escaped; add chain inet escaped in { type filter hook prerouting priority -400; }; \
           add rule inet escaped in ip saddr 10.77.0.0/24 counter; \
           add rule inet escaped in ip6 saddr fd77::/64 counter",
        ],
    );
    let mut kept = Vec::new();
    for f in families() {
        let server = Server::start(&lab, f.direct);
        let mut stream = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
        talk(&mut stream, b"before");
        kept.push((f, stream, server));
    }
    let (before, _) = tracked(&lab).await;

    fill(&lab).await;
    until_full(&lab, true).await;
    for (f, stream, server) in &mut kept {
        for round in 0..3 {
            refused(&lab, "no room to track it", f.known, f.direct);
            talk(stream, format!("live {round}").as_bytes());
        }
        refused(&lab, "a stranger", f.unknown, f.direct);
        refused(&lab, "denied by policy", f.known, f.forbidden);
        assert!(dial(&lab, f.known, (f.gateway, PROXY_PORT), REFUSED).is_err(), "nor the proxy");
        assert_eq!(server.accepted(), 1, "the live one");
        assert_eq!(server.peers(), [f.uplink], "masqueraded");
    }
    assert_eq!(escaped(&lab), [0; 2], "nothing leaves with an agent's own address");
    let (full, _) = tracked(&lab).await;
    assert_eq!(full.entries, full.entries_max);
    assert!(full.dropped > before.dropped, "{full:?}, before {before:?}");

    make_room(&lab);
    until_full(&lab, false).await;
    for (f, stream, server) in &mut kept {
        let mut new = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("there is room");
        talk(&mut new, b"after");
        talk(stream, b"still");
        assert_eq!(server.accepted(), 2);
    }
    assert_eq!(escaped(&lab), [0; 2]);
    let over = "it is over that the kernel's connection tracking is full";
    let found = records(&lab, WORKS, |r| told(r, over)).await;
    let begun = "the kernel's connection tracking is full: interface `ga` fails closed";
    assert!(found.iter().any(|r| told(r, begun)) && found.iter().any(|r| told(r, over)), "{found:#?}");
}
