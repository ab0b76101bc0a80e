//! Files below a directory, as a mirror of packages has them: `index.html` of a directory, and no listing.

use std::fs;
use std::path::{Component, Path};

use bytes::Bytes;
use hyper::{Response, StatusCode};
use serde_json::json;

use super::http::{AnyBody, json, reply};

/// The file at `path`, or that there is none.
pub(super) fn respond(root: &Path, path: &str) -> Response<AnyBody> {
    let path = Path::new(path);
    let found = root.join(path);
    let found = if found.is_dir() { found.join("index.html") } else { found };
    let is_below = path.components().all(|part| matches!(part, Component::Normal(_)));
    match fs::read(&found) {
        Ok(bytes) if is_below => reply(StatusCode::OK, kind(&found), Bytes::from(bytes)),
        _ => json(StatusCode::NOT_FOUND, &json!({"error": "no such file"})),
    }
}

/// What clients are told that it is: what has no extension is what registries answer with.
fn kind(path: &Path) -> &'static str {
    match path.extension().and_then(std::ffi::OsStr::to_str) {
        Some("html") => "text/html",
        None | Some("json") => "application/json",
        Some(_) => "application/octet-stream",
    }
}
