//! What waits is carried in batches, within bounds, and what is lost is counted.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;

use clawgress_api::RECORD_BYTES_MAX;
use clawgress_api::clock::SystemClock;

use super::*;

fn put(audit: &Audit) {
    assert!(audit.try_put(&audit.record(1)));
}

/// Whether the next batch is there at once; if it isn't, gathering it is given up.
async fn is_there(carrier: &mut Carrier) -> bool {
    let mut gather = pin!(carrier.gather());
    poll_fn(|cx| Poll::Ready(gather.as_mut().poll(cx).is_ready())).await
}

#[tokio::test]
async fn what_comes_within_a_moment_is_one_batch_and_nothing_taken_is_forgotten() {
    let (audit, mut carrier) = queue("node", Arc::new(SystemClock), (1, usize::MAX), "test");
    put(&audit);
    // Given up in the middle, as for an acknowledgement.
    assert!(!is_there(&mut carrier).await);
    put(&audit);
    put(&audit);
    assert!(carrier.gather().await);
    put(&audit);
    assert!(carrier.gather().await);
    let sizes: Vec<usize> = carrier.unacked.iter().map(|sent| sent.batch.records.len()).collect();
    assert_eq!(sizes, [3, 1]);
}

#[tokio::test]
async fn what_was_put_before_the_end_is_carried() {
    let (audit, mut carrier) = queue("node", Arc::new(SystemClock), (1, usize::MAX), "test");
    put(&audit);
    drop(audit);
    assert!(carrier.gather().await);
    assert!(!carrier.gather().await);
}

#[tokio::test]
async fn a_full_batch_waits_for_nothing() {
    let (audit, mut carrier) = queue("node", Arc::new(SystemClock), (1, usize::MAX), "test");
    (0..=limit::AUDIT_BATCH).for_each(|_| put(&audit));
    assert!(is_there(&mut carrier).await);
    let last = carrier.unacked.back().map(|sent| sent.batch.records.len());
    assert_eq!(last, Some(limit::AUDIT_BATCH));
}

/// A record as large as the log takes one.
fn large(audit: &Audit) -> AuditRecord {
    let mut record = audit.record(1);
    record.destination.path = Some("/".repeat(RECORD_BYTES_MAX - 1024));
    record
}

#[tokio::test]
async fn a_batch_is_bounded_by_bytes_and_what_has_no_room_is_in_the_next() {
    let (audit, mut carrier) = queue("node", Arc::new(SystemClock), (1, usize::MAX), "test");
    (0..limit::AUDIT_BATCH).for_each(|_| assert!(audit.try_put(&large(&audit))));
    drop(audit);
    while carrier.gather().await {}
    let carried: usize = carrier.unacked.iter().map(|sent| sent.batch.records.len()).sum();
    assert_eq!(carried, limit::AUDIT_BATCH, "each once");
    let taken: u64 = carrier.unacked.iter().map(|sent| sent.taken).sum();
    assert_eq!(taken, limit::AUDIT_BATCH as u64);
    for Sent { batch, .. } in &carrier.unacked {
        let bytes: usize = batch.records.iter().map(Vec::len).sum();
        assert!(bytes <= limit::AUDIT_BATCH_BYTES, "{bytes}");
    }
}

#[tokio::test]
async fn large_records_are_cut_before_the_queue_has_no_room() {
    let (audit, mut carrier) = queue("node", Arc::new(SystemClock), (1, usize::MAX), "test");
    let rooms: Vec<Room> = std::iter::from_fn(|| audit.put_and_reserve(&large(&audit))).collect();
    assert!(audit.shared.bytes.load(Ordering::Relaxed) <= audit.shared.bytes_max);
    let count = rooms.len();
    for room in rooms {
        room.put(&large(&audit));
    }
    assert!(audit.shared.bytes.load(Ordering::Relaxed) <= audit.shared.bytes_max, "outcomes have room");
    let records = carrier.drain_for_test();
    assert_eq!(records.len(), 2 * count);
    let bytes: usize =
        records.iter().filter_map(|record| record.destination.path.as_ref()).map(String::len).sum();
    assert!(bytes <= audit.shared.bytes_max, "{bytes}");
    assert!(
        !records[0].truncated && records[count - 1].truncated,
        "half of the room is for those that are cut"
    );
    assert_eq!(audit.shared.bytes.load(Ordering::Relaxed), 0, "all is given back");
}

#[tokio::test]
async fn what_control_refuses_becomes_a_gap_that_counts_all_of_it() {
    let (audit, mut carrier) = queue("node", Arc::new(SystemClock), (1, usize::MAX), "test");
    put(&audit);
    put(&audit);
    audit.gap(None, 3, "tests");
    audit.lose(None, 4);
    assert!(carrier.gather().await);
    // Also if the gap is refused in its turn.
    for _ in 0..2 {
        carrier.give_up_first();
        let first = carrier.unacked.front().expect("a batch");
        assert_eq!((first.batch.sequence, first.taken, first.batch.records.len()), (1, 3, 1));
        let gap: AuditRecord = serde_json::from_slice(&first.batch.records[0]).expect("record");
        assert_eq!((gap.kind, gap.count), (RecordKind::Gap, Some(2 + 6 + 4)));
    }
    carrier.acked(Some(AuditAck { sequence: 1 })).expect("acknowledged");
    assert!(audit.flush(Duration::from_secs(1)).await, "nothing is left");
    assert_eq!(audit.shared.bytes.load(Ordering::Relaxed), 0);
}

