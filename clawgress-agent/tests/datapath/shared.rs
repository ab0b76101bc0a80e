//! Sources that several agents share: nobody to the kernel, but bound; and the bindings as L7 looks them up,
//! against the programs.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use clawgress_agent::datapath::bpf::Plain;
use clawgress_ebpf_common::{DropReason, Flow, FlowKey, action, bound, mark, protocol, user};
use clawgress_identity::{Agent, Holder, Holders, SharedSource, Source};

use crate::frames::{ACK, SYN, arp, icmp, ip, tcp, udp};
use crate::kernel::{Did, Kernel, LOOPBACK, PROXY_PORT, agent};
use crate::random::{Random, seed};
use crate::verdicts::{Family, MAC, OTHER_MAC, families, tables};

pub fn shared(name: &str, at: &[&str]) -> SharedSource {
    let at = at.iter().map(|s| s.parse().expect("source")).collect();
    SharedSource { id: name.parse().expect("id"), at, may_present: BTreeSet::new() }
}

/// The record of a connection to the proxy.
fn record(kernel: &Kernel, source: IpAddr, port: u16, gateway: IpAddr) -> Option<Flow> {
    kernel.flow(&FlowKey {
        source: user::address(source),
        destination: user::address(gateway),
        source_port_be: port.to_be(),
        destination_port_be: PROXY_PORT.to_be(),
        ifindex: LOOPBACK,
        protocol: protocol::TCP,
        pad: [0; 3],
    })
}

fn syn(mac: [u8; 6], from: IpAddr, port: u16, gateway: IpAddr) -> Vec<u8> {
    ip(mac, from, gateway, 6, &tcp(port, PROXY_PORT, SYN))
}

/// An agent at `agent` of each family; `stranger` shares its address with others, and all else is unbound.
async fn kernel() -> Kernel {
    let mut kernel = Kernel::load();
    let [v4, v6] = families();
    kernel.own(v4.gateway);
    kernel.own(v6.gateway);
    let text = |address: IpAddr| format!("lo={address},02:00:00:00:00:01");
    let (own, nat) = ([v4, v6].map(|f| text(f.agent)), [v4, v6].map(|f| text(f.stranger)));
    kernel.shared = vec![shared("nat", &[&nat[0], &nat[1]])];
    kernel.apply(1, Some(tables()), vec![agent(1, &[&own[0], &own[1]])]).await;
    kernel
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_source_reaches_the_proxy_and_nothing_else() {
    let kernel = kernel().await;
    for Family { stranger, gateway, direct, steered, icmp: number, echo, disabled: unbound, .. } in families()
    {
        let both = |frame: &[u8]| (kernel.xdp(frame), kernel.ingress(frame));
        let drops = |frame: &[u8], reason| {
            assert_eq!(both(frame), (Did::Dropped(reason), Did::Dropped(reason)), "{stranger}");
        };
        for (to, body) in
            [(direct, tcp(9, 443, SYN)), (steered, tcp(9, 443, SYN)), (steered, tcp(9, 443, ACK))]
        {
            drops(&ip(MAC, stranger, to, 6, &body), DropReason::Anonymous);
        }
        drops(&ip(MAC, stranger, direct, 17, &udp(9, 443, b"x")), DropReason::Anonymous);
        drops(&ip(MAC, stranger, direct, number, &icmp(echo, 0, 7)), DropReason::Anonymous);
        drops(&ip(MAC, stranger, gateway, 6, &tcp(9, 22, SYN)), DropReason::GatewayAddress);
        // A record without an agent tells L7 the interface.
        assert_eq!(both(&syn(MAC, stranger, 9, gateway)), (Did::Passed, Did::Marked(mark::LOCAL)));
        let flow = record(&kernel, stranger, 9, gateway).expect("a record");
        assert_eq!((flow.agent, flow.action), (0, action::LOCAL));
        // Nothing of the sort for a source that is not bound.
        assert_eq!(kernel.ingress(&syn(MAC, unbound, 9, gateway)), Did::Marked(mark::LOCAL));
        assert_eq!(record(&kernel, unbound, 9, gateway), None);
        // Another MAC is somebody else, whatever it sends.
        drops(&syn(OTHER_MAC, stranger, 10, gateway), DropReason::SourceSpoofed);
        drops(&ip(OTHER_MAC, stranger, direct, 6, &tcp(9, 443, SYN)), DropReason::SourceSpoofed);
        assert_eq!(record(&kernel, stranger, 10, gateway), None);
        if let (IpAddr::V4(own), IpAddr::V4(to)) = (stranger, gateway) {
            drops(&arp(OTHER_MAC, OTHER_MAC, own.octets(), to.octets()), DropReason::SourceSpoofed);
            let own = arp(MAC, MAC, own.octets(), to.octets());
            assert_eq!(both(&own), (Did::Passed, Did::Marked(mark::LOCAL)));
        }
    }
    kernel.check_counts();
}

/// All of them have one share of the flow table. One that fills it keeps nobody from the proxy; L7 then goes by
/// the address alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_share_of_the_flow_table_shuts_no_shared_source_out() {
    let kernel = kernel().await;
    let [Family { stranger, gateway, agent, .. }, _] = families();
    let count = u16::try_from(bound::FLOWS_PER_AGENT_MAX).expect("16 bits");
    kernel.flood((1..=count).map(|port| syn(MAC, stranger, port, gateway)));
    assert_eq!(kernel.swept.share(0), bound::FLOWS_PER_AGENT_MAX);
    assert_eq!(kernel.ingress(&syn(MAC, stranger, count + 1, gateway)), Did::Marked(mark::LOCAL));
    assert_eq!(record(&kernel, stranger, count + 1, gateway), None);
    assert_eq!(kernel.ingress(&syn(MAC, agent, 9, gateway)), Did::Marked(mark::LOCAL));
    assert_eq!(record(&kernel, agent, 9, gateway).map(|flow| flow.agent), Some(1));
}

