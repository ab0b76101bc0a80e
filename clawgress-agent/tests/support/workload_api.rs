//! A SPIFFE Workload API on a Unix socket, by the SPIFFE project's protobuf: what it says is a test's to change, and
//! everybody who listens is told at once.

#![allow(dead_code, clippy::allow_attributes, reason = "each test takes what it needs of it")]

use std::collections::HashMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clawgress_api::workload_api::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use clawgress_api::workload_api::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

/// What it says.
#[derive(Clone, Default)]
pub struct Says {
    /// Certificates by the SPIFFE ID of their trust domain: DER, one behind the other.
    pub certificates: HashMap<String, Vec<u8>>,
    /// Key sets.
    pub keys: HashMap<String, Vec<u8>>,
    /// Revocation lists: DER.
    pub lists: Vec<Vec<u8>>,
    /// What who asks for an SVID gets.
    pub svids: Vec<X509svid>,
    /// Tokens by audience.
    pub tokens: HashMap<String, Jwtsvid>,
    /// It answers nothing else.
    pub status: Option<Code>,
    /// It ends each stream after its first message.
    pub flaps: bool,
}

/// It, until it is dropped.
pub struct WorkloadApi {
    pub path: PathBuf,
    says: Arc<watch::Sender<Says>>,
    /// Streams that were asked for.
    opened: Arc<AtomicUsize>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl WorkloadApi {
    /// Begins to serve at a path. Anybody may ask.
    pub fn start(path: &Path, says: Says) -> WorkloadApi {
        WorkloadApi::serve(path, Arc::new(watch::Sender::new(says)), Arc::default())
    }

    fn serve(path: &Path, says: Arc<watch::Sender<Says>>, opened: Arc<AtomicUsize>) -> WorkloadApi {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).expect("bind");
        std::fs::set_permissions(path, Permissions::from_mode(0o666)).expect("permissions");
        let stop = CancellationToken::new();
        let service = Service { says: Arc::clone(&says), opened: Arc::clone(&opened), stop: stop.clone() };
        let served = Server::builder().serve_with_incoming_shutdown(
            SpiffeWorkloadApiServer::new(service),
            UnixListenerStream::new(listener),
            stop.clone().cancelled_owned(),
        );
        let task = tokio::spawn(async move { served.await.expect("served") });
        WorkloadApi { path: path.to_owned(), says, opened, stop, task }
    }

    /// Says something else from now on.
    pub fn say(&self, change: impl FnOnce(&mut Says)) {
        self.says.send_modify(change);
    }

    /// Streams that were asked for so far.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }

    /// Goes away; who listens is cut off.
    pub async fn stop(self) -> Away {
        self.stop.cancel();
        self.task.await.expect("ended");
        std::fs::remove_file(&self.path).expect("removed");
        Away { path: self.path, says: self.says, opened: self.opened }
    }
}

/// One that is away.
pub struct Away {
    path: PathBuf,
    says: Arc<watch::Sender<Says>>,
    opened: Arc<AtomicUsize>,
}

impl Away {
    pub fn say(&self, change: impl FnOnce(&mut Says)) {
        self.says.send_modify(change);
    }

    /// Comes back.
    pub fn start(self) -> WorkloadApi {
        WorkloadApi::serve(&self.path, self.says, self.opened)
    }
}

struct Service {
    says: Arc<watch::Sender<Says>>,
    opened: Arc<AtomicUsize>,
    stop: CancellationToken,
}

type Messages<T> = Pin<Box<ReceiverStream<Result<T, Status>>>>;

impl Service {
    /// What it says now, if the request may be answered (SPIFFE Workload Endpoint section 3).
    fn answer<T>(&self, request: &Request<T>) -> Result<Says, Status> {
        let header = request.metadata().get("workload.spiffe.io");
        if header.is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("the request has no `workload.spiffe.io: true`"));
        }
        let says = self.says.borrow().clone();
        says.status.map_or(Ok(says), |code| Err(Status::new(code, "as the test wants it")))
    }

    fn stream<R, T: Send + 'static>(
        &self,
        request: &Request<R>,
        message: impl Fn(&Says) -> T + Send + Sync + 'static,
    ) -> Result<Response<Messages<T>>, Status> {
        self.answer(request)?;
        self.opened.fetch_add(1, Ordering::SeqCst);
        let (sender, receiver) = mpsc::channel(1);
        let (mut says, stop) = (self.says.subscribe(), self.stop.clone());
        tokio::spawn(async move {
            loop {
                let now = says.borrow_and_update().clone();
                let answer =
                    now.status.map_or_else(|| Ok(message(&now)), |code| Err(Status::new(code, "now")));
                let is_last = answer.is_err() || now.flaps;
                if sender.send(answer).await.is_err() || is_last {
                    return;
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sender.closed() => return,
                    changed = says.changed() => if changed.is_err() { return },
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Messages<X509svidResponse>;
    type FetchX509BundlesStream = Messages<X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;
    type FetchWITSVIDStream = Messages<WitsvidResponse>;
    type FetchWITBundlesStream = Messages<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.stream(&request, |says| X509svidResponse {
            svids: says.svids.clone(),
            crl: says.lists.clone(),
            federated_bundles: HashMap::new(),
        })
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.stream(&request, |says| X509BundlesResponse {
            crl: says.lists.clone(),
            bundles: says.certificates.clone(),
        })
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let says = self.answer(&request)?;
        let JwtsvidRequest { audience, .. } = request.into_inner();
        let svids = audience.iter().filter_map(|audience| says.tokens.get(audience)).cloned().collect();
        Ok(Response::new(JwtsvidResponse { svids }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.stream(&request, |says| JwtBundlesResponse { bundles: says.keys.clone() })
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }

    async fn fetch_witsvid(
        &self,
        _: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(Status::unimplemented("the WIT-SVID profile is optional"))
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(Status::unimplemented("the WIT-SVID profile is optional"))
    }
}
