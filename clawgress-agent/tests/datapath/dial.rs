//! The proxy's own sockets: a process in the proxy's cgroup reaches for an agent what the kernel plane permits
//! that agent, and for itself the DNS servers.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use clawgress_agent::datapath::bpf::Plain;
use clawgress_agent::datapath::object;
use clawgress_ebpf_common::{Dial, DropReason, bound, map};
use clawgress_identity::AgentState;
use nix::sys::signal::Signal;

use crate::dns::kept_back;
use crate::kernel::agent;
use crate::lab::{Lab, PROXY_PORT, Place, at};
use crate::local::{DIRECT, STEERED, nothing};
use crate::network::{Server, WORKS, records};
use crate::puppet::Puppet;
use crate::workload::{PORT, tables};

const DNS_PORT: u16 = 53;

/// A cgroup for a proxy, removed when dropped.
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn new(name: &str) -> Cgroup {
        let unified = Path::new("/sys/fs/cgroup/unified");
        let root = if unified.is_dir() { unified } else { Path::new("/sys/fs/cgroup") };
        let path = root.join(format!("clawgress-l7/{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("these tests need root and cgroup v2");
        Cgroup(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().expect("path")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let until = Instant::now() + WORKS;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub async fn lab(cgroup: &Cgroup) -> Lab {
    let mut lab =
        Lab::with_l7(&format!("cgroup = \"{}\"\nresolvers = [\"198.51.100.5:{DNS_PORT}\"]", cgroup.path()));
    lab.start().await;
    lab.apply(1, tables(), vec![agent(1, &[]), agent(2, &[])]).await;
    lab
}

pub fn take(puppet: &mut Puppet, lab: &Lab) -> String {
    puppet.tell(&format!("take('{}')", lab.config.handover_socket().display()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_reaches_for_an_agent_what_the_agent_may() {
    let cgroup = Cgroup::new("reach");
    let lab = lab(&cgroup).await;
    let servers: Vec<_> = ["192.0.2.5", "2001:db8:3::5"]
        .into_iter()
        .chain(DIRECT)
        .chain(STEERED)
        .map(|a| Server::start(&lab, at(a)))
        .collect();
    let mut proxy = Puppet::new(&lab, cgroup.path());
    // Two transparent listeners, four DNS sockets, two of the proxy, the flow table and the table of dials.
    assert_eq!(take(&mut proxy, &lab), "10");
    assert_eq!(proxy.tell("unprivileged()"), "0000000000000000", "as L7 runs");
    assert_eq!(proxy.tell("bpf(1, bytes(8))"), "EPERM", "it may register and look nothing up");

    for to in DIRECT.into_iter().chain(STEERED) {
        assert_eq!(proxy.tell(&format!("dial('a', '{to}', {PORT})")), "EPERM", "{to}: unregistered");
        assert_eq!(proxy.tell(&format!("dial('a', '{to}', {PORT}, 10, register(1))")), "ok", "{to}");
        assert_eq!(proxy.tell("talk('a', wait=10)"), "hello", "{to}");
        assert_eq!(proxy.tell(&format!("dial('b', '{to}', 22, 10, register(1))")), "EPERM", "{to}: the port");
        for other in [0, 2, 99] {
            let answer = proxy.tell(&format!("dial('b', '{to}', {PORT}, 10, register({other}))"));
            assert_eq!(answer, "EPERM", "{to}: for agent {other}, which may nothing");
        }
    }
    for to in ["192.0.2.5", "2001:db8:3::5", "::ffff:192.0.2.5", "127.0.0.1", "::1"] {
        for before in ["None", "register(1)", "register(2)"] {
            let answer = proxy.tell(&format!("dial('b', '{to}', {PORT}, 10, {before})"));
            assert_eq!(answer, "EPERM", "{to}, {before}");
        }
        assert_eq!(proxy.tell(&format!("send('{to}', {PORT})")), "EPERM", "{to}: a datagram");
        let fast = format!("made('{to}').sendto(b'x', socket.MSG_FASTOPEN, ('{to}', {PORT}))");
        assert_eq!(proxy.tell(&fast), "EPERM", "{to}: fast open");
    }
    let answer = proxy.tell(&format!("dial('b', '10.77.0.1', {PROXY_PORT}, 10, register(1))"));
    assert_eq!(answer, "EPERM", "the gateway's services are for agents");
    let answer = proxy.tell(&format!("send('{}', {PORT}, register(1))", DIRECT[0]));
    assert_eq!(answer, "EPERM", "the proxy speaks TCP for agents, and nothing else");
    assert_eq!(proxy.tell("socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)"), "EPERM", "MPTCP");
    let reached: Vec<_> = servers.iter().map(Server::accepted).collect();
    assert_eq!(reached, [0, 0, 1, 1, 1, 1]);

    let found = records(&lab, WORKS, |r| r.reason == Some(DropReason::DialUnregistered)).await;
    let told = found.iter().find(|r| r.reason == Some(DropReason::DialUnregistered)).expect("record");
    assert_eq!((told.ingress, told.destination.port), (None, Some(PORT)), "{told:?}");
    let status = lab.status().await;
    for counter in ["dial_allowed", "dial_denied", "dial_unregistered", "gateway_address"] {
        assert!(status.counters.contains_key(counter), "{counter}: {:?}", status.counters);
    }
    assert!(!status.absent.iter().any(|a| a.contains("judged by the proxy")), "{:?}", status.absent);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_may_ask_its_dns_servers_for_itself() {
    let cgroup = Cgroup::new("dns");
    let lab = lab(&cgroup).await;
    let server = at("198.51.100.5");
    let datagrams = lab.inside(Place::Outside, || UdpSocket::bind((server, DNS_PORT)).expect("bind"));
    let streams = lab.inside(Place::Outside, || TcpListener::bind((server, DNS_PORT)).expect("bind"));
    let mut proxy = Puppet::new(&lab, cgroup.path());
    take(&mut proxy, &lab);
    assert_eq!(proxy.tell(&format!("send('{server}', {DNS_PORT})")), "ok");
    datagrams.set_read_timeout(Some(WORKS)).expect("time-out");
    let (_, peer) = datagrams.recv_from(&mut [0; 8]).expect("the question");
    datagrams.send_to(b"answer", peer).expect("send");
    assert_eq!(proxy.tell("held['udp'].recv(64)"), "b'answer'");
    assert_eq!(proxy.tell(&format!("dial('t', '{server}', {DNS_PORT}, 10)")), "ok");
    streams.accept().expect("accept");
    // Another server, another port, and whoever else answers.
    for (to, port) in [("192.0.2.5", DNS_PORT), ("198.51.100.5", 5353)] {
        assert_eq!(proxy.tell(&format!("send('{to}', {port})")), "EPERM", "{to}:{port}");
    }
    let stranger = lab.inside(Place::Outside, || UdpSocket::bind((at("192.0.2.5"), DNS_PORT)).expect("bind"));
    stranger.send_to(b"answer", peer).expect("send");
    assert_eq!(proxy.tell("held['udp'].recv(64)"), "timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_proxy_was_handed_begins_no_connection() {
    let cgroup = Cgroup::new("handed");
    let lab = lab(&cgroup).await;
    let servers: Vec<_> = ["192.0.2.5", "2001:db8:3::5"]
        .into_iter()
        .chain(DIRECT)
        .map(|a| Server::start(&lab, at(a)))
        .collect();
    let mut proxy = Puppet::new(&lab, cgroup.path());
    take(&mut proxy, &lab);
    proxy.tell("unprivileged()");
    let listeners = "[s for s in [socket.socket(fileno=os.dup(f)) for f in held['fds'][:8]] \
                     if s.type == socket.SOCK_STREAM]";
    assert_eq!(proxy.tell(&format!("len(held.setdefault('l', {listeners}))")), "6");
    let before = kept_back(&lab)[0];
    for n in 0..6 {
        let listens =
            proxy.tell(&format!("held['l'][{n}].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)"));
        assert_eq!(listens, "1");
        // It listens no more, and may be pointed elsewhere: the hooks are those of who made it.
        proxy.tell(&format!("held['l'][{n}].shutdown(socket.SHUT_RD)"));
        proxy.tell(&format!("held['l'][{n}].settimeout(0.7)"));
        let is_v6 = proxy.tell(&format!("held['l'][{n}].family == socket.AF_INET6")) == "True";
        for to in ["192.0.2.5", "2001:db8:3::5"].into_iter().chain(DIRECT) {
            if to.contains(':') == is_v6 {
                let answer = proxy.tell(&format!("held['l'][{n}].connect(('{to}', {PORT}))"));
                assert_ne!(answer, "None", "{n} to {to}");
            }
        }
    }
    assert!(kept_back(&lab)[0] > before, "and it is counted");
    assert_eq!(servers.iter().map(Server::accepted).sum::<usize>(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_upstream_connection_ends_with_the_agents_permission() {
    let cgroup = Cgroup::new("live");
    let lab = lab(&cgroup).await;
    let to = STEERED[0];
    let _server = Server::start(&lab, at(to));
    let mut proxy = Puppet::new(&lab, cgroup.path());
    take(&mut proxy, &lab);
    assert_eq!(proxy.tell(&format!("dial('a', '{to}', {PORT}, 10, register(1))")), "ok");
    lab.apply(2, tables(), vec![agent(1, &[])]).await;
    assert_eq!(proxy.tell("talk('a', wait=10)"), "hello", "judged again, and permitted");
    lab.apply(3, nothing(), vec![agent(1, &[])]).await;
    assert_eq!(proxy.tell("talk('a')"), "timeout", "permitted no longer");
    lab.apply(4, tables(), vec![agent(1, &[])]).await;
    assert_eq!(proxy.tell(&format!("dial('a', '{to}', {PORT}, 10, register(1))")), "ok");
    let disabled = clawgress_identity::Agent { state: AgentState::Disabled, ..agent(1, &[]) };
    lab.apply(5, tables(), vec![disabled]).await;
    assert_eq!(proxy.tell("talk('a')"), "timeout", "the agent is disabled");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_proxy_in_its_cgroup_gets_listeners() {
    let cgroup = Cgroup::new("place");
    let lab = lab(&cgroup).await;
    let beside = Cgroup::new("beside");
    let mut elsewhere = Puppet::new(&lab, beside.path());
    assert_eq!(take(&mut elsewhere, &lab), "0");
    assert!(lab.log_text().contains("does not run in"), "{}", lab.log_text());

    // A table that is full refuses; what a proxy leaves behind is forgotten.
    let mut proxy = Puppet::new(&lab, cgroup.path());
    take(&mut proxy, &lab);
    let max = bound::DIALS_MAX;
    let fill = format!("[bpf(2, struct.pack('Q', 1 << 60 | n)) for n in range({max})][-1]");
    assert_eq!(proxy.tell(&fill), "ok");
    assert_eq!(proxy.tell(&format!("dial('a', '{}', {PORT}, 10, register(1))", DIRECT[0])), "E2BIG");
    let pin = object::pin(&lab.config.datapath.bpffs, map::DIALS);
    let dials = Map::HashMap(MapData::from_pin(pin).expect("pin"));
    let dials = HashMap::<_, u64, Plain<Dial>>::try_from(dials).expect("layout");
    assert_eq!(dials.keys().count(), max as usize);
    drop(proxy);
    // After longer than a dial may take.
    let until = Instant::now() + 2 * WORKS;
    while dials.keys().count() > 0 {
        assert!(Instant::now() < until, "registrations stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // Hooks that somebody removes come back; a proxy that was started anew is another cgroup's.
    let links = lab.config.datapath.bpffs.join("links");
    fs::remove_file(links.join("claw_dial4")).expect("remove");
    let told = |r: &clawgress_api::AuditRecord| r.detail.as_ref().is_some_and(|d| d.contains("claw_dial4"));
    records(&lab, WORKS, told).await;
    fs::remove_dir(&cgroup.0).expect("nobody is in there");
    fs::create_dir(&cgroup.0).expect("cgroup");
    let mut proxy = Puppet::new(&lab, cgroup.path());
    // Two are the former proxy's.
    assert_eq!(take(&mut proxy, &lab), "12");
    assert_eq!(proxy.tell(&format!("dial('a', '{}', {PORT})", DIRECT[0])), "EPERM");
    drop(proxy);

    // Several, each in a cgroup of its own below that one: the hooks count there too. Deeper ones are not looked for.
    let service = cgroup.0.join("service");
    let deep = service.join("deep");
    fs::create_dir_all(&deep).expect("cgroup");
    let mut proxy = Puppet::new(&lab, service.to_str().expect("path"));
    assert_ne!(take(&mut proxy, &lab), "0");
    assert_eq!(proxy.tell(&format!("dial('a', '{}', {PORT})", DIRECT[0])), "EPERM");
    assert_ne!(proxy.tell(&format!("dial('b', '{}', {PORT}, 10, register(1))", DIRECT[0])), "EPERM");
    let mut beyond = Puppet::new(&lab, deep.to_str().expect("path"));
    assert_eq!(take(&mut beyond, &lab), "0");
    drop((proxy, beyond));
    for directory in [deep, service] {
        fs::remove_dir(directory).expect("nobody is in there");
    }
}

/// A process that drains may have come to a former role, which is gone: it dials on, whoever else comes and goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_dial_is_not_forgotten_when_another_proxy_goes() {
    let cgroup = Cgroup::new("drains");
    let mut lab = lab(&cgroup).await;
    let to = DIRECT[0];
    let _server = Server::start(&lab, at(to));
    let mut proxy = Puppet::new(&lab, cgroup.path());
    take(&mut proxy, &lab);
    lab.stop(Signal::SIGTERM);
    lab.start().await;
    // Between registering a socket and connecting it.
    let begin = format!("[held.update(n=made('{to}', wait=10)), register(1)(held['n'])][1]");
    assert_eq!(proxy.tell(&begin), "ok");
    let mut other = Puppet::new(&lab, cgroup.path());
    assert_ne!(take(&mut other, &lab), "0");
    drop(other);
    let until = Instant::now() + WORKS;
    while !lab.log_text().contains("l7 gave the listeners back") {
        assert!(Instant::now() < until, "{}", lab.log_text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(proxy.tell(&format!("held['n'].connect(('{to}', {PORT})) or 'ok'")), "ok");
    assert_eq!(proxy.tell("talk('n', wait=10)"), "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cgroup_status_says_who_judges() {
    let mut lab = Lab::new();
    lab.start().await;
    let absent = lab.status().await.absent;
    assert!(absent.iter().any(|a| a.contains("judged by the proxy, not by the kernel")), "{absent:?}");
}
