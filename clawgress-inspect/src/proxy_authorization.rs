//! `Proxy-Authorization`: `Basic` (RFC 7617) with an agent's name and its API key, or `Bearer` (RFC 6750) with a token.
//!
//! Must never log, compare or keep the key: its buffers are wiped when dropped.

use std::fmt;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

/// Longest header value looked at, bytes: an id of 127 and a key of 82 take about 290 in base64.
pub const VALUE_BYTES_MAX: usize = 1024;

/// RFC 4648 section 4; some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A user name and a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The agent's id, as sent.
    pub user: String,
    /// The API key, as sent; wiped when dropped.
    pub secret: Zeroizing<String>,
}

/// Why a header value holds no credential. Never shows any part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Beyond [`VALUE_BYTES_MAX`].
    #[error("the credential has more than {VALUE_BYTES_MAX} bytes")]
    TooLong,
    /// Another scheme.
    #[error("only Basic credentials are accepted")]
    Scheme,
    /// Not base64 of text.
    #[error("the credential is not base64 of UTF-8 text")]
    Encoding,
    /// Not `agent:key`, or with control characters.
    #[error("the credential is not of the form agent:key")]
    Form,
}

/// Parses a header value.
///
/// # Errors
/// If it is not `Basic` and base64 of `user:secret`, both present and without control characters.
pub fn parse(value: &[u8]) -> Result<Credential, CredentialError> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(CredentialError::TooLong);
    }
    let value = value.trim_ascii();
    let (scheme, rest) = value.split_at_checked(5).ok_or(CredentialError::Scheme)?;
    if !scheme.eq_ignore_ascii_case(b"basic") || !rest.starts_with(b" ") {
        return Err(CredentialError::Scheme);
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(VALUE_BYTES_MAX));
    BASE64.decode_vec(rest.trim_ascii(), &mut bytes).map_err(|_| CredentialError::Encoding)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| CredentialError::Encoding)?;
    // RFC 7617 section 2: the user name has no colon, and control characters are forbidden.
    let (user, secret) = text.split_once(':').ok_or(CredentialError::Form)?;
    if user.is_empty() || secret.is_empty() || text.chars().any(char::is_control) {
        return Err(CredentialError::Form);
    }
    Ok(Credential { user: user.to_owned(), secret: Zeroizing::new(secret.to_owned()) })
}

/// The token of a header value of the scheme `Bearer`; `None`: it is of another scheme. What is no `b64token`
/// (RFC 6750 section 2.1) gives the empty token, which nobody accepts.
#[must_use]
pub fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, rest) = value.trim_ascii().split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"bearer") || rest.first().is_some_and(|b| *b != b' ') {
        return None;
    }
    let is_token =
        |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=');
    let token = std::str::from_utf8(rest.trim_ascii()).ok().filter(|t| t.as_bytes().iter().all(is_token));
    Some(token.unwrap_or_default())
}

/// The header value that [`parse`] reads as `user` and `secret`.
#[must_use]
pub fn encode(user: &str, secret: &str) -> String {
    let text = Zeroizing::new(format!("{user}:{secret}"));
    format!("Basic {}", BASE64.encode(text.as_bytes()))
}

// === impl Credential ===

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &str, want: Result<(&str, &str), CredentialError>) {
        let got = parse(value.as_bytes());
        let got = got.as_ref().map(|c| (c.user.as_str(), c.secret.as_str()));
        assert_eq!(got.map_err(|e| *e), want, "{value}");
    }

    #[test]
    fn credentials_are_parsed_or_refused() {
        check("Basic YWdlbnQ6a2V5", Ok(("agent", "key")));
        check("bAsIc   YWdlbnQ6a2V5 ", Ok(("agent", "key")));
        check("Basic YWdlbnQ6azpl", Ok(("agent", "k:e")));
        check("Basic YTpi", Ok(("a", "b")));
        check("Basic YTpiYw==", Ok(("a", "bc")));
        check("Basic YTpiYw", Ok(("a", "bc")));
        check("Basic", Err(CredentialError::Scheme));
        check("BasicYWdlbnQ6a2V5", Err(CredentialError::Scheme));
        check("Bearer YWdlbnQ6a2V5", Err(CredentialError::Scheme));
        check("", Err(CredentialError::Scheme));
        check("Basic !!!", Err(CredentialError::Encoding));
        check("Basic YW dlbnQ6a2V5", Err(CredentialError::Encoding));
        check("Basic //79", Err(CredentialError::Encoding));
        check("Basic YWdlbnQ=", Err(CredentialError::Form));
        check("Basic OmtleQ==", Err(CredentialError::Form));
        check("Basic YWdlbnQ6", Err(CredentialError::Form));
        check("Basic YQBiOmM=", Err(CredentialError::Form));
        check("Basic YToKYg==", Err(CredentialError::Form));
        check(&format!("Basic {}", "A".repeat(1100)), Err(CredentialError::TooLong));
    }

    #[test]
    fn tokens_are_told_from_other_credentials() {
        for (value, expected) in [
            ("Bearer a.b-c_d", Some("a.b-c_d")),
            ("bEARER   a.b.c= ", Some("a.b.c=")),
            ("Bearer", Some("")),
            ("Bearer ", Some("")),
            ("Bearer a b", Some("")),
            ("Bearer a,b", Some("")),
            ("Bearer a\0b", Some("")),
            ("Bearer é", Some("")),
            ("Bearera.b.c", None),
            ("Bearer\ta.b.c", None),
            ("Basic YTpi", None),
            ("", None),
        ] {
            assert_eq!(bearer(value.as_bytes()), expected, "{value}");
        }
        assert_eq!(bearer(b"Bearer \xff"), Some(""));
    }

    #[test]
    fn what_is_encoded_is_parsed() {
        let credential = parse(encode("acme/web", "k:e:y").as_bytes()).expect("valid");
        assert_eq!((credential.user.as_str(), credential.secret.as_str()), ("acme/web", "k:e:y"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let credential = parse(b"Basic YWdlbnQ6a2V5").expect("valid");
        assert!(!format!("{credential:?}").contains("key"));
    }
}
