//! Tests of who is quarantined: by people, by policy, and for how long.

use std::path::Path;

use clawgress_api::clock::SystemClock;
use clawgress_api::config::Config;
use futures_util::stream::BoxStream;
use tokio::sync::Notify;

use super::super::audit::{AuditLog, Bounds};
use super::super::due::Dues;
use super::super::model::Draft;
use super::super::signatures::Signatures;
use super::super::store::{Commit, MemoryStore, Read};
use super::super::told;
use super::*;

async fn quarantines(directory: &Path) -> Arc<Quarantines> {
    opened(directory, Arc::new(SystemClock)).await
}

async fn opened(directory: &Path, clock: Arc<dyn Clock>) -> Arc<Quarantines> {
    let text = format!(
        "[node]\nname = \"n\"\nrun_dir = \"{}\"\n[datapath]\nmode = \"none\"\n[proxy]\nlisten = [\"127.0.0.1:3128\"]\n[l7]\nresolvers = [\"127.0.0.1:53\"]\n",
        directory.display()
    );
    let config = Arc::new(Config::parse(&text, Path::new("test.toml")).expect("config"));
    let store = Arc::new(MemoryStore::default());
    let bounds = Bounds { segment_bytes_max: 1 << 20, retention_bytes_max: 1 << 24 };
    let audit = AuditLog::open(directory.join("audit"), bounds, "n".into(), Arc::clone(&clock)).await;
    let channel = clawgress_api::socket::channel(&config.signer_socket()).expect("channel");
    let parts = (config.clone(), store as _, audit.expect("audit"), Arc::clone(&clock));
    let governor = Governor::open(parts, Arc::new(Signatures::new(channel))).await;
    let governor = Arc::new(governor.expect("governor"));
    let quarantines = Quarantines::open(governor, clock).await.expect("opened");
    create(&quarantines).await;
    Arc::new(quarantines)
}

/// Creates the agent.
async fn create(quarantines: &Quarantines) -> Agent {
    let agent = Agent {
        id: "a".parse().expect("id"),
        index: 0,
        team: None,
        project: None,
        environment: None,
        labels: BTreeMap::new(),
        state: AgentState::Active,
        sources: vec![],
    };
    let governor = &quarantines.governor;
    let missing = (clawgress_api::MissingGroups::Create, 0);
    let create = |draft: &mut Draft| draft.create_agent(agent.clone(), &governor.config, missing);
    governor.change(|_| "created".into(), create).await.expect("created").0.0
}

/// Deletes the agent, and lets another of its name follow. Gives the two.
async fn replace(quarantines: &Quarantines) -> (Agent, Agent) {
    let id: AgentId = "a".parse().expect("id");
    let delete = |draft: &mut Draft| draft.delete_agent(&id);
    let (deleted, _) = quarantines.governor.change(|_| "deleted".into(), delete).await.expect("deleted");
    (deleted.0, create(quarantines).await)
}

fn new(seconds: Option<u64>) -> NewQuarantine {
    NewQuarantine { id: "a".parse().expect("id"), seconds, reason: None }
}

fn indices(quarantines: &Quarantines) -> Vec<u32> {
    quarantines.live().indices().collect()
}

/// A plane may still run the generation of an agent that is no more.
#[tokio::test]
async fn who_follows_a_deleted_agent_leaves_it_quarantined() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    quarantines.put(new(None), "root").await.expect("quarantined");
    let (old, next) = replace(&quarantines).await;
    assert_eq!(quarantines.live().of(&next), None);
    let none = quarantines.release(&next.id, None, "root").await.expect_err("it is not quarantined");
    assert!(matches!(none, Refusal::Missing(_)), "{none}");
    assert_eq!(indices(&quarantines), [old.index]);
    quarantines.put(new(None), "root").await.expect("quarantined");
    assert_eq!(indices(&quarantines), [old.index, next.index]);
    quarantines.release(&next.id, None, "root").await.expect("released");
    assert_eq!(indices(&quarantines), [old.index]);
    quarantines.release(&old.id, Some(old.index), "root").await.expect("released by its number");
    assert!(indices(&quarantines).is_empty());
}

