//! What the tables permit `direct` goes only while somebody vouches for them: a role that runs, by the word of a control
//! that runs by the same generation. What L7 reads is not asked for it, and a flow that waited goes on.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use clawgress_api::proto::Confirmed;
use clawgress_api::{AuditRecord, KernelGeneration, RecordKind, Verdict};
use clawgress_ebpf_common::{DropReason, FlowKey, mark};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::frames::{ACK, SYN, ip, tcp, udp};
use crate::kernel::{Did, Kernel, PROXY_PORT, agent};
use crate::lab::{Lab, at};
use crate::local::DIRECT;
use crate::network::{self, PORT, REFUSED, Server, WORKS, dial, records, refused, talk};
use crate::puppet::Puppet;
use crate::verdicts::{Family, MAC, families, key, ready};
use crate::workload::{self, open_workload};

const LAPSED: Did = Did::Dropped(DropReason::LeaseLapsed);
const DENIED: Did = Did::Dropped(DropReason::ListenerMissing);
const PASSED: Did = Did::Marked(mark::DIRECT);
/// The shortest that may be configured.
const LEASE: &str = "lease_s = 2\n";

#[tokio::test(flavor = "multi_thread")]
async fn only_what_goes_direct_needs_somebody_who_vouches() {
    let kernel = ready().await;
    for f in families() {
        let out = |to, port, flags| ip(MAC, f.agent, to, 6, &tcp(40_000, port, flags));
        let back = ip(MAC, f.direct, f.agent, 6, &tcp(443, 40_000, ACK));
        assert_eq!(kernel.ingress(&out(f.direct, 443, SYN)), PASSED);
        assert_eq!(kernel.egress(&back), Did::Marked(0));

        kernel.vouch(false);
        assert_eq!(kernel.ingress(&out(f.direct, 443, ACK)), LAPSED);
        assert_eq!(kernel.egress(&back), LAPSED, "and no answer either");
        lets_nothing_begin(&kernel, &f);
        let proxy = out(f.gateway, PROXY_PORT, SYN);
        assert_eq!(kernel.ingress(&proxy), Did::Marked(mark::LOCAL), "the proxy has a policy of its own");
        assert_eq!(kernel.ingress(&out(f.steered, 443, SYN)), DENIED, "as ever without a listener");

        kernel.vouch(true);
        assert_eq!(kernel.ingress(&out(f.direct, 443, ACK)), PASSED, "what was open goes on");
        assert_eq!(kernel.egress(&back), Did::Marked(0));
    }
}

fn lets_nothing_begin(kernel: &Kernel, f: &Family) {
    for (protocol, segment) in [(6, tcp(40_001, 443, SYN)), (17, udp(40_001, 443, b"x"))] {
        let frame = ip(MAC, f.agent, f.direct, protocol, &segment);
        assert_eq!(kernel.ingress(&frame), LAPSED);
        let key = FlowKey { source_port_be: 40_001u16.to_be(), ..key(f, f.direct, 443, protocol) };
        assert!(kernel.flow(&key).is_none(), "no record of it");
    }
}

/// Has the role stand still, or run again.
fn send(lab: &Lab, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(lab.pid()).expect("pid")), signal).expect("kill");
}

