//! Addresses that DNS gave for names, as long as they are believed: bounded in all, and for each agent, by what they open.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Instant;

use clawgress_ebpf_common::bound;
use clawgress_policy::Host;

/// Ports of addresses that are remembered as open: as many as the kernel's table holds.
const OPENINGS_MAX: usize = bound::LEARNED_MAX as usize;
/// Those of one agent, so that it can't take the others' room: some hundred names with all their addresses.
pub const AGENT_OPENINGS_MAX: usize = OPENINGS_MAX / 16;

/// Whose an agent is, and how many openings those of one tenant may have together.
#[derive(Clone, Copy, Debug)]
pub struct Tenancy<'a> {
    pub tenant: &'a str,
    pub openings_max: usize,
}

impl<'a> Tenancy<'a> {
    /// Of a tenant that is one of several, this part of all; else all.
    #[must_use]
    pub fn new(tenant: &'a str, is_one_of_several: bool, percent: NonZeroU8) -> Tenancy<'a> {
        let part = OPENINGS_MAX * usize::from(percent.get()).min(100) / 100;
        Tenancy { tenant, openings_max: if is_one_of_several { part } else { OPENINGS_MAX } }
    }
}

/// Who asked for what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub agent: u32,
    pub host: Host,
    pub query_type: String,
    pub port: u16,
}

/// An address of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub ip: IpAddr,
    /// Until when it is believed.
    pub until: Instant,
    /// Ports of it that are open.
    pub openings: usize,
}

/// Addresses, each with until when it is believed.
pub type Believed = Vec<(IpAddr, Instant)>;

/// There is no room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The agent has as much as it may.
    Agent,
    /// Its tenant's agents have as much as they may together.
    Tenant,
    /// All together have.
    All,
}

/// What is known.
#[derive(Debug, Default)]
pub struct Known {
    agents: BTreeMap<u32, Agent>,
    openings: usize,
}

#[derive(Debug, Default)]
struct Agent {
    tenant: String,
    names: BTreeMap<Name, BTreeMap<IpAddr, (Instant, usize)>>,
    openings: usize,
}

// === impl Known ===

impl Known {
    /// Remembers addresses of a name. What was believed for longer stays so.
    ///
    /// # Errors
    /// If there is no room for all of them; then none is remembered.
    pub fn remember(
        &mut self,
        name: &Name,
        tenancy: Tenancy<'_>,
        addresses: &[Address],
        now: Instant,
    ) -> Result<(), Full> {
        if let Err(full) = self.fits(name, tenancy, addresses) {
            self.forget(now, (full == Full::Agent).then_some(name.agent));
            self.fits(name, tenancy, addresses)?;
        }
        let agent = self.agents.entry(name.agent).or_default();
        tenancy.tenant.clone_into(&mut agent.tenant);
        let known = agent.names.entry(name.clone()).or_default();
        for Address { ip, until, openings } in addresses {
            // Also what opens nothing takes room.
            let openings = (*openings).max(1);
            let (believed, former) = known.get(ip).copied().unwrap_or((*until, 0));
            known.insert(*ip, (believed.max(*until), openings));
            agent.openings = (agent.openings + openings).saturating_sub(former);
            self.openings = (self.openings + openings).saturating_sub(former);
        }
        Ok(())
    }

    /// What is believed now, by agent.
    pub fn believed(&mut self, now: Instant) -> Vec<Vec<(Name, Believed)>> {
        self.forget(now, None);
        let name = |(name, ips): (&Name, &BTreeMap<IpAddr, (Instant, usize)>)| {
            (name.clone(), ips.iter().map(|(ip, (until, _))| (*ip, *until)).collect())
        };
        self.agents.values().map(|agent| agent.names.iter().map(name).collect()).collect()
    }

    fn fits(&self, name: &Name, tenancy: Tenancy<'_>, addresses: &[Address]) -> Result<(), Full> {
        let agent = self.agents.get(&name.agent);
        let known = agent.and_then(|agent| agent.names.get(name));
        let former = |ip| known.and_then(|known| known.get(ip)).map_or(0, |(_, openings)| *openings);
        let more = addresses.iter().map(|a| a.openings.max(1).saturating_sub(former(&a.ip))).sum::<usize>();
        if agent.map_or(0, |agent| agent.openings) + more > AGENT_OPENINGS_MAX {
            Err(Full::Agent)
        } else if self.openings + more > OPENINGS_MAX {
            Err(Full::All)
        } else if more > 0 && self.of_tenant(tenancy.tenant) + more > tenancy.openings_max {
            Err(Full::Tenant)
        } else {
            Ok(())
        }
    }

