//! Tests of the audit log: durability, torn tails, rotation, search.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use clawgress_api::clock::SystemClock;
use clawgress_api::{AuditQuery, Verdict};

use super::*;

const SMALL: Bounds = Bounds { segment_bytes_max: 4096, retention_bytes_max: 16 * 1024 };

async fn open(directory: &Path, bounds: Bounds) -> AuditLog {
    AuditLog::open(directory.to_owned(), bounds, "node".into(), Arc::new(SystemClock)).await.expect("open")
}

/// Closes `log` and waits until its writer has let go of the files.
async fn close(log: AuditLog) {
    let AuditLog { queue, shared } = log;
    drop(queue);
    for _ in 0..200 {
        if Arc::strong_count(&shared) == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the writer did not end");
}

fn record(log: &AuditLog, host: &str, verdict: Verdict) -> AuditRecord {
    let mut record = log.record(RecordKind::Decision, 1);
    record.destination.host = Some(host.to_owned());
    record.verdict = Some(verdict);
    record
}

async fn hosts(log: &AuditLog, query: AuditQuery) -> Vec<String> {
    let filter = Filter::new(&query).expect("filter");
    let found = log.search(filter, log.records()).await.expect("search");
    let sequences: Vec<_> = found.iter().map(|k| k.sequence).collect();
    assert!(sequences.is_sorted(), "{sequences:?}");
    found.iter().map(|k| k.record.destination.host.clone().unwrap_or_default()).collect()
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    segments::list(directory).expect("list").into_iter().map(|n| segments::path(directory, n)).collect()
}

#[tokio::test]
async fn records_survive_reopening_and_are_found_by_every_filter() {
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path(), SMALL).await;
    log.append(vec![record(&log, "a.example", Verdict::Allow)]).await.expect("append");
    log.append(vec![record(&log, "B.example", Verdict::Deny)]).await.expect("append");
    close(log).await;
    let log = open(dir.path(), SMALL).await;
    assert_eq!(log.records(), 2);
    log.append(vec![record(&log, "c.test", Verdict::Deny)]).await.expect("append");
    assert_eq!(hosts(&log, AuditQuery::default()).await, ["a.example", "B.example", "c.test"]);
    let deny = AuditQuery { verdict: Some(Verdict::Deny), ..AuditQuery::default() };
    assert_eq!(hosts(&log, deny.clone()).await, ["B.example", "c.test"]);
    assert_eq!(hosts(&log, AuditQuery { limit: Some(1), ..deny }).await, ["c.test"], "the newest");
    let to = AuditQuery { destination: Some("b.EX".into()), ..AuditQuery::default() };
    assert_eq!(hosts(&log, to).await, ["B.example"]);
    let named = AuditQuery { agent: Some("nobody".into()), ..AuditQuery::default() };
    assert_eq!(hosts(&log, named).await, [""; 0]);
    let anonymous = AuditQuery { agent: Some("anonymous".into()), ..AuditQuery::default() };
    assert_eq!(hosts(&log, anonymous).await.len(), 3);
    let unknown = AuditQuery { reason: Some("nonsense".into()), ..AuditQuery::default() };
    assert!(Filter::new(&unknown).expect_err("refused").to_string().contains("policy_denied"));
}

