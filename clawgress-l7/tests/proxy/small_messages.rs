//! Very many messages that say next to nothing, as many as a record of TLS holds at once: each is judged, and others have their turn.

use std::sync::atomic::Ordering;

use clawgress_inspect::web_socket::{Message, Reader, Sender};
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::body::POLICY;
use crate::conversations::{TEXT, answered, messages, opening, policy, said, serve};
use crate::http2::until;
use crate::intercept::{HOST, Inside, Site};
use crate::upstream::{Upstream, acceptor};

/// What a record of TLS holds, bytes (RFC 8446 section 5.1).
const RECORD: usize = 16 * 1024;
const ANSWERS: &str = r#"
@id("answers") permit (principal, action == Action::"receive", resource);
@id("no-answers") forbid (principal, action == Action::"receive", resource) when { context.findings.contains("private_key") };
"#;
/// Messages that one client says at once, beside which others ask.
const MANY: usize = 10_000;
/// Requests beside them.
const REQUESTS: usize = 5;

/// As many messages of a letter as a record holds.
pub fn record() -> Vec<u8> {
    answered(TEXT, "x").into_iter().cycle().take(RECORD / 3 * 3).collect()
}

/// A server of WebSockets over TLS: at `/full` it says a record full, and then what may not be said.
async fn site(policy: &'static str) -> Site {
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).expect("certificate");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let acceptor = acceptor(made.cert.der().clone(), key);
    let upstream = Upstream::start("127.1.0.1", None, move |stream, seen| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(stream, seen).await;
            }
        }
    })
    .await;
    Site::before(upstream, &made.cert.pem(), policy, "").await
}

async fn opened(site: &Site, path: &str) -> Inside {
    let mut client = site.inside().await;
    client.send(opening(path, &site.host(), "")).await;
    let answer = client.answer_head().await;
    assert_eq!(answer.status, 101, "{answer:?}");
    client
}

/// What comes until a close, and that.
async fn until_close(client: &mut Inside) -> (usize, u16, String) {
    let (mut reader, mut count) = (Reader::new(Sender::Server, 10 << 20), 0);
    loop {
        let held = std::mem::take(&mut client.held);
        let mut left = &held[..];
        while !left.is_empty() {
            let (taken, message) = reader.read(left).expect("frames");
            left = &left[taken..];
            match message {
                Some(Message::Close { code, reason }) => return (count, code.expect("a code"), reason),
                Some(message) => {
                    assert_eq!(message, Message::Text(b"x".to_vec()));
                    count += 1;
                }
                None => {}
            }
        }
        assert!(client.more().await, "no close");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_very_many_is_judged() {
    let few = r#"@id("few") @effect("rate-limit") @limit("3000 requests/hour burst 3000") permit (principal, action == Action::"send", resource);"#;
    let site = site(policy(&format!("{POLICY}{ANSWERS}{few}"))).await;
    // All of what a client says at once, and the limit counts each.
    let mut client = opened(&site, "/chat").await;
    client.send(said(TEXT, "x").repeat(5000)).await;
    let (_, code, reason) = until_close(&mut client).await;
    assert!(code == 1008 && reason.starts_with("rate_limited (request "), "{code} {reason}");
    until("the end at the server", || site.upstream.seen.ended.load(Ordering::SeqCst) == 1).await;
    drop(client);
    let got = messages(&site.upstream.seen.bytes.lock());
    let (last, texts) = got.split_last().expect("a close");
    assert!(matches!(last, Message::Close { code: Some(1008), .. }), "{last:?}");
    // Some more, by what has become free meanwhile.
    assert!((3000..4000).contains(&texts.len()), "{}", texts.len());
    assert!(texts.iter().all(|text| *text == Message::Text(b"x".to_vec())));

    // All of what a server says at once, and what comes behind it does not come.
    let mut client = opened(&site, "/full").await;
    let (count, code, reason) = until_close(&mut client).await;
    assert_eq!((count, code), (record().len() / 3, 1008), "{reason}");
    assert!(reason.starts_with("policy_forbidden (request "), "{reason}");
}

/// What says very much has an end here, so that it takes nothing from other tests: others are answered, and all of it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_answered_beside_very_many() {
    let site = site(policy(&format!("{POLICY}{ANSWERS}"))).await;
    let mut client = opened(&site, "/note").await;
    client.send(said(TEXT, "x").repeat(MANY)).await;
    // Of the same agent, on connections of their own.
    for n in 0..REQUESTS {
        let mut client: Inside = site.inside().await;
        client.send(format!("GET /{n} HTTP/1.1\r\nHost: {}\r\n\r\n", site.host())).await;
        assert_eq!(client.answer().await.status, 200, "number {n}");
    }
    let got = || site.upstream.seen.bytes.lock().len();
    println!("{} of {MANY} had come when all others were answered", got() / said(TEXT, "x").len());
    until("the rest", || got() == MANY * said(TEXT, "x").len()).await;
}
