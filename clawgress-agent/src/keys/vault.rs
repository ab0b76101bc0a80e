//! Keys of providers: sealed for control, which stores them, and opened for L7, which sends them on. Each is sealed with what
//! it is bound to, and opens with nothing else.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use clawgress_api::PROVIDER_KEY_BYTES_MAX;
use clawgress_api::proto::sealer_server::Sealer;
use clawgress_api::proto::vault_server::Vault as OfVault;
use clawgress_api::proto::{OpenRequest, Opened, SealRequest, Sealed};
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::secret::{PROVIDER_KEYS, SecretError};
use super::secrets::Secrets;

/// Largest request on the wire: a value, what it is bound to, and their envelope.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024;

/// The service.
#[derive(Clone, Debug)]
pub struct Vault(Arc<RandomizedNonceKey>);

// === impl Vault ===

impl Vault {
    /// With its secret.
    ///
    /// # Errors
    /// If there is none, and none can be made.
    pub fn open(secrets: &Secrets) -> Result<Vault, SecretError> {
        let secret = secrets.secret(PROVIDER_KEYS)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, secret.as_ref());
        Ok(Vault(Arc::new(key.map_err(|_| SecretError::Make("providers' keys"))?)))
    }

    fn sealed(&self, binding: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = Zeroizing::new(Vec::with_capacity(value.len() + AES_256_GCM.tag_len()));
        sealed.extend_from_slice(value);
        let nonce = self.0.seal_in_place_append_tag(Aad::from(binding), &mut *sealed).ok()?;
        Some([&nonce.as_ref()[..], &sealed].concat())
    }

    fn opened(&self, binding: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut value = Zeroizing::new(sealed.to_vec());
        let length = self.0.open_in_place(nonce, Aad::from(binding), &mut value).ok()?.len();
        value.truncate(length);
        Some(value)
    }
}

#[tonic::async_trait]
impl Sealer for Vault {
    async fn seal(&self, request: Request<SealRequest>) -> Result<Response<Sealed>, Status> {
        let SealRequest { binding, value } = request.into_inner();
        let value = Zeroizing::new(value);
        if value.is_empty() || value.len() > PROVIDER_KEY_BYTES_MAX {
            return Err(Status::invalid_argument(format!("a key has 1 to {PROVIDER_KEY_BYTES_MAX} bytes")));
        }
        let sealed = self.sealed(&binding, &value).ok_or_else(|| Status::internal("it can't be sealed"))?;
        Ok(Response::new(Sealed { sealed }))
    }
}

#[tonic::async_trait]
impl OfVault for Vault {
    async fn open(&self, request: Request<OpenRequest>) -> Result<Response<Opened>, Status> {
        let OpenRequest { binding, sealed } = request.into_inner();
        let value = self.opened(&binding, &sealed).ok_or_else(|| {
            Status::failed_precondition("it was sealed by another secret, or for something else")
        })?;
        Ok(Response::new(Opened { value: value.to_vec() }))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn open(directory: &Path) -> Result<Vault, SecretError> {
        Vault::open(&Secrets::open(directory.to_owned(), None)?)
    }

    #[test]
    fn what_is_sealed_opens_with_its_binding_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let vault = open(directory.path()).expect("made");
        let sealed = vault.sealed(b"acme/openai", b"sk-secret").expect("sealed");
        assert!(!sealed.windows(9).any(|w| w == b"sk-secret"));
        let again = open(directory.path()).expect("there");
        assert_eq!(again.opened(b"acme/openai", &sealed).as_deref(), Some(&b"sk-secret".to_vec()));
        assert_eq!(again.opened(b"other/openai", &sealed), None);
        let mut other = sealed.clone();
        if let Some(last) = other.last_mut() {
            *last ^= 1;
        }
        assert_eq!(again.opened(b"acme/openai", &other), None);
        assert_eq!(again.opened(b"acme/openai", &sealed[..5]), None);
        assert_ne!(vault.sealed(b"acme/openai", b"sk-secret"), Some(sealed), "no two are the same");
        let elsewhere = tempfile::tempdir().expect("directory");
        let stranger = open(elsewhere.path()).expect("made");
        assert_eq!(
            stranger.opened(b"acme/openai", &again.sealed(b"acme/openai", b"x").expect("sealed")),
            None
        );
    }
}
