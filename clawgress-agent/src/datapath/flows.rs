//! Live flows in user space: those that ended are removed and their end told. The kernel programs never
//! remove a flow, so that no end goes untold.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData, MapError};
use clawgress_ebpf_common::{
    CONFIRM_KEY_OFFSET, Flow, FlowKey, IFINDEX_DIAL, IFINDEX_LOCAL, action, bound, flow_flag, map, protocol,
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::bpf::{self, Plain, Walk};
use super::buckets::Buckets;
use super::learned::{self, LearnedMap};
use super::names::{Names, monotonic_ns};
use super::network::Conntrack;
use super::object::{self, Objects, program};
use super::shares::{self, Shares};
use super::spool::Spool;

/// How often the table is swept, and how often while it fills up.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);
/// See [`SWEEP_INTERVAL`].
const SWEEP_INTERVAL_PRESSED: Duration = Duration::from_millis(500);
/// Fill of the table, and of an agent's share of it, from which on flows that nobody answered are given less
/// time: what is left is room for a second's worth of honest new ones.
const PRESSED_FLOWS: u64 = bound::FLOWS_MAX as u64 / 4 * 3;
/// See [`PRESSED_FLOWS`].
const PRESSED_SHARE: u64 = bound::FLOWS_PER_AGENT_MAX / 4 * 3;
/// Idle flows judged again in one sweep: some tens of milliseconds, so that a sweep stays short.
const CONFIRM_MAX: usize = 32_768;

/// How long a flow may be silent. Established TCP: RFC 5382 REQ-5; UDP: RFC 4787 REQ-5 asks for two
/// minutes at least.
mod silence {
    use std::time::Duration;

    /// Both sides closed, or a reset: late segments still pass.
    pub const TCP_CLOSED: Duration = Duration::from_secs(10);
    /// One side closed.
    pub const TCP_CLOSING: Duration = Duration::from_secs(10 * 60);
    /// No answer yet.
    pub const TCP_OPENING: Duration = Duration::from_secs(60);
    /// Established.
    pub const TCP: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
    /// No answer yet.
    pub const UDP_OPENING: Duration = Duration::from_secs(30);
    /// Answered.
    pub const UDP: Duration = Duration::from_secs(180);
    /// Echo.
    pub const ICMP: Duration = Duration::from_secs(30);
    /// Denied in its midst by a new generation.
    pub const DENIED: Duration = Duration::from_secs(5);
    /// No answer yet, while the table or the agent's share fills up: longer than any handshake takes.
    pub const PRESSED: Duration = Duration::from_secs(4);
}

/// The flow table.
#[derive(Debug)]
pub struct Flows {
    map: Mutex<HashMap<MapData, Plain<FlowKey>, Plain<Flow>>>,
    /// The same map, for whole walks.
    walked: OwnedFd,
    shares: Shares,
    /// The program that judges a flow again.
    confirm: OwnedFd,
    conntrack: Conntrack,
    /// As last counted.
    live: AtomicU64,
    /// The generation that every flow has been judged at.
    confirmed: AtomicU64,
    is_pressed: AtomicBool,
}

impl Flows {
    /// Reaches for the maps, which stay in the object. Opens the kernel's connection tracking in this thread's network
    /// namespace.
    ///
    /// # Errors
    /// If one is missing or of another layout.
    pub fn new(objects: &Objects) -> Result<Self> {
        let flows = MapData::from_fd(object::descriptor(objects, map::FLOWS)?)?;
        Ok(Flows {
            walked: object::descriptor(objects, map::FLOWS)?,
            shares: Shares::new(&object::descriptor(objects, map::SHARES)?)
                .context("cannot map the agents' shares of the flow table")?,
            confirm: object::program_descriptor(objects, program::CONFIRM)?,
            conntrack: Conntrack::open().context("cannot reach connection tracking")?,
            map: Mutex::new(HashMap::try_from(Map::from_map_data(flows)?)?),
            live: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            is_pressed: AtomicBool::new(false),
        })
    }

    /// Flows at the last sweep.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// Flows of `agent`, with those of an agent that shares its place.
    #[must_use]
    pub fn share(&self, agent: u32) -> u64 {
        self.shares.live(agent)
    }

    /// Every flow, as `visit` sees it.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn each(&self, mut visit: impl FnMut(&FlowKey, &Flow)) -> Result<()> {
        let mut walk = Walk::<FlowKey, Flow>::new(self.walked.as_fd());
        while let Some(flows) = walk.advance()? {
            flows.for_each(|(key, flow)| visit(key, flow));
        }
        Ok(())
    }

    /// Removes the flows for which `is_over`, which also hears whether room is short, ends what the kernel
    /// tracks of them, and gives them.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn remove(&self, is_over: impl Fn(&FlowKey, &Flow, bool) -> bool) -> Result<Vec<(FlowKey, Flow)>> {
        // One sweep at a time: what one removed the other would miss.
        let mut map = self.map.lock();
        let table_pressed = self.live() >= PRESSED_FLOWS;
        let (before, since_ns) = (self.shares.snapshot(), monotonic_ns());
        let mut counted = vec![0; before.len()];
        let (mut over, mut live, mut is_pressed) = (Vec::new(), 0, table_pressed);
        self.each(|key, flow| {
            let index = shares::index(flow.agent);
            if flow.created_ns <= since_ns
                && let Some(count) = counted.get_mut(index)
            {
                *count += 1;
            }
            let share_pressed = before.get(index).is_some_and(|share| *share >= PRESSED_SHARE);
            is_pressed |= share_pressed;
            if is_over(key, flow, table_pressed || share_pressed) {
                over.push((*key, *flow));
            } else {
                live += 1;
            }
        })?;
        self.shares.heal(&before, &counted);
        over.retain(|(key, flow)| match map.remove(&Plain(*key)) {
            Ok(()) => {
                self.shares.take_off(flow.agent);
                true
            }
            Err(error) => {
                if !is_missing(&error) {
                    tracing::error!(%error, "cannot remove a flow");
                }
                false
            }
        });
        drop(map);
        // What ends in a socket of this machine ends with that socket.
        let forwarded = over.iter().filter(|(_, flow)| matches!(flow.action, action::DIRECT | action::DENY));
        if let Err(error) = self.conntrack.end(forwarded.map(|(key, _)| key)) {
            // They end by their own time-outs.
            tracing::warn!(%error, "cannot end tracked connections");
        }
        self.live.store(live, Ordering::Relaxed);
        self.is_pressed.store(is_pressed, Ordering::Relaxed);
        Ok(over)
    }

    /// Judges flows again that were idle since `generation` became live, so that those it denies end without
    /// waiting for a packet; gives how many it denied. A bounded number in one go.
    ///
    /// # Errors
    /// If the map can't be read, or the program can't run.
    pub fn confirm(&self, generation: u64) -> Result<usize> {
        if generation == 0 || self.confirmed.load(Ordering::Relaxed) == generation {
            return Ok(0);
        }
        let mut stale = Vec::new();
        self.each(|key, flow| {
            // Sockets of this machine are nobody's by their address: each of their packets is judged by whose
            // they are, and nothing but their packets goes on.
            let is_ours = matches!(key.ifindex, IFINDEX_LOCAL | IFINDEX_DIAL);
            let is_stale =
                flow.generation != generation && !matches!(flow.action, action::LOCAL | action::DENY);
            if is_stale && !is_ours && stale.len() < CONFIRM_MAX {
                stale.push(*key);
            }
        })?;
        let mut denied = 0;
        let mut frame = vec![0; CONFIRM_KEY_OFFSET + size_of::<FlowKey>()];
        for key in &stale {
            if let Some(place) = frame.get_mut(CONFIRM_KEY_OFFSET..) {
                place.copy_from_slice(bpf::bytes(key));
            }
            denied += usize::from(bpf::test_run(&self.confirm, &frame)? != 0);
        }
        if stale.len() < CONFIRM_MAX {
            self.confirmed.store(generation, Ordering::Relaxed);
        }
        Ok(denied)
    }
}