#[tokio::test]
async fn to_forget_a_deleted_agent_releases_none_that_follows_it() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    let (old, next) = replace(&quarantines).await;
    // Between the deletion and the planes' word that it is in force.
    quarantines.put(new(None), "root").await.expect("quarantined");
    quarantines.forget(&old, "root").await.expect("nothing to forget");
    assert_eq!(indices(&quarantines), [next.index]);
}

#[tokio::test]
async fn the_end_of_a_deleted_agents_time_releases_none_that_follows_it() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    quarantines.put(new(Some(1)), "root").await.expect("quarantined");
    let (old, next) = replace(&quarantines).await;
    quarantines.put(new(Some(3600)), "root").await.expect("quarantined");
    assert_eq!(indices(&quarantines), [old.index, next.index]);
    tokio::select! {
        () = quarantines.expire() => {}
        () = async {
            let mut changes = quarantines.watch();
            let ended = |live: &Arc<Quarantined>| live.indices().count() < 2;
            changes.wait_for(ended).await.expect("open");
        } => {}
    }
    assert_eq!(indices(&quarantines), [next.index]);
}

/// What policy imposes lengthens, and never shortens: neither its own, nor what a person said.
#[tokio::test]
async fn policy_makes_no_quarantine_shorter() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    let agent = Agent::clone(&quarantines.governor.live().model.agents[&new(None).id]);
    let impose = async |seconds| {
        quarantines
            .impose(agent.index, seconds, "policy `p` at request r".to_owned(), Duration::ZERO)
            .await
            .expect("imposed");
        let live = quarantines.live();
        let entry = live.of(&agent).expect("quarantined");
        (entry.until.map(|until| until.duration_since(entry.since).as_secs()), entry.by.clone())
    };
    let by_policy = |seconds| (Some(seconds), "policy".to_owned());
    assert_eq!(impose(Some(60)).await, by_policy(60));
    assert_eq!(impose(Some(30)).await, by_policy(60));
    assert_eq!(impose(Some(3_600)).await, by_policy(3_600));
    quarantines.put(new(None), "root").await.expect("quarantined");
    assert_eq!(impose(Some(60)).await, (None, "root".to_owned()));
    let nobody = quarantines.impose(77, None, String::new(), Duration::ZERO).await.expect_err("no agent");
    assert!(matches!(nobody, Refusal::Missing(_)), "{nobody}");
    let long = quarantines.impose(agent.index, Some(SECONDS_MAX + 1), String::new(), Duration::ZERO).await;
    assert!(matches!(long, Err(Refusal::Invalid(_))));
}

/// What an earlier version stored is by the id alone.
#[tokio::test]
async fn an_earlier_versions_quarantine_counts_and_ends() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    let entry = quarantines.put(new(None), "root").await.expect("quarantined");
    let outdated = format!("{QUARANTINE}{}", entry.agent);
    for again in [false, true] {
        let writes = vec![
            Write::Delete(key(&(entry.agent.clone(), entry.index))),
            Write::Put(outdated.clone(), serde_json::to_vec(&entry).expect("json")),
        ];
        let transaction = Transaction { conditions: vec![], writes };
        quarantines.governor.store.commit(transaction).await.expect("stored");
        quarantines.reload().await.expect("read");
        assert_eq!(indices(&quarantines), [entry.index]);
        if again {
            quarantines.put(new(Some(60)), "root").await.expect("changed");
            assert_eq!(indices(&quarantines), [entry.index]);
        }
        quarantines.release(&entry.agent, None, "root").await.expect("released");
        assert!(indices(&quarantines).is_empty());
    }
}

/// Nodes that share a store each have all of it, also of before they follow.
#[tokio::test]
async fn what_another_node_does_counts_here() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    let agent = Agent::clone(&quarantines.governor.live().model.agents[&new(None).id]);
    let (governor, clock) = (Arc::clone(&quarantines.governor), Arc::clone(&quarantines.clock));
    let other = Quarantines::open(governor, clock).await.expect("opened");
    other.put(new(None), "root").await.expect("quarantined");
    assert!(indices(&quarantines).is_empty(), "nobody has said so here");
    let until = async |count| {
        let mut changes = quarantines.watch();
        let is_so = |live: &Arc<Quarantined>| live.indices().count() == count;
        tokio::select! {
            () = quarantines.follow() => {}
            seen = changes.wait_for(is_so) => drop(seen.expect("open")),
        }
    };
    until(1).await;
    let early = quarantines.clock.now();
    other.release(&agent.id, None, "root").await.expect("released");
    until(0).await;
    assert!(quarantines.is_settled(&agent, early, None), "by a release there, too");
}

