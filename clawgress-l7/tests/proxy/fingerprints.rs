//! Fingerprints of hellos: recorded, and policy's to ask for.

use std::sync::atomic::Ordering;

use clawgress_api::{AuditRecord, RunRef, Snapshot, Verdict};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::client_hello::Reassembler;
use clawgress_inspect::ja4::Ja4;
use serde_json::json;

use crate::harness::{Gateway, Options, POLICY};
use crate::tunnels::{hello, hello_with};
use crate::upstream::Upstream;

fn fingerprint(hello: &[u8]) -> String {
    let hello = Reassembler::default().push(hello).expect("a hello").expect("whole");
    Ja4::of(&hello).to_string()
}

fn recorded(record: &AuditRecord) -> Option<&str> {
    record.fingerprint.as_ref()?.ja4.as_deref()
}

/// Sends a hello through a tunnel, and ends: what was recorded of it.
async fn tunnelled(gateway: &Gateway, upstream: &Upstream, hello: &[u8], number: usize) -> AuditRecord {
    let port = upstream.address.port();
    let (mut client, answer) = gateway.connect(&format!("api.allowed.test:{port}")).await;
    assert_eq!(answer.status, 200);
    client.send(hello).await;
    gateway.decisions(number + 1).await;
    drop(client);
    let (decision, outcome) = gateway.exchange(number).await;
    assert_eq!(outcome.fingerprint, decision.fingerprint);
    decision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_are_told_apart_by_their_hellos() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::tls("127.1.0.1", "api.allowed.test").await;
    let (one, again) = (hello("api.allowed.test"), hello("api.allowed.test"));
    let other = hello_with("api.allowed.test", &["h2", "http/1.1"]);
    assert_ne!(one, again, "each has a random part");
    assert_eq!(fingerprint(&one), fingerprint(&again));
    assert_ne!(fingerprint(&one), fingerprint(&other));
    // TLS may only be permitted to one program: nothing can be said before its hello.
    let wanted = fingerprint(&one);
    let policy = format!(
        "{POLICY}@id(\"one\") forbid (principal, action == Action::\"tls\", resource)
        when {{ context.ja4 != \"{wanted}\" }};"
    );
    for (number, (hello, text)) in [(&one, POLICY), (&again, &policy)].into_iter().enumerate() {
        assert_eq!(gateway.publish_policy(text).await, "");
        let decision = tunnelled(&gateway, &upstream, hello, number).await;
        assert_eq!((recorded(&decision), decision.reason), (Some(wanted.as_str()), None));
    }
    let seen = upstream.seen.connections.load(Ordering::SeqCst);
    let decision = tunnelled(&gateway, &upstream, &other, 2).await;
    assert_eq!(recorded(&decision), Some(fingerprint(&other).as_str()));
    assert_eq!(decision.reason, Some(DropReason::PolicyForbidden));
    assert_eq!(decision.policies, ["one"]);
    assert_eq!(upstream.seen.connections.load(Ordering::SeqCst), seen, "nothing was dialled for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_waits_for_its_hello_only_where_that_decides() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::tls("127.1.0.1", "api.allowed.test").await;
    let port = upstream.address.port();
    // One program may speak TLS to one host, and nobody to any other.
    let text = format!(
        "{POLICY}@id(\"none\") forbid (principal, action == Action::\"tls\", resource == Host::\"llm.allowed.test\");
        @id(\"one\") forbid (principal, action == Action::\"tls\", resource == Host::\"api.allowed.test\")
        when {{ context.ja4 != \"t13d\" }};
        @id(\"no-http\") forbid (principal, action == Action::\"http\", resource);"
    );
    assert_eq!(gateway.publish_policy(&text).await, "");
    let (_, answer) = gateway.connect(&format!("api.allowed.test:{port}")).await;
    assert_eq!(answer.status, 200, "what it is, its hello tells");
    let (_, answer) = gateway.connect(&format!("llm.allowed.test:{port}")).await;
    assert_eq!((answer.status, answer.reason()), (403, "policy_forbidden"), "no hello changes that");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_run_began_with_is_policys_to_ask_for() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let text = format!(
        "{POLICY}@id(\"known\") forbid (principal, action == Action::\"http\", resource)
        unless {{ context has executable && context.executable == \"aa\" }};"
    );
    let status = async || {
        let mut client = gateway.client().await;
        let web = gateway.web();
        client.send(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n{web}\r\n")).await;
        client.answer().await.status
    };
    assert_eq!(gateway.publish_policy(&text).await, "");
    assert_eq!(status().await, 403, "of a key of no run nothing is known");
    for (executable, wanted) in [(Some("aa"), 200), (Some("bb"), 403), (None, 403)] {
        let run = |s: &mut Snapshot<_>| {
            let (agent, key) = (s.keys[0].agent.clone(), s.keys[0].id.clone());
            s.runs = vec![RunRef { agent, key, executable: executable.map(str::to_owned), cgroup: None }];
        };
        assert_eq!(gateway.publish(run).await, "");
        assert_eq!(status().await, wanted, "{executable:?}");
    }
    gateway.decisions(4).await;
    let mut exchanges = vec![];
    for n in 0..4 {
        exchanges.push(gateway.exchange(n).await);
    }
    // Which connection ends first is nobody's promise.
    let allowed = exchanges.into_iter().find(|(decision, _)| decision.verdict == Some(Verdict::Allow));
    let (decision, outcome) = allowed.expect("one is allowed");
    assert_eq!(decision.attributes.and_then(|a| a.fingerprints), Some(json!({ "executable": "aa" })));
    assert_eq!(decision.fingerprint.and_then(|f| f.executable).as_deref(), Some("aa"));
    assert_eq!(outcome.fingerprint.and_then(|f| f.executable).as_deref(), Some("aa"));
    // Where policy doesn't ask, it is recorded all the same, and not as something that was read.
    assert_eq!(gateway.publish_policy(POLICY).await, "");
    assert_eq!(status().await, 200);
    gateway.decisions(5).await;
    assert_eq!(gateway.exchange(4).await.0.attributes.and_then(|a| a.fingerprints), None);
}
