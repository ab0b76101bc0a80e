//! Which protocol a client speaks, from the first bytes it sends.
//!
//! The answer only selects the parser that judges the bytes for good; it must never be taken for a
//! proof that they are well-formed. What some HTTP server would still read as a request must never be
//! called unknown: unknown bytes may be carried unread.

mod opening;

pub use opening::{Opening, Step};

/// Blanks and line ends skipped before the first word. Servers skip at least one empty line (RFC 9112
/// section 2.2); no line protocol begins with as many.
const LEADING_BYTES_MAX: usize = 64;
/// What introduces somebody else's first bytes to who expects that (HAProxy's `proxy-protocol.txt`, sections 2.1 and 2.2): the first
/// word of version 1 with its blank, and of version 2 as much of the signature as nobody else begins with.
const PROXY_1: &[u8] = b"PROXY ";
const PROXY_2: &[u8] = b"\r\n\r\n\0";
/// Longest first line looked at: line protocols end theirs below 1000 bytes (RFC 5321 section
/// 4.5.3.1.6). What is longer is left to the strict HTTP parser, which has bounds of its own.
const LINE_BYTES_MAX: usize = 1024;
/// By which a version begins (RFC 9112 section 2.3).
const VERSION: &[u8] = b"HTTP/";
/// Most bytes an answer ever takes.
pub const BYTES_MAX: usize = LEADING_BYTES_MAX + LINE_BYTES_MAX;

/// What the first bytes look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A TLS handshake record (RFC 8446 section 5.1).
    Tls,
    /// An HTTP/1 request line (RFC 9112 section 3), or what a lenient server would take for one.
    Http1,
    /// The HTTP/2 connection preface in clear (RFC 9113 section 3.4).
    Http2,
    /// A header of the PROXY protocol, behind which anything may follow: no client speaks it.
    Proxied,
    /// Something else.
    Unknown,
}

/// Classifies; `None` means that more bytes are needed. At most [`BYTES_MAX`] bytes are ever needed.
#[must_use]
pub fn sniff(bytes: &[u8]) -> Option<Protocol> {
    let leading = lines(bytes).0.len();
    if leading > LEADING_BYTES_MAX {
        return Some(Protocol::Http1);
    }
    match bytes.get(..leading + LINE_BYTES_MAX) {
        Some(most) => classify(most).or(Some(Protocol::Http1)),
        None => classify(bytes),
    }
}

/// What these are, however many.
fn classify(bytes: &[u8]) -> Option<Protocol> {
    match bytes {
        [] | [0x16] => None,
        // Record version 3.x: every TLS client, and SSL 3.0, which the ClientHello parser leaves to policy.
        [0x16, 3, ..] => Some(Protocol::Tls),
        _ if bytes.starts_with(b"PRI ") => Some(Protocol::Http2),
        _ if bytes.starts_with(PROXY_1) || bytes.starts_with(PROXY_2) => Some(Protocol::Proxied),
        _ => request_line(lines(bytes).1),
    }
}

/// What is skipped before the first word, and what begins with it.
fn lines(bytes: &[u8]) -> (&[u8], &[u8]) {
    let leading = bytes.iter().take_while(|b| blank(**b) || **b == b'\n').count();
    bytes.split_at_checked(leading).unwrap_or((bytes, &[]))
}

/// Whether a line is a request line: `GET` and anything (that is all of HTTP/0.9), or any method with
/// a version further on. Mail, file transfer and news begin with words in capitals too. Behind the first word nothing but a LF ends
/// the line: some servers take any other byte for one of a target.
fn request_line(line: &[u8]) -> Option<Protocol> {
    let mut word = true;
    for (n, byte) in line.iter().enumerate() {
        let rest = line.get(n + 1..).unwrap_or_default();
        match (byte, rest.first()) {
            // Of the end of the line, or a blank: that is told by what follows.
            (b'\r', None | Some(b'\n')) => {}
            (b, _) if blank(*b) => {
                let version = rest.get(..VERSION.len()).is_some_and(|v| v.eq_ignore_ascii_case(VERSION));
                if version || word && line.starts_with(b"GET") && n == 3 {
                    return Some(Protocol::Http1);
                }
                word = false;
            }
            (b, _) if word && !token(*b) || *b == b'\n' => return Some(Protocol::Unknown),
            _ => {}
        }
    }
    None
}