/// Dials until nothing new begins.
fn until_closed(lab: &Lab, from: IpAddr, to: IpAddr) {
    let until = Instant::now() + WORKS;
    while dial(lab, from, (to, PORT), REFUSED).is_ok() {
        assert!(Instant::now() < until, "{to} is reached by tables that nobody vouches for");
        // The server must keep up, or that would close it.
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A control that says now and then that it runs by a generation, as long as it is there.
struct Control(tokio::task::JoinHandle<()>);

impl Control {
    async fn of(lab: &Lab, generation: u64) -> Control {
        let mut client = lab.client().await;
        Control(tokio::spawn(async move {
            while client.confirm(Confirmed { generation }).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Says what control would say, each second, until `is_there`.
async fn say(lab: &Lab, generation: u64, is_there: impl AsyncFn() -> bool) {
    let until = Instant::now() + WORKS;
    while !is_there().await {
        assert!(Instant::now() < until, "{:?}", lab.status().await.absent);
        lab.client().await.confirm(Confirmed { generation }).await.expect("confirmed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn nothing_comes(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(REFUSED)).expect("time-out");
    let end = stream.read(&mut [0; 8]);
    assert!(end.is_err(), "it goes on: {end:?}");
}

fn told(record: &AuditRecord, what: &str) -> bool {
    record.kind == RecordKind::Change && record.detail.as_ref().is_some_and(|d| d.contains(what))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_stands_still_lets_nothing_go_direct() {
    let mut lab = Lab::leased("", "", LEASE);
    lab.start().await;
    lab.apply(1, network::tables(), network::agents()).await;
    let mut kept = Vec::new();
    for f in network::families() {
        let server = Server::start(&lab, f.direct);
        let mut stream = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("permitted");
        talk(&mut stream, b"first");
        kept.push((f, server, stream));
    }
    send(&lab, Signal::SIGSTOP);
    for (f, server, stream) in &mut kept {
        until_closed(&lab, f.known, f.direct);
        let before = server.accepted();
        stream.write_all(b"held").expect("into the socket's own buffer");
        nothing_comes(stream);
        assert_eq!(server.accepted(), before);
    }
    send(&lab, Signal::SIGCONT);
    for (f, _, stream) in &mut kept {
        let mut word = [0; 4];
        stream.set_read_timeout(Some(WORKS)).expect("time-out");
        stream.read_exact(&mut word).expect("it goes on");
        assert_eq!(&word, b"held", "what was sent meanwhile is sent again");
        talk(stream, b"more");
        dial(&lab, f.known, (f.direct, PORT), WORKS).expect("permitted again");
    }
    let found = records(&lab, WORKS, |r| told(r, "nobody vouched for the kernel's tables for")).await;
    let denied =
        |r: &AuditRecord| r.verdict == Some(Verdict::Deny) && r.reason == Some(DropReason::LeaseLapsed);
    assert!(found.iter().any(denied), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_vouches_by_the_word_of_control_alone() {
    let mut lab = Lab::leased("snapshot_stale_s_max = 2", "", LEASE);
    lab.start().await;
    lab.apply(1, network::tables(), network::agents()).await;
    let [f, _] = network::families();
    let _server = Server::start(&lab, f.direct);
    let control = Control::of(&lab, 1).await;
    dial(&lab, f.known, (f.direct, PORT), WORKS).expect("permitted by control's word");
    drop(control);

    let says = async |what: &str| lab.status().await.absent.iter().any(|why| why.contains(what));
    let until = Instant::now() + WORKS;
    while !says("control has not been heard of for").await {
        assert!(Instant::now() < until, "{:?}", lab.status().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    refused(&lab, "without a control", f.known, f.direct);
    records(&lab, WORKS, |r| told(r, "nobody vouches for the kernel's tables: interface `ga` fails closed"))
        .await;

    let control = Control::of(&lab, 1).await;
    say(&lab, 1, async || !says("control has not been heard of for").await).await;
    dial(&lab, f.known, (f.direct, PORT), WORKS).expect("again");
    drop(control);

    // It has a generation that the tables are not those of, for longer than that takes.
    say(&lab, 2, async || says("have not become those of the live generation").await).await;
    refused(&lab, "of a former generation", f.known, f.direct);
    lab.apply(2, network::tables(), network::agents()).await;
    let control = Control::of(&lab, 2).await;
    dial(&lab, f.known, (f.direct, PORT), WORKS).expect("of the live one");
    drop(control);

    // The number is that of the tables, and what control has under it is not in them.
    let other = KernelGeneration {
        generation: 2,
        tables: None,
        agents: network::agents(),
        shared: Vec::new(),
        revisions: BTreeMap::new(),
        turns_at: None,
    };
    let error = lab.try_apply(other).await.expect_err("other contents");
    assert!(error.message().contains("is live with other contents"), "{error}");
    say(&lab, 2, async || says("have not become those of the live generation").await).await;
    refused(&lab, "by what control does not run by", f.known, f.direct);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_goes_on_from_what_was_said_and_from_no_more() {
    let mut lab = Lab::leased("", "", "lease_s = 20\n");
    lab.start().await;
    lab.apply(1, network::tables(), network::agents()).await;
    let [f, _] = network::families();
    let _server = Server::start(&lab, f.direct);
    lab.stop(Signal::SIGKILL);
    dial(&lab, f.known, (f.direct, PORT), WORKS).expect("the lease is not over");
    lab.start().await;
    dial(&lab, f.known, (f.direct, PORT), WORKS).expect("by the word of control, which this one never heard");

    // What they are of is known to nobody now: a word for number 0, of a control that has lost its state, is none for them.
    lab.stop(Signal::SIGTERM);
    fs::remove_dir_all(lab.config.node.run_dir.join("datapath")).expect("what it kept");
    lab.start().await;
    let says = async |what: &str| lab.status().await.absent.iter().any(|why| why.contains(what));
    let until = Instant::now() + Duration::from_secs(120);
    while !says("have not become those of the live generation").await {
        assert!(Instant::now() < until, "{:?}", lab.status().await.absent);
        lab.client().await.confirm(Confirmed { generation: 0 }).await.expect("heard");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    refused(&lab, "by tables that nobody knows", f.known, f.direct);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_interface_goes_on_by_the_last_generation() {
    let mut lab =
        Lab::leased("snapshot_stale_s_max = 1", "[interface.danger]\nfail_open = [\"agent\"]\n", LEASE);
    lab.start().await;
    lab.apply(1, network::tables(), network::agents()).await;
    let until = Instant::now() + WORKS;
    while lab.status().await.interfaces[0].failed_open != ["agent"] {
        assert!(Instant::now() < until, "{:?}", lab.status().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for f in network::families() {
        let _servers = [f.direct, f.forbidden].map(|a| Server::start(&lab, a));
        let mut stream = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("by the last generation");
        talk(&mut stream, b"unwatched");
        refused(&lab, "denied by policy", f.known, f.forbidden);
        for to in [f.direct, f.steered, f.forbidden] {
            refused(&lab, "anonymous", f.unknown, to);
        }
    }
    let opened =
        |r: &AuditRecord| r.verdict == Some(Verdict::Allow) && r.failed_open == Some(DropReason::LeaseLapsed);
    let found = records(&lab, WORKS, opened).await;
    let said = "interface `ga` fails open: what the last generation permits to go direct is forwarded";
    assert!(found.iter().any(|r| told(r, said)), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_command_goes_nowhere_by_such_tables() {
    let mut lab = Lab::leased("", "", LEASE);
    lab.start().await;
    lab.apply(1, workload::tables(), vec![agent(1, &[])]).await;
    let opened = open_workload(&lab, 1, "job").await;
    let mut puppet = Puppet::new(&lab, &opened.path);
    let _servers = DIRECT.map(|a| Server::start(&lab, at(a)));
    for (n, to) in DIRECT.iter().enumerate() {
        assert_eq!(puppet.tell(&format!("dial('{n}', '{to}', {PORT}, 10)")), "ok");
    }
    send(&lab, Signal::SIGSTOP);
    for (n, to) in DIRECT.iter().enumerate() {
        let until = Instant::now() + WORKS;
        while puppet.tell(&format!("dial('new', '{to}', {PORT}, 1)")) == "ok" {
            assert!(Instant::now() < until, "{to} is reached");
            std::thread::sleep(Duration::from_millis(100));
        }
        let word = puppet.tell(&format!("talk('{n}', 'x', 1)"));
        assert_ne!(word, "x", "what was open goes on");
    }
    send(&lab, Signal::SIGCONT);
    for to in DIRECT {
        let until = Instant::now() + WORKS;
        while puppet.tell(&format!("dial('again', '{to}', {PORT}, 10)")) != "ok" {
            assert!(Instant::now() < until, "{to} is not reached");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_go_unread_needs_it_too() {
    let mut lab =
        Lab::leased("snapshot_stale_s_max = 2", "[interface.danger]\nfail_open = [\"l7\"]\n", LEASE);
    lab.start().await;
    lab.apply(1, network::tables(), network::agents()).await;
    let [f, _] = network::families();
    let server = Server::start(&lab, f.steered);
    let control = Control::of(&lab, 1).await;
    let mut open = dial(&lab, f.known, (f.steered, PORT), WORKS).expect("forwarded unread");
    talk(&mut open, b"unread");
    drop(control);
    until_closed(&lab, f.known, f.steered);
    let before = server.accepted();
    open.write_all(b"more").expect("into the socket's own buffer");
    nothing_comes(&mut open);
    assert_eq!(server.accepted(), before);
}
