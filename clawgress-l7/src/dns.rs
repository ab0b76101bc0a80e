//! DNS for agents: their questions are steered here, whatever server they ask, judged, asked anew of the configured
//! servers, and answered with what may be told.
//!
//! INVARIANT: nothing of a question goes on before it is judged and recorded, and nothing but its name and type ever
//! does; an address that policy opens by name is open before the answer that tells it is released.

use std::sync::Arc;

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::dns::{DnsError, Question, question};
use clawgress_policy::{Host, Operation, is_reserved};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::accept::Beat;
use crate::connection::{Connection, Flows};
use crate::decide::{self, Ruling};
use crate::enforce::enforce;
use crate::exchange::{End, Exchange};
use crate::gateway::Gateway;
use crate::identify::{self, Who};
use crate::limit;
use crate::resolve::Found;
use crate::snapshot::Plan;

mod desk;
mod judge;
mod socket;
mod wire;

pub use self::desk::Desk;
use self::desk::{Running, Told};
use self::judge::Judged;
pub use self::socket::Datagrams;
use self::wire::{Carriage, Said};

/// A question that may be asked.
struct Admitted {
    who: Who,
    host: Host,
    kind: RecordType,
    query_type: String,
    running: Running,
}

/// What came of a question.
struct Asked {
    said: Said,
    /// Why not, or not all, of what was asked for.
    reason: Option<DropReason>,
    /// If it was asked anybody.
    running: Option<Running>,
}

/// Answers datagrams until `stop`.
pub async fn datagrams(
    gateway: Arc<Gateway>,
    socket: Datagrams,
    flows: Arc<Flows>,
    stop: CancellationToken,
    beat: Beat,
) {
    let socket = Arc::new(socket);
    let mut looks = tokio::time::interval(limit::ACCEPT_BEAT);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // While as many are under way as may be, the others wait in the socket, which is bounded by the kernel.
        let next = async {
            let permit = Arc::clone(&gateway.dns.datagrams).acquire_owned().await.ok()?;
            Some((permit, socket.receive().await))
        };
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = next => received,
            _ = looks.tick() => {
                beat.set();
                continue;
            }
        };
        beat.set();
        match received {
            Some((permit, Ok(Some(datagram)))) => {
                let entered = || Ok(datagram.ifindex);
                let kind = clawgress_api::handover::ListenerKind::DnsDatagram;
                let connection = Connection::new(kind, datagram.peer, datagram.asked, entered, &flows);
                let (gateway, socket) = (Arc::clone(&gateway), Arc::clone(&socket));
                tokio::spawn(async move {
                    let said = answer(&gateway, &connection, &datagram.bytes, Carriage::Udp).await;
                    if let Some(bytes) = said
                        && let Err(error) = socket.answer(&datagram, &bytes)
                    {
                        tracing::debug!(%error, peer = %datagram.peer, "an answer could not be sent");
                    }
                    drop(permit);
                });
            }
            Some((_, Ok(None))) => {}
            Some((_, Err(error))) => {
                tracing::warn!(%error, "a datagram can't be received");
                tokio::time::sleep(limit::DNS_PAUSE).await;
            }
            None => return,
        }
    }
}

