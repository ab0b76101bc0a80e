//! Handing listeners and the flow table to L7. A listener takes steered connections only while some L7
//! is there to accept them: without one, packets are dropped (`listener_missing`), not queued.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use aya::maps::{MapData, SockMap};
use clawgress_api::handover::{self, Handover, ListenerKind};
use clawgress_ebpf_common::listener;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::listeners::Listener;
use super::modes::{Failure, Modes};
use super::proxy::Proxy;
use crate::peer::Access;

/// L7 processes at once: one a core on a large machine, and their successors during an upgrade.
const L7_MAX: usize = 64;
/// For a handover to be taken. It waits only for a peer that has let many of them lie.
const SEND_TIME_MAX: Duration = Duration::from_secs(5);

/// What there is to hand over.
#[derive(Debug)]
pub struct Offer {
    listeners: Vec<Listener>,
    flows: Option<OwnedFd>,
    /// Indices of the agents' interfaces; L7 is told when they change.
    interfaces: watch::Sender<Vec<u32>>,
    slots: Option<Mutex<Slots>>,
    proxy: Option<Arc<Proxy>>,
}

/// The socket map, and how many L7 processes hold the listeners in it.
struct Slots {
    map: SockMap<MapData>,
    holders: Holders,
    modes: Arc<Modes>,
}

/// L7 processes by what they serve.
#[derive(Debug, Default)]
struct Holders {
    streams: usize,
    dns: usize,
}

/// What a loan is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loan {
    Streams,
    Dns,
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots").field("holders", &self.holders).finish_non_exhaustive()
    }
}

impl Offer {
    /// Listeners alone, for the mode without kernel plane.
    #[must_use]
    pub fn proxies(listeners: Vec<Listener>) -> Self {
        Offer { listeners, flows: None, interfaces: watch::Sender::default(), slots: None, proxy: None }
    }

    /// Everything: listeners, the flow table, the agents' interfaces, the map that steers, and the proxy's
    /// cgroup if it has one.
    #[must_use]
    pub fn kernel(
        listeners: Vec<Listener>,
        flows: OwnedFd,
        interfaces: Vec<u32>,
        map: SockMap<MapData>,
        proxy: Option<Arc<Proxy>>,
        modes: Arc<Modes>,
    ) -> Self {
        let slots = Some(Mutex::new(Slots { map, holders: Holders::default(), modes }));
        Offer { listeners, flows: Some(flows), interfaces: watch::Sender::new(interfaces), slots, proxy }
    }

    /// Notes that no L7 has come since the start, if so it is and `is_late`.
    pub fn check(&self, is_late: bool) {
        if let Some(slots) = &self.slots {
            let slots = slots.lock();
            if slots.holders.streams == 0 && is_late {
                slots.modes.turn(Failure::L7, true);
            }
        }
    }

    /// The agents' interfaces have these indices now: whoever holds the listeners is told.
    pub fn follow(&self, interfaces: Vec<u32>) {
        self.interfaces.send_if_modified(|known| {
            let is_new = *known != interfaces;
            *known = interfaces;
            is_new
        });
    }

    fn document(&self, interfaces: &[u32]) -> Handover {
        Handover {
            listeners: self.listeners.iter().map(Listener::document).collect(),
            flow_table: self.flows.is_some(),
            dials: self.proxy.is_some(),
            interfaces: interfaces.to_vec(),
        }
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let flows = self.flows.iter().map(|f| f.as_fd());
        let dials = self.proxy.iter().map(|p| p.table().as_fd());
        self.listeners.iter().map(|l| l.as_fd()).chain(flows).chain(dials).collect()
    }