#[tokio::test]
async fn segments_rotate_are_named_by_their_first_record_and_stay_within_the_bound() {
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path(), SMALL).await;
    for n in 0..40 {
        log.append(vec![record(&log, &format!("h{n}.example"), Verdict::Allow); 10]).await.expect("append");
    }
    // The log tells of its removals a moment after them.
    let mut told = Vec::new();
    for _ in 0..200 {
        let query = AuditQuery { kind: Some(RecordKind::Change), ..AuditQuery::default() };
        told = log.search(Filter::new(&query).expect("filter"), log.records()).await.expect("search");
        if !told.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let detail = told.first().and_then(|k| k.record.detail.clone()).expect("a record of the removal");
    assert!(detail.contains("removed: the log has reached its retention bound"), "{detail}");
    let total: u64 = files(dir.path()).iter().map(|f| fs::metadata(f).expect("metadata").len()).sum();
    assert!(total <= SMALL.retention_bytes_max + 2 * SMALL.segment_bytes_max, "{total}");
    let mut next = None;
    for number in segments::list(dir.path()).expect("list") {
        assert!(next.is_none_or(|n| n == number), "segment {number} begins where the last one ended");
        let file = segments::path(dir.path(), number);
        assert_eq!(fs::metadata(&file).expect("metadata").permissions().mode() & 0o777, 0o600);
        next = Some(number + fs::read_to_string(file).expect("read").lines().count() as u64);
    }
    assert!(next >= Some(400), "{next:?}");
    assert!(segments::list(dir.path()).expect("list").first() > Some(&0), "the oldest are gone");
    let decisions = AuditQuery { kind: Some(RecordKind::Decision), limit: Some(3), ..AuditQuery::default() };
    let newest = hosts(&log, decisions).await;
    assert_eq!(newest, ["h39.example"; 3]);
}

fn append_bytes(file: &Path, bytes: &[u8]) {
    fs::OpenOptions::new().append(true).open(file).expect("open").write_all(bytes).expect("write");
}

#[tokio::test]
async fn a_torn_tail_is_set_aside_and_leaves_a_gap() {
    let roomy = Bounds { segment_bytes_max: 1 << 20, retention_bytes_max: 1 << 22 };
    let mut torn = Vec::new();
    let dir = tempfile::tempdir().expect("directory");
    for (n, tail) in
        [&b"{\"version\":1,\"ti"[..], b"\0\0\0\0", &[b'x'; RECORD_BYTES_MAX * 2]].iter().enumerate()
    {
        let log = open(dir.path(), roomy).await;
        log.append(vec![record(&log, "a.example", Verdict::Allow)]).await.expect("append");
        close(log).await;
        let file = files(dir.path()).pop().expect("segment");
        append_bytes(&file, tail);
        let log = open(dir.path(), roomy).await;
        let records = 2 * n as u64 + 2;
        assert_eq!(log.records(), records, "what was acknowledged, and the gap");
        let everything = Filter::new(&AuditQuery::default()).expect("filter");
        let all = log.search(everything, records).await.expect("search");
        let [.., kept, gap] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!(kept.record.destination.host.as_deref(), Some("a.example"));
        assert_eq!((gap.record.kind, gap.record.count), (RecordKind::Gap, Some(1)));
        assert!(fs::read_to_string(&file).expect("text").lines().all(|l| l.starts_with("{\"version\"")));
        torn.extend([tail, &b"\n"[..]].concat());
        assert!(fs::read(file.with_extension("torn")).expect("set aside") == torn, "every one is kept");
        close(log).await;
    }
}

#[tokio::test]
async fn whole_lines_that_cannot_be_read_stay_and_are_counted_once() {
    let dir = tempfile::tempdir().expect("directory");
    let roomy = Bounds { segment_bytes_max: 1 << 20, retention_bytes_max: 1 << 22 };
    let log = open(dir.path(), roomy).await;
    let good = record(&log, "a.example", Verdict::Allow);
    log.append(vec![good.clone()]).await.expect("append");
    let json = serde_json::to_string(&good).expect("json");
    let later = json.replace("\"kind\":\"decision\"", "\"kind\":\"prophecy\"");
    assert_ne!(json, later);
    close(log).await;
    let file = files(dir.path()).pop().expect("segment");
    let long = "x".repeat(RECORD_BYTES_MAX + 1);
    append_bytes(
        &file,
        format!("rubbish\n{later}\n{long}\n{}\n{{\"torn", json.replace("a.ex", "b.ex")).as_bytes(),
    );
    let before = fs::read_to_string(&file).expect("text");
    for _ in 0..3 {
        let log = open(dir.path(), roomy).await;
        // Five lines, two gaps.
        assert_eq!(log.records(), 7, "numbers go on behind what can't be read");
        let everything = Filter::new(&AuditQuery::default()).expect("filter");
        let all = log.search(everything, 7).await.expect("search");
        assert_eq!(all.iter().map(|k| k.sequence).collect::<Vec<_>>(), [0, 4, 5, 6]);
        assert_eq!(all[1].record.destination.host.as_deref(), Some("b.example"));
        assert_eq!(all[2].record.count, Some(1), "torn");
        assert_eq!(all[3].record.count, Some(3));
        assert!(all[3].record.detail.as_ref().is_some_and(|d| d.contains("3 records could not be read")));
        close(log).await;
        assert_eq!(fs::read_to_string(&file).expect("text"), before.strip_suffix("{\"torn").expect("tail"));
    }
}

