//! What agents did before, by the records of L7.

use clawgress_api::proto::enforcement_client::EnforcementClient;
use clawgress_api::proto::{AuditBatch, HistoryRequest, Name, NewRun};
use clawgress_api::{
    AgentRef, AuditQuery, AuditRecord, CredentialRef, Fingerprint, KnownFingerprint, Plane, RecordKind,
    Verdict, socket,
};
use clawgress_identity::{Agent, IdentityMethod};
use clawgress_policy::history::{Counts, History};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::create;
use crate::authorities::Ca;
use crate::node::{Node, document, parse, until};

/// A decision of L7 about `agent`.
fn decision(agent: &Agent, host: &str, verdict: Verdict) -> AuditRecord {
    let now = jiff::Timestamp::now();
    let mut record = AuditRecord::new(now, "test", RecordKind::Decision, Plane::L7, format!("r-{host}"), 1);
    record.agent = Some(AgentRef::new(agent, IdentityMethod::ApiKey));
    record.destination.host = Some(host.to_owned());
    record.verdict = Some(verdict);
    record
}

fn with_ja4(mut record: AuditRecord, ja4: &str) -> AuditRecord {
    record.fingerprint = Some(Fingerprint { ja4: Some(ja4.to_owned()), executable: None, cgroup: None });
    record
}

/// Hands records over, and waits until they are durable.
async fn hand_over(node: &Node, records: &[AuditRecord]) {
    let (sender, receiver) = mpsc::channel(1);
    let mut acks = node.audit().append(ReceiverStream::new(receiver)).await.expect("append").into_inner();
    let records = records.iter().map(|record| serde_json::to_vec(record).expect("json")).collect();
    sender.send(AuditBatch { sequence: 1, records }).await.expect("sent");
    acks.message().await.expect("ack").expect("ack");
}

async fn history(node: &Node, agent: &Agent, host: &str) -> History {
    let channel = socket::channel(&node.config.control_socket()).expect("channel");
    let question = HistoryRequest { agent: agent.index, host: host.to_owned() };
    let answer = EnforcementClient::new(channel).history(question).await.expect("answer");
    parse(&answer.into_inner().json)
}

async fn fingerprints(node: &Node, name: &str) -> Vec<(String, String)> {
    let answer = node.admin().list_fingerprints(Name { name: name.into() }).await.expect("list");
    let all = answer.into_inner().json;
    all.iter().map(|json| parse::<KnownFingerprint>(json)).map(|known| (known.kind, known.value)).collect()
}

/// What the log says of changes of fingerprints.
async fn changes(node: &Node) -> Vec<String> {
    let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
    let mut found = node.admin().search_audit(document(&query)).await.expect("audit").into_inner();
    let mut changes = Vec::new();
    while let Some(line) = found.message().await.expect("record") {
        changes.extend(parse::<AuditRecord>(&line.json).detail);
    }
    changes.retain(|change| change.contains("a fingerprint of agent"));
    changes
}

