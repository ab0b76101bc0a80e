//! Listeners from the datapath role: asked for, accepted from as it says, replaced when another takes its place,
//! and given back before this process ends.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clawgress_api::handover::{self, Handover, ListenerKind};
use clawgress_api::socket::Servers;
use clawgress_ebpf_common::user::{DialTable, FlowTable};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::accept::{Accepting, Beat};
use crate::connection::Flows;
use crate::{dns, limit};

/// A listener among those of one role.
type Key = (ListenerKind, SocketAddr);

/// What is accepted from.
#[derive(Debug)]
struct Listening {
    accepting: Arc<Accepting>,
    loops: JoinSet<()>,
    /// The loops of the current role.
    current: HashMap<Key, Loop>,
    /// For each role that is gone and whose listeners are kept, what ends that sooner.
    former: VecDeque<CancellationToken>,
    flows: Arc<Flows>,
    /// Why there are no listeners, if this process is refused.
    refused: watch::Sender<Option<String>>,
}

/// A loop that accepts.
#[derive(Debug)]
struct Loop {
    stop: CancellationToken,
    beat: Beat,
}

/// Accepts from whatever listeners the role at `path` hands over, if it is one of `servers`, until `stop`; then
/// gives them back, and ends when what had come to them is accepted. While the role is away, the last ones
/// stay open; one that refuses this process ends them, and `refused` has why until another accepts it. The
/// connection it gives is to be dropped when the process has nothing left to do.
pub async fn follow(
    path: PathBuf,
    servers: Servers,
    accepting: Arc<Accepting>,
    refused: watch::Sender<Option<String>>,
    stop: CancellationToken,
) -> Option<UnixStream> {
    let mut listening = Listening {
        accepting,
        loops: JoinSet::new(),
        current: HashMap::new(),
        former: VecDeque::new(),
        flows: Arc::new(Flows::default()),
        refused,
    };
    let snapshots = Arc::clone(&listening.accepting.serving.gateway.snapshots);
    let _ = tokio::time::timeout(limit::FIRST_SNAPSHOT, stop.run_until_cancelled(snapshots.ready())).await;
    let mut pause = limit::REDIAL_FIRST;
    let connected = loop {
        let asked = tokio::select! {
            asked = ask(&path, &servers) => asked,
            () = stop.cancelled() => break None,
        };
        let taken = asked.and_then(|(stream, handover, descriptors)| {
            listening.replace(handover, descriptors)?;
            // Not before there is somebody to answer.
            if listening.serves_dns() {
                handover::say_serves_dns(&stream)?;
            }
            Ok(stream)
        });
        match taken {
            Ok(stream) => {
                pause = limit::REDIAL_FIRST;
                tokio::select! {
                    () = listening.follow(&stream) => {
                        tracing::warn!("the datapath role is gone; its listeners stay open");
                    }
                    () = stop.cancelled() => break Some(stream),
                }
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "no listeners handed over yet");
                if let Some(refusal) = handover::refusal(&error) {
                    listening.refuse(&refusal.refused).await;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => break None,
        }
        pause = (pause * 2).min(limit::REDIAL_MAX);
    };
    listening.give_back(connected).await
}

async fn ask(path: &Path, servers: &Servers) -> io::Result<(UnixStream, Handover, Vec<OwnedFd>)> {
    let stream = servers.connect(path).await?;
    let (handover, descriptors) = handover::receive(&stream).await?;
    Ok((stream, handover, descriptors))
}

// === impl Listening ===

impl Listening {
    /// Accepts from what a role hands over that was not known before, instead of from the former one's.
    fn replace(&mut self, handover: Handover, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let count = handover.listeners.len();
        let mut maps = descriptors.into_iter();
        let listeners: Vec<OwnedFd> = maps.by_ref().take(count).collect();
        let table = match handover.flow_table.then(|| maps.next()).flatten() {
            Some(descriptor) => Some(FlowTable::from_fd(descriptor)?),
            None => None,
        };
        let dials = match handover.dials.then(|| maps.next()).flatten() {
            Some(descriptor) => Some(DialTable::from_fd(descriptor)?),
            None => None,
        };
        let gateway = &self.accepting.serving.gateway;
        gateway.own.refresh();
        gateway.dials.replace(dials);
        self.flows = Arc::new(Flows::new(table, handover.interfaces));
        self.keep_former();
        self.set(&handover.listeners, listeners);
        self.refused.send_if_modified(|refused| refused.take().is_some());
        Ok(())
    }

    /// What there is to accept from is of a role that is gone. Handshakes that have begun at its steered listeners end
    /// there; the proxy's listen at the same addresses as the next role's, and what waits there moves to those when
    /// they close.
    fn keep_former(&mut self) {
        if self.current.is_empty() {
            return;
        }
        let hurry = CancellationToken::new();
        for ((kind, _), former) in self.current.drain() {
            let (stop, hurry) = (former.stop, hurry.clone());
            if kind == ListenerKind::Transparent {
                self.loops.spawn(async move {
                    let _ = tokio::time::timeout(limit::HANDOVER_FORMER, hurry.cancelled()).await;
                    stop.cancel();
                });
            } else {
                retire(stop, &mut self.loops);
            }
        }
        self.former.push_back(hurry);
        while self.former.len() > limit::HANDOVER_FORMER_MAX {
            self.former.pop_front().iter().for_each(CancellationToken::cancel);
        }
    }

    /// Takes no connections any more: whoever governs this machine now doesn't want them here. What waits in the
    /// queues ends with them, unserved.
    async fn refuse(&mut self, why: &str) {
        if !self.loops.is_empty() {
            tracing::error!(why, "this process takes no connections any more: the datapath role refuses it");
        }
        self.current.clear();
        self.former.clear();
        self.loops.shutdown().await;
        self.refused.send_if_modified(|refused| {
            let is_new = refused.as_deref() != Some(why);
            *refused = Some(why.to_owned());
            is_new
        });
    }

    /// Takes what the role says, and tells it while all loops come round, until it is gone.
    async fn follow(&mut self, stream: &UnixStream) {
        let mut looks = tokio::time::interval(handover::ALIVE_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                received = handover::receive(stream) => {
                    let Ok((handover, descriptors)) = received else { return };
                    tracing::info!(
                        interfaces = ?handover.interfaces,
                        "the datapath role has told what there is now"
                    );
                    self.flows.interfaces.store(handover.interfaces.into());
                    self.set(&handover.listeners, descriptors);
                }
                _ = looks.tick() => {
                    if self.is_alive() && handover::say_alive(stream).is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Whether it answers steered DNS.
    fn serves_dns(&self) -> bool {
        self.current.keys().any(|(kind, _)| *kind == ListenerKind::DnsDatagram)
    }

    /// Whether every loop has come round since this was asked last.
    fn is_alive(&self) -> bool {
        // Each is asked, whatever the others say.
        self.current.values().filter(|l| !l.beat.take()).count() == 0
    }

    /// Accepts from these listeners and no others.
    fn set(&mut self, listeners: &[handover::Listener], descriptors: Vec<OwnedFd>) {
        while self.loops.try_join_next().is_some() {}
        let mut wanted = HashMap::new();
        for (listener, descriptor) in listeners.iter().zip(descriptors) {
            let key = (listener.kind, listener.address);
            let accepted = match self.current.remove(&key) {
                Some(known) => Ok(known),
                None => self.accept(listener, descriptor),
            };
            match accepted {
                Ok(accepted) => drop(wanted.insert(key, accepted)),
                Err(error) => tracing::error!(%error, ?key, "cannot accept from what was handed over"),
            }
        }
        for (_, former) in std::mem::replace(&mut self.current, wanted) {
            retire(former.stop, &mut self.loops);
        }
        // A connection can't come back to a socket of datagrams.
        let streams = self.current.keys().filter(|(kind, _)| *kind != ListenerKind::DnsDatagram);
        let addresses = streams.map(|(_, address)| *address);
        self.accepting.serving.gateway.own.set_listeners(addresses);
    }

    fn accept(&mut self, listener: &handover::Listener, descriptor: OwnedFd) -> io::Result<Loop> {
        tracing::info!(kind = ?listener.kind, address = %listener.address, "accepting");
        let (accepting, flows) = (Arc::clone(&self.accepting), Arc::clone(&self.flows));
        let (stop, beat) = (CancellationToken::new(), Beat::default());
        if listener.kind == ListenerKind::DnsDatagram {
            let socket = dns::Datagrams::new(descriptor, listener.address.is_ipv6())?;
            let gateway = Arc::clone(&accepting.serving.gateway);
            self.loops.spawn(dns::datagrams(gateway, socket, flows, stop.clone(), beat.clone()));
            return Ok(Loop { stop, beat });
        }
        let socket = StdListener::from(descriptor);
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket)?;
        self.loops.spawn(accepting.accept(listener.kind, socket, flows, stop.clone(), beat.clone()));
        Ok(Loop { stop, beat })
    }

    /// Has new connections go to others, and accepts what has come before that.
    async fn give_back(mut self, connected: Option<UnixStream>) -> Option<UnixStream> {
        // Others accept from the same ones, or the datapath role keeps them for whoever comes next.
        for (_, shared) in self.current.extract_if(|(kind, _), _| *kind != ListenerKind::Transparent) {
            shared.stop.cancel();
        }
        let connected = match connected {
            Some(stream) => {
                let withdrawn = tokio::time::timeout(limit::WITHDRAW, withdraw(stream)).await;
                let withdrawn = withdrawn.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                withdrawn
                    .inspect_err(|error| tracing::warn!(%error, "the listeners can't be given back"))
                    .ok()
            }
            None => None,
        };
        for (_, own) in self.current.drain() {
            retire(own.stop, &mut self.loops);
        }
        for former in self.former.drain(..) {
            retire(former, &mut self.loops);
        }
        while self.loops.join_next().await.is_some() {}
        connected
    }
}

/// Says that nothing new is wanted, and waits until so it is.
async fn withdraw(mut stream: UnixStream) -> io::Result<UnixStream> {
    stream.write_all(&[handover::DRAINS]).await?;
    loop {
        let (handover, _) = handover::receive(&stream).await?;
        if handover.listeners.is_empty() {
            return Ok(stream);
        }
    }
}

/// Ends a loop a little later, so that what is on its way is still served.
fn retire(former: CancellationToken, loops: &mut JoinSet<()>) {
    loops.spawn(async move {
        tokio::time::sleep(limit::HANDOVER_OVERLAP).await;
        former.cancel();
    });
}
