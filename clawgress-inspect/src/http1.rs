//! Strict HTTP/1 request framing (RFC 9112): where each request begins and ends, decided before any
//! other parser sees a byte.
//!
//! Request smuggling needs two parsers that disagree. This one accepts only what leaves no room for
//! that: CRLF line ends, one `Content-Length` of plain digits or one `Transfer-Encoding: chunked`,
//! chunk sizes without extensions. It must never repair; it drops trailers, which nobody may merge
//! into headers, and refuses everything else.

/// Most bytes of a request head: four times what common servers accept, so that their answer is seen.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most header fields.
pub const FIELDS_MAX: usize = 128;
/// Most bytes of a trailer section.
pub const TRAILER_BYTES_MAX: usize = 8 * 1024;
/// Most hex digits of a chunk size: 2^48 bytes; more could overflow a parser further on.
const CHUNK_DIGITS_MAX: usize = 12;
/// Most digits of `Content-Length`: below 2^63.
const LENGTH_DIGITS_MAX: usize = 18;
/// Longest method, bytes.
const METHOD_BYTES_MAX: usize = 24;
/// Methods of IANA's registry (RFC 9110 section 18.2), and those that common servers know besides.
const METHODS: [&str; 46] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "M-SEARCH",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "NOTIFY",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SUBSCRIBE",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "VIEW",
];

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Beyond [`HEAD_BYTES_MAX`].
    #[error("the request head has more than {HEAD_BYTES_MAX} bytes")]
    HeadTooLarge,
    /// More than [`FIELDS_MAX`] fields.
    #[error("the request has more than {FIELDS_MAX} header fields")]
    FieldsTooMany,
    /// A line end that is not CRLF, or a stray control character.
    #[error("the request has a bare CR, LF or control character")]
    Control,
    /// Not `method SP target SP HTTP/1.x`.
    #[error("the request line is malformed")]
    RequestLine,
    /// A method of [`METHODS`] in other letters: methods differ by case (RFC 9110 section 9.1), and to some servers they don't.
    #[error("the method is written in other letters than its own")]
    MethodCase,
    /// Not `name: value`.
    #[error("a header field is malformed")]
    Field,
    /// None, or more than one.
    #[error("the request must have exactly one Host field")]
    HostCount,
    /// More than one of `Content-Length` and `Transfer-Encoding`, together, or a name that some take for one of them.
    #[error("the request states its length more than once")]
    LengthAmbiguous,
    /// Not plain digits.
    #[error("the Content-Length is not a plain number")]
    Length,
    /// Anything but `chunked`, or with HTTP/1.0.
    #[error("the only transfer coding accepted is chunked, with HTTP/1.1")]
    TransferEncoding,
    /// `Connection` names a field that the message needs.
    #[error("the Connection field names a field that frames or routes the message")]
    Connection,
    /// Anything but `100-continue`.
    #[error("the only expectation accepted is 100-continue")]
    Expectation,
    /// A chunk size with an extension, sign, blank or too many digits; or a chunk that does not end
    /// where it says.
    #[error("the chunked body is malformed")]
    Chunk,
    /// Beyond [`TRAILER_BYTES_MAX`].
    #[error("the trailer section has more than {TRAILER_BYTES_MAX} bytes")]
    TrailerTooLarge,
}

/// One header field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Name as sent: a token.
    pub name: &'a str,
    /// Value without surrounding blanks; no control characters but tabs.
    pub value: &'a [u8],
}

/// How the body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There are this many bytes.
    Length(u64),
    /// Chunked.
    Chunked,
}

/// A well-formed request head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// Method.
    pub method: &'a str,
    /// Request target, as sent.
    pub target: &'a [u8],
    /// Minor version: 0 or 1.
    pub minor: u8,
    /// Fields in order.
    pub fields: Vec<Field<'a>>,
    /// How the body is delimited.
    pub body: Body,
    /// The one `Host`. Only a CONNECT may come without: its target says it all, and clients in use
    /// leave it out.
    pub host: Option<&'a [u8]>,
}

