//! Bodies of requests, judged by what they hold: before anything goes on where they can be held, and as they stream.

use std::time::Duration;

use clawgress_api::{AuditRecord, Looked, RecordKind, Verdict};
use clawgress_ebpf_common::DropReason;
use flate2::{Compress, Compression, FlushCompress};

use crate::client::{Answer, Client};
use crate::harness::{Gateway, Options, PATIENCE};
use crate::upstream::Upstream;
use crate::{endpoints, intercept};

const KEY: &str = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n";

pub const POLICY: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal == Agent::"web", action == Action::"http", resource);
@id("tls") permit (principal == Agent::"web", action == Action::"tls", resource);
@id("send") permit (principal == Agent::"web", action == Action::"send", resource)
when { context.path != "/sealed" && (context.path != "/short" || context.bytes <= 100000) };
@id("no-keys") forbid (principal, action == Action::"send", resource) when { context.findings.contains("private_key") };
@id("whole") forbid (principal, action == Action::"send", resource) when { context.path == "/whole" && !context.complete };
"#;

/// Bodies of more than 64 KiB stream.
const SMALL: &str = "[content]\nhold_bytes_max = 65536\nagent_memory_bytes_max = 20000000\n";

struct Site {
    gateway: Gateway,
    upstream: Upstream,
    host: String,
}

impl Site {
    async fn start(policy: &'static str, more: &str) -> Site {
        let options = Options { policy: Some(policy), more: more.to_owned(), ..Options::default() };
        let gateway = Gateway::start(options).await;
        let upstream = Upstream::http("127.1.0.1").await;
        let host = format!("api.allowed.test:{}", upstream.address.port());
        Site { gateway, upstream, host }
    }

    fn head(&self, path: &str, fields: &str) -> String {
        let (host, auth) = (&self.host, self.gateway.web());
        format!("POST http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{auth}{fields}\r\n")
    }

    /// Sends a body with its length.
    async fn post(&self, client: &mut Client, path: &str, fields: &str, body: &[u8]) {
        let fields = format!("{fields}Content-Length: {}\r\n", body.len());
        client.send([self.head(path, &fields).as_bytes(), body].concat()).await;
    }

    async fn ask(&self, path: &str, fields: &str, body: &[u8]) -> Answer {
        let mut client = self.gateway.client().await;
        self.post(&mut client, path, fields, body).await;
        client.answer().await
    }

