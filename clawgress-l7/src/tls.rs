//! The explicit proxy over TLS: its own certificate, read again when its files change, and the handshake, which asks
//! for a client's.
//!
//! INVARIANT: the handshake decides nothing but that the client has the key of the certificate it sends. Whom that
//! proves is judged by the snapshot for each request, so that no handshake is ever worth more than what is trusted now;
//! and there is no resumption, which would bring a certificate that nobody has shown to have the key of.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail, ensure};
use arc_swap::ArcSwap;
use clawgress_api::config::ProxyTls;
use clawgress_ebpf_common::DropReason;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, ServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme, SupportedCipherSuite,
};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, timeout_at};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use crate::identify::Certificate;
use crate::limit;
use crate::stream::Stream;

/// The protocols inside, the better first.
const ALPN: [&[u8]; 2] = [ALPN_HTTP2, b"http/1.1"];
const ALPN_HTTP2: &[u8] = b"h2";
/// Bits of a mode by which others than the owner and its group may read or write, and the group may write.
const OPEN_BITS: u32 = 0o037;

/// The proxy's side of TLS.
#[derive(Debug)]
pub struct Terminal {
    files: ProxyTls,
    live: ArcSwap<Live>,
}

/// What is in force.
#[derive(Debug)]
struct Live {
    config: Arc<ServerConfig>,
    seen: [Seen; 2],
}

/// A client, after its handshake.
#[derive(Debug)]
pub struct Accepted {
    /// The client.
    pub stream: Stream,
    /// What it has shown, if it has.
    pub certificate: Option<Arc<Certificate>>,
    /// Whether it speaks HTTP/2.
    pub is_http2: bool,
}

/// A file as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    bytes: u64,
    modified: Option<SystemTime>,
}

// === impl Terminal ===

impl Terminal {
    /// Reads the certificate and its key.
    ///
    /// # Errors
    /// If they can't be read or used.
    pub fn new(files: &ProxyTls) -> Result<Self> {
        Ok(Terminal { files: files.clone(), live: ArcSwap::from_pointee(Live::read(files)?) })
    }

    /// Reads the files again whenever they change, for ever. What can't be used changes nothing: the former
    /// certificate stays, and the files are looked at again.
    pub async fn follow(&self) {
        let mut looks = tokio::time::interval(limit::TLS_FILES_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refused = None;
        loop {
            looks.tick().await;
            let seen = seen(&self.files).ok();
            if seen == Some(self.live.load().seen) || seen.is_some() && seen == refused {
                continue;
            }
            match Live::read(&self.files) {
                Ok(live) => {
                    refused = None;
                    self.live.store(Arc::new(live));
                    tracing::info!("the proxy's certificate was read again");
                }
                Err(error) => {
                    // One that is half replaced changes once more.
                    refused = seen;
                    tracing::error!("the proxy's new certificate can't be used, the former stays: {error:#}");
                }
            }
        }
    }

    /// Shakes hands with a client, which may show a certificate; `None` if it left, or wanted none of it.
    ///
    /// # Errors
    /// [`DropReason::Timeout`], [`DropReason::CredentialInvalid`] if the client has not shown to have the key of its
    /// certificate, [`DropReason::TlsMalformed`].
    pub async fn accept(&self, stream: TcpStream, deadline: Instant) -> Result<Option<Accepted>, DropReason> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.live.load().config));
        let stream = match timeout_at(deadline, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return refusal(&error).map_or(Ok(None), Err),
            Err(_) => return Err(DropReason::Timeout),
        };
        let session = stream.get_ref().1;
        let chain = session.peer_certificates().map(|chain| Certificate::new(chain.into()));
        let (certificate, is_http2) = (chain.map(Arc::new), session.alpn_protocol() == Some(ALPN_HTTP2));
        Ok(Some(Accepted { stream: Stream::Tls(Box::new(stream)), certificate, is_http2 }))
    }
}

