//! The platform's policy and the tenants': each with revisions of its own, none of another's making.

use std::collections::BTreeMap;

use clawgress_policy::PolicyProblem;
use tonic::Code;

use super::*;

type Snapshot = clawgress_api::Snapshot<PolicyBundle>;

fn owner(text: &str) -> PolicyOwner {
    text.parse().expect("owner")
}

async fn try_apply(
    node: &Node,
    whose: &str,
    text: &str,
) -> Result<PolicyRevision<PolicyBundle>, tonic::Status> {
    let bundle = PolicyBundle { text: text.into(), ..PolicyBundle::default() };
    let new = NewPolicy {
        owner: owner(whose),
        bundle,
        message: "because".into(),
        author: "somebody".into(),
        accepted: Vec::new(),
        parent: None,
    };
    node.admin().apply_policy(document(&new)).await.map(|answer| parse(&answer.into_inner().json))
}

async fn apply_as(node: &Node, whose: &str, text: &str) -> PolicyRevision<PolicyBundle> {
    try_apply(node, whose, text).await.expect("applied")
}

async fn create(node: &Node, id: &str) {
    let agent = NewAgent {
        id: id.parse().expect("id"),
        team: None,
        project: None,
        environment: None,
        labels: BTreeMap::new(),
        sources: vec![],
        key: false,
        missing: clawgress_api::MissingGroups::Create,
    };
    node.admin().create_agent(document(&agent)).await.expect("created");
}

async fn snapshot(node: &Node) -> Snapshot {
    parse(&node.worker("w").await.next().await.document)
}

async fn numbers(node: &Node, whose: &str) -> Vec<(u64, Option<Standing>)> {
    let history = node.admin().policy_history(proto::PolicyOwner { owner: whose.into() }).await;
    let history = history.expect("history").into_inner().json;
    let history: Vec<PolicyRevision<PolicyBundle>> = history.iter().map(|json| parse(json)).collect();
    assert!(history.iter().all(|revision| revision.owner == owner(whose)));
    history.iter().map(|revision| (revision.number, revision.standing)).collect()
}

/// The texts that L7 is to decide by: the tenant `default`'s, the platform's, those of others.
fn texts(snapshot: &Snapshot) -> (Option<&str>, Option<&str>, Vec<(&str, &str)>) {
    (
        snapshot.policy.as_ref().map(|b| b.text.as_str()),
        snapshot.platform.as_ref().map(|b| b.text.as_str()),
        snapshot.tenants.iter().map(|(name, b)| (name.as_str(), b.text.as_str())).collect(),
    )
}

