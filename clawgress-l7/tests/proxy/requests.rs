//! Plain HTTP through the explicit proxy: a decision for each request, bodies, streams, usage.

use std::collections::HashSet;

use clawgress_api::{RecordKind, TokenUsage, Verdict};
use clawgress_ebpf_common::DropReason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::Client;
use crate::harness::{Gateway, Options};
use crate::upstream::Upstream;

async fn both() -> (Gateway, Upstream, String) {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    (gateway, upstream, host)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_of_a_connection_is_judged() {
    let (gateway, upstream, host) = both().await;
    let mut client = gateway.client().await;
    let auth = gateway.web();
    for (method, path, status) in [
        ("GET", "/one?secret=1", 200),
        ("GET", "/denied", 403),
        ("DELETE", "/one", 403),
        ("POST", "/two", 200),
        ("GET", "/denied?x", 403),
        ("GET", "/three", 200),
    ] {
        let length = if method == "POST" { "Content-Length: 2\r\n\r\nhi" } else { "\r\n" };
        client.send(format!("{method} http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{auth}{length}")).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert_eq!(answer.field("proxy-authenticate"), None, "no origin asks for our credential");
    }
    let seen: Vec<String> =
        upstream.requests().iter().map(|r| r.split(" HTTP").next().unwrap().to_owned()).collect();
    assert_eq!(seen, ["GET /one?secret=1", "POST /two", "GET /three"]);
    let records = gateway.records(6).await;
    assert!(!format!("{records:?}").contains("secret=1"), "no query in a record");
    let verdicts: Vec<_> =
        records.iter().filter(|r| r.kind == RecordKind::Decision).map(|r| r.verdict).collect();
    let (a, d) = (Some(Verdict::Allow), Some(Verdict::Deny));
    assert_eq!(verdicts, [a, d, d, a, d, a]);
    let (decision, outcome) = gateway.exchange(3).await;
    assert_eq!(decision.destination.method.as_deref(), Some("POST"));
    assert_eq!(decision.destination.path.as_deref(), Some("/two"));
    assert_eq!(decision.policies, ["http", "net"]);
    assert!(decision.latency_us.is_some_and(|l| l > 0));
    assert_eq!(outcome.status, Some(200));
    assert!(outcome.bytes_sent > Some(50) && outcome.bytes_received > Some(20), "{outcome:?}");
}

/// However a client spells what it may spell in several ways, policy is asked the same; what goes on is what was signed by who
/// signs it as it is sent (AWS).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spellings_of_a_path_are_one_to_policy() {
    const VERBS: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal, action == Action::"http", resource) when { context.path like "/v1/*" };