#[tokio::test]
async fn who_is_quarantined_for_longer_is_not_released_by_the_former_end() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    quarantines.put(new(Some(1)), "root").await.expect("quarantined");
    // Nobody's turn while its time ends. Then the longer one comes first, and the end after it.
    let turn = quarantines.turn.lock().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let longer = tokio::spawn({
        let quarantines = Arc::clone(&quarantines);
        async move { quarantines.put(new(Some(3600)), "root").await }
    });
    let end = tokio::spawn({
        let quarantines = Arc::clone(&quarantines);
        async move { quarantines.expire().await }
    });
    // Both get as far as to wait.
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(turn);
    let entry = longer.await.expect("no panic").expect("quarantined");
    // Behind whatever the end does.
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(quarantines.turn.lock().await);
    end.abort();
    let live = quarantines.live();
    assert_eq!(live.entries().collect::<Vec<_>>(), [&entry]);
}

fn due(agent: &Agent, asked: Timestamp, until: Option<Timestamp>) -> Due {
    Due { agent: agent.index, asked, until, reason: "policy `p` at request r".to_owned() }
}

/// Imposes what is due until nothing is.
async fn impose_all(dues: &Dues, quarantines: &Quarantines) {
    let stop = CancellationToken::new();
    tokio::join!(told::impose(dues, quarantines, stop.clone()), async {
        while !dues.all().is_empty() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    });
}

#[tokio::test]
async fn what_is_due_is_imposed_by_the_next_start_and_once() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    let store = Arc::clone(&quarantines.governor.store);
    let agent = Agent::clone(&quarantines.governor.live().model.agents[&new(None).id]);
    let dues = Dues::open(Arc::clone(&store)).await.expect("opened");
    let first = due(&agent, quarantines.clock.now(), None);
    dues.add(first.clone(), |_| false);
    dues.store().await.expect("stored");
    // It ends before it gets to it.
    drop(dues);
    let dues = Dues::open(Arc::clone(&store)).await.expect("opened");
    assert_eq!(dues.all(), [first]);
    impose_all(&dues, &quarantines).await;
    assert_eq!(indices(&quarantines), [agent.index]);
    assert!(Dues::open(store).await.expect("opened").all().is_empty(), "it was seen to");
}

/// One agent has one that waits, however much it does.
#[test]
fn of_an_agents_dues_the_longest_waits() {
    let dues = |all: &[(u32, Option<i64>)]| {
        let dues = Dues::new(Arc::new(MemoryStore::default()));
        let time = |s| Timestamp::from_second(s).expect("time");
        for (n, (agent, until_s)) in (0..).zip(all) {
            let (asked, until) = (time(n), until_s.map(time));
            dues.add(Due { agent: *agent, asked, until, reason: String::new() }, |_| false);
        }
        let all = dues.all();
        let seconds = |due: Due| (due.agent, due.until.map(Timestamp::as_second), due.asked.as_second());
        all.into_iter().map(seconds).collect::<Vec<_>>()
    };
    let loud: Vec<_> = (0..5_000).map(|_| (1, Some(900))).chain([(2, Some(60))]).collect();
    assert_eq!(dues(&loud), [(1, Some(900), 4_999), (2, Some(60), 5_000)]);
    assert_eq!(dues(&[(1, Some(60)), (1, Some(900))]), [(1, Some(900), 1)]);
    assert_eq!(dues(&[(1, None), (1, Some(900))]), [(1, None, 1)]);
    assert_eq!(dues(&[(1, Some(900)), (1, None)]), [(1, None, 1)]);
}

