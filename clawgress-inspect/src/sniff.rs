//! Which protocol a client speaks, from the first bytes it sends.
//!
//! The answer only selects the parser that judges the bytes for good; it must never be taken for a
//! proof that they are well-formed.

/// Longest HTTP method looked for, bytes: the longest registered one (`BASELINE-CONTROL`,
/// `UPDATEREDIRECTREF`) has 17.
const METHOD_BYTES_MAX: usize = 24;

/// What the first bytes look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A TLS handshake record (RFC 8446 section 5.1).
    Tls,
    /// An HTTP/1 request line (RFC 9112 section 3).
    Http1,
    /// The HTTP/2 connection preface in clear (RFC 9113 section 3.4).
    Http2,
    /// Something else.
    Unknown,
}

/// Classifies; `None` means that more bytes are needed. At most [`METHOD_BYTES_MAX`] + 1 bytes are
/// ever needed.
#[must_use]
pub fn sniff(bytes: &[u8]) -> Option<Protocol> {
    match bytes {
        [] | [0x16] => return None,
        // Record version 3.x: every TLS client, and SSL 3.0, which the ClientHello parser leaves to policy.
        [0x16, 3, ..] => return Some(Protocol::Tls),
        _ => {}
    }
    for (n, byte) in bytes.iter().enumerate() {
        match byte {
            b' ' if n == 0 => return Some(Protocol::Unknown),
            b' ' if bytes.starts_with(b"PRI ") => return Some(Protocol::Http2),
            b' ' => return Some(Protocol::Http1),
            // Methods are case-sensitive (RFC 9110 section 9.1) and the registered ones are of these.
            b'A'..=b'Z' | b'-' if n < METHOD_BYTES_MAX => {}
            _ => return Some(Protocol::Unknown),
        }
    }
    None
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
            (b"CONNECT a:1 HTTP/1.1", Some(Protocol::Http1)),
            (b"M-SEARCH *", Some(Protocol::Http1)),
            (b"PRI * HTTP/2.0\r\n", Some(Protocol::Http2)),
            (b"PRI", None),
            (b"get /", Some(Protocol::Unknown)),
            (b" GET /", Some(Protocol::Unknown)),
            (b"SSH-2.0-x", Some(Protocol::Unknown)),
            (b"\r\nGET / ", Some(Protocol::Unknown)),
            (b"\x00", Some(Protocol::Unknown)),
            (&[b'A'; 24], None),
            (&[b'A'; 25], Some(Protocol::Unknown)),
        ] {
            assert_eq!(sniff(bytes), want, "{:?}", bytes.escape_ascii().to_string());
        }
    }
}
