//! CONNECT (RFC 9110 section 9.3.6): an explicit proxy's tunnel.
//!
//! What can be refused is refused before the 200, as a proper response. What follows the 200 must be
//! what was judged: TLS whose server name is the CONNECT host, or HTTP, which is then read.

use std::sync::Arc;

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::http1::{self, Body};
use clawgress_inspect::proxy_request::{self, Target};
use clawgress_inspect::sniff::Protocol;
use clawgress_policy::{Host, Operation, Scheme};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::connection::Connection;
use crate::decide::{self, Ruling};
use crate::exchange::{End, Exchange};
use crate::identify::{self, Who};
use crate::opaque::{self, Content, Subject};
use crate::plain_http::{Front, Place};
use crate::serve::Serving;
use crate::snapshot::Plan;
use crate::{dial, limit, page, peek};

const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
/// The ports at which plain HTTP, and only TLS, is expected inside a tunnel.
const HTTP_PORT: u16 = 80;
const TLS_PORT: u16 = 443;

/// What a CONNECT asks for.
struct Asked {
    host: Host,
    port: u16,
    credential: Option<Zeroizing<Vec<u8>>>,
}

/// What was found permissible before the 200.
struct Prospect {
    who: Who,
    /// Ruling on TLS.
    tls: Ruling,
    /// Ruling on an unknown protocol.
    unknown: Ruling,
    addresses: Vec<std::net::IpAddr>,
    connect_policies: Vec<String>,
}

/// Serves a CONNECT, of which `held` was read.
pub async fn serve(
    serving: &Serving,
    connection: Connection,
    mut stream: TcpStream,
    mut held: Vec<u8>,
    deadline: Instant,
) {
    let mut exchange = Exchange::new(&serving.gateway, &connection);
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
        Err(reason) => return refuse(exchange, stream, Ruling::deny("tunnel", reason)).await,
    };
    exchange.host(&asked.host, asked.port);
    let prospect = match prospect(serving, &connection, &asked, &mut exchange).await {
        Ok(prospect) => prospect,
        Err(ruling) => return refuse(exchange, stream, ruling).await,
    };
    // TLS is what follows as a rule: dial now, so that an unreachable upstream is a proper 502.
    let upstream = if prospect.tls.verdict.is_ok() {
        match dial::dial(&prospect.addresses, asked.port).await {
            Ok(upstream) => Some(upstream),
            Err(reason) => {
                let _ = exchange.allow(&prospect.tls.clone().with(&prospect.connect_policies));
                let status = Some(page::status(reason));
                exchange.end(End { status, reason: Some(reason), ..End::default() });
                let word = page::response(reason, exchange.id());
                return peek::say_and_close(stream, word.as_bytes()).await;
            }
        }
    } else {
        None
    };
    let asked_at = std::time::Instant::now();
    if stream.write_all(ESTABLISHED).await.is_err() {
        return;
    }
    let established = Established { serving, connection, exchange, asked, prospect, upstream };
    established.first_bytes(stream, held, asked_at).await;
}

async fn refuse(mut exchange: Exchange, stream: TcpStream, ruling: Ruling) {
    let reason = ruling.verdict.err().unwrap_or(DropReason::PolicyDenied);
    exchange.deny(ruling);
    exchange.end(End { status: Some(page::status(reason)), reason: Some(reason), ..End::default() });
    let word = page::response(reason, exchange.id());
    peek::say_and_close(stream, word.as_bytes()).await;
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
    Ok(Asked { host, port, credential })
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
    if let Ok(Some(bound)) = identify::bound(&plan, connection) {
        exchange.agent(&bound.identity, plan.generation);
    }
    let credential = asked.credential.as_ref().map(|c| c.as_slice());
    let who = identify::identify(gateway, &plan, connection, credential).await.map_err(deny)?;
    exchange.agent(&who.identity, plan.generation);
    let agent = &who.identity.agent;
    let tls = decide::tls_possible(&plan, agent, &asked.host, asked.port);
    let unknown = decide::unknown(&plan, agent, &asked.host, asked.port);
    if tls.verdict.is_err() && unknown.verdict.is_err() && !http_possible(&plan, &who, asked, &tls) {
        return Err(tls);
    }
    let addresses = gateway.resolver.addresses(&asked.host).await;
    let addresses = addresses.map_err(|reason| Ruling::deny("connect", reason))?;
    match decide::connect(&plan, agent, &gateway.own, &addresses, asked.port) {
        Ok(judged) => {
            Ok(Prospect { tls, unknown, addresses: judged.addresses, connect_policies: judged.policies, who })
        }
        Err((ruling, ip)) => {
            ip.into_iter().for_each(|ip| exchange.address(ip));
            Err(ruling)
        }
    }
}

