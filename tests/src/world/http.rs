//! Web servers: HTTP/1.1 in clear and over TLS, under every name of the zone. They tell what they
//! saw, to the client and to the lab.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::control::{Seen, State};
use super::llm;
use crate::plan;

/// A body of any kind.
pub(super) type AnyBody = BoxBody<Bytes, Infallible>;

/// Largest request body read, bytes.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Time for a TLS handshake and for a request's header.
const HEADER_TIME_MAX: Duration = Duration::from_secs(20);
/// Largest body `/bytes/N` makes, bytes.
const BYTES_MAX: usize = 256 << 20;

pub(super) async fn serve(listener: TcpListener, tls: Option<Arc<ServerConfig>>, state: Arc<State>) {
    let tls = tls.map(TlsAcceptor::from);
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match tls {
                None => converse(stream, peer, false, state).await,
                Some(acceptor) => {
                    let handshake = tokio::time::timeout(HEADER_TIME_MAX, acceptor.accept(stream)).await;
                    if let Ok(Ok(stream)) = handshake {
                        converse(stream, peer, true, state).await;
                    }
                }
            }
        });
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    tls: bool,
    state: Arc<State>,
) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(respond(request, peer, tls, state).await) }
    });
    // What a client does to its connection is no concern of the server's: errors end it, no more.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(
    request: Request<Incoming>,
    peer: SocketAddr,
    tls: bool,
    state: Arc<State>,
) -> Response<AnyBody> {
    let (head, body) = request.into_parts();
    let headers: BTreeMap<String, String> = head
        .headers
        .iter()
        .map(|(n, v)| (n.as_str().to_owned(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
        .collect();
    let seen = Seen {
        tls,
        host: headers.get(HOST.as_str()).cloned().unwrap_or_default(),
        method: head.method.to_string(),
        target: head.uri.to_string(),
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
    if let Some(n) = path.strip_prefix("/bytes/").and_then(|n| n.parse::<usize>().ok()) {
        return reply(StatusCode::OK, "application/octet-stream", Bytes::from(vec![b'x'; n.min(BYTES_MAX)]));
    }
    let told = json!({
        "server": "clawgress lab", "tls": tls, "host": seen.host, "method": seen.method,
        "target": seen.target, "headers": seen.headers, "body_bytes": body.len(),
    });
    json(StatusCode::OK, &told)
}

pub(super) fn json(status: StatusCode, value: &serde_json::Value) -> Response<AnyBody> {
    reply(status, "application/json", Bytes::from(format!("{value}\n")))
}

fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Response<AnyBody> {
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