/// Answers the questions of one connection, one after the other (RFC 7766), until it ends or idles.
pub async fn stream(gateway: &Gateway, connection: &Connection, mut stream: TcpStream) {
    for _ in 0..limit::DNS_STREAM_QUESTIONS_MAX {
        let asked = tokio::select! {
            asked = timeout(limit::DNS_STREAM_IDLE, read(&mut stream)) => asked,
            () = gateway.cut.cancelled() => return,
        };
        let Ok(Some(bytes)) = asked else { return };
        let Some(said) = answer(gateway, connection, &bytes, Carriage::Tcp).await else { return };
        let Ok(length) = u16::try_from(said.len()) else { return };
        let framed = [&length.to_be_bytes()[..], &said].concat();
        if !matches!(timeout(limit::DNS_STREAM_WRITE, stream.write_all(&framed)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// One message; none if it is larger than any question, or the connection ended.
async fn read(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let length = usize::from(stream.read_u16().await.ok()?);
    if length > clawgress_inspect::dns::QUESTION_BYTES_MAX {
        return None;
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(bytes)
}

/// The answer to a question; none to what is no question.
async fn answer(
    gateway: &Gateway,
    connection: &Connection,
    bytes: &[u8],
    carriage: Carriage,
) -> Option<Vec<u8>> {
    let read = question(bytes);
    if read == Err(DnsError::NoQuestion) {
        return None;
    }
    let mut exchange = Exchange::new(gateway, connection);
    exchange.protocol(carriage.name());
    let question = match read {
        Ok(question) => question,
        Err(error) => {
            exchange.deny(Ruling::deny("resolve", DropReason::DnsMalformed));
            let said = malformed(error);
            let end = End { reason: Some(DropReason::DnsMalformed), ..sizes(bytes, said.as_ref()) };
            exchange.end(end);
            return said;
        }
    };
    // Boxed: tasks of datagrams wait in thousands.
    let asked = Box::pin(ask(gateway, connection, &question, bytes.len(), &mut exchange)).await;
    let Asked { said, reason, running } = asked;
    let said = said.answer(&question, carriage);
    if let (Some(running), Some(said)) = (running, &said) {
        running.answered(gateway.now_s(), said.len());
    }
    exchange.end(End { reason, ..sizes(bytes, said.as_ref()) });
    said
}

fn sizes(asked: &[u8], said: Option<&Vec<u8>>) -> End {
    End { sent: asked.len() as u64, received: said.map_or(0, |bytes| bytes.len() as u64), ..End::default() }
}

fn malformed(error: DnsError) -> Option<Vec<u8>> {
    match error {
        DnsError::NoQuestion => None,
        DnsError::Malformed { id } => wire::bare(id, 0, ResponseCode::FormErr),
        DnsError::Unsupported { id, operation } => wire::bare(id, operation, ResponseCode::NotImp),
        DnsError::Version { id } => wire::bare(id, 0, ResponseCode::BADVERS),
    }
}

/// What is said to a question.
async fn ask(
    gateway: &Gateway,
    connection: &Connection,
    question: &Question,
    bytes: usize,
    exchange: &mut Exchange,
) -> Asked {
    let refuse = |reason, exchange: &Exchange| Asked {
        said: Said::refused(reason, exchange.id()),
        reason: Some(reason),
        running: None,
    };
    let admitted = admit(gateway, connection, question, bytes, exchange).await;
    let (admitted, ruling) = match admitted {
        Ok((admitted, ruling)) => (Some(admitted), ruling),
        Err(ruling) => (None, ruling),
    };
    // Before anybody is asked: what a quarantine matches reaches nobody.
    let ruling = enforce(gateway, ruling, exchange.id()).await;
    let Some(admitted) = admitted.filter(|_| ruling.verdict.is_ok()) else {
        let reason = ruling.verdict.err().unwrap_or(DropReason::PolicyDenied);
        exchange.deny(ruling);
        return refuse(reason, exchange);
    };
    if let Err(reason) = exchange.allow(&ruling) {
        return refuse(reason, exchange);
    }
    let Ok(found) = gateway.resolver.records(&admitted.host, admitted.kind).await else {
        return refuse(DropReason::ResolveFailed, exchange);
    };
    match released(gateway, connection.local.port(), &admitted, found).await {
        Ok((said, judged)) => {
            if let Some((ip, reason)) = judged.is_emptied(admitted.kind) {
                exchange.address(ip);
                return refuse(reason, exchange);
            }
            let reason = judged.refused.map(|(_, reason)| reason);
            Asked { said, reason, running: Some(admitted.running) }
        }
        Err(reason) => refuse(reason, exchange),
    }
}

/// Judges a question as it comes.
async fn admit(
    gateway: &Gateway,
    connection: &Connection,
    question: &Question,
    bytes: usize,
    exchange: &mut Exchange,
) -> Result<(Admitted, Ruling), Ruling> {
    let deny = |reason| Ruling::deny("resolve", reason);
    let kind = RecordType::from(question.kind);
    let query_type = type_name(kind);
    let plan = gateway.snapshots.current().map_err(deny)?;
    let host = name(question);
    if let Some(host) = &host {
        exchange.host(host, connection.local.port());
    }
    exchange.query_type(&query_type);
    let who = identify::bound(&plan, connection).map_err(deny)?.ok_or(deny(DropReason::Anonymous))?;
    exchange.agent(&who, &plan);
    let host = host.ok_or(deny(DropReason::HostInvalid))?;
    let operation =
        Operation::Resolve { host: &host, port: connection.local.port(), query_type: &query_type };
    let need = decide::needs_history(&plan, &who, &[operation]);
    gateway.histories.inform(need, &who, &host).await.map_err(deny)?;
    let agent = who.identity.agent.index;
    let ruling = decide::resolve(&plan, &who, &host, connection.local.port(), &query_type);
    if ruling.verdict.is_err() {
        return Err(ruling);
    }
    let now_s = gateway.now_s();
    let running = gateway.dns.begin(agent, now_s).map_err(|reason| deny(reason).obliged_by(&ruling))?;
    let noted = running.asked(&gateway.dns, now_s, &host.to_string(), question.kind, bytes);
    exchange.findings(noted.found.iter().map(|finding| finding.name().to_owned()));
    if noted.over.is_some() {
        return Err(deny(DropReason::DnsCapped).obliged_by(&ruling));
    }
    Ok((Admitted { who, host, kind, query_type, running }, ruling))
}

/// The canonical name that is asked for, if there is one: in another spelling it would be judged as one name and asked
/// for as another.
fn name(question: &Question) -> Option<Host> {
    let name = question.name.as_deref()?;
    match Host::parse(name) {
        Ok(Host::Name(canonical)) if canonical == name => Some(Host::Name(canonical)),
        _ => None,
    }
}

/// As policy names it: `TYPE` and the number where it has no name (RFC 3597 5).
fn type_name(kind: RecordType) -> String {
    match kind {
        RecordType::Unknown(number) => format!("TYPE{number}"),
        named => named.to_string(),
    }
}

/// What of an upstream's answer may be released, now that it is there: who asked may have been quarantined meanwhile, and
/// policy may be another.
async fn released(
    gateway: &Gateway,
    port: u16,
    admitted: &Admitted,
    found: Found,
) -> Result<(Said, Judged), DropReason> {
    let Admitted { who, host, kind, query_type, .. } = admitted;
    let plan = gateway.snapshots.current()?;
    let who = who.under(&plan, gateway.now_s())?;
    // A condition on history that is new with this plan denies: nothing is known for it.
    let need = decide::needs_history(&plan, &who, &[Operation::Resolve { host, port, query_type }]);
    gateway.histories.inform(need, &who, host).await?;
    let ruling = decide::resolve(&plan, &who, host, port, query_type);
    ruling.verdict?;
    let agent = &who.identity.agent;
    let policy = plan.policy(agent).ok_or(DropReason::PolicyMissing)?;
    let refuse = |ip| {
        if gateway.own.is(ip) {
            return Some(DropReason::GatewayAddress);
        }
        (is_reserved(ip) && !policy.reaches(agent, ip)).then_some(DropReason::AddressReserved)
    };
    let Found { name, code, answers, soa, .. } = found;
    let judged = judge::judge(&name, *kind, &answers, refuse);
    open(gateway, &plan, &who, (host, query_type, port), (&ruling.policies, &judged)).await?;
    let said =
        Said { answers: judged.records.clone(), authorities: soa.into_iter().collect(), ..Said::only(code) };
    Ok((said, judged))
}

/// Has the addresses opened, before they are told, that the permits of the name open.
async fn open(
    gateway: &Gateway,
    plan: &Plan,
    who: &Who,
    (host, query_type, port): (&Host, &str, u16),
    (policies, judged): (&[String], &Judged),
) -> Result<(), DropReason> {
    let agent = &who.identity.agent;
    let policy = plan.policy(agent).ok_or(DropReason::PolicyMissing)?;
    let opens = |ip| !is_reserved(ip) && !policy.opens(policies, agent, ip).is_empty();
    let mut addresses: Vec<_> = judged.addresses.iter().filter(|(ip, _)| opens(*ip)).copied().collect();
    if addresses.is_empty() {
        return Ok(());
    }
    // A client that was told an address just now has the time to dial it.
    let least = u32::try_from(limit::DNS_OPEN_LEAST.as_secs()).unwrap_or(u32::MAX);
    addresses.iter_mut().for_each(|(_, ttl)| *ttl = (*ttl).max(least));
    let told = Told { agent: agent.index, host, query_type, port };
    gateway.dns.learn(told, &addresses).await
}

#[cfg(test)]
mod tests;