/// Length of the head at the start of `bytes`, with its empty line; `None` if it is not whole.
/// `scanned` bytes are known to hold no end.
///
/// # Errors
/// [`HttpError::HeadTooLarge`], or [`HttpError::Control`] at the first line end that is not CRLF.
pub fn head_length(bytes: &[u8], scanned: usize) -> Result<Option<usize>, HttpError> {
    let from = scanned.saturating_sub(3).min(bytes.len());
    let tail = bytes.get(from..).unwrap_or_default();
    if let Some(at) = tail.iter().enumerate().find_map(|(n, b)| {
        // A bare LF can never become valid: refuse it now, not when a CRLF happens to follow.
        let bare = *b == b'\n' && (from + n == 0 || bytes.get(from + n - 1) != Some(&b'\r'));
        (bare || *b == 0).then_some(n)
    }) {
        let end = tail.windows(4).position(|w| w == b"\r\n\r\n");
        if end.is_none_or(|e| at < e) {
            return Err(HttpError::Control);
        }
    }
    match tail.windows(4).position(|w| w == b"\r\n\r\n") {
        Some(at) if from + at + 4 <= HEAD_BYTES_MAX => Ok(Some(from + at + 4)),
        None if bytes.len() <= HEAD_BYTES_MAX => Ok(None),
        _ => Err(HttpError::HeadTooLarge),
    }
}

/// Parses a whole head, of the length [`head_length`] gave.
///
/// # Errors
/// Everything that RFC 9112 forbids, and what it leaves to interpretation.
pub fn parse(head: &[u8]) -> Result<Head<'_>, HttpError> {
    let text = head.strip_suffix(b"\r\n\r\n").ok_or(HttpError::RequestLine)?;
    let mut lines = Lines(Some(text));
    let (method, target, minor) = request_line(lines.next().unwrap_or_default())?;
    let mut fields = Vec::with_capacity(16);
    for line in lines {
        if fields.len() == FIELDS_MAX {
            return Err(HttpError::FieldsTooMany);
        }
        fields.push(field(line)?);
    }
    let body = framing(&fields, minor)?;
    let mut hosts = fields.iter().filter(|f| f.name.eq_ignore_ascii_case("host"));
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host.value),
        (None, _) if method == "CONNECT" => None,
        _ => return Err(HttpError::HostCount),
    };
    Ok(Head { method, target, minor, fields, body, host })
}

/// Lines between CRLFs.
struct Lines<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.0.take()?;
        let Some(at) = rest.windows(2).position(|w| w == b"\r\n") else { return Some(rest) };
        self.0 = rest.get(at + 2..);
        rest.get(..at)
    }
}

fn token_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(
            b,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

fn token(bytes: &[u8]) -> Option<&str> {
    (!bytes.is_empty() && bytes.iter().all(|b| token_byte(*b))).then(|| std::str::from_utf8(bytes).ok())?
}

fn request_line(line: &[u8]) -> Result<(&str, &[u8], u8), HttpError> {
    if line.iter().any(u8::is_ascii_control) {
        return Err(HttpError::Control);
    }
    let mut parts = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(HttpError::RequestLine);
    };
    let minor = match version {
        b"HTTP/1.0" => 0,
        b"HTTP/1.1" => 1,
        _ => return Err(HttpError::RequestLine),
    };
    let method = token(method).filter(|m| m.len() <= METHOD_BYTES_MAX).ok_or(HttpError::RequestLine)?;
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err(HttpError::RequestLine);
    }
    if is_in_other_letters(method) {
        return Err(HttpError::MethodCase);
    }
    Ok((method, target, minor))
}

/// Whether it is one of [`METHODS`] but for the case of its letters.
fn is_in_other_letters(method: &str) -> bool {
    method.bytes().any(|b| b.is_ascii_lowercase())
        && METHODS.iter().any(|known| known.eq_ignore_ascii_case(method))
}

