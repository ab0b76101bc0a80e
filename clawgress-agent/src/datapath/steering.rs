//! Which L7 process takes which new connection: the socket map, and the listeners of each process. A process
//! that takes connections has an equal number of the parts that they fall into.
//!
//! A listener stays open for a while when its process drains or dies: handshakes that have begun there end there,
//! and the others accept what they bring. Must never leave a part to a process that takes no more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use aya::maps::{MapData, SockMap};
use clawgress_api::handover::ListenerKind;
use clawgress_ebpf_common::listener::{self, PARTS, SLOTS, WORKERS_MAX};

use super::listeners::Listener;

/// How long the listeners of a process that takes no more stay open: as long as a handshake may take, with the
/// five repetitions of `net.ipv4.tcp_synack_retries` (tcp(7)).
const LEFT_TIME: Duration = Duration::from_secs(64);
/// Processes whose listeners stay open at once: an exchange of most of them within [`LEFT_TIME`]. The oldest goes
/// first.
const LEFT_MAX: usize = 4;
/// Descriptors of those, one a family.
pub const LEFT_DESCRIPTORS_MAX: usize = 2 * LEFT_MAX;

/// Names a process for as long as this role runs.
pub type Id = u64;

/// The processes that connections are steered to.
pub struct Steering {
    map: SockMap<MapData>,
    workers: BTreeMap<Id, Worker>,
    next: Id,
    /// Whose listener each slot holds, as far as this role has written it.
    slots: Vec<Option<Id>>,
    /// Whether slots may hold what a former role left there.
    is_inherited: bool,
    left: VecDeque<Left>,
    /// How many serve DNS.
    dns: usize,
}

/// A process that was handed its listeners.
struct Worker {
    listeners: Vec<Arc<Listener>>,
    /// Whether new connections go to it.
    takes: bool,
}

/// Listeners of a process that takes no more.
struct Left {
    listeners: Vec<Arc<Listener>>,
    until: Instant,
}

// === impl Steering ===

impl std::fmt::Debug for Steering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steering").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

impl Steering {
    /// Nobody takes connections yet but those whom a former role steered to.
    #[must_use]
    pub fn new(map: SockMap<MapData>) -> Self {
        let slots = vec![None; SLOTS as usize];
        let (workers, left) = (BTreeMap::new(), VecDeque::new());
        Steering { map, workers, next: 0, slots, is_inherited: true, left, dns: 0 }
    }

    /// Gives a process its place, with these listeners; it takes nothing yet.
    ///
    /// # Errors
    /// If as many are there as can be.
    pub fn place(&mut self, listeners: Vec<Arc<Listener>>) -> Result<Id> {
        if self.workers.len() >= WORKERS_MAX as usize {
            bail!(
                "{WORKERS_MAX} l7 processes take connections already, the most there can be; stop one of them, \
                 and this one takes its place"
            );
        }
        let id = self.next;
        self.next += 1;
        self.workers.insert(id, Worker { listeners, takes: false });
        Ok(id)
    }

