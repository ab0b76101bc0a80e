//! What the certificates of servers may lead to, that L7 itself speaks TLS with.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use pingora_core::protocols::tls::CaType;
use pingora_core::utils::tls::{WrappedX509, parse_x509};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

use crate::endpoints;

/// The system's authorities and those in `files`.
///
/// Given to each dial, though the system's are what Pingora takes by itself: with authorities of its own a dial has a
/// client configuration of its own, and resumes no session. In what all dials share, a server would know one agent by the
/// ticket of another (and its certificate would not be looked at again).
///
/// # Errors
/// If one can't be read or used.
pub fn load(files: &[PathBuf]) -> Result<Arc<CaType>> {
    let parsed = all(files)?.into_iter().map(|c| WrappedX509::new(c.to_vec(), parse_x509));
    Ok(parsed.collect::<Vec<_>>().into())
}

/// The same, for who speaks TLS without Pingora.
///
/// # Errors
/// As [`load`].
pub fn store(files: &[PathBuf]) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in all(files)? {
        store.add(certificate)?;
    }
    Ok(store)
}

fn all(files: &[PathBuf]) -> Result<Vec<CertificateDer<'static>>> {
    let mut all = Vec::new();
    for file in files {
        all.extend(endpoints::certificates(file)?);
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
    Ok(all)
}
