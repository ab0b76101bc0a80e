//! Certificates for hosts: signed by the keys role, remembered here, each with a key of its own that never leaves this
//! process.

use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use clawgress_api::leaves::Client;
use clawgress_api::proto::MintRequest;
use clawgress_ebpf_common::DropReason;
use clawgress_policy::Host;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, ResolvesServerCertUsingSni};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{ServerConfig, SignatureAlgorithm, SignatureScheme};
use tokio::time::timeout;

use crate::shared::{Shared, Turns};
use crate::told::Told;
use crate::{limit, tls};

/// The client of the keys role, and what it got from it.
#[derive(Debug)]
pub struct Leaves {
    client: Client,
    /// What all of them have in common: a certificate is none of it.
    common: ServerConfig,
    /// Of each agent, a share.
    calls: Turns,
    cache: Mutex<Cache>,
    /// Hosts that it signs nothing for, and until when it is not asked again.
    refused: Mutex<Shared<Host, Instant>>,
    told: Told,
}

/// By host; of what agents had made, each a share.
type Cache = Shared<Host, Known>;

#[derive(Clone, Debug)]
struct Known {
    config: Arc<ServerConfig>,
    not_after_s: i64,
}

/// Why there is no certificate.
enum Missing {
    /// The keys role signs none for that host.
    Refused(String),
    /// It could not be asked, or was not asked again.
    Unasked(String),
}

/// The key of a leaf, as it was made: written down and read again, which is how rustls takes keys, it would be verified each time.
#[derive(Clone, Debug)]
struct Key(Arc<EcdsaKeyPair>);

// === impl Leaves ===

impl Leaves {
    /// What `client` answers.
    ///
    /// # Errors
    /// If this build can't speak TLS.
    pub fn new(client: Client) -> Result<Self, rustls::Error> {
        Ok(Leaves {
            client,
            common: common()?,
            calls: Turns::new(limit::LEAVES_CALLS_MAX),
            cache: Mutex::new(Shared::new(limit::LEAVES_MAX)),
            refused: Mutex::new(Shared::new(limit::LEAVES_REFUSED_MAX)),
            told: Told::default(),
        })
    }

    /// How to speak TLS as `host` to the agent of this index, at a Unix time in seconds. One that asks for many waits for its own
    /// share of questions, and no others for it.
    ///
    /// # Errors
    /// [`DropReason::InterceptionUnavailable`] if there is no certificate for it.
    pub async fn config(&self, agent: u32, host: &Host, now_s: i64) -> Result<Arc<ServerConfig>, DropReason> {
        if let Some(config) = self.known(host, now_s) {
            return Ok(config);
        }
        let minted = async {
            let _permit = self.calls.take(agent).await.map_err(|e| Missing::Unasked(e.to_string()))?;
            // Others may have asked for the same meanwhile.
            if let Some(config) = self.known(host, now_s) {
                return Ok(config);
            }
            if self.refused.lock().find(host).is_some_and(|until| *until > Instant::now()) {
                return Err(Missing::Unasked("it was refused a moment ago".to_owned()));
            }
            let known = self.mint(host).await?;
            let config = Arc::clone(&known.config);
            self.cache.lock().keep(agent, host.clone(), known);
            Ok(config)
        };
        let late = |_| Err(Missing::Unasked("the keys role does not answer in time".to_owned()));
        timeout(limit::KEYS_CALL, minted).await.unwrap_or_else(late).map_err(|missing| {
            let now = Instant::now();
            let why = match missing {
                Missing::Refused(why) => {
                    self.refused.lock().keep(agent, host.clone(), now + limit::KEYS_REFUSED);
                    why
                }
                Missing::Unasked(why) => why,
            };
            if let Some(untold) = self.told.turn(agent, now) {
                tracing::warn!(%host, why, untold, "there is no certificate for a host that is to be read; it is denied");
            }
            DropReason::InterceptionUnavailable
        })
    }

    /// What is remembered, if it counts for some time yet.
    fn known(&self, host: &Host, now_s: i64) -> Option<Arc<ServerConfig>> {
        self.cache.lock().find(host).and_then(|known| known.at(now_s))
    }

    async fn mint(&self, host: &Host) -> Result<Known, Missing> {
        let unasked = |why: String| Missing::Unasked(why);
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING);
        let pair = pair.map_err(|e| unasked(e.to_string()))?;
        let request = MintRequest { host: host.to_string(), public_key: pair.public_key().as_ref().to_vec() };
        let minted = self.client.mint(&request).await.map_err(|e| unasked(e.to_string()))?;
        if !minted.refused.is_empty() {
            return Err(Missing::Refused(minted.refused));
        }
        let chain = minted.chain.into_iter().map(CertificateDer::from).collect();
        let config = Arc::new(shown(&self.common, chain, Key(Arc::new(pair))));
        Ok(Known { config, not_after_s: minted.not_after_s })
    }
}

/// TLS towards a client, without anything that outlives a connection: what one agent was given must never let another
/// in, nor the same one past what is judged at its next hello.
fn common() -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
    config.ignore_client_order = true;
    config.alpn_protocols = super::ALPN.map(|name| name.as_bytes().to_vec()).to_vec();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// The same, with a certificate to show.
fn shown(common: &ServerConfig, chain: Vec<CertificateDer<'static>>, key: Key) -> ServerConfig {
    let certified = SingleCertAndKey::from(CertifiedKey::new(chain, Arc::new(key)));
    let mut config = common.clone();
    config.cert_resolver = Arc::new(certified);
    config
}

// === impl Key ===

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&self.scheme()).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signed = self.0.sign(&SystemRandom::new(), message);
        let signed = signed.map_err(|_| rustls::Error::General("a leaf's key does not sign".to_owned()))?;
        Ok(signed.as_ref().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

// === impl Known ===

impl Known {
    fn at(&self, now_s: i64) -> Option<Arc<ServerConfig>> {
        (self.not_after_s - now_s > limit::LEAF_RENEW_S).then(|| Arc::clone(&self.config))
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

    use super::*;

    fn key() -> Key {
        Key(Arc::new(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("key")))
    }

    #[test]
    fn what_is_known_ends_before_its_certificate_does() {
        let config = Arc::new(shown(&common().expect("config"), Vec::new(), key()));
        let known = Known { config, not_after_s: 10_000 };
        assert!(known.at(10_000 - limit::LEAF_RENEW_S - 1).is_some());
        assert!(known.at(10_000 - limit::LEAF_RENEW_S).is_none());
    }

    #[test]
    fn a_key_signs_what_it_is_asked_for_and_by_nothing_else() {
        let key = key();
        let signer = key.choose_scheme(&[SignatureScheme::ED25519, key.scheme()]).expect("offered");
        let signed = signer.sign(b"said").expect("signed");
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.0.public_key());
        public.verify(b"said", &signed).expect("its own");
        public.verify(b"other", &signed).expect_err("of something else");
        let others = [SignatureScheme::ECDSA_NISTP384_SHA384, SignatureScheme::RSA_PSS_SHA256];
        assert!(key.choose_scheme(&others).is_none());
    }
}
