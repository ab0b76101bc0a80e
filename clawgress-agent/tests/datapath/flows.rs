//! The flow table: each agent's share of it, sweeping, judging idle flows again, and the kernel's connection
//! tracking that goes with it.

use std::fs;
use std::time::{Duration, Instant};

use clawgress_agent::datapath::bpf::Plain;
use clawgress_api::{LiveQuery, RecordKind};
use clawgress_ebpf_common::{DropReason, Flow, action, bound, mark, protocol};
use clawgress_policy::kernel::KernelTables;

use crate::frames::{SYN, ip, tcp, udp};
use crate::kernel::{Did, Kernel, agent};
use crate::lab::{Lab, Place};
use crate::network::{self, PORT, Server, WORKS, dial, records, talk};
use crate::verdicts::{Family, MAC, agents, families, key, ready, tables};

/// Datagrams of `f`'s agent that each begin a flow: there are more ports than an agent has flows.
fn datagrams(f: Family, count: u64) -> impl Iterator<Item = Vec<u8>> {
    let count = u16::try_from(count).expect("ports");
    (0..count).map(move |n| ip(MAC, f.agent, f.direct, 17, &udp(n, 443, b"")))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_agent_fills_its_share_and_no_more() {
    let mut kernel = Kernel::load();
    let [v4, v6] = families();
    let both = vec![agent(1, &["lo=10.9.0.2,any-mac"]), agent(2, &["lo=fd00::2,any-mac"])];
    kernel.apply(1, Some(tables()), both).await;
    kernel.flood(datagrams(v4, bound::FLOWS_PER_AGENT_MAX));
    assert_eq!(kernel.swept.share(1), bound::FLOWS_PER_AGENT_MAX);

    let next = ip(MAC, v4.agent, v4.direct, 17, &udp(65_000, 443, b""));
    assert_eq!(kernel.ingress(&next), Did::Dropped(DropReason::FlowShareFull));
    let known = ip(MAC, v4.agent, v4.direct, 17, &udp(7, 443, b""));
    assert_eq!(kernel.ingress(&known), Did::Marked(mark::DIRECT), "what it has goes on");
    let other = ip(MAC, v6.agent, v6.direct, 17, &udp(1, 443, b""));
    assert_eq!(kernel.ingress(&other), Did::Marked(mark::DIRECT), "another agent has room");

    // What ends gives room again, and no more than that.
    let is_low = |port_be: u16| u16::from_be(port_be) < 10;
    let ended = kernel.swept.remove(|key, flow, _| flow.agent == 1 && is_low(key.source_port_be));
    assert_eq!(ended.expect("sweep").len(), 10);
    assert_eq!(kernel.swept.share(1), bound::FLOWS_PER_AGENT_MAX - 10);
    kernel.flood((65_000..65_100).map(|n| ip(MAC, v4.agent, v4.direct, 17, &udp(n, 443, b""))));
    assert_eq!(kernel.ingress(&next), Did::Marked(mark::DIRECT), "the first of them found room");
    assert_eq!(kernel.swept.share(1), bound::FLOWS_PER_AGENT_MAX);
    assert_eq!(kernel.swept.share(2), 1);
}

/// A process that dies between a removal and its count leaves a share too full.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_heals_the_count() {
    let mut kernel = ready().await;
    let [f, _] = families();
    kernel.flood(datagrams(f, 5));
    for port in 0..3_u16 {
        let mut gone = key(&f, f.direct, 443, protocol::UDP);
        gone.source_port_be = port.to_be();
        kernel.flows.remove(&Plain(gone)).expect("a flow");
    }
    assert_eq!(kernel.swept.share(1), 5, "nobody told");
    kernel.swept.remove(|_, _, _| false).expect("sweep");
    assert_eq!(kernel.swept.share(1), 2);
    kernel.swept.remove(|_, _, _| true).expect("sweep");
    assert_eq!((kernel.swept.share(1), kernel.swept.live()), (0, 0));
}

/// What this thread has used; the clock on the wall measures the neighbours, too.
fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
    Duration::from_nanos(text.split(' ').next().expect("a number").parse().expect("a number"))
}

