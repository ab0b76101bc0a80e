//! The keys role as far as it signs certificates for hosts, with an authority of its own.

use std::path::Path;
use std::sync::Arc;

use clawgress_api::leaves;
use clawgress_api::proto::{MintRequest, MintResponse};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rustls::pki_types::CertificateDer;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;

/// The authority, and what it was asked to sign.
pub struct Signing {
    ca: CertifiedIssuer<'static, KeyPair>,
    pub asked: Mutex<Vec<MintRequest>>,
    /// Whether it signs for nobody.
    pub refuses: Mutex<bool>,
}

struct Point(Vec<u8>);

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl Signing {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "the gateway's");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("authority");
        Signing { ca, asked: Mutex::default(), refuses: Mutex::default() }
    }

    /// What clients are to trust.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.ca.der().clone()
    }

    pub fn serve(self: &Arc<Self>, runtime: &Runtime, path: &Path) {
        let listener = std::os::unix::net::UnixListener::bind(path).expect("bind");
        let signing = Arc::clone(self);
        runtime.spawn(async move {
            listener.set_nonblocking(true).expect("nonblocking");
            let listener = UnixListener::from_std(listener).expect("listener");
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                let signing = Arc::clone(&signing);
                tokio::spawn(async move { leaves::serve(stream, |request| signing.mint(request)).await });
            }
        });
    }

    fn mint(&self, request: MintRequest) -> MintResponse {
        self.asked.lock().push(request.clone());
        if *self.refuses.lock() {
            return MintResponse { refused: "left out".to_owned(), ..MintResponse::default() };
        }
        let mut params = CertificateParams::new([request.host]).expect("a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&Point(request.public_key), &self.ca).expect("signed");
        let not_after_s = jiff::Timestamp::now().as_second() + 3600;
        MintResponse { chain: vec![leaf.der().to_vec()], not_after_s, refused: String::new() }
    }
}
