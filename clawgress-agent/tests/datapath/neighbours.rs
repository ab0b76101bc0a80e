//! The kernel's neighbour tables, which all interfaces share and nobody may fill for others: who is bound to a MAC
//! is in them for good, and neighbour messages and segments of no connection are bounded.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use clawgress_ebpf_common::{DropReason, bound, mark};

use crate::frames::{ACK, FIN, RST, SYN, arp, ip, neighbour, tcp};
use crate::kernel::{Did, PROXY_PORT, agent};
use crate::lab::{self, AGENT_MAC, Lab, Place, at};
use crate::network::{self, PORT, Server, WORKS, dial, records, talk};
use crate::scale::agents_mac;
use crate::verdicts::{MAC, OTHER_MAC, families, ready};

const LOCAL: Did = Did::Marked(mark::LOCAL);
const LIMITED: Did = Did::Dropped(DropReason::RateLimited);
/// A bucket's burst is two seconds' worth; so slow, few more are there while a test runs.
const EACH: u32 = 3;
const MANY: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn neighbour_messages_are_limited_by_sender_and_in_all() {
    let mut kernel = ready().await;
    kernel.buckets.limit_unbound(EACH, 4 * EACH).expect("limit");
    let all = at("ff02::1");
    let claims = |n: usize, mac: [u8; 6]| {
        let low = u8::try_from(n).expect("a byte");
        let v6 = at(&format!("fd00::{n:x}:99"));
        [arp(mac, mac, [10, 9, 5, low], [10, 9, 0, 1]), neighbour(mac, v6, all, 136, v6, mac)]
    };
    // One MAC, whatever addresses it claims; then others, all together.
    let one = (0..MANY).flat_map(|n| claims(n, MAC)).filter(|frame| kernel.ingress(frame) == LOCAL).count();
    assert!((6..50).contains(&one), "{one}");
    let others = (0..MANY).flat_map(|n| claims(n, [2, 0, 0, 7, 0, u8::try_from(n).expect("a byte")]));
    let others = others.filter(|frame| kernel.ingress(frame) == LOCAL).count();
    assert!((6..100).contains(&others), "{others}");

    // An agent has a bucket of its own, wherever it says that it is; XDP takes nothing.
    let [v4, v6] = families();
    let own =
        [arp(MAC, MAC, [10, 9, 0, 2], [10, 9, 0, 1]), neighbour(MAC, v6.agent, all, 136, v6.agent, MAC)];
    for frame in &own {
        assert_eq!(kernel.xdp(frame), Did::Passed);
        assert_eq!(kernel.ingress(frame), LOCAL, "{}", v4.agent);
    }
    let passed = (0..MANY).flat_map(|_| &own).filter(|frame| kernel.ingress(frame) == LOCAL).count();
    assert!((2..50).contains(&passed), "{passed}");
    assert_eq!(kernel.ingress(&own[0]), LIMITED);
    // What it claims and may not is told as such.
    let spoofed = arp(OTHER_MAC, OTHER_MAC, [10, 9, 0, 2], [10, 9, 0, 1]);
    assert_eq!(kernel.ingress(&spoofed), Did::Dropped(DropReason::SourceSpoofed));
    // Beginnings are counted apart.
    let hello = ip(OTHER_MAC, v4.stranger, v4.gateway, 6, &tcp(1, PROXY_PORT, SYN));
    assert_eq!(kernel.ingress(&hello), LOCAL);
    kernel.check_counts();
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_no_connection_reach_no_service() {
    let mut kernel = ready().await;
    for f in families() {
        let segment = |source, port, flags| ip(MAC, source, f.gateway, 6, &tcp(port, PROXY_PORT, flags));
        for flags in [ACK, FIN | ACK, RST, SYN | ACK] {
            assert_eq!(
                kernel.ingress(&segment(f.agent, 9, flags)),
                Did::Dropped(DropReason::FlowUnknown),
                "{flags:#x}"
            );
        }
        assert_eq!(kernel.ingress(&segment(f.agent, 9, SYN)), LOCAL);
        // Of what has a record, and may have begun by a SYN cookie.
        assert_eq!(kernel.ingress(&segment(f.agent, 9, ACK)), LOCAL);
        // A stranger's may have, too: it is taken for a beginning.
        assert_eq!(kernel.ingress(&segment(f.stranger, 9, ACK)), LOCAL);
    }
    kernel.buckets.limit_unbound(EACH, 1_000).expect("limit");
    for f in families() {
        let ack = ip(MAC, f.stranger, f.gateway, 6, &tcp(9, PROXY_PORT, ACK));
        let passed = (0..MANY).filter(|_| kernel.ingress(&ack) == LOCAL).count();
        assert!((6..50).contains(&passed), "{passed}");
    }
    kernel.check_counts();
}

/// Permanent neighbours at the agents' interface: address and MAC.
fn permanent(lab: &Lab) -> BTreeSet<(IpAddr, String)> {
    let ns = lab.ns(Place::Gateway);
    let output = Command::new("ip")
        .args(["-n", &ns, "neigh", "show", "dev", "ga", "nud", "permanent"])
        .output()
        .expect("ip");
    let text = String::from_utf8(output.stdout).expect("text");
    let entry = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        (at(words[0]), words[2].to_owned())
    };
    text.lines().map(entry).collect()
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + WORKS;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_bound_to_a_mac_is_a_neighbour_for_good() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(1, network::tables(), network::agents()).await;
    let known = || network::families().map(|f| (f.known, AGENT_MAC.to_owned()));
    let wanted = BTreeSet::from(known());
    until("no entries are made", || permanent(&lab) == wanted);
    for f in network::families() {
        let _server = Server::start(&lab, f.direct);
        talk(&mut dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct"), b"word");
    }

    // Somebody else's stay; ours come back when the next look is due, and the repair is told.
    let ns = lab.ns(Place::Gateway);
    lab::ip(&format!("-n {ns} neigh del 10.77.0.2 dev ga"));
    lab::ip(&format!("-n {ns} neigh replace fd77::2 lladdr 02:00:00:00:00:77 nud permanent dev ga"));
    lab::ip(&format!("-n {ns} neigh add 10.77.0.99 lladdr 02:00:00:00:00:99 nud permanent dev ga"));
    lab::ip(&format!("-n {ns} addr add 10.78.0.77/24 dev gu"));
    let foreign = (at("10.77.0.99"), "02:00:00:00:00:99".to_owned());
    let both: BTreeSet<_> = wanted.iter().cloned().chain([foreign.clone()]).collect();
    until("they are not repaired", || permanent(&lab) == both);
    let is_told = |text: Option<&str>| text.is_some_and(|text| text.contains("neighbours of bound sources"));
    records(&lab, WORKS, |record| is_told(record.detail.as_deref())).await;

    // They follow the bindings, and go with the role's other traces.
    lab.apply(2, network::tables(), vec![agent(1, &[&format!("ga=10.77.0.3,{AGENT_MAC}")])]).await;
    let moved = BTreeSet::from([(at("10.77.0.3"), AGENT_MAC.to_owned()), foreign.clone()]);
    until("they do not follow", || permanent(&lab) == moved);
    lab.stop(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(permanent(&lab), moved, "the kernel goes on without the role");
    lab.detach();
    assert_eq!(permanent(&lab), BTreeSet::from([foreign]));
}

/// From each of so many addresses of a prefix, one SYN.
const SENDER: &str = r"
import socket, sys, time
frame, sources = bytearray.fromhex(sys.argv[1]), int(sys.argv[2])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('a0', 0))
def sum16(data):
    total = sum(int.from_bytes(data[i:i + 2], 'big') for i in range(0, len(data), 2))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return total
for n in range(1, sources + 1):
    frame[34:38] = n.to_bytes(4, 'big')
    frame[70:72] = bytes(2)
    rest = sum16(frame[22:54] + (len(frame) - 54).to_bytes(4, 'big') + bytes([0, 0, 0, 6]) + frame[54:])
    frame[70:72] = (~rest & 0xffff).to_bytes(2, 'big')
    while True:
        try:
            s.send(frame)
            break
        except OSError:
            time.sleep(0.001)
";
/// Several times Linux's own bound (`gc_thresh3`), whatever this machine's is.
const SOURCES: usize = 5_000;

/// An agent with a network of its own begins a connection from each of thousands of its addresses, none of which
/// answers: each is a neighbour that is asked for in vain. Another agent is served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_network_shuts_nobody_out_of_the_neighbour_table() {
    let mut lab = Lab::new();
    lab.start().await;
    let mut agents = network::agents();
    agents.push(agent(2, &[&format!("ga=fd77:0:0:0:1::/80,{AGENT_MAC}")]));
    let mut tables = network::tables();
    tables.agents.insert(2, 1);
    lab.apply(1, tables, agents).await;
    until("no entries are made", || permanent(&lab).len() == 2);
    // The other namespaces have their neighbours in the same table: what they need is there.
    let [v4, v6] = network::families();
    for (place, device, addresses) in
        [(Place::Agents, "a0", [v4.gateway, v6.gateway]), (Place::Outside, "o0", [v4.uplink, v6.uplink])]
    {
        for address in addresses {
            let mac = mac_of(&lab, if place == Place::Agents { "ga" } else { "gu" });
            let ns = lab.ns(place);
            lab::ip(&format!("-n {ns} neigh replace {address} lladdr {mac} nud permanent dev {device}"));
        }
    }
    let outside = {
        let output =
            Command::new("ip").args(["-n", &lab.ns(Place::Outside), "-o", "link", "show", "o0"]).output();
        mac_in(&String::from_utf8(output.expect("ip").stdout).expect("text"))
    };
    for next in ["10.78.0.2", "fd78::2"] {
        let ns = lab.ns(Place::Gateway);
        lab::ip(&format!("-n {ns} neigh replace {next} lladdr {outside} nud permanent dev gu"));
    }

    let source = IpAddr::V6(Ipv6Addr::new(0xFD77, 0, 0, 0, 1, 0, 0, 0x77));
    let frame = ip(agents_mac(), source, v6.gateway, 6, &tcp(40_000, lab::PROXY_PORT, SYN));
    let mut frame = frame;
    frame[..6].copy_from_slice(&bytes_of(&mac_of(&lab, "ga")));
    let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
    let sent = lab.inside(Place::Agents, || {
        Command::new("python3").args(["-c", SENDER, &hex, &SOURCES.to_string()]).status()
    });
    assert!(sent.expect("python3").success(), "not everything was sent");
    // They are counted by the next look at the table.
    let end = Instant::now() + WORKS;
    loop {
        let status = lab.status().await;
        assert!(status.flows < bound::FLOWS_PER_AGENT_MAX, "{status:?}");
        if status.flows > SOURCES as u64 / 2 {
            break;
        }
        assert!(Instant::now() < end, "{status:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for f in [&v4, &v6] {
        let _server = Server::start(&lab, f.direct);
        talk(&mut dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct"), b"word");
        dial(&lab, f.known, (f.gateway, lab::PROXY_PORT), WORKS).expect("the proxy");
    }
}

/// The MAC of a device of the gateway.
fn mac_of(lab: &Lab, device: &str) -> String {
    let output =
        Command::new("ip").args(["-n", &lab.ns(Place::Gateway), "-o", "link", "show", device]).output();
    mac_in(&String::from_utf8(output.expect("ip").stdout).expect("text"))
}

fn mac_in(link: &str) -> String {
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).expect("a MAC").to_owned()
}

fn bytes_of(mac: &str) -> Vec<u8> {
    mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("MAC")).collect()
}
