//! Client certificates (RFC 5280): a chain to configured authorities, and which agent its names stand for.
//!
//! That the client has the key is the TLS handshake's to prove; here a chain is judged, at the handshake and again
//! whenever something changed. Paths, signatures, constraints and revocation are `rustls-webpki`'s; what it does not
//! tell (key usage, e-mail names, names that it skips) is read from the same bytes once it has taken them.

mod anchors;
mod authority;
mod details;

pub(crate) use anchors::Anchors;
pub use anchors::{AnchorsError, CHAIN_BYTES_MAX, CHAIN_MAX, CertificateError, PEM_BYTES_MAX, Revocation};
pub(crate) use authority::{AUTHORITIES_MAX, Authorities};
pub use authority::{Authority, AuthorityError, AuthorityRecord, NameKind};
pub use details::ListDetails;
pub(crate) use details::{CRL_SIGN, DIGITAL_SIGNATURE, Details, KEY_CERT_SIGN};
