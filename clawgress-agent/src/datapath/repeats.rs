//! Drops that came again within the interval in which they are told once: the kernel counts them, each CPU
//! by itself, and tells the count when something else takes the place. What nothing displaces is told from
//! here, once its interval is over.
//!
//! Must never tell a drop twice: what was told from here is taken off what the kernel tells later.

use std::collections::HashMap;

use anyhow::Result;
use aya::maps::{MapData, PerCpuArray};
use clawgress_ebpf_common::{Event, FlowKey, Seen, SeenKey, action, bound, event_kind};

use super::bpf::Plain;

/// Which count of which CPU, since when.
type Place = (u32, SeenKey, u64);

/// The counts, and what was told of them.
pub struct Repeats {
    map: PerCpuArray<MapData, Plain<Seen>>,
    /// Bounded by the map: what is in it no longer is forgotten one look later, when its last event has been
    /// read.
    told: HashMap<Place, Told>,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    count: u64,
    is_present: bool,
}

impl std::fmt::Debug for Repeats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repeats").field("told", &self.told.len()).finish_non_exhaustive()
    }
}

impl Repeats {
    /// Wraps the map.
    #[must_use]
    pub fn new(map: PerCpuArray<MapData, Plain<Seen>>) -> Self {
        Repeats { map, told: HashMap::new() }
    }

    /// The event with what was told already taken off; `None` if nothing is left.
    pub fn rest(&mut self, event: &Event) -> Option<Event> {
        if event.kind != event_kind::REST {
            return Some(*event);
        }
        let told = self.told.remove(&(event.bytes, key(event), event.at_ns)).map_or(0, |told| told.count);
        let count = event.count.saturating_sub(told);
        (count > 0).then_some(Event { bytes: 0, count, ..*event })
    }

    /// Counts whose interval is over, as events.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn look(&mut self, now_ns: u64) -> Result<Vec<Event>> {
        let mut found = Vec::new();
        for slot in 0..bound::SEEN_SLOTS {
            let values = self.map.get(&slot, 0)?;
            for (cpu, Plain(seen)) in (0..).zip(values.iter()) {
                if seen.count > 0 && seen.key.reason != 0 {
                    found.push((cpu, *seen));
                }
            }
        }
        Ok(self.tell(&found, now_ns))
    }

    fn tell(&mut self, found: &[(u32, Seen)], now_ns: u64) -> Vec<Event> {
        self.told.retain(|_, told| std::mem::replace(&mut told.is_present, false));
        let mut events = Vec::new();
        for (cpu, seen) in found {
            if now_ns.saturating_sub(seen.since_ns) < bound::SEEN_INTERVAL_NS {
                continue;
            }
            let told = self
                .told
                .entry((*cpu, seen.key, seen.since_ns))
                .or_insert(Told { count: 0, is_present: true });
            told.is_present = true;
            if seen.count > told.count {
                events.push(event(seen, seen.count - told.count));
                told.count = seen.count;
            }
        }
        events
    }
}

fn key(event: &Event) -> SeenKey {
    SeenKey {
        source: event.flow.source,
        destination: event.flow.destination,
        destination_port_be: event.flow.destination_port_be,
        // Each reason has a byte.
        reason: event.reason as u8,
        protocol: event.flow.protocol,
        scope: SeenKey::scope(event.flow.ifindex, event.agent),
    }
}

fn event(seen: &Seen, count: u64) -> Event {
    Event {
        at_ns: seen.since_ns,
        generation: seen.generation,
        flow: FlowKey {
            source: seen.key.source,
            destination: seen.key.destination,
            source_port_be: 0,
            destination_port_be: seen.key.destination_port_be,
            ifindex: seen.key.ifindex(),
            protocol: seen.key.protocol,
            pad: [0; 3],
        },
        agent: seen.agent,
        policies: seen.policies,
        bytes: 0,
        kind: event_kind::REST,
        reason: u16::from(seen.key.reason),
        action: action::DENY,
        hook: seen.hook,
        count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn repeats() -> Repeats {
        let map = PerCpuArray::create(bound::SEEN_SLOTS, 0).expect("these tests need root");
        Repeats::new(map)
    }

    fn seen(port: u16, since_ns: u64, count: u64) -> Seen {
        let key = SeenKey { destination_port_be: port.to_be(), reason: 9, scope: 2, ..SeenKey::default() };
        Seen { key, since_ns, count, ..Seen::default() }
    }

    fn counts(events: &[Event]) -> Vec<u64> {
        events.iter().map(|e| e.count).collect()
    }

    #[test]
    fn a_count_is_told_once_when_its_interval_is_over() {
        let mut repeats = repeats();
        assert!(repeats.look(9 * SECOND).expect("an empty map").is_empty());
        let running = [(0, seen(80, 5 * SECOND, 3))];
        assert!(repeats.tell(&running, 5 * SECOND + 10).is_empty());
        assert_eq!(counts(&repeats.tell(&running, 7 * SECOND)), [3]);
        assert!(repeats.tell(&running, 8 * SECOND).is_empty());
        // The other CPU counted by itself, from the same tick of the clock on.
        let both = [(0, seen(80, 5 * SECOND, 3)), (1, seen(80, 5 * SECOND, 4))];
        assert_eq!(counts(&repeats.tell(&both, 8 * SECOND)), [4]);
    }

    #[test]
    fn what_the_kernel_tells_later_has_it_taken_off() {
        let mut repeats = repeats();
        let kept = seen(80, 5 * SECOND, 3);
        assert_eq!(counts(&repeats.tell(&[(1, kept)], 7 * SECOND)), [3]);
        let displaced = Event { bytes: 1, ..event(&kept, 3) };
        assert_eq!(repeats.rest(&displaced), None);
        // Displaced before it was told from here.
        let other = Event { bytes: 0, ..event(&seen(81, 6 * SECOND, 5), 5) };
        assert_eq!(repeats.rest(&other).map(|e| e.count), Some(5));
        // Forgotten when it has been away for a whole look.
        assert_eq!(counts(&repeats.tell(&[(1, kept)], 9 * SECOND)), [3]);
        for _ in 0..2 {
            assert!(repeats.tell(&[], 9 * SECOND).is_empty());
        }
        assert!(repeats.told.is_empty());
    }
}
