//! WebSockets whose messages are read: each judged before any of it goes on, and a close to both sides over what may not.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use clawgress_api::{AuditRecord, Verdict};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::web_socket::{Message, Reader, Sender, close_frame};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::body::POLICY;
use crate::client::{Answer, Client};
use crate::harness::{Gateway, Options, PATIENCE};
use crate::intercept::{self, HOST};
use crate::upstream::{Seen, Upstream, acceptor};

pub const KEY: &str = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n";
pub const TEXT: u8 = 0x81;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

pub fn policy(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn frame(sender: Sender, first: u8, carried: &[u8]) -> Vec<u8> {
    let masked = if sender == Sender::Client { 0x80 } else { 0 };
    let mut out = vec![first];
    match carried.len() {
        short @ 0..126 => out.push(masked | u8::try_from(short).expect("short")),
        long @ 126..65536 => {
            out.push(masked | 126);
            out.extend(u16::try_from(long).expect("long").to_be_bytes());
        }
        longer => {
            out.push(masked | 127);
            out.extend(u64::try_from(longer).expect("longer").to_be_bytes());
        }
    }
    if sender == Sender::Client {
        out.extend(MASK);
        out.extend(carried.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    } else {
        out.extend(carried);
    }
    out
}

pub fn said(first: u8, carried: impl AsRef<[u8]>) -> Vec<u8> {
    frame(Sender::Client, first, carried.as_ref())
}

pub fn answered(first: u8, carried: impl AsRef<[u8]>) -> Vec<u8> {
    frame(Sender::Server, first, carried.as_ref())
}

/// A server of WebSockets by RFC 6455: it notes the bytes it gets, answers messages by themselves, pings by pongs and a close by
/// a close.
pub async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, seen: Arc<Seen>) {
    let mut held = Vec::new();
    let end = loop {
        if let Some(at) = held.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let Ok(1..) = stream.read_buf(&mut held).await else { return };
    };
    let head = String::from_utf8_lossy(&held[..end]).into_owned();
    let extension = if head.starts_with("GET /deflate ") {
        "Sec-WebSocket-Extensions: permessage-deflate\r\n"
    } else {
        ""
    };
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let is_opening = head.to_lowercase().contains("upgrade: websocket\r\n");
    seen.requests.lock().push(head);
    if !is_opening {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        let _ = stream.shutdown().await;
        return;
    }
    let mut rest = held.split_off(end);
    let switch = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n{extension}\r\n"
    );
    if stream.write_all(switch.as_bytes()).await.is_err() {
        return;
    }
    match path.as_str() {
        "/half" => {
            let _ = stream.write_all(&answered(0x01, "hal")).await;
            return note(stream, &seen).await;
        }
        "/chatty" => return chat(stream, &seen).await,
        "/full" => {
            let _ = stream.write_all(&[crate::small_messages::record(), answered(TEXT, KEY)].concat()).await;
            let _ = stream.flush().await;
            return note(stream, &seen).await;
        }
        "/note" => return note(stream, &seen).await,
        _ => {}
    }
    let mut reader = Reader::new(Sender::Client, 10 << 20);
    loop {
        seen.bytes.lock().extend_from_slice(&rest);
        let mut left = &rest[..];
        while !left.is_empty() {
            let (taken, message) = reader.read(left).expect("frames");
            left = &left[taken..];
            let answer = match message {
                Some(Message::Text(bytes)) => answered(TEXT, bytes),
                Some(Message::Binary(bytes)) => answered(0x82, bytes),
                Some(Message::Ping(bytes)) => answered(0x8a, bytes),
                Some(Message::Close { .. }) => answered(0x88, b"\x03\xe8"),
                Some(Message::Pong(_)) | None => continue,
            };
            if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() || reader.is_closed()
            {
                return;
            }
        }
        rest.clear();
        let Ok(1..) = stream.read_buf(&mut rest).await else { return };
    }
}

/// Notes what comes, and says nothing.
async fn note(mut stream: impl AsyncRead + Unpin, seen: &Seen) {
    let mut came = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut came).await {
        seen.bytes.lock().append(&mut came);
    }
}

