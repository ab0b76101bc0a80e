//! HTTP/2 written by hand: what costs a server more than it costs who sends it.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::harness::{PATIENCE, POLICY};
use crate::http2::{START, frame, inside, literal, site, url};
use crate::intercept::{HOST, Site, trusting};
use crate::scale::memory_kib;
use crate::streams::server;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Kinds of the frames that were received.
fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        kinds.push(head[3]);
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        bytes = rest.get(length..).unwrap_or_default();
    }
    kinds
}

/// A head of `GET https://HOST/PATH`, by the static table (RFC 7541 appendix A).
fn get(host: &str, path: &str) -> Vec<u8> {
    let text = |index: u8, value: &str| {
        [&[index, u8::try_from(value.len()).expect("short")][..], value.as_bytes()].concat()
    };
    [vec![0x82, 0x87], text(1, host), text(4, path)].concat()
}

/// A field that goes into the dynamic table (RFC 7541 section 6.2.1), of which it takes most.
fn large() -> Vec<u8> {
    let value = vec![b'x'; 3_900];
    let [high, low] = u16::try_from(value.len() - 127).expect("short").to_be_bytes();
    let length = u16::from_be_bytes([high, low]);
    [&[0x40, 1, b'b', 0x7F, 0x80 | (length & 0x7F) as u8, (length >> 7) as u8][..], &value].concat()
}

/// Sends what `each` makes of a stream's number until nobody takes it any more, for `most` streams; what was said, and how
/// many streams there were.
async fn flood(site: &Site, most: u32, each: impl Fn(u32) -> Vec<u8>) -> (Vec<u8>, u32) {
    let config = trusting(&[site.gateway.authority.certificate()], &["h2"]);
    let stream = site.shake(HOST, config).await.expect("handshake").stream;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let reading = tokio::spawn(async move {
        let mut said = Vec::new();
        // It may end by a reset.
        let _ = reader.read_to_end(&mut said).await;
        said
    });
    writer.write_all(START).await.expect("begun");
    let mut sent = 0;
    let sending = async {
        while sent < most {
            if writer.write_all(&each(2 * sent + 1)).await.is_err() || writer.flush().await.is_err() {
                return;
            }
            sent += 1;
        }
    };
    timeout(4 * PATIENCE, sending).await.expect("it is taken, or refused");
    let said = timeout(PATIENCE, reading).await.expect("the connection ends").expect("reader");
    (said, sent)
}

async fn others_are_served(site: &Site) {
    let client = inside(site).await;
    assert_eq!(client.get(&url(site, "/ok")).await.expect("answer").status, 200);
}

/// Has the server reset streams that it serves (CVE-2025-8671), by what is an error of the stream alone: that costs as much
/// as if the client did, and no bound on its own resets holds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_streams_reset_without_end_begins_no_more() {
    const STREAMS: u32 = 20_000;
    let site = site(POLICY, "").await;
    let head = get(&site.host(), "/wait");
    let window = |n: u32| n.to_be_bytes();
    for (what, flags, provoke) in [
        ("a window that grows by nothing", END_STREAM, frame(WINDOW_UPDATE, 0, 0, &window(0))),
        ("a window beyond its bound", END_STREAM, frame(WINDOW_UPDATE, 0, 0, &window(0x7FFF_FFFF))),
        ("data behind the end", END_STREAM, frame(DATA, 0, 0, b"x")),
    ] {
        let before = site.upstream.requests().len();
        let (said, sent) = flood(&site, STREAMS, |stream| {
            let mut provoke = provoke.clone();
            provoke[5..9].copy_from_slice(&stream.to_be_bytes());
            [frame(HEADERS, END_HEADERS | flags, stream, &head), provoke].concat()
        })
        .await;
        assert!(sent < STREAMS, "{what}: nobody minds");
        assert!(kinds(&said).contains(&GOAWAY), "{what}: {:?}", kinds(&said));
        let reached = site.upstream.requests().len() - before;
        println!("{what}: {sent} streams, {reached} requests at the server");
        assert!(reached < 2_000, "{what}: {reached} requests at the server");
        others_are_served(&site).await;
    }
}

/// A large field that is sent once, and named by a byte ten thousand times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_is_as_long_as_it_turns_out_to_be() {
    let site = site(POLICY, "").await;
    let first = large();
    let own = get(&site.host(), "/ok");
    let named = vec![0x80 | 62; 10_000];
    let (said, _) = flood(&site, 1, |stream| {
        [
            frame(HEADERS, END_STREAM, stream, &[own.clone(), first.clone()].concat()),
            frame(CONTINUATION, END_HEADERS, stream, &named),
            // The end of what the client has to say.
            frame(GOAWAY, 0, 0, &[0; 8]),
        ]
        .concat()
    })
    .await;
    assert!(site.upstream.requests().is_empty(), "{:?}", site.upstream.requests().len());
    // A head of 431, a reset, or the end of all.
    assert!(kinds(&said).iter().any(|kind| [HEADERS, RST_STREAM, GOAWAY].contains(kind)), "{said:02x?}");
    others_are_served(&site).await;
    // So many of them one after the other that what they came to was not kept.
    let ended = timeout(
        Duration::from_secs(60),
        flood(&site, 2_000, |stream| {
            [
                frame(HEADERS, END_STREAM, stream, &[own.clone(), first.clone()].concat()),
                frame(CONTINUATION, END_HEADERS, stream, &named),
            ]
            .concat()
        }),
    );
    let (said, sent) = ended.await.expect("in time");
    assert!(sent < 2_000 && kinds(&said).contains(&GOAWAY), "{sent}: {:?}", kinds(&said));
    assert_eq!(site.upstream.requests().len(), 1, "that of the others");
}

