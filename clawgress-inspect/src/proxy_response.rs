//! What a proxy answers to `CONNECT` (RFC 9112 section 4, RFC 9110 section 9.3.6).
//!
//! Finds the end of the head and its status. Must never take a byte of what follows for the head's, nor read a head
//! that others could take for a longer or a shorter one.

/// Longest head, bytes: proxies explain a refusal in the body.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// An answer's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Status code, 100 to 599.
    pub status: u16,
    /// Bytes of the head, its empty line among them: what follows is the tunnel's if it was made.
    pub bytes: usize,
}

/// Why an answer was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// No status line of HTTP/1.
    #[error("the answer does not begin with a status line of HTTP/1")]
    StatusLine,
    /// A line that ends in a bare line feed, or holds a bare carriage return or NUL.
    #[error("the answer's head has a bare carriage return, a bare line feed or a zero byte")]
    Bytes,
    /// Longer than [`HEAD_BYTES_MAX`].
    #[error("the answer's head is too long")]
    Length,
}

/// Reads the head that `bytes` begin with; `None`: its end has not come.
///
/// # Errors
/// If it is none, as soon as that is known.
pub fn parse(bytes: &[u8]) -> Result<Option<Head>, HeadError> {
    let looked_at = bytes.get(..HEAD_BYTES_MAX).unwrap_or(bytes);
    let end = looked_at.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
    let head = end.and_then(|end| looked_at.get(..end)).unwrap_or(looked_at);
    check_bytes(head)?;
    let is_whole = head.contains(&b'\n');
    let status = status(head, is_whole)?;
    match (end, status) {
        (Some(bytes), Some(status)) => Ok(Some(Head { status, bytes })),
        _ if bytes.len() >= HEAD_BYTES_MAX => Err(HeadError::Length),
        _ => Ok(None),
    }
}

fn check_bytes(head: &[u8]) -> Result<(), HeadError> {
    let mut before = None;
    for byte in head {
        match (before, byte) {
            (Some(b'\r'), b'\n') => {}
            (Some(b'\r'), _) | (_, b'\n' | b'\0') => return Err(HeadError::Bytes),
            _ => {}
        }
        before = Some(*byte);
    }
    Ok(())
}

/// The status of a status line, of which all or only a beginning is there.
fn status(head: &[u8], is_whole: bool) -> Result<Option<u16>, HeadError> {
    const FORM: &[u8; 12] = b"HTTP/1.x ddd";
    let digit = |at: usize| head.get(at).map(|b| u16::from(b.wrapping_sub(b'0')));
    for (got, want) in head.iter().zip(FORM) {
        let fits = match want {
            b'd' => got.is_ascii_digit(),
            b'x' => matches!(got, b'0' | b'1'),
            want => got == want,
        };
        if !fits {
            return Err(HeadError::StatusLine);
        }
    }
    // A reason may be missing, and then its blank is by some.
    if head.get(FORM.len()).is_some_and(|b| !matches!(b, b' ' | b'\r')) || is_whole && head.len() < FORM.len()
    {
        return Err(HeadError::StatusLine);
    }
    let (Some(hundreds), Some(tens), Some(ones)) = (digit(9), digit(10), digit(11)) else { return Ok(None) };
    if !(1..=5).contains(&hundreds) {
        return Err(HeadError::StatusLine);
    }
    Ok(Some(hundreds * 100 + tens * 10 + ones))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_end_where_they_end() {
        for (bytes, want) in [
            (&b"HTTP/1.1 200 Connection established\r\n\r\nSSH-2.0"[..], Ok(Some((200, 39)))),
            (b"HTTP/1.0 200\r\n\r\n", Ok(Some((200, 16)))),
            (b"HTTP/1.1 200 \r\nVia: x\r\n\r\n\r\n\r\n", Ok(Some((200, 25)))),
            (
                b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n\r\nno!",
                Ok(Some((407, 65))),
            ),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", Ok(Some((100, 25)))),
            (b"", Ok(None)),
            (b"HT", Ok(None)),
            (b"HTTP/1.1 20", Ok(None)),
            (b"HTTP/1.1 200 OK\r\nVia: x\r\n\r", Ok(None)),
            (b"SSH-2.0-x", Err(HeadError::StatusLine)),
            (b"HTTP/2 200 OK\r\n\r\n", Err(HeadError::StatusLine)),
            (b"HTTP/1.1 2000\r\n\r\n", Err(HeadError::StatusLine)),
            (b"HTTP/1.1 099 x\r\n\r\n", Err(HeadError::StatusLine)),
            (b"HTTP/1.1 600 x\r\n\r\n", Err(HeadError::StatusLine)),
            (b"HTTP/1.1  200 OK\r\n\r\n", Err(HeadError::StatusLine)),
            (b"HTTP/1.1\r\n\r\n", Err(HeadError::StatusLine)),
            (b"HTTP/1.1 200 OK\n\n", Err(HeadError::Bytes)),
            (b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", Err(HeadError::Bytes)),
            (b"HTTP/1.1 200 O\0K\r\n\r\n", Err(HeadError::Bytes)),
        ] {
            let got = parse(bytes).map(|head| head.map(|h| (h.status, h.bytes)));
            assert_eq!(got, want, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_head_is_bounded() {
        let mut long = b"HTTP/1.1 200 OK\r\nA: ".to_vec();
        long.resize(HEAD_BYTES_MAX - 1, b'a');
        assert_eq!(parse(&long), Ok(None));
        long.push(b'a');
        assert_eq!(parse(&long), Err(HeadError::Length));
        long.extend(b"\r\n\r\n");
        assert_eq!(parse(&long), Err(HeadError::Length));
    }
}
