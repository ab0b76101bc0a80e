//! gRPC over a Unix socket, the same way in each role: peer check, bounds, and an end that doesn't wait
//! for a peer that stays.

use std::convert::Infallible;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clawgress_api::config::Config;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::transport::Server;

use crate::peer::{Access, incoming};

/// Permission bits of the sockets: anybody may connect, the peer check decides who is let in.
pub const SOCKET_MODE: u32 = 0o666;

/// Calls at once on one connection; a client of this node has a handful.
const STREAMS_MAX: u32 = 64;
/// How long connections may take to end after `stop`.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// Makes the directory of the sockets: everybody may pass through, only its owner may list or change it.
///
/// # Errors
/// If it can't be made.
pub fn open_run_dir(config: &Config) -> Result<()> {
    let path = &config.node.run_dir;
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .with_context(|| format!("cannot create `{}`", path.display()))
}

/// A gRPC service that [`grpc`] can serve.
pub trait Grpc:
    Service<
        http::Request<Body>,
        Response = http::Response<Body>,
        Error = Infallible,
        Future = BoxFuture<http::Response<Body>, Infallible>,
    > + Clone
    + Send
    + 'static
{
}

impl<T> Grpc for T where
    T: Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future = BoxFuture<http::Response<Body>, Infallible>,
        > + Clone
        + Send
        + 'static
{
}

/// Serves `service` to peers that `access` lets in, until `stop`.
///
/// # Errors
/// If the server fails.
pub async fn grpc(
    listener: UnixListener,
    access: Access,
    service: impl Grpc,
    stop: CancellationToken,
) -> Result<()> {
    let connections = incoming(listener, access, stop.clone());
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .concurrency_limit_per_connection(STREAMS_MAX as usize)
        .serve_with_incoming_shutdown(service, connections, stop.clone().cancelled_owned());
    tokio::pin!(server);
    tokio::select! {
        end = &mut server => return end.context("the gRPC server failed"),
        () = stop.cancelled() => {}
    }
    // A peer that keeps its connection open doesn't keep the role alive.
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, server).await;
    Ok(())
}

/// Two services on one socket, told apart by the path; what neither serves goes to the second, which
/// answers `unimplemented`.
#[derive(Clone, Debug)]
pub struct Either<A, B>(pub A, pub B);

impl<A: Grpc + NamedService, B: Grpc> Service<http::Request<Body>> for Either<A, B> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Generated services are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = request.uri().path().split('/').nth(1);
        if service == Some(A::NAME) { self.0.call(request) } else { self.1.call(request) }
    }
}