    /// The one record of `kind` that fits.
    async fn record(&self, kind: RecordKind, fits: impl Fn(&AuditRecord) -> bool) -> AuditRecord {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let records = self.gateway.control.records();
            if let Some(found) = records.iter().find(|r| r.kind == kind && fits(r)) {
                return found.clone();
            }
            assert!(tokio::time::Instant::now() < deadline, "none in {records:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the upstream saw what `is_seen` looks for.
    async fn seen(&self, is_seen: impl Fn(&[u8]) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !is_seen(&self.upstream.seen.bytes.lock()) {
            assert!(tokio::time::Instant::now() < deadline, "it never came");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let chunk = |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
    let mut all: Vec<u8> = body.chunks(size).flat_map(chunk).collect();
    all.extend(b"0\r\n\r\n");
    all
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 1024);
    let mut encoder = Compress::new_gzip(Compression::new(6), 15);
    encoder.compress_vec(bytes, &mut out, FlushCompress::Finish).expect("compressed");
    out
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 1024);
    Compress::new(Compression::new(6), true)
        .compress_vec(bytes, &mut out, FlushCompress::Finish)
        .expect("compressed");
    out
}

fn brotli(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let parameters = brotli::enc::BrotliEncoderParams { quality: 5, lgwin: 18, ..Default::default() };
    brotli::BrotliCompress(&mut &*bytes, &mut out, &parameters).expect("compressed");
    out
}

fn said(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.reason())
}

/// What no coding makes shorter.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0] | 0x80
    };
    (0..bytes).map(|_| next()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forbidden_is_found_in_every_form_and_goes_nowhere() {
    let site = Site::start(POLICY, "").await;
    let escaped = KEY.replace('-', "\\u002d").replace('\n', "\\n");
    let json = format!("{{\"messages\": [{{\"content\": \"{escaped}\"}}]}}");
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"id\"\r\n\r\n{KEY}\r\n--b--\r\n"
    );
    let upload = [
        b"--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"id.gz\"\r\n\r\n".to_vec(),
        gzip(KEY.as_bytes()),
        b"\r\n--b--\r\n".to_vec(),
    ]
    .concat();
    let multipart = "Content-Type: multipart/form-data; boundary=b\r\n";
    let bodies: [(&str, Vec<u8>); 9] = [
        ("", KEY.into()),
        ("Content-Type: application/json\r\n", json.clone().into()),
        (multipart, form.into()),
        (multipart, upload),
        ("Content-Encoding: gzip\r\n", gzip(KEY.as_bytes())),
        ("Content-Encoding: deflate\r\n", zlib(KEY.as_bytes())),
        ("Content-Encoding: br\r\n", brotli(KEY.as_bytes())),
        ("Content-Encoding: zstd\r\n", zstd::bulk::compress(KEY.as_bytes(), 3).expect("compressed")),
        ("Content-Type: application/json\r\nContent-Encoding: br\r\n", brotli(json.as_bytes())),
    ];
    let mut client = site.gateway.client().await;
    for (n, (fields, body)) in bodies.iter().enumerate() {
        site.post(&mut client, "/echo", fields, body).await;
        assert_eq!(said(&client.answer().await), (403, "policy_forbidden"), "{fields}");
        // Chunked, in pieces of its own.
        let head = site.head("/echo", &format!("{fields}Transfer-Encoding: chunked\r\n"));
        client.send(head).await;
        client.send(chunked(body, 7 + n)).await;
        assert_eq!(said(&client.answer().await), (403, "policy_forbidden"), "{fields} chunked");
    }
    assert_eq!(site.upstream.connections(), 0, "nobody was dialled");
    // The connection lives on, and what is harmless passes as it is, in every coding.
    for (fields, body) in [
        ("Content-Type: application/json\r\n", b"{\"a\": [1, \"-----BEGIN\"]}".to_vec()),
        ("Content-Encoding: gzip\r\n", gzip(b"harmless")),
        ("Content-Encoding: br\r\n", brotli(b"harmless")),
        ("", noise(300_000)),
    ] {
        site.post(&mut client, "/echo", fields, &body).await;
        let answer = client.answer().await;
        assert!(answer.status == 200 && answer.body == body, "{fields}");
        client.send(site.head("/echo", &format!("{fields}Transfer-Encoding: chunked\r\n"))).await;
        client.send(chunked(&body, 1000)).await;
        let answer = client.answer().await;
        assert!(answer.status == 200 && answer.body == body, "{fields} chunked");
    }
    let (denied, outcome) = site.gateway.exchange(2).await;
    assert_eq!((denied.action.as_deref(), denied.verdict), (Some("send"), Some(Verdict::Deny)));
    assert_eq!(
        (denied.policies, denied.findings),
        (vec!["no-keys".to_owned()], vec!["private_key".to_owned()])
    );
    let read = denied.attributes.expect("attributes");
    assert_eq!((read.asked, read.has_body), (vec!["send".to_owned()], Some(true)));
    let payload = read.payload.expect("payload");
    assert!(payload.complete && payload.bytes == json.len() as u64, "{payload:?}");
    assert_eq!((payload.looked, payload.declared), (Looked::Content, true));
    assert_eq!(payload.findings, ["private_key"]);
    assert_eq!((payload.media_type.as_str(), payload.fields), ("application/json", Some(1)));
    assert_eq!(outcome.reason, Some(DropReason::PolicyForbidden));
    let (allowed, _) = site.gateway.exchange(18).await;
    assert_eq!(allowed.action.as_deref(), Some("http"));
    assert_eq!(allowed.policies, ["http", "net", "send"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_read_is_refused_where_policy_asks_what_it_says() {
    let site = Site::start(POLICY, "").await;
    for (fields, body) in [
        ("Content-Encoding: compress\r\n", b"x".to_vec()),
        ("Content-Encoding: gzip, br\r\n", b"x".to_vec()),
        ("Content-Encoding: gzip\r\nContent-Encoding: gzip\r\n", gzip(&gzip(b"x"))),
        ("Content-Encoding: gzip\r\n", b"none".to_vec()),
        ("Content-Encoding: gzip\r\n", gzip(&vec![0; 10_000_000])),
        ("Content-Type: application/json\r\n", b"{\"a\": 1".to_vec()),
        ("Content-Type: multipart/form-data\r\n", b"x".to_vec()),
        ("Content-Type: text/plain; charset=utf-16\r\n", b"x".to_vec()),
    ] {
        assert_eq!(said(&site.ask("/", fields, &body).await), (415, "content_unreadable"), "{fields}");
    }
    assert_eq!(site.upstream.connections(), 0);
    let why = "the body was not read: its Content-Encoding is none of gzip, deflate, br and zstd";
    let denied = site.record(RecordKind::Decision, |r| r.detail.as_deref() == Some(why)).await;
    assert_eq!((denied.action.as_deref(), denied.verdict), (Some("send"), Some(Verdict::Deny)));
    // Who asks for no more than sizes, or nobody, need not understand it.
    let sizes = POLICY.replace("context.findings.contains(\"private_key\")", "context.bytes > 9000");
    for policy in [sizes.as_str(), crate::harness::POLICY] {
        assert_eq!(site.gateway.publish_policy(policy).await, "");
        assert_eq!(site.ask("/", "Content-Encoding: compress\r\n", b"x").await.status, 200);
        assert_eq!(site.ask("/echo", "", KEY.as_bytes()).await.body, KEY.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_100_gets_it_once_and_its_body_is_judged() {
    let site = Site::start(POLICY, "").await;
    let mut client = site.gateway.client().await;
    for (body, status) in [(KEY, 403), ("harmless", 200), (KEY, 403)] {
        let fields = format!("Expect: 100-continue\r\nContent-Length: {}\r\n", body.len());
        client.send(site.head("/echo", &fields)).await;
        assert_eq!(client.answer_head().await.status, 100);
        client.send(body).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, status);
        assert!(status == 403 || answer.text() == body);
    }
    // By what is said of it alone: nothing of it is asked for.
    let fields = "Expect: 100-continue\r\nContent-Length: 5\r\n";
    client.send(site.head("/sealed", fields)).await;
    assert_eq!(client.answer_head().await.status, 100, "a forbid may still match");
    client.send("hello").await;
    assert_eq!(said(&client.answer().await), (403, "policy_denied"));
    assert_eq!(site.upstream.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_behind_one_another_are_judged_in_turn() {
    let site = Site::start(POLICY, "").await;
    let mut client = site.gateway.client().await;
    let request = |path: &str, body: &str| {
        format!("{}{body}", self::Site::head(&site, path, &format!("Content-Length: {}\r\n", body.len())))
    };
    let framed = String::from_utf8(chunked(KEY.as_bytes(), 5)).expect("text");
    let behind = [
        request("/echo", "first"),
        request("/echo", KEY),
        format!("{}{framed}", site.head("/echo", "Transfer-Encoding: chunked\r\n")),
        request("/echo", "last"),
    ];
    client.send(behind.concat()).await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        let answer = client.answer().await;
        answers.push((answer.status, answer.text()));
    }
    let statuses: Vec<u16> = answers.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [200, 403, 403, 200]);
    assert_eq!((answers[0].1.as_str(), answers[3].1.as_str()), ("first", "last"));
    assert_eq!(site.upstream.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_come_is_not_waited_for_and_nobody_is_dialled() {
    let site = Site::start(POLICY, "[content]\nhold_s_max = 1\n").await;
    let mut slow = site.gateway.client().await;
    slow.send(site.head("/echo", "Content-Length: 10\r\n") + "slow").await;
    assert_eq!(said(&slow.answer().await), (408, "timeout"));
    assert!(slow.rest().await.is_empty(), "the connection ends");
    // One that leaves in the middle, and one that frames it wrongly.
    let mut gone = site.gateway.client().await;
    gone.send(site.head("/gone", "Content-Length: 10\r\n") + "half").await;
    drop(gone);
    let at = |path: &'static str| move |r: &AuditRecord| r.destination.path.as_deref() == Some(path);
    let left = site.record(RecordKind::Decision, at("/gone")).await;
    assert_eq!((left.verdict, left.reason), (Some(Verdict::Deny), Some(DropReason::HttpMalformed)));
    let mut broken = site.gateway.client().await;
    broken.send(site.head("/broken", "Transfer-Encoding: chunked\r\n") + "5;x\r\nhello\r\n0\r\n\r\n").await;
    assert_eq!(said(&broken.answer().await), (400, "http_malformed"));
    assert_eq!(site.upstream.connections(), 0);
    let timed = site.record(RecordKind::Outcome, at("/echo")).await;
    assert_eq!((timed.reason, timed.status), (Some(DropReason::Timeout), Some(408)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_and_given_back() {
    let site = Site::start(POLICY, SMALL).await;
    // A frame that says it needs a window of 8 MiB, and goes on for longer than anybody looks.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0, 13 << 3, 0, 0, 0];
    let block = |bytes: &[u8]| {
        [&(u32::try_from(bytes.len()).expect("short") << 3).to_le_bytes()[..3], bytes].concat()
    };
    let frame = [&window[..6], &block(&noise(1000)), &block(&noise(1000))].concat();
    let mut holders = Vec::new();
    let body = zstd::bulk::compress(b"harmless", 3).expect("compressed");
    // Two of these take all that one agent may: what another is told, once two were read. One that comes while another is
    // asked for may be refused itself, so there are more.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let large = [&frame[..], &[1, 0, 0]].concat();
    let refused = loop {
        let mut client = site.gateway.client().await;
        client.send(site.head("/echo", "Content-Encoding: zstd\r\nTransfer-Encoding: chunked\r\n")).await;
        client.send([format!("{:x}\r\n", frame.len() + 1).as_bytes(), &frame].concat()).await;
        holders.push(client);
        let answer = site.ask("/echo", "Content-Encoding: zstd\r\n", &large).await;
        // The first may find a keys role that is late, on a machine that has much else to do.
        let is_late = said(&answer).1 == "identity_unavailable";
        if answer.status != 200 && !is_late {
            break answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "it never was too much");
    };
    assert_eq!(said(&refused), (503, "content_share_full"));
    assert_eq!(refused.field("retry-after"), Some("1"));
    // What needs less still has room, and where they end is all of it again.
    assert_eq!(site.ask("/echo", "Content-Encoding: zstd\r\n", &body).await.status, 200);
    drop(holders);
    while site.ask("/echo", "Content-Encoding: zstd\r\n", &large).await.status != 200 {
        assert!(tokio::time::Instant::now() < deadline, "it never was given back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_streams_is_cut_where_a_forbid_matches() {
    let (before, after) = (noise(400_000), noise(100_000));
    let body = [&before[..], KEY.as_bytes(), &after].concat();
    for (fields, sent) in [
        (format!("Content-Length: {}\r\n", body.len()), body.clone()),
        ("Transfer-Encoding: chunked\r\n".to_owned(), chunked(&body, 9000)),
        ("Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n".to_owned(), chunked(&gzip(&body), 5000)),
    ] {
        let site = Site::start(POLICY, SMALL).await;
        let mut client = site.gateway.client().await;
        client.send(site.head("/echo", &fields)).await;
        client.send(sent).await;
        assert_eq!(said(&client.answer().await), (403, "policy_forbidden"), "{fields}");
        assert_eq!(site.upstream.connections(), 1);
        let seen = site.upstream.seen.bytes.lock().clone();
        // How much of it the server has read by now is its affair.
        assert!(seen.len() < 65_536 + 420_000, "{}", seen.len());
        assert!(!seen.windows(20).any(|w| w == b"RSA PRIVATE KEY-----"), "{fields}");
        assert!(!seen.ends_with(b"0\r\n\r\n"), "the message has no end");
        let (decision, outcome) = site.gateway.exchange(0).await;
        assert_eq!((decision.verdict, decision.action.as_deref()), (Some(Verdict::Allow), Some("http")));
        assert!(!decision.attributes.expect("attributes").payload.expect("payload").complete);
        assert_eq!(
            (outcome.reason, outcome.action.as_deref()),
            (Some(DropReason::PolicyForbidden), Some("send"))
        );
        let later = outcome.attributes.expect("more came").payload.expect("payload");
        assert!(later.findings == ["private_key"] && later.bytes > 65_536, "{later:?}");
        assert_eq!(
            (outcome.policies, outcome.findings),
            (vec!["no-keys".to_owned()], vec!["private_key".to_owned()])
        );
        assert_eq!(outcome.status, Some(403));
    }
    // Without it, all of it passes.
    let site = Site::start(POLICY, SMALL).await;
    for (fields, sent) in [
        (format!("Content-Length: {}\r\n", before.len()), before.clone()),
        ("Transfer-Encoding: chunked\r\n".to_owned(), chunked(&before, 70_001)),
    ] {
        let mut client = site.gateway.client().await;
        client.send(site.head("/echo", &fields)).await;
        client.send(sent).await;
        let answer = client.answer().await;
        assert!(answer.status == 200 && answer.body == before, "{fields}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_streams_needs_a_permit_all_along_and_its_end_is_judged() {
    let site = Site::start(POLICY, SMALL).await;
    let body = noise(300_000);
    // No permit covers so many bytes: told before it comes, or when it is seen.
    assert_eq!(said(&site.ask("/short", "", &body).await), (403, "policy_denied"));
    assert_eq!(said(&site.ask("/sealed", "", &body).await), (403, "policy_denied"));
    assert_eq!(said(&site.ask("/whole", "", &body).await), (403, "policy_forbidden"));
    assert_eq!(site.upstream.connections(), 0);
    assert_eq!(site.ask("/whole", "", b"small").await.status, 200);
    let mut client = site.gateway.client().await;
    client.send(site.head("/short", "Transfer-Encoding: chunked\r\n")).await;
    client.send(chunked(&body, 10_000)).await;
    assert_eq!(said(&client.answer().await), (403, "policy_denied"));
    let seen = site.upstream.seen.bytes.lock().iter().filter(|b| **b >= 0x80).count();
    assert!(seen <= 100_000, "{seen}: none more than a permit covers");
    // What turns out not to be readable at its very end doesn't end.
    let mut broken = gzip(&body);
    let last = broken.len() - 1;
    broken[last] ^= 1;
    assert_eq!(
        said(&site.ask("/echo", "Content-Encoding: gzip\r\n", &broken).await),
        (415, "content_unreadable")
    );
    let requests = site.upstream.requests();
    assert_eq!(requests.iter().filter(|head| head.contains("/echo")).count(), 1, "{requests:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_decoder_holds_back_is_not_sent_before_the_end_is_judged() {
    let site = Site::start(POLICY, SMALL).await;
    let (before, last) = (gzip(&noise(400_000)), gzip(KEY.as_bytes()));
    assert!(last.len() < 256, "less than a decoder reads at once");
    let has_last = |bytes: &[u8]| bytes.windows(last.len()).any(|w| w == last);
    let sound = [&before[..], &gzip(b"harmless")].concat();
    for size in [8192, 100, 1] {
        let fields = "Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n";
        let mut client = site.gateway.client().await;
        client.send(site.head("/echo", fields)).await;
        let all = [chunked(&before, 8192), chunked(&last, size)];
        let all = all.map(|chunks| chunks.strip_suffix(b"0\r\n\r\n").expect("an end").to_vec()).concat();
        client.send(all).await;
        let sent = before.len() - 8192;
        site.seen(|bytes| bytes.len() > sent).await;
        client.send("0\r\n\r\n").await;
        let rest = client.rest().await;
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.is_empty() || rest.contains("policy_forbidden"), "{rest}");
        assert!(!has_last(&site.upstream.seen.bytes.lock()), "{size}");
        site.upstream.seen.bytes.lock().clear();
        // What is kept back of what is harmless goes on at its end.
        client = site.gateway.client().await;
        client.send(site.head("/echo", fields)).await;
        client.send(chunked(&sound, 9000)).await;
        let answer = client.answer().await;
        assert!(answer.status == 200 && answer.body == sound);
        site.upstream.seen.bytes.lock().clear();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forbid_of_what_is_complete_permits_nothing_before() {
    let site = Site::start(POLICY, SMALL).await;
    let late = r#"@id("late") forbid (principal, action == Action::"send", resource) when { context.path == "/sealed" && context.complete };"#;
    assert_eq!(site.gateway.publish_policy(&format!("{POLICY}{late}")).await, "");
    assert_eq!(said(&site.ask("/sealed", "", &noise(300_000)).await), (403, "policy_denied"));
    assert_eq!(site.upstream.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_asks_nothing_is_held_and_when_somebody_does_it_ends() {
    let site = Site::start(crate::harness::POLICY, "").await;
    let mut client = site.gateway.client().await;
    client.send(site.head("/echo", "Content-Length: 30\r\n") + "beginning.").await;
    site.seen(|bytes| bytes.ends_with(b"beginning.")).await;
    // Of what came before nobody knows anything.
    assert_eq!(site.gateway.publish_policy(POLICY).await, "");
    client.send("-----").await;
    let rest = client.rest().await;
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.is_empty() || rest.contains("inspection_required"), "{rest}");
    let (_, outcome) = site.gateway.exchange(0).await;
    assert_eq!(outcome.reason, Some(DropReason::InspectionRequired));
    // By what is said of a body alone it need not be held either.
    let said_of_it =
        POLICY.replace("context.findings.contains(\"private_key\")", "context.media_type == \"text/x\"");
    let said_of_it = said_of_it.replace("!context.complete", "context.bytes > 9");
    assert_eq!(site.gateway.publish_policy(&said_of_it).await, "");
    let mut client = site.gateway.client().await;
    client.send(site.head("/echo", "Content-Length: 30\r\n") + "beginning.").await;
    site.seen(|bytes| bytes.windows(10).filter(|w| w == b"beginning.").count() == 2).await;
    client.send("it goes on, and it ends").await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(said(&site.ask("/", "Content-Type: Text/X; a=b\r\n", b"x").await), (403, "policy_forbidden"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn obligations_of_what_is_sent_are_enforced() {
    const DUTIES: &str = r#"
@id("told") @effect("alert") @severity("high") permit (principal, action == Action::"send", resource)
when { context.findings.contains("media_type_mismatch") };
@id("leak") @effect("quarantine") @for("15m") permit (principal, action == Action::"send", resource)
when { context.findings.contains("private_key") };
"#;
    let site = Site::start(crate::harness::POLICY, SMALL).await;
    let policy = format!("{}{DUTIES}", crate::harness::POLICY);
    assert_eq!(site.gateway.publish_policy(&policy).await, "");
    let answer = site.ask("/echo", "Content-Type: image/png\r\n", b"just text").await;
    assert_eq!(answer.status, 200, "an alert holds nothing back, and no permit is asked for");
    let (allowed, _) = site.gateway.exchange(0).await;
    assert_eq!((allowed.effects[0].policy.as_str(), allowed.effects[0].effect.as_str()), ("told", "alert"));
    assert_eq!(allowed.findings, ["media_type_mismatch"]);
    // Nor does one where what it asks can't be known.
    let (alert, _) = DUTIES.split_once("@id(\"leak\")").expect("two");
    assert_eq!(site.gateway.publish_policy(&format!("{}{alert}", crate::harness::POLICY)).await, "");
    assert_eq!(site.ask("/", "Content-Encoding: compress\r\n", b"x").await.status, 200);
    assert_eq!(site.gateway.publish_policy(&policy).await, "");
    // In the middle of what streams.
    let body = [&noise(300_000)[..], KEY.as_bytes()].concat();
    let answer = site.ask("/echo", "", &body).await;
    // Its connection is cut with all others of the agent, perhaps before the answer.
    assert!(answer.status == 0 || said(&answer) == (403, "agent_quarantined"), "{answer:?}");
    let (_, outcome) = site.gateway.exchange(2).await;
    assert_eq!(outcome.effects.iter().map(|e| e.policy.as_str()).collect::<Vec<_>>(), ["leak"]);
    assert_eq!(outcome.reason, Some(DropReason::AgentQuarantined));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while site.gateway.control.imposed.lock().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "control was not told");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_holds_inside_tls_that_is_read_and_at_endpoints() {
    let site = intercept::Site::start(POLICY, "").await;
    let mut client = site.inside().await;
    for (body, expected) in [(KEY, (403, "policy_forbidden")), ("harmless", (200, "none"))] {
        let host = site.host();
        let head = format!("POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", body.len());
        client.send(head + body).await;
        assert_eq!(said(&client.answer().await), expected);
    }
    assert_eq!(site.upstream.requests().len(), 1);
    let site = endpoints::Site::by(POLICY).await;
    for (body, expected) in [(KEY, (403, "policy_forbidden")), ("harmless", (200, "none"))] {
        let (proxy, key) = (site.gateway.proxy, &site.gateway.key);
        let head = format!(
            "POST /llm/v1/chat HTTP/1.1\r\nHost: {proxy}\r\nAuthorization: Bearer {key}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        assert_eq!(said(&site.gateway.ask(&(head + body)).await), expected);
    }
    assert_eq!(site.upstream.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_is_tried_out_denies_nothing() {
    let site = Site::start(crate::harness::POLICY, "[content]\nhold_s_max = 1\n").await;
    let tried = "@id(\"tried\") @mode(\"log-only\") forbid (principal, action == Action::\"send\", resource) when { context.findings.contains(\"private_key\") };";
    let policy = format!("{}{tried}", crate::harness::POLICY);
    assert_eq!(site.gateway.publish_policy(&policy).await, "");
    assert_eq!(site.ask("/echo", "", KEY.as_bytes()).await.status, 200);
    let (told, _) = site.gateway.exchange(0).await;
    assert_eq!((told.effects[0].policy.as_str(), told.effects[0].effect.as_str()), ("tried", "would-forbid"));
    // Nor what can't be read, nor a body that takes its time.
    assert_eq!(site.ask("/echo", "Content-Encoding: compress\r\n", b"x").await.status, 200);
    let mut slow = site.gateway.client().await;
    slow.send(site.head("/echo", "Content-Length: 10\r\n") + "slow.").await;
    site.seen(|bytes| bytes.ends_with(b"slow.")).await;
    slow.send("also.").await;
    assert_eq!(slow.answer().await.body, b"slow.also.");
}

/// Its fields go nowhere, and take nothing of what a body may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_whole_with_a_trailer_of_any_length_that_is_permitted() {
    let site = Site::start(POLICY, "").await;
    let mut client = site.gateway.client().await;
    for field in [10, 3_000, 8_000] {
        client.send(site.head("/whole", "Transfer-Encoding: chunked\r\n")).await;
        let trailer = format!("5\r\nhello\r\n0\r\nX: {}\r\n\r\n", "a".repeat(field));
        // In two pieces, so that it is waited for.
        let (first, rest) = trailer.split_at(trailer.len() - 4);
        client.send(first).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.send(rest).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{field}");
    }
}
