//! An explicit proxy's tunnel, by CONNECT (RFC 9110 section 9.3.6) or [`crate::socks`].
//!
//! What can be refused is refused before the client is told to begin, as a proper response. What follows must be
//! what was judged: TLS whose server name is the host that was asked for, or HTTP, which is then read.

mod manner;

use std::sync::Arc;

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::http1::{self, Body};
use clawgress_inspect::proxy_request::{self, Target};
use clawgress_inspect::sniff::{Opening, Protocol};
use clawgress_policy::Host;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::connection::Connection;
use crate::decide::{self, Judged, Ruling};
use crate::enforce::enforce;
use crate::exchange::{End, Exchange};
use crate::identify::{self, Who};
use crate::intercept::{self, Wanted};
use crate::opaque::{self, Content, Enforced, Offered, Subject};
use crate::plain_http::{Front, Place};
use crate::rest::{Rest, then};
use crate::route::Way;
use crate::serve::Serving;
use crate::snapshot::Plan;
use crate::stream::Stream;
use crate::tunnel::Upstream;
use crate::{dial, http2, limit, peek};

pub use self::manner::{Manner, Refused};

/// The ports at which plain HTTP, and only TLS, is expected inside a tunnel.
const HTTP_PORT: u16 = 80;
const TLS_PORT: u16 = 443;

/// What a client asks for.
#[derive(Debug)]
pub struct Asked {
    /// How it asked, and is answered.
    pub manner: Manner,
    /// Where to.
    pub host: Host,
    /// At which port.
    pub port: u16,
    /// As `Proxy-Authorization` has it.
    pub credential: Option<Zeroizing<Vec<u8>>>,
}

/// What was found permissible before the 200.
struct Prospect {
    who: Who,
    /// Ruling on TLS.
    tls: Ruling,
    /// Ruling on an unknown protocol.
    unknown: Ruling,
    /// Where it may be dialled. `None` as long as no more than HTTP is permitted, whose requests are
    /// judged one by one: a name that policy does not permit must not be asked of any DNS server.
    reached: Option<Judged>,
    /// Whether it may be obliged to something by what its hello says: until that is kept, nothing is dialled.
    is_obliged: bool,
    /// Whether it is denied but for what its hello may say.
    is_open: bool,
}

/// Begins to serve a CONNECT, of which `held` was read.
pub async fn serve(
    serving: &Serving,
    connection: Connection,
    mut stream: Stream,
    mut held: Vec<u8>,
    deadline: Instant,
) -> Rest<'_> {
    let exchange = Exchange::new(&serving.gateway, &connection);
    let asked = match peek::head(&mut stream, &mut held, deadline).await {
        Ok(n) => {
            let rest = held.split_off(n);
            let asked = parse(&held);
            // The head holds the credential in base64.
            drop(Zeroizing::new(std::mem::replace(&mut held, rest)));
            asked
        }
        Err(reason) => Err(reason),
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(reason) => {
            let refused = Refused { manner: Manner::Connect, exchange, stream, has_presented: false };
            return then(refused.end(&serving.gateway, Ruling::deny("tunnel", reason)));
        }
    };
    open(serving, connection, Begun { exchange, stream, held }, asked).await
}

/// Begins to serve a CONNECT of a stream, whose head in HTTP/1.1 is `head`.
pub async fn serve_stream(
    serving: &Serving,
    connection: Connection,
    stream: Stream,
    head: Result<Zeroizing<Vec<u8>>, DropReason>,
) -> Rest<'_> {
    let exchange = Exchange::new(&serving.gateway, &connection);
    match head.and_then(|head| parse(&head)) {
        Ok(asked) => open(serving, connection, Begun { exchange, stream, held: Vec::new() }, asked).await,
        Err(reason) => {
            let refused = Refused { manner: Manner::Connect, exchange, stream, has_presented: false };
            then(refused.end(&serving.gateway, Ruling::deny("tunnel", reason)))
        }
    }
}

/// What a tunnel is made of, whose client waits for an answer.
#[derive(Debug)]
pub struct Begun {
    /// What is recorded of it.
    pub exchange: Exchange,
    /// The client.
    pub stream: Stream,
    /// What it has sent already of what the tunnel is to carry.
    pub held: Vec<u8>,
}