fn same(count: u64) -> Counts {
    Counts { minute: count, hour: count, day: count }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_recorded_is_known_and_outlives_a_restart() {
    let mut node = Node::new().start().await;
    let agent = create(&node, "a").await.agent;
    let other = create(&node, "b").await.agent;
    let quiet = History { first_seen: true, ..History::QUIET };
    assert_eq!(history(&node, &agent, "x.test").await, quiet);
    let (allow, deny) = (Verdict::Allow, Verdict::Deny);
    let records = [
        decision(&agent, "x.test", allow),
        decision(&agent, "x.test", allow),
        decision(&agent, "y.test", deny),
    ];
    hand_over(&node, &records).await;
    let known = History { requests: same(3), denied: same(1), ..History::QUIET };
    assert_eq!(history(&node, &agent, "x.test").await, known);
    let new = History { first_seen: true, ..known };
    assert_eq!(history(&node, &agent, "y.test").await, new, "what was denied is not known");
    assert_eq!(history(&node, &other, "x.test").await, quiet, "others have their own");

    node.stop_control().await;
    node.start_control().await;
    let again = history(&node, &agent, "x.test").await;
    assert!(!again.first_seen);
    assert_eq!((again.requests.day, again.denied.day), (3, 1));
    // The next agent of a name has nothing of the last.
    node.admin().delete_agent(Name { name: "a".into() }).await.expect("deleted");
    let next = create(&node, "a").await.agent;
    assert_ne!(next.index, agent.index);
    assert_eq!(history(&node, &next, "x.test").await, quiet);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_has_so_many_places_and_the_oldest_are_forgotten() {
    const MOST: usize = 4_096;
    let node = Node::new().start().await;
    let (agent, other) = (create(&node, "a").await.agent, create(&node, "b").await.agent);
    let places: Vec<String> = (0..=MOST).map(|n| format!("h{n}.test")).collect();
    for some in places.chunks(1_000) {
        let records: Vec<_> = some.iter().map(|host| decision(&agent, host, Verdict::Allow)).collect();
        hand_over(&node, &records).await;
    }
    assert!(!history(&node, &agent, &places[MOST]).await.first_seen);
    assert!(!history(&node, &agent, &places[MOST / 2]).await.first_seen);
    assert!(history(&node, &agent, &places[0]).await.first_seen, "one too many: the oldest is forgotten");
    hand_over(&node, &[decision(&other, &places[MOST], Verdict::Allow)]).await;
    assert!(!history(&node, &other, &places[MOST]).await.first_seen, "others have room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fingerprint_that_changes_is_told() {
    let node = Node::new().start().await;
    let agent = create(&node, "a").await.agent;
    let seen = |ja4: &str| with_ja4(decision(&agent, "x.test", Verdict::Allow), ja4);
    hand_over(&node, &[seen("one"), seen("one")]).await;
    assert!(!history(&node, &agent, "x.test").await.fingerprint_changed, "the first is no change");
    hand_over(&node, &[seen("two"), seen("one"), seen("two")]).await;
    assert!(history(&node, &agent, "x.test").await.fingerprint_changed);
    until("the change to be told", async || !changes(&node).await.is_empty()).await;
    assert_eq!(
        changes(&node).await,
        [
            "a fingerprint of agent `default/a` changed: ja4 `two` was not seen before; known are `one`, at request r-x.test"
        ]
    );
    // What runs as the agent, too.
    for hash in ["a", "b"] {
        let run = NewRun { name: "a".into(), executable: hash.repeat(64) };
        node.admin().open_run(run).await.expect("run");
    }
    until("the other change to be told", async || changes(&node).await.len() == 2).await;
    // Of one kind, once a minute: an agent chooses its hellos. All of them are known.
    hand_over(&node, &[seen("three"), seen("four")]).await;
    assert_eq!(changes(&node).await.len(), 2);
    let mut known = fingerprints(&node, "a").await;
    known.sort();
    let of = |kind: &str, value: String| (kind.to_owned(), value);
    assert_eq!(
        known,
        [
            of("executable", "a".repeat(64)),
            of("executable", "b".repeat(64)),
            of("ja4", "four".into()),
            of("ja4", "one".into()),
            of("ja4", "three".into()),
            of("ja4", "two".into()),
        ]
    );
    let run = NewRun { name: "a".into(), executable: "no hash".into() };
    assert_eq!(node.admin().open_run(run).await.expect_err("refused").code(), tonic::Code::InvalidArgument);
}

/// A certificate of this issuer, by what names it.
fn certificate(issuer: &str, id: &str) -> Option<CredentialRef> {
    let issuer = Some(issuer.parse().expect("id"));
    Some(CredentialRef { issuer, id: id.to_owned(), subject: None, actors: Vec::new() })
}

/// A decision about an agent that proved itself by a certificate, or has shown one beside its key.
fn with_certificate(
    agent: &Agent,
    method: IdentityMethod,
    (credential, certificate): (Option<CredentialRef>, Option<CredentialRef>),
) -> AuditRecord {
    let mut record = decision(agent, "x.test", Verdict::Allow);
    record.agent = Some(AgentRef { credential, certificate, ..AgentRef::new(agent, method) });
    record
}

/// Certificates, shown alone or beside a key, and MAC addresses that were never seen before are told; SVIDs, which are others
/// every hour, are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_macs_that_change_are_told() {
    let node = Node::new().start().await;
    let ca = Ca::new();
    node.admin().set_authority(document(&ca.record("ca", "off", ""))).await.expect("set");
    node.admin().set_trust_domain(document(&ca.domain("spire", "d.test"))).await.expect("set");
    let changed = async |agent: &Agent| history(&node, agent, "x.test").await.fingerprint_changed;
    let told = |name: &str, what: &str, known: &str| {
        format!(
            "a fingerprint of agent `default/{name}` changed: {what} was not seen before; known are `{known}`, at request r-x.test"
        )
    };
    let mut wanted = Vec::new();
    let (mtls, key, svid) = (IdentityMethod::Mtls, IdentityMethod::ApiKey, IdentityMethod::SpiffeX509);

    let alone = create(&node, "alone").await.agent;
    for (id, is_change) in [("sha256:1", false), ("sha256:1", false), ("sha256:2", true)] {
        hand_over(&node, &[with_certificate(&alone, mtls, (certificate("ca", id), None))]).await;
        assert_eq!(changed(&alone).await, is_change, "{id}");
    }
    wanted.push(told("alone", "certificate `sha256:2`", "sha256:1"));
    let beside = create(&node, "beside").await.agent;
    for (id, is_change) in [("sha256:3", false), ("sha256:4", true)] {
        let both = (
            Some(CredentialRef { issuer: None, ..certificate("ca", "0601").expect("some") }),
            certificate("ca", id),
        );
        hand_over(&node, &[with_certificate(&beside, key, both)]).await;
        assert_eq!(changed(&beside).await, is_change, "{id}");
    }
    wanted.push(told("beside", "certificate `sha256:4`", "sha256:3"));
    let moved = create(&node, "moved").await.agent;
    for (mac, plane, is_change) in [
        ("02:00:5e:00:53:01", Plane::L7, false),
        // What the kernel plane refused says nothing of the agent.
        ("02:00:5e:00:53:02", Plane::Kernel, false),
        ("02:00:5e:00:53:03", Plane::L7, true),
    ] {
        let mut record = decision(&moved, "x.test", Verdict::Allow);
        record.plane = plane;
        record.source.mac = Some(mac.parse().expect("an address"));
        hand_over(&node, &[record]).await;
        assert_eq!(changed(&moved).await, is_change, "{mac}");
    }
    wanted.push(told("moved", "mac `02:00:5e:00:53:03`", "02:00:5e:00:53:01"));
    let workload = create(&node, "workload").await.agent;
    for (method, both) in [
        (svid, (certificate("spire", "sha256:5"), None)),
        (svid, (certificate("spire", "sha256:6"), None)),
        (key, (None, certificate("spire", "sha256:7"))),
        (key, (None, certificate("spire", "sha256:8"))),
    ] {
        hand_over(&node, &[with_certificate(&workload, method, both)]).await;
        assert!(!changed(&workload).await, "an SVID");
    }
    assert!(fingerprints(&node, "workload").await.is_empty());

    until("the changes to be told", async || changes(&node).await.len() >= wanted.len()).await;
    let mut found = changes(&node).await;
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    let known = fingerprints(&node, "moved").await;
    assert!(known.iter().all(|(kind, _)| kind == "mac") && known.len() == 2, "{known:?}");
}

/// The flags of anomalies, as L7 gets them: who is denied at every turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_denied_at_every_turn_is_told_to_be() {
    const BURST: usize = 20;
    let node = Node::new().start().await;
    let [denied, mixed] = [create(&node, "denied").await.agent, create(&node, "mixed").await.agent];
    let burst = async |agent: &Agent| history(&node, agent, "x.test").await.denial_burst;
    let some = |agent: &Agent, count: usize, verdict: Verdict| -> Vec<AuditRecord> {
        (0..count).map(|_| decision(agent, "x.test", verdict)).collect()
    };
    hand_over(&node, &some(&denied, BURST - 1, Verdict::Deny)).await;
    assert!(!burst(&denied).await, "one too few");
    hand_over(&node, &some(&denied, 1, Verdict::Deny)).await;
    let known = history(&node, &denied, "x.test").await;
    assert_eq!(
        known,
        History {
            requests: same(20),
            denied: same(20),
            first_seen: true,
            denial_burst: true,
            ..History::QUIET
        }
    );
    // As often, and less than half of what it asked for.
    hand_over(&node, &some(&mixed, BURST + 1, Verdict::Allow)).await;
    hand_over(&node, &some(&mixed, BURST, Verdict::Deny)).await;
    assert!(!burst(&mixed).await);
    hand_over(&node, &some(&mixed, 1, Verdict::Deny)).await;
    assert!(burst(&mixed).await, "half of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_and_damaged_is_set_aside_and_told() {
    let mut node = Node::new().start().await;
    let agent = create(&node, "a").await.agent;
    hand_over(&node, &[decision(&agent, "x.test", Verdict::Allow)]).await;
    node.stop_control().await;
    let kept = node.config.node.state_dir.join("control").join("history");
    let tree = sled::open(&kept).expect("closed").open_tree("agents").expect("its agents");
    tree.insert(agent.index.to_be_bytes(), "rubbish").expect("damaged");
    drop(tree);
    node.start_control().await;
    assert!(kept.with_extension("unreadable").exists());
    assert!(history(&node, &agent, "x.test").await.first_seen, "nothing is known, so everything is new");
    let query = AuditQuery { kind: Some(RecordKind::Gap), ..AuditQuery::default() };
    let mut found = node.admin().search_audit(document(&query)).await.expect("audit").into_inner();
    let gap: AuditRecord = parse(&found.message().await.expect("record").expect("a gap").json);
    assert!(gap.detail.expect("detail").contains("agents' histories is lost"));
}
