//! Traffic that stays unread: TLS that is not intercepted, and protocols nobody here can read. Decides,
//! dials and carries; judges again while it carries.

use std::net::IpAddr;
use std::sync::Arc;

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::client_hello::ClientHello;
use clawgress_policy::Host;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::connection::Connection;
use crate::decide::{self, Ruling};
use crate::dial;
use crate::exchange::{End, Exchange};
use crate::gateway::Gateway;
use crate::identify::{self, Who};
use crate::snapshot::Plan;
use crate::{page, peek, tunnel};

/// What stays unread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// TLS with these ALPN names.
    Tls(Vec<String>),
    /// Neither TLS nor HTTP.
    Unknown,
}

/// Who wants what; can be judged under any plan.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Who.
    pub who: Who,
    /// To where.
    pub host: Host,
    /// At which port.
    pub port: u16,
    /// What.
    pub content: Content,
    /// The address dialled, once it is.
    pub ip: Option<IpAddr>,
}

// === impl Subject ===

impl Subject {
    /// The ruling under `plan`, with `connect` if the address is known.
    #[must_use]
    pub fn judge(&self, gateway: &Gateway, plan: &Plan) -> Ruling {
        let who = match self.who.under(plan) {
            Ok(who) => who,
            Err(reason) => return Ruling::deny("tunnel", reason),
        };
        let agent = &who.identity.agent;
        let ruling = match &self.content {
            Content::Tls(alpn) => decide::tls(plan, agent, &self.host, self.port, alpn),
            Content::Unknown => decide::unknown(plan, agent, &self.host, self.port),
        };
        let Some(ip) = self.ip.filter(|_| ruling.verdict.is_ok()) else { return ruling };
        match decide::connect(plan, agent, &gateway.own, &[ip], self.port) {
            Ok(judged) => ruling.with(&judged.policies),
            Err((refused, _)) => refused,
        }
    }

