//! A generation counts for its time, and not much longer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clawgress_api::KernelGeneration;
use clawgress_policy::kernel::KernelTables;
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;

use crate::lab::Lab;
use crate::network::{PORT, REFUSED, Server, WORKS, agents, dial, families, records, refused, tables, talk};

/// As long as a generation counts after its time.
const LATE: SignedDuration = SignedDuration::from_secs(60);
/// How much of that is left when it is applied: enough to find that it counts.
const LEFT: SignedDuration = SignedDuration::from_secs(15);

fn generation(generation: u64, turns_at: Option<Timestamp>) -> KernelGeneration<KernelTables> {
    KernelGeneration {
        generation,
        tables: Some(tables()),
        agents: agents(),
        shared: Vec::new(),
        revisions: BTreeMap::new(),
        turns_at,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_whose_time_is_over_is_closed() {
    // What is open for want of a policy is not open for this.
    let open = "[interface.danger]\nfail_open = [\"revision\"]\n";
    let mut lab = Lab::with(open, "");
    lab.start().await;
    let turned = Timestamp::now() - LATE + LEFT;
    let late = generation(1, Some(turned));
    lab.apply_document(late.clone()).await;
    let [f, _] = families();
    let _server = Server::start(&lab, f.direct);
    let mut open = dial(&lab, f.known, (f.direct, PORT), WORKS).expect("it counts still");
    talk(&mut open, b"open");

    let told = |r: &clawgress_api::AuditRecord| {
        r.detail.as_ref().is_some_and(|d| d.contains("is of a time that ended at"))
    };
    records(&lab, 2 * WORKS, told).await;
    for f in families() {
        refused(&lab, "after its time", f.known, f.direct);
        refused(&lab, "after its time", f.known, f.steered);
    }
    let absent = lab.status().await.absent;
    assert!(absent.iter().any(|a| a.contains("no later one has come within 60 s")), "{absent:?}");

    // Neither another process nor the same generation again makes it count.
    lab.stop(Signal::SIGTERM);
    lab.start().await;
    lab.apply_document(late).await;
    refused(&lab, "applied when its time was over", f.known, f.direct);

    lab.apply_document(generation(2, None)).await;
    let until = Instant::now() + WORKS;
    while dial(&lab, f.known, (f.direct, PORT), REFUSED).is_err() {
        assert!(Instant::now() < until, "a later one must count");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let absent = lab.status().await.absent;
    assert!(!absent.iter().any(|a| a.contains("of a time that ended")), "{absent:?}");
}