/// The same, while it says something now and then.
async fn chat(stream: impl AsyncRead + AsyncWrite + Unpin, seen: &Seen) {
    let (from, mut to) = tokio::io::split(stream);
    let talk = async {
        while to.write_all(&answered(TEXT, "tick")).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = talk => {}
        () = note(from, seen) => {}
    }
}

pub struct Site {
    pub gateway: Gateway,
    upstream: Upstream,
    host: String,
}

impl Site {
    pub async fn start(policy: &'static str, more: &str) -> Site {
        let more = more.to_owned();
        let options = Options { policy: Some(policy), more, connections_max: 2000, ..Options::default() };
        let gateway = Gateway::start(options).await;
        let upstream = Upstream::start("127.1.0.1", None, serve).await;
        let host = format!("api.allowed.test:{}", upstream.address.port());
        Site { gateway, upstream, host }
    }

    pub async fn ask(&self, path: &str) -> (Client, Answer) {
        let mut client = self.gateway.client().await;
        client.send(opening(&format!("http://{}{path}", self.host), &self.host, &self.gateway.web())).await;
        let answer = client.answer_head().await;
        (client, answer)
    }

    pub async fn opened(&self) -> Client {
        self.opened_at("/chat").await
    }

    pub async fn opened_at(&self, path: &str) -> Client {
        let (client, answer) = self.ask(path).await;
        assert_eq!((answer.status, answer.field("upgrade")), (101, Some("websocket")), "{answer:?}");
        client
    }

    /// What the server has got, once that is this many bytes.
    pub async fn got(&self, bytes: usize) -> Vec<u8> {
        let came = async {
            while self.upstream.seen.bytes.lock().len() < bytes {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, came).await.expect("the server gets it");
        self.upstream.seen.bytes.lock().clone()
    }

    /// The messages that the server has got, once one of them is a close.
    pub async fn told(&self) -> Vec<Message> {
        let closed = async {
            loop {
                let got = messages(&self.upstream.seen.bytes.lock());
                if got.iter().any(|message| matches!(message, Message::Close { .. })) {
                    return got;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, closed).await.expect("the server is told")
    }

    /// The one WebSocket that there was, once it has ended.
    pub async fn ended(&self, n: usize) -> (AuditRecord, AuditRecord) {
        self.gateway.ended(n).await
    }
}

pub fn opening(target: &str, host: &str, more: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    )
}

/// Reads until so many bytes are there, and takes them.
pub async fn take<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>, bytes: usize) -> Vec<u8> {
    while client.held.len() < bytes {
        assert!(client.more().await, "it ended after {:?}", client.held);
    }
    client.held.drain(..bytes).collect()
}

/// The status and the reason of the close that comes next.
pub async fn close<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>) -> (u16, String) {
    let (closed, before) = close_after(client).await;
    assert!(before.is_empty(), "it goes on: {before:?}");
    closed
}

/// The same, and what the server said before it.
pub async fn close_after<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Client<S>,
) -> ((u16, String), Vec<Message>) {
    let mut before = Vec::new();
    let mut reader = Reader::new(Sender::Server, 10 << 20);
    loop {
        let held = std::mem::take(&mut client.held);
        let mut left = &held[..];
        while !left.is_empty() {
            let (taken, message) = reader.read(left).expect("frames");
            left = &left[taken..];
            match message {
                Some(Message::Close { code, reason }) => return ((code.expect("a code"), reason), before),
                Some(other) => before.push(other),
                None => {}
            }
        }
        assert!(client.more().await, "no close");
    }
}

/// The messages that these bytes of a client are.
pub fn messages(bytes: &[u8]) -> Vec<Message> {
    let (mut reader, mut left, mut all) = (Reader::new(Sender::Client, 10 << 20), bytes, vec![]);
    while !left.is_empty() {
        let (taken, message) = reader.read(left).expect("frames");
        left = &left[taken..];
        all.extend(message);
    }
    all
}

