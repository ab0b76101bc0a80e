//! Traffic that stays unread: TLS that is not intercepted, and protocols nobody here can read. Decides which is,
//! dials and carries; judges again while it carries.
//!
//! INVARIANT: of a client nothing goes on before its first bytes were classified and judged, also when
//! its server speaks first; but of what may be unread, what is neither TLS nor a request yet ([`Opening`]).

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use clawgress_api::EffectRef;
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::client_hello::ClientHello;
use clawgress_inspect::dns::watch::Finding;
use clawgress_inspect::ja4::Ja4;
use clawgress_inspect::sniff::{Opening, Protocol, Step, sniff};
use clawgress_policy::effect::Obligation;
use clawgress_policy::{Host, Need, Operation, TunnelProtocol};
use tokio::io::AsyncRead;
use tokio::time::Instant;

use crate::connection::Connection;
use crate::decide::{self, Hello, Ruling};
use crate::enforce::enforce;
use crate::exchange::{End, Exchange};
use crate::gateway::Gateway;
use crate::identify::{self, Who};
use crate::intercept::{self, Wanted};
use crate::rest::{Rest, then};
use crate::route::Way;
use crate::serve::Serving;
use crate::snapshot::Plan;
use crate::stream::Stream;
use crate::tunnel::{Meter, Stop, Upstream};
use crate::{dial, limit, page, peek, tunnel};

/// What stays unread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// TLS with a hello like this.
    Tls(Offered),
    /// Neither TLS nor HTTP.
    Unknown,
}

/// What of a hello policy asks for besides its server name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// ALPN names, in the client's order.
    pub alpn: Vec<String>,
    /// Its fingerprint.
    pub ja4: Ja4,
    /// Whether it may hide another name than it shows (RFC 9849).
    pub is_encrypted: bool,
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
    /// What the client dialled, if that was an address, and it names a host at most in its hello.
    pub steered_to: Option<SocketAddr>,
    /// The way that was taken, once it was.
    pub way: Option<Way>,
    /// What it was obliged to after it was decided.
    pub effects: Box<[EffectRef]>,
}

/// What proves to be carried once its client speaks, and what the names look like that were asked for to know it.
#[derive(Debug)]
struct Found {
    subject: Subject,
    names: Vec<Finding>,
}

// === impl Offered ===

impl Offered {
    /// What `hello` offers.
    #[must_use]
    pub fn of(hello: &ClientHello) -> Self {
        Offered { alpn: hello.alpn.clone(), ja4: Ja4::of(hello), is_encrypted: hello.encrypted }
    }

    /// As policy is asked about it.
    #[must_use]
    pub fn hello(&self) -> Hello<'_> {
        Hello { alpn: &self.alpn, ja4: self.ja4.as_str(), is_encrypted: self.is_encrypted }
    }
}

// === impl Subject ===

impl Subject {
    /// The ruling under `plan`, with `connect` if the address is known.
    #[must_use]
    pub fn judge(&self, gateway: &Gateway, plan: &Plan) -> Ruling {
        let who = match self.who.under(plan, gateway.now_s()) {
            Ok(who) => who,
            Err(reason) => return Ruling::deny("tunnel", reason),
        };
        let agent = &who.identity.agent;
        let ruling = match &self.content {
            Content::Tls(offered) => {
                let excluded = gateway.excludes(&self.host);
                decide::tls(plan, &who, (&self.host, self.port), offered.hello(), excluded)
            }
            Content::Unknown => {
                decide::unknown(plan, &who, &self.host, self.port, gateway.excludes(&self.host))
            }
        };
        let Some(way) = self.way.as_ref().filter(|_| ruling.verdict.is_ok()) else { return ruling };
        let ways = (std::slice::from_ref(way), self.port);
        match decide::connect(plan, agent, &gateway.own, ways, self.steered_to) {
            Ok(judged) => ruling.with(&judged.policies),
            Err(refused) => refused.ruling.obliged_by(&ruling),
        }
    }

