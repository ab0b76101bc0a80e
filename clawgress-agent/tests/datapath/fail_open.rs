//! What an interface does when something fails: closed, unless its configuration says `danger`. In either
//! mode, and whatever fails, a stranger gets nowhere.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use clawgress_agent::datapath::bpf::Plain;
use clawgress_agent::datapath::object;
use clawgress_api::handover::ListenerKind;
use clawgress_api::{AuditRecord, DatapathStatus, KernelGeneration, RecordKind, Verdict};
use clawgress_ebpf_common::{DropReason, Flow, FlowKey, action, bound, map, protocol, user};
use clawgress_identity::AgentState;

use crate::lab::{Lab, PROXY_PORT};
use crate::network::{
    Family, PORT, REFUSED, Server, WORKS, accept_stream, agents, dial, families, records, refused, tables,
    take, talk,
};

fn open(causes: &str) -> Lab {
    Lab::with(&format!("[interface.danger]\nfail_open = [{causes}]\n"), "")
}

/// What must not pass in any mode, under any failure.
#[track_caller]
fn strangers_are_refused(lab: &Lab, what: &str, f: &Family) {
    for to in [f.direct, f.steered, f.forbidden] {
        refused(lab, &format!("{what}: anonymous"), f.unknown, to);
    }
}

/// Dials until it works or the patience is over.
async fn until_reached(lab: &Lab, f: &Family, to: IpAddr) -> TcpStream {
    let until = Instant::now() + WORKS;
    loop {
        if let Ok(stream) = dial(lab, f.known, (to, PORT), REFUSED) {
            return stream;
        }
        assert!(Instant::now() < until, "{to} is not reached: {:?}", lab.status().await.counters);
    }
}

