//! Addresses learned from DNS answers: written before the answer is released, known until they expire, and
//! as long as a flow lives that they permitted.
//!
//! Must never learn for ports whose addresses many names share, nor under a policy that is not live.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Result, bail, ensure};
use aya::maps::{Array, HashMap, MapData};
use clawgress_api::{LearnedAddress, LearnedAddresses, LearnedProtocol};
use clawgress_ebpf_common::user::address;
use clawgress_ebpf_common::{Flow, FlowKey, Learned, LearnedKey, action, bound, map, protocol};
use clawgress_policy::is_reserved;

use super::bpf::Plain;
use super::epoch::Turn;
use super::names::monotonic_ns;
use super::object::{self, Objects};
use super::shares;

/// Ports where the addresses of content networks are shared by many names.
const SHARED_PORTS: [u16; 2] = [80, 443];
/// Longest time an address is believed, s: a resolver may say a week, and policy is about names.
const TTL_S_MAX: u64 = 3600;

/// The map, and what this process wrote there.
pub struct LearnedMap {
    map: HashMap<MapData, Plain<LearnedKey>, Plain<Learned>>,
    by_agent: Array<MapData, u64>,
    /// Until when each entry is believed, ns, and the generation it counts for.
    entries: std::collections::HashMap<LearnedKey, (u64, u64)>,
    /// Entries by the place of their agent.
    counts: BTreeMap<usize, u64>,
    turn: Turn,
}

impl std::fmt::Debug for LearnedMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LearnedMap").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl LearnedMap {
    /// Takes the maps out of the object, with what a former process wrote.
    ///
    /// # Errors
    /// If one is missing or of another layout.
    pub fn take(objects: &mut Objects) -> Result<LearnedMap> {
        let mut learned = LearnedMap {
            map: object::take(objects, map::LEARNED)?,
            by_agent: object::take(objects, map::LEARNED_BY)?,
            entries: std::collections::HashMap::new(),
            counts: BTreeMap::new(),
            turn: Turn::of(objects)?,
        };
        for entry in learned.map.iter() {
            let (key, value) = entry?;
            learned.entries.insert(key.0, (value.0.expires_ns, value.0.generation));
        }
        for key in learned.entries.keys() {
            *learned.counts.entry(shares::index(key.agent)).or_default() += 1;
        }
        Ok(learned)
    }

    /// Learns addresses: all of them, or none if one may not be learned.
    ///
    /// # Errors
    /// If one may not be learned, or they don't fit, or the generation is not `live`.
    pub fn learn(&mut self, live: u64, new: &LearnedAddresses) -> Result<()> {
        ensure!(
            live != 0 && new.generation == live,
            "generation {} is not live (that is {live}); resolve the name again",
            new.generation
        );
        let keys: Vec<_> = new.addresses.iter().map(key).collect::<Result<_>>()?;
        let fresh: HashSet<_> = keys.iter().filter(|k| !self.entries.contains_key(k)).collect();
        ensure!(
            self.entries.len() + fresh.len() <= bound::LEARNED_MAX as usize,
            "{} learned addresses are known already",
            self.entries.len()
        );
        self.share(&fresh)?;
        let now_ns = monotonic_ns();
        let mut is_changed = false;
        for (key, learned) in keys.iter().zip(&new.addresses) {
            let believed_ns = now_ns.saturating_add(learned.ttl_s.min(TTL_S_MAX) * 1_000_000_000);
            // Another answer may live for less; whoever was told the address by the former one still dials it.
            let former_ns = self.entries.get(key).filter(|(_, generation)| *generation == live);
            let expires_ns = former_ns.map_or(believed_ns, |(former_ns, _)| believed_ns.max(*former_ns));
            let value = Learned { expires_ns, generation: live, policies: learned.policies, pad: 0 };
            self.map.insert(Plain(*key), Plain(value), 0)?;
            let former = self.entries.insert(*key, (expires_ns, live));
            if former.is_none() {
                // After the entry itself: until then it is not looked for.
                self.count(key.agent, 1)?;
            }
            // When one ends TC looks at, and is all that changes with a name that is asked for again.
            is_changed |= former.is_none_or(|(_, generation)| generation != live);
        }
        if is_changed { self.turn.turn() } else { Ok(()) }
    }

    /// That nobody takes the others' room.
    fn share(&self, fresh: &HashSet<&LearnedKey>) -> Result<()> {
        let mut more = BTreeMap::<usize, u64>::new();
        for key in fresh {
            *more.entry(shares::index(key.agent)).or_default() += 1;
        }
        for (index, more) in more {
            let known = self.counts.get(&index).copied().unwrap_or_default();
            ensure!(
                known + more <= u64::from(bound::LEARNED_AGENT_MAX),
                "{known} learned addresses of one agent are known already"
            );
        }
        Ok(())
    }

    /// Whether something has expired.
    #[must_use]
    pub fn has_expired(&self, now_ns: u64) -> bool {
        self.entries.values().any(|(expires_ns, _)| *expires_ns <= now_ns)
    }

    /// Forgets what has expired, but for what `in_use` holds.
    ///
    /// # Errors
    /// If a map can't be written.
    pub fn expire(&mut self, now_ns: u64, in_use: &HashSet<LearnedKey>) -> Result<()> {
        let is_over = |(key, (expires_ns, _)): &(&LearnedKey, &(u64, u64))| {
            *expires_ns <= now_ns && !in_use.contains(*key)
        };
        let over: Vec<_> = self.entries.iter().filter(is_over).map(|(key, _)| *key).collect();
        let is_changed = !over.is_empty();
        for key in over {
            self.map.remove(&Plain(key))?;
            self.entries.remove(&key);
            self.count(key.agent, -1)?;
        }
        if is_changed { self.turn.turn() } else { Ok(()) }
    }

    fn count(&mut self, agent: u32, by: i64) -> Result<()> {
        let index = shares::index(agent);
        let count = self.counts.entry(index).or_default();
        *count = count.saturating_add_signed(by);
        self.by_agent.set(u32::try_from(index)?, *count, 0)?;
        Ok(())
    }
}

/// The entry that would permit a live flow, if one did.
#[must_use]
pub fn of_flow(key: &FlowKey, flow: &Flow) -> Option<LearnedKey> {
    (flow.action == action::DIRECT).then_some(LearnedKey {
        agent: flow.agent,
        port_be: key.destination_port_be,
        protocol: key.protocol,
        pad: 0,
        address: key.destination,
    })
}

fn key(learned: &LearnedAddress) -> Result<LearnedKey> {
    let LearnedAddress { agent, ip, port, protocol, .. } = *learned;
    if agent == 0 || port == 0 || SHARED_PORTS.contains(&port) {
        bail!("nothing is learned for agent {agent} and port {port}: nobody's, or shared by many names");
    }
    ensure!(!is_reserved(ip), "`{ip}` is private or reserved: policy has to name it as an address");
    let protocol = match protocol {
        LearnedProtocol::Tcp => protocol::TCP,
        LearnedProtocol::Udp => protocol::UDP,
    };
    Ok(LearnedKey { agent, port_be: port.to_be(), protocol, pad: 0, address: address(ip) })
}
