//! What is known of a connection before it says anything: addresses, how it came, and what the kernel plane
//! bound its source to. A flow record without an agent is that of a source that several share.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use clawgress_api::Ingress;
use clawgress_api::SourceRef;
use clawgress_api::handover::ListenerKind;
use clawgress_ebpf_common::user::{FlowTable, address};
use clawgress_ebpf_common::{DropReason, Flow, FlowKey, IFINDEX_LOCAL, protocol};
use clawgress_identity::{Agent, IdentityMethod, MacAddress};
use nix::net::if_::if_indextoname;
use parking_lot::Mutex;

use crate::identify::Certificate;
use crate::told::Told;

static UNKNOWN_TOLD: LazyLock<Told> = LazyLock::new(Told::default);
/// How long an interface is taken to have the name that it had. An index is given anew only after all others.
const NAME_LIFE: Duration = Duration::from_secs(1);
/// Names that are remembered at most: interfaces of a large node.
const NAMES_MAX: usize = 4096;

/// An agent that the kernel plane found at a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The registry's index.
    pub index: u32,
    /// Source or cgroup.
    pub method: IdentityMethod,
}

/// An accepted connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The client.
    pub peer: SocketAddr,
    /// Where it is connected to: the original destination, if it was steered here.
    pub local: SocketAddr,
    /// How it came.
    pub ingress: Ingress,
    /// Whether it was steered here: the client doesn't know that it speaks to a proxy.
    pub is_steered: bool,
    /// The bound agent, or why that can't be known.
    pub bound: Result<Option<Bound>, DropReason>,
    /// The client's interface, by the word of the kernel plane: where it has bound the source, to an agent or
    /// to those that may present themselves there.
    pub interface: Option<String>,
    /// The certificate whose key the client has shown to have. Whom it proves is judged for each request.
    pub certificate: Option<Arc<Certificate>>,
}

/// The flow table as it was handed over.
#[derive(Debug, Default)]
pub struct Flows {
    /// `None` without a kernel plane.
    pub table: Option<FlowTable>,
    /// Indices of the agents' interfaces, which come and go.
    pub interfaces: ArcSwap<Vec<u32>>,
    names: Mutex<Names>,
}

/// Names of interfaces by their indices, and when they were found.
type Names = HashMap<u32, (Instant, String)>;

// === impl Connection ===

impl Connection {
    /// The facts about a connection accepted from a listener of `kind`, given what tells by which interface it came.
    #[must_use]
    pub fn new(
        kind: ListenerKind,
        peer: SocketAddr,
        local: SocketAddr,
        entered: impl FnOnce() -> io::Result<u32>,
        flows: &Flows,
    ) -> Self {
        let (peer, local) = (canonical(peer), canonical(local));
        let is_steered = !matches!(kind, ListenerKind::Proxy | ListenerKind::ProxyTls);
        let protocol = if kind == ListenerKind::DnsDatagram { protocol::UDP } else { protocol::TCP };
        let found = flows.find(peer, local, protocol, entered);
        let flow = found.as_ref().ok().and_then(Option::as_ref);
        let workload = flow.is_some_and(|(ifindex, _)| *ifindex == IFINDEX_LOCAL);
        let ingress = match kind {
            _ if workload => Ingress::Local,
            ListenerKind::Transparent | ListenerKind::DnsStream | ListenerKind::DnsDatagram => {
                Ingress::Transparent
            }
            ListenerKind::Proxy | ListenerKind::ProxyTls => Ingress::Proxy,
        };
        let interface = flow
            .filter(|(ifindex, _)| *ifindex != IFINDEX_LOCAL)
            .and_then(|(ifindex, _)| flows.name(*ifindex, Instant::now()));
        let method = if workload { IdentityMethod::Cgroup } else { IdentityMethod::Source };
        let bound = match found {
            Ok(Some((_, flow))) => Ok((flow.agent != 0).then_some(Bound { index: flow.agent, method })),
            // A steered connection has a record, or it was never permitted.
            Ok(None) if is_steered => Err(DropReason::FlowRecordMissing),
            Ok(None) => Ok(None),
            Err(error) => {
                // Of whomever: it is the datapath role's that is not there.
                if let Some(untold) = UNKNOWN_TOLD.turn(0, Instant::now()) {
                    tracing::error!(%error, untold, "whose a connection is can't be looked up");
                }
                Err(DropReason::IdentityUnavailable)
            }
        };
        Connection { peer, local, ingress, is_steered, bound, interface, certificate: None }
    }

