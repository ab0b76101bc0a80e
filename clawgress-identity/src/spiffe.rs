//! SPIFFE: IDs, bundles, and the two kinds of SVID (the standards of the SPIFFE project).

mod bundle;
mod domain;
mod id;

pub use bundle::{BUNDLE_CERTIFICATES_MAX, BundleError, SpiffeBundle};
pub use domain::{IdPart, TrustDomain, TrustDomainError, TrustDomainRecord};
pub(crate) use domain::{TRUST_DOMAINS_MAX, TrustDomains};
pub use id::{SPIFFE_ID_BYTES_MAX, SpiffeId, SpiffeIdError, TrustDomainName};
