//! One GET of who is trusted: HTTPS to the host that a URL names, to addresses alone that may be dialled, bounded in bytes
//! and time. Must never follow a redirect, ask a proxy, or send anything but the request.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clawgress_identity::{SpiffeBundle, SpiffeId};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CACHE_CONTROL, HOST, HeaderMap, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

/// Longest a fetch may take in all: well below what counts as failed should nobody tell.
const TIME_MAX: Duration = Duration::from_secs(20);
/// Longest wait for one address, so that another has its turn.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// Most addresses of a host that are tried.
const ADDRESSES_MAX: usize = 4;
/// Most bytes of header fields.
const HEADERS_BYTES_MAX: usize = 16 << 10;

/// What came.
#[derive(Debug)]
pub(super) struct Answer {
    pub body: Vec<u8>,
    /// What `Cache-Control` says, seconds.
    pub max_age_s: Option<u32>,
}

/// Why nothing came.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("its URL is not understood")]
    Url,
    #[error("`{0}` is not resolved: {1}")]
    Resolve(String, std::io::Error),
    #[error(
        "`{0}` is at {1}, which is private or reserved: if that is meant, name its network in `networks` of the \
         settings"
    )]
    Reserved(String, std::net::IpAddr),
    #[error("`{0}` has no address")]
    NoAddress(String),
    #[error("{0} can't be reached: {1}")]
    Connect(SocketAddr, std::io::Error),
    #[error("no certificates to verify it by: {0}")]
    Roots(String),
    #[error("TLS with `{0}`: {1}")]
    Tls(String, std::io::Error),
    #[error("the exchange failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("the request is refused here: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("it was answered with status {0}, and 200 alone counts; redirects are not followed")]
    Status(StatusCode),
    #[error("the answer broke off or has more than {1} bytes: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>, usize),
    #[error("it took longer than {} s", TIME_MAX.as_secs())]
    Time,
}

/// What is fetched, and of whom.
#[derive(Debug)]
pub(super) struct Target {
    pub url: String,
    /// Longest body that is read.
    pub bytes_max: usize,
    pub by: By,
    /// Private and reserved networks that the host may have addresses in.
    pub networks: Vec<IpNet>,
}

/// By what a server is known.
#[derive(Debug)]
pub(super) enum By {
    /// Its host's certificate, of these authorities (PEM), or of the system's where there are none.
    Host(String),
    /// An X.509-SVID of this ID.
    Svid(Box<SpiffeBundle>, SpiffeId),
}

/// Fetches it.
pub(super) async fn fetch(target: Target) -> Result<Answer, FetchError> {
    tokio::time::timeout(TIME_MAX, exchange(target)).await.unwrap_or(Err(FetchError::Time))
}