    /// A ruling that allows it as it is now, and those of `ways` that `connect` permits now, by the plan that is returned: what it was
    /// obliged to may have taken time.
    ///
    /// # Errors
    /// What denies it now. It obliges to nothing more, and tells what was done already.
    pub async fn still(
        &self,
        gateway: &Gateway,
        ruling: Ruling,
        ways: &[Way],
        exchange: &mut Exchange,
    ) -> Result<(Arc<Plan>, Ruling, Vec<Way>), Ruling> {
        if ruling.verdict.is_err() {
            return Err(ruling);
        }
        let refuse = |denied: Ruling, exchange: &mut Exchange| {
            exchange.under(&gateway.snapshots);
            Ruling { duties: None, effects: ruling.effects.clone(), ..denied }
        };
        let plan = match gateway.snapshots.current() {
            Ok(plan) => self.inform(gateway, &plan).await.map(|()| plan),
            Err(reason) => Err(reason),
        };
        let plan = plan.map_err(|reason| refuse(Ruling::deny("tunnel", reason), exchange))?;
        let now = self.judge(gateway, &plan);
        if now.verdict.is_err() {
            return Err(refuse(now, exchange));
        }
        if ways.is_empty() {
            return Ok((plan, ruling, Vec::new()));
        }
        let who = self.who.under(&plan, gateway.now_s());
        let who = who.map_err(|reason| refuse(Ruling::deny("connect", reason), exchange))?;
        let to = (ways, self.port);
        match decide::connect(&plan, &who.identity.agent, &gateway.own, to, self.steered_to) {
            Ok(judged) => Ok((plan, ruling, judged.ways)),
            Err(refused) => {
                exchange.refused(&refused);
                Err(refuse(refused.ruling, exchange))
            }
        }
    }

    /// Lets it know its history, if somebody needs that under `plan`.
    ///
    /// # Errors
    /// If control can't be asked for what is decided by it.
    pub async fn inform(&self, gateway: &Gateway, plan: &Plan) -> Result<(), DropReason> {
        gateway.histories.inform(self.needs_history(plan, &self.who), &self.who, &self.host).await
    }

    /// Who needs to know what `who` did before, for this.
    #[must_use]
    pub fn needs_history(&self, plan: &Plan, who: &Who) -> Need {
        let (host, port) = (&self.host, self.port);
        let tunnel = |protocol| Operation::Tunnel { host, port, protocol };
        match &self.content {
            Content::Tls(offered) => {
                let Hello { alpn, ja4, .. } = offered.hello();
                let hello = Operation::Tls { host, port, alpn, ja4 };
                let shown = tunnel(TunnelProtocol::Tls);
                decide::needs_history(plan, who, &[hello, shown, tunnel(offered.hello().protocol())])
            }
            Content::Unknown => decide::needs_history(plan, who, &[tunnel(TunnelProtocol::Unknown)]),
        }
    }

    /// Ends when this may go on no longer, and says why; `found` takes its place once it is there.
    async fn forbidden(&self, gateway: &Gateway, found: &OnceLock<Found>) -> DropReason {
        let mut changes = gateway.snapshots.subscribe();
        loop {
            let expires_at_s = match gateway.snapshots.current() {
                Ok(plan) => {
                    let subject = found.get().map_or(self, |found| &found.subject);
                    let informed = subject.inform(gateway, &plan).await;
                    if let Err(reason) = informed.and_then(|()| subject.judge(gateway, &plan).verdict) {
                        return reason;
                    }
                    self.who.expires_at_s(&plan)
                }
                Err(reason) => return reason,
            };
            if let Err(reason) = gateway.until_judged_again(&mut changes, expires_at_s).await {
                return reason;
            }
        }
    }

