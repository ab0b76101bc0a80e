//! Agents' interfaces of other kinds than a cable's end: the kernel has no native XDP for them, and hands packets on
//! from the interface below. A bridge is tried on the kernel that runs these tests; a VLAN's sub-interface, which
//! that kernel may not have, in the virtual machines of [`crate::older`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clawgress_ebpf_common::DropReason;

use crate::kernel::agent;
use crate::lab::{Lab, Place, at, ip};
use crate::network::{PORT, REFUSED, Server, WORKS, agents, dial, families, refused, tables, talk};

const MAC: &str = "02:00:00:00:00:02";

/// A second cable, which is nobody's, and the interface made of it at each end.
struct Kind {
    agents: &'static str,
    gateway: &'static str,
}

const BRIDGE: Kind = Kind { agents: "b0", gateway: "gbr" };
const VLAN: Kind = Kind { agents: "b0.10", gateway: "gb.10" };

impl Kind {
    fn plug(&self, lab: &Lab) {
        let (a, g) = (lab.ns(Place::Agents), lab.ns(Place::Gateway));
        ip(&format!("link add b0 netns {a} type veth peer name gb netns {g}"));
        ip(&format!("-n {a} link set b0 address {MAC}"));
        ip(&format!("-n {a} link set b0 up"));
        ip(&format!("-n {g} link set gb up"));
        if self.gateway == BRIDGE.gateway {
            ip(&format!("-n {g} link add {} type bridge", self.gateway));
            ip(&format!("-n {g} link set gb master {}", self.gateway));
        } else {
            ip(&format!("-n {a} link add link b0 name {} type vlan id 10", self.agents));
            ip(&format!("-n {g} link add link gb name {} type vlan id 10", self.gateway));
        }
        for (ns, interface, addresses) in [
            (&a, self.agents, &["10.79.0.2/24", "10.79.0.66/24", "fd79::2/64", "fd79::66/64"][..]),
            (&g, self.gateway, &["10.79.0.1/24", "fd79::1/64"]),
        ] {
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                ip(&format!("-n {ns} addr add {address} dev {interface} {nodad}"));
            }
            ip(&format!("-n {ns} link set {interface} up"));
        }
        // By source: the other agent is in the same namespace.
        ip(&format!("-n {a} route add default via 10.79.0.1 table 79"));
        ip(&format!("-n {a} -6 route add default via fd79::1 table 79"));
        ip(&format!("-n {a} rule add from 10.79.0.0/24 lookup 79"));
        ip(&format!("-n {a} -6 rule add from fd79::/64 lookup 79"));
    }

    async fn until_governed(&self, lab: &Lab) {
        let until = Instant::now() + WORKS;
        while !lab.status().await.interfaces.iter().any(|i| i.name == self.gateway && i.tc != "off") {
            assert!(Instant::now() < until, "{:?}", lab.status().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn is_governed(kind: Kind) {
    let name = kind.gateway;
    let mut lab = Lab::with("", &format!("[[interface]]\nname = \"{name}\"\nrole = \"agents\"\n"));
    kind.plug(&lab);
    lab.start().await;
    kind.until_governed(&lab).await;
    let mut both = agents();
    both.push(agent(2, &[&format!("{name}=10.79.0.2,{MAC}"), &format!("{name}=fd79::2,{MAC}")]));
    let mut two = tables();
    two.agents = BTreeMap::from([(1, 1), (2, 1)]);
    lab.apply(1, two, both).await;
    for (f, known, stranger, gateway) in families()
        .into_iter()
        .zip([("10.79.0.2", "10.79.0.66", "10.79.0.1"), ("fd79::2", "fd79::66", "fd79::1")])
        .map(|(f, (known, stranger, gateway))| (f, at(known), at(stranger), at(gateway)))
    {
        let (good, bad) = (Server::start(&lab, f.direct), Server::start(&lab, f.forbidden));
        let mut there =
            dial(&lab, known, (f.direct, PORT), WORKS).unwrap_or_else(|error| panic!("by `{name}`: {error}"));
        talk(&mut there, b"by another kind");
        refused(&lab, "denied", known, f.forbidden);
        refused(&lab, "anonymous", stranger, f.direct);
        assert!(dial(&lab, known, (gateway, 22), REFUSED).is_err(), "the gateway itself");
        talk(&mut dial(&lab, f.known, (f.direct, PORT), WORKS).expect("the other cable"), b"by a cable");
        assert_eq!((good.accepted(), bad.accepted()), (2, 0));
    }
    let before = lab.status().await.counters;
    assert!(before.contains_key(DropReason::Anonymous.name()), "{before:?}");
    assert!(!before.contains_key(DropReason::VlanUnsupported.name()), "{before:?}");
    // What was begun goes on by what is pinned.
    let _server = Server::start(&lab, at("198.51.100.5"));
    let mut live = dial(&lab, at("10.79.0.2"), (at("198.51.100.5"), PORT), WORKS).expect("permitted");
    lab.stop(nix::sys::signal::Signal::SIGKILL);
    talk(&mut live, b"meanwhile");
    refused(&lab, "denied, without the process", at("10.79.0.2"), at("192.0.2.5"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_of_agents_is_governed() {
    is_governed(BRIDGE).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "for kernels that have VLANs: run in the machines of `older`"]
async fn a_vlan_of_agents_is_an_interface_of_its_own() {
    is_governed(VLAN).await;
}