/// What lenient servers split a request line at: RFC 9112 section 3 names the first five, a CR alone among them; the others are
/// white space to who reads Latin 1 as Unicode, as Python's server does.
fn blank(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | 0x0b | 0x0c | b'\r' | 0x1c..=0x1f | 0x85 | 0xa0)
}

/// A byte of a method (RFC 9110 section 5.6.2).
fn token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_are_classified() {
        for (bytes, want) in [
            (&b""[..], None),
            (b"\x16", None),
            (b"\x16\x03", Some(Protocol::Tls)),
            (b"\x16\x02", Some(Protocol::Unknown)),
            (b"\x80\x2e\x01", Some(Protocol::Unknown)),
            (b"G", None),
            (b"GET", None),
            (b"GET ", Some(Protocol::Http1)),
            (b"GET\t", Some(Protocol::Http1)),
            (b"GETS ", None),
            (b"POST /", None),
            (b"POST / HTTP", None),
            (b"POST / HTTP/", Some(Protocol::Http1)),
            (b"CONNECT a:1 HTTP/1.1", Some(Protocol::Http1)),
            (b"CONNECT a:1 HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"M-SEARCH * HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"x\x1c/\x1chttp/1.1\r\n", Some(Protocol::Http1)),
            (b"get / HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"GET\r", None),
            (b"GET\r/\n", Some(Protocol::Http1)),
            (b"GET\r\n", Some(Protocol::Unknown)),
            (b"POST\r/\rHTTP/1.1\n", Some(Protocol::Http1)),
            (b"POST\x85/\xa0HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"\xa0\x85GET\x85/\n", Some(Protocol::Http1)),
            (b"PING\r", None),
            (b"PING\rPING\n", Some(Protocol::Unknown)),
            (b"\x85\x01", Some(Protocol::Unknown)),
            (b"PRI * HTTP/2.0\r\n", Some(Protocol::Http2)),
            (b"PRI", None),
            (b"SSH-2.0-x\r\n", Some(Protocol::Unknown)),
            (b"SSH-2.0-x Debian\r\n", Some(Protocol::Unknown)),
            (b"EHLO mail.test\r\n", Some(Protocol::Unknown)),
            (b"QUIT\r\n", Some(Protocol::Unknown)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Protocol::Unknown)),
            (b"003egit-upload-pack /p\0host=h\0", None),
            (b"003egit-upload-pack /p\0host=h\x000011want x\n", Some(Protocol::Unknown)),
            (b"POST /\x01", None),
            (b"POST /?\x01 HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"POST /\0\x7f\x08 http/1.1\n", Some(Protocol::Http1)),
            (b"POST /\x01\r\n", Some(Protocol::Unknown)),
            (b"POST\x01/ HTTP/1.1\r\n", Some(Protocol::Unknown)),
            // A bind of LDAP, whose length is that of a blank, and a search behind it.
            (b"0\x0c\x02\x01\x01`\x07\x02\x01\x03\x04\0\x80\0", None),
            (
                b"0\x0c\x02\x01\x01`\x07\x02\x01\x03\x04\0\x80\x000%\x02\x01\x02c \x04\0\x0a",
                Some(Protocol::Unknown),
            ),
            (b"PROXY", None),
            (b"PROXY ", Some(Protocol::Proxied)),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n", Some(Protocol::Proxied)),
            (b"PROXYX /\n", Some(Protocol::Unknown)),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\0", Some(Protocol::Proxied)),
            (b"\r\n\0\r\nQUIT\n", Some(Protocol::Unknown)),
            (b" \0\0\x01", Some(Protocol::Unknown)),
            (b"\0", Some(Protocol::Unknown)),
            (b"AMQP\0\0\x09\x01", Some(Protocol::Unknown)),
            (b"\r\n", None),
            (b"\r\nGET ", Some(Protocol::Http1)),
            (b"\n \r\n\r\nPOST / HTTP/1.0\r\n", Some(Protocol::Http1)),
            (b"\r\nEHLO x\r\n", Some(Protocol::Unknown)),
            (b"\r\n\x16\x03\x01", Some(Protocol::Unknown)),
            (&[b'\n'; LEADING_BYTES_MAX], None),
            (&[b'\n'; LEADING_BYTES_MAX + 1], Some(Protocol::Http1)),
            (&[b'A'; LINE_BYTES_MAX - 1], None),
            (&[b'A'; LINE_BYTES_MAX], Some(Protocol::Http1)),
        ] {
            assert_eq!(sniff(bytes), want, "{:?}", bytes.escape_ascii().to_string());
        }
    }
}
