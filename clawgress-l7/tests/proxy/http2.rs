//! HTTP/2, from clients and to servers: each stream is judged by itself, and ends when it may be served no longer.

use std::sync::Arc;
use std::time::Duration;

use clawgress_api::{AuditRecord, RecordKind, Verdict};
use clawgress_ebpf_common::DropReason;
use h2::Reason;
use http::Request;

use crate::body;
use crate::endpoints::https;
use crate::harness::{PATIENCE, POLICY};
use crate::intercept::{HOST, Site, trusting};
use crate::streams::{Connection, clear_server, reply, send, server};

const KEY: &str = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n";

/// A gateway that reads, before a server of HTTP/2.
pub async fn site(policy: &'static str, more: &str) -> Site {
    let (upstream, pem) = server("127.1.0.1", HOST).await;
    Site::before(upstream, &pem, policy, more).await
}

pub async fn inside(site: &Site) -> Connection {
    let config = trusting(&[site.gateway.authority.certificate()], &["h2", "http/1.1"]);
    let client = site.shake(HOST, config).await.expect("handshake");
    assert_eq!(client.stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    Connection::over(client.stream).await
}

pub fn url(site: &Site, path: &str) -> String {
    format!("https://{}{path}", site.host())
}

pub fn post(site: &Site, path: &str) -> http::request::Builder {
    Request::post(url(site, path))
}

pub fn at(path: &'static str) -> impl Fn(&AuditRecord) -> bool {
    move |r: &AuditRecord| r.destination.path.as_deref() == Some(path)
}

pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "{what} never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_stream_is_judged_and_recorded_whatever_the_server_speaks() {
    for upstream in [https("127.1.0.1", HOST).await, server("127.1.0.1", HOST).await] {
        let site = Site::before(upstream.0, &upstream.1, POLICY, "").await;
        let client = inside(&site).await;
        let (ok, denied) = (url(&site, "/ok"), url(&site, "/denied"));
        let (ok, denied, again) = tokio::join!(client.get(&ok), client.get(&denied), client.get(&ok));
        let (ok, denied, again) = (ok.expect("ok"), denied.expect("denied"), again.expect("again"));
        assert_eq!((ok.status, &ok.body[..], &again.body[..]), (200, &b"ok"[..], &b"ok"[..]));
        assert_eq!(denied.said(), (403, "policy_denied"));
        assert!(denied.fields.get("proxy-authenticate").is_none());
        let request = Request::get(url(&site, "/posing"))
            .header("x-forwarded-for", "1.1.1.1")
            .header("x-clawgress-agent", "root")
            .header("proxy-authorization", "Basic eDp5")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(());
        assert_eq!(client.ask(request.expect("request"), b"").await.expect("answer").status, 200);
        // What it was shown a certificate for is all it may ask for.
        let other = client.get(&format!("https://api.allowed.test:{}/", site.port())).await.expect("answer");
        assert_eq!(other.said(), (421, "sni_mismatch"));
        assert!(client.is_closed().await, "as one of HTTP/1 is");

        let seen = site.upstream.requests();
        assert_eq!(seen.len(), 3, "{seen:?}");
        let all = seen.concat().to_lowercase();
        assert!(!all.contains("x-forwarded-for") && !all.contains("x-clawgress"), "{all}");
        assert!(!all.contains("proxy-authorization") && all.contains("cookie: a=1; b=2"), "{all}");
        let first = site.record(RecordKind::Decision, at("/ok")).await;
        assert_eq!((first.action.as_deref(), first.intercepted), (Some("http"), true));
        assert_eq!(first.policies, ["http", "net", "tls"]);
        assert_eq!(first.agent.expect("agent").agent, "web");
        let outcome = site.record(RecordKind::Outcome, at("/posing")).await;
        assert_eq!((outcome.status, outcome.reason), (Some(200), None));
        assert!(outcome.bytes_received >= Some(2) && outcome.bytes_sent > Some(10), "{outcome:?}");
        let denied = site.record(RecordKind::Decision, at("/denied")).await;
        assert!(denied.intercepted && denied.verdict == Some(Verdict::Deny));
    }
}

