//! SPIFFE IDs (SPIFFE-ID section 2), in their one spelling.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::quote::quote;

/// Longest ID, bytes (section 2.3).
pub const SPIFFE_ID_BYTES_MAX: usize = 2048;
/// Longest trust domain, bytes (section 2.3).
const DOMAIN_BYTES_MAX: usize = 255;
const SCHEME: &str = "spiffe://";

/// The name of a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomainName(String);

/// `spiffe://trust-domain/path`. The path is empty, or begins with `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    domain: TrustDomainName,
    path: String,
}

/// Why text is no SPIFFE ID. The quoted text is escaped and shortened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Beyond [`SPIFFE_ID_BYTES_MAX`].
    #[error("a SPIFFE ID has at most {SPIFFE_ID_BYTES_MAX} bytes")]
    TooLong,
    /// Another scheme.
    #[error("`{0}` is not a SPIFFE ID: it begins with `spiffe://`, in lowercase")]
    Scheme(String),
    /// Not the name of a trust domain.
    #[error("`{0}` is not a trust domain: use 1 to {DOMAIN_BYTES_MAX} of a-z, 0-9, `-`, `_` and `.`")]
    Domain(String),
    /// A segment of the path is empty, `.` or `..`, or has other characters.
    #[error(
        "`{0}` is not the path of a SPIFFE ID: segments are of a-z, A-Z, 0-9, `-`, `_` and `.`, and none is empty, `.` or `..`"
    )]
    Path(String),
}

// === impl TrustDomainName ===

impl TrustDomainName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomainName {
    type Err = SpiffeIdError;

    /// Parses `example.org`; an ID or URL is refused.
    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let may = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
        if (1..=DOMAIN_BYTES_MAX).contains(&text.len()) && text.bytes().all(may) {
            Ok(TrustDomainName(text.to_owned()))
        } else {
            Err(SpiffeIdError::Domain(quote(text)))
        }
    }
}

impl TryFrom<String> for TrustDomainName {
    type Error = SpiffeIdError;

    fn try_from(text: String) -> Result<Self, SpiffeIdError> {
        text.parse()
    }
}

impl From<TrustDomainName> for String {
    fn from(name: TrustDomainName) -> String {
        name.0
    }
}

impl fmt::Display for TrustDomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl SpiffeId ===

impl SpiffeId {
    /// The trust domain.
    #[must_use]
    pub fn domain(&self) -> &TrustDomainName {
        &self.domain
    }

    /// The path: empty for the trust domain itself, else `/` and its segments.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A segment of the path, from 0.
    #[must_use]
    pub fn segment(&self, index: usize) -> Option<&str> {
        self.path.split('/').nth(index.checked_add(1)?)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > SPIFFE_ID_BYTES_MAX {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| SpiffeIdError::Scheme(quote(text)))?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let domain: TrustDomainName = domain.parse()?;
        let may = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(may);
        // The first piece is what is before the first slash: nothing.
        if path.split('/').skip(1).all(is_segment) {
            Ok(SpiffeId { domain, path: path.to_owned() })
        } else {
            Err(SpiffeIdError::Path(quote(path)))
        }
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeIdError;

    fn try_from(text: String) -> Result<Self, SpiffeIdError> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> String {
        id.to_string()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.domain, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(&str, &str), &str>) {
        match (text.parse::<SpiffeId>(), expected) {
            (Ok(id), Ok((domain, path))) => {
                assert_eq!((id.domain().as_str(), id.path()), (domain, path), "`{text}`");
                assert_eq!(id.to_string(), text);
            }
            (Err(error), Err(wanted)) => {
                assert!(error.to_string().contains(wanted), "`{text}`: {error}");
                assert!(error.to_string().len() < 700, "{error}");
            }
            (parsed, _) => panic!("`{text}`: {parsed:?}, wanted {expected:?}"),
        }
    }

    #[test]
    fn ids() {
        let long_domain = "d".repeat(255);
        let long_path = format!("/{}", "p".repeat(SPIFFE_ID_BYTES_MAX - SCHEME.len() - 2));
        check("spiffe://example.org", Ok(("example.org", "")));
        check("spiffe://example.org/ns/prod/sa/Web_1.x-y", Ok(("example.org", "/ns/prod/sa/Web_1.x-y")));
        check("spiffe://1.2.3.4/a", Ok(("1.2.3.4", "/a")));
        check("spiffe://_._/.../a..b", Ok(("_._", "/.../a..b")));
        check(&format!("spiffe://{long_domain}/a"), Ok((&long_domain, "/a")));
        check(&format!("spiffe://d{long_path}"), Ok(("d", &long_path)));
        check(&format!("spiffe://d{long_path}p"), Err("at most 2048"));
        for text in
            ["", "example.org", "SPIFFE://d/a", "http://d/a", "spiffe:/d/a", "spiffe:d", " spiffe://d"]
        {
            check(text, Err("begins with `spiffe://`"));
        }
        for text in [
            "spiffe://",
            "spiffe:///a",
            "spiffe://D/a",
            "spiffe://d:80/a",
            "spiffe://u@d/a",
            "spiffe://d%41/a",
            "spiffe://d?q",
            "spiffe://d#f",
            "spiffe://[::1]/a",
            "spiffe://dé/a",
            "spiffe://d\0/a",
            "spiffe://d ",
            "spiffe://xn--é",
        ] {
            check(text, Err("is not a trust domain"));
        }
        check(&format!("spiffe://{long_domain}d/a"), Err("is not a trust domain"));
        for text in [
            "spiffe://d/",
            "spiffe://d//a",
            "spiffe://d/a/",
            "spiffe://d/a//b",
            "spiffe://d/.",
            "spiffe://d/..",
            "spiffe://d/a/../b",
            "spiffe://d/a/./b",
            "spiffe://d/a?q",
            "spiffe://d/a#f",
            "spiffe://d/a%20b",
            "spiffe://d/a b",
            "spiffe://d/é",
            "spiffe://d/a\n",
            "spiffe://d/a\0",
            "spiffe://d/a:b",
            "spiffe://d/a\\b",
            "spiffe://d/a;b",
        ] {
            check(text, Err("is not the path of a SPIFFE ID"));
        }
    }

    #[test]
    fn segments() {
        let id: SpiffeId = "spiffe://d/ns/prod".parse().unwrap();
        assert_eq!([0, 1, 2].map(|n| id.segment(n)), [Some("ns"), Some("prod"), None]);
        let root: SpiffeId = "spiffe://d".parse().unwrap();
        assert_eq!([0, usize::MAX].map(|n| root.segment(n)), [None, None]);
    }

    proptest::proptest! {
        #[test]
        fn what_is_parsed_is_printed_as_it_was(text in "(spiffe://)?[a-z0-9./%:A-Z_-]{0,60}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                assert_eq!(id.to_string(), text);
            }
        }
    }
}
