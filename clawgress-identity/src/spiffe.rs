//! SPIFFE: IDs, bundles, and the two kinds of SVID (the standards of the SPIFFE project).

mod bundle;
mod domain;
mod followed;
mod id;
mod source;
mod workload;

pub use bundle::{BUNDLE_CERTIFICATES_MAX, BundleError, SpiffeBundle};
pub use domain::{IdPart, TrustDomain, TrustDomainError, TrustDomainRecord};
pub(crate) use domain::{TRUST_DOMAINS_MAX, TrustDomains};
pub use followed::FollowedBundle;
pub use id::{SPIFFE_ID_BYTES_MAX, SpiffeId, SpiffeIdError, TrustDomainName};
pub use source::{BundleEndpointRecord, BundleSource, EndpointProfile, SourceError, WorkloadApiRecord};
