//! The proxy as it runs, with real peers around it: the roles it talks to over Unix sockets, listeners
//! handed over, a DNS server, upstreams. Everything is on loopback.

use std::iter;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use clawgress_api::config::Config;
use clawgress_api::handover::ListenerKind;
use clawgress_api::proto::audit_sink_server::{AuditSink, AuditSinkServer};
use clawgress_api::proto::enforcement_server::{Enforcement, EnforcementServer};
use clawgress_api::proto::keys_server::Keys;
use clawgress_api::proto::snapshots_server::{Snapshots, SnapshotsServer};
use clawgress_api::proto::{
    AuditAck, AuditBatch, CommitRequest, Document, Empty, HistoryRequest, ImposeRequest,
    InterceptionAuthority, MacApiKeyRequest, MacApiKeyResponse, ReleaseRequest, ReserveRequest,
    ReserveResponse, ResolvedRequest, Snapshot as Envelope, WatchRequest, watch_request,
};
use clawgress_api::{AuditRecord, RecordKind, Snapshot};
use clawgress_identity::{ApiKey, ApiKeyRecord};
use clawgress_policy::PolicyBundle;
use clawgress_policy::history::History;
use clawgress_policy::quota::{Answer as Reserved, Ledger, Pace, Scope};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::client::{Answer, Client};
use crate::dns::Dns;
use crate::generation::{bundle, envelope, first};
use crate::leaves::Signing;
use crate::pki::Pair;
use crate::scale;

mod peers;

use self::peers::{hand_over, listen_tls, process, relay, serve_keys};

/// Longest wait for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// What most tests start from.
pub const POLICY: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal == Agent::"web", action == Action::"http", resource)
when { resource.name like "*.allowed.test" && !(context.path like "/denied*") && context.method != "DELETE" };
@id("tls") permit (principal == Agent::"web", action == Action::"tls", resource) when { resource.name like "*.allowed.test" };
@id("tunnel") permit (principal == Agent::"web", action == Action::"tunnel", resource)
when { resource.name like "*.allowed.test" && resource.name != "read.allowed.test" && context.protocol == "tls" };
@id("raw") permit (principal == Agent::"web", action == Action::"tunnel", resource == Host::"raw.allowed.test");
"#;

const ZONE: &[(&str, &[&str])] = &[
    ("api.allowed.test", &["127.1.0.1"]),
    ("read.allowed.test", &["127.1.0.1"]),
    ("raw.allowed.test", &["127.1.0.1"]),
    ("xn--bcher-kva.allowed.test", &["127.1.0.1"]),
    ("two.allowed.test", &["127.1.0.1", "127.1.0.2"]),
    ("denied.test", &["127.1.0.1"]),
    ("loop.allowed.test", &["127.0.0.1"]),
    ("meta.allowed.test", &["169.254.169.254"]),
    ("ten.allowed.test", &["10.0.0.1"]),
    ("mapped.allowed.test", &["::ffff:10.0.0.1"]),
    ("nat64.allowed.test", &["64:ff9b::a00:1"]),
    ("task.allowed.test", &["169.254.170.2"]),
    ("cgnat.allowed.test", &["100.64.0.1"]),
    ("alibaba.allowed.test", &["100.100.100.200"]),
    ("sixtofour.allowed.test", &["2002:a9fe:a9fe::1"]),
    ("teredo.allowed.test", &["2001:0:a9fe:a9fe::1"]),
    ("nitro.allowed.test", &["fd00:ec2::254"]),
    ("mixed.allowed.test", &["10.0.0.1", "169.254.169.254", "127.1.0.1"]),
];