/// Each would go on for ever, and costs whoever reads it as much as who sends it, or more: also of a client that takes all that it is
/// answered, and while one of its streams is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_without_end_end_their_connection() {
    const FLOODS: u32 = 2_000;
    let site = site(POLICY, "").await;
    let head = get(&site.host(), "/wait");
    // A request that is whole, and one whose body is to come.
    let [whole, begun] =
        [END_STREAM, 0].map(|flags| move |head: &[u8]| frame(HEADERS, END_HEADERS | flags, 1, head));
    let field = [&[0, 1, b'y', 100][..], &[b'x'; 100]].concat();
    for (what, first, each) in [
        (
            "fields of one head",
            frame(HEADERS, END_STREAM, 1, &literal(":method", "GET")),
            frame(CONTINUATION, 0, 1, &field.repeat(150)),
        ),
        ("nothing of one head", frame(HEADERS, END_STREAM, 1, &head), frame(CONTINUATION, 0, 1, &[])),
        ("questions", whole(&head), frame(PING, 0, 0, &[0; 8])),
        ("answers to questions", whole(&head), frame(PING, 1, 0, &[0; 8])),
        ("settings", whole(&head), frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("settings that say nothing", whole(&head), frame(SETTINGS, 0, 0, &[])),
        ("resets of what never was", whole(&head), frame(RST_STREAM, 0, 3, &[0, 0, 0, 8])),
        ("resets of what was", whole(&head), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])),
        ("priorities", whole(&head), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])),
        ("windows", whole(&head), frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("windows of a stream", whole(&head), frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        ("data that is none", begun(&head), frame(DATA, 0, 1, &[])),
        ("padding", begun(&head), frame(DATA, 8, 1, &[0])),
        ("what nobody knows", whole(&head), frame(0x77, 0, 0, b"x")),
    ] {
        let each = each.repeat(1_000);
        let (said, sent) = flood(&site, FLOODS, |stream| {
            if stream == 1 { [first.clone(), each.clone()].concat() } else { each.clone() }
        })
        .await;
        println!("{what}: {sent} of {FLOODS}");
        assert!(sent < FLOODS, "{what}: nobody minds");
        assert!(kinds(&said).contains(&GOAWAY), "{what}: {:?}", kinds(&said).len());
        others_are_served(&site).await;
    }
}

/// Connections that flood at once.
const FLOODERS: usize = 8;
/// Most that the process takes for all of them, KiB. What each of them sends, or has its heads come to, is more than that.
const FLOODS_KIB_MAX: f64 = 16.0 * 1024.0;

/// What a head comes to, what never ends, and what is asked again and again: none of it is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_take_a_bounded_part_of_memory() {
    let (upstream, pem) = server("127.1.0.1", HOST).await;
    let site = Site::apart(upstream, &pem, POLICY).await;
    others_are_served(&site).await;
    let head = get(&site.host(), "/wait");
    let filler = [&[0, 1, b'y', 100][..], &[b'x'; 100]].concat().repeat(150);
    let bomb = [head.clone(), large()].concat();
    let named = vec![0x80 | 62; 16_000];
    let idle = memory_kib(site.gateway.pid);
    for (what, floods, first, each) in [
        ("heads that come to 62 MB", 2_000, vec![], bomb),
        ("a head without end", 4_000, frame(HEADERS, END_STREAM, 1, &head), vec![]),
        ("questions", 4_000, frame(HEADERS, END_HEADERS | END_STREAM, 1, &head), vec![]),
    ] {
        let each = |stream: u32| match what {
            "a head without end" => frame(CONTINUATION, 0, 1, &filler),
            "questions" => frame(PING, 0, 0, &[0; 8]).repeat(1_000),
            _ => {
                [frame(HEADERS, END_STREAM, stream, &each), frame(CONTINUATION, END_HEADERS, stream, &named)]
                    .concat()
            }
        };
        let each = |stream| [if stream == 1 { first.clone() } else { vec![] }, each(stream)].concat();
        let flooding = futures_util::future::join_all((0..FLOODERS).map(|_| flood(&site, floods, each)));
        let mut flooding = std::pin::pin!(flooding);
        // Others are answered all the while.
        let served = std::cell::Cell::new(0);
        let mut others = std::pin::pin!(async {
            loop {
                others_are_served(&site).await;
                served.set(served.get() + 1);
            }
        });
        let mut most = idle;
        let sent: Vec<_> = loop {
            tokio::select! {
                floods = &mut flooding => break floods.into_iter().map(|(_, sent)| sent).collect(),
                () = &mut others => {}
                () = tokio::time::sleep(Duration::from_millis(5)) => most = most.max(memory_kib(site.gateway.pid)),
            }
        };
        let (more, served) = ((most - idle) / 1024.0, served.get());
        println!("{what}: {sent:?} of {floods}, {more:.1} MiB more, {served} answers to others");
        assert!(sent.iter().all(|sent| *sent < floods), "{what}: {sent:?}");
        assert!(most - idle < FLOODS_KIB_MAX, "{what}: {:.0} KiB more", most - idle);
        others_are_served(&site).await;
    }
}
