//! Shared sources as control does them: checked, durable, recorded, and in every generation of both planes.

use std::collections::BTreeMap;
use std::sync::Arc;

use clawgress_api::proto::{Empty, Name};
use clawgress_api::{
    AuditQuery, AuditRecord, MissingGroups, NewAgent, RecordKind, SharedSourceChange, Status,
};
use clawgress_identity::SharedSource;
use clawgress_policy::PolicyBundle;
use tonic::Code;

use crate::datapath::Script;
use crate::node::{Node, Worker, document, parse, until};

type Snapshot = clawgress_api::Snapshot<PolicyBundle>;

fn agent(name: &str, sources: &[&str]) -> NewAgent {
    NewAgent {
        id: name.parse().expect("id"),
        team: None,
        project: None,
        environment: None,
        labels: BTreeMap::new(),
        sources: sources.iter().map(|s| s.parse().expect("source")).collect(),
        key: true,
        missing: MissingGroups::Create,
    }
}

async fn create(node: &Node, name: &str, sources: &[&str]) {
    node.admin().create_agent(document(&agent(name, sources))).await.expect("created");
}

async fn status(node: &Node) -> Status {
    parse(&node.admin().status(Empty {}).await.expect("status").into_inner().json)
}

async fn snapshot(worker: &mut Worker) -> Snapshot {
    parse(&worker.next().await.document)
}

/// What the audit log says of changes.
async fn changes(node: &Node) -> Vec<String> {
    let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
    let mut found = node.admin().search_audit(document(&query)).await.expect("audit").into_inner();
    let mut changes = Vec::new();
    while let Some(line) = found.message().await.expect("record") {
        changes.extend(parse::<AuditRecord>(&line.json).detail);
    }
    changes
}

fn shared(name: &str, at: &[&str], agents: &[&str]) -> SharedSource {
    SharedSource {
        id: name.parse().expect("id"),
        at: at.iter().map(|s| s.parse().expect("source")).collect(),
        may_present: agents.iter().map(|a| a.parse().expect("id")).collect(),
    }
}

