//! Agents in a VLAN: its sub-interface is an agents' interface of its own. The kernels in virtual machines have such
//! interfaces; the one that runs the other tests need not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clawgress_ebpf_common::DropReason;

use crate::kernel::agent;
use crate::lab::{Lab, Place, at, ip};
use crate::network::{PORT, REFUSED, Server, WORKS, agents, dial, families, refused, tables, talk};

const MAC: &str = "02:00:00:00:00:02";

/// A second cable, with VLAN 10 on it and a host there at each end. The cable itself is nobody's.
fn plug(lab: &Lab) {
    let (a, g) = (lab.ns(Place::Agents), lab.ns(Place::Gateway));
    ip(&format!("link add b0 netns {a} type veth peer name gb netns {g}"));
    for (ns, cable, vlan) in [(&a, "b0", "b0.10"), (&g, "gb", "gb.10")] {
        if ns == &a {
            ip(&format!("-n {ns} link set {cable} address {MAC}"));
        }
        ip(&format!("-n {ns} link set {cable} up"));
        ip(&format!("-n {ns} link add link {cable} name {vlan} type vlan id 10"));
    }
    for (ns, vlan, addresses) in [
        (&a, "b0.10", &["10.79.0.2/24", "10.79.0.66/24", "fd79::2/64", "fd79::66/64"][..]),
        (&g, "gb.10", &["10.79.0.1/24", "fd79::1/64"]),
    ] {
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ip(&format!("-n {ns} addr add {address} dev {vlan} {nodad}"));
        }
        ip(&format!("-n {ns} link set {vlan} up"));
    }
    // By source: the other agent is in the same namespace.
    ip(&format!("-n {a} route add default via 10.79.0.1 table 79"));
    ip(&format!("-n {a} -6 route add default via fd79::1 table 79"));
    ip(&format!("-n {a} rule add from 10.79.0.0/24 lookup 79"));
    ip(&format!("-n {a} -6 rule add from fd79::/64 lookup 79"));
}

/// Whether TC programs hang on the VLAN.
async fn until_governed(lab: &Lab) {
    let until = Instant::now() + WORKS;
    while !lab.status().await.interfaces.iter().any(|i| i.name == "gb.10" && i.tc != "off") {
        assert!(Instant::now() < until, "{:?}", lab.status().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "for kernels that have VLANs: run in the machines of `older`"]
async fn a_vlan_of_agents_is_an_interface_of_its_own() {
    let mut lab = Lab::with("", "[[interface]]\nname = \"gb.10\"\nrole = \"agents\"\n");
    plug(&lab);
    lab.start().await;
    until_governed(&lab).await;
    let mut both = agents();
    both.push(agent(2, &[&format!("gb.10=10.79.0.2,{MAC}"), &format!("gb.10=fd79::2,{MAC}")]));
    let mut two = tables();
    two.agents = BTreeMap::from([(1, 1), (2, 1)]);
    lab.apply(1, two, both).await;
    for (f, known, stranger, gateway) in families()
        .into_iter()
        .zip([("10.79.0.2", "10.79.0.66", "10.79.0.1"), ("fd79::2", "fd79::66", "fd79::1")])
        .map(|(f, (known, stranger, gateway))| (f, at(known), at(stranger), at(gateway)))
    {
        let (good, bad) = (Server::start(&lab, f.direct), Server::start(&lab, f.forbidden));
        talk(&mut dial(&lab, known, (f.direct, PORT), WORKS).expect("in the VLAN"), b"tagged");
        refused(&lab, "denied, in the VLAN", known, f.forbidden);
        refused(&lab, "anonymous, in the VLAN", stranger, f.direct);
        assert!(dial(&lab, known, (gateway, 22), REFUSED).is_err(), "the gateway itself");
        talk(&mut dial(&lab, f.known, (f.direct, PORT), WORKS).expect("the other cable"), b"untagged");
        assert_eq!((good.accepted(), bad.accepted()), (2, 0));
    }
    let before = lab.status().await.counters;
    assert!(before.contains_key(DropReason::Anonymous.name()), "{before:?}");
    assert!(!before.contains_key(DropReason::VlanUnsupported.name()), "{before:?}");
    // What was begun goes on by what is pinned; its link is found again.
    let _server = Server::start(&lab, at("198.51.100.5"));
    let mut live = dial(&lab, at("10.79.0.2"), (at("198.51.100.5"), PORT), WORKS).expect("in the VLAN");
    lab.stop(nix::sys::signal::Signal::SIGKILL);
    talk(&mut live, b"meanwhile");
    refused(&lab, "denied, without the process", at("10.79.0.2"), at("192.0.2.5"));
}
