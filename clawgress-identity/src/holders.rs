//! Who holds an address: the source bindings of a generation, looked up as the kernel's tables are.
//!
//! INVARIANT: as there, the longest prefix around the address wins on its interface, and IPv4 and IPv6 are
//! apart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::{Agent, SharedSource};

/// Who holds a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This agent: the binding is of the kind `is`.
    Agent(Arc<Agent>),
    /// Nobody by itself: it is of the kind `may_present`.
    Shared(Arc<SharedSource>),
}

/// The bindings.
#[derive(Clone, Debug, Default)]
pub struct Holders {
    by_interface: BTreeMap<String, Prefixes>,
}

/// The bindings of one interface.
#[derive(Clone, Debug, Default)]
struct Prefixes {
    holders: HashMap<IpNet, Holder>,
    /// Lengths in use, of IPv4 and of IPv6: as many look-ups as there are of a family, 33 or 129 at most.
    lengths: [BTreeSet<u8>; 2],
}

// === impl Holders ===

impl Holders {
    /// Builds the look-up tables. Of two that hold the same prefix the last counts; a registry has no such two.
    #[must_use]
    pub fn new<'a>(
        agents: impl IntoIterator<Item = &'a Arc<Agent>>,
        shared: impl IntoIterator<Item = SharedSource>,
    ) -> Self {
        let mut holders = Holders::default();
        for agent in agents {
            for source in &agent.sources {
                holders.insert(&source.interface, source.prefix, Holder::Agent(Arc::clone(agent)));
            }
        }
        for shared in shared.into_iter().map(Arc::new) {
            for source in &shared.at {
                holders.insert(&source.interface, source.prefix, Holder::Shared(Arc::clone(&shared)));
            }
        }
        holders
    }

    fn insert(&mut self, interface: &str, prefix: IpNet, holder: Holder) {
        let prefix = prefix.trunc();
        let prefixes = self.by_interface.entry(interface.to_owned()).or_default();
        let [v4, v6] = &mut prefixes.lengths;
        if prefix.addr().is_ipv4() { v4 } else { v6 }.insert(prefix.prefix_len());
        prefixes.holders.insert(prefix, holder);
    }

    /// Who holds `address` on `interface`.
    #[must_use]
    pub fn on(&self, interface: &str, address: IpAddr) -> Option<&Holder> {
        self.by_interface.get(interface)?.find(address.to_canonical())
    }

    /// Who holds `address` on any interface, each of which may have somebody else there.
    pub fn anywhere(&self, address: IpAddr) -> impl Iterator<Item = &Holder> {
        let address = address.to_canonical();
        self.by_interface.values().filter_map(move |prefixes| prefixes.find(address))
    }
}

// === impl Prefixes ===

impl Prefixes {
    fn find(&self, address: IpAddr) -> Option<&Holder> {
        let [v4, v6] = &self.lengths;
        let lengths = if address.is_ipv4() { v4 } else { v6 };
        let around = |length: &u8| Some(IpNet::new(address, *length).ok()?.trunc());
        lengths.iter().rev().filter_map(around).find_map(|prefix| self.holders.get(&prefix))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::AgentState;

    fn agent(index: u32, sources: &[String]) -> Arc<Agent> {
        Arc::new(Agent {
            id: format!("a{index}").parse().unwrap(),
            index,
            team: None,
            project: None,
            environment: None,
            labels: BTreeMap::new(),
            state: AgentState::Active,
            sources: sources.iter().map(|s| s.parse().unwrap()).collect(),
        })
    }

    fn shared(name: &str, at: &[&str]) -> SharedSource {
        let at = at.iter().map(|s| s.parse().unwrap()).collect();
        SharedSource { id: name.parse().unwrap(), at, may_present: BTreeSet::new() }
    }

    fn name(holder: Option<&Holder>) -> String {
        match holder {
            None => "-".to_owned(),
            Some(Holder::Agent(agent)) => agent.id.name().to_owned(),
            Some(Holder::Shared(shared)) => shared.id.to_string().replace("default/", ""),
        }
    }

    #[test]
    fn the_longest_prefix_of_the_interface_holds() {
        let own = [agent(1, &["e=10.0.0.5,any-mac".into(), "f=10.0.0.0/24,any-mac".into()])];
        let nat = shared("nat", &["e=10.0.0.0/28,any-mac", "e=fd00::/64,any-mac", "e=::/0,any-mac"]);
        let all = shared("all", &["e=0.0.0.0/0,02:00:00:00:00:01"]);
        let holders = Holders::new(&own, [nat, all]);
        for (interface, address, want) in [
            ("e", "10.0.0.5", "a1"),
            ("e", "::ffff:10.0.0.5", "a1"),
            ("e", "10.0.0.6", "nat"),
            ("e", "10.0.0.16", "all"),
            ("e", "fd00::5", "nat"),
            ("e", "2001:db8::1", "nat"),
            ("f", "10.0.0.6", "a1"),
            ("f", "10.0.1.6", "-"),
            ("f", "fd00::5", "-"),
            ("g", "10.0.0.5", "-"),
            ("", "10.0.0.5", "-"),
        ] {
            assert_eq!(name(holders.on(interface, address.parse().unwrap())), want, "{interface} {address}");
        }
        let anywhere = |address: &str| {
            holders.anywhere(address.parse().unwrap()).map(|h| name(Some(h))).collect::<Vec<_>>()
        };
        assert_eq!(anywhere("10.0.0.6"), ["nat", "a1"]);
        assert_eq!(anywhere("fd00::1"), ["nat"]);
        assert_eq!(anywhere("192.0.2.1"), ["all"]);
    }

    proptest! {
        /// Against the plain search through all prefixes.
        #[test]
        fn the_longest_prefix_is_found(
            prefixes in proptest::collection::vec((0_u32..16, 0_u8..=32, any::<bool>()), 0..24), address in 0_u32..16
        ) {
            // Few distinct addresses of either family, so that prefixes nest.
            let ip = |n: u32, v4: bool| if v4 {
                IpAddr::from((n << 28).to_be_bytes())
            } else {
                IpAddr::from((u128::from(n) << 124).to_be_bytes())
            };
            let net = |n: u32, length: u8, v4: bool| IpNet::new(ip(n, v4), length).unwrap().trunc();
            let agents: Vec<_> = (1..).zip(&prefixes)
                .map(|(n, (a, l, v4))| agent(n, &[format!("e={},any-mac", net(*a, *l, *v4))])).collect();
            let holders = Holders::new(&agents, []);
            for v4 in [true, false] {
                let address = ip(address, v4);
                let nets = agents.iter().map(|a| (a.sources[0].prefix, a));
                let best = nets.filter(|(n, _)| n.contains(&address)).max_by_key(|(n, a)| (n.prefix_len(), a.index));
                let want = best.map(|(_, agent)| Holder::Agent(Arc::clone(agent)));
                prop_assert_eq!(holders.on("e", address), want.as_ref());
            }
        }
    }
}
