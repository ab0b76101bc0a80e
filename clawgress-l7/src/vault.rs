//! Keys of providers, as they are sent on: opened by the keys role, and remembered here for a moment.
//!
//! Must never log one, nor let one go where its record does not have it go.

use std::cell::Cell;

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
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Code;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::limit;
use crate::shared::{Shared, Turns};
use crate::snapshot::Plan;
use crate::told::Told;

/// The client of the keys role, and what it opened.
#[derive(Debug)]
pub struct Vault {
    client: VaultClient<Channel>,
    /// Of each agent, a share.
    calls: Turns,
    /// Of what agents had opened, each a share.
    opened: Mutex<Shared<(ProviderKeyId, u64), Opened>>,
    kept: Notify,
    told: Told,
}

/// A value; its `Debug` never shows it.
struct Opened {
    /// What it was opened of: a key of the same name and version may be another one, made after the first was deleted.
    record: ProviderKeyRecord,
    /// Or why it is not opened.
    value: Result<Zeroizing<Vec<u8>>, String>,
    until: Instant,
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
        let opened = Mutex::new(Shared::new(limit::VAULT_CACHE_MAX));
        let calls = Turns::new(limit::VAULT_CALLS_MAX);
        Vault { client: VaultClient::new(channel), calls, opened, kept: Notify::new(), told: Told::default() }
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
            if let Some(untold) = self.told.turn(agent.index, Instant::now().into_std()) {
                let (key, agent) = (&injected.key, &agent.id);
                tracing::warn!(%key, %agent, %host, why, untold, "a request can't be sent with its key; it is denied");
            }
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
        let value = self.value(agent.index, record).await.map_err(|why| unavailable(&why))?;
        let parts = [injected.before.as_bytes(), &value, injected.behind.as_bytes()];
        let whole = Zeroizing::new(parts.concat());
        let mut field =
            HeaderValue::from_bytes(&whole).map_err(|_| unavailable("it is no value of a field"))?;
        // Neither shown, nor remembered by a connection's compression.
        field.set_sensitive(true);
        Ok((field, record.version))
    }

    /// An agent that asks for many waits for its own share of questions, and no others for it.
    async fn value(&self, agent: u32, record: &ProviderKeyRecord) -> Result<Zeroizing<Vec<u8>>, String> {
        if let Some(value) = self.known(record) {
            return value;
        }
        let opened = async {
            let _permit = self.calls.take(agent).await.map_err(|e| e.to_string())?;
            // Others may have asked for the same meanwhile.
            if let Some(value) = self.known(record) {
                return value;
            }
            let sealed = BASE64.decode(&record.sealed).map_err(|e| e.to_string())?;
            let request = OpenRequest { binding: record.binding(), sealed };
            let value = match self.client.clone().open(request).await {
                Ok(opened) => Ok(Zeroizing::new(opened.into_inner().value)),
                // Asked again it would say the same.
                Err(status) if status.code() == Code::FailedPrecondition => Err(status.message().to_owned()),
                Err(status) => return Err(status.message().to_owned()),
            };
            let life = if value.is_ok() { limit::VAULT_CACHE } else { limit::KEYS_REFUSED };
            self.keep(agent, record, value.clone(), Instant::now() + life);
            value
        };
        timeout(limit::KEYS_CALL, opened)
            .await
            .unwrap_or_else(|_| Err("the keys role does not answer in time".to_owned()))
    }

    /// Forgets each key at its end for ever, also if nobody asks for one.
    pub async fn forget(&self) {
        loop {
            match self.next_end() {
                Some(end) => sleep_until(end).await,
                None => self.kept.notified().await,
            }
        }
    }

    /// Forgets what has ended, and says when the next ends.
    fn next_end(&self) -> Option<Instant> {
        let (now, next) = (Instant::now(), Cell::new(None::<Instant>));
        self.opened.lock().retain(|known| {
            next.set(Some(next.get().map_or(known.until, |next| next.min(known.until))));
            known.until > now
        });
        next.get()
    }

    fn known(&self, record: &ProviderKeyRecord) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        let mut opened = self.opened.lock();
        let now = Instant::now();
        opened.retain(|known| known.until > now);
        let known = opened.find(&(record.id.clone(), record.version))?;
        let is_same = known.record.sealed == record.sealed && known.record.binding() == record.binding();
        is_same.then(|| known.value.clone())
    }

    fn keep(
        &self,
        agent: u32,
        record: &ProviderKeyRecord,
        value: Result<Zeroizing<Vec<u8>>, String>,
        until: Instant,
    ) {
        let known = Opened { record: record.clone(), value, until };
        self.opened.lock().keep(agent, (record.id.clone(), record.version), known);
        self.kept.notify_one();
    }
}

#[cfg(test)]
mod tests;
