//! The keys role: holds the secret under which API keys are hashed, and answers with hashes alone; the
//! key that policy revisions are signed with, for control ([`signer`]); and, where TLS is read, that of the authority
//! which signs certificates for hosts ([`authority`]), for L7 ([`leaves`]); and the secret that providers' keys are sealed with
//! ([`vault`]).
//!
//! It has no network and no state but the secrets. It must never log, return or store a key it is asked
//! about, nor a secret.

mod authority;
mod leaves;
mod secret;
mod secrets;
mod signer;
mod vault;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use aws_lc_rs::hmac;
use clawgress_api::clock::SystemClock;
use clawgress_api::config::Config;
use clawgress_api::proto::keys_server::{Keys, KeysServer};
use clawgress_api::proto::sealer_server::SealerServer;
use clawgress_api::proto::signer_server::SignerServer;
use clawgress_api::proto::vault_server::VaultServer;
use clawgress_api::proto::{Empty, InterceptionAuthority, MacApiKeyRequest, MacApiKeyResponse};
use clawgress_api::socket;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use self::authority::Authority;
use self::secrets::Secrets;
use self::vault::Vault;
use crate::peer::{Access, Socket};
use crate::serve::{Either, SOCKET_MODE, grpc, open_run_dir};
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
    let opening = Arc::clone(&config);
    let opened = tokio::task::spawn_blocking(move || {
        let directory = opening.node.state_dir.join("keys");
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let secrets = Secrets::open(directory, credentials.as_deref())?;
        // First, while it can be seen whether this directory had keys before.
        let signer = signer::Service::open(&secrets)?;
        let key = secrets.secret(secret::API_KEYS)?;
        let authority = opening.intercept.as_ref().map(|intercept| {
            Authority::open(&secrets, &opening.node.name, intercept, Arc::new(SystemClock)).map(Arc::new)
        });
        let vault = Vault::open(&secrets)?;
        anyhow::Ok((hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()), signer, authority.transpose()?, vault))
    });
    let (key, signer, authority, vault) = opened.await??;
    let access = |socket| Access::new(&config, socket);
    let access = (access(Socket::Keys)?, access(Socket::Signer)?, access(Socket::Vault)?);
    open_run_dir(&config)?;
    let open = |path: &Path| {
        socket::bind(path, SOCKET_MODE).with_context(|| format!("cannot listen on `{}`", path.display()))
    };
    // First the one that control asks for at its start: where the other is, both are.
    let signer_socket = open(&config.signer_socket())?;
    let vault_socket = open(&config.vault_socket())?;
    let keys_socket = open(&config.keys_socket())?;
    let leaves = match &authority {
        Some(authority) => {
            let access = Access::new(&config, Socket::Leaves)?;
            Some((open(&config.leaves_socket())?, access, Arc::clone(authority)))
        }
        None => None,
    };
    let keys = Service { key: Arc::new(key), authority };
    let keys = KeysServer::new(keys).max_decoding_message_size(REQUEST_BYTES_MAX);
    let signer = SignerServer::new(signer).max_decoding_message_size(signer::REQUEST_BYTES_MAX);
    let sealer = SealerServer::new(vault.clone()).max_decoding_message_size(vault::REQUEST_BYTES_MAX);
    let vault = VaultServer::new(vault).max_decoding_message_size(vault::REQUEST_BYTES_MAX);
    let leaves_end = stop.clone();
    let leaves = async move {
        match leaves {
            Some((socket, access, authority)) => leaves::serve(socket, access, authority, leaves_end).await,
            None => leaves_end.cancelled().await,
        }
        anyhow::Ok(())
    };
    notify::ready("keys");
    tokio::try_join!(
        grpc(keys_socket, access.0, keys, stop.clone()),
        grpc(signer_socket, access.1, Either(sealer, signer), stop.clone()),
        grpc(vault_socket, access.2, vault, stop.clone()),
        leaves,
    )
    .map(drop)
}

struct Service {
    key: Arc<hmac::Key>,
    authority: Option<Arc<Authority>>,
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

    async fn describe_authority(&self, _: Request<Empty>) -> Result<Response<InterceptionAuthority>, Status> {
        let authority = self.authority.as_ref().ok_or_else(|| {
            Status::not_found("TLS is not read on this node: there is no [intercept] in its configuration")
        })?;
        let (chain, is_own) = authority.describe();
        let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
        Ok(Response::new(InterceptionAuthority { chain, is_own }))
    }
}
