//! What planes say of a generation before and after it is one: who can't take it is found out while nobody runs it, what only
//! takes away waits for nobody, and who is behind is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use clawgress_api::proto::{Empty, Snapshot};
use clawgress_api::{
    AgentStateChange, ApiKeyRotation, AppliedPolicy, CreatedAgent, MissingGroups, NewAgent, NewPolicy, Plane,
    PlaneState, Status,
};
use clawgress_identity::{AgentState, ApiKey, PolicyOwner, Source};
use clawgress_policy::PolicyBundle;
use serde_json::json;

use crate::datapath::Script;
use crate::node::{Node, Worker, applied, document, parse, until};

const OPEN: &str = "@id(\"web\") permit (principal, action == Action::\"tls\", resource);\n";
const MORE: &str = "@id(\"more\") permit (principal, action == Action::\"http\", resource);\n";
const LESS: &str =
    "@id(\"less\") forbid (principal, action == Action::\"tls\", resource) when { context.port == 8443 };\n";
/// The key of RFC 8037 appendix A.2.
const KEYS: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

fn policy(text: &str) -> NewPolicy<PolicyBundle> {
    NewPolicy {
        owner: PolicyOwner::default(),
        bundle: PolicyBundle { text: text.into(), ..PolicyBundle::default() },
        message: "because".into(),
        author: "somebody".into(),
        accepted: Vec::new(),
        parent: None,
    }
}

async fn apply(node: &Node, text: &str) -> Result<AppliedPolicy<PolicyBundle>, tonic::Status> {
    let answer = node.admin().apply_policy(document(&policy(text))).await?;
    Ok(parse(&answer.into_inner().json))
}

async fn status(node: &Node) -> Status {
    parse(&node.admin().status(Empty {}).await.expect("status").into_inner().json)
}

fn names(planes: &[PlaneState]) -> Vec<(Plane, Option<&str>)> {
    planes.iter().map(|plane| (plane.plane, plane.instance.as_deref())).collect()
}

/// What the worker is sent next of generations, prepared ones too.
async fn next(worker: &mut Worker) -> Snapshot {
    worker.next().await
}

