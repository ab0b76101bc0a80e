//! The process: starts the parts, serves each connection by what it turns out to be, drains and stops.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clawgress_api::clock::{Clock, SystemClock};
use clawgress_api::config::Config;
use clawgress_api::handover::ListenerKind;
use clawgress_api::notify;
use clawgress_api::socket::{self, Server, Servers};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::proxy_header::Header;
use clawgress_inspect::sniff::{Opening, Protocol};
use pingora_core::apps::HttpServerApp;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroize as _;

use crate::accept::{Accepted, Accepting, Sources};
use crate::audit::Audit;
use crate::carries::Windows;
use crate::connection::Connection;
use crate::decide::Ruling;
use crate::dial::Dials;
use crate::dns::{self, Desk};
use crate::endpoints::Endpoints;
use crate::exchange::{End, Exchange};
use crate::gateway::Gateway;
use crate::history::Histories;
use crate::intercept::Interception;
use crate::keys::Keys;
use crate::memory::Memory;
use crate::own::Own;
use crate::plain_http::{self, Front, Gate, Place, Proxy};
use crate::plain_http::{Calls, Tools};
use crate::quota::Quota;
use crate::resolve::Resolver;
use crate::route::Routes;
use crate::slots::Slots;
use crate::snapshot::Snapshots;
use crate::stream::Stream;
use crate::tls::{self, Terminal};
use crate::tunnel::Pipes;
use crate::vault::Vault;
use crate::{audit, connect, handover, http2, limit, opaque, page, peek, rest, socks};

/// For tasks to write their outcomes after they were cut.
const CUT: Duration = Duration::from_secs(1);

/// How plain HTTP has ended.
#[derive(Debug)]
pub struct Ended {
    /// Why it was cut, if it was.
    pub cut: Option<DropReason>,
    /// The tunnel that the explicit proxy was asked for in place of another request.
    pub tunnel: Option<Box<Tunnel>>,
}

/// A tunnel that is asked for: its CONNECT is at the front of what was read.
#[derive(Debug)]
pub struct Tunnel {
    connection: Connection,
    stream: Stream,
    held: Vec<u8>,
}

/// What serving a connection takes.
#[derive(Clone)]
pub struct Serving {
    /// Shared parts.
    pub gateway: Arc<Gateway>,
    proxy: Arc<Proxy>,
    stopping: watch::Receiver<bool>,
}

// === impl Serving ===

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

impl Serving {
    /// Serves what was accepted to its end.
    pub async fn accepted(&self, accepted: Accepted) {
        let Accepted { kind, mut connection, mut stream, share, sources } = accepted;
        let _ = stream.set_nodelay(true);
        if kind == ListenerKind::DnsStream {
            return dns::stream(&self.gateway, &connection, stream).await;
        }
        let deadline = Instant::now() + limit::PEEK;
        let share = match share {
            Some(share) => share,
            None => match peek::proxy_header(&mut stream, deadline).await {
                Ok(Some(Header::Proxied { source, .. })) => {
                    connection = connection.passed_on(source);
                    let Some(share) = sources.take(source.ip()) else {
                        return sources.refuse("a source behind a load balancer");
                    };
                    share
                }
                // Nothing was asked, so nothing is decided.
                Ok(Some(Header::Local) | None) => return,
                Err(reason) => return self.deny(&connection, reason),
            },
        };
        self.known(kind, connection, stream, deadline).await;
        drop(share);
    }

    /// Serves what is known whose it is.
    async fn known(
        &self,
        kind: ListenerKind,
        mut connection: Connection,
        stream: TcpStream,
        deadline: Instant,
    ) {
        if kind != ListenerKind::ProxyTls {
            return self.connection(connection, stream.into(), deadline).await;
        }
        // It is configured there if the datapath role has it, or this process has a former configuration.
        let Some(terminal) = &self.gateway.tls else {
            return self.deny(&connection, DropReason::ProtocolUnknown);
        };
        // Boxed: it takes some KiB, and every tunnel would hold as much.
        match Box::pin(terminal.accept(stream, deadline)).await {
            Ok(Some(tls::Accepted { stream, certificate, is_http2 })) => {
                connection.certificate = certificate;
                if is_http2 {
                    let front = self.explicit(connection);
                    let _cut = Box::pin(http2::serve(self, front, stream, Vec::new(), deadline)).await;
                } else {
                    self.connection(connection, stream, deadline).await;
                }
            }
            // Nothing was asked, so nothing is decided.
            Ok(None) => {}
            Err(reason) => self.deny(&connection, reason),
        }
    }

