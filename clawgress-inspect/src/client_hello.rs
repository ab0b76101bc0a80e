//! The TLS ClientHello: reassembled over any segmentation and several records, then read for what
//! policy asks: server name, ALPN, and whether the real name is encrypted.
//!
//! It must never guess: a hello that this parser and a server could read differently (a repeated
//! extension, two names, bytes left over) is an error.

use std::net::IpAddr;

/// Most bytes of records that may make up a hello: post-quantum key shares and ECH take a few KiB; ten
/// times that is abuse.
pub const HELLO_BYTES_MAX: usize = 64 * 1024;
/// Most extensions: browsers send about twenty.
const EXTENSIONS_MAX: usize = 128;
/// Most ALPN names.
const ALPN_NAMES_MAX: usize = 32;
/// Longest DNS name in text form (RFC 1035 section 3.1).
const NAME_BYTES_MAX: usize = 253;
/// Longest DNS label.
const LABEL_BYTES_MAX: usize = 63;
/// Longest plaintext fragment (RFC 8446 section 5.1).
const FRAGMENT_BYTES_MAX: usize = 1 << 14;

const CONTENT_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
/// `server_name` (RFC 6066 section 3).
pub(crate) const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_SIGNATURE_ALGORITHMS: u16 = 13;
/// ALPN (RFC 7301).
pub(crate) const EXTENSION_ALPN: u16 = 16;
const EXTENSION_SUPPORTED_VERSIONS: u16 = 43;
const EXTENSION_ECH: u16 = 0xfe0d;

/// What a ClientHello says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The one host name of `server_name` (RFC 6066 section 3), as sent; a valid name, never an address.
    pub server_name: Option<String>,
    /// ALPN names in the client's order (RFC 7301); bytes outside printable ASCII escaped.
    pub alpn: Vec<String>,
    /// The first of them as sent; empty without any.
    pub(crate) alpn_first: Vec<u8>,
    /// Whether `encrypted_client_hello` is present (real or GREASE: they look alike by design).
    pub encrypted: bool,
    // What a fingerprint is made of, in the client's order.
    pub(crate) legacy_version: u16,
    pub(crate) cipher_suites: Vec<u16>,
    pub(crate) extensions: Vec<u16>,
    pub(crate) supported_versions: Vec<u16>,
    pub(crate) signature_algorithms: Vec<u16>,
}

