//! Issuers of tokens as control does them: checked, durable, recorded, and in every generation of L7.

use clawgress_api::proto::{Empty, Name};
use clawgress_api::{AuditQuery, AuditRecord, RecordKind};
use clawgress_identity::IssuerRecord;
use clawgress_policy::PolicyBundle;
use tonic::Code;

use crate::node::{Node, Worker, document, parse};

type Snapshot = clawgress_api::Snapshot<PolicyBundle>;

/// The key of RFC 8037 appendix A.2.
const KEYS: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

fn issuer(id: &str, audience: &str) -> IssuerRecord {
    let record = serde_json::json!({
        "id": id, "issuer": "https://idp.test", "audiences": [audience], "algorithms": ["EdDSA"],
        "mapping": {"agent": {"from": "sub"}}, "keys": KEYS
    });
    serde_json::from_value(record).expect("record")
}

async fn issuers(worker: &mut Worker) -> (u64, Vec<IssuerRecord>) {
    let snapshot: Snapshot = parse(&worker.next().await.document);
    (snapshot.generation, snapshot.roots.issuers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuers_go_to_l7_with_each_generation() {
    let mut node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    let (before, none) = issuers(&mut worker).await;
    assert_eq!(none, []);
    let (one, two) = (issuer("acme/idp", "gateway"), issuer("other/idp", "other"));
    for (n, record) in [&one, &two].into_iter().enumerate() {
        node.admin().set_issuer(document(record)).await.expect("set");
        assert_eq!(issuers(&mut worker).await.0, before + 1 + n as u64);
    }
    // It is kept, and a change of nothing is no generation.
    node.stop_control().await;
    node.start_control().await;
    let mut worker = node.worker("w").await;
    assert_eq!(issuers(&mut worker).await, (before + 2, vec![one.clone(), two.clone()]));
    node.admin().set_issuer(document(&one)).await.expect("the same");
    let mut revoking = one.clone();
    revoking.revoked.insert("t1".to_owned());
    node.admin().set_issuer(document(&revoking)).await.expect("changed");
    assert_eq!(issuers(&mut worker).await, (before + 3, vec![revoking.clone(), two.clone()]));
    node.admin().delete_issuer(Name { name: "acme/idp".into() }).await.expect("deleted");
    assert_eq!(issuers(&mut worker).await, (before + 4, vec![two.clone()]));
    let listed = node.admin().list_issuers(Empty {}).await.expect("listed").into_inner().json;
    assert_eq!(listed.iter().map(|json| parse::<IssuerRecord>(json)).collect::<Vec<_>>(), [two]);
    let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
    let mut found = node.admin().search_audit(document(&query)).await.expect("audit").into_inner();
    let mut log = Vec::new();
    while let Some(line) = found.message().await.expect("record") {
        log.extend(parse::<AuditRecord>(&line.json).detail);
    }
    for said in [
        "issuer set by root: is {\"id\":\"acme/idp\"",
        // RFC 8037 appendix A.3.
        "with keys kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k and 1 revoked tokens (sha256:",
        "): t1, was {\"id\":\"acme/idp\"",
        "issuer deleted by root: was {\"id\":\"acme/idp\"",
    ] {
        assert!(log.iter().any(|d| d.contains(said)), "`{said}`: {log:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuers_that_l7_could_not_use_change_nothing() {
    let node = Node::new().start().await;
    let mut worker = node.worker("w").await;
    let (before, _) = issuers(&mut worker).await;
    node.admin().set_issuer(document(&issuer("acme/idp", "gateway"))).await.expect("set");
    let mut weak = issuer("b", "b");
    weak.keys = r#"{"keys":[]}"#.to_owned();
    let mut open = issuer("c", "c");
    open.mapping.agent.from = None;
    for (record, said) in [
        (weak, "issuer `default/b`: the key set has no key"),
        (open, "issuer `default/c`: the rule for the agent needs"),
        (issuer("d", "gateway"), "have the same `issuer` and an audience in common"),
    ] {
        let refused = node.admin().set_issuer(document(&record)).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(said), "{refused}");
    }
    let missing = node.admin().delete_issuer(Name { name: "b".into() }).await.expect_err("missing");
    assert_eq!(missing.code(), Code::NotFound);
    let (after, listed) = issuers(&mut worker).await;
    assert_eq!((after, listed.len()), (before + 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_stays_so_when_keys_are_renewed() {
    let node = Node::new().start().await;
    let mut record = issuer("idp", "gateway");
    record.revoked = ["t1", "t2"].map(str::to_owned).into();
    record.issued_after_s = Some(1_000);
    node.admin().set_issuer(document(&record)).await.expect("set");
    let mut renewed = record.clone();
    renewed.revoked.remove("t1");
    let mut earlier = record.clone();
    earlier.issued_after_s = None;
    for (change, said) in [
        (&renewed, "1 revoked tokens of issuer `default/idp` would count again"),
        (&earlier, "`issued_after_s` of issuer `default/idp` can't go back"),
    ] {
        let refused = node.admin().set_issuer(document(change)).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(said), "{refused}");
    }
    // Above the time when they were issued, there is no need of them.
    renewed.revoked.clear();
    renewed.issued_after_s = Some(2_000);
    node.admin().set_issuer(document(&renewed)).await.expect("set");
    record.revoked.insert("t3".to_owned());
    record.issued_after_s = Some(2_000);
    node.admin().set_issuer(document(&record)).await.expect("more is revoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_issuer_is_recorded() {
    let mut node = Node::new().start().await;
    let mut large = issuer("idp", "gateway");
    let agent = |n: usize| (format!("{n:0>500}\u{1}"), format!("agent-{n}"));
    large.mapping.agent.table = (0..1_000).map(agent).collect();
    large.revoked = (0..9_999).map(|n| format!("{n:0>100}")).collect();
    node.admin().set_issuer(document(&large)).await.expect("set");
    let mut other = large.clone();
    other.revoked.insert("one more".to_owned());
    node.admin().set_issuer(document(&other)).await.expect("changed");
    let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
    let mut found = node.admin().search_audit(document(&query)).await.expect("audit").into_inner();
    let mut said = Vec::new();
    while let Some(line) = found.message().await.expect("record") {
        let detail = parse::<AuditRecord>(&line.json).detail.unwrap_or_default();
        said.extend(detail.starts_with("issuer set").then_some(detail));
    }
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said.iter().all(|detail| detail.contains("kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k")));
    node.stop_control().await;
    node.start_control().await;
    let listed = node.admin().list_issuers(Empty {}).await.expect("listed").into_inner().json;
    assert_eq!(listed.len(), 1, "control starts again");
}
