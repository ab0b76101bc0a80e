//! Signatures of policy revisions, with the real keys and control roles: what the store holds counts only as it was signed.

mod planes;
mod tenants;

use std::path::PathBuf;
use std::time::Duration;

use clawgress_agent::control::store::{RedbStore, StateStore, Transaction, Write};
use clawgress_api::proto::{self, Empty, RevisionNumber};
use clawgress_api::{
    AuditQuery, AuditRecord, NewAgent, NewPolicy, PolicyRevision, PolicySigner, RecordKind, Standing, Status,
    from_hex,
};
use clawgress_identity::PolicyOwner;
use clawgress_policy::PolicyBundle;

use crate::node::{self, Node, document, parse};

const OPEN: &str = "@id(\"all\") permit (principal, action == Action::\"tls\", resource);";

async fn apply(node: &Node, text: &str) -> PolicyRevision<PolicyBundle> {
    let bundle = PolicyBundle { text: text.into(), ..PolicyBundle::default() };
    let new = NewPolicy {
        owner: PolicyOwner::default(),
        bundle,
        message: "because".into(),
        author: "somebody".into(),
        accepted: Vec::new(),
        parent: None,
    };
    parse(&node.admin().apply_policy(document(&new)).await.expect("applied").into_inner().json)
}

async fn status(node: &Node) -> Status {
    parse(&node.admin().status(Empty {}).await.expect("status").into_inner().json)
}

async fn show(node: &Node, number: u64) -> PolicyRevision<PolicyBundle> {
    parse(
        &node
            .admin()
            .show_policy(RevisionNumber { number, ..RevisionNumber::default() })
            .await
            .expect("shown")
            .into_inner()
            .json,
    )
}

async fn standings(node: &Node) -> Vec<(u64, Option<Standing>)> {
    let history =
        node.admin().policy_history(proto::PolicyOwner::default()).await.expect("history").into_inner().json;
    let history: Vec<PolicyRevision<PolicyBundle>> = history.iter().map(|json| parse(json)).collect();
    history.iter().map(|revision| (revision.number, revision.standing)).collect()
}

async fn changes(node: &Node) -> Vec<String> {
    let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
    let mut stream = node.admin().search_audit(document(&query)).await.expect("search").into_inner();
    let mut changes = Vec::new();
    while let Some(document) = stream.message().await.expect("record") {
        changes.push(parse::<AuditRecord>(&document.json).detail.expect("detail"));
    }
    changes
}

/// The policy that a worker is sent.
async fn in_force(node: &Node) -> Option<PolicyBundle> {
    let snapshot = node.worker("w").await.next().await;
    parse::<clawgress_api::Snapshot<PolicyBundle>>(&snapshot.document).policy
}

fn store_file(node: &Node) -> PathBuf {
    node.config.node.state_dir.join("control").join("state.redb")
}

async fn value(store: &RedbStore, key: &str) -> String {
    let entry = store.read(key, None).await.expect("read").entries.pop();
    String::from_utf8(entry.expect("a value").value).expect("text")
}

/// Changes a value of the store while nobody has it open, through the store's own code.
async fn rewrite(node: &Node, key: &str, change: impl Fn(String) -> String) {
    let store = RedbStore::open(&store_file(node)).expect("opened");
    let value = value(&store, key).await;
    let changed = change(value.clone());
    assert_ne!(value, changed, "{key}");
    let writes = vec![Write::Put(key.into(), changed.into())];
    store.commit(Transaction { conditions: vec![], writes }).await.expect("written");
}

fn key(prefix: &str, number: u64) -> String {
    format!("{prefix}/{number:020}")
}

