//! TLS that is read: its client is shown a certificate for the host it asked for, signed by the gateway's authority, and
//! what it sends is judged request by request, as plain HTTP is.
//!
//! INVARIANT: nothing is read of a host that is excluded, and nothing by a name but the one that was judged; the key of
//! the authority is not in this process, and a server that can't prove its name is never shown as one that did.

use std::pin::Pin;
use std::sync::Arc;

use anyhow::Context as _;
use clawgress_api::config::{Config, Intercept};
use clawgress_api::leaves::Client;
use clawgress_api::socket::{Server, Servers};
use clawgress_ebpf_common::DropReason;
use clawgress_policy::{Host, Need, Operation};
use pingora_core::protocols::tls::CaType;
use rustls::{AlertDescription, ServerConfig};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;

use crate::connection::Connection;
use crate::decide::{self, Ruling};
use crate::enforce::enforce;
use crate::exchange::{End, Exchange};
use crate::gateway::Gateway;
use crate::identify::Who;
use crate::opaque::{self, Content, Offered, Subject};
use crate::plain_http::{Front, Place};
use crate::rest::{Rest, then};
use crate::roots;
use crate::serve::Serving;
use crate::snapshot::Plan;
use crate::stream::Stream;
use crate::{http2, limit};

mod leaves;
mod spoken;
mod wire;

use self::leaves::Leaves;
use self::spoken::Spoken;
pub use self::wire::{Meter, Wire};

/// The protocols inside, the better first. A client gets one that it offers, and that its server speaks as far as that is known.
const ALPN: [&str; 2] = [ALPN_HTTP2, "http/1.1"];
const ALPN_HTTP2: &str = "h2";

/// What reading takes.
#[derive(Debug)]
pub struct Interception {
    config: Intercept,
    leaves: Leaves,
    spoken: Spoken,
    /// What servers' certificates may lead to.
    roots: Roots,
}

struct Roots(Arc<CaType>);

/// A connection that is to be read.
#[derive(Debug)]
pub struct Wanted {
    /// Its record.
    pub exchange: Exchange,
    /// Who wants what.
    pub subject: Subject,
    /// The client.
    pub stream: Stream,
    /// What was read of it: a whole hello.
    pub held: Vec<u8>,
    /// The HTTP status that its client has got.
    pub status: Option<u16>,
}

/// What all requests of a connection that is read have in common.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Who opened it.
    pub who: Who,
    /// The host whose certificate was shown.
    pub host: Host,
    /// Port.
    pub port: u16,
    /// What its hello offered.
    pub offered: Offered,
}

// === impl Roots ===

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Roots").field(&self.0.len()).finish()
    }
}

// === impl Interception ===

impl Interception {
    /// What the configuration says, with certificates from the keys role; `None` where TLS is not read.
    ///
    /// # Errors
    /// If a file of roots can't be used, or a user of the roles' does not exist.
    pub fn of(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(intercept) = &config.intercept else { return Ok(None) };
        let roots = Roots(roots::load(&intercept.roots).context("`roots` in [intercept] can't be used")?);
        let servers = Servers::new(&config.access, Server::Keys)?;
        let leaves = Leaves::new(Client::new(&config.leaves_socket(), servers))?;
        Ok(Some(Interception { config: intercept.clone(), leaves, spoken: Spoken::default(), roots }))
    }

    /// Whether `host` is never read, by the configuration.
    #[must_use]
    pub fn excludes(&self, host: &Host) -> bool {
        self.config.excludes(&host.to_string())
    }

    /// Whether a server of this name can be verified: those who do take `_` for no character of a name, or for another.
    fn has_certificate(host: &Host) -> bool {
        !host.to_string().contains('_')
    }

    /// Notes which protocol a server has chosen of both that the agent of this index has asked.
    pub fn spoke(&self, agent: u32, to: &(Host, u16), two: bool) {
        self.spoken.note(agent, to, two);
    }