/// Options of a gateway.
#[derive(Clone, Debug)]
pub struct Options {
    pub policy: Option<&'static str>,
    pub stale_s: u64,
    pub connections_max: usize,
    /// Whether control is reached through something that can hang.
    pub relayed: bool,
    /// The proxy's certificate, if it is to listen for TLS too.
    pub tls: Option<Pair>,
    /// More of the table of the explicit proxy.
    pub proxy: &'static str,
    /// More tables of the configuration.
    pub more: String,
    /// What the configuration says of DNS servers, instead of the harness's own.
    pub resolvers: Option<String>,
    /// Whether it runs as a process of its own, so that what it takes can be told from what tests take.
    pub apart: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            policy: Some(POLICY),
            stale_s: 300,
            connections_max: 500,
            relayed: false,
            tls: None,
            proxy: "",
            more: String::new(),
            resolvers: None,
            apart: false,
        }
    }
}

/// A running gateway.
pub struct Gateway {
    pub proxy: SocketAddr,
    /// The proxy over TLS; the proxy itself if there is none.
    pub proxy_tls: SocketAddr,
    pub key: String,
    pub other_key: String,
    pub control: Control,
    keys: Option<Runtime>,
    /// By which TLS is read.
    pub authority: Arc<Signing>,
    stop: Option<oneshot::Sender<()>>,
    run: Option<JoinHandle<anyhow::Result<()>>>,
    /// The process it runs in.
    pub pid: u32,
    datapath: JoinHandle<()>,
    directory: TempDir,
    pub dns: Dns,
}

/// The control role.
#[derive(Clone)]
pub struct Control {
    snapshots: watch::Sender<Envelope>,
    applied: watch::Sender<(u64, String)>,
    /// Number of the quarantine acknowledged last.
    isolated: watch::Sender<u64>,
    /// Streams of snapshots so far.
    streams: watch::Sender<usize>,
    records: Arc<Mutex<Vec<AuditRecord>>>,
    /// Whether batches are acknowledged.
    acknowledge: watch::Sender<bool>,
    /// Whether the next batch is refused.
    pub refuses: Arc<Mutex<bool>>,
    /// Units of limits.
    pub ledger: Arc<Mutex<Ledger>>,
    /// How many of the next answers about units are lost on their way.
    pub lost: Arc<Mutex<u32>>,
    /// What agents did before, and who asked.
    pub history: Arc<Mutex<History>>,
    pub asked: Arc<Mutex<Vec<HistoryRequest>>>,
    /// Quarantines that policy imposed.
    pub imposed: Arc<Mutex<Vec<ImposeRequest>>>,
    began: std::time::Instant,
    /// A runtime of its own, so that all its connections end with it, as a process's do.
    server: Arc<Mutex<Option<Runtime>>>,
    socket: PathBuf,
    /// Whether a relay before it passes bytes on.
    passing: watch::Sender<bool>,
}

struct KeysRole(hmac::Key);

fn mac(key: &hmac::Key, text: &str) -> [u8; 32] {
    hmac::sign(key, text.as_bytes()).as_ref().try_into().expect("32 bytes")
}

#[tonic::async_trait]
impl Keys for KeysRole {
    async fn mac_api_key(
        &self,
        request: Request<MacApiKeyRequest>,
    ) -> Result<Response<MacApiKeyResponse>, Status> {
        let key = String::from_utf8(request.into_inner().key).map_err(|_| Status::invalid_argument("key"))?;
        Ok(Response::new(MacApiKeyResponse { mac: mac(&self.0, &key).to_vec() }))
    }

    async fn describe_authority(&self, _: Request<Empty>) -> Result<Response<InterceptionAuthority>, Status> {
        Err(Status::not_found("no authority"))
    }
}

#[tonic::async_trait]
impl Snapshots for Control {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Envelope, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.streams.send_modify(|n| *n += 1);
        let (mut requests, applied) = (request.into_inner(), self.applied.clone());
        let isolated = self.isolated.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if let Some(watch_request::Kind::Applied(a)) = request.kind {
                    applied.send_replace((a.generation, a.error));
                    isolated.send_replace(a.quarantine);
                }
            }
        });
        let stream = tokio_stream::wrappers::WatchStream::new(self.snapshots.subscribe());
        Ok(Response::new(Box::pin(stream.map(Ok))))
    }
}

