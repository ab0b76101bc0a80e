//! What a stream asks for: its head as decoded, said again in HTTP/1.1, judged by its form, and rewritten.

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::http1;
use clawgress_inspect::http2::{Request, Role, to_http1};
use http::request::Parts;
use pingora_http::RequestHeader;
use zeroize::Zeroizing;

use crate::plain_http::{Admitted, Place, admit};

/// A stream's head.
#[derive(Debug)]
pub struct Asked {
    /// What it asks for, or why that is refused.
    pub admitted: Result<Admitted, DropReason>,
    /// What is sent on; of what is refused, something that means nothing.
    pub head: RequestHeader,
    /// About its bytes, before they were compressed.
    pub head_bytes: usize,
}

/// What `parts` ask for, of a client whose requests are taken for what `place` says; `is_whole` if that is all of it.
pub fn ask(parts: &Parts, is_whole: bool, place: &Place) -> Asked {
    let fields = fields(parts);
    let request = request(parts, &fields, is_whole);
    let role = match place {
        Place::Explicit { .. } => Role::Proxy,
        Place::Read(_) => Role::Server { tls: true },
        Place::Transparent { .. } | Place::Tunnel { .. } => Role::Server { tls: false },
    };
    let size = fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    let head_bytes = size + request.path.map_or(0, str::len) + request.method.len();
    match judge(&request, role, place) {
        Ok((admitted, head)) => Asked { admitted: Ok(admitted), head, head_bytes },
        Err(reason) => Asked { admitted: Err(reason), head: nothing(), head_bytes },
    }
}

/// Whether `parts` ask a proxy for a tunnel.
pub fn is_tunnel(parts: &Parts, place: &Place) -> bool {
    parts.method == http::Method::CONNECT && matches!(place, Place::Explicit { .. })
}

/// The head, in HTTP/1.1, of a stream that asks for a tunnel.
///
/// # Errors
/// [`DropReason::HttpMalformed`].
pub fn tunnel(parts: &Parts) -> Result<Zeroizing<Vec<u8>>, DropReason> {
    // What follows is the tunnel's.
    text(&request(parts, &fields(parts), true), Role::Proxy)
}

fn fields(parts: &Parts) -> Vec<(&str, &[u8])> {
    parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
}

fn request<'a>(parts: &'a Parts, fields: &'a [(&'a str, &'a [u8])], is_whole: bool) -> Request<'a> {
    let uri = &parts.uri;
    Request {
        method: parts.method.as_str(),
        scheme: uri.scheme_str(),
        authority: uri.authority().map(http::uri::Authority::as_str),
        path: uri.path_and_query().map(http::uri::PathAndQuery::as_str),
        fields,
        is_whole,
    }
}

/// It may hold a credential; what goes on does not.
fn text(request: &Request<'_>, role: Role) -> Result<Zeroizing<Vec<u8>>, DropReason> {
    let text = to_http1(request, role).map_err(|error| {
        tracing::debug!(%error, "refused head");
        DropReason::HttpMalformed
    });
    text.map(Zeroizing::new)
}

fn judge(request: &Request<'_>, role: Role, place: &Place) -> Result<(Admitted, RequestHeader), DropReason> {
    let text = text(request, role)?;
    let head = http1::parse(&text).map_err(|error| {
        tracing::debug!(%error, "refused head");
        DropReason::HttpMalformed
    })?;
    let (mut admitted, rewritten) = admit(&head, place)?;
    admitted.is_http2 = true;
    let head = header(&rewritten).ok_or(DropReason::HttpMalformed)?;
    admitted.keep(rewritten);
    Ok((admitted, head))
}

/// The head that `rewritten` is, but for what frames a body in HTTP/1.
fn header(rewritten: &[u8]) -> Option<RequestHeader> {
    let head = http1::parse(rewritten).ok()?;
    let mut header = RequestHeader::build(head.method, head.target, Some(head.fields.len())).ok()?;
    for field in &head.fields {
        if !field.name.eq_ignore_ascii_case("transfer-encoding") {
            header.append_header(field.name.to_owned(), field.value).ok()?;
        }
    }
    Some(header)
}

/// What stands for a head that was refused.
fn nothing() -> RequestHeader {
    let mut parts = http::Request::new(()).into_parts().0;
    parts.headers.insert(http::header::HOST, http::HeaderValue::from_static("refused.invalid"));
    RequestHeader::from(parts)
}
