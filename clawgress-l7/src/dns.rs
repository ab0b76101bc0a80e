//! DNS for agents: their questions are steered here, whatever server they ask, judged, asked anew of the configured
//! servers, and answered with what may be told.
//!
//! INVARIANT: nothing of a question goes on before it is judged and recorded, and nothing but its name and type ever
//! does; an address that policy opens by name is open before the answer that tells it is released. A question takes its
//! agent's share before anything is recorded or waited for.

use std::sync::Arc;
use std::time::Instant;

use clawgress_api::AgentRef;
use clawgress_ebpf_common::DropReason;
use clawgress_identity::IdentityMethod;
use clawgress_inspect::dns::{DnsError, Question, question};
use clawgress_policy::{Host, Operation, is_reserved};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
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

mod cache;
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
}

/// What came of a question.
struct Asked {
    said: Said,
    /// Why not, or not all, of what was asked for.
    reason: Option<DropReason>,
    /// Whether it was asked anybody.
    is_asked: bool,
}

/// What comes with a question.
struct Asking<'a> {
    connection: &'a Connection,
    question: &'a Question,
    /// Its bytes.
    bytes: usize,
    /// Its agent, by the plan that was current when it came.
    who: Result<(Arc<Plan>, Who), DropReason>,
    /// Its place among those under way.
    running: Result<&'a Running, DropReason>,
}

