//! Quarantine as control does it: durable, recorded, outside generations, told to both planes at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use clawgress_api::proto::{Empty, Name, NewRun, Snapshot};
use clawgress_api::{
    AgentStateChange, AuditQuery, AuditRecord, MissingGroups, NewAgent, NewQuarantine, Quarantine, RecordKind,
};
use clawgress_identity::{Agent, AgentState};
use tonic::Code;

use crate::datapath::Script;
use crate::node::{Node, Worker, document, parse, until};

async fn create(node: &Node, name: &str) -> Agent {
    let new = NewAgent {
        id: name.parse().expect("id"),
        team: None,
        project: None,
        environment: None,
        labels: BTreeMap::new(),
        sources: vec![],
        key: false,
        missing: MissingGroups::Create,
    };
    let answer = node.admin().create_agent(document(&new)).await.expect("created");
    parse::<clawgress_api::CreatedAgent>(&answer.into_inner().json).agent
}

fn new(name: &str, seconds: Option<u64>) -> NewQuarantine {
    NewQuarantine { id: name.parse().expect("id"), seconds, reason: Some("leaked a key".into()) }
}

async fn quarantine(node: &Node, new: &NewQuarantine) -> Quarantine {
    parse(&node.admin().quarantine_agent(document(new)).await.expect("quarantined").into_inner().json)
}

async fn state(node: &Node, name: &str) -> AgentState {
    let shown = node.admin().show_agent(Name { name: name.into() }).await.expect("shown").into_inner();
    parse::<Agent>(&shown.json).state
}

/// The next message that says who is quarantined and nothing else.
async fn isolated(worker: &mut Worker) -> Snapshot {
    loop {
        let next = worker.next().await;
        if next.document.is_empty() {
            return next;
        }
    }
}