fn of_agent(audit: &Audit, index: u32) -> AuditRecord {
    let mut record = audit.record(1);
    let agent = serde_json::json!({ "tenant": "default", "agent": format!("agent-{index}"), "index": index, "method": "api_key" });
    record.agent = Some(serde_json::from_value(agent).expect("an agent"));
    record
}

#[tokio::test]
async fn an_agent_that_floods_takes_its_share_and_is_named_in_a_gap() {
    let (audit, mut carrier) = queue("node", Arc::new(SystemClock), (100, 25), "test");
    let rooms = || std::iter::from_fn(|| audit.put_and_reserve(&of_agent(&audit, 1))).collect::<Vec<_>>();
    let first = rooms();
    // Two places of the queue each.
    assert_eq!(2 * first.len(), (limit::AUDIT_BACKLOG / limit::AUDIT_BACKLOG_PART + 3 * 25) / 2 * 2);
    let flooded = of_agent(&audit, 1);
    audit.lose(flooded.agent.as_ref(), 2);
    audit.lose(flooded.agent.as_ref(), 2);
    let others = audit.put_and_reserve(&of_agent(&audit, 2)).expect("others have room");
    others.put(&of_agent(&audit, 2));
    assert!(carrier.gather().await);
    let last = carrier.unacked.back().expect("a batch");
    let gap = last.batch.records.last().expect("a record");
    let gap: AuditRecord = serde_json::from_slice(gap).expect("record");
    let agent = gap.agent.as_ref().map(|agent| agent.agent.as_str());
    assert_eq!((gap.kind, agent, gap.count), (RecordKind::Gap, Some("agent-1"), Some(4)));
    assert_eq!(last.stands_for, limit::AUDIT_BATCH as u64 + 4);
    // What was carried and acknowledged has room again.
    drop(first);
    carrier.drain_for_test();
    carrier.acked(Some(AuditAck { sequence: 1 })).expect("acknowledged");
    assert!(!rooms().is_empty());
}

#[tokio::test(start_paused = true)]
async fn whoever_is_ahead_of_the_log_waits_for_it_and_not_for_one_that_stands() {
    let (audit, mut carrier) = queue("node", Arc::new(SystemClock), (100, 25), "test");
    let waited = async |agent: u32| {
        let begun = Instant::now();
        audit.keep_pace(agent).await;
        begun.elapsed()
    };
    assert!(waited(1).await.is_zero(), "nobody waits who has room");
    while audit.put_and_reserve(&of_agent(&audit, 1)).is_some() {}
    assert!(waited(2).await.is_zero(), "nor do others");
    // The log takes what there is meanwhile.
    let taken = async {
        tokio::time::sleep(limit::AUDIT_PACE_MAX / 2).await;
        while is_there(&mut carrier).await {}
        let last = carrier.sequence;
        carrier.acked(Some(AuditAck { sequence: last })).expect("acknowledged");
    };
    let (waited_for, ()) = tokio::join!(waited(1), taken);
    assert!(waited_for >= limit::AUDIT_PACE_MAX / 2 && waited_for < limit::AUDIT_PACE_MAX, "{waited_for:?}");
    // It takes nothing any more: the first waits in vain, and nobody after it, until it goes on.
    while audit.put_and_reserve(&of_agent(&audit, 1)).is_some() {}
    assert!(waited(1).await >= limit::AUDIT_PACE_MAX);
    assert!(waited(1).await.is_zero());
    assert!(carrier.gather().await);
    let last = carrier.sequence;
    carrier.acked(Some(AuditAck { sequence: last })).expect("acknowledged");
    while audit.put_and_reserve(&of_agent(&audit, 1)).is_some() {}
    assert!(waited(1).await >= limit::AUDIT_PACE_MAX, "it moved in between");
}

#[tokio::test(start_paused = true)]
async fn hundreds_that_wait_for_the_log_all_find_room() {
    let (audit, mut carrier) = queue("node", Arc::new(SystemClock), (1_000, 1_000), "test");
    while audit.put_and_reserve(&of_agent(&audit, 1)).is_some() {}
    let ask = async || {
        audit.keep_pace(1).await;
        audit.put_and_reserve(&of_agent(&audit, 1))
    };
    let all = futures_util::future::join_all((0..800).map(|_| ask()));
    let log = async {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(carrier.gather().await);
            let last = carrier.sequence;
            carrier.acked(Some(AuditAck { sequence: last })).expect("acknowledged");
        }
    };
    let rooms = tokio::select! { rooms = all => rooms, () = log => Vec::new() };
    assert_eq!(rooms.iter().filter(|room| room.is_some()).count(), 800);
}

#[tokio::test]
async fn a_thread_that_dies_is_noticed() {
    let (audit, carrier) = queue("node", Arc::new(SystemClock), (1, usize::MAX), "test");
    let ended = carrier.start(|| panic!("no channel: part of a test")).expect("started");
    ended.await.expect_err("nobody says anything");
    assert!(audit.put_and_reserve(&audit.record(1)).is_none(), "nothing is allowed");
}