/// What comes again, or late, was decided when it was.
#[tokio::test]
async fn what_was_decided_before_a_release_quarantines_nobody_again() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    let agent = Agent::clone(&quarantines.governor.live().model.agents[&new(None).id]);
    let (asked, minute) = (quarantines.clock.now(), SignedDuration::from_mins(1));
    let over = due(&agent, asked - minute - minute, Some(asked - minute));
    quarantines.impose_due(&over).await.expect("nothing to do");
    assert!(indices(&quarantines).is_empty(), "its time was over");
    let first = due(&agent, asked, Some(asked + minute));
    for _ in 0..2 {
        quarantines.impose_due(&first).await.expect("imposed");
        let live = quarantines.live();
        assert_eq!(live.of(&agent).and_then(|entry| entry.until), Some(asked + minute), "no longer for it");
    }
    quarantines.release(&agent.id, None, "root").await.expect("released");
    quarantines.impose_due(&first).await.expect("nothing to do");
    assert!(indices(&quarantines).is_empty());
    let next = due(&agent, quarantines.clock.now(), None);
    quarantines.impose_due(&next).await.expect("imposed");
    assert_eq!(indices(&quarantines), [agent.index], "what it did since counts");
}

/// What was decided before a release may be told after a restart, too.
#[tokio::test]
async fn a_release_counts_after_a_restart() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    let agent = Agent::clone(&quarantines.governor.live().model.agents[&new(None).id]);
    let early = due(&agent, quarantines.clock.now(), None);
    quarantines.put(new(None), "root").await.expect("quarantined");
    quarantines.release(&agent.id, None, "root").await.expect("released");
    let (governor, clock) = (Arc::clone(&quarantines.governor), Arc::clone(&quarantines.clock));
    drop(quarantines);
    let quarantines = Quarantines::open(governor, clock).await.expect("opened again");
    quarantines.impose_due(&early).await.expect("nothing to do");
    assert!(indices(&quarantines).is_empty(), "released since");
    quarantines.impose_due(&due(&agent, quarantines.clock.now(), None)).await.expect("imposed");
    assert_eq!(indices(&quarantines), [agent.index], "what it did since counts");
}

/// A clock that people set.
#[derive(Debug)]
struct Set(parking_lot::Mutex<Timestamp>);

impl Clock for Set {
    fn now(&self) -> Timestamp {
        *self.0.lock()
    }
}

fn at(time: &str) -> Timestamp {
    format!("2026-11-27T{time}Z").parse().expect("time")
}

/// A release that seems to be yet to come hides nothing that its agent does, and goes on to count for what came before.
#[tokio::test]
async fn a_release_counts_for_what_came_before_it_however_the_clock_is_set() {
    let directory = tempfile::tempdir().expect("directory");
    let clock = Arc::new(Set(parking_lot::Mutex::new(at("12:00:00"))));
    let mut quarantines = opened(directory.path(), Arc::clone(&clock) as _).await;
    let agent = Agent::clone(&quarantines.governor.live().model.agents[&new(None).id]);
    quarantines.put(new(None), "root").await.expect("quarantined");
    quarantines.release(&agent.id, None, "root").await.expect("released");
    let noted = async |quarantines: &Quarantines| {
        let mut changes = quarantines.watch();
        let is_noted = |live: &Arc<Quarantined>| !live.released.is_set_back(clock.now());
        tokio::select! {
            () = quarantines.expire() => {}
            seen = changes.wait_for(is_noted) => drop(seen.expect("open")),
        }
    };
    let check = |quarantines: &Quarantines, now: &str, asked: &[(&str, bool)]| {
        *clock.0.lock() = at(now);
        for (time, settled) in asked {
            assert_eq!(quarantines.is_settled(&agent, at(time), None), *settled, "{time} at {now}");
        }
    };
    check(&quarantines, "12:10:00", &[("12:00:00", true), ("12:00:01", false)]);
    // By an hour; nobody has noted it: what it shows now, it may have shown before the release.
    let later = ("12:00:01", false);
    check(&quarantines, "11:00:00", &[("11:59:00", true), later, ("11:00:00", false), ("10:30:00", false)]);
    noted(&quarantines).await;
    for _ in 0..2 {
        check(
            &quarantines,
            "11:00:05",
            &[("11:59:00", true), later, ("11:00:00", false), ("10:30:00", true)],
        );
        check(&quarantines, "12:10:00", &[("11:59:00", false), ("11:00:00", false), ("10:30:00", true)]);
        // A restart changes nothing of that.
        let governor = Arc::clone(&quarantines.governor);
        quarantines = Arc::new(Quarantines::open(governor, Arc::clone(&clock) as _).await.expect("opened"));
    }
    // And again.
    check(&quarantines, "09:00:00", &[("09:00:00", false), ("10:30:00", true), ("11:00:00", false)]);
    noted(&quarantines).await;
    let asked = [("08:30:00", true), ("09:00:00", false), ("10:30:00", true), ("11:00:00", false)];
    check(&quarantines, "09:00:05", &asked);
    quarantines.impose_due(&due(&agent, at("09:00:05"), None)).await.expect("imposed");
    assert_eq!(indices(&quarantines), [agent.index]);
}

