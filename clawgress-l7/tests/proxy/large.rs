//! Bodies that are larger than anything that is held of them: whole, both ways, in each form of HTTP that is read, by a process
//! that keeps none of it.

use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use h2::server::SendResponse;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::timeout;

use crate::client::{Answer, Client};
use crate::harness::{PATIENCE, POLICY};
use crate::http2::inside;
use crate::intercept::{HOST, Site};
use crate::scale::memory_kib;
use crate::streams::{Connection, acceptor, send};
use crate::upstream::Upstream;

/// Bytes of each body: more than any bound on bodies that is configured or built in.
const BYTES: usize = 65 << 20;
const PIECE_BYTES: usize = 64 << 10;
/// Most memory that a process takes for one on its way, KiB: buffers of both sides and HTTP/2's windows.
const GROWTH_KIB_MAX: f64 = 8.0 * 1024.0;
/// Longest time of one, also where everything is slow.
const TIME_MAX: Duration = Duration::from_secs(120);

/// The pieces of a body of so many bytes, no two of which are the same.
fn pieces(bytes: usize) -> impl Iterator<Item = Bytes> {
    // Copied, since each byte costs something where nothing is optimised.
    let model: Vec<u8> = (0..=u8::MAX).cycle().take(PIECE_BYTES).collect();
    (0..bytes.div_ceil(PIECE_BYTES)).map(move |n| {
        let mut piece = model.clone();
        piece[..8].copy_from_slice(&n.to_le_bytes());
        piece.truncate(bytes - n * PIECE_BYTES);
        piece.into()
    })
}

fn hash(bytes: usize) -> String {
    let mut context = Context::new(&SHA256);
    pieces(bytes).for_each(|piece| context.update(&piece));
    text(context)
}

fn text(context: Context) -> String {
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the path asks for, bytes.
fn asked(path: &str) -> usize {
    path.rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// Hashes as many bytes, some of which were read.
async fn hashed(stream: &mut (impl AsyncRead + Unpin), held: Vec<u8>, bytes: usize) -> String {
    let mut context = Context::new(&SHA256);
    context.update(&held);
    let (mut left, mut buffer) = (bytes - held.len(), vec![0; PIECE_BYTES]);
    while left > 0 {
        let n = stream.read(&mut buffer).await.expect("read");
        assert!(n > 0, "{left} bytes are missing");
        context.update(&buffer[..n]);
        left -= n;
    }
    text(context)
}

/// A server of HTTP/1.1 that sends as many bytes as it is asked for, and tells the hash of those that it gets.
async fn http1(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut peer = Client::over(stream);
    loop {
        while !peer.seen().contains("\r\n\r\n") {
            let Ok(1..) = peer.stream.read_buf(&mut peer.held).await else { return };
        }
        let end = peer.held.windows(4).position(|w| w == b"\r\n\r\n").expect("an end") + 4;
        let head: Vec<u8> = peer.held.drain(..end).collect();
        let head = String::from_utf8(head).expect("text").to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if let Some(length) = length {
            let length = length.parse().expect("a length");
            let said = hashed(&mut peer.stream, std::mem::take(&mut peer.held), length).await;
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{said}", said.len())).await;
            continue;
        }
        let bytes = asked(head.split(' ').nth(1).unwrap_or_default());
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n")).await;
        for piece in pieces(bytes) {
            peer.send(piece).await;
        }
    }
}

/// The same of HTTP/2.
async fn http2(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, response))) = connection.accept().await {
        tokio::spawn(answer(request, response));
    }
}

async fn answer(request: Request<h2::RecvStream>, mut response: SendResponse<Bytes>) {
    let (head, body) = request.into_parts();
    let said = if head.method == "POST" { hashed_stream(body).await } else { String::new() };
    let bytes = if said.is_empty() { asked(head.uri.path()) } else { said.len() };
    let told = Response::builder().header("content-length", bytes).body(()).expect("a head");
    let mut stream = response.send_response(told, false).expect("sent");
    if said.is_empty() {
        for piece in pieces(bytes) {
            send(&mut stream, &piece).await.expect("a piece");
        }
    } else {
        send(&mut stream, said.as_bytes()).await.expect("the hash");
    }
    stream.send_data(Bytes::new(), true).expect("the end");
}

async fn hashed_stream(mut stream: h2::RecvStream) -> String {
    let mut context = Context::new(&SHA256);
    while let Some(bytes) = stream.data().await {
        let bytes = bytes.expect("bytes");
        let _ = stream.flow_control().release_capacity(bytes.len());
        context.update(&bytes);
    }
    text(context)
}

