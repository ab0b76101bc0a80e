//! Names to addresses, by our own resolver: what the client looked up is never trusted.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clawgress_api::config::{DnsServer, DnsTransport, L7};
use clawgress_ebpf_common::DropReason;
use clawgress_policy::Host;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use hickory_resolver::{ResolverBuilder, TokioResolver};
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::{limit, roots, tls};

use self::known::Known;

mod known;

/// Answers kept; each is a few hundred bytes.
const CACHE_NAMES: usize = 8192;
/// How often a question is sent again to one server, by one of UDP and TCP, in the time that it has.
const ATTEMPTS: usize = 2;

/// What there is for a name and a type.
#[derive(Clone, Debug)]
pub struct Found {
    /// The name.
    pub name: Name,
    /// What the server says of it.
    pub code: ResponseCode,
    /// Records, as they came.
    pub answers: Vec<Record>,
    /// How long it is not there.
    pub soa: Option<Record>,
}

/// The resolver.
pub struct Resolver {
    /// In the order in which they are asked; those of the system are one.
    servers: Vec<Asked>,
    known: Known,
}

/// What is asked before the next.
struct Asked {
    asking: TokioResolver,
    /// When it did not answer in time, if that was so last.
    silent_since: Mutex<Option<Instant>>,
}

/// Addresses of one family, and how long that holds, if anybody says.
type Family = (Vec<IpAddr>, Option<Instant>);

// === impl Asked ===

impl Asked {
    fn new(asking: TokioResolver) -> Self {
        Asked { asking, silent_since: Mutex::default() }
    }

    fn rests(&self, now: Instant) -> bool {
        self.silent_since.lock().is_some_and(|since| now < since + limit::RESOLVER_REST)
    }

    async fn ask(&self, name: &Name, kind: RecordType, patience: Duration) -> Result<Lookup, NetError> {
        let Ok(answered) = timeout(patience, self.asking.lookup(name.clone(), kind)).await else {
            *self.silent_since.lock() = Some(Instant::now());
            return Err(NetError::Timeout);
        };
        let is_silent = matches!(answered, Err(NetError::Timeout));
        *self.silent_since.lock() = is_silent.then(Instant::now);
        answered
    }
}