#[tokio::test]
async fn of_agents_that_are_no_more_no_release_is_kept() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    let kept = async || -> Vec<String> {
        let read = quarantines.governor.store.scan(RELEASED, None).await.expect("read");
        read.entries.into_iter().map(|entry| entry.key).collect()
    };
    let let_out = async || {
        quarantines.put(new(None), "root").await.expect("quarantined");
        quarantines.release(&new(None).id, None, "root").await.expect("released");
    };
    let_out().await;
    let (first, second) = replace(&quarantines).await;
    assert_eq!(kept().await, [released::key(first.index)]);
    quarantines.forget(&first, "root").await.expect("forgotten");
    assert!(kept().await.is_empty(), "both planes know it no more");
    let_out().await;
    let (_, third) = replace(&quarantines).await;
    assert_eq!(kept().await, [released::key(second.index)], "nobody has said so yet");
    let_out().await;
    assert_eq!(kept().await, [released::key(third.index)]);
    quarantines.put(new(None), "root").await.expect("quarantined");
    replace(&quarantines).await;
    quarantines.forget(&third, "root").await.expect("forgotten");
    assert!(kept().await.is_empty(), "nor of one that is quarantined");
}

/// The planes hear of a release before it is recorded.
#[tokio::test]
async fn what_an_agent_does_while_its_release_is_recorded_quarantines_it() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    let agent = Agent::clone(&quarantines.governor.live().model.agents[&new(None).id]);
    quarantines.put(new(None), "root").await.expect("quarantined");
    let mut changes = quarantines.watch();
    changes.mark_unchanged();
    let (released, did) = tokio::join!(quarantines.release(&agent.id, None, "root"), async {
        changes.changed().await.expect("open");
        quarantines.clock.now()
    });
    released.expect("released");
    quarantines.impose_due(&due(&agent, did, None)).await.expect("imposed");
    assert_eq!(indices(&quarantines), [agent.index]);
}

/// What policy wants beyond the end of a quarantine is settled by a person alone.
#[tokio::test]
async fn the_end_of_its_time_forgets_no_longer_one_that_is_due() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    let store = Arc::clone(&quarantines.governor.store);
    let agent = Agent::clone(&quarantines.governor.live().model.agents[&new(None).id]);
    let stored = async || Dues::open(Arc::clone(&store)).await.expect("opened").all();
    let dues = Dues::new(Arc::clone(&store));
    let longer = due(&agent, quarantines.clock.now(), None);
    dues.add(longer.clone(), |_| false);
    dues.store().await.expect("stored");
    quarantines.put(new(Some(1)), "root").await.expect("quarantined");
    let mut changes = quarantines.watch();
    tokio::select! {
        () = quarantines.expire() => {}
        ended = changes.wait_for(|live| live.indices().count() == 0) => drop(ended.expect("open")),
    }
    assert_eq!(stored().await, [longer]);
    quarantines.put(new(None), "root").await.expect("quarantined");
    quarantines.release(&agent.id, None, "root").await.expect("released");
    impose_all(&dues, &quarantines).await;
    assert!(indices(&quarantines).is_empty(), "released since");
    assert_eq!(stored().await, []);
}

