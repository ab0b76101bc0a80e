//! The control role with real clients over real sockets.

mod faults;
mod history;
mod told;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clawgress_agent::control;
use clawgress_agent::control::store::{Commit, MemoryStore, Read, StateStore, StoreError, Transaction};
use clawgress_api::clock::{FixedClock, SystemClock};
use clawgress_api::proto::keys_client::KeysClient;
use clawgress_api::proto::{
    self, AuditBatch, Empty, MacApiKeyRequest, Name, NewRun, RevisionNumber, WatchRequest,
};
use clawgress_api::{
    AgentStateChange, AuditQuery, AuditRecord, CreatedAgent, MissingGroups, NewAgent, NewPolicy, Plane,
    PolicyRevision, RecordKind, RunSession, Status, socket,
};
use clawgress_identity::{
    Agent, AgentState, ApiKey, Identity, IdentityError, Origin, PolicyOwner, TrustSnapshot,
};
use clawgress_policy::{PolicyBundle, PolicyProblem};
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::datapath::Script;
use crate::node::{self, Node, PATIENCE, Worker, document, parse, until};

const OPEN: &str = "@id(\"all\") permit (principal, action == Action::\"tls\", resource);";

fn agent(name: &str) -> NewAgent {
    NewAgent {
        id: name.parse().expect("id"),
        team: None,
        project: None,
        environment: None,
        labels: BTreeMap::new(),
        sources: vec![],
        key: true,
        missing: MissingGroups::Create,
    }
}

fn policy(text: &str) -> NewPolicy<PolicyBundle> {
    let bundle = PolicyBundle { text: text.into(), ..PolicyBundle::default() };
    NewPolicy {
        owner: PolicyOwner::default(),
        bundle,
        message: "because".into(),
        author: "me".into(),
        accepted: Vec::new(),
        parent: None,
    }
}

async fn create(node: &Node, name: &str) -> CreatedAgent {
    let answer = node.admin().create_agent(document(&agent(name))).await;
    parse(&answer.expect("created").into_inner().json)
}

async fn apply(node: &Node, text: &str) -> PolicyRevision<PolicyBundle> {
    parse(&node.admin().apply_policy(document(&policy(text))).await.expect("applied").into_inner().json)
}

async fn status(node: &Node) -> Status {
    parse(&node.admin().status(Empty {}).await.expect("status").into_inner().json)
}

async fn records(node: &Node, query: AuditQuery) -> Vec<AuditRecord> {
    let mut stream = node.admin().search_audit(document(&query)).await.expect("search").into_inner();
    let mut records = Vec::new();
    while let Some(document) = stream.message().await.expect("record") {
        records.push(parse(&document.json));
    }
    records
}

async fn changes(node: &Node) -> Vec<String> {
    let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
    records(node, query).await.into_iter().map(|r| r.detail.expect("detail")).collect()
}

type Snapshot = clawgress_api::Snapshot<PolicyBundle>;

async fn snapshot(worker: &mut Worker) -> Snapshot {
    let snapshot = worker.next().await;
    let document: Snapshot = parse(&snapshot.document);
    assert_eq!(document.generation, snapshot.generation);
    document
}

