//! A hop behind the gateway that takes smaller packets than the links at both ends: whoever sends larger ones hears of it,
//! by an ICMP error that finds its way back through the gateway, and what is sent arrives.

use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::process::Command;

use crate::lab::{Lab, Place, ip};
use crate::network::{Family, PORT, Server, WORKS, agents, dial, families, tables};

/// The least that a link of IPv6 takes (RFC 8200 5): an ICMPv6 error may be as long.
const HOP_MTU: u32 = 1280;
const BYTES: usize = 1 << 20;

/// Two routers between the gateway and the outside, and a link between them that takes no more than [`HOP_MTU`].
struct Routers {
    near: String,
    far: String,
}

impl Routers {
    fn of(lab: &Lab) -> Routers {
        let outside = lab.ns(Place::Outside);
        let routers = Routers { near: format!("{outside}n"), far: format!("{outside}f") };
        let Routers { near, far } = &routers;
        for ns in [near, far] {
            ip(&format!("netns add {ns}"));
        }
        // The gateway's next hop is the nearer one from now on.
        ip(&format!("-n {outside} link set o0 netns {near}"));
        ip(&format!("link add hop netns {near} type veth peer name hop netns {far}"));
        ip(&format!("link add far netns {far} type veth peer name o0 netns {outside}"));
        for ns in [near, far] {
            ip(&format!("-n {ns} link set hop mtu {HOP_MTU}"));
        }
        for (ns, device, v4, v6) in [
            (near, "o0", "10.78.0.2/24", "fd78::2/64"),
            (near, "hop", "10.79.0.1/24", "fd79::1/64"),
            (far, "hop", "10.79.0.2/24", "fd79::2/64"),
            (far, "far", "10.80.0.1/24", "fd80::1/64"),
            (&outside, "o0", "10.80.0.2/24", "fd80::2/64"),
        ] {
            ip(&format!("-n {ns} addr add {v4} dev {device}"));
            ip(&format!("-n {ns} addr add {v6} dev {device} nodad"));
            ip(&format!("-n {ns} link set {device} up"));
        }
        for (ns, to, v4, v6) in [
            (near, ["198.51.100.0/24", "2001:db8:1::/48"], "10.79.0.2", "fd79::2"),
            (far, ["198.51.100.0/24", "2001:db8:1::/48"], "10.80.0.2", "fd80::2"),
            (far, ["10.78.0.0/24", "fd78::/64"], "10.79.0.1", "fd79::1"),
            (&outside, ["default", "default"], "10.80.0.1", "fd80::1"),
        ] {
            ip(&format!("-n {ns} route add {} via {v4}", to[0]));
            ip(&format!("-n {ns} -6 route add {} via {v6}", to[1]));
        }
        for ns in [near, far] {
            forward(ns);
        }
        routers
    }
}

impl Drop for Routers {
    fn drop(&mut self) {
        for ns in [&self.near, &self.far] {
            let _ = Command::new("ip").args(["netns", "del", ns]).status();
        }
    }
}

/// Has a namespace pass on what is for others.
#[track_caller]
fn forward(ns: &str) {
    let script = "echo 1 >/proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
    let net = format!("--net=/run/netns/{ns}");
    let status = Command::new("nsenter").args([&net, "sh", "-c", script]).status().expect("nsenter");
    assert!(status.success(), "{ns} does not forward");
}

/// What a place has learned of the path to an address.
fn learned(lab: &Lab, place: Place, to: IpAddr) -> bool {
    let output = Command::new("ip").args(["-n", &lab.ns(place), "route", "get", &to.to_string()]).output();
    let text = String::from_utf8(output.expect("ip").stdout).expect("text");
    text.contains(&format!("mtu {HOP_MTU}"))
}

/// Sends [`BYTES`] to a server that sends them back. Linux sends TCP with DF, and nothing of IPv6 is fragmented on the way.
#[track_caller]
fn transfer(lab: &Lab, f: &Family) {
    let _server = Server::start(lab, f.direct);
    let mut reader = dial(lab, f.known, (f.direct, PORT), WORKS).expect("direct");
    let mut writer = reader.try_clone().expect("clone");
    let sent: Vec<u8> = (0..BYTES).map(|n| u8::try_from(n % 251).expect("a byte")).collect();
    let sender = std::thread::spawn({
        let sent = sent.clone();
        move || writer.write_all(&sent).expect("write")
    });
    let mut back = vec![0; BYTES];
    reader.read_exact(&mut back).unwrap_or_else(|e| panic!("{}: it doesn't come back: {e}", f.direct));
    sender.join().expect("sender");
    assert!(back == sent, "{}: what came back is something else", f.direct);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_transfer_finishes_over_a_hop_of_smaller_packets() {
    let mut lab = Lab::new();
    let _routers = Routers::of(&lab);
    lab.start().await;
    lab.apply(1, tables(), agents()).await;
    for f in families() {
        transfer(&lab, &f);
        // Both ends were told, and did not guess: the agent's host through the gateway.
        assert!(learned(&lab, Place::Agents, f.direct), "{}: the agent was told nothing", f.direct);
        assert!(learned(&lab, Place::Outside, f.uplink), "{}: the server was told nothing", f.uplink);
    }
}

/// A link of the gateway's takes less than the others. Whoever is at its other end keeps to it and does not say so, as a host
/// behind a router of its own would not: who sends to it has to be told by the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn a_direct_transfer_finishes_where_the_gateway_is_that_hop() {
    for (ours, place, v4, v6, told) in [
        ("ga", Place::Agents, "default via 10.77.0.1 dev a0", "default via fd77::1 dev a0", Place::Outside),
        ("gu", Place::Outside, "10.78.0.0/24 dev o0", "fd78::/64 dev o0 metric 256", Place::Agents),
    ] {
        let mut lab = Lab::new();
        lab.start().await;
        lab.apply(1, tables(), agents()).await;
        ip(&format!("-n {} link set {ours} mtu {HOP_MTU}", lab.ns(Place::Gateway)));
        let ns = lab.ns(place);
        ip(&format!("-n {ns} route replace {v4} mtu {HOP_MTU} advmss 1460"));
        ip(&format!("-n {ns} -6 route replace {v6} mtu {HOP_MTU} advmss 1440"));
        for f in families() {
            transfer(&lab, &f);
            let to = if told == Place::Agents { f.direct } else { f.uplink };
            assert!(learned(&lab, told, to), "{ours}, {to}: the sender was told nothing");
        }
    }
}