/// The store has a release before this process knows of it.
#[tokio::test]
async fn what_comes_between_a_release_and_the_news_of_it_is_stored() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    let store = Arc::clone(&quarantines.governor.store);
    let agent = Agent::clone(&quarantines.governor.live().model.agents[&new(None).id]);
    let dues = Dues::new(Arc::clone(&store));
    dues.add(due(&agent, quarantines.clock.now(), None), |_| false);
    dues.store().await.expect("stored");
    quarantines.put(new(Some(60)), "root").await.expect("quarantined");
    quarantines.release(&agent.id, None, "root").await.expect("released");
    let later = due(&agent, quarantines.clock.now(), None);
    dues.add(later.clone(), |_| false);
    dues.store().await.expect("stored");
    // It ends before it gets to it.
    drop(dues);
    let dues = Dues::open(store).await.expect("opened");
    assert_eq!(dues.all(), [later]);
    impose_all(&dues, &quarantines).await;
    assert_eq!(indices(&quarantines), [agent.index]);
}

/// A store whose commits wait until they may go on.
#[derive(Debug, Default)]
struct Slow {
    store: MemoryStore,
    began: Notify,
    go_on: Notify,
}

#[async_trait::async_trait]
impl StateStore for Slow {
    async fn read(&self, key: &str, at: Option<Revision>) -> Result<Read, StoreError> {
        self.store.read(key, at).await
    }

    async fn scan(&self, prefix: &str, at: Option<Revision>) -> Result<Read, StoreError> {
        self.store.scan(prefix, at).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        self.began.notify_one();
        self.go_on.notified().await;
        self.store.commit(transaction).await
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Commit, StoreError>>, StoreError> {
        self.store.watch(prefix, from).await
    }
}

#[tokio::test]
async fn what_takes_the_place_of_one_that_is_being_stored_is_stored_too() {
    let store = Arc::new(Slow::default());
    let dues = Dues::new(Arc::clone(&store) as _);
    let of = |second| {
        let asked = Timestamp::from_second(second).expect("time");
        Due { agent: 1, asked, until: None, reason: String::new() }
    };
    dues.add(of(1), |_| false);
    let (stored, ()) = tokio::join!(dues.store(), async {
        store.began.notified().await;
        // Somebody released the agent in between.
        dues.add(of(2), |_| true);
        store.go_on.notify_one();
    });
    stored.expect("stored");
    store.go_on.notify_one();
    dues.store().await.expect("stored");
    assert_eq!(Dues::open(store).await.expect("opened").all(), [of(2)]);
}

/// What waits since before a release is over with it, whatever the agent does next.
#[tokio::test]
async fn what_a_release_settled_is_not_revived_by_what_comes_after() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    let agent = Agent::clone(&quarantines.governor.live().model.agents[&new(None).id]);
    let dues = Dues::new(Arc::clone(&quarantines.governor.store));
    let add = |due| dues.add(due, |other| quarantines.is_settled(&agent, other.asked, other.until));
    add(due(&agent, quarantines.clock.now(), None));
    quarantines.put(new(Some(60)), "root").await.expect("quarantined");
    quarantines.release(&agent.id, None, "root").await.expect("released");
    let (asked, minute) = (quarantines.clock.now(), SignedDuration::from_mins(1));
    add(due(&agent, asked, Some(asked + minute)));
    impose_all(&dues, &quarantines).await;
    let live = quarantines.live();
    assert_eq!(live.of(&agent).map(|entry| entry.until), Some(Some(asked + minute)));
}

/// A worker tells again what it got no answer to.
#[tokio::test]
async fn what_a_worker_tells_late_is_of_when_it_was_decided() {
    let directory = tempfile::tempdir().expect("directory");
    let quarantines = quarantines(directory.path()).await;
    let agent = Agent::clone(&quarantines.governor.live().model.agents[&new(None).id]);
    let minute = Duration::from_secs(60);
    let impose = async |seconds, age| {
        quarantines.impose(agent.index, seconds, "policy `p`".to_owned(), age).await.expect("imposed");
        quarantines.live().of(&agent).map(|entry| entry.until.map(|until| until.duration_since(entry.since)))
    };
    assert_eq!(impose(Some(30), minute).await, None, "its time is over");
    assert_eq!(impose(Some(90), minute).await, Some(Some(SignedDuration::from_secs(90))));
    let until = quarantines.live().of(&agent).and_then(|entry| entry.until).expect("an end");
    assert!(until < quarantines.clock.now() + SignedDuration::from_secs(60), "from then on");
    quarantines.release(&agent.id, None, "root").await.expect("released");
    assert_eq!(impose(None, minute).await, None, "released since");
    assert_eq!(impose(None, Duration::ZERO).await, Some(None));
}