// === impl Resolver ===

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolver {
    /// Asks the servers of the configuration, in order; the system's if there are none.
    ///
    /// # Errors
    /// If the system's configuration, or a file of roots, can't be read.
    pub fn new(config: &L7) -> anyhow::Result<Self> {
        Self::caching(config, CACHE_NAMES)
    }

    /// As [`Resolver::new`], and remembers nothing: for who keeps what it finds by a bound of its own.
    ///
    /// # Errors
    /// As [`Resolver::new`].
    pub fn without_cache(config: &L7) -> anyhow::Result<Self> {
        Self::caching(config, 0)
    }

    fn caching(config: &L7, names: usize) -> anyhow::Result<Self> {
        let servers = &config.resolvers;
        let is_tls = servers.iter().any(|server| matches!(server.transport, DnsTransport::Tls(_)));
        let tls = is_tls.then(|| proven_by(&config.resolver_roots)).transpose()?;
        let mut builders = Vec::new();
        for written in servers {
            // One each: of several, the library asks two at once, or gives the first all of the time.
            let named = ResolverConfig::from_parts(None, vec![], vec![server(written)]);
            let mut builder = TokioResolver::builder_with_config(named, TokioRuntimeProvider::default());
            // Who names servers wants their answers, not this machine's hosts file.
            builder.options_mut().use_hosts_file = ResolveHosts::Never;
            builders.push(match &tls {
                Some(tls) => builder.with_tls_config(tls.clone()),
                None => builder,
            });
        }
        if builders.is_empty() {
            builders.push(TokioResolver::builder_tokio().map_err(|e| {
                anyhow::anyhow!("cannot read `/etc/resolv.conf`: {e}; name DNS servers in [l7] `resolvers`")
            })?);
        }
        let patience = patience(builders.len());
        let names_each = names / builders.len();
        let start = |mut builder: ResolverBuilder<TokioRuntimeProvider>| {
            let options = builder.options_mut();
            options.cache_size = names_each as u64;
            // Besides the port and the id, a spoofed answer has to guess the case of each letter; a server that doesn't
            // repeat it is asked over TCP.
            options.case_randomization = true;
            options.attempts = ATTEMPTS;
            options.timeout = patience / 2;
            builder.build().map(Asked::new)
        };
        let started = builders.into_iter().map(start).collect::<Result<Vec<_>, _>>();
        let servers = started.map_err(|e| anyhow::anyhow!("cannot start the DNS resolver: {e}"))?;
        Ok(Resolver { servers, known: Known::new(names) })
    }

    /// Asks one server after the other, until one knows; those that kept others waiting lately come last.
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Lookup, NetError> {
        let patience = patience(self.servers.len());
        let now = Instant::now();
        let (resting, awake): (Vec<_>, Vec<_>) = self.servers.iter().partition(|server| server.rests(now));
        let mut failed = NetError::NoConnections;
        for server in awake.into_iter().chain(resting) {
            match server.ask(name, kind, patience).await {
                Err(error) if nothing(&error).is_none() => failed = error,
                known => return known,
            }
        }
        Err(failed)
    }

    /// What there is for `host` and a type, for an agent that asks.
    ///
    /// # Errors
    /// [`DropReason::ResolveFailed`].
    pub async fn records(&self, host: &Host, kind: RecordType) -> Result<Found, DropReason> {
        let name = full(&host.to_string())?;
        let none = |code, soa| Found { name: name.clone(), code, answers: Vec::new(), soa };
        match self.ask(&name, kind).await {
            Ok(found) => Ok(Found { answers: found.answers().to_vec(), ..none(ResponseCode::NoError, None) }),
            Err(error) => match nothing(&error) {
                Some(NoRecords { response_code, soa, .. }) => {
                    Ok(none(*response_code, soa.clone().map(|soa| soa.into_record_of_rdata())))
                }
                None => {
                    tracing::debug!(%host, %kind, %error, "not resolved");
                    Err(DropReason::ResolveFailed)
                }
            },
        }
    }

    /// The addresses of `host` that need nobody to be asked, if there are any.
    #[must_use]
    pub fn known(&self, host: &Host) -> Option<Vec<IpAddr>> {
        match host {
            Host::Address(ip) => Some(vec![*ip]),
            Host::Name(name) => self.known.get(name, Instant::now()),
        }
    }

    /// The addresses of `host`, at most [`limit::ADDRESSES_MAX`], at least one, of each family some; for the agent of this index.
    ///
    /// # Errors
    /// [`DropReason::ResolveFailed`].
    pub async fn find(&self, agent: u32, host: &Host) -> Result<Vec<IpAddr>, DropReason> {
        let name = match host {
            Host::Address(ip) => return Ok(vec![*ip]),
            Host::Name(name) => name,
        };
        let (asked, now) = (full(name)?, Instant::now());
        let found = tokio::join!(self.family(&asked, RecordType::A), self.family(&asked, RecordType::AAAA));
        let (found, until) = match found {
            (Ok((v4, until)), Ok((v6, v6_until))) => {
                (of_both(v4, v6), until.into_iter().chain(v6_until).min())
            }
            // The other is there, but that this one is not may not be so for long.
            (Ok((found, until)), Err(error)) | (Err(error), Ok((found, until))) => {
                tracing::debug!(%host, %error, "one family is not resolved");
                (found, until.map(|until| until.min(now + limit::RESOLVED_HALF)))
            }
            (Err(error), Err(_)) => {
                tracing::debug!(%host, %error, "not resolved");
                return Err(DropReason::ResolveFailed);
            }
        };
        let mut addresses = Vec::new();
        for ip in found.into_iter().take(limit::ADDRESSES_MAX) {
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        if addresses.is_empty() {
            return Err(DropReason::ResolveFailed);
        }
        if let Some(until) = until {
            self.known.keep(agent, name, &addresses, until, now);
        }
        Ok(addresses)
    }

    /// The addresses of one family, or that there are none.
    async fn family(&self, name: &Name, kind: RecordType) -> Result<Family, NetError> {
        let now = Instant::now();
        match self.ask(name, kind).await {
            Ok(found) => {
                let addresses = found.answers().iter().filter_map(|record| record.data.ip_addr());
                Ok((addresses.map(|ip| ip.to_canonical()).collect(), Some(found.valid_until())))
            }
            Err(error) => match nothing(&error) {
                Some(none) => {
                    let ttl = none.negative_ttl.map(|ttl| Duration::from_secs(u64::from(ttl)));
                    Ok((Vec::new(), ttl.map(|ttl| now + ttl)))
                }
                None => Err(error),
            },
        }
    }
}

/// Addresses of both families, in turn: neither has none because of the other's number.
fn of_both(v4: Vec<IpAddr>, v6: Vec<IpAddr>) -> Vec<IpAddr> {
    let (mut v4, mut v6) = (v4.into_iter(), v6.into_iter());
    let mut all = Vec::with_capacity(v4.len() + v6.len());
    while v4.len() + v6.len() > 0 {
        all.extend(v4.next());
        all.extend(v6.next());
    }
    all
}

/// The time that one of so many servers has to answer.
fn patience(servers: usize) -> Duration {
    limit::RESOLVE / u32::try_from(servers.max(1)).unwrap_or(u32::MAX)
}

/// A name from the root: without search domains.
fn full(name: &str) -> Result<Name, DropReason> {
    let mut name = Name::from_ascii(name).map_err(|_| DropReason::ResolveFailed)?;
    name.set_fqdn(true);
    Ok(name)
}

/// What a server says that there is nothing; `None` where it is not known what there is.
fn nothing(error: &NetError) -> Option<&NoRecords> {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none))
            if matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
        {
            Some(none)
        }
        _ => None,
    }
}

/// How a server is asked: over nothing else, where that fails.
fn server(DnsServer { address, transport }: &DnsServer) -> NameServerConfig {
    let mut connections = match transport {
        DnsTransport::Udp => vec![ConnectionConfig::udp(), ConnectionConfig::tcp()],
        DnsTransport::Tcp => vec![ConnectionConfig::tcp()],
        DnsTransport::Tls(name) => vec![ConnectionConfig::tls(Arc::from(name.as_str()))],
    };
    for connection in &mut connections {
        connection.port = address.port();
    }
    NameServerConfig::new(address.ip(), true, connections)
}

/// TLS to servers that prove their names by the system's authorities and those in `files`.
fn proven_by(files: &[PathBuf]) -> anyhow::Result<rustls::ClientConfig> {
    let roots = roots::store(files).context("`resolver_roots` in [l7] can't be used")?;
    let provider = tls::provider();
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests;
