//! Paths with an encoded slash, as npm asks for packages of a scope: judged each way that a server may take them, and sent as they
//! came.

use clawgress_api::{RecordKind, Verdict};
use clawgress_ebpf_common::DropReason;

use crate::harness::{Gateway, Options};
use crate::http2::{at, inside, site, url};
use crate::upstream::Upstream;

const POLICY: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("tls") permit (principal, action == Action::"tls", resource);
@id("packages") permit (principal, action == Action::"http", resource) when { context.path like "/@scope*" };
@id("one") permit (principal, action == Action::"http", resource) when { context.path == "/@one%2Fname" };
@id("no-secrets") forbid (principal, action == Action::"http", resource) when { context.path like "*/secret" };
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_permitted_both_ways_goes_on_unchanged() {
    let site = site(POLICY, "").await;
    for (path, status) in [
        ("/@scope%2fname", 200),
        ("/@scope%2Fname/-/name-1.0.0.tgz", 200),
        // By its name alone, or as a path alone.
        ("/@one%2Fname", 403),
        ("/@scope%2Fsecret", 403),
        ("/@scope%2F..%2Fsecret", 400),
        ("/@scope%2F%2Fname", 400),
    ] {
        // What is malformed ends its connection.
        let client = inside(&site).await;
        assert_eq!(client.get(&url(&site, path)).await.expect("answer").status, status, "{path}");
    }
    let sent = site.upstream.requests();
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert!(
        sent[0].contains("/@scope%2fname") && sent[1].contains("/@scope%2Fname/-/name-1.0.0.tgz"),
        "{sent:?}"
    );
    let record = site.record(RecordKind::Decision, at("/@scope%2Fname")).await;
    assert_eq!(record.verdict, Some(Verdict::Allow));
    assert!(record.policies.contains(&"packages".to_owned()), "{record:?}");
}

const CALLS: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal, action == Action::"http", resource);
"#;

/// What is one call to some servers and another to others is none that can be judged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_one_call_or_another_is_refused() {
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let server = |table: &str, name: &str, path: &str| {
        format!("[[{table}.server]]\nname = \"{name}\"\nurl = \"http://{host}{path}\"\n")
    };
    let more = [server("llm", "farm", "/serve"), server("tool", "one", "/a"), server("tool", "two", "/a/b")]
        .concat();
    let gateway = Gateway::start(Options { policy: Some(CALLS), more, ..Options::default() }).await;
    let ask = async |path: &str| {
        let raw = format!(
            "POST http://{host}{path} HTTP/1.1\r\nHost: {host}\r\nAUTH\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        gateway.ask(&raw).await.status
    };
    for (n, (path, status)) in [
        ("/serve/v1%2Fchat%2Fcompletions", 400),
        ("/serve/v1/x%2Fcompletions", 400),
        ("/a/b%2Fc", 400),
        ("/serve%2Fv1/chat/completions", 200),
        ("/serve/v1%2Fx/chat/completions", 200),
        ("/a%2Fb", 200),
        ("/x%2Fy", 200),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(ask(path).await, status, "{path}");
        let (_, outcome) = gateway.exchange(n).await;
        let is_refused = status == 400;
        assert_eq!(outcome.reason, is_refused.then_some(DropReason::HttpMalformed), "{path}");
        assert_eq!(outcome.detail.is_some_and(|detail| detail.contains("`%2F`")), is_refused, "{path}");
    }
}