/// Whether plain HTTP may follow: some clients tunnel it too. Its requests are judged one by one, so
/// this only decides whether a refusal comes now or with the first request. Where policy speaks of TLS
/// (`inspection_required`), TLS is what is expected.
fn http_possible(plan: &Plan, who: &Who, asked: &Asked, tls: &Ruling) -> bool {
    let (host, port) = (&asked.host, asked.port);
    let root = Operation::Http { host, port, scheme: Scheme::Http, method: "GET", path: "/" };
    let tls_expected = port == TLS_PORT || tls.verdict == Err(DropReason::InspectionRequired);
    port == HTTP_PORT || !tls_expected && decide::http(plan, &who.identity.agent, root).verdict.is_ok()
}

/// A tunnel whose client was told to begin.
struct Established<'a> {
    serving: &'a Serving,
    connection: Connection,
    exchange: Exchange,
    asked: Asked,
    prospect: Prospect,
    upstream: Option<TcpStream>,
}

// === impl Established ===

impl Established<'_> {
    async fn first_bytes(mut self, mut stream: TcpStream, mut held: Vec<u8>, since: std::time::Instant) {
        let unknown = self.prospect.unknown.verdict.is_ok();
        let patience = if unknown { limit::SERVER_FIRST } else { limit::PEEK };
        let protocol = peek::protocol(&mut stream, &mut held, Instant::now() + patience).await;
        let protocol = match protocol {
            Ok(Some(protocol)) => protocol,
            // A client that waits for the server to begin.
            Err(DropReason::Timeout) if unknown && held.is_empty() => Protocol::Unknown,
            Ok(None) => return self.unused(),
            Err(reason) => return opaque::deny_silently(self.exchange, Ruling::deny("tunnel", reason)),
        };
        match protocol {
            Protocol::Tls => {
                let deadline = Instant::now() + limit::PEEK;
                let hello = peek::hello(&mut stream, &mut held, deadline).await;
                self.exchange.waited(since.elapsed());
                let alpn = hello.and_then(|hello| {
                    self.check_name(hello.server_name.as_deref())?;
                    Ok(hello.alpn)
                });
                match alpn {
                    Ok(alpn) => self.carry(Content::Tls(alpn), stream, held).await,
                    Err(reason) => opaque::refuse(self.exchange, stream, Ruling::deny("tls", reason)).await,
                }
            }
            Protocol::Http1 => {
                let Asked { host, port, .. } = self.asked;
                let place = Place::Tunnel { host, port, who: self.prospect.who };
                let front = Front::new(self.connection, place);
                self.serving.plain_http(front, stream, held, Instant::now() + limit::PEEK).await;
            }
            Protocol::Http2 | Protocol::Unknown => {
                self.exchange.waited(since.elapsed());
                self.carry(Content::Unknown, stream, held).await;
            }
        }
    }

    /// The client left without a byte; if the upstream was dialled, that happened and is recorded.
    fn unused(mut self) {
        if self.upstream.is_some() {
            let _ = self.exchange.allow(&self.prospect.tls.with(&self.prospect.connect_policies));
            self.exchange.end(End { status: Some(200), ..End::default() });
        }
    }

    /// The server name must be the name that was asked for; for an address there must be none.
    fn check_name(&self, name: Option<&str>) -> Result<(), DropReason> {
        match (&self.asked.host, name) {
            (Host::Name(_), None) => Err(DropReason::SniMissing),
            (Host::Address(_), None) => Ok(()),
            (host @ Host::Name(_), Some(name)) if Host::parse(name).ok().as_ref() == Some(host) => Ok(()),
            _ => Err(DropReason::SniMismatch),
        }
    }

    /// Judges what is really there, and carries it.
    async fn carry(mut self, content: Content, stream: TcpStream, held: Vec<u8>) {
        let gateway: &Arc<_> = &self.serving.gateway;
        let Asked { host, port, .. } = self.asked;
        let mut subject = Subject { who: self.prospect.who, host, port, content, ip: None };
        let refuse = async |exchange, stream, ruling| match subject.content {
            Content::Tls(_) => opaque::refuse(exchange, stream, ruling).await,
            Content::Unknown => opaque::deny_silently(exchange, ruling),
        };
        let plan = match gateway.snapshots.current() {
            Ok(plan) => plan,
            Err(reason) => return refuse(self.exchange, stream, Ruling::deny("tunnel", reason)).await,
        };
        let ruling = subject.judge(gateway, &plan);
        if ruling.verdict.is_err() {
            return refuse(self.exchange, stream, ruling).await;
        }
        let upstream = match self.upstream {
            Some(upstream) => Ok(upstream),
            None => dial::dial(&self.prospect.addresses, port).await,
        };
        let upstream = match upstream {
            Ok(upstream) => upstream,
            Err(reason) => {
                let _ = self.exchange.allow(&ruling);
                return self.exchange.end(End { reason: Some(reason), ..End::default() });
            }
        };
        subject.ip = upstream.peer_addr().ok().map(|a| a.ip().to_canonical());
        // The policy may have changed while the client was waited for: `connect` counts as of now.
        let ruling = subject.judge(gateway, &plan);
        if ruling.verdict.is_err() {
            return opaque::deny_silently(self.exchange, ruling);
        }
        opaque::carry(gateway, self.exchange, subject, &ruling, stream, upstream, &held, Some(200)).await;
    }
}
