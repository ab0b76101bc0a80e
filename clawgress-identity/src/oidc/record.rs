//! How an issuer's provider is asked for keys, as the registry holds it.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::url::{self, ProviderUrl, UrlError};
use crate::certificate::{Anchors, AnchorsError, Revocation};

/// Longest time that keys may count as fresh, seconds, and where none is configured.
const FRESH_S_MAX: u32 = 24 * 60 * 60;
/// Longest time that stale keys may count, seconds: a week of a provider that is away.
const STALE_S_MAX: u32 = 7 * 24 * 60 * 60;
/// Most networks: an organisation has a few.
const NETWORKS_MAX: usize = 16;
/// Largest file of authorities, bytes: 64 certificates fit.
const CA_BYTES_MAX: usize = 128 * 1024;

/// How a provider is asked. Its issuer is where its discovery document is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderRecord {
    /// Where its keys may be (`host` or `host:port`), besides the issuer's own host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_hosts: Vec<String>,
    /// How long keys count as fresh at most, seconds, whatever the provider says of caching.
    #[serde(default = "default_fresh_s_max")]
    pub fresh_s_max: u32,
    /// How long keys go on counting after that while the provider fails, seconds.
    pub stale_s_max: u32,
    /// Private and reserved networks that its hosts may have addresses in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<IpNet>,
    /// The certificates that verify its hosts, PEM, in place of the system's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca: String,
}

fn default_fresh_s_max() -> u32 {
    FRESH_S_MAX
}

/// Why a provider was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// The issuer is no URL that may be asked.
    #[error("`issuer`: {0}; give its keys by `--keys` and leave `[provider]` out where it can't be asked")]
    Issuer(UrlError),
    /// A host is none.
    #[error("`key_hosts`: `{0}` is not `HOST` or `HOST:PORT` in lowercase")]
    Host(String),
    /// Too many hosts.
    #[error("`key_hosts` has more than {} hosts", url::HOSTS_MAX)]
    Hosts,
    /// Out of bounds.
    #[error("`fresh_s_max` is not 1 to {FRESH_S_MAX}, a day")]
    Fresh,
    /// Longer than may be.
    #[error("`stale_s_max` is more than {STALE_S_MAX}, a week")]
    Stale,
    /// Too many networks.
    #[error("`networks` has more than {NETWORKS_MAX} networks")]
    Networks,
    /// Its authorities can't be used.
    #[error("its authorities (`ca`): {0}")]
    Ca(AnchorsError),
    /// They are too large.
    #[error(
        "its authorities (`ca`) have more than {CA_BYTES_MAX} bytes: give those alone that its hosts need"
    )]
    CaSize,
}

/// Whether how long something fetched counts, and whom it is fetched of, is bounded.
pub(crate) fn check_fetching(
    fresh_s_max: u32,
    stale_s_max: u32,
    networks: &[IpNet],
    ca: &str,
) -> Result<(), ProviderError> {
    if !(1..=FRESH_S_MAX).contains(&fresh_s_max) {
        return Err(ProviderError::Fresh);
    }
    if stale_s_max > STALE_S_MAX {
        return Err(ProviderError::Stale);
    }
    if networks.len() > NETWORKS_MAX {
        return Err(ProviderError::Networks);
    }
    if ca.len() > CA_BYTES_MAX {
        return Err(ProviderError::CaSize);
    }
    if !ca.is_empty() {
        Anchors::from_pem(ca, "", Revocation::Off).map_err(ProviderError::Ca)?;
    }
    Ok(())
}

// === impl ProviderRecord ===

impl ProviderRecord {
    /// Whether it is complete and bounded; the issuer as a URL.
    pub(crate) fn check(&self, issuer: &str) -> Result<ProviderUrl, ProviderError> {
        let issuer = ProviderUrl::issuer(issuer).map_err(ProviderError::Issuer)?;
        if self.key_hosts.len() > url::HOSTS_MAX {
            return Err(ProviderError::Hosts);
        }
        if let Some(host) = self.key_hosts.iter().find(|host| !url::is_host(host)) {
            return Err(ProviderError::Host(crate::quote::quote(host)));
        }
        check_fetching(self.fresh_s_max, self.stale_s_max, &self.networks, &self.ca)?;
        Ok(issuer)
    }

    /// Whether keys that were fetched as `self` says are what would be fetched as `other` says: only the times differ.
    #[must_use]
    pub fn asks_as(&self, other: &ProviderRecord) -> bool {
        let ProviderRecord { key_hosts, networks, ca, fresh_s_max: _, stale_s_max: _ } = self;
        (key_hosts, networks, ca) == (&other.key_hosts, &other.networks, &other.ca)
    }
}
