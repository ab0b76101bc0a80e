//! What the certificates of servers may lead to, where that is more than the system's authorities.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use pingora_core::protocols::tls::CaType;
use pingora_core::utils::tls::{WrappedX509, parse_x509};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

use crate::endpoints;

/// The system's authorities and those in `files`; `None` if there are no files.
///
/// # Errors
/// If one can't be read or used.
pub fn load(files: &[PathBuf]) -> Result<Option<Arc<CaType>>> {
    if files.is_empty() {
        return Ok(None);
    }
    let mut all = Vec::new();
    for file in files {
        all.extend(endpoints::certificates(file).context("`roots` in [intercept] can't be used")?);
    }
    let system =
        rustls_native_certs::load_native_certs().context("the system's authorities can't be read")?;
    let mut taken = RootCertStore::empty();
    for certificate in system {
        let certificate = CertificateDer::from(certificate.to_vec());
        // Some systems have old ones that nothing reads; what Pingora can't read would take the process down.
        let is_sound = x509_parser::parse_x509_certificate(&certificate).is_ok();
        if is_sound && taken.add(certificate.clone()).is_ok() {
            all.push(certificate);
        }
    }
    let parsed = all.into_iter().map(|c| WrappedX509::new(c.to_vec(), parse_x509));
    Ok(Some(parsed.collect::<Vec<_>>().into()))
}