/// Opens what was asked for.
pub async fn open(serving: &Serving, connection: Connection, begun: Begun, asked: Asked) -> Rest<'_> {
    let Begun { mut exchange, mut stream, held } = begun;
    let manner = asked.manner;
    exchange.host(&asked.host, asked.port);
    let prospect = match prospect(serving, &connection, &asked, &mut exchange).await {
        Ok(prospect) => prospect,
        Err(ruling) => {
            let has_presented = asked.credential.is_some() || connection.certificate.is_some();
            let refused = Refused { manner, exchange, stream, has_presented };
            return then(refused.end(&serving.gateway, ruling));
        }
    };
    let asked_at = std::time::Instant::now();
    let mut established = Established { serving, connection, exchange, asked, prospect, upstream: None };
    if let Err(reason) = established.dial_early().await {
        return then(established.unreachable(reason, stream));
    }
    if manner.establish(&mut stream).await.is_err() {
        return then(async move { established.record_dial(None).await });
    }
    established.first_bytes(stream, held, asked_at).await
}

fn parse(head: &[u8]) -> Result<Asked, DropReason> {
    let malformed = |_| DropReason::HttpMalformed;
    let head = http1::parse(head).map_err(malformed)?;
    let Ok(Target::Authority { host, port }) = proxy_request::parse(head.method, head.target) else {
        return Err(DropReason::HttpMalformed);
    };
    if head.body != Body::Length(0) {
        return Err(DropReason::HttpMalformed);
    }
    let host = Host::parse(host).map_err(|_| DropReason::HostInvalid)?;
    if let Some(field) = head.host {
        let text = std::str::from_utf8(field).map_err(|_| DropReason::HttpMalformed)?;
        let (name, field_port) = proxy_request::authority(text).map_err(|_| DropReason::HttpMalformed)?;
        if Host::parse(name).ok().as_ref() != Some(&host) || field_port.is_some_and(|p| p != port) {
            return Err(DropReason::HttpMalformed);
        }
    }
    let mut credentials = head.fields.iter().filter(|f| f.name.eq_ignore_ascii_case("proxy-authorization"));
    let credential = credentials.next().map(|f| Zeroizing::new(f.value.to_vec()));
    if credentials.next().is_some() {
        return Err(DropReason::CredentialInvalid);
    }
    Ok(Asked { manner: Manner::Connect, host, port, credential })
}

async fn prospect(
    serving: &Serving,
    connection: &Connection,
    asked: &Asked,
    exchange: &mut Exchange,
) -> Result<Prospect, Ruling> {
    let gateway = &serving.gateway;
    let deny = |reason| Ruling::deny("tunnel", reason);
    let plan = gateway.snapshots.current().map_err(deny)?;
    let bound = identify::bound(&plan, connection).map_err(deny)?;
    bound.iter().for_each(|bound| exchange.agent(bound, &plan));
    let credential = asked.credential.as_ref().map(|c| c.as_slice());
    let who = identify::identify(gateway, &plan, connection, bound, credential).await;
    let who = who.map_err(|stranger| deny(exchange.stranger(*stranger)))?;
    exchange.agent(&who, &plan);
    exchange.occupy(gateway, &who).map_err(deny)?;
    let need = decide::connect_needs_history(&plan, &who, &asked.host, asked.port);
    gateway.histories.inform(need, &who, &asked.host).await.map_err(deny)?;
    let (to, excluded) = ((&asked.host, asked.port), gateway.excludes(&asked.host));
    let tls = decide::tls_possible(&plan, &who, to, excluded);
    let unknown = decide::unknown(&plan, &who, &asked.host, asked.port, excluded);
    if tls.verdict.is_err() && unknown.verdict.is_err() {
        // What a fingerprint changes is told by the hello.
        // What is said of all hellos, where none is permitted, is said of the first of them.
        let may_read = tls.verdict == Err(DropReason::InspectionRequired)
            || decide::read_possible(&plan, &who, to, excluded);
        let is_read = may_read && gateway.reads(&asked.host).is_some();
        let is_possible = is_read || http_possible(&plan, &who, asked, &tls);
        if !is_possible && !decide::needs_ja4(&plan, &who, &asked.host, asked.port) {
            return Err(tls);
        }
        let is_open = !is_possible;
        return Ok(Prospect { who, tls, unknown, reached: None, is_obliged: false, is_open });
    }
    let allowed = if tls.verdict.is_ok() { &tls } else { &unknown };
    let reached = reach(serving, &plan, &who, asked, exchange).await;
    let reached = Some(reached.map_err(|refused| refused.obliged_by(allowed))?);
    let is_obliged = plan.obliges_opaque(&who.identity.agent);
    Ok(Prospect { who, tls, unknown, reached, is_obliged, is_open: false })
}