    /// Ends when this may go on no longer, and says why.
    async fn forbidden(&self, gateway: &Gateway) -> DropReason {
        let mut changed = gateway.snapshots.subscribe();
        loop {
            match gateway.snapshots.current() {
                Ok(plan) => {
                    if let Err(reason) = self.judge(gateway, &plan).verdict {
                        return reason;
                    }
                }
                Err(reason) => return reason,
            }
            let stale = async {
                match gateway.snapshots.stale_in() {
                    // The plan counts up to its last instant; look right after it.
                    Some(left) => tokio::time::sleep(left + std::time::Duration::from_millis(1)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return DropReason::SnapshotMissing },
                () = stale => {}
                () = gateway.cut.cancelled() => return DropReason::Draining,
            }
        }
    }
}

/// Denies TLS in the client's own terms.
pub async fn refuse(mut exchange: Exchange, stream: TcpStream, ruling: Ruling) {
    let reason = ruling.verdict.err().unwrap_or(DropReason::PolicyDenied);
    exchange.deny(ruling);
    exchange.end(End { reason: Some(reason), ..End::default() });
    peek::say_and_close(stream, &page::alert(reason)).await;
}

/// A steered TLS connection, of which `held` was read.
pub async fn transparent_tls(
    gateway: &Arc<Gateway>,
    connection: &Connection,
    mut stream: TcpStream,
    mut held: Vec<u8>,
    deadline: Instant,
) {
    let hello = peek::hello(&mut stream, &mut held, deadline).await;
    let mut exchange = Exchange::new(gateway, connection);
    match tls_subject(gateway, connection, hello, &mut exchange) {
        Ok((subject, plan)) => establish(gateway, exchange, subject, &plan, stream, held).await,
        Err(ruling) => refuse(exchange, stream, ruling).await,
    }
}

fn tls_subject(
    gateway: &Gateway,
    connection: &Connection,
    hello: Result<ClientHello, DropReason>,
    exchange: &mut Exchange,
) -> Result<(Subject, Arc<Plan>), Ruling> {
    let deny = |reason| Ruling::deny("tls", reason);
    let plan = gateway.snapshots.current().map_err(deny)?;
    let who = bound(&plan, connection, exchange).map_err(deny)?;
    let hello = hello.map_err(deny)?;
    let name = hello.server_name.ok_or(deny(DropReason::SniMissing))?;
    let host = Host::parse(&name).map_err(|_| deny(DropReason::HostInvalid))?;
    let port = connection.local.port();
    exchange.host(&host, port);
    Ok((Subject { who, host, port, content: Content::Tls(hello.alpn), ip: None }, plan))
}

fn bound(plan: &Plan, connection: &Connection, exchange: &mut Exchange) -> Result<Who, DropReason> {
    let who = identify::bound(plan, connection)?.ok_or(DropReason::Anonymous)?;
    exchange.agent(&who.identity, plan.generation);
    Ok(who)
}

/// Whether policy lets this steered connection speak a protocol nobody here can read.
#[must_use]
pub fn unknown_permitted(gateway: &Gateway, connection: &Connection) -> bool {
    let Ok(plan) = gateway.snapshots.current() else { return false };
    let Ok(Some(who)) = identify::bound(&plan, connection) else { return false };
    let host = Host::Address(connection.local.ip());
    decide::unknown(&plan, &who.identity.agent, &host, connection.local.port()).verdict.is_ok()
}

/// A steered connection of an unknown protocol, or one that waits for the server to begin.
pub async fn transparent_unknown(
    gateway: &Arc<Gateway>,
    connection: &Connection,
    stream: TcpStream,
    held: Vec<u8>,
) {
    let mut exchange = Exchange::new(gateway, connection);
    let deny = |reason| Ruling::deny("tunnel", reason);
    let host = Host::Address(connection.local.ip());
    let port = connection.local.port();
    exchange.host(&host, port);
    let subject = gateway.snapshots.current().map_err(deny).and_then(|plan| {
        let who = bound(&plan, connection, &mut exchange).map_err(deny)?;
        Ok((Subject { who, host, port, content: Content::Unknown, ip: None }, plan))
    });
    match subject {
        Ok((subject, plan)) => establish(gateway, exchange, subject, &plan, stream, held).await,
        Err(ruling) => deny_silently(exchange, ruling),
    }
}

/// Denies a client in whose protocol nothing can be said.
pub fn deny_silently(mut exchange: Exchange, ruling: Ruling) {
    let reason = ruling.verdict.err();
    exchange.deny(ruling);
    exchange.end(End { reason, ..End::default() });
}

/// Judges, resolves, judges every address, dials, carries.
async fn establish(
    gateway: &Arc<Gateway>,
    mut exchange: Exchange,
    mut subject: Subject,
    plan: &Plan,
    stream: TcpStream,
    held: Vec<u8>,
) {
    let reached = async {
        let ruling = subject.judge(gateway, plan);
        if ruling.verdict.is_err() {
            return Err(ruling);
        }
        let addresses = gateway.resolver.addresses(&subject.host).await;
        let addresses = addresses.map_err(|reason| Ruling::deny("connect", reason))?;
        let agent = &subject.who.identity.agent;
        let judged = decide::connect(plan, agent, &gateway.own, &addresses, subject.port);
        judged.map(|judged| (ruling.with(&judged.policies), judged.addresses)).map_err(|(ruling, ip)| {
            ip.into_iter().for_each(|ip| exchange.address(ip));
            ruling
        })
    }
    .await;
    let (ruling, addresses) = match reached {
        Ok(reached) => reached,
        Err(ruling) if subject.content == Content::Unknown => return deny_silently(exchange, ruling),
        Err(ruling) => return refuse(exchange, stream, ruling).await,
    };
    match dial::dial(&addresses, subject.port).await {
        Ok(upstream) => {
            subject.ip = upstream.peer_addr().ok().map(|a| a.ip().to_canonical());
            carry(gateway, exchange, subject, &ruling, stream, upstream, &held, None).await;
        }
        Err(reason) => {
            let _ = exchange.allow(&ruling);
            exchange.end(End { reason: Some(reason), ..End::default() });
            if subject.content != Content::Unknown {
                peek::say_and_close(stream, &page::alert(reason)).await;
            }
        }
    }
}

/// Records the decision, then carries bytes until the end.
#[expect(clippy::too_many_arguments, reason = "these are one tunnel's parts, used once")]
pub async fn carry(
    gateway: &Arc<Gateway>,
    mut exchange: Exchange,
    subject: Subject,
    ruling: &Ruling,
    client: TcpStream,
    upstream: TcpStream,
    first: &[u8],
    status: Option<u16>,
) {
    subject.ip.into_iter().for_each(|ip| exchange.address(ip));
    if let Err(reason) = exchange.allow(ruling) {
        exchange.end(End { status, reason: Some(reason), ..End::default() });
        return;
    }
    let cut = subject.forbidden(gateway);
    let (sent, received, reason) = tunnel::run(client, upstream, first, &gateway.pipes, cut).await;
    exchange.end(End { status, sent, received, reason, tokens: None });
}