fn field(line: &[u8]) -> Result<Field<'_>, HttpError> {
    if line.iter().any(|b| b.is_ascii_control() && *b != b'\t') {
        return Err(HttpError::Control);
    }
    let colon = line.iter().position(|b| *b == b':').ok_or(HttpError::Field)?;
    let (name, value) = line.split_at_checked(colon).ok_or(HttpError::Field)?;
    // A name that starts or ends with a blank (folding, `Host :`) is no token.
    let name = token(name).ok_or(HttpError::Field)?;
    let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii();
    Ok(Field { name, value })
}

/// Whether a name has these letters between other marks than its own: some servers take `_`, or anything, for `-`.
fn resembles(name: &str, letters: &str) -> bool {
    let own = || name.bytes().filter(u8::is_ascii_alphanumeric);
    name.len() > letters.len() && own().map(|b| b.to_ascii_lowercase()).eq(letters.bytes())
}

fn framing(fields: &[Field<'_>], minor: u8) -> Result<Body, HttpError> {
    let mut body = None;
    for field in fields {
        if field.name.eq_ignore_ascii_case("content-length") {
            let digits = (1..=LENGTH_DIGITS_MAX).contains(&field.value.len())
                && field.value.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(field.value).map_err(|_| HttpError::Length)?;
            let length = if digits { text.parse().ok() } else { None };
            let length = Body::Length(length.ok_or(HttpError::Length)?);
            if body.replace(length).is_some() {
                return Err(HttpError::LengthAmbiguous);
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if minor == 0 || !field.value.eq_ignore_ascii_case(b"chunked") {
                return Err(HttpError::TransferEncoding);
            }
            if body.replace(Body::Chunked).is_some() {
                return Err(HttpError::LengthAmbiguous);
            }
        } else if field.name.eq_ignore_ascii_case("expect") {
            if !field.value.eq_ignore_ascii_case(b"100-continue") {
                return Err(HttpError::Expectation);
            }
        } else if field.name.eq_ignore_ascii_case("connection") {
            let needed = |n: &[u8]| {
                [&b"host"[..], b"content-length", b"transfer-encoding", b"content-type", b"authorization"]
                    .iter()
                    .any(|f| n.trim_ascii().eq_ignore_ascii_case(f))
            };
            if field.value.split(|b| *b == b',').any(needed) {
                return Err(HttpError::Connection);
            }
        } else if resembles(field.name, "contentlength") || resembles(field.name, "transferencoding") {
            return Err(HttpError::LengthAmbiguous);
        }
    }
    Ok(body.unwrap_or(Body::Length(0)))
}

/// What to do with the next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed.
    More,
    /// The first `n` bytes are a whole head: parse it, then say [`Framer::body`].
    Head(usize),
    /// The first `n` bytes are sound and go on.
    Pass(usize),
    /// The first `n` bytes are a trailer field and go nowhere.
    Drop(usize),
    /// The first `n` bytes are sound and go on, and the request ends there.
    End(usize),
}

/// Where in a request the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head {
        scanned: usize,
    },
    Length(u64),
    ChunkSize,
    /// Data, and then the CRLF that ends it.
    Chunk(u64),
    ChunkEnd,
    Trailer {
        dropped: usize,
    },
}

/// Follows the requests on one connection.
#[derive(Debug)]
pub struct Framer {
    state: State,
}

impl Default for Framer {
    fn default() -> Self {
        Framer { state: State::Head { scanned: 0 } }
    }
}

// === impl Framer ===

impl Framer {
    /// Whether the next byte is the first of a request.
    #[must_use]
    pub fn is_at_head(&self) -> bool {
        matches!(self.state, State::Head { .. })
    }

    /// Whether the next bytes are the body's own, and none of its framing.
    #[must_use]
    pub fn is_in_data(&self) -> bool {
        matches!(self.state, State::Length(_) | State::Chunk(_))
    }

    /// Whether the next bytes are of the trailer section, or of what ends it.
    #[must_use]
    pub fn is_in_trailer(&self) -> bool {
        matches!(self.state, State::Trailer { .. })
    }

