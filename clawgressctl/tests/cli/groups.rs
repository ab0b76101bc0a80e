//! The verbs on groups and on agents in them.

use clawgress_api::identity::GroupKind;
use clawgress_api::{ChangedAgent, CreatedAgent, GroupInfo, GroupRef};

use super::node::{Node, parse};
use super::{check, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_and_agents_in_them() {
    let node = Node::new().start().await;
    let config = &node.config;
    check(&run(config, &["tenant", "list"]).await, 0, "default", "");
    check(&run(config, &["team", "list"]).await, 0, "clawgressctl team create NAME", "");
    check(&run(config, &["team", "create", "acme/red"]).await, 1, "", "clawgressctl tenant create acme");
    check(&run(config, &["tenant", "create", "acme", "--owner", "ann"]).await, 0, "owner        ann", "");
    for kind in ["team", "project", "environment"] {
        let created = run(config, &[kind, "create", "acme/red", "--label", "k=v"]).await;
        check(&created, 0, &format!("{kind:<12} acme/red"), "");
        check(&created, 0, "labels       k=v", "");
        check(&run(config, &[kind, "list"]).await, 0, "acme/red", "");
    }
    check(&run(config, &["team", "create", "acme/red"]).await, 1, "", "there is a team `acme/red` already");
    check(&run(config, &["tenant", "create", "a/b"]).await, 2, "", "is not an id");
    check(&run(config, &["team", "create", "R d"]).await, 2, "", "is not an id");
    check(&run(config, &["team", "create", "red", "--label", "k"]).await, 2, "", "write KEY=VALUE");

    let set =
        run(config, &["-o", "json", "team", "set", "acme/red", "--owner", "bob", "--no-label", "k"]).await;
    let set: GroupInfo = parse(&set.stdout);
    assert_eq!((set.kind, set.id.as_str(), set.agents), (GroupKind::Team, "acme/red", 0));
    assert_eq!(set.labels.into_iter().collect::<Vec<_>>(), [("owner".to_owned(), "bob".to_owned())]);
    check(&run(config, &["team", "set", "acme/red", "--no-owner"]).await, 0, "owner        -", "");

    let unknown = ["agent", "create", "acme/web", "--team", "blue", "--existing"];
    check(&run(config, &unknown).await, 1, "", "there is no team `acme/blue`");
    let created = run(config, &["agent", "create", "acme/web", "--team", "red", "--owner", "ann"]).await;
    check(&created, 0, "agent `acme/web` is created", "");
    assert!(!String::from_utf8_lossy(&created.stdout).contains("is new"));
    let created = run(config, &["agent", "create", "web", "--team", "blue"]).await;
    check(&created, 0, "team `default/blue` is new, and registered with it", "");
    let created: CreatedAgent =
        parse(&run(config, &["agent", "create", "late", "--environment", "prod", "-o", "json"]).await.stdout);
    let prod = GroupRef { kind: GroupKind::Environment, id: "default/prod".into() };
    assert_eq!(created.registered, [prod]);
    check(&run(config, &["agent", "show", "acme/web"]).await, 0, "owner        ann", "");

    let moved =
        ["agent", "set", "acme/web", "--no-team", "--project", "red", "--label", "role=web", "--no-owner"];
    let moved = run(config, &moved).await;
    check(&moved, 0, "team         -", "");
    check(&moved, 0, "project      red", "");
    check(&moved, 0, "labels       role=web", "");
    check(&run(config, &["agent", "set", "web", "--team", "green"]).await, 1, "", "no team `default/green`");
    let moved =
        run(config, &["-o", "json", "agent", "set", "web", "--team", "green", "--create-missing"]).await;
    let moved: ChangedAgent = parse(&moved.stdout);
    assert_eq!((moved.agent.team.as_deref(), moved.registered.len()), (Some("green"), 1));
    check(&run(config, &["agent", "set", "web", "--team", "a", "--no-team"]).await, 2, "", "--no-team");

    check(&run(config, &["project", "delete", "acme/red"]).await, 1, "", "in use by agent `acme/web`");
    check(&run(config, &["team", "delete", "acme/red"]).await, 0, "team `acme/red` is deleted", "");
    let deleted = run(config, &["-o", "json", "environment", "delete", "acme/red"]).await;
    check(&deleted, 0, "\"kind\": \"environment\"", "");
    check(&run(config, &["tenant", "delete", "default"]).await, 1, "", "is there always");
    check(&run(config, &["completion", "bash"]).await, 0, "clawgressctl__subcmd__environment,set)", "");
}