@id("no-delete") forbid (principal, action == Action::"http", resource) when { context.path like "*:delete" };
@id("no-invoke") forbid (principal, action == Action::"http", resource) when { context.path like "*@(secret)/*" };
"#;
    let gateway = Gateway::start(Options { policy: Some(VERBS), ..Options::default() }).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let auth = gateway.web();
    for (path, status) in [
        ("/v1/x:delete", 403),
        ("/v1/x%3Adelete", 403),
        ("/v1/x%3adelete", 403),
        ("/v1/a%40%28secret%29/b", 403),
        ("/v1/a%40(secret%29/b", 403),
        ("/v1/claude-v1%3A0/invoke", 200),
        ("/v1/claude-v1:0/invoke", 200),
        ("/v1/%c3%bc", 200),
        // Overlong, cut short, and not text at all.
        ("/v1/%c0%ae%c0%ae/x", 400),
        ("/v1/%c0%afx", 400),
        ("/v1/%e0%80%ae%e0%80%ae/x", 400),
        ("/v1/%c3", 400),
        ("/v1/%ff", 400),
        ("/v1/..%2f..%2fadmin", 400),
        ("/v1/..;x=y/admin", 400),
        // A slash to some servers, and a part of a name to others.
        ("/v1/@scope%2fname", 200),
        ("/v1%2fx", 403),
        ("/v1/a%2Fx%3Adelete", 403),
        ("/v1/a@(secret)%2Fb", 403),
    ] {
        let mut client = gateway.client().await;
        client.send(format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{auth}\r\n")).await;
        assert_eq!(client.answer().await.status, status, "{path}");
    }
    let seen: Vec<String> =
        upstream.requests().iter().map(|r| r.split(" HTTP").next().unwrap().to_owned()).collect();
    let sent = [
        "GET /v1/claude-v1%3A0/invoke",
        "GET /v1/claude-v1:0/invoke",
        "GET /v1/%c3%bc",
        "GET /v1/@scope%2fname",
    ];
    assert_eq!(seen, sent, "as they were sent");
    let (decision, _) = gateway.exchange(5).await;
    assert_eq!(decision.destination.path.as_deref(), Some("/v1/claude-v1:0/invoke"), "as it was judged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_names_its_policies_in_the_form_that_its_client_takes() {
    const FORBIDS: &str = r#"
@id("net") permit (principal, action == Action::"connect", resource) when { context.ip.isInRange(ip("127.1.0.0/16")) };
@id("http") permit (principal, action == Action::"http", resource);
@id("tls") permit (principal, action == Action::"tls", resource);
@id("tunnel") permit (principal, action == Action::"tunnel", resource) when { context.protocol == "tls" };
@id("no-admin") forbid (principal, action == Action::"http", resource) when { context.path like "/admin*" };
@id("no-two") forbid (principal, action == Action::"tls", resource == Host::"two.allowed.test");
"#;
    let gateway = Gateway::start(Options { policy: Some(FORBIDS), ..Options::default() }).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let mut client = gateway.client().await;
    let auth = gateway.web();
    for (accept, form) in [
        ("", "application/json"),
        ("Accept: */*\r\n", "application/json"),
        ("Accept: text/plain\r\n", "text/plain; charset=utf-8"),
        ("Accept: text/html,application/xml;q=0.9,*/*;q=0.8\r\n", "text/html; charset=utf-8"),
    ] {
        let head =
            format!("GET http://{host}/admin/secret-name HTTP/1.1\r\nHost: {host}\r\n{auth}{accept}\r\n");
        client.send(head).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.reason()), (403, "policy_forbidden"));
        assert_eq!(answer.field("content-type"), Some(form), "{accept}");
        assert_eq!(answer.field("x-clawgress-policy"), Some("no-admin"), "{accept}");
        let (request, page) = (answer.field("x-clawgress-request").expect("id"), answer.text());
        let parts = ["policy_forbidden", "no-admin", request, "sk the policy"];
        let told = page.replace("sk whoever keeps the policy", "sk the policy");
        assert!(parts.iter().all(|part| told.contains(part)), "{page}");
        assert!(!page.contains("secret-name"), "nothing of what was asked: {page}");
    }
    // What policy allowed and what failed then is no policy's doing.
    let gone = "gone.allowed.test";
    client.send(format!("GET http://{gone}/ HTTP/1.1\r\nHost: {gone}\r\n{auth}\r\n")).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.field("x-clawgress-policy")), (502, None), "{answer:?}");
    let (_, answer) = gateway.connect("two.allowed.test:443").await;
    assert_eq!((answer.status, answer.reason()), (403, "policy_forbidden"));
    assert_eq!(answer.field("x-clawgress-policy"), Some("no-two"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_upstream_gets_names_nobody_and_nothing_of_this_hop() {
    let (gateway, upstream, host) = both().await;
    let raw = format!(
        "GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\nAUTH\r\nProxy-Connection: keep-alive\r\nX-Forwarded-For: 9.9.9.9\r\nX_Forwarded_For: 9.9.9.9\r\nForwarded: for=9.9.9.9\r\nX-Real-IP: 9.9.9.9\r\nX-Clawgress-Agent: root\r\nx_clawgress_agent: root\r\nConnection: x-drop\r\nX-Drop: 1\r\nTE: trailers\r\nAuthorization: Bearer provider\r\n\r\n"
    );
    assert_eq!(gateway.ask(&raw).await.status, 200);
    let head = upstream.requests().remove(0);
    let lower = head.to_lowercase();
    assert!(head.starts_with("GET /x HTTP/1.1\r\n"), "origin-form: {head}");
    assert!(lower.contains(&format!("host: {host}\r\n")) && lower.contains("authorization: bearer provider"));
    for gone in ["proxy-", "forwarded", "9.9.9.9", "real-ip", "clawgress", "x-drop", "\r\nte:"] {
        assert!(!lower.contains(gone), "{gone} in {head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_stream_in_every_framing() {
    let (gateway, upstream, host) = both().await;
    let auth = gateway.web();
    let body: Vec<u8> = (0..300_000_u32).map(|n| u8::try_from(n % 251).expect("small")).collect();
    let mut client = gateway.client().await;
    client
        .send(format!(
            "POST http://{host}/echo HTTP/1.1\r\nHost: {host}\r\n{auth}Transfer-Encoding: chunked\r\n\r\n"
        ))
        .await;
    for part in body.chunks(70_001) {
        client.send(format!("{:X}\r\n", part.len())).await;
        client.send(part).await;
        client.send("\r\n").await;
    }
    client.send("0\r\nX-Trailer: dropped\r\n\r\n").await;
    assert!(client.answer().await.body == body, "chunked");
    client
        .send(format!(
            "PUT http://{host}/echo HTTP/1.1\r\nHost: {host}\r\n{auth}Content-Length: {}\r\n\r\n",
            body.len()
        ))
        .await;
    client.send(&body).await;
    assert!(client.answer().await.body == body, "with a length, on the same connection");
    // The body is sent only after the 100.
    let head = "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    client.send(format!("POST http://{host}/echo HTTP/1.1\r\nHost: {host}\r\n{auth}{head}")).await;
    assert_eq!(client.answer_head().await.status, 100);
    client.send("hello").await;
    assert_eq!(client.answer().await.body, b"hello");
    client.send(format!("POST http://{host}/denied HTTP/1.1\r\nHost: {host}\r\n{auth}{head}")).await;
    assert_eq!(client.answer().await.status, 403, "no 100 for what is denied");
    assert!(!String::from_utf8_lossy(&upstream.seen.bytes.lock()).contains("X-Trailer"));
    let (_, outcome) = gateway.exchange(0).await;
    assert!(outcome.bytes_sent > Some(300_000) && outcome.bytes_received > Some(300_000));
}

/// What an answer is within is read by nobody here: it would be judged as what it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_have_no_coding_of_their_transfer_but_one() {
    const CODINGS: [&str; 4] =
        ["chunked", "deflate, chunked", "gzip\r\nTransfer-Encoding: chunked", "Chunked"];
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::start("127.1.0.1", None, |mut stream, _| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(1..) = stream.read_buf(&mut head).await else { return };
        }
        let coding = CODINGS[usize::from(head["GET /".len()] - b'0')];
        let answer = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        );
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    for (n, status) in [200, 502, 502, 200].into_iter().enumerate() {
        let answer =
            gateway.ask(&format!("GET http://{host}/{n} HTTP/1.1\r\nHost: {host}\r\nAUTH\r\n\r\n")).await;
        assert_eq!(answer.status, status, "{}", CODINGS[n]);
        assert_eq!(status == 502, answer.reason() == "upstream_failed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_pass_as_they_come_and_usage_is_recorded() {
    let (gateway, upstream, host) = both().await;
    let mut client = gateway.client().await;
    let auth = gateway.web();
    client
        .send(format!("POST http://{host}/sse HTTP/1.1\r\nHost: {host}\r\n{auth}Content-Length: 0\r\n\r\n"))
        .await;
    // The first event is here while the upstream has not sent the second.
    client.until("\"usage\":null").await;
    assert!(!String::from_utf8_lossy(&client.held).contains("prompt_tokens"));
    upstream.next_event();
    client.until("prompt_tokens").await;
    assert!(!String::from_utf8_lossy(&client.held).contains("[DONE]"));
    upstream.next_event();
    client.until("[DONE]").await;
    client.until("0\r\n\r\n").await;
    client.held.clear();
    client.send(format!("GET http://{host}/json HTTP/1.1\r\nHost: {host}\r\n{auth}\r\n")).await;
    assert_eq!(client.answer().await.status, 200);
    for (n, model) in [(0, "gpt-5"), (1, "gpt-5-mini")] {
        let (decision, outcome) = gateway.exchange(n).await;
        let want =
            TokenUsage { model: Some(model.to_owned()), input: 11, output: 22, ..TokenUsage::default() };
        assert_eq!(outcome.tokens, Some(want));
        assert_eq!(decision.tokens, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_cut_when_policy_no_longer_permits_it() {
    let (gateway, upstream, host) = both().await;
    let mut client = gateway.client().await;
    let auth = gateway.web();
    client
        .send(format!("POST http://{host}/sse HTTP/1.1\r\nHost: {host}\r\n{auth}Content-Length: 0\r\n\r\n"))
        .await;
    client.until("\"usage\":null").await;
    gateway.publish_policy(r#"@id("none") forbid (principal, action, resource);"#).await;
    upstream.next_event();
    let rest = String::from_utf8(client.rest().await).expect("text");
    assert!(!rest.contains("prompt_tokens"), "{rest}");
    let (_, outcome) = gateway.exchange(0).await;
    assert_eq!(outcome.reason, Some(DropReason::PolicyForbidden));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_stops_when_its_agent_is_revoked() {
    let (gateway, upstream, host) = both().await;
    let mut client = gateway.client().await;
    let head = format!(
        "POST http://{host}/echo HTTP/1.1\r\nHost: {host}\r\n{}Content-Length: 1000\r\n\r\n",
        gateway.web()
    );
    client.send(head + "before").await;
    let seen = |text: &str| String::from_utf8_lossy(&upstream.seen.bytes.lock()).contains(text);
    let begun = std::time::Instant::now();
    while !seen("before") {
        assert!(begun.elapsed() < crate::harness::PATIENCE, "the body streams");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    gateway.quarantine(&[1]);
    // Cut at once, not at the next byte.
    client.rest().await;
    client.send("after").await;
    assert!(!seen("after"));
    let (decision, outcome) = gateway.exchange(0).await;
    assert_eq!(decision.verdict, Some(Verdict::Allow));
    assert_eq!(outcome.reason, Some(DropReason::AgentQuarantined));
    assert!(outcome.bytes_sent > Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_for_a_silent_upstream_is_cut_too() {
    let gateway = Gateway::start(Options::default()).await;
    let sink = Upstream::sink("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", sink.address.port());
    let mut client = gateway.client().await;
    client.send(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n{}\r\n", gateway.web())).await;
    gateway.decisions(1).await;
    gateway.publish(|_| {}).await;
    assert!(!client.is_closed(std::time::Duration::from_millis(300)).await, "nothing changed for it");
    gateway.publish_policy(r#"@id("none") forbid (principal, action, resource);"#).await;
    assert!(client.is_closed(std::time::Duration::from_secs(5)).await);
    assert_eq!(gateway.exchange(0).await.1.reason, Some(DropReason::PolicyForbidden));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_fills_the_audit_log_over_one_connection() {
    let (gateway, _upstream, host) = both().await;
    let mut client = gateway.client().await;
    let raw = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
    client.send(raw.repeat(20)).await;
    for n in 1..=4 {
        let answer = client.answer().await;
        assert_eq!(answer.reason(), "credential_missing", "{n}");
        assert_eq!(answer.field("connection") == Some("close"), n == 4, "{n}: {answer:?}");
    }
    assert!(client.rest().await.is_empty());
    gateway.records(4).await;
    assert_eq!(gateway.outcomes(), 4);
    // Who is known may be denied as often as it likes.
    let mut client = gateway.client().await;
    for _ in 0..20 {
        let web = gateway.web();
        client.send(format!("GET http://{host}/denied HTTP/1.1\r\nHost: {host}\r\n{web}\r\n")).await;
        assert_eq!(client.answer().await.reason(), "policy_denied");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_never_share_an_upstream_connection() {
    let (gateway, upstream, host) = both().await;
    let policy = crate::harness::POLICY.replace("principal == Agent::\"web\"", "principal");
    gateway.publish_policy(&policy).await;
    let agents = [gateway.web(), gateway.authorization("other", &gateway.other_key)];
    let mut clients = [gateway.client().await, gateway.client().await];
    for n in 0..40 {
        let (auth, client) = (&agents[n % 2], &mut clients[n % 2]);
        client.send(format!("GET http://{host}/{} HTTP/1.1\r\nHost: {host}\r\n{auth}\r\n", n % 2)).await;
        assert_eq!(client.answer().await.status, 200);
    }
    // Connections are kept, if not every time (Pingora gives one up that it can't get hold of at once).
    assert!(upstream.connections() < 40, "{} connections for 40 requests", upstream.connections());
    let ports = upstream.seen.ports.lock().clone();
    let of = |n: usize| -> HashSet<u16> { ports.iter().skip(n).step_by(2).copied().collect() };
    assert!(of(0).is_disjoint(&of(1)), "a connection of one agent never serves another: {ports:?}");
}

/// What was acknowledged while a name was looked up counts for the request that waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_out_after_its_permission_ended() {
    let (gateway, upstream, api) = both().await;
    let get = |host: &str| format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n{}\r\n", gateway.web());
    let raw = api.replace("api.", "raw.");
    for (host, name) in [(&api, "api.allowed.test"), (&raw, "raw.allowed.test")] {
        gateway.dns.answers.send_replace(false);
        let mut client = gateway.client().await;
        client.send(get(host)).await;
        let begun = std::time::Instant::now();
        while gateway.dns.asked(name) == 0 {
            assert!(begun.elapsed() < crate::harness::PATIENCE, "{name} is looked up");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        if name == "api.allowed.test" {
            gateway.publish_policy(r#"@id("none") forbid (principal, action, resource);"#).await;
        } else {
            gateway.isolate(&[1]).await;
        }
        gateway.dns.answers.send_replace(true);
        client.rest().await;
        if name == "api.allowed.test" {
            assert_eq!(gateway.publish_policy(crate::harness::POLICY).await, "");
        }
    }
    assert_eq!(upstream.requests(), [""; 0]);
    for (n, reason) in [(0, DropReason::PolicyForbidden), (1, DropReason::AgentQuarantined)] {
        let decision = gateway.exchange(n).await.0;
        assert_eq!((decision.verdict, decision.reason), (Some(Verdict::Deny), Some(reason)));
    }
}

/// RFC 9112 section 9.3: what a kept connection is asked next may be anything, a tunnel too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_may_be_asked_for_where_requests_were() {
    let s = crate::http2_proxy::Setting::new().await;
    let (gateway, host, sink) = (&s.gateway, s.host(), Upstream::sink("127.1.0.1").await);
    let hello = crate::tunnels::hello("api.allowed.test");
    let target = format!("api.allowed.test:{}", sink.address.port());
    let get =
        |path: &str, auth: &str| format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{auth}\r\n");
    let connect =
        |target: &str, auth: &str| format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{auth}\r\n");
    let web = gateway.web();
    // Each after its answer, in the segment of the request before it, and by single bytes.
    let whole = format!("{}{}", get("/ok", &web), connect(&target, &web));
    let late = connect(&target, &web);
    for (first, pieces) in [
        (get("/ok", &web), vec![connect(&target, &web).into_bytes()]),
        (whole, vec![]),
        (get("/denied", &web), late.as_bytes().chunks(1).map(<[u8]>::to_vec).collect()),
        (get("/ok", ""), vec![connect(&target, &web).into_bytes()]),
    ] {
        let n = gateway.outcomes();
        let mut client = gateway.client().await;
        client.send(&first).await;
        let status = client.answer().await.status;
        assert!([200, 403, 407].contains(&status), "{status}");
        for piece in pieces {
            client.send(piece).await;
        }
        assert_eq!(client.answer_head().await.status, 200);
        client.send(&hello).await;
        crate::http2::until("the hello", || sink.seen.bytes.lock().len() == hello.len()).await;
        assert_eq!(std::mem::take(&mut *sink.seen.bytes.lock()), hello);
        drop(client);
        let (decision, outcome) = gateway.exchange(n + 1).await;
        assert_eq!(
            (decision.verdict, decision.policies),
            (Some(Verdict::Allow), ["net", "tls", "tunnel"].map(String::from).to_vec())
        );
        assert_eq!((decision.destination.port, outcome.status), (Some(sink.address.port()), Some(200)));
    }
    // Within TLS, where it is denied, and then inside a tunnel, where there is no proxy to ask.
    let stream = tokio::net::TcpStream::connect(gateway.proxy_tls).await.expect("connect");
    let mut client = Client::over(s.secured(stream, &["http/1.1"]).await);
    client.send(get("/ok", &web)).await;
    assert_eq!(client.answer().await.status, 200);
    client.send(connect("denied.test:443", &web)).await;
    let denied = client.answer().await;
    assert_eq!((denied.status, denied.reason()), (403, "policy_denied"));
    assert!(client.rest().await.is_empty());
    let (mut client, _) = gateway.connect(&host).await;
    client.send(format!("GET /ok HTTP/1.1\r\nHost: {host}\r\n\r\n{}", connect(&target, &web))).await;
    assert_eq!(client.answer().await.status, 200);
    let refused = client.answer().await;
    assert_eq!((refused.status, refused.reason()), (400, "http_malformed"));
    assert_eq!(sink.connections(), 4);
}
