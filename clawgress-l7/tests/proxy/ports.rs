//! CONNECT to ports of services that speak neither TLS nor HTTP, by an agent whose policy permits those alone.

use clawgress_api::Verdict;
use clawgress_ebpf_common::DropReason;

use crate::harness::{Gateway, Options, POLICY};
use crate::intercept::{HOST, Site};

/// SSH, mail and Redis: a port, and what a client says there.
const SERVICES: [(u16, &[u8]); 4] = [
    (22, b"SSH-2.0-OpenSSH_9.9\r\n"),
    (25, b"EHLO mail.test\r\n"),
    (6379, b"*1\r\n$4\r\nPING\r\n"),
    (6379, b"PING\r\n"),
];

/// Permits requests in clear, whatever their port.
const CLEAR: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource);
@id("http") permit (principal == Agent::"web", action == Action::"http", resource == Host::"read.allowed.test");
"#;

/// A tunnel of whose bytes nothing is told to a server, since none was looked for.
async fn is_refused(gateway: &Gateway, port: u16, said: &[u8], reason: DropReason) {
    let n = gateway.outcomes();
    let (mut client, answer) = gateway.connect(&format!("{HOST}:{port}")).await;
    if reason == DropReason::ProtocolUnknown {
        assert_eq!(answer.status, 200, "{port}: what is said within tells");
        client.send(said).await;
        assert!(client.rest().await.is_empty(), "{port}");
    } else {
        assert_eq!((answer.status, answer.reason()), (403, reason.to_string().as_str()), "{port}");
    }
    let (decision, outcome) = gateway.exchange(n).await;
    assert_eq!((decision.verdict, decision.reason), (Some(Verdict::Deny), Some(reason)), "{port}");
    assert_eq!((decision.destination.port, decision.destination.ip), (Some(port), None));
    assert_eq!(outcome.bytes_sent.unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_permits_requests_opens_no_other_service() {
    // TLS that is to be read, where none is: refused at once.
    let gateway = Gateway::start(Options::default()).await;
    for (port, said) in SERVICES {
        is_refused(&gateway, port, said, DropReason::InspectionRequired).await;
    }
    // Requests in clear may follow, and something else does.
    assert_eq!(gateway.publish_policy(CLEAR).await, "");
    for (port, said) in SERVICES {
        is_refused(&gateway, port, said, DropReason::ProtocolUnknown).await;
    }
    assert_eq!(gateway.dns.asked(HOST), 0, "nothing was dialled: no address is known");

    // TLS that is read may follow.
    let site = Site::start(POLICY, "").await;
    for (port, said) in SERVICES {
        is_refused(&site.gateway, port, said, DropReason::ProtocolUnknown).await;
    }
    assert_eq!((site.gateway.dns.asked(HOST), site.upstream.connections()), (0, 0));
}