/// Resolves what is permitted, and judges its addresses.
async fn reach(
    serving: &Serving,
    plan: &Plan,
    who: &Who,
    asked: &Asked,
    exchange: &mut Exchange,
) -> Result<Judged, Ruling> {
    let gateway = &serving.gateway;
    let (to, mut noted) = ((&asked.host, asked.port), Vec::new());
    let ways = gateway.ways(who.identity.agent.index, to, &mut noted).await;
    exchange.names(&noted);
    let ways = ways.map_err(|reason| Ruling::deny("connect", reason))?;
    let judged = decide::connect(plan, &who.identity.agent, &gateway.own, (&ways, asked.port), None);
    judged.map_err(|refused| {
        exchange.refused(&refused);
        refused.ruling
    })
}

/// Whether plain HTTP may follow: some clients tunnel it too. Its requests are judged one by one, so
/// this only decides whether a refusal comes now or with the first request. Where policy speaks of TLS
/// (`inspection_required`), TLS is what is expected.
fn http_possible(plan: &Plan, who: &Who, asked: &Asked, tls: &Ruling) -> bool {
    let (host, port) = (&asked.host, asked.port);
    let tls_expected = port == TLS_PORT || tls.verdict == Err(DropReason::InspectionRequired);
    port == HTTP_PORT || !tls_expected && decide::root_possible(plan, who, host, port)
}

/// A tunnel whose client was told to begin.
struct Established<'a> {
    serving: &'a Serving,
    connection: Connection,
    exchange: Exchange,
    asked: Asked,
    prospect: Prospect,
    upstream: Option<(Upstream, Way)>,
}

// === impl Prospect ===

impl Prospect {
    fn may_dial_early(&self) -> bool {
        self.tls.verdict.is_ok() && !self.is_obliged
    }
}

// === impl Established ===

impl<'a> Established<'a> {
    /// TLS is what follows as a rule: where it may, the upstream is dialled before the 200, so that one
    /// that can't be reached is a proper 502.
    async fn dial_early(&mut self) -> Result<(), DropReason> {
        let Some(judged) = self.prospect.reached.as_ref().filter(|_| self.prospect.may_dial_early()) else {
            return Ok(());
        };
        let (dials, agent) = (&self.serving.gateway.dials, self.prospect.who.identity.agent.index);
        let behalf = dial::Behalf { agent, steered_to: None };
        let to = (&self.asked.host, self.asked.port);
        let dialled = dial::dial(dials, behalf, &judged.ways, to).await;
        let (upstream, way) = dialled.map_err(|failed| {
            failed.way.iter().for_each(|way| self.exchange.way(way));
            failed.reason
        })?;
        self.exchange.way(&way);
        self.upstream = Some((upstream, way));
        Ok(())
    }

