//! Asks the keys role for the keyed hash of a presented API key.
//!
//! The secret under which keys are hashed never comes here. Remembers the hashes of keys that proved
//! valid, under a secret of this process, so that no table of presented keys exists in memory.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use aws_lc_rs::hmac;
use clawgress_api::proto::MacApiKeyRequest;
use clawgress_api::proto::keys_client::KeysClient;
use clawgress_ebpf_common::DropReason;
use clawgress_identity::{ApiKey, KEY_MAC_BYTES};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::transport::Channel;
use zeroize::Zeroize as _;

use crate::limit;

type Mac = [u8; KEY_MAC_BYTES];

/// The client of the keys role.
#[derive(Debug)]
pub struct Keys {
    client: KeysClient<Channel>,
    calls: Semaphore,
    cache_key: hmac::Key,
    cache: Mutex<Cache>,
}

/// Hashes of valid keys, first in first out.
#[derive(Debug, Default)]
struct Cache {
    macs: HashMap<Mac, (Mac, Instant)>,
    order: VecDeque<Mac>,
}

// === impl Keys ===

impl Keys {
    /// A client over `channel`.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn new(channel: Channel) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let cache_key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        secret.zeroize();
        Ok(Keys {
            client: KeysClient::new(channel),
            calls: Semaphore::new(limit::KEYS_CALLS_MAX),
            cache_key,
            cache: Mutex::default(),
        })
    }

    /// The keyed hash of `key`.
    ///
    /// # Errors
    /// [`DropReason::IdentityUnavailable`] if the keys role does not answer in time.
    pub async fn mac(&self, key: ApiKey<'_>) -> Result<Mac, DropReason> {
        let name = self.name(key);
        if let Some(mac) = self.known(&name) {
            return Ok(mac);
        }
        let call = async {
            let _permit = self.calls.acquire().await.map_err(|_| tonic::Status::unavailable("closed"))?;
            // Another request of the same agent may have asked meanwhile: clients begin many streams at once.
            if let Some(mac) = self.known(&name) {
                return Ok(mac.to_vec());
            }
            let request = MacApiKeyRequest { key: key.expose().as_bytes().to_vec() };
            Ok::<_, tonic::Status>(self.client.clone().mac_api_key(request).await?.into_inner().mac)
        };
        match timeout(limit::KEYS_CALL, call).await {
            Ok(Ok(mac)) => mac.try_into().map_err(|_| DropReason::IdentityUnavailable),
            Ok(Err(status)) => {
                tracing::warn!(%status, "the keys role can't be asked; credentials are refused");
                Err(DropReason::IdentityUnavailable)
            }
            Err(_) => {
                tracing::warn!("the keys role does not answer in time; credentials are refused");
                Err(DropReason::IdentityUnavailable)
            }
        }
    }

    /// What is remembered by this name.
    fn known(&self, name: &Mac) -> Option<Mac> {
        let cache = self.cache.lock();
        cache.macs.get(name).filter(|(_, at)| at.elapsed() < limit::KEYS_CACHE).map(|(mac, _)| *mac)
    }

    /// Remembers that `mac` is the hash of `key`, which proved valid. Invalid keys are never
    /// remembered, so nobody can push valid ones out without owning as many.
    pub fn remember(&self, key: ApiKey<'_>, mac: Mac) {
        let name = self.name(key);
        let mut cache = self.cache.lock();
        if cache.macs.insert(name, (mac, Instant::now())).is_none() {
            cache.order.push_back(name);
        }
        while cache.order.len() > limit::KEYS_CACHE_MAX {
            if let Some(oldest) = cache.order.pop_front() {
                cache.macs.remove(&oldest);
            }
        }
    }

    fn name(&self, key: ApiKey<'_>) -> Mac {
        let tag = hmac::sign(&self.cache_key, key.expose().as_bytes());
        let mut name = [0; KEY_MAC_BYTES];
        name.copy_from_slice(tag.as_ref());
        name
    }
}
