//! A generation is prepared beside the live one: nothing shows of it before it is committed, and what can't be prepared is
//! found out without a change.

use std::collections::BTreeMap;

use clawgress_api::KernelGeneration;
use clawgress_api::proto::KernelGeneration as Envelope;
use clawgress_policy::kernel::KernelTables;
use tonic::Code;

use crate::kernel::agent;
use crate::lab::Lab;
use crate::network::{PORT, Server, WORKS, agents, dial, families, refused, tables, talk};

fn envelope(document: &KernelGeneration<KernelTables>, name: &[u8]) -> Envelope {
    let (generation, name) = (document.generation, name.to_vec());
    Envelope { generation, document: serde_json::to_vec(document).expect("document"), name }
}

fn generation(generation: u64, tables: Option<KernelTables>) -> KernelGeneration<KernelTables> {
    let (agents, shared, revisions) = (agents(), Vec::new(), BTreeMap::new());
    KernelGeneration { generation, tables, agents, shared, revisions, turns_at: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_prepared_counts_when_it_is_committed() {
    let mut lab = Lab::new();
    lab.start().await;
    lab.apply(5, tables(), agents()).await;
    let mut client = lab.client().await;
    let [f, _] = families();
    let _server = Server::start(&lab, f.direct);

    // Everything denied: not yet.
    client.prepare(envelope(&generation(6, None), b"six")).await.expect("prepared");
    assert_eq!(lab.status().await.generation, 5);
    talk(&mut dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct"), b"before");

    // By its name, and that alone.
    let by_name =
        |generation, name: &[u8]| Envelope { generation, document: Vec::new(), name: name.to_vec() };
    client.prepare(envelope(&generation(6, None), b"six")).await.expect("prepared");
    let committed = client.apply(by_name(6, b"six")).await.expect("committed").into_inner();
    let status: clawgress_api::DatapathStatus = serde_json::from_slice(&committed.document).expect("status");
    assert_eq!(status.generation, 6);
    refused(&lab, "when it is live", f.known, f.direct);
    let again = client.apply(by_name(6, b"six")).await.expect_err("it is not held any more");
    assert_eq!(again.code(), Code::NotFound);

    // What comes in between takes the place of what was prepared for the same number.
    client.prepare(envelope(&generation(7, None), b"seven")).await.expect("prepared");
    lab.apply(7, tables(), agents()).await;
    assert_eq!(client.apply(by_name(7, b"seven")).await.expect_err("gone").code(), Code::NotFound);
    talk(&mut dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct"), b"after");

    // What can't be applied can't be prepared, and what was held is not held on.
    let mut two = generation(8, Some(tables()));
    two.agents.push(agent(2, &["ga=10.77.0.2,any-mac"]));
    client.prepare(envelope(&generation(8, None), b"eight")).await.expect("prepared");
    let error = client.prepare(envelope(&two, b"two")).await.expect_err("refused");
    assert!(error.message().contains("same source"), "{}", error.message());
    for name in [&b"two"[..], b"eight"] {
        assert_eq!(client.apply(by_name(8, name)).await.expect_err("gone").code(), Code::NotFound);
    }
    assert_eq!(lab.status().await.generation, 7);
    talk(&mut dial(&lab, f.known, (f.direct, PORT), WORKS).expect("direct"), b"still");
}
