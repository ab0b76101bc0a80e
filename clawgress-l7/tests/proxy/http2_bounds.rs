//! HTTP/2: what one stream, or one side that is slow or hostile, takes of the others and of memory.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use clawgress_api::{AuditRecord, RecordKind};
use clawgress_ebpf_common::DropReason;
use h2::Reason;
use http::Request;
use tokio::time::timeout;

use crate::body;
use crate::harness::{PATIENCE, POLICY};
use crate::http2::{at, inside, post, site, until, url};
use crate::http2_proxy::Setting;
use crate::intercept::{HOST, trusting};
use crate::streams::{Connection, LARGE, Paused, reply, send};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_has_few_words_before_its_answer() {
    const ASKED: &str = "@id(\"receive\") permit (principal, action == Action::\"receive\", resource);";
    let s = Setting::new().await;
    // The last of them may come with the answer, and be told no more.
    assert!((1..=8).contains(&hints(&s).await));
    // Nobody looks at them.
    assert_eq!(s.gateway.publish_policy(&format!("{POLICY}{ASKED}")).await, "");
    assert_eq!(hints(&s).await, 0);
}

/// How many come before an answer.
async fn hints(s: &Setting) -> usize {
    let client = s.client().await;
    let request = s.of_web(Request::get(format!("http://{}/hints", s.host())));
    let (mut response, _stream) = client.begin(request, true).await.expect("begun");
    let mut hints = 0;
    let told = poll_fn(|cx| {
        while let Poll::Ready(Some(Ok(_))) = response.poll_informational(cx) {
            hints += 1;
        }
        std::pin::Pin::new(&mut response).poll(cx)
    });
    let answer = timeout(PATIENCE, told).await.expect("in time").expect("answer");
    assert_eq!(answer.status(), 200);
    hints
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_without_a_body_is_one() {
    let site = site(POLICY, "").await;
    let client = inside(&site).await;
    let denied = Request::head(url(&site, "/denied")).body(()).expect("request");
    let (response, _stream) = client.begin(denied, true).await.expect("begun");
    let answer = timeout(PATIENCE, response).await.expect("in time").expect("answer");
    assert_eq!(answer.status(), 403);
    assert!(answer.body().is_end_stream(), "its head is all");
    assert_eq!(answer.headers().get("x-clawgress-reason").expect("reason"), "policy_denied");
}

/// More is answered than there is room for on the way to a client that stops to read: it waits in the gateway, whose
/// streams are served to their ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_has_all_answers_when_its_connection_ends() {
    const STREAMS: usize = 95;
    for drains in [false, true] {
        let mut site = site(POLICY, "").await;
        let config = trusting(&[site.gateway.authority.certificate()], &["h2"]);
        let inner = site.shake(HOST, config).await.expect("handshake").stream;
        let (pausing, pause) = tokio::sync::watch::channel(false);
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(64 << 20);
        let client = Connection::with(&builder, Paused { inner, pause }).await;
        assert_eq!(client.get(&url(&site, "/ok")).await.expect("answer").status, 200);
        pausing.send_replace(true);
        let mut answers = Vec::new();
        for _ in 0..STREAMS {
            let request = Request::get(url(&site, "/large")).body(()).expect("request");
            answers.push(client.begin(request, true).await.expect("begun"));
        }
        let ended = |r: &AuditRecord| r.kind == RecordKind::Outcome && at("/large")(r);
        until("the outcomes", || site.gateway.control.records().into_iter().filter(ended).count() == STREAMS)
            .await;
        if drains {
            site.gateway.begin_stop();
        } else {
            let other = format!("https://api.allowed.test:{}/", site.port());
            let other = Request::get(other).body(()).expect("request");
            let _refused = client.begin(other, true).await.expect("begun");
            site.record(RecordKind::Outcome, |r| r.reason == Some(DropReason::SniMismatch)).await;
        }
        // That it takes its time is what this is about.
        tokio::time::sleep(Duration::from_secs(2)).await;
        pausing.send_replace(false);
        for (response, _stream) in answers {
            let answer = timeout(PATIENCE, reply(response)).await.expect("in time").expect("answer");
            assert_eq!((answer.status, answer.body.len()), (200, LARGE), "{drains}");
        }
        assert!(client.is_closed().await);
        site.gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_uploads_leave_others_room() {
    let site = site(POLICY, "").await;
    let client = Arc::new(inside(&site).await);
    let mut stalled = Vec::new();
    for _ in 0..6 {
        let (response, mut stream) =
            client.begin(post(&site, "/stall").body(()).expect("request"), false).await.expect("begun");
        let sending = tokio::spawn(async move {
            let _ = send(&mut stream, &vec![b'x'; 2_000_000]).await;
        });
        stalled.push((response, sending));
    }
    until("the requests", || site.upstream.requests().len() == 6).await;
    let body = vec![b'y'; 600_000];
    let answer = client.post(&url(&site, "/echo"), &body).await.expect("answer");
    assert!(answer.status == 200 && answer.body == body);
    for (_, sending) in stalled {
        assert!(!sending.is_finished());
        sending.abort();
    }
}

/// Where a source has many connections, the windows of a new one are small, and those of its streams a part of these.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_upload_leaves_others_room_where_windows_are_small() {
    // Few enough to be taken in, and enough for 64 MiB to be little for each.
    const IDLE: usize = 300;
    let site = site(POLICY, "").await;
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(site.gateway.client().await);
    }
    let client = inside(&site).await;
    assert_eq!(client.get(&url(&site, "/ok")).await.expect("answer").status, 200);
    let (response, mut stream) =
        client.begin(post(&site, "/stall").body(()).expect("request"), false).await.expect("begun");
    stream.reserve_capacity(2_000_000);
    let window = poll_fn(|cx| stream.poll_capacity(cx)).await.expect("open").expect("capacity");
    assert!((16_000..60_000).contains(&window), "{window}");
    let sending = tokio::spawn(async move {
        let _ = send(&mut stream, &vec![b'x'; 2_000_000]).await;
    });
    until("the request", || site.upstream.requests().len() == 2).await;
    let body = vec![b'y'; 600_000];
    let answer = timeout(PATIENCE, client.post(&url(&site, "/echo"), &body)).await.expect("in time");
    let answer = answer.expect("answer");
    assert!(answer.status == 200 && answer.body == body);
    assert!(!sending.is_finished());
    sending.abort();
    drop((response, idle));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_back_a_held_body_keeps_its_connection() {
    let site = site(body::POLICY, "").await;
    let client = inside(&site).await;
    let (response, mut stream) =
        client.begin(post(&site, "/echo").body(()).expect("request"), false).await.expect("begun");
    send(&mut stream, b"first").await.expect("sent");
    assert_eq!(client.post(&url(&site, "/ok"), b"x").await.expect("answer").status, 200);
    stream.send_reset(Reason::CANCEL);
    drop(response);
    let record = site.record(RecordKind::Outcome, at("/echo")).await;
    assert_eq!(record.reason, Some(DropReason::Timeout), "{record:?}");
    for _ in 0..3 {
        assert_eq!(client.post(&url(&site, "/ok"), b"x").await.expect("answer").status, 200);
    }
    assert_eq!(site.upstream.requests().len(), 4);
}

/// What is judged may wait for long, for a limit as well as for anybody: who has left is not waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_back_what_is_being_judged_frees_its_place() {
    const PACE: &str = "@id(\"pace\") @effect(\"throttle\") @limit(\"10 requests/minute burst 1\") permit (principal, action == Action::\"http\", resource) when { context.path like \"/slow*\" };";
    const TRAP: &str = "@id(\"trap\") @effect(\"alert\") permit (principal, action == Action::\"http\", resource) when { context.path == \"/slow/two\" };";
    let policy = Box::leak(format!("{POLICY}{PACE}{TRAP}").into_boxed_str());
    let site = site(policy, "").await;
    let client = inside(&site).await;
    assert_eq!(client.get(&url(&site, "/slow/one")).await.expect("answer").status, 200);
    let request = Request::get(url(&site, "/slow/two")).body(()).expect("request");
    let (response, mut stream) = client.begin(request, true).await.expect("begun");
    assert_eq!(client.get(&url(&site, "/ok")).await.expect("answer").status, 200, "others don't wait for it");
    stream.send_reset(Reason::CANCEL);
    drop(response);
    let decision = site.record(RecordKind::Decision, at("/slow/two")).await;
    assert_eq!(decision.reason, Some(DropReason::Timeout), "it was not waited for: {decision:?}");
    let told: Vec<_> = decision.effects.iter().map(|effect| effect.policy.as_str()).collect();
    assert_eq!(told, ["pace", "trap"], "what it was obliged to is told");
    assert_eq!(client.get(&url(&site, "/ok")).await.expect("answer").status, 200);
    assert_eq!(site.upstream.requests().len(), 3, "nothing of it went on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_and_trailers_of_servers_are_bounded() {
    let site = site(POLICY, "").await;
    let client = inside(&site).await;
    let request = post(&site, "/large-trailers").body(()).expect("request");
    let answer = client.ask(request, b"x").await;
    assert!(answer.is_err(), "it is no whole answer: {:?}", answer.map(|a| a.trailers.len()));
    let failed = |r: &AuditRecord| r.reason == Some(DropReason::UpstreamFailed);
    site.record(RecordKind::Outcome, |r| at("/large-trailers")(r) && failed(r)).await;
    assert_eq!(client.get(&url(&site, "/ok")).await.expect("others go on").status, 200);
    let s = Setting::new().await;
    let request = s.of_web(Request::get(format!("http://{}/large-head", s.host())));
    let answer = s.client().await.ask(request, b"").await.expect("answer");
    assert_eq!(answer.said(), (502, "upstream_failed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_asks_often_at_once() {
    let s = Setting::new().await;
    let client = Arc::new(s.client().await);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..90 {
        let (client, url) = (Arc::clone(&client), format!("http://{}/", s.host()));
        asking.spawn(async move { client.get(&url).await.map(|answer| answer.status) });
    }
    let answers = asking.join_all().await;
    let (answered, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!((4..8).contains(&answered.len()), "{answered:?}");
    for error in refused.into_iter().filter_map(Result::err) {
        let is_refused =
            error.reason() == Some(Reason::REFUSED_STREAM) || error.is_go_away() || error.is_io();
        assert!(is_refused, "{error:?}");
    }
    // Who says at the first who it is has all of them at once.
    let client = Arc::new(s.client().await);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..90 {
        let (client, request) =
            (Arc::clone(&client), s.of_web(Request::get(format!("http://{}/", s.host()))));
        asking.spawn(async move { client.ask(request, b"").await.expect("answer").status });
    }
    assert!(asking.join_all().await.into_iter().all(|status| status == 200));
}

/// A stream that is cut in the middle is given up to its server, and the connection that it went by is as free as any: it ends
/// when nobody has used it for a while, and not only when somebody asks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_lets_go_of_its_servers_connection() {
    const WAIT: &str = "@id(\"wait\") forbid (principal, action == Action::\"http\", resource) when { context.path == \"/wait\" };";
    let site = site(POLICY, "").await;
    // By HTTP/2, and by HTTP/1.1 of the client's.
    let client = inside(&site).await;
    let (waiting, _stream) = client
        .begin(Request::get(url(&site, "/wait")).body(()).expect("request"), true)
        .await
        .expect("begun");
    let config = trusting(&[site.gateway.authority.certificate()], &["http/1.1"]);
    let mut older = site.shake(HOST, config).await.expect("handshake");
    older.send(format!("GET /wait HTTP/1.1\r\nHost: {}\r\n\r\n", site.host())).await;
    until("both requests", || site.upstream.requests().len() == 2).await;
    assert_eq!(site.gateway.publish_policy(&format!("{POLICY}{WAIT}")).await, "");
    let error = timeout(PATIENCE, waiting).await.expect("in time").expect_err("cut");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    assert_eq!(older.rest().await, b"", "nothing is said on what was cut");
    let resets = || site.upstream.requests().iter().filter(|head| *head == "reset CANCEL").count();
    until("the resets", || resets() == 2).await;
    let seen = &site.upstream.seen;
    let ended = async {
        while seen.ended.load(Ordering::SeqCst) < seen.connections.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    // As long as an idle one stays, and a moment.
    timeout(Duration::from_secs(45), ended).await.expect("it does not stay for ever");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_resets_without_end_begins_no_more() {
    let site = site(POLICY, "").await;
    let client = inside(&site).await;
    let mut reset = 0;
    let ended = loop {
        let request = Request::get(url(&site, "/wait")).body(()).expect("request");
        let before = site.upstream.requests().len();
        match client.begin(request, true).await {
            Ok((mut response, mut stream)) => {
                // Not before it is served: what is taken back sooner the crate counts.
                tokio::select! {
                    answer = &mut response => break answer.expect_err("it is not answered"),
                    () = until("the request", || site.upstream.requests().len() > before) => {}
                }
                stream.send_reset(Reason::CANCEL);
                drop(response);
                reset += 1;
                assert!(reset < 2_000, "nobody minds");
            }
            Err(error) => break error,
        }
    };
    assert!(reset >= 400, "{reset}");
    assert!(
        ended.is_go_away() || ended.is_io() || ended.reason() == Some(Reason::REFUSED_STREAM),
        "{ended:?}"
    );
    // It may come again.
    let client = inside(&site).await;
    assert_eq!(client.get(&url(&site, "/ok")).await.expect("answer").status, 200);
}
