//! The test CA and the servers' certificates, made anew at each start.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ResolvesServerCertUsingSni;
use rustls::sign::CertifiedKey;

use crate::plan;

/// HTTP/2 by ALPN.
pub(super) const HTTP2: &[u8] = b"h2";

/// How the web servers speak TLS.
#[derive(Clone, Debug)]
pub(super) struct Servers {
    /// HTTP/1.1 alone.
    one: Arc<ServerConfig>,
    /// And HTTP/2.
    two: Arc<ServerConfig>,
}

impl Servers {
    /// As whoever has this name.
    pub(super) fn of(&self, name: Option<&str>) -> Arc<ServerConfig> {
        Arc::clone(if name == Some(plan::TWO) { &self.two } else { &self.one })
    }
}

/// Configurations with a certificate for each name of the zone; without SNI, or with another name,
/// the handshake fails. The CA's certificate, and the servers', go to `dir`.
pub(super) fn servers(dir: &Path) -> anyhow::Result<Servers> {
    let ca = authority()?;
    fs::write(dir.join(super::CA), ca.pem()).context("cannot write the CA's certificate")?;
    let certificates = dir.join(super::CERTIFICATES);
    fs::create_dir_all(&certificates).context("cannot make the certificates' directory")?;
    let provider = aws_lc_rs::default_provider();
    let mut resolver = ResolvesServerCertUsingSni::new();
    for entry in plan::ZONE {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![entry.name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, entry.name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &ca)?;
        fs::write(certificates.join(format!("{}.pem", entry.name)), certificate.pem())?;
        fs::write(certificates.join(format!("{}.key", entry.name)), key.serialize_pem())?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = provider.key_provider.load_private_key(der)?;
        resolver.add(entry.name, CertifiedKey::new(vec![certificate.der().clone()], signing))?;
    }
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut two = config.clone();
    two.alpn_protocols.insert(0, HTTP2.to_vec());
    Ok(Servers { one: Arc::new(config), two: Arc::new(two) })
}

fn authority() -> anyhow::Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, "Clawgress lab test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}