/// What one says that says nothing forbidden: parts, with a ping between them, texts of all forms of length, and a binary one.
fn sound() -> Vec<u8> {
    let parts = [said(0x01, "be"), said(0x89, "there?"), said(0x00, ""), said(0x80, "gin")];
    [parts.concat(), said(TEXT, "é".repeat(100)), said(0x82, [0; 70_000]), said(TEXT, "")].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_permitted_goes_on_unchanged_however_it_is_cut() {
    let site = Site::start(POLICY, "").await;
    let seed = RandomState::new().hash_one(0u8);
    println!("seed {seed}");
    let (bytes, mut state) = (sound(), seed);
    let back = [
        answered(0x8a, "there?"),
        answered(TEXT, "begin"),
        answered(TEXT, "é".repeat(100)),
        answered(0x82, [0; 70_000]),
        answered(TEXT, ""),
    ];
    let mut passed = 0;
    for _ in 0..3 {
        let mut client = site.opened().await;
        let mut left = &bytes[..];
        while !left.is_empty() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (piece, rest) =
                left.split_at(usize::try_from(state >> 33).expect("small") % left.len().min(9000) + 1);
            client.send(piece).await;
            left = rest;
        }
        assert_eq!(take(&mut client, back.concat().len()).await, back.concat());
        client.send(said(0x88, b"\x03\xe8bye")).await;
        assert_eq!(client.rest().await, answered(0x88, b"\x03\xe8"));
        passed += 1;
        let (decision, outcome) = site.ended(passed - 1).await;
        assert_eq!((decision.verdict, decision.action.as_deref()), (Some(Verdict::Allow), Some("http")));
        assert_eq!((outcome.status, outcome.reason), (Some(101), None));
    }
    let all = [&bytes[..], &said(0x88, b"\x03\xe8bye")].concat().repeat(3);
    assert!(site.got(all.len()).await == all, "the bytes that were judged go on");
    let requests = site.upstream.requests();
    assert!(requests.iter().all(|head| !head.to_lowercase().contains("extensions")), "{requests:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_sent_closes_it_both_ways() {
    let site = Site::start(POLICY, "").await;
    let half = KEY.len() / 2;
    let secret = [said(0x01, &KEY[..half]), said(0x8a, ""), said(0x80, &KEY[half..])].concat();
    for (n, bytes) in
        [said(TEXT, KEY), said(0x82, KEY), secret, said(0x89, &KEY[..60])].into_iter().enumerate()
    {
        site.upstream.seen.bytes.lock().clear();
        let mut client = site.opened().await;
        client.send(said(TEXT, "hello")).await;
        assert_eq!(take(&mut client, 7).await, answered(TEXT, "hello"));
        client.send([bytes, said(TEXT, "more")].concat()).await;
        let (code, reason) = close(&mut client).await;
        client.send(said(0x88, b"\x03\xf0")).await;
        assert!(client.rest().await.is_empty());
        let (decision, outcome) = site.ended(n).await;
        assert_eq!(reason, format!("policy_forbidden (request {})", decision.request), "{n}");
        let got = site.told().await;
        let told = Message::Close { code: Some(1008), reason: reason.clone() };
        assert_eq!((code, got), (1008, vec![Message::Text(b"hello".to_vec()), told]), "{n}");
        assert_eq!(outcome.reason, Some(DropReason::PolicyForbidden));
        assert_eq!(
            (outcome.action.as_deref(), &outcome.policies[..]),
            (Some("send"), &["no-keys".to_owned()][..])
        );
        assert_eq!(outcome.findings, ["private_key"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_answer_a_close_is_left() {
    let site = Site::start(POLICY, "").await;
    let mut client = site.opened().await;
    client.send(said(TEXT, KEY)).await;
    assert_eq!(close(&mut client).await.0, 1008);
    // It says nothing, and does not leave.
    assert!(client.rest().await.is_empty());
    assert_eq!(site.ended(0).await.1.reason, Some(DropReason::PolicyForbidden));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_read_ends_it() {
    let site =
        Site::start(POLICY, "[content]\nhold_bytes_max = 65536\nagent_memory_bytes_max = 20000000\n").await;
    let parts = [said(0x02, [0; 60_000]), said(0x80, [0; 6000])].concat();
    let endless = [said(0x01, "a"), said(0x00, "").repeat(30_000)].concat();
    let unsound = [
        (said(0x82, [0; 65_537]), 1009),
        (parts, 1009),
        (endless, 1009),
        (answered(TEXT, "bare"), 1002),
        (said(0xc1, "deflated"), 1002),
        (said(TEXT, b"\xff"), 1007),
        (b"DELETE / HTTP/1.1\r\nHost: denied.test\r\n\r\n".to_vec(), 1002),
    ];
    for (n, (bytes, status)) in unsound.into_iter().enumerate() {
        site.upstream.seen.bytes.lock().clear();
        let mut client = site.opened().await;
        client.send(&bytes).await;
        let (code, reason) = close(&mut client).await;
        drop(client);
        let (decision, outcome) = site.ended(n).await;
        assert_eq!(
            (code, reason),
            (status, format!("content_unreadable (request {})", decision.request)),
            "{n}"
        );
        assert_eq!(outcome.reason, Some(DropReason::ContentUnreadable));
        let detail = outcome.detail.unwrap_or_default();
        assert!(detail.starts_with("messages were not read: "), "{detail}");
        assert_eq!(detail.ends_with("see `hold_bytes_max` in [content]"), status == 1009, "{detail}");
        let told = site.told().await;
        assert!(matches!(told[..], [Message::Close { code: Some(code), .. }] if code == status), "{told:?}");
    }
    // A server that uses what it was not offered.
    let (_, answer) = site.ask("/deflate").await;
    assert_eq!((answer.status, answer.reason()), (502, "upstream_failed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_holds_no_more_than_its_share() {
    let site =
        Site::start(POLICY, "[content]\nhold_bytes_max = 65536\nagent_memory_bytes_max = 20000000\n").await;
    // A message's first part takes its bytes twice at least: as they came, and without their masks.
    let part = said(0x02, [0; 60_000]);
    let mut waiting = JoinSet::new();
    for _ in 0..20_000_000 / 120_000 + 1 {
        let mut client = site.opened().await;
        client.send(&part).await;
        waiting.spawn(async move { close(&mut client).await });
    }
    let (code, reason) = waiting.join_next().await.expect("one of them").expect("a close");
    assert!(code == 1013 && reason.starts_with("content_share_full (request "), "{code} {reason}");
    assert_eq!(site.ended(0).await.1.reason, Some(DropReason::ContentShareFull));
    // What the others hold is there again once they have left.
    waiting.shutdown().await;
    let passed = async {
        loop {
            let mut client = site.opened().await;
            client.send([&part[..], &said(0x80, "")].concat()).await;
            if take(&mut client, 1).await == [0x82] {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, passed).await.expect("there is room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_back_is_judged_where_policy_asks() {
    let text = POLICY.replace(
        "@id(\"no-keys\") forbid (principal, action == Action::\"send\"",
        "@id(\"no-keys\") forbid (principal, action == Action::\"receive\"",
    );
    let answers = r#"@id("answers") permit (principal, action == Action::"receive", resource);"#;
    let site = Site::start(policy(&format!("{text}{answers}")), "").await;
    let mut client = site.opened().await;
    client.send(said(TEXT, "hello")).await;
    assert_eq!(take(&mut client, 7).await, answered(TEXT, "hello"));
    client.send([said(TEXT, KEY), said(TEXT, "more")].concat()).await;
    let (code, reason) = close(&mut client).await;
    assert_eq!(code, 1008);
    client.send(said(0x88, b"\x03\xf0")).await;
    assert!(client.rest().await.is_empty());
    let (decision, outcome) = site.ended(0).await;
    assert_eq!(reason, format!("policy_forbidden (request {})", decision.request));
    assert_eq!(
        (outcome.action.as_deref(), &outcome.policies[..]),
        (Some("receive"), &["no-keys".to_owned()][..])
    );
    let answer = outcome.attributes.and_then(|attributes| attributes.answer).expect("an answer");
    assert_eq!((answer.status, answer.payload.findings), (101, vec!["private_key".to_owned()]));
    let got = site.told().await;
    assert_eq!(got.last(), Some(&Message::Close { code: Some(1008), reason }), "{got:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_judged_by_policy_as_it_is_by_then() {
    let site = Site::start(POLICY, "").await;
    let mut client = site.opened().await;
    client.send(said(TEXT, "a word")).await;
    assert_eq!(take(&mut client, 8).await, answered(TEXT, "a word"));
    let short =
        r#"@id("short") forbid (principal, action == Action::"send", resource) when { context.bytes > 5 };"#;
    site.gateway.publish_policy(&format!("{POLICY}{short}")).await;
    client.send(said(TEXT, "words")).await;
    assert_eq!(take(&mut client, 7).await, answered(TEXT, "words"));
    client.send(said(TEXT, "a word")).await;
    assert_eq!(close(&mut client).await.0, 1008);
    drop(client);
    assert_eq!(site.ended(0).await.1.policies, ["short"]);
    // Where no guard asks about bodies any more, nobody permits what is sent but `tunnel`.
    site.gateway.publish_policy(POLICY).await;
    let mut client = site.opened().await;
    site.gateway.publish_policy(crate::harness::POLICY).await;
    assert!(client.rest().await.is_empty());
    assert_eq!(site.ended(1).await.1.reason, Some(DropReason::InspectionRequired));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_only_told_denies_nothing() {
    let tells = r#"
@id("messages") permit (principal, action == Action::"tunnel", resource) when { context.protocol == "websocket" };
@id("tell") @effect("alert") @severity("high") permit (principal, action == Action::"send", resource)
when { context.findings.contains("private_key") };
"#;
    let site = Site::start(policy(&format!("{}{tells}", crate::harness::POLICY)), "").await;
    let mut client = site.opened().await;
    client.send(said(TEXT, KEY)).await;
    let back = answered(TEXT, KEY);
    assert_eq!(take(&mut client, back.len()).await, back);
    client.send(said(0x88, b"\x03\xe8")).await;
    client.rest().await;
    let (decision, outcome) = site.ended(0).await;
    assert_eq!((decision.action.as_deref(), outcome.reason), (Some("tunnel"), None));
    assert_eq!(outcome.findings, ["private_key"]);
    assert!(outcome.effects.iter().any(|effect| effect.policy == "tell"), "{:?}", outcome.effects);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_tunnel_is_forbidden_none_is_opened() {
    let no = r#"@id("none") forbid (principal, action == Action::"tunnel", resource) when { context.protocol == "websocket" };"#;
    let site = Site::start(policy(&format!("{POLICY}{no}")), "").await;
    let (_, answer) = site.ask("/chat").await;
    assert_eq!((answer.status, answer.reason()), (403, "inspection_required"));
    // Where it permits, what is asked of messages is asked all the same.
    let yes = r#"@id("yes") permit (principal, action == Action::"tunnel", resource);"#;
    site.gateway.publish_policy(&format!("{POLICY}{yes}")).await;
    let mut client = site.opened().await;
    client.send(said(TEXT, KEY)).await;
    assert_eq!(close(&mut client).await.0, 1008);
    assert_eq!(site.upstream.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn within_tls_that_is_read_messages_are() {
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
    let site = intercept::Site::before(upstream, &made.cert.pem(), POLICY, "").await;
    let mut client = site.inside().await;
    client.send(opening("/chat", &site.host(), "")).await;
    let answer = client.answer_head().await;
    assert_eq!(answer.status, 101, "{answer:?}");
    client.send(said(TEXT, "hello")).await;
    assert_eq!(take(&mut client, 7).await, answered(TEXT, "hello"));
    client.send(said(TEXT, KEY)).await;
    assert_eq!(close(&mut client).await.0, 1008);
    client.send(close_frame(Sender::Client, 1008, "", MASK)).await;
    assert!(client.rest().await.is_empty());
    let got = messages(&site.upstream.seen.bytes.lock());
    assert!(
        matches!(&got[..], [Message::Text(text), Message::Close { code: Some(1008), .. }] if text == b"hello"),
        "{got:?}"
    );
}
