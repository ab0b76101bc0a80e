//! What counts, and for how long.

use clawgress_api::clock::{FixedClock, SystemClock};

use super::*;

fn envelope(generation: u64, document: &str) -> proto::Snapshot {
    proto::Snapshot { generation, document: document.as_bytes().to_vec(), ..proto::Snapshot::default() }
}

const EMPTY: &str = r#"{"generation":7,"policy":null,"agents":[],"keys":[]}"#;

#[tokio::test]
async fn there_is_a_plan_only_while_it_counts() {
    let snapshots = Snapshots::new(Duration::from_millis(50), Arc::new(SystemClock));
    assert_eq!(snapshots.current().err(), Some(DropReason::SnapshotMissing));
    assert_eq!(snapshots.apply(envelope(7, EMPTY)).await.error, "");
    assert_eq!(snapshots.current().map(|p| p.generation), Ok(7));
    tokio::time::sleep(Duration::from_millis(80)).await;
    assert!(snapshots.current().is_ok(), "confirmed plans don't age");
    snapshots.lose();
    assert!(snapshots.current().is_ok());
    tokio::time::sleep(Duration::from_millis(80)).await;
    assert_eq!(snapshots.current().err(), Some(DropReason::SnapshotMissing));
}

#[tokio::test]
async fn quarantine_is_outside_generations() {
    let document = |generation: u64| {
        let agent = r#"{"id":"web","index":5,"state":"active"}"#;
        format!(r#"{{"generation":{generation},"policy":null,"agents":[{agent}],"keys":[]}}"#)
    };
    let snapshots = Snapshots::new(Duration::from_secs(60), Arc::new(SystemClock));
    let isolated = |generation, document: &str, quarantined: &[u32], quarantine| proto::Snapshot {
        quarantined: quarantined.to_vec(),
        quarantine,
        ..envelope(generation, document)
    };
    let who = || {
        let plan = snapshots.current().expect("a plan");
        plan.trust.by_source(5, clawgress_identity::IdentityMethod::Source).map(|_| plan.generation)
    };
    let quarantined = Err(clawgress_identity::IdentityError::Quarantined);
    assert_eq!(snapshots.apply(isolated(7, &document(7), &[5], 1)).await.quarantine, 1);
    assert_eq!(who(), quarantined);
    let mut changes = snapshots.subscribe();
    changes.mark_unchanged();
    assert_eq!(snapshots.apply(isolated(7, "", &[], 2)).await.quarantine, 2);
    assert!(changes.has_changed().expect("alive"), "what lives is judged again");
    assert_eq!(who(), Ok(7));
    snapshots.apply(isolated(7, "", &[5, 6], 3)).await;
    assert_eq!(who(), quarantined);
    snapshots.apply(isolated(8, &document(8), &[5], 3)).await;
    assert_eq!(who(), quarantined, "a generation releases nobody");
    // A refused generation still tells who is quarantined.
    assert_ne!(snapshots.apply(isolated(9, "{}", &[], 4)).await.error, "");
    assert_eq!(who(), Ok(8));
}

#[tokio::test]
async fn a_bad_snapshot_changes_nothing_and_starts_the_clock() {
    let snapshots = Snapshots::new(Duration::from_secs(60), Arc::new(SystemClock));
    snapshots.apply(envelope(7, EMPTY)).await;
    for bad in [
        "",
        "{}",
        r#"{"generation":9,"policy":null,"agents":[],"keys":[]}"#,
        r#"{"generation":8,"policy":{"text":"permit("},"agents":[],"keys":[]}"#,
    ] {
        assert_ne!(snapshots.apply(envelope(8, bad)).await.error, "", "{bad}");
        assert_eq!(snapshots.current().map(|p| p.generation), Ok(7));
    }
    assert!(snapshots.stale_in().is_some());
    // It may have been a tightening: nothing is decided by the former for longer than a straggler may.
    let later_ms = |time: Duration| boottime::now_ms() + u64::try_from(time.as_millis()).expect("short");
    assert!(!snapshots.straggle.is_behind_at(boottime::now_ms()));
    assert!(snapshots.straggle.is_behind_at(later_ms(limit::STRAGGLE + limit::BEAT)));
    assert_eq!(snapshots.apply(envelope(9, &EMPTY.replace('7', "9"))).await.error, "");
    assert!(!snapshots.straggle.is_behind_at(later_ms(limit::STRAGGLE + limit::BEAT)), "the next is applied");
}

/// What is prepared decides nothing until control names it, and is gone when something else comes.
#[tokio::test]
async fn what_is_prepared_counts_when_it_is_named() {
    let snapshots = Snapshots::new(Duration::from_secs(60), Arc::new(SystemClock));
    assert_eq!(snapshots.apply(envelope(7, EMPTY)).await.error, "");
    let document = |generation: u64| EMPTY.replace('7', &generation.to_string()).into_bytes();
    let named = |generation, commit| proto::Snapshot { generation, commit, ..proto::Snapshot::default() };
    let prepare = async |number, document| {
        let mut preparing = Preparing::new(number, snapshots.parse(document));
        let (number, parsed) = preparing.ended().await;
        snapshots.next.hold(number, parsed)
    };
    let runs = || snapshots.current().map(|plan| plan.generation);

    assert_eq!(prepare(1, document(8)).await, proto::Prepared { number: 1, error: String::new() });
    assert_eq!(runs(), Ok(7));
    assert_eq!(snapshots.take_in(named(8, 1)).await.map(|applied| applied.error).ok().as_deref(), Some(""));
    assert_eq!(runs(), Ok(8));

    // One that can't be taken leaves all as it is.
    assert_ne!(prepare(2, b"{".to_vec()).await.error, "");
    assert_eq!(runs(), Ok(8));

    // Who is quarantined has nothing to do with it; another generation takes its place.
    assert_eq!(prepare(3, document(9)).await.error, "");
    let isolated = proto::Snapshot { quarantined: vec![5], quarantine: 1, ..named(8, 0) };
    assert!(snapshots.take_in(isolated).await.is_ok());
    let other = String::from_utf8(document(9)).expect("text");
    assert!(snapshots.take_in(envelope(9, &other)).await.is_ok());
    assert!(snapshots.take_in(named(10, 3)).await.is_err(), "a new stream begins with the whole");
    assert_eq!(snapshots.generation(), 9);
}

/// What control hands out is decided by: geo data and zone of the document, time of the clock.
#[tokio::test]
async fn the_surroundings_of_the_snapshot_count() {
    let document = r#"{"generation":8,"agents":[],"keys":[],"policy":{
        "text":"@id(\"a\") permit (principal, action == Action::\"connect\", resource in Asn::\"AS64500\") when { context.hour == 9 };",
        "surroundings":{"geo":{"asns":{"64500":["203.0.113.0/24"]}},"zone":{"name":"Z","offsets":[[0,3600]]}}}}"#;
    let agent = clawgress_identity::Agent {
        id: "web".parse().expect("id"),
        index: 1,
        team: None,
        project: None,
        environment: None,
        labels: std::collections::BTreeMap::new(),
        state: clawgress_identity::AgentState::Active,
        sources: Vec::new(),
    };
    for (time, ip, allowed) in [
        ("2026-11-25T08:59:59Z", "203.0.113.7", true),
        ("2026-11-25T09:00:00Z", "203.0.113.7", false),
        ("2026-11-25T08:00:00Z", "203.0.112.7", false),
    ] {
        let clock = FixedClock(time.parse().expect("time"));
        let snapshots = Snapshots::new(Duration::from_secs(60), Arc::new(clock));
        assert_eq!(snapshots.apply(envelope(8, document)).await.error, "");
        let plan = snapshots.current().expect("plan");
        let policy = plan.policy(&agent).expect("policy");
        let ip = ip.parse().expect("address");
        let reach = policy.reach(&agent, ip, 443, clawgress_policy::Transport::Tcp);
        assert_eq!(reach.is_allow(), allowed, "{time} {ip}: {reach:?}");
    }
    let lost = document.replace("64500\":", "64501\":");
    let snapshots = Snapshots::new(Duration::from_secs(60), Arc::new(SystemClock));
    assert_ne!(snapshots.apply(envelope(8, &lost)).await.error, "", "what the data lack is refused here too");
}
