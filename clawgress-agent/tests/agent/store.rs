//! One suite for every state store, and random histories on which the durable one must equal the one in
//! memory.

use std::sync::Arc;
use std::time::Duration;

use clawgress_agent::control::store::{
    Commit, Condition, HISTORY_REVISIONS_MAX, MemoryStore, OPERATIONS_MAX, RedbStore, StateStore, StoreError,
    Transaction, VALUE_BYTES_MAX, Write,
};
use futures_util::StreamExt as _;
use proptest::prelude::*;
use redb::ReadableTable as _;

fn put(key: &str, value: &str) -> Write {
    Write::Put(key.into(), value.into())
}

fn delete(key: &str) -> Write {
    Write::Delete(key.into())
}

fn writes(writes: Vec<Write>) -> Transaction {
    Transaction { conditions: vec![], writes }
}

async fn text(store: &dyn StateStore, key: &str, at: Option<u64>) -> Option<String> {
    let read = store.read(key, at).await.expect("read");
    read.entries.into_iter().next().map(|e| String::from_utf8(e.value).expect("text"))
}

async fn keys(store: &dyn StateStore, prefix: &str, at: Option<u64>) -> Vec<String> {
    store.scan(prefix, at).await.expect("scan").entries.into_iter().map(|e| e.key).collect()
}

/// Runs a test on both stores.
macro_rules! on_every_store {
    ($($name:ident: $suite:path;)+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $suite(Arc::new(MemoryStore::default())).await;
            let dir = tempfile::tempdir().expect("directory");
            $suite(Arc::new(RedbStore::open(&dir.path().join("state.redb")).expect("open"))).await;
        }
    )+};
}

on_every_store! {
    a_transaction_happens_whole_or_not_at_all: atomicity;
    every_kept_revision_can_be_read: history;
    a_watch_sees_each_commit_once_in_order: watching;
    of_concurrent_changes_to_one_value_none_is_lost: concurrency;
    old_history_goes_and_says_so: compaction;
    what_is_out_of_bounds_is_refused: bounds;
}

async fn atomicity(store: Arc<dyn StateStore>) {
    let first = Transaction {
        conditions: vec![Condition::Absent("a".into()), Condition::Absent("b".into())],
        writes: vec![put("a", "1"), put("b", "1")],
    };
    assert_eq!(store.commit(first.clone()).await.expect("both are absent"), 1);
    let again = store.commit(first).await;
    assert!(matches!(&again, Err(StoreError::Conflict(key)) if key == "a"), "{again:?}");
    let mixed = Transaction {
        conditions: vec![Condition::ModifiedAt("a".into(), 1), Condition::ModifiedAt("b".into(), 7)],
        writes: vec![put("a", "2"), delete("b"), put("c", "2")],
    };
    let refused = store.commit(mixed.clone()).await;
    assert!(matches!(&refused, Err(StoreError::Conflict(key)) if key == "b"), "{refused:?}");
    assert_eq!(text(store.as_ref(), "a", None).await.as_deref(), Some("1"), "nothing of it happened");
    assert_eq!(keys(store.as_ref(), "", None).await, ["a", "b"]);
    let right = vec![Condition::ModifiedAt("a".into(), 1), Condition::ModifiedAt("b".into(), 1)];
    assert_eq!(store.commit(Transaction { conditions: right, ..mixed }).await.expect("holds"), 2);
    assert_eq!(keys(store.as_ref(), "", None).await, ["a", "c"]);
    let gone = Condition::ModifiedAt("b".into(), 1);
    let stale = store.commit(Transaction { conditions: vec![gone], writes: vec![] }).await;
    assert!(matches!(stale, Err(StoreError::Conflict(_))), "a removed key has no revision: {stale:?}");
    let absent = Transaction { conditions: vec![Condition::Absent("b".into())], writes: vec![put("b", "3")] };
    store.commit(absent).await.expect("removed is absent");
}

async fn history(store: Arc<dyn StateStore>) {
    assert_eq!(text(store.as_ref(), "k", None).await, None);
    store
        .commit(writes(vec![put("k", "1"), put("ka", "x"), put("kaa", "x"), put("l", "x")]))
        .await
        .expect("1");
    store.commit(writes(vec![put("k", "2")])).await.expect("2");
    store.commit(writes(vec![delete("k"), put("kb", "x")])).await.expect("3");
    store.commit(writes(vec![put("k", "4")])).await.expect("4");
    for (revision, want) in [(0, None), (1, Some("1")), (2, Some("2")), (3, None), (4, Some("4"))] {
        assert_eq!(text(store.as_ref(), "k", Some(revision)).await.as_deref(), want, "at {revision}");
    }
    assert_eq!(keys(store.as_ref(), "k", Some(2)).await, ["k", "ka", "kaa"]);
    assert_eq!(keys(store.as_ref(), "k", Some(3)).await, ["ka", "kaa", "kb"]);
    assert_eq!(keys(store.as_ref(), "ka", None).await, ["ka", "kaa"]);
    let read = store.read("k", None).await.expect("read");
    assert_eq!((read.revision, read.entries[0].modified), (4, 4));
    let future = store.read("k", Some(5)).await;
    assert!(matches!(future, Err(StoreError::Future { asked: 5, latest: 4 })), "{future:?}");
}

