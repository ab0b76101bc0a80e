//! What header fields and queries say decides: of requests by every way, in one form, and only of what goes on.

use clawgress_api::{AuditRecord, RecordKind};
use clawgress_ebpf_common::DropReason;
use http::Request;
use tokio::io::AsyncWriteExt as _;

use crate::harness::{Gateway, Options, POLICY};
use crate::http2::{inside, site};
use crate::upstream::Upstream;
use crate::web_sockets;

/// On top of the usual policy: who has to say its team, and what may be in a query.
const ASKS: &str = r#"
@id("team") forbid (principal, action == Action::"http", resource)
unless { context.headers.hasTag("x-team") && context.headers.getTag("x-team") like "pay*" };
@id("query") forbid (principal, action == Action::"http", resource)
unless { ["alt", "tag", "key"].containsAll(context.query_names)
    && (if context.query.hasTag("alt") then context.query.getTag("alt") == "sse" else true) };
@id("told") @effect("alert") permit (principal, action == Action::"http", resource)
when { context.header_names.contains("authorization") };
"#;

fn policy(more: &str) -> &'static str {
    Box::leak(format!("{POLICY}{ASKS}{more}").into_boxed_str())
}

/// The last decision on a path, once there is one.
async fn decision(gateway: &Gateway, path: &str) -> AuditRecord {
    let last = || {
        let of = |r: &AuditRecord| r.destination.path.as_deref() == Some(path);
        gateway.control.records().into_iter().rfind(|r| r.kind == RecordKind::Decision && of(r))
    };
    crate::http2::until(&format!("a decision on {path}"), || last().is_some()).await;
    last().expect("a decision")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_head_says_decides_and_what_is_unclear_is_refused() {
    let gateway = Gateway::start(Options { policy: Some(policy("")), ..Options::default() }).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let cases: [(&str, &str, &[u8], u16, &str); 16] = [
        ("/none", "", b"", 403, "policy_forbidden"),
        ("/own", "", b"X-Team: payments\r\n", 200, "none"),
        ("/cgi", "", b"X_Team: payments\r\n", 200, "none"),
        ("/other", "", b"X-Team: ops\r\n", 403, "policy_forbidden"),
        ("/twice", "", b"X-Team: payments\r\nx-team: payments\r\n", 400, "http_malformed"),
        ("/both", "", b"X-Team: payments\r\nx_team: ops\r\n", 400, "http_malformed"),
        ("/bytes", "", b"X-Team: pay\xff\r\n", 400, "http_malformed"),
        // What the client has taken out does not go on, and says nothing.
        ("/nominated", "", b"X-Team: payments\r\nConnection: x-team\r\n", 403, "policy_forbidden"),
        ("/alt", "?alt=sse", b"X-Team: payments\r\n", 200, "none"),
        ("/decoded", "?a%6Ct=%73se", b"X-Team: payments\r\n", 200, "none"),
        ("/wrong", "?alt=json", b"X-Team: payments\r\n", 403, "policy_forbidden"),
        ("/unlisted", "?alt=sse&mode=raw", b"X-Team: payments\r\n", 403, "policy_forbidden"),
        ("/tags", "?tag=a&tag=b&key=sk-secret", b"X-Team: payments\r\n", 200, "none"),
        ("/alts", "?alt=sse&alt=json", b"X-Team: payments\r\n", 400, "http_malformed"),
        ("/bad", "?alt=%zz", b"X-Team: payments\r\n", 400, "http_malformed"),
        ("/semicolon", "?alt=sse;mode=raw", b"X-Team: payments\r\n", 400, "http_malformed"),
    ];
    for (path, query, fields, status, reason) in cases {
        let head = format!("GET http://{host}{path}{query} HTTP/1.1\r\nHost: {host}\r\n{}", gateway.web());
        let mut client = gateway.client().await;
        client.send([head.as_bytes(), fields, b"\r\n"].concat()).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.reason()), (status, reason), "{path}{query}");
    }
    // What was judged is what was sent, and nothing else was.
    let seen = upstream.requests();
    let lines: Vec<_> = seen.iter().filter_map(|head| head.lines().next()).collect();
    let wanted = [
        "GET /own HTTP/1.1",
        "GET /cgi HTTP/1.1",
        "GET /alt?alt=sse HTTP/1.1",
        "GET /decoded?a%6Ct=%73se HTTP/1.1",
        "GET /tags?tag=a&tag=b&key=sk-secret HTTP/1.1",
    ];
    assert_eq!(lines, wanted);
    let record = decision(&gateway, "/tags").await;
    let told = serde_json::to_string(&record).expect("json");
    assert!(!told.contains("sk-secret"), "{told}");
    let said = record.attributes.expect("attributes").head.expect("what it said").to_string();
    let wanted = r#"{"headers":{"named":{"authorization":"absent","x-team":{"value":"payments"}}},"query":{"named":{"alt":"absent","key":"present","tag":"unclear"}}}"#;
    assert_eq!(said, wanted);
    let refused = decision(&gateway, "/alts").await;
    assert_eq!(
        (refused.reason, refused.policies.as_slice()),
        (Some(DropReason::HttpMalformed), &["query".to_owned()][..])
    );
    assert!(refused.detail.is_some_and(|detail| detail.contains("comes twice")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_over_http_2_is_asked_the_same() {
    let site = site(policy(""), "").await;
    let client = inside(&site).await;
    let ask = async |path: &str, fields: &[(&str, &str)]| {
        let mut request = Request::get(crate::http2::url(&site, path));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        client.ask(request.body(()).expect("request"), b"").await.expect("answer")
    };
    assert_eq!(ask("/a", &[]).await.said(), (403, "policy_forbidden"));
    let allowed = ask("/b?alt=sse", &[("x-team", "payments"), ("authorization", "Bearer sk-secret")]).await;
    assert_eq!(allowed.status, 200);
    let record = site.record(RecordKind::Decision, crate::http2::at("/b")).await;
    assert!(record.intercepted && record.effects.iter().any(|effect| effect.policy == "told"));
    assert!(!serde_json::to_string(&record).expect("json").contains("sk-secret"));
    assert_eq!(ask("/c?mode=1", &[("x-team", "payments")]).await.said(), (403, "policy_forbidden"));
    let twice = ask("/d", &[("x-team", "payments"), ("x-team", "pay")]).await;
    assert_eq!(twice.said(), (400, "http_malformed"));
    assert_eq!(site.upstream.requests().len(), 1);
    // One of HTTP/1 inside TLS, too.
    for (fields, status) in [("", 403), ("X-Team: payments\r\n", 200)] {
        let mut old = site.inside().await;
        old.send(format!("GET /e HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", site.host())).await;
        assert_eq!(old.answer().await.status, status, "{fields}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_and_openings_of_web_sockets_are_asked_the_same() {
    let upstream = web_sockets::upstream().await;
    let port = upstream.address.port();
    let more = format!("[[endpoint]]\nname = \"own\"\nupstream = \"http://api.allowed.test:{port}/base\"\n");
    let policy = policy(web_sockets::MESSAGES);
    let gateway = Gateway::start(Options { policy: Some(policy), more, ..Options::default() }).await;
    let own = async |query: &str, fields: &str| {
        let proxy = gateway.proxy;
        let key = format!("Authorization: Bearer {}\r\n", gateway.key);
        gateway.ask(&format!("GET /own/x{query} HTTP/1.1\r\nHost: {proxy}\r\n{key}{fields}\r\n")).await
    };
    assert_eq!(own("", "").await.reason(), "policy_forbidden");
    assert_eq!(own("?alt=sse", "X-Team: payments\r\n").await.status, 200);
    assert_eq!(own("?alt=json", "X-Team: payments\r\n").await.reason(), "policy_forbidden");
    // What proves the agent stays here, and is no field of the request that goes on.
    let record = decision(&gateway, "/base/x").await;
    assert!(!record.effects.iter().any(|effect| effect.policy == "told"), "{record:?}");

    let host = format!("api.allowed.test:{port}");
    let open = async |fields: &str| {
        let mut client = gateway.client().await;
        let web = gateway.web();
        client
            .send(format!("GET http://{host}/ws HTTP/1.1\r\nHost: {host}\r\n{web}{fields}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"))
            .await;
        client
    };
    assert_eq!(open("").await.answer().await.reason(), "policy_forbidden");
    let mut client = open("X-Team: payments\r\n").await;
    client.until("101 Switching Protocols").await;
    client.stream.write_all(b"hello").await.expect("written");
    client.until("hello").await;
    // It lives by what it said: a change that asks for another team ends it.
    let live = policy.replace("pay*", "pays*");
    assert_eq!(gateway.publish_policy(&live).await, "");
    client.rest().await;
}