/// A source that changes hands: the record follows the binding, and what it forwarded before ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_becomes_shared_is_its_former_agent_no_more() {
    let mut kernel = kernel().await;
    let [Family { agent: address, gateway, direct, .. }, _] = families();
    let to_direct = ip(MAC, address, direct, 6, &tcp(9, 443, SYN));
    assert_eq!(kernel.ingress(&to_direct), Did::Marked(mark::DIRECT));
    assert_eq!(kernel.ingress(&syn(MAC, address, 9, gateway)), Did::Marked(mark::LOCAL));
    kernel.shared = vec![shared("nat", &["lo=10.9.0.0/28,02:00:00:00:00:01"])];
    kernel.apply(2, Some(tables()), vec![agent(1, &[])]).await;
    let later = ip(MAC, address, direct, 6, &tcp(9, 443, ACK));
    assert_eq!(kernel.ingress(&later), Did::Dropped(DropReason::Anonymous));
    let later = ip(MAC, address, gateway, 6, &tcp(9, PROXY_PORT, ACK));
    assert_eq!(kernel.ingress(&later), Did::Marked(mark::LOCAL));
    assert_eq!(record(&kernel, address, 9, gateway).map(|flow| flow.agent), Some(0));
}

/// Where strangers may not even present a credential, only those that are bound come to the proxy, whatever kind
/// their binding is. Neighbour messages still pass, or nobody could be found.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_interface_takes_nothing_from_strangers() {
    let mut kernel = kernel().await;
    let families = families();
    for Family { disabled: stranger, gateway, direct, .. } in families {
        assert_eq!(kernel.xdp(&syn(MAC, stranger, 9, gateway)), Did::Passed);
        assert_eq!(
            kernel.ingress(&ip(MAC, stranger, direct, 17, &udp(9, 443, b"x"))),
            Did::Dropped(DropReason::Anonymous)
        );
    }
    kernel.closed.insert("lo".to_owned());
    let own = families.map(|f| format!("lo={},02:00:00:00:00:01", f.agent));
    kernel.apply(2, Some(tables()), vec![agent(1, &[&own[0], &own[1]])]).await;
    for Family { agent, stranger: nat, disabled: stranger, gateway, direct, icmp: number, echo, .. } in
        families
    {
        let both = |frame: &[u8]| (kernel.xdp(frame), kernel.ingress(frame));
        let anonymous = (Did::Dropped(DropReason::Anonymous), Did::Dropped(DropReason::Anonymous));
        for frame in [
            syn(MAC, stranger, 10, gateway),
            syn(OTHER_MAC, stranger, 10, gateway),
            ip(MAC, stranger, gateway, 17, &udp(10, 53, b"x")),
            ip(MAC, stranger, direct, 6, &tcp(10, 443, SYN)),
            ip(MAC, stranger, direct, number, &icmp(echo, 0, 7)),
        ] {
            assert_eq!(both(&frame), anonymous, "{stranger}");
        }
        for bound in [agent, nat] {
            assert_eq!(
                both(&syn(MAC, bound, 10, gateway)),
                (Did::Passed, Did::Marked(mark::LOCAL)),
                "{bound}"
            );
        }
        if let (IpAddr::V4(own), IpAddr::V4(to)) = (stranger, gateway) {
            let asks = arp(MAC, MAC, own.octets(), to.octets());
            assert_eq!(both(&asks), (Did::Passed, Did::Marked(mark::LOCAL)));
        }
        // Whoever loses its binding is a stranger, in the midst of a flow too.
        assert_eq!(kernel.ingress(&ip(MAC, agent, direct, 6, &tcp(11, 443, SYN))), Did::Marked(mark::DIRECT));
    }
    kernel.apply(3, Some(tables()), vec![agent(1, &[])]).await;
    for Family { agent, direct, .. } in families {
        let answer = ip(MAC, direct, agent, 6, &tcp(443, 11, ACK));
        assert_eq!(kernel.egress(&answer), Did::Dropped(DropReason::Anonymous));
        let later = ip(MAC, agent, direct, 6, &tcp(11, 443, ACK));
        assert_eq!(kernel.ingress(&later), Did::Dropped(DropReason::Anonymous));
    }
    kernel.check_counts();
}

