//! Live flows in user space: those that ended are removed and their end told. The kernel programs never
//! remove a flow, so that no end goes untold.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use aya::maps::{HashMap, MapData, MapError};
use clawgress_ebpf_common::{Flow, FlowKey, action, bound, flow_flag, protocol};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::bpf::Plain;
use super::names::{Names, monotonic_ns};
use super::spool::Spool;

/// How often the table is swept.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);
/// Records looked at in one sweep: the whole table, and as much again because the walk starts over when
/// the entry it stands on is removed.
const SWEEP_MAX: usize = 2 * bound::FLOWS_MAX as usize;

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
}

/// The flow table.
#[derive(Debug)]
pub struct Flows {
    map: Mutex<HashMap<MapData, Plain<FlowKey>, Plain<Flow>>>,
    /// As last counted.
    live: std::sync::atomic::AtomicU64,
}

impl Flows {
    /// Wraps the map.
    #[must_use]
    pub fn new(map: HashMap<MapData, Plain<FlowKey>, Plain<Flow>>) -> Self {
        Flows { map: Mutex::new(map), live: std::sync::atomic::AtomicU64::new(0) }
    }

    /// Flows at the last sweep.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.live.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Removes the flows for which `is_over`, and gives them.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn remove(&self, is_over: impl Fn(&FlowKey, &Flow) -> bool) -> Result<Vec<(FlowKey, Flow)>> {
        let mut map = self.map.lock();
        let (mut over, mut live) = (Vec::new(), 0);
        for entry in map.iter().take(SWEEP_MAX) {
            let (key, flow) = match entry {
                Ok(entry) => entry,
                Err(error) if is_missing(&error) => continue,
                Err(error) => return Err(error.into()),
            };
            if is_over(&key.0, &flow.0) {
                over.push((key.0, flow.0));
            } else {
                live += 1;
            }
        }
        over.retain(|(key, _)| match map.remove(&Plain(*key)) {
            Ok(()) => true,
            Err(error) => {
                if !is_missing(&error) {
                    tracing::error!(%error, "cannot remove a flow");
                }
                false
            }
        });
        self.live.store(live, std::sync::atomic::Ordering::Relaxed);
        Ok(over)
    }
}

fn is_missing(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// Whether a flow has been silent for longer than its state allows.
#[must_use]
pub fn is_over(key: &FlowKey, flow: &Flow, now_ns: u64) -> bool {
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
            protocol::TCP => silence::TCP_OPENING,
            protocol::UDP if is_answered => silence::UDP,
            protocol::UDP => silence::UDP_OPENING,
            _ => silence::ICMP,
        }
    };
    Duration::from_nanos(now_ns.saturating_sub(flow.last_ns)) > allowed
}

/// Sweeps until `stop`.
pub async fn sweep(flows: Arc<Flows>, names: Arc<Names>, spool: Arc<Spool>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now_ns = monotonic_ns();
        let ended = tokio::task::block_in_place(|| flows.remove(|key, flow| is_over(key, flow, now_ns)));
        match ended {
            Ok(ended) => {
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
        assert_eq!(is_over(&key, &flow, 1 + silent_s * 1_000_000_000), want, "{protocol} {flags} {silent_s}");
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
}
