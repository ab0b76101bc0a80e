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
    let fields: Vec<_> =
        parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let uri = &parts.uri;
    let request = Request {
        method: parts.method.as_str(),
        scheme: uri.scheme_str(),
        authority: uri.authority().map(http::uri::Authority::as_str),
        path: uri.path_and_query().map(http::uri::PathAndQuery::as_str),
        fields: &fields,
        is_whole,
    };
    let role = match place {
        Place::Explicit { .. } => Role::Proxy,
        Place::Read(_) => Role::Server { tls: true },
        Place::Transparent { .. } | Place::Tunnel { .. } => Role::Server { tls: false },
    };
    let size = fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    let head_bytes = size + uri.path().len() + request.method.len();
    match judge(&request, role, place) {
        Ok((admitted, head)) => Asked { admitted: Ok(admitted), head, head_bytes },
        Err(reason) => Asked { admitted: Err(reason), head: nothing(), head_bytes },
    }
}

fn judge(request: &Request<'_>, role: Role, place: &Place) -> Result<(Admitted, RequestHeader), DropReason> {
    let malformed = |error: &dyn std::fmt::Display| {
        tracing::debug!(%error, "refused head");
        DropReason::HttpMalformed
    };
    // It may hold a credential; what goes on does not.
    let text = Zeroizing::new(to_http1(request, role).map_err(|error| malformed(&error))?);
    let head = http1::parse(&text).map_err(|error| malformed(&error))?;
    let (mut admitted, rewritten) = admit(&head, place)?;
    admitted.is_http2 = true;
    let head = header(&rewritten).ok_or(DropReason::HttpMalformed)?;
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
