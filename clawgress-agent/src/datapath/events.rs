//! Reads the event ring and the counters: events become audit records, lost ones become gaps.

use std::collections::BTreeMap;
use std::mem::size_of;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{MapData, PerCpuArray, PerCpuValues, RingBuf};
use clawgress_ebpf_common::{DropReason, Ended, Event, counter};
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::drops::Drops;
use super::names::{Names, monotonic_ns};
use super::repeats::Repeats;
use super::spool::Spool;

/// How often the loss counter is looked at.
const LOSS_INTERVAL: Duration = Duration::from_secs(2);
/// Events read in one go before other tasks have a turn.
const EVENTS_PER_TURN: usize = 1024;

/// Sizes of what the ring holds.
const EVENT: usize = size_of::<Event>();
const ENDED: usize = size_of::<Ended>();

/// What the kernel programs tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A flow that begins, or drops.
    Event(Event),
    /// A flow that ended, since another has its tuple.
    Ended(Ended),
}

/// The per-CPU counters.
pub struct Counters {
    map: Mutex<PerCpuArray<MapData, u64>>,
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    /// Wraps the map.
    #[must_use]
    pub fn new(map: PerCpuArray<MapData, u64>) -> Self {
        Counters { map: Mutex::new(map) }
    }

    /// One counter, summed over CPUs.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn sum(&self, index: u32) -> Result<u64> {
        Ok(self.map.lock().get(&index, 0)?.iter().sum())
    }

    /// All counters by name, without those that are zero.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn named(&self) -> Result<BTreeMap<String, u64>> {
        let mut counters = BTreeMap::new();
        let mut add = |name: &str, index| {
            let value = self.sum(index)?;
            if value > 0 {
                counters.insert(name.to_owned(), value);
            }
            Ok::<_, anyhow::Error>(())
        };
        for reason in DropReason::ALL {
            add(reason.name(), u32::from(reason.code()))?;
        }
        for (name, index) in [
            ("xdp_passed", counter::XDP_PASSED),
            ("xdp_dropped", counter::XDP_DROPPED),
            ("tc_steered", counter::STEERED),
            ("tc_direct", counter::DIRECT),
            ("tc_local", counter::LOCAL),
            ("tc_dropped", counter::TC_DROPPED),
            ("tc_returned", counter::RETURNED),
            ("tc_rejected", counter::REJECTED),
            ("failed_open", counter::FAILED_OPEN),
            ("paced", counter::PACED),
            ("events_lost", counter::EVENTS_LOST),
            ("cgroup_allowed", counter::CGROUP_ALLOWED),
            ("cgroup_denied", counter::CGROUP_DENIED),
            ("local_dropped", counter::LOCAL_DROPPED),
            ("dial_allowed", counter::DIAL_ALLOWED),
            ("dial_denied", counter::DIAL_DENIED),
            ("dial_dropped", counter::DIAL_DROPPED),
        ] {
            add(name, index)?;
        }
        Ok(counters)
    }

    /// Events lost since this was asked last, by this process or the one before.
    fn lost(&self) -> Result<u64> {
        let (lost, told) = (self.sum(counter::EVENTS_LOST)?, self.sum(counter::EVENTS_LOST_TOLD)?);
        if lost > told {
            let mut map = self.map.lock();
            let cpus = map.get(&counter::EVENTS_LOST_TOLD, 0)?.len();
            let values: Vec<_> = (0..cpus).map(|cpu| if cpu == 0 { lost } else { 0 }).collect();
            map.set(counter::EVENTS_LOST_TOLD, PerCpuValues::try_from(values)?, 0)?;
        }
        Ok(lost.saturating_sub(told))
    }
}

/// Reads events until `stop`.
///
/// # Errors
/// If the ring can't be polled.
pub async fn read(
    ring: RingBuf<MapData>,
    counters: Arc<Counters>,
    names: Arc<Names>,
    spool: Arc<Spool>,
    drops: Arc<Drops>,
    mut repeats: Repeats,
    stop: CancellationToken,
) -> Result<()> {
    // SAFETY: the ring's descriptor stays the same, and open, for as long as the ring lives, and the
    // ring lives in here.
    let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    let mut ring = registered.context("cannot poll the event ring")?;
    let mut losses = tokio::time::interval(LOSS_INTERVAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = losses.tick() => {
                match counters.lost() {
                    Ok(lost) => spool.lose(lost),
                    Err(error) => tracing::error!("cannot read the counters: {error:#}"),
                }
                match tokio::task::block_in_place(|| repeats.look(monotonic_ns())) {
                    Ok(events) => events.iter().for_each(|event| tell(event, &names, &spool, &drops)),
                    Err(error) => tracing::error!("cannot read the counts of repeated drops: {error:#}"),
                }
            }
            ready = ring.readable_mut() => {
                let mut ready = ready?;
                if !drain(ready.get_inner_mut(), &names, &spool, &drops, &mut repeats) {
                    ready.clear_ready();
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Reads a bounded number of events; whether there may be more.
fn drain(
    ring: &mut RingBuf<MapData>,
    names: &Names,
    spool: &Spool,
    drops: &Drops,
    repeats: &mut Repeats,
) -> bool {
    for _ in 0..EVENTS_PER_TURN {
        let Some(item) = ring.next() else { return false };
        match Told::read(&item) {
            Some(Told::Event(event)) => {
                repeats.rest(&event).iter().for_each(|event| tell(event, names, spool, drops));
            }
            Some(Told::Ended(ended)) => {
                names.outcome(&ended.key, &ended.flow).into_iter().for_each(|record| spool.push(record));
            }
            // Another size would be another ABI, and that is checked at load.
            None => spool.lose(1),
        }
    }
    true
}

fn tell(event: &Event, names: &Names, spool: &Spool, drops: &Drops) {
    drops.note(event);
    spool.push(names.decision(event));
}

impl Told {
    /// An entry of the ring, which its size tells apart.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Told> {
        // SAFETY: the sizes are those of the types, every bit pattern is one of either, and the reads need no alignment.
        unsafe {
            match bytes.len() {
                EVENT => Some(Told::Event(bytes.as_ptr().cast::<Event>().read_unaligned())),
                ENDED => Some(Told::Ended(bytes.as_ptr().cast::<Ended>().read_unaligned())),
                _ => None,
            }
        }
    }
}
