//! Handing listeners and the flow table to L7. Each process has steered connections come to listeners of its
//! own, and only while it is there to accept them: without any, packets are dropped (`listener_missing`), not
//! queued. The explicit proxy's listeners are shared: whoever is there accepts.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use aya::maps::{MapData, SockMap};
use clawgress_api::handover::{self, Handover};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::listeners::{self, Listener};
use super::modes::{Failure, Modes};
use super::proxy::Proxy;
use super::steering::{Id, LEFT_DESCRIPTORS_MAX, Steering};
use crate::peer::Access;

/// L7 processes connected at once: those that take connections, those that drain, those that wait for a place.
const L7_MAX: usize = 64;
/// Addresses of the explicit proxy: what a message holds besides a process's own listeners, those of processes that
/// take no more, the sockets of DNS, and the two maps.
pub const PROXIES_MAX: usize = handover::DESCRIPTORS_MAX - 2 - LEFT_DESCRIPTORS_MAX - 4 - 2;
/// For a handover to be taken. It waits only for a peer that has let many of them lie.
const SEND_TIME_MAX: Duration = Duration::from_secs(5);

/// What there is to hand over.
#[derive(Debug)]
pub struct Offer {
    /// What every process gets: the explicit proxy's listeners, and the sockets of DNS.
    shared: Vec<Listener>,
    flows: Option<OwnedFd>,
    /// What a process is told when it changes.
    told: watch::Sender<Told>,
    steering: Option<Mutex<Steering>>,
    modes: Option<Arc<Modes>>,
    /// The connection of each process, by its id: it has one, the latest. As many as are connected at most.
    peers: Mutex<BTreeMap<i32, Peer>>,
    proxy: Option<Arc<Proxy>>,
}

/// A process's connection.
#[derive(Clone, Debug, Default)]
struct Peer {
    /// Cancelled when the process has made another.
    outdated: CancellationToken,
    /// Cancelled when what it was lent is given back.
    ended: CancellationToken,
}

/// What became of processes.
#[derive(Debug, Default)]
pub struct Tally {
    hung: AtomicU64,
    refused: AtomicU64,
}

/// What changes while a process holds its listeners.
#[derive(Debug, Default)]
struct Told {
    /// Indices of the agents' interfaces.
    interfaces: Vec<u32>,
    /// Listeners of processes that take no more.
    left: Vec<Arc<Listener>>,
}

/// What one process holds.
#[derive(Debug)]
struct Loan {
    /// Its own listeners, until it drains.
    own: Vec<Arc<Listener>>,
    /// Its place, where connections are steered.
    id: Option<Id>,
    drains: bool,
    serves_dns: bool,
}

// === impl Tally ===

impl Tally {
    /// As counters, by name: those that are not zero.
    pub fn named(&self) -> impl Iterator<Item = (String, u64)> + use<> {
        let counts = [("l7_hung", &self.hung), ("l7_refused", &self.refused)];
        let counts = counts.map(|(name, count)| (name.to_owned(), count.load(Ordering::Relaxed)));
        counts.into_iter().filter(|(_, count)| *count > 0)
    }
}

// === impl Offer ===

impl Offer {
    /// Listeners alone, for the mode without kernel plane.
    #[must_use]
    pub fn proxies(shared: Vec<Listener>) -> Self {
        let (told, peers) = (watch::Sender::default(), Mutex::default());
        Offer { shared, flows: None, told, steering: None, modes: None, peers, proxy: None }
    }

    /// Everything: listeners, the flow table, the agents' interfaces, the map that steers, and the proxy's
    /// cgroup if it has one.
    #[must_use]
    pub fn kernel(
        shared: Vec<Listener>,
        flows: OwnedFd,
        interfaces: Vec<u32>,
        map: SockMap<MapData>,
        proxy: Option<Arc<Proxy>>,
        modes: Arc<Modes>,
    ) -> Self {
        let told = watch::Sender::new(Told { interfaces, left: Vec::new() });
        let (steering, peers) = (Some(Mutex::new(Steering::new(map))), Mutex::default());
        Offer { shared, flows: Some(flows), told, steering, modes: Some(modes), peers, proxy }
    }

