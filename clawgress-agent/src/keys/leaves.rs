//! Signs certificates for hosts that are read, for L7, which has their private keys.

use std::sync::Arc;

use clawgress_api::proto::leaves_server::Leaves;
use clawgress_api::proto::{MintRequest, MintResponse};
use tonic::{Request, Response, Status};

use super::authority::{Authority, MintError};

/// Largest request on the wire: a host's name, a point, and their envelope.
pub const REQUEST_BYTES_MAX: usize = 1024;

/// The service.
#[derive(Clone, Debug)]
pub struct Service(pub Arc<Authority>);

#[tonic::async_trait]
impl Leaves for Service {
    async fn mint(&self, request: Request<MintRequest>) -> Result<Response<MintResponse>, Status> {
        let MintRequest { host, public_key } = request.into_inner();
        let leaf = self.0.mint(&host, &public_key).map_err(|error| match error {
            MintError::Host | MintError::Key => Status::invalid_argument(error.to_string()),
            MintError::Excluded | MintError::Constrained | MintError::Ended => {
                Status::failed_precondition(error.to_string())
            }
            MintError::Unsound(_) => Status::internal(error.to_string()),
        })?;
        // The one trace of it outside L7.
        tracing::info!(host, until = leaf.not_after_s, "signed a certificate for a host that is read");
        let chain = leaf.chain.iter().map(|certificate| certificate.to_vec()).collect();
        Ok(Response::new(MintResponse { chain, not_after_s: leaf.not_after_s }))
    }
}