async fn watching(store: Arc<dyn StateStore>) {
    store.commit(writes(vec![put("a/1", "x"), put("b/1", "x")])).await.expect("1");
    store.commit(writes(vec![put("b/2", "x")])).await.expect("2");
    let mut watch = store.watch("a/", 1).await.expect("watch");
    let first = watch.next().await.expect("first").expect("commit");
    assert_eq!(first, Commit { revision: 1, writes: vec![put("a/1", "x")] }, "what was before the watch");
    let later = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            store.commit(writes(vec![put("b/3", "x")])).await.expect("3");
            store.commit(writes(vec![delete("a/1"), put("a/2", "y"), put("c", "z")])).await.expect("4");
            for n in 0..200 {
                store.commit(writes(vec![put("a/n", &n.to_string())])).await.expect("more");
            }
        })
    };
    let second = watch.next().await.expect("second").expect("commit");
    assert_eq!(second, Commit { revision: 4, writes: vec![delete("a/1"), put("a/2", "y")] });
    for n in 0..200 {
        let next = watch.next().await.expect("more").expect("commit");
        assert_eq!(next, Commit { revision: 5 + n, writes: vec![put("a/n", &n.to_string())] });
    }
    later.await.expect("writer");
    let mut late = store.watch("a/2", 4).await.expect("watch");
    assert_eq!(late.next().await.expect("one").expect("commit").writes, [put("a/2", "y")]);
    let more = tokio::time::timeout(Duration::from_millis(50), late.next()).await;
    assert!(more.is_err(), "nothing is invented: {more:?}");
}

