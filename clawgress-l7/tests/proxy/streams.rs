//! Clients and servers of HTTP/2.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::harness::PATIENCE;
use crate::upstream::{Seen, Upstream, http};

/// Bytes of the answer at `/large`.
pub const LARGE: usize = 60_000;

/// A stream that is not read while it is paused.
#[derive(Debug)]
pub struct Paused<S> {
    pub inner: S,
    pub pause: tokio::sync::watch::Receiver<bool>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Paused<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut pause = self.pause.clone();
        if *pause.borrow_and_update() {
            let waker = cx.waker().clone();
            tokio::spawn(async move {
                let _ = pause.wait_for(|is_paused| !is_paused).await;
                waker.wake();
            });
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_read(cx, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paused<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Bytes>,
    task: AbortHandle,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub fields: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Connection {
        Connection::with(&h2::client::Builder::new(), stream).await
    }

    /// With other windows than usual.
    pub async fn with(
        builder: &h2::client::Builder,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Connection {
        let (sender, connection) =
            timeout(PATIENCE, builder.handshake(stream)).await.expect("in time").expect("handshake");
        let task = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Connection { sender, task }
    }

    /// Begins a request; what follows of it is the caller's to send.
    pub async fn begin(
        &self,
        request: Request<()>,
        is_whole: bool,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut sender = timeout(PATIENCE, self.sender.clone().ready()).await.expect("in time")?;
        sender.send_request(request, is_whole)
    }

    /// Asks, and reads the whole answer.
    pub async fn ask(&self, request: Request<()>, body: &[u8]) -> Result<Reply, h2::Error> {
        let (response, mut stream) = self.begin(request, body.is_empty()).await?;
        let sending = async move {
            if !body.is_empty() {
                let _ = send(&mut stream, body).await;
                let _ = stream.send_data(Bytes::new(), true);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            reply = timeout(PATIENCE, reply(response)) => reply.expect("in time"),
            () = sending => unreachable!(),
        }
    }

    pub async fn get(&self, url: &str) -> Result<Reply, h2::Error> {
        self.ask(Request::get(url).body(()).expect("request"), b"").await
    }

    pub async fn post(&self, url: &str, body: &[u8]) -> Result<Reply, h2::Error> {
        self.ask(Request::post(url).body(()).expect("request"), body).await
    }

    /// Whether the connection ends.
    pub async fn is_closed(&self) -> bool {
        let ends = async {
            while self.sender.clone().ready().await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, ends).await.is_ok()
    }
}

impl Reply {
    pub fn reason(&self) -> &str {
        self.fields.get("x-clawgress-reason").map_or("none", |v| v.to_str().expect("text"))
    }

    pub fn said(&self) -> (u16, &str) {
        (self.status, self.reason())
    }
}

/// Sends as the other side takes it.
pub async fn send(stream: &mut SendStream<Bytes>, body: &[u8]) -> Result<(), h2::Error> {
    let mut left = Bytes::copy_from_slice(body);
    while !left.is_empty() {
        stream.reserve_capacity(left.len());
        let room = match stream.capacity() {
            0 => std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.transpose()?,
            room => Some(room),
        };
        let Some(room) = room else { return Ok(()) };
        stream.send_data(left.split_to(room.min(left.len())), false)?;
    }
    Ok(())
}

pub async fn reply(response: h2::client::ResponseFuture) -> Result<Reply, h2::Error> {
    let (head, mut stream) = response.await?.into_parts();
    let body = whole(&mut stream).await?;
    let trailers = stream.trailers().await?.unwrap_or_default();
    Ok(Reply { status: head.status.as_u16(), fields: head.headers, body, trailers })
}

async fn whole(stream: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let mut all = Vec::new();
    while let Some(bytes) = stream.data().await {
        let bytes = bytes?;
        stream.flow_control().release_capacity(bytes.len())?;
        all.extend_from_slice(&bytes);
    }
    Ok(all.into())
}

/// What ends TLS for `name`, with HTTP/2 or HTTP/1.1 in it, and its certificate as PEM.
pub fn acceptor(name: &str) -> (TlsAcceptor, String) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("certificate");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("config");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (TlsAcceptor::from(Arc::new(config)), made.cert.pem())
}

/// A server of HTTP/2 over TLS, for `name`, and its certificate.
pub async fn server(ip: &str, name: &str) -> (Upstream, String) {
    let (acceptor, certificate) = acceptor(name);
    let serve = move |stream: TcpStream, seen: Arc<Seen>| {
        let acceptor = acceptor.clone();
        async move {
            let port = stream.peer_addr().expect("address").port();
            let Ok(stream) = acceptor.accept(stream).await else { return };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                serve(stream, seen, port).await;
            } else {
                let _ = http(stream, port, &seen).await;
            }
        }
    };
    (Upstream::start(ip, None, serve).await, certificate)
}

/// A server of HTTP/2 in clear.
pub async fn clear_server(ip: &str) -> Upstream {
    Upstream::start(ip, None, |stream, seen| async move {
        let port = stream.peer_addr().expect("address").port();
        serve(stream, seen, port).await;
    })
    .await
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, seen: Arc<Seen>, port: u16) {
    // What some streams stall must not stall others here.
    let mut builder = h2::server::Builder::new();
    builder.initial_connection_window_size(16 * 1024 * 1024).max_header_list_size(1024 * 1024);
    let Ok(mut connection) = builder.handshake(stream).await else { return };
    while let Some(Ok((request, response))) = connection.accept().await {
        seen.ports.lock().push(port);
        tokio::spawn(answer(request, response, Arc::clone(&seen)));
    }
}

async fn answer(request: Request<RecvStream>, mut response: SendResponse<Bytes>, seen: Arc<Seen>) {
    let (head, mut stream) = request.into_parts();
    let fields =
        head.headers.iter().map(|(n, v)| format!("{n}: {}\n", String::from_utf8_lossy(v.as_bytes())));
    let fields: String = fields.collect();
    seen.requests.lock().push(format!("{} {} HTTP/2\n{fields}", head.method, head.uri));
    if head.uri.path() == "/stall" {
        // Nothing of the body is taken.
        let _ = std::future::poll_fn(|cx| response.poll_reset(cx)).await;
        return;
    }
    let mut body = Vec::new();
    while let Some(bytes) = stream.data().await {
        let Ok(bytes) = bytes else {
            seen.requests.lock().push(format!("reset {}", head.uri.path()));
            return;
        };
        let _ = stream.flow_control().release_capacity(bytes.len());
        seen.bytes.lock().extend_from_slice(&bytes);
        body.extend_from_slice(&bytes);
    }
    if let Ok(Some(trailers)) = stream.trailers().await {
        seen.requests.lock().push(format!("trailers {trailers:?}"));
    }
    let method = head.method;
    match head.uri.path() {
        "/echo" => {
            let Ok(mut sender) = response.send_response(Response::new(()), false) else { return };
            let _ = send(&mut sender, &body).await;
            let _ = sender.send_data(Bytes::new(), true);
        }
        path @ ("/trailers" | "/held-trailers") => {
            let kind = if path == "/trailers" { "application/grpc" } else { "text/plain" };
            let head = Response::builder().header("content-type", kind).body(()).expect("head");
            let Ok(mut sender) = response.send_response(head, false) else { return };
            let _ = sender.send_data("message".into(), false);
            let mut trailers = HeaderMap::new();
            for (name, value) in
                [("grpc-status", "0"), ("x-clawgress-reason", "forged"), ("set-cookie", "a=b")]
            {
                trailers.insert(name, value.parse().expect("value"));
            }
            let _ = sender.send_trailers(trailers);
        }
        "/v1/chat/completions" => said_before_trailers(&mut response).await,
        "/bare-trailers" => {
            let head = Response::builder().header("content-length", 0).body(()).expect("head");
            let Ok(mut sender) = response.send_response(head, false) else { return };
            let mut trailers = HeaderMap::new();
            for (name, value) in [("grpc-status", "0"), ("x-secret", "told behind nothing")] {
                trailers.insert(name, value.parse().expect("value"));
            }
            let _ = sender.send_trailers(trailers);
        }
        "/large" => {
            let Ok(mut sender) = response.send_response(Response::new(()), false) else { return };
            let _ = send(&mut sender, &vec![b'x'; LARGE]).await;
            let _ = sender.send_data(Bytes::new(), true);
        }
        "/large-trailers" => {
            let Ok(mut sender) = response.send_response(Response::new(()), false) else { return };
            let _ = sender.send_data("ok".into(), false);
            let mut trailers = HeaderMap::new();
            trailers.insert("large", "x".repeat(300_000).parse().expect("value"));
            let _ = sender.send_trailers(trailers);
        }
        "/wait" => {
            if let Ok(reason) = std::future::poll_fn(|cx| response.poll_reset(cx)).await {
                seen.requests.lock().push(format!("reset {reason:?}"));
            }
        }
        _ => {
            let head = Response::builder().header("content-length", 2).body(()).expect("head");
            let is_whole = method == http::Method::HEAD;
            let Ok(mut sender) = response.send_response(head, is_whole) else { return };
            if !is_whole {
                let _ = sender.send_data("ok".into(), true);
            }
        }
    }
}

/// What a model says, whose last event ends with trailers.
async fn said_before_trailers(response: &mut SendResponse<Bytes>) {
    let head = Response::builder().header("content-type", "text/event-stream").body(()).expect("head");
    let Ok(mut sender) = response.send_response(head, false) else { return };
    let said = r#"{"model":"m","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}"#;
    let usage = r#"{"model":"m","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;
    let all = format!("data: {said}\n\ndata: {usage}\n\ndata: [DONE]\n");
    let _ = send(&mut sender, all.as_bytes()).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("value"));
    let _ = sender.send_trailers(trailers);
}

/// A tunnel's stream, as its client has it.
pub async fn tunnel(connection: &Connection, request: Request<()>) -> Result<tokio::io::DuplexStream, Reply> {
    let (response, mut sender) = connection.begin(request, false).await.expect("begun");
    let response = timeout(PATIENCE, response).await.expect("in time").expect("answer");
    if response.status() != 200 {
        let (head, mut stream) = response.into_parts();
        let body = whole(&mut stream).await.expect("body");
        let (status, trailers) = (head.status.as_u16(), HeaderMap::new());
        return Err(Reply { status, fields: head.headers, body, trailers });
    }
    let mut receiver = response.into_body();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut reader, mut writer) = tokio::io::split(far);
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok(n @ 1..) = reader.read(&mut buffer).await {
            if send(&mut sender, &buffer[..n]).await.is_err() {
                return;
            }
        }
        let _ = sender.send_data(Bytes::new(), true);
    });
    tokio::spawn(async move {
        while let Some(bytes) = receiver.data().await {
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error) => {
                    eprintln!("{error:?}");
                    break;
                }
            };
            let _ = receiver.flow_control().release_capacity(bytes.len());
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    });
    Ok(near)
}
