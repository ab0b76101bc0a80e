//! Certificates for hosts: signed by the keys role, remembered here, each with a key of its own that never leaves this
//! process.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use clawgress_api::proto::MintRequest;
use clawgress_api::proto::leaves_client::LeavesClient;
use clawgress_ebpf_common::DropReason;
use clawgress_policy::Host;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::{limit, tls};

/// The client of the keys role, and what it got from it.
#[derive(Debug)]
pub struct Leaves {
    client: LeavesClient<Channel>,
    calls: Semaphore,
    cache: Mutex<Cache>,
}

/// By host, first in first out.
#[derive(Debug, Default)]
struct Cache {
    known: HashMap<Host, Known>,
    order: VecDeque<Host>,
}

#[derive(Clone, Debug)]
struct Known {
    config: Arc<ServerConfig>,
    not_after_s: i64,
}

// === impl Leaves ===

impl Leaves {
    /// A client over `channel`.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        let calls = Semaphore::new(limit::LEAVES_CALLS_MAX);
        Leaves { client: LeavesClient::new(channel), calls, cache: Mutex::default() }
    }

    /// How to speak TLS as `host`, at a Unix time in seconds.
    ///
    /// # Errors
    /// [`DropReason::InterceptionUnavailable`] if there is no certificate for it.
    pub async fn config(&self, host: &Host, now_s: i64) -> Result<Arc<ServerConfig>, DropReason> {
        if let Some(config) = self.cache.lock().find(host, now_s) {
            return Ok(config);
        }
        let unavailable = |why: String| {
            tracing::warn!(%host, why, "there is no certificate for a host that is to be read; it is denied");
            DropReason::InterceptionUnavailable
        };
        let minted = async {
            let _permit = self.calls.acquire().await.map_err(|e| e.to_string())?;
            // Others may have asked for the same meanwhile.
            if let Some(config) = self.cache.lock().find(host, now_s) {
                return Ok(config);
            }
            let known = self.mint(host).await?;
            let config = Arc::clone(&known.config);
            self.cache.lock().keep(host, known);
            Ok::<_, String>(config)
        };
        match timeout(limit::KEYS_CALL, minted).await {
            Ok(minted) => minted.map_err(unavailable),
            Err(_) => Err(unavailable("the keys role does not answer in time".to_owned())),
        }
    }

    async fn mint(&self, host: &Host) -> Result<Known, String> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|e| e.to_string())?;
        let request = MintRequest { host: host.to_string(), public_key: pair.public_key().as_ref().to_vec() };
        let minted =
            self.client.clone().mint(request).await.map_err(|e| e.message().to_owned())?.into_inner();
        let chain = minted.chain.into_iter().map(CertificateDer::from).collect();
        let pkcs8 = pair.to_pkcs8v1().map_err(|e| e.to_string())?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_ref()));
        let key = any_ecdsa_type(&key).map_err(|e| e.to_string())?;
        let config = Arc::new(config(chain, key).map_err(|e| e.to_string())?);
        Ok(Known { config, not_after_s: minted.not_after_s })
    }
}

/// TLS towards a client, without anything that outlives a connection: what one agent was given must never let another
/// in, nor the same one past what is judged at its next hello.
fn config(
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
) -> Result<ServerConfig, rustls::Error> {
    let certified = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certified));
    config.ignore_client_order = true;
    config.alpn_protocols = super::ALPN.map(|name| name.as_bytes().to_vec()).to_vec();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

// === impl Cache ===

impl Cache {
    fn find(&self, host: &Host, now_s: i64) -> Option<Arc<ServerConfig>> {
        let known = self.known.get(host)?;
        (known.not_after_s - now_s > limit::LEAF_RENEW_S).then(|| Arc::clone(&known.config))
    }

    fn keep(&mut self, host: &Host, known: Known) {
        if self.known.insert(host.clone(), known).is_none() {
            self.order.push_back(host.clone());
        }
        while self.order.len() > limit::LEAVES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_ends_before_its_certificates_do() {
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("certificate");
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
        let key = any_ecdsa_type(&key).expect("key");
        let config = Arc::new(config(vec![made.cert.der().clone()], key).expect("config"));
        let known = |not_after_s| Known { config: Arc::clone(&config), not_after_s };
        let host = |n: usize| Host::parse(&format!("h{n}.test")).expect("host");
        let mut cache = Cache::default();
        cache.keep(&host(0), known(10_000));
        assert!(cache.find(&host(0), 10_000 - limit::LEAF_RENEW_S - 1).is_some());
        assert!(cache.find(&host(0), 10_000 - limit::LEAF_RENEW_S).is_none());
        cache.keep(&host(0), known(20_000));
        assert_eq!(cache.order.len(), 1);
        for n in 1..=limit::LEAVES_MAX {
            cache.keep(&host(n), known(20_000));
        }
        assert_eq!((cache.known.len(), cache.order.len()), (limit::LEAVES_MAX, limit::LEAVES_MAX));
        assert!(cache.find(&host(0), 0).is_none() && cache.find(&host(1), 0).is_some());
    }
}
