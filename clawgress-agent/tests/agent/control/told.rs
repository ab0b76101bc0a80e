//! What follows on records of `connect`: in the record itself, and in a quarantine.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use clawgress_agent::control;
use clawgress_api::clock::SystemClock;
use clawgress_api::proto::{AuditBatch, Empty, Name};
use clawgress_api::{AgentRef, AuditQuery, AuditRecord, Plane, RecordKind, Verdict};
use clawgress_identity::{Agent, AgentState, IdentityMethod};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::faults::Fatal;
use super::{apply, create, records, status};
use crate::node::{Node, Role, parse, until};

const TEXT: &str = r#"
@id("net") permit (principal, action in [Action::"connect", Action::"direct"], resource) when { context.protocol == "udp" };
@id("odd") @effect("alert") @severity("high") permit (principal, action == Action::"connect", resource) when { context.port == 4444 };
@id("trap") @effect("quarantine") @for("15m") permit (principal == Agent::"caught", action == Action::"connect", resource)
when { context.ip.isInRange(ip("198.51.100.0/24")) };
@id("past") @effect("alert") permit (principal, action == Action::"direct", resource) when { context.port == 53 };
@id("try") @mode("log-only") forbid (principal, action == Action::"connect", resource) when { context.port == 4444 };
"#;

fn decision(agent: &Agent, plane: Plane, to: (&str, u16), verdict: Verdict) -> AuditRecord {
    let now = jiff::Timestamp::now();
    let request = format!("r-{}-{}-{}-{plane:?}", agent.id, to.0, to.1);
    let mut record = AuditRecord::new(now, "test", RecordKind::Decision, plane, request, 1);
    record.agent = Some(AgentRef::new(agent, IdentityMethod::Source));
    record.destination.ip = Some(to.0.parse::<IpAddr>().expect("address"));
    record.destination.port = Some(to.1);
    record.destination.protocol = Some(if plane == Plane::Kernel { "udp" } else { "tcp" }.to_owned());
    record.action = Some("connect".to_owned());
    record.verdict = Some(verdict);
    record
}

async fn hand_over(node: &Node, records: &[AuditRecord]) {
    try_to_hand_over(node, records).await.expect("ack");
}

async fn try_to_hand_over(node: &Node, records: &[AuditRecord]) -> Result<(), tonic::Status> {
    let (sender, receiver) = mpsc::channel(1);
    let mut acks = node.audit().append(ReceiverStream::new(receiver)).await.expect("append").into_inner();
    let records = records.iter().map(|record| serde_json::to_vec(record).expect("json")).collect();
    sender.send(AuditBatch { sequence: 1, records }).await.expect("sent");
    let ack = acks.message().await?;
    assert_eq!(ack.map(|ack| ack.sequence), Some(1));
    Ok(())
}

/// `POLICY EFFECT SEVERITY` of each decision, by its port.
async fn effects(node: &Node) -> Vec<(u16, Vec<String>)> {
    let query = AuditQuery { kind: Some(RecordKind::Decision), ..AuditQuery::default() };
    let effects = |record: AuditRecord| {
        let told = record
            .effects
            .into_iter()
            .map(|e| format!("{} {} {}", e.policy, e.effect, e.severity.unwrap_or_else(|| "-".to_owned())));
        (record.destination.port.unwrap_or(0), told.collect())
    };
    records(node, query).await.into_iter().map(effects).collect()
}

