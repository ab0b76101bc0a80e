//! A node in a directory of its own: the real keys and control roles over real sockets.

#![allow(dead_code, clippy::allow_attributes, reason = "each test takes what it needs of it")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clawgress_agent::control::store::RedbStore;
use clawgress_agent::{control, keys};
use clawgress_api::config::Config;
use clawgress_api::proto::admin_client::AdminClient;
use clawgress_api::proto::audit_sink_client::AuditSinkClient;
use clawgress_api::proto::snapshots_client::SnapshotsClient;
use clawgress_api::proto::{
    Applied, Document, Empty, Hello, Prepared, Snapshot, WatchRequest, watch_request::Kind,
};
use clawgress_api::{MESSAGE_BYTES_MAX, Status, socket};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

/// Longest wait for anything that happens by itself.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Node {
    pub dir: TempDir,
    pub config: Arc<Config>,
    keys: Option<Role>,
    control: Option<Role>,
}

pub struct Role {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Role {
    pub fn start<F>(role: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(role(stop.clone()));
        Role { stop, task }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        let end = tokio::time::timeout(PATIENCE, self.task).await.expect("the role ends in time");
        end.expect("no panic").expect("no failure");
    }
}

impl Node {
    /// A node without a kernel plane, not started.
    pub fn new() -> Self {
        Node::with("[datapath]\nmode = \"none\"\n", |_| String::new())
    }

    /// A node without a kernel plane, with more tables in its configuration, not started. They may name
    /// files in its directory.
    pub fn configured(more: impl FnOnce(&Path) -> String) -> Self {
        Node::with("[datapath]\nmode = \"none\"\n", more)
    }

    /// A node with a kernel plane on `lo`, not started.
    pub fn kernel() -> Self {
        Node::kernel_configured(String::new())
    }

    /// As [`Node::kernel`], with more configuration.
    pub fn kernel_configured(more: String) -> Self {
        let datapath = "[datapath]\nmode = \"kernel\"\n[[interface]]\nname = \"lo\"\nrole = \"agents\"\n";
        Node::with(datapath, |_| more)
    }

    fn with(datapath: &str, more: impl FnOnce(&Path) -> String) -> Self {
        let dir = tempfile::Builder::new().prefix("claw").tempdir().expect("directory");
        let path = dir.path().display();
        let more = more(dir.path());
        let text = format!(
            "[node]\nname = \"test\"\nstate_dir = \"{path}/state\"\nrun_dir = \"{path}/run\"\n{datapath}[proxy]\nlisten = [\"127.0.0.1:3128\"]\n[l7]\n{more}"
        );
        std::fs::write(dir.path().join("clawgress.toml"), &text).expect("write");
        let config = Arc::new(Config::parse(&text, Path::new("test.toml")).expect("configuration"));
        Node { dir, config, keys: None, control: None }
    }

    pub fn config_file(&self) -> std::path::PathBuf {
        self.dir.path().join("clawgress.toml")
    }

    /// Starts both roles and waits until they answer.
    pub async fn start(mut self) -> Self {
        self.start_keys().await;
        self.start_control().await;
        self
    }

    pub async fn start_keys(&mut self) {
        let config = Arc::clone(&self.config);
        self.keys = Some(Role::start(|stop| keys::run(config, stop)));
        until_there(&self.config.keys_socket()).await;
    }

    pub async fn start_control(&mut self) {
        let config = Arc::clone(&self.config);
        self.control = Some(Role::start(|stop| control::run(config, stop)));
        until_there(&self.config.admin_socket()).await;
    }

    pub async fn stop_control(&mut self) {
        self.control.take().expect("running").stop().await;
        // Its tasks, which would end with its process, may hold the store for a moment longer.
        let store = self.config.node.state_dir.join("control").join("state.redb");
        until("the store to be closed", async || RedbStore::open(&store).is_ok()).await;
        // Nor does anybody take the former listener for the next one's.
        let socket = self.config.admin_socket();
        until("the socket to be closed", async || tokio::net::UnixStream::connect(&socket).await.is_err())
            .await;
    }

    pub async fn stop_keys(&mut self) {
        self.keys.take().expect("running").stop().await;
    }

    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(socket::channel(&self.config.admin_socket()).expect("channel"))
    }

    pub fn audit(&self) -> AuditSinkClient<Channel> {
        AuditSinkClient::new(socket::channel(&self.config.control_socket()).expect("channel"))
    }

