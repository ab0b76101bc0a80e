//! The keys role: holds the secret under which API keys are hashed, and answers with hashes alone; and the
//! key that policy revisions are signed with, for control ([`signer`]).
//!
//! It has no network and no state but the secrets. It must never log, return or store a key it is asked
//! about, nor a secret.

mod secret;
mod signer;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use aws_lc_rs::hmac;
use clawgress_api::config::Config;
use clawgress_api::proto::keys_server::{Keys, KeysServer};
use clawgress_api::proto::signer_server::SignerServer;
use clawgress_api::proto::{MacApiKeyRequest, MacApiKeyResponse};
use clawgress_api::socket;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use crate::peer::{Access, Socket};
use crate::serve::{SOCKET_MODE, grpc, open_run_dir};
use clawgress_api::notify;

/// Longest key that is hashed, bytes: twice a well-formed one's, so that nobody makes this role hash megabytes.
const KEY_BYTES_MAX: usize = 192;
/// Largest request on the wire: a key and its envelope.
const REQUEST_BYTES_MAX: usize = 1024;

/// Runs the role until `stop`.
///
/// # Errors
/// If a secret can't be read, created or trusted, or a socket can't be served.
pub async fn run(config: Arc<Config>, stop: CancellationToken) -> Result<()> {
    // Whatever ends one service ends both.
    let stop = stop.child_token();
    let _end = stop.clone().drop_guard();
    let directory = config.node.state_dir.join("keys");
    let opened = tokio::task::spawn_blocking(move || {
        // First, while it can be seen whether this directory had keys before.
        let signer = signer::Service::open(directory.clone())?;
        let key = secret::open(&directory, secret::API_KEYS)?;
        anyhow::Ok((hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()), signer))
    });
    let (key, signer) = opened.await??;
    let access = (Access::new(&config, Socket::Keys)?, Access::new(&config, Socket::Signer)?);
    open_run_dir(&config)?;
    let open = |path: &Path| {
        socket::bind(path, SOCKET_MODE).with_context(|| format!("cannot listen on `{}`", path.display()))
    };
    // First the one that control asks for at its start: where the other is, both are.
    let signer_socket = open(&config.signer_socket())?;
    let keys_socket = open(&config.keys_socket())?;
    let keys = KeysServer::new(Service { key: Arc::new(key) }).max_decoding_message_size(REQUEST_BYTES_MAX);
    let signer = SignerServer::new(signer).max_decoding_message_size(signer::REQUEST_BYTES_MAX);
    notify::ready("keys");
    tokio::try_join!(
        grpc(keys_socket, access.0, keys, stop.clone()),
        grpc(signer_socket, access.1, signer, stop.clone()),
    )
    .map(drop)
}

struct Service {
    key: Arc<hmac::Key>,
}

#[tonic::async_trait]
impl Keys for Service {
    async fn mac_api_key(
        &self,
        request: Request<MacApiKeyRequest>,
    ) -> Result<Response<MacApiKeyResponse>, Status> {
        let key = Zeroizing::new(request.into_inner().key);
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(Status::invalid_argument(format!("a key has 1 to {KEY_BYTES_MAX} bytes")));
        }
        let mac = hmac::sign(&self.key, &key).as_ref().to_vec();
        Ok(Response::new(MacApiKeyResponse { mac }))
    }
}
