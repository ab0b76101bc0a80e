//! Fields by what they are, whatever they say: how many bytes they may have, and which a compression may remember.

use http::HeaderMap;
use pingora_error::Result;
use pingora_http::RequestHeader;

use crate::limit;

/// Fields that hold credentials.
const SECRET: [&str; 6] =
    ["authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "x-goog-api-key"];

/// Whether the head or the trailers of a server's answer have more than is passed on.
#[must_use]
pub fn is_large(fields: &HeaderMap) -> bool {
    let bytes = fields.iter().map(|(name, value)| name.as_str().len() + value.len());
    bytes.sum::<usize>() > limit::ANSWER_HEAD_BYTES
}

/// Whether a body comes in a coding of its transfer that nobody here takes off (RFC 9112 section 7): Pingora looks at the last one
/// named alone, so that what is read would be what it is within.
#[must_use]
pub(super) fn is_recoded(fields: &HeaderMap) -> bool {
    let mut codings = fields.get_all(http::header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => false,
        (Some(coding), None) => !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => true,
    }
}

/// Takes trailers away that say more than how a call of gRPC ended, in a number: of an answer that is read, nothing goes on that was
/// not looked at.
pub(super) fn keep_status(trailers: &mut HeaderMap) {
    let is_number =
        |value: &http::HeaderValue| value.len() <= 2 && value.as_bytes().iter().all(u8::is_ascii_digit);
    let status = trailers.get("grpc-status").filter(|value| is_number(value)).cloned();
    trailers.clear();
    if let Some(status) = status {
        trailers.insert("grpc-status", status);
    }
}

/// Has credentials never be remembered by a connection's compression (RFC 7541 section 7.1.3).
pub(super) fn keep_secret(request: &mut RequestHeader) -> Result<()> {
    for name in SECRET {
        let values: Vec<_> = request.headers.get_all(name).iter().cloned().collect();
        if !values.is_empty() {
            request.remove_header(name);
        }
        for mut value in values {
            value.set_sensitive(true);
            request.append_header(name, value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_marked_and_keep_their_values() {
        let mut request = RequestHeader::build("GET", b"/", None).expect("head");
        for (name, value) in [("cookie", "a"), ("cookie", "b"), ("accept", "c"), ("x-api-key", "d")] {
            request.append_header(name, value).expect("field");
        }
        keep_secret(&mut request).expect("marked");
        let is_secret = |name: &str| request.headers.get_all(name).iter().all(|value| value.is_sensitive());
        assert!(is_secret("cookie") && is_secret("x-api-key") && !is_secret("accept"));
        assert_eq!(request.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(request.headers.len(), 4);
    }

    #[test]
    fn a_transfer_has_one_coding() {
        let of = |values: &[&str]| {
            let mut fields = HeaderMap::new();
            for value in values {
                fields.append("transfer-encoding", value.parse().expect("value"));
            }
            is_recoded(&fields)
        };
        assert!([&[][..], &["chunked"], &[" Chunked "]].into_iter().all(|values| !of(values)));
        for values in [
            &["deflate, chunked"][..],
            &["gzip", "chunked"],
            &["chunked", "chunked"],
            &["chunked, chunked"],
            &["gzip"],
            &["identity"],
            &[""],
        ] {
            assert!(of(values), "{values:?}");
        }
    }

    #[test]
    fn of_what_is_read_trailers_tell_a_number() {
        let mut trailers = HeaderMap::new();
        for (name, value) in [("grpc-status", "13"), ("grpc-message", "AKIA"), ("x-any", "secret")] {
            trailers.append(name, value.parse().expect("value"));
        }
        keep_status(&mut trailers);
        assert_eq!(
            trailers.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect::<Vec<_>>(),
            [("grpc-status", &b"13"[..])]
        );
        let mut trailers = HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            http::HeaderValue::from_static("sk-1"),
        )]);
        keep_status(&mut trailers);
        assert!(trailers.is_empty());
    }

    #[test]
    fn what_is_large_is_told_by_all_fields_together() {
        let mut fields = HeaderMap::new();
        fields.append("a", "x".repeat(limit::ANSWER_HEAD_BYTES - 2).parse().expect("value"));
        assert!(!is_large(&fields));
        fields.append("b", "x".parse().expect("value"));
        assert!(is_large(&fields));
    }
}