    /// The first bytes of a client that was silent when this was allowed as an unknown protocol, or had said no more than `held`. They
    /// may be TLS after all: then `found` is what is carried, if it is allowed too. What is neither that nor a request goes on.
    async fn late_first(
        &self,
        gateway: &Gateway,
        (reader, onward): (&mut (impl AsyncRead + Unpin), (&Upstream, &Meter)),
        mut held: Vec<u8>,
        (found, request): (&OnceLock<Found>, &str),
    ) -> Result<Vec<u8>, Stop> {
        let (mut opening, mut deadline) = (Opening::default(), None);
        loop {
            match opening.next(&held) {
                Step::GoesOn => tunnel::pass(onward, &std::mem::take(&mut held)).await?,
                Step::Waits => {}
                Step::Is(Protocol::Unknown) => break,
                // Its requests, or what is behind a header of somebody else's, would go unread.
                Step::Is(Protocol::Http1 | Protocol::Proxied) => {
                    return Err(DropReason::ProtocolUnknown.into());
                }
                Step::Is(Protocol::Http2) => return Err(DropReason::UpgradeUnsupported.into()),
                Step::Is(Protocol::Tls) => {
                    let hello = peek::hello(reader, &mut held, Instant::now() + limit::PEEK).await?;
                    let (tls, verdict) = self.late_tls(gateway, hello, request).await?;
                    // Also where it is denied: its record tells what it was, and what it was obliged to.
                    let _ = found.set(tls);
                    verdict?;
                    break;
                }
            }
            if peek::late(reader, &mut held, &mut deadline).await? == 0 {
                break;
            }
        }
        Ok(held)
    }

    /// What this is, now that it proves to be TLS, and whether it may go on.
    async fn late_tls(
        &self,
        gateway: &Gateway,
        hello: ClientHello,
        request: &str,
    ) -> Result<(Found, Result<(), DropReason>), DropReason> {
        let offered = Offered::of(&hello);
        let host = if self.steered_to.is_some() {
            Host::parse(&hello.server_name.ok_or(DropReason::SniMissing)?)
                .map_err(|_| DropReason::HostInvalid)?
        } else {
            check_name(&self.host, hello.server_name.as_deref())?;
            self.host.clone()
        };
        let mut subject = Subject { host, content: Content::Tls(offered), ..self.clone() };
        subject.who = subject.who.later();
        subject.inform(gateway, &*gateway.snapshots.current()?).await?;
        let judge = || Ok(subject.judge(gateway, &*gateway.snapshots.current()?));
        let (mut ruling, mut names) = (judge()?, Vec::new());
        if self.steered_to.is_some() && ruling.verdict.is_ok() {
            // The connection is made already, to where the client wanted: that must be where we would
            // have gone.
            let to = (&subject.host, subject.port);
            let ways = gateway.ways(subject.who.identity.agent.index, to, &mut names).await?;
            ruling = judge()?;
            if ruling.verdict.is_ok() && self.way.as_ref().is_none_or(|way| !ways.contains(way)) {
                ruling = Ruling::deny("tls", DropReason::SniMismatch).obliged_by(&ruling);
            }
        }
        // What the tunnel was obliged to already counted once.
        let counted = |o: &Obligation| {
            self.effects.iter().any(|told| *told.policy == *o.policy && told.effect == o.effect.name())
        };
        if let Some(duties) = &mut ruling.duties {
            duties.obligations.retain(|obligation| !counted(obligation));
        }
        let ruling = enforce(gateway, ruling, request).await;
        subject.effects = ruling.effects;
        Ok((Found { subject, names }, ruling.verdict))
    }
}

/// Whether a server name is the host that was asked for; for an address there must be none.
///
/// # Errors
/// [`DropReason::SniMissing`] or [`DropReason::SniMismatch`].
pub fn check_name(asked: &Host, name: Option<&str>) -> Result<(), DropReason> {
    match (asked, name) {
        (Host::Name(_), None) => Err(DropReason::SniMissing),
        (Host::Address(_), None) => Ok(()),
        (Host::Name(_), Some(name)) if Host::parse(name).ok().as_ref() == Some(asked) => Ok(()),
        _ => Err(DropReason::SniMismatch),
    }
}

