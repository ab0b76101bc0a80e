//! Signs policy revisions for control, with a key of that one purpose. What is signed is made here of a revision's
//! parts: nobody gets a signature of bytes of their own.
//!
//! INVARIANT: a revision that was stored before revisions were signed is signed only until the first one is signed, or
//! control has told that there are none, and only where this directory is one of before, with a secret of API keys: after
//! that, and with a directory that is new, whoever writes one into the store without a signature has none.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use clawgress_api::proto::signer_server::Signer;
use clawgress_api::proto::{Empty, RevisionSignature, RevisionStatement, SignerDescription};
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use super::secret::{self, API_KEYS, REVISIONS};
use super::secrets::Secrets;

/// Says that nothing is adopted any more.
const ADOPTED: &str = "revision-adopted-v1";
/// Largest request on the wire: a statement with an author, a message and the names of accepted findings, and its envelope.
pub const REQUEST_BYTES_MAX: usize = 8192;

/// The service.
#[derive(Clone)]
pub struct Service(Arc<State>);

struct State {
    directory: PathBuf,
    key: Ed25519KeyPair,
    /// Whether revisions of before are still adopted; locked while one is signed.
    adopts: Mutex<bool>,
}

// === impl Service ===

impl Service {
    /// Opens the key, creating it at first start. To be called before the secret of API keys is created:
    /// one that is there already tells an upgrade from a directory that is new.
    ///
    /// # Errors
    /// If it can't be read, created, or trusted.
    pub fn open(secrets: &Secrets) -> Result<Self> {
        let directory = secrets.directory().to_owned();
        if !secrets.has(REVISIONS)? && !secrets.has(API_KEYS)? {
            // Durable before there is the key: whatever ends this start, the next one adopts nothing either.
            secret::create(&directory, ADOPTED, b"")?;
        }
        let seed = secrets.secret(REVISIONS)?;
        let key =
            Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).context("the signing key can't be used")?;
        let adopts = Mutex::new(!ended(&directory)?);
        Ok(Service(Arc::new(State { directory, key, adopts })))
    }

    async fn signed(&self, statement: RevisionStatement, adopt: bool) -> Result<RevisionSignature, Status> {
        let state = Arc::clone(&self.0);
        let signed = tokio::task::spawn_blocking(move || state.sign(&statement, adopt)).await;
        signed.map_err(|e| Status::internal(e.to_string()))?
    }
}

#[tonic::async_trait]
impl Signer for Service {
    async fn sign(&self, request: Request<RevisionStatement>) -> Result<Response<RevisionSignature>, Status> {
        self.signed(request.into_inner(), false).await.map(Response::new)
    }

    async fn adopt(
        &self,
        request: Request<RevisionStatement>,
    ) -> Result<Response<RevisionSignature>, Status> {
        self.signed(request.into_inner(), true).await.map(Response::new)
    }

    async fn end_adoption(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        let state = Arc::clone(&self.0);
        let ended = tokio::task::spawn_blocking(move || state.end(&mut state.adopts.lock())).await;
        ended.map_err(|e| Status::internal(e.to_string()))??;
        Ok(Response::new(Empty {}))
    }

    async fn describe(&self, _: Request<Empty>) -> Result<Response<SignerDescription>, Status> {
        let adopts = *self.0.adopts.lock();
        let public_key = self.0.key.public_key().as_ref().to_vec();
        Ok(Response::new(SignerDescription { public_key, adopts }))
    }
}

// === impl State ===

impl State {
    fn sign(&self, statement: &RevisionStatement, adopt: bool) -> Result<RevisionSignature, Status> {
        let bytes = statement.signed_bytes().map_err(|e| Status::invalid_argument(e.to_string()))?;
        let mut adopts = self.adopts.lock();
        if adopt && !*adopts {
            return Err(Status::failed_precondition(
                "revisions from before signatures were adopted already, and no others are",
            ));
        }
        if !adopt {
            // Durable before there is the first signature of this kind.
            self.end(&mut adopts)?;
        }
        let public_key = self.key.public_key().as_ref().to_vec();
        Ok(RevisionSignature { signature: self.key.sign(&bytes).as_ref().to_vec(), public_key })
    }