#[tokio::test]
async fn a_segment_that_was_begun_and_never_used_repeats_no_number() {
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path(), SMALL).await;
    log.append(vec![record(&log, "a.example", Verdict::Allow); 5]).await.expect("append");
    close(log).await;
    // Left by a rotation that failed after three records; two more went into the old one.
    fs::write(segments::path(dir.path(), 3), "").expect("write");
    let log = open(dir.path(), SMALL).await;
    assert_eq!(log.records(), 5);
    log.append(vec![record(&log, "b.example", Verdict::Allow)]).await.expect("append");
    assert_eq!(hosts(&log, AuditQuery::default()).await.len(), 6);
    assert_eq!(segments::list(dir.path()).expect("list"), [0]);
}

#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_in_the_file() {
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path(), SMALL).await;
    let document = serde_json::to_vec(&record(&log, "a.example", Verdict::Allow)).expect("json");
    let pending = log.queue_documents(vec![document; 3]).await.expect("queued");
    let (mut follower, first) = log.follow();
    assert_eq!(first, 0, "queued is not durable");
    pending.durable().await.expect("durable");
    let file = files(dir.path()).pop().expect("segment");
    assert_eq!(fs::read_to_string(file).expect("text").lines().count(), 3);
    assert_eq!(follower.recv().await.expect("followed").sequence, 0);
}

#[tokio::test]
async fn a_disk_that_refuses_stops_acknowledgement_until_it_works_again() {
    let dir = tempfile::tempdir().expect("directory");
    let (mut segments, _) = Segments::open(dir.path(), SMALL).expect("open");
    let log = open(tempfile::tempdir().expect("directory").path(), SMALL).await;
    let line = serde_json::to_vec(&record(&log, "a.example", Verdict::Allow)).expect("json");
    segments.append(std::slice::from_ref(&line)).expect("append");
    // `/dev/full` answers every write with ENOSPC, as a full disk does.
    segments.break_with(fs::OpenOptions::new().read(true).write(true).open("/dev/full").expect("full"));
    assert!(segments.append(std::slice::from_ref(&line)).is_err());
    assert_eq!(segments.next(), 1, "a refused record has no number");
    // `/dev/null` takes every write and refuses to sync (EINVAL): written is not durable.
    segments.break_with(fs::OpenOptions::new().read(true).write(true).open("/dev/null").expect("null"));
    assert!(segments.append(std::slice::from_ref(&line)).is_err());
    assert_eq!(segments.next(), 1);
    let file = files(dir.path()).pop().expect("segment");
    // Half of the refused line reached the file.
    fs::OpenOptions::new().append(true).open(&file).expect("open").write_all(&line[..20]).expect("write");
    segments.break_with(fs::OpenOptions::new().read(true).write(true).open(&file).expect("open"));
    segments.append(std::slice::from_ref(&line)).expect("the disk works again");
    let text = fs::read_to_string(&file).expect("text");
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.lines().all(|l| serde_json::from_str::<AuditRecord>(l).is_ok()), "{text}");
}

