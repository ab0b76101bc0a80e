//! A tuple that is used again: whether another flow may begin by it is asked anew, its beginning is told, and so is
//! the end of the one before.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clawgress_agent::datapath::events::Told;
use clawgress_agent::datapath::learned::LearnedMap;
use clawgress_api::{AuditRecord, RecordKind, Verdict};
use clawgress_ebpf_common::{
    DropReason, Ended, Event, Flow, FlowKey, action, bound, event_kind, flow_flag, mark, protocol,
};
use clawgress_policy::Transport;
use clawgress_policy::kernel::{KernelAction, KernelTables};

use crate::dns::{SSH, learned, ssh, ssh_agents};
use crate::frames::{ACK, FIN, RST, SYN, ip, tcp, udp};
use crate::kernel::{Did, Kernel};
use crate::lab::{self, Lab, Place, at};
use crate::local::DIRECT;
use crate::network::{self, PORT, Server, WORKS, dial_from, records, talk};
use crate::puppet::Puppet;
use crate::verdicts::{Family, MAC, agents, families, key, ready, tables};
use crate::workload::open_workload;

const PASSED: Did = Did::Marked(mark::DIRECT);

/// Beginnings and ends that were told since.
fn told(kernel: &mut Kernel) -> (Vec<Event>, Vec<Ended>) {
    let (mut begun, mut ended) = (Vec::new(), Vec::new());
    for told in kernel.told() {
        match told {
            Told::Event(event) if event.kind == event_kind::FLOW => begun.push(event),
            Told::Event(_) => {}
            Told::Ended(end) => ended.push(end),
        }
    }
    (begun, ended)
}