    fn end(&self, adopts: &mut bool) -> Result<(), Status> {
        if *adopts {
            let created = secret::create(&self.directory, ADOPTED, b"");
            created.map_err(|e| Status::internal(e.to_string()))?;
            *adopts = false;
        }
        Ok(())
    }
}

/// Whether adoption has ended.
fn ended(directory: &Path) -> Result<bool> {
    let path = directory.join(ADOPTED);
    path.try_exists().with_context(|| format!("cannot look for `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    use tonic::Code;

    use super::*;

    fn secrets(directory: &std::path::Path) -> Secrets {
        Secrets::open(directory.to_owned(), None).expect("secrets")
    }

    fn open(directory: &std::path::Path) -> Result<Service> {
        Service::open(&secrets(directory))
    }

    fn statement(number: u64) -> RevisionStatement {
        RevisionStatement { number, hash: vec![7; 32], ..RevisionStatement::default() }
    }

    /// A directory of before revisions were signed.
    fn of_before() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("directory");
        secrets(dir.path()).secret(API_KEYS).expect("created");
        dir
    }

    async fn code(answer: Result<Response<RevisionSignature>, Status>) -> Code {
        answer.map_or_else(|status| status.code(), |_| Code::Ok)
    }

    #[tokio::test]
    async fn a_signature_holds_for_its_statement_alone() {
        let dir = tempfile::tempdir().expect("directory");
        let service = open(dir.path()).expect("opened");
        let answer = service.sign(Request::new(statement(1))).await.expect("signed").into_inner();
        let again = open(dir.path()).expect("opened again");
        let key = again.describe(Request::new(Empty {})).await.expect("told").into_inner().public_key;
        assert_eq!(key, answer.public_key);
        let verifies = |statement: RevisionStatement| {
            let bytes = statement.signed_bytes().expect("bytes");
            UnparsedPublicKey::new(&ED25519, &key).verify(&bytes, &answer.signature).is_ok()
        };
        assert!(verifies(statement(1)));
        assert!(!verifies(statement(2)));
        let none = RevisionStatement { number: 0, ..statement(1) };
        assert_eq!(code(service.sign(Request::new(none)).await).await, Code::InvalidArgument);
    }

    #[tokio::test]
    async fn adoption_ends_with_the_first_signature_and_when_it_is_told() {
        for tell in [false, true] {
            let dir = of_before();
            let service = open(dir.path()).expect("opened");
            assert_eq!(code(service.adopt(Request::new(statement(1))).await).await, Code::Ok);
            let again = open(dir.path()).expect("opened again");
            assert_eq!(code(again.adopt(Request::new(statement(2))).await).await, Code::Ok, "not yet");
            if tell {
                again.end_adoption(Request::new(Empty {})).await.expect("ended");
            } else {
                again.sign(Request::new(statement(3))).await.expect("signed");
            }
            for service in [again, open(dir.path()).expect("opened")] {
                let refused = code(service.adopt(Request::new(statement(1))).await).await;
                assert_eq!(refused, Code::FailedPrecondition);
                assert_eq!(code(service.sign(Request::new(statement(4))).await).await, Code::Ok);
            }
        }
    }
    #[tokio::test]
    async fn a_new_directory_adopts_nothing() {
        let dir = tempfile::tempdir().expect("directory");
        let keys = dir.path().join("keys");
        for _ in 0..2 {
            let service = open(&keys).expect("opened");
            let refused = code(service.adopt(Request::new(statement(1))).await).await;
            assert_eq!(refused, Code::FailedPrecondition);
            assert!(!service.describe(Request::new(Empty {})).await.expect("told").into_inner().adopts);
            // Of the next start.
            secrets(&keys).secret(API_KEYS).expect("created");
        }
        // One that ended before it had made the key.
        std::fs::remove_file(keys.join(REVISIONS.sealed())).expect("removed");
        let service = open(&keys).expect("opened");
        assert_eq!(code(service.adopt(Request::new(statement(1))).await).await, Code::FailedPrecondition);
    }
}