/// Denies a client in terms of what it speaks: an alert for TLS; in a protocol nobody knows, nothing can
/// be said. It was answered with this status before, if it was answered.
pub async fn refuse(
    gateway: &Gateway,
    content: Content,
    mut exchange: Exchange,
    (stream, status): (Stream, Option<u16>),
    ruling: Ruling,
) {
    exchange.content(&content);
    exchange.keep_pace(&ruling).await;
    let ruling = enforce(gateway, ruling, exchange.id()).await;
    match content {
        Content::Tls(_) => refuse_tls(exchange, stream, ruling, status).await,
        Content::Unknown => deny_silently(exchange, ruling, status),
    }
}

/// Denies TLS in the client's own terms, after that HTTP status, if it has got one.
pub async fn refuse_tls(mut exchange: Exchange, stream: Stream, ruling: Ruling, status: Option<u16>) {
    let reason = ruling.verdict.err().unwrap_or(DropReason::PolicyDenied);
    exchange.deny(ruling);
    exchange.end(End { status, reason: Some(reason), ..End::default() });
    peek::say_and_close(stream, &page::alert(reason)).await;
}

/// Denies a client in whose protocol nothing can be said. It was answered with this status before, if it was answered.
pub fn deny_silently(mut exchange: Exchange, ruling: Ruling, status: Option<u16>) {
    let reason = ruling.verdict.err();
    exchange.deny(ruling);
    exchange.end(End { status, reason, ..End::default() });
}

/// Begins with a steered TLS connection, of which `held` was read.
pub async fn transparent_tls(
    serving: &Serving,
    connection: Connection,
    mut stream: Stream,
    mut held: Vec<u8>,
    deadline: Instant,
) -> Rest<'_> {
    let gateway = &serving.gateway;
    let hello = peek::hello(&mut stream, &mut held, deadline).await;
    let mut exchange = Exchange::new(gateway, &connection);
    match tls_subject(gateway, &connection, hello, &mut exchange) {
        Ok((subject, plan)) => establish(serving, connection, exchange, (subject, plan), stream, held).await,
        Err(ruling) => then(refuse_tls(exchange, stream, ruling, None)),
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
    let who = bound(gateway, &plan, connection, exchange).map_err(deny)?;
    let hello = hello.map_err(deny)?;
    let offered = Offered::of(&hello);
    exchange.hello(offered.ja4);
    let name = hello.server_name.ok_or(deny(DropReason::SniMissing))?;
    let host = Host::parse(&name).map_err(|_| deny(DropReason::HostInvalid))?;
    let (port, steered_to) = (connection.local.port(), connection.steered_to());
    exchange.host(&host, port);
    Ok((
        Subject {
            who,
            host,
            port,
            content: Content::Tls(offered),
            steered_to,
            way: None,
            effects: Box::default(),
        },
        plan,
    ))
}

fn bound(
    gateway: &Gateway,
    plan: &Plan,
    connection: &Connection,
    exchange: &mut Exchange,
) -> Result<Who, DropReason> {
    let who = identify::bound(plan, connection)?.ok_or(DropReason::Anonymous)?;
    exchange.agent(&who, plan);
    exchange.occupy(gateway, &who)?;
    Ok(who)
}

/// Whether policy lets this steered connection speak a protocol nobody here can read.
#[must_use]
pub async fn unknown_permitted(gateway: &Gateway, connection: &Connection) -> bool {
    let Ok(plan) = gateway.snapshots.current() else { return false };
    let Ok(Some(who)) = identify::bound(&plan, connection) else { return false };
    let (host, port) = (Host::Address(connection.local.ip()), connection.local.port());
    let operation = Operation::Tunnel { host: &host, port, protocol: TunnelProtocol::Unknown };
    let need = decide::needs_history(&plan, &who, &[operation]);
    gateway.histories.inform(need, &who, &host).await.is_ok()
        && decide::unknown(&plan, &who, &host, port, gateway.excludes(&host)).verdict.is_ok()
}