    /// From now on it has its part of the new connections.
    pub fn take(&mut self, id: Id) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.takes = true;
            self.share_out();
        }
    }

    /// It takes no more. Its listeners stay open for a while, if it took any.
    pub fn leave(&mut self, id: Id) {
        let Some(Worker { listeners, takes }) = self.workers.remove(&id) else { return };
        if takes {
            self.left.push_back(Left { listeners, until: Instant::now() + LEFT_TIME });
            self.expire();
            self.share_out();
        }
    }

    /// Whether anybody takes connections.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.workers.values().any(|w| w.takes)
    }

    /// Closes what stayed open long enough; whether there was any.
    pub fn expire(&mut self) -> bool {
        let before = self.left.len();
        let now = Instant::now();
        self.left.retain(|left| left.until > now);
        let excess = self.left.len().saturating_sub(LEFT_MAX);
        self.left.drain(..excess);
        self.left.len() != before
    }

    /// Listeners of processes that take no more, which the others accept from.
    #[must_use]
    pub fn left(&self) -> Vec<Arc<Listener>> {
        self.left.iter().flat_map(|left| &left.listeners).map(Arc::clone).collect()
    }

    /// One that serves DNS more or less, from `sockets`. The first takes the slots, the last gives them up.
    pub fn serve_dns(&mut self, sockets: &[Listener], is_new: bool) {
        let before = self.dns;
        self.dns = if is_new { before + 1 } else { before.saturating_sub(1) };
        for socket in sockets {
            let base = match socket.kind() {
                ListenerKind::DnsDatagram => listener::DNS_UDP,
                ListenerKind::DnsStream => listener::DNS_TCP,
                ListenerKind::Transparent | ListenerKind::Proxy | ListenerKind::ProxyTls => continue,
            };
            let slot = base + u32::from(socket.address().is_ipv6());
            let result = match (before, self.dns) {
                (0, 1) => self.map.set(slot, socket.socket(), 0),
                (1, 0) => self.map.clear_index(&slot),
                _ => Ok(()),
            };
            if let Err(error) = result {
                tracing::error!(%error, slot, "cannot change a listener slot");
            }
        }
    }

    /// Writes whose part is whose.
    fn share_out(&mut self) {
        let takers: Vec<(Id, &Worker)> =
            self.workers.iter().filter(|(_, w)| w.takes).map(|(id, w)| (*id, w)).collect();
        for (part, is_v6) in (0..PARTS).flat_map(|part| [(part, false), (part, true)]) {
            let slot = listener::slot(part, is_v6);
            let listener = holder(part, &takers).and_then(|(id, worker)| {
                let fits = |l: &&Arc<Listener>| l.address().is_ipv6() == is_v6;
                worker.listeners.iter().find(fits).map(|listener| (*id, listener))
            });
            let Some(known) = self.slots.get_mut(slot as usize) else { continue };
            let before = std::mem::replace(known, listener.map(|(id, _)| id));
            let result = match listener {
                Some((id, _)) if before == Some(id) => Ok(()),
                Some((_, listener)) => self.map.set(slot, listener.socket(), 0),
                None if before.is_some() => self.map.clear_index(&slot),
                None => {
                    if self.is_inherited {
                        // Mostly there is none, which is an error to the kernel.
                        let _ = self.map.clear_index(&slot);
                    }
                    Ok(())
                }
            };
            if let Err(error) = result {
                tracing::error!(%error, slot, "cannot change a listener slot");
            }
        }
        self.is_inherited = false;
    }
}

/// Whose a part is: the takers' in turn, so that parts in a row are of as many as there are.
fn holder<T>(part: u32, takers: &[T]) -> Option<&T> {
    takers.get((part as usize).checked_rem(takers.len())?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn every_taker_has_as_many_parts_as_the_others() {
        assert_eq!(holder::<u32>(0, &[]), None);
        for n in 1..=WORKERS_MAX {
            let takers: Vec<u32> = (0..n).collect();
            let mut parts = BTreeMap::<u32, u32>::new();
            for part in 0..PARTS {
                *parts.entry(*holder(part, &takers).expect("somebody")).or_default() += 1;
                let next: Vec<_> = (part..part + n).map(|p| holder(p % PARTS, &takers)).collect();
                assert!(
                    takers.iter().all(|t| next.contains(&Some(t))),
                    "{n} takers: all are near part {part}"
                );
            }
            assert!(parts.len() == n as usize && parts.values().all(|&p| p == PARTS / n), "{parts:?}");
        }
    }

    /// Few clients, each with its ports in a row, which is how systems give them out, or every other.
    #[test]
    fn connections_fall_into_all_parts_alike() {
        const CONNECTIONS: u32 = 60_000;
        let words = |ip: Ipv6Addr| {
            let [.., a, b, c, d, e, f, g, h] = ip.octets();
            [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
        };
        let server: Ipv6Addr = "2001:db8::443".parse().expect("address");
        for (clients, step) in [(1, 1), (1, 2), (8, 1), (8, 2), (1000, 2)] {
            let mut parts = vec![0_u32; PARTS as usize];
            for n in 0..CONNECTIONS {
                let v4 = std::net::Ipv4Addr::new(10, 64, 0, 0).to_bits() + 2 + n % clients;
                let client = std::net::Ipv4Addr::from_bits(v4).to_ipv6_mapped();
                let port = u16::try_from((32_768 + n / clients * step) % 65_536).expect("port");
                let part = listener::part(words(client), words(server), [port.to_be(), 443_u16.to_be()]);
                parts[part as usize] += 1;
            }
            let fair = CONNECTIONS / PARTS;
            assert!(parts.iter().all(|&p| p > fair / 2 && p < fair * 2), "{clients} clients: {parts:?}");
        }
    }
}
