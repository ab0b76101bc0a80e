//! Listeners from the datapath role: asked for, accepted from, and replaced when it hands over others.

use std::io;
use std::net::TcpListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use clawgress_api::handover::{self, Handover, ListenerKind};
use clawgress_api::socket::Servers;
use clawgress_ebpf_common::user::{DialTable, FlowTable};
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::accept::Accepting;
use crate::connection::Flows;
use crate::limit;

/// Accepts from whatever listeners the role at `path` hands over, if it is one of `servers`, until `stop`.
/// While it is away, the last ones stay open.
pub async fn follow(path: PathBuf, servers: Servers, accepting: Arc<Accepting>, stop: CancellationToken) {
    let mut loops = JoinSet::new();
    let mut current = stop.child_token();
    let mut pause = limit::REDIAL_FIRST;
    loop {
        let handed_over = tokio::select! {
            handed_over = ask(&path, &servers) => handed_over,
            () = stop.cancelled() => break,
        };
        match handed_over {
            Ok((stream, set)) => {
                let former = std::mem::replace(&mut current, stop.child_token());
                let flows = start(&accepting, set, &current, &mut loops);
                retire(former, &mut loops);
                pause = limit::REDIAL_FIRST;
                tokio::select! {
                    () = ended(&stream, &flows) => tracing::warn!("the datapath role is gone; its listeners stay open"),
                    () = stop.cancelled() => break,
                }
            }
            Err(error) => tracing::warn!(%error, path = %path.display(), "no listeners handed over yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => break,
        }
        pause = (pause * 2).min(limit::REDIAL_MAX);
    }
    loops.shutdown().await;
}

/// A handover, opened.
struct Set {
    listeners: Vec<(handover::Listener, TcpListener)>,
    flows: Flows,
    dials: Option<DialTable>,
}

async fn ask(path: &Path, servers: &Servers) -> io::Result<(UnixStream, Set)> {
    let stream = servers.connect(path).await?;
    let (handover, descriptors) = handover::receive(&stream).await?;
    let Handover { listeners, flow_table, dials, interfaces } = handover;
    let mut descriptors = descriptors.into_iter();
    let mut opened = Vec::new();
    for (listener, descriptor) in listeners.into_iter().zip(descriptors.by_ref()) {
        // This version serves no DNS, and has not said that it does.
        if matches!(listener.kind, ListenerKind::DnsStream | ListenerKind::DnsDatagram) {
            continue;
        }
        let socket = StdListener::from(descriptor);
        socket.set_nonblocking(true)?;
        opened.push((listener, TcpListener::from_std(socket)?));
    }
    let table = match flow_table.then(|| descriptors.next()).flatten() {
        Some(descriptor) => Some(FlowTable::from_fd(descriptor)?),
        None => None,
    };
    let dials = match dials.then(|| descriptors.next()).flatten() {
        Some(descriptor) => Some(DialTable::from_fd(descriptor)?),
        None => None,
    };
    let flows = Flows { table, interfaces: ArcSwap::from_pointee(interfaces) };
    Ok((stream, Set { listeners: opened, flows, dials }))
}

fn start(
    accepting: &Arc<Accepting>,
    set: Set,
    stop: &CancellationToken,
    loops: &mut JoinSet<()>,
) -> Arc<Flows> {
    let flows = Arc::new(set.flows);
    let own = &accepting.serving.gateway.own;
    own.refresh();
    accepting.serving.gateway.dials.replace(set.dials);
    own.set_listeners(set.listeners.iter().map(|(l, _)| l.address));
    for (listener, socket) in set.listeners {
        tracing::info!(kind = ?listener.kind, address = %listener.address, "accepting");
        let accepting = Arc::clone(accepting);
        loops.spawn(accepting.accept(listener.kind, socket, Arc::clone(&flows), stop.clone()));
    }
    flows
}

/// Stops the former loops a little later, so that what waits in their queues is still served.
fn retire(former: CancellationToken, loops: &mut JoinSet<()>) {
    while loops.try_join_next().is_some() {}
    loops.spawn(async move {
        tokio::time::sleep(limit::HANDOVER_OVERLAP).await;
        former.cancel();
    });
}

/// Takes what the role says of its interfaces, and ends with the connection.
async fn ended(stream: &UnixStream, flows: &Flows) {
    // The listeners that come along are those it has.
    while let Ok((handover, _)) = handover::receive(stream).await {
        tracing::info!(interfaces = ?handover.interfaces, "the agents' interfaces have changed");
        flows.interfaces.store(handover.interfaces.into());
    }
}