/// Why bytes are no acceptable ClientHello.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// A record that is not a handshake record.
    #[error("content type {0} where a handshake record was expected")]
    ContentType(u8),
    /// Not TLS.
    #[error("record version {0}.{1}")]
    Version(u8, u8),
    /// Empty, or longer than TLS permits.
    #[error("record of {0} bytes")]
    RecordLength(usize),
    /// Beyond [`HELLO_BYTES_MAX`].
    #[error("a hello of more than {HELLO_BYTES_MAX} bytes")]
    TooLarge,
    /// Another handshake message.
    #[error("handshake message {0} where a hello was expected")]
    NotHello(u8),
    /// A field ends outside its parent.
    #[error("{0} is truncated")]
    Truncated(&'static str),
    /// Bytes are left over.
    #[error("bytes after {0}")]
    Trailing(&'static str),
    /// A length that the specification forbids.
    #[error("{0} has an impossible length")]
    Length(&'static str),
    /// RFC 8446 section 4.2: no type twice.
    #[error("extension {0} is repeated")]
    DuplicateExtension(u16),
    /// More than [`EXTENSIONS_MAX`] extensions or [`ALPN_NAMES_MAX`] names.
    #[error("too many {0}")]
    TooMany(&'static str),
    /// The server name is an address, which RFC 6066 section 3 forbids.
    #[error("the server name is an address")]
    ServerNameAddress,
    /// The server name is no host name.
    #[error("the server name is not a host name")]
    ServerNameInvalid,
    /// There is more than one server name, or one of an unknown type.
    #[error("the server name list does not hold exactly one host name")]
    ServerNameCount,
}

/// Reassembles one ClientHello.
#[derive(Debug, Default)]
pub struct Reassembler {
    header: [u8; 5],
    header_len: usize,
    fragment_left: usize,
    message: Vec<u8>,
    total: usize,
}

impl Reassembler {
    /// Takes the next bytes off the wire, in any segmentation. `Some` once the hello is whole; the
    /// caller keeps the bytes themselves to send them on.
    ///
    /// # Errors
    /// As soon as the bytes cannot be an acceptable hello.
    pub fn push(&mut self, mut input: &[u8]) -> Result<Option<ClientHello>, HelloError> {
        while !input.is_empty() {
            if self.fragment_left == 0 {
                input = self.header_bytes(input)?;
                continue;
            }
            let (now, rest) =
                input.split_at_checked(self.fragment_left.min(input.len())).unwrap_or((input, &[]));
            self.message.extend_from_slice(now);
            self.fragment_left -= now.len();
            self.total += now.len();
            input = rest;
            if let Some(hello) = self.whole()? {
                return Ok(Some(hello));
            }
        }
        Ok(None)
    }

    /// Bytes taken off the wire so far, up to the end of the hello once it is whole.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.total
    }

    /// Takes bytes of a record header; returns the rest of `input`.
    fn header_bytes<'a>(&mut self, input: &'a [u8]) -> Result<&'a [u8], HelloError> {
        let Some((byte, rest)) = input.split_first() else { return Ok(input) };
        if let Some(slot) = self.header.get_mut(self.header_len) {
            *slot = *byte;
        }
        self.header_len += 1;
        self.total += 1;
        let [content, major, minor, hi, lo] = self.header;
        match self.header_len {
            1 if content != CONTENT_HANDSHAKE => return Err(HelloError::ContentType(content)),
            2 if major != 3 => return Err(HelloError::Version(major, 0)),
            3 if minor > 4 => return Err(HelloError::Version(major, minor)),
            5 => {
                let length = usize::from(u16::from_be_bytes([hi, lo]));
                if length == 0 || length > FRAGMENT_BYTES_MAX {
                    return Err(HelloError::RecordLength(length));
                }
                if self.total + length > HELLO_BYTES_MAX {
                    return Err(HelloError::TooLarge);
                }
                self.fragment_left = length;
                self.header_len = 0;
            }
            _ => {}
        }
        Ok(rest)
    }

    fn whole(&self) -> Result<Option<ClientHello>, HelloError> {
        if let Some(kind) = self.message.first().filter(|k| **k != HANDSHAKE_CLIENT_HELLO) {
            return Err(HelloError::NotHello(*kind));
        }
        let Some((&[_, a, b, c], body)) = self.message.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
        if length > HELLO_BYTES_MAX {
            return Err(HelloError::TooLarge);
        }
        match body.len().cmp(&length) {
            std::cmp::Ordering::Less => Ok(None),
            // A client has nothing more to say before the server answered.
            std::cmp::Ordering::Greater => Err(HelloError::Trailing("the hello")),
            std::cmp::Ordering::Equal if self.fragment_left > 0 => Err(HelloError::Trailing("the hello")),
            std::cmp::Ordering::Equal => parse(body).map(Some),
        }
    }
}

/// Parses the body of a ClientHello handshake message (RFC 8446 section 4.1.2).
///
/// # Errors
/// Everything that is not exactly one well-formed hello.
pub fn parse(body: &[u8]) -> Result<ClientHello, HelloError> {
    let mut r = Reader(body);
    let legacy_version = r.u16("legacy_version")?;
    r.take(32, "random")?;
    if r.vector8("session_id")?.0.len() > 32 {
        return Err(HelloError::Length("session_id"));
    }
    let suites = r.vector16("cipher_suites")?.0;
    if suites.is_empty() || suites.len() % 2 != 0 {
        return Err(HelloError::Length("cipher_suites"));
    }
    if r.vector8("compression_methods")?.0.is_empty() {
        return Err(HelloError::Length("compression_methods"));
    }
    let mut hello = ClientHello {
        server_name: None,
        alpn: Vec::new(),
        alpn_first: Vec::new(),
        encrypted: false,
        legacy_version,
        cipher_suites: numbers(suites),
        extensions: Vec::new(),
        supported_versions: Vec::new(),
        signature_algorithms: Vec::new(),
    };
    if r.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = r.vector16("extensions")?;
    r.end("the extensions")?;
    while !extensions.0.is_empty() {
        let kind = extensions.u16("extension type")?;
        let data = extensions.vector16("extension")?;
        if hello.extensions.contains(&kind) {
            return Err(HelloError::DuplicateExtension(kind));
        }
        if hello.extensions.len() == EXTENSIONS_MAX {
            return Err(HelloError::TooMany("extensions"));
        }
        hello.extensions.push(kind);
        match kind {
            EXTENSION_SERVER_NAME => hello.server_name = Some(server_name(data)?),
            EXTENSION_ALPN => (hello.alpn, hello.alpn_first) = alpn(data)?,
            EXTENSION_SUPPORTED_VERSIONS => hello.supported_versions = numbers(versions(data)?),
            EXTENSION_SIGNATURE_ALGORITHMS => hello.signature_algorithms = numbers(signatures(data)?),
            EXTENSION_ECH => hello.encrypted = true,
            _ => {}
        }
    }
    Ok(hello)
}

