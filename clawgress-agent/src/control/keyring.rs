//! API keys, made here and hashed by the keys role. The text of a key leaves by its one answer and is
//! never kept.

use std::sync::Arc;
use std::time::Duration;

use clawgress_api::proto::keys_client::KeysClient;
use clawgress_api::proto::sealer_client::SealerClient;
use clawgress_api::proto::{Empty, InterceptionAuthority, MacApiKeyRequest, SealRequest};
use clawgress_identity::{ApiKey, KEY_MAC_BYTES};
use tonic::Code;
use tonic::transport::Channel;

use super::model::{CANARY, Refusal};
use super::store::{Condition, StateStore, Transaction, Write};

/// Longest wait for the keys role: it computes one hash.
const CALL_TIME_MAX: Duration = Duration::from_secs(5);
/// Hashed and stored once, to find out later that the secret has changed.
const CANARY_TEXT: &[u8] = b"clawgress canary";

/// A key that was just made.
pub(super) struct NewKey {
    /// Its text, for the one answer.
    pub text: String,
    /// Its public id.
    pub id: String,
    /// Its keyed hash.
    pub mac: [u8; KEY_MAC_BYTES],
}

/// The way to the keys role.
#[derive(Debug, Clone)]
pub(super) struct Keyring {
    client: KeysClient<Channel>,
    sealer: SealerClient<Channel>,
    store: Arc<dyn StateStore>,
}

// === impl Keyring ===

impl Keyring {
    pub(super) fn new(channel: Channel, sealer: Channel, store: Arc<dyn StateStore>) -> Self {
        Keyring { client: KeysClient::new(channel), sealer: SealerClient::new(sealer), store }
    }

    /// A provider's key, sealed with what it is bound to.
    pub(super) async fn seal(&self, binding: Vec<u8>, value: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut sealer = self.sealer.clone();
        let away = |why: &str| Refusal::Unavailable(format!("the keys role can't be reached ({why})"));
        let call = sealer.seal(SealRequest { binding, value: value.to_vec() });
        match tokio::time::timeout(CALL_TIME_MAX, call).await {
            Ok(Ok(sealed)) => Ok(sealed.into_inner().sealed),
            Ok(Err(status)) => Err(away(status.message())),
            Err(_) => Err(away("no answer")),
        }
    }

    /// Makes a key.
    pub(super) async fn make(&self) -> Result<NewKey, Refusal> {
        let (mut id, mut secret) = ([0; 6], zeroize::Zeroizing::new([0; 32]));
        let random = getrandom::fill(&mut id).and_then(|()| getrandom::fill(secret.as_mut()));
        random.map_err(|e| Refusal::Unavailable(format!("the kernel gives no random bytes: {e}")))?;
        let text = ApiKey::compose(id, *secret);
        let id = ApiKey::parse(&text).map_err(|e| Refusal::Invalid(e.to_string()))?.id().to_owned();
        let mac = self.mac(text.as_bytes()).await?;
        Ok(NewKey { text, id, mac })
    }

    /// What is wrong with the keys role, if anything: it is away, or has another secret than the one that
    /// the stored keys were hashed with.
    pub(super) async fn trouble(&self) -> Option<String> {
        let mac = match self.mac(CANARY_TEXT).await {
            Ok(mac) => mac,
            Err(refusal) => return Some(format!("{refusal}: no API key can be made or checked")),
        };
        let stored = match self.store.read(CANARY, None).await {
            Ok(read) => read.entries.into_iter().next(),
            Err(error) => return Some(error.to_string()),
        };
        match stored {
            Some(entry) if entry.value == mac => None,
            Some(_) => Some(
                "the keys role has another secret than the one API keys were hashed with, so every key is refused: restore `keys/` in the state directory, or create all agents' keys anew".into(),
            ),
            None => {
                let transaction = Transaction {
                    conditions: vec![Condition::Absent(CANARY.into())],
                    writes: vec![Write::Put(CANARY.into(), mac.to_vec())],
                };
                self.store.commit(transaction).await.err().map(|e| e.to_string())
            }
        }
    }

    /// The authority by which TLS is read.
    pub(super) async fn authority(&self) -> Result<InterceptionAuthority, Refusal> {
        let mut client = self.client.clone();
        let away = |why: &str| Refusal::Unavailable(format!("the keys role can't be reached ({why})"));
        match tokio::time::timeout(CALL_TIME_MAX, client.describe_authority(Empty {})).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) if status.code() == Code::NotFound => {
                Err(Refusal::Missing(status.message().to_owned()))
            }
            Ok(Err(status)) => Err(away(status.message())),
            Err(_) => Err(away("no answer")),
        }
    }

    async fn mac(&self, text: &[u8]) -> Result<[u8; KEY_MAC_BYTES], Refusal> {
        let mut client = self.client.clone();
        let call = client.mac_api_key(MacApiKeyRequest { key: text.to_vec() });
        let away = |why: String| Refusal::Unavailable(format!("the keys role can't be reached ({why})"));
        let answer = tokio::time::timeout(CALL_TIME_MAX, call).await.map_err(|_| away("no answer".into()))?;
        let answer = answer.map_err(|status| away(status.message().to_owned()))?.into_inner();
        answer.mac.try_into().map_err(|_| away("its answer is not a hash".into()))
    }
}