    /// What servers' certificates may lead to.
    #[must_use]
    pub fn roots(&self) -> Arc<CaType> {
        Arc::clone(&self.roots.0)
    }
}

// === impl Opened ===

impl Opened {
    /// Who needs to know what `who` did before, for the hello that opened it.
    #[must_use]
    pub fn needs_history(&self, plan: &Plan, who: &Who) -> Need {
        let (host, port, Offered { alpn, ja4, .. }) = (&self.host, self.port, &self.offered);
        decide::needs_history(plan, who, &[Operation::Tls { host, port, alpn, ja4: ja4.as_str() }])
    }

    /// The ruling on a request, as it is judged first and again: `tls` as its client offered it, then `http`. What `tls`
    /// obliges to was kept once, for the connection.
    #[must_use]
    pub fn rule(&self, plan: &Plan, who: &Who, operation: Operation<'_>) -> Ruling {
        let tls = decide::tls_offered(plan, who, (&self.host, self.port), self.offered.hello());
        if tls.verdict.is_err() {
            return Ruling { duties: None, ..tls };
        }
        let http = decide::http(plan, who, operation);
        let policies = if http.verdict.is_ok() { &tls.policies[..] } else { &[] };
        http.with(policies)
    }

    /// Judges again, as of now, whether the connection may stay while no request is at hand; returns when what it rests
    /// on expires, in Unix seconds.
    ///
    /// # Errors
    /// Why it may not.
    pub async fn judge_again(&self, gateway: &Gateway) -> Result<Option<i64>, DropReason> {
        let plan = gateway.snapshots.current()?;
        let who = self.who.under(&plan, gateway.now_s())?;
        let need = self.needs_history(&plan, &who);
        gateway.histories.inform(need, &who, &self.host).await?;
        decide::tls_offered(&plan, &who, (&self.host, self.port), self.offered.hello()).verdict?;
        Ok(who.expires_at_s(&plan))
    }
}

/// Whether `ruling` on what `subject` wants says that it must be read, and it can be.
#[must_use]
pub fn is_wanted(gateway: &Gateway, subject: &Subject, ruling: &Ruling) -> bool {
    ruling.verdict == Err(DropReason::InspectionRequired)
        && matches!(subject.content, Content::Tls(_))
        && gateway.reads(&subject.host).is_some()
}

/// Begins to read a connection.
pub async fn serve(serving: &Serving, connection: Connection, wanted: Wanted) -> Rest<'_> {
    let gateway = &serving.gateway;
    let Wanted { mut exchange, subject, stream, held, status } = wanted;
    let Content::Tls(offered) = &subject.content else { return None };
    let offered = offered.clone();
    exchange.content(&subject.content);
    let (ruling, config) = match prepare(gateway, &subject, &offered, &mut exchange).await {
        Ok(prepared) => prepared,
        Err(ruling) => return then(opaque::refuse_tls(exchange, stream, ruling, status)),
    };
    exchange.intercepted();
    if let Err(reason) = exchange.allow(&ruling) {
        exchange.end(End { status, reason: Some(reason), ..End::default() });
        return None;
    }
    let meter = Arc::new(Meter::default());
    let wire = Wire::new(stream, held, Arc::clone(&meter));
    let deadline = Instant::now() + limit::PEEK;
    let (stream, is_http2) = match timeout_at(deadline, TlsAcceptor::from(config).accept(wire)).await {
        Ok(Ok(stream)) => {
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2.as_bytes());
            (Stream::Read(Box::new(stream)), is_http2)
        }
        failed => {
            let (sent, received) = meter.bytes();
            let reason = match failed {
                Ok(Err(error)) => failure(&error),
                _ => DropReason::Timeout,
            };
            exchange.end(End { status, sent, received, reason: Some(reason), ..End::default() });
            return None;
        }
    };
    let Subject { who, host, port, .. } = subject;
    let front = Front::new(connection, Place::Read(Arc::new(Opened { who, host, port, offered })));
    let deadline = Instant::now() + limit::PEEK;
    let serve: Pin<Box<dyn Future<Output = _> + Send + '_>> = if is_http2 {
        Box::pin(http2::serve(serving, front, stream, Vec::new(), deadline))
    } else {
        let serve = serving.plain_http(front, stream, Vec::new(), deadline);
        Box::pin(async move { serve.await.cut })
    };
    then(async move {
        let reason = serve.await;
        let (sent, received) = meter.bytes();
        exchange.end(End { status, sent, received, reason, ..End::default() });
    })
}