/// Waits until status says that the interface fails open now for these causes.
async fn until_open(lab: &Lab, causes: &[&str]) -> DatapathStatus {
    let until = Instant::now() + WORKS;
    loop {
        let status = lab.status().await;
        let found = status.interfaces.iter().find(|i| i.name == "ga").expect("configured");
        if found.failed_open == causes {
            return status;
        }
        assert!(Instant::now() < until, "not {causes:?}: {status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[track_caller]
fn is_cut(stream: &mut TcpStream) {
    let _ = stream.write_all(b"more");
    stream.set_read_timeout(Some(REFUSED)).expect("time-out");
    assert!(!matches!(stream.read(&mut [0; 8]), Ok(1..)), "it goes on");
}

fn opened(r: &AuditRecord, reason: DropReason) -> bool {
    r.verdict == Some(Verdict::Allow) && r.failed_open == Some(reason)
}

fn told(r: &AuditRecord, what: &str) -> bool {
    r.kind == RecordKind::Change && r.detail.as_ref().is_some_and(|d| d.contains(what))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_l7_an_open_interface_forwards_what_may_connect() {
    let mut lab = open("\"l7\"");
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    let mut kept = Vec::new();
    for f in families() {
        let servers = [f.steered, f.forbidden].map(|a| Server::start(&lab, a));
        let mut stream = until_reached(&lab, &f, f.steered).await;
        talk(&mut stream, b"unread");
        assert_eq!(servers[0].peers(), [f.uplink], "masqueraded like any forwarded flow");
        refused(&lab, "denied by policy", f.known, f.forbidden);
        strangers_are_refused(&lab, "no l7", &f);
        assert_eq!(servers[1].accepted(), 0);
        kept.push((f, stream, servers));
    }
    until_open(&lab, &["l7"]).await;
    // A generation that says the same changes nothing; one that forbids it, or another agent, would.
    lab.apply(2, tables(), agents()).await;
    for (_, stream, _) in &mut kept {
        talk(stream, b"still unread");
    }

    let (loan, handover, descriptors) = take(&lab).await;
    let status = until_open(&lab, &[]).await;
    assert_eq!(status.interfaces[0].fail_open, ["l7"]);
    for (f, stream, servers) in &mut kept {
        is_cut(stream);
        let before = servers[0].accepted();
        let _steered = dial(&lab, f.known, (f.steered, PORT), WORKS).expect("steered again");
        accept_stream(&handover, &descriptors, ListenerKind::Transparent, f.known.is_ipv4());
        assert_eq!(servers[0].accepted(), before, "read, not forwarded");
    }
    drop((loan, handover, descriptors));
    until_open(&lab, &["l7"]).await;
    talk(&mut until_reached(&lab, &kept[0].0, kept[0].0.steered).await, b"unread again");

    let found = records(&lab, WORKS, |r| told(r, "it is over that no L7")).await;
    let decision = found.iter().find(|r| opened(r, DropReason::ListenerMissing)).expect("a decision");
    assert_eq!(decision.agent.as_ref().expect("agent").agent, "a1");
    assert!(found.iter().any(|r| told(r, "interface `ga` is set to fail open (`l7`)")), "{found:#?}");
    assert!(found.iter().any(|r| told(r, "interface `ga` fails open: what policy permits to connect")));
    let outcomes = records(&lab, Duration::from_secs(40), |r| r.kind == RecordKind::Outcome).await;
    let outcome = outcomes.iter().find(|r| r.kind == RecordKind::Outcome).expect("outcome");
    assert_eq!(outcome.failed_open, Some(DropReason::ListenerMissing));
}

/// The flow table, reached by its pin.
fn table(lab: &Lab) -> HashMap<MapData, Plain<FlowKey>, Plain<Flow>> {
    let pin = object::pin(&lab.config.datapath.bpffs, map::FLOWS);
    let map = Map::from_map_data(MapData::from_pin(pin).expect("pin")).expect("map");
    HashMap::try_from(map).expect("flow table")
}

fn filler(n: u32) -> FlowKey {
    FlowKey {
        source: user::address(IpAddr::from([10, 77, 0, 3])),
        destination: user::address(IpAddr::from(n.to_be_bytes())),
        source_port_be: 1,
        destination_port_be: 1,
        ifindex: 0,
        protocol: protocol::TCP,
        pad: [0; 3],
    }
}

/// Flows that nobody ends, as many as there is room for.
fn fill(lab: &Lab) {
    let mut table = table(lab);
    let last_ns = u64::MAX / 2;
    let flow = Flow { generation: 1, last_ns, action: action::DIRECT, ..Flow::default() };
    for n in 0..bound::FLOWS_MAX {
        if table.insert(Plain(filler(n)), Plain(flow), 0).is_err() {
            return;
        }
    }
}

fn empty(lab: &Lab) {
    let mut table = table(lab);
    for n in 0..bound::FLOWS_MAX {
        let _ = table.remove(&Plain(filler(n)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_flow_table_denies_what_is_new() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    let [f, _] = families();
    let _server = Server::start(&lab, f.direct);
    let mut old = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
    fill(&lab);
    refused(&lab, "full", f.known, f.direct);
    assert!(dial(&lab, f.known, (f.gateway, PROXY_PORT), REFUSED).is_err(), "no record, no identity");
    talk(&mut old, b"others are not disturbed");
    assert!(lab.status().await.counters.contains_key(DropReason::FlowTableFull.name()));
    let found = records(&lab, WORKS, |r| told(r, "the flow table is full")).await;
    assert!(found.iter().any(|r| told(r, "interface `ga` fails closed")), "{found:#?}");
    assert!(found.iter().all(|r| r.failed_open.is_none()));
    empty(&lab);
    talk(&mut until_reached(&lab, &f, f.direct).await, b"room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_flow_table_an_open_interface_forwards_what_is_direct() {
    let mut lab = open("\"flow_table\"");
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    fill(&lab);
    let mut kept = Vec::new();
    for f in families() {
        let servers = [f.direct, f.forbidden].map(|a| Server::start(&lab, a));
        let mut stream = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct, without a record");
        talk(&mut stream, b"both ways");
        refused(&lab, "denied by policy", f.known, f.forbidden);
        refused(&lab, "steered, which needs a record", f.known, f.steered);
        strangers_are_refused(&lab, "full", &f);
        dial(&lab, f.known, (f.gateway, PROXY_PORT), WORKS).expect("the proxy, with a credential");
        assert_eq!((servers[0].accepted(), servers[1].accepted()), (1, 0));
        kept.push((stream, servers));
    }
    until_open(&lab, &["flow_table"]).await;
    // Policy holds for what has no record, too.
    let mut stopped = agents();
    stopped[0].state = AgentState::Disabled;
    lab.apply(2, tables(), stopped).await;
    is_cut(&mut kept[0].0);
    lab.apply(3, tables(), agents()).await;
    empty(&lab);
    // Taken up in its midst.
    kept[1].0.set_read_timeout(Some(WORKS)).expect("time-out");
    talk(&mut kept[1].0, b"on record now");
    until_open(&lab, &[]).await;
    let found = records(&lab, WORKS, |r| opened(r, DropReason::FlowUnknown)).await;
    assert!(found.iter().any(|r| opened(r, DropReason::FlowTableFull)), "{found:#?}");
    assert!(found.iter().any(|r| told(r, "interface `ga` fails open: what policy permits to go direct")));
}

fn without_policy(generation: u64) -> KernelGeneration<clawgress_policy::kernel::KernelTables> {
    KernelGeneration {
        generation,
        tables: None,
        agents: agents(),
        shared: Vec::new(),
        revisions: BTreeMap::new(),
        turns_at: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_policy_nothing_passes() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply_document(without_policy(1)).await;
    for f in families() {
        refused(&lab, "no policy", f.known, f.direct);
        strangers_are_refused(&lab, "no policy", &f);
    }
    assert!(lab.status().await.counters.contains_key(DropReason::PolicyMissing.name()));
    records(&lab, WORKS, |r| told(r, "no policy has been loaded: interface `ga` fails closed")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_policy_an_open_interface_forwards_whom_it_knows() {
    let mut lab = open("\"revision\"");
    lab.start().await;
    for f in families() {
        refused(&lab, "nobody is known yet", f.known, f.direct);
    }
    lab.apply_document(without_policy(1)).await;
    let mut kept = Vec::new();
    for f in families() {
        let servers = [f.direct, f.steered, f.forbidden].map(|a| Server::start(&lab, a));
        let dialled = [f.direct, f.steered, f.forbidden].map(|to| {
            let mut stream = dial(&lab, f.known, (to, PORT), WORKS).expect("anything goes");
            talk(&mut stream, b"no policy");
            stream
        });
        strangers_are_refused(&lab, "no policy", &f);
        assert!(dial(&lab, f.known, (f.gateway, 22), REFUSED).is_err(), "the gateway itself");
        kept.push((f, dialled, servers));
    }
    until_open(&lab, &["revision"]).await;
    // The first policy is in force at once, for live flows too.
    lab.apply(2, tables(), agents()).await;
    for (f, [direct, steered, forbidden], _) in &mut kept {
        talk(direct, b"permitted");
        is_cut(steered);
        is_cut(forbidden);
        refused(&lab, "denied", f.known, f.forbidden);
    }
    until_open(&lab, &[]).await;
    // Numbers that run backwards leave a moment without a generation: that is none to be open in.
    let status = lab.apply(1, tables(), agents()).await;
    assert_eq!(status.generation, 1);
    let found = records(&lab, WORKS, |r| told(r, "it is over that no policy")).await;
    assert!(found.iter().any(|r| opened(r, DropReason::PolicyMissing)), "{found:#?}");
}