/// It moves to other places, one of which it has; the kernel plane follows, and the former ones are free. At last it is
/// back.
async fn move_it(node: &Node, worker: &mut Worker, script: &Script, nat: &SharedSource) {
    let places = ["lo=10.0.0.0/28,02:00:00:00:00:01", "lo=10.9.0.0/28,any-mac"];
    let moved = |at: &[&str]| SharedSourceChange {
        id: nat.id.clone(),
        may_present: None,
        at: Some(shared("nat", at, &[]).at),
    };
    let set = node.admin().set_source(document(&moved(&places))).await.expect("set").into_inner();
    let set: SharedSource = parse(&set.json);
    assert_eq!(set, shared("nat", &places, &["a", "c"]));
    assert_eq!(snapshot(worker).await.shared, std::slice::from_ref(&set));
    until("the kernel plane to follow", async || {
        script.latest().await.is_some_and(|g| g.shared == [set.clone()])
    })
    .await;
    for (at, said) in [
        (&[][..], "at least one place"),
        (&["eth9=10.9.0.0/28,any-mac"], "is not an agents'"),
        (&[places[1], places[1]], "is given twice"),
    ] {
        let refused = node.admin().set_source(document(&moved(at))).await.expect_err(said);
        assert!(refused.message().contains(said), "{refused}");
    }
    let other = shared("other", &["lo=fd00::/64,any-mac"], &["c"]);
    node.admin().add_source(document(&other)).await.expect("the former place is free");
    let taken =
        node.admin().set_source(document(&moved(&["lo=fd00::/64,any-mac"]))).await.expect_err("taken");
    assert!(taken.message().contains("bound to shared source `default/other`"), "{taken}");
    node.admin().remove_source(Name { name: "other".into() }).await.expect("removed");
    let nat_places = ["lo=10.0.0.0/28,02:00:00:00:00:01", "lo=fd00::/64,any-mac"];
    node.admin().set_source(document(&moved(&nat_places))).await.expect("back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_sources_go_to_both_planes_with_each_generation() {
    let mut node = Node::kernel().start().await;
    let script = Arc::new(Script::default());
    let role = script.serve(&node.config);
    for name in ["a", "acme/b", "c"] {
        create(&node, name, &[]).await;
    }
    let mut worker = node.worker("w").await;
    assert_eq!(snapshot(&mut worker).await.shared, []);
    let nat = shared("nat", &["lo=10.0.0.0/28,02:00:00:00:00:01", "lo=fd00::/64,any-mac"], &["a", "acme/b"]);
    let added = node.admin().add_source(document(&nat)).await.expect("added").into_inner();
    assert_eq!(parse::<SharedSource>(&added.json), nat);
    let after = snapshot(&mut worker).await;
    assert_eq!((after.generation, after.shared), (4, vec![nat.clone()]));
    until("the kernel plane to have it", async || {
        script.latest().await.is_some_and(|g| g.generation == 4 && g.shared == [nat.clone()])
    })
    .await;

    // It is kept, and a change of nothing is no change.
    node.stop_control().await;
    node.start_control().await;
    let mut worker = node.worker("w").await;
    assert_eq!(snapshot(&mut worker).await.shared, std::slice::from_ref(&nat));
    let change = |agents: &[&str]| SharedSourceChange {
        id: nat.id.clone(),
        may_present: Some(shared("nat", &[], agents).may_present),
        at: None,
    };
    node.admin().set_source(document(&change(&["acme/b", "a"]))).await.expect("the same");
    assert_eq!(status(&node).await.generation, 4);
    let set = node.admin().set_source(document(&change(&["a", "c"]))).await.expect("set").into_inner();
    let set: SharedSource = parse(&set.json);
    assert_eq!(snapshot(&mut worker).await.shared, std::slice::from_ref(&set));
    assert_eq!(set, SharedSource { may_present: shared("nat", &[], &["a", "c"]).may_present, ..nat.clone() });

    move_it(&node, &mut worker, &script, &nat).await;

    // Who is deleted is presented no more, and neither is another of the name.
    node.admin().delete_agent(Name { name: "a".into() }).await.expect("deleted");
    create(&node, "a", &[]).await;
    node.admin().delete_agent(Name { name: "c".into() }).await.expect("deleted");
    let last = loop {
        let snapshot = snapshot(&mut worker).await;
        if snapshot.generation == 12 {
            break snapshot;
        }
    };
    assert_eq!(
        last.shared,
        [shared("nat", &["lo=10.0.0.0/28,02:00:00:00:00:01", "lo=fd00::/64,any-mac"], &[])]
    );
    node.admin().remove_source(Name { name: "nat".into() }).await.expect("removed");
    assert_eq!(snapshot(&mut worker).await.shared, []);
    let log = changes(&node).await;
    for said in [
        "shared source added by root: is {\"id\":\"default/nat\"",
        "shared source `default/nat` may present [\"default/a\",\"default/c\"] instead of [\"acme/b\",\"default/a\"], by root",
        "shared source `default/nat` is at [",
        "; no longer named by `default/nat`",
        "shared source removed by root: was {\"id\":\"default/nat\"",
    ] {
        assert!(log.iter().any(|d| d.contains(said)), "`{said}`: {log:#?}");
    }
    assert_eq!(log.len(), 13, "{log:#?}");
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_sources_are_refused_where_they_would_not_be_enforced_or_are_taken() {
    let node = Node::new().start().await;
    create(&node, "a", &[]).await;
    let refused = node.admin().add_source(document(&shared("n", &["lo=127.0.0.9,any-mac"], &["a"]))).await;
    assert_eq!(refused.expect_err("nothing would enforce it").code(), Code::FailedPrecondition);
    let node = Node::kernel().start().await;
    create(&node, "a", &["lo=10.0.0.9,any-mac"]).await;
    let many: Vec<String> = (0..=256).map(|n| format!("a{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let places: Vec<String> = (0..=64).map(|n| format!("lo=10.1.0.{n},any-mac")).collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    for (new, code, said) in [
        (shared("n", &[], &["a"]), Code::InvalidArgument, "at least one place"),
        (shared("n", &["lo=10.1.0.0/24,any-mac"], &[]), Code::InvalidArgument, "at least one agent"),
        (shared("n", &["lo=10.1.0.0/24,any-mac"], &["a", "b"]), Code::NotFound, "no agent `default/b`"),
        (shared("n", &["lo=10.1.0.0/24,any-mac"], &many), Code::ResourceExhausted, "at most 256 agents"),
        (shared("n", &places, &["a"]), Code::ResourceExhausted, "at most 64 sources"),
        (
            shared("n", &["eth9=10.1.0.0/24,any-mac"], &["a"]),
            Code::InvalidArgument,
            "`eth9` is not an agents'",
        ),
        (shared("n", &["lo=10.0.0.9,any-mac"], &["a"]), Code::AlreadyExists, "bound to agent `default/a`"),
        (
            shared("n", &["lo=10.1.0.0/24,any-mac", "lo=10.1.0.0/24,02:00:00:00:00:01"], &["a"]),
            Code::InvalidArgument,
            "is given twice",
        ),
    ] {
        let refused = node.admin().add_source(document(&new)).await.expect_err(said);
        assert!(refused.code() == code && refused.message().contains(said), "{said}: {refused}");
    }
    assert_eq!(status(&node).await.generation, 1, "nothing was changed");
    // One within another is none of these.
    for (name, place) in [("n", "lo=10.0.0.0/28,any-mac"), ("m", "lo=10.0.0.0/29,any-mac")] {
        node.admin().add_source(document(&shared(name, &[place], &["a"]))).await.expect("added");
    }
    let again = node.admin().add_source(document(&shared("o", &["lo=10.0.0.0/29,any-mac"], &["a"]))).await;
    let again = again.expect_err("taken");
    assert!(again.message().contains("bound to shared source `default/m`"), "{again}");
    let bound = agent("d", &["lo=10.0.0.0/28,any-mac"]);
    let taken = node.admin().create_agent(document(&bound)).await.expect_err("taken");
    assert!(taken.message().contains("bound to shared source `default/n`"), "{taken}");
}