/// Judges the connection as one that is read, keeps what it is obliged to, and gets a certificate for its host.
async fn prepare(
    gateway: &Gateway,
    subject: &Subject,
    offered: &Offered,
    exchange: &mut Exchange,
) -> Result<(Ruling, Arc<ServerConfig>), Ruling> {
    let deny = |reason| Ruling::deny("tls", reason);
    let plan = gateway.snapshots.current().map_err(deny)?;
    let who = subject.who.under(&plan, gateway.now_s()).map_err(deny)?;
    exchange.agent(&who, &plan);
    let need = subject.needs_history(&plan, &who);
    gateway.histories.inform(need, &who, &subject.host).await.map_err(deny)?;
    let to = (&subject.host, subject.port);
    let mut ruling = decide::tls_read(&plan, &who, to, offered.hello());
    drop(plan);
    let speaks = offered.alpn.is_empty() || offered.alpn.iter().any(|name| ALPN.contains(&&**name));
    // A hello that hides another name is answered as by a server without ECH (RFC 9849 section 7): the client goes on by
    // the name that it showed, and that was judged, or ends. Most that seem to hide one only grease.
    if ruling.verdict.is_ok() && !speaks {
        ruling = deny(DropReason::UpgradeUnsupported).obliged_by(&ruling);
    }
    exchange.keep_pace(&ruling).await;
    let ruling = enforce(gateway, ruling, exchange.id()).await;
    if ruling.verdict.is_err() {
        return Err(ruling);
    }
    let failed = |reason| Ruling { verdict: Err(reason), policies: Vec::new(), ..ruling.clone() };
    let interception = gateway.reads(&subject.host).ok_or_else(|| failed(DropReason::InspectionRequired))?;
    let agent = who.identity.agent.index;
    let config = interception.leaves.config(agent, &subject.host, gateway.now_s()).await;
    let to = (subject.host.clone(), subject.port);
    let config = interception.spoken.mirrored(config.map_err(failed)?, &to, &offered.alpn);
    Ok((ruling, config))
}

/// Why a handshake failed.
fn failure(error: &std::io::Error) -> DropReason {
    tracing::debug!(%error, "a handshake with a client that was to be read failed");
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        // It went away, which some do instead of saying why; or it said that the certificate is not to its liking.
        None => DropReason::AuthorityDistrusted,
        Some(rustls::Error::AlertReceived(alert)) if is_of_certificates(*alert) => {
            DropReason::AuthorityDistrusted
        }
        Some(_) => DropReason::TlsMalformed,
    }
}

/// Whether an alert is what clients say of a certificate that they don't take (RFC 8446 section 6.2).
fn is_of_certificates(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::UserCanceled
            | AlertDescription::CloseNotify
    )
}

// === impl Gateway ===

impl Gateway {
    /// What reads TLS to `host`, if it is to be read at all.
    #[must_use]
    pub fn reads(&self, host: &Host) -> Option<&Interception> {
        let interception = self.interception.as_ref()?;
        (!interception.excludes(host) && Interception::has_certificate(host)).then_some(interception)
    }

    /// Whether the configuration says that TLS to `host` is never read.
    #[must_use]
    pub fn excludes(&self, host: &Host) -> bool {
        self.interception.as_ref().is_some_and(|interception| interception.excludes(host))
    }
}