#[tonic::async_trait]
impl AuditSink for Control {
    type AppendStream = ReceiverStream<Result<AuditAck, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<AuditBatch>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (sender, receiver) = mpsc::channel(16);
        let (mut batches, control) = (request.into_inner(), self.clone());
        tokio::spawn(async move {
            let mut acknowledge = control.acknowledge.subscribe();
            while let Ok(Some(batch)) = batches.message().await {
                if acknowledge.wait_for(|a| *a).await.is_err() {
                    return;
                }
                if std::mem::take(&mut *control.refuses.lock()) {
                    let _ = sender.send(Err(Status::invalid_argument("what nobody reads"))).await;
                    return;
                }
                let read = |r: &Vec<u8>| serde_json::from_slice::<AuditRecord>(r).expect("record");
                control.records.lock().extend(batch.records.iter().map(read));
                if sender.send(Ok(AuditAck { sequence: batch.sequence })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl Enforcement for Control {
    async fn reserve(&self, request: Request<ReserveRequest>) -> Result<Response<ReserveResponse>, Status> {
        let ReserveRequest { id, scopes, life_ms, spent } = request.into_inner();
        let scope = |s: clawgress_api::proto::QuotaScope| Scope {
            limit: s.limit,
            subject: s.subject.into(),
            pace: Pace { count: s.count, period_s: s.period_s, burst: s.burst },
            want: s.want,
            least: s.least,
        };
        let scopes: Vec<Scope> = scopes.into_iter().map(scope).collect();
        let (life, id) = (Duration::from_millis(life_ms.into()), self::id(&id));
        if !spent.is_empty() {
            self.ledger.lock().spent(self::id(&spent), self.began.elapsed());
        }
        let answer = self.ledger.lock().reserve(id, &scopes, life, self.began.elapsed());
        let is_lost = {
            let mut lost = self.lost.lock();
            let is_lost = *lost > 0;
            *lost = lost.saturating_sub(1);
            is_lost
        };
        if is_lost {
            return Err(Status::unavailable("the answer is lost"));
        }
        Ok(Response::new(match answer.map_err(|e| Status::internal(e.to_string()))? {
            Reserved::Granted(granted) => ReserveResponse { granted, ..Default::default() },
            Reserved::Short { wait, .. } => ReserveResponse {
                wait_ms: u64::try_from(wait.as_millis()).expect("short") + 1,
                ..Default::default()
            },
        }))
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<Empty>, Status> {
        let CommitRequest { id, used } = request.into_inner();
        let settled = self.ledger.lock().commit(self::id(&id), &used, self.began.elapsed());
        settled.map(|()| Response::new(Empty {})).map_err(|e| Status::not_found(e.to_string()))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<Empty>, Status> {
        let settled = self.ledger.lock().release(self::id(&request.into_inner().id), self.began.elapsed());
        settled.map(|()| Response::new(Empty {})).map_err(|e| Status::not_found(e.to_string()))
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Result<Response<Document>, Status> {
        self.asked.lock().push(request.into_inner());
        let json = serde_json::to_vec(&*self.history.lock()).expect("json");
        Ok(Response::new(Document { json }))
    }

    async fn resolved(&self, _: Request<ResolvedRequest>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("the proxy alone resolves nothing for agents"))
    }

    async fn impose(&self, request: Request<ImposeRequest>) -> Result<Response<Empty>, Status> {
        let imposed = request.into_inner();
        self.snapshots.send_modify(|envelope| {
            envelope.document.clear();
            envelope.quarantined.push(imposed.agent);
            envelope.quarantine += 1;
        });
        self.imposed.lock().push(imposed);
        Ok(Response::new(Empty {}))
    }
}

fn id(bytes: &[u8]) -> u128 {
    u128::from_be_bytes(bytes.try_into().expect("16 bytes"))
}

impl Control {
    /// What was recorded so far.
    pub fn records(&self) -> Vec<AuditRecord> {
        self.records.lock().clone()
    }

    /// Units of a bucket that nobody holds.
    pub fn units(&self, scope: &Scope) -> u64 {
        let (mut ledger, now) = (self.ledger.lock(), self.began.elapsed());
        let id = u128::from(u64::MAX) << 64 | now.as_nanos();
        match ledger.reserve(id, std::slice::from_ref(scope), Duration::from_secs(60), now) {
            Ok(Reserved::Granted(units)) => {
                ledger.release(id, now).expect("released");
                units[0]
            }
            other => panic!("{other:?}"),
        }
    }

    fn start(&self) {
        let _ = std::fs::remove_file(&self.socket);
        let (runtime, control) = (process(), self.clone());
        let listener = std::os::unix::net::UnixListener::bind(&self.socket).expect("bind");
        runtime.spawn(async move {
            listener.set_nonblocking(true).expect("nonblocking");
            let listener = UnixListener::from_std(listener).expect("listener");
            tonic::transport::Server::builder()
                .add_service(SnapshotsServer::new(control.clone()))
                .add_service(EnforcementServer::new(control.clone()))
                .add_service(AuditSinkServer::new(control))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .expect("serve");
        });
        *self.server.lock() = Some(runtime);
    }
}

fn key_record(secret: &hmac::Key, text: &str, agent: &str) -> ApiKeyRecord {
    ApiKeyRecord {
        id: ApiKey::parse(text).expect("key").id().to_owned(),
        agent: agent.parse().expect("id"),
        mac: mac(secret, text),
        created_at_s: None,
        not_before_s: None,
        expires_at_s: None,
        revoked_at_s: None,
    }
}

impl Gateway {
    pub async fn start(options: Options) -> Gateway {
        note_panics();
        let directory = tempfile::tempdir().expect("directory");
        let dns = Dns::start(ZONE).await;
        let secret = hmac::Key::new(hmac::HMAC_SHA256, b"the node's secret");
        let (key, other_key) = (ApiKey::compose([1; 6], [2; 32]), ApiKey::compose([3; 6], [4; 32]));
        let record = |text: &str, agent: &str| key_record(&secret, text, agent);
        let first = first(options.policy, vec![record(&key, "web"), record(&other_key, "other")]);
        let control = Control {
            snapshots: watch::channel(envelope(&first)).0,
            applied: watch::channel((0, String::new())).0,
            isolated: watch::channel(0).0,
            streams: watch::channel(0).0,
            records: Arc::default(),
            acknowledge: watch::channel(true).0,
            refuses: Arc::default(),
            ledger: Arc::default(),
            imposed: Arc::default(),
            lost: Arc::default(),
            history: Arc::new(Mutex::new(History::QUIET)),
            asked: Arc::default(),
            began: std::time::Instant::now(),
            server: Arc::default(),
            socket: directory.path().join(if options.relayed { "behind.sock" } else { "control.sock" }),
            passing: watch::channel(true).0,
        };
        control.start();
        if options.relayed {
            relay(directory.path(), &control);
        }
        let (keys, authority) = serve_keys(directory.path(), secret);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let proxy = listener.local_addr().expect("address");
        let (listener_tls, tls) = listen_tls(options.tls.as_ref()).await;
        let proxy_tls = listener_tls.as_ref().map_or(proxy, |(_, l)| l.local_addr().expect("address"));
        let listeners = iter::once((ListenerKind::Proxy, listener)).chain(listener_tls).collect();
        let datapath = hand_over(directory.path(), listeners);
        let text = format!(
            "[node]\nname = \"gw\"\nrun_dir = \"{}\"\n[datapath]\nmode = \"none\"\n[proxy]\nlisten = [\"{proxy}\"]\n{}\n{tls}[l7]\n{}\nsnapshot_stale_s_max = {}\nconnections_max = {}\n{}",
            directory.path().display(),
            options.proxy,
            options.resolvers.unwrap_or_else(|| format!("resolvers = [\"{}\"]", dns.address)),
            options.stale_s,
            options.connections_max,
            options.more
        );
        let config = Config::parse(&text, Path::new("test.toml")).expect("config");
        let (stop, stopped) = oneshot::channel();
        let (run, pid) = if options.apart {
            scale::run(directory.path(), &text, stopped)
        } else {
            let stopped = async {
                let _ = stopped.await;
            };
            (tokio::spawn(clawgress_l7::run(config, stopped)), std::process::id())
        };
        let gateway = Gateway {
            proxy,
            proxy_tls,
            key,
            other_key,
            control,
            keys: Some(keys),
            authority,
            datapath,
            directory,
            stop: Some(stop),
            run: Some(run),
            pid,
            dns,
        };
        assert_eq!(gateway.applied(1).await, "", "the first generation is refused");
        gateway
    }

    /// Waits until the proxy acknowledges a generation; returns its error.
    pub async fn applied(&self, generation: u64) -> String {
        let mut applied = self.control.applied.subscribe();
        let wait = applied.wait_for(|(g, _)| *g == generation);
        tokio::time::timeout(PATIENCE, wait).await.expect("in time").expect("open").1.clone()
    }

    /// Publishes the next generation, changed by `change`; returns the proxy's error.
    pub async fn publish(&self, change: impl FnOnce(&mut Snapshot<PolicyBundle>)) -> String {
        let mut snapshot: Snapshot<PolicyBundle> =
            serde_json::from_slice(&self.control.snapshots.borrow().document).expect("snapshot");
        change(&mut snapshot);
        snapshot.generation += 1;
        self.control.snapshots.send_replace(envelope(&snapshot));
        self.applied(snapshot.generation).await
    }

    /// Quarantines these agents, under the generation that is live; nothing can be published after it.
    pub fn quarantine(&self, agents: &[u32]) {
        self.control.snapshots.send_modify(|envelope| {
            envelope.document.clear();
            envelope.quarantined = agents.to_vec();
            envelope.quarantine += 1;
        });
    }

    /// Quarantines these agents and waits until the proxy acknowledges it.
    pub async fn isolate(&self, agents: &[u32]) {
        self.quarantine(agents);
        let serial = self.control.snapshots.borrow().quarantine;
        let mut isolated = self.control.isolated.subscribe();
        let wait = isolated.wait_for(|q| *q >= serial);
        tokio::time::timeout(PATIENCE, wait).await.expect("in time").expect("open");
    }

    /// Sends the next generation's number without its document until the proxy asks anew, then the whole.
    pub async fn publish_hollow(&self) -> String {
        let (mut streams, mut whole) = (self.control.streams.subscribe(), None);
        let before = *streams.borrow_and_update();
        self.control.snapshots.send_modify(|envelope| {
            let mut snapshot: Snapshot<PolicyBundle> =
                serde_json::from_slice(&envelope.document).expect("snapshot");
            snapshot.generation += 1;
            whole = Some((snapshot.generation, self::envelope(&snapshot)));
            envelope.generation += 1;
            envelope.document.clear();
        });
        let again = streams.wait_for(|n| *n > before);
        tokio::time::timeout(PATIENCE, again).await.expect("in time").expect("open");
        let (generation, whole) = whole.expect("made");
        assert_eq!(self.control.applied.borrow().0, generation - 1, "it is not acknowledged");
        self.control.snapshots.send_replace(whole);
        self.applied(generation).await
    }

    pub async fn publish_policy(&self, text: &str) -> String {
        self.publish(|s| s.policy = Some(bundle(text))).await
    }

    /// Ends the control role: its sockets close, as they do when its process dies.
    pub fn kill_control(&self) {
        if let Some(server) = self.control.server.lock().take() {
            server.shutdown_background();
        }
    }

    /// Has the control role hang, as a stopped process does: connections stay open and are even accepted,
    /// and nothing answers. Only if it is relayed.
    pub fn hang_control(&self) {
        self.control.passing.send_replace(false);
    }

    pub fn start_control(&self) {
        self.control.start();
    }

    pub fn acknowledge(&self, yes: bool) {
        self.control.acknowledge.send_replace(yes);
    }

    pub fn kill_keys(&mut self) {
        if let Some(keys) = self.keys.take() {
            keys.shutdown_background();
        }
        let _ = std::fs::remove_file(self.directory.path().join("keys.sock"));
        let _ = std::fs::remove_file(self.directory.path().join("leaves.sock"));
    }

    /// Stops as SIGTERM does and waits for the end.
    pub async fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(run) = self.run.take() {
            tokio::time::timeout(Duration::from_secs(40), run)
                .await
                .expect("stops")
                .expect("task")
                .expect("run");
        }
    }

    /// Tells it to stop and does not wait.
    pub fn begin_stop(&mut self) {
        let _ = self.stop.take().expect("running").send(());
    }

    pub fn authorization(&self, user: &str, key: &str) -> String {
        format!("Proxy-Authorization: {}\r\n", clawgress_inspect::proxy_authorization::encode(user, key))
    }

    /// The header of the agent `web`.
    pub fn web(&self) -> String {
        self.authorization("web", &self.key)
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.proxy).await
    }

    /// Sends CONNECT as `web`; returns the connection and the answer.
    pub async fn connect(&self, target: &str) -> (Client, Answer) {
        let mut client = self.client().await;
        client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{}\r\n", self.web())).await;
        let answer = client.answer_head().await;
        (client, answer)
    }

    /// Sends `raw`, where `AUTH` stands for the credential of `web`, and returns the first answer.
    pub async fn ask(&self, raw: &str) -> Answer {
        let mut client = self.client().await;
        client.send(raw.replace("AUTH\r\n", &self.web())).await;
        client.answer().await
    }

    /// All records, once `n` outcomes are there.
    pub async fn records(&self, n: usize) -> Vec<AuditRecord> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let records = self.control.records.lock().clone();
            if records.iter().filter(|r| r.kind == RecordKind::Outcome).count() >= n {
                return records;
            }
            assert!(tokio::time::Instant::now() < deadline, "no {n} outcomes in {records:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Decision and outcome of the exchange number `n`, from 0, by the order of decisions: an outcome comes whenever its exchange
    /// has ended, which may be after the next one was refused.
    pub async fn exchange(&self, n: usize) -> (AuditRecord, AuditRecord) {
        self.decisions(n + 1).await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let records = self.control.records();
            let decisions = || records.iter().filter(|r| r.kind == RecordKind::Decision);
            let decision = decisions().nth(n).expect("they stay");
            assert_eq!(decisions().filter(|r| r.request == decision.request).count(), 1, "one decision each");
            let of_it = |r: &&AuditRecord| r.kind == RecordKind::Outcome && r.request == decision.request;
            if let Some(outcome) = records.iter().find(of_it) {
                return (decision.clone(), outcome.clone());
            }
            assert!(tokio::time::Instant::now() < deadline, "no outcome of {decision:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Decision and outcome of the exchange that was the `n`th to end, from 0.
    pub async fn ended(&self, n: usize) -> (AuditRecord, AuditRecord) {
        let records = self.records(n + 1).await;
        let outcome = records.iter().filter(|r| r.kind == RecordKind::Outcome).nth(n).expect("outcome");
        let of_it = |r: &&AuditRecord| r.kind == RecordKind::Decision && r.request == outcome.request;
        let decisions: Vec<_> = records.iter().filter(of_it).collect();
        assert_eq!(decisions.len(), 1, "one decision each");
        (decisions[0].clone(), outcome.clone())
    }
}

/// Where the proxy panicked, in whichever test: its tasks run in this process, and one that panics is missed by nobody.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Has panics noted, but for those of tests and of the peers that they bring.
fn note_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if let Some(place) = panic.location().filter(|place| !place.file().contains("tests/")) {
                PANICS.lock().push(place.to_string());
            }
            before(panic);
        }));
    });
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let panics = PANICS.lock().clone();
        assert!(std::thread::panicking() || panics.is_empty(), "the proxy panicked: {panics:?}");
        if let Some(run) = &self.run {
            run.abort();
        }
        self.kill_control();
        self.kill_keys();
        self.datapath.abort();
    }
}
