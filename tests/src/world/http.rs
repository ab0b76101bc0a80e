//! Web servers: HTTP/1.1 in clear and over TLS, under every name of the zone, and HTTP/2 over TLS under one. They tell what they
//! saw, to the client and to the lab; and they serve files and repositories.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::server::Acceptor;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::LazyConfigAcceptor;

use super::control::{Seen, State};
use super::pki::{HTTP2, Servers};
use super::{files, git, llm};
use crate::plan;

/// A body of any kind.
pub(super) type AnyBody = BoxBody<Bytes, Infallible>;

/// Largest request body read, bytes.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Time for a TLS handshake and for a request's header.
const HEADER_TIME_MAX: Duration = Duration::from_secs(20);
/// Largest body `/bytes/N` makes, bytes.
const BYTES_MAX: usize = 256 << 20;

/// How a connection came.
#[derive(Clone, Copy)]
struct Manner {
    peer: SocketAddr,
    tls: bool,
    two: bool,
}

pub(super) async fn serve(listener: TcpListener, tls: Option<Servers>, state: Arc<State>) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        let manner = Manner { peer, tls: tls.is_some(), two: false };
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match tls {
                None => converse(stream, manner, state).await,
                Some(servers) => {
                    let handshake = async {
                        let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
                        let config = servers.of(begun.client_hello().server_name());
                        begun.into_stream(config).await
                    };
                    if let Ok(Ok(stream)) = tokio::time::timeout(HEADER_TIME_MAX, handshake).await {
                        let two = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
                        converse(stream, Manner { two, ..manner }, state).await;
                    }
                }
            }
        });
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    manner: Manner,
    state: Arc<State>,
) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(respond(request, manner, state).await) }
    });
    // What a client does to its connection is no concern of the server's: errors end it, no more.
    if manner.two {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        return;
    }
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(request: Request<Incoming>, manner: Manner, state: Arc<State>) -> Response<AnyBody> {
    let Manner { peer, tls, .. } = manner;
    let (head, body) = request.into_parts();
    let headers: BTreeMap<String, String> = head
        .headers
        .iter()
        .map(|(n, v)| (n.as_str().to_owned(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
        .collect();
    let seen = Seen {
        tls,
        host: match headers.get(HOST.as_str()) {
            Some(host) => host.clone(),
            None => head.uri.authority().map(ToString::to_string).unwrap_or_default(),
        },
        method: head.method.to_string(),
        target: head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string),
        headers,
        peer: peer.to_string(),
    };
    state.saw(seen.clone());
    let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
        return json(StatusCode::BAD_REQUEST, &json!({"error": "the body can't be read"}));
    };
    let body = body.to_bytes();
    let path = head.uri.path();
    if seen.host.split(':').next() == Some(plan::LLM) && path.starts_with("/v1/") {
        let hold = seen.headers.get("x-lab-hold").cloned();
        return llm::respond(path, &body, hold, state);
    }
    if let Some(path) = path.strip_prefix("/files/") {
        return files::respond(&state.dir.join(super::FILES), path);
    }
    if path.starts_with("/git/") {
        return git::respond(&state.dir.join(super::REPOSITORIES), &head, body).await;
    }
    if let Some(n) = path.strip_prefix("/bytes/").and_then(|n| n.parse::<usize>().ok()) {
        return reply(StatusCode::OK, "application/octet-stream", filler(n.min(BYTES_MAX)));
    }
    let told = json!({
        "server": "clawgress lab", "tls": tls, "http2": manner.two, "host": seen.host, "method": seen.method,
        "target": seen.target, "headers": seen.headers, "body_bytes": body.len(),
    });
    json(StatusCode::OK, &told)
}

/// So many bytes; small answers share them.
fn filler(n: usize) -> Bytes {
    static SHARED: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![b'x'; 8 << 20]));
    if n <= SHARED.len() { SHARED.slice(..n) } else { Bytes::from(vec![b'x'; n]) }
}

pub(super) fn json(status: StatusCode, value: &serde_json::Value) -> Response<AnyBody> {
    reply(status, "application/json", Bytes::from(format!("{value}\n")))
}

pub(super) fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Response<AnyBody> {
    with_body(status, kind, Full::new(body).boxed())
}

pub(super) fn with_body(status: StatusCode, kind: &'static str, body: AnyBody) -> Response<AnyBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

/// A body that grows as its sender sends.
pub(super) struct Growing(pub(super) mpsc::Receiver<Bytes>);

impl Body for Growing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    }
}