    /// What the client says first tells what follows.
    async fn first_bytes(
        mut self,
        mut stream: Stream,
        mut held: Vec<u8>,
        since: std::time::Instant,
    ) -> Rest<'a> {
        let unknown = self.prospect.unknown.verdict.is_ok();
        let deadline = Instant::now() + limit::PEEK;
        let patience = if unknown { Instant::now() + limit::SERVER_FIRST } else { deadline };
        let mut protocol = peek::protocol(&mut stream, &mut held, patience).await;
        if protocol == Err(DropReason::Timeout) && unknown {
            protocol = if held.is_empty() || Opening::is_of(&held) {
                // A client that waits for the server to begin, or to answer a word.
                Ok(Some(Protocol::Unknown))
            } else {
                peek::protocol(&mut stream, &mut held, deadline).await
            };
        }
        match protocol {
            Ok(Some(Protocol::Tls)) => {
                let hello = peek::hello(&mut stream, &mut held, deadline).await;
                self.exchange.waited(since.elapsed());
                let offered = hello.and_then(|hello| {
                    let offered = Offered::of(&hello);
                    self.exchange.hello(offered.ja4);
                    opaque::check_name(&self.asked.host, hello.server_name.as_deref())?;
                    Ok(offered)
                });
                match offered {
                    Ok(offered) => self.carry(Content::Tls(offered), stream, held).await,
                    Err(reason) => {
                        let status = self.asked.manner.status();
                        let ruling = Ruling::deny("tls", reason);
                        then(opaque::refuse_tls(self.exchange, stream, ruling, status))
                    }
                }
            }
            Ok(Some(spoken @ (Protocol::Http1 | Protocol::Http2))) => {
                self.record_dial(None).await;
                let Asked { host, port, .. } = self.asked;
                let place = Place::Tunnel { host, port, who: self.prospect.who };
                let front = Front::new(self.connection, place);
                drop(self.upstream);
                let serving = self.serving;
                if spoken == Protocol::Http2 {
                    let serve = http2::serve(serving, front, stream, held, deadline);
                    then(async move {
                        let _cut = serve.await;
                    })
                } else {
                    let serve = serving.plain_http(front, stream, held, deadline);
                    then(async move {
                        let _ended = serve.await;
                    })
                }
            }
            Ok(Some(Protocol::Unknown)) => {
                self.exchange.waited(since.elapsed());
                self.carry(Content::Unknown, stream, held).await
            }
            Ok(None) => {
                self.record_left().await;
                None
            }
            // What is behind it would go unread.
            Ok(Some(Protocol::Proxied)) => self.deny(DropReason::ProtocolUnknown).await,
            Err(reason) => self.deny(reason).await,
        }
    }

    /// Denies what follows.
    async fn deny(mut self, reason: DropReason) -> Rest<'a> {
        if self.upstream.is_some() {
            self.record_dial(Some(reason)).await;
        } else {
            let (ruling, status) = (Ruling::deny("tunnel", reason), self.asked.manner.status());
            opaque::deny_silently(self.exchange, ruling, status);
        }
        None
    }

    /// What allows the upstream to be dialled.
    fn ruling(&self, permitted: &Ruling) -> Ruling {
        let policies = self.prospect.reached.as_ref().map_or(&[][..], |judged| &judged.policies);
        permitted.clone().with(policies)
    }

    /// Records that the upstream was dialled, and that nothing was carried: it was asked for all the same, and counts
    /// as that. So does what is denied but for a hello that never came. `reason` is why nothing was carried, if its client has not left.
    async fn record_dial(&mut self, reason: Option<DropReason>) {
        if let Some(ruling) = self.asked_for() {
            self.record(ruling, reason).await;
        }
    }

    /// The ruling on what its client has asked for already, whatever follows.
    fn asked_for(&self) -> Option<Ruling> {
        match &self.upstream {
            Some(_) => Some(self.ruling(&self.prospect.tls)),
            None => self.prospect.is_open.then(|| self.prospect.tls.clone()),
        }
    }

    /// Records a client that was told to begin, which tells what policy lets it do, and that has left without a word.
    async fn record_left(&mut self) {
        let Prospect { tls, unknown, .. } = &self.prospect;
        let permitted = [tls, unknown].into_iter().find(|ruling| ruling.verdict.is_ok());
        let left = || match permitted {
            Some(permitted) => self.ruling(permitted),
            // Requests were to follow, each of which would have been judged.
            None => Ruling::allow("http"),
        };
        let ruling = self.asked_for().unwrap_or_else(left);
        self.record(ruling, None).await;
    }

    async fn record(&mut self, ruling: Ruling, reason: Option<DropReason>) {
        self.exchange.keep_pace(&ruling).await;
        let ruling = Box::pin(enforce(&self.serving.gateway, ruling, self.exchange.id())).await;
        let reason = match ruling.verdict {
            Ok(()) => {
                let _ = self.exchange.allow(&ruling);
                reason
            }
            Err(denied) => {
                self.exchange.deny(ruling);
                Some(denied)
            }
        };
        self.exchange.end(End { status: self.asked.manner.status(), reason, ..End::default() });
    }

    /// Ends it, since the upstream can't be reached: it was asked for all the same, and counts as that.
    async fn unreachable(self, reason: DropReason, stream: Stream) {
        let ruling = self.ruling(&self.prospect.tls);
        self.exchange.keep_pace(&ruling).await;
        let ruling = enforce(&self.serving.gateway, ruling, self.exchange.id()).await;
        let (manner, has_presented) = (self.asked.manner, false);
        let mut refused = Refused { manner, exchange: self.exchange, stream, has_presented };
        if ruling.verdict.is_err() {
            return refused.end(&self.serving.gateway, ruling).await;
        }
        let _ = refused.exchange.allow(&ruling);
        refused.say(reason).await;
    }

    /// Judges what is really there, to be carried.
    async fn carry(mut self, content: Content, stream: Stream, held: Vec<u8>) -> Rest<'a> {
        let gateway: &'a Arc<_> = &self.serving.gateway;
        let Asked { host, port, manner, .. } = &self.asked;
        let (status, client) = (manner.status(), (stream, manner.status()));
        let (who, host, port) = (self.prospect.who.clone(), host.clone(), *port);
        let mut subject =
            Subject { who, host, port, content, steered_to: None, way: None, effects: Box::default() };
        let plan = match gateway.snapshots.current() {
            // Policy may have come to ask for it since.
            Ok(plan) => subject.inform(gateway, &plan).await.map(|()| plan),
            Err(reason) => Err(reason),
        };
        let judged = plan.map_err(|reason| Ruling::deny("tunnel", reason)).and_then(|plan| {
            let ruling = subject.judge(gateway, &plan);
            if ruling.verdict.is_ok() { Ok((plan, ruling)) } else { Err(ruling) }
        });
        let (plan, ruling) = match judged {
            Ok(judged) => judged,
            Err(ruling) if intercept::is_wanted(gateway, &subject, &ruling) => {
                // It was dialled for what would stay unread.
                drop(self.upstream.take());
                let wanted = Wanted { exchange: self.exchange, subject, stream: client.0, held, status };
                return intercept::serve(self.serving, self.connection, wanted).await;
            }
            Err(ruling) => {
                return then(opaque::refuse(gateway, subject.content, self.exchange, client, ruling));
            }
        };
        self.exchange.keep_pace(&ruling).await;
        let ruling = enforce(gateway, ruling, self.exchange.id()).await;
        drop(plan);
        let ways = self.prospect.reached.as_ref().map_or(&[][..], |judged| &judged.ways);
        let (plan, ruling, ways) = match subject.still(gateway, ruling, ways, &mut self.exchange).await {
            Ok(still) => still,
            Err(ruling) => {
                return then(opaque::refuse(gateway, subject.content, self.exchange, client, ruling));
            }
        };
        let (dials, agent) = (&gateway.dials, subject.who.identity.agent.index);
        let behalf = dial::Behalf { agent, steered_to: None };
        let upstream = match (self.upstream, self.prospect.reached) {
            (Some(upstream), _) => Ok(upstream),
            (None, Some(_)) => dial::dial(dials, behalf, &ways, (&subject.host, port)).await,
            (None, None) => {
                let reached = reach(self.serving, &plan, &subject.who, &self.asked, &mut self.exchange);
                let reached = Box::pin(reached).await;
                match reached {
                    Ok(judged) => dial::dial(dials, behalf, &judged.ways, (&subject.host, port)).await,
                    Err(ruling) => {
                        return then(opaque::refuse(gateway, subject.content, self.exchange, client, ruling));
                    }
                }
            }
        };
        drop(plan);
        match upstream {
            Ok((upstream, way)) => {
                subject.way = Some(way);
                let enforced = Enforced { effects: ruling.effects, status };
                then(opaque::carry(gateway, self.exchange, subject, client.0, upstream, held, enforced))
            }
            Err(failed) => opaque::unreached(self.exchange, &subject.content, client, &ruling, failed),
        }
    }
}
