//! Tenants with policies of their own, and the platform's above all, on real traffic.

use std::collections::BTreeMap;
use std::time::Duration;

use clawgress_api::{AuditRecord, RecordKind, Revisions};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::PolicyOwner;
use clawgress_policy::PolicyBundle;

use crate::generation::bundle;
use crate::harness::{Gateway, Options, PATIENCE};
use crate::upstream::Upstream;

const NET: &str = r#"@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };"#;

/// Makes the agent `other` one of the tenant `acme`, and gives everybody a policy.
async fn governed(gateway: &Gateway, own: Option<&str>, acme: Option<&str>, platform: Option<&str>) {
    let publish = |s: &mut clawgress_api::Snapshot<PolicyBundle>| {
        s.agents[1].id = "acme/other".parse().expect("id");
        s.keys[1].agent = "acme/other".parse().expect("id");
        s.policy = own.map(bundle);
        s.tenants = acme.map(|text| ("acme".to_owned(), bundle(text))).into_iter().collect();
        s.platform = platform.map(bundle);
        s.revisions = BTreeMap::from([
            (PolicyOwner::default(), 7),
            (PolicyOwner::Tenant("acme".into()), 5),
            (PolicyOwner::Platform, 3),
        ]);
    };
    assert_eq!(gateway.publish(publish).await, "");
}

fn get(host: &str, path: &str, auth: &str) -> String {
    format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{auth}\r\n")
}

async fn decision(gateway: &Gateway, path: &str) -> AuditRecord {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut records = gateway.control.records().into_iter();
        let is_it =
            |r: &AuditRecord| r.kind == RecordKind::Decision && r.destination.path.as_deref() == Some(path);
        if let Some(record) = records.rfind(is_it) {
            return record;
        }
        assert!(tokio::time::Instant::now() < deadline, "no decision on {path}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_tenant_has_its_own_and_none_lifts_the_platforms() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let (web, other) = (gateway.web(), gateway.authorization("acme/other", &gateway.other_key));
    let own = format!(
        r#"{NET} @id("http") permit (principal, action == Action::"http", resource) when {{ context.path like "/web*" || context.path like "/never*" }};"#
    );
    let acme = format!(
        r#"{NET} @id("http") permit (principal, action == Action::"http", resource) when {{ context.path like "/acme*" || context.path like "/never*" }};"#
    );
    let platform = r#"@id("all") permit (principal, action, resource);
        @id("never") forbid (principal, action == Action::"http", resource) when { context.path like "/never*" };"#;
    governed(&gateway, Some(&own), Some(&acme), Some(platform)).await;
    for (auth, path, wanted) in [
        (&web, "/web", Ok(())),
        (&web, "/acme", Err("policy_denied")),
        (&web, "/never/a", Err("policy_forbidden")),
        (&other, "/acme/b", Ok(())),
        (&other, "/web/b", Err("policy_denied")),
        (&other, "/never/b", Err("policy_forbidden")),
    ] {
        let answer = gateway.ask(&get(&host, path, auth)).await;
        match wanted {
            Ok(()) => assert_eq!(answer.status, 200, "{path}"),
            Err(reason) => assert_eq!((answer.status, answer.reason()), (403, reason), "{path}"),
        }
    }
    let asked = upstream.requests();
    assert_eq!(asked.len(), 2, "of what is denied nothing goes on: {asked:?}");
    let allowed = decision(&gateway, "/web").await;
    assert_eq!(allowed.policies, ["http", "net", "platform/all"]);
    assert_eq!(allowed.revisions, Some(Revisions { platform: Some(3), tenant: Some(7) }));
    let forbidden = decision(&gateway, "/never/b").await;
    assert_eq!(
        (forbidden.reason, forbidden.policies),
        (Some(DropReason::PolicyForbidden), vec!["platform/never".into()])
    );
    assert_eq!(forbidden.revisions, Some(Revisions { platform: Some(3), tenant: Some(5) }));

    // A tenant without a policy, whatever the platform permits; and what is allowed without the platform's.
    governed(&gateway, Some(&own), None, Some(platform)).await;
    assert_eq!(gateway.ask(&get(&host, "/acme/c", &other)).await.reason(), "policy_denied");
    governed(&gateway, None, None, Some(platform)).await;
    assert_eq!(gateway.ask(&get(&host, "/web/c", &web)).await.reason(), "policy_denied");
    governed(&gateway, None, None, None).await;
    assert_eq!(gateway.ask(&get(&host, "/web/d", &web)).await.reason(), "policy_missing");
    assert_eq!(upstream.requests().len(), 2);
    governed(&gateway, Some(&own), Some(&acme), None).await;
    assert_eq!(gateway.ask(&get(&host, "/never/e", &web)).await.status, 200);
    // A platform that permits some of it only.
    let some = r#"@id("some") permit (principal, action == Action::"connect", resource);"#;
    governed(&gateway, Some(&own), Some(&acme), Some(some)).await;
    assert_eq!(gateway.ask(&get(&host, "/web/f", &web)).await.reason(), "policy_denied");
    assert_eq!(upstream.requests().len(), 3);
}

/// What is under way is judged by what the platform says now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_word_of_the_platforms_ends_what_it_forbids() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::sink("127.1.0.1").await;
    let target = format!("api.allowed.test:{}", upstream.address.port());
    let own = format!(r#"{NET} @id("raw") permit (principal, action == Action::"tunnel", resource);"#);
    governed(&gateway, Some(&own), None, Some(r#"@id("all") permit (principal, action, resource);"#)).await;
    let (mut client, answer) = gateway.connect(&target).await;
    assert_eq!(answer.status, 200);
    client.send("neither TLS nor HTTP\n").await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while upstream.seen.bytes.lock().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "it goes through");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let forbid = r#"@id("all") permit (principal, action, resource); @id("no") forbid (principal, action == Action::"tunnel", resource);"#;
    governed(&gateway, Some(&own), None, Some(forbid)).await;
    assert!(client.is_closed(PATIENCE).await);
}