/// Authenticates as L7 does: the keys role hashes, the snapshot decides.
async fn authenticate(
    node: &Node,
    snapshot: Snapshot,
    user: &str,
    key: &str,
) -> Result<Identity, IdentityError> {
    let mut keys = KeysClient::new(socket::channel(&node.config.keys_socket()).expect("channel"));
    let mac = keys.mac_api_key(MacApiKeyRequest { key: key.into() }).await.expect("hash").into_inner().mac;
    let trust = TrustSnapshot::new(snapshot.agents, snapshot.keys, snapshot.shared);
    let user = user.parse().expect("id");
    let now_s = jiff::Timestamp::now().as_second();
    let mac = mac.try_into().expect("32 bytes");
    let origin = Origin::Address { interface: None, address: "192.0.2.1".parse().expect("address") };
    trust.by_api_key(ApiKey::parse(key).expect("key"), &mac, &user, origin, now_s)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_get_numbers_that_never_return_and_keys_that_count_while_they_exist() {
    let mut node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    assert_eq!(snapshot(&mut worker).await.generation, 0, "before the first change: deny");
    let first = create(&node, "a").await;
    let key = first.api_key.expect("key");
    let after = snapshot(&mut worker).await;
    assert_eq!((first.agent.index, after.generation), (1, 1));
    let text = String::from_utf8(serde_json::to_vec(&after).expect("json")).expect("text");
    assert!(!text.contains(&key) && !text.contains(&key[18..]), "a snapshot holds hashes only");
    authenticate(&node, after.clone(), "a", &key).await.expect("the key is good");
    assert_eq!(authenticate(&node, after.clone(), "b", &key).await, Err(IdentityError::OtherAgent));
    let other = format!("{}{}", &key[..key.len() - 1], if key.ends_with('0') { '1' } else { '0' });
    assert_eq!(authenticate(&node, after, "a", &other).await, Err(IdentityError::UnknownKey));

    assert_eq!(create(&node, "b").await.agent.index, 2);
    let taken = node.admin().create_agent(document(&agent("default/a"))).await.expect_err("taken");
    assert_eq!(taken.code(), Code::AlreadyExists);
    node.admin().delete_agent(Name { name: "b".into() }).await.expect("deleted");
    let missing = node.admin().delete_agent(Name { name: "b".into() }).await.expect_err("gone");
    assert_eq!(missing.code(), Code::NotFound);
    node.stop_control().await;
    node.start_control().await;
    assert_eq!(create(&node, "b").await.agent.index, 3, "2 belonged to somebody else");
    assert_eq!(status(&node).await.generation, 4, "generations go on after a restart");

    let change = AgentStateChange { id: "a".parse().expect("id"), state: AgentState::Disabled };
    let set = node.admin().set_agent_state(document(&change)).await.expect("disabled").into_inner();
    assert_eq!(parse::<Agent>(&set.json).state, AgentState::Disabled);
    let mut worker = node.worker("w").await;
    let disabled = snapshot(&mut worker).await;
    assert_eq!(disabled.generation, 5);
    assert_eq!(authenticate(&node, disabled, "a", &key).await, Err(IdentityError::Disabled));
    node.admin().delete_agent(Name { name: "a".into() }).await.expect("deleted");
    let deleted = snapshot(&mut worker).await;
    assert_eq!(authenticate(&node, deleted, "a", &key).await, Err(IdentityError::UnknownKey));
    let log = changes(&node).await;
    assert_eq!(log.len(), 6, "{log:#?}");
    assert!(log[4].contains("`default/a` set from \"active\" to \"disabled\" by root"), "{}", log[4]);
    assert!(!log.join("").contains(&key[18..]), "no secret is in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_policy_changes_nothing() {
    let node = Node::new().start().await;
    create(&node, "a").await;
    let first = apply(&node, OPEN).await;
    assert_eq!((first.number, first.parent, first.generation), (1, 0, Some(2)));
    let before = status(&node).await;
    let mut worker = node.worker("w").await;
    let snapshot_before = snapshot(&mut worker).await;
    let log_before = changes(&node).await;
    for bad in ["permit (principal", "@id(\"x\") permit (principal, action == Action::\"fly\", resource);"] {
        let refused = node.admin().apply_policy(document(&policy(bad))).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument);
        let problems: Vec<PolicyProblem> = parse(refused.details());
        assert!(problems.iter().any(|p| p.line == Some(1)), "{problems:?}");
        let checked = node.admin().check_policy(document(&policy(bad))).await.expect_err("refused");
        assert_eq!(checked.details(), refused.details());
    }
    let long = NewPolicy { message: "m".repeat(2000), ..policy(OPEN) };
    assert_eq!(
        node.admin().apply_policy(document(&long)).await.expect_err("refused").code(),
        Code::InvalidArgument
    );
    let garbage = clawgress_api::proto::Document { json: b"{\"bundle\":7}".to_vec() };
    assert_eq!(node.admin().apply_policy(garbage).await.expect_err("refused").code(), Code::InvalidArgument);
    let after = status(&node).await;
    assert_eq!((after.generation, after.revision), (before.generation, before.revision));
    assert_eq!(changes(&node).await, log_before);
    let nothing = tokio::time::timeout(Duration::from_millis(100), worker.received.recv()).await;
    assert!(nothing.is_err(), "no snapshot is sent: {nothing:?}");
    let live = node.admin().show_policy(RevisionNumber::default()).await.expect("live").into_inner();
    let live: PolicyRevision<PolicyBundle> = parse(&live.json);
    assert_eq!(live.bundle, snapshot_before.policy);

    let second = apply(&node, &format!("{OPEN}\n// more")).await;
    assert_eq!((second.number, second.parent), (2, 1));
    assert_ne!(second.hash, first.hash);
    let history =
        node.admin().policy_history(proto::PolicyOwner::default()).await.expect("history").into_inner().json;
    let history: Vec<PolicyRevision<PolicyBundle>> = history.iter().map(|j| parse(j)).collect();
    assert_eq!(
        history.iter().map(|r| (r.number, r.generation)).collect::<Vec<_>>(),
        [(2, Some(3)), (1, None)]
    );
    assert!(history.iter().all(|r| r.bundle.is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_are_refused_where_they_would_not_be_enforced() {
    let node = Node::new().start().await;
    let bound = |source: &str| NewAgent { sources: vec![source.parse().expect("source")], ..agent("s") };
    let refused =
        node.admin().create_agent(document(&bound("lo=127.0.0.9,any-mac"))).await.expect_err("none");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let node = Node::kernel().start().await;
    let refused =
        node.admin().create_agent(document(&bound("eth9=10.0.0.9,any-mac"))).await.expect_err("name");
    assert!(refused.message().contains("`eth9` is not an agents' interface"), "{refused}");
    let good = bound("lo=10.0.0.9,any-mac");
    node.admin().create_agent(document(&good)).await.expect("created");
    let again = NewAgent { id: "t".parse().expect("id"), ..good };
    let refused = node.admin().create_agent(document(&again)).await.expect_err("taken");
    assert!(refused.message().contains("bound to agent `default/s`"), "{refused}");
    assert_eq!(status(&node).await.agents, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_get_each_generation_and_their_acknowledgements_show() {
    let node = Node::new().start().await;
    let mut one = node.silent_worker("one").await;
    let mut two = node.silent_worker("two").await;
    assert_eq!((one.next().await.generation, two.next().await.generation), (0, 0));
    let (revision, ()) = tokio::join!(apply(&node, OPEN), async {
        let got: Snapshot = parse(&one.next().await.document);
        assert_eq!(got.policy.map(|p| p.text).as_deref(), Some(OPEN));
        assert_eq!(two.next().await.generation, 1);
        one.requests.send(node::applied(1, "")).await.expect("sent");
        two.requests.send(node::applied(1, "no\u{1b}[31m room")).await.expect("sent");
    });
    // The answer came after both had spoken.
    let after = status(&node).await;
    assert_eq!((revision.generation, after.l7[0].generation), (Some(1), 1));
    assert_eq!(after.l7[1].generation, 0, "what is refused is not applied");
    assert!(
        after.warnings.iter().any(|w| w.contains("`two` stays at generation 0: generation 1: no[31m room"))
    );
    // A worker that doesn't read gets the newest one when it does, and memory doesn't hold the rest;
    // nobody waits for it longer than a bounded time.
    let begun = std::time::Instant::now();
    let texts: Vec<String> = (0..20).map(|n| format!("{OPEN} // {n}")).collect();
    let revisions = futures_util::future::join_all(texts.iter().map(|text| apply(&node, text))).await;
    assert_eq!(revisions.iter().map(|r| r.number).max(), Some(21));
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    let mut seen = 0;
    while one.next().await.generation < 21 {
        seen += 1;
    }
    assert!(seen < 20, "{seen} were kept for it");
    drop(two);
    until("the worker to be gone", async || status(&node).await.l7.len() == 1).await;

    let channel = socket::channel(&node.config.control_socket()).expect("channel");
    let mut rude = clawgress_api::proto::snapshots_client::SnapshotsClient::new(channel);
    let (sender, receiver) = mpsc::channel(1);
    sender.send(WatchRequest { kind: None }).await.expect("sent");
    let refused = rude.watch(ReceiverStream::new(receiver)).await.expect_err("no hello");
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_datapath_gets_the_live_generation_whenever_it_is_there() {
    let node = Node::kernel().start().await;
    create(&node, "a").await;
    assert!(status(&node).await.warnings.iter().any(|w| w.contains("datapath role can't be reached")));
    let script = Arc::new(Script::default());
    let role = script.serve(&node.config);
    until("the first generation", async || script.latest().await.is_some_and(|g| g.generation == 1)).await;
    apply(&node, OPEN).await;
    until("the second", async || script.latest().await.is_some_and(|g| g.generation == 2)).await;
    let is_confirmed = async |number| script.confirmed.load(Ordering::SeqCst) == number;
    until("its word for it", async || is_confirmed(2).await).await;
    let latest = script.latest().await.expect("applied");
    assert!(latest.tables.is_some() && latest.agents.len() == 1);
    let log = status(&node).await;
    assert!(log.warnings.contains(&"not enforced: the weather".to_owned()), "{:?}", log.warnings);

    // The kernel plane's records are kept.
    let mut record = AuditRecord::new(
        "2026-11-22T14:00Z".parse().expect("time"),
        "test",
        RecordKind::Decision,
        Plane::Kernel,
        "k-1".into(),
        2,
    );
    record.destination.host = Some("kernel.example".into());
    script.tell(1, &[record.clone()]).await;
    let query = AuditQuery { destination: Some("kernel.example".into()), ..AuditQuery::default() };
    until("the record", async || records(&node, query.clone()).await == [record.clone()]).await;
    until("its acknowledgement", async || *script.acknowledged.lock().await == [1]).await;
    // One that comes again is acknowledged again, and kept once.
    script.tell(1, &[record.clone()]).await;
    let other = AuditRecord { request: "k-2".into(), ..record.clone() };
    script.tell(2, std::slice::from_ref(&other)).await;
    until("acknowledgements", async || *script.acknowledged.lock().await == [1, 1, 2]).await;
    assert_eq!(records(&node, query).await, [record, other]);

    // It goes away and comes back with nothing.
    role.stop().await;
    script.generation.store(0, Ordering::SeqCst);
    script.applied.lock().await.clear();
    let role = script.serve(&node.config);
    until("the same generation again", async || script.latest().await.is_some_and(|g| g.generation == 2))
        .await;

    // It refuses, which changes nothing but the status, and is asked again.
    *script.refusal.lock().await = Some("no room".into());
    create(&node, "b").await;
    until("its word for what is refused", async || is_confirmed(3).await).await;
    until("the refusal to show", async || {
        let warnings = status(&node).await.warnings;
        warnings.iter().any(|w| w.contains("generation 2, not 3 (it refused generation 3: no room)"))
    })
    .await;
    // For longer than it may be behind: that is critical, in status and in the log, and so is its end told.
    until("that it matters", async || {
        let warnings = status(&node).await.warnings;
        warnings.iter().any(|w| w.starts_with("critical, for ") && w.contains("not 3"))
    })
    .await;
    let told = async || {
        let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
        let told = records(&node, query).await.into_iter();
        let told = told.filter_map(|r| Some((r.severity, r.detail?)));
        told.filter(|(_, detail)| detail.starts_with("the kernel plane ")).collect::<Vec<_>>()
    };
    until("its record", async || {
        told().await.iter().any(|(severity, detail)| {
            severity.as_deref() == Some("critical") && detail.contains("generation 3 within 5 s (it refused")
        })
    })
    .await;
    *script.refusal.lock().await = None;
    until("the third generation", async || script.latest().await.is_some_and(|g| g.generation == 3)).await;
    until("its end", async || told().await.iter().any(|(_, d)| d.contains("took generation 3, after"))).await;
    assert!(!status(&node).await.warnings.iter().any(|w| w.starts_with("critical")));

    // It has pinned a generation that this store has never heard of.
    role.stop().await;
    script.generation.store(77, Ordering::SeqCst);
    let role = script.serve(&node.config);
    until("a number above it", async || script.latest().await.is_some_and(|g| g.generation == 78)).await;
    assert_eq!(status(&node).await.generation, 78);
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_records_are_acknowledged_in_order_once_they_are_on_disk() {
    let node = Node::new().start().await;
    let line = |n: u64| {
        let mut record = AuditRecord::new(
            jiff::Timestamp::now(),
            "test",
            RecordKind::Decision,
            Plane::L7,
            format!("r-{n}"),
            1,
        );
        record.destination.host = Some(format!("h{n}.example"));
        serde_json::to_vec(&record).expect("json")
    };
    let follow = AuditQuery { follow: true, ..AuditQuery::default() };
    let mut tail = node.admin().search_audit(document(&follow)).await.expect("tail").into_inner();
    let (sender, receiver) = mpsc::channel(16);
    let mut acks = node.audit().append(ReceiverStream::new(receiver)).await.expect("append").into_inner();
    for sequence in 1..=10 {
        let records = vec![line(2 * sequence), line(2 * sequence + 1)];
        sender.send(AuditBatch { sequence, records }).await.expect("sent");
    }
    for sequence in 1..=10 {
        assert_eq!(acks.message().await.expect("ack").expect("ack").sequence, sequence);
    }
    let segment = node.config.node.state_dir.join("audit").join(format!("{:020}.jsonl", 0));
    let text = std::fs::read_to_string(segment).expect("segment");
    assert_eq!(text.lines().count(), 20);
    assert_eq!(status(&node).await.audit_records, 20);
    for n in 2..=21 {
        let record: AuditRecord = parse(&tail.message().await.expect("record").expect("record").json);
        assert_eq!(record.request, format!("r-{n}"));
    }
    // What isn't a record ends the stream without an acknowledgement; nothing of the batch is kept.
    sender
        .send(AuditBatch { sequence: 11, records: vec![line(1), b"rubbish".to_vec()] })
        .await
        .expect("sent");
    let refused = acks.message().await.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(status(&node).await.audit_records, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_lives_as_long_as_it_is_held() {
    let mut node = Node::kernel().start().await;
    let script = Arc::new(Script::default());
    let role = script.serve(&node.config);
    create(&node, "other").await;
    create(&node, "a").await;
    let open = async |node: &Node| -> RunSession {
        parse(
            &node
                .admin()
                .open_run(NewRun { name: "a".into(), ..NewRun::default() })
                .await
                .expect("run")
                .into_inner()
                .json,
        )
    };
    let session = open(&node).await;
    let asked = script.workloads.lock().await.get(&1).cloned().expect("workload");
    assert_eq!((asked.agent, asked.name), (2, session.name.clone()));
    let mut worker = node.worker("w").await;
    authenticate(&node, snapshot(&mut worker).await, "a", &session.api_key).await.expect("counts");

    let name = Name { name: session.name.clone() };
    let hold = node.admin().hold_run(name.clone()).await.expect("held").into_inner();
    assert_eq!(node.admin().hold_run(name).await.expect_err("twice").code(), Code::AlreadyExists);
    drop(hold);
    let gone = authenticate(&node, snapshot(&mut worker).await, "a", &session.api_key).await;
    assert_eq!(gone, Err(IdentityError::UnknownKey), "nobody holds it any more");
    until("the cgroup to be removed", async || script.workloads.lock().await.is_empty()).await;

    // One that is open when control ends is closed when it starts again.
    let session = open(&node).await;
    node.stop_control().await;
    node.start_control().await;
    let mut worker = node.worker("w").await;
    let orphan = authenticate(&node, snapshot(&mut worker).await, "a", &session.api_key).await;
    assert_eq!(orphan, Err(IdentityError::UnknownKey));
    until("its cgroup to be removed", async || script.workloads.lock().await.is_empty()).await;

    // Deleting the agent ends its runs; a missing agent and a disabled one get none.
    open(&node).await;
    node.admin().delete_agent(Name { name: "a".into() }).await.expect("deleted");
    until("all to be removed", async || script.workloads.lock().await.is_empty()).await;
    assert_eq!(
        node.admin()
            .open_run(NewRun { name: "a".into(), ..NewRun::default() })
            .await
            .expect_err("none")
            .code(),
        Code::NotFound
    );
    let change = AgentStateChange { id: "other".parse().expect("id"), state: AgentState::Disabled };
    node.admin().set_agent_state(document(&change)).await.expect("disabled");
    let refused = node
        .admin()
        .open_run(NewRun { name: "other".into(), ..NewRun::default() })
        .await
        .expect_err("disabled");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(script.workloads.lock().await.is_empty(), "nothing is left of what was refused");
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_keys_role_no_key_is_made_and_another_secret_is_noticed() {
    let mut node = Node::new().start().await;
    create(&node, "a").await;
    assert!(!status(&node).await.warnings.iter().any(|w| w.contains("keys role")));
    node.stop_keys().await;
    let refused = node.admin().create_agent(document(&agent("b"))).await.expect_err("no key");
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(status(&node).await.agents, 1, "no agent without the key that was asked for");
    let keyless = NewAgent { key: false, ..agent("c") };
    node.admin().create_agent(document(&keyless)).await.expect("needs no key");
    std::fs::remove_dir_all(node.config.node.state_dir.join("keys")).expect("lost");
    let config = Arc::clone(&node.config);
    let keys = node::Role::start(|stop| clawgress_agent::keys::run(config, stop));
    node::until_there(&node.config.keys_socket()).await;
    let warnings = status(&node).await.warnings;
    assert!(warnings.iter().any(|w| w.contains("another secret")), "{warnings:?}");
    keys.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_ends_in_time_whoever_stays_connected() {
    let mut node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    snapshot(&mut worker).await;
    let follow = AuditQuery { follow: true, ..AuditQuery::default() };
    let _tail = node.admin().search_audit(document(&follow)).await.expect("tail");
    let (_sender, receiver) = mpsc::channel(1);
    let _acks = node.audit().append(ReceiverStream::new(receiver)).await.expect("append");
    tokio::time::timeout(PATIENCE / 2, node.stop_control()).await.expect("in time");
    node.stop_keys().await;
}