#[tokio::test]
async fn what_is_no_record_is_refused_whole() {
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path(), SMALL).await;
    let good = serde_json::to_vec(&record(&log, "a.example", Verdict::Allow)).expect("json");
    let pretty = serde_json::to_vec_pretty(&record(&log, "p.example", Verdict::Allow)).expect("json");
    for bad in [vec![good.clone(), b"{}".to_vec()], vec![vec![b' '; RECORD_BYTES_MAX + 1]]] {
        assert!(log.queue_documents(bad).await.is_err());
    }
    let too_many = vec![good; APPEND_RECORDS_MAX + 1];
    assert!(matches!(log.queue_documents(too_many).await, Err(AuditError::TooLarge)));
    assert_eq!(log.records(), 0);
    log.queue_documents(vec![pretty]).await.expect("queued").durable().await.expect("durable");
    let file = files(dir.path()).pop().expect("segment");
    assert_eq!(fs::read_to_string(file).expect("text").lines().count(), 1, "line breaks are taken out");
}

#[tokio::test]
async fn a_slow_follower_is_told_how_much_it_missed() {
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path(), Bounds { segment_bytes_max: 1 << 24, retention_bytes_max: 1 << 26 }).await;
    let (mut follower, _) = log.follow();
    let batch = vec![record(&log, "a.example", Verdict::Allow); FOLLOW_MAX];
    log.append(batch.clone()).await.expect("append");
    log.append(batch[..7].to_vec()).await.expect("append");
    let lagged = follower.recv().await;
    assert!(matches!(lagged, Err(broadcast::error::RecvError::Lagged(7))), "{lagged:?}");
}

/// Settles as it is told.
#[derive(Debug)]
struct Settles(tokio::sync::watch::Receiver<Option<Result<(), String>>>);

#[async_trait]
impl Marker for Settles {
    fn mark(&self, record: &mut AuditRecord) -> Follows {
        let is_told = record.destination.host.as_deref() == Some("told.example");
        if is_told { Follows::Told } else { Follows::Due }
    }

    fn is_settled(&self) -> bool {
        matches!(*self.0.borrow(), Some(Ok(())))
    }

    async fn settle(&self) -> Result<(), String> {
        let mut told = self.0.clone();
        let told = told.wait_for(Option::is_some).await.expect("open").clone();
        told.expect("told")
    }
}

#[tokio::test]
async fn records_are_not_taken_before_what_follows_on_them_is_durable() {
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path(), SMALL).await;
    let (tell, told) = tokio::sync::watch::channel(None);
    log.mark(Settles(told));
    let document = serde_json::to_vec(&record(&log, "a.example", Verdict::Allow)).expect("json");
    let queue = async || log.queue_documents(vec![document.clone()]).await;
    // For ever, for all this role can know.
    let late = queue().await.expect_err("it takes too long");
    assert!(matches!(&late, AuditError::Unsettled(why) if why.contains("more than 5 s")), "{late}");
    tell.send_replace(Some(Err("the disk is full".to_owned())));
    let failed = queue().await.expect_err("it can't be stored");
    assert!(failed.to_string().contains("the disk is full"), "{failed}");
    let Unsettled { times, why } = log.unsettled();
    assert_eq!((times, why.as_deref(), log.records()), (2, Some("the disk is full"), 0));
    // On which nothing follows that has to be stored, waits for nothing.
    let told = serde_json::to_vec(&record(&log, "told.example", Verdict::Allow)).expect("json");
    log.queue_documents(vec![told]).await.expect("queued").durable().await.expect("durable");
    assert_eq!((log.unsettled().times, log.records()), (2, 1));
    tell.send_replace(Some(Ok(())));
    // Also where nobody hands over the records again.
    let Unsettled { times, why } = log.unsettled();
    assert_eq!((times, why), (2, None));
    queue().await.expect("queued").durable().await.expect("durable");
    let Unsettled { times, why } = log.unsettled();
    assert_eq!((times, why, log.records()), (2, None, 2));
}