/// Begins with a steered connection of an unknown protocol, or one that waits for the server to begin (`held` is
/// then empty) or to answer a word.
pub async fn transparent_unknown(
    serving: &Serving,
    connection: Connection,
    stream: Stream,
    held: Vec<u8>,
) -> Rest<'_> {
    let gateway = &serving.gateway;
    let mut exchange = Exchange::new(gateway, &connection);
    let deny = |reason| Ruling::deny("tunnel", reason);
    let host = Host::Address(connection.local.ip());
    let (port, steered_to) = (connection.local.port(), connection.steered_to());
    exchange.host(&host, port);
    let subject = gateway.snapshots.current().map_err(deny).and_then(|plan| {
        let who = bound(gateway, &plan, &connection, &mut exchange).map_err(deny)?;
        Ok((
            Subject {
                who,
                host,
                port,
                content: Content::Unknown,
                steered_to,
                way: None,
                effects: Box::default(),
            },
            plan,
        ))
    });
    match subject {
        Ok((subject, plan)) => establish(serving, connection, exchange, (subject, plan), stream, held).await,
        Err(ruling) => {
            deny_silently(exchange, ruling, None);
            None
        }
    }
}

/// Judges, resolves, judges every address and dials, for it to be carried, or read.
async fn establish(
    serving: &Serving,
    connection: Connection,
    mut exchange: Exchange,
    (mut subject, plan): (Subject, Arc<Plan>),
    stream: Stream,
    held: Vec<u8>,
) -> Rest<'_> {
    let gateway = &serving.gateway;
    let reached = async {
        let informed = subject.inform(gateway, &plan).await;
        informed.map_err(|reason| Ruling::deny("tunnel", reason))?;
        let ruling = subject.judge(gateway, &plan);
        if ruling.verdict.is_err() {
            return Err(ruling);
        }
        let (to, mut noted) = ((&subject.host, subject.port), Vec::new());
        let ways = gateway.ways(subject.who.identity.agent.index, to, &mut noted).await;
        exchange.names(&noted);
        let ways = ways.map_err(|reason| Ruling::deny("connect", reason).obliged_by(&ruling))?;
        let agent = &subject.who.identity.agent;
        let ways = (&ways[..], subject.port);
        let judged = decide::connect(&plan, agent, &gateway.own, ways, subject.steered_to);
        judged.map(|judged| (ruling.clone().with(&judged.policies), judged.ways)).map_err(|refused| {
            exchange.refused(&refused);
            refused.ruling.obliged_by(&ruling)
        })
    }
    .await;
    let (ruling, ways) = match reached {
        Ok(reached) => reached,
        Err(ruling) if intercept::is_wanted(gateway, &subject, &ruling) => {
            let wanted = Wanted { exchange, subject, stream, held, status: None };
            return intercept::serve(serving, connection, wanted).await;
        }
        Err(ruling) => return then(refuse(gateway, subject.content, exchange, (stream, None), ruling)),
    };
    drop(plan);
    // Before anything is dialled: what a quarantine matches reaches nobody.
    exchange.keep_pace(&ruling).await;
    let ruling = enforce(gateway, ruling, exchange.id()).await;
    let (ruling, ways) = match subject.still(gateway, ruling, &ways, &mut exchange).await {
        Ok((_, ruling, ways)) => (ruling, ways),
        Err(ruling) => return then(refuse(gateway, subject.content, exchange, (stream, None), ruling)),
    };
    let behalf = dial::Behalf { agent: subject.who.identity.agent.index, steered_to: subject.steered_to };
    match dial::dial(&gateway.dials, behalf, &ways, (&subject.host, subject.port)).await {
        Ok((upstream, way)) => {
            subject.way = Some(way);
            let enforced = Enforced { effects: ruling.effects, status: None };
            then(carry(gateway, exchange, subject, stream, upstream, held, enforced))
        }
        Err(failed) => unreached(exchange, &subject.content, (stream, None), &ruling, failed),
    }
}

