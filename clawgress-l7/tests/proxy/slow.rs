//! Clients that take nothing of what they asked for.

use std::io::ErrorKind;
use std::time::Duration;

use clawgress_api::RecordKind;
use clawgress_ebpf_common::DropReason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::harness::{Gateway, Options, PATIENCE};
use crate::upstream::Upstream;

/// A server's write that takes so long waits for the gateway, which waits for its client.
const STALLED: Duration = Duration::from_millis(500);

/// A server whose answer never ends; it tells when it is not read.
async fn endless() -> Upstream {
    Upstream::start("127.1.0.1", None, |mut stream, seen| async move {
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n").await;
        while let Ok(Ok(())) = timeout(STALLED, stream.write_all(&[b'x'; 16 * 1024])).await {}
        seen.requests.lock().push("waits".to_owned());
        std::future::pending().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_does_not_take_is_not_kept_for_it() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = endless().await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let mut client = gateway.client().await;
    client.send(format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n{}\r\n", gateway.web())).await;
    assert_eq!(client.answer_head().await.status, 200);
    let stalled = async {
        while upstream.requests().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, stalled).await.expect("the server has to wait");
    assert_eq!(gateway.publish(|s| s.keys.clear()).await, "");
    let is_end = |r: &clawgress_api::AuditRecord| {
        r.kind == RecordKind::Outcome && r.reason == Some(DropReason::CredentialInvalid)
    };
    let ended = async {
        while !gateway.control.records().iter().any(is_end) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("the request ends with its key");
    // An end in order would come after all that the kernel has kept, however long that takes the client.
    let mut buffer = vec![0; 64 * 1024];
    let error = loop {
        match timeout(PATIENCE, client.stream.read(&mut buffer)).await.expect("in time") {
            Ok(0) => panic!("the answer ends in order"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
