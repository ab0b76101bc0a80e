//! What was dropped lately, for people who look: a bounded table of who, where and why. The audit log has the
//! records; this one forgets what was seen longest ago.

use std::collections::HashMap;

use clawgress_ebpf_common::{Event, FlowKey, event_kind};
use parking_lot::Mutex;

/// Rows kept: more than anybody reads, and about half a megabyte.
const DROPS_MAX: usize = 4096;

/// The table.
#[derive(Debug, Default)]
pub struct Drops {
    rows: Mutex<HashMap<Row, Tally>>,
}

/// What is one row. The source port doesn't tell drops apart: every attempt has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// The flow, with a source port of 0.
    pub flow: FlowKey,
    /// The registry's index of the agent, 0 for nobody.
    pub agent: u32,
    /// `DropReason` code.
    pub reason: u16,
}

/// What is known of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Drops.
    pub count: u64,
    /// `CLOCK_MONOTONIC` of the first, ns.
    pub first_ns: u64,
    /// `CLOCK_MONOTONIC` of the latest, ns.
    pub last_ns: u64,
    /// `hook` code of the latest.
    pub hook: u16,
}

impl Drops {
    /// Takes note of a drop; other events are none of its business.
    pub fn note(&self, event: &Event) {
        if event.kind != event_kind::DROP && event.kind != event_kind::REST {
            return;
        }
        let flow = FlowKey { source_port_be: 0, ..event.flow };
        let row = Row { flow, agent: event.agent, reason: event.reason };
        let mut rows = self.rows.lock();
        if let Some(tally) = rows.get_mut(&row) {
            tally.count += event.count;
            tally.last_ns = tally.last_ns.max(event.at_ns);
            tally.hook = event.hook;
            return;
        }
        if rows.len() >= DROPS_MAX
            && let Some(oldest) = rows.iter().min_by_key(|(_, tally)| tally.last_ns).map(|(row, _)| *row)
        {
            rows.remove(&oldest);
        }
        rows.insert(
            row,
            Tally { count: event.count, first_ns: event.at_ns, last_ns: event.at_ns, hook: event.hook },
        );
    }

    /// Rows for which `is_wanted`, the latest first, at most `limit`.
    pub fn latest(&self, limit: usize, is_wanted: impl Fn(&Row) -> bool) -> Vec<(Row, Tally)> {
        let rows = self.rows.lock();
        let mut found: Vec<_> =
            rows.iter().filter(|(row, _)| is_wanted(row)).map(|(row, tally)| (*row, *tally)).collect();
        drop(rows);
        found.sort_unstable_by_key(|(_, tally)| std::cmp::Reverse(tally.last_ns));
        found.truncate(limit);
        found
    }
}

#[cfg(test)]
mod tests {
    use clawgress_ebpf_common::{DropReason, action, hook};

    use super::*;

    fn event(destination: u16, source_port: u16, at_ns: u64) -> Event {
        let [high, low] = destination.to_be_bytes();
        Event {
            at_ns,
            generation: 1,
            flow: FlowKey {
                source: [1; 16],
                destination: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 10, 0, high, low],
                source_port_be: source_port,
                destination_port_be: 443_u16.to_be(),
                ifindex: 3,
                protocol: 17,
                pad: [0; 3],
            },
            agent: 1,
            policies: 0,
            bytes: 100,
            kind: event_kind::DROP,
            reason: DropReason::PolicyDenied.code(),
            action: action::DENY,
            hook: hook::XDP,
            count: 1,
        }
    }

    #[test]
    fn the_same_is_one_row_and_what_is_old_makes_room() {
        let drops = Drops::default();
        let rows = u16::try_from(DROPS_MAX).expect("few");
        for n in 0..=rows {
            drops.note(&event(n, n, u64::from(n)));
        }
        drops.note(&event(rows, 1, 90_000));
        drops.note(&Event { kind: event_kind::FLOW, ..event(7, 7, 99_000) });
        let latest = drops.latest(usize::MAX, |_| true);
        assert_eq!(latest.len(), DROPS_MAX);
        let (row, tally) = latest.first().expect("a row");
        assert_eq!((row.flow.destination, tally.count), (event(rows, 0, 0).flow.destination, 2));
        assert_eq!((tally.first_ns, tally.last_ns), (u64::from(rows), 90_000));
        assert!(latest.iter().all(|(_, tally)| tally.first_ns > 0), "the first one made room");
        assert_eq!(drops.latest(3, |row| row.agent == 1).len(), 3);
        assert_eq!(drops.latest(3, |row| row.agent == 2), []);
    }
}