    /// Serves one connection to its end, whose first request has to be there by `deadline`.
    async fn connection(&self, connection: Connection, mut stream: Stream, deadline: Instant) {
        let gateway = &self.gateway;
        let (mut held, is_steered) = (Vec::new(), !connection.is_explicit());
        let patience = if is_steered { Instant::now() + limit::SERVER_FIRST } else { deadline };
        let mut protocol = peek::protocol(&mut stream, &mut held, patience).await;
        if protocol.is_err() && is_steered {
            // It says nothing, or no more, as long as its server does not, if that is permitted. Few do, and policy is not asked
            // about others.
            let waits = held.is_empty() || Opening::is_of(&held);
            let waits = waits && Box::pin(opaque::unknown_permitted(gateway, &connection)).await;
            protocol = match waits {
                true => Ok(Some(Protocol::Unknown)),
                false => peek::protocol(&mut stream, &mut held, deadline).await,
            };
        }
        // Nothing was asked, so nothing is decided.
        let Some(protocol) = protocol.transpose() else { return };
        match protocol {
            Ok(Protocol::Http1) if connection.is_explicit() && held.starts_with(b"CONNECT ") => {
                rest::whole(connect::serve(self, connection, stream, held, deadline)).await;
            }
            Ok(Protocol::Http1) => {
                let front = if connection.is_explicit() {
                    self.explicit(connection)
                } else {
                    let place = Place::Transparent { port: connection.local.port() };
                    Front::new(connection, place)
                };
                // Boxed, as all that is not for every connection.
                let ended = Box::pin(self.plain_http(front, stream, held, deadline)).await;
                if let Some(tunnel) = ended.tunnel {
                    let Tunnel { connection, stream, held } = *tunnel;
                    let deadline = Instant::now() + limit::PEEK;
                    rest::whole(connect::serve(self, connection, stream, held, deadline)).await;
                }
            }
            Ok(Protocol::Tls) if !connection.is_explicit() => {
                rest::whole(opaque::transparent_tls(self, connection, stream, held, deadline)).await;
            }
            Ok(Protocol::Unknown) if !connection.is_explicit() => {
                rest::whole(opaque::transparent_unknown(self, connection, stream, held)).await;
            }
            Ok(Protocol::Unknown) if socks::is_meant(&held) => {
                rest::whole(socks::serve(self, connection, stream, held, deadline)).await;
            }
            // A client that knows that its server speaks it. To a proxy there is no such thing in clear: who is meant, the
            // proxy or who is behind it, can't be told.
            Ok(Protocol::Http2) if !connection.is_explicit() => {
                let place = Place::Transparent { port: connection.local.port() };
                let front = Front::new(connection, place);
                let _cut = Box::pin(http2::serve(self, front, stream, held, deadline)).await;
            }
            Ok(Protocol::Http2) => self.deny(&connection, DropReason::UpgradeUnsupported),
            // `https://` in place of `http://` before the proxy: the other listener is meant.
            Ok(Protocol::Tls) => {
                let reason = DropReason::ProtocolUnknown;
                self.deny(&connection, reason);
                Box::pin(peek::say_and_close(stream, &page::alert(reason))).await;
            }
            Ok(Protocol::Unknown | Protocol::Proxied) => self.deny(&connection, DropReason::ProtocolUnknown),
            Err(reason) => self.deny(&connection, reason),
        }
    }

    /// The front of a connection to the explicit proxy.
    fn explicit(&self, connection: Connection) -> Front {
        let endpoints = Arc::clone(&self.gateway.endpoints);
        let is_bound = matches!(connection.bound, Ok(Some(_)));
        let is_known = is_bound || connection.certificate.is_some();
        Front::new(connection, Place::Explicit { endpoints, is_known })
    }

    fn deny(&self, connection: &Connection, reason: DropReason) {
        let mut exchange = Exchange::new(&self.gateway, connection);
        self.note_bound(connection, &mut exchange);
        opaque::deny_silently(exchange, Ruling::deny("tunnel", reason), None);
    }

