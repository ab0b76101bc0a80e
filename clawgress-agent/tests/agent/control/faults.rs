//! A store that fails between a change and its record.

use clawgress_api::proto::snapshots_client::SnapshotsClient;
use clawgress_api::proto::{Hello, watch_request};

use super::*;

/// A store that commits, and may never come back from it.
#[derive(Debug, Default)]
pub struct Fatal {
    pub store: MemoryStore,
    pub is_fatal: AtomicBool,
    /// Whether it takes nothing.
    pub is_full: AtomicBool,
}

#[async_trait::async_trait]
impl StateStore for Fatal {
    async fn read(&self, key: &str, at: Option<u64>) -> Result<Read, StoreError> {
        self.store.read(key, at).await
    }

    async fn scan(&self, prefix: &str, at: Option<u64>) -> Result<Read, StoreError> {
        self.store.scan(prefix, at).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        if self.is_full.load(Ordering::SeqCst) {
            return Err(StoreError::Invalid("no room".into()));
        }
        let revision = self.store.commit(transaction).await;
        if self.is_fatal.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        revision
    }

    async fn watch(
        &self,
        prefix: &str,
        from: u64,
    ) -> Result<BoxStream<'static, Result<Commit, StoreError>>, StoreError> {
        self.store.watch(prefix, from).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_committed_is_recorded_whatever_comes_between() {
    let node = Node::new();
    let store = MemoryStore::default();
    let fatal = Arc::new(Fatal {
        store: store.clone(),
        is_fatal: AtomicBool::new(false),
        is_full: AtomicBool::new(false),
    });
    let keyless = |name: &str| document(&NewAgent { key: false, ..agent(name) });
    // A runtime of its own, so that all of the role ends at once, as it does by SIGKILL.
    let life = tokio::runtime::Runtime::new().expect("runtime");
    let (config, its_store) = (Arc::clone(&node.config), Arc::clone(&fatal));
    life.spawn(control::serve(config, its_store, Arc::new(SystemClock), CancellationToken::new()));
    node::until_there(&node.config.admin_socket()).await;
    node.admin().create_agent(keyless("a")).await.expect("created");
    fatal.is_fatal.store(true, Ordering::SeqCst);
    let mut admin = node.admin();
    let call = tokio::spawn(async move { admin.create_agent(keyless("b")).await });
    let stored = async || store.scan("agent/", None).await.expect("scan").entries.len();
    until("the commit", async || stored().await == 2).await;
    life.shutdown_background();
    call.await.expect("no panic").expect_err("nobody answers");

    for _ in 0..2 {
        let (config, store) = (Arc::clone(&node.config), Arc::new(store.clone()));
        let role = node::Role::start(|stop| control::serve(config, store, Arc::new(SystemClock), stop));
        until("control", async || node.admin().status(Empty {}).await.is_ok()).await;
        assert_eq!(status(&node).await.agents, 2, "the change is live");
        let log = changes(&node).await;
        for name in ["`default/a`", "`default/b`"] {
            let records = log.iter().filter(|d| d.contains(name) || d.contains(name.trim_matches('`')));
            assert_eq!(records.count(), 1, "{name} in {log:?}");
        }
        role.stop().await;
    }
    assert!(store.scan("pending/", None).await.expect("scan").entries.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_fails_is_told_and_made_later() {
    let mut node = Node::new();
    node.start_keys().await;
    let (is_fatal, is_full) = (AtomicBool::new(false), AtomicBool::new(false));
    let store = Arc::new(Fatal { store: MemoryStore::default(), is_fatal, is_full });
    let start = |time: &str| {
        let (config, store) = (Arc::clone(&node.config), Arc::clone(&store));
        let clock = Arc::new(FixedClock(time.parse().expect("time")));
        node::Role::start(|stop| control::serve(config, store, clock, stop))
    };
    let up = async || until("control", async || node.admin().status(Empty {}).await.is_ok()).await;
    let role = start("2026-11-25T09:30:00Z");
    up().await;
    let timed = OPEN.replacen(';', " when { context.hour == 9 };", 1);
    apply(&node, &timed).await;
    role.stop().await;

    // Its hour ends while the role is away, and the store takes nothing.
    store.is_full.store(true, Ordering::SeqCst);
    let role = start("2026-11-25T10:30:00Z");
    up().await;
    let before = status(&node).await;
    let told = "the former generation is still live";
    assert!(before.warnings.iter().any(|w| w.contains(told) && w.contains("no room")), "{before:?}");
    store.is_full.store(false, Ordering::SeqCst);
    until("the turn", async || status(&node).await.generation > before.generation).await;
    until("no warning", async || !status(&node).await.warnings.iter().any(|w| w.contains(told))).await;
    role.stop().await;
}

/// The next start would take those it knows of for all that may decide.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_nobody_would_remember_is_not_taken() {
    let node = Node::new().start().await;
    // Nothing can be written in its place, nor can it be emptied.
    let file = node.config.node.state_dir.join("control").join("workers.json");
    std::fs::create_dir(&file).expect("created");
    let mut client = SnapshotsClient::new(socket::channel(&node.config.control_socket()).expect("channel"));
    let hello = Hello { instance: "w".into(), pid: 1, version: "test".into(), prepares: false };
    let hello = WatchRequest { kind: Some(watch_request::Kind::Hello(hello)) };
    let refused = client.watch(tokio_stream::iter([hello])).await.expect_err("refused");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(status(&node).await.l7.is_empty());
    std::fs::remove_dir(&file).expect("removed");
    let mut worker = node.silent_worker("w").await;
    worker.next().await;
    assert_eq!(status(&node).await.l7.len(), 1);
}