fn server_name(mut r: Reader<'_>) -> Result<String, HelloError> {
    let mut list = r.vector16("server_name list")?;
    r.end("the server_name list")?;
    let kind = list.take(1, "server_name type")?;
    if kind != [0] {
        return Err(HelloError::ServerNameCount);
    }
    let name = list.vector16("host_name")?.0;
    if !list.0.is_empty() {
        return Err(HelloError::ServerNameCount);
    }
    let name = std::str::from_utf8(name).map_err(|_| HelloError::ServerNameInvalid)?;
    if is_address(name) {
        return Err(HelloError::ServerNameAddress);
    }
    // Underscores are no letters of RFC 952, but names with them are in use and resolve.
    let label = |l: &str| {
        (1..=LABEL_BYTES_MAX).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    // RFC 6066 section 3: without a trailing dot, which `split` shows as an empty label.
    if name.len() > NAME_BYTES_MAX || !name.split('.').all(label) {
        return Err(HelloError::ServerNameInvalid);
    }
    Ok(name.to_owned())
}

/// Whether `name` is an address in any spelling: textual IPv6, or a last label that makes URL parsers
/// read the whole as IPv4 (all digits, or `0x` and hex digits).
fn is_address(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let number = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    (!last.is_empty() && number(last))
        || hex.is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
        || name.parse::<IpAddr>().is_ok()
        || name.contains(':')
}

/// Two bytes each; a list's length was checked to be even.
fn numbers(list: &[u8]) -> Vec<u16> {
    list.chunks_exact(2).map(|pair| pair.iter().fold(0, |n, byte| n << 8 | u16::from(*byte))).collect()
}

/// RFC 8446 section 4.2.1.
fn versions(mut r: Reader<'_>) -> Result<&[u8], HelloError> {
    let list = r.vector8("supported_versions list")?.0;
    r.end("the supported_versions list")?;
    if list.is_empty() || list.len() % 2 != 0 {
        return Err(HelloError::Length("supported_versions"));
    }
    Ok(list)
}

/// RFC 8446 section 4.2.3.
fn signatures(mut r: Reader<'_>) -> Result<&[u8], HelloError> {
    let list = r.vector16("signature_algorithms list")?.0;
    r.end("the signature_algorithms list")?;
    if list.is_empty() || list.len() % 2 != 0 {
        return Err(HelloError::Length("signature_algorithms"));
    }
    Ok(list)
}

/// The names for people, and the first of them as it is.
fn alpn(mut r: Reader<'_>) -> Result<(Vec<String>, Vec<u8>), HelloError> {
    let mut list = r.vector16("ALPN list")?;
    r.end("the ALPN list")?;
    let (mut names, mut first) = (Vec::new(), Vec::new());
    while !list.0.is_empty() {
        let name = list.vector8("ALPN name")?.0;
        if name.is_empty() {
            return Err(HelloError::Length("ALPN name"));
        }
        if names.len() == ALPN_NAMES_MAX {
            return Err(HelloError::TooMany("ALPN names"));
        }
        if names.is_empty() {
            first = name.to_vec();
        }
        names.push(name.escape_ascii().to_string());
    }
    if names.is_empty() { Err(HelloError::Length("ALPN list")) } else { Ok((names, first)) }
}

/// A slice that is only ever read forward and within bounds.
struct Reader<'a>(&'a [u8]);

// === impl Reader ===

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(HelloError::Truncated(what))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, HelloError> {
        let (bytes, rest) = self.0.split_first_chunk::<2>().ok_or(HelloError::Truncated(what))?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    fn vector8(&mut self, what: &'static str) -> Result<Reader<'a>, HelloError> {
        let n = self.take(1, what)?.first().copied().unwrap_or_default();
        self.take(usize::from(n), what).map(Reader)
    }

    fn vector16(&mut self, what: &'static str) -> Result<Reader<'a>, HelloError> {
        let n = self.u16(what)?;
        self.take(usize::from(n), what).map(Reader)
    }

    fn end(&self, what: &'static str) -> Result<(), HelloError> {
        if self.0.is_empty() { Ok(()) } else { Err(HelloError::Trailing(what)) }
    }
}

#[cfg(test)]
mod tests;