/// Answers datagrams until `stop`, and then those it has taken.
pub async fn datagrams(
    gateway: Arc<Gateway>,
    socket: Datagrams,
    flows: Arc<Flows>,
    stop: CancellationToken,
    beat: Beat,
) {
    let socket = Arc::new(socket);
    let mut answers = JoinSet::new();
    let mut looks = tokio::time::interval(limit::ACCEPT_BEAT);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // While as many are under way as may be, the others wait in the socket, which is bounded by the kernel.
        let next = async {
            let permit = Arc::clone(&gateway.dns.datagrams).acquire_owned().await.ok()?;
            Some((permit, socket.receive().await))
        };
        let received = tokio::select! {
            () = stop.cancelled() => break,
            received = next => received,
            // In its turn also while datagrams never cease.
            _ = looks.tick() => {
                beat.set();
                tell_unrecorded(&gateway);
                continue;
            }
        };
        beat.set();
        while answers.try_join_next().is_some() {}
        match received {
            Some((permit, Ok(Some(datagram)))) => {
                let entered = || Ok(datagram.ifindex);
                let kind = clawgress_api::handover::ListenerKind::DnsDatagram;
                let connection = Connection::new(kind, datagram.peer, datagram.asked, entered, &flows);
                let (gateway, socket) = (Arc::clone(&gateway), Arc::clone(&socket));
                answers.spawn(async move {
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
            None => break,
        }
    }
    // What takes longer ends with its record.
    let answered = async { while answers.join_next().await.is_some() {} };
    let _late = timeout(limit::DNS_LAST, answered).await;
    // One that still ran would count after it was told how many were not recorded.
    answers.shutdown().await;
    tell_unrecorded(&gateway);
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

/// Records how many questions there were beside those that are recorded, and whose.
fn tell_unrecorded(gateway: &Gateway) {
    for (agent, count) in gateway.dns.unrecorded() {
        let plan = gateway.snapshots.current().ok();
        let identity = plan.and_then(|plan| plan.trust.by_source(agent, IdentityMethod::Source).ok());
        let reference = identity.map(|identity| AgentRef::new(&identity.agent, identity.method));
        gateway.audit.gap(reference, count, "questions to DNS beyond `questions_per_second_max`");
    }
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
    let agent = connection.bound.as_ref().ok().and_then(Option::as_ref).map_or(0, |bound| bound.index);
    let (now, now_s) = (Instant::now(), gateway.now_s());
    if !gateway.dns.admits(agent, now, now_s) {
        // Its id is its first word.
        let id = u16::from_be_bytes(*bytes.first_chunk()?);
        return wire::bare(id, 0, ResponseCode::ServFail);
    }
    let running = gateway.dns.begin(agent, now, now_s);
    let mut exchange = Exchange::new(gateway, connection);
    exchange.protocol(carriage.name());
    let who = identified(gateway, connection);
    if let Ok((plan, who)) = &who {
        exchange.agent(who, plan);
    }
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
    let asking = Asking {
        connection,
        question: &question,
        bytes: bytes.len(),
        who,
        running: running.as_ref().map_err(|reason| *reason),
    };
    // Boxed: tasks of datagrams wait in thousands.
    let Asked { said, reason, is_asked } = Box::pin(ask(gateway, asking, &mut exchange)).await;
    let said = said.answer(&question, carriage);
    if let (Ok(running), Some(said), true) = (&running, &said, is_asked) {
        running.answered(gateway.now_s(), said.len());
    }
    exchange.end(End { reason, ..sizes(bytes, said.as_ref()) });
    said
}

/// Whose source it is.
fn identified(gateway: &Gateway, connection: &Connection) -> Result<(Arc<Plan>, Who), DropReason> {
    let plan = gateway.snapshots.current()?;
    let who = identify::bound(&plan, connection)?.ok_or(DropReason::Anonymous)?;
    Ok((plan, who))
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
async fn ask(gateway: &Gateway, asking: Asking<'_>, exchange: &mut Exchange) -> Asked {
    let refuse = |reason, exchange: &Exchange| Asked {
        said: Said::refused(reason, exchange.id()),
        reason: Some(reason),
        is_asked: false,
    };
    let port = asking.connection.local.port();
    let has_place = asking.running.is_ok();
    let admitted = admit(gateway, asking, exchange).await;
    let (admitted, ruling) = match admitted {
        Ok((admitted, ruling)) => (Some(admitted), ruling),
        Err(ruling) => (None, ruling),
    };
    // Before anybody is asked: what a quarantine matches reaches nobody.
    // What has no place among those under way waits for nothing: it would keep a datagram's, which all agents share.
    if has_place {
        exchange.keep_pace(&ruling).await;
    }
    let ruling = enforce(gateway, ruling, exchange.id()).await;
    let Some(admitted) = admitted.filter(|_| ruling.verdict.is_ok()) else {
        let reason = ruling.verdict.err().unwrap_or(DropReason::PolicyDenied);
        exchange.deny(ruling);
        return refuse(reason, exchange);
    };
    // A limit took time, perhaps, and a name may carry anything: whoever may not ask by now has nobody asked.
    if let Err(denied) = still(gateway, port, &admitted).await {
        exchange.under(&gateway.snapshots);
        let reason = denied.reason();
        exchange.deny(Ruling { duties: None, effects: ruling.effects, ..denied });
        return refuse(reason, exchange);
    }
    if let Err(reason) = exchange.allow(&ruling) {
        return refuse(reason, exchange);
    }
    let agent = admitted.who.identity.agent.index;
    let Ok(found) = gateway.dns.find(agent, &admitted.host, admitted.kind).await else {
        return Asked { is_asked: true, ..refuse(DropReason::ResolveFailed, exchange) };
    };
    let (reason, said) = match released(gateway, port, &admitted, found, exchange).await {
        Ok((said, judged)) => match judged.is_emptied(admitted.kind) {
            Some((ip, reason)) => {
                exchange.address(ip);
                (Some(reason), None)
            }
            None => (judged.refused.map(|(_, reason)| reason), Some(said)),
        },
        Err(reason) => (Some(reason), None),
    };
    let said =
        said.unwrap_or_else(|| Said::refused(reason.unwrap_or(DropReason::PolicyDenied), exchange.id()));
    Asked { said, reason, is_asked: true }
}

/// Judges a question as it comes.
async fn admit(
    gateway: &Gateway,
    asking: Asking<'_>,
    exchange: &mut Exchange,
) -> Result<(Admitted, Ruling), Ruling> {
    let Asking { connection, question, bytes, who, running } = asking;
    let deny = |reason| Ruling::deny("resolve", reason);
    let (kind, port) = (RecordType::from(question.kind), connection.local.port());
    let query_type = type_name(kind);
    let host = name(question);
    if let Some(host) = &host {
        exchange.host(host, port);
    }
    exchange.query_type(&query_type);
    let (plan, who) = who.map_err(deny)?;
    let running = running.map_err(deny)?;
    let host = host.ok_or(deny(DropReason::HostInvalid))?;
    let operation = Operation::Resolve { host: &host, port, query_type: &query_type };
    let need = decide::needs_history(&plan, &who, &[operation]);
    gateway.histories.inform(need, &who, &host).await.map_err(deny)?;
    let ruling = decide::resolve(&plan, &who, &host, port, &query_type);
    if ruling.verdict.is_err() {
        return Err(ruling);
    }
    let noted = running.asked(&gateway.dns, gateway.now_s(), &host.to_string(), question.kind, bytes);
    exchange.names(&noted.found);
    if noted.over.is_some() {
        return Err(deny(DropReason::DnsCapped).obliged_by(&ruling));
    }
    Ok((Admitted { who, host, kind, query_type }, ruling))
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

/// What is said of a question as things are now, with the plan and whose it is by it.
///
/// # Errors
/// What denies it.
async fn still(
    gateway: &Gateway,
    port: u16,
    admitted: &Admitted,
) -> Result<(Arc<Plan>, Who, Ruling), Ruling> {
    let Admitted { who, host, query_type, .. } = admitted;
    let deny = |reason| Ruling::deny("resolve", reason);
    let plan = gateway.snapshots.current().map_err(deny)?;
    let who = who.under(&plan, gateway.now_s()).map_err(deny)?;
    // A condition on history that is new with this plan denies: nothing is known for it.
    let need = decide::needs_history(&plan, &who, &[Operation::Resolve { host, port, query_type }]);
    gateway.histories.inform(need, &who, host).await.map_err(deny)?;
    let ruling = decide::resolve(&plan, &who, host, port, query_type);
    if ruling.verdict.is_err() { Err(ruling) } else { Ok((plan, who, ruling)) }
}

/// What of an upstream's answer may be released, now that it is there: who asked may have been quarantined meanwhile, and
/// policy may be another.
async fn released(
    gateway: &Gateway,
    port: u16,
    admitted: &Admitted,
    found: Found,
    exchange: &mut Exchange,
) -> Result<(Said, Judged), DropReason> {
    let Admitted { host, kind, query_type, .. } = admitted;
    let (plan, who, ruling) = still(gateway, port, admitted).await.map_err(|denied| denied.reason())?;
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
    for alias in &judged.aliases {
        if let Err(reason) = may_lead_to(gateway, &plan, &who, (alias, query_type, port)).await {
            exchange.detail(&format!("by way of `{alias}`"));
            return Err(reason);
        }
    }
    open(gateway, &plan, &who, (host, query_type, port), (&ruling.policies, &judged)).await?;
    let said =
        Said { answers: judged.records.clone(), authorities: soa.into_iter().collect(), ..Said::only(code) };
    Ok((said, judged))
}

/// Whether an answer may lead on to another name. Whoever is permitted a name takes whatever names whoever serves it has behind
/// it, so they need no permit; but what is forbidden, or can't be judged, isn't reached by another name either.
async fn may_lead_to(
    gateway: &Gateway,
    plan: &Plan,
    who: &Who,
    (alias, query_type, port): (&Name, &str, u16),
) -> Result<(), DropReason> {
    let text = alias.to_lowercase().to_ascii();
    let text = text.strip_suffix('.').unwrap_or(&text);
    let host = match Host::parse(text) {
        Ok(host @ Host::Name(_)) if host.to_string() == text => host,
        _ => return Err(DropReason::HostInvalid),
    };
    let operation = Operation::Resolve { host: &host, port, query_type };
    gateway.histories.inform(decide::needs_history(plan, who, &[operation]), who, &host).await?;
    match decide::resolve(plan, who, &host, port, query_type).verdict {
        Ok(()) | Err(DropReason::PolicyDenied) => Ok(()),
        Err(reason) => Err(reason),
    }
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
