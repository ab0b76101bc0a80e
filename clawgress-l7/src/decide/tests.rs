//! Hellos that were not seen yet.

use clawgress_api::clock::SystemClock;
use clawgress_api::handover::ListenerKind;
use clawgress_identity::IdentityMethod;

use super::*;
use crate::connection::{Bound, Connection, Flows};
use crate::identify;
use crate::snapshot::Snapshots;

/// Policies that tell hellos apart by all that a hello may be told apart by.
const POLICIES: [&str; 12] = [
    "",
    r#"@id("all") permit (principal, action, resource);"#,
    r#"@id("tls") permit (principal, action == Action::"tls", resource);"#,
    r#"@id("tls") permit (principal, action == Action::"tls", resource) when { context.alpn.contains("h2") };"#,
    r#"@id("tls") permit (principal, action == Action::"tls", resource) when { context.alpn.isEmpty() };
       @id("tunnel") permit (principal, action == Action::"tunnel", resource);"#,
    r#"@id("all") permit (principal, action, resource);
       @id("old") forbid (principal, action == Action::"tls", resource) unless { context.alpn.contains("h2") };"#,
    r#"@id("tls") permit (principal, action == Action::"tls", resource);
       @id("tunnel") permit (principal, action == Action::"tunnel", resource) when { context.protocol == "tls" };"#,
    r#"@id("tls") permit (principal, action == Action::"tls", resource);
       @id("tunnel") permit (principal, action == Action::"tunnel", resource) when { context.protocol == "tls_ech" };"#,
    r#"@id("all") permit (principal, action, resource);
       @id("ech") forbid (principal, action == Action::"tunnel", resource) when { context.protocol == "tls_ech" };"#,
    r#"@id("all") permit (principal, action, resource);
       @id("read") @effect("intercept") permit (principal, action == Action::"tls", resource) when { context.alpn.contains("h2") };"#,
    r#"@id("all") permit (principal, action, resource);
       @id("read") @effect("intercept") permit (principal, action == Action::"tunnel", resource) when { context.protocol == "tls_ech" };
       @id("told") @effect("alert") @severity("low") permit (principal, action == Action::"tls", resource);"#,
    r#"@id("all") permit (principal, action, resource);
       @id("told") @effect("alert") @severity("low") permit (principal, action == Action::"tls", resource) when { context.ja4 == "t13d1516h2_8daaf6152771_02713d6af862" };"#,
];

async fn plan(policy: &str) -> Arc<Plan> {
    let snapshots = Snapshots::new(Duration::from_secs(60), Arc::new(SystemClock));
    let document = serde_json::json!({
        "generation": 7, "policy": {"text": policy}, "keys": [],
        "agents": [{"id": "web", "index": 5, "state": "active"}],
    });
    let document = document.to_string().into_bytes();
    let envelope = clawgress_api::proto::Snapshot {
        generation: 7,
        document,
        ..clawgress_api::proto::Snapshot::default()
    };
    snapshots.apply_for_test(envelope).await;
    snapshots.current().expect("a plan")
}

fn who(plan: &Plan) -> Who {
    let address = |text: &str| text.parse().expect("address");
    let (peer, local) = (address("192.0.2.1:1000"), address("192.0.2.2:3128"));
    let mut connection = Connection::new(ListenerKind::Proxy, peer, local, || Ok(1), &Flows::default());
    connection.bound = Ok(Some(Bound { index: 5, method: IdentityMethod::Cgroup }));
    identify::bound(plan, &connection).expect("known").expect("bound")
}

#[tokio::test]
async fn hellos_that_were_not_seen_are_ruled_as_each_by_itself() {
    let host = Host::parse("a.test").expect("host");
    let mut verdicts = Vec::new();
    for policy in POLICIES {
        let plan = plan(policy).await;
        let (who, to) = (who(&plan), (&host, 443));
        for excluded in [false, true] {
            let each: Vec<Ruling> = guesses()
                .iter()
                .flat_map(|alpn| [false, true].map(|is_encrypted| Hello { alpn, ja4: "", is_encrypted }))
                .map(|hello| tls(&plan, &who, to, hello, excluded))
                .collect();
            let all: Vec<Ruling> = unseen(&plan, &who, to, excluded).collect();
            assert_eq!(all, each, "{policy}");
            let is_read = |ruling: &Ruling| ruling.verdict == Err(DropReason::InspectionRequired);
            assert_eq!(read_possible(&plan, &who, to, excluded), each.iter().any(is_read), "{policy}");
            let possible = tls_possible(&plan, &who, to, excluded);
            assert_eq!(
                possible.verdict.is_ok(),
                each.iter().any(|ruling| ruling.verdict.is_ok()),
                "{policy}"
            );
            // What a CONNECT takes it by.
            assert!(!is_read(&possible) || read_possible(&plan, &who, to, excluded), "{policy}");
            verdicts.extend(each.into_iter().map(|ruling| ruling.verdict));
        }
    }
    for verdict in [Ok(()), Err(DropReason::PolicyDenied), Err(DropReason::InspectionRequired)] {
        assert!(verdicts.contains(&verdict), "the policies tell too little apart: {verdict:?}");
    }
}