fn is_missing(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// Whether a flow has been silent for longer than its state allows, which is less while room is short.
#[must_use]
pub fn is_over(key: &FlowKey, flow: &Flow, is_pressed: bool, now_ns: u64) -> bool {
    // For TCP the agent's next segment completes the handshake: a SYN alone is answered by the listener.
    let is_answered = flow.rx_packets > 0 && (key.protocol != protocol::TCP || flow.tx_packets > 1);
    let has = |flag| flow.flags & flag == flag;
    let allowed = if flow.action == action::DENY {
        silence::DENIED
    } else {
        match key.protocol {
            protocol::TCP if has(flow_flag::RST) || has(flow_flag::FIN_TX | flow_flag::FIN_RX) => {
                silence::TCP_CLOSED
            }
            protocol::TCP if has(flow_flag::FIN_TX) || has(flow_flag::FIN_RX) => silence::TCP_CLOSING,
            protocol::TCP if is_answered => silence::TCP,
            _ if is_pressed && !is_answered => silence::PRESSED,
            protocol::TCP => silence::TCP_OPENING,
            protocol::UDP if is_answered => silence::UDP,
            other if protocol::is_named_only(other) && is_answered => silence::UDP,
            protocol::UDP => silence::UDP_OPENING,
            _ => silence::ICMP,
        }
    };
    Duration::from_nanos(now_ns.saturating_sub(flow.last_ns)) > allowed
}

/// Forgets learned addresses that have expired and that no live flow goes by.
fn forget(flows: &Flows, learned: &Mutex<LearnedMap>) -> Result<()> {
    let now_ns = monotonic_ns();
    if !learned.lock().has_expired(now_ns) {
        return Ok(());
    }
    let mut in_use = HashSet::new();
    flows.each(|key, flow| in_use.extend(learned::of_flow(key, flow)))?;
    learned.lock().expire(now_ns, &in_use)
}

/// Sweeps until `stop`. `live` tells the live generation.
pub async fn sweep(
    (flows, learned, buckets): (Arc<Flows>, Arc<Mutex<LearnedMap>>, Arc<Mutex<Buckets>>),
    names: Arc<Names>,
    spool: Arc<Spool>,
    live: impl Fn() -> u64,
    stop: CancellationToken,
) {
    loop {
        let is_pressed = flows.is_pressed.load(Ordering::Relaxed);
        let pause = if is_pressed { SWEEP_INTERVAL_PRESSED } else { SWEEP_INTERVAL };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let generation = live();
        let swept = tokio::task::block_in_place(|| {
            let denied = flows.confirm(generation)?;
            let now_ns = monotonic_ns();
            Ok::<_, anyhow::Error>((
                denied,
                flows.remove(|key, flow, is_pressed| is_over(key, flow, is_pressed, now_ns))?,
            ))
        });
        if let Err(error) = tokio::task::block_in_place(|| forget(&flows, &learned)) {
            tracing::error!("cannot forget learned addresses: {error:#}");
        }
        if let Err(error) = tokio::task::block_in_place(|| buckets.lock().sweep(monotonic_ns())) {
            tracing::error!("cannot sweep the token buckets: {error:#}");
        }
        match swept {
            Ok((denied, ended)) => {
                if denied > 0 {
                    tracing::info!(denied, generation, "idle flows may not go on");
                }
                for record in ended.iter().filter_map(|(key, flow)| names.outcome(key, flow)) {
                    spool.push(record);
                }
            }
            Err(error) => tracing::error!("cannot sweep the flow table: {error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(protocol: u8, rx_packets: u64, flags: u16, action: u16, silent_s: u64, want: bool) {
        judge(protocol, rx_packets, flags, action, silent_s, false, want);
    }

    #[track_caller]
    fn judge(
        protocol: u8,
        rx_packets: u64,
        flags: u16,
        action: u16,
        silent_s: u64,
        is_pressed: bool,
        want: bool,
    ) {
        let key = FlowKey {
            source: [0; 16],
            destination: [0; 16],
            source_port_be: 0,
            destination_port_be: 0,
            ifindex: 1,
            protocol,
            pad: [0; 3],
        };
        let tx_packets = 1 + rx_packets / 2;
        let flow = Flow { last_ns: 1, tx_packets, rx_packets, flags, action, ..Flow::default() };
        let now_ns = 1 + silent_s * 1_000_000_000;
        assert_eq!(is_over(&key, &flow, is_pressed, now_ns), want, "{protocol} {flags} {silent_s}");
    }

    #[test]
    fn silence_is_judged_by_protocol_and_state() {
        let both = flow_flag::FIN_TX | flow_flag::FIN_RX;
        check(protocol::TCP, 2, 0, action::STEER, 7200, false);
        check(protocol::TCP, 2, 0, action::STEER, 7500, true);
        // A SYN that was answered, and no more.
        check(protocol::TCP, 1, 0, action::STEER, 61, true);
        check(protocol::TCP, 0, 0, action::STEER, 61, true);
        check(protocol::TCP, 1, flow_flag::FIN_TX, action::STEER, 61, false);
        check(protocol::TCP, 1, both, action::STEER, 9, false);
        check(protocol::TCP, 1, both, action::STEER, 11, true);
        check(protocol::TCP, 1, flow_flag::RST, action::DIRECT, 11, true);
        check(protocol::TCP, 1, 0, action::DENY, 6, true);
        check(protocol::UDP, 0, 0, action::DIRECT, 31, true);
        check(protocol::UDP, 1, 0, action::DIRECT, 179, false);
        check(protocol::ICMP, 1, 0, action::DIRECT, 31, true);
    }

    #[test]
    fn where_room_is_short_what_nobody_answered_goes_first() {
        for number in [protocol::TCP, protocol::UDP, protocol::ICMP] {
            judge(number, 0, 0, action::DIRECT, 3, true, false);
            judge(number, 0, 0, action::DIRECT, 5, true, true);
            judge(number, 0, 0, action::DIRECT, 5, false, false);
            judge(number, 2, 0, action::DIRECT, 20, true, false);
        }
    }
}
