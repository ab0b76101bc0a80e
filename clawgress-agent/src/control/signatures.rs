//! Signatures of policy revisions: asked of the keys role when one is made, checked here when one is read from the store.
//!
//! INVARIANT: a revision of the store counts only if the keys role's key, which the store does not hold, signed its
//! parts, and its bundle is what its hash says.

use std::time::Duration;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use clawgress_api::proto::signer_client::SignerClient;
use clawgress_api::proto::{Empty, RevisionSignature, RevisionStatement, SignerDescription};
use clawgress_api::{PolicyRevision, PolicySigner, Signature, Standing, from_hex, hex};
use clawgress_policy::PolicyBundle;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::model::{Refusal, Stored};

/// Longest wait for the keys role: it computes one signature.
const CALL_TIME_MAX: Duration = Duration::from_secs(5);
/// How long this role's start waits for the keys role, where there is a revision to be checked.
const START_TIME_MAX: Duration = Duration::from_secs(30);
/// Pause before it is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// The way to who signs, and its public key once it is known: it stays the same while this role lives.
#[derive(Debug)]
pub struct Signatures {
    client: SignerClient<Channel>,
    key: OnceCell<Vec<u8>>,
}

// === impl Signatures ===

impl Signatures {
    /// A way over `channel`.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Signatures { client: SignerClient::new(channel), key: OnceCell::new() }
    }

    /// Who signs.
    ///
    /// # Errors
    /// If the keys role is away, and was since this role began.
    pub async fn signer(&self) -> Result<PolicySigner, Refusal> {
        Ok(PolicySigner { algorithm: "ed25519".to_owned(), public_key: hex(self.key().await?) })
    }

    /// Signs a revision that is about to be stored.
    ///
    /// # Errors
    /// If the keys role is away, or has another key than before.
    pub async fn sign<P>(&self, revision: &PolicyRevision<P>) -> Result<Signature, Refusal> {
        let statement = revision.statement().map_err(|e| Refusal::Invalid(e.to_string()))?;
        let mut client = self.client.clone();
        let answer = answered(client.sign(statement.clone())).await?;
        self.checked(&statement, answer).await
    }

    /// Signs a stored revision that nobody signed, of the time before signatures. `None` if none is adopted any more.
    ///
    /// # Errors
    /// As [`sign`](Self::sign).
    pub async fn adopt(&self, stored: &Stored) -> Result<Option<Signature>, Refusal> {
        if !self.describe().await?.adopts || !stored.is_whole() {
            return Ok(None);
        }
        let Ok(statement) = stored.revision.statement() else { return Ok(None) };
        let mut client = self.client.clone();
        let answer = answered(client.adopt(statement.clone())).await?;
        self.checked(&statement, answer).await.map(Some)
    }

    /// Has no revision adopted any more; waits for the keys role as long as it takes.
    pub async fn end_adoption(&self, stop: CancellationToken) {
        loop {
            let mut client = self.client.clone();
            let told = tokio::select! {
                () = stop.cancelled() => return,
                told = answered(client.end_adoption(Empty {})) => told,
            };
            match told {
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(%error, "it can't be told yet that no revision is to be adopted")
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(CALL_TIME_MAX) => {}
            }
        }
    }

    /// How a stored revision stands; [`Standing::Unknown`] as long as nobody could be asked for the key.
    #[must_use]
    pub fn standing(&self, stored: &Stored) -> Standing {
        self.key.get().map_or(Standing::Unknown, |key| standing(stored, key))
    }

    /// Waits for the keys role to be there, within a bound.
    ///
    /// # Errors
    /// If it is not.
    pub async fn ready(&self) -> Result<(), Refusal> {
        let deadline = tokio::time::Instant::now() + START_TIME_MAX;
        loop {
            match self.key().await {
                Ok(_) => return Ok(()),
                Err(refusal) if tokio::time::Instant::now() > deadline => return Err(refusal),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn key(&self) -> Result<&[u8], Refusal> {
        let key =
            self.key.get_or_try_init(async || Ok::<_, Refusal>(self.describe().await?.public_key)).await;
        key.map(Vec::as_slice)
    }

    async fn describe(&self) -> Result<SignerDescription, Refusal> {
        let mut client = self.client.clone();
        answered(client.describe(Empty {})).await
    }

    /// The signature, if it is one by the known key.
    async fn checked(
        &self,
        statement: &RevisionStatement,
        answer: RevisionSignature,
    ) -> Result<Signature, Refusal> {
        let key = self.key().await?;
        let bytes = statement.signed_bytes().map_err(|e| Refusal::Invalid(e.to_string()))?;
        if answer.public_key != key
            || UnparsedPublicKey::new(&ED25519, key).verify(&bytes, &answer.signature).is_err()
        {
            return Err(Refusal::Unavailable(
                "the keys role signs with another key than when this role began: restore `keys/` in the state directory, or restart the control role".into(),
            ));
        }
        Ok(Signature { key: hex(key), value: hex(&answer.signature) })
    }
}

/// How it stands by `key`.
fn standing(stored: &Stored, key: &[u8]) -> Standing {
    if stored.is_torn() {
        return Standing::Altered;
    }
    let Some(signature) = &stored.revision.signature else { return Standing::Unsigned };
    if signature.key != hex(key) {
        return Standing::OtherKey;
    }
    let bytes = stored.revision.statement().and_then(|statement| statement.signed_bytes());
    let (Ok(bytes), Some(value)) = (bytes, from_hex(&signature.value)) else { return Standing::Altered };
    let holds = UnparsedPublicKey::new(&ED25519, key).verify(&bytes, &value).is_ok();
    if holds && stored.is_whole() { Standing::Signed } else { Standing::Altered }
}

/// Why a revision that stands so is not in force, and what to do.
#[must_use]
pub fn distrust(revision: &PolicyRevision<PolicyBundle>, standing: Standing) -> Option<String> {
    let anew = "or look its text over (`clawgressctl policy show`) and apply it anew";
    match standing {
        Standing::Signed => None,
        Standing::Unsigned => {
            Some(format!("nobody signed it: restore the state store from a backup, {anew}"))
        }
        Standing::OtherKey => Some(format!(
            "it was signed by the key {}, which is not the keys role's: restore `keys/` in the state directory, {anew}",
            revision.signature.as_ref().map_or("", |signature| &signature.key)
        )),
        Standing::Altered => Some(format!(
            "its signature does not hold, so somebody other than the control role changed it in the state store: restore the store from a backup, {anew}"
        )),
        Standing::Unknown => {
            Some("the keys role, which knows whose signature counts, can't be reached".into())
        }
    }
}

async fn answered<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Refusal> {
    let away = |why: &str| {
        Refusal::Unavailable(format!(
            "the keys role, which signs policy revisions, can't be reached ({why}): start `clawgress-agent keys`"
        ))
    };
    match tokio::time::timeout(CALL_TIME_MAX, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) if status.code() == Code::InvalidArgument => {
            Err(Refusal::Invalid(status.message().to_owned()))
        }
        Ok(Err(status)) => Err(away(status.message())),
        Err(_) => Err(away("no answer")),
    }
}