fn without_signature(json: String) -> String {
    let mut value: serde_json::Value = parse(json.as_bytes());
    value.as_object_mut().expect("object").remove("signature");
    value.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_is_signed_by_a_key_that_anybody_can_check() {
    let mut node = Node::new().start().await;
    let revision = apply(&node, OPEN).await;
    assert_eq!(revision.standing, Some(Standing::Signed));
    let signer: PolicySigner =
        parse(&node.admin().policy_signer(Empty {}).await.expect("signer").into_inner().json);
    let shown = show(&node, 0).await;
    let signature = shown.signature.clone().expect("signature");
    assert_eq!((shown.standing, &signature.key), (Some(Standing::Signed), &signer.public_key));
    let bytes = shown.statement().expect("statement").signed_bytes().expect("bytes");
    let public = from_hex(&signer.public_key).expect("hex");
    let public = aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, public);
    public.verify(&bytes, &from_hex(&signature.value).expect("hex")).expect("it holds");

    // It holds after a restart, and goes into force again.
    node.stop_control().await;
    node.start_control().await;
    apply(&node, &format!("{OPEN} // more")).await;
    assert_eq!(standings(&node).await, [(2, Some(Standing::Signed)), (1, Some(Standing::Signed))]);

    // Without who signs, nothing becomes live; what is, stays.
    node.stop_keys().await;
    let new = NewPolicy {
        owner: PolicyOwner::default(),
        bundle: PolicyBundle::default(),
        message: "m".into(),
        author: "a".into(),
        accepted: Vec::new(),
        parent: None,
    };
    let refused = node.admin().apply_policy(document(&new)).await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(refused.message().contains("start `clawgress-agent keys`"), "{refused}");
    assert!(in_force(&node).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_changed_byte_in_the_store_keeps_a_revision_from_force() {
    let mut node = Node::new().start().await;
    apply(&node, "// the marked text\n").await;
    let genuine = apply(&node, OPEN).await;
    let generation = status(&node).await.generation;
    node.stop_control().await;
    // In the file itself, wherever it holds the text.
    let mut file = std::fs::read(store_file(&node)).expect("read");
    let places: Vec<usize> =
        file.windows(6).enumerate().filter(|(_, w)| w == b"permit").map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    for place in places {
        *file.get_mut(place + 3).expect("a byte") = b'M';
    }
    std::fs::write(store_file(&node), file).expect("written");
    node.start_control().await;
    let after = status(&node).await;
    assert!(after.generation > generation, "the planes are told, whatever they ran");
    let told = "revision 2 is not in force, everything is denied: its signature does not hold";
    assert!(after.warnings.iter().any(|w| w.contains(told) && w.contains("apply it anew")), "{after:?}");
    assert_eq!(in_force(&node).await, None);
    assert_eq!(show(&node, 2).await.standing, Some(Standing::Altered));
    assert_eq!(standings(&node).await, [(2, Some(Standing::Altered)), (1, Some(Standing::Signed))]);
    assert!(changes(&node).await.iter().any(|c| c.contains("revision 2 is not in force")));

    // No later change lets it in.
    let agent = NewAgent {
        id: "a".parse().expect("id"),
        team: None,
        project: None,
        environment: None,
        labels: std::collections::BTreeMap::new(),
        sources: vec![],
        key: false,
        missing: clawgress_api::MissingGroups::Create,
    };
    node.admin().create_agent(document(&agent)).await.expect("created");
    assert_eq!(in_force(&node).await, None);
    node.stop_control().await;
    node.start_control().await;
    assert_eq!(in_force(&node).await, None);

    // A policy that is applied is in force, and the other stays what it is.
    apply(&node, OPEN).await;
    assert_eq!(in_force(&node).await, genuine.bundle.or(show(&node, 3).await.bundle));
    assert_eq!(show(&node, 2).await.standing, Some(Standing::Altered));
    assert!(!status(&node).await.warnings.iter().any(|w| w.contains("not in force")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_part_of_a_revision_counts_and_so_does_its_place() {
    let mut node = Node::new().start().await;
    apply(&node, "// first\n").await;
    apply(&node, "// second\n").await;
    let (revision, bundle) = (key("revision", 2), key("bundle", 2));
    let replaced = |from: &'static str, to: &'static str| move |json: String| json.replacen(from, to, 1);
    type Change = Box<dyn Fn(String) -> String>;
    let other: Change = Box::new(|json: String| {
        let mut value: serde_json::Value = parse(json.as_bytes());
        value["signature"]["key"] = "00".repeat(32).into();
        value.to_string()
    });
    let changes: [(&str, Change, Standing); 8] = [
        // No JSON any more.
        (&revision, Box::new(replaced("{", "[")), Standing::Altered),
        (&bundle, Box::new(replaced("{", "[")), Standing::Altered),
        (&revision, Box::new(replaced("somebody", "nobody")), Standing::Altered),
        (&revision, Box::new(replaced("because", "why")), Standing::Altered),
        (&revision, Box::new(replaced("\"parent\":1", "\"parent\":0")), Standing::Altered),
        (&bundle, Box::new(replaced("second", "secund")), Standing::Altered),
        (&revision, Box::new(without_signature), Standing::Unsigned),
        (&revision, other, Standing::OtherKey),
    ];
    for (key, change, expected) in changes {
        node.stop_control().await;
        let store = RedbStore::open(&store_file(&node)).expect("opened");
        let genuine = value(&store, key).await;
        drop(store);
        rewrite(&node, key, change).await;
        node.start_control().await;
        assert_eq!(in_force(&node).await, None, "{key} {expected:?}");
        assert_eq!(show(&node, 0).await.standing, Some(expected), "{key}");
        node.stop_control().await;
        rewrite(&node, key, |_| genuine.clone()).await;
        node.start_control().await;
        assert!(in_force(&node).await.is_some(), "as it was signed, it counts");
    }
    // The first, genuine as it is, in the place of the second or as the live one.
    node.stop_control().await;
    rewrite(&node, "policy-live", |_| "1".into()).await;
    node.start_control().await;
    assert_eq!(in_force(&node).await, None);
    let warnings = status(&node).await.warnings;
    assert!(warnings.iter().any(|w| w.contains("it is not the last one, revision 2 is")), "{warnings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_cannot_be_read_is_replaced_by_the_next() {
    let mut node = Node::new().start().await;
    apply(&node, "// first\n").await;
    for (number, name) in [(2, "revision"), (3, "bundle")] {
        apply(&node, OPEN).await;
        node.stop_control().await;
        rewrite(&node, &key(name, number), |json| json.replacen('{', "[", 1)).await;
        node.start_control().await;
        assert_eq!(in_force(&node).await, None, "{name}");
        let warnings = status(&node).await.warnings;
        let told = format!("revision {number} is not in force, everything is denied: its signature");
        assert!(warnings.iter().any(|w| w.contains(&told)), "{warnings:?}");
    }
    assert_eq!(apply(&node, OPEN).await.number, 4);
    assert!(in_force(&node).await.is_some());
    node.stop_control().await;
    node.start_control().await;
    assert!(in_force(&node).await.is_some(), "old ones don't matter");
    let (signed, altered) = (Some(Standing::Signed), Some(Standing::Altered));
    assert_eq!(standings(&node).await, [(4, signed), (3, altered), (1, signed)]);
    assert_eq!(show(&node, 2).await.standing, altered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revisions_of_before_signatures_are_signed_once_and_never_again() {
    let mut node = Node::new().start().await;
    apply(&node, "// first\n").await;
    apply(&node, OPEN).await;
    node.stop_control().await;
    node.stop_keys().await;
    // As a version left it that knew no signatures.
    for name in ["revision-ed25519-v1.sealed", "revision-adopted-v1"] {
        std::fs::remove_file(node.config.node.state_dir.join("keys").join(name)).expect("removed");
    }
    for number in [1, 2] {
        rewrite(&node, &key("revision", number), without_signature).await;
    }
    node.start_keys().await;
    node.start_control().await;
    assert!(in_force(&node).await.is_some());
    assert_eq!(standings(&node).await, [(2, Some(Standing::Signed)), (1, Some(Standing::Signed))]);
    let told = "2 policy revisions of before revisions were signed, 1 to 2, signed as they were found";
    assert_eq!(changes(&node).await.iter().filter(|change| change.contains(told)).count(), 1);

    node::until("the end of adoption", async || {
        node.config.node.state_dir.join("keys").join("revision-adopted-v1").exists()
    })
    .await;
    node.stop_control().await;
    rewrite(&node, &key("revision", 2), without_signature).await;
    node.start_control().await;
    assert_eq!(in_force(&node).await, None);
    let warnings = status(&node).await.warnings;
    assert!(warnings.iter().any(|w| w.contains("nobody signed it")), "{warnings:?}");
    assert_eq!(standings(&node).await, [(2, Some(Standing::Unsigned)), (1, Some(Standing::Signed))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_waits_for_who_knows_whose_signature_counts() {
    let mut node = Node::new().start().await;
    apply(&node, OPEN).await;
    node.stop_control().await;
    node.stop_keys().await;
    let config = std::sync::Arc::clone(&node.config);
    let control = node::Role::start(|stop| clawgress_agent::control::run(config, stop));
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.admin().status(Empty {}).await.expect_err("nobody answers for a policy that was not checked");
    node.start_keys().await;
    node::until("control", async || node.admin().status(Empty {}).await.is_ok()).await;
    assert!(in_force(&node).await.is_some());
    control.stop().await;
}