/// A node with a kernel plane that a script speaks for, which runs the live generation.
async fn node(script: &Arc<Script>) -> (Node, crate::node::Role) {
    let node = Node::kernel().start().await;
    let role = script.serve(&node.config);
    let runs = async || names(&apply(&node, OPEN).await.expect("applied").running) == [(Plane::Kernel, None)];
    until("the kernel plane", runs).await;
    (node, role)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_plane_cannot_take_nobody_runs() {
    let script = Arc::new(Script::default());
    let (node, _role) = node(&script).await;
    let Status { generation: live, revision, .. } = status(&node).await;
    let text = format!("{OPEN}{MORE}");

    // The kernel's tables are too large.
    *script.unprepared.lock().await = Some("the tables need more than 32768 pages".into());
    let applied = script.applied.lock().await.len();
    let refused = apply(&node, &text).await.expect_err("refused").message().to_owned();
    assert!(refused.contains("the kernel plane can't take it: the tables need more"), "{refused}");
    assert!(refused.contains("nothing was changed"), "{refused}");
    *script.unprepared.lock().await = None;

    // A worker can't.
    let (sender, answers) = mpsc::sync_channel::<String>(4);
    let mut worker = node.preparing_worker("w", move |_| answers.try_recv().ok()).await;
    assert_eq!(next(&mut worker).await.generation, live);
    until("its word", async || status(&node).await.l7.iter().any(|w| w.generation == live)).await;
    sender.send("it is not understood".into()).expect("sent");
    let refused = apply(&node, &text).await.expect_err("refused").message().to_owned();
    assert!(refused.contains("L7 worker `w`") && refused.contains("it is not understood"), "{refused}");
    assert_ne!(next(&mut worker).await.prepare, 0);
    assert_eq!(script.applied.lock().await.len(), applied);
    assert_eq!((status(&node).await.generation, status(&node).await.revision), (live, revision));

    // All can: it is committed by its number, and no document is sent twice.
    sender.send(String::new()).expect("sent");
    let before = script.by_name.load(Ordering::SeqCst);
    let made = apply(&node, &text).await.expect("applied");
    let (prepared, committed) = (next(&mut worker).await, next(&mut worker).await);
    assert!(prepared.prepare != 0 && !prepared.document.is_empty());
    assert_eq!((committed.commit, committed.document.len()), (prepared.prepare, 0));
    assert_eq!(Some(committed.generation), made.revision.generation);
    assert_eq!(script.by_name.load(Ordering::SeqCst), before + 1);
    let latest = script.latest().await.expect("applied");
    assert_eq!(Some(latest.generation), made.revision.generation);
    assert_eq!(names(&made.running), [(Plane::Kernel, None), (Plane::L7, Some("w"))]);
    assert_eq!(made.behind, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_takes_away_waits_for_no_plane() {
    let script = Arc::new(Script::default());
    let (node, _role) = node(&script).await;
    let new = NewAgent {
        id: "web".parse().expect("id"),
        team: None,
        project: None,
        environment: None,
        labels: std::collections::BTreeMap::new(),
        sources: vec![],
        key: false,
        missing: MissingGroups::Create,
    };
    node.admin().create_agent(document(&new)).await.expect("created");
    let asked = script.prepared.lock().await.len();

    // Nobody is asked of a forbid more.
    *script.unprepared.lock().await = Some("it is asked".into());
    apply(&node, &format!("{OPEN}{LESS}")).await.expect("applied");
    assert_eq!(script.prepared.lock().await.len(), asked);
    *script.unprepared.lock().await = None;

    // Nor does it wait while another change is prepared.
    script.is_stuck.store(true, Ordering::SeqCst);
    let before = script.prepared.lock().await.len();
    let admin = node.admin();
    let text = format!("{OPEN}{LESS}{MORE}");
    let slow = tokio::spawn(async move {
        let mut admin = admin;
        admin.apply_policy(document(&policy(&text))).await
    });
    until("it to be prepared", async || script.prepared.lock().await.len() > before).await;
    let change = AgentStateChange { id: new.id.clone(), state: AgentState::Disabled };
    node.admin().set_agent_state(document(&change)).await.expect("disabled");
    let disabled = status(&node).await.generation;
    let slow = slow.await.expect("no panic").expect("applied").into_inner();
    let slow: AppliedPolicy<PolicyBundle> = parse(&slow.json);
    assert!(slow.revision.generation > Some(disabled), "{:?} {disabled}", slow.revision.generation);
    // Who has not answered in time is not waited for, and the other change is not lost.
    assert_eq!(names(&slow.running), [(Plane::Kernel, None)]);
    let latest = script.latest().await.expect("applied");
    assert_eq!(latest.agents.first().map(|agent| agent.state), Some(AgentState::Disabled));
}

/// What may take something away is no policy alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_what_else_may_take_away() {
    let script = Arc::new(Script::default());
    let (node, _role) = node(&script).await;
    let new = |value: serde_json::Value| document(&value);
    let create = new(json!({"id": "web", "key": true, "missing": "create"}));
    let created = node.admin().create_agent(create).await.expect("created").into_inner();
    let created: CreatedAgent = parse(&created.json);
    let key = ApiKey::parse(&created.api_key.expect("key")).expect("key").id().to_owned();
    let issuer = |audience: &str| {
        new(json!({
            "id": "idp", "issuer": "https://idp.test", "audiences": [audience], "algorithms": ["EdDSA"],
            "mapping": {"agent": {"from": "sub"}}, "keys": KEYS
        }))
    };
    let place = |text: &str| json!(text.parse::<Source>().expect("source"));
    let places = ["lo=192.0.2.1/32,any-mac", "lo=192.0.2.2/32,any-mac"].map(place);
    node.admin().set_issuer(issuer("gateway")).await.expect("set");
    let source = json!({"id": "nat", "at": places, "may_present": ["web"]});
    node.admin().add_source(new(source)).await.expect("added");
    let (live, asked) = (status(&node).await.generation, script.prepared.lock().await.len());

    *script.unprepared.lock().await = Some("it is asked".into());
    node.admin()
        .set_agent(new(json!({"id": "web", "missing": "create", "team": {"set": "a"}})))
        .await
        .expect("set");
    node.admin().set_issuer(issuer("other")).await.expect("set");
    node.admin().set_source(new(json!({"id": "nat", "at": [places[0]]}))).await.expect("set");
    let rotation = ApiKeyRotation { id: key, overlap_s: 0, expires: None };
    node.admin().rotate_key(document(&rotation)).await.expect("rotated");
    assert_eq!(script.prepared.lock().await.len(), asked);
    assert_eq!(status(&node).await.generation, live + 4);
    // What only gives is asked about, and refused.
    node.admin().set_source(new(json!({"id": "nat", "at": places}))).await.expect_err("refused");
    node.admin().create_agent(new(json!({"id": "b", "missing": "create"}))).await.expect_err("refused");
    assert_eq!(status(&node).await.generation, live + 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_behind_is_told_until_it_denies() {
    let node = Node::configured(|_| "snapshot_stale_s_max = 3\n".into()).start().await;
    apply(&node, OPEN).await.expect("applied");
    let mut silent = node.silent_worker("silent").await;
    let live = silent.next().await.generation;
    silent.requests.send(applied(live, "")).await.expect("told");
    until("its word", async || status(&node).await.l7.iter().any(|w| w.generation == live)).await;

    // It doesn't say that it runs the next.
    let made = apply(&node, &format!("{OPEN}{MORE}")).await.expect("applied");
    assert_eq!(names(&made.behind), [(Plane::L7, Some("silent"))]);
    assert_eq!(made.behind.first().map(|plane| plane.generation), Some(live));
    assert_eq!(made.running, []);

    // It refuses.
    let next = made.revision.generation.expect("live");
    silent.requests.send(applied(next, "a fault")).await.expect("told");
    until("its word", async || status(&node).await.l7.iter().any(|w| w.error.is_some())).await;
    let refuses = apply(&node, OPEN).await.expect("applied");
    let why = refuses.behind.first().and_then(|plane| plane.why.clone()).unwrap_or_default();
    assert!(why.contains("a fault") && why.contains("it denies everything"), "{why}");

    // Its connection breaks, and its process goes on: this one's.
    drop(silent);
    until("it to be lost", async || status(&node).await.l7.is_empty()).await;
    let lost = apply(&node, &format!("{OPEN}{LESS}")).await.expect("applied");
    assert_eq!(names(&lost.behind), [(Plane::L7, Some("silent"))]);
    let why = lost.behind.first().and_then(|plane| plane.why.clone()).unwrap_or_default();
    assert!(why.contains("its connection broke"), "{why}");
    let told = async || status(&node).await.warnings.iter().any(|w| w.contains("its connection broke"));
    until("its snapshot to be stale", async || !told().await).await;
    assert_eq!(apply(&node, OPEN).await.expect("applied").behind, []);
}

/// Who was connected before control ended may decide by what it had, also where it does not come back: that is told, until it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_there_before_a_restart_is_told_of() {
    let mut node = Node::configured(|_| "snapshot_stale_s_max = 600\n".into()).start().await;
    apply(&node, OPEN).await.expect("applied");
    let mut silent = node.silent_worker("silent").await;
    let live = silent.next().await.generation;
    silent.requests.send(applied(live, "")).await.expect("told");
    until("its word", async || status(&node).await.l7.iter().any(|w| w.generation == live)).await;
    node.stop_control().await;
    drop(silent);
    node.start_control().await;

    let made = apply(&node, &format!("{OPEN}{LESS}")).await.expect("applied");
    assert_eq!(names(&made.behind), [(Plane::L7, Some("silent"))]);
    assert_eq!(made.behind.first().map(|plane| plane.generation), Some(live));
    let told = async || status(&node).await.warnings.iter().any(|w| w.contains("its connection broke"));
    assert!(told().await);
    let mut back = node.silent_worker("silent").await;
    let next = back.next().await.generation;
    back.requests.send(applied(next, "")).await.expect("told");
    until("it to be back", async || !told().await && status(&node).await.l7.len() == 1).await;
}

/// An older datapath role takes no word of what is live, and is governed all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_datapath_role_is_governed() {
    let script = Arc::new(Script::default());
    script.is_older.store(true, Ordering::SeqCst);
    let (node, _role) = node(&script).await;
    until("a word", async || script.confirms.load(Ordering::SeqCst) > 0).await;
    for text in [format!("{OPEN}{MORE}"), OPEN.to_owned(), format!("{OPEN}{MORE}")] {
        assert_eq!(names(&apply(&node, &text).await.expect("applied").running), [(Plane::Kernel, None)]);
    }
    assert_eq!(script.quarantined.lock().await.len(), 1, "one session");
    assert_eq!(script.confirms.load(Ordering::SeqCst), 1);
}

/// What the kernel plane says of a generation is no answer to the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_says_nothing_of_what_came_after() {
    let script = Arc::new(Script::default());
    let (node, _role) = node(&script).await;
    *script.refusal.lock().await = Some("no room".into());
    let refused = apply(&node, &format!("{OPEN}{MORE}")).await.expect("applied");
    let why = refused.behind.first().and_then(|plane| plane.why.clone()).unwrap_or_default();
    assert!(why.contains("no room") && why.contains("until its lease is over"), "{why}");
    *script.refusal.lock().await = None;
    let next = apply(&node, OPEN).await.expect("applied");
    assert_eq!((names(&next.running), next.behind), (vec![(Plane::Kernel, None)], vec![]));
}
