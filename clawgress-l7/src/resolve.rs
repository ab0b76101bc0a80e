//! Names to addresses, by our own resolver: what the client looked up is never trusted.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use clawgress_api::config::{DnsServer, DnsTransport, L7};
use clawgress_ebpf_common::DropReason;
use clawgress_policy::Host;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use tokio::time::timeout;

use crate::{limit, roots};

use self::known::Known;

mod known;

/// Answers kept; each is a few hundred bytes.
const CACHE_NAMES: usize = 8192;
/// Questions to one server before the next is asked.
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
    asking: TokioResolver,
    known: Known,
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
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio().map_err(|e| {
                anyhow::anyhow!("cannot read `/etc/resolv.conf`: {e}; name DNS servers in [l7] `resolvers`")
            })?
        } else {
            let named = ResolverConfig::from_parts(None, vec![], servers.iter().map(server).collect());
            TokioResolver::builder_with_config(named, TokioRuntimeProvider::default())
        };
        if servers.iter().any(|server| matches!(server.transport, DnsTransport::Tls(_))) {
            builder = builder.with_tls_config(proven_by(&config.resolver_roots)?);
        }
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.cache_size = names as u64;
        // Besides the port and the id, a spoofed answer has to guess the case of each letter; a server that doesn't repeat
        // it is asked over TCP.
        options.case_randomization = true;
        options.attempts = ATTEMPTS;
        options.timeout = limit::RESOLVE / 2;
        if !servers.is_empty() {
            // Who names servers wants their answers, not this machine's hosts file.
            options.use_hosts_file = ResolveHosts::Never;
        }
        let resolver = builder.build().map_err(|e| anyhow::anyhow!("cannot start the DNS resolver: {e}"))?;
        Ok(Resolver { asking: resolver, known: Known::new(names) })
    }

    /// What there is for `host` and a type, for an agent that asks.
    ///
    /// # Errors
    /// [`DropReason::ResolveFailed`].
    pub async fn records(&self, host: &Host, kind: RecordType) -> Result<Found, DropReason> {
        let failed = |_| DropReason::ResolveFailed;
        let mut name = Name::from_ascii(host.to_string()).map_err(failed)?;
        name.set_fqdn(true);
        let none = |code, soa| Found { name: name.clone(), code, answers: Vec::new(), soa };
        match timeout(limit::RESOLVE, self.asking.lookup(name.clone(), kind)).await {
            Ok(Ok(found)) => {
                Ok(Found { answers: found.answers().to_vec(), ..none(ResponseCode::NoError, None) })
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(NoRecords { response_code, soa, .. }))))
                if matches!(response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
            {
                Ok(none(response_code, soa.map(|soa| soa.into_record_of_rdata())))
            }
            Ok(Err(error)) => {
                tracing::debug!(%host, %kind, %error, "not resolved");
                Err(DropReason::ResolveFailed)
            }
            Err(_) => Err(DropReason::ResolveFailed),
        }
    }

    /// The addresses of `host`, at most [`limit::ADDRESSES_MAX`], at least one.
    ///
    /// # Errors
    /// [`DropReason::ResolveFailed`].
    pub async fn addresses(&self, host: &Host) -> Result<Vec<IpAddr>, DropReason> {
        let name = match host {
            Host::Address(ip) => return Ok(vec![*ip]),
            // The final dot keeps search domains out.
            Host::Name(name) => format!("{name}."),
        };
        let now = Instant::now();
        if let Some(known) = self.known.get(&name, now) {
            return Ok(known);
        }
        let answer = match timeout(limit::RESOLVE, self.asking.lookup_ip(name.as_str())).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::debug!(%host, %error, "not resolved");
                return Err(DropReason::ResolveFailed);
            }
            Err(_) => return Err(DropReason::ResolveFailed),
        };
        let mut addresses = Vec::new();
        for ip in answer.iter().map(|ip| ip.to_canonical()).take(limit::ADDRESSES_MAX) {
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        if addresses.is_empty() {
            return Err(DropReason::ResolveFailed);
        }
        self.known.keep(&name, &addresses, answer.valid_until(), now);
        Ok(addresses)
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
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
