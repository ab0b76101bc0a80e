//! Fingerprints of hellos: recorded, and policy's to ask for.

use std::sync::atomic::Ordering;

use clawgress_api::AuditRecord;
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::client_hello::Reassembler;
use clawgress_inspect::ja4::Ja4;

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