    /// Looks at `input`, the bytes not yet consumed. The caller consumes what the step says and calls
    /// again; at [`Step::More`] it adds bytes. Never asks to hold more than [`HEAD_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// As soon as the bytes can't be sound. The connection is then beyond repair.
    pub fn advance(&mut self, input: &[u8]) -> Result<Step, HttpError> {
        match self.state {
            State::Head { scanned } => match head_length(input, scanned)? {
                Some(n) => Ok(Step::Head(n)),
                None => {
                    self.state = State::Head { scanned: input.len() };
                    Ok(Step::More)
                }
            },
            _ if input.is_empty() => Ok(Step::More),
            State::Length(left) => {
                let (n, left) = part(left, input.len());
                Ok(self.to(if left == 0 { State::Head { scanned: 0 } } else { State::Length(left) }, n))
            }
            State::ChunkSize => self.chunk_size(input),
            State::Chunk(left) => {
                let (n, left) = part(left, input.len());
                self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                Ok(Step::Pass(n))
            }
            State::ChunkEnd => match crlf(input)? {
                true => Ok(self.to(State::ChunkSize, 2)),
                false => Ok(Step::More),
            },
            State::Trailer { dropped } => self.trailer(input, dropped),
        }
    }

    /// Says how the body of the head just parsed is delimited, after the head was consumed. Returns
    /// whether the request ends with its head.
    pub fn body(&mut self, body: Body) -> bool {
        self.state = match body {
            Body::Length(0) => State::Head { scanned: 0 },
            Body::Length(n) => State::Length(n),
            Body::Chunked => State::ChunkSize,
        };
        self.is_at_head()
    }

    fn to(&mut self, state: State, n: usize) -> Step {
        self.state = state;
        if self.is_at_head() { Step::End(n) } else { Step::Pass(n) }
    }

    fn chunk_size(&mut self, input: &[u8]) -> Result<Step, HttpError> {
        let digits = input.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if digits > CHUNK_DIGITS_MAX || (digits == 0 && !input.is_empty()) {
            return Err(HttpError::Chunk);
        }
        let (size, rest) = input.split_at_checked(digits).ok_or(HttpError::Chunk)?;
        // Anything but CRLF here is an extension, a blank or worse.
        if !crlf(rest)? {
            return Ok(Step::More);
        }
        let text = std::str::from_utf8(size).map_err(|_| HttpError::Chunk)?;
        let size = u64::from_str_radix(text, 16).map_err(|_| HttpError::Chunk)?;
        self.state = if size == 0 { State::Trailer { dropped: 0 } } else { State::Chunk(size) };
        Ok(Step::Pass(digits + 2))
    }

    fn trailer(&mut self, input: &[u8], dropped: usize) -> Result<Step, HttpError> {
        let end = input.iter().position(|b| *b == b'\n');
        let length = end.map_or(input.len(), |n| n + 1);
        if dropped + length > TRAILER_BYTES_MAX {
            return Err(HttpError::TrailerTooLarge);
        }
        let Some(line) = end.and_then(|_| input.get(..length)) else { return Ok(Step::More) };
        let line = line.strip_suffix(b"\r\n").ok_or(HttpError::Control)?;
        if line.is_empty() {
            return Ok(self.to(State::Head { scanned: 0 }, length));
        }
        field(line)?;
        self.state = State::Trailer { dropped: dropped + length };
        Ok(Step::Drop(length))
    }
}

/// How many of `have` bytes belong to a part with `left` bytes left, and what is left after them.
fn part(left: u64, have: usize) -> (usize, u64) {
    let n = usize::try_from(left).unwrap_or(usize::MAX).min(have);
    (n, left.saturating_sub(n as u64))
}

/// Whether `input` starts with CRLF; `false` if that can't be said yet.
fn crlf(input: &[u8]) -> Result<bool, HttpError> {
    match input {
        [] | [b'\r'] => Ok(false),
        [b'\r', b'\n', ..] => Ok(true),
        _ => Err(HttpError::Chunk),
    }
}

#[cfg(test)]
mod tests;