/// What the audit log says of changes that have to do with quarantine.
async fn changes(node: &Node) -> Vec<String> {
    let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
    let mut found = node.admin().search_audit(document(&query)).await.expect("audit").into_inner();
    let mut changes = Vec::new();
    while let Some(line) = found.message().await.expect("record") {
        changes.extend(parse::<AuditRecord>(&line.json).detail);
    }
    changes.retain(|c| c.contains("quarantined"));
    changes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_planes_learn_it_at_once_and_outside_generations() {
    let mut node = Node::kernel().start().await;
    let script = Arc::new(Script::default());
    let role = script.serve(&node.config);
    let mut worker = node.worker("w").await;
    let agent = create(&node, "a").await;
    create(&node, "b").await;
    until("the generation", async || script.latest().await.is_some_and(|g| g.generation == 2)).await;

    // A generation that the datapath doesn't take holds nothing up.
    *script.refusal.lock().await = Some("no room".into());
    create(&node, "c").await;
    let entry = quarantine(&node, &new("a", None)).await;
    assert_eq!((entry.index, entry.until, entry.by.as_str()), (agent.index, None, "root"));
    let told = script.quarantined.lock().await.last().cloned().expect("told");
    assert_eq!(told.0, [agent.index], "the answer comes when it is in force");
    let message = isolated(&mut worker).await;
    assert_eq!((message.generation, message.quarantined), (3, vec![agent.index]));
    *script.refusal.lock().await = None;
    assert_eq!(
        (state(&node, "a").await, state(&node, "b").await),
        (AgentState::Quarantined, AgentState::Active)
    );
    let refused = node
        .admin()
        .open_run(NewRun { name: "a".into(), ..NewRun::default() })
        .await
        .expect_err("nothing of it runs");
    assert!(refused.message().contains("quarantined; release it"), "{}", refused.message());

    // It survives a restart, and is told before any generation.
    node.stop_control().await;
    role.stop().await;
    let script = Arc::new(Script::default());
    let role = script.serve(&node.config);
    node.start_control().await;
    until("the generation again", async || script.latest().await.is_some()).await;
    assert_eq!(script.quarantined.lock().await[0], (vec![agent.index], 0));
    let mut worker = node.worker("w").await;
    assert_eq!(worker.next().await.quarantined, [agent.index], "with the first snapshot");
    assert_eq!(state(&node, "a").await, AgentState::Quarantined);

    let released =
        node.admin().release_agent(Name { name: "a".into() }).await.expect("released").into_inner();
    assert_eq!(parse::<Agent>(&released.json).state, AgentState::Active);
    assert_eq!(script.quarantined.lock().await.last().expect("told").0, [0_u32; 0]);
    assert_eq!(isolated(&mut worker).await.quarantined, [0_u32; 0]);
    let again = node.admin().release_agent(Name { name: "a".into() }).await.expect_err("it is free");
    assert_eq!(again.code(), Code::NotFound);
    let log = changes(&node).await;
    assert_eq!(log.len(), 2, "{log:#?}");
    let by = "until released (leaked a key) by root";
    assert!(
        log[0].starts_with("agent `default/a` set from not quarantined to quarantined since "),
        "{}",
        log[0]
    );
    assert!(log[0].ends_with(by), "{}", log[0]);
    assert!(log[1].starts_with("agent `default/a` released by root: was quarantined since "), "{}", log[1]);
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_when_its_time_is_over() {
    let node = Node::new().start().await;
    create(&node, "a").await;
    let mut worker = node.worker("w").await;
    let entry = quarantine(&node, &new("a", Some(1))).await;
    assert!(entry.until > Some(entry.since));
    assert_eq!(isolated(&mut worker).await.quarantined, [1]);
    assert_eq!(isolated(&mut worker).await.quarantined, [0_u32; 0], "without anybody doing anything");
    until("its record", async || changes(&node).await.len() == 2).await;
    assert!(changes(&node).await[1].starts_with("agent `default/a` released by the end of its time"));
    // Given again it is given anew: longer, or without an end.
    quarantine(&node, &new("a", Some(3600))).await;
    assert_eq!(quarantine(&node, &new("a", None)).await.until, None);
    let all = node.admin().list_quarantines(Empty {}).await.expect("list").into_inner().json;
    assert_eq!(all.len(), 1);
    assert_eq!(parse::<Quarantine>(&all[0]).until, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_an_agents_own_and_apart_from_its_state() {
    let node = Node::new().start().await;
    create(&node, "a").await;
    quarantine(&node, &new("a", None)).await;
    let change = |state| AgentStateChange { id: "a".parse().expect("id"), state };
    let disabled = node.admin().set_agent_state(document(&change(AgentState::Disabled))).await.expect("set");
    assert_eq!(parse::<Agent>(&disabled.into_inner().json).state, AgentState::Quarantined);
    let released = node.admin().release_agent(Name { name: "a".into() }).await.expect("released");
    assert_eq!(parse::<Agent>(&released.into_inner().json).state, AgentState::Disabled);
    let state_change = document(&change(AgentState::Quarantined));
    let refused = node.admin().set_agent_state(state_change).await.expect_err("it is no state to set");
    assert!(refused.message().contains("agent quarantine"), "{}", refused.message());

    // Whoever gets the name next is somebody else.
    quarantine(&node, &new("a", None)).await;
    node.admin().delete_agent(Name { name: "a".into() }).await.expect("deleted");
    create(&node, "a").await;
    assert_eq!(state(&node, "a").await, AgentState::Active);
    // No plane has said yet that it knows the former one no more: it stays in the list, by its number.
    let free = node.admin().release_agent(Name { name: "a".into() }).await.expect_err("it is free");
    assert_eq!(free.code(), Code::NotFound);
    node.admin().release_agent(Name { name: "a#1".into() }).await.expect("the former one");
    assert!(node.admin().list_quarantines(Empty {}).await.expect("list").into_inner().json.is_empty());

    for (bad, code) in [
        (new("nobody", None), Code::NotFound),
        (new("a", Some(0)), Code::InvalidArgument),
        (new("a", Some(u64::MAX)), Code::InvalidArgument),
        (NewQuarantine { reason: Some("x\u{1b}[2J".into()), ..new("a", None) }, Code::InvalidArgument),
        (NewQuarantine { reason: Some("x".repeat(1025)), ..new("a", None) }, Code::InvalidArgument),
    ] {
        let refused = node.admin().quarantine_agent(document(&bad)).await.expect_err("refused");
        assert_eq!(refused.code(), code, "{bad:?}: {}", refused.message());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_changes_mix_no_generation_comes_without_its_document() {
    let node = Node::new().start().await;
    create(&node, "a").await;
    let mut worker = node.worker("w").await;
    let generations = async {
        for n in 0..40 {
            create(&node, &format!("b{n}")).await;
        }
    };
    let quarantines = async {
        for n in 0..40 {
            quarantine(&node, &new("a", Some(3600 + n))).await;
        }
    };
    tokio::join!(generations, quarantines);
    let mut whole = 0;
    while whole < 41 {
        let next = worker.next().await;
        if next.document.is_empty() {
            assert_eq!(next.generation, whole, "it has that one");
        } else {
            assert!(next.generation > whole, "nothing comes twice");
            whole = next.generation;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_agent_is_let_out_of_no_plane_that_still_knows_it() {
    let node = Node::kernel().start().await;
    let script = Arc::new(Script::default());
    let role = script.serve(&node.config);
    for name in ["a", "b"] {
        create(&node, name).await;
        quarantine(&node, &new(name, None)).await;
    }
    until("the generation", async || script.latest().await.is_some_and(|g| g.generation == 2)).await;
    let told = async || script.quarantined.lock().await.last().cloned().expect("told").0;
    node.admin().delete_agent(Name { name: "a".into() }).await.expect("deleted");
    until("its end", async || told().await == [2]).await;
    *script.refusal.lock().await = Some("no room".into());
    node.admin().delete_agent(Name { name: "b".into() }).await.expect("deleted");
    assert_eq!(told().await, [2], "the plane still runs a generation that knows it");
    let listed = node.admin().list_quarantines(Empty {}).await.expect("list").into_inner().json;
    let listed: Vec<Quarantine> = listed.iter().map(|json| parse(json)).collect();
    assert_eq!(
        listed.iter().map(|q| (q.agent.to_string(), q.index)).collect::<Vec<_>>(),
        [("default/b".to_owned(), 2)]
    );

    // Nobody is told but by an administrator's word, by its name or its number.
    for (name, code) in [("b#3", Code::NotFound), ("b#x", Code::InvalidArgument), ("c", Code::NotFound)] {
        let refused = node.admin().release_agent(Name { name: name.into() }).await.expect_err(name);
        assert_eq!(refused.code(), code, "{name}: {refused}");
    }
    let released = node.admin().release_agent(Name { name: "b".into() }).await.expect("released");
    let released: Option<Agent> = parse(&released.into_inner().json);
    assert_eq!(released, None, "it is no more");
    until("its release", async || told().await.is_empty()).await;
    assert!(node.admin().list_quarantines(Empty {}).await.expect("list").into_inner().json.is_empty());
    let log = changes(&node).await;
    assert!(
        log.iter().any(|d| d.starts_with("agent `default/a` released by its deletion by root")),
        "{log:?}"
    );
    role.stop().await;
}