/// Addresses of few distinct values, so that prefixes nest and meet them.
fn address(r: &mut Random, v4: bool) -> IpAddr {
    let bits = r.below(32);
    if v4 {
        IpAddr::V4(Ipv4Addr::from_bits(10 << 24 | u32::try_from(bits).expect("bits")))
    } else {
        IpAddr::from((0xFD << 120 | u128::from(bits) << 62).to_be_bytes())
    }
}

/// A random source, with any length around a random address.
fn source(r: &mut Random) -> Source {
    let v4 = r.below(2) == 0;
    let (least, most) = if v4 { (26, 32) } else { (60, 128) };
    let length = if r.below(2) == 0 { most } else { least + r.below(most - least + 1) };
    let address = address(r, v4);
    let prefix = ipnet::IpNet::new(address, u8::try_from(length).expect("length")).expect("prefix");
    format!("lo={},any-mac", prefix.trunc()).parse().expect("source")
}

/// Random bindings of agents and shared sources, nested in each other: L7's look-up by interface and address
/// says of each address what the programs find.
#[tokio::test(flavor = "multi_thread")]
async fn l7_finds_the_holder_that_the_kernel_finds() {
    const GENERATIONS: u64 = 40;
    let mut r = Random(seed());
    let mut kernel = Kernel::load();
    let gateways = families().map(|f| f.gateway);
    gateways.into_iter().for_each(|gateway| kernel.own(gateway));
    let mut met = [0_u32; 3];
    for generation in 1..=GENERATIONS {
        let mut agents: Vec<Agent> = (1..6).map(|n| agent(n, &[])).collect();
        let mut sources = [shared("one", &[]), shared("two", &[])];
        let mut taken = BTreeSet::new();
        for _ in 0..r.below(16) {
            let source = source(&mut r);
            if taken.insert(source.prefix) {
                match r.index(agents.len() + sources.len()) {
                    n if n < agents.len() => agents[n].sources.push(source),
                    n => sources[n - agents.len()].at.push(source),
                }
            }
        }
        let known: Vec<Arc<Agent>> = agents.iter().cloned().map(Arc::new).collect();
        let holders = Holders::new(&known, sources.clone());
        kernel.shared = sources.to_vec();
        kernel.apply(generation, Some(tables()), agents).await;
        for port in 1..=200 {
            let v4 = r.below(2) == 0;
            let (address, gateway) = (address(&mut r, v4), gateways[usize::from(!v4)]);
            let did = kernel.ingress(&syn(MAC, address, port, gateway));
            assert_eq!(did, Did::Marked(mark::LOCAL), "generation {generation}: {address}");
            let flow = record(&kernel, address, port, gateway).map(|flow| flow.agent);
            let (kind, want) = match holders.on("lo", address) {
                None => (0, None),
                Some(Holder::Agent(agent)) => (1, Some(agent.index)),
                Some(Holder::Shared(_)) => (2, Some(0)),
            };
            met[kind] += 1;
            assert_eq!(flow, want, "generation {generation}: {address} of {taken:?}");
        }
        let keys: Vec<Plain<FlowKey>> = kernel.flows.keys().collect::<Result<_, _>>().expect("flows");
        keys.iter().for_each(|key| kernel.flows.remove(key).expect("remove"));
    }
    assert!(met.iter().all(|n| *n >= 200), "{met:?}");
}