    /// The same, passed on by a load balancer for `source`. What the kernel plane bound is the balancer's, not the
    /// client's: whose it is has to be shown by a credential.
    #[must_use]
    pub fn passed_on(self, source: SocketAddr) -> Self {
        Connection { peer: canonical(source), bound: self.bound.map(|_| None), interface: None, ..self }
    }

    /// Where the client pointed it, if it was steered here.
    #[must_use]
    pub fn steered_to(&self) -> Option<SocketAddr> {
        self.is_steered.then_some(self.local)
    }

    /// Whether the client knows that it speaks to a proxy.
    #[must_use]
    pub fn is_explicit(&self) -> bool {
        !self.is_steered
    }

    /// The MAC address that the kernel plane holds this source of `agent` to, by the agent's bindings: it let nothing pass
    /// from another.
    #[must_use]
    pub fn mac_of(&self, agent: &Agent) -> Option<MacAddress> {
        let (ip, interface) = (self.peer.ip(), self.interface.as_deref()?);
        let bound = agent.sources.iter().filter(|s| s.interface == interface && s.prefix.contains(&ip));
        bound.max_by_key(|s| s.prefix.prefix_len())?.mac
    }

    /// The source, as records hold it.
    #[must_use]
    pub fn source(&self) -> SourceRef {
        SourceRef {
            ip: Some(self.peer.ip()),
            port: Some(self.peer.port()),
            interface: self.interface.clone(),
            mac: None,
        }
    }
}

// === impl Flows ===

impl Flows {
    /// With this table, and these indices of the agents' interfaces.
    #[must_use]
    pub fn new(table: Option<FlowTable>, interfaces: Vec<u32>) -> Self {
        Flows { table, interfaces: ArcSwap::from_pointee(interfaces), names: Mutex::default() }
    }

    /// The name of an interface, as it was a moment ago at most: to ask the kernel takes a socket that is made for it. Of one that is
    /// gone it may be empty, which nothing is bound to.
    fn name(&self, ifindex: u32, now: Instant) -> Option<String> {
        let mut names = self.names.lock();
        let known = names.get(&ifindex).filter(|(at, _)| now.duration_since(*at) < NAME_LIFE);
        if let Some((_, name)) = known {
            return Some(name.clone());
        }
        let name = if_indextoname(ifindex).ok()?.into_string().ok()?;
        if name.is_empty() {
            return Some(name);
        }
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        names.insert(ifindex, (now, name.clone()));
        Some(name)
    }

    /// The record of the connection, and the interface it is of: another may have one of the same tuple, older, or of a
    /// subnet that overlaps, and that is somebody else's.
    fn find(
        &self,
        peer: SocketAddr,
        local: SocketAddr,
        protocol: u8,
        entered: impl FnOnce() -> io::Result<u32>,
    ) -> io::Result<Option<(u32, Flow)>> {
        let Some(table) = &self.table else { return Ok(None) };
        for ifindex in self.places(peer.ip(), local.ip(), entered()?) {
            let key = FlowKey {
                source: address(peer.ip()),
                destination: address(local.ip()),
                source_port_be: peer.port().to_be(),
                destination_port_be: local.port().to_be(),
                ifindex,
                protocol,
                pad: [0; 3],
            };
            if let Some(flow) = table.lookup(&key)? {
                return Ok(Some((ifindex, flow)));
            }
        }
        Ok(None)
    }

