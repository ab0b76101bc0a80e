//! Listeners from the datapath role: asked for, accepted from as it says, replaced when another takes its place,
//! and given back before this process ends.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use clawgress_api::handover::{self, Handover, ListenerKind};
use clawgress_api::socket::Servers;
use clawgress_ebpf_common::user::{DialTable, FlowTable};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::accept::Accepting;
use crate::connection::Flows;
use crate::limit;

/// A listener among those of one role.
type Key = (ListenerKind, SocketAddr);

/// What is accepted from.
#[derive(Debug)]
struct Listening {
    accepting: Arc<Accepting>,
    loops: JoinSet<()>,
    /// The loops of the current role, each with what ends it.
    current: HashMap<Key, CancellationToken>,
    flows: Arc<Flows>,
}

/// Accepts from whatever listeners the role at `path` hands over, if it is one of `servers`, until `stop`; then
/// gives them back, and ends when what had come to them is accepted. While the role is away, the last ones
/// stay open. The connection it gives is to be dropped when the process has nothing left to do.
pub async fn follow(
    path: PathBuf,
    servers: Servers,
    accepting: Arc<Accepting>,
    stop: CancellationToken,
) -> Option<UnixStream> {
    let mut listening = Listening {
        accepting,
        loops: JoinSet::new(),
        current: HashMap::new(),
        flows: Arc::new(Flows::default()),
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
            Err(error) => tracing::warn!(%error, path = %path.display(), "no listeners handed over yet"),
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
        self.flows = Arc::new(Flows { table, interfaces: ArcSwap::from_pointee(handover.interfaces) });
        for (_, former) in self.current.drain() {
            retire(former, &mut self.loops);
        }
        self.set(&handover.listeners, listeners);
        Ok(())
    }

    /// Takes what the role says, until it is gone.
    async fn follow(&mut self, stream: &UnixStream) {
        while let Ok((handover, descriptors)) = handover::receive(stream).await {
            tracing::info!(interfaces = ?handover.interfaces, "the datapath role has told what there is now");
            self.flows.interfaces.store(handover.interfaces.into());
            self.set(&handover.listeners, descriptors);
        }
    }

    /// Accepts from these listeners and no others.
    fn set(&mut self, listeners: &[handover::Listener], descriptors: Vec<OwnedFd>) {
        while self.loops.try_join_next().is_some() {}
        let mut wanted = HashMap::new();
        for (listener, descriptor) in listeners.iter().zip(descriptors) {
            // This version serves no DNS, and has not said that it does.
            if matches!(listener.kind, ListenerKind::DnsStream | ListenerKind::DnsDatagram) {
                continue;
            }
            let key = (listener.kind, listener.address);
            let stop = match self.current.remove(&key) {
                Some(stop) => Ok(stop),
                None => self.accept(listener, descriptor),
            };
            match stop {
                Ok(stop) => drop(wanted.insert(key, stop)),
                Err(error) => tracing::error!(%error, ?key, "cannot accept from what was handed over"),
            }
        }
        for (_, former) in std::mem::replace(&mut self.current, wanted) {
            retire(former, &mut self.loops);
        }
        let addresses = self.current.keys().map(|(_, address)| *address);
        self.accepting.serving.gateway.own.set_listeners(addresses);
    }

    fn accept(
        &mut self,
        listener: &handover::Listener,
        descriptor: OwnedFd,
    ) -> io::Result<CancellationToken> {
        let socket = StdListener::from(descriptor);
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket)?;
        tracing::info!(kind = ?listener.kind, address = %listener.address, "accepting");
        let (accepting, flows, stop) =
            (Arc::clone(&self.accepting), Arc::clone(&self.flows), CancellationToken::new());
        self.loops.spawn(accepting.accept(listener.kind, socket, flows, stop.clone()));
        Ok(stop)
    }

    /// Has new connections go to others, and accepts what has come before that.
    async fn give_back(mut self, connected: Option<UnixStream>) -> Option<UnixStream> {
        // Others accept from the same ones, or the datapath role keeps them for whoever comes next.
        for (_, shared) in self.current.extract_if(|(kind, _), _| *kind != ListenerKind::Transparent) {
            shared.cancel();
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
            retire(own, &mut self.loops);
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
