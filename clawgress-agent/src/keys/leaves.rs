//! Signs certificates for hosts that are read, for L7, which has their private keys.

use std::sync::Arc;

use clawgress_api::leaves;
use clawgress_api::proto::{MintRequest, MintResponse};
use tokio::net::UnixListener;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::authority::Authority;
use crate::peer::{Access, incoming};

/// Answers peers that `access` lets in, until `stop`.
pub async fn serve(
    listener: UnixListener,
    access: Access,
    authority: Arc<Authority>,
    stop: CancellationToken,
) {
    // As many at once as are let in.
    let mut connections = incoming(listener, access, stop.clone());
    while let Some(Ok(connection)) = connections.next().await {
        let (authority, stop) = (Arc::clone(&authority), stop.clone());
        tokio::spawn(async move {
            let answer = |request| answer(&authority, request);
            tokio::select! {
                biased;
                served = leaves::serve(connection, answer) => if let Err(error) = served {
                    tracing::warn!(%error, "ended a connection of who asks for certificates");
                },
                () = stop.cancelled() => {}
            }
        });
    }
}

fn answer(authority: &Authority, request: MintRequest) -> MintResponse {
    let MintRequest { host, public_key } = request;
    match authority.mint(&host, &public_key) {
        Ok(leaf) => {
            // The one trace of it outside L7.
            tracing::info!(host, until = leaf.not_after_s, "signed a certificate for a host that is read");
            let chain = leaf.chain.iter().map(|certificate| certificate.to_vec()).collect();
            MintResponse { chain, not_after_s: leaf.not_after_s, refused: String::new() }
        }
        Err(error) => MintResponse { refused: error.to_string(), ..MintResponse::default() },
    }
}
