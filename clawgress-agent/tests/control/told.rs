//! What follows on records of `connect`: in the record itself, and in a quarantine.

use std::net::IpAddr;

use clawgress_api::proto::{AuditBatch, Empty};
use clawgress_api::{AgentRef, AuditQuery, AuditRecord, Plane, RecordKind, Verdict};
use clawgress_identity::{Agent, AgentState, IdentityMethod};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::node::{Node, parse, until};
use super::{apply, create, records};

const TEXT: &str = r#"
@id("net") permit (principal, action in [Action::"connect", Action::"direct"], resource) when { context.protocol == "udp" };
@id("odd") @effect("alert") @severity("high") permit (principal, action == Action::"connect", resource) when { context.port == 4444 };
@id("trap") @effect("quarantine") @for("15m") permit (principal == Agent::"caught", action == Action::"connect", resource)
when { context.ip.isInRange(ip("198.51.100.0/24")) };
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
    let (sender, receiver) = mpsc::channel(1);
    let mut acks = node.audit().append(ReceiverStream::new(receiver)).await.expect("append").into_inner();
    let records = records.iter().map(|record| serde_json::to_vec(record).expect("json")).collect();
    sender.send(AuditBatch { sequence: 1, records }).await.expect("sent");
    acks.message().await.expect("ack").expect("ack");
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
            decision(&other, Plane::Kernel, ("198.51.100.9", 54), allow),
        ],
    )
    .await;
    let both = vec!["odd alert high".to_owned(), "try would-forbid -".to_owned()];
    assert_eq!(effects(&node).await, [(4444, both.clone()), (4444, both), (53, vec![]), (54, vec![])]);
    assert!(quarantined(&node).await.is_empty());
    // Whose record says so is out of both planes, for so long.
    hand_over(&node, &[decision(&caught, Plane::Kernel, ("198.51.100.9", 55), allow)]).await;
    assert_eq!(effects(&node).await.last(), Some(&(55, vec!["trap quarantine medium".to_owned()])));
    until("the quarantine", async || quarantined(&node).await == ["default/caught"]).await;
}
