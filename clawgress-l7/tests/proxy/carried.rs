//! What requests carry besides their bodies, and what an agent's requests carry together.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use clawgress_api::{AuditRecord, RecordKind, Verdict};

use crate::client::Answer;
use crate::conversations::{self, TEXT, said};
use crate::harness::{Gateway, Options, PATIENCE};
use crate::upstream::Upstream;

const POLICY: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal == Agent::"web", action == Action::"http", resource);
@id("send") permit (principal == Agent::"web", action == Action::"send", resource);
@id("llm") permit (principal == Agent::"web", action == Action::"llm", resource);
@id("no-data") forbid (principal, action == Action::"send", resource)
when { context.findings.containsAny(["url_data", "header_data", "host_data", "split_data", "private_key"]) };
"#;

/// Nothing of it is a policy's to decide by: who forbids nothing has nothing looked at.
const UNASKED: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal == Agent::"web", action == Action::"http", resource);
"#;

/// What fails is told, also to who still sends: a connection that is closed on what nobody has read is reset, and the answer may be
/// lost to that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_what_failed_is_not_lost_to_what_is_still_sent() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let site = Site::start(UNASKED).await;
    let closed =
        std::net::TcpListener::bind("127.1.0.1:0").expect("bind").local_addr().expect("address").port();
    let (host, auth) = (format!("api.allowed.test:{closed}"), site.gateway.web());
    for body in [20_000, 200_000] {
        let mut client = tokio::net::TcpStream::connect(site.gateway.proxy).await.expect("connect");
        let head =
            format!("POST http://{host}/x HTTP/1.1\r\nHost: {host}\r\n{auth}Content-Length: {body}\r\n\r\n");
        client.write_all(head.as_bytes()).await.expect("the head");
        client.write_all(&vec![b'x'; body]).await.expect("the body");
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("in time");
        assert!(answer.starts_with(b"HTTP/1.1 502"), "{}", String::from_utf8_lossy(&answer));
        read.expect("an end, and no reset");
    }
}

const SECRET: &str = "user=alice&password=hunter2&note=nothing else";

struct Site {
    gateway: Gateway,
    upstream: Upstream,
    host: String,
}

impl Site {
    async fn start(policy: &'static str) -> Site {
        Site::with(policy, "").await
    }

    async fn with(policy: &'static str, more: &str) -> Site {
        let options = Options { policy: Some(policy), more: more.to_owned(), ..Options::default() };
        let gateway = Gateway::start(options).await;
        let upstream = Upstream::http("127.1.0.1").await;
        let host = format!("api.allowed.test:{}", upstream.address.port());
        Site { gateway, upstream, host }
    }

    async fn get(&self, target: &str, fields: &str) -> Answer {
        let (host, auth) = (&self.host, self.gateway.web());
        let mut client = self.gateway.client().await;
        client
            .send(format!("GET http://{host}{target} HTTP/1.1\r\nHost: {host}\r\n{auth}{fields}\r\n"))
            .await;
        client.answer().await
    }