/// Ends what is permitted, and can't be connected: a client that speaks TLS is told so as TLS has it. It was answered with this status
/// before, if it was answered.
pub fn unreached(
    mut exchange: Exchange,
    content: &Content,
    (stream, status): (Stream, Option<u16>),
    ruling: &Ruling,
    failed: dial::Failed,
) -> Rest<'static> {
    exchange.content(content);
    failed.way.iter().for_each(|way| exchange.way(way));
    let _ = exchange.allow(ruling);
    exchange.end(End { reason: Some(failed.reason), status, ..End::default() });
    if *content == Content::Unknown {
        return None;
    }
    then(async move { peek::say_and_close(stream, &page::alert(failed.reason)).await })
}

/// What was done before a tunnel is carried.
#[derive(Clone, Debug, Default)]
pub struct Enforced {
    /// What it was obliged to.
    pub effects: Box<[EffectRef]>,
    /// The HTTP status that its client has got.
    pub status: Option<u16>,
}

/// Judges what is really there at the address that was dialled, records the decision, then carries
/// bytes until the end: `held` first, which tells what it is, unless the client waits for the server to begin, or to answer a word.
pub async fn carry(
    gateway: &Arc<Gateway>,
    mut exchange: Exchange,
    mut subject: Subject,
    mut client: Stream,
    upstream: Upstream,
    held: Vec<u8>,
    enforced: Enforced,
) {
    let Enforced { effects, status } = enforced;
    subject.effects.clone_from(&effects);
    exchange.content(&subject.content);
    subject.way.iter().for_each(|way| exchange.way(way));
    // Dialling took time: policy counts as of now.
    let ruling = match gateway.snapshots.current() {
        Ok(plan) => {
            exchange.agent(&subject.who, &plan);
            match subject.inform(gateway, &plan).await {
                // It counted once.
                Ok(()) => Ruling { duties: None, effects, ..subject.judge(gateway, &plan) },
                Err(reason) => Ruling::deny("tunnel", reason),
            }
        }
        Err(reason) => Ruling::deny("tunnel", reason),
    };
    if ruling.verdict.is_err() {
        return Box::pin(refuse(gateway, subject.content, exchange, (client, status), ruling)).await;
    }
    if let Err(reason) = exchange.allow(&ruling) {
        exchange.end(End { status, reason: Some(reason), ..End::default() });
        return;
    }
    let (found, request, meter) = (OnceLock::new(), exchange.id().to_owned(), Meter::default());
    let onward = (&upstream, &meter);
    // Boxed: few clients wait, and every tunnel would hold as much.
    let first = async |mut reader| {
        let first = if subject.content == Content::Unknown && sniff(&held).is_none() {
            let told = (&found, &*request);
            Box::pin(subject.late_first(gateway, (&mut reader, onward), held, told)).await
        } else {
            Ok(held)
        };
        (reader, first)
    };
    let mut forbidden = Box::pin(subject.forbidden(gateway, &found));
    // Looked at whenever bytes come: this process may have stood still since it was asked last.
    let cut = poll_fn(|context| match gateway.snapshots.straggles() {
        true => Poll::Ready(DropReason::SnapshotMissing),
        false => forbidden.as_mut().poll(context),
    });
    let pipes = (&gateway.pipes, subject.who.identity.agent.index);
    let carried = tunnel::run(&mut client, onward, first, pipes, cut).await;
    let (sent, received, reason) = carried;
    if reason.is_some() {
        client.abandon();
    }
    if let Some(Found { subject: found, names }) = found.get() {
        exchange.host(&found.host, found.port);
        exchange.names(names);
        if let Content::Tls(Offered { ja4, .. }) = &found.content {
            exchange.hello(*ja4);
        }
        exchange.effects(&found.effects);
        subject.way.iter().for_each(|way| exchange.way(way));
    }
    exchange.end(End { status, sent, received, reason, ..End::default() });
}