async fn quarantined(node: &Node) -> Vec<String> {
    let all = node.admin().list_agents(Empty {}).await.expect("list").into_inner().json;
    let agents = all.iter().map(|json| parse::<Agent>(json));
    agents.filter(|a| a.state == AgentState::Quarantined).map(|a| a.id.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_planes_tell_of_connect_has_what_follows() {
    let node = Node::new().start().await;
    let (caught, other) = (create(&node, "caught").await.agent, create(&node, "other").await.agent);
    apply(&node, TEXT).await;
    let (allow, deny) = (Verdict::Allow, Verdict::Deny);
    hand_over(
        &node,
        &[
            decision(&other, Plane::Kernel, ("203.0.113.1", 4444), allow),
            decision(&other, Plane::L7, ("203.0.113.1", 4444), deny),
            decision(&other, Plane::Kernel, ("203.0.113.1", 53), allow),
            decision(&other, Plane::L7, ("203.0.113.2", 53), allow),
            decision(&other, Plane::Kernel, ("203.0.113.2", 53), deny),
            decision(&other, Plane::Kernel, ("198.51.100.9", 54), allow),
        ],
    )
    .await;
    let both = vec!["odd alert high".to_owned(), "try would-forbid -".to_owned()];
    let past = vec!["past alert medium".to_owned()];
    let wanted = [(4444, both.clone()), (4444, both), (53, past), (53, vec![]), (53, vec![]), (54, vec![])];
    assert_eq!(effects(&node).await, wanted, "only what went direct did");
    assert!(quarantined(&node).await.is_empty());
    // Whose record says so is out of both planes, for so long.
    hand_over(&node, &[decision(&caught, Plane::Kernel, ("198.51.100.9", 55), allow)]).await;
    assert_eq!(effects(&node).await.last(), Some(&(55, vec!["trap quarantine medium".to_owned()])));
    until("the quarantine", async || quarantined(&node).await == ["default/caught"]).await;
}

const TRAP: &str = r#"
@id("net") permit (principal, action in [Action::"connect", Action::"direct"], resource) when { context.protocol == "udp" };
@id("trap") @effect("quarantine") @for("15m") permit (principal, action == Action::"connect", resource)
when { context.ip.isInRange(ip("198.51.100.0/24")) };
"#;

/// What the trap is for.
fn trapped(agent: &Agent) -> AuditRecord {
    decision(agent, Plane::Kernel, ("198.51.100.9", 55), Verdict::Allow)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_agents_burst_takes_no_other_agents_quarantine() {
    let node = Node::new().start().await;
    let (loud, quiet) = (create(&node, "loud").await.agent, create(&node, "quiet").await.agent);
    apply(&node, TRAP).await;
    let mut burst = vec![trapped(&loud); 3_000];
    burst.push(trapped(&quiet));
    hand_over(&node, &burst).await;
    until("both", async || quarantined(&node).await == ["default/loud", "default/quiet"]).await;
}

/// A record holds so many effects; what more match may hide no quarantine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_alerts_take_no_quarantine() {
    let node = Node::new().start().await;
    let agent = create(&node, "a").await.agent;
    let alert = |n: u32| {
        format!(
            "@id(\"all-{n}\") @effect(\"alert\") permit (principal, action == Action::\"connect\", resource);\n"
        )
    };
    let alerts: String = (0..80).map(alert).collect();
    apply(&node, &format!("{TRAP}{alerts}")).await;
    hand_over(&node, &[trapped(&agent)]).await;
    let all = effects(&node).await;
    let [(55, told)] = &all[..] else { panic!("{all:?}") };
    assert_eq!((told.len(), told.first().map(String::as_str)), (64, Some("trap quarantine medium")));
    until("the quarantine", async || quarantined(&node).await == ["default/a"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_name_of_a_request_keeps_its_agent_from_being_quarantined() {
    let node = Node::new().start().await;
    let agent = create(&node, "a").await.agent;
    apply(&node, TRAP).await;
    let record = AuditRecord { request: "nobody's\n".repeat(200), ..trapped(&agent) };
    hand_over(&node, &[record]).await;
    until("the quarantine", async || quarantined(&node).await == ["default/a"]).await;
}

/// A worker hands over again what was not acknowledged, and nobody has to do anything for it twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_come_again_or_late_quarantine_nobody_anew() {
    let node = Node::new().start().await;
    let (caught, late) = (create(&node, "caught").await.agent, create(&node, "late").await.agent);
    let other = create(&node, "other").await.agent;
    apply(&node, TRAP).await;
    let again = trapped(&caught);
    hand_over(&node, std::slice::from_ref(&again)).await;
    until("the quarantine", async || quarantined(&node).await == ["default/caught"]).await;
    node.admin().release_agent(Name { name: "caught".into() }).await.expect("released");
    let mut old = trapped(&late);
    old.time -= jiff::SignedDuration::from_mins(16);
    hand_over(&node, &[again, old, trapped(&other)]).await;
    until("the last one", async || !quarantined(&node).await.is_empty()).await;
    assert_eq!(quarantined(&node).await, ["default/other"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deleted_agent_did_the_next_of_its_name_did_not() {
    let node = Node::new().start().await;
    let (former, other) = (create(&node, "a").await.agent, create(&node, "z").await.agent);
    apply(&node, TRAP).await;
    node.admin().delete_agent(Name { name: "a".into() }).await.expect("deleted");
    let next = create(&node, "a").await.agent;
    assert_ne!(former.index, next.index);
    hand_over(&node, &[trapped(&former), trapped(&other)]).await;
    let told = effects(&node).await.into_iter().map(|(_, effects)| effects.len());
    assert_eq!(told.collect::<Vec<_>>(), [0, 1]);
    until("the other's", async || quarantined(&node).await == ["default/z"]).await;
}

/// The parent proxy that is dialled is asked for `connect` too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_on_a_parent_proxys_address_follows() {
    let node = Node::new().start().await;
    let agent = create(&node, "a").await.agent;
    apply(&node, TRAP).await;
    let mut record = decision(&agent, Plane::L7, ("203.0.113.1", 443), Verdict::Allow);
    record.destination.via = Some("corp".to_owned());
    record.destination.via_address = Some("198.51.100.7:3128".parse().expect("address"));
    record.destination.ip = None;
    hand_over(&node, &[record]).await;
    assert_eq!(effects(&node).await, [(443, vec!["trap quarantine medium".to_owned()])]);
    until("the quarantine", async || quarantined(&node).await == ["default/a"]).await;
}

/// Nor does status go on to tell of it once it is done, though nobody hands the record over again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_does_not_wait_for_anothers_quarantine_to_be_stored() {
    let mut node = Node::new();
    node.start_keys().await;
    let fatal = Arc::new(Fatal::default());
    let (config, store) = (Arc::clone(&node.config), Arc::clone(&fatal));
    let role = Role::start(|stop| control::serve(config, store, Arc::new(SystemClock), stop));
    until("control", async || node.admin().status(Empty {}).await.is_ok()).await;
    let (caught, other) = (create(&node, "caught").await.agent, create(&node, "other").await.agent);
    apply(&node, TEXT).await;
    fatal.is_full.store(true, Ordering::SeqCst);
    let trapped = trapped(&caught);
    let refused = try_to_hand_over(&node, std::slice::from_ref(&trapped)).await.expect_err("not stored");
    assert!(refused.message().contains("no room"), "{refused}");
    let is_told = async || {
        let warnings = status(&node).await.warnings;
        warnings.iter().any(|warning| warning.starts_with("what follows on records can't be stored"))
    };
    assert!(is_told().await);
    hand_over(&node, &[decision(&other, Plane::Kernel, ("203.0.113.1", 4444), Verdict::Allow)]).await;
    assert_eq!(
        effects(&node).await,
        [(4444, vec!["odd alert high".to_owned(), "try would-forbid -".to_owned()])]
    );
    fatal.is_full.store(false, Ordering::SeqCst);
    until("the quarantine", async || quarantined(&node).await == ["default/caught"]).await;
    until("no warning", async || !is_told().await).await;
    role.stop().await;
}