    /// A worker that acknowledges what it gets.
    pub async fn worker(&self, name: &str) -> Worker {
        let Silent { requests, mut snapshots } = self.silent_worker(name).await;
        let (sender, received) = mpsc::channel(256);
        tokio::spawn(async move {
            while let Ok(Some(snapshot)) = snapshots.message().await {
                let (generation, quarantine) = (snapshot.generation, snapshot.quarantine);
                let applied = Applied { generation, error: String::new(), quarantine };
                let applied = WatchRequest { kind: Some(Kind::Applied(applied)) };
                if sender.send(snapshot).await.is_err() || requests.send(applied).await.is_err() {
                    return;
                }
            }
        });
        Worker { received }
    }

    /// A worker that can prepare and acknowledges what it gets; of what it is to prepare it says what `answer` says, if that
    /// says anything: nothing for that it holds it, or why it can't.
    pub async fn preparing_worker(
        &self,
        name: &str,
        answer: impl Fn(&Snapshot) -> Option<String> + Send + 'static,
    ) -> Worker {
        let Silent { requests, mut snapshots } = self.connect(name, true).await;
        let (sender, received) = mpsc::channel(256);
        tokio::spawn(async move {
            while let Ok(Some(snapshot)) = snapshots.message().await {
                let Snapshot { generation, quarantine, prepare: number, .. } = snapshot;
                let kind = match number {
                    0 => Some(Kind::Applied(Applied { generation, error: String::new(), quarantine })),
                    _ => answer(&snapshot).map(|error| Kind::Prepared(Prepared { number, error })),
                };
                // First for the test, so that it knows of what has an effect.
                if sender.send(snapshot).await.is_err() {
                    return;
                }
                if let Some(kind) = kind
                    && requests.send(WatchRequest { kind: Some(kind) }).await.is_err()
                {
                    return;
                }
            }
        });
        Worker { received }
    }

    /// A worker that runs what is live, and can't take anything else: once control knows that.
    pub async fn refusing_worker(&self) -> Worker {
        let worker = self.preparing_worker("refusing", |_| Some("it is asked".into())).await;
        let runs = async || {
            let status = self.admin().status(Empty {}).await.expect("status").into_inner();
            let status: Status = parse(&status.json);
            status.l7.iter().any(|w| w.instance == "refusing" && w.generation == status.generation)
        };
        until("its word", runs).await;
        worker
    }

    /// A worker that says nothing but its name.
    pub async fn silent_worker(&self, name: &str) -> Silent {
        self.connect(name, false).await
    }

    async fn connect(&self, name: &str, prepares: bool) -> Silent {
        let channel = socket::channel(&self.config.control_socket()).expect("channel");
        let mut client = SnapshotsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (requests, receiver) = mpsc::channel(4);
        let hello = Hello { instance: name.into(), pid: 1, version: "test".into(), prepares };
        requests.send(WatchRequest { kind: Some(Kind::Hello(hello)) }).await.expect("hello");
        let snapshots = client.watch(ReceiverStream::new(receiver)).await.expect("watch").into_inner();
        Silent { requests, snapshots }
    }
}

/// An acknowledgement.
pub fn applied(generation: u64, error: &str) -> WatchRequest {
    WatchRequest { kind: Some(Kind::Applied(Applied { generation, error: error.into(), quarantine: 0 })) }
}

/// An L7 worker, as far as control sees one.
pub struct Worker {
    pub received: mpsc::Receiver<Snapshot>,
}

impl Worker {
    pub async fn next(&mut self) -> Snapshot {
        let next = tokio::time::timeout(PATIENCE, self.received.recv()).await.expect("in time");
        next.expect("the stream goes on")
    }
}

/// An L7 worker that speaks when it is told to.
pub struct Silent {
    pub requests: mpsc::Sender<WatchRequest>,
    pub snapshots: Streaming<Snapshot>,
}

impl Silent {
    pub async fn next(&mut self) -> Snapshot {
        let next = tokio::time::timeout(PATIENCE, self.snapshots.message()).await.expect("in time");
        next.expect("snapshot").expect("the stream goes on")
    }
}

/// Waits until somebody listens at `path`.
pub async fn until_there(path: &Path) {
    until(&format!("a listener at {}", path.display()), async || {
        tokio::net::UnixStream::connect(path).await.is_ok()
    })
    .await;
}

/// Waits until `done` says so.
pub async fn until(what: &str, done: impl AsyncFn() -> bool) {
    for _ in 0..PATIENCE.as_millis() / 20 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited in vain for {what}");
}

pub fn document(value: &impl Serialize) -> Document {
    Document { json: serde_json::to_vec(value).expect("json") }
}

pub fn parse<T: DeserializeOwned>(json: &[u8]) -> T {
    serde_json::from_slice(json).expect("document")
}