async fn concurrency(store: Arc<dyn StateStore>) {
    const TASKS: u64 = 4;
    const ROUNDS: u64 = 25;
    store.commit(writes(vec![put("n", "0")])).await.expect("start");
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut conflicts = 0_u64;
                for _ in 0..ROUNDS {
                    loop {
                        let read = store.read("n", None).await.expect("read");
                        let entry = &read.entries[0];
                        let n: u64 =
                            std::str::from_utf8(&entry.value).expect("text").parse().expect("number");
                        let transaction = Transaction {
                            conditions: vec![Condition::ModifiedAt("n".into(), entry.modified)],
                            writes: vec![put("n", &(n + 1).to_string())],
                        };
                        match store.commit(transaction).await {
                            Ok(_) => break,
                            Err(StoreError::Conflict(_)) => conflicts += 1,
                            Err(error) => panic!("{error}"),
                        }
                        assert!(conflicts < 100_000, "somebody always wins");
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("task");
    }
    assert_eq!(text(store.as_ref(), "n", None).await, Some((TASKS * ROUNDS).to_string()));
    assert_eq!(
        store.read("n", None).await.expect("read").revision,
        1 + TASKS * ROUNDS,
        "a conflict is no commit"
    );
}

async fn compaction(store: Arc<dyn StateStore>) {
    store.commit(writes(vec![put("stays", "old"), put("goes", "x")])).await.expect("1");
    store.commit(writes(vec![delete("goes")])).await.expect("2");
    let mut behind = store.watch("n", 1).await.expect("watch");
    for n in 0..HISTORY_REVISIONS_MAX {
        store.commit(writes(vec![put("n", &n.to_string())])).await.expect("more");
    }
    let latest = HISTORY_REVISIONS_MAX + 2;
    assert_eq!(text(store.as_ref(), "stays", None).await.as_deref(), Some("old"), "a value is not history");
    assert_eq!(
        text(store.as_ref(), "stays", Some(2)).await.as_deref(),
        Some("old"),
        "the oldest that is kept"
    );
    assert_eq!(keys(store.as_ref(), "goes", Some(2)).await, [""; 0]);
    let gone = store.read("stays", Some(1)).await;
    assert!(matches!(gone, Err(StoreError::Compacted { asked: 1, oldest: 2 })), "{gone:?}");
    assert!(matches!(store.watch("n", 2).await.err(), Some(StoreError::Compacted { asked: 2, oldest: 3 })));
    assert!(store.watch("n", 3).await.is_ok());
    let told = behind.next().await.expect("item");
    assert!(
        matches!(told, Err(StoreError::Compacted { .. })),
        "a watch that missed commits says so: {told:?}"
    );
    assert!(behind.next().await.is_none());
    assert_eq!(store.read("n", None).await.expect("read").revision, latest);
}

async fn bounds(store: Arc<dyn StateStore>) {
    let long = "k".repeat(513);
    let invalid = [
        writes(vec![put("", "x")]),
        writes(vec![put(&long, "x")]),
        writes(vec![Write::Put("k".into(), vec![0; VALUE_BYTES_MAX + 1])]),
        writes(vec![put("k", "1"), delete("k")]),
        writes((0..=OPERATIONS_MAX).map(|n| put(&n.to_string(), "x")).collect()),
    ];
    for transaction in invalid {
        let refused = store.commit(transaction).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    }
    assert_eq!(store.read("k", None).await.expect("read").revision, 0);
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("deep/state.redb");
    let store = RedbStore::open(&path).expect("created");
    store.commit(writes(vec![put("a", "1")])).await.expect("1");
    store.commit(writes(vec![put("a", "2"), put("b", "2")])).await.expect("2");
    let watch = store.watch("a", 1).await.expect("watch");
    let locked = RedbStore::open(&path);
    assert!(matches!(locked, Err(StoreError::Locked(_))), "{locked:?}");
    drop(store);
    let store = RedbStore::open(&path).expect("an open watch does not hold the file");
    drop(watch);
    assert_eq!(text(&store, "a", None).await.as_deref(), Some("2"));
    assert_eq!(text(&store, "a", Some(1)).await.as_deref(), Some("1"));
    assert_eq!(store.commit(writes(vec![put("a", "3")])).await.expect("3"), 3, "revisions go on");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn what_is_no_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("state.redb");
    let rubbish = vec![0x5a; 8192];
    std::fs::write(&path, &rubbish).expect("write");
    assert!(matches!(RedbStore::open(&path), Err(StoreError::Storage(_))));
    assert_eq!(std::fs::read(&path).expect("read"), rubbish);
}

#[derive(Clone, Debug)]
struct Step {
    conditions: Vec<(u8, Option<u64>)>,
    writes: Vec<(u8, Option<u8>)>,
}

/// A version that knows no policies but the tenant `default`'s must not open a store that has others: it would lift them.
#[tokio::test]
async fn a_store_with_others_policies_is_no_earlier_versions() {
    const META: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("state.redb");
    let format = |set: Option<u64>| {
        let database = redb::Database::open(&path).expect("open");
        let write = database.begin_write().expect("transaction");
        let format = {
            let mut meta = write.open_table(META).expect("table");
            if let Some(format) = set {
                meta.insert("format", format).expect("insert");
            }
            meta.get("format").expect("get").map(|format| format.value())
        };
        write.commit().expect("commit");
        format
    };
    for (key, wanted) in [
        ("policy-live", 1),
        ("revision/1", 1),
        ("policy", 1),
        ("policy-live/platform", 2),
        ("policy-live", 2),
    ] {
        let store = RedbStore::open(&path).expect("open");
        store.commit(writes(vec![put(key, "1")])).await.expect("commit");
        drop(store);
        assert_eq!(format(None), Some(wanted), "{key}");
    }
    format(Some(1));
    let store = RedbStore::open(&path).expect("open");
    store.commit(writes(vec![put("policy/tenant/acme/revision/1", "1")])).await.expect("commit");
    drop(store);
    assert_eq!(format(None), Some(2));
    format(Some(3));
    let refused = RedbStore::open(&path).expect_err("refused").to_string();
    assert!(refused.contains("was written by a later version; upgrade"), "{refused}");
    assert_eq!(format(None), Some(3), "it is left as it is");
}

fn step() -> impl Strategy<Value = Step> {
    let conditions = prop::collection::vec((0..4_u8, prop::option::of(1..12_u64)), 0..2);
    let writes = prop::collection::vec((0..4_u8, prop::option::of(any::<u8>())), 0..4);
    (conditions, writes).prop_map(|(conditions, writes)| Step { conditions, writes })
}

fn transaction(step: &Step) -> Transaction {
    let name = |n: u8| ["a", "ab", "abc", "b"][usize::from(n)].to_owned();
    let conditions = step.conditions.iter().map(|(key, at)| match at {
        Some(at) => Condition::ModifiedAt(name(*key), *at),
        None => Condition::Absent(name(*key)),
    });
    let writes = step.writes.iter().map(|(key, value)| match value {
        Some(value) => Write::Put(name(*key), vec![*value]),
        None => Write::Delete(name(*key)),
    });
    Transaction { conditions: conditions.collect(), writes: writes.collect() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_durable_store_equals_the_one_in_memory(steps in prop::collection::vec(step(), 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let dir = tempfile::tempdir().expect("directory");
            let memory = MemoryStore::default();
            let disk = RedbStore::open(&dir.path().join("state.redb")).expect("open");
            for step in &steps {
                let both = [memory.commit(transaction(step)).await, disk.commit(transaction(step)).await];
                let both = both.map(|r| r.map_err(|e| e.to_string()));
                prop_assert_eq!(&both[0], &both[1]);
            }
            let latest = memory.read("a", None).await.expect("read").revision;
            for at in 0..=latest {
                for prefix in ["", "a", "ab", "b"] {
                    let both = [memory.scan(prefix, Some(at)).await, disk.scan(prefix, Some(at)).await];
                    let both = both.map(|r| r.expect("scan"));
                    prop_assert_eq!(&both[0], &both[1]);
                }
            }
            Ok(())
        })?;
    }
}