    /// What a tenant's agents have open together. There are some thousand agents at most.
    fn of_tenant(&self, tenant: &str) -> usize {
        self.agents.values().filter(|agent| agent.tenant == tenant).map(|agent| agent.openings).sum()
    }

    /// Forgets what is over, of one agent or of all.
    fn forget(&mut self, now: Instant, of: Option<u32>) {
        self.agents.retain(|index, agent| {
            if of.is_some_and(|of| of != *index) {
                return true;
            }
            agent.names.retain(|_, ips| {
                ips.retain(|_, (until, _)| *until > now);
                !ips.is_empty()
            });
            agent.openings = agent.names.values().flat_map(BTreeMap::values).map(|(_, n)| n).sum();
            !agent.names.is_empty()
        });
        self.openings = self.agents.values().map(|agent| agent.openings).sum();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    const ALL: Tenancy<'_> = Tenancy { tenant: "default", openings_max: OPENINGS_MAX };

    fn name(agent: u32, n: u32) -> Name {
        let host = Host::parse(&format!("h{n}.allowed.test")).unwrap();
        Name { agent, host, query_type: "A".to_owned(), port: 53 }
    }

    fn address(n: u32, until: Instant, openings: usize) -> Address {
        Address { ip: Ipv4Addr::from(n).into(), until, openings }
    }

    #[test]
    fn a_later_answer_shortens_nothing() {
        let (mut known, now) = (Known::default(), Instant::now());
        let at = |s| now + Duration::from_secs(s);
        for s in [60, 10] {
            known.remember(&name(1, 0), ALL, &[address(1, at(s), 2)], now).unwrap();
        }
        assert_eq!(known.openings, 2);
        let believed = known.believed(at(59));
        assert_eq!(believed, [vec![(name(1, 0), vec![(Ipv4Addr::from(1).into(), at(60))])]]);
        assert!(known.believed(at(60)).is_empty());
        assert_eq!(known.openings, 0);
    }

    #[test]
    fn one_agent_leaves_room_for_the_others() {
        let (mut known, now) = (Known::default(), Instant::now());
        let until = now + Duration::from_secs(60);
        let addresses = |openings| (0..8).map(move |n| address(n, until, openings)).collect::<Vec<_>>();
        let mut names = 0;
        while known.remember(&name(1, names), ALL, &addresses(8), now).is_ok() {
            names += 1;
        }
        assert_eq!(names as usize * 64, AGENT_OPENINGS_MAX, "each port of an address counts");
        assert_eq!(known.remember(&name(1, names), ALL, &addresses(1), now), Err(Full::Agent));
        assert_eq!(
            known.remember(&name(1, 0), ALL, &addresses(8), now),
            Ok(()),
            "what is known takes no more"
        );
        for agent in 2..=16 {
            for n in 0..names {
                known.remember(&name(agent, n), ALL, &addresses(8), now).unwrap();
            }
        }
        assert_eq!(known.remember(&name(17, 0), ALL, &addresses(0), now), Err(Full::All));
        assert_eq!(known.openings, OPENINGS_MAX);
        assert_eq!(known.remember(&name(17, 0), ALL, &addresses(8), until), Ok(()), "when others are over");
        assert_eq!((known.openings, known.agents.len()), (64, 1));
    }

    #[test]
    fn one_tenant_of_several_leaves_room_for_the_others() {
        let (mut known, now) = (Known::default(), Instant::now());
        let until = now + Duration::from_secs(60);
        let half = NonZeroU8::new(50).unwrap();
        let of = |tenant, is_one_of_several| Tenancy::new(tenant, is_one_of_several, half);
        let addresses: Vec<Address> = (0..8).map(|n| address(n, until, 8)).collect();
        let names = u32::try_from(AGENT_OPENINGS_MAX / 64).unwrap();
        for (agent, n) in (1..=8).flat_map(|agent| (0..names).map(move |n| (agent, n))) {
            known.remember(&name(agent, n), of("acme", true), &addresses, now).unwrap();
        }
        let acme = known.remember(&name(9, 0), of("acme", true), &addresses, now);
        assert_eq!(acme, Err(Full::Tenant), "eight of its agents have half of all");
        assert_eq!(known.remember(&name(1, 0), of("acme", true), &addresses, now), Ok(()), "what is known");
        assert_eq!(known.remember(&name(10, 0), of("other", true), &addresses, now), Ok(()));
        assert_eq!(
            known.remember(&name(9, 0), of("acme", false), &addresses, now),
            Ok(()),
            "alone it has all"
        );
        assert_eq!(
            known.remember(&name(9, 1), of("acme", true), &addresses, until),
            Ok(()),
            "when those are over"
        );
    }
}
