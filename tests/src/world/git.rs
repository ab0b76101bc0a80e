//! Repositories over HTTP, by git's own `http-backend` (RFC 3875): what clients clone from and push to.

use std::path::Path;
use std::process::Stdio;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::http::{AnyBody, json};

/// What a request below `/git/` is answered.
pub(super) async fn respond(root: &Path, head: &Parts, body: Bytes) -> Response<AnyBody> {
    match run(root, head, body).await {
        Ok(response) => response,
        Err(error) => json(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": format!("git: {error:#}")})),
    }
}

async fn run(root: &Path, head: &Parts, body: Bytes) -> anyhow::Result<Response<AnyBody>> {
    let field = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        // It takes a push from whom the server knows alone.
        .env("REMOTE_USER", "lab")
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("REQUEST_METHOD", head.method.as_str())
        .env("PATH_INFO", head.uri.path().trim_start_matches("/git"))
        .env("QUERY_STRING", head.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", field("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", field("content-encoding"))
        .env("GIT_PROTOCOL", field("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().context("it can't be started")?;
    let mut input = child.stdin.take().context("no input")?;
    let write = async move {
        // It need not read all of it.
        let _ = input.write_all(&body).await;
    };
    let ((), output) = tokio::join!(write, child.wait_with_output());
    let output = output?.stdout;
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").context("it answered nothing")?;
    let (fields, rest) = output.split_at(end);
    let mut response = Response::builder();
    for line in std::str::from_utf8(fields)?.lines() {
        let (name, value) = line.split_once(": ").context("a field without a value")?;
        response = match name {
            "Status" => response.status(value.split(' ').next().unwrap_or_default()),
            name => response.header(name, value),
        };
    }
    let body = Bytes::copy_from_slice(rest.get(4..).unwrap_or_default());
    Ok(response.body(Full::new(body).boxed())?)
}