fn flow(kernel: &Kernel, key: &FlowKey) -> Flow {
    kernel.flow(key).expect("a flow")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_begins_by_an_address_that_has_expired() {
    /// Long enough for four packets of a test run.
    const LIFE_S: u64 = 4;
    let mut kernel = Kernel::load();
    kernel.apply(1, Some(ssh()), ssh_agents()).await;
    let mut map = LearnedMap::take(&mut kernel.objects).expect("maps");
    let pairs = [("10.9.0.2", "9.9.9.5"), ("fd00::2", "2a01:db8::5")];
    map.learn(1, &learned(1, &pairs.map(|(_, to)| (1, to, SSH, LIFE_S)))).expect("learned");
    let segment = |(from, to): (&str, &str), flags| ip(MAC, at(from), at(to), 6, &tcp(40_000, SSH, flags));
    for pair in pairs {
        assert_eq!(kernel.ingress(&segment(pair, SYN)), PASSED);
        assert_eq!(kernel.ingress(&segment(pair, ACK)), PASSED);
    }
    // A later answer shortens nothing, so its time has to come.
    tokio::time::sleep(Duration::from_secs(LIFE_S + 1)).await;
    for pair in pairs {
        let denied = Did::Dropped(DropReason::PolicyDenied);
        assert_eq!(kernel.ingress(&segment(pair, SYN)), denied, "by the same tuple");
        for end in [ACK, FIN | ACK, RST] {
            assert_eq!(kernel.ingress(&segment(pair, end)), PASSED, "what lives goes on to its end");
            assert_eq!(kernel.ingress(&segment(pair, SYN)), denied, "after {end:#x}");
        }
    }
}

/// A segment that ends or opens a connection.
type Pass<'a> = &'a dyn Fn(&Kernel) -> Did;

#[tokio::test(flavor = "multi_thread")]
async fn each_connection_has_a_beginning_and_an_end() {
    let mut kernel = ready().await;
    for f in families() {
        let segment = |flags| ip(MAC, f.agent, f.direct, 6, &tcp(40_000, 443, flags));
        let back = |flags| ip(MAC, f.direct, f.agent, 6, &tcp(443, 40_000, flags));
        let tuple = key(&f, f.direct, 443, protocol::TCP);
        let bytes = (segment(SYN).len() - 14) as u64;
        kernel.told();
        for _ in 0..3 {
            assert_eq!(kernel.ingress(&segment(SYN)), PASSED, "sent again");
        }
        let (begun, ended) = told(&mut kernel);
        assert_eq!((begun.len(), ended.len()), (1, 0), "a SYN that is sent again begins nothing");
        let mut former = flow(&kernel, &tuple);
        assert_eq!((former.created_ns, former.tx_packets), (begun[0].at_ns, 3));

        // However it ended, and where nobody said that it did.
        let sent = |flags| move |kernel: &Kernel| kernel.ingress(&segment(flags));
        let (acked, closed, reset) = (sent(ACK), sent(FIN | ACK), sent(RST));
        let refused = |kernel: &Kernel| kernel.egress(&back(RST | ACK));
        let passes: [(&str, Pass<'_>); 4] =
            [("established", &acked), ("closed", &closed), ("reset", &reset), ("refused", &refused)];
        for (what, pass) in passes {
            pass(&kernel);
            kernel.age(&tuple, bound::REUSE_NS);
            former = flow(&kernel, &tuple);
            kernel.told();
            assert_eq!(kernel.ingress(&segment(SYN)), PASSED, "{what}");
            let (begun, ended) = told(&mut kernel);
            assert_eq!(ended, [Ended { flow: former, key: tuple, pad: 0 }], "{what}");
            assert_eq!((begun.len(), begun[0].flow, begun[0].agent), (1, tuple, 1), "{what}");
            let now = flow(&kernel, &tuple);
            assert_eq!((now.created_ns, now.tx_packets, now.tx_bytes), (begun[0].at_ns, 1, bytes), "{what}");
            assert_eq!((now.rx_packets, now.flags), (0, flow_flag::REPORTED | flow_flag::OPENING), "{what}");

            // Nobody tells more of them than it may have flows: not sooner than a SYN is sent again.
            pass(&kernel);
            assert_eq!(kernel.ingress(&segment(SYN)), Did::Dropped(DropReason::RateLimited), "{what}");
            let (begun, ended) = told(&mut kernel);
            assert_eq!((begun, ended), (vec![], vec![]), "{what}");
            assert_eq!(flow(&kernel, &tuple).created_ns, now.created_ns, "{what}");
        }

        // Nobody sends a SYN again that late.
        kernel.age(&tuple, bound::REUSE_NS);
        kernel.ingress(&segment(SYN));
        kernel.age(&tuple, bound::HANDSHAKE_NS);
        kernel.told();
        assert_eq!(kernel.ingress(&segment(SYN)), PASSED);
        let (begun, ended) = told(&mut kernel);
        assert_eq!((begun.len(), ended.len()), (1, 1), "another one's");
    }
    assert_eq!(kernel.swept.share(1), 2, "one record for each family");
}

/// The tables, with TCP to the destinations that are `direct` steered.
fn steered() -> KernelTables {
    let mut tables = tables();
    let cells = tables.verdicts.iter_mut().filter(|c| c.destination_class == 1);
    cells.filter(|c| c.transport == Transport::Tcp).for_each(|cell| cell.action = KernelAction::Steer);
    tables
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_steered_or_denied_is_told_when_it_goes_direct() {
    let mut kernel = ready().await;
    let mut generation = 1;
    for f in families() {
        let segment = |flags| ip(MAC, f.agent, f.direct, 6, &tcp(40_000, 443, flags));
        let tuple = key(&f, f.direct, 443, protocol::TCP);
        let mut apply = async |kernel: &mut Kernel, tables| {
            generation += 1;
            kernel.apply(generation, Some(tables), agents()).await;
            kernel.told();
        };
        apply(&mut kernel, steered()).await;
        assert_eq!(kernel.ingress(&segment(SYN)), Did::Dropped(DropReason::ListenerMissing));
        assert_eq!(flow(&kernel, &tuple).action, action::STEER);
        assert_eq!(told(&mut kernel), (vec![], vec![]), "who reads it tells of it");

        apply(&mut kernel, tables()).await;
        assert_eq!(kernel.ingress(&segment(SYN)), PASSED);
        let (begun, ended) = told(&mut kernel);
        assert_eq!((begun.len(), ended.len()), (1, 0), "from steered to direct");
        let now = flow(&kernel, &tuple);
        assert_eq!((now.action, now.flags & flow_flag::REPORTED), (action::DIRECT, flow_flag::REPORTED));
        assert_eq!((now.created_ns, now.tx_packets), (begun[0].at_ns, 1));

        // Back: its end is told, though its record goes on.
        apply(&mut kernel, steered()).await;
        assert_eq!(kernel.ingress(&segment(SYN)), Did::Dropped(DropReason::ListenerMissing));
        let (begun, ended) = told(&mut kernel);
        assert_eq!((begun.len(), ended), (0, vec![Ended { flow: now, key: tuple, pad: 0 }]));
        assert_eq!(flow(&kernel, &tuple).flags & flow_flag::REPORTED, 0);

        // Denied in its midst, and begun again before the record is gone.
        apply(&mut kernel, KernelTables { verdicts: Vec::new(), ..tables() }).await;
        for flags in [SYN, ACK] {
            assert_eq!(kernel.ingress(&segment(flags)), Did::Dropped(DropReason::PolicyDenied));
        }
        assert_eq!(flow(&kernel, &tuple).action, action::DENY);
        apply(&mut kernel, tables()).await;
        assert_eq!(kernel.ingress(&segment(SYN)), PASSED);
        let (begun, ended) = told(&mut kernel);
        assert_eq!((begun.len(), ended.len()), (1, 0), "from denied to direct");
        datagrams(&mut kernel, &f, &mut apply).await;
    }
}

/// Datagrams have no SYN: the first that is permitted again begins a flow.
async fn datagrams(kernel: &mut Kernel, f: &Family, apply: &mut impl AsyncFnMut(&mut Kernel, KernelTables)) {
    let datagram = ip(MAC, f.agent, f.direct, 17, &udp(40_000, 443, b"four"));
    assert_eq!(kernel.ingress(&datagram), PASSED);
    let (begun, _) = told(kernel);
    assert_eq!(begun.len(), 1);
    apply(kernel, tables()).await;
    assert_eq!(kernel.ingress(&datagram), PASSED, "it goes on in another generation");
    assert_eq!(told(kernel), (vec![], vec![]));
    apply(kernel, KernelTables { verdicts: Vec::new(), ..tables() }).await;
    kernel.ingress(&datagram);
    apply(kernel, tables()).await;
    assert_eq!(kernel.ingress(&datagram), PASSED);
    let (begun, ended) = told(kernel);
    assert_eq!((begun.len(), ended.len()), (1, 1));
    assert_eq!(ended[0].flow.tx_packets, 2);
}

/// By real sockets, agents' and local commands': two connections by one source port, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn two_connections_of_one_source_port_have_two_records_each() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, network::tables(), network::agents()).await;
    for f in network::families() {
        let _server = Server::start(&lab, f.direct);
        let from = SocketAddr::from((f.known, 41_000));
        for word in [&[1; 100][..], &[2; 300]] {
            let mut client = dial_from(&lab, from, (f.direct, PORT), WORKS).expect("direct");
            talk(&mut client, word);
            // The peer is told by a reset, so that the port is free at once.
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("linger");
            drop(client);
        }
    }
    let workload = open_workload(&lab, 1, "job").await;
    let mut puppet = Puppet::new(&lab, &workload.path);
    let _servers = DIRECT.map(|a| Server::start(&lab, at(a)));
    for to in DIRECT {
        for _ in 0..2 {
            let dial = format!(
                "dial('a', '{to}', {PORT}, 10, lambda s: (s.setsockopt(1, 13, struct.pack('ii', 1, 0)), \
                 s.setsockopt(1, 2, 1), s.bind(('{}', 42_000))))",
                if to.contains(':') { "::" } else { "0.0.0.0" }
            );
            assert_eq!(puppet.tell(&dial), "ok", "{to}");
            assert_eq!(puppet.tell("talk('a', 'x' * 50, 10) == 'x' * 50"), "True");
            assert_eq!(puppet.tell("held.pop('a').close()"), "None");
        }
    }
    let outcomes = RefCell::new(BTreeSet::new());
    let is_last = |record: &AuditRecord| {
        if record.kind == RecordKind::Outcome {
            outcomes.borrow_mut().insert(record.request.clone());
        }
        outcomes.borrow().len() == 8
    };
    let records = records(&lab, Duration::from_secs(60), is_last).await;
    for (port, count) in [(41_000, 4), (42_000, 4)] {
        let of = |kind| records.iter().filter(move |r| r.kind == kind && r.source.port == Some(port));
        let begun: Vec<_> = of(RecordKind::Decision).filter(|r| r.verdict == Some(Verdict::Allow)).collect();
        assert_eq!(begun.len(), count, "{begun:#?}");
        for decision in begun {
            let mut ends = of(RecordKind::Outcome).filter(|r| r.request == decision.request);
            let end = ends.next().expect("its outcome");
            assert!(end.bytes_sent > Some(50) && end.bytes_received > Some(50), "{end:#?}");
            assert!(ends.next().is_none(), "one outcome");
        }
    }
}

/// What an agent learned an address for is not for ever: by the same source port, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_port_does_not_keep_a_learned_address() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, crate::dns::tables(), network::agents()).await;
    for (f, address) in network::families().into_iter().zip(["9.9.9.5", "2a01:db8::5"]) {
        let (bits, nodad) = if f.known.is_ipv4() { (32, "") } else { (128, " nodad") };
        lab::ip(&format!("-n {} addr add {address}/{bits} dev lo{nodad}", lab.ns(Place::Outside)));
        let _server = Server::start(&lab, at(address));
        let from = SocketAddr::from((f.known, 43_000));
        let again = |patience| {
            let client = dial_from(&lab, from, (at(address), PORT), patience)?;
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
            Ok::<_, std::io::Error>(client)
        };
        lab.learn(&learned(1, &[(1, address, PORT, 2)])).await.expect("learned");
        talk(&mut again(WORKS).expect("learned"), b"learned");
        let until = Instant::now() + WORKS;
        while again(Duration::from_secs(2)).is_ok() {
            assert!(Instant::now() < until, "it never expires");
        }
    }
}
