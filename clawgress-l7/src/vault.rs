//! Keys of providers, as they are sent on: opened by the keys role, and remembered here for a moment.
//!
//! Must never log one, nor let one go where its record does not have it go.

use std::collections::HashMap;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clawgress_api::proto::OpenRequest;
use clawgress_api::proto::vault_client::VaultClient;
use clawgress_ebpf_common::DropReason;
use clawgress_identity::{Agent, ProviderKeyId, ProviderKeyRecord};
use clawgress_policy::transform::Injected;
use clawgress_policy::{Host, Scheme};
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::limit;
use crate::snapshot::Plan;

/// The client of the keys role, and what it opened.
#[derive(Debug)]
pub struct Vault {
    client: VaultClient<Channel>,
    calls: Semaphore,
    opened: Mutex<HashMap<(ProviderKeyId, u64), Opened>>,
}

/// A value; its `Debug` never shows it.
struct Opened {
    /// What it was opened of: a key of the same name and version may be another one, made after the first was deleted.
    record: ProviderKeyRecord,
    value: Zeroizing<Vec<u8>>,
    at: Instant,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}

// === impl Vault ===

impl Vault {
    /// A client over `channel`.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        let calls = Semaphore::new(limit::VAULT_CALLS_MAX);
        Vault { client: VaultClient::new(channel), calls, opened: Mutex::default() }
    }

    /// The value of a field that policy sets to a key of the agent's tenant, and which version of it that is.
    ///
    /// # Errors
    /// [`DropReason::ProviderKeyUnavailable`] if there is none, it may not go there, or the keys role does not open it.
    pub async fn field(
        &self,
        plan: &Plan,
        agent: &Agent,
        injected: &Injected,
        (host, scheme): (&Host, Scheme),
    ) -> Result<(HeaderValue, u64), DropReason> {
        let unavailable = |why: &str| {
            let (key, agent) = (&injected.key, &agent.id);
            tracing::warn!(%key, %agent, %host, why, "a request can't be sent with its key; it is denied");
            DropReason::ProviderKeyUnavailable
        };
        let record = plan.provider_key(agent.id.tenant(), &injected.key);
        let record = record.ok_or_else(|| unavailable("there is no such key"))?;
        if scheme != Scheme::Https && !record.clear {
            return Err(unavailable("it may not be sent in clear"));
        }
        if !record.hosts.contains(&host.to_string()) {
            return Err(unavailable("it may not be sent there"));
        }
        let value = self.value(record).await.map_err(|why| unavailable(&why))?;
        let parts = [injected.before.as_bytes(), &value, injected.behind.as_bytes()];
        let whole = Zeroizing::new(parts.concat());
        let mut field =
            HeaderValue::from_bytes(&whole).map_err(|_| unavailable("it is no value of a field"))?;
        // Neither shown, nor remembered by a connection's compression.
        field.set_sensitive(true);
        Ok((field, record.version))
    }

    async fn value(&self, record: &ProviderKeyRecord) -> Result<Zeroizing<Vec<u8>>, String> {
        if let Some(value) = self.known(record) {
            return Ok(value);
        }
        let opened = async {
            let _permit = self.calls.acquire().await.map_err(|e| e.to_string())?;
            // Others may have asked for the same meanwhile.
            if let Some(value) = self.known(record) {
                return Ok(value);
            }
            let sealed = BASE64.decode(&record.sealed).map_err(|e| e.to_string())?;
            let request = OpenRequest { binding: record.binding(), sealed };
            let opened = self.client.clone().open(request).await.map_err(|e| e.message().to_owned())?;
            let value = Zeroizing::new(opened.into_inner().value);
            self.keep(record, &value);
            Ok(value)
        };
        timeout(limit::KEYS_CALL, opened)
            .await
            .unwrap_or_else(|_| Err("the keys role does not answer in time".to_owned()))
    }

    fn known(&self, record: &ProviderKeyRecord) -> Option<Zeroizing<Vec<u8>>> {
        let mut opened = self.opened.lock();
        opened.retain(|_, known| known.at.elapsed() < limit::VAULT_CACHE);
        let known = opened.get(&(record.id.clone(), record.version))?;
        let is_same = known.record.sealed == record.sealed && known.record.binding() == record.binding();
        is_same.then(|| known.value.clone())
    }

    fn keep(&self, record: &ProviderKeyRecord, value: &Zeroizing<Vec<u8>>) {
        let mut opened = self.opened.lock();
        opened.retain(|_, known| known.at.elapsed() < limit::VAULT_CACHE);
        if opened.len() < limit::VAULT_CACHE_MAX {
            let known = Opened { record: record.clone(), value: value.clone(), at: Instant::now() };
            opened.insert((record.id.clone(), record.version), known);
        }
    }
}