    /// Where a connection's record may be, the surest first. What comes by no agents' interface is local, and so is what
    /// a local workload says to an address of such an interface: the kernel tells that of the address then, though the
    /// packets went by loopback (net/ipv4/route.c, `ip_route_output_key_hash_rcu`; net/ipv6/ip6_input.c, `ip6_rcv_core`).
    ///
    /// Nobody behind an interface has a local record, and what comes from there under an address of the gateway's is dropped
    /// by its interface's programs. Nothing rests on that here: a record of theirs must not come before the local one, and
    /// is nothing to a connection of an address with itself.
    fn places(&self, peer: IpAddr, local: IpAddr, entered: u32) -> impl Iterator<Item = u32> {
        let of_agents = peer != local && self.interfaces.load().contains(&entered);
        [IFINDEX_LOCAL].into_iter().chain(of_agents.then_some(entered))
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use clawgress_identity::Source;

    use super::*;

    #[test]
    fn the_nearest_binding_tells_the_card() {
        let source = |prefix: &str, mac: Option<&str>| Source {
            interface: "agents0".to_owned(),
            prefix: prefix.parse().expect("prefix"),
            mac: mac.map(|mac| mac.parse().expect("address")),
        };
        let agent = Agent {
            id: "web".parse().expect("id"),
            index: 1,
            team: None,
            project: None,
            environment: None,
            labels: std::collections::BTreeMap::new(),
            state: clawgress_identity::AgentState::Active,
            sources: vec![
                source("192.0.2.0/24", Some("02:00:5e:00:53:01")),
                source("192.0.2.7/32", Some("02:00:5e:00:53:02")),
                source("192.0.2.8/32", None),
            ],
        };
        let a = |s: &str| s.parse::<SocketAddr>().expect("address");
        let from = |peer: &str, interface: Option<&str>| {
            let (kind, flows) = (ListenerKind::Proxy, Flows::default());
            let mut connection = Connection::new(kind, a(peer), a("192.0.2.1:3128"), || Ok(1), &flows);
            connection.interface = interface.map(str::to_owned);
            connection.mac_of(&agent).map(|mac| mac.to_string())
        };
        assert_eq!(from("192.0.2.7:1", Some("agents0")).as_deref(), Some("02:00:5e:00:53:02"));
        assert_eq!(from("192.0.2.9:1", Some("agents0")).as_deref(), Some("02:00:5e:00:53:01"));
        assert_eq!(from("192.0.2.8:1", Some("agents0")), None, "bound without");
        assert_eq!(from("192.0.2.7:1", Some("agents1")), None);
        assert_eq!(from("192.0.2.7:1", None), None);
    }

    #[test]
    fn a_local_record_comes_before_one_that_a_forged_source_has_made() {
        let flows = Flows::new(None, vec![7]);
        let places = |peer: &str, local: &str, entered| -> Vec<u32> {
            let ip = |s: &str| s.parse::<IpAddr>().expect("address");
            flows.places(ip(peer), ip(local), entered).collect()
        };
        for (agent, gateway, own) in
            [("192.0.2.7", "192.0.2.1", "198.51.100.1"), ("2001:db8::7", "2001:db8::1", "2001:db8:1::1")]
        {
            assert_eq!(places(agent, gateway, 7), [IFINDEX_LOCAL, 7]);
            assert_eq!(places(own, gateway, 7), [IFINDEX_LOCAL, 7], "a local source of another interface");
            assert_eq!(places(gateway, gateway, 7), [IFINDEX_LOCAL], "from itself");
            assert_eq!(places(own, gateway, 1), [IFINDEX_LOCAL]);
        }
    }

    #[test]
    fn an_interface_has_the_name_it_had_a_moment_ago_at_most() {
        let (flows, now) = (Flows::default(), Instant::now());
        let loopback = nix::net::if_::if_nametoindex("lo").expect("loopback");
        assert_eq!(flows.name(loopback, now).as_deref(), Some("lo"));
        assert!(flows.name(u32::MAX, now).is_none_or(|name| name.is_empty()));
        // As if it had been renamed since.
        flows.names.lock().insert(loopback, (now, "former".to_owned()));
        assert_eq!(flows.name(loopback, now + NAME_LIFE / 2).as_deref(), Some("former"));
        assert_eq!(flows.name(loopback, now + NAME_LIFE).as_deref(), Some("lo"));
        assert_eq!(flows.names.lock().len(), 1, "what is none is not remembered");
    }

    #[test]
    fn without_a_record_a_steered_connection_is_nobody_s() {
        let a = |s: &str| s.parse::<SocketAddr>().expect("address");
        let (peer, local) = (a("[::ffff:192.0.2.1]:1000"), a("192.0.2.2:443"));
        let of = |kind| Connection::new(kind, peer, local, || Ok(1), &Flows::default());
        let transparent = of(ListenerKind::Transparent);
        assert_eq!(transparent.bound, Err(DropReason::FlowRecordMissing));
        assert_eq!(transparent.peer, a("192.0.2.1:1000"));
        let proxy = of(ListenerKind::Proxy);
        assert_eq!((proxy.bound, proxy.ingress), (Ok(None), Ingress::Proxy));
    }
}
