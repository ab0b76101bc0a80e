//! What arrived outside, and the socket over which the lab asks for it: one JSON request a line, one
//! JSON answer a line.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

/// Requests remembered; the oldest go first.
const REQUESTS_MAX: usize = 4_096;
/// Longest request line on the control socket, bytes.
const LINE_BYTES_MAX: u64 = 4_096;
/// A held stream goes on by itself after this, so that a failed test leaves nothing hanging.
const HOLD_MAX: Duration = Duration::from_secs(15);

/// What the lab asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// What arrived so far.
    Stats,
    /// Lets the stream held under this name go on.
    Release(String),
}

/// What arrived.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// TCP connections the sink accepted.
    pub sink_connections: u64,
    /// Bytes the sink received by TCP and UDP.
    pub sink_bytes: u64,
    /// UDP datagrams the sink received.
    pub sink_datagrams: u64,
    /// DNS queries answered.
    pub dns_queries: u64,
    /// Queries that were taken to the servers of delegated zones.
    pub delegated_queries: u64,
    /// HTTP requests, the oldest first.
    pub requests: Vec<Seen>,
}

/// An HTTP request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Over TLS.
    pub tls: bool,
    /// `Host`.
    pub host: String,
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Who sent it: the gateway's uplink.
    pub peer: String,
}

/// Shared by the servers.
#[derive(Debug, Default)]
pub struct State {
    /// The world's directory.
    pub(super) dir: PathBuf,
    pub(super) sink_connections: AtomicU64,
    pub(super) sink_bytes: AtomicU64,
    pub(super) sink_datagrams: AtomicU64,
    pub(super) dns_queries: AtomicU64,
    pub(super) delegated_queries: AtomicU64,
    requests: Mutex<VecDeque<Seen>>,
    holds: Mutex<HashMap<String, Arc<Notify>>>,
}

impl State {
    /// Of a world in `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        State { dir: dir.to_owned(), ..State::default() }
    }

    pub(super) fn count(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn saw(&self, request: Seen) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() == REQUESTS_MAX {
            requests.pop_front();
        }
        requests.push_back(request);
    }

    /// Waits until the lab releases `name`.
    pub(super) async fn hold(&self, name: &str) {
        let gate = self.gate(name);
        let _ = tokio::time::timeout(HOLD_MAX, gate.notified()).await;
    }

    fn gate(&self, name: &str) -> Arc<Notify> {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(holds.entry(name.to_owned()).or_default())
    }

    fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            sink_connections: read(&self.sink_connections),
            sink_bytes: read(&self.sink_bytes),
            sink_datagrams: read(&self.sink_datagrams),
            dns_queries: read(&self.dns_queries),
            delegated_queries: read(&self.delegated_queries),
            requests: self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect(),
        }
    }
}

/// Answers at `path` until the process ends.
pub(super) async fn serve(path: &Path, state: Arc<State>) -> anyhow::Result<()> {
    let listener = UnixListener::bind(path).with_context(|| format!("cannot bind `{}`", path.display()))?;
    loop {
        let (stream, _) = listener.accept().await.context("the control socket failed")?;
        tokio::spawn(answer(stream, Arc::clone(&state)));
    }
}

async fn answer(stream: UnixStream, state: Arc<State>) -> anyhow::Result<()> {
    use tokio::io::AsyncReadExt as _;
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    tokio::io::BufReader::new(read.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line)? {
        Ask::Stats => state.stats(),
        Ask::Release(name) => {
            // One that isn't held yet will find its permit.
            state.gate(&name).notify_one();
            Stats::default()
        }
    };
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    Ok(write.write_all(&bytes).await?)
}

/// The lab's side.
///
/// # Errors
/// If nobody answers in five seconds.
pub fn ask(path: &Path, ask: &Ask) -> anyhow::Result<Stats> {
    let mut stream = std::os::unix::net::UnixStream::connect(path)
        .with_context(|| format!("nobody listens on `{}`", path.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = serde_json::to_vec(ask)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    serde_json::from_str(&answer).context("the world's answer is not what it should be")
}