    async fn post(&self, target: &str, body: &str) -> Answer {
        let (host, auth, length) = (&self.host, self.gateway.web(), body.len());
        let mut client = self.gateway.client().await;
        client
            .send(format!(
                "POST http://{host}{target} HTTP/1.1\r\nHost: {host}\r\n{auth}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            ))
            .await;
        client.answer().await
    }

    /// What was decided of the request number `n`.
    async fn decision(&self, n: usize) -> AuditRecord {
        self.gateway.exchange(n).await.0
    }
}

fn status(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.reason())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_in_a_query_a_path_or_a_field_is_found_without_a_body() {
    let site = Site::start(POLICY).await;
    let code = URL_SAFE_NO_PAD.encode(SECRET);
    let key = URL_SAFE_NO_PAD.encode("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v\n");
    let asked = [
        (format!("/c?d={code}"), String::new(), vec!["url_data"]),
        (format!("/p/{code}.png"), String::new(), vec!["url_data"]),
        ("/".to_owned(), format!("X-Trace: {}\r\n", STANDARD.encode(SECRET)), vec!["header_data"]),
        (format!("/c?d={key}"), String::new(), vec!["private_key", "url_data"]),
    ];
    for (n, (target, fields, found)) in asked.iter().enumerate() {
        assert_eq!(status(&site.get(target, fields).await), (403, "policy_forbidden"), "{target} {fields}");
        let record = site.decision(n).await;
        assert_eq!(record.findings, *found);
        assert_eq!(
            (record.action.as_deref(), &record.policies[..]),
            (Some("send"), &["no-data".to_owned()][..])
        );
        let payload = record.attributes.as_ref().and_then(|a| a.payload.clone()).expect("what was sent");
        assert_eq!((payload.bytes, payload.complete, payload.findings), (0, true, record.findings.clone()));
        let told = serde_json::to_string(&record).expect("JSON").replace(target.as_str(), "");
        assert!(!told.contains(&code) && !told.contains("hunter2"), "{told}");
    }
    assert!(site.upstream.seen.requests.lock().is_empty());
    // What any request has is no data.
    let token =
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U";
    let fields = format!("Authorization: Bearer {token}\r\nCookie: session={code}\r\n");
    let target =
        format!("/v1/things/3f2504e0-4f89-11d3-9a0c-0305e82c3301?token={token}&q=how+to+cook+an+egg");
    assert_eq!(site.get(&target, &fields).await.status, 200);
    assert_eq!(site.decision(asked.len()).await.findings, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_head_carries_counts_for_its_body_and_its_call() {
    let site = Site::start(POLICY).await;
    let code = URL_SAFE_NO_PAD.encode(SECRET);
    let call = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    assert_eq!(status(&site.post(&format!("/x?d={code}"), call).await), (403, "policy_forbidden"));
    let record = site.decision(0).await;
    assert_eq!(record.findings, ["url_data"]);
    let llm = record.attributes.and_then(|a| a.llm).expect("a call");
    assert_eq!(llm.findings, Some(vec!["url_data".to_owned()]));
    assert_eq!(site.post("/x", call).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_in_small_pieces_is_found_over_requests() {
    let site = Site::start(POLICY).await;
    let secret: String = (0..100).map(|n| format!("account {n}: {}; ", n * 7919 % 1000)).collect();
    let code = URL_SAFE_NO_PAD.encode(secret);
    let mut stopped = None;
    // Pieces that are too short to be anything by themselves.
    for (n, piece) in code.as_bytes().chunks(28).enumerate() {
        let piece = std::str::from_utf8(piece).expect("letters");
        let answer = site.get(&format!("/pixel.gif?id={piece}{}", n % 10), "").await;
        if answer.status != 200 {
            assert_eq!(status(&answer), (403, "policy_forbidden"));
            stopped = Some(n);
            break;
        }
    }
    let stopped = stopped.expect("it is found");
    assert!((8..140).contains(&stopped), "{stopped}");
    let record = site.decision(stopped).await;
    assert_eq!((&record.findings[..], record.verdict), (&["split_data".to_owned()][..], Some(Verdict::Deny)));
    // Another agent's requests are another's, and the same piece again is no news.
    let again = format!("/pixel.gif?id={}0", &code[..28]);
    assert_eq!(site.get(&again, "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_in_bodies_count_with_those_in_queries() {
    let policy = POLICY.replace("\"private_key\"", "\"nothing\"");
    let site = Site::start(conversations::policy(&policy)).await;
    let text = |n: usize| STANDARD.encode(format!("part {n} of {SECRET} {}", "and more ".repeat(12)));
    let mut stopped = None;
    for n in 0..30 {
        let answer = site.post("/notes", &format!("{{\"note\":\"{}\"}}", text(n))).await;
        if answer.status != 200 {
            stopped = Some(n);
            break;
        }
    }
    assert!(stopped.is_some_and(|n| n >= 7), "{stopped:?}");
    let record = site.decision(stopped.expect("found")).await;
    assert_eq!(record.findings, ["encoded_text", "split_data"]);
}

/// Who never ends what it sends hides nothing by that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_in_bodies_that_do_not_end_count_too() {
    let policy = POLICY.replace("\"private_key\"", "\"nothing\"");
    let small = "[content]\nhold_bytes_max = 65536\nagent_memory_bytes_max = 20000000\n";
    let site = Site::with(conversations::policy(&policy), small).await;
    let (host, auth) = (&site.host, site.gateway.web());
    let mut open = Vec::new();
    for n in 0..20 {
        let text = STANDARD.encode(format!("part {n} of {SECRET} {}", "and more ".repeat(12)));
        let piece = format!("{text} {}", "all is well. ".repeat(6000));
        let mut client = site.gateway.client().await;
        client
            .send(format!(
                "POST http://{host}/notes HTTP/1.1\r\nHost: {host}\r\n{auth}Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{piece}\r\n",
                piece.len()
            ))
            .await;
        open.push(client);
    }
    // None of them has ended but by what was found.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let outcome = loop {
        let records = site.gateway.control.records();
        if let Some(found) = records.into_iter().find(|r| r.kind == RecordKind::Outcome) {
            break found;
        }
        assert!(tokio::time::Instant::now() < deadline, "nothing was found");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!(
        (outcome.action.as_deref(), &outcome.policies[..]),
        (Some("send"), &["no-data".to_owned()][..])
    );
    assert!(outcome.findings.contains(&"split_data".to_owned()), "{outcome:?}");
    drop(open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_in_messages_count_too() {
    let site = conversations::Site::start(POLICY, "").await;
    let mut client = site.opened().await;
    for n in 0..12 {
        let text = STANDARD.encode(format!("part {n} of {SECRET} {}", "and more ".repeat(20)));
        client.send(said(TEXT, text)).await;
    }
    // The server may have answered some of those that were let through by then.
    let ((code, reason), answers) = conversations::close_after(&mut client).await;
    assert_eq!(code, 1008, "{reason}");
    assert!(answers.len() < 12, "{answers:?}");
    drop(client);
    let (_, outcome) = site.ended(0).await;
    assert!(outcome.findings.contains(&"split_data".to_owned()), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_looks_where_nobody_asks_and_names_are_told() {
    let site = Site::start(UNASKED).await;
    let code = URL_SAFE_NO_PAD.encode(SECRET);
    assert_eq!(site.get(&format!("/c?d={code}"), "").await.status, 200);
    let record = site.decision(0).await;
    assert!(record.findings.is_empty() && record.attributes.is_some_and(|a| a.payload.is_none()));
    // What a name looks like is told of whatever goes there, also where it is refused.
    let (_, answer) = site.gateway.connect("nbswy3dpeb3w64tmmqqhg2lt.denied.test:443").await;
    assert_eq!(answer.status, 403);
    assert_eq!(site.decision(1).await.findings, ["host_data"]);
}