    /// Serves plain HTTP on `stream`, of which `held` was read; returns how it has ended.
    pub fn plain_http(
        &self,
        front: Front,
        stream: Stream,
        mut held: Vec<u8>,
        deadline: Instant,
    ) -> impl Future<Output = Ended> + Send + '_ {
        // What the future is made of is small: all idle connections hold it.
        let front = Arc::new(front);
        let gate = Box::new(Gate::new(Arc::clone(&front), stream, &held, deadline));
        held.zeroize();
        drop(held);
        async move {
            // Boxed, to be dropped before the rest.
            let mut serve = Box::pin(plain_http::requests::serve(&self.proxy, gate, &self.stopping));
            let asked = tokio::select! {
                // In this order: what was granted is watched over from the same turn on.
                biased;
                asked = &mut serve => Some(asked),
                // Not out of what a turn has left: what serves may have used that up, each time.
                reason = tokio::task::unconstrained(front.forbidden(&self.gateway)) => {
                    front.cut(reason);
                    None
                }
            };
            if asked.is_none() {
                front.shut();
                // As of a stream of HTTP/2: its server's connection may have others.
                let _ = timeout(limit::CUT_GRACE, &mut serve).await;
            }
            // What it was at records why it ends.
            drop(serve);
            self.record_untaken(&front);
            let tunnel = asked.flatten().map(|(stream, held)| {
                Box::new(Tunnel { connection: front.connection.clone(), stream, held })
            });
            Ended { cut: front.was_cut(), tunnel }
        }
    }

    /// What serves requests.
    #[must_use]
    pub fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    /// Says when this process stops.
    #[must_use]
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }

    /// Records a request that never came to be judged: Pingora may refuse what the gate let through.
    pub fn record_untaken(&self, front: &Front) {
        let Some(request) = front.untaken() else { return };
        let mut exchange = self.unasked(front);
        if let Ok(admitted) = &request {
            exchange.host(&admitted.host, admitted.port);
            exchange.request(&admitted.method, &admitted.path);
        }
        let reason = front.was_cut().or(request.err()).unwrap_or(DropReason::HttpMalformed);
        opaque::deny_silently(exchange, Ruling::deny("http", reason), None);
    }

    /// Records a connection that ends for this reason, and on which nothing was asked that could be judged.
    pub fn record_unasked(&self, front: &Front, reason: DropReason) {
        opaque::deny_silently(self.unasked(front), Ruling::deny("http", reason), None);
    }

    /// Records a connection that was allowed to ask, and did not; `reason` is why it ends, if its client has not left.
    pub fn record_unused(&self, front: &Front, reason: Option<DropReason>) {
        let mut exchange = self.unasked(front);
        let _ = exchange.allow(&Ruling::allow("http"));
        exchange.end(End { reason, ..End::default() });
    }

    /// What is recorded of a connection itself, or of what was not understood on it.
    fn unasked(&self, front: &Front) -> Exchange {
        let mut exchange = Exchange::new(&self.gateway, &front.connection);
        match (front.place.who(), self.gateway.snapshots.current()) {
            (Some(who), Ok(plan)) => exchange.agent(who, &plan),
            _ => self.note_bound(&front.connection, &mut exchange),
        }
        front.note_place(&mut exchange);
        exchange
    }

    /// Notes the agent that the kernel plane found at the source.
    pub fn note_bound(&self, connection: &Connection, exchange: &mut Exchange) {
        if let Ok(plan) = self.gateway.snapshots.current()
            && let Ok(Some(who)) = crate::identify::bound(&plan, connection)
        {
            exchange.agent(&who, &plan);
        }
    }
}

/// What this process calls itself.
fn instance() -> anyhow::Result<String> {
    let mut random = [0; 6];
    getrandom::fill(&mut random).context("the system has no randomness")?;
    Ok(random.iter().map(|b| format!("{b:02x}")).collect())
}

