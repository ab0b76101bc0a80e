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
    fn what_is_large_is_told_by_all_fields_together() {
        let mut fields = HeaderMap::new();
        fields.append("a", "x".repeat(limit::ANSWER_HEAD_BYTES - 2).parse().expect("value"));
        assert!(!is_large(&fields));
        fields.append("b", "x".parse().expect("value"));
        assert!(is_large(&fields));
    }
}
