//! A keys role that counts what it is asked, and opens what is not sealed for another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clawgress_api::proto::Opened as Answer;
use clawgress_api::proto::vault_server::{Vault as Service, VaultServer};
use tonic::{Request, Response, Status};

use super::*;

#[derive(Clone, Default)]
struct Keys(Arc<AtomicUsize>);

#[tonic::async_trait]
impl Service for Keys {
    async fn open(&self, request: Request<OpenRequest>) -> Result<Response<Answer>, Status> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let value = request.into_inner().sealed;
        if value == b"other" {
            return Err(Status::failed_precondition("it was sealed by another secret"));
        }
        Ok(Response::new(Answer { value }))
    }
}

fn record(name: &str, value: &[u8]) -> ProviderKeyRecord {
    ProviderKeyRecord {
        id: name.parse().expect("id"),
        version: 1,
        hosts: vec!["api.test".to_owned()],
        clear: false,
        created_at_s: 0,
        rotated_at_s: 0,
        sealed: BASE64.encode(value),
    }
}

fn start() -> (Vault, Keys, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("vault.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("bind");
    let keys = Keys::default();
    let server = tonic::transport::Server::builder().add_service(VaultServer::new(keys.clone()));
    tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener)));
    (Vault::new(clawgress_api::socket::channel(&path).expect("channel")), keys, directory)
}

#[tokio::test]
async fn what_is_not_opened_is_not_asked_again_at_once() {
    let (vault, keys, _directory) = start();
    let (own, other) = (record("acme/own", b"value"), record("acme/other", b"other"));
    for _ in 0..3 {
        assert_eq!(vault.value(1, &own).await.as_deref(), Ok(&b"value".to_vec()));
        assert_eq!(vault.value(1, &other).await, Err("it was sealed by another secret".to_owned()));
    }
    assert_eq!(keys.0.load(Ordering::SeqCst), 2);
    let replaced = record("acme/other", b"mended");
    assert_eq!(vault.value(1, &replaced).await.as_deref(), Ok(&b"mended".to_vec()), "that is another");
}

/// Nobody asks for another, or for this one again.
#[tokio::test]
async fn a_key_is_forgotten_at_its_end_also_where_nothing_happens() {
    let (vault, _keys, _directory) = start();
    let vault = Arc::new(vault);
    let forgetting = Arc::clone(&vault);
    let forgetting = tokio::spawn(async move { forgetting.forget().await });
    for n in 0..2 {
        vault.value(1, &record(&format!("acme/k{n}"), b"value")).await.expect("opened");
        assert_eq!(vault.opened.lock().len(), 1);
        tokio::time::pause();
        tokio::time::advance(limit::VAULT_CACHE - std::time::Duration::from_secs(1)).await;
        assert_eq!(vault.opened.lock().len(), 1);
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        assert_eq!(vault.opened.lock().len(), 0);
        tokio::time::resume();
    }
    forgetting.abort();
}

#[tokio::test]
async fn an_agent_with_many_keys_has_those_of_others_remembered() {
    let (vault, keys, _directory) = start();
    let own = record("acme/own", b"value");
    vault.value(1, &own).await.expect("opened");
    for n in 0..2 * limit::VAULT_CACHE_MAX {
        let of_other = record(&format!("other/k{n}"), b"x");
        vault.value(2, &of_other).await.expect("opened");
    }
    assert!(vault.opened.lock().len() <= 1 + limit::VAULT_CACHE_MAX / 8);
    let (before, late) = (keys.0.load(Ordering::SeqCst), record("third/late", b"late"));
    for _ in 0..2 {
        vault.value(1, &own).await.expect("remembered");
        vault.value(3, &late).await.expect("opened");
    }
    assert_eq!(keys.0.load(Ordering::SeqCst), before + 1, "there is room for others");
}