/// A server over TLS that speaks HTTP/2, if it may, and its authority.
async fn server() -> (Upstream, String) {
    let (acceptor, certificate) = acceptor(HOST);
    let upstream = Upstream::start("127.1.0.1", None, move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                http2(stream).await;
            } else {
                http1(stream).await;
            }
        }
    });
    (upstream.await, certificate)
}

/// Down, then up, on a connection of HTTP/1.1; what the server and the client make of it.
async fn by_http1(
    client: &mut Client<impl AsyncRead + AsyncWrite + Unpin>,
    origin: &str,
    fields: &str,
    bytes: usize,
) -> [String; 2] {
    client.send(format!("GET {origin}/down/{bytes} HTTP/1.1\r\n{fields}\r\n")).await;
    let head = client.answer_head().await;
    assert_eq!((head.status, head.field("content-length")), (200, Some(&*bytes.to_string())), "{head:?}");
    let down = hashed(&mut client.stream, std::mem::take(&mut client.held), bytes).await;
    client.send(format!("POST {origin}/up HTTP/1.1\r\n{fields}Content-Length: {bytes}\r\n\r\n")).await;
    for piece in pieces(bytes) {
        client.send(piece).await;
    }
    let answer: Answer = timeout(TIME_MAX, client.answer()).await.expect("in time");
    [down, answer.text()]
}

/// The same in streams of HTTP/2.
async fn by_http2(client: &Connection, origin: &str, bytes: usize) -> [String; 2] {
    let get = Request::get(format!("{origin}/down/{bytes}")).body(()).expect("request");
    let (response, _) = client.begin(get, true).await.expect("begun");
    let response = timeout(PATIENCE, response).await.expect("in time").expect("answer");
    assert_eq!(response.status(), 200);
    let down = hashed_stream(response.into_body()).await;
    let post = Request::post(format!("{origin}/up")).body(()).expect("request");
    let (response, mut stream) = client.begin(post, false).await.expect("begun");
    for piece in pieces(bytes) {
        send(&mut stream, &piece).await.expect("a piece");
    }
    stream.send_data(Bytes::new(), true).expect("the end");
    let reply = crate::streams::reply(response).await.expect("answer");
    [down, String::from_utf8_lossy(&reply.body).into_owned()]
}

/// Does it with a little, and then with all of it: the hashes are right, and the process has hardly grown.
async fn carried(site: &Site, what: &str, mut each: impl AsyncFnMut(usize) -> [String; 2]) {
    let little = 1 << 20;
    assert_eq!(each(little).await, [hash(little), hash(little)], "{what}");
    let (before, mut most) = (memory_kib(site.gateway.pid), 0.0_f64);
    let mut all = Box::pin(timeout(2 * TIME_MAX, each(BYTES)));
    let hashes = loop {
        tokio::select! {
            hashes = &mut all => break hashes.expect("in time"),
            () = tokio::time::sleep(Duration::from_millis(20)) => most = most.max(memory_kib(site.gateway.pid) - before),
        }
    };
    println!("{what}: {most:.0} KiB more");
    let whole = hash(BYTES);
    assert_eq!(hashes, [whole.clone(), whole], "{what}");
    assert!(most < GROWTH_KIB_MAX, "{what}: {most:.0} KiB more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_larger_than_any_bound_is_carried_whole_and_kept_nowhere() {
    let (upstream, pem) = server().await;
    let site = Site::apart(upstream, &pem, POLICY).await;
    // In clear: to the proxy, and by who knows that its server speaks HTTP/2.
    let clear = Upstream::start("127.1.0.1", None, |stream, _| http1(stream)).await;
    let host = format!("api.allowed.test:{}", clear.address.port());
    let (fields, mut client) =
        (format!("Host: {host}\r\n{}", site.gateway.web()), site.gateway.client().await);
    let origin = format!("http://{host}");
    carried(&site, "HTTP/1.1", async |bytes| by_http1(&mut client, &origin, &fields, bytes).await).await;
    let clear = Upstream::start("127.1.0.1", None, |stream, _| http2(stream)).await;
    let host = format!("api.allowed.test:{}", clear.address.port());
    let (client, answer) = site.gateway.connect(&host).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let (client, origin) = (Connection::over(client.stream).await, format!("http://{host}"));
    carried(&site, "HTTP/2", async |bytes| by_http2(&client, &origin, bytes).await).await;
    // Within TLS that is read.
    let (mut client, fields) = (site.inside().await, format!("Host: {}\r\n", site.host()));
    carried(&site, "HTTP/1.1 within TLS", async |bytes| by_http1(&mut client, "", &fields, bytes).await)
        .await;
    let (client, origin) = (inside(&site).await, format!("https://{}", site.host()));
    carried(&site, "HTTP/2 within TLS", async |bytes| by_http2(&client, &origin, bytes).await).await;
}
