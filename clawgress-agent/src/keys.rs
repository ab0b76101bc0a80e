//! The keys role: holds the secret under which API keys are hashed, and answers with hashes alone.
//!
//! It has no network and no state but the secret. It must never log, return or store a key it is asked
//! about, nor the secret.

mod secret;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use aws_lc_rs::hmac;
use clawgress_api::config::Config;
use clawgress_api::proto::keys_server::{Keys, KeysServer};
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
/// If the secret can't be read, created or trusted, or the socket can't be served.
pub async fn run(config: Arc<Config>, stop: CancellationToken) -> Result<()> {
    let directory = config.node.state_dir.join("keys");
    let key = tokio::task::spawn_blocking(move || secret::open(&directory)).await??;
    let access = Access::new(&config, Socket::Keys)?;
    open_run_dir(&config)?;
    let path = config.keys_socket();
    let listener =
        socket::bind(&path, SOCKET_MODE).with_context(|| format!("cannot listen on `{}`", path.display()))?;
    let service =
        KeysServer::new(Service { key: Arc::new(key) }).max_decoding_message_size(REQUEST_BYTES_MAX);
    notify::ready("keys");
    grpc(listener, access, service, stop).await
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