    /// Notes that no L7 has come since the start, if so it is and `is_late`; closes what stayed open for
    /// handshakes long enough.
    pub fn check(&self, is_late: bool) {
        let (Some(steering), Some(modes)) = (&self.steering, &self.modes) else { return };
        let mut steering = steering.lock();
        if is_late && !steering.is_taken() {
            modes.turn(Failure::L7, true);
        }
        if steering.expire() {
            self.tell_left(&steering);
        }
    }

    /// The agents' interfaces have these indices now: whoever holds the listeners is told.
    pub fn follow(&self, interfaces: Vec<u32>) {
        self.told.send_if_modified(|told| {
            let is_new = told.interfaces != interfaces;
            told.interfaces = interfaces;
            is_new
        });
    }

    fn tell_left(&self, steering: &Steering) {
        let left = steering.left();
        self.told.send_if_modified(|told| {
            let is_same =
                told.left.len() == left.len() && told.left.iter().zip(&left).all(|(a, b)| Arc::ptr_eq(a, b));
            told.left = left;
            !is_same
        });
    }

    /// What a new process gets.
    ///
    /// # Errors
    /// If there is no place for it, or its listeners can't be opened.
    fn lend(&self) -> Result<Loan> {
        let mut loan = Loan { own: Vec::new(), id: None, drains: false, serves_dns: false };
        if let Some(steering) = &self.steering {
            loan.own = listeners::transparent()?.into_iter().map(Arc::new).collect();
            loan.id = Some(steering.lock().place(loan.own.clone())?);
        }
        Ok(loan)
    }

    /// It has what it was lent: new connections go to it.
    fn take(&self, loan: &Loan) {
        self.steer(|steering| loan.id.iter().for_each(|&id| steering.take(id)));
    }

    /// New connections go to others, and what it has left to accept as well.
    fn drain(&self, loan: &mut Loan) {
        loan.drains = true;
        loan.own.clear();
        let (id, served_dns) = (loan.id.take(), std::mem::take(&mut loan.serves_dns));
        self.steer(|steering| {
            id.into_iter().for_each(|id| steering.leave(id));
            if served_dns {
                steering.serve_dns(&self.shared, false);
            }
        });
    }

    /// It is gone.
    fn end(&self, mut loan: Loan) {
        self.drain(&mut loan);
    }

    /// The only connection of the process `pid` from now on: the one it had is ended. (A process of another pid
    /// namespace has no id here, and can't be told from others of its kind.)
    async fn meet(&self, pid: Option<i32>) -> Peer {
        let peer = Peer::default();
        let former = pid.filter(|pid| *pid > 0).and_then(|pid| self.peers.lock().insert(pid, peer.clone()));
        if let Some(former) = former {
            former.outdated.cancel();
            former.ended.cancelled().await;
        }
        peer
    }

    /// What the connection was lent is given back.
    fn part(&self, peer: &Peer) {
        peer.ended.cancel();
        self.peers.lock().retain(|_, peer| !peer.ended.is_cancelled());
    }

    /// The process `pid` has not shown for too long that it accepts.
    fn tell_hung(&self, pid: Option<i32>) {
        let Some(modes) = &self.modes else { return };
        modes.tally().hung.fetch_add(1, Ordering::Relaxed);
        let silent_s = handover::ALIVE_TIME_MAX.as_secs();
        modes.tell(&format!(
            "l7 process {} accepts nothing, and has said so for {silent_s} s by saying nothing: new connections go to others",
            pid.map_or("of unknown id".to_owned(), |pid| pid.to_string())
        ));
    }

    /// The process `pid` gets nothing, and is told why.
    async fn refuse(&self, stream: &UnixStream, pid: Option<i32>, why: &anyhow::Error) {
        tracing::error!(pid, "l7 gets no listeners: {why:#}");
        if let Some(modes) = &self.modes {
            modes.tally().refused.fetch_add(1, Ordering::Relaxed);
        }
        // Who doesn't wait for it finds it in this role's log.
        let _ = tokio::time::timeout(SEND_TIME_MAX, handover::refuse(stream, &format!("{why:#}"))).await;
    }