async fn exchange(target: Target) -> Result<Answer, FetchError> {
    let Target { url, bytes_max, by, networks } = target;
    let url: Uri = url.parse().map_err(|_| FetchError::Url)?;
    let host = url.host().ok_or(FetchError::Url)?.to_owned();
    let authority = url.authority().ok_or(FetchError::Url)?.as_str().to_owned();
    let path = url.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let tls = TlsConnector::from(Arc::new(verifying(by).await?));
    let stream = dial(&host, url.port_u16().unwrap_or(443), &networks).await?;
    let name = ServerName::try_from(host.clone()).map_err(|_| FetchError::Url)?;
    let stream = tls.connect(name, stream).await.map_err(|error| FetchError::Tls(host, error))?;
    let mut http = hyper::client::conn::http1::Builder::new();
    let http = http.max_buf_size(HEADERS_BYTES_MAX).handshake(TokioIo::new(stream));
    let (mut sender, connection) = http.await?;
    // Ends with this exchange, however that ends.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::get(path)
        .header(HOST, authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("clawgress/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    let max_age_s = max_age_s(response.headers());
    let body = Limited::new(response.into_body(), bytes_max).collect().await;
    let body = body.map_err(|error| FetchError::Body(error, bytes_max))?;
    Ok(Answer { body: body.to_bytes().to_vec(), max_age_s })
}

/// A connection to one of the host's addresses that may be dialled. What is judged is what is dialled.
async fn dial(host: &str, port: u16, networks: &[IpNet]) -> Result<TcpStream, FetchError> {
    let resolved = tokio::net::lookup_host((host, port)).await;
    let resolved = resolved.map_err(|error| FetchError::Resolve(host.to_owned(), error))?;
    let mut why = FetchError::NoAddress(host.to_owned());
    for address in resolved.take(ADDRESSES_MAX) {
        let ip = address.ip();
        if clawgress_policy::is_reserved(ip) && !is_named(networks, ip) {
            why = FetchError::Reserved(host.to_owned(), ip);
            continue;
        }
        let late = |_| Err(std::io::ErrorKind::TimedOut.into());
        let connected = tokio::time::timeout(CONNECT_TIME_MAX, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(late) {
            Ok(stream) => return Ok(stream),
            Err(error) => why = FetchError::Connect(address, error),
        }
    }
    Err(why)
}

fn is_named(networks: &[IpNet], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    networks.iter().any(|network| network.contains(&ip))
}

/// TLS that verifies by the host's own authorities, by the system's as they are now, or by an SVID.
async fn verifying(by: By) -> Result<ClientConfig, FetchError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let config = config.map_err(|error| FetchError::Roots(error.to_string()))?;
    match by {
        By::Host(ca) => {
            let roots = tokio::task::spawn_blocking(move || roots(&ca)).await;
            let roots = roots.unwrap_or_else(|error| Err(FetchError::Roots(error.to_string())))?;
            Ok(config.with_root_certificates(roots).with_no_client_auth())
        }
        By::Svid(bundle, id) => {
            let verifier = Arc::new(SvidVerifier { bundle, id, provider });
            Ok(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
        }
    }
}

/// Knows a server by its X.509-SVID, whatever its host is called (SPIFFE Federation section 5.2.2.4).
#[derive(Debug)]
struct SvidVerifier {
    bundle: Box<SpiffeBundle>,
    id: SpiffeId,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for SvidVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<CertificateDer<'_>> =
            std::iter::once(end_entity).chain(intermediates).cloned().collect();
        let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let verified = self.bundle.verify_server(&chain, &self.id, now_s);
        let refused = |error| rustls::Error::General(format!("it is not `{}`: {error}", self.id));
        verified.map(|()| ServerCertVerified::assertion()).map_err(refused)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn roots(ca: &str) -> Result<RootCertStore, FetchError> {
    let mut roots = RootCertStore::empty();
    if ca.is_empty() {
        let system = rustls_native_certs::load_native_certs();
        let system =
            system.map_err(|error| FetchError::Roots(format!("the system's can't be read: {error}")))?;
        // A system's store may have some that this verifier doesn't take.
        roots.add_parsable_certificates(system);
    } else {
        for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
            let certificate = certificate.map_err(|error| FetchError::Roots(error.to_string()))?;
            roots.add(certificate).map_err(|error| FetchError::Roots(error.to_string()))?;
        }
    }
    if roots.is_empty() { Err(FetchError::Roots("there are none".to_owned())) } else { Ok(roots) }
}

/// `max-age` of `Cache-Control`; 0 where the answer may not be kept.
fn max_age_s(headers: &HeaderMap) -> Option<u32> {
    let fields = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let directives: Vec<String> =
        fields.flat_map(|field| field.split(',')).map(|part| part.trim().to_ascii_lowercase()).collect();
    if directives.iter().any(|directive| directive == "no-store" || directive == "no-cache") {
        return Some(0);
    }
    let age = directives.iter().find_map(|directive| directive.strip_prefix("max-age="))?;
    age.trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_caching_says() {
        for (fields, said) in [
            (&[][..], None),
            (&["max-age=60"][..], Some(60)),
            (&["public, MAX-AGE=\"7\", must-revalidate"][..], Some(7)),
            (&["public", "max-age=9"][..], Some(9)),
            (&["max-age=9, no-store"][..], Some(0)),
            (&["max-age=-1"][..], None),
            (&["s-maxage=4"][..], None),
        ] {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(CACHE_CONTROL, field.parse().expect("a value"));
            }
            assert_eq!(max_age_s(&headers), said, "{headers:?}");
        }
    }

    #[tokio::test]
    async fn reserved_addresses_are_dialled_only_where_they_are_named() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = server.local_addr().expect("address").port();
        let refused = dial("127.0.0.1", port, &[]).await.expect_err("reserved");
        assert!(matches!(refused, FetchError::Reserved(..)), "{refused}");
        let networks = ["127.0.0.0/8".parse().expect("network")];
        dial("127.0.0.1", port, &networks).await.expect("dialled");
    }
}