    /// One L7 more or less. The first takes the slots, the last gives them up.
    fn hold(&self, loan: Loan, is_new: bool) {
        let Some(slots) = &self.slots else { return };
        let Slots { map, holders, modes } = &mut *slots.lock();
        let holders = match loan {
            Loan::Streams => &mut holders.streams,
            Loan::Dns => &mut holders.dns,
        };
        let before = *holders;
        *holders = if is_new { before + 1 } else { before.saturating_sub(1) };
        if *holders == 0
            && loan == Loan::Streams
            && let Some(proxy) = &self.proxy
        {
            proxy.forget();
        }
        for listener in &self.listeners {
            let Some(slot) = slot(listener, loan) else { continue };
            let result = match (before, *holders) {
                (0, 1) => map.set(slot, listener.socket(), 0),
                (1, 0) => map.clear_index(&slot),
                _ => Ok(()),
            };
            if let Err(error) = result {
                tracing::error!(%error, slot, "cannot change a listener slot");
            }
        }
        if loan == Loan::Streams {
            modes.turn(Failure::L7, *holders == 0);
        }
    }
}

/// Where a listener stands, if it is of this loan.
fn slot(listener: &Listener, loan: Loan) -> Option<u32> {
    let v6 = u32::from(listener.address().is_ipv6());
    match (loan, listener.kind()) {
        (Loan::Streams, ListenerKind::Transparent) => {
            Some(if v6 == 0 { listener::TCP4 } else { listener::TCP6 })
        }
        (Loan::Dns, ListenerKind::DnsStream) => Some(listener::DNS_TCP + v6),
        (Loan::Dns, ListenerKind::DnsDatagram) => Some(listener::DNS_UDP + v6),
        _ => None,
    }
}

/// Serves until `stop`.
///
/// # Errors
/// Never by a peer's doing; if the socket itself fails.
pub async fn serve(
    listener: UnixListener,
    access: Access,
    offer: Arc<Offer>,
    stop: CancellationToken,
) -> Result<()> {
    let mut peers = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(_) = peers.join_next(), if !peers.is_empty() => {}
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                match access.check(&stream) {
                    Ok(peer) if peers.len() < L7_MAX => {
                        tracing::info!(uid = peer.uid, pid = peer.pid, "l7 takes the listeners");
                        peers.spawn(hand(stream, peer.pid, Arc::clone(&offer)));
                    }
                    Ok(_) => tracing::warn!("{L7_MAX} l7 processes are connected already"),
                    Err(error) => tracing::warn!(%error, "refused a connection"),
                }
            }
        }
    }
}

/// Hands over, and holds the slots for as long as the peer stays.
async fn hand(mut stream: UnixStream, pid: Option<i32>, offer: Arc<Offer>) {
    if let Some(proxy) = &offer.proxy
        && let Err(error) = tokio::task::block_in_place(|| proxy.admit(pid))
    {
        tracing::error!("l7 gets no listeners: {error:#}");
        return;
    }
    let mut interfaces = offer.interfaces.subscribe();
    if !send(&stream, &offer, &mut interfaces).await {
        return;
    }
    offer.hold(Loan::Streams, true);
    let (mut word, mut serves_dns) = ([0; 1], false);
    loop {
        tokio::select! {
            read = stream.read(&mut word) => match read {
                Ok(1) if word == [handover::SERVES_DNS] && !serves_dns => {
                    serves_dns = true;
                    offer.hold(Loan::Dns, true);
                    continue;
                }
                // Its end, or a word out of turn, ends the loan.
                _ => break,
            },
            Ok(()) = interfaces.changed() => {}
        }
        if !send(&stream, &offer, &mut interfaces).await {
            break;
        }
    }
    offer.hold(Loan::Streams, false);
    if serves_dns {
        offer.hold(Loan::Dns, false);
    }
    tracing::info!("l7 gave the listeners back");
}

/// Hands over what there is now; whether it could be. A peer that doesn't take it in time is none.
async fn send(stream: &UnixStream, offer: &Offer, interfaces: &mut watch::Receiver<Vec<u32>>) -> bool {
    let document = offer.document(&interfaces.borrow_and_update());
    let descriptors = offer.descriptors();
    let sent = tokio::time::timeout(SEND_TIME_MAX, handover::send(stream, &document, &descriptors)).await;
    match sent.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "cannot hand the listeners over");
            false
        }
    }
}