/// Nobody merges them into what was judged, and none go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_of_requests_go_nowhere() {
    let site = site(POLICY, "").await;
    let client = inside(&site).await;
    for path in ["/echo", "/ok"] {
        let (response, mut stream) =
            client.begin(post(&site, path).body(()).expect("request"), false).await.expect("begun");
        send(&mut stream, b"body").await.expect("sent");
        let mut trailers = http::HeaderMap::new();
        for (name, value) in
            [("x-forwarded-for", "1.1.1.1"), ("x-behind", "1"), ("authorization", "Bearer x")]
        {
            trailers.insert(name, value.parse().expect("value"));
        }
        stream.send_trailers(trailers).expect("sent");
        assert_eq!(reply(response).await.expect("answer").status, 200);
    }
    let seen = site.upstream.requests();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(!seen.concat().contains("x-behind") && !seen.concat().contains("authorization"), "{seen:?}");
    assert_eq!(*site.upstream.seen.bytes.lock(), b"bodybody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_and_trailers_go_both_ways() {
    let site = site(POLICY, "").await;
    let client = inside(&site).await;
    let body: Vec<u8> = (0..400_000_u32).map(|n| (n % 251) as u8).collect();
    for builder in [post(&site, "/echo"), post(&site, "/echo").header("content-length", body.len())] {
        let answer = client.ask(builder.body(()).expect("request"), &body).await.expect("answer");
        assert_eq!((answer.status, answer.body == body), (200, true));
    }
    let request = post(&site, "/trailers").header("te", "trailers").body(()).expect("request");
    let answer = client.ask(request, b"x").await.expect("answer");
    assert_eq!((answer.status, &answer.body[..]), (200, &b"message"[..]));
    assert_eq!(answer.trailers.get("grpc-status").expect("status"), "0");
    assert_eq!(answer.trailers.len(), 1, "{:?}", answer.trailers);
    let seen = site.upstream.requests();
    assert!(seen[2].contains("te: trailers\n") && !seen[0].contains("te:"), "{seen:?}");
    assert!(seen.iter().all(|head| head.contains(&format!("https://{}/", site.host()))), "{seen:?}");
    assert_eq!(site.upstream.connections(), 1, "streams of an agent share a connection");
    // One of HTTP/1 does too.
    let mut old = site.inside().await;
    old.send(format!("GET /old HTTP/1.1\r\nHost: {}\r\n\r\n", site.host())).await;
    let answer = old.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    old.send(format!("POST /echo HTTP/1.1\r\nHost: {}\r\nContent-Length: 3\r\n\r\nabc", site.host())).await;
    assert!(old.answer().await.text().contains("abc"));
    assert_eq!(site.upstream.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_held_until_it_is_judged() {
    let site = site(body::POLICY, "").await;
    let client = inside(&site).await;
    // Small or large, declared or not: nobody is dialled for it.
    for (size, declared) in [(10, true), (10, false), (200_000, true), (200_000, false)] {
        let body = [&vec![b'x'; size][..], KEY.as_bytes()].concat();
        let mut builder = post(&site, "/echo");
        if declared {
            builder = builder.header("content-length", body.len());
        }
        let answer = client.ask(builder.body(()).expect("request"), &body).await.expect("answer");
        assert_eq!(answer.said(), (403, "policy_forbidden"), "{size} {declared}");
        assert_eq!(site.upstream.connections(), 0);
    }
    for size in [0_usize, 1, 65_535, 65_536, 65_537, 300_000] {
        let body = vec![b'x'; size];
        let answer = client.post(&url(&site, "/echo"), &body).await.expect("answer");
        assert_eq!((answer.status, answer.body == body), (200, true), "{size}");
    }
    let sealed = client.post(&url(&site, "/sealed"), b"x").await.expect("answer");
    assert_eq!(sealed.said(), (403, "policy_denied"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_streams_is_stopped_in_the_middle() {
    const SMALL: &str = "[content]\nhold_bytes_max = 65536\n";
    for old in [true, false] {
        let (upstream, pem) =
            if old { https("127.1.0.1", HOST).await } else { server("127.1.0.1", HOST).await };
        let site = Site::before(upstream, &pem, body::POLICY, SMALL).await;
        let client = inside(&site).await;
        let (response, mut stream) =
            client.begin(post(&site, "/echo").body(()).expect("request"), false).await.expect("begun");
        send(&mut stream, &vec![b'x'; 200_000]).await.expect("sent");
        until("the request", || !site.upstream.requests().is_empty()).await;
        send(&mut stream, KEY.as_bytes()).await.expect("sent");
        let _ = stream.send_data(bytes::Bytes::new(), true);
        let answer = tokio::time::timeout(PATIENCE, reply(response)).await.expect("in time").expect("answer");
        assert_eq!(answer.said(), (403, "policy_forbidden"));
        let record = site.record(RecordKind::Outcome, at("/echo")).await;
        assert_eq!(record.reason, Some(DropReason::PolicyForbidden));
        assert!(!String::from_utf8_lossy(&site.upstream.seen.bytes.lock()).contains("PRIVATE KEY"));
        if !old {
            // It is told that this was not all.
            until("the reset", || site.upstream.requests().contains(&"reset /echo".to_owned())).await;
        }
        // Others on the connection go on.
        assert_eq!(client.post(&url(&site, "/echo"), b"fine").await.expect("answer").status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_with_their_permission_and_connections_with_quarantine() {
    const WAIT: &str = "@id(\"wait\") forbid (principal, action == Action::\"http\", resource) when { context.path == \"/wait\" };";
    let site = site(POLICY, "").await;
    let client = inside(&site).await;
    let wait = || Request::get(url(&site, "/wait")).body(()).expect("request");
    let (waiting, _stream) = client.begin(wait(), true).await.expect("begun");
    until("the request", || !site.upstream.requests().is_empty()).await;
    assert_eq!(site.gateway.publish_policy(&format!("{POLICY}{WAIT}")).await, "");
    let error = tokio::time::timeout(PATIENCE, waiting).await.expect("in time").expect_err("cut");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    let ended = site.record(RecordKind::Outcome, at("/wait")).await;
    assert_eq!(ended.reason, Some(DropReason::PolicyForbidden));
    until("the reset", || site.upstream.requests().contains(&"reset CANCEL".to_owned())).await;
    assert_eq!(client.get(&url(&site, "/ok")).await.expect("its connection lives on").status, 200);

    assert_eq!(site.gateway.publish_policy(POLICY).await, "");
    let before = site.upstream.requests().len();
    let (waiting, _stream) = client.begin(wait(), true).await.expect("begun");
    until("the request", || site.upstream.requests().len() > before).await;
    site.gateway.isolate(&[1]).await;
    tokio::time::timeout(PATIENCE, waiting).await.expect("in time").expect_err("cut");
    assert!(client.is_closed().await);
    let quarantined = |r: &AuditRecord| r.reason == Some(DropReason::AgentQuarantined);
    site.record(RecordKind::Outcome, |r| at("/wait")(r) && quarantined(r)).await;
    let tls = site.record(RecordKind::Outcome, |r| r.action.as_deref() == Some("tls")).await;
    assert!(quarantined(&tls), "{tls:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_be_read_otherwise_is_refused() {
    let site = site(POLICY, "").await;
    let host = site.host();
    let refused = async |request: http::request::Builder, body: &'static [u8]| {
        let client = inside(&site).await;
        client.ask(request.body(()).expect("request"), body).await
    };
    for (name, value) in [
        ("host", "api.allowed.test"),
        ("host", ""),
        ("content-length", "+1"),
        ("expect", "200-ok"),
        ("padded", "x "),
    ] {
        let request = Request::get(url(&site, "/")).header(name, value);
        match refused(request, b"").await {
            Ok(answer) => assert_eq!(answer.said(), (400, "http_malformed"), "{name}"),
            // The decoder has refused it.
            Err(error) => assert_eq!(error.reason(), Some(Reason::PROTOCOL_ERROR), "{name}"),
        }
    }
    // More than it says, and less.
    for (declared, body) in [("2", &b"abc"[..]), ("4", b"abc")] {
        let request = post(&site, "/echo").header("content-length", declared);
        let error = refused(request, body).await.expect_err("another length");
        assert_eq!(error.reason(), Some(Reason::PROTOCOL_ERROR), "{declared}");
    }
    for wrong in [format!("http://{host}/"), format!("https://u@{host}/")] {
        let answer = refused(Request::get(&wrong), b"").await.expect("answer");
        assert_eq!(answer.said(), (400, "http_malformed"), "{wrong}");
    }
    for path in ["/x/../denied", "/%64enied", "//denied"] {
        let answer = refused(Request::get(url(&site, path)), b"").await.expect("answer");
        assert_eq!(answer.said(), (400, "http_malformed"), "{path}");
    }
    let connect = Request::connect(&host);
    let answer = refused(connect, b"").await.expect("answer");
    assert_eq!(answer.said(), (400, "http_malformed"));
    let seen = site.upstream.requests();
    assert!(
        seen.iter().all(|head| head.starts_with("POST /echo")
            || head.starts_with("reset")
            || head.contains("/echo")),
        "{seen:?}"
    );
    assert!(!seen.iter().any(|head| head.starts_with("GET")), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_has_its_share_of_streams_and_no_more() {
    let site = site(POLICY, "").await;
    let client = inside(&site).await;
    let wait = || Request::get(url(&site, "/wait")).body(()).expect("request");
    assert_eq!(client.get(&url(&site, "/")).await.expect("answer").status, 200);
    // Those that are reset while they are served have a place all the same.
    let mut reset = 0;
    let error = loop {
        match client.begin(wait(), true).await {
            Ok((response, mut stream)) => {
                stream.send_reset(Reason::CANCEL);
                drop(response);
                reset += 1;
                assert!(reset < 100_000, "nobody minds");
            }
            Err(error) => break error,
        }
    };
    assert!(error.is_go_away() || error.is_io(), "{error:?}");
    assert!(client.is_closed().await);
    // Many at a time, of which each is served.
    let client = Arc::new(inside(&site).await);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let (client, url) = (Arc::clone(&client), url(&site, "/"));
        asking.spawn(async move {
            loop {
                match client.get(&url).await {
                    // An agent's clients share a connection to a server, which may have ended it for the flood above: who may
                    // be asked again is, by another.
                    Ok(answer) => return answer.status,
                    // One too many for a moment: nothing was asked, and it may ask again.
                    Err(error) => assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM), "{error:?}"),
                }
            }
        });
    }
    while let Some(status) = asking.join_next().await {
        assert_eq!(status.expect("task"), 200);
    }
    // A head that is too large is refused, and the connection lives on.
    let large = Request::get(url(&site, "/")).header("large", "x".repeat(70_000)).body(()).expect("request");
    if let Ok(answer) = client.ask(large, b"").await {
        assert!(answer.status >= 400, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_knows_that_a_server_speaks_it_is_taken_at_its_word_in_clear() {
    let site = site(POLICY, "").await;
    let upstream = clear_server("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let (client, answer) = site.gateway.connect(&host).await;
    assert_eq!(answer.status, 200);
    let client = Connection::over(client.stream).await;
    let answer = client.post(&format!("http://{host}/echo"), b"in clear").await.expect("answer");
    assert_eq!((answer.status, &answer.body[..]), (200, &b"in clear"[..]));
    let denied = client.get(&format!("http://{host}/denied")).await.expect("answer");
    assert_eq!(denied.said(), (403, "policy_denied"));
    assert_eq!(upstream.requests().len(), 1);
    let elsewhere = client.get("http://read.allowed.test/").await.expect("answer");
    assert_eq!(elsewhere.said(), (400, "http_malformed"));
    // Of a proxy it can't be told who is meant.
    let mut stream = site.gateway.client().await;
    stream.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(stream.rest().await, b"");
    let refused = |r: &AuditRecord| r.reason == Some(DropReason::UpgradeUnsupported);
    site.record(RecordKind::Outcome, refused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_end_with_their_heads() {
    for upstream in [https("127.1.0.1", HOST).await, server("127.1.0.1", HOST).await] {
        let site = Site::before(upstream.0, &upstream.1, POLICY, "").await;
        let client = inside(&site).await;
        let head = Request::head(url(&site, "/head")).body(()).expect("request");
        let answer = client.ask(head, b"").await.expect("answer");
        assert_eq!((answer.status, answer.body.len()), (200, 0));
        assert_eq!(answer.fields.get("content-length").expect("length"), "2");
        // A client that wants to be told to go on is told.
        let asks = post(&site, "/ok").header("expect", "100-continue").body(()).expect("request");
        assert_eq!(client.ask(asks, b"body").await.expect("answer").status, 200);
        assert!(!site.upstream.requests().concat().contains("100-continue"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_is_ended_in_peace_when_the_process_stops() {
    let mut site = site(POLICY, "").await;
    let client = inside(&site).await;
    let (response, mut stream) =
        client.begin(post(&site, "/echo").body(()).expect("request"), false).await.expect("begun");
    send(&mut stream, b"first").await.expect("sent");
    until("the request", || !site.upstream.requests().is_empty()).await;
    site.gateway.begin_stop();
    // It says that it takes no more, and goes on with what there is.
    until("the end of new streams", || {
        let asked = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(client.get(&url(&site, "/ok")))
        });
        asked.is_err()
    })
    .await;
    send(&mut stream, b" and last").await.expect("sent");
    stream.send_data(bytes::Bytes::new(), true).expect("ended");
    let answer = tokio::time::timeout(PATIENCE, reply(response)).await.expect("in time").expect("answer");
    assert_eq!((answer.status, &answer.body[..]), (200, &b"first and last"[..]));
    assert!(client.is_closed().await);
    site.gateway.stop().await;
}

/// What a client begins with (RFC 9113 section 3.4), and settings of its own that say nothing.
pub const START: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame (RFC 9113 section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A literal field, or a pseudo-header, without compression (RFC 7541 section 6.2.2).
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let n = |text: &str| u8::try_from(text.len()).expect("short");
    [&[0, n(name)][..], name.as_bytes(), &[n(value)], value.as_bytes()].concat()
}

/// What no client's library sends: pseudo-headers twice, after others or unknown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_no_honest_client_reach_nobody() {
    let site = site(POLICY, "").await;
    let raw = async || {
        let config = trusting(&[site.gateway.authority.certificate()], &["h2"]);
        site.shake(HOST, config).await.expect("handshake")
    };
    let host = site.host();
    let own = [(":method", "GET"), (":scheme", "https"), (":authority", &*host), (":path", "/ok")];
    for more in [
        &[(":path", "/other")][..],
        &[(":authority", "api.allowed.test")],
        &[("accept", "*/*"), (":path", "/other")],
        &[(":status", "200")],
        &[(":protocol", "websocket")],
        &[(":unknown", "x")],
        &[("Accept", "x")],
        &[("x", "a\r\nb: c")],
        &[("x\r\ny", "z")],
        &[("connection", "close")],
        &[("transfer-encoding", "chunked")],
        &[("content-length", "1"), ("content-length", "2")],
        &[("content-length", "5")],
        &[("te", "gzip")],
    ] {
        let block: Vec<u8> = own.iter().chain(more).flat_map(|(n, v)| literal(n, v)).collect();
        let mut client = raw().await;
        client.send([START, &frame(1, 5, 1, &block)].concat()).await;
        // Whatever is said, it is no answer of the server's.
        client.send(frame(7, 0, 0, &[0; 8])).await;
        let said = String::from_utf8_lossy(&client.rest().await).into_owned();
        assert!(!said.contains("ok"), "{more:?}: {said:?}");
    }
    assert!(site.upstream.requests().is_empty(), "{:?}", site.upstream.requests());
    let client = inside(&site).await;
    assert_eq!(client.get(&url(&site, "/ok")).await.expect("answer").status, 200, "others are served");
}