/// A sweep of a full table must not eat a core: it prints what it takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_table_is_swept_whole() {
    let mut kernel = ready().await;
    let [f, _] = families();
    let mut filler = key(&f, f.direct, 443, protocol::UDP);
    for n in 0..bound::FLOWS_MAX {
        filler.destination[..4].copy_from_slice(&n.to_ne_bytes());
        // A spread of agents, as no single one may have so many.
        let flow = Flow { agent: n % 1000, action: action::DIRECT, ..Flow::default() };
        kernel.flows.insert(Plain(filler), Plain(flow), 0).expect("room");
    }
    let begin = cpu_time();
    assert_eq!(kernel.swept.remove(|_, _, _| false).expect("sweep"), []);
    println!("a sweep of {} flows that stay: {:?} of CPU", bound::FLOWS_MAX, cpu_time() - begin);
    assert_eq!(kernel.swept.live(), u64::from(bound::FLOWS_MAX));
    let begin = cpu_time();
    let pressed = std::sync::atomic::AtomicBool::new(false);
    let ended = kernel.swept.remove(|_, _, is_pressed| {
        pressed.fetch_or(is_pressed, std::sync::atomic::Ordering::Relaxed);
        true
    });
    println!("and with their removal: {:?} of CPU", cpu_time() - begin);
    assert_eq!(ended.expect("sweep").len(), bound::FLOWS_MAX as usize);
    assert!(pressed.into_inner(), "a full table presses");
    assert!((0..1000).all(|agent| kernel.swept.share(agent) == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_flows_are_judged_again_without_a_packet() {
    let mut kernel = ready().await;
    let [v4, v6] = families();
    for f in [v4, v6] {
        kernel.ingress(&ip(MAC, f.agent, f.direct, 17, &udp(40_000, 443, b"")));
        kernel.ingress(&ip(MAC, f.agent, f.gateway, 6, &tcp(40_000, crate::kernel::PROXY_PORT, SYN)));
    }
    let of = |kernel: &Kernel, f: &Family| kernel.flow(&key(f, f.direct, 443, protocol::UDP)).expect("flow");
    kernel.apply(2, Some(tables()), agents()).await;
    assert_eq!(kernel.swept.confirm(2).expect("confirm"), 0, "the same policy");
    assert_eq!((of(&kernel, &v4).generation, of(&kernel, &v6).generation), (2, 2));

    let mut narrower = tables();
    narrower.destinations.retain(|(net, _)| *net != "198.51.100.0/24".parse().expect("prefix"));
    kernel.apply(3, Some(narrower), agents()).await;
    assert_eq!(kernel.swept.confirm(3).expect("confirm"), 1);
    assert_eq!(of(&kernel, &v4).action, action::DENY);
    assert_eq!((of(&kernel, &v6).action, of(&kernel, &v6).generation), (action::DIRECT, 3));
    assert_eq!(of(&kernel, &v6).tx_packets, 1, "no packet was counted");
    let local = kernel.flow(&key(&v4, v4.gateway, crate::kernel::PROXY_PORT, protocol::TCP)).expect("flow");
    assert_eq!(local.action, action::LOCAL, "the proxy judges those");
}

/// Tracked connections of the gateway's namespace from the agents' subnets.
fn tracked(lab: &Lab) -> usize {
    let ns = lab.ns(Place::Gateway);
    let output = std::process::Command::new("ip")
        .args(["netns", "exec", &ns, "cat", "/proc/net/nf_conntrack"])
        .output()
        .expect("ip");
    let text = String::from_utf8(output.stdout).expect("text");
    let is_agents = |line: &&str| line.contains("src=10.77.0.2 ") || line.contains("src=fd77:");
    text.lines().filter(is_agents).filter(|line| line.contains(&format!("dport={PORT} "))).count()
}

/// The connection is idle: neither side sends anything after the policy changed.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_ends_with_its_permit() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, network::tables(), network::agents()).await;
    let mut clients = Vec::new();
    for f in network::families() {
        let server = Server::start(&lab, f.direct);
        let mut client = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
        talk(&mut client, b"before");
        clients.push((server, client));
    }
    if fs::exists("/proc/net/nf_conntrack").expect("proc") {
        assert_eq!(tracked(&lab), 2, "two connections are tracked");
    }
    let nothing = KernelTables { verdicts: Vec::new(), ..network::tables() };
    lab.apply(2, nothing, network::agents()).await;
    records(&lab, Duration::from_secs(40), |r| r.kind == RecordKind::Outcome).await;
    let until = Instant::now() + WORKS;
    while tracked(&lab) > 0 {
        assert!(Instant::now() < until, "{} connections are still tracked", tracked(&lab));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(lab.status().await.flows, 0);
}

/// What `clawgressctl flows` and `clawgressctl drops` are told.
#[tokio::test(flavor = "multi_thread")]
async fn live_flows_and_recent_drops_are_listed() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, network::tables(), network::agents()).await;
    for f in network::families() {
        let _server = Server::start(&lab, f.direct);
        let mut client = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct");
        talk(&mut client, &[7; 500]);
        dial(&lab, f.known, (f.forbidden, PORT), WORKS).expect_err("denied");
        let port = client.local_addr().expect("address").port();
        let listed = lab.flows(&LiveQuery { agent: Some("a1".to_owned()), limit: None, totals: false }).await;
        let listed = listed.expect("flows");
        let flow = listed.flows.iter().find(|flow| flow.source.port == Some(port)).expect("the flow");
        assert_eq!(flow.agent.as_ref().expect("agent").name(), "a1");
        assert_eq!((flow.source.ip, flow.source.interface.as_deref()), (Some(f.known), Some("ga")));
        assert_eq!((flow.destination.ip, flow.destination.port), (Some(f.direct), Some(PORT)));
        assert_eq!(
            (flow.action.as_str(), flow.policies.as_slice()),
            ("direct", &["go-direct".to_owned()][..])
        );
        assert!(flow.bytes_sent > 500 && flow.bytes_received > 500 && flow.packets_sent > 2, "{flow:?}");
        assert!(flow.idle_ms <= flow.age_ms, "{flow:?}");

        let drops = lab.drops(&LiveQuery::default()).await.expect("drops");
        let denied = drops.iter().find(|drop| drop.destination.ip == Some(f.forbidden)).expect("a drop");
        assert_eq!(denied.reason, DropReason::PolicyDenied.name());
        assert_eq!((denied.destination.port, denied.source.port), (Some(PORT), None));
        assert!(denied.count >= 1 && denied.first <= denied.last, "{denied:?}");
    }
    let one = lab.flows(&LiveQuery { agent: None, limit: Some(1), totals: false }).await.expect("flows");
    assert_eq!((one.flows.len(), one.total), (1, 2));
    let anonymous = LiveQuery { agent: Some("anonymous".to_owned()), limit: None, totals: false };
    assert_eq!(lab.flows(&anonymous).await.expect("flows").total, 0);
    for (agent, want) in [("a9", "there is no agent"), ("A 9", "anonymous")] {
        let error = lab
            .flows(&LiveQuery { agent: Some(agent.to_owned()), limit: None, totals: false })
            .await
            .expect_err(agent);
        assert!(error.message().contains(want), "{}", error.message());
    }
}
