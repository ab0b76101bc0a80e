//! Where a trust domain's bundle comes from, if it is not given by hand, as the registry holds it.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{SpiffeId, TrustDomainName};
use crate::oidc::{ProviderError, ProviderUrl, UrlError, check_fetching};

/// How long a bundle goes on counting where nothing else is configured, seconds: an hour without the agent of a node, or
/// without a partner's endpoint.
const STALE_S_DEFAULT: u32 = 60 * 60;
/// Longest time that a bundle may count as fresh where nothing else is configured, seconds.
const FRESH_S_DEFAULT: u32 = 24 * 60 * 60;

/// Where a bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BundleSource {
    /// The SPIFFE Workload API of the node, which says of each change.
    WorkloadApi(WorkloadApiRecord),
    /// A bundle endpoint (SPIFFE Federation), which is asked again and again.
    Endpoint(BundleEndpointRecord),
}

/// How a bundle of the Workload API counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadApiRecord {
    /// How long the bundle goes on counting while the Workload API is away, seconds.
    #[serde(default = "stale_s_default")]
    pub stale_s_max: u32,
}

/// How a bundle endpoint is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleEndpointRecord {
    /// Where it is.
    pub url: String,
    /// By what it is known.
    #[serde(default)]
    pub profile: EndpointProfile,
    /// How long a bundle counts as fresh at most, seconds, whatever its refresh hint says.
    #[serde(default = "fresh_s_default")]
    pub fresh_s_max: u32,
    /// How long it goes on counting after that while the endpoint fails, seconds.
    #[serde(default = "stale_s_default")]
    pub stale_s_max: u32,
    /// Private and reserved networks that its host may have addresses in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<IpNet>,
    /// For `https_web`: the certificates that verify its host, PEM, in place of the system's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca: String,
}

/// By what a bundle endpoint is known (SPIFFE Federation section 5.2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointProfile {
    /// Its host's certificate.
    #[default]
    HttpsWeb,
    /// An X.509-SVID with this ID.
    HttpsSpiffe(SpiffeId),
}

fn stale_s_default() -> u32 {
    STALE_S_DEFAULT
}

fn fresh_s_default() -> u32 {
    FRESH_S_DEFAULT
}

/// Why a source was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The URL may not be asked.
    #[error("`url` of its bundle endpoint: {0}")]
    Url(UrlError),
    /// Out of bounds.
    #[error(transparent)]
    Bounds(#[from] ProviderError),
    /// The endpoint's ID is no workload's.
    #[error("`https_spiffe` needs the ID of the endpoint: a SPIFFE ID with a path")]
    Id,
    /// Certificates of hosts have no part in `https_spiffe`.
    #[error("`ca` is for `https_web`: an endpoint with `https_spiffe` is known by its SVID")]
    Ca,
    /// An endpoint that serves the bundle of its own trust domain needs a first one.
    #[error("the endpoint is of the trust domain itself: give a first bundle to know it by (`--bundle`)")]
    First,
    /// A given bundle would count for nothing.
    #[error(
        "a bundle is given and fetched too: leave out the given one, which only an endpoint that is of the trust \
         domain itself needs (`https_spiffe`)"
    )]
    Given,
}

// === impl BundleSource ===

impl BundleSource {
    /// Whether it is complete and bounded, for this trust domain, of which a bundle is given or not.
    pub(crate) fn check(&self, domain: &TrustDomainName, is_given: bool) -> Result<(), SourceError> {
        let needs_first = match self {
            BundleSource::WorkloadApi(record) => {
                check_fetching(FRESH_S_DEFAULT, record.stale_s_max, &[], "")?;
                false
            }
            BundleSource::Endpoint(record) => record.check()?.is_some_and(|id| id.domain() == domain),
        };
        match (needs_first, is_given) {
            (true, false) => Err(SourceError::First),
            (false, true) => Err(SourceError::Given),
            _ => Ok(()),
        }
    }

    /// How long a bundle goes on counting while nobody confirms it, seconds.
    #[must_use]
    pub fn stale_s_max(&self) -> u32 {
        match self {
            BundleSource::WorkloadApi(record) => record.stale_s_max,
            BundleSource::Endpoint(record) => record.stale_s_max,
        }
    }

    /// Whether a bundle that came as `self` says is what would come as `other` says: only the times differ.
    #[must_use]
    pub fn asks_as(&self, other: &BundleSource) -> bool {
        match (self, other) {
            (BundleSource::WorkloadApi(_), BundleSource::WorkloadApi(_)) => true,
            (BundleSource::Endpoint(own), BundleSource::Endpoint(other)) => {
                let BundleEndpointRecord { url, profile, networks, ca, fresh_s_max: _, stale_s_max: _ } = own;
                (url, profile, networks, ca) == (&other.url, &other.profile, &other.networks, &other.ca)
            }
            _ => false,
        }
    }
}

// === impl EndpointProfile ===

impl EndpointProfile {
    /// How settings call [`HttpsSpiffe`](Self::HttpsSpiffe).
    pub const HTTPS_SPIFFE: &str = "https_spiffe";
}

// === impl BundleEndpointRecord ===

impl BundleEndpointRecord {
    /// Whether it is complete and bounded; the ID it is known by, if it is.
    fn check(&self) -> Result<Option<&SpiffeId>, SourceError> {
        ProviderUrl::endpoint(&self.url).map_err(SourceError::Url)?;
        check_fetching(self.fresh_s_max, self.stale_s_max, &self.networks, &self.ca)?;
        match &self.profile {
            EndpointProfile::HttpsWeb => Ok(None),
            EndpointProfile::HttpsSpiffe(_) if !self.ca.is_empty() => Err(SourceError::Ca),
            EndpointProfile::HttpsSpiffe(id) if id.path().is_empty() => Err(SourceError::Id),
            EndpointProfile::HttpsSpiffe(id) => Ok(Some(id)),
        }
    }
}