/// Why a handshake failed, if by the client's doing.
fn refusal(error: &io::Error) -> Option<DropReason> {
    tracing::debug!(%error, "a TLS handshake failed");
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        // It does not trust the proxy's certificate, or has no protocol in common with it: nothing was asked.
        rustls::Error::AlertReceived(_) => None,
        rustls::Error::InvalidCertificate(_) => Some(DropReason::CredentialInvalid),
        _ => Some(DropReason::TlsMalformed),
    }
}

// === impl Live ===

impl Live {
    fn read(files: &ProxyTls) -> Result<Live> {
        // Before they are read: what changes meanwhile is read once more.
        let seen = seen(files)?;
        let certificates = read(&files.certificate, "certificate")?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificates)
            .collect::<Result<_, _>>()
            .with_context(|| format!("`{}` is not PEM", files.certificate.display()))?;
        ensure!(!chain.is_empty(), "there is no certificate in `{}`", files.certificate.display());
        let mode = fs::metadata(&files.key)?.mode();
        ensure!(
            mode & OPEN_BITS == 0,
            "the private key `{}` is open to others: give it to the user of clawgress-l7, with mode 0400",
            files.key.display()
        );
        let key = read(&files.key, "key")?;
        let key = PrivateKeyDer::from_pem_slice(&key)
            .with_context(|| format!("there is no private key in `{}`", files.key.display()))?;
        let config = config(chain, key).with_context(|| {
            format!("`{}` and `{}` can't be used together", files.certificate.display(), files.key.display())
        })?;
        Ok(Live { config: Arc::new(config), seen })
    }
}

fn seen(files: &ProxyTls) -> io::Result<[Seen; 2]> {
    let seen = |metadata: Metadata| Seen {
        inode: metadata.ino(),
        bytes: metadata.len(),
        modified: metadata.modified().ok(),
    };
    Ok([seen(fs::metadata(&files.certificate)?), seen(fs::metadata(&files.key)?)])
}

fn read(path: &Path, key: &str) -> Result<Zeroizing<Vec<u8>>> {
    let place = path.display();
    let correct = || format!("cannot read `{place}`; correct `{key}` in [proxy.tls], or who may read it");
    let file = File::open(path).with_context(correct)?;
    // Whole at once: a buffer that grows would leave parts of the key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit::TLS_FILE_BYTES + 1));
    file.take(limit::TLS_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).with_context(correct)?;
    if bytes.len() > limit::TLS_FILE_BYTES {
        bail!("`{place}` has more than {} bytes", limit::TLS_FILE_BYTES);
    }
    Ok(bytes)
}

/// How TLS is spoken on every side: rustls's choices, with AES-128 before AES-256 (its key schedule is of SHA-256, which processors
/// have instructions for, and which a handshake consists of by a tenth; RFC 8446 section 9.1 has everybody implement it).
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = aws_lc_rs::default_provider();
        let first = |suite: &SupportedCipherSuite| {
            let name = format!("{:?}", suite.suite());
            (suite.tls13().is_none(), !name.contains("AES_128_GCM"))
        };
        // Stable: else as they were.
        provider.cipher_suites.sort_by_key(first);
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}

/// TLS 1.3, in which the client's certificate travels encrypted, without anything that outlives a connection.
fn config(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<ServerConfig> {
    let provider = provider();
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Possession(provider)))
        .with_single_cert(chain, key)?;
    config.ignore_client_order = true;
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// Has clients show that they have the key of the certificate they send, if they send one.
#[derive(Debug)]
struct Possession(Arc<CryptoProvider>);

// === impl Possession ===

impl ClientCertVerifier for Possession {
    fn client_auth_mandatory(&self) -> bool {
        // A key or a token will do, inside.
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Whom this gateway trusts is no stranger's business.
        &[]
    }

    /// Takes what is a certificate and of a bounded size: whom it proves is judged later, and again and again.
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let bytes = intermediates.iter().map(|c| c.len()).sum::<usize>() + end_entity.len();
        if intermediates.len() >= limit::CHAIN || bytes > limit::CHAIN_BYTES {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        ParsedCertificate::try_from(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