/// Serves until `stop` ends, then drains.
///
/// # Errors
/// If a part can't be started.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    // Before any connector of Pingora's is made: it would install another provider.
    let _ = tls::provider().as_ref().clone().install_default();
    let (instance, clock): (_, Arc<dyn Clock>) = (instance()?, Arc::new(SystemClock));
    let connections_max = config.l7.connections_max.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
    let stale_after = Duration::from_secs(config.l7.snapshot_stale_s_max);
    let snapshots = Arc::new(Snapshots::new(stale_after, Arc::clone(&clock)));
    let most = (connections_max, config.l7.agent_connections_max());
    let (audit, carrier) = audit::queue(&config.node.name, clock, most, &instance);
    let servers = |server| Servers::new(&config.access, server);
    let control = socket::channel_to(&config.control_socket(), servers(Server::Control)?);
    let keys = socket::channel_to(&config.keys_socket(), servers(Server::Keys)?);
    let datapath = servers(Server::Datapath)?;
    let gateway = Arc::new(Gateway {
        snapshots,
        keys: Keys::new(keys).context("the system has no randomness")?,
        vault: Vault::new(socket::channel_to(&config.vault_socket(), servers(Server::Keys)?)),
        quota: Quota::new(control.clone()).context("the system has no randomness")?,
        histories: Histories::new(control.clone()),
        sources: Sources::new(connections_max),
        streams: Arc::new(Semaphore::new(connections_max)),
        stream_sources: Sources::of_streams(connections_max),
        resolver: Resolver::new(&config.l7)?,
        dns: Desk::new(&config.dns, Resolver::without_cache(&config.l7)?, control.clone()),
        dials: Arc::new(Dials::default()),
        endpoints: Arc::new(Endpoints::new(&config.endpoints)?),
        routes: Arc::new(Routes::new(&config)?),
        slots: Slots::new(config.l7.agent_connections_max()),
        answer_silence: Duration::from_secs(config.l7.answer_silence_s_max.get().into()),
        own: Arc::new(Own::default()),
        audit: audit.clone(),
        tls: config.proxy.tls.as_ref().map(Terminal::new).transpose()?,
        interception: Interception::of(&config)?,
        memory: Arc::new(Memory::new(&config.content)),
        windows: Windows::default(),
        calls: Calls::new(&config.llm, &config.content)?,
        tools: Tools::new(&config.tool, &config.content)?,
        pipes: Arc::new(Pipes::default()),
        cut: CancellationToken::new(),
    });
    gateway.own.refresh();
    let (stopping_sender, stopping) = watch::channel(false);
    let proxy = plain_http::proxy(&gateway, config.l7.threads);
    let serving = Serving { gateway: Arc::clone(&gateway), proxy: Arc::clone(&proxy), stopping };

    let mut background = JoinSet::new();
    let (snapshots, own) = (Arc::clone(&gateway.snapshots), Arc::clone(&gateway.own));
    let (follow_control, draining) = (control.clone(), CancellationToken::new());
    let told = draining.clone();
    let (refused, why_refused) = watch::channel(None);
    background.spawn(async move { snapshots.follow(follow_control, instance, told, why_refused).await });
    background.spawn(async move { own.follow().await });
    background.spawn(keep(Arc::clone(&gateway)));
    let (sink, owner) = (config.control_socket(), servers(Server::Control)?);
    let carried = carrier
        .start(move || socket::channel_to(&sink, owner))
        .context("cannot start the thread that carries audit records")?;
    background.spawn(follow_files(Arc::clone(&gateway)));
    let connections = Arc::new(Semaphore::new(connections_max));
    let accepting = Arc::new(Accepting {
        serving,
        connections: Arc::clone(&connections),
        sources: Arc::clone(&gateway.sources),
        balancers: config.proxy.balancers.clone().into(),
    });
    let listening =
        handover::follow(config.handover_socket(), datapath, accepting, refused, draining.clone());
    let listening = tokio::spawn(listening);

    // From here on it waits for its peers, which may come in any order.
    notify::ready("l7");
    until_stopped(stop, carried).await?;
    notify::stopping();
    tracing::info!("draining: no new connections; open ones have {} s", config.l7.drain_s_max);
    draining.cancel();
    let _present = listening.await;
    stopping_sender.send_replace(true);
    proxy.http_cleanup().await;
    drain(&gateway, &connections, connections_max, Duration::from_secs(config.l7.drain_s_max)).await;
    gateway.quota.give_back(Duration::ZERO).await;
    flush(&audit).await;
    background.shutdown().await;
    Ok(())
}

/// Waits until control has what was recorded.
async fn flush(audit: &Audit) {
    if !audit.flush(limit::AUDIT_FLUSH).await {
        tracing::error!("audit records are left that control did not take");
    }
}

/// Waits for `stop`, unless the thread that carries audit records ends before: nothing could be allowed any more, and whoever is
/// started in this process's place serves.
async fn until_stopped(stop: impl Future<Output = ()>, carried: oneshot::Receiver<()>) -> anyhow::Result<()> {
    tokio::select! {
        () = stop => Ok(()),
        _ = carried => {
            anyhow::bail!("the thread that carries audit records has ended; start clawgress-l7 again")
        }
    }
}

/// Gives back and forgets what has had its time, for ever.
async fn keep(gateway: Arc<Gateway>) {
    tokio::join!(gateway.quota.keep(&gateway.snapshots), gateway.vault.forget());
}

/// Reads the files of certificates, credentials, prices and rules again whenever they change, for ever.
async fn follow_files(gateway: Arc<Gateway>) {
    let certificate = async {
        if let Some(terminal) = &gateway.tls {
            terminal.follow().await;
        }
    };
    tokio::join!(certificate, gateway.routes.follow(), gateway.calls.follow());
}

/// Waits for all `connections_max` of the connections to end, for some time, and cuts them then.
async fn drain(gateway: &Gateway, connections: &Semaphore, connections_max: usize, patience: Duration) {
    let all = u32::try_from(connections_max).unwrap_or(u32::MAX);
    if timeout(patience, connections.acquire_many(all)).await.is_err() {
        gateway.cut.cancel();
        let _ = timeout(CUT, connections.acquire_many(all)).await;
    }
}

#[cfg(test)]
pub(crate) mod tests;