const LIMIT: &str = "@id(\"all\") permit (principal, action, resource);";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_has_revisions_of_their_own() {
    let mut node = Node::new().start().await;
    create(&node, "web").await;
    create(&node, "acme/web").await;
    let warnings = status(&node).await.warnings;
    assert!(warnings.iter().any(|w| w.contains("no policy has been applied")), "{warnings:?}");
    let first = apply(&node, OPEN).await;
    let warnings = status(&node).await.warnings;
    assert!(warnings.iter().any(|w| w.contains("tenant `acme` has agents and no policy")), "{warnings:?}");
    let acme = apply_as(&node, "tenant/acme", "// acme\n").await;
    let above = apply_as(&node, "platform", LIMIT).await;
    assert_eq!([first.number, acme.number, above.number], [1, 1, 1]);
    assert!(first.generation < acme.generation && acme.generation < above.generation, "each is a generation");
    apply_as(&node, "tenant/acme", OPEN).await;

    let signed = Some(Standing::Signed);
    for _ in 0..2 {
        let now = snapshot(&node).await;
        assert_eq!(texts(&now), (Some(OPEN), Some(LIMIT), vec![("acme", OPEN)]));
        let revisions = [(owner("platform"), 1), (PolicyOwner::default(), 1), (owner("tenant/acme"), 2)];
        assert_eq!(now.revisions, BTreeMap::from(revisions));
        let told = status(&node).await;
        assert_eq!((told.revision, told.policies), (1, now.revisions));
        assert_eq!(numbers(&node, "tenant/acme").await, [(2, signed), (1, signed)]);
        assert_eq!(numbers(&node, "platform").await, [(1, signed)]);
        assert_eq!(numbers(&node, "tenant/default").await, [(1, signed)]);
        assert_eq!(standings(&node).await, [(1, signed)], "of nobody in particular: the tenant `default`'s");
        // Again after a restart.
        node.stop_control().await;
        node.start_control().await;
    }
    let asked = RevisionNumber { number: 1, owner: "tenant/acme".into() };
    let shown: PolicyRevision<PolicyBundle> =
        parse(&node.admin().show_policy(asked).await.expect("shown").into_inner().json);
    assert_eq!(shown.bundle.expect("bundle").text, "// acme\n");
    let told = changes(&node).await;
    assert!(told.iter().any(|c| c.contains("policy revision 2 of tenant `acme` (")), "{told:?}");
    assert!(told.iter().any(|c| c.contains("policy revision 1 of the platform (")), "{told:?}");
    for nobody in ["acme", "tenant/", "tenant/A"] {
        let asked = RevisionNumber { number: 1, owner: nobody.into() };
        assert_eq!(node.admin().show_policy(asked).await.expect_err(nobody).code(), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_touches_no_other() {
    let node = Node::new().start().await;
    create(&node, "web").await;
    create(&node, "acme/web").await;
    apply(&node, OPEN).await;
    apply_as(&node, "tenant/acme", OPEN).await;
    apply_as(&node, "platform", LIMIT).await;
    let (before, told) = (snapshot(&node).await, changes(&node).await.len());
    let of_others = "@id(\"a\") permit (principal == Agent::\"acme/web\", action, resource);";
    let of_default = "@id(\"a\")\nforbid (principal in Tenant::\"default\", action, resource);";
    let unqualified = "@id(\"a\") forbid (principal == Agent::\"web\", action, resource);";
    for (whose, text, line, wanted) in [
        ("tenant/default", of_others, 1, "`Agent::\"acme/web\"` is of tenant `acme`"),
        ("tenant/acme", of_default, 2, "`Tenant::\"default\"` is of tenant `default`"),
        ("tenant/acme", unqualified, 1, "write `Agent::\"acme/web\"`"),
        (
            "tenant/acme",
            "@id(\"platform/a\") permit (principal, action, resource);",
            1,
            "`platform/` is what",
        ),
        ("platform", "@id(\"a\") permit (principal, action, resorce);", 1, ""),
    ] {
        let refused = try_apply(&node, whose, text).await.expect_err(text);
        assert_eq!(refused.code(), Code::InvalidArgument, "{text}");
        let problems: Vec<PolicyProblem> = parse(refused.details());
        let problem = problems.first().expect("a problem");
        assert!(problem.message.contains(wanted) && problem.line == Some(line), "{problem}");
    }
    let refused = try_apply(&node, "tenant/nobodys", OPEN).await.expect_err("refused");
    assert!(refused.message().contains("register it first"), "{refused}");
    // Each may have its limits, and not all of them at one request.
    let limits = |count: usize| {
        let one = |n| {
            format!(
                "@id(\"l{n}\") @effect(\"rate-limit\") @limit(\"{} requests/minute\") permit (principal, action == Action::\"http\", resource);",
                n + 1
            )
        };
        (0..count).map(one).collect::<String>()
    };
    let refused = try_apply(&node, "platform", &limits(17)).await.expect_err("too many");
    let problems: Vec<PolicyProblem> = parse(refused.details());
    let wanted = "17 limits apply at once to `http` of `acme/web` to any host, and 16 may: `platform/l0`, ";
    assert!(problems[0].message.starts_with(wanted), "{problems:?}");
    assert_eq!(snapshot(&node).await, before, "what is refused alters nothing");
    assert_eq!(changes(&node).await.len(), told);

    // A tenant that has a policy stays: whoever came next by its name would find it.
    node.admin().delete_agent(proto::Name { name: "acme/web".into() }).await.expect("deleted");
    let acme = clawgress_api::GroupRef { kind: clawgress_identity::GroupKind::Tenant, id: "acme".into() };
    let refused = node.admin().delete_group(document(&acme)).await.expect_err("refused");
    assert!(refused.message().contains("a policy (apply an empty one first)"), "{refused}");

    // What one applies leaves the others' as they are.
    apply_as(&node, "tenant/acme", "").await;
    let after = snapshot(&node).await;
    assert_eq!(texts(&after), (Some(OPEN), Some(LIMIT), vec![("acme", "")]));
    assert!(after.generation > before.generation);
    node.admin().delete_group(document(&acme)).await.expect("nothing is in it");
}

/// A revision counts in its own place alone, and one that doesn't count takes from nobody else, but the platform's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_revision_is_of_its_owner_alone() {
    let mut node = Node::new().start().await;
    create(&node, "acme/web").await;
    apply(&node, OPEN).await;
    apply_as(&node, "tenant/acme", "// acme\n").await;
    apply_as(&node, "platform", "").await;
    node.stop_control().await;
    let store = RedbStore::open(&store_file(&node)).expect("opened");
    let genuine = value(&store, &key("revision", 1)).await;
    assert!(!genuine.contains("owner"), "as it always was: {genuine}");
    assert_eq!(value(&store, "policy-live").await, "1");
    let bundle = value(&store, &key("bundle", 1)).await;
    drop(store);
    let of = |whose: &str, kind: &str| key(&format!("policy/{whose}/{kind}"), 1);
    // The tenant `default`'s, put in the place of another's.
    for (whose, renamed) in
        [("tenant/acme", true), ("tenant/acme", false), ("platform", true), ("platform", false)]
    {
        let store = RedbStore::open(&store_file(&node)).expect("opened");
        let kept = [value(&store, &of(whose, "revision")).await, value(&store, &of(whose, "bundle")).await];
        drop(store);
        let moved = if renamed {
            genuine.replacen('{', &format!("{{\"owner\":\"{whose}\","), 1)
        } else {
            genuine.clone()
        };
        rewrite(&node, &of(whose, "revision"), |_| moved.clone()).await;
        rewrite(&node, &of(whose, "bundle"), |_| bundle.clone()).await;
        node.start_control().await;
        let now = snapshot(&node).await;
        let wanted = if whose == "platform" { (None, None, vec![]) } else { (Some(OPEN), Some(""), vec![]) };
        assert_eq!(texts(&now), wanted, "{whose} {renamed}");
        let what = if whose == "platform" {
            "of the platform is not in force, everything is denied"
        } else {
            "of tenant `acme` is not in force, everything of tenant `acme` is denied"
        };
        let warnings = status(&node).await.warnings;
        assert!(warnings.iter().any(|w| w.contains(what)), "{warnings:?}");
        // Who changes something else is not held up, and lets nothing in.
        create(&node, &format!("acme/{}-{renamed}", whose.replace('/', "-"))).await;
        assert_eq!(texts(&snapshot(&node).await), wanted, "{whose} {renamed}");
        node.stop_control().await;
        rewrite(&node, &of(whose, "revision"), |_| kept[0].clone()).await;
        rewrite(&node, &of(whose, "bundle"), |_| kept[1].clone()).await;
        node.start_control().await;
        assert_eq!(texts(&snapshot(&node).await), (Some(OPEN), Some(""), vec![("acme", "// acme\n")]));
        node.stop_control().await;
    }
}

/// Nothing restricts where there never was a policy of the platform's, and not where something is left of one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_of_the_platforms_that_is_gone_denies_everything() {
    let mut node = Node::new().start().await;
    create(&node, "acme/web").await;
    apply(&node, OPEN).await;
    apply_as(&node, "tenant/acme", OPEN).await;
    apply_as(&node, "platform", LIMIT).await;
    for gone in [key("policy/platform/revision", 1), "policy-live/platform".to_owned()] {
        node.stop_control().await;
        let store = RedbStore::open(&store_file(&node)).expect("opened");
        let kept = value(&store, &gone).await;
        let change = |write| Transaction { conditions: vec![], writes: vec![write] };
        store.commit(change(Write::Delete(gone.clone()))).await.expect("deleted");
        drop(store);
        node.start_control().await;
        assert_eq!(texts(&snapshot(&node).await), (None, None, vec![]), "{gone}");
        let warnings = status(&node).await.warnings;
        let what =
            "revision 1 of the platform is not in force, everything is denied: what is live of it is gone";
        assert!(warnings.iter().any(|w| w.contains(what)), "{gone}: {warnings:?}");
        node.stop_control().await;
        let store = RedbStore::open(&store_file(&node)).expect("opened");
        store.commit(change(Write::Put(gone.clone(), kept.into()))).await.expect("put back");
        drop(store);
        node.start_control().await;
        assert_eq!(texts(&snapshot(&node).await), (Some(OPEN), Some(LIMIT), vec![("acme", OPEN)]), "{gone}");
    }
    // Or it is applied anew, after the last there was.
    node.stop_control().await;
    let store = RedbStore::open(&store_file(&node)).expect("opened");
    let writes = vec![Write::Delete("policy-live/platform".into())];
    store.commit(Transaction { conditions: vec![], writes }).await.expect("deleted");
    drop(store);
    node.start_control().await;
    assert_eq!(apply_as(&node, "platform", LIMIT).await.number, 2);
    assert_eq!(texts(&snapshot(&node).await), (Some(OPEN), Some(LIMIT), vec![("acme", OPEN)]));
}
