//! The registry as control does it: groups and agents that only name what is there, changed under audit.

use std::collections::{BTreeMap, BTreeSet};

use clawgress_agent::control::store::{RedbStore, StateStore as _, Transaction, Write};
use clawgress_api::proto::{Empty, Name};
use clawgress_api::{
    AgentChange, AuditQuery, AuditRecord, ChangedAgent, CreatedAgent, Edit, GroupChange, GroupInfo, GroupRef,
    LabelChange, MissingGroups, NewAgent, NewGroup, RecordKind,
};
use clawgress_identity::{Agent, GroupKind, IssuerRecord};
use clawgress_policy::PolicyBundle;
use tonic::{Code, Status};

use crate::node::{Node, document, parse};

type Snapshot = clawgress_api::Snapshot<PolicyBundle>;

fn group(kind: GroupKind, id: &str) -> GroupRef {
    GroupRef { kind, id: id.to_owned() }
}

fn map(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn create_group(
    node: &Node,
    kind: GroupKind,
    id: &str,
    labels: &[(&str, &str)],
) -> Result<GroupInfo, Status> {
    let new = NewGroup { group: group(kind, id), labels: map(labels) };
    node.admin().create_group(document(&new)).await.map(|answer| parse(&answer.into_inner().json))
}

async fn set_group(node: &Node, kind: GroupKind, id: &str, labels: LabelChange) -> Result<GroupInfo, Status> {
    let change = GroupChange { group: group(kind, id), labels };
    node.admin().set_group(document(&change)).await.map(|answer| parse(&answer.into_inner().json))
}

async fn delete_group(node: &Node, kind: GroupKind, id: &str) -> Result<(), Status> {
    node.admin().delete_group(document(&group(kind, id))).await.map(drop)
}

/// Groups of a kind, and how many agents are in each.
async fn groups(node: &Node, kind: GroupKind) -> Vec<(String, u64)> {
    let listed = node.admin().list_groups(Name { name: kind.name().into() }).await.expect("listed");
    let listed = listed.into_inner().json.iter().map(|json| parse::<GroupInfo>(json)).collect::<Vec<_>>();
    listed.into_iter().map(|group| (group.id, group.agents)).collect()
}

fn new_agent(id: &str, team: Option<&str>, missing: MissingGroups) -> NewAgent {
    let new = serde_json::json!({"id": id, "key": false, "team": team, "missing": missing});
    serde_json::from_value(new).expect("agent")
}

async fn create(node: &Node, new: &NewAgent) -> Result<CreatedAgent, Status> {
    node.admin().create_agent(document(new)).await.map(|answer| parse(&answer.into_inner().json))
}

fn change(id: &str) -> AgentChange {
    AgentChange {
        id: id.parse().expect("id"),
        team: Edit::Keep,
        project: Edit::Keep,
        environment: Edit::Keep,
        labels: LabelChange::default(),
        missing: MissingGroups::Refuse,
    }
}

async fn set(node: &Node, change: &AgentChange) -> Result<ChangedAgent, Status> {
    node.admin().set_agent(document(change)).await.map(|answer| parse(&answer.into_inner().json))
}

async fn log(node: &Node) -> Vec<String> {
    let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
    let mut stream = node.admin().search_audit(document(&query)).await.expect("search").into_inner();
    let mut log = Vec::new();
    while let Some(document) = stream.message().await.expect("record") {
        log.push(parse::<AuditRecord>(&document.json).detail.expect("detail"));
    }
    log
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, said: &str) {
    let status = answer.expect_err("refused");
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(said), "`{said}`: {status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_live_as_long_as_something_is_in_them() {
    use GroupKind::{Environment, Project, Team, Tenant};
    let node = Node::new().start().await;
    assert_eq!(groups(&node, Tenant).await, [("default".to_owned(), 0)]);
    refused(
        create_group(&node, Team, "acme/payments", &[]).await,
        Code::NotFound,
        "`clawgressctl tenant create acme`",
    );
    let acme = create_group(&node, Tenant, "acme", &[("owner", "ann")]).await.expect("created");
    assert!(acme.created.is_some() && acme.labels == map(&[("owner", "ann")]), "{acme:?}");
    for kind in [Team, Project, Environment] {
        create_group(&node, kind, "acme/payments", &[]).await.expect("a name of its own in each kind");
        refused(create_group(&node, kind, "acme/payments", &[]).await, Code::AlreadyExists, kind.name());
    }
    refused(create_group(&node, Tenant, "acme", &[]).await, Code::AlreadyExists, "`acme`");
    refused(create_group(&node, Tenant, "a/b", &[]).await, Code::InvalidArgument, "is not an id");
    let many: Vec<(String, String)> = (0..65).map(|n| (n.to_string(), String::new())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    refused(create_group(&node, Team, "x", &many).await, Code::ResourceExhausted, "64 labels");
    refused(
        create_group(&node, Team, "x", &[("a", "\n")]).await,
        Code::InvalidArgument,
        "control characters",
    );

    let relabel = LabelChange { removed: BTreeSet::from(["owner".into()]), set: map(&[("tier", "1")]) };
    let set = set_group(&node, Tenant, "acme", relabel.clone()).await.expect("set");
    assert_eq!(set.labels, map(&[("tier", "1")]));
    refused(set_group(&node, Team, "nobody", relabel).await, Code::NotFound, "clawgressctl team list");

    create(&node, &new_agent("acme/web", Some("payments"), MissingGroups::Refuse)).await.expect("created");
    assert_eq!(groups(&node, Team).await, [("acme/payments".to_owned(), 1)]);
    refused(
        delete_group(&node, Team, "acme/payments").await,
        Code::FailedPrecondition,
        "in use by agent `acme/web`; move or delete",
    );
    refused(
        delete_group(&node, Tenant, "acme").await,
        Code::FailedPrecondition,
        "agent `acme/web`, team `acme/payments`, project `acme/payments` and 1 more",
    );
    refused(delete_group(&node, Tenant, "default").await, Code::FailedPrecondition, "is there always");
    node.admin().delete_agent(Name { name: "acme/web".into() }).await.expect("deleted");
    for (kind, id) in [
        (Team, "acme/payments"),
        (Project, "acme/payments"),
        (Environment, "acme/payments"),
        (Tenant, "acme"),
    ] {
        delete_group(&node, kind, id).await.expect("nothing is in it");
        refused(delete_group(&node, kind, id).await, Code::NotFound, kind.name());
    }
    assert_eq!(groups(&node, Tenant).await, [("default".to_owned(), 0)]);
    let log = log(&node).await;
    for said in [
        r#"tenant created by root: is {"kind":"tenant","id":"acme","labels":{"owner":"ann"}"#,
        r#"tenant set by root: is {"kind":"tenant","id":"acme","labels":{"tier":"1"}"#,
        r#", was {"kind":"tenant","id":"acme","labels":{"owner":"ann"}"#,
        r#"team deleted by root: was {"kind":"team","id":"acme/payments""#,
    ] {
        assert!(log.iter().any(|detail| detail.contains(said)), "`{said}`: {log:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_name_only_what_is_there() {
    use GroupKind::{Environment, Project, Team, Tenant};
    let node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    let typo = new_agent("acme/web", Some("payments"), MissingGroups::Refuse);
    refused(create(&node, &typo).await, Code::NotFound, "there is no tenant `acme`");
    assert_eq!(groups(&node, Tenant).await.len(), 1, "what is refused registers nothing");
    let created = create(&node, &NewAgent { missing: MissingGroups::Create, ..typo }).await.expect("created");
    assert_eq!(created.registered, [group(Tenant, "acme"), group(Team, "acme/payments")]);
    let again = create(&node, &new_agent("acme/bot", Some("payments"), MissingGroups::Refuse)).await;
    assert_eq!(again.expect("created").registered, []);
    assert_eq!(groups(&node, Team).await, [("acme/payments".to_owned(), 2)]);

    let mut moved = AgentChange {
        team: Edit::Clear,
        project: Edit::Set("checkout".into()),
        environment: Edit::Set("prod".into()),
        labels: LabelChange { removed: BTreeSet::new(), set: map(&[("owner", "ann"), ("role", "web")]) },
        ..change("acme/web")
    };
    refused(set(&node, &moved).await, Code::NotFound, "there is no project `acme/checkout`");
    moved.missing = MissingGroups::Create;
    let changed = set(&node, &moved).await.expect("changed");
    assert_eq!(changed.registered, [group(Project, "acme/checkout"), group(Environment, "acme/prod")]);
    let web = changed.agent;
    assert_eq!(
        (web.team.as_deref(), web.project.as_deref(), web.environment.as_deref()),
        (None, Some("checkout"), Some("prod"))
    );
    assert_eq!((web.index, web.labels.len()), (created.agent.index, 2));
    // A generation of each change of an agent, and of no change of a group.
    let mut latest: Snapshot = parse(&worker.next().await.document);
    while latest.generation < 3 {
        latest = parse(&worker.next().await.document);
    }
    assert_eq!(latest.agents.iter().find(|agent| agent.id == web.id), Some(&web));
    create_group(&node, Team, "acme/other", &[]).await.expect("created");
    assert_eq!(set(&node, &moved).await.expect("the same").agent, web);
    let status: clawgress_api::Status =
        parse(&node.admin().status(Empty {}).await.expect("status").into_inner().json);
    assert_eq!(status.generation, 3);
    assert_eq!(groups(&node, Team).await, [("acme/other".to_owned(), 0), ("acme/payments".to_owned(), 1)]);

    for (change, code, said) in [
        (change("nobody"), Code::NotFound, "clawgressctl agent list"),
        (
            AgentChange { team: Edit::Set("Pay ments".into()), ..change("acme/web") },
            Code::InvalidArgument,
            "is not an id",
        ),
        (
            AgentChange { team: Edit::Set("other/x".into()), ..change("acme/web") },
            Code::InvalidArgument,
            "is not an id",
        ),
    ] {
        refused(set(&node, &change).await, code, said);
    }
    let log = log(&node).await;
    for said in [
        "; registered with that: tenant `acme`, team `acme/payments`",
        r#"agent set by root: is {"id":"acme/web","#,
        r#", was {"id":"acme/web","index":1,"team":"payments""#,
        "; registered with that: project `acme/checkout`, environment `acme/prod`",
    ] {
        assert!(log.iter().any(|detail| detail.contains(said)), "`{said}`: {log:#?}");
    }
}

/// What carries a tenant in its id keeps it, and what an earlier version left is taken over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_groups_is_taken_over() {
    use GroupKind::{Team, Tenant};
    let mut node = Node::new().start().await;
    for n in 0..3 {
        let agent = new_agent(&format!("acme/a{n}"), Some(&format!("t{n}")), MissingGroups::Create);
        create(&node, &agent).await.expect("created");
    }
    let issuer = serde_json::json!({
        "id": "other/idp", "issuer": "https://idp.test", "audiences": ["a"], "algorithms": ["EdDSA"],
        "mapping": {"agent": {"from": "sub"}},
        "keys": r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#
    });
    let issuer: IssuerRecord = serde_json::from_value(issuer).expect("issuer");
    node.admin().set_issuer(document(&issuer)).await.expect("set");
    let (tenants, teams) = (groups(&node, Tenant).await, groups(&node, Team).await);
    assert_eq!((tenants.len(), teams.len()), (3, 3));
    refused(delete_group(&node, Tenant, "other").await, Code::FailedPrecondition, "issuer `other/idp`");
    let before: Vec<Agent> = agents(&node).await;

    node.stop_control().await;
    let path = node.config.node.state_dir.join("control").join("state.redb");
    {
        let store = RedbStore::open(&path).expect("store");
        let stored = store.scan("group/", None).await.expect("read").entries;
        assert_eq!(stored.len(), 5);
        let writes = stored.into_iter().map(|entry| Write::Delete(entry.key)).collect();
        store
            .commit(Transaction { conditions: vec![], writes })
            .await
            .expect("as an earlier version left it");
    }
    node.start_control().await;
    assert_eq!((groups(&node, Tenant).await, groups(&node, Team).await), (tenants, teams));
    assert_eq!(agents(&node).await, before);
    let told = "groups that agents are in registered: tenant `acme`, tenant `other`, team `acme/t0`";
    let taken = log(&node).await.into_iter().filter(|detail| detail.contains(told)).count();
    assert_eq!(taken, 1);
    node.stop_control().await;
    node.start_control().await;
    assert_eq!(log(&node).await.iter().filter(|detail| detail.contains("are in registered")).count(), 1);
}

async fn agents(node: &Node) -> Vec<Agent> {
    let listed = node.admin().list_agents(Empty {}).await.expect("listed").into_inner().json;
    listed.iter().map(|json| parse(json)).collect()
}
