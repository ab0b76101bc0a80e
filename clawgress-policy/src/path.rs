//! Paths of requests: the one spelling that policy is asked about.
//!
//! RFC 3986 (section 2.2) lets a client write some characters plainly or percent-encoded, and clients differ: JavaScript's
//! `encodeURIComponent` and the AWS SDKs encode a `:` that others write. Servers decode them before they act. Must never make one of
//! two paths that a server takes apart by its segments: `%2F` stays, and is asked about as a slash besides ([`separated`]); `%5C`
//! is refused before.

use std::borrow::Cow;
use std::fmt::Write as _;

/// What ends the error of a decision on a request that would be changed by one way to take its path alone.
pub const APART: &str =
    "changes the request by one way to take an encoded slash in its path, and not by the other";

/// `path`, without a query, as policy is asked about it: what may stand plainly does (`%3a` is `:`), and what can't is encoded in
/// upper case (`%c3%bc` is `%C3%BC`). The normal form of a normal form is itself; two paths have the same one only if they decode to
/// the same bytes.
#[must_use]
pub fn normal(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((plain, behind)) = rest.split_once('%') {
        out.push_str(plain);
        match behind.get(..2).and_then(byte) {
            Some(b) => {
                if is_plain(b) {
                    out.push(char::from(b));
                } else {
                    let _ = write!(out, "%{b:02X}");
                }
                rest = behind.get(2..).unwrap_or_default();
            }
            // It encodes nothing: no request has it.
            None => {
                out.push('%');
                rest = behind;
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The same path as a server has it that takes an encoded slash for one: `/@scope/name` for `/@scope%2Fname`. `None` where there is
/// none in it, and it means one thing alone. Servers decode all of them or none.
#[must_use]
pub fn separated(path: &str) -> Option<String> {
    let has = |path: &str| path.as_bytes().windows(3).any(|three| three.eq_ignore_ascii_case(b"%2f"));
    (path.contains('%') && has(path)).then(|| path.replace("%2F", "/").replace("%2f", "/"))
}

/// The byte that two digits stand for.
fn byte(digits: &str) -> Option<u8> {
    let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Whether a byte may stand in a path as it is, and means the same there: all graphic ones but those that end a path or a segment,
/// that encode, or that no URI has.
fn is_plain(b: u8) -> bool {
    b.is_ascii_graphic() && !matches!(b, b'/' | b'\\' | b'?' | b'#' | b'%' | b'"' | b'<' | b'>' | b'`')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_has_one_normal_form() {
        for (path, wanted) in [
            ("/", "/"),
            ("/v1/x:delete", "/v1/x:delete"),
            ("/v1/x%3Adelete", "/v1/x:delete"),
            ("/v1/x%3adelete", "/v1/x:delete"),
            ("/%21%24%26%27%28%29%2A%2b%2C%3B%3d%40", "/!$&'()*+,;=@"),
            ("/%5b%5D%7b%7D%7c%5e", "/[]{}|^"),
            ("/%c3%bc", "/%C3%BC"),
            ("/a%20b%2f%5c%3f%23%25%22%3c%3e%60%7f", "/a%20b%2F%5C%3F%23%25%22%3C%3E%60%7F"),
            // One decoding, not two.
            ("/a%253A", "/a%253A"),
            ("/%", "/%"),
            ("/%3", "/%3"),
            ("/%+3", "/%+3"),
            ("/%\u{fc}", "/%\u{fc}"),
        ] {
            assert_eq!(normal(path), wanted, "{path}");
        }
    }

    #[test]
    fn an_encoded_slash_may_be_one() {
        for (path, wanted) in [
            ("/@scope%2Fname", Some("/@scope/name")),
            ("/@scope%2fname", Some("/@scope/name")),
            ("/projects/a%2Fb%2fc/files/d%2Fe", Some("/projects/a/b/c/files/d/e")),
            ("/@scope/name", None),
            ("/a%20b", None),
            // One decoding, not two.
            ("/a%252Fb", None),
            ("/a%25%2F", Some("/a%25/")),
        ] {
            assert_eq!(separated(path).as_deref(), wanted, "{path}");
        }
    }

    fn decode(path: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = path;
        while let Some((plain, behind)) = rest.split_once('%') {
            out.extend_from_slice(plain.as_bytes());
            out.push(byte(&behind[..2]).unwrap());
            rest = &behind[2..];
        }
        out.extend_from_slice(rest.as_bytes());
        out
    }

    proptest! {
        /// However it is spelled, it is asked about once, and nothing else is taken for it.
        #[test]
        fn spellings_meet_and_others_do_not(bytes in prop::collection::vec((any::<u8>(), 0..3_u8), 0..12)) {
            let spell = |shift: u8| {
                let mut out = String::from("/");
                for (b, how) in &bytes {
                    match (how + shift) % 3 {
                        0 if is_plain(*b) => out.push(char::from(*b)),
                        1 => { let _ = write!(out, "%{b:02x}"); }
                        _ => { let _ = write!(out, "%{b:02X}"); }
                    }
                }
                out
            };
            let one = normal(&spell(0)).into_owned();
            for other in [spell(1), spell(2), one.clone()] {
                prop_assert_eq!(&one[..], &*normal(&other));
            }
            // What it decodes to tells it apart from all others.
            let mut decoded = vec![b'/'];
            decoded.extend(bytes.iter().map(|(b, _)| *b));
            prop_assert_eq!(decode(&one), decoded);
        }
    }
}