    fn steer(&self, change: impl FnOnce(&mut Steering)) {
        let (Some(steering), Some(modes)) = (&self.steering, &self.modes) else { return };
        let mut steering = steering.lock();
        change(&mut steering);
        modes.turn(Failure::L7, !steering.is_taken());
        self.tell_left(&steering);
    }

    /// Hands over what there is for the process now; whether it could be. A peer that doesn't take it in time
    /// is none.
    async fn send(&self, stream: &UnixStream, loan: &Loan, told: &mut watch::Receiver<Told>) -> bool {
        let (interfaces, left) = {
            let told = told.borrow_and_update();
            (told.interfaces.clone(), told.left.clone())
        };
        let own = loan.own.iter().chain(&left).map(Arc::as_ref);
        let listeners: Vec<&Listener> =
            if loan.drains { Vec::new() } else { own.chain(&self.shared).collect() };
        let document = Handover {
            listeners: listeners.iter().map(|l| l.document()).collect(),
            flow_table: self.flows.is_some(),
            dials: self.proxy.is_some(),
            interfaces,
        };
        let flows = self.flows.iter().map(|f| f.as_fd());
        let dials = self.proxy.iter().map(|p| p.table().as_fd());
        let descriptors: Vec<BorrowedFd<'_>> =
            listeners.iter().map(|l| l.as_fd()).chain(flows).chain(dials).collect();
        let sent = tokio::time::timeout(SEND_TIME_MAX, handover::send(stream, &document, &descriptors)).await;
        match sent.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot hand the listeners over");
                false
            }
        }
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

/// Hands over, and steers to the peer for as long as it stays, shows that it accepts, and does not drain.
async fn hand(stream: UnixStream, pid: Option<i32>, offer: Arc<Offer>) {
    let peer = offer.meet(pid).await;
    lend(stream, pid, &peer, &offer).await;
    offer.part(&peer);
}

async fn lend(mut stream: UnixStream, pid: Option<i32>, peer: &Peer, offer: &Offer) {
    let admitted = match &offer.proxy {
        Some(proxy) => tokio::task::block_in_place(|| proxy.admit(pid)),
        None => Ok(()),
    };
    let mut loan = match admitted.and_then(|()| offer.lend()) {
        Ok(loan) => loan,
        Err(error) => return offer.refuse(&stream, pid, &error).await,
    };
    let held = async {
        let mut told = offer.told.subscribe();
        if offer.send(&stream, &loan, &mut told).await {
            offer.take(&loan);
            hold(&mut stream, pid, offer, &mut loan, &mut told).await;
        }
    };
    tokio::select! {
        () = held => {}
        () = peer.outdated.cancelled() => tracing::info!(pid, "l7 has come by another connection"),
    }
    offer.end(loan);
    tracing::info!(pid, "l7 gave the listeners back");
}

/// Does what the peer says, and tells it what changes, to its end.
async fn hold(
    stream: &mut UnixStream,
    pid: Option<i32>,
    offer: &Offer,
    loan: &mut Loan,
    told: &mut watch::Receiver<Told>,
) {
    let mut word = [0; 1];
    let mut alive_until = Instant::now() + handover::ALIVE_TIME_MAX;
    loop {
        tokio::select! {
            // In this order: what was said in time counts, though this process came late to hear it.
            biased;
            read = stream.read(&mut word) => match (read, word) {
                (Ok(1), [handover::ALIVE]) => {
                    alive_until = Instant::now() + handover::ALIVE_TIME_MAX;
                    continue;
                }
                (Ok(1), [handover::SERVES_DNS]) if !loan.serves_dns && !loan.drains => {
                    loan.serves_dns = true;
                    offer.steer(|steering| steering.serve_dns(&offer.shared, true));
                    continue;
                }
                (Ok(1), [handover::DRAINS]) if !loan.drains => {
                    tracing::info!(pid, "l7 drains: new connections go to others");
                    offer.drain(loan);
                }
                // Its end, or a word out of turn, ends the loan.
                _ => return,
            },
            Ok(()) = told.changed(), if !loan.drains => {}
            // Who has no part, or drains, has nothing to lose.
            () = tokio::time::sleep_until(alive_until), if loan.id.is_some() => return offer.tell_hung(pid),
        }
        if !offer.send(stream, loan, told).await {
            return;
        }
    }
}
